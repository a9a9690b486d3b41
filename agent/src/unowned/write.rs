//! Writes what this node found out about endpoints that no node owns, and removes what nodes that are gone left.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::endpoint::Findings;
use model::event::{Event, EventKind};
use model::name::{Name, ServiceKey};
use model::time::Timestamp;
use registry::Registry;
use registry::follow::chain;
use registry::publish::Orphan;
use registry::store::{Outcome, StoreError};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::collect::Due;
use crate::metrics::Metrics;

/// Findings written in one transaction at most.
const BATCH: usize = 32;
const MIN_BACKOFF: Duration = Duration::from_millis(50);
const MAX_BACKOFF: Duration = Duration::from_secs(2);

/// Does what is to be done about what no living node owns, one after the other.
pub struct Caretaker {
    registry: Registry,
    node: Name,
    state: Mutex<State>,
    wake: Notify,
    events: mpsc::Sender<Event>,
    metrics: Metrics,
}

#[derive(Default)]
struct State {
    findings: BTreeMap<ServiceKey, Option<Findings>>,
    due: Vec<Due>,
}

impl Caretaker {
    /// Nothing to do yet.
    pub fn new(
        registry: Registry,
        node: Name,
        events: mpsc::Sender<Event>,
        metrics: Metrics,
    ) -> Arc<Self> {
        Arc::new(Caretaker {
            registry,
            node,
            state: Mutex::default(),
            wake: Notify::new(),
            events,
            metrics,
        })
    }

    /// All that is to be published (`None`: removed), in place of what was to be before.
    pub fn publish(&self, findings: BTreeMap<ServiceKey, Option<Findings>>) {
        let any = !findings.is_empty();
        self.lock().findings = findings;
        if any {
            self.wake.notify_one();
        }
    }

    /// All that is to be collected, in place of what was to be before.
    pub fn collect(&self, due: Vec<Due>) {
        let any = !due.is_empty();
        self.lock().due = due;
        if any {
            self.wake.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Works until shutdown.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut backoff = MIN_BACKOFF;
        loop {
            let worked = tokio::select! {
                () = shutdown.cancelled() => return,
                worked = self.work() => worked,
            };
            let pause = match worked {
                Ok(true) => {
                    backoff = MIN_BACKOFF;
                    continue;
                }
                Ok(false) => None,
                Err(error) => {
                    if !error.is_outage() {
                        tracing::warn!(reason = %chain(&error), "what no node owns can't be written");
                        // The next look wishes for what is still to be done.
                        *self.lock() = State::default();
                        continue;
                    }
                    tracing::debug!(reason = %chain(&error), "what no node owns can't be written yet");
                    let pause = backoff;
                    backoff = (backoff * 2).min(MAX_BACKOFF);
                    Some(pause)
                }
            };
            let next = async {
                match pause {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => self.wake.notified().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = next => {}
            }
        }
    }

    /// One step; whether there was anything to do.
    async fn work(&self) -> Result<bool, StoreError> {
        let batch: Vec<(ServiceKey, Option<Findings>)> = {
            let state = self.lock();
            let first = state.findings.iter().take(BATCH);
            first.map(|(k, v)| (k.clone(), v.clone())).collect()
        };
        if !batch.is_empty() {
            // In a conflict all of them stay to be tried again: somebody collected them meanwhile.
            let outcome = self.registry.write_findings(&self.node, &batch).await?;
            if let Outcome::Committed(_) = outcome {
                let mut state = self.lock();
                for (service, wish) in &batch {
                    if state.findings.get(service) == Some(wish) {
                        state.findings.remove(service);
                    }
                }
            }
            return Ok(true);
        }
        let Some(due) = self.lock().due.last().cloned() else {
            return Ok(false);
        };
        if self.registry.collect(&due.orphan).await? {
            self.tell(&due);
        }
        // What could not be removed was changed meanwhile: it is judged anew.
        self.lock().due.retain(|other| *other != due);
        Ok(true)
    }

    fn tell(&self, due: &Due) {
        let Orphan::Slice(slice) = &due.orphan else {
            return;
        };
        let (service, node, reason) = (&slice.service, &slice.node, &due.reason);
        self.metrics.slices_collected.inc();
        tracing::info!(%service, %node, %reason, "slice of a node that is gone collected");
        let count = slice.endpoints.len();
        let event = Event {
            at: Timestamp::now(),
            kind: EventKind::Service,
            namespace: Some(service.namespace.clone()),
            name: service.name.to_string(),
            node: Some(node.clone()),
            reason: "SliceCollected".to_owned(),
            message: format!(
                "{count} endpoints of node {node}, which is gone, were removed by node {}: {reason}",
                self.node
            ),
        };
        if let Err(error) = self.events.try_send(event) {
            tracing::debug!(%error, "an event is lost");
        }
    }
}
