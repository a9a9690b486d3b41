//! What a crowd costs the others: 5,000 idle connections, and 500 slow ones, beside requests at a steady rate.
//!
//! `cargo bench --bench crowd`; `ROUNDS`, `IDLE`, `SLOW` and `RATE` change the size. The same requests are asked alternately
//! with and without the crowd; of each, the median of the rounds' percentiles is told. Of the slow ones, a third sends its
//! head byte by byte, a third its body, and a third reads a long answer in small sips.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

#[path = "../tests/support/mod.rs"]
mod support;

use support::node::{Node, NodeOptions};
use support::whoami::Whoami;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

const CONNECTIONS: usize = 32;
const WINDOW: Duration = Duration::from_secs(8);
/// Until the crowd has arrived, whose 166 downloads fill all buffers on their way at once.
const WARM: Duration = Duration::from_secs(4);
const GET: &[u8] = b"GET /id HTTP/1.1\r\nhost: web\r\n\r\n";

fn size(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |v| v.parse().expect("a number"))
}

fn main() {
    let backends: Vec<Whoami> = (0..3)
        .map(|n| Whoami::start(&format!("w{n}"), &[]))
        .collect();
    let node = Node::start(&NodeOptions::default());
    node.apply(
        "apiVersion: heddle/v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n\
         spec: {ports: [{name: http, port: 80, protocol: http}], health: none}\n",
    );
    for (n, backend) in backends.iter().enumerate() {
        node.apply(&format!(
            "apiVersion: heddle/v1\nkind: Endpoint\nmetadata: {{name: w{n}, namespace: shop}}\n\
             spec: {{service: web, address: 127.0.0.1, ports: {{http: {}}}}}\n",
            backend.http.port()
        ));
    }
    node.eligible("shop/web", 3);
    let web = SocketAddr::new(node.vip("shop/web"), 80);
    let (idle, slow) = (size("IDLE", 5_000), size("SLOW", 500));
    let rate = size("RATE", 3_000);
    raise_limit();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let (mut alone, mut beside) = (Vec::new(), Vec::new());
        for _ in 0..size("ROUNDS", 5) {
            alone.push(percentiles(web, rate).await);
            let crowd = Crowd::gather(web, idle, slow).await;
            beside.push(percentiles(web, rate).await);
            let there = crowd.slow.load(Ordering::Relaxed);
            assert!(there >= slow / 2, "only {there} slow ones are left");
            drop(crowd);
        }
        for (what, mut rounds) in [("alone", alone), ("beside the crowd", beside)] {
            let mut median = |at: usize| {
                rounds.sort_by_key(|round| round[at]);
                rounds[rounds.len() / 2][at]
            };
            println!(
                "{rate} requests a second {what}: p50 {:?}, p99 {:?}, p99.9 {:?}",
                median(0),
                median(1),
                median(2)
            );
        }
    });
}

/// Asks at a steady rate on kept connections; each request's time counts from when it was due.
async fn percentiles(web: SocketAddr, rate: usize) -> [Duration; 3] {
    let every = Duration::from_secs_f64(CONNECTIONS as f64 / rate as f64);
    let begin = Instant::now() + Duration::from_millis(100);
    let mut asking = JoinSet::new();
    for n in 0..CONNECTIONS {
        asking.spawn(async move {
            let mut stream = TcpStream::connect(web).await.expect("it connects");
            stream.set_nodelay(true).expect("a TCP socket");
            let mut due = begin + every * n as u32 / CONNECTIONS as u32;
            let (mut times, mut answer) = (Vec::new(), [0; 1024]);
            while due < begin + WARM + WINDOW {
                tokio::time::sleep_until(due.into()).await;
                stream.write_all(GET).await.expect("it takes a request");
                let n = stream.read(&mut answer).await.expect("it answers");
                assert!(answer[..n].starts_with(b"HTTP/1.1 200"));
                if due > begin + WARM {
                    times.push(due.elapsed());
                }
                due += every;
            }
            times
        });
    }
    let mut times = asking.join_all().await.concat();
    times.sort();
    let at = |part: f64| times[((times.len() as f64 * part) as usize).min(times.len() - 1)];
    [at(0.5), at(0.99), at(0.999)]
}

/// Connections that want little and stay. They go when this is dropped.
struct Crowd {
    slow: Arc<AtomicUsize>,
    _idle: Vec<TcpStream>,
    _tasks: JoinSet<()>,
}

impl Crowd {
    async fn gather(web: SocketAddr, idle: usize, slow: usize) -> Crowd {
        let mut kept = Vec::new();
        let mut answer = [0; 1024];
        for _ in 0..idle {
            let mut stream = TcpStream::connect(web).await.expect("it connects");
            stream.write_all(GET).await.expect("it takes a request");
            assert!(stream.read(&mut answer).await.expect("it answers") > 0);
            kept.push(stream);
        }
        let there = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        for n in 0..slow {
            let there = Arc::clone(&there);
            tasks.spawn(async move {
                loop {
                    there.fetch_add(1, Ordering::Relaxed);
                    // Cut off for being so slow, it comes again.
                    let _ = dawdle(web, n).await;
                    there.fetch_sub(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            });
        }
        while there.load(Ordering::Relaxed) < slow {
            tokio::task::yield_now().await;
        }
        Crowd {
            slow: there,
            _idle: kept,
            _tasks: tasks,
        }
    }
}

async fn dawdle(web: SocketAddr, n: usize) -> std::io::Result<()> {
    let pause = || tokio::time::sleep(Duration::from_millis(250 + n as u64 % 50));
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(4096)?;
    let mut stream = socket.connect(web).await?;
    stream.set_nodelay(true)?;
    if n.is_multiple_of(3) {
        stream
            .write_all(b"GET /bytes/4000000 HTTP/1.1\r\nhost: web\r\n\r\n")
            .await?;
        let mut sip = [0; 512];
        while stream.read(&mut sip).await? > 0 {
            pause().await;
        }
        return Ok(());
    }
    let ask: &[u8] = if n % 3 == 1 {
        b"GET /id HTTP/1.1\r\nhost: web\r\nx-long: "
    } else {
        b"POST /echo HTTP/1.1\r\nhost: web\r\ncontent-length: 100000\r\n\r\n"
    };
    stream.write_all(ask).await?;
    loop {
        stream.write_all(b"x").await?;
        pause().await;
    }
}

/// As many descriptors as there may be.
fn raise_limit() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointer is to a local that outlives the calls.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}
