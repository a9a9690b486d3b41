//! Events: what changed and why, as the command line shows it, across restarts and torn files.

mod support;

use std::io::Write as _;

use serde_json::Value;
use support::etcd::Etcd;
use support::node::{Node, NodeOptions, PATIENCE, Watching};
use support::wait::eventually;
use support::whoami::Whoami;

const SERVICE: &str = "
apiVersion: heddle/v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  selector: app=web
  ports: [{name: http, port: 8080, protocol: http}]
  health: {http: {path: /healthz}, interval: 50ms, timeout: 10s, fall: 1, rise: 1}
";

fn events(node: &Node, words: &[&str]) -> Vec<Value> {
    let text = node.ok(&[&["events", "-A", "-o", "json"], words].concat());
    serde_json::from_str(&text).expect("heddle prints JSON")
}

/// Waits for an event of this reason about this name; it.
#[track_caller]
fn event(node: &Node, reason: &str, name: &str) -> Value {
    eventually(PATIENCE, &format!("{reason} {name}"), || {
        let all = events(node, &[]);
        let found = all
            .iter()
            .rev()
            .find(|e| e["reason"] == reason && e["name"] == name);
        found.cloned().ok_or_else(|| {
            let seen: Vec<String> = all
                .iter()
                .map(|e| format!("{} {}", e["reason"], e["name"]))
                .collect();
            seen.join(", ")
        })
    })
}

fn registration(whoami: &Whoami) -> String {
    format!(
        "{{id: w1, namespace: shop, labels: {{app: web, heddle.port: \"{0}\"}}, ports: [{0}]}}",
        whoami.http.port()
    )
}

fn register(node: &Node, text: &str) {
    let output = node.heddle_with(&["register", "-"], text);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
}

#[test]
fn the_life_of_a_service_is_told_once_and_in_order() {
    let node = Node::start(&NodeOptions::default());
    let watching = Watching::start(&node, &["events", "-w", "-n", "shop"]);
    watching.sees(&["TIME", "REASON"]);
    node.apply(SERVICE);
    watching.sees(&["service", "web", "ServiceCreated", "selects app=web"]);
    let mut whoami = Whoami::start("a", &[]);
    register(&node, &registration(&whoami));
    let name = "web/w1:http";
    event(&node, "WorkloadRegistered", "w1");
    watching.sees(&[name, "EndpointReady"]);
    node.ok(&["drain", "endpoint", name, "--reason", "kernel update"]);
    watching.sees(&["EndpointDrained", "gets no new work: kernel update"]);
    node.ok(&["undrain", "endpoint", name]);
    watching.sees(&["EndpointUndrained"]);
    whoami.signal(libc::SIGKILL);
    whoami.ended_within(PATIENCE);
    let unhealthy = watching.sees(&[name, "EndpointUnhealthy"]);
    // A check that was under way just then saw its connection end.
    let ends = ["refused", "reset", "closed"];
    assert!(
        ends.iter().any(|end| unhealthy.contains(end)),
        "{unhealthy}"
    );
    node.apply(&SERVICE.replace("app=web", "app=nobody"));
    watching.sees(&["ServiceChanged", "selector was app=web, is app=nobody"]);
    watching.sees(&[name, "EndpointGone"]);
    node.ok(&["delete", "service", "web", "-n", "shop"]);
    watching.sees(&["ServiceDeleted"]);

    let all = events(&node, &["--for", "ep/web/w1"]);
    let reasons: Vec<&str> = all.iter().filter_map(|e| e["reason"].as_str()).collect();
    assert_eq!(
        reasons,
        [
            "EndpointAdded",
            "EndpointReady",
            "EndpointDrained",
            "EndpointUndrained",
            "EndpointUnhealthy",
            "EndpointGone"
        ]
    );
    let ids: Vec<u64> = all.iter().filter_map(|e| e["id"].as_u64()).collect();
    assert!(ids.is_sorted(), "{ids:?}");
    assert_eq!(
        node.metric("heddle_events_total", &["reason=\"EndpointUnhealthy\""]),
        1.0
    );
    assert_eq!(node.metric("heddle_events_dropped_total", &[]), 0.0);

    let table = node.ok(&[
        "events",
        "-n",
        "shop",
        "--since",
        "1h",
        "--for",
        "service/web",
    ]);
    assert!(
        table.contains("ServiceCreated") && !table.contains("EndpointGone"),
        "{table}"
    );
    let none = node.ok(&["events", "-n", "other", "--for", "service/web"]);
    assert!(!none.contains("ServiceCreated"), "{none}");
}

#[test]
fn bad_questions_are_refused_by_name() {
    let node = Node::start(&NodeOptions::default());
    for (words, why) in [
        (["events", "--for", "pod/web"], "unknown kind pod"),
        (["events", "--since", "yesterday"], "--since yesterday"),
    ] {
        let output = node.heddle(&words);
        assert_eq!(output.status.code(), Some(2));
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.starts_with("error: ") && text.contains(why), "{text}");
    }
}

