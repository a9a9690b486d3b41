//! Which workloads ask for which service by their labels, and which of them decides.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use model::catalog::Catalog;
use model::manifest::ServiceManifest;
use model::name::{Name, ServiceKey};
use model::service::{ManagedBy, Metadata, ServiceSpec};
use model::time::Timestamp;

use crate::local::{Local, WorkloadKey};

/// Oldest first: of several that disagree, the one that has run longest decides, and a newcomer changes nothing.
type Rank = (Timestamp, WorkloadKey);

/// The workloads of this node that make services by their labels.
#[derive(Debug, Default)]
pub struct Table {
    by_service: HashMap<ServiceKey, BTreeMap<Rank, Arc<Local>>>,
    of: HashMap<WorkloadKey, (ServiceKey, Rank)>,
}

impl Table {
    /// Takes over a workload that is new or has changed; returns the services to look at again.
    pub fn put(&mut self, local: &Arc<Local>) -> Vec<ServiceKey> {
        let key = local.key();
        let mut touched = self.remove(&key);
        if let Some(service) = &local.wishes.service {
            let rank = (local.started, key.clone());
            self.by_service
                .entry(service.key.clone())
                .or_default()
                .insert(rank.clone(), local.clone());
            self.of.insert(key, (service.key.clone(), rank));
            touched.push(service.key.clone());
        }
        touched
    }

    /// Forgets a workload; returns the services to look at again.
    pub fn remove(&mut self, key: &WorkloadKey) -> Vec<ServiceKey> {
        let Some((service, rank)) = self.of.remove(key) else {
            return Vec::new();
        };
        if let Some(ranks) = self.by_service.get_mut(&service) {
            ranks.remove(&rank);
            if ranks.is_empty() {
                self.by_service.remove(&service);
            }
        }
        vec![service]
    }

    /// Every service that a workload here asks for.
    pub fn services(&self) -> impl Iterator<Item = &ServiceKey> {
        self.by_service.keys()
    }

    /// Whether a workload here asks for the service.
    pub fn asks_for(&self, service: &ServiceKey) -> bool {
        self.by_service.contains_key(service)
    }

    /// The oldest workload whose labels make the service, and what they make it.
    fn decides(&self, service: &ServiceKey) -> Option<(&Arc<Local>, &ServiceSpec)> {
        self.by_service.get(service)?.values().find_map(|local| {
            let spec = local.wishes.service.as_ref()?.spec.as_ref().ok()?;
            Some((local, spec))
        })
    }

    /// What has to be written so that the service is what the labels here say; `None` when nothing has to be.
    ///
    /// A manifest's service is never touched, nor one that an older container of another node made.
    pub fn wanted(
        &self,
        service: &ServiceKey,
        catalog: &Catalog,
        node: &Name,
    ) -> Option<ServiceManifest> {
        let (_, spec) = self.decides(service)?;
        let mut existing = catalog.services.get(service).into_iter();
        if existing.any(|existing| existing.spec == *spec) {
            return None;
        }
        self.decided(service, catalog, node)
    }

    /// What the labels here say that the service is; `None` where they don't decide it.
    pub fn decided(
        &self,
        service: &ServiceKey,
        catalog: &Catalog,
        node: &Name,
    ) -> Option<ServiceManifest> {
        let (local, spec) = self.decides(service)?;
        if let Some(existing) = catalog.services.get(service)
            && (existing.managed_by != ManagedBy::Labels
                || older_elsewhere(service, catalog, node, local.started))
        {
            return None;
        }
        Some(ServiceManifest {
            metadata: Metadata::new(service.namespace.clone(), service.name.clone()),
            spec: spec.clone(),
        })
    }

    /// What the owner of these labels should know: that somebody else decides what the service is.
    pub fn verdict(&self, local: &Local, catalog: &Catalog) -> Option<String> {
        let wish = local.wishes.service.as_ref()?;
        let spec = wish.spec.as_ref().ok()?;
        let service = &wish.key;
        let existing = catalog.services.get(service)?;
        if existing.managed_by != ManagedBy::Labels {
            let matches = existing
                .spec
                .selector
                .as_ref()
                .is_some_and(|s| s.matches(&local.workload.labels));
            return (!matches).then(|| {
                let selector = existing.spec.selector.as_ref().map_or_else(
                    || "it has no selector".to_owned(),
                    |selector| format!("its selector `{selector}` does not match"),
                );
                format!(
                    "service {service} is managed by {}, not by labels: {selector}",
                    existing.managed_by
                )
            });
        }
        if existing.spec == *spec {
            return None;
        }
        Some(match self.decides(service) {
            Some((oldest, theirs)) if theirs == &existing.spec => format!(
                "service {service} is made of the labels of {}, which is older; the labels here say otherwise",
                oldest.workload.name
            ),
            Some((oldest, _)) if oldest.key() == local.key() => format!(
                "service {service} is made of the labels of an older container of another node; the labels here say \
                 otherwise"
            ),
            _ => format!("service {service} is made of other labels; those here say otherwise"),
        })
    }
}

/// Whether another node published an endpoint of the service that has run longer.
fn older_elsewhere(
    service: &ServiceKey,
    catalog: &Catalog,
    node: &Name,
    started: Timestamp,
) -> bool {
    catalog
        .slices
        .get(service)
        .into_iter()
        .flat_map(|by_node| by_node.iter())
        .filter(|(owner, _)| *owner != node)
        .flat_map(|(owner, slice)| slice.endpoints.iter().map(move |e| (owner, e)))
        .any(|(owner, endpoint)| {
            let since = endpoint.generation.split('/').next().unwrap_or_default();
            // Names decide between two that started in the same millisecond: else both would write forever.
            since
                .parse::<Timestamp>()
                .is_ok_and(|theirs| (theirs, owner) < (started, node))
        })
}
