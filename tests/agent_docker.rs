//! What the agent makes of real containers: networks, health, signals, a restarting daemon, and how fast.

mod support;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use support::docker::{self, Dockerd, IMAGE, RunOptions, Setup};
use support::etcd::Etcd;
use support::http;
use support::netns::{Lan, Netns};
use support::node::{Node, NodeOptions, PATIENCE};
use support::wait::eventually;

const WEB: &str = "
apiVersion: heddle/v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  selector: app=web
  ports: [{name: http, port: 80, targetPort: 8080, protocol: http}]
";

const LABELS: &[(&str, &str)] = &[("heddle.namespace", "shop"), ("app", "web")];

/// A host with Docker and a node on it, and the service `shop/web`.
struct Host {
    node: Node,
    docker: Dockerd,
    netns: Netns,
    _etcd: Option<(Etcd, Lan)>,
}

impl Host {
    /// A host whose node has the embedded registry.
    fn start(live_restore: bool) -> Option<Host> {
        docker::ready().then(|| Host::start_in(Netns::new(), live_restore, None))
    }

    /// A host whose node has an etcd, which is on the test's own host.
    fn start_with_etcd() -> Option<Host> {
        if !docker::ready() {
            return None;
        }
        let etcd = Etcd::start_or_skip("the agent with etcd")?;
        let lan = Lan::new(1);
        let netns = lan.hosts[0].netns.clone();
        Some(Host::start_in(netns, false, Some((etcd, lan))))
    }

    fn start_in(netns: Netns, live_restore: bool, etcd: Option<(Etcd, Lan)>) -> Host {
        let docker = Dockerd::start_with(
            "agent",
            Setup {
                netns: Some(netns.clone()),
                live_restore,
                ..Setup::default()
            },
        );
        let node = Node::start(&NodeOptions {
            netns: Some(&netns),
            etcd: etcd
                .as_ref()
                .map(|(etcd, lan)| etcd.endpoint_at(IpAddr::V4(lan.address))),
            docker: Some(&docker),
            vip_range: "10.96.0.0/16",
            ..NodeOptions::default()
        });
        node.apply(WEB);
        Host {
            node,
            docker,
            netns,
            _etcd: etcd,
        }
    }

    /// A whoami of `shop/web` with further options of `docker run`.
    fn run(&self, name: &str, extra: &[&str]) {
        self.docker.run(RunOptions {
            name,
            labels: LABELS,
            extra,
            ..RunOptions::default()
        });
    }

    fn web(&self) -> SocketAddr {
        SocketAddr::new(self.node.vip("shop/web"), 80)
    }

    fn ask(&self) -> Result<String, String> {
        let web = self.web();
        match self.netns.enter(|| http::get(web, "/id")) {
            Ok(answer) if answer.status == 200 => Ok(answer.body.trim().to_owned()),
            Ok(answer) => Err(format!("{}: {}", answer.status, answer.body)),
            Err(error) => Err(error.to_string()),
        }
    }

    /// The endpoint of a container, by the container's name.
    fn endpoint(&self, name: &str) -> Option<Value> {
        let all = self.node.endpoints("shop/web");
        all.into_iter().find(|e| e["workloadName"] == name)
    }

    #[track_caller]
    fn until_state(&self, name: &str, state: &str) -> Value {
        eventually(PATIENCE, &format!("{name} is {state}"), || {
            let endpoint = self.endpoint(name).ok_or("no endpoint".to_owned())?;
            if endpoint["state"] == state {
                Ok(endpoint)
            } else {
                Err(endpoint.to_string())
            }
        })
    }

    #[track_caller]
    fn until_told(&self, name: &str, text: &str) {
        eventually(PATIENCE, &format!("{name} is told {text:?}"), || {
            let workload = self.node.workload(name).ok_or("no workload".to_owned())?;
            if workload.to_string().contains(text) {
                Ok(())
            } else {
                Err(workload.to_string())
            }
        });
    }
}

