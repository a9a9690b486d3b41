//! Following the registry: a listing, then a watch; after a gap a listing again whose deletes are synthesised.
//!
//! The follower remembers what it has told (key, revision, a hash of the value), so whatever happens in between, a new
//! listing becomes exactly the changes that were missed. Losing the registry is told as such and never as emptiness. One
//! server that fails while another answers is not a loss.

mod change;
mod compare;
#[cfg(test)]
mod tests;
mod update;

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use model::catalog::Change;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::Registry;
use crate::layout::Key;
use crate::metrics::Resync;
use crate::store::{self, Entry, Revision, Store, StoreError, WatchEvent};
pub use change::change;
use change::removal;
use compare::{Comparison, Step, compared};
use update::News;
pub use update::{BadRecord, Update};

/// How the follower behaves.
#[derive(Clone, Debug)]
pub struct FollowOptions {
    /// How often everything is compared with a fresh listing, beside the watch, in case an event was lost; a tenth more or
    /// less, so that nodes don't do so together.
    pub resync: Duration,
    /// The first pause after a failure; doubled up to `max_backoff`.
    pub min_backoff: Duration,
    /// The longest pause after failures: how late a returning registry is noticed at most. A watch that lived for as long
    /// is made again at once when it breaks, before the registry counts as lost.
    pub max_backoff: Duration,
}

impl Default for FollowOptions {
    fn default() -> Self {
        FollowOptions {
            resync: Duration::from_secs(300),
            min_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(2),
        }
    }
}

/// What was told of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Told {
    mod_revision: Revision,
    hash: u64,
    bad: bool,
}

/// Turns the registry's listing and watch into [`Update`]s.
pub struct Follower {
    registry: Registry,
    options: FollowOptions,
    told: HashMap<String, Told>,
    hasher: RandomState,
    /// All up to here was told.
    revision: Revision,
    /// Why everything has to be listed before watching goes on.
    due: Option<Resync>,
    /// When everything is compared beside the watch.
    compare_at: Instant,
    /// Since when the watch that runs, or ran last, was there.
    watching: Option<Instant>,
    lost: bool,
}

impl Follower {
    /// A follower that has told nothing yet.
    pub fn new(registry: Registry, options: FollowOptions) -> Self {
        Follower {
            registry,
            options,
            told: HashMap::new(),
            hasher: RandomState::new(),
            revision: 0,
            due: Some(Resync::Start),
            compare_at: Instant::now(),
            watching: None,
            lost: false,
        }
    }

    /// Takes the entries of a saved catalog as told, so that the first listing also yields the deletes of what has gone
    /// since. Returns their changes.
    pub fn seed(&mut self, entries: Vec<Entry>) -> Vec<Change> {
        let mut news = News::default();
        for entry in entries {
            self.take(&entry, &mut news);
        }
        news.changes
    }

    /// Follows until shutdown, or until nobody listens any more.
    pub async fn run(mut self, out: mpsc::Sender<Update>, shutdown: CancellationToken) {
        let mut backoff = self.options.min_backoff;
        loop {
            let ended = tokio::select! {
                () = shutdown.cancelled() => return,
                ended = self.list_and_watch(&out) => ended,
            };
            let error = match ended {
                Ok(Ended::Gap) => continue,
                Ok(Ended::Unheard) => return,
                Err(error) => error,
            };
            let lived = self.watching.take().map(|since| since.elapsed());
            if lived.is_some_and(|lived| lived >= self.options.max_backoff) {
                // That one server failed is no loss while another answers: the next try tells.
                tracing::info!(reason = %chain(&error), "registry watch broke; watching again");
                backoff = self.options.min_backoff;
                continue;
            }
            if !self.lost {
                self.lost = true;
                self.registry.metrics().lost();
                let reason = chain(&error);
                tracing::warn!(%reason, "registry lost; serving on from the last snapshot");
                if out.send(Update::Lost { reason }).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(backoff) => {}
            }
            backoff = (backoff * 2).min(self.options.max_backoff);
        }
    }

