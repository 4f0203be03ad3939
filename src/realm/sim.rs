//! The sim host: shards, keeper, network, disk and bots in one thread from one seed.
//!
//! Owns a whole realm in lockstep: every parcel arrives, a keeper answer to a command of tick T comes at T+3; with faults
//! on request, each drawn from the seed. Promises: the same `world`, `net`, `mesh` and `keeper` code as the product; no
//! OS time, no threads; without faults the same seed gives the same hash on any number of shards, with them a seed run
//! twice does. Every tick checks what must always hold.

mod clients;
pub mod faults;
pub mod model;
mod node;
mod oracle;
mod quirks;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::bots::trader;
use crate::bots::{Crossing, SEQUENCE_NEAR_WRAP};
use crate::core::{Core, Rules};
use crate::keeper::{DeskRules, DiskFault, KeeperCommand, MemoryDisk, StoreError, StoreErrorKind, Terms};
use crate::ladder::NAMES;
use crate::limits::{BODY_BYTES_MAX, LANES, OFFER_ITEMS_MAX, SESSION_BYTES_PER_S_MAX};
use crate::sessions::interest::Radii;
use crate::sessions::session::Rates;
use crate::wire::goods::{Asked, Offer, Order, OrderId, OrderKind, Thing};
use crate::wire::ids::{CellKey, EntityId, ShardId};
use crate::wire::units::{CELL_GRID, FINE_SHIFT, GRID_PER_M};
use crate::world::cut::{CELLS, CutMap};
use crate::world::land::{LAND_CELLS, Land};
use crate::world::random::{below, random};
use crate::world::{DecreeKind, WorldConfig, roll_hash};

use clients::Clients;
use faults::{Fault, Faults, Feature, Meeting, Plan};
use node::{Node, Setup};
use oracle::Oracle;
use quirks::Quirk;

/// Ticks from a keeper command to its answer, without faults.
const KEEPER_TICKS: u64 = 3;
/// Ticks between two words to the keeper about the time.
const CLOCK_TICKS: u64 = 30;
/// Ticks at the end of a run without faults: whatever happened must be over by then.
const QUIET_TICKS: u64 = 600;
/// Ticks between two introductions of the bots.
const INTRODUCE_TICKS: u64 = 4;
/// Ticks after which everybody near was shown a new thing.
const SEEN_TICKS: u64 = 10;
/// Ticks between two orders of the impostor.
const IMPOSTOR_TICKS: u64 = 41;
/// A character that nobody plays and that owns nothing.
const IMPOSTOR: u64 = 1 << 40;
/// Ticks at the end of a run in which the bots begin nothing new.
const REST_TICKS: u64 = 300;
/// Ticks that a process needs to start again.
const RESTART_TICKS: u32 = 40;
/// Longest time that a shard stands still: not much longer, and the node would end.
const STALL_TICKS_MAX: u32 = 1_500;
/// Longest of most of them, so that runs get far.
const STALL_TICKS_USUAL: u32 = 50;
/// One in how many is longer.
const STALL_CHANCES: u32 = 6;
/// Short times and little room, so that a run sees the end of both.
const TERMS: Terms = Terms {
    mail_ticks: 400,
    thing_ticks: 500,
    account_items_max: [0, 10, 3, 12, 5, OFFER_ITEMS_MAX, 1],
    mails_max: 3,
    cell_things_max: 4,
    answers_kept: 8,
};
/// Shards whose borders the bots gather at, whatever the number of shards of the run.
const BORDERS_OF_SHARDS: usize = 8;
/// Where the low 32 bits of ticks begin anew.
const WRAP_TICK: u64 = 1 << 32;
/// Ticks before it in which a run near the wraps begins.
const TICKS_BEFORE_WRAP: u64 = 400;
/// One tick in how many brings another cut of the land, or other shards for lanes.
const DECREE_CHANCES: u32 = 40;
/// Bots at one border.
const BOTS_AT_A_BORDER: u64 = 8;

/// What the bots of a run do.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum SimScenario {
    /// In pairs across the borders of eight shards, waving at each other.
    Seam,
    /// All in one disc of 30 m, every one of them looking at what it is shown.
    Crowd,
    /// As seam, and they trade, mail, drop, pick up and cheat.
    Trade,
}

