//! What each of Docker's events does to an endpoint: signals, pauses, new names, lack of memory.

mod support;

use std::io::Write as _;
use std::process::Stdio;

use serde_json::Value;
use support::docker::Setup;
use support::http;
use support::node::PATIENCE;
use support::shop::Shop;
use support::wait::eventually;

/// Waits until `heddle events` tells just these reasons of a container's endpoint, in this order, each with its text.
#[track_caller]
fn until_happened(shop: &Shop, name: &str, expected: &[(&str, &str)]) {
    let endpoint = format!("ep/web/{name}");
    let words = ["events", "-A", "-o", "json", "--for", &endpoint];
    eventually(PATIENCE, &format!("{name}: {expected:?}"), || {
        let told: Vec<Value> = serde_json::from_str(&shop.node.ok(&words)).expect("JSON");
        let is = |(event, (reason, text)): (&Value, &(&str, &str))| {
            let message = event["message"].as_str().unwrap_or_default();
            event["reason"] == *reason && message.contains(text)
        };
        let all = told.len() == expected.len() && told.iter().zip(expected).all(is);
        if all { Ok(()) } else { Err(told) }
    });
}

#[test]
fn a_pause_takes_it_out_at_once_and_an_unpause_brings_the_same_endpoint_back() {
    let Some(shop) = Shop::start(Setup::default()) else {
        return;
    };
    shop.run("aa", &[]);
    shop.run("bb", &[]);
    let before = shop.until_state("aa", "ready");
    shop.until_state("bb", "ready");
    shop.docker.pause("aa");
    let paused = shop.until_state("aa", "unhealthy");
    assert_eq!(paused["reason"], "paused");
    assert_eq!(paused["id"], before["id"], "it is out, and not gone");
    shop.until_told("aa", "paused: takes no work until it is unpaused");
    for _ in 0..5 {
        assert_eq!(shop.ask().as_deref(), Ok("bb"));
    }
    shop.docker.unpause("aa");
    let back = shop.until_state("aa", "ready");
    assert_eq!(back["id"], before["id"]);
}

#[test]
fn a_new_name_is_followed_and_costs_no_request() {
    let Some(shop) = Shop::start(Setup::default()) else {
        return;
    };
    shop.run("aa", &[]);
    let before = shop.until_state("aa", "ready");
    let web = shop.web();
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| {
            shop.netns
                .enter(|| http::get(web, "/slow-body?chunks=60&ms=100"))
        });
        eventually(PATIENCE, "the request is under way", || {
            shop.endpoint("aa")
                .is_some_and(|endpoint| endpoint["inFlight"] == 1)
        });
        shop.docker.cli(&["rename", "aa", "zz"]);
        let after = shop.until_state("zz", "ready");
        assert_eq!(after["id"], before["id"]);
        assert!(shop.endpoint("aa").is_none());
        assert_eq!(after["inFlight"], 1, "the same request, on its way still");
        let answer = slow.join().expect("no panic").expect("an answer");
        assert!(answer.body.contains("60 of 60"), "{}", answer.body);
    });
    shop.until_told("zz", "selected by `app=web`");
}

#[test]
fn signals_that_end_a_container_take_it_out_and_others_do_not() {
    let Some(shop) = Shop::start(Setup::default()) else {
        return;
    };
    // The first process of a container gets no signal that it doesn't handle, and this one ignores SIGTERM.
    let deaf = ["whoami", "--on-term", "ignore"];
    for name in ["term", "quit", "own", "hup"] {
        let own: &[&str] = match name {
            "own" => &["--stop-signal", "USR1"],
            _ => &[],
        };
        shop.run_with(name, own, &deaf);
    }
    shop.run("kill", &[]);
    shop.run("int", &["--stop-timeout", "600"]);
    for name in ["term", "quit", "own", "hup", "kill", "int"] {
        shop.until_state(name, "ready");
    }
    for signal in ["HUP", "USR1", "WINCH"] {
        shop.docker.signal("hup", signal);
    }
    for (name, signal) in [("term", "TERM"), ("quit", "QUIT"), ("own", "USR1")] {
        shop.docker.signal(name, signal);
        shop.until_state(name, "draining");
        shop.until_told(
            name,
            &format!("told to end by SIG{signal}: takes no new work"),
        );
    }
    for (name, signal) in [("kill", "KILL"), ("int", "INT")] {
        shop.docker.signal(name, signal);
        shop.until_gone(name);
    }
    // The events come in order: what was heard of the later ones was heard of these.
    let unmoved = shop.endpoint("hup").expect("an endpoint");
    assert_eq!(unmoved["state"], "ready", "{unmoved}");
    assert_eq!(
        unmoved["lifecycle"]["reason"],
        serde_json::Value::Null,
        "{unmoved}"
    );
}

