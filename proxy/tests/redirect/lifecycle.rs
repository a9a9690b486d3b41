//! How the redirect comes, changes, survives others and goes, and what it says when it cannot.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use proxy::redirect::{Redirect, RedirectConfig, RedirectError};

use crate::netns::{Namespace, available};
use crate::sockets::*;
use crate::{TABLE, config, install, pairs, ranges, redirect};

fn routes(host: &Namespace) -> String {
    host.shell("ip route show table local; ip -6 route show table local")
}

#[test]
fn a_table_left_over_by_a_crash_is_replaced_with_its_routes() {
    if !available() {
        return;
    }
    let host = Namespace::new();
    let before = routes(&host);
    let port = redirect_listener(&host);
    let old = RedirectConfig {
        ranges: ranges(&["10.97.0.0/16", "10.96.0.0/16"]),
        ..config(port)
    };
    let mut crashed = host.run(move || Redirect::install(old)).expect("installed");
    crashed.set_services(&pairs(&["10.96.0.9:9"])).expect("set");
    std::mem::forget(crashed);

    let mut redirect = install(&host, port);
    assert_eq!(host.shell("nft list tables"), "table inet heddle\n");
    assert!(!host.shell("nft list ruleset").contains("10.96.0.9"));
    assert!(!routes(&host).contains("10.97.0.0/16"));
    redirect
        .set_services(&pairs(&["10.96.0.1:80"]))
        .expect("set");
    assert_redirected(&host, "10.96.0.1:80");
    std::mem::forget(redirect);

    let other = ranges(&["10.98.0.0/16"]);
    host.run(move || Redirect::cleanup(TABLE, &other))
        .expect("cleaned up");
    assert_eq!(host.shell("nft list tables"), "");
    assert_eq!(routes(&host), before);
    host.run(|| Redirect::cleanup(TABLE, &[]))
        .expect("nothing left is fine");
}

#[test]
fn removal_leaves_nothing_of_ours_and_everything_of_others() {
    if !available() {
        return;
    }
    let host = Namespace::new();
    host.shell("nft add table inet theirs; ip route add local 10.96.0.0/16 dev lo");
    let before = routes(&host);
    let left = || (host.shell("nft list tables"), routes(&host));
    let redirect = install(&host, 15_001);
    assert_ne!(routes(&host), before);
    redirect.remove().expect("removed");
    assert_eq!(left(), ("table inet theirs\n".to_owned(), before.clone()));

    drop(install(&host, 15_001));
    assert_eq!(left(), ("table inet theirs\n".to_owned(), before));
}

#[test]
fn two_tables_with_ranges_of_their_own_live_side_by_side() {
    if !available() {
        return;
    }
    let host = Namespace::new();
    let first = redirect(&host, &["10.96.0.1:80"]);
    let port = redirect_listener(&host);
    let other = RedirectConfig {
        table: "other".into(),
        ranges: ranges(&["10.98.0.0/16"]),
        ..config(port)
    };
    let mut second = host
        .run(move || Redirect::install(other))
        .expect("installed");
    second.set_services(&pairs(&["10.98.0.1:80"])).expect("set");
    assert_redirected(&host, "10.96.0.1:80");
    assert_redirected(&host, "10.98.0.1:80");
    first.remove().expect("removed");
    assert_redirected(&host, "10.98.0.1:80");
}

#[test]
fn what_others_flush_is_put_back() {
    if !available() {
        return;
    }
    let host = Namespace::new();
    let mut redirect = redirect(&host, &["10.96.0.1:80"]);
    assert!(!redirect.ensure().expect("checked"), "all is in place");

    host.shell("nft flush ruleset; ip route flush table local proto 104");
    assert!(redirect.ensure().expect("healed"), "the table was gone");
    assert_redirected(&host, "10.96.0.1:80");

    host.shell("nft flush ruleset");
    redirect
        .set_services(&pairs(&["10.96.0.1:80", "10.96.0.2:80"]))
        .expect("set");
    assert_redirected(&host, "10.96.0.1:80");
    assert_redirected(&host, "10.96.0.2:80");

    host.shell("nft flush set inet heddle services4");
    redirect
        .set_services(&pairs(&["10.96.0.2:80"]))
        .expect("set");
    assert_refused(&host, "10.96.0.1:80");
    assert_redirected(&host, "10.96.0.2:80");
}

#[test]
fn ten_thousand_services_are_set_in_one_go() {
    if !available() {
        return;
    }
    let host = Namespace::new();
    let mut redirect = install(&host, redirect_listener(&host));
    let many = |base: u32| (base..base + 5_000).map(Ipv4Addr::from_bits);
    let mut services: BTreeSet<(IpAddr, u16)> =
        many(0x0a60_1000).map(|ip| (ip.into(), 80)).collect();
    services.extend((0..5_000u128).map(|host| {
        let bits = 0xfd00_0096_u128 << 96 | (0x1_0000 + host);
        (Ipv6Addr::from_bits(bits).into(), 80)
    }));
    assert_eq!(services.len(), 10_000);

    let started = Instant::now();
    redirect.set_services(&services).expect("set");
    let all = started.elapsed();
    assert_redirected(&host, "10.96.16.0:80");
    assert_redirected(&host, "[fd00:96::1:1387]:80");

    services.insert(("10.96.0.1".parse().expect("an address"), 80));
    let started = Instant::now();
    redirect.set_services(&services).expect("set");
    eprintln!(
        "10,000 services: {all:?}; one more: {:?}",
        started.elapsed()
    );
    assert_redirected(&host, "10.96.0.1:80");

    let started = Instant::now();
    redirect.set_services(&BTreeSet::new()).expect("set");
    eprintln!("none again: {:?}", started.elapsed());
    assert_refused(&host, "10.96.16.0:80");
}

#[test]
fn a_process_without_the_capability_is_told_so() {
    if !available() {
        return;
    }
    let host = Namespace::new();
    let error = host.run(|| {
        const NOBODY: libc::c_long = 65_534;
        // SAFETY: the bare system call changes the calling thread only, which is the test's own.
        let result = unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
        assert_eq!(result, 0);
        Redirect::install(config(15_001)).expect_err("not permitted")
    });
    assert!(
        matches!(error, RedirectError::NotPermitted { .. }),
        "{error:?}"
    );
    assert!(error.to_string().contains("needs CAP_NET_ADMIN"), "{error}");
}

#[test]
fn a_bad_configuration_changes_nothing() {
    if !available() {
        return;
    }
    let host = Namespace::new();
    let before = routes(&host);
    let error = host.run(|| {
        let ranges = ranges(&["10.96.0.0/16", "10.0.0.0/33"]);
        let bad = RedirectConfig {
            ranges,
            ..config(15_001)
        };
        Redirect::install(bad).expect_err("no such prefix")
    });
    assert!(error.to_string().contains("10.0.0.0/33"), "{error}");
    assert_eq!(routes(&host), before);
    assert_eq!(host.shell("nft list tables"), "");
}

#[test]
fn an_ipv6_range_on_a_host_without_ipv6_is_refused_by_name() {
    if !available() {
        return;
    }
    let host = Namespace::new();
    host.shell("sysctl -qw net.ipv6.conf.all.disable_ipv6=1");
    let before = routes(&host);
    let error = host.run(|| Redirect::install(config(15_001)).expect_err("no IPv6"));
    assert!(error.to_string().contains("fd00:96::/108"), "{error}");
    assert_eq!(routes(&host), before);
    assert_eq!(host.shell("nft list tables"), "");
}
