//! Virtual IPs on a host of their own: the nftables table and the routes, for life and death.

mod support;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};

use support::netns::{self, Netns};
use support::node::{Node, NodeOptions, PATIENCE};
use support::wait::{SetAtDrop, eventually};
use support::whoami::Whoami;
use support::{http, missing_program, requirement};

const RANGES: &str = "10.96.0.0/16,fd00:96::/108";

/// What `kill -9` leaves, and its end, as in docs/operations.md.
const CLEAN_UP: [&str; 3] = [
    "ip route flush table local proto 104",
    "ip -6 route flush table local proto 104",
    "nft delete table inet heddle",
];

struct Host {
    node: Node,
    _backend: Whoami,
    netns: Netns,
    /// The routes before heddle was there.
    routes: String,
}

fn ready() -> bool {
    netns::ready() && requirement("the nftables table", missing_program(&["nft", "dig"]))
}

fn options<'a>(netns: &'a Netns, name: &'a str, vip_range: &'a str) -> NodeOptions<'a> {
    NodeOptions {
        name,
        netns: Some(netns),
        address: Some(IpAddr::from([127, 0, 0, 1])),
        vip_range,
        ..NodeOptions::default()
    }
}

fn routes(netns: &Netns) -> String {
    shell(
        netns,
        "ip route show table local; ip -6 route show table local",
    )
}

#[track_caller]
fn shell(netns: &Netns, script: &str) -> String {
    netns.run(&["sh", "-ec", script])
}

/// `heddle up` where it must not go on for long.
fn up(netns: &Netns, node: &Node) -> Output {
    let config = node.path("heddle.toml").display().to_string();
    let heddle = env!("CARGO_BIN_EXE_heddle");
    netns.try_run(&["timeout", "60", heddle, "up", "--config", &config])
}

#[track_caller]
fn assert_refused(output: &Output, why: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains(why), "{text}");
}

