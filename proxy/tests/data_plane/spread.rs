//! Round-robin takes turns, whatever the clients speak.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use futures::future::join_all;
use futures::{StreamExt, stream};

use crate::support::client::{request, text};
use crate::support::{Backend, Http1, Mesh, at, http2, soon};

const REQUESTS: usize = 10_000;
const NAMES: [&str; 3] = ["a", "b", "c"];

/// Three endpoints that answer with their names.
async fn three() -> (Mesh, SocketAddr, [Backend; 3]) {
    let backends = [
        Backend::http1("a").await,
        Backend::http1("b").await,
        Backend::http1("c").await,
    ];
    let mut mesh = Mesh::start();
    let web = mesh.service("shop/web", "protocol: http", "");
    let endpoints = NAMES.iter().zip(&backends);
    mesh.endpoints(
        "shop/web",
        endpoints.map(|(n, b)| at(n, b.address)).collect(),
    );
    (mesh, web, backends)
}

#[track_caller]
fn assert_even(answers: impl IntoIterator<Item = String>) {
    let mut spread = BTreeMap::new();
    for name in answers {
        *spread.entry(name).or_insert(0usize) += 1;
    }
    assert_eq!(spread.values().sum::<usize>(), REQUESTS);
    assert_eq!(spread.len(), NAMES.len(), "{spread:?}");
    let (even, most) = (REQUESTS / NAMES.len(), REQUESTS / 100);
    assert!(
        spread.values().all(|n| n.abs_diff(even) <= most),
        "{spread:?}"
    );
}

#[tokio::test]
async fn ten_thousand_requests_of_one_http2_connection_are_spread_evenly() {
    let (_mesh, web, _backends) = three().await;
    let client = http2(web).await;
    let requests = (0..REQUESTS).map(|_| {
        let mut client = client.clone();
        async move { text(client.send_request(request("GET", "/", "")).await.unwrap()).await }
    });
    let answers = stream::iter(requests)
        .buffer_unordered(100)
        .collect::<Vec<_>>();
    assert_even(soon("all responses", answers).await);
}

#[tokio::test]
async fn ten_thousand_requests_of_64_http1_connections_are_spread_evenly() {
    const CLIENTS: usize = 64;
    let (_mesh, web, _backends) = three().await;
    let clients = (0..CLIENTS).map(|n| async move {
        let mut client = Http1::connect(web).await;
        let mut answers = Vec::new();
        for _ in (n..REQUESTS).step_by(CLIENTS) {
            answers.push(client.get("/").await.body);
        }
        answers
    });
    let answers = soon("all responses", join_all(clients)).await;
    assert_even(answers.into_iter().flatten());
}
