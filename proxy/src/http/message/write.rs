//! Heads as they leave. Names and values are copied from what was read strictly, or are our own; so a head that leaves
//! has one meaning.

use super::body::{Coding, Framing};
use super::field::Field;
use super::head::Storage;

/// To whom a request goes, in the words of its first line.
#[derive(Clone, Copy, Debug)]
pub(in crate::http) struct RequestLine<'a> {
    pub(in crate::http) method: &'a str,
    pub(in crate::http) path: &'a str,
    /// Written even where it is empty: the field must be there (RFC 9112, 3.2).
    pub(in crate::http) host: &'a [u8],
}

/// How a request travels on its way to the endpoint.
#[derive(Clone, Copy, Debug)]
pub(in crate::http) struct Reach<'a> {
    pub(in crate::http) framing: Framing,
    /// The client takes trailers.
    pub(in crate::http) trailers: bool,
    /// The protocols to switch to.
    pub(in crate::http) upgrade: Option<&'a [u8]>,
}

/// What an endpoint is told of the client.
#[derive(Clone, Copy, Debug)]
pub(in crate::http) struct Forwarded<'a> {
    /// The client's address, without a port.
    pub(in crate::http) address: &'a str,
    pub(in crate::http) https: bool,
    /// Whether what the client says of earlier hops is believed.
    pub(in crate::http) trusted: bool,
    /// Whether to write `Forwarded` too (RFC 7239).
    pub(in crate::http) standard: bool,
    pub(in crate::http) via: bool,
    /// Where the client names none.
    pub(in crate::http) request_id: Option<u128>,
    /// Where the client names none: a trace's id and its first span's.
    pub(in crate::http) trace: Option<(u128, u64)>,
}

/// Which name this proxy has in `Via` (RFC 9110, 7.6.3).
const VIA: &[u8] = b"1.1 heddle";

fn line(out: &mut Vec<u8>, name: &str, parts: &[&[u8]]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    for part in parts {
        out.extend_from_slice(part);
    }
    out.extend_from_slice(b"\r\n");
}

/// A field of our own behind the values that came, as one comma-separated list.
fn append<'a>(
    out: &mut Vec<u8>,
    name: &str,
    earlier: impl Iterator<Item = &'a [u8]>,
    own: &[&[u8]],
) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    for value in earlier.filter(|value| !value.is_empty()) {
        out.extend_from_slice(value);
        out.extend_from_slice(b", ");
    }
    for part in own {
        out.extend_from_slice(part);
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends a request's head. `fields`: those that are passed on, as often as they are asked for.
pub(in crate::http) fn request_head<'f, I>(
    out: &mut Vec<u8>,
    to: RequestLine<'_>,
    fields: impl Fn() -> I,
    reach: Reach<'_>,
    forwarded: &Forwarded<'_>,
) where
    I: Iterator<Item = (Field, &'f str, &'f [u8])>,
{
    for part in [to.method, " ", to.path, " HTTP/1.1\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    line(out, "host", &[to.host]);
    let trusted = forwarded.trusted;
    let mut seen = Seen::default();
    for (kind, name, value) in fields() {
        match kind {
            Field::Host => continue,
            Field::ForwardedFor => {
                seen.forwarded_for = true;
                continue;
            }
            Field::Forwarded | Field::Via => {
                seen.lists = true;
                continue;
            }
            Field::ForwardedProto if !trusted || std::mem::replace(&mut seen.proto, true) => {
                continue;
            }
            Field::ForwardedHost if !trusted || std::mem::replace(&mut seen.host, true) => continue,
            Field::RequestId => seen.request_id = true,
            Field::TraceParent => seen.trace = true,
            _ => {}
        }
        line(out, name, &[value]);
    }
    who(out, to.host, fields, &seen, forwarded);
    match reach.framing {
        Framing::Length(length) => content_length(out, length),
        Framing::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        Framing::Empty | Framing::UntilClose => {}
    }
    match reach.upgrade {
        Some(protocols) => {
            out.extend_from_slice(b"connection: upgrade\r\n");
            line(out, "upgrade", &[protocols]);
        }
        None if reach.trailers => out.extend_from_slice(b"te: trailers\r\nconnection: te\r\n"),
        None => {}
    }
    out.extend_from_slice(b"\r\n");
}

/// What came of the fields that are written anew.
#[derive(Default)]
struct Seen {
    forwarded_for: bool,
    proto: bool,
    host: bool,
    /// `Forwarded` or `Via`.
    lists: bool,
    request_id: bool,
    trace: bool,
}

/// Says who asked, and how.
fn who<'f, I>(
    out: &mut Vec<u8>,
    host: &[u8],
    fields: impl Fn() -> I,
    seen: &Seen,
    forwarded: &Forwarded<'_>,
) where
    I: Iterator<Item = (Field, &'f str, &'f [u8])>,
{
    let of = |kind: Field| {
        let values = fields().filter(move |(of, ..)| *of == kind);
        values.map(|(.., value)| value)
    };
    let believed = |kind: Field| of(kind).filter(|_| forwarded.trusted);
    let address = forwarded.address.as_bytes();
    if seen.forwarded_for {
        append(
            out,
            "x-forwarded-for",
            believed(Field::ForwardedFor),
            &[address],
        );
    } else {
        line(out, "x-forwarded-for", &[address]);
    }
    let proto: &[u8] = if forwarded.https { b"https" } else { b"http" };
    if !seen.proto {
        line(out, "x-forwarded-proto", &[proto]);
    }
    if !seen.host && !host.is_empty() {
        line(out, "x-forwarded-host", &[host]);
    }
    if forwarded.standard {
        let (open, close): (&[u8], &[u8]) = if address.contains(&b':') {
            (b"for=\"[", b"]\"")
        } else {
            (b"for=", b"")
        };
        // A host is made of characters that need no escape within quotes.
        let own: &[&[u8]] = &[open, address, close, b";host=\"", host, b"\";proto=", proto];
        append(out, "forwarded", believed(Field::Forwarded), own);
    } else if seen.lists {
        believed(Field::Forwarded).for_each(|value| line(out, "forwarded", &[value]));
    }
    if forwarded.via {
        append(out, "via", of(Field::Via), &[VIA]);
    } else if seen.lists {
        of(Field::Via).for_each(|value| line(out, "via", &[value]));
    }
    if let (false, Some(id)) = (seen.request_id, forwarded.request_id) {
        line(out, "x-request-id", &[&hex(id)]);
    }
    if let (false, Some((trace, span))) = (seen.trace, forwarded.trace) {
        let (trace, span) = (hex(trace), hex(u128::from(span)));
        line(
            out,
            "traceparent",
            &[b"00-", &trace, b"-", &span[16..], b"-01"],
        );
    }
}

