mod tls;

use std::process::Command;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::testing::{FakeUpstream, World, world};

const PATIENCE: Duration = Duration::from_secs(10);

struct Running {
    addresses: Vec<SocketAddr>,
    snapshot: Arc<ArcSwap<Snapshot>>,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    fn start(world: &World, listen: &[&str], upstreams: &[&FakeUpstream]) -> Running {
        let snapshot = world.shared();
        let server = Server::bind(Options {
            listen: listen
                .iter()
                .map(|address| address.parse().unwrap())
                .collect(),
            upstreams: upstreams
                .iter()
                .map(|u| Upstream::Address(u.address))
                .collect(),
            snapshot: snapshot.clone(),
            ..Options::default()
        })
        .unwrap();
        let addresses = server.addresses();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(server.run(shutdown.clone()));
        Running {
            addresses,
            snapshot,
            shutdown,
            task,
        }
    }

    fn one(world: &World) -> Running {
        Running::start(world, &["127.0.0.1:0"], &[])
    }

    fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    async fn stop(self) {
        self.shutdown.cancel();
        timeout(PATIENCE, self.task).await.unwrap().unwrap();
    }

    fn dig(&self, arguments: &str) -> Option<String> {
        let address = self.address();
        let output = Command::new("dig")
            .args([
                "-p",
                &address.port().to_string(),
                &format!("@{}", address.ip()),
            ])
            .args(["+tries=1", "+time=5", "+nocookie"])
            .args(arguments.split(' '))
            .output();
        match output {
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                assert!(output.status.success(), "dig {arguments}: {text}");
                Some(text)
            }
            Err(error) => {
                assert!(std::env::var_os("CI").is_none(), "dig is needed: {error}");
                eprintln!("SKIPPED: no dig on this machine: {error}");
                None
            }
        }
    }
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

/// Asks by a connected socket, which takes replies from the very address that was asked only.
async fn by_udp(server: SocketAddr, query: &Message) -> Message {
    let any = if server.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let socket = UdpSocket::bind(any).await.unwrap();
    socket.connect(server).await.unwrap();
    socket.send(&query.to_vec().unwrap()).await.unwrap();
    let mut buffer = [0; 4096];
    let length = timeout(PATIENCE, socket.recv(&mut buffer))
        .await
        .unwrap_or_else(|_| panic!("no reply from {server}"))
        .unwrap();
    let response = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!(response.metadata.id, query.metadata.id);
    response
}

async fn receive(stream: &mut TcpStream) -> Message {
    let read = async {
        let length = stream.read_u16().await.unwrap();
        let mut bytes = vec![0; length.into()];
        stream.read_exact(&mut bytes).await.unwrap();
        Message::from_vec(&bytes).unwrap()
    };
    timeout(PATIENCE, read).await.unwrap()
}

fn framed(query: &Message) -> Vec<u8> {
    let bytes = query.to_vec().unwrap();
    [
        &u16::try_from(bytes.len()).unwrap().to_be_bytes(),
        bytes.as_slice(),
    ]
    .concat()
}

fn code(message: &Message) -> ResponseCode {
    message.metadata.response_code
}

#[tokio::test]
async fn a_name_that_was_denied_resolves_once_its_service_exists() {
    let mut world = world();
    let server = Running::one(&world);
    let question = query("new.shop.svc.heddle.internal.", RecordType::A);
    let denied = by_udp(server.address(), &question).await;
    assert_eq!(code(&denied), ResponseCode::NXDomain);
    world.service(
        "shop/new",
        "{ports: [{name: http, port: 80}]}",
        &["10.96.0.77"],
    );
    server.snapshot.store(Arc::new(world.snapshot()));
    let found = by_udp(server.address(), &question).await;
    assert_eq!(found.answers[0].data.to_string(), "10.96.0.77");
    server.stop().await;
}

#[tokio::test]
async fn queries_sent_in_one_go_over_tcp_and_in_single_bytes_are_all_answered() {
    let server = Running::one(&world());
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let first = query("web.shop.svc.heddle.internal.", RecordType::A);
    let second = query("web.shop.svc.heddle.internal.", RecordType::AAAA);
    stream
        .write_all(&[framed(&first), framed(&second)].concat())
        .await
        .unwrap();
    assert_eq!(receive(&mut stream).await.metadata.id, first.metadata.id);
    assert_eq!(receive(&mut stream).await.metadata.id, second.metadata.id);
    for byte in framed(&first) {
        stream.write_all(&[byte]).await.unwrap();
    }
    assert_eq!(receive(&mut stream).await.answers.len(), 1);
    server.stop().await;
}

