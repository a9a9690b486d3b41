use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use model::catalog::Catalog;
use model::name::Name;
use model::time::Timestamp;
use model::{Mark, MarkTarget};
use tokio::sync::Notify;

use super::*;
use crate::metrics::Metrics;
use crate::store::watch::WatchSource;
use crate::store::{
    EmbeddedOptions, EmbeddedStore, Lease, Limits, Listing, Outcome, Txn, Watch, WatchEvent,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// A store whose watches lose events and break when they are told to.
struct Flawed {
    store: EmbeddedStore,
    flaws: Arc<Flaws>,
}

#[derive(Default)]
struct Flaws {
    loses: AtomicBool,
    breaks: Notify,
    /// Whether a watch can be made.
    refuses: AtomicBool,
}

struct FlawedWatch {
    watch: Watch,
    flaws: Arc<Flaws>,
}

fn outage() -> StoreError {
    StoreError::Unavailable {
        address: "here".to_owned(),
        sent: true,
        source: "told to fail".into(),
    }
}

#[async_trait]
impl WatchSource for FlawedWatch {
    async fn next(&mut self) -> Result<WatchEvent, StoreError> {
        loop {
            let event = tokio::select! {
                event = self.watch.next() => event?,
                () = self.flaws.breaks.notified() => return Err(outage()),
            };
            let lost = matches!(event, WatchEvent::Changes { .. })
                && self.flaws.loses.load(Ordering::SeqCst);
            if !lost {
                return Ok(event);
            }
        }
    }
}

#[async_trait]
impl Store for Flawed {
    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.store.list(prefix).await
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.store.get(key).await
    }

    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        self.store.commit(txn).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        if self.flaws.refuses.load(Ordering::SeqCst) {
            return Err(outage());
        }
        Ok(Watch::new(FlawedWatch {
            watch: self.store.watch(prefix, after).await?,
            flaws: self.flaws.clone(),
        }))
    }

    async fn lease(&self, ttl: Duration) -> Result<Lease, StoreError> {
        self.store.lease(ttl).await
    }

    fn limits(&self) -> Limits {
        self.store.limits()
    }

    fn name(&self) -> &'static str {
        "flawed"
    }
}

struct Setup {
    registry: Registry,
    flaws: Arc<Flaws>,
    updates: mpsc::Receiver<Update>,
    catalog: Catalog,
    losses: usize,
    _stop: tokio_util::sync::DropGuard,
    _folder: tempfile::TempDir,
}

fn store() -> (EmbeddedStore, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("store");
    let store = EmbeddedStore::open(path, EmbeddedOptions::default()).expect("a store");
    (store, folder)
}

fn setup(resync: Duration) -> Setup {
    let (store, folder) = store();
    let flaws = Arc::new(Flaws::default());
    let flawed = Flawed {
        store,
        flaws: flaws.clone(),
    };
    let registry = Registry::new(Arc::new(flawed), "/heddle").measured(Metrics::new());
    let options = FollowOptions {
        resync,
        max_backoff: Duration::from_millis(200),
        ..FollowOptions::default()
    };
    let (out, updates) = mpsc::channel(64);
    let stop = CancellationToken::new();
    tokio::spawn(Follower::new(registry.clone(), options).run(out, stop.clone()));
    Setup {
        registry,
        flaws,
        updates,
        catalog: Catalog::default(),
        losses: 0,
        _stop: stop.drop_guard(),
        _folder: folder,
    }
}

fn target(node: &str) -> MarkTarget {
    MarkTarget::Node {
        name: Name::new(node).expect("a name"),
    }
}

fn mark(node: &str, reason: &str) -> Mark {
    Mark {
        target: target(node),
        since: Timestamp(1),
        reason: reason.to_owned(),
    }
}

impl Setup {
    async fn mark(&self, node: &str, reason: &str) {
        let mark = mark(node, reason);
        self.registry.mark(&mark).await.expect("a write");
    }

    async fn unmark(&self, node: &str) {
        assert!(self.registry.unmark(&target(node)).await.expect("a write"));
    }

