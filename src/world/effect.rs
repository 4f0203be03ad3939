//! Effects: how one entity asks another's owner to change it, and what the world tells a session in private.
//!
//! Promises: an effect is applied exactly once, in the tick after it was sent, or refused by name to its source; the
//! order of the effects on one entity depends on seed, tick and source alone.

use serde::{Deserialize, Serialize};

use crate::ids::{CellKey, EntityId, SessionRef};
use crate::net::messages::Refusal;
use crate::world::random::{Digest, mix};

/// Whom an effect is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Target {
    /// The entity, wherever it is.
    Entity(EntityId),
    /// The owner of a cell: something begins to exist there.
    Cell(CellKey),
    /// An entity without a body; found by the home cell that its id hashes to.
    Actor(EntityId),
}

/// A character that joins.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Joining {
    /// Its id.
    pub id: EntityId,
    /// Who steers it.
    pub session: SessionRef,
    /// Whose it is.
    pub client_id: u64,
    /// Position in fine steps.
    pub x: i32,
    /// Likewise, northwards.
    pub y: i32,
    /// Direction, 1/65,536 turn.
    pub yaw: u16,
    /// Owner epoch to go on from.
    pub epoch: u32,
    /// Never saved.
    pub guest: bool,
    /// Monsters ignore it.
    pub peaceful: bool,
}

/// A piece of wildlife that begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Birth {
    /// Its id.
    pub id: EntityId,
    /// Its spawner.
    pub spawner: u32,
    /// Position in fine steps.
    pub x: i32,
    /// Likewise, northwards.
    pub y: i32,
    /// Middle of its range in fine steps.
    pub range_x: i32,
    /// Likewise, northwards.
    pub range_y: i32,
    /// Tick in which it goes for good.
    pub end_tick: u64,
}

/// What is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum EffectKind {
    /// Somebody waves: turn there.
    Wave {
        /// Where the waver stands, wire grid, east.
        x: i32,
        /// Likewise, north.
        y: i32,
        /// The waver's action, 0 when it is no client.
        action: u16,
    },
    /// An effect that you sent was refused.
    Refused {
        /// The action that it was.
        action: u16,
        /// Why.
        refusal: Refusal,
    },
    /// A character joins here.
    Join(Joining),
    /// A piece of wildlife begins here.
    Birth(Birth),
    /// One that you made is gone.
    Gone,
}

/// One request from one entity to another's owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Effect {
    /// For whom.
    pub target: Target,
    /// From whom.
    pub source: EntityId,
    /// Orders the effects of one source.
    pub sequence: u32,
    /// What.
    pub kind: EffectKind,
}

impl Effect {
    /// Where this effect stands among all effects of a tick: no id wins every tie.
    pub fn order(&self, seed: u64, tick: u64) -> (u64, EntityId, u32) {
        (mix(seed ^ mix(tick) ^ mix(self.source.0)), self.source, self.sequence)
    }

    /// Digest over all of it.
    pub fn digest(&self) -> u64 {
        let mut digest = Digest::new(9);
        digest.add(self.source.0).add(u64::from(self.sequence));
        match self.target {
            Target::Entity(id) => digest.add(1).add(id.0),
            Target::Actor(id) => digest.add(3).add(id.0),
            Target::Cell(cell) => digest.add(2).add(u64::from(cell.space)).add(cell.y as u64).add(cell.x as u64),
        };
        match self.kind {
            EffectKind::Wave { x, y, action } => digest.add(1).add_i32(x).add_i32(y).add(u64::from(action)),
            EffectKind::Refused { action, refusal } => digest.add(2).add(u64::from(action)).add(refusal.0 as u64),
            EffectKind::Join(joining) => digest.add(3).add(joining.id.0).add_i32(joining.x).add_i32(joining.y),
            EffectKind::Birth(birth) => digest.add(4).add(birth.id.0).add_i32(birth.x).add_i32(birth.y),
            EffectKind::Gone => digest.add(5),
        };
        digest.finish()
    }
}

/// What became of a client's action, for its session alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ActionOutcome {
    /// Whose action.
    pub session: SessionRef,
    /// Its number.
    pub action: u16,
    /// `None` when it was done.
    pub refusal: Refusal,
}
