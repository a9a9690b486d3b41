//! Frames that RFC 9113 calls errors of the connection or of a stream, and those that it has ignored.

use crate::h2_rules::web;
use crate::support::frames::*;

/// FRAME_SIZE_ERROR (4.2), which the library calls PROTOCOL_ERROR now and then.
const WRONG_SIZE: &[u32] = &[FRAME_SIZE_ERROR, PROTOCOL_ERROR];

/// COMPRESSION_ERROR (4.3), which the library calls PROTOCOL_ERROR.
const UNREADABLE: &[u32] = &[COMPRESSION_ERROR, PROTOCOL_ERROR];

#[tokio::test]
async fn errors_of_the_connection_end_it_with_their_code() {
    let good = block(&fields(&[]));
    let settings = |id: u16, value: u32| {
        let mut payload = id.to_be_bytes().to_vec();
        payload.extend(value.to_be_bytes());
        frame(SETTINGS, 0, 0, &payload)
    };
    let request = |stream| frame(HEADERS, END_STREAM | END_HEADERS, stream, &good);
    let begun = |stream| frame(HEADERS, END_HEADERS, stream, &good);
    let increment = |n: u32| n.to_be_bytes();
    let cases: Vec<(&str, Vec<u8>, &[u32])> = vec![
        (
            "DATA on no stream (6.1)",
            frame(DATA, 0, 0, b"x"),
            &[PROTOCOL_ERROR],
        ),
        (
            "DATA on an idle stream (5.1)",
            frame(DATA, 0, 1, b"x"),
            &[PROTOCOL_ERROR],
        ),
        (
            "padding that is longer than its frame",
            [begun(1), frame(DATA, PADDED, 1, &[9, 1])].concat(),
            &[PROTOCOL_ERROR],
        ),
        ("HEADERS on no stream (6.2)", request(0), &[PROTOCOL_ERROR]),
        (
            "a stream of the server's (5.1.1)",
            request(2),
            &[PROTOCOL_ERROR],
        ),
        (
            "a lower stream than before",
            [request(5), request(3)].concat(),
            &[PROTOCOL_ERROR, STREAM_CLOSED],
        ),
        (
            "RST_STREAM of an idle stream (6.4)",
            frame(RST_STREAM, 0, 1, &[0; 4]),
            &[PROTOCOL_ERROR],
        ),
        (
            "RST_STREAM of no stream",
            frame(RST_STREAM, 0, 0, &[0; 4]),
            &[PROTOCOL_ERROR],
        ),
        (
            "RST_STREAM of another length",
            [begun(1), frame(RST_STREAM, 0, 1, &[0; 3])].concat(),
            WRONG_SIZE,
        ),
        (
            "SETTINGS on a stream (6.5)",
            frame(SETTINGS, 0, 1, &[]),
            &[PROTOCOL_ERROR],
        ),
        (
            "an acknowledgement that says more",
            frame(SETTINGS, ACK, 0, &[0; 6]),
            WRONG_SIZE,
        ),
        ("half a setting", frame(SETTINGS, 0, 0, &[0; 5]), WRONG_SIZE),
        (
            "ENABLE_PUSH of 2 (6.5.2)",
            settings(2, 2),
            &[PROTOCOL_ERROR],
        ),
        (
            "a window of 2 GiB",
            settings(4, 1 << 31),
            // The library's code; 6.5.2 says the former.
            &[FLOW_CONTROL_ERROR, PROTOCOL_ERROR],
        ),
        (
            "frames of 16 KiB less one",
            settings(5, (1 << 14) - 1),
            &[PROTOCOL_ERROR],
        ),
        ("frames of 16 MiB", settings(5, 1 << 24), &[PROTOCOL_ERROR]),
        (
            "PUSH_PROMISE (8.4)",
            frame(PUSH_PROMISE, END_HEADERS, 1, &[0; 8]),
            &[PROTOCOL_ERROR],
        ),
        (
            "PING on a stream (6.7)",
            frame(PING, 0, 1, &[0; 8]),
            &[PROTOCOL_ERROR],
        ),
        (
            "PING of another length",
            frame(PING, 0, 0, &[0; 7]),
            WRONG_SIZE,
        ),
        (
            "GOAWAY on a stream (6.8)",
            frame(GOAWAY, 0, 1, &[0; 8]),
            &[PROTOCOL_ERROR],
        ),
        (
            "an increment of none (6.9)",
            frame(WINDOW_UPDATE, 0, 0, &[0; 4]),
            &[PROTOCOL_ERROR],
        ),
        (
            "an increment of half",
            frame(WINDOW_UPDATE, 0, 0, &[0; 3]),
            WRONG_SIZE,
        ),
        (
            "a window of more than 2 GiB (6.9.1)",
            frame(WINDOW_UPDATE, 0, 0, &increment((1 << 31) - 1)),
            &[FLOW_CONTROL_ERROR],
        ),
        (
            "a window of an idle stream",
            frame(WINDOW_UPDATE, 0, 1, &increment(1)),
            &[PROTOCOL_ERROR],
        ),
        (
            "CONTINUATION of nothing (6.10)",
            frame(CONTINUATION, END_HEADERS, 1, &good),
            &[PROTOCOL_ERROR],
        ),
        (
            "another frame within a header block (4.3)",
            [frame(HEADERS, 0, 1, &good), frame(PING, 0, 0, &[0; 8])].concat(),
            &[PROTOCOL_ERROR],
        ),
        (
            "CONTINUATION of another stream",
            [
                frame(HEADERS, 0, 1, &good),
                frame(CONTINUATION, END_HEADERS, 3, &[]),
            ]
            .concat(),
            &[PROTOCOL_ERROR],
        ),
        (
            "a header block that can't be read (4.3)",
            frame(HEADERS, END_STREAM | END_HEADERS, 1, &[0xff; 16]),
            UNREADABLE,
        ),
        (
            "an index beyond the table (RFC 7541, 2.3.3)",
            frame(HEADERS, END_STREAM | END_HEADERS, 1, &[0xff, 0x00]),
            UNREADABLE,
        ),
        (
            "a frame of more than 16 KiB (4.2)",
            frame(DATA, 0, 1, &[0; 16_385]),
            WRONG_SIZE,
        ),
    ];
    let (_mesh, web, _backend) = web("http1").await;
    for (what, bytes, codes) in cases {
        let mut raw = Raw::connect(web).await;
        raw.bytes(&bytes).await;
        let ended = loop {
            match raw.next().await {
                Some(frame) if frame.kind == GOAWAY => break Some(frame.code()),
                Some(_) => {}
                None => break None,
            }
        };
        // Some ends come without words (5.4.1 allows it).
        assert!(
            ended.is_none_or(|code| codes.contains(&code)),
            "{what}: {ended:?}, not {codes:?}"
        );
        let said_more = raw.next().await;
        assert!(said_more.is_none(), "{what}: goes on with {said_more:?}");
    }
}

