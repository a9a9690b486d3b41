use std::collections::BTreeSet;

use hickory_proto::op::{Edns, Message, MessageType, OpCode};
use hickory_proto::rr::rdata::SOA;
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::{DNSClass, Name, RData};
use model::snapshot::Freshness;

use super::*;
use crate::testing::{World, forwarder, settings, world};

const NEAR: &str = "192.168.1.9:5000";
const FAR: &str = "198.51.100.9:5000";

fn handler(world: &World) -> Handler {
    Handler::new(
        world.shared(),
        settings(),
        forwarder(&["192.0.2.1:53".parse().unwrap()]),
        Metrics::new(),
    )
}

fn client(address: &str, transport: Transport) -> Client {
    Client {
        address: address.parse().unwrap(),
        asked: "10.96.0.10".parse().unwrap(),
        transport,
    }
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn with_edns(mut message: Message, size: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(size);
    message.set_edns(edns);
    message
}

fn reply_bytes(handler: &Handler, packet: &[u8], client: Client) -> Vec<u8> {
    match handler.decide(packet, client) {
        Verdict::Reply(bytes) => bytes,
        other => panic!("a reply and not {other:?}"),
    }
}

fn reply(handler: &Handler, message: &Message, transport: Transport) -> Message {
    let packet = message.to_vec().unwrap();
    let bytes = reply_bytes(handler, &packet, client(NEAR, transport));
    Message::from_vec(&bytes).unwrap()
}

fn negative_minimum(message: &Message) -> Option<(String, u32)> {
    match message.authorities.as_slice() {
        [record] => match &record.data {
            RData::SOA(SOA { minimum, .. }) => Some((record.name.to_string(), *minimum)),
            _ => None,
        },
        _ => None,
    }
}

#[test]
fn an_answer_is_authoritative_keeps_the_case_and_may_be_kept_for_five_seconds() {
    let response = reply(
        &handler(&world()),
        &query("wEb.ShOp.sVc.HeDdLe.InTeRnAl.", RecordType::A),
        Transport::Udp,
    );
    assert_eq!(response.metadata.id, 4711);
    assert!(response.metadata.authoritative && response.metadata.recursion_desired);
    assert!(response.metadata.recursion_available && !response.metadata.truncation);
    assert_eq!(
        response.queries[0].name.to_string(),
        "wEb.ShOp.sVc.HeDdLe.InTeRnAl."
    );
    assert_eq!(response.answers.len(), 1);
    assert_eq!(response.answers[0].ttl, 5);
    assert!(response.edns.is_none());
}

#[test]
fn every_negative_answer_carries_the_soa() {
    let handler = handler(&world());
    for (name, kind, code, apex) in [
        (
            "cart.shop.svc.heddle.internal.",
            RecordType::AAAA,
            ResponseCode::NoError,
            "heddle.internal.",
        ),
        (
            "svc.heddle.internal.",
            RecordType::A,
            ResponseCode::NoError,
            "heddle.internal.",
        ),
        (
            "no.shop.svc.heddle.internal.",
            RecordType::A,
            ResponseCode::NXDomain,
            "heddle.internal.",
        ),
        (
            "99.0.96.10.in-addr.arpa.",
            RecordType::PTR,
            ResponseCode::NXDomain,
            "96.10.in-addr.arpa.",
        ),
    ] {
        let response = reply(&handler, &query(name, kind), Transport::Udp);
        assert_eq!(response.metadata.response_code, code, "{name}");
        assert!(response.metadata.authoritative, "{name}");
        assert!(response.answers.is_empty(), "{name}");
        assert_eq!(
            negative_minimum(&response),
            Some((apex.to_owned(), 5)),
            "{name}"
        );
    }
}

#[test]
fn before_the_first_sync_our_zone_is_servfail() {
    let mut world = World::new();
    world.freshness(Freshness::Unsynced);
    let question = query("web.shop.svc.heddle.internal.", RecordType::A);
    let response = reply(&handler(&world), &question, Transport::Udp);
    assert_eq!(response.metadata.response_code, ResponseCode::ServFail);
    assert!(!response.metadata.authoritative && response.authorities.is_empty());
}

#[test]
fn answers_rotate_for_each_question_by_itself() {
    let handler = handler(&world());
    let first = |kind| {
        let question = query("db.data.svc.heddle.internal.", kind);
        reply(&handler, &question, Transport::Udp).answers[0]
            .data
            .to_string()
    };
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(first(RecordType::A));
        first(RecordType::AAAA);
    }
    assert_ne!(seen[0], seen[1]);
    assert_eq!(seen[..2], seen[2..]);
}

