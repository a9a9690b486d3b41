//! Which services select which workloads of this node, as which endpoints, and why or why not. Pure.
//!
//! # Layout
//! - `index`: services by the label pairs they require, workloads by the pairs they carry, so that one event looks at the
//!   few that it concerns and not at all of them
//! - `endpoints`: the endpoints that one service makes of one workload, or what prevents them
//! - `verdict`: what users are told about a workload

mod endpoints;
mod index;
mod verdict;

use std::net::IpAddr;
use std::sync::Arc;

use model::endpoint::Endpoint;
use model::name::Name;

use crate::check::Plan;

pub use endpoints::{Selected, endpoints};
pub use index::Selection;
pub(crate) use verdict::about_itself;

/// What selection needs to know of this node.
#[derive(Clone, Debug)]
pub struct NodeFacts {
    /// Its name.
    pub name: Name,
    /// Where other nodes reach it.
    pub addresses: Vec<IpAddr>,
    /// Where it is.
    pub zone: Option<Arc<str>>,
}

/// An endpoint that is to be, with what decides about its health; the health in it is not known yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    /// All of it but its health.
    pub endpoint: Endpoint,
    /// What decides about its health.
    pub plan: Plan,
}

#[cfg(test)]
mod tests;
