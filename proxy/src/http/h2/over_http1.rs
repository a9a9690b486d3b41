//! A request of an HTTP/2 client at endpoints that speak HTTP/1.1.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use http::Response;
use http_body::Body as _;
use hyper::body::Incoming;

use super::answer::Answer;
use super::body::ResponseBody;
use crate::http::endpoint::{Connection, EndpointError, Failure};
use crate::http::exchange::{Exchange, Lost, Refused};
use crate::http::flight::{Flight, Sent};
use crate::http::message::{
    Coding, Decoder, Framing, ResponseHead, Storage, encode, is_too_long, last_chunk,
};
use crate::http::reply::Problem;
use crate::http::translate::{self, Asking};
use crate::http::tries::{Resend, Try};
use crate::worker::Worker;

/// What is to be sent of a request.
pub(super) struct Upload {
    incoming: Option<Incoming>,
    coding: Coding,
    flight: Flight,
    /// Written behind the last chunk.
    trailers: Vec<u8>,
}

impl Upload {
    fn with(first: Vec<u8>, incoming: Option<Incoming>, coding: Coding) -> Self {
        Upload {
            incoming,
            coding,
            flight: Flight::new(first),
            trailers: Vec::new(),
        }
    }

    /// A request without a body.
    pub(super) fn of_head(first: Vec<u8>) -> Self {
        Upload::with(first, None, Coding::Raw)
    }

    /// Everything went out.
    pub(super) fn ended(&self) -> bool {
        self.incoming.is_none() && self.flight.is_out()
    }

    /// Whether all that is to be sent can be sent again.
    fn resend_whole(&self) -> Resend {
        if self.incoming.is_some() {
            Resend::Impossible
        } else {
            self.flight.resend()
        }
    }

    /// Moves the request as far as both sides allow.
    ///
    /// # Errors
    /// The client broke its body off, or the connection was closed before anything went out.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        connection: &mut Connection,
    ) -> Result<(), UploadError> {
        loop {
            let sent = self.flight.poll(cx, connection);
            if sent.map_err(UploadError::NotSent)? != Sent::All || !self.poll_body(cx)? {
                return Ok(());
            }
        }
    }

    /// Takes up more of the body, if some has come.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Result<bool, UploadError> {
        let Some(incoming) = &mut self.incoming else {
            return Ok(false);
        };
        match Pin::new(&mut *incoming).poll_frame(cx) {
            Poll::Pending => return Ok(false),
            Poll::Ready(None) => self.end(),
            Poll::Ready(Some(Err(error))) => return Err(UploadError::Client(error)),
            Poll::Ready(Some(Ok(frame))) => {
                let over = incoming.is_end_stream();
                match frame.into_data() {
                    Ok(data) => encode(self.flight.bytes(), self.coding, &data),
                    Err(frame) => {
                        let trailers = frame.into_trailers().unwrap_or_default();
                        self.trailers = translate::trailer_lines(&trailers);
                    }
                }
                if over {
                    self.end();
                }
            }
        }
        Ok(true)
    }

    fn end(&mut self) {
        self.incoming = None;
        if self.coding == Coding::Chunked {
            last_chunk(self.flight.bytes(), &self.trailers);
        }
    }
}

/// Why a request's body goes no further.
pub(super) enum UploadError {
    Client(hyper::Error),
    /// The connection was closed before anything went out.
    NotSent(std::io::Error),
}

/// What came with an answer.
pub(super) struct Headed {
    pub(super) response: Response<()>,
    pub(super) decoder: Decoder,
    pub(super) keep_alive: bool,
    /// What came of the body, or of another protocol.
    pub(super) rest: Vec<u8>,
}

/// Serves a request.
pub(super) async fn serve(
    exchange: Exchange,
    asking: Asking,
    incoming: Incoming,
) -> Result<Response<ResponseBody>, Refused> {
    let framing = match (incoming.is_end_stream(), asking.length()) {
        (true, Some(0)) => Framing::Length(0),
        (true, _) => Framing::Empty,
        (false, Some(length)) => Framing::Length(length),
        (false, None) => Framing::Chunked,
    };
    let coding = match framing {
        Framing::Chunked => Coding::Chunked,
        _ => Coding::Raw,
    };
    let mut flight = exchange.worker().buffer();
    asking.http1(framing, &exchange.client().forwarded(), &mut flight);
    let incoming = (!incoming.is_end_stream()).then_some(incoming);
    let up = Upload::with(flight, incoming, coding);
    let asked = ask(exchange, up, asking.is_head()).await?;
    Ok(Answer::respond(asked))
}

/// An endpoint that has answered, with all that belongs to it.
pub(super) struct Asked {
    pub(super) exchange: Exchange,
    pub(super) tried: Try,
    pub(super) connection: Connection,
    pub(super) up: Upload,
    pub(super) headed: Headed,
}

