//! Rendezvous hashing (Thaler and Ravishankar, 1998): everybody who knows the same candidates picks the same ones for a
//! key, without asking anybody; a candidate that comes or goes moves only the keys that are, or were, its own.
//!
//! The hash is fixed here and not the standard library's, whose algorithm may change: nodes of two versions must agree.

/// A well-spread 64-bit hash that is the same in every version of heddle (FNV-1a with SplitMix64's finaliser).
pub fn hash(bytes: &[u8]) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in bytes {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    mix(hash)
}

/// SplitMix64's finaliser: every bit of the input changes half of the output's.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Who may be picked, with their hashes worked out once: picking costs a few nanoseconds a candidate.
#[derive(Clone, Debug, Default)]
pub struct Candidates<T> {
    all: Vec<(u64, T)>,
}

impl<T: AsRef<str> + Ord> Candidates<T> {
    /// In any order; the same candidate twice counts once.
    pub fn new(candidates: impl IntoIterator<Item = T>) -> Self {
        let mut all: Vec<(u64, T)> = candidates
            .into_iter()
            .map(|candidate| (hash(candidate.as_ref().as_bytes()), candidate))
            .collect();
        all.sort_by(|a, b| a.1.cmp(&b.1));
        all.dedup_by(|a, b| a.1 == b.1);
        Candidates { all }
    }

    /// Those with the highest weight for `key`, the highest first; fewer than `count` where there are no more.
    pub fn highest(&self, key: &[u8], count: usize) -> Vec<&T> {
        let key = hash(key);
        let mut best: Vec<(u64, &T)> = Vec::with_capacity(count + 1);
        for (candidate, value) in &self.all {
            let weight = weight(key, *candidate);
            // Of equal weights the one that sorts first: candidates come in order.
            let at = best.partition_point(|(other, _)| *other >= weight);
            if at < count {
                best.insert(at, (weight, value));
                best.truncate(count);
            }
        }
        best.into_iter().map(|(_, value)| value).collect()
    }

    /// Whether it is one of them.
    pub fn contains(&self, candidate: &T) -> bool {
        self.all.binary_search_by(|(_, c)| c.cmp(candidate)).is_ok()
    }

    /// How many others come before `candidate` for `key`; `None` when it is not one of them.
    pub fn rank(&self, key: &[u8], candidate: &T) -> Option<usize> {
        let at = self.all.binary_search_by(|(_, c)| c.cmp(candidate)).ok()?;
        let key = hash(key);
        let own = weight(key, self.all.get(at)?.0);
        let comes_before = |(n, (other, _)): &(usize, &(u64, T))| {
            let other = weight(key, *other);
            other > own || other == own && *n < at
        };
        Some(self.all.iter().enumerate().filter(comes_before).count())
    }
}

/// What a candidate counts for a key, both hashed.
fn weight(key: u64, candidate: u64) -> u64 {
    mix(key ^ candidate.rotate_left(23))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::btree_set;
    use proptest::prelude::*;

    fn candidates(names: &[String]) -> Candidates<String> {
        Candidates::new(names.iter().cloned())
    }

    #[test]
    fn the_hash_never_changes() {
        assert_eq!(hash(b""), 0xf52a_15e9_a9b5_e89b);
        assert_eq!(hash(b"shop/web"), hash(b"shop/web"));
        let nodes = Candidates::new(["n1", "n2", "n3", "n4", "n5"]);
        let picked = ["a", "b", "c"].map(|key| {
            nodes
                .highest(key.as_bytes(), 2)
                .into_iter()
                .copied()
                .collect::<Vec<_>>()
        });
        assert_eq!(
            picked,
            [["n5", "n3"], ["n5", "n1"], ["n5", "n2"]],
            "golden: nodes of all versions must agree"
        );
    }

    #[test]
    fn keys_are_spread_evenly() {
        let names: Vec<String> = (1..=7).map(|n| format!("node-{n}")).collect();
        let nodes = candidates(&names);
        let mut counts = std::collections::BTreeMap::new();
        for n in 0..7000 {
            for picked in nodes.highest(format!("shop/web/w{n}:http").as_bytes(), 2) {
                *counts.entry(picked.clone()).or_insert(0) += 1;
            }
        }
        for (node, count) in counts {
            assert!((1850..2150).contains(&count), "{node} has {count} of 2000");
        }
    }

    proptest! {
        #[test]
        fn one_more_candidate_displaces_at_most_one(
            names in btree_set("[a-z0-9]{1,8}", 1..20),
            new in "[a-z0-9]{9}",
            key in any::<u64>(),
            count in 1usize..4,
        ) {
            let names: Vec<String> = names.into_iter().collect();
            let key = key.to_le_bytes();
            let nodes = candidates(&names);
            let before = nodes.highest(&key, count);
            let more = candidates(&[names.clone(), vec![new.clone()]].concat());
            let after = more.highest(&key, count);
            let kept: Vec<_> = after.iter().filter(|n| ***n != new).collect();
            prop_assert!(kept.iter().zip(&before).all(|(a, b)| **a == *b), "the rest keeps its order");
            prop_assert_eq!(after.len(), count.min(names.len() + 1));
        }

        #[test]
        fn the_order_in_which_candidates_are_known_does_not_matter(
            names in btree_set("[a-z0-9]{1,8}", 1..20),
            key in any::<u64>(),
        ) {
            let forward: Vec<String> = names.into_iter().collect();
            let backward: Vec<String> = forward.iter().rev().cloned().collect();
            let (a, b) = (candidates(&forward), candidates(&backward));
            prop_assert_eq!(a.highest(&key.to_le_bytes(), 3), b.highest(&key.to_le_bytes(), 3));
            let first = a.highest(&key.to_le_bytes(), 1)[0].clone();
            prop_assert_eq!(b.rank(&key.to_le_bytes(), &first), Some(0));
        }

        #[test]
        fn a_rank_is_the_place_among_the_highest(
            names in btree_set("[a-z0-9]{1,8}", 1..20),
            key in any::<u64>(),
        ) {
            let names: Vec<String> = names.into_iter().collect();
            let nodes = candidates(&names);
            let key = key.to_le_bytes();
            for (place, name) in nodes.highest(&key, names.len()).into_iter().enumerate() {
                prop_assert_eq!(nodes.rank(&key, name), Some(place));
            }
            prop_assert_eq!(nodes.rank(&key, &"nobody at all".to_owned()), None);
        }
    }
}
