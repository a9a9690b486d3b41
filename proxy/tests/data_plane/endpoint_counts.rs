//! What is counted endpoint by endpoint.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Backend, Http1, Mesh, Refusing, at, eventually, soon};

/// Answers each request, whatever it is, with this.
async fn answering(reply: &'static [u8]) -> Backend {
    Backend::raw(move |mut stream, _| async move {
        let mut request = [0; 4096];
        while let Ok(1..) = stream.read(&mut request).await {
            if stream.write_all(reply).await.is_err() {
                return;
            }
        }
    })
    .await
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const ERROR: &[u8] = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 2\r\n\r\nno";

#[tokio::test]
async fn requests_errors_durations_and_connections_are_told_apart_by_endpoint() {
    let [good, bad] = [answering(OK).await, answering(ERROR).await];
    let mut mesh = Mesh::with(|options| options.workers = 1);
    let web = mesh.service("shop/web", "protocol: http", "");
    mesh.endpoints(
        "shop/web",
        vec![at("good", good.address), at("bad", bad.address)],
    );
    assert_eq!(mesh.counted("shop/web", "good"), None);
    let mut client = Http1::connect(web).await;
    for _ in 0..10 {
        client.get("/").await;
    }
    // A request has ended when its record is gone, a moment after the client has all of it.
    let timed = |t: &proxy::Totals| t.durations.iter().sum::<u64>();
    eventually("all are timed", || {
        let [good, bad] = ["good", "bad"].map(|name| mesh.counted("shop/web", name).unwrap());
        timed(&good) + timed(&bad) == 10
    })
    .await;
    let [good, bad] = ["good", "bad"].map(|name| mesh.counted("shop/web", name).unwrap());
    assert_eq!((good.requests, good.errors, timed(&good)), (5, 0, 5));
    assert_eq!((bad.requests, bad.errors, timed(&bad)), (5, 5, 5));
    assert_eq!((good.connections, good.active), (1, 1), "kept and reused");
    assert_eq!(good.sent, 5 * OK.len() as u64);
    assert!(good.received > 5 * "GET / HTTP/1.1".len() as u64);
    let service = &mesh.proxy.metrics().traffic()[0];
    assert_eq!((service.totals.requests, service.totals.errors), (10, 5));
    assert_eq!(timed(&service.totals), 10);
}

#[tokio::test]
async fn an_endpoint_that_does_not_answer_has_an_error_and_its_successor_none() {
    let (refusing, good) = (Refusing::new(), answering(OK).await);
    let mut mesh = Mesh::with(|options| options.workers = 1);
    let web = mesh.service("shop/web", "protocol: http", "");
    mesh.endpoints(
        "shop/web",
        vec![at("bad", refusing.address), at("good", good.address)],
    );
    let mut client = Http1::connect(web).await;
    for _ in 0..4 {
        assert_eq!(client.get("/").await.body, "ok");
    }
    let bad = mesh.counted("shop/web", "bad").unwrap();
    assert_eq!((bad.requests, bad.errors, bad.connections), (2, 2, 0));
    let counted = mesh.counted("shop/web", "good").unwrap();
    assert_eq!((counted.requests, counted.errors), (4, 0));
    // A new generation at the same address is another endpoint.
    let mut again = at("good", good.address);
    again.generation = "g2".into();
    mesh.endpoints("shop/web", vec![again]);
    eventually("the first one's counts are gone", || {
        mesh.counted("shop/web", "good").is_none() && mesh.counted("shop/web", "bad").is_none()
    })
    .await;
    client.get("/").await;
    assert_eq!(mesh.counted("shop/web", "good").unwrap().requests, 1);
}

#[tokio::test]
async fn a_request_that_runs_out_of_time_is_its_endpoints_error() {
    let silent = Backend::raw(|mut stream, _| async move {
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all).await;
    })
    .await;
    let mut mesh = Mesh::start();
    let web = mesh.service("shop/web", "protocol: http", "timeouts: {request: 50ms}");
    mesh.endpoints("shop/web", vec![at("a", silent.address)]);
    assert_eq!(Http1::connect(web).await.get("/").await.status, 504);
    let counted = mesh.counted("shop/web", "a").unwrap();
    assert_eq!((counted.requests, counted.errors), (1, 1));
}

#[tokio::test]
async fn what_ends_after_its_endpoint_is_gone_leaves_no_counts() {
    let go = Arc::new(AtomicBool::new(false));
    let wait = Arc::clone(&go);
    let slow = Backend::raw(move |mut stream, requests| {
        let wait = Arc::clone(&wait);
        async move {
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            requests.fetch_add(1, Ordering::SeqCst);
            while !wait.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let _ = stream.write_all(OK).await;
        }
    })
    .await;
    let mut mesh = Mesh::with(|options| options.workers = 1);
    let web = mesh.service("shop/web", "protocol: http", "");
    mesh.endpoints("shop/web", vec![at("a", slow.address)]);
    let asked = tokio::spawn(async move { Http1::connect(web).await.get("/").await });
    eventually("it is asked", || slow.requests() == 1).await;
    assert_eq!(mesh.counted("shop/web", "a").unwrap().active, 1);
    mesh.endpoints("shop/web", vec![]);
    eventually("its counts are gone", || {
        mesh.counted("shop/web", "a").is_none()
    })
    .await;
    go.store(true, Ordering::SeqCst);
    assert_eq!(asked.await.unwrap().body, "ok");
    assert_eq!(mesh.counted("shop/web", "a"), None);
}

#[tokio::test]
async fn connections_and_bytes_of_tcp_ports_are_counted_too() {
    let echo = Backend::raw(|mut stream, _| async move {
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await;
    let refusing = Refusing::new();
    let mut mesh = Mesh::with(|options| options.workers = 1);
    let db = mesh.service("shop/db", "protocol: tcp", "");
    mesh.endpoints(
        "shop/db",
        vec![at("bad", refusing.address), at("echo", echo.address)],
    );
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = TcpStream::connect(db).await.unwrap();
        client.write_all(b"ping").await.unwrap();
        let mut back = [0; 4];
        soon("the echo", client.read_exact(&mut back))
            .await
            .unwrap();
        clients.push(client);
    }
    let counted = mesh.counted("shop/db", "echo").unwrap();
    assert_eq!((counted.connections, counted.active), (2, 2));
    assert_eq!((counted.received, counted.sent), (8, 8));
    assert_eq!(mesh.counted("shop/db", "bad").unwrap().errors, 1);
    drop(clients);
    eventually("they have ended", || {
        mesh.counted("shop/db", "echo").unwrap().active == 0
    })
    .await;
}
