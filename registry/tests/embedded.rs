//! What the embedded backend promises beyond the contract: its file, and memory that is bounded.

#[path = "../../tests/support/etcd.rs"]
mod etcd_server;
mod harness;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use harness::{committed, next_changes, registry_file, within};
use registry::store::{
    EmbeddedOptions, EmbeddedStore, Op, Outcome, Retry, Revision, Store, StoreError, Txn,
    WatchEvent,
};

fn open(dir: &tempfile::TempDir) -> Result<EmbeddedStore, StoreError> {
    EmbeddedStore::open(registry_file(dir), EmbeddedOptions::default())
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

#[tokio::test]
async fn a_second_opener_is_told_that_the_file_is_in_use() {
    let dir = folder();
    let first = open(&dir).unwrap();
    let error = open(&dir).expect_err("the first has it");
    assert!(matches!(error, StoreError::InUse { .. }), "{error:?}");
    assert!(
        error.to_string().ends_with("is in use by another heddle"),
        "{error}"
    );
    first.close().await;
    open(&dir).expect("it was given up");
}

#[tokio::test]
async fn the_file_is_for_its_owner_only() {
    let dir = folder();
    let _store = open(&dir).unwrap();
    let mode = std::fs::metadata(registry_file(&dir))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn a_missing_folder_is_named() {
    let dir = folder();
    let path = dir.path().join("absent").join("registry.redb");
    let error = EmbeddedStore::open(&path, EmbeddedOptions::default()).expect_err("no folder");
    assert!(
        error.to_string().contains("absent/registry.redb"),
        "{error}"
    );
    assert_eq!(error.retry(), Retry::Safe);
}

#[tokio::test]
async fn a_damaged_file_is_an_error_and_not_a_panic() {
    for (name, damage) in [
        (
            "no registry at all",
            &damage_all as &dyn Fn(&mut std::fs::File),
        ),
        ("cut short", &|file| file.set_len(5000).unwrap()),
        ("overwritten in the middle", &damage_middle),
    ] {
        let dir = folder();
        let store = open(&dir).unwrap();
        for n in 0..50 {
            store
                .commit(Txn::create(format!("/{n}"), vec![b'x'; 4000]))
                .await
                .unwrap();
        }
        store.close().await;
        let mut file = std::fs::File::options()
            .write(true)
            .open(registry_file(&dir))
            .unwrap();
        damage(&mut file);
        drop(file);
        let error = open(&dir).expect_err(name);
        assert!(
            matches!(error, StoreError::Corrupt { .. }),
            "{name}: {error:?}"
        );
    }
}

fn damage_all(file: &mut std::fs::File) {
    file.set_len(0).unwrap();
    file.write_all(&b"not a registry ".repeat(1000)).unwrap();
}

fn damage_middle(file: &mut std::fs::File) {
    let length = file.metadata().unwrap().len();
    for page in (length / 8..length - 4096).step_by(8192) {
        file.seek(SeekFrom::Start(page)).unwrap();
        file.write_all(&[0xa5; 512]).unwrap();
    }
}

#[tokio::test]
async fn a_file_of_a_newer_format_is_refused_and_left_alone() {
    let dir = folder();
    open(&dir).unwrap().close().await;
    let meta = redb::TableDefinition::<&str, i64>::new("meta");
    let database = redb::Database::create(registry_file(&dir)).unwrap();
    let txn = database.begin_write().unwrap();
    txn.open_table(meta).unwrap().insert("format", 2).unwrap();
    txn.commit().unwrap();
    drop(database);
    for _ in 0..2 {
        let error = open(&dir).expect_err("it is newer");
        assert!(error.to_string().contains("it has format 2"), "{error}");
    }
}

#[tokio::test]
async fn no_lease_outlives_the_process() {
    let dir = folder();
    let store: Arc<EmbeddedStore> = Arc::new(open(&dir).unwrap());
    let lease = store.lease(Duration::from_secs(600)).await.unwrap();
    let put = |key: &str, lease| Op::Put {
        key: key.into(),
        value: "".into(),
        lease,
    };
    let txn = Txn::new()
        .then(put("/leased", Some(lease.id())))
        .then(put("/kept", None));
    let Outcome::Committed(revision) = store.commit(txn).await.unwrap() else {
        panic!("there was no condition");
    };
    store.close().await;
    let store = open(&dir).unwrap();
    let listing = store.list("").await.unwrap();
    let keys: Vec<_> = listing.entries.iter().map(|e| e.key.as_str()).collect();
    assert_eq!((keys, listing.revision), (vec!["/kept"], revision + 1));
}

#[tokio::test]
async fn a_closed_store_says_so() {
    let dir = folder();
    let store = open(&dir).unwrap();
    let mut watch = store.watch("", 0).await.unwrap();
    let lease = store.lease(Duration::from_secs(1)).await.unwrap();
    assert_eq!(
        watch.next().await.unwrap(),
        WatchEvent::Progress { revision: 1 }
    );
    store.close().await;
    store.close().await;
    assert!(matches!(
        within(watch.next()).await,
        Err(StoreError::Closed)
    ));
    assert!(matches!(store.get("/k").await, Err(StoreError::Closed)));
    assert!(matches!(
        store.commit(Txn::create("/k", "")).await,
        Err(StoreError::Closed)
    ));
    assert!(matches!(
        store.lease(Duration::from_secs(1)).await,
        Err(StoreError::Closed)
    ));
    assert!(matches!(lease.revoke().await, Err(StoreError::Closed)));
}

#[tokio::test]
async fn the_past_of_an_earlier_process_is_compacted() {
    let dir = folder();
    let store = open(&dir).unwrap();
    store.commit(Txn::create("/1", "")).await.unwrap();
    store.commit(Txn::create("/2", "")).await.unwrap();
    store.close().await;
    let store = open(&dir).unwrap();
    let revision = store.list("").await.unwrap().revision;
    let error = store
        .watch("", revision - 1)
        .await
        .expect_err("that was before");
    assert!(
        matches!(error, StoreError::Compacted { revision: r } if r == revision),
        "{error:?}"
    );
    store.watch("", revision).await.expect("this is now");
}

#[tokio::test]
async fn a_watch_that_lags_too_far_behind_starts_over() {
    let limits = [
        EmbeddedOptions {
            history_revisions: 10,
            ..EmbeddedOptions::default()
        },
        EmbeddedOptions {
            history_bytes: 1000,
            ..EmbeddedOptions::default()
        },
    ];
    for options in limits {
        let dir = folder();
        let store = EmbeddedStore::open(registry_file(&dir), options).unwrap();
        let mut slow = store.watch("/", 0).await.unwrap();
        for n in 0..20 {
            store
                .commit(Txn::new().then(Op::put("/k", vec![n; 100])))
                .await
                .unwrap();
        }
        let error = slow
            .next()
            .await
            .expect_err("its place in the history is gone");
        assert!(matches!(error, StoreError::Compacted { .. }), "{error:?}");
        let mut prompt = store
            .watch("/", store.list("").await.unwrap().revision - 5)
            .await
            .unwrap();
        next_changes(&mut prompt).await;
    }
}

#[tokio::test]
async fn a_watch_hears_of_progress_elsewhere() {
    let dir = folder();
    let store: Arc<dyn Store> = Arc::new(open(&dir).unwrap());
    let mut watch = store.watch("/a/", 1).await.unwrap();
    let revision = committed(&store, Txn::create("/b/1", "")).await;
    assert_eq!(
        within(watch.next()).await.unwrap(),
        WatchEvent::Progress { revision }
    );
    store
        .watch("/a/", revision + 1)
        .await
        .expect_err("the future is of another history");
}

#[tokio::test]
async fn a_lease_lasts_its_time_after_it_is_let_go() {
    let dir = folder();
    let store = open(&dir).unwrap();
    let ttl = Duration::from_millis(300);
    let lease = store.lease(ttl).await.unwrap();
    let lost = lease.lost().clone();
    let put = Op::Put {
        key: "/k".into(),
        value: "".into(),
        lease: Some(lease.id()),
    };
    store.commit(Txn::new().then(put)).await.unwrap();
    let let_go = std::time::Instant::now();
    drop(lease);
    within(lost.cancelled()).await;
    assert!(let_go.elapsed() >= ttl);
    assert_eq!(store.get("/k").await.unwrap(), None);
}

/// The other half of the next test: the process that is killed.
#[tokio::test]
#[ignore = "is run by acknowledged_commits_survive_kill_9"]
async fn commit_until_killed() {
    let Some(path) = std::env::var_os("HEDDLE_TEST_REGISTRY") else {
        return;
    };
    let store = Arc::new(EmbeddedStore::open(path, EmbeddedOptions::default()).unwrap());
    let mut tasks = Vec::new();
    for task in 0..8 {
        let store = store.clone();
        tasks.push(tokio::spawn(async move {
            for n in 0.. {
                let key = format!("/{task}/{n}");
                let outcome = store
                    .commit(Txn::create(key.as_str(), key.clone()))
                    .await
                    .unwrap();
                println!("acknowledged {key} {}", outcome.revision().unwrap());
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn acknowledged_commits_survive_kill_9() {
    let dir = folder();
    for (round, acknowledgements) in [1, 100, 333].into_iter().enumerate() {
        let file = dir.path().join(format!("{round}.redb"));
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["commit_until_killed", "--exact", "--ignored", "--nocapture"])
            .env("HEDDLE_TEST_REGISTRY", &file)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut acknowledged = BTreeMap::<String, Revision>::new();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        while acknowledged.len() < acknowledgements {
            let line = lines
                .next()
                .expect("it goes on until it is killed")
                .unwrap();
            // The harness prints the test's name in front of the first line.
            if let Some((_, facts)) = line.split_once("acknowledged ") {
                let (key, revision) = facts.split_once(' ').unwrap();
                acknowledged.insert(key.to_owned(), revision.parse().unwrap());
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let store = EmbeddedStore::open(&file, EmbeddedOptions::default()).unwrap();
        for (key, revision) in &acknowledged {
            let entry = store.get(key).await.unwrap().expect("it was acknowledged");
            assert_eq!(
                (entry.value.as_ref(), entry.mod_revision),
                (key.as_bytes(), *revision)
            );
        }
        let listing = store.list("").await.unwrap();
        assert!(listing.revision >= *acknowledged.values().max().unwrap());
        assert_eq!(
            listing.entries.len() as Revision,
            listing.revision - 1,
            "one key a revision"
        );
        store.close().await;
    }
}
