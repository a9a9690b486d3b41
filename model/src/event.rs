//! Events: what changed and why, for people.

use serde::{Deserialize, Serialize};

use crate::name::Name;
use crate::time::Timestamp;

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    /// A service.
    Service,
    /// An endpoint of a service.
    Endpoint,
    /// A container or a registration.
    Workload,
    /// A node.
    Node,
    /// The registry itself.
    Registry,
}

/// Something that happened, told once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// When it happened, by the clock of the node that saw it.
    pub at: Timestamp,
    /// What it is about.
    pub kind: EventKind,
    /// The namespace of what it is about, where that has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Name>,
    /// The name of what it is about, as commands take it.
    pub name: String,
    /// The node on which it happened, where it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Name>,
    /// One word in CamelCase, out of a fixed set: what tools filter by.
    pub reason: String,
    /// A sentence for people, with the cause.
    pub message: String,
}
