use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::*;
use crate::store::{
    EmbeddedOptions, EmbeddedStore, Lease, Listing, Outcome, Revision, Store, Txn, Watch,
};

/// A store whose history is compacted behind the first page of so many listings.
struct Compacting {
    store: EmbeddedStore,
    left: AtomicU32,
}

#[async_trait::async_trait]
impl Store for Compacting {
    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.store.list(prefix).await
    }

    async fn list_pages(
        &self,
        prefix: &str,
        take: &mut (dyn FnMut(Vec<Entry>) + Send),
    ) -> Result<Revision, StoreError> {
        let Listing { revision, entries } = self.store.list(prefix).await?;
        let (first, rest) = entries.split_at(entries.len() / 2);
        take(first.to_vec());
        let left = &self.left;
        let one_less = |left: u32| left.checked_sub(1);
        if (left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less)).is_ok() {
            return Err(StoreError::Compacted { revision });
        }
        take(rest.to_vec());
        Ok(revision)
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.store.get(key).await
    }

    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        self.store.commit(txn).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        self.store.watch(prefix, after).await
    }

    async fn lease(&self, ttl: Duration) -> Result<Lease, StoreError> {
        self.store.lease(ttl).await
    }

    fn name(&self) -> &'static str {
        "embedded"
    }
}

#[tokio::test]
async fn a_compaction_between_two_pages_begins_the_listing_again_and_gives_nothing_twice() {
    let folder = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(folder.path().join("r"), EmbeddedOptions::default()).unwrap();
    let store = Arc::new(Compacting {
        store,
        left: AtomicU32::new(0),
    });
    let registry = Registry::new(store.clone(), "/heddle");
    for node in ["n1", "n2", "n3", "n4"] {
        let mark = Mark {
            target: MarkTarget::Node {
                name: Name::new(node).unwrap(),
            },
            since: model::Timestamp(1),
            reason: String::new(),
        };
        registry.mark(&mark).await.unwrap();
    }
    store.left.store(2, Ordering::Relaxed);
    assert_eq!(registry.export(None).await.unwrap().documents.len(), 4);
    store.left.store(3, Ordering::Relaxed);
    let error = registry.export(None).await.unwrap_err();
    assert!(matches!(error, StoreError::Compacted { .. }), "{error}");
}
