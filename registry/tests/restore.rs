//! An etcd that is restored from a backup: revisions go backwards, and what was written since is gone.

#[path = "../../tests/support/etcd.rs"]
mod etcd_server;
#[path = "harness/followed.rs"]
mod followed;
#[macro_use]
mod harness;

use std::time::Duration;

use etcd_server::{Cluster, Etcd};
use followed::{Followed, mark_surely, target};
use harness::{PATIENCE, committed, test, within};
use model::name::Name;
use model::time::Timestamp;
use model::{Liveness, Node};
use registry::layout::Key;
use registry::metrics::Resync;
use registry::store::{EtcdOptions, Outcome, Txn};
use registry::{Registry, record};
use tokio::task::block_in_place;
use tokio_util::sync::CancellationToken;

const TTL: Duration = Duration::from_secs(2);

async fn connect(endpoints: Vec<String>) -> Registry {
    let options = EtcdOptions {
        deadline: Duration::from_secs(3),
        watch_probe_interval: Duration::from_millis(500),
        ..EtcdOptions::new(endpoints)
    };
    followed::connect(options).await
}

async fn stored<T: serde::de::DeserializeOwned>(registry: &Registry, key: &Key) -> Option<T> {
    let entry = registry.store().get(&registry.keys().path(key)).await;
    let entry = entry.ok().flatten()?;
    Some(record::decode(&entry.value).expect("a record"))
}

