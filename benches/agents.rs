//! A thousand agents in one process on a real etcd, with 10,000 services and 100,000 endpoints: what a first sync, one
//! change and a rolling update of everything cost.
//!
//! `cargo bench --bench agents`, as root with etcd installed; `AGENTS`, `SERVICES`, `EACH` (endpoints per agent) and
//! `WATCHERS` (of the rolling update) change the size.
//!
//! What is real: etcd, each agent's connection to it, its lease, its reconciler and its publisher, each agent's watch of
//! the whole prefix (so that etcd pays for all of them), and one whole node beside them as a process of its own. What is
//! shared: the simulated agents look at one catalog, because a thousand copies of it don't fit into one machine; what a
//! catalog costs is read off the whole node.

#[path = "../tests/support/mod.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use model::Name;
use model::catalog::{Catalog, Change};
use model::manifest;
use model::service::ManagedBy;
use model::snapshot::{Builder, Identity};
use model::workload::Registration;
use registry::Registry;
use registry::follow::{FollowOptions, Follower, Update};
use registry::join::MeshWish;
use registry::layout::Key;
use registry::resources::ApplyOptions;
use registry::store::{EtcdOptions, EtcdStore, Op, Store, Txn, WatchEvent};
use support::etcd::Etcd;
use support::netns::{self, Lan};
use support::node::{Node, NodeOptions};
use support::wait::{eventually, eventually_async};
use tokio::sync::{broadcast, mpsc, watch};
use tokio_util::sync::CancellationToken;

fn size(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |v| v.parse().expect("a number"))
}

fn name(text: &str) -> Name {
    Name::new(text).expect("a valid name")
}

fn node_name(n: usize) -> Name {
    name(&format!("sim-{n:04}"))
}

/// The registration `e` of agent `n`, at an address of its `round`: another address is another generation.
fn registration(n: usize, e: usize, each: usize, services: usize, round: u8) -> Registration {
    let service = (n * each + e) % services;
    Registration {
        id: name(&format!("r{e}")),
        namespace: name("shop"),
        labels: [("app".to_owned(), format!("service-{service}"))]
            .into_iter()
            .collect(),
        address: Some([127, round, 0, 1].into()),
        remote_address: Some([10, round, u8::try_from(n % 250).unwrap_or(0), 1].into()),
        ports: vec![u16::try_from(10_000 + e).unwrap_or(u16::MAX)],
        check: None,
    }
}

/// What etcd says of itself.
#[derive(Clone, Copy, Default)]
struct Cost {
    cpu: f64,
    sent: f64,
    rss: f64,
    txns: f64,
    ranges: f64,
}

fn etcd_cost(etcd: &Etcd) -> Cost {
    let address = etcd.endpoint().trim_start_matches("http://").parse();
    let answer =
        support::http::get(address.expect("an address"), "/metrics").expect("etcd's metrics");
    let value = |name: &str| {
        let line = answer
            .body
            .lines()
            .find(|l| l.split(' ').next() == Some(name));
        line.and_then(|l| l.rsplit(' ').next()?.parse().ok())
            .unwrap_or(0.0)
    };
    let handled = |method: &str| {
        let method = format!("grpc_method=\"{method}\"");
        answer
            .body
            .lines()
            .filter(|l| l.starts_with("grpc_server_handled_total") && l.contains(&method))
            .filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    };
    Cost {
        txns: handled("Txn"),
        ranges: handled("Range"),
        cpu: value("process_cpu_seconds_total"),
        sent: value("etcd_network_client_grpc_sent_bytes_total"),
        rss: value("process_resident_memory_bytes"),
    }
}

/// CPU seconds of a process, and its resident MiB.
fn process(pid: &str) -> (f64, u64) {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or("").split(' ').collect();
    let ticks = |at: usize| {
        fields
            .get(at)
            .and_then(|f| f.parse::<f64>().ok())
            .unwrap_or(0.0)
    };
    let pages = fields
        .get(21)
        .and_then(|f| f.parse::<u64>().ok())
        .unwrap_or(0);
    // 100 ticks a second and pages of 4 KiB on every Linux that this runs on.
    ((ticks(11) + ticks(12)) / 100.0, pages * 4 / 1024)
}

struct Meter<'a> {
    etcd: &'a Etcd,
    began: Instant,
    cost: Cost,
    own: f64,
    node: Option<(String, f64)>,
}

