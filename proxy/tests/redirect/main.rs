//! The redirect in real network namespaces: a host, and a guest behind a bridge as containers are.
//! Needs root, `ip` and `nft`.

mod lifecycle;
mod netns;
mod sockets;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use netns::{GUEST_V4, GUEST_V6, HOST_V4, Namespace, available};
use proxy::redirect::{Redirect, RedirectConfig};
use sockets::*;

const TABLE: &str = "heddle";

fn config(port: u16) -> RedirectConfig {
    RedirectConfig {
        table: TABLE.into(),
        ranges: ranges(&["10.96.0.0/16", "fd00:96::/108"]),
        port,
        exceptions: ["10.96.0.10:53", "[fd00:96::a]:53"]
            .map(|address| address.parse().expect("an address"))
            .into(),
    }
}

fn ranges(texts: &[&str]) -> Vec<(IpAddr, u8)> {
    let range = |text: &&str| {
        let (address, prefix) = text.split_once('/').expect("a prefix");
        let address = address.parse().expect("an address");
        (address, prefix.parse().expect("a number"))
    };
    texts.iter().map(range).collect()
}

fn install(host: &Namespace, port: u16) -> Redirect {
    let config = config(port);
    host.run(move || Redirect::install(config, &BTreeSet::new()))
        .expect("installed")
}

/// The redirect for `services`, with its listener.
fn redirect(host: &Namespace, services: &[&str]) -> Redirect {
    let mut redirect = install(host, redirect_listener(host));
    redirect.set_services(&pairs(services)).expect("set");
    redirect
}

fn pairs(services: &[&str]) -> BTreeSet<(IpAddr, u16)> {
    let pair = |text: &&str| {
        let address: std::net::SocketAddr = text.parse().expect("an address");
        (address.ip(), address.port())
    };
    services.iter().map(pair).collect()
}

#[test]
fn a_service_is_reached_from_the_host_itself() {
    if !available() {
        return;
    }
    let host = Namespace::new();
    let _redirect = redirect(&host, &["10.96.0.1:80", "[fd00:96::1]:80"]);
    let connection = assert_redirected(&host, "10.96.0.1:80");
    assert_eq!(connection.local.ip().to_string(), "127.0.0.1");
    let connection = assert_redirected(&host, "[fd00:96::1]:80");
    assert_eq!(connection.local.ip().to_string(), "::1");
}

#[test]
fn a_service_is_reached_from_behind_a_bridge_with_the_clients_address() {
    if !available() {
        return;
    }
    let host = Namespace::new();
    let guest = host.bridged_guest();
    let _redirect = redirect(&host, &["10.96.0.1:80", "[fd00:96::1]:80"]);
    let connection = assert_redirected(&guest, "10.96.0.1:80");
    assert_eq!(connection.local.ip().to_string(), GUEST_V4);
    let connection = assert_redirected(&guest, "[fd00:96::1]:80");
    assert_eq!(connection.local.ip().to_string(), GUEST_V6);
}

#[test]
fn a_dual_stack_listener_learns_destinations_of_both_families() {
    if !available() {
        return;
    }
    let host = Namespace::new();
    let mut redirect = install(&host, dual_stack_listener(&host));
    let services = pairs(&["10.96.0.1:80", "[fd00:96::1]:443"]);
    redirect.set_services(&services).expect("set");
    assert_redirected(&host, "10.96.0.1:80");
    assert_redirected(&host, "[fd00:96::1]:443");
}

#[test]
fn a_connection_that_was_not_redirected_was_meant_for_the_listener() {
    if !available() {
        return;
    }
    let host = Namespace::new();
    let port = redirect_listener(&host);
    let _redirect = install(&host, port);
    assert_redirected(&host, &format!("127.0.0.1:{port}"));
    assert_refused(&host, &format!("10.96.0.1:{port}"));
}

#[test]
fn one_client_port_reaches_many_vips_at_once() {
    if !available() {
        return;
    }
    let host = Namespace::new();
    let guest = host.bridged_guest();
    let services = ["10.96.0.1:80", "10.96.0.2:80", "10.96.0.1:81"];
    let _redirect = redirect(&host, &services);
    for client in [&host, &guest] {
        let mut open = Vec::new();
        for service in services {
            let connection = Connection::open_from(client, Some(40_000), service).expect("open");
            // Two ports of one VIP meet at one listener: conntrack gives the later another port.
            let (vip, peer) = connection.greeting.split_once(' ').expect("two addresses");
            assert_eq!(vip, service);
            assert!(
                peer.starts_with(&connection.local.ip().to_string()),
                "{peer}"
            );
            open.push(connection);
        }
        open.iter_mut().for_each(Connection::assert_echoes);
    }
}

