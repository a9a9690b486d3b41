//! What the mesh's zone says: a snapshot, a name and a type make an [`Answer`], without I/O.
//!
//! Kubernetes DNS specification 1.1.0. Names are taken as labels in lower case, so that a label's bytes (a dot among
//! them, say) can't be mistaken for structure.

mod named;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::rr::RecordType;
use model::domain::DomainName;
use model::name::{Name, ServiceKey};
use model::service::Protocol;
use model::snapshot::{EndpointView, Freshness, PortView, ServiceView, Snapshot};

use crate::answer::{Answer, Data, Host, dashed};
use crate::reverse::{Reverse, ReverseName};

pub(crate) use named::{Named, named};

/// The version of the specification that `dns-version.<zone>` states.
pub const SPECIFICATION: &str = "1.1.0";

/// Seconds that any of our answers, negative ones included, may be kept.
pub const TTL: u32 = 5;

/// What answers are made of.
#[derive(Debug)]
pub struct Zone<'a> {
    /// Who is where now.
    pub snapshot: &'a Snapshot,
    /// Headless endpoints by address.
    pub reverse: &'a Reverse,
    /// The addresses of `ns.dns.<zone>`.
    pub name_servers: &'a [IpAddr],
}

impl Zone<'_> {
    /// The answer to a question of class IN. `labels` are in lower case, the leftmost first, without the root.
    pub fn answer(&self, labels: &[&[u8]], kind: RecordType) -> Answer {
        if let Some(below) = below_apex(self.snapshot, labels) {
            if self.snapshot.freshness == Freshness::Unsynced {
                return Answer::Unknown;
            }
            let apex = labels.len() - below.len();
            return self.conclude(self.forward(below, kind), kind, apex);
        }
        match ReverseName::parse(labels) {
            Some(name) => self.reverse(&name, kind),
            None => match domain(labels).and_then(|name| self.snapshot.service_named(&name)) {
                // Such a name is a zone by itself.
                Some(service) => self.conclude(Some(of_service(service, kind)), kind, labels.len()),
                None => Answer::Foreign,
            },
        }
    }

    /// `None`: no such name. An empty list: no such type there.
    fn conclude(&self, found: Option<Vec<Data>>, kind: RecordType, apex: usize) -> Answer {
        match found {
            None => Answer::NoName { apex },
            Some(answers) if answers.is_empty() => Answer::NoData { apex },
            Some(_) if kind == RecordType::ANY => minimal(),
            Some(answers) => match answers.as_slice() {
                [Data::Alias(target)] if kind != RecordType::CNAME => Answer::Alias(target.clone()),
                _ => Answer::Found {
                    additionals: self.additionals(&answers),
                    answers,
                },
            },
        }
    }

    fn forward(&self, below: &[&[u8]], kind: RecordType) -> Option<Vec<Data>> {
        match below {
            [] => Some(apex(kind)),
            [b"dns-version"] => Some(only(kind, RecordType::TXT, Data::Version)),
            [b"dns"] | [b"svc"] | [b"node"] => Some(Vec::new()),
            [b"ns", b"dns"] => Some(addresses(kind, self.name_servers.iter().copied())),
            [node, b"node"] => {
                let node = self.snapshot.nodes.get(std::str::from_utf8(node).ok()?)?;
                Some(addresses(
                    kind,
                    node.addresses.iter().map(IpAddr::to_canonical),
                ))
            }
            [namespace, b"svc"] => self
                .snapshot
                .namespaces
                .contains_key(std::str::from_utf8(namespace).ok()?)
                .then(Vec::new),
            [name, namespace, b"svc"] => {
                let service = self.service(name, namespace)?;
                Some(of_service(service, kind))
            }
            [label, name, namespace, b"svc"] => {
                let service = self.service(name, namespace)?;
                let is_transport = |port: &PortView| transport(port.protocol) == Some(*label);
                if service.ports.iter().any(|port| is_transport(port)) {
                    return Some(Vec::new());
                }
                let there: Vec<IpAddr> = places(service)
                    .into_iter()
                    .filter(|place| place.label.as_bytes() == *label)
                    .map(|place| place.address)
                    .collect();
                (!there.is_empty()).then(|| addresses(kind, there))
            }
            [port, label, name, namespace, b"svc"] => {
                let service = self.service(name, namespace)?;
                let port = std::str::from_utf8(port.strip_prefix(b"_")?).ok()?;
                let port = service.port(port)?;
                if transport(port.protocol) != Some(*label) {
                    return None;
                }
                Some(of_kind(kind, RecordType::SRV, || srv(service, port)))
            }
            [_] => {
                let labels: Vec<&[u8]> = below.iter().copied().chain(self.apex()).collect();
                let service = self.snapshot.service_named(&domain(&labels)?)?;
                Some(of_service(service, kind))
            }
            _ => None,
        }
    }

    fn apex(&self) -> impl Iterator<Item = &[u8]> {
        self.snapshot.mesh.zone.split('.').map(str::as_bytes)
    }

    fn service(&self, name: &[u8], namespace: &[u8]) -> Option<&ServiceView> {
        let name = Name::new(std::str::from_utf8(name).ok()?).ok()?;
        let namespace = Name::new(std::str::from_utf8(namespace).ok()?).ok()?;
        let view = self.snapshot.service(&ServiceKey::new(namespace, name))?;
        Some(view)
    }

    fn reverse(&self, name: &ReverseName, kind: RecordType) -> Answer {
        let ranges = &self.snapshot.mesh.vip_ranges;
        let Some(cut) = ranges.iter().find_map(|range| name.cut_within(range)) else {
            return self.reverse_of_endpoint(name, kind);
        };
        if self.snapshot.freshness == Freshness::Unsynced {
            return Answer::Unknown;
        }
        let found = if name.strange {
            None
        } else if name.bits == cut && !name.whole() {
            Some(apex(kind))
        } else if !name.whole() {
            // Some address below it may be in use, and then it is an empty non-terminal; claiming NXDOMAIN would deny
            // that address too (RFC 8020).
            Some(Vec::new())
        } else {
            self.pointers(name.address, kind)
        };
        self.conclude(found, kind, name.labels_of(cut))
    }

    /// Endpoints live in networks that are not ours: all that we know better than the upstreams are their names.
    fn reverse_of_endpoint(&self, name: &ReverseName, kind: RecordType) -> Answer {
        if !name.whole() || name.strange || kind != RecordType::PTR {
            return Answer::Foreign;
        }
        match self.pointers(name.address, kind) {
            Some(answers) => Answer::Found {
                additionals: Vec::new(),
                answers,
            },
            None => Answer::Foreign,
        }
    }

    fn pointers(&self, address: IpAddr, kind: RecordType) -> Option<Vec<Data>> {
        let hosts: Vec<Host> = match self.snapshot.service_at(address) {
            Some(view) => vec![Host::Service(view.key.clone())],
            None => self
                .reverse
                .services_at(self.snapshot, address)
                .into_iter()
                .map(|(key, label)| Host::Endpoint(key, label))
                .collect(),
        };
        if hosts.is_empty() {
            return None;
        }
        Some(of_kind(kind, RecordType::PTR, || {
            hosts.into_iter().map(Data::Ptr).collect()
        }))
    }

    fn by_label(&self, key: &ServiceKey) -> HashMap<Arc<str>, Vec<IpAddr>> {
        let mut by_label: HashMap<Arc<str>, Vec<IpAddr>> = HashMap::new();
        let view = self.snapshot.service(key);
        for place in view.map(|view| places(view)).unwrap_or_default() {
            by_label.entry(place.label).or_default().push(place.address);
        }
        by_label
    }

    fn additionals(&self, answers: &[Data]) -> Vec<(Host, IpAddr)> {
        let mut seen = HashSet::new();
        let mut all = Vec::new();
        // All targets are of one service.
        let mut by_label = None;
        for answer in answers {
            match answer {
                Data::Srv {
                    target: host @ Host::Endpoint(key, label),
                    ..
                } if seen.insert(label.clone()) => {
                    let places = by_label.get_or_insert_with(|| self.by_label(key));
                    let there = places.get(label).into_iter().flatten();
                    all.extend(there.map(|address| (host.clone(), *address)));
                }
                Data::Srv {
                    target: host @ Host::Service(key),
                    ..
                } => {
                    let vips = self.snapshot.service(key).map(|view| view.vips.clone());
                    let vips = vips.iter().flat_map(|vips| vips.iter());
                    all.extend(vips.map(|vip| (host.clone(), *vip)));
                }
                Data::NameServer => {
                    let own = self.name_servers.iter();
                    all.extend(own.map(|address| (Host::NameServer, *address)));
                }
                _ => {}
            }
        }
        all
    }
}

