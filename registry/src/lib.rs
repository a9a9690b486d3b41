//! Where the catalog is kept.
//!
//! # Layout
//! - [`store`]: the seam to a key-value store, and its two backends, embedded and etcd
//! - [`layout`]: which record is kept under which key
//! - [`record`]: how records are written, read, and kept across versions
//! - [`follow`]: the catalog's changes, from a listing and a watch that resumes, resyncs and synthesises deletes
//! - [`resources`]: applying and deleting what users define
//! - [`vips`]: which virtual IP a service gets
//! - [`publish`]: slices, marks and registrations: what nodes and operators write
//! - [`join`]: how a node enters: the mesh's settings, its own record, its liveness
//! - [`disk`]: the last catalog on disk, so that a node can boot without its registry

pub mod disk;
pub mod follow;
pub mod join;
pub mod layout;
pub mod publish;
pub mod record;
pub mod resources;
pub mod store;
pub mod vips;

use std::sync::Arc;

use layout::Keys;
use store::{Store, StoreError};

/// The registry as its users hold it: a store and the layout of its keys. Cloning costs two reference counts.
#[derive(Clone)]
pub struct Registry {
    store: Arc<dyn Store>,
    keys: Keys,
}

impl Registry {
    /// A registry under `prefix` (`/heddle`), to which the layout's version is added.
    pub fn new(store: Arc<dyn Store>, prefix: &str) -> Self {
        Registry {
            store,
            keys: Keys::new(prefix),
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
