//! Heads between the two versions. Both are read into the same fields and written by the same writer, so that a request
//! means the same to an endpoint whichever way it came.

use std::time::Duration;

use http::header::{CONTENT_LENGTH, COOKIE, HOST, HeaderMap, HeaderName, TE};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version, request};

use model::snapshot::PortView;

use super::grpc;
use super::message::{
    Decoder, Field, Forwarded, Framing, Reach, RequestHead, RequestLine, ResponseHead, Storage,
    fields_of_trailers, is_host, names_token, request_head,
};
use super::reply::Problem;

/// What an HTTP/2 client asks, as a head of HTTP/1.1 would say it.
pub(super) struct Asking {
    head: request::Parts,
    /// Empty where the client names nobody.
    host: Vec<u8>,
    /// HTTP/2 lets a client split its cookies into several fields; elsewhere they are one (RFC 9113, 8.2.3).
    cookies: Option<Vec<u8>>,
    /// The protocol that it wants to speak in this stream (RFC 8441).
    pub(super) protocol: Option<&'static str>,
}

impl Asking {
    /// Takes a request's head apart.
    ///
    /// # Errors
    /// It names no host or two, has a target that is none, or is a `CONNECT` of another kind than WebSocket's.
    pub(super) fn new(head: request::Parts) -> Result<Self, Problem> {
        let protocol = match head.extensions.get::<hyper::ext::Protocol>() {
            Some(protocol) if protocol.as_str() == "websocket" => Some("websocket"),
            Some(_) => return Err(Problem::connect_method()),
            None if head.method == Method::CONNECT => return Err(Problem::connect_method()),
            None => None,
        };
        let host = host(&head)?;
        let cookies = joined_cookies(&head.headers);
        Ok(Asking {
            head,
            host,
            cookies,
            protocol,
        })
    }

    pub(super) fn set(&mut self, name: HeaderName, value: HeaderValue) {
        self.head.headers.insert(name, value);
    }

    /// Sets a field that the client left out.
    pub(super) fn default(&mut self, name: HeaderName, value: HeaderValue) {
        self.head.headers.entry(name).or_insert(value);
    }

    pub(super) fn is_idempotent(&self) -> bool {
        self.head.method.is_idempotent() && self.protocol.is_none()
    }

    pub(super) fn is_head(&self) -> bool {
        self.head.method == Method::HEAD
    }

    pub(super) fn content_type(&self) -> Option<&[u8]> {
        let kind = self.head.headers.get(http::header::CONTENT_TYPE);
        kind.map(HeaderValue::as_bytes)
    }

    /// How long a gRPC client waits.
    pub(super) fn grpc_timeout(&self) -> Option<Duration> {
        let value = self.head.headers.get(grpc::TIMEOUT)?;
        grpc::timeout(value.as_bytes())
    }

    /// What Content-Length says; h2 holds the body to it.
    pub(super) fn length(&self) -> Option<u64> {
        let said = self.head.headers.get(CONTENT_LENGTH)?.to_str().ok()?;
        said.parse().ok()
    }

    fn fields(&self) -> impl Iterator<Item = (Field, &str, &[u8])> {
        let each = self
            .head
            .headers
            .iter()
            .map(|(name, value)| (Field::of(name.as_str().as_bytes()), name, value));
        let joined = self.cookies.is_some();
        let passed = each.filter(move |(kind, name, _)| {
            !kind.is_of_hop() && *kind != Field::Expect && !(joined && **name == COOKIE)
        });
        let cookies = self
            .cookies
            .iter()
            .map(|all| (Field::Other, "cookie", &all[..]));
        passed
            .map(|(kind, name, value)| (kind, name.as_str(), value.as_bytes()))
            .chain(cookies)
    }

    fn line(&self) -> RequestLine<'_> {
        let path = self.head.uri.path_and_query().map_or("/", |p| p.as_str());
        RequestLine {
            // WebSocket over HTTP/1.1 begins with a GET (RFC 6455, 4.1).
            method: if self.protocol.is_some() {
                "GET"
            } else {
                self.head.method.as_str()
            },
            path: if path.is_empty() { "/" } else { path },
            host: &self.host,
        }
    }

    fn trailers(&self) -> bool {
        let values = self.head.headers.get_all(TE);
        values
            .iter()
            .any(|value| names_token(value.as_bytes(), b"trailers"))
    }

    /// Writes it for an endpoint that speaks HTTP/1.1.
    pub(super) fn http1(&self, framing: Framing, forwarded: &Forwarded<'_>, out: &mut Vec<u8>) {
        let reach = Reach {
            framing,
            trailers: self.trailers(),
            upgrade: self.protocol.map(str::as_bytes),
        };
        request_head(out, self.line(), || self.fields(), reach, forwarded);
    }

    /// Makes it one for an endpoint that speaks HTTP/2.
    pub(super) fn http2(
        &self,
        scheme: Scheme,
        forwarded: &Forwarded<'_>,
    ) -> Result<Request<()>, Problem> {
        let framing = self.length().map_or(Framing::Empty, Framing::Length);
        let mut bytes = Vec::new();
        self.http1(framing, forwarded, &mut bytes);
        from_bytes(scheme, &self.line(), &bytes, self.trailers())
    }
}

/// The scheme of the hop to a port's endpoints.
pub(super) fn scheme(view: &PortView) -> Scheme {
    match view.upstream_tls {
        Some(_) => Scheme::HTTPS,
        None => Scheme::HTTP,
    }
}

