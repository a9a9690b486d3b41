//! The upstreams, which are asked for every name that is not ours.
//!
//! An upstream's response is passed on as the bytes that came, so that record types nobody here knows stay whole; only
//! the id, the question's case and the OPT record, which belong to each hop, are our own.

mod exchange;
#[cfg(test)]
mod tests;
mod wire;

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use hickory_proto::op::{MessageType, Metadata, OpCode, Query, ResponseCode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use crate::error::Transport;
use crate::request::Request;
use crate::resolv_conf;
use crate::response::{self, MAX_DATAGRAM, Sections};

/// Queries under way at a time; one more gets SERVFAIL at once.
pub const MAX_IN_FLIGHT: usize = 1_000;

/// How long one upstream may take.
const TRY: Duration = Duration::from_millis(1_500);

/// How long all tries together may take: less than the 5 s after which resolvers ask again.
const TOTAL: Duration = Duration::from_millis(4_500);

/// How often each upstream is asked.
const ROUNDS: usize = 2;

/// Where names that are not ours are looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upstream {
    /// The name servers of `/etc/resolv.conf`.
    System,
    /// A name server.
    Address(SocketAddr),
}

/// A text that names no upstream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is neither `system` nor an address like 192.0.2.53, 192.0.2.53:5353 or [2001:db8::53]:53"
)]
pub struct UpstreamError(String);

impl FromStr for Upstream {
    type Err = UpstreamError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "system" {
            return Ok(Upstream::System);
        }
        let with_port = text.parse::<SocketAddr>();
        with_port
            .or_else(|_| text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53)))
            .map(Upstream::Address)
            .map_err(|_| UpstreamError(text.chars().take(80).collect()))
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Upstream::System => f.write_str("system"),
            Upstream::Address(address) => address.fmt(f),
        }
    }
}

/// The name servers to ask, in order: without duplicates, and without those that are ourselves, which would ask
/// themselves for ever.
pub(crate) fn resolve(
    upstreams: &[Upstream],
    resolv_conf: &Path,
    own: &[SocketAddr],
) -> Vec<SocketAddr> {
    let mut all: Vec<SocketAddr> = Vec::new();
    for upstream in upstreams {
        let found = match upstream {
            Upstream::Address(address) => vec![*address],
            Upstream::System => system(resolv_conf),
        };
        for address in found {
            if is_own(address, own) {
                warn!(upstream = %address, "not forwarding dns to ourselves: upstream skipped");
            } else if !all.contains(&address) {
                all.push(address);
            }
        }
    }
    if all.is_empty() {
        warn!("no dns upstream: names outside the mesh get SERVFAIL");
    }
    all
}

fn system(path: &Path) -> Vec<SocketAddr> {
    let text = match std::fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => {
            warn!(path = %path.display(), %error, "can't read the system's name servers");
            return Vec::new();
        }
    };
    let (servers, unreadable) = resolv_conf::name_servers(&text);
    for line in unreadable {
        warn!(path = %path.display(), line, "name server skipped: not an ip address");
    }
    servers
}

fn is_own(upstream: SocketAddr, own: &[SocketAddr]) -> bool {
    own.iter().any(|listener| {
        let same_family = listener.is_ipv4() == upstream.is_ipv4();
        listener.port() == upstream.port()
            && (listener.ip() == upstream.ip()
                || (listener.ip().is_unspecified() && same_family && is_local(upstream)))
    })
}

/// Only addresses of this host can be bound.
fn is_local(address: SocketAddr) -> bool {
    let mut any_port = address;
    any_port.set_port(0);
    UdpSocket::bind(any_port).is_ok()
}

/// Why no upstream answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ForwardError {
    #[error("there is no upstream to ask")]
    NoUpstream,
    #[error("no upstream answered in time")]
    NoAnswer,
    #[error("the query can't be written")]
    Query(#[source] hickory_proto::ProtoError),
}

/// An upstream and whether it answered last time.
#[derive(Debug)]
struct Server {
    address: SocketAddr,
    down: AtomicBool,
}

impl Server {
    /// Says it once when an upstream stops answering, and once when it answers again.
    fn note(&self, result: Result<(), &io::Error>) {
        let was_down = self.down.swap(result.is_err(), Ordering::Relaxed);
        match result {
            Ok(()) if was_down => info!(upstream = %self.address, "dns upstream answers again"),
            Err(error) if !was_down => {
                warn!(upstream = %self.address, %error, "dns upstream does not answer");
            }
            _ => {}
        }
    }
}

