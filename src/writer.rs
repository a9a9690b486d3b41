//! The snapshot writer: the one task that owns the catalog and publishes snapshots of it.
//!
//! Registry changes and findings come in, are taken over in batches, and go out three ways: one atomic pointer for proxy
//! and DNS, the catalog with its changes for the agent and the admin API, and a file for the next start.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use agent::OwnSlices;
use arc_swap::ArcSwap;
use model::catalog::{Catalog, Change};
use model::membership::{Membership, MembershipOptions};
use model::snapshot::{Builder, Finding, Freshness, Identity, Snapshot};
use model::{Mesh, Name, ServiceKey, Timestamp};
use registry::disk;
use registry::follow::{BadRecord, Update, chain};
use registry::layout::Keys;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How many batches of changes a slow listener may be behind before it has to look at the whole catalog.
const CHANGES_BEHIND: usize = 1024;
/// Updates and findings taken over at once at most.
const BATCH: usize = 4096;
/// The shortest time between two savings of the catalog.
const SAVE_EVERY: Duration = Duration::from_secs(5);

/// What everybody else sees of the writer. Cloning is cheap.
#[derive(Clone)]
pub struct Feed {
    /// The snapshot that proxy and DNS read.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// The catalog behind it.
    pub catalog: watch::Receiver<Catalog>,
    /// What changed in it, batch by batch.
    pub changes: broadcast::Sender<Arc<[Change]>>,
    /// Fires after each snapshot.
    pub epoch: watch::Receiver<u64>,
    /// How the registry is doing.
    pub registry: watch::Receiver<RegistryStatus>,
    /// When the snapshot was last known to be the registry's present, in milliseconds since the epoch.
    pub seen: Arc<AtomicI64>,
}

/// How the registry is doing, as the follower tells.
#[derive(Clone, Debug, Default)]
pub struct RegistryStatus {
    /// Why it can't be followed, and since when; none while it can.
    pub lost: Option<(String, Timestamp)>,
    /// Records that can't be read.
    pub bad: Vec<BadRecord>,
}

/// Called after each publication with the services that changed; `None` stands for all.
pub type Published = Box<dyn FnMut(&Arc<Snapshot>, Option<&[ServiceKey]>) + Send>;

/// The writer before it runs.
pub struct Writer {
    builder: Builder,
    membership: Membership,
    /// What the membership's times are measured from.
    began: Instant,
    published: Arc<ArcSwap<Snapshot>>,
    catalog: watch::Sender<Catalog>,
    changes: broadcast::Sender<Arc<[Change]>>,
    epoch: watch::Sender<u64>,
    registry: watch::Sender<RegistryStatus>,
    seen: Arc<AtomicI64>,
    listeners: mpsc::UnboundedReceiver<Published>,
}

/// Where the catalog is saved.
#[derive(Clone)]
pub struct Saving {
    /// The file.
    pub path: PathBuf,
    /// The layout of its keys.
    pub keys: Keys,
    /// The backend's name.
    pub backend: &'static str,
}

impl Writer {
    /// A writer, what others see of it, and where they ask to be told of publications.
    ///
    /// `mesh` is what the configuration makes of the mesh until the registry says.
    pub fn new(identity: Identity, mesh: Mesh) -> (Writer, Feed, mpsc::UnboundedSender<Published>) {
        let (catalog, catalog_seen) = watch::channel(Catalog::default());
        let (changes, _) = broadcast::channel(CHANGES_BEHIND);
        let (epoch, epoch_seen) = watch::channel(0);
        let (registry, registry_seen) = watch::channel(RegistryStatus::default());
        let (listen, listeners) = mpsc::unbounded_channel();
        let options = MembershipOptions::default();
        let membership = Membership::new(identity.node.clone(), options, Timestamp::now());
        let mut builder = Builder::new(identity);
        builder.assume_mesh(Arc::new(mesh));
        let published = Arc::new(ArcSwap::from_pointee(builder.snapshot().clone()));
        let seen = Arc::new(AtomicI64::new(Timestamp::now().0));
        let feed = Feed {
            snapshot: published.clone(),
            catalog: catalog_seen,
            changes: changes.clone(),
            epoch: epoch_seen,
            registry: registry_seen,
            seen: seen.clone(),
        };
        let writer = Writer {
            builder,
            membership,
            began: Instant::now(),
            published,
            catalog,
            changes,
            epoch,
            registry,
            seen,
            listeners,
        };
        (writer, feed, listen)
    }

