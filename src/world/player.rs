//! Players: commands by time credit, emotes, waves, leaving.
//!
//! Owns no state. Promises: a client moves no faster than time passes; an action is done once; what a client asks for
//! and must not have is refused by name and changes nothing.

use crate::ids::{EntityId, GRID_PER_M};
use crate::limits::{COMMANDS_HELD_MAX, CREDIT_TICKS_MAX, ROW_TICKS_MAX};
use crate::net::{messages::Refusal, wire};
use crate::world::effect::{Effect, EffectKind, PrivateEvent, Target, Word};
use crate::world::entity::{Held, Player};
use crate::world::frame::{Frames, PublicEvent, distance};
use crate::world::land::Land;
use crate::world::movement::Command;

/// Farthest that a wave reaches, in wire grid steps.
pub const WAVE_REACH: i32 = 10 * GRID_PER_M;
/// Ticks between two waves of one player.
pub const WAVE_TICKS: u64 = 60;
/// Ticks until a wave that nobody refused counts as done: it is applied in the next tick, a refusal comes back one later.
const WAVE_SETTLED_TICKS: u64 = 2;
/// Event kinds on the wire.
pub const EVENT_EMOTE: u16 = 1;
/// Likewise.
pub const EVENT_WAVE: u16 = 2;

impl Player {
    /// Takes commands for consecutive client ticks; tick 0 means the next ones. Gives back how many were too many.
    pub fn hold(&mut self, first_tick: u32, commands: &[Command]) -> u64 {
        let newest = self.waiting().last().map_or(self.applied, |held| held.tick);
        let first = if first_tick == 0 { newest.wrapping_add(1).max(1) } else { first_tick };
        let mut over = 0;
        for (tick, &command) in (0..).map(|n: u32| first.wrapping_add(n)).zip(commands) {
            let newest = self.waiting().last().map_or(self.applied, |held| held.tick);
            if tick.wrapping_sub(newest) as i32 <= 0 {
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
        self.credit = (u64::from(self.credit) + ticks).min(CREDIT_TICKS_MAX.into()) as u8;
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
        self.credit -= count;
        if count == 0 && self.credit == CREDIT_TICKS_MAX {
            // Nobody steers: time goes on for the body all the same.
            let command = Command { yaw: self.body.motion.yaw, ..Command::default() };
            self.body.motion.advance(land, command, &mut self.body.tile);
            self.neutral = self.neutral.wrapping_add(1);
            self.credit -= 1;
        }
        self.dirty |= self.body.motion != before;
    }

    /// Whether `number` is the action that comes next; then it counts as done.
    pub fn begins(&mut self, number: u16) -> bool {
        let next = number == self.action.wrapping_add(1);
        if next {
            self.action = number;
        }
        next
    }

    /// Waves at an entity as the newest frames show it.
    pub fn wave(&mut self, number: u16, target: EntityId, tick: u64, frames: &Frames) -> Result<Effect, Refusal> {
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
        let kind = EffectKind::Wave { x, y, action: number };
        Ok(Effect { target: Target::Entity(target), source: self.body.id, sequence: self.sequence, kind })
    }

    /// The outcome of a wave that nobody refused in time.
    pub fn settle_wave(&mut self, tick: u64) -> Option<PrivateEvent> {
        let (action, sent) = self.waving?;
        if tick < sent + WAVE_SETTLED_TICKS {
            return None;
        }
        self.waving = None;
        Some(self.outcome(action, Refusal::None))
    }

    /// The outcome of a wave that was refused.
    pub fn refuse_wave(&mut self, action: u16, refusal: Refusal) -> Option<PrivateEvent> {
        self.waving.take_if(|waving| waving.0 == action)?;
        Some(self.outcome(action, refusal))
    }

    /// What its session is told of an action.
    pub fn outcome(&self, action: u16, refusal: Refusal) -> PrivateEvent {
        self.whisper(Word::Action { action, refusal })
    }

    /// A word for its session alone.
    pub fn whisper(&self, word: Word) -> PrivateEvent {
        PrivateEvent { session: self.session, word }
    }

    /// An emote as everybody near sees it.
    pub fn emote(&self, emote: u16, tick: u64) -> PublicEvent {
        let event = wire::Event::new(self.body.id.0, 0, tick as u32, EVENT_EMOTE, emote);
        PublicEvent { cell: self.body.home, event }
    }

    /// Whether its row must be written now: it changed, and the last row is old. Characters take turns.
    pub fn row_is_due(&self, tick: u64) -> bool {
        let turn = (tick + self.body.id.0).is_multiple_of(ROW_TICKS_MAX / 2);
        !self.guest && self.dirty && (turn || tick >= self.row_tick + ROW_TICKS_MAX)
    }

    /// What its own client is told.
    pub fn own_state(&self, tick: u64) -> wire::OwnState {
        let motion = &self.body.motion;
        wire::OwnState::new(
            self.body.id.0,
            motion.x,
            motion.y,
            motion.z,
            motion.velocity_z,
            tick as u32,
            self.applied,
            self.body.epoch,
            motion.yaw,
            self.action,
            self.neutral,
            self.credit,
            u8::from(motion.grounded),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{FINE_PER_M, SessionRef};
    use crate::world::entity::{Archetype, Body};
    use crate::world::movement::{BUTTON_RUN, Motion};

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
