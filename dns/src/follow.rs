//! The thread that makes tables of snapshots.

use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use arc_swap::ArcSwap;
use model::name::ServiceKey;
use model::snapshot::Snapshot;
use tracing::error;

use crate::serial::Serials;
use crate::table::{Table, Updater};

/// Told of each snapshot by whoever publishes them, so that a table costs what changed and not a look at every service.
/// Cloning is cheap.
///
/// Without anybody who tells, tables are made when a query finds the newest one to be behind, by comparing each service
/// with what it was.
#[derive(Clone, Debug)]
pub struct Follower {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    tables: Arc<ArcSwap<Table>>,
    snapshots: Arc<ArcSwap<Snapshot>>,
    pending: Mutex<Pending>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct Pending {
    /// The newest told of, and what changed since the table was made; `None`: perhaps everything.
    told: Option<(Arc<Snapshot>, Option<Vec<ServiceKey>>)>,
    /// Whether anybody tells.
    is_told: bool,
    behind: bool,
    stop: bool,
}

impl Follower {
    pub(crate) fn new(
        snapshots: Arc<ArcSwap<Snapshot>>,
        name_servers: Vec<IpAddr>,
        serials: Arc<Serials>,
        seed: u64,
    ) -> (Self, Updater) {
        let mut updater = Updater::new(name_servers, serials, seed);
        let table = updater.update(&snapshots.load(), None);
        let follower = Follower {
            shared: Arc::new(Shared {
                tables: Arc::new(ArcSwap::from_pointee(table)),
                snapshots,
                pending: Mutex::default(),
                wake: Condvar::new(),
            }),
        };
        (follower, updater)
    }

    /// The newest table.
    pub(crate) fn tables(&self) -> &Arc<ArcSwap<Table>> {
        &self.shared.tables
    }

    /// The epoch of the snapshot that answers are prepared for.
    pub fn epoch(&self) -> Option<u64> {
        self.shared.tables.load().epoch
    }

    /// Says that a snapshot was published, and which services are others than in the one before; `None`: any may be.
    /// Never waits for more than a copy of the list.
    pub fn published(&self, snapshot: &Arc<Snapshot>, changed: Option<&[ServiceKey]>) {
        self.change(|pending| {
            pending.is_told = true;
            let before = pending.told.take();
            let changed = match (before, changed) {
                (None, Some(changed)) => Some(changed.to_vec()),
                (Some((_, Some(mut all))), Some(changed)) => {
                    all.extend_from_slice(changed);
                    Some(all)
                }
                (_, None) | (Some((_, None)), _) => None,
            };
            pending.told = Some((snapshot.clone(), changed));
        });
    }

    /// Says that a query found the newest table to be older than the snapshot.
    pub(crate) fn behind(&self) {
        self.change(|pending| pending.behind = true);
    }

    fn stop(&self) {
        self.change(|pending| pending.stop = true);
    }

    fn change(&self, change: impl FnOnce(&mut Pending)) {
        let pending = &self.shared.pending;
        change(&mut pending.lock().unwrap_or_else(PoisonError::into_inner));
        self.shared.wake.notify_one();
    }

    /// Makes tables in a thread of its own, until the guard is dropped.
    pub(crate) fn start(&self, updater: Updater) -> std::io::Result<Guard> {
        let follower = self.clone();
        thread::Builder::new()
            .name("dns-table".to_owned())
            .spawn(move || follower.run(updater))?;
        Ok(Guard(self.clone()))
    }

    fn run(&self, mut updater: Updater) {
        updater.settle();
        while let Some((snapshot, changed)) = self.next() {
            let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                updater.update(&snapshot, changed.as_deref())
            }));
            match made {
                Ok(table) => {
                    self.shared.tables.store(Arc::new(table));
                    updater.settle();
                }
                Err(_) => {
                    // What was half done is not to be built upon. The next query finds the table behind.
                    error!("dns answers could not be made and are made anew");
                    updater.start_over();
                }
            }
        }
    }

    fn next(&self) -> Option<(Arc<Snapshot>, Option<Vec<ServiceKey>>)> {
        let pending = &self.shared.pending;
        let mut pending = pending.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if pending.stop {
                return None;
            }
            if let Some(told) = pending.told.take() {
                return Some(told);
            }
            // Where somebody tells, word of the snapshot is on its way.
            if std::mem::take(&mut pending.behind) && !pending.is_told {
                return Some((self.shared.snapshots.load_full(), None));
            }
            let wake = &self.shared.wake;
            pending = wake.wait(pending).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Ends the thread when dropped.
#[derive(Debug)]
pub(crate) struct Guard(Follower);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.stop();
    }
}
