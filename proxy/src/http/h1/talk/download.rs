//! A response's way to the client.

use std::task::{Context, Poll};

use super::{Outcome, Stage, Talk, Then, Tunnel};
use crate::connections::Closing;
use crate::http::endpoint::EndpointError;
use crate::http::message::{
    Coding, Decoder, Framing, HeadError, ResponseHead, Storage, encode, is_too_long, last_chunk,
    response_head,
};
use crate::options::limits;
use crate::splice::Splice;

/// What has come of a response.
pub(super) struct Download {
    /// Half a head.
    partial: Vec<u8>,
    decoder: Option<Decoder>,
    coding: Coding,
    /// What the client has not taken yet.
    held: Vec<u8>,
    written: usize,
    unflushed: bool,
    /// The kernel moves the body.
    splice: Option<Splice>,
    /// The endpoint keeps its connection.
    pub(super) keep_alive: bool,
    /// The client's connection ends with this response.
    pub(super) closes: bool,
    tunnel: Option<Box<Tunnel>>,
}

impl Default for Download {
    fn default() -> Self {
        Download {
            partial: Vec::new(),
            decoder: None,
            coding: Coding::Raw,
            held: Vec::new(),
            written: 0,
            unflushed: false,
            splice: None,
            keep_alive: false,
            closes: false,
            tunnel: None,
        }
    }
}

impl Download {
    /// Nothing has come.
    pub(super) fn is_untouched(&self) -> bool {
        self.decoder.is_none() && self.partial.is_empty()
    }

    pub(super) fn begin_tunnel(&mut self, tunnel: Tunnel) {
        self.tunnel = Some(Box::new(tunnel));
    }

    pub(super) fn ended(&self) -> bool {
        self.decoder.as_ref().is_some_and(Decoder::ended)
    }
}

