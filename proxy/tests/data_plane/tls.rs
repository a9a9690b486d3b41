//! TLS at the door: which version, which certificate, sessions that go on, files that change, and clients that err.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::{HandshakeKind, ProtocolVersion};

use crate::support::client::{http2_over, request, text};
use crate::support::tls::{Authority, connect};
use crate::support::{Backend, Http1, Mesh, at, eventually, soon};

/// A service `shop/web` that speaks HTTP over TLS, with an endpoint.
async fn web(mesh: &mut Mesh, tls: &str) -> (std::net::SocketAddr, Backend) {
    let backend = Backend::http1("one").await;
    let web = mesh.service("shop/web", &format!("protocol: http, {tls}"), "");
    mesh.endpoints("shop/web", vec![at("one", backend.address)]);
    (web, backend)
}

fn handshakes(mesh: &Mesh, result: &str) -> f64 {
    mesh.metric(&format!(
        "heddle_tls_handshakes_total{{namespace=\"shop\",service=\"web\",result=\"{result}\"}}"
    ))
}

/// The DNS names of the certificate that a server showed, as far as a test needs to tell them apart.
fn shows(stream: &TlsStream<TcpStream>, name: &str) -> bool {
    let shown = &stream.get_ref().1.peer_certificates().unwrap()[0];
    shown
        .windows(name.len())
        .any(|window| window == name.as_bytes())
}

#[tokio::test]
async fn both_versions_are_spoken_and_endpoints_learn_that_it_was_https() {
    let authority = Authority::new();
    let mut mesh = Mesh::start();
    let (web, _backend) = web(&mut mesh, &authority.web("")).await;
    for (config, version) in [
        (authority.client(&[]), ProtocolVersion::TLSv1_3),
        (authority.old_client(), ProtocolVersion::TLSv1_2),
    ] {
        let stream = connect(web, "web.test", config).await.unwrap();
        assert_eq!(stream.get_ref().1.protocol_version(), Some(version));
        let mut client = Http1::over(stream);
        let reply = client.get("/headers").await;
        assert!(
            reply.body.contains("x-forwarded-proto: https\n"),
            "{}",
            reply.body
        );
        assert_eq!(client.get("/").await.body, "one");
    }
    assert_eq!(handshakes(&mesh, "full"), 2.0);
    assert_eq!(
        mesh.metric(
            "heddle_requests_total{namespace=\"shop\",service=\"web\",protocol=\"http1\",code=\"200\"}"
        ),
        4.0
    );
}

#[tokio::test]
async fn an_older_version_than_the_oldest_allowed_is_refused() {
    let authority = Authority::new();
    let mut mesh = Mesh::start();
    let (web, _backend) = web(&mut mesh, &authority.web(", minVersion: '1.3'")).await;
    let refused = connect(web, "web.test", authority.old_client()).await;
    let error = refused.unwrap_err().to_string();
    assert!(error.contains("ProtocolVersion"), "{error}");
    let mut client = Http1::over(
        connect(web, "web.test", authority.client(&[]))
            .await
            .unwrap(),
    );
    assert_eq!(client.get("/").await.body, "one");
    // The client hears of it first.
    eventually("failures are counted", || {
        handshakes(&mesh, "failure") == 1.0
    })
    .await;
}

#[tokio::test]
async fn alpn_decides_on_the_version_of_http() {
    let authority = Authority::new();
    let mut mesh = Mesh::start();
    let (web, _backend) = web(&mut mesh, &authority.web("")).await;
    let connect = async |alpn: &[&str]| connect(web, "web.test", authority.client(alpn)).await;

    let stream = connect(&["h2", "http/1.1"]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let mut sender = http2_over(stream).await;
    let response = sender.send_request(request("GET", "/headers", "")).await;
    let head = text(response.unwrap()).await;
    assert!(head.contains("x-forwarded-proto: https\n"), "{head}");

    let stream = connect(&["http/1.1"]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    assert_eq!(Http1::over(stream).get("/").await.body, "one");

    // Without ALPN the preface decides, as it does in cleartext.
    let stream = connect(&[]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), None);
    let mut sender = http2_over(stream).await;
    let response = sender.send_request(request("GET", "/", "")).await;
    assert_eq!(text(response.unwrap()).await, "one");

    let error = connect(&["spdy/3"]).await.unwrap_err().to_string();
    assert!(error.contains("NoApplicationProtocol"), "{error}");
}

#[tokio::test]
async fn the_server_name_chooses_the_certificate() {
    let authority = Authority::new();
    for (file, names) in [
        ("main", ["main.test"]),
        ("wild", ["*.shop.test"]),
        ("pay", ["pay.shop.test"]),
    ] {
        authority.put(file, &authority.issue(&names, 2090));
    }
    let mut mesh = Mesh::start();
    let tls = authority.tls(&["main", "wild", "pay"], "");
    let (web, _backend) = web(&mut mesh, &tls).await;
    for (name, expected) in [
        ("main.test", "main.test"),
        ("www.shop.test", "*.shop.test"),
        ("PAY.shop.test", "pay.shop.test"),
    ] {
        let stream = connect(web, name, authority.client(&[])).await.unwrap();
        assert!(shows(&stream, expected), "{name}");
    }
    // Who asks for another gets the first, and does not believe it.
    let error = connect(web, "other.test", authority.client(&[])).await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("main.test"), "{error}");
}

