use bollard::models::ContainerInspectResponse;
use model::endpoint::{Health, Lifecycle};
use serde_json::{Value, json};

use super::event::Hint;
use super::inspect::{self, Inspected};
use super::network::Drivers;
use super::room::Room;
use super::*;

const T0: i64 = 1_772_366_400_000;
const STARTED: &str = "2026-03-01T12:00:00Z";

pub(super) fn id(n: u8) -> String {
    format!("{n:02x}").repeat(32)
}

pub(super) fn at(millis: i64) -> Timestamp {
    Timestamp(T0 + millis)
}

fn changed(n: u8, millis: i64) -> Hint {
    Hint::Changed {
        id: id(n),
        at: at(millis),
    }
}

fn ended(n: u8, millis: i64) -> Hint {
    Hint::Ended {
        id: id(n),
        at: at(millis),
    }
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

/// Docker's description of a container on the default bridge, with `changes` merged in.
pub(super) fn described(n: u8, changes: Value) -> ContainerInspectResponse {
    let mut it = json!({
        "Id": id(n),
        "Name": format!("/c{n}"),
        "State": {"Status": "running", "Running": true, "Paused": false, "Restarting": false, "StartedAt": STARTED},
        "Config": {"Labels": {"app": "web"}, "ExposedPorts": {"8080/tcp": {}}},
        "HostConfig": {"NetworkMode": "default"},
        "NetworkSettings": {"Networks": {"bridge": {"IPAddress": "172.17.0.2"}}, "Ports": {}},
    });
    merge(&mut it, changes);
    serde_json::from_value(it).expect("a description")
}

fn read(container: &ContainerInspectResponse) -> Option<Inspected> {
    let drivers: Drivers = [("bridge", "bridge"), ("host", "host"), ("none", "null")]
        .into_iter()
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect();
    inspect::read(container, None, &drivers, at(0))
}

fn running(n: u8, changes: Value) -> Inspected {
    read(&described(n, changes)).expect("it runs")
}

#[test]
fn a_description_becomes_a_workload() {
    let it = running(
        1,
        json!({
            "State": {"StartedAt": "2026-03-01T12:00:00.5Z"},
            "Config": {"StopSignal": "SIGQUIT", "StopTimeout": 30, "Labels": {"": "odd", "a b": "\u{0}"}},
            "NetworkSettings": {"Ports": {
                "8080/tcp": [{"HostIp": "0.0.0.0", "HostPort": "32768"}, {"HostIp": "::", "HostPort": "32768"}],
                "53/udp": [{"HostIp": "", "HostPort": "53"}], "9090/tcp": null}},
        }),
    );
    let workload = &it.local.workload;
    assert_eq!((&*workload.id, &*workload.name), ("010101010101", "c1"));
    assert_eq!(&*workload.generation, "2026-03-01T12:00:00.5Z/172.17.0.2");
    assert_eq!(workload.exposed, [8080, 9090]);
    let published: Vec<String> = workload
        .published
        .iter()
        .map(|p| p.host.to_string())
        .collect();
    assert_eq!(published, ["0.0.0.0:32768", "[::]:32768"]);
    assert_eq!(workload.namespace.as_str(), "default");
    assert_eq!(workload.labels.len(), 3, "odd labels are kept");
    assert_eq!(workload.problem, None);
    assert_eq!((it.stop_signal, it.stop_timeout.as_secs()), (3, 30));
    assert_eq!(workload.lifecycle.since, at(500));
}

#[test]
fn the_namespace_is_the_labels_else_the_compose_projects() {
    let namespace = |labels: Value| {
        let it = running(1, json!({"Config": {"Labels": labels}}))
            .local
            .workload;
        (it.namespace.to_string(), it.problem)
    };
    assert_eq!(
        namespace(json!({"heddle.namespace": "shop"})),
        ("shop".into(), None)
    );
    assert_eq!(
        namespace(json!({"com.docker.compose.project": "My_Shop"})),
        ("my-shop".into(), None)
    );
    let (kept, problem) = namespace(json!({"heddle.namespace": "Shop!"}));
    assert_eq!(kept, "default");
    assert!(
        problem
            .expect("a problem")
            .starts_with("label heddle.namespace: `Shop!` is not a valid name")
    );
}

#[test]
fn network_modes_decide_where_it_is_dialled() {
    let host = running(
        1,
        json!({"HostConfig": {"NetworkMode": "host"}, "NetworkSettings": {"Networks": {"host": {"IPAddress": ""}}}}),
    );
    assert!(host.local.workload.host_network);
    assert_eq!(
        host.local.workload.addresses,
        ["127.0.0.1".parse::<std::net::IpAddr>().expect("an address")]
    );
    let none = running(1, json!({"HostConfig": {"NetworkMode": "none"}}));
    assert_eq!(
        none.local.workload.problem.as_deref(),
        Some("network mode none: nothing can reach it")
    );
    let mode = format!("container:{}", id(2));
    let sharing = described(
        1,
        json!({"HostConfig": {"NetworkMode": mode}, "NetworkSettings": {"Networks": null}}),
    );
    let alone = read(&sharing).expect("it runs");
    assert!(
        alone
            .local
            .workload
            .problem
            .expect("a problem")
            .contains("020202020202, which is gone")
    );
    let other = described(
        2,
        json!({"NetworkSettings": {"Networks": {"bridge": {"IPAddress": "172.17.0.9"}}}}),
    );
    let drivers: Drivers = [("bridge".to_owned(), "bridge".to_owned())].into();
    let it = inspect::read(&sharing, Some(&other), &drivers, at(0)).expect("it runs");
    assert_eq!(it.local.workload.addresses[0].to_string(), "172.17.0.9");
    assert_eq!(it.joined, Some(id(2)));
    assert_eq!(it.local.workload.exposed, [8080]);
}

#[test]
fn dockers_healthcheck_is_read_with_its_last_words() {
    let health = |health: Value| {
        running(1, json!({"State": {"Health": health}}))
            .local
            .workload
            .docker_health
    };
    assert_eq!(health(Value::Null), None);
    assert_eq!(health(json!({"Status": "none"})), None);
    assert_eq!(
        health(json!({"Status": "starting"}))
            .expect("a check")
            .value,
        Health::Unknown
    );
    assert_eq!(
        health(json!({"Status": "healthy"})).expect("a check").value,
        Health::Passing
    );
    let failing = health(json!({"Status": "unhealthy", "Log": [
        {"ExitCode": 0, "Output": "fine"}, {"ExitCode": 7, "Output": "\nconnection refused\nmore\n"}]}));
    let failing = failing.expect("a check");
    assert_eq!(
        (failing.value, &*failing.reason),
        (
            Health::Failing,
            "HEALTHCHECK exits with 7: connection refused"
        )
    );
}

#[test]
fn what_does_not_run_is_no_workload() {
    for state in [
        json!({"Running": false, "Status": "exited"}),
        json!({"Restarting": true, "Status": "restarting"}),
        json!({"Dead": true, "Status": "dead"}),
    ] {
        assert_eq!(
            read(&described(1, json!({"State": state}))),
            None,
            "{state}"
        );
    }
    assert!(
        running(1, json!({"State": {"Paused": true, "Status": "paused"}}))
            .local
            .paused
    );
}

#[test]
fn times_with_an_offset_are_read_too() {
    assert_eq!(
        inspect::read_time("2026-03-01T13:00:00.5+01:00"),
        Some(at(500))
    );
    assert_eq!(inspect::read_time("2026-03-01T06:30:00-05:30"), Some(at(0)));
    assert_eq!(inspect::read_time("0001-01-01T00:00:00Z"), None);
    assert_eq!(inspect::read_time(""), None);
    assert_eq!(inspect::read_time("ü+01:00"), None);
}

/// A room in which containers 1 to `n` run and were listed.
fn room(n: u8) -> Room {
    let mut room = Room::new();
    let tick = room.list_begins();
    room.listed((1..=n).map(id).collect(), tick);
    inspect_all(&mut room, at(1000));
    room
}

/// Answers every question with a running container.
fn inspect_all(room: &mut Room, now: Timestamp) -> Vec<Message> {
    let mut messages = Vec::new();
    while let Some((whole, tick)) = room.next() {
        let n = u8::from_str_radix(&whole[..2], 16).expect("an id");
        messages.extend(room.inspected(&whole, tick, Some(running(n, json!({}))), now));
    }
    messages
}

fn signalled(n: u8, signal: u8, millis: i64) -> Hint {
    Hint::Signalled {
        id: id(n),
        signal,
        at: at(millis),
    }
}

fn lifecycle(messages: &[Message]) -> Option<Lifecycle> {
    match messages {
        [] => None,
        [Message::Put(local)] => Some(local.workload.lifecycle.value),
        other => panic!("one message at most, not {other:?}"),
    }
}

#[test]
fn a_signal_that_ends_it_is_told_at_once_and_a_reload_is_not() {
    for (signal, told) in [
        (15, true),
        (2, true),
        (3, true),
        (9, true),
        (1, false),
        (10, false),
        (28, false),
    ] {
        let mut room = room(1);
        let messages = room.hear(signalled(1, signal, 2000), at(2001));
        assert_eq!(
            lifecycle(&messages),
            told.then_some(Lifecycle::Terminating),
            "signal {signal}"
        );
        assert_eq!(room.next(), None, "it is not inspected first");
    }
}

#[test]
fn a_container_that_ignores_the_signal_is_restored_after_its_stop_time_out() {
    let mut room = room(1);
    room.hear(signalled(1, 15, 2000), at(2000));
    assert_eq!(room.next_deadline(), Some(at(17_000)));
    assert_eq!(room.restore(at(16_999)), []);
    // An inspection meanwhile says that it runs, which is no news.
    room.hear(changed(1, 3000), at(3000));
    assert_eq!(inspect_all(&mut room, at(3001)), []);
    let messages = room.restore(at(17_000));
    let [Message::Happened(event), rest @ ..] = &messages[..] else {
        panic!("no event among {messages:?}");
    };
    assert_eq!(
        (event.name.as_str(), event.reason.as_str()),
        ("c1", "RunsOn")
    );
    assert_eq!(
        event.message,
        "runs on after SIGTERM, past its stop time-out: it takes work again"
    );
    assert_eq!(lifecycle(rest), Some(Lifecycle::Running));
    assert_eq!(room.next_deadline(), None);
    // The same signal, replayed on another connection, is not taken for a new one.
    assert_eq!(room.hear(signalled(1, 15, 2000), at(18_000)), []);
}

#[test]
fn a_container_that_is_stopped_without_end_is_never_restored() {
    let mut room = Room::new();
    let tick = room.list_begins();
    room.listed(vec![id(1)], tick);
    let (whole, tick) = room.next().expect("a question");
    let patient = running(1, json!({"Config": {"StopTimeout": -1}}));
    room.inspected(&whole, tick, Some(patient), at(1000));
    room.hear(signalled(1, 15, 2000), at(2000));
    assert_eq!(room.restore(at(24 * 60 * 60 * 1000)), []);
}

#[test]
fn lack_of_memory_is_told_once_and_takes_nothing_out() {
    let mut room = room(1);
    let killed = || Hint::OutOfMemory {
        id: id(1),
        at: at(2000),
    };
    let messages = room.hear(killed(), at(2000));
    let [Message::Happened(event), Message::Put(local)] = &messages[..] else {
        panic!("an event and a reason, not {messages:?}");
    };
    assert_eq!(
        (event.name.as_str(), event.reason.as_str()),
        ("c1", "OutOfMemory")
    );
    let lifecycle = &local.workload.lifecycle;
    assert_eq!(lifecycle.value, Lifecycle::Running);
    assert_eq!(
        (&*lifecycle.reason, lifecycle.since),
        ("a process in it was killed for lack of memory", at(2000))
    );
    assert_eq!(room.hear(killed(), at(3000)), [], "replayed");
    room.hear(changed(1, 4000), at(4000));
    assert_eq!(inspect_all(&mut room, at(4001)), [], "the reason stays");
    let of_another_run = Hint::OutOfMemory {
        id: id(1),
        at: at(-1),
    };
    assert_eq!(room.hear(of_another_run, at(5000)), []);
}

#[test]
fn an_update_that_changes_nothing_heddle_knows_is_no_news() {
    let mut room = room(1);
    room.hear(changed(1, 2000), at(2000));
    assert_eq!(inspect_all(&mut room, at(2001)), []);
}

#[test]
fn a_new_name_is_told_under_the_same_generation() {
    let mut room = room(1);
    room.hear(changed(1, 2000), at(2000));
    let (whole, tick) = room.next().expect("a question");
    let before = running(1, json!({})).local.workload.generation;
    let renamed = running(1, json!({"Name": "/other"}));
    let messages = room.inspected(&whole, tick, Some(renamed), at(2001));
    let [Message::Put(local)] = &messages[..] else {
        panic!("one message, not {messages:?}");
    };
    assert_eq!(&*local.workload.name, "other");
    assert_eq!(local.workload.generation, before);
}

#[test]
fn a_stop_that_began_before_the_container_was_known_is_seen() {
    let mut room = Room::new();
    room.hear(signalled(1, 15, 500), at(900));
    room.hear(changed(1, 900), at(900));
    assert_eq!(
        lifecycle(&inspect_all(&mut room, at(1000))),
        Some(Lifecycle::Terminating)
    );
    let mut room = Room::new();
    room.hear(signalled(1, 15, -500), at(900));
    room.hear(changed(1, 900), at(900));
    let messages = inspect_all(&mut room, at(1000));
    assert_eq!(
        lifecycle(&messages),
        Some(Lifecycle::Running),
        "that was an earlier run of it"
    );
}

#[test]
fn an_end_before_its_start_is_asked_about_and_changes_nothing_by_itself() {
    let mut room = room(1);
    assert_eq!(
        room.hear(
            Hint::Ended {
                id: id(1),
                at: at(-10)
            },
            at(2000)
        ),
        []
    );
    let (whole, tick) = room.next().expect("a question");
    let still = room.inspected(&whole, tick, Some(running(1, json!({}))), at(2000));
    assert_eq!(still, [], "that was an earlier run of it");
    // The clock was set back, and then it ended.
    for hint in [
        Hint::Signalled {
            id: id(1),
            signal: 9,
            at: at(-20),
        },
        ended(1, -10),
    ] {
        assert_eq!(room.hear(hint, at(-10)), []);
        assert_eq!(room.next().map(|(whole, _)| whole), Some(id(1)));
        room.disconnected();
    }
    let (whole, tick) = room.next().expect("a question");
    assert_eq!(
        room.inspected(&whole, tick, None, at(-5)),
        [Message::Gone("010101010101".into())]
    );
}

#[test]
fn an_end_takes_it_away_without_a_question() {
    let mut room = room(1);
    let gone = room.hear(ended(1, 2000), at(2000));
    assert_eq!(gone, [Message::Gone("010101010101".into())]);
}

#[test]
fn an_inspection_that_an_end_overtook_is_dropped() {
    let mut room = room(1);
    room.hear(changed(1, 2000), at(2000));
    let (whole, tick) = room.next().expect("a question");
    room.hear(ended(1, 2001), at(2001));
    assert_eq!(
        room.inspected(&whole, tick, Some(running(1, json!({}))), at(2002)),
        []
    );
    assert_eq!(room.next(), None);
}

#[test]
fn events_during_an_inspection_ask_once_more() {
    let mut room = room(1);
    for _ in 0..5 {
        room.hear(changed(1, 2000), at(2000));
    }
    let (whole, tick) = room.next().expect("a question");
    assert_eq!(room.next(), None, "one at a time for each container");
    room.hear(changed(1, 2001), at(2001));
    let renamed = running(1, json!({"Name": "/old"}));
    assert_eq!(
        room.inspected(&whole, tick, Some(renamed), at(2002)),
        [],
        "out of date"
    );
    assert!(room.next().is_some());
}

#[test]
fn a_listing_removes_what_is_gone_but_not_what_came_since() {
    let mut room = room(2);
    let tick = room.list_begins();
    room.hear(changed(3, 2000), at(2000));
    inspect_all(&mut room, at(2000));
    let messages = room.listed(vec![id(2)], tick);
    assert_eq!(messages, [Message::Gone("010101010101".into())]);
    let messages = inspect_all(&mut room, at(2001));
    assert_eq!(
        messages,
        [Message::Listed {
            unjudged: BTreeSet::new()
        }]
    );
}

#[test]
fn what_cannot_be_inspected_is_kept_named_and_asked_about_again() {
    let mut room = room(1);
    let tick = room.list_begins();
    room.listed(vec![id(1)], tick);
    let (whole, _) = room.next().expect("a question");
    let messages = room.not_inspected(&whole);
    assert_eq!(
        messages,
        [Message::Listed {
            unjudged: BTreeSet::from(["010101010101".into()])
        }]
    );
    assert!(room.has_failed());
    room.retry();
    assert!(room.next().is_some());
}

#[test]
fn an_empty_host_is_listed_too() {
    let mut room = Room::new();
    let tick = room.list_begins();
    assert_eq!(
        room.listed(Vec::new(), tick),
        [Message::Listed {
            unjudged: BTreeSet::new()
        }]
    );
}

#[test]
fn what_shares_a_network_is_looked_at_again_when_its_owner_changes() {
    let mut room = room(1);
    room.hear(changed(2, 2000), at(2000));
    let (whole, tick) = room.next().expect("a question");
    let sharing = Inspected {
        joined: Some(id(1)),
        ..running(2, json!({}))
    };
    room.inspected(&whole, tick, Some(sharing), at(2000));
    room.hear(ended(1, 3000), at(3000));
    assert_eq!(room.next().map(|(whole, _)| whole), Some(id(2)));
}

#[test]
fn events_are_read_by_what_they_mean() {
    let read = |typ: &str, action: &str, attributes: Value| {
        let event = json!({"Type": typ, "Action": action, "Actor": {"ID": id(1), "Attributes": attributes}, "time": T0 / 1000, "timeNano": T0 * 1_000_000});
        super::event::read(serde_json::from_value(event).expect("an event"))
    };
    let changed = Some(changed(1, 0));
    assert_eq!(read("container", "start", json!({})), changed);
    assert_eq!(
        read("container", "health_status: unhealthy", json!({})),
        changed
    );
    assert_eq!(
        read("container", "die", json!({"exitCode": "0"})),
        Some(Hint::Ended {
            id: id(1),
            at: at(0)
        })
    );
    assert_eq!(
        read("container", "kill", json!({"signal": "15"})),
        Some(signalled(1, 15, 0))
    );
    assert_eq!(read("container", "kill", json!({})), changed);
    assert_eq!(read("container", "exec_start: sh", json!({})), None);
    assert_eq!(read("container", "attach", json!({})), None);
    assert_eq!(
        read("network", "connect", json!({"container": id(1)})),
        changed
    );
    assert_eq!(
        read("network", "connect", json!({"name": "c1"})),
        changed,
        "Podman's actor is the container"
    );
    assert_eq!(
        read("container", "oom", json!({})),
        Some(Hint::OutOfMemory {
            id: id(1),
            at: at(0)
        })
    );
    for podmans in ["cleanup", "init", "mount"] {
        assert_eq!(read("container", podmans, json!({})), None);
    }
    assert_eq!(read("network", "create", json!({})), Some(Hint::Networks));
    assert_eq!(read("image", "pull", json!({})), None);
}