    /// Lists where that is needed, then watches, until something ends it. After an outage the watch resumes from the
    /// revision it had; only a gap in the history calls for a listing.
    async fn list_and_watch(&mut self, out: &mpsc::Sender<Update>) -> Result<Ended, StoreError> {
        let store = self.registry.store().clone();
        let root = self.registry.keys().root().to_owned();
        if let Some(cause) = self.due {
            let (listed, update) = self.list(&*store, &root, cause).await;
            // An update says that the registry is heard. A listing that broke off is told only for what it gave, and
            // its loss is told again after it.
            if listed.is_ok() || update.has_news() {
                if listed.is_ok() {
                    self.heard();
                } else {
                    self.lost = false;
                }
                if out.send(update).await.is_err() {
                    return Ok(Ended::Unheard);
                }
            }
            match listed {
                Err(StoreError::Compacted { .. }) => return Ok(self.gap(cause)),
                other => other?,
            }
        }
        let mut watch = match store.watch(&root, self.revision).await {
            Err(StoreError::Compacted { .. }) => return Ok(self.gap(Resync::Compacted)),
            Err(error @ StoreError::Restored { .. }) => return Ok(self.restored(&error)),
            other => other?,
        };
        self.watching = Some(Instant::now());
        if self.heard() {
            let update = News::default().told(self.revision);
            if out.send(update).await.is_err() {
                return Ok(Ended::Unheard);
            }
        }
        let mut comparison: Option<Comparison> = None;
        loop {
            let update = tokio::select! {
                // The watch first: what it tells need not be found by comparing.
                biased;
                event = watch.next() => match event {
                    Ok(WatchEvent::Changes { revision, changes }) => {
                        if let Some(comparison) = &mut comparison {
                            comparison.overtaken_by(&changes);
                        }
                        self.changed(revision, changes)
                    }
                    Ok(WatchEvent::Progress { revision }) => {
                        self.revision = self.revision.max(revision);
                        continue;
                    }
                    Err(StoreError::Compacted { .. }) => return Ok(self.gap(Resync::Compacted)),
                    Err(error @ StoreError::Restored { .. }) => return Ok(self.restored(&error)),
                    Err(error) => return Err(error),
                },
                step = compared(&mut comparison) => match self.compare(&mut comparison, step) {
                    Ok(update) => update,
                    Err(error) => return Ok(self.restored(&error)),
                },
                () = tokio::time::sleep_until(self.compare_at), if comparison.is_none() => {
                    self.registry.metrics().resynced(Resync::Periodic);
                    comparison = Some(Comparison::start(store.clone(), root.clone(), self.revision));
                    continue;
                }
            };
            if update.has_news() && out.send(update).await.is_err() {
                return Ok(Ended::Unheard);
            }
        }
    }

    /// The registry answered; whether it was lost before.
    fn heard(&mut self) -> bool {
        let was_lost = std::mem::replace(&mut self.lost, false);
        if was_lost {
            tracing::info!(revision = self.revision, "registry is back");
        }
        was_lost
    }

    /// What was missed can only be found by listing everything.
    fn gap(&mut self, cause: Resync) -> Ended {
        tracing::info!(
            revision = self.revision,
            ?cause,
            "history is gone; listing again"
        );
        self.due = Some(cause);
        Ended::Gap
    }

    /// The registry stands at another history: nothing that was known of revisions holds.
    fn restored(&mut self, error: &StoreError) -> Ended {
        tracing::warn!(was = self.revision, reason = %chain(error), "listing everything again");
        self.due = Some(Resync::WentBackwards);
        Ended::Gap
    }

    /// When to compare next, spread out so that nodes which started together don't list together.
    fn compare_later(&mut self) {
        let spread = self.options.resync / 5;
        let share = self.hasher.hash_one(Instant::now()) % 1000;
        let share = u32::try_from(share).unwrap_or(0);
        self.compare_at = Instant::now() + self.options.resync - spread / 2 + spread / 1000 * share;
    }

    /// Lists everything, and tells what was missed. One that breaks off has told what it gave so far, and no deletes:
    /// what was not seen yet is not gone.
    async fn list(
        &mut self,
        store: &dyn Store,
        root: &str,
        mut cause: Resync,
    ) -> (Result<(), StoreError>, Update) {
        let mut news = News::default();
        let mut gone: HashSet<String> = self.told.keys().cloned().collect();
        let mut take = |entries: Vec<Entry>| {
            for entry in entries {
                gone.remove(&entry.key);
                self.take(&entry, &mut news);
            }
        };
        let listed = store.list_pages(root, &mut take).await;
        let listed = listed.map(|revision| {
            if revision < self.revision {
                cause = Resync::WentBackwards;
            }
            self.revision = revision;
            self.due = None;
            self.compare_later();
            self.registry.metrics().resynced(cause);
            if cause == Resync::WentBackwards {
                // Before the update, so that whoever acts on it knows.
                self.registry.begin_history();
            }
            for key in gone {
                self.forget(&key, &mut news);
            }
        });
        (listed, news.told(self.revision))
    }

