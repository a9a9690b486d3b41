//! The HTTP/1.1 engine at its edges: bytes by hand on both sides.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Backend, Http1, Mesh, at, eventually, soon};

/// Reads until the text ends a head.
pub async fn head(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else {
            break;
        };
        text.push(byte);
    }
    String::from_utf8(text).unwrap()
}

/// Answers the first request of each connection with these bytes, then closes.
async fn saying(answer: impl Into<Vec<u8>>) -> Backend {
    let answer: Arc<[u8]> = Arc::from(answer.into());
    Backend::raw(move |mut stream, requests| {
        let answer = Arc::clone(&answer);
        async move {
            if head(&mut stream).await.is_empty() {
                return;
            }
            requests.fetch_add(1, Ordering::SeqCst);
            stream.write_all(&answer).await.unwrap();
        }
    })
    .await
}

pub async fn mesh_of(backend: &Backend) -> (Mesh, std::net::SocketAddr) {
    let mut mesh = Mesh::with(|options| options.workers = 1);
    let web = mesh.service("shop/web", "protocol: http", "retries: {attempts: 0}");
    mesh.endpoints("shop/web", vec![at("a", backend.address)]);
    (mesh, web)
}

/// Everything that a client gets for these bytes until the connection ends.
async fn all(web: std::net::SocketAddr, request: &str) -> String {
    let mut client = Http1::connect(web).await;
    client.send(request).await.unwrap();
    let mut text = Vec::new();
    // A reset ends it as well.
    let _ = soon("the end", client.stream.read_to_end(&mut text)).await;
    String::from_utf8(text).unwrap()
}

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() {
    let backend = Backend::http1("a").await;
    let (_mesh, web) = mesh_of(&backend).await;
    let mut client = Http1::connect(web).await;
    let post = "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\none";
    let chunked =
        "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\ntwo\r\n0\r\n\r\n";
    let get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    client
        .send(&[post, get, chunked, get].concat())
        .await
        .unwrap();
    for body in ["one", "a", "two", "a"] {
        assert_eq!(soon("an answer", client.reply()).await.unwrap().body, body);
    }
}

