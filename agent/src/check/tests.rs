use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use model::service::{DockerProbe, GrpcProbe, HttpProbe, TcpProbe};
use model::time::Timestamp;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::metrics::Metrics;

const TIMING: Timing = Timing {
    interval: Duration::from_secs(5),
    rise: 2,
    fall: 3,
};

fn fact(value: Health) -> Fact<Health> {
    Fact::new(value, Timestamp(1), "before")
}

fn key(name: &str) -> CheckKey {
    CheckKey {
        service: "shop/web".parse().expect("a key"),
        id: EndpointId {
            workload: name.into(),
            port: "http".parse().expect("a name"),
            generation: "1".into(),
        },
        unowned: false,
    }
}

fn spec(probe: Probe, address: SocketAddr) -> Spec {
    Spec {
        probe,
        addresses: vec![address],
        timeout: Duration::from_millis(500),
        timing: TIMING,
    }
}

/// Feeds results (`+` passes, `-` fails) and gives back the health after each.
fn run(begin: Begin, results: &str) -> Vec<Health> {
    let mut machine = Machine::new(TIMING, begin, 7);
    results
        .chars()
        .enumerate()
        .map(|(at, c)| {
            let result = if c == '+' {
                Ok("passes")
            } else {
                Err("refused")
            };
            machine.observe(result, Timestamp(10 + at as i64));
            machine.fact().value
        })
        .collect()
}

#[test]
fn a_starting_endpoint_is_ready_at_its_first_pass() {
    use Health::{Passing, Unknown};
    assert_eq!(
        run(Begin::Starting(fact(Unknown)), "-----+"),
        [Unknown, Unknown, Unknown, Unknown, Unknown, Passing]
    );
}

#[test]
fn a_known_endpoint_turns_after_rise_passes_and_fall_failures_in_a_row() {
    use Health::{Failing, Passing};
    assert_eq!(
        run(Begin::Known(fact(Passing)), "--+---+-++"),
        [
            Passing, Passing, Passing, Passing, Passing, Failing, Failing, Failing, Failing,
            Passing
        ]
    );
}

#[test]
fn a_suspect_is_confirmed_by_one_pass_and_refuted_by_fall_failures() {
    use Health::{Failing, Passing};
    assert_eq!(run(Begin::Suspect(fact(Failing)), "+"), [Passing]);
    assert_eq!(
        run(Begin::Suspect(fact(Passing)), "---"),
        [Passing, Passing, Failing]
    );
}

#[test]
fn pauses_double_from_50_ms_up_to_the_interval() {
    let mut machine = Machine::new(TIMING, Begin::Starting(fact(Health::Unknown)), 7);
    assert_eq!(machine.first(), Duration::ZERO);
    for expected in [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000u64] {
        let (_, pause) = machine.observe(Err("refused"), Timestamp(2));
        let (low, high) = (expected * 9 / 10, expected * 11 / 10);
        let millis = u64::try_from(pause.as_millis()).expect("short");
        assert!(
            (low..=high).contains(&millis),
            "{millis} is not {expected} ± 10 %"
        );
    }
}

#[test]
fn since_and_reason_move_only_when_the_value_does() {
    let mut machine = Machine::new(TIMING, Begin::Known(fact(Health::Passing)), 7);
    assert!(!machine.observe(Ok("passes"), Timestamp(5)).0);
    assert_eq!(machine.fact(), &fact(Health::Passing));
    for at in 6..9 {
        machine.observe(Err("refused"), Timestamp(at));
    }
    assert_eq!(
        machine.fact(),
        &Fact::new(Health::Failing, Timestamp(8), "refused")
    );
    assert!(!machine.observe(Err("timed out"), Timestamp(9)).0);
    assert_eq!(&*machine.fact().reason, "refused");
}

#[test]
fn users_see_what_keeps_failing_while_it_starts() {
    let mut machine = Machine::new(TIMING, Begin::Starting(fact(Health::Unknown)), 7);
    let changed: Vec<bool> = (0..5)
        .map(|_| machine.observe(Err("refused"), Timestamp(3)).0)
        .collect();
    assert_eq!(changed, [false, false, true, false, false]);
    let fact = machine.fact();
    assert_eq!(
        (fact.value, fact.since, &*fact.reason),
        (Health::Unknown, Timestamp(1), "refused")
    );
}