#[tokio::test]
async fn a_session_goes_on_whichever_worker_its_client_meets() {
    let authority = Authority::new();
    let mut mesh = Mesh::start();
    let (web, _backend) = web(&mut mesh, &authority.web("")).await;
    for config in [authority.client(&[]), authority.old_client()] {
        let config = Arc::new(config);
        let mut kinds = Vec::new();
        // Both of two workers, but for once in half a million runs.
        for _ in 0..20 {
            let stream = connect(web, "web.test", Arc::clone(&config)).await.unwrap();
            kinds.push(stream.get_ref().1.handshake_kind().unwrap());
            // The tickets of TLS 1.3 come with or after the first bytes.
            assert_eq!(Http1::over(stream).get("/").await.body, "one");
        }
        assert_eq!(kinds[0], HandshakeKind::Full);
        let again = &kinds[1..];
        assert!(
            again.iter().all(|kind| *kind == HandshakeKind::Resumed),
            "{kinds:?}"
        );
    }
    assert_eq!(handshakes(&mesh, "resumed"), 38.0);
}

#[tokio::test]
async fn a_new_certificate_is_shown_soon_and_drops_nobody() {
    let authority = Authority::new();
    let mut mesh = Mesh::start();
    let (web, _backend) = web(&mut mesh, &authority.web("")).await;
    let stream = connect(web, "web.test", authority.client(&[]))
        .await
        .unwrap();
    let mut before = Http1::over(stream);
    assert_eq!(before.get("/").await.body, "one");
    let expiry = "heddle_certificate_expiry_timestamp_seconds{namespace=\"shop\",service=\"web\"}";
    assert_eq!(mesh.metric(expiry), 3_786_912_000.0);

    authority.put("web", &authority.issue(&["web.test", "new.test"], 2080));
    eventually("the new certificate's expiry", || {
        mesh.metric(expiry) == 3_471_292_800.0
    })
    .await;
    let stream = connect(web, "new.test", authority.client(&[]))
        .await
        .unwrap();
    assert_eq!(Http1::over(stream).get("/").await.body, "one");
    assert_eq!(before.get("/").await.body, "one");
    assert_eq!(mesh.proxy.tls(), []);
}

#[tokio::test]
async fn a_bad_file_is_told_and_what_was_good_is_used_on() {
    let authority = Authority::new();
    let mut mesh = Mesh::start();
    let (web, _backend) = web(&mut mesh, &authority.web("")).await;
    connect(web, "web.test", authority.client(&[]))
        .await
        .unwrap();
    std::fs::write(authority.path("web.key"), "no key").unwrap();
    eventually("the error", || !mesh.proxy.tls().is_empty()).await;
    let status = mesh.proxy.tls().remove(0);
    assert_eq!(status.service.to_string(), "shop/web");
    assert!(
        status.error.contains("web.key: no private key (PEM) in it"),
        "{}",
        status.error
    );
    let stream = connect(web, "web.test", authority.client(&[]))
        .await
        .unwrap();
    assert_eq!(Http1::over(stream).get("/").await.body, "one");
    // Mended, the error goes.
    authority.put("web", &authority.issue(&["web.test"], 2090));
    eventually("no error", || mesh.proxy.tls().is_empty()).await;
}

#[tokio::test]
async fn without_a_certificate_connections_are_refused_until_there_is_one() {
    let authority = Authority::new();
    let mut mesh = Mesh::start();
    let (web, _backend) = web(&mut mesh, &authority.tls(&["web"], "")).await;
    let refused = connect(web, "web.test", authority.client(&[])).await;
    let error = refused.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
    assert_eq!(handshakes(&mesh, "no_certificate"), 1.0);
    let status = mesh.proxy.tls().remove(0);
    assert!(status.error.contains("web.pem can't be read"), "{status:?}");
    authority.put("web", &authority.issue(&["web.test"], 2090));
    eventually("a certificate", || mesh.proxy.tls().is_empty()).await;
    let stream = connect(web, "web.test", authority.client(&[]))
        .await
        .unwrap();
    assert_eq!(Http1::over(stream).get("/").await.body, "one");
}

#[tokio::test]
async fn one_bad_certificate_of_two_costs_only_itself() {
    let authority = Authority::new();
    authority.put("good", &authority.issue(&["good.test"], 2090));
    let mut mesh = Mesh::start();
    let (web, _backend) = web(&mut mesh, &authority.tls(&["bad", "good"], "")).await;
    let stream = connect(web, "good.test", authority.client(&[]))
        .await
        .unwrap();
    assert_eq!(Http1::over(stream).get("/").await.body, "one");
    assert_eq!(mesh.proxy.tls().len(), 1);
}

