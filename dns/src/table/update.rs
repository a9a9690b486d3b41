//! From one snapshot's table to the next one's.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use model::domain::DomainName;
use model::mesh::Mesh;
use model::name::{Name, ServiceKey};
use model::node::Node;
use model::snapshot::{Freshness, ServiceView, Snapshot};

use super::entry::{self, Entry, Kind, SetBuilder};
use super::service::{self, Made};
use super::{Table, huge, wire};
use crate::answer::Host;
use crate::reverse;
use crate::serial::Serials;
use crate::zone::{Place, SPECIFICATION, TTL};

type Changes = Vec<(Box<[u8]>, Option<Entry>)>;

/// Makes tables. Knows what each service has in the newest one, so that an update costs what changed.
#[derive(Debug)]
pub(crate) struct Updater {
    table: Table,
    name_servers: Vec<IpAddr>,
    serials: Arc<Serials>,
    services: HashMap<ServiceKey, Built>,
    /// Who has a name at which address: virtual IPs apart from endpoints, because the former have an address alone.
    pointers: HashMap<IpAddr, Pointers>,
    namespaces: HashSet<Name>,
    nodes: HashMap<Name, Arc<Node>>,
    mesh: Arc<Mesh>,
    freshness: Freshness,
    /// Entries made since the memory was last looked at.
    unsettled: usize,
}

#[derive(Debug)]
struct Built {
    view: Arc<ServiceView>,
    entries: Vec<Entry>,
    places: BTreeSet<Place>,
}

#[derive(Debug, Default)]
struct Pointers {
    services: BTreeSet<ServiceKey>,
    endpoints: BTreeSet<(ServiceKey, Arc<str>)>,
}

/// What several services may have a part in, and is made when all of them are followed.
#[derive(Debug, Default)]
struct Touched {
    addresses: HashSet<IpAddr>,
    names: HashSet<DomainName>,
}

impl Updater {
    /// Makes tables whose zone is served at `name_servers`. `seed` is to be drawn anew by each process.
    pub(crate) fn new(name_servers: Vec<IpAddr>, serials: Arc<Serials>, seed: u64) -> Self {
        Updater {
            table: Table::new(seed),
            name_servers,
            serials,
            services: HashMap::new(),
            pointers: HashMap::new(),
            namespaces: HashSet::new(),
            nodes: HashMap::new(),
            mesh: Arc::default(),
            freshness: Freshness::Unsynced,
            unsettled: 0,
        }
    }

    /// Forgets everything, so that the next update makes the whole table.
    pub(crate) fn start_over(&mut self) {
        self.table.epoch = None;
    }

    /// The table of `snapshot`. `changed` are the services that are others than in the snapshot before; `None`: find out
    /// by looking at each.
    pub(crate) fn update(&mut self, snapshot: &Snapshot, changed: Option<&[ServiceKey]>) -> Table {
        let mut changes = Changes::new();
        let anew = self.table.epoch.is_none() || *self.mesh != *snapshot.mesh;
        if anew {
            self.start_anew(snapshot);
        }
        self.table
            .describe(snapshot, self.serials.of(snapshot.epoch));
        if anew {
            self.add_names_without_services(&mut changes);
        }
        // What no node owns is looked at anew when the registry is lost or found, and not said to have changed.
        let all = anew || self.freshness != snapshot.freshness;
        self.freshness = snapshot.freshness;
        let mut touched = Touched::default();
        match changed.filter(|_| !all) {
            Some(changed) => {
                for key in changed {
                    self.follow(key, snapshot, &mut changes, &mut touched);
                }
            }
            None => {
                for key in self.differing(snapshot) {
                    self.follow(&key, snapshot, &mut changes, &mut touched);
                }
            }
        }
        for address in touched.addresses {
            changes.push(self.pointer(address));
        }
        for name in touched.names {
            changes.extend(self.named(&name, snapshot));
        }
        self.follow_nodes(snapshot, &mut changes);
        changes.extend(self.apex());
        self.unsettled += changes.len();
        self.table.index.apply(changes);
        self.table.clone()
    }

    /// Sees to the memory that tables lie in, once much of it is new: takes some 100 ms for 100,000 services, so that it
    /// is for when nobody waits for a table.
    pub(crate) fn settle(&mut self) {
        /// Fewer entries fill no large page.
        const ENTRIES: usize = 8_192;
        if self.unsettled >= ENTRIES.max(self.services.len()) {
            self.unsettled = 0;
            huge::advise(self.table.index.places());
        }
    }

