//! What a name of the mesh's zone is about, in words.

use hickory_proto::rr::RecordType;
use model::name::{Name, ServiceKey};
use model::snapshot::{ServiceView, Snapshot};

use super::{addresses_of, below_apex, domain};

/// What a name in one of our zones is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Named {
    /// A name that the zone has by itself, or can't have.
    Zone,
    /// `<namespace>.svc.<zone>`
    Namespace(String),
    /// A service, or what is below its name.
    Service {
        /// The service, which may not exist.
        key: ServiceKey,
        /// Labels before the service's name: none, an endpoint's, or a port's two.
        before: Vec<String>,
    },
    /// `<node>.node.<zone>`
    Node(String),
}

/// What a name, in lower case, is about; `None` when it is in none of our zones.
pub(crate) fn named(snapshot: &Snapshot, labels: &[&[u8]]) -> Option<Named> {
    let text = |label: &[u8]| String::from_utf8_lossy(label).into_owned();
    let further = || {
        let view = snapshot.service_named(&domain(labels)?)?;
        Some(Named::Service {
            key: view.key.clone(),
            before: Vec::new(),
        })
    };
    let Some(below) = below_apex(snapshot, labels) else {
        return further();
    };
    Some(match below {
        [node, b"node"] => Named::Node(text(node)),
        [namespace, b"svc"] => Named::Namespace(text(namespace)),
        [before @ .., name, namespace, b"svc"] => {
            let part = |label: &[u8]| Name::new(std::str::from_utf8(label).ok()?).ok();
            match (part(namespace), part(name)) {
                (Some(namespace), Some(name)) => Named::Service {
                    key: ServiceKey::new(namespace, name),
                    before: before.iter().map(|label| text(label)).collect(),
                },
                _ => Named::Zone,
            }
        }
        _ => further().unwrap_or(Named::Zone),
    })
}

impl Named {
    /// The services that it is about.
    pub(crate) fn services(&self) -> Vec<ServiceKey> {
        match self {
            Named::Service { key, .. } => vec![key.clone()],
            _ => Vec::new(),
        }
    }

    /// Why there is no such name (`absent`), or nothing of this type.
    pub(crate) fn reason(&self, snapshot: &Snapshot, absent: bool, kind: RecordType) -> String {
        match self {
            Named::Zone if absent => "the zone has no such name".to_owned(),
            Named::Zone => format!("the name is there and has no {kind} record"),
            Named::Namespace(name) if absent => format!("namespace {name} has no service"),
            Named::Namespace(name) => format!("{name} is a namespace: the names are below it"),
            Named::Node(name) if absent => format!("no node is called {name}"),
            Named::Node(name) => format!("node {name} has no {kind} record"),
            Named::Service { key, before } => match snapshot.service(key) {
                None => format!("service {key} does not exist"),
                Some(view) => of_service(view, before, absent, kind),
            },
        }
    }
}

fn of_service(view: &ServiceView, before: &[String], absent: bool, kind: RecordType) -> String {
    let key = &view.key;
    match before {
        [] if kind == RecordType::A || kind == RecordType::AAAA => {
            let all = addresses_of(view);
            match (all.is_empty(), view.headless()) {
                (true, true) => format!("headless service {key} has no endpoint that is ready"),
                (true, false) => format!("service {key} has no virtual IP yet"),
                (false, _) => {
                    let other = if kind == RecordType::A {
                        "IPv6"
                    } else {
                        "IPv4"
                    };
                    format!("service {key} has addresses of {other} only")
                }
            }
        }
        [] => format!("service {key} has no {kind} record"),
        [port, transport] if port.starts_with('_') && absent => {
            let ports: Vec<String> = (view.ports.iter())
                .filter_map(|p| {
                    let transport = super::transport(p.protocol)?;
                    Some(format!(
                        "_{}.{}",
                        p.name,
                        String::from_utf8_lossy(transport)
                    ))
                })
                .collect();
            format!(
                "service {key} has no port {port}.{transport}: it has {}",
                ports.join(", ")
            )
        }
        [port, transport] if port.starts_with('_') => match kind {
            RecordType::SRV if view.headless() => {
                format!("no endpoint of service {key} is ready at {port}.{transport}")
            }
            RecordType::SRV => format!("service {key} has no virtual IP yet"),
            _ => format!("{port}.{transport} of service {key} has SRV records only"),
        },
        [_] if absent && !view.headless() => {
            format!("service {key} is not headless: its endpoints have no names of their own")
        }
        [label] if absent => {
            format!("no endpoint of service {key} that is ready is called {label}")
        }
        _ if absent => format!("service {key} has nothing of that name"),
        _ => format!("the name is there and has no {kind} record"),
    }
}
