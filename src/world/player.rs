//! Players: commands by time credit, emotes, waves, leaving.
//!
//! Owns no state. Promises: a client moves no faster than time passes; a request is taken once; what a client asks for
//! and must not have is refused by name and changes nothing.

use crate::effect::{Effect, EffectKind, PrivateEvent, Target, Word};
use crate::entity::{Held, Lag, Player};
use crate::events::EVENT_EMOTE;
use crate::frame::{Frames, distance};
use crate::land::Land;
use crate::limits::{
    COMMANDS_HELD_MAX, CREDIT_TICKS_MAX, CREDIT_TICKS_SPARE, EMOTE_TICKS, LAG_TICKS_MAX, ROW_TICKS_MAX,
};
use crate::movement::Command;
use crate::planted::{Bug, planted};
use crate::wire::generated::structs;
use crate::wire::generated::tables::Refusal;
use crate::wire::ids::EntityId;
use crate::wire::messages::{Request, Stream};
use crate::wire::units::GRID_PER_M;

/// Farthest that a wave reaches, in wire grid steps.
pub const WAVE_REACH: i32 = 10 * GRID_PER_M;
/// Ticks between two waves of one player.
pub const WAVE_TICKS: u64 = 60;
/// Ticks until a wave that nobody refused counts as done: it is applied in the next tick, a refusal comes back one later.
const WAVE_SETTLED_TICKS: u64 = 2;

impl Player {
    /// Takes commands for consecutive client ticks; tick 0 means the next ones. Gives back how many were too many.
    pub fn hold(&mut self, first_tick: u32, commands: &[Command]) -> u64 {
        let newest = self.waiting().last().map_or(self.applied, |held| held.tick);
        let first = if first_tick == 0 { newest.wrapping_add(1).max(1) } else { first_tick };
        let mut over = 0;
        for (tick, &command) in (0..).map(|n: u32| first.wrapping_add(n)).zip(commands) {
            let newest = self.waiting().last().map_or(self.applied, |held| held.tick);
            let is_old =
                if planted(Bug::TickNeverWraps) { tick <= newest } else { tick.wrapping_sub(newest) as i32 <= 0 };
            if is_old {
                continue;
            }
            if usize::from(self.held_count) == COMMANDS_HELD_MAX {
                self.held.copy_within(1.., 0);
                self.held_count -= 1;
                over += 1;
            }
            self.held[usize::from(self.held_count)] = Held { tick, command };
            self.held_count += 1;
        }
        over
    }

    /// Runs the commands that its time credit allows; `ticks` have passed since the last time.
    pub fn run(&mut self, land: &Land, ticks: u64) {
        let before = self.body.motion;
        let saved = u64::from(self.credit) + ticks;
        self.credit = saved.min(CREDIT_TICKS_MAX.into()) as u8;
        if saved > CREDIT_TICKS_MAX.into() {
            self.lose(saved - u64::from(CREDIT_TICKS_MAX));
        }
        if self.lost > 0 {
            self.discard_late();
        }
        let count = self.credit.min(self.held_count);
        for at in 0..usize::from(count) {
            let Held { tick, command } = self.held[at];
            self.body.motion.advance(land, command, &mut self.body.tile);
            self.applied = tick;
        }
        if count < self.held_count {
            self.held.copy_within(usize::from(count)..usize::from(self.held_count), 0);
        }
        self.held_count -= count;
        self.credit -= if planted(Bug::FreeCommands) { 0 } else { count };
        if count == 0 && self.credit == CREDIT_TICKS_MAX {
            // Nobody steers: time goes on for the body all the same.
            let command = Command { yaw: self.body.motion.yaw, ..Command::default() };
            self.body.motion.advance(land, command, &mut self.body.tile);
            self.neutral = self.neutral.wrapping_add(1);
            self.credit -= 1;
            self.lose(1);
        } else if count > 0 && self.held_count == 0 {
            self.lost = 0;
        }
        self.dirty |= self.body.motion != before;
        if self.held_count > 0 {
            self.discard_lag();
        } else {
            self.lag = Lag::default();
        }
    }

    /// Ticks passed in which nobody steered.
    fn lose(&mut self, ticks: u64) {
        self.lost = (u64::from(self.lost) + ticks).min(COMMANDS_HELD_MAX as u64) as u8;
    }

