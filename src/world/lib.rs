//! The world of one shard: its entities and the step.
//!
//! Owns the entities that this shard owns, `&mut`; sees all others through frames. Promises: the same inputs give the
//! same world whatever the number of shards; what one entity wants of another is an effect, applied in the next tick by
//! its owner. Never does I/O, reads a clock, takes a lock, or iterates anything whose order could differ.

pub use ringshard_wire as wire;
pub use wire::{limits, planted};

pub mod balance;
pub mod boxes;
pub mod cut;
pub mod effect;
pub mod entity;
pub mod events;
pub mod frame;
pub mod goods;
pub mod land;
pub mod movement;
pub mod npc;
pub mod parcel;
pub mod player;
pub mod random;
pub mod slices;
pub mod state;
pub mod table;
pub mod trig;

#[cfg(test)]
mod tests;

use std::borrow::BorrowMut;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::limits::{UNHEARD_EVERY_TICKS, UNHEARD_OFTEN_TICKS, UNHEARD_TICKS};
use crate::planted::{Bug, planted};
use crate::wire::generated::structs;
use crate::wire::generated::tables::Refusal;
use crate::wire::goods::{Order, OrderKind, Settled};
use crate::wire::ids::{CellKey, EntityId, SessionRef, ShardId};
use crate::wire::messages::{Request, Stream};
use cut::{CutMap, LaneMap};
use effect::{Birth, Effect, EffectKind, Joining, PrivateEvent, Target, TradeEffect};
use entity::{Archetype, Body, Leaving, Npc, Player, Spawner, Thing};
use events::{EVENT_WAVE, PublicEvent};
use frame::{Frame, Frames};
use goods::{Deal, Given};
use land::Land;
use movement::Motion;
use parcel::{Handoffs, Input, InputKind, InputParcel, OutcomeParcel, Told};
use player::is_about_trade;
use random::{Digest, mix};
use slices::{Bodies, Slices};
use table::Table;
use trig::direction;

/// Public events that a frame has room for from the start.
const EVENTS_USUAL: usize = 256;
/// Ticks that somebody looks at who waved.
const ATTENTION_TICKS: u64 = 60;

/// What a world is made from, the same for all shards of a realm.
#[derive(Clone)]
pub struct WorldConfig {
    /// The realm's secret: decides every random number.
    pub seed: u64,
    /// The ground.
    pub land: Arc<Land>,
    /// Who owns which cell at the start.
    pub cut: Arc<CutMap>,
    /// Wildlife in all of the land.
    pub npcs: u32,
    /// Least ticks that a piece of wildlife lives; it lives at most twice as long.
    pub npc_life_ticks: u32,
    /// First tick of this run.
    pub start_tick: u64,
    /// What lies on the ground at the start.
    pub things: Arc<[crate::wire::goods::Thing]>,
}

/// A change that no entity owns, the same for all shards, in force from a tick on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Decree {
    /// First tick under it.
    pub tick: u64,
    /// What changes.
    pub kind: DecreeKind,
}

/// What a decree changes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum DecreeKind {
    /// Who owns which cell.
    Cut(Arc<CutMap>),
    /// Every character goes, with its last row.
    Stop,
    /// Wildlife takes one turn in 2 to the power of this level, at most 3, and stands while it waits for one.
    Degrade(u8),
    /// Which shard serves which lane.
    Lanes(LaneMap),
}

/// A character as it shall be kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Save {
    /// Whose.
    pub client_id: u64,
    /// Its id.
    pub id: EntityId,
    /// Who owns its home cell.
    pub owner: ShardId,
    /// Owner epoch.
    pub epoch: u32,
    /// When.
    pub tick: u64,
    /// Position in fine steps: east, north, up.
    pub position: (i32, i32, i32),
    /// Direction, 1/65,536 turn.
    pub yaw: u16,
    /// Its session ended and this is its last row.
    pub released: Option<SessionRef>,
    /// Never written; only its release counts.
    pub guest: bool,
}

/// Totals since the start, for the invariants and for status.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Entities that began here.
    pub spawned: u64,
    /// Entities that ended here.
    pub despawned: u64,
    /// Entities that came from other shards.
    pub handed_in: u64,
    /// Entities that went to other shards.
    pub handed_out: u64,
    /// Effects sent.
    pub effects_sent: u64,
    /// Of these, to other shards.
    pub effects_across: u64,
    /// Effects applied.
    pub effects_applied: u64,
    /// Effects refused by name.
    pub effects_refused: u64,
    /// Refusals whose source was gone as well.
    pub refusals_lost: u64,
    /// Inputs for an entity that is not here or obeys another session.
    pub inputs_refused: u64,
    /// Commands beyond what an entity holds.
    pub commands_over: u64,
    /// Turns that wildlife had, those put off among them.
    pub turns: u64,
    /// Turns put off under a degrade level.
    pub turns_put_off: u64,
    /// Public events beyond what a frame shows of their spot.
    pub events_over: u64,
    /// Entities that were not shown because their cell has no slot left, added up over ticks.
    pub entities_hidden: u64,
    /// Decrees that came after their tick.
    pub decrees_late: u64,
}

