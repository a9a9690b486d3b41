//! Bodies: streamed, never collected.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::mpsc;

use super::answer::Answer;
use crate::http::exchange::Ending;

/// The client broke a request's body off.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the client broke its request off")]
pub(in crate::http) struct Aborted;

/// A request's body on its way to an endpoint that speaks HTTP/2.
#[derive(Debug)]
pub(in crate::http) enum RequestBody {
    Empty,
    /// All of it.
    Whole(Bytes),
    /// Of an HTTP/2 client.
    Stream(Incoming),
    /// Of an HTTP/1.1 client, as it comes.
    Channel(mpsc::Receiver<Result<Frame<Bytes>, Aborted>>),
}

impl RequestBody {
    /// The same once more, where it is kept.
    pub(in crate::http) fn again(&self) -> Option<Self> {
        match self {
            RequestBody::Empty => Some(RequestBody::Empty),
            RequestBody::Whole(bytes) => Some(RequestBody::Whole(bytes.clone())),
            RequestBody::Stream(_) | RequestBody::Channel(_) => None,
        }
    }
}

impl From<Incoming> for RequestBody {
    fn from(incoming: Incoming) -> Self {
        if incoming.is_end_stream() {
            RequestBody::Empty
        } else {
            RequestBody::Stream(incoming)
        }
    }
}

/// Boxed, as hyper wants one type of error.
type Error = Box<dyn std::error::Error + Send + Sync>;

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match &mut *self {
            RequestBody::Empty => Poll::Ready(None),
            RequestBody::Whole(_) => {
                let all = std::mem::replace(&mut *self, RequestBody::Empty);
                Poll::Ready(match all {
                    RequestBody::Whole(bytes) => Some(Ok(Frame::data(bytes))),
                    _ => None,
                })
            }
            RequestBody::Stream(incoming) => Pin::new(incoming).poll_frame(cx).map_err(Error::from),
            RequestBody::Channel(frames) => frames.poll_recv(cx).map_err(Error::from),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            RequestBody::Empty => true,
            RequestBody::Whole(_) | RequestBody::Channel(_) => false,
            RequestBody::Stream(incoming) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            RequestBody::Empty => SizeHint::with_exact(0),
            RequestBody::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            RequestBody::Stream(incoming) => incoming.size_hint(),
            RequestBody::Channel(_) => SizeHint::default(),
        }
    }
}

/// A response's body on its way to an HTTP/2 client.
#[derive(Debug)]
pub(in crate::http) enum ResponseBody {
    /// None, or a text of our own.
    Own(Option<Bytes>),
    /// Of an endpoint that speaks HTTP/1.1.
    Http1(Box<Answer>),
    /// Of one that speaks HTTP/2. The request counts as in flight until it ends.
    Http2(Incoming, Option<Ending>),
}

impl ResponseBody {
    pub(super) fn http2(incoming: Incoming, ending: Ending) -> Self {
        if incoming.is_end_stream() {
            ResponseBody::Own(None)
        } else {
            ResponseBody::Http2(incoming, Some(ending))
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match &mut *self {
            ResponseBody::Own(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            ResponseBody::Http1(answer) => answer.poll_frame(cx).map_err(Error::from),
            ResponseBody::Http2(incoming, ending) => {
                let polled = Pin::new(&mut *incoming).poll_frame(cx);
                let over = match &polled {
                    Poll::Ready(None | Some(Err(_))) => true,
                    Poll::Ready(Some(Ok(_))) => incoming.is_end_stream(),
                    Poll::Pending => false,
                };
                if over {
                    *ending = None;
                }
                polled.map_err(Error::from)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            ResponseBody::Own(text) => text.is_none(),
            ResponseBody::Http1(answer) => answer.is_over(),
            ResponseBody::Http2(incoming, _) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            ResponseBody::Own(text) => {
                SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64))
            }
            // What it says is in its head.
            ResponseBody::Http1(_) => SizeHint::default(),
            ResponseBody::Http2(incoming, _) => incoming.size_hint(),
        }
    }
}