/// The labels below the zone's apex, when the name is in the zone.
fn below_apex<'l, 'b>(snapshot: &Snapshot, labels: &'l [&'b [u8]]) -> Option<&'l [&'b [u8]]> {
    let mut below = labels;
    for apex_label in snapshot.mesh.zone.rsplit('.') {
        let (last, rest) = below.split_last()?;
        if *last != apex_label.as_bytes() {
            return None;
        }
        below = rest;
    }
    Some(below)
}

/// `make`'s records when they were asked for; ANY asks for them too, so that it can tell whether there are any.
fn of_kind(kind: RecordType, wanted: RecordType, make: impl FnOnce() -> Vec<Data>) -> Vec<Data> {
    if kind == wanted || kind == RecordType::ANY {
        make()
    } else {
        Vec::new()
    }
}

fn only(kind: RecordType, wanted: RecordType, data: Data) -> Vec<Data> {
    of_kind(kind, wanted, || vec![data])
}

fn apex(kind: RecordType) -> Vec<Data> {
    let mut all = only(kind, RecordType::SOA, Data::Authority);
    all.extend(only(kind, RecordType::NS, Data::NameServer));
    all
}

fn addresses(kind: RecordType, all: impl IntoIterator<Item = IpAddr>) -> Vec<Data> {
    all.into_iter()
        .filter(|address| match kind {
            RecordType::A => address.is_ipv4(),
            RecordType::AAAA => address.is_ipv6(),
            other => other == RecordType::ANY,
        })
        .map(Data::Address)
        .collect()
}

