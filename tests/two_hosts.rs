//! Two hosts, each with a Docker of its own whose containers have the same addresses, and one etcd between them.

mod support;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use support::dns;
use support::docker::{self, Dockerd, RunOptions};
use support::etcd::Etcd;
use support::http;
use support::load::{Load, Plan};
use support::netns::{self, Lan, Netns};
use support::node::{Node, NodeOptions, PATIENCE};
use support::shop::web_checked;
use support::wait::{eventually, stalled};

const HEALTH: &str = "{http: {path: /healthz}, interval: 500ms, timeout: 2s, fall: 2, rise: 1}";

struct Pair {
    nodes: Vec<Node>,
    dockers: Vec<Dockerd>,
    etcd: Etcd,
    lan: Lan,
}

impl Pair {
    fn start() -> Option<Pair> {
        if !docker::ready() {
            return None;
        }
        let etcd = Etcd::start_or_skip("two hosts")?;
        let lan = Lan::new(2);
        let url = etcd.endpoint_at(IpAddr::V4(lan.address));
        let mut dockers = Vec::new();
        let mut nodes = Vec::new();
        for (host, name) in lan.hosts.iter().zip(["n1", "n2"]) {
            let docker = Dockerd::start_in(name, &host.netns);
            nodes.push(Node::start(&NodeOptions {
                name,
                netns: Some(&host.netns),
                etcd: Some(url.clone()),
                docker: Some(&docker),
                address: Some(IpAddr::V4(host.address)),
                vip_range: "10.96.0.0/16",
                dns: "10.96.0.10:53",
                ..NodeOptions::default()
            }));
            dockers.push(docker);
        }
        Some(Pair {
            nodes,
            dockers,
            etcd,
            lan,
        })
    }

    fn run(&self, host: usize, name: &str, publish: &[&str]) {
        self.dockers[host].run(RunOptions {
            name,
            labels: &[("heddle.namespace", "shop"), ("app", "web")],
            publish,
            ..RunOptions::default()
        });
    }

    fn web(&self) -> SocketAddr {
        SocketAddr::new(self.nodes[0].vip("shop/web"), 80)
    }

    /// Who answers on a host, sorted and each once.
    fn answering(&self, host: usize, requests: usize) -> Vec<String> {
        let address = self.web();
        let netns = &self.lan.hosts[host].netns;
        netns.enter(|| http::ids(address, requests))
    }

    /// Fails unless each node's DNS has the service, and has not what nobody made.
    #[track_caller]
    fn resolves(&self) {
        let IpAddr::V4(vip) = self.web().ip() else {
            panic!("the virtual IPs are IPv4");
        };
        let server = SocketAddr::from(([10, 96, 0, 10], 53));
        let expected = [dns::Answer::is(vip), dns::Answer::no_such_name()];
        for host in &self.lan.hosts {
            let names = [
                "web.shop.svc.heddle.internal",
                "nobody.shop.svc.heddle.internal",
            ];
            let answers =
                names.map(|name| host.netns.enter(|| dns::ask(server, name)).expect(name));
            assert_eq!(answers, expected);
        }
    }
}