    /// A step of the periodic comparison. An error says that the registry was restored.
    fn compare(
        &mut self,
        comparison: &mut Option<Comparison>,
        step: Step,
    ) -> Result<Update, StoreError> {
        let mut news = News::default();
        let Some(running) = comparison.as_mut() else {
            return Ok(news.told(self.revision));
        };
        match step {
            Step::Page(entries) => {
                for entry in entries {
                    if running.is_present(&entry) && !self.is_newer(&entry.key, entry.mod_revision)
                    {
                        self.take(&entry, &mut news);
                    }
                }
            }
            Step::Ended(Ok(revision)) => {
                if revision < running.revision_before {
                    return Err(StoreError::Restored { revision });
                }
                // Of what is told by now, not of what was when it began: the watch may have told meanwhile that something
                // came which went again by `revision`.
                let missing = self.told.iter().filter(|(key, told)| {
                    told.mod_revision <= revision && !running.has_listed(key)
                });
                let missing: Vec<String> = missing.map(|(key, _)| key.clone()).collect();
                for key in missing {
                    self.forget(&key, &mut news);
                }
                *comparison = None;
                self.compare_later();
                // Everything up to the listing's revision is told: the watch need not tell it again.
                self.revision = self.revision.max(revision);
            }
            Step::Ended(Err(error)) => {
                tracing::debug!(reason = %chain(&error), "comparison with the registry broke off");
                *comparison = None;
                self.compare_later();
            }
        }
        let found = news.changes.len() + news.bad.len();
        if found > 0 {
            tracing::warn!(
                keys = found,
                "comparison with the registry found changes that the watch had not told"
            );
            self.registry.metrics().heal(found);
        }
        Ok(news.told(self.revision))
    }

    /// Whether something newer than `revision` was told of a key.
    fn is_newer(&self, key: &str, revision: Revision) -> bool {
        self.told
            .get(key)
            .is_some_and(|told| told.mod_revision > revision)
    }

    fn changed(&mut self, revision: Revision, events: Vec<store::Change>) -> Update {
        let mut news = News::default();
        // What a comparison has told already is not told again.
        if revision > self.revision {
            self.revision = revision;
            for event in events {
                // Nor is what a page of a comparison has overtaken: the watch may be behind it.
                if self.is_newer(event.key(), event.mod_revision()) {
                    continue;
                }
                match event {
                    store::Change::Put(entry) => self.take(&entry, &mut news),
                    store::Change::Delete { key, .. } => self.forget(&key, &mut news),
                }
            }
        }
        news.told(self.revision)
    }

    fn take(&mut self, entry: &Entry, news: &mut News) {
        let mut told = Told {
            mod_revision: entry.mod_revision,
            hash: self.hasher.hash_one(&entry.value),
            bad: false,
        };
        let before = self.told.get(&entry.key).copied();
        if before.is_some_and(|b| b.mod_revision == told.mod_revision && b.hash == told.hash) {
            return;
        }
        match change(self.registry.keys(), entry) {
            Ok(Some(change)) => {
                news.changes.push(change);
                if before.is_some_and(|b| b.bad) {
                    news.mended.push(entry.key.clone());
                }
            }
            Ok(None) => return,
            Err(error) => {
                let reason = chain(&error);
                tracing::warn!(key = entry.key, %reason, "bad record in the registry; what it was before stays in force");
                news.bad.push(BadRecord {
                    key: entry.key.clone(),
                    reason,
                });
                told.bad = true;
            }
        }
        match self.told.get_mut(&entry.key) {
            Some(before) => *before = told,
            None => _ = self.told.insert(entry.key.clone(), told),
        }
    }

    fn forget(&mut self, key: &str, news: &mut News) {
        let Some(told) = self.told.remove(key) else {
            return;
        };
        if told.bad {
            news.mended.push(key.to_owned());
        }
        if let Some(key) = self.registry.keys().parse(key) {
            if let Key::Node(node) | Key::Liveness(node) = &key {
                self.registry.went(node);
            }
            news.changes.push(removal(key));
        }
    }
}

enum Ended {
    Gap,
    Unheard,
}

/// An error and all its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
