//! Containers, from Docker's or Podman's events and listings.
//!
//! Events are hints: each one has its container inspected anew, except those that say outright that a container ends. A
//! listing at the start of every connection, and then every minute, is the truth. Events are asked for from a little
//! before the connection on, so that nothing is lost between subscribing and listing, and a stop that began before heddle
//! did is seen too.
//!
//! # Layout
//! - `event`: what an event means
//! - `inspect`: what runs, from Docker's description of a container
//! - `network`: which of its networks a container is dialled on
//! - `signal`: signals by name and number
//! - `room`: what is known of all containers, and what to ask next (no I/O)
//! - `session`: one connection to Docker, from subscription to loss

mod event;
mod inspect;
mod network;
mod room;
mod session;
mod signal;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use model::event::Event;
use model::time::Timestamp;
use registry::follow::chain;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::local::Local;
use crate::metrics::Metrics;
use room::Room;
pub(crate) use session::dial;
use session::{Ended, Session};

/// Events of this long before a connection are replayed: a stop that is under way is longer than that only if somebody asked
/// for it.
pub(crate) const REPLAY: Duration = Duration::from_secs(30);

const MIN_BACKOFF: Duration = Duration::from_millis(50);
/// A try at a socket where nobody listens costs microseconds, and what changed while Docker was away waits for the next one.
const MAX_BACKOFF: Duration = Duration::from_millis(500);

/// Where Docker is, and how often it is listed.
#[derive(Clone, Debug)]
pub struct DockerOptions {
    /// `unix:///var/run/docker.sock`, or `http://host:port`.
    pub socket: String,
    /// How often all containers are listed and inspected, in case an event was lost.
    pub relist: Duration,
}

impl DockerOptions {
    /// A listing every minute.
    pub fn new(socket: impl Into<String>) -> Self {
        DockerOptions {
            socket: socket.into(),
            relist: Duration::from_secs(60),
        }
    }
}

/// Whether containers are seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DockerStatus {
    /// Not asked for.
    Disabled,
    /// Events are followed, and containers were listed.
    Connected {
        /// Since when.
        since: Timestamp,
    },
    /// Docker can't be reached; the containers known last are kept and checked.
    Waiting {
        /// Why.
        reason: String,
        /// Since when.
        since: Timestamp,
    },
}

impl DockerStatus {
    pub(crate) fn waiting(reason: impl Into<String>) -> Self {
        DockerStatus::Waiting {
            reason: reason.into(),
            since: Timestamp::now(),
        }
    }
}

/// What is told of containers.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// It is new or has changed.
    Put(Arc<Local>),
    /// It runs no more: its short id.
    Gone(Arc<str>),
    /// For the history; its node is left to be filled in.
    Happened(Event),
    /// Everything that runs has been told, except these short ids, which could not be inspected.
    Listed {
        /// Nothing can be said of them.
        unjudged: BTreeSet<Arc<str>>,
    },
}

/// Follows Docker until shutdown, connecting again whenever the connection is lost.
pub(crate) async fn run(
    options: DockerOptions,
    out: mpsc::Sender<Message>,
    status: watch::Sender<DockerStatus>,
    metrics: Metrics,
    shutdown: CancellationToken,
) {
    let mut room = Room::new();
    let mut backoff = MIN_BACKOFF;
    loop {
        let session = Session::new(&options, &out, &status, &metrics, &mut room);
        let ended = tokio::select! {
            () = shutdown.cancelled() => return,
            ended = session.run() => ended,
        };
        let Ended { error, listed } = ended;
        if out.is_closed() {
            return;
        }
        metrics.docker_connected.set(0);
        if listed {
            backoff = MIN_BACKOFF;
        }
        let reason = chain(&error);
        // Once per outage, not once per try.
        let said =
            matches!(&*status.borrow(), DockerStatus::Waiting { reason: r, .. } if *r == reason);
        if !said {
            tracing::warn!(socket = %options.socket, %reason, "docker can't be followed; containers known so far are kept");
            let since = match &*status.borrow() {
                DockerStatus::Waiting { since, .. } => *since,
                _ => Timestamp::now(),
            };
            status.send_replace(DockerStatus::Waiting { reason, since });
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(backoff) => {}
        }
        backoff = (backoff * 2).min(MAX_BACKOFF);
    }
}
