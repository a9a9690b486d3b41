//! Responses and their bodies: whole, streamed, and as many bytes as were asked for.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::Stream;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Body as HttpBody, Frame, SizeHint};

pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of every response.
pub(super) type Body = UnsyncBoxBody<Bytes, BoxError>;

/// A body that is known as a whole.
pub(super) fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never: Infallible| match never {})
        .boxed_unsync()
}

/// A body that comes frame by frame.
pub(super) fn streamed(
    frames: impl Stream<Item = Result<Frame<Bytes>, BoxError>> + Send + 'static,
) -> Body {
    StreamBody::new(frames).boxed_unsync()
}

pub(super) fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    // These two have no body, and so no type of one either (RFC 9110, 15.3.5 and 15.4.5).
    if status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED {
        let mut response = Response::new(whole(Bytes::new()));
        *response.status_mut() = status;
        return response;
    }
    let mut response = with_type("text/plain; charset=utf-8", whole(text));
    *response.status_mut() = status;
    response
}

pub(super) fn json(value: &serde_json::Value) -> Response<Body> {
    with_type("application/json", whole(format!("{value:#}\n")))
}

pub(super) fn with_type(content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Why a body ends before its announced length, when that was asked for.
#[derive(Debug, thiserror::Error)]
#[error("the body was cut off after {0} bytes, as asked")]
pub(super) struct CutOff(u64);

const ALPHABET: usize = 26;
/// A multiple of the alphabet's length, so that every chunk starts at its beginning.
const CHUNK: usize = ALPHABET * 2_520;

static PATTERN: [u8; CHUNK] = {
    let mut pattern = [0; CHUNK];
    let mut i = 0;
    while i < CHUNK {
        pattern[i] = b'a' + (i % ALPHABET) as u8;
        i += 1;
    }
    pattern
};

/// `length` bytes of `abc…zabc…`: the byte at offset `i` is `'a' + i % 26`, so a receiver can tell a lost or
/// a doubled chunk. Costs no memory, whatever the length.
pub(super) struct Pattern {
    left: u64,
    sent: u64,
    /// Fails the body, and with it the connection or stream, once this much was sent.
    cut_after: Option<u64>,
}

impl Pattern {
    pub fn new(length: u64, cut_after: Option<u64>) -> Self {
        Self {
            left: length,
            sent: 0,
            cut_after: cut_after.filter(|&cut| cut < length),
        }
    }
}

impl HttpBody for Pattern {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let allowed = match self.cut_after {
            Some(cut) if self.sent >= cut => return Poll::Ready(Some(Err(Box::new(CutOff(cut))))),
            Some(cut) => self.left.min(cut - self.sent),
            None => self.left,
        };
        if allowed == 0 {
            return Poll::Ready(None);
        }
        let length = usize::try_from(allowed).unwrap_or(CHUNK).min(CHUNK);
        self.left -= length as u64;
        self.sent += length as u64;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(
            &PATTERN[..length],
        )))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn collect(mut body: Pattern) -> (Vec<u8>, bool) {
        let mut all = Vec::new();
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => all.extend_from_slice(&frame.into_data().unwrap()),
                Err(_) => return (all, true),
            }
        }
        (all, false)
    }

    #[tokio::test]
    async fn every_byte_tells_its_offset() {
        let (bytes, cut) = collect(Pattern::new(200_000, None)).await;
        assert!(!cut);
        assert_eq!(bytes.len(), 200_000);
        assert!(
            bytes
                .iter()
                .enumerate()
                .all(|(i, &byte)| byte == b'a' + (i % 26) as u8)
        );
    }

    #[tokio::test]
    async fn a_cut_body_fails_at_the_cut() {
        let (bytes, cut) = collect(Pattern::new(100_000, Some(70_000))).await;
        assert!(cut);
        assert_eq!(bytes.len(), 70_000);
    }

    #[tokio::test]
    async fn a_cut_past_the_end_is_none() {
        assert_eq!(
            collect(Pattern::new(10, Some(10))).await,
            (b"abcdefghij".to_vec(), false)
        );
        assert_eq!(collect(Pattern::new(0, None)).await, (vec![], false));
    }
}
