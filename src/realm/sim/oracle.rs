//! The judges of a run: what must hold in every tick, after every start and at the end.
//!
//! Owns the reference model of the ledger and the violations. Promises: whoever was told that something is done finds
//! it done after any crash; what is there was ordered, once; every entity has one owner; after the faults everybody
//! plays again. It judges from outside: it never changes what it looks at.

mod players;

use std::collections::{HashMap, HashSet};

use super::clients::Clients;
use super::faults::{Feature, Plan};
use super::model::Model;
use super::node::Node;
use crate::core::Core;
use crate::keeper::inspect::check;
use crate::keeper::{KeeperAnswer, KeeperCommand, MemoryDisk, Terms};
use crate::limits::{COMMANDS_HELD_MAX, KEEPER_WAITING_MAX};
use crate::wire::fast_hash::FastHash;
use crate::wire::goods::{OrderKind, Refusal};
use crate::wire::ids::{EntityId, IdClass, ShardId};

/// Violations that are told in words.
const TEXTS_MAX: usize = 10;
/// Ticks between two counts of everything that is owned.
const CENSUS_TICKS: u64 = 60;
/// Ticks that a bot may wait for an answer in the quiet end of a run.
const ANSWER_TICKS_MAX: u32 = 240;

/// Client ticks that a bot may be ahead of the server at the end.
const TICKS_AHEAD_MAX: u32 = 2 * COMMANDS_HELD_MAX as u32;

/// Something that the keeper did and the disk may not have yet.
#[derive(Clone, Copy)]
#[expect(clippy::large_enum_variant, reason = "nearly all of them are orders")]
enum Step {
    Clock(u64),
    Order { asked: crate::wire::goods::Order, tick: u64, next_character: u64, plays: bool, answer: Option<Refusal> },
}

/// See the module.
pub struct Oracle {
    /// Checks made.
    pub checked: u64,
    /// Checks that failed.
    pub violations: u64,
    /// The first ones, in words.
    pub texts: Vec<String>,
    terms: Terms,
    /// What is surely on disk.
    model: Model,
    /// What was done since.
    steps: Vec<Step>,
    /// How many of these are in the group that is under way.
    begun: usize,
    epochs: HashMap<EntityId, (u32, ShardId, u64), FastHash>,
    /// Age of the newest row seen of each client.
    ages: HashMap<u64, (u32, u64)>,
    /// Answers of each bot that were looked at.
    heard: HashMap<usize, usize>,
    /// Bots whose belief was seen to be the truth at the end.
    agreed: HashSet<usize>,
    seen: usize,
    watched: players::Watched,
}

impl Oracle {
    /// Judges of a run that begins on an empty disk.
    pub fn new(terms: Terms) -> Oracle {
        Oracle {
            checked: 0,
            violations: 0,
            texts: Vec::new(),
            terms,
            model: Model::new(terms),
            steps: Vec::new(),
            begun: 0,
            epochs: HashMap::default(),
            ages: HashMap::new(),
            heard: HashMap::new(),
            agreed: HashSet::new(),
            seen: 0,
            watched: players::Watched::default(),
        }
    }

    /// Orders that the model answered.
    pub fn orders(&self) -> u64 {
        self.model.orders()
    }

    /// One check.
    pub fn demand_at(&mut self, tick: u64, holds: bool, text: impl FnOnce() -> String) {
        self.checked += 1;
        if !holds {
            self.violations += 1;
            if self.texts.len() < TEXTS_MAX {
                self.texts.push(format!("tick {tick}: {}", text()));
            }
        }
    }

    /// A command is about to be done.
    pub fn expect(&mut self, node: &Node, command: KeeperCommand, plan: &mut Plan, tick: u64) {
        let realm = node.desk.store().realm();
        self.seen = node.desk.ledger().entries().len();
        match command {
            KeeperCommand::Clock { tick, .. } => self.steps.push(Step::Clock(tick)),
            KeeperCommand::Order(asked) => {
                let feature = match asked.order.kind {
                    OrderKind::Swap { .. } => Some(Feature::Trade),
                    OrderKind::Send { .. } | OrderKind::TakeMail { .. } | OrderKind::ReturnMail { .. } => {
                        Some(Feature::Mail)
                    }
                    OrderKind::Move { .. } | OrderKind::MoveCoins { .. } => Some(Feature::Bank),
                    OrderKind::Drop { .. } => Some(Feature::Drop),
                    OrderKind::PickUp { .. } => Some(Feature::PickUp),
                    OrderKind::Deed { .. } => Some(Feature::Deed),
                    _ => None,
                };
                feature.into_iter().for_each(|feature| plan.note(feature, tick));
                let plays = node.desk.claims().live_row(asked.order.id.source.number()).is_some();
                let next_character = realm.next_character;
                let (tick, order) = (realm.tick, asked.order);
                self.steps.push(Step::Order { asked: order, tick, next_character, plays, answer: None });
            }
            KeeperCommand::Row(_) => plan.note(Feature::Row, tick),
            KeeperCommand::Claim { .. } | KeeperCommand::Release { .. } => (),
        }
    }

