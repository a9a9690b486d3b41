//! The two backends as a test sees them, and waits that end.

// Each test binary that includes this file uses another part of it.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use registry::store::{
    Change, EmbeddedOptions, EmbeddedStore, Entry, EtcdOptions, EtcdStore, LeaseId, Outcome,
    Revision, Store, Txn, Watch, WatchEvent,
};

use crate::etcd_server::Etcd;

/// Runs each of the tests named, functions of a `Backend`, on both backends.
#[allow(unused_macros)]
macro_rules! both_backends {
    ($($test:ident)*) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test(crate::harness::Backend::embedded()).await;
            })*
        }
        mod etcd {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                if let Some(backend) = crate::harness::Backend::etcd().await {
                    super::$test(backend).await;
                }
            })*
        }
    };
}

/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A store that is empty, with the means to do to it what happens to stores.
pub struct Backend {
    pub store: Arc<dyn Store>,
    engine: Engine,
}

enum Engine {
    Embedded {
        store: Arc<EmbeddedStore>,
        dir: tempfile::TempDir,
    },
    Etcd {
        etcd: Box<Etcd>,
    },
}

impl Backend {
    pub fn embedded() -> Backend {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Arc::new(open(&dir));
        Backend {
            store: store.clone(),
            engine: Engine::Embedded { store, dir },
        }
    }

    /// `None` where etcd is not installed, after saying so.
    pub async fn etcd() -> Option<Backend> {
        let etcd = tokio::task::block_in_place(|| Etcd::start_or_skip(&test()))?;
        // Small pages, so that a listing takes several.
        let options = EtcdOptions {
            page_keys: 250,
            ..EtcdOptions::new([etcd.endpoint()])
        };
        let store = Arc::new(
            EtcdStore::connect(options)
                .await
                .expect("the options are good"),
        );
        Some(Backend {
            store,
            engine: Engine::Etcd { etcd: etcd.into() },
        })
    }

    /// What another node has: a connection of its own to the same etcd, or the one file's store.
    pub async fn another(&self) -> Arc<dyn Store> {
        match &self.engine {
            Engine::Embedded { store, .. } => store.clone(),
            Engine::Etcd { etcd } => {
                let options = EtcdOptions::new([etcd.endpoint()]);
                let store = EtcdStore::connect(options).await;
                Arc::new(store.expect("the options are good"))
            }
        }
    }

    /// A time to live that a test can wait for.
    pub fn short_ttl(&self) -> Duration {
        match self.engine {
            Engine::Embedded { .. } => Duration::from_millis(200),
            Engine::Etcd { .. } => Duration::from_secs(2),
        }
    }

    pub async fn compact(&self, revision: Revision) {
        match &self.engine {
            Engine::Embedded { store, .. } => store.compact(revision),
            Engine::Etcd { etcd } => tokio::task::block_in_place(|| etcd.compact(revision)),
        }
    }

    /// Ends a lease behind its holder's back.
    pub async fn end_lease(&self, id: LeaseId) {
        match &self.engine {
            Engine::Embedded { store, .. } => store.end_lease(id).await.expect("a lease"),
            Engine::Etcd { etcd } => tokio::task::block_in_place(|| etcd.revoke_lease(id.0)),
        }
    }

    /// Restarts what keeps the data: opens the file again, or kills etcd and starts it again.
    pub async fn restart(&mut self) {
        match &mut self.engine {
            Engine::Embedded { store, dir } => {
                store.close().await;
                *store = Arc::new(open(dir));
                self.store = store.clone();
            }
            Engine::Etcd { etcd } => tokio::task::block_in_place(|| {
                etcd.kill();
                etcd.restart();
            }),
        }
    }
}

/// The name of the test that runs, for saying that it is skipped.
pub fn test() -> String {
    std::thread::current().name().unwrap_or("a test").to_owned()
}

pub fn registry_file(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join("registry.redb")
}

fn open(dir: &tempfile::TempDir) -> EmbeddedStore {
    EmbeddedStore::open(registry_file(dir), EmbeddedOptions::default()).expect("it opens")
}

/// Waits, but not for ever.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("it happens in time")
}

/// Commits a transaction that must not conflict.
pub async fn committed(store: &Arc<dyn Store>, txn: Txn) -> Revision {
    match store.commit(txn.clone()).await {
        Ok(Outcome::Committed(revision)) => revision,
        other => panic!("{other:?} of {txn:?}"),
    }
}

pub async fn next(watch: &mut Watch) -> WatchEvent {
    within(watch.next()).await.expect("the watch goes on")
}

/// The next event that is more than progress.
pub async fn next_changes(watch: &mut Watch) -> (Revision, Vec<Change>) {
    loop {
        if let WatchEvent::Changes { revision, changes } = next(watch).await {
            return (revision, changes);
        }
    }
}

pub fn apply(entries: &mut BTreeMap<String, Entry>, changes: Vec<Change>) {
    for change in changes {
        match change {
            Change::Put(entry) => drop(entries.insert(entry.key.clone(), entry)),
            Change::Delete { key, .. } => drop(entries.remove(&key)),
        }
    }
}