    /// Takes other bounds for which nodes are believed.
    pub fn set_membership(&mut self, options: MembershipOptions) {
        self.membership.set_options(options);
    }

    /// Takes over which nodes came, went or stayed away for too long; whether the state of any changed.
    fn reckon(&mut self, changes: &[Change]) -> bool {
        let (now, clock) = (self.began.elapsed(), Timestamp::now());
        self.membership.observe(changes, now, clock);
        if self.builder.snapshot().freshness == Freshness::Fresh {
            self.membership.tick(now, clock);
        }
        let changed = self.membership.take_changed();
        let any = !changed.is_empty();
        self.builder.set_members(&self.membership, changed);
        any
    }

    /// Nodes that were deleted with all that was theirs are known no more. To be called when the changes are applied.
    fn forget(&mut self, changes: &[Change]) {
        let catalog = self.builder.catalog();
        let mut maybe: Vec<&Name> = (changes.iter())
            .filter_map(|change| match change {
                Change::Node(node, None) | Change::Slice(_, node, None) => Some(node),
                _ => None,
            })
            .filter(|node| !catalog.nodes.contains_key(*node) && !catalog.alive.contains_key(*node))
            .collect();
        maybe.sort_unstable();
        maybe.dedup();
        maybe.retain(|node| catalog.services_on(node).next().is_none());
        if maybe.is_empty() {
            return;
        }
        let (now, clock) = (self.began.elapsed(), Timestamp::now());
        for node in maybe {
            self.membership.forget(node, now, clock);
        }
        let changed = self.membership.take_changed();
        self.builder.set_members(&self.membership, changed);
    }

    /// When a node's time is up. A node that can't be seen is not gone: never while the registry is lost.
    fn reckon_at(&self) -> Option<Instant> {
        let at = self.membership.next_at()?;
        let fresh = self.builder.snapshot().freshness == Freshness::Fresh;
        fresh.then(|| self.began + at)
    }

    /// Serves a saved catalog until the registry is heard.
    pub fn restore(&mut self, revision: i64, changes: Vec<Change>) {
        let (now, clock) = (self.began.elapsed(), Timestamp::now());
        self.membership.restore(&changes, now, clock);
        self.reckon(&[]);
        self.builder.apply(revision, changes.iter().cloned());
        self.builder.set_freshness(Freshness::Stale);
        self.publish(&changes);
    }