    /// It was done: what was answered, and what a new character got.
    pub fn compare(&mut self, node: &Node, command: KeeperCommand) {
        let entries = node.desk.ledger().entries();
        match command {
            KeeperCommand::Order(_) => {
                let settled = node.desk.waiting_answers().iter().rev().find_map(|(_, answer)| match answer {
                    KeeperAnswer::Settled(settled) => Some(settled.refusal),
                    _ => None,
                });
                if let Some(Step::Order { answer, .. }) = self.steps.last_mut() {
                    *answer = settled;
                }
            }
            KeeperCommand::Claim { .. } | KeeperCommand::Release { .. } => {
                let next_character = node.desk.store().realm().next_character;
                for entry in entries.iter().skip(self.seen) {
                    let (asked, tick, answer) = (entry.order, entry.tick, Some(entry.refusal));
                    self.steps.push(Step::Order { asked, tick, next_character, plays: false, answer });
                }
            }
            _ => (),
        }
        match command {
            KeeperCommand::Row(row) => self.check_row(node, row.client_id),
            KeeperCommand::Release { client_id, .. } => self.check_row(node, client_id),
            _ => (),
        }
        self.seen = entries.len();
    }

    /// All that was done so far is under way to the disk.
    pub fn begun(&mut self) {
        self.begun = self.steps.len();
    }

    /// What was under way is on disk.
    pub fn landed(&mut self) {
        let after = self.steps.split_off(std::mem::take(&mut self.begun));
        for step in std::mem::replace(&mut self.steps, after) {
            match step {
                Step::Clock(tick) => self.model.clock(tick),
                Step::Order { asked, tick, next_character, plays, answer } => {
                    let should = self.model.apply(asked, tick, next_character, plays);
                    let same = answer.is_none_or(|answer| answer == should);
                    self.demand_at(tick, same, || format!("{asked:?} was answered {answer:?}, not {should:?}"));
                }
            }
        }
    }

    /// A process came up again: what it found is what had landed, or that and all of the group that was under way.
    pub fn recovered(&mut self, node: &Node, tick: u64) {
        self.epochs.clear();
        self.ages.clear();
        self.watched.forget();
        if node.desk.ledger().orders() != self.model.orders() {
            self.landed();
        }
        self.steps.clear();
        self.begun = 0;
        let difference = self.model.difference(node.desk.ledger());
        self.demand_at(tick, difference.is_none(), || format!("after a start: {}", difference.unwrap_or_default()));
        let census = node.desk.ledger().book.census();
        self.demand_at(tick, census.is_empty(), || format!("after a start: {census:?}"));
        let owned: HashSet<EntityId> = node.owned().map(|(id, ..)| id).collect();
        for thing in node.desk.ledger().things() {
            let lies = owned.contains(&EntityId::thing(thing.number));
            self.demand_at(tick, lies, || format!("thing {} does not lie on the ground again", thing.number));
        }
    }

    /// A rotten disk must be refused, or be as it was for all that anybody can read.
    pub fn check_rot(&mut self, rotten: &MemoryDisk, whole: &MemoryDisk, started: Option<&Node>, tick: u64) {
        let found = match check(rotten, self.terms) {
            Ok(report) => !report.breaks.is_empty(),
            Err(_) => true,
        };
        // A group at the end that was never acknowledged may be lost to it.
        let same = started.is_some_and(|node| self.model.difference(node.desk.ledger()).is_none());
        self.demand_at(tick, found || same || rotten.reads_as(whole), || {
            "a bit turned over and nobody noticed".to_owned()
        });
    }

