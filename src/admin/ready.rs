//! `/readyz`: 503 only until everything is up, before the first sync and while draining, so that an external load balancer can poll it.
//!
//! Losing etcd or Docker later is a 200 whose body gives the reasons: the node goes on serving.

use agent::DockerStatus;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use model::Timestamp;
use model::snapshot::Freshness;
use serde::{Deserialize, Serialize};

use super::{Context, Shared};

/// What `/readyz` answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Readiness {
    /// Whether this node should be sent traffic.
    pub ready: bool,
    /// The node.
    pub node: String,
    /// The registry's revision that it serves.
    pub revision: i64,
    /// What it waits for or can't do; empty when all is well.
    pub reasons: Vec<String>,
}

pub(super) async fn readyz(State(context): Shared) -> (StatusCode, Json<Readiness>) {
    let readiness = readiness(&context);
    let status = if readiness.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(readiness))
}

/// Whether the node is ready, and what it waits for.
pub fn readiness(context: &Context) -> Readiness {
    let snapshot = context.feed.snapshot.load();
    let mut reasons = Vec::new();
    let draining = context.draining.is_cancelled();
    if draining {
        reasons.push("draining: this node goes down".to_owned());
    }
    match snapshot.freshness {
        Freshness::Unsynced => {
            reasons.push("waits for the first sync with the registry".to_owned())
        }
        Freshness::Stale => reasons.push("serves its last snapshot, which may be stale".to_owned()),
        Freshness::Fresh => {}
    }
    let now = Timestamp::now();
    let status = context.feed.registry.borrow().clone();
    if let Some((reason, since)) = &status.lost {
        let seconds = since.age(now).as_secs();
        reasons.push(format!("registry lost for {seconds} s: {reason}"));
    }
    if let Some(guard) = &snapshot.guard {
        reasons.push(guard.to_string());
    }
    for bad in &status.bad {
        reasons.push(format!("bad record {}: {}", bad.key, bad.reason));
    }
    let rooms = context.rooms();
    // The last to start.
    let started = rooms.agent.is_some();
    if !started {
        reasons.push("starts: proxy, DNS and agent are not all up yet".to_owned());
    }
    if let Some(agent) = &rooms.agent {
        let status = agent.status();
        if let DockerStatus::Waiting { reason, since } = &status.docker {
            let seconds = since.age(now).as_secs();
            reasons.push(format!("waits for Docker for {seconds} s: {reason}"));
        }
        if let Some((reason, _)) = &status.publish.failing {
            let waiting = status.publish.waiting;
            reasons.push(format!("{waiting} slices wait to be published: {reason}"));
        }
    }
    for (what, why) in &rooms.notes {
        reasons.push(format!("{what}: {why}"));
    }
    for (path, why) in &rooms.files {
        reasons.push(format!("resources {}: {why}", path.display()));
    }
    if let Some(proxy) = &rooms.proxy {
        for listener in proxy.listeners() {
            if let Some(error) = listener.error {
                reasons.push(format!(
                    "service {} port {}: no listener on {}: {error}",
                    listener.service, listener.port, listener.address
                ));
            }
        }
        for tls in proxy.tls() {
            reasons.push(format!(
                "service {} port {}: TLS: {}",
                tls.service, tls.port, tls.error
            ));
        }
    }
    Readiness {
        ready: started && !draining && snapshot.freshness != Freshness::Unsynced,
        node: context.node.to_string(),
        revision: snapshot.revision,
        reasons,
    }
}
