//! A request's way to its endpoint.

use std::task::{Context, Poll};

use super::{Outcome, Stage, Talk, Then};
use crate::http::endpoint::{EndpointError, Failure};
use crate::http::message::{Coding, Decoder, encode, last_chunk};
use crate::http::reply::Problem;
use crate::http::tries::Resend;
use crate::options::limits;

/// What is to be sent of a request.
pub(super) struct Upload {
    /// Reads the rest of the body.
    decoder: Decoder,
    coding: Coding,
    /// What goes out; all from the request's beginning as long as it is `whole`.
    flight: Vec<u8>,
    sent: usize,
    /// Nothing was dropped from `flight`: the request can be sent again.
    whole: bool,
    /// Something went out in this try.
    begun: bool,
    /// The endpoint takes no more, though it may answer.
    broken: bool,
    /// What went into TLS may not have reached the socket.
    unflushed: bool,
}

impl Upload {
    pub(super) fn new(decoder: Decoder, coding: Coding, flight: Vec<u8>) -> Self {
        Upload {
            decoder,
            coding,
            flight,
            sent: 0,
            whole: true,
            begun: false,
            broken: false,
            unflushed: false,
        }
    }

    /// The client has sent everything.
    pub(super) fn ended(&self) -> bool {
        self.decoder.ended()
    }

    /// The endpoint got everything.
    pub(super) fn all_sent(&self) -> bool {
        self.ended() && self.sent == self.flight.len() && !self.broken
    }

    pub(super) fn nothing_sent(&self) -> bool {
        !self.begun
    }

    /// Whether what was sent so far can be sent again.
    pub(super) fn resend(&self) -> Resend {
        if self.whole {
            Resend::Possible
        } else {
            Resend::Impossible
        }
    }

    /// The same for all that is to be sent.
    pub(super) fn resend_whole(&self) -> Resend {
        if self.whole && self.ended() {
            Resend::Possible
        } else {
            Resend::Impossible
        }
    }

    /// From the beginning, on another connection.
    pub(super) fn rewind(&mut self) {
        self.sent = 0;
        self.begun = false;
        self.broken = false;
        self.unflushed = false;
    }

    pub(super) fn into_buffer(self) -> Vec<u8> {
        self.flight
    }

    /// Lets go of what went out, where it can't or needn't be kept.
    fn settle(&mut self) {
        if self.whole && self.flight.len() > limits::REPLAY_BYTES {
            self.whole = false;
        }
        if !self.whole && self.sent == self.flight.len() {
            self.flight.clear();
            self.sent = 0;
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
            if self.up.broken {
                return Ok(());
            }
            while self.up.sent < self.up.flight.len() {
                let left = &self.up.flight[self.up.sent..];
                match self.connection.poll_write(cx, left) {
                    Poll::Pending => {
                        // It is not the client who is slow.
                        self.side.slot.set_uploading(false);
                        return Ok(());
                    }
                    Poll::Ready(Ok(n)) if n > 0 => {
                        self.up.sent += n;
                        self.up.begun = true;
                        self.up.unflushed = true;
                    }
                    Poll::Ready(Ok(_)) => {
                        return self.refused(std::io::ErrorKind::WriteZero.into());
                    }
                    Poll::Ready(Err(error)) => return self.refused(error),
                }
            }
            self.up.settle();
            if self.up.unflushed {
                match self.connection.poll_flush(cx) {
                    Poll::Pending => {}
                    Poll::Ready(Ok(())) => self.up.unflushed = false,
                    Poll::Ready(Err(error)) => return self.refused(error),
                }
            }
            if self.up.ended() || !self.read_body(cx)? {
                return Ok(());
            }
        }
    }

    /// The endpoint takes no more of the request. It may have answered before, which is looked for next.
    fn refused(&mut self, error: std::io::Error) -> Result<(), Outcome> {
        if self.up.nothing_sent() {
            let error = EndpointError::Io(error);
            return Err(Outcome::Failed(Failure::NotSent { error }));
        }
        self.up.broken = true;
        Ok(())
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
        if !up.whole && up.coding == Coding::Raw && up.flight.is_empty() {
            // Straight on, without a copy: only what the endpoint does not take at once is held.
            match self.connection.poll_write(cx, data) {
                Poll::Ready(Ok(n)) => {
                    up.unflushed = true;
                    data = &data[n..];
                }
                Poll::Ready(Err(_)) => up.broken = true,
                Poll::Pending => {}
            }
        }
        encode(&mut up.flight, up.coding, data);
        if up.decoder.ended() {
            self.side.slot.set_uploading(false);
            if up.coding == Coding::Chunked {
                last_chunk(&mut up.flight, up.decoder.trailers());
            }
        }
        Ok(true)
    }
}
