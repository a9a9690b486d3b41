//! A request at endpoints that speak HTTP/1.1: its tries, the rest of its body on the way there, the response on its way
//! back. Both directions move at once; each reads only when what it read before has gone out.

mod download;
mod tunnel;
mod upload;

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::time::Sleep;

use super::request::Facts;
use super::{Side, Then, answer, then_after};
use crate::http::endpoint::{Connection, EndpointError, Failure};
use crate::http::exchange::{Ending, Exchange, Limit, Lost};
use crate::http::message::Decoder;
use crate::http::reply::Problem;
use crate::http::tries::Try;
use crate::options::limits;
use crate::worker::Worker;
use download::Download;
pub(super) use tunnel::Tunnel;
use upload::Upload;

/// How a try ends.
enum Outcome {
    /// The response went to the client.
    Answered(Then),
    /// The endpoint failed before it answered.
    Failed(Failure),
    /// The client is told what is wrong; nothing of a response has gone to it.
    Problem(Problem),
    /// The client left.
    Gone,
}

/// Where a request is between its first try and the end of its response.
enum Stage {
    /// No head has come that goes to the client.
    Asking(Exchange, Try),
    Answering(Ending),
    /// Between stages.
    Over,
}

/// One try.
struct Talk<'c> {
    side: &'c mut Side,
    worker: Rc<Worker>,
    facts: Facts,
    stage: Stage,
    connection: Connection,
    up: Upload,
    down: Download,
    timer: Option<Timer>,
}

/// Runs while a try has brought no response.
struct Timer {
    sleep: Pin<Box<Sleep>>,
    limit: Limit,
}

impl Timer {
    fn of(exchange: &Exchange) -> Option<Self> {
        exchange.limit().map(|limit| Timer {
            sleep: Box::pin(tokio::time::sleep_until(limit.at.into())),
            limit,
        })
    }
}

/// Serves a request of which `flight` goes out first and `decoder` reads the rest.
pub(super) async fn serve(
    side: &mut Side,
    exchange: Exchange,
    facts: Facts,
    decoder: Decoder,
    flight: Vec<u8>,
) -> io::Result<Then> {
    let worker = Rc::clone(exchange.worker());
    let mut up = Upload::new(decoder, facts.coding, flight);
    let mut exchange = exchange;
    side.slot.set_uploading(!up.ended());
    loop {
        let tried = match exchange.pick(up.resend_whole()) {
            Ok(tried) => tried,
            Err(problem) => return refuse(side, exchange, facts, &up, problem).await,
        };
        let index = tried.index;
        let seq = tried.in_flight.seq();
        let connection = match exchange.port.pool.take(seq, tried.need) {
            Some(connection) => connection,
            None => {
                // Boxed, because most requests need no new connection.
                let opened = Box::pin(open(&exchange, index)).await;
                match opened {
                    Ok(connection) => connection,
                    Err(lost) => {
                        drop(tried);
                        let failed = match lost {
                            Lost::Failed(failure) => {
                                exchange.failed(index, failure, up.flight.resend())
                            }
                            Lost::Problem(problem) => Err(problem),
                        };
                        match failed {
                            Ok(()) => continue,
                            Err(problem) => {
                                return refuse(side, exchange, facts, &up, problem).await;
                            }
                        }
                    }
                }
            }
        };
        let mut talk = Talk {
            side,
            worker: Rc::clone(&worker),
            facts,
            timer: Timer::of(&exchange),
            stage: Stage::Asking(exchange, tried),
            connection,
            up,
            down: Download::default(),
        };
        let outcome = poll_fn(|cx| talk.poll(cx)).await;
        talk.side.slot.set_uploading(false);
        let (stage, back) = match outcome {
            Outcome::Answered(then) => return Ok(talk.finish(then)),
            Outcome::Gone => return Ok(Then::Close),
            Outcome::Failed(failure) => (talk.stage, Ok(failure)),
            Outcome::Problem(problem) => (talk.stage, Err(problem)),
        };
        up = talk.up;
        let Stage::Asking(again, tried) = stage else {
            return Ok(Then::Reset);
        };
        exchange = again;
        drop(tried);
        let side = &mut *talk.side;
        let failed = back.and_then(|failure| exchange.failed(index, failure, up.flight.resend()));
        if let Err(problem) = failed {
            return refuse(side, exchange, facts, &up, problem).await;
        }
        up.flight.rewind();
    }
}