/// Asks endpoints until one answers.
///
/// # Errors
/// None does.
pub(super) async fn ask(
    mut exchange: Exchange,
    mut up: Upload,
    head: bool,
) -> Result<Asked, Refused> {
    loop {
        let tried = match exchange.pick(up.resend_whole()) {
            Ok(tried) => tried,
            Err(problem) => return Err(exchange.give_up(problem)),
        };
        let result = match exchange.limit() {
            None => one(&exchange, &tried, &mut up, head).await,
            Some(limit) => {
                let trying = one(&exchange, &tried, &mut up, head);
                let done = tokio::time::timeout_at(limit.at.into(), trying);
                let done = Box::pin(done).await;
                done.unwrap_or_else(|_| Err(exchange.out_of_time(limit, tried.index)))
            }
        };
        let index = tried.index;
        let problem = match result {
            Ok((connection, headed)) => {
                return Ok(Asked {
                    exchange,
                    tried,
                    connection,
                    up,
                    headed,
                });
            }
            Err(Lost::Problem(problem)) => problem,
            Err(Lost::Failed(failure)) => {
                drop(tried);
                match exchange.failed(index, failure, up.flight.resend()) {
                    Ok(()) => {
                        up.flight.rewind();
                        continue;
                    }
                    Err(problem) => problem,
                }
            }
        };
        return Err(exchange.give_up(problem));
    }
}

/// One try.
async fn one(
    exchange: &Exchange,
    tried: &Try,
    up: &mut Upload,
    head: bool,
) -> Result<(Connection, Headed), Lost> {
    let seq = tried.in_flight.seq();
    let mut connection = match exchange.port.pool.take(seq, tried.need) {
        Some(connection) => connection,
        None => {
            // Boxed, because most requests need no new connection.
            let counted = exchange.port.counted(tried.in_flight.endpoint());
            let (port, view) = (&exchange.port, &exchange.view);
            let opening = Connection::open(&port.tls, view, tried.index, counted);
            Box::pin(opening)
                .await
                .map_err(|error| Lost::Failed(Failure::Connect { error }))?
        }
    };
    let worker = Rc::clone(exchange.worker());
    let mut partial = Vec::new();
    let headed = poll_fn(|cx| {
        match up.poll(cx, &mut connection) {
            Ok(()) => {}
            Err(UploadError::Client(error)) => {
                let problem = Problem::request_body(&error.to_string());
                return Poll::Ready(Err(Lost::Problem(problem)));
            }
            Err(UploadError::NotSent(error)) => {
                let error = EndpointError::Io(error);
                return Poll::Ready(Err(Lost::Failed(Failure::NotSent { error })));
            }
        }
        poll_head(cx, &worker, &mut connection, &mut partial, head).map(|result| {
            result.map_err(|error| {
                let reused = connection.reused && partial.is_empty();
                Lost::Failed(Failure::Broken { error, reused })
            })
        })
    })
    .await?;
    Ok((connection, headed))
}

/// Reads until a head has come that is not an interim one.
fn poll_head(
    cx: &mut Context<'_>,
    worker: &Worker,
    connection: &mut Connection,
    partial: &mut Vec<u8>,
    head: bool,
) -> Poll<Result<Headed, EndpointError>> {
    loop {
        let mut scratch = worker.scratch.borrow_mut();
        let n = match connection.poll_read(cx, &mut scratch) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(0)) if partial.is_empty() => {
                return Poll::Ready(Err(EndpointError::Closed));
            }
            Poll::Ready(Ok(0)) => return Poll::Ready(Err(EndpointError::Truncated)),
            Poll::Ready(Ok(n)) => n,
            Poll::Ready(Err(error)) => return Poll::Ready(Err(EndpointError::Io(error))),
        };
        let read = if partial.is_empty() {
            headed(&scratch[..n], head)
        } else {
            partial.extend_from_slice(&scratch[..n]);
            headed(partial, head)
        };
        match read {
            Ok(Ok(headed)) => return Poll::Ready(Ok(headed)),
            Ok(Err(taken)) if partial.is_empty() => *partial = scratch[taken..n].to_vec(),
            Ok(Err(taken)) => drop(partial.drain(..taken)),
            Err(error) => return Poll::Ready(Err(error)),
        }
    }
}

/// The head that counts; or how many bytes of interim ones are done with.
fn headed(bytes: &[u8], head: bool) -> Result<Result<Headed, usize>, EndpointError> {
    let mut at = 0;
    loop {
        let mut storage = Storage::new();
        let parsed = ResponseHead::parse(&bytes[at..], head, &mut storage);
        match parsed.map_err(EndpointError::Head)? {
            None if is_too_long(bytes.len() - at) => return Err(EndpointError::HeadLength),
            None => return Ok(Err(at)),
            // hyper passes none on to HTTP/2 clients.
            Some(head) if head.is_interim() => at += head.bytes,
            Some(head) => {
                return Ok(Ok(Headed {
                    response: translate::response(&head),
                    decoder: Decoder::new(head.framing),
                    keep_alive: head.keep_alive,
                    rest: bytes[at + head.bytes..].to_vec(),
                }));
            }
        }
    }
}
