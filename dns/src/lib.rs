//! The DNS server: answers for the mesh's zone from the snapshot, forwarding for every other zone.
//!
//! # Layout
//! The way of a query, in call order:
//! * [`server`]: sockets; every listener is bound before any serves, and replies leave from the address that was asked
//! * `workers`: threads that answer datagrams, each with a socket of its own
//! * `udp`: datagrams with the local address they were sent to (`IP_PKTINFO`), which a wildcard listener needs
//! * `tcp`: connections; [`tls`]: those that begin with a handshake
//! * `core`: bytes in, bytes out: the fast path where it can, the handler where it can't
//! * `fast`, `table`: ordinary queries about our zone, answered with bytes that were made when the snapshot changed
//! * `follow`: the thread that makes them
//! * `request`: a packet becomes a request, a refusal, or silence
//! * `handler`: which of our zone, the upstreams or a refusal answers whom
//! * [`zone`], [`reverse`]: pure: snapshot, name and type make an [`Answer`]; Kubernetes DNS specification 1.1.0
//! * [`answer`]: what that is, in terms of the mesh
//! * `response`: an answer becomes a message that keeps to the client's size
//! * `edns`: the OPT record of our responses, with cookies
//! * `transfer`: whole zones for secondaries; `serial`: how those learn of changes
//! * `access`: whose questions about other zones are forwarded
//! * [`forward`], `resolv_conf`: the upstreams, and what is kept of their answers
//! * [`metrics`]: what is counted; [`query_log`]: some queries, told
//! * [`explain`]: what somebody would be answered, and why
//! * `check`: what the fuzz targets do
//!
//! Messages are read and written with `hickory-proto`. The listeners are our own and not `hickory-server`'s, because
//! its loop decides some things before a handler sees the packet: it answers a malformed packet with FORMERR even when
//! that packet is itself a response, starts a task per datagram and takes TCP connections without a bound, and can't
//! tell which local address was asked.

mod access;
pub mod answer;
#[cfg(any(test, feature = "fuzzing"))]
mod check;
mod core;
mod edns;
pub mod error;
pub mod explain;
mod fast;
mod follow;
pub mod forward;
mod handler;
pub mod metrics;
pub mod query_log;
mod request;
mod resolv_conf;
mod response;
pub mod reverse;
mod serial;
pub mod server;
mod table;
mod tcp;
#[cfg(any(test, feature = "fuzzing"))]
#[cfg_attr(not(test), allow(dead_code, reason = "most of it is for tests"))]
mod testing;
pub mod tls;
mod transfer;
mod udp;
mod wire;
mod workers;
pub mod zone;

pub use answer::{Answer, Data, Host};
pub use error::DnsError;
pub use explain::Explainer;
pub use follow::Follower;
pub use forward::Upstream;
pub use metrics::Metrics;
pub use server::{Options, Server};
pub use tls::Tls;

/// The bodies of the fuzz targets.
#[cfg(feature = "fuzzing")]
pub mod fuzzing {
    /// Bytes as a client may send them.
    pub fn query(bytes: &[u8]) {
        crate::check::query(bytes);
    }

    /// Bytes as an upstream may answer.
    pub fn upstream(bytes: &[u8]) {
        crate::check::upstream(bytes);
    }

    /// Text as it may stand in `resolv.conf` and in the configuration's names and upstreams.
    pub fn text(bytes: &[u8]) {
        crate::check::text(bytes);
    }
}
