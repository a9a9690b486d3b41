//! What gRPC says in HTTP/2's header fields (gRPC over HTTP2, `doc/PROTOCOL-HTTP2.md` of the grpc repository).

use std::fmt::Write as _;
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};

pub(super) const STATUS: HeaderName = HeaderName::from_static("grpc-status");
pub(super) const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
pub(super) const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// `application/grpc`, alone or with a format (`+proto`).
pub(super) fn is_content_type(kind: &[u8]) -> bool {
    const KIND: &[u8] = b"application/grpc";
    kind.strip_prefix(KIND)
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';' | b' ')))
}

/// What an answer of ours is to a call: INTERNAL, UNIMPLEMENTED, DEADLINE_EXCEEDED, else UNAVAILABLE, which invites the
/// client to call again.
pub(super) fn status(status: StatusCode) -> HeaderValue {
    HeaderValue::from_static(match status {
        StatusCode::BAD_REQUEST => "13",
        StatusCode::NOT_IMPLEMENTED => "12",
        StatusCode::GATEWAY_TIMEOUT => "4",
        _ => "14",
    })
}

/// How long the client waits: up to eight digits and a unit. `None` where it says something else.
pub(super) fn timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if !(1..=8).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits
        .iter()
        .fold(0, |n, digit| n * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

/// As `grpc-message` wants it: visible ASCII but `%` as it is, all else as `%XX` of its UTF-8.
pub(super) fn percent_encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if matches!(byte, b' '..=b'~') && byte != b'%' {
            out.push(char::from(byte));
        } else {
            // Writing to a string can't fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_percent_encoded() {
        assert_eq!(percent_encoded("100% of\nfünf"), "100%25 of%0Af%C3%BCnf");
    }

    #[test]
    fn timeouts_are_numbers_with_a_unit() {
        for (text, expected) in [
            ("1S", Some(Duration::from_secs(1))),
            ("250m", Some(Duration::from_millis(250))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("7u", Some(Duration::from_micros(7))),
            ("7n", Some(Duration::from_nanos(7))),
            ("2M", Some(Duration::from_secs(120))),
            ("", None),
            ("S", None),
            ("123456789S", None),
            ("-1S", None),
            ("1s", None),
            ("1.5S", None),
        ] {
            assert_eq!(timeout(text.as_bytes()), expected, "{text:?}");
        }
    }

    #[test]
    fn a_content_type_may_name_a_format_but_not_another_protocol() {
        for kind in [
            "application/grpc",
            "application/grpc+proto",
            "application/grpc;x=1",
        ] {
            assert!(is_content_type(kind.as_bytes()), "{kind}");
        }
        // gRPC-Web carries its status in the body.
        for kind in ["application/grpc-web", "application/json", ""] {
            assert!(!is_content_type(kind.as_bytes()), "{kind}");
        }
    }
}
