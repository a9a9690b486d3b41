//! Endpoints made by hand, which no node owns: two living nodes check each and publish what they find; everybody merges it.

use super::Freshness;
use super::builder::Builder;
use crate::endpoint::{EndpointId, Fact, Health};
use crate::name::{Name, ServiceKey};

/// How many nodes check an endpoint that no node owns, where there are as many.
pub const CHECKERS: usize = 2;

impl Builder {
    /// What is known of an endpoint's health, and whether this node checks it.
    ///
    /// It passes if any of its checkers says so, and fails if all that say something say that. As long as a checker has
    /// not spoken, having just taken over, whoever spoke before counts beside the others, and goes on checking if alive:
    /// nothing is unknown in between. While the registry is lost, this node's own checks are worth more than what others
    /// said before that.
    pub(super) fn ownerless(
        &self,
        service: &ServiceKey,
        id: &EndpointId,
        unchecked: &Fact<Health>,
    ) -> (Fact<Health>, bool) {
        let own = &self.identity.node;
        let here = self.findings.get(service).and_then(|of| of.get(id));
        let published = self.catalog.findings.get(service);
        let said = |node: &Name| -> Option<&Fact<Health>> {
            let there = || published?.get(node)?.of(id);
            if node == own {
                here.or_else(there)
            } else {
                there()
            }
        };
        let key = format!("{service}/{id}");
        let checkers = self
            .checkers
            .as_ref()
            .map_or(Vec::new(), |all| all.highest(key.as_bytes(), CHECKERS));
        let silent = checkers.iter().any(|node| said(node).is_none());
        let mine = checkers.contains(&own) || (silent && said(own).is_some());
        if self.current.freshness == Freshness::Stale
            && let Some(fact) = here
        {
            return (fact.clone(), mine);
        }
        let before = published
            .into_iter()
            .flat_map(|by_node| by_node.keys())
            .filter(|node| silent && !checkers.contains(node));
        let words = checkers.iter().copied().chain(before).filter_map(said);
        (merge(words).unwrap_or(unchecked).clone(), mine)
    }
}

/// Of several words the one that counts: a pass before an unknown before a failure, and of equal ones the oldest.
fn merge<'a>(words: impl Iterator<Item = &'a Fact<Health>>) -> Option<&'a Fact<Health>> {
    let order = |fact: &Fact<Health>| match fact.value {
        Health::Passing => 0,
        Health::Unknown => 1,
        Health::Failing => 2,
    };
    words.min_by_key(|fact| (order(fact), fact.since))
}

#[cfg(test)]
mod tests;
