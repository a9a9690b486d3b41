//! The Docker hosts of the test support are what they claim to be: separate hosts with colliding container
//! addresses, that leave nothing behind.

mod support;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use support::docker::{self, Dockerd, RunOptions, Setup};
use support::http;
use support::netns::Lan;
use support::wait::eventually;

const SOON: Duration = Duration::from_secs(30);

/// Whether anybody takes a connection. An address that no container has leaves the question unanswered for
/// seconds, so this one waits for less.
fn is_open(address: SocketAddr) -> bool {
    std::net::TcpStream::connect_timeout(&address, Duration::from_millis(500)).is_ok()
}

fn who_answers(address: SocketAddr) -> Result<String, String> {
    http::get(address, "/id")
        .map(|answer| answer.body.trim().to_owned())
        .map_err(|error| error.to_string())
}

#[test]
fn two_hosts_have_containers_of_the_same_address_and_reach_each_others_published_ports() {
    if !docker::ready() {
        return;
    }
    let lan = Lan::new(2);
    let [a, b] = &lan.hosts[..] else {
        unreachable!("a LAN of two")
    };
    let dockers = [
        Dockerd::start_in("a", &a.netns),
        Dockerd::start_in("b", &b.netns),
    ];
    for (docker, name) in dockers.iter().zip(["on-a", "on-b"]) {
        docker.run(RunOptions {
            name,
            labels: &[("app", "web")],
            publish: &["18080:8080", "8080"],
            ..RunOptions::default()
        });
        assert_eq!(docker.inspect(name)["Config"]["Labels"]["app"], "web");
    }

    let local = SocketAddr::new(dockers[0].address("on-a", "bridge"), 8080);
    assert_eq!(
        local,
        SocketAddr::new(dockers[1].address("on-b", "bridge"), 8080)
    );
    for (docker, name) in dockers.iter().zip(["on-a", "on-b"]) {
        let answer = eventually(SOON, "the container answers at home", || {
            docker.netns.enter(|| who_answers(local))
        });
        assert_eq!(answer, name);
    }

    let remote = |host: IpAddr, port| SocketAddr::new(host, port);
    assert_eq!(
        a.netns
            .enter(|| who_answers(remote(b.address.into(), 18080)))
            .as_deref(),
        Ok("on-b")
    );
    assert_eq!(
        b.netns
            .enter(|| who_answers(remote(a.address.into(), 18080)))
            .as_deref(),
        Ok("on-a")
    );
    let picked = dockers[1].published_port("on-b", 8080);
    assert_eq!(
        a.netns
            .enter(|| who_answers(remote(b.address.into(), picked)))
            .as_deref(),
        Ok("on-b")
    );
    assert_eq!(
        who_answers(remote(a.address.into(), 18080)).as_deref(),
        Ok("on-a")
    );

    lan.cut(1);
    let connect = || {
        std::net::TcpStream::connect_timeout(
            &remote(b.address.into(), 18080),
            Duration::from_millis(200),
        )
    };
    assert!(
        a.netns.enter(connect).is_err(),
        "a host that is cut off still answers"
    );
    lan.mend(1);
    eventually(SOON, "a host that is plugged in again answers", || {
        a.netns.enter(connect)
    });
}

#[test]
fn hosts_of_a_lan_reach_each_other_and_the_test_over_ipv4_and_ipv6() {
    if !support::netns::ready() {
        return;
    }
    let lan = Lan::new(3);
    for address in [IpAddr::from(lan.address), lan.address_v6.into()] {
        let listener = std::net::TcpListener::bind((address, 0)).unwrap();
        let served = listener.local_addr().unwrap();
        for host in &lan.hosts {
            host.netns
                .enter(|| std::net::TcpStream::connect_timeout(&served, SOON))
                .unwrap();
        }
    }
    let last = &lan.hosts[2];
    for address in [IpAddr::from(last.address), last.address_v6.into()] {
        let listener = last
            .netns
            .enter(|| std::net::TcpListener::bind((address, 0)))
            .unwrap();
        let served = listener.local_addr().unwrap();
        std::net::TcpStream::connect_timeout(&served, SOON).unwrap();
        let connected = lan.hosts[0]
            .netns
            .block_on(|| tokio::net::TcpStream::connect(served));
        connected.unwrap();
    }
}