    /// Forgets what was made for another zone or other ranges.
    fn start_anew(&mut self, snapshot: &Snapshot) {
        self.table = Table::new(self.table.index.seed());
        self.services.clear();
        self.pointers.clear();
        self.namespaces.clear();
        self.nodes.clear();
        self.mesh = snapshot.mesh.clone();
    }

    fn differing(&self, snapshot: &Snapshot) -> Vec<ServiceKey> {
        let is_same = |key: &ServiceKey, view: &Arc<ServiceView>| {
            let built = self.services.get(key);
            built.is_some_and(|built| Arc::ptr_eq(&built.view, view))
        };
        let others = snapshot.services.iter().filter(|(k, v)| !is_same(k, v));
        let mut differing: Vec<ServiceKey> = others.map(|(key, _)| key.clone()).collect();
        let gone = self.services.keys();
        differing.extend(
            gone.filter(|k| snapshot.service(k).is_none())
                .cloned()
                .collect::<Vec<_>>(),
        );
        differing
    }

    /// Brings one service up to date.
    fn follow(
        &mut self,
        key: &ServiceKey,
        snapshot: &Snapshot,
        changes: &mut Changes,
        touched: &mut Touched,
    ) {
        let view = snapshot.service(key);
        let made = view.map(|view| service::make(view, &self.table.zone));
        let before = self.services.remove(key);
        let mut kept: HashMap<&[u8], &Entry> = HashMap::new();
        if let Some(before) = &before {
            kept.extend(before.entries.iter().map(|entry| (entry.owner(), entry)));
            self.point(key, &before.view.vips, &before.places, false, touched);
            let names = &before.view.service.spec.dns.names;
            touched.names.extend(names.iter().cloned());
        }
        if let Some(made) = &made {
            for entry in &made.entries {
                if kept.remove(entry.owner()) != Some(entry) {
                    changes.push((entry.owner().into(), Some(entry.clone())));
                }
            }
        }
        changes.extend(kept.into_keys().map(|owner| (owner.into(), None)));
        self.follow_namespace(&key.namespace, snapshot, changes);
        if let (Some(view), Some(Made { entries, places })) = (view, made) {
            self.point(key, &view.vips, &places, true, touched);
            let names = &view.service.spec.dns.names;
            touched.names.extend(names.iter().cloned());
            let built = Built {
                view: view.clone(),
                entries,
                places,
            };
            self.services.insert(key.clone(), built);
        }
    }

    fn point(
        &mut self,
        key: &ServiceKey,
        vips: &[IpAddr],
        places: &BTreeSet<Place>,
        on: bool,
        touched: &mut Touched,
    ) {
        for address in vips {
            touched.addresses.insert(*address);
            let pointers = self.pointers.entry(*address).or_default();
            put(&mut pointers.services, key.clone(), on);
        }
        for Place { address, label } in places {
            touched.addresses.insert(*address);
            let pointers = self.pointers.entry(*address).or_default();
            put(&mut pointers.endpoints, (key.clone(), label.clone()), on);
        }
    }

    /// What a further name of some service has now; `None` where the zone has another use for the name.
    fn named(&self, name: &DomainName, snapshot: &Snapshot) -> Option<(Box<[u8]>, Option<Entry>)> {
        let wire = wire::domain(name);
        let apex = match wire::below(&wire, &self.table.zone.apex) {
            None => 0,
            Some(below) => {
                let mut labels = wire::labels(&wire[..below]);
                let first = labels.next()?;
                let reserved: [&[u8]; 4] = [b"svc", b"node", b"dns", b"dns-version"];
                if labels.next().is_some() || reserved.contains(&first) {
                    return None;
                }
                below
            }
        };
        let view = snapshot.service_named(name);
        let entry = view.map(|view| service::named(&wire, apex, view));
        Some((wire.into(), entry))
    }

