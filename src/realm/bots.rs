//! Bots: what a player would do, and a check of everything that the server tells.
//!
//! Owns one client session and the will of its player. Promises: the same brain and the same checks in the sim host and
//! in the swarm over real sockets; what a bot wants is a function of its seed, its client tick and its own state alone,
//! never of what else it sees, so that a run repeats. Never does I/O.

pub mod trader;

use std::sync::Arc;

use crate::bots::trader::{Deal, Trader};
use crate::wire::body::BodyError;
use crate::wire::client::view::Errors;
use crate::wire::client::{BodySummary, ClientOptions, ClientSession};
use crate::wire::generated::structs;
use crate::wire::generated::tables::{Close, Refusal};
use crate::wire::ids::{EntityId, IdClass};
use crate::wire::messages::{Request, Response, ServerMessage, Stream, Welcome};
use crate::wire::units::{FINE_PER_M, FINE_SHIFT, GRID_PER_M};
use crate::world::goods::PICK_UP_REACH;
use crate::world::land::{LAND_M, Land, Tile};
use crate::world::movement::{BUTTON_JUMP, BUTTON_RUN, Command, Motion};
use crate::world::random::{below, random};
use crate::world::trig::{cos_sin, direction};

/// Client ticks without half a metre of progress after which a bot tries another way.
const STUCK_TICKS: u32 = 30;
/// Client ticks that it then tries.
const DETOUR_TICKS: u32 = 60;
/// Client ticks between two actions.
const ACTION_TICKS: u32 = 64;

/// Packet sequence that a bot near the wraps begins with.
pub const SEQUENCE_NEAR_WRAP: u16 = 0xff80;
/// Commands of a session before which a bot near the wraps skips client ticks: a server takes what is less than half of
/// all ticks ahead.
const SKIPS_AT: [u32; 2] = [30, 60];
/// Ticks that it skips: after the second time there are some 500 left.
const SKIP_TICKS: u32 = 0x7fff_ff00;

/// A piece of border that a bot crosses: positions in 1/256 m.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Crossing {
    /// The border runs north.
    pub upright: bool,
    /// Where the border is, east (or north).
    pub line: i32,
    /// Where the bot stands along it.
    pub along: i32,
    /// How far to each side it goes.
    pub reach: i32,
}

impl Crossing {
    /// A position `across` the border, east and north.
    pub fn position(&self, across: i32) -> (i32, i32) {
        let (a, b) = (self.line + across, self.along);
        if self.upright { (a, b) } else { (b, a) }
    }
}

/// A disc that walks once, in a straight line, and then stays. Positions in 1/256 m.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct March {
    /// Its middle before it walks, east and north.
    pub from: (i32, i32),
    /// Its middle after it.
    pub to: (i32, i32),
    /// Radius.
    pub radius: i32,
    /// Client tick in which it begins to walk.
    pub begin_tick: u32,
    /// Client ticks that it walks.
    pub ticks: u32,
}

impl March {
    /// Its middle in a client tick.
    pub fn centre(&self, tick: u32) -> (i32, i32) {
        let done = i64::from(tick.saturating_sub(self.begin_tick).min(self.ticks));
        let at = |from: i32, to: i32| from + (i64::from(to - from) * done / i64::from(self.ticks)) as i32;
        (at(self.from.0, self.to.0), at(self.from.1, self.to.1))
    }
}

/// Where a bot lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Haunt {
    /// Anywhere.
    Land,
    /// A disc: middle and radius, 1/256 m.
    Disc {
        /// East and north.
        centre: (i32, i32),
        /// Radius.
        radius: i32,
    },
    /// A border.
    Border(Crossing),
    /// A crowd that walks from one place to another.
    March(March),
}

