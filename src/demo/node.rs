//! The demo's node: `heddle up`, with a configuration that suits any machine.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use super::process::Process;
use crate::admin::ready::Readiness;
use crate::cli::Failure;
use crate::cli::client::Client;

/// On a machine that is busy with everything else.
const START: Duration = Duration::from_secs(30);
const STOP: Duration = Duration::from_secs(10);

/// The node's process and where it is reached.
pub struct Node {
    process: Process,
    log: PathBuf,
    /// What `HEDDLE_SERVER` is set to.
    pub server: String,
    pub client: Client,
    pub dns: SocketAddr,
    pub admin: SocketAddr,
}

impl Node {
    /// Starts it. With `docker`, the URL of a socket, it watches that one's containers.
    pub fn start(folder: &Path, docker: Option<&str>) -> Result<Node, Failure> {
        let failed = |what: &Path, e: std::io::Error| {
            Failure::Failed(format!("demo: {}: {e}", what.display()))
        };
        let text = |path: &Path| toml::Value::String(path.display().to_string()).to_string();
        let socket = folder.join("heddle.sock");
        let dns = free_address(5300)?;
        let admin = free_address(7070)?;
        let docker = match docker {
            Some(url) => format!("socket = {}", toml::Value::String(url.to_owned())),
            None => "enabled = false".to_owned(),
        };
        let config = format!(
            "[node]\nname = \"demo\"\naddress = \"127.0.0.1\"\nstate_dir = {}\n[docker]\n{docker}\n\
             [mesh]\nvip_range = \"127.96.0.0/16\"\n[proxy]\nworkers = 2\ndrain_timeout = \"2s\"\n\
             [dns]\nlisten = [\"{dns}\"]\n[admin]\nsocket = {}\nlisten = \"{admin}\"\n",
            text(&folder.join("state")),
            text(&socket),
        );
        let file = folder.join("heddle.toml");
        std::fs::write(&file, config).map_err(|e| failed(&file, e))?;
        let log = folder.join("log");
        let to = std::fs::File::create(&log).map_err(|e| failed(&log, e))?;
        let path = file.display().to_string();
        let process = Process::start(&["up", "--config", &path], Stdio::null(), to.into())?;
        let server = format!("unix://{}", socket.display());
        Ok(Node {
            process,
            log,
            client: Client::new(Some(&server))?,
            server,
            dns,
            admin,
        })
    }

    /// Waits until it is ready.
    pub async fn ready(&mut self) -> Result<(), Failure> {
        let waiting = async {
            loop {
                let ready: Result<Readiness, Failure> = self.client.get("/readyz").await;
                if ready.is_ok_and(|r| r.ready) {
                    return Ok(());
                }
                if let Some(status) = self.process.ended() {
                    return Err(Failure::Failed(format!(
                        "demo: the node ended with {status}\n{}",
                        last_lines(&self.log)
                    )));
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        match tokio::time::timeout(START, waiting).await {
            Ok(done) => done,
            Err(_) => Err(Failure::Failed(format!(
                "demo: the node is not ready after {START:?}\n{}",
                last_lines(&self.log)
            ))),
        }
    }

    pub async fn end(&mut self) {
        self.process.stop(STOP).await;
    }
}

fn last_lines(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}

/// An address on loopback whose port nobody has, neither TCP's nor UDP's: this port where it is free.
fn free_address(wanted: u16) -> Result<SocketAddr, Failure> {
    let try_port = |port| {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        let address = tcp.local_addr()?;
        UdpSocket::bind(address)?;
        Ok::<_, std::io::Error>(address)
    };
    let mut tried = try_port(wanted);
    for _ in 0..10 {
        if tried.is_ok() {
            break;
        }
        tried = try_port(0);
    }
    tried.map_err(|e| Failure::Failed(format!("demo: no free port on 127.0.0.1: {e}")))
}

/// A port that nobody has on any address of this host: the virtual IPs are among them.
pub fn free_port(wanted: u16) -> Result<u16, Failure> {
    let bind = |port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port));
    bind(wanted)
        .or_else(|_| bind(0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|e| Failure::Failed(format!("demo: no free port: {e}")))
}
