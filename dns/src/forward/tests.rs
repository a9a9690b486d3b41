use hickory_proto::op::{Edns, Message, MessageType};
use hickory_proto::rr::{Name, RecordType};
use proptest::prelude::*;

use super::*;
use crate::request::Packet;
use crate::testing::{FakeUpstream, response};

fn request(edns: Option<u16>) -> Request {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(
        Name::from_ascii("wWw.ExAmPlE.cOm.").unwrap(),
        RecordType::A,
    ));
    if let Some(size) = edns {
        let mut edns = Edns::new();
        edns.set_max_payload(size);
        message.set_edns(edns);
    }
    match Packet::read(&message.to_vec().unwrap()) {
        Packet::Request(request) => request,
        other => panic!("a request and not {other:?}"),
    }
}

async fn ask(
    upstreams: &[&FakeUpstream],
    request: &Request,
    transport: Transport,
) -> Result<Message, ForwardError> {
    let forwarder = Forwarder::new(upstreams.iter().map(|u| u.address).collect());
    ask_by(&forwarder, request, transport).await
}

async fn ask_by(
    forwarder: &Forwarder,
    request: &Request,
    transport: Transport,
) -> Result<Message, ForwardError> {
    let limit = response::limit(transport, request.edns);
    let query = request.query.as_ref().unwrap();
    let (_, bytes) = forwarder.ask(request, query, transport, limit).await?;
    assert!(bytes.len() <= usize::from(limit));
    Ok(Message::from_vec(&bytes).unwrap())
}

#[tokio::test]
async fn a_response_is_passed_on_with_the_clients_id_and_case() {
    let upstream = FakeUpstream::start(|query, _| {
        let mut message = response(query, 2);
        message.queries[0].name = query.queries[0].name.to_lowercase();
        vec![message.to_vec().unwrap()]
    })
    .await;
    let got = ask(&[&upstream], &request(None), Transport::Udp)
        .await
        .unwrap();
    assert_eq!(got.metadata.id, 4711);
    assert_eq!(got.queries[0].name.to_string(), "wWw.ExAmPlE.cOm.");
    assert_eq!(got.answers.len(), 2);
    assert!(got.edns.is_none());
    assert_eq!(upstream.asked(Transport::Tcp), 0);
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
    let got = ask(&[&upstream], &request(None), Transport::Udp)
        .await
        .unwrap();
    assert_eq!(got.answers.len(), 1);
    assert_eq!(upstream.asked(Transport::Udp), 1);
}

#[tokio::test]
async fn a_datagram_from_elsewhere_is_not_taken() {
    let upstream = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let elsewhere = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let forwarder = Forwarder::new(vec![upstream.local_addr().unwrap()]);
    let forge_then_answer = async {
        let mut buffer = [0; 512];
        let (length, from) = upstream.recv_from(&mut buffer).await.unwrap();
        let query = Message::from_vec(&buffer[..length]).unwrap();
        let forged = response(&query, 9).to_vec().unwrap();
        elsewhere.send_to(&forged, from).await.unwrap();
        let honest = response(&query, 1).to_vec().unwrap();
        upstream.send_to(&honest, from).await.unwrap();
    };
    let request = request(None);
    let ask = ask_by(&forwarder, &request, Transport::Udp);
    let (got, ()) = tokio::join!(ask, forge_then_answer);
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
    let forwarder = Forwarder::new(vec![dead, silent.address, good.address]);
    for _ in 0..3 {
        let got = ask_by(&forwarder, &request(None), Transport::Udp)
            .await
            .unwrap();
        assert_eq!(got.answers.len(), 1);
    }
    assert_eq!(silent.asked(Transport::Udp), 1, "its time-out is paid once");
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
    let got = ask(
        &[&servfail, &refused, &denies],
        &request(None),
        Transport::Udp,
    )
    .await
    .unwrap();
    assert_eq!(got.metadata.response_code, ResponseCode::NXDomain);
    let got = ask(&[&refused, &servfail], &request(None), Transport::Udp)
        .await
        .unwrap();
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
    let got = ask(&[&old, &good], &request(Some(1232)), Transport::Udp)
        .await
        .unwrap();
    assert_eq!(got.answers.len(), 1);
    assert!(started.elapsed() < TRY);
}

