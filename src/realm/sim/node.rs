//! The realm's process in the sim: its shards, their queues and its keeper.
//!
//! Owns all that a process loses when it ends; its disk outlives it. Promises: the same `world`, `net`, `mesh`, handoff
//! and keeper code as the product, in lockstep unless something stands still. Never draws anything: what goes wrong is
//! told to it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::core::{Core, Rules, Whom};
use crate::keeper::{Desk, DeskRules, DiskFault, KeeperAnswer, KeeperCommand, MemoryDisk, Store, StoreError};
use crate::ladder::{Common, Spent};
use crate::lanes::Post;
use crate::limits::LANES;
use crate::mesh::{self, Carrier, MeshEnd};
use crate::wire::goods::OrderId;
use crate::wire::ids::{EntityId, IdClass, SessionRef, ShardId};
use crate::world::cut::CutMap;
use crate::world::{World, WorldConfig};

/// What a shard's core does in a tick, as a model of its cost: nanoseconds on a core of today.
mod cost {
    /// An entity's step and its part of a slice.
    pub const ENTITY_NS: u64 = 200;
    /// A turn of wildlife that was not put off.
    pub const TURN_NS: u64 = 4_000;
    /// A body that is made, sealed and sent.
    pub const BODY_NS: u64 = 3_500;
    /// Each byte of it.
    pub const BYTE_NS: u64 = 1;
}

/// Commands on their way to the keeper: few, so that a keeper that stands still finds its queue full.
const QUEUE_MAX: usize = 64;

/// What a realm is started with, each time.
#[derive(Clone)]
pub struct Setup {
    /// The world before its first tick.
    pub world: WorldConfig,
    /// Settings.
    pub rules: Rules,
    /// Settings of the keeper.
    pub desk: DeskRules,
    /// Packet sequence that sessions begin with.
    pub first_sequence: u16,
}

/// A running realm.
pub struct Node {
    /// Sessions and worlds, by shard.
    pub cores: Vec<Core>,
    /// The keeper.
    pub desk: Desk<MemoryDisk>,
    mesh: Vec<MeshEnd>,
    carriers: Vec<Carrier<Post<()>>>,
    /// Lanes that went from one shard to another.
    pub lanes_moved: u64,
    /// Answers under way, with the tick in which they are heard.
    answers: VecDeque<(u64, Vec<(ShardId, KeeperAnswer)>)>,
    /// First tick in which each shard runs again.
    stalled_until: Vec<u64>,
    /// Likewise the keeper.
    keeper_stalled_until: u64,
    /// Commands on their way to the keeper.
    queue: Vec<KeeperCommand>,
    /// Commands of earlier ticks are still with their shards.
    behind: bool,
    /// Last tick in which not everybody ran in lockstep.
    uneven: u64,
    /// How many times slower the cores are than one of today; 0: their work takes no time.
    pub slowdown: u64,
    /// By shard: its last tick, and the turns that its wildlife had until then.
    ran: Vec<(u64, u64)>,
    /// What was made so of what the ladders ask for.
    common: Common,
}

impl Node {
    /// Starts a realm on a disk; its first tick is the one after `tick`.
    ///
    /// # Errors
    /// The disk holds something that is not served.
    pub fn start(setup: &Setup, disk: MemoryDisk, tick: u64) -> Result<Node, Box<(StoreError, MemoryDisk)>> {
        let shards = setup.world.cut.shards();
        let cut: Arc<CutMap> = setup.world.cut.clone();
        let kept = disk.clone();
        let owner = |row: &crate::keeper::CharacterRow| cut.owner(crate::wire::ids::CellKey::of_fine(row.x, row.y));
        let desk = Store::open(disk, shards, setup.world.seed, owner).and_then(|store| Desk::open(store, setup.desk));
        let desk = desk.map_err(|error| Box::new((error, kept)))?;
        let world = WorldConfig { start_tick: tick, things: desk.things().into(), ..setup.world.clone() };
        let core = |shard| {
            let mut core = Core::new(World::new(world.clone(), ShardId(shard as u8)), shards, setup.rules);
            core.first_sequence = setup.first_sequence;
            core
        };
        Ok(Node {
            cores: (0..shards).map(core).collect(),
            desk,
            mesh: mesh::connect(shards),
            carriers: mesh::carriers(shards),
            lanes_moved: 0,
            answers: VecDeque::new(),
            stalled_until: vec![0; shards],
            keeper_stalled_until: 0,
            queue: Vec::new(),
            behind: false,
            uneven: tick + 1,
            slowdown: 0,
            ran: vec![(tick, 0); shards],
            common: Common::default(),
        })
    }

    /// Ends the process; what is left is its disk.
    pub fn end(self) -> MemoryDisk {
        self.desk.into_disk()
    }

