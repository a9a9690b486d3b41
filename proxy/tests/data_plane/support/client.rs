//! Clients: HTTP/1.1 by hand, so that a test says every byte, and HTTP/2 by hyper.

use std::net::SocketAddr;

use bytes::{Buf, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// A response, whole.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
    pub trailers: String,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.as_str())
    }
}

/// A connection that speaks HTTP/1.1.
pub struct Http1<S = TcpStream> {
    pub stream: S,
    pub buffer: BytesMut,
}

impl Http1 {
    pub async fn connect(address: SocketAddr) -> Self {
        Http1::over(TcpStream::connect(address).await.unwrap())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Http1<S> {
    pub fn over(stream: S) -> Self {
        Http1 {
            stream,
            buffer: BytesMut::new(),
        }
    }

    pub async fn get(&mut self, path: &str) -> Reply {
        self.try_request(&format!("GET {path} HTTP/1.1\r\nhost: web\r\n\r\n"))
            .await
            .expect("a response")
    }

    pub async fn post(&mut self, path: &str, body: &str) -> Reply {
        let length = body.len();
        let text =
            format!("POST {path} HTTP/1.1\r\nhost: web\r\ncontent-length: {length}\r\n\r\n{body}");
        self.try_request(&text).await.expect("a response")
    }

    /// `None`: the connection ended without a response.
    pub async fn try_request(&mut self, text: &str) -> Option<Reply> {
        self.send(text).await.ok()?;
        super::soon("a response", self.reply()).await
    }

    pub async fn send(&mut self, text: &str) -> std::io::Result<()> {
        self.stream.write_all(text.as_bytes()).await
    }

    async fn fill(&mut self) -> Option<()> {
        (self.stream.read_buf(&mut self.buffer).await.ok()? > 0).then_some(())
    }

    async fn until(&mut self, end: &[u8]) -> Option<String> {
        loop {
            if let Some(at) = self.buffer.windows(end.len()).position(|w| w == end) {
                let text = String::from_utf8(self.buffer.split_to(at).to_vec()).unwrap();
                self.buffer.advance(end.len());
                return Some(text);
            }
            self.fill().await?;
        }
    }

    async fn exactly(&mut self, n: usize) -> Option<String> {
        while self.buffer.len() < n {
            self.fill().await?;
        }
        Some(String::from_utf8_lossy(&self.buffer.split_to(n)).into_owned())
    }

    /// Reads a response's head.
    pub async fn head(&mut self) -> Option<Reply> {
        let head = self.until(b"\r\n\r\n").await?;
        let mut lines = head.split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().unwrap();
        let field = |line: &str| {
            let (name, value) = line.split_once(':').unwrap();
            (name.to_ascii_lowercase(), value.trim().to_owned())
        };
        let headers = lines.map(field).collect();
        Some(Reply {
            status,
            headers,
            body: String::new(),
            trailers: String::new(),
        })
    }

    /// Reads a response; `None` when the connection ends before it has.
    pub async fn reply(&mut self) -> Option<Reply> {
        let mut reply = self.head().await?;
        if reply.header("transfer-encoding") == Some("chunked") {
            loop {
                let size = self.until(b"\r\n").await?;
                let size = usize::from_str_radix(size.trim(), 16).unwrap();
                if size == 0 {
                    break;
                }
                let chunk = self.exactly(size).await?;
                reply.body.push_str(&chunk);
                self.until(b"\r\n").await?;
            }
            reply.trailers = loop {
                let line = self.until(b"\r\n").await?;
                if line.is_empty() {
                    break std::mem::take(&mut reply.trailers);
                }
                reply.trailers.push_str(&line);
            };
        } else {
            let length = reply
                .header("content-length")
                .map_or(0, |l| l.parse().unwrap());
            reply.body = self.exactly(length).await?;
        }
        Some(reply)
    }

    /// Whether the other side closes now, cleanly.
    pub async fn is_closed(&mut self) -> bool {
        let read = self.stream.read_buf(&mut self.buffer);
        matches!(super::soon("the end of the connection", read).await, Ok(0))
    }
}

/// An HTTP/2 connection.
pub async fn http2(address: SocketAddr) -> SendRequest<Full<bytes::Bytes>> {
    http2_over(TcpStream::connect(address).await.unwrap()).await
}

/// The same on a connection that is there already.
pub async fn http2_over(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
) -> SendRequest<Full<bytes::Bytes>> {
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    sender
}

/// A request for HTTP/2.
pub fn request(method: &str, path: &str, body: &str) -> http::Request<Full<bytes::Bytes>> {
    http::Request::builder()
        .method(method)
        .uri(format!("http://web{path}"))
        .body(Full::new(body.to_owned().into()))
        .unwrap()
}

/// A body as text.
pub async fn text(response: http::Response<hyper::body::Incoming>) -> String {
    let body = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}
