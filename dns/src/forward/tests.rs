//! Asking upstreams: what is taken for an answer, whom to ask next, and what is remembered.

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::*;
use crate::edns::Opt;
use crate::error::Transport;
use crate::testing::{FakeUpstream, forwarder, response};
use crate::wire::HEADER;

const NAME: &str = "wWw.ExAmPlE.cOm.";
/// Limits of the group, which tests measure against.
const TRY: Duration = Duration::from_millis(1_500);
const TOTAL: Duration = Duration::from_millis(4_500);

/// How a client asks for the addresses of a name.
#[derive(Clone, Copy)]
struct Client {
    name: &'static str,
    edns: bool,
    limit: usize,
}

const PLAIN: Client = Client {
    name: NAME,
    edns: false,
    limit: 512,
};
const EDNS: Client = Client {
    edns: true,
    limit: 1232,
    ..PLAIN
};
const TCP: Client = Client {
    limit: 65_535,
    ..PLAIN
};

impl Client {
    fn named(self, name: &'static str) -> Client {
        Client { name, ..self }
    }

    fn question(&self) -> Vec<u8> {
        let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(
            Name::from_ascii(self.name).unwrap(),
            RecordType::A,
        ));
        message.to_vec().unwrap().split_off(HEADER)
    }

    fn name(&self) -> Vec<u8> {
        let question = self.question();
        question[..question.len() - 4].to_ascii_lowercase()
    }

    fn key<'n>(&self, name: &'n [u8]) -> Key<'n> {
        Key {
            name,
            kind: 1,
            flags: Flags {
                recursion_desired: true,
                ..Flags::default()
            },
        }
    }

    fn read(&self, stored: &Stored, age: Option<u32>) -> Message {
        let question = self.question();
        let asker = Asker {
            id: 4711u16.to_be_bytes(),
            question: &question,
            recursion_desired: true,
            checking_disabled: false,
            limit: self.limit,
            opt: self.edns.then(Opt::default),
        };
        let bytes = stored.to_vec(&asker, age).unwrap();
        assert!(bytes.len() <= self.limit);
        Message::from_vec(&bytes).unwrap()
    }

    async fn ask(&self, forwarder: &Arc<Forwarder>) -> Result<Message, ForwardError> {
        let name = self.name();
        let (stored, age) = forwarder.resolve(&self.key(&name)).await?;
        Ok(self.read(&stored, age))
    }

    fn cached(&self, forwarder: &Forwarder) -> Option<Message> {
        let name = self.name();
        let hit = forwarder.cached(&self.key(&name))?;
        Some(self.read(&hit.stored, hit.age))
    }
}

async fn ask(upstreams: &[&FakeUpstream], client: Client) -> Result<Message, ForwardError> {
    let addresses: Vec<SocketAddr> = upstreams.iter().map(|u| u.address).collect();
    client.ask(&forwarder(&addresses)).await
}

#[tokio::test]
async fn a_response_is_passed_on_with_the_clients_id_and_case() {
    let upstream = FakeUpstream::start(|query, _| {
        let mut message = response(query, 2);
        message.queries[0].name = query.queries[0].name.to_lowercase();
        vec![message.to_vec().unwrap()]
    })
    .await;
    let got = ask(&[&upstream], PLAIN).await.unwrap();
    assert_eq!(got.metadata.id, 4711);
    assert_eq!(got.queries[0].name.to_string(), "wWw.ExAmPlE.cOm.");
    assert_eq!(got.answers.len(), 2);
    assert!(got.edns.is_none());
    assert_eq!(upstream.asked(Transport::Tcp), 1, "its case was lost");
}

#[tokio::test]
async fn forged_late_and_foreign_responses_are_not_taken() {
    let upstream = FakeUpstream::start(|query, _| {
        let mut wrong_id = response(query, 9);
        wrong_id.metadata.id = query.metadata.id.wrapping_add(1);
        let mut wrong_name = response(query, 9);
        wrong_name.queries[0].name = Name::from_ascii("other.example.com.").unwrap();
        let mut wrong_type = response(query, 9);
        wrong_type.queries[0].query_type = RecordType::TXT;
        let mut no_response = response(query, 9);
        no_response.metadata.message_type = MessageType::Query;
        let mut broken = response(query, 9).to_vec().unwrap();
        broken.truncate(broken.len() - 1);
        let wrong = [wrong_id, wrong_name, wrong_type, no_response];
        let mut all: Vec<Vec<u8>> = wrong.iter().map(|m| m.to_vec().unwrap()).collect();
        all.extend([broken, vec![], response(query, 1).to_vec().unwrap()]);
        all
    })
    .await;
    let got = ask(&[&upstream], PLAIN).await.unwrap();
    assert_eq!(got.answers.len(), 1);
    assert_eq!(upstream.asked(Transport::Udp), 1);
}