    /// Lets a shard stand still until a tick.
    pub fn stall_shard(&mut self, shard: usize, until: u64) {
        self.stalled_until[shard] = until;
    }

    /// Lets the keeper stand still until a tick.
    pub fn stall_keeper(&mut self, until: u64) {
        self.keeper_stalled_until = until;
    }

    /// Whether a shard runs in a tick.
    pub fn runs(&self, shard: usize, tick: u64) -> bool {
        self.stalled_until[shard] <= tick
    }

    /// Whether all parcels of this tick were used in it, so that sums over all shards must agree.
    pub fn is_even(&self, tick: u64) -> bool {
        self.uneven < tick
    }

    /// The shard that serves a lane; none while it is on its way.
    pub fn server_of(&self, lane: u8) -> Option<usize> {
        self.cores.iter().position(|core| core.serves(lane))
    }

    /// Lanes on their way: those that no shard has.
    pub fn lanes_under_way(&self) -> usize {
        (0..LANES as u8).filter(|&lane| self.server_of(lane).is_none()).count()
    }

    /// Between two ticks: shards give the lanes that must go, and take those that came.
    pub fn pass_lanes(&mut self, tick: u64) {
        let running = |shard: &usize| self.stalled_until[*shard] <= tick;
        let shards: Vec<usize> = (0..self.cores.len()).filter(running).collect();
        for &at in &shards {
            for (lane, to) in self.cores[at].lanes_due() {
                if self.carriers[at].room(to) == 0 {
                    continue;
                }
                let sessions = self.cores[at].give_lane(lane);
                self.carriers[at].post(to, self.cores[at].world.tick + 1, Post::Lane(Box::new((sessions, ()))));
                self.lanes_moved += 1;
            }
        }
        shards.into_iter().for_each(|at| self.take_posts(at, tick));
    }

    fn take_posts(&mut self, at: usize, tick: u64) {
        let core = &mut self.cores[at];
        self.carriers[at].take(tick, |post| match post {
            Post::Answer(answer) => core.hear_answer(answer),
            Post::Lane(lane) => core.take_lane(lane.0),
        });
    }

    /// The keeper's answers that are due.
    pub fn hear_keeper(&mut self, tick: u64) {
        while self.answers.front().is_some_and(|&(due, _)| due <= tick) {
            let (_, answers) = self.answers.pop_front().expect("it is there");
            for (shard, answer) in answers {
                self.cores[shard.index()].hear_keeper(answer);
            }
        }
    }

    /// The tick of every shard, in lockstep but for those that stand still. Who runs again is too late for the others: they
    /// showed the tick without it. `send` gets each session's body.
    pub fn step(&mut self, tick: u64, mut send: impl FnMut(SessionRef, &mut dyn FnMut(&mut [u8]) -> usize)) {
        let running = (0..self.cores.len()).filter(|&shard| self.runs(shard, tick));
        let (punctual, late): (Vec<usize>, Vec<usize>) = running.partition(|&shard| self.ran[shard].0 + 1 == tick);
        let missing = self.cores.len() - punctual.len() - late.len();
        let missing =
            missing + self.step_together(tick, &punctual, &mut send) + self.step_together(tick, &late, &mut send);
        if missing > 0 {
            self.uneven = tick;
        }
        self.obey_ladders();
    }

    /// The tick of some shards; gives back how many parcels they missed.
    fn step_together(
        &mut self,
        tick: u64,
        shards: &[usize],
        send: &mut impl FnMut(SessionRef, &mut dyn FnMut(&mut [u8]) -> usize),
    ) -> usize {
        let Node { cores, mesh, carriers, .. } = self;
        let mut missing = 0;
        for &at in shards {
            let core = &mut cores[at];
            core.pass_requests();
            mesh[at].give_inputs(tick, &mut core.inputs);
            core.begin(tick);
        }
        for &at in shards {
            let core = &mut cores[at];
            let mut mine = std::mem::take(&mut core.inputs[at]);
            core.take_inputs(ShardId(at as u8), &mine);
            mine.reset(tick);
            core.inputs[at] = mine;
            missing += mesh[at].take_inputs(tick, || false, |from, parcel| core.take_inputs(from, parcel)) as usize;
            core.play();
            core.give_posts(tick, &carriers[at]);
            let mut outs = mesh[at].outcomes(tick);
            core.publish(&mut outs);
            core.hear(mesh[at].give_outcomes(outs));
        }
        for &at in shards {
            missing += self.mesh[at].take_outcomes(tick, || false, |parcel| self.cores[at].hear(parcel)) as usize;
            self.take_posts(at, tick);
            let core = &mut self.cores[at];
            let mut sent_ns = 0;
            core.send_due(Whom::Rest, |session, write| {
                send(session, &mut |out| {
                    let length = write(out);
                    sent_ns += cost::BODY_NS + cost::BYTE_NS * length as u64;
                    length
                });
            });
            core.end_tick();
            let (players, npcs, spawners) = core.world.entities();
            let turns = core.world.counters.turns - core.world.counters.turns_put_off;
            let (last, turns_before) = std::mem::replace(&mut self.ran[at], (tick, turns));
            let stepped_ns = (players + npcs + spawners) as u64 * cost::ENTITY_NS;
            let busy_ns = sent_ns + stepped_ns + (turns - turns_before) * cost::TURN_NS;
            core.ladder.note(tick - last, Spent::alone(self.slowdown * busy_ns));
        }
        missing
    }

