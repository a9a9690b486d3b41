use std::net::IpAddr;

use super::*;
use crate::testing::{World, world};

/// What a name and a type get, one text per record; additionals are in parentheses.
fn ask(snapshot: &Snapshot, question: &str) -> String {
    let (name, kind) = question.split_once(' ').unwrap();
    let reverse = Reverse::default();
    let servers: [IpAddr; 2] = ["10.96.0.10".parse().unwrap(), "fd00:96::a".parse().unwrap()];
    let zone = Zone {
        snapshot,
        reverse: &reverse,
        name_servers: &servers,
    };
    let labels: Vec<&[u8]> = name
        .split('.')
        .filter(|l| !l.is_empty())
        .map(str::as_bytes)
        .collect();
    let kind: RecordType = kind.parse().unwrap();
    let apex_name = |apex: usize| name.splitn(labels.len() - apex + 1, '.').last().unwrap();
    match zone.answer(&labels, kind) {
        Answer::Foreign => "foreign".to_owned(),
        Answer::Unknown => "unknown".to_owned(),
        Answer::Alias(target) => format!("see {target}"),
        Answer::NoName { apex } => format!("no name in {}", apex_name(apex)),
        Answer::NoData { apex } => format!("no data in {}", apex_name(apex)),
        Answer::Found {
            answers,
            additionals,
        } => {
            let answers = answers.iter().map(|data| match data {
                Data::Address(address) => address.to_string(),
                Data::Srv {
                    weight,
                    port,
                    target,
                } => {
                    format!("{weight} {port} {}", target.labels().join("."))
                }
                Data::Ptr(host) => host.labels().join("."),
                Data::Alias(target) => format!("alias of {target}"),
                other => format!("{other:?}"),
            });
            let additionals = additionals
                .iter()
                .map(|(host, address)| format!("({} {address})", host.labels().join(".")));
            answers.chain(additionals).collect::<Vec<_>>().join(", ")
        }
    }
}

fn check(snapshot: &Snapshot, table: &[(&str, &str)]) {
    for (question, expected) in table {
        assert_eq!(ask(snapshot, question), *expected, "{question}");
    }
}

#[test]
fn services_with_virtual_ips() {
    let no_data = "no data in heddle.internal";
    let no_name = "no name in heddle.internal";
    check(
        &world().snapshot(),
        &[
            ("web.shop.svc.heddle.internal A", "10.96.0.7"),
            ("web.shop.svc.heddle.internal AAAA", "fd00:96::7"),
            ("cart.shop.svc.heddle.internal A", "10.96.0.8"),
            ("cart.shop.svc.heddle.internal AAAA", no_data),
            ("web.shop.svc.heddle.internal TXT", no_data),
            ("web.shop.svc.heddle.internal SRV", no_data),
            ("web.shop.svc.heddle.internal ANY", "Minimal"),
            (
                "_http._tcp.web.shop.svc.heddle.internal SRV",
                "100 80 web.shop.svc, (web.shop.svc 10.96.0.7), (web.shop.svc fd00:96::7)",
            ),
            (
                "_admin._tcp.web.shop.svc.heddle.internal SRV",
                "100 81 web.shop.svc, (web.shop.svc 10.96.0.7), (web.shop.svc fd00:96::7)",
            ),
            ("_http._tcp.web.shop.svc.heddle.internal A", no_data),
            ("_http._udp.web.shop.svc.heddle.internal SRV", no_name),
            ("_grpc._tcp.web.shop.svc.heddle.internal SRV", no_name),
            ("http._tcp.web.shop.svc.heddle.internal SRV", no_name),
            ("x._http._tcp.web.shop.svc.heddle.internal SRV", no_name),
            ("10-96-0-7.web.shop.svc.heddle.internal A", no_name),
            ("api.shop.svc.heddle.internal A", no_name),
            ("web.data.svc.heddle.internal A", no_name),
            ("*.shop.svc.heddle.internal A", no_name),
            ("late.shop.svc.heddle.internal A", no_data),
            ("_http._tcp.late.shop.svc.heddle.internal SRV", no_data),
        ],
    );
}

