//! A head becomes an exchange, and what goes to an endpoint first: its own head, and as much of the body as has come.

use http::Request;

use super::{Http1, Next, PREFACE, Then, UNREAD, then_after};
use crate::http::exchange::{Asked, Client, Exchange, Refused};
use crate::http::message::{
    Coding, Decoder, Framing, HeadError, Reach, RequestHead, RequestLine, Storage, encode,
    is_too_long, last_chunk, request_head,
};
use crate::http::reply::{Problem, Style};
use crate::http::translate;
use crate::options::limits;
use model::service::UpstreamProtocol;

/// What the way back has to know of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    /// It is a HEAD: its response has no body.
    pub(super) head: bool,
    pub(super) is_11: bool,
    pub(super) keep_alive: bool,
    pub(super) upgrade: bool,
    /// The client waits to be told before it sends the body.
    pub(super) expects_continue: bool,
    /// How its body is written to the endpoint.
    pub(super) coding: Coding,
}

/// What goes to an endpoint first.
#[derive(Debug)]
pub(super) enum Outgoing {
    /// As bytes.
    Http1(Vec<u8>),
    /// The head, and what has come of the body.
    Http2(Box<Request<()>>, Vec<u8>),
}

/// A request that was begun.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) exchange: Exchange,
    pub(super) facts: Facts,
    /// Where its body ends, of which the first part is in `outgoing`.
    pub(super) decoder: Decoder,
    pub(super) outgoing: Outgoing,
}

fn refuse(refused: Refused, then: Then) -> Next {
    Next::Refused(Box::new((refused, then)))
}

fn to_http2(
    head: &RequestHead<'_, '_>,
    exchange: &Exchange,
    client: &Client,
) -> Result<Request<()>, Problem> {
    translate::to_http2(head, translate::scheme(&exchange.view), &client.forwarded())
}

impl Http1 {
    /// Begins a request whose head is at the buffer's front; `None` while that is not whole. What follows the request is
    /// kept for the next.
    pub(super) fn begin(&mut self, buffer: &mut [u8]) -> Option<Next> {
        if self.may_be_http2 {
            let known = buffer.len().min(PREFACE.len());
            if buffer[..known] == PREFACE[..known] {
                self.side.rest = buffer.to_vec();
                return (known == PREFACE.len()).then_some(Next::End(Then::Http2));
            }
            self.may_be_http2 = false;
        }
        let mut storage = Storage::new();
        let head = match RequestHead::parse(buffer, &mut storage) {
            Ok(Some(head)) => head,
            Ok(None) if !is_too_long(buffer.len()) => {
                self.side.rest = buffer.to_vec();
                return None;
            }
            Ok(None) => return Some(self.unread(HeadError::too_large())),
            Err(error) => return Some(self.unread(error)),
        };
        if head.path.len() > limits::TARGET_BYTES {
            return Some(self.unread(HeadError::target_too_long()));
        }
        let asked = Asked {
            idempotent: head.is_idempotent(),
            style: Style::of(head.content_type()),
            patience: None,
        };
        let exchange = match Exchange::begin(&self.client, asked) {
            Ok(exchange) => exchange,
            Err(refused) => {
                let then = then_after(head.framing == Framing::Empty, head.keep_alive);
                if matches!(then, Then::Keep) {
                    self.side.rest = buffer[head.bytes..].to_vec();
                }
                return Some(refuse(refused, then));
            }
        };
        let facts = Facts {
            head: head.method == "HEAD",
            is_11: head.is_11,
            keep_alive: head.keep_alive,
            upgrade: head.upgrade.is_some() && exchange.view.upstream == UpstreamProtocol::Http1,
            expects_continue: head.expects_continue,
            coding: match head.framing {
                Framing::Chunked => Coding::Chunked,
                _ => Coding::Raw,
            },
        };
        let mut outgoing = match exchange.view.upstream {
            UpstreamProtocol::Http1 => {
                let mut flight = self.client.worker.buffer();
                self.write_head(&head, &mut flight);
                Outgoing::Http1(flight)
            }
            UpstreamProtocol::H2c => match to_http2(&head, &exchange, &self.client) {
                Ok(request) => Outgoing::Http2(Box::new(request), Vec::new()),
                Err(problem) => {
                    let then = then_after(head.framing == Framing::Empty, head.keep_alive);
                    return Some(refuse(exchange.give_up(problem), then));
                }
            },
        };
        let mut decoder = Decoder::new(head.framing);
        let bytes = head.bytes;
        let body = &mut buffer[bytes..];
        let decoded = match decoder.decode(body) {
            Ok(decoded) => decoded,
            Err(error) => {
                let problem = Problem::request_body(&error.to_string());
                return Some(refuse(exchange.give_up(problem), Then::Linger));
            }
        };
        let data = &body[..decoded.data];
        match &mut outgoing {
            Outgoing::Http1(flight) => {
                encode(flight, facts.coding, data);
                if decoder.ended() && facts.coding == Coding::Chunked {
                    last_chunk(flight, decoder.trailers());
                }
            }
            Outgoing::Http2(_, early) => early.extend_from_slice(data),
        }
        self.side.rest = body[decoded.consumed..].to_vec();
        Some(Next::Request(Box::new(Begun {
            exchange,
            facts,
            decoder,
            outgoing,
        })))
    }

    fn write_head(&self, head: &RequestHead<'_, '_>, flight: &mut Vec<u8>) {
        let line = RequestLine {
            method: head.method,
            path: head.path,
            host: head.host.unwrap_or_default(),
        };
        let reach = Reach {
            framing: head.framing,
            trailers: head.trailers,
            upgrade: head.upgrade,
        };
        let forwarded = self.client.forwarded();
        let fields = || head.fields.passed();
        request_head(flight, line, fields, reach, &forwarded);
    }

    /// What can't be read can't be skipped either: its end is unknown.
    fn unread(&self, error: HeadError) -> Next {
        let problem = Problem::head(error);
        refuse(
            Exchange::refuse(&self.client, problem, UNREAD),
            Then::Linger,
        )
    }
}
