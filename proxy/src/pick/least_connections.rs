//! Least connections: the fewest requests or connections in flight for the weight.

use std::sync::atomic::Ordering;

use model::snapshot::{EndpointView, PortView};

use super::{Picker, Tried, at, scramble, start, weight};

/// Up to so many endpoints all are looked at.
const FULL_SCAN: usize = 64;

/// Beyond it, so many that chance gives. Two already keep the fullest within a doubly logarithmic bound of the mean
/// (the power of two choices); a few more cost little beside a request and come close to the minimum.
const CHOICES: u64 = 8;

/// Looks at all endpoints where there are few, at [`CHOICES`] of them where there are many: each look is a cache line
/// that all workers write to.
///
/// Ties go to whose turn it is: an idle service is spread like round-robin, and workers that look at the same moment
/// don't all fall on the same endpoint.
pub(super) struct LeastConnections;

impl Picker for LeastConnections {
    fn pick(&self, port: &PortView, tried: &Tried) -> Option<usize> {
        let start = start(port, tried);
        let turn = at(port, start)?;
        if port.eligible.len() > FULL_SCAN {
            let chosen = (0..CHOICES).filter_map(|n| at(port, scramble(start, n)));
            let best = least(port, tried, std::iter::once(turn).chain(chosen));
            if best.is_some() {
                return best;
            }
        }
        let turn = u32::try_from(turn).ok()?;
        let from = port.eligible.binary_search(&turn).unwrap_or(0);
        let (before, after) = port.eligible.split_at(from);
        let in_order = after.iter().chain(before).map(|index| *index as usize);
        least(port, tried, in_order)
    }
}

/// The first of those with the least load for their weight.
fn least(port: &PortView, tried: &Tried, candidates: impl Iterator<Item = usize>) -> Option<usize> {
    let mut best: Option<(usize, u64, u64)> = None;
    for index in candidates {
        let endpoint: &EndpointView = &port.endpoints[index];
        let weight = weight(port, endpoint);
        if weight == 0 || tried.contains(endpoint) {
            continue;
        }
        let load = u64::from(endpoint.load.in_flight.load(Ordering::Relaxed));
        // load / weight < best load / best weight, without dividing.
        if best.is_none_or(|(_, its_load, its_weight)| load * its_weight < its_load * weight) {
            best = Some((index, load, weight));
        }
    }
    best.map(|(index, ..)| index)
}
