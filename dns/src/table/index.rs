//! Entries by name: a hash table whose versions share all but the leaves that changed.
//!
//! Three steps lead to an entry, and only the last two miss the processor's cache however large the zone is: two levels
//! of 64 pointers each, a leaf with open addressing, the entry. Those two are had for many names at a time
//! ([`Index::touch_slot`], [`Index::touch_entry`]). A change copies the pointers of its path (64 + 64) and
//! its leaf (100 slots in a zone of 400,000 names).

use std::sync::Arc;

use super::entry::Entry;

const FANOUT: usize = 64;
const BITS: u32 = FANOUT.trailing_zeros();

/// A slot's hash spares looking into entries that are not meant.
type Slot = Option<(u32, Entry)>;
type Leaf = Arc<[Slot]>;
type Level = Arc<[Leaf; FANOUT]>;

/// Entries by the name on the wire in lower case. Cloning costs a reference count.
#[derive(Clone, Debug)]
pub(crate) struct Index {
    root: Arc<[Level; FANOUT]>,
    seed: u64,
}

impl Index {
    /// An empty index. Names that collide under one seed don't under another.
    pub(crate) fn new(seed: u64) -> Self {
        let leaf: Leaf = Arc::new([]);
        let level: Level = Arc::new(std::array::from_fn(|_| leaf.clone()));
        Index {
            root: Arc::new(std::array::from_fn(|_| level.clone())),
            seed,
        }
    }

    /// What hashes are made with.
    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    /// The hash of a name.
    pub(crate) fn hash(&self, name: &[u8]) -> u64 {
        hash(self.seed, name)
    }

    /// The entry of the name that `hash` was made of.
    pub(crate) fn get(&self, hash: u64, name: &[u8]) -> Option<&Entry> {
        let (upper, lower) = path(hash);
        let leaf = &self.root[upper][lower];
        let mask = leaf.len().wrapping_sub(1);
        let mut at = hash as usize;
        for _ in 0..leaf.len() {
            let (tag, entry) = leaf[at & mask].as_ref()?;
            if *tag == tag_of(hash) && entry.owner() == name {
                return Some(entry);
            }
            at = at.wrapping_add(1);
        }
        None
    }

    /// Reads the slot that a search for `hash` begins with, so that it is in the processor's cache when it is searched
    /// for. Several of these in a row take hardly longer than one, because nothing waits for what is read.
    pub(crate) fn touch_slot(&self, hash: u64) {
        let (upper, lower) = path(hash);
        let leaf = &self.root[upper][lower];
        let at = hash as usize & leaf.len().wrapping_sub(1);
        std::hint::black_box(leaf.get(at).is_some_and(Option::is_some));
    }

    /// The same for the entry's bytes, whose slot should have been touched before.
    pub(crate) fn touch_entry(&self, hash: u64) {
        let (upper, lower) = path(hash);
        let leaf = &self.root[upper][lower];
        let mask = leaf.len().wrapping_sub(1);
        let mut at = hash as usize;
        for _ in 0..leaf.len() {
            let Some((tag, entry)) = &leaf[at & mask] else {
                return;
            };
            if *tag == tag_of(hash) {
                return entry.touch();
            }
            at = at.wrapping_add(1);
        }
    }

    /// Where everything is that a search reads but for its first steps: addresses and lengths.
    pub(crate) fn places(&self) -> impl Iterator<Item = (usize, usize)> {
        let leaves = self.root.iter().flat_map(|level| level.iter());
        leaves.flat_map(|leaf| {
            let slots = (leaf.as_ptr().addr(), size_of_val::<[Slot]>(leaf));
            let entries = leaf.iter().flatten().map(|(_, entry)| entry.place());
            entries.chain([slots])
        })
    }

    /// All entries, in no order.
    #[cfg(test)]
    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        let leaves = self.root.iter().flat_map(|level| level.iter());
        leaves.flat_map(|leaf| leaf.iter().flatten().map(|(_, entry)| entry))
    }

    /// Takes over entries, and forgets the names that have none. Of a name that comes twice the last counts.
    pub(crate) fn apply(&mut self, changes: Vec<(Box<[u8]>, Option<Entry>)>) {
        let mut changes: Vec<_> = changes
            .into_iter()
            .map(|(name, entry)| (hash(self.seed, &name), name, entry))
            .collect();
        changes.sort_by_key(|(hash, ..)| path(*hash));
        for changes in changes.chunk_by_mut(|(a, ..), (b, ..)| path(*a) == path(*b)) {
            let (upper, lower) = path(changes[0].0);
            let level = Arc::make_mut(&mut Arc::make_mut(&mut self.root)[upper]);
            level[lower] = changed(&level[lower], changes);
        }
    }
}

