//! The data plane: listeners, L4 and L7 relaying, picking, draining.
//!
//! It reads the [`model::Snapshot`] through one atomic pointer and knows neither the registry nor Docker, so that it
//! runs in a test from a snapshot made by hand.
//!
//! # Layout
//! From outside to inside:
//! * [`Proxy`], [`Options`]: start, reconcile with a snapshot, drain; `control`: which listeners there are to be
//! * [`sockets`]: the only place that opens sockets, inherited ones included
//! * [`redirect`]: virtual IPs on a real host, through nftables
//! * `worker`: one thread with its runtime, listeners, connections and pools; `accept`, `connections`, `target`
//! * `l4`, `relay`, `splice`: bytes, and `stream`: in the clear or inside TLS
//! * `http`: HTTP/1.1 and HTTP/2, with `http::exchange` as the one place where a request is picked for, retried, timed
//!   and counted
//! * `pick`: which endpoint now
//! * `tls`: handshakes, certificates and who keeps them; `stream`: a connection with or without it
//! * [`Metrics`]: what the workers count, summed at the scrape
//!
//! # Threads
//! Each worker is one thread with a current-thread runtime; a connection never leaves it. The control side (whoever
//! calls [`Proxy::reconcile`], and one thread that retries failed listeners) opens sockets and hands them over. Workers
//! share the snapshot and the atomics of endpoints and ports, and wait for nobody.

mod accept;
mod by_seq;
mod connections;
mod control;
mod error;
mod http;
mod l4;
mod metrics;
mod options;
mod pick;
mod proxy;
pub mod redirect;
mod relay;
pub mod sockets;
mod splice;
mod stream;
mod target;
mod tls;
mod worker;

pub use control::{ListenerKind, ListenerStatus};
pub use error::ProxyError;
#[cfg(feature = "fuzzing")]
pub use http::fuzzing;
pub use metrics::{BOUNDS as DURATION_BOUNDS, Metrics, Totals, Traffic};
pub use options::{Forwarding, Options, VipMode};
pub use proxy::{Drained, Proxy};
pub use tls::{Certificate, TlsStatus};
