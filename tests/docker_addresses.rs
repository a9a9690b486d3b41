//! Where a container is dialled: one address per family, published ports for other nodes, shared networks; and what is
//! said where there is no choice.

mod support;

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use support::docker::{IMAGE, RunOptions, Setup};
use support::http;
use support::netns::Lan;
use support::node::PATIENCE;
use support::shop::{LABELS, Shop, WEB};
use support::wait::{SetAtDrop, eventually};

fn addresses(endpoint: &Value, which: &str) -> Vec<SocketAddr> {
    let all = endpoint[which].as_array().expect("a list");
    all.iter()
        .map(|text| text.as_str().and_then(|t| t.parse().ok()))
        .map(|address| address.expect("an address"))
        .collect()
}

#[test]
fn both_families_are_dialled_and_either_will_do() {
    let Some(shop) = Shop::start(Setup::default()) else {
        return;
    };
    shop.docker.cli(&[
        "network",
        "create",
        "--ipv6",
        "--subnet",
        "fd00:77::/64",
        "dual",
    ]);
    let both = ["whoami", "--listen", "[::]:8080", "--name", "both"];
    shop.run_with("both", &["--network", "dual"], &both);
    let endpoint = shop.until_state("both", "ready");
    let local = addresses(&endpoint, "local");
    assert_eq!(local.len(), 2, "{endpoint}");
    assert!(
        local[0].is_ipv4() && local[1].is_ipv6(),
        "IPv4 first: {endpoint}"
    );
    for address in local {
        // A young IPv6 address can't be used before nobody else was found to have it.
        eventually(PATIENCE, "it answers there", || {
            shop.ask_at(address).is_ok_and(|name| name == "both")
        });
    }
    assert_eq!(shop.ask().as_deref(), Ok("both"));
    shop.docker.rm("both");

    // Docker gives every container an IPv4 address; this one listens on its other one alone.
    shop.run_with(
        "six",
        &["--network", "dual", "--sysctl", "net.ipv6.bindv6only=1"],
        &["whoami", "--listen", "[::]:8080", "--name", "six"],
    );
    shop.until_state("six", "ready");
    for _ in 0..5 {
        assert_eq!(shop.ask().as_deref(), Ok("six"));
    }
}

#[test]
fn other_nodes_dial_the_published_port_which_may_be_another_one_after_a_restart() {
    if !support::docker::ready() {
        return;
    }
    let lan = Lan::new(1);
    let host = &lan.hosts[0];
    let Some(shop) = Shop::start(Setup {
        netns: Some(host.netns.clone()),
        options: vec!["--userland-proxy=false".to_owned()],
        ..Setup::default()
    }) else {
        return;
    };
    shop.run("shown", &["--publish", "8080"]);
    let before = shop.until_state("shown", "ready");
    let remote = |endpoint: &Value| {
        let all = addresses(endpoint, "remote");
        assert_eq!(all.len(), 1, "{endpoint}");
        all[0]
    };
    let first = remote(&before);
    assert_eq!(first.ip(), IpAddr::from(host.address));
    assert_eq!(first.port(), shop.docker.published_port("shown", 8080));
    // The test stands elsewhere on the LAN.
    let answer = http::get(first, "/id").expect("an answer");
    assert_eq!(answer.body.trim(), "shown");

    shop.docker.restart("shown");
    let after = eventually(PATIENCE, "it is another endpoint, and ready", || {
        let now = shop.endpoint("shown")?;
        (now["state"] == "ready" && now["id"] != before["id"]).then_some(now)
    });
    let second = remote(&after);
    assert_eq!(second.port(), shop.docker.published_port("shown", 8080));
    let answer = http::get(second, "/id").expect("an answer");
    assert_eq!(answer.body.trim(), "shown");

    for (name, publish, reachable) in [
        ("nowhere", None, false),
        ("loopback", Some("127.0.0.1:18081:8080".to_owned()), false),
        ("other-port", Some("18082:9090".to_owned()), false),
        ("fixed", Some(format!("{}:18083:8080", host.address)), true),
    ] {
        let publish = publish.as_deref();
        shop.docker.run(RunOptions {
            name,
            labels: LABELS,
            publish: publish.as_slice(),
            ..RunOptions::default()
        });
        let endpoint = shop.until_state(name, "ready");
        let remote = addresses(&endpoint, "remote");
        assert_eq!(!remote.is_empty(), reachable, "{endpoint}");
    }
}

