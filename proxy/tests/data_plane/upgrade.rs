//! Protocols that take over an HTTP/1.1 connection.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

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
