//! What one shard gives another in one tick, whole or not at all.
//!
//! Owns buffers that are emptied and filled again: a parcel goes back to its writer once it was read. Promises: two
//! parcels a tick and pair of shards, even empty ones; nothing in them points into a shard; those that wait for a shard
//! that stands still become one, within bounds, and who reads it has all that it would have had of them.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::Decree;
use crate::balance::{CellCost, LaneCost};
use crate::effect::{Effect, PrivateEvent};
use crate::entity::{Npc, Player, Spawner, Thing};
use crate::frame::Frame;
use crate::limits::{MERGED_EFFECTS_MAX, MERGED_EVENTS_MAX};
use crate::movement::Command;
use crate::wire::generated::structs;
use crate::wire::ids::{CellKey, EntityId, SessionRef, ShardId};
use crate::wire::messages::{Request, Stream};

/// What a session passes on to its entity.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum InputKind {
    /// Commands for consecutive client ticks.
    Commands {
        /// Client tick of the first; 0 means "the next ones".
        first_tick: u32,
        /// Where they begin among the parcel's commands.
        first: u32,
        /// How many they are.
        count: u32,
    },
    /// A request. It is given until the entity took it: the one with the next ordinal of its stream.
    Request {
        /// Place among the requests of its stream that the session passed on, from 1, wrapping.
        ordinal: u16,
        /// Its number, as the client knows it.
        number: u64,
        /// What.
        request: Request,
    },
    /// The session ended.
    Leave,
}

/// One input for one entity.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Input {
    /// For whom.
    pub entity: EntityId,
    /// From whom; an entity obeys its own session alone.
    pub session: SessionRef,
    /// What.
    pub kind: InputKind,
}

/// First parcel of a tick: what this shard's sessions want of the other shard's entities.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct InputParcel {
    /// When.
    pub tick: u64,
    /// Inputs in the order in which they came.
    pub inputs: Vec<Input>,
    /// Commands that the inputs refer to.
    pub commands: Vec<Command>,
}

impl InputParcel {
    /// Empties it for another tick.
    pub fn reset(&mut self, tick: u64) {
        self.tick = tick;
        self.inputs.clear();
        self.commands.clear();
    }

    /// Takes over a newer parcel of the same sessions: they repeat what their entities did not name yet, and an entity
    /// without a session is told to leave again, so the newest tick says all that counts. What it said before stays in
    /// `newer`.
    pub fn absorb(&mut self, newer: &mut InputParcel) {
        assert!(self.tick < newer.tick, "parcels are merged in order");
        std::mem::swap(self, newer);
    }

    /// Adds commands of a session for its entity.
    #[inline]
    pub fn push_commands(
        &mut self,
        entity: EntityId,
        session: SessionRef,
        first_tick: u32,
        commands: impl Iterator<Item = Command>,
    ) {
        let first = self.commands.len() as u32;
        self.commands.extend(commands);
        let count = self.commands.len() as u32 - first;
        self.inputs.push(Input { entity, session, kind: InputKind::Commands { first_tick, first, count } });
    }

    /// Puts newer commands of a session in the place of those of the input at `place`, which was pushed in this tick.
    pub fn replace_commands(&mut self, place: usize, first_tick: u32, commands: impl Iterator<Item = Command>) {
        let first = self.commands.len() as u32;
        self.commands.extend(commands);
        let count = self.commands.len() as u32 - first;
        self.inputs[place].kind = InputKind::Commands { first_tick, first, count };
    }
}

/// What the owner tells a session about its entity after a tick.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Told {
    /// To whom.
    pub session: SessionRef,
    /// The entity as it is now.
    pub state: structs::OwnState,
    /// Its home cell.
    pub home: CellKey,
    /// Who steps it in the next tick: inputs go there.
    pub next_owner: ShardId,
    /// Ordinal of the newest request that it took, by stream.
    pub taken: [u16; Stream::COUNT],
}

/// Entities that change their owner between this tick and the next.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Handoffs {
    /// Characters.
    pub players: Vec<Player>,
    /// Wildlife.
    pub npcs: Vec<Npc>,
    /// Actors.
    pub spawners: Vec<Spawner>,
    /// Things on the ground.
    pub things: Vec<Thing>,
}

