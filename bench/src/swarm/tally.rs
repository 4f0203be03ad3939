//! What one load thread counts.
//!
//! Owns the histograms. Promises: nothing before the last join counts, and percentiles leave out the first 2 s after it;
//! adding two tallies is as if one thread had counted all.

use hdrhistogram::Histogram;
use serde::Serialize;

/// Time after the last join that percentiles leave out.
pub const SETTLE_NS: u64 = 2_000_000_000;
/// Longest time that a histogram tells apart, microseconds; longer counts as this.
const MICROSECONDS_MAX: u64 = 60_000_000;

/// Contradictions by kind, see `net::view` and `sim::bots`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize)]
pub struct ErrorCounts {
    /// Somebody moved faster than anybody can.
    pub jump: u64,
    /// Somebody was shown in two places.
    pub twice: u64,
    /// Somebody stayed in view too long, or was not updated.
    pub never_leaves: u64,
    /// The own position was not what the movement code gives.
    pub own_position: u64,
    /// Malformed bodies, slices or messages.
    pub other: u64,
}

impl ErrorCounts {
    /// All kinds.
    pub fn sum(&self) -> u64 {
        self.jump + self.twice + self.never_leaves + self.own_position + self.other
    }

    /// Adds another's.
    pub fn add(&mut self, other: ErrorCounts) {
        self.jump += other.jump;
        self.twice += other.twice;
        self.never_leaves += other.never_leaves;
        self.own_position += other.own_position;
        self.other += other.other;
    }
}

/// Whole numbers: least, most and mean.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Spread {
    /// How many.
    pub count: u64,
    /// Of all.
    pub sum: u64,
    /// Least.
    pub min: u64,
    /// Most.
    pub max: u64,
}

impl Spread {
    /// One more value.
    pub fn note(&mut self, value: u64) {
        self.add(Spread { count: 1, sum: value, min: value, max: value });
    }

    /// Another's values.
    pub fn add(&mut self, other: Spread) {
        self.min = match (self.count, other.count) {
            (0, _) => other.min,
            (_, 0) => self.min,
            _ => self.min.min(other.min),
        };
        self.max = self.max.max(other.max);
        self.count += other.count;
        self.sum += other.sum;
    }

    /// Mean; 0 of nothing.
    pub fn mean(&self) -> f64 {
        self.sum as f64 / self.count.max(1) as f64
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Tally {
    begin_ns: u64,
    /// From a command's intended send time to the snapshot that names it, microseconds.
    pub latency_us: Histogram<u64>,
    /// Between two snapshots of one player, microseconds.
    pub gap_us: Histogram<u64>,
    /// From the intended to the real send time, microseconds.
    pub late_us: Histogram<u64>,
    /// Bodies with commands.
    pub inputs_sent: u64,
    /// Bodies received, those that came late left out.
    pub snapshots_received: u64,
    /// Others that a player sees.
    pub visible: Spread,
}

impl Default for Tally {
    fn default() -> Tally {
        let histogram = || Histogram::new_with_bounds(1, MICROSECONDS_MAX, 3).expect("the bounds are in order");
        Tally {
            begin_ns: u64::MAX,
            latency_us: histogram(),
            gap_us: histogram(),
            late_us: histogram(),
            inputs_sent: 0,
            snapshots_received: 0,
            visible: Spread::default(),
        }
    }
}

impl Tally {
    /// Counts from now on: the last join was at `begin_ns`.
    pub fn begin(&mut self, begin_ns: u64) {
        self.begin_ns = begin_ns;
    }

    /// Whether percentiles count what was to happen at a time.
    fn settled(&self, ns: u64) -> bool {
        ns >= self.begin_ns.saturating_add(SETTLE_NS)
    }

    /// A body with commands left.
    pub fn sent(&mut self, due_ns: u64, now_ns: u64) {
        self.inputs_sent += u64::from(due_ns >= self.begin_ns);
        if self.settled(due_ns) {
            self.late_us.saturating_record(now_ns.saturating_sub(due_ns) / 1_000);
        }
    }

    /// A snapshot named a command as applied.
    pub fn applied(&mut self, intended_ns: u64, now_ns: u64) {
        if self.settled(intended_ns) {
            self.latency_us.saturating_record(now_ns.saturating_sub(intended_ns) / 1_000);
        }
    }

    /// A snapshot came; the player's last one came at `before_ns`.
    pub fn snapshot(&mut self, before_ns: u64, now_ns: u64) {
        self.snapshots_received += u64::from(now_ns >= self.begin_ns);
        if self.settled(before_ns) {
            self.gap_us.saturating_record((now_ns - before_ns) / 1_000);
        }
    }

    /// Adds another thread's.
    pub fn add(&mut self, other: &Tally) {
        let same = "all histograms have the same bounds";
        self.latency_us.add(&other.latency_us).expect(same);
        self.gap_us.add(&other.gap_us).expect(same);
        self.late_us.add(&other.late_us).expect(same);
        self.inputs_sent += other.inputs_sent;
        self.snapshots_received += other.snapshots_received;
        self.visible.add(other.visible);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_counts_before_the_last_join_and_no_percentile_in_the_first_two_seconds() {
        let mut tally = Tally::default();
        tally.sent(5, 9);
        tally.snapshot(5, 9);
        tally.begin(1_000);
        tally.sent(999, 1_500);
        tally.sent(1_000, 1_500);
        tally.snapshot(900, 1_000);
        assert_eq!((tally.inputs_sent, tally.snapshots_received), (1, 1));
        assert_eq!((tally.late_us.len(), tally.gap_us.len()), (0, 0));
        tally.applied(1_000 + SETTLE_NS - 1, 9_000_000_000);
        tally.applied(1_000 + SETTLE_NS, 1_000 + SETTLE_NS + 18_000_000);
        tally.sent(SETTLE_NS * 2, SETTLE_NS * 2 + 250_000);
        assert_eq!((tally.latency_us.len(), tally.late_us.len()), (1, 1));
        // Three digits are kept.
        assert!((18_000..18_020).contains(&tally.latency_us.max()) && tally.late_us.max() == 250);
    }

    #[test]
    fn tallies_add_up() {
        let mut halves = [Tally::default(), Tally::default()];
        for (at, half) in halves.iter_mut().enumerate() {
            half.begin(0);
            half.visible.note(3 + 4 * at as u64);
            half.applied(SETTLE_NS, SETTLE_NS + 1_000_000 * (1 + at as u64));
        }
        let mut all = Tally::default();
        halves.iter().for_each(|half| all.add(half));
        assert_eq!((all.visible.min, all.visible.max, all.visible.mean()), (3, 7, 5.0));
        assert_eq!((all.latency_us.len(), all.latency_us.max()), (2, 2_000));
        all.latency_us.saturating_record(u64::MAX);
        assert!(all.latency_us.max() >= MICROSECONDS_MAX);
    }
}
