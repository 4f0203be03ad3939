//! The sim host: shards, keeper, network and bots in one thread from one seed.
//!
//! Owns a whole realm in lockstep: every parcel arrives, a keeper answer to a command of tick T comes at T+3. Promises:
//! the same `world`, `net` and handoff code as the product; no OS time, no threads; the same seed gives the same hash on
//! any number of shards. Every tick checks what must always hold.

pub mod bots;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use crate::ids::{CELL_GRID, EntityId, FINE_SHIFT, GRID_PER_M, SessionRef, ShardId};
use crate::keeper::{Claims, KeeperAnswer, KeeperCommand, MemoryStore};
use crate::limits::{BODY_BYTES_MAX, KEEPER_WAITING_MAX, LANES};
use crate::net::client::ClientOptions;
use crate::net::handshake::Identity;
use crate::net::interest::Radii;
use crate::net::token::UserData;
use crate::shard::core::{Core, Rules, Whom};
use crate::world::cut::CutMap;
use crate::world::frame::Frame;
use crate::world::land::{LAND_CELLS, Land};
use crate::world::parcel::{InputParcel, OutcomeParcel};
use crate::world::random::{below, random};
use crate::world::{World, WorldConfig, roll_hash};
use bots::{Bot, Crossing, Haunt};

/// Ticks from a keeper command to its answer.
const KEEPER_TICKS: u64 = 3;
/// Ticks that a body is under way.
const NETWORK_TICKS: u64 = 1;
/// Ticks between two bodies of a bot.
const INPUT_TICKS: u64 = 2;
/// Shards whose borders the bots gather at, whatever the number of shards of the run.
const BORDERS_OF_SHARDS: usize = 8;
/// Bots at one border.
const BOTS_AT_A_BORDER: u64 = 8;

/// What the bots of a run do.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum SimScenario {
    /// In pairs across the borders of eight shards, waving at each other.
    Seam,
    /// All in one disc of 30 m, every one of them looking at what it is shown.
    Crowd,
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
}

/// What came of a run.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct SimReport {
    /// As asked.
    pub seed: u64,
    /// As asked.
    pub ticks: u64,
    /// As asked.
    pub shards: usize,
    /// World hash after the last tick, hexadecimal.
    pub hash: String,
    /// Bots that played.
    pub bots: u64,
    /// Entities that changed their shard.
    pub handoffs: u64,
    /// Effects between shards.
    pub effects_across: u64,
    /// Checks made.
    pub invariants_checked: u64,
    /// Checks that failed.
    pub violations: u64,
    /// The first ones, in words.
    pub violation_texts: Vec<String>,
    /// Actions done, as the bots were told.
    pub acted: u64,
    /// Contradictions that bots found.
    pub bot_errors: u64,
    /// Fewest other entities that a bot that looks saw updated within the last two seconds.
    pub visible_min: usize,
}

/// One bot and its transport.
struct Client {
    bot: Bot,
    /// It decodes what it is shown.
    looks: bool,
    lane: u8,
    session: Option<SessionRef>,
    /// Bodies from the server with their ticks of arrival.
    down: VecDeque<(u64, Vec<u8>)>,
    /// Bodies to the server, likewise.
    up: VecDeque<(u64, Vec<u8>)>,
}

