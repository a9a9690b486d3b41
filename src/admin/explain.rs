//! `GET /v1/explain`: who would be given the next request to a service or URL, and what removed the others.
//!
//! All of it is read off the snapshot that the data path reads, with the rules that made it ([`Filter`]).

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use model::service::Balance;
use model::snapshot::{EndpointView, Filter, PortView, Snapshot};
use model::{Name, Protocol, ServiceKey};
use serde::{Deserialize, Serialize};

use super::view::endpoint_name;
use super::{ApiError, Shared};

/// What `/v1/explain` understands: one of both.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Asked {
    /// `namespace/name`, all ports of it.
    service: Option<String>,
    /// `http://host:port/path`, where the host is a virtual IP, a service's name in DNS, or an address of this node.
    url: Option<String>,
}

/// What was asked for, port by port.
#[derive(Debug, Serialize, Deserialize)]
pub struct Explanation {
    /// How a URL led to the service.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub led_here: String,
    /// The ports: one for a URL.
    pub ports: Vec<PortExplanation>,
}

/// Who takes new work on one port of a service.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortExplanation {
    /// `namespace/name`.
    pub service: ServiceKey,
    /// The port's name.
    pub port: Name,
    /// At the virtual IP.
    pub number: u16,
    /// What it speaks.
    pub protocol: Protocol,
    /// The service's virtual IPs.
    pub vips: Vec<IpAddr>,
    /// How many endpoints there are.
    pub endpoints: usize,
    /// The filters in their order, each with whom it removed.
    pub filters: Vec<Removal>,
    /// Nobody passed all filters, and those that still pass their checks while they end are used.
    pub last_resort: bool,
    /// How one of the eligible is picked.
    pub policy: Balance,
    /// Those that may be given the next request.
    pub eligible: Vec<Candidate>,
    /// What a request is answered where nobody may.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub unavailable: String,
}

/// What one filter did.
#[derive(Debug, Serialize, Deserialize)]
pub struct Removal {
    /// Its name.
    pub filter: String,
    /// Whom it removed, of those that were left.
    pub removed: Vec<Removed>,
    /// How many are left after it.
    pub left: usize,
}

/// An endpoint that a filter removed.
#[derive(Debug, Serialize, Deserialize)]
pub struct Removed {
    /// `<service>/<workload>:<port>`.
    pub name: String,
    /// Its node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Name>,
    /// Why, in words.
    pub reason: String,
}

/// An endpoint that may be given the next request.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Candidate {
    /// `<service>/<workload>:<port>`.
    pub name: String,
    /// Its node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Name>,
    /// Where it is dialled.
    pub addresses: Vec<SocketAddr>,
    /// As its labels or manifest say.
    pub weight: u16,
    /// Its turns among all turns of the rotation, from 0 to 1.
    pub share: f64,
    /// Requests or connections in flight from this node.
    pub in_flight: u32,
    /// It left packets unanswered lately: passed over while there is another.
    pub held_off: bool,
}

/// Says that there is no such service, and which ones have its name in other namespaces.
pub(super) fn unknown(snapshot: &Snapshot, service: &str) -> String {
    let name = service.rsplit('/').next().unwrap_or(service);
    let keys = snapshot.services.keys().filter(|k| k.name.as_str() == name);
    let mut elsewhere: Vec<String> = keys.map(ToString::to_string).collect();
    elsewhere.sort();
    match elsewhere.as_slice() {
        [] => format!("service {service} does not exist (heddle get services -A lists them)"),
        some => format!(
            "service {service} does not exist, but {} does (-n names the namespace)",
            some.join(", ")
        ),
    }
}

pub(super) async fn explain(
    State(context): Shared,
    Query(asked): Query<Asked>,
) -> Result<Json<Explanation>, ApiError> {
    let snapshot = context.feed.snapshot.load_full();
    let not_found = |what: String| ApiError::new(StatusCode::NOT_FOUND, what);
    match (&asked.service, &asked.url) {
        (Some(service), None) => {
            let key: Option<ServiceKey> = service.parse().ok();
            let view = key.and_then(|key| snapshot.service(&key));
            let view = view.ok_or_else(|| not_found(unknown(&snapshot, service)))?;
            let ports = view.ports.iter().map(|port| of_port(&snapshot, port));
            Ok(Json(Explanation {
                led_here: String::new(),
                ports: ports.collect(),
            }))
        }
        (None, Some(url)) => {
            let target = Target::parse(url)
                .map_err(|why| ApiError::new(StatusCode::BAD_REQUEST, format!("{url}: {why}")))?;
            let (led_here, port) = target.find(&snapshot).map_err(not_found)?;
            Ok(Json(Explanation {
                led_here,
                ports: vec![of_port(&snapshot, port)],
            }))
        }
        _ => Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            "name either service=NAMESPACE/NAME or url=URL",
        )),
    }
}

