//! Transactions: conditions, atomicity, races, limits.

use registry::store::{Compare, Entry, Op, Outcome, Retry, StoreError, Txn};

use crate::harness::{Backend, committed, next_changes};

both_backends! {
    a_key_is_created_only_if_absent
    a_stale_update_writes_nothing
    exists_asks_for_presence_alone
    all_operations_of_a_transaction_share_one_revision
    one_failed_condition_stops_all_operations
    a_transaction_that_changes_nothing_takes_no_revision
    deleting_and_creating_gives_a_new_create_revision
    values_are_arbitrary_bytes
    of_many_creators_one_wins
    concurrent_updates_lose_nothing
    limits_are_told_before_anything_is_written
    senseless_transactions_are_refused
    what_was_acknowledged_survives_a_restart
}

async fn a_key_is_created_only_if_absent(b: Backend) {
    let revision = committed(&b.store, Txn::create("/k", "1")).await;
    let entry = b.store.get("/k").await.unwrap().expect("it was created");
    assert_eq!(
        entry,
        Entry {
            key: "/k".into(),
            value: "1".into(),
            create_revision: revision,
            mod_revision: revision
        }
    );
    assert_eq!(
        b.store.commit(Txn::create("/k", "2")).await.unwrap(),
        Outcome::Conflict
    );
    assert_eq!(b.store.get("/k").await.unwrap(), Some(entry));
    assert_eq!(b.store.get("/absent").await.unwrap(), None);
}

async fn a_stale_update_writes_nothing(b: Backend) {
    let first = committed(&b.store, Txn::create("/k", "1")).await;
    let second = committed(&b.store, Txn::update("/k", first, "2")).await;
    let before = b.store.list("").await.unwrap();
    assert_eq!(
        b.store.commit(Txn::update("/k", first, "3")).await.unwrap(),
        Outcome::Conflict
    );
    assert_eq!(
        b.store.commit(Txn::remove("/k", first)).await.unwrap(),
        Outcome::Conflict
    );
    assert_eq!(b.store.list("").await.unwrap(), before);
    committed(&b.store, Txn::remove("/k", second)).await;
    for absent in [second, 0, -1] {
        let update = Txn::update("/k", absent, "4");
        assert_eq!(b.store.commit(update).await.unwrap(), Outcome::Conflict);
    }
}

async fn exists_asks_for_presence_alone(b: Backend) {
    let touch = || {
        Txn::new()
            .when(Compare::Exists("/k".into()))
            .then(Op::put("/seen", ""))
    };
    assert_eq!(b.store.commit(touch()).await.unwrap(), Outcome::Conflict);
    committed(&b.store, Txn::create("/k", "")).await;
    committed(&b.store, touch()).await;
}

async fn all_operations_of_a_transaction_share_one_revision(b: Backend) {
    let old = committed(&b.store, Txn::create("/old", "")).await;
    let txn = Txn::new()
        .then(Op::put("/a", "1"))
        .then(Op::put("/b", "2"))
        .then(Op::delete("/old"));
    let revision = committed(&b.store, txn).await;
    assert!(revision > old);
    let listing = b.store.list("").await.unwrap();
    let keys: Vec<_> = listing
        .entries
        .iter()
        .map(|e| (e.key.as_str(), e.mod_revision))
        .collect();
    assert_eq!(keys, [("/a", revision), ("/b", revision)]);
    assert_eq!(listing.revision, revision);
}

async fn one_failed_condition_stops_all_operations(b: Backend) {
    committed(&b.store, Txn::create("/taken", "")).await;
    let before = b.store.list("").await.unwrap();
    let txn = Txn::new()
        .when(Compare::Absent("/free".into()))
        .when(Compare::Absent("/taken".into()))
        .then(Op::put("/free", ""))
        .then(Op::delete("/taken"));
    assert_eq!(b.store.commit(txn).await.unwrap(), Outcome::Conflict);
    assert_eq!(b.store.list("").await.unwrap(), before);
}

async fn a_transaction_that_changes_nothing_takes_no_revision(b: Backend) {
    let revision = committed(&b.store, Txn::create("/k", "")).await;
    assert_eq!(
        committed(&b.store, Txn::new().then(Op::delete("/absent"))).await,
        revision
    );
    assert_eq!(
        committed(&b.store, Txn::new().when(Compare::Exists("/k".into()))).await,
        revision
    );
    assert_eq!(b.store.list("").await.unwrap().revision, revision);
}

async fn deleting_and_creating_gives_a_new_create_revision(b: Backend) {
    let first = committed(&b.store, Txn::create("/k", "")).await;
    committed(&b.store, Txn::remove("/k", first)).await;
    let again = committed(&b.store, Txn::create("/k", "")).await;
    let updated = committed(&b.store, Txn::update("/k", again, "")).await;
    let entry = b
        .store
        .get("/k")
        .await
        .unwrap()
        .expect("it was created again");
    assert_eq!(
        (entry.create_revision, entry.mod_revision),
        (again, updated)
    );
}

