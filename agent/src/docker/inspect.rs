//! What runs, from Docker's description of a container.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use bollard::models::{
    ContainerInspectResponse, ContainerState, ContainerStateStatusEnum, HealthStatusEnum,
    NetworkSettings,
};
use model::endpoint::{Fact, Health, Lifecycle};
use model::labels::Labels;
use model::name::Name;
use model::service::default_namespace;
use model::time::Timestamp;
use model::workload::{Published, Source, Workload};

use super::network::{self, Drivers};
use super::signal::{self, SIGTERM, Signal};
use crate::labels::{COMPOSE_PROJECT, NAMESPACE, Wishes, shown};
use crate::local::{Local, short};

/// Docker's own default for `docker stop`.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// For a container that `docker stop` waits for without end: a stop time-out below zero.
const NO_STOP_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A container that runs.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Inspected {
    /// Whole.
    pub(super) id: String,
    /// The container whose network it shares, by its whole id.
    pub(super) joined: Option<String>,
    pub(super) stop_signal: Signal,
    pub(super) stop_timeout: Duration,
    /// When it started; `None` where that can't be read.
    pub(super) started: Option<Timestamp>,
    pub(super) local: Local,
}

/// The container whose network `container` shares, if any.
pub(super) fn joined(container: &ContainerInspectResponse) -> Option<&str> {
    network_mode(container).strip_prefix("container:")
}

fn network_mode(container: &ContainerInspectResponse) -> &str {
    container
        .host_config
        .as_ref()
        .and_then(|h| h.network_mode.as_deref())
        .unwrap_or_default()
}

/// What the networks it is on are known by in [`Drivers`].
pub(super) fn network_keys(container: &ContainerInspectResponse) -> impl Iterator<Item = &str> {
    container
        .network_settings
        .as_ref()
        .and_then(|s| s.networks.as_ref())
        .into_iter()
        .flatten()
        .map(|(name, settings)| network::driver_key(name, settings))
}

/// Reads a description; `None` when the container doesn't run. `other` is the container whose network it shares, past those
/// that share it themselves.
pub(super) fn read(
    container: &ContainerInspectResponse,
    other: Option<&ContainerInspectResponse>,
    drivers: &Drivers,
    now: Timestamp,
) -> Option<Inspected> {
    let id = container.id.clone()?;
    let state = container.state.as_ref()?;
    // Podman's name for what was sent its stop signal, and has not ended yet.
    let stopping = state.status == Some(ContainerStateStatusEnum::STOPPING);
    let runs =
        state.running == Some(true) && state.restarting != Some(true) && state.dead != Some(true);
    if !runs && !stopping {
        return None;
    }
    let config = container.config.as_ref();
    let labels: Labels = config
        .and_then(|c| c.labels.as_ref())
        .into_iter()
        .flatten()
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    let (namespace, mut problem) = namespace(&labels);
    let mode = network_mode(container);
    let host_network = mode == "host" || other.is_some_and(|o| network_mode(o) == "host");
    // What shares another container's network has its addresses and published ports.
    let network_owner = other.unwrap_or(container);
    let settings = network_owner.network_settings.as_ref();
    let reach = reach(container, other, host_network, &labels, drivers);
    let (addresses, network) = match reach {
        Ok(found) => found,
        Err(reason) => {
            problem.get_or_insert(reason);
            (Vec::new(), String::new())
        }
    };
    let published = settings.map(published).unwrap_or_default();
    let exposed = exposed(container, settings, other.is_some());
    let started_at = state.started_at.clone().unwrap_or_default();
    let started = read_time(&started_at);
    let shown_addresses: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
    let name = container.name.as_deref().unwrap_or_default();
    let name = name.strip_prefix('/').unwrap_or(name);
    let stop_signal = config
        .and_then(|c| c.stop_signal.as_deref())
        .and_then(signal::parse)
        .unwrap_or(SIGTERM);
    let stop_timeout = match config.and_then(|c| c.stop_timeout) {
        None => STOP_TIMEOUT,
        Some(seconds) => u64::try_from(seconds).map_or(NO_STOP_TIMEOUT, Duration::from_secs),
    };
    let lifecycle = if stopping {
        Fact::new(Lifecycle::Terminating, now, "told to end")
    } else {
        Fact::new(Lifecycle::Running, started.unwrap_or(now), "")
    };
    let wishes = Wishes::read(&labels, &namespace, &exposed);
    let local = Local {
        workload: Workload {
            id: short(&id).into(),
            name: if name.is_empty() { short(&id) } else { name }.into(),
            namespace,
            source: Source::Docker,
            labels,
            generation: format!("{started_at}/{}", shown_addresses.join(",")).into(),
            addresses,
            network,
            host_network,
            exposed,
            published,
            lifecycle,
            docker_health: docker_health(state, now),
            check: None,
            problem,
        },
        wishes,
        remote_hosts: None,
        paused: state.paused == Some(true),
        started: started.unwrap_or(Timestamp(i64::MAX)),
    };
    Some(Inspected {
        joined: other
            .and_then(|other| other.id.as_deref())
            .or_else(|| joined(container))
            .map(str::to_owned),
        id,
        stop_signal,
        stop_timeout,
        started,
        local,
    })
}

