//! Where the catalog is kept.
//!
//! # Layout
//! - [`store`]: the seam to a key-value store, and its two backends, embedded and etcd
//! - [`layout`]: which record is kept under which key
//! - [`record`]: how records are written, read, and kept across versions
//! - [`follow`]: the catalog's changes, from a listing and a watch that resumes, resyncs and synthesises deletes
//! - [`resources`]: applying and deleting what users define
//! - [`vips`]: which virtual IP a service gets
//! - [`export`], [`import`]: all resources as documents, and back
//! - [`publish`]: slices, marks and registrations: what nodes and operators write
//! - [`join`]: how a node enters: the mesh's settings, its own record, its liveness
//! - [`delete_node`]: the end of what is left of a node that is gone for good
//! - [`metrics`]: calls, fail-overs and resyncs, counted
//! - [`disk`]: the last catalog on disk, so that a node can boot without its registry

pub mod delete_node;
pub mod disk;
pub mod export;
pub mod follow;
pub mod import;
pub mod join;
pub mod layout;
pub mod metrics;
pub mod publish;
pub mod record;
pub mod resources;
pub mod store;
pub mod vips;

use std::sync::{Arc, Mutex, PoisonError};

use layout::Keys;
use metrics::Metrics;
use model::{Name, Node};
use store::{Store, StoreError};
use tokio::sync::{Notify, watch};

/// The registry as its users hold it: a store and the layout of its keys. Cloning costs a few reference counts.
#[derive(Clone)]
pub struct Registry {
    store: Arc<dyn Store>,
    keys: Keys,
    metrics: Metrics,
    shared: Arc<Shared>,
}

/// What the follower and those who write tell each other.
struct Shared {
    /// How often the registry turned out to stand at another history.
    history: watch::Sender<u64>,
    /// What this node says of itself, once it has joined.
    own: Mutex<Option<Node>>,
    /// Something of what this node says of itself may not be there any more.
    own_gone: Notify,
}

impl Registry {
    /// A registry under `prefix` (`/heddle`), to which the layout's version is added.
    pub fn new(store: Arc<dyn Store>, prefix: &str) -> Self {
        Registry {
            store,
            keys: Keys::new(prefix),
            metrics: Metrics::new(),
            shared: Arc::new(Shared {
                history: watch::Sender::new(0),
                own: Mutex::new(None),
                own_gone: Notify::new(),
            }),
        }
    }

    /// The same, with its calls and what its follower does counted there.
    pub fn measured(self, metrics: Metrics) -> Self {
        Registry {
            store: Arc::new(metrics::Measured {
                store: self.store,
                metrics: metrics.clone(),
            }),
            metrics,
            ..self
        }
    }

    /// The store below.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Where records are kept.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Goes up each time the follower finds that the registry was restored from a backup. Revisions that were known before
    /// mean nothing then, and what was written may be gone: whoever relies on either looks again.
    pub fn history(&self) -> watch::Receiver<u64> {
        self.shared.history.subscribe()
    }

    fn begin_history(&self) {
        self.shared.history.send_modify(|history| *history += 1);
        self.shared.own_gone.notify_one();
    }

    fn set_own(&self, node: &Node) {
        let mut own = self
            .shared
            .own
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *own = Some(node.clone());
    }

    fn own(&self) -> Option<Node> {
        let own = self
            .shared
            .own
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        own.clone()
    }

    /// A node's record or liveness went.
    fn went(&self, node: &Name) {
        if self.own().is_some_and(|own| own.name == *node) {
            self.shared.own_gone.notify_one();
        }
    }
}

/// Why the registry refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The store failed.
    #[error("registry can't be read or written")]
    Store(#[from] StoreError),
    /// Somebody else wrote at the same time, again and again.
    #[error("{what} is being written by others: gave up after {tries} tries")]
    Contended {
        /// What was to be written.
        what: String,
        /// How often it was tried.
        tries: u32,
    },
    /// A record can't be read, so it is not overwritten.
    #[error("record {key} can't be read")]
    Record {
        /// Its key.
        key: String,
        /// Why.
        #[source]
        source: record::RecordError,
    },
}