/// A name with its hash, and what it holds from now on; nothing: it is gone.
type Change = (u64, Box<[u8]>, Option<Entry>);

/// The leaf with the changes.
fn changed(leaf: &Leaf, changes: &mut [Change]) -> Leaf {
    let mut all: Vec<(u64, Entry)> = Vec::with_capacity(leaf.len() + changes.len());
    let kept = leaf.iter().flatten().filter(|(tag, entry)| {
        !changes
            .iter()
            .any(|(hash, name, _)| tag_of(*hash) == *tag && **name == *entry.owner())
    });
    // The tag is the whole lower half, which is all of the hash that places in a leaf are made of.
    all.extend(kept.map(|(tag, entry)| (u64::from(*tag), entry.clone())));
    let kept = all.len();
    for (hash, name, entry) in changes {
        let same = |(_, known): &(u64, Entry)| known.owner() == &**name;
        let earlier = all[kept..].iter().position(same);
        if let Some(earlier) = earlier {
            all.remove(kept + earlier);
        }
        if let Some(entry) = entry.take() {
            all.push((*hash, entry));
        }
    }
    if all.is_empty() {
        return Arc::new([]);
    }
    // At most two slots in three are taken: a search for what isn't there ends soon.
    let size = (all.len() + all.len() / 2 + 1).next_power_of_two();
    let mut slots: Vec<Slot> = vec![None; size];
    for (hash, entry) in all {
        let mut at = hash as usize & (size - 1);
        while slots[at].is_some() {
            at = (at + 1) & (size - 1);
        }
        slots[at] = Some((tag_of(hash), entry));
    }
    slots.into()
}

fn path(hash: u64) -> (usize, usize) {
    let upper = (hash >> (u64::BITS - BITS)) as usize;
    let lower = (hash >> (u64::BITS - 2 * BITS)) as usize & (FANOUT - 1);
    (upper, lower)
}

fn tag_of(hash: u64) -> u32 {
    hash as u32
}

/// Multiplication with all 128 bits of the product folded together, eight bytes at a time.
fn hash(seed: u64, bytes: &[u8]) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let fold = |a: u64, b: u64| {
        let product = u128::from(a) * u128::from(b);
        product as u64 ^ (product >> 64) as u64
    };
    let mut state = seed ^ bytes.len() as u64;
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        state = fold(state ^ u64::from_le_bytes(*word), ODD ^ seed);
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    state = fold(state ^ u64::from_le_bytes(last), ODD);
    fold(state, ODD ^ seed.rotate_left(32))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::table::entry::{Kind, entry};

    fn made(name: &[u8], mark: u8) -> Entry {
        entry(name, usize::from(mark), Kind::Own, &[])
    }

    fn get(index: &Index, name: &[u8]) -> Option<u8> {
        let found = index.get(index.hash(name), name)?;
        Some(u8::try_from(found.apex()).unwrap())
    }

    proptest! {
        #[test]
        fn an_index_knows_what_a_map_knows_and_its_older_versions_stay(
            batches in prop::collection::vec(
                prop::collection::vec((0u16..300, prop::option::of(any::<u8>())), 0..40), 0..12),
            seed in any::<u64>(),
        ) {
            let mut index = Index::new(seed);
            let mut map: BTreeMap<[u8; 2], u8> = BTreeMap::new();
            let mut versions = vec![(index.clone(), map.clone())];
            for batch in batches {
                let mut changes = Vec::new();
                for (name, mark) in batch {
                    let name = name.to_be_bytes();
                    match mark {
                        Some(mark) => map.insert(name, mark),
                        None => map.remove(&name),
                    };
                    changes.push((name.into(), mark.map(|mark| made(&name, mark))));
                }
                index.apply(changes);
                versions.push((index.clone(), map.clone()));
            }
            for (index, map) in versions {
                for name in 0u16..300 {
                    let name = name.to_be_bytes();
                    prop_assert_eq!(get(&index, &name), map.get(&name).copied());
                }
            }
        }
    }
}
