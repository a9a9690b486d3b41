//! `heddle whoami`, from outside: what the other tests rely on when they put it behind the proxy.

mod support;

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use support::http::{get, post, request};
use support::wait::{eventually, eventually_async};
use support::whoami::Whoami;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{Frame, coding::CloseCode};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

const SOON: Duration = Duration::from_secs(20);

/// A keep-alive connection of HTTP/1.1, driven by hand.
struct KeepAlive(TcpStream);

impl KeepAlive {
    fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        Self(stream)
    }

    fn send(&mut self, method: &str, path: &str) {
        write!(self.0, "{method} {path} HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
    }

    /// Reads one response of a known length; `None` when the connection ends first.
    fn receive(&mut self) -> Option<String> {
        let mut response = String::new();
        let mut byte = [0];
        let whole = |response: &str| {
            let (head, body) = response.split_once("\r\n\r\n")?;
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "))?;
            (body.len() >= length.parse().unwrap()).then_some(())
        };
        while whole(&response).is_none() {
            match self.0.read(&mut byte) {
                Ok(1) => response.push(byte[0].into()),
                _ => return None,
            }
        }
        Some(response)
    }

    /// How the connection ended: `Ok` by FIN, `Err` by RST.
    fn end(mut self) -> std::io::Result<()> {
        let mut rest = Vec::new();
        self.0.read_to_end(&mut rest)?;
        assert_eq!(rest, b"", "data instead of the end");
        Ok(())
    }
}

async fn h2(address: SocketAddr) -> http2::SendRequest<Full<Bytes>> {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}

fn grpc(path: &str, messages: &'static [u8]) -> http::Request<Full<Bytes>> {
    http::Request::post(format!("http://backend{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(Bytes::from_static(messages)))
        .unwrap()
}

/// The processor time that a process has used.
fn used(pid: i32) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name, in brackets, may hold spaces; user and system time are the 14th and 15th of all, in hundredths.
    let fields = text.rsplit(')').next().unwrap().split_whitespace();
    let times = fields.skip(11).take(2).map(|n| n.parse::<u64>().unwrap());
    Duration::from_millis(times.sum::<u64>() * 10)
}

#[test]
fn it_serves_after_milliseconds_of_work() {
    let backend = Whoami::start("quick", &[]);
    assert_eq!(get(backend.http, "/id").unwrap().body, "quick\n");
    // What others do on the machine doesn't count. It is a few milliseconds; this bound is for an unoptimised build.
    let used = used(backend.pid());
    assert!(used < Duration::from_millis(500), "{used:?}");
}

#[test]
fn it_says_who_is_answering_and_what_the_request_looks_like() {
    let backend = Whoami::start("web-1", &[]);
    let answer = request(
        "PUT",
        backend.http,
        "/some/path?q=1",
        &[("X-Tag", "a b")],
        "body",
    )
    .unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("x-whoami"), Some("web-1"));
    for line in [
        "Name: web-1",
        "PUT /some/path?q=1 HTTP/1.1",
        "x-tag: a b",
        "content-length: 4",
    ] {
        assert!(
            answer.body.lines().any(|found| found == line),
            "{line} is missing in {}",
            answer.body
        );
    }
    assert!(
        answer
            .body
            .contains(&format!("LocalAddr: {}\n", backend.http)),
        "{}",
        answer.body
    );
    let headers = request(
        "GET",
        backend.http,
        "/headers",
        &[("x-a", "1"), ("x-a", "2")],
        "",
    )
    .unwrap();
    let headers: serde_json::Value = serde_json::from_str(&headers.body).unwrap();
    assert_eq!(headers["x-a"], serde_json::json!(["1", "2"]));
}

#[test]
fn its_paths_do_as_they_say() {
    let backend = Whoami::start("web", &[]);
    assert_eq!(get(backend.http, "/status/418").unwrap().status, 418);
    assert_eq!(get(backend.http, "/status/204").unwrap().body, "");
    assert_eq!(get(backend.http, "/status/99").unwrap().status, 400);
    let bytes = get(backend.http, "/bytes/200000").unwrap();
    assert_eq!(bytes.header("content-length"), Some("200000"));
    assert!(
        bytes
            .body
            .bytes()
            .enumerate()
            .all(|(i, byte)| byte == b'a' + (i % 26) as u8)
    );
    assert!(
        get(backend.http, "/bytes/200000?cut=100000").is_err(),
        "a cut body looks whole"
    );
    assert_eq!(post(backend.http, "/echo", "ping").unwrap().body, "ping");
    let slow = get(backend.http, "/slow-body?chunks=2&ms=30").unwrap();
    assert_eq!(slow.body, "1 of 2 from web\n2 of 2 from web\n");
    let events = get(backend.http, "/sse?count=2&ms=1").unwrap();
    assert_eq!(events.header("content-type"), Some("text/event-stream"));
    assert!(
        events.body.ends_with("id: 2\nevent: tick\ndata: web\n\n"),
        "{}",
        events.body
    );
    let began = Instant::now();
    assert_eq!(get(backend.http, "/delay?ms=50").unwrap().body, "web\n");
    assert!(began.elapsed() >= Duration::from_millis(50));
    assert_eq!(
        get(backend.http, "/delay?ms=soon").unwrap().body,
        "ms=soon: expected a whole number\n"
    );
    assert_eq!(get(backend.http, "/count?path=/delay").unwrap().body, "2\n");
}

