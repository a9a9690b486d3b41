//! This node's slices in the registry.
//!
//! Only the newest wish for each slice is kept, and only what differs from the registry is written, compared with the
//! revision that was read or written last. What others do to our slices is put right again, and so is what a registry that
//! was restored from a backup has of them.

mod book;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use model::endpoint::Slice;
use model::name::{Name, ServiceKey};
use model::time::Timestamp;
use registry::Registry;
use registry::follow::chain;
use registry::publish::SliceWrite;
use registry::store::{Outcome, Revision, StoreError};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
pub use book::Pace;
use book::{Book, Job};

/// How long a write that is not urgent waits for others. A first health check of a container that listens already ends
/// within it, so that a start is one write and not two.
const GATHER: Duration = Duration::from_millis(3);
const MIN_BACKOFF: Duration = Duration::from_millis(50);
const MAX_BACKOFF: Duration = Duration::from_secs(2);
/// How long a slice that the registry refuses for itself is left alone, unless it changes.
const REFUSED_PAUSE: Duration = Duration::from_secs(30);
/// Slices read at once before a write. Many nodes that read many at once, after an outage say, would bring the next one.
const READS_AT_ONCE: usize = 8;
/// What a last write may take at shutdown.
const LAST_WRITE: Duration = Duration::from_secs(2);

/// Whether what runs here gets into the registry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PublishStatus {
    /// Slices that wait to be written, or are being written.
    pub waiting: usize,
    /// Why, and since when, when the last write failed.
    pub failing: Option<(String, Timestamp)>,
}

/// Keeps this node's slices in the registry as they are wished to be.
pub struct Publisher {
    registry: Registry,
    node: Name,
    state: Mutex<State>,
    wake: Notify,
    metrics: Metrics,
}

#[derive(Default)]
struct State {
    book: Book,
    failing: Option<(String, Timestamp)>,
}

impl Publisher {
    /// A publisher that has nothing to write.
    pub fn new(registry: Registry, node: Name, metrics: Metrics) -> Arc<Self> {
        Arc::new(Publisher {
            registry,
            node,
            state: Mutex::default(),
            wake: Notify::new(),
            metrics,
        })
    }

    /// Wishes a slice to be so; `None` or one without endpoints: not to be.
    pub fn wish(&self, service: &ServiceKey, slice: Option<Arc<Slice>>, pace: Pace) {
        let slice = slice.filter(|s| !s.endpoints.is_empty());
        if self.lock().book.wish(service, slice, pace) {
            self.wake.notify_one();
        }
    }

    /// Takes note of what the catalog at `revision` has of a slice.
    pub fn observe(&self, service: &ServiceKey, slice: Option<&Arc<Slice>>, revision: Revision) {
        if self.lock().book.observe(service, slice, revision) {
            self.wake.notify_one();
        }
    }

    /// The slices that were wished for.
    pub fn wished(&self) -> Vec<ServiceKey> {
        self.lock().book.wished()
    }