/// The label's, else the Compose project, else `default`; and what is wrong with the label.
fn namespace(labels: &Labels) -> (Name, Option<String>) {
    let otherwise = labels
        .get(COMPOSE_PROJECT)
        .and_then(|project| Name::lossy(project))
        .unwrap_or_else(default_namespace);
    match labels.get(NAMESPACE).map(|value| Name::new(value)) {
        None => (otherwise, None),
        Some(Ok(name)) => (name, None),
        // Another namespace than the one that was meant could give it somebody else's traffic.
        Some(Err(error)) => (otherwise, Some(format!("label {NAMESPACE}: {error}"))),
    }
}

/// Where this host dials it, and the network in words.
fn reach(
    container: &ContainerInspectResponse,
    other: Option<&ContainerInspectResponse>,
    host_network: bool,
    labels: &Labels,
    drivers: &Drivers,
) -> Result<(Vec<IpAddr>, String), String> {
    let mode = network_mode(container);
    if host_network {
        let text = match other {
            Some(other) => format!("host (shared by {})", name_of(other)),
            None => "host".to_owned(),
        };
        return Ok((vec![IpAddr::V4(Ipv4Addr::LOCALHOST)], text));
    }
    if mode == "none" {
        return Err("network mode none: nothing can reach it".to_owned());
    }
    let owner = match (joined(container), other) {
        (Some(id), None) => {
            return Err(format!(
                "it shares the network of container {}, which is gone",
                short(id)
            ));
        }
        (Some(_), Some(other)) => {
            let runs = other
                .state
                .as_ref()
                .is_some_and(|s| s.running == Some(true));
            if !runs {
                return Err(format!(
                    "it shares the network of container {}, which does not run",
                    name_of(other)
                ));
            }
            // What joins a network namespace stays in it, and a restart makes a new one.
            if started_at(other) > started_at(container) {
                return Err(format!(
                    "it shares the network that container {} had before it was restarted, which is cut off: restart it \
                     too",
                    name_of(other)
                ));
            }
            other
        }
        (None, _) => container,
    };
    let none = Default::default();
    let networks = owner
        .network_settings
        .as_ref()
        .and_then(|s| s.networks.as_ref())
        .unwrap_or(&none);
    let choice = network::choose(networks, labels, drivers)?;
    let text = match other {
        Some(other) => format!("{}, shared by {}", choice.text, name_of(other)),
        None => choice.text,
    };
    Ok((choice.addresses, text))
}

fn started_at(container: &ContainerInspectResponse) -> Option<Timestamp> {
    read_time(container.state.as_ref()?.started_at.as_deref()?)
}

fn name_of(container: &ContainerInspectResponse) -> String {
    let name = container.name.as_deref().unwrap_or_default();
    shown(name.strip_prefix('/').unwrap_or(name))
}

