//! Workloads: what can serve on a node, a container or a process or VM registered by hand.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::endpoint::{Fact, Health, Lifecycle};
use crate::labels::Labels;
use crate::name::{Name, ServiceKey};
use crate::service::HealthPolicy;

/// Where a workload comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// A container of this node's Docker or Podman.
    Docker,
    /// `heddle register`.
    Registered,
}

/// A published port: where the workload's port can be reached on its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Published {
    /// The port inside the container.
    pub port: u16,
    /// The host's address and port; an unspecified address means all of the host's.
    pub host: SocketAddr,
}

/// Something that can serve.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Workload {
    /// The container's id, first 12 digits, or the registration's name.
    pub id: Arc<str>,
    /// What people call it.
    pub name: Arc<str>,
    /// The namespace its labels are matched in.
    pub namespace: Name,
    /// Where it comes from.
    pub source: Source,
    /// Matched raw: no syntax limits.
    pub labels: Labels,
    /// Docker's `StartedAt` and the address; for registrations the create revision.
    pub generation: Arc<str>,
    /// Dialled on this node: one address per family at most.
    pub addresses: Vec<IpAddr>,
    /// The network that `addresses` are of, and why it was chosen: shown to users.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub network: String,
    /// It shares the host's network: its ports are the host's.
    #[serde(default)]
    pub host_network: bool,
    /// TCP ports that the image or the user exposes, ascending.
    pub exposed: Vec<u16>,
    /// TCP ports published on the host.
    pub published: Vec<Published>,
    /// Whether it runs or was told to end.
    pub lifecycle: Fact<Lifecycle>,
    /// What Docker's HEALTHCHECK says; none when the image has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub docker_health: Option<Fact<Health>>,
    /// The check that a registration names for itself, before its service's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<HealthPolicy>,
    /// Why it can't serve at all, such as a network that can't be dialled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What the agent decided about a workload and one service, for `heddle get workloads`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// The service; none for a verdict about the workload itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceKey>,
    /// Whether it has endpoints there.
    pub selected: bool,
    /// Why, or why not.
    pub reason: String,
}

/// A workload with its verdicts, as the admin API shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadReport {
    /// The workload.
    #[serde(flatten)]
    pub workload: Workload,
    /// The node it runs on.
    pub node: Name,
    /// What was decided.
    pub verdicts: Vec<Verdict>,
}

/// `heddle register FILE`: a process or a VM put beside the containers; kept in the registry under its node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Registration {
    /// Unique on its node.
    pub id: Name,
    /// The namespace its labels are matched in.
    #[serde(default = "crate::service::default_namespace")]
    pub namespace: Name,
    /// As a container's labels.
    #[serde(default)]
    pub labels: Labels,
    /// Where this node reaches it: 127.0.0.1 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Where other nodes reach it, when that is another address. None: `address` where that is no loopback address, else
    /// the node's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_address: Option<IpAddr>,
    /// Its TCP ports.
    pub ports: Vec<u16>,
    /// How to check it, before what its services say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<HealthPolicy>,
}
