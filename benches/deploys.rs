//! What clients see while one of three backends is stopped and started again every second, at half the rate that this
//! machine can bear: in an orderly way, by one that closes its listener at once, and by SIGKILL.
//!
//! `cargo bench --bench deploys`, as root with Docker installed; `SECONDS` is for how long each.
//!
//! Each POST has an id, which a backend writes to a journal before it answers: what was executed twice shows there. A POST
//! may fail only where nobody can know whether it was executed: its endpoint broke off after it had been sent.

#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use support::docker::{self, Dockerd, RunOptions};
use support::load::{Load, Plan};
use support::netns::Netns;
use support::node::{Node, NodeOptions, PATIENCE};
use support::wait::eventually;

const NAMES: [&str; 3] = ["aa", "bb", "cc"];
const CONNECTIONS: usize = 32;
const EVERY: Duration = Duration::from_secs(1);
const SERVICE: &str = "
apiVersion: heddle/v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: app=web, ports: [{name: http, port: 80, targetPort: 8080, protocol: http}]}
";

/// How a backend ends.
#[derive(Clone, Copy)]
enum End {
    Orderly,
    ListenerAtOnce,
    Killed,
}

impl End {
    fn words(self) -> &'static str {
        match self {
            End::Orderly => "orderly",
            End::ListenerAtOnce => "listener closed at once",
            End::Killed => "kill -9",
        }
    }
}

/// The backends and what they have executed.
struct Backends<'a> {
    docker: &'a Dockerd,
    folder: &'a Path,
}

impl Backends<'_> {
    fn run(&self, end: End) {
        let on_term = match end {
            End::Orderly => "drain",
            End::ListenerAtOnce | End::Killed => "close",
        };
        let volume = format!("{}:/journal", self.folder.display());
        for name in NAMES {
            self.docker.run(RunOptions {
                name,
                labels: &[("heddle.namespace", "shop"), ("app", "web")],
                extra: &["--volume", &volume],
                args: &[
                    "whoami",
                    "--name",
                    name,
                    "--on-term",
                    on_term,
                    "--linger",
                    "300ms",
                    "--journal",
                    "/journal/all",
                ],
                ..RunOptions::default()
            });
        }
    }

    fn replace(&self, name: &str, end: End) {
        match end {
            End::Killed => self.docker.kill(name),
            End::Orderly | End::ListenerAtOnce => self.docker.stop(name),
        }
        self.docker.start_container(name);
    }

    /// How many ids were executed more than once.
    fn executed_twice(&self) -> usize {
        let all = std::fs::read_to_string(self.folder.join("all")).expect("a journal");
        let mut times: HashMap<&str, u32> = HashMap::new();
        for id in all.lines() {
            *times.entry(id).or_default() += 1;
        }
        times.values().filter(|times| **times > 1).count()
    }

    fn remove(&self) {
        for name in NAMES {
            self.docker.rm(name);
        }
        std::fs::remove_file(self.folder.join("all")).expect("a journal");
    }
}

/// Answers a second when nothing holds the connections back, and nothing else happens.
fn peak(plan: &Plan, netns: &Netns) -> f64 {
    let plan = Plan {
        pause: Duration::ZERO,
        ..plan.clone()
    };
    let load = Load::start(&plan, Some(netns));
    eventually(PATIENCE, "it is warm", || load.answered() > 2_000);
    let (before, began) = (load.answered(), Instant::now());
    std::thread::sleep(Duration::from_secs(4));
    let rate = (load.answered() - before) as f64 / began.elapsed().as_secs_f64();
    let tally = load.stop();
    assert_eq!(tally.failed, 0, "{tally:#?}");
    rate
}

fn main() {
    if !docker::ready() {
        return;
    }
    let seconds = std::env::var("SECONDS").map_or(60, |v| v.parse().expect("a number"));
    let netns = Netns::new();
    let docker = Dockerd::start_in("deploys", &netns);
    let node = Node::start(&NodeOptions {
        netns: Some(&netns),
        docker: Some(&docker),
        vip_range: "10.96.0.0/16",
        ..NodeOptions::default()
    });
    node.apply(SERVICE);
    let folder = tempfile::tempdir().expect("a folder");
    let backends = Backends {
        docker: &docker,
        folder: folder.path(),
    };
    for end in [End::Orderly, End::ListenerAtOnce, End::Killed] {
        for method in ["GET", "POST"] {
            backends.run(end);
            node.eligible("shop/web", 3);
            let plan = Plan {
                address: SocketAddr::new(node.vip("shop/web"), 80),
                method,
                path: match method {
                    "GET" => "/id".to_owned(),
                    _ => "/execute?id={id}".to_owned(),
                },
                connections: CONNECTIONS,
                pause: Duration::ZERO,
            };
            let peak = peak(&plan, &netns);
            // As long as an answer takes at the peak, which makes it half of that.
            let pause = Duration::from_secs_f64(CONNECTIONS as f64 / peak);
            let load = Load::start(&Plan { pause, ..plan }, Some(&netns));
            let began = Instant::now();
            let mut ends = 0u32;
            // Docker takes longer than a second for both: the next one goes before the last is back.
            std::thread::scope(|scope| {
                while began.elapsed() < Duration::from_secs(seconds) {
                    let name = NAMES[ends as usize % 3];
                    scope.spawn(|| backends.replace(name, end));
                    ends += 1;
                    let next = began + EVERY * ends;
                    std::thread::sleep(next.saturating_duration_since(Instant::now()));
                }
            });
            let took = began.elapsed();
            let tally = load.stop();
            println!(
                "{}, {method}: {ends} times in {took:.0?}; peak {peak:.0} a second, then {:.0}; {} answered, {} failed \
                 ({} of unknown fate), slowest {:.0?}, executed twice: {}",
                end.words(),
                tally.answered as f64 / took.as_secs_f64(),
                tally.answered,
                tally.failed,
                tally.unknown,
                tally.slowest,
                backends.executed_twice(),
            );
            for failure in tally.failures {
                println!("  {failure}");
            }
            backends.remove();
        }
    }
}
