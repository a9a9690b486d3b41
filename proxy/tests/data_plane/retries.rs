//! What is sent again, and what never is.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Backend, Http1, Mesh, at};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// Reads a request's head, and its body if the head says `content-length: 5`.
async fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut text = String::new();
    let mut buffer = [0; 1024];
    loop {
        let n = stream.read(&mut buffer).await.ok().filter(|n| *n > 0)?;
        text.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
        if let Some((head, body)) = text.split_once("\r\n\r\n")
            && (!head.contains("content-length: 5") || body.len() == 5)
        {
            return Some(text);
        }
    }
}

/// Reads every request whole, then resets.
async fn resetting() -> Backend {
    Backend::raw(|mut stream, requests| async move {
        if read_request(&mut stream).await.is_some() {
            requests.fetch_add(1, Ordering::SeqCst);
        }
        SockRef::from(&stream)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
    })
    .await
}

#[tokio::test]
async fn a_post_that_may_have_been_executed_is_not_sent_again() {
    let [a, b] = [resetting().await, resetting().await];
    let mut mesh = Mesh::start();
    let web = mesh.service(
        "shop/web",
        "protocol: http",
        "retries: {attempts: 5, budgetPercent: 100}",
    );
    mesh.endpoints("shop/web", vec![at("a", a.address), at("b", b.address)]);
    let reply = Http1::connect(web).await.post("/", "hello").await;
    assert_eq!(
        (reply.status, reply.header("x-heddle-error")),
        (502, Some("endpoint-failed"))
    );
    assert_eq!(a.requests() + b.requests(), 1);
}

#[tokio::test]
async fn a_get_goes_to_another_endpoint_when_the_first_resets() {
    let [bad, good] = [resetting().await, Backend::http1("good").await];
    let mut mesh = Mesh::start();
    let web = mesh.service(
        "shop/web",
        "protocol: http",
        "retries: {budgetPercent: 100}",
    );
    mesh.endpoints(
        "shop/web",
        vec![at("bad", bad.address), at("good", good.address)],
    );
    let mut client = Http1::connect(web).await;
    for _ in 0..10 {
        assert_eq!(client.get("/").await.body, "good");
    }
    assert_eq!(bad.requests(), 5);
    let retried = "heddle_retries_total{namespace=\"shop\",service=\"web\",result=\"success\"}";
    assert_eq!(mesh.metric(retried), 5.0);
}

#[tokio::test]
async fn without_retries_a_reset_is_the_clients_502() {
    let bad = resetting().await;
    let mut mesh = Mesh::start();
    let web = mesh.service("shop/web", "protocol: http", "retries: {attempts: 0}");
    mesh.endpoints(
        "shop/web",
        vec![at("bad", bad.address), at("worse", bad.address)],
    );
    assert_eq!(Http1::connect(web).await.get("/").await.status, 502);
    assert_eq!(bad.requests(), 1);
}

#[tokio::test]
async fn retries_end_with_their_budget() {
    let [a, b] = [resetting().await, resetting().await];
    let mut mesh = Mesh::with(|options| options.workers = 1);
    let web = mesh.service(
        "shop/web",
        "protocol: http",
        "retries: {attempts: 3, budgetPercent: 20}",
    );
    mesh.endpoints("shop/web", vec![at("a", a.address), at("b", b.address)]);
    let mut client = Http1::connect(web).await;
    for _ in 0..200 {
        assert_eq!(client.get("/").await.status, 502);
    }
    let upstream = a.requests() + b.requests();
    assert!(
        (240..=250).contains(&upstream),
        "200 requests became {upstream}; 20 % and a reserve of 10 are 250"
    );
    assert!(
        mesh.metric(
            "heddle_retries_total{namespace=\"shop\",service=\"web\",result=\"over_budget\"}"
        ) >= 100.0
    );
}

