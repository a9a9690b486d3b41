//! The order in which a port's endpoints take turns: weighted, smooth, and the same on every worker.
//!
//! Weights 5:1:1 give an order like `A A C A A B A` and never a run of A's followed by the others: each endpoint's turns
//! lie as evenly over the period as they can. The order is computed once per snapshot, so that a pick is an addition and
//! a look-up, shared by all workers without a lock.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Longest period that is kept; beyond it weights are scaled down, which shifts a share by less than 1 in 4,096.
const LONGEST: u64 = 8192;

/// An endless, periodic order over `0..n`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rotation {
    /// `None` where all weights are alike: then the order is 0, 1, … n-1.
    order: Option<Box<[u32]>>,
    len: u32,
}

impl Rotation {
    /// The order for these weights. An index of weight 0 gets no turn, unless all are 0: then all count alike.
    pub fn new(weights: &[u16]) -> Self {
        let len = u32::try_from(weights.len()).unwrap_or(u32::MAX);
        let first = weights.first().copied().unwrap_or(0);
        if weights.iter().all(|w| *w == first) {
            return Rotation { order: None, len };
        }
        let divisor = weights.iter().fold(0, |a, b| gcd(a, u64::from(*b))).max(1);
        let total: u64 = weights.iter().map(|w| u64::from(*w) / divisor).sum();
        let scaled = |w: u16| -> u64 {
            let w = u64::from(w) / divisor;
            if total <= LONGEST || w == 0 {
                w
            } else {
                (w * LONGEST / total).max(1)
            }
        };
        // Turn k of an index with weight w falls due at (k + phase) / w of the period: earliest due time first. The phases
        // are multiples of the golden ratio, so that two light ones don't fall together and leave a heavy one to burst.
        let shares: Vec<u64> = weights.iter().map(|w| scaled(*w)).collect();
        let period: u64 = shares.iter().sum();
        let due = |index: u32, turn: u64, share: u64| {
            let phase = u64::from(index.wrapping_mul(0x9e37_79b9));
            ((u128::from(turn) << 32) + u128::from(phase)) * (1 << 32) / u128::from(share)
        };
        let mut heap: BinaryHeap<Reverse<(u128, u32, u64)>> = (0u32..)
            .zip(&shares)
            .filter(|(_, share)| **share > 0)
            .map(|(index, share)| Reverse((due(index, 0, *share), index, 0)))
            .collect();
        let mut order = Vec::with_capacity(usize::try_from(period).unwrap_or(0));
        while let Some(Reverse((_, index, turn))) = heap.pop() {
            order.push(index);
            let share = shares[index as usize];
            if turn + 1 < share {
                heap.push(Reverse((due(index, turn + 1, share), index, turn + 1)));
            }
        }
        Rotation {
            order: Some(order.into()),
            len,
        }
    }

    /// Whose turn it is at `position`; `None` when there is nobody.
    pub fn at(&self, position: u64) -> Option<usize> {
        match &self.order {
            None if self.len == 0 => None,
            None => Some((position % u64::from(self.len)) as usize),
            Some(order) => order
                .get((position % order.len() as u64) as usize)
                .map(|index| *index as usize),
        }
    }

    /// After how many turns the order repeats.
    pub fn period(&self) -> usize {
        self.order
            .as_ref()
            .map_or(self.len as usize, |order| order.len())
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn period_of(weights: &[u16]) -> Vec<usize> {
        let rotation = Rotation::new(weights);
        (0..rotation.period() as u64)
            .filter_map(|p| rotation.at(p))
            .collect()
    }

    #[test]
    fn equal_weights_take_turns_in_order() {
        assert_eq!(period_of(&[3, 3, 3]), [0, 1, 2]);
    }

    #[test]
    fn five_to_one_to_one_does_not_burst() {
        let order = period_of(&[5, 1, 1]);
        assert_eq!(order.len(), 7);
        let longest = order
            .iter()
            .chain(&order)
            .fold((0, 0), |(run, best): (usize, usize), i| {
                let run = if *i == 0 { run + 1 } else { 0 };
                (run, best.max(run))
            })
            .1;
        assert!(longest <= 3, "{order:?}");
    }

    #[test]
    fn nobody_is_picked_where_nobody_is() {
        assert_eq!(Rotation::new(&[]).at(7), None);
    }

    #[test]
    fn all_zero_weights_count_alike() {
        assert_eq!(period_of(&[0, 0]), [0, 1]);
    }

    proptest! {
        #[test]
        fn over_one_period_everyone_gets_exactly_its_share(weights in prop::collection::vec(0u16..=16, 1..20)) {
            let order = period_of(&weights);
            let total: usize = weights.iter().map(|w| *w as usize).sum();
            if total > 0 && weights.iter().any(|w| *w != weights[0]) {
                for (index, weight) in weights.iter().enumerate() {
                    let turns = order.iter().filter(|i| **i == index).count();
                    prop_assert_eq!(turns * total, *weight as usize * order.len());
                }
            }
        }

        #[test]
        fn in_any_window_nobody_is_two_turns_ahead_of_its_share(weights in prop::collection::vec(1u16..=9, 2..8), start in 0u64..1000) {
            let rotation = Rotation::new(&weights);
            let period = rotation.period() as f64;
            let share: Vec<f64> = (0..weights.len())
                .map(|i| (0..rotation.period() as u64).filter(|p| rotation.at(*p) == Some(i)).count() as f64 / period)
                .collect();
            let mut turns = vec![0f64; weights.len()];
            for step in 1..=50u64 {
                turns[rotation.at(start + step).unwrap()] += 1.0;
                for (t, s) in turns.iter().zip(&share) {
                    prop_assert!((t - s * step as f64).abs() <= 2.0);
                }
            }
        }

        #[test]
        fn the_period_is_bounded(weights in prop::collection::vec(0u16..=256, 0..600)) {
            prop_assert!(Rotation::new(&weights).period() as u64 <= LONGEST + weights.len() as u64);
        }
    }
}