#[test]
fn hosts_with_colliding_container_addresses_share_a_service() {
    let Some(pair) = Pair::start() else { return };
    pair.nodes[0].apply(&web_checked(HEALTH));
    pair.run(0, "aa", &["8080"]);
    pair.run(1, "bb", &["8080"]);
    assert_eq!(
        pair.dockers[0].address("aa", "bridge"),
        pair.dockers[1].address("bb", "bridge")
    );
    pair.nodes[0].eligible("shop/web", 2);
    pair.nodes[1].eligible("shop/web", 2);
    assert_eq!(
        pair.nodes[1].vip("shop/web"),
        pair.web().ip(),
        "one virtual IP everywhere"
    );
    assert_eq!(pair.answering(0, 10), ["aa", "bb"]);
    assert_eq!(pair.answering(1, 10), ["aa", "bb"]);

    // Without a published port a container has no way in from the other host, and is never dialled there.
    pair.run(1, "hidden", &[]);
    pair.nodes[1].eligible("shop/web", 3);
    let seen = eventually(PATIENCE, "the other node sees it", || {
        pair.nodes[0]
            .endpoints("shop/web")
            .into_iter()
            .find(|e| e["workloadName"] == "hidden")
    });
    assert_eq!(seen["addresses"].as_array().unwrap().len(), 0, "{seen}");
    assert!(
        seen["reason"]
            .as_str()
            .unwrap()
            .starts_with("unreachable: publish a port"),
        "{seen}"
    );
    assert_eq!(pair.answering(0, 12), ["aa", "bb"]);
    assert_eq!(pair.answering(1, 12), ["aa", "bb", "hidden"]);

    // What stops on one host leaves both.
    pair.dockers[1].kill("bb");
    pair.nodes[0].eligible("shop/web", 1);
    assert_eq!(pair.answering(0, 6), ["aa"]);
}

#[test]
fn a_host_that_is_cut_off_is_failed_over_and_taken_back() {
    let Some(pair) = Pair::start() else { return };
    pair.nodes[0].apply(&web_checked(HEALTH));
    pair.run(0, "aa", &["8080"]);
    pair.run(1, "bb", &["8080"]);
    pair.nodes[0].eligible("shop/web", 2);
    let plan = Plan {
        address: pair.web(),
        method: "GET",
        path: "/id".to_owned(),
        connections: 8,
        pause: Duration::from_millis(5),
    };
    let load = Load::start(&plan, Some(&pair.lan.hosts[0].netns));
    eventually(PATIENCE, "connections are kept", || load.answered() > 200);
    // The host has taken these, and owes nothing but an answer, when it is cut off.
    let slow = Plan {
        path: "/delay?ms=1000".to_owned(),
        pause: Duration::ZERO,
        ..plan
    };
    let slow = Load::start(&slow, Some(&pair.lan.hosts[0].netns));
    eventually(PATIENCE, "some are answered", || slow.answered() > 8);
    pair.lan.cut(1);
    // Before anybody has noticed: a connection that can't be made goes to the next endpoint.
    assert_eq!(pair.answering(0, 4), ["aa"]);
    pair.nodes[0].eligible("shop/web", 1);
    // Requests on kept connections to that host get no answer and no reset; they go elsewhere nevertheless.
    for load in [load, slow] {
        let tally = load.stop();
        assert_eq!(tally.failed, 0, "{tally:?}");
    }
    let lost = eventually(PATIENCE, "the node is seen as lost", || {
        pair.nodes[0]
            .get("nodes")
            .into_iter()
            .find(|n| n["name"] == "n2" && n["status"] == "orphaned")
    });
    assert_eq!(lost["services"], 1, "its slices stay: {lost}");
    pair.lan.mend(1);
    pair.nodes[0].eligible("shop/web", 2);
}

