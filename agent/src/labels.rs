//! What `heddle.*` labels ask for, and the services made of labels alone.
//!
//! A bad label costs the container that carries it what that label was for, and is told as that container's verdict; it
//! never drops the container and never touches another one.

mod table;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use model::labels::{Labels, check_value};
use model::manifest::check_service;
use model::name::{Name, ServiceKey};
use model::selector::Selector;
use model::service::{
    HealthCheck, HealthPolicy, HttpProbe, Protocol, Recovery, ServicePort, ServiceSpec,
};
use model::strict::nearest;

pub use table::Table;

/// The namespace that the labels are matched in.
pub const NAMESPACE: &str = "heddle.namespace";
/// The network that the container is dialled on.
pub const NETWORK: &str = "heddle.network";
const SERVICE: &str = "heddle.service";
const ENABLE: &str = "heddle.enable";
const PORT: &str = "heddle.port";
const PROTOCOL: &str = "heddle.protocol";
const VIP_PORT: &str = "heddle.vip-port";
const NODE_PORT: &str = "heddle.node-port";
const VIP: &str = "heddle.vip";
const HEALTH_PATH: &str = "heddle.health.path";
const WEIGHT: &str = "heddle.weight";
const RECOVERY: &str = "heddle.recovery";
const HOSTNAME: &str = "heddle.hostname";

/// Docker Compose's project, which is a container's namespace unless it names one.
pub const COMPOSE_PROJECT: &str = "com.docker.compose.project";
const COMPOSE_SERVICE: &str = "com.docker.compose.service";

const KNOWN: [&str; 13] = [
    NAMESPACE,
    NETWORK,
    SERVICE,
    ENABLE,
    PORT,
    PROTOCOL,
    VIP_PORT,
    NODE_PORT,
    VIP,
    HEALTH_PATH,
    WEIGHT,
    RECOVERY,
    HOSTNAME,
];

/// What of a label's value an error message repeats, in characters.
const SHOWN_CHARS: usize = 80;

/// What a workload's `heddle.*` labels ask for.
#[derive(Clone, Debug, PartialEq)]
pub struct Wishes {
    /// `heddle.port`: where it listens, or why the label can't be read.
    pub port: Option<Result<u16, String>>,
    /// `heddle.weight`, 1 unless given.
    pub weight: u16,
    /// `heddle.hostname`: its name below that of a headless service.
    pub hostname: Option<Name>,
    /// The service that its labels alone make.
    pub service: Option<LabelService>,
    /// What is wrong with its labels.
    pub warnings: Vec<String>,
}

impl Default for Wishes {
    fn default() -> Self {
        Wishes {
            port: None,
            weight: 1,
            hostname: None,
            service: None,
            warnings: Vec::new(),
        }
    }
}

/// A service that labels alone make.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelService {
    /// Its key, in the workload's namespace.
    pub key: ServiceKey,
    /// What it is to be, or which label prevents it.
    pub spec: Result<ServiceSpec, String>,
}

impl Wishes {
    /// Reads the labels of a workload in `namespace` that exposes the TCP ports `exposed`.
    pub fn read(labels: &Labels, namespace: &Name, exposed: &[u16]) -> Self {
        let mut wishes = Wishes::default();
        for key in labels.keys().filter(|key| key.starts_with("heddle.")) {
            if !KNOWN.contains(&key.as_str()) {
                wishes.warnings.push(unknown(key));
            }
        }
        wishes.port = labels.get(PORT).map(|value| port(PORT, value));
        if let Some(Err(fault)) = &wishes.port {
            wishes.warnings.push(fault.clone());
        }
        if let Some(value) = labels.get(WEIGHT) {
            match value.trim().parse::<u16>() {
                Ok(weight) if weight <= 256 => wishes.weight = weight,
                _ => wishes.warnings.push(format!(
                    "label {WEIGHT}={}: not a number from 0 to 256, so the weight is 1",
                    shown(value)
                )),
            }
        }
        if let Some(value) = labels.get(HOSTNAME) {
            match Name::new(value) {
                Ok(name) => wishes.hostname = Some(name),
                Err(error) => wishes.warnings.push(format!(
                    "label {HOSTNAME}: {error}, so its name in DNS is its address with dashes"
                )),
            }
        }
        match identity(labels) {
            Ok(None) => {}
            Ok(Some((name, selector))) => {
                let spec = spec(labels, selector, wishes.port.as_ref(), exposed);
                if let Err(fault) = &spec {
                    wishes.warnings.push(fault.clone());
                    wishes.warnings.dedup();
                }
                wishes.service = Some(LabelService {
                    key: ServiceKey::new(namespace.clone(), name),
                    spec,
                });
            }
            Err(fault) => wishes.warnings.push(fault),
        }
        wishes
    }
}