/// A client's HTTP/1.1 request for an endpoint that speaks HTTP/2.
pub(super) fn to_http2(
    head: &RequestHead<'_, '_>,
    scheme: Scheme,
    forwarded: &Forwarded<'_>,
) -> Result<Request<()>, Problem> {
    let line = RequestLine {
        method: head.method,
        path: head.path,
        host: head.host.unwrap_or_default(),
    };
    let reach = Reach {
        framing: head.framing,
        trailers: false,
        upgrade: None,
    };
    let mut bytes = Vec::new();
    let fields = || head.fields.passed();
    request_head(&mut bytes, line, fields, reach, forwarded);
    from_bytes(scheme, &line, &bytes, head.trailers)
}

/// Reads what our own writer wrote.
fn from_bytes(
    scheme: Scheme,
    line: &RequestLine<'_>,
    bytes: &[u8],
    trailers: bool,
) -> Result<Request<()>, Problem> {
    let invalid = || Problem::bad_request("the request's target is not valid");
    let mut storage = Storage::new();
    let head = RequestHead::parse(bytes, &mut storage);
    let Ok(Some(head)) = head else {
        return Err(invalid());
    };
    let mut headers = HeaderMap::with_capacity(16);
    for (kind, name, value) in head.fields.all() {
        let skipped = [Field::Host, Field::Expect];
        if skipped.contains(&kind) || (kind.is_of_hop() && kind != Field::ContentLength) {
            continue;
        }
        let (Ok(name), Ok(value)) = (
            HeaderName::from_bytes(name.as_bytes()),
            HeaderValue::from_bytes(value),
        ) else {
            return Err(Problem::bad_request("a field of the request is malformed"));
        };
        headers.append(name, value);
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    let authority = if line.host.is_empty() {
        &b"localhost"[..]
    } else {
        line.host
    };
    let mut parts = http::uri::Parts::default();
    parts.authority = Some(Authority::try_from(authority).map_err(|_| invalid())?);
    parts.scheme = Some(scheme);
    parts.path_and_query = Some(PathAndQuery::try_from(line.path).map_err(|_| invalid())?);
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(line.method.as_bytes()).map_err(|_| invalid())?;
    *request.uri_mut() = Uri::from_parts(parts).map_err(|_| invalid())?;
    *request.version_mut() = Version::HTTP_2;
    *request.headers_mut() = headers;
    Ok(request)
}

/// The host that an HTTP/2 client names, if any (RFC 9113, 8.3.1).
fn host(head: &request::Parts) -> Result<Vec<u8>, Problem> {
    let mut hosts = head.headers.get_all(HOST).iter();
    let host = hosts.next().map(HeaderValue::as_bytes);
    if hosts.next().is_some() {
        return Err(Problem::bad_request("the request has more than one Host"));
    }
    let authority = head.uri.authority().map(|a| a.as_str().as_bytes());
    if let (Some(host), Some(authority)) = (host, authority)
        && host != authority
    {
        return Err(Problem::bad_request(
            "the request's Host is not its authority",
        ));
    }
    let named = authority.or(host).unwrap_or_default();
    if !is_host(named) {
        return Err(Problem::bad_request("the request's Host is not a host"));
    }
    Ok(named.to_vec())
}

fn joined_cookies(headers: &HeaderMap) -> Option<Vec<u8>> {
    let mut cookies = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes);
    let (first, second) = (cookies.next()?, cookies.next()?);
    let all: Vec<&[u8]> = [first, second].into_iter().chain(cookies).collect();
    Some(all.join(&b"; "[..]))
}

/// An endpoint's HTTP/1.1 head for an HTTP/2 client.
pub(super) fn response(head: &ResponseHead<'_, '_>) -> Response<()> {
    let mut headers = HeaderMap::with_capacity(16);
    for (_, name, value) in head.fields.passed() {
        // What was read strictly is valid there too.
        if let (Ok(name), Ok(value)) = (
            HeaderName::from_bytes(name.as_bytes()),
            HeaderValue::from_bytes(value),
        ) {
            headers.append(name, value);
        }
    }
    if let Some(length) = head.said.filter(|_| head.status != 204) {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(head.status).unwrap_or(StatusCode::BAD_GATEWAY);
    *response.headers_mut() = headers;
    response
}

/// The fields of a head that came over HTTP/2 and are passed on.
pub(super) fn passed(headers: &HeaderMap) -> impl Iterator<Item = (Field, &str, &[u8])> {
    headers
        .iter()
        .map(|(name, value)| {
            let name = name.as_str();
            (Field::of(name.as_bytes()), name, value.as_bytes())
        })
        .filter(|(kind, ..)| !kind.is_of_hop())
}

/// The trailers of a body that came over HTTP/1.1, if it had any that are passed on.
pub(super) fn trailers(decoder: &Decoder) -> Option<HeaderMap> {
    let mut storage = Storage::new();
    let mut trailers = HeaderMap::new();
    for (name, value) in fields_of_trailers(decoder.trailers(), &mut storage) {
        if let (Ok(name), Ok(value)) = (
            HeaderName::from_bytes(name.as_bytes()),
            HeaderValue::from_bytes(value),
        ) {
            trailers.append(name, value);
        }
    }
    (!trailers.is_empty()).then_some(trailers)
}

/// Trailers as lines of HTTP/1.1, with the empty one behind them.
pub(super) fn trailer_lines(trailers: &HeaderMap) -> Vec<u8> {
    let mut lines = Vec::new();
    for (_, name, value) in passed(trailers) {
        lines.extend_from_slice(name.as_bytes());
        lines.extend_from_slice(b": ");
        lines.extend_from_slice(value);
        lines.extend_from_slice(b"\r\n");
    }
    lines.extend_from_slice(b"\r\n");
    lines
}
