//! Whatever the reader accepts, what leaves is one request for a reader of the strictest kind, and the same.

use proptest::prelude::*;

use super::super::check::{self, passed_on, strictly};
use super::super::{Coding, encode, last_chunk};

/// Requests that are nearly right: pieces that matter, put together at random.
fn nearly() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => prop::sample::select(vec![
            "GET / HTTP/1.1\r\n", "POST /a?b HTTP/1.1\r\n", "POST http://h/x HTTP/1.1\r\n", "OPTIONS * HTTP/1.1\r\n",
            "GET / HTTP/1.0\r\n", "Host: h\r\n", "host: a\r\n", "Content-Length: 3\r\n", "content-length: 0\r\n",
            "Transfer-Encoding: chunked\r\n", "transfer-encoding: CHUNKED\r\n", "Connection: close, x-a\r\n",
            "X-A: 1\r\n", "Via: 1.0 x\r\n", "Forwarded: for=x\r\n", "X-Forwarded-For: 1\r\n", "Expect: 100-continue\r\n",
            "TE: trailers\r\n", "Upgrade: websocket\r\n", "Cookie: a=b\r\n", "Trailer: x\r\n", "\r\n", "abc",
            "3\r\nabc\r\n", "0\r\n\r\n", "0\r\nX-Sum: 1\r\nContent-Length: 9\r\n\r\n", "5;x=y\r\nhello\r\n", "\n", "\r", " ",
            "\t", ":", "\0", ",", ";",
        ]).prop_map(|s| s.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 1..4),
    ];
    prop::collection::vec(piece, 1..14).prop_map(|pieces| pieces.concat())
}

/// What the fuzz targets begin with, and what they once found.
#[test]
fn the_seeds_of_the_fuzz_targets_hold() {
    let seeds = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds");
    let each = |target: &str, holds: fn(&[u8])| {
        let seeds: Vec<_> = std::fs::read_dir(seeds.join(target)).unwrap().collect();
        assert!(!seeds.is_empty());
        for seed in seeds {
            holds(&std::fs::read(seed.unwrap().path()).unwrap());
        }
    };
    each("http_request", check::request);
    each("http_response", check::response);
    each("http_chunks", check::chunks_read);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn what_leaves_is_one_request(text in nearly()) {
        check::request(&text);
        check::response(&text);
        check::chunks_read(&text);
    }

    #[test]
    fn what_leaves_has_the_same_body(
        body in prop::collection::vec(any::<u8>(), 0..300),
        chunked in prop::bool::ANY,
    ) {
        let mut text = b"POST /p HTTP/1.1\r\nHost: h\r\n".to_vec();
        if chunked {
            text.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
            encode(&mut text, Coding::Chunked, &body);
            last_chunk(&mut text, b"");
        } else {
            text.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
            text.extend_from_slice(&body);
        }
        let all = text.len();
        text.extend_from_slice(b"GET /next HTTP/1.1\r\n");
        let (out, taken) = passed_on(&text).unwrap();
        prop_assert_eq!(taken, all);
        prop_assert_eq!(strictly(&out).unwrap().body, body);
    }
}
