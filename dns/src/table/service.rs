//! The entries that one service makes.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use model::snapshot::{PortView, ServiceView};

use super::entry::{self, Entry, Kind, SetBuilder};
use super::{ZoneNames, wire};
use crate::answer::{Data, Host};
use crate::zone::{self, Place, TTL};

pub(super) const A: u16 = 1;
pub(super) const NS: u16 = 2;
pub(super) const CNAME: u16 = 5;
pub(super) const SOA: u16 = 6;
pub(super) const PTR: u16 = 12;
pub(super) const TXT: u16 = 16;
pub(super) const AAAA: u16 = 28;
pub(super) const SRV: u16 = 33;

/// What a service has in the zone, but for what it shares with others.
pub(super) struct Made {
    /// Of names that are the service's alone.
    pub entries: Vec<Entry>,
    /// Endpoints whose reverse names name them.
    pub places: BTreeSet<Place>,
}

/// All entries of a service.
pub(super) fn make(view: &ServiceView, zone: &ZoneNames) -> Made {
    let service = Host::Service(view.key.clone());
    let Some(base) = zone.host(&service) else {
        return Made {
            entries: Vec::new(),
            places: BTreeSet::new(),
        };
    };
    let below = |labels: &[&[u8]]| -> Option<Vec<u8>> {
        let mut name = Vec::with_capacity(base.len() + 32);
        wire::push_labels(&mut name, labels.iter().copied());
        name.extend_from_slice(&base);
        (name.len() <= crate::fast::MAX_NAME).then_some(name)
    };
    let own = |name: &[u8], sets: &[SetBuilder]| {
        entry::entry(name, name.len() - zone.apex.len(), Kind::Own, sets)
    };
    let places = zone::places(view);
    let mut by_label: BTreeMap<Arc<str>, Vec<IpAddr>> = BTreeMap::new();
    for place in &places {
        let there = by_label.entry(place.label.clone()).or_default();
        there.push(place.address);
    }
    let apex = base.len() - zone.apex.len();
    let mut entries = vec![named(&base, apex, view)];
    let mut transports: Vec<&[u8]> = Vec::new();
    for port in &view.ports {
        let Some(transport) = zone::transport(port.protocol) else {
            continue;
        };
        if !transports.contains(&transport) {
            transports.push(transport);
            entries.extend(below(&[transport]).map(|name| own(&name, &[])));
        }
        let label = format!("_{}", port.name);
        let name = below(&[label.as_bytes(), transport]);
        entries.extend(name.map(|name| own(&name, &[services(view, port, zone, &by_label)])));
    }
    for (label, addresses) in &by_label {
        // A port's label begins with an underscore, which a hostname has none of.
        let name = below(&[label.as_bytes()]);
        entries.extend(name.map(|name| own(&name, &address_sets(addresses))));
    }
    Made { entries, places }
}

/// What a service has at one of its names.
pub(super) fn named(name: &[u8], apex: usize, view: &ServiceView) -> Entry {
    match &view.service.spec.external_name {
        None => entry::entry(
            name,
            apex,
            Kind::Own,
            &address_sets(&zone::addresses_of(view)),
        ),
        Some(target) => {
            let mut set = SetBuilder::new(CNAME);
            set.record(TTL, &[&wire::domain(target)]);
            entry::entry(name, apex, Kind::Alias, &[set])
        }
    }
}

/// A and AAAA records.
pub(super) fn address_sets(addresses: &[IpAddr]) -> [SetBuilder; 2] {
    let (mut v4, mut v6) = (SetBuilder::new(A), SetBuilder::new(AAAA));
    for address in addresses {
        match address {
            IpAddr::V4(address) => v4.record(TTL, &[&address.octets()]),
            IpAddr::V6(address) => v6.record(TTL, &[&address.octets()]),
        };
    }
    [v4, v6]
}

/// Adds what an address record of `address` says to the record added last.
pub(super) fn additional(set: &mut SetBuilder, address: IpAddr) {
    match address {
        IpAddr::V4(address) => set.additional(A, TTL, &address.octets()),
        IpAddr::V6(address) => set.additional(AAAA, TTL, &address.octets()),
    };
}

/// SRV records of a port, with the addresses of their targets.
fn services(
    view: &ServiceView,
    port: &PortView,
    zone: &ZoneNames,
    places: &BTreeMap<Arc<str>, Vec<IpAddr>>,
) -> SetBuilder {
    let mut set = SetBuilder::new(SRV);
    let mut seen = HashSet::new();
    for data in zone::srv(view, port) {
        let Data::Srv {
            weight,
            port,
            target,
        } = data
        else {
            continue;
        };
        let Some(name) = zone.host(&target) else {
            continue;
        };
        let fixed = [[0, 0], weight.to_be_bytes(), port.to_be_bytes()].concat();
        set.record(TTL, &[&fixed, &name]);
        match target {
            Host::Endpoint(_, label) if seen.insert(label.clone()) => {
                for address in places.get(&label).into_iter().flatten() {
                    additional(&mut set, *address);
                }
            }
            Host::Service(_) => {
                for vip in view.vips.iter() {
                    additional(&mut set, *vip);
                }
            }
            _ => {}
        }
    }
    set
}
