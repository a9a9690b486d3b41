//! What the registry counts. Every label has a fixed set of values.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use prometheus::core::Collector;
use prometheus::{HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts};
use tokio::time::Instant;

use crate::store::{
    Entry, Lease, Limits, Listing, Outcome, Revision, Store, StoreError, Txn, Watch,
};

const CALLS: &[&str] = &["list", "get", "commit", "watch", "lease"];
const RESULTS: &[&str] = &[
    "ok",
    "conflict",
    "unavailable",
    "timeout",
    "denied",
    "gap",
    "refused",
];

/// Why the registry was listed as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resync {
    /// The first listing of a process.
    Start,
    /// The comparison that is made every few minutes.
    Periodic,
    /// The history was compacted past the watch.
    Compacted,
    /// The registry was restored, and stands at another history.
    WentBackwards,
}

impl Resync {
    const ALL: [Resync; 4] = [
        Resync::Start,
        Resync::Periodic,
        Resync::Compacted,
        Resync::WentBackwards,
    ];

    fn label(self) -> &'static str {
        match self {
            Resync::Start => "start",
            Resync::Periodic => "periodic",
            Resync::Compacted => "compacted",
            Resync::WentBackwards => "went_backwards",
        }
    }
}

/// Counters and histograms; cloning shares them.
#[derive(Clone, Debug)]
pub struct Metrics {
    calls: IntCounterVec,
    durations: HistogramVec,
    failovers: IntCounter,
    authentications: IntCounterVec,
    resyncs: IntCounterVec,
    healed: IntCounter,
    losses: IntCounter,
}

impl Metrics {
    /// All of them at zero.
    pub fn new() -> Self {
        const GOOD: &str = "names and labels are constants that Prometheus accepts";
        let counters = |name: &str, help: &str, labels: &[&str]| {
            IntCounterVec::new(Opts::new(name, help), labels).expect(GOOD)
        };
        let counter = |name: &str, help: &str| IntCounter::new(name, help).expect(GOOD);
        let metrics = Metrics {
            calls: counters(
                "heddle_registry_calls_total",
                "Calls to the registry by what they asked for and how they ended",
                &["call", "result"],
            ),
            durations: HistogramVec::new(
                HistogramOpts::new(
                    "heddle_registry_call_duration_seconds",
                    "How long calls to the registry took, fail-over included",
                )
                .buckets(vec![0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10.0]),
                &["call"],
            )
            .expect(GOOD),
            failovers: counter(
                "heddle_registry_failovers_total",
                "Turns from one etcd member to another because it failed",
            ),
            authentications: counters(
                "heddle_registry_authentications_total",
                "Log-ins to etcd with user and password by result",
                &["result"],
            ),
            resyncs: counters(
                "heddle_registry_resyncs_total",
                "Listings of the whole registry by what called for them",
                &["cause"],
            ),
            healed: counter(
                "heddle_registry_healed_total",
                "Keys whose change the watch had missed and a periodic comparison found",
            ),
            losses: counter(
                "heddle_registry_losses_total",
                "How often the registry could not be followed",
            ),
        };
        for call in CALLS {
            metrics.durations.with_label_values(&[*call]);
            for result in RESULTS {
                metrics.calls.with_label_values(&[*call, *result]);
            }
        }
        for resync in Resync::ALL {
            metrics.resyncs.with_label_values(&[resync.label()]);
        }
        for result in ["ok", "error"] {
            metrics.authentications.with_label_values(&[result]);
        }
        metrics
    }

    /// All of them, to be registered.
    pub fn collectors(&self) -> Vec<Box<dyn Collector>> {
        vec![
            Box::new(self.calls.clone()),
            Box::new(self.durations.clone()),
            Box::new(self.failovers.clone()),
            Box::new(self.authentications.clone()),
            Box::new(self.resyncs.clone()),
            Box::new(self.healed.clone()),
            Box::new(self.losses.clone()),
        ]
    }

