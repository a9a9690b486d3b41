//! A real Docker: containers that stay unhealthy are restarted where their service asks for it, and nowhere else.

mod support;

use std::net::SocketAddr;

use support::docker::{RunOptions, Setup};
use support::http;
use support::node::PATIENCE;
use support::shop::Shop;
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

/// What the container's process answers to health checks from now on.
fn set_health(host: &Shop, container: &str, status: u16) {
    let address = SocketAddr::new(host.docker.address(container, "bridge"), 8080);
    let answer = host
        .netns
        .enter(|| http::post(address, &format!("/health?status={status}"), ""))
        .expect("the container answers");
    assert_eq!(answer.status, 200);
}

fn started(host: &Shop, container: &str) -> String {
    host.docker.inspect(container)["State"]["StartedAt"].to_string()
}

#[track_caller]
fn until(host: &Shop, container: &str, state: &str) {
    let what = format!("{container} is {state}");
    eventually(PATIENCE, &what, || {
        let all = host.node.get("endpoints");
        let found = all.iter().find(|e| e["workloadName"] == container);
        match found {
            Some(endpoint) if endpoint["state"] == state => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

#[test]
fn what_stays_unhealthy_is_restarted_where_its_service_asks_for_it_and_nothing_else() {
    let Some(host) = Shop::start(Setup::default()) else {
        return;
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
    let before: Vec<String> = others.map(|name| started(&host, name)).to_vec();
    let first = started(&host, "aa");
    host.node.ok(&["drain", "workload", "drained"]);
    host.docker.pause("paused");
    set_health(&host, "drained", 503);
    set_health(&host, "calm", 503);
    until(&host, "drained", "draining");
    until(&host, "paused", "unhealthy");
    until(&host, "calm", "unhealthy");

    set_health(&host, "aa", 503);
    eventually(PATIENCE, "aa is restarted", || {
        started(&host, "aa") != first
    });
    // Its new process is healthy.
    until(&host, "aa", "ready");
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
    assert_eq!(others.map(|name| started(&host, name)).to_vec(), before);
    assert_eq!(restarts(&[]), 1.0);
}
