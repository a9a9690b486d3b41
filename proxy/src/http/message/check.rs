//! What must hold for any bytes whatever: the bodies of the fuzz targets, which the tests run too.
//!
//! Whatever the reader accepts, what leaves is one request for a reader of the strictest kind.

use super::{
    Coding, Decoder, Forwarded, Framing, Reach, RequestHead, RequestLine, ResponseHead, Storage,
    encode, last_chunk, request_head, response_head,
};

/// Reads a head and its body, and writes them anew, as the engine does; what is left over of `text` beside it.
pub(super) fn passed_on(text: &[u8]) -> Option<(Vec<u8>, usize)> {
    let mut storage = Storage::new();
    let head = RequestHead::parse(text, &mut storage).ok()??;
    let forwarded = Forwarded {
        address: "192.0.2.1",
        https: false,
        trusted: false,
        standard: true,
        via: true,
        request_id: Some(7),
        trace: None,
    };
    let line = RequestLine {
        method: head.method,
        path: head.path,
        host: head.host.unwrap_or_default(),
    };
    let reach = Reach {
        framing: head.framing,
        trailers: head.trailers,
        upgrade: head.upgrade,
    };
    let mut out = Vec::new();
    request_head(&mut out, line, || head.fields.passed(), reach, &forwarded);
    let mut body = text[head.bytes..].to_vec();
    let mut decoder = Decoder::new(head.framing);
    let decoded = decoder.decode(&mut body).ok()?;
    let coding = match head.framing {
        Framing::Chunked => Coding::Chunked,
        _ => Coding::Raw,
    };
    encode(&mut out, coding, &body[..decoded.data]);
    if coding == Coding::Chunked && decoder.ended() {
        last_chunk(&mut out, decoder.trailers());
    }
    decoder
        .ended()
        .then_some((out, head.bytes + decoded.consumed))
}

/// A request as a reader sees it that knows RFC 9112's grammar and nothing else.
#[derive(Debug, PartialEq)]
pub(super) struct Strict {
    method: String,
    target: String,
    pub(super) body: Vec<u8>,
    pub(super) bytes: usize,
}

/// Reads one request, with no leniency at all.
pub(super) fn strictly(text: &[u8]) -> Result<Strict, &'static str> {
    let end = text
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .ok_or("no end")?;
    let head = std::str::from_utf8(&text[..end]).unwrap_or_default();
    let head = if head.is_empty() {
        String::from_utf8_lossy(&text[..end]).into_owned()
    } else {
        head.to_owned()
    };
    let mut lines = head.split("\r\n");
    let first: Vec<&str> = lines.next().ok_or("no line")?.split(' ').collect();
    let [method, target, "HTTP/1.1"] = first[..] else {
        return Err("not three words");
    };
    let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    if method.is_empty() || !method.chars().all(token) {
        return Err("method");
    }
    if !(target == "*" || target.starts_with('/')) || !target.bytes().all(|b| b.is_ascii_graphic())
    {
        return Err("target");
    }
    let (mut length, mut chunked, mut hosts) = (None, false, 0);
    for line in lines {
        let (name, value) = line.split_once(':').ok_or("no colon")?;
        if name.is_empty() || !name.chars().all(token) {
            return Err("name");
        }
        // Bytes from 0x80 on are allowed, whatever they may encode (obs-text, RFC 9110, 5.5).
        if value.bytes().any(|b| b.is_ascii_control() && b != b'\t') {
            return Err("value");
        }
        let value = value.trim_matches([' ', '\t']);
        match name.to_ascii_lowercase().as_str() {
            "host" => hosts += 1,
            "content-length" if length.is_some() => return Err("two lengths"),
            "content-length" => length = Some(value.parse::<usize>().map_err(|_| "length")?),
            "transfer-encoding" if chunked || value != "chunked" => return Err("coding"),
            "transfer-encoding" => chunked = true,
            _ => {}
        }
    }
    if hosts != 1 || (chunked && length.is_some()) {
        return Err("host or framing");
    }
    let rest = &text[end + 4..];
    let (body, taken) = if chunked {
        chunks(rest)?
    } else {
        let length = length.unwrap_or(0);
        (rest.get(..length).ok_or("short body")?.to_vec(), length)
    };
    Ok(Strict {
        method: method.to_owned(),
        target: target.to_owned(),
        body,
        bytes: end + 4 + taken,
    })
}

