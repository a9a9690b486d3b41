//! One check on a socket.
//!
//! # How connections end
//! 200 checks a second whose connections end in good order would leave 12,000 sockets in TIME_WAIT, and twice as many
//! entries in the host's connection tracking, whose table is shared with all other traffic. So checks end with a reset where
//! nobody can mind it:
//! - A TCP check resets the connection instead of acknowledging the peer's SYN-ACK, so the application never sees it: nothing
//!   is accepted, logged or counted against this host. (Should the kernel acknowledge all the same, the application sees a
//!   connection that is reset.)
//! - An HTTP check asks for `Connection: close` and resets after the peer has closed, which the application can't see
//!   any more. A peer that doesn't close within 200 ms gets an ordinary close.
//! - A check that ran into its time-out resets: there is nothing left to wait for.
//! - A gRPC check says GOAWAY, and resets once the peer has closed.

mod grpc;
mod http;

use std::io::{Error as IoError, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use model::units::{Span, StatusRanges};
use socket2::{Domain, Socket, Type};
use tokio::net::TcpStream;

use super::Target;
use crate::labels::shown;

/// How long a peer that has answered is given to close its connection.
const FAREWELL: Duration = Duration::from_millis(200);
/// What is shown of a failure at most, in characters: it goes into the registry.
const MAX_REASON: usize = 240;

/// What is done to check an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Probe {
    /// A connection can be made.
    Tcp,
    /// `GET path` is answered with an expected status; redirections are answers, and not followed.
    Http {
        /// The path.
        path: String,
        /// The statuses that pass; none: 200 to 399.
        expect: Option<StatusRanges>,
    },
    /// `grpc.health.v1.Health/Check` says SERVING.
    Grpc {
        /// The service asked about; empty for the whole server.
        service: String,
    },
}

/// What went wrong, in words for a person, and with whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The endpoint's fault: counts against it. The text has a bounded length and no control characters.
    Theirs(String),
    /// This host ran out of something: says nothing about the endpoint.
    Ours(String),
}

