//! What a shard is without its kernel: sessions, world and the parcels between.
//!
//! Owns the sessions of the lanes that this shard serves and the shard's world. Promises: the same code under the ring
//! host and the sim host; everything comes in by calls and goes out by `inputs`, `keeper` and `ended`. Never does I/O,
//! reads a clock, waits.

use std::borrow::BorrowMut;
use std::collections::BTreeSet;
use std::sync::Arc;

use crate::costs::CostTable;
use crate::flight::record::{Outside, Taken};
use crate::keeper::{CharacterRow, ClaimRefusal, KeeperAnswer, KeeperCommand};
use crate::ladder::Ladder;
use crate::lanes::{LaneWord, Waiting};
use crate::limits::{
    DECREE_TICKS_MIN, EARLY_MESSAGES_MAX, FAREWELL_TICKS, KEEPER_WAITING_MAX, LANE_SESSIONS_MAX, LANE_TABLES, LANES,
    SHARDS_MAX, TCP_CONNECTIONS_MAX, TICK_HZ,
};
use crate::planted::{Bug, planted};
use crate::report::BudgetReport;
use crate::saves::keeper_command;
use crate::sessions::interest::{Radii, Scratch};
use crate::sessions::session::{BodyDrop, Outdated, Rates, Session, Sight};
use crate::wire::generated::tables::Close;
use crate::wire::goods::{Asked, GoodsNews, Settled};
use crate::wire::ids::{EntityId, SessionRef, ShardId};
use crate::wire::messages::{Response, Seam, ServerMessage, Stream, Welcome};
use crate::wire::transport::handshake::Identity;
use crate::wire::units::{CELL_M, FINE_SHIFT, GRID_PER_M};
use crate::world::effect::{Joining, PrivateEvent};
use crate::world::frame::{Frame, Frames, stale_among};
use crate::world::land::LAND_M;
use crate::world::parcel::{Input, InputKind, InputParcel, OutcomeParcel, Told};
use crate::world::{Decree, DecreeKind, World};

#[cfg(test)]
pub(crate) mod tests;

/// Sessions by which [`Core`] asks for memory before it needs it: for what every tick needs of each, for the whole of one
/// that is sent something, and for its lists.
const PULSES_AHEAD: usize = 8;
const SESSIONS_AHEAD: usize = 4;
const LISTS_AHEAD: usize = 2;

/// Where a session is on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// The keeper was asked.
    Claiming,
    /// The character was sent into the world, or stands there.
    Playing,
    /// It was told to go; the entry ends at this tick.
    Closing { until: u64 },
}

#[repr(C)]
pub(super) struct Entry {
    /// First, because it is asked most.
    pub(super) session: Session,
    /// Its place in [`Core::active`].
    pub(super) place: u32,
    identity: Identity,
    pub(super) stage: Stage,
    /// Whether anything may be sent to it: over UDP not before the keeper took its token for this session.
    may_answer: bool,
    /// Newest order that the ledger answered before this session.
    order: u64,
    /// What its client hears right after the Welcome: answers to what an earlier session asked. Bounded by
    /// [`EARLY_MESSAGES_MAX`]; a client that misses one asks again.
    early: Vec<ServerMessage>,
}

/// Sessions of one lane. It moves between shards as a whole.
#[derive(Default)]
pub(super) struct Lane {
    pub(super) entries: Vec<Option<Box<Entry>>>,
    free: Vec<u16>,
    generation: u32,
    guests: u64,
    /// Bodies in and out since it was weighed.
    bodies: u64,
    /// Bodies in since the last tick that changed something.
    heard: u32,
    /// When that was.
    weighed_tick: u64,
}

/// How a session ended, for whoever owns its transport.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ended {
    /// Which.
    pub session: SessionRef,
    /// Why.
    pub reason: Close,
    /// Whether its peer may hear of it: nothing may be sealed for a session whose token the keeper did not take.
    pub may_answer: bool,
}

/// Why nobody is admitted to a lane.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoAdmission {
    /// It has no place left, or the keeper is behind, or its disk is nearly full.
    Full,
    /// The overload ladder stands on its last step.
    Overload,
}

/// Settings that are the same for all shards.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// How far clients see.
    pub radii: Radii,
    /// How much each session may send.
    pub rates: Rates,
    /// Development mode: a token may say where its character stands.
    pub dev: bool,
    /// Named in the Welcome, in development mode.
    pub seam: Option<Seam>,
}

/// Whom [`Core::send_due`] serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Whom {
    /// Sessions whose entity is this shard's own.
    Here,
    /// All that were not served in this tick.
    Rest,
}