fn headless(endpoints: u32) -> World {
    let mut world = World::new();
    world
        .service(
            "data/db",
            "{headless: true, ports: [{name: pg, port: 5432}]}",
            &[],
        )
        .many_endpoints("data/db", "pg", endpoints);
    world
}

#[test]
fn no_response_is_larger_than_the_client_takes_and_what_is_left_out_is_said() {
    let srv = || query("_pg._tcp.db.data.svc.heddle.internal.", RecordType::SRV);
    for (endpoints, question, transport, limit, truncated) in [
        (200, srv(), Transport::Udp, 512, true),
        (200, with_edns(srv(), 100), Transport::Udp, 512, true),
        (200, with_edns(srv(), 1232), Transport::Udp, 1232, true),
        (200, with_edns(srv(), 65_535), Transport::Udp, 1232, true),
        (200, srv(), Transport::Tcp, 65_535, false),
        (200, with_edns(srv(), 1232), Transport::Tcp, 65_535, false),
        (5_000, srv(), Transport::Udp, 512, true),
        (5_000, with_edns(srv(), 1232), Transport::Tcp, 65_535, true),
        (3, srv(), Transport::Udp, 512, false),
    ] {
        let handler = handler(&headless(endpoints));
        let context = format!("{endpoints} {transport} {:?}", question.edns);
        let packet = question.to_vec().unwrap();
        let bytes = reply_bytes(&handler, &packet, client(NEAR, transport));
        assert!(bytes.len() <= limit, "{context}: {} bytes", bytes.len());
        let response = Message::from_vec(&bytes).unwrap();
        assert_eq!(response.metadata.truncation, truncated, "{context}");
        assert_eq!(
            response.edns.is_some(),
            question.edns.is_some(),
            "{context}"
        );
        if !truncated {
            assert_eq!(response.answers.len(), endpoints as usize, "{context}");
            assert_eq!(response.additionals.len(), endpoints as usize, "{context}");
        } else {
            assert!(!response.answers.is_empty(), "{context}");
            assert!(
                bytes.len() > limit - 100,
                "{context}: room is used: {} bytes",
                bytes.len()
            );
        }
    }
}

#[test]
fn edns_gets_exactly_one_opt_and_a_later_version_badvers() {
    let handler = handler(&world());
    let mut question = with_edns(query("web.shop.svc.heddle.internal.", RecordType::A), 4096);
    if let Some(edns) = &mut question.edns {
        edns.set_dnssec_ok(true);
    }
    let response = reply(&handler, &question, Transport::Udp);
    let edns = response.edns.as_ref().unwrap();
    assert_eq!(
        (edns.version(), edns.max_payload(), edns.flags().dnssec_ok),
        (0, 1232, true)
    );
    assert_eq!(response.answers.len(), 1);

    if let Some(edns) = &mut question.edns {
        edns.set_version(1);
    }
    let response = reply(&handler, &question, Transport::Udp);
    // BADVERS shares its number with BADSIG, which is what it is read as.
    assert_eq!(
        u16::from(response.metadata.response_code),
        u16::from(ResponseCode::BADVERS)
    );
    assert_eq!(response.edns.as_ref().unwrap().version(), 0);
    assert!(response.answers.is_empty());
}