/// Why a check failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    #[error("{}", words(.0))]
    Io(#[source] IoError),
    #[error("no answer within {}", Span(*.0))]
    Timeout(Duration),
    #[error("{status} (want {expected})")]
    Status { status: u16, expected: String },
    #[error("{0}")]
    NotHttp(String),
    #[error("{0}")]
    Http2(#[source] hyper::Error),
    #[error("the request can't be made")]
    Request(#[source] ::http::Error),
    #[error("HTTP status {0}")]
    GrpcHttp(u16),
    #[error("status {code}{message}")]
    GrpcStatus { code: String, message: String },
    #[error("an answer that can't be read")]
    GrpcMessage,
    #[error("{0}")]
    NotServing(&'static str),
}

/// How far a check came at once.
pub(crate) enum Start {
    /// To its end.
    Done(Result<&'static str, Failure>),
    /// Its first address is being connected to, or nothing was begun.
    Goes(Option<Socket>),
}

impl Target {
    /// Begins a check, without waiting for anything. A connection within the host is mostly made, or refused, before the
    /// call that asks for it returns: then a TCP check ends here, for a quarter of what it costs to wait for it.
    pub(crate) fn start(&self) -> Start {
        let (Probe::Tcp, [address]) = (&self.probe, self.addresses.as_slice()) else {
            return Start::Goes(None);
        };
        match self.probe.connect(*address) {
            Ok(Connection::Made(_)) => Start::Done(Ok(ACCEPTS)),
            Ok(Connection::Pending(socket)) => Start::Goes(Some(socket)),
            Err(error) => Start::Done(Err(self.failure(*address, &ProbeError::Io(error)))),
        }
    }

    /// Checks once, going on from what was begun: what passed, or why the first address failed.
    pub(crate) async fn run(&self, mut begun: Option<Socket>) -> Result<&'static str, Failure> {
        let mut first = None;
        for address in &self.addresses {
            let attempt = self.probe.attempt(*address, begun.take());
            let failure = match tokio::time::timeout(self.timeout, attempt).await {
                Ok(Ok(what)) => return Ok(what),
                Ok(Err(error)) => self.failure(*address, &error),
                Err(_) => self.failure(*address, &ProbeError::Timeout(self.timeout)),
            };
            if matches!(failure, Failure::Ours(_)) {
                return Err(failure);
            }
            first.get_or_insert(failure);
        }
        let none = || Failure::Theirs("no address that can be checked".to_owned());
        Err(first.unwrap_or_else(none))
    }

    fn failure(&self, address: SocketAddr, error: &ProbeError) -> Failure {
        if let ProbeError::Io(error) = error
            && is_ours(error)
        {
            return Failure::Ours(words(error));
        }
        let asked = self.probe.asked();
        Failure::Theirs(bounded(&if self.addresses.len() > 1 {
            format!("{asked}{address}: {error}")
        } else {
            format!("{asked}{error}")
        }))
    }
}

impl Probe {
    /// What was asked, ahead of what came of it.
    fn asked(&self) -> String {
        match self {
            Probe::Tcp => String::new(),
            Probe::Http { path, .. } => format!("GET {}: ", shown(path)),
            Probe::Grpc { service } if service.is_empty() => "gRPC health: ".to_owned(),
            Probe::Grpc { service } => format!("gRPC health of {}: ", shown(service)),
        }
    }

    async fn attempt(
        &self,
        address: SocketAddr,
        begun: Option<Socket>,
    ) -> Result<&'static str, ProbeError> {
        let connection = match begun {
            Some(socket) => Ok(Connection::Pending(socket)),
            None => self.connect(address),
        };
        let stream = connected(connection.map_err(ProbeError::Io)?, address)
            .await
            .map_err(ProbeError::Io)?;
        match self {
            Probe::Tcp => Ok(ACCEPTS),
            Probe::Http { path, expect } => {
                http::get(stream, address, path, expect.as_ref()).await?;
                Ok("passes its HTTP check")
            }
            Probe::Grpc { service } => {
                grpc::check(stream, address, service).await?;
                Ok("passes its gRPC health check")
            }
        }
    }

    /// A connection that is reset when it is dropped.
    fn connect(&self, address: SocketAddr) -> Result<Connection, IoError> {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM.nonblocking().cloexec(),
            None,
        )?;
        socket.set_linger(Some(Duration::ZERO))?;
        match self {
            // Holds the acknowledgement of the SYN-ACK back, for longer than it takes to reset the connection.
            Probe::Tcp => socket.set_tcp_quickack(false)?,
            Probe::Http { .. } | Probe::Grpc { .. } => socket.set_tcp_nodelay(true)?,
        }
        // The first call sends the SYN; what came back meanwhile is seen by the second.
        for _ in 0..2 {
            match socket.connect(&address.into()) {
                Ok(()) => {
                    not_itself(&socket, address)?;
                    return Ok(Connection::Made(socket));
                }
                Err(error) if is_pending(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Connection::Pending(socket))
    }
}

const ACCEPTS: &str = "accepts connections";

enum Connection {
    Made(Socket),
    Pending(Socket),
}

async fn connected(connection: Connection, address: SocketAddr) -> Result<TcpStream, IoError> {
    match connection {
        Connection::Made(socket) => TcpStream::from_std(socket.into()),
        Connection::Pending(socket) => {
            let stream = TcpStream::from_std(socket.into())?;
            stream.writable().await?;
            if let Some(error) = stream.take_error()? {
                return Err(error);
            }
            not_itself(&socket2::SockRef::from(&stream), address)?;
            Ok(stream)
        }
    }
}

/// To a port of this host on which nobody listens, the kernel may connect a socket with itself.
fn not_itself(socket: &Socket, address: SocketAddr) -> Result<(), IoError> {
    if socket.local_addr()?.as_socket() == Some(address) {
        return Err(ErrorKind::ConnectionRefused.into());
    }
    Ok(())
}

fn is_pending(error: &IoError) -> bool {
    const EINPROGRESS: i32 = 115;
    const EALREADY: i32 = 114;
    matches!(error.raw_os_error(), Some(EINPROGRESS | EALREADY))
}

/// Whether it is this host that ran out of descriptors, memory or ports.
fn is_ours(error: &IoError) -> bool {
    const EMFILE: i32 = 24;
    const ENFILE: i32 = 23;
    const ENOMEM: i32 = 12;
    const ENOBUFS: i32 = 105;
    const EADDRNOTAVAIL: i32 = 99;
    matches!(
        error.raw_os_error(),
        Some(EMFILE | ENFILE | ENOMEM | ENOBUFS | EADDRNOTAVAIL)
    )
}

fn words(error: &IoError) -> String {
    match error.kind() {
        ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => "connection reset".to_owned(),
        ErrorKind::HostUnreachable => "host unreachable".to_owned(),
        ErrorKind::NetworkUnreachable => "network unreachable".to_owned(),
        ErrorKind::TimedOut => "connection timed out".to_owned(),
        ErrorKind::UnexpectedEof => "connection closed before the answer was whole".to_owned(),
        _ => error.to_string(),
    }
}

/// A reason of bounded length without control characters.
fn bounded(text: &str) -> String {
    let mut rest = text.chars();
    let mut clean: String = rest
        .by_ref()
        .take(MAX_REASON)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if rest.next().is_some() {
        clean.push('…');
    }
    clean
}