impl<'a> Meter<'a> {
    fn start(etcd: &'a Etcd, node: Option<&Node>) -> Self {
        let node = node.map(|n| n.pid().to_string());
        Meter {
            etcd,
            cost: etcd_cost(etcd),
            own: process("self").0,
            node: node.map(|pid| {
                let cpu = process(&pid).0;
                (pid, cpu)
            }),
            began: Instant::now(),
        }
    }

    fn done(&self, what: &str) {
        let took = self.began.elapsed();
        let now = etcd_cost(self.etcd);
        print!(
            "{what}: {took:.2?}; etcd {:.2} s CPU, {:.1} MB sent, {} txns, {} reads, RSS {:.0} MiB; agents {:.2} s CPU, RSS {} MiB",
            now.cpu - self.cost.cpu,
            (now.sent - self.cost.sent) / 1e6,
            now.txns - self.cost.txns,
            now.ranges - self.cost.ranges,
            now.rss / 1024.0 / 1024.0,
            process("self").0 - self.own,
            process("self").1,
        );
        if let Some((pid, before)) = &self.node {
            let (cpu, rss) = process(pid);
            print!("; whole node {:.2} s CPU, RSS {rss} MiB", cpu - before);
        }
        println!();
    }
}

struct Simulation {
    etcd: Etcd,
    lan: Lan,
    agents: usize,
    services: usize,
    each: usize,
    /// Slices as the shared catalog has them now.
    catalog: watch::Receiver<Catalog>,
    changes: broadcast::Sender<Arc<[Change]>>,
    snapshot: Arc<ArcSwap<model::Snapshot>>,
    shutdown: CancellationToken,
}

async fn store(etcd: &Etcd) -> Arc<dyn Store> {
    let store = EtcdStore::connect(EtcdOptions::new([etcd.endpoint()])).await;
    Arc::new(store.expect("options"))
}