    /// What must hold in every tick of a running realm.
    pub fn check_world(&mut self, node: &Node, tick: u64) {
        let total = |count: fn(&Core) -> u64| node.cores.iter().map(count).sum::<u64>();
        let (mut twice, mut falls, mut count) = (0, 0, 0);
        for (id, epoch, owner) in node.owned() {
            count += 1;
            let before = self.epochs.insert(id, (epoch, owner, tick));
            twice += usize::from(before.is_some_and(|(.., seen)| seen == tick));
            falls += usize::from(before.is_some_and(|(old, other, _)| old > epoch || (old == epoch && other != owner)));
        }
        self.demand_at(tick, twice == 0, || format!("{twice} entities have two owners"));
        self.demand_at(tick, falls == 0, || format!("the owner epoch of {falls} entities did not rise"));
        let running = node.cores.iter().filter(|core| core.world.tick == tick);
        let strays: usize = running.map(|core| core.world.strays()).sum();
        self.demand_at(tick, strays == 0, || format!("{strays} entities stay where they do not belong"));
        let here = node
            .cores
            .iter()
            .map(Core::lanes_here)
            .fold((0u32, true), |(seen, once), here| (seen | here, once && seen & here == 0));
        let under_way = node.lanes_under_way();
        self.demand_at(tick, here.1, || "a lane is with two shards".to_owned());
        let waits = node.is_even(tick) && under_way > 0;
        self.demand_at(tick, !waits, || format!("{under_way} lanes are on their way though nobody is late"));
        if node.is_even(tick) && node.cores[0].may_decree(tick) && node.cores[0].lanes_are_settled() {
            let waiting: usize = node.cores.iter().map(Core::waiting_for_lanes).sum();
            self.demand_at(tick, waiting == 0, || format!("{waiting} words wait for a lane that does not come"));
        }
        let keeper = node.cores.iter().map(|core| core.keeper.len()).max().unwrap_or(0);
        self.demand_at(tick, keeper <= 2 * KEEPER_WAITING_MAX, || format!("{keeper} commands wait for the keeper"));
        if node.is_even(tick) {
            let spawned = total(|core| core.world.counters.spawned);
            let despawned = total(|core| core.world.counters.despawned);
            self.demand_at(tick, count == spawned - despawned, || {
                format!("{count} entities, {spawned} began, {despawned} ended")
            });
            let sent = total(|core| core.world.counters.effects_sent);
            let applied = total(|core| core.world.counters.effects_applied);
            let refused = total(|core| core.world.counters.effects_refused);
            let waiting = total(|core| core.world.effects_waiting() as u64);
            self.demand_at(tick, sent == applied + refused + waiting, || {
                format!("{sent} effects sent, {applied} applied, {refused} refused, {waiting} under way")
            });
        }
        let breaks = node.desk.ledger().breaks().len();
        self.demand_at(tick, breaks == 0, || node.desk.ledger().breaks()[0].clone());
        let overdue = node.desk.ledger().has_overdue_mail(tick);
        self.demand_at(tick, !overdue, || "a mail waits for longer than it may".to_owned());
        self.check_speed(node, tick);
        if tick.is_multiple_of(CENSUS_TICKS) {
            let census = node.desk.ledger().book.census();
            self.demand_at(tick, census.is_empty(), || format!("{census:?}"));
        }
    }

    /// The newest row of a client never gets older; a crash may take what was not committed.
    fn check_row(&mut self, node: &Node, client_id: u64) {
        let Ok(Some(row)) = node.desk.store().row(client_id) else { return };
        let before = self.ages.insert(client_id, row.age());
        let holds = before.is_none_or(|before| before <= row.age());
        self.demand_at(row.tick, holds, || format!("the row of client {client_id} went back to {:?}", row.age()));
    }

    /// What a shard tells the keeper in one tick: the orders of a character before the row with which it goes.
    pub fn check_order(&mut self, node: &Node, tick: u64) {
        for core in node.cores.iter().filter(|_| !node.is_behind()) {
            let mut gone = HashSet::new();
            for command in &core.keeper {
                match command {
                    KeeperCommand::Release { row: Some(row), .. } => drop(gone.insert(row.character)),
                    KeeperCommand::Order(asked) => {
                        let source = asked.order.id.source;
                        let is_character = matches!(source.class(), IdClass::Character | IdClass::Deeds);
                        let late = is_character && gone.contains(&source.number());
                        self.demand_at(tick, !late, || {
                            format!("{:?} follows the release of its character", asked.order)
                        });
                    }
                    _ => (),
                }
            }
        }
    }

    /// A thing has one winner at a time: until its order is answered nobody else's is given.
    pub fn check_winners(&mut self, commands: &[KeeperCommand], tick: u64) {
        let mut things = HashSet::new();
        for command in commands {
            if let KeeperCommand::Order(asked) = command
                && let OrderKind::PickUp { thing } = asked.order.kind
            {
                self.demand_at(tick, things.insert(thing), || format!("thing {thing} has two winners"));
            }
        }
    }

