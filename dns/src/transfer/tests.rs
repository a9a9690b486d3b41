use std::collections::BTreeSet;

use hickory_proto::op::{Message, MessageType, OpCode};
use hickory_proto::rr::rdata::SOA;
use hickory_proto::rr::{DNSClass, RecordType};
use model::snapshot::Freshness;

use super::*;
use crate::answer::Answer;
use crate::handler::Verdict;
use crate::metrics::Metrics;
use crate::reverse::Reverse;
use crate::table::Updater;
use crate::testing::{World, forwarder, settings, world};
use crate::zone::Zone;

const SECONDARY: &str = "192.0.2.53:5000";
const ZONE: &str = "heddle.internal.";

fn handler(world: &World) -> Handler {
    let mut settings = settings();
    settings.transfer_to = vec!["192.0.2.53/32".parse().unwrap()];
    Handler::new(world.shared(), settings, forwarder(&[]), Metrics::new())
}

fn client(address: &str, transport: Transport) -> Client {
    Client {
        address: address.parse().unwrap(),
        asked: "10.96.0.10".parse().unwrap(),
        transport,
    }
}

fn query(zone: &str, kind: RecordType) -> Message {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(zone).unwrap(), kind));
    message
}

fn verdict(handler: &Handler, message: &Message, client: Client) -> Verdict {
    handler.decide(&message.to_vec().unwrap(), client)
}

fn transfer(handler: &Handler, zone: &str) -> Box<Transfer> {
    let message = query(zone, RecordType::AXFR);
    match verdict(handler, &message, client(SECONDARY, Transport::Tcp)) {
        Verdict::Transfer(transfer) => transfer,
        other => panic!("{zone}: {other:?}"),
    }
}

fn messages(handler: &Handler, transfer: &mut Transfer) -> Vec<Message> {
    let next = || {
        let bytes = transfer.next(handler)?;
        Some(Message::from_vec(&bytes).unwrap())
    };
    std::iter::from_fn(next).collect()
}

/// All records of a zone but for its SOA, which stands at both ends.
fn records(handler: &Handler, zone: &str) -> Vec<Record> {
    let messages = messages(handler, &mut transfer(handler, zone));
    let mut all: Vec<Record> = messages.into_iter().flat_map(|m| m.answers).collect();
    let is_soa = |record: Option<Record>| matches!(record.unwrap().data, RData::SOA(_));
    assert!(is_soa(all.pop()));
    assert!(is_soa(Some(all.remove(0))));
    all
}

fn text(record: &Record) -> String {
    format!("{} {} {}", record.name, record.record_type(), record.data)
}

fn texts(records: &[Record]) -> BTreeSet<String> {
    let all: BTreeSet<String> = records.iter().map(text).collect();
    assert_eq!(all.len(), records.len(), "a record comes twice");
    all
}

/// A mesh with everything that a zone can have.
fn everything() -> World {
    let mut world = world();
    let names = "{ports: [{port: 80}], dns: {names: [shop.example.com, api.heddle.internal, svc.heddle.internal]}}";
    let members = "{selector: a=b, headless: true, ports: [{name: peer, port: 2380}, {name: client, port: 2379}]}";
    world
        .node("n2", &["192.0.2.2", "2001:db8::2"])
        .service(
            "shop/mail",
            "{externalName: mail.example.com, dns: {names: [mail.heddle.internal]}}",
            &[],
        )
        .service("shop/named", names, &["10.96.0.30"])
        .service("shop/late-named", names, &["10.96.0.31"])
        .service("data/etcd", members, &[])
        .named_endpoints(
            "data/etcd",
            "peer",
            [
                ("172.17.0.5:2380".parse().unwrap(), 1, Some("etcd-0")),
                ("[fd00:17::5]:2380".parse().unwrap(), 1, Some("etcd-0")),
                ("172.17.0.6:2380".parse().unwrap(), 0, Some("etcd-1")),
                ("10.96.9.9:2380".parse().unwrap(), 1, Some("etcd-2")),
            ],
        );
    world
}