#[test]
fn a_cookie_is_to_be_had_without_a_question() {
    let handler = handler(&world());
    let alone = |cookie: Option<&[u8]>, version: u8| {
        let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
        let mut edns = Edns::new();
        edns.set_version(version);
        if let Some(cookie) = cookie {
            let cookie = EdnsOption::Unknown(10, cookie.to_vec());
            edns.options_mut().insert(cookie);
        }
        message.set_edns(edns);
        let response = reply(&handler, &message, Transport::Udp);
        assert!(response.queries.is_empty() && response.answers.is_empty());
        let edns = response.edns.clone().unwrap();
        let cookie = match edns.option(EdnsCode::Cookie) {
            Some(EdnsOption::Unknown(_, cookie)) => Some(cookie.clone()),
            _ => None,
        };
        (u16::from(response.metadata.response_code), cookie)
    };
    let (code, cookie) = alone(Some(b"theirs!!"), 0);
    let cookie = cookie.unwrap();
    assert_eq!(code, u16::from(ResponseCode::NoError));
    assert!(cookie.len() == 24 && cookie.starts_with(b"theirs!!"));
    let (code, again) = alone(Some(&cookie), 0);
    assert_eq!(code, u16::from(ResponseCode::NoError));
    assert_eq!(again.unwrap()[..8], cookie[..8]);
    let form_error = u16::from(ResponseCode::FormErr);
    assert_eq!(alone(None, 0), (form_error, None));
    assert_eq!(alone(Some(b"short"), 0), (form_error, None));
    assert_eq!(
        alone(Some(b"theirs!!"), 1).0,
        u16::from(ResponseCode::BADVERS)
    );
}