#[test]
fn a_port_without_service_is_refused_even_when_a_wildcard_listener_has_it() {
    if !available() {
        return;
    }
    let host = Namespace::new();
    let guest = host.bridged_guest();
    server(&host, "0.0.0.0:8080", "wildcard");
    server(&host, "[::]:8080", "wildcard");
    let _redirect = redirect(&host, &["10.96.0.1:80", "[fd00:96::1]:80"]);
    for client in [&host, &guest] {
        assert_answers(client, &format!("{HOST_V4}:8080"), "wildcard");
        assert_refused(client, "10.96.0.1:8080");
        assert_refused(client, "10.96.77.7:80");
        assert_refused(client, "[fd00:96::1]:8080");
        assert_refused(client, "[fd00:96::77]:80");
    }
}

#[test]
fn udp_without_service_meets_port_unreachable() {
    if !available() {
        return;
    }
    let host = Namespace::new();
    let guest = host.bridged_guest();
    udp_server(&host, "0.0.0.0:8080", "wildcard");
    udp_server(&host, "[::]:8080", "wildcard");
    let _redirect = redirect(&host, &["10.96.0.1:8080", "[fd00:96::1]:8080"]);
    for client in [&host, &guest] {
        assert_unreachable(client, "10.96.0.1:8080");
        assert_unreachable(client, "[fd00:96::1]:8080");
    }
}

#[test]
fn exceptions_and_udp_sockets_are_left_to_who_is_bound_there() {
    if !available() {
        return;
    }
    let host = Namespace::new();
    let guest = host.bridged_guest();
    let mut redirect = redirect(&host, &["10.96.0.1:80"]);
    for address in ["10.96.0.10:53", "[fd00:96::a]:53"] {
        server(&host, address, "dns");
        udp_server(&host, address, "dns");
    }
    udp_server(&host, "10.96.0.5:514", "syslog");
    redirect
        .set_udp_sockets(&pairs(&["10.96.0.5:514"]))
        .expect("set");
    for client in [&host, &guest] {
        for address in ["10.96.0.10:53", "[fd00:96::a]:53"] {
            assert_answers(client, address, "dns");
            assert_eq!(ask(client, address).expect("an answer"), "dns");
        }
        assert_eq!(ask(client, "10.96.0.5:514").expect("an answer"), "syslog");
        assert_refused(client, "10.96.0.5:514");
        assert_refused(client, "10.96.0.10:80");
    }
    redirect.set_udp_sockets(&BTreeSet::new()).expect("set");
    for client in [&host, &guest] {
        assert_unreachable(client, "10.96.0.5:514");
        assert_eq!(ask(client, "10.96.0.10:53").expect("an answer"), "dns");
    }
}

#[test]
fn an_exception_is_led_to_another_port_where_its_own_is_taken() {
    if !available() {
        return;
    }
    let host = Namespace::new();
    let guest = host.bridged_guest();
    let mut redirect = redirect(&host, &["10.96.0.1:80"]);
    for any in ["0.0.0.0:53", "[::]:53"] {
        server(&host, any, "not ours");
        udp_server(&host, any, "not ours");
    }
    let moved = [("10.96.0.10:53", 5353), ("[fd00:96::a]:53", 5454)];
    for (address, at) in moved {
        let at = address.replace(":53", &format!(":{at}"));
        server(&host, &at, "dns");
        udp_server(&host, &at, "dns");
    }
    let moved = moved.map(|(address, at)| (address.parse().expect("an address"), at));
    redirect.move_exceptions(&moved).expect("moved");
    host.shell("nft flush ruleset");
    assert!(redirect.ensure().expect("healed").table);
    for client in [&host, &guest] {
        for address in ["10.96.0.10:53", "[fd00:96::a]:53"] {
            assert_answers(client, address, "dns");
            assert_eq!(ask(client, address).expect("an answer"), "dns");
        }
        assert_redirected(client, "10.96.0.1:80");
        assert_refused(client, "10.96.0.10:54");
        assert_unreachable(client, "10.96.0.10:5353");
    }
    assert_eq!(ask(&host, "127.0.0.1:53").expect("an answer"), "not ours");
}

