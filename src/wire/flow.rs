//! Flow: how many bytes a second a session sends, found out by what becomes of its packets.
//!
//! Owns one session's byte budget. Promises: it grows by a fixed amount a round and halves in a round that lost too much
//! or whose packets took much longer than the fastest lately (AIMD), never leaves its bounds, and halves at the most
//! every other round, because what was under way tells of the budget before. Never reads a clock and never says what is
//! sent: a body carries slices when the budget holds a whole one, so that a small budget makes fuller bodies rarer and
//! starves no slice.

use crate::acks::Fates;
use crate::limits::{BODY_BYTES_MAX, SESSION_BYTES_PER_S_MIN, TICK_HZ};

/// Ticks of one round.
const ROUND_TICKS: u64 = 30;
/// Bytes a second by which the budget grows in a round.
const GROWTH_BYTES_PER_S: u32 = 2_000;
/// Share of a round's packets that may be lost, percent: what a radio loses anyway.
const LOSS_PERCENT_MAX: u32 = 10;
/// Packets that must be lost in a round to say anything.
const LOST_MIN: u32 = 2;
/// Ticks by which a round's fastest acknowledgement may be slower than the fastest lately: a queue that stands.
const DELAY_TICKS_MAX: u32 = 12;
/// Rounds of which the fastest acknowledgement is remembered, at least; at most twice as many.
const LATELY_ROUNDS: u32 = 20;
/// Whole bodies that a session can save.
const BODIES_SAVED: i64 = 2;

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    bytes_per_s: u32,
    /// Bytes that may be sent now, in 1/60; below zero after what had to be sent all the same.
    saved: i64,
    tick: u64,
    round_began: u64,
    fates: Fates,
    /// Fastest acknowledgements, ticks: of this round, of these [`LATELY_ROUNDS`], of those before.
    round_ticks: Option<u32>,
    lately_ticks: Option<u32>,
    before_ticks: Option<u32>,
    rounds: u32,
    /// The round goes on that was under way when the budget was halved.
    settles: bool,
    /// How often it was halved.
    pub cuts: u64,
}

impl Flow {
    /// A session that may send so many bytes a second from now on.
    pub fn new(bytes_per_s: u32) -> Flow {
        Flow {
            bytes_per_s,
            saved: BODIES_SAVED * BODY_BYTES_MAX as i64 * TICK_HZ as i64,
            tick: 0,
            round_began: 0,
            fates: Fates::default(),
            round_ticks: None,
            lately_ticks: None,
            before_ticks: None,
            rounds: 0,
            settles: false,
            cuts: 0,
        }
    }

    /// The budget, bytes a second.
    pub fn bytes_per_s(&self) -> u32 {
        self.bytes_per_s
    }

    /// Lets the time up to a tick pass, under this largest budget.
    pub fn pass_to(&mut self, tick: u64, bytes_per_s_max: u32) {
        let elapsed = if self.tick == 0 { 1 } else { tick.saturating_sub(self.tick) };
        self.tick = tick;
        let saved_max = BODIES_SAVED * BODY_BYTES_MAX as i64 * TICK_HZ as i64;
        self.saved = (self.saved + i64::from(self.bytes_per_s) * elapsed as i64).min(saved_max);
        if tick >= self.round_began + ROUND_TICKS {
            self.end_round(bytes_per_s_max);
            self.round_began = tick;
        }
        self.bytes_per_s = self.bytes_per_s.min(bytes_per_s_max);
    }

    /// Hears what became of packets.
    #[inline]
    pub fn hear(&mut self, fates: Fates) {
        self.fates.arrived += fates.arrived;
        self.fates.lost += fates.lost;
        if let Some(sent_tick) = fates.newest_tick {
            let ticks = (self.tick as u32).wrapping_sub(sent_tick);
            self.round_ticks = Some(self.round_ticks.map_or(ticks, |least| least.min(ticks)));
        }
    }

    /// Whether the budget holds a whole body.
    pub fn holds_a_body(&self) -> bool {
        self.saved >= BODY_BYTES_MAX as i64 * TICK_HZ as i64
    }

    /// A body of so many bytes leaves.
    pub fn send(&mut self, bytes: usize) {
        self.saved -= bytes as i64 * TICK_HZ as i64;
    }