/// What a run is made from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SimConfig {
    /// Decides everything.
    pub seed: u64,
    /// Ticks to run.
    pub ticks: u64,
    /// Shards.
    pub shards: usize,
    /// Players.
    pub bots: u64,
    /// Wildlife.
    pub npcs: u32,
    /// What the bots do.
    pub scenario: SimScenario,
    /// What goes wrong.
    pub faults: Faults,
    /// Bytes a second of each player's link from the server; none: any number.
    pub link: Option<u32>,
    /// How many times slower the cores are than one of today, until the quiet end; 0: their work takes no time.
    pub slowdown: u64,
}

impl SimConfig {
    /// One seed in four begins just before all counters wrap around: ticks, and what is made of them, client ticks and
    /// packet sequences.
    fn is_near_wraps(&self) -> bool {
        self.seed % 4 == 3
    }

    /// The realm begins after this tick.
    fn first_tick(&self) -> u64 {
        if self.is_near_wraps() { WRAP_TICK - TICKS_BEFORE_WRAP } else { 0 }
    }

    /// The run ends with this tick.
    fn end_tick(&self) -> u64 {
        self.first_tick() + self.ticks
    }
}

/// What came of a run.
#[derive(Clone, PartialEq, Debug, Default, serde::Serialize)]
pub struct SimReport {
    /// As asked.
    pub seed: u64,
    /// As asked.
    pub ticks: u64,
    /// As asked.
    pub shards: usize,
    /// World hash after the last tick, hexadecimal.
    pub hash: String,
    /// Bots that played at the end.
    pub bots: u64,
    /// Entities that changed their shard.
    pub handoffs: u64,
    /// Effects between shards.
    pub effects_across: u64,
    /// Decrees that cut the land anew.
    pub cuts: u64,
    /// Lanes that went from one shard to another.
    pub lanes: u64,
    /// Checks made.
    pub invariants_checked: u64,
    /// Checks that failed.
    pub violations: u64,
    /// The first ones, in words.
    pub violation_texts: Vec<String>,
    /// Actions done, as the bots were told.
    pub acted: u64,
    /// Orders that the ledger answered.
    pub orders: u64,
    /// Operations that bots were told are done, or refused.
    pub ops_acked: u64,
    /// Likewise, refused.
    pub ops_refused: u64,
    /// Trades done, as the bots were told.
    pub trades: u64,
    /// Things picked up, as the bots were told.
    pub loots: u64,
    /// Mails sent, as the bots were told.
    pub mails: u64,
    /// Starts of the process after the first.
    pub restarts: u64,
    /// Contradictions that bots found.
    pub bot_errors: u64,
    /// How often a shard came to each step of the overload ladder.
    pub ladder: BTreeMap<String, u64>,
    /// Turns that wildlife had, those put off among them.
    pub turns: u64,
    /// Turns put off under a degrade level.
    pub turns_put_off: u64,
    /// Bodies that narrow links dropped.
    pub link_drops: u64,
    /// Byte budgets of sessions that were halved.
    pub budget_cuts: u64,
    /// Byte budgets at the end on average, bytes a second.
    pub budget_mean: u64,
    /// Fewest other entities that a bot that looks saw updated within the last two seconds.
    pub visible_min: usize,
    /// Public events that bots that look were shown.
    pub events: u64,
    /// How often each fault happened.
    pub faults: BTreeMap<String, u64>,
    /// How often what players do met each fault: `feature x fault`.
    pub coverage: BTreeMap<String, u64>,
    /// How often something rare happened.
    pub meetings: BTreeMap<String, u64>,
}

impl SimReport {
    /// What another run of the same seed came to differently and must not have, in words: on as many shards anything at
    /// all, on another number of them what players did and what was done to the world.
    pub fn difference(&self, other: &SimReport) -> Option<String> {
        let counts = |report: &SimReport| {
            [
                ("bots", report.bots),
                ("cuts", report.cuts),
                ("acted", report.acted),
                ("orders", report.orders),
                ("ops_acked", report.ops_acked),
                ("ops_refused", report.ops_refused),
                ("trades", report.trades),
                ("loots", report.loots),
                ("mails", report.mails),
                ("events", report.events),
                ("turns", report.turns),
                ("turns_put_off", report.turns_put_off),
            ]
        };
        let differing = counts(self).into_iter().zip(counts(other)).find(|(ours, theirs)| ours != theirs);
        let (here, there) = (self.shards, other.shards);
        if let Some(((name, ours), (_, theirs))) = differing {
            return Some(format!("{name} is {ours} on {here} shards and {theirs} on {there}"));
        }
        if self.hash != other.hash {
            return Some(format!("the hash is {} on {here} shards and {} on {there}", self.hash, other.hash));
        }
        (here == there && self != other).then(|| "a second run was told otherwise than the first".to_owned())
    }
}

