//! An HTTP/1.1 response's body on its way to an HTTP/2 client.

use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::Frame;

use super::body::ResponseBody;
use super::over_http1::{Asked, Upload};
use crate::http::endpoint::{Connection, EndpointError};
use crate::http::exchange::Ending;
use crate::http::message::Decoder;
use crate::http::reply::Problem;
use crate::http::translate;

/// The body, and what goes on until it has ended.
pub(in crate::http) struct Answer {
    connection: Option<Connection>,
    decoder: Decoder,
    /// What came with the head.
    early: Bytes,
    keep_alive: bool,
    /// Its request may not have gone out whole yet.
    up: Upload,
    /// Let go of when all of the body has come.
    ending: Option<Ending>,
    trailers: Option<HeaderMap>,
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answer")
            .field("decoder", &self.decoder)
            .finish_non_exhaustive()
    }
}

impl Answer {
    /// The response as it goes to the client.
    pub(super) fn respond(asked: Asked) -> Response<ResponseBody> {
        let Asked {
            exchange,
            tried,
            connection,
            up,
            headed,
        } = asked;
        if headed.response.status().as_u16() == 101 {
            let index = tried.index;
            let endpoint = &exchange.view.endpoints[index];
            let problem = Problem::broken(endpoint, &EndpointError::UnaskedUpgrade);
            return super::refused_as_response(exchange.give_up(problem));
        }
        let ending = exchange.answered(tried, headed.response.status().as_u16());
        let mut answer = Answer {
            connection: Some(connection),
            decoder: headed.decoder,
            early: Bytes::new(),
            keep_alive: headed.keep_alive,
            up,
            ending: Some(ending),
            trailers: None,
        };
        let mut rest = headed.rest;
        let early = answer.take_in(&mut rest).map(|data| {
            rest.truncate(data);
            Bytes::from(rest)
        });
        let body = match early {
            Ok(early) if answer.decoder.ended() && answer.trailers.is_none() => {
                ResponseBody::Own((!early.is_empty()).then_some(early))
            }
            Ok(early) => {
                answer.early = early;
                ResponseBody::Http1(Box::new(answer))
            }
            // The client learns from the next frame.
            Err(_) => {
                answer.connection = None;
                ResponseBody::Http1(Box::new(answer))
            }
        };
        headed.response.map(|()| body)
    }

    /// All of it was handed on.
    pub(super) fn is_over(&self) -> bool {
        self.decoder.ended() && self.early.is_empty() && self.trailers.is_none()
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, EndpointError>>> {
        if !self.early.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.early)))));
        }
        loop {
            if self.decoder.ended() {
                let trailers = self.trailers.take();
                return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
            }
            match self.poll_data(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(data)) if data.is_empty() => {}
                Poll::Ready(Ok(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Poll::Ready(Err(error)) => {
                    self.connection = None;
                    self.ending = None;
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, EndpointError>> {
        let (Some(connection), Some(ending)) = (&mut self.connection, &self.ending) else {
            return Poll::Ready(Err(EndpointError::Truncated));
        };
        // What is wrong with the upload shows in the response, if it matters still.
        if self.up.poll(cx, connection).is_err() {
            return Poll::Ready(Err(EndpointError::Truncated));
        }
        let worker = std::rc::Rc::clone(ending.worker());
        let mut scratch = worker.scratch.borrow_mut();
        let n = match connection.poll_read(cx, &mut scratch) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(n)) => n,
            Poll::Ready(Err(error)) => return Poll::Ready(Err(EndpointError::Io(error))),
        };
        if n == 0 {
            if !self.decoder.closed() {
                return Poll::Ready(Err(EndpointError::Truncated));
            }
            self.finish();
            return Poll::Ready(Ok(Bytes::new()));
        }
        let data = self.take_in(&mut scratch[..n]);
        Poll::Ready(data.map(|data| Bytes::copy_from_slice(&scratch[..data])))
    }

    /// Decodes what came; so much of it is data.
    fn take_in(&mut self, buffer: &mut [u8]) -> Result<usize, EndpointError> {
        let decoded = self.decoder.decode(buffer).map_err(EndpointError::Body)?;
        // Nobody asked for more than this response.
        self.keep_alive &= decoded.consumed == buffer.len();
        if self.decoder.ended() {
            self.finish();
        }
        Ok(decoded.data)
    }

    /// The body has come whole: the connection is free, and the request no longer in flight.
    fn finish(&mut self) {
        self.trailers = translate::trailers(&self.decoder);
        let (Some(ending), Some(connection)) = (self.ending.take(), self.connection.take()) else {
            return;
        };
        if self.keep_alive && self.up.ended() && ending.may_keep() {
            ending.port.pool.put(ending.in_flight.seq(), connection);
        }
    }
}