    /// Whether writing works.
    pub fn status(&self) -> PublishStatus {
        let state = self.lock();
        let waiting = state.book.waiting();
        PublishStatus {
            waiting,
            // What failed may have come to be as wished in another way.
            failing: state.failing.clone().filter(|_| waiting > 0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes until shutdown, and then once more what still waits, within two seconds.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut backoff = MIN_BACKOFF;
        let mut conflicts = 0u32;
        let mut history = self.registry.history();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                Ok(()) = history.changed() => {
                    self.lock().book.doubt_all();
                    continue;
                }
                () = self.something_to_write() => {}
            }
            let jobs = self.take();
            if jobs.is_empty() {
                // Nothing after all; never a busy loop, whatever the book says.
                tokio::time::sleep(GATHER).await;
                continue;
            }
            let outcome = self.write(&jobs).await;
            let pause = match self.settle(jobs, outcome) {
                Settled::Done => {
                    backoff = MIN_BACKOFF;
                    conflicts = 0;
                    continue;
                }
                // Another write came in between once; again and again is a quarrel that must not turn into a busy loop.
                Settled::Conflict => {
                    conflicts += 1;
                    if conflicts < 3 {
                        continue;
                    }
                    MAX_BACKOFF.min(MIN_BACKOFF * conflicts)
                }
                Settled::Refused => continue,
                Settled::Outage => {
                    let pause = backoff;
                    backoff = (backoff * 2).min(MAX_BACKOFF);
                    pause
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
            }
        }
        self.lock().book.hurry();
        let last = async {
            loop {
                let jobs = self.take();
                if jobs.is_empty() {
                    return;
                }
                let outcome = self.write(&jobs).await;
                if !matches!(self.settle(jobs, outcome), Settled::Done) {
                    return;
                }
            }
        };
        if tokio::time::timeout(LAST_WRITE, last).await.is_err() {
            tracing::warn!("the last slices were not written before shutdown");
        }
    }

    /// Waits until there is a slice to write, and a little longer unless one is urgent.
    async fn something_to_write(&self) {
        loop {
            let now = Instant::now();
            let (ready_at, urgent) = {
                let book = &self.lock().book;
                (book.ready_at(now), book.urgent())
            };
            match ready_at {
                Some(_) if urgent => return,
                Some(at) if at <= now => {
                    self.gather(now + GATHER).await;
                    return;
                }
                Some(at) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(at) => {}
                        () = self.wake.notified() => {}
                    }
                }
                None => self.wake.notified().await,
            }
        }
    }

    async fn gather(&self, until: Instant) {
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return,
                () = self.wake.notified() => if self.lock().book.urgent() {
                    return;
                },
            }
        }
    }

    fn take(&self) -> Vec<Job> {
        self.lock().book.take(self.registry.store().limits())
    }

    async fn write(&self, jobs: &[Job]) -> Result<Written, StoreError> {
        let reads = jobs.iter().map(|job| async {
            match job.replaces {
                Some(known) => Ok((known, None)),
                None => {
                    let stored = self.registry.stored_slice(&job.service, &self.node).await?;
                    Ok(match stored {
                        Some((revision, slice)) => (Some(revision), slice),
                        None => (None, None),
                    })
                }
            }
        });
        // Collected first: a stream over the closure itself is no future that another thread may run.
        let reads: Vec<_> = reads.collect();
        let stored: Vec<_> = stream::iter(reads)
            .buffered(READS_AT_ONCE)
            .try_collect()
            .await?;
        let mut written = Written {
            outcome: Outcome::Committed(0),
            found: HashMap::new(),
        };
        let mut writes = Vec::new();
        for (job, (replaces, slice)) in jobs.iter().zip(stored) {
            match replaces {
                // What isn't there and shall not be is as it should be.
                None if job.slice.is_none() => {}
                Some(revision) if slice.is_some() && slice.as_ref() == job.slice.as_deref() => {
                    written.found.insert(job.service.clone(), revision);
                }
                replaces => writes.push(SliceWrite {
                    service: job.service.clone(),
                    node: self.node.clone(),
                    slice: job.slice.as_deref().cloned(),
                    replaces,
                }),
            }
        }
        if !writes.is_empty() {
            written.outcome = self.registry.write_slices(&writes).await?;
        }
        Ok(written)
    }

    fn settle(&self, jobs: Vec<Job>, written: Result<Written, StoreError>) -> Settled {
        let (outcome, found) = match written {
            Ok(written) => (Ok(written.outcome), written.found),
            Err(error) => (Err(error), HashMap::new()),
        };
        let count = u64::try_from(jobs.len() - found.len()).unwrap_or(u64::MAX);
        let count_as = |result: &str| {
            self.metrics
                .slice_writes
                .with_label_values(&[result])
                .inc_by(count);
        };
        let mut state = self.lock();
        match outcome {
            Ok(Outcome::Committed(revision)) => {
                count_as("committed");
                state.book.committed(jobs, revision, &found);
                if let Some((_, since)) = state.failing.take() {
                    let lost = since.age(Timestamp::now());
                    tracing::info!(after = ?lost, "slices are written again");
                }
                Settled::Done
            }
            Ok(Outcome::Conflict) => {
                count_as("conflict");
                state.book.failed(jobs);
                Settled::Conflict
            }
            Err(error) => {
                count_as("error");
                let reason = chain(&error);
                let first = state.failing.is_none();
                if first {
                    state.failing = Some((reason.clone(), Timestamp::now()));
                }
                if error.is_outage() || !is_about_content(&error) {
                    if first {
                        tracing::warn!(%reason, "slices can't be written; trying on");
                    }
                    state.book.failed(jobs);
                    return Settled::Outage;
                }
                match jobs.as_slice() {
                    [only] => {
                        tracing::error!(service = %only.service, %reason, "the registry refuses this slice");
                        state.book.refused(jobs, REFUSED_PAUSE);
                    }
                    // One of them is to blame: one by one it shows.
                    _ => state.book.failed_one_by_one(jobs),
                }
                Settled::Refused
            }
        }
    }
}

/// What became of a write.
struct Written {
    outcome: Outcome,
    /// Slices that were there as wished, with their revisions, and needed no write.
    found: HashMap<ServiceKey, Revision>,
}

/// Whether the error lies in what was to be written, so that another slice may fare better.
fn is_about_content(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::TooLarge { .. } | StoreError::InvalidTxn { .. } | StoreError::Rejected { .. }
    )
}

enum Settled {
    Done,
    Conflict,
    Refused,
    Outage,
}
