//! The paths of the HTTP port.
//!
//! | path | answer |
//! |---|---|
//! | `/id` | the name and a line feed |
//! | `/healthz` | the status that `POST /health?status=N` set, 200 at first |
//! | `/delay?ms=N` | the name after N ms |
//! | `/status/N` | status N |
//! | `/bytes/N` | N bytes, streamed; `?cut=M` hangs up after M of them |
//! | `/slow-body?chunks=N&ms=M` | N lines, one every M ms |
//! | `/sse` | an event stream; `?count=N&ms=M`, without end and one a second by default |
//! | `/echo` | the request's body and trailers, as they come |
//! | `/headers` | the request's headers as JSON |
//! | `/execute?id=X` | POST only: reads the body, counts the execution (and notes it in `--journal`); `&then=close`, `reset` or `hang` answers by a FIN, an RST or never |
//! | `/executed?id=X` | how often X was executed |
//! | `/count` | how many requests each path got, as JSON; `?path=P` gives one number |
//! | `/ws` | WebSocket echo |
//! | any other | who is answering, and what the request looks like from here |
//!
//! Every response carries the name in `x-whoami`. Query values are taken as they are, without decoding.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body_util::BodyExt as _;
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::TcpStream;
use tokio_util::task::TaskTracker;

use super::asked::{Failure, Query, bad, need_post, parse_status};
use super::body::{self, Body, BoxError, Pattern, json, text, with_type};
use super::connection::{Connection, ResetSwitch};
use super::state::Backend;
use super::{grpc, websocket};

/// Concurrent streams of one HTTP/2 connection; a client that opens more is refused those (REFUSED_STREAM).
const MAX_STREAMS: u32 = 1024;
/// Bytes of one request's headers in HTTP/2; HTTP/1.1 heads end at hyper's 400 KiB buffer or 100 fields.
const MAX_HEADERS: u32 = 64 * 1024;

/// Serves the connections of every HTTP listener.
pub(super) struct Server {
    protocol: auto::Builder<TokioExecutor>,
    backend: Arc<Backend>,
    tasks: TaskTracker,
}

/// The two ends of a connection.
#[derive(Clone)]
struct Peers {
    local: SocketAddr,
    remote: SocketAddr,
    reset: ResetSwitch,
}

#[derive(Debug, thiserror::Error)]
#[error("hung up without a response")]
struct HungUp;

