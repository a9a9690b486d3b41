//! Bodies: streamed, never collected, and known to the exchange when they end.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

/// A request's body on its way to an endpoint.
#[derive(Debug)]
pub(super) enum RequestBody {
    /// None: such a request can be made again.
    Empty,
    Stream(Incoming),
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

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut *self {
            RequestBody::Empty => Poll::Ready(None),
            RequestBody::Stream(incoming) => Pin::new(incoming).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            RequestBody::Empty => true,
            RequestBody::Stream(incoming) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            RequestBody::Empty => SizeHint::with_exact(0),
            RequestBody::Stream(incoming) => incoming.size_hint(),
        }
    }
}

/// What is done when a response's body has ended whole. When the body is dropped before, only the `Drop`s of what is
/// in it run.
pub(super) trait End {
    /// The body came to its end.
    fn ended(self);
}

/// A response's body on its way to a client.
#[derive(Debug)]
pub(super) enum ResponseBody<E: End> {
    /// None, or a text of our own.
    Own(Option<Bytes>),
    Stream {
        incoming: Incoming,
        end: Option<E>,
    },
}

impl<E: End> ResponseBody<E> {
    pub(super) fn empty() -> Self {
        ResponseBody::Own(None)
    }

    /// An endpoint's body. An empty one has ended at once.
    pub(super) fn stream(incoming: Incoming, end: E) -> Self {
        if incoming.is_end_stream() {
            end.ended();
            ResponseBody::Own(None)
        } else {
            ResponseBody::Stream {
                incoming,
                end: Some(end),
            }
        }
    }
}

impl<E: End + Unpin> Body for ResponseBody<E> {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut *self {
            ResponseBody::Own(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            ResponseBody::Stream { incoming, end } => {
                let polled = Pin::new(&mut *incoming).poll_frame(cx);
                match &polled {
                    Poll::Ready(None) => {
                        if let Some(end) = end.take() {
                            end.ended();
                        }
                    }
                    // The last frame of a body of known length: whoever reads it may never ask again.
                    Poll::Ready(Some(Ok(_))) if incoming.is_end_stream() => {
                        if let Some(end) = end.take() {
                            end.ended();
                        }
                    }
                    Poll::Ready(Some(Err(_))) => *end = None,
                    _ => {}
                }
                polled
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            ResponseBody::Own(text) => text.is_none(),
            ResponseBody::Stream { incoming, .. } => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            ResponseBody::Own(text) => {
                SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64))
            }
            ResponseBody::Stream { incoming, .. } => incoming.size_hint(),
        }
    }
}
