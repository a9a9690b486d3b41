//! What the etcd backend promises beyond the contract: outages end, and nothing hangs.

#[path = "../../tests/support/etcd.rs"]
mod etcd_server;
mod harness;

use std::sync::Arc;
use std::time::{Duration, Instant};

use etcd_server::Etcd;
use harness::{PATIENCE, committed, next_changes, within};
use registry::store::{EtcdOptions, EtcdStore, Op, Retry, Store, StoreError, Txn, WatchEvent};
use tokio::net::TcpListener;
use tokio::task::block_in_place;

/// Short, so that tests of hanging servers are; and longer than an etcd on a busy disk takes for a write.
const DEADLINE: Duration = Duration::from_secs(2);
/// Longer than a renewal may be late.
const TTL: Duration = Duration::from_secs(2);

fn options(endpoints: impl IntoIterator<Item = String>) -> EtcdOptions {
    EtcdOptions {
        deadline: DEADLINE,
        connect_timeout: Duration::from_secs(1),
        watch_probe_interval: Duration::from_millis(300),
        ..EtcdOptions::new(endpoints)
    }
}

async fn connect(endpoints: impl IntoIterator<Item = String>) -> Arc<dyn Store> {
    Arc::new(
        EtcdStore::connect(options(endpoints))
            .await
            .expect("the options are good"),
    )
}

/// A running etcd and a store in it, or a note that the test is skipped.
async fn start() -> Option<(Etcd, Arc<dyn Store>)> {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let etcd = block_in_place(|| Etcd::start_or_skip(&test))?;
    let store = connect([etcd.endpoint()]).await;
    Some((etcd, store))
}

/// A server that accepts connections and never says a word.
async fn mute_server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
        }
    });
    format!("http://{address}")
}