#[test]
fn executions_are_counted_however_they_are_answered() {
    let backend = Whoami::start("web", &[]);
    let executed = || get(backend.http, "/executed?id=a").unwrap().body;
    assert_eq!(executed(), "0\n");
    assert_eq!(
        post(backend.http, "/execute?id=a", "x").unwrap().body,
        "1\n"
    );
    assert_eq!(get(backend.http, "/execute?id=a").unwrap().status, 405);

    let mut closed = KeepAlive::open(backend.http);
    closed.send("POST", "/execute?id=a&then=close");
    assert!(closed.end().is_ok());
    let mut reset = KeepAlive::open(backend.http);
    reset.send("POST", "/execute?id=a&then=reset");
    assert_eq!(
        reset.end().unwrap_err().kind(),
        std::io::ErrorKind::ConnectionReset
    );
    let mut hanging = KeepAlive::open(backend.http);
    hanging.send("POST", "/execute?id=a&then=hang");
    eventually(SOON, "all four are counted", || {
        (executed() == "4\n").then_some(()).ok_or_else(executed)
    });
    assert_eq!(
        post(backend.http, "/execute?id=a&then=dance", "")
            .unwrap()
            .status,
        400
    );
    assert_eq!(executed(), "4\n");
}

#[tokio::test]
async fn it_speaks_http2_on_the_same_port() {
    let backend = Whoami::start("web", &[]);
    let mut client = h2(backend.http).await;
    let body = Full::new(Bytes::from(vec![b'x'; 300_000]));
    let request = http::Request::post("http://shop.example/echo")
        .body(body)
        .unwrap();
    let response = client.send_request(request).await.unwrap();
    assert_eq!(response.version(), http::Version::HTTP_2);
    assert_eq!(response.headers()["x-whoami"], "web");
    assert_eq!(
        response
            .into_body()
            .collect()
            .await
            .unwrap()
            .to_bytes()
            .len(),
        300_000
    );

    let hang_up = http::Request::post("http://shop.example/execute?id=h2&then=close");
    let error = client
        .send_request(hang_up.body(Full::default()).unwrap())
        .await
        .unwrap_err();
    assert!(
        !error.is_closed(),
        "a stream that fails must not take its connection along: {error:?}"
    );
    let request = http::Request::get("http://shop.example/")
        .body(Full::default())
        .unwrap();
    let response = client.send_request(request).await.unwrap();
    let text = response.into_body().collect().await.unwrap().to_bytes();
    assert!(
        std::str::from_utf8(&text)
            .unwrap()
            .contains("GET / HTTP/2.0\nhost: shop.example\n"),
        "{text:?}"
    );
}

#[tokio::test]
async fn grpc_health_follows_the_health_that_was_set() {
    const EMPTY: &[u8] = b"\0\0\0\0\0";
    let backend = Whoami::start("web", &[]);
    let mut client = h2(backend.http).await;
    let check = |client: &mut http2::SendRequest<_>, message| {
        let response = client.send_request(grpc("/grpc.health.v1.Health/Check", message));
        async {
            let response = response.await.unwrap();
            assert_eq!(response.status(), 200);
            assert_eq!(response.headers()["content-type"], "application/grpc");
            let head = response.headers().get("grpc-status").cloned();
            let body = response.into_body().collect().await.unwrap();
            let status = body
                .trailers()
                .and_then(|trailers| trailers.get("grpc-status").cloned())
                .or(head);
            (
                body.to_bytes(),
                status.unwrap().to_str().unwrap().to_owned(),
            )
        }
    };
    let serving = (Bytes::from_static(b"\0\0\0\0\x02\x08\x01"), "0".to_owned());
    let not_serving = (Bytes::from_static(b"\0\0\0\0\x02\x08\x02"), "0".to_owned());
    assert_eq!(check(&mut client, EMPTY).await, serving);
    assert_eq!(
        check(&mut client, b"\0\0\0\0\x04\x0a\x02no").await,
        (Bytes::new(), "5".to_owned())
    );
    assert_eq!(
        check(&mut client, b"\x01\0\0\0\0").await,
        (Bytes::new(), "12".to_owned())
    );
    assert_eq!(
        check(&mut client, b"nonsense").await,
        (Bytes::new(), "3".to_owned())
    );

    let watch = client
        .send_request(grpc("/grpc.health.v1.Health/Watch", EMPTY))
        .await
        .unwrap();
    let mut watched = watch.into_body();
    assert_eq!(
        watched.frame().await.unwrap().unwrap().into_data().unwrap(),
        serving.0
    );
    assert_eq!(get(backend.http, "/healthz").unwrap().status, 200);
    assert_eq!(
        post(backend.http, "/health?status=503", "").unwrap().status,
        200
    );
    assert_eq!(get(backend.http, "/healthz").unwrap().status, 503);
    assert_eq!(
        watched.frame().await.unwrap().unwrap().into_data().unwrap(),
        not_serving.0
    );
    assert_eq!(check(&mut client, EMPTY).await, not_serving);

    let echo = client.send_request(grpc("/whoami.Echo/Stream", b"\0\0\0\0\x01a\0\0\0\0\x01b"));
    let echoed = echo.await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(echoed.trailers().unwrap()["grpc-status"], "0");
    assert_eq!(echoed.to_bytes(), &b"\0\0\0\0\x01a\0\0\0\0\x01b"[..]);
}

