//! The players of a run and the network between them and the realm.
//!
//! Owns every bot with its transport. Promises: what a bot was told is remembered over all of its sessions, so that it
//! can be held against what is there; a body that is lost, doubled or late is so by the plan alone. A bot whose session
//! ended comes back.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::faults::{Fault, Faults, Feature, Meeting, Plan};
use super::node::Node;
use super::quirks::Quirk;
use super::{BOTS_AT_A_BORDER, QUIET_TICKS, SimConfig, SimScenario};
use crate::bots::trader::Trader;
use crate::bots::{Bot, Crossing, Haunt};
use crate::limits::{BODY_BYTES_MAX, LANES, TICK_HZ};
use crate::wire::body::{BodyReader, kind};
use crate::wire::client::ClientOptions;
use crate::wire::generated::structs;
use crate::wire::ids::{EntityId, SessionRef};
use crate::wire::transport::handshake::Identity;
use crate::wire::transport::token::UserData;
use crate::wire::units::GRID_PER_M;
use crate::world::land::Land;

/// Ticks that a body is under way.
const NETWORK_TICKS: u64 = 1;
/// Ticks between two bodies of a bot.
const INPUT_TICKS: u64 = 2;
/// Most ticks that a body comes later than others.
const LATE_TICKS_MAX: u32 = 12;
/// Ticks until a bot whose session ended comes back, at the least.
const REJOIN_TICKS: u64 = 20;
/// One in how many ticks a session hangs up whose lane moved while it claims, where sessions hang up at all.
const HANG_UP_CHANCES: u32 = 4;
/// Ticks that a body waits at the most before a narrow link; a longer queue drops it.
const LINK_QUEUE_TICKS: u64 = 18;
/// Ticks without a word from the server after which a bot gives its session up.
const SILENT_TICKS: u64 = 180;
/// Ticks without a body after which a client does not judge its view.
const GAP_TICKS: u64 = 30;
/// Ticks of bodies after such a gap by which all that is near was updated.
const SETTLED_TICKS: u64 = 120;

/// One bot and its transport.
pub struct Client {
    /// The brain.
    pub bot: Bot,
    /// It decodes what it is shown.
    pub looks: bool,
    /// What is odd about it.
    pub quirk: Quirk,
    lane: u8,
    /// Shard that admitted its session.
    admitted_by: usize,
    /// Ticks of the newest own state that the server sent in this session, and of the newest command in it.
    own_sent: Option<(u32, u32)>,
    /// Its session, while it has one.
    pub session: Option<SessionRef>,
    /// Bodies from the server with their ticks of arrival.
    down: VecDeque<(u64, Vec<u8>)>,
    /// Bodies to the server, likewise.
    up: VecDeque<(u64, Vec<u8>)>,
    /// Tokens that it used; each is a newer one.
    tokens: u64,
    /// It comes with a token that was used.
    stolen: bool,
    /// First tick in which it asks for a session.
    join_at: u64,
    heard_at: u64,
    /// First tick after the last gap in them.
    heard_since: u64,
    handoffs: u64,
    /// Bytes that wait before its link, in 1/60, as of the tick.
    queued: (u64, u64),
}

/// All players.
pub struct Clients {
    /// By number.
    pub all: Vec<Client>,
    by_session: HashMap<SessionRef, usize>,
    /// Bodies that the server sent and nobody could read.
    pub malformed: u64,
    /// Tokens that were accepted twice.
    pub thefts: u64,
    /// Own states that were sent after newer ones.
    pub went_back: u64,
    /// Last tick in which anybody hangs up by itself.
    restless_until: u64,
    /// Bytes a second of each player's link from the server, where it is narrow.
    link: Option<u32>,
    /// Bodies that narrow links dropped.
    pub link_drops: u64,
}

