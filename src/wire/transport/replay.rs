//! Which packets have come already.
//!
//! Owns the replay window of one peer. Promises: a sequence is accepted once; one that is 256 or more behind the newest
//! is refused; right up to the last sequence there is. Never grows.

/// Sequences behind the newest that are still told apart.
pub const REPLAY_WINDOW: u64 = 256;

/// The newest sequence received and one bit for each of the last 256.
#[derive(Clone, Debug, Default)]
pub struct ReplayWindow {
    newest: u64,
    received: [u64; (REPLAY_WINDOW / 64) as usize],
}

impl ReplayWindow {
    /// Whether this sequence came before, or is too old to tell.
    pub fn has(&self, sequence: u64) -> bool {
        if sequence > self.newest {
            return false;
        }
        self.newest - sequence >= REPLAY_WINDOW || self.received[word(sequence)] & bit(sequence) != 0
    }

    /// Notes a sequence that [`ReplayWindow::has`] does not have; only after its packet proved genuine.
    pub fn note(&mut self, sequence: u64) {
        if sequence > self.newest {
            if sequence - self.newest >= REPLAY_WINDOW {
                self.received.fill(0);
            } else {
                // The places between belong to sequences 256 older, which leave the window now.
                for skipped in self.newest + 1..sequence {
                    self.received[word(skipped)] &= !bit(skipped);
                }
            }
            self.newest = sequence;
        }
        self.received[word(sequence)] |= bit(sequence);
    }
}

fn word(sequence: u64) -> usize {
    (sequence % REPLAY_WINDOW / 64) as usize
}

fn bit(sequence: u64) -> u64 {
    1 << (sequence % 64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[test]
    fn the_first_packet_may_be_zero_and_comes_once() {
        let mut window = ReplayWindow::default();
        assert!(!window.has(0));
        window.note(0);
        assert!(window.has(0));
        assert!(!window.has(1));
    }

    #[test]
    fn the_last_sequences_there_are_count_as_any_other() {
        let mut window = ReplayWindow::default();
        window.note(u64::MAX - 300);
        assert!(!window.has(u64::MAX - 10), "the sum form of the test wraps here");
        window.note(u64::MAX);
        assert!(window.has(u64::MAX));
        assert!(!window.has(u64::MAX - 255));
        assert!(window.has(u64::MAX - 256));
    }

    proptest! {
        #[test]
        fn agrees_with_a_set_of_all_that_came(
            start in prop_oneof![Just(0u64), Just(u64::MAX - 2_000), any::<u64>()],
            steps in prop::collection::vec((-300i64..400, any::<bool>()), 1..300),
        ) {
            let mut window = ReplayWindow::default();
            let mut came = HashSet::new();
            let (mut newest, mut at) = (0u64, start);
            for (step, genuine) in steps {
                at = at.saturating_add_signed(step);
                let old = newest >= REPLAY_WINDOW && at <= newest - REPLAY_WINDOW;
                prop_assert_eq!(window.has(at), old || came.contains(&at), "sequence {}", at);
                if genuine && !window.has(at) {
                    window.note(at);
                    came.insert(at);
                    newest = newest.max(at);
                }
            }
        }
    }
}
