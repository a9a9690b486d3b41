//! What becomes of endpoints: those of a node's slice, and those made by hand.

use std::sync::Arc;

use model::endpoint::{
    Endpoint, EndpointId, Fact, Findings, Found, Health, Lifecycle, ManualEndpoint, Slice,
};
use model::name::{Name, ServiceKey};
use model::{Catalog, EventKind, Timestamp};

use super::super::words::{difference, joined, new_owner, spec_changes};
use super::{News, Subject};

const ENDPOINT: EventKind = EventKind::Endpoint;

fn subject(key: &ServiceKey, node: &Name, endpoint: &Endpoint) -> Subject {
    Subject {
        namespace: Some(key.namespace.clone()),
        name: format!("{}/{}:{}", key.name, endpoint.name, endpoint.port),
        node: Some(node.clone()),
    }
}

fn place(endpoint: &Endpoint) -> (&str, &Name) {
    (&endpoint.workload, &endpoint.port)
}

/// Slices are sorted, which their writers promise and nobody enforces: looked up, not merged.
fn find<'a>(all: &'a [Arc<Endpoint>], wanted: &Endpoint) -> Option<&'a Endpoint> {
    let wanted = place(wanted);
    let found = all.binary_search_by(|e| place(e).cmp(&wanted)).ok();
    found
        .or_else(|| all.iter().position(|e| place(e) == wanted))
        .map(|i| &*all[i])
}

pub(super) fn slice(
    before: &Catalog,
    key: &ServiceKey,
    node: &Name,
    after: Option<&Slice>,
    news: &mut News<'_>,
) {
    let old = before.slice(key, node).map_or(&[][..], |s| &s.endpoints);
    let new = after.map_or(&[][..], |s| &s.endpoints);
    for endpoint in old {
        if find(new, endpoint).is_none() {
            gone(before, key, node, endpoint, news);
        }
    }
    for endpoint in new {
        match find(old, endpoint) {
            None => {
                news.tell(
                    Some(endpoint.health.since),
                    ENDPOINT,
                    "EndpointAdded",
                    || {
                        let places = joined(endpoint.local.iter().chain(&endpoint.remote));
                        (
                            subject(key, node, endpoint),
                            format!("on {node} at {places}"),
                        )
                    },
                );
                arrived(key, node, endpoint, news);
            }
            Some(old) if old.generation != endpoint.generation => {
                let at = endpoint.lifecycle.since.max(old.lifecycle.since);
                news.tell(Some(at), ENDPOINT, "EndpointRestarted", || {
                    let text = format!(
                        "a new generation: {} (before: {})",
                        endpoint.generation, old.generation
                    );
                    (subject(key, node, endpoint), text)
                });
                arrived(key, node, endpoint, news);
            }
            // Most of a slice is as it was: that costs no texts to compare.
            Some(old) if *old == **endpoint => {}
            Some(old) => turned(key, node, old, endpoint, news),
        }
    }
}

/// The state in which an endpoint shows up, where that is not the one that all begin in.
fn arrived(key: &ServiceKey, node: &Name, endpoint: &Endpoint, news: &mut News<'_>) {
    if endpoint.health.value != Health::Unknown {
        health(key, node, endpoint, news);
    }
    if endpoint.lifecycle.value != Lifecycle::Running {
        lifecycle(key, node, Timestamp(i64::MIN), endpoint, news);
    }
}

fn turned(key: &ServiceKey, node: &Name, old: &Endpoint, new: &Endpoint, news: &mut News<'_>) {
    if old.name != new.name {
        news.tell(None, ENDPOINT, "EndpointRenamed", || {
            let text = format!("{} is called {} now", old.name, new.name);
            (subject(key, node, new), text)
        });
    }
    let zone = |e: &Endpoint| e.zone.as_deref().unwrap_or_default().to_owned();
    let parts: Vec<String> = [
        difference("local address", joined(&old.local), joined(&new.local)),
        difference("remote address", joined(&old.remote), joined(&new.remote)),
        difference("weight", old.weight.to_string(), new.weight.to_string()),
        difference("zone", zone(old), zone(new)),
    ]
    .into_iter()
    .flatten()
    .collect();
    if !parts.is_empty() {
        news.tell(None, ENDPOINT, "EndpointChanged", || {
            (subject(key, node, new), parts.join("; "))
        });
    }
    if old.health.value != new.health.value {
        health(key, node, new, news);
    }
    if old.lifecycle.value != new.lifecycle.value {
        lifecycle(key, node, old.lifecycle.since, new, news);
    }
}