#[tokio::test]
async fn a_datagram_from_elsewhere_is_not_taken() {
    let upstream = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let elsewhere = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let forwarder = forwarder(&[upstream.local_addr().unwrap()]);
    let forge_then_answer = async {
        let mut buffer = [0; 512];
        let (length, from) = upstream.recv_from(&mut buffer).await.unwrap();
        let query = Message::from_vec(&buffer[..length]).unwrap();
        let forged = response(&query, 9).to_vec().unwrap();
        elsewhere.send_to(&forged, from).await.unwrap();
        let honest = response(&query, 1).to_vec().unwrap();
        upstream.send_to(&honest, from).await.unwrap();
    };
    let (got, ()) = tokio::join!(PLAIN.ask(&forwarder), forge_then_answer);
    assert_eq!(got.unwrap().answers.len(), 1);
}

#[tokio::test]
async fn the_next_upstream_is_asked_and_remembered_when_the_first_is_dead() {
    let dead = std::net::UdpSocket::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let silent = FakeUpstream::silent().await;
    let good = FakeUpstream::good().await;
    let forwarder = forwarder(&[dead, silent.address, good.address]);
    for name in ["a.example.", "b.example.", "c.example."] {
        let got = PLAIN.named(name).ask(&forwarder).await.unwrap();
        assert_eq!(got.answers.len(), 1);
    }
    assert_eq!(
        silent.asked(Transport::Udp),
        1,
        "its silence is paid for once"
    );
    assert_eq!(good.asked(Transport::Udp), 3);
}

#[tokio::test]
async fn an_upstream_that_can_not_answer_is_heard_only_when_no_other_can() {
    let failing = |code| {
        FakeUpstream::start(move |query, _| {
            let mut message = response(query, 0);
            message.metadata.response_code = code;
            vec![message.to_vec().unwrap()]
        })
    };
    let servfail = failing(ResponseCode::ServFail).await;
    let refused = failing(ResponseCode::Refused).await;
    let denies = failing(ResponseCode::NXDomain).await;
    let got = ask(&[&servfail, &refused, &denies], PLAIN).await.unwrap();
    assert_eq!(got.metadata.response_code, ResponseCode::NXDomain);
    let got = ask(&[&refused, &servfail], PLAIN).await.unwrap();
    assert_eq!(got.metadata.response_code, ResponseCode::Refused);
    assert_eq!(servfail.asked(Transport::Udp), 2);
}

#[tokio::test]
async fn an_upstream_that_does_not_understand_is_not_waited_for() {
    let old = FakeUpstream::start(|query, _| {
        let mut header = query.to_vec().unwrap()[..12].to_vec();
        header[2] |= 0x80;
        header[3] |= 1;
        header[4..].fill(0);
        vec![header]
    })
    .await;
    let good = FakeUpstream::good().await;
    let started = Instant::now();
    let got = ask(&[&old, &good], EDNS).await.unwrap();
    assert_eq!(got.answers.len(), 1);
    assert!(started.elapsed() < TRY);
}

#[tokio::test]
async fn silence_of_all_is_an_error_in_bounded_time() {
    let silent = FakeUpstream::silent().await;
    let started = Instant::now();
    let error = ask(&[&silent], PLAIN).await.unwrap_err();
    assert!(matches!(error, ForwardError::NoAnswer));
    assert!(started.elapsed() < TOTAL + Duration::from_secs(1));
    assert_eq!(silent.asked(Transport::Udp), 2);
}

