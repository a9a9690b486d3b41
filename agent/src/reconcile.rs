//! The one task that joins what runs here, what the catalog says, and what checks find, and publishes what follows.
//!
//! # Layout
//! - [`mod@self`]: the task and what it reacts to
//! - `catalog`: what the catalog says, from its changes or looked at as a whole
//! - `labelled`: the services that labels make
//! - `held`: this node's endpoints, from what is desired to what is published
//! - `recover`: containers that stay unhealthy, and their restarts
//! - `unowned`: what no living node owns, and that many nodes were lost at once
//! - `workloads`: what `heddle get workloads` shows, shared with the admin API

mod catalog;
mod held;
mod labelled;
mod recover;
mod unowned;
mod workloads;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use model::catalog::{Catalog, Change};
use model::endpoint::Slice;
use model::event::Event;
use model::membership::MassExpiry;
use model::name::{Name, ServiceKey};
use model::snapshot::{Finding, Snapshot};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::check::Checks;
use crate::docker::Message;
use crate::local::{Local, WorkloadKey};
use crate::metrics::Metrics;
use crate::publish::Publisher;
use crate::select::NodeFacts;
use crate::services::ServiceWriter;
use crate::unowned::{Caretaker, Collector, Unowned};
use crate::{Inputs, Options, Outputs};

use held::Held;
use recover::Recoverer;
pub use workloads::Workloads;

/// Locks what is shared; what a panicking holder left behind is still the best there is.
pub(crate) fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Which containers could be seen so far: what can't be seen is not gone.
enum Seen {
    /// Docker has not been listed yet.
    Nothing,
    /// Docker has been listed; these containers of the listing could not be inspected.
    AllBut(BTreeSet<Arc<str>>),
}

/// The task's state.
pub struct Reconciler {
    node: Name,
    options: Options,
    from_catalog: watch::Receiver<Catalog>,
    changes: broadcast::Receiver<Arc<[Change]>>,
    snapshot: Arc<ArcSwap<Snapshot>>,
    findings: mpsc::Sender<Vec<Finding>>,
    events: mpsc::Sender<Event>,
    /// The newest catalog that was looked at.
    catalog: Catalog,
    workloads: Arc<Mutex<Workloads>>,
    held: HashMap<ServiceKey, Held>,
    seen: Seen,
    checks: Checks,
    recoverer: Recoverer,
    unowned: Unowned,
    unowned_at: Option<Instant>,
    collector: Collector,
    /// When it looks next, since `began`.
    collect_at: Duration,
    caretaker: Arc<Caretaker>,
    /// The mass expiry that was told of.
    guard: Option<Arc<MassExpiry>>,
    /// What this task's times are measured from.
    began: Instant,
    /// Findings on their way.
    pending: Vec<Finding>,
    /// What this node's own data path was told of each service, and what of it is on its way.
    own_told: HashMap<ServiceKey, Option<Arc<Slice>>>,
    own_pending: HashMap<ServiceKey, Option<Arc<Slice>>>,
    publisher: Arc<Publisher>,
    writer: Arc<ServiceWriter>,
    /// Services made of labels that nobody asks for any more.
    deserted: HashMap<ServiceKey, Instant>,
    complained: HashMap<WorkloadKey, String>,
    metrics: Metrics,
}

impl Reconciler {
    /// The task for one node.
    pub fn new(
        options: Options,
        inputs: Inputs,
        outputs: Outputs,
        publisher: Arc<Publisher>,
        writer: Arc<ServiceWriter>,
        caretaker: Arc<Caretaker>,
        metrics: Metrics,
    ) -> Self {
        let facts = NodeFacts {
            name: options.node.clone(),
            addresses: options.addresses.clone(),
            zone: options.zone.as_deref().map(Arc::from),
        };
        let seen = if options.docker.is_some() {
            Seen::Nothing
        } else {
            Seen::AllBut(BTreeSet::new())
        };
        Reconciler {
            node: options.node.clone(),
            from_catalog: inputs.catalog,
            changes: inputs.changes,
            snapshot: inputs.snapshot,
            findings: outputs.findings,
            events: outputs.events,
            catalog: Catalog::default(),
            workloads: Arc::new(Mutex::new(Workloads::new(facts, writer.clone()))),
            held: HashMap::new(),
            seen,
            checks: Checks::new(options.max_checks, options.seed, metrics.clone()),
            recoverer: Recoverer::new(),
            unowned: Unowned::new(options.node.clone()),
            unowned_at: None,
            collector: Collector::new(options.node.clone(), options.collect),
            collect_at: Duration::ZERO,
            caretaker,
            guard: None,
            began: Instant::now(),
            pending: Vec::new(),
            own_told: HashMap::new(),
            own_pending: HashMap::new(),
            publisher,
            writer,
            deserted: HashMap::new(),
            complained: HashMap::new(),
            metrics,
            options,
        }
    }

    /// What runs here, for the admin API.
    pub fn workloads(&self) -> Arc<Mutex<Workloads>> {
        self.workloads.clone()
    }

