//! What a proxy changes in a message: RFC 9110, 7.6, and the `X-Forwarded` fields.

use http::header::{
    CONNECTION, COOKIE, Entry, HOST, HeaderMap, HeaderName, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Method, Request, Uri, Version, request};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use model::service::UpstreamProtocol;

use super::body::RequestBody;
use super::exchange::Client;
use super::reply::Problem;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// A request as it goes to an endpoint.
pub(super) struct Prepared {
    pub(super) request: Request<RequestBody>,
    /// The client's side of the protocol that it wants to switch to.
    pub(super) upgrade: Option<OnUpgrade>,
}

/// Makes a client's request one that can be sent to an endpoint.
///
/// # Errors
/// Requests that name no host, several, or an invalid one, and `CONNECT`.
pub(super) fn prepare(
    client: &Client,
    upstream: UpstreamProtocol,
    mut request: Request<Incoming>,
) -> Result<Prepared, Problem> {
    if request.method() == Method::CONNECT {
        return Err(Problem::connect_method());
    }
    let protocol = upgrade_wanted(&request, upstream);
    let upgrade = protocol.is_some().then(|| hyper::upgrade::on(&mut request));
    let (mut head, body) = request.into_parts();
    let body = RequestBody::from(body);
    head.extensions.clear();
    let host = host(&head)?;
    let trailers = accepts_trailers(&head.headers);
    strip(&mut head.headers);
    if trailers {
        head.headers
            .insert(TE, HeaderValue::from_static("trailers"));
        if upstream == UpstreamProtocol::Http1 {
            head.headers
                .insert(CONNECTION, HeaderValue::from_static("te"));
        }
    }
    if let Some(protocol) = protocol {
        head.headers
            .insert(CONNECTION, HeaderValue::from_static("upgrade"));
        head.headers.insert(UPGRADE, protocol);
    }
    if head.version == Version::HTTP_2 {
        join_cookies(&mut head.headers);
    }
    address(&mut head, host.as_ref(), upstream)?;
    forwarded(&mut head.headers, client.address(), host);
    Ok(Prepared {
        request: Request::from_parts(head, body),
        upgrade,
    })
}

/// Removes what is meant for the next hop only: the fields that `Connection` names, and those that always are.
pub(super) fn strip(headers: &mut HeaderMap) {
    // Most messages have none: comparing names is cheaper than looking each of ours up.
    if !headers.keys().any(is_hop_by_hop) {
        return;
    }
    let named: Vec<HeaderName> = tokens(headers, &CONNECTION)
        .filter_map(|token| HeaderName::from_bytes(token).ok())
        .collect();
    for name in named {
        // Naming these would change what the message is, not how it travels.
        if name != HOST && name != http::header::CONTENT_LENGTH {
            headers.remove(name);
        }
    }
    for name in [
        CONNECTION,
        TE,
        TRANSFER_ENCODING,
        UPGRADE,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        HTTP2_SETTINGS,
    ] {
        headers.remove(name);
    }
}

fn is_hop_by_hop(name: &HeaderName) -> bool {
    *name == CONNECTION
        || *name == TE
        || *name == TRANSFER_ENCODING
        || *name == UPGRADE
        || *name == PROXY_AUTHENTICATE
        || *name == PROXY_AUTHORIZATION
        || *name == KEEP_ALIVE
        || *name == PROXY_CONNECTION
        || *name == HTTP2_SETTINGS
}

/// The members of a comma-separated field, without parameters' meaning: trimmed, never empty.
fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    headers
        .get_all(name)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|token| !token.is_empty())
}

/// Whether the client takes trailers; other transfer codings are between it and us.
fn accepts_trailers(headers: &HeaderMap) -> bool {
    headers.contains_key(TE)
        && tokens(headers, &TE).any(|token| token.eq_ignore_ascii_case(b"trailers"))
}

/// The protocol that the client asks to switch to, where that can be passed on: on HTTP/1.1, without a body. `h2c`
/// would let requests through that nobody looks at.
fn upgrade_wanted(request: &Request<Incoming>, upstream: UpstreamProtocol) -> Option<HeaderValue> {
    let headers = request.headers();
    let protocol = headers.get(UPGRADE)?;
    let asked = request.version() == Version::HTTP_11
        && upstream == UpstreamProtocol::Http1
        && hyper::body::Body::is_end_stream(request.body())
        && tokens(headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case(b"upgrade"))
        && !tokens(headers, &UPGRADE).any(|token| token.eq_ignore_ascii_case(b"h2c"));
    asked.then(|| protocol.clone())
}

