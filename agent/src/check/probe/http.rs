//! `GET path` on a connection of its own, read as far as a verdict needs it: the status, and that the head ends.

use std::io::ErrorKind;
use std::net::SocketAddr;

use model::units::StatusRanges;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::{FAREWELL, ProbeError, shown};

/// As every request of this node's checks names itself.
pub(super) const USER_AGENT: &str = concat!("heddle-health/", env!("CARGO_PKG_VERSION"));

/// A head that is longer fails the check.
const MAX_HEAD: usize = 16 * 1024;
/// What is read of a body at most, so that the peer can finish it.
const MAX_BODY: usize = 64 * 1024;

/// Peers that are waited for at once to close their connections; beyond that connections are reset.
static FAREWELLS: Semaphore = Semaphore::const_new(256);

pub(super) async fn get(
    mut stream: TcpStream,
    address: SocketAddr,
    path: &str,
    expect: Option<&StatusRanges>,
) -> Result<(), ProbeError> {
    let path = path.split('#').next().unwrap_or(path);
    if !path.bytes().all(|b| b.is_ascii_graphic()) {
        let why = "the path has spaces or control characters".to_owned();
        return Err(ProbeError::NotHttp(why));
    }
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: {address}\r\nuser-agent: {USER_AGENT}\r\naccept: */*\r\nconnection: close\r\n\r\n"
    );
    stream
        .write_all(request.as_bytes())
        .await
        .map_err(ProbeError::Io)?;
    let mut read = Vec::with_capacity(1024);
    let (status, body) = loop {
        let more = stream.read_buf(&mut read).await.map_err(ProbeError::Io)?;
        match head(&read) {
            Head::Status(status, length) => break (status, read.len() - length),
            Head::NotHttp => {
                let start = shown(&String::from_utf8_lossy(read.get(..24).unwrap_or(&read)));
                return Err(ProbeError::NotHttp(format!(
                    "an answer that is not HTTP/1: `{start}`"
                )));
            }
            Head::Partial if more == 0 => {
                return Err(ProbeError::Io(ErrorKind::UnexpectedEof.into()));
            }
            Head::Partial if read.len() > MAX_HEAD => {
                let why = format!("a head of more than {MAX_HEAD} bytes");
                return Err(ProbeError::NotHttp(why));
            }
            Head::Partial => {}
        }
    };
    part(stream, body);
    let passes = match expect {
        Some(expect) => expect.contains(status),
        None => (200..400).contains(&status),
    };
    if passes {
        return Ok(());
    }
    Err(ProbeError::Status {
        status,
        expected: expect.map_or_else(|| "200-399".to_owned(), ToString::to_string),
    })
}

/// Ends the connection without keeping the verdict waiting.
fn part(stream: TcpStream, mut read: usize) {
    let mut rest = [0; 4096];
    // What has arrived with the head is mostly everything.
    loop {
        match stream.try_read(&mut rest) {
            Ok(0) => return,
            Ok(more) if read + more <= MAX_BODY => read += more,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Ok(_) | Err(_) => return,
        }
    }
    let Ok(permit) = FAREWELLS.try_acquire() else {
        return;
    };
    tokio::spawn(async move {
        let _permit = permit;
        if tokio::time::timeout(FAREWELL, finish(&stream, read))
            .await
            .is_err()
        {
            // It keeps its connection open, though asked to close it: an idle one that is reset might be logged.
            let _ = socket2::SockRef::from(&stream).set_linger(None);
        }
    });
}

/// Reads until the peer closes, has sent too much, or breaks off.
async fn finish(stream: &TcpStream, mut read: usize) {
    let mut rest = [0; 1024];
    while read <= MAX_BODY && stream.readable().await.is_ok() {
        match stream.try_read(&mut rest) {
            Ok(0) => return,
            Ok(more) => read += more,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Head {
    /// More has to be read.
    Partial,
    NotHttp,
    /// The final status, and the length of all heads.
    Status(u16, usize),
}

/// Reads the head of an answer, after those of interim ones (RFC 9110, 15.2).
fn head(bytes: &[u8]) -> Head {
    let mut rest = bytes;
    loop {
        let start = rest.get(..7).unwrap_or(rest);
        if !b"HTTP/1.".starts_with(start) {
            return Head::NotHttp;
        }
        let Some(length) = head_length(rest) else {
            return Head::Partial;
        };
        let (this, after) = rest.split_at(length);
        let Some(status) = status(this) else {
            return Head::NotHttp;
        };
        rest = after;
        if status >= 200 || status == 101 {
            return Head::Status(status, bytes.len() - rest.len());
        }
    }
}

/// Up to the empty line and with it.
fn head_length(bytes: &[u8]) -> Option<usize> {
    let mut line = 0;
    for (at, byte) in bytes.iter().enumerate() {
        if *byte != b'\n' {
            continue;
        }
        if matches!(bytes.get(line..at), Some(b"" | b"\r")) {
            return Some(at + 1);
        }
        line = at + 1;
    }
    None
}

/// The status of a head that starts with `HTTP/1.`.
fn status(head: &[u8]) -> Option<u16> {
    let [minor, b' ', a, b, c, after, ..] = head.get(7..)? else {
        return None;
    };
    let digits = [a, b, c].map(|d| d.is_ascii_digit().then(|| u16::from(d - b'0')));
    let [Some(a), Some(b), Some(c)] = digits else {
        return None;
    };
    let well_formed = minor.is_ascii_digit() && matches!(after, b' ' | b'\r' | b'\n') && a > 0;
    well_formed.then_some(a * 100 + b * 10 + c)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_head_says_its_status_once_it_is_whole() {
        for (text, expected) in [
            ("HTTP/1.1 200 OK\r\n\r\nbody", Head::Status(200, 19)),
            ("HTTP/1.0 404\r\na: b\r\n\r\n", Head::Status(404, 22)),
            ("HTTP/1.1 204 \n\n", Head::Status(204, 15)),
            (
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 No\r\n\r\n",
                Head::Status(503, 44),
            ),
            ("HTTP/1.1 100 Continue\r\n\r\nHTT", Head::Partial),
            ("HTTP/1.1 200 OK\r\na: b\r\n", Head::Partial),
            ("HTT", Head::Partial),
            ("", Head::Partial),
            ("SSH-2.0-OpenSSH", Head::NotHttp),
            ("HTTP/2 200\r\n\r\n", Head::NotHttp),
            ("HTTP/1.1 20x\r\n\r\n", Head::NotHttp),
            ("HTTP/1.1 2000\r\n\r\n", Head::NotHttp),
            ("\0\0\x12\x04", Head::NotHttp),
        ] {
            assert_eq!(head(text.as_bytes()), expected, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_answers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), http: bool) {
            let start: &[u8] = if http { b"HTTP/1.1 " } else { b"" };
            let _ = head(&[start, &bytes].concat());
        }
    }
}