    /// How many calls of this kind (`list`, `get`, `commit`, `watch`, `lease`) ended so (`ok`, `conflict`, `unavailable`,
    /// `timeout`, `denied`, `gap`, `refused`).
    pub fn calls(&self, call: &str, result: &str) -> u64 {
        self.calls.with_label_values(&[call, result]).get()
    }

    /// How often one etcd member was left for another.
    pub fn failovers(&self) -> u64 {
        self.failovers.get()
    }

    /// How many listings of the whole registry this cause called for.
    pub fn resyncs(&self, cause: Resync) -> u64 {
        self.resyncs.with_label_values(&[cause.label()]).get()
    }

    /// How many keys a periodic comparison put right.
    pub fn healed(&self) -> u64 {
        self.healed.get()
    }

    /// How often the follower told that the registry is lost.
    pub fn losses(&self) -> u64 {
        self.losses.get()
    }

    /// How many log-ins to etcd succeeded, or failed.
    pub fn authentications(&self, succeeded: bool) -> u64 {
        self.logins(succeeded).get()
    }

    pub(crate) fn turned(&self) {
        self.failovers.inc();
    }

    pub(crate) fn authenticated(&self, succeeded: bool) {
        self.logins(succeeded).inc();
    }

    pub(crate) fn resynced(&self, cause: Resync) {
        self.resyncs.with_label_values(&[cause.label()]).inc();
    }

    pub(crate) fn heal(&self, keys: usize) {
        self.healed.inc_by(u64::try_from(keys).unwrap_or(u64::MAX));
    }

    pub(crate) fn lost(&self) {
        self.losses.inc();
    }

    fn logins(&self, succeeded: bool) -> IntCounter {
        let result = if succeeded { "ok" } else { "error" };
        self.authentications.with_label_values(&[result])
    }

    fn ended<T>(&self, call: &str, since: Instant, result: &Result<T, StoreError>, ok: &str) {
        let label = match result {
            Ok(_) => ok,
            Err(error) => label(error),
        };
        self.calls.with_label_values(&[call, label]).inc();
        self.durations
            .with_label_values(&[call])
            .observe(since.elapsed().as_secs_f64());
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

fn label(error: &StoreError) -> &'static str {
    match error {
        StoreError::Unavailable { .. } => "unavailable",
        StoreError::DeadlineExceeded { .. } => "timeout",
        StoreError::Denied { .. } => "denied",
        StoreError::Compacted { .. } | StoreError::Restored { .. } => "gap",
        _ => "refused",
    }
}

/// A store whose calls are counted and timed.
pub(crate) struct Measured {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) metrics: Metrics,
}

#[async_trait]
impl Store for Measured {
    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        let since = Instant::now();
        let result = self.store.list(prefix).await;
        self.metrics.ended("list", since, &result, "ok");
        result
    }

    async fn list_pages(
        &self,
        prefix: &str,
        take: &mut (dyn FnMut(Vec<Entry>) + Send),
    ) -> Result<Revision, StoreError> {
        let since = Instant::now();
        let result = self.store.list_pages(prefix, take).await;
        self.metrics.ended("list", since, &result, "ok");
        result
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let since = Instant::now();
        let result = self.store.get(key).await;
        self.metrics.ended("get", since, &result, "ok");
        result
    }

    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        let since = Instant::now();
        let result = self.store.commit(txn).await;
        let ok = match &result {
            Ok(Outcome::Conflict) => "conflict",
            _ => "ok",
        };
        self.metrics.ended("commit", since, &result, ok);
        result
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        let since = Instant::now();
        let result = self.store.watch(prefix, after).await;
        self.metrics.ended("watch", since, &result, "ok");
        result
    }

    async fn lease(&self, ttl: Duration) -> Result<Lease, StoreError> {
        let since = Instant::now();
        let result = self.store.lease(ttl).await;
        self.metrics.ended("lease", since, &result, "ok");
        result
    }

    fn limits(&self) -> Limits {
        self.store.limits()
    }

    fn name(&self) -> &'static str {
        self.store.name()
    }
}
