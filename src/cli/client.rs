//! Talking to a node's admin API, over its Unix socket or over TCP.

use std::path::PathBuf;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::{TcpStream, UnixStream};

use super::Failure;
use crate::admin::ApiError;

const DEFAULT_SOCKET: &str = "/run/heddle/heddle.sock";

/// Where the node is.
#[derive(Debug, Clone)]
enum Server {
    Unix(PathBuf),
    Tcp(String),
}

/// A node to talk to; each call makes a connection of its own.
#[derive(Debug, Clone)]
pub struct Client {
    server: Server,
}

impl Client {
    /// The node that `--server` or `HEDDLE_SERVER` names; else the one on this host.
    pub fn new(server: Option<&str>) -> Result<Client, Failure> {
        let server = match server {
            None => Server::Unix(DEFAULT_SOCKET.into()),
            Some(text) => match (text.strip_prefix("unix://"), text.strip_prefix("http://")) {
                (Some(path), _) => Server::Unix(path.into()),
                (_, Some(host)) => Server::Tcp(host.trim_end_matches('/').to_owned()),
                _ => {
                    return Err(Failure::Input(format!(
                        "--server {text}: neither unix:///path nor http://host:port"
                    )));
                }
            },
        };
        Ok(Client { server })
    }

    /// Reads a resource.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.call(Method::GET, path, String::new()).await
    }

    /// Writes one.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: String) -> Result<T, Failure> {
        self.call(Method::POST, path, body).await
    }

    /// Deletes one.
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.call(Method::DELETE, path, String::new()).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: String,
    ) -> Result<T, Failure> {
        let response = self.send(method, path, body).await?;
        let bytes = response
            .into_body()
            .collect()
            .await
            .map_err(|e| self.broken(&e))?
            .to_bytes();
        serde_json::from_slice(&bytes).map_err(|e| {
            Failure::Failed(format!(
                "{}: an answer that can't be read: {e}",
                self.name()
            ))
        })
    }

    /// Reads a resource that goes on: each line of the answer is given to `line` until the node ends it.
    pub async fn lines(
        &self,
        path: &str,
        mut line: impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut body = self
            .send(Method::GET, path, String::new())
            .await?
            .into_body();
        let mut held: Vec<u8> = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| self.broken(&e))?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            held.extend_from_slice(&data);
            while let Some(end) = held.iter().position(|b| *b == b'\n') {
                line(&held[..end])?;
                held.drain(..=end);
            }
        }
        Err(Failure::Failed(format!(
            "{}: the node ended the watch",
            self.name()
        )))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: String,
    ) -> Result<Response<Incoming>, Failure> {
        let host = match &self.server {
            Server::Unix(_) => "localhost".to_owned(),
            Server::Tcp(host) => host.clone(),
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", host)
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| Failure::Input(format!("{path}: {e}")))?;
        let response = match &self.server {
            Server::Unix(path) => {
                let stream = UnixStream::connect(path)
                    .await
                    .map_err(|e| self.unreachable(&e))?;
                exchange(TokioIo::new(stream), request).await
            }
            Server::Tcp(host) => {
                let stream = TcpStream::connect(host)
                    .await
                    .map_err(|e| self.unreachable(&e))?;
                exchange(TokioIo::new(stream), request).await
            }
        }
        .map_err(|e| self.broken(&e))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let bytes = response
            .into_body()
            .collect()
            .await
            .map_err(|e| self.broken(&e))?
            .to_bytes();
        let text = match serde_json::from_slice::<ApiError>(&bytes) {
            Ok(error) => std::iter::once(error.error)
                .chain(error.details)
                .collect::<Vec<_>>()
                .join("\n  "),
            Err(_) => format!("{status}: {}", String::from_utf8_lossy(&bytes).trim()),
        };
        if status == 400 || status == 413 {
            Err(Failure::Input(text))
        } else {
            Err(Failure::Failed(text))
        }
    }

    fn name(&self) -> String {
        match &self.server {
            Server::Unix(path) => format!("unix://{}", path.display()),
            Server::Tcp(host) => format!("http://{host}"),
        }
    }

    fn unreachable(&self, error: &std::io::Error) -> Failure {
        Failure::Failed(format!(
            "{}: no node answers: {error} (start one with heddle up, or name another with --server)",
            self.name()
        ))
    }

    fn broken(&self, error: &hyper::Error) -> Failure {
        Failure::Failed(format!("{}: the connection broke: {error}", self.name()))
    }
}

async fn exchange<I>(io: I, request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(io).await?;
    tokio::spawn(connection);
    sender.send_request(request).await
}

/// A path segment or query value, percent-encoded.
pub fn escape(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
