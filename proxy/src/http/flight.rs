//! What goes to an endpoint of a request, kept as long as it may have to be sent again.

use std::io;
use std::task::{Context, Poll};

use super::endpoint::Connection;
use super::tries::Resend;
use crate::options::limits;

/// A request on its way to an endpoint.
#[derive(Debug)]
pub(super) struct Flight {
    /// What goes out; all from the request's beginning as long as it is `whole`.
    bytes: Vec<u8>,
    sent: usize,
    /// Nothing was dropped from `bytes`: the request can be sent again.
    whole: bool,
    /// Something went out in this try.
    begun: bool,
    /// The endpoint takes no more, though it may answer.
    broken: bool,
    /// What went into TLS may not have reached the socket.
    unflushed: bool,
}

/// How far a request has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// All that there was went out: there is room for more.
    All,
    /// The endpoint takes no more for now.
    Waiting,
    /// It takes no more at all; it may answer still.
    Broken,
}

impl Flight {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Flight {
            bytes,
            sent: 0,
            whole: true,
            begun: false,
            broken: false,
            unflushed: false,
        }
    }

    /// Where more is appended.
    pub(super) fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    pub(super) fn into_buffer(self) -> Vec<u8> {
        self.bytes
    }

    /// Everything went out.
    pub(super) fn is_out(&self) -> bool {
        self.sent == self.bytes.len() && !self.broken
    }

    /// Nothing went out in this try.
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

    /// From the beginning, on another connection.
    pub(super) fn rewind(&mut self) {
        self.sent = 0;
        (self.begun, self.broken, self.unflushed) = (false, false, false);
    }

    /// Sends what there is, as far as the endpoint takes it.
    ///
    /// # Errors
    /// The connection was closed before anything went out.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        connection: &mut Connection,
    ) -> io::Result<Sent> {
        while self.sent < self.bytes.len() && !self.broken {
            match connection.poll_write(cx, &self.bytes[self.sent..]) {
                Poll::Pending => return Ok(Sent::Waiting),
                Poll::Ready(Ok(n)) if n > 0 => {
                    self.sent += n;
                    (self.begun, self.unflushed) = (true, true);
                }
                Poll::Ready(Ok(_)) => self.refused(io::ErrorKind::WriteZero.into())?,
                Poll::Ready(Err(error)) => self.refused(error)?,
            }
        }
        if self.unflushed && !self.broken {
            match connection.poll_flush(cx) {
                Poll::Pending => {}
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(error)) => self.refused(error)?,
            }
        }
        if self.broken {
            return Ok(Sent::Broken);
        }
        self.settle();
        Ok(Sent::All)
    }

    /// Sends data straight on where it is not kept anyway and nothing is before it; how much of it went out.
    pub(super) fn poll_through(
        &mut self,
        cx: &mut Context<'_>,
        connection: &mut Connection,
        data: &[u8],
    ) -> usize {
        if self.whole || !self.bytes.is_empty() {
            return 0;
        }
        match connection.poll_write(cx, data) {
            Poll::Pending => 0,
            Poll::Ready(Ok(n)) => {
                self.unflushed = true;
                n
            }
            Poll::Ready(Err(_)) => {
                self.broken = true;
                0
            }
        }
    }

    /// It may have been answered before, which is looked for next.
    fn refused(&mut self, error: io::Error) -> io::Result<()> {
        self.broken = true;
        if self.begun { Ok(()) } else { Err(error) }
    }

    /// Lets go of what went out, where it can't or needn't be kept.
    fn settle(&mut self) {
        if self.bytes.len() > limits::REPLAY_BYTES {
            self.whole = false;
        }
        if !self.whole {
            self.bytes.clear();
            self.sent = 0;
        }
    }
}
