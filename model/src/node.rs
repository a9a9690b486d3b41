//! Nodes: hosts that run `heddle up`.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::name::Name;
use crate::net::IpNet;
use crate::time::Timestamp;

/// The capability of a node that publishes [`crate::endpoint::Findings`] and collects what gone nodes left. Only nodes that
/// name it are chosen for that: an older one would be chosen and do nothing.
pub const ORPHANS: &str = "orphans";

/// What a node says of itself; outlives its process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// Unique among the nodes of one registry.
    pub name: Name,
    /// Where other nodes reach it.
    pub addresses: Vec<IpAddr>,
    /// Where it is, for zone-aware picking.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Networks of its containers that other nodes can dial directly.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routable: Vec<IpNet>,
    /// Version of heddle it runs.
    pub version: String,
    /// Names of what it can do, so that newer nodes know what older ones can't.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// When it joined with these facts.
    pub since: Timestamp,
}

/// A node's leased key: gone when the node is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Liveness {
    /// Whose.
    pub node: Name,
    /// A number that each start of the node draws anew: two nodes that share a name are told apart by it.
    pub session: String,
    /// Since when it is alive.
    pub since: Timestamp,
    /// It goes down on purpose and comes back: its slices are believed until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarting_until: Option<Timestamp>,
}