impl Server {
    pub fn new(
        idle_timeout: Option<Duration>,
        backend: &Arc<Backend>,
        tasks: &TaskTracker,
    ) -> Self {
        let mut protocol = auto::Builder::new(TokioExecutor::new());
        // hyper starts this clock when it begins to wait for a head, so between requests it is the idle time.
        protocol
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(idle_timeout);
        protocol
            .http2()
            .timer(TokioTimer::new())
            .enable_connect_protocol()
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEADERS);
        Self {
            protocol,
            backend: Arc::clone(backend),
            tasks: tasks.clone(),
        }
    }

    /// Serves one connection to its end. When the process closes, an idle connection ends at once and a busy
    /// one after its requests (`Connection: close`, GOAWAY).
    pub async fn connection(self: Arc<Self>, stream: TcpStream, remote: SocketAddr) {
        let Ok(local) = stream.local_addr() else {
            return;
        };
        let _ = stream.set_nodelay(true);
        let peers = Peers {
            local,
            remote,
            reset: ResetSwitch::default(),
        };
        let io = TokioIo::new(Connection::new(stream, peers.reset.clone()));
        let server = Arc::clone(&self);
        let service =
            service_fn(move |request| Arc::clone(&server).request(request, peers.clone()));

        let mut served = std::pin::pin!(self.protocol.serve_connection_with_upgrades(io, service));
        let ended = tokio::select! {
            ended = served.as_mut() => ended,
            () = self.backend.closing.cancelled() => {
                served.as_mut().graceful_shutdown();
                served.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%remote, %error, "connection ended early");
        }
    }

    async fn request(
        self: Arc<Self>,
        request: Request<Incoming>,
        peers: Peers,
    ) -> Result<Response<Body>, HungUp> {
        self.backend.count_request(request.uri().path());
        let answer = if grpc::is_grpc(&request) {
            Ok(grpc::call(request, &self.backend).await)
        } else {
            self.answer(request, &peers).await
        };
        let mut response = match answer {
            Ok(response) => response,
            Err(Failure::Refused(status, reason)) => text(status, format!("{reason}\n")),
            Err(Failure::HungUp) => return Err(HungUp),
        };
        if let Some(name) = &self.backend.name_header {
            response.headers_mut().insert("x-whoami", name.clone());
        }
        Ok(response)
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        peers: &Peers,
    ) -> Result<Response<Body>, Failure> {
        // These two use the body or the connection themselves.
        match request.uri().path() {
            "/echo" => return Ok(echo(request)),
            "/ws" => return Ok(websocket::accept(request, &self.backend, &self.tasks)),
            _ => {}
        }
        // A body left unread would cost a keep-alive connection its next request.
        let (head, mut body) = request.into_parts();
        while let Some(frame) = body.frame().await {
            frame.map_err(|_| Failure::HungUp)?;
        }
        let query = Query(head.uri.query().unwrap_or(""));
        let path = head.uri.path();
        match path {
            "/id" => Ok(text(StatusCode::OK, format!("{}\n", self.backend.name))),
            "/healthz" => {
                let status = self.backend.health();
                Ok(text(
                    status,
                    if status.is_success() {
                        "ok\n"
                    } else {
                        "not ok\n"
                    },
                ))
            }
            "/health" => self.set_health(&head.method, query),
            "/delay" => {
                tokio::time::sleep(query.wait("ms", 0)?).await;
                Ok(text(StatusCode::OK, format!("{}\n", self.backend.name)))
            }
            "/slow-body" => self.slow_body(query),
            "/sse" => self.events(query),
            "/headers" => Ok(headers(&head)),
            "/execute" => self.execute(&head.method, query, peers).await,
            "/executed" => Ok(text(
                StatusCode::OK,
                format!("{}\n", self.backend.executions(query.id()?)),
            )),
            "/count" => Ok(self.count(query)),
            _ => {
                if let Some(status) = path.strip_prefix("/status/") {
                    Ok(text(parse_status(status)?, format!("{status}\n")))
                } else if let Some(length) = path.strip_prefix("/bytes/") {
                    bytes(length, query)
                } else {
                    Ok(text(StatusCode::OK, self.describe(&head, peers)))
                }
            }
        }
    }

    fn set_health(&self, method: &Method, query: Query<'_>) -> Result<Response<Body>, Failure> {
        need_post(method)?;
        let status = parse_status(query.get("status").unwrap_or("200"))?;
        self.backend.set_health(status);
        Ok(text(
            StatusCode::OK,
            format!("health checks get {}\n", status.as_u16()),
        ))
    }

    fn slow_body(&self, query: Query<'_>) -> Result<Response<Body>, Failure> {
        let (chunks, pause) = (query.number("chunks", 10)?, query.wait("ms", 100)?);
        let name = self.backend.name.clone();
        let lines = stream::unfold(1, move |n| {
            let line = Bytes::from(format!("{n} of {chunks} from {name}\n"));
            async move {
                if n > chunks {
                    return None;
                }
                if n > 1 {
                    tokio::time::sleep(pause).await;
                }
                Some((Ok(Frame::data(line)), n + 1))
            }
        });
        Ok(with_type(
            "text/plain; charset=utf-8",
            body::streamed(lines),
        ))
    }

    /// Unlike a slow body, an event stream has no end to wait for: it stops when the process closes.
    fn events(&self, query: Query<'_>) -> Result<Response<Body>, Failure> {
        let (count, pause) = (query.number("count", u64::MAX)?, query.wait("ms", 1000)?);
        let backend = Arc::clone(&self.backend);
        let events = stream::unfold(1, move |n| {
            let backend = Arc::clone(&backend);
            async move {
                if n > count {
                    return None;
                }
                if n > 1 {
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = backend.closing.cancelled() => return None,
                    }
                }
                let event = format!(
                    "id: {n}\nevent: tick\ndata: {}\n\n",
                    backend.name.replace('\n', " ")
                );
                Some((Ok(Frame::data(Bytes::from(event))), n + 1))
            }
        });
        let mut response = with_type("text/event-stream", body::streamed(events));
        response
            .headers_mut()
            .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        Ok(response)
    }

    async fn execute(
        &self,
        method: &Method,
        query: Query<'_>,
        peers: &Peers,
    ) -> Result<Response<Body>, Failure> {
        need_post(method)?;
        let id = query.id()?;
        let then = query.get("then").unwrap_or("answer");
        if !["answer", "close", "reset", "hang"].contains(&then) {
            return Err(bad(format!(
                "then={then}: expected answer, close, reset or hang"
            )));
        }
        let executed = self.backend.execute(id).map_err(|error| {
            let reason = format!("the journal can't be written: {error}");
            Failure::Refused(StatusCode::INTERNAL_SERVER_ERROR, reason)
        })?;
        let Some(count) = executed else {
            let full = "the table of executions is full".to_owned();
            return Err(Failure::Refused(StatusCode::INSUFFICIENT_STORAGE, full));
        };
        match then {
            "close" => Err(Failure::HungUp),
            "reset" => {
                peers.reset.throw();
                Err(Failure::HungUp)
            }
            "hang" => {
                let never: Infallible = pending().await;
                match never {}
            }
            _ => Ok(text(StatusCode::OK, format!("{count}\n"))),
        }
    }

    fn count(&self, query: Query<'_>) -> Response<Body> {
        let (total, paths) = self.backend.requests();
        match query.get("path") {
            Some(path) => text(
                StatusCode::OK,
                format!("{}\n", paths.get(path).copied().unwrap_or_default()),
            ),
            None => json(&serde_json::json!({ "total": total, "paths": paths })),
        }
    }

    fn describe(&self, head: &http::request::Parts, peers: &Peers) -> String {
        let mut answer = format!(
            "Name: {}\nHostname: {}\nLocalAddr: {}\nRemoteAddr: {}\n{} {} {:?}\n",
            self.backend.name,
            self.backend.hostname,
            peers.local,
            peers.remote,
            head.method,
            head.uri.path_and_query().map_or("/", |path| path.as_str()),
            head.version,
        );
        if let Some(authority) = head.uri.authority() {
            let _ = writeln!(answer, "host: {authority}");
        }
        for (name, value) in &head.headers {
            let _ = writeln!(
                answer,
                "{name}: {}",
                String::from_utf8_lossy(value.as_bytes())
            );
        }
        answer
    }
}

