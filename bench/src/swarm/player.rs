//! One player of the swarm: a bot on a link.
//!
//! Owns both. Promises: what it wants leaves in its turn or never; everything it hears is checked. Never waits.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ringshard::realm::bots::trader::Trader;
use ringshard::realm::bots::{Bot, Haunt};
use ringshard::tools::dev_token;
use ringshard::wire::client::{BodySummary, ClientOptions};
use ringshard::wire::generated::tables::Close;
use ringshard::wire::transport::token::UserData;
use ringshard::wire::units::FINE_PER_M;
use ringshard::world::land::Land;
use serde::{Deserialize, Serialize};

use super::link::{Link, Transport};
use super::schedule::ticks_of_packet;
use super::tally::{ErrorCounts, Tally};

/// Seconds for which a bot's token is good.
const TOKEN_TTL_S: u64 = 60;
/// Ticks of time credit from which a player begins to steer: a packet that comes late must not make the next one wait.
const CREDIT_TICKS: u8 = 6;
/// Ticks within which another entity counts as visible.
const VISIBLE_TICKS: u32 = 120;

/// What all players of a run have in common.
#[derive(Clone)]
pub struct Common {
    /// The server.
    pub server: SocketAddr,
    /// How to talk to it.
    pub transport: Transport,
    /// Bodies a second of each player.
    pub input_hz: u32,
    /// The ground.
    pub land: Arc<Land>,
    /// Seed of what they want.
    pub seed: u64,
    /// One player in so many looks at all that it is shown; the others only at their own state.
    pub look_one_in: u32,
    /// Whether they deal with goods.
    pub trades: bool,
    /// Whether load threads never sleep.
    pub awake: bool,
    /// When everybody is off the network, counted from the last join.
    pub pause: Option<Outage>,
}

/// A time without a network, nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outage {
    /// First moment without it.
    pub from_ns: u64,
    /// First moment with it again.
    pub until_ns: u64,
}

impl Outage {
    /// Whether there is no network at a moment.
    pub fn covers(&self, ns: u64) -> bool {
        (self.from_ns..self.until_ns).contains(&ns)
    }
}

/// Where a player stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Its join is still to come.
    Waiting,
    /// On the way in.
    Joining,
    /// In the world.
    Playing,
    /// Never got in: why.
    Refused(String),
    /// Was in, and lost the server before the swarm's end: why.
    Lost(String),
}

/// What a player was told last about its character: it must be durable soon.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Told {
    /// Client id of its token.
    pub client_id: u64,
    /// Its entity.
    pub entity: u64,
    /// East, metres.
    pub x_m: f64,
    /// North, metres.
    pub y_m: f64,
    /// Up, metres.
    pub z_m: f64,
    /// Realm tick of that state.
    pub tick: u64,
}

/// The answer to one operation, as a player heard it: from then on it must stay so.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct ToldOperation {
    /// Client id of its token.
    pub client_id: u64,
    /// Its entity.
    pub entity: u64,
    /// Number of the operation.
    pub operation: u64,
    /// What was answered; 0: it was done.
    pub refusal: u8,
}

/// See the module.
pub struct Player {
    /// The brain.
    pub bot: Bot,
    /// The connection, once it was opened; it stays after its end, for the counters.
    pub link: Option<Link>,
    /// Where it stands.
    pub stage: Stage,
    client_id: u64,
    looks: bool,
    join_ns: u64,
    packets: u64,
    heard_ns: u64,
    /// Answers to operations that were given out.
    operations_told: usize,
    /// Its socket may have more than what was read.
    pub has_more: bool,
    /// When it heard last of a command that was slow although it was sent after the outage.
    pub slow_ns: u64,
}

