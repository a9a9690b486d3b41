//! A registry, the snapshot writer that follows it, and an agent beside them: one node without its data path.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use agent::{Agent, DockerOptions, Inputs, Options, Outputs};
use arc_swap::ArcSwap;
use model::catalog::{Catalog, Change};
use model::endpoint::{Endpoint, Health, Lifecycle, Slice};
use model::name::{Name, ServiceKey};
use model::service::ManagedBy;
use model::snapshot::{Builder, Finding, Freshness, Identity, Snapshot};
use registry::Registry;
use registry::follow::{FollowOptions, Follower, Update};
use registry::layout::Key;
use registry::resources::ApplyOptions;
use registry::store::{EmbeddedOptions, EmbeddedStore};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub const NODE: &str = "n1";
/// How long anything may take on a machine that is busy with everything else.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

pub fn key(text: &str) -> ServiceKey {
    text.parse().expect("a key")
}

pub struct World {
    pub folder: TempDir,
    pub registry: Registry,
    pub store: Arc<EmbeddedStore>,
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    catalog: watch::Receiver<Catalog>,
    changes: broadcast::Sender<Arc<[Change]>>,
    findings: mpsc::Sender<Vec<Finding>>,
    shutdown: CancellationToken,
}

impl World {
    pub async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let store = EmbeddedStore::open(folder.path().join("store"), EmbeddedOptions::default())
            .expect("a store");
        let store = Arc::new(store);
        let registry = Registry::new(store.clone(), "/heddle");
        registry
            .mesh(&Default::default())
            .await
            .expect("the mesh's settings");
        let shutdown = CancellationToken::new();
        let snapshot = Arc::new(ArcSwap::default());
        let (publish_catalog, catalog) = watch::channel(Catalog::default());
        let (changes, _) = broadcast::channel(1024);
        let (findings, mut found) = mpsc::channel::<Vec<Finding>>(64);
        let (updates, mut updated) = mpsc::channel(64);
        let follower = Follower::new(registry.clone(), FollowOptions::default());
        tokio::spawn(follower.run(updates, shutdown.clone()));
        let (pointer, told) = (snapshot.clone(), changes.clone());
        tokio::spawn(async move {
            let mut builder = Builder::new(Identity {
                node: name(NODE),
                seed: 1,
            });
            loop {
                let mut tell: Arc<[Change]> = Arc::new([]);
                tokio::select! {
                    update = updated.recv() => match update {
                        Some(Update::Changes { revision, changes, .. }) => {
                            tell = changes.clone().into();
                            builder.apply(revision, changes);
                            builder.set_freshness(Freshness::Fresh);
                        }
                        Some(Update::Lost { .. }) => {
                            builder.set_freshness(Freshness::Stale);
                        }
                        None => return,
                    },
                    Some(findings) = found.recv() => {
                        builder.apply_findings(findings);
                    }
                }
                pointer.store(Arc::new(builder.snapshot().clone()));
                publish_catalog.send_replace(builder.catalog().clone());
                // Nobody may listen yet.
                let _ = told.send(tell);
            }
        });
        World {
            folder,
            registry,
            store,
            snapshot,
            catalog,
            changes,
            findings,
            shutdown,
        }
    }

    pub fn options(&self, docker: Option<String>) -> Options {
        Options {
            docker: docker.map(|socket| DockerOptions {
                relist: Duration::from_secs(60),
                ..DockerOptions::new(socket)
            }),
            ..Options::new(name(NODE), vec!["192.0.2.2".parse().expect("an address")])
        }
    }

    pub fn agent(&self, docker: Option<String>) -> Running {
        self.agent_with(self.options(docker))
    }

    pub fn agent_with(&self, options: Options) -> Running {
        let inputs = Inputs {
            catalog: self.catalog.clone(),
            changes: self.changes.subscribe(),
            snapshot: self.snapshot.clone(),
        };
        let outputs = Outputs {
            findings: self.findings.clone(),
            events: mpsc::channel(1024).0,
        };
        let shutdown = self.shutdown.child_token();
        let agent = agent::start(
            options,
            self.registry.clone(),
            inputs,
            outputs,
            shutdown.clone(),
        );
        Running { agent, shutdown }
    }

    pub async fn apply(&self, yaml: &str) {
        let manifests = model::manifest::parse(yaml).expect("good manifests");
        let options = ApplyOptions {
            manager: ManagedBy::Apply,
            ranges: vec!["10.96.0.0/16".parse().expect("a network")],
            dry_run: false,
        };
        self.registry
            .apply(&manifests, &options)
            .await
            .expect("applied");
    }

    /// A service over TCP that selects `app=<name>` in `shop`, whose workloads listen on `port`.
    pub async fn service(&self, name: &str, port: u16) {
        self.apply(&format!(
            "apiVersion: heddle/v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{selector: app={name}, \
             ports: [{{port: 80, targetPort: {port}}}], health: {{interval: 200ms, timeout: 10s, rise: 2, fall: 2}}}}\n"
        ))
        .await;
    }

    pub async fn stored(&self, service: &str) -> Option<(Slice, i64)> {
        let path = self
            .registry
            .keys()
            .path(&Key::Slice(key(service), name(NODE)));
        let entry = self.registry.store().get(&path).await.expect("a store")?;
        let slice = registry::record::decode(&entry.value).expect("a slice");
        Some((slice, entry.mod_revision))
    }

    /// Waits until the registry's slice is as wanted, and returns its endpoints.
    pub async fn until(
        &self,
        service: &str,
        what: &str,
        wanted: impl Fn(&[Arc<Endpoint>]) -> bool,
    ) -> Vec<Arc<Endpoint>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let stored = self.stored(service).await;
            let endpoints = stored.map_or_else(Vec::new, |(slice, _)| slice.endpoints);
            if wanted(&endpoints) {
                return endpoints;
            }
            assert!(
                Instant::now() < deadline,
                "{service} never was {what}, but {endpoints:#?}"
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits until whoever is started next is shown what the registry has of the service, as a node that starts lists
    /// first.
    pub async fn until_followed(&self, service: &str) {
        let (key, node) = (key(service), name(NODE));
        let deadline = Instant::now() + PATIENCE;
        loop {
            let stored = self.stored(service).await.map(|(slice, _)| slice);
            let seen = self.catalog.borrow().slice(&key, &node).cloned();
            if seen.as_deref() == stored.as_ref() {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{service} is {stored:?}, seen as {seen:?}"
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub async fn until_ready(&self, service: &str, count: usize) -> Vec<Arc<Endpoint>> {
        self.until(service, &format!("ready with {count}"), |all| {
            all.len() == count && all.iter().all(|e| ready(e))
        })
        .await
    }

    pub async fn until_empty(&self, service: &str) {
        self.until(service, "empty", <[_]>::is_empty).await;
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

pub fn ready(endpoint: &Endpoint) -> bool {
    endpoint.health.value == Health::Passing && endpoint.lifecycle.value == Lifecycle::Running
}

pub struct Running {
    pub agent: Agent,
    shutdown: CancellationToken,
}

impl Running {
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.agent.stopped().await;
    }

    /// The metrics of a family, one for each of its labels' values.
    pub fn metric(&self, family: &str) -> Vec<prometheus::proto::Metric> {
        let all = self.agent.metrics();
        all.iter()
            .flat_map(|c| c.collect())
            .filter(|f| f.name() == family)
            .flat_map(|f| f.get_metric().to_vec())
            .collect()
    }

    /// What a workload is told, all in one text.
    pub fn verdicts(&self, workload: &str) -> String {
        self.agent
            .workloads()
            .iter()
            .filter(|report| &*report.workload.name == workload)
            .flat_map(|report| &report.verdicts)
            .map(|verdict| verdict.reason.as_str())
            .collect::<Vec<_>>()
            .join("\n")
    }

    pub async fn until_told(&self, workload: &str, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.verdicts(workload).contains(text) {
            assert!(
                Instant::now() < deadline,
                "{workload} was never told {text:?}, but {:?}",
                self.verdicts(workload)
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// A process that listens on `ip` and accepts until it is dropped.
pub struct Backend {
    pub address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Backend {
    pub async fn on(address: &str) -> Self {
        let listener = TcpListener::bind(address).await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let task = tokio::spawn(async move { while listener.accept().await.is_ok() {} });
        Backend { address, task }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}