#[tokio::test]
async fn answers_on_a_connection_overtake_those_that_wait_for_upstreams_and_only_so_many_wait() {
    let silent = FakeUpstream::silent().await;
    let server = Running::start(&world(), &["127.0.0.1:0"], &[&silent]);
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    let other = |index: usize| query(&format!("name{index}.example.com."), RecordType::A);
    let ours =
        [RecordType::A, RecordType::AAAA].map(|kind| query("web.shop.svc.heddle.internal.", kind));
    let mut bytes: Vec<u8> = (0..MAX_PIPELINED).flat_map(|n| framed(&other(n))).collect();
    bytes.extend(framed(&ours[0]));
    bytes.extend(framed(&other(MAX_PIPELINED)));
    bytes.extend(framed(&ours[1]));
    stream.write_all(&bytes).await.unwrap();
    let first = receive(&mut stream).await;
    assert_eq!(first.metadata.id, ours[0].metadata.id, "it overtakes");
    let second = receive(&mut stream).await;
    assert_eq!(
        code(&second),
        ResponseCode::ServFail,
        "the last is not read yet"
    );
    let mut failed = 1;
    loop {
        let next = receive(&mut stream).await;
        if next.metadata.id == ours[1].metadata.id {
            assert_eq!(next.answers.len(), 1);
            break;
        }
        assert_eq!(code(&next), ResponseCode::ServFail);
        failed += 1;
    }
    assert!(
        failed <= MAX_PIPELINED,
        "it waited for room and not for all"
    );
    server.stop().await;
}

#[tokio::test]
async fn the_reply_leaves_from_the_address_that_was_asked() {
    let server = Running::start(&world(), &["0.0.0.0:0", "[::]:0"], &[]);
    let question = query("web.shop.svc.heddle.internal.", RecordType::A);
    let mut asked: Vec<SocketAddr> = ["127.0.0.1", "127.0.0.2", "127.8.9.10"]
        .iter()
        .map(|ip| SocketAddr::new(ip.parse().unwrap(), server.addresses[0].port()))
        .collect();
    asked.push(SocketAddr::new(
        "::1".parse().unwrap(),
        server.addresses[1].port(),
    ));
    // The address that routes lead to, where there is one.
    let probe = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    if probe.connect("192.0.2.77:9").is_ok() {
        let local = probe.local_addr().unwrap().ip();
        asked.push(SocketAddr::new(local, server.addresses[0].port()));
    }
    for address in asked {
        let response = by_udp(address, &question).await;
        assert_eq!(response.answers.len(), 1, "{address}");
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&framed(&question)).await.unwrap();
        assert_eq!(receive(&mut stream).await.answers.len(), 1, "{address}");
    }
    server.stop().await;
}

#[tokio::test]
async fn other_zones_come_from_the_upstreams_and_ours_never() {
    let silent = FakeUpstream::silent().await;
    let good = FakeUpstream::good().await;
    let server = Running::start(&world(), &["127.0.0.1:0"], &[&silent, &good]);
    let question = query("example.com.", RecordType::A);
    let response = by_udp(server.address(), &question).await;
    assert_eq!(response.answers[0].data.to_string(), "203.0.113.7");
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    stream.write_all(&framed(&question)).await.unwrap();
    assert_eq!(receive(&mut stream).await.answers.len(), 1);

    let asked = good.asked(Transport::Udp) + good.asked(Transport::Tcp);
    for name in ["no.shop.svc.heddle.internal.", "99.0.96.10.in-addr.arpa."] {
        let response = by_udp(server.address(), &query(name, RecordType::PTR)).await;
        assert_eq!(code(&response), ResponseCode::NXDomain);
    }
    assert_eq!(
        good.asked(Transport::Udp) + good.asked(Transport::Tcp),
        asked
    );
    server.stop().await;
}

#[tokio::test]
async fn a_slow_upstream_does_not_delay_our_zone() {
    let silent = FakeUpstream::silent().await;
    let server = Running::start(&world(), &["127.0.0.1:0"], &[&silent]);
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server.address()).await.unwrap();
    for _ in 0..50 {
        let bytes = query("example.com.", RecordType::A).to_vec().unwrap();
        socket.send(&bytes).await.unwrap();
    }
    let ours = query("web.shop.svc.heddle.internal.", RecordType::A);
    socket.send(&ours.to_vec().unwrap()).await.unwrap();
    let mut buffer = [0; 4096];
    let length = timeout(Duration::from_secs(1), socket.recv(&mut buffer))
        .await
        .unwrap()
        .unwrap();
    let first = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!(
        first.metadata.id, ours.metadata.id,
        "it overtakes those that wait"
    );
    server.stop().await;
}

