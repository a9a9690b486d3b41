//! HTTP/1.1 on both sides.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use model::Timestamp;
use model::endpoint::{Fact, Health};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::mesh::three;
use crate::support::{Backend, Http1, Mesh, Refusing, at, eventually, soon};

#[tokio::test]
async fn the_connection_to_an_endpoint_is_kept() {
    let (_mesh, web, backends) = three().await;
    let mut client = Http1::connect(web).await;
    let mut answers = Vec::new();
    for _ in 0..30 {
        answers.push(client.get("/").await.body);
    }
    assert!(
        answers.chunks(3).all(|turn| turn == &answers[..3]),
        "{answers:?}"
    );
    for backend in &backends {
        assert_eq!((backend.connections(), backend.requests()), (1, 10));
    }
}

#[tokio::test]
async fn weights_are_shares_and_zero_takes_nothing() {
    let backends = [
        Backend::http1("heavy").await,
        Backend::http1("light").await,
        Backend::http1("none").await,
    ];
    let mut mesh = Mesh::start();
    let web = mesh.service("shop/web", "protocol: http", "");
    let mut endpoints: Vec<_> = ["heavy", "light", "none"]
        .iter()
        .zip(&backends)
        .map(|(n, b)| at(n, b.address))
        .collect();
    (
        endpoints[0].weight,
        endpoints[1].weight,
        endpoints[2].weight,
    ) = (5, 1, 0);
    mesh.endpoints("shop/web", endpoints);
    let mut client = Http1::connect(web).await;
    for _ in 0..120 {
        client.get("/").await;
    }
    assert_eq!(backends.each_ref().map(Backend::requests), [100, 20, 0]);
}

#[tokio::test]
async fn an_endpoint_that_refuses_is_passed_over_even_for_a_post() {
    let alive = Backend::http1("alive").await;
    let gone = Refusing::new();
    let mut mesh = Mesh::start();
    let web = mesh.service("shop/web", "protocol: http", "retries: {attempts: 0}");
    mesh.endpoints(
        "shop/web",
        vec![at("alive", alive.address), at("gone", gone.address)],
    );
    let mut client = Http1::connect(web).await;
    for _ in 0..20 {
        let reply = client.post("/echo", "hello").await;
        assert_eq!((reply.status, reply.body.as_str()), (200, "hello"));
    }
    assert!(mesh.metric("heddle_upstream_connect_failures_total") >= 10.0);
    assert_eq!(
        mesh.metric("heddle_retries_total{namespace=\"shop\",service=\"web\",result=\"success\"}"),
        0.0
    );
}

#[tokio::test]
async fn nobody_there_is_a_503_that_says_why() {
    let mut mesh = Mesh::start();
    let web = mesh.service("shop/web", "protocol: http", "");
    let mut client = Http1::connect(web).await;
    let reply = client.get("/").await;
    assert_eq!(
        (reply.status, reply.header("x-heddle-error")),
        (503, Some("no-endpoint"))
    );
    assert!(
        reply
            .body
            .contains("no workload of namespace shop matches `app=x`"),
        "{}",
        reply.body
    );
    let mut sick = at("a", "127.0.0.1:9".parse().unwrap());
    sick.health = Fact::new(Health::Failing, Timestamp(1), "HTTP 500");
    mesh.endpoints("shop/web", vec![sick]);
    let reply = client.get("/").await;
    assert_eq!(reply.status, 503);
    assert!(
        reply.body.contains("1 unhealthy") && reply.body.contains("HTTP 500"),
        "{}",
        reply.body
    );
    assert_eq!(mesh.metric("heddle_unavailable_total"), 2.0);
}

#[tokio::test]
async fn endpoints_that_all_refuse_are_a_502_that_names_one() {
    let gone = Refusing::new();
    let mut mesh = Mesh::start();
    let web = mesh.service("shop/web", "protocol: http", "");
    mesh.endpoints("shop/web", vec![at("gone-1", gone.address)]);
    let reply = Http1::connect(web).await.get("/").await;
    assert_eq!(
        (reply.status, reply.header("x-heddle-error")),
        (502, Some("connect-failed"))
    );
    assert!(
        reply.body.contains("gone-1") && reply.body.contains("refused"),
        "{}",
        reply.body
    );
}

#[tokio::test]
async fn an_endpoint_that_does_not_respond_in_time_is_a_504() {
    let backend = Backend::http1("a").await;
    let mut mesh = Mesh::start();
    let web = mesh.service("shop/web", "protocol: http", "timeouts: {request: 100ms}");
    mesh.endpoints("shop/web", vec![at("a", backend.address)]);
    let mut client = Http1::connect(web).await;
    let reply = client.get("/hang").await;
    assert_eq!(
        (reply.status, reply.header("x-heddle-error")),
        (504, Some("timeout"))
    );
    assert_eq!(
        client.get("/").await.status,
        200,
        "the client's connection goes on"
    );
}

