//! Nodes whose etcd fails: its members, its token, its data.

mod support;

use std::net::{Ipv4Addr, SocketAddr};

use serde_json::Value;
use socket2::{Domain, Socket, Type};
use support::etcd::Cluster;
use support::node::{Node, NodeOptions, PATIENCE};
use support::wait::eventually;

const WEB: &str = "
apiVersion: heddle/v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  selector: app=web
  ports: [{port: 8080}]
";

/// Two nodes that share a cluster and its virtual IPs.
fn nodes(cluster: &Cluster, extra: &str) -> (Node, Node) {
    let endpoints = cluster.endpoints().join(",");
    let start = |name: &str| {
        Node::start(&NodeOptions {
            name,
            etcd: Some(endpoints.clone()),
            vip_range: "127.95.0.0/16",
            extra,
            ..NodeOptions::default()
        })
    };
    (start("n1"), start("n2"))
}

fn register(node: &Node, port: u16) {
    let registration = format!(
        "{{id: web-1, namespace: shop, labels: {{app: web}}, ports: [{port}], check: {{tcp: {{}}, interval: 100ms}}}}"
    );
    let file = node.path("registration.yaml");
    std::fs::write(&file, registration).expect("a file");
    node.ok(&["register", file.to_str().expect("a path")]);
}

/// The node's slice as etcd has it.
fn slice(cluster: &Cluster) -> String {
    let key = "/heddle/v1/slices/shop/web/n1";
    cluster.member(0).ctl(&["get", "--print-value-only", key])
}

fn alive(node: &Node) -> Vec<String> {
    let is_alive = |node: &&Value| node["status"] == "alive";
    let nodes = node.get("nodes");
    let names = nodes.iter().filter(is_alive);
    names
        .filter_map(|node| node["name"].as_str().map(str::to_owned))
        .collect()
}

#[test]
fn after_a_restore_nodes_put_back_what_is_theirs() {
    let Some(mut cluster) = Cluster::start_or_skip("a restore") else {
        return;
    };
    let (n1, n2) = nodes(&cluster, "");
    n1.apply(WEB);
    // Bound, so that nobody else takes its port; it refuses connections for as long as it doesn't listen.
    let backend = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    backend.bind(&any.into()).expect("a port");
    let address = backend.local_addr().expect("it is bound").as_socket();
    register(&n1, address.expect("an IPv4 address").port());
    eventually(PATIENCE, "the slice is there", || {
        let slice = slice(&cluster);
        slice.contains("web-1") && !slice.contains("passing")
    });
    let backup = n1.path("backup");
    cluster.member(0).save(&backup);
    // Nobody accepts what comes: the queue holds more than all checks of this test.
    backend.listen(4096).expect("it listens");
    n2.eligible("shop/web", 1);
    // Changed after the backup, and not by its owner: that is the operator's loss.
    n1.apply(&WEB.replace("name: web", "name: later"));

    cluster.restore(&backup);
    eventually(PATIENCE, "n1 publishes what it knows", || {
        slice(&cluster).contains("passing")
    });
    eventually(PATIENCE, "n2 sees the restored registry", || {
        n2.service("shop/later").is_none()
    });
    n2.eligible("shop/web", 1);
    eventually(PATIENCE, "both are alive", || {
        let alive = alive(&n2);
        if alive.len() == 2 {
            Ok(())
        } else {
            Err(format!("{alive:?}"))
        }
    });
    for node in [&n1, &n2] {
        let name = "heddle_registry_resyncs_total";
        assert!(node.metric(name, &["went_backwards"]) >= 1.0);
        eventually(PATIENCE, "the registry is fine", || {
            let (status, body) = node.readyz().ok_or("no answer".to_owned())?;
            let said = body["reasons"].to_string();
            let amiss = ["registry", "stale", "slices wait", "bad record"];
            if status == 200 && !amiss.iter().any(|word| said.contains(word)) {
                Ok(())
            } else {
                Err(said)
            }
        });
    }
    // And it is no frozen picture.
    n1.apply(&WEB.replace("name: web", "name: new"));
    eventually(PATIENCE, "n2 sees what comes", || {
        n2.service("shop/new").is_some()
    });
}

#[test]
fn nodes_log_in_with_user_and_password() {
    let Some(mut cluster) = Cluster::start_or_skip("users") else {
        return;
    };
    cluster.member_mut(0).enable_users("open-sesame");
    let folder = tempfile::tempdir().expect("a folder");
    let password = folder.path().join("password");
    std::fs::write(&password, "wrong-guess\n").expect("a file");
    let mut waiting = Node::prepare(&NodeOptions {
        etcd: Some(cluster.endpoints().join(",")),
        registry: &format!(
            "username = \"heddle\"\npassword_file = \"{}\"",
            password.display()
        ),
        ..NodeOptions::default()
    });
    waiting.spawn();
    eventually(PATIENCE, "it says what it waits for", || {
        let (status, body) = waiting.readyz().ok_or("no answer".to_owned())?;
        let said = body.to_string();
        if status == 503 && said.contains("authentication failed") {
            Ok(())
        } else {
            Err(said)
        }
    });
    std::fs::write(&password, "open-sesame\n").expect("a file");
    eventually(PATIENCE, "it is ready", || {
        waiting.readyz().is_some_and(|(status, _)| status == 200)
    });
    waiting.apply(WEB);
    let log = waiting.log();
    assert!(!log.contains("open-sesame") && !log.contains("wrong-guess"));
    assert!(waiting.metric("heddle_registry_authentications_total", &["ok"]) >= 1.0);
}
