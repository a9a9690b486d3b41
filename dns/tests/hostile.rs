//! A stream of hostile packets beside ordinary questions: no crash, no wrong answer, flat memory.
//!
//! Takes a few seconds; `HEDDLE_HOSTILE_SECONDS` makes it longer. What is sent depends on a fixed seed alone.

#[path = "../benches/serve/mesh.rs"]
mod mesh;

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use dns::{Options, Server, Upstream};
use mesh::Mesh;
use tokio_util::sync::CancellationToken;

const SERVICES: u32 = 200;
const HEADER: usize = 12;
/// A question that is not answered in this time was lost among the others, and is asked again.
const AGAIN: Duration = Duration::from_millis(500);
const TRIES: usize = 60;
/// What the allocator may make of it, in KiB. The cache is full by then, and holds less than this.
const SLACK: u64 = 16 << 10;

/// Of any thread: the server's own would go on after one.
static PANICS: AtomicU64 = AtomicU64::new(0);

/// Numbers that depend on the seed alone (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }
}

/// A question with an OPT record of these options, if any.
fn query(id: u16, name: &str, kind: u16, options: Option<&[u8]>) -> Vec<u8> {
    let mut packet = id.to_be_bytes().to_vec();
    packet.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(options.is_some())]);
    for label in name.split('.') {
        packet.push(u8::try_from(label.len()).unwrap());
        packet.extend(label.as_bytes());
    }
    packet.push(0);
    packet.extend(kind.to_be_bytes());
    packet.extend([0, 1]);
    if let Some(options) = options {
        packet.extend([0, 0, 41, 0x10, 0, 0, 0, 0, 0]);
        packet.extend(u16::try_from(options.len()).unwrap().to_be_bytes());
        packet.extend(options);
    }
    packet
}

/// Something that no client sends.
fn hostile(random: &mut Random) -> Vec<u8> {
    let id = random.next() as u16;
    let index = random.below(SERVICES as usize);
    let names = [
        format!("svc{index}.default.svc.heddle.internal"),
        format!("_http._tcp.svc{index}.default.svc.heddle.internal"),
        format!("{}.0.96.10.in-addr.arpa", random.below(256)),
        format!("x{}.example.com", random.below(100_000)),
    ];
    let name = &names[random.below(names.len())];
    let kind = [1, 28, 33, 12, 6, 255, 252, 41, random.next() as u16][random.below(9)];
    let mut options = (random.next() as u16 % 20).to_be_bytes().to_vec();
    let length = random.below(45);
    options.extend((length as u16).to_be_bytes());
    options.extend(random.bytes(length));
    let edns = (random.below(2) == 0).then_some(&*options);
    let mut packet = query(id, name, kind, edns);
    match random.below(12) {
        0 => {
            let length = random.below(1_400);
            packet = random.bytes(length);
        }
        1 => {
            let length = [4_097, 9_000, 65_000][random.below(3)];
            packet.extend(random.bytes(length));
        }
        // Another opcode.
        2 => packet[2] = (random.next() as u8) & 0x7f,
        // Counts that promise what is not there.
        3 => packet[4 + random.below(8)] = random.next() as u8,
        // A name that leads to itself.
        4 => packet[HEADER..HEADER + 2].copy_from_slice(&[0xc0, 12]),
        5 => packet.truncate(random.below(packet.len())),
        // The OPT record, or the question, once more.
        6 => {
            let from = random.below(packet.len());
            let again = packet[from..].to_vec();
            packet.extend(again);
            packet[11] = packet[11].wrapping_add(1);
        }
        // As it should be.
        7 => {}
        _ => {
            for _ in 0..1 + random.below(4) {
                let at = random.below(packet.len());
                packet[at] = random.next() as u8;
            }
        }
    }
    packet
}

