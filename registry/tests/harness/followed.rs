//! A follower with the catalog that its updates make, for tests of etcd clusters.

// Each test binary that includes this file uses another part of it.
#![allow(dead_code)]

use std::collections::BTreeSet;
use std::sync::Arc;

use model::catalog::Catalog;
use model::name::Name;
use model::time::Timestamp;
use model::{Mark, MarkTarget};
use registry::Registry;
use registry::follow::{FollowOptions, Follower, Update};
use registry::store::{EtcdOptions, EtcdStore, Store};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::harness::PATIENCE;

/// A registry in etcd that counts what it does.
pub async fn connect(options: EtcdOptions) -> Registry {
    let metrics = options.metrics.clone();
    let store = EtcdStore::connect(options).await;
    let store: Arc<dyn Store> = Arc::new(store.expect("the options are good"));
    Registry::new(store, "/heddle").measured(metrics)
}

/// Marks of nodes stand for all records: the smallest there are.
pub fn target(node: &str) -> MarkTarget {
    MarkTarget::Node {
        name: Name::new(node).expect("a name"),
    }
}

/// Writes the mark of a node.
pub async fn mark(registry: &Registry, node: &str) -> Result<(), registry::store::StoreError> {
    let mark = Mark {
        target: target(node),
        since: Timestamp(1),
        reason: "a test".to_owned(),
    };
    registry.mark(&mark).await.map_err(|error| match error {
        registry::RegistryError::Store(error) => error,
        other => panic!("{other}"),
    })
}

/// Writes it, again and again until it is acknowledged.
pub async fn mark_surely(registry: &Registry, node: &str) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while let Err(error) = mark(registry, node).await {
        assert!(
            tokio::time::Instant::now() < deadline,
            "{node} is not written: {error:?}"
        );
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

pub struct Followed {
    updates: mpsc::Receiver<Update>,
    pub catalog: Catalog,
    pub bad: BTreeSet<String>,
    /// Why the registry is lost, while it is.
    pub lost: Option<String>,
    pub losses: usize,
    _stop: DropGuard,
}

impl Followed {
    pub fn start(registry: &Registry) -> Followed {
        let (out, updates) = mpsc::channel(16);
        let stop = CancellationToken::new();
        let follower = Follower::new(registry.clone(), FollowOptions::default());
        tokio::spawn(follower.run(out, stop.clone()));
        Followed {
            updates,
            catalog: Catalog::default(),
            bad: BTreeSet::new(),
            lost: None,
            losses: 0,
            _stop: stop.drop_guard(),
        }
    }

    /// Starts, and waits until the mark of a node `first` is seen.
    pub async fn begin(registry: &Registry) -> Followed {
        let mut followed = Followed::start(registry);
        mark_surely(registry, "first").await;
        followed.until("it follows", |f| f.has("first")).await;
        followed
    }

    pub fn has(&self, node: &str) -> bool {
        self.catalog.marks.contains_key(&target(node))
    }

    /// Takes updates until something is so.
    pub async fn until(&mut self, what: &str, so: impl Fn(&Followed) -> bool) {
        while !so(self) {
            let update = tokio::time::timeout(PATIENCE, self.updates.recv()).await;
            let update = update.unwrap_or_else(|_| panic!("not in time: {what}"));
            self.take(update.expect("the follower runs"));
        }
    }

    /// Takes what has come already.
    pub fn catch_up(&mut self) {
        while let Ok(update) = self.updates.try_recv() {
            self.take(update);
        }
    }

    fn take(&mut self, update: Update) {
        match update {
            Update::Changes {
                changes,
                bad,
                mended,
                ..
            } => {
                self.lost = None;
                self.bad.extend(bad.into_iter().map(|bad| bad.key));
                for key in &mended {
                    self.bad.remove(key);
                }
                for change in changes {
                    self.catalog.apply(change);
                }
            }
            Update::Lost { reason } => {
                self.lost = Some(reason);
                self.losses += 1;
            }
        }
    }
}