#[tokio::test]
async fn it_can_be_unhealthy_at_first() {
    let late = Whoami::start("web", &["--ready-after", "10m"]);
    assert_eq!(get(late.http, "/healthz").unwrap().status, 503);
    let began = Instant::now();
    let backend = Whoami::start("web", &["--ready-after", "100ms"]);
    let healthy =
        || async { get(backend.http, "/healthz").is_ok_and(|answer| answer.status == 200) };
    eventually_async(SOON, "it is healthy after its time", healthy).await;
    assert!(began.elapsed() >= Duration::from_millis(100));
}

#[tokio::test]
async fn it_echoes_websocket_messages_pings_fragments_and_the_close() {
    let mut backend = Whoami::start("web", &["--on-term", "close"]);
    let address = backend.http;
    let open = || async move {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        tokio_tungstenite::client_async(format!("ws://{address}/ws"), stream)
            .await
            .unwrap()
            .0
    };
    let mut socket = open().await;
    socket.send(Message::text("hello")).await.unwrap();
    assert_eq!(
        socket.next().await.unwrap().unwrap(),
        Message::text("hello")
    );
    let large = Message::binary(vec![7; 1_000_000]);
    socket.send(large.clone()).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), large);
    socket
        .send(Message::Ping(Bytes::from_static(b"there?")))
        .await
        .unwrap();
    assert_eq!(
        socket.next().await.unwrap().unwrap(),
        Message::Pong(Bytes::from_static(b"there?"))
    );
    for (part, code, last) in [
        ("a", Data::Text, false),
        ("b", Data::Continue, false),
        ("c", Data::Continue, true),
    ] {
        let frame = Frame::message(part, OpCode::Data(code), last);
        socket.send(Message::Frame(frame)).await.unwrap();
    }
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("abc"));
    socket.close(None).await.unwrap();
    assert!(matches!(socket.next().await, Some(Ok(Message::Close(_)))));
    assert!(socket.next().await.is_none());

    let mut second = open().await;
    backend.signal(libc::SIGTERM);
    let Some(Ok(Message::Close(Some(goodbye)))) = second.next().await else {
        panic!("an open WebSocket is told when its server leaves");
    };
    assert_eq!(
        (goodbye.code, goodbye.reason),
        (CloseCode::Away, Utf8Bytes::from_static("shutting down"))
    );
    let _ = second.next().await;
    drop(second);
    assert!(backend.ended_within(SOON).success());
}

#[test]
fn a_plain_request_for_the_websocket_is_told_to_upgrade() {
    let backend = Whoami::start("web", &[]);
    let answer = get(backend.http, "/ws").unwrap();
    assert_eq!(answer.status, 426);
    assert_eq!(answer.header("sec-websocket-version"), Some("13"));
    assert_eq!(answer.header("upgrade"), Some("websocket"));
}

#[test]
fn it_echoes_tcp_to_the_last_byte_and_says_its_name_over_udp() {
    let options = [
        "--tcp-echo",
        "127.0.0.1:0",
        "--tcp-banner",
        "--udp-echo",
        "127.0.0.1:0",
    ];
    let backend = Whoami::start("web", &options);
    let mut stream = TcpStream::connect(backend.tcp.unwrap()).unwrap();
    let sent: Vec<u8> = (0..2_000_000u32).map(|i| (i % 251) as u8).collect();
    let mut writer = stream.try_clone().unwrap();
    let copy = sent.clone();
    let writing = std::thread::spawn(move || {
        writer.write_all(&copy).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    writing.join().unwrap();
    assert!(
        received
            .strip_prefix(b"web\n")
            .is_some_and(|echoed| echoed == sent)
    );

    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket.connect(backend.udp.unwrap()).unwrap();
    let mut buffer = [0; 100];
    for (question, answer) in [
        ("whoami", "web"),
        ("whoami\n", "web"),
        ("other", "other"),
        ("", ""),
    ] {
        socket.send(question.as_bytes()).unwrap();
        let length = socket.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], answer.as_bytes());
    }
}

