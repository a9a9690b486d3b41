//! Endpoints that die and come back under load, without anybody having told the proxy.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::support::backend::full;
use crate::support::{Backend, Http1, Mesh, at};

/// How often each path was executed, by all backends together.
type Executed = Arc<Mutex<HashMap<String, usize>>>;

/// Notes every request that it has read whole, then answers.
async fn noting(address: SocketAddr, executed: &Executed) -> Backend {
    let listener = loop {
        // The port may still be in the hands of the one that was killed.
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    let executed = Arc::clone(executed);
    Backend::on(listener, move |stream, _| {
        let executed = Arc::clone(&executed);
        async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let executed = Arc::clone(&executed);
                async move {
                    let path = request.uri().path().to_owned();
                    let body = http_body_util::BodyExt::collect(request.into_body()).await;
                    if body.is_ok() {
                        *executed.lock().unwrap().entry(path).or_default() += 1;
                    }
                    Ok::<_, Infallible>(Response::new(full("ok")))
                }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service);
            // Cut off when it is killed.
            let _ = connection.await;
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_that_are_killed_again_and_again_fail_no_get_and_run_no_post_twice() {
    const KILLS: usize = 60;
    let executed = Executed::default();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let mut backends = Vec::new();
    for _ in 0..3 {
        backends.push(Some(noting(any, &executed).await));
    }
    let mut mesh = Mesh::start();
    let web = mesh.service("shop/web", "protocol: http", "");
    let address = |backend: &Option<Backend>| backend.as_ref().unwrap().address;
    let names = ["a", "b", "c"];
    let each = names.iter().zip(&backends);
    mesh.endpoints(
        "shop/web",
        each.map(|(name, backend)| at(name, address(backend)))
            .collect(),
    );
    let stop = Arc::new(AtomicBool::new(false));
    let asked = Arc::new(AtomicUsize::new(0));
    let client = |n: usize| {
        let (stop, asked) = (Arc::clone(&stop), Arc::clone(&asked));
        tokio::spawn(async move {
            let mut client = Http1::connect(web).await;
            let mut posts = Vec::new();
            let mut count = 0;
            while !stop.load(Ordering::SeqCst) {
                count += 1;
                let reply = if n.is_multiple_of(2) {
                    let reply = client.get("/get").await;
                    assert_eq!(reply.status, 200, "a GET failed: {}", reply.body);
                    None
                } else {
                    let path = format!("/post/{n}/{count}");
                    let reply = client.post(&path, "hello").await;
                    Some((
                        path,
                        reply.status,
                        reply.header("x-heddle-error").map(str::to_owned),
                    ))
                };
                posts.extend(reply);
                asked.fetch_add(1, Ordering::SeqCst);
            }
            posts
        })
    };
    let clients: Vec<_> = (0..8).map(client).collect();
    for kill in 0..KILLS {
        let place = kill % backends.len();
        let address = address(&backends[place]);
        let before = asked.load(Ordering::SeqCst);
        let more = |n: usize| {
            let asked = Arc::clone(&asked);
            async move {
                while asked.load(Ordering::SeqCst) < before + n {
                    tokio::task::yield_now().await;
                }
            }
        };
        crate::support::soon("requests with all of them", more(30)).await;
        backends[place] = None;
        crate::support::soon("requests without one", more(60)).await;
        backends[place] = Some(noting(address, &executed).await);
    }
    stop.store(true, Ordering::SeqCst);
    let mut failed = 0;
    for client in clients {
        for (path, status, error) in client.await.expect("no GET failed") {
            let times = executed.lock().unwrap().get(&path).copied().unwrap_or(0);
            assert!(times <= 1, "{path} was executed {times} times");
            match status {
                200 => assert_eq!(times, 1, "{path}"),
                // Its fate is unknown, so it is not sent again.
                502 => {
                    assert_eq!(error.as_deref(), Some("endpoint-failed"), "{path}");
                    failed += 1;
                }
                status => panic!("{path}: {status} {error:?}"),
            }
        }
    }
    assert!(
        failed <= KILLS * 4,
        "{failed} POSTs failed: more than were in flight"
    );
}
