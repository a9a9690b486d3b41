//! Bodies pass as they come, in constant memory, and no faster than their reader takes them.

use std::sync::Arc;

use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

use crate::engine::{head, mesh_of};
use crate::support::client::request;
use crate::support::{Backend, Http1, http2, soon};

/// Sends the next event each time that it is told to. `chunked`, or ended by the connection's end.
async fn events(chunked: bool) -> (Backend, Arc<Notify>) {
    let next = Arc::new(Notify::new());
    let told = Arc::clone(&next);
    let backend = Backend::raw(move |mut stream, _| {
        let told = Arc::clone(&told);
        async move {
            head(&mut stream).await;
            let framing = if chunked {
                "transfer-encoding: chunked"
            } else {
                "connection: close"
            };
            let answer =
                format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n{framing}\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
            loop {
                told.notified().await;
                let event = b"data: x\n\n";
                let sent = if chunked {
                    let chunk = [b"9\r\n", &event[..], b"\r\n"].concat();
                    stream.write_all(&chunk).await
                } else {
                    stream.write_all(event).await
                };
                if sent.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    (backend, next)
}

#[tokio::test]
async fn each_event_arrives_before_the_next_is_sent() {
    for chunked in [true, false] {
        let (backend, next) = events(chunked).await;
        let (_mesh, web) = mesh_of(&backend).await;
        let mut client = Http1::connect(web).await;
        let ask = "GET /events HTTP/1.1\r\nhost: web\r\naccept: text/event-stream\r\n\r\n";
        client.send(ask).await.unwrap();
        // The head comes before there is any event.
        let answer = soon("the head", client.head()).await.unwrap();
        assert_eq!(answer.header("content-type"), Some("text/event-stream"));
        for event in 1..=3 {
            next.notify_one();
            let arrived = async {
                while String::from_utf8_lossy(&client.buffer)
                    .matches("data: x\n\n")
                    .count()
                    < event
                {
                    assert!(client.stream.read_buf(&mut client.buffer).await.unwrap() > 0);
                }
            };
            soon("the event", arrived).await;
        }
    }
}

#[tokio::test]
async fn each_event_arrives_before_the_next_is_sent_over_http2() {
    let (backend, next) = events(true).await;
    let (_mesh, web) = mesh_of(&backend).await;
    let mut client = http2(web).await;
    let response = client.send_request(request("GET", "/events", ""));
    let mut body = soon("the head", response).await.unwrap().into_body();
    for _ in 0..3 {
        next.notify_one();
        let frame = soon("the event", body.frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "data: x\n\n");
    }
}

#[tokio::test]
async fn bulk_passes_both_ways_at_once_and_whole() {
    const TOTAL: u64 = 96 << 20;
    let backend = Backend::raw(|mut stream, _| async move {
        head(&mut stream).await;
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {TOTAL}\r\n\r\n");
        stream.write_all(answer.as_bytes()).await.unwrap();
        let (mut read, mut write) = stream.split();
        tokio::io::copy(&mut read, &mut write).await.unwrap();
    })
    .await;
    let (_mesh, web) = mesh_of(&backend).await;
    let mut client = Http1::connect(web).await;
    let ask = format!(
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {TOTAL}\r\nConnection: close\r\n\r\n"
    );
    client.send(&ask).await.unwrap();
    soon("a head", client.head()).await.unwrap();
    let early = std::mem::take(&mut client.buffer);
    let (mut read, mut write) = client.stream.into_split();
    // Bytes that say where they are: one moved, dropped or doubled changes what follows.
    let at = |position: u64| (position.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
    let sending = tokio::spawn(async move {
        let mut position = 0;
        while position < TOTAL {
            let n = (256 << 10).min(TOTAL - position);
            let piece: Vec<u8> = (position..position + n).map(at).collect();
            write.write_all(&piece).await.unwrap();
            position += n;
        }
        write
    });
    let mut position = 0;
    let mut piece = early.to_vec();
    while position < TOTAL {
        if piece.is_empty() {
            piece = vec![0; 256 << 10];
            let n = soon("more", read.read(&mut piece)).await.unwrap();
            assert!(n > 0, "it ended after {position} bytes");
            piece.truncate(n);
        }
        for byte in piece.drain(..) {
            assert_eq!(byte, at(position), "at {position}");
            position += 1;
        }
    }
    drop(sending.await.unwrap());
}

#[tokio::test]
async fn a_slow_endpoint_holds_its_client_back() {
    const TOTAL: usize = 64 << 20;
    let go = Arc::new(Notify::new());
    let gone = Arc::clone(&go);
    let backend = Backend::raw(move |mut stream, _| {
        let go = Arc::clone(&gone);
        async move {
            head(&mut stream).await;
            go.notified().await;
            let mut left = TOTAL;
            let mut piece = vec![0; 1 << 20];
            while left > 0 {
                left -= stream.read(&mut piece).await.unwrap();
            }
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
            stream.write_all(answer).await.unwrap();
        }
    })
    .await;
    let (_mesh, web) = mesh_of(&backend).await;
    let mut client = Http1::connect(web).await;
    let ask = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {TOTAL}\r\n\r\n");
    client.send(&ask).await.unwrap();
    let piece = vec![7; 64 << 10];
    let mut sent = 0;
    // Until nothing goes for a while: the pipe is full.
    while let Ok(n) = tokio::time::timeout(
        std::time::Duration::from_millis(500),
        client.stream.write(&piece),
    )
    .await
    {
        sent += n.unwrap();
        assert!(sent < 24 << 20, "{sent} bytes were taken for nobody");
    }
    go.notify_one();
    while sent < TOTAL {
        let n = piece.len().min(TOTAL - sent);
        let written = soon("room", client.stream.write(&piece[..n])).await;
        sent += written.unwrap();
    }
    assert_eq!(soon("the answer", client.reply()).await.unwrap().body, "ok");
}
