//! Checks of real servers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::check::probe::Failure;
use crate::metrics::Metrics;

async fn check(probe: Probe, address: SocketAddr) -> Result<&'static str, String> {
    outcome(spec(probe, address)).await
}

async fn outcome(spec: Spec) -> Result<&'static str, String> {
    spec.target()
        .run(None)
        .await
        .map_err(|failure| match failure {
            Failure::Theirs(reason) => reason,
            Failure::Ours(reason) => panic!("not the endpoint's fault: {reason}"),
        })
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    (listener, address)
}

/// A server that answers each connection with these bytes, after it has read something.
async fn answering(answer: &'static [u8]) -> SocketAddr {
    let (listener, address) = listener().await;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(answer).await;
                let _ = stream.shutdown().await;
                let _ = stream.read(&mut request).await;
            });
        }
    });
    address
}

fn http(path: &str, expect: Option<&str>) -> Probe {
    Probe::Http {
        path: path.into(),
        expect: expect.map(|e| e.parse().expect("statuses")),
    }
}

#[tokio::test]
async fn an_http_check_passes_on_the_expected_statuses_and_follows_no_redirection() {
    let ok = answering(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let moved = answering(
        b"HTTP/1.1 302 Found\r\nlocation: http://192.0.2.1/\r\ncontent-length: 0\r\n\r\n",
    )
    .await;
    let broken = answering(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n").await;
    assert!(check(http("/", None), ok).await.is_ok());
    assert!(check(http("/", None), moved).await.is_ok());
    assert!(check(http("/", Some("200-299")), moved).await.is_err());
    assert!(check(http("/", Some("503")), broken).await.is_ok());
    let failure = check(http("/healthz", None), broken).await.unwrap_err();
    assert_eq!(failure, "GET /healthz: 503 (want 200-399)");
    let interim =
        answering(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            .await;
    assert!(check(http("/", None), interim).await.is_ok());
}

#[tokio::test]
async fn what_is_not_http_fails_the_check_and_says_what_it_is() {
    for (answer, expected) in [
        (
            &b"SSH-2.0-OpenSSH_9.2\r\n"[..],
            "GET /: an answer that is not HTTP/1: `SSH-2.0-OpenSSH_9.2\\r\\n`",
        ),
        (b"", "GET /: connection closed before the answer was whole"),
        (
            b"\0\x01\xff",
            "GET /: an answer that is not HTTP/1: `\\u{0}\\u{1}\u{fffd}`",
        ),
        (
            b"HTTP/1.1 200 OK\r\ncontent-le",
            "GET /: connection closed before the answer was whole",
        ),
    ] {
        let address = answering(answer).await;
        assert_eq!(check(http("/", None), address).await.unwrap_err(), expected);
    }
}

#[tokio::test]
async fn a_reason_is_bounded_whatever_is_asked_and_answered() {
    let broken = answering(b"HTTP/1.1 500 No\r\n\r\n").await;
    let long = format!("/{}", "x".repeat(2000));
    let several = Spec {
        addresses: vec![broken, broken],
        ..spec(http(&long, Some("200")), broken)
    };
    let reason = outcome(several).await.unwrap_err();
    assert!(reason.chars().count() <= 241, "{reason}");
    assert!(reason.ends_with(": 500 (want 200)"), "{reason}");
    let address = answering(b"HTTP/1.1 200 OK\r\n\r\n").await;
    assert!(check(http("/a b", None), address).await.is_err());
}

#[tokio::test]
async fn a_check_sends_host_and_agent() {
    let (listener, address) = listener().await;
    let asked = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut request = vec![0; 1024];
        let read = stream.read(&mut request).await.expect("a request");
        request.truncate(read);
        String::from_utf8(request).expect("text")
    });
    let _ = check(http("/up", None), address).await;
    let request = asked.await.expect("asked").to_lowercase();
    assert!(request.starts_with("get /up http/1.1\r\n"), "{request}");
    assert!(
        request.contains(&format!("host: {address}\r\n")),
        "{request}"
    );
    assert!(request.contains("user-agent: heddle-health/"), "{request}");
}

#[tokio::test]
async fn a_tcp_check_is_not_seen_by_the_application() {
    let (listener, address) = listener().await;
    // The kernel acknowledges by itself what nobody has reset within 40 ms, as on a machine that stands still meanwhile.
    let mut slow = 0;
    for _ in 0..20 {
        let began = std::time::Instant::now();
        assert!(check(Probe::Tcp, address).await.is_ok());
        slow += usize::from(began.elapsed() >= Duration::from_millis(30));
    }
    let real = TcpStream::connect(address).await.expect("it listens");
    let mut seen = 0;
    while listener.accept().await.expect("a connection").1 != real.local_addr().expect("bound") {
        seen += 1;
    }
    assert!(
        seen <= slow,
        "{seen} of 20 checks were seen, {slow} were slow"
    );
}

#[tokio::test]
async fn a_server_that_closes_after_its_answer_sees_an_orderly_end() {
    let (listener, address) = listener().await;
    let served = tokio::spawn(async move {
        let mut ends = Vec::new();
        for _ in 0..5 {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
                .await
                .expect("the head is sent");
            let body = stream.write_all(&[b'x'; 60_000]).await;
            ends.push(body.and(stream.shutdown().await));
        }
        ends
    });
    for _ in 0..5 {
        assert!(check(http("/", None), address).await.is_ok());
    }
    for end in served.await.expect("served") {
        end.expect("no reset in the middle of the answer");
    }
}

#[tokio::test]
async fn a_refused_connection_says_so_and_a_second_address_is_tried() {
    let (bound, dead) = listener().await;
    drop(bound);
    let failure = check(Probe::Tcp, dead).await.unwrap_err();
    assert_eq!(failure, "connection refused");
    let (_alive, alive) = listener().await;
    let both = Spec {
        addresses: vec![dead, alive],
        ..spec(Probe::Tcp, dead)
    };
    assert!(outcome(both).await.is_ok());
}

#[tokio::test]
async fn a_server_that_never_answers_fails_at_the_time_out() {
    let (_listener, address) = listener().await;
    let probe = Spec {
        timeout: Duration::from_millis(30),
        ..spec(http("/", None), address)
    };
    let failure = outcome(probe).await.unwrap_err();
    assert_eq!(failure, "GET /: no answer within 30ms");
}

/// A gRPC server that gives this status as its only trailer or, with a message, this message.
async fn grpc_server(message: &'static [u8], status: &'static str) -> SocketAddr {
    let (listener, address) = listener().await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let answer =
                    service_fn(move |request: Request<hyper::body::Incoming>| async move {
                        assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                        assert_eq!(request.headers()["content-type"], "application/grpc");
                        Response::builder()
                            .header("content-type", "application/grpc")
                            .header("grpc-status", status)
                            .header("grpc-message", "because")
                            .body(Full::new(Bytes::from_static(message)))
                    });
                let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), answer)
                    .await;
            });
        }
    });
    address
}