/// A realm in one thread.
pub struct Sim {
    config: SimConfig,
    setup: Setup,
    tick: u64,
    node: Option<Node>,
    /// The disk while no process runs.
    disk: MemoryDisk,
    start_at: u64,
    clients: Clients,
    plan: Plan,
    oracle: Oracle,
    /// Ticks between two commits.
    commit_ticks: u64,
    hash: u64,
    /// Where the bots meet.
    haunts: Vec<CellKey>,
    handoffs: u64,
    effects_across: u64,
    cuts: u64,
    lanes: u64,
    restarts: u64,
}

impl Sim {
    /// A realm before its first tick.
    pub fn new(config: SimConfig) -> Sim {
        let land = Arc::new(Land::new(config.seed));
        let cut = Arc::new(CutMap::equal(config.shards));
        let world = WorldConfig {
            seed: config.seed,
            land: land.clone(),
            cut,
            npcs: config.npcs,
            npc_life_ticks: 600,
            start_tick: config.first_tick(),
            things: Arc::new([]),
        };
        let radii = Radii { enter: 96 * GRID_PER_M, leave: 128 * GRID_PER_M };
        let rates = Rates { send_hz: 30, bytes_per_s: SESSION_BYTES_PER_S_MAX };
        let rules = Rules { radii, rates, dev: true, seam: None };
        let first_sequence = if config.is_near_wraps() { SEQUENCE_NEAR_WRAP } else { 0 };
        let setup = Setup { world, rules, desk: DeskRules { start_goods: true, terms: TERMS }, first_sequence };
        let haunts = borders(&land, config);
        let mut plan = Plan::new(config.seed, config.faults, config.end_tick().saturating_sub(QUIET_TICKS));
        let commit_ticks = if plan.is_quiet() { 1 } else { 1 + u64::from(plan.draw(6)) };
        let node = Node::start(&setup, MemoryDisk::default(), config.first_tick()).map_err(|refused| refused.0);
        Sim {
            config,
            node: Some(node.expect("an empty disk opens")),
            setup,
            tick: config.first_tick(),
            disk: MemoryDisk::default(),
            start_at: 0,
            clients: Clients::new(config, &haunts, &land),
            plan,
            oracle: Oracle::new(TERMS),
            commit_ticks,
            hash: config.seed,
            haunts: haunts.iter().map(|crossing| cell_of(crossing.position(0))).collect(),
            handoffs: 0,
            effects_across: 0,
            cuts: 0,
            lanes: 0,
            restarts: 0,
        }
    }

    /// Runs to the end.
    pub fn run(mut self) -> SimReport {
        while self.tick < self.config.end_tick() {
            self.step();
        }
        self.report()
    }

    /// World hash so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// One tick of everything.
    pub fn step(&mut self) {
        self.tick += 1;
        match self.node.take() {
            Some(node) => self.node = self.run_tick(node),
            None if self.tick >= self.start_at => self.start(),
            None => (),
        }
        let Sim { clients, plan, tick, .. } = self;
        clients.down(plan, *tick);
        let is_end = self.tick + REST_TICKS / 2 > self.config.end_tick();
        if let Some(node) = self.node.as_ref().filter(|_| self.nothing_is_late()) {
            self.oracle.check_sight(&self.clients, node, self.tick);
        }
        self.oracle.look_at(&self.clients, self.node.as_ref(), self.tick, is_end);
        let digest = |digest: fn(&Core) -> u64| {
            let cores = self.node.iter().flat_map(|node| &node.cores);
            cores.map(digest).fold(0, u64::wrapping_add)
        };
        let entities = digest(|core| core.world.digest());
        let effects = digest(|core| core.world.effects_digest());
        let ledger = self.node.as_ref().map_or(0, |node| node.desk.ledger().digest());
        self.hash = roll_hash(self.hash, self.tick, entities, effects.wrapping_add(ledger));
    }

    /// Whether every parcel and every body comes when it should.
    fn nothing_is_late(&self) -> bool {
        self.config.faults == Faults::None && self.config.link.is_none() && self.config.slowdown == 0
    }

