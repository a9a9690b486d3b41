//! Randomness that follows from a seed alone (SplitMix64), so that simulations replay.

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub struct Jitter(u64);

impl Jitter {
    /// The stream that follows from `seed`.
    pub fn new(seed: u64) -> Self {
        Jitter(seed)
    }

    /// What a pause is multiplied with: one, give or take a tenth.
    pub fn factor(&mut self) -> f64 {
        0.9 + 0.2 * self.unit()
    }

    /// A number from 0 up to 1.
    pub fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        // 32 bits fit into a double exactly.
        f64::from(u32::try_from(z >> 32).unwrap_or(0)) / (f64::from(u32::MAX) + 1.0)
    }
}
