//! A cluster of three etcds whose members die, hang, and lose sight of each other.

#[path = "../../tests/support/etcd.rs"]
mod etcd_server;
#[path = "harness/followed.rs"]
mod followed;
#[macro_use]
mod harness;

use std::time::Duration;

use etcd_server::{Cluster, Options};
use followed::{Followed, mark, mark_surely};
use harness::{committed, next, next_changes, test, within};
use registry::Registry;
use registry::metrics::Resync;
use registry::store::{EtcdOptions, Op, Txn, WatchEvent};
use tokio::task::block_in_place;
use tokio_util::sync::CancellationToken;

/// Short, and longer than a renewal may be late.
const TTL: Duration = Duration::from_secs(3);

fn options(endpoints: Vec<String>) -> EtcdOptions {
    EtcdOptions {
        deadline: Duration::from_secs(3),
        connect_timeout: Duration::from_millis(500),
        keep_alive_interval: Duration::from_secs(5),
        keep_alive_timeout: Duration::from_secs(2),
        watch_probe_interval: Duration::from_millis(500),
        ..EtcdOptions::new(endpoints)
    }
}

/// A registry that asks the members in this order.
async fn connect(endpoints: Vec<String>) -> Registry {
    followed::connect(options(endpoints)).await
}

fn start(options: Options) -> Option<Cluster> {
    block_in_place(|| Cluster::start_or_skip_with(&test(), options))
}

