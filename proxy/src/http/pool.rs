//! Connections to the endpoints of a port, kept by one worker.
//!
//! They hang on [`model::snapshot::EndpointLoad::seq`], which no two generations of an endpoint share: an address that
//! was recycled finds none of its predecessor's connections.

use std::cell::RefCell;
use std::time::Instant;

use futures::future::{LocalBoxFuture, Shared};
use hyper::client::conn::http2;

use super::endpoint::{ConnectError, Connection};
use super::h2::RequestBody;
use crate::by_seq::BySeq;
use crate::options::limits;

/// How sure a connection must be to be open still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// The request can be sent again.
    Any,
    /// It can't: a connection that was used a moment ago and on which nothing waits.
    Sure,
    /// It can't, and its client would not send it again either, being its first: a new connection.
    New,
}

/// An HTTP/2 connection being made, or made: all who want it wait for the same one.
pub(super) type Connecting =
    Shared<LocalBoxFuture<'static, Result<http2::SendRequest<RequestBody>, ConnectError>>>;

/// An endpoint's HTTP/2 connection, as `h2c` ports share it.
pub(super) struct Multiplexed {
    /// Tells one connection from its successor.
    pub(super) number: u64,
    pub(super) connecting: Connecting,
}

/// The connections that one worker keeps to a port's endpoints.
#[derive(Default)]
pub(crate) struct Pool {
    /// The most recently used last.
    idle: RefCell<BySeq<Vec<(Connection, Instant)>>>,
    multiplexed: RefCell<BySeq<Multiplexed>>,
    numbers: std::cell::Cell<u64>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let idle: usize = self.idle.borrow().values().map(Vec::len).sum();
        f.debug_struct("Pool")
            .field("idle", &idle)
            .finish_non_exhaustive()
    }
}

impl Pool {
    /// The most recently used connection that is open still, as far as `need` asks to know: it is the least likely to
    /// be closed at this moment, and the others get the chance to grow old.
    pub(super) fn take(&self, seq: u64, need: Need) -> Option<Connection> {
        if need == Need::New {
            return None;
        }
        let mut idle = self.idle.borrow_mut();
        let of_endpoint = idle.get_mut(&seq)?;
        while let Some((mut connection, since)) = of_endpoint.pop() {
            if !connection.is_open() {
                continue;
            }
            if need == Need::Sure {
                if since.elapsed() > limits::FRESH_ENOUGH {
                    of_endpoint.push((connection, since));
                    return None;
                }
                if !connection.is_quiet() {
                    continue;
                }
            }
            connection.begins_anew();
            return Some(connection);
        }
        None
    }

    /// Keeps a connection for the next request; closes it when there are enough.
    pub(super) fn put(&self, seq: u64, connection: Connection) {
        let mut idle = self.idle.borrow_mut();
        let of_endpoint = idle.entry(seq).or_default();
        if of_endpoint.len() < limits::IDLE_PER_ENDPOINT {
            of_endpoint.push((connection, Instant::now()));
        }
    }

    /// The endpoint's HTTP/2 connection, which `connect` makes when there is none.
    pub(super) fn multiplexed(
        &self,
        seq: u64,
        connect: impl FnOnce() -> Connecting,
    ) -> (u64, Connecting) {
        let mut multiplexed = self.multiplexed.borrow_mut();
        if let Some(known) = multiplexed.get(&seq) {
            // Not made yet, or made and not closed: neither failed nor told to go away.
            let usable = known
                .connecting
                .peek()
                .is_none_or(|made| made.as_ref().is_ok_and(|sender| !sender.is_closed()));
            if usable {
                return (known.number, known.connecting.clone());
            }
        }
        let number = self.numbers.get() + 1;
        self.numbers.set(number);
        let connecting = connect();
        multiplexed.insert(
            seq,
            Multiplexed {
                number,
                connecting: connecting.clone(),
            },
        );
        (number, connecting)
    }

    /// Makes the next request open a new HTTP/2 connection, if this one is still the endpoint's.
    pub(super) fn give_up(&self, seq: u64, number: u64) {
        let mut multiplexed = self.multiplexed.borrow_mut();
        if multiplexed
            .get(&seq)
            .is_some_and(|known| known.number == number)
        {
            multiplexed.remove(&seq);
        }
    }

    /// Closes the idle connections to endpoints that `keep` doesn't name; requests on HTTP/2 ones end by themselves.
    pub(crate) fn retain(&self, keep: impl Fn(u64) -> bool) {
        self.idle.borrow_mut().retain(|seq, _| keep(*seq));
        self.multiplexed.borrow_mut().retain(|seq, _| keep(*seq));
    }

    /// Closes what was idle for too long or is closed by its endpoint.
    pub(crate) fn sweep(&self, now: Instant) {
        let old = |since: &Instant| now.saturating_duration_since(*since) > limits::IDLE_UPSTREAM;
        self.idle.borrow_mut().retain(|_, of_endpoint| {
            of_endpoint.retain_mut(|(connection, since)| !old(since) && connection.is_open());
            !of_endpoint.is_empty()
        });
        self.multiplexed.borrow_mut().retain(|_, known| {
            known
                .connecting
                .peek()
                .is_none_or(|made| made.as_ref().is_ok_and(|sender| !sender.is_closed()))
        });
    }
}