/// A new connection, within the time that the request has.
///
/// # Errors
/// Why there is none, or that the time is over.
async fn open(exchange: &Exchange, index: usize) -> Result<Connection, Lost> {
    let counted = exchange.port.counted(&exchange.view.endpoints[index]);
    let opening = Connection::open(&exchange.port.tls, &exchange.view, index, counted);
    let opened = match exchange.limit() {
        None => opening.await,
        Some(limit) => match tokio::time::timeout_at(limit.at.into(), opening).await {
            Ok(opened) => opened,
            Err(_) => return Err(exchange.out_of_time(limit, index)),
        },
    };
    opened.map_err(|error| Lost::Failed(Failure::Connect { error }))
}

async fn refuse(
    side: &mut Side,
    exchange: Exchange,
    facts: Facts,
    up: &Upload,
    problem: Problem,
) -> io::Result<Then> {
    side.slot.set_uploading(false);
    let then = then_after(up.ended(), facts.keep_alive);
    answer(side, (exchange.give_up(problem), then)).await
}

impl Talk<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        if let Err(outcome) = self.poll_upload(cx) {
            return Poll::Ready(outcome);
        }
        match self.poll_download(cx) {
            Err(outcome) => return Poll::Ready(outcome),
            Ok(Poll::Ready(then)) => return Poll::Ready(Outcome::Answered(then)),
            Ok(Poll::Pending) => {}
        }
        if self.up.ended() && self.poll_left(cx) {
            return Poll::Ready(Outcome::Gone);
        }
        self.poll_timer(cx)
    }

    /// Whether the client has left. What it sends meanwhile is of its next request, and bounded.
    fn poll_left(&mut self, cx: &mut Context<'_>) -> bool {
        while self.side.rest.len() < limits::PIPELINED_BYTES {
            let mut scratch = self.worker.scratch.borrow_mut();
            match self.side.poll_read(cx, &mut scratch) {
                Poll::Pending => return false,
                Poll::Ready(Ok(n)) if n > 0 => self.side.rest.extend_from_slice(&scratch[..n]),
                Poll::Ready(_) => return true,
            }
        }
        false
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        let (Some(timer), Stage::Asking(exchange, tried)) = (&mut self.timer, &self.stage) else {
            return Poll::Pending;
        };
        if timer.sleep.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        Poll::Ready(match exchange.out_of_time(timer.limit, tried.index) {
            Lost::Failed(failure) => Outcome::Failed(failure),
            Lost::Problem(problem) => Outcome::Problem(problem),
        })
    }

    /// A failure after which it is unknown what became of the request; or known, if nothing of it was sent.
    fn broken(&self, error: EndpointError) -> Failure {
        if self.up.flight.nothing_sent() {
            Failure::NotSent { error }
        } else {
            let reused = self.connection.reused && self.down.is_untouched();
            Failure::Broken { error, reused }
        }
    }

    /// Gives back what the request held.
    fn finish(self, then: Then) -> Then {
        if let Then::Tunnel(tunnel) = then {
            return Then::Tunnel(tunnel.with(self.connection));
        }
        let Stage::Answering(ending) = self.stage else {
            return then;
        };
        let all_sent = self.up.all_sent();
        self.worker.take_back(self.up.flight.into_buffer());
        let whole = self.down.keep_alive && self.down.ended() && all_sent;
        if whole && matches!(then, Then::Keep | Then::Close) && ending.may_keep() {
            ending
                .port
                .pool
                .put(ending.in_flight.seq(), self.connection);
        }
        then
    }

    /// What becomes of the client's connection once the response has gone out.
    fn then(&self) -> Then {
        if !self.up.ended() {
            // It was answered before it had sent everything: where its body ends can't be waited for.
            Then::Linger
        } else if self.down.closes {
            Then::Close
        } else {
            Then::Keep
        }
    }
}
