//! Runs what is due, a bounded number at once.

use std::collections::{HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use model::endpoint::{Fact, Health};
use model::time::Timestamp;
use socket2::Socket;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::heard::Heard;
use super::machine::Begin;
use super::probe::{Failure, Start};
use super::schedule::{Due, Schedule};
use super::{CheckKey, Spec};
use crate::metrics::Metrics;

/// Checks that end as they begin, in a row, until others have their turn: some 30 µs each.
const MOST_AT_ONCE: usize = 32;

/// Between two complaints in the log that this host can't check.
const COMPLAIN: Duration = Duration::from_secs(10);

type Finished = (Due, Option<Result<&'static str, Failure>>);

/// All active checks of this node. Dropping it ends those that run.
pub struct Checks {
    schedule: Schedule,
    running: JoinSet<Finished>,
    /// Endpoints whose health Docker tells.
    heard: HashMap<CheckKey, Heard>,
    /// When the first of them turns by itself.
    heard_at: Option<Duration>,
    /// Turned, and not yet told.
    turned: VecDeque<(CheckKey, Fact<Health>)>,
    /// When it was last said that this host can't check.
    complained: Option<Duration>,
    origin: Instant,
    metrics: Metrics,
}

impl Checks {
    /// No checks; at most `limit` at once when there are, of which those that were slow the last time hold half at most.
    pub fn new(limit: usize, seed: u64, metrics: Metrics) -> Self {
        Checks {
            schedule: Schedule::new(limit, seed),
            running: JoinSet::new(),
            heard: HashMap::new(),
            heard_at: None,
            turned: VecDeque::new(),
            complained: None,
            origin: Instant::now(),
            metrics,
        }
    }

    /// Has an endpoint checked from now on; what was known of it before is forgotten.
    pub fn begin(&mut self, key: CheckKey, spec: Spec, begin: Begin) {
        self.remove(&key);
        let now = self.now();
        self.schedule.begin(key, spec, begin, now);
    }

    /// Takes over what Docker's HEALTHCHECK says of an endpoint, which is not checked otherwise; returns what is to be
    /// believed. `known` is what was believed before the first time.
    pub fn hear(
        &mut self,
        key: CheckKey,
        known: Fact<Health>,
        value: Health,
        reason: &Arc<str>,
    ) -> Fact<Health> {
        self.schedule.remove(&key);
        self.turned.retain(|(turned, _)| *turned != key);
        let (now, clock) = (self.now(), Timestamp::now());
        let heard = self.heard.entry(key).or_insert_with(|| Heard::new(known));
        heard.hear(value, reason, now, clock);
        // Too early, where another word moved the first of them, costs one look.
        self.heard_at = self.heard_at.into_iter().chain(heard.due()).min();
        heard.fact().clone()
    }

    /// Believes what was told for long enough.
    fn look_at_heard(&mut self, now: Duration) {
        if self.heard_at.is_none_or(|at| at > now) {
            return;
        }
        let clock = Timestamp::now();
        for (key, heard) in &mut self.heard {
            if heard.look(now, clock) {
                self.turned.push_back((key.clone(), heard.fact().clone()));
            }
        }
        self.heard_at = self.heard.values().filter_map(Heard::due).min();
    }

    /// Checks an endpoint in another way if `spec` differs. `false` when it is not checked at all.
    pub fn change(&mut self, key: &CheckKey, spec: &Spec) -> bool {
        let now = self.now();
        self.schedule.change(key, spec, now)
    }

    /// Checks an endpoint no longer.
    pub fn remove(&mut self, key: &CheckKey) -> bool {
        self.turned.retain(|(turned, _)| turned != key);
        self.heard.remove(key).is_some() | self.schedule.remove(key)
    }

    /// What is believed of an endpoint; `None` when it is not checked.
    pub fn fact(&self, key: &CheckKey) -> Option<&Fact<Health>> {
        let heard = self.heard.get(key).map(Heard::fact);
        heard.or_else(|| self.schedule.fact(key))
    }

    /// Whether the last check of an endpoint passed, whatever is believed of it.
    pub fn passes(&self, key: &CheckKey) -> bool {
        let heard = self.heard.get(key);
        heard.map_or_else(|| self.schedule.passes(key), Heard::passes)
    }

    /// Runs checks until one of them changes a fact. Cancel safe; never returns while nothing is checked.
    pub async fn changed(&mut self) -> (CheckKey, Fact<Health>) {
        loop {
            let now = self.now();
            self.look_at_heard(now);
            if let Some(turned) = self.turned.pop_front() {
                return turned;
            }
            let mut at_once = 0;
            while at_once < MOST_AT_ONCE
                && let Some(due) = self.schedule.take_due(now)
            {
                match due.target.start() {
                    Start::Goes(begun) => {
                        self.running.spawn(run(due, begun));
                    }
                    Start::Done(result) => {
                        self.finish(&due, Some(result));
                        at_once += 1;
                    }
                }
            }
            if at_once > 0 {
                // Each time: what ends at once and is due again at once would keep this thread for ever.
                tokio::task::yield_now().await;
                continue;
            }
            let next = [self.schedule.next_at(), self.heard_at];
            let next = next.into_iter().flatten().min();
            let next = next.map(|at| self.origin + at);
            tokio::select! {
                Some(finished) = self.running.join_next() => match finished {
                    Ok((due, result)) => self.finish(&due, result),
                    // Checks catch their own panics, and are cancelled only with the whole set.
                    Err(error) => tracing::error!(%error, "a health check was lost"),
                },
                () = until(next) => {}
            }
        }
    }

    fn finish(&mut self, due: &Due, result: Option<Result<&'static str, Failure>>) {
        let (now, clock) = (self.now(), Timestamp::now());
        let result = match &result {
            Some(Ok(passed)) => Some(Ok(*passed)),
            Some(Err(Failure::Theirs(reason))) => Some(Err(reason.as_str())),
            Some(Err(Failure::Ours(reason))) => {
                if self.complained.is_none_or(|at| now - at >= COMPLAIN) {
                    self.complained = Some(now);
                    tracing::warn!(endpoint = ?due.target.addresses, %reason, "health checks can't be made; what is known stays");
                }
                None
            }
            None => {
                tracing::error!(endpoint = ?due.target.addresses, "a health check panicked; what is known stays");
                None
            }
        };
        let label = match result {
            Some(Ok(_)) => "pass",
            Some(Err(_)) => "fail",
            None => "error",
        };
        self.metrics.checks.with_label_values(&[label]).inc();
        let changed = self.schedule.finish(due, result, now, clock);
        self.turned.extend(changed);
    }

    fn now(&self) -> Duration {
        self.origin.elapsed()
    }
}

async fn run(due: Due, begun: Option<Socket>) -> Finished {
    let result = AssertUnwindSafe(due.target.run(begun)).catch_unwind();
    let result = result.await.ok();
    (due, result)
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