    /// One tick of a running process; none when it ended.
    fn run_tick(&mut self, mut node: Node) -> Option<Node> {
        let tick = self.tick;
        self.strike_stalls(&mut node);
        self.decree_anew(&mut node);
        let moved = node.lanes_moved;
        node.pass_lanes(tick);
        if node.lanes_moved > moved {
            self.lanes += node.lanes_moved - moved;
            self.plan.note(Feature::Lane, tick);
        }
        let Sim { clients, plan, .. } = self;
        clients.hear_ends(&mut node, tick);
        clients.up(&mut node, plan, tick);
        if tick.is_multiple_of(INTRODUCE_TICKS) {
            let born = |thing: &&Thing| thing.end_tick - TERMS.thing_ticks;
            // Old enough to be seen.
            let lying = node.desk.ledger().things().filter(|thing| born(thing) + SEEN_TICKS <= tick);
            let place = |thing: &Thing| (thing.x >> FINE_SHIFT, thing.y >> FINE_SHIFT);
            let mut lying: Vec<_> = lying.map(|thing| (EntityId::thing(thing.number), place(thing))).collect();
            lying.reverse();
            clients.introduce(&lying, tick + REST_TICKS > self.config.end_tick());
        }
        node.hear_keeper(tick);
        node.slowdown = if tick + QUIET_TICKS < self.config.end_tick() { self.config.slowdown } else { 0 };
        let mut body = [0; BODY_BYTES_MAX];
        node.step(tick, |session, write| {
            let length = write(&mut body);
            clients.send(plan, tick, session, &body[..length]);
        });
        self.oracle.check_order(&node, tick);
        let node = self.keep(node)?;
        self.oracle.check_world(&node, tick);
        Some(node)
    }

    /// Now and then the land gets other owners: all of it, or the cells around the bots; or lanes get other shards. When
    /// and how depends on the seed alone, so that it is the same on any number of shards and with any faults.
    fn decree_anew(&mut self, node: &mut Node) {
        let (tick, seed, shards) = (self.tick, self.config.seed, self.config.shards);
        let draw = |n: u64, bound: u32| below(random(seed, EntityId::NONE, tick, 1_000 + n), bound);
        if draw(0, DECREE_CHANCES) > 0 || !node.runs(0, tick) || !node.cores[0].may_decree(tick) {
            return;
        }
        let owner = |n: u64| ShardId(draw(n, shards as u32) as u8);
        let cut = match draw(1, 3) {
            0 => {
                if node.cores[0].lanes_are_settled() {
                    // Few lanes, or half of them.
                    let (first, few) = (draw(2, LANES as u32), if draw(3, 2) == 0 { 3 } else { LANES as u32 / 2 });
                    let moved = (first..first + few).map(|lane| (lane % LANES as u32) as u8);
                    let moves: Vec<_> = moved.map(|lane| (lane, owner(2_000 + u64::from(lane)))).collect();
                    let lanes = node.cores[0].world.lanes().with(&moves);
                    node.cores[0].decree(DecreeKind::Lanes(lanes));
                }
                return;
            }
            1 => {
                // Two draws may fall together: then another one is drawn.
                let mut starts = BTreeSet::from([0]);
                let mut draws = (2..).map(|n| 1 + draw(n, CELLS as u32 - 1));
                while starts.len() < shards {
                    starts.extend(draws.next());
                }
                let starts: Vec<u32> = starts.into_iter().collect();
                CutMap::from_starts(&starts)
            }
            _ => {
                let near = |cell: &CellKey| [-1, 0, 1].map(|dx| CellKey { x: cell.x + dx, ..*cell });
                let cells = self.haunts.iter().flat_map(near).enumerate();
                let moves: Vec<_> = cells.map(|(at, cell)| (cell, owner(1_000 + at as u64))).collect();
                node.cores[0].world.cut().with(&moves)
            }
        };
        node.cores[0].decree(DecreeKind::Cut(Arc::new(cut)));
        self.plan.note(Feature::Cut, tick);
        self.cuts += 1;
    }

