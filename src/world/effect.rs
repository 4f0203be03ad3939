//! Effects: how one entity asks another's owner to change it, and what the world tells a session in private.
//!
//! Promises: an effect is applied exactly once, in the tick after it was sent, or refused by name to its source; the
//! order of the effects on one entity depends on seed, tick and source alone.

use serde::{Deserialize, Serialize};

use crate::goods::{Offer, Refusal, Thing};
use crate::ids::{CellKey, EntityId, SessionRef};
use crate::net::message::{Stream, TradeNews};
use crate::world::goods::Confirmation;
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
    /// Its token asked that monsters ignore it, see [`super::entity::Player::peaceful`].
    pub peaceful: bool,
    /// One bit for each deed that was rewarded.
    pub deeds: u64,
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
        /// Number of the waver's request.
        request: u64,
    },
    /// An effect that you sent was refused.
    Refused {
        /// Number of the request that it was.
        request: u64,
        /// Why.
        refusal: Refusal,
    },
    /// A character joins here.
    Join(Joining),
    /// A piece of wildlife begins here.
    Birth(Birth),
    /// One that you made is gone.
    Gone,
    /// A thing lies here from now on.
    Lay(Thing),
    /// Somebody reaches for you, a thing.
    Lift {
        /// Its operation.
        operation: u64,
    },
    /// What you reached for did not come.
    Missed {
        /// Your operation.
        operation: u64,
        /// Why.
        refusal: Refusal,
    },
    /// You, a thing, were picked up or swept, or not.
    Lifted {
        /// You are gone.
        done: bool,
    },
    /// Your order was answered.
    Settled {
        /// Your operation.
        operation: u64,
        /// `None`: it was done.
        refusal: Refusal,
    },
    /// Your deed was rewarded, or not.
    Rewarded {
        /// Which.
        deed: u8,
        /// It was.
        done: bool,
    },
    /// About a trade with you.
    Trade {
        /// The trade; 0 before there is one.
        number: u64,
        /// What.
        effect: TradeEffect,
    },
}

impl EffectKind {
    /// Somebody waits for it and nobody says it again.
    pub fn must_be_heard(&self) -> bool {
        use EffectKind::{Gone, Lifted, Missed, Rewarded, Settled};
        matches!(self, Settled { .. } | Missed { .. } | Lifted { .. } | Rewarded { .. } | Gone)
    }

    /// Its source can be told that it did not come; the others are as few as the entities and orders that they are about.
    pub fn may_be_refused(&self) -> bool {
        use EffectKind::{Lift, Refused, Trade, Wave};
        matches!(self, Wave { .. } | Refused { .. } | Lift { .. } | Trade { .. })
    }
}

/// What one side of a trade tells the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum TradeEffect {
    /// Trade with me.
    Ask,
    /// We both asked: the trade is open.
    Open,
    /// I give this.
    Offer {
        /// What.
        offer: Offer,
        /// Its number.
        version: u16,
    },
    /// I agree.
    Confirm(Confirmation),
    /// It is over, or never was.
    End {
        /// Why.
        refusal: Refusal,
    },
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
            EffectKind::Wave { x, y, request } => digest.add(1).add_i32(x).add_i32(y).add(request),
            EffectKind::Refused { request, refusal } => digest.add(2).add(request).add(refusal.0 as u64),
            EffectKind::Join(joining) => {
                digest.add(3).add(joining.deeds).add(joining.id.0).add_i32(joining.x).add_i32(joining.y)
            }
            EffectKind::Birth(birth) => digest.add(4).add(birth.id.0).add_i32(birth.x).add_i32(birth.y),
            EffectKind::Gone => digest.add(5),
            EffectKind::Lay(thing) => digest.add(6).add(thing.number).add_i32(thing.x).add_i32(thing.y),
            EffectKind::Lift { operation } => digest.add(7).add(operation),
            EffectKind::Missed { operation, refusal } => digest.add(8).add(operation).add(refusal.0.into()),
            EffectKind::Lifted { done } => digest.add(9).add(done.into()),
            EffectKind::Settled { operation, refusal } => digest.add(10).add(operation).add(refusal.0.into()),
            EffectKind::Rewarded { deed, done } => digest.add(11).add(deed.into()).add(done.into()),
            EffectKind::Trade { number, effect } => {
                digest.add(12).add(number);
                match effect {
                    TradeEffect::Ask => digest.add(1),
                    TradeEffect::Open => digest.add(2),
                    TradeEffect::Offer { offer, version } => {
                        for item in offer.items() {
                            digest.add(item.uid).add(item.version.into());
                        }
                        digest.add(3).add(offer.coins as u64).add(version.into())
                    }
                    TradeEffect::Confirm(word) => {
                        digest.add(4).add(word.operation).add(u64::from(word.own) << 16 | u64::from(word.other))
                    }
                    TradeEffect::End { refusal } => digest.add(5).add(refusal.0.into()),
                }
            }
        };
        digest.finish()
    }
}

/// What an entity tells its own client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Word {
    /// What became of a request, as far as the world decides it.
    Answer {
        /// Of which stream.
        stream: Stream,
        /// Its number.
        number: u64,
        /// `None`: it was done.
        refusal: Refusal,
    },
    /// News of a trade.
    Trade(TradeNews),
}

/// A word for one session alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PrivateEvent {
    /// For whom.
    pub session: SessionRef,
    /// What.
    pub word: Word,
}
