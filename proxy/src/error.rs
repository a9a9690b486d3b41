//! Why the proxy doesn't start.

use std::io;
use std::net::SocketAddr;

use crate::redirect::RedirectError;

/// What keeps the proxy from starting. A service's own listener that can't be opened is not among these: it shows in
/// [`crate::Proxy::listeners`] and is tried again.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// A proxy without workers serves nobody.
    #[error("proxy.workers is 0: at least one worker is needed")]
    NoWorkers,
    /// A worker's thread or its runtime could not be made.
    #[error("proxy worker {worker} can't start")]
    Worker {
        /// Which one, from 0.
        worker: usize,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The thread that keeps listeners in place, or the one that reads certificates, could not be made.
    #[error("the thread that looks after listeners or certificates can't start")]
    Keeper {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The listener that takes the redirected connections could not be opened.
    #[error("the listener for redirected connections can't be opened")]
    RedirectListener {
        /// Why, with the address.
        #[source]
        source: SocketError,
    },
    /// The redirect itself could not be put in place.
    #[error("the redirect of virtual IPs can't be put in place")]
    Redirect {
        /// Why.
        #[source]
        source: RedirectError,
    },
}

/// A listening socket that could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("{step} {address}")]
pub struct SocketError {
    /// What was to be listened on.
    pub address: SocketAddr,
    /// The step that failed, as a phrase before the address: `bind to`.
    pub step: &'static str,
    /// The operating system's answer.
    #[source]
    pub source: io::Error,
}