/// Sessions and world of one shard.
pub struct Core {
    /// The entities.
    pub world: World,
    /// What all shards show.
    pub frames: Frames,
    /// Frames of this shard: those that somebody still looks at, and those to be filled again.
    published: Vec<Arc<Frame>>,
    /// Inputs for the coming tick, by owner.
    pub inputs: Vec<InputParcel>,
    /// What the keeper must hear, in order.
    pub keeper: Vec<KeeperCommand>,
    /// Sessions that ended and whose transport may go.
    pub ended: Vec<Ended>,
    /// Bodies dropped, by reason.
    pub drops: [u64; BodyDrop::COUNT],
    /// What entered the world of this tick from outside of all shards, besides inputs: the flight record has it.
    pub outside: Vec<Outside>,
    /// The newest parcels taken from each shard.
    pub taken: Vec<Taken>,
    /// Whether the newest tick wrote rows.
    pub rows: bool,
    /// Outcome parcels that came after their tick.
    pub late_parcels: u64,
    /// Claims that the keeper refused.
    pub claims_refused: u64,
    /// Sessions that ended because news for them found no room while a shard stood still.
    pub sessions_behind: u64,
    /// What its sessions heard too late to mean anything.
    pub outdated: Outdated,
    /// Packet sequence that sessions begin with: 0; the simulator begins some just before the wrap.
    pub first_sequence: u16,
    /// Bodies in and out since the start.
    pub bodies: u64,
    /// Answers of the keeper for the sessions of each shard, in order.
    pub posts: Vec<Vec<KeeperAnswer>>,
    /// By shard, on the one that balances.
    pub costs: Vec<CostTable>,
    /// A decree that leaves with the outcomes of this tick.
    decree: Option<DecreeKind>,
    /// First tick in which the next one may leave.
    next_decree: u64,
    /// Decrees that came with outcomes; the world hears them before its next tick.
    decrees: Vec<Decree>,
    /// A degrade level that is to be decreed.
    degrade: Option<u8>,
    /// How much of it all is left out because the core does not keep up.
    pub ladder: Ladder,
    /// Whether anybody is admitted, as far as load goes.
    pub is_open: bool,
    rules: Rules,
    /// Byte budgets halved in sessions that ended.
    cuts_before: u64,
    /// Those that are here, by number.
    pub(super) lanes: Vec<Option<Lane>>,
    /// All sessions that are here; each knows its place. The last one takes the place of one that ends.
    pub(super) active: Vec<SessionRef>,
    /// Those that are due, while they are served, each with its turn.
    due: Vec<(u64, SessionRef)>,
    /// Sessions with requests that their entity did not take yet.
    pub(super) asking: Vec<SessionRef>,
    /// Ticks that have passed, by the tick whose arrivals are taken now, since the newest one stepped.
    ticks_due: u64,
    scratch: Scratch,
    /// Sessions that say farewell.
    pub(super) closing: Vec<SessionRef>,
    pub(super) joins: Vec<Joining>,
    /// Answers of the keeper that came since the last tick.
    answers: Vec<KeeperAnswer>,
    /// What came for lanes that are not here yet.
    pub(super) waiting: Vec<Waiting>,
    /// Sessions of these lanes that missed some of it.
    pub(super) behind: BTreeSet<SessionRef>,
    /// Newest decree about lanes that this shard heard.
    pub(super) lanes_known: u64,
    /// What each shard said of lanes last.
    pub(super) lane_words: Vec<LaneWord>,
    /// Answers of the ledger that the world hears in the next tick.
    settled: Vec<Settled>,
    /// Nobody is admitted while the keeper's disk is nearly full.
    disk_is_full: bool,
}

impl Core {
    /// A shard that nobody is connected to.
    pub fn new(world: World, shards: usize, rules: Rules) -> Core {
        let tick = world.tick;
        let lane = |lane: usize| (world.lanes().owner(lane as u8) == world.shard).then(Lane::default);
        let lane_word = |shard| LaneWord { known: 0, here: world.lanes().of(ShardId(shard as u8)) };
        Core {
            lanes: (0..LANE_TABLES).map(lane).collect(),
            lane_words: (0..shards).map(lane_word).collect(),
            world,
            frames: Frames::new(shards),
            published: Vec::new(),
            inputs: (0..shards).map(|_| InputParcel::default()).collect(),
            keeper: Vec::new(),
            ended: Vec::new(),
            drops: [0; BodyDrop::COUNT],
            outside: Vec::new(),
            taken: vec![Taken { inputs: tick, outcomes: tick }; shards],
            rows: true,
            late_parcels: 0,
            claims_refused: 0,
            sessions_behind: 0,
            outdated: Outdated::default(),
            first_sequence: 0,
            bodies: 0,
            posts: (0..shards).map(|_| Vec::new()).collect(),
            costs: vec![CostTable::default(); shards],
            decree: None,
            next_decree: 0,
            decrees: Vec::new(),
            degrade: None,
            ladder: Ladder::default(),
            is_open: true,
            rules,
            cuts_before: 0,
            active: Vec::new(),
            due: Vec::new(),
            asking: Vec::new(),
            ticks_due: 1,
            scratch: Scratch::default(),
            closing: Vec::new(),
            joins: Vec::new(),
            answers: Vec::new(),
            waiting: Vec::new(),
            behind: BTreeSet::new(),
            lanes_known: 0,
            settled: Vec::new(),
            disk_is_full: false,
        }
    }

