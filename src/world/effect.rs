//! Effects: how one entity asks another's owner to change it, and what the world tells a session in private.
//!
//! Promises: an effect is applied exactly once, in the tick after it was sent, or refused by name to its source; the
//! order of the effects on one entity depends on seed, tick and source alone.

use serde::{Deserialize, Serialize};

use crate::goods::{Confirmation, digest_offer, digest_thing};
use crate::random::{Digest, mix};
use crate::wire::goods::{Offer, Refusal, Thing};
use crate::wire::ids::{CellKey, EntityId, SessionRef};
use crate::wire::messages::{Stream, TradeNews};

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

    /// Digest over all of it but the owner epoch of who joins: that depends on who owned it before.
    pub fn digest(&self) -> u64 {
        let Effect { target, source, sequence, kind } = self;
        let mut digest = Digest::new(9);
        digest.add(source.0).add(u64::from(*sequence));
        match target {
            Target::Entity(id) => digest.add(1).add(id.0),
            Target::Actor(id) => digest.add(3).add(id.0),
            Target::Cell(cell) => digest.add(2).add(u64::from(cell.space)).add(cell.y as u64).add(cell.x as u64),
        };
        kind.digest(&mut digest);
        digest.finish()
    }
}

impl EffectKind {
    fn digest(&self, digest: &mut Digest) {
        match *self {
            EffectKind::Wave { x, y, request } => digest.add(1).add_i32(x).add_i32(y).add(request),
            EffectKind::Refused { request, refusal } => digest.add(2).add(request).add(refusal.0.into()),
            EffectKind::Join(joining) => joining.digest(digest.add(3)),
            EffectKind::Birth(birth) => birth.digest(digest.add(4)),
            EffectKind::Gone => digest.add(5),
            EffectKind::Lay(thing) => digest_thing(&thing, digest.add(6)),
            EffectKind::Lift { operation } => digest.add(7).add(operation),
            EffectKind::Missed { operation, refusal } => digest.add(8).add(operation).add(refusal.0.into()),
            EffectKind::Lifted { done } => digest.add(9).add(done.into()),
            EffectKind::Settled { operation, refusal } => digest.add(10).add(operation).add(refusal.0.into()),
            EffectKind::Rewarded { deed, done } => digest.add(11).add(deed.into()).add(done.into()),
            EffectKind::Trade { number, effect } => effect.digest(digest.add(12).add(number)),
        };
    }
}

impl Joining {
    fn digest<'a>(&self, digest: &'a mut Digest) -> &'a mut Digest {
        let Joining { id, session, client_id, x, y, yaw, epoch: _, guest, peaceful, deeds } = *self;
        let SessionRef { lane, slot, generation } = session;
        digest.add(id.0).add(u64::from(lane) << 48 | u64::from(slot) << 32 | u64::from(generation)).add(client_id);
        digest.add_i32(x).add_i32(y).add(u64::from(yaw) << 2 | u64::from(guest) << 1 | u64::from(peaceful)).add(deeds)
    }
}

impl Birth {
    fn digest<'a>(&self, digest: &'a mut Digest) -> &'a mut Digest {
        let Birth { id, spawner, x, y, range_x, range_y, end_tick } = *self;
        digest.add(id.0).add(spawner.into()).add_i32(x).add_i32(y).add_i32(range_x).add_i32(range_y).add(end_tick)
    }
}

impl TradeEffect {
    fn digest<'a>(&self, digest: &'a mut Digest) -> &'a mut Digest {
        match *self {
            TradeEffect::Ask => digest.add(1),
            TradeEffect::Open => digest.add(2),
            TradeEffect::Offer { offer, version } => digest_offer(&offer, digest.add(3).add(version.into())),
            TradeEffect::Confirm(word) => word.digest(digest.add(4)),
            TradeEffect::End { refusal } => digest.add(5).add(refusal.0.into()),
        }
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
    /// How many words it was told before, wrapping: after a handoff two shards tell it, and either may be late.
    pub number: u32,
    /// What.
    pub word: Word,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn digest(kind: EffectKind) -> u64 {
        let target = Target::Cell(CellKey { space: 0, y: 2, x: 3 });
        Effect { target, source: EntityId(300), sequence: 7, kind }.digest()
    }

    fn all_differ(kinds: impl IntoIterator<Item = EffectKind>) {
        let mut seen = HashSet::new();
        for kind in kinds {
            assert!(seen.insert(digest(kind)), "another effect has the digest of {kind:?}");
        }
    }

    #[test]
    fn every_field_of_a_join_but_the_owner_epoch_is_in_its_digest() {
        let base = Joining {
            id: EntityId::character(1),
            session: SessionRef { lane: 1, slot: 2, generation: 3 },
            client_id: 4,
            x: 5,
            y: 6,
            yaw: 7,
            epoch: 8,
            guest: false,
            peaceful: false,
            deeds: 9,
        };
        let session = base.session;
        let others = [
            base,
            Joining { id: EntityId::character(2), ..base },
            Joining { session: SessionRef { lane: 2, ..session }, ..base },
            Joining { session: SessionRef { slot: 3, ..session }, ..base },
            Joining { session: SessionRef { generation: 4, ..session }, ..base },
            Joining { client_id: 5, ..base },
            Joining { x: 6, ..base },
            Joining { y: 7, ..base },
            Joining { yaw: 8, ..base },
            Joining { guest: true, ..base },
            Joining { peaceful: true, ..base },
            Joining { deeds: 10, ..base },
        ];
        all_differ(others.map(EffectKind::Join));
        let older = Joining { epoch: 1, ..base };
        assert_eq!(digest(EffectKind::Join(older)), digest(EffectKind::Join(base)), "who owned it does not matter");
    }

    #[test]
    fn every_field_of_a_birth_is_in_its_digest() {
        let base = Birth { id: EntityId(1 << 57), spawner: 2, x: 3, y: 4, range_x: 5, range_y: 6, end_tick: 7 };
        let others = [
            base,
            Birth { id: EntityId(1 << 57 | 1), ..base },
            Birth { spawner: 3, ..base },
            Birth { x: 4, ..base },
            Birth { y: 5, ..base },
            Birth { range_x: 6, ..base },
            Birth { range_y: 7, ..base },
            Birth { end_tick: 8, ..base },
        ];
        all_differ(others.map(EffectKind::Birth));
    }

    #[test]
    fn every_field_of_a_thing_that_is_laid_is_in_its_digest() {
        let base = Thing { number: 1, kind: 2, x: 3, y: 4, end_tick: 5 };
        let others = [
            base,
            Thing { number: 2, ..base },
            Thing { kind: 3, ..base },
            Thing { x: 4, ..base },
            Thing { y: 5, ..base },
            Thing { end_tick: 6, ..base },
        ];
        all_differ(others.map(EffectKind::Lay));
    }
}
