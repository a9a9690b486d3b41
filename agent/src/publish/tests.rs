use model::endpoint::{Endpoint, Fact, Health, Lifecycle};
use registry::layout::Key;
use registry::store::{EmbeddedOptions, EmbeddedStore, Limits, Op, Txn};

use super::*;

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

fn key(text: &str) -> ServiceKey {
    text.parse().expect("a key")
}

fn slice(service: &str, endpoints: usize) -> Slice {
    let endpoint = |n: usize| Endpoint {
        workload: format!("w{n:04}").into(),
        name: "web".into(),
        port: name("http"),
        generation: "1".into(),
        local: vec!["172.17.0.2:80".parse().expect("an address")],
        remote: Vec::new(),
        weight: 1,
        zone: None,
        hostname: None,
        health: Fact::new(Health::Passing, Timestamp(1), "passes"),
        lifecycle: Fact::new(Lifecycle::Running, Timestamp(1), ""),
    };
    Slice {
        service: key(service),
        node: name("n1"),
        endpoints: (0..endpoints).map(|n| Arc::new(endpoint(n))).collect(),
    }
}

fn wish(book: &mut Book, service: &str, endpoints: usize) -> bool {
    let slice = (endpoints > 0).then(|| Arc::new(slice(service, endpoints)));
    book.wish(&key(service), slice, Pace::Soon)
}

#[test]
fn what_is_published_already_is_not_written_again() {
    let mut book = Book::default();
    wish(&mut book, "shop/web", 1);
    let there = Arc::new(slice("shop/web", 1));
    assert!(!book.observe(&key("shop/web"), Some(&there), 5));
    assert!(book.take(Limits::DEFAULT).is_empty());
}

#[test]
fn only_the_newest_wish_is_written() {
    let mut book = Book::default();
    for endpoints in [1, 2, 3] {
        wish(&mut book, "shop/web", endpoints);
    }
    let jobs = book.take(Limits::DEFAULT);
    assert_eq!(jobs.len(), 1);
    assert_eq!(jobs[0].slice.as_deref(), Some(&slice("shop/web", 3)));
    assert_eq!(
        jobs[0].replaces,
        Some(None),
        "nobody has said that there is anything"
    );
    book.failed(jobs);
    let jobs = book.take(Limits::DEFAULT);
    assert_eq!(
        jobs[0].replaces, None,
        "after a conflict the revision has to be read"
    );
}

#[test]
fn a_wish_during_a_write_is_written_after_it_with_its_revision() {
    let mut book = Book::default();
    wish(&mut book, "shop/web", 1);
    let jobs = book.take(Limits::DEFAULT);
    wish(&mut book, "shop/web", 2);
    assert!(book.take(Limits::DEFAULT).is_empty(), "one write at a time");
    book.committed(jobs, 7, &HashMap::new());
    let jobs = book.take(Limits::DEFAULT);
    assert_eq!(jobs[0].slice.as_deref(), Some(&slice("shop/web", 2)));
    assert_eq!(jobs[0].replaces, Some(Some(7)));
}

#[test]
fn an_echo_of_an_older_write_is_not_taken_for_somebody_elses() {
    let mut book = Book::default();
    for (endpoints, revision) in [(1, 5), (2, 6)] {
        wish(&mut book, "shop/web", endpoints);
        let jobs = book.take(Limits::DEFAULT);
        book.committed(jobs, revision, &HashMap::new());
    }
    assert!(!book.observe(&key("shop/web"), Some(&Arc::new(slice("shop/web", 1))), 5));
    assert!(!book.observe(&key("shop/web"), Some(&Arc::new(slice("shop/web", 2))), 6));
    assert!(
        book.observe(&key("shop/web"), None, 7),
        "somebody deleted it"
    );
    assert_eq!(
        book.take(Limits::DEFAULT)[0].slice.as_deref(),
        Some(&slice("shop/web", 2))
    );
}