#[tokio::test]
async fn garbage_leaves_the_server_answering_and_answers_get_no_answer() {
    let server = Running::one(&world());
    let question = query("web.shop.svc.heddle.internal.", RecordType::A);
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server.address()).await.unwrap();
    let mut seed = 7u64;
    for length in 0..2_000 {
        let packet: Vec<u8> = (0..length % 700)
            .map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                seed.to_be_bytes()[0]
            })
            .collect();
        socket.send(&packet).await.unwrap();
        if length % 100 == 0 {
            assert_eq!(by_udp(server.address(), &question).await.answers.len(), 1);
        }
    }
    let mut reflected = question.clone();
    reflected.metadata.id = question.metadata.id.wrapping_add(1);
    reflected.metadata.message_type = MessageType::Response;
    let quiet = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    quiet.connect(server.address()).await.unwrap();
    quiet.send(&reflected.to_vec().unwrap()).await.unwrap();
    quiet.send(&question.to_vec().unwrap()).await.unwrap();
    let mut buffer = [0; 4096];
    let length = timeout(PATIENCE, quiet.recv(&mut buffer))
        .await
        .unwrap()
        .unwrap();
    let first = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!(
        first.metadata.id, question.metadata.id,
        "the response before it was passed over"
    );

    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    stream.write_all(&framed(&reflected)).await.unwrap();
    let mut rest = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut rest))
        .await
        .unwrap()
        .unwrap();
    assert!(rest.is_empty(), "closed without a word");
    server.stop().await;
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_and_udp_goes_on() {
    let server = Running::one(&world());
    let mut held = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        held.push(TcpStream::connect(server.address()).await.unwrap());
    }
    // The last one held answers, so that all of them are known to be taken up.
    let question = query("web.shop.svc.heddle.internal.", RecordType::A);
    let last = held.last_mut().unwrap();
    last.write_all(&framed(&question)).await.unwrap();
    assert_eq!(receive(last).await.answers.len(), 1);
    let mut refused = TcpStream::connect(server.address()).await.unwrap();
    let got = timeout(PATIENCE, refused.read_u8()).await.unwrap();
    assert!(got.is_err(), "closed at once");
    assert_eq!(by_udp(server.address(), &question).await.answers.len(), 1);
    server.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_sends_no_whole_query_is_closed() {
    let server = Running::one(&world());
    let mut silent = TcpStream::connect(server.address()).await.unwrap();
    let mut slow = TcpStream::connect(server.address()).await.unwrap();
    slow.write_all(&[0, 40, 1, 2, 3]).await.unwrap();
    for stream in [&mut silent, &mut slow] {
        assert!(stream.read_u8().await.is_err(), "closed without a word");
    }
    server.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_listener_that_panics_is_started_again() {
    let starts = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = starts.clone();
    let address = "127.0.0.1:53".parse().unwrap();
    restarted(address, Transport::Udp, move || {
        let start = counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        async move { assert!(start >= 2, "a defect") }
    })
    .await;
    assert_eq!(starts.load(std::sync::atomic::Ordering::SeqCst), 3);
}

/// Waits until an address can be bound again.
async fn is_free(address: SocketAddr) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while let Err(error) = Server::bind(Options {
        listen: vec![address],
        ..Options::default()
    }) {
        assert!(tokio::time::Instant::now() < deadline, "{error}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn after_shutdown_the_address_is_free_though_a_client_was_connected() {
    let server = Running::one(&world());
    let address = server.address();
    let _open = TcpStream::connect(address).await.unwrap();
    server.stop().await;
    is_free(address).await;
}

#[tokio::test]
async fn dropping_the_future_ends_what_it_started() {
    let server = Running::one(&world());
    server.task.abort();
    is_free(server.address()).await;
}

#[test]
fn an_address_that_can_not_be_had_is_named_with_what_to_do() {
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let bind = |address: SocketAddr| {
        let error = Server::bind(Options {
            listen: vec![address],
            ..Options::default()
        })
        .unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        (error.to_string(), source)
    };
    let (error, source) = bind(address);
    assert!(
        error.contains(&address.to_string()) && error.contains("another program"),
        "{error}"
    );
    assert!(source.contains("in use"), "{source}");
    let (error, _) = bind("203.0.113.1:53".parse().unwrap());
    assert!(error.contains("no such address"), "{error}");
}

#[tokio::test]
async fn a_movable_address_whose_port_is_taken_gets_another_port_and_is_still_known_as_ours() {
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let options = Options {
        listen: vec![address],
        movable: vec![address],
        upstreams: vec![Upstream::Address(address)],
        ..Options::default()
    };
    let server = Server::bind(options.clone()).unwrap();
    let moved = server.addresses()[0];
    assert_eq!(moved.ip(), address.ip());
    assert_ne!(moved, address);
    assert_eq!(server.moved(), [(address, moved.port())]);
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(server.run(shutdown.clone()));
    let answer = by_udp(moved, &query("example.com.", RecordType::A)).await;
    assert!(
        !answer.metadata.recursion_available,
        "it would ask itself by the address that leads to it"
    );
    shutdown.cancel();
    task.await.unwrap();
    drop(taken);
    let server = Server::bind(options).unwrap();
    assert_eq!(server.addresses(), [address]);
    assert!(server.moved().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dig_reads_every_kind_of_answer() {
    let mut world = world();
    world
        .service(
            "big/two",
            "{headless: true, ports: [{name: pg, port: 5432}]}",
            &[],
        )
        .many_endpoints("big/two", "pg", 200)
        .service(
            "big/huge",
            "{headless: true, ports: [{name: pg, port: 5432}]}",
            &[],
        )
        .many_endpoints("big/huge", "pg", 5_000);
    let good = FakeUpstream::good().await;
    let server = Running::start(&world, &["127.0.0.1:0"], &[&good]);
    let two = "_pg._tcp.two.big.svc.heddle.internal SRV";
    for (arguments, expected) in [
        (
            "web.shop.svc.heddle.internal A",
            vec!["status: NOERROR", "qr aa rd ra", "\t10.96.0.7"],
        ),
        (
            "WEB.shop.SVC.heddle.internal A",
            vec![";WEB.shop.SVC.heddle.internal.", "\t10.96.0.7"],
        ),
        (
            "cart.shop.svc.heddle.internal AAAA",
            vec!["status: NOERROR", "ANSWER: 0", "SOA"],
        ),
        (
            "no.shop.svc.heddle.internal A",
            vec!["status: NXDOMAIN", "SOA", "86400 5"],
        ),
        (
            "svc.heddle.internal A",
            vec!["status: NOERROR", "ANSWER: 0", "SOA"],
        ),
        (
            "heddle.internal SOA",
            vec!["ns.dns.heddle.internal. hostmaster.heddle.internal."],
        ),
        ("dns-version.heddle.internal TXT", vec!["\"1.1.0\""]),
        ("-x 10.96.0.7", vec!["web.shop.svc.heddle.internal."]),
        ("-x fd00:96::7", vec!["web.shop.svc.heddle.internal."]),
        (
            "-x 172.17.0.2",
            vec!["172-17-0-2.db.data.svc.heddle.internal."],
        ),
        (
            "_http._tcp.web.shop.svc.heddle.internal SRV",
            vec!["0 100 80 web.shop", "ADDITIONAL: 3"],
        ),
        (
            "web.shop.svc.heddle.internal ANY +notcp",
            vec!["HINFO", "\"RFC8482\""],
        ),
        (
            "example.com A",
            vec!["status: NOERROR", "203.0.113.7", "EDNS: version: 0"],
        ),
        (
            "+edns=1 +noednsneg web.shop.svc.heddle.internal A",
            vec!["status: BADVERS", "ANSWER: 0"],
        ),
        ("-c CH version.bind TXT", vec!["status: REFUSED"]),
        (
            "+noedns +opcode=UPDATE heddle.internal SOA",
            vec!["status: REFUSED"],
        ),
        (
            "+noedns +opcode=STATUS heddle.internal SOA",
            vec!["status: NOTIMP"],
        ),
        (
            &format!("+noedns +ignore {two}"),
            vec!["qr aa tc rd ra", "ADDITIONAL: 0"],
        ),
        (
            &format!("+bufsize=1232 +ignore {two}"),
            vec!["qr aa tc rd ra", "ADDITIONAL: 1"],
        ),
        (
            &format!("+tcp {two}"),
            vec!["qr aa rd ra", "ANSWER: 200", "ADDITIONAL: 201"],
        ),
        (
            "+tcp _pg._tcp.huge.big.svc.heddle.internal SRV",
            vec!["qr aa tc rd ra"],
        ),
        (
            "+tcp huge.big.svc.heddle.internal A",
            vec!["qr aa tc rd ra"],
        ),
    ] {
        let Some(text) = server.dig(arguments) else {
            break;
        };
        for part in expected {
            assert!(
                text.contains(part),
                "dig {arguments}: no `{part}` in {text}"
            );
        }
        for complaint in ["malformed", "WARNING", "mismatch"] {
            assert!(!text.contains(complaint), "dig {arguments}: {text}");
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn edns_goes_the_whole_way() {
    let good = FakeUpstream::good().await;
    let server = Running::start(&world(), &["127.0.0.1:0"], &[&good]);
    for name in ["web.shop.svc.heddle.internal.", "example.com."] {
        let mut question = query(name, RecordType::A);
        assert!(
            by_udp(server.address(), &question).await.edns.is_none(),
            "{name}"
        );
        question.set_edns(Edns::new());
        assert!(
            by_udp(server.address(), &question).await.edns.is_some(),
            "{name}"
        );
    }
    server.stop().await;
}
