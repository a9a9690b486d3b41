//! One host with a real Docker: containers selected by label become a service.

mod support;

use std::net::{IpAddr, SocketAddr};

use support::docker::{self, Dockerd, RunOptions};
use support::http;
use support::netns::Netns;
use support::node::{Node, NodeOptions, PATIENCE};
use support::wait::eventually;

const WEB: &str = "
apiVersion: heddle/v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  selector: app=web,!canary
  ports: [{name: http, port: 80, targetPort: 8080, protocol: http}]
";

/// A host with Docker and a node on it.
struct Host {
    node: Node,
    docker: Dockerd,
    netns: Netns,
}

impl Host {
    fn start() -> Option<Host> {
        if !docker::ready() {
            return None;
        }
        let netns = Netns::new();
        let docker = Dockerd::start_in("one", &netns);
        let node = Node::start(&NodeOptions {
            netns: Some(&netns),
            docker: Some(&docker),
            vip_range: "10.96.0.0/16",
            dns: "10.96.0.10:53",
            ..NodeOptions::default()
        });
        Some(Host {
            node,
            docker,
            netns,
        })
    }

    /// A whoami container in namespace `shop` with these labels.
    fn run(&self, name: &str, labels: &[(&str, &str)]) -> String {
        let labels = [&[("heddle.namespace", "shop")], labels].concat();
        self.docker.run(RunOptions {
            name,
            labels: &labels,
            ..RunOptions::default()
        })
    }

    fn ask(&self, address: SocketAddr, path: &str) -> std::io::Result<http::Answer> {
        self.netns.enter(|| http::get(address, path))
    }

    /// Who answers these many requests, sorted and each once.
    fn answering(&self, address: SocketAddr, requests: usize) -> Vec<String> {
        let mut names: Vec<String> = (0..requests)
            .map(|_| match self.ask(address, "/id") {
                Ok(answer) if answer.status == 200 => answer.body.trim().to_owned(),
                Ok(answer) => format!("{}: {}", answer.status, answer.body),
                Err(error) => error.to_string(),
            })
            .collect();
        names.sort();
        names.dedup();
        names
    }

    fn web(&self) -> SocketAddr {
        SocketAddr::new(self.node.vip("shop/web"), 80)
    }

    fn dig(&self, words: &[&str]) -> String {
        let mut all = vec!["dig", "@10.96.0.10", "+short", "+time=2", "+tries=2"];
        all.extend(words);
        self.netns.run(&all).trim().to_owned()
    }
}

#[test]
fn containers_are_selected_by_label_balanced_and_resolvable() {
    let Some(host) = Host::start() else { return };
    host.node.apply(WEB);
    host.run("aa", &[("app", "web")]);
    host.run("bb", &[("app", "web"), ("tier", "front")]);
    host.run("canary", &[("app", "web"), ("canary", "")]);
    host.run("db", &[("app", "db")]);
    // The same labels in another namespace.
    host.docker.run(RunOptions {
        name: "elsewhere",
        labels: &[("app", "web")],
        ..RunOptions::default()
    });
    host.node.eligible("shop/web", 2);
    assert_eq!(host.answering(host.web(), 10), ["aa", "bb"]);

    let elsewhere = eventually(PATIENCE, "the other namespace's container is seen", || {
        host.node.workload("elsewhere")
    });
    let why = elsewhere["verdicts"].to_string();
    assert!(why.contains("not selected: namespace is default"), "{why}");
    let canary = eventually(PATIENCE, "the canary is seen", || {
        host.node.workload("canary")
    });
    assert!(
        !canary["verdicts"].to_string().contains("\"selected\":true"),
        "{canary}"
    );

    // From a container, through the same virtual IP, and by name.
    let vip = host.web().ip();
    assert_eq!(
        host.dig(&["web.shop.svc.heddle.internal", "A"]),
        vip.to_string()
    );
    assert_eq!(host.dig(&["web.shop.svc.heddle.internal", "AAAA"]), "");
    assert_eq!(
        host.dig(&["_http._tcp.web.shop.svc.heddle.internal", "SRV"]),
        "0 100 80 web.shop.svc.heddle.internal."
    );
    assert_eq!(
        host.dig(&["-x", &vip.to_string()]),
        "web.shop.svc.heddle.internal."
    );
    assert_eq!(
        host.dig(&["+tcp", "web.shop.svc.heddle.internal", "A"]),
        vip.to_string()
    );
    let missing = host
        .netns
        .run(&["dig", "@10.96.0.10", "nobody.shop.svc.heddle.internal"]);
    assert!(missing.contains("NXDOMAIN"), "{missing}");
}