#[test]
fn what_others_do_right_after_a_write_is_put_right_though_it_is_seen_before_the_answer() {
    let mut book = Book::default();
    let (mine, theirs) = (
        Arc::new(slice("shop/web", 1)),
        Arc::new(slice("shop/web", 5)),
    );
    for (revision, seen) in [(7, None), (9, Some(&theirs))] {
        wish(&mut book, "shop/web", 1);
        let jobs = book.take(Limits::DEFAULT);
        // Its own echo, and what came after it.
        assert!(!book.observe(&key("shop/web"), Some(&mine), revision));
        assert!(!book.observe(&key("shop/web"), seen, revision + 1));
        book.committed(jobs, revision, &HashMap::new());
        let jobs = book.take(Limits::DEFAULT);
        assert_eq!(jobs[0].slice.as_ref(), Some(&mine));
        book.committed(jobs, revision + 2, &HashMap::new());
        assert!(book.take(Limits::DEFAULT).is_empty());
        assert_eq!(book.waiting(), 0);
        book = Book::default();
    }
    // Its echo alone is nothing to put right, nor is what it replaced.
    wish(&mut book, "shop/web", 1);
    let jobs = book.take(Limits::DEFAULT);
    assert!(!book.observe(&key("shop/web"), Some(&theirs), 6));
    assert!(!book.observe(&key("shop/web"), Some(&mine), 7));
    // Others' records come and go, and raise the registry's revision.
    assert!(!book.observe(&key("shop/web"), Some(&mine), 8));
    book.committed(jobs, 7, &HashMap::new());
    assert!(book.take(Limits::DEFAULT).is_empty());
    wish(&mut book, "shop/web", 2);
    let jobs = book.take(Limits::DEFAULT);
    assert_eq!(jobs[0].replaces, Some(Some(7)), "it needs no reading");
}

#[test]
fn urgent_slices_go_first_and_batches_hold_to_the_limits() {
    let mut book = Book::default();
    for n in 0..200 {
        wish(&mut book, &format!("shop/s{n:03}"), 1);
    }
    let urgent = Some(Arc::new(slice("shop/zz", 1)));
    book.wish(&key("shop/zz"), urgent, Pace::Now);
    let jobs = book.take(Limits::DEFAULT);
    assert_eq!(jobs.len(), Limits::DEFAULT.max_ops_per_txn);
    assert_eq!(jobs[0].service, key("shop/zz"));
    let mut large = Book::default();
    for n in 0..3 {
        wish(&mut large, &format!("shop/s{n}"), 700);
    }
    assert_eq!(large.take(Limits::DEFAULT).len(), 1);
}

#[test]
fn a_refused_slice_waits_and_holds_up_nobody() {
    let mut book = Book::default();
    wish(&mut book, "shop/bad", 1);
    let jobs = book.take(Limits::DEFAULT);
    book.refused(jobs, Duration::from_secs(30));
    wish(&mut book, "shop/good", 1);
    let jobs = book.take(Limits::DEFAULT);
    assert_eq!(jobs.len(), 1);
    assert_eq!(jobs[0].service, key("shop/good"));
    assert!(
        wish(&mut book, "shop/bad", 2),
        "another wish may fare better"
    );
    assert_eq!(book.take(Limits::DEFAULT).len(), 1);
}

struct Setup {
    registry: Registry,
    publisher: Arc<Publisher>,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
    _folder: tempfile::TempDir,
}

fn setup() -> Setup {
    let folder = tempfile::tempdir().expect("a folder");
    let store = EmbeddedStore::open(folder.path().join("store"), EmbeddedOptions::default())
        .expect("a store");
    let registry = Registry::new(Arc::new(store), "/heddle");
    let publisher = Publisher::new(registry.clone(), name("n1"), Metrics::new());
    let shutdown = CancellationToken::new();
    Setup {
        task: tokio::spawn(publisher.clone().run(shutdown.clone())),
        registry,
        publisher,
        shutdown,
        _folder: folder,
    }
}

impl Setup {
    fn path(&self, service: &str) -> String {
        self.registry
            .keys()
            .path(&Key::Slice(key(service), name("n1")))
    }

    async fn stored(&self, service: &str) -> Option<Slice> {
        let entry = self
            .registry
            .store()
            .get(&self.path(service))
            .await
            .expect("a store");
        entry.map(|entry| registry::record::decode(&entry.value).expect("a slice"))
    }

