//! Leases: keys that go with their owner.

use std::time::Duration;

use registry::store::{Change, LeaseId, Op, StoreError, Txn};

use crate::harness::{Backend, committed, next_changes, within};

both_backends! {
    a_held_lease_keeps_its_keys
    a_lease_that_is_let_go_takes_its_keys_along
    a_revoked_lease_takes_its_keys_along_at_once
    a_lease_ended_from_outside_is_lost
    a_key_put_without_lease_outlives_the_one_it_had
    a_put_on_a_lease_that_is_gone_is_refused
}

async fn a_held_lease_keeps_its_keys(b: Backend) {
    let lease = b.store.lease(b.short_ttl()).await.unwrap();
    committed(&b.store, leased("/k", lease.id())).await;
    // The scenario is the passing of time.
    tokio::time::sleep(lease.ttl() * 3).await;
    assert!(b.store.get("/k").await.unwrap().is_some());
    assert!(!lease.lost().is_cancelled());
}

async fn a_lease_that_is_let_go_takes_its_keys_along(b: Backend) {
    let lease = b.store.lease(b.short_ttl()).await.unwrap();
    committed(&b.store, leased("/a", lease.id())).await;
    let start = committed(&b.store, leased("/b", lease.id())).await;
    let mut watch = b.store.watch("/", start).await.unwrap();
    drop(lease);
    let (revision, mut changes) = next_changes(&mut watch).await;
    changes.sort_by(|a, b| a.key().cmp(b.key()));
    let gone = |key: &str| Change::Delete {
        key: key.into(),
        mod_revision: revision,
    };
    assert_eq!(changes, [gone("/a"), gone("/b")]);
    assert_eq!(b.store.list("").await.unwrap().entries, []);
}

async fn a_revoked_lease_takes_its_keys_along_at_once(b: Backend) {
    let lease = b.store.lease(Duration::from_secs(600)).await.unwrap();
    assert!(lease.ttl() >= Duration::from_secs(600));
    let lost = lease.lost().clone();
    committed(&b.store, leased("/a", lease.id())).await;
    let kept = committed(&b.store, Txn::create("/kept", "")).await;
    lease.revoke().await.unwrap();
    let listing = b.store.list("").await.unwrap();
    assert_eq!(
        listing
            .entries
            .iter()
            .map(|e| e.key.as_str())
            .collect::<Vec<_>>(),
        ["/kept"]
    );
    assert_eq!(listing.revision, kept + 1);
    assert!(!lost.is_cancelled(), "its owner knows");
}

async fn a_lease_ended_from_outside_is_lost(b: Backend) {
    let lease = b.store.lease(b.short_ttl()).await.unwrap();
    committed(&b.store, leased("/k", lease.id())).await;
    b.end_lease(lease.id()).await;
    within(lease.lost().cancelled()).await;
    assert_eq!(b.store.get("/k").await.unwrap(), None);
    lease
        .revoke()
        .await
        .expect("a lease that is gone already is no error");
}

async fn a_key_put_without_lease_outlives_the_one_it_had(b: Backend) {
    let first = b.store.lease(b.short_ttl()).await.unwrap();
    let second = b.store.lease(b.short_ttl()).await.unwrap();
    committed(&b.store, leased("/freed", first.id())).await;
    committed(&b.store, leased("/moved", first.id())).await;
    committed(&b.store, leased("/gone", first.id())).await;
    committed(&b.store, Txn::new().then(Op::put("/freed", ""))).await;
    committed(&b.store, leased("/moved", second.id())).await;
    let keys = async || {
        let entries = b.store.list("").await.unwrap().entries;
        entries.into_iter().map(|e| e.key).collect::<Vec<_>>()
    };
    first.revoke().await.unwrap();
    assert_eq!(keys().await, ["/freed", "/moved"]);
    second.revoke().await.unwrap();
    assert_eq!(keys().await, ["/freed"]);
}

async fn a_put_on_a_lease_that_is_gone_is_refused(b: Backend) {
    let lease = b.store.lease(b.short_ttl()).await.unwrap();
    let id = lease.id();
    lease.revoke().await.unwrap();
    let before = b.store.list("").await.unwrap();
    let both = leased("/k", id).then(Op::put("/other", ""));
    let error = b.store.commit(both).await.expect_err("the lease is gone");
    assert!(
        matches!(error, StoreError::LeaseNotFound { id: named } if named == id),
        "{error:?}"
    );
    assert_eq!(b.store.list("").await.unwrap(), before);
}

fn leased(key: &str, lease: LeaseId) -> Txn {
    let put = Op::Put {
        key: key.into(),
        value: "".into(),
        lease: Some(lease),
    };
    Txn::new().then(put)
}
