//! What endpoints see of a request, and requests that none may see.

use proxy::Forwarding;
use tokio::io::AsyncReadExt;

use crate::support::{Backend, Http1, Mesh, at, soon};

async fn seen(request: &str) -> String {
    seen_with(request, Forwarding::default()).await
}

async fn seen_with(request: &str, forwarding: Forwarding) -> String {
    let backend = Backend::http1("a").await;
    let mut mesh = Mesh::with(|options| options.forwarding = forwarding);
    let web = mesh.service("shop/web", "protocol: http", "");
    mesh.endpoints("shop/web", vec![at("a", backend.address)]);
    let reply = Http1::connect(web)
        .await
        .try_request(request)
        .await
        .unwrap();
    assert_eq!(reply.status, 200, "{}", reply.body);
    reply.body
}

#[tokio::test]
async fn endpoints_learn_who_asked_and_nothing_of_this_hop() {
    let seen = seen(
        "GET /headers HTTP/1.1\r\nHost: shop.example:8080\r\nX-Forwarded-For: 203.0.113.9\r\n\
         Connection: keep-alive, X-Secret\r\nX-Secret: 1\r\nKeep-Alive: timeout=5\r\nAccept: */*\r\n\r\n",
    )
    .await;
    for line in [
        "GET /headers HTTP/1.1",
        "host: shop.example:8080",
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-proto: http",
        "x-forwarded-host: shop.example:8080",
        "accept: */*",
    ] {
        assert!(seen.lines().any(|l| l == line), "no `{line}` in\n{seen}");
    }
    for name in ["x-secret", "keep-alive", "connection"] {
        assert!(!seen.contains(&format!("\n{name}:")), "`{name}` in\n{seen}");
    }
}

const EARLIER: &str = "GET /headers HTTP/1.1\r\nHost: shop\r\nX-Forwarded-For: 203.0.113.9\r\n\
    X-Forwarded-For: 198.51.100.7\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: shop.example\r\n\
    Forwarded: for=203.0.113.9\r\nVia: 1.1 edge\r\nX-Request-Id: mine\r\ntraceparent: theirs\r\n\r\n";

#[tokio::test]
async fn what_a_stranger_says_of_earlier_hops_is_replaced() {
    let seen = seen(EARLIER).await;
    for line in [
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-proto: http",
        "x-forwarded-host: shop",
        "via: 1.1 edge",
        "x-request-id: mine",
        "traceparent: theirs",
    ] {
        assert!(seen.lines().any(|l| l == line), "no `{line}` in\n{seen}");
    }
    assert!(!seen.contains("\nforwarded:"), "{seen}");
}

#[tokio::test]
async fn what_a_trusted_proxy_says_is_added_to() {
    let forwarding = Forwarding {
        trusted: vec!["127.0.0.0/8".parse().unwrap()],
        forwarded: true,
        via: true,
        ..Forwarding::default()
    };
    let seen = seen_with(EARLIER, forwarding).await;
    for line in [
        "x-forwarded-for: 203.0.113.9, 198.51.100.7, 127.0.0.1",
        "x-forwarded-proto: https",
        "x-forwarded-host: shop.example",
        "forwarded: for=203.0.113.9, for=127.0.0.1;host=\"shop\";proto=http",
        "via: 1.1 edge, 1.1 heddle",
    ] {
        assert!(seen.lines().any(|l| l == line), "no `{line}` in\n{seen}");
    }
}

#[tokio::test]
async fn requests_get_an_id_and_a_trace_where_that_is_asked_for() {
    let forwarding = Forwarding {
        start_traces: true,
        ..Forwarding::default()
    };
    let value = |seen: &str, name: &str| {
        let line = seen.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_once(": ").unwrap().1.to_owned()
    };
    let seen = seen_with("GET /headers HTTP/1.1\r\nHost: a\r\n\r\n", forwarding).await;
    assert_eq!(value(&seen, "x-request-id").len(), 32);
    let trace = value(&seen, "traceparent");
    let parts: Vec<&str> = trace.split('-').collect();
    let lengths: Vec<usize> = parts.iter().map(|part| part.len()).collect();
    assert_eq!((parts[0], lengths), ("00", vec![2, 32, 16, 2]));
}

#[tokio::test]
async fn a_target_in_absolute_form_beats_the_host() {
    let seen = seen("GET http://shop.example/headers?x=1 HTTP/1.1\r\nHost: other\r\n\r\n").await;
    assert!(seen.starts_with("GET /headers?x=1 HTTP/1.1\n"), "{seen}");
    assert!(seen.contains("\nhost: shop.example\n"), "{seen}");
}

#[tokio::test]
async fn an_http_1_0_client_is_served_and_its_connection_closed() {
    let backend = Backend::http1("a").await;
    let mut mesh = Mesh::start();
    let web = mesh.service("shop/web", "protocol: http", "");
    mesh.endpoints("shop/web", vec![at("a", backend.address)]);
    let mut client = Http1::connect(web).await;
    client.send("GET / HTTP/1.0\r\n\r\n").await.unwrap();
    let mut text = String::new();
    soon("the end", client.stream.read_to_string(&mut text))
        .await
        .unwrap();
    assert!(
        text.starts_with("HTTP/1.0 200") || text.starts_with("HTTP/1.1 200"),
        "{text}"
    );
    assert!(text.ends_with("\r\n\r\na"), "{text}");
}