async fn until_stored<T: serde::de::DeserializeOwned>(
    registry: &Registry,
    what: &str,
    key: &Key,
    so: impl Fn(&T) -> bool,
) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !stored::<T>(registry, key)
        .await
        .is_some_and(|record| so(&record))
    {
        assert!(
            tokio::time::Instant::now() < deadline,
            "not in time: {what}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn node(name: &str) -> Node {
    Node {
        name: Name::new(name).expect("a name"),
        addresses: vec!["192.0.2.1".parse().expect("an address")],
        zone: None,
        routable: Vec::new(),
        version: "1".to_owned(),
        capabilities: Vec::new(),
        since: Timestamp(1),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_follower_tells_what_a_restored_backup_takes_and_gives_back() {
    let Some(mut cluster) = block_in_place(|| Cluster::start_or_skip(&test())) else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let backup = folder.path().join("backup");
    let registry = connect(cluster.endpoints()).await;
    let mut followed = Followed::start(&registry);
    mark_surely(&registry, "kept").await;
    mark_surely(&registry, "deleted-later").await;
    followed
        .until("it follows", |f| f.has("deleted-later"))
        .await;
    block_in_place(|| cluster.member(0).save(&backup));
    for n in 0..30 {
        mark_surely(&registry, &format!("later-{n}")).await;
    }
    let deleted = within(registry.unmark(&target("deleted-later"))).await;
    assert!(deleted.expect("a delete"));
    followed
        .until("it follows", |f| {
            f.has("later-29") && !f.has("deleted-later")
        })
        .await;

    block_in_place(|| cluster.restore(&backup));
    followed
        .until("the backup's state", |f| {
            f.has("kept") && f.has("deleted-later") && f.catalog.marks.size() == 2
        })
        .await;
    assert!(registry.metrics().resyncs(Resync::WentBackwards) >= 1);
    // Long before the revision at which it stood once, what happens is told.
    mark_surely(&registry, "new").await;
    followed.until("it follows again", |f| f.has("new")).await;
    assert_eq!(*registry.history().borrow(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_backup_is_noticed_even_when_its_revisions_have_caught_up() {
    let Some(mut cluster) = block_in_place(|| Cluster::start_or_skip(&test())) else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let backup = folder.path().join("backup");
    let registry = connect(cluster.endpoints_by_relay()).await;
    let mut followed = Followed::start(&registry);
    mark_surely(&registry, "kept").await;
    for n in 0..30 {
        mark_surely(&registry, &format!("before-{n}")).await;
    }
    block_in_place(|| cluster.member(0).save(&backup));
    mark_surely(&registry, "gone").await;
    followed.until("it follows", |f| f.has("gone")).await;

    for member in 0..3 {
        cluster.cut_clients_off(member);
    }
    block_in_place(|| cluster.restore(&backup));
    let direct = connect(cluster.endpoints()).await;
    for n in 0..10 {
        mark_surely(&direct, &format!("other-{n}")).await;
    }
    cluster.mend();
    followed
        .until("the other history", |f| f.has("other-0") && !f.has("gone"))
        .await;
    assert!(followed.has("kept") && followed.has("before-29"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_compares_with_a_revision_of_before_is_refused() {
    let Some(mut etcd) = block_in_place(|| Etcd::start_or_skip(&test())) else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let backup = folder.path().join("backup");
    let registry = connect(vec![etcd.endpoint()]).await;
    let store = registry.store();
    let first = committed(store, Txn::create("/k", "1")).await;
    block_in_place(|| etcd.save(&backup));
    let second = committed(store, Txn::update("/k", first, "2")).await;
    block_in_place(|| etcd.restore(&backup));
    let stale = async {
        loop {
            match store.commit(Txn::update("/k", second, "3")).await {
                Ok(outcome) => return outcome,
                Err(error) => assert!(error.is_outage(), "{error:?}"),
            }
        }
    };
    assert!(matches!(within(stale).await, Outcome::Conflict));
    committed(store, Txn::update("/k", first, "3")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_puts_itself_back_whatever_takes_it_away() {
    let Some(mut etcd) = block_in_place(|| Etcd::start_or_skip(&test())) else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let backup = folder.path().join("backup");
    let registry = connect(vec![etcd.endpoint()]).await;
    let mut followed = Followed::start(&registry);
    mark_surely(&registry, "first").await;
    block_in_place(|| etcd.save(&backup));

    let node = node("n1");
    within(registry.put_node(&node)).await.expect("it joins");
    let stop = CancellationToken::new();
    let kept = {
        let (registry, name, stop) = (registry.clone(), node.name.clone(), stop.clone());
        let grace = Duration::from_secs(60);
        tokio::spawn(async move { registry.keep_alive(name, TTL, grace, stop).await })
    };
    let (record, liveness) = (
        Key::Node(node.name.clone()),
        Key::Liveness(node.name.clone()),
    );
    let alive = |f: &Followed| f.catalog.alive.contains_key(&node.name);
    followed.until("it is alive", alive).await;

    // A lease that an operator revokes.
    let lease = block_in_place(|| etcd.ctl(&["lease", "list"]));
    let lease = lease.lines().last().expect("there is one").to_owned();
    block_in_place(|| etcd.ctl(&["lease", "revoke", &lease]));
    until_stored::<Liveness>(&registry, "alive under another lease", &liveness, |_| true).await;

    // Keys that somebody deletes.
    followed.until("it is alive", alive).await;
    for key in [&record, &liveness] {
        let path = registry.keys().path(key);
        block_in_place(|| etcd.ctl(&["del", &path]));
    }
    until_stored::<Liveness>(&registry, "its liveness is back", &liveness, |_| true).await;
    until_stored::<Node>(&registry, "its record is back", &record, |_| true).await;

    // A backup from before it joined.
    followed.until("it is alive", alive).await;
    block_in_place(|| etcd.restore(&backup));
    until_stored::<Liveness>(&registry, "its liveness is back", &liveness, |_| true).await;
    until_stored::<Node>(&registry, "its record is back", &record, |n| *n == node).await;
    followed.until("it is alive", alive).await;
    // The scenario is the passing of time: it stays so, under a lease that is renewed.
    tokio::time::sleep(TTL * 2).await;
    assert!(stored::<Liveness>(&registry, &liveness).await.is_some());
    let leases = block_in_place(|| etcd.ctl(&["lease", "list"]));
    assert!(leases.contains("found 1 leases"), "{leases}");

    stop.cancel();
    within(kept).await.expect("it ends");
    let left = stored::<Liveness>(&registry, &liveness).await;
    assert!(left.expect("for its grace").restarting_until.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_of_a_newer_version_costs_only_itself() {
    let Some(etcd) = block_in_place(|| Etcd::start_or_skip(&test())) else {
        return;
    };
    let registry = connect(vec![etcd.endpoint()]).await;
    let mut followed = Followed::start(&registry);
    mark_surely(&registry, "ours").await;
    followed.until("it follows", |f| f.has("ours")).await;
    let path = |node: &str| registry.keys().path(&Key::Mark(target(node)));
    let newer = r#"{"formatVersion":2,"targets":["ours"]}"#;
    block_in_place(|| etcd.ctl(&["put", &path("ours"), newer]));
    block_in_place(|| etcd.ctl(&["put", &path("theirs"), newer]));
    // A key of a layout that this version does not know.
    block_in_place(|| etcd.ctl(&["put", "/heddle/v1/looms/one", "{}"]));
    mark_surely(&registry, "after").await;
    followed.until("it goes on", |f| f.has("after")).await;
    assert_eq!(followed.bad.len(), 2, "{:?}", followed.bad);
    assert!(followed.has("ours"), "what it was before stays in force");
    assert!(!followed.has("theirs"));
    // Another listing, after a restart of etcd or of nothing at all, changes nothing of it.
    let mut fresh = Followed::start(&registry);
    fresh.until("it follows", |f| f.has("after")).await;
    assert_eq!(fresh.bad.len(), 2, "{:?}", fresh.bad);
    block_in_place(|| etcd.ctl(&["del", &path("ours")]));
    followed
        .until("the key is mended", |f| f.bad.len() == 1)
        .await;
    assert!(!followed.has("ours"));
}