/// One shard's world.
pub struct World {
    /// Whose.
    pub shard: ShardId,
    /// The tick being stepped, or the last one.
    pub tick: u64,
    /// Totals since the start.
    pub counters: Counters,
    /// Ticks from the last one stepped to this one: more than one after a late edge.
    elapsed: u64,
    /// Rows to keep; whoever runs the world takes them.
    pub saves: Vec<Save>,
    /// Orders to the ledger, likewise; at most one under way for each player, its deeds, and each thing.
    pub orders: Vec<Order>,
    config: WorldConfig,
    cut: Arc<CutMap>,
    decrees: Vec<Decree>,
    /// The cuts changed in this tick: everybody looks whose he is, also those who should have gone before it.
    recut: bool,
    /// Degrade level in force.
    degrade: u8,
    lanes: LaneMap,
    players: Table<Player>,
    npcs: Table<Npc>,
    spawners: Table<Spawner>,
    things: Table<Thing>,
    slices: Slices,
    arrived: Vec<Effect>,
    sent: Vec<(ShardId, Effect)>,
    /// What must be heard and has nobody to hear it, with the tick until which it waits; no more than orders under way.
    unheard: Vec<(u64, Effect)>,
    private: Vec<PrivateEvent>,
    given: Given,
    events: Vec<PublicEvent>,
    gone: Vec<EntityId>,
}

impl World {
    /// The part of a fresh world that a shard owns.
    pub fn new(config: WorldConfig, shard: ShardId) -> World {
        let mut spawners = Table::default();
        for number in 0..config.npcs.div_ceil(npc::NPCS_PER_SPAWNER) {
            let wanted = (config.npcs - number * npc::NPCS_PER_SPAWNER).min(npc::NPCS_PER_SPAWNER);
            if config.cut.owner(Spawner::home_of(EntityId::spawner(number))) == shard {
                spawners.insert(Spawner::new(config.seed, number, wanted, config.start_tick, &config.land));
            }
        }
        let shards = config.cut.shards();
        let mut things = Table::default();
        for thing in config.things.iter() {
            if config.cut.owner(CellKey::of_fine(thing.x, thing.y)) == shard {
                things.insert(Thing::lying(thing, &config.land));
            }
        }
        let spawned = (spawners.len() + things.len()) as u64;
        World {
            shard,
            tick: config.start_tick,
            elapsed: 1,
            counters: Counters { spawned, ..Counters::default() },
            saves: Vec::new(),
            orders: Vec::new(),
            cut: config.cut.clone(),
            config,
            decrees: Vec::new(),
            recut: false,
            degrade: 0,
            lanes: LaneMap::equal(shards),
            players: Table::default(),
            npcs: Table::default(),
            spawners,
            things,
            slices: Slices::default(),
            arrived: Vec::new(),
            sent: Vec::new(),
            unheard: Vec::new(),
            private: Vec::new(),
            given: Given::default(),
            events: Vec::new(),
            gone: Vec::new(),
        }
    }

    /// Which shard serves which lane.
    pub fn lanes(&self) -> &LaneMap {
        &self.lanes
    }

    /// Likewise at a tick, as far as decrees are known.
    pub fn lanes_at(&self, tick: u64) -> &LaneMap {
        let heard = self.decrees.iter().rev().filter(|decree| decree.tick <= tick);
        let mut lanes = heard.filter_map(|decree| match &decree.kind {
            DecreeKind::Lanes(lanes) => Some(lanes),
            DecreeKind::Cut(_) | DecreeKind::Stop | DecreeKind::Degrade(_) => None,
        });
        lanes.next().unwrap_or(&self.lanes)
    }

    /// The degrade level in force.
    pub fn degrade(&self) -> u8 {
        self.degrade
    }

    /// The ground.
    pub fn land(&self) -> &Arc<Land> {
        &self.config.land
    }

    /// Number of entities here: characters, wildlife, actors.
    pub fn entities(&self) -> (usize, usize, usize) {
        (self.players.len(), self.npcs.len(), self.spawners.len())
    }

    /// The characters here, in no order that means anything.
    pub fn players(&self) -> impl Iterator<Item = &Player> {
        self.players.iter()
    }

