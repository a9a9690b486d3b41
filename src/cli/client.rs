//! Talking to a node's admin API, over its Unix socket or over TCP.

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

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

/// How long a node may take.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// To take the connection.
    connect: Duration,
    /// From then to the head of its answer. What follows a head may take as long as it does: a watch goes on.
    head: Duration,
}

const PATIENCE: Patience = Patience {
    connect: Duration::from_secs(5),
    head: Duration::from_secs(30),
};

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
    patience: Patience,
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
        Ok(Client {
            server,
            patience: PATIENCE,
        })
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
                let stream = self.connect(UnixStream::connect(path)).await?;
                self.head(exchange(TokioIo::new(stream), request)).await?
            }
            Server::Tcp(host) => {
                let stream = self.connect(TcpStream::connect(host)).await?;
                self.head(exchange(TokioIo::new(stream), request)).await?
            }
        };
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

    async fn connect<S>(
        &self,
        connecting: impl Future<Output = std::io::Result<S>>,
    ) -> Result<S, Failure> {
        let within = self.patience.connect;
        match tokio::time::timeout(within, connecting).await {
            Ok(stream) => stream.map_err(|e| self.unreachable(&e)),
            Err(_) => Err(self.silent(
                "no connection",
                within,
                "is the address right, and its host up?",
            )),
        }
    }

    async fn head<R>(&self, answer: impl Future<Output = hyper::Result<R>>) -> Result<R, Failure> {
        let within = self.patience.head;
        match tokio::time::timeout(within, answer).await {
            Ok(answer) => answer.map_err(|e| self.broken(&e)),
            Err(_) => Err(self.silent(
                "no answer",
                within,
                "it hangs or is overloaded, see its log; what was to be written may be written all the same",
            )),
        }
    }

    fn silent(&self, what: &str, within: Duration, then: &str) -> Failure {
        Failure::Failed(format!(
            "node at {}: {what} within {within:?} ({then})",
            self.name()
        ))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_node_that_takes_connections_and_says_nothing_is_not_waited_for_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("heddle.sock");
        let _silent = tokio::net::UnixListener::bind(&path).unwrap();
        let address = format!("unix://{}", path.display());
        let mut client = Client::new(Some(&address)).unwrap();
        client.patience.head = Duration::from_millis(50);
        let error = client.get::<serde_json::Value>("/v1/nodes").await;
        let said = error.unwrap_err().to_string();
        let wanted = format!("node at {address}: no answer within 50ms (");
        assert!(said.starts_with(&wanted), "{said}");
    }
}
