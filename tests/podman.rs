//! Podman through its Docker-compatible socket: what heddle needs of it, and where it differs.

mod support;

use support::docker::Setup;
use support::node::PATIENCE;
use support::shop::{Shop, WEB};
use support::wait::eventually;

fn start() -> Option<Shop> {
    Shop::start(Setup {
        podman: true,
        ..Setup::default()
    })
}

#[test]
fn containers_come_go_restart_pause_and_move_as_with_docker() {
    let Some(mut shop) = start() else { return };
    shop.run("aa", &["--publish", "8080"]);
    let first = shop.until_state("aa", "ready");
    let port = shop.docker.published_port("aa", 8080);
    assert!(
        first["remote"].to_string().contains(&format!(":{port}")),
        "{first}"
    );
    shop.until_told("aa", "podman (the only one this host can dial)");
    assert_eq!(shop.ask().as_deref(), Ok("aa"));

    shop.docker.restart("aa");
    let second = eventually(PATIENCE, "it is another endpoint, and ready", || {
        let now = shop.endpoint("aa")?;
        (now["state"] == "ready" && now["id"] != first["id"]).then_some(now)
    });
    shop.docker.pause("aa");
    let paused = shop.until_state("aa", "unhealthy");
    assert_eq!(
        (&paused["reason"], &paused["id"]),
        (&"paused".into(), &second["id"])
    );
    shop.docker.unpause("aa");
    shop.until_state("aa", "ready");
    shop.docker.cli(&["rename", "aa", "zz"]);
    assert_eq!(shop.until_state("zz", "ready")["id"], second["id"]);
    shop.docker.signal("zz", "HUP");
    shop.docker.kill("zz");
    shop.until_gone("zz");
    shop.docker.start_container("zz");
    shop.until_state("zz", "ready");

    // Its service may go and come: the containers don't need it.
    shop.docker.stop_daemon();
    shop.docker.podman(&["stop", "zz"]);
    shop.docker.start_daemon();
    shop.until_gone("zz");
    shop.docker.podman(&["start", "zz"]);
    shop.until_state("zz", "ready");
    shop.docker.rm("zz");
    shop.until_gone("zz");
}

#[test]
fn networks_are_chosen_and_shared_as_with_docker() {
    let Some(shop) = start() else { return };
    shop.docker.podman(&[
        "network",
        "create",
        "--ipv6",
        "--subnet",
        "fd00:66::/64",
        "six",
    ]);
    shop.docker.podman(&["network", "create", "anet"]);
    shop.run("hosted", &["--network", "host"]);
    shop.until_state("hosted", "ready");
    assert_eq!(shop.ask().as_deref(), Ok("hosted"));
    shop.docker.rm("hosted");
    shop.run("none", &["--network", "none"]);
    shop.until_told("none", "network mode none: nothing can reach it");

    shop.run("roaming", &["--network", "six"]);
    let dual = shop.until_state("roaming", "ready");
    assert!(dual["local"].to_string().contains("[fd00:66::"), "{dual}");
    shop.docker.cli(&["network", "connect", "anet", "roaming"]);
    shop.until_told("roaming", "anet (first by name of anet, six)");
    shop.docker
        .cli(&["network", "disconnect", "anet", "roaming"]);
    shop.until_told("roaming", "six (the only one this host can dial)");
    let sharing = ["whoami", "--name", "sharing", "--listen", "9090"];
    shop.run_with(
        "sharing",
        &[
            "--network",
            "container:roaming",
            "--label",
            "heddle.port=9090",
        ],
        &sharing,
    );
    shop.until_told("sharing", "shared by roaming");
    shop.node.apply(&WEB.replace(", targetPort: 8080", ""));
    shop.until_state("sharing", "ready");
    assert_eq!(shop.ask().as_deref(), Ok("sharing"));
}
