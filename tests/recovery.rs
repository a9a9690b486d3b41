//! A real Docker: containers that stay unhealthy are restarted where their service asks for it, and nowhere else.

mod support;

use std::net::SocketAddr;

use support::docker::{self, Dockerd, RunOptions};
use support::http;
use support::netns::Netns;
use support::node::{Node, NodeOptions, PATIENCE};
use support::wait::eventually;

fn service(name: &str, recovery: &str) -> String {
    format!(
        "
apiVersion: heddle/v1
kind: Service
metadata: {{name: {name}}}
spec:
  selector: app={name}
  ports: [{{name: http, port: 80, targetPort: 8080, protocol: http}}]
  health: {{http: {{path: /healthz}}, interval: 200ms, fall: 2}}
{recovery}
---"
    )
}

/// A host with Docker and a node on it.
struct Host {
    node: Node,
    docker: Dockerd,
    netns: Netns,
}

impl Host {
    /// What `POST /health` of the container's process says from now on.
    fn set_health(&self, container: &str, status: u16) {
        let address = SocketAddr::new(self.docker.address(container, "bridge"), 8080);
        let answer = self
            .netns
            .enter(|| http::post(address, &format!("/health?status={status}"), ""))
            .expect("the container answers");
        assert_eq!(answer.status, 200);
    }

    fn started(&self, container: &str) -> String {
        self.docker.inspect(container)["State"]["StartedAt"].to_string()
    }

    #[track_caller]
    fn until(&self, container: &str, state: &str) {
        let what = format!("{container} is {state}");
        eventually(PATIENCE, &what, || {
            let all = self.node.get("endpoints");
            let found = all.iter().find(|e| e["workloadName"] == container);
            match found {
                Some(endpoint) if endpoint["state"] == state => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }
}

#[test]
fn what_stays_unhealthy_is_restarted_where_its_service_asks_for_it_and_nothing_else() {
    if !docker::ready() {
        return;
    }
    let netns = Netns::new();
    let docker = Dockerd::start_in("one", &netns);
    let node = Node::start(&NodeOptions {
        netns: Some(&netns),
        docker: Some(&docker),
        vip_range: "10.96.0.0/16",
        ..NodeOptions::default()
    });
    let host = Host {
        node,
        docker,
        netns,
    };
    host.node.apply(&format!(
        "{}{}",
        service("web", "  recovery: {action: restart, after: 1s}"),
        service("calm", "")
    ));
    for (name, app) in [
        ("aa", "web"),
        ("drained", "web"),
        ("paused", "web"),
        ("calm", "calm"),
    ] {
        host.docker.run(RunOptions {
            name,
            labels: &[("app", app)],
            ..RunOptions::default()
        });
    }
    host.node.eligible("default/web", 3);
    host.node.eligible("default/calm", 1);
    let yaml = host.node.ok(&["get", "services", "web", "-o", "yaml"]);
    assert!(
        yaml.contains("recovery:") && yaml.contains("after: 1s"),
        "{yaml}"
    );

    let others = ["drained", "paused", "calm"];
    let before: Vec<String> = others.map(|name| host.started(name)).to_vec();
    let first = host.started("aa");
    host.node.ok(&["drain", "workload", "drained"]);
    host.docker.pause("paused");
    host.set_health("drained", 503);
    host.set_health("calm", 503);
    host.until("drained", "draining");
    host.until("paused", "unhealthy");
    host.until("calm", "unhealthy");

    host.set_health("aa", 503);
    eventually(PATIENCE, "aa is restarted", || host.started("aa") != first);
    // Its new process is healthy.
    host.until("aa", "ready");
    let restarts = |labels: &[&str]| host.node.metric("heddle_recovery_restarts_total", labels);
    eventually(PATIENCE, "the restart is counted", || {
        restarts(&[
            "namespace=\"default\"",
            "service=\"web\"",
            "result=\"restarted\"",
        ]) == 1.0
    });
    let events = host.node.log();
    for reason in ["RecoveryRestarting", "RecoveryRestarted"] {
        assert!(events.contains(reason), "{events}");
    }
    let why = "its endpoint of default/web has failed for 1s: GET /healthz: 503 (want 200-399)";
    assert!(events.contains(why), "{events}");

    // They have failed for longer than it did.
    assert_eq!(others.map(|name| host.started(name)).to_vec(), before);
    assert_eq!(restarts(&[]), 1.0);
}
