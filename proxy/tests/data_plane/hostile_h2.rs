//! HTTP/2 clients that mean harm: what each can make the proxy do or hold has an end, and others are served meanwhile.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::AsyncWriteExt;

use crate::support::frames::*;
use crate::support::{Backend, Http1, Mesh, at, eventually, soon};

/// One worker, so that whoever is served is served beside the attack.
async fn web(backend: &Backend) -> (Mesh, SocketAddr) {
    let mut mesh = Mesh::with(|options| options.workers = 1);
    // On a loaded machine a connect takes its time, and no request is to be sent twice.
    let spec = "timeouts: {connect: 20s}, retries: {attempts: 0}";
    let web = mesh.service("shop/web", "protocol: http", spec);
    mesh.endpoints("shop/web", vec![at("one", backend.address)]);
    (mesh, web)
}

async fn others_are_served(web: SocketAddr) {
    let mut other = Http1::connect(web).await;
    for _ in 0..3 {
        assert_eq!(other.get("/").await.body, "one");
    }
}

/// Bytes, many times more than the sockets between the client and the proxy hold.
const FLOOD: usize = 128 * 1024 * 1024;

/// What the connection ended with.
async fn end(raw: &mut Raw) -> Option<u32> {
    raw.until(GOAWAY).await.map(|frame| frame.code())
}

#[tokio::test]
async fn a_rapid_reset_ends_the_connection() {
    let backend = Backend::http1("one").await;
    let (mesh, web) = web(&backend).await;
    let mut raw = Raw::connect(web).await;
    let head = block(&fields(&[(b":path", Some(b"/hang"))]));
    let mut attack = Vec::new();
    for n in 0..20_000u32 {
        let stream = 2 * n + 1;
        attack.extend(frame(HEADERS, END_STREAM | END_HEADERS, stream, &head));
        attack.extend(frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]));
    }
    raw.bytes(&attack).await;
    assert!(matches!(
        end(&mut raw).await,
        None | Some(ENHANCE_YOUR_CALM)
    ));
    others_are_served(web).await;
    // Far fewer requests began than were sent, and those that did are over.
    assert!(backend.requests() < 2_000, "{}", backend.requests());
    eventually("nothing in flight", || mesh.in_flight("shop/web", 0) == 0).await;
}

#[tokio::test]
async fn errors_that_make_us_reset_streams_end_the_connection() {
    let backend = Backend::http1("one").await;
    let (_mesh, web) = web(&backend).await;
    let raw = Raw::connect(web).await;
    let head = block(&fields(&[(b":path", None)]));
    let mut attack = Vec::new();
    for n in 0..20_000u32 {
        attack.extend(frame(HEADERS, END_STREAM | END_HEADERS, 2 * n + 1, &head));
    }
    // Read meanwhile: the resets come back.
    let (mut from, mut to) = raw.stream.into_split();
    let reading = async {
        // A reset of the connection is an end too.
        let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
    };
    let writing = async {
        let _ = to.write_all(&attack).await;
    };
    soon("the end", async { tokio::join!(reading, writing) }).await;
    others_are_served(web).await;
    assert_eq!(backend.requests(), 3);
}

#[tokio::test]
async fn a_header_block_without_end_ends_the_connection() {
    let backend = Backend::http1("one").await;
    let (_mesh, web) = web(&backend).await;
    let head = block(&fields(&[]));
    let field = block(&[(b"x-more", &[b'x'; 1000])]);
    for (what, more) in [("large", &field[..]), ("empty", &[])] {
        let mut raw = Raw::connect(web).await;
        raw.frame(HEADERS, END_STREAM, 1, &head).await;
        let continuation = frame(CONTINUATION, 0, 1, more);
        // More than the sockets hold.
        let sent = raw.flood(&continuation, FLOOD / continuation.len()).await;
        assert!(sent < FLOOD / 2, "{what}: {sent} bytes were taken");
        assert!(
            matches!(
                end(&mut raw).await,
                None | Some(ENHANCE_YOUR_CALM | COMPRESSION_ERROR | PROTOCOL_ERROR)
            ),
            "{what}"
        );
        others_are_served(web).await;
    }
    assert_eq!(backend.requests(), 6);
}

#[tokio::test]
async fn a_small_block_that_unfolds_to_a_large_list_is_refused() {
    let backend = Backend::http1("one").await;
    let (_mesh, web) = web(&backend).await;
    let mut raw = Raw::connect(web).await;
    // 3 KiB put into the table once (RFC 7541, 6.2.1), then named by one byte each.
    let mut bomb = block(&fields(&[]));
    bomb.push(0x40);
    bomb.extend([1, b'x']);
    integer(&mut bomb, 0, 7, 3000);
    bomb.extend([b'x'; 3000]);
    bomb.extend([0x80 | 62; 8000]);
    raw.frame(HEADERS, END_STREAM | END_HEADERS, 1, &bomb).await;
    let outcome = raw.outcome(1).await;
    assert!(
        matches!(
            outcome,
            // 431 is none of the static table's.
            Outcome::Status(None) | Outcome::StreamReset(_) | Outcome::ConnectionEnded(_)
        ),
        "{outcome:?}"
    );
    assert_eq!(backend.requests(), 0);
    others_are_served(web).await;
}