impl Clients {
    /// The players of a run, none of them connected.
    pub fn new(config: SimConfig, haunts: &[Crossing], land: &Arc<Land>) -> Clients {
        let all = (0..config.bots).map(|number| Client::new(config, number, haunts, land)).collect();
        Clients {
            all,
            by_session: HashMap::new(),
            malformed: 0,
            thefts: 0,
            went_back: 0,
            restless_until: config.end_tick().saturating_sub(QUIET_TICKS),
            link: config.link,
            link_drops: 0,
        }
    }

    /// The process ended: every session with it. Some come back with the token by which they played.
    pub fn lose_all(&mut self, tick: u64) {
        self.by_session.clear();
        for (at, client) in self.all.iter_mut().enumerate() {
            let played = client.session.is_some() && client.bot.plays();
            client.lose(tick + at as u64 / 8);
            client.stolen = played && (at as u64 + tick).is_multiple_of(4);
        }
    }

    /// Sessions that the server ended.
    pub fn hear_ends(&mut self, node: &mut Node, tick: u64) {
        for core in &mut node.cores {
            while let Some(ended) = core.ended.pop() {
                let Some(at) = self.by_session.remove(&ended.session) else { continue };
                if self.all[at].session == Some(ended.session) {
                    self.all[at].lose(tick);
                }
            }
        }
    }

    /// Bots join, act and send; what is due arrives.
    pub fn up(&mut self, node: &mut Node, plan: &mut Plan, tick: u64) {
        for at in 0..self.all.len() {
            let client = &mut self.all[at];
            // What comes for a lane on its way waits in its socket, and so does who wants to go.
            let server = node.server_of(client.lane);
            let is_silent = client.session.is_some() && client.heard_at + SILENT_TICKS < tick;
            let is_claiming = client.session.is_some() && !client.bot.plays();
            let on_the_way = is_claiming && server.is_some_and(|shard| shard != client.admitted_by);
            let forgets = client.quirk.goes(at, tick) && tick < self.restless_until;
            let hangs_up = client.session.is_some()
                && (forgets
                    || plan.strikes(Fault::HangUp, tick)
                    || (on_the_way && plan.strikes_once_in(HANG_UP_CHANCES, Fault::HangUp, tick)));
            let goes = is_silent || hangs_up;
            if let (true, Some(session), Some(shard)) = (goes, client.session, server) {
                plan.meet(Meeting::ClaimEndsOnMovedLane, on_the_way.into());
                self.by_session.remove(&session);
                node.cores[shard].hang_up(session);
                client.lose(tick);
            }
            let plays = client.session.is_some() && client.bot.plays();
            if plays && plan.strikes(Fault::SecondSession, tick) {
                // The same player connects again, from somewhere else, and forgets the first session.
                client.lose(0);
                client.stolen = plan.draw(4) == 0;
            }
            let serving = server.filter(|&shard| node.runs(shard, tick));
            if let Some(shard) = serving.filter(|_| client.session.is_none() && tick > client.join_at) {
                self.join(at, shard, node, tick);
            }
            let client = &mut self.all[at];
            let due = client.up.partition_point(|&(due, _)| due <= tick);
            if let Some(shard) = serving {
                node.cores[shard].receive_for(tick);
                for (_, body) in client.up.drain(..due) {
                    client.session.iter().for_each(|&session| node.cores[shard].handle_body(session, &body));
                }
            }
            if client.session.is_some() {
                let client_ticks = if tick < self.restless_until { client.quirk.client_ticks(tick) } else { 1 };
                (0..client_ticks).for_each(|_| client.bot.want(tick));
                if client.bot.plays() {
                    client.bot.act();
                    plan.note(Feature::Move, tick);
                }
                if client_ticks > 0 && (tick + at as u64).is_multiple_of(INPUT_TICKS) {
                    let mut out = [0; BODY_BYTES_MAX];
                    let length = client.bot.session.poll_body(tick as u32, 0, &mut out);
                    travel(&mut client.up, plan, tick, 0, &client.quirk.spoil(&out[..length]));
                }
            }
        }
    }

