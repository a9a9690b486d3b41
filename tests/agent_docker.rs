//! What the agent makes of real containers: networks, health, signals, a restarting daemon, and how fast.

mod support;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use support::docker::{IMAGE, RunOptions, Setup};
use support::http;
use support::node::PATIENCE;
use support::shop::{LABELS, Shop};
use support::wait::{eventually, stalled};

#[test]
fn every_network_mode_is_dialled_where_it_listens_or_says_why_not() {
    let Some(host) = Shop::start(Setup::default()) else {
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
    let Some(host) = Shop::start(Setup::default()) else {
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
    let Some(host) = Shop::start(Setup::default()) else {
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
    let Some(host) = Shop::start(Setup::default()) else {
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
    assert_eq!(before["id"], after["id"], "it is the same run of it");
}

#[test]
fn a_daemon_that_restarts_under_live_containers_costs_no_request() {
    let Some(mut host) = Shop::start(Setup {
        live_restore: true,
        ..Setup::default()
    }) else {
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
        assert_eq!(now["id"], endpoint["id"]);
    }
}

#[test]
fn a_started_container_answers_within_300_ms() {
    let Some(host) = Shop::start_with_etcd() else {
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
            let answering = scope.spawn(|| {
                host.netns.enter(|| {
                    eventually(PATIENCE, "the container answers", || {
                        let answer = http::get(web, "/id").ok()?;
                        (answer.status == 200).then(|| (SystemTime::now(), stalled()))
                    })
                })
            });
            let event = events.next("start", PATIENCE);
            let before = stalled();
            let (answered, after) = answering.join().expect("it asks until it is answered");
            let nanos = event["timeNano"].as_u64().expect("a time");
            let started = UNIX_EPOCH + Duration::from_nanos(nanos);
            let all = answered.duration_since(started).unwrap_or_default();
            took.push(all.saturating_sub(after.saturating_sub(before)));
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
        "start to first answer, without what the machine was busy with: p50 {:?}, p95 {p95:?}, worst {:?}",
        took[took.len() / 2],
        took[took.len() - 1]
    );
    assert!(
        p95 <= Duration::from_millis(300),
        "p95 is {p95:?} of {took:?}"
    );
}