#[tokio::test]
async fn a_request_that_comes_byte_by_byte_is_one_request() {
    let backend = Backend::http1("a").await;
    let (_mesh, web) = mesh_of(&backend).await;
    let mut client = Http1::connect(web).await;
    client.stream.set_nodelay(true).unwrap();
    let text = "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\n";
    for byte in text.as_bytes() {
        client.stream.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(soon("an answer", client.reply()).await.unwrap().body, "abc");
    assert_eq!(client.get("/").await.body, "a");
    assert_eq!(backend.requests(), 2);
}

#[tokio::test]
async fn a_response_that_comes_byte_by_byte_is_one_response() {
    let backend = Backend::raw(|mut stream, _| async move {
        stream.set_nodelay(true).unwrap();
        while !head(&mut stream).await.is_empty() {
            let text = "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
                        3;x=y\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n";
            for byte in text.as_bytes() {
                stream.write_all(&[*byte]).await.unwrap();
                tokio::task::yield_now().await;
            }
        }
    })
    .await;
    let (_mesh, web) = mesh_of(&backend).await;
    let mut client = Http1::connect(web).await;
    for _ in 0..2 {
        client
            .send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            .await
            .unwrap();
        let early = soon("early hints", client.head()).await.unwrap();
        assert_eq!((early.status, early.header("link")), (103, Some("x")));
        let reply = soon("the response", client.reply()).await.unwrap();
        assert_eq!(
            (reply.body.as_str(), reply.trailers.as_str()),
            ("abc", "X-Sum: 1")
        );
    }
    assert_eq!(backend.connections(), 1);
}

#[tokio::test]
async fn responses_without_a_body_end_with_their_head() {
    for (status, fields) in [
        ("204 No Content", ""),
        ("304 Not Modified", "Content-Length: 10\r\n"),
        ("200 OK", "Content-Length: 0\r\n"),
    ] {
        let answer = format!("HTTP/1.1 {status}\r\n{fields}\r\n");
        let backend = Backend::raw(move |mut stream, _| {
            let answer = answer.clone();
            async move {
                while !head(&mut stream).await.is_empty() {
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            }
        })
        .await;
        let (_mesh, web) = mesh_of(&backend).await;
        let mut client = Http1::connect(web).await;
        for _ in 0..3 {
            client
                .send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                .await
                .unwrap();
            let head = soon("a head", client.head()).await.unwrap();
            assert_eq!(head.status.to_string(), status[..3]);
            let length = head.header("content-length");
            assert_eq!(length.is_some(), !fields.is_empty());
        }
        assert_eq!(backend.connections(), 1, "{status}: the connection is kept");
    }
}

#[tokio::test]
async fn a_head_request_gets_the_length_and_no_body() {
    let backend = Backend::http1("a").await;
    let (_mesh, web) = mesh_of(&backend).await;
    let mut client = Http1::connect(web).await;
    for _ in 0..2 {
        client
            .send("HEAD /fill/1000 HTTP/1.1\r\nHost: a\r\n\r\n")
            .await
            .unwrap();
        let head = soon("a head", client.head()).await.unwrap();
        assert_eq!(head.header("content-length"), Some("1000"));
    }
    assert_eq!(client.get("/").await.body, "a");
}

#[tokio::test]
async fn a_body_that_nobody_asked_for_goes_to_nobody() {
    let backend = saying("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil").await;
    let (_mesh, web) = mesh_of(&backend).await;
    let mut client = Http1::connect(web).await;
    assert_eq!(client.get("/").await.body, "ok");
    assert_eq!(client.get("/").await.body, "ok");
    assert_eq!(
        backend.connections(),
        2,
        "a connection with leftovers is not kept"
    );
}

#[tokio::test]
async fn a_body_in_an_answer_to_head_goes_to_nobody() {
    let backend = saying("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil").await;
    let (_mesh, web) = mesh_of(&backend).await;
    let text = all(
        web,
        "HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert!(text.ends_with("\r\n\r\n"), "{text}");
}

#[tokio::test]
async fn responses_that_can_not_be_understood_are_a_502() {
    for (what, answer) in [
        (
            "two lengths",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
        ),
        (
            "length and chunks",
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "an unknown coding",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nabc",
        ),
        (
            "a folded field",
            "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n",
        ),
        ("half a head", "HTTP/1.1 200 OK\r\nContent-Le"),
        ("nothing", ""),
    ] {
        let backend = saying(answer).await;
        let (_mesh, web) = mesh_of(&backend).await;
        let text = all(web, GET).await;
        assert!(text.starts_with("HTTP/1.1 502 "), "{what}: {text}");
        assert!(
            text.contains("x-heddle-error: endpoint-failed"),
            "{what}: {text}"
        );
    }
}

#[tokio::test]
async fn a_head_without_end_is_a_502() {
    let endless = format!("HTTP/1.1 200 OK\r\nX: {}", "y".repeat(80 << 10));
    let backend = saying(endless).await;
    let (_mesh, web) = mesh_of(&backend).await;
    let text = all(web, GET).await;
    assert!(text.starts_with("HTTP/1.1 502 "), "{text}");
    assert!(text.contains("longer than 64 KiB"), "{text}");
}

#[tokio::test]
async fn truncated_bodies_stay_truncated() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nzz\r\n",
    ] {
        let backend = saying(answer).await;
        let (_mesh, web) = mesh_of(&backend).await;
        let mut client = Http1::connect(web).await;
        let reply = client
            .try_request("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            .await;
        assert!(reply.is_none(), "{answer}: {reply:?}");
    }
}

#[tokio::test]
async fn a_body_that_ends_with_its_connection_is_whole_and_the_clients_goes_on() {
    let backend = saying("HTTP/1.1 200 OK\r\n\r\nall of it").await;
    let (_mesh, web) = mesh_of(&backend).await;
    let mut client = Http1::connect(web).await;
    for _ in 0..2 {
        let reply = client.get("/").await;
        assert_eq!(reply.body, "all of it");
        assert_eq!(reply.header("transfer-encoding"), Some("chunked"));
    }
    let text = all(web, "GET / HTTP/1.0\r\n\r\n").await;
    assert!(text.ends_with("\r\n\r\nall of it"), "{text}");
    assert!(!text.contains("chunked"), "{text}");
}

#[tokio::test]
async fn a_client_that_asks_first_is_told_to_go_on_by_its_endpoint() {
    let backend = Backend::raw(|mut stream, _| async move {
        let asked = head(&mut stream).await;
        assert!(
            asked.to_lowercase().contains("expect: 100-continue"),
            "{asked}"
        );
        stream
            .write_all(b"HTTP/1.1 100 Continue\r\n\r\n")
            .await
            .unwrap();
        let mut body = [0; 5];
        stream.read_exact(&mut body).await.unwrap();
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        stream.write_all(answer).await.unwrap();
    })
    .await;
    let (_mesh, web) = mesh_of(&backend).await;
    let mut client = Http1::connect(web).await;
    client
        .send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        .await
        .unwrap();
    assert_eq!(soon("the 100", client.head()).await.unwrap().status, 100);
    client.send("hello").await.unwrap();
    assert_eq!(soon("the answer", client.reply()).await.unwrap().body, "ok");
}

#[tokio::test]
async fn an_answer_before_the_bodys_end_arrives_and_the_connection_closes() {
    let backend = saying("HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig").await;
    let (_mesh, web) = mesh_of(&backend).await;
    let mut client = Http1::connect(web).await;
    client
        .send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nsome")
        .await
        .unwrap();
    let reply = soon("the answer", client.reply()).await.unwrap();
    assert_eq!((reply.status, reply.body.as_str()), (413, "big"));
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn a_put_with_a_body_goes_to_another_endpoint_when_the_first_resets() {
    let bad = Backend::raw(|mut stream, requests| async move {
        head(&mut stream).await;
        let mut body = [0; 5];
        stream.read_exact(&mut body).await.unwrap();
        requests.fetch_add(1, Ordering::SeqCst);
    })
    .await;
    let good = Backend::http1("good").await;
    let mut mesh = Mesh::with(|options| options.workers = 1);
    let spec = "retries: {budgetPercent: 100}";
    let web = mesh.service("shop/web", "protocol: http", spec);
    let both = vec![at("bad", bad.address), at("good", good.address)];
    mesh.endpoints("shop/web", both);
    let mut client = Http1::connect(web).await;
    for _ in 0..4 {
        client
            .send("PUT /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
            .await
            .unwrap();
        client.send("hello").await.unwrap();
        let reply = soon("an answer", client.reply()).await.unwrap();
        assert_eq!((reply.status, reply.body.as_str()), (200, "hello"));
    }
    assert!(bad.requests() > 0);
}

#[tokio::test]
async fn limits_of_a_head_are_named() {
    let backend = Backend::http1("a").await;
    let (mesh, web) = mesh_of(&backend).await;
    let long = "y".repeat(70 << 10);
    let target = "y".repeat(20 << 10);
    for (status, text) in [
        (
            431,
            format!("GET / HTTP/1.1\r\nHost: a\r\nX: {long}\r\n\r\n"),
        ),
        (
            431,
            format!(
                "GET / HTTP/1.1\r\nHost: a\r\n{}\r\n",
                "X: 1\r\n".repeat(200)
            ),
        ),
        (414, format!("GET /{target} HTTP/1.1\r\nHost: a\r\n\r\n")),
        (505, "GET / HTTP/2.1\r\nHost: a\r\n\r\n".to_owned()),
        (
            501,
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n".to_owned(),
        ),
    ] {
        let reply = all(web, &text).await;
        assert!(
            reply.starts_with(&format!("HTTP/1.1 {status} ")),
            "{status}: {reply}"
        );
        assert!(reply.contains("connection: close"), "{status}: {reply}");
    }
    assert_eq!(backend.requests(), 0);
    let counted = |code| {
        format!(
            "heddle_requests_total{{namespace=\"shop\",service=\"web\",protocol=\"http1\",code=\"{code}\"}}"
        )
    };
    eventually("they are counted", || mesh.metric(&counted(431)) == 2.0).await;
}
