//! The log of orders: the bytes of what was answered, in order.
//!
//! Owns the encoding. Promises: every order that got an answer of its own is in the log once, with its number, its tick
//! and its answer; the ledger of an empty realm that does them in order is the ledger of now, which `inspect --check`
//! proves.

use postcard::ser_flavors::Flavor;
use serde::{Deserialize, Serialize};

use crate::wire::goods::{Order, OrderKind, Refusal};

/// Content of an order that its partner's confirmation answered.
pub(super) const PARTNER_DIGEST: u64 = 1;

/// One order and its answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Rises by one with each.
    pub number: u64,
    /// Realm tick.
    pub tick: u64,
    /// What was ordered.
    pub order: Order,
    /// What was answered.
    #[serde(with = "crate::wire::goods::refusal_number")]
    pub refusal: Refusal,
}

impl Entry {
    /// Appends entries as one block.
    pub fn encode(entries: &[Entry]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(entries.len() * 64);
        for entry in entries {
            bytes = postcard::to_extend(entry, bytes).expect("an entry has no part without a length");
        }
        bytes
    }

    /// The entries of a block; none when it does not parse.
    pub fn decode(mut block: &[u8]) -> Option<Vec<Entry>> {
        let mut entries = Vec::new();
        while !block.is_empty() {
            let (entry, rest) = postcard::take_from_bytes(block).ok()?;
            entries.push(entry);
            block = rest;
        }
        Some(entries)
    }
}

/// Digest of what is ordered: the same order again has the same one (FNV-1a 64 of its bytes).
pub(super) fn digest(kind: &OrderKind) -> u64 {
    digest_of(kind)
}

/// FNV-1a 64 of the bytes of a value, however many they are: none of them is kept.
fn digest_of(value: &impl Serialize) -> u64 {
    postcard::serialize_with_flavor(value, Fnv(0xcbf2_9ce4_8422_2325)).expect("a sum takes any number of bytes")
}

/// Where bytes go whose sum alone is wanted.
struct Fnv(u64);

impl Flavor for Fnv {
    type Output = u64;

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<u64> {
        Ok(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_that_of_the_bytes_however_many_they_are() {
        let long = [7u64 << 40; 200];
        let bytes = postcard::to_stdvec(&long.to_vec()).unwrap();
        assert!(bytes.len() > 1_000);
        let sum = bytes
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3));
        assert_eq!(digest_of(&long.to_vec()), sum);
    }
}