    /// Number of sessions.
    pub fn sessions(&self) -> usize {
        self.active.len()
    }

    /// The session at a place below [`Core::sessions`]. When it ends the last one takes its place, so that a walk from the
    /// last place to the first meets each session once, whatever ends on the way.
    pub fn session_at(&self, place: usize) -> SessionRef {
        self.active[place]
    }

    /// Times that a public event had no place in the body of a session near it.
    pub fn events_unsent(&self) -> u64 {
        self.scratch.events_unsent
    }

    /// Number of sessions in a lane.
    pub fn lane_sessions(&self, lane: u8) -> usize {
        self.lanes[usize::from(lane)].as_ref().map_or(0, |lane| lane.entries.len() - lane.free.len())
    }

    /// Whether a lane's sessions are here.
    pub fn serves(&self, lane: u8) -> bool {
        self.lanes[usize::from(lane)].is_some()
    }

    /// What its lanes did since they were weighed last, wherever that was: number, bodies in a thousand ticks, sessions.
    pub fn weigh_lanes(&mut self) -> impl Iterator<Item = (u8, u64, u32)> {
        let tick = self.world.tick;
        self.lanes.iter_mut().enumerate().filter_map(move |(number, lane)| {
            let lane = lane.as_mut()?;
            let ticks = tick - std::mem::replace(&mut lane.weighed_tick, tick);
            let bodies = std::mem::take(&mut lane.bodies);
            let sessions = lane.entries.len() - lane.free.len();
            Some((number as u8, bodies * 1_000 / ticks.max(1), sessions as u32))
        })
    }

    /// The sessions with their clients and the last that was told of them.
    pub fn each_session(&self) -> impl Iterator<Item = (SessionRef, u64, Option<&Told>)> {
        self.active.iter().filter_map(|&reference| {
            let session = &self.entry(reference)?.session;
            Some((reference, session.client_id, session.told.as_ref()))
        })
    }

    /// Lets each session send so much from now on.
    pub fn set_rates(&mut self, rates: Rates) {
        self.rules.rates = rates;
    }

    /// The byte budgets of all sessions.
    pub fn budgets(&self) -> BudgetReport {
        // Once over all sessions: they are larger than the caches.
        let (mut cuts, mut sum, mut least) = (self.cuts_before, 0, None);
        for flow in self.active.iter().filter_map(|&reference| Some(&self.entry(reference)?.session.flow)) {
            let bytes_per_s = flow.bytes_per_s();
            cuts += flow.cuts;
            sum += u64::from(bytes_per_s);
            least = Some(least.map_or(bytes_per_s, |least: u32| least.min(bytes_per_s)));
        }
        let bytes_per_s_mean = sum.checked_div(self.active.len() as u64);
        BudgetReport { cuts, bytes_per_s_least: least, bytes_per_s_mean }
    }

    fn entry(&self, reference: SessionRef) -> Option<&Entry> {
        entry_of(&self.lanes, reference).filter(|entry| entry.session.reference == reference)
    }

    fn entry_mut(&mut self, reference: SessionRef) -> Option<&mut Entry> {
        session_entry(&mut self.lanes, reference)
    }

    /// Why nobody is admitted to a lane now, if so.
    pub fn no_admission(&self, lane: u8) -> Option<NoAdmission> {
        let most = if usize::from(lane) < LANES { LANE_SESSIONS_MAX } else { TCP_CONNECTIONS_MAX };
        let is_full = self.lane_sessions(lane) >= most;
        if is_full || !self.serves(lane) || self.keeper.len() > KEEPER_WAITING_MAX || self.disk_is_full {
            return Some(NoAdmission::Full);
        }
        (!self.is_open).then_some(NoAdmission::Overload)
    }

