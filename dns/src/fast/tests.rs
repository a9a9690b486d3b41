//! The fast path against the one that knows every case: the same question gets the same answer from both.

use std::cell::RefCell;
use std::net::SocketAddr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as Question};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::{Name, RecordType};
use proptest::prelude::*;

use crate::check::{Both, client, same};
use crate::core::{Core, Outcome};
use crate::error::Transport;
use crate::follow::Follower;
use crate::handler::{Client, Handler, Verdict};
use crate::metrics::Metrics;
use crate::testing::{forwarder, large_world, settings, world};

impl Both {
    fn fast(&mut self, packet: &[u8], client: Client) -> Option<Vec<u8>> {
        let mut out = vec![0; usize::from(u16::MAX)];
        match self.core.answer(packet, client, &mut out) {
            Outcome::Written(length) => Some(out[..length].to_vec()),
            _ => None,
        }
    }

    fn slow(&self, packet: &[u8], client: Client) -> Vec<u8> {
        match self.slow.decide(packet, client) {
            Verdict::Reply(bytes) => bytes,
            other => panic!("{other:?} for what the fast path answered"),
        }
    }
}

/// Names of the world and around it.
fn names() -> impl Strategy<Value = String> {
    let label = prop::sample::select(vec![
        "web",
        "cart",
        "late",
        "db",
        "gone",
        "big",
        "no",
        "_http",
        "_pg",
        "_tcp",
        "_udp",
        "shop",
        "data",
        "172-17-0-2",
        "172-17-0-3",
        "172-17-0-9",
        "fd00-17--5",
        "10-200-0-7",
        "svc",
        "dns",
        "ns",
        "dns-version",
        "node",
        "n1",
        "n2",
        "api",
        "etcd",
        "etcd-0",
        "mail",
        "a\\.b",
    ]);
    let below = prop::collection::vec(label, 0..6).prop_map(|labels| {
        let mut name = labels.join(".");
        if !name.is_empty() {
            name.push('.');
        }
        name + "heddle.internal."
    });
    let known = prop::sample::select(vec![
        "web.shop.svc.heddle.internal.",
        "_http._tcp.web.shop.svc.heddle.internal.",
        "_tcp.web.shop.svc.heddle.internal.",
        "db.data.svc.heddle.internal.",
        "_pg._tcp.db.data.svc.heddle.internal.",
        "_pg._tcp.gone.data.svc.heddle.internal.",
        "big.data.svc.heddle.internal.",
        "_pg._tcp.big.data.svc.heddle.internal.",
        "172-17-0-3.db.data.svc.heddle.internal.",
        "fd00-17--5.db.data.svc.heddle.internal.",
        "7.0.96.10.in-addr.arpa.",
        "99.0.96.10.in-addr.arpa.",
        "96.10.in-addr.arpa.",
        "2.0.17.172.in-addr.arpa.",
        "heddle.internal.",
        "dns-version.heddle.internal.",
        "ns.dns.heddle.internal.",
        "xheddle.internal.",
        "example.com.",
        "shop.example.com.",
        "api.heddle.internal.",
        "n2.node.heddle.internal.",
        "mail.shop.svc.heddle.internal.",
        "etcd-0.etcd.data.svc.heddle.internal.",
        "_peer._tcp.etcd.data.svc.heddle.internal.",
        "5.0.17.172.in-addr.arpa.",
    ])
    .prop_map(str::to_owned);
    prop_oneof![known, below]
}

fn kinds() -> impl Strategy<Value = RecordType> {
    prop_oneof![
        prop::sample::select(vec![
            RecordType::A,
            RecordType::AAAA,
            RecordType::SRV,
            RecordType::PTR,
            RecordType::TXT,
            RecordType::NS,
            RecordType::SOA,
            RecordType::ANY,
            RecordType::CNAME,
            RecordType::AXFR,
        ]),
        any::<u16>().prop_map(RecordType::from),
    ]
}