fn bytes(length: &str, query: Query<'_>) -> Result<Response<Body>, Failure> {
    let length: u64 = length
        .parse()
        .map_err(|_| bad(format!("{length}: expected a number of bytes")))?;
    let cut = query.number("cut", u64::MAX)?;
    Ok(with_type(
        "application/octet-stream",
        Pattern::new(length, Some(cut)).boxed_unsync(),
    ))
}

fn echo(request: Request<Incoming>) -> Response<Body> {
    let content_type = request.headers().get(header::CONTENT_TYPE).cloned();
    let body = request
        .into_body()
        .map_err(|error| -> BoxError { error.into() })
        .boxed_unsync();
    let mut response = with_type("application/octet-stream", body);
    if let Some(content_type) = content_type {
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, content_type);
    }
    response
}

fn headers(head: &http::request::Parts) -> Response<Body> {
    let mut headers = serde_json::Map::new();
    if head.version == Version::HTTP_2
        && let Some(authority) = head.uri.authority()
    {
        headers.insert("host".to_owned(), serde_json::json!([authority.as_str()]));
    }
    for name in head.headers.keys() {
        let values = head.headers.get_all(name).iter();
        let values: Vec<_> = values
            .map(|value| String::from_utf8_lossy(value.as_bytes()))
            .collect();
        headers.insert(name.to_string(), serde_json::json!(values));
    }
    json(&serde_json::Value::Object(headers))
}