/// The service's name and selector, where the labels make one.
fn identity(labels: &Labels) -> Result<Option<(Name, Selector)>, String> {
    let enabled = match labels.get(ENABLE).map(|value| value.trim()) {
        None => None,
        Some("true") => Some(true),
        Some("false") => Some(false),
        Some(other) => {
            return Err(format!(
                "label {ENABLE}={}: neither true nor false",
                shown(other)
            ));
        }
    };
    if let Some(value) = labels.get(SERVICE) {
        let name = Name::new(value).map_err(|error| format!("label {SERVICE}: {error}"))?;
        let selector = Selector::parse(&format!("{SERVICE}={name}"))
            .map_err(|error| format!("label {SERVICE}: {error}"))?;
        return Ok(Some((name, selector)));
    }
    if enabled != Some(true) {
        return Ok(None);
    }
    let Some(compose) = labels.get(COMPOSE_SERVICE) else {
        return Err(format!(
            "label {ENABLE}=true names no service outside of Compose: set {SERVICE} instead"
        ));
    };
    let name = Name::lossy(compose).ok_or_else(|| {
        format!(
            "label {COMPOSE_SERVICE}={}: no service name can be made of it, set {SERVICE}",
            shown(compose)
        )
    })?;
    check_value(compose)
        .map_err(|error| format!("label {COMPOSE_SERVICE}: {error}; set {SERVICE}"))?;
    let selector = Selector::parse(&format!("{COMPOSE_SERVICE}={compose},{ENABLE}=true"))
        .map_err(|error| format!("label {COMPOSE_SERVICE}: {error}; set {SERVICE}"))?;
    Ok(Some((name, selector)))
}

fn spec(
    labels: &Labels,
    selector: Selector,
    own: Option<&Result<u16, String>>,
    exposed: &[u16],
) -> Result<ServiceSpec, String> {
    let own = own.cloned().transpose()?;
    let of = |key: &str| labels.get(key).map(|value| port(key, value)).transpose();
    let vip_port = match (of(VIP_PORT)?, own, exposed) {
        (Some(port), _, _) | (None, Some(port), _) | (None, None, &[port]) => port,
        (None, None, []) => {
            return Err(format!(
                "a service made of labels needs a port, and none is exposed: set label {PORT}"
            ));
        }
        (None, None, several) => return Err(undecided(several)),
    };
    let protocol = match labels.get(PROTOCOL).map(|value| value.trim()) {
        None | Some("tcp") => Protocol::Tcp,
        Some("http") => Protocol::Http,
        Some(other) => {
            return Err(format!(
                "label {PROTOCOL}={}: not one of tcp, http",
                shown(other)
            ));
        }
    };
    let health = labels.get(HEALTH_PATH).map(|path| {
        HealthPolicy::Check(HealthCheck {
            http: Some(HttpProbe {
                path: path.clone(),
                expect: None,
            }),
            ..HealthCheck::default()
        })
    });
    let recovery = match labels.get(RECOVERY).map(|value| value.trim()) {
        None => None,
        Some("restart") => Some(Box::<Recovery>::default()),
        Some(other) => {
            return Err(format!(
                "label {RECOVERY}={}: the only action is restart",
                shown(other)
            ));
        }
    };
    let vips = labels.get(VIP).map(|value| addresses(value)).transpose()?;
    let spec = ServiceSpec {
        recovery,
        vips: vips.unwrap_or_default(),
        selector: Some(selector),
        ports: vec![ServicePort {
            name: None,
            port: vip_port,
            // Left to each container's own labels, so that a roll-out from one port to another needs no new service.
            target_port: None,
            protocol,
            node_port: of(NODE_PORT)?,
            upstream_protocol: Default::default(),
            tls: None,
            upstream_tls: None,
        }],
        health,
        ..ServiceSpec::default()
    };
    check_service(spec).map_err(|error| match error.path.as_str() {
        "spec.health.http.path" => format!("label {HEALTH_PATH}: {}", error.reason),
        path if path.starts_with("spec.vips") => format!("label {VIP}: {}", error.reason),
        path => format!("service made of labels: {path}: {}", error.reason),
    })
}

/// Why a target port is not chosen among several.
pub fn undecided(exposed: &[u16]) -> String {
    let all: Vec<String> = exposed.iter().map(u16::to_string).collect();
    format!(
        "exposes several ports ({}) and none is chosen: set targetPort or label {PORT}",
        all.join(", ")
    )
}

/// Why there is no target port to choose.
pub fn unexposed() -> String {
    format!("exposes no port and none is chosen: set targetPort or label {PORT}")
}

fn port(key: &str, value: &str) -> Result<u16, String> {
    match value.trim().parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!(
            "label {key}={}: not a port from 1 to 65535",
            shown(value)
        )),
    }
}

fn addresses(value: &str) -> Result<Vec<IpAddr>, String> {
    value
        .split(',')
        .map(|ip| ip.trim().parse())
        .collect::<Result<_, _>>()
        .map_err(|_| {
            format!(
                "label {VIP}={}: not an IP address, or an IPv4 and an IPv6 one with a comma between",
                shown(value)
            )
        })
}

fn unknown(key: &str) -> String {
    match nearest(key, KNOWN) {
        Some(known) => format!("unknown label {}: do you mean {known}?", shown(key)),
        None => format!("unknown label {}", shown(key)),
    }
}

/// The start of a text that came from outside, without anything that could break a line or a terminal.
pub(crate) fn shown(text: &str) -> String {
    model::name::clipped(text, SHOWN_CHARS)
}