#[test]
fn every_network_mode_is_dialled_where_it_listens_or_says_why_not() {
    let Some(host) = Host::start(false) else {
        return;
    };
    host.run("bridged", &[]);
    host.until_state("bridged", "ready");
    host.until_told("bridged", "bridge (the only one this host can dial)");
    host.docker.rm("bridged");

    host.run("hosted", &["--network", "host"]);
    host.until_state("hosted", "ready");
    assert_eq!(host.ask().as_deref(), Ok("hosted"));
    host.docker.rm("hosted");

    // The one that owns the network listens elsewhere; the one that shares it serves.
    host.docker.run(RunOptions {
        name: "owner",
        args: &["whoami", "--listen", "9999"],
        ..RunOptions::default()
    });
    host.run("sharing", &["--network", "container:owner"]);
    host.until_state("sharing", "ready");
    assert_eq!(host.ask().as_deref(), Ok("sharing"));
    host.until_told("sharing", "shared by owner");
    host.docker.rm("owner");
    host.until_told("sharing", "it shares the network of container");
    host.docker.rm("sharing");

    host.run("unreachable", &["--network", "none"]);
    host.until_told("unreachable", "network mode none: nothing can reach it");
    assert!(host.endpoint("unreachable").is_none());
}

#[test]
fn of_several_networks_the_label_decides_and_a_change_of_networks_is_followed() {
    let Some(host) = Host::start(false) else {
        return;
    };
    host.docker.create_network("anet");
    host.docker.create_network("znet");
    host.run("first", &["--network", "znet"]);
    host.until_told("first", "znet (the only one this host can dial)");
    host.docker.cli(&["network", "connect", "anet", "first"]);
    host.until_told("first", "anet (first by name of anet, znet)");
    let address = host.docker.address("first", "anet");
    eventually(PATIENCE, "it is dialled there", || {
        let endpoint = host.endpoint("first")?;
        endpoint
            .to_string()
            .contains(&address.to_string())
            .then_some(())
    });
    host.docker.cli(&["network", "disconnect", "anet", "first"]);
    host.until_told("first", "znet (the only one this host can dial)");
    host.until_state("first", "ready");

    host.docker.cli(&[
        "create",
        "--name",
        "labelled",
        "--network",
        "anet",
        "--label",
        "heddle.namespace=shop",
        "--label",
        "app=web",
        "--label",
        "heddle.network=znet",
        IMAGE,
        "whoami",
        "--name",
        "labelled",
    ]);
    host.docker.cli(&["network", "connect", "znet", "labelled"]);
    host.docker.start_container("labelled");
    host.until_told("labelled", "znet (label heddle.network)");
    host.until_state("labelled", "ready");
}

