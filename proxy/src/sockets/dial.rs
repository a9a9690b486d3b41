//! Connections to endpoints.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, TcpStream};

/// Why an endpoint could not be connected to. Nothing was sent to it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("connect to {address}: no answer within {timeout:?}")]
    Timeout {
        address: SocketAddr,
        timeout: Duration,
    },
    #[error("connect to {address}")]
    Io {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    /// The socket was connected, and no request sent.
    #[error("connect to {address}")]
    Tls {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("the endpoint has no address to dial")]
    NoAddress,
}

impl DialError {
    /// Whether it took a whole time-out.
    pub(crate) fn timed_out(&self) -> bool {
        match self {
            DialError::Timeout { .. } => true,
            DialError::Tls { source, .. } => source.kind() == io::ErrorKind::TimedOut,
            DialError::Io { .. } | DialError::NoAddress => false,
        }
    }

    /// Whether nobody answered at all: not even with a refusal.
    pub(crate) fn unanswered(&self) -> bool {
        match self {
            DialError::Timeout { .. } => true,
            DialError::Io { source, .. } | DialError::Tls { source, .. } => unanswered(source),
            DialError::NoAddress => false,
        }
    }

    /// With the operating system's reason, for a line of text.
    pub(crate) fn in_words(&self) -> String {
        match self {
            DialError::Io { source, .. } | DialError::Tls { source, .. } => {
                format!("{self}: {source}")
            }
            _ => self.to_string(),
        }
    }
}

/// Whether a socket failed because its packets went unanswered: the host is cut off, or gone.
pub(crate) fn unanswered(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::TimedOut
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
    )
}

/// Connects to the first of the addresses that answers; the time-out is for all of them together.
pub(crate) async fn dial(
    addresses: &[SocketAddr],
    timeout: Duration,
) -> Result<TcpStream, DialError> {
    let Some(first) = addresses.first() else {
        return Err(DialError::NoAddress);
    };
    let mut last = *first;
    let all = async {
        let mut result = Err(DialError::NoAddress);
        for address in addresses {
            last = *address;
            result = dial_one(*address).await;
            if result.is_ok() {
                break;
            }
        }
        result
    };
    match tokio::time::timeout(timeout, all).await {
        Ok(result) => result,
        Err(_) => Err(DialError::Timeout {
            address: last,
            timeout,
        }),
    }
}

/// An endpoint that has acknowledged a request and owes its answer is asked after 3 s whether it is there still: one whose
/// host was cut off meanwhile is given up a second later, with `TCP_USER_TIMEOUT` as HTTP sets it, and else after three.
/// Sooner would keep idle connections busy.
fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new()
        .with_time(Duration::from_secs(3))
        .with_interval(Duration::from_secs(1))
        .with_retries(3)
}

async fn dial_one(address: SocketAddr) -> Result<TcpStream, DialError> {
    let fail = |source| DialError::Io { address, source };
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }
    .map_err(fail)?;
    socket.set_nodelay(true).map_err(fail)?;
    SockRef::from(&socket)
        .set_tcp_keepalive(&keepalive())
        .map_err(fail)?;
    socket.connect(address).await.map_err(fail)
}
