//! Export and import: an exact round trip, on either backend and from one to the other.

mod support;

use std::fs;

use support::etcd::Etcd;
use support::node::{Node, NodeOptions, PATIENCE};
use support::wait::eventually;

const RESOURCES: &str = "
apiVersion: heddle/v1
kind: Service
metadata: {name: web, namespace: shop, labels: {team: front}, annotations: {note: 'it''s: \"quoted\" #1'}}
spec:
  selector: app=web,tier in (front,edge),!canary
  ports: [{name: http, port: 8080, targetPort: 80, protocol: http}]
  health: {http: {path: /healthz, expect: 200-299}, interval: 100ms}
  retries: {attempts: 2}
---
apiVersion: heddle/v1
kind: Service
metadata: {name: db}
spec: {ports: [{port: 5432}], headless: true}
---
apiVersion: heddle/v1
kind: Endpoint
metadata: {name: db-1}
spec: {service: db, address: '127.0.0.1', ports: {tcp: 5432}, weight: 3, zone: '010'}
";

const REGISTRATION: &str = "{id: w1, namespace: shop, labels: {app: web, tier: front, 'x y': '1e3'}, ports: [8080], check: {tcp: {}}}";

fn options(vip_range: &'static str) -> NodeOptions<'static> {
    NodeOptions {
        vip_range,
        ..NodeOptions::default()
    }
}

/// Applies, changes, registers and drains, so that there is one of each.
fn fill(node: &Node, asked_for: &str) {
    node.apply(RESOURCES);
    node.apply(&format!(
        "
apiVersion: heddle/v1
kind: Service
metadata: {{name: pinned}}
spec: {{ports: [{{port: 8081}}], vips: ['{asked_for}']}}
"
    ));
    eventually(PATIENCE, "it has the address that it asks for", || {
        (node.vip("default/pinned").to_string() == asked_for).then_some(())
    });
    node.apply(&RESOURCES.replace("attempts: 2", "attempts: 3"));
    let output = node.heddle_with(&["register", "-"], REGISTRATION);
    assert!(output.status.success());
    eventually(PATIENCE, "the registration is an endpoint", || {
        node.endpoints("shop/web").len() == 1
    });
    node.ok(&["drain", "node", "n1", "--reason", "kernel: update"]);
    node.ok(&["drain", "workload", "w1"]);
    node.ok(&["drain", "endpoint", "web/w1:http"]);
}

fn import(node: &Node, text: &str, words: &[&str]) -> String {
    let output = node.heddle_with(&[&["import", "-f", "-"], words].concat(), text);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn what_was_exported_comes_back_byte_by_byte_after_everything_was_lost() {
    let mut node = Node::start(&options("127.97.0.0/16"));
    fill(&node, "127.97.5.5");
    let vip = node.vip("shop/web");
    let exported = node.ok(&["export"]);
    for kind in [
        "Mesh",
        "Service",
        "VirtualIP",
        "Endpoint",
        "Registration",
        "Mark",
    ] {
        assert!(
            exported.contains(&format!("\nkind: {kind}\n")),
            "{exported}"
        );
    }
    assert!(exported.contains("generation: 2"), "{exported}");
    assert!(!exported.contains("resourceVersion"), "{exported}");
    node.stop();
    for file in ["registry.redb", "snapshot"] {
        fs::remove_file(node.path("state").join(file)).expect("there was one");
    }
    node.launch();
    eventually(PATIENCE, "the node has joined a new registry", || {
        (node.get("nodes").len() == 1).then_some(())
    });
    assert_eq!(node.get("services").len(), 0);

    let dry = import(&node, &exported, &["--dry-run"]);
    assert!(dry.contains("service shop/web created (dry run)"), "{dry}");
    assert_eq!(node.get("services").len(), 0);
    let said = import(&node, &exported, &[]);
    assert!(
        said.ends_with("created, 1 unchanged: in one transaction\n"),
        "{said}"
    );
    assert_eq!(node.ok(&["export"]), exported);
    assert_eq!(node.vip("shop/web"), vip);
    assert_eq!(node.vip("default/pinned").to_string(), "127.97.5.5");
    eventually(PATIENCE, "the registration is an endpoint again", || {
        let all = node.endpoints("shop/web");
        (all.first()?["state"] == "draining").then_some(())
    });
    assert!(import(&node, &exported, &[]).ends_with("nothing to write\n"));

    let json = node.ok(&["export", "-o", "json"]);
    assert!(import(&node, &json, &[]).ends_with("nothing to write\n"));
    let shop = node.ok(&["export", "-n", "shop"]);
    assert!(
        shop.contains("name: web") && !shop.contains("name: db"),
        "{shop}"
    );
}

#[test]
fn a_conflict_is_named_and_only_replace_writes_over_it() {
    let node = Node::start(&options("127.96.0.0/16"));
    node.apply(RESOURCES);
    let exported = node.ok(&["export"]);
    let edited = exported.replace("team: front", "team: back");
    let output = node.heddle_with(&["import", "-f", "-"], &edited);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        text.starts_with("error: ")
            && text.contains("Service shop/web differs in metadata.labels.team"),
        "{text}"
    );
    assert_eq!(node.ok(&["export"]), exported);
    let said = import(&node, &edited, &["--replace"]);
    assert!(said.starts_with("service shop/web replaced\n"), "{said}");
    assert_eq!(node.ok(&["export"]), edited);
    let manifest = node.heddle_with(&["import", "-f", "-"], RESOURCES);
    assert_eq!(
        manifest.status.code(),
        Some(2),
        "bad input: nothing was tried"
    );
}

#[test]
fn a_registry_moves_from_embedded_to_etcd_and_back_out_of_a_wiped_one() {
    let Some(etcd) = Etcd::start_or_skip("export") else {
        return;
    };
    let embedded = Node::start(&options("127.95.0.0/16"));
    fill(&embedded, "127.95.5.5");
    let exported = embedded.ok(&["export"]);
    drop(embedded);
    let mut node = Node::start(&NodeOptions {
        etcd: Some(etcd.endpoint()),
        ..options("127.95.0.0/16")
    });
    import(&node, &exported, &[]);
    assert_eq!(node.ok(&["export"]), exported);
    node.stop();
    etcd.ctl(&["del", "--prefix", "/heddle/"]);
    node.launch();
    import(&node, &exported, &[]);
    assert_eq!(node.ok(&["export"]), exported);
}