#[test]
fn open_connections_outlive_their_service_and_the_table() {
    if !available() {
        return;
    }
    let host = Namespace::new();
    let guest = host.bridged_guest();
    let services = ["10.96.0.1:80", "[fd00:96::1]:80"];
    let mut redirect = redirect(&host, &services);
    let mut open: Vec<_> = [&host, &guest]
        .into_iter()
        .flat_map(|client| services.map(|vip| assert_redirected(client, vip)))
        .collect();

    redirect.set_services(&BTreeSet::new()).expect("set");
    open.iter_mut().for_each(Connection::assert_echoes);
    for service in services {
        assert_refused(&host, service);
        assert_refused(&guest, service);
    }

    // A connection lives through the gap as long as nothing is sent in it: not even an acknowledgement held back.
    [&host, &guest]
        .into_iter()
        .for_each(wait_until_acknowledged);
    host.shell("nft flush ruleset");
    assert!(redirect.ensure().expect("healed").table, "it was gone");
    open.iter_mut().for_each(Connection::assert_echoes);
}

#[test]
fn no_connection_fails_while_other_services_come_and_go() {
    if !available() {
        return;
    }
    let host = Namespace::new();
    let guest = host.bridged_guest();
    let mut redirect = redirect(&host, &["10.96.0.1:80"]);
    let stop = Arc::new(AtomicBool::new(false));
    std::thread::scope(|scope| {
        let dialled = scope.spawn(|| {
            let mut dialled = 0;
            while !stop.load(Ordering::Relaxed) || dialled < 100 {
                assert_redirected(&guest, "10.96.0.1:80");
                dialled += 1;
            }
            dialled
        });
        let mut services = pairs(&["10.96.0.1:80"]);
        for round in 0..200u16 {
            let pair = ("10.96.1.1".parse().expect("an address"), 1 + round % 7);
            if !services.remove(&pair) {
                services.insert(pair);
            }
            redirect.set_services(&services).expect("set");
        }
        stop.store(true, Ordering::Relaxed);
        assert!(dialled.join().expect("every connection was redirected") >= 100);
    });
}

#[test]
fn dockers_translation_of_local_addresses_never_wins_in_the_ranges() {
    if !available() {
        return;
    }
    let host = Namespace::new();
    let guest = host.bridged_guest();
    server(&guest, "0.0.0.0:8080", "published container");
    udp_server(&guest, "0.0.0.0:8080", "published container");
    // What Docker makes of `-p 80:8080 -p 53:8080/udp`, at the same priorities.
    host.nft(
        "table ip docker {
             chain prerouting { type nat hook prerouting priority -100
                 fib daddr type local jump publish
             }
             chain output { type nat hook output priority -100
                 ip daddr != 127.0.0.0/8 fib daddr type local jump publish
             }
             chain publish {
                 tcp dport { 80, 53 } dnat to 172.30.0.2:8080
                 udp dport 53 dnat to 172.30.0.2:8080
             }
             chain postrouting { type nat hook postrouting priority 100
                 ip saddr 172.30.0.2 ip daddr 172.30.0.2 masquerade
             }
         }",
    );
    host.shell("ip route add local 10.96.0.0/16 dev lo");
    assert_answers(&host, &format!("{HOST_V4}:80"), "published container");
    assert_answers(&host, "10.96.0.1:80", "published container");
    host.shell("ip route del local 10.96.0.0/16 dev lo");

    let mut redirect = redirect(&host, &["10.96.0.1:80"]);
    server(&host, "10.96.0.10:53", "dns");
    udp_server(&host, "10.96.0.10:53", "dns");
    for client in [&host, &guest] {
        assert_redirected(client, "10.96.0.1:80");
        assert_refused(client, "10.96.0.2:80");
        assert_answers(client, "10.96.0.10:53", "dns");
        assert_eq!(ask(client, "10.96.0.10:53").expect("an answer"), "dns");
        assert_unreachable(client, "10.96.0.11:53");
    }
    assert_answers(&host, &format!("{HOST_V4}:80"), "published container");

    redirect.set_services(&BTreeSet::new()).expect("set");
    assert_refused(&host, "10.96.0.1:80");
    assert_refused(&guest, "10.96.0.1:80");
}