    fn join(&mut self, at: usize, shard: usize, node: &mut Node, tick: u64) {
        let client = &mut self.all[at];
        client.tokens += u64::from(!client.stolen);
        let identity = client.identity(at);
        let Some(session) = node.cores[shard].admit(client.lane, identity, false) else {
            client.join_at = tick + REJOIN_TICKS;
            return;
        };
        (client.session, client.heard_at, client.admitted_by) = (Some(session), tick, shard);
        self.by_session.insert(session, at);
    }

    /// A body for a session leaves the server.
    pub fn send(&mut self, plan: &mut Plan, tick: u64, session: SessionRef, body: &[u8]) {
        // A session that its client forgot is served until it is cut.
        let Some(&at) = self.by_session.get(&session) else { return };
        let client = &mut self.all[at];
        if client.session != Some(session) {
            return;
        }
        self.went_back += u64::from(!client.goes_on(body));
        match self.link.map_or(Some(0), |link| client.squeeze(tick, link.into(), body.len() as u64)) {
            Some(waits) => travel(&mut client.down, plan, tick, waits, body),
            None => self.link_drops += 1,
        }
    }

    /// What is due arrives at the bots, and is checked by them.
    pub fn down(&mut self, plan: &mut Plan, tick: u64) {
        for client in &mut self.all {
            while client.down.front().is_some_and(|&(due, _)| due <= tick) {
                let (_, body) = client.down.pop_front().expect("it is there");
                if tick > client.heard_at + GAP_TICKS {
                    client.heard_since = tick;
                }
                client.heard_at = tick;
                let played = client.bot.plays();
                self.malformed += u64::from(client.bot.hear(&body, |_| ()).is_err());
                if !played && client.bot.plays() {
                    plan.note(Feature::Join, tick);
                    self.thefts += u64::from(client.stolen);
                }
            }
            if client.bot.counts.handoffs > client.handoffs {
                client.handoffs = client.bot.counts.handoffs;
                plan.note(Feature::Handoff, tick);
            }
            // Who hears nothing, or again for a moment only, cannot tell what should have left its view.
            let hears = tick <= client.heard_at + GAP_TICKS && tick >= client.heard_since + SETTLED_TICKS;
            if tick.is_multiple_of(60) && client.bot.plays() && hears {
                client.bot.check_view(tick as u32);
            }
        }
    }

    /// Tells the bots of each pair who the other is, what lies about, and whether to begin anything new.
    pub fn introduce(&mut self, things: &[(EntityId, (i32, i32))], rests: bool) {
        for pair in self.all.chunks_exact_mut(2) {
            let ids = [pair[0].bot.entity(), pair[1].bot.entity()];
            (pair[0].bot.friend, pair[1].bot.friend) = (ids[1], ids[0]);
            for client in pair {
                if let Some(trader) = &mut client.bot.trader {
                    let known = trader.things.get_or_insert_default();
                    known.clear();
                    known.extend_from_slice(things);
                    trader.rests = rests;
                }
            }
        }
    }
}

impl Client {
    fn new(config: SimConfig, number: u64, haunts: &[Crossing], land: &Arc<Land>) -> Client {
        let place = haunts[(number / BOTS_AT_A_BORDER) as usize % haunts.len()];
        let offset = (number % BOTS_AT_A_BORDER) as i32 / 2 * 3 * GRID_PER_M;
        let haunt = match config.scenario {
            SimScenario::Seam | SimScenario::Trade => Haunt::Border(Crossing { along: place.along + offset, ..place }),
            SimScenario::Crowd => Haunt::Disc { centre: haunts[0].position(0), radius: 30 * GRID_PER_M },
        };
        // One bot in eight looks at what it is shown, one in two where something goes wrong; the others only make the
        // server show it.
        let looks_one_in = if config.faults == Faults::None { 8 } else { 2 };
        let looks = number.is_multiple_of(looks_one_in) || config.scenario == SimScenario::Crowd;
        let options = ClientOptions { packed: number % 16 != 8, decode: looks, reliable_transport: false };
        let mut bot = Bot::new(config.seed, number, haunt, Some(land.clone()), options);
        if config.scenario == SimScenario::Trade {
            let mut trader = Trader::new(config.seed, number);
            trader.things = Some(Vec::new());
            bot.trader = Some(trader);
        }
        bot.near_wraps = config.is_near_wraps();
        bot.skips_ticks = config.is_near_wraps() && config.faults == Faults::None;
        bot.begin();
        Client {
            bot,
            looks,
            quirk: Quirk::of(number, config.faults != Faults::None, config.scenario == SimScenario::Trade),
            admitted_by: 0,
            own_sent: None,
            lane: (number % LANES as u64) as u8,
            session: None,
            down: VecDeque::new(),
            up: VecDeque::new(),
            tokens: 0,
            stolen: false,
            join_at: config.first_tick() + number / 8,
            heard_at: 0,
            heard_since: 0,
            handoffs: 0,
            queued: (0, 0),
        }
    }