    /// After a stall, on either side of the wire, more commands come than its credit allows, for ticks that are over: these
    /// are discarded, the oldest first. Else as many would come in each tick as run, and the lag would stay for ever.
    fn discard_late(&mut self) {
        let fitting = self.credit.saturating_sub(CREDIT_TICKS_SPARE);
        let late = self.held_count.saturating_sub(fitting).min(self.lost);
        self.lost -= late;
        self.discard(late);
    }

    /// Where a client's clock is faster than ours, commands pile up as well: what waited for [`LAG_TICKS_MAX`] ticks without a
    /// pause is discarded.
    fn discard_lag(&mut self) {
        let Lag { ticks, least } = self.lag;
        let least = if ticks == 0 { self.held_count } else { least.min(self.held_count) };
        if ticks + 1 < LAG_TICKS_MAX {
            self.lag = Lag { ticks: ticks + 1, least };
        } else {
            self.discard(least);
            self.lag = Lag::default();
        }
    }

    /// Discards the oldest of the commands that wait. They are done with: who sends them again is too late.
    fn discard(&mut self, count: u8) {
        let Some(newest) = count.checked_sub(1) else { return };
        self.applied = self.held[usize::from(newest)].tick;
        self.held.copy_within(usize::from(count)..usize::from(self.held_count), 0);
        self.held_count -= count;
        self.discarded = self.discarded.wrapping_add(count.into());
    }

    /// Takes a request, unless it is not the one that comes next in its stream, or the stream has one under way.
    pub fn takes(&mut self, ordinal: u16, request: &Request, tick: u64) -> bool {
        let stream = request.stream();
        let is_next = ordinal == self.taken[stream.index()].wrapping_add(1);
        let is_free = stream != Stream::Goods || self.dealings.operation.is_none();
        let takes = is_next && is_free && (!is_about_trade(request) || tick >= self.dealings.trade_tick);
        if takes {
            self.taken[stream.index()] = ordinal;
        }
        takes
    }

    /// Waves at an entity as the newest frames show it.
    pub fn wave(&mut self, number: u64, target: EntityId, tick: u64, frames: &Frames) -> Result<Effect, Refusal> {
        if tick < self.wave_tick {
            return Err(Refusal::TooSoon);
        }
        if target == self.body.id {
            return Err(Refusal::Unknown);
        }
        let seen = frames.find(target).ok_or(Refusal::Gone)?;
        let (x, y) = self.body.grid();
        if distance((x, y), seen.position) > i64::from(WAVE_REACH) * i64::from(WAVE_REACH) {
            return Err(Refusal::TooFar);
        }
        self.wave_tick = tick + WAVE_TICKS;
        self.waving = Some((number, tick));
        self.sequence += 1;
        let kind = EffectKind::Wave { x, y, request: number };
        Ok(Effect { target: Target::Entity(target), source: self.body.id, sequence: self.sequence, kind })
    }

    /// The outcome of a wave that nobody refused in time.
    pub fn settle_wave(&mut self, tick: u64) -> Option<PrivateEvent> {
        let (number, sent) = self.waving?;
        if tick < sent + WAVE_SETTLED_TICKS {
            return None;
        }
        self.waving = None;
        Some(self.answer(Stream::World, number, Refusal::None))
    }

    /// The outcome of a wave that was refused.
    pub fn refuse_wave(&mut self, number: u64, refusal: Refusal) -> Option<PrivateEvent> {
        self.waving.take_if(|waving| waving.0 == number)?;
        Some(self.answer(Stream::World, number, refusal))
    }

    /// What its session is told of a request.
    pub fn answer(&mut self, stream: Stream, number: u64, refusal: Refusal) -> PrivateEvent {
        self.whisper(Word::Answer { stream, number, refusal })
    }

    /// A word for its session alone, which hears it after all that came before.
    pub fn whisper(&mut self, word: Word) -> PrivateEvent {
        let number = self.words;
        self.words = number.wrapping_add(1);
        PrivateEvent { session: self.session, number, word }
    }

    /// An emote as everybody near sees it.
    pub fn emote(&mut self, emote: u16, tick: u64) -> Result<structs::Event, Refusal> {
        if tick < self.emote_tick {
            return Err(Refusal::TooSoon);
        }
        self.emote_tick = tick + EMOTE_TICKS;
        Ok(structs::Event::new(self.body.id.0, 0, tick as u32, EVENT_EMOTE, emote))
    }

