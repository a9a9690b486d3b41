use bollard::models::ContainerInspectResponse;
use model::endpoint::Lifecycle;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::tests::{at, described, id};
use super::*;

/// Networks named `a` to `h`, of these drivers.
const DRIVERS: [(&str, &str); 8] = [
    ("a", "macvlan"),
    ("b", "overlay"),
    ("c", "bridge"),
    ("d", "ipvlan"),
    ("e", "bridge"),
    ("f", "null"),
    ("g", "custom"),
    ("h", "bridge"),
];

fn drivers() -> Drivers {
    DRIVERS
        .into_iter()
        .chain([("bridge", "bridge")])
        .map(|(name, driver)| (name.to_owned(), driver.to_owned()))
        .collect()
}

fn problem(container: &ContainerInspectResponse, other: &ContainerInspectResponse) -> String {
    let found = read(container, Some(other), &drivers(), at(0)).expect("it runs");
    let problem = found.local.workload.problem;
    problem.expect("a problem")
}

fn sharing(started: &str) -> ContainerInspectResponse {
    let mode = format!("container:{}", id(2));
    described(
        1,
        json!({
            "State": {"StartedAt": started},
            "HostConfig": {"NetworkMode": mode},
            "NetworkSettings": {"Networks": null},
        }),
    )
}

#[test]
fn a_shared_network_that_is_gone_is_said_and_never_guessed_around() {
    let other = |changes: Value| described(2, changes);
    let late = other(json!({"State": {"StartedAt": "2026-03-01T12:00:09Z"}}));
    assert_eq!(
        problem(&sharing("2026-03-01T12:00:05Z"), &late),
        "it shares the network that container c2 had before it was restarted, which is cut off: restart it too"
    );
    let restarted = read(
        &sharing("2026-03-01T12:00:10Z"),
        Some(&late),
        &drivers(),
        at(0),
    );
    let restarted = restarted.expect("it runs").local.workload;
    assert_eq!(restarted.problem, None);
    assert_eq!(
        restarted.network,
        "bridge (the only one this host can dial), shared by c2"
    );
    assert_eq!(
        problem(
            &sharing("2026-03-01T12:00:05Z"),
            &other(json!({"State": {"Running": false, "Status": "exited"}}))
        ),
        "it shares the network of container c2, which does not run"
    );
}

#[test]
fn what_podman_is_stopping_still_runs_and_takes_no_new_work() {
    let stopping = described(
        1,
        json!({"State": {"Status": "stopping", "Running": false}}),
    );
    let found = read(&stopping, None, &drivers(), at(7)).expect("it runs");
    let lifecycle = found.local.workload.lifecycle;
    assert_eq!(
        (lifecycle.value, lifecycle.since, &*lifecycle.reason),
        (Lifecycle::Terminating, at(7), "told to end")
    );
}

#[test]
fn networks_are_known_by_their_ids_so_that_a_name_that_comes_back_is_another_one() {
    let on = |network: &str| {
        let known: Drivers = [("1111", "macvlan"), ("2222", "bridge"), ("lan", "bridge")]
            .into_iter()
            .map(|(key, driver)| (key.to_owned(), driver.to_owned()))
            .collect();
        let networks = json!({"lan": {"IPAddress": "192.168.1.9", "NetworkID": network}});
        let mut container = described(1, json!({"NetworkSettings": {"Networks": null}}));
        let settings = container.network_settings.as_mut().expect("settings");
        settings.networks = serde_json::from_value(networks).expect("networks");
        let found = read(&container, None, &known, at(0)).expect("it runs");
        found.local.workload.problem
    };
    assert_eq!(on("2222"), None);
    assert_eq!(on(""), None, "Podman's, by name");
    assert_eq!(
        on("1111").as_deref(),
        Some("it is on no network that this host can dial: lan (macvlan)")
    );
}