fn health(key: &ServiceKey, node: &Name, endpoint: &Endpoint, news: &mut News<'_>) {
    let reason = match endpoint.health.value {
        Health::Unknown => "EndpointStarting",
        Health::Passing => "EndpointReady",
        Health::Failing => "EndpointUnhealthy",
    };
    news.tell(Some(endpoint.health.since), ENDPOINT, reason, || {
        (subject(key, node, endpoint), found_out(&endpoint.health))
    });
}

fn found_out(health: &Fact<Health>) -> String {
    match (health.value, &*health.reason) {
        (Health::Unknown, "") => "not checked yet".to_owned(),
        (Health::Passing, "") => "passes its checks".to_owned(),
        (Health::Unknown | Health::Passing, reason) => reason.to_owned(),
        (Health::Failing, reason) => because("fails its checks", reason),
    }
}

/// `before` is since when the lifecycle was what it was: a fact that is no younger doesn't say when it turned.
fn lifecycle(
    key: &ServiceKey,
    node: &Name,
    before: Timestamp,
    endpoint: &Endpoint,
    news: &mut News<'_>,
) {
    let at = Some(endpoint.lifecycle.since).filter(|since| *since > before);
    let (reason, text) = match endpoint.lifecycle.value {
        Lifecycle::Terminating => ("EndpointDraining", "gets no new work"),
        Lifecycle::Running => (
            "EndpointRestored",
            "runs on after it was told to end, and gets work again",
        ),
    };
    news.tell(at, ENDPOINT, reason, || {
        (
            subject(key, node, endpoint),
            because(text, &endpoint.lifecycle.reason),
        )
    });
}

fn because(text: &str, reason: &str) -> String {
    match reason {
        "" => text.to_owned(),
        reason => format!("{text}: {reason}"),
    }
}

fn gone(before: &Catalog, key: &ServiceKey, node: &Name, endpoint: &Endpoint, news: &mut News<'_>) {
    // Only a node that is alive takes its own endpoints away; those of a lost one are collected by others.
    let (reason, text) = if !before.alive.contains_key(node) {
        (
            "EndpointCollected",
            format!("collected: {node}, which it was on, is lost"),
        )
    } else if !before.services.contains_key(key) {
        ("EndpointGone", "went with its service".to_owned())
    } else {
        ("EndpointGone", format!("taken away by {node}"))
    };
    news.tell(None, ENDPOINT, reason, || {
        let lifecycle = &endpoint.lifecycle;
        let text = match (lifecycle.value, endpoint.health.value) {
            (Lifecycle::Terminating, _) => because(&text, &lifecycle.reason),
            (_, Health::Failing) => because(&text, &endpoint.health.reason),
            _ => text,
        };
        (subject(key, node, endpoint), text)
    });
}

pub(super) fn manual(
    before: &Catalog,
    key: &ServiceKey,
    after: Option<&ManualEndpoint>,
    news: &mut News<'_>,
) {
    let subject = |endpoint: &ManualEndpoint| Subject {
        namespace: Some(key.namespace.clone()),
        name: format!("{}/{}", endpoint.spec.service, key.name),
        node: None,
    };
    match (before.endpoints.get(key).map(|e| &**e), after) {
        (None, None) => {}
        (None, Some(new)) => {
            let at = new.metadata.creation_timestamp;
            news.tell(at, ENDPOINT, "EndpointAdded", || {
                let ports = joined(new.spec.ports.values());
                let text = format!(
                    "made by {} at {} with ports {ports}",
                    new.managed_by, new.spec.address
                );
                (subject(new), text)
            });
        }
        (Some(old), None) => news.tell(None, ENDPOINT, "EndpointGone", || {
            (
                subject(old),
                format!("deleted; it was managed by {}", old.managed_by),
            )
        }),
        (Some(old), Some(new)) => {
            let mut parts = spec_changes(&old.spec, &new.spec);
            parts.extend(new_owner(&old.managed_by, &new.managed_by));
            if old.metadata.uid != new.metadata.uid {
                parts.push("made anew".to_owned());
            }
            if !parts.is_empty() {
                news.tell(None, ENDPOINT, "EndpointChanged", || {
                    (subject(new), parts.join("; "))
                });
            }
        }
    }
}

