//! The services that labels make: what to write of them, and when to delete them.

use std::collections::BTreeSet;

use model::name::ServiceKey;
use model::service::ManagedBy;
use model::snapshot::Freshness;
use tokio::time::Instant;

use super::{Reconciler, lock};
use crate::services::Work;

impl Reconciler {
    pub(super) fn write_label_service(&self, key: &ServiceKey) {
        let shared = lock(&self.workloads);
        if !shared.table.asks_for(key) {
            // What nobody asks for any more is not written, and deleted only in its time.
            self.writer.wish(key, None);
            return;
        }
        // Without the mesh's settings there is no range to take a virtual IP from: the change that brings them comes here.
        let Some(mesh) = &self.catalog.mesh else {
            return;
        };
        let work = shared
            .table
            .wanted(key, &self.catalog, &self.node)
            .map(|manifest| Work::Write(Box::new(manifest), mesh.vip_ranges.clone()));
        self.writer.wish(key, work);
    }

    /// Deletes services made of labels that have had neither containers nor anybody asking for them for long enough.
    pub(super) fn sweep(&mut self) {
        let shared = lock(&self.workloads);
        let deserted: BTreeSet<ServiceKey> = self
            .catalog
            .services
            .iter()
            .filter(|(key, service)| {
                service.managed_by == ManagedBy::Labels
                    && !self.catalog.slices.contains_key(*key)
                    && !shared.table.asks_for(key)
            })
            .map(|(key, _)| key.clone())
            .collect();
        drop(shared);
        self.deserted.retain(|key, _| deserted.contains(key));
        // From a stale catalog a container of another node can't be seen.
        let fresh = self.snapshot.load().freshness == Freshness::Fresh;
        for key in deserted {
            let since = *self
                .deserted
                .entry(key.clone())
                .or_insert_with(Instant::now);
            if fresh && since.elapsed() >= self.options.label_service_grace {
                self.writer.wish(&key, Some(Work::Delete));
            }
        }
    }
}