proptest! {
    /// Against a model: the health is what the last long enough row of results says, and nothing turns it earlier.
    #[test]
    fn a_known_endpoint_follows_rise_and_fall(
        results in proptest::collection::vec(any::<bool>(), 0..200), rise in 1u32..5, fall in 1u32..5, seed: u64,
    ) {
        let timing = Timing { rise, fall, ..TIMING };
        let mut machine = Machine::new(timing, Begin::Known(fact(Health::Passing)), seed);
        let (mut passing, mut row) = (true, 0);
        for pass in results {
            let (_, pause) = machine.observe(if pass { Ok("") } else { Err("no") }, Timestamp(2));
            prop_assert!(pause >= TIMING.interval.mul_f64(0.899) && pause <= TIMING.interval.mul_f64(1.101));
            row = if pass == passing { 0 } else { row + 1 };
            if row == if passing { fall } else { rise } {
                (passing, row) = (pass, 0);
            }
            prop_assert_eq!(machine.fact().value == Health::Passing, passing);
        }
    }

}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// A simulated hour of many endpoints: each is checked about as often as its interval says, never twice at once, and
    /// never after it was removed.
    #[test]
    fn the_schedule_checks_everything_in_its_time(count in 1usize..40, seed: u64) {
        let address: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let mut schedule = Schedule::new(seed);
        for n in 0..count {
            schedule.begin(key(&n.to_string()), spec(Probe::Tcp, address), Begin::Known(fact(Health::Passing)), Duration::ZERO);
        }
        schedule.remove(&key("0"));
        let mut done: HashMap<CheckKey, u32> = HashMap::new();
        let end = Duration::from_secs(3600);
        while let Some(now) = schedule.next_at().filter(|at| *at < end) {
            let due = schedule.take_due(now).expect("it is due");
            prop_assert!(schedule.next_at() != Some(now) || schedule.take_due(now).is_none_or(|d| d.key != due.key));
            *done.entry(due.key.clone()).or_default() += 1;
            schedule.finish(&due, Ok(""), now, Timestamp(2));
        }
        prop_assert!(!done.contains_key(&key("0")));
        for (key, times) in done {
            prop_assert!((640..=810).contains(&times), "{key:?} was checked {times} times");
        }
    }
}

#[test]
fn the_result_of_a_check_that_was_overtaken_is_dropped() {
    let address: SocketAddr = "127.0.0.1:1".parse().expect("an address");
    let mut schedule = Schedule::new(1);
    let begin = || Begin::Starting(fact(Health::Unknown));
    schedule.begin(key("a"), spec(Probe::Tcp, address), begin(), Duration::ZERO);
    let old = schedule.take_due(Duration::ZERO).expect("due");
    schedule.begin(key("a"), spec(Probe::Tcp, address), begin(), Duration::ZERO);
    assert_eq!(
        schedule.finish(&old, Ok(""), Duration::ZERO, Timestamp(2)),
        None
    );
    let new = schedule.take_due(Duration::ZERO).expect("due");
    assert!(
        schedule.take_due(Duration::from_secs(99)).is_none(),
        "it runs already"
    );
    assert!(
        schedule
            .finish(&new, Ok(""), Duration::ZERO, Timestamp(2))
            .is_some()
    );
}

#[test]
fn another_way_of_checking_keeps_what_is_known() {
    let address: SocketAddr = "127.0.0.1:1".parse().expect("an address");
    let mut schedule = Schedule::new(1);
    let now = Duration::from_secs(1);
    schedule.begin(
        key("a"),
        spec(Probe::Tcp, address),
        Begin::Known(fact(Health::Passing)),
        now,
    );
    let grpc = Probe::Grpc {
        service: String::new(),
    };
    assert!(schedule.change(&key("a"), &spec(grpc.clone(), address), now));
    assert_eq!(schedule.fact(&key("a")), Some(&fact(Health::Passing)));
    let due = schedule.take_due(now).expect("at once");
    assert_eq!(due.spec.probe, grpc);
    assert!(!schedule.change(&key("b"), &spec(Probe::Tcp, address), now));
}

