//! Rolling deploys under load: one of three containers is stopped and started again every two seconds, and no request
//! fails.

mod support;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use support::docker::{self, Dockerd, RunOptions};
use support::load::{Load, Plan, Tally};
use support::netns::Netns;
use support::node::{Node, NodeOptions};
use support::wait::eventually;

const DEPLOYING: Duration = Duration::from_secs(30);
const EVERY: Duration = Duration::from_secs(2);
const ENOUGH: u64 = 10_000;
const AT_MOST: Duration = Duration::from_secs(300);

fn service(retries: &str) -> String {
    format!(
        "apiVersion: heddle/v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\nspec:\n  selector: app=web\n  \
         ports: [{{name: http, port: 80, targetPort: 8080, protocol: http}}]\n  retries: {retries}\n"
    )
}

/// Deploys three containers again and again under load; `None` where that is not possible here.
fn deploy(on_term: &str, method: &'static str, retries: &str) -> Option<Tally> {
    if !docker::ready() {
        return None;
    }
    let netns = Netns::new();
    let docker = Dockerd::start_in("deploys", &netns);
    let node = Node::start(&NodeOptions {
        netns: Some(&netns),
        docker: Some(&docker),
        vip_range: "10.96.0.0/16",
        ..NodeOptions::default()
    });
    node.apply(&service(retries));
    let names = ["aa", "bb", "cc"];
    for name in names {
        docker.run(RunOptions {
            name,
            labels: &[("heddle.namespace", "shop"), ("app", "web")],
            args: &["whoami", "--name", name, "--on-term", on_term],
            ..RunOptions::default()
        });
    }
    node.eligible("shop/web", 3);
    let plan = Plan {
        address: SocketAddr::new(node.vip("shop/web"), 80),
        method,
        path: "/echo".to_owned(),
        connections: 64,
        pause: Duration::from_millis(20),
    };
    let plan = Plan {
        path: if method == "GET" {
            "/id".to_owned()
        } else {
            plan.path.clone()
        },
        ..plan
    };
    let load = Load::start(&plan, Some(&netns));
    let began = Instant::now();
    let mut rounds = 0u32;
    // On a slow machine for longer, until there was load enough.
    while began.elapsed() < DEPLOYING || load.answered() < ENOUGH && began.elapsed() < AT_MOST {
        let name = names[rounds as usize % 3];
        rounds += 1;
        docker.stop(name);
        docker.start_container(name);
        node.eligible("shop/web", 3);
        let next = began + EVERY * rounds;
        eventually(AT_MOST, "the next deploy is due", || Instant::now() >= next);
    }
    let tally = load.stop();
    eprintln!(
        "{method}, on TERM {on_term}: {rounds} deploys, {} answered, {} failed",
        tally.answered, tally.failed
    );
    assert!(tally.answered >= ENOUGH, "hardly any load: {tally:?}");
    Some(tally)
}

#[test]
fn posts_without_retries_survive_deploys_of_an_app_that_serves_on_for_a_second() {
    if let Some(tally) = deploy("drain", "POST", "{attempts: 0}") {
        assert_eq!(tally.failed, 0, "{tally:#?}");
    }
}

#[test]
fn gets_survive_deploys_of_an_app_that_closes_its_listener_at_once() {
    if let Some(tally) = deploy("close", "GET", "{attempts: 1}") {
        assert_eq!(tally.failed, 0, "{tally:#?}");
    }
}
