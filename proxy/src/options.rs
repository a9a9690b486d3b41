//! How the proxy runs, and its limits.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use model::Snapshot;
use model::net::IpNet;

use crate::redirect::RedirectConfig;
use crate::sockets::Inherited;

/// How the proxy runs.
#[derive(Debug)]
pub struct Options {
    /// Threads that move data; each has its own listeners and pools.
    pub workers: usize,
    /// How long [`crate::Proxy::drain`] waits for what is in flight before it cuts it off.
    pub drain_timeout: Duration,
    /// What is served. Its owner stores a new snapshot, then calls [`crate::Proxy::reconcile`].
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// How virtual IPs are listened on.
    pub vips: VipMode,
    /// Where node ports are bound: `[::]` takes both families, and falls back to `0.0.0.0` without IPv6.
    pub node_port_addresses: Vec<IpAddr>,
    /// Listening sockets of a parent process, used instead of new ones where the address is the same.
    pub inherited: Inherited,
    /// What endpoints are told of clients.
    pub forwarding: Forwarding,
}

/// What endpoints are told of clients, beside `X-Forwarded-For`, `-Proto` and `-Host`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forwarding {
    /// Networks of clients whose own `X-Forwarded-*` and `Forwarded` are believed and added to; those of all others are
    /// replaced.
    pub trusted: Vec<IpNet>,
    /// `Forwarded` as well (RFC 7239).
    pub forwarded: bool,
    /// `Via` (RFC 9110, 7.6.3).
    pub via: bool,
    /// `X-Request-Id` where the client sends none.
    pub request_id: bool,
    /// `traceparent` where the client sends none (W3C Trace Context): every request is marked as sampled.
    pub start_traces: bool,
}

impl Default for Forwarding {
    /// Nobody is trusted; requests get an id.
    fn default() -> Self {
        Forwarding {
            trusted: Vec::new(),
            forwarded: false,
            via: false,
            request_id: true,
            start_traces: false,
        }
    }
}

impl Forwarding {
    /// Whether a client is believed.
    pub(crate) fn trusts(&self, ip: IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(ip))
    }
}

impl Options {
    /// One worker, no virtual IPs, node ports on all addresses, 30 s to drain.
    pub fn new(snapshot: Arc<ArcSwap<Snapshot>>) -> Self {
        Options {
            workers: 1,
            drain_timeout: Duration::from_secs(30),
            snapshot,
            vips: VipMode::None,
            node_port_addresses: vec![IpAddr::V6(Ipv6Addr::UNSPECIFIED)],
            inherited: Inherited::none(),
            forwarding: Forwarding::default(),
        }
    }
}

/// How virtual IPs are listened on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum VipMode {
    /// Not at all: node ports only.
    #[default]
    None,
    /// Each `VIP:port` is bound: for loopback ranges, without root.
    Direct,
    /// nftables leads every `VIP:port` of a service to one listener per worker and address family. Port 0 in the
    /// configuration lets the kernel choose the listener's port.
    Redirected(RedirectConfig),
}

/// The limits of the data path, in one place. None of them grows memory when it is reached.
pub(crate) mod limits {
    use std::time::Duration;

