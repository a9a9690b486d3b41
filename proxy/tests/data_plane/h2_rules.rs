//! Requests that RFC 9113 has a server refuse.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::client::{request, text};
use crate::support::frames::*;
use crate::support::{Backend, Mesh, at, http2};

/// A service with an endpoint that nothing malformed may reach.
pub async fn web(upstream: &str) -> (Mesh, std::net::SocketAddr, Backend) {
    let (backend, port) = match upstream {
        "h2c" => (
            Backend::http2("one", 0).await,
            "protocol: http, upstreamProtocol: h2c",
        ),
        _ => (Backend::http1("one").await, "protocol: http"),
    };
    let mut mesh = Mesh::with(|options| options.workers = 1);
    let web = mesh.service("shop/web", port, "");
    mesh.endpoints("shop/web", vec![at("one", backend.address)]);
    (mesh, web, backend)
}

/// An error of the stream: reset, or answered 400 (8.1.1). One of the connection is allowed instead (5.4.2).
fn is_refusal(outcome: Outcome) -> bool {
    matches!(
        outcome,
        Outcome::StreamReset(PROTOCOL_ERROR)
            | Outcome::Status(Some(400))
            | Outcome::ConnectionEnded(Some(PROTOCOL_ERROR))
    )
}

#[tokio::test]
async fn malformed_requests_reach_no_endpoint() {
    type Change<'a> = &'a [(&'a [u8], Option<&'a [u8]>)];
    let cases: &[(&str, Change)] = &[
        ("an upper-case name (8.2)", &[(b"X-Up", Some(b"1"))]),
        ("a space in a name", &[(b"x y", Some(b"1"))]),
        ("a colon in a name", &[(b"x:y", Some(b"1"))]),
        ("an empty name", &[(b"", Some(b"1"))]),
        ("a control character in a name", &[(b"x\x01", Some(b"1"))]),
        ("CR and LF in a name", &[(b"x\r\ny", Some(b"1"))]),
        ("LF in a value (8.2.1)", &[(b"x", Some(b"1\nx-evil: 1"))]),
        ("CR in a value", &[(b"x", Some(b"1\rx-evil: 1"))]),
        ("NUL in a value", &[(b"x", Some(b"1\0"))]),
        ("connection (8.2.2)", &[(b"connection", Some(b"x"))]),
        ("keep-alive", &[(b"keep-alive", Some(b"timeout=1"))]),
        ("proxy-connection", &[(b"proxy-connection", Some(b"x"))]),
        (
            "transfer-encoding",
            &[(b"transfer-encoding", Some(b"chunked"))],
        ),
        ("upgrade", &[(b"upgrade", Some(b"websocket"))]),
        ("te other than trailers", &[(b"te", Some(b"gzip"))]),
        ("no :method (8.3.1)", &[(b":method", None)]),
        ("no :scheme", &[(b":scheme", None)]),
        ("no :path", &[(b":path", None)]),
        ("an empty :path", &[(b":path", Some(b""))]),
        ("an unknown pseudo-header", &[(b":proto", Some(b"x"))]),
        ("a response's pseudo-header", &[(b":status", Some(b"200"))]),
        (
            "a pseudo-header behind others (8.3)",
            &[(b":path", None), (b"x", Some(b"1")), (b":path", Some(b"/"))],
        ),
        (
            "CR and LF in :path",
            &[(b":path", Some(b"/ HTTP/1.1\r\nx-evil: 1\r\n\r\n"))],
        ),
        ("a space in :path", &[(b":path", Some(b"/ HTTP/1.1"))]),
        ("NUL in :path", &[(b":path", Some(b"/\0"))]),
        ("a :path that begins elsewhere", &[(b":path", Some(b"x"))]),
        ("an absolute :path", &[(b":path", Some(b"http://evil/"))]),
        (
            "CR and LF in :authority",
            &[(b":authority", Some(b"web\r\nx-evil: 1"))],
        ),
        (
            "a space in :authority",
            &[(b":authority", Some(b"web evil"))],
        ),
        ("NUL in :authority", &[(b":authority", Some(b"web\0"))]),
        ("a user in :authority", &[(b":authority", Some(b"me@web"))]),
        ("a path in :authority", &[(b":authority", Some(b"web/x"))]),
        (
            "a host that is not the authority",
            &[(b"host", Some(b"evil"))],
        ),
        ("a space in :method", &[(b":method", Some(b"GET / HTTP"))]),
        ("LF in :method", &[(b":method", Some(b"GET\n"))]),
        ("an empty :method", &[(b":method", Some(b""))]),
        ("a space in :scheme", &[(b":scheme", Some(b"ht tp"))]),
        (
            "a length where nothing follows (8.1.1)",
            &[(b"content-length", Some(b"5"))],
        ),
        (
            "a length that is none",
            &[(b"content-length", Some(b"0x0"))],
        ),
    ];
    for upstream in ["http1", "h2c"] {
        let (_mesh, web, backend) = web(upstream).await;
        for (what, change) in cases {
            let mut raw = Raw::connect(web).await;
            raw.request(1, &fields(change)).await;
            let outcome = raw.outcome(1).await;
            assert!(is_refusal(outcome), "{what}: {outcome:?}");
            assert_eq!(backend.requests(), 0, "{what}");
        }
        for twice in [&b":path"[..], b":method", b":authority", b":scheme"] {
            let mut raw = Raw::connect(web).await;
            let mut all = fields(&[]);
            all.insert(0, (twice, b"/"));
            raw.request(1, &all).await;
            let outcome = raw.outcome(1).await;
            assert!(is_refusal(outcome), "{twice:?} twice: {outcome:?}");
        }
        assert_eq!(backend.requests(), 0);
        let mut client = http2(web).await;
        let response = client.send_request(request("GET", "/", "")).await.unwrap();
        assert_eq!(text(response).await, "one");
    }
}