#[tokio::test]
async fn a_truncated_response_is_asked_for_again_by_tcp() {
    let upstream = FakeUpstream::start(|query, transport| {
        let mut message = response(query, if transport == Transport::Tcp { 60 } else { 0 });
        message.metadata.truncation = transport == Transport::Udp;
        vec![message.to_vec().unwrap()]
    })
    .await;
    let got = ask(&[&upstream], EDNS).await.unwrap();
    assert_eq!(got.answers.len(), 60);
    assert!(!got.metadata.truncation && got.edns.is_some());

    let got = ask(&[&upstream], PLAIN).await.unwrap();
    assert!(
        got.metadata.truncation,
        "60 addresses are more than 512 bytes"
    );
    assert!(got.answers.is_empty());

    let got = ask(&[&upstream], TCP).await.unwrap();
    assert_eq!(got.answers.len(), 60);
}

#[tokio::test]
async fn opt_is_each_hops_own() {
    let knows_edns = FakeUpstream::start(|query, _| {
        let mut message = response(query, 1);
        if let Some(edns) = &mut message.edns {
            assert_eq!(
                (edns.max_payload(), edns.options().as_ref().len()),
                (1232, 0)
            );
            edns.set_max_payload(8192);
        }
        vec![message.to_vec().unwrap()]
    })
    .await;
    let ignores_edns = FakeUpstream::start(|query, _| {
        let mut message = response(query, 1);
        message.edns = None;
        vec![message.to_vec().unwrap()]
    })
    .await;
    for upstream in [&knows_edns, &ignores_edns] {
        let got = ask(&[upstream], EDNS).await.unwrap();
        assert_eq!(got.edns.as_ref().unwrap().max_payload(), 1232);
        let got = ask(&[upstream], PLAIN).await.unwrap();
        assert!(got.edns.is_none());
    }
}

#[tokio::test]
async fn records_of_unknown_types_pass_whole() {
    let upstream = FakeUpstream::start(|query, _| {
        let mut message = response(query, 0);
        message.edns = None;
        let mut bytes = message.to_vec().unwrap();
        bytes[7] = 1;
        // Owner: the question; type 65,400; class IN; time 9; 5 bytes that look like nothing.
        bytes.extend([
            0xc0, 12, 0xff, 0x78, 0, 1, 0, 0, 0, 9, 0, 5, 0xc0, 0xff, 0, 1, 2,
        ]);
        vec![bytes]
    })
    .await;
    let got = ask(&[&upstream], PLAIN).await.unwrap();
    let bytes = got.to_vec().unwrap();
    assert!(bytes.ends_with(&[0, 5, 0xc0, 0xff, 0, 1, 2]));
}

#[test]
fn we_never_forward_to_ourselves() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("resolv.conf");
    std::fs::write(
        &path,
        "nameserver 127.0.0.1\nnameserver 192.0.2.1\nnameserver 192.0.2.1\n",
    )
    .unwrap();
    let resolve = |upstreams: &[Upstream], own: &str| -> Vec<String> {
        let all = resolve(upstreams, &path, &[own.parse().unwrap()]);
        all.iter().map(ToString::to_string).collect()
    };
    let explicit = Upstream::Address("127.0.0.1:53".parse().unwrap());
    assert_eq!(
        resolve(&[Upstream::System], "127.0.0.1:53"),
        ["192.0.2.1:53"]
    );
    assert_eq!(resolve(&[explicit], "0.0.0.0:53"), [""; 0]);
    assert_eq!(resolve(&[explicit], "[::]:53"), ["127.0.0.1:53"]);
    assert_eq!(resolve(&[explicit], "127.0.0.1:5300"), ["127.0.0.1:53"]);
    assert_eq!(
        resolve(&[explicit, Upstream::System], "10.96.0.10:53"),
        ["127.0.0.1:53", "192.0.2.1:53"]
    );
}

#[test]
fn a_missing_or_empty_resolv_conf_means_no_upstream() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("resolv.conf");
    assert!(resolve(&[Upstream::System], &path, &[]).is_empty());
    std::fs::write(&path, b"\xff\xfe\n").unwrap();
    assert!(resolve(&[Upstream::System], &path, &[]).is_empty());
}

#[test]
fn upstreams_are_written_as_people_write_them() {
    assert_eq!("system".parse(), Ok(Upstream::System));
    for (text, address) in [
        ("192.0.2.53", "192.0.2.53:53"),
        ("192.0.2.53:5353", "192.0.2.53:5353"),
        ("2001:db8::53", "[2001:db8::53]:53"),
        ("[2001:db8::53]:5353", "[2001:db8::53]:5353"),
    ] {
        assert_eq!(
            text.parse(),
            Ok(Upstream::Address(address.parse().unwrap()))
        );
    }
    let error = "dns.example.com"
        .parse::<Upstream>()
        .unwrap_err()
        .to_string();
    assert!(error.contains("dns.example.com"), "{error}");
}