    async fn until_waiting(&self, expected: usize) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.publisher.status().waiting != expected {
            assert!(Instant::now() < deadline, "never {expected} waiting");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn until_stored(&self, service: &str, expected: Option<Slice>) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.stored(service).await != expected {
            assert!(
                Instant::now() < deadline,
                "{service} never became {expected:?}"
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

#[tokio::test]
async fn slices_come_change_and_go_with_their_wishes() {
    let setup = setup();
    for endpoints in [1, 3, 2] {
        let wanted = slice("shop/web", endpoints);
        setup
            .publisher
            .wish(&key("shop/web"), Some(Arc::new(wanted.clone())), Pace::Soon);
        setup.until_stored("shop/web", Some(wanted)).await;
    }
    setup.publisher.wish(&key("shop/web"), None, Pace::Now);
    setup.until_stored("shop/web", None).await;
    setup.shutdown.cancel();
    setup.task.await.expect("it ends");
}

#[tokio::test]
async fn what_an_earlier_process_left_is_replaced() {
    let setup = setup();
    let old = registry::record::encode(&slice("shop/web", 5));
    let txn = Txn::new().then(Op::put(setup.path("shop/web"), old));
    setup.registry.store().commit(txn).await.expect("a write");
    let wanted = slice("shop/web", 1);
    setup
        .publisher
        .wish(&key("shop/web"), Some(Arc::new(wanted.clone())), Pace::Soon);
    setup.until_stored("shop/web", Some(wanted)).await;
}

#[tokio::test]
async fn somebody_elses_write_in_between_is_a_conflict_that_is_put_right() {
    let setup = setup();
    setup.publisher.wish(
        &key("shop/web"),
        Some(Arc::new(slice("shop/web", 1))),
        Pace::Soon,
    );
    setup
        .until_stored("shop/web", Some(slice("shop/web", 1)))
        .await;
    let txn = Txn::new().then(Op::delete(setup.path("shop/web")));
    setup.registry.store().commit(txn).await.expect("a write");
    let wanted = slice("shop/web", 2);
    setup
        .publisher
        .wish(&key("shop/web"), Some(Arc::new(wanted.clone())), Pace::Soon);
    setup.until_stored("shop/web", Some(wanted)).await;
    assert!(
        setup
            .publisher
            .metrics
            .slice_writes
            .with_label_values(&["conflict"])
            .get()
            >= 1
    );
}

#[tokio::test]
async fn one_slice_that_is_too_large_does_not_hold_up_the_others() {
    let setup = setup();
    let mut large = slice("shop/large", 1);
    let mut endpoint = Endpoint::clone(&large.endpoints[0]);
    endpoint.name = "x".repeat(Limits::DEFAULT.max_value_bytes).into();
    large.endpoints = vec![Arc::new(endpoint)];
    setup
        .publisher
        .wish(&key("shop/large"), Some(Arc::new(large)), Pace::Soon);
    setup.publisher.wish(
        &key("shop/web"),
        Some(Arc::new(slice("shop/web", 1))),
        Pace::Soon,
    );
    setup
        .until_stored("shop/web", Some(slice("shop/web", 1)))
        .await;
    // The store has it a moment before the publisher has heard so.
    setup.until_waiting(1).await;
}

#[tokio::test]
async fn what_waits_is_written_at_shutdown() {
    let setup = setup();
    setup.publisher.wish(
        &key("shop/web"),
        Some(Arc::new(slice("shop/web", 1))),
        Pace::Soon,
    );
    setup.shutdown.cancel();
    let publisher = setup.publisher.clone();
    let stored = setup.path("shop/web");
    let registry = setup.registry.clone();
    setup.task.await.expect("it ends");
    assert_eq!(publisher.status().waiting, 0);
    assert!(
        registry
            .store()
            .get(&stored)
            .await
            .expect("a store")
            .is_some()
    );
}

#[test]
fn after_a_restore_nothing_that_was_known_of_the_registry_counts() {
    let mut book = Book::default();
    for service in ["shop/web", "shop/api"] {
        wish(&mut book, service, 2);
        let jobs = book.take(Limits::DEFAULT);
        book.committed(jobs, 90, &HashMap::new());
    }
    let old = Arc::new(slice("shop/web", 1));
    assert!(
        !book.observe(&key("shop/web"), Some(&old), 40),
        "the catalog is behind"
    );
    book.doubt_all();
    assert!(book.observe(&key("shop/web"), Some(&old), 40));
    let jobs = book.take(Limits::DEFAULT);
    assert_eq!(jobs.len(), 2);
    assert!(
        jobs.iter().all(|job| job.replaces.is_none()),
        "they are read before they are replaced"
    );
    book.committed(jobs, 41, &HashMap::from([(key("shop/api"), 12)]));
    wish(&mut book, "shop/api", 3);
    wish(&mut book, "shop/web", 3);
    let jobs = book.take(Limits::DEFAULT);
    let replaces: Vec<_> = jobs.iter().map(|job| job.replaces).collect();
    assert_eq!(replaces, [Some(Some(12)), Some(Some(41))]);
}

#[tokio::test]
async fn what_is_there_as_wished_is_not_written_again() {
    let setup = setup();
    let wanted = slice("shop/web", 2);
    let txn = Txn::new().then(Op::put(
        setup.path("shop/web"),
        registry::record::encode(&wanted),
    ));
    setup.registry.store().commit(txn).await.expect("a write");
    let revision = setup
        .registry
        .store()
        .list("")
        .await
        .expect("a list")
        .revision;
    setup
        .publisher
        .wish(&key("shop/web"), Some(Arc::new(wanted)), Pace::Soon);
    setup.until_waiting(0).await;
    let after = setup
        .registry
        .store()
        .list("")
        .await
        .expect("a list")
        .revision;
    assert_eq!(after, revision);
}

#[tokio::test(start_paused = true)]
async fn a_lazy_wish_is_written_with_the_next_or_after_a_second() {
    let mut book = Book::default();
    wish(&mut book, "shop/web", 2);
    let jobs = book.take(Limits::DEFAULT);
    book.committed(jobs, 5, &HashMap::new());
    let lazy = |book: &mut Book, endpoints: usize| {
        let slice = (endpoints > 0).then(|| Arc::new(slice("shop/web", endpoints)));
        book.wish(&key("shop/web"), slice, Pace::Lazy)
    };
    // One goes, another comes, and that is ready.
    assert!(lazy(&mut book, 0));
    assert!(lazy(&mut book, 1));
    assert!(book.take(Limits::DEFAULT).is_empty());
    wish(&mut book, "shop/web", 3);
    let jobs = book.take(Limits::DEFAULT);
    assert_eq!(jobs[0].slice.as_deref(), Some(&slice("shop/web", 3)));
    // During a write too, and what came before it in haste stays in haste.
    lazy(&mut book, 1);
    book.committed(jobs, 6, &HashMap::new());
    assert!(book.take(Limits::DEFAULT).is_empty());
    let now = Instant::now();
    let due = book.ready_at(now).expect("it waits");
    assert!(due <= now + Duration::from_secs(1));
    lazy(&mut book, 0);
    assert_eq!(book.ready_at(now), Some(due), "no longer for more of them");
    tokio::time::sleep_until(due).await;
    let jobs = book.take(Limits::DEFAULT);
    assert_eq!(jobs[0].slice, None, "a second after the first of them");
    book.committed(jobs, 7, &HashMap::new());
    wish(&mut book, "shop/web", 1);
    lazy(&mut book, 2);
    let jobs = book.take(Limits::DEFAULT);
    assert_eq!(jobs[0].slice.as_deref(), Some(&slice("shop/web", 2)));
    // What failed to be written is not gathered again.
    lazy(&mut book, 1);
    book.failed(jobs);
    let jobs = book.take(Limits::DEFAULT);
    assert_eq!(jobs.len(), 1);
    book.committed(jobs, 8, &HashMap::new());
    lazy(&mut book, 0);
    book.hurry();
    assert_eq!(book.take(Limits::DEFAULT).len(), 1, "at shutdown");
}
