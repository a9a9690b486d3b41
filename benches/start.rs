//! From Docker's `start` event to the first answer through the virtual IP, for an app that listens at once.
//!
//! `cargo bench --bench start`, as root with Docker installed.

#[path = "../tests/support/mod.rs"]
mod support;

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use support::docker::{self, Dockerd, RunOptions};
use support::http;
use support::netns::Netns;
use support::node::{Node, NodeOptions, PATIENCE};
use support::wait::eventually;

const SAMPLES: usize = 50;

fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("the clock is past 1970")
}

fn main() {
    if !docker::ready() {
        return;
    }
    let netns = Netns::new();
    let docker = Dockerd::start_in("start", &netns);
    let node = Node::start(&NodeOptions {
        netns: Some(&netns),
        docker: Some(&docker),
        vip_range: "10.96.0.0/16",
        ..NodeOptions::default()
    });
    node.apply(
        "apiVersion: heddle/v1\nkind: Service\nmetadata: {name: web, namespace: default}\n\
         spec: {selector: app=web, ports: [{name: http, port: 80, targetPort: 8080, protocol: http}]}\n",
    );
    let vip = SocketAddr::new(node.vip("default/web"), 80);
    let events = docker.events();
    let mut times: Vec<Duration> = Vec::new();
    for sample in 0..SAMPLES {
        let name = format!("sample-{sample}");
        let answered = std::thread::scope(|scope| {
            let asking = scope.spawn(|| {
                netns.enter(|| {
                    eventually(
                        PATIENCE,
                        "an answer",
                        || matches!(http::get(vip, "/id"), Ok(a) if a.status == 200),
                    );
                    now()
                })
            });
            docker.run(RunOptions {
                name: &name,
                labels: &[("app", "web")],
                ..RunOptions::default()
            });
            asking.join().expect("it asks until it is answered")
        });
        let event = events.next("start", Duration::from_secs(10));
        let started =
            Duration::from_nanos(event["timeNano"].as_u64().expect("an event has a time"));
        times.push(answered.saturating_sub(started));
        docker.rm(&name);
        node.eligible("default/web", 0);
    }
    times.sort();
    let at = |percent: usize| times[(SAMPLES * percent / 100).min(SAMPLES - 1)];
    println!(
        "start event to first answer, {SAMPLES} containers: p50 {:?}, p95 {:?}, max {:?}",
        at(50),
        at(95),
        at(100)
    );
}