fn main() {
    if !(Etcd::available() && netns::ready()) {
        println!("needs etcd and root");
        return;
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(simulate());
    runtime.shutdown_background();
}

async fn simulate() {
    let (agents, services, each) = (
        size("AGENTS", 1_000),
        size("SERVICES", 10_000),
        size("EACH", 100),
    );
    println!(
        "{agents} agents, {services} services, {} endpoints",
        agents * each
    );
    let etcd = Etcd::start();
    let first = Registry::new(store(&etcd).await, "/heddle");
    let meter = Meter::start(&etcd, None);
    define(&first, services).await;
    meter.done("services written");
    let meter = Meter::start(&etcd, None);
    for n in 0..agents {
        register(&first, n, each, services, 0).await;
    }
    meter.done("registrations written");

    let simulation = follow(etcd, first, agents, services, each).await;
    let meter = Meter::start(&simulation.etcd, None);
    let running = start_agents(&simulation).await;
    simulation.until_published(0).await;
    meter.done("every agent started and published");

    let meter = Meter::start(&simulation.etcd, None);
    let node = Node::start(&NodeOptions {
        netns: Some(&simulation.lan.hosts[0].netns),
        etcd: Some(simulation.etcd.endpoint_at(simulation.lan.address.into())),
        vip_range: "10.96.0.0/16",
        ..NodeOptions::default()
    });
    eventually(Duration::from_secs(120), "the node has it all", || {
        node.metric("heddle_services", &[]) as usize == services
    });
    meter.done("first sync of a whole node");
    let (cpu, rss) = process(&node.pid().to_string());
    println!("  the node itself: {cpu:.2} s CPU since its start, RSS {rss} MiB");

    let mut watches = Watches::start(&simulation, agents).await;
    for round in 1..=5u8 {
        one_change(&simulation, &running[0].0, &mut watches, &node, round).await;
    }
    watches.stop.cancel();

    let few = size("WATCHERS", 20);
    let watches = Watches::start(&simulation, few).await;
    let meter = Meter::start(&simulation.etcd, Some(&node));
    let mut writers = tokio::task::JoinSet::new();
    for lot in 0..8 {
        let all: Vec<(usize, Registry)> = running
            .iter()
            .enumerate()
            .skip(lot)
            .step_by(8)
            .map(|(n, (registry, _))| (n, registry.clone()))
            .collect();
        writers.spawn(async move {
            for (n, registry) in all {
                register(&registry, n, each, services, 9).await;
            }
        });
    }
    while writers.join_next().await.is_some() {}
    simulation.until_published(9).await;
    meter.done(&format!(
        "rolling update of everything, {few} watchers and the node"
    ));
    println!(
        "  changes seen by each watcher: {}",
        watches.seen.load(Ordering::Relaxed) / few as u64
    );
    watches.stop.cancel();
    simulation.shutdown.cancel();
}

/// Writes the mesh and the services, without checks: a hundred thousand listeners are not what is measured.
async fn define(registry: &Registry, services: usize) {
    let wish = MeshWish {
        vip_ranges: Some(vec!["10.96.0.0/16".parse().expect("a range")]),
        zone: None,
    };
    registry.mesh(&wish).await.expect("the mesh's settings");
    let limit = registry.apply_limit();
    for lot in (0..services).collect::<Vec<_>>().chunks(limit) {
        let text: String = lot
            .iter()
            .map(|n| {
                format!(
                    "---\napiVersion: heddle/v1\nkind: Service\nmetadata: {{name: service-{n}, namespace: shop}}\n\
                     spec: {{selector: app=service-{n}, health: none, ports: [{{name: http, port: 80, protocol: http}}]}}\n"
                )
            })
            .collect();
        let manifests = manifest::parse(&text).expect("valid manifests");
        let options = ApplyOptions {
            manager: ManagedBy::Apply,
            ranges: vec!["10.96.0.0/16".parse().expect("a range")],
            dry_run: false,
        };
        registry
            .apply(&manifests, &options)
            .await
            .expect("etcd takes them");
    }
}

async fn register(registry: &Registry, n: usize, each: usize, services: usize, round: u8) {
    let node = node_name(n);
    let all: Vec<usize> = (0..each).collect();
    for lot in all.chunks(100) {
        let mut txn = Txn::new();
        for e in lot {
            let registration = registration(n, *e, each, services, round);
            let key = Key::Registration(node.clone(), registration.id.clone());
            txn.ops.push(Op::put(
                registry.keys().path(&key),
                registry::record::encode(&registration),
            ));
        }
        // etcd may be too busy to answer in time; the same again does no harm.
        while let Err(error) = registry.store().commit(txn.clone()).await {
            assert!(error.is_outage(), "{error}");
        }
    }
}

/// One catalog for all of the simulated agents, followed for real.
async fn follow(
    etcd: Etcd,
    registry: Registry,
    agents: usize,
    services: usize,
    each: usize,
) -> Simulation {
    let (out, mut updates) = mpsc::channel(64);
    let (catalog, seen) = watch::channel(Catalog::default());
    let (changes, _) = broadcast::channel(1024);
    let snapshot = Arc::new(ArcSwap::from_pointee(model::Snapshot::default()));
    let shutdown = CancellationToken::new();
    let follower = Follower::new(registry, FollowOptions::default());
    tokio::spawn(follower.run(out, shutdown.clone()));
    let (told, published) = (changes.clone(), snapshot.clone());
    tokio::spawn(async move {
        let mut builder = Builder::new(Identity {
            node: name("simulation"),
            seed: 1,
        });
        while let Some(update) = updates.recv().await {
            let Update::Changes {
                revision, changes, ..
            } = update
            else {
                continue;
            };
            builder.apply(revision, changes.iter().cloned());
            published.store(Arc::new(builder.snapshot().clone()));
            catalog.send_replace(builder.catalog().clone());
            let _ = told.send(changes.into());
        }
    });
    Simulation {
        lan: Lan::new(1),
        etcd,
        agents,
        services,
        each,
        catalog: seen,
        changes,
        snapshot,
        shutdown,
    }
}

/// Starts every agent with a connection, a lease and a publisher of its own.
async fn start_agents(simulation: &Simulation) -> Vec<(Registry, agent::Agent)> {
    let mut running = Vec::with_capacity(simulation.agents);
    for n in 0..simulation.agents {
        let registry = Registry::new(store(&simulation.etcd).await, "/heddle");
        let (findings, _) = mpsc::channel(1);
        let (events, _) = mpsc::channel(1);
        let agent = agent::start(
            agent::Options {
                seed: n as u64,
                ..agent::Options::new(node_name(n), vec![[10, 0, 0, 1].into()])
            },
            registry.clone(),
            agent::Inputs {
                catalog: simulation.catalog.clone(),
                changes: simulation.changes.subscribe(),
                snapshot: simulation.snapshot.clone(),
            },
            agent::Outputs { findings, events },
            simulation.shutdown.clone(),
        );
        let alive = registry.clone();
        let shutdown = simulation.shutdown.clone();
        tokio::spawn(async move {
            let (ttl, grace) = (Duration::from_secs(60), Duration::from_secs(60));
            alive.keep_alive(node_name(n), ttl, grace, shutdown).await;
        });
        running.push((registry, agent));
    }
    running
}

impl Simulation {
    /// Waits until the catalog has every endpoint at its address of this round.
    async fn until_published(&self, round: u8) {
        let mut seen = self.catalog.clone();
        let deadline = Instant::now() + Duration::from_secs(900);
        loop {
            let catalog = seen.borrow_and_update().clone();
            let there: usize = catalog
                .slices
                .values()
                .flat_map(|by_node| by_node.values())
                .flat_map(|slice| &slice.endpoints)
                .filter(|e| {
                    let second = |ip: std::net::IpAddr| match ip {
                        std::net::IpAddr::V4(ip) => ip.octets()[1],
                        std::net::IpAddr::V6(_) => 255,
                    };
                    e.local.first().is_some_and(|a| second(a.ip()) == round)
                })
                .count();
            if there >= self.agents * self.each {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "only {there} of {} endpoints are published",
                self.agents * self.each
            );
            // A look at so many endpoints costs CPU time that is measured: no more than ten a second.
            let _ = tokio::time::timeout(Duration::from_millis(500), async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                seen.changed().await
            })
            .await;
        }
    }
}

