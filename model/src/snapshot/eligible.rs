//! Which endpoints may be given new work: what is asked of each, in this order.

use super::view::EndpointView;
use crate::endpoint::{Health, Lifecycle, State};

/// What an endpoint must be to be given new work. The builder lets through whom all of them keep; `heddle explain` says
/// who was removed by which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// This node has an address to dial it at.
    Reachable,
    /// No operator has drained it, its workload or its node.
    Enabled,
    /// Its workload was not told to end.
    Running,
    /// It passes its checks.
    Passing,
}

impl Filter {
    /// All, in the order in which they are asked.
    pub const ALL: [Filter; 4] = [
        Filter::Reachable,
        Filter::Enabled,
        Filter::Running,
        Filter::Passing,
    ];

    /// Whether an endpoint is kept.
    pub fn keeps(self, endpoint: &EndpointView) -> bool {
        let running = endpoint.endpoint.lifecycle.value == Lifecycle::Running;
        match self {
            Filter::Reachable => !endpoint.addresses().is_empty(),
            Filter::Enabled => endpoint.state != State::Draining || !running,
            Filter::Running => running,
            Filter::Passing => endpoint.health.value == Health::Passing,
        }
    }

    /// The first that removes an endpoint; none: it may be given new work.
    pub fn removing(endpoint: &EndpointView) -> Option<Filter> {
        Filter::ALL.into_iter().find(|f| !f.keeps(endpoint))
    }

    /// As in `heddle explain`.
    pub fn as_str(self) -> &'static str {
        match self {
            Filter::Reachable => "reachable",
            Filter::Enabled => "enabled",
            Filter::Running => "running",
            Filter::Passing => "passing",
        }
    }
}