#[test]
fn a_published_port_80_does_not_answer_in_our_place() {
    let Some(host) = Host::start() else { return };
    host.node.apply(WEB);
    host.docker.run(RunOptions {
        name: "squatter",
        publish: &["80:8080"],
        ..RunOptions::default()
    });
    host.run("aa", &[("app", "web")]);
    host.node.eligible("shop/web", 1);
    assert_eq!(host.answering(host.web(), 5), ["aa"]);
    let unused = SocketAddr::new("10.96.200.200".parse::<IpAddr>().unwrap(), 80);
    assert!(
        host.ask(unused, "/id").is_err(),
        "an address that no service has refuses"
    );
}

#[test]
fn labels_alone_make_a_service() {
    let Some(host) = Host::start() else { return };
    host.run(
        "aa",
        &[
            ("heddle.service", "api"),
            ("heddle.port", "8080"),
            ("heddle.protocol", "http"),
            ("heddle.vip-port", "80"),
            ("heddle.health.path", "/healthz"),
        ],
    );
    host.node.eligible("shop/api", 1);
    let api = SocketAddr::new(host.node.vip("shop/api"), 80);
    assert_eq!(host.answering(api, 3), ["aa"]);
    let service = host.node.service("shop/api").unwrap();
    assert_eq!(service["managedBy"], "labels");
    host.docker.rm("aa");
    host.node.eligible("shop/api", 0);
    assert_eq!(
        SocketAddr::new(host.node.vip("shop/api"), 80),
        api,
        "the service keeps its address after its last container"
    );
}

#[test]
fn a_bad_container_costs_only_itself() {
    let Some(host) = Host::start() else { return };
    host.node.apply(WEB);
    host.run(
        "bad-port",
        &[("heddle.service", "x"), ("heddle.port", "eighty")],
    );
    host.run("bad-key", &[("heddle.srevice", "x")]);
    host.run(
        "odd",
        &[
            ("app", "web"),
            ("what//even..is-this-key-", "\u{1f980} and spaces"),
        ],
    );
    host.run("aa", &[("app", "web")]);
    host.node.eligible("shop/web", 2);
    let said = |name: &str| {
        let workload = eventually(PATIENCE, "it is seen", || host.node.workload(name));
        workload.to_string()
    };
    assert!(
        said("bad-port").contains("heddle.port"),
        "{}",
        said("bad-port")
    );
    assert!(
        said("bad-key").contains("heddle.service"),
        "the nearest known key is named: {}",
        said("bad-key")
    );
}

#[test]
fn several_exposed_ports_and_none_chosen_is_a_loud_error() {
    let Some(host) = Host::start() else { return };
    host.node.apply(&WEB.replace(", targetPort: 8080", ""));
    let labels = [("heddle.namespace", "shop"), ("app", "web")];
    host.docker.run(RunOptions {
        name: "two",
        labels: &labels,
        extra: &["--expose", "8080", "--expose", "9090"],
        ..RunOptions::default()
    });
    eventually(PATIENCE, "the verdict names the choice", || {
        let said = host.node.workload("two")?.to_string();
        (said.contains("8080") && said.contains("9090")).then_some(())
    });
    host.run("chosen", &[("app", "web"), ("heddle.port", "8080")]);
    host.node.eligible("shop/web", 1);
    assert_eq!(host.answering(host.web(), 3), ["chosen"]);
}

#[test]
fn a_killed_container_is_out_and_a_new_one_is_in() {
    let Some(host) = Host::start() else { return };
    host.node.apply(WEB);
    host.run("aa", &[("app", "web")]);
    host.run("bb", &[("app", "web")]);
    host.node.eligible("shop/web", 2);
    host.docker.kill("aa");
    host.node.eligible("shop/web", 1);
    assert_eq!(host.answering(host.web(), 6), ["bb"]);
    host.docker.start_container("aa");
    host.node.eligible("shop/web", 2);
    host.docker.pause("bb");
    host.node.eligible("shop/web", 1);
    host.docker.unpause("bb");
    host.node.eligible("shop/web", 2);
}

#[test]
fn a_stopping_container_takes_no_new_work_and_ends_what_it_has() {
    let Some(host) = Host::start() else { return };
    host.node.apply(WEB);
    let args = [
        "whoami",
        "--name",
        "aa",
        "--on-term",
        "drain",
        "--linger",
        "3s",
    ];
    let labels = [("heddle.namespace", "shop"), ("app", "web")];
    host.docker.run(RunOptions {
        name: "aa",
        labels: &labels,
        args: &args,
        ..RunOptions::default()
    });
    host.run("bb", &[("app", "web")]);
    host.node.eligible("shop/web", 2);
    std::thread::scope(|scope| {
        scope.spawn(|| host.docker.stop("aa"));
        eventually(PATIENCE, "the container drains while it still runs", || {
            let all = host.node.endpoints("shop/web");
            all.iter()
                .any(|e| e["workloadName"] == "aa" && e["state"] == "draining")
        });
        assert_eq!(host.answering(host.web(), 10), ["bb"]);
    });
    host.docker.signal("bb", "HUP");
    assert_eq!(
        host.answering(host.web(), 4),
        ["bb"],
        "HUP is a reload and no end"
    );
}