/// `8080/tcp` or `8080`.
fn tcp_port(text: &str) -> Option<u16> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    if protocol.eq_ignore_ascii_case("tcp") {
        number.parse().ok().filter(|port| *port > 0)
    } else {
        None
    }
}

/// TCP ports that the image or the user exposes. A published port is exposed too, unless it is another container's.
fn exposed(
    container: &ContainerInspectResponse,
    settings: Option<&NetworkSettings>,
    shared: bool,
) -> Vec<u16> {
    let declared = container
        .config
        .as_ref()
        .and_then(|c| c.exposed_ports.as_ref())
        .into_iter()
        .flatten()
        .filter_map(|port| tcp_port(port));
    let published = settings
        .filter(|_| !shared)
        .and_then(|s| s.ports.as_ref())
        .into_iter()
        .flat_map(|ports| ports.keys())
        .filter_map(|port| tcp_port(port));
    let mut all: Vec<u16> = declared.chain(published).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// TCP ports published on the host; Podman leaves the host's address empty where Docker says 0.0.0.0.
fn published(settings: &NetworkSettings) -> Vec<Published> {
    let mut all: Vec<Published> = settings
        .ports
        .iter()
        .flatten()
        .filter_map(|(port, bindings)| Some((tcp_port(port)?, bindings.as_ref()?)))
        .flat_map(|(port, bindings)| {
            bindings.iter().filter_map(move |binding| {
                let ip = match binding.host_ip.as_deref().unwrap_or_default() {
                    "" => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                    text => text.parse().ok()?,
                };
                let host_port: u16 = binding.host_port.as_deref()?.parse().ok()?;
                (host_port > 0).then_some(Published {
                    port,
                    host: SocketAddr::new(ip, host_port),
                })
            })
        })
        .collect();
    all.sort_by_key(|p| (p.port, p.host));
    all.dedup();
    all
}

fn docker_health(state: &ContainerState, now: Timestamp) -> Option<Fact<Health>> {
    let health = state.health.as_ref()?;
    let last = health.log.as_ref().and_then(|log| log.last());
    let (value, reason) = match health.status? {
        HealthStatusEnum::EMPTY | HealthStatusEnum::NONE => return None,
        HealthStatusEnum::STARTING => {
            (Health::Unknown, "HEALTHCHECK has not passed yet".to_owned())
        }
        HealthStatusEnum::HEALTHY => (Health::Passing, "HEALTHCHECK passes".to_owned()),
        HealthStatusEnum::UNHEALTHY => {
            let exit = last.and_then(|l| l.exit_code).unwrap_or(-1);
            let output = last
                .and_then(|l| l.output.as_deref())
                .and_then(|text| text.lines().map(str::trim).find(|line| !line.is_empty()))
                .map_or_else(String::new, |line| format!(": {}", shown(line)));
            (
                Health::Failing,
                format!("HEALTHCHECK exits with {exit}{output}"),
            )
        }
    };
    Some(Fact::new(value, now, reason))
}

/// An RFC 3339 time; Podman writes the host's offset instead of `Z`. Docker's year 1 means never.
pub(super) fn read_time(text: &str) -> Option<Timestamp> {
    let time = match text.parse::<Timestamp>() {
        Ok(time) => time,
        Err(_) => {
            let at = text.len().checked_sub(6)?;
            let (time, offset) = (text.get(..at)?, text.get(at..)?);
            let (sign, rest) = match offset.split_at_checked(1)? {
                ("+", rest) => (1, rest),
                ("-", rest) => (-1, rest),
                _ => return None,
            };
            let (hours, minutes) = rest.split_once(':')?;
            let minutes: i64 = hours.parse::<i64>().ok()? * 60 + minutes.parse::<i64>().ok()?;
            let time: Timestamp = format!("{time}Z").parse().ok()?;
            Timestamp(time.0 - sign * minutes * 60_000)
        }
    };
    (time.0 > 0).then_some(time)
}

#[cfg(test)]
mod tests;
