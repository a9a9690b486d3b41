//! Services by the label pairs they require, workloads by the pairs they carry.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use model::labels::Labels;
use model::name::{Name, ServiceKey};
use model::service::Service;

use super::{Desired, NodeFacts, endpoints};
use crate::local::{Local, WorkloadKey};

/// Members by a label's key and value.
#[derive(Debug)]
struct Pairs<T> {
    by_key: HashMap<Box<str>, HashMap<Box<str>, BTreeSet<T>>>,
}

impl<T> Default for Pairs<T> {
    fn default() -> Self {
        Pairs {
            by_key: HashMap::new(),
        }
    }
}

impl<T: Ord> Pairs<T> {
    fn insert(&mut self, key: &str, value: &str, member: T) {
        self.by_key
            .entry(key.into())
            .or_default()
            .entry(value.into())
            .or_default()
            .insert(member);
    }

    fn remove(&mut self, key: &str, value: &str, member: &T) {
        let Some(by_value) = self.by_key.get_mut(key) else {
            return;
        };
        if let Some(members) = by_value.get_mut(value) {
            members.remove(member);
            if members.is_empty() {
                by_value.remove(value);
            }
        }
        if by_value.is_empty() {
            self.by_key.remove(key);
        }
    }

    fn get(&self, key: &str, value: &str) -> impl Iterator<Item = &T> {
        self.by_key
            .get(key)
            .and_then(|by_value| by_value.get(value))
            .into_iter()
            .flatten()
    }

    fn count(&self, key: &str, value: &str) -> usize {
        self.by_key
            .get(key)
            .and_then(|by_value| by_value.get(value))
            .map_or(0, BTreeSet::len)
    }
}

#[derive(Debug)]
struct Indexed {
    service: Arc<Service>,
    /// The required pair that it is found under; `None`: it requires none and is looked at for every workload.
    pair: Option<(Box<str>, Box<str>)>,
    members: BTreeSet<WorkloadKey>,
}

#[derive(Debug)]
pub(super) struct Member {
    pub(super) local: Arc<Local>,
    pub(super) selected: BTreeSet<ServiceKey>,
}

/// All services with a selector and all workloads of this node, and who selects whom.
///
/// Taking over one change costs as much as it concerns: a workload looks only at services that require one of its label
/// pairs, a service only at workloads that carry its pair.
#[derive(Debug)]
pub struct Selection {
    pub(super) node: NodeFacts,
    services: HashMap<ServiceKey, Indexed>,
    by_pair: Pairs<ServiceKey>,
    pairless: BTreeSet<ServiceKey>,
    /// Services with a selector per namespace.
    pub(super) namespaces: BTreeMap<Name, usize>,
    pub(super) workloads: BTreeMap<WorkloadKey, Member>,
    by_label: Pairs<WorkloadKey>,
}

impl Selection {
    /// Neither services nor workloads.
    pub fn new(node: NodeFacts) -> Self {
        Selection {
            node,
            services: HashMap::new(),
            by_pair: Pairs::default(),
            pairless: BTreeSet::new(),
            namespaces: BTreeMap::new(),
            workloads: BTreeMap::new(),
            by_label: Pairs::default(),
        }
    }

    /// The node that this is about.
    pub fn node(&self) -> &NodeFacts {
        &self.node
    }

    /// Takes over a service that is new or has changed. Whether this node's endpoints of it may have changed.
    pub fn put_service(&mut self, service: &Arc<Service>) -> bool {
        let key = service.key();
        let before = match self.services.get(&key) {
            Some(indexed) if Arc::ptr_eq(&indexed.service, service) => return false,
            Some(_) => self.remove_service(&key),
            None => false,
        };
        let Some(selector) = &service.spec.selector else {
            return before;
        };
        // The rarest pair keeps the lists short that workloads look through.
        let pair: Option<(Box<str>, Box<str>)> = selector
            .required_pairs()
            .min_by_key(|(k, v)| self.by_pair.count(k, v))
            .map(|(k, v)| (k.into(), v.into()));
        let candidates: Vec<WorkloadKey> = match &pair {
            Some((k, v)) => self.by_label.get(k, v).cloned().collect(),
            None if selector.is_empty() => Vec::new(),
            None => self.workloads.keys().cloned().collect(),
        };
        let mut members = BTreeSet::new();
        for candidate in candidates {
            if let Some(member) = self.workloads.get_mut(&candidate)
                && selects(service, &member.local)
            {
                member.selected.insert(key.clone());
                members.insert(candidate);
            }
        }
        match &pair {
            Some((k, v)) => self.by_pair.insert(k, v, key.clone()),
            None => {
                self.pairless.insert(key.clone());
            }
        }
        *self.namespaces.entry(key.namespace.clone()).or_default() += 1;
        let touched = before || !members.is_empty();
        self.services.insert(
            key,
            Indexed {
                service: service.clone(),
                pair,
                members,
            },
        );
        touched
    }

