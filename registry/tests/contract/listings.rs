//! Listings: order, prefixes, one revision.

use registry::store::{Op, Txn};

use crate::harness::{Backend, committed};

both_backends! {
    a_listing_is_ordered_by_key_bytes
    a_prefix_matches_whole_bytes_and_nothing_else
    a_listing_is_of_one_revision
    three_thousand_keys_are_listed_whole
}

async fn a_listing_is_ordered_by_key_bytes(b: Backend) {
    for key in ["/b", "/a/z", "/é", "/a", "/a-", "/Z", "/10", "/9"] {
        committed(&b.store, Txn::create(key, "")).await;
    }
    let listing = b.store.list("/").await.unwrap();
    let keys: Vec<_> = listing.entries.iter().map(|e| e.key.as_str()).collect();
    assert_eq!(keys, ["/10", "/9", "/Z", "/a", "/a-", "/a/z", "/b", "/é"]);
}

async fn a_prefix_matches_whole_bytes_and_nothing_else(b: Backend) {
    for key in ["/a", "/a/", "/a/b", "/a/bc", "/a/b/c", "/ab", "/a0", "/b"] {
        committed(&b.store, Txn::create(key, "")).await;
    }
    let keys = async |prefix: &str| {
        let entries = b.store.list(prefix).await.unwrap().entries;
        entries.into_iter().map(|e| e.key).collect::<Vec<_>>()
    };
    assert_eq!(keys("/a/b/").await, ["/a/b/c"]);
    assert_eq!(keys("/a/").await, ["/a/", "/a/b", "/a/b/c", "/a/bc"]);
    assert_eq!(keys("/a/b").await, ["/a/b", "/a/b/c", "/a/bc"]);
    assert_eq!(keys("").await.len(), 8);
    assert_eq!(keys("/none/").await, [""; 0]);
}

async fn a_listing_is_of_one_revision(b: Backend) {
    // Far apart in the order of keys, so that a listing in pages has them on different ones.
    let both = |n: u32| {
        Txn::new()
            .then(Op::put("/0", n.to_string()))
            .then(Op::put("/z", n.to_string()))
    };
    for chunk in 0..4 {
        let fill = (0..100).map(|n| Op::put(format!("/k/{chunk}/{n}"), ""));
        committed(
            &b.store,
            Txn {
                compares: vec![],
                ops: fill.collect(),
            },
        )
        .await;
    }
    committed(&b.store, both(0)).await;
    let store = b.store.clone();
    let writer = tokio::spawn(async move {
        for n in 1..200 {
            committed(&store, both(n)).await;
        }
    });
    while !writer.is_finished() {
        let listing = b.store.list("/").await.unwrap();
        let (first, last) = (&listing.entries[0], &listing.entries[401]);
        assert_eq!((first.key.as_str(), last.key.as_str()), ("/0", "/z"));
        assert_eq!(first.value, last.value);
        assert!(first.mod_revision <= listing.revision);
    }
    writer.await.unwrap();
}

async fn three_thousand_keys_are_listed_whole(b: Backend) {
    let key = |n: usize| format!("/k/{n:05}");
    for chunk in 0..30 {
        let ops = (0..100).map(|n| Op::put(key(chunk * 100 + n), vec![b'x'; n]));
        committed(
            &b.store,
            Txn {
                compares: vec![],
                ops: ops.collect(),
            },
        )
        .await;
    }
    let listing = b.store.list("/k/").await.unwrap();
    assert_eq!(listing.entries.len(), 3000);
    for (n, entry) in listing.entries.iter().enumerate() {
        assert_eq!((&entry.key, entry.value.len()), (&key(n), n % 100));
    }
}
