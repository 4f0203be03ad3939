//! Who stands still: the beats of the shards, and the host's look at them.
//!
//! Owns one counter for each shard, which the shard raises in every tick and nobody else writes, and what the host saw of
//! them. Promises: a shard that does not beat for [`SILENT_S_MAX`] seconds is found. The time is counted in the host's own
//! looks, so that a process that is stopped as a whole, or a machine that sleeps, is not taken for a shard that hangs.
//! Never reads a clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::limits::SILENT_S_MAX;
use crate::wire::ids::ShardId;

/// Milliseconds between two looks of the host.
pub const LOOK_MS: u64 = 10;
/// Looks in a row that find a shard where it was before it counts as hanging.
const LOOKS_UNTIL_HANG: u64 = SILENT_S_MAX * 1_000 / LOOK_MS;

/// A shard's end: shows that it still runs.
#[derive(Clone, Debug, Default)]
pub struct Beat(Arc<AtomicU64>);

impl Beat {
    /// The shard runs.
    pub fn beat(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// The host's end.
#[derive(Debug, Default)]
pub struct Beats {
    shards: Vec<Watched>,
}

/// What the host saw of one shard.
#[derive(Debug)]
struct Watched {
    beat: Beat,
    seen: u64,
    /// Looks since it was seen to beat.
    looks: u64,
}

impl Beats {
    /// One more shard, which is to beat.
    pub fn add(&mut self) -> Beat {
        let beat = Beat::default();
        self.shards.push(Watched { beat: beat.clone(), seen: 0, looks: 0 });
        beat
    }

    /// Looks at all shards but those that have ended, [`LOOK_MS`] after the look before; the first that hangs.
    pub fn look(&mut self, has_ended: impl Fn(usize) -> bool) -> Option<ShardId> {
        let mut hangs = None;
        for (at, watched) in self.shards.iter_mut().enumerate() {
            let now = watched.beat.0.load(Ordering::Relaxed);
            let stands = now == watched.seen && !has_ended(at);
            watched.seen = now;
            watched.looks = if stands { watched.looks + 1 } else { 0 };
            if watched.looks >= LOOKS_UNTIL_HANG && hangs.is_none() {
                hangs = Some(ShardId(at as u8));
            }
        }
        hangs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_that_stands_still_for_thirty_seconds_hangs_and_one_that_runs_again_does_not() {
        let mut beats = Beats::default();
        let (first, second) = (beats.add(), beats.add());
        for look in 0..3 * LOOKS_UNTIL_HANG {
            first.beat();
            if look % (LOOKS_UNTIL_HANG - 1) == 0 {
                second.beat();
            }
            assert_eq!(beats.look(|_| false), None, "look {look}");
        }
        second.beat();
        assert_eq!(beats.look(|_| false), None);
        for look in 1..=LOOKS_UNTIL_HANG {
            first.beat();
            let hangs = (look == LOOKS_UNTIL_HANG).then_some(ShardId(1));
            assert_eq!(beats.look(|_| false), hangs, "look {look} of 10 ms");
        }
        assert_eq!(beats.look(|shard| shard == 1), None, "who has ended need not run");
    }
}