#[test]
fn headless_services_answer_with_their_ready_endpoints() {
    let no_data = "no data in heddle.internal";
    let no_name = "no name in heddle.internal";
    check(
        &world().snapshot(),
        &[
            ("db.data.svc.heddle.internal A", "172.17.0.2, 172.17.0.3"),
            ("db.data.svc.heddle.internal AAAA", "fd00:17::5"),
            (
                "_pg._tcp.db.data.svc.heddle.internal SRV",
                "1 5432 172-17-0-2.db.data.svc, 5 5433 172-17-0-3.db.data.svc, 1 5434 172-17-0-3.db.data.svc, \
                 1 5432 fd00-17--5.db.data.svc, (172-17-0-2.db.data.svc 172.17.0.2), \
                 (172-17-0-3.db.data.svc 172.17.0.3), (fd00-17--5.db.data.svc fd00:17::5)",
            ),
            ("172-17-0-2.db.data.svc.heddle.internal A", "172.17.0.2"),
            ("172-17-0-2.db.data.svc.heddle.internal AAAA", no_data),
            ("fd00-17--5.db.data.svc.heddle.internal AAAA", "fd00:17::5"),
            (
                "fd00-17-0-0-0-0-0-5.db.data.svc.heddle.internal AAAA",
                no_name,
            ),
            ("172-17-0-9.db.data.svc.heddle.internal A", no_name),
            ("gone.data.svc.heddle.internal A", no_data),
            ("_pg._tcp.gone.data.svc.heddle.internal SRV", no_data),
        ],
    );
}

#[test]
fn names_without_records_are_not_unknown_when_something_is_below_them() {
    let no_data = "no data in heddle.internal";
    check(
        &world().snapshot(),
        &[
            ("svc.heddle.internal A", no_data),
            ("shop.svc.heddle.internal A", no_data),
            ("shop.svc.heddle.internal ANY", no_data),
            ("_tcp.web.shop.svc.heddle.internal SRV", no_data),
            ("dns.heddle.internal A", no_data),
            ("heddle.internal A", no_data),
            (
                "_udp.web.shop.svc.heddle.internal SRV",
                "no name in heddle.internal",
            ),
            ("toys.svc.heddle.internal A", "no name in heddle.internal"),
            ("pod.heddle.internal A", "no name in heddle.internal"),
        ],
    );
}

#[test]
fn the_apex_describes_the_zone() {
    check(
        &world().snapshot(),
        &[
            ("heddle.internal SOA", "Authority"),
            (
                "heddle.internal NS",
                "NameServer, (ns.dns 10.96.0.10), (ns.dns fd00:96::a)",
            ),
            ("ns.dns.heddle.internal A", "10.96.0.10"),
            ("ns.dns.heddle.internal AAAA", "fd00:96::a"),
            ("dns-version.heddle.internal TXT", "Version"),
            (
                "dns-version.heddle.internal A",
                "no data in heddle.internal",
            ),
            ("internal SOA", "foreign"),
            ("xheddle.internal A", "foreign"),
            ("example.com A", "foreign"),
            (". NS", "foreign"),
        ],
    );
}