/// What became of a bot, for the report.
#[derive(Clone, Copy, Default, Debug)]
pub struct BotCounts {
    /// Own states that did not match the movement code.
    pub own_position: u64,
    /// Rises of the owner epoch.
    pub handoffs: u64,
    /// Horizontal way, metres.
    pub moved_m: f64,
    /// Bodies taken.
    pub bodies: u64,
    /// Bodies that do not parse.
    pub malformed: u64,
    /// Requests of the stream `World` that were done.
    pub acted: u64,
    /// Likewise, refused.
    pub refused: u64,
    /// Public events seen.
    pub events: u64,
    /// Commands that it forgot before it heard that they were applied.
    pub forgotten: u64,
    /// Sessions after the first.
    pub reconnects: u64,
}

/// One player.
pub struct Bot {
    /// Its session.
    pub session: ClientSession,
    /// What became of it.
    pub counts: BotCounts,
    /// Why the server ended the session, if it did.
    pub closed: Option<Close>,
    /// Whom it waves at and trades with.
    pub friend: Option<EntityId>,
    /// What it does with goods, if anything.
    pub trader: Option<Trader>,
    /// Its counters begin just before they wrap around.
    pub near_wraps: bool,
    /// It skips most client ticks, so that they wrap around as well; it must not miss what the server says of them.
    pub skips_ticks: bool,
    options: ClientOptions,
    /// Commands of this session.
    commands: u32,
    /// Contradictions in the sessions before this one.
    errors_before: Errors,
    seed: u64,
    number: u64,
    land: Option<Arc<Land>>,
    haunt: Haunt,
    state: Option<structs::OwnState>,
    goal: (i32, i32),
    side: i32,
    tick: u32,
    progress: (u32, (i32, i32)),
    detour_until: u32,
}

impl Bot {
    /// The `number`-th bot of a run. Without a land it does not check its position.
    pub fn new(seed: u64, number: u64, haunt: Haunt, land: Option<Arc<Land>>, options: ClientOptions) -> Bot {
        Bot {
            session: ClientSession::new(options),
            counts: BotCounts::default(),
            closed: None,
            friend: None,
            trader: None,
            near_wraps: false,
            skips_ticks: false,
            options,
            commands: 0,
            errors_before: Errors::default(),
            seed,
            number,
            land,
            haunt,
            state: None,
            goal: (0, 0),
            side: if number.is_multiple_of(2) { 1 } else { -1 },
            tick: 0,
            progress: (0, (0, 0)),
            detour_until: 0,
        }
    }

    /// Begins a new session: the old one is gone.
    pub fn reconnect(&mut self) {
        self.errors_before = self.errors();
        self.session = ClientSession::new(self.options);
        (self.state, self.closed, self.commands) = (None, None, 0);
        self.begin();
        self.counts.reconnects += 1;
        if let Some(trader) = &mut self.trader {
            trader.reconnect();
        }
    }

    /// Before the first body of a session.
    pub fn begin(&mut self) {
        if self.near_wraps {
            self.session.start_at(SEQUENCE_NEAR_WRAP);
        }
    }

    /// Client ticks so far.
    pub fn tick(&self) -> u32 {
        self.tick
    }

    fn draw(&self, n: u64, bound: u32) -> u32 {
        below(random(self.seed, EntityId(self.number), u64::from(self.tick), n), bound)
    }

    /// Where its character shall stand at first, 1/256 m; the ground there may be blocked.
    pub fn spawn_point(&self) -> (i32, i32) {
        match self.haunt {
            Haunt::Land | Haunt::Disc { .. } | Haunt::March(_) => self.point_in_haunt(1),
            Haunt::Border(crossing) => crossing.position(self.side * crossing.reach / 2),
        }
    }

