//! One check on a socket.

mod grpc;
mod http;

use std::net::SocketAddr;
use std::time::Duration;

use model::units::StatusRanges;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Spec;
use crate::labels::shown;

/// How long a connection that passed is kept to end in good order.
const FAREWELL: Duration = Duration::from_millis(200);

/// What is done to check an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
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

/// Why a check failed, in words for a person.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    #[error("can't connect")]
    Connect(#[source] std::io::Error),
    #[error("HTTP failed")]
    Http(#[source] hyper::Error),
    #[error("the request can't be made")]
    Request(#[source] ::http::Error),
    #[error("GET {path} answered {status}, expected {expected}")]
    Status {
        path: String,
        status: u16,
        expected: String,
    },
    #[error("gRPC health answered HTTP status {0}")]
    GrpcHttp(u16),
    #[error("gRPC health answered status {code}{message}")]
    GrpcStatus { code: String, message: String },
    #[error("gRPC health answered a message that can't be read")]
    GrpcMessage,
    #[error("gRPC health says {0}")]
    NotServing(&'static str),
}

impl Spec {
    /// Checks once: what passed, or why the first address failed.
    pub(crate) async fn run(&self) -> Result<String, String> {
        let mut first = None;
        for address in &self.addresses {
            let attempt = tokio::time::timeout(self.timeout, self.probe.attempt(*address));
            let failure = match attempt.await {
                Ok(Ok(what)) => return Ok(format!("{what} at {address}")),
                Ok(Err(error)) => {
                    format!("{address}: {}", registry::follow::chain(&error))
                }
                Err(_) => format!(
                    "{address}: no answer to {} within {:?}",
                    self.probe.name(),
                    self.timeout
                ),
            };
            first.get_or_insert(failure);
        }
        let failure = first.unwrap_or_else(|| "no address that can be checked".to_owned());
        Err(shown_long(&failure))
    }
}

impl Probe {
    fn name(&self) -> &'static str {
        match self {
            Probe::Tcp => "a TCP connect",
            Probe::Http { .. } => "an HTTP check",
            Probe::Grpc { .. } => "a gRPC health check",
        }
    }

    async fn attempt(&self, address: SocketAddr) -> Result<&'static str, ProbeError> {
        let stream = TcpStream::connect(address)
            .await
            .map_err(ProbeError::Connect)?;
        match self {
            Probe::Tcp => {
                tokio::spawn(part(stream));
                Ok("accepts connections")
            }
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
}

/// Ends a connection without a reset: says that nothing more comes, and reads what the peer still says.
///
/// A socket that is closed with unread bytes (a banner, say) is reset instead, which some servers log or even count
/// against the client.
async fn part(mut stream: TcpStream) {
    let farewell = async {
        stream.shutdown().await?;
        let mut rest = [0; 1024];
        let mut budget = 64 * 1024usize;
        while budget > 0 {
            let read = stream.read(&mut rest).await?;
            if read == 0 {
                break;
            }
            budget = budget.saturating_sub(read);
        }
        Ok::<(), std::io::Error>(())
    };
    // Whatever happens now says nothing about the check, which has passed.
    let _ = tokio::time::timeout(FAREWELL, farewell).await;
}

/// A reason of bounded length: it goes into the registry.
fn shown_long(text: &str) -> String {
    let parts: Vec<String> = text
        .chars()
        .collect::<Vec<_>>()
        .chunks(80)
        .take(3)
        .map(|chunk| shown(&chunk.iter().collect::<String>()))
        .collect();
    parts.concat()
}
