//! Requests to a service, and who answered them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// No answer within this counts as a failure.
const PATIENCE: Duration = Duration::from_secs(5);

/// Who answered how often, since it was last asked.
pub type Answers = BTreeMap<String, u32>;

/// What was counted.
#[derive(Default)]
pub struct Counted {
    answers: Answers,
    /// Requests since the beginning, and those of them that failed.
    pub total: u64,
    pub failed: u64,
    /// What the last failure was.
    pub why: String,
}

/// Requests that go on until this is dropped.
pub struct Load {
    counted: Arc<Mutex<Counted>>,
    task: JoinHandle<()>,
}

impl Load {
    /// Sends this many requests a second, each on a connection of its own.
    pub fn start(address: SocketAddr, per_second: u32) -> Load {
        let counted = Arc::new(Mutex::new(Counted::default()));
        let counting = counted.clone();
        let task = tokio::spawn(async move {
            let mut tick = tokio::time::interval(Duration::from_secs(1) / per_second);
            loop {
                tick.tick().await;
                let counting = counting.clone();
                tokio::spawn(async move {
                    let asked = tokio::time::timeout(PATIENCE, ask(address)).await;
                    let answer = asked.unwrap_or_else(|_| Err(format!("silent for {PATIENCE:?}")));
                    let mut counted = lock(&counting);
                    counted.total += 1;
                    match answer {
                        Ok(name) => *counted.answers.entry(name).or_default() += 1,
                        Err(why) => {
                            counted.failed += 1;
                            counted.why = why;
                        }
                    }
                });
            }
        });
        Load { counted, task }
    }

    /// Who answered since this was last called.
    pub fn answers(&self) -> Answers {
        std::mem::take(&mut lock(&self.counted).answers)
    }

    /// What was counted since the beginning.
    pub fn with<T>(&self, show: impl FnOnce(&Counted) -> T) -> T {
        show(&lock(&self.counted))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(counted: &Mutex<Counted>) -> std::sync::MutexGuard<'_, Counted> {
    counted.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The name of the whoami that answers.
pub async fn ask(address: SocketAddr) -> Result<String, String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let stream = TcpStream::connect(address).await.map_err(|e| text(&e))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| text(&e))?;
    tokio::spawn(connection);
    let request = Request::get("/id")
        .header("host", address.to_string())
        .body(Empty::<Bytes>::new())
        .map_err(|e| text(&e))?;
    let response = sender.send_request(request).await.map_err(|e| text(&e))?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(|e| text(&e))?;
    let body = String::from_utf8_lossy(&body.to_bytes()).trim().to_owned();
    match status.is_success() {
        true => Ok(body),
        false => Err(format!("{status}: {body}")),
    }
}