    fn point_in_haunt(&self, n: u64) -> (i32, i32) {
        match self.haunt {
            Haunt::Land => {
                let coordinate = |k: u64| self.draw(n * 16 + k, (LAND_M * GRID_PER_M) as u32) as i32;
                (coordinate(0), coordinate(1))
            }
            Haunt::Disc { centre, radius } => {
                let (cos, sin) = cos_sin(self.draw(n * 16 + 2, 65_536) as u16);
                let far = self.draw(n * 16 + 3, radius as u32) as i64;
                let part = |axis: i32| ((far * i64::from(axis)) >> 15) as i32;
                (centre.0 + part(cos), centre.1 + part(sin))
            }
            Haunt::Border(crossing) => crossing.position(self.side * crossing.reach),
            Haunt::March(march) => {
                let (cos, sin) = cos_sin(self.draw(n * 16 + 2, 65_536) as u16);
                // The greater one of two draws: then every square metre gets as many.
                let radius = |k: u64| i64::from(self.draw(n * 16 + k, march.radius as u32));
                let far = radius(3).max(radius(4));
                let part = |axis: i32| ((far * i64::from(axis)) >> 15) as i32;
                let centre = march.centre(self.tick);
                (centre.0 + part(cos), centre.1 + part(sin))
            }
        }
    }

    /// Its goal walks with its crowd.
    fn follow(&mut self) {
        if let Haunt::March(march) = self.haunt {
            let (before, now) = (march.centre(self.tick - 1), march.centre(self.tick));
            self.goal = (self.goal.0 + now.0 - before.0, self.goal.1 + now.1 - before.1);
        }
    }

    /// Its own entity, once it is known.
    pub fn entity(&self) -> Option<EntityId> {
        self.session.welcome().map(|welcome| welcome.entity)
    }

    /// Whether it stands in the world.
    pub fn plays(&self) -> bool {
        self.state.is_some() && self.session.welcome().is_some()
    }

    /// What it wants in its next client tick; `intended_ns` is when the body with it is to leave.
    pub fn want(&mut self, intended_ns: u64) {
        self.tick += 1;
        if self.state.is_none() {
            // Commands from before its first tick would only use up its time credit.
            return;
        }
        let command = self.decide();
        let Command { yaw, forward, right, buttons } = command;
        self.commands += 1;
        if self.skips_ticks && SKIPS_AT.contains(&self.commands) {
            self.session.skip_ticks(SKIP_TICKS);
        }
        self.session.push_command(structs::Command::new(yaw, forward, right, buttons, 0, 0), intended_ns);
    }

    /// It wants nothing in its next client tick: it stands where it is.
    pub fn stand(&mut self, intended_ns: u64) {
        self.tick += 1;
        if self.state.is_some() {
            self.session.push_command(structs::Command::default(), intended_ns);
        }
    }

    /// Acts now and then, once it plays.
    pub fn act(&mut self) {
        if self.trader.is_some() {
            self.deal();
            return;
        }
        if !self.tick.wrapping_add(self.number as u32).is_multiple_of(ACTION_TICKS) {
            return;
        }
        let request = match self.friend {
            Some(target) if self.draw(7, 8) > 0 => Request::WaveAt { target },
            _ => Request::Emote { kind: self.draw(8, 5) as u16 },
        };
        // A full channel is the server's slowness; the next try comes soon.
        let _ = self.session.request(request);
    }

    fn deal(&mut self) {
        let (tick, friend) = (self.tick, self.friend);
        let Some(own) = self.entity() else { return };
        let near = self.trader.as_ref().filter(|trader| trader.may_deal(tick)).and_then(|_| self.nearest_thing());
        let deal = self.trader.as_mut().and_then(|trader| trader.deal(tick, own, friend, near));
        deal.into_iter().for_each(|deal| self.send(deal));
    }

    fn send(&mut self, deal: Deal) {
        // A full channel is the server's slowness; an order is asked for later.
        let _ = match deal {
            Deal::Request(request) => self.session.request(request).map(|_| ()),
            Deal::Order(number, request) => self.session.order(number, request),
        };
    }