    /// Reacts until shutdown.
    pub async fn run(
        mut self,
        mut from_docker: mpsc::Receiver<Message>,
        shutdown: CancellationToken,
    ) {
        let mut rescan = tokio::time::interval(self.options.rescan.max(Duration::from_millis(10)));
        rescan.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut docker_open, mut changes_open) = (true, true);
        let mut messages = Vec::new();
        let findings = self.findings.clone();
        let own = self.options.own_slices.clone();
        loop {
            let unowned_at = self.unowned_at;
            let recover_at = self.recoverer.at;
            tokio::select! {
                () = shutdown.cancelled() => return,
                count = from_docker.recv_many(&mut messages, 256), if docker_open => {
                    docker_open = count > 0;
                    self.take_containers(&mut messages);
                }
                first = self.changes.recv(), if changes_open => match first {
                    Ok(first) => self.take_changes(first),
                    Err(RecvError::Lagged(missed)) => {
                        tracing::debug!(missed, "changes came faster than they were looked at; looking at everything");
                        self.rescan();
                    }
                    Err(RecvError::Closed) => changes_open = false,
                },
                (key, fact) = self.checks.changed() => self.turned(key, fact),
                permit = findings.reserve(), if !self.pending.is_empty() => match permit {
                    Ok(permit) => permit.send(std::mem::take(&mut self.pending)),
                    // Nobody wants to know any more.
                    Err(_) => self.pending.clear(),
                },
                permit = reserve(own.as_ref()), if !self.own_pending.is_empty() => {
                    let slices = self.own_pending.drain().collect();
                    if let Some(permit) = permit {
                        permit.send(slices);
                    }
                }
                () = sleep_until(unowned_at) => self.follow_unowned(),
                () = sleep_until(recover_at) => self.recover(),
                Some(restarted) = self.recoverer.restarts.join_next() => match restarted {
                    Ok((case, result)) => self.restarted(&case, result),
                    Err(error) => tracing::error!(%error, "a container's restart was lost"),
                },
                _ = rescan.tick() => self.rescan(),
            }
        }
    }

    fn take_containers(&mut self, messages: &mut Vec<Message>) {
        let mut touched = BTreeSet::new();
        let mut labelled = BTreeSet::new();
        let mut put = Vec::new();
        for message in messages.drain(..) {
            match message {
                Message::Put(local) => {
                    put.push(local.key());
                    self.put_workload(local, &mut touched, &mut labelled);
                }
                Message::Gone(id) => {
                    self.remove_workload(&WorkloadKey::container(&id), &mut touched, &mut labelled);
                }
                Message::Happened(event) => self.tell(event),
                Message::Listed { unjudged } => {
                    self.seen = Seen::AllBut(unjudged);
                    touched.extend(
                        self.held
                            .iter()
                            .filter(|(_, h)| h.retains)
                            .map(|(k, _)| k.clone()),
                    );
                    touched.extend(self.catalog.services_on(&self.node).cloned());
                }
            }
        }
        self.follow_up(touched, labelled);
        self.count_workloads();
        for key in put {
            self.complain(&key);
        }
    }

    /// Tells what happened on this node. A full channel loses it: history waits for nobody.
    fn tell(&self, mut event: Event) {
        event.node.get_or_insert_with(|| self.node.clone());
        if let Err(error) = self.events.try_send(event) {
            tracing::debug!(%error, "an event is lost");
        }
    }

    fn put_workload(
        &mut self,
        local: Arc<Local>,
        touched: &mut BTreeSet<ServiceKey>,
        labelled: &mut BTreeSet<ServiceKey>,
    ) {
        let mut shared = lock(&self.workloads);
        labelled.extend(shared.table.put(&local));
        touched.extend(shared.selection.put_workload(local));
    }

    fn remove_workload(
        &mut self,
        key: &WorkloadKey,
        touched: &mut BTreeSet<ServiceKey>,
        labelled: &mut BTreeSet<ServiceKey>,
    ) {
        self.complained.remove(key);
        let mut shared = lock(&self.workloads);
        labelled.extend(shared.table.remove(key));
        touched.extend(shared.selection.remove_workload(key));
    }

    fn follow_up(&mut self, touched: BTreeSet<ServiceKey>, labelled: BTreeSet<ServiceKey>) {
        for key in &touched {
            self.recompute(key);
        }
        for key in &labelled {
            self.write_label_service(key);
        }
    }

    /// Looks at all workloads: only when one of them, or what selects one, has changed.
    fn count_workloads(&self) {
        let counts = lock(&self.workloads).counts();
        for (state, count) in counts {
            self.metrics
                .workloads
                .with_label_values(&[state])
                .set(count);
        }
    }

    /// Says once in the log what keeps a workload out that somebody meant to be in.
    fn complain(&mut self, key: &WorkloadKey) {
        let shared = lock(&self.workloads);
        let Some(local) = shared.selection.workload(key) else {
            return;
        };
        let meant = local
            .workload
            .labels
            .keys()
            .any(|k| k.starts_with("heddle."))
            || shared.selection.selected_by(key).next().is_some();
        let trouble = if meant {
            shared.trouble(key)
        } else {
            Vec::new()
        };
        let (text, name) = (trouble.join("; "), local.workload.name.clone());
        drop(shared);
        if text.is_empty() {
            self.complained.remove(key);
        } else if self.complained.get(key) != Some(&text) {
            tracing::warn!(workload = %name, id = %key.id, reason = %text, "workload can't serve as asked");
            self.complained.insert(key.clone(), text);
        }
    }
}

/// Room to send; `None` when nobody listens.
async fn reserve<T>(to: Option<&mpsc::Sender<T>>) -> Option<mpsc::Permit<'_, T>> {
    to?.reserve().await.ok()
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
