//! Health checks of real sockets, many at once: what hangs delays nobody, and nothing is left open.

mod support;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use agent::check::{Begin, Checks, Probe, Spec, Timing};
use agent::metrics::Metrics;
use model::Timestamp;
use model::endpoint::{Fact, Health};
use support::checks::{descriptors, http, key};
use support::wait::eventually_async;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{Instant, timeout_at};

const PATIENCE: Duration = Duration::from_secs(60);

fn spec(probe: Probe, address: SocketAddr) -> Spec {
    Spec {
        probe,
        addresses: vec![address],
        timeout: Duration::from_millis(1000),
        timing: Timing {
            interval: Duration::from_millis(200),
            rise: 2,
            fall: 2,
        },
    }
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    (listener, address)
}

/// Answers each request in this way, and counts them.
async fn answering(answer: &'static [u8], close: bool) -> (SocketAddr, Arc<AtomicU32>) {
    let (listener, address) = listen().await;
    let count = Arc::new(AtomicU32::new(0));
    let counted = count.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let counted = counted.clone();
            tokio::spawn(async move {
                let mut request = [0; 512];
                while stream.read(&mut request).await.is_ok_and(|n| n > 0) {
                    counted.fetch_add(1, Ordering::Relaxed);
                    if stream.write_all(answer).await.is_err() || close {
                        return;
                    }
                }
            });
        }
    });
    (address, count)
}

/// Accepts, and never says a word.
async fn silent() -> SocketAddr {
    let (listener, address) = listen().await;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 512];
                // Until the check gives up, which resets the connection.
                while stream.read(&mut request).await.is_ok_and(|n| n > 0) {}
            });
        }
    });
    address
}

/// Answers no SYN, as its queue is full; with what keeps it so.
async fn black_hole() -> (SocketAddr, TcpListener, Vec<TcpStream>) {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket
        .bind("127.0.0.1:0".parse().expect("an address"))
        .expect("a free port");
    let listener = socket.listen(1).expect("it listens");
    let address = listener.local_addr().expect("bound");
    let mut filling = Vec::new();
    loop {
        let connected =
            tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(address));
        match connected.await {
            Ok(stream) => filling.push(stream.expect("it connects or hangs")),
            Err(_) => return (address, listener, filling),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hanging_backends_delay_nobody_and_leave_nothing_open() {
    let (closing, asked) = answering(
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok",
        true,
    )
    .await;
    let (keeping, _) = answering(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", false).await;
    let (broken, _) = answering(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n", true).await;
    let (garbled, _) = answering(b"\0\0\0\0", true).await;
    let silent = silent().await;
    let (hole, _listener, _filling) = black_hole().await;
    let refused = listen().await.1;
    let before = descriptors();

    // 12 slots, and 20 that hang.
    let mut checks = Checks::new(12, 1, Metrics::new());
    let grpc = Probe::Grpc {
        service: String::new(),
    };
    let mut expected = HashMap::new();
    let mut add =
        |checks: &mut Checks, name: String, probe: Probe, address, reason: &'static str| {
            let fact = Fact::new(Health::Passing, Timestamp(0), "before");
            // Different time-outs keep them from sharing one check. Those that answer have time to.
            let hangs = reason == "no answer within";
            let least = Duration::from_secs(if hangs { 1 } else { 30 });
            let more = Duration::from_millis(u64::try_from(expected.len()).expect("few"));
            let spec = Spec {
                timeout: least + more,
                ..spec(probe, address)
            };
            checks.begin(key(&name), spec, Begin::Known(fact));
            expected.insert(name, reason);
        };
    for n in 0..10 {
        add(
            &mut checks,
            format!("hole {n}"),
            Probe::Tcp,
            hole,
            "no answer within",
        );
        let probe = if n == 0 { grpc.clone() } else { http() };
        add(
            &mut checks,
            format!("silent {n}"),
            probe,
            silent,
            "no answer within",
        );
    }
    for n in 0..10 {
        add(
            &mut checks,
            format!("closing {n}"),
            http(),
            closing,
            "before",
        );
        add(
            &mut checks,
            format!("keeping {n}"),
            http(),
            keeping,
            "before",
        );
    }
    for (name, probe, address, reason) in [
        ("refused", Probe::Tcp, refused, "connection refused"),
        ("broken", http(), broken, "GET /healthz: 503 (want 200-399)"),
        (
            "garbled",
            http(),
            garbled,
            "GET /healthz: an answer that is not HTTP/1",
        ),
        ("no gRPC", grpc.clone(), closing, "gRPC health: "),
    ] {
        add(&mut checks, name.to_owned(), probe, address, reason);
    }

    let deadline = Instant::now() + PATIENCE;
    let mut failing = HashMap::new();
    // Until all have failed that should, and every other one was checked some 10 times.
    while failing.len() < 24 || asked.load(Ordering::Relaxed) < 100 {
        let next = Instant::now() + Duration::from_millis(50);
        if let Ok((key, fact)) = timeout_at(next, checks.changed()).await {
            assert_eq!(fact.value, Health::Failing, "{key:?}: {}", fact.reason);
            failing.insert(key.id.workload.to_string(), fact.reason);
        }
        assert!(Instant::now() < deadline, "only {failing:?}");
    }
    for (name, reason) in &failing {
        assert!(reason.contains(expected[name]), "{name}: {reason}");
    }

    drop(checks);
    let what = format!("as few descriptors are open as before: {before}");
    eventually_async(PATIENCE, &what, || async {
        let open = descriptors();
        // The backends' own end as the checks do; a few may be on their way.
        if open <= before + 2 {
            Ok(())
        } else {
            Err(open)
        }
    })
    .await;
}
