//! `GET path` on a connection of its own.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use model::units::StatusRanges;
use tokio::net::TcpStream;

use super::{FAREWELL, ProbeError};

/// As every request of this node's checks names itself.
pub(super) const USER_AGENT: &str = concat!("heddle-health/", env!("CARGO_PKG_VERSION"));

pub(super) async fn get(
    stream: TcpStream,
    address: SocketAddr,
    path: &str,
    expect: Option<&StatusRanges>,
) -> Result<(), ProbeError> {
    let request = Request::get(path)
        .header(header::HOST, address.to_string())
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(ProbeError::Request)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(ProbeError::Http)?;
    let exchange = async move {
        let response = sender
            .send_request(request)
            .await
            .map_err(ProbeError::Http)?;
        Ok::<_, ProbeError>((response, sender))
    };
    tokio::pin!(connection);
    tokio::pin!(exchange);
    let mut ended = false;
    let (response, _sender) = loop {
        tokio::select! {
            biased;
            answered = &mut exchange => break answered?,
            // Its error, if any, is the request's too.
            _ = &mut connection, if !ended => ended = true,
        }
    };
    let status = response.status().as_u16();
    let passes = match expect {
        Some(expect) => expect.contains(status),
        None => (200..400).contains(&status),
    };
    if !passes {
        return Err(ProbeError::Status {
            path: path.to_owned(),
            status,
            expected: expect.map_or_else(|| "200-399".to_owned(), ToString::to_string),
        });
    }
    let mut body = response.into_body();
    let farewell = async {
        // The verdict stands; the rest is read, within bounds, so that the peer sees no reset.
        let mut budget = 64 * 1024usize;
        loop {
            tokio::select! {
                frame = body.frame() => match frame {
                    Some(Ok(frame)) => {
                        budget = budget.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
                        if budget == 0 {
                            return;
                        }
                    }
                    _ => return,
                },
                _ = &mut connection, if !ended => ended = true,
            }
        }
    };
    let _ = tokio::time::timeout(FAREWELL, farewell).await;
    Ok(())
}
