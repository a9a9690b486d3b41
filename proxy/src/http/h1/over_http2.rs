//! An HTTP/1.1 client's request at endpoints that speak HTTP/2.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body as _, Frame};
use hyper::body::Incoming;
use tokio::sync::mpsc;
use tokio_util::sync::PollSender;

use super::request::Facts;
use super::{Side, Then, answer, then_after};
use crate::connections::Closing;
use crate::http::exchange::Exchange;
use crate::http::h2::{self, Aborted, RequestBody};
use crate::http::message::{Coding, Decoder, encode, last_chunk, response_head};
use crate::http::translate;
use crate::options::limits;
use crate::worker::Worker;

/// What a body may have waiting between the client and the endpoint: what was read at once, and a frame.
const FRAMES: usize = 1;

type Frames = PollSender<Result<Frame<Bytes>, Aborted>>;

/// Takes the rest of a request's body from the client.
struct Pump {
    worker: Rc<Worker>,
    decoder: Decoder,
    /// None when there is no more to send, or nobody who wants it.
    frames: Option<Frames>,
}

impl Pump {
    /// Moves what has come. Ready when the client left, or its body can't be understood.
    fn poll(&mut self, cx: &mut Context<'_>, side: &mut Side) -> Poll<()> {
        loop {
            if self.decoder.ended() {
                self.frames = None;
            }
            let Some(frames) = &mut self.frames else {
                return self.poll_left(cx, side);
            };
            match frames.poll_reserve(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) => {}
                // The endpoint has enough of it.
                Poll::Ready(Err(_)) => {
                    self.frames = None;
                    continue;
                }
            }
            let worker = Rc::clone(&self.worker);
            let mut scratch = worker.scratch.borrow_mut();
            let n = match side.poll_read(cx, &mut scratch) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(n)) if n > 0 => n,
                Poll::Ready(_) => {
                    self.send(Err(Aborted));
                    return Poll::Ready(());
                }
            };
            let Ok(decoded) = self.decoder.decode(&mut scratch[..n]) else {
                self.send(Err(Aborted));
                return Poll::Ready(());
            };
            side.rest.extend_from_slice(&scratch[decoded.consumed..n]);
            if decoded.data > 0 {
                let data = Bytes::copy_from_slice(&scratch[..decoded.data]);
                self.send(Ok(Frame::data(data)));
            } else if let Some(trailers) = translate::trailers(&self.decoder) {
                self.send(Ok(Frame::trailers(trailers)));
            }
        }
    }

    /// Takes up the room that was reserved.
    fn send(&mut self, frame: Result<Frame<Bytes>, Aborted>) {
        if let Some(frames) = &mut self.frames {
            // Whoever wanted it may have gone meanwhile.
            drop(frames.send_item(frame));
        }
    }

    /// Whether the client has left, while it is only to wait.
    fn poll_left(&mut self, cx: &mut Context<'_>, side: &mut Side) -> Poll<()> {
        while side.rest.len() < limits::PIPELINED_BYTES && self.decoder.ended() {
            let mut scratch = self.worker.scratch.borrow_mut();
            match side.poll_read(cx, &mut scratch) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(n)) if n > 0 => side.rest.extend_from_slice(&scratch[..n]),
                Poll::Ready(_) => return Poll::Ready(()),
            }
        }
        Poll::Pending
    }
}

/// Serves a request of which `early` is what has come of its body.
pub(super) async fn serve(
    side: &mut Side,
    exchange: Exchange,
    facts: Facts,
    decoder: Decoder,
    head: Request<()>,
    early: Bytes,
) -> io::Result<Then> {
    let worker = Rc::clone(exchange.worker());
    let mut frames = None;
    let body = if decoder.ended() && early.is_empty() {
        RequestBody::Empty
    } else if decoder.ended() && translate::trailers(&decoder).is_none() {
        RequestBody::Whole(early)
    } else {
        // Room for what is at hand already, so that nothing waits before the request is sent.
        let (sender, receiver) = mpsc::channel(FRAMES + 2);
        let at_hand = [
            (!early.is_empty()).then(|| Frame::data(early)),
            translate::trailers(&decoder).map(Frame::trailers),
        ];
        for frame in at_hand.into_iter().flatten() {
            // There is room for both.
            drop(sender.try_send(Ok(frame)));
        }
        frames = Some(PollSender::new(sender));
        RequestBody::Channel(receiver)
    };
    let mut pump = Pump {
        worker,
        decoder,
        frames,
    };
    side.slot.set_uploading(!pump.decoder.ended());
    if facts.expects_continue && !pump.decoder.ended() {
        // Endpoints get the body as it comes: there is nobody else to say so.
        side.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
    }
    let mut asking = Box::pin(h2::ask(exchange, head, body));
    let asked = poll_fn(|cx| {
        if pump.poll(cx, side).is_ready() {
            return Poll::Ready(None);
        }
        asking.as_mut().poll(cx).map(Some)
    })
    .await;
    drop(asking);
    let (response, ending) = match asked {
        None => return Ok(Then::Close),
        Some(Err(refused)) => {
            side.slot.set_uploading(false);
            let then = then_after(pump.decoder.ended(), facts.keep_alive);
            return answer(side, (refused, then)).await;
        }
        Some(Ok(answered)) => answered,
    };
    let then = deliver(side, facts, &mut pump, response).await;
    side.slot.set_uploading(false);
    drop(ending);
    then
}

