//! Docker goes and comes back, with and without its containers; and so does the node.

mod support;

use std::time::Instant;

use serde_json::Value;
use support::docker::Setup;
use support::node::PATIENCE;
use support::shop::{Shop, web_checked};
use support::wait::eventually;

/// What `/readyz` says while Docker is away.
fn until_waiting(shop: &Shop) {
    eventually(PATIENCE, "the node says that it waits for Docker", || {
        let (status, body) = shop.node.readyz().ok_or("no answer".to_owned())?;
        let told = body["reasons"].to_string().to_lowercase();
        if status == 200 && told.contains("docker") {
            Ok(())
        } else {
            Err(body.to_string())
        }
    });
}

fn states(shop: &Shop) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = shop
        .node
        .endpoints("shop/web")
        .iter()
        .map(|e| {
            let text = |key: &str| e[key].as_str().unwrap_or_default().to_owned();
            (text("workloadName"), text("state"))
        })
        .collect();
    all.sort();
    all
}

fn until_only_ready(shop: &Shop, names: &[&str]) {
    let wanted: Vec<(String, String)> = names
        .iter()
        .map(|name| ((*name).to_owned(), "ready".to_owned()))
        .collect();
    eventually(
        PATIENCE,
        &format!("only {names:?} are there, ready"),
        || {
            let now = states(shop);
            if now == wanted { Ok(()) } else { Err(now) }
        },
    );
}

#[test]
fn after_a_restart_of_docker_what_its_policy_restarts_is_back_and_the_rest_is_gone() {
    let Some(mut shop) = Shop::start(Setup::default()) else {
        return;
    };
    shop.run("policy", &["--restart", "always"]);
    shop.run("plain", &[]);
    let before = shop.until_state("policy", "ready");
    shop.until_state("plain", "ready");
    shop.docker.stop_daemon();
    until_waiting(&shop);
    shop.docker.start_daemon();
    let started = Instant::now();
    until_only_ready(&shop, &["policy"]);
    eprintln!("converged {:?} after dockerd answered", started.elapsed());
    let after = shop.until_state("policy", "ready");
    assert_ne!(after["id"], before["id"]);
    assert_eq!(shop.ask().as_deref(), Ok("policy"));
}

#[test]
fn while_docker_is_dead_its_living_containers_serve_and_then_its_word_counts_again() {
    let Some(mut shop) = Shop::start(Setup::default()) else {
        return;
    };
    shop.run("policy", &["--restart", "always"]);
    shop.run("plain", &[]);
    shop.until_state("policy", "ready");
    shop.until_state("plain", "ready");
    shop.docker.kill_daemon();
    until_waiting(&shop);
    for _ in 0..20 {
        shop.ask().expect("an answer");
    }
    assert_eq!(states(&shop).len(), 2);
    // Without live-restore, dockerd ends at its start what it finds running.
    shop.docker.start_daemon();
    until_only_ready(&shop, &["policy"]);
    assert_eq!(shop.ask().as_deref(), Ok("policy"));
}

#[test]
fn a_container_that_dies_while_docker_is_away_is_out_by_its_checks_and_then_gone() {
    let Some(mut shop) = Shop::start(Setup {
        live_restore: true,
        ..Setup::default()
    }) else {
        return;
    };
    shop.node.apply(&web_checked("{tcp: {}, interval: 300ms}"));
    shop.run("aa", &[]);
    shop.run("bb", &[]);
    let aa = shop.until_state("aa", "ready");
    shop.until_state("bb", "ready");
    let process = shop.docker.process("bb");
    shop.docker.stop_daemon();
    until_waiting(&shop);
    process.kill();
    shop.until_state("bb", "unhealthy");
    for _ in 0..10 {
        assert_eq!(shop.ask().as_deref(), Ok("aa"));
    }
    shop.docker.start_daemon();
    let started = Instant::now();
    until_only_ready(&shop, &["aa"]);
    eprintln!("converged {:?} after dockerd answered", started.elapsed());
    assert_eq!(shop.until_state("aa", "ready")["id"], aa["id"]);
}

#[test]
fn a_docker_that_hangs_costs_nothing_and_is_followed_when_it_goes_on() {
    let Some(shop) = Shop::start(Setup::default()) else {
        return;
    };
    shop.run("aa", &[]);
    shop.run("bb", &[]);
    let aa = shop.until_state("aa", "ready");
    shop.until_state("bb", "ready");
    let process = shop.docker.process("bb");
    shop.docker.freeze_daemon();
    // Docker says nothing of it; the checks do.
    process.kill();
    shop.until_state("bb", "unhealthy");
    for _ in 0..20 {
        assert_eq!(shop.ask().as_deref(), Ok("aa"));
    }
    shop.docker.thaw_daemon();
    until_only_ready(&shop, &["aa"]);
    shop.run("cc", &[]);
    shop.until_state("cc", "ready");
    assert_eq!(shop.until_state("aa", "ready")["id"], aa["id"]);
}

#[test]
fn what_changed_while_the_node_was_down_is_mended_by_its_list() {
    let Some(mut shop) = Shop::start(Setup::default()) else {
        return;
    };
    shop.docker.create_network("anet");
    for name in ["dead", "named", "moved", "frozen", "same"] {
        shop.run(name, &[]);
    }
    shop.run("shown", &["--publish", "8080"]);
    let before = |name: &str| -> Value { shop.until_state(name, "ready") };
    let (named, moved, shown) = (before("named"), before("moved"), before("shown"));
    let (same, frozen) = (before("same"), before("frozen"));
    before("dead");
    shop.node.kill();
    shop.docker.kill("dead");
    shop.docker.cli(&["rename", "named", "renamed"]);
    shop.docker.cli(&["network", "connect", "anet", "moved"]);
    shop.docker
        .cli(&["network", "disconnect", "bridge", "moved"]);
    shop.docker.restart("shown");
    shop.docker.pause("frozen");
    shop.run("young", &[]);
    shop.node.launch();
    shop.until_state("young", "ready");
    shop.until_gone("dead");
    shop.until_gone("named");
    assert_eq!(shop.until_state("renamed", "ready")["id"], named["id"]);
    assert_eq!(shop.until_state("same", "ready")["id"], same["id"]);
    let paused = shop.until_state("frozen", "unhealthy");
    assert_eq!(
        (&paused["reason"], &paused["id"]),
        (&Value::from("paused"), &frozen["id"])
    );
    let changed = |name: &str, before: &Value| {
        eventually(PATIENCE, &format!("{name} is another endpoint"), || {
            let now = shop.endpoint(name).ok_or("none".to_owned())?;
            if now["state"] == "ready" && now["id"] != before["id"] {
                Ok(now)
            } else {
                Err(now.to_string())
            }
        })
    };
    let now = changed("moved", &moved);
    let address = shop.docker.address("moved", "anet");
    assert!(
        now["local"].to_string().contains(&address.to_string()),
        "{now}"
    );
    let now = changed("shown", &shown);
    let port = shop.docker.published_port("shown", 8080);
    assert!(
        now["remote"].to_string().contains(&format!(":{port}")),
        "{now}"
    );
}