/// A realm in one thread.
pub struct Sim {
    config: SimConfig,
    tick: u64,
    cores: Vec<Core>,
    claims: Claims,
    store: MemoryStore,
    answers: VecDeque<(u64, Vec<(ShardId, KeeperAnswer)>)>,
    clients: Vec<Client>,
    by_session: HashMap<SessionRef, usize>,
    epochs: HashMap<EntityId, u32>,
    hash: u64,
    checked: u64,
    violations: u64,
    texts: Vec<String>,
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
            start_tick: 0,
        };
        let radii = Radii { enter: 96 * GRID_PER_M, leave: 128 * GRID_PER_M };
        let rules = Rules { radii, send_hz: 30, dev: true, seam: None };
        let core = |shard| Core::new(World::new(world.clone(), ShardId(shard as u8)), config.shards, rules);
        let haunts = borders(&land, config);
        Sim {
            config,
            tick: 0,
            cores: (0..config.shards).map(core).collect(),
            claims: Claims::default(),
            store: MemoryStore::new(config.seed),
            answers: VecDeque::new(),
            clients: (0..config.bots).map(|number| client(config, number, &haunts, &land)).collect(),
            by_session: HashMap::new(),
            epochs: HashMap::new(),
            hash: config.seed,
            checked: 0,
            violations: 0,
            texts: Vec::new(),
        }
    }

    /// Runs to the end.
    pub fn run(mut self) -> SimReport {
        while self.tick < self.config.ticks {
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
        self.clients_up();
        self.keeper_answers();
        self.shards();
        self.keeper_commands();
        self.clients_down();
        self.check();
        let entities = self.cores.iter().map(|core| core.world.digest()).fold(0, u64::wrapping_add);
        let effects = self.cores.iter().map(|core| core.world.effects_digest()).fold(0, u64::wrapping_add);
        self.hash = roll_hash(self.hash, self.tick, entities, effects);
    }

    fn owner_of(lane: u8, shards: usize) -> usize {
        usize::from(lane) % shards
    }

    /// Bots join, act and send; what is due arrives.
    fn clients_up(&mut self) {
        for (at, client) in self.clients.iter_mut().enumerate() {
            let core = &mut self.cores[Sim::owner_of(client.lane, self.config.shards)];
            if client.session.is_none() && self.tick > at as u64 / 8 {
                let session = core.admit(client.lane, identity(at, &client.bot), false).expect("lanes have room");
                client.session = Some(session);
                self.by_session.insert(session, at);
            }
            while client.up.front().is_some_and(|&(tick, _)| tick <= self.tick) {
                let (_, body) = client.up.pop_front().expect("it is there");
                core.handle_body(client.session.expect("who sends is connected"), &body);
            }
            if client.session.is_some() {
                client.bot.want(self.tick);
                if client.bot.plays() {
                    client.bot.act();
                }
                if (self.tick + at as u64).is_multiple_of(INPUT_TICKS) {
                    let mut out = [0; BODY_BYTES_MAX];
                    let length = client.bot.session.poll_body(self.tick as u32, 0, &mut out);
                    client.up.push_back((self.tick + NETWORK_TICKS, out[..length].to_vec()));
                }
            }
        }
        for pair in self.clients.chunks_exact_mut(2) {
            let ids = [pair[0].bot.entity(), pair[1].bot.entity()];
            (pair[0].bot.friend, pair[1].bot.friend) = (ids[1], ids[0]);
        }
    }

    fn keeper_answers(&mut self) {
        while self.answers.front().is_some_and(|&(tick, _)| tick <= self.tick) {
            let (_, answers) = self.answers.pop_front().expect("it is there");
            for (shard, answer) in answers {
                self.cores[shard.index()].hear_keeper(answer);
            }
        }
    }

    /// The tick of every shard, in lockstep.
    fn shards(&mut self) {
        let (tick, shards) = (self.tick, self.config.shards);
        let mut inputs: Vec<Vec<InputParcel>> = Vec::with_capacity(shards);
        for core in &mut self.cores {
            core.give_actions(tick);
            inputs.push(core.inputs.iter_mut().map(std::mem::take).collect());
            core.begin(tick);
        }
        let mut outs: Vec<Vec<OutcomeParcel>> = Vec::with_capacity(shards);
        for (at, core) in self.cores.iter_mut().enumerate() {
            (0u8..).zip(&inputs).for_each(|(from, given)| core.take_inputs(ShardId(from), &given[at]));
            core.play();
            let mut out: Vec<OutcomeParcel> = (0..shards).map(|_| OutcomeParcel::default()).collect();
            out.iter_mut().for_each(|parcel| parcel.reset(core.world.shard, tick));
            let mut frame = Frame::default();
            core.world.publish(&mut frame, &mut out.iter_mut().collect::<Vec<_>>());
            let frame = Arc::new(frame);
            out.iter_mut().for_each(|parcel| parcel.frame = Some(frame.clone()));
            outs.push(out);
        }
        for (at, core) in self.cores.iter_mut().enumerate() {
            outs.iter_mut().for_each(|from| core.hear(&mut from[at]));
            let (clients, by_session) = (&mut self.clients, &self.by_session);
            core.send_due(Whom::Rest, |session, write| {
                let mut out = [0; BODY_BYTES_MAX];
                let length = write(&mut out);
                clients[by_session[&session]].down.push_back((tick + NETWORK_TICKS, out[..length].to_vec()));
            });
            core.end_tick();
        }
    }

    /// The keeper hears all shards, in an order that does not depend on their number.
    fn keeper_commands(&mut self) {
        let mut commands: Vec<KeeperCommand> = self.cores.iter_mut().flat_map(|core| core.keeper.drain(..)).collect();
        commands.sort_by_key(|command| match command {
            KeeperCommand::Claim { client_id, .. } | KeeperCommand::Release { client_id, .. } => *client_id,
            KeeperCommand::Order(asked) => asked.order.id.source.0,
            KeeperCommand::Row(row) => row.client_id,
            KeeperCommand::Clock { .. } => 0,
        });
        let mut answers = Vec::new();
        for command in commands {
            let done = self.claims.apply(command, &mut self.store, &mut answers);
            done.expect("memory has no faults");
        }
        self.store.commit();
        self.answers.push_back((self.tick + KEEPER_TICKS, answers));
    }

    fn clients_down(&mut self) {
        for client in &mut self.clients {
            while client.down.front().is_some_and(|&(tick, _)| tick <= self.tick) {
                let (_, body) = client.down.pop_front().expect("it is there");
                if client.bot.hear(&body, |_| ()).is_err() {
                    self.violations += 1;
                }
            }
            if self.tick.is_multiple_of(60) && client.bot.plays() {
                client.bot.check_view(self.tick as u32);
            }
        }
    }

    /// What must hold after every tick.
    fn check(&mut self) {
        let mut owned: Vec<(EntityId, u32)> = self.cores.iter().flat_map(|core| core.world.ids()).collect();
        owned.sort_unstable();
        let total = |count: fn(&Core) -> u64| self.cores.iter().map(count).sum::<u64>();
        let spawned = total(|core| core.world.counters.spawned);
        let despawned = total(|core| core.world.counters.despawned);
        let sent = total(|core| core.world.counters.effects_sent);
        let applied = total(|core| core.world.counters.effects_applied);
        let refused = total(|core| core.world.counters.effects_refused);
        let waiting = total(|core| core.world.effects_waiting() as u64);
        let keeper = self.cores.iter().map(|core| core.keeper.len()).max().unwrap_or(0);
        let twice = owned.windows(2).filter(|pair| pair[0].0 == pair[1].0).count();
        let falls = owned.iter().filter(|(id, epoch)| self.epochs.insert(*id, *epoch).is_some_and(|old| old > *epoch));
        let falls = falls.count();
        self.demand(twice == 0, || format!("{twice} entities have two owners"));
        self.demand(falls == 0, || format!("the owner epoch of {falls} entities fell"));
        let count = owned.len() as u64;
        self.demand(count == spawned - despawned, || format!("{count} entities, {spawned} began, {despawned} ended"));
        self.demand(sent == applied + refused + waiting, || {
            format!("{sent} effects sent, {applied} applied, {refused} refused, {waiting} under way")
        });
        self.demand(keeper <= KEEPER_WAITING_MAX, || format!("{keeper} commands wait for the keeper"));
    }

    fn demand(&mut self, holds: bool, text: impl FnOnce() -> String) {
        self.checked += 1;
        if !holds {
            self.violations += 1;
            if self.texts.len() < 10 {
                self.texts.push(format!("tick {}: {}", self.tick, text()));
            }
        }
    }

    fn report(mut self) -> SimReport {
        let mut errors = BTreeMap::new();
        for client in &self.clients {
            let (view, counts) = (client.bot.errors(), client.bot.counts);
            let kinds = [
                ("jump", view.jump),
                ("twice", view.twice),
                ("never_leaves", view.never_leaves),
                ("other", view.other + counts.malformed),
                ("own_position", counts.own_position),
            ];
            kinds.iter().for_each(|(kind, count)| *errors.entry(*kind).or_insert(0u64) += count);
        }
        let bot_errors = errors.values().sum();
        let looking = self.clients.iter().filter(|client| client.looks);
        let visible = looking.map(|client| client.bot.session.view().visible(self.tick as u32, 120));
        let visible_min = visible.min().unwrap_or(0);
        self.demand(bot_errors == 0, || format!("bots saw {errors:?}"));
        let total = |count: fn(&Core) -> u64| self.cores.iter().map(count).sum::<u64>();
        SimReport {
            seed: self.config.seed,
            ticks: self.tick,
            shards: self.config.shards,
            hash: format!("{:016x}", self.hash),
            bots: self.clients.iter().filter(|client| client.bot.plays()).count() as u64,
            handoffs: total(|core| core.world.counters.handed_out),
            effects_across: total(|core| core.world.counters.effects_across),
            invariants_checked: self.checked,
            violations: self.violations,
            violation_texts: self.texts,
            acted: self.clients.iter().map(|client| client.bot.counts.acted).sum(),
            bot_errors,
            visible_min,
        }
    }
}

