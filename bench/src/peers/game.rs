//! The game that a peer serves: sessions and world of one shard, the product's own code without its threads.
//!
//! Owns both. Promises: what a tick does between its datagrams is what a shard does; whoever proved who it is gets in at
//! once. Never writes anything to a disk, and never records a flight: the product does, and pays for it.

use std::sync::Arc;

use ringshard::limits::{NPC_LIFE_TICKS, SESSION_BYTES_PER_S_MAX};
use ringshard::realm::core::{Core, Rules, Whom};
use ringshard::realm::keeper::{KeeperAnswer, KeeperCommand};
use ringshard::realm::mesh::{self, MeshEnd};
use ringshard::realm::sessions::interest::Radii;
use ringshard::realm::sessions::session::Rates;
use ringshard::wire::ids::{SessionRef, ShardId};
use ringshard::wire::units::GRID_PER_M;
use ringshard::world::cut::CutMap;
use ringshard::world::land::Land;
use ringshard::world::{World, WorldConfig};

use crate::tick::realm::newcomer;

/// Seed of the land, as `serve` has it where nothing else is asked.
pub const LAND_SEED: u64 = 42;

/// See the module.
pub struct Game {
    /// Sessions and world.
    pub core: Core,
    mesh: MeshEnd,
}

impl Game {
    /// A world with so much wildlife that nobody plays in, and so many snapshots a second for each session.
    pub fn new(npcs: u32, send_hz: u32) -> Game {
        let config = WorldConfig {
            seed: LAND_SEED,
            land: Arc::new(Land::new(LAND_SEED)),
            cut: Arc::new(CutMap::equal(1)),
            npcs,
            npc_life_ticks: NPC_LIFE_TICKS,
            start_tick: 0,
            things: Arc::new([]),
        };
        let radii = Radii { enter: 96 * GRID_PER_M, leave: 128 * GRID_PER_M };
        let rates = Rates { send_hz, bytes_per_s: SESSION_BYTES_PER_S_MAX };
        let rules = Rules { radii, rates, dev: true, seam: None };
        Game { core: Core::new(World::new(config, ShardId(0)), 1, rules), mesh: mesh::connect(1).remove(0) }
    }

    /// Steps a tick with everything that arrived, and shows it.
    pub fn step(&mut self, tick: u64) {
        self.answer_claims();
        let Game { core, mesh } = self;
        core.pass_requests();
        mesh.give_inputs(tick, &mut core.inputs);
        core.begin(tick);
        let mut mine = std::mem::take(&mut core.inputs[0]);
        core.take_inputs(ShardId(0), &mine);
        mine.reset(tick);
        core.inputs[0] = mine;
        core.play();
        let mut outs = mesh.outcomes(tick);
        core.publish(&mut outs);
        core.hear(mesh.give_outcomes(outs));
    }

    /// Calls `send` with each session whose snapshot is due and a function that writes it.
    pub fn send_due(&mut self, send: impl FnMut(SessionRef, &mut dyn FnMut(&mut [u8]) -> usize)) {
        self.core.send_due(Whom::Rest, send);
    }

    /// A keeper that lets everybody in at once and keeps nothing.
    fn answer_claims(&mut self) {
        for command in std::mem::take(&mut self.core.keeper) {
            if let KeeperCommand::Claim { session, client_id, .. } = command {
                let row = newcomer(client_id);
                self.core.hear_keeper(KeeperAnswer::Claimed { session, row, new: false, operation: 0 });
            }
        }
    }
}