/// The host that the client names, if any (RFC 9112, 3.2; RFC 9113, 8.3.1).
fn host(head: &request::Parts) -> Result<Option<HeaderValue>, Problem> {
    let mut hosts = head.headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Problem::bad_request("the request has more than one Host"));
    }
    if head.version == Version::HTTP_11 && host.is_none() {
        return Err(Problem::bad_request("the request has no Host"));
    }
    if host.is_some_and(|host| !host.as_bytes().iter().all(is_of_host)) {
        return Err(Problem::bad_request("the request's Host is not a host"));
    }
    let Some(authority) = head.uri.authority() else {
        return Ok(host.cloned());
    };
    if authority.as_str().contains('@') {
        return Err(Problem::bad_request("the request's target names a user"));
    }
    let differs = host.is_some_and(|host| host.as_bytes() != authority.as_str().as_bytes());
    if head.version == Version::HTTP_2 && differs {
        return Err(Problem::bad_request(
            "the request's Host is not its authority",
        ));
    }
    let authority = HeaderValue::from_str(authority.as_str());
    authority
        .map(Some)
        .map_err(|_| Problem::bad_request("the request's authority is not a host"))
}

/// The characters of `uri-host [ ":" port ]` (RFC 3986, 3.2.2).
fn is_of_host(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(byte)
}

/// Writes target and host the way the endpoint's protocol has them.
fn address(
    head: &mut request::Parts,
    host: Option<&HeaderValue>,
    upstream: UpstreamProtocol,
) -> Result<(), Problem> {
    match upstream {
        UpstreamProtocol::Http1 => {
            if head.uri.authority().is_some() || head.uri.scheme().is_some() {
                let path = head.uri.path_and_query().cloned();
                head.uri = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
                if let Some(host) = host {
                    head.headers.insert(HOST, host.clone());
                }
            }
            if !head.headers.contains_key(HOST) {
                // Of an HTTP/1.0 client. The field must be there, and may be empty (RFC 9112, 3.2).
                head.headers
                    .insert(HOST, host.cloned().unwrap_or(HeaderValue::from_static("")));
            }
            head.version = Version::HTTP_11;
        }
        UpstreamProtocol::H2c => {
            head.headers.remove(HOST);
            let invalid = || Problem::bad_request("the request's target is not valid");
            let mut parts = http::uri::Parts::default();
            let authority = host.map_or(&b"localhost"[..], HeaderValue::as_bytes);
            parts.authority = Some(Authority::try_from(authority).map_err(|_| invalid())?);
            parts.scheme = Some(Scheme::HTTP);
            parts.path_and_query = head.uri.path_and_query().cloned();
            head.uri = Uri::from_parts(parts).map_err(|_| invalid())?;
            head.version = Version::HTTP_2;
        }
    }
    Ok(())
}

/// HTTP/2 lets a client split its cookies into several fields; elsewhere they are one (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let Entry::Occupied(cookies) = headers.entry(COOKIE) else {
        return;
    };
    if cookies.iter().nth(1).is_none() {
        return;
    }
    let all: Vec<&[u8]> = cookies.iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&all.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

/// Says who asked, and how. The address is appended to what earlier proxies wrote; scheme and host are kept where one
/// wrote them, as it was nearer to the client.
fn forwarded(headers: &mut HeaderMap, address: &HeaderValue, host: Option<HeaderValue>) {
    match headers.entry(FORWARDED_FOR) {
        Entry::Vacant(entry) => {
            entry.insert(address.clone());
        }
        Entry::Occupied(mut entry) => {
            let earlier = entry.iter().map(HeaderValue::as_bytes);
            let all: Vec<&[u8]> = earlier.chain([address.as_bytes()]).collect();
            let joined = all.join(&b", "[..]);
            entry.insert(HeaderValue::from_bytes(&joined).unwrap_or_else(|_| address.clone()));
        }
    }
    if let Entry::Vacant(entry) = headers.entry(FORWARDED_PROTO) {
        entry.insert(HeaderValue::from_static("http"));
    }
    if let Some(host) = host
        && let Entry::Vacant(entry) = headers.entry(FORWARDED_HOST)
    {
        entry.insert(host);
    }
}

#[cfg(test)]
mod tests;
