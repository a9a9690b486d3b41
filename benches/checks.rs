//! What health checks cost: 1,000 endpoints every 5 s, of which the CPU time of this process is measured.
//!
//! `cargo bench --bench checks`. The endpoints are listeners of a child process, so that only the checking side counts,
//! with the kernel's work for it.

#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use agent::check::{Begin, CheckKey, Checks, Probe, Schedule, Spec, Timing};
use agent::metrics::Metrics;
use model::Timestamp;
use model::endpoint::{Fact, Health};
use support::checks::{self, descriptors};

const ENDPOINTS: usize = 1_000;
const INTERVAL: Duration = Duration::from_secs(5);
const MEASURED: Duration = Duration::from_secs(20);

fn key(n: usize) -> CheckKey {
    checks::key(&format!("{n:012x}"))
}

fn spec(probe: &Probe, address: SocketAddr) -> Spec {
    Spec {
        probe: probe.clone(),
        addresses: vec![address],
        timeout: Duration::from_secs(1),
        timing: Timing {
            interval: INTERVAL,
            rise: 2,
            fall: 3,
        },
    }
}

fn known() -> Begin {
    Begin::Known(Fact::new(Health::Passing, Timestamp(0), "passes"))
}

/// User and system time of this process so far.
fn cpu() -> Duration {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointer is valid for writes of a `rusage`, which is plain numbers and zeroed.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    let time = |t: libc::timeval| {
        Duration::from_secs(u64::try_from(t.tv_sec).unwrap_or(0))
            + Duration::from_micros(u64::try_from(t.tv_usec).unwrap_or(0))
    };
    time(usage.ru_utime) + time(usage.ru_stime)
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    line.and_then(|l| l.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

fn in_time_wait() -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let state = |line: &str| line.split_whitespace().nth(3) == Some("06");
    table.lines().filter(|line| state(line)).count()
}

/// The child: as many listeners, on which `http` answers each connection or nobody ever says a word.
fn serve(hang: bool) {
    let mut out = std::io::stdout().lock();
    for _ in 0..ENDPOINTS {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        writeln!(out, "{}", listener.local_addr().expect("bound")).expect("the parent reads");
        std::thread::Builder::new()
            .stack_size(64 * 1024)
            .spawn(move || {
                let mut kept = Vec::new();
                for mut stream in listener.incoming().flatten() {
                    if hang {
                        kept.push(stream);
                        kept.drain(..kept.len().saturating_sub(4));
                        continue;
                    }
                    let mut request = [0; 512];
                    let _ = stream.read(&mut request);
                    let _ = stream.write_all(
                        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok",
                    );
                }
            })
            .expect("a thread");
    }
    out.flush().expect("the parent reads");
    drop(out);
    // Until the parent ends.
    let _ = std::io::stdin().read(&mut [0]);
}

/// Runs checks for so long. Facts that change are none of the bench's business.
async fn run(checks: &mut Checks, long: Duration) {
    let until = tokio::time::Instant::now() + long;
    while tokio::time::timeout_at(until, checks.changed())
        .await
        .is_ok()
    {}
}

async fn measure(what: &str, probe: &Probe, addresses: &[SocketAddr]) {
    let metrics = Metrics::new();
    let mut checks = Checks::new(1024, 1, metrics.clone());
    for (n, address) in addresses.iter().enumerate() {
        checks.begin(key(n), spec(probe, *address), known());
    }
    let count = || {
        let of = |result: &str| metrics.checks.with_label_values(&[result]).get();
        (of("pass"), of("fail") + of("error"))
    };
    run(&mut checks, INTERVAL).await;
    let (before, began, open) = (cpu(), Instant::now(), descriptors());
    let (passed, failed) = count();
    run(&mut checks, MEASURED).await;
    let spent = cpu() - before;
    let (now_passed, now_failed) = count();
    let done = now_passed - passed + now_failed - failed;
    println!(
        "{what}: {done} checks in {:.0?}, {} of them failed; {:.2} % of a core, {:.0} µs each; {} KiB resident, \
         descriptors {open} then {}, {} sockets in TIME_WAIT",
        began.elapsed(),
        now_failed - failed,
        100.0 * spent.as_secs_f64() / began.elapsed().as_secs_f64(),
        spent.as_secs_f64() * 1e6 / f64::from(u32::try_from(done).unwrap_or(u32::MAX)),
        resident_kib(),
        descriptors(),
        in_time_wait(),
    );
}

/// The timer structure alone: taking a check that is due and putting it back, among this many.
fn heap(endpoints: usize) {
    let mut schedule = Schedule::new(1024, 1);
    for n in 0..endpoints {
        let port = u16::try_from(1 + n % 60_000).expect("a port");
        let host = u8::try_from(1 + n / 60_000).expect("few");
        let address = SocketAddr::from(([127, 0, 0, host], port));
        schedule.begin(key(n), spec(&Probe::Tcp, address), known(), Duration::ZERO);
    }
    let rounds = 500_000u32;
    let began = Instant::now();
    for _ in 0..rounds {
        let Some(now) = schedule.next_at() else { break };
        if let Some(due) = schedule.take_due(now) {
            schedule.finish(&due, Some(Ok("")), now, Timestamp(0));
        }
    }
    let each = began.elapsed() / rounds;
    println!("scheduling one check among {endpoints}: {each:?}");
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("serve") => return serve(false),
        Some("hang") => return serve(true),
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let http = checks::http();
    for (what, mode, probe) in [
        ("1,000 TCP checks / 5 s", "serve", Probe::Tcp),
        ("1,000 HTTP checks / 5 s", "serve", http.clone()),
        ("1,000 HTTP checks / 5 s of what hangs", "hang", http),
    ] {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .arg(mode)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a child");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let addresses: Vec<SocketAddr> = lines
            .take(ENDPOINTS)
            .map(|line| line.expect("an address").parse().expect("an address"))
            .collect();
        assert!(TcpStream::connect(addresses[0]).is_ok());
        runtime.block_on(measure(what, &probe, &addresses));
        drop(child.stdin.take());
        let _ = child.wait();
    }
    heap(1_000);
    heap(100_000);
}
