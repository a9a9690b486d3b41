//! The WebSocket echo: RFC 6455 over HTTP/1.1, RFC 8441 over HTTP/2.

use std::sync::Arc;

use futures::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, Method, Request, Response, StatusCode, Version, header};
use hyper::body::Incoming;
use hyper::ext::Protocol;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_util::task::TaskTracker;

use super::body::{self, Body};
use super::state::Backend;

/// The largest message that is echoed, over all its fragments; a larger one ends the connection.
const MAX_MESSAGE: usize = 16 * 1024 * 1024;

/// Answers the opening handshake and echoes messages once the connection is handed over.
pub(super) fn accept(
    mut request: Request<Incoming>,
    backend: &Arc<Backend>,
    tasks: &TaskTracker,
) -> Response<Body> {
    let Some(mut response) = handshake(&request) else {
        return refusal(request.version());
    };
    if let Some(protocol) = first_subprotocol(request.headers()) {
        response
            .headers_mut()
            .insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    let upgrade = hyper::upgrade::on(&mut request);
    tasks.spawn(echo_when_upgraded(upgrade, Arc::clone(backend)));
    response
}

/// The answer to a sound opening handshake; `None` to anything else.
fn handshake(request: &Request<Incoming>) -> Option<Response<Body>> {
    let headers = request.headers();
    if !header_has(headers, header::SEC_WEBSOCKET_VERSION, "13") {
        return None;
    }
    if request.version() == Version::HTTP_2 {
        let protocol = request.extensions().get::<Protocol>().map(Protocol::as_str);
        let sound = request.method() == Method::CONNECT && protocol == Some("websocket");
        return sound.then(|| reply(StatusCode::OK, "", &[]));
    }
    let sound = request.method() == Method::GET
        && request.version() == Version::HTTP_11
        && header_has(headers, header::CONNECTION, "upgrade")
        && header_has(headers, header::UPGRADE, "websocket");
    let key = headers.get(header::SEC_WEBSOCKET_KEY).filter(|_| sound)?;
    Some(reply(
        StatusCode::SWITCHING_PROTOCOLS,
        "",
        &[
            (header::CONNECTION, "Upgrade"),
            (header::UPGRADE, "websocket"),
            (
                header::SEC_WEBSOCKET_ACCEPT,
                &derive_accept_key(key.as_bytes()),
            ),
        ],
    ))
}

fn refusal(version: Version) -> Response<Body> {
    const REASON: &str = "this is a WebSocket, version 13\n";
    let supported = (header::SEC_WEBSOCKET_VERSION, "13");
    if version == Version::HTTP_2 {
        // HTTP/2 has neither Upgrade nor Connection (RFC 9113, 8.2.2), and 426 must come with them.
        return reply(StatusCode::BAD_REQUEST, REASON, &[supported]);
    }
    let upgrade = [
        (header::CONNECTION, "Upgrade"),
        (header::UPGRADE, "websocket"),
        supported,
    ];
    reply(StatusCode::UPGRADE_REQUIRED, REASON, &upgrade)
}

fn reply(
    status: StatusCode,
    text: &'static str,
    headers: &[(header::HeaderName, &str)],
) -> Response<Body> {
    let mut response = Response::new(body::whole(text));
    *response.status_mut() = status;
    for (name, value) in headers {
        if let Ok(value) = header::HeaderValue::from_str(value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// Whether a comma-separated header names `token`, in any case.
fn header_has(headers: &HeaderMap, name: header::HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|part| part.trim().eq_ignore_ascii_case(token))
}

/// A browser that offers subprotocols takes an answer without one of them for a failure.
fn first_subprotocol(headers: &HeaderMap) -> Option<header::HeaderValue> {
    let offered = headers.get(header::SEC_WEBSOCKET_PROTOCOL)?.to_str().ok()?;
    header::HeaderValue::from_str(offered.split(',').next()?.trim()).ok()
}

async fn echo_when_upgraded(upgrade: OnUpgrade, backend: Arc<Backend>) {
    match upgrade.await {
        Ok(upgraded) => {
            if let Err(error) = echo(upgraded, &backend).await {
                tracing::debug!(%error, "websocket ended");
            }
        }
        Err(error) => tracing::debug!(%error, "websocket handshake was not completed"),
    }
}

async fn echo(
    upgraded: Upgraded,
    backend: &Backend,
) -> Result<(), tokio_tungstenite::tungstenite::Error> {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    let io = TokioIo::new(upgraded);
    let mut socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await;
    let mut going_away = false;
    loop {
        tokio::select! {
            // Pings and the peer's close are answered by the library while it reads.
            message = socket.next() => match message {
                Some(Ok(message @ (Message::Text(_) | Message::Binary(_)))) if !going_away => {
                    socket.send(message).await?;
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error),
                None => return Ok(()),
            },
            () = backend.closing.cancelled(), if !going_away => {
                going_away = true;
                let frame = CloseFrame { code: CloseCode::Away, reason: "shutting down".into() };
                socket.close(Some(frame)).await?;
            }
        }
    }
}