fn chunks(text: &[u8]) -> Result<(Vec<u8>, usize), &'static str> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let end = text[at..]
            .windows(2)
            .position(|w| w == b"\r\n")
            .ok_or("size line")?;
        let size = std::str::from_utf8(&text[at..at + end]).map_err(|_| "size")?;
        if !size.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err("size");
        }
        let size = usize::from_str_radix(size, 16).map_err(|_| "size")?;
        at += end + 2;
        if size == 0 {
            let end = text[at..].starts_with(b"\r\n");
            let trailers = text[at..].windows(4).position(|w| w == b"\r\n\r\n");
            let length = if end {
                2
            } else {
                trailers.ok_or("trailers")? + 4
            };
            return Ok((body, at + length));
        }
        body.extend_from_slice(text.get(at..at + size).ok_or("short chunk")?);
        if text.get(at + size..at + size + 2) != Some(b"\r\n") {
            return Err("chunk end");
        }
        at += size + 2;
    }
}

/// What must hold for any bytes whatever.
pub(in crate::http) fn request(text: &[u8]) {
    if let Some((out, taken)) = passed_on(text) {
        assert!(taken <= text.len());
        let shown = || (String::from_utf8_lossy(text), String::from_utf8_lossy(&out));
        let read = strictly(&out).unwrap_or_else(|error| panic!("{error}: {:#?}", shown()));
        assert_eq!(
            read.bytes,
            out.len(),
            "more than one request: {:#?}",
            shown()
        );
    }
}

/// A response is refused, or what leaves of its head is read as the same.
pub(in crate::http) fn response(bytes: &[u8]) {
    let mut storage = Storage::new();
    let Ok(Some(head)) = ResponseHead::parse(bytes, false, &mut storage) else {
        return;
    };
    assert!(head.bytes <= bytes.len());
    let coding = match head.framing {
        Framing::Chunked => Coding::Chunked,
        _ => Coding::Raw,
    };
    let mut out = Vec::new();
    let line = (head.status, head.reason);
    response_head(
        &mut out,
        line,
        head.fields.passed(),
        coding,
        head.said,
        None,
    );
    let mut storage = Storage::new();
    let again = ResponseHead::parse(&out, false, &mut storage)
        .expect("what leaves is well-formed")
        .expect("what leaves is whole");
    assert_eq!((again.bytes, again.status), (out.len(), head.status));
    assert_eq!(again.said, head.said);
    if head.status != 101 && head.framing != Framing::Empty {
        assert_eq!(again.framing, head.framing);
    }
}

/// A chunked body, cut where the first byte says, is read the same as in one piece.
pub(in crate::http) fn chunks_read(bytes: &[u8]) {
    let Some((cut, text)) = bytes.split_first() else {
        return;
    };
    let read = |pieces: &[&[u8]]| {
        let mut decoder = Decoder::new(Framing::Chunked);
        let (mut data, mut taken) = (Vec::new(), 0);
        for piece in pieces {
            let mut buffer = piece.to_vec();
            let Ok(decoded) = decoder.decode(&mut buffer) else {
                return None;
            };
            assert!(decoded.data <= decoded.consumed && decoded.consumed <= piece.len());
            assert_eq!(buffer[decoded.consumed..], piece[decoded.consumed..]);
            data.extend_from_slice(&buffer[..decoded.data]);
            taken += decoded.consumed;
            if decoder.ended() {
                break;
            }
        }
        Some((data, taken, decoder.ended(), decoder.trailers().to_vec()))
    };
    let at = usize::from(*cut).min(text.len());
    assert_eq!(read(&[text]), read(&[&text[..at], &text[at..]]));
}