#[tokio::test]
async fn a_value_keeps_to_itself() {
    // What an endpoint sees of values that are odd but sound.
    let (_mesh, web, _backend) = web("http1").await;
    for (sent, seen) in [
        (&b"a, b"[..], "a, b"),
        (b"tab\there", "tab\there"),
        // 8.2.1 has no space at either end: a reader of HTTP/1.1 would not see it either.
        (b"", ""),
    ] {
        let mut raw = Raw::connect(web).await;
        let changes = [
            (&b":path"[..], Some(&b"/headers"[..])),
            (b"x-odd", Some(sent)),
        ];
        raw.request(1, &fields(&changes)).await;
        let body = raw.until(DATA).await.unwrap().payload;
        let body = String::from_utf8(body).unwrap();
        assert!(body.contains(&format!("x-odd: {seen}\n")), "{body}");
    }
}

#[tokio::test]
async fn a_body_of_another_length_than_was_said_is_an_error() {
    let (_mesh, web, _backend) = web("http1").await;
    let headers = |length: &'static [u8]| {
        block(&fields(&[
            (b":method", Some(b"POST")),
            (b":path", Some(b"/echo")),
            (b"content-length", Some(length)),
        ]))
    };
    for (what, length) in [("less", &b"10"[..]), ("more", b"3")] {
        let mut raw = Raw::connect(web).await;
        raw.frame(HEADERS, END_HEADERS, 1, &headers(length)).await;
        raw.frame(DATA, END_STREAM, 1, b"hello").await;
        let mut outcome = raw.outcome(1).await;
        // The answer may have begun before.
        if outcome == Outcome::Status(Some(200)) {
            outcome = raw.outcome(1).await;
        }
        assert!(is_refusal(outcome), "{what}: {outcome:?}");
    }
    let mut raw = Raw::connect(web).await;
    raw.frame(HEADERS, END_HEADERS, 1, &headers(b"5")).await;
    raw.frame(DATA, END_STREAM, 1, b"hello").await;
    assert_eq!(raw.outcome(1).await, Outcome::Status(Some(200)));
}

#[tokio::test]
async fn malformed_trailers_are_an_error() {
    let (_mesh, web, _backend) = web("http1").await;
    let post = [
        (&b":method"[..], Some(&b"POST"[..])),
        (b":path", Some(b"/echo")),
    ];
    for (what, trailers, flags) in [
        (
            "an upper-case name in trailers",
            block(&[(b"X", b"/")]),
            END_STREAM | END_HEADERS,
        ),
        (
            "trailers that end nothing",
            block(&[(b"x", b"/")]),
            END_HEADERS,
        ),
    ] {
        let mut raw = Raw::connect(web).await;
        let head = block(&fields(&post));
        raw.frame(HEADERS, END_HEADERS, 1, &head).await;
        raw.frame(DATA, 0, 1, b"hello").await;
        raw.frame(HEADERS, flags, 1, &trailers).await;
        let mut outcome = raw.outcome(1).await;
        // The answer may have begun before.
        if outcome == Outcome::Status(Some(200)) {
            outcome = raw.outcome(1).await;
        }
        assert!(is_refusal(outcome), "{what}: {outcome:?}");
    }
}

#[tokio::test]
async fn a_pseudo_header_in_trailers_goes_nowhere() {
    // 8.1 would have it refused. The library drops it unseen.
    let seen = Arc::<Mutex<Vec<u8>>>::default();
    let writes = Arc::clone(&seen);
    let backend = Backend::raw(move |mut stream, _| {
        let writes = Arc::clone(&writes);
        async move {
            let ends = |bytes: &[u8]| {
                bytes
                    .windows(5)
                    .any(|five| five == b"0\r\nx-" || five == b"0\r\n\r\n")
            };
            while !ends(&writes.lock().unwrap()) {
                let mut bytes = [0; 1024];
                match stream.read(&mut bytes).await {
                    Ok(n @ 1..) => writes.lock().unwrap().extend_from_slice(&bytes[..n]),
                    _ => return,
                }
            }
            let answer = b"HTTP/1.1 204 No Content\r\n\r\n";
            stream.write_all(answer).await.unwrap();
        }
    })
    .await;
    let mut mesh = Mesh::start();
    let web = mesh.service("shop/web", "protocol: http", "");
    mesh.endpoints("shop/web", vec![at("one", backend.address)]);
    let mut raw = Raw::connect(web).await;
    let head = block(&fields(&[(b":method", Some(b"POST"))]));
    raw.frame(HEADERS, END_HEADERS, 1, &head).await;
    raw.frame(DATA, 0, 1, b"hello").await;
    let trailers = block(&[(b":path", b"/evil"), (b"x-sum", b"1")]);
    raw.frame(HEADERS, END_STREAM | END_HEADERS, 1, &trailers)
        .await;
    let outcome = raw.outcome(1).await;
    assert!(
        is_refusal(outcome) || outcome == Outcome::Status(Some(204)),
        "{outcome:?}"
    );
    let seen = String::from_utf8(seen.lock().unwrap().clone()).unwrap();
    assert!(!seen.contains("evil"), "{seen}");
}