/// Sends them, with those that are answers by a socket of their own, which must never hear anything.
fn storm(server: SocketAddr, seed: u64, stop: &AtomicBool) -> u64 {
    const BURST: usize = 32;
    let socket = |to| {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(to).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    };
    let (asking, answering) = (socket(server), socket(server));
    let mut random = Random(seed);
    let mut reply = [0; 65_535];
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..BURST {
            let mut packet = hostile(&mut random);
            // Nothing is sent where the buffer is full.
            if packet.len() > 2 && packet[2] & 0x80 != 0 {
                let _ = answering.send(&packet);
            } else {
                let _ = asking.send(&packet);
            }
            if random.below(8) == 0 && packet.len() > 2 {
                packet[2] |= 0x80;
                let _ = answering.send(&packet);
            }
            sent += 1;
        }
        while let Ok(length) = asking.recv(&mut reply) {
            assert!(length >= HEADER && reply[2] & 0x80 != 0 && length <= 1_232);
        }
        assert!(
            answering.recv(&mut reply).is_err(),
            "an answer to an answer"
        );
        if random.below(64) == 0 {
            let mut stream = TcpStream::connect(server).unwrap();
            let packet = hostile(&mut random);
            let length = u16::try_from(packet.len()).unwrap_or(u16::MAX);
            let _ = stream.write_all(&length.to_be_bytes());
            let part = random.below(packet.len() + 1);
            let _ = stream.write_all(&packet[..part]);
        }
        // Lets others run, of which there may be more than cores.
        thread::yield_now();
    }
    sent
}

/// Asks what every client asks, and compares the answers with what they have to be.
fn ordinary(server: SocketAddr, stop: &AtomicBool, answered: &AtomicU64) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(server).unwrap();
    socket.set_read_timeout(Some(AGAIN)).unwrap();
    let mut random = Random(99);
    while !stop.load(Ordering::Relaxed) {
        let index = random.below(SERVICES as usize) as u32;
        let service = format!("svc{index}.default.svc.heddle.internal");
        let vip = Ipv4Addr::from(0x0a60_0000 + index).octets();
        let (name, kind, code, answers, end): (_, _, _, _, &[u8]) = match random.below(5) {
            0 => (service, 1, 0, 1, &vip),
            1 => (service, 28, 0, 0, &[]),
            // Its additional record is the address.
            2 => (format!("_http._tcp.{service}"), 33, 0, 1, &vip),
            3 => (format!("no{service}"), 1, 3, 0, &[]),
            _ => (
                format!("host{index}.example.com"),
                1,
                0,
                1,
                &[203, 0, 113, 7],
            ),
        };
        let id = random.next() as u16;
        let packet = query(id, &name, kind, None);
        let reply = ask(&socket, &packet, &name);
        assert_eq!(reply[2] & 0x82, 0x80, "a whole answer about {name}");
        assert_eq!(reply[3] & 15, code, "the code for {name} {kind}");
        assert_eq!(reply[6..8], [0, answers], "answers for {name} {kind}");
        assert_eq!(reply[HEADER..packet.len()], packet[HEADER..]);
        assert!(reply.ends_with(end), "{name} {kind}: {reply:?}");
        answered.fetch_add(1, Ordering::Relaxed);
    }
}

/// The reply, which may take several tries: the storm overruns the socket's buffer.
fn ask(socket: &UdpSocket, packet: &[u8], name: &str) -> Vec<u8> {
    let mut reply = [0; 2_048];
    for _ in 0..TRIES {
        socket.send(packet).unwrap();
        while let Ok(length) = socket.recv(&mut reply) {
            let late = reply[..2] != packet[..2];
            // As many questions as may be under way are: others have to wait for theirs.
            let full = name.ends_with("example.com") && reply[3] & 15 == 2;
            if !late && !full {
                return reply[..length].to_vec();
            }
            if full {
                break;
            }
        }
    }
    panic!("no answer about {name}");
}