#[test]
fn a_container_that_is_removed_or_ends_by_itself_is_gone_and_comes_back_as_another_endpoint() {
    let Some(shop) = Shop::start(Setup::default()) else {
        return;
    };
    shop.run("aa", &[]);
    let before = shop.until_state("aa", "ready");
    shop.docker.restart("aa");
    eventually(PATIENCE, "it is another endpoint, and ready", || {
        let now = shop.endpoint("aa")?;
        (now["state"] == "ready" && now["id"] != before["id"]).then_some(())
    });
    shop.docker.stop("aa");
    shop.until_gone("aa");
    assert!(shop.node.workload("aa").is_none());
    shop.docker.start_container("aa");
    shop.until_state("aa", "ready");
    shop.docker.rm("aa");
    shop.until_gone("aa");
}

#[test]
fn a_stop_a_start_and_a_stop_that_is_survived_are_told_in_order() {
    let Some(shop) = Shop::start(Setup::default()) else {
        return;
    };
    // It serves on for so long that a slow machine sees it drain.
    shop.run_with("aa", &[], &["whoami", "--name", "aa", "--linger", "2s"]);
    let deaf = ["whoami", "--name", "deaf", "--on-term", "ignore"];
    shop.run_with("deaf", &["--stop-timeout", "1"], &deaf);
    shop.until_state("aa", "ready");
    shop.until_state("deaf", "ready");
    shop.docker.signal("deaf", "TERM");
    shop.docker.stop("aa");
    // Started again sooner, its way out and back in would be one write and one event.
    let mut history = vec![
        ("EndpointAdded", "on n1 at "),
        ("EndpointReady", ""),
        (
            "EndpointDraining",
            "gets no new work: told to end by SIGTERM",
        ),
        ("EndpointGone", "taken away by n1: told to end by SIGTERM"),
    ];
    until_happened(&shop, "aa", &history);
    shop.docker.start_container("aa");
    shop.until_state("aa", "ready");
    shop.until_state("deaf", "ready");

    history.extend([("EndpointAdded", "on n1 at "), ("EndpointReady", "")]);
    until_happened(&shop, "aa", &history);
    until_happened(
        &shop,
        "deaf",
        &[
            ("EndpointAdded", "on n1 at "),
            ("EndpointReady", ""),
            (
                "EndpointDraining",
                "gets no new work: told to end by SIGTERM",
            ),
            ("EndpointRestored", "gets work again: runs on after SIGTERM"),
        ],
    );
}

#[test]
fn an_update_of_a_container_changes_nothing_of_its_endpoint() {
    let Some(shop) = Shop::start(Setup::default()) else {
        return;
    };
    shop.run("aa", &[]);
    let mut before = shop.until_state("aa", "ready");
    let history = [("EndpointAdded", "on n1 at "), ("EndpointReady", "")];
    until_happened(&shop, "aa", &history);
    let events = shop.docker.events();
    for change in [["--cpu-shares", "512"], ["--restart", "unless-stopped"]] {
        shop.docker.cli(&["update", change[0], change[1], "aa"]);
        events.next("update", PATIENCE);
        assert_eq!(shop.ask().as_deref(), Ok("aa"));
    }
    // The events come in order: what was heard of this one was heard of those.
    shop.run("bb", &[]);
    shop.until_state("bb", "ready");
    let mut after = shop.endpoint("aa").expect("an endpoint");
    for endpoint in [&mut before, &mut after] {
        // What goes on at this moment.
        endpoint["inFlight"].take();
    }
    assert_eq!(after, before);
    until_happened(&shop, "aa", &history);
}

#[test]
fn lack_of_memory_in_a_container_that_lives_on_is_told_and_costs_nothing() {
    let Some(shop) = Shop::start(Setup::default()) else {
        return;
    };
    shop.run("small", &["--memory", "24m", "--memory-swap", "24m"]);
    let before = shop.until_state("small", "ready");
    let events = shop.docker.events();
    // It reads more than there is room for, and is the biggest process by then.
    let mut hungry = shop
        .docker
        .command(&["exec", "-i", "small", "/heddle", "apply", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("docker runs");
    let mut food = hungry.stdin.take().expect("stdin is piped");
    // It is killed before it has taken everything.
    let _ = food.write_all(&vec![b'#'; 32 << 20]);
    drop(food);
    let _ = hungry.wait();
    events.next("oom", PATIENCE);
    shop.until_told("small", "a process in it was killed for lack of memory");
    let after = shop.until_state("small", "ready");
    assert_eq!(after["id"], before["id"]);
}
