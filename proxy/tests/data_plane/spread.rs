//! Round-robin takes turns, whatever the clients speak.

use std::collections::BTreeMap;

use futures::future::join_all;
use futures::{StreamExt, stream};

use crate::support::client::{request, text};
use crate::support::mesh::three;
use crate::support::{Http1, http2, soon};

const REQUESTS: usize = 10_000;

#[track_caller]
fn assert_even(answers: impl IntoIterator<Item = String>) {
    let mut spread = BTreeMap::new();
    for name in answers {
        *spread.entry(name).or_insert(0usize) += 1;
    }
    assert_eq!(spread.values().sum::<usize>(), REQUESTS);
    assert_eq!(spread.len(), 3, "{spread:?}");
    let (even, most) = (REQUESTS / 3, REQUESTS / 100);
    assert!(
        spread.values().all(|n| n.abs_diff(even) <= most),
        "{spread:?}"
    );
}

#[tokio::test]
async fn ten_thousand_requests_of_one_http2_connection_are_spread_evenly() {
    let (mesh, web, _backends) = three().await;
    let client = http2(web).await;
    let requests = (0..REQUESTS).map(|_| {
        let mut client = client.clone();
        async move { text(client.send_request(request("GET", "/", "")).await.unwrap()).await }
    });
    let answers = stream::iter(requests)
        .buffer_unordered(100)
        .collect::<Vec<_>>();
    assert_even(soon("all responses", answers).await);
    let counted =
        "heddle_requests_total{namespace=\"shop\",service=\"web\",protocol=\"http2\",code=\"200\"}";
    assert_eq!(mesh.metric(counted), REQUESTS as f64);
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