    /// Somebody proved who it is: gets a session, unless [`Core::no_admission`] says why not.
    pub fn admit(&mut self, lane: u8, identity: Identity, reliable_transport: bool) -> Option<SessionRef> {
        if self.no_admission(lane).is_some() {
            return None;
        }
        let table = self.lanes[usize::from(lane)].as_mut()?;
        let slot = match table.free.pop() {
            Some(slot) => slot,
            None => {
                table.entries.push(None);
                (table.entries.len() - 1) as u16
            }
        };
        table.generation += 1;
        let reference = SessionRef { lane, slot, generation: table.generation };
        let mut session = Session::new(reference, identity.client_id, reliable_transport);
        session.start_at(self.first_sequence);
        let stage = if identity.user_data.reusable { Stage::Playing } else { Stage::Claiming };
        let may_answer = reliable_transport || identity.user_data.reusable;
        let place = self.active.len() as u32;
        table.entries[usize::from(slot)] =
            Some(Box::new(Entry { session, place, identity, stage, may_answer, order: 0, early: Vec::new() }));
        self.active.push(reference);
        if identity.user_data.reusable {
            table.guests += 1;
            let id = EntityId::guest(lane, table.guests);
            self.send_into_world(reference, identity, id, None);
        } else {
            let Identity { client_id, token_mac, expires_unix_s, .. } = identity;
            let shard = self.world.shard;
            self.keeper.push(KeeperCommand::Claim { shard, session: reference, client_id, token_mac, expires_unix_s });
        }
        Some(reference)
    }

    fn send_into_world(&mut self, session: SessionRef, identity: Identity, id: EntityId, row: Option<CharacterRow>) {
        let land = self.world.land().clone();
        let row = row.filter(|row| row.saved);
        let wishes = identity.user_data;
        let (x, y) = match (wishes.spawn_point.filter(|_| self.rules.dev), row) {
            (Some((x, y)), _) => {
                let fine = |v: i32| v.clamp(0, LAND_M * GRID_PER_M - 1) << FINE_SHIFT;
                land.nearest_walkable(fine(x), fine(y))
            }
            (None, Some(row)) => land.nearest_walkable(row.x, row.y),
            (None, None) => land.random_walkable(land.seed, id, 0),
        };
        let (yaw, epoch) = row.map_or((0, 1), |row| (row.yaw, row.epoch + 1));
        let (client_id, guest, peaceful) = (identity.client_id, wishes.reusable, wishes.peaceful);
        let deeds = row.map_or(0, |row| row.deeds);
        self.joins.push(Joining { id, session, client_id, x, y, yaw, epoch, guest, peaceful, deeds });
    }

    /// The last decree is in force from this tick on.
    pub fn decreed_tick(&self) -> u64 {
        self.next_decree.saturating_sub(2)
    }

    /// Whether a decree may be made: the one before it is in force everywhere, and who it moved has arrived. An actor is
    /// looked for where the cuts say that it is, so it must not have to move twice at once.
    pub fn may_decree(&self, tick: u64) -> bool {
        tick >= self.next_decree
    }

    /// Decrees something: every shard hears it with the outcome of this tick, this one as well, and it is in force
    /// [`DECREE_TICKS_MIN`] later. Parcels are neither lost nor overtaken, so all shards hear all decrees in one order.
    pub fn decree(&mut self, kind: DecreeKind) {
        self.decree = Some(kind);
    }

    /// Decrees a degrade level as soon as no other decree leaves; a newer one takes its place.
    pub fn degrade(&mut self, level: u8) {
        self.degrade = Some(level);
    }

    /// Hears a change that no entity owns.
    pub fn hear_decree(&mut self, decree: Decree) {
        self.outside.push(Outside::Decree(decree.clone()));
        if let DecreeKind::Lanes(_) = decree.kind {
            self.lanes_known = decree.tick;
        }
        self.world.decree(decree);
    }

    /// The keeper answers. What is for a session goes in this tick to the shard that serves it, this one or another.
    pub fn hear_keeper(&mut self, answer: KeeperAnswer) {
        match answer {
            KeeperAnswer::Settled(settled) => self.settled.push(*settled),
            KeeperAnswer::Admission { open } => self.disk_is_full = !open,
            answer => self.answers.push(answer),
        }
    }

    /// Gives each answer of the keeper to the shard that serves its session.
    fn post_answers(&mut self) {
        for answer in self.answers.drain(..) {
            let lane = answer.session().expect("the others were heard").lane;
            self.posts[self.world.lanes().owner(lane).index()].push(answer);
        }
    }

    /// Hears the answers that it posted to itself.
    fn hear_own_post(&mut self) {
        let mut own = std::mem::take(&mut self.posts[self.world.shard.index()]);
        own.drain(..).for_each(|answer| self.hear_answer(answer));
        self.posts[self.world.shard.index()] = own;
    }

