//! The services that labels make: what to write of them, and when to delete them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use model::name::ServiceKey;
use model::net::IpNet;
use model::service::ManagedBy;
use model::snapshot::Freshness;
use model::time::Timestamp;
use tokio::time::Instant;

use super::{Reconciler, Seen, lock};
use crate::services::Work;

/// How long a service must look unused here until that counts.
const MAX_SETTLE: Duration = Duration::from_secs(60);

impl Reconciler {
    /// Whether [`Reconciler::write_label_service`] has anything to do: not for nearly all services of other nodes.
    pub(super) fn may_write(&self, key: &ServiceKey) -> bool {
        lock(&self.workloads).table.asks_for(key) || self.writer.knows(key)
    }

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

    /// Follows which services made of labels are unused, and deletes those that have been for long enough.
    ///
    /// Since when is kept in the service's record: whichever node sees it first notes it, and any node deletes.
    pub(super) fn sweep(&mut self, now: Timestamp) {
        // From a stale catalog a container of another node can't be seen, and before Docker was listed none of this one.
        let fresh = self.snapshot.load().freshness == Freshness::Fresh;
        if !fresh || matches!(self.seen, Seen::Nothing) {
            self.deserted.clear();
            return;
        }
        let grace = self.options.label_service_grace;
        // A container that comes back at once, or a cluster that starts as a whole, costs no write.
        let settled = MAX_SETTLE.min(grace / 1000);
        let shared = lock(&self.workloads);
        let mut deserted = HashMap::new();
        for (key, service) in &self.catalog.services {
            if service.managed_by != ManagedBy::Labels {
                continue;
            }
            let noted = service.metadata.unused_since;
            let published = self.catalog.slices.contains_key(key);
            let asked_for = shared.table.asks_for(key);
            if !published && !asked_for {
                let seen = self.deserted.get(key);
                let seen = *seen.unwrap_or(&Instant::now());
                deserted.insert(key.clone(), seen);
                if seen.elapsed() < settled {
                    continue;
                }
                match noted {
                    None => self.writer.wish(key, Some(Work::Note(Some(now)))),
                    Some(since) if since.age(now) >= grace => {
                        self.writer.wish(key, Some(Work::Delete(since)));
                    }
                    Some(_) => {}
                }
                continue;
            }
            if let Some(since) = noted {
                // Other nodes don't see what asks for it and serves nothing: it objects only when the end draws near.
                if published || since.age(now) >= grace / 2 {
                    self.writer.wish(key, Some(Work::Note(None)));
                    continue;
                }
            }
            // One that found every address taken gets one once there is room.
            if let Some(mesh) = &self.catalog.mesh
                && asked_for
                && lacks_address(self.catalog.vips_of(key), &mesh.vip_ranges)
                && let Some(manifest) = shared.table.decided(key, &self.catalog, &self.node)
            {
                let work = Work::Write(Box::new(manifest), mesh.vip_ranges.clone());
                self.writer.wish(key, Some(work));
            }
        }
        drop(shared);
        self.deserted = deserted;
    }
}

/// Whether a service lacks an address of a family that the mesh has.
fn lacks_address(vips: &[IpAddr], ranges: &[IpNet]) -> bool {
    let of_family = |range: &IpNet| {
        let mut vips = vips.iter();
        vips.any(|ip| ip.is_ipv4() == range.addr().is_ipv4())
    };
    !ranges.iter().all(of_family)
}