fn of_port(snapshot: &Snapshot, port: &PortView) -> PortExplanation {
    let mut left: Vec<&EndpointView> = port.endpoints.iter().collect();
    let filters = Filter::ALL.map(|filter| {
        let (kept, gone): (Vec<_>, Vec<_>) = left.iter().partition(|e| filter.keeps(e));
        left = kept;
        Removal {
            filter: filter.as_str().to_owned(),
            removed: gone.into_iter().map(|e| removed(&port.key, e)).collect(),
            left: left.len(),
        }
    });
    let mut turns = vec![0u32; port.eligible.len()];
    let period = port.rotation.period();
    for place in (0..period as u64).filter_map(|at| port.rotation.at(at)) {
        turns[place] += 1;
    }
    let eligible = (0..port.eligible.len()).filter_map(|place| {
        let view = port.eligible(place)?;
        Some(Candidate {
            name: endpoint_name(&port.key, view),
            node: view.node.clone(),
            addresses: view.addresses().to_vec(),
            weight: view.endpoint.weight,
            share: f64::from(turns[place]) / period.max(1) as f64,
            in_flight: view.load.in_flight.load(Ordering::Relaxed),
            held_off: view.load.held_off_until.load(Ordering::Relaxed) != 0,
        })
    });
    let eligible: Vec<Candidate> = eligible.collect();
    let vips = snapshot.service(&port.key).map(|s| s.vips.to_vec());
    PortExplanation {
        service: port.key.clone(),
        port: port.name.clone(),
        number: port.port,
        protocol: port.protocol,
        vips: vips.unwrap_or_default(),
        endpoints: port.endpoints.len(),
        filters: filters.into(),
        last_resort: left.is_empty() && !eligible.is_empty(),
        policy: port.balance,
        eligible,
        unavailable: port.unavailable.clone(),
    }
}

fn removed(service: &ServiceKey, endpoint: &EndpointView) -> Removed {
    let reason = match endpoint.reason.to_string() {
        reason if reason.is_empty() => endpoint.state.to_string(),
        reason => reason,
    };
    Removed {
        name: endpoint_name(service, endpoint),
        node: endpoint.node.clone(),
        reason,
    }
}

/// Host and port of a URL.
#[derive(Debug)]
struct Target {
    host: String,
    port: u16,
}

impl Target {
    fn parse(url: &str) -> Result<Target, String> {
        let uri: http::Uri = url.parse().map_err(|e| format!("not a URL: {e}"))?;
        let usual = match uri.scheme_str() {
            Some("http") | None => 80,
            Some("https") => 443,
            Some(other) => return Err(format!("scheme `{other}` is neither http nor https")),
        };
        let host = uri.host().ok_or("it names no host")?;
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        Ok(Target {
            host: bare.trim_end_matches('.').to_ascii_lowercase(),
            port: uri.port_u16().unwrap_or(usual),
        })
    }

    /// The port that this leads to, and how; or why none.
    fn find<'s>(&self, snapshot: &'s Snapshot) -> Result<(String, &'s PortView), String> {
        let Target { host, port } = self;
        let Ok(ip) = host.parse::<IpAddr>() else {
            return self.find_name(snapshot);
        };
        if let Some(service) = snapshot.service_at(ip) {
            return match snapshot.port_at(ip, *port) {
                Some(found) => Ok((
                    format!("{ip} is the virtual IP of service {}", service.key),
                    found,
                )),
                None => Err(no_port(&service.key, &service.ports, *port)),
            };
        }
        let ports = snapshot.services.values().flat_map(|s| &s.ports);
        if let Some(found) = ports.into_iter().find(|p| p.node_port == Some(*port)) {
            return Ok((
                format!("{port} is the node port of service {}", found.key),
                found,
            ));
        }
        let in_range = snapshot.mesh.vip_ranges.iter().any(|r| r.contains(ip));
        Err(match in_range {
            true => format!("{ip}: no service has this virtual IP: connections to it are refused"),
            false => format!(
                "heddle has no part in this request: {ip} is no virtual IP, and {port} no node port"
            ),
        })
    }

    fn find_name<'s>(&self, snapshot: &'s Snapshot) -> Result<(String, &'s PortView), String> {
        let Target { host, port } = self;
        let zone = &snapshot.mesh.zone;
        let end = format!(".svc.{zone}");
        let key = host.strip_suffix(&end).and_then(|rest| {
            let (name, namespace) = rest.rsplit_once('.')?;
            // Of a headless service's endpoint the last label names the service.
            let name = name.rsplit('.').next()?;
            format!("{namespace}/{name}").parse::<ServiceKey>().ok()
        });
        let Some(key) = key else {
            return Err(format!(
                "{host} is no name of a service: those are SERVICE.NAMESPACE{end} (or ask by virtual IP)"
            ));
        };
        let Some(service) = snapshot.service(&key) else {
            return Err(format!("{host}: service {key} does not exist: NXDOMAIN"));
        };
        let found = service.ports.iter().find(|p| p.port == *port);
        match found {
            Some(found) => Ok((format!("{host} is the name of service {key}"), found)),
            None => Err(no_port(&key, &service.ports, *port)),
        }
    }
}

fn no_port(key: &ServiceKey, ports: &[std::sync::Arc<PortView>], port: u16) -> String {
    let has: Vec<String> = ports.iter().map(|p| p.port.to_string()).collect();
    format!(
        "service {key} has no port {port}: connections to it are refused (it has {})",
        has.join(", ")
    )
}

#[cfg(test)]
mod tests;
