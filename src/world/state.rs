//! A shard's world between two ticks as a value that can be kept, and the world made from it again.
//!
//! Promises: whatever decides what a world does next is in it; a field that is added to [`World`] does not compile until
//! it was decided here whether it is kept. What only the shard's own bookkeeping needs (slots in slices, totals) is not.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::cut::{CutMap, LaneMap};
use super::effect::Effect;
use super::entity::{Body, Npc, Player, Spawner, Thing};
use super::table::Table;
use super::{Counters, Decree, World, WorldConfig};
use crate::wire::ids::{CellKey, EntityId, ShardId};

/// What is kept of a world, borrowed from it. Field by field the same as [`State`].
#[derive(Serialize)]
pub struct StateRef<'a> {
    tick: u64,
    cut: &'a Arc<CutMap>,
    decrees: &'a [Decree],
    degrade: u8,
    lanes: &'a LaneMap,
    players: &'a Table<Player>,
    npcs: &'a Table<Npc>,
    spawners: &'a Table<Spawner>,
    things: &'a Table<Thing>,
    arrived: &'a [Effect],
    unheard: &'a [(u64, Effect)],
}

/// A world as it was kept.
#[derive(Deserialize)]
pub struct State {
    tick: u64,
    cut: Arc<CutMap>,
    decrees: Vec<Decree>,
    degrade: u8,
    lanes: LaneMap,
    players: Table<Player>,
    npcs: Table<Npc>,
    spawners: Table<Spawner>,
    things: Table<Thing>,
    arrived: Vec<Effect>,
    unheard: Vec<(u64, Effect)>,
}

/// Where one entity is, and whose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Glimpse {
    /// Position in fine steps: east, north, up; an actor has its patch's middle on the ground.
    pub position: (i32, i32, i32),
    /// Home cell.
    pub home: CellKey,
    /// Owner epoch.
    pub epoch: u32,
    /// Client tick of the newest command that ran, of a character.
    pub applied: Option<u32>,
}

impl World {
    /// What must be kept of it after a tick, when everything was given away and nothing of the next tick has begun.
    pub fn state(&self) -> StateRef<'_> {
        // Without `..`: a new field must be looked at here.
        let World {
            shard: _,
            tick,
            counters: _,
            elapsed: _,
            saves: _,
            orders: _,
            config: _,
            cut,
            decrees,
            recut,
            degrade,
            lanes,
            players,
            npcs,
            spawners,
            things,
            slices: _,
            arrived,
            sent,
            unheard,
            private,
            given,
            events,
            gone,
        } = self;
        let nothing_begun =
            sent.is_empty() && private.is_empty() && given.is_empty() && events.is_empty() && gone.is_empty();
        assert!(nothing_begun && !recut, "a world is kept between two ticks");
        StateRef {
            tick: *tick,
            cut,
            decrees,
            degrade: *degrade,
            lanes,
            players,
            npcs,
            spawners,
            things,
            arrived,
            unheard,
        }
    }

    /// The world that was kept. `config` is what it was made from; its cut map and first tick do not count.
    pub fn restored(config: WorldConfig, shard: ShardId, state: State) -> World {
        let State { tick, cut, decrees, degrade, lanes, players, npcs, spawners, things, arrived, unheard } = state;
        // No wildlife and no things: both come with the state.
        let bare = WorldConfig { npcs: 0, things: Arc::default(), cut: cut.clone(), start_tick: tick, ..config };
        let mut world = World::new(bare, shard);
        world.counters = Counters::default();
        (world.degrade, world.lanes) = (degrade, lanes);
        (world.decrees, world.players, world.npcs, world.spawners) = (decrees, players, npcs, spawners);
        (world.things, world.arrived, world.unheard) = (things, arrived, unheard);
        world
    }

    /// Where an entity is, if it is here.
    pub fn glimpse(&self, id: EntityId) -> Option<Glimpse> {
        let of_body = |body: &Body, applied| {
            let motion = &body.motion;
            Glimpse { position: (motion.x, motion.y, motion.z), home: body.home, epoch: body.epoch, applied }
        };
        if let Some(at) = self.players.position(id) {
            let player = self.players.at(at);
            return Some(of_body(&player.body, Some(player.applied)));
        }
        if let Some(at) = self.npcs.position(id) {
            return Some(of_body(&self.npcs.at(at).body, None));
        }
        if let Some(at) = self.things.position(id) {
            return Some(of_body(&self.things.at(at).body, None));
        }
        let spawner = self.spawners.at(self.spawners.position(id)?);
        let ground = self.config.land.height(spawner.x, spawner.y);
        let position = (spawner.x, spawner.y, ground);
        Some(Glimpse { position, home: spawner.home, epoch: spawner.epoch, applied: None })
    }
}
