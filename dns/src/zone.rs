//! What the mesh's zone says: a snapshot, a name and a type make an [`Answer`], without I/O.
//!
//! Kubernetes DNS specification 1.1.0. Names are taken as labels in lower case, so that a label's bytes (a dot among
//! them, say) can't be mistaken for structure.

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::net::IpAddr;

use hickory_proto::rr::RecordType;
use model::name::{Name, ServiceKey};
use model::service::Protocol;
use model::snapshot::{Freshness, PortView, ServiceView, Snapshot};

use crate::answer::{Answer, Data, Host, undashed};
use crate::reverse::{Reverse, ReverseName};

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
        if let Some(below) = self.below_apex(labels) {
            if self.snapshot.freshness == Freshness::Unsynced {
                return Answer::Unknown;
            }
            let apex = labels.len() - below.len();
            return self.conclude(self.forward(below, kind), kind, apex);
        }
        match ReverseName::parse(labels) {
            Some(name) => self.reverse(&name, kind),
            None => Answer::Foreign,
        }
    }

    /// The labels below the zone's apex, when the name is in the zone.
    fn below_apex<'l, 'b>(&self, labels: &'l [&'b [u8]]) -> Option<&'l [&'b [u8]]> {
        let mut below = labels;
        for apex_label in self.snapshot.mesh.zone.rsplit('.') {
            let (last, rest) = below.split_last()?;
            if *last != apex_label.as_bytes() {
                return None;
            }
            below = rest;
        }
        Some(below)
    }

    /// `None`: no such name. An empty list: no such type there.
    fn conclude(&self, found: Option<Vec<Data>>, kind: RecordType, apex: usize) -> Answer {
        match found {
            None => Answer::NoName { apex },
            Some(answers) if answers.is_empty() => Answer::NoData { apex },
            Some(_) if kind == RecordType::ANY => Answer::Found {
                answers: vec![Data::Minimal],
                additionals: Vec::new(),
            },
            Some(answers) => Answer::Found {
                additionals: self.additionals(&answers),
                answers,
            },
        }
    }

    fn forward(&self, below: &[&[u8]], kind: RecordType) -> Option<Vec<Data>> {
        match below {
            [] => Some(apex(kind)),
            [b"dns-version"] => Some(only(kind, RecordType::TXT, Data::Version)),
            [b"dns"] | [b"svc"] => Some(Vec::new()),
            [b"ns", b"dns"] => Some(addresses(kind, self.name_servers.iter().copied())),
            [namespace, b"svc"] => self
                .snapshot
                .namespaces
                .contains_key(std::str::from_utf8(namespace).ok()?)
                .then(Vec::new),
            [name, namespace, b"svc"] => {
                let service = self.service(name, namespace)?;
                Some(addresses(kind, addresses_of(service)))
            }
            [label, name, namespace, b"svc"] => {
                let service = self.service(name, namespace)?;
                let is_transport = |port: &PortView| transport(port.protocol) == Some(*label);
                if service.ports.iter().any(|port| is_transport(port)) {
                    return Some(Vec::new());
                }
                let address = undashed(label).filter(|_| service.headless())?;
                endpoint_addresses(service)
                    .contains(&address)
                    .then(|| addresses(kind, [address]))
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
            _ => None,
        }
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
        let hosts: Vec<Host> = match self.snapshot.vips.get(&address) {
            Some(key) => vec![Host::Service(key.clone())],
            None => self
                .reverse
                .services_at(self.snapshot, address)
                .into_iter()
                .map(|key| Host::Endpoint(key, address))
                .collect(),
        };
        if hosts.is_empty() {
            return None;
        }
        Some(of_kind(kind, RecordType::PTR, || {
            hosts.into_iter().map(Data::Ptr).collect()
        }))
    }

    fn additionals(&self, answers: &[Data]) -> Vec<(Host, IpAddr)> {
        let mut seen = HashSet::new();
        let mut all = Vec::new();
        for answer in answers {
            match answer {
                Data::Srv {
                    target: host @ Host::Endpoint(_, address),
                    ..
                } if seen.insert(*address) => {
                    all.push((host.clone(), *address));
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
fn transport(protocol: Protocol) -> Option<&'static [u8]> {
    match protocol {
        Protocol::Tcp | Protocol::Http => Some(b"_tcp"),
        Protocol::Unsupported => None,
    }
}

fn addresses_of(service: &ServiceView) -> Vec<IpAddr> {
    if service.headless() {
        endpoint_addresses(service)
    } else {
        service.vips.to_vec()
    }
}

/// Where this node would dial the ready endpoints of a service, each address once, ascending.
pub(crate) fn endpoint_addresses(service: &ServiceView) -> Vec<IpAddr> {
    let mut all: Vec<IpAddr> = service
        .ports
        .iter()
        .flat_map(|port| &port.endpoints)
        .filter(|endpoint| endpoint.ready())
        .flat_map(|endpoint| endpoint.addresses())
        .map(|address| address.ip().to_canonical())
        .collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Weight of a lone SRV record; any number would do.
const LONE_WEIGHT: u16 = 100;

fn srv(service: &ServiceView, port: &PortView) -> Vec<Data> {
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
    let mut all: Vec<(IpAddr, u16, u16)> = port
        .endpoints
        .iter()
        .filter(|endpoint| endpoint.ready())
        .flat_map(|endpoint| {
            let weight = endpoint.endpoint.weight;
            let addresses = endpoint.addresses().iter();
            addresses.map(move |a| (a.ip().to_canonical(), a.port(), weight))
        })
        .collect();
    all.sort_unstable();
    all.dedup_by_key(|(ip, port, _)| (*ip, *port));
    all.into_iter()
        .map(|(address, port, weight)| Data::Srv {
            weight,
            port,
            target: Host::Endpoint(service.key.clone(), address),
        })
        .collect()
}
