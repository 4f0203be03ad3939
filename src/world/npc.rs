//! Wildlife and the spawners that keep it alive.
//!
//! Owns no state. Promises: every choice is a random number of (seed, entity, tick), so it does not depend on who owns
//! the entity; a spawner makes one in a tick at the most.

use crate::effect::{Birth, Effect, EffectKind, Target};
use crate::entity::{Npc, Spawner};
use crate::frame::Frames;
use crate::land::Land;
use crate::movement::Command;
use crate::player::WAVE_REACH;
use crate::random::{below, random};
use crate::trig::direction;
use crate::wire::ids::{CellKey, EntityId, IdClass};
use crate::wire::units::FINE_PER_M;

/// Bodies that one spawner keeps alive.
pub const NPCS_PER_SPAWNER: u32 = 20;
/// Fine steps from the middle of a spawner's patch in which its wildlife stays.
const RANGE: i32 = 60 * FINE_PER_M;
/// Ticks between two turns at the least.
const TURN_TICKS_MIN: u64 = 60;
/// Ticks that may be added to them, all equally likely.
const TURN_TICKS_SPREAD: u32 = 240;
/// One in so many turns greets who stands near.
const GREETING_TURNS: u32 = 16;

impl Npc {
    /// Whether it has a turn now and a degrade level takes it away: it stands until it has the next one. The draw is its
    /// own, so a level costs as many turns on any number of shards.
    pub fn puts_off(&mut self, seed: u64, tick: u64, degrade: u8) -> bool {
        let draw = |n: u64, bound: u32| below(random(seed, self.body.id, tick, n), bound);
        let puts_off = degrade > 0 && tick >= self.turn_tick && self.body.motion.grounded && draw(4, 1 << degrade) > 0;
        if puts_off {
            (self.walking, self.turn_tick) = (false, tick + TURN_TICKS_MIN + u64::from(draw(1, TURN_TICKS_SPREAD)));
        }
        puts_off
    }

    /// One tick of its life; gives back an effect that it sends.
    pub fn act(&mut self, seed: u64, tick: u64, land: &Land, frames: &Frames) -> Option<Effect> {
        let mut sent = None;
        if tick >= self.turn_tick {
            sent = self.decide(seed, tick, frames);
        }
        if self.walking {
            let (x, y) = (self.body.motion.x, self.body.motion.y);
            let command = Command { yaw: self.body.motion.yaw, forward: 127, ..Command::default() };
            self.body.motion.advance(land, command, &mut self.body.tile);
            if (self.body.motion.x, self.body.motion.y) == (x, y) {
                self.turn_tick = tick + 1;
            }
        } else if !self.body.motion.grounded {
            let command = Command { yaw: self.body.motion.yaw, ..Command::default() };
            self.body.motion.advance(land, command, &mut self.body.tile);
        }
        sent
    }

    fn decide(&mut self, seed: u64, tick: u64, frames: &Frames) -> Option<Effect> {
        let draw = |n: u64, bound: u32| below(random(seed, self.body.id, tick, n), bound);
        let (dx, dy) = (self.range_x - self.body.motion.x, self.range_y - self.body.motion.y);
        let stray = dx.abs() > RANGE || dy.abs() > RANGE;
        let walking = stray || draw(0, 5) < 2;
        let ticks = TURN_TICKS_MIN + u64::from(draw(1, TURN_TICKS_SPREAD));
        let yaw = if stray { direction(dx, dy) } else { draw(2, 65_536) as u16 };
        let greets = draw(3, GREETING_TURNS) == 0;
        (self.walking, self.turn_tick) = (walking, tick + ticks);
        if walking {
            self.body.motion.yaw = yaw;
        }
        if greets { self.greet(frames) } else { None }
    }

    /// Waves at the nearest entity in reach.
    fn greet(&mut self, frames: &Frames) -> Option<Effect> {
        let here = self.body.grid();
        let mut nearest: Option<(i64, EntityId)> = None;
        frames.near(here, WAVE_REACH, |seen, squared| {
            let is_body = seen.id.class() != IdClass::Thing;
            if is_body && seen.id != self.body.id && nearest.is_none_or(|best| (squared, seen.id) < best) {
                nearest = Some((squared, seen.id));
            }
        });
        let (_, target) = nearest?;
        self.sequence += 1;
        let kind = EffectKind::Wave { x: here.0, y: here.1, request: 0 };
        Some(Effect { target: Target::Entity(target), source: self.body.id, sequence: self.sequence, kind })
    }

    /// A piece of wildlife as its spawner asked for it.
    pub fn born(birth: &Birth, body: crate::entity::Body, tick: u64) -> Npc {
        Npc {
            body,
            spawner: birth.spawner,
            range_x: birth.range_x,
            range_y: birth.range_y,
            walking: false,
            turn_tick: tick,
            end_tick: birth.end_tick,
            sequence: 0,
        }
    }

    /// What it tells its spawner when it goes.
    pub fn farewell(&mut self) -> Effect {
        self.sequence += 1;
        let target = Target::Actor(EntityId::spawner(self.spawner));
        Effect { target, source: self.body.id, sequence: self.sequence, kind: EffectKind::Gone }
    }
}

impl Spawner {
    /// The `number`-th spawner of a land, for `wanted` bodies; its ordinals begin at the tick of the start, so that
    /// no id comes twice in a realm's life.
    pub fn new(seed: u64, number: u32, wanted: u32, start_tick: u64, land: &Land) -> Spawner {
        let id = EntityId::spawner(number);
        let (x, y) = land.random_walkable(seed, id, 0);
        let next_ordinal = start_tick as u32;
        Spawner {
            id,
            number,
            home: Spawner::home_of(id),
            x,
            y,
            wanted,
            alive: 0,
            next_ordinal,
            epoch: 1,
            leaving: None,
        }
    }

    /// One tick of its life: asks for one body while some are missing.
    pub fn act(&mut self, seed: u64, tick: u64, land: &Land, life_ticks: u32) -> Option<Effect> {
        if self.alive >= self.wanted {
            return None;
        }
        let draw = |n: u64, bound: i32| below(random(seed, self.id, tick, n), bound as u32) as i32;
        let (x, y) = (self.x + draw(0, 2 * RANGE) - RANGE, self.y + draw(1, 2 * RANGE) - RANGE);
        let (x, y) = land.nearest_walkable(x, y);
        let ordinal = self.next_ordinal;
        self.next_ordinal = self.next_ordinal.wrapping_add(1);
        self.alive += 1;
        let end_tick = tick + u64::from(life_ticks) + draw(2, life_ticks as i32) as u64;
        let id = EntityId::npc(self.number, ordinal);
        let birth = Birth { id, spawner: self.number, x, y, range_x: self.x, range_y: self.y, end_tick };
        let target = Target::Cell(CellKey::of_fine(x, y));
        Some(Effect { target, source: self.id, sequence: ordinal, kind: EffectKind::Birth(birth) })
    }
}