#[test]
fn the_history_survives_a_restart_a_crash_and_a_torn_line() {
    let mut node = Node::start(&NodeOptions::default());
    node.apply(SERVICE);
    let created = event(&node, "ServiceCreated", "web");
    node.stop();
    node.launch();
    assert_eq!(
        event(&node, "ServiceCreated", "web"),
        created,
        "told once, kept as it was"
    );
    eventually(PATIENCE, "the new life is told after the old", || {
        let all = events(&node, &[]);
        all.iter().any(|e| {
            e["reason"] == "NodeAlive"
                && e["name"] == "n1"
                && e["id"].as_u64() > created["id"].as_u64()
        })
    });

    node.apply(&SERVICE.replace("app=web", "app=x"));
    event(&node, "ServiceChanged", "web");
    let file = node.path("state").join("events");
    eventually(PATIENCE, "it is on disk", || {
        let text = std::fs::read_to_string(&file).ok()?;
        text.contains("ServiceChanged").then_some(())
    });
    node.kill();
    let mut torn = std::fs::OpenOptions::new()
        .append(true)
        .open(&file)
        .expect("the events are there");
    torn.write_all(b"{\"id\": 99, \"at\": \"20")
        .expect("it is torn");
    drop(torn);
    node.launch();
    node.ok(&["delete", "service", "web", "-n", "shop"]);
    event(&node, "ServiceDeleted", "web");
    let all = events(&node, &["--for", "service/web"]);
    let reasons: Vec<&str> = all.iter().filter_map(|e| e["reason"].as_str()).collect();
    let told = |reason: &str| reasons.iter().filter(|r| **r == reason).count();
    for reason in ["ServiceCreated", "ServiceChanged", "ServiceDeleted"] {
        assert_eq!(told(reason), 1, "{reasons:?}");
    }
    let mut ids: Vec<u64> = events(&node, &[])
        .iter()
        .filter_map(|e| e["id"].as_u64())
        .collect();
    assert!(ids.is_sorted());
    ids.dedup();
    assert_eq!(ids.len(), events(&node, &[]).len(), "no id twice");
}

#[test]
fn what_happened_while_a_node_was_away_is_told_with_its_own_time() {
    let Some(mut etcd) = Etcd::start_or_skip("events") else {
        return;
    };
    let url = etcd.endpoint();
    let options = |name: &'static str| NodeOptions {
        name,
        etcd: Some(url.clone()),
        vip_range: "127.99.0.0/16",
        ..NodeOptions::default()
    };
    let first = Node::start(&options("n1"));
    first.apply(SERVICE);
    let mut late = Node::start(&options("n2"));
    eventually(PATIENCE, "n2 sees the service", || late.service("shop/web"));
    let before = events(&late, &["--for", "service/web"]);
    let created: Vec<&Value> = before
        .iter()
        .filter(|e| e["reason"] == "ServiceCreated")
        .collect();
    assert!(created.is_empty(), "what was there is no news: {before:?}");
    event(&late, "RegistryFirstSeen", "registry");

    late.stop();
    first.ok(&["delete", "service", "web", "-n", "shop"]);
    first.apply(&SERVICE.replace("name: web", "name: db"));
    let there = event(&first, "ServiceCreated", "db");
    late.launch();
    let here = event(&late, "ServiceCreated", "db");
    assert_eq!(here["at"], there["at"], "when it happened, by the record");
    event(&late, "ServiceDeleted", "web");

    etcd.stop();
    event(&late, "RegistryLost", "registry");
    etcd.restart();
    event(&late, "RegistryBack", "registry");
}

#[test]
fn describe_says_what_and_why_not() {
    let node = Node::start(&NodeOptions::default());
    node.apply(SERVICE);
    let whoami = Whoami::start("a", &[]);
    register(&node, &registration(&whoami));
    register(
        &node,
        "{id: w2, namespace: shop, labels: {app: other}, ports: [1]}",
    );
    node.eligible("shop/web", 1);
    event(&node, "EndpointReady", "web/w1:http");
    eventually(PATIENCE, "w2 is seen", || node.workload("w2"));
    let text = node.ok(&["describe", "service", "web", "-n", "shop"]);
    for line in [
        "Service:      shop/web",
        "Selector:     app=web",
        "  http 8080/http, 1 of 1 endpoints take traffic",
        "      traffic    takes new work",
        "      admin      enabled",
        "  w2: not selected",
        "ServiceCreated: made by apply",
        "EndpointReady web/w1:http",
    ] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
    node.ok(&["drain", "workload", "w1", "--reason", "kernel update"]);
    eventually(PATIENCE, "the endpoint says why it takes nothing", || {
        let text = node.ok(&["describe", "endpoint", "web/w1"]);
        let why = "Traffic:      none: workload w1 on n1 drained: kernel update";
        if text.contains(why) {
            Ok(())
        } else {
            Err(text)
        }
    });
    event(&node, "WorkloadDrained", "w1");
    let text = node.ok(&["describe", "workload", "w1"]);
    assert!(
        text.contains("shop/web: selected by `app=web`") && text.contains("WorkloadDrained"),
        "{text}"
    );
    let text = node.ok(&["describe", "node", "n1"]);
    assert!(
        text.contains("shop/web: 0 of 1 endpoints take traffic") && text.contains("NodeJoined"),
        "{text}"
    );

    for (words, code, why) in [
        (
            ["describe", "service", "wbe", "-n", "shop"],
            1,
            "does not exist in namespace shop, did you mean web?",
        ),
        (
            ["describe", "service", "web", "-n", "blog"],
            1,
            "but as shop/web",
        ),
        (
            ["describe", "workload", "w", "-n", "shop"],
            1,
            "2 match on the node that was asked (name more of it)\n  w1\n  w2",
        ),
        (
            ["describe", "servce", "web", "-n", "shop"],
            2,
            "did you mean service?",
        ),
    ] {
        let output = node.heddle(&words);
        assert_eq!(output.status.code(), Some(code), "{words:?}");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.starts_with("error: ") && text.contains(why), "{text}");
    }
}
