//! What runs on this node: containers, registrations, health checks, and what of them is published.
//!
//! # Layout
//! What runs here:
//! * [`docker`]: containers, from Docker's or Podman's events and listings
//! * [`registrations`]: processes and VMs that were registered by hand
//! * [`local`]: a workload with what only its own node needs to know
//! * [`labels`]: what `heddle.*` labels ask for, and the services made of labels alone
//!
//! What becomes of it:
//! * [`select`]: which services select which workloads, under which addresses, and why or why not
//! * [`check`]: active health checks, from the state machine to the sockets
//! * [`unowned`]: endpoints that no living node checks, so this one does, and what nodes that are gone left
//! * `recovery`: restarts containers that stay unhealthy
//! * [`publish`]: this node's slices in the registry, compared and set
//! * [`services`]: writing the services that labels make
//! * [`reconcile`]: the one task that joins all of these
//! * [`metrics`]: what is counted

pub mod check;
pub mod docker;
pub mod labels;
pub mod local;
pub mod metrics;
pub mod publish;
pub mod reconcile;
mod recovery;
pub mod registrations;
pub mod select;
pub mod services;
pub mod unowned;

use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use model::catalog::{Catalog, Change};
use model::endpoint::Slice;
use model::event::Event;
use model::name::{Name, ServiceKey};
use model::snapshot::{Finding, Snapshot};
use model::workload::WorkloadReport;
use registry::Registry;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::publish::{PublishStatus, Publisher};
use crate::reconcile::{Reconciler, Workloads};
use crate::services::ServiceWriter;
use crate::unowned::Caretaker;

pub use crate::docker::{DockerOptions, DockerStatus};
pub use crate::unowned::CollectOptions;

/// This node's own slices, by service; `None`: no endpoints of that service here. The newest of a service counts.
pub type OwnSlices = Vec<(ServiceKey, Option<Arc<Slice>>)>;

/// How the agent of this node behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// This node.
    pub node: Name,
    /// Where other nodes reach this one (`node.address`).
    pub addresses: Vec<IpAddr>,
    /// Where this node is, for zone-aware picking.
    pub zone: Option<String>,
    /// None: containers are not discovered.
    pub docker: Option<DockerOptions>,
    /// How many health checks run at once at most; more wait their turn. Each holds one descriptor for its time-out at most.
    /// Those that were slow the last time get half of these slots at most, so that hanging backends delay nobody else.
    pub max_checks: usize,
    /// How often everything is compared with the catalog anew, in case a change was missed.
    pub rescan: Duration,
    /// When slices of nodes that are gone are removed from the registry.
    pub collect: CollectOptions,
    /// How long a service made of labels outlives its last container.
    pub label_service_grace: Duration,
    /// Where this node's own slices go beside the registry, ahead of it and without it: while there is no registry, what
    /// dies here is taken out of this node's own data path all the same. None: they go nowhere else.
    pub own_slices: Option<mpsc::Sender<OwnSlices>>,
    /// Drawn anew by each process: spreads checks in time, so that nodes which start together don't check together.
    pub seed: u64,
}

impl Options {
    /// The defaults: no Docker, 1,024 checks at once, a full comparison every minute, 24 h for services made of labels.
    pub fn new(node: Name, addresses: Vec<IpAddr>) -> Self {
        Options {
            node,
            addresses,
            zone: None,
            docker: None,
            max_checks: 1024,
            rescan: Duration::from_secs(60),
            collect: CollectOptions::default(),
            label_service_grace: Duration::from_secs(24 * 60 * 60),
            own_slices: None,
            seed: 0,
        }
    }
}

/// What the agent reads.
///
/// Whoever feeds it updates `catalog` and `snapshot` first and sends on `changes` then: a change is a hint to look there.
pub struct Inputs {
    /// The registry's truth, as the snapshot writer has it.
    pub catalog: watch::Receiver<Catalog>,
    /// What changed in it. A receiver that lags behind looks at everything again.
    pub changes: broadcast::Receiver<Arc<[Change]>>,
    /// The view made of it: names the endpoints that nobody else checks.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
}