#[test]
fn podmans_descriptions_are_read_like_dockers() {
    let it = described(
        1,
        json!({
            "State": {"Health": {"Status": "", "FailingStreak": 0, "Log": null}, "StartedAt": "2026-03-01T14:00:00.25+02:00"},
            "Config": {"StopSignal": "15", "StopTimeout": 4},
            "NetworkSettings": {"Ports": {"8080/tcp": [{"HostIp": "", "HostPort": "18080"}]}},
        }),
    );
    let found = read(&it, None, &drivers(), at(0)).expect("it runs");
    let workload = &found.local.workload;
    assert_eq!(found.started, Some(at(250)));
    assert_eq!((found.stop_signal, found.stop_timeout.as_secs()), (15, 4));
    assert_eq!(workload.docker_health, None);
    assert_eq!(
        workload.published[0].host,
        "0.0.0.0:18080".parse().expect("an address")
    );
}

/// A JSON object whose members stand in the order given.
fn object(members: &[(String, Value)]) -> String {
    let members: Vec<String> = members
        .iter()
        .map(|(key, value)| format!("{}:{value}", json!(key)))
        .collect();
    format!("{{{}}}", members.join(","))
}

/// A description whose networks, ports and labels stand in the order given.
fn ordered(
    networks: &[(String, Value)],
    ports: &[(String, Value)],
    labels: &[(String, Value)],
) -> ContainerInspectResponse {
    let text = format!(
        r#"{{"Id": "{}", "Name": "/c", "State": {{"Running": true, "StartedAt": "2026-03-01T12:00:00Z"}},
            "Config": {{"Labels": {}}}, "HostConfig": {{"NetworkMode": "default"}},
            "NetworkSettings": {{"Networks": {}, "Ports": {}}}}}"#,
        id(1),
        object(labels),
        object(networks),
        object(ports)
    );
    serde_json::from_str(&text).expect("a description")
}

fn networks() -> impl Strategy<Value = Vec<(String, Value)>> {
    let settings = (any::<bool>(), any::<bool>(), 2..250u8).prop_map(|(v4, v6, n)| {
        json!({
            "IPAddress": if v4 { format!("172.20.0.{n}") } else { String::new() },
            "GlobalIPv6Address": if v6 { format!("fd00::{n}") } else { String::new() },
        })
    });
    proptest::collection::btree_map(0..DRIVERS.len(), settings, 0..6).prop_map(|networks| {
        let named = networks
            .into_iter()
            .map(|(n, it)| (DRIVERS[n].0.to_owned(), it));
        named.collect()
    })
}

fn ports() -> impl Strategy<Value = Vec<(String, Value)>> {
    let binding = (0..3usize, 1..9u16).prop_map(|(ip, port)| {
        let ip = ["", "0.0.0.0", "::"][ip];
        json!({"HostIp": ip, "HostPort": (32760 + port).to_string()})
    });
    let bindings = proptest::collection::vec(binding, 0..4);
    proptest::collection::btree_map(1..9u16, bindings, 0..5).prop_map(|ports| {
        let named = ports
            .into_iter()
            .map(|(port, it)| (format!("{}/tcp", 8080 + port), json!(it)));
        named.collect()
    })
}

fn labels() -> impl Strategy<Value = Vec<(String, Value)>> {
    let network = proptest::option::of(0..DRIVERS.len());
    (network, any::<bool>(), any::<bool>()).prop_map(|(network, compose, other)| {
        let mut labels = Vec::new();
        if let Some(n) = network {
            labels.push(("heddle.network".to_owned(), json!(DRIVERS[n].0)));
        }
        if compose {
            labels.push(("com.docker.compose.project".to_owned(), json!("shop")));
        }
        if other {
            labels.push(("app".to_owned(), json!("web")));
        }
        labels
    })
}

proptest! {
    /// Whatever order Docker's maps come in, the same addresses, ports and words come out.
    #[test]
    fn no_order_of_a_map_decides_anything(
        (networks, shuffled_networks) in networks().prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle())),
        (ports, shuffled_ports) in ports().prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle())),
        (labels, shuffled_labels) in labels().prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle())),
    ) {
        let one = read(&ordered(&networks, &ports, &labels), None, &drivers(), at(0));
        let other = ordered(&shuffled_networks, &shuffled_ports, &shuffled_labels);
        prop_assert_eq!(one, read(&other, None, &drivers(), at(0)));
    }
}
