//! The recent past of an embedded store, kept in memory for its watches.
//!
//! There is one log for all watches, and each watch is a position in it: a slow watch costs
//! nothing, and one that falls behind the log's bounds is told so.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio::sync::watch;

use crate::store::watch::WatchSource;
use crate::store::{Change, Revision, StoreError, WatchEvent};

/// All changes of one revision.
#[derive(Debug)]
pub(super) struct Commit {
    pub(super) revision: Revision,
    pub(super) changes: Vec<Change>,
}

impl Commit {
    fn bytes(&self) -> usize {
        let of_change = |change: &Change| match change {
            Change::Put(entry) => entry.key.len() + entry.value.len(),
            Change::Delete { key, .. } => key.len(),
        };
        self.changes.iter().map(of_change).sum()
    }
}

pub(super) struct History {
    log: Mutex<Log>,
    /// Wakes watches; the value itself is not read.
    news: watch::Sender<Revision>,
    max_revisions: usize,
    max_bytes: usize,
}

/// Invariant: `commits` holds the revisions `floor + 1` to `floor + commits.len()`, without gaps.
struct Log {
    floor: Revision,
    commits: VecDeque<Arc<Commit>>,
    bytes: usize,
    closed: bool,
}

impl Log {
    fn newest(&self) -> Revision {
        // At most `max_revisions` commits, which fits.
        self.floor + self.commits.len() as Revision
    }

    fn forget_oldest(&mut self) {
        if let Some(oldest) = self.commits.pop_front() {
            self.bytes -= oldest.bytes();
            self.floor = oldest.revision;
        }
    }
}

impl History {
    /// A history that knows nothing up to `floor`, and of nothing happening from there to
    /// `revision`.
    pub(super) fn new(
        floor: Revision,
        revision: Revision,
        max_revisions: usize,
        max_bytes: usize,
    ) -> History {
        let empty = |revision| {
            Arc::new(Commit {
                revision,
                changes: Vec::new(),
            })
        };
        let commits = (floor + 1..=revision).map(empty).collect();
        History {
            log: Mutex::new(Log {
                floor,
                commits,
                bytes: 0,
                closed: false,
            }),
            news: watch::Sender::new(revision),
            max_revisions: max_revisions.max(1),
            max_bytes,
        }
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds commits that are durable, in order, and wakes all watches.
    pub(super) fn append(&self, commits: impl IntoIterator<Item = Commit>) {
        let newest = {
            let mut log = self.log();
            for commit in commits {
                debug_assert_eq!(commit.revision, log.newest() + 1, "revisions have no gaps");
                log.bytes += commit.bytes();
                log.commits.push_back(Arc::new(commit));
            }
            while log.commits.len() > self.max_revisions
                || (log.bytes > self.max_bytes && log.commits.len() > 1)
            {
                log.forget_oldest();
            }
            log.newest()
        };
        self.news.send_replace(newest);
    }

    /// Forgets everything before `revision`, but never the newest revision itself.
    pub(super) fn compact(&self, revision: Revision) {
        let mut log = self.log();
        let revision = revision.min(log.newest());
        while log.floor + 1 < revision {
            log.forget_oldest();
        }
    }

    /// Forgets everything: what happened up to `revision` is not known.
    pub(super) fn restart(&self, revision: Revision) {
        {
            let mut log = self.log();
            log.commits.clear();
            log.bytes = 0;
            log.floor = revision;
        }
        self.news.send_replace(revision);
    }

    /// Ends all watches.
    pub(super) fn close(&self) {
        self.log().closed = true;
        self.news.send_modify(|_| {});
    }

    /// The first event after `after`, `None` if there is none yet.
    fn after(&self, after: Revision, prefix: &str) -> Result<Option<WatchEvent>, StoreError> {
        let (unseen, newest) = {
            let log = self.log();
            if log.closed {
                return Err(StoreError::Closed);
            }
            let newest = log.newest();
            // A position in the future belongs to another history, say that of a file which was
            // replaced by a backup: only a listing can tell what holds in this one.
            if after < log.floor || after > newest {
                return Err(StoreError::Compacted {
                    revision: log.floor,
                });
            }
            let skip = usize::try_from(after - log.floor).unwrap_or(usize::MAX);
            let touches =
                |commit: &&Arc<Commit>| commit.changes.iter().any(|c| c.key().starts_with(prefix));
            (log.commits.iter().skip(skip).find(touches).cloned(), newest)
        };
        Ok(match unseen {
            Some(commit) => {
                let under_prefix = |c: &&Change| c.key().starts_with(prefix);
                let changes = commit
                    .changes
                    .iter()
                    .filter(under_prefix)
                    .cloned()
                    .collect();
                Some(WatchEvent::Changes {
                    revision: commit.revision,
                    changes,
                })
            }
            None if newest > after => Some(WatchEvent::Progress { revision: newest }),
            None => None,
        })
    }
}

/// A watch: a position in the history.
pub(super) struct HistoryWatch {
    history: Arc<History>,
    news: watch::Receiver<Revision>,
    prefix: String,
    after: Revision,
}

impl HistoryWatch {
    pub(super) fn start(
        history: Arc<History>,
        prefix: &str,
        after: Revision,
    ) -> Result<HistoryWatch, StoreError> {
        let after = after.max(0);
        history.after(after, prefix)?;
        let news = history.news.subscribe();
        Ok(HistoryWatch {
            history,
            news,
            prefix: prefix.to_owned(),
            after,
        })
    }
}

#[async_trait]
impl WatchSource for HistoryWatch {
    async fn next(&mut self) -> Result<WatchEvent, StoreError> {
        loop {
            if let Some(event) = self.history.after(self.after, &self.prefix)? {
                self.after = event.revision();
                return Ok(event);
            }
            self.news.changed().await.map_err(|_| StoreError::Closed)?;
        }
    }
}
