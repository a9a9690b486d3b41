//! Load on a service: connections that ask again and again, and count every answer that is not a 200.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::netns::Netns;

/// Longer than any answer takes; a request that hangs counts as failed.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How the node marks a request that may have been executed.
const FATE_UNKNOWN: &str = "endpoint-failed";

/// What the connections ask.
#[derive(Clone)]
pub struct Plan {
    pub address: SocketAddr,
    pub method: &'static str,
    /// `{id}` becomes a number that no other request has.
    pub path: String,
    pub connections: usize,
    /// Between an answer and the next request of a connection.
    pub pause: Duration,
}

/// What came of it.
#[derive(Default, Debug)]
pub struct Tally {
    pub answered: u64,
    /// The first failures, with when and what.
    pub failures: Vec<String>,
    pub failed: u64,
    /// Those of them whose endpoint broke off after it had been sent the request.
    pub unknown: u64,
    /// The longest time from a request to its answer.
    pub slowest: Duration,
}

/// Load that runs until it is stopped.
pub struct Load {
    stop: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts the connections, inside a host where one is given.
    pub fn start(plan: &Plan, netns: Option<&Netns>) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let tally = Arc::new(Mutex::new(Tally::default()));
        let began = Instant::now();
        let spawn = || {
            (0..plan.connections)
                .map(|_| {
                    let (plan, stop, tally) = (plan.clone(), stop.clone(), tally.clone());
                    std::thread::spawn(move || connection(&plan, &stop, &tally, began))
                })
                .collect()
        };
        // A thread is born in its parent's network namespace.
        let threads = match netns {
            Some(netns) => netns.enter(spawn),
            None => spawn(),
        };
        Load {
            stop,
            tally,
            threads,
        }
    }

    /// How many answers there are so far.
    pub fn answered(&self) -> u64 {
        self.tally.lock().expect("no connection panicked").answered
    }

    /// Ends the connections between two requests, and tells what came of all.
    pub fn stop(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("no connection panicked");
        }
        std::mem::take(&mut self.tally.lock().expect("no connection panicked"))
    }
}

fn connection(plan: &Plan, stop: &AtomicBool, tally: &Mutex<Tally>, began: Instant) {
    static IDS: AtomicU64 = AtomicU64::new(0);
    let mut stream: Option<TcpStream> = None;
    while !stop.load(Ordering::Relaxed) {
        let id = IDS.fetch_add(1, Ordering::Relaxed).to_string();
        let path = plan.path.replace("{id}", &id);
        let asked = Instant::now();
        let result = exchange(plan, &path, &mut stream);
        let mut tally = tally.lock().expect("no connection panicked");
        match result {
            Ok(()) => {
                tally.answered += 1;
                tally.slowest = tally.slowest.max(asked.elapsed());
            }
            Err(why) => {
                stream = None;
                tally.failed += 1;
                tally.unknown += u64::from(why.starts_with(FATE_UNKNOWN));
                if tally.failures.len() < 20 {
                    tally
                        .failures
                        .push(format!("after {:?}: {path}: {why}", began.elapsed()));
                }
            }
        }
        drop(tally);
        std::thread::sleep(plan.pause);
    }
}

/// One request and its answer; the connection is kept unless the server closes it.
fn exchange(plan: &Plan, path: &str, kept: &mut Option<TcpStream>) -> Result<(), String> {
    let fresh = kept.is_none();
    let mut stream = match kept.take() {
        Some(stream) => stream,
        None => {
            let stream = TcpStream::connect_timeout(&plan.address, TIMEOUT)
                .map_err(|e| format!("connect: {e}"))?;
            stream
                .set_read_timeout(Some(TIMEOUT))
                .map_err(|e| e.to_string())?;
            stream.set_nodelay(true).map_err(|e| e.to_string())?;
            stream
        }
    };
    let body = if plan.method == "POST" { "hello" } else { "" };
    let head = format!(
        "{} {path} HTTP/1.1\r\nhost: load.test\r\ncontent-length: {}\r\n\r\n{body}",
        plan.method,
        body.len()
    );
    let state = if fresh { "new" } else { "kept" };
    stream
        .write_all(head.as_bytes())
        .map_err(|e| format!("write on a {state} connection: {e}"))?;
    let mut received = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let n = stream
            .read(&mut buffer)
            .map_err(|e| format!("read on a {state} connection: {e}"))?;
        if n == 0 {
            return Err(format!(
                "a {state} connection closed after {} bytes",
                received.len()
            ));
        }
        received.extend_from_slice(&buffer[..n]);
        let Some(end) = received.windows(4).position(|w| w == b"\r\n\r\n") else {
            continue;
        };
        let head = String::from_utf8_lossy(&received[..end]).to_ascii_lowercase();
        let length: usize = head
            .lines()
            .find_map(|l| l.strip_prefix("content-length:"))
            .and_then(|v| v.trim().parse().ok())
            .ok_or_else(|| format!("no content-length: {head}"))?;
        if received.len() < end + 4 + length {
            continue;
        }
        if !head.starts_with("http/1.1 200") {
            let body = String::from_utf8_lossy(&received[end + 4..]).into_owned();
            let mut lines = head.lines();
            let status = lines.next().unwrap_or_default().to_owned();
            let word = lines.find_map(|line| line.strip_prefix("x-heddle-error: "));
            return Err(format!("{}, {status}: {body}", word.unwrap_or_default()));
        }
        if !head.contains("connection: close") {
            *kept = Some(stream);
        }
        return Ok(());
    }
}