#[test]
fn a_shared_network_is_followed_and_its_loss_is_said() {
    let Some(shop) = Shop::start(Setup::default()) else {
        return;
    };
    shop.docker.run(RunOptions {
        name: "owner",
        args: &["whoami", "--listen", "9999"],
        ..RunOptions::default()
    });
    shop.run("sharing", &["--network", "container:owner"]);
    let before = shop.until_state("sharing", "ready");
    assert_eq!(shop.ask().as_deref(), Ok("sharing"));
    let address = shop.docker.address("owner", "bridge");
    assert_eq!(addresses(&before, "local")[0].ip(), address);
    shop.docker.cli(&["rename", "owner", "landlord"]);
    shop.until_told("sharing", "shared by landlord");
    let third = ["whoami", "--name", "third", "--listen", "7777"];
    shop.run_with("third", &["--network", "container:sharing"], &third);
    shop.until_told("third", "shared by landlord");

    shop.docker.stop("landlord");
    shop.until_told(
        "sharing",
        "it shares the network of container landlord, which does not run",
    );
    shop.until_gone("sharing");
    shop.docker.until_addressless("landlord");
    // Somebody takes the address that the owner had.
    shop.docker.run(RunOptions {
        name: "squatter",
        ..RunOptions::default()
    });
    shop.docker.start_container("landlord");
    shop.until_told(
        "sharing",
        "it shares the network that container landlord had before it was restarted, which is cut off: restart it too",
    );
    assert!(shop.endpoint("sharing").is_none());
    shop.docker.restart("sharing");
    let after = shop.until_state("sharing", "ready");
    let moved = shop.docker.address("landlord", "bridge");
    assert_ne!(moved, address);
    assert_eq!(addresses(&after, "local")[0].ip(), moved);
    assert_eq!(shop.ask().as_deref(), Ok("sharing"));
}

#[test]
fn a_network_that_the_host_cannot_dial_is_passed_over_or_said() {
    if !support::docker::ready() {
        return;
    }
    let lan = Lan::new(1);
    let Some(shop) = Shop::start(Setup {
        netns: Some(lan.hosts[0].netns.clone()),
        ..Setup::default()
    }) else {
        return;
    };
    shop.docker.cli(&[
        "network",
        "create",
        "--driver",
        "macvlan",
        "--subnet",
        "10.99.0.0/24",
        "--opt",
        "parent=eth0",
        "alan",
    ]);
    shop.run("apart", &["--network", "alan"]);
    shop.until_told(
        "apart",
        "it is on no network that this host can dial: alan (macvlan)",
    );
    assert!(shop.endpoint("apart").is_none());
    shop.docker.create_network("znet");
    shop.docker.cli(&["network", "connect", "znet", "apart"]);
    shop.until_told("apart", "znet (the only one this host can dial)");
    shop.until_state("apart", "ready");
    // A network of the same name and another driver is another network.
    shop.docker.rm("apart");
    shop.docker.cli(&["network", "rm", "alan"]);
    shop.docker.create_network("alan");
    shop.run("apart", &["--network", "alan"]);
    shop.until_told("apart", "alan (the only one this host can dial)");
    shop.until_state("apart", "ready");
}