/// An address where nothing listens.
async fn closed_port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// Tries again until the store answers.
async fn answers(store: &Arc<dyn Store>) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = store.get("/probe").await {
        assert!(error.is_outage(), "{error:?}");
        assert!(Instant::now() < deadline, "still {error:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connecting_does_not_wait_for_etcd() {
    let store = connect([closed_port().await]).await;
    let error = store
        .commit(Txn::create("/k", ""))
        .await
        .expect_err("nobody is there");
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
    assert_eq!(error.retry(), Retry::Safe, "nothing was sent");
    assert!(
        store
            .list("/")
            .await
            .expect_err("nobody is there")
            .is_outage()
    );
    assert!(
        store
            .watch("/", 0)
            .await
            .expect_err("nobody is there")
            .is_outage()
    );
    let lease = store.lease(Duration::from_secs(1)).await;
    assert!(lease.expect_err("nobody is there").is_outage());
}

#[tokio::test]
async fn endpoints_that_cannot_work_are_named() {
    for (endpoints, named) in [
        (vec![], "[]"),
        (vec!["ftp://127.0.0.1:2379".to_owned()], "ftp://127.0.0.1"),
        (vec!["http://[::1".to_owned()], "http://[::1"),
    ] {
        let error = EtcdStore::connect(EtcdOptions::new(endpoints))
            .await
            .expect_err(named);
        assert!(matches!(error, StoreError::Config { .. }), "{error:?}");
        assert!(error.to_string().contains(named), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_is_killed_and_comes_back_is_used_again() {
    let Some((mut etcd, store)) = start().await else {
        return;
    };
    let before = committed(&store, Txn::create("/before", "")).await;
    let mut watch = store.watch("/", before).await.unwrap();

    block_in_place(|| etcd.kill());
    let asked = Instant::now();
    let error = store
        .commit(Txn::create("/during", ""))
        .await
        .expect_err("it is dead");
    assert!(error.is_outage(), "{error:?}");
    assert!(asked.elapsed() < DEADLINE * 2);
    let error = loop {
        match within(watch.next()).await {
            Ok(event) => assert!(matches!(event, WatchEvent::Progress { .. })),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");

    block_in_place(|| etcd.restart());
    answers(&store).await;
    let after = committed(&store, Txn::create("/after", "")).await;
    let mut resumed = store.watch("/", before).await.unwrap();
    assert_eq!(next_changes(&mut resumed).await.0, after);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_broke_while_idle_costs_no_error() {
    let Some((mut etcd, store)) = start().await else {
        return;
    };
    committed(&store, Txn::create("/k", "1")).await;
    block_in_place(|| {
        etcd.stop();
        etcd.restart();
    });
    assert_eq!(
        store.get("/k").await.unwrap().expect("it is there").value,
        "1"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_to_an_etcd_that_hangs_end_at_the_deadline() {
    let Some((etcd, store)) = start().await else {
        return;
    };
    let revision = committed(&store, Txn::create("/k", "")).await;
    let mut watch = store.watch("/", revision).await.unwrap();
    etcd.pause();
    let asked = Instant::now();
    let error = store
        .commit(Txn::create("/during", ""))
        .await
        .expect_err("it hangs");
    assert!(
        matches!(error, StoreError::DeadlineExceeded { .. }),
        "{error:?}"
    );
    assert_eq!(error.retry(), Retry::ReadFirst);
    assert!(
        asked.elapsed() >= DEADLINE && asked.elapsed() < DEADLINE * 2,
        "{:?}",
        asked.elapsed()
    );
    assert!(store.list("/").await.expect_err("it hangs").is_outage());
    assert!(store.watch("/", 0).await.expect_err("it hangs").is_outage());
    // A watch notices too, although its connection is still open, and by asking: long before an
    // HTTP/2 ping would have shown it.
    let asked = Instant::now();
    assert!(
        within(watch.next())
            .await
            .expect_err("it hangs")
            .is_outage()
    );
    assert!(asked.elapsed() < DEADLINE * 3, "{:?}", asked.elapsed());
    etcd.resume();
    answers(&store).await;
    committed(&store, Txn::new().then(Op::put("/k", ""))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_watch_stays() {
    let Some((_etcd, store)) = start().await else {
        return;
    };
    let revision = committed(&store, Txn::create("/elsewhere", "")).await;
    let mut watch = store.watch("/k/", revision).await.unwrap();
    // The scenario is the passing of time: several probes, each within its deadline.
    let quiet = (DEADLINE + Duration::from_millis(300)) * 3;
    if let Ok(event) = tokio::time::timeout(quiet, watch.next()).await {
        panic!("nothing happened, yet {event:?}");
    }
    let revision = committed(&store, Txn::create("/k/1", "")).await;
    assert_eq!(next_changes(&mut watch).await.0, revision);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_down_is_passed_over() {
    let Some((etcd, _)) = start().await else {
        return;
    };
    let store = connect([closed_port().await, closed_port().await, etcd.endpoint()]).await;
    // Writes too: where no connection is made nothing is sent.
    let revision = committed(&store, Txn::create("/k", "")).await;
    let mut watch = store.watch("/", 0).await.unwrap();
    assert_eq!(next_changes(&mut watch).await.0, revision);
    store
        .lease(Duration::from_secs(5))
        .await
        .unwrap()
        .revoke()
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_hangs_costs_one_wait() {
    let Some((etcd, _)) = start().await else {
        return;
    };
    let reader = connect([mute_server().await, etcd.endpoint()]).await;
    reader
        .list("/")
        .await
        .expect("within the deadline the other member answers");
    let asked = Instant::now();
    reader.list("/").await.expect("it is still the other one");
    assert!(asked.elapsed() < DEADLINE / 2);

    // A write that may have been sent is not sent again.
    let writer = connect([mute_server().await, etcd.endpoint()]).await;
    let error = writer
        .commit(Txn::create("/k", ""))
        .await
        .expect_err("it hangs");
    assert_eq!(error.retry(), Retry::ReadFirst);
    committed(&writer, Txn::create("/k", "")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_outlasts_an_outage_longer_than_itself() {
    let Some((mut etcd, store)) = start().await else {
        return;
    };
    let lease = store.lease(TTL).await.unwrap();
    let put = Op::Put {
        key: "/k".into(),
        value: "".into(),
        lease: Some(lease.id()),
    };
    committed(&store, Txn::new().then(put)).await;
    block_in_place(|| etcd.kill());
    // The scenario is the passing of time, here and below.
    tokio::time::sleep(lease.ttl() * 3).await;
    block_in_place(|| etcd.restart());
    tokio::time::sleep(lease.ttl() * 3).await;
    answers(&store).await;
    assert!(
        store.get("/k").await.unwrap().is_some(),
        "etcd counts anew, and it is renewed"
    );
    assert!(!lease.lost().is_cancelled());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_ended_during_an_outage_is_lost() {
    let Some((mut etcd, store)) = start().await else {
        return;
    };
    let lease = store.lease(TTL).await.unwrap();
    block_in_place(|| etcd.revoke_lease(lease.id().0));
    block_in_place(|| {
        etcd.kill();
        etcd.restart();
    });
    within(lease.lost().cancelled()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compaction_while_away_is_told() {
    let Some((etcd, store)) = start().await else {
        return;
    };
    let first = committed(&store, Txn::create("/k", "1")).await;
    let second = committed(&store, Txn::update("/k", first, "2")).await;
    let third = committed(&store, Txn::update("/k", second, "3")).await;
    block_in_place(|| etcd.compact(third));
    let error = match store.watch("/k", 0).await {
        Ok(mut watch) => within(watch.next()).await.expect_err("that past is gone"),
        Err(error) => error,
    };
    let StoreError::Compacted { revision } = error else {
        panic!("{error:?}")
    };
    assert_eq!(revision, second);
    assert_eq!(
        store.get("/k").await.unwrap().expect("it is there").value,
        "3"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_etcd_says_so() {
    let Some((etcd, store)) = start().await else {
        return;
    };
    committed(&store, Txn::create("/k", "")).await;
    block_in_place(|| etcd.raise_no_space_alarm());
    let error = store
        .commit(Txn::create("/more", ""))
        .await
        .expect_err("the alarm is on");
    assert!(matches!(error, StoreError::NoSpace { .. }), "{error:?}");
    assert!(store.get("/k").await.unwrap().is_some(), "reads go on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_of_somebody_else_hides_nothing() {
    let Some((etcd, store)) = start().await else {
        return;
    };
    let start = committed(&store, Txn::create("/a", "")).await;
    let mut watch = store.watch("/", start).await.unwrap();
    let mut client = etcd_client::Client::connect([etcd.endpoint()], None)
        .await
        .unwrap();
    client
        .put(b"/\xff\xfe".to_vec(), "binary", None)
        .await
        .unwrap();
    let revision = committed(&store, Txn::create("/b", "")).await;
    let keys: Vec<_> = store
        .list("")
        .await
        .unwrap()
        .entries
        .into_iter()
        .map(|e| e.key)
        .collect();
    assert_eq!(keys, ["/a", "/b"]);
    assert_eq!(next_changes(&mut watch).await.0, revision);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_that_is_too_large_is_asked_for_in_parts() {
    let Some((etcd, store)) = start().await else {
        return;
    };
    for n in 0..80 {
        committed(&store, Txn::create(format!("/{n:02}"), vec![n; 1 << 20])).await;
    }
    // 80 MiB in one page of a thousand keys are more than is accepted in one answer.
    let options = EtcdOptions {
        deadline: PATIENCE,
        ..options([etcd.endpoint()])
    };
    let store = EtcdStore::connect(options).await.unwrap();
    let entries = store.list("/").await.unwrap().entries;
    assert_eq!(entries.len(), 80);
    assert!(
        entries
            .iter()
            .enumerate()
            .all(|(n, e)| e.value == vec![n as u8; 1 << 20])
    );
}