#[tokio::test]
async fn silence_of_all_is_an_error_in_bounded_time() {
    let silent = FakeUpstream::silent().await;
    let started = Instant::now();
    let error = ask(&[&silent], &request(None), Transport::Udp)
        .await
        .unwrap_err();
    assert!(matches!(error, ForwardError::NoAnswer));
    assert!(started.elapsed() < TOTAL + Duration::from_secs(1));
    assert_eq!(silent.asked(Transport::Udp), ROUNDS);
}

#[tokio::test]
async fn a_truncated_response_is_asked_for_again_by_tcp() {
    let upstream = FakeUpstream::start(|query, transport| {
        let mut message = response(query, if transport == Transport::Tcp { 60 } else { 0 });
        message.metadata.truncation = transport == Transport::Udp;
        vec![message.to_vec().unwrap()]
    })
    .await;
    let got = ask(&[&upstream], &request(Some(1232)), Transport::Udp)
        .await
        .unwrap();
    assert_eq!(got.answers.len(), 60);
    assert!(!got.metadata.truncation && got.edns.is_some());

    let got = ask(&[&upstream], &request(None), Transport::Udp)
        .await
        .unwrap();
    assert!(
        got.metadata.truncation,
        "60 addresses are more than 512 bytes"
    );
    assert!(got.answers.is_empty());

    let got = ask(&[&upstream], &request(None), Transport::Tcp)
        .await
        .unwrap();
    assert_eq!(got.answers.len(), 60);
    assert_eq!(
        upstream.asked(Transport::Udp),
        2,
        "a tcp client's query goes by tcp"
    );
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
        let got = ask(&[upstream], &request(Some(4096)), Transport::Udp)
            .await
            .unwrap();
        assert_eq!(got.edns.as_ref().unwrap().max_payload(), 1232);
        let got = ask(&[upstream], &request(None), Transport::Udp)
            .await
            .unwrap();
        assert!(got.edns.is_none());
    }
}

#[tokio::test]
async fn records_of_unknown_types_pass_whole() {
    let upstream = FakeUpstream::start(|query, _| {
        let mut bytes = response(query, 0).to_vec().unwrap();
        bytes[7] = 1;
        // Owner: the question; type 65,400; class IN; time 9; 5 bytes that look like nothing.
        bytes.extend([
            0xc0, 12, 0xff, 0x78, 0, 1, 0, 0, 0, 9, 0, 5, 0xc0, 0xff, 0, 1, 2,
        ]);
        vec![bytes]
    })
    .await;
    let request = request(None);
    let forwarder = Forwarder::new(vec![upstream.address]);
    let query = request.query.as_ref().unwrap();
    let (_, bytes) = forwarder
        .ask(&request, query, Transport::Udp, 512)
        .await
        .unwrap();
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

proptest! {
    #[test]
    fn any_response_is_read_without_a_crash_and_made_ours_within_the_limit(
        mut tail in prop::collection::vec(any::<u8>(), 0..900),
        counts in prop::array::uniform6(0u8..4),
        edns in any::<bool>(),
    ) {
        let request = request(edns.then_some(1232));
        let asked = Asked::new(&request, request.query.as_ref().unwrap()).unwrap();
        let mut bytes = asked.bytes[..wire::HEADER + asked.question].to_vec();
        bytes[2] |= 0x80;
        for (slot, count) in bytes[6..12].chunks_mut(2).zip(counts) {
            slot[1] = count;
        }
        // Zeros are what makes random bytes into names and lengths that fit.
        for byte in tail.iter_mut().filter(|b| **b > 40) {
            *byte = 0;
        }
        bytes.extend(tail);
        if let Some(response) = wire::Response::read(bytes, &asked) {
            let ours = response.into_ours(&request, &asked, 512);
            prop_assert!(ours.len() <= 512);
            prop_assert_eq!(&ours[..2], &4711u16.to_be_bytes());
        }
    }
}