impl Player {
    /// The `number`-th player; asks to join at `join_ns`.
    pub fn new(number: u64, join_ns: u64, haunt: Haunt, common: &Common) -> Player {
        let reliable_transport = common.transport == Transport::Tcp;
        let decode = number.is_multiple_of(common.look_one_in.into());
        let options = ClientOptions { packed: true, decode, reliable_transport };
        let mut bot = Bot::new(common.seed, number, haunt, decode.then(|| common.land.clone()), options);
        bot.trader = common.trades.then(|| Trader::new(common.seed, number));
        Player {
            bot,
            link: None,
            stage: Stage::Waiting,
            client_id: number + 1,
            looks: decode,
            join_ns,
            packets: 0,
            heard_ns: 0,
            operations_told: 0,
            has_more: false,
            slow_ns: 0,
        }
    }

    /// Its turn, which was due at `due_ns`. True: it opened its link, which wants to be watched.
    pub fn turn(&mut self, now_ns: u64, due_ns: u64, common: &Common, tally: &mut Tally) -> bool {
        let now = Duration::from_nanos(now_ns);
        match (&self.stage, &mut self.link) {
            (Stage::Playing, Some(_)) if tally.outage.is_some_and(|outage| outage.covers(now_ns)) => {
                // It plays on, and nothing leaves.
                (0..ticks_of_packet(self.packets, common.input_hz)).for_each(|_| self.bot.want(due_ns));
                self.packets += 1;
            }
            (Stage::Waiting, _) if now_ns >= self.join_ns => return self.join(now, common),
            (Stage::Joining | Stage::Playing, Some(link)) => {
                link.tend(now);
                if link.is_open() {
                    self.send(now_ns, due_ns, common, tally);
                }
                self.note_end();
            }
            _ => (),
        }
        false
    }

    fn join(&mut self, now: Duration, common: &Common) -> bool {
        let wishes = UserData { spawn_point: Some(self.bot.spawn_point()), peaceful: true, reusable: false };
        let token = dev_token(&[common.server], self.client_id, TOKEN_TTL_S, wishes).expect("one server is named");
        match Link::open(common.transport, common.server, &token, now) {
            Ok(mut link) => {
                link.tend(now);
                self.link = Some(link);
                self.stage = Stage::Joining;
                true
            }
            Err(error) => {
                self.stage = Stage::Refused(no_socket(&error));
                false
            }
        }
    }

    fn send(&mut self, now_ns: u64, due_ns: u64, common: &Common, tally: &mut Tally) {
        let Some(link) = &mut self.link else { return };
        if self.stage == Stage::Playing {
            for _ in 0..ticks_of_packet(self.packets, common.input_hz) {
                self.bot.want(due_ns);
                self.bot.act();
            }
            self.packets += 1;
            tally.sent(due_ns, now_ns);
        }
        let session = &mut self.bot.session;
        let tick = (u128::from(now_ns) * 60 / 1_000_000_000) as u32;
        link.send(Duration::from_nanos(now_ns), |out| session.poll_body(tick, 0, out));
    }

    /// Reads what is there, once: how many bytes, if any.
    pub fn read(&mut self, buffer: &mut [u8]) -> Option<usize> {
        let length = self.link.as_mut()?.read(buffer);
        if length.is_none() {
            self.note_end();
        }
        length
    }

    /// Takes what was read at `now_ns`. Gives the newest tick that it heard of.
    pub fn hear(&mut self, now_ns: u64, bytes: &mut [u8], tally: &mut Tally) -> Option<u32> {
        if tally.outage.is_some_and(|outage| outage.covers(now_ns)) {
            return None;
        }
        let Player { bot, link, heard_ns, slow_ns, .. } = self;
        let link = link.as_mut()?;
        let mut tick = None;
        link.take(Duration::from_nanos(now_ns), bytes, |body| {
            let summary = bot.hear(body, |intended_ns| {
                tally.applied(intended_ns, now_ns);
                if tally.is_slow_after_outage(intended_ns, now_ns) {
                    *slow_ns = now_ns;
                }
            });
            if let Ok(BodySummary { late: false, tick: newest, .. }) = summary {
                tally.snapshot(*heard_ns, now_ns);
                *heard_ns = now_ns;
                tick = Some(newest);
            }
        });
        let credit = self.bot.session.own_state().map_or(0, |state| state.credit());
        if self.stage == Stage::Joining && self.bot.plays() && credit >= CREDIT_TICKS {
            self.stage = Stage::Playing;
        }
        self.note_end();
        tick
    }