prop_compose! {
    fn questions()(
        name in names(),
        upper in any::<u64>(),
        kind in kinds(),
        edns in prop::option::of((any::<u16>(), any::<bool>(), any::<bool>(), any::<bool>())),
        flags in any::<(bool, bool)>(),
    ) -> Vec<u8> {
        let name: String = name
            .chars()
            .enumerate()
            .map(|(at, c)| if upper >> (at % 64) & 1 == 1 { c.to_ascii_uppercase() } else { c })
            .collect();
        let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = flags.0;
        message.metadata.checking_disabled = flags.1;
        message.add_query(Question::query(Name::from_ascii(name).unwrap(), kind));
        if let Some((size, dnssec_ok, cookie, nsid)) = edns {
            let mut edns = Edns::new();
            edns.set_max_payload(size);
            edns.set_dnssec_ok(dnssec_ok);
            if cookie {
                edns.options_mut().insert(EdnsOption::Unknown(10, vec![7; 8]));
            }
            if nsid {
                edns.options_mut().insert(EdnsOption::Unknown(3, vec![]));
            }
            message.set_edns(edns);
        }
        message.to_vec().unwrap()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn both_paths_say_the_same(packet in questions(), tcp in any::<bool>(), single in any::<bool>()) {
        thread_local! {
            static BOTH: [RefCell<Both>; 2] =
                [false, true].map(|single| RefCell::new(Both::new(&large_world(), single)));
        }
        let transport = if tcp { Transport::Tcp } else { Transport::Udp };
        let size = Message::from_vec(&packet).unwrap().edns.map(|edns| edns.max_payload());
        let limit = crate::response::limit(transport, size).into();
        let both = BOTH.with(|both| {
            let mut both = both[usize::from(single)].borrow_mut();
            let fast = both.fast(&packet, client(transport))?;
            Some((fast, both.slow(&packet, client(transport))))
        });
        if let Some((fast, slow)) = both {
            same(&fast, &slow, limit, single);
        }
    }
}

fn ask(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.add_query(Question::query(Name::from_ascii(name).unwrap(), kind));
    message.to_vec().unwrap()
}

#[test]
fn the_names_of_the_zone_are_answered_by_the_fast_path() {
    let mut both = Both::new(&large_world(), false);
    for (name, kind) in [
        ("web.shop.svc.heddle.internal.", RecordType::A),
        ("web.shop.svc.heddle.internal.", RecordType::AAAA),
        ("web.shop.svc.heddle.internal.", RecordType::MX),
        ("web.shop.svc.heddle.internal.", RecordType::ANY),
        ("_http._tcp.web.shop.svc.heddle.internal.", RecordType::SRV),
        ("_tcp.web.shop.svc.heddle.internal.", RecordType::A),
        ("db.data.svc.heddle.internal.", RecordType::A),
        ("172-17-0-2.db.data.svc.heddle.internal.", RecordType::A),
        ("7.0.96.10.in-addr.arpa.", RecordType::PTR),
        ("2.0.17.172.in-addr.arpa.", RecordType::PTR),
        ("dns-version.heddle.internal.", RecordType::TXT),
        ("heddle.internal.", RecordType::SOA),
        ("shop.svc.heddle.internal.", RecordType::A),
        ("nobody.shop.svc.heddle.internal.", RecordType::A),
    ] {
        let packet = ask(name, kind);
        assert!(
            both.fast(&packet, client(Transport::Udp)).is_some(),
            "{name} {kind}"
        );
    }
}

#[test]
fn answers_rotate_and_a_single_one_takes_turns() {
    for single in [false, true] {
        let mut both = Both::new(&large_world(), single);
        let packet = ask("db.data.svc.heddle.internal.", RecordType::A);
        let mut first: Vec<String> = Vec::new();
        for _ in 0..4 {
            let bytes = both.fast(&packet, client(Transport::Udp)).unwrap();
            let message = Message::from_vec(&bytes).unwrap();
            assert_eq!(message.answers.len(), if single { 1 } else { 2 });
            first.push(message.answers[0].data.to_string());
        }
        assert_ne!(first[0], first[1]);
        assert_eq!(first[..2], first[2..]);
    }
}

#[test]
fn a_table_that_is_behind_is_not_answered_from() {
    let mut world = world();
    let shared = world.shared();
    let handler = Handler::new(shared.clone(), settings(), forwarder(&[]), Metrics::new());
    let (follower, mut updater) = Follower::new(shared.clone(), Vec::new(), Default::default(), 7);
    let mut both = Both {
        core: Core::new(handler.into(), follower.clone()),
        slow: Both::new(&world, false).slow,
    };
    let packet = ask("new.shop.svc.heddle.internal.", RecordType::A);
    assert!(both.fast(&packet, client(Transport::Udp)).is_some());
    world.service(
        "shop/new",
        "{ports: [{name: http, port: 80}]}",
        &["10.96.0.77"],
    );
    shared.store(world.snapshot().into());
    assert!(both.fast(&packet, client(Transport::Udp)).is_none());
    let table = updater.update(&world.snapshot(), Some(&["shop/new".parse().unwrap()]));
    follower.tables().store(table.into());
    let bytes = both.fast(&packet, client(Transport::Udp)).unwrap();
    let message = Message::from_vec(&bytes).unwrap();
    assert_eq!(message.answers[0].data.to_string(), "10.96.0.77");
}

#[test]
fn client_addresses_of_both_families_are_taken() {
    let mut both = Both::new(&world(), false);
    let packet = ask("web.shop.svc.heddle.internal.", RecordType::A);
    for address in ["[::1]:9", "[::ffff:127.0.0.1]:9", "198.51.100.7:9"] {
        let address: SocketAddr = address.parse().unwrap();
        let client = Client {
            address,
            ..client(Transport::Udp)
        };
        let fast = both.fast(&packet, client).unwrap();
        same(&fast, &both.slow(&packet, client), 512, false);
    }
}