    async fn until(&mut self, what: &str, so: impl Fn(&Setup) -> bool) {
        while !so(self) {
            let update = tokio::time::timeout(PATIENCE, self.updates.recv()).await;
            match update.unwrap_or_else(|_| panic!("not in time: {what}")) {
                Some(Update::Changes { changes, .. }) => {
                    for change in changes {
                        self.catalog.apply(change);
                    }
                }
                Some(Update::Lost { .. }) => self.losses += 1,
                None => panic!("the follower ended"),
            }
        }
    }

    fn reason(&self, node: &str) -> Option<String> {
        let mark = self.catalog.marks.get(&target(node));
        mark.map(|mark| mark.reason.clone())
    }

    async fn until_compared(&self, more: u64) {
        let wanted = self.registry.metrics().resyncs(Resync::Periodic) + more;
        let deadline = Instant::now() + PATIENCE;
        while self.registry.metrics().resyncs(Resync::Periodic) < wanted {
            assert!(Instant::now() < deadline, "no comparison is made");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

#[tokio::test]
async fn an_event_that_was_lost_is_found_by_comparing() {
    let mut setup = setup(Duration::from_millis(100));
    for node in ["stays", "changes", "goes"] {
        setup.mark(node, "before").await;
    }
    setup
        .until("what is there", |s| s.catalog.marks.size() == 3)
        .await;
    let commits = |s: &Setup| s.registry.metrics().calls("commit", "ok");
    setup.flaws.loses.store(true, Ordering::SeqCst);
    setup.mark("changes", "after").await;
    setup.mark("comes", "after").await;
    setup.unmark("goes").await;
    let written = commits(&setup);
    setup
        .until("what was lost", |s| {
            s.reason("changes").as_deref() == Some("after")
                && s.reason("comes").is_some()
                && s.reason("goes").is_none()
        })
        .await;
    assert_eq!(setup.reason("stays").as_deref(), Some("before"));
    assert!(setup.registry.metrics().healed() >= 3);
    assert_eq!(commits(&setup), written, "comparing writes nothing");
    // Nothing of it is told again by a watch that works.
    setup.flaws.loses.store(false, Ordering::SeqCst);
    setup.mark("last", "after").await;
    setup
        .until("what the watch tells", |s| s.reason("last").is_some())
        .await;
    assert_eq!(setup.losses, 0);
}

#[tokio::test]
async fn comparing_tells_nothing_where_nothing_differs() {
    let mut setup = setup(Duration::from_millis(20));
    setup.mark("one", "drained").await;
    setup
        .until("what is there", |s| s.catalog.marks.size() == 1)
        .await;
    setup.until_compared(5).await;
    assert!(
        setup.updates.try_recv().is_err(),
        "there was nothing to tell"
    );
    assert_eq!(setup.registry.metrics().healed(), 0);
}

#[tokio::test]
async fn a_watch_that_breaks_while_another_can_be_made_is_no_loss() {
    let mut setup = setup(Duration::from_secs(60));
    setup.mark("one", "drained").await;
    setup
        .until("what is there", |s| s.catalog.marks.size() == 1)
        .await;
    // The scenario is the passing of time: the watch is an old one.
    tokio::time::sleep(Duration::from_millis(300)).await;
    setup.flaws.breaks.notify_one();
    setup.mark("two", "drained").await;
    setup
        .until("what comes after", |s| s.catalog.marks.size() == 2)
        .await;
    assert_eq!((setup.losses, setup.registry.metrics().losses()), (0, 0));
    assert_eq!(setup.registry.metrics().resyncs(Resync::Start), 1);
}

#[tokio::test]
async fn a_watch_that_breaks_for_good_is_a_loss_told_once() {
    let mut setup = setup(Duration::from_secs(60));
    setup.mark("one", "drained").await;
    setup
        .until("what is there", |s| s.catalog.marks.size() == 1)
        .await;
    setup.flaws.refuses.store(true, Ordering::SeqCst);
    setup.flaws.breaks.notify_one();
    setup.until("the loss", |s| s.losses == 1).await;
    setup.mark("two", "drained").await;
    setup.flaws.refuses.store(false, Ordering::SeqCst);
    setup
        .until("what was missed", |s| s.catalog.marks.size() == 2)
        .await;
    assert_eq!(setup.losses, 1);
    assert_eq!(
        setup.registry.metrics().calls("list", "ok"),
        1,
        "it resumed"
    );
}

#[tokio::test]
async fn a_listing_that_the_watch_overtook_brings_nothing_back() {
    let (store, _folder) = store();
    let mut comparison = Comparison::start(Arc::new(store), "/".to_owned(), 1);
    let entry = |key: &str, mod_revision| Entry {
        key: key.to_owned(),
        value: "".into(),
        create_revision: mod_revision,
        mod_revision,
    };
    comparison.overtaken_by(&[store::Change::Delete {
        key: "a".to_owned(),
        mod_revision: 9,
    }]);
    assert!(!comparison.is_present(&entry("a", 5)), "it went since");
    assert!(comparison.is_present(&entry("a", 10)), "it came back since");
    assert!(comparison.is_present(&entry("c", 5)));
    assert!(comparison.has_listed("a") && comparison.has_listed("c"));
    assert!(!comparison.has_listed("b"));
}

#[tokio::test]
async fn a_watch_that_is_behind_the_listing_undoes_nothing_of_it() {
    let (store, _folder) = store();
    let registry = Registry::new(Arc::new(store), "/heddle");
    let entry = |node: &str, reason: &str, mod_revision| Entry {
        key: registry.keys().path(&Key::Mark(target(node))),
        value: crate::record::encode(&mark(node, reason)).into(),
        create_revision: 1,
        mod_revision,
    };
    let deleted = |node: &str, mod_revision| store::Change::Delete {
        key: entry(node, "", mod_revision).key,
        mod_revision,
    };
    let mut follower = Follower::new(registry.clone(), FollowOptions::default());
    let mut catalog = Catalog::default();
    let mut tell = |update: Update| {
        let Update::Changes { changes, .. } = update else {
            panic!("{update:?}");
        };
        for change in changes {
            catalog.apply(change);
        }
        let reasons = ["changes", "returns", "flashes"].map(|node| {
            let mark = catalog.marks.get(&target(node));
            mark.map(|mark| mark.reason.clone())
        });
        reasons.map(|reason| reason.unwrap_or_default())
    };
    let old = ["changes", "returns"].map(|node| store::Change::Put(entry(node, "old", 3)));
    tell(follower.changed(3, old.into()));
    let root = registry.keys().root().to_owned();
    let begun = Comparison::start(registry.store().clone(), root, follower.revision);
    let mut comparison = Some(begun);
    let watched = |follower: &mut Follower, comparison: &mut Option<Comparison>, change| {
        let (revision, changes) = (store::Change::mod_revision(&change), vec![change]);
        if let Some(comparison) = comparison {
            comparison.overtaken_by(&changes);
        }
        follower.changed(revision, changes)
    };
    let flash = store::Change::Put(entry("flashes", "new", 5));
    let told = tell(watched(&mut follower, &mut comparison, flash));
    assert_eq!(told, ["old", "old", "new"]);

    // The listing is of revision 12, and the watch still at 5.
    let page = vec![entry("changes", "new", 10), entry("returns", "new", 11)];
    let step = follower.compare(&mut comparison, Step::Page(page));
    assert_eq!(tell(step.expect("a page")), ["new", "new", "new"]);
    let change = store::Change::Put(entry("changes", "between", 6));
    let told = tell(watched(&mut follower, &mut comparison, change));
    assert_eq!(told, ["new", "new", "new"], "what is old is not told");
    let change = deleted("returns", 7);
    let told = tell(watched(&mut follower, &mut comparison, change));
    assert_eq!(told, ["new", "new", "new"], "nor that it went before");
    let step = follower.compare(&mut comparison, Step::Ended(Ok(12)));
    assert_eq!(tell(step.expect("an end")), ["new", "new", ""]);
    for change in [
        deleted("flashes", 9),
        store::Change::Put(entry("changes", "new", 10)),
    ] {
        let told = tell(watched(&mut follower, &mut comparison, change));
        assert_eq!(told, ["new", "new", ""]);
    }
}
