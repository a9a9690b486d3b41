//! Nodes that die, alone and many at once: what they leave is checked by the others, held or collected, and traffic goes on.

mod support;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use support::etcd::Etcd;
use support::http;
use support::load::{Load, Plan};
use support::netns::{self, Lan};
use support::node::{Node, NodeOptions, PATIENCE};
use support::shop::web_checked;
use support::wait::{eventually, throughout};
use support::whoami::Whoami;

const HEALTH: &str = "{http: {path: /healthz}, interval: 200ms, timeout: 1s, fall: 3, rise: 1}";

/// Hosts with a node each, named n1 and so on, and one etcd between them.
struct Mesh {
    nodes: Vec<Node>,
    /// `w1` on the first host and so on, where there is one.
    backends: Vec<Option<Whoami>>,
    etcd: Etcd,
    lan: Lan,
}

impl Mesh {
    /// `registry` are more keys of the configuration's `[registry]`.
    fn start(count: u8, registry: &str) -> Option<Mesh> {
        if !netns::ready() {
            return None;
        }
        let etcd = Etcd::start_or_skip("nodes that die")?;
        let lan = Lan::new(count);
        let url = etcd.endpoint_at(IpAddr::V4(lan.address));
        let nodes = (lan.hosts.iter().zip(1..)).map(|(host, n)| {
            Node::start(&NodeOptions {
                name: &format!("n{n}"),
                netns: Some(&host.netns),
                etcd: Some(url.clone()),
                registry,
                address: Some(IpAddr::V4(host.address)),
                vip_range: "10.96.0.0/16",
                dns: "10.96.0.10:53",
                ..NodeOptions::default()
            })
        });
        let nodes: Vec<Node> = nodes.collect();
        for node in &nodes {
            let what = "all nodes see each other";
            eventually(PATIENCE, what, || {
                let seen = node.get("nodes");
                seen.iter().filter(|n| n["status"] == "alive").count() == nodes.len()
            });
        }
        Some(Mesh {
            backends: nodes.iter().map(|_| None).collect(),
            nodes,
            etcd,
            lan,
        })
    }

    /// A backend on every host, registered with its node, and all of them in rotation everywhere.
    fn serve(&mut self) {
        self.nodes[0].apply(&web_checked(HEALTH));
        for host in 0..self.nodes.len() {
            self.backend(host);
            let text = format!(
                "{{id: w{}, namespace: shop, labels: {{app: web}}, ports: [8080]}}",
                host + 1
            );
            let file = self.nodes[host].path("registration.yaml");
            std::fs::write(&file, text).unwrap();
            self.nodes[host].ok(&["register", file.to_str().unwrap()]);
        }
        let all = self.nodes.len() as u64;
        for node in &self.nodes {
            node.eligible("shop/web", all);
        }
    }

    fn backend(&mut self, host: usize) {
        let netns = &self.lan.hosts[host].netns;
        let name = format!("w{}", host + 1);
        self.backends[host] = Some(Whoami::start_in(netns, "0.0.0.0:8080", &name, &[]));
    }

    /// Asks on a host until each of these has answered, and at least 15 times. Under load the turns of five are taken by
    /// others too.
    ///
    /// # Panics
    /// When anybody else answers, or nobody does.
    #[track_caller]
    fn answer(&self, host: usize, names: &[&str]) {
        let address = SocketAddr::new(self.nodes[host].vip("shop/web"), 80);
        let netns = &self.lan.hosts[host].netns;
        let mut all = BTreeSet::new();
        eventually(PATIENCE, &format!("{names:?} answer"), || {
            all.extend(netns.enter(|| http::ids(address, 15)));
            assert!(all.iter().all(|name| names.contains(&&**name)), "{all:?}");
            (all.len() == names.len())
                .then_some(())
                .ok_or_else(|| all.clone())
        });
    }

    fn load(&self, host: usize) -> Load {
        let plan = Plan {
            address: SocketAddr::new(self.nodes[host].vip("shop/web"), 80),
            method: "GET",
            path: "/id".to_owned(),
            connections: 2,
            pause: Duration::from_millis(5),
        };
        Load::start(&plan, Some(&self.lan.hosts[host].netns))
    }

    fn keys(&self, below: &str) -> Vec<String> {
        let prefix = format!("/heddle/v1/{below}");
        let text = self.etcd.ctl(&["get", "--prefix", "--keys-only", &prefix]);
        let keys = text.lines().filter_map(|line| line.strip_prefix(&prefix));
        keys.map(str::to_owned).collect()
    }

    fn revision(&self) -> i64 {
        let text = self.etcd.ctl(&["get", "x", "-w", "json"]);
        let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
        answer["header"]["revision"].as_i64().unwrap()
    }
}