/// Where the agent's findings go, beside the registry.
pub struct Outputs {
    /// What this node found out about endpoints that no living node owns.
    pub findings: mpsc::Sender<Vec<Finding>>,
    /// What happened here that no change of the catalog tells. A full channel loses events, never time.
    pub events: mpsc::Sender<Event>,
}

/// How the agent fares, for `/readyz`.
#[derive(Clone, Debug)]
pub struct AgentStatus {
    /// Whether containers are seen.
    pub docker: DockerStatus,
    /// Whether what runs here gets into the registry.
    pub publish: PublishStatus,
}

/// A running agent.
pub struct Agent {
    node: Name,
    workloads: Arc<Mutex<Workloads>>,
    docker: watch::Receiver<DockerStatus>,
    publisher: Arc<Publisher>,
    metrics: Metrics,
    tasks: Vec<JoinHandle<()>>,
}

/// Starts the agent's tasks on the current runtime. They end at `shutdown`, leaving this node's slices in the registry.
pub fn start(
    options: Options,
    registry: Registry,
    inputs: Inputs,
    outputs: Outputs,
    shutdown: CancellationToken,
) -> Agent {
    let metrics = Metrics::new();
    let node = options.node.clone();
    let first = if options.docker.is_some() {
        DockerStatus::waiting("not connected yet")
    } else {
        DockerStatus::Disabled
    };
    let (docker_status, docker) = watch::channel(first);
    let publisher = Publisher::new(registry.clone(), node.clone(), metrics.clone());
    let caretaker = Caretaker::new(
        registry.clone(),
        node.clone(),
        outputs.events.clone(),
        metrics.clone(),
    );
    let writer = ServiceWriter::new(registry);
    // Room for a listing of containers; a full channel slows the listing down and loses nothing.
    let (containers, from_docker) = mpsc::channel(1024);
    let mut tasks = vec![
        tokio::spawn(publisher.clone().run(shutdown.clone())),
        tokio::spawn(writer.clone().run(shutdown.clone())),
        tokio::spawn(caretaker.clone().run(shutdown.clone())),
    ];
    if let Some(docker) = options.docker.clone() {
        let room = docker::run(
            docker,
            containers,
            docker_status,
            metrics.clone(),
            shutdown.clone(),
        );
        tasks.push(tokio::spawn(room));
    }
    let reconciler = Reconciler::new(
        options,
        inputs,
        outputs,
        publisher.clone(),
        writer,
        caretaker,
        metrics.clone(),
    );
    let workloads = reconciler.workloads();
    tasks.push(tokio::spawn(reconciler.run(from_docker, shutdown)));
    Agent {
        node,
        workloads,
        docker,
        publisher,
        metrics,
        tasks,
    }
}

impl Agent {
    /// Every workload of this node with what was decided about it, by name.
    pub fn workloads(&self) -> Vec<WorkloadReport> {
        reconcile::lock(&self.workloads).reports(&self.node)
    }

    /// Whether containers are seen and slices are written.
    pub fn status(&self) -> AgentStatus {
        AgentStatus {
            docker: self.docker.borrow().clone(),
            publish: self.publisher.status(),
        }
    }

    /// Whether containers are seen, as it changes.
    pub fn docker(&self) -> watch::Receiver<DockerStatus> {
        self.docker.clone()
    }

    /// What the agent counts, to be registered with the binary's other metrics.
    pub fn metrics(&self) -> Vec<Box<dyn prometheus::core::Collector>> {
        self.metrics.collectors()
    }

    /// Waits until every task has ended after the shutdown that [`start`] was given.
    pub async fn stopped(self) {
        for task in self.tasks {
            if let Err(error) = task.await
                && error.is_panic()
            {
                tracing::error!(%error, "a task of the agent panicked");
            }
        }
    }
}