    fn strike_stalls(&mut self, node: &mut Node) {
        let tick = self.tick;
        if self.plan.strikes(Fault::ShardStall, tick) {
            let shard = self.plan.draw(self.config.shards as u32) as usize;
            let most = if self.plan.draw(STALL_CHANCES) == 0 { STALL_TICKS_MAX } else { STALL_TICKS_USUAL };
            // Whatever stands still runs again when the quiet end begins, and at least once between two stalls.
            let until = tick + u64::from(1 + self.plan.draw(most));
            let until = until.min(self.config.ticks.saturating_sub(QUIET_TICKS));
            if node.runs(shard, tick - 1) {
                node.stall_shard(shard, until);
            }
        }
        if self.plan.strikes(Fault::KeeperStall, tick) {
            let until = tick + u64::from(1 + self.plan.draw(120));
            node.stall_keeper(until);
        }
    }

    /// The keeper's part of a tick, and the ways in which a process ends.
    fn keep(&mut self, mut node: Node) -> Option<Node> {
        let (tick, quiet) = (self.tick, self.plan.is_quiet());
        let mut commands = node.keeper_commands(tick);
        if tick.is_multiple_of(CLOCK_TICKS) {
            commands.insert(0, KeeperCommand::Clock { tick, unix_s: tick / 60 });
        }
        if self.config.scenario == SimScenario::Trade && tick.is_multiple_of(IMPOSTOR_TICKS) {
            commands.push(KeeperCommand::Order(Asked { shard: ShardId(0), order: impostor(tick) }));
        }
        self.plan.meet(Meeting::KeeperQueueFull, node.is_behind().into());
        self.oracle.check_winners(&commands, tick);
        self.oracle.check_rows(&node, &commands, tick);
        for command in commands {
            self.oracle.expect(&node, command, &mut self.plan, tick);
            if let Err(error) = node.desk.apply(command) {
                return self.end_after_error(node, error.kind);
            }
            self.oracle.compare(&node, command);
        }
        // A group lands a tick after it was begun.
        let after = if quiet { KEEPER_TICKS - 1 } else { 1 + u64::from(self.plan.draw(3)) };
        node.give_answers(tick, after);
        if self.plan.strikes(Fault::Kill, tick) {
            self.be_amidst(&mut node, after);
            return self.end(node, |disk, plan| disk.kill(plan.bits()));
        }
        if self.plan.strikes(Fault::PowerLoss, tick) {
            self.be_amidst(&mut node, after);
            return self.end(node, |disk, plan| disk.lose_power(plan.bits()));
        }
        let faults = [
            (Fault::TornWrite, DiskFault::Io),
            (Fault::DiskFull, DiskFault::Full),
            (Fault::WriteError, DiskFault::Io),
            (Fault::SyncError, DiskFault::Sync),
        ];
        for (fault, how) in faults {
            if self.plan.strikes(fault, tick) && node.desk.store().is_under_way() {
                let failed = node.land(tick, after, Some(how));
                self.oracle.demand_at(tick, failed.is_err(), || format!("{fault:?} was not noticed"));
                let power = fault == Fault::TornWrite;
                let crash = if power { MemoryDisk::lose_power } else { MemoryDisk::kill };
                return self.end(node, |disk, plan| crash(disk, plan.bits()));
            }
        }
        if tick.is_multiple_of(self.commit_ticks)
            && let Err(error) = self.turn_over(&mut node, after)
        {
            return self.end_after_error(node, error.kind);
        }
        Some(node)
    }

    /// What is under way lands, and the group that was collected meanwhile begins its way.
    fn turn_over(&mut self, node: &mut Node, after: u64) -> Result<(), StoreError> {
        node.land(self.tick, after, None)?;
        self.oracle.landed();
        node.desk.begin();
        self.oracle.begun();
        Ok(())
    }

    /// Before a crash: a group is under way or just landed, its answers being under way as well.
    fn be_amidst(&mut self, node: &mut Node, after: u64) {
        if self.plan.draw(2) == 0 {
            return;
        }
        let turned = self.turn_over(node, after);
        self.oracle.demand_at(self.tick, turned.is_ok(), || format!("the disk was refused for no reason: {turned:?}"));
    }

    /// The process ended by itself because its disk is not what it should be, which no fault of this run explains.
    fn end_after_error(&mut self, node: Node, kind: StoreErrorKind) -> Option<Node> {
        self.oracle.demand_at(self.tick, false, || format!("the disk was refused for no reason: {kind:?}"));
        self.end(node, |disk, plan| disk.kill(plan.bits()))
    }

