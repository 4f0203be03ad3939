//! Counter-based randomness and the 64-bit mixing that hashes are made of.
//!
//! Owns nothing. Promises: the same arguments give the same number on every machine and with every number of shards.

use crate::wire::ids::EntityId;

/// Mixes 64 bits so that each bit of the input changes half of the output (the finaliser of splitmix64, Steele 2014).
pub fn mix(value: u64) -> u64 {
    let a = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let b = (a ^ (a >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    b ^ (b >> 31)
}

/// The `n`-th random number of an entity in a tick, for the realm's secret seed.
pub fn random(seed: u64, entity: EntityId, tick: u64, n: u64) -> u64 {
    mix(mix(mix(seed ^ mix(entity.0)) ^ tick) ^ n.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// A number in `0..bound` from 64 random bits, by multiplication instead of division.
pub fn below(random: u64, bound: u32) -> u32 {
    ((u128::from(random) * u128::from(bound)) >> 64) as u32
}

/// Rolls values into one 64-bit digest.
#[derive(Clone, Copy, Debug)]
pub struct Digest(u64);

impl Digest {
    /// A digest that starts from a purpose, so that equal contents of different kinds differ.
    pub fn new(purpose: u64) -> Digest {
        Digest(mix(purpose))
    }

    /// Adds one value. Each step is a permutation of the state, so that two contents which differ in one value differ.
    pub fn add(&mut self, value: u64) -> &mut Digest {
        self.0 = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        self
    }

    /// Adds one signed value.
    pub fn add_i32(&mut self, value: i32) -> &mut Digest {
        self.add(u64::from(value as u32))
    }

    /// Adds whether there is a value, and the value: none differs from every value, and from none of the next one.
    pub fn add_option<T>(
        &mut self,
        value: Option<T>,
        add: impl for<'a> FnOnce(&'a mut Digest, T) -> &'a mut Digest,
    ) -> &mut Digest {
        self.add(value.is_some().into());
        match value {
            Some(value) => add(self, value),
            None => self,
        }
    }

    /// The digest of everything added.
    pub fn finish(&self) -> u64 {
        mix(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_depend_on_every_argument() {
        let base = random(1, EntityId(2), 3, 4);
        assert_eq!(base, random(1, EntityId(2), 3, 4));
        let others = [
            random(9, EntityId(2), 3, 4),
            random(1, EntityId(9), 3, 4),
            random(1, EntityId(2), 9, 4),
            random(1, EntityId(2), 3, 9),
        ];
        assert!(others.iter().all(|&other| other != base));
    }

    #[test]
    fn below_covers_its_range() {
        let mut seen = [0u32; 10];
        for n in 0..10_000 {
            seen[below(random(7, EntityId(1), 0, n), 10) as usize] += 1;
        }
        assert!(seen.iter().all(|&count| (800..1_200).contains(&count)), "{seen:?}");
    }
}