    fn end_round(&mut self, bytes_per_s_max: u32) {
        let Fates { arrived, lost, .. } = std::mem::take(&mut self.fates);
        let round_ticks = self.round_ticks.take();
        let lately = [self.lately_ticks, self.before_ticks].into_iter().flatten().min();
        let is_slow = round_ticks.zip(lately).is_some_and(|(round, least)| round > least + DELAY_TICKS_MAX);
        let is_lossy = lost >= LOST_MIN && lost * 100 > (arrived + lost) * LOSS_PERCENT_MAX;
        self.lately_ticks = [self.lately_ticks, round_ticks].into_iter().flatten().min();
        self.rounds += 1;
        if self.rounds == LATELY_ROUNDS {
            (self.before_ticks, self.lately_ticks, self.rounds) = (self.lately_ticks, None, 0);
        }
        if std::mem::take(&mut self.settles) {
            return;
        }
        if is_slow || is_lossy {
            self.settles = true;
            let least = SESSION_BYTES_PER_S_MIN.min(bytes_per_s_max);
            let halved = (self.bytes_per_s / 2).max(least);
            self.cuts += u64::from(halved < self.bytes_per_s);
            self.bytes_per_s = halved;
        } else {
            self.bytes_per_s = (self.bytes_per_s + GROWTH_BYTES_PER_S).min(bytes_per_s_max);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAX: u32 = 96_000;

    /// Rounds in which this share of 30 packets is lost and the fastest takes so many ticks.
    fn rounds(flow: &mut Flow, count: u64, lost: u32, ticks: u64) {
        for _ in 0..count * ROUND_TICKS {
            let tick = flow.tick + 1;
            flow.pass_to(tick, MAX);
            let is_lost = tick % ROUND_TICKS < u64::from(lost);
            let newest_tick = (!is_lost).then(|| (tick - ticks.min(tick)) as u32);
            flow.hear(Fates { arrived: u32::from(!is_lost), lost: u32::from(is_lost), newest_tick });
        }
    }

    #[test]
    fn loss_and_delay_halve_it_and_quiet_lets_it_grow() {
        let mut flow = Flow::new(MAX);
        rounds(&mut flow, 10, 2, 3);
        assert_eq!((flow.bytes_per_s(), flow.cuts), (MAX, 0), "a little loss is no sign");
        rounds(&mut flow, 2, 6, 3);
        assert_eq!(flow.bytes_per_s(), MAX / 2, "once in two rounds");
        rounds(&mut flow, 20, 6, 3);
        assert_eq!(flow.bytes_per_s(), SESSION_BYTES_PER_S_MIN);
        rounds(&mut flow, 12, 0, 3);
        let grown = flow.bytes_per_s();
        assert!((grown - SESSION_BYTES_PER_S_MIN).is_multiple_of(GROWTH_BYTES_PER_S) && grown > 30_000, "{grown}");
        rounds(&mut flow, 40, 0, 3);
        assert_eq!(flow.bytes_per_s(), MAX);
        rounds(&mut flow, 2, 0, 3 + u64::from(DELAY_TICKS_MAX) + 1);
        assert_eq!(flow.bytes_per_s(), MAX / 2, "a standing queue");
    }

    #[test]
    fn a_longer_way_is_no_queue_for_ever() {
        let mut flow = Flow::new(MAX);
        rounds(&mut flow, 10, 0, 3);
        rounds(&mut flow, 3 * u64::from(LATELY_ROUNDS), 0, 40);
        rounds(&mut flow, 60, 0, 40);
        assert_eq!(flow.bytes_per_s(), MAX);
    }

    #[test]
    fn a_small_budget_makes_whole_bodies_rare() {
        let mut flow = Flow::new(SESSION_BYTES_PER_S_MIN);
        let mut whole = 0;
        for tick in 1..=600 {
            flow.pass_to(tick, SESSION_BYTES_PER_S_MIN);
            let bytes = if flow.holds_a_body() { BODY_BYTES_MAX } else { 80 };
            whole += u64::from(bytes == BODY_BYTES_MAX);
            flow.send(bytes);
        }
        let sent = whole * BODY_BYTES_MAX as u64 + (600 - whole) * 80;
        assert!(sent <= 10 * u64::from(SESSION_BYTES_PER_S_MIN) + 2_400 && whole >= 50, "{sent} bytes, {whole} whole");
    }

    proptest! {
        #[test]
        fn it_stays_within_its_bounds(
            max in 1_000u32..200_000,
            told in proptest::collection::vec((0u64..40, 0u32..9, 0u32..9, any::<Option<u32>>(), 0usize..1_300), 1..400)
        ) {
            let (mut flow, mut tick) = (Flow::new(max), 0);
            let mut cut_tick = 0;
            for (ticks, arrived, lost, newest_tick, bytes) in told {
                tick += ticks;
                let (before, cuts) = (flow.bytes_per_s(), flow.cuts);
                flow.pass_to(tick, max);
                flow.hear(Fates { arrived, lost, newest_tick });
                flow.send(bytes);
                prop_assert!(flow.bytes_per_s() <= max && flow.bytes_per_s() >= SESSION_BYTES_PER_S_MIN.min(max));
                prop_assert!(flow.bytes_per_s() <= before + GROWTH_BYTES_PER_S);
                if flow.cuts > cuts {
                    prop_assert!(cut_tick == 0 || tick >= cut_tick + 2 * ROUND_TICKS);
                    cut_tick = tick;
                }
            }
        }
    }
}