    /// The process ends; `crash` says what becomes of its disk.
    fn end(&mut self, node: Node, crash: impl FnOnce(&mut MemoryDisk, &mut Plan)) -> Option<Node> {
        self.count(&node);
        self.disk = node.end();
        crash(&mut self.disk, &mut self.plan);
        self.start_at = self.tick + u64::from(1 + self.plan.draw(RESTART_TICKS));
        self.clients.lose_all(self.start_at);
        None
    }

    /// What a process counted that is ending.
    fn count(&mut self, node: &Node) {
        let total = |count: fn(&Core) -> u64| node.cores.iter().map(count).sum::<u64>();
        self.handoffs += total(|core| core.world.counters.handed_out);
        self.effects_across += total(|core| core.world.counters.effects_across);
        self.plan.meet(Meeting::OldOwnState, total(|core| core.outdated.own_states));
        self.plan.meet(Meeting::OldKeyframe, total(|core| core.outdated.keyframes));
    }

    /// A process starts on what the last one left.
    fn start(&mut self) {
        let whole = self.disk.clone();
        if self.plan.strikes(Fault::BitRot, self.tick) && self.disk.rot(self.plan.bits()) {
            // The operator looks, and puts the backup in its place when the look finds something.
            let started = Node::start(&self.setup, self.disk.clone(), self.tick).ok();
            self.oracle.check_rot(&self.disk, &whole, started.as_ref(), self.tick);
            self.disk = whole;
        }
        match Node::start(&self.setup, std::mem::take(&mut self.disk), self.tick) {
            Ok(node) => {
                self.restarts += 1;
                self.oracle.recovered(&node, self.tick);
                self.node = Some(node);
            }
            Err(refused) => {
                let (error, disk) = *refused;
                self.oracle.demand_at(self.tick, false, || format!("it does not start again: {error}"));
                (self.disk, self.start_at) = (disk, u64::MAX);
            }
        }
    }

    fn report(mut self) -> SimReport {
        let cores: Vec<&Core> = self.node.iter().flat_map(|node| &node.cores).collect();
        let budgets: Vec<_> = cores.iter().map(|core| core.budgets()).collect();
        let means: Vec<u64> = budgets.iter().filter_map(|budgets| budgets.bytes_per_s_mean).collect();
        let entered = |step: usize| cores.iter().map(|core| core.ladder.entered[step]).sum::<u64>();
        let ladder = NAMES.iter().enumerate().map(|(step, name)| ((*name).to_owned(), entered(step))).collect();
        let turns = cores.iter().map(|core| core.world.counters.turns).sum();
        let turns_put_off = cores.iter().map(|core| core.world.counters.turns_put_off).sum();
        if let Some(node) = self.node.take() {
            self.oracle.check_end(&self.clients, &node, self.tick);
            self.plan.meet(Meeting::TickWrapped, (self.config.is_near_wraps() && self.tick > WRAP_TICK).into());
            let settled = !node.cores[0].may_decree(self.tick) || node.cores[0].lanes_are_settled();
            self.oracle.demand_at(self.tick, settled, || "lanes are not where they were decreed to be".to_owned());
            self.count(&node);
            self.oracle.check_files(&node.end());
        }
        let may_be_late = [Fault::ShardStall, Fault::Loss, Fault::Reorder];
        // So is who saves its time and then floods.
        let floods = self.clients.all.iter().any(|client| client.quirk == Quirk::Flood);
        let late = floods || may_be_late.iter().any(|fault| self.plan.counts.contains_key(fault));
        let bot_errors = self.oracle.check_bots(&self.clients, late);
        let looking = self.clients.all.iter().filter(|client| client.looks);
        let visible = looking.map(|client| client.bot.session.view().visible(self.tick as u32, 120));
        let visible_min = visible.min().unwrap_or(0);
        let acted = self.clients.all.iter().map(|client| client.bot.counts.acted).sum();
        let traders = || self.clients.all.iter().filter_map(|client| client.bot.trader.as_ref());
        let deals = |count: fn(&trader::DealCounts) -> u64| traders().map(|trader| count(&trader.counts)).sum::<u64>();
        let names = |feature: &Feature, fault: &Fault| format!("{feature:?} x {fault:?}");
        let counts = self.plan.counts.iter().map(|(fault, count)| (format!("{fault:?}"), *count));
        SimReport {
            seed: self.config.seed,
            ticks: self.tick - self.config.first_tick(),
            shards: self.config.shards,
            hash: format!("{:016x}", self.hash),
            bots: self.clients.all.iter().filter(|client| client.bot.plays()).count() as u64,
            handoffs: self.handoffs,
            effects_across: self.effects_across,
            cuts: self.cuts,
            lanes: self.lanes,
            acted,
            orders: self.oracle.orders(),
            ops_acked: deals(|counts| counts.acked),
            ops_refused: deals(|counts| counts.refused),
            trades: deals(|counts| counts.trades),
            loots: deals(|counts| counts.loots),
            mails: deals(|counts| counts.mails),
            restarts: self.restarts,
            bot_errors,
            ladder,
            turns,
            turns_put_off,
            link_drops: self.clients.link_drops,
            budget_cuts: budgets.iter().map(|budgets| budgets.cuts).sum(),
            budget_mean: means.iter().sum::<u64>().checked_div(means.len() as u64).unwrap_or(0),
            visible_min,
            events: self.clients.all.iter().map(|client| client.bot.counts.events).sum(),
            faults: counts.collect(),
            meetings: self.plan.meetings.iter().map(|(meeting, count)| (format!("{meeting:?}"), *count)).collect(),
            coverage: self.plan.met.iter().map(|((feature, fault), count)| (names(feature, fault), *count)).collect(),
            invariants_checked: self.oracle.checked,
            violations: self.oracle.violations,
            violation_texts: self.oracle.texts,
        }
    }
}