#[test]
fn reverse_names_of_virtual_ips_and_headless_endpoints() {
    let v6_apex = "0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.d.f.ip6.arpa";
    check(
        &world().snapshot(),
        &[
            ("7.0.96.10.in-addr.arpa PTR", "web.shop.svc"),
            ("7.0.96.10.in-addr.arpa A", "no data in 96.10.in-addr.arpa"),
            (
                "9.0.96.10.in-addr.arpa PTR",
                "no name in 96.10.in-addr.arpa",
            ),
            (
                "07.0.96.10.in-addr.arpa PTR",
                "no name in 96.10.in-addr.arpa",
            ),
            (
                "x.7.0.96.10.in-addr.arpa PTR",
                "no name in 96.10.in-addr.arpa",
            ),
            ("0.96.10.in-addr.arpa PTR", "no data in 96.10.in-addr.arpa"),
            ("96.10.in-addr.arpa SOA", "Authority"),
            ("10.in-addr.arpa PTR", "foreign"),
            ("1.0.97.10.in-addr.arpa PTR", "foreign"),
            ("2.0.17.172.in-addr.arpa PTR", "172-17-0-2.db.data.svc"),
            ("9.0.17.172.in-addr.arpa PTR", "foreign"),
            (&format!("7.0.0.0.{v6_apex} PTR"), "web.shop.svc"),
            (
                &format!("8.0.0.0.{v6_apex} PTR"),
                &format!("no name in {v6_apex}"),
            ),
            (
                &format!("g.0.0.0.{v6_apex} PTR"),
                &format!("no name in {v6_apex}"),
            ),
            (
                &format!("{v6_apex} NS"),
                "NameServer, (ns.dns 10.96.0.10), (ns.dns fd00:96::a)",
            ),
        ],
    );
}

#[test]
fn before_the_first_sync_nothing_is_denied() {
    let mut world = World::new();
    world.freshness(Freshness::Unsynced);
    check(
        &world.snapshot(),
        &[
            ("web.shop.svc.heddle.internal A", "unknown"),
            ("heddle.internal SOA", "unknown"),
            ("7.0.96.10.in-addr.arpa PTR", "unknown"),
            ("example.com A", "foreign"),
        ],
    );
}

#[test]
fn a_stale_snapshot_is_answered_from() {
    let mut world = world();
    world.freshness(Freshness::Stale);
    check(
        &world.snapshot(),
        &[("web.shop.svc.heddle.internal A", "10.96.0.7")],
    );
}

#[test]
fn reverse_names_follow_their_endpoints() {
    let mut world = world();
    let reverse = Reverse::default();
    let at = |world: &World, address: &str| {
        let names = reverse.services_at(&world.snapshot(), address.parse().unwrap());
        let keys = names.iter().map(|(key, _)| key.to_string());
        keys.collect::<Vec<_>>()
    };
    assert_eq!(at(&world, "172.17.0.2"), ["data/db"]);
    world.endpoints("data/gone", "pg", [("172.17.0.2:1".parse().unwrap(), 1)]);
    assert_eq!(at(&world, "172.17.0.2"), ["data/db", "data/gone"]);
    world.delete("data/db");
    assert_eq!(at(&world, "172.17.0.2"), ["data/gone"]);
    assert!(at(&world, "172.17.0.3").is_empty());
    world.service(
        "data/gone",
        "{ports: [{name: pg, port: 5432}]}",
        &["10.96.0.20"],
    );
    assert!(
        at(&world, "172.17.0.2").is_empty(),
        "it is headless no more"
    );
}

#[test]
fn a_range_that_ends_inside_a_label_has_a_zone_for_each_value_of_it() {
    let name = ReverseName::parse(&[b"1", b"17", b"96", b"10", b"in-addr", b"arpa"]).unwrap();
    assert_eq!(name.cut_within(&"10.96.16.0/20".parse().unwrap()), Some(24));
    assert_eq!(name.cut_within(&"10.96.0.0/20".parse().unwrap()), None);
    assert_eq!(name.labels_of(24), 5);
}

