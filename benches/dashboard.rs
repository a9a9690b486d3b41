//! What the dashboard costs with 1,000 services: how long the page takes, and how much of a core five browsers that watch it.
//!
//! `cargo bench --bench dashboard`. The processor's time is the node's own, with and without those who watch; every second
//! 200 of the services get a request, so that there are figures to be told.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

#[path = "../tests/support/mod.rs"]
mod support;

use support::http;
use support::node::{Node, NodeOptions};
use support::wait::eventually;
use support::whoami::Whoami;

const SERVICES: usize = 1000;
const ASKED: usize = 200;
const BROWSERS: usize = 5;
const WINDOW: Duration = Duration::from_secs(20);
const PATIENCE: Duration = Duration::from_secs(120);

fn main() {
    let backend = Whoami::start("a", &[]);
    let node = Node::start(&NodeOptions::default());
    let one = |n: usize| {
        format!(
            "---\napiVersion: heddle/v1\nkind: Service\nmetadata: {{name: s{n:04}, namespace: shop}}\n\
             spec: {{ports: [{{name: http, port: 8080, protocol: http}}], health: none}}\n\
             ---\napiVersion: heddle/v1\nkind: Endpoint\nmetadata: {{name: e{n:04}, namespace: shop}}\n\
             spec: {{service: s{n:04}, address: 127.0.0.1, ports: {{http: {}}}}}\n",
            backend.http.port()
        )
    };
    for first in (0..SERVICES).step_by(10) {
        node.apply(&(first..first + 10).map(one).collect::<String>());
    }
    let vips: Vec<SocketAddr> = eventually(PATIENCE, "all services are there", || {
        let all: Vec<SocketAddr> = node
            .get("services")
            .iter()
            .filter(|s| s["status"]["ports"][0]["eligible"] == 1)
            .filter_map(|s| s["status"]["vips"][0].as_str()?.parse().ok())
            .map(|ip| SocketAddr::new(ip, 8080))
            .collect();
        (all.len() == SERVICES).then_some(all)
    });
    let admin = node.logged_address("admin listens");
    let mut took: Vec<Duration> = (0..50)
        .map(|_| {
            let began = Instant::now();
            let page = http::get(admin, "/").expect("the page comes");
            assert!(page.body.matches("<tbody id=\"shop/").count() == SERVICES);
            let took = began.elapsed();
            // Longer than what is rendered is kept for.
            std::thread::sleep(Duration::from_millis(150));
            took
        })
        .collect();
    took.sort();
    println!(
        "page with {SERVICES} services: p50 {:?}, p90 {:?}, longest {:?}",
        took[25], took[45], took[49]
    );
    let stop = Arc::new(AtomicBool::new(false));
    let load = {
        let (stop, vips) = (stop.clone(), vips.clone());
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let began = Instant::now();
                for vip in vips.iter().take(ASKED) {
                    http::id(*vip).expect("it answers");
                }
                std::thread::sleep(Duration::from_secs(1).saturating_sub(began.elapsed()));
            }
        })
    };
    let share = |what: &str| {
        let before = cpu(node.pid());
        let began = Instant::now();
        std::thread::sleep(WINDOW);
        let used = cpu(node.pid()) - before;
        let share = used.as_secs_f64() / began.elapsed().as_secs_f64() * 100.0;
        println!("{what}: {share:.2} % of a core");
        share
    };
    std::thread::sleep(Duration::from_secs(3));
    let alone = share(&format!("{ASKED} requests a second, nobody watches"));
    let bytes = Arc::new(AtomicU64::new(0));
    for _ in 0..BROWSERS {
        let (bytes, stop) = (bytes.clone(), stop.clone());
        let mut stream = TcpStream::connect(admin).expect("the node answers");
        let head =
            format!("GET /dashboard/live?version=0&last=0 HTTP/1.1\r\nhost: {admin}\r\n\r\n");
        stream.write_all(head.as_bytes()).expect("it reads");
        stream
            .set_read_timeout(Some(Duration::from_secs(1)))
            .expect("a time-out");
        std::thread::spawn(move || {
            let mut buffer = vec![0; 256 << 10];
            while !stop.load(Ordering::Relaxed) {
                if let Ok(n) = stream.read(&mut buffer) {
                    bytes.fetch_add(n as u64, Ordering::Relaxed);
                }
            }
        });
    }
    std::thread::sleep(Duration::from_secs(3));
    let sent = bytes.load(Ordering::Relaxed);
    let watched = share(&format!("the same, {BROWSERS} browsers watch"));
    let sent = bytes.load(Ordering::Relaxed) - sent;
    println!(
        "the dashboard: {:.2} % of a core; each browser is sent {:.1} KiB a second",
        watched - alone,
        sent as f64 / 1024.0 / WINDOW.as_secs_f64() / BROWSERS as f64
    );
    stop.store(true, Ordering::Relaxed);
    load.join().expect("the load ends");
    let quiet = share(&format!("no requests, {BROWSERS} browsers have watched"));
    assert!(quiet < 100.0);
}

/// User and system time of a process.
fn cpu(pid: i32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the node runs");
    let after = stat.rsplit(')').next().unwrap_or_default();
    let words: Vec<&str> = after.split_whitespace().collect();
    let ticks: u64 = [11, 12]
        .iter()
        .filter_map(|at| words.get(*at)?.parse::<u64>().ok())
        .sum();
    // SAFETY: sysconf has no preconditions.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    Duration::from_secs_f64(ticks as f64 / per_second as f64)
}
