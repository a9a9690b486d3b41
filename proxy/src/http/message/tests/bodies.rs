//! Chunked bodies, in every way that a network may cut them.

use proptest::prelude::*;

use super::super::{BodyError, Coding, Decoder, Framing, encode, last_chunk};

/// The data, what was left over, and the trailers.
type Read = (Vec<u8>, Vec<u8>, Vec<u8>);

/// Reads `text` in pieces that end at `cuts`.
fn read(text: &[u8], cuts: &[usize]) -> Result<Read, BodyError> {
    let mut decoder = Decoder::new(Framing::Chunked);
    let mut data = Vec::new();
    let mut from = 0;
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (text.len() + 1)).collect();
    ends.push(text.len());
    ends.sort_unstable();
    for end in ends {
        let mut piece = text[from..end].to_vec();
        let decoded = decoder.decode(&mut piece)?;
        data.extend_from_slice(&piece[..decoded.data]);
        from += decoded.consumed;
        if decoder.ended() {
            break;
        }
        assert_eq!(from, end, "a body that goes on takes everything");
    }
    assert!(decoder.ended(), "not whole");
    Ok((data, text[from..].to_vec(), decoder.trailers().to_vec()))
}

proptest! {
    #[test]
    fn chunks_are_read_wherever_they_are_cut(
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..200), 0..8),
        cuts in prop::collection::vec(any::<usize>(), 0..12),
        trailers in prop::bool::ANY,
    ) {
        let mut text = Vec::new();
        for chunk in &chunks {
            encode(&mut text, Coding::Chunked, chunk);
        }
        let lines: &[u8] = if trailers { b"x-sum: 1\r\n\r\n" } else { b"\r\n" };
        last_chunk(&mut text, lines);
        text.extend_from_slice(b"GET /next");
        let (data, rest, read_trailers) = read(&text, &cuts).unwrap();
        prop_assert_eq!(data, chunks.concat());
        prop_assert_eq!(rest, b"GET /next");
        prop_assert_eq!(&read_trailers, lines);
    }

    #[test]
    fn nothing_makes_the_reader_panic_or_read_beyond_its_buffer(
        text in prop::collection::vec(prop_oneof![
            Just(b'0'), Just(b'1'), Just(b'f'), Just(b'\r'), Just(b'\n'), Just(b';'), Just(b' '), any::<u8>()
        ], 0..64),
    ) {
        let mut decoder = Decoder::new(Framing::Chunked);
        let mut buffer = text.clone();
        if let Ok(decoded) = decoder.decode(&mut buffer) {
            prop_assert!(decoded.data <= decoded.consumed && decoded.consumed <= text.len());
            prop_assert_eq!(&buffer[decoded.consumed..], &text[decoded.consumed..]);
        }
    }
}

#[test]
fn sizes_and_ends_are_exact() {
    for (what, text) in [
        ("no size", "\r\nabc\r\n"),
        ("a size that is none", "z\r\nabc\r\n"),
        ("a signed size", "+3\r\nabc\r\n"),
        ("a negative size", "-3\r\nabc\r\n"),
        ("a prefix", "0x3\r\nabc\r\n"),
        ("an underscore", "1_0\r\nabc\r\n"),
        ("seventeen digits", "00000000000000003\r\nabc\r\n"),
        ("an overflow", "ffffffffffffffff\r\nabc\r\n"),
        ("LF alone behind the size", "3\nabc\r\n"),
        ("CR without LF behind the size", "3\rabc\r\n"),
        ("LF alone in an extension", "3;a\nabc\r\n"),
        ("NUL in an extension", "3;a\0\r\nabc\r\n"),
        ("a chunk longer than it says", "3\r\nabcd\r\n"),
        ("a chunk shorter than it says", "5\r\nabc\r\n0\r\n\r\n"),
        ("LF alone behind the data", "3\r\nabc\n0\r\n\r\n"),
        ("malformed trailers", "0\r\nnonsense\r\n\r\n"),
        ("a folded trailer", "0\r\nA: b\r\n c\r\n\r\n"),
        ("LF alone instead of trailers", "0\r\n\nGET"),
    ] {
        let mut decoder = Decoder::new(Framing::Chunked);
        let mut buffer = text.as_bytes().to_vec();
        let result = decoder.decode(&mut buffer);
        assert!(result.is_err(), "{what}: {result:?}");
    }
}

#[test]
fn extensions_are_dropped_and_bounded() {
    let (data, ..) = read(b"3;name=\"v\"\r\nabc\r\n0 ;x\r\n\r\n", &[]).unwrap();
    assert_eq!(data, b"abc");
    let mut decoder = Decoder::new(Framing::Chunked);
    let mut error = None;
    for _ in 0..1000 {
        let mut chunk = format!("1;{}\r\na\r\n", "x".repeat(100)).into_bytes();
        error = error.or(decoder.decode(&mut chunk).err());
    }
    assert_eq!(error, Some(BodyError::Extension));
}

#[test]
fn trailers_are_bounded() {
    let mut decoder = Decoder::new(Framing::Chunked);
    let mut text = format!("0\r\nx: {}", "y".repeat(20_000)).into_bytes();
    assert_eq!(decoder.decode(&mut text), Err(BodyError::Trailers));
}

#[test]
fn a_length_is_counted_down_and_what_follows_stays() {
    let mut decoder = Decoder::new(Framing::Length(5));
    let mut buffer = *b"abc";
    assert_eq!(decoder.decode(&mut buffer).unwrap().data, 3);
    let mut buffer = *b"deGET";
    let decoded = decoder.decode(&mut buffer).unwrap();
    assert_eq!((decoded.data, decoded.consumed), (2, 2));
    assert!(decoder.ended());
    assert_eq!(&buffer, b"deGET");
}