    /// Everything that a bot was told is done or refused must be so on disk; at the end of a run also what it believes.
    pub fn look_at(&mut self, clients: &Clients, node: Option<&Node>, tick: u64, is_end: bool) {
        let Some(node) = node.filter(|_| tick.is_multiple_of(if is_end { 7 } else { CENSUS_TICKS })) else { return };
        for (at, client) in clients.all.iter().enumerate() {
            let (Some(entity), Some(trader)) = (client.bot.entity(), &client.bot.trader) else { continue };
            let told: Vec<(u64, Refusal)> = trader.told_since(self.heard.get(&at).copied().unwrap_or(0)).collect();
            *self.heard.entry(at).or_default() += told.len();
            for (operation, refusal) in told {
                let should = self.model.answer_of(entity, operation);
                let holds = match refusal {
                    // These say something of the moment in which they were given, or of other content.
                    Refusal::Unknown | Refusal::Reused | Refusal::TooOld => true,
                    // What the world refused alone never came to the ledger.
                    Refusal::Taken | Refusal::Gone if should.is_none() => true,
                    _ => should == Some(refusal),
                };
                self.demand_at(tick, holds, || {
                    format!("bot {at} was told {refusal:?} of operation {operation}, the disk says {should:?}")
                });
            }
            if is_end && trader.is_settled() {
                let difference = trader.goods.difference(&node.desk.ledger().whole(entity.number()));
                if difference.is_none() {
                    self.agreed.insert(at);
                }
            }
        }
    }

    /// After the quiet end of a run everybody plays, nobody waits, and what they believe to have they have.
    pub fn check_end(&mut self, clients: &Clients, node: &Node, tick: u64) {
        self.check_left(clients, node, tick);
        for (at, client) in clients.all.iter().enumerate() {
            self.demand_at(tick, client.session.is_some() && client.bot.plays(), || format!("bot {at} does not play"));
            let ahead = client.bot.session.ticks_ahead();
            self.demand_at(tick, ahead <= TICKS_AHEAD_MAX, || {
                format!("bot {at} is {ahead} ticks ahead of what the server runs of it")
            });
            let Some(trader) = &client.bot.trader else { continue };
            let since = trader.oldest_pending();
            let waits = since.is_some_and(|since| client.bot.tick().wrapping_sub(since) > ANSWER_TICKS_MAX);
            self.demand_at(tick, !waits, || format!("bot {at} waits for an answer since its tick {since:?}"));
            let agrees = self.agreed.contains(&at);
            self.demand_at(tick, agrees, || {
                format!("bot {at} believes to have {:?}, and has not; {}", trader.goods, trader.under_way())
            });
        }
        self.demand_at(tick, clients.malformed == 0, || format!("{} bodies could not be read", clients.malformed));
        let back = clients.went_back;
        self.demand_at(tick, back == 0, || format!("{back} own states were sent after newer ones"));
        self.demand_at(tick, clients.thefts == 0, || format!("{} used tokens were accepted", clients.thefts));
    }

    /// What the files prove by themselves.
    pub fn check_files(&mut self, disk: &MemoryDisk) {
        match check(disk, self.terms) {
            Ok(report) => {
                let breaks = report.breaks;
                self.demand_at(0, breaks.is_empty(), || format!("in the files: {breaks:?}"));
            }
            Err(error) => self.demand_at(0, false, || error.to_string()),
        }
    }

    /// Contradictions that the bots found.
    /// `late`: commands or shards were. A player then catches up at once by as much as its time credit, which is a jump.
    pub fn check_bots(&mut self, clients: &Clients, late: bool) -> u64 {
        let mut errors: [(&str, u64); 5] =
            [("jump", 0), ("twice", 0), ("never_leaves", 0), ("other", 0), ("own_position", 0)];
        for client in &clients.all {
            let (view, counts) = (client.bot.errors(), client.bot.counts);
            let found = [
                if late { 0 } else { view.jump },
                view.twice,
                view.never_leaves,
                view.other + counts.malformed,
                counts.own_position,
            ];
            errors.iter_mut().zip(found).for_each(|(error, count)| error.1 += count);
        }
        let sum = errors.iter().map(|error| error.1).sum();
        self.demand_at(0, sum == 0, || format!("bots saw {errors:?}"));
        sum
    }
}
