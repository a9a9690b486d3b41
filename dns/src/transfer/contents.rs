//! The records of a zone: what [`Zone::answer`](crate::zone::Zone::answer) says, for all names rather than for one.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::rr::Name;
use model::net::IpNet;
use model::{name::ServiceKey, snapshot::ServiceView, snapshot::Snapshot};

use super::reverse_name;
use crate::answer::{Data, Host};
use crate::response::Names;
use crate::zone::{addresses_of, is_reserved, places, srv, transport};

/// A zone of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ZoneApex {
    /// The mesh's own.
    Mesh,
    /// Of the reverse names of this network.
    Reverse(IpNet),
}

/// Whose record it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// Labels below the mesh's zone.
    Below(Vec<String>),
    /// An address' reverse name.
    Reverse(IpAddr),
    /// The apex of a network's reverse zone.
    ReverseApex(IpNet),
}

impl Owner {
    /// `None`: longer than 255 bytes.
    pub(super) fn name(&self, names: &Names) -> Option<Name> {
        match self {
            Owner::Below(labels) => names.below(labels),
            Owner::Reverse(address) => reverse_name(*address),
            Owner::ReverseApex(network) => {
                let whole = reverse_name(network.addr())?;
                let (bits, step) = match network.addr() {
                    IpAddr::V4(_) => (32, 8),
                    IpAddr::V6(_) => (128, 4),
                };
                let above = usize::from((bits - network.prefix()) / step);
                let labels = usize::from(whole.num_labels());
                Some(whole.trim_to(labels.saturating_sub(above)))
            }
        }
    }
}

type Contents = Vec<(Owner, Data)>;

fn below<const N: usize>(labels: [&str; N]) -> Owner {
    Owner::Below(labels.map(str::to_owned).to_vec())
}

fn with_addresses(owner: &Owner, all: impl IntoIterator<Item = IpAddr>) -> Contents {
    let all = all.into_iter();
    all.map(|address| (owner.clone(), Data::Address(address)))
        .collect()
}

impl ZoneApex {
    /// The records that no service makes, but for the SOA.
    pub(super) fn fixed(self, snapshot: &Snapshot, name_servers: &[IpAddr]) -> Contents {
        match self {
            ZoneApex::Reverse(network) => vec![(Owner::ReverseApex(network), Data::NameServer)],
            ZoneApex::Mesh => {
                let mut all = vec![(below([]), Data::NameServer)];
                let server = Owner::Below(Host::NameServer.labels());
                all.extend(with_addresses(&server, name_servers.iter().copied()));
                all.push((below(["dns-version"]), Data::Version));
                let mut nodes: Vec<_> = snapshot.nodes.values().collect();
                nodes.sort_unstable_by(|a, b| a.name.cmp(&b.name));
                for node in nodes {
                    let owner = below([node.name.as_str(), "node"]);
                    let addresses = node.addresses.iter().map(IpAddr::to_canonical);
                    all.extend(with_addresses(&owner, addresses));
                }
                all
            }
        }
    }

    /// The records that a service makes.
    pub(super) fn of_service(self, snapshot: &Snapshot, key: &ServiceKey) -> Contents {
        let Some(view) = snapshot.service(key) else {
            return Contents::new();
        };
        match self {
            ZoneApex::Mesh => names(snapshot, view),
            ZoneApex::Reverse(network) => pointers(snapshot, view, &network),
        }
    }
}

fn names(snapshot: &Snapshot, view: &ServiceView) -> Contents {
    let service = Host::Service(view.key.clone()).labels();
    let mut all = named(&Owner::Below(service.clone()), view);
    let mut by_label: BTreeMap<Arc<str>, Vec<IpAddr>> = BTreeMap::new();
    for place in places(view) {
        by_label.entry(place.label).or_default().push(place.address);
    }
    for (label, addresses) in by_label {
        let owner = Host::Endpoint(view.key.clone(), label).labels();
        all.extend(with_addresses(&Owner::Below(owner), addresses));
    }
    for port in &view.ports {
        let Some(transport) = transport(port.protocol) else {
            continue;
        };
        let transport = String::from_utf8_lossy(transport).into_owned();
        let labels = [format!("_{}", port.name), transport];
        let owner = Owner::Below(labels.into_iter().chain(service.iter().cloned()).collect());
        let targets = srv(view, port);
        all.extend(targets.into_iter().map(|data| (owner.clone(), data)));
    }
    let end = format!(".{}", snapshot.mesh.zone);
    for name in &view.service.spec.dns.names {
        let label = name.as_str().strip_suffix(&end);
        // Names outside are zones by themselves.
        let Some(label) = label.filter(|l| !l.contains('.') && !is_reserved(l.as_bytes())) else {
            continue;
        };
        let has = snapshot.service_named(name);
        if has.is_some_and(|has| has.key == view.key) {
            all.extend(named(&below([label]), view));
        }
    }
    all
}

/// What a service has at one of its names.
fn named(owner: &Owner, view: &ServiceView) -> Contents {
    match &view.service.spec.external_name {
        Some(target) => vec![(owner.clone(), Data::Alias(target.clone()))],
        None => with_addresses(owner, addresses_of(view)),
    }
}

fn pointers(snapshot: &Snapshot, view: &ServiceView, network: &IpNet) -> Contents {
    let vips = view.vips.iter().filter(|vip| network.contains(**vip));
    let own = vips.filter(|vip| {
        let has = snapshot.service_at(**vip);
        has.is_some_and(|has| has.key == view.key)
    });
    let host = || Data::Ptr(Host::Service(view.key.clone()));
    let mut all: Contents = own.map(|vip| (Owner::Reverse(*vip), host())).collect();
    for place in places(view) {
        let address = place.address;
        // A virtual IP names its service alone.
        if network.contains(address) && snapshot.service_at(address).is_none() {
            let host = Host::Endpoint(view.key.clone(), place.label);
            all.push((Owner::Reverse(address), Data::Ptr(host)));
        }
    }
    all
}