#[test]
fn members_of_a_cluster_have_the_names_that_they_are_given_and_may_be_found_before_they_are_ready()
{
    let mut world = world();
    let spec = |more: &str| {
        format!("{{selector: app=etcd, headless: true, ports: [{{name: peer, port: 2380}}]{more}}}")
    };
    world.service("data/etcd", &spec(""), &[]);
    let member = |address: &str, weight, name| (address.parse().unwrap(), weight, Some(name));
    world.named_endpoints(
        "data/etcd",
        "peer",
        [
            member("172.17.0.5:2380", 1, "etcd-0"),
            member("[fd00:17::5]:2380", 1, "etcd-0"),
            member("172.17.0.6:2380", 0, "etcd-1"),
        ],
    );
    let no_name = "no name in heddle.internal";
    check(
        &world.snapshot(),
        &[
            ("etcd.data.svc.heddle.internal A", "172.17.0.5"),
            ("etcd-0.etcd.data.svc.heddle.internal A", "172.17.0.5"),
            ("etcd-0.etcd.data.svc.heddle.internal AAAA", "fd00:17::5"),
            ("etcd-1.etcd.data.svc.heddle.internal A", no_name),
            ("172-17-0-5.etcd.data.svc.heddle.internal A", no_name),
            (
                "_peer._tcp.etcd.data.svc.heddle.internal SRV",
                "1 2380 etcd-0.etcd.data.svc, (etcd-0.etcd.data.svc 172.17.0.5), \
                 (etcd-0.etcd.data.svc fd00:17::5)",
            ),
            ("5.0.17.172.in-addr.arpa PTR", "etcd-0.etcd.data.svc"),
        ],
    );
    world.service(
        "data/etcd",
        &spec(", dns: {publishNotReadyAddresses: true}"),
        &[],
    );
    check(
        &world.snapshot(),
        &[
            ("etcd.data.svc.heddle.internal A", "172.17.0.5, 172.17.0.6"),
            ("etcd-1.etcd.data.svc.heddle.internal A", "172.17.0.6"),
        ],
    );
}

#[test]
fn an_external_name_is_another_name_for_every_type() {
    let mut world = world();
    world.service("shop/mail", "{externalName: Mail.Example.com}", &[]);
    check(
        &world.snapshot(),
        &[
            ("mail.shop.svc.heddle.internal A", "see mail.example.com"),
            ("mail.shop.svc.heddle.internal MX", "see mail.example.com"),
            (
                "mail.shop.svc.heddle.internal CNAME",
                "alias of mail.example.com",
            ),
            ("mail.shop.svc.heddle.internal ANY", "Minimal"),
            (
                "_smtp._tcp.mail.shop.svc.heddle.internal SRV",
                "no name in heddle.internal",
            ),
        ],
    );
}

#[test]
fn nodes_have_names() {
    let mut world = world();
    world.node("n2", &["192.0.2.2", "2001:db8::2"]);
    check(
        &world.snapshot(),
        &[
            ("n2.node.heddle.internal A", "192.0.2.2"),
            ("n2.node.heddle.internal AAAA", "2001:db8::2"),
            ("n2.node.heddle.internal TXT", "no data in heddle.internal"),
            ("n3.node.heddle.internal A", "no name in heddle.internal"),
            ("node.heddle.internal A", "no data in heddle.internal"),
        ],
    );
}

#[test]
fn further_names_of_a_service_are_its_own_and_the_older_service_has_a_contested_one() {
    let mut world = world();
    let spec = |names: &str| format!("{{ports: [{{port: 80}}], dns: {{names: [{names}]}}}}");
    world.service(
        "shop/old",
        &spec("shop.example.com, api.heddle.internal"),
        &["10.96.0.30"],
    );
    world.service(
        "shop/new",
        &spec("shop.example.com, svc.heddle.internal"),
        &["10.96.0.31"],
    );
    check(
        &world.snapshot(),
        &[
            ("shop.example.com A", "10.96.0.31"),
            ("shop.example.com AAAA", "no data in shop.example.com"),
            ("www.shop.example.com A", "foreign"),
            ("example.com A", "foreign"),
            ("api.heddle.internal A", "10.96.0.30"),
            ("api.heddle.internal MX", "no data in heddle.internal"),
            ("svc.heddle.internal A", "no data in heddle.internal"),
        ],
    );
    world.delete("shop/new");
    check(&world.snapshot(), &[("shop.example.com A", "10.96.0.30")]);
    world.delete("shop/old");
    check(&world.snapshot(), &[("shop.example.com A", "foreign")]);
}