/// Answers everything with 203.0.113.7, and what the storm asks with a broken answer before.
fn upstream() -> SocketAddr {
    const RECORD: [u8; 16] = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0x0e, 0x10, 0, 4, 203, 0, 113, 7];
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut random = Random(5);
        let mut packet = [0; 2_048];
        while let Ok((length, from)) = socket.recv_from(&mut packet) {
            let mut at = HEADER;
            while packet[at] != 0 {
                at += 1 + usize::from(packet[at]);
            }
            let mut answer = packet[..(at + 5).min(length)].to_vec();
            answer[2] |= 0x80;
            answer[3] = 0x80;
            answer[6..HEADER].copy_from_slice(&[0, 1, 0, 0, 0, 0]);
            answer.extend(RECORD);
            if !packet[HEADER + 1].eq_ignore_ascii_case(&b'h') {
                let mut broken = answer.clone();
                // Behind the question: what is broken before is not for this question, and behind it not taken.
                let start = at + 5;
                broken[start + 11] = random.next() as u8 | 8;
                broken.truncate(start + random.below(RECORD.len()));
                let _ = socket.send_to(&broken, from);
            }
            let _ = socket.send_to(&answer, from);
        }
    });
    address
}

/// Memory of this process in KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.unwrap().parse().unwrap()
}

#[test]
fn hostile_packets_beside_ordinary_questions() {
    const SECONDS: u64 = 4;
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        report(panic);
    }));
    let seconds = std::env::var("HEDDLE_HOSTILE_SECONDS");
    let seconds = seconds.map_or(SECONDS, |seconds| seconds.parse().expect("seconds"));
    let server = Server::bind(Options {
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        upstreams: vec![Upstream::Address(upstream())],
        snapshot: Arc::new(ArcSwap::new(Mesh::new(SERVICES, 0).snapshot())),
        cache: 1 << 20,
        workers: 2,
        ..Options::default()
    })
    .unwrap();
    let address = server.addresses()[0];
    let shutdown = CancellationToken::new();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let stopped = shutdown.clone();
    let serving = thread::spawn(move || runtime.block_on(server.run(stopped)));

    let (stop, answered) = (&AtomicBool::new(false), &AtomicU64::new(0));
    thread::scope(|scope| {
        let stop_all = Stop(stop);
        let storms = [1, 2].map(|seed| {
            scope.spawn(move || {
                let _stop = Stop(stop);
                storm(address, seed, stop)
            })
        });
        let asking = scope.spawn(move || {
            let _stop = Stop(stop);
            ordinary(address, stop, answered);
        });
        let began = Instant::now();
        let until = |part: u64, of: u64| {
            let end = Duration::from_secs(seconds) * part as u32 / of as u32;
            while began.elapsed() < end && !stop.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(50));
            }
        };
        // By then everything has grown to its bound: buffers, stacks, the cache.
        until(1, 4);
        let (early, then) = (resident(), answered.load(Ordering::Relaxed));
        until(1, 1);
        // On a busy machine it takes what it takes to see that questions are answered still.
        while answered.load(Ordering::Relaxed) < then + 100 && !stop.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(50));
        }
        let late = resident();
        drop(stop_all);
        let sent: u64 = storms
            .into_iter()
            .map(|s| s.join().expect("the storm"))
            .sum();
        asking.join().expect("every answer is right");
        let answered = answered.load(Ordering::Relaxed);
        println!(
            "{sent} hostile packets in {:?}, {answered} questions answered, {early} KiB, then {late} KiB",
            began.elapsed()
        );
        assert!(sent > 256, "{sent} packets are no storm");
        assert!(late < early + SLACK, "{early} KiB became {late} KiB");
    });
    shutdown.cancel();
    serving.join().expect("the server did not panic");
    assert_eq!(
        PANICS.load(Ordering::Relaxed),
        0,
        "a thread failed and went on"
    );
}

/// Stops everybody when its owner ends, by a panic too.
struct Stop<'s>(&'s AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
