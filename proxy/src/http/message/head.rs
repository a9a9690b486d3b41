//! A message's head, read strictly: where two readers could differ, it is refused.

use std::mem::MaybeUninit;

use http::StatusCode;
use httparse::{Header, ParserConfig, Status};

use super::body::Framing;
use super::field::{Field, members, names_token};
use crate::options::limits;

/// Fields that a head may have; 431 beyond.
pub(in crate::http) const FIELDS: usize = 128;

/// Why a head can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub(in crate::http) struct HeadError {
    /// What a client is answered with.
    pub(in crate::http) status: StatusCode,
    text: &'static str,
}

impl HeadError {
    const fn bad(text: &'static str) -> Self {
        HeadError {
            status: StatusCode::BAD_REQUEST,
            text,
        }
    }

    const fn of(status: StatusCode, text: &'static str) -> Self {
        HeadError { status, text }
    }

    pub(in crate::http) const fn target_too_long() -> Self {
        HeadError::of(StatusCode::URI_TOO_LONG, "the target is longer than 16 KiB")
    }

    pub(in crate::http) const fn too_large() -> Self {
        HeadError::of(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "the head is longer than 64 KiB",
        )
    }
}

impl From<httparse::Error> for HeadError {
    fn from(error: httparse::Error) -> Self {
        HeadError::bad(match error {
            httparse::Error::HeaderName => "a field's name is malformed",
            httparse::Error::HeaderValue => "a field's value is malformed",
            httparse::Error::NewLine => "a line does not end with CR and LF",
            httparse::Error::Status => "the status is not a number of three digits",
            httparse::Error::Token => "the first line is malformed",
            httparse::Error::TooManyHeaders => {
                return HeadError::of(
                    StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                    "the head has more than 128 fields",
                );
            }
            httparse::Error::Version => {
                return HeadError::of(
                    StatusCode::HTTP_VERSION_NOT_SUPPORTED,
                    "the version is not HTTP/1.0 or HTTP/1.1",
                );
            }
        })
    }
}

/// Room for the fields of a head: on the stack, and not initialised.
pub(in crate::http) struct Storage<'b> {
    headers: [MaybeUninit<Header<'b>>; FIELDS],
    kinds: [Field; FIELDS],
}

impl<'b> Storage<'b> {
    pub(in crate::http) fn new() -> Self {
        Storage {
            headers: [const { MaybeUninit::uninit() }; FIELDS],
            kinds: [Field::Other; FIELDS],
        }
    }

    /// Reads trailers, which end with an empty line.
    ///
    /// # Errors
    /// They are malformed, or not all there.
    pub(in crate::http) fn trailers(
        &mut self,
        bytes: &'b [u8],
    ) -> Result<&[Header<'b>], HeadError> {
        let mut headers = [httparse::EMPTY_HEADER; FIELDS];
        let whole = HeadError::bad("the trailers do not end");
        match httparse::parse_headers(bytes, &mut headers)? {
            Status::Complete((n, parsed)) if n == bytes.len() && lines_end_whole(bytes) => {
                let n = parsed.len();
                for (room, header) in self.headers.iter_mut().zip(parsed.iter()) {
                    room.write(*header);
                }
                // SAFETY: the first `n` were just written, and `Header` is `Copy`.
                Ok(unsafe { std::slice::from_raw_parts(self.headers.as_ptr().cast(), n) })
            }
            _ => Err(whole),
        }
    }
}

/// Whether every LF follows a CR: a reader that takes LF alone for a line's end must not see other lines than we do.
fn lines_end_whole(bytes: &[u8]) -> bool {
    bytes.first() != Some(&b'\n')
        && !bytes
            .iter()
            .zip(&bytes[1..])
            .any(|(before, byte)| (*byte == b'\n') & (*before != b'\r'))
}

/// Fields and what they are.
#[derive(Clone, Copy)]
pub(in crate::http) struct Fields<'s, 'b> {
    headers: &'s [Header<'b>],
    kinds: &'s [Field],
    /// `Connection` names others than the usual.
    names_more: bool,
}

