//! A hasher for keys that we made ourselves.
//!
//! Promises: a few cycles a word, the same on every machine. Never for keys that a stranger chooses: it does not resist
//! made collisions.

use std::hash::{BuildHasher, Hasher};

/// A table with this hasher: `HashMap<K, V, FastHash>`.
#[derive(Clone, Copy, Default, Debug)]
pub struct FastHash;

impl BuildHasher for FastHash {
    type Hasher = FastHasher;

    fn build_hasher(&self) -> FastHasher {
        FastHasher(0)
    }
}

/// Rotate, xor, multiply for each word; the state's high bits are folded down at the end, because tables use the low
/// ones and a product mixes upwards only.
#[derive(Clone, Copy, Debug)]
pub struct FastHasher(u64);

impl FastHasher {
    #[inline]
    fn word(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

impl Hasher for FastHasher {
    #[inline]
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }

    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.word(u64::from_le_bytes(*word));
        }
        for byte in rest {
            self.word(u64::from(*byte));
        }
    }

    #[inline]
    fn write_u8(&mut self, value: u8) {
        self.word(u64::from(value));
    }

    #[inline]
    fn write_u16(&mut self, value: u16) {
        self.word(u64::from(value));
    }

    #[inline]
    fn write_u32(&mut self, value: u32) {
        self.word(u64::from(value));
    }

    #[inline]
    fn write_u64(&mut self, value: u64) {
        self.word(value);
    }

    #[inline]
    fn write_i16(&mut self, value: i16) {
        self.word(u64::from(value as u16));
    }

    #[inline]
    fn write_usize(&mut self, value: usize) {
        self.word(value as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::EntityId;

    #[test]
    fn ids_that_follow_each_other_spread_over_the_low_bits() {
        let mut places = [0u32; 1_024];
        for number in 0..10_240 {
            places[(FastHash.hash_one(EntityId::character(number)) & 1_023) as usize] += 1;
        }
        assert!(places.iter().all(|&count| count < 40), "fullest {:?}", places.iter().max());
    }
}