#[test]
fn an_etcd_outage_with_a_compaction_fails_no_request() {
    let Some(mut pair) = Pair::start() else {
        return;
    };
    pair.nodes[0].apply(&web_checked(HEALTH));
    pair.run(0, "aa", &["8080"]);
    pair.run(0, "a2", &["8080"]);
    pair.run(1, "bb", &["8080"]);
    pair.nodes[0].eligible("shop/web", 3);
    let plan = Plan {
        address: pair.web(),
        method: "GET",
        path: "/id".to_owned(),
        connections: 16,
        pause: Duration::from_millis(10),
    };
    let load = Load::start(&plan, Some(&pair.lan.hosts[0].netns));
    pair.nodes[1].eligible("shop/web", 3);
    pair.resolves();
    pair.etcd.stop();
    let (status, body) = eventually(PATIENCE, "the node says that the registry is lost", || {
        pair.nodes[0]
            .readyz()
            .filter(|(_, body)| body["reasons"].to_string().contains("registry lost"))
    });
    assert_eq!(status, 200, "it serves on: {body}");
    // A local container dies meanwhile: what this node sees for itself needs no registry.
    pair.dockers[0].kill("a2");
    pair.nodes[0].eligible("shop/web", 2);
    pair.resolves();
    let before = load.answered();
    // Three lease times of 3 s each.
    let since = std::time::Instant::now();
    eventually(Duration::from_secs(30), "three lease times pass", || {
        pair.resolves();
        since.elapsed() > Duration::from_secs(9)
    });
    assert!(load.answered() > before + 500, "traffic went on");

    // Somebody else writes and compacts before the nodes are back: what they knew is no longer in the history.
    pair.etcd.restart();
    let ghost = "/heddle/v1/services/shop/ghost";
    pair.etcd.ctl(&["put", ghost, "{}"]);
    pair.etcd.ctl(&["del", ghost]);
    let text = pair
        .etcd
        .ctl(&["get", "/heddle", "--prefix", "--limit=1", "-w", "json"]);
    let revision = serde_json::from_str::<serde_json::Value>(&text).unwrap()["header"]["revision"]
        .as_i64()
        .unwrap();
    pair.etcd.compact(revision);
    let (back, busy) = (std::time::Instant::now(), stalled());
    for node in &pair.nodes {
        eventually(PATIENCE, "the nodes follow the registry again", || {
            let (_, body) = node.readyz()?;
            (!body["reasons"].to_string().contains("registry")).then_some(())
        });
    }
    pair.nodes[1].eligible("shop/web", 2);
    pair.resolves();
    let (took, busy) = (back.elapsed(), stalled().saturating_sub(busy));
    assert!(
        took.saturating_sub(busy) < Duration::from_secs(5),
        "converged within 5 s, not {took:?}, of which the machine was busy for {busy:?}"
    );
    let tally = load.stop();
    assert_eq!(tally.failed, 0, "{tally:?}");
}

#[test]
fn a_bad_record_costs_only_itself() {
    let Some(pair) = Pair::start() else { return };
    pair.nodes[0].apply(&web_checked(HEALTH));
    pair.run(0, "aa", &["8080"]);
    pair.nodes[0].eligible("shop/web", 1);
    pair.etcd.ctl(&[
        "put",
        "/heddle/v1/services/shop/broken",
        "{\"formatVersion\":1,\"nonsense\":true}",
    ]);
    pair.etcd.ctl(&[
        "put",
        "/heddle/v1/services/shop/newer",
        "{\"formatVersion\":7}",
    ]);
    pair.etcd
        .ctl(&["put", "/heddle/v1/slices/shop/web/n9", "not json"]);
    pair.etcd.ctl(&["put", "/heddle/v1/what/ever", "x"]);
    eventually(PATIENCE, "each bad record is named", || {
        let text = pair.nodes[1].readyz()?.1["reasons"].to_string();
        let all = ["shop/broken", "shop/newer", "web/n9"]
            .iter()
            .all(|key| text.contains(key));
        (all && text.contains("newer"))
            .then_some(())
            .ok_or(text)
            .ok()
    });
    eventually(PATIENCE, "they are counted", || {
        pair.nodes[1].metric("heddle_registry_bad_records", &[]) as i64 == 3
    });
    assert_eq!(pair.answering(0, 4), ["aa"]);
    // A good record that is overwritten by a bad one stays in force.
    let good = pair
        .etcd
        .ctl(&["get", "/heddle/v1/services/shop/web", "--print-value-only"]);
    pair.etcd.ctl(&["put", "/heddle/v1/services/shop/web", "{"]);
    eventually(PATIENCE, "the overwritten record is named", || {
        pair.nodes[0].readyz()?.1["reasons"]
            .to_string()
            .contains("services/shop/web")
            .then_some(())
    });
    assert_eq!(pair.answering(0, 4), ["aa"]);
    pair.etcd
        .ctl(&["put", "/heddle/v1/services/shop/web", good.trim()]);
    for key in [
        "services/shop/broken",
        "services/shop/newer",
        "slices/shop/web/n9",
    ] {
        pair.etcd.ctl(&["del", &format!("/heddle/v1/{key}")]);
    }
    eventually(PATIENCE, "mended, nothing is named any more", || {
        pair.nodes[0].readyz()?.1["reasons"]
            .as_array()
            .is_some_and(Vec::is_empty)
            .then_some(())
    });
}