#[test]
fn an_idle_connection_is_closed_when_that_was_asked_for() {
    let backend = Whoami::start("web", &["--idle-timeout", "1s"]);
    let mut connection = KeepAlive::open(backend.http);
    let began = Instant::now();
    // The second stands behind the first, however late that is answered.
    let twice = "GET /id HTTP/1.1\r\nhost: test\r\n\r\n".repeat(2);
    connection.0.write_all(twice.as_bytes()).unwrap();
    for _ in 0..2 {
        assert!(connection.receive().is_some());
    }
    assert!(connection.end().is_ok());
    assert!(
        began.elapsed() >= Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
}

#[test]
fn told_to_drain_it_serves_on_and_ends_after_its_time() {
    let linger = Duration::from_secs(3);
    let mut backend = Whoami::start("web", &["--on-term", "drain", "--linger", "3s"]);
    let mut connection = KeepAlive::open(backend.http);
    let began = Instant::now();
    backend.signal(libc::SIGTERM);
    for _ in 0..5 {
        connection.send("GET", "/id");
        assert!(
            connection
                .receive()
                .is_some_and(|response| !response.contains("connection: close"))
        );
        assert_eq!(get(backend.http, "/id").unwrap().body, "web\n");
    }
    // Longer than it lingers.
    let mut busy = KeepAlive::open(backend.http);
    busy.send("GET", "/delay?ms=3500");
    assert!(connection.end().is_ok());
    assert!(began.elapsed() >= linger);
    assert!(busy.receive().is_some(), "what was in flight is finished");
    assert_eq!(backend.ended_within(SOON).code(), Some(0));
}

#[test]
fn told_to_close_it_finishes_what_is_in_flight_and_nothing_else() {
    let mut backend = Whoami::start("web", &["--on-term", "close", "--tcp-echo", "127.0.0.1:0"]);
    let (idle, silent) = (
        KeepAlive::open(backend.http),
        KeepAlive::open(backend.tcp.unwrap()),
    );
    let mut used = KeepAlive::open(backend.http);
    used.send("GET", "/id");
    assert!(used.receive().is_some());
    let mut busy = KeepAlive::open(backend.http);
    busy.send("GET", "/delay?ms=3000");
    let mut slow = KeepAlive::open(backend.http);
    slow.send("GET", "/slow-body?chunks=4&ms=1000");
    eventually(SOON, "the requests arrived", || {
        get(backend.http, "/count?path=/slow-body").unwrap().body == "1\n"
            && get(backend.http, "/count?path=/delay").unwrap().body == "1\n"
    });

    backend.signal(libc::SIGTERM);
    let refused = || TcpStream::connect(backend.http).is_err();
    eventually(SOON, "new connections are refused", refused);
    for connection in [idle, used, silent] {
        assert!(connection.end().is_ok());
    }
    assert!(backend.is_running());
    assert!(
        busy.receive()
            .is_some_and(|response| response.contains("connection: close"))
    );
    let mut streamed = String::new();
    slow.0.read_to_string(&mut streamed).unwrap();
    assert!(streamed.contains("4 of 4"), "{streamed}");
    assert_eq!(backend.ended_within(SOON).code(), Some(0));
}

#[test]
fn what_never_ends_is_given_up_at_the_deadline() {
    let mut backend = Whoami::start("web", &["--on-term", "close", "--deadline", "200ms"]);
    let mut hanging = KeepAlive::open(backend.http);
    hanging.send("POST", "/execute?id=a&then=hang");
    eventually(SOON, "the request arrived", || {
        get(backend.http, "/executed?id=a").unwrap().body == "1\n"
    });
    backend.signal(libc::SIGTERM);
    assert_eq!(backend.ended_within(SOON).code(), Some(0));
}

#[test]
fn told_to_ignore_it_lives_until_sigint() {
    let mut backend = Whoami::start("web", &["--on-term", "ignore"]);
    let mut connection = KeepAlive::open(backend.http);
    for _ in 0..2 {
        backend.signal(libc::SIGTERM);
        connection.send("GET", "/id");
        assert!(connection.receive().is_some());
        assert_eq!(get(backend.http, "/id").unwrap().body, "web\n");
    }
    assert!(backend.is_running());
    connection.send("GET", "/delay?ms=60000");
    backend.signal(libc::SIGINT);
    assert_eq!(backend.ended_within(SOON).code(), Some(0));
}