/// The nodes that check an endpoint made by hand agree that it fails, or one of them says that it passes.
pub(super) fn findings(
    before: &Catalog,
    key: &ServiceKey,
    node: &Name,
    after: Option<&Findings>,
    news: &mut News<'_>,
) {
    let all = before.findings.get(key);
    let old = all.and_then(|nodes| nodes.get(node)).map(|f| &**f);
    let others = |id: &EndpointId| -> Vec<&Fact<Health>> {
        all.into_iter()
            .flat_map(|nodes| nodes.iter())
            .filter(|(other, _)| *other != node && before.alive.contains_key(*other))
            .filter_map(|(_, findings)| findings.of(id))
            .collect()
    };
    for found in after.map_or(&[][..], |f| &f.endpoints) {
        let id = id(found);
        let others = others(&id);
        let passes = others.iter().any(|fact| fact.value == Health::Passing);
        let fails = others.iter().any(|fact| fact.value == Health::Failing);
        let together = |own: Option<Health>| match own {
            _ if passes => Health::Passing,
            Some(Health::Passing) => Health::Passing,
            Some(Health::Failing) => Health::Failing,
            _ if fails => Health::Failing,
            _ => Health::Unknown,
        };
        let was = together(old.and_then(|f| f.of(&id)).map(|fact| fact.value));
        let is = together(Some(found.health.value));
        let reason = match is {
            _ if was == is => continue,
            Health::Unknown => continue,
            Health::Passing => "EndpointReady",
            Health::Failing => "EndpointUnhealthy",
        };
        news.tell(Some(found.health.since), ENDPOINT, reason, || {
            let subject = Subject {
                namespace: Some(key.namespace.clone()),
                name: format!("{}/{}:{}", key.name, found.workload, found.port),
                node: Some(node.clone()),
            };
            (subject, found_out(&found.health))
        });
    }
}

fn id(found: &Found) -> EndpointId {
    EndpointId {
        workload: found.workload.clone(),
        port: found.port.clone(),
        generation: found.generation.clone(),
    }
}

/// What people call the workload with this id, and its namespace; marks name the id only.
pub(super) fn workload_subject(catalog: &Catalog, node: &Name, workload: &str) -> Subject {
    let found = catalog.services_on(node).find_map(|key| {
        let slice = catalog.slice(key, node)?;
        let endpoint = slice.endpoints.iter().find(|e| *e.workload == *workload)?;
        Some((key.namespace.clone(), endpoint.name.to_string()))
    });
    let (namespace, name) = found.unzip();
    Subject {
        namespace,
        name: name.unwrap_or_else(|| workload.to_owned()),
        node: Some(node.clone()),
    }
}

pub(super) fn marked_subject(
    catalog: &Catalog,
    service: &ServiceKey,
    workload: &str,
    port: &Name,
) -> Subject {
    let found = catalog.slices.get(service).and_then(|nodes| {
        nodes.iter().find_map(|(node, slice)| {
            let mut all = slice.endpoints.iter();
            let endpoint = all.find(|e| *e.workload == *workload && e.port == *port)?;
            Some(subject(service, node, endpoint))
        })
    });
    found.unwrap_or_else(|| Subject {
        namespace: Some(service.namespace.clone()),
        name: format!("{}/{workload}:{port}", service.name),
        node: None,
    })
}