    /// The nearest thing within reach, of those that its host or else its view shows.
    fn nearest_thing(&self) -> Option<EntityId> {
        let state = self.state?;
        let (x, y) = (state.x() >> FINE_SHIFT, state.y() >> FINE_SHIFT);
        let squared = |place: (i32, i32)| i64::from(place.0 - x).pow(2) + i64::from(place.1 - y).pow(2);
        let nearest = |things: &mut dyn Iterator<Item = (EntityId, (i32, i32))>| {
            let near = things.filter(|&(_, place)| squared(place) < i64::from(PICK_UP_REACH).pow(2));
            near.min_by_key(|&(thing, place)| (squared(place), thing)).map(|(thing, _)| thing)
        };
        match &self.trader.as_ref()?.things {
            Some(things) => nearest(&mut things.iter().copied()),
            None => {
                let seen = self.session.view().entities().filter(|seen| seen.id.class() == IdClass::Thing);
                nearest(&mut seen.map(|seen| (seen.id, (seen.x, seen.y))))
            }
        }
    }

    fn decide(&mut self) -> Command {
        let Some(state) = self.state else { return Command::default() };
        let (x, y) = (state.x() >> FINE_SHIFT, state.y() >> FINE_SHIFT);
        if self.goal != (0, 0) {
            self.follow();
        }
        let (dx, dy) = (self.goal.0 - x, self.goal.1 - y);
        let arrived = i64::from(dx).pow(2) + i64::from(dy).pow(2) < i64::from(2 * GRID_PER_M).pow(2);
        if arrived || self.goal == (0, 0) {
            self.side = -self.side;
            self.goal = self.point_in_haunt(2);
        }
        self.notice_stuck((x, y));
        let yaw = match self.tick < self.detour_until {
            true => random(self.seed, EntityId(self.number), u64::from(self.detour_until), 3) as u16,
            false => direction(self.goal.0 - x, self.goal.1 - y),
        };
        let runs = self.number % 4 != 3 || matches!(self.haunt, Haunt::March(_));
        let jumps = self.draw(4, 240) == 0;
        let buttons = if runs { BUTTON_RUN } else { 0 } | if jumps { BUTTON_JUMP } else { 0 };
        Command { yaw, forward: 127, right: 0, buttons }
    }

    fn notice_stuck(&mut self, here: (i32, i32)) {
        let (since, from) = self.progress;
        if (here.0 - from.0).abs().max((here.1 - from.1).abs()) > GRID_PER_M / 2 {
            self.progress = (self.tick, here);
        } else if self.tick.wrapping_sub(since) > STUCK_TICKS {
            self.progress = (self.tick, here);
            self.detour_until = self.tick + DETOUR_TICKS;
            self.side = -self.side;
            self.goal = self.point_in_haunt(2);
        }
    }

    /// Takes a body from the server and checks it. `on_applied` hears the intended send time of each command that the
    /// body newly names as applied.
    pub fn hear(&mut self, body: &[u8], mut on_applied: impl FnMut(u64)) -> Result<BodySummary, BodyError> {
        let summary = self.session.handle_body(body).inspect_err(|_| self.counts.malformed += 1)?;
        self.counts.bodies += 1;
        if summary.own_state {
            let state = *self.session.own_state().expect("it came just now");
            self.check_own_state(state, &mut on_applied);
        }
        while let Some(message) = self.session.poll_message() {
            match message {
                ServerMessage::Response(response) => self.hear_response(&response),
                ServerMessage::Closing { reason } => self.closed = Some(reason),
                ServerMessage::Welcome(welcome) => {
                    self.trader.iter_mut().for_each(|trader| trader.welcome(welcome.order));
                }
                ServerMessage::Goods(news) => self.trader.iter_mut().for_each(|trader| trader.goods.hear(&news)),
                ServerMessage::Trade(news) => {
                    let friend = self.friend;
                    self.trader.iter_mut().for_each(|trader| trader.hear_trade(&news, friend));
                }
            }
        }
        while self.session.poll_event().is_some() {
            self.counts.events += 1;
        }
        Ok(summary)
    }