#[test]
fn dockers_own_healthcheck_is_believed() {
    let Some(host) = Host::start(false) else {
        return;
    };
    for (image, command) in [
        ("healthy", r#"["/heddle", "--version"]"#),
        ("ill", r#"["/heddle", "no-such-command"]"#),
    ] {
        host.docker.cli(&["create", "--name", "template", IMAGE]);
        let check = format!("HEALTHCHECK --interval=1s --retries=1 CMD {command}");
        host.docker
            .cli(&["commit", "--change", &check, "template", image]);
        host.docker.rm("template");
        host.docker.run(RunOptions {
            name: image,
            labels: LABELS,
            image: Some(image),
            args: &["whoami", "--name", image],
            ..RunOptions::default()
        });
    }
    let healthy = host.until_state("healthy", "ready");
    assert!(
        healthy.to_string().contains("HEALTHCHECK passes"),
        "{healthy}"
    );
    let ill = host.until_state("ill", "unhealthy");
    assert!(
        ill.to_string().contains("HEALTHCHECK exits with 2"),
        "{ill}"
    );
    assert_eq!(host.ask().as_deref(), Ok("healthy"));
}

#[test]
fn a_container_that_ignores_its_stop_signal_takes_work_again() {
    let Some(host) = Host::start(false) else {
        return;
    };
    host.docker.run(RunOptions {
        name: "stubborn",
        labels: LABELS,
        args: &["whoami", "--name", "stubborn", "--on-term", "ignore"],
        extra: &["--stop-timeout", "1"],
        ..RunOptions::default()
    });
    let before = host.until_state("stubborn", "ready");
    host.docker.signal("stubborn", "HUP");
    host.docker.signal("stubborn", "TERM");
    host.until_state("stubborn", "draining");
    assert_eq!(
        host.ask().as_deref(),
        Ok("stubborn"),
        "better than nobody: it still passes its checks"
    );
    let after = host.until_state("stubborn", "ready");
    assert_eq!(
        before["generation"], after["generation"],
        "it is the same run of it"
    );
}

#[test]
fn a_daemon_that_restarts_under_live_containers_costs_no_request() {
    let Some(mut host) = Host::start(true) else {
        return;
    };
    host.run("aa", &[]);
    host.run("bb", &[]);
    let before = [
        host.until_state("aa", "ready"),
        host.until_state("bb", "ready"),
    ];
    host.docker.stop_daemon();
    eventually(PATIENCE, "the loss is noticed", || {
        (host.node.metric("heddle_docker_connected", &[]) == 0.0).then_some(())
    });
    for _ in 0..20 {
        assert!(host.ask().is_ok());
    }
    host.docker.start_daemon();
    eventually(PATIENCE, "docker is followed again", || {
        (host.node.metric("heddle_docker_connected", &[]) == 1.0).then_some(())
    });
    host.run("cc", &[]);
    host.until_state("cc", "ready");
    for endpoint in before {
        let name = endpoint["workloadName"].as_str().expect("a name");
        let now = host.until_state(name, "ready");
        assert_eq!(now["generation"], endpoint["generation"]);
    }
}

#[test]
fn a_compose_project_is_enabled_by_one_label() {
    let Some(host) = Host::start(false) else {
        return;
    };
    host.docker.create_network("my_shop_default");
    host.docker.run(RunOptions {
        name: "my_shop_front_1",
        labels: &[
            ("com.docker.compose.project", "my_shop"),
            ("com.docker.compose.service", "front"),
            ("heddle.enable", "true"),
            ("heddle.port", "8080"),
            ("heddle.vip-port", "80"),
            ("heddle.protocol", "http"),
        ],
        network: Some("my_shop_default"),
        ..RunOptions::default()
    });
    host.node.eligible("my-shop/front", 1);
    let front = SocketAddr::new(host.node.vip("my-shop/front"), 80);
    let answer = host
        .netns
        .enter(|| http::get(front, "/id"))
        .expect("an answer");
    assert_eq!(answer.body.trim(), "my_shop_front_1");
}

#[test]
fn a_started_container_answers_within_300_ms() {
    let Some(host) = Host::start_with_etcd() else {
        return;
    };
    let web = host.web();
    let events = host.docker.events();
    let mut took: Vec<Duration> = Vec::new();
    for n in 0..50 {
        let name = format!("c{n}");
        host.docker.cli(&[
            "create",
            "--name",
            &name,
            "--label",
            "heddle.namespace=shop",
            "--label",
            "app=web",
            IMAGE,
            "whoami",
            "--name",
            &name,
        ]);
        std::thread::scope(|scope| {
            scope.spawn(|| host.docker.start_container(&name));
            let answered = host.netns.enter(|| {
                eventually(PATIENCE, "the container answers", || {
                    let answer = http::get(web, "/id").ok()?;
                    (answer.status == 200).then(SystemTime::now)
                })
            });
            let event = events.next("start", PATIENCE);
            let nanos = event["timeNano"].as_u64().expect("a time");
            let started = UNIX_EPOCH + Duration::from_nanos(nanos);
            took.push(answered.duration_since(started).unwrap_or_default());
        });
        host.docker.rm(&name);
        eventually(PATIENCE, "it is gone", || {
            let answer = host.netns.enter(|| http::get(web, "/id")).ok()?;
            (answer.status == 503).then_some(())
        });
    }
    took.sort();
    let p95 = took[took.len() * 95 / 100];
    eprintln!(
        "start to first answer: p50 {:?}, p95 {p95:?}, worst {:?}",
        took[took.len() / 2],
        took[took.len() - 1]
    );
    assert!(
        p95 <= Duration::from_millis(300),
        "p95 is {p95:?} of {took:?}"
    );
}