    /// The keeper's answer for a session came to the shard that serves it.
    pub fn hear_answer(&mut self, answer: KeeperAnswer) {
        let Some(session) = answer.session() else { unreachable!("a shard keeps what is for itself") };
        if !self.serves(session.lane) {
            self.wait_for_lane(Waiting::Answer(answer));
            return;
        }
        match answer {
            KeeperAnswer::Claimed { session, row, operation, .. } => {
                let Some(entry) = self.entry_mut(session).filter(|entry| entry.stage == Stage::Claiming) else {
                    // Released already; behind a full queue of the keeper and on a moved lane perhaps before it claimed.
                    let release = KeeperCommand::Release { client_id: row.client_id, session, row: None };
                    self.keeper.push(release);
                    return;
                };
                (entry.stage, entry.may_answer, entry.order) = (Stage::Playing, true, operation);
                entry.session.count_orders_from(operation);
                let identity = entry.identity;
                self.send_into_world(session, identity, row.entity(), Some(row));
            }
            KeeperAnswer::Refused { session, reason } => {
                self.claims_refused += 1;
                if reason == ClaimRefusal::NewerSession {
                    // Its token is spent all the same, and by nobody else.
                    self.entry_mut(session).into_iter().for_each(|entry| entry.may_answer = true);
                }
                let reason = match reason {
                    ClaimRefusal::TokenUsed => Close::TokenUsed,
                    ClaimRefusal::NewerSession => Close::NewerSession,
                    ClaimRefusal::TooMany => Close::Full,
                    ClaimRefusal::Withdrawn => return,
                };
                self.close(session, reason);
            }
            KeeperAnswer::Operation { session, operation, refusal, thing } => {
                let stream = Stream::Goods.wire();
                let response = Response { stream, number: operation, refusal, durable: true, thing };
                self.tell(session, ServerMessage::Response(response));
            }
            KeeperAnswer::Goods { session, news } => {
                if let Some(entry) = self.entry_mut(session).filter(|entry| entry.session.closing().is_none()) {
                    entry.session.tell_goods(*news);
                }
            }
            KeeperAnswer::Cut { session } => self.close(session, Close::NewerSession),
            KeeperAnswer::Settled(_) | KeeperAnswer::Admission { .. } => unreachable!("it has a session"),
        }
    }

    /// Tells a client something that is durable, once it was greeted.
    fn tell(&mut self, reference: SessionRef, message: ServerMessage) {
        // A session that ended meanwhile has nobody to hear it: the client asks again in the next one.
        let Some(entry) = self.entry_mut(reference).filter(|entry| entry.session.closing().is_none()) else { return };
        if entry.session.told.is_none() {
            if entry.early.len() < EARLY_MESSAGES_MAX {
                entry.early.push(message);
            }
        } else if !entry.session.tell(&message) {
            self.close(reference, Close::Slow);
        }
    }

    /// What arrives from here on is for this tick.
    pub fn receive_for(&mut self, tick: u64) {
        self.ticks_due = tick.saturating_sub(self.world.tick);
    }

    /// Whether more is read of a session's stream in this tick.
    pub fn has_room(&self, reference: SessionRef) -> bool {
        self.entry(reference).is_none_or(|entry| entry.session.has_room((self.world.tick, self.ticks_due)))
    }

    /// A body of a session came.
    pub fn handle_body(&mut self, reference: SessionRef, body: &[u8]) {
        let Core { world, lanes, inputs, drops, asking, bodies, ticks_due, outdated, .. } = self;
        let Some(lane) = lanes.get_mut(usize::from(reference.lane)).and_then(Option::as_mut) else { return };
        (lane.bodies, *bodies) = (lane.bodies + 1, *bodies + 1);
        let entry = lane.entries.get_mut(usize::from(reference.slot));
        let Some(entry) = entry.and_then(Option::as_deref_mut) else { return };
        assert_eq!(entry.session.reference, reference, "a transport knows its session's end");
        let was_asking = entry.session.is_asking();
        let taken = entry.session.handle_body(body, (world.tick, *ticks_due), inputs, |drop| drops[drop.index()] += 1);
        match taken {
            Ok(()) => {
                lane.heard += 1;
                entry.session.turn = world.tick << 32 | u64::from(lane.heard);
            }
            Err(reason) => drops[reason.index()] += 1,
        }
        outdated.absorb(entry.session.take_outdated());
        if entry.session.is_asking() && !was_asking {
            asking.push(reference);
        }
    }

    /// Tells a session why it must go; its transport hears of it some ticks later.
    pub fn close(&mut self, reference: SessionRef, reason: Close) {
        let Some(entry) = self.entry_mut(reference) else { return };
        if entry.session.closing().is_none() {
            entry.session.close(reason);
            self.part(reference);
        }
    }

    /// A session was told why it must go: what it held is freed.
    fn part(&mut self, reference: SessionRef) {
        let tick = self.world.tick;
        let Some(entry) = self.entry_mut(reference) else { return };
        let until = if entry.may_answer { tick + FAREWELL_TICKS } else { tick };
        let before = std::mem::replace(&mut entry.stage, Stage::Closing { until });
        self.closing.push(reference);
        self.let_go(reference, before);
    }

    /// Tells every session why it must go.
    pub fn close_all(&mut self, reason: Close) {
        for at in 0..self.active.len() {
            self.close(self.active[at], reason);
        }
    }

