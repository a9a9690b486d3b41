//! Watches: everything once, in order, whole revisions.

use std::collections::BTreeMap;
use std::time::Duration;

use registry::store::{Change, Entry, Op, StoreError, Txn, WatchEvent};

use crate::harness::{Backend, apply, committed, next, next_changes, within};

both_backends! {
    a_watch_tells_everything_after_its_revision_once_and_in_order
    a_watch_starts_in_the_past
    a_watch_tells_only_its_prefix
    a_watch_tells_the_changes_of_a_revision_together
    a_large_past_is_told_in_whole_revisions
    a_dropped_wait_loses_no_event
    a_compacted_past_cannot_be_watched
    replaying_events_over_a_listing_gives_the_later_listing
}

async fn a_watch_tells_everything_after_its_revision_once_and_in_order(b: Backend) {
    let start = committed(&b.store, Txn::create("/k/before", "")).await;
    let mut watch = b.store.watch("/k/", start).await.unwrap();
    let mut expected = Vec::new();
    for n in 0..50 {
        let key = format!("/k/{}", n % 7);
        let revision = committed(
            &b.store,
            Txn::new().then(Op::put(key.clone(), n.to_string())),
        )
        .await;
        expected.push((revision, key));
    }
    let removed = committed(&b.store, Txn::new().then(Op::delete("/k/3"))).await;
    for (revision, key) in expected {
        let changes = next_changes(&mut watch).await;
        assert_eq!(changes.0, revision);
        assert!(matches!(&changes.1[..], [Change::Put(e)] if e.key == key));
        assert_eq!(changes.1[0].mod_revision(), revision);
    }
    let delete = Change::Delete {
        key: "/k/3".into(),
        mod_revision: removed,
    };
    assert_eq!(next_changes(&mut watch).await, (removed, vec![delete]));
}

async fn a_watch_starts_in_the_past(b: Backend) {
    let first = committed(&b.store, Txn::create("/k", "1")).await;
    let second = committed(&b.store, Txn::update("/k", first, "2")).await;
    let third = committed(&b.store, Txn::remove("/k", second)).await;
    let mut all = b.store.watch("/k", 0).await.unwrap();
    let mut rest = b.store.watch("/k", first).await.unwrap();
    for revision in [first, second, third] {
        assert_eq!(next_changes(&mut all).await.0, revision);
    }
    for revision in [second, third] {
        assert_eq!(next_changes(&mut rest).await.0, revision);
    }
}

async fn a_watch_tells_only_its_prefix(b: Backend) {
    let start = b.store.list("").await.unwrap().revision;
    let mut watch = b.store.watch("/a/", start).await.unwrap();
    committed(&b.store, Txn::create("/ab", "")).await;
    let mixed = Txn::new()
        .then(Op::put("/b/1", ""))
        .then(Op::put("/a/1", ""))
        .then(Op::put("/a", ""));
    let revision = committed(&b.store, mixed).await;
    let (told, changes) = next_changes(&mut watch).await;
    assert_eq!(told, revision);
    assert_eq!(
        changes.iter().map(Change::key).collect::<Vec<_>>(),
        ["/a/1"]
    );
}

async fn a_watch_tells_the_changes_of_a_revision_together(b: Backend) {
    let start = b.store.list("").await.unwrap().revision;
    let mut watch = b.store.watch("/", start).await.unwrap();
    let ops: Vec<_> = (0..128)
        .rev()
        .map(|n| Op::put(format!("/{n:03}"), ""))
        .collect();
    let keys: Vec<_> = ops.iter().map(|op| op.key().to_owned()).collect();
    let revision = committed(
        &b.store,
        Txn {
            compares: vec![],
            ops,
        },
    )
    .await;
    let (told, changes) = next_changes(&mut watch).await;
    assert_eq!(told, revision);
    assert_eq!(changes.iter().map(Change::key).collect::<Vec<_>>(), keys);
}