    /// Ids of all entities here.
    pub fn ids(&self) -> impl Iterator<Item = (EntityId, u32)> + '_ {
        let players = self.players.iter().map(|player| (player.body.id, player.body.epoch));
        let npcs = self.npcs.iter().map(|npc| (npc.body.id, npc.body.epoch));
        let things = self.things.iter().map(|thing| (thing.body.id, thing.body.epoch));
        let spawners = self.spawners.iter().map(|spawner| (spawner.id, spawner.epoch));
        players.chain(npcs).chain(things).chain(spawners)
    }

    /// Who owns which cell in this tick.
    pub fn cut(&self) -> &Arc<CutMap> {
        &self.cut
    }

    /// Home cells of all bodies here, and whether it is a character's.
    pub fn homes(&self) -> impl Iterator<Item = (CellKey, bool)> + '_ {
        let players = self.players.iter().map(|player| (player.body.home, true));
        let npcs = self.npcs.iter().map(|npc| (npc.body.home, false));
        players.chain(npcs).chain(self.things.iter().map(|thing| (thing.body.home, false)))
    }

    /// Bodies shown here that neither belong here nor are on their way to their owner: none after any tick.
    pub fn strays(&self) -> usize {
        let strays = |body: &&Body| {
            let stays = body.leaving.is_none() && body.place.is_some();
            stays && self.owner_at(body.home, self.tick + 2) != self.shard
        };
        let bodies = self.players.iter().map(|player| &player.body);
        let bodies = bodies.chain(self.npcs.iter().map(|npc| &npc.body));
        let bodies = bodies.chain(self.things.iter().map(|thing| &thing.body));
        bodies.filter(strays).count()
    }

    /// Hears a decree, before its tick. A shard that stood still may hear it later: it is in force from its next tick on,
    /// and until then what it keeps too long is found by its frames.
    pub fn decree(&mut self, decree: Decree) {
        self.counters.decrees_late += u64::from(decree.tick <= self.tick);
        self.decrees.push(decree);
        self.decrees.sort_by_key(|decree| decree.tick);
    }

    /// Takes what another shard, or this one, gave in an earlier tick.
    pub fn arrive(&mut self, parcel: &mut OutcomeParcel) {
        self.arrived.append(&mut parcel.effects);
        let Handoffs { players, npcs, spawners, things } = &mut parcel.handoffs;
        self.counters.handed_in += (players.len() + npcs.len() + spawners.len() + things.len()) as u64;
        players.drain(..).for_each(|player| self.players.insert(player));
        npcs.drain(..).for_each(|npc| self.npcs.insert(npc));
        spawners.drain(..).for_each(|spawner| self.spawners.insert(spawner));
        things.drain(..).for_each(|thing| self.things.insert(thing));
    }

    /// First part of a tick: everything that needs no input of this tick.
    pub fn begin(&mut self, tick: u64, frames: &Frames) {
        assert!(tick > self.tick, "ticks rise");
        self.elapsed = tick - self.tick;
        self.tick = tick;
        self.obey_decrees();
        self.send_unheard(frames);
        self.apply_effects(frames);
        self.act(frames);
    }

    fn obey_decrees(&mut self) {
        while self.decrees.first().is_some_and(|decree| decree.tick <= self.tick) {
            match self.decrees.remove(0).kind {
                DecreeKind::Cut(cut) => (self.cut, self.recut) = (cut, !planted(Bug::LateCutForgotten)),
                DecreeKind::Stop => self.players.iter_mut().for_each(|player| player.released = true),
                DecreeKind::Degrade(level) => self.degrade = level,
                DecreeKind::Lanes(lanes) => self.lanes = lanes,
            }
        }
    }

    fn apply_effects(&mut self, frames: &Frames) {
        let mut arrived = std::mem::take(&mut self.arrived);
        let (seed, tick) = (self.config.seed, self.tick);
        // Without a cached key, which would ask for memory. No two that differ have the same order.
        arrived.sort_unstable_by(|a, b| {
            a.order(seed, tick).cmp(&b.order(seed, tick)).then_with(|| a.digest().cmp(&b.digest()))
        });
        for effect in arrived.drain(..) {
            if self.apply(&effect, frames) {
                self.counters.effects_applied += 1;
            } else {
                self.counters.effects_refused += 1;
                self.refuse(&effect, frames);
            }
        }
        self.arrived = arrived;
    }

    /// Applies one effect; false when its target is not here.
    fn apply(&mut self, effect: &Effect, frames: &Frames) -> bool {
        match (effect.kind, effect.target) {
            (EffectKind::Join(joining), _) => self.join(&joining),
            (EffectKind::Birth(birth), _) => self.bear(&birth),
            (EffectKind::Wave { x, y, .. }, Target::Entity(target)) => {
                return self.turn_to(effect.source, target, x, y);
            }
            (EffectKind::Refused { request, refusal }, Target::Entity(target)) => {
                let Some(player) = self.players.get_mut(target) else { return false };
                self.private.extend(player.refuse_wave(request, refusal));
            }
            (EffectKind::Gone, Target::Actor(target)) => {
                let Some(spawner) = self.spawners.get_mut(target) else { return false };
                spawner.alive -= 1;
            }
            (EffectKind::Lay(thing), _) => {
                self.things.insert(Thing::lying(&thing, &self.config.land));
                self.counters.spawned += 1;
            }
            (EffectKind::Lift { operation }, Target::Entity(target)) => {
                let Some(thing) = self.things.get_mut(target) else { return false };
                match thing.lift(effect.source, operation) {
                    Deal::Order(order) => self.orders.push(order),
                    Deal::Effect(effect) => self.send(effect, frames),
                }
            }
            (EffectKind::Lifted { done }, Target::Entity(target)) => {
                let Some(thing) = self.things.get_mut(target) else { return false };
                thing.taken = None;
                if done {
                    self.end_thing(target);
                }
            }
            (_, Target::Entity(target)) => return self.apply_to_player(effect, target, frames),
            _ => unreachable!("an effect has the target that its kind needs"),
        }
        true
    }

    /// Applies what only players understand; false when this one is not here.
    fn apply_to_player(&mut self, effect: &Effect, target: EntityId, frames: &Frames) -> bool {
        let tick = self.tick;
        let Some(player) = self.players.get_mut(target) else { return false };
        match effect.kind {
            EffectKind::Missed { operation, refusal } => {
                let word = player.miss(operation, refusal);
                self.private.extend(word.map(|word| player.whisper(word)));
            }
            EffectKind::Settled { operation, refusal } => player.settle(operation, refusal, &mut self.given),
            EffectKind::Rewarded { deed, done } => player.reward(deed, done, tick),
            EffectKind::Trade { number, effect: what } => {
                player.hear_trade(effect.source, number, what, tick, &mut self.given);
            }
            _ => unreachable!("an effect has the target that its kind needs"),
        }
        self.private.extend(self.given.words.drain(..).map(|word| player.whisper(word)));
        self.give(frames);
        true
    }

    /// Passes on what one player gave out, but for its words.
    fn give(&mut self, frames: &Frames) {
        let mut given = std::mem::take(&mut self.given);
        self.orders.append(&mut given.orders);
        given.effects.drain(..).for_each(|effect| self.send(effect, frames));
        self.given = given;
    }

    fn end_thing(&mut self, id: EntityId) {
        let thing = self.things.remove(id).expect("the caller found it");
        thing.body.place.into_iter().for_each(|place| self.slices.leave(place));
        self.counters.despawned += 1;
    }

    /// An order is durable: whom it concerns hears of it in the next tick.
    pub fn settled(&mut self, settled: &Settled, frames: &Frames) {
        let Settled { number, order, refusal, thing } = *settled;
        let (id, done) = (order.id, refusal == Refusal::None);
        let answer = |sequence| EffectKind::Settled { operation: sequence, refusal };
        let mut effects: Vec<(Target, EffectKind)> = Vec::with_capacity(2);
        match order.kind {
            OrderKind::Swap { partner, .. } => {
                effects.push((Target::Entity(id.source), answer(id.sequence)));
                effects.push((Target::Entity(partner.source), answer(partner.sequence)));
            }
            OrderKind::PickUp { thing } => {
                effects.push((Target::Entity(id.source), answer(id.sequence)));
                let done = done || refusal == Refusal::Gone;
                effects.push((Target::Entity(EntityId::thing(thing)), EffectKind::Lifted { done }));
            }
            OrderKind::Sweep { thing } => {
                let done = done || refusal == Refusal::Gone;
                effects.push((Target::Entity(EntityId::thing(thing)), EffectKind::Lifted { done }));
            }
            OrderKind::Deed { deed } => {
                let whose = EntityId::character(id.source.number());
                effects.push((Target::Entity(whose), EffectKind::Rewarded { deed, done }));
            }
            _ => effects.push((Target::Entity(id.source), answer(id.sequence))),
        }
        if let Some(thing) = thing {
            effects.push((Target::Cell(CellKey::of_fine(thing.x, thing.y)), EffectKind::Lay(thing)));
        }
        for (n, (target, kind)) in (0u32..).zip(effects) {
            let sequence = (number as u32).wrapping_mul(4).wrapping_add(n);
            self.send(Effect { target, source: EntityId::KEEPER, sequence, kind }, frames);
        }
    }

    fn join(&mut self, joining: &Joining) {
        let motion = Motion::standing(&self.config.land, joining.x, joining.y, joining.yaw);
        let mut body = Body::new(joining.id, Archetype::Human, motion);
        body.epoch = joining.epoch;
        let mut player = Player::new(body, joining.session, joining.client_id, joining.guest, joining.peaceful);
        player.dealings.deeds = joining.deeds;
        self.players.insert(player);
        self.counters.spawned += 1;
    }

    fn bear(&mut self, birth: &Birth) {
        let motion = Motion::standing(&self.config.land, birth.x, birth.y, 0);
        self.npcs.insert(Npc::born(birth, Body::new(birth.id, Archetype::Deer, motion), self.tick));
        self.counters.spawned += 1;
    }

    fn turn_to(&mut self, source: EntityId, target: EntityId, x: i32, y: i32) -> bool {
        let body = match self.npcs.get_mut(target) {
            Some(npc) => &mut npc.body,
            None => match self.players.get_mut(target) {
                Some(player) => &mut player.body,
                None => return false,
            },
        };
        let (own_x, own_y) = body.grid();
        body.attention = direction(x - own_x, y - own_y);
        body.attention_until = self.tick + ATTENTION_TICKS;
        let event = structs::Event::new(source.0, target.0, self.tick as u32, EVENT_WAVE, 0);
        self.events.push(PublicEvent::new(self.config.seed, body.spot(), event));
        true
    }

    /// Tells the source of an effect by name why it was refused.
    fn refuse(&mut self, effect: &Effect, frames: &Frames) {
        let refusal = Refusal::Gone;
        let kind = match effect.kind {
            EffectKind::Wave { request, .. } => EffectKind::Refused { request, refusal },
            EffectKind::Lift { operation } => EffectKind::Missed { operation, refusal },
            EffectKind::Trade { effect: TradeEffect::End { .. }, .. } => {
                self.counters.refusals_lost += 1;
                return;
            }
            EffectKind::Trade { number, .. } => EffectKind::Trade { number, effect: TradeEffect::End { refusal } },
            // What the ledger answered must be heard: after a late parcel the target may be with another owner.
            kind if kind.must_be_heard() => {
                self.send(*effect, frames);
                return;
            }
            _ => {
                self.counters.refusals_lost += 1;
                return;
            }
        };
        let Target::Entity(source) = effect.target else { unreachable!("what is refused was for an entity") };
        let answer = Effect { target: Target::Entity(effect.source), source, sequence: effect.sequence, kind };
        self.send(answer, frames);
    }

    /// Sends an effect to whoever owns its target in the next tick.
    fn send(&mut self, effect: Effect, frames: &Frames) {
        let owner = match effect.target {
            Target::Entity(id) => frames.find(id).map(|seen| seen.next_owner),
            Target::Cell(cell) => Some(self.owner_at(cell, self.tick + 1)),
            Target::Actor(id) => Some(self.owner_at(Spawner::home_of(id), self.tick + 1)),
        };
        match owner {
            Some(owner) => {
                self.counters.effects_sent += 1;
                self.counters.effects_across += u64::from(owner != self.shard);
                self.sent.push((owner, effect));
            }
            // Between two owners an entity may be in nobody's newest frame, when a shard is late.
            None if effect.kind.must_be_heard() => self.unheard.push((self.tick + UNHEARD_TICKS, effect)),
            None => self.counters.refusals_lost += 1,
        }
    }

    /// Sends again what must be heard and whose target was in no frame.
    fn send_unheard(&mut self, frames: &Frames) {
        for (until, effect) in std::mem::take(&mut self.unheard) {
            let Target::Entity(target) = effect.target else { unreachable!("cells are always there") };
            // Mostly it comes within some ticks, or never.
            let is_looked_for = until > self.tick + UNHEARD_TICKS - UNHEARD_OFTEN_TICKS
                || self.tick.is_multiple_of(UNHEARD_EVERY_TICKS);
            if is_looked_for && frames.find(target).is_some() {
                self.send(effect, frames);
            } else if self.tick < until {
                self.unheard.push((until, effect));
            } else {
                // It left: in its next session it is told by the ledger itself.
                self.counters.refusals_lost += 1;
            }
        }
    }

    /// A character joins, seen from the next tick on.
    pub fn send_join(&mut self, joining: Joining, frames: &Frames) {
        let target = Target::Cell(CellKey::of_fine(joining.x, joining.y));
        let sequence = joining.session.generation;
        self.send(Effect { target, source: EntityId::JOIN, sequence, kind: EffectKind::Join(joining) }, frames);
    }

    /// The shard that owns a cell at a tick, as far as decrees are known.
    fn owner_at(&self, cell: CellKey, tick: u64) -> ShardId {
        let cuts = self.decrees.iter().rev().filter(|decree| decree.tick <= tick);
        let mut cuts = cuts.filter_map(|decree| match &decree.kind {
            DecreeKind::Cut(cut) => Some(cut),
            DecreeKind::Stop | DecreeKind::Degrade(_) | DecreeKind::Lanes(_) => None,
        });
        cuts.next().unwrap_or(&self.cut).owner(cell)
    }

    fn act(&mut self, frames: &Frames) {
        let (seed, tick, land) = (self.config.seed, self.tick, self.config.land.clone());
        let mut npcs = std::mem::take(&mut self.npcs);
        for npc in npcs.iter_mut() {
            self.counters.turns += u64::from((npc.turn_tick..npc.end_tick).contains(&tick));
            if tick >= npc.end_tick {
                self.gone.push(npc.body.id);
                self.send(npc.farewell(), frames);
            } else if npc.puts_off(seed, tick, self.degrade) {
                self.counters.turns_put_off += 1;
            } else if let Some(effect) = npc.act(seed, tick, &land, frames) {
                self.send(effect, frames);
            }
        }
        for id in self.gone.drain(..) {
            let npc = npcs.remove(id).expect("it was just here");
            npc.body.place.into_iter().for_each(|place| self.slices.leave(place));
            self.counters.despawned += 1;
        }
        self.npcs = npcs;
        let mut spawners = std::mem::take(&mut self.spawners);
        for spawner in spawners.iter_mut() {
            let birth = spawner.act(seed, tick, &land, self.config.npc_life_ticks);
            birth.into_iter().for_each(|effect| self.send(effect, frames));
        }
        self.spawners = spawners;
        self.orders.extend(self.things.iter_mut().filter_map(|thing| thing.age(tick)));
    }

    /// Second part of a tick, once for each shard's inputs.
    pub fn take_inputs(&mut self, parcel: &InputParcel, frames: &Frames) {
        for &Input { entity, session, kind } in &parcel.inputs {
            let Some(player) = self.players.get_mut(entity).filter(|player| player.session == session) else {
                self.counters.inputs_refused += 1;
                continue;
            };
            match kind {
                InputKind::Commands { first_tick, first, count } => {
                    let commands = &parcel.commands[first as usize..(first + count) as usize];
                    self.counters.commands_over += player.hold(first_tick, commands);
                }
                InputKind::Request { ordinal, number, request } => {
                    if player.takes(ordinal, &request, self.tick) {
                        self.obey(entity, number, request, frames);
                    }
                }
                InputKind::Leave => player.released = true,
            }
        }
    }

    /// Does what a client asks of its entity, which is here and took the request.
    fn obey(&mut self, entity: EntityId, number: u64, request: Request, frames: &Frames) {
        let (tick, stream) = (self.tick, request.stream());
        let player = self.players.get_mut(entity).expect("the caller found it");
        let given = &mut self.given;
        let done = match request {
            // Guests own nothing.
            _ if player.guest && is_about_trade(&request) => Err(Refusal::NotNow),
            Request::Emote { kind } => player.emote(kind, tick).map(|event| {
                self.events.push(PublicEvent::new(self.config.seed, player.body.spot(), event));
            }),
            Request::WaveAt { target } => match player.wave(number, target, tick, frames) {
                // It is answered when nobody refused it.
                Ok(effect) => return self.send(effect, frames),
                Err(refusal) => Err(refusal),
            },
            // What the ledger is asked, it answers.
            Request::Goods(goods) => match player.deal(number, goods, frames) {
                Ok(Deal::Order(order)) => return self.orders.push(order),
                Ok(Deal::Effect(effect)) => return self.send(effect, frames),
                Err(refusal) => Err(refusal),
            },
            Request::TradeAsk { target } => player.ask_trade(target, tick, frames, given),
            Request::TradeOffer { offer } => player.offer_trade(offer, given),
            Request::TradeCancel => player.cancel_trade(given),
            Request::TradeConfirm { offer } => player.confirm_trade(number, offer, given),
        };
        if is_about_trade(&request) {
            player.dealings.trade_tick = tick + goods::TRADE_WISH_TICKS;
        }
        if done.is_err() || stream == Stream::World {
            self.private.push(player.answer(stream, number, done.err().unwrap_or(Refusal::None)));
        }
        self.private.extend(given.words.drain(..).map(|word| player.whisper(word)));
        self.give(frames);
    }

    /// Third part of a tick: the players move. Without `rows` changed characters stay dirty and only those that go are
    /// saved.
    pub fn play(&mut self, rows: bool, frames: &Frames) {
        let tick = self.tick;
        let (mut players, mut given) = (std::mem::take(&mut self.players), std::mem::take(&mut self.given));
        for player in players.iter_mut() {
            player.watch_trade(tick, frames, &mut given);
            self.private.extend(given.words.drain(..).map(|word| player.whisper(word)));
            player.run(&self.config.land, self.elapsed);
            player.dirty &= !(planted(Bug::RowForgotten) && player.body.id.0.is_multiple_of(4));
            self.private.extend(player.settle_wave(tick));
            if let Some(order) = player.find_deed(tick) {
                self.orders.push(order);
            }
            if player.released {
                self.gone.push(player.body.id);
            } else if rows && player.row_is_due(tick) {
                player.dirty = false;
                player.row_tick = tick;
                self.saves.push(save(player, self.shard, tick));
            }
        }
        (self.players, self.given) = (players, given);
        // What is left to give are the ends of trades.
        self.give(frames);
        while let Some(id) = self.gone.pop() {
            let player = self.players.remove(id).expect("it was just here");
            player.body.place.into_iter().for_each(|place| self.slices.leave(place));
            let released = Some(player.session);
            self.saves.push(Save { released, ..save(&player, self.shard, tick) });
            self.counters.despawned += 1;
        }
    }

    /// Last part of a tick: homes, handoffs, the frame, and what each shard is told. `outs` has one parcel for each
    /// shard, this one included; `frame` is filled and given back for all of them.
    pub fn publish(&mut self, frame: &mut Frame, outs: &mut [impl BorrowMut<OutcomeParcel>]) {
        let World { players, npcs, things, slices, .. } = self;
        slices.turn(self.tick, &mut Bodies { players, npcs, things });
        self.settle();
        (frame.shard, frame.tick) = (self.shard, self.tick);
        // Wildlife has the lowest ids and things the highest, so that sorted lists behind each other are one.
        self.slices.show(frame, self.shard, &[self.npcs.order(), self.players.order(), self.things.order()]);
        self.counters.entities_hidden += self.slices.hidden as u64;
        frame.events.clear();
        frame.events.reserve(EVENTS_USUAL);
        self.counters.events_over += events::show(&mut self.events, &mut frame.events);
        for (owner, effect) in self.sent.drain(..) {
            if planted(Bug::EffectLost) && owner != self.shard && self.tick.is_multiple_of(97) {
                continue;
            }
            outs[owner.index()].borrow_mut().effects.push(effect);
        }
        for event in self.private.drain(..) {
            outs[self.lanes.owner(event.session.lane).index()].borrow_mut().private.push(event);
        }
        self.tell(outs);
        self.hand_over(outs);
    }

    /// Goes through everybody once: gives a home cell and a slot, announces who will leave, and looks at all as they are
    /// shown. Finds whose handoff is in force in the next tick.
    fn settle(&mut self) {
        let (tick, shard) = (self.tick, self.shard);
        let coming = self.decrees.iter().any(|decree| decree.tick <= tick + 2);
        let decreed = std::mem::take(&mut self.recut) || coming;
        let mut npcs = std::mem::take(&mut self.npcs);
        let mut players = std::mem::take(&mut self.players);
        let mut spawners = std::mem::take(&mut self.spawners);
        let mut things = std::mem::take(&mut self.things);
        let mut slices = std::mem::take(&mut self.slices);
        let mut gone = std::mem::take(&mut self.gone);
        let owner = |cell: CellKey| if decreed { self.owner_at(cell, tick + 2) } else { self.cut.owner(cell) };
        let announced = |home: CellKey| {
            let to = owner(home);
            (to != shard).then_some(Leaving { to, tick: tick + 2 })
        };
        let is_due = |leaving: &Option<Leaving>| leaving.is_some_and(|leaving| leaving.tick <= tick + 1);
        let mut settle = |body: &mut Body| {
            let before = body.home.plot();
            let (moved, placed) = (body.settle(), body.place.is_some());
            if !placed || moved && body.home.plot() != before {
                body.place.take().into_iter().for_each(|place| slices.leave(place));
                slices.join(body, tick);
            }
            // Who stays in its cell stays here, unless the cuts change.
            if body.leaving.is_none() && (moved || !placed || decreed) {
                body.leaving = announced(body.home);
            }
            if is_due(&body.leaving) {
                gone.push(body.id);
            }
            slices.look(body, tick);
        };
        npcs.iter_mut().for_each(|npc| settle(&mut npc.body));
        players.iter_mut().for_each(|player| settle(&mut player.body));
        things.iter_mut().for_each(|thing| settle(&mut thing.body));
        for spawner in spawners.iter_mut() {
            if spawner.leaving.is_none() {
                spawner.leaving = announced(spawner.home);
            }
            if is_due(&spawner.leaving) {
                gone.push(spawner.id);
            }
        }
        (self.npcs, self.players, self.spawners) = (npcs, players, spawners);
        (self.things, self.slices, self.gone) = (things, slices, gone);
    }

    /// Tells each session about its entity.
    fn tell(&mut self, outs: &mut [impl BorrowMut<OutcomeParcel>]) {
        for player in self.players.iter() {
            let leaving = player.body.leaving.filter(|leaving| leaving.tick <= self.tick + 1);
            outs[self.lanes.owner(player.session.lane).index()].borrow_mut().told.push(Told {
                session: player.session,
                state: player.own_state(self.tick),
                home: player.body.home,
                next_owner: leaving.map_or(self.shard, |leaving| leaving.to),
                taken: player.taken,
            });
        }
    }

    /// Gives away those of whom [`World::settle`] found that their handoff is in force in the next tick.
    fn hand_over(&mut self, outs: &mut [impl BorrowMut<OutcomeParcel>]) {
        self.counters.handed_out += self.gone.len() as u64;
        for id in self.gone.drain(..) {
            if let Some(mut npc) = self.npcs.remove(id) {
                let to = depart(&mut npc.body, &mut self.slices);
                outs[to.index()].borrow_mut().handoffs.npcs.push(npc);
            } else if let Some(mut player) = self.players.remove(id) {
                let to = depart(&mut player.body, &mut self.slices);
                player.dirty = true;
                if planted(Bug::HandoffStays) && self.tick.is_multiple_of(8) {
                    self.players.insert(player.clone());
                }
                outs[to.index()].borrow_mut().handoffs.players.push(player);
            } else if let Some(mut thing) = self.things.remove(id) {
                let to = depart(&mut thing.body, &mut self.slices);
                outs[to.index()].borrow_mut().handoffs.things.push(thing);
            } else {
                let mut spawner = self.spawners.remove(id).expect("it was just here");
                let to = spawner.leaving.take().expect("it leaves").to;
                spawner.epoch += 1;
                outs[to.index()].borrow_mut().handoffs.spawners.push(spawner);
            }
        }
    }

    /// Effects that wait for the next tick.
    pub fn effects_waiting(&self) -> usize {
        self.arrived.len()
    }

    /// Digest of the effects that wait for the next tick.
    pub fn effects_digest(&self) -> u64 {
        self.arrived.iter().map(Effect::digest).fold(0, u64::wrapping_add)
    }

    /// Digest of everything this shard owns; the sum over all shards does not depend on how many there are.
    pub fn digest(&self) -> u64 {
        let players = self.players.iter().map(Player::digest).fold(0, u64::wrapping_add);
        let npcs = self.npcs.iter().map(Npc::digest).fold(players, u64::wrapping_add);
        let spawners = self.spawners.iter().map(Spawner::digest).fold(npcs, u64::wrapping_add);
        self.things.iter().map(Thing::digest).fold(spawners, u64::wrapping_add)
    }

    /// Digest of the share of what this shard owns whose turn it is, and of all effects that wait. Each entity has its
    /// turn within [`DIGEST_TURNS`] ticks: a tick pays for a part, and what differs shows within as many ticks.
    pub fn digest_part(&self) -> u64 {
        fn part<T: table::Named>(table: &Table<T>, turn: usize, digest: impl Fn(&T) -> u64) -> u64 {
            let ours = table.order().iter().skip(turn).step_by(DIGEST_TURNS as usize);
            ours.map(|&(_, at)| digest(table.at(at as usize))).fold(table.len() as u64, u64::wrapping_add)
        }
        let turn = (self.tick % DIGEST_TURNS) as usize;
        let (players, npcs) = (part(&self.players, turn, Player::digest), part(&self.npcs, turn, Npc::digest));
        let (spawners, things) = (part(&self.spawners, turn, Spawner::digest), part(&self.things, turn, Thing::digest));
        let mut digest = Digest::new(self.tick);
        digest.add(players).add(npcs).add(spawners).add(things).add(self.effects_digest()).finish()
    }
}

/// In how many turns [`World::digest_part`] goes through all entities.
pub const DIGEST_TURNS: u64 = 16;

/// Rolls one tick into the world hash: the sum of all shards' digests and of all effects under way.
pub fn roll_hash(hash: u64, tick: u64, entities: u64, effects: u64) -> u64 {
    Digest::new(hash).add(tick).add(mix(entities)).add(mix(effects)).finish()
}

fn depart(body: &mut Body, slices: &mut Slices) -> ShardId {
    body.place.take().into_iter().for_each(|place| slices.leave(place));
    body.epoch += u32::from(!planted(Bug::EpochStays));
    body.leaving.take().expect("it leaves").to
}

fn save(player: &Player, owner: ShardId, tick: u64) -> Save {
    let Motion { x, y, z, yaw, .. } = player.body.motion;
    let z = if planted(Bug::RowOfElsewhere) { z + 1 } else { z };
    Save {
        client_id: player.client_id,
        id: player.body.id,
        owner,
        epoch: player.body.epoch,
        tick,
        position: (x, y, z),
        yaw,
        released: None,
        guest: player.guest,
    }
}
