//! Backends: an HTTP one that does what the path says, and raw ones that misbehave as a test wants.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

pub type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A running backend; it ends when dropped.
pub struct Backend {
    pub address: SocketAddr,
    connections: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).boxed_unsync()
}

impl Backend {
    /// Serves each connection with what `serve` does to it.
    pub async fn raw<F, Fut>(serve: F) -> Self
    where
        F: Fn(TcpStream, Arc<AtomicUsize>) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Backend::on(listener, serve)
    }

    pub fn on<F, Fut>(listener: TcpListener, serve: F) -> Self
    where
        F: Fn(TcpStream, Arc<AtomicUsize>) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let address = listener.local_addr().unwrap();
        let (connections, requests) = <(Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let (accepted, served) = (Arc::clone(&connections), Arc::clone(&requests));
        let task = tokio::spawn(async move {
            let mut tasks = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                accepted.fetch_add(1, Ordering::SeqCst);
                tasks.spawn(serve(stream, Arc::clone(&served)));
            }
        });
        Backend {
            address,
            connections,
            requests,
            task,
        }
    }

    /// An HTTP/1.1 server that answers as [`answer`] says.
    pub async fn http1(name: &'static str) -> Self {
        Backend::raw(move |stream, requests| async move {
            let service = service_fn(move |request| {
                requests.fetch_add(1, Ordering::SeqCst);
                answer(name, request)
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service);
            // Clients break connections off in some tests.
            let _ = connection.await;
        })
        .await
    }

    /// The same over TLS, in HTTP/2 where ALPN agrees on it. A handshake that fails is no connection.
    pub async fn tls(name: &'static str, config: Arc<ServerConfig>) -> Self {
        Backend::raw(move |stream, requests| {
            let acceptor = TlsAcceptor::from(Arc::clone(&config));
            async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                let service = service_fn(move |request| {
                    requests.fetch_add(1, Ordering::SeqCst);
                    answer(name, request)
                });
                let io = TokioIo::new(stream);
                // Clients break connections off in some tests.
                if http2 {
                    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(io, service).await;
                } else {
                    let builder = hyper::server::conn::http1::Builder::new();
                    let _ = builder.serve_connection(io, service).await;
                }
            }
        })
        .await
    }

    /// The same over HTTP/2 with prior knowledge. With `goaway_after`, a connection says GOAWAY during that request.
    pub async fn http2(name: &'static str, goaway_after: usize) -> Self {
        Backend::raw(move |stream, requests| async move {
            let here = Arc::new(AtomicUsize::new(0));
            let goaway = Arc::new(tokio::sync::Notify::new());
            let (counted, notified) = (Arc::clone(&here), Arc::clone(&goaway));
            let service = service_fn(move |request| {
                requests.fetch_add(1, Ordering::SeqCst);
                if counted.fetch_add(1, Ordering::SeqCst) + 1 == goaway_after {
                    notified.notify_one();
                }
                answer(name, request)
            });
            let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service);
            let mut connection = std::pin::pin!(connection);
            tokio::select! {
                _ = connection.as_mut() => return,
                () = goaway.notified() => connection.as_mut().graceful_shutdown(),
            }
            let _ = connection.await;
        })
        .await
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

/// An address at which connections are refused: bound, so that nobody else gets it, but not listened on.
pub struct Refusing {
    pub address: SocketAddr,
    _bound: socket2::Socket,
}

impl Refusing {
    pub fn new() -> Self {
        let kind = socket2::Type::STREAM;
        let bound = socket2::Socket::new(socket2::Domain::IPV4, kind, None).unwrap();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        bound.bind(&any.into()).unwrap();
        let address = bound.local_addr().unwrap().as_socket().unwrap();
        Refusing {
            address,
            _bound: bound,
        }
    }
}

/// By path: `/` its name, `/echo` the body, `/headers` the request's head, `/trailers` a body with a checksum behind
/// it, `/drip/N` N chunks 20 ms apart, `/hang` nothing ever, `/fill/N` N bytes.
async fn answer(
    name: &'static str,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let number = || path.rsplit('/').next().unwrap().parse::<usize>().unwrap();
    let body = match path.split('/').nth(1).unwrap_or_default() {
        "echo" => request
            .into_body()
            .map_err(|e| panic!("body: {e}"))
            .boxed_unsync(),
        "headers" => {
            let mut text = format!(
                "{} {} {:?}\n",
                request.method(),
                request.uri(),
                request.version()
            );
            for (name, value) in request.headers() {
                text.push_str(&format!("{name}: {}\n", value.to_str().unwrap()));
            }
            full(text)
        }
        "trailers" => {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-sum", "42".parse().unwrap());
            let frames = [Frame::data(Bytes::from("sum")), Frame::trailers(trailers)];
            let stream = futures::stream::iter(frames.map(Ok::<_, Infallible>));
            let mut response = Response::new(StreamBody::new(stream).boxed_unsync());
            response
                .headers_mut()
                .insert("trailer", "x-sum".parse().unwrap());
            return Ok(response);
        }
        "drip" => {
            let chunks = futures::stream::iter(0..number()).then(|n| async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Ok::<_, Infallible>(Frame::data(Bytes::from(format!("{n} "))))
            });
            StreamBody::new(chunks).boxed_unsync()
        }
        "hang" => std::future::pending().await,
        "fill" => full(vec![b'x'; number()]),
        _ => full(name),
    };
    Ok(Response::new(body))
}
