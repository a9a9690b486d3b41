//! What the catalog says, from its changes or looked at as a whole.

use std::collections::BTreeSet;
use std::sync::Arc;

use model::catalog::Change;
use model::name::{Name, ServiceKey};
use model::time::Timestamp;
use tokio::sync::broadcast::error::TryRecvError;

use super::{Reconciler, lock};
use crate::local::WorkloadKey;
use crate::registrations;

impl Reconciler {
    pub(super) fn take_changes(&mut self, first: Arc<[Change]>) {
        let mut batches = vec![first];
        loop {
            match self.changes.try_recv() {
                Ok(more) => batches.push(more),
                Err(TryRecvError::Lagged(_)) => {
                    self.rescan();
                    return;
                }
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        self.read_catalog();
        let mut touched = BTreeSet::new();
        let mut labelled = BTreeSet::new();
        let mut observed = BTreeSet::new();
        let (mut registered, mut others) = (false, false);
        for change in batches.iter().flat_map(|batch| batch.iter()) {
            match change {
                Change::Service(key, _) => {
                    if self.take_service(key) {
                        touched.insert(key.clone());
                    }
                    if self.may_write(key) {
                        labelled.insert(key.clone());
                    }
                }
                Change::Slice(key, node, slice) => {
                    if self.may_write(key) {
                        labelled.insert(key.clone());
                    }
                    if *node == self.node {
                        // One that this node doesn't hold came back with a backup of the registry.
                        if slice.is_some() && !self.held.contains_key(key) {
                            touched.insert(key.clone());
                        }
                        observed.insert(key.clone());
                        continue;
                    }
                }
                Change::Registration(node, id, _) => {
                    if *node == self.node {
                        self.take_registration(id, &mut touched, &mut labelled);
                        registered = true;
                    }
                    continue;
                }
                Change::Mesh(_) => {
                    labelled.extend(lock(&self.workloads).table.services().cloned());
                    continue;
                }
                Change::Endpoint(..)
                | Change::Findings(..)
                | Change::Node(..)
                | Change::Liveness(..) => {}
                Change::Vip(..) | Change::Mark(..) => continue,
            }
            others = true;
        }
        if others {
            self.look_at_unowned();
        }
        for key in observed {
            self.observe(&key);
            self.forget_told(&key);
        }
        let counts_differ = registered || !touched.is_empty();
        self.follow_up(touched, labelled);
        if counts_differ {
            self.count_workloads();
        }
    }

    /// Looks at everything, whatever was told of changes.
    pub(super) fn rescan(&mut self) {
        self.read_catalog();
        let mut touched: BTreeSet<ServiceKey> =
            self.catalog.services_on(&self.node).cloned().collect();
        touched.extend(self.held.keys().cloned());
        touched.extend(self.publisher.wished());
        for key in &touched {
            self.observe(key);
        }
        let catalog = self.catalog.clone();
        let gone: Vec<ServiceKey> = lock(&self.workloads)
            .selection
            .services()
            .filter(|key| !catalog.services.contains_key(*key))
            .cloned()
            .collect();
        for key in gone.iter().chain(catalog.services.keys()) {
            if self.take_service(key) {
                touched.insert(key.clone());
            }
        }
        let node = &self.node;
        self.own_told
            .retain(|key, told| told.is_some() || catalog.slice(key, node).is_some());
        let mut labelled = BTreeSet::new();
        let mut ids: BTreeSet<Name> = self
            .catalog
            .registrations
            .keys()
            .filter(|(node, _)| *node == self.node)
            .map(|(_, id)| id.clone())
            .collect();
        ids.extend(
            lock(&self.workloads)
                .selection
                .workloads()
                .filter(|local| local.key().registered)
                .filter_map(|local| Name::new(&local.workload.id).ok()),
        );
        for id in ids {
            self.take_registration(&id, &mut touched, &mut labelled);
        }
        labelled.extend(lock(&self.workloads).table.services().cloned());
        self.follow_up(touched, labelled);
        self.count_workloads();
        self.follow_unowned();
        self.sweep(Timestamp::now());
    }

    fn read_catalog(&mut self) {
        self.catalog = self.from_catalog.borrow_and_update().clone();
        lock(&self.workloads).catalog = self.catalog.clone();
    }

    pub(super) fn observe(&self, key: &ServiceKey) {
        let slice = self.catalog.slice(key, &self.node);
        self.publisher.observe(key, slice, self.catalog.revision);
    }

    /// Whether this node's endpoints of a service may have changed with it.
    fn take_service(&mut self, key: &ServiceKey) -> bool {
        let selection = &mut lock(&self.workloads).selection;
        match self.catalog.services.get(key) {
            Some(service) => selection.put_service(service) || self.held.contains_key(key),
            None => {
                self.uncount(key);
                selection.remove_service(key) || self.held.contains_key(key)
            }
        }
    }

    fn take_registration(
        &mut self,
        id: &Name,
        touched: &mut BTreeSet<ServiceKey>,
        labelled: &mut BTreeSet<ServiceKey>,
    ) {
        let key = WorkloadKey {
            registered: true,
            id: id.as_str().into(),
        };
        let record = self
            .catalog
            .registrations
            .get(&(self.node.clone(), id.clone()));
        let Some(record) = record else {
            self.remove_workload(&key, touched, labelled);
            return;
        };
        let mut local = registrations::workload(record, &self.options.addresses, Timestamp::now());
        let before = lock(&self.workloads).selection.workload(&key).cloned();
        if let Some(before) = before
            && before.workload.generation == local.workload.generation
        {
            local.workload.lifecycle = before.workload.lifecycle.clone();
        }
        self.put_workload(Arc::new(local), touched, labelled);
        self.complain(&key);
    }
}