    fn follow_nodes(&mut self, snapshot: &Snapshot, changes: &mut Changes) {
        let is_known = |(name, node): (&Name, &Arc<Node>)| {
            let known = self.nodes.get(name);
            known.is_some_and(|known| Arc::ptr_eq(known, node))
        };
        if self.nodes.len() == snapshot.nodes.size() && snapshot.nodes.iter().all(is_known) {
            return;
        }
        let mut nodes = HashMap::with_capacity(snapshot.nodes.size());
        let label = |name: &Name| [name.as_str().to_owned().into_bytes(), b"node".to_vec()];
        for (name, node) in snapshot.nodes.iter() {
            let before = self.nodes.remove(name);
            if before.is_none_or(|before| before.addresses != node.addresses) {
                let sets = service::address_sets(&canonical(&node.addresses));
                let labels = label(name);
                changes.extend(self.own(&[&labels[0], &labels[1]], &sets));
            }
            nodes.insert(name.clone(), node.clone());
        }
        for gone in self.nodes.keys() {
            let labels = label(gone);
            let name = self.own(&[&labels[0], &labels[1]], &[]);
            changes.extend(name.map(|(name, _)| (name, None)));
        }
        self.nodes = nodes;
    }

    /// What an address' reverse name has now.
    fn pointer(&mut self, address: IpAddr) -> (Box<[u8]>, Option<Entry>) {
        let name = reverse::name(address);
        let Some(pointers) = self.pointers.get(&address) else {
            return (name.into(), None);
        };
        if pointers.services.is_empty() && pointers.endpoints.is_empty() {
            self.pointers.remove(&address);
            return (name.into(), None);
        }
        let mut set = SetBuilder::new(service::PTR);
        let hosts: Vec<Host> = match pointers.services.first() {
            Some(key) => vec![Host::Service(key.clone())],
            None => {
                let keys = pointers.endpoints.iter();
                keys.map(|(key, label)| Host::Endpoint(key.clone(), label.clone()))
                    .collect()
            }
        };
        for host in hosts {
            if let Some(host) = self.table.zone.host(&host) {
                set.record(TTL, &[&host]);
            }
        }
        let apex = reverse::apex(address, &self.mesh.vip_ranges);
        let kind = if apex.is_some() {
            Kind::Own
        } else {
            Kind::Foreign
        };
        let made = entry::entry(&name, apex.unwrap_or(0), kind, &[set]);
        (name.into(), Some(made))
    }

    fn follow_namespace(&mut self, namespace: &Name, snapshot: &Snapshot, changes: &mut Changes) {
        let there = snapshot.namespaces.contains_key(namespace);
        let changed = if there {
            self.namespaces.insert(namespace.clone())
        } else {
            self.namespaces.remove(namespace)
        };
        if changed {
            let labels = [namespace.as_str().as_bytes(), b"svc"];
            changes.extend(
                self.own(&labels, &[])
                    .map(|(name, entry)| (name, entry.filter(|_| there))),
            );
        }
    }

    /// An entry of our zone.
    fn own(&self, labels: &[&[u8]], sets: &[SetBuilder]) -> Option<(Box<[u8]>, Option<Entry>)> {
        let name = self.table.zone.name(labels.iter().copied())?;
        let apex = name.len() - self.table.zone.apex.len();
        let entry = entry::entry(&name, apex, Kind::Own, sets);
        Some((name.into(), Some(entry)))
    }

    fn add_names_without_services(&self, changes: &mut Changes) {
        let mut version = SetBuilder::new(service::TXT);
        let mut text = Vec::new();
        wire::push_labels(&mut text, [SPECIFICATION.as_bytes()]);
        version.record(TTL, &[&text]);
        changes.extend(self.own(&[b"dns-version"], &[version]));
        changes.extend(self.own(&[b"dns"], &[]));
        changes.extend(self.own(&[b"svc"], &[]));
        changes.extend(self.own(&[b"node"], &[]));
        let addresses = service::address_sets(&self.name_servers);
        changes.extend(self.own(&[b"ns", b"dns"], &addresses));
    }

    /// The zone's apex, whose SOA changes with every snapshot.
    fn apex(&self) -> Option<(Box<[u8]>, Option<Entry>)> {
        let mut authority = SetBuilder::new(service::SOA);
        authority.record(TTL, &[&self.table.soa]);
        let mut name_server = SetBuilder::new(service::NS);
        if let Some(name) = self.table.zone.host(&Host::NameServer) {
            name_server.record(TTL, &[&name]);
            for address in &self.name_servers {
                service::additional(&mut name_server, *address);
            }
        }
        self.own(&[], &[authority, name_server])
    }
}

fn put<T: Ord>(set: &mut BTreeSet<T>, value: T, on: bool) {
    if on {
        set.insert(value);
    } else {
        set.remove(&value);
    }
}

fn canonical(addresses: &[IpAddr]) -> Vec<IpAddr> {
    addresses.iter().map(IpAddr::to_canonical).collect()
}