/// Orders that no shard of ours would give: the ledger itself must refuse them.
fn impostor(tick: u64) -> Order {
    let source = EntityId::character(IMPOSTOR);
    let id = OrderId { source, sequence: tick };
    let number = tick / IMPOSTOR_TICKS;
    let coins = Offer::new(5, &[]).expect("no item fits");
    // More than a bag holds, from somebody who may give: that much the ledger checks for everybody.
    if number % 9 == 8 {
        let id = OrderId { source: EntityId::ADMIN, sequence: tick };
        return Order { id, kind: OrderKind::Grant { character: 1, coins: 0, items: 60 } };
    }
    let kind = match number % 8 {
        0 => OrderKind::Swap { partner: OrderId { source, sequence: tick + 1 }, give: coins, take: Offer::default() },
        1 => OrderKind::Grant { character: 1, coins: 1_000, items: 3 },
        2 => OrderKind::Pay { from: 1, to: 2, amount: 10 },
        3 => OrderKind::Sweep { thing: number },
        4 => OrderKind::Deed { deed: 3 },
        5 => OrderKind::TakeMail { mail: number },
        6 => OrderKind::Send { to: 1 << 41, offer: coins, price: 0 },
        _ => OrderKind::Swap {
            partner: OrderId { source: EntityId::thing(number), sequence: tick },
            give: Offer::default(),
            take: coins,
        },
    };
    Order { id, kind }
}

fn cell_of((x, y): (i32, i32)) -> CellKey {
    CellKey::of_fine(x << FINE_SHIFT, y << FINE_SHIFT)
}

/// Places on the borders of eight shards where a bot can cross, drawn from the seed.
fn borders(land: &Land, config: SimConfig) -> Vec<Crossing> {
    let cut = CutMap::equal(BORDERS_OF_SHARDS);
    let mut found = Vec::new();
    for number in 0..100_000 {
        let draw = |n: u64, bound: u32| below(random(config.seed, EntityId::NONE, number, n), bound) as i32;
        let upright = draw(0, 2) == 0;
        let line = (1 + draw(1, LAND_CELLS as u32 - 1)) * CELL_GRID;
        let along = draw(2, LAND_CELLS as u32) * CELL_GRID + CELL_GRID / 2;
        let crossing = Crossing { upright, line, along, reach: 7 * GRID_PER_M };
        let at = |across: i32| crossing.position(across);
        let owner = |position: (i32, i32)| cut.owner(cell_of(position));
        let differs = owner(at(-GRID_PER_M)) != owner(at(GRID_PER_M));
        let open = |along: i32| {
            (-10..=10).all(|metre| {
                let (x, y) = Crossing { along, ..crossing }.position(metre * GRID_PER_M);
                !land.is_blocked(x << FINE_SHIFT, y << FINE_SHIFT)
            })
        };
        if differs && (0..12).step_by(2).all(|metre| open(along + metre * GRID_PER_M)) {
            found.push(crossing);
            if found.len() as u64 * BOTS_AT_A_BORDER >= config.bots.max(1) {
                break;
            }
        }
    }
    assert!(!found.is_empty(), "the land has borders that can be crossed");
    found
}
