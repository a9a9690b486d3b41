//! What a query costs the server, with few names and many, with one worker and two, and how soon a change is answered.
//!
//! `cargo bench -p dns --bench serve` asks with `dnsperf` and counts the CPU time of the server's threads alone.
//! `cargo bench -p dns --bench serve -- ADDRESS SERVICES WORKERS` only serves, for a comparison with others.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use dns::{Follower, Options, Server};
use model::catalog::Change;
use model::endpoint::{Endpoint, Fact, Health, Lifecycle, Slice};
use model::manifest::{self, Manifest};
use model::name::{Name, ServiceKey};
use model::service::{ManagedBy, Service};
use model::snapshot::{Builder, Freshness, Identity, Snapshot};
use model::time::Timestamp;
use tokio_util::sync::CancellationToken;

const SECONDS: u32 = 4;
/// Endpoints of each service where changes are measured.
const ENDPOINTS: u32 = 10;
/// Clock ticks of /proc/…/stat.
const TICKS: f64 = 100.0;

fn main() {
    let given: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    if let [address, services, workers] = given.as_slice() {
        let number = |text: &str| text.parse::<u32>().expect("a number");
        let address = address.parse().expect("an address");
        let mesh = Mesh::new(number(services), 0);
        let running = Running::start(mesh, address, number(workers) as usize);
        running.wait();
        return;
    }
    println!("names    workers  type   queries/s   CPU us/query");
    for (services, workers) in [(1_000, 1), (100_000, 1), (1_000, 2), (1_000, 1)] {
        let mesh = Mesh::new(services, 0);
        let running = Running::start(mesh, ([127, 0, 0, 1], 0).into(), workers);
        for kind in ["A", "SRV"] {
            running.load(services, workers, kind);
        }
    }
    changes();
}

struct Mesh {
    builder: Builder,
    revision: i64,
}

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

impl Mesh {
    /// Services `default/svcN` with a virtual IP each, or headless ones with so many endpoints.
    fn new(services: u32, endpoints: u32) -> Mesh {
        let mut builder = Builder::new(Identity {
            node: name("n1"),
            seed: 1,
        });
        let mut changes = Vec::new();
        for index in 0..services {
            let text = format!(
                "apiVersion: heddle/v1\nkind: Service\nmetadata: {{name: svc{index}}}\n\
                 spec: {{ports: [{{name: http, port: 8080, protocol: http}}], headless: {}}}\n",
                endpoints > 0
            );
            let Ok(Some(Manifest::Service(manifest))) =
                manifest::parse(&text).map(|mut all| all.pop())
            else {
                panic!("a service")
            };
            let service = Service {
                metadata: manifest.metadata,
                managed_by: ManagedBy::Apply,
                spec: manifest.spec,
            };
            let key = service.key();
            changes.push(Change::Service(key.clone(), Some(Arc::new(service))));
            if endpoints == 0 {
                let vip = std::net::Ipv4Addr::from(0x0a60_0000 + index);
                changes.push(Change::Vip(vip.into(), Some(key)));
            } else {
                changes.push(slice(key, index * endpoints, endpoints));
            }
        }
        builder.apply(1, changes);
        builder.set_freshness(Freshness::Fresh);
        Mesh {
            builder,
            revision: 1,
        }
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::new(self.builder.snapshot().clone())
    }
}

fn slice(service: ServiceKey, first: u32, count: u32) -> Change {
    let endpoint = |index: u32| {
        let ip = std::net::Ipv4Addr::from(0x0b00_0000 + first + index);
        let workload: Arc<str> = format!("w{}", first + index).into();
        Arc::new(Endpoint {
            workload: workload.clone(),
            name: workload,
            port: name("http"),
            generation: "g".into(),
            local: vec![SocketAddr::new(ip.into(), 8080)],
            remote: vec![],
            weight: 1,
            zone: None,
            hostname: None,
            health: Fact::new(Health::Passing, Timestamp(1), ""),
            lifecycle: Fact::new(Lifecycle::Running, Timestamp(1), ""),
        })
    };
    let slice = Slice {
        service: service.clone(),
        node: name("n1"),
        endpoints: (0..count).map(endpoint).collect(),
    };
    Change::Slice(service, name("n1"), Some(Arc::new(slice)))
}