/// The label of the transport that a port's clients use; none for a port that this version can't serve.
pub(crate) fn transport(protocol: Protocol) -> Option<&'static [u8]> {
    match protocol {
        Protocol::Tcp | Protocol::Http => Some(b"_tcp"),
        Protocol::Unsupported => None,
    }
}

/// What a service's name has of a type: an alias stands for every type.
fn of_service(service: &ServiceView, kind: RecordType) -> Vec<Data> {
    match &service.service.spec.external_name {
        Some(target) => vec![Data::Alias(target.clone())],
        None => addresses(kind, addresses_of(service)),
    }
}

/// The addresses that a service's name stands for.
pub(crate) fn addresses_of(service: &ServiceView) -> Vec<IpAddr> {
    if service.headless() {
        let mut all: Vec<IpAddr> = places(service).into_iter().map(|p| p.address).collect();
        all.sort_unstable();
        all.dedup();
        all
    } else {
        service.vips.to_vec()
    }
}

/// An endpoint of a headless service, as far as its names go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// Where this node would dial it.
    pub address: IpAddr,
    /// The name's first label.
    pub label: Arc<str>,
}

/// The endpoints of a headless service that have names, by address; none of any other service.
pub(crate) fn places(service: &ServiceView) -> BTreeSet<Place> {
    let all = service.ports.iter().flat_map(|port| &port.endpoints);
    let published = all.filter(|endpoint| service.headless() && published(service, endpoint));
    let places = published.flat_map(|endpoint| {
        let addresses = endpoint.addresses().iter();
        addresses.map(|address| place(endpoint, address.ip().to_canonical()))
    });
    places.collect()
}

fn place(endpoint: &EndpointView, address: IpAddr) -> Place {
    let label = match &endpoint.endpoint.hostname {
        Some(name) => name.as_str().into(),
        None => dashed(address).into(),
    };
    Place { address, label }
}

fn published(service: &ServiceView, endpoint: &EndpointView) -> bool {
    let all = service.service.spec.dns.publish_not_ready_addresses;
    endpoint.ready() || (all && !endpoint.addresses().is_empty())
}

/// Whether the zone has a use of its own for a label right below the apex.
pub(crate) fn is_reserved(label: &[u8]) -> bool {
    matches!(label, b"svc" | b"node" | b"dns" | b"dns-version")
}

/// The text of a name whose labels are such as users may write.
fn domain(labels: &[&[u8]]) -> Option<DomainName> {
    let mut text = String::new();
    for label in labels {
        if label.contains(&b'.') {
            return None;
        }
        if !text.is_empty() {
            text.push('.');
        }
        text.push_str(std::str::from_utf8(label).ok()?);
    }
    text.parse().ok()
}

fn minimal() -> Answer {
    Answer::Found {
        answers: vec![Data::Minimal],
        additionals: Vec::new(),
    }
}

/// Weight of a lone SRV record; any number would do.
const LONE_WEIGHT: u16 = 100;

/// What is at a port of a service; the targets in a stable order.
pub(crate) fn srv(service: &ServiceView, port: &PortView) -> Vec<Data> {
    if !service.headless() {
        // Without a virtual IP yet, the target would have no address.
        return if service.vips.is_empty() {
            Vec::new()
        } else {
            vec![Data::Srv {
                weight: LONE_WEIGHT,
                port: port.port,
                target: Host::Service(service.key.clone()),
            }]
        };
    }
    let mut all: Vec<(Place, u16, u16)> = port
        .endpoints
        .iter()
        .filter(|endpoint| published(service, endpoint))
        .flat_map(|endpoint| {
            let weight = endpoint.endpoint.weight;
            let addresses = endpoint.addresses().iter();
            addresses.map(move |a| (place(endpoint, a.ip().to_canonical()), a.port(), weight))
        })
        .collect();
    all.sort_unstable();
    // A name that has several addresses is one target.
    let mut seen = HashSet::new();
    all.retain(|(place, port, _)| seen.insert((place.label.clone(), *port)));
    all.into_iter()
        .map(|(place, port, weight)| Data::Srv {
            weight,
            port,
            target: Host::Endpoint(service.key.clone(), place.label),
        })
        .collect()
}