/// The members' URLs, one of them first.
fn with_first(endpoints: Vec<String>, first: usize) -> Vec<String> {
    let mut endpoints = endpoints;
    endpoints.rotate_left(first);
    endpoints
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_killed_under_writes_loses_no_acknowledged_write() {
    let Some(mut cluster) = start(Options::default()) else {
        return;
    };
    let leader = block_in_place(|| cluster.leader());
    let registry = connect(with_first(cluster.endpoints(), leader)).await;
    let mut followed = Followed::begin(&registry).await;

    let (writer, killed) = (registry.clone(), CancellationToken::new());
    let writing = {
        let killed = killed.clone();
        tokio::spawn(async move {
            let (mut acknowledged, mut since) = (Vec::new(), 0);
            for n in 0.. {
                let node = format!("m{n}");
                if mark(&writer, &node).await.is_ok() {
                    acknowledged.push(node);
                    since += usize::from(killed.is_cancelled());
                }
                if since == 40 {
                    break;
                }
            }
            acknowledged
        })
    };
    followed.until("writes are seen", |f| f.has("m40")).await;
    block_in_place(|| cluster.member_mut(leader).kill());
    killed.cancel();
    let acknowledged = within(writing).await.expect("it writes");
    assert!(acknowledged.len() >= 80, "{}", acknowledged.len());
    mark_surely(&registry, "last").await;
    followed.until("the last write", |f| f.has("last")).await;
    for node in &acknowledged {
        assert!(followed.has(node), "{node} was acknowledged and is lost");
    }
    assert!(registry.metrics().failovers() >= 1);
    assert_eq!(
        registry.metrics().resyncs(Resync::Start),
        1,
        "the watch resumed at its revision"
    );
    // The dead one comes back and is as good as the others.
    block_in_place(|| cluster.member_mut(leader).restart());
    let other = (leader + 1) % 3;
    block_in_place(|| cluster.member_mut(other).kill());
    mark_surely(&registry, "once-more").await;
    followed.until("it goes on", |f| f.has("once-more")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_hangs_is_left_by_watch_and_lease() {
    let Some(cluster) = start(Options::default()) else {
        return;
    };
    let registry = connect(cluster.endpoints()).await;
    let mut followed = Followed::begin(&registry).await;
    let lease = within(registry.store().lease(TTL)).await.expect("a lease");
    let put = Op::Put {
        key: "/leased".into(),
        value: "".into(),
        lease: Some(lease.id()),
    };
    committed(registry.store(), Txn::new().then(put)).await;

    cluster.member(0).pause();
    // Written by somebody else, where all is well.
    let other = connect(vec![cluster.member(1).endpoint()]).await;
    mark_surely(&other, "second").await;
    followed.until("the watch moved", |f| f.has("second")).await;
    // The scenario is the passing of time: longer than the lease lives by itself.
    tokio::time::sleep(TTL * 2).await;
    assert!(!lease.lost().is_cancelled());
    let there = within(other.store().get("/leased")).await;
    assert!(there.expect("etcd answers").is_some(), "it was renewed");
    cluster.member(0).resume();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_cut_off_from_the_others_is_not_taken_for_alive() {
    let Some(cluster) = start(Options::default()) else {
        return;
    };
    // The leader, which would go on believing that it leads.
    let leader = block_in_place(|| cluster.leader());
    let registry = connect(with_first(cluster.endpoints(), leader)).await;
    let mut followed = Followed::begin(&registry).await;

    cluster.cut_off(leader);
    let others = connect(with_first(cluster.endpoints(), (leader + 1) % 3)).await;
    mark_surely(&others, "second").await;
    followed.until("the watch moved", |f| f.has("second")).await;
    mark_surely(&registry, "third").await;
    followed.until("writes go on", |f| f.has("third")).await;
    assert!(registry.metrics().failovers() >= 1);
    cluster.mend();
    // Back among the others, it serves what it missed.
    let back = connect(vec![cluster.member(leader).endpoint()]).await;
    let mut behind = Followed::start(&back);
    behind.until("it caught up", |f| f.has("third")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_swallows_everything_is_noticed() {
    let Some(cluster) = start(Options::default()) else {
        return;
    };
    let registry = connect(cluster.endpoints_by_relay()).await;
    let mut followed = Followed::begin(&registry).await;
    for member in 0..3 {
        cluster.cut_clients_off(member);
    }
    followed.until("the loss", |f| f.lost.is_some()).await;
    assert!(followed.has("first"), "an outage is not emptiness");
    let direct = connect(cluster.endpoints()).await;
    mark_surely(&direct, "second").await;
    cluster.mend();
    followed
        .until("it is back", |f| f.has("second") && f.lost.is_none())
        .await;
    assert_eq!(followed.losses, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_the_majority_is_a_loss_and_nothing_more() {
    let Some(mut cluster) = start(Options::default()) else {
        return;
    };
    let registry = connect(cluster.endpoints()).await;
    let mut followed = Followed::begin(&registry).await;
    let lease = within(registry.store().lease(TTL)).await.expect("a lease");

    block_in_place(|| {
        cluster.member_mut(1).kill();
        cluster.member_mut(2).kill();
    });
    followed.until("the loss", |f| f.lost.is_some()).await;
    // The scenario is the passing of time: many lease times, in which the last member is up and can't serve.
    tokio::time::sleep(TTL * 3).await;
    followed.catch_up();
    assert!(
        followed.lost.is_some(),
        "a member without a leader is no registry"
    );
    assert!(followed.has("first"), "an outage is not emptiness");
    assert!(mark(&registry, "during").await.is_err());

    block_in_place(|| cluster.restart_all());
    followed.until("it is back", |f| f.lost.is_none()).await;
    mark_surely(&registry, "second").await;
    followed
        .until("it follows again", |f| f.has("second"))
        .await;
    assert!(followed.has("first"));
    // etcd gives leases their time anew, or says that they are gone: the lease is never left in between.
    let renewed = tokio::time::timeout(TTL * 2, lease.lost().cancelled()).await;
    let listed = block_in_place(|| cluster.member(0).ctl(&["lease", "list"]));
    let there = listed.contains(&lease.id().to_string());
    assert_eq!(there, renewed.is_err(), "{listed}");
    assert_eq!(registry.metrics().resyncs(Resync::Start), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_deleted_and_compacted_while_away_leaves_no_ghosts() {
    let Some(cluster) = start(Options::default()) else {
        return;
    };
    let registry = connect(cluster.endpoints_by_relay()).await;
    let mut followed = Followed::start(&registry);
    for node in ["stays", "goes", "changes"] {
        mark_surely(&registry, node).await;
    }
    followed
        .until("it follows", |f| f.catalog.marks.size() == 3)
        .await;
    for member in 0..3 {
        cluster.cut_clients_off(member);
    }
    followed.until("the loss", |f| f.lost.is_some()).await;
    let direct = connect(cluster.endpoints()).await;
    within(direct.unmark(&followed::target("goes")))
        .await
        .expect("a delete");
    mark_surely(&direct, "comes").await;
    let now = within(direct.store().list("/heddle/"))
        .await
        .expect("a list");
    block_in_place(|| cluster.compact(now.revision));
    cluster.mend();
    followed
        .until("what happened meanwhile", |f| {
            f.has("comes") && !f.has("goes") && f.has("stays")
        })
        .await;
    assert!(registry.metrics().resyncs(Resync::Compacted) >= 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_prefix_is_not_compacted_past() {
    // etcd tells progress by itself every ten minutes; here it is quicker. Asked for, servers before 3.4.31 and 3.5.13
    // may tell it too early, so that from those it does not count.
    let quick = Options {
        args: vec!["--experimental-watch-progress-notify-interval=500ms".to_owned()],
        ..Options::default()
    };
    let Some(mut cluster) = start(quick) else {
        return;
    };
    let registry = connect(vec![cluster.member(0).endpoint()]).await;
    mark_surely(&registry, "first").await;
    let store = registry.store();
    let listed = within(store.list("/heddle/"))
        .await
        .expect("a list")
        .revision;
    let mut watch = within(store.watch("/heddle/", listed))
        .await
        .expect("a watch");
    let mut elsewhere = listed;
    for n in 0..20 {
        elsewhere = committed(store, Txn::create(format!("/elsewhere/{n}"), "")).await;
    }
    let mut resume = listed;
    while resume < elsewhere {
        match next(&mut watch).await {
            WatchEvent::Progress { revision } => resume = revision,
            other => panic!("nothing happened under the prefix: {other:?}"),
        }
    }
    block_in_place(|| {
        cluster.compact(elsewhere);
        cluster.member_mut(0).kill();
        cluster.member_mut(0).restart();
    });
    let resumed = async {
        loop {
            match store.watch("/heddle/", resume).await {
                Ok(watch) => return watch,
                Err(error) => assert!(error.is_outage(), "{error:?}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let mut watch = within(resumed).await;
    mark_surely(&registry, "second").await;
    assert_eq!(next_changes(&mut watch).await.1.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_reaches_the_watch_without_delay_of_ours() {
    let Some(cluster) = start(Options::default()) else {
        return;
    };
    let registry = connect(cluster.endpoints()).await;
    let store = registry.store();
    let start = committed(store, Txn::create("/k", "")).await;
    let mut watch = within(store.watch("/k", start)).await.expect("a watch");
    let mut before = start;
    for _ in 0..50 {
        // One after the other: an event that waited for the next one, or for a timer, would show as a time-out here.
        before = committed(store, Txn::update("/k", before, "")).await;
        let (revision, _) = next_changes(&mut watch).await;
        assert_eq!(revision, before);
    }
    assert_eq!(registry.metrics().calls("commit", "ok"), 51);
}