struct Running {
    mesh: Mesh,
    address: SocketAddr,
    snapshot: Arc<ArcSwap<Snapshot>>,
    follower: Follower,
    shutdown: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Running {
    fn start(mesh: Mesh, address: SocketAddr, workers: usize) -> Running {
        let snapshot = Arc::new(ArcSwap::new(mesh.snapshot()));
        let server = Server::bind(Options {
            listen: vec![address],
            upstreams: Vec::new(),
            snapshot: snapshot.clone(),
            workers,
            ..Options::default()
        })
        .expect("an address to listen on");
        let address = server.addresses()[0];
        let follower = server.follower();
        let shutdown = CancellationToken::new();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let stop = shutdown.clone();
        let thread = std::thread::spawn(move || runtime.block_on(server.run(stop)));
        Running {
            mesh,
            address,
            snapshot,
            follower,
            shutdown,
            thread: Some(thread),
        }
    }

    fn wait(mut self) {
        println!("serving at {}", self.address);
        let _ = self.thread.take().map(|thread| thread.join());
    }

    fn load(&self, services: u32, workers: usize, kind: &str) {
        let prefix = if kind == "SRV" { "_http._tcp." } else { "" };
        let mut state = 7u32;
        let questions: String = (0..20_000.max(services))
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let index = (state >> 8) % services;
                format!("{prefix}svc{index}.default.svc.heddle.internal {kind}\n")
            })
            .collect();
        let file = std::env::temp_dir().join(format!("heddle-dns-bench-{}", std::process::id()));
        std::fs::write(&file, questions).expect("a temporary file");
        let before = cpu();
        let output = Command::new("dnsperf")
            .args(["-s", "127.0.0.1", "-p", &self.address.port().to_string()])
            .args(["-l", &SECONDS.to_string(), "-c", "8", "-q", "200", "-d"])
            .arg(&file)
            .output();
        let used = cpu() - before;
        let _ = std::fs::remove_file(&file);
        let Ok(output) = output else {
            println!("dnsperf is not installed: no load");
            return;
        };
        let text = String::from_utf8_lossy(&output.stdout);
        let completed = text
            .lines()
            .find_map(|line| line.trim().strip_prefix("Queries completed:"))
            .and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
        let Some(completed) = completed else {
            println!("dnsperf: {text}");
            return;
        };
        println!(
            "{services:>7}  {workers:>7}  {kind:<4}  {:>10.0}   {:>12.3}",
            completed / f64::from(SECONDS),
            used * 1e6 / completed
        );
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.cancel();
        let _ = self.thread.take().map(|thread| thread.join());
    }
}

/// Seconds that the threads which answer have run.
fn cpu() -> f64 {
    let mut ticks = 0.0;
    for task in std::fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten()
    {
        let Ok(stat) = std::fs::read_to_string(task.path().join("stat")) else {
            continue;
        };
        let Some((head, rest)) = stat.rsplit_once(')') else {
            continue;
        };
        let worker = head
            .split_once("(dns-")
            .is_some_and(|(_, index)| index.parse::<u32>().is_ok());
        if worker {
            let fields: Vec<&str> = rest.split_whitespace().collect();
            ticks += fields[11..13]
                .iter()
                .filter_map(|f| f.parse::<f64>().ok())
                .sum::<f64>();
        }
    }
    ticks / TICKS
}

/// From the snapshot's publication to an answer that shows it, with 100,000 endpoints.
fn changes() {
    let services = 100_000 / ENDPOINTS;
    let mesh = Mesh::new(services, ENDPOINTS);
    let mut running = Running::start(mesh, ([127, 0, 0, 1], 0).into(), 1);
    let tables = |follower: &Follower| follower.epoch();
    let mut times = Vec::new();
    for round in 0..200 {
        let key: ServiceKey = format!("default/svc{}", round * 37 % services)
            .parse()
            .expect("a key");
        let mesh = &mut running.mesh;
        mesh.revision += 1;
        let first = 0x0010_0000 + round * ENDPOINTS;
        mesh.builder
            .apply(mesh.revision, [slice(key.clone(), first, ENDPOINTS)]);
        let snapshot = mesh.snapshot();
        let began = Instant::now();
        running.snapshot.store(snapshot.clone());
        running.follower.published(&snapshot, Some(&[key]));
        while tables(&running.follower) != Some(snapshot.epoch) {
            std::thread::sleep(Duration::from_micros(10));
        }
        times.push(began.elapsed());
    }
    times.sort();
    println!(
        "{} endpoints: a change is prepared after {:?} (p50), {:?} (p99)",
        services * ENDPOINTS,
        times[times.len() / 2],
        times[times.len() * 99 / 100]
    );
}
