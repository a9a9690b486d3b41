//! Backends as processes: `heddle whoami` on free ports, registered with the node.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;

use super::node::Node;
use super::process::Process;
use crate::admin::write::{Done, DrainRequest};
use crate::cli::Failure;

/// What is in flight has so long.
const STOP: Duration = Duration::from_secs(5);

/// Those that run, by name.
#[derive(Default)]
pub struct Processes(BTreeMap<String, Process>);

impl Processes {
    pub async fn start(&mut self, node: &Node, service: &str, name: &str) -> Result<(), Failure> {
        let args = [
            "whoami",
            "--listen",
            "127.0.0.1:0",
            "--name",
            name,
            "--linger",
            "200ms",
        ];
        let process = Process::start(&args, Stdio::piped(), Stdio::null())?;
        let process = self.0.entry(name.to_owned()).or_insert(process);
        let address = listens_at(process, name).await?;
        let registration = json!({
            "id": name,
            "namespace": "shop",
            "labels": super::services::labels(service, name),
            "ports": [address.port()],
        });
        let _: Done = node
            .client
            .post("/v1/registrations", registration.to_string())
            .await?;
        Ok(())
    }

    /// Drained first: nobody tells heddle beforehand that a process is to end, as Docker does of a container.
    pub async fn stop(&mut self, node: &Node, name: &str) -> Result<(), Failure> {
        let drain = DrainRequest {
            kind: "workload".to_owned(),
            name: name.to_owned(),
            namespace: Some("shop".to_owned()),
            reason: "to be stopped".to_owned(),
        };
        let body = serde_json::to_string(&drain).map_err(|e| Failure::Failed(e.to_string()))?;
        let _: Done = node.client.post("/v1/drain", body.clone()).await?;
        if let Some(mut process) = self.0.remove(name) {
            process.stop(STOP).await;
        }
        let _: Done = node.client.post("/v1/undrain", body).await?;
        let path = format!("/v1/registrations/{name}");
        let _: Done = node.client.delete(&path).await?;
        Ok(())
    }

    pub fn kill(&mut self, name: &str) -> Result<(), Failure> {
        if let Some(mut process) = self.0.remove(name) {
            process.kill();
        }
        Ok(())
    }

    pub async fn end(&mut self) {
        for mut process in std::mem::take(&mut self.0).into_values() {
            process.kill();
        }
    }
}

/// Where a whoami listens, which it prints first.
async fn listens_at(process: &mut Process, name: &str) -> Result<SocketAddr, Failure> {
    let stdout = process.stdout();
    let line = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        BufReader::new(stdout?).read_line(&mut line).ok()?;
        line.trim().strip_prefix("http ")?.parse().ok()
    });
    line.await
        .ok()
        .flatten()
        .ok_or_else(|| Failure::Failed(format!("demo: backend {name} does not start")))
}