impl<'s, 'b> Fields<'s, 'b> {
    fn new(headers: &'s [Header<'b>], kinds: &'s mut [Field; FIELDS]) -> Self {
        let mut names_more = false;
        for (header, kind) in headers.iter().zip(kinds.iter_mut()) {
            *kind = Field::of(header.name.as_bytes());
            names_more |=
                *kind == Field::Connection && members(header.value).any(|member| !is_usual(member));
        }
        Fields {
            headers,
            kinds: &kinds[..headers.len()],
            names_more,
        }
    }

    /// All of them, in their order.
    pub(in crate::http) fn all(&self) -> impl Iterator<Item = (Field, &'b str, &'b [u8])> {
        let each = self.headers.iter().zip(self.kinds);
        each.map(|(header, kind)| (*kind, header.name, header.value))
    }

    /// Those that are passed on, less what is written anew; `Connection`'s members are left out with it.
    pub(in crate::http) fn passed(&self) -> impl Iterator<Item = (Field, &'b str, &'b [u8])> {
        self.all()
            .filter(|(kind, name, _)| !(kind.is_of_hop() || self.names_more && self.named(name)))
    }

    /// Whether `Connection` names this field. It can't take away what says whom the message is for or what it is.
    fn named(&self, name: &str) -> bool {
        let keeps = [Field::Host, Field::ContentType, Field::Expect];
        !keeps.contains(&Field::of(name.as_bytes()))
            && self
                .values(Field::Connection)
                .any(|value| names_token(value, name.as_bytes()))
    }

    fn values(&self, kind: Field) -> impl Iterator<Item = &'b [u8]> {
        self.all()
            .filter(move |(of, ..)| *of == kind)
            .map(|(.., value)| value)
    }

    fn has_token(&self, kind: Field, token: &[u8]) -> bool {
        self.values(kind).any(|value| names_token(value, token))
    }

    /// The only field of this kind.
    fn one(&self, kind: Field, twice: &'static str) -> Result<Option<&'b [u8]>, HeadError> {
        let mut values = self.values(kind);
        let first = values.next();
        match values.next() {
            Some(_) => Err(HeadError::bad(twice)),
            None => Ok(first),
        }
    }
}

fn is_usual(member: &[u8]) -> bool {
    [&b"keep-alive"[..], b"close", b"upgrade", b"te"]
        .iter()
        .any(|usual| usual.eq_ignore_ascii_case(member))
}

/// One or more digits, and nothing else.
fn length(value: &[u8]) -> Option<u64> {
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    digits
        .then(|| std::str::from_utf8(value).ok()?.parse().ok())
        .flatten()
}

/// Whether the coding is `chunked`, and nothing else (RFC 9112, 7).
fn is_chunked(fields: &Fields<'_, '_>) -> Result<bool, HeadError> {
    let unknown = HeadError::of(
        StatusCode::NOT_IMPLEMENTED,
        "the body has a transfer coding other than chunked",
    );
    let twice = "the head has more than one Transfer-Encoding";
    match fields.one(Field::TransferEncoding, twice)? {
        None => Ok(false),
        Some(value) if value.eq_ignore_ascii_case(b"chunked") => Ok(true),
        Some(_) => Err(unknown),
    }
}

/// A request's head.
pub(in crate::http) struct RequestHead<'s, 'b> {
    /// Bytes that it takes.
    pub(in crate::http) bytes: usize,
    pub(in crate::http) method: &'b str,
    /// Path and query, or `*`.
    pub(in crate::http) path: &'b str,
    /// Whom it is for: of the target where that names a host, else of `Host`. HTTP/1.0 may leave it open.
    pub(in crate::http) host: Option<&'b [u8]>,
    pub(in crate::http) fields: Fields<'s, 'b>,
    pub(in crate::http) framing: Framing,
    /// The client speaks HTTP/1.1.
    pub(in crate::http) is_11: bool,
    /// Whether the client wants to keep the connection.
    pub(in crate::http) keep_alive: bool,
    /// The client waits to be told before it sends the body (RFC 9110, 10.1.1).
    pub(in crate::http) expects_continue: bool,
    /// It takes trailers.
    pub(in crate::http) trailers: bool,
    /// The protocols that it wants to switch to, where that can be passed on: without a body, and not to `h2c`, which
    /// would let requests through that nobody looks at.
    pub(in crate::http) upgrade: Option<&'b [u8]>,
}