#[test]
fn a_transfer_has_what_questions_find_and_nothing_else() {
    let world = everything();
    let handler = handler(&world);
    let snapshot = world.snapshot();
    let (reverse, name_servers) = (Reverse::default(), &handler.settings().name_servers);
    let zone = Zone {
        snapshot: &snapshot,
        reverse: &reverse,
        name_servers,
    };
    // Every name that questions are answered about without a search, and each of its records.
    let serials = Arc::<serial::Serials>::default();
    let table = Updater::new(name_servers.clone(), serials, 1).update(&snapshot, None);
    let names = Names::new(&snapshot.mesh.zone, 7).unwrap();
    let v6 = "0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.d.f.ip6.arpa.";
    for (apex, least) in [(ZONE, 25), ("96.10.in-addr.arpa.", 5), (v6, 2)] {
        let apex_name = Name::from_ascii(apex).unwrap();
        let mut found = BTreeSet::new();
        let owners = table.index.entries().map(|entry| entry.owner().to_vec());
        let owners = owners.map(|wire| Name::from_labels(crate::wire::labels(&wire)).unwrap());
        for owner in owners.chain([apex_name.clone()]) {
            if !apex_name.zone_of(&owner) {
                continue;
            }
            let labels: Vec<&[u8]> = owner.iter().collect();
            for kind in ["A", "AAAA", "SRV", "PTR", "CNAME", "NS", "TXT", "MX"] {
                let answers = match zone.answer(&labels, kind.parse().unwrap()) {
                    Answer::Found { answers, .. } => answers,
                    _ => continue,
                };
                for data in answers {
                    found.insert(text(&names.record(owner.clone(), &data).unwrap()));
                }
            }
        }
        let given = texts(&records(&handler, apex));
        assert_eq!(given, found, "{apex}");
        assert!(given.len() >= least, "{apex}: {given:?}");
    }
    let given = texts(&records(&handler, ZONE));
    for expected in [
        "heddle.internal. NS ns.dns.heddle.internal.",
        "ns.dns.heddle.internal. A 10.96.0.10",
        "n2.node.heddle.internal. AAAA 2001:db8::2",
        "mail.shop.svc.heddle.internal. CNAME mail.example.com.",
        "mail.heddle.internal. CNAME mail.example.com.",
        "_http._tcp.web.shop.svc.heddle.internal. SRV 0 100 80 web.shop.svc.heddle.internal.",
        "etcd-0.etcd.data.svc.heddle.internal. A 172.17.0.5",
    ] {
        assert!(given.contains(expected), "{expected} is not in {given:#?}");
    }
}

#[test]
fn a_long_zone_goes_in_many_messages_under_one_serial_though_it_changes_meanwhile() {
    let mut world = World::new();
    world
        .service("a/first", "{ports: [{port: 80}]}", &["10.96.0.3"])
        .service(
            "big/huge",
            "{headless: true, ports: [{name: pg, port: 5432}]}",
            &[],
        )
        .many_endpoints("big/huge", "pg", 5_000)
        .service("z/last", "{ports: [{port: 80}]}", &["10.96.0.4"]);
    let handler = handler(&world);
    let mut transfer = transfer(&handler, ZONE);
    let first = Message::from_vec(&transfer.next(&handler).unwrap()).unwrap();
    world.delete("z/last");
    handler.snapshots().store(world.snapshot().into());
    let rest = messages(&handler, &mut transfer);
    assert!(rest.len() > 20, "{} messages", rest.len());
    assert_eq!(first.queries.len(), 1);
    let all: Vec<&Message> = [&first].into_iter().chain(&rest).collect();
    let serial = |record: &Record| match &record.data {
        RData::SOA(SOA { serial, .. }) => Some(*serial),
        _ => None,
    };
    let records: Vec<&Record> = all.iter().flat_map(|m| &m.answers).collect();
    let serials: Vec<u32> = records.iter().filter_map(|r| serial(r)).collect();
    assert_eq!(serials.len(), 2);
    assert_eq!(serials[0], serials[1]);
    assert_eq!(serial(records[0]), serial(records[records.len() - 1]));
    // A, its endpoint's A and its SRV each.
    assert!(records.len() > 15_000, "{}", records.len());
    assert!(
        records
            .iter()
            .any(|r| r.name.to_string().starts_with("last.z."))
    );
    for message in all {
        assert_eq!(message.metadata.id, 4711);
        assert!(message.metadata.authoritative && !message.metadata.truncation);
        assert_eq!(message.metadata.response_code, ResponseCode::NoError);
        assert!(!message.answers.is_empty());
    }
    let now = transfer_serial(&handler);
    assert!(now > serials[0], "what changed has another serial");
}

fn transfer_serial(handler: &Handler) -> u32 {
    let first = transfer(handler, ZONE).next(handler).unwrap();
    match &Message::from_vec(&first).unwrap().answers[0].data {
        RData::SOA(soa) => soa.serial,
        other => panic!("{other}"),
    }
}