    /// Takes over updates and findings until shutdown, then saves the catalog a last time.
    pub async fn run(
        mut self,
        mut updates: mpsc::Receiver<Update>,
        mut findings: mpsc::Receiver<Vec<Finding>>,
        mut local: mpsc::Receiver<OwnSlices>,
        saving: Saving,
        shutdown: CancellationToken,
    ) {
        let mut called: Vec<Published> = Vec::new();
        let mut batch = Vec::new();
        let mut found = Vec::new();
        let mut own = Vec::new();
        let mut unsaved = false;
        let mut save_at = Instant::now();
        loop {
            let reckon_at = self.reckon_at();
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Some(mut listener) = self.listeners.recv() => {
                    listener(&self.published.load_full(), None);
                    called.push(listener);
                    continue;
                }
                n = updates.recv_many(&mut batch, BATCH) => if n == 0 { break },
                n = findings.recv_many(&mut found, BATCH), if !findings.is_closed() || !findings.is_empty() => if n == 0 { continue },
                n = local.recv_many(&mut own, BATCH), if !local.is_closed() || !local.is_empty() => if n == 0 { continue },
                () = tokio::time::sleep_until(reckon_at.unwrap_or(save_at)), if reckon_at.is_some() => {}
                () = tokio::time::sleep_until(save_at), if unsaved => {
                    unsaved = !self.save(&saving).await;
                    save_at = Instant::now() + SAVE_EVERY;
                    continue;
                }
            }
            let touched = self.take(
                std::mem::take(&mut batch),
                std::mem::take(&mut found),
                std::mem::take(&mut own),
            );
            if let Some(touched) = touched {
                unsaved = true;
                save_at = save_at.max(Instant::now() + Duration::from_secs(1));
                let snapshot = self.published.load_full();
                for listener in &mut called {
                    listener(&snapshot, touched.as_deref());
                }
            }
        }
        if unsaved {
            self.save(&saving).await;
        }
    }

    /// Returns the services that changed, when something was published: `Some(None)` stands for all.
    fn take(
        &mut self,
        batch: Vec<Update>,
        found: Vec<Vec<Finding>>,
        own: Vec<OwnSlices>,
    ) -> Option<Option<Vec<ServiceKey>>> {
        let mut all: Vec<Change> = Vec::new();
        let mut revision = self.builder.catalog().revision;
        let mut dirty = false;
        let mut listed = false;
        for update in batch {
            match update {
                Update::Changes {
                    revision: now,
                    changes,
                    bad,
                    mended,
                } => {
                    revision = now;
                    // A listing that broke off has none.
                    listed |= now > 0;
                    all.extend(changes);
                    dirty |= self.builder.set_freshness(Freshness::Fresh);
                    self.heard(bad, mended);
                }
                Update::Lost { reason } => {
                    if self.builder.snapshot().freshness == Freshness::Fresh {
                        dirty |= self.builder.set_freshness(Freshness::Stale);
                    }
                    self.seen.store(Timestamp::now().0, Ordering::Relaxed);
                    self.registry
                        .send_modify(|s| s.lost = Some((reason, Timestamp::now())));
                }
            }
        }
        let findings: Vec<Finding> = found.into_iter().flatten().collect();
        let own: OwnSlices = own.into_iter().flatten().collect();
        let whole = all.iter().any(|c| matches!(c, Change::Mesh(_)));
        dirty |= !findings.is_empty() || !own.is_empty() || !all.is_empty();
        dirty |= self.reckon(&all);
        if listed {
            self.membership.confirm();
        }
        let mut touched = self.builder.apply_findings(findings);
        touched.append(&mut self.builder.apply_own(own));
        touched.append(&mut self.builder.apply(revision, all.iter().cloned()));
        self.forget(&all);
        if !dirty {
            return None;
        }
        self.publish(&all);
        Some((!whole).then(|| touched.into_iter().collect()))
    }

    fn heard(&self, bad: Vec<BadRecord>, mended: Vec<String>) {
        let status = self.registry.borrow();
        if status.lost.is_none() && bad.is_empty() && mended.is_empty() {
            return;
        }
        drop(status);
        self.registry.send_modify(|status| {
            status.lost = None;
            let replaced = |key: &String| bad.iter().any(|b| b.key == *key);
            status
                .bad
                .retain(|b| !mended.contains(&b.key) && !replaced(&b.key));
            status.bad.extend(bad.iter().cloned());
        });
    }

    fn publish(&mut self, changes: &[Change]) {
        let snapshot = Arc::new(self.builder.snapshot().clone());
        let epoch = snapshot.epoch;
        self.published.store(snapshot);
        if !changes.is_empty() {
            self.catalog.send_replace(self.builder.catalog().clone());
            // Nobody listening is fine.
            let _ = self.changes.send(changes.into());
        }
        self.epoch.send_replace(epoch);
    }

    async fn save(&self, saving: &Saving) -> bool {
        let catalog = self.builder.catalog().clone();
        let saving = saving.clone();
        let saved = tokio::task::spawn_blocking(move || {
            disk::save(&saving.path, &saving.keys, saving.backend, &catalog)
        });
        match saved.await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                tracing::warn!(reason = %chain(&error), "can't save the snapshot");
                false
            }
            Err(_) => false,
        }
    }
}

#[cfg(test)]
mod tests;