impl<'s, 'b> RequestHead<'s, 'b> {
    /// Reads a head; `None` when it is not all there.
    ///
    /// # Errors
    /// It is malformed, ambiguous, or asks for what is not done.
    pub(in crate::http) fn parse(
        bytes: &'b [u8],
        storage: &'s mut Storage<'b>,
    ) -> Result<Option<Self>, HeadError> {
        let mut request = httparse::Request::new(&mut []);
        let parsed = request.parse_with_uninit_headers(bytes, &mut storage.headers)?;
        let Status::Complete(taken) = parsed else {
            return Ok(None);
        };
        if !lines_end_whole(&bytes[..taken]) {
            return Err(HeadError::bad("a line ends with LF alone"));
        }
        let (Some(method), Some(target), Some(minor)) =
            (request.method, request.path, request.version)
        else {
            return Err(HeadError::bad("the first line is malformed"));
        };
        let fields = Fields::new(request.headers, &mut storage.kinds);
        let is_11 = minor == 1;
        if method == "CONNECT" {
            return Err(HeadError::of(
                StatusCode::NOT_IMPLEMENTED,
                "CONNECT is not supported: this is no forward proxy",
            ));
        }
        let framing = request_framing(&fields, is_11)?;
        let host = host(&fields, is_11)?;
        let (authority, path) = split_target(method, target)?;
        let close = fields.has_token(Field::Connection, b"close");
        let kept = is_11 || fields.has_token(Field::Connection, b"keep-alive");
        let upgrade = fields.one(Field::Upgrade, "the head has more than one Upgrade")?;
        let upgrade = upgrade.filter(|protocols| {
            is_11
                && framing == Framing::Empty
                && fields.has_token(Field::Connection, b"upgrade")
                && !names_token(protocols, b"h2c")
        });
        Ok(Some(RequestHead {
            bytes: taken,
            method,
            path,
            host: authority.map(str::as_bytes).or(host),
            fields,
            framing,
            is_11,
            keep_alive: kept && !close,
            expects_continue: is_11 && fields.has_token(Field::Expect, b"100-continue"),
            trailers: fields.has_token(Field::Te, b"trailers"),
            upgrade,
        }))
    }

    /// Whether sending it twice is as good as once (RFC 9110, 9.2.2).
    pub(in crate::http) fn is_idempotent(&self) -> bool {
        matches!(
            self.method,
            "GET" | "HEAD" | "PUT" | "DELETE" | "OPTIONS" | "TRACE"
        )
    }

    /// What the body is said to be.
    pub(in crate::http) fn content_type(&self) -> Option<&'b [u8]> {
        self.fields.values(Field::ContentType).next()
    }
}

fn request_framing(fields: &Fields<'_, '_>, is_11: bool) -> Result<Framing, HeadError> {
    let twice = "the head has more than one Content-Length";
    let said = fields.one(Field::ContentLength, twice)?;
    if is_chunked(fields)? {
        if !is_11 {
            return Err(HeadError::bad("HTTP/1.0 has no Transfer-Encoding"));
        }
        if said.is_some() {
            return Err(HeadError::bad(
                "the head has both Content-Length and Transfer-Encoding",
            ));
        }
        return Ok(Framing::Chunked);
    }
    match said {
        None => Ok(Framing::Empty),
        Some(value) => length(value)
            .map(Framing::Length)
            .ok_or(HeadError::bad("Content-Length is not a length")),
    }
}

/// `Host`, which HTTP/1.1 must have (RFC 9112, 3.2).
fn host<'b>(fields: &Fields<'_, 'b>, is_11: bool) -> Result<Option<&'b [u8]>, HeadError> {
    let host = fields.one(Field::Host, "the request has more than one Host")?;
    match host {
        None if is_11 => Err(HeadError::bad("the request has no Host")),
        Some(host) if !is_host(host) => Err(HeadError::bad("the request's Host is not a host")),
        host => Ok(host),
    }
}

/// Whether it has the characters of `uri-host [ ":" port ]` only (RFC 3986, 3.2.2).
pub(in crate::http) fn is_host(host: &[u8]) -> bool {
    host.iter()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(byte))
}

