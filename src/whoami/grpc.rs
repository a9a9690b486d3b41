//! gRPC by hand: the health protocol (`grpc.health.v1`) and an echo of message streams.
//!
//! Two messages of one field each do not need a protobuf compiler; the framing is that of the gRPC over
//! HTTP/2 specification: a flag byte, the length as 32 bits big-endian, the message.

use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::stream;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Frame, Incoming};
use tokio::sync::watch;

use super::body::{self, Body};
use super::state::Backend;

/// A health request is a service name: whatever is longer than this is not one.
const MAX_REQUEST: usize = 4 * 1024;

/// The service that this backend knows besides "", the server as a whole.
const KNOWN_SERVICE: &str = "whoami";

/// gRPC status codes, as `grpc-status` carries them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Code {
    Ok = 0,
    InvalidArgument = 3,
    NotFound = 5,
    Unimplemented = 12,
    Unavailable = 14,
}

/// `grpc.health.v1.HealthCheckResponse.ServingStatus`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Serving {
    Yes = 1,
    No = 2,
    ServiceUnknown = 3,
}

impl Serving {
    fn of(health: StatusCode) -> Self {
        if health.is_success() {
            Self::Yes
        } else {
            Self::No
        }
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
enum BadRequest {
    #[error("the request is longer than {MAX_REQUEST} bytes or did not arrive")]
    NotReceived,
    #[error("the request is not one length-prefixed message")]
    Framing,
    #[error("compressed messages are not supported")]
    Compressed,
    #[error("the message is not a HealthCheckRequest")]
    Malformed,
}

/// Whether a request is for this module: gRPC says so in its content type.
pub(super) fn is_grpc(request: &Request<Incoming>) -> bool {
    request
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| {
            value
                .as_bytes()
                .strip_prefix(b"application/grpc")
                .is_some_and(|rest| {
                    // `application/grpc-web` is another protocol.
                    rest.is_empty() || rest.starts_with(b"+") || rest.starts_with(b";")
                })
        })
}

/// Answers one call.
pub(super) async fn call(request: Request<Incoming>, backend: &Arc<Backend>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    match path.as_str() {
        "/grpc.health.v1.Health/Check" => match requested_service(request).await {
            Ok(service) if knows(&service) => one_message(Serving::of(backend.health())),
            Ok(_) => failure(Code::NotFound, "unknown service"),
            Err(error) => refusal(&error),
        },
        "/grpc.health.v1.Health/Watch" => match requested_service(request).await {
            Ok(service) => watch(Arc::clone(backend), knows(&service)),
            Err(error) => refusal(&error),
        },
        "/whoami.Echo/Stream" => echo(request),
        _ => failure(Code::Unimplemented, "unknown method"),
    }
}

fn knows(service: &str) -> bool {
    service.is_empty() || service == KNOWN_SERVICE
}

async fn requested_service(request: Request<Incoming>) -> Result<String, BadRequest> {
    let body = Limited::new(request.into_body(), MAX_REQUEST)
        .collect()
        .await;
    let bytes = body.map_err(|_| BadRequest::NotReceived)?.to_bytes();
    decode_service(unframe(&bytes)?).ok_or(BadRequest::Malformed)
}

fn unframe(bytes: &[u8]) -> Result<&[u8], BadRequest> {
    let (head, message) = bytes.split_first_chunk::<5>().ok_or(BadRequest::Framing)?;
    let [flag, length @ ..] = *head;
    match flag {
        0 => {}
        1 => return Err(BadRequest::Compressed),
        _ => return Err(BadRequest::Framing),
    }
    let sound = usize::try_from(u32::from_be_bytes(length)) == Ok(message.len());
    sound.then_some(message).ok_or(BadRequest::Framing)
}

/// The `service` of a `HealthCheckRequest` (field 1, a string); fields of later versions are skipped.
fn decode_service(mut message: &[u8]) -> Option<String> {
    let mut service = String::new();
    while !message.is_empty() {
        let key = take_varint(&mut message)?;
        match (key >> 3, key & 7) {
            (1, 2) => {
                service = std::str::from_utf8(take_bytes(&mut message)?)
                    .ok()?
                    .to_owned()
            }
            (0 | 1, _) => return None,
            (_, 0) => drop(take_varint(&mut message)?),
            (_, 1) => message = message.get(8..)?,
            (_, 2) => drop(take_bytes(&mut message)?),
            (_, 5) => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(service)
}

fn take_bytes<'a>(message: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(take_varint(message)?).ok()?;
    let (taken, rest) = message.split_at_checked(length)?;
    *message = rest;
    Some(taken)
}

fn take_varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    // Ten groups of seven bits hold 64 bits; an eleventh byte is malformed.
    for (i, &byte) in message.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            *message = &message[i + 1..];
            return Some(value);
        }
    }
    None
}

/// A framed `HealthCheckResponse` (field 1, an enum).
fn encode(serving: Serving) -> Bytes {
    let message = [0x08, serving as u8];
    let mut framed = BytesMut::with_capacity(5 + message.len());
    framed.put_u8(0);
    framed.put_u32(message.len() as u32);
    framed.put_slice(&message);
    framed.freeze()
}