#[tokio::test]
async fn a_question_is_asked_once_and_answered_from_memory_then_with_less_time() {
    let upstream = FakeUpstream::good().await;
    let forwarder = forwarder(&[upstream.address]);
    assert!(PLAIN.cached(&forwarder).is_none());
    PLAIN.ask(&forwarder).await.unwrap();
    let got = PLAIN.named("WWW.example.COM.").cached(&forwarder).unwrap();
    assert_eq!(got.answers.len(), 1);
    assert!(got.answers[0].ttl <= 60);
    assert_eq!(got.queries[0].name.to_string(), "WWW.example.COM.");
    assert!(!got.metadata.authoritative && got.metadata.recursion_available);
    assert_eq!(upstream.asked(Transport::Udp), 1);
}

#[tokio::test]
async fn many_who_ask_the_same_at_once_are_one_question() {
    let upstream = FakeUpstream::good().await;
    let forwarder = forwarder(&[upstream.address]);
    let other = PLAIN.named("www.example.com.");
    let (a, b, c) = tokio::join!(
        PLAIN.ask(&forwarder),
        EDNS.ask(&forwarder),
        other.ask(&forwarder)
    );
    for got in [a, b, c] {
        assert_eq!(got.unwrap().answers.len(), 1);
    }
    assert_eq!(upstream.asked(Transport::Udp), 1);
}

#[tokio::test]
async fn that_there_is_nothing_is_kept_as_long_as_the_soa_says_and_not_without_one() {
    let with_soa = |there: bool| {
        FakeUpstream::start(move |query, _| {
            let mut message = response(query, 0);
            message.metadata.response_code = ResponseCode::NXDomain;
            if there {
                let zone = Name::from_ascii("example.com.").unwrap();
                let soa =
                    hickory_proto::rr::rdata::SOA::new(zone.clone(), zone.clone(), 1, 1, 1, 1, 30);
                message.add_authority(Record::from_rdata(zone, 600, RData::SOA(soa)));
            }
            vec![message.to_vec().unwrap()]
        })
    };
    for there in [true, false] {
        let upstream = with_soa(there).await;
        let forwarder = forwarder(&[upstream.address]);
        PLAIN.ask(&forwarder).await.unwrap();
        let kept = PLAIN.cached(&forwarder);
        assert_eq!(kept.is_some(), there);
        assert!(kept.is_none_or(|kept| kept.metadata.response_code == ResponseCode::NXDomain));
    }
}

#[tokio::test]
async fn an_answer_that_lost_its_case_by_udp_is_asked_for_by_tcp() {
    let upstream = FakeUpstream::start(|query, transport| {
        let count = if transport == Transport::Tcp { 2 } else { 1 };
        let mut message = response(query, count);
        // Letters enough that no chance gives them all back.
        let upper = message.queries[0].name.to_ascii().to_ascii_uppercase();
        message.queries[0].name = Name::from_ascii(upper).unwrap();
        vec![message.to_vec().unwrap()]
    })
    .await;
    let name = "a-name-with-many-letters-in-it.example.com.";
    let got = ask(&[&upstream], PLAIN.named(name)).await.unwrap();
    assert_eq!(got.answers.len(), 2);
}

#[tokio::test]
async fn an_upstream_that_loses_the_case_is_remembered_until_it_keeps_it() {
    let keeps = Arc::new(AtomicBool::new(false));
    let kept = keeps.clone();
    let upstream = FakeUpstream::start(move |query, _| {
        let mut message = response(query, 1);
        if !kept.load(Ordering::SeqCst) {
            let upper = message.queries[0].name.to_ascii().to_ascii_uppercase();
            message.queries[0].name = Name::from_ascii(upper).unwrap();
        }
        vec![message.to_vec().unwrap()]
    })
    .await;
    let forwarder = forwarder(&[upstream.address]);
    let asked = || {
        (
            upstream.asked(Transport::Udp),
            upstream.asked(Transport::Tcp),
        )
    };
    // Letters enough that no chance gives them all back.
    let names = [
        "the-first-name-with-many-letters.example.com.",
        "another-name-with-many-letters.example.com.",
    ];
    for (name, expected) in names.into_iter().zip([(1, 1), (2, 1)]) {
        let got = PLAIN.named(name).ask(&forwarder).await.unwrap();
        assert_eq!(got.answers.len(), 1);
        assert_eq!(asked(), expected, "{name}");
    }
    let server = forwarder.default.servers()[0].clone();
    assert_eq!(server.case(), Case::Lower);
    keeps.store(true, Ordering::SeqCst);
    server.trace(b"\x010\x11a-name-of-letters\x00").await;
    assert_eq!(server.case(), Case::Mixed);
}

