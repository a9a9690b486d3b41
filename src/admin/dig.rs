//! `GET /v1/dig`: what this node's DNS would answer, where that comes from, and why.

use std::net::{IpAddr, Ipv4Addr};

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use dns::explain::{Explained, Line};
use model::{ServiceKey, Snapshot};
use serde::{Deserialize, Serialize};

use super::view::endpoint_name;
use super::{ApiError, Shared};

/// What `/v1/dig` understands.
#[derive(Debug, Deserialize)]
pub(super) struct Asked {
    name: String,
    /// The type of records; without it `A`.
    #[serde(rename = "type")]
    kind: Option<String>,
    /// Whose question it is; without it this host's.
    from: Option<IpAddr>,
}

/// What a question would be answered.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Dug {
    /// In full.
    pub name: String,
    /// The type of records.
    #[serde(rename = "type")]
    pub kind: String,
    /// `NOERROR`, `NXDOMAIN` and so on.
    pub rcode: String,
    /// `zone`, `cache`, `stale`, `upstream`, or `none`: nobody answered.
    pub source: String,
    /// The services that made the answer, with their endpoints.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<DugService>,
    /// Who said so, now or when it was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
    /// Who is asked about a name that is not ours.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub upstreams: Vec<DugUpstream>,
    /// Records that answer.
    #[serde(default)]
    pub answers: Vec<DugRecord>,
    /// Records that say who is responsible.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub authorities: Vec<DugRecord>,
    /// Addresses of names that the answers mention.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub additionals: Vec<DugRecord>,
    /// Why, where the code or the answers don't say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// What the name may have been meant to be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hints: Vec<String>,
    /// How long it took.
    pub micros: u64,
}

/// A service that made an answer.
#[derive(Debug, Serialize, Deserialize)]
pub struct DugService {
    /// `namespace/name`.
    pub service: ServiceKey,
    /// Its name stands for its endpoints and not for a virtual IP.
    pub headless: bool,
    /// All of them, ready or not.
    pub endpoints: Vec<DugEndpoint>,
}

/// An endpoint of it.
#[derive(Debug, Serialize, Deserialize)]
pub struct DugEndpoint {
    /// `<service>/<workload>:<port>`.
    pub name: String,
    /// `ready` and so on.
    pub state: String,
    /// Why.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Where this node dials it.
    pub addresses: Vec<std::net::SocketAddr>,
}

/// An upstream.
#[derive(Debug, Serialize, Deserialize)]
pub struct DugUpstream {
    /// Its address.
    pub address: std::net::SocketAddr,
    /// Whether it answers.
    pub up: bool,
}

/// A record.
#[derive(Debug, Serialize, Deserialize)]
pub struct DugRecord {
    /// Whose it is.
    pub name: String,
    /// Seconds that it may be kept from now on.
    pub ttl: u32,
    /// As `A`.
    #[serde(rename = "type")]
    pub kind: String,
    /// In the notation of zone files.
    pub data: String,
}

impl From<Line> for DugRecord {
    fn from(line: Line) -> Self {
        DugRecord {
            name: line.name,
            ttl: line.ttl,
            kind: line.kind,
            data: line.data,
        }
    }
}

pub(super) async fn dig(
    State(context): Shared,
    Query(asked): Query<Asked>,
) -> Result<Json<Dug>, ApiError> {
    let Some(explainer) = context.rooms().dns.clone() else {
        let note = context.rooms().notes.get("dns").cloned();
        let why = note.unwrap_or_else(|| "it has not started yet".to_owned());
        let what = format!("this node serves no DNS: {why}");
        return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, what));
    };
    let kind = asked.kind.as_deref().unwrap_or("A");
    let from = asked.from.unwrap_or(Ipv4Addr::LOCALHOST.into());
    let explained = explainer.explain(&asked.name, kind, from).await;
    let explained =
        explained.map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, error.to_string()))?;
    Ok(Json(dug(explained, &context.feed.snapshot.load())))
}

fn dug(explained: Explained, snapshot: &Snapshot) -> Dug {
    let records = |lines: Vec<Line>| lines.into_iter().map(DugRecord::from).collect();
    let services = explained.services.iter();
    let upstreams = explained.upstreams.into_iter();
    Dug {
        name: explained.name,
        kind: explained.kind,
        rcode: explained.rcode.to_owned(),
        source: explained.source.as_str().to_owned(),
        services: services
            .filter_map(|key| of_service(key, snapshot))
            .collect(),
        upstream: explained.upstream.map(|address| address.to_string()),
        upstreams: upstreams
            .map(|(address, up)| DugUpstream { address, up })
            .collect(),
        answers: records(explained.answers),
        authorities: records(explained.authorities),
        additionals: records(explained.additionals),
        reason: explained.reason,
        hints: explained.hints,
        micros: explained.micros,
    }
}

fn of_service(key: &ServiceKey, snapshot: &Snapshot) -> Option<DugService> {
    let view = snapshot.service(key)?;
    let all = view.ports.iter().flat_map(|port| port.endpoints.iter());
    Some(DugService {
        service: key.clone(),
        headless: view.headless(),
        endpoints: all
            .map(|endpoint| DugEndpoint {
                name: endpoint_name(key, endpoint),
                state: endpoint.state.to_string(),
                reason: endpoint.reason.to_string(),
                addresses: endpoint.addresses().to_vec(),
            })
            .collect(),
    })
}
