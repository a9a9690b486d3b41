//! Projects of the real docker-compose: a project is a namespace, and one label makes a service.

mod support;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use support::docker::{IMAGE, Setup};
use support::missing_program;
use support::node::PATIENCE;
use support::requirement;
use support::shop::Shop;
use support::wait::eventually;

/// A project whose service `front` is on two networks, and whose `hidden` asks for nothing.
fn project(version: &str) -> String {
    format!(
        r#"
version: "2.4"
services:
  front:
    image: {IMAGE}
    command: ["whoami"]
    environment: {{VERSION: "{version}"}}
    expose: ["8080"]
    stop_grace_period: 3s
    networks: [a_first_by_name, default]
    labels:
      heddle.enable: "true"
      heddle.vip-port: "80"
      heddle.protocol: http
  hidden:
    image: {IMAGE}
    command: ["whoami"]
networks:
  a_first_by_name: {{}}
"#
    )
}

/// Runs docker-compose in a folder against this Docker.
fn compose(shop: &Shop, folder: &Path, words: &[&str]) {
    let output = Command::new("docker-compose")
        .current_dir(folder)
        .env("DOCKER_HOST", shop.docker.url())
        .env("DOCKER_CONFIG", folder)
        .env_remove("COMPOSE_FILE")
        .env_remove("COMPOSE_PROJECT_NAME")
        .args(["--project-name", "My_Shop", "--no-ansi"])
        .args(words)
        .output()
        .expect("docker-compose runs");
    assert!(
        output.status.success(),
        "docker-compose {}: {}",
        words.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_project_is_a_namespace_and_follows_scaling_and_new_versions() {
    let missing = missing_program(&["docker-compose"]);
    if !requirement("Compose", missing) {
        return;
    }
    let Some(shop) = Shop::start(Setup::default()) else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let write = |version: &str| {
        let file = folder.path().join("docker-compose.yml");
        std::fs::write(file, project(version)).expect("the project is written");
    };
    write("1");
    compose(&shop, folder.path(), &["up", "-d"]);
    shop.node.eligible("my-shop/front", 1);
    let told = shop.until_told(
        "my_shop_front_1",
        "my_shop_default (the Compose project's default)",
    );
    assert_eq!(told["namespace"], "my-shop");
    assert!(
        told.to_string()
            .contains("selected by `com.docker.compose.service=front,heddle.enable=true`"),
        "{told}"
    );
    let hidden = eventually(PATIENCE, "the other container is seen", || {
        shop.node.workload("my_shop_hidden_1")
    });
    assert!(
        hidden
            .to_string()
            .contains("not selected: no selector in namespace my-shop matches its labels"),
        "{hidden}"
    );
    assert_eq!(shop.node.service("my-shop/hidden"), None);
    let front = SocketAddr::new(shop.node.vip("my-shop/front"), 80);
    shop.ask_at(front).expect("an answer");

    compose(&shop, folder.path(), &["up", "-d", "--scale", "front=3"]);
    shop.node.eligible("my-shop/front", 3);
    compose(&shop, folder.path(), &["up", "-d", "--scale", "front=1"]);
    let left = eventually(PATIENCE, "one endpoint is left", || {
        let all = shop.node.endpoints("my-shop/front");
        (all.len() == 1).then(|| all[0].clone())
    });

    // A new version is another container under the same name.
    write("2");
    compose(&shop, folder.path(), &["up", "-d"]);
    eventually(PATIENCE, "the new container is the only endpoint", || {
        let all = shop.node.endpoints("my-shop/front");
        match &all[..] {
            [only] if only["workload"] != left["workload"] && only["state"] == "ready" => Ok(()),
            _ => Err(all),
        }
    });
    shop.ask_at(front).expect("an answer at the same address");

    compose(&shop, folder.path(), &["down"]);
    eventually(PATIENCE, "nothing is left", || {
        shop.node.endpoints("my-shop/front").is_empty()
    });
    assert!(shop.node.service("my-shop/front").is_some());
}