#[test]
fn the_policy_decides_what_is_checked() {
    let docker = fact(Health::Failing);
    let of = |json: &str, docker: Option<&Fact<Health>>| {
        let policy: HealthPolicy = serde_json::from_str(json).expect("a policy");
        plan(Some(&policy), docker, "no HEALTHCHECK", &[])
    };
    let probe = |plan: Plan| match plan {
        Plan::Active(spec) => Some(spec.probe),
        Plan::Fixed(..) => None,
    };
    assert!(matches!(
        of("\"none\"", Some(&docker)),
        Plan::Fixed(Health::Passing, _)
    ));
    assert!(matches!(
        of("{}", Some(&docker)),
        Plan::Fixed(Health::Failing, _)
    ));
    assert!(matches!(
        of(r#"{"docker":{}}"#, Some(&docker)),
        Plan::Fixed(Health::Failing, _)
    ));
    assert_eq!(
        of(r#"{"docker":{}}"#, None),
        Plan::Fixed(Health::Failing, "no HEALTHCHECK".into())
    );
    assert_eq!(probe(of("{}", None)), Some(Probe::Tcp));
    assert_eq!(probe(of(r#"{"tcp":{}}"#, Some(&docker))), Some(Probe::Tcp));
    assert!(matches!(
        probe(of(r#"{"grpc":{}}"#, None)),
        Some(Probe::Grpc { .. })
    ));
    assert!(matches!(
        plan(None, Some(&docker), "", &[]),
        Plan::Fixed(Health::Failing, _)
    ));
    // The kinds that exist are exactly those that are built.
    let _all = HealthCheck {
        http: Some(HttpProbe {
            path: "/".into(),
            expect: None,
        }),
        tcp: Some(TcpProbe {}),
        grpc: Some(GrpcProbe::default()),
        docker: Some(DockerProbe {}),
        ..HealthCheck::default()
    };
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    (listener, address)
}

/// A server that answers each connection with these bytes, after it has read something.
async fn answering(answer: &'static [u8]) -> SocketAddr {
    let (listener, address) = listener().await;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(answer).await;
                let _ = stream.shutdown().await;
                let _ = stream.read(&mut request).await;
            });
        }
    });
    address
}

fn http(path: &str, expect: Option<&str>) -> Probe {
    Probe::Http {
        path: path.into(),
        expect: expect.map(|e| e.parse().expect("statuses")),
    }
}

#[tokio::test]
async fn an_http_check_passes_on_the_expected_statuses_and_follows_no_redirection() {
    let ok = answering(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let moved = answering(
        b"HTTP/1.1 302 Found\r\nlocation: http://192.0.2.1/\r\ncontent-length: 0\r\n\r\n",
    )
    .await;
    let broken = answering(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n").await;
    assert!(spec(http("/", None), ok).run().await.is_ok());
    assert!(spec(http("/", None), moved).run().await.is_ok());
    assert!(spec(http("/", Some("200-299")), moved).run().await.is_err());
    assert!(spec(http("/", Some("503")), broken).run().await.is_ok());
    let failure = spec(http("/healthz", None), broken)
        .run()
        .await
        .unwrap_err();
    assert_eq!(
        failure,
        format!("{broken}: GET /healthz answered 503, expected 200-399")
    );
}

#[tokio::test]
async fn what_is_not_http_fails_the_check() {
    for answer in [&b"SSH-2.0-OpenSSH_9.2\r\n"[..], b"", b"\0\x01\x02"] {
        let address = answering(answer).await;
        assert!(spec(http("/", None), address).run().await.is_err());
    }
}

#[tokio::test]
async fn a_check_sends_host_and_agent() {
    let (listener, address) = listener().await;
    let asked = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut request = vec![0; 1024];
        let read = stream.read(&mut request).await.expect("a request");
        request.truncate(read);
        String::from_utf8(request).expect("text")
    });
    let _ = spec(http("/up", None), address).run().await;
    let request = asked.await.expect("asked").to_lowercase();
    assert!(request.starts_with("get /up http/1.1\r\n"), "{request}");
    assert!(
        request.contains(&format!("host: {address}\r\n")),
        "{request}"
    );
    assert!(request.contains("user-agent: heddle-health/"), "{request}");
}

#[tokio::test]
async fn a_tcp_check_ends_with_a_fin_even_when_the_server_speaks_first() {
    let (listener, address) = listener().await;
    let ended = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        stream.write_all(&[b'x'; 4096]).await.expect("a banner");
        let mut rest = [0; 16];
        stream.read(&mut rest).await
    });
    assert!(spec(Probe::Tcp, address).run().await.is_ok());
    let read = ended.await.expect("ended");
    assert_eq!(read.expect("an end of the stream, not a reset"), 0);
}

