//! An embedded store on a disk that is full for a while.
//!
//! A file of its own, since the limit that plays the full disk holds for the whole process.

use std::sync::Arc;
use std::time::Duration;

use registry::store::{
    EmbeddedOptions, EmbeddedStore, Op, Outcome, Store, StoreError, Txn, WatchEvent,
};

/// Lets no file of this process grow beyond `bytes`; `None` takes the limit away.
fn limit_file_size(bytes: Option<u64>) {
    // SAFETY: plain system calls on a structure that lives here. Without a handler in its place
    // SIGXFSZ would end the process instead of failing the write.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        let mut limit = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        assert_eq!(libc::getrlimit(libc::RLIMIT_FSIZE, &mut limit), 0);
        limit.rlim_cur = bytes.unwrap_or(limit.rlim_max);
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_fails_writes_until_there_is_room_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.redb");
    let store = Arc::new(EmbeddedStore::open(&path, EmbeddedOptions::default()).unwrap());
    let mut watch = store.watch("", 1).await.unwrap();
    let lease = store.lease(Duration::from_secs(60)).await.unwrap();
    let leased = Op::Put {
        key: "/leased".into(),
        value: "".into(),
        lease: Some(lease.id()),
    };
    store.commit(Txn::new().then(leased)).await.unwrap();

    limit_file_size(Some(4 << 20));
    let mut acknowledged = Vec::new();
    let error = loop {
        let n = acknowledged.len();
        assert!(n < 100, "the limit has no effect");
        match store
            .commit(Txn::create(format!("/{n}"), vec![b'x'; 500 << 10]))
            .await
        {
            Ok(outcome) => acknowledged.push(outcome.revision().expect("the key is new")),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StoreError::NoSpace { .. }), "{error:?}");
    assert!(!acknowledged.is_empty());

    // Writes fail for as long as it lasts; several of them in one group likewise.
    let more: Vec<_> = (0..4)
        .map(|n| {
            let store = store.clone();
            let txn = Txn::create(format!("/more/{n}"), vec![b'x'; 1000 << 10]);
            tokio::spawn(async move { store.commit(txn).await })
        })
        .collect();
    for commit in more {
        commit.await.unwrap().expect_err("the disk is still full");
    }

    limit_file_size(None);
    // The first write after the trouble opens the file again.
    let outcome = store
        .commit(Txn::new().then(Op::put("/after", "")))
        .await
        .unwrap();
    assert!(matches!(outcome, Outcome::Committed(_)));
    let listing = store.list("").await.unwrap();
    for (n, revision) in acknowledged.iter().enumerate() {
        let key = format!("/{n}");
        let entry = listing
            .entries
            .iter()
            .find(|e| e.key == key)
            .expect("it was acknowledged");
        assert_eq!(
            (entry.mod_revision, entry.value.len()),
            (*revision, 500 << 10)
        );
    }
    assert!(!listing.entries.iter().any(|e| e.key.starts_with("/more/")));

    // The watch has missed nothing that was acknowledged, or says that it must start over.
    let mut seen = Vec::new();
    loop {
        match watch.next().await {
            Ok(WatchEvent::Changes { revision, changes }) => {
                seen.extend(changes.iter().map(|c| c.key().to_owned()));
                if revision == listing.revision {
                    assert_eq!(seen.len(), acknowledged.len() + 2, "{seen:?}");
                    break;
                }
            }
            Ok(WatchEvent::Progress { .. }) => {}
            Err(StoreError::Compacted { .. }) => break,
            Err(other) => panic!("{other:?}"),
        }
    }

    // Leases know their keys still.
    lease.revoke().await.unwrap();
    assert_eq!(store.get("/leased").await.unwrap(), None);
    store.close().await;
    EmbeddedStore::open(&path, EmbeddedOptions::default()).expect("it is sound");
}