fn until_node_is(seen_by: &Node, name: &str, status: &str) {
    eventually(PATIENCE, &format!("{name} is {status}"), || {
        let all = seen_by.get("nodes");
        let found = all.into_iter().find(|n| n["name"] == name);
        match found {
            Some(n) if n["status"] == status => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

/// Fails unless a service has this many endpoints that take work, now.
#[track_caller]
fn has(node: &Node, key: &str, count: u64) {
    let service = node.service(key).expect("the service is there");
    let port = &service["status"]["ports"][0];
    assert_eq!(port["eligible"], count, "{port}");
}

fn reasons(node: &Node) -> String {
    node.readyz()
        .map_or(String::new(), |(_, body)| body["reasons"].to_string())
}

#[test]
fn sixty_per_cent_of_the_nodes_expire_at_once_and_are_held_until_their_checks_fail() {
    let Some(mut mesh) = Mesh::start(5, "expiry_hold = \"12s\"\ncollect_after = \"1s\"") else {
        return;
    };
    mesh.serve();
    let load = mesh.load(0);
    for node in &mut mesh.nodes[1..4] {
        node.kill();
    }
    for seen_by in [0, 4] {
        eventually(PATIENCE, "the mass expiry is held", || {
            let text = reasons(&mesh.nodes[seen_by]);
            text.contains("mass expiry held: 3 of 5 nodes lost within 3s (n2, n3, n4)")
                .then_some(())
                .ok_or(text)
        });
    }
    let n1 = &mesh.nodes[0];
    until_node_is(n1, "n3", "held");
    assert_eq!(n1.metric("heddle_mass_expiry_held", &[]), 1.0);
    assert_eq!(n1.metric("heddle_nodes", &["state=\"held\""]), 3.0);
    // The dead nodes' backends live, and serve.
    mesh.answer(0, &["w1", "w2", "w3", "w4", "w5"]);
    assert_eq!(mesh.keys("slices/").len(), 5, "nothing is collected");
    let tally = load.stop();
    assert_eq!(tally.failed, 0, "{tally:?}");

    for backend in &mut mesh.backends[1..4] {
        *backend = None;
    }
    for seen_by in [0, 4] {
        mesh.nodes[seen_by].eligible("shop/web", 2);
        mesh.answer(seen_by, &["w1", "w5"]);
    }
    let w2 = mesh.nodes[0].endpoints("shop/web");
    let w2 = w2.iter().find(|e| e["workloadName"] == "w2");
    // Held still, or released already on a slow machine.
    if let Some(w2) = w2 {
        let reason = w2["reason"].as_str().unwrap();
        assert!(
            reason.starts_with("node n2 is gone since ") && reason.contains("checked from here: "),
            "{reason}"
        );
    }
    eventually(PATIENCE, "what the dead left is collected", || {
        let keys = mesh.keys("slices/shop/web/");
        (keys == ["n1", "n5"]).then_some(()).ok_or(keys)
    });
    eventually(PATIENCE, "the hold is over", || {
        let text = reasons(&mesh.nodes[0]);
        (text == "[]").then_some(()).ok_or(text)
    });
    let collected = |node: &Node| node.metric("heddle_slices_collected_total", &[]);
    eventually(PATIENCE, "three slices were collected, each once", || {
        collected(&mesh.nodes[0]) + collected(&mesh.nodes[4]) == 3.0
    });
    until_node_is(&mesh.nodes[0], "n2", "orphaned");
    let told = |node: &Node, reason: &str| node.ok(&["events", "-A"]).contains(reason);
    for reason in ["MassExpiryHeld", "MassExpiryReleased"] {
        eventually(PATIENCE, reason, || told(&mesh.nodes[0], reason));
    }
    eventually(PATIENCE, "who collected tells", || {
        [0, 4]
            .into_iter()
            .any(|n| told(&mesh.nodes[n], "SliceCollected"))
    });

    // A node that comes back publishes again what was collected.
    mesh.backend(1);
    mesh.nodes[1].launch();
    mesh.nodes[0].eligible("shop/web", 3);
    until_node_is(&mesh.nodes[0], "n2", "alive");
    mesh.answer(0, &["w1", "w2", "w5"]);
}

#[test]
fn one_node_that_dies_with_its_backend_is_orphaned_at_once_and_out_of_rotation() {
    let Some(mut mesh) = Mesh::start(3, "collect_after = \"1s\"") else {
        return;
    };
    mesh.serve();
    mesh.lan.cut(1);
    let cut = Instant::now();
    std::thread::scope(|scope| {
        // Before anybody has noticed: a connection that can't be made goes to the next endpoint.
        scope.spawn(|| mesh.answer(0, &["w1", "w3"]));
        until_node_is(&mesh.nodes[0], "n2", "orphaned");
        let orphaned = cut.elapsed();
        eprintln!("orphaned {orphaned:?} after it was cut off, with leases of 3 s");
    });
    for seen_by in [0, 2] {
        mesh.nodes[seen_by].eligible("shop/web", 2);
        assert!(!reasons(&mesh.nodes[seen_by]).contains("mass expiry"));
    }
    eventually(PATIENCE, "its slice is collected", || {
        let keys = mesh.keys("slices/shop/web/");
        (keys == ["n1", "n3"]).then_some(()).ok_or(keys)
    });
    // It was never dead, only away: what was collected is put back as soon as it sees so.
    mesh.lan.mend(1);
    for seen_by in [0, 2] {
        mesh.nodes[seen_by].eligible("shop/web", 3);
    }
    until_node_is(&mesh.nodes[0], "n2", "alive");

    // The only instances left die without a word: gone.
    mesh.nodes[1].kill();
    for backend in &mut mesh.backends {
        *backend = None;
    }
    mesh.nodes[0].eligible("shop/web", 0);
    let vip = SocketAddr::new(mesh.nodes[0].vip("shop/web"), 80);
    let said = mesh.lan.hosts[0].netns.enter(|| http::ids(vip, 15));
    assert!(
        said.iter().all(|said| said.starts_with("503: ")),
        "{said:?}"
    );

    // Its host won't come back: nothing of it stays anywhere.
    until_node_is(&mesh.nodes[0], "n2", "orphaned");
    for living in ["n1", "n3"] {
        let refused = mesh.nodes[0].heddle(&["delete", "node", living]);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success(), "{living} lives");
        assert!(said.contains("is alive or restarts"), "{said}");
    }
    let done = mesh.nodes[0].ok(&["delete", "node", "n2"]);
    assert!(done.starts_with("node n2 deleted"), "{done}");
    assert_eq!(mesh.keys("nodes/"), ["n1", "n3"]);
    assert_eq!(mesh.keys("registrations/"), ["n1/w1", "n3/w3"]);
    for seen_by in [0, 2] {
        eventually(PATIENCE, "it is known no more", || {
            let node = &mesh.nodes[seen_by];
            let orphaned = node.metric("heddle_nodes", &["state=\"orphaned\""]);
            let nodes = node.get("nodes");
            (nodes.len() == 2 && orphaned == 0.0)
                .then_some(())
                .ok_or(format!("{orphaned} {nodes:?}"))
        });
    }
    eventually(PATIENCE, "it is told", || {
        let told = mesh.nodes[0].ok(&["events", "-A"]);
        told.contains("NodeRemoved")
    });
}

#[test]
fn a_node_that_is_restarted_loses_nothing() {
    let Some(mut mesh) = Mesh::start(2, "") else {
        return;
    };
    mesh.serve();
    let load = mesh.load(0);
    let slice = |mesh: &Mesh| {
        let path = "/heddle/v1/slices/shop/web/n2";
        let text = mesh.etcd.ctl(&["get", path, "-w", "json"]);
        let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
        let revision = answer["kvs"][0]["mod_revision"].as_i64();
        (revision, mesh.etcd.ctl(&["get", path]))
    };
    let written = slice(&mesh);
    let (first, rest) = mesh.nodes.split_at_mut(1);
    let watching = &first[0];
    std::thread::scope(|scope| {
        let restarting = scope.spawn(|| {
            rest[0].stop();
            until_node_is(watching, "n2", "restarting");
            rest[0].launch();
            until_node_is(watching, "n2", "alive");
            rest[0].kill();
            rest[0].launch();
            until_node_is(watching, "n2", "alive");
            // Away for longer than its lease: its containers live, as the other's checks find.
            rest[0].kill();
            until_node_is(watching, "n2", "orphaned");
            rest[0].launch();
            until_node_is(watching, "n2", "alive");
            rest[0].eligible("shop/web", 2);
        });
        // Nothing is gone, ever.
        throughout(restarting, || has(watching, "shop/web", 2));
    });
    let tally = load.stop();
    assert_eq!(tally.failed, 0, "{tally:?}");
    let now = slice(&mesh);
    if now != written {
        let each = written.0.unwrap()..=now.0.unwrap();
        let path = "/heddle/v1/slices/shop/web/n2";
        let at = |revision: i64| {
            mesh.etcd
                .ctl(&["get", path, "--rev", &revision.to_string()])
        };
        let history: Vec<String> = each.map(at).collect();
        panic!("its slice was written again: {history:#?}");
    }
}

#[test]
fn a_lease_that_is_revoked_under_load_costs_nothing_and_is_replaced_by_one() {
    let Some(mut mesh) = Mesh::start(2, "collect_after = \"1s\"") else {
        return;
    };
    mesh.serve();
    let record = |path: &str| {
        let path = format!("/heddle/v1/{path}");
        let text = mesh.etcd.ctl(&["get", &path, "-w", "json"]);
        let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
        answer["kvs"][0].clone()
    };
    let lease = || record("liveness/n2")["lease"].as_i64();
    let leases = || {
        let text = mesh.etcd.ctl(&["lease", "list"]);
        let ids = text
            .lines()
            .filter_map(|id| i64::from_str_radix(id.trim(), 16).ok());
        let mut ids: Vec<i64> = ids.collect();
        ids.sort_unstable();
        ids
    };
    assert_eq!(leases().len(), 2, "one of each node");
    // Had it been deleted and written anew, it would have another revision of creation.
    let slice = record("slices/shop/web/n2");
    assert!(slice["create_revision"].is_i64(), "{slice}");
    let load = mesh.load(0);
    eventually(PATIENCE, "there is load", || load.answered() > 20);
    std::thread::scope(|scope| {
        let watching = &mesh.nodes[0];
        let revoking = scope.spawn(|| {
            for _ in 0..3 {
                let revoked = lease().expect("n2 is alive");
                mesh.etcd.revoke_lease(revoked);
                let since = Instant::now();
                eventually(PATIENCE, "n2 has told that it lives", || {
                    lease().filter(|now| *now != revoked)
                });
                let took = since.elapsed();
                eprintln!("{took:?} after its lease was revoked n2 has another");
                until_node_is(watching, "n2", "alive");
            }
        });
        throughout(revoking, || has(watching, "shop/web", 2));
    });
    let tally = load.stop();
    assert_eq!(tally.failed, 0, "{tally:?}");
    assert_eq!(record("slices/shop/web/n2"), slice, "it was not touched");
    let now = leases();
    assert_eq!(now.len(), 2, "one of each node again: {now:?}");
    assert!(now.contains(&lease().expect("n2 is alive")));
}

#[test]
fn endpoints_that_no_node_owns_are_checked_by_two_nodes_and_a_steady_state_writes_nothing() {
    let Some(mut mesh) = Mesh::start(3, "collect_after = \"1s\"") else {
        return;
    };
    mesh.serve();
    let netns = mesh.lan.hosts[0].netns.clone();
    let backend = Whoami::start_in(&netns, "0.0.0.0:9090", "db", &[]);
    let address = mesh.lan.hosts[0].address;
    mesh.nodes[0].apply(&format!(
        "apiVersion: heddle/v1\nkind: Service\nmetadata: {{name: db, namespace: shop}}\n\
         spec: {{ports: [{{name: pg, port: 5432}}], health: {{interval: 100ms, timeout: 1s, fall: 2, rise: 1}}}}\n\
         ---\napiVersion: heddle/v1\nkind: Endpoint\nmetadata: {{name: db-1, namespace: shop}}\n\
         spec: {{service: db, address: {address}, ports: {{pg: 9090}}}}\n"
    ));
    for node in &mesh.nodes {
        node.eligible("shop/db", 1);
    }
    let checkers = eventually(PATIENCE, "two nodes tell what they found", || {
        let keys = mesh.keys("findings/shop/db/");
        (keys.len() == 2).then_some(keys.clone()).ok_or(keys)
    });

    let before = mesh.revision();
    let checks = |node: &Node| node.metric("heddle_health_checks_total", &["pass"]);
    let idle: Vec<f64> = mesh.nodes.iter().map(checks).collect();
    let began = Instant::now();
    eventually(PATIENCE, "many checks have passed", || {
        began.elapsed() > Duration::from_secs(3)
            && (mesh.nodes.iter().zip(&idle)).all(|(node, before)| checks(node) > before + 10.0)
    });
    assert_eq!(mesh.revision(), before, "a steady state writes nothing");

    // A checker that dies is replaced, and nobody sees the endpoint waver meanwhile.
    let index = |name: &str| name[1..].parse::<usize>().unwrap() - 1;
    let dead = index(&checkers[0]);
    let successor = (0..3).find(|n| *n != dead && !checkers.contains(&format!("n{}", n + 1)));
    let successor = successor.expect("a third node");
    mesh.nodes[dead].kill();
    let expected = {
        let mut expected = vec![checkers[1].clone(), format!("n{}", successor + 1)];
        expected.sort();
        expected
    };
    eventually(
        PATIENCE * 2,
        "the third takes over, and the dead one's word goes",
        || {
            has(&mesh.nodes[successor], "shop/db", 1);
            let keys = mesh.keys("findings/shop/db/");
            (keys == expected).then_some(()).ok_or(keys)
        },
    );
    drop(backend);
    for n in (0..3).filter(|n| *n != dead) {
        mesh.nodes[n].eligible("shop/db", 0);
    }
    mesh.nodes[successor].ok(&["delete", "endpoint", "db-1", "-n", "shop"]);
    eventually(PATIENCE, "with the endpoint goes what was found", || {
        let keys = mesh.keys("findings/");
        keys.is_empty().then_some(()).ok_or(keys)
    });
}
