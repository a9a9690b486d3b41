//! Which endpoint now: one trait, one implementation per policy.
//!
//! Pickers keep no state of their own: position and load are atomics of the snapshot's ports and endpoints, shared by
//! all workers, so that the spread is right for the node as a whole. Chance comes from the position, so a run replays.

pub(crate) mod hold_off;
mod least_connections;
mod round_robin;
#[cfg(test)]
mod tests;

use std::sync::atomic::Ordering;

use model::service::Balance;
use model::snapshot::{EndpointView, PortView};

use least_connections::LeastConnections;
use round_robin::RoundRobin;

/// Picks among a port's eligible endpoints.
pub(crate) trait Picker: Sync {
    /// An index into [`PortView::endpoints`] of an eligible endpoint that was not tried; `None` when there is none
    /// left. Endpoints of weight 0 are picked only where all have weight 0.
    fn pick(&self, port: &PortView, tried: &Tried) -> Option<usize>;
}

/// Picks by the port's policy; an endpoint that leaves packets unanswered only where there is no other.
pub(crate) fn pick(port: &PortView, tried: &Tried) -> Option<usize> {
    let picker: &dyn Picker = match port.balance {
        Balance::RoundRobin | Balance::Unsupported => &RoundRobin,
        Balance::LeastConnections => &LeastConnections,
    };
    let first = picker.pick(port, tried)?;
    if !hold_off::holds(&port.endpoints[first]) {
        return Some(first);
    }
    let mut tried = tried.clone();
    let mut next = first;
    loop {
        tried.add(&port.endpoints[next]);
        match picker.pick(port, &tried) {
            None => return Some(first),
            Some(other) if !hold_off::holds(&port.endpoints[other]) => return Some(other),
            Some(other) => next = other,
        }
    }
}

/// The endpoints that one request has tried, by [`model::snapshot::EndpointLoad::seq`]. Without an allocation until
/// one has failed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tried(Vec<u64>);

impl Tried {
    pub(crate) fn add(&mut self, endpoint: &EndpointView) {
        self.0.push(endpoint.load.seq);
    }

    pub(crate) fn contains(&self, endpoint: &EndpointView) -> bool {
        self.0.contains(&endpoint.load.seq)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

/// An endpoint's weight; where all are 0, all count alike.
fn weight(port: &PortView, endpoint: &EndpointView) -> u64 {
    let weight = u64::from(endpoint.endpoint.weight);
    if weight > 0
        || port
            .eligible
            .iter()
            .any(|i| port.endpoints[*i as usize].endpoint.weight > 0)
    {
        weight
    } else {
        1
    }
}

/// An endpoint in the rotation's order, as an index into [`PortView::endpoints`].
fn at(port: &PortView, position: u64) -> Option<usize> {
    let place = port.rotation.at(position)?;
    port.eligible.get(place).map(|index| *index as usize)
}

/// Where in the rotation to begin. A first pick takes the port's next turn. Failing over takes none, or with two
/// endpoints every turn of the good one would be used up by a failure of the bad one; it begins somewhere by chance, so
/// that the load of a bad endpoint spreads over all others.
fn start(port: &PortView, tried: &Tried) -> u64 {
    let position = &port.load.position;
    if tried.is_empty() {
        position.fetch_add(1, Ordering::Relaxed)
    } else {
        scramble(position.load(Ordering::Relaxed), tried.len() as u64)
    }
}

/// The `n`th pseudo-random number of a position: the finisher of SplitMix64 (Steele, Lea, Flood, 2014).
fn scramble(position: u64, n: u64) -> u64 {
    let mut z = position
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(n.wrapping_mul(0xd1b5_4a32_d192_ed03));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