/// Writes the response to the client, and goes on taking the request's body.
async fn deliver(
    side: &mut Side,
    facts: Facts,
    pump: &mut Pump,
    response: Response<Incoming>,
) -> io::Result<Then> {
    let (head, mut incoming) = response.into_parts();
    let length = content_length(&head.headers);
    let empty = facts.head || incoming.is_end_stream();
    let (coding, until_close) = match (empty, length, facts.is_11) {
        (true, ..) | (false, Some(_), _) => (Coding::Raw, false),
        (false, None, true) => (Coding::Chunked, false),
        (false, None, false) => (Coding::Raw, true),
    };
    let closes = !facts.keep_alive || until_close || side.slot.closing() > Closing::No;
    let connection = match (closes, facts.is_11) {
        (true, _) => Some("close"),
        (false, false) => Some("keep-alive"),
        (false, true) => None,
    };
    let status = head.status;
    // A body that has ended with its head has a length all the same, unless its status says that there is none.
    let implied = (empty && !facts.head && !matches!(status.as_u16(), 204 | 304)).then_some(0);
    let length = length.or(implied).filter(|_| status.as_u16() != 204);
    let mut held = Vec::new();
    let reason = status.canonical_reason().unwrap_or_default();
    response_head(
        &mut held,
        (status.as_u16(), reason),
        translate::passed(&head.headers),
        coding,
        length,
        connection,
    );
    let mut written = 0;
    let mut ended = empty;
    let whole = poll_fn(|cx| {
        loop {
            while written < held.len() {
                match side.poll_write(cx, &held[written..]) {
                    Poll::Ready(Ok(n)) if n > 0 => written += n,
                    Poll::Ready(_) => return Poll::Ready(None),
                    Poll::Pending => return poll_client(cx, pump, side),
                }
            }
            match side.poll_flush(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(None),
                Poll::Pending => return poll_client(cx, pump, side),
            }
            held.clear();
            written = 0;
            if ended {
                return Poll::Ready(Some(true));
            }
            match Pin::new(&mut incoming).poll_frame(cx) {
                Poll::Pending => return poll_client(cx, pump, side),
                Poll::Ready(Some(Err(error))) => {
                    tracing::debug!(%error, "a response broke off");
                    return Poll::Ready(Some(false));
                }
                Poll::Ready(None) => {
                    ended = true;
                    if coding == Coding::Chunked {
                        last_chunk(&mut held, b"");
                    }
                }
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => encode(&mut held, coding, &data),
                    Err(frame) => {
                        ended = true;
                        if coding == Coding::Chunked {
                            let trailers = frame.into_trailers().unwrap_or_default();
                            last_chunk(&mut held, &translate::trailer_lines(&trailers));
                        }
                    }
                },
            }
        }
    })
    .await;
    Ok(match whole {
        None => Then::Close,
        Some(false) => Then::Reset,
        Some(true) if !pump.decoder.ended() => Then::Linger,
        Some(true) if closes => Then::Close,
        Some(true) => Then::Keep,
    })
}

/// While the response has to wait: more of the request, or the news that the client has left.
fn poll_client(cx: &mut Context<'_>, pump: &mut Pump, side: &mut Side) -> Poll<Option<bool>> {
    pump.poll(cx, side).map(|()| None)
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    let said = headers.get(http::header::CONTENT_LENGTH)?;
    said.to_str().ok()?.parse().ok()
}