#[test]
fn hostile_packets_are_refused_or_not_answered() {
    let handler = handler(&world());
    let plain = || query("web.shop.svc.heddle.internal.", RecordType::A);
    let good = plain().to_vec().unwrap();
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        bytes
    };
    let kind = |kind| {
        query("web.shop.svc.heddle.internal.", kind)
            .to_vec()
            .unwrap()
    };
    let op_code = |code: u8| changed(&|b| b[2] = code << 3);
    let class = |class: u16| {
        changed(&|b| {
            let end = b.len();
            b[end - 2..].copy_from_slice(&class.to_be_bytes());
        })
    };
    let mut twice_edns = with_edns(plain(), 1232).to_vec().unwrap();
    let opt = twice_edns[twice_edns.len() - 11..].to_vec();
    twice_edns.extend(opt);
    twice_edns[11] = 2;
    let mut two_questions = plain();
    two_questions.add_query(Query::query(Name::root(), RecordType::A));
    let mut with_answer = good.clone();
    with_answer[7] = 1;
    let looping = [&good[..12], &[0xc0, 12, 0, 1, 0, 1]].concat();
    let forward_pointer = [&good[..12], &[0xc0, 60, 0, 1, 0, 1]].concat();
    let too_long = [&good[..12], &[63; 64].repeat(5), &[0, 0, 1, 0, 1]].concat();
    let reserved_label = [&good[..12], &[0x80, 0, 0, 1, 0, 1]].concat();

    let silence: [(&str, Vec<u8>); 5] = [
        ("nothing", vec![]),
        ("half a header", good[..11].to_vec()),
        ("a response", changed(&|b| b[2] |= 0x80)),
        (
            "a broken response",
            changed(&|b| {
                b[2] |= 0x80;
                b.truncate(20)
            }),
        ),
        (
            "a response without a question",
            [&good[..2], &[0x80; 10]].concat(),
        ),
    ];
    for (what, packet) in silence {
        let verdict = handler.decide(&packet, client(NEAR, Transport::Udp));
        assert!(matches!(verdict, Verdict::Silence), "{what}: {verdict:?}");
    }

    let refused: [(&str, Vec<u8>, ResponseCode); 22] = [
        (
            "no question",
            changed(&|b| {
                b[5] = 0;
                b.truncate(12)
            }),
            ResponseCode::FormErr,
        ),
        (
            "two questions",
            two_questions.to_vec().unwrap(),
            ResponseCode::FormErr,
        ),
        (
            "65,535 questions",
            changed(&|b| b[4..6].fill(0xff)),
            ResponseCode::FormErr,
        ),
        (
            "a question cut short",
            good[..20].to_vec(),
            ResponseCode::FormErr,
        ),
        ("a header alone", good[..12].to_vec(), ResponseCode::FormErr),
        (
            "a name that points to itself",
            looping,
            ResponseCode::FormErr,
        ),
        (
            "a name that points forward",
            forward_pointer,
            ResponseCode::FormErr,
        ),
        ("a name of 320 bytes", too_long, ResponseCode::FormErr),
        (
            "a reserved kind of label",
            reserved_label,
            ResponseCode::FormErr,
        ),
        ("an answer in a query", with_answer, ResponseCode::FormErr),
        (
            "65,535 additionals",
            changed(&|b| b[10..12].fill(0xff)),
            ResponseCode::FormErr,
        ),
        ("two opt records", twice_edns, ResponseCode::FormErr),
        ("inverse query", op_code(1), ResponseCode::NotImp),
        ("an unknown operation", op_code(9), ResponseCode::NotImp),
        ("notify", op_code(4), ResponseCode::Refused),
        ("update", op_code(5), ResponseCode::Refused),
        ("a transfer", kind(RecordType::AXFR), ResponseCode::Refused),
        (
            "an incremental transfer",
            kind(RecordType::IXFR),
            ResponseCode::Refused,
        ),
        ("class chaos", class(3), ResponseCode::Refused),
        ("class any", class(255), ResponseCode::Refused),
        ("type opt", kind(RecordType::OPT), ResponseCode::FormErr),
        (
            "type maila",
            kind(RecordType::Unknown(254)),
            ResponseCode::NotImp,
        ),
    ];
    for (what, packet, code) in refused {
        let bytes = reply_bytes(&handler, &packet, client(NEAR, Transport::Udp));
        let response = Message::from_vec(&bytes).unwrap();
        assert_eq!(response.metadata.response_code, code, "{what}");
        assert_eq!(
            response.metadata.message_type,
            MessageType::Response,
            "{what}"
        );
        assert_eq!(response.metadata.id, 4711, "{what}");
        assert!(response.answers.is_empty(), "{what}");
        assert!(
            bytes.len() <= packet.len().max(12),
            "{what}: nothing is amplified"
        );
    }
}

#[test]
fn chaos_is_refused_whatever_is_asked() {
    let mut question = query("version.bind.", RecordType::TXT);
    question.queries[0].set_query_class(DNSClass::CH);
    let response = reply(&handler(&world()), &question, Transport::Udp);
    assert_eq!(response.metadata.response_code, ResponseCode::Refused);
}

#[test]
fn only_neighbours_get_other_zones_but_everyone_gets_ours() {
    let handler = handler(&world());
    let foreign = query("example.com.", RecordType::A).to_vec().unwrap();
    for near in [
        NEAR,
        "127.0.0.1:1",
        "[::ffff:10.1.2.3]:1",
        "172.31.0.1:1",
        "169.254.7.7:1",
        "[fd00::1]:1",
        "[fe80::1]:1",
        "[::1]:1",
    ] {
        let verdict = handler.decide(&foreign, client(near, Transport::Udp));
        assert!(
            matches!(verdict, Verdict::Forward(_)),
            "{near}: {verdict:?}"
        );
    }
    for far in [FAR, "172.32.0.1:1", "[2001:db8::1]:1", "[::ffff:8.8.8.8]:1"] {
        let response = reply_bytes(&handler, &foreign, client(far, Transport::Udp));
        let response = Message::from_vec(&response).unwrap();
        assert_eq!(
            response.metadata.response_code,
            ResponseCode::Refused,
            "{far}"
        );
        assert!(!response.metadata.recursion_available, "{far}");
    }
    let ours = query("web.shop.svc.heddle.internal.", RecordType::A)
        .to_vec()
        .unwrap();
    let response = reply_bytes(&handler, &ours, client(FAR, Transport::Udp));
    assert_eq!(Message::from_vec(&response).unwrap().answers.len(), 1);
}

