//! Maps by [`model::snapshot::EndpointLoad::seq`].

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// By numbers that are counted up, of which none comes twice.
pub(crate) type BySeq<T> = HashMap<u64, T, BuildHasherDefault<SeqHasher>>;

/// A [`Hasher`] for numbers that are counted up: they spread by themselves once multiplied.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SeqHasher(u64);

impl Hasher for SeqHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(self.0 ^ u64::from(*byte));
        }
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}