#[tokio::test]
async fn a_grpc_check_passes_only_while_serving() {
    let probe = || Probe::Grpc {
        service: "shop.Web".into(),
    };
    let serving = grpc_server(&[0, 0, 0, 0, 2, 8, 1], "0").await;
    assert!(check(probe(), serving).await.is_ok());
    let not_serving = grpc_server(&[0, 0, 0, 0, 2, 8, 2], "0").await;
    let failure = check(probe(), not_serving).await.unwrap_err();
    assert_eq!(failure, "gRPC health of shop.Web: NOT_SERVING");
    let unimplemented = grpc_server(b"", "12").await;
    let failure = check(probe(), unimplemented).await.unwrap_err();
    assert_eq!(failure, "gRPC health of shop.Web: status 12: because");
    let http1 = answering(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    assert!(check(probe(), http1).await.is_err());
}

#[tokio::test]
async fn no_more_checks_run_at_once_than_the_limit_allows() {
    let (listener, address) = listener().await;
    let most = Arc::new(AtomicUsize::new(0));
    let seen = most.clone();
    tokio::spawn(async move {
        let now = Arc::new(AtomicUsize::new(0));
        while let Ok((mut stream, _)) = listener.accept().await {
            let (now, seen) = (now.clone(), seen.clone());
            tokio::spawn(async move {
                seen.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                let mut request = [0; 512];
                let _ = stream.read(&mut request).await;
                tokio::task::yield_now().await;
                now.fetch_sub(1, Ordering::SeqCst);
                let _ = stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                    .await;
            });
        }
    });
    let mut checks = Checks::new(4, 1, Metrics::new());
    for n in 0..40 {
        let begin = Begin::Starting(fact(Health::Unknown));
        let path = format!("/{n}");
        checks.begin(key(&n.to_string()), spec(http(&path, None), address), begin);
    }
    for _ in 0..40 {
        let (_, fact) = tokio::time::timeout(Duration::from_secs(60), checks.changed())
            .await
            .expect("all of them turn");
        assert_eq!(fact.value, Health::Passing);
    }
    assert!(most.load(Ordering::SeqCst) <= 4);
}