    /// Whether anything may be sent to a session.
    pub fn may_answer(&self, reference: SessionRef) -> bool {
        self.entry(reference).is_some_and(|entry| entry.may_answer)
    }

    /// The transport of a session is gone.
    pub fn hang_up(&mut self, reference: SessionRef) {
        let Some(entry) = self.entry(reference) else { return };
        let stage = entry.stage;
        self.let_go(reference, stage);
        self.forget(reference);
    }

    /// Frees what a session held: its claim, or its entity.
    fn let_go(&mut self, reference: SessionRef, stage: Stage) {
        let entry = self.entry(reference).expect("the caller found it");
        let (client_id, told, guest) = (entry.session.client_id, entry.session.told, entry.identity.user_data.reusable);
        match (stage, told) {
            (Stage::Claiming, _) => {
                self.keeper.push(KeeperCommand::Release { client_id, session: reference, row: None })
            }
            (Stage::Playing, Some(told)) => self.push_leave(&told),
            (Stage::Playing, None) => {
                // Not sent into the world yet, or on its way there: then the first Told finds nobody, and it leaves.
                let waiting = self.joins.len();
                self.joins.retain(|joining| joining.session != reference);
                if self.joins.len() < waiting && !guest {
                    self.keeper.push(KeeperCommand::Release { client_id, session: reference, row: None });
                }
            }
            (Stage::Closing { .. }, _) => (),
        }
    }

    fn push_leave(&mut self, told: &Told) {
        let input = Input { entity: EntityId(told.state.entity()), session: told.session, kind: InputKind::Leave };
        self.inputs[told.next_owner.index()].inputs.push(input);
    }

    fn forget(&mut self, reference: SessionRef) {
        let lane = self.lanes[usize::from(reference.lane)].as_mut().expect("the session is here");
        let entry = lane.entries[usize::from(reference.slot)].take().expect("the caller found it");
        self.cuts_before += entry.session.flow.cuts;
        lane.free.push(reference.slot);
        self.deactivate(entry.place as usize);
    }

    /// Takes out of `active` what stands at a place. A sweep may end thousands of sessions: none of them moves the rest.
    pub(super) fn deactivate(&mut self, place: usize) {
        self.active.swap_remove(place);
        if let Some(&moved) = self.active.get(place) {
            self.entry_mut(moved).expect("active sessions are in their lanes").place = place as u32;
        }
    }

    /// Before the input parcels leave: what sessions repeat until their entity named it, and who joins. From here on all
    /// that enters the world in this tick is in `inputs` and `outside`.
    pub fn pass_requests(&mut self) {
        for decree in std::mem::take(&mut self.decrees) {
            self.hear_decree(decree);
        }
        let mut asking = std::mem::take(&mut self.asking);
        asking.retain(|&reference| {
            let Core { lanes, inputs, .. } = self;
            // One that hung up meanwhile is gone, and one that goes asks for nothing.
            let Some(entry) = session_entry(lanes, reference).filter(|entry| entry.session.closing().is_none()) else {
                return false;
            };
            entry.session.pass_requests(inputs);
            let (asks, goes) = (entry.session.is_asking(), entry.session.closing().is_some());
            if goes {
                self.part(reference);
            }
            asks && !goes
        });
        self.asking = asking;
        self.outside.extend(self.joins.iter().copied().map(Outside::Join));
        self.outside.extend(self.settled.iter().copied().map(Outside::Settled));
    }

    /// First part of the step.
    pub fn begin(&mut self, tick: u64) {
        self.world.begin(tick, &self.frames);
        for joining in self.joins.drain(..) {
            self.world.send_join(joining, &self.frames);
        }
        for settled in self.settled.drain(..) {
            self.world.settled(&settled, &self.frames);
        }
        self.outside.clear();
        self.post_answers();
    }

    /// Takes the inputs of one shard.
    pub fn take_inputs(&mut self, from: ShardId, parcel: &InputParcel) {
        self.taken[from.index()].inputs = parcel.tick;
        self.world.take_inputs(parcel, &self.frames);
    }

    /// Second part of the step: players, and the rows that the keeper gets.
    pub fn play(&mut self) {
        let shard = self.world.shard;
        self.rows = self.keeper.len() < KEEPER_WAITING_MAX;
        self.world.play(self.rows, &self.frames);
        // Goods first: what a row says may depend on them, and never the other way round.
        self.keeper.extend(self.world.orders.drain(..).map(|order| KeeperCommand::Order(Asked { shard, order })));
        for save in self.world.saves.drain(..) {
            self.keeper.extend(keeper_command(&save));
        }
    }