    /// Takes note when the link ended or the server said good-bye.
    fn note_end(&mut self) {
        let farewell = self.bot.closed.map(|reason| format!("the server closed the session: {}", close_words(reason)));
        let ended = self.link.as_ref().and_then(Link::end).map(|end| end.words());
        let Some(why) = farewell.or(ended) else { return };
        match self.stage {
            Stage::Playing => self.stage = Stage::Lost(why),
            Stage::Joining => self.stage = Stage::Refused(why),
            _ => (),
        }
    }

    /// About once a second while it plays: checks its view, looks for company; says how many others it sees.
    pub fn look_around(&mut self, server_tick: u32) -> usize {
        self.bot.check_view(server_tick);
        if self.bot.trader.is_none() {
            self.bot.befriend_nearest();
        }
        self.bot.session.view().visible(server_tick, VISIBLE_TICKS)
    }

    /// Whether it looks at all that it is shown, and `packets` says that a second of its own has passed.
    pub fn is_full_second(&self, common: &Common) -> bool {
        self.stage == Stage::Playing && self.looks && self.packets.is_multiple_of(common.input_hz.into())
    }

    /// Whether it is in, or may still come in.
    pub fn is_alive(&self) -> bool {
        matches!(self.stage, Stage::Waiting | Stage::Joining | Stage::Playing)
    }

    /// Whether it ever was in.
    pub fn played(&self) -> bool {
        matches!(self.stage, Stage::Playing | Stage::Lost(_))
    }

    /// Says good-bye.
    pub fn leave(&mut self, now_ns: u64) {
        if let (Stage::Joining | Stage::Playing, Some(link)) = (&self.stage, &mut self.link) {
            link.leave(Duration::from_nanos(now_ns));
        }
    }

    /// Contradictions that it found so far.
    pub fn errors(&self) -> ErrorCounts {
        let (view, counts) = (self.bot.errors(), &self.bot.counts);
        ErrorCounts {
            jump: view.jump,
            twice: view.twice,
            never_leaves: view.never_leaves,
            own_position: counts.own_position,
            other: view.other + counts.malformed,
        }
    }

    /// What it was told of its operations since the last call.
    pub fn take_told_operations(&mut self) -> impl Iterator<Item = ToldOperation> {
        let client_id = self.client_id;
        let entity = self.bot.entity().map_or(0, |entity| entity.0);
        let fresh = self.bot.trader.iter().flat_map(|trader| trader.told_since(self.operations_told));
        let fresh: Vec<_> = fresh
            .map(|(operation, refusal)| ToldOperation { client_id, entity, operation, refusal: refusal.0 })
            .collect();
        self.operations_told += fresh.len();
        fresh.into_iter()
    }

    /// What it was told last.
    pub fn told(&self) -> Option<Told> {
        let (welcome, state) = (self.bot.welcome()?, self.bot.session.own_state()?);
        let metres = |fine: i32| f64::from(fine) / f64::from(FINE_PER_M);
        let since_join = state.tick().wrapping_sub(welcome.tick as u32) as i32;
        Some(Told {
            client_id: self.client_id,
            entity: welcome.entity.0,
            x_m: metres(state.x()),
            y_m: metres(state.y()),
            z_m: metres(state.z()),
            tick: welcome.tick.saturating_add_signed(since_join.into()),
        })
    }
}

fn no_socket(error: &io::Error) -> String {
    format!("no socket: {error}; with very many players raise `ulimit -n`")
}

fn close_words(reason: Close) -> &'static str {
    match reason {
        Close::Drain => "it drains",
        Close::NewerSession => "the same client joined again",
        Close::TokenUsed => "the token was used before",
        Close::Full => "it is full",
        Close::Slow => "we were too slow",
        Close::Protocol => "we broke the protocol",
        _ => "no reason given",
    }
}