/// Requests whose end two readers could see at different places, or that name no host for sure.
const REFUSED: [(&str, &str); 19] = [
    (
        "several lengths",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    ),
    (
        "a length with a sign",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc",
    ),
    (
        "a length that is none",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x3\r\n\r\nabc",
    ),
    (
        "a length beyond 64 bits",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\na",
    ),
    (
        "an unknown coding",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "chunked not last",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    ),
    (
        "space before the colon",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 3\r\n\r\nabc",
    ),
    (
        "a folded line",
        "GET / HTTP/1.1\r\nHost: a\r\nX-A: 1\r\n Content-Length: 3\r\n\r\n",
    ),
    (
        "NUL in a value",
        "GET / HTTP/1.1\r\nHost: a\r\nX-A: a\0b\r\n\r\n",
    ),
    (
        "a bare CR in a value",
        "GET / HTTP/1.1\r\nHost: a\r\nX-A: a\rb\r\n\r\n",
    ),
    (
        "a field without a colon",
        "GET / HTTP/1.1\r\nHost: a\r\nnonsense\r\n\r\n",
    ),
    ("no host", "GET / HTTP/1.1\r\n\r\n"),
    ("two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
    ("a host with a path", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"),
    ("a host with a user", "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n"),
    (
        "a target with a user",
        "GET http://me@a/ HTTP/1.1\r\nHost: a\r\n\r\n",
    ),
    (
        "a method that is none",
        "G ET / HTTP/1.1\r\nHost: a\r\n\r\n",
    ),
    ("an unknown version", "GET / HTTP/3.7\r\nHost: a\r\n\r\n"),
    ("a tunnel", "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n"),
];

#[tokio::test]
async fn ambiguous_requests_reach_no_endpoint() {
    let backend = Backend::http1("a").await;
    let mut mesh = Mesh::start();
    let web = mesh.service("shop/web", "protocol: http", "");
    mesh.endpoints("shop/web", vec![at("a", backend.address)]);
    for (what, request) in REFUSED {
        let mut client = Http1::connect(web).await;
        let reply = client.try_request(request).await;
        let status = reply.as_ref().map(|reply| reply.status);
        assert!(
            matches!(status, None | Some(400..=599)),
            "{what}: {reply:?}"
        );
        assert_eq!(backend.requests(), 0, "{what} reached the endpoint");
    }
    assert_eq!(Http1::connect(web).await.get("/").await.status, 200);
}

/// Bodies whose framing is broken: the endpoint may see the head, but never a second request or a whole body.
const BROKEN_BODIES: [(&str, &str); 4] = [
    (
        "a chunk size that overflows",
        "ffffffffffffffffff\r\na\r\n0\r\n\r\n",
    ),
    ("a chunk size that is none", "z\r\na\r\n0\r\n\r\n"),
    ("a chunk longer than it says", "1\r\nabc\r\n0\r\n\r\n"),
    ("a negative chunk size", "-1\r\na\r\n0\r\n\r\n"),
];

#[tokio::test]
async fn broken_chunks_never_become_a_whole_request() {
    let backend = Backend::http1("a").await;
    let mut mesh = Mesh::start();
    let web = mesh.service("shop/web", "protocol: http", "");
    mesh.endpoints("shop/web", vec![at("a", backend.address)]);
    for (what, body) in BROKEN_BODIES {
        let mut client = Http1::connect(web).await;
        let head = "POST /nothing HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        client
            .send(&format!(
                "{head}{body}GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
            ))
            .await
            .unwrap();
        let before = backend.requests();
        let mut text = String::new();
        // A reset is as good an answer as a 400.
        let _ = soon("the end", client.stream.read_to_string(&mut text)).await;
        assert!(backend.requests() <= before + 1, "{what}: two requests");
        assert!(
            text.matches("HTTP/1.1").count() <= 1,
            "{what}: two answers in {text}"
        );
    }
}

#[tokio::test]
async fn a_length_beside_chunks_is_dropped_and_one_request_reaches_the_endpoint() {
    let backend = Backend::http1("a").await;
    let mut mesh = Mesh::start();
    let web = mesh.service("shop/web", "protocol: http", "");
    mesh.endpoints("shop/web", vec![at("a", backend.address)]);
    let mut client = Http1::connect(web).await;
    let request = "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 40\r\nTransfer-Encoding: chunked\r\n\r\n\
                   3\r\nabc\r\n0\r\n\r\n";
    let reply = client.try_request(request).await;
    if let Some(reply) = reply.filter(|reply| reply.status == 200) {
        assert_eq!(reply.body, "abc");
        assert_eq!(backend.requests(), 1);
    } else {
        assert_eq!(backend.requests(), 0);
    }
}