/// The authority, if the target names one, and path and query (RFC 9112, 3.2).
fn split_target<'b>(
    method: &str,
    target: &'b str,
) -> Result<(Option<&'b str>, &'b str), HeadError> {
    let allowed = |byte: u8| matches!(byte, b'!'..=b'~') && byte != b'#';
    if !target.bytes().all(allowed) {
        return Err(HeadError::bad(
            "the target has a character that must be encoded",
        ));
    }
    if target.starts_with('/') {
        return Ok((None, target));
    }
    if target == "*" && method == "OPTIONS" {
        return Ok((None, target));
    }
    let scheme = ["http://", "https://"].into_iter().find(|scheme| {
        target
            .get(..scheme.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(scheme))
    });
    let Some(scheme) = scheme else {
        return Err(HeadError::bad(
            "the target is neither a path nor an http address",
        ));
    };
    let rest = &target[scheme.len()..];
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if authority.is_empty() || !is_host(authority.as_bytes()) {
        return Err(HeadError::bad("the target's host is not a host"));
    }
    match path {
        "" if method == "OPTIONS" => Ok((Some(authority), "*")),
        "" => Ok((Some(authority), "/")),
        // A query without a path would need one put before it.
        path if path.starts_with('?') => Err(HeadError::bad("the target has a query but no path")),
        path => Ok((Some(authority), path)),
    }
}

/// A response's head.
pub(in crate::http) struct ResponseHead<'s, 'b> {
    /// Bytes that it takes.
    pub(in crate::http) bytes: usize,
    pub(in crate::http) status: u16,
    pub(in crate::http) reason: &'b str,
    pub(in crate::http) fields: Fields<'s, 'b>,
    pub(in crate::http) framing: Framing,
    /// What Content-Length says, also where no body follows.
    pub(in crate::http) said: Option<u64>,
    /// Whether the endpoint keeps the connection.
    pub(in crate::http) keep_alive: bool,
    /// The protocol that a 101 switches to.
    pub(in crate::http) upgrade: Option<&'b [u8]>,
}

impl<'s, 'b> ResponseHead<'s, 'b> {
    /// Reads a head; `None` when it is not all there. `head`: it answers a HEAD. Lines that end with LF alone are taken:
    /// what leaves is written anew.
    ///
    /// # Errors
    /// It is malformed, or says two things of where its body ends.
    pub(in crate::http) fn parse(
        bytes: &'b [u8],
        head: bool,
        storage: &'s mut Storage<'b>,
    ) -> Result<Option<Self>, HeadError> {
        let mut response = httparse::Response::new(&mut []);
        let parsed = ParserConfig::default().parse_response_with_uninit_headers(
            &mut response,
            bytes,
            &mut storage.headers,
        )?;
        let Status::Complete(taken) = parsed else {
            return Ok(None);
        };
        let (Some(status), Some(minor)) = (response.code, response.version) else {
            return Err(HeadError::bad("the first line is malformed"));
        };
        let fields = Fields::new(response.headers, &mut storage.kinds);
        let is_11 = minor == 1;
        let said = match fields.one(
            Field::ContentLength,
            "the head has more than one Content-Length",
        )? {
            None => None,
            Some(value) => {
                let length = length(value);
                Some(length.ok_or(HeadError::bad("Content-Length is not a length"))?)
            }
        };
        let chunked = is_chunked(&fields)?;
        if chunked && (said.is_some() || !is_11) {
            return Err(HeadError::bad(
                "the head has Transfer-Encoding beside Content-Length or in HTTP/1.0",
            ));
        }
        let framing = match (chunked, said) {
            _ if head || status < 200 || status == 204 || status == 304 => Framing::Empty,
            (true, _) => Framing::Chunked,
            (false, Some(length)) => Framing::Length(length),
            (false, None) => Framing::UntilClose,
        };
        let close = fields.has_token(Field::Connection, b"close");
        let kept = is_11 || fields.has_token(Field::Connection, b"keep-alive");
        Ok(Some(ResponseHead {
            bytes: taken,
            status,
            reason: response.reason.unwrap_or_default(),
            fields,
            framing,
            said,
            keep_alive: kept && !close && framing != Framing::UntilClose,
            upgrade: fields.values(Field::Upgrade).next(),
        }))
    }

    /// What comes before the answer: 100, 103 and such.
    pub(in crate::http) fn is_interim(&self) -> bool {
        self.status < 200 && self.status != 101
    }
}

/// A message may not be read at all before so much of it has come.
pub(in crate::http) const fn is_too_long(bytes: usize) -> bool {
    bytes >= limits::HEAD_BYTES
}