/// Watches of the whole prefix as each node has one, which only count.
struct Watches {
    seen: Arc<AtomicU64>,
    /// When a watch had the slice of agent 0's first endpoint.
    arrivals: mpsc::UnboundedReceiver<Instant>,
    count: usize,
    stop: CancellationToken,
}

impl Watches {
    async fn start(simulation: &Simulation, count: usize) -> Self {
        let stop = CancellationToken::new();
        let seen = Arc::new(AtomicU64::new(0));
        let (arrived, arrivals) = mpsc::unbounded_channel();
        let ready = Arc::new(AtomicUsize::new(0));
        let revision = simulation.catalog.borrow().revision;
        for _ in 0..count {
            let store = store(&simulation.etcd).await;
            let (stop, seen, arrived, ready) =
                (stop.clone(), seen.clone(), arrived.clone(), ready.clone());
            tokio::spawn(async move {
                let root = Registry::new(store.clone(), "/heddle")
                    .keys()
                    .root()
                    .to_owned();
                let target = format!("{root}slices/shop/service-0/{}", node_name(0));
                let mut watch = store.watch(&root, revision).await.expect("a watch");
                ready.fetch_add(1, Ordering::Relaxed);
                loop {
                    let event = tokio::select! {
                        () = stop.cancelled() => return,
                        event = watch.next() => event.expect("the watch goes on"),
                    };
                    let WatchEvent::Changes { changes, .. } = event else {
                        continue;
                    };
                    seen.fetch_add(changes.len() as u64, Ordering::Relaxed);
                    if changes.iter().any(|c| c.key() == target) {
                        let _ = arrived.send(Instant::now());
                    }
                }
            });
        }
        let patience = Duration::from_secs(120);
        eventually_async(patience, "every watch is there", || async {
            ready.load(Ordering::Relaxed) == count
        })
        .await;
        // What led up to the present drains first: until no watch has seen anything for as long as one pause.
        let mut last = u64::MAX;
        while seen.load(Ordering::Relaxed) != last {
            last = seen.load(Ordering::Relaxed);
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        seen.store(0, Ordering::Relaxed);
        let mut watches = Watches {
            seen,
            arrivals,
            count,
            stop,
        };
        while watches.arrivals.try_recv().is_ok() {}
        watches
    }
}

/// One registration of one agent moves: until every watch has its new slice.
async fn one_change(
    simulation: &Simulation,
    registry: &Registry,
    watches: &mut Watches,
    node: &Node,
    round: u8,
) {
    let meter = Meter::start(&simulation.etcd, Some(node));
    let moved = registration(0, 0, simulation.each, simulation.services, round);
    let began = Instant::now();
    registry
        .register(&node_name(0), &moved)
        .await
        .expect("etcd takes it");
    let mut times = Vec::with_capacity(watches.count);
    while times.len() < watches.count {
        let at = tokio::time::timeout(Duration::from_secs(30), watches.arrivals.recv()).await;
        let at = at.expect("every watch hears of it").expect("watches run");
        times.push(at - began);
    }
    times.sort();
    println!(
        "one change at {} watches: first {:.1?}, p50 {:.1?}, last {:.1?}",
        watches.count,
        times[0],
        times[times.len() / 2],
        times[times.len() - 1]
    );
    meter.done("  its cost");
}
