//! The agent as a whole: containers and registrations in, slices in a real registry out.

mod docker;
mod world;

use std::net::IpAddr;
use std::time::Duration;

use docker::FakeDocker;
use model::endpoint::{Health, Lifecycle, State};
use model::service::{ManagedBy, Service};
use model::time::Timestamp;
use model::workload::Registration;
use registry::layout::Key;
use registry::record;
use registry::store::Store;
use serde_json::json;
use tokio::time::Instant;
use world::{Backend, PATIENCE, World, key, name, ready};

const WEB: &[(&str, &str)] = &[("app", "web"), ("heddle.namespace", "shop")];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_becomes_ready_ends_and_goes() {
    let world = World::new().await;
    let backend = Backend::on("127.0.0.1:0").await;
    world.service("web", backend.port()).await;
    let docker = FakeDocker::up(world.folder.path());
    let running = world.agent(Some(docker.url()));
    docker.run("aa", "127.0.0.1", WEB);
    let endpoints = world.until_ready("shop/web", 1).await;
    assert_eq!(endpoints[0].local, [backend.address]);
    assert!(
        endpoints[0].remote.is_empty(),
        "nothing is published: no other node may dial it"
    );
    running.until_told("aa", "selected by `app=web`").await;
    docker.term("aa");
    let ending = world
        .until("shop/web", "terminating", |all| {
            all.len() == 1 && all[0].lifecycle.value == Lifecycle::Terminating
        })
        .await;
    assert_eq!(
        ending[0].health.value,
        Health::Passing,
        "it may still be used when there is nobody else"
    );
    assert_eq!(&*ending[0].lifecycle.reason, "told to end by SIGTERM");
    docker.die("aa");
    world.until_empty("shop/web").await;
    assert!(running.agent.workloads().is_empty());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_the_agent_changes_nothing() {
    let world = World::new().await;
    let backend = Backend::on("127.0.0.1:0").await;
    world.service("web", backend.port()).await;
    let docker = FakeDocker::up(world.folder.path());
    let first = world.agent(Some(docker.url()));
    docker.run("aa", "127.0.0.1", WEB);
    docker.run("bb", "127.0.0.1", WEB);
    world.until_ready("shop/web", 2).await;
    first.stop().await;
    world.until_followed("shop/web").await;
    let before = world.stored("shop/web").await.expect("kept");
    let second = world.agent(Some(docker.url()));
    second.until_told("aa", "selected by").await;
    second.until_told("bb", "selected by").await;
    // A third container is a write after everything that the restart itself could have written.
    docker.run(
        "cc",
        "127.0.0.1",
        &[("app", "other"), ("heddle.namespace", "shop")],
    );
    world.service("other", backend.port()).await;
    world.until_ready("shop/other", 1).await;
    assert_eq!(world.stored("shop/web").await, Some(before));
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_went_while_the_agent_was_down_is_removed_and_the_rest_kept() {
    let world = World::new().await;
    let backend = Backend::on("127.0.0.1:0").await;
    for service in ["web", "db"] {
        world.service(service, backend.port()).await;
    }
    let mut docker = FakeDocker::up(world.folder.path());
    let first = world.agent(Some(docker.url()));
    docker.run("aa", "127.0.0.1", WEB);
    docker.run("bb", "127.0.0.1", WEB);
    docker.run(
        "cc",
        "127.0.0.1",
        &[("app", "db"), ("heddle.namespace", "shop")],
    );
    world.until_ready("shop/web", 2).await;
    world.until_ready("shop/db", 1).await;
    first.stop().await;
    world.until_followed("shop/web").await;
    // While Docker can't be seen, nothing is gone, but what is dead is found by its checks.
    docker.stop();
    docker.remove("bb");
    docker.remove("cc");
    let second = world.agent(Some(docker.url()));
    drop(backend);
    let kept = world
        .until("shop/web", "kept and failing", |all| {
            all.len() == 2 && all.iter().all(|e| e.health.value == Health::Failing)
        })
        .await;
    assert!(
        kept[0].health.reason.contains("connection refused"),
        "{}",
        kept[0].health.reason
    );
    docker.start();
    world
        .until("shop/web", "the one that runs", |all| all.len() == 1)
        .await;
    world.until_empty("shop/db").await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_connection_keeps_what_was_known_and_a_listing_mends_it() {
    let world = World::new().await;
    let backend = Backend::on("127.0.0.1:0").await;
    world.service("web", backend.port()).await;
    let mut docker = FakeDocker::up(world.folder.path());
    let running = world.agent(Some(docker.url()));
    docker.run("aa", "127.0.0.1", WEB);
    docker.run("bb", "127.0.0.1", WEB);
    world.until_ready("shop/web", 2).await;
    docker.stop();
    let deadline = Instant::now() + PATIENCE;
    while !matches!(
        running.agent.status().docker,
        agent::DockerStatus::Waiting { .. }
    ) {
        assert!(Instant::now() < deadline, "the loss was never noticed");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(
        world
            .stored("shop/web")
            .await
            .expect("kept")
            .0
            .endpoints
            .len(),
        2
    );
    docker.remove("aa");
    docker.add("cc", "127.0.0.1", WEB);
    docker.start();
    let mended = world
        .until("shop/web", "bb and cc", |all| {
            let names: Vec<&str> = all.iter().map(|e| &*e.name).collect();
            names == ["bb", "cc"] && all.iter().all(|e| ready(e))
        })
        .await;
    assert_eq!(mended.len(), 2);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recycled_address_inherits_nothing() {
    let world = World::new().await;
    let backend = Backend::on("127.0.0.1:0").await;
    world.service("web", backend.port()).await;
    let docker = FakeDocker::up(world.folder.path());
    let running = world.agent(Some(docker.url()));
    docker.run("aa", "127.0.0.1", WEB);
    let first = world.until_ready("shop/web", 1).await;
    docker.die("aa");
    world.until_empty("shop/web").await;
    docker.run("aa", "127.0.0.1", WEB);
    let second = world.until_ready("shop/web", 1).await;
    assert_eq!(first[0].local, second[0].local);
    assert_ne!(first[0].id(), second[0].id());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_takes_it_out_and_an_unpause_brings_it_back_at_its_first_pass() {
    let world = World::new().await;
    let backend = Backend::on("127.0.0.1:0").await;
    world.service("web", backend.port()).await;
    let docker = FakeDocker::up(world.folder.path());
    let running = world.agent(Some(docker.url()));
    docker.run("aa", "127.0.0.1", WEB);
    let before = world.until_ready("shop/web", 1).await;
    docker.change(
        "aa",
        "/State",
        json!({"Running": true, "Paused": true, "StartedAt": started(&docker_id(&before))}),
    );
    docker.event("aa", "pause", json!({}));
    let paused = world
        .until("shop/web", "paused", |all| {
            all.len() == 1 && all[0].health.value == Health::Failing
        })
        .await;
    assert_eq!(&*paused[0].health.reason, "paused");
    assert_eq!(paused[0].id(), before[0].id());
    docker.change("aa", "/State/Paused", json!(false));
    docker.event("aa", "unpause", json!({}));
    let after = world.until_ready("shop/web", 1).await;
    assert_eq!(
        after[0].id(),
        before[0].id(),
        "connections to it were never lost"
    );
    running.stop().await;
}

fn docker_id(endpoints: &[std::sync::Arc<model::Endpoint>]) -> String {
    endpoints[0].generation.to_string()
}

fn started(generation: &str) -> String {
    generation.split('/').next().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_bad_container_does_not_touch_the_others() {
    let world = World::new().await;
    let backend = Backend::on("127.0.0.1:0").await;
    world.service("web", backend.port()).await;
    let docker = FakeDocker::up(world.folder.path());
    docker.add("ba", "127.0.0.1", WEB);
    docker.break_description("ba");
    docker.add(
        "bb",
        "127.0.0.1",
        &[("app", "web"), ("heddle.namespace", "Not A Name")],
    );
    docker.add("bc", "", WEB);
    docker.add(
        "aa",
        "127.0.0.1",
        &[
            ("app", "web"),
            ("heddle.namespace", "shop"),
            ("heddle.weight", "many"),
            ("\u{7f}", ""),
        ],
    );
    let running = world.agent(Some(docker.url()));
    let endpoints = world.until_ready("shop/web", 1).await;
    assert_eq!((&*endpoints[0].name, endpoints[0].weight), ("aa", 1));
    running
        .until_told("aa", "label heddle.weight=many: not a number from 0 to 256")
        .await;
    running
        .until_told(
            "bb",
            "label heddle.namespace: `Not A Name` is not a valid name",
        )
        .await;
    running
        .until_told("bc", "it has no address on network bridge")
        .await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labels_alone_make_a_service_with_a_vip() {
    let world = World::new().await;
    let backend = Backend::on("127.0.0.1:0").await;
    let port = backend.port().to_string();
    let docker = FakeDocker::up(world.folder.path());
    let running = world.agent(Some(docker.url()));
    let labels = [
        ("heddle.service", "web"),
        ("heddle.namespace", "shop"),
        ("heddle.port", port.as_str()),
        ("heddle.vip-port", "80"),
    ];
    docker.run("aa", "127.0.0.1", &labels);
    world.until_ready("shop/web", 1).await;
    let view = world
        .snapshot
        .load()
        .service(&key("shop/web"))
        .cloned()
        .expect("a service");
    assert_eq!(view.ports[0].port, 80);
    assert_eq!(view.vips.len(), 1);
    assert_eq!(view.service.managed_by, model::service::ManagedBy::Labels);
    docker.run(
        "bb",
        "127.0.0.1",
        &[labels[0], labels[1], labels[2], ("heddle.vip-port", "81")],
    );
    world.until_ready("shop/web", 2).await;
    running
        .until_told("bb", "made of the labels of aa, which is older")
        .await;
    // A manifest of that name wins.
    world.service("web", backend.port()).await;
    world.until_empty("shop/web").await;
    running
        .until_told("aa", "service shop/web is managed by apply, not by labels")
        .await;
    running.stop().await;
}

/// An agent that looks all the time for services of labels that are unused for longer than `grace`.
fn sweeping(world: &World, docker: Option<String>, grace: Duration) -> world::Running {
    world.agent_with(agent::Options {
        rescan: Duration::from_millis(20),
        label_service_grace: grace,
        ..world.options(docker)
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_of_labels_outlives_its_last_container_for_a_while() {
    let world = World::new().await;
    let backend = Backend::on("127.0.0.1:0").await;
    let port = backend.port().to_string();
    let docker = FakeDocker::up(world.folder.path());
    let running = sweeping(&world, Some(docker.url()), Duration::from_millis(200));
    docker.run(
        "aa",
        "127.0.0.1",
        &[("heddle.service", "web"), ("heddle.port", &port)],
    );
    world.until_ready("default/web", 1).await;
    let died = Instant::now();
    docker.die("aa");
    world.until_empty("default/web").await;
    let deadline = Instant::now() + PATIENCE;
    while world.snapshot.load().service(&key("default/web")).is_some() {
        assert!(Instant::now() < deadline, "it was never deleted");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(died.elapsed() >= Duration::from_millis(200));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_label_asks_for_an_address_and_is_told_who_else_has_it() {
    let world = World::new().await;
    let backend = Backend::on("127.0.0.1:0").await;
    let port = backend.port().to_string();
    let docker = FakeDocker::up(world.folder.path());
    let running = world.agent(Some(docker.url()));
    let vip = ("heddle.vip", "10.96.5.5");
    let labels = [("heddle.service", "web"), ("heddle.port", &*port), vip];
    docker.run("aa", "127.0.0.1", &labels);
    world.until_ready("default/web", 1).await;
    let snapshot = world.snapshot.load();
    let view = snapshot.service(&key("default/web")).expect("a service");
    assert_eq!(view.vips[..], [IpAddr::from([10, 96, 5, 5])]);
    let labels = [("heddle.service", "db"), ("heddle.port", &*port), vip];
    docker.run("bb", "127.0.0.1", &labels);
    let held = "spec.vips asks for 10.96.5.5, which service default/web has";
    running.until_told("bb", held).await;
    running.stop().await;
}

/// Since when a service's record says that it is unused; `None` when it is gone.
async fn unused(world: &World, service: &str) -> Option<Option<Timestamp>> {
    let path = world.registry.keys().path(&Key::Service(key(service)));
    let entry = world.store.get(&path).await.expect("it answers")?;
    let service: Service = record::decode(&entry.value).expect("a service");
    Some(service.metadata.unused_since)
}

async fn until_unused(world: &World, service: &str, so: bool) {
    let deadline = Instant::now() + PATIENCE;
    while unused(world, service).await.map(|since| since.is_some()) != Some(so) {
        assert!(Instant::now() < deadline, "it was never noted");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn that_a_service_of_labels_is_unused_is_noted_and_taken_back() {
    let world = World::new().await;
    let backend = Backend::on("127.0.0.1:0").await;
    let port = backend.port().to_string();
    let docker = FakeDocker::up(world.folder.path());
    let running = sweeping(&world, Some(docker.url()), Duration::from_secs(100));
    let labels = [("heddle.service", "web"), ("heddle.port", port.as_str())];
    docker.run("aa", "127.0.0.1", &labels);
    world.until_ready("default/web", 1).await;
    docker.die("aa");
    until_unused(&world, "default/web", true).await;
    docker.run("bb", "127.0.0.1", &labels);
    world.until_ready("default/web", 1).await;
    until_unused(&world, "default/web", false).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_grace_of_a_service_of_labels_counts_over_restarts_and_nodes() {
    let world = World::new().await;
    let made = r#"{"apiVersion": "heddle/v1", "kind": "Service", "metadata": {"name": "NAME"}, "spec": {"ports": [{"port": 80}]}}"#;
    let now = Timestamp::now();
    for (name, minutes) in [("old", 11), ("young", 1)] {
        let manifests = model::manifest::parse(&made.replace("NAME", name)).expect("a manifest");
        let options = registry::resources::ApplyOptions {
            manager: ManagedBy::Labels,
            ranges: Vec::new(),
            dry_run: false,
        };
        let applied = world.registry.apply(&manifests, &options).await;
        applied.expect("applied");
        let since = Timestamp(now.0 - minutes * 60_000);
        let key = manifests[0].key();
        let noted = world.registry.note_unused(&key, Some(since)).await;
        noted.expect("noted");
    }
    let running = sweeping(&world, None, Duration::from_secs(600));
    let deadline = Instant::now() + PATIENCE;
    while unused(&world, "default/old").await.is_some() {
        assert!(Instant::now() < deadline, "it was never deleted");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(unused(&world, "default/young").await.is_some());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registered_process_serves_like_a_container() {
    let world = World::new().await;
    let backend = Backend::on("127.0.0.1:0").await;
    world.service("web", backend.port()).await;
    let running = world.agent(None);
    let registration: Registration = serde_json::from_value(json!({
        "id": "proc", "namespace": "shop", "labels": {"app": "web"}, "ports": [backend.port()],
    }))
    .expect("a registration");
    world
        .registry
        .register(&name(world::NODE), &registration)
        .await
        .expect("registered");
    let endpoints = world.until_ready("shop/web", 1).await;
    assert_eq!(endpoints[0].local, [backend.address]);
    let remote: Vec<String> = endpoints[0]
        .remote
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(remote, [format!("192.0.2.2:{}", backend.port())]);
    world
        .registry
        .deregister(&name(world::NODE), &name("proc"))
        .await
        .expect("deregistered");
    world.until_empty("shop/web").await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workloads_are_counted_as_they_and_their_services_come_and_go() {
    let world = World::new().await;
    let docker = FakeDocker::up(world.folder.path());
    let running = world.agent(Some(docker.url()));
    let until = async |wanted: [(&str, i64); 2]| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let metrics = running.metric("heddle_workloads");
            let count = |state: &str| {
                let of_state = |m: &&prometheus::proto::Metric| m.get_label()[0].value() == state;
                let found = metrics.iter().find(of_state);
                found.map(|m| m.get_gauge().get_value() as i64)
            };
            let now = wanted.map(|(state, _)| (state, count(state).unwrap_or_default()));
            if now == wanted {
                return;
            }
            assert!(Instant::now() < deadline, "never {wanted:?}, but {now:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    docker.run("aa", "127.0.0.1", WEB);
    until([("selected", 0), ("unselected", 1)]).await;
    world.service("web", 9).await;
    until([("selected", 1), ("unselected", 0)]).await;
    let registration: Registration = serde_json::from_value(json!({
        "id": "proc", "namespace": "shop", "labels": {"app": "other"}, "ports": [9],
    }))
    .expect("a registration");
    let node = name(world::NODE);
    let registered = world.registry.register(&node, &registration).await;
    registered.expect("registered");
    until([("selected", 1), ("unselected", 1)]).await;
    docker.die("aa");
    until([("selected", 0), ("unselected", 1)]).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slice_that_somebody_deletes_is_put_again() {
    let world = World::new().await;
    let backend = Backend::on("127.0.0.1:0").await;
    world.service("web", backend.port()).await;
    let docker = FakeDocker::up(world.folder.path());
    let running = world.agent(Some(docker.url()));
    docker.run("aa", "127.0.0.1", WEB);
    world.until_ready("shop/web", 1).await;
    let (_, revision) = world.stored("shop/web").await.expect("a slice");
    let path = world.registry.keys().path(&registry::layout::Key::Slice(
        key("shop/web"),
        name(world::NODE),
    ));
    let txn = registry::store::Txn::remove(path, revision);
    world.registry.store().commit(txn).await.expect("deleted");
    world.until_ready("shop/web", 1).await;
    assert!(world.stored("shop/web").await.expect("a slice").1 > revision);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_made_by_hand_are_checked_by_this_node() {
    let world = World::new().await;
    let backend = Backend::on("127.0.0.1:0").await;
    let running = world.agent(None);
    world
        .apply(&format!(
            "apiVersion: heddle/v1\nkind: Service\nmetadata: {{name: db, namespace: shop}}\nspec: {{ports: [{{name: pg, port: \
             5432}}], health: {{interval: 50ms, timeout: 10s, fall: 2}}}}\n---\napiVersion: heddle/v1\nkind: Endpoint\nmetadata: {{name: \
             db-1, namespace: shop}}\nspec: {{service: db, address: 127.0.0.1, ports: {{pg: {}}}}}\n",
            backend.port()
        ))
        .await;
    let until = async |state: State| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = world
                .snapshot
                .load()
                .service(&key("shop/db"))
                .and_then(|view| Some(view.ports[0].endpoints.first()?.state));
            if now == Some(state) {
                return;
            }
            assert!(Instant::now() < deadline, "never {state}, but {now:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    until(State::Ready).await;
    drop(backend);
    until(State::Unhealthy).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_steady_state_writes_nothing() {
    let world = World::new().await;
    let backend = Backend::on("127.0.0.1:0").await;
    world.service("web", backend.port()).await;
    let docker = FakeDocker::up(world.folder.path());
    let mut options = world.options(Some(docker.url()));
    options.rescan = Duration::from_millis(10);
    let running = world.agent_with(options);
    for name in ["aa", "bb", "cc"] {
        docker.run(name, "127.0.0.1", WEB);
    }
    world.until_ready("shop/web", 3).await;
    let (_, revision) = world.stored("shop/web").await.expect("a slice");
    let checked = |running: &world::Running| -> f64 {
        let checks = running.metric("heddle_health_checks_total");
        checks.iter().map(|m| m.get_counter().get_value()).sum()
    };
    let before = checked(&running);
    let deadline = Instant::now() + PATIENCE;
    while checked(&running) < before + 12.0 {
        assert!(Instant::now() < deadline, "checks have stopped");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let listing = world
        .registry
        .store()
        .list(world.registry.keys().root())
        .await
        .expect("a listing");
    assert_eq!(world.stored("shop/web").await.expect("a slice").1, revision);
    assert_eq!(
        listing.revision, revision,
        "nothing else was written either"
    );
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_registry_this_nodes_own_data_path_still_learns_what_dies() {
    let world = World::new().await;
    let backend = Backend::on("127.0.0.1:0").await;
    world.service("web", backend.port()).await;
    let docker = FakeDocker::up(world.folder.path());
    let (own_slices, mut own) = tokio::sync::mpsc::channel::<agent::OwnSlices>(16);
    let options = agent::Options {
        own_slices: Some(own_slices),
        ..world.options(Some(docker.url()))
    };
    let running = world.agent_with(options);
    docker.run("aa", "127.0.0.1", WEB);
    docker.run("bb", "127.0.0.1", WEB);
    world.until_ready("shop/web", 2).await;
    world.store.close().await;
    docker.die("aa");
    let mut until = async |count: usize, health: Option<Health>| loop {
        let told = tokio::time::timeout(PATIENCE, own.recv()).await;
        let told = told.expect("it is told in time").expect("the agent runs");
        let (service, slice) = told.last().expect("something was told").clone();
        assert_eq!(service, key("shop/web"));
        let endpoints = slice.map_or_else(Vec::new, |slice| slice.endpoints.clone());
        if endpoints.len() == count && endpoints.iter().all(|e| Some(e.health.value) == health) {
            return;
        }
    };
    until(1, Some(Health::Passing)).await;
    drop(backend);
    until(1, Some(Health::Failing)).await;
    docker.die("bb");
    until(0, None).await;
    let deadline = Instant::now() + PATIENCE;
    while running.agent.status().publish.failing.is_none() {
        assert!(
            Instant::now() < deadline,
            "it isn't known that nothing is published"
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_is_told_to_end_is_not_revived_by_a_restart_of_the_agent() {
    let world = World::new().await;
    let backend = Backend::on("127.0.0.1:0").await;
    world.service("web", backend.port()).await;
    let docker = FakeDocker::up(world.folder.path());
    let first = world.agent(Some(docker.url()));
    docker.run("aa", "127.0.0.1", WEB);
    world.until_ready("shop/web", 1).await;
    docker.term("aa");
    world
        .until("shop/web", "terminating", |all| {
            all.len() == 1 && all[0].lifecycle.value == Lifecycle::Terminating
        })
        .await;
    first.stop().await;
    world.until_followed("shop/web").await;
    let before = world.stored("shop/web").await.expect("kept");
    // The listing shows it running, and this daemon replays no events.
    let second = world.agent(Some(docker.url()));
    second.until_told("aa", "selected by").await;
    docker.run(
        "bb",
        "127.0.0.1",
        &[("app", "other"), ("heddle.namespace", "shop")],
    );
    world.service("other", backend.port()).await;
    world.until_ready("shop/other", 1).await;
    assert_eq!(world.stored("shop/web").await, Some(before));
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recreation_is_two_writes() {
    const TIMES: u64 = 10;
    const TAKES: Duration = Duration::from_millis(50);
    let world = World::new().await;
    let mut backend = Backend::on("127.0.0.1:0").await;
    let address = backend.address.to_string();
    for some in 0..40 {
        let other = |n| {
            format!(
                "---\napiVersion: heddle/v1\nkind: Service\nmetadata: {{name: other-{some}-{n}, namespace: shop}}\n\
                 spec: {{selector: app=other-{some}-{n}, ports: [{{port: 80}}]}}\n"
            )
        };
        world.apply(&(0..25).map(other).collect::<String>()).await;
    }
    world.service("web", backend.port()).await;
    let docker = FakeDocker::up(world.folder.path());
    let running = world.agent(Some(docker.url()));
    docker.run("aa", "127.0.0.1", WEB);
    let mut endpoints = world.until_ready("shop/web", 1).await;
    let (_, before) = world.stored("shop/web").await.expect("a slice");
    // What nobody waits for is gathered for a second: where a recreation takes longer, it may be written by itself.
    let mut seconds = 0;
    for _ in 0..TIMES {
        let began = Instant::now();
        // `docker rm -f` and `docker run`.
        docker.event("aa", "kill", json!({"signal": "9"}));
        world
            .until("shop/web", "out of rotation", |all| {
                all.iter()
                    .all(|e| e.lifecycle.value == Lifecycle::Terminating)
            })
            .await;
        // As long as it takes Docker to make the next one, and that to listen.
        docker.die("aa");
        tokio::time::sleep(TAKES).await;
        drop(backend);
        docker.run("aa", "127.0.0.1", WEB);
        tokio::time::sleep(TAKES).await;
        backend = Backend::on(&address).await;
        let was = endpoints[0].id();
        endpoints = world
            .until("shop/web", "ready anew", |all| {
                all.len() == 1 && ready(&all[0]) && all[0].id() != was
            })
            .await;
        seconds += began.elapsed().as_secs();
    }
    let (_, after) = world.stored("shop/web").await.expect("a slice");
    let writes = u64::try_from(after - before).expect("revisions grow");
    assert!(
        writes <= 2 * TIMES + seconds,
        "{writes} writes, of whatever key, and {seconds} s"
    );
    running.stop().await;
}