/// Second parcel of a tick: what became of it, as far as the other shard needs to know.
#[derive(Clone, Debug, Default)]
pub struct OutcomeParcel {
    /// When.
    pub tick: u64,
    /// From whom.
    pub shard: ShardId,
    /// What this shard shows.
    pub frame: Option<Arc<Frame>>,
    /// Effects on entities of the other shard.
    pub effects: Vec<Effect>,
    /// Entities that are the other shard's from the next tick on.
    pub handoffs: Handoffs,
    /// Own states of the entities that the other shard's sessions steer.
    pub told: Vec<Told>,
    /// What those entities tell their clients.
    pub private: Vec<PrivateEvent>,
    /// Sessions whose private events found no room while their shard stood still: they end, so that no client misses
    /// news without knowing.
    pub behind: BTreeSet<SessionRef>,
    /// Changes that no entity owns, in order; the same to every shard.
    pub decrees: Vec<Decree>,
    /// Tick of the newest decree about lanes that the sender obeys, now or from that tick on: what it gives for a lane
    /// then goes to the shard that the decree names.
    pub lanes_known: u64,
    /// The lanes that the sender serves, as bits.
    pub lanes_here: u32,
    /// What cells and lanes cost is with it: to the shard that balances, now and then.
    pub weighed: bool,
    /// What the sender's cells cost, by their place in the land.
    pub costs: Vec<(u16, CellCost)>,
    /// What its lanes cost.
    pub lane_costs: Vec<LaneCost>,
}

impl OutcomeParcel {
    /// Empties it for another tick.
    pub fn reset(&mut self, shard: ShardId, tick: u64) {
        self.tick = tick;
        self.shard = shard;
        self.frame = None;
        self.effects.clear();
        self.handoffs.players.clear();
        self.handoffs.npcs.clear();
        self.handoffs.spawners.clear();
        self.handoffs.things.clear();
        self.told.clear();
        self.private.clear();
        self.behind.clear();
        self.decrees.clear();
        self.weighed = false;
        self.lanes_known = 0;
        self.lanes_here = 0;
        self.costs.clear();
        self.lane_costs.clear();
    }

    /// Takes over a newer parcel from the same shard to the same shard: who reads it then has all that both said, but
    /// for own states and frames, of which the newest count. Effects that find no room stay in `newer`; their sender
    /// refuses them by name.
    pub fn absorb(&mut self, newer: &mut OutcomeParcel) {
        assert!(self.shard == newer.shard && self.tick < newer.tick, "parcels are merged in order");
        self.tick = newer.tick;
        self.frame = newer.frame.take();
        let effects = &mut self.effects;
        newer.effects.retain(|effect| {
            let waits = effects.len() < MERGED_EFFECTS_MAX || !effect.kind.may_be_refused();
            if waits {
                effects.push(*effect);
            }
            !waits
        });
        let (mine, theirs) = (&mut self.handoffs, &mut newer.handoffs);
        mine.players.append(&mut theirs.players);
        mine.npcs.append(&mut theirs.npcs);
        mine.spawners.append(&mut theirs.spawners);
        mine.things.append(&mut theirs.things);
        std::mem::swap(&mut self.told, &mut newer.told);
        for event in newer.private.drain(..) {
            if self.private.len() == MERGED_EVENTS_MAX || self.behind.contains(&event.session) {
                self.behind.insert(event.session);
            } else {
                self.private.push(event);
            }
        }
        self.decrees.append(&mut newer.decrees);
        (self.lanes_known, self.lanes_here) = (newer.lanes_known, newer.lanes_here);
        if newer.weighed {
            self.weighed = true;
            std::mem::swap(&mut self.costs, &mut newer.costs);
            std::mem::swap(&mut self.lane_costs, &mut newer.lane_costs);
        }
    }
}

/// The shards for which the parcels of a tick were merged into those that wait for them, as bits. Who replays the tick
/// must merge them as well: what found no room is decided by it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Merged {
    /// Of the input parcels.
    pub inputs: u32,
    /// Of the outcome parcels.
    pub outcomes: u32,
}

const _: () = assert!(crate::limits::SHARDS_MAX <= 32, "the shards are the bits of a u32");