#[tokio::test]
async fn a_refused_connection_says_so_and_a_second_address_is_tried() {
    let (bound, dead) = listener().await;
    drop(bound);
    let failure = spec(Probe::Tcp, dead).run().await.unwrap_err();
    assert!(
        failure.starts_with(&format!("{dead}: can't connect: ")),
        "{failure}"
    );
    let (_alive, alive) = listener().await;
    let both = Spec {
        addresses: vec![dead, alive],
        ..spec(Probe::Tcp, dead)
    };
    assert!(both.run().await.is_ok());
}

#[tokio::test]
async fn a_server_that_never_answers_fails_at_the_time_out() {
    let (_listener, address) = listener().await;
    let probe = Spec {
        timeout: Duration::from_millis(30),
        ..spec(http("/", None), address)
    };
    let failure = probe.run().await.unwrap_err();
    assert_eq!(
        failure,
        format!("{address}: no answer to an HTTP check within 30ms")
    );
}

/// A gRPC server that gives this status as its only trailer or, with a message, this message.
async fn grpc_server(message: &'static [u8], status: &'static str) -> SocketAddr {
    let (listener, address) = listener().await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let answer =
                    service_fn(move |request: Request<hyper::body::Incoming>| async move {
                        assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                        assert_eq!(request.headers()["content-type"], "application/grpc");
                        Response::builder()
                            .header("content-type", "application/grpc")
                            .header("grpc-status", status)
                            .header("grpc-message", "because")
                            .body(Full::new(Bytes::from_static(message)))
                    });
                let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), answer)
                    .await;
            });
        }
    });
    address
}

#[tokio::test]
async fn a_grpc_check_passes_only_while_serving() {
    let probe = || Probe::Grpc {
        service: "shop.Web".into(),
    };
    let serving = grpc_server(&[0, 0, 0, 0, 2, 8, 1], "0").await;
    assert!(spec(probe(), serving).run().await.is_ok());
    let not_serving = grpc_server(&[0, 0, 0, 0, 2, 8, 2], "0").await;
    let failure = spec(probe(), not_serving).run().await.unwrap_err();
    assert!(
        failure.ends_with("gRPC health says NOT_SERVING"),
        "{failure}"
    );
    let unimplemented = grpc_server(b"", "12").await;
    let failure = spec(probe(), unimplemented).run().await.unwrap_err();
    assert!(
        failure.ends_with("gRPC health answered status 12: because"),
        "{failure}"
    );
    let http1 = answering(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    assert!(spec(probe(), http1).run().await.is_err());
}

#[tokio::test]
async fn no_more_checks_run_at_once_than_the_limit_allows() {
    let (listener, address) = listener().await;
    let most = Arc::new(AtomicUsize::new(0));
    let seen = most.clone();
    tokio::spawn(async move {
        let now = Arc::new(AtomicUsize::new(0));
        while let Ok((mut stream, _)) = listener.accept().await {
            let (now, seen) = (now.clone(), seen.clone());
            tokio::spawn(async move {
                seen.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                let mut request = [0; 512];
                let _ = stream.read(&mut request).await;
                tokio::task::yield_now().await;
                now.fetch_sub(1, Ordering::SeqCst);
                let _ = stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                    .await;
            });
        }
    });
    let mut checks = Checks::new(4, 1, Metrics::new());
    for n in 0..40 {
        let begin = Begin::Starting(fact(Health::Unknown));
        checks.begin(key(&n.to_string()), spec(http("/", None), address), begin);
    }
    for _ in 0..40 {
        let (_, fact) = tokio::time::timeout(Duration::from_secs(10), checks.changed())
            .await
            .expect("all of them turn");
        assert_eq!(fact.value, Health::Passing);
    }
    assert!(most.load(Ordering::SeqCst) <= 4);
}