fn trailers(code: Code, message: &'static str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(code as u16));
    if !message.is_empty() {
        trailers.insert("grpc-message", HeaderValue::from_static(message));
    }
    trailers
}

fn response(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let content_type = HeaderValue::from_static("application/grpc");
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    response
}

fn one_message(serving: Serving) -> Response<Body> {
    let frames = [
        Frame::data(encode(serving)),
        Frame::trailers(trailers(Code::Ok, "")),
    ];
    response(body::streamed(stream::iter(frames.map(Ok))))
}

/// "Trailers-Only" of the specification: the status stands in the one header block.
fn failure(code: Code, message: &'static str) -> Response<Body> {
    let mut response = response(body::whole(Bytes::new()));
    response.headers_mut().extend(trailers(code, message));
    response
}

fn refusal(error: &BadRequest) -> Response<Body> {
    tracing::debug!(%error, "refused a health request");
    match error {
        BadRequest::Compressed => {
            failure(Code::Unimplemented, "compressed messages are not supported")
        }
        _ => failure(Code::InvalidArgument, "not a HealthCheckRequest"),
    }
}

/// The status now, and again whenever it changes, until the client leaves or the process closes. An unknown
/// service is answered by a status of its own and not by an error, as the protocol wants it.
fn watch(backend: Arc<Backend>, known: bool) -> Response<Body> {
    struct Watcher {
        health: watch::Receiver<StatusCode>,
        backend: Arc<Backend>,
        known: bool,
        last: Option<Serving>,
        ended: bool,
    }
    let watcher = Watcher {
        health: backend.watch_health(),
        backend,
        known,
        last: None,
        ended: false,
    };
    response(body::streamed(stream::unfold(
        watcher,
        |mut watcher| async move {
            if watcher.ended {
                return None;
            }
            loop {
                let serving = match watcher.known {
                    true => Serving::of(*watcher.health.borrow_and_update()),
                    false => Serving::ServiceUnknown,
                };
                if watcher.last != Some(serving) {
                    watcher.last = Some(serving);
                    return Some((Ok(Frame::data(encode(serving))), watcher));
                }
                tokio::select! {
                    // The sender lives in the backend that the watcher holds, so it cannot be gone.
                    _ = watcher.health.changed() => {}
                    () = watcher.backend.closing.cancelled() => {
                        watcher.ended = true;
                        let trailers = trailers(Code::Unavailable, "shutting down");
                        return Some((Ok(Frame::trailers(trailers)), watcher));
                    }
                }
            }
        },
    )))
}

/// Sends every message back as it comes, both directions open at once.
fn echo(request: Request<Incoming>) -> Response<Body> {
    response(body::streamed(stream::unfold(
        Some(request.into_body()),
        |body| async move {
            let mut body = body?;
            loop {
                match body.frame().await {
                    Some(Ok(frame)) if frame.is_data() => return Some((Ok(frame), Some(body))),
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Some((Err(error.into()), None)),
                    None => return Some((Ok(Frame::trailers(trailers(Code::Ok, ""))), None)),
                }
            }
        },
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_request_names_its_service() {
        assert_eq!(decode_service(b"").as_deref(), Some(""));
        assert_eq!(decode_service(b"\x0a\x06whoami").as_deref(), Some("whoami"));
    }

    #[test]
    fn fields_of_later_versions_are_skipped() {
        let message = b"\x10\x96\x01\x1a\x02hi\x21\0\0\0\0\0\0\0\0\x2d\0\0\0\0\x0a\x01a";
        assert_eq!(decode_service(message).as_deref(), Some("a"));
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for malformed in [
            &b"\x0a\x07whoami"[..],
            b"\x08\x01",
            b"\x0a\x01\xff",
            b"\x80",
            b"\x13",
            b"\x02",
        ] {
            assert_eq!(decode_service(malformed), None, "{malformed:?}");
        }
        assert_eq!(unframe(b"\0\0\0\0"), Err(BadRequest::Framing));
        assert_eq!(unframe(b"\0\0\0\0\x02a"), Err(BadRequest::Framing));
        assert_eq!(unframe(b"\x01\0\0\0\0"), Err(BadRequest::Compressed));
        assert_eq!(unframe(b"\0\0\0\0\x01a"), Ok(&b"a"[..]));
    }

    #[test]
    fn a_response_is_five_bytes_of_frame_and_two_of_message() {
        assert_eq!(encode(Serving::Yes), &b"\0\0\0\0\x02\x08\x01"[..]);
        assert_eq!(encode(Serving::No), &b"\0\0\0\0\x02\x08\x02"[..]);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = unframe(&bytes);
            let _ = decode_service(&bytes);
        }

        #[test]
        fn any_service_name_is_read_back(name in "\\PC{0,60}") {
            let mut message = vec![0x0a];
            let length = name.len();
            if length >= 0x80 {
                message.extend([(length & 0x7f | 0x80) as u8, (length >> 7) as u8]);
            } else {
                message.push(length as u8);
            }
            message.extend(name.as_bytes());
            prop_assert_eq!(decode_service(&message), Some(name));
        }
    }
}
