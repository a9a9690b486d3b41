//! What nodes that are gone left in the registry: when it is of no use any more, and which node removes it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use model::catalog::Catalog;
use model::endpoint::{Findings, Slice};
use model::membership::NodeState;
use model::name::Name;
use model::rendezvous::Candidates;
use model::snapshot::{Freshness, Snapshot};
use registry::publish::Orphan;

use super::Unowned;

/// When slices of nodes that are gone are removed.
#[derive(Clone, Copy, Debug)]
pub struct CollectOptions {
    /// How long every endpoint of a slice must have failed its checks from the collecting node.
    pub after: Duration,
    /// How long a slice stays at most whose endpoints can't be checked from the collecting node; also how much longer
    /// each further node waits than the one before it in line, in case that one doesn't do it.
    pub unchecked_after: Duration,
    /// How long a slice stays at most, even if its endpoints pass.
    pub at_most: Duration,
}

impl CollectOptions {
    /// `after`, ten times that for what can't be checked, and 24 h at most.
    pub fn new(after: Duration) -> Self {
        CollectOptions {
            after,
            unchecked_after: after.saturating_mul(10),
            at_most: Duration::from_secs(24 * 60 * 60),
        }
    }
}

impl Default for CollectOptions {
    fn default() -> Self {
        CollectOptions::new(Duration::from_secs(60))
    }
}

/// Something to remove, with why in words.
#[derive(Clone, Debug, PartialEq)]
pub struct Due {
    /// As it was judged.
    pub orphan: Orphan,
    /// Why.
    pub reason: String,
}

/// Keeps account of how long nodes have been gone.
#[derive(Debug)]
pub struct Collector {
    node: Name,
    options: CollectOptions,
    /// Since when each node is known to be orphaned.
    orphaned: HashMap<Name, Duration>,
}

impl Collector {
    /// For what `node` may have to remove.
    pub fn new(node: Name, options: CollectOptions) -> Self {
        Collector {
            node,
            options,
            orphaned: HashMap::new(),
        }
    }

    /// How often to look: often enough to be late by a tenth at most.
    pub fn interval(&self) -> Duration {
        let (shortest, longest) = (Duration::from_millis(50), Duration::from_secs(5));
        (self.options.after / 10).clamp(shortest, longest)
    }

    /// What this node should remove at `now`, and whether there is anything that will have to be removed some day.
    ///
    /// Nothing while the registry is lost, and nothing of nodes that are alive, restarting or held.
    pub fn judge(
        &mut self,
        snapshot: &Snapshot,
        catalog: &Catalog,
        unowned: &Unowned,
        now: Duration,
    ) -> (Vec<Due>, bool) {
        let gone = |node: &Name| {
            snapshot
                .members
                .get(node)
                .is_some_and(|m| m.state == NodeState::Orphaned)
        };
        self.orphaned.retain(|node, _| gone(node));
        for (node, _) in snapshot.members.iter().filter(|(node, _)| gone(node)) {
            self.orphaned.entry(node.clone()).or_insert(now);
        }
        if self.orphaned.is_empty() || snapshot.freshness != Freshness::Fresh {
            return (Vec::new(), !self.orphaned.is_empty());
        }
        let caretakers = snapshot.caretakers(&self.node);
        let mut left = false;
        let mut due = Vec::new();
        let slices = catalog.slices.values().flat_map(|by_node| by_node.values());
        for slice in slices {
            let Some(since) = self.orphaned.get(&slice.node) else {
                continue;
            };
            left = true;
            if let Some((at, reason)) = self.slice_ends(slice, *since, unowned)
                && self.mine_at(at, &caretakers, &slice.service, &slice.node, now)
            {
                let orphan = Orphan::Slice(slice.clone());
                due.push(Due { orphan, reason });
            }
        }
        let findings = catalog.findings.values().flat_map(|m| m.values());
        for found in findings {
            let Some(since) = self.orphaned.get(&found.node) else {
                continue;
            };
            left = true;
            let at = *since + self.options.after;
            if superseded(found, snapshot, catalog, &caretakers)
                && self.mine_at(at, &caretakers, &found.service, &found.node, now)
            {
                let orphan = Orphan::Findings(found.clone());
                let reason = "others check these endpoints".to_owned();
                due.push(Due { orphan, reason });
            }
        }
        (due, left)
    }

    /// From when on a slice is of no use, and why; `None` as long as one of its endpoints passes its checks, which is not
    /// for longer than [`CollectOptions::at_most`].
    fn slice_ends(
        &self,
        slice: &Arc<Slice>,
        since: Duration,
        unowned: &Unowned,
    ) -> Option<(Duration, String)> {
        let options = &self.options;
        let at_most = since + options.at_most;
        let mut at = Duration::ZERO;
        let mut unchecked = 0;
        for endpoint in &slice.endpoints {
            at = at.max(match unowned.down_since(&slice.service, &endpoint.id()) {
                Some(Some(down)) => down + options.after,
                Some(None) => return Some((at_most, self.too_long())),
                None => {
                    unchecked += 1;
                    since + options.unchecked_after
                }
            });
        }
        if at_most <= at {
            return Some((at_most, self.too_long()));
        }
        let all = slice.endpoints.len();
        let reason = if unchecked == 0 {
            format!(
                "all {all} endpoints have failed their checks for {:?}",
                options.after
            )
        } else {
            format!(
                "of {all} endpoints {unchecked} can't be checked from here, for {:?}, and the others fail",
                options.unchecked_after
            )
        };
        Some((at, reason))
    }

    fn too_long(&self) -> String {
        format!("its node is gone for {:?}", self.options.at_most)
    }

    /// Whether it is this node's turn: the first in line takes it at once, each further one later.
    fn mine_at(
        &self,
        at: Duration,
        caretakers: &Candidates<Name>,
        service: &model::ServiceKey,
        node: &Name,
        now: Duration,
    ) -> bool {
        if now < at {
            return false;
        }
        let key = format!("{service}/{node}");
        let Some(rank) = caretakers.rank(key.as_bytes(), &self.node) else {
            return false;
        };
        let rank = u32::try_from(rank).unwrap_or(u32::MAX);
        now >= at.saturating_add(self.options.unchecked_after.saturating_mul(rank))
    }
}

/// Whether a caretaker has said something of each of these endpoints that is still there.
fn superseded(
    found: &Findings,
    snapshot: &Snapshot,
    catalog: &Catalog,
    caretakers: &Candidates<Name>,
) -> bool {
    let Some(view) = snapshot.service(&found.service) else {
        return true;
    };
    let said = catalog.findings.get(&found.service);
    let endpoints = view.ports.iter().flat_map(|port| &port.endpoints);
    endpoints
        .filter(|endpoint| endpoint.node.is_none() && found.of(&endpoint.id).is_some())
        .all(|endpoint| {
            let mut others = said.iter().flat_map(|by_node| by_node.iter());
            others.any(|(node, of)| caretakers.contains(node) && of.of(&endpoint.id).is_some())
        })
}
