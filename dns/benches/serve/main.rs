//! What a query costs the server: with few names and many, with one worker and two, forwarded and cached; and how soon a
//! change is answered.
//!
//! `cargo bench -p dns --bench serve` asks with `dnsperf` and counts the CPU time of the server's threads alone; `-- names`,
//! `workers`, `forwarded` or `changes` is a part of it. What is compared is asked in turn, and medians are printed.
//! `cargo bench -p dns --bench serve -- ADDRESS SERVICES WORKERS` only serves, for a comparison with others.

mod load;
mod mesh;
mod peers;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use dns::{Follower, Options, Server, Upstream};
use load::{Target, Who, alternate};
use mesh::Mesh;
use model::name::ServiceKey;
use model::snapshot::Snapshot;
use tokio_util::sync::CancellationToken;

/// Endpoints of each service where changes are measured.
const ENDPOINTS: u32 = 10;

fn main() {
    let given: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    if let [address, services, workers] = given.as_slice() {
        let number = |text: &str| text.parse::<u32>().expect("a number");
        let address = address.parse().expect("an address");
        let mesh = Mesh::new(number(services), 0);
        Running::start(mesh, address, number(workers) as usize, Vec::new()).wait();
        return;
    }
    let parts: [(&str, fn()); 4] = [
        ("names", names),
        ("workers", workers),
        ("forwarded", forwarded),
        ("changes", changes),
    ];
    for (part, run) in parts {
        if given.is_empty() || given.iter().any(|given| given == part) {
            println!("{part}:");
            run();
        }
    }
}

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// As many questions whatever the number of names, because the load has a cost too.
fn questions(services: u32, name: impl Fn(u32) -> String) -> String {
    const QUESTIONS: u32 = 100_000;
    let mut state = 7u32;
    let lines = (0..QUESTIONS).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        name((state >> 8) % services) + "\n"
    });
    lines.collect()
}

fn ours(services: u32, kind: &str) -> String {
    let prefix = if kind == "SRV" { "_http._tcp." } else { "" };
    questions(services, |index| {
        format!("{prefix}svc{index}.default.svc.heddle.internal {kind}")
    })
}

fn names() {
    let sizes = [1_000, 100_000];
    let running = sizes.map(|size| Running::start(Mesh::new(size, 0), ANY, 1, Vec::new()));
    for kind in ["A", "SRV"] {
        let targets = [0, 1].map(|index| Target {
            label: format!("{kind}, {} names", sizes[index]),
            address: running[index].address,
            who: Who::Threads("dns-"),
            questions: ours(sizes[index], kind),
        });
        if let [few, many] = alternate(&targets)[..] {
            println!("{kind}: {:.3} times", many / few);
        }
    }
}

fn workers() {
    let running =
        [1, 2].map(|workers| Running::start(Mesh::new(1_000, 0), ANY, workers, Vec::new()));
    let mut targets: Vec<Target> = running
        .iter()
        .zip(1..)
        .map(|(running, workers)| Target {
            label: format!("A, {workers} workers"),
            address: running.address,
            who: Who::Threads("dns-"),
            questions: ours(1_000, "A"),
        })
        .collect();
    for (threads, prefix) in [(1, "echo1-"), (2, "echo2-")] {
        targets.push(Target {
            label: format!("echo, {threads} threads"),
            address: peers::echo(threads).expect("an address for the echo"),
            who: Who::Threads(prefix),
            questions: ours(1_000, "A"),
        });
    }
    if let [one, two, echo_one, echo_two] = alternate(&targets)[..] {
        println!(
            "A: {:.3} times, echo: {:.3} times",
            two / one,
            echo_two / echo_one
        );
    }
}

fn forwarded() {
    let upstream = peers::upstream().expect("an address for the upstream");
    let to = vec![Upstream::Address(upstream)];
    let running = Running::start(Mesh::new(1_000, 0), ANY, 1, to);
    let unbound = match peers::Unbound::start(upstream) {
        Ok(unbound) => unbound,
        Err(error) => return println!("unbound is not there to compare with: {error}"),
    };
    let all = questions(1_000, |index| format!("host{index}.example.com A"));
    let targets = [
        ("cached", running.address, Who::Threads("dns-")),
        ("unbound", unbound.address, Who::Process(unbound.process())),
    ]
    .map(|(label, address, who)| Target {
        label: label.to_owned(),
        address,
        who,
        questions: all.clone(),
    });
    if let [cached, unbound] = alternate(&targets)[..] {
        println!("{:.3} times unbound's", cached / unbound);
    }
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
    fn start(mesh: Mesh, address: SocketAddr, workers: usize, upstreams: Vec<Upstream>) -> Running {
        let snapshot = Arc::new(ArcSwap::new(mesh.snapshot()));
        let server = Server::bind(Options {
            listen: vec![address],
            upstreams,
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
        let thread = std::thread::Builder::new()
            .name("dns-runtime".to_owned())
            .spawn(move || runtime.block_on(server.run(stop)))
            .expect("a thread");
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
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.cancel();
        let _ = self.thread.take().map(|thread| thread.join());
    }
}

/// From the snapshot's publication to the table that answers are copied out of, with 100,000 endpoints.
fn changes() {
    let services = 100_000 / ENDPOINTS;
    let mut running = Running::start(Mesh::new(services, ENDPOINTS), ANY, 1, Vec::new());
    let mut times = Vec::new();
    for round in 0..200 {
        let key: ServiceKey = format!("default/svc{}", round * 37 % services)
            .parse()
            .expect("a key");
        running
            .mesh
            .change(&key, 0x0010_0000 + round * ENDPOINTS, ENDPOINTS);
        let snapshot = running.mesh.snapshot();
        let began = Instant::now();
        running.snapshot.store(snapshot.clone());
        running.follower.published(&snapshot, Some(&[key]));
        while running.follower.epoch() != Some(snapshot.epoch) {
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