#[test]
fn a_recycled_address_inherits_nothing() {
    let Some(host) = Host::start() else { return };
    host.node
        .apply(&format!("{WEB}---{}", WEB.replace("web", "other")));
    host.run("aa", &[("app", "web")]);
    host.node.eligible("shop/web", 1);
    let address = host.docker.address("aa", "bridge");
    for _ in 0..20 {
        // Fills the pools with connections to this address.
        host.ask(host.web(), "/id").unwrap();
    }
    host.docker.rm("aa");
    host.run("bb", &[("app", "other")]);
    assert_eq!(
        host.docker.address("bb", "bridge"),
        address,
        "Docker gives the address out again"
    );
    host.node.eligible("shop/other", 1);
    let answer = host.ask(host.web(), "/id").unwrap();
    assert_eq!(
        answer.status, 503,
        "nothing for web reaches other: {}",
        answer.body
    );
}

#[test]
fn a_node_that_was_away_finds_the_truth() {
    let Some(mut host) = Host::start() else {
        return;
    };
    host.node.apply(WEB);
    host.run("aa", &[("app", "web")]);
    host.run("bb", &[("app", "web")]);
    host.node.eligible("shop/web", 2);
    host.node.kill();
    host.docker.rm("aa");
    host.run("cc", &[("app", "web")]);
    host.docker.cli(&["rename", "bb", "b2"]);
    host.node.launch();
    eventually(PATIENCE, "what runs now answers", || {
        let names = host.answering(host.web(), 10);
        (names == ["bb", "cc"]).then_some(()).ok_or(names)
    });
    let tables = host.netns.run(&["nft", "list", "tables"]);
    assert_eq!(tables.matches("heddle").count(), 1, "{tables}");
    host.node.stop();
    let tables = host.netns.run(&["nft", "list", "tables"]);
    assert!(!tables.contains("heddle"), "{tables}");
}

#[test]
fn docker_may_come_late_and_restart() {
    if !docker::ready() {
        return;
    }
    let netns = Netns::new();
    let mut docker = Dockerd::start_in("late", &netns);
    docker.stop_daemon();
    let node = Node::start(&NodeOptions {
        netns: Some(&netns),
        docker: Some(&docker),
        vip_range: "10.96.0.0/16",
        ..NodeOptions::default()
    });
    node.apply(WEB);
    eventually(PATIENCE, "the node says that it waits for Docker", || {
        let (status, body) = node.readyz()?;
        (status == 200
            && body["reasons"]
                .to_string()
                .to_lowercase()
                .contains("docker"))
        .then_some(())
    });
    docker.start_daemon();
    docker.run(RunOptions {
        name: "aa",
        labels: &[("heddle.namespace", "shop"), ("app", "web")],
        ..RunOptions::default()
    });
    node.eligible("shop/web", 1);
    docker.restart_daemon();
    docker.run(RunOptions {
        name: "bb",
        labels: &[("heddle.namespace", "shop"), ("app", "web")],
        ..RunOptions::default()
    });
    eventually(PATIENCE, "only what runs is served", || {
        let names: Vec<String> = node
            .endpoints("shop/web")
            .iter()
            .map(|e| e["workloadName"].to_string())
            .collect();
        (names == ["\"bb\""]).then_some(()).ok_or(names)
    });
}

#[test]
fn a_container_reaches_a_service_by_its_name() {
    let Some(host) = Host::start() else { return };
    host.node.apply(WEB);
    host.run("aa", &[("app", "web")]);
    host.node.eligible("shop/web", 1);
    // The client is a container whose resolver is the node's DNS server; it asks through its own network.
    host.docker.run(RunOptions {
        name: "client",
        extra: &["--dns", "10.96.0.10"],
        ..RunOptions::default()
    });
    let netns = host.docker.process("client").netns();
    let netns = format!("--net={}", netns.display());
    let from_container = |words: &[&str]| {
        let mut command = std::process::Command::new("nsenter");
        command.arg(&netns).args(words);
        let output = command.output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let vip = from_container(&[
        "dig",
        "@10.96.0.10",
        "+short",
        "web.shop.svc.heddle.internal",
    ]);
    assert_eq!(vip, host.web().ip().to_string());
    assert_eq!(
        from_container(&["curl", "-s", "--max-time", "5", &format!("http://{vip}/id")]),
        "aa"
    );
}
