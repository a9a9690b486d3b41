//! One question, one answer, one connection: HTTP/1.1 over a blocking socket. Enough to ask a backend who it
//! is; what tests of the proxy send is their own business.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Longer than any answer on one machine takes, and short enough that a test which hangs says where.
const TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// The header section as it came, without the status line.
    pub headers: String,
    pub body: String,
}

impl Answer {
    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

pub fn get(address: SocketAddr, path: &str) -> io::Result<Answer> {
    request("GET", address, path, &[], "")
}

/// [`get`] through a Unix socket, with a time-out of its own.
pub fn get_unix(socket: &Path, path: &str, timeout: Duration) -> io::Result<Answer> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    let head = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    exchange(stream, &head)
}

/// The name of the whoami that answers; what else was answered, or why nothing was.
pub fn id(address: SocketAddr) -> Result<String, String> {
    match get(address, "/id") {
        Ok(answer) if answer.status == 200 => Ok(answer.body.trim().to_owned()),
        Ok(answer) => Err(format!("{}: {}", answer.status, answer.body)),
        Err(error) => Err(error.to_string()),
    }
}

/// What so many requests for [`id`] gave, failures among them: sorted, and each once.
pub fn ids(address: SocketAddr, requests: usize) -> Vec<String> {
    let all: BTreeSet<String> = (0..requests)
        .map(|_| id(address).unwrap_or_else(|why| why))
        .collect();
    all.into_iter().collect()
}

pub fn post(address: SocketAddr, path: &str, body: &str) -> io::Result<Answer> {
    request("POST", address, path, &[], body)
}

pub fn request(
    method: &str,
    address: SocketAddr,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> io::Result<Answer> {
    let stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
    if !headers
        .iter()
        .any(|(name, _)| name.eq_ignore_ascii_case("host"))
    {
        head += &format!("host: {address}\r\n");
    }
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    if !body.is_empty() {
        head += &format!("content-length: {}\r\n", body.len());
    }
    exchange(stream, &format!("{head}\r\n{body}"))
}

fn exchange(mut stream: impl Read + Write, request: &str) -> io::Result<Answer> {
    stream.write_all(request.as_bytes())?;
    let mut received = Vec::new();
    stream.read_to_end(&mut received)?;
    parse(&received).ok_or_else(|| {
        let shown = String::from_utf8_lossy(&received).into_owned();
        io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("not a whole response: {shown:?}"),
        )
    })
}

fn parse(received: &[u8]) -> Option<Answer> {
    let end = received
        .windows(4)
        .position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&received[..end]).ok()?;
    let (status_line, headers) = head.split_once("\r\n").unwrap_or((head, ""));
    let status = status_line.split(' ').nth(1)?.parse().ok()?;
    let mut answer = Answer {
        status,
        headers: headers.to_owned(),
        body: String::new(),
    };
    let body = &received[end + 4..];
    let body = if answer
        .header("transfer-encoding")
        .is_some_and(|coding| coding == "chunked")
    {
        dechunk(body)?
    } else {
        let length = answer
            .header("content-length")
            .and_then(|length| length.parse::<usize>().ok());
        if length.is_some_and(|length| length > body.len()) {
            return None;
        }
        body.to_vec()
    };
    answer.body = String::from_utf8_lossy(&body).into_owned();
    Some(answer)
}

fn dechunk(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|window| window == b"\r\n")?;
        let size =
            usize::from_str_radix(std::str::from_utf8(&rest[..end]).ok()?.trim(), 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(end + 2..end + 2 + size)?);
        rest = rest.get(end + 2 + size + 2..)?;
    }
}