    /// Whether a body that the server sends goes on where the one before it was: no own state goes back in time.
    fn goes_on(&mut self, body: &[u8]) -> bool {
        let Ok((_, mut sections)) = BodyReader::server(body) else { return true };
        let own = sections.find(|section| section.kind == kind::OWN_STATE);
        let Some(own) = own.and_then(|section| section.bytes.try_into().ok()).map(structs::OwnState) else {
            return true;
        };
        let now = (own.tick(), own.applied());
        let before = self.own_sent.replace(now).unwrap_or(now);
        now.0.wrapping_sub(before.0) as i32 >= 0 && now.1.wrapping_sub(before.1) as i32 >= 0
    }

    /// Ticks that a body waits before a link of so many bytes a second; none when the queue is full.
    fn squeeze(&mut self, tick: u64, bytes_per_s: u64, bytes: u64) -> Option<u64> {
        let (before, queued) = self.queued;
        let queued = queued.saturating_sub((tick - before) * bytes_per_s);
        let waits = queued / bytes_per_s;
        let fits = waits < LINK_QUEUE_TICKS;
        self.queued = (tick, if fits { queued + bytes * TICK_HZ } else { queued });
        fits.then_some(waits)
    }

    /// The session is over for the client; it comes back later.
    fn lose(&mut self, tick: u64) {
        (self.session, self.stolen, self.own_sent) = (None, false, None);
        self.up.clear();
        self.down.clear();
        self.join_at = tick + REJOIN_TICKS;
        self.handoffs = self.bot.counts.handoffs;
        self.bot.reconnect();
        if self.quirk == Quirk::Forget {
            self.bot.trader.iter_mut().for_each(Trader::forget);
        }
    }

    fn identity(&self, number: usize) -> Identity {
        let spawn_point = (self.tokens == 1).then(|| self.bot.spawn_point());
        let user_data = UserData { spawn_point, peaceful: true, reusable: false };
        let mut token_mac = [0; 16];
        token_mac[..8].copy_from_slice(&(number as u64).to_le_bytes());
        token_mac[8..].copy_from_slice(&self.tokens.to_le_bytes());
        let expires_unix_s = u64::MAX / 2 + self.tokens;
        Identity { client_id: number as u64 + 1, user_data, token_mac, expires_unix_s, timeout_s: 10 }
    }
}

/// A body goes on its way: lost, late or twice as the plan says.
fn travel(way: &mut VecDeque<(u64, Vec<u8>)>, plan: &mut Plan, tick: u64, waits: u64, body: &[u8]) {
    let mut due = tick + NETWORK_TICKS + waits;
    if plan.strikes(Fault::Reorder, tick) {
        due += u64::from(1 + plan.draw(LATE_TICKS_MAX));
    }
    let twice = plan.strikes(Fault::Duplicate, tick);
    if plan.strikes(Fault::Loss, tick) {
        return;
    }
    let mut put = |due: u64| {
        let at = way.partition_point(|&(other, _)| other <= due);
        way.insert(at, (due, body.to_vec()));
    };
    put(due);
    if twice {
        put(due + 2);
    }
}
