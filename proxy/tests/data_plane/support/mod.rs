//! A mesh of one node, backends and clients.

pub mod backend;
pub mod client;
pub mod frames;
pub mod mesh;
pub mod tls;

use std::time::{Duration, Instant};

pub use backend::{Backend, Refusing};
pub use client::{Http1, http2};
pub use mesh::{Mesh, at, port_of};

/// Waits until something holds; panics with what was awaited after ten seconds.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "still not: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Fails a test that hangs instead of letting it run for ever.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(60), future).await {
        Ok(value) => value,
        Err(_) => panic!("not within 60 s: {what}"),
    }
}
