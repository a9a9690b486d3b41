//! A client's HTTP/1.1 connection: heads are read, requests served one after the other, the connection kept or closed.
//!
//! # Layout
//! * this file: the connection's life
//! * `side`: the client's socket, counted, with what was read too early
//! * `request`: a head becomes an exchange and what is sent of it first
//! * `talk`: one try at an endpoint that speaks HTTP/1.1, and the response's way back
//! * `over_http2`: the same at one that speaks HTTP/2
//! * `close`: how a connection ends so that its last answer arrives
//!
//! # Cost
//! All reading is done into the worker's one buffer. A connection holds bytes only where a receiver is slower than its
//! sender, where half a head has come, and of a request that may have to be sent again. What a request needs is
//! allocated when its head has come and given back when its response has ended: an idle connection holds its socket and
//! its slot.

mod close;
mod over_http2;
mod request;
mod side;
mod talk;

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;

use super::endpoint::with_causes;
use super::exchange::{Client, Refused};
use super::h2;
use super::reply::Style;
use crate::connections::Closing;
use crate::tls;
use request::{Begun, Outgoing};
pub(super) use side::Side;

/// What becomes of a client's connection.
#[derive(Debug)]
pub(super) enum Then {
    /// It takes the next request.
    Keep,
    /// It closes; the client has sent all that it wanted to.
    Close,
    /// It closes once the client has had time to read the answer: it may be sending still.
    Linger,
    /// The response broke off, which a FIN could hide.
    Reset,
    /// It speaks HTTP/2.
    Http2,
    /// It speaks something else now.
    Tunnel(Box<talk::Tunnel>),
}

/// What an HTTP/2 connection with prior knowledge begins with (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What the client wants next.
enum Next {
    Request(Box<Begun>),
    Refused(Box<(Refused, Then)>),
    /// No further request.
    End(Then),
}

/// The connection.
pub(super) struct Http1 {
    client: Rc<Client>,
    side: Side,
    /// It may turn out to be an HTTP/2 connection.
    may_be_http2: bool,
}

impl Http1 {
    pub(super) fn new(client: Rc<Client>, side: Side) -> Self {
        Http1 {
            client,
            // What ALPN agreed on needs no guess.
            may_be_http2: side.stream().alpn().is_none(),
            side,
        }
    }

    /// Serves the client until either of us has enough; says how it is to end. By reference, so that the future holds
    /// no room for a second connection.
    pub(super) async fn run(&mut self) -> io::Result<Then> {
        if self.side.stream().alpn() == Some(tls::H2) {
            return Ok(Then::Http2);
        }
        loop {
            // Boxed, so that an idle connection holds no room for what follows.
            let then = match poll_fn(|cx| self.poll_next(cx)).await? {
                Next::End(then) => return Ok(then),
                Next::Refused(refused) => Box::pin(answer(&mut self.side, *refused)).await?,
                Next::Request(begun) => Box::pin(serve(&mut self.side, begun)).await?,
            };
            // One that was told that its connection is kept may be sending the next request already: a drain waits for it.
            if !matches!(then, Then::Keep) {
                return Ok(then);
            }
        }
    }

    /// Ends the connection, or hands it to whoever speaks on it now.
    pub(super) async fn finish(self, then: Then) {
        match then {
            Then::Keep | Then::Close => close::end(self.side).await,
            Then::Linger => close::linger(&self.client.worker, self.side).await,
            Then::Reset => close::reset(self.side),
            Then::Tunnel(tunnel) => tunnel.run(&self.client, self.side),
            Then::Http2 => {
                let served = h2::serve(self.client, self.side).await;
                if let Err(error) = served {
                    let error = with_causes(&error);
                    tracing::debug!(error, "a client's HTTP/2 connection broke");
                }
            }
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Next>> {
        if !self.side.rest.is_empty() {
            let mut early = std::mem::take(&mut self.side.rest);
            if let Some(next) = self.begin(&mut early) {
                return Poll::Ready(Ok(next));
            }
        }
        let worker = Rc::clone(&self.client.worker);
        loop {
            let slot = &self.client.slot;
            slot.park(cx.waker());
            if slot.closing() == Closing::Now && self.side.rest.is_empty() {
                return Poll::Ready(Ok(Next::End(Then::Close)));
            }
            let mut scratch = worker.scratch.borrow_mut();
            let n = match ready!(self.side.poll_read(cx, &mut scratch)) {
                Ok(n) => n,
                // Clients that reset a connection they are done with did nothing wrong.
                Err(_) if self.side.rest.is_empty() => {
                    return Poll::Ready(Ok(Next::End(Then::Close)));
                }
                Err(error) => return Poll::Ready(Err(error)),
            };
            if n == 0 {
                return Poll::Ready(Ok(Next::End(Then::Close)));
            }
            let next = if self.side.rest.is_empty() {
                self.begin(&mut scratch[..n])
            } else {
                let mut all = std::mem::take(&mut self.side.rest);
                all.extend_from_slice(&scratch[..n]);
                self.begin(&mut all)
            };
            if let Some(next) = next {
                return Poll::Ready(Ok(next));
            }
        }
    }
}

/// An answer of our own.
async fn answer(side: &mut Side, (refused, then): (Refused, Then)) -> io::Result<Then> {
    let closing = side.slot.closing() > Closing::No;
    let then = match then {
        Then::Keep if closing => Then::Close,
        then => then,
    };
    let bytes = refused.problem.http1(matches!(then, Then::Keep));
    side.write_all(&bytes).await?;
    Ok(then)
}

/// Serves one request, whatever its endpoint speaks.
async fn serve(side: &mut Side, begun: Box<Begun>) -> io::Result<Then> {
    let begun = *begun;
    match begun.outgoing {
        Outgoing::Http1(flight) => {
            talk::serve(side, begun.exchange, begun.facts, begun.decoder, flight).await
        }
        Outgoing::Http2(head, early) => {
            let (exchange, facts, decoder) = (begun.exchange, begun.facts, begun.decoder);
            let early = Bytes::from(early);
            over_http2::serve(side, exchange, facts, decoder, *head, early).await
        }
    }
}

/// Whether a request without an endpoint's answer leaves the connection usable: it does when nothing of it is to come.
fn then_after(ended: bool, keep_alive: bool) -> Then {
    match (ended, keep_alive) {
        (true, true) => Then::Keep,
        (true, false) => Then::Close,
        (false, _) => Then::Linger,
    }
}

/// Plain text, whatever was asked for: what is wrong is the head itself.
const UNREAD: Style = Style::Plain;