/// As 32 digits; a tenth of what formatting costs, once per request.
fn hex(number: u128) -> [u8; 32] {
    let mut digits = [0; 32];
    for (place, byte) in number.to_be_bytes().into_iter().enumerate() {
        digits[2 * place] = b"0123456789abcdef"[usize::from(byte >> 4)];
        digits[2 * place + 1] = b"0123456789abcdef"[usize::from(byte & 15)];
    }
    digits
}

fn content_length(out: &mut Vec<u8>, length: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut left = length;
    loop {
        at -= 1;
        digits[at] = b'0' + (left % 10) as u8;
        left /= 10;
        if left == 0 {
            break;
        }
    }
    line(out, "content-length", &[&digits[at..]]);
}

/// Appends a response's head. `length`: what Content-Length is to say; `connection`: its options, if any are to be said.
pub(in crate::http) fn response_head<'f>(
    out: &mut Vec<u8>,
    (status, reason): (u16, &str),
    fields: impl Iterator<Item = (Field, &'f str, &'f [u8])>,
    coding: Coding,
    length: Option<u64>,
    connection: Option<&str>,
) {
    let status = status.min(999);
    let digits = [100, 10, 1].map(|place| b'0' + (status / place % 10) as u8);
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(&digits);
    out.extend_from_slice(b" ");
    out.extend_from_slice(reason.as_bytes());
    out.extend_from_slice(b"\r\n");
    for (_, name, value) in fields {
        line(out, name, &[value]);
    }
    match (coding, length) {
        (Coding::Chunked, _) => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        (Coding::Raw, Some(length)) => content_length(out, length),
        (Coding::Raw, None) => {}
    }
    if let Some(connection) = connection {
        line(out, "connection", &[connection.as_bytes()]);
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends the last chunk, and the trailers that came less those that would say something of framing, routing or this
/// hop (RFC 9110, 6.5.1).
pub(in crate::http) fn last_chunk(out: &mut Vec<u8>, trailers: &[u8]) {
    out.extend_from_slice(b"0\r\n");
    let mut storage = Storage::new();
    for (name, value) in fields_of_trailers(trailers, &mut storage) {
        line(out, name, &[value]);
    }
    out.extend_from_slice(b"\r\n");
}

/// The trailers that may be passed on.
pub(in crate::http) fn fields_of_trailers<'s, 'b>(
    trailers: &'b [u8],
    storage: &'s mut Storage<'b>,
) -> impl Iterator<Item = (&'b str, &'b [u8])> + use<'s, 'b> {
    // Those that were read are well-formed; without any there is nothing to read.
    let read = match trailers {
        b"" | b"\r\n" => &[],
        trailers => storage.trailers(trailers).unwrap_or_default(),
    };
    let passed = |name: &str| matches!(Field::of(name.as_bytes()), Field::Other);
    read.iter()
        .filter(move |header| passed(header.name))
        .map(|header| (header.name, header.value))
}
