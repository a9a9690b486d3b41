//! How the redirect comes, changes, survives others and goes, and what it says when it cannot.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use proxy::redirect::{Redirect, RedirectConfig, RedirectError, Repairs};

use crate::netns::{Namespace, available};
use crate::sockets::*;
use crate::{config, install, pairs, ranges, redirect};

fn routes(host: &Namespace) -> String {
    host.shell("ip route show table local; ip -6 route show table local")
}

/// Installs the redirect after another of this process went: programs that other tests start hold what the process
/// holds for a moment, before they are themselves.
fn install_after(host: &Namespace, config: &RedirectConfig, services: &[&str]) -> Redirect {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let (config, services) = (config.clone(), pairs(services));
        match host.run(move || Redirect::install(config, &services)) {
            Err(RedirectError::InUse { .. }) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            result => return result.expect("installed"),
        }
    }
}

/// Ends the redirect, and leaves what a process that was killed would have left.
fn crash(host: &Namespace, redirect: Redirect, ranges: &[&str]) {
    // nft does not read all that it prints.
    let table = host.shell("nft list ruleset | sed 's/dnat ip6* to :/dnat to :/'");
    drop(redirect);
    host.nft(&table);
    for range in ranges {
        host.shell(&format!("ip route add local {range} dev lo proto 104"));
    }
}

#[test]
fn a_table_left_over_by_a_crash_is_replaced_with_its_routes() {
    if !available() {
        return;
    }
    let host = Namespace::new();
    let port = redirect_listener(&host);
    let old_ranges = ["10.97.0.0/16", "10.96.0.0/16"];
    let old = RedirectConfig {
        ranges: ranges(&old_ranges),
        ..config(port)
    };
    let services = pairs(&["10.96.0.9:9"]);
    let crashed = host
        .run(move || Redirect::install(old, &services))
        .expect("installed");
    crash(&host, crashed, &old_ranges);
    assert!(host.shell("nft list ruleset").contains("10.96.0.9"));
    assert!(routes(&host).contains("10.97.0.0/16"));

    let redirect = install_after(&host, &config(port), &["10.96.0.1:80"]);
    assert_eq!(host.shell("nft list tables"), "table inet heddle\n");
    assert!(!host.shell("nft list ruleset").contains("10.96.0.9"));
    assert!(!routes(&host).contains("10.97.0.0/16"));
    assert_redirected(&host, "10.96.0.1:80");
    drop(redirect);
    assert_eq!(host.shell("nft list tables"), "");
}

#[test]
fn a_table_belongs_to_one_process_of_a_host() {
    if !available() {
        return;
    }
    let (host, other_host) = (Namespace::new(), Namespace::new());
    let first = redirect(&host, &["10.96.0.1:80"]);
    let second = || Redirect::install(config(15_001), &BTreeSet::new());
    for _ in 0..3 {
        let error = host.run(move || second().expect_err("in use"));
        let expected = format!("in use by another heddle, process {}", std::process::id());
        assert!(error.to_string().contains(&expected), "{error}");
    }
    assert_redirected(&host, "10.96.0.1:80");
    other_host.run(second).expect("a host of its own");
    first.remove().expect("removed");
    install_after(&host, &config(15_001), &[]);
}