#[tokio::test]
async fn a_name_that_could_not_be_resolved_is_not_asked_for_again_at_once() {
    let upstream = FakeUpstream::start(|query, _| {
        let mut message = response(query, 0);
        message.metadata.response_code = ResponseCode::ServFail;
        vec![message.to_vec().unwrap()]
    })
    .await;
    let forwarder = forwarder(&[upstream.address]);
    let name = PLAIN.name();
    let key = PLAIN.key(&name);
    let before = std::time::Instant::now();
    let got = PLAIN.ask(&forwarder).await.unwrap();
    assert_eq!(got.metadata.response_code, ResponseCode::ServFail);
    assert!(forwarder.cache.failed_lately(&key, before));
    // A second is over soon on a busy machine; the time that failures in a row get is not.
    for _ in 0..8 {
        forwarder.cache.failed(&key, std::time::Instant::now());
    }
    let asked = upstream.asked(Transport::Udp);
    let error = PLAIN.ask(&forwarder).await.unwrap_err();
    assert!(matches!(error, ForwardError::FailedLately));
    assert_eq!(upstream.asked(Transport::Udp), asked);
    PLAIN
        .named("other.example.com.")
        .ask(&forwarder)
        .await
        .unwrap();
    assert!(
        upstream.asked(Transport::Udp) > asked,
        "of another name nothing is known"
    );
}

#[tokio::test]
async fn a_zone_has_upstreams_of_its_own() {
    let corporate =
        FakeUpstream::start(|query, _| vec![response(query, 2).to_vec().unwrap()]).await;
    let others = FakeUpstream::good().await;
    let options = ForwardOptions {
        upstreams: vec![Upstream::Address(others.address)],
        zones: vec![(
            "corp.example".parse().unwrap(),
            vec![Upstream::Address(corporate.address)],
        )],
        resolv_conf: "/nonexistent".into(),
        own: Vec::new(),
        cache: 1 << 20,
    };
    let forwarder = Arc::new(Forwarder::new(options, Metrics::new()));
    for (name, answers) in [
        ("corp.example.", 2),
        ("a.Corp.Example.", 2),
        ("notcorp.example.", 1),
    ] {
        let got = PLAIN.named(name).ask(&forwarder).await.unwrap();
        assert_eq!(got.answers.len(), answers, "{name}");
    }
}

#[tokio::test]
async fn the_systems_name_servers_are_read_again_when_they_change() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("resolv.conf");
    std::fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
    let options = ForwardOptions {
        upstreams: vec![Upstream::System],
        zones: Vec::new(),
        resolv_conf: path.clone(),
        own: Vec::new(),
        cache: 0,
    };
    let forwarder = Forwarder::new(options, Metrics::new());
    let servers = || -> Vec<String> {
        let servers = forwarder.default.servers();
        servers.iter().map(|s| s.address.to_string()).collect()
    };
    assert_eq!(servers(), ["192.0.2.1:53"]);
    std::fs::write(&path, "nameserver 192.0.2.2\nnameserver 192.0.2.1\n").unwrap();
    assert!(forwarder.look_again());
    assert_eq!(servers(), ["192.0.2.2:53", "192.0.2.1:53"]);
    assert!(!forwarder.look_again());
}

#[tokio::test]
async fn an_upstream_that_leads_back_here_is_not_asked() {
    let forwarder = forwarder(&["192.0.2.1:53".parse().unwrap()]);
    let mut trace = Vec::new();
    wire::push_labels(&mut trace, [&b"0"[..], forwarder.token.as_bytes()]);
    trace.push(0);
    assert!(!forwarder.is_own_trace(b"\x010\x07example\x00"));
    assert!(forwarder.is_own_trace(&trace));
    let error = PLAIN.ask(&forwarder).await.unwrap_err();
    assert!(matches!(error, ForwardError::NoUpstream));
}