async fn a_large_past_is_told_in_whole_revisions(b: Backend) {
    let start = b.store.list("").await.unwrap().revision;
    // Each revision fits one etcd message; all of them together need many, which do not end where
    // revisions do.
    for n in 0..8_u8 {
        let ops = (0..7).map(|key| Op::put(format!("/{key}"), vec![n; 130 << 10]));
        committed(
            &b.store,
            Txn {
                compares: vec![],
                ops: ops.collect(),
            },
        )
        .await;
    }
    let mut watch = b.store.watch("/", start).await.unwrap();
    for n in 0..8_u8 {
        let (revision, changes) = next_changes(&mut watch).await;
        assert_eq!(changes.len(), 7, "revision {revision} was split");
        for change in changes {
            assert!(matches!(change, Change::Put(e) if e.value == vec![n; 130 << 10]));
        }
    }
}

async fn a_dropped_wait_loses_no_event(b: Backend) {
    let start = b.store.list("").await.unwrap().revision;
    let mut watch = b.store.watch("/", start).await.unwrap();
    let store = b.store.clone();
    let writer = tokio::spawn(async move {
        for n in 0..100 {
            committed(&store, Txn::create(format!("/{n}"), "")).await;
        }
    });
    let mut told = start;
    while told < start + 100 {
        let wait = tokio::time::timeout(Duration::from_micros(300), watch.next());
        if let Ok(event) = wait.await {
            let revision = event.unwrap().revision();
            assert_eq!(revision, told + 1);
            told = revision;
        }
    }
    writer.await.unwrap();
}

async fn a_compacted_past_cannot_be_watched(b: Backend) {
    let mut revisions = Vec::new();
    for n in 0..10 {
        revisions.push(committed(&b.store, Txn::new().then(Op::put("/k", n.to_string()))).await);
    }
    b.compact(revisions[5]).await;
    let from = async |after| match b.store.watch("/k", after).await {
        Ok(mut watch) => within(watch.next()).await,
        Err(error) => Err(error),
    };
    for after in [0, revisions[0], revisions[3]] {
        let error = from(after).await.expect_err("that past is gone");
        assert!(matches!(error, StoreError::Compacted { .. }), "{error:?}");
        let StoreError::Compacted { revision } = error else {
            unreachable!()
        };
        assert_eq!(from(revision).await.unwrap().revision(), revision + 1);
    }
    assert_eq!(from(revisions[5]).await.unwrap().revision(), revisions[6]);
    // What is left is whole: a listing still works, and so does watching after it.
    let listing = b.store.list("").await.unwrap();
    let mut watch = b.store.watch("", listing.revision).await.unwrap();
    let revision = committed(&b.store, Txn::create("/new", "")).await;
    assert_eq!(next_changes(&mut watch).await.0, revision);
}

async fn replaying_events_over_a_listing_gives_the_later_listing(b: Backend) {
    for n in 0..20 {
        committed(&b.store, Txn::create(format!("/k/{n}"), "")).await;
    }
    let listing = b.store.list("/k/").await.unwrap();
    let mut watch = b.store.watch("/k/", listing.revision).await.unwrap();
    let mut replayed: BTreeMap<String, Entry> = listing
        .entries
        .into_iter()
        .map(|e| (e.key.clone(), e))
        .collect();
    let mut last = 0;
    for n in 0..60_u32 {
        let (put, delete) = (n * 7 % 31, n * 5 % 23);
        let mut txn = Txn::new().then(Op::put(format!("/k/{put}"), n.to_string()));
        if put != delete {
            txn = txn.then(Op::delete(format!("/k/{delete}")));
        }
        last = committed(&b.store, txn.then(Op::put("/elsewhere", ""))).await;
    }
    loop {
        let event = next(&mut watch).await;
        let revision = event.revision();
        if let WatchEvent::Changes { changes, .. } = event {
            apply(&mut replayed, changes);
        }
        if revision == last {
            break;
        }
    }
    let later = b.store.list("/k/").await.unwrap();
    assert_eq!(replayed.into_values().collect::<Vec<_>>(), later.entries);
}
