//! What one load thread counts.
//!
//! Owns the histograms. Promises: nothing before the last join counts, and percentiles leave out the first 2 s after it;
//! adding two tallies is as if one thread had counted all.

use hdrhistogram::Histogram;
use ringshard::limits::TICK_NS;
use serde::Serialize;

use super::player::Outage;

/// Time after the last join that percentiles leave out.
pub const SETTLE_NS: u64 = 2_000_000_000;
/// Before an outage: commands sent so shortly before it have their answers in it.
const SWALLOWED_NS: u64 = 200_000_000;
/// After an outage: by then the lag must be gone, and what is slow later counts in the percentiles.
const RECOVERY_NS: u64 = 500_000_000;
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
    /// When everybody is off the network.
    pub outage: Option<Outage>,
    /// Longest time from a command to its snapshot that is as before the outage, nanoseconds.
    usual_ns: u64,
    /// From the end of the outage to the last snapshot that was slower than before it, microseconds.
    pub recovery_us: Histogram<u64>,
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
            outage: None,
            usual_ns: 0,
            recovery_us: histogram(),
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

    /// Whether a command that was sent after the outage was answered slower than those before it, by more than a tick.
    pub fn is_slow_after_outage(&mut self, intended_ns: u64, now_ns: u64) -> bool {
        let Some(outage) = self.outage.filter(|outage| intended_ns >= outage.until_ns) else { return false };
        if self.usual_ns == 0 {
            // Nothing is counted from the outage on, so that this is what was before.
            self.usual_ns = self.latency_us.value_at_quantile(0.99) * 1_000 + TICK_NS;
            assert!(now_ns >= outage.until_ns, "nothing is heard in the outage");
        }
        now_ns - intended_ns > self.usual_ns
    }

    /// A player's lag after the outage was gone after so long.
    pub fn recovered(&mut self, after_ns: u64) {
        self.recovery_us.saturating_record(after_ns / 1_000);
    }

    /// A snapshot named a command as applied. Those whose answer the outage swallowed, and what came of the first one after
    /// it, do not count: how long the lag lasts is a figure of its own.
    pub fn applied(&mut self, intended_ns: u64, now_ns: u64) {
        if self.outage.is_some_and(|outage| {
            (outage.from_ns.saturating_sub(SWALLOWED_NS)..outage.until_ns + RECOVERY_NS).contains(&intended_ns)
        }) {
            return;
        }
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
        self.recovery_us.add(&other.recovery_us).expect(same);
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
    fn a_lag_that_stays_after_an_outage_is_seen() {
        let ms = |ms: u64| ms * 1_000_000;
        let mut tally = Tally::default();
        tally.begin(0);
        tally.outage = Some(Outage { from_ns: ms(6_000), until_ns: ms(7_000) });
        (0..100).for_each(|n| tally.applied(ms(3_000 + n * 20), ms(3_015 + n * 20)));
        tally.applied(ms(6_500), ms(7_010));
        assert!(!tally.is_slow_after_outage(ms(6_500), ms(7_010)), "sent in the outage");
        assert!(tally.is_slow_after_outage(ms(7_000), ms(7_300)));
        assert!(!tally.is_slow_after_outage(ms(7_200), ms(7_230)), "within a tick of what was usual");
        tally.recovered(ms(300));
        assert_eq!((tally.latency_us.len(), tally.recovery_us.max() / 1_000), (100, 300));
        tally.applied(ms(8_000), ms(8_300));
        assert!(tally.latency_us.max() > 299_000, "what is slow for ever shows in the percentiles as well");
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