#[tokio::test]
async fn streams_beyond_the_limit_are_refused() {
    let backend = Backend::http1("one").await;
    let (mesh, web) = web(&backend).await;
    let mut raw = Raw::connect(web).await;
    let head = block(&fields(&[(b":path", Some(b"/hang"))]));
    for n in 0..300u32 {
        raw.frame(HEADERS, END_STREAM | END_HEADERS, 2 * n + 1, &head)
            .await;
    }
    let mut refused = 0;
    while refused < 44 {
        let frame = raw.until(RST_STREAM).await.expect("still open");
        assert_eq!(frame.code(), REFUSED_STREAM);
        refused += 1;
    }
    eventually("the others at the endpoint", || backend.requests() == 256).await;
    assert_eq!(mesh.in_flight("shop/web", 0), 256);
    others_are_served(web).await;
    drop(raw);
    eventually("nothing in flight", || mesh.in_flight("shop/web", 0) == 0).await;
}

#[tokio::test]
async fn floods_of_what_must_be_answered_are_not_stored_up() {
    let backend = Backend::http1("one").await;
    let (_mesh, web) = web(&backend).await;
    // None of the answers is read. Together they would be many times what sockets hold.
    for (what, flood) in [
        ("pings", frame(PING, 0, 0, &[7; 8])),
        ("settings", frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0])),
    ] {
        let mut raw = Raw::connect(web).await;
        let sent = raw.flood(&flood, FLOOD / flood.len()).await;
        assert!(
            sent < FLOOD / 2,
            "{what}: {sent} bytes were taken and their answers stored"
        );
        others_are_served(web).await;
    }
}

#[tokio::test]
async fn floods_of_what_needs_no_answer_keep_nobody_waiting() {
    let backend = Backend::http1("one").await;
    let (_mesh, web) = web(&backend).await;
    let mut window = 1u32.to_be_bytes().to_vec();
    let grow = frame(WINDOW_UPDATE, 0, 0, &window);
    window[3] = 7;
    for (what, flood) in [
        ("priorities", frame(PRIORITY, 0, 3, &[0, 0, 0, 1, 9])),
        ("windows", grow),
        ("unknown frames", frame(0xbe, 0, 0, &[0; 64])),
        ("acknowledged pings", frame(PING, ACK, 0, &[7; 8])),
        ("empty data", frame(DATA, 0, 1, &[])),
    ] {
        let mut raw = Raw::connect(web).await;
        let post = fields(&[(b":method", Some(b"POST")), (b":path", Some(b"/echo"))]);
        raw.frame(HEADERS, END_HEADERS, 1, &block(&post)).await;
        let attack = async { raw.flood(&flood, 200_000).await };
        let (sent, ()) = tokio::join!(attack, others_are_served(web));
        assert!(sent > 0, "{what}");
        others_are_served(web).await;
    }
}

/// An endpoint that sends without end, and counts what was taken.
async fn endless() -> (Backend, Arc<AtomicUsize>) {
    let taken = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&taken);
    let backend = Backend::raw(move |mut stream, requests| {
        let counted = Arc::clone(&counted);
        async move {
            let mut head = [0; 4096];
            let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut head).await;
            requests.fetch_add(1, Ordering::SeqCst);
            let head = "HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n";
            let _ = stream.write_all(head.as_bytes()).await;
            while let Ok(n) = stream.write(&[b'x'; 16 * 1024]).await {
                counted.fetch_add(n, Ordering::SeqCst);
            }
        }
    })
    .await;
    (backend, taken)
}

/// Waits until a count stands still, and returns it.
async fn plateau(count: &AtomicUsize) -> usize {
    let mut last = usize::MAX;
    let mut same = 0;
    while same < 20 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = count.load(Ordering::SeqCst);
        same = if now == last { same + 1 } else { 0 };
        last = now;
    }
    last
}

#[tokio::test]
async fn a_reader_that_has_stopped_stops_the_endpoints() {
    let (backend, taken) = endless().await;
    let (mesh, web) = web(&backend).await;
    let mut raw = Raw::connect(web).await;
    // Windows as large as they can be: only the socket is full.
    raw.frame(SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff])
        .await;
    let all = ((1u32 << 31) - 1 - 65_535).to_be_bytes();
    raw.frame(WINDOW_UPDATE, 0, 0, &all).await;
    for n in 0..16u32 {
        raw.request(2 * n + 1, &fields(&[])).await;
    }
    eventually("all requests", || backend.requests() == 16).await;
    let held = plateau(&taken).await;
    // Sockets hold up to 6 MiB on either side of the proxy, and the kernel's limits differ; the proxy itself holds less
    // than 1 MiB of each stream.
    assert!(held < 16 * 14 * 1024 * 1024, "{held} bytes were taken");
    assert_eq!(mesh.in_flight("shop/web", 0), 16);
    // And they go on as soon as it reads, once what is held on the way is gone.
    let more = async {
        while taken.load(Ordering::SeqCst) == held {
            raw.until(DATA).await.unwrap();
        }
    };
    soon("more from the endpoints", more).await;
    drop(raw);
    eventually("nothing in flight", || mesh.in_flight("shop/web", 0) == 0).await;
}

#[tokio::test]
async fn a_client_without_a_window_gets_nothing_and_holds_nothing() {
    let (backend, taken) = endless().await;
    let (mesh, web) = web(&backend).await;
    let mut raw = Raw::connect(web).await;
    raw.frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]).await;
    for n in 0..100u32 {
        raw.request(2 * n + 1, &fields(&[])).await;
    }
    eventually("all requests", || backend.requests() == 100).await;
    let held = plateau(&taken).await;
    assert!(held < 100 * 7 * 1024 * 1024, "{held} bytes were taken");
    for _ in 0..100 {
        assert_eq!(raw.until(HEADERS).await.unwrap().payload[0] & 0x80, 0x80);
    }
    drop(raw);
    eventually("nothing in flight", || mesh.in_flight("shop/web", 0) == 0).await;
}