#[test]
fn a_host_asks_its_own_public_address_from_that_address() {
    let mut settings = settings();
    settings.access = Access::new(None);
    let forwarder = forwarder(&["192.0.2.1:53".parse().unwrap()]);
    let handler = Handler::new(world().shared(), settings, forwarder, Metrics::new());
    let foreign = query("example.com.", RecordType::A).to_vec().unwrap();
    let mut own = client(FAR, Transport::Udp);
    own.asked = own.address.ip();
    assert!(matches!(handler.decide(&foreign, own), Verdict::Forward(_)));
}

#[test]
fn queries_beyond_the_limit_in_flight_get_servfail_at_once() {
    let handler = handler(&world());
    let foreign = query("example.com.", RecordType::A).to_vec().unwrap();
    let near = client(NEAR, Transport::Udp);
    let pending: Vec<Verdict> = (0..crate::forward::MAX_IN_FLIGHT)
        .map(|_| handler.decide(&foreign, near))
        .collect();
    assert!(pending.iter().all(|v| matches!(v, Verdict::Forward(_))));
    let response = Message::from_vec(&reply_bytes(&handler, &foreign, near)).unwrap();
    assert_eq!(response.metadata.response_code, ResponseCode::ServFail);
    drop(pending);
    assert!(matches!(
        handler.decide(&foreign, near),
        Verdict::Forward(_)
    ));
}

#[test]
fn without_upstreams_other_zones_are_servfail() {
    let handler = Handler::new(world().shared(), settings(), forwarder(&[]), Metrics::new());
    let question = query("example.com.", RecordType::A);
    let response = reply(&handler, &question, Transport::Udp);
    assert_eq!(response.metadata.response_code, ResponseCode::ServFail);
    assert!(!response.metadata.recursion_available);
}

#[test]
fn srv_answers_bring_the_addresses_of_their_targets() {
    let question = query("_pg._tcp.db.data.svc.heddle.internal.", RecordType::SRV);
    let response = reply(&handler(&world()), &question, Transport::Tcp);
    let targets: BTreeSet<String> = response
        .answers
        .iter()
        .filter_map(|record| match &record.data {
            RData::SRV(srv) => Some(srv.target.to_string()),
            _ => None,
        })
        .collect();
    let with_address: BTreeSet<String> = response
        .additionals
        .iter()
        .map(|record| record.name.to_string())
        .collect();
    assert_eq!(targets, with_address);
    assert_eq!(targets.len(), 3);
    let target = targets.first().unwrap();
    let address = reply(
        &handler(&world()),
        &query(target, RecordType::A),
        Transport::Udp,
    );
    assert_eq!(address.answers.len(), 1, "{target} resolves");
}

#[test]
fn what_is_counted_has_bounded_labels() {
    let handler = handler(&world());
    let ours = query("web.shop.svc.heddle.internal.", RecordType::A);
    reply(&handler, &ours, Transport::Udp);
    for kind in 20_000..20_100 {
        let question = query("web.shop.svc.heddle.internal.", RecordType::Unknown(kind));
        reply(&handler, &question, Transport::Udp);
    }
    let registry = prometheus::Registry::new();
    handler.metrics().register(&registry).unwrap();
    assert_eq!(handler.metrics().queries("A", "NOERROR"), 1);
    assert_eq!(handler.metrics().queries("other", "NOERROR"), 100);
    let families = registry.gather();
    let names: Vec<&str> = families.iter().map(|f| f.name()).collect();
    assert_eq!(
        names,
        [
            "heddle_dns_cache_total",
            "heddle_dns_queries_total",
            "heddle_dns_query_duration_seconds"
        ]
    );
    assert_eq!(families[1].get_metric().len(), 2);
}
