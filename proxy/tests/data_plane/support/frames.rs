//! HTTP/2 frame by frame (RFC 9113, 4 and 6), for clients that no library would be.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;

pub const NO_ERROR: u32 = 0;
pub const PROTOCOL_ERROR: u32 = 1;
pub const FLOW_CONTROL_ERROR: u32 = 3;
pub const STREAM_CLOSED: u32 = 5;
pub const FRAME_SIZE_ERROR: u32 = 6;
pub const REFUSED_STREAM: u32 = 7;
pub const COMPRESSION_ERROR: u32 = 9;
pub const ENHANCE_YOUR_CALM: u32 = 11;

/// What a client begins with.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The error code of an RST_STREAM or GOAWAY.
    pub fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

/// How a server took what it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// GOAWAY with this error, or just the end (`None`).
    ConnectionEnded(Option<u32>),
    /// RST_STREAM with this error.
    StreamReset(u32),
    /// An answer; `None`: with a status that takes a table to read.
    Status(Option<u16>),
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A header block of literals without any index (RFC 7541, 6.2.2).
pub fn block(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut block = Vec::new();
    let string = |text: &[u8], block: &mut Vec<u8>| {
        integer(block, 0, 7, text.len());
        block.extend_from_slice(text);
    };
    for (name, value) in fields {
        block.push(0);
        string(name, &mut block);
        string(value, &mut block);
    }
    block
}

/// A number behind a prefix of so many bits (RFC 7541, 5.1).
pub fn integer(out: &mut Vec<u8>, first: u8, bits: u32, mut n: usize) {
    let most = (1usize << bits) - 1;
    if n < most {
        out.push(first | n as u8);
        return;
    }
    out.push(first | most as u8);
    n -= most;
    while n >= 128 {
        out.push(n as u8 | 128);
        n >>= 7;
    }
    out.push(n as u8);
}

pub type Fields<'a> = Vec<(&'a [u8], &'a [u8])>;

/// A good request, with some fields replaced, left out (`None`) or added.
pub fn fields<'a>(changes: &[(&'a [u8], Option<&'a [u8]>)]) -> Fields<'a> {
    let mut fields: Fields<'a> = vec![
        (b":method", b"GET"),
        (b":scheme", b"http"),
        (b":authority", b"web"),
        (b":path", b"/"),
    ];
    for (name, value) in changes {
        let at = fields.iter().position(|(known, _)| known == name);
        match (at, value) {
            (Some(at), Some(value)) => fields[at].1 = value,
            (Some(at), None) => drop(fields.remove(at)),
            (None, Some(value)) => fields.push((name, value)),
            (None, None) => {}
        }
    }
    fields
}

/// A client's connection, byte by byte.
pub struct Raw {
    pub stream: TcpStream,
    buffer: BytesMut,
}

impl Raw {
    /// Connects and sends preface and settings.
    pub async fn connect(address: SocketAddr) -> Self {
        let mut raw = Raw {
            stream: TcpStream::connect(address).await.unwrap(),
            buffer: BytesMut::new(),
        };
        raw.bytes(PREFACE).await;
        raw.frame(SETTINGS, 0, 0, &[]).await;
        raw
    }

    /// Sends bytes. That the server has closed shows in what it said before.
    pub async fn bytes(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
    }

    pub async fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.bytes(&frame(kind, flags, stream, payload)).await;
    }

    /// A whole request without a body.
    pub async fn request(&mut self, stream: u32, fields: &[(&[u8], &[u8])]) {
        let flags = END_STREAM | END_HEADERS;
        self.frame(HEADERS, flags, stream, &block(fields)).await;
    }

    /// The next frame; `None` at the end.
    pub async fn next(&mut self) -> Option<Frame> {
        loop {
            if self.buffer.len() >= 9 {
                let length = (&self.buffer[..3]).get_uint(3) as usize;
                if self.buffer.len() >= 9 + length {
                    let mut head = self.buffer.split_to(9);
                    head.advance(3);
                    let (kind, flags) = (head.get_u8(), head.get_u8());
                    return Some(Frame {
                        kind,
                        flags,
                        stream: head.get_u32(),
                        payload: self.buffer.split_to(length).to_vec(),
                    });
                }
            }
            let read = self.stream.read_buf(&mut self.buffer);
            match super::soon("a frame", read).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// The next frame of this kind; `None` when the connection ends before.
    pub async fn until(&mut self, kind: u8) -> Option<Frame> {
        loop {
            let frame = self.next().await?;
            if frame.kind == kind {
                return Some(frame);
            }
        }
    }

    /// How the server takes the stream.
    pub async fn outcome(&mut self, stream: u32) -> Outcome {
        loop {
            let Some(frame) = self.next().await else {
                return Outcome::ConnectionEnded(None);
            };
            match frame.kind {
                GOAWAY if frame.code() != NO_ERROR => {
                    return Outcome::ConnectionEnded(Some(frame.code()));
                }
                RST_STREAM if frame.stream == stream => return Outcome::StreamReset(frame.code()),
                HEADERS if frame.stream == stream => {
                    return Outcome::Status(status(&frame.payload));
                }
                _ => {}
            }
        }
    }

    /// Sends this again and again, so many times at most, until the server has closed, or takes nothing for a while. Says
    /// how many bytes it took.
    pub async fn flood(&mut self, bytes: &[u8], times: usize) -> usize {
        let mut sent = 0;
        let batch = bytes.repeat((64 * 1024 / bytes.len()).max(1));
        while sent < times * bytes.len() {
            let write = self.stream.write(&batch[sent % bytes.len()..]);
            match tokio::time::timeout(Duration::from_secs(2), write).await {
                Ok(Ok(n)) => sent += n,
                Ok(Err(_)) | Err(_) => break,
            }
        }
        sent
    }
}

/// The status that a response begins with, where it is one of the static table's (RFC 7541, appendix A).
fn status(block: &[u8]) -> Option<u16> {
    const STATUSES: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
    // Updates of the table's size may come before.
    let first = block.iter().find(|byte| **byte & 0xe0 != 0x20)?;
    let index = usize::from(first.checked_sub(0x88)?);
    STATUSES.get(index).copied()
}