fn client(config: SimConfig, number: u64, haunts: &[Crossing], land: &Arc<Land>) -> Client {
    let place = haunts[(number / BOTS_AT_A_BORDER) as usize % haunts.len()];
    let offset = (number % BOTS_AT_A_BORDER) as i32 / 2 * 3 * GRID_PER_M;
    let haunt = match config.scenario {
        SimScenario::Seam => Haunt::Border(Crossing { along: place.along + offset, ..place }),
        SimScenario::Crowd => Haunt::Disc { centre: haunts[0].position(0), radius: 30 * GRID_PER_M },
    };
    // One bot in eight looks at what it is shown; the others only make the server show it.
    let looks = number.is_multiple_of(8) || config.scenario == SimScenario::Crowd;
    let options = ClientOptions { packed: number % 16 != 8, decode: looks, reliable_transport: false };
    let bot = Bot::new(config.seed, number, haunt, Some(land.clone()), options);
    let lane = (number % LANES as u64) as u8;
    Client { bot, looks, lane, session: None, down: VecDeque::new(), up: VecDeque::new() }
}

fn identity(number: usize, bot: &Bot) -> Identity {
    let user_data = UserData { spawn_point: Some(bot.spawn_point()), peaceful: true, reusable: false };
    let mut token_mac = [0; 16];
    token_mac[..8].copy_from_slice(&(number as u64).to_le_bytes());
    Identity { client_id: number as u64 + 1, user_data, token_mac, expires_unix_s: u64::MAX, timeout_s: 10 }
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
        let fine = |(x, y): (i32, i32)| (x << FINE_SHIFT, y << FINE_SHIFT);
        let owner = |(x, y): (i32, i32)| cut.owner(crate::ids::CellKey::of_fine(x, y));
        let differs = owner(fine(at(-GRID_PER_M))) != owner(fine(at(GRID_PER_M)));
        let open = |along: i32| {
            (-10..=10).all(|metre| {
                let (x, y) = fine(Crossing { along, ..crossing }.position(metre * GRID_PER_M));
                !land.is_blocked(x, y)
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
