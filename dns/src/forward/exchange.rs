//! One query to one upstream.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use hickory_proto::op::ResponseCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use super::cache::Key;
use super::received::{self, Response};
use super::stored::Stored;
use crate::edns::Opt;
use crate::response::MAX_DATAGRAM;
use crate::wire::HEADER;

/// How the letters of a name are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Case {
    /// Each at random as upper or lower case, which an answer is to give back: one more thing that a forger has to guess.
    Mixed,
    /// As lower case, to upstreams that don't give it back.
    Lower,
}

/// What an upstream said.
#[derive(Debug)]
pub(super) struct Answered {
    pub stored: Stored,
    /// Whether it gave the case back: no by UDP alone may be a forgery, so that it was asked by TCP too.
    pub case_kept: bool,
}

/// A query of our own, with an id that nobody can guess.
#[derive(Debug)]
pub(crate) struct Asked {
    pub id: u16,
    bytes: Vec<u8>,
    /// Length of the question, which stands behind the header.
    question: usize,
}

impl Asked {
    /// Options of the client's OPT record are not passed on: they are meant for us (RFC 6891, 6.1.1).
    pub(crate) fn new(key: &Key<'_>, edns: bool, case: Case) -> Self {
        const RECURSION_DESIRED: u8 = 0x01;
        const AUTHENTIC_DATA: u8 = 0x20;
        const CHECKING_DISABLED: u8 = 0x10;
        const CLASS_IN: [u8; 2] = [0, 1];
        let flag = |on, flag| if on { flag } else { 0 };
        let id: u16 = rand::random();
        let mut bytes = id.to_be_bytes().to_vec();
        bytes.push(flag(key.flags.recursion_desired, RECURSION_DESIRED));
        bytes.push(
            flag(key.flags.authentic_data, AUTHENTIC_DATA)
                | flag(key.flags.checking_disabled, CHECKING_DISABLED),
        );
        bytes.extend([0, 1, 0, 0, 0, 0, 0, u8::from(edns)]);
        bytes.extend(key.name.iter().map(|byte| {
            // Lengths are no letters.
            if case == Case::Mixed && rand::random() {
                byte.to_ascii_uppercase()
            } else {
                *byte
            }
        }));
        bytes.extend(key.kind.to_be_bytes());
        bytes.extend(CLASS_IN);
        let question = bytes.len() - HEADER;
        if edns {
            let opt = Opt {
                dnssec_ok: key.flags.dnssec_ok,
                ..Opt::default()
            };
            bytes.extend(opt.to_vec(0));
        }
        Asked {
            id,
            bytes,
            question,
        }
    }

    pub(crate) fn question(&self) -> &[u8] {
        &self.bytes[HEADER..HEADER + self.question]
    }
}

/// Asks an upstream by UDP, and by TCP where that does not do.
pub(super) async fn exchange(
    server: SocketAddr,
    key: &Key<'_>,
    case: Case,
) -> io::Result<Answered> {
    match ask(server, key, case, true).await? {
        // Those who don't know EDNS say so in one way or the other (RFC 6891, 7).
        Some((response, asked)) if !misread(response.code()) => store(response, &asked),
        _ => match ask(server, key, case, false).await? {
            Some((response, asked)) => store(response, &asked),
            None => Err(not_understood()),
        },
    }
}

fn misread(code: ResponseCode) -> bool {
    matches!(code, ResponseCode::FormErr | ResponseCode::NotImp)
}

fn store(response: Response, asked: &Asked) -> io::Result<Answered> {
    let case_kept = response.case_kept;
    let stored = response.into_stored(asked.question);
    let stored = stored.ok_or_else(not_understood)?;
    Ok(Answered { stored, case_kept })
}

/// `None`: the upstream could not read the query.
async fn ask(
    server: SocketAddr,
    key: &Key<'_>,
    case: Case,
    edns: bool,
) -> io::Result<Option<(Response, Asked)>> {
    let asked = Asked::new(key, edns, case);
    let Some(response) = by_udp(server, &asked).await? else {
        return Ok(None);
    };
    let case_is_well = response.case_kept || case == Case::Lower;
    if !response.truncated() && case_is_well {
        return Ok(Some((response, asked)));
    }
    match by_tcp(server, &asked).await {
        Ok(whole) => Ok(Some((whole, asked))),
        // What was left out is still said to be. What lost its case may be forged.
        Err(_) if case_is_well => Ok(Some((response, asked))),
        Err(error) => Err(error),
    }
}

/// A socket for each query: its random port and the random id are what a forger has to guess, and being connected it
/// takes datagrams from the upstream only.
async fn by_udp(server: SocketAddr, asked: &Asked) -> io::Result<Option<Response>> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(&asked.bytes).await?;
    let mut buffer = [0; MAX_DATAGRAM as usize];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if received::is_bare_error(&buffer[..length], asked) {
            return Ok(None);
        }
        if let Some(response) = Response::read(buffer[..length].to_vec(), asked) {
            return Ok(Some(response));
        }
    }
}

async fn by_tcp(server: SocketAddr, asked: &Asked) -> io::Result<Response> {
    let too_long = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let length = u16::try_from(asked.bytes.len()).map_err(too_long)?;
    let mut stream = TcpStream::connect(server).await?;
    // In one segment: some servers read the length and the message with one call.
    let framed = [&length.to_be_bytes(), asked.bytes.as_slice()].concat();
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    let mut bytes = vec![0; length.into()];
    stream.read_exact(&mut bytes).await?;
    Response::read(bytes, asked).ok_or_else(not_understood)
}

fn not_understood() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "what came is no answer to the query",
    )
}
