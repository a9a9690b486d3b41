//! DNS over TLS (RFC 7858), with a client of our own and with `kdig`.

use std::sync::Mutex;

use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig, version};

use super::*;
use crate::tls::ALPN;

/// An authority that is its own server, shown as `dns.example`.
struct Shown {
    server: Arc<ServerConfig>,
    roots: RootCertStore,
    pem: String,
}

fn issue() -> Shown {
    let made = rcgen::generate_simple_self_signed(vec!["dns.example".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let mut server = ServerConfig::builder_with_provider(aws_lc_rs::default_provider().into())
        .with_protocol_versions(&[&version::TLS13, &version::TLS12])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    server.alpn_protocols = vec![ALPN.to_vec()];
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    Shown {
        server: server.into(),
        roots,
        pem: made.cert.pem(),
    }
}

struct Secure {
    running: Running,
    address: SocketAddr,
    metrics: Metrics,
    /// What is shown from now on.
    shown: Arc<Mutex<Arc<ServerConfig>>>,
}

impl Secure {
    fn start(world: &World, first: &Shown, upstreams: &[&FakeUpstream]) -> Secure {
        let snapshot = world.shared();
        let shown = Arc::new(Mutex::new(first.server.clone()));
        let newest = shown.clone();
        let server = Server::bind(Options {
            listen: vec!["127.0.0.1:0".parse().unwrap()],
            tls_listen: vec!["127.0.0.1:0".parse().unwrap()],
            tls: Some(Tls::new(move || newest.lock().unwrap().clone())),
            upstreams: upstreams
                .iter()
                .map(|u| Upstream::Address(u.address))
                .collect(),
            transfer_to: vec!["127.0.0.1/32".parse().unwrap()],
            snapshot: snapshot.clone(),
            ..Options::default()
        })
        .unwrap();
        let addresses = server.addresses();
        let address = server.tls_addresses()[0];
        let metrics = server.metrics();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(server.run(shutdown.clone()));
        Secure {
            running: Running {
                addresses,
                snapshot,
                shutdown,
                task,
            },
            address,
            metrics,
            shown,
        }
    }

    async fn connect(
        &self,
        by: &Shown,
        versions: &[&'static tokio_rustls::rustls::SupportedProtocolVersion],
        alpn: &[u8],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut config = ClientConfig::builder_with_provider(aws_lc_rs::default_provider().into())
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(by.roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from("dns.example").unwrap();
        TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
    }

    fn handshakes(&self, result: &str) -> u64 {
        self.metrics.handshakes.with_label_values(&[result]).get()
    }
}

async fn read(stream: &mut TlsStream<TcpStream>) -> Vec<u8> {
    let read = async {
        let length = stream.read_u16().await.unwrap();
        let mut bytes = vec![0; length.into()];
        stream.read_exact(&mut bytes).await.unwrap();
        bytes
    };
    timeout(PATIENCE, read).await.unwrap()
}

#[tokio::test]
async fn both_versions_are_spoken_and_answers_overtake_those_that_wait() {
    let certificate = issue();
    let silent = FakeUpstream::silent().await;
    let server = Secure::start(&world(), &certificate, &[&silent]);
    for tls_version in [&version::TLS12, &version::TLS13] {
        let mut stream = server
            .connect(&certificate, &[tls_version], ALPN)
            .await
            .unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(ALPN));
        let slow = query("example.com.", RecordType::A);
        let ours = query("web.shop.svc.heddle.internal.", RecordType::A);
        let both = [framed(&slow), framed(&ours)].concat();
        stream.write_all(&both).await.unwrap();
        let first = Message::from_vec(&read(&mut stream).await).unwrap();
        assert_eq!(first.metadata.id, ours.metadata.id);
        assert_eq!(first.answers[0].data.to_string(), "10.96.0.7");
        for byte in framed(&ours) {
            stream.write_all(&[byte]).await.unwrap();
        }
        let second = Message::from_vec(&read(&mut stream).await).unwrap();
        assert_eq!(second.metadata.id, ours.metadata.id);
    }
    assert_eq!(server.handshakes("full"), 2);
    server.running.stop().await;
}

#[tokio::test]
async fn a_padded_query_gets_a_padded_response_by_tls_alone() {
    let certificate = issue();
    let good = FakeUpstream::good().await;
    let server = Secure::start(&world(), &certificate, &[&good]);
    let mut stream = server
        .connect(&certificate, &[&version::TLS13], ALPN)
        .await
        .unwrap();
    for name in [
        "web.shop.svc.heddle.internal.",
        "example.com.",
        "no.heddle.internal.",
    ] {
        let mut padded = query(name, RecordType::A);
        let mut edns = Edns::new();
        let option = hickory_proto::rr::rdata::opt::EdnsOption::Unknown(12, vec![0; 60]);
        edns.options_mut().insert(option);
        padded.set_edns(edns);
        stream.write_all(&framed(&padded)).await.unwrap();
        let bytes = read(&mut stream).await;
        assert_eq!(bytes.len(), 468, "{name}");
        Message::from_vec(&bytes).unwrap();

        let mut plain = query(name, RecordType::A);
        plain.set_edns(Edns::new());
        stream.write_all(&framed(&plain)).await.unwrap();
        assert!(read(&mut stream).await.len() < 300, "{name}");
        let response = by_udp(server.running.address(), &padded).await;
        let edns = response.edns.unwrap();
        assert!(edns.options().as_ref().is_empty(), "{name}");
    }
    server.running.stop().await;
}

#[tokio::test]
async fn a_new_certificate_is_shown_from_the_next_handshake_on() {
    let (first, second) = (issue(), issue());
    let server = Secure::start(&world(), &first, &[]);
    let tls13 = [&version::TLS13];
    let mut before = server.connect(&first, &tls13, ALPN).await.unwrap();
    *server.shown.lock().unwrap() = second.server.clone();
    assert!(server.connect(&first, &tls13, ALPN).await.is_err());
    server.connect(&second, &tls13, ALPN).await.unwrap();
    let question = query("web.shop.svc.heddle.internal.", RecordType::A);
    before.write_all(&framed(&question)).await.unwrap();
    let answer = Message::from_vec(&read(&mut before).await).unwrap();
    assert_eq!(answer.answers.len(), 1, "the old connection goes on");
    server.running.stop().await;
}

#[tokio::test]
async fn what_speaks_no_dns_over_tls_is_turned_away_and_counted() {
    let certificate = issue();
    let server = Secure::start(&world(), &certificate, &[]);
    let other = server
        .connect(&certificate, &[&version::TLS13], b"h2")
        .await;
    assert!(other.is_err(), "h2 is not spoken here");
    let mut plain = TcpStream::connect(server.address).await.unwrap();
    let question = query("web.shop.svc.heddle.internal.", RecordType::A);
    plain.write_all(&framed(&question)).await.unwrap();
    let mut rest = Vec::new();
    // A reset is an end too.
    let _ = timeout(PATIENCE, plain.read_to_end(&mut rest))
        .await
        .unwrap();
    assert!(Message::from_vec(&rest).is_err());
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while server.handshakes("failure") < 2 {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::task::yield_now().await;
    }
    server.running.stop().await;
}

#[tokio::test]
async fn a_taken_address_of_tls_is_named_with_its_key() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let certificate = issue();
    let error = Server::bind(Options {
        tls_listen: vec![address],
        tls: Some(Tls::new(move || certificate.server.clone())),
        ..Options::default()
    })
    .unwrap_err()
    .to_string();
    assert!(
        error.contains(&address.to_string()) && error.contains("dns.tls_listen"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kdig_is_answered_by_tls_and_copies_the_zone() {
    let certificate = issue();
    let mut world = world();
    world
        .service(
            "big/huge",
            "{headless: true, ports: [{name: pg, port: 5432}]}",
            &[],
        )
        .many_endpoints("big/huge", "pg", 3_000);
    let server = Secure::start(&world, &certificate, &[]);
    let folder = tempfile::tempdir().unwrap();
    let authority = folder.path().join("ca.pem");
    std::fs::write(&authority, &certificate.pem).unwrap();
    let kdig = |arguments: &str| {
        let output = Command::new("kdig")
            .arg(format!("@{}", server.address.ip()))
            .args(["-p", &server.address.port().to_string()])
            .arg(format!("+tls-ca={}", authority.display()))
            .args(["+tls-hostname=dns.example", "+retry=0", "+timeout=20"])
            .args(arguments.split(' '))
            .output();
        match output {
            Ok(output) => Some(String::from_utf8_lossy(&output.stdout).into_owned()),
            Err(error) => {
                assert!(std::env::var_os("CI").is_none(), "kdig is needed: {error}");
                eprintln!("SKIPPED: no kdig on this machine: {error}");
                None
            }
        }
    };
    for (arguments, expected) in [
        (
            "+padding web.shop.svc.heddle.internal A",
            vec![
                "TLS session (TLS1.3)",
                "status: NOERROR",
                "10.96.0.7",
                "PADDING",
                "Received 468 B",
            ],
        ),
        (
            "heddle.internal AXFR",
            vec![
                "heddle.internal.",
                "SOA",
                "_pg._tcp.huge.big.svc.heddle.internal.",
                "messages",
                "9021 records",
            ],
        ),
    ] {
        let Some(text) = kdig(arguments) else { break };
        for part in expected {
            assert!(
                text.contains(part),
                "kdig {arguments}: no `{part}` in {text}"
            );
        }
    }
    server.running.stop().await;
}
