//! Events out of the catalog's changes: pure, so that what is told can be tested change by change.
//!
//! A change whose content is the catalog's already tells nothing, so a catalog may be compared with a listing of itself.
//! Where the record says since when a fact holds, that is the event's time; else it is the time of the derivation.
//!
//! # Layout
//! - this file: services, virtual IPs, marks, registrations, the mesh
//! - `nodes`: nodes and their liveness
//! - `endpoints`: endpoints, of nodes and made by hand

mod endpoints;
mod nodes;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use model::catalog::RegistrationRecord;
use model::name::{Name, ServiceKey};
use model::service::Service;
use model::{Catalog, Change, Event, EventKind, Mark, MarkTarget, Mesh, Timestamp};

use super::words::{joined, new_owner, spec_changes, time};

/// Collects what a change tells.
pub struct News<'a> {
    now: Timestamp,
    /// While everything is seen for the first time: only what happened from then on is news.
    not_before: Option<Timestamp>,
    /// Whether one more may be told; asked before anything is written out, so that a flood costs little.
    admit: &'a mut dyn FnMut(EventKind, &'static str) -> bool,
    /// In the order in which they were found.
    pub events: Vec<Event>,
    /// What was left out as being older than `not_before`.
    pub old: u64,
}

impl<'a> News<'a> {
    /// Nothing told yet, at `now`.
    pub fn new(
        now: Timestamp,
        not_before: Option<Timestamp>,
        admit: &'a mut dyn FnMut(EventKind, &'static str) -> bool,
    ) -> Self {
        News {
            now,
            not_before,
            admit,
            events: Vec::new(),
            old: 0,
        }
    }

    /// `at` is `None` where the record doesn't say when.
    fn tell(
        &mut self,
        at: Option<Timestamp>,
        kind: EventKind,
        reason: &'static str,
        write: impl FnOnce() -> (Subject, String),
    ) {
        let old = self
            .not_before
            .is_some_and(|not_before| at.is_none_or(|at| at < not_before));
        if old {
            self.old += 1;
            return;
        }
        if !(self.admit)(kind, reason) {
            return;
        }
        let (subject, message) = write();
        self.events.push(Event {
            at: at.unwrap_or(self.now),
            kind,
            namespace: subject.namespace,
            name: subject.name,
            node: subject.node,
            reason: reason.to_owned(),
            message,
        });
    }
}

/// What an event is about.
#[derive(Default)]
struct Subject {
    namespace: Option<Name>,
    name: String,
    node: Option<Name>,
}

impl Subject {
    fn service(key: &ServiceKey) -> Subject {
        Subject {
            namespace: Some(key.namespace.clone()),
            name: key.name.to_string(),
            node: None,
        }
    }

    fn node(name: &Name) -> Subject {
        Subject {
            namespace: None,
            name: name.to_string(),
            node: Some(name.clone()),
        }
    }
}

/// What `change` tells, with `before` being the catalog that it will be applied to.
pub fn derive(before: &Catalog, change: &Change, news: &mut News<'_>) {
    match change {
        Change::Service(key, after) => service(before, key, after.as_deref(), news),
        Change::Slice(key, node, after) => {
            endpoints::slice(before, key, node, after.as_deref(), news);
        }
        Change::Endpoint(key, after) => endpoints::manual(before, key, after.as_deref(), news),
        Change::Findings(key, node, after) => {
            endpoints::findings(before, key, node, after.as_deref(), news);
        }
        Change::Node(name, after) => nodes::record(before, name, after.as_deref(), news),
        Change::Liveness(name, after) => nodes::liveness(before, name, after.as_deref(), news),
        Change::Vip(ip, after) => vip(before, *ip, after.as_ref(), news),
        Change::Mark(target, after) => mark(before, target, after.as_deref(), news),
        Change::Registration(node, id, after) => {
            registration(before, node, id, after.as_deref(), news);
        }
        Change::Mesh(after) => mesh(before, after.as_deref(), news),
    }
}

const SERVICE: EventKind = EventKind::Service;
const NODE: EventKind = EventKind::Node;

fn service(before: &Catalog, key: &ServiceKey, after: Option<&Service>, news: &mut News<'_>) {
    let subject = || Subject::service(key);
    let before = before.services.get(key).map(|s| &**s);
    match (before, after) {
        (None, None) => {}
        (Some(old), None) => news.tell(None, SERVICE, "ServiceDeleted", || {
            (
                subject(),
                format!("deleted; it was managed by {}", old.managed_by),
            )
        }),
        (None, Some(new)) => {
            let at = new.metadata.creation_timestamp;
            news.tell(at, SERVICE, "ServiceCreated", || {
                (
                    subject(),
                    format!("made by {}: {}", new.managed_by, summary(new)),
                )
            });
        }
        (Some(old), Some(new)) if old.metadata.uid != new.metadata.uid => {
            let at = new.metadata.creation_timestamp;
            news.tell(at, SERVICE, "ServiceCreated", || {
                let text = format!(
                    "made anew by {} in place of one of the same name: {}",
                    new.managed_by,
                    summary(new)
                );
                (subject(), text)
            });
        }
        (Some(old), Some(new)) => {
            let mut parts = spec_changes(&old.spec, &new.spec);
            parts.extend(new_owner(&old.managed_by, &new.managed_by));
            if old.metadata.labels != new.metadata.labels {
                parts.push("labels changed".to_owned());
            }
            if old.metadata.annotations != new.metadata.annotations {
                parts.push("annotations changed".to_owned());
            }
            if !parts.is_empty() {
                news.tell(None, SERVICE, "ServiceChanged", || {
                    let generation = new.metadata.generation.unwrap_or_default();
                    let text = format!("generation {generation}: {}", parts.join("; "));
                    (subject(), text)
                });
            }
        }
    }
}