#[test]
fn a_port_that_nobody_chose_is_an_error_in_words() {
    let Some(shop) = Shop::start(Setup::default()) else {
        return;
    };
    let chosen_by_container = WEB.replace(", targetPort: 8080", "");
    shop.node.apply(&chosen_by_container);
    shop.run("none", &[]);
    shop.until_told(
        "none",
        "port http: exposes no port and none is chosen: set targetPort or label heddle.port",
    );
    shop.run("several", &["--expose", "8080", "--expose", "9090"]);
    shop.until_told(
        "several",
        "port http: exposes several ports (8080, 9090) and none is chosen: set targetPort or label heddle.port",
    );
    assert!(shop.endpoint("none").is_none() && shop.endpoint("several").is_none());
    shop.run("one", &["--expose", "8080"]);
    shop.until_state("one", "ready");
    shop.run("labelled", &["--label", "heddle.port=8080"]);
    shop.until_state("labelled", "ready");
    // What is read by people says the same.
    let table = shop.node.ok(&["get", "workloads", "-n", "shop"]);
    let line = |name: &str| {
        let found = table
            .lines()
            .find(|l| l.split_whitespace().nth(1) == Some(name));
        found
            .unwrap_or_else(|| panic!("no {name} in:\n{table}"))
            .to_owned()
    };
    assert!(line("none").contains("exposes no port"), "{table}");
    assert!(line("one").contains(" web "), "{table}");
    shop.node.apply(WEB);
    shop.until_state("none", "ready");
    shop.until_state("several", "ready");
}

#[test]
fn a_container_on_no_network_or_an_unknown_one_says_so() {
    let Some(shop) = Shop::start(Setup::default()) else {
        return;
    };
    shop.run("unreachable", &["--network", "none"]);
    shop.until_told("unreachable", "network mode none: nothing can reach it");
    shop.run("asking", &["--label", "heddle.network=nope"]);
    shop.until_told(
        "asking",
        "label heddle.network=nope: it is not on that network, but on bridge",
    );
    shop.run("left", &[]);
    shop.until_state("left", "ready");
    shop.docker
        .cli(&["network", "disconnect", "bridge", "left"]);
    shop.until_told("left", "it is on no network");
    shop.until_gone("left");
    let bare = shop
        .docker
        .cli(&["run", "--detach", "--name", "bare", IMAGE, "whoami"]);
    assert!(!bare.is_empty());
    shop.until_told(
        "bare",
        "not selected: no service with a selector in namespace default",
    );
}

#[test]
fn an_address_that_another_service_takes_over_gets_no_request_of_the_first() {
    let Some(shop) = Shop::start(Setup::default()) else {
        return;
    };
    let other = WEB.replace("web", "other");
    shop.node.apply(&format!("{WEB}---{other}"));
    let web = shop.web();
    for round in 0..3 {
        let (first, second) = (format!("first{round}"), format!("second{round}"));
        shop.run(&first, &[]);
        shop.until_state(&first, "ready");
        let address = shop.docker.address(&first, "bridge");
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _end = SetAtDrop(&over);
            for _ in 0..4 {
                // Kept connections and their pools on the way to the first, all the time.
                scope.spawn(|| {
                    shop.netns.enter(|| {
                        while !over.load(Ordering::Relaxed) {
                            let _ = http::get(web, "/for-web");
                        }
                    });
                });
            }
            shop.docker.kill(&first);
            shop.docker.until_addressless(&first);
            shop.docker.run(RunOptions {
                name: &second,
                labels: &[("heddle.namespace", "shop"), ("app", "other")],
                ..RunOptions::default()
            });
            shop.node.eligible("shop/other", 1);
        });
        assert_eq!(
            shop.docker.address(&second, "bridge"),
            address,
            "Docker gives the address out again"
        );
        let count = |path: &str| {
            let answer = shop.netns.enter(|| {
                http::get(
                    SocketAddr::new(address, 8080),
                    &format!("/count?path={path}"),
                )
            });
            answer.expect("an answer").body.trim().to_owned()
        };
        assert_eq!(count("/for-web"), "0", "round {round}");
        shop.docker.rm(&first);
        shop.docker.rm(&second);
        shop.node.eligible("shop/other", 0);
    }
}