#[tokio::test]
async fn a_service_that_is_deleted_takes_its_certificate_along() {
    let authority = Authority::new();
    let mut mesh = Mesh::start();
    let (_web, _backend) = web(&mut mesh, &authority.web("")).await;
    let expiry = "heddle_certificate_expiry_timestamp_seconds";
    eventually("a certificate", || mesh.metric(expiry) > 0.0).await;
    mesh.delete("shop/web");
    eventually("none any more", || mesh.metric(expiry) == 0.0).await;
}

/// All that a server says to these bytes.
async fn answer_to(address: std::net::SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(bytes).await.unwrap();
    let mut said = Vec::new();
    let read = client.read_to_end(&mut said);
    // A reset is an end too.
    let _ = soon("an end", read).await;
    said
}

#[tokio::test]
async fn plain_http_and_garbage_are_answered_and_closed() {
    let authority = Authority::new();
    let mut mesh = Mesh::start();
    let (web, _backend) = web(&mut mesh, &authority.web("")).await;
    let said = answer_to(web, b"GET / HTTP/1.1\r\nhost: web\r\n\r\n").await;
    let said = String::from_utf8(said).unwrap();
    assert!(said.starts_with("HTTP/1.1 400 "), "{said}");
    let (head, body) = said.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(&format!("content-length: {}", body.len())));
    assert!(body.contains("https://"), "{body}");
    for garbage in [
        &b"\x16\x03\x01\x00\x05hello"[..],
        &[0; 64],
        &[0xff; 4096],
        b"\x16\x03\x01\xff\xff",
        b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10",
    ] {
        let said = answer_to(web, garbage).await;
        // A fatal alert, or nothing at all.
        assert!(said.is_empty() || said[0] == 21, "{said:?}");
    }
    // The client hears of it first.
    eventually("failures are counted", || {
        handshakes(&mesh, "failure") == 6.0
    })
    .await;
    let stream = connect(web, "web.test", authority.client(&[]))
        .await
        .unwrap();
    assert_eq!(Http1::over(stream).get("/").await.body, "one");
}

#[tokio::test]
async fn a_handshake_that_does_not_end_is_cut_off() {
    let authority = Authority::new();
    let mut mesh = Mesh::start();
    let (web, _backend) = web(&mut mesh, &authority.web("")).await;
    let mut silent = TcpStream::connect(web).await.unwrap();
    let mut slow = TcpStream::connect(web).await.unwrap();
    // The first half of a record.
    slow.write_all(b"\x16\x03\x01\x02\x00\x01").await.unwrap();
    let cut_off = async {
        for client in [&mut silent, &mut slow] {
            let _ = client.read_to_end(&mut Vec::new()).await;
        }
    };
    // After limits::HEAD_TIMEOUT, which is 30 s.
    tokio::time::timeout(Duration::from_secs(90), cut_off)
        .await
        .expect("cut off");
    eventually("nobody left", || {
        mesh.metric("heddle_connections_active{namespace=\"shop\",service=\"web\"}") == 0.0
    })
    .await;
}

#[tokio::test]
async fn large_bodies_pass_both_ways() {
    let authority = Authority::new();
    let mut mesh = Mesh::start();
    let (web, _backend) = web(&mut mesh, &authority.web("")).await;
    for config in [authority.client(&[]), authority.old_client()] {
        let mut client = Http1::over(connect(web, "web.test", config).await.unwrap());
        let body: String = (0..300_000).map(|n| format!("{n} ")).collect();
        let reply = client.post("/echo", &body).await;
        assert_eq!(reply.body.len(), body.len());
        assert!(reply.body == body);
    }
}

#[tokio::test]
async fn an_idle_connection_is_told_of_a_drain() {
    let authority = Authority::new();
    let mut mesh = Mesh::start();
    let (web, _backend) = web(&mut mesh, &authority.web("")).await;
    let mut client = Http1::over(
        connect(web, "web.test", authority.client(&[]))
            .await
            .unwrap(),
    );
    assert_eq!(client.get("/").await.body, "one");
    let drained = mesh.proxy.drain();
    let (drained, closed) = tokio::join!(drained, client.is_closed());
    // With close_notify: rustls says so when it is missing.
    assert!(closed);
    assert_eq!(drained.forced, 0);
}

#[tokio::test]
async fn a_tcp_port_relays_what_was_inside() {
    let authority = Authority::new();
    let mut mesh = Mesh::start();
    let backend = Backend::raw(|mut stream, _| async move {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        all.reverse();
        stream.write_all(&all).await.unwrap();
    })
    .await;
    let tls = authority.web("");
    let web = mesh.service("shop/web", &format!("protocol: tcp, {tls}"), "");
    mesh.endpoints("shop/web", vec![at("one", backend.address)]);
    for config in [authority.client(&[]), authority.old_client()] {
        let mut stream = connect(web, "web.test", config).await.unwrap();
        let sent: Vec<u8> = (0..2_000_000u32).map(|n| (n % 251) as u8).collect();
        // One way ends before the other begins.
        stream.write_all(&sent).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut got = Vec::new();
        soon("all of it", stream.read_to_end(&mut got))
            .await
            .unwrap();
        got.reverse();
        assert!(got == sent);
    }
}