/// The selector and the ports of a service in a few words.
fn summary(service: &Service) -> String {
    let who = match &service.spec.selector {
        Some(selector) => format!("selects {selector}"),
        None => "endpoints made by hand".to_owned(),
    };
    let ports = service.spec.ports.iter().map(|port| {
        let target = port
            .target_port
            .map_or(String::new(), |target| format!(" to {target}"));
        format!("{}/{}{target}", port.port, port.protocol.as_str())
    });
    format!("{who}; ports {}", joined(ports))
}

fn vip(before: &Catalog, ip: IpAddr, after: Option<&ServiceKey>, news: &mut News<'_>) {
    let held = before.vips.get(&ip);
    if held == after {
        return;
    }
    match (held, after) {
        (Some(old), None) => {
            // The address of a service that was deleted went with it.
            if before.services.contains_key(old) {
                news.tell(None, SERVICE, "VipReleased", || {
                    (Subject::service(old), format!("virtual IP {ip} given up"))
                });
            }
        }
        (Some(old), Some(new)) => news.tell(None, SERVICE, "VipReleased", || {
            (
                Subject::service(old),
                format!("virtual IP {ip} belongs to {new} now"),
            )
        }),
        (None, _) => {}
    }
    if let Some(new) = after {
        news.tell(None, SERVICE, "VipAssigned", || {
            let from = held.map_or(String::new(), |old| format!(", which {old} had before"));
            (Subject::service(new), format!("virtual IP {ip}{from}"))
        });
    }
}

fn mark(before: &Catalog, target: &MarkTarget, after: Option<&Mark>, news: &mut News<'_>) {
    let old = before.marks.get(target).map(|m| &**m);
    let (kind, drained, restored) = match target {
        MarkTarget::Node { .. } => (NODE, "NodeDrained", "NodeUndrained"),
        MarkTarget::Workload { .. } => {
            (EventKind::Workload, "WorkloadDrained", "WorkloadUndrained")
        }
        MarkTarget::Endpoint { .. } => {
            (EventKind::Endpoint, "EndpointDrained", "EndpointUndrained")
        }
    };
    let subject = || match target {
        MarkTarget::Node { name } => Subject::node(name),
        MarkTarget::Workload { node, workload } => {
            endpoints::workload_subject(before, node, workload)
        }
        MarkTarget::Endpoint {
            service,
            workload,
            port,
        } => endpoints::marked_subject(before, service, workload, port),
    };
    match (old, after) {
        (None, None) => {}
        (Some(old), Some(new)) if old.reason == new.reason => {}
        (_, Some(new)) => news.tell(Some(new.since), kind, drained, || {
            let why = match new.reason.as_str() {
                "" => "an operator asked for it".to_owned(),
                reason => reason.to_owned(),
            };
            (subject(), format!("gets no new work: {why}"))
        }),
        (Some(old), None) => news.tell(None, kind, restored, || {
            let text = format!("gets work again; it was drained since {}", time(old.since));
            (subject(), text)
        }),
    }
}

fn registration(
    before: &Catalog,
    node: &Name,
    id: &Name,
    after: Option<&RegistrationRecord>,
    news: &mut News<'_>,
) {
    let workload = EventKind::Workload;
    let old = before
        .registrations
        .get(&(node.clone(), id.clone()))
        .map(|r| &r.registration);
    let new = after.map(|r| &r.registration);
    let subject = || Subject {
        namespace: new.or(old).map(|r| r.namespace.clone()),
        name: id.to_string(),
        node: Some(node.clone()),
    };
    match (old, new) {
        (None, None) => {}
        (None, Some(new)) => news.tell(None, workload, "WorkloadRegistered", || {
            let ports = joined(&new.ports);
            (
                subject(),
                format!("registered on {node} with ports {ports}"),
            )
        }),
        (Some(_), None) => news.tell(None, workload, "WorkloadDeregistered", || {
            (subject(), format!("taken off {node}"))
        }),
        (Some(old), Some(new)) if old == new => {}
        (Some(old), Some(new)) => news.tell(None, workload, "WorkloadChanged", || {
            (subject(), spec_changes(old, new).join("; "))
        }),
    }
}

fn mesh(before: &Catalog, after: Option<&Mesh>, news: &mut News<'_>) {
    if before.mesh.as_deref() == after {
        return;
    }
    news.tell(None, EventKind::Registry, "MeshChanged", || {
        let subject = Subject {
            name: "mesh".to_owned(),
            ..Subject::default()
        };
        let text = match (before.mesh.as_deref(), after) {
            (Some(old), Some(new)) => spec_changes(old, new).join("; "),
            (_, Some(new)) => format!(
                "virtual IPs out of {}, DNS zone {}",
                joined(&new.vip_ranges),
                new.zone
            ),
            (_, None) => "its settings were deleted from the registry".to_owned(),
        };
        (subject, text)
    });
}
