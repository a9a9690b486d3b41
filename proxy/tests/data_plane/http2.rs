//! HTTP/2 from clients and to endpoints.

use futures::future::join_all;
use http_body_util::{BodyExt, Full};

use crate::support::client::{request, text};
use crate::support::{Backend, Http1, Mesh, at, http2, soon};

#[tokio::test]
async fn an_http2_request_becomes_a_proper_http1_one() {
    let backend = Backend::http1("a").await;
    let mut mesh = Mesh::start();
    let web = mesh.service("shop/web", "protocol: http", "");
    mesh.endpoints("shop/web", vec![at("a", backend.address)]);
    let mut client = http2(web).await;
    let mut asked = request("GET", "/headers?q=1", "");
    for cookie in ["a=1", "b=2"] {
        asked
            .headers_mut()
            .append("cookie", cookie.parse().unwrap());
    }
    let seen = text(client.send_request(asked).await.unwrap()).await;
    assert!(seen.starts_with("GET /headers?q=1 HTTP/1.1\n"), "{seen}");
    for line in [
        "host: web",
        "cookie: a=1; b=2",
        "x-forwarded-for: 127.0.0.1",
    ] {
        assert!(seen.lines().any(|l| l == line), "no `{line}` in\n{seen}");
    }
}

#[tokio::test]
async fn h2c_endpoints_share_one_connection_and_trailers_pass() {
    let backend = Backend::http2("grpc", usize::MAX).await;
    let mut mesh = Mesh::with(|options| options.workers = 1);
    let web = mesh.service("shop/web", "protocol: http, upstreamProtocol: h2c", "");
    mesh.endpoints("shop/web", vec![at("a", backend.address)]);
    let client = http2(web).await;
    let requests = (0..100).map(|n| {
        let mut client = client.clone();
        async move {
            let body = format!("message {n}");
            let response = client
                .send_request(request("POST", "/echo", &body))
                .await
                .unwrap();
            assert_eq!(text(response).await, body);
        }
    });
    soon("all echoes", join_all(requests)).await;
    assert_eq!((backend.connections(), backend.requests()), (1, 100));
    let mut client = client;
    let response = client
        .send_request(request("GET", "/trailers", ""))
        .await
        .unwrap();
    let body = response.into_body().collect().await.unwrap();
    assert_eq!(body.trailers().unwrap()["x-sum"], "42");
    let seen = Http1::connect(web).await.get("/headers").await.body;
    assert!(
        seen.starts_with("GET http://web/headers HTTP/2.0\n"),
        "{seen}"
    );
}

#[tokio::test]
async fn endpoints_that_say_goaway_again_and_again_lose_nothing() {
    let backend = Backend::http2("a", 10).await;
    let mut mesh = Mesh::with(|options| options.workers = 1);
    let web = mesh.service("shop/web", "protocol: http, upstreamProtocol: h2c", "");
    mesh.endpoints("shop/web", vec![at("a", backend.address)]);
    let client = http2(web).await;
    let clients = (0..8).map(|_| {
        let mut client = client.clone();
        async move {
            for _ in 0..50 {
                let response = client.send_request(request("GET", "/", "")).await.unwrap();
                assert_eq!(response.status(), 200, "{}", text(response).await);
            }
        }
    });
    soon("all responses", join_all(clients)).await;
    assert!(
        backend.connections() >= 10,
        "{} connections",
        backend.connections()
    );
}

#[tokio::test]
async fn grpc_clients_hear_of_problems_in_trailers_only() {
    let mut mesh = Mesh::start();
    let web = mesh.service("shop/web", "protocol: http, upstreamProtocol: h2c", "");
    let mut client = http2(web).await;
    let mut call = request("POST", "/pkg.Service/Call", "x");
    call.headers_mut()
        .insert("content-type", "application/grpc+proto".parse().unwrap());
    let response = client.send_request(call).await.unwrap();
    assert_eq!(
        (
            response.status().as_u16(),
            &response.headers()["grpc-status"]
        ),
        (200, &"14".parse().unwrap())
    );
    let message = response.headers()["grpc-message"].to_str().unwrap();
    assert!(message.contains("no endpoints"), "{message}");
    let code =
        "heddle_requests_total{namespace=\"shop\",service=\"web\",protocol=\"http2\",code=\"503\"}";
    assert_eq!(
        mesh.metric(code),
        1.0,
        "metrics tell the failure from a success"
    );
}

#[tokio::test]
async fn large_bodies_pass_both_ways_within_windows() {
    let backend = Backend::http2("a", usize::MAX).await;
    let mut mesh = Mesh::start();
    let web = mesh.service("shop/web", "protocol: http, upstreamProtocol: h2c", "");
    mesh.endpoints("shop/web", vec![at("a", backend.address)]);
    let mut client = http2(web).await;
    let body = "0123456789abcdef".repeat(512 << 10);
    let asked = http::Request::post("http://web/echo")
        .body(Full::new(body.clone().into()))
        .unwrap();
    let response = client.send_request(asked).await.unwrap();
    assert!(soon("8 MiB back", text(response)).await == body);
}