    /// Bytes of a request's or response's head on HTTP/1.1 (431 beyond), and of a header list on HTTP/2.
    pub(crate) const HEAD_BYTES: usize = 64 * 1024;
    /// Bytes of a request's target on HTTP/1.1 (414 beyond).
    pub(crate) const TARGET_BYTES: usize = 16 * 1024;
    /// Bytes of all chunk extensions of one body together.
    pub(crate) const CHUNK_EXTENSION_BYTES: usize = 16 * 1024;
    /// Bytes of the trailers of one body.
    pub(crate) const TRAILER_BYTES: usize = 16 * 1024;
    /// Bytes of a request that are kept to send it again: its head and what fits of its body.
    pub(crate) const REPLAY_BYTES: usize = 64 * 1024;
    /// Bytes that are taken of a client's next requests while one is served.
    pub(crate) const PIPELINED_BYTES: usize = 64 * 1024;
    /// Between two reads of a request's body, checked every second.
    pub(crate) const BODY_TIMEOUT: Duration = Duration::from_secs(60);
    /// For how long, and of how many bytes, what a client still sends is read before its connection closes.
    pub(crate) const LINGER: Duration = Duration::from_secs(2);
    pub(crate) const LINGER_BYTES: usize = 4 << 20;
    /// Bytes read at a time of HTTP messages.
    pub(crate) const READ_BYTES: usize = 32 * 1024;
    /// Empty buffers that a worker keeps for the next requests, and the largest that it keeps.
    pub(crate) const BUFFERS: usize = 128;
    pub(crate) const BUFFER_BYTES: usize = 32 * 1024;
    /// What must be to come of a body for the kernel to move it.
    pub(crate) const SPLICE_FROM: u64 = 16 * 1024;
    /// Bytes moved by one call at most: what a pipe holds.
    pub(crate) const SPLICE_BYTES: usize = 64 * 1024;
    /// Calls in a row before other connections get their turn.
    pub(crate) const SPLICE_ROUNDS: usize = 16;
    /// Pipes that a worker keeps.
    pub(crate) const PIPES: usize = 64;
    /// For a request's head, from its first byte, checked every second. Also for HTTP/2's first bytes.
    pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
    /// Streams at once on a client's HTTP/2 connection.
    pub(crate) const H2_STREAMS: u32 = 256;
    /// Streams reset by the client that were not looked at yet; beyond it the connection is closed (rapid reset).
    pub(crate) const H2_PENDING_RESETS: usize = 32;
    /// Streams reset by us because of the client's errors; beyond it the connection is closed.
    pub(crate) const H2_LOCAL_RESETS: usize = 1024;
    /// Flow control window of one HTTP/2 stream: what a stalled reader can make us hold per stream.
    pub(crate) const H2_STREAM_WINDOW: u32 = 256 * 1024;
    /// Flow control window of one HTTP/2 connection: what it can make us hold in all.
    pub(crate) const H2_CONNECTION_WINDOW: u32 = 1024 * 1024;
    /// Bytes to be sent that are held per HTTP/2 stream.
    pub(crate) const H2_SEND_BYTES: usize = 64 * 1024;
    /// Between two pings on an HTTP/2 connection to an endpoint with streams on it, and how long an answer may take.
    pub(crate) const H2_PING: (Duration, Duration) =
        (Duration::from_secs(10), Duration::from_secs(10));
    /// Idle HTTP/1.1 connections kept per worker and endpoint.
    pub(crate) const IDLE_PER_ENDPOINT: usize = 256;
    /// How long an idle connection to an endpoint is kept.
    pub(crate) const IDLE_UPSTREAM: Duration = Duration::from_secs(60);
    /// How long a connection to an endpoint may have been idle to carry a request that can't be sent again. Servers
    /// close idle connections after a second at the earliest.
    pub(crate) const FRESH_ENOUGH: Duration = Duration::from_millis(900);
    /// Connect time-outs in a row that one request or connection may spend on dead endpoints. Refusals are quick and
    /// not limited: every endpoint is tried once.
    pub(crate) const CONNECT_TIMEOUTS: u32 = 3;
    /// New connections to the same endpoint that a request is given when one after the other closes before anything was
    /// sent on it.
    pub(crate) const UNSENT: u32 = 3;
    /// Retries that a worker grants a port before requests have paid for any.
    pub(crate) const RETRY_RESERVE: u32 = 10;
    /// The most that requests can save up, in hundredths of a retry.
    pub(crate) const RETRY_SAVINGS: u64 = 10_000;
    /// While draining, how long an idle HTTP/1.1 connection may still bring a request, which is answered with
    /// `Connection: close`, before it is closed.
    pub(crate) const DRAIN_GRACE: Duration = Duration::from_secs(1);
    /// Bytes that a relay moves at a time: larger ones fall out of the processor's cache.
    pub(crate) const RELAY_BYTES: usize = 16 * 1024;
}
