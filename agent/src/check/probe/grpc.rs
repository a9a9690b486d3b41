//! `grpc.health.v1.Health/Check` over HTTP/2 with prior knowledge, without generated code: the messages have one field each.
//!
//! <https://github.com/grpc/grpc/blob/master/doc/health-checking.md>,
//! <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::http::USER_AGENT;
use super::{FAREWELL, ProbeError, shown};
use crate::reconcile::lock;

/// The answer is a few bytes long.
const MAX_MESSAGE_BYTES: usize = 4096;

pub(super) async fn check(
    stream: TcpStream,
    address: SocketAddr,
    service: &str,
) -> Result<(), ProbeError> {
    let tasks = Tasks::default();
    let _ended = Ended(tasks.clone());
    let (mut sender, connection) = http2::handshake(tasks.clone(), TokioIo::new(stream))
        .await
        .map_err(ProbeError::Http2)?;
    lock(&tasks.0).spawn(async move {
        // Its error, if any, is the request's too.
        let _ = connection.await;
    });
    let request = Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, USER_AGENT)
        .body(Full::new(request_message(service)))
        .map_err(ProbeError::Request)?;
    let response = sender
        .send_request(request)
        .await
        .map_err(ProbeError::Http2)?;
    if response.status() != http::StatusCode::OK {
        return Err(ProbeError::GrpcHttp(response.status().as_u16()));
    }
    // An answer without a message has its status in the head.
    status(response.headers())?;
    let body = Limited::new(response.into_body(), MAX_MESSAGE_BYTES)
        .collect()
        .await
        .map_err(|_| ProbeError::GrpcMessage)?;
    if let Some(trailers) = body.trailers() {
        status(trailers)?;
    }
    drop(sender);
    tasks.part();
    match serving(&body.to_bytes()) {
        Some(1) => Ok(()),
        Some(0) => Err(ProbeError::NotServing("UNKNOWN")),
        Some(2) => Err(ProbeError::NotServing("NOT_SERVING")),
        Some(3) => Err(ProbeError::NotServing("SERVICE_UNKNOWN")),
        _ => Err(ProbeError::GrpcMessage),
    }
}

/// What hyper runs beside a check's own task; none of it outlives the check by more than [`FAREWELL`], so that a peer that
/// doesn't answer holds no descriptor.
#[derive(Clone, Default)]
struct Tasks(Arc<Mutex<JoinSet<()>>>);

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        lock(&self.0).spawn(task);
    }
}

impl Tasks {
    /// Lets the connection end in good order, without keeping the verdict waiting.
    fn part(&self) {
        let mut tasks = std::mem::take(&mut *lock(&self.0));
        tokio::spawn(async move {
            let ended = async { while tasks.join_next().await.is_some() {} };
            // Dropped with the tasks in it, the set ends them.
            let _ = tokio::time::timeout(FAREWELL, ended).await;
        });
    }
}

/// Ends the tasks however the check ends.
struct Ended(Tasks);

impl Drop for Ended {
    fn drop(&mut self) {
        lock(&self.0.0).abort_all();
    }
}

fn status(headers: &HeaderMap) -> Result<(), ProbeError> {
    let text = |name: &str| {
        headers
            .get(name)
            .map(|value| shown(&String::from_utf8_lossy(value.as_bytes())))
    };
    match text("grpc-status") {
        None => Ok(()),
        Some(code) if code == "0" => Ok(()),
        Some(code) => Err(ProbeError::GrpcStatus {
            code,
            message: text("grpc-message").map_or_else(String::new, |m| format!(": {m}")),
        }),
    }
}

/// `HealthCheckRequest { string service = 1; }` behind gRPC's prefix of a flag and a length.
fn request_message(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.put_u8((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.put_u8((length & 0x7f) as u8);
        message.put_slice(service.as_bytes());
    }
    let mut framed = BytesMut::with_capacity(message.len() + 5);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.put_slice(&message);
    framed.freeze()
}

/// The status of `HealthCheckResponse { ServingStatus status = 1; }`; an absent field is 0.
fn serving(framed: &[u8]) -> Option<u64> {
    let [0, a, b, c, d, message @ ..] = framed else {
        return None;
    };
    let length = usize::try_from(u32::from_be_bytes([*a, *b, *c, *d])).ok()?;
    let mut rest = message.get(..length)?;
    let mut status = 0;
    while !rest.is_empty() {
        let tag = varint(&mut rest)?;
        match (tag >> 3, tag & 7) {
            (1, 0) => status = varint(&mut rest)?,
            (_, 0) => {
                varint(&mut rest)?;
            }
            (_, 1) => rest = rest.get(8..)?,
            (_, 2) => {
                let length = usize::try_from(varint(&mut rest)?).ok()?;
                rest = rest.get(length..)?;
            }
            (_, 5) => rest = rest.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, tail) = rest.split_first()?;
        *rest = tail;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_request_names_its_service() {
        assert_eq!(&request_message("")[..], &[0, 0, 0, 0, 0]);
        assert_eq!(
            &request_message("ab")[..],
            &[0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']
        );
        let long = "x".repeat(300);
        assert_eq!(&request_message(&long)[5..8], &[0x0a, 0xac, 0x02]);
    }

    #[test]
    fn an_answer_says_whether_it_serves() {
        for (bytes, status) in [
            (&[0, 0, 0, 0, 2, 8, 1][..], Some(1)),
            (&[0, 0, 0, 0, 2, 8, 2], Some(2)),
            (&[0, 0, 0, 0, 0], Some(0)),
            // A field that this version doesn't know is skipped.
            (&[0, 0, 0, 0, 5, 0x12, 1, b'x', 8, 1], Some(1)),
            (&[1, 0, 0, 0, 2, 8, 1], None),
            (&[0, 0, 0, 0, 9, 8, 1], None),
            (&[], None),
        ] {
            assert_eq!(serving(bytes), status, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_answers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = serving(&bytes);
        }
    }
}