impl Host {
    /// A node with a service `shop/web`, which has an address of each family.
    fn start() -> Self {
        let netns = Netns::new();
        let routes = routes(&netns);
        let backend = Whoami::start_in(&netns, "127.0.0.1:0", "a", &[]);
        let node = Node::start(&options(&netns, "n1", RANGES));
        node.apply(&format!(
            "
apiVersion: heddle/v1
kind: Service
metadata: {{name: web, namespace: shop}}
spec:
  ports: [{{name: web, port: 80, protocol: tcp}}]
---
apiVersion: heddle/v1
kind: Endpoint
metadata: {{name: a, namespace: shop}}
spec: {{service: web, address: \"127.0.0.1\", ports: {{web: {}}}}}
",
            backend.http.port()
        ));
        node.eligible("shop/web", 1);
        let host = Self {
            node,
            _backend: backend,
            netns,
            routes,
        };
        host.answers();
        host
    }

    /// The service's addresses, one of each family.
    fn vips(&self) -> [SocketAddr; 2] {
        eventually(PATIENCE, "shop/web has a VIP of each family", || {
            let service = self.node.service("shop/web")?;
            let vips = service["status"]["vips"].as_array()?.clone();
            let vips: BTreeSet<IpAddr> = vips
                .iter()
                .filter_map(|v| v.as_str()?.parse().ok())
                .collect();
            let both: Vec<_> = vips.into_iter().map(|ip| SocketAddr::new(ip, 80)).collect();
            let both: [SocketAddr; 2] = both.try_into().ok()?;
            (both[0].is_ipv4() && both[1].is_ipv6()).then_some(both)
        })
    }

    fn ask(&self, vip: SocketAddr) -> Result<String, String> {
        self.netns.enter(|| http::id(vip))
    }

    /// Waits until the service answers at both addresses.
    #[track_caller]
    fn answers(&self) {
        for vip in self.vips() {
            eventually(PATIENCE, &format!("{vip} answers"), || {
                match self.ask(vip) {
                    Ok(name) if name == "a" => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            });
        }
    }

    fn tables(&self) -> String {
        self.netns.run(&["nft", "list", "tables"])
    }

    /// What nft prints of the sets of services.
    fn services(&self) -> Vec<String> {
        let ruleset = self.netns.run(&["nft", "list", "table", "inet", "heddle"]);
        let elements = |line: &str| {
            let (_, element) = line.split_once("elements = { ")?;
            Some(element.trim_end_matches(" }").to_owned())
        };
        ruleset.lines().filter_map(elements).collect()
    }

    #[track_caller]
    fn assert_nothing_is_left(&self) {
        assert_eq!(self.tables(), "");
        assert_eq!(routes(&self.netns), self.routes);
    }
}

#[test]
fn a_service_is_reached_at_both_addresses_and_nothing_is_left_at_the_end() {
    if !ready() {
        return;
    }
    let mut host = Host::start();
    assert_eq!(host.tables(), "table inet heddle\n");
    assert_ne!(routes(&host.netns), host.routes);
    host.node.stop();
    host.assert_nothing_is_left();
}

#[test]
fn after_a_kill_nobody_else_answers_and_a_new_start_replaces_the_table() {
    if !ready() {
        return;
    }
    let mut host = Host::start();
    let vips = host.vips();
    let expected = vips.map(|vip| format!("{} . {}", vip.ip(), vip.port()));
    assert_eq!(host.services(), expected);

    // What Docker does to every local address for a published port.
    let decoy = Whoami::start_in(&host.netns, "127.0.0.1:0", "decoy", &[]);
    let port = decoy.http.port();
    let publish = format!(
        "nft -f - <<'END'
         table ip docker {{
             chain prerouting {{ type nat hook prerouting priority -100;
                 fib daddr type local tcp dport 80 dnat to 127.0.0.1:{port}
             }}
             chain output {{ type nat hook output priority -100;
                 fib daddr type local tcp dport 80 dnat to 127.0.0.1:{port}
             }}
         }}
         END"
    );
    shell(&host.netns, &publish.replace("\n         ", "\n"));
    let published = SocketAddr::from(([127, 0, 0, 1], 80));
    assert_eq!(host.ask(published).as_deref(), Ok("decoy"));
    host.answers();

    let over = AtomicBool::new(false);
    let (netns, over) = (host.netns.clone(), &over);
    std::thread::scope(|scope| {
        let end = SetAtDrop(over);
        let asked = scope.spawn(move || {
            let mut answers = BTreeSet::new();
            netns.enter(|| {
                let mut ask =
                    || answers.extend(http::get(vips[0], "/id").map(|a| a.body.trim().to_owned()));
                while !over.load(Ordering::Relaxed) {
                    ask();
                }
                // The new start answers by now, even if no turn came to ask it before.
                ask();
            });
            answers
        });
        host.node.kill();
        let refused = host.ask(vips[0]).expect_err("nobody is there");
        assert!(refused.contains("refused"), "{refused}");
        host.node.launch();
        host.answers();
        drop(end);
        let answers = asked.join().expect("asked");
        assert_eq!(answers, BTreeSet::from(["a".to_owned()]));
    });
    assert_eq!(host.tables(), "table ip docker\ntable inet heddle\n");
    assert_eq!(host.services(), expected);
    let ours = shell(
        &host.netns,
        "ip route show table local proto 104; ip -6 route show table local proto 104",
    );
    assert_eq!(ours.lines().count(), 2, "{ours}");

    host.node.kill();
    for command in CLEAN_UP {
        shell(&host.netns, command);
    }
    shell(&host.netns, "nft delete table ip docker");
    host.assert_nothing_is_left();
}

#[test]
fn what_others_take_away_is_put_back_and_counted() {
    if !ready() {
        return;
    }
    let mut host = Host::start();
    let repairs = |host: &Host, part: &str| {
        let part = format!("part=\"{part}\"");
        host.node.metric("heddle_redirect_repairs_total", &[&part])
    };
    assert_eq!(repairs(&host, "table") + repairs(&host, "route"), 0.0);
    for (part, change) in [
        ("table", "nft flush ruleset"),
        ("table", "nft flush table inet heddle"),
        ("table", "nft flush set inet heddle services6"),
        (
            "route",
            "ip route del local 10.96.0.0/16 dev lo table local",
        ),
        (
            "route",
            "ip -6 route del local fd00:96::/108 dev lo table local",
        ),
    ] {
        let before = repairs(&host, part);
        shell(&host.netns, change);
        eventually(PATIENCE, &format!("`{change}` is mended"), || {
            let now = repairs(&host, part);
            if now == before + 1.0 {
                Ok(())
            } else {
                Err(now)
            }
        });
        host.answers();
    }
    host.node.stop();
    host.assert_nothing_is_left();
}

#[test]
fn names_resolve_though_another_program_has_the_port_on_all_addresses() {
    if !ready() {
        return;
    }
    let netns = Netns::new();
    let any = SocketAddr::from(([0, 0, 0, 0], 53));
    let _dnsmasq = netns.enter(|| {
        let udp = UdpSocket::bind(any).expect("the port is free");
        (udp, TcpListener::bind(any).expect("the port is free"))
    });
    let node = Node::start(&NodeOptions {
        dns: "10.96.0.10:53",
        ..options(&netns, "n1", RANGES)
    });
    node.apply(
        "{apiVersion: heddle/v1, kind: Service, metadata: {name: web, namespace: shop}, \
          spec: {ports: [{name: web, port: 80}]}}",
    );
    let vip = eventually(PATIENCE, "shop/web has an IPv4 VIP", || {
        let service = node.service("shop/web")?;
        let vips = service["status"]["vips"].as_array()?.clone();
        let v4 = |vip: &serde_json::Value| vip.as_str()?.parse::<Ipv4Addr>().ok();
        vips.iter().find_map(v4)
    });
    let dig = ["dig", "@10.96.0.10", "+short", "+time=2", "+tries=2"];
    let question = ["web.shop.svc.heddle.internal", "A"];
    for transport in ["+notcp", "+tcp"] {
        eventually(PATIENCE, &format!("an answer with {transport}"), || {
            let answer = netns.try_run(&[&dig[..], &[transport], &question].concat());
            let text = String::from_utf8_lossy(&answer.stdout).trim().to_owned();
            let address: Option<Ipv4Addr> = text.parse().ok();
            if address == Some(vip) {
                Ok(())
            } else {
                Err(text)
            }
        });
    }
}

#[test]
fn a_second_node_on_the_host_is_refused_and_the_first_goes_on() {
    if !ready() {
        return;
    }
    let mut host = Host::start();
    let ruleset = || host.netns.run(&["nft", "list", "ruleset"]);
    let before = (ruleset(), routes(&host.netns));
    let second = Node::prepare(&options(&host.netns, "n2", "10.97.0.0/16"));
    let output = up(&host.netns, &second);
    let pid = host.node.pid();
    assert_refused(
        &output,
        &format!("table inet heddle is in use by another heddle, process {pid}"),
    );
    assert_eq!((ruleset(), routes(&host.netns)), before);
    host.answers();
    host.node.stop();
    host.assert_nothing_is_left();
}

#[test]
fn a_table_of_the_same_name_that_others_made_is_not_touched() {
    if !ready() {
        return;
    }
    let netns = Netns::new();
    shell(
        &netns,
        "nft add table inet heddle
         nft add chain inet heddle web
         nft add rule inet heddle web tcp dport 80 accept",
    );
    let state = || (netns.run(&["nft", "list", "ruleset"]), routes(&netns));
    let before = state();
    let output = up(&netns, &Node::prepare(&options(&netns, "n1", RANGES)));
    assert_refused(
        &output,
        "table inet heddle is there that heddle did not make",
    );
    assert_eq!(state(), before);
}