#[tokio::test]
async fn a_slow_reader_holds_its_endpoint_back_and_gets_everything() {
    const TOTAL: usize = 64 << 20;
    let written = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&written);
    let backend = Backend::raw(move |mut stream, _| {
        let written = Arc::clone(&counter);
        async move {
            let mut head = [0; 1024];
            assert!(stream.read(&mut head).await.unwrap() > 0);
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {TOTAL}\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            let chunk = vec![7; 64 << 10];
            for _ in 0..TOTAL / chunk.len() {
                stream.write_all(&chunk).await.unwrap();
                written.fetch_add(chunk.len(), Ordering::SeqCst);
            }
        }
    })
    .await;
    let mut mesh = Mesh::start();
    let web = mesh.service("shop/web", "protocol: http", "");
    mesh.endpoints("shop/web", vec![at("a", backend.address)]);
    let mut client = Http1::connect(web).await;
    client
        .send("GET / HTTP/1.1\r\nhost: web\r\n\r\n")
        .await
        .unwrap();
    let head = soon("the head", client.head()).await.unwrap();
    assert_eq!(
        head.header("content-length"),
        Some(TOTAL.to_string().as_str())
    );
    let mut before = usize::MAX;
    while before != written.load(Ordering::SeqCst) {
        before = written.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // What the kernel buffers on two connections, and 128 KiB in the proxy.
    assert!(
        before < 24 << 20,
        "{before} bytes were taken for a reader that reads nothing"
    );
    assert_eq!(
        mesh.in_flight("shop/web", 0),
        1,
        "load counts to the end of the body"
    );
    let mut got = client.buffer.len();
    let mut chunk = vec![0; 1 << 20];
    while got < TOTAL {
        let n = soon("more of the body", client.stream.read(&mut chunk))
            .await
            .unwrap();
        assert!(n > 0, "the body ended after {got} bytes");
        got += n;
    }
    assert_eq!(got, TOTAL);
    eventually("the load is gone", || mesh.in_flight("shop/web", 0) == 0).await;
}

#[tokio::test]
async fn a_request_body_streams_through_as_it_comes() {
    let backend = Backend::http1("a").await;
    let mut mesh = Mesh::start();
    let web = mesh.service("shop/web", "protocol: http", "");
    mesh.endpoints("shop/web", vec![at("a", backend.address)]);
    let mut client = Http1::connect(web).await;
    client
        .send("POST /echo HTTP/1.1\r\nhost: web\r\ntransfer-encoding: chunked\r\n\r\n")
        .await
        .unwrap();
    client.send("5\r\nhello\r\n").await.unwrap();
    let head = soon("the head, before the body has ended", client.head())
        .await
        .unwrap();
    assert_eq!(head.status, 200);
    while !client.buffer.windows(5).any(|w| w == b"hello") {
        soon("the echo", client.stream.read_buf(&mut client.buffer))
            .await
            .unwrap();
    }
    client.send("0\r\n\r\n").await.unwrap();
    while !client.buffer.ends_with(b"0\r\n\r\n") {
        soon("the end", client.stream.read_buf(&mut client.buffer))
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn trailers_pass() {
    let backend = Backend::http1("a").await;
    let mut mesh = Mesh::start();
    let web = mesh.service("shop/web", "protocol: http", "");
    mesh.endpoints("shop/web", vec![at("a", backend.address)]);
    let mut client = Http1::connect(web).await;
    let request = "GET /trailers HTTP/1.1\r\nhost: web\r\nte: trailers\r\nconnection: te\r\n\r\n";
    let reply = client.try_request(request).await.unwrap();
    assert_eq!(
        (reply.body.as_str(), reply.trailers.as_str()),
        ("sum", "x-sum: 42")
    );
}

#[tokio::test]
async fn least_connections_sees_downloads_until_they_end() {
    let backends = [Backend::http1("a").await, Backend::http1("b").await];
    let mut mesh = Mesh::start();
    let spec = "loadBalancing: {policy: least-connections}";
    let web = mesh.service("shop/web", "protocol: http", spec);
    mesh.endpoints(
        "shop/web",
        vec![at("a", backends[0].address), at("b", backends[1].address)],
    );
    let mut download = Http1::connect(web).await;
    download
        .send("GET /drip/50 HTTP/1.1\r\nhost: web\r\n\r\n")
        .await
        .unwrap();
    assert_eq!(soon("the head", download.head()).await.unwrap().status, 200);
    let busy = backends[0].requests();
    let idle = if busy == 1 { "b" } else { "a" };
    let mut client = Http1::connect(web).await;
    for _ in 0..10 {
        assert_eq!(client.get("/").await.body, idle);
    }
}

#[tokio::test]
async fn a_recycled_address_gets_no_connection_of_its_predecessor() {
    let backend = Backend::http1("a").await;
    let mut mesh = Mesh::start();
    let web = mesh.service("shop/web", "protocol: http", "");
    let other = mesh.service("shop/other", "protocol: http", "");
    mesh.endpoints("shop/web", vec![at("a", backend.address)]);
    let mut client = Http1::connect(web).await;
    client.get("/").await;
    client.get("/").await;
    assert_eq!(backend.connections(), 1);
    let mut restarted = at("a", backend.address);
    restarted.generation = "g2".into();
    mesh.endpoints("shop/web", vec![restarted]);
    client.get("/").await;
    assert_eq!(
        backend.connections(),
        2,
        "another generation is another endpoint"
    );
    mesh.endpoints("shop/web", vec![]);
    mesh.endpoints("shop/other", vec![at("b", backend.address)]);
    Http1::connect(other).await.get("/").await;
    assert_eq!(backend.connections(), 3, "another service's too");
    assert_eq!(client.get("/").await.status, 503);
}

#[tokio::test]
async fn many_connections_share_few_to_the_endpoint() {
    let backend = Backend::http1("a").await;
    let mut mesh = Mesh::with(|options| options.workers = 1);
    let web = mesh.service("shop/web", "protocol: http", "");
    mesh.endpoints("shop/web", vec![at("a", backend.address)]);
    for _ in 0..50 {
        Http1::connect(web).await.get("/fill/100000").await;
    }
    assert!(
        backend.connections() <= 2,
        "{} connections",
        backend.connections()
    );
}