#[tokio::test]
async fn errors_of_a_stream_leave_the_others_alone() {
    let (_mesh, web, _backend) = web("http1").await;
    let hang = block(&fields(&[
        (b":method", Some(b"POST")),
        (b":path", Some(b"/hang")),
    ]));
    for (what, bytes, code) in [
        (
            "an increment of none on a stream (6.9)",
            frame(WINDOW_UPDATE, 0, 1, &[0; 4]),
            PROTOCOL_ERROR,
        ),
        (
            "a stream's window of more than 2 GiB (6.9.1)",
            frame(WINDOW_UPDATE, 0, 1, &((1u32 << 31) - 1).to_be_bytes()),
            FLOW_CONTROL_ERROR,
        ),
        (
            "DATA behind its end (5.1)",
            [frame(DATA, END_STREAM, 1, b"x"), frame(DATA, 0, 1, b"x")].concat(),
            STREAM_CLOSED,
        ),
    ] {
        let mut raw = Raw::connect(web).await;
        raw.frame(HEADERS, END_HEADERS, 1, &hang).await;
        raw.bytes(&bytes).await;
        match raw.outcome(1).await {
            Outcome::StreamReset(found) => {
                assert_eq!(found, code, "{what}");
                raw.request(3, &fields(&[])).await;
                assert_eq!(raw.outcome(3).await, Outcome::Status(Some(200)), "{what}");
            }
            // Allowed (5.4.2). The library calls what comes behind a stream's end PROTOCOL_ERROR then.
            Outcome::ConnectionEnded(Some(found)) => {
                let known = code == STREAM_CLOSED && found == PROTOCOL_ERROR;
                assert!(found == code || known, "{what}: {found}");
            }
            other => panic!("{what}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn what_is_unknown_or_of_no_concern_is_ignored() {
    let (_mesh, web, _backend) = web("http1").await;
    let mut raw = Raw::connect(web).await;
    // 4.1, 6.5.2, 5.3.2, and a GOAWAY of the client, which only says that it accepts no pushes any more.
    raw.frame(0xbe, 0xff, 0, b"anything").await;
    raw.frame(SETTINGS, 0, 0, &[0xf0, 0xf0, 1, 2, 3, 4]).await;
    raw.frame(PRIORITY, 0, 9, &[0, 0, 0, 1, 7]).await;
    raw.frame(PING, 0, 0, b"in order").await;
    let pong = raw.until(PING).await.unwrap();
    assert_eq!((pong.flags, &pong.payload[..]), (ACK, &b"in order"[..]));
    // Padding, priority and a split block are a request like any other.
    let good = block(&fields(&[]));
    let (first, rest) = good.split_at(7);
    let mut padded = vec![3];
    padded.extend([0, 0, 0, 0, 16]);
    padded.extend(first);
    padded.extend([0; 3]);
    raw.frame(HEADERS, END_STREAM | PADDED | 0x20, 1, &padded)
        .await;
    raw.frame(CONTINUATION, 0, 1, &[]).await;
    raw.frame(CONTINUATION, END_HEADERS, 1, rest).await;
    assert_eq!(raw.outcome(1).await, Outcome::Status(Some(200)));
}