#[test]
fn a_node_boots_from_its_last_snapshot_while_etcd_is_away() {
    let Some(mut pair) = Pair::start() else {
        return;
    };
    pair.nodes[0].apply(&web_checked(HEALTH));
    pair.run(0, "aa", &["8080"]);
    pair.run(1, "bb", &["8080"]);
    pair.nodes[0].eligible("shop/web", 2);
    pair.nodes[0].stop();
    pair.etcd.stop();
    pair.nodes[0].launch();
    pair.nodes[0].eligible("shop/web", 2);
    assert_eq!(pair.answering(0, 8), ["aa", "bb"]);
    let (status, body) = pair.nodes[0].readyz().unwrap();
    assert_eq!(status, 200);
    assert!(
        body["reasons"].to_string().contains("last snapshot"),
        "{body}"
    );
    // What happens on its own host it sees without etcd.
    pair.dockers[0].kill("aa");
    pair.nodes[0].eligible("shop/web", 1);
    assert_eq!(pair.answering(0, 4), ["bb"]);
    pair.etcd.restart();
    pair.nodes[1].eligible("shop/web", 1);
}

#[test]
fn a_node_that_contradicts_the_mesh_refuses_to_join() {
    let Some(etcd) = Etcd::start_or_skip("mesh") else {
        return;
    };
    let first = NodeOptions {
        etcd: Some(etcd.endpoint()),
        vip_range: "127.90.0.0/16",
        ..NodeOptions::default()
    };
    let _first = Node::start(&first);
    let second = Node::prepare(&NodeOptions {
        name: "n2",
        vip_range: "127.91.0.0/16",
        ..first
    });
    let config = second.path("heddle.toml");
    let output = support::node::heddle(&["up", "--config", config.to_str().unwrap()], "");
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        text.contains("mesh.vip_range is 127.91.0.0/16")
            && text.contains("127.90.0.0/16 in the registry"),
        "{text}"
    );
}

#[test]
fn a_host_that_nobody_reaches_does_not_join() {
    if !netns::ready() {
        return;
    }
    // Its only interface is the loopback one.
    let netns = Netns::new();
    let node = Node::prepare(&NodeOptions {
        netns: Some(&netns),
        etcd: Some("http://127.0.0.1:2379".to_owned()),
        ..NodeOptions::default()
    });
    let config = node.path("heddle.toml").display().to_string();
    let heddle = env!("CARGO_BIN_EXE_heddle");
    let output = netns.try_run(&[heddle, "up", "--config", &config]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let why = "error: node.address: this host has no default route to take it from";
    assert!(text.starts_with(why), "{text}");
    assert_eq!(heddle_check(&config), Some(0), "the file is good elsewhere");
}

fn heddle_check(config: &str) -> Option<i32> {
    support::node::heddle(&["check", config], "").status.code()
}

#[test]
fn a_node_waits_for_an_etcd_that_is_not_there_yet() {
    let Some(mut etcd) = Etcd::start_or_skip("late etcd") else {
        return;
    };
    etcd.stop();
    let mut node = Node::prepare(&NodeOptions {
        etcd: Some(etcd.endpoint()),
        ..NodeOptions::default()
    });
    node.spawn();
    let (status, body) = eventually(PATIENCE, "the node says what it waits for", || {
        node.readyz()
            .filter(|(_, b)| b["reasons"].to_string().contains("waits for the registry"))
    });
    assert_eq!(status, 503, "{body}");
    etcd.restart();
    eventually(PATIENCE, "the node takes up work", || {
        node.readyz().filter(|(status, _)| *status == 200)
    });
    node.apply(&web_checked(HEALTH));
    node.vip("shop/web");
}