/// Answers, then closes a connection that was idle for as long as the client waits between requests.
async fn impatient(idle: Duration) -> Backend {
    Backend::raw(move |mut stream, requests| async move {
        let mut next = read_request(&mut stream).await;
        while next.is_some() {
            requests.fetch_add(1, Ordering::SeqCst);
            if stream.write_all(OK).await.is_err() {
                return;
            }
            let waited = tokio::time::timeout(idle, read_request(&mut stream)).await;
            next = waited.unwrap_or(None);
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_closes_as_the_next_get_comes_is_no_error() {
    let interval = Duration::from_millis(4);
    let backend = impatient(interval).await;
    let mut mesh = Mesh::start();
    let web = mesh.service("shop/web", "protocol: http", "");
    mesh.endpoints("shop/web", vec![at("a", backend.address)]);
    let clients = (0..8).map(|_| async move {
        let mut client = Http1::connect(web).await;
        for _ in 0..150 {
            let reply = client.get("/").await;
            assert_eq!(reply.status, 200, "{}", reply.body);
            tokio::time::sleep(interval).await;
        }
    });
    futures::future::join_all(clients).await;
    assert!(
        backend.connections() > 50,
        "the endpoint did close: {} connections",
        backend.connections()
    );
}

#[tokio::test]
async fn a_post_never_rides_a_connection_that_its_endpoint_has_closed() {
    let backend = impatient(Duration::from_millis(20)).await;
    let mut mesh = Mesh::with(|options| options.workers = 1);
    let web = mesh.service("shop/web", "protocol: http", "");
    mesh.endpoints("shop/web", vec![at("a", backend.address)]);
    let mut client = Http1::connect(web).await;
    for _ in 0..20 {
        assert_eq!(client.post("/", "hello").await.status, 200);
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    assert_eq!(backend.requests(), 20);
}

#[tokio::test]
async fn the_first_post_of_a_client_gets_a_new_connection_and_the_next_reuse_it() {
    let backend = Backend::http1("a").await;
    let mut mesh = Mesh::with(|options| options.workers = 1);
    let web = mesh.service("shop/web", "protocol: http", "");
    mesh.endpoints("shop/web", vec![at("a", backend.address)]);
    for _ in 0..3 {
        let mut client = Http1::connect(web).await;
        for _ in 0..5 {
            client.post("/echo", "hello").await;
        }
    }
    assert_eq!(backend.connections(), 3);
}

#[tokio::test]
async fn half_an_answer_is_not_passed_off_as_a_whole_one() {
    let backend = Backend::raw(|mut stream, _| async move {
        read_request(&mut stream).await;
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")
            .await
            .unwrap();
    })
    .await;
    let mut mesh = Mesh::start();
    let web = mesh.service("shop/web", "protocol: http", "");
    mesh.endpoints("shop/web", vec![at("a", backend.address)]);
    let mut client = Http1::connect(web).await;
    assert!(
        client
            .try_request("GET / HTTP/1.1\r\nhost: web\r\n\r\n")
            .await
            .is_none()
    );
}

#[tokio::test]
async fn garbage_instead_of_an_answer_is_a_502() {
    let backend = Backend::raw(|mut stream, _| async move {
        read_request(&mut stream).await;
        stream
            .write_all(b"SSH-2.0-OpenSSH_9.2p1\r\n")
            .await
            .unwrap();
    })
    .await;
    let mut mesh = Mesh::start();
    let web = mesh.service("shop/web", "protocol: http", "retries: {attempts: 0}");
    mesh.endpoints("shop/web", vec![at("a", backend.address)]);
    assert_eq!(Http1::connect(web).await.get("/").await.status, 502);
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_work_on_its_endpoint() {
    let ended = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&ended);
    let backend = Backend::raw(move |mut stream, _| {
        let ended = Arc::clone(&counter);
        async move {
            read_request(&mut stream).await;
            let mut byte = [0];
            if matches!(stream.read(&mut byte).await, Ok(0) | Err(_)) {
                ended.fetch_add(1, Ordering::SeqCst);
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
    crate::support::eventually("the request is under way", || {
        mesh.in_flight("shop/web", 0) == 1
    })
    .await;
    drop(client);
    crate::support::eventually("the endpoint's connection ends", || {
        ended.load(Ordering::SeqCst) == 1
    })
    .await;
    crate::support::eventually("it is counted as 499", || {
        mesh.metric("heddle_requests_total{namespace=\"shop\",service=\"web\",protocol=\"http1\",code=\"499\"}") == 1.0
    })
    .await;
    assert_eq!(mesh.in_flight("shop/web", 0), 0);
}

/// Its queue of connections is full: the kernel answers no further packet.
fn silent() -> (socket2::Socket, Vec<std::net::TcpStream>) {
    let any: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
    let listener =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    listener.bind(&any.into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let fill = || std::net::TcpStream::connect_timeout(&address, Duration::from_millis(300)).ok();
    let queue = std::iter::from_fn(fill).collect();
    (listener, queue)
}

#[tokio::test]
async fn an_endpoint_that_answers_no_packet_costs_one_time_out_and_is_then_passed_over() {
    let (silent, _queue) = silent();
    let silent = silent.local_addr().unwrap().as_socket().unwrap();
    let good = Backend::http1("good").await;
    let mut mesh = Mesh::start();
    let all = vec![at("silent", silent), at("good", good.address)];
    for protocol in ["http", "tcp"] {
        let key = format!("shop/{protocol}");
        let port = format!("protocol: {protocol}");
        let web = mesh.service(&key, &port, "timeouts: {connect: 200ms}");
        mesh.endpoints(&key, all.clone());
        for _ in 0..20 {
            assert_eq!(Http1::connect(web).await.get("/").await.status, 200);
        }
        let labels = format!("{{namespace=\"shop\",service=\"{protocol}\"}}");
        let count = |name: &str| mesh.metric(&format!("{name}{labels}"));
        // Picked in turn, it would have been tried ten times. Slow machines reach the time after which one try is due.
        let tries = count("heddle_upstream_connect_failures_total");
        assert!((1.0..=3.0).contains(&tries), "{tries} tries");
        assert_eq!(count("heddle_endpoint_hold_offs_total"), tries);
    }
}

#[tokio::test]
async fn a_try_that_takes_too_long_ends_and_another_endpoint_is_asked() {
    let [slow, good] = [mute().await, Backend::http1("good").await];
    let mut mesh = Mesh::start();
    let web = mesh.service(
        "shop/web",
        "protocol: http",
        "retries: {perTry: 100ms, budgetPercent: 100}",
    );
    mesh.endpoints(
        "shop/web",
        vec![at("slow", slow.address), at("good", good.address)],
    );
    let mut client = Http1::connect(web).await;
    for _ in 0..4 {
        assert_eq!(client.get("/").await.body, "good");
    }
    assert!(slow.requests() > 0);
    // What may have been executed is not sent again, and the answer says whose time it was.
    mesh.endpoints("shop/web", vec![at("slow", slow.address)]);
    let before = slow.requests();
    let reply = client.post("/", "hello").await;
    assert_eq!(
        (reply.status, reply.header("x-heddle-error")),
        (504, Some("timeout"))
    );
    assert!(reply.body.contains("perTry"), "{}", reply.body);
    assert_eq!(slow.requests(), before + 1);
}

/// Reads every request whole and never answers.
async fn mute() -> Backend {
    Backend::raw(|mut stream, requests| async move {
        while read_request(&mut stream).await.is_some() {
            requests.fetch_add(1, Ordering::SeqCst);
        }
    })
    .await
}