    /// Third part of the step: what everybody sees of it, and each shard's part of its outcome. The frame is one that
    /// nobody looks at any more; a new one while others are slow to let go.
    pub fn publish(&mut self, outs: &mut [impl BorrowMut<OutcomeParcel>]) {
        let free = self.published.iter().position(|frame| Arc::strong_count(frame) == 1);
        let mut frame = free.map_or_else(Arc::default, |at| self.published.swap_remove(at));
        self.world.publish(Arc::get_mut(&mut frame).expect("a free frame is nobody's"), outs);
        outs.iter_mut().for_each(|out| out.borrow_mut().frame = Some(frame.clone()));
        self.published.push(frame);
        let tick = self.world.tick + DECREE_TICKS_MIN;
        // A level moves nobody: the next decree need not wait for it.
        self.next_decree = if self.decree.is_some() { tick + 2 } else { self.next_decree };
        let kind = self.decree.take().or_else(|| self.degrade.take().map(DecreeKind::Degrade));
        let decree = kind.map(|kind| Decree { tick, kind });
        // What is still here for others went by older decrees.
        let all_posted =
            self.posts.iter().enumerate().all(|(to, post)| to == self.world.shard.index() || post.is_empty());
        let lanes_known = if all_posted { self.lanes_known } else { 0 };
        let lanes_here = self.lanes_here();
        for out in outs.iter_mut().map(BorrowMut::borrow_mut) {
            out.decrees.extend(decree.clone());
            (out.lanes_known, out.lanes_here) = (lanes_known, lanes_here);
        }
    }

    /// Takes the outcome of a tick from a shard, this one included.
    pub fn hear(&mut self, parcel: &mut OutcomeParcel) {
        self.late_parcels += u64::from(parcel.tick < self.world.tick);
        self.taken[parcel.shard.index()].outcomes = parcel.tick;
        self.world.arrive(parcel);
        self.decrees.append(&mut parcel.decrees);
        if parcel.weighed {
            let table = &mut self.costs[parcel.shard.index()];
            table.tick = parcel.tick;
            std::mem::swap(&mut table.cells, &mut parcel.costs);
            std::mem::swap(&mut table.lanes, &mut parcel.lane_costs);
        }
        self.lane_words[parcel.shard.index()] = LaneWord { known: parcel.lanes_known, here: parcel.lanes_here };
        if let Some(frame) = parcel.frame.take() {
            self.frames.push(frame);
        }
        for (at, &told) in parcel.told.iter().enumerate() {
            if let Some(ahead) = parcel.told.get(at + PULSES_AHEAD) {
                entry_of(&self.lanes, ahead.session).inspect(|entry| entry.session.prefetch_pulse());
            }
            self.hear_told(told, parcel.shard, parcel.tick);
        }
        parcel.told.clear();
        parcel.private.drain(..).for_each(|event| self.hear_private(event));
        std::mem::take(&mut parcel.behind).into_iter().for_each(|session| self.fall_behind(session));
        if parcel.shard == self.world.shard {
            self.hear_own_post();
        }
    }

    pub(super) fn hear_private(&mut self, event: PrivateEvent) {
        if !self.serves(event.session.lane) {
            self.wait_for_lane(Waiting::Word(event));
            return;
        }
        let kept = self.entry_mut(event.session).is_none_or(|entry| entry.session.hear_word(event.number, event.word));
        if !kept {
            self.close(event.session, Close::Slow);
        }
    }

    fn hear_told(&mut self, told: Told, by: ShardId, tick: u64) {
        if !self.serves(told.session.lane) && !planted(Bug::ToldOnTheWay) {
            // The lane is on its way, with the session perhaps: it is told again in the next tick.
            return;
        }
        let Some(entry) = self.entry_mut(told.session) else {
            // Nobody is there any more for whom it would play.
            self.push_leave(&told);
            return;
        };
        if entry.session.hear(told, by, tick) {
            let client_id = entry.session.client_id;
            if entry.session.closing().is_some() {
                self.push_leave(&told);
                return;
            }
            let order = entry.order;
            let early = std::mem::take(&mut entry.early);
            let welcome = self.welcome(&told, client_id, tick, order);
            let entry = self.entry_mut(told.session).expect("it just heard");
            let kept = entry.session.greet(&welcome) && early.iter().all(|message| entry.session.tell(message));
            assert!(kept, "the first messages, {EARLY_MESSAGES_MAX} at the most, find an empty channel");
            entry.session.tell_goods(GoodsNews::default());
        } else if entry.session.closing().is_some() {
            self.push_leave(&told);
        }
    }

    fn welcome(&self, told: &Told, client_id: u64, tick: u64, order: u64) -> ServerMessage {
        let metres = |grid: i32| (grid / GRID_PER_M) as u32;
        ServerMessage::Welcome(Welcome {
            entity: EntityId(told.state.entity()),
            client_id,
            tick,
            tick_hz: TICK_HZ as u16,
            send_hz: self.rules.rates.send_hz as u16,
            land_seed: self.world.land().seed,
            land_size_m: LAND_M as u32,
            cell_size_m: CELL_M as u32,
            enter_radius_m: metres(self.rules.radii.enter),
            leave_radius_m: metres(self.rules.radii.leave),
            seam: self.rules.seam,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            order,
        })
    }