#[test]
fn docker_tells_of_the_signal_before_the_death() {
    if !docker::ready() {
        return;
    }
    let docker = Dockerd::start("events");
    let events = docker.events();
    docker.run(RunOptions {
        name: "web",
        args: &["whoami", "--on-term", "drain", "--linger", "300ms"],
        ..RunOptions::default()
    });
    events.next("start", SOON);
    let address = SocketAddr::new(docker.address("web", "bridge"), 8080);
    // A signal to the first process of a container is lost until that has set its handlers.
    eventually(SOON, "the container answers", || {
        docker.netns.enter(|| who_answers(address))
    });
    let stopped = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    docker.stop("web");
    let kill = events.next("kill", SOON);
    assert_eq!(kill["Actor"]["Attributes"]["signal"], "15");
    let die = events.next("die", SOON);
    assert_eq!(
        die["Actor"]["Attributes"]["exitCode"], "0",
        "the first process of a container must handle SIGTERM"
    );
    let at = |event: &Value| Duration::from_nanos(event["timeNano"].as_u64().unwrap());
    assert!(at(&die) > at(&kill));
    // How late Docker tells of the signal is its own affair.
    let waited = at(&die).saturating_sub(stopped);
    assert!(
        waited >= Duration::from_millis(300),
        "it ended after {waited:?}, before its time"
    );

    docker.start_container("web");
    let address = SocketAddr::new(docker.address("web", "bridge"), 8080);
    eventually(SOON, "a container that was started again answers", || {
        docker.netns.enter(|| who_answers(address))
    });
}

#[test]
fn containers_outlive_the_daemon_only_with_live_restore() {
    if !docker::ready() {
        return;
    }
    for live_restore in [true, false] {
        let mut docker = Dockerd::start_with(
            "restored",
            Setup {
                live_restore,
                ..Setup::default()
            },
        );
        docker.run(RunOptions {
            name: "web",
            ..RunOptions::default()
        });
        let started = docker.inspect("web")["State"]["StartedAt"].clone();
        let address = SocketAddr::new(docker.address("web", "bridge"), 8080);
        eventually(SOON, "the container answers", || {
            docker.netns.enter(|| who_answers(address))
        });

        docker.stop_daemon();
        assert_eq!(docker.netns.enter(|| is_open(address)), live_restore);
        docker.start_daemon();
        let state = docker.inspect("web")["State"].clone();
        assert_eq!(state["Running"], live_restore, "{state}");
        assert_eq!(state["StartedAt"], started);

        docker.kill_daemon();
        docker.start_daemon();
        assert_eq!(docker.netns.enter(|| is_open(address)), live_restore);
    }
}

#[test]
fn a_dropped_host_leaves_nothing_behind() {
    if !docker::ready() {
        return;
    }
    let docker = Dockerd::start("gone");
    docker.run(RunOptions {
        name: "web",
        args: &["whoami", "--on-term", "ignore"],
        ..RunOptions::default()
    });
    let folder = docker.socket().parent().unwrap().to_owned();
    let trace = folder.file_name().unwrap().to_str().unwrap().to_owned();
    assert!(!processes_that_name(&trace).is_empty());
    assert!(!control_groups_that_name(&trace).is_empty());
    drop(docker);
    assert_eq!(processes_that_name(&trace), Vec::<String>::new());
    assert_eq!(control_groups_that_name(&trace), Vec::<String>::new());
    assert!(
        !std::fs::read_to_string("/proc/self/mountinfo")
            .unwrap()
            .contains(&trace)
    );
    assert!(!folder.exists());
}

fn processes_that_name(trace: &str) -> Vec<String> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let command_lines =
        entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    let texts = command_lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    texts.filter(|text| text.contains(trace)).collect()
}

fn control_groups_that_name(trace: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new("/sys/fs/cgroup").to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let path = entry.path();
                if path.display().to_string().contains(trace) {
                    found.push(path.display().to_string());
                }
                folders.push(path);
            }
        }
    }
    found
}
