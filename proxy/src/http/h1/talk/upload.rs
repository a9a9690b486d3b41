//! A request's way to its endpoint.

use std::task::{Context, Poll};

use super::{Outcome, Stage, Talk, Then};
use crate::http::endpoint::{EndpointError, Failure};
use crate::http::flight::{Flight, Sent};
use crate::http::message::{Coding, Decoder, encode, last_chunk};
use crate::http::reply::Problem;
use crate::http::tries::Resend;

/// What is to be sent of a request.
pub(super) struct Upload {
    /// Reads the rest of the body.
    decoder: Decoder,
    coding: Coding,
    pub(super) flight: Flight,
}

impl Upload {
    pub(super) fn new(decoder: Decoder, coding: Coding, first: Vec<u8>) -> Self {
        Upload {
            decoder,
            coding,
            flight: Flight::new(first),
        }
    }

    /// The client has sent everything.
    pub(super) fn ended(&self) -> bool {
        self.decoder.ended()
    }

    /// The endpoint got everything.
    pub(super) fn all_sent(&self) -> bool {
        self.ended() && self.flight.is_out()
    }

    /// Whether all that is to be sent can be sent again.
    pub(super) fn resend_whole(&self) -> Resend {
        if self.ended() {
            self.flight.resend()
        } else {
            Resend::Impossible
        }
    }
}

impl Talk<'_> {
    /// Moves the request as far as both sides allow.
    ///
    /// # Errors
    /// How the try ends because of it.
    pub(super) fn poll_upload(&mut self, cx: &mut Context<'_>) -> Result<(), Outcome> {
        loop {
            match self.up.flight.poll(cx, &mut self.connection) {
                Ok(Sent::All) => {}
                Ok(Sent::Waiting) => {
                    // It is not the client who is slow.
                    self.side.slot.set_uploading(false);
                    return Ok(());
                }
                Ok(Sent::Broken) => return Ok(()),
                Err(error) => {
                    let error = EndpointError::Io(error);
                    return Err(Outcome::Failed(Failure::NotSent { error }));
                }
            }
            if self.up.ended() || !self.read_body(cx)? {
                return Ok(());
            }
        }
    }

    /// Takes up more of the body, if some has come.
    fn read_body(&mut self, cx: &mut Context<'_>) -> Result<bool, Outcome> {
        let mut scratch = self.worker.scratch.borrow_mut();
        let n = match self.side.poll_read(cx, &mut scratch) {
            Poll::Pending => {
                self.side.slot.set_uploading(true);
                return Ok(false);
            }
            Poll::Ready(Ok(n)) if n > 0 => n,
            Poll::Ready(_) => return Err(Outcome::Gone),
        };
        let up = &mut self.up;
        let decoded = match up.decoder.decode(&mut scratch[..n]) {
            Ok(decoded) => decoded,
            Err(error) => {
                return Err(match self.stage {
                    Stage::Asking(..) => {
                        Outcome::Problem(Problem::request_body(&error.to_string()))
                    }
                    _ => Outcome::Answered(Then::Reset),
                });
            }
        };
        self.side
            .rest
            .extend_from_slice(&scratch[decoded.consumed..n]);
        let mut data = &scratch[..decoded.data];
        if up.coding == Coding::Raw {
            // Straight on, without a copy: only what the endpoint does not take at once is held.
            let through = up.flight.poll_through(cx, &mut self.connection, data);
            data = &data[through..];
        }
        encode(up.flight.bytes(), up.coding, data);
        if up.decoder.ended() {
            self.side.slot.set_uploading(false);
            if up.coding == Coding::Chunked {
                last_chunk(up.flight.bytes(), up.decoder.trailers());
            }
        }
        Ok(true)
    }
}
