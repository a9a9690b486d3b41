//! The simplest resolver there is: one question over UDP, and its answer.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

/// A datagram may be lost, and a busy machine may be late: each try waits this long.
const TRY: Duration = Duration::from_secs(5);
const TRIES: usize = 3;
/// The question's id, the same always: each has a socket of its own.
const ID: u16 = 0x4844;

/// What a server answered.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// 0: the name is there; 3: it is not (NXDOMAIN).
    pub code: u8,
    /// Sorted.
    pub addresses: Vec<Ipv4Addr>,
}

impl Answer {
    pub fn is(address: Ipv4Addr) -> Answer {
        Answer {
            code: 0,
            addresses: vec![address],
        }
    }

    pub fn no_such_name() -> Answer {
        Answer {
            code: 3,
            addresses: Vec::new(),
        }
    }
}

/// Asks for the A records of a name.
///
/// # Errors
/// When no answer comes, or one that can't be read.
pub fn ask(server: SocketAddr, name: &str) -> io::Result<Answer> {
    let any = if server.ip().is_loopback() {
        "127.0.0.1:0"
    } else {
        "0.0.0.0:0"
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(TRY))?;
    let question = question(name);
    let mut buffer = [0; 4096];
    let mut last = io::Error::other("not asked");
    for _ in 0..TRIES {
        let asked = socket
            .send(&question)
            .and_then(|_| socket.recv(&mut buffer));
        match asked {
            Ok(length) => {
                return read(&buffer[..length], question.len())
                    .ok_or_else(|| io::Error::other("an answer that can't be read"));
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn question(name: &str) -> Vec<u8> {
    let mut bytes = ID.to_be_bytes().to_vec();
    // A standard query that asks for recursion, with one question.
    bytes.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.trim_end_matches('.').split('.') {
        bytes.push(u8::try_from(label.len()).expect("a label is short"));
        bytes.extend(label.as_bytes());
    }
    // The root, type A, class IN.
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}

/// The server repeats the question, which ends at `at`.
fn read(bytes: &[u8], mut at: usize) -> Option<Answer> {
    let number = |at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
    if number(0)? != ID {
        return None;
    }
    let mut addresses = Vec::new();
    for _ in 0..number(6)? {
        // The name: labels to the root, or to a pointer back.
        loop {
            match *bytes.get(at)? {
                0 => break at += 1,
                length if length >= 0xc0 => break at += 2,
                length => at += 1 + usize::from(length),
            }
        }
        let (kind, length) = (number(at)?, usize::from(number(at + 8)?));
        let data = bytes.get(at + 10..at + 10 + length)?;
        if kind == 1 {
            addresses.push(Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?));
        }
        at += 10 + length;
    }
    addresses.sort();
    Some(Answer {
        code: bytes.get(3)? & 0x0f,
        addresses,
    })
}