    fn hear_response(&mut self, response: &Response) {
        let &Response { stream, number, refusal, durable, .. } = response;
        if stream != Stream::Goods.wire() {
            match refusal {
                Refusal::None => self.counts.acted += 1,
                _ => self.counts.refused += 1,
            }
            return;
        }
        let tick = self.tick;
        let again = self.trader.as_mut().and_then(|trader| match durable {
            true => trader.hear_answer(number, refusal, tick),
            false => {
                trader.hear_refusal(number, refusal);
                None
            }
        });
        again.into_iter().for_each(|deal| self.send(deal));
    }

    /// Runs the movement code over the commands that the state names, and compares.
    fn check_own_state(&mut self, state: structs::OwnState, on_applied: &mut impl FnMut(u64)) {
        let before = self.state.replace(state);
        let mut predicted = before.map(motion);
        let mut expected_tick = before.map_or(0, |before| before.applied());
        let mut whole = true;
        while let Some(sent) = self.session.pop_applied() {
            on_applied(sent.intended_ns);
            expected_tick = expected_tick.wrapping_add(1);
            if before.is_some() && sent.tick != expected_tick {
                self.counts.forgotten += u64::from(sent.tick.wrapping_sub(expected_tick));
                expected_tick = sent.tick;
                whole = false;
            }
            let wire = sent.command;
            let (yaw, forward, right, buttons) = (wire.yaw(), wire.forward(), wire.right(), wire.buttons());
            if let (Some(predicted), Some(land)) = (&mut predicted, &self.land) {
                predicted.advance(land, Command { yaw, forward, right, buttons }, &mut Tile::default());
            }
        }
        let Some(before) = before else { return };
        self.counts.handoffs += u64::from(state.epoch().saturating_sub(before.epoch()));
        let metre = f64::from(FINE_PER_M);
        let (dx, dy) = (f64::from(state.x()) - f64::from(before.x()), f64::from(state.y()) - f64::from(before.y()));
        self.counts.moved_m += dx.hypot(dy) / metre;
        // What the server ran in the client's stead, or discarded, was somewhere between the commands: nothing to compare.
        let same_will = (before.neutral(), before.discarded()) == (state.neutral(), state.discarded())
            && whole
            && expected_tick == state.applied();
        if same_will && self.land.is_some() && predicted != Some(motion(state)) {
            self.counts.own_position += 1;
        }
    }

    /// Looks for what never leaves, about once a second.
    pub fn check_view(&mut self, now_tick: u32) {
        self.session.check_view(now_tick);
    }

    /// Contradictions that the view found.
    pub fn errors(&self) -> Errors {
        let (now, before) = (self.session.errors(), self.errors_before);
        Errors {
            jump: now.jump + before.jump,
            twice: now.twice + before.twice,
            never_leaves: now.never_leaves + before.never_leaves,
            other: now.other + before.other,
        }
    }

    /// What the server said at the join.
    pub fn welcome(&self) -> Option<&Welcome> {
        self.session.welcome()
    }

    /// Waves at whoever stands nearest in its view; for swarms, whose bots do not know each other.
    pub fn befriend_nearest(&mut self) {
        let Some(state) = self.state else { return };
        let (x, y) = (state.x() >> FINE_SHIFT, state.y() >> FINE_SHIFT);
        let own = self.entity();
        let others = self.session.view().entities().filter(|seen| Some(seen.id) != own);
        let nearest = others.min_by_key(|seen| (i64::from(seen.x - x).pow(2) + i64::from(seen.y - y).pow(2), seen.id));
        self.friend = nearest.map(|seen| seen.id);
    }
}

fn motion(state: structs::OwnState) -> Motion {
    Motion {
        x: state.x(),
        y: state.y(),
        z: state.z(),
        velocity_z: state.velocity_z(),
        yaw: state.yaw(),
        grounded: state.flags() & 1 == 1,
    }
}