impl Talk<'_> {
    /// Moves the response as far as both sides allow.
    ///
    /// # Errors
    /// How the try ends because of it.
    pub(super) fn poll_download(&mut self, cx: &mut Context<'_>) -> Result<Poll<Then>, Outcome> {
        loop {
            if self.poll_held(cx)?.is_pending() {
                return Ok(Poll::Pending);
            }
            if let Some(tunnel) = self.down.tunnel.take() {
                return Ok(Poll::Ready(Then::Tunnel(tunnel)));
            }
            if self.down.ended() {
                return Ok(Poll::Ready(self.then()));
            }
            let moved = match self.splices() {
                true => self.poll_splice(cx)?,
                false => self.read_response(cx)?,
            };
            if moved.is_pending() {
                return Ok(Poll::Pending);
            }
        }
    }

    /// Writes what the client did not take at once.
    fn poll_held(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, Outcome> {
        let down = &mut self.down;
        while down.written < down.held.len() {
            match self.side.poll_write(cx, &down.held[down.written..]) {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(Ok(n)) if n > 0 => down.written += n,
                Poll::Ready(_) => return Err(Outcome::Gone),
            }
            down.unflushed = true;
        }
        if !down.held.is_empty() {
            down.held = Vec::new();
            down.written = 0;
        }
        if down.unflushed {
            match self.side.poll_flush(cx) {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(Ok(())) => down.unflushed = false,
                Poll::Ready(Err(_)) => return Err(Outcome::Gone),
            }
        }
        Ok(Poll::Ready(()))
    }

    fn read_response(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, Outcome> {
        let worker = std::rc::Rc::clone(&self.worker);
        let mut scratch = worker.scratch.borrow_mut();
        let n = match self.connection.poll_read(cx, &mut scratch) {
            Poll::Pending => return Ok(Poll::Pending),
            Poll::Ready(Ok(n)) => n,
            Poll::Ready(Err(error)) => return Err(self.endpoint_lost(EndpointError::Io(error))),
        };
        if n == 0 {
            self.endpoint_closed(cx)?;
        } else if self.down.partial.is_empty() {
            self.received(cx, &mut scratch[..n])?;
        } else {
            let mut all = std::mem::take(&mut self.down.partial);
            all.extend_from_slice(&scratch[..n]);
            self.received(cx, &mut all)?;
        }
        Ok(Poll::Ready(()))
    }

    fn endpoint_lost(&self, error: EndpointError) -> Outcome {
        match self.stage {
            Stage::Asking(..) => Outcome::Failed(self.broken(error)),
            _ => {
                tracing::debug!(error = error.in_words(), "a response broke off");
                Outcome::Answered(Then::Reset)
            }
        }
    }

    fn endpoint_closed(&mut self, cx: &mut Context<'_>) -> Result<(), Outcome> {
        let Some(decoder) = &mut self.down.decoder else {
            let untouched = self.down.partial.is_empty();
            return Err(self.endpoint_lost(match untouched {
                true => EndpointError::Closed,
                false => EndpointError::Truncated,
            }));
        };
        if !decoder.closed() {
            return Err(self.endpoint_lost(EndpointError::Truncated));
        }
        let mut out = Vec::new();
        if self.down.coding == Coding::Chunked {
            last_chunk(&mut out, b"");
        }
        self.deliver(cx, &out, &[])
    }

    /// Takes in what came from the endpoint.
    fn received(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Result<(), Outcome> {
        if self.down.decoder.is_some() {
            return self.body(cx, buffer, &[]);
        }
        let worker = std::rc::Rc::clone(&self.worker);
        let mut out = worker.out.borrow_mut();
        out.clear();
        let mut at = 0;
        while self.down.decoder.is_none() && self.down.tunnel.is_none() {
            match self.head(&buffer[at..], &mut out)? {
                Some(bytes) => at += bytes,
                None => {
                    self.down.partial = buffer[at..].to_vec();
                    return self.deliver(cx, &out, &[]);
                }
            }
        }
        match &mut self.down.tunnel {
            Some(tunnel) => {
                tunnel.early.from_endpoint = buffer[at..].to_vec();
                self.deliver(cx, &out, &[])
            }
            None => self.body(cx, &mut buffer[at..], &out),
        }
    }

    /// Reads a head and appends what the client gets of it; `None` when it is not whole.
    fn head(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<Option<usize>, Outcome> {
        let mut storage = Storage::new();
        let head = match ResponseHead::parse(bytes, self.facts.head, &mut storage) {
            Ok(Some(head)) => head,
            Ok(None) if !is_too_long(bytes.len()) => return Ok(None),
            Ok(None) => return Err(self.endpoint_lost(EndpointError::HeadLength)),
            Err(error) => return Err(self.unreadable(error)),
        };
        let taken = head.bytes;
        if head.is_interim() {
            // HTTP/1.0 knows none (RFC 9110, 15.2).
            if self.facts.is_11 {
                let line = (head.status, head.reason);
                response_head(out, line, head.fields.passed(), Coding::Raw, None, None);
            }
            return Ok(Some(taken));
        }
        if head.status == 101 && !self.facts.upgrade {
            let failure = self.broken(EndpointError::UnaskedUpgrade);
            return Err(Outcome::Failed(failure));
        }
        let Stage::Asking(exchange, tried) = std::mem::replace(&mut self.stage, Stage::Over) else {
            return Err(Outcome::Gone);
        };
        let ending = exchange.answered(tried, head.status);
        self.timer = None;
        if head.status == 101 {
            self.switch(&head, ending, out);
            return Ok(Some(taken));
        }
        self.answer(&head, out);
        self.stage = Stage::Answering(ending);
        Ok(Some(taken))
    }

    fn unreadable(&self, error: HeadError) -> Outcome {
        self.endpoint_lost(EndpointError::Head(error))
    }

    /// Says how the response goes to the client.
    fn answer(&mut self, head: &ResponseHead<'_, '_>, out: &mut Vec<u8>) {
        let unknown = matches!(head.framing, Framing::Chunked | Framing::UntilClose);
        let down = &mut self.down;
        down.coding = if unknown && self.facts.is_11 {
            Coding::Chunked
        } else {
            Coding::Raw
        };
        let until_close = unknown && !self.facts.is_11;
        let closing = self.side.slot.closing() > Closing::No;
        down.closes = !self.facts.keep_alive || until_close || closing;
        down.keep_alive = head.keep_alive;
        let connection = match (down.closes, self.facts.is_11) {
            (true, _) => Some("close"),
            (false, false) => Some("keep-alive"),
            (false, true) => None,
        };
        // What has no body by its status has no length either.
        let length = head.said.filter(|_| head.status != 204);
        let line = (head.status, head.reason);
        response_head(
            out,
            line,
            head.fields.passed(),
            down.coding,
            length,
            connection,
        );
        down.decoder = Some(Decoder::new(head.framing));
    }

    /// Reads the body's bytes and passes them on, behind a head if there is one.
    fn body(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
        head: &[u8],
    ) -> Result<(), Outcome> {
        let Some(decoder) = &mut self.down.decoder else {
            return Ok(());
        };
        let decoded = match decoder.decode(buffer) {
            Ok(decoded) => decoded,
            Err(error) => return Err(self.endpoint_lost(EndpointError::Body(error))),
        };
        if decoded.consumed < buffer.len() {
            // Nobody asked for more than this response.
            self.down.keep_alive = false;
        }
        let data = &buffer[..decoded.data];
        if self.down.coding == Coding::Raw {
            return self.deliver(cx, head, data);
        }
        let mut out = self.worker.buffer();
        out.extend_from_slice(head);
        encode(&mut out, Coding::Chunked, data);
        if let Some(decoder) = self.down.decoder.as_ref().filter(|d| d.ended()) {
            last_chunk(&mut out, decoder.trailers());
        }
        let delivered = self.deliver(cx, &out, &[]);
        self.worker.take_back(out);
        delivered
    }

    /// Writes to the client; what it does not take at once is held.
    fn deliver(
        &mut self,
        cx: &mut Context<'_>,
        first: &[u8],
        second: &[u8],
    ) -> Result<(), Outcome> {
        if first.is_empty() && second.is_empty() {
            return Ok(());
        }
        let written = match (first.is_empty(), second.is_empty()) {
            (false, false) => self.side.poll_write_two(cx, first, second),
            (true, _) => self.side.poll_write(cx, second),
            _ => self.side.poll_write(cx, first),
        };
        let written = match written {
            Poll::Pending => 0,
            Poll::Ready(Ok(n)) => n,
            Poll::Ready(Err(_)) => return Err(Outcome::Gone),
        };
        self.down.unflushed = true;
        let of_first = written.min(first.len());
        self.down.held.extend_from_slice(&first[of_first..]);
        self.down
            .held
            .extend_from_slice(&second[written - of_first..]);
        Ok(())
    }

    /// Whether the kernel may move the body without showing it to us: long, of known length, in the clear.
    fn splices(&mut self) -> bool {
        if self.down.splice.is_some() {
            return true;
        }
        let Some(Decoder::Length(left)) = &self.down.decoder else {
            return false;
        };
        if *left < limits::SPLICE_FROM
            || !self.side.stream().is_clear()
            || !self.connection.stream().is_clear()
        {
            return false;
        }
        self.down.splice = Splice::new(&self.worker.pipes);
        self.down.splice.is_some()
    }

    fn poll_splice(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, Outcome> {
        let (Some(splice), Some(decoder)) = (&mut self.down.splice, &mut self.down.decoder) else {
            return Ok(Poll::Ready(()));
        };
        let left = decoder.remaining().unwrap_or(0);
        let from = self.connection.stream().tcp();
        match splice.poll(cx, from, self.side.stream().tcp(), left) {
            Poll::Pending => Ok(Poll::Pending),
            Poll::Ready(Ok(moved)) => {
                let n = usize::try_from(moved).unwrap_or(usize::MAX);
                self.side.wrote(n);
                self.connection.received(n);
                decoder.skip(moved);
                if decoder.ended() {
                    self.down.splice = None;
                }
                Ok(Poll::Ready(()))
            }
            Poll::Ready(Err(failed)) if failed.of_receiver => Err(Outcome::Gone),
            Poll::Ready(Err(failed)) => Err(self.endpoint_lost(match failed.error {
                None => EndpointError::Truncated,
                Some(error) => EndpointError::Io(error),
            })),
        }
    }
}