#[test]
fn a_table_that_others_made_is_left_alone() {
    if !available() {
        return;
    }
    let theirs = "table inet heddle { comment \"theirs\"; chain web { tcp dport 80 accept; }; }";
    let host = Namespace::new();
    let before = routes(&host);
    host.nft(theirs);
    let ruleset = host.shell("nft list ruleset");
    let error = host
        .run(|| Redirect::install(config(15_001), &BTreeSet::new()).expect_err("it is not ours"));
    assert!(
        error.to_string().contains("nft delete table inet heddle"),
        "{error}"
    );
    assert_eq!(host.shell("nft list ruleset"), ruleset);
    assert_eq!(routes(&host), before);

    host.shell("nft delete table inet heddle");
    let port = redirect_listener(&host);
    let mut redirect = install_after(&host, &config(port), &["10.96.0.1:80"]);
    assert_redirected(&host, "10.96.0.1:80");
    host.nft(&format!("delete table inet heddle; {theirs}"));
    assert!(matches!(
        redirect.ensure().expect_err("it is not ours"),
        RedirectError::Foreign(_)
    ));
    drop(redirect);
    assert_eq!(host.shell("nft list ruleset"), ruleset);
    assert_eq!(routes(&host), before);
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

    drop(install_after(&host, &config(15_001), &[]));
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
        .run(move || Redirect::install(other, &BTreeSet::new()))
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
    let mut redirect = redirect(&host, &["10.96.0.1:80", "[fd00:96::1]:80"]);
    let nothing = Repairs::default();
    let table = Repairs {
        table: true,
        routes: 0,
    };
    for _ in 0..3 {
        assert_eq!(redirect.ensure().expect("checked"), nothing);
    }
    host.shell("nft add table inet theirs; nft add chain inet theirs web");
    assert_eq!(redirect.ensure().expect("checked"), nothing);

    for (change, repairs) in [
        (
            "nft flush ruleset; ip route flush table local proto 104",
            Repairs {
                table: true,
                routes: 1,
            },
        ),
        ("nft flush ruleset", table),
        ("nft flush table inet heddle", table),
        ("nft flush chain inet heddle services", table),
        ("nft insert rule inet heddle guard accept", table),
        ("nft flush set inet heddle services4", table),
        ("nft flush set inet heddle bound6", table),
        (
            "nft add element inet heddle services4 { 10.96.0.9 . 9 }",
            table,
        ),
        (
            "ip -6 route flush table local proto 104",
            Repairs {
                table: false,
                routes: 1,
            },
        ),
    ] {
        host.shell(change);
        assert_eq!(redirect.ensure().expect("healed"), repairs, "{change}");
        assert_eq!(redirect.ensure().expect("checked"), nothing, "{change}");
        assert_redirected(&host, "10.96.0.1:80");
        assert_redirected(&host, "[fd00:96::1]:80");
        assert_refused(&host, "10.96.0.9:9");
    }

    host.shell("nft flush ruleset");
    redirect
        .set_services(&pairs(&["10.96.0.1:80", "10.96.0.2:80"]))
        .expect("set");
    assert_redirected(&host, "10.96.0.1:80");
    assert_redirected(&host, "10.96.0.2:80");
    assert_eq!(redirect.ensure().expect("checked"), table);
    assert_eq!(redirect.ensure().expect("checked"), nothing);

    host.shell("nft flush set inet heddle services4");
    redirect
        .set_services(&pairs(&["10.96.0.2:80"]))
        .expect("set");
    assert_refused(&host, "10.96.0.1:80");
    assert_redirected(&host, "10.96.0.2:80");
}

#[test]
fn others_that_change_their_tables_all_the_time_are_not_in_the_way() {
    if !available() {
        return;
    }
    let host = Namespace::new();
    let mut redirect = redirect(&host, &["10.96.0.1:80"]);
    let stop = Arc::new(AtomicBool::new(false));
    std::thread::scope(|scope| {
        let changed = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                host.shell("nft add table inet theirs; nft delete table inet theirs");
            }
        });
        for _ in 0..300 {
            let found = redirect.ensure().expect("checked");
            assert_eq!(found, Repairs::default());
        }
        stop.store(true, Ordering::Relaxed);
        changed.join().expect("changed");
    });
    host.shell("nft delete table inet heddle");
    assert!(redirect.ensure().expect("healed").table);
    assert_redirected(&host, "10.96.0.1:80");
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

    for what in ["read and compared", "unchanged"] {
        let started = Instant::now();
        assert_eq!(redirect.ensure().expect("checked"), Repairs::default());
        eprintln!("{what}: {:?}", started.elapsed());
    }

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
        Redirect::install(config(15_001), &BTreeSet::new()).expect_err("not permitted")
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
        Redirect::install(bad, &BTreeSet::new()).expect_err("no such prefix")
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
    let error =
        host.run(|| Redirect::install(config(15_001), &BTreeSet::new()).expect_err("no IPv6"));
    assert!(error.to_string().contains("fd00:96::/108"), "{error}");
    assert_eq!(routes(&host), before);
    assert_eq!(host.shell("nft list tables"), "");
}
