//! TLS to endpoints: they prove who they are, or get nothing.

use crate::support::client::{http2_over, request, text};
use crate::support::tls::{Authority, Issued, connect};
use crate::support::{Backend, Http1, Mesh, at, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

#[tokio::test]
async fn endpoints_are_spoken_to_over_tls() {
    let authority = Authority::new();
    let issued = authority.issue(&["db.test"], 2090);
    let backend = Backend::tls("secret", authority.server(&issued, &["h2", "http/1.1"])).await;
    let mut mesh = Mesh::start();
    let upstream = authority.upstream(", serverName: db.test");
    for (more, version) in [("", "HTTP/1.1"), ("upstreamProtocol: h2c,", "HTTP/2.0")] {
        let port = format!("protocol: http, {more} {upstream}");
        let web = mesh.service("shop/web", &port, "");
        mesh.endpoints("shop/web", vec![at("one", backend.address)]);
        let mut client = Http1::connect(web).await;
        assert_eq!(client.get("/").await.body, "secret");
        let head = client.get("/headers").await.body;
        assert!(
            head.lines().next().unwrap().ends_with(version),
            "{version}: {head}"
        );
        // Of the client's connection, not of the endpoint's.
        assert!(head.contains("x-forwarded-proto: http\n"), "{head}");
        mesh.delete("shop/web");
    }
    // Kept connections: one for each of the two.
    assert_eq!((backend.connections(), backend.requests()), (2, 4));
}

#[tokio::test]
async fn the_address_is_the_name_where_none_is_given() {
    let authority = Authority::new();
    let issued = authority.issue(&["127.0.0.1"], 2090);
    let backend = Backend::tls("secret", authority.server(&issued, &[])).await;
    let mut mesh = Mesh::start();
    let port = format!("protocol: http, {}", authority.upstream(""));
    let web = mesh.service("shop/web", &port, "");
    mesh.endpoints("shop/web", vec![at("one", backend.address)]);
    assert_eq!(Http1::connect(web).await.get("/").await.body, "secret");
}

#[tokio::test]
async fn who_proves_nothing_gets_nothing_and_the_client_is_told_why() {
    let (authority, other) = (Authority::new(), Authority::new());
    let plain = Backend::http1("plain").await;
    let secure = async |issued: Issued, alpn: &[&str]| {
        Backend::tls("secret", authority.server(&issued, alpn)).await
    };
    let good = || authority.issue(&["db.test"], 2090);
    let expired = secure(authority.issue(&["db.test"], 2021), &[]).await;
    let named = secure(authority.issue(&["web.test"], 2090), &[]).await;
    let unknown = secure(other.issue(&["db.test"], 2090), &[]).await;
    let old = secure(good(), &["http/1.1"]).await;
    let silent = secure(good(), &[]).await;
    let mut mesh = Mesh::start();
    let upstream = authority.upstream(", serverName: db.test");
    let missing = "upstreamTls: {caFile: /nonexistent/ca.pem}";
    for (backend, port, expected) in [
        (&expired, upstream.as_str(), "expired"),
        (&named, &upstream, "upstreamTls.serverName must be a name"),
        (
            &unknown,
            &upstream,
            "not signed by an authority of upstreamTls.caFile",
        ),
        (&plain, &upstream, "does the endpoint speak TLS?"),
        (
            &old,
            &format!("upstreamProtocol: h2c, {upstream}"),
            "does not speak this version of HTTP",
        ),
        (
            &silent,
            &format!("upstreamProtocol: h2c, {upstream}"),
            "does not agree to HTTP/2",
        ),
        (&plain, missing, "/nonexistent/ca.pem can't be read"),
    ] {
        let web = mesh.service("shop/web", &format!("protocol: http, {port}"), "");
        mesh.endpoints("shop/web", vec![at("one", backend.address)]);
        let reply = Http1::connect(web).await.post("/", "a secret").await;
        assert_eq!(
            (reply.status, reply.header("x-heddle-error")),
            (502, Some("connect-failed")),
            "{}",
            reply.body
        );
        assert!(
            reply.body.contains(expected),
            "{}\n not: {expected}",
            reply.body
        );
        assert_eq!(backend.requests(), 0);
        mesh.delete("shop/web");
    }
}

#[tokio::test]
async fn one_that_does_not_shake_hands_costs_a_connect_time_out_and_another_is_asked() {
    let authority = Authority::new();
    let issued = authority.issue(&["db.test"], 2090);
    let mute = Backend::raw(|mut stream, _| async move {
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let good = Backend::tls("secret", authority.server(&issued, &[])).await;
    let mut mesh = Mesh::start();
    let port = format!(
        "protocol: http, {}",
        authority.upstream(", serverName: db.test")
    );
    let web = mesh.service("shop/web", &port, "timeouts: {connect: 300ms}");
    mesh.endpoints("shop/web", vec![at("mute", mute.address)]);
    let reply = Http1::connect(web).await.get("/").await;
    assert_eq!(reply.status, 502);
    assert!(
        reply.body.contains("no handshake within 300ms"),
        "{}",
        reply.body
    );
    mesh.endpoints(
        "shop/web",
        vec![at("mute", mute.address), at("good", good.address)],
    );
    let mut client = Http1::connect(web).await;
    for _ in 0..4 {
        assert_eq!(client.post("/echo", "hello").await.body, "hello");
    }
}

#[tokio::test]
async fn websockets_and_bytes_pass_with_tls_on_both_sides() {
    let authority = Authority::new();
    let issued = authority.issue(&["db.test"], 2090);
    let acceptor = TlsAcceptor::from(authority.server(&issued, &["http/1.1"]));
    let backend = Backend::raw(move |stream, _| {
        let acceptor = acceptor.clone();
        async move {
            let mut stream = acceptor.accept(stream).await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let switch = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\nearly ";
            stream.write_all(switch.as_bytes()).await.unwrap();
            let (mut from, mut to) = tokio::io::split(stream);
            // Clients break connections off in some tests.
            let _ = tokio::io::copy(&mut from, &mut to).await;
            let _ = to.shutdown().await;
        }
    })
    .await;
    let mut mesh = Mesh::start();
    let port = format!(
        "protocol: http, {}, {}",
        authority.web(""),
        authority.upstream(", serverName: db.test")
    );
    let web = mesh.service("shop/web", &port, "");
    mesh.endpoints("shop/web", vec![at("one", backend.address)]);
    let stream = connect(web, "web.test", authority.client(&["http/1.1"])).await;
    let mut client = Http1::over(stream.unwrap());
    client
        .send("GET / HTTP/1.1\r\nhost: web\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\nfirst ")
        .await
        .unwrap();
    assert_eq!(client.head().await.unwrap().status, 101);
    let mut expected = b"early first ".to_vec();
    let bulk: Vec<u8> = (0..500_000u32).map(|n| (n % 251) as u8).collect();
    expected.extend_from_slice(&bulk);
    let (mut from, mut to) = tokio::io::split(client.stream);
    let sending = async {
        to.write_all(&bulk).await.unwrap();
        to.shutdown().await.unwrap();
    };
    let mut got = client.buffer.to_vec();
    let receiving = from.read_to_end(&mut got);
    let ((), received) = soon("all of it", async { tokio::join!(sending, receiving) }).await;
    received.unwrap();
    assert!(got == expected);
}

#[tokio::test]
async fn a_tcp_port_speaks_tls_to_its_endpoints() {
    let authority = Authority::new();
    let issued = authority.issue(&["db.test"], 2090);
    let backend = Backend::tls("secret", authority.server(&issued, &[])).await;
    let mut mesh = Mesh::start();
    let port = format!(
        "protocol: tcp, {}",
        authority.upstream(", serverName: db.test")
    );
    let web = mesh.service("shop/web", &port, "");
    mesh.endpoints("shop/web", vec![at("one", backend.address)]);
    assert_eq!(Http1::connect(web).await.get("/").await.body, "secret");
    let expired = Backend::tls(
        "secret",
        authority.server(&authority.issue(&["db.test"], 2021), &[]),
    )
    .await;
    mesh.endpoints("shop/web", vec![at("one", expired.address)]);
    let mut client = TcpStream::connect(web).await.unwrap();
    let read = soon("a reset", client.read(&mut [0])).await;
    assert!(read.is_err(), "{read:?}");
}

#[tokio::test]
async fn http2_passes_from_end_to_end() {
    let authority = Authority::new();
    let issued = authority.issue(&["db.test"], 2090);
    let backend = Backend::tls("secret", authority.server(&issued, &["h2"])).await;
    let mut mesh = Mesh::start();
    let port = format!(
        "protocol: http, upstreamProtocol: h2c, {}, {}",
        authority.web(""),
        authority.upstream(", serverName: db.test")
    );
    let web = mesh.service("shop/web", &port, "");
    mesh.endpoints("shop/web", vec![at("one", backend.address)]);
    let stream = connect(web, "web.test", authority.client(&["h2"])).await;
    let mut sender = http2_over(stream.unwrap()).await;
    let response = sender.send_request(request("POST", "/echo", "hello")).await;
    assert_eq!(text(response.unwrap()).await, "hello");
    let response = sender.send_request(request("GET", "/headers", "")).await;
    let head = text(response.unwrap()).await;
    assert!(
        head.starts_with("GET https://web/headers HTTP/2.0\n"),
        "{head}"
    );
}