    /// Serves the sessions that are due: calls `send` with each one and a function that writes its body. Who was heard
    /// first is served first, as far as the order within a lane tells: it waited longest.
    pub fn send_due(&mut self, whom: Whom, mut send: impl FnMut(SessionRef, &mut dyn FnMut(&mut [u8]) -> usize)) {
        self.frames.note_silent(self.world.shard);
        let Some(tick) = self.frames.complete_tick(self.world.shard) else { return };
        let (now_tick, shard) = (self.world.tick, self.world.shard);
        let Core { frames, lanes, active, due, rules, ladder, scratch, bodies, .. } = self;
        let none = Frame::default();
        let mut shown = [&none; SHARDS_MAX];
        let mut count = 0;
        for (place, frame) in shown.iter_mut().zip(frames.shown_at(tick)) {
            *place = frame;
            count += 1;
        }
        let (send_hz, pace) = (ladder.step().send_hz(rules.rates.send_hz), ladder.step().pace());
        let rates = Rates { send_hz, ..rules.rates };
        let sight = Sight {
            frames,
            shown: &shown[..count],
            tick,
            stale: stale_among(&shown[..count], tick),
            radii: rules.radii,
            pace,
            rates,
        };
        due.reserve(active.len());
        for (at, &reference) in active.iter().enumerate() {
            if let Some(ahead) = active.get(at + PULSES_AHEAD) {
                entry_of(lanes, *ahead).inspect(|entry| entry.session.prefetch_pulse());
            }
            let entry = entry_of(lanes, reference).expect("active sessions are in their lanes");
            let session = &entry.session;
            let here = session.told_by == shard && session.told_tick == now_tick;
            let is_due = (whom == Whom::Rest || here) && session.is_due(now_tick, send_hz);
            if is_due && session.may_show(tick, sight.stale) && entry.may_answer {
                due.push((session.turn, reference));
            }
        }
        due.sort_unstable_by_key(|&(turn, _)| turn);
        for (at, &(_, reference)) in due.iter().enumerate() {
            if let Some((_, ahead)) = due.get(at + SESSIONS_AHEAD) {
                entry_of(lanes, *ahead).inspect(|entry| entry.session.prefetch());
            }
            if let Some((_, ahead)) = due.get(at + LISTS_AHEAD) {
                entry_of(lanes, *ahead).inspect(|entry| entry.session.prefetch_lists());
            }
            let (lane, session) = lane_and_session(lanes, reference);
            (*lane, *bodies) = (*lane + 1, *bodies + 1);
            send(reference, &mut |out| session.write_body(now_tick, &sight, scratch, out));
        }
        due.clear();
    }

    /// After the sends: sessions whose farewell is over end.
    pub fn end_tick(&mut self) {
        let tick = self.world.tick;
        self.lanes.iter_mut().flatten().for_each(|lane| lane.heard = 0);
        let mut closing = std::mem::take(&mut self.closing);
        closing.retain(|&session| {
            // One that hung up meanwhile is gone.
            let Some(entry) = self.entry(session) else { return false };
            let (Stage::Closing { until }, Some(reason)) = (entry.stage, entry.session.closing()) else {
                unreachable!("it was told to go")
            };
            if tick >= until {
                let may_answer = entry.may_answer;
                self.ended.push(Ended { session, reason, may_answer });
                self.forget(session);
            }
            tick < until
        });
        self.closing = closing;
    }
}

/// What stands at the place of a session, whoever's it is now.
fn entry_of(lanes: &[Option<Lane>], reference: SessionRef) -> Option<&Entry> {
    let lane = lanes.get(usize::from(reference.lane))?.as_ref()?;
    lane.entries.get(usize::from(reference.slot))?.as_deref()
}

/// The entry of a session, unless it ended.
fn session_entry(lanes: &mut [Option<Lane>], reference: SessionRef) -> Option<&mut Entry> {
    let lane = lanes.get_mut(usize::from(reference.lane))?.as_mut()?;
    let entry = lane.entries.get_mut(usize::from(reference.slot))?.as_deref_mut()?;
    (entry.session.reference == reference).then_some(entry)
}

/// A session that is here, and the count of its lane's bodies.
fn lane_and_session(lanes: &mut [Option<Lane>], reference: SessionRef) -> (&mut u64, &mut Session) {
    let lane = lanes[usize::from(reference.lane)].as_mut().expect("the lanes of active sessions are here");
    let entry = lane.entries[usize::from(reference.slot)].as_deref_mut();
    (&mut lane.bodies, &mut entry.expect("active sessions are in their lanes").session)
}
