//! Answers of our own: what went wrong, in words, for a person or for a gRPC client.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName};
use http::{HeaderValue, Response, StatusCode};
use model::ServiceKey;
use model::snapshot::EndpointView;

use super::endpoint::EndpointError;
use super::grpc;
use super::message::{Coding, Field, HeadError, response_head};

/// One word for programs; the body has the sentence.
const ERROR: HeaderName = HeaderName::from_static("x-heddle-error");

/// How the client wants to hear of problems.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    Plain,
    /// A response of trailers only, with `grpc-status` (gRPC over HTTP/2, "Responses").
    Grpc,
}

impl Style {
    /// As the request's content type tells.
    pub(super) fn of(kind: Option<&[u8]>) -> Self {
        match kind {
            Some(kind) if grpc::is_content_type(kind) => Style::Grpc,
            _ => Style::Plain,
        }
    }
}

/// Why a request is answered by us.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) status: StatusCode,
    reason: &'static str,
    pub(super) text: String,
}

impl Problem {
    fn new(status: StatusCode, reason: &'static str, text: String) -> Self {
        Problem {
            status,
            reason,
            text,
        }
    }

    /// The request itself is wrong.
    pub(super) fn bad_request(text: &str) -> Self {
        Problem::new(StatusCode::BAD_REQUEST, "bad-request", text.to_owned())
    }

    /// Its head can't be read, or asks for what is not done.
    pub(super) fn head(error: HeadError) -> Self {
        let reason = match error.status {
            StatusCode::NOT_IMPLEMENTED => "not-implemented",
            _ => "bad-request",
        };
        Problem::new(error.status, reason, error.to_string())
    }

    /// The body broke off or was malformed on its way in.
    pub(super) fn request_body(error: &str) -> Self {
        let text = format!("the request's body can't be read: {error}");
        Problem::new(StatusCode::BAD_REQUEST, "bad-request", text)
    }

    /// `CONNECT` is for forward proxies.
    pub(super) fn connect_method() -> Self {
        let text = "CONNECT is not supported: this is no forward proxy".to_owned();
        Problem::new(StatusCode::NOT_IMPLEMENTED, "not-implemented", text)
    }

    /// HTTP/2 endpoints are not asked for WebSocket streams.
    pub(super) fn no_websocket() -> Self {
        let text = "WebSocket needs endpoints that speak HTTP/1.1".to_owned();
        Problem::new(StatusCode::NOT_IMPLEMENTED, "not-implemented", text)
    }

    pub(super) fn no_service(key: &ServiceKey) -> Self {
        let text = format!("service {key} or its port is gone");
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "no-service", text)
    }

    /// Nobody is eligible; the snapshot says why.
    pub(super) fn unavailable(why: &str) -> Self {
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "no-endpoint",
            why.to_owned(),
        )
    }

    pub(super) fn connect(endpoint: &EndpointView, error: &str) -> Self {
        let text = format!(
            "endpoint {} can't be reached: {error}",
            endpoint.endpoint.name
        );
        Problem::new(StatusCode::BAD_GATEWAY, "connect-failed", text)
    }

    pub(super) fn broken(endpoint: &EndpointView, error: &EndpointError) -> Self {
        if let EndpointError::PerTry(limit) = error {
            let name = &endpoint.endpoint.name;
            let text = format!("endpoint {name} did not respond within {limit:?} (retries.perTry)");
            return Problem::new(StatusCode::GATEWAY_TIMEOUT, "timeout", text);
        }
        let error = error.in_words();
        let address = endpoint
            .addresses()
            .first()
            .map(ToString::to_string)
            .unwrap_or_default();
        let name = &endpoint.endpoint.name;
        let text = format!("endpoint {name} at {address} gave no valid response: {error}");
        Problem::new(StatusCode::BAD_GATEWAY, "endpoint-failed", text)
    }

    pub(super) fn timeout(key: &ServiceKey, limit: Duration) -> Self {
        let text = format!("no endpoint of service {key} responded within {limit:?}");
        Problem::new(StatusCode::GATEWAY_TIMEOUT, "timeout", text)
    }

    /// As bytes of HTTP/1.1. `keep`: the connection takes another request.
    pub(super) fn http1(&self, keep: bool) -> Vec<u8> {
        let mut out = Vec::with_capacity(256 + self.text.len());
        let reason = self.status.canonical_reason().unwrap_or_default();
        let error = ERROR;
        let fields = [
            (
                Field::ContentType,
                "content-type",
                &b"text/plain; charset=utf-8"[..],
            ),
            (Field::Other, error.as_str(), self.reason.as_bytes()),
        ];
        response_head(
            &mut out,
            (self.status.as_u16(), reason),
            fields.into_iter(),
            Coding::Raw,
            Some(self.text.len() as u64 + 1),
            (!keep).then_some("close"),
        );
        out.extend_from_slice(self.text.as_bytes());
        out.push(b'\n');
        out
    }

    /// As a response of HTTP/2, in the client's style; its text, if any, is the body.
    pub(super) fn http2(self, style: Style) -> Response<Option<Bytes>> {
        let mut response = match style {
            Style::Plain => {
                let text = Bytes::from(self.text + "\n");
                let mut response = Response::new(Some(text));
                *response.status_mut() = self.status;
                let plain = HeaderValue::from_static("text/plain; charset=utf-8");
                response.headers_mut().insert(CONTENT_TYPE, plain);
                response
            }
            Style::Grpc => {
                let mut response = Response::new(None);
                let headers = response.headers_mut();
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
                headers.insert(grpc::STATUS, grpc::status(self.status));
                if let Ok(message) = HeaderValue::try_from(grpc::percent_encoded(&self.text)) {
                    headers.insert(grpc::MESSAGE, message);
                }
                response
            }
        };
        response
            .headers_mut()
            .insert(ERROR, HeaderValue::from_static(self.reason));
        response
    }
}
