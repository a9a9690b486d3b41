//! Protocols that take over an HTTP/1.1 connection.

use bytes::Bytes;
use http::{Method, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Backend, Http1, Mesh, at, eventually, soon};

/// Switches to an echo, sending `early` right behind its 101.
async fn echo() -> Backend {
    Backend::raw(|mut stream, _| async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        assert!(head.contains("connection: upgrade\r\n"), "{head}");
        assert!(head.contains("upgrade: websocket\r\n"), "{head}");
        let answer =
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\nearly ";
        stream.write_all(answer).await.unwrap();
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await
}

const ASK: &str = "GET /ws HTTP/1.1\r\nHost: web\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

#[tokio::test]
async fn a_websocket_passes_with_early_bytes_of_both_sides() {
    let backend = echo().await;
    let mut mesh = Mesh::start();
    let web = mesh.service("shop/web", "protocol: http", "");
    mesh.endpoints("shop/web", vec![at("a", backend.address)]);
    let mut client = Http1::connect(web).await;
    client.send(&format!("{ASK}eager ")).await.unwrap();
    let head = soon("the 101", client.head()).await.unwrap();
    assert_eq!(
        (head.status, head.header("upgrade")),
        (101, Some("websocket"))
    );
    assert_eq!(
        head.header("sec-websocket-accept"),
        Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
    );
    client.send("and more").await.unwrap();
    let mut text = String::from_utf8(client.buffer.to_vec()).unwrap();
    while text.len() < "early eager and more".len() {
        let mut byte = [0];
        soon("the echo", client.stream.read_exact(&mut byte))
            .await
            .unwrap();
        text.push(char::from(byte[0]));
    }
    assert_eq!(text, "early eager and more");
    assert_eq!(mesh.in_flight("shop/web", 0), 1, "a tunnel is load");
    assert_eq!(mesh.metric("heddle_connections_active"), 1.0);
    drop(client);
    eventually("the tunnel's load is gone", || {
        mesh.in_flight("shop/web", 0) == 0
    })
    .await;
    eventually("so is its connection", || {
        mesh.metric("heddle_connections_active") == 0.0
    })
    .await;
}

#[tokio::test]
async fn an_endpoint_that_declines_answers_like_any_other() {
    let backend = Backend::http1("plain").await;
    let mut mesh = Mesh::start();
    let web = mesh.service("shop/web", "protocol: http", "");
    mesh.endpoints("shop/web", vec![at("a", backend.address)]);
    let mut client = Http1::connect(web).await;
    let reply = client.try_request(ASK).await.unwrap();
    assert_eq!((reply.status, reply.body.as_str()), (200, "plain"));
    assert_eq!(
        client.get("/").await.body,
        "plain",
        "the connection still speaks HTTP"
    );
}

#[tokio::test]
async fn an_upgrade_to_h2c_is_not_passed_on() {
    let backend = Backend::http1("a").await;
    let mut mesh = Mesh::start();
    let web = mesh.service("shop/web", "protocol: http", "");
    mesh.endpoints("shop/web", vec![at("a", backend.address)]);
    let ask = "GET /headers HTTP/1.1\r\nHost: web\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
               HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n";
    let reply = Http1::connect(web).await.try_request(ask).await.unwrap();
    assert_eq!(reply.status, 200);
    assert!(
        !reply.body.contains("upgrade") && !reply.body.contains("http2-settings"),
        "{}",
        reply.body
    );
}

#[tokio::test]
async fn a_switch_that_nobody_asked_for_is_a_502() {
    let backend = Backend::raw(|mut stream, _| async move {
        let mut head = [0; 1024];
        assert!(stream.read(&mut head).await.unwrap() > 0);
        let answer =
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";
        stream.write_all(answer).await.unwrap();
    })
    .await;
    let mut mesh = Mesh::start();
    let web = mesh.service("shop/web", "protocol: http", "retries: {attempts: 0}");
    mesh.endpoints("shop/web", vec![at("a", backend.address)]);
    assert_eq!(Http1::connect(web).await.get("/").await.status, 502);
}

/// An HTTP/2 client's request for a WebSocket in a stream (RFC 8441, 5).
fn websocket() -> Request<()> {
    let mut ask = Request::builder()
        .method(Method::CONNECT)
        .uri("http://web/ws?room=1")
        .header("sec-websocket-protocol", "chat")
        .body(())
        .unwrap();
    let protocol = h2::ext::Protocol::from_static("websocket");
    ask.extensions_mut().insert(protocol);
    ask
}

/// A client that has heard that it may ask so.
async fn http2_client(web: std::net::SocketAddr) -> h2::client::SendRequest<Bytes> {
    let stream = TcpStream::connect(web).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let client = client.ready().await.unwrap();
    eventually("SETTINGS_ENABLE_CONNECT_PROTOCOL", || {
        client.is_extended_connect_protocol_enabled()
    })
    .await;
    client
}

#[tokio::test]
async fn a_websocket_in_a_stream_of_http2_is_one_of_http1_at_the_endpoint() {
    let backend = Backend::raw(|mut stream, _| async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
        assert!(head.starts_with("get /ws?room=1 http/1.1\r\n"), "{head}");
        for field in [
            "host: web",
            "connection: upgrade",
            "upgrade: websocket",
            "sec-websocket-version: 13",
            "sec-websocket-protocol: chat",
        ] {
            assert!(
                head.contains(&format!("\r\n{field}\r\n")),
                "{field}: {head}"
            );
        }
        let key = head.split("sec-websocket-key: ").nth(1).unwrap();
        assert_eq!(key.split("\r\n").next().unwrap().len(), 24, "{head}");
        let answer =
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Accept: x\r\nSec-WebSocket-Protocol: chat\r\n\r\nearly ";
        stream.write_all(answer).await.unwrap();
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await;
    let mut mesh = Mesh::start();
    let web = mesh.service("shop/web", "protocol: http", "");
    mesh.endpoints("shop/web", vec![at("a", backend.address)]);
    let mut client = http2_client(web).await;
    let (response, mut up) = client.send_request(websocket(), false).unwrap();
    up.send_data("eager ".into(), false).unwrap();
    let response = soon("the answer", response).await.unwrap();
    assert_eq!(response.status(), 200, "not 101: RFC 8441, 5.1");
    assert_eq!(response.headers()["sec-websocket-protocol"], "chat");
    for of_http1 in ["upgrade", "connection", "sec-websocket-accept"] {
        assert!(!response.headers().contains_key(of_http1), "{of_http1}");
    }
    let mut down = response.into_body();
    let mut text = Vec::new();
    up.send_data("and more".into(), false).unwrap();
    while text.len() < "early eager and more".len() {
        text.extend(soon("the echo", down.data()).await.unwrap().unwrap());
    }
    assert_eq!(text, b"early eager and more");
    assert_eq!(mesh.in_flight("shop/web", 0), 1, "a tunnel is load");
    // The end of one direction is passed on, and the endpoint's comes back.
    up.send_data(Bytes::new(), true).unwrap();
    while let Some(data) = soon("the end", down.data()).await {
        assert!(data.unwrap().is_empty());
    }
    eventually("the tunnel's load is gone", || {
        mesh.in_flight("shop/web", 0) == 0
    })
    .await;
}

#[tokio::test]
async fn an_endpoint_that_declines_a_websocket_of_http2_answers_like_any_other() {
    let backend = Backend::http1("plain").await;
    let mut mesh = Mesh::start();
    let web = mesh.service("shop/web", "protocol: http", "");
    mesh.endpoints("shop/web", vec![at("a", backend.address)]);
    let mut client = http2_client(web).await;
    let (response, _up) = client.send_request(websocket(), false).unwrap();
    let response = soon("the answer", response).await.unwrap();
    assert_eq!(response.status(), 502, "a 200 would open the WebSocket");
    assert_eq!(response.headers()["x-heddle-error"], "endpoint-failed");
}

#[tokio::test]
async fn a_websocket_of_http2_needs_an_endpoint_of_http1() {
    let backend = Backend::http2("a", usize::MAX).await;
    let mut mesh = Mesh::start();
    let web = mesh.service("shop/web", "protocol: http, upstreamProtocol: h2c", "");
    mesh.endpoints("shop/web", vec![at("a", backend.address)]);
    let mut client = http2_client(web).await;
    let (response, _up) = client.send_request(websocket(), false).unwrap();
    assert_eq!(soon("the answer", response).await.unwrap().status(), 501);
}
