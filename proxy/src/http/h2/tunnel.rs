//! WebSocket over HTTP/2 (RFC 8441): a stream that becomes a WebSocket connection of HTTP/1.1 at the endpoint.

use std::rc::Rc;
use std::time::Duration;

use http::header::{
    SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION,
};
use http::{HeaderValue, Response, StatusCode};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;

use super::answer::Answer;
use super::body::ResponseBody;
use super::over_http1::{Upload, ask};
use crate::connections::{self, Kind};
use crate::http::endpoint::EndpointError;
use crate::http::exchange::{Exchange, Refused};
use crate::http::message::Framing;
use crate::http::reply::Problem;
use crate::http::translate::Asking;
use crate::relay::{Duplex, Early, Moved, relay};

impl Duplex for TokioIo<Upgraded> {
    /// Dropping the stream resets it.
    fn reset(&self) {}
}

/// Asks an endpoint to switch to WebSocket, and relays once it has.
pub(super) async fn serve(
    exchange: Exchange,
    mut asking: Asking,
    upgrade: OnUpgrade,
) -> Result<Response<ResponseBody>, Refused> {
    // HTTP/1.1 wants a key, which HTTP/2 has no use for (RFC 8441, 5.1); what it proves is between us and the endpoint.
    let key = base64(exchange.worker().random_id().to_be_bytes());
    asking.set(SEC_WEBSOCKET_KEY, key);
    asking.default(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    let mut flight = exchange.worker().buffer();
    asking.http1(Framing::Empty, &exchange.client().forwarded(), &mut flight);
    let mut asked = ask(exchange, Upload::of_head(flight), false).await?;
    let status = asked.headed.response.status();
    if status.is_success() {
        // Passed on, it would open the WebSocket that it declines (RFC 8441, 5).
        let endpoint = &asked.exchange.view.endpoints[asked.tried.index];
        let problem = Problem::broken(endpoint, &EndpointError::NotSwitched(status));
        return Err(asked.exchange.give_up(problem));
    }
    if status != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(Answer::respond(asked));
    }
    let mut response = Response::new(ResponseBody::Own(None));
    for name in [SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_EXTENSIONS] {
        if let Some(value) = asked.headed.response.headers().get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    debug_assert!(!response.headers().contains_key(SEC_WEBSOCKET_ACCEPT));
    let early = Early {
        from_client: Vec::new(),
        from_endpoint: std::mem::take(&mut asked.headed.rest),
    };
    let client = Rc::clone(asked.exchange.client());
    let ending = asked.exchange.answered(asked.tried, 101);
    let connection = asked.connection;
    let worker = Rc::clone(&client.worker);
    let idle = ending
        .port
        .view(&worker)
        .map_or(Duration::MAX, |view| view.idle_timeout);
    connections::spawn(&client.worker, Kind::Relay, idle, |slot| async move {
        // Whole, or only its port would come along: the tunnel is load until it ends.
        let ending = ending;
        let (port, activity) = (&ending.port, &slot.activity);
        let relayed = match upgrade.await {
            Ok(stream) => {
                let (endpoint, open) = connection.into_stream();
                let count = Moved {
                    activity,
                    port: &port.stats,
                    endpoint: open,
                };
                relay(&worker, TokioIo::new(stream), endpoint, early, count).await
            }
            Err(error) => Err(std::io::Error::other(error)),
        };
        if let Err(error) = relayed {
            tracing::debug!(service = %port.key(), %error, "a WebSocket over HTTP/2 broke");
        }
    });
    Ok(response)
}

/// Sixteen bytes as 24 characters (RFC 4648, 4).
fn base64(bytes: [u8; 16]) -> HeaderValue {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(24);
    for group in bytes.chunks(3) {
        let all = group
            .iter()
            .fold(0u32, |all, byte| all << 8 | u32::from(*byte))
            << (8 * (3 - group.len()));
        for place in 0..4 {
            text.push(if place > group.len() {
                '='
            } else {
                char::from(ALPHABET[(all >> (18 - 6 * place)) as usize & 63])
            });
        }
    }
    HeaderValue::from_str(&text).expect("base64 is visible ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_base64() {
        // The example of RFC 6455, 1.3.
        assert_eq!(base64(*b"the sample nonce"), "dGhlIHNhbXBsZSBub25jZQ==");
    }
}