    /// As the host does: what the ladders ask of the whole node is made so.
    fn obey_ladders(&mut self) {
        let common = Common::of(self.cores.iter().map(|core| core.ladder.step()));
        if common.degrade != self.common.degrade {
            self.cores[0].degrade(common.degrade);
        }
        self.cores.iter_mut().for_each(|core| core.is_open = !common.closed);
        self.common = common;
    }

    /// Whether the keeper takes commands in a tick.
    pub fn keeper_runs(&self, tick: u64) -> bool {
        self.keeper_stalled_until <= tick
    }

    /// After a tick: what the shards tell the keeper goes into its queue as far as there is room, in an order that does
    /// not depend on their number; what the keeper takes then: all, or nothing while it stands still.
    pub fn keeper_commands(&mut self, tick: u64) -> Vec<KeeperCommand> {
        let waiting: usize = self.cores.iter().map(|core| core.keeper.len()).sum();
        if !self.is_behind() && self.queue.len() + waiting <= QUEUE_MAX {
            self.queue_in_order();
        } else {
            for core in &mut self.cores {
                let count = core.keeper.len().min(QUEUE_MAX.saturating_sub(self.queue.len()));
                self.queue.extend(core.keeper.drain(..count));
            }
        }
        self.behind = self.cores.iter().any(|core| !core.keeper.is_empty());
        if self.keeper_runs(tick) { std::mem::take(&mut self.queue) } else { Vec::new() }
    }

    /// Whether shards still hold commands of earlier ticks, because the queue to the keeper was full.
    pub fn is_behind(&self) -> bool {
        self.behind
    }

    /// Of one character's commands each stays where a shard puts it: claims when a session begins, then the orders of the
    /// tick, then its row.
    fn queue_in_order(&mut self) {
        let mut commands: Vec<KeeperCommand> = self.cores.iter_mut().flat_map(|core| core.keeper.drain(..)).collect();
        let store = self.desk.store();
        // Who has no character yet orders nothing.
        let of_client = |client_id: u64| match store.row(client_id) {
            Ok(Some(row)) => (0, row.character),
            _ => (1, client_id),
        };
        commands.sort_by_cached_key(|command| match command {
            KeeperCommand::Clock { .. } => ((0, 0), 0, 0),
            KeeperCommand::Claim { client_id, .. } | KeeperCommand::Release { client_id, row: None, .. } => {
                (of_client(*client_id), 0, 0)
            }
            KeeperCommand::Order(asked) => {
                let OrderId { source, sequence } = asked.order.id;
                match source.class() {
                    IdClass::Character | IdClass::Deeds => ((0, source.number()), 1, sequence),
                    _ => ((2, source.0), 1, sequence),
                }
            }
            KeeperCommand::Row(row) | KeeperCommand::Release { row: Some(row), .. } => ((0, row.character), 2, 0),
        });
        self.queue.append(&mut commands);
    }

    /// Lets what is under way to the disk land, or fail; the answers are heard `after` ticks later.
    ///
    /// # Errors
    /// The disk refused: the process must end.
    pub fn land(&mut self, tick: u64, after: u64, fault: Option<DiskFault>) -> Result<(), StoreError> {
        if let Some(fault) = fault {
            self.desk.store_mut().disk_mut().plan(fault);
        }
        self.desk.land(Duration::ZERO)?;
        self.give_answers(tick, after);
        Ok(())
    }

    /// Lets the answers leave that may.
    pub fn give_answers(&mut self, tick: u64, after: u64) {
        let answers = self.desk.take_answers();
        if !answers.is_empty() {
            self.answers.push_back((tick + after, answers));
        }
    }

    /// All entities with their epochs and owners, in no order that means anything.
    pub fn owned(&self) -> impl Iterator<Item = (EntityId, u32, ShardId)> + '_ {
        self.cores.iter().flat_map(|core| core.world.ids().map(|(id, epoch)| (id, epoch, core.world.shard)))
    }
}
