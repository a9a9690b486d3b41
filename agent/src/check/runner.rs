//! Runs what is due, a bounded number at once.

use std::time::Duration;

use model::endpoint::{Fact, Health};
use model::time::Timestamp;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::machine::Begin;
use super::schedule::{Due, Schedule};
use super::{CheckKey, Spec};
use crate::metrics::Metrics;

/// All active checks of this node. Dropping it ends those that run.
pub struct Checks {
    schedule: Schedule,
    running: JoinSet<(Due, Result<String, String>)>,
    limit: usize,
    origin: Instant,
    metrics: Metrics,
}

impl Checks {
    /// No checks; at most `limit` at once when there are.
    pub fn new(limit: usize, seed: u64, metrics: Metrics) -> Self {
        Checks {
            schedule: Schedule::new(seed),
            running: JoinSet::new(),
            limit: limit.max(1),
            origin: Instant::now(),
            metrics,
        }
    }

    /// Has an endpoint checked from now on; what was known of it before is forgotten.
    pub fn begin(&mut self, key: CheckKey, spec: Spec, begin: Begin) {
        let now = self.now();
        self.schedule.begin(key, spec, begin, now);
    }

    /// Checks an endpoint in another way if `spec` differs. `false` when it is not checked at all.
    pub fn change(&mut self, key: &CheckKey, spec: &Spec) -> bool {
        let now = self.now();
        self.schedule.change(key, spec, now)
    }

    /// Checks an endpoint no longer.
    pub fn remove(&mut self, key: &CheckKey) -> bool {
        self.schedule.remove(key)
    }

    /// What is believed of an endpoint; `None` when it is not checked.
    pub fn fact(&self, key: &CheckKey) -> Option<&Fact<Health>> {
        self.schedule.fact(key)
    }

    /// Runs checks until one of them changes a fact. Cancel safe; never returns while nothing is checked.
    pub async fn changed(&mut self) -> (CheckKey, Fact<Health>) {
        loop {
            let now = self.now();
            while self.running.len() < self.limit
                && let Some(due) = self.schedule.take_due(now)
            {
                self.running.spawn(async move {
                    let result = due.spec.run().await;
                    (due, result)
                });
            }
            let full = self.running.len() >= self.limit;
            let next = self.schedule.next_at().map(|at| self.origin + at);
            let finished = tokio::select! {
                Some(finished) = self.running.join_next() => finished,
                () = until(next), if !full => continue,
            };
            // A check that panicked is a bug of ours; its endpoint keeps what is known of it.
            let (due, result) = match finished {
                Ok(finished) => finished,
                Err(error) => {
                    tracing::error!(%error, "a health check panicked");
                    continue;
                }
            };
            let label = if result.is_ok() { "pass" } else { "fail" };
            self.metrics.checks.with_label_values(&[label]).inc();
            let (now, clock) = (self.now(), Timestamp::now());
            let result = result.as_deref().map_err(String::as_str);
            if let Some(fact) = self.schedule.finish(&due, result, now, clock) {
                return (due.key, fact);
            }
        }
    }

    fn now(&self) -> Duration {
        self.origin.elapsed()
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