fn code(verdict: Verdict) -> ResponseCode {
    match verdict {
        Verdict::Reply(bytes) => {
            let message = Message::from_vec(&bytes).unwrap();
            assert!(message.answers.is_empty());
            message.metadata.response_code
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn only_those_listed_get_a_zone_and_only_by_connections() {
    let handler = handler(&everything());
    let ask = |zone: &str, from: &str, transport| {
        let message = query(zone, RecordType::AXFR);
        verdict(&handler, &message, client(from, transport))
    };
    let refused = ResponseCode::Refused;
    for far in ["192.0.2.54:5000", "127.0.0.1:5000", "[2001:db8::1]:5000"] {
        assert_eq!(code(ask(ZONE, far, Transport::Tcp)), refused, "{far}");
    }
    assert_eq!(code(ask(ZONE, SECONDARY, Transport::Udp)), refused);
    for mine in [SECONDARY, "[::ffff:192.0.2.53]:5000"] {
        for transport in [Transport::Tcp, Transport::Tls] {
            let verdict = ask("HEDDLE.internal.", mine, transport);
            assert!(matches!(verdict, Verdict::Transfer(_)), "{verdict:?}");
        }
    }
    for no_zone in [
        "internal.",
        "svc.heddle.internal.",
        "example.com.",
        ".",
        "shop.example.com.",
        "0.96.10.in-addr.arpa.",
        "10.in-addr.arpa.",
    ] {
        let verdict = ask(no_zone, SECONDARY, Transport::Tcp);
        assert_eq!(code(verdict), ResponseCode::NotAuth, "{no_zone}");
    }
    let mut chaos = query(ZONE, RecordType::AXFR);
    chaos.queries[0].set_query_class(DNSClass::CH);
    let verdict = verdict(&handler, &chaos, client(SECONDARY, Transport::Tcp));
    assert_eq!(code(verdict), refused);
}

#[test]
fn before_the_first_sync_there_is_no_zone_to_copy() {
    let mut world = World::new();
    world.freshness(Freshness::Unsynced);
    let handler = handler(&world);
    let message = query(ZONE, RecordType::AXFR);
    let verdict = verdict(&handler, &message, client(SECONDARY, Transport::Tcp));
    assert_eq!(code(verdict), ResponseCode::ServFail);
}

#[test]
fn transfers_beyond_the_limit_are_put_off() {
    let handler = handler(&world());
    let ask = || {
        let message = query(ZONE, RecordType::AXFR);
        verdict(&handler, &message, client(SECONDARY, Transport::Tcp))
    };
    let mut held: Vec<Verdict> = (0..MAX_TRANSFERS).map(|_| ask()).collect();
    assert!(held.iter().all(|v| matches!(v, Verdict::Transfer(_))));
    assert_eq!(code(ask()), ResponseCode::ServFail);
    held.pop();
    assert!(matches!(ask(), Verdict::Transfer(_)));
}

#[test]
fn an_incremental_transfer_is_a_whole_one_or_says_that_nothing_is_new() {
    let handler = handler(&world());
    let serial = transfer_serial(&handler);
    let ask = |theirs: u32, transport| {
        let mut message = query(ZONE, RecordType::IXFR);
        let name = Name::from_ascii(ZONE).unwrap();
        let soa = SOA::new(name.clone(), name.clone(), theirs, 1, 1, 1, 1);
        message.add_authority(Record::from_rdata(name, 0, RData::SOA(soa)));
        verdict(&handler, &message, client(SECONDARY, transport))
    };
    let alone = |verdict: Verdict| match verdict {
        Verdict::Reply(bytes) => {
            let message = Message::from_vec(&bytes).unwrap();
            let [record] = &message.answers[..] else {
                panic!("{message:?}")
            };
            matches!(&record.data, RData::SOA(soa) if soa.serial == serial)
        }
        _ => false,
    };
    assert!(alone(ask(serial, Transport::Tcp)));
    assert!(alone(ask(serial.wrapping_add(1), Transport::Tcp)));
    assert!(alone(ask(1, Transport::Udp)), "asks again by a connection");
    let whole = ask(serial.wrapping_sub(1), Transport::Tcp);
    assert!(matches!(whole, Verdict::Transfer(_)), "{whole:?}");
    let without = verdict(
        &handler,
        &query(ZONE, RecordType::IXFR),
        client(SECONDARY, Transport::Tcp),
    );
    assert!(matches!(without, Verdict::Transfer(_)), "{without:?}");
}