async fn values_are_arbitrary_bytes(b: Backend) {
    let all: Vec<u8> = (0..=255).collect();
    committed(&b.store, Txn::create("/all", all.clone())).await;
    committed(&b.store, Txn::create("/empty", "")).await;
    assert_eq!(b.store.get("/all").await.unwrap().unwrap().value, all);
    assert_eq!(b.store.get("/empty").await.unwrap().unwrap().value, "");
}

async fn of_many_creators_one_wins(b: Backend) {
    for round in 0..5 {
        let creators: Vec<_> = (0..16)
            .map(|n| {
                let store = b.store.clone();
                let txn = Txn::create(format!("/{round}"), n.to_string());
                tokio::spawn(async move { store.commit(txn).await.unwrap() })
            })
            .collect();
        let mut winners = 0;
        for creator in creators {
            winners += usize::from(creator.await.unwrap() != Outcome::Conflict);
        }
        assert_eq!(winners, 1);
    }
}

async fn concurrent_updates_lose_nothing(b: Backend) {
    committed(&b.store, Txn::create("/n", "0")).await;
    let counters: Vec<_> = (0..6)
        .map(|_| {
            let store = b.store.clone();
            tokio::spawn(async move {
                for _ in 0..15 {
                    loop {
                        let entry = store.get("/n").await.unwrap().expect("it was created");
                        let n: u32 = std::str::from_utf8(&entry.value).unwrap().parse().unwrap();
                        let next = Txn::update("/n", entry.mod_revision, (n + 1).to_string());
                        if store.commit(next).await.unwrap() != Outcome::Conflict {
                            break;
                        }
                    }
                }
            })
        })
        .collect();
    for counter in counters {
        counter.await.unwrap();
    }
    assert_eq!(b.store.get("/n").await.unwrap().unwrap().value, "90");
}

async fn limits_are_told_before_anything_is_written(b: Backend) {
    let before = b.store.list("").await.unwrap();
    let limits = b.store.limits();
    let many = (0..=limits.max_ops_per_txn)
        .map(|n| Op::put(format!("/{n}"), ""))
        .collect();
    let heavy = (0..2)
        .map(|n| Op::put(format!("/{n}"), vec![0; limits.max_value_bytes]))
        .collect();
    for txn in [
        Txn {
            compares: vec![],
            ops: many,
        },
        Txn {
            compares: vec![],
            ops: heavy,
        },
        Txn::create("/k", vec![0; limits.max_value_bytes + 1]),
        Txn::create("k".repeat(limits.max_key_bytes + 1), ""),
    ] {
        let error = b.store.commit(txn).await.expect_err("that is too much");
        assert!(matches!(error, StoreError::TooLarge { .. }), "{error:?}");
        assert_eq!(error.retry(), Retry::Never);
    }
    assert_eq!(b.store.list("").await.unwrap(), before);
    // What is just within the limits is accepted.
    committed(&b.store, Txn::create("/k", vec![0; limits.max_value_bytes])).await;
    let ops = (0..limits.max_ops_per_txn).map(|n| Op::put(format!("/{n}"), ""));
    let compares = (0..limits.max_ops_per_txn).map(|n| Compare::Absent(format!("/{n}")));
    committed(
        &b.store,
        Txn {
            compares: compares.collect(),
            ops: ops.collect(),
        },
    )
    .await;
}

async fn senseless_transactions_are_refused(b: Backend) {
    let before = b.store.list("").await.unwrap();
    for txn in [
        Txn::create("", ""),
        Txn::new().then(Op::put("/k", "1")).then(Op::put("/k", "2")),
        Txn::new().then(Op::put("/k", "1")).then(Op::delete("/k")),
    ] {
        let error = b.store.commit(txn).await.expect_err("that makes no sense");
        assert!(matches!(error, StoreError::InvalidTxn { .. }), "{error:?}");
    }
    assert!(b.store.get("").await.is_err());
    assert_eq!(b.store.list("").await.unwrap(), before);
}

async fn what_was_acknowledged_survives_a_restart(mut b: Backend) {
    let mut revision = 0;
    for n in 0..20 {
        revision = committed(&b.store, Txn::create(format!("/{n}"), n.to_string())).await;
    }
    let before = b.store.list("").await.unwrap();
    b.restart().await;
    assert_eq!(b.store.list("").await.unwrap(), before);
    // The history goes on where it was.
    let mut watch = b.store.watch("", revision).await.unwrap();
    assert_eq!(
        committed(&b.store, Txn::create("/new", "")).await,
        revision + 1
    );
    assert_eq!(next_changes(&mut watch).await.0, revision + 1);
}