/// Asks upstreams.
#[derive(Debug)]
pub(crate) struct Forwarder {
    servers: Vec<Server>,
    /// Index of the upstream that answered last: a dead one costs its time-out once, and not every query.
    preferred: AtomicUsize,
    in_flight: Arc<Semaphore>,
}

impl Forwarder {
    pub(crate) fn new(upstreams: Vec<SocketAddr>) -> Self {
        let server = |address| Server {
            address,
            down: AtomicBool::new(false),
        };
        Forwarder {
            servers: upstreams.into_iter().map(server).collect(),
            preferred: AtomicUsize::new(0),
            in_flight: Arc::new(Semaphore::new(MAX_IN_FLIGHT)),
        }
    }

    /// Whether there is anybody to ask.
    pub(crate) fn available(&self) -> bool {
        !self.servers.is_empty()
    }

    /// Leave to ask once; `None` when too many are asking.
    pub(crate) fn permit(&self) -> Option<OwnedSemaphorePermit> {
        self.in_flight.clone().try_acquire_owned().ok()
    }

    /// Asks one upstream after the other until one answers, and makes its response ours: at most `limit` bytes, with TC
    /// set when something had to be left out.
    pub(crate) async fn ask(
        &self,
        request: &Request,
        query: &Query,
        transport: Transport,
        limit: u16,
    ) -> Result<(ResponseCode, Vec<u8>), ForwardError> {
        let first = self.preferred.load(Ordering::Relaxed);
        let deadline = Instant::now() + TOTAL;
        let mut poor = None;
        for step in 0..self.servers.len() * ROUNDS {
            // Somebody who can't answer was heard; asking the silent ones again would only delay saying so.
            if step >= self.servers.len() && poor.is_some() {
                break;
            }
            let index = (first + step) % self.servers.len();
            let server = &self.servers[index];
            let asked = Asked::new(request, query).map_err(ForwardError::Query)?;
            let time = TRY.min(deadline.saturating_duration_since(Instant::now()));
            if time.is_zero() {
                break;
            }
            let exchange = exchange::exchange(server.address, &asked, transport);
            let result = match timeout(time, exchange).await {
                Ok(result) => result,
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            };
            server.note(result.as_ref().map(|_| ()));
            let Ok(response) = result else { continue };
            match response.code() {
                ResponseCode::ServFail | ResponseCode::Refused | ResponseCode::NotImp => {
                    poor.get_or_insert((response, asked));
                }
                code => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return Ok((code, response.into_ours(request, &asked, limit)));
                }
            }
        }
        match poor {
            Some((response, asked)) => {
                Ok((response.code(), response.into_ours(request, &asked, limit)))
            }
            None if self.servers.is_empty() => Err(ForwardError::NoUpstream),
            None => Err(ForwardError::NoAnswer),
        }
    }
}

/// A query of our own, with an id that nobody can guess.
#[derive(Debug)]
struct Asked {
    id: u16,
    bytes: Vec<u8>,
    /// Length of the question, which stands behind the header.
    question: usize,
}

impl Asked {
    /// Options of the client's OPT record are not passed on: they are meant for us (RFC 6891, 6.1.1).
    fn new(request: &Request, query: &Query) -> Result<Self, hickory_proto::ProtoError> {
        let id = rand::random();
        let mut metadata = Metadata::new(id, MessageType::Query, OpCode::Query);
        metadata.recursion_desired = request.metadata.recursion_desired;
        metadata.checking_disabled = request.metadata.checking_disabled;
        metadata.authentic_data = request.metadata.authentic_data;
        let edns = request.edns.map(|edns| response::opt(edns.dnssec_ok));
        let opt = edns.as_ref().map_or(0, |_| response::OPT_BYTES);
        let bytes = response::encode(&metadata, Some(query), Sections::EMPTY, edns, MAX_DATAGRAM)?;
        Ok(Asked {
            id,
            question: bytes.len() - wire::HEADER - usize::from(opt),
            bytes,
        })
    }

    fn question(&self) -> &[u8] {
        &self.bytes[wire::HEADER..wire::HEADER + self.question]
    }
}
