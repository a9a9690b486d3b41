//! A Docker of our own making: as much of its API as the agent uses, over a real Unix socket, with every order of events
//! that a test wants.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

#[derive(Default)]
struct State {
    containers: BTreeMap<String, Value>,
    /// Answered with something that is no description.
    broken: BTreeSet<String>,
}

/// The daemon. Its containers live on while it is down, as with live-restore.
pub struct FakeDocker {
    path: PathBuf,
    state: Arc<Mutex<State>>,
    events: broadcast::Sender<String>,
    up: Option<CancellationToken>,
}

/// A whole id that starts with `name`, padded.
pub fn id(name: &str) -> String {
    format!("{name:0<64}")
}

impl FakeDocker {
    /// A daemon that is down, with its socket to be in `folder`.
    pub fn down(folder: &Path) -> Self {
        FakeDocker {
            path: folder.join("docker.sock"),
            state: Arc::default(),
            events: broadcast::channel(64).0,
            up: None,
        }
    }

    /// A daemon that runs.
    pub fn up(folder: &Path) -> Self {
        let mut docker = FakeDocker::down(folder);
        docker.start();
        docker
    }

    pub fn url(&self) -> String {
        format!("unix://{}", self.path.display())
    }

    pub fn start(&mut self) {
        let listener = UnixListener::bind(&self.path).expect("the socket is free");
        let up = CancellationToken::new();
        let (state, events, down) = (self.state.clone(), self.events.clone(), up.clone());
        tokio::spawn(async move {
            while let Some(Ok((stream, _))) = down.run_until_cancelled(listener.accept()).await {
                let (state, events) = (state.clone(), events.clone());
                let serving = down.clone().run_until_cancelled_owned(async move {
                    let _ = serve(stream, &state, &events).await;
                });
                tokio::spawn(serving);
            }
        });
        self.up = Some(up);
    }

    /// Every connection breaks and the socket is gone.
    pub fn stop(&mut self) {
        if let Some(up) = self.up.take() {
            up.cancel();
        }
        let _ = std::fs::remove_file(&self.path);
    }

    /// A container that runs from now on at `ip`; no event tells of it.
    pub fn add(&self, name: &str, ip: &str, labels: &[(&str, &str)]) {
        let labels: BTreeMap<&str, &str> = labels.iter().copied().collect();
        let started = model::Timestamp::now().to_string();
        self.state.lock().expect("unpoisoned").containers.insert(
            id(name),
            json!({
                "Id": id(name),
                "Name": format!("/{name}"),
                "State": {"Status": "running", "Running": true, "StartedAt": started},
                "Config": {"Labels": labels},
                "HostConfig": {"NetworkMode": "default"},
                "NetworkSettings": {"Networks": {"bridge": {"IPAddress": ip}}, "Ports": {}},
            }),
        );
    }

    /// Changes what is said of a container; no event tells of it.
    pub fn change(&self, name: &str, pointer: &str, value: Value) {
        let mut state = self.state.lock().expect("unpoisoned");
        let container = state.containers.get_mut(&id(name)).expect("a container");
        *container.pointer_mut(pointer).expect("a place") = value;
    }

    pub fn break_description(&self, name: &str) {
        self.state
            .lock()
            .expect("unpoisoned")
            .broken
            .insert(id(name));
    }

    /// A container is gone; no event tells of it.
    pub fn remove(&self, name: &str) {
        self.state
            .lock()
            .expect("unpoisoned")
            .containers
            .remove(&id(name));
    }

    pub fn event(&self, name: &str, action: &str, attributes: Value) {
        let nanos = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("after 1970")
            .as_nanos();
        let event = json!({
            "Type": "container", "Action": action, "Actor": {"ID": id(name), "Attributes": attributes},
            "time": nanos / 1_000_000_000, "timeNano": nanos,
        });
        // Nobody may be connected.
        let _ = self.events.send(event.to_string());
    }

    /// `docker run`.
    pub fn run(&self, name: &str, ip: &str, labels: &[(&str, &str)]) {
        self.add(name, ip, labels);
        self.event(name, "start", json!({}));
    }

    /// How `docker stop` begins: a signal, with the process still running.
    pub fn term(&self, name: &str) {
        self.event(name, "kill", json!({"signal": "15"}));
    }

    /// The process has ended.
    pub fn die(&self, name: &str) {
        self.remove(name);
        self.event(name, "die", json!({"exitCode": "0"}));
    }
}

impl Drop for FakeDocker {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn serve(
    mut stream: UnixStream,
    state: &Mutex<State>,
    events: &broadcast::Sender<String>,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut chunk = [0; 4096];
    while !head.windows(4).any(|w| w == b"\r\n\r\n") {
        let read = stream.read(&mut chunk).await?;
        if read == 0 {
            return Ok(());
        }
        head.extend_from_slice(&chunk[..read]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let target = head.split(' ').nth(1).unwrap_or_default();
    let path = target.split('?').next().unwrap_or_default();
    // `/v1.41/containers/json` or `/containers/json`.
    let path = match path.strip_prefix("/v1.") {
        Some(rest) => rest.find('/').map_or("", |at| &rest[at..]),
        None => path,
    };
    if path == "/events" {
        let mut events = events.subscribe();
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
            .await?;
        while let Ok(event) = events.recv().await {
            let chunk = format!("{:x}\r\n{event}\n\r\n", event.len() + 1);
            stream.write_all(chunk.as_bytes()).await?;
        }
        return Ok(());
    }
    let (status, body) = answer(path, &state.lock().expect("unpoisoned"));
    let head = format!(
        "HTTP/1.1 {status} Answer\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await
}

fn answer(path: &str, state: &State) -> (u16, String) {
    let body = match path {
        "/version" => json!({"Version": "20.10.24", "ApiVersion": "1.41", "MinAPIVersion": "1.12"}),
        "/networks" => json!([{"Name": "bridge", "Id": "1", "Driver": "bridge"}]),
        "/containers/json" => {
            let all: Vec<Value> = state
                .containers
                .keys()
                .map(|id| json!({"Id": id}))
                .collect();
            json!(all)
        }
        _ => {
            let id = path
                .strip_prefix("/containers/")
                .and_then(|rest| rest.strip_suffix("/json"))
                .unwrap_or_default();
            if state.broken.contains(id) {
                return (200, r#"{"Id": 7, "State": "nonsense"}"#.to_owned());
            }
            match state.containers.get(id) {
                Some(container) => container.clone(),
                None => return (404, json!({"message": "No such container"}).to_string()),
            }
        }
    };
    (200, body.to_string())
}