    /// Whether its row must be written now: it changed, and the last row is old. Characters take turns.
    pub fn row_is_due(&self, tick: u64) -> bool {
        let turn = (tick + self.body.id.0).is_multiple_of(ROW_TICKS_MAX / 2);
        !self.guest && self.dirty && (turn || tick >= self.row_tick + ROW_TICKS_MAX)
    }

    /// What its own client is told.
    pub fn own_state(&self, tick: u64) -> structs::OwnState {
        let motion = &self.body.motion;
        structs::OwnState::new(
            self.body.id.0,
            motion.x,
            motion.y,
            motion.z,
            motion.velocity_z,
            tick as u32,
            self.applied,
            self.body.epoch,
            motion.yaw,
            self.discarded,
            self.neutral,
            self.credit,
            u8::from(motion.grounded),
        )
    }
}

/// Whether the partner of a trade notices it: such requests are spaced.
pub fn is_about_trade(request: &Request) -> bool {
    match request {
        Request::TradeAsk { .. } | Request::TradeOffer { .. } | Request::TradeConfirm { .. } | Request::TradeCancel => {
            true
        }
        Request::Emote { .. } | Request::WaveAt { .. } | Request::Goods(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entity::{Archetype, Body};
    use crate::movement::{BUTTON_RUN, Motion};
    use crate::wire::ids::SessionRef;
    use crate::wire::units::FINE_PER_M;

    fn player(land: &Land) -> Player {
        let (x, y) = land.nearest_walkable(2_000 * FINE_PER_M, 2_000 * FINE_PER_M);
        let body = Body::new(EntityId::character(1), Archetype::Human, Motion::standing(land, x, y, 0));
        Player::new(body, SessionRef::default(), 1, false, true)
    }

    const FORWARD: Command = Command { yaw: 0, forward: 127, right: 0, buttons: BUTTON_RUN };

    #[test]
    fn a_flood_of_commands_is_no_faster_than_time() {
        let land = Land::new(1);
        let (mut honest, mut cheat) = (player(&land), player(&land));
        (honest.credit, cheat.credit) = (0, 0);
        let mut over = 0;
        for tick in 0..300u32 {
            honest.hold(tick + 1, &[FORWARD]);
            honest.run(&land, 1);
            over += cheat.hold(tick * 10 + 1, &[FORWARD; 10]);
            cheat.run(&land, 1);
        }
        assert!(over > 0);
        assert_eq!(cheat.body.motion.x, honest.body.motion.x);
    }

    #[test]
    fn repeated_and_old_commands_count_once() {
        let land = Land::new(1);
        let mut player = player(&land);
        player.hold(1, &[FORWARD; 3]);
        player.hold(1, &[FORWARD; 4]);
        assert_eq!(player.held_count, 4);
        player.credit = 10;
        player.run(&land, 1);
        player.hold(1, &[FORWARD; 4]);
        assert_eq!((player.applied, player.held_count), (4, 0));
        player.hold(0, &[FORWARD]);
        assert_eq!(player.waiting()[0].tick, 5, "client tick 0 is the next one");
    }

    /// A client of so many packets a second, each with all commands that it remembers and that were not applied; how far
    /// its newest sent command is ahead of what ran, after each tick.
    fn lag_after(
        silent: std::ops::Range<u32>,
        generates_meanwhile: bool,
        stalled: bool,
        packet_ticks: u32,
    ) -> Vec<u32> {
        let land = Land::new(1);
        let mut player = player(&land);
        let (mut newest, mut sent, mut lags) = (0u32, 0, Vec::new());
        for tick in 0..240u32 {
            let is_silent = silent.contains(&tick);
            newest += u32::from(!is_silent || generates_meanwhile);
            if !is_silent && tick.is_multiple_of(packet_ticks) {
                let first = (player.applied + 1).max(newest.saturating_sub(31)).max(1);
                player.hold(first, &vec![FORWARD; (newest + 1 - first) as usize]);
                sent = newest;
            }
            // A shard that stood still steps the present tick once.
            if !stalled || !is_silent {
                let elapsed = if stalled && tick == silent.end { u64::from(silent.end - silent.start) + 1 } else { 1 };
                let before = player.body.motion.x;
                player.run(&land, elapsed);
                let moved = i64::from(player.body.motion.x - before) >> crate::wire::units::FINE_SHIFT;
                assert!(moved <= crate::wire::units::farthest(0), "{moved} in one tick");
            }
            lags.push(sent - player.applied);
        }
        lags
    }

    #[test]
    fn lag_after_a_stall_is_gone_within_half_a_second() {
        for (silent, generates, stalled, what) in [
            (60..120, true, false, "the client's network was away for 1 s"),
            (60..120, false, false, "the client itself stood still for 1 s"),
            (60..108, true, true, "the shard stood still for 0.8 s"),
            (60..70, true, false, "ten ticks of loss"),
            (60..75, true, false, "a quarter of a second"),
        ] {
            for packet_ticks in [1, 2, 3] {
                let lags = lag_after(silent.clone(), generates, stalled, packet_ticks);
                let (usual, after) = (&lags[..silent.start as usize], &lags[silent.end as usize + 30..]);
                assert!(usual.iter().all(|&lag| lag == 0), "{what}: nothing before");
                assert!(
                    after.iter().all(|&lag| lag == 0),
                    "{what}, {packet_ticks}: {:?}",
                    &lags[silent.end as usize..]
                );
            }
        }
    }

    #[test]
    fn a_fast_clock_is_no_lag_that_grows() {
        let land = Land::new(1);
        let (mut player, mut newest) = (player(&land), 0);
        for tick in 0..6_000u32 {
            let count = 1 + u32::from(tick % 20 == 0);
            player.hold(newest + 1, &vec![FORWARD; count as usize]);
            newest += count;
            player.run(&land, 1);
            assert!(newest - player.applied <= 4, "{} at {tick}", newest - player.applied);
        }
        assert!(player.discarded > 200, "{}", player.discarded);
    }

    #[test]
    fn commands_that_come_in_batches_are_not_lag() {
        let land = Land::new(1);
        let mut player = player(&land);
        for tick in 0..600u32 {
            if tick % 10 == 0 {
                player.hold(tick + 1, &[FORWARD; 10]);
            }
            player.run(&land, 1);
        }
        assert_eq!((player.discarded, player.applied), (0, 600));
    }

    #[test]
    fn an_order_under_way_blocks_no_other_stream() {
        let land = Land::new(1);
        let mut player = player(&land);
        let recall = Request::Goods(crate::wire::messages::GoodsRequest::Recall);
        assert!(player.takes(1, &recall, 10));
        player.dealings.operation = Some(1);
        assert!(!player.takes(2, &recall, 11), "orders wait for each other");
        assert!(player.takes(1, &Request::Emote { kind: 1 }, 11), "and nothing else waits for them");
        assert!(!player.takes(1, &Request::Emote { kind: 1 }, 12), "a repeat is taken once");
        assert!(!player.takes(3, &Request::Emote { kind: 1 }, 12), "nothing is passed over");
        player.dealings.operation = None;
        assert!(player.takes(2, &recall, 13));
    }

    #[test]
    fn an_emote_too_soon_is_refused_by_name_and_delays_no_other() {
        let land = Land::new(1);
        let mut player = player(&land);
        let shown: Vec<u64> = (1..=3 * EMOTE_TICKS).filter(|&tick| player.emote(1, tick).is_ok()).collect();
        assert_eq!(shown, [1, 1 + EMOTE_TICKS, 1 + 2 * EMOTE_TICKS]);
        assert_eq!(player.emote(1, 3 * EMOTE_TICKS), Err(Refusal::TooSoon));
    }

    #[test]
    fn nobody_asks_what_became_of_a_trade_that_may_still_be_done() {
        let land = Land::new(1);
        let (mut player, frames) = (player(&land), Frames::new(1));
        let word = crate::goods::Confirmation { operation: 5, own: 0, other: 0 };
        player.dealings.trade = Some(crate::goods::Trade {
            partner: EntityId::character(2),
            number: 1,
            since: 0,
            own: Default::default(),
            other: Default::default(),
            confirmed: Some(word),
            partner_confirmed: None,
            ordered: false,
        });
        let recall = crate::wire::messages::GoodsRequest::Recall;
        assert_eq!(player.deal(5, recall, &frames).err(), Some(Refusal::NotNow));
        assert!(player.deal(4, recall, &frames).is_ok(), "of another order it may");
    }

    #[test]
    fn a_silent_body_goes_on_falling() {
        let land = Land::new(1);
        let mut player = player(&land);
        player.body.motion.z += 3 * FINE_PER_M;
        player.body.motion.grounded = false;
        (0..120).for_each(|_| player.run(&land, 1));
        assert!(player.body.motion.grounded && player.neutral > 0);
    }
}
