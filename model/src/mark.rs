//! Admin marks: what an operator took out of rotation, apart from the slices so that their rewriting never loses it.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::name::{Name, ServiceKey};
use crate::time::Timestamp;

/// What is drained.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum MarkTarget {
    /// Every endpoint of a node.
    Node {
        /// The node.
        name: Name,
    },
    /// Every endpoint of a workload.
    Workload {
        /// The node it runs on.
        node: Name,
        /// Its id.
        workload: Arc<str>,
    },
    /// One endpoint.
    Endpoint {
        /// Its service.
        service: ServiceKey,
        /// Its workload's id.
        workload: Arc<str>,
        /// Its port's name.
        port: Name,
    },
}

impl fmt::Display for MarkTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MarkTarget::Node { name } => write!(f, "node {name}"),
            MarkTarget::Workload { node, workload } => write!(f, "workload {workload} on {node}"),
            MarkTarget::Endpoint {
                service,
                workload,
                port,
            } => write!(f, "endpoint {service}/{workload}:{port}"),
        }
    }
}

/// A drained target: since when and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mark {
    /// What is drained.
    pub target: MarkTarget,
    /// Since when.
    pub since: Timestamp,
    /// By whom or why.
    #[serde(default)]
    pub reason: String,
}