    /// Forgets a service. Whether this node had endpoints of it.
    pub fn remove_service(&mut self, key: &ServiceKey) -> bool {
        let Some(indexed) = self.services.remove(key) else {
            return false;
        };
        match &indexed.pair {
            Some((k, v)) => self.by_pair.remove(k, v, key),
            None => {
                self.pairless.remove(key);
            }
        }
        if let Some(count) = self.namespaces.get_mut(&key.namespace) {
            *count -= 1;
            if *count == 0 {
                self.namespaces.remove(&key.namespace);
            }
        }
        for member in &indexed.members {
            if let Some(member) = self.workloads.get_mut(member) {
                member.selected.remove(key);
            }
        }
        !indexed.members.is_empty()
    }

    /// Takes over a workload that is new or has changed; returns the services whose endpoints here may have changed.
    pub fn put_workload(&mut self, local: Arc<Local>) -> BTreeSet<ServiceKey> {
        let key = local.key();
        let mut touched = match self.workloads.get(&key) {
            Some(member) if member.local == local => return BTreeSet::new(),
            Some(_) => self.remove_workload(&key),
            None => BTreeSet::new(),
        };
        let selected: BTreeSet<ServiceKey> = self
            .candidates(&local.workload.labels)
            .filter(|service| selects(service, &local))
            .map(|service| service.key())
            .collect();
        for service in &selected {
            if let Some(indexed) = self.services.get_mut(service) {
                indexed.members.insert(key.clone());
            }
        }
        for (k, v) in &local.workload.labels {
            self.by_label.insert(k, v, key.clone());
        }
        touched.extend(selected.iter().cloned());
        self.workloads.insert(key, Member { local, selected });
        touched
    }

    /// Forgets a workload; returns the services that had endpoints on it.
    pub fn remove_workload(&mut self, key: &WorkloadKey) -> BTreeSet<ServiceKey> {
        let Some(member) = self.workloads.remove(key) else {
            return BTreeSet::new();
        };
        for (k, v) in &member.local.workload.labels {
            self.by_label.remove(k, v, key);
        }
        for service in &member.selected {
            if let Some(indexed) = self.services.get_mut(service) {
                indexed.members.remove(key);
            }
        }
        member.selected
    }

    /// The services that could select a workload with these labels, in any namespace.
    pub(super) fn candidates<'a>(
        &'a self,
        labels: &'a Labels,
    ) -> impl Iterator<Item = &'a Arc<Service>> + 'a {
        labels
            .iter()
            .flat_map(|(k, v)| self.by_pair.get(k, v))
            .chain(&self.pairless)
            .filter_map(|key| Some(&self.services.get(key)?.service))
    }

    /// The endpoints of a service on this node, sorted by workload and port.
    pub fn endpoints(&self, key: &ServiceKey) -> Vec<Desired> {
        let Some(indexed) = self.services.get(key) else {
            return Vec::new();
        };
        let mut all: Vec<Desired> = indexed
            .members
            .iter()
            .filter_map(|member| self.workloads.get(member))
            .flat_map(|member| endpoints(&indexed.service, &member.local, &self.node).endpoints)
            .collect();
        all.sort_by(|a, b| {
            let of = |d: &Desired| (d.endpoint.workload.clone(), d.endpoint.port.clone());
            of(a).cmp(&of(b))
        });
        all
    }

    /// The service, if it has a selector.
    pub fn service(&self, key: &ServiceKey) -> Option<&Arc<Service>> {
        self.services.get(key).map(|indexed| &indexed.service)
    }

    /// The services that have a selector.
    pub fn services(&self) -> impl Iterator<Item = &ServiceKey> {
        self.services.keys()
    }

    /// A workload of this node.
    pub fn workload(&self, key: &WorkloadKey) -> Option<&Arc<Local>> {
        self.workloads.get(key).map(|member| &member.local)
    }

    /// All workloads of this node.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Local>> {
        self.workloads.values().map(|member| &member.local)
    }

    /// The services that select a workload.
    pub fn selected_by(&self, key: &WorkloadKey) -> impl Iterator<Item = &ServiceKey> {
        self.workloads
            .get(key)
            .into_iter()
            .flat_map(|m| &m.selected)
    }
}

/// A selector matches only workloads of its service's namespace.
fn selects(service: &Service, local: &Local) -> bool {
    service.metadata.namespace == local.workload.namespace
        && service
            .spec
            .selector
            .as_ref()
            .is_some_and(|selector| selector.matches(&local.workload.labels))
}
