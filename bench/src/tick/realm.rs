//! One shard of a realm and the clients whose sessions it serves, with a stopwatch.
//!
//! Owns the shard, its clients and its end of the queues to the others, which run in threads of their own. Promises: only
//! the shard's work is between start and stop of the watch: what arrived, the step, the frame, the sends; not what it
//! waits for the others. Clients answer in the next tick. Never encrypts.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;

use hdrhistogram::Histogram;
use ringshard::limits::{BODY_BYTES_MAX, LANES, SESSION_BYTES_PER_S_MAX};
use ringshard::realm::bots::{Bot, Crossing, Haunt};
use ringshard::realm::core::{Core, Rules, Whom};
use ringshard::realm::keeper::{CharacterRow, KeeperAnswer, KeeperCommand};
use ringshard::realm::mesh::{self, MeshEnd};
use ringshard::realm::sessions::interest::Radii;
use ringshard::realm::sessions::session::Rates;
use ringshard::wire::client::ClientOptions;
use ringshard::wire::ids::{EntityId, SessionRef, ShardId};
use ringshard::wire::messages::Seam;
use ringshard::wire::transport::handshake::Identity;
use ringshard::wire::transport::token::UserData;
use ringshard::wire::units::{FINE_SHIFT, GRID_PER_M};
use ringshard::world::cut::CutMap;
use ringshard::world::frame::{Frame, Seen, distance};
use ringshard::world::land::{LAND_M, Land};
use ringshard::world::{World, WorldConfig};
use rustix::time::{ClockId, clock_gettime};

use crate::heap;
use crate::swarm::place::{self, NO_DISC, open_disc};

/// What a shard does in a tick, in this order.
pub const PHASES: [&str; 5] = ["receive", "step", "show", "hear", "send"];

const SEED: u64 = 42;
/// Joins in one tick.
const JOINS_PER_TICK: usize = 40;
/// CPU time of all waiting together after which another shard counts as gone: ten minutes.
const WAIT_NS_MAX: u64 = 600_000_000_000;
/// Radius of the crowd, 1/256 m.
const CROWD_RADIUS: i32 = 15 * GRID_PER_M;
/// What is this near the border counts as at it, 1/256 m: players on the other side see it.
const AT_BORDER: i32 = 96 * GRID_PER_M;
/// One client in this many looks at what it is shown.
const LOOKERS: usize = 250;
/// Where everybody surely came into view, 1/256 m: well inside the radius in which slices begin to be shown.
const SURELY_SEEN: i32 = 60 * GRID_PER_M;
/// Age of what is not seen at all.
const UNSEEN_TICKS: u64 = 9_999;
/// Ticks between two looks at how old it is.
const LOOK_TICKS: u64 = 7;

/// What is run.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Players.
    pub players: u64,
    /// Wildlife.
    pub npcs: u32,
    /// Where the players live.
    pub haunts: Haunts,
    /// Shards.
    pub shards: usize,
    /// Snapshots a second; clients send their commands as often.
    pub send_hz: u32,
}

/// Where the players of a realm live.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Haunts {
    /// All over the land.
    Land,
    /// In one disc, four fifths of them standing still.
    Crowd,
    /// A share of them, percent, pace to and fro over the line that divides two shards, or over one so many metres beside
    /// it; the others live all over the land. The line is there with one shard as well.
    Border {
        /// The share.
        percent: u64,
        /// How far beside it.
        aside_m: i32,
    },
}

/// What came of it.
pub struct Measured {
    /// CPU time of each tick, of the slowest shard.
    pub ticks_ns: Vec<u64>,
    /// Sums by phase, of all shards.
    pub phase_ns: [u64; PHASES.len()],
    /// Bodies sent.
    pub sends: u64,
    /// Their bytes.
    pub send_bytes: u64,
    /// Of them, longer than one datagram carries.
    pub over_one_datagram: u64,
    /// Entities, summed over ticks.
    pub entities: u64,
    /// Slots that were encoded, likewise.
    pub encoded: u64,
    /// Entities that are not as their keyframe shows them, likewise.
    pub moved: u64,
    /// Bits of all slices, likewise.
    pub packed_bits: u64,
    /// Calls for memory.
    pub allocations: u64,
    /// Ticks since the newest update of what clients see: the nearest 40, the next 200, the rest.
    pub stale: [Histogram<u64>; 3],
    /// Players at the end.
    pub playing: u64,
    /// Bodies that a client had to drop.
    pub errors: u64,
    /// Entities that changed their shard.
    pub handoffs: u64,
    /// Entities within sight of the border, summed over looks, and how many there were in all.
    pub at_border: u64,
    /// See above.
    pub looked_at: u64,
}

impl Measured {
    /// Adds what came of another shard in the same ticks.
    pub fn join(&mut self, other: &Measured) {
        self.ticks_ns.iter_mut().zip(&other.ticks_ns).for_each(|(slowest, &ns)| *slowest = ns.max(*slowest));
        self.phase_ns.iter_mut().zip(other.phase_ns).for_each(|(sum, ns)| *sum += ns);
        self.stale.iter_mut().zip(&other.stale).for_each(|(all, one)| all.add(one).expect("the same bounds"));
        for (sum, more) in [
            (&mut self.sends, other.sends),
            (&mut self.send_bytes, other.send_bytes),
            (&mut self.over_one_datagram, other.over_one_datagram),
            (&mut self.entities, other.entities),
            (&mut self.encoded, other.encoded),
            (&mut self.moved, other.moved),
            (&mut self.packed_bits, other.packed_bits),
            (&mut self.allocations, other.allocations),
            (&mut self.playing, other.playing),
            (&mut self.errors, other.errors),
            (&mut self.handoffs, other.handoffs),
            (&mut self.at_border, other.at_border),
            (&mut self.looked_at, other.looked_at),
        ] {
            *sum += more;
        }
    }

    /// Mean CPU time of a tick of the slowest shard, nanoseconds.
    pub fn tick_ns_mean(&self) -> f64 {
        self.ticks_ns.iter().sum::<u64>() as f64 / self.ticks_ns.len().max(1) as f64
    }
}

struct Client {
    bot: Bot,
    number: u64,
    session: Option<SessionRef>,
    /// It goes nowhere.
    stands: bool,
}

/// Bodies on their way, one behind the other.
#[derive(Default)]
struct Way {
    bytes: Vec<u8>,
    bodies: Vec<(SessionRef, usize)>,
}

/// See the module.
pub struct Realm {
    setting: Setting,
    core: Core,
    mesh: MeshEnd,
    /// The line that divides two shards, where players live at it.
    border: Option<Crossing>,
    clients: Vec<Client>,
    by_session: HashMap<SessionRef, usize>,
    up: Way,
    down: Way,
    /// CPU time spent waiting for other shards, nanoseconds.
    waited_ns: Cell<u64>,
    /// Scratch: what the keeper hears.
    commands: Vec<KeeperCommand>,
    measured: Measured,
    measuring: bool,
}

impl Way {
    fn clear(&mut self) {
        self.bodies.clear();
    }

    /// Bytes of all bodies.
    fn length(&self) -> usize {
        self.bodies.last().map_or(0, |&(_, to)| to)
    }

    fn put(&mut self, session: SessionRef, write: impl FnOnce(&mut [u8]) -> usize) -> usize {
        let from = self.length();
        // Room once and for all: an arena is not emptied for each body.
        if self.bytes.len() < from + BODY_BYTES_MAX {
            self.bytes.resize(from + BODY_BYTES_MAX, 0);
        }
        let length = write(&mut self.bytes[from..from + BODY_BYTES_MAX]);
        self.bodies.push((session, from + length));
        length
    }

    fn each(&self) -> impl Iterator<Item = (SessionRef, &[u8])> {
        let mut from = 0;
        self.bodies.iter().map(move |&(session, to)| {
            let body = &self.bytes[from..to];
            from = to;
            (session, body)
        })
    }
}

fn histogram(most: u64) -> Histogram<u64> {
    Histogram::new_with_bounds(1, most, 3).expect("the bounds are in order")
}

fn empty() -> Measured {
    Measured {
        ticks_ns: Vec::new(),
        phase_ns: [0; PHASES.len()],
        sends: 0,
        send_bytes: 0,
        over_one_datagram: 0,
        entities: 0,
        encoded: 0,
        moved: 0,
        packed_bits: 0,
        allocations: 0,
        stale: [(); 3].map(|()| histogram(100_000)),
        playing: 0,
        errors: 0,
        handoffs: 0,
        at_border: 0,
        looked_at: 0,
    }
}

fn cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The patience of a meeting; what it costs is not the shard's work.
fn patience(waited_ns: &Cell<u64>) -> impl FnMut() -> bool + use<'_> {
    let mut before_ns = None;
    move || {
        let now_ns = cpu_ns();
        waited_ns.set(waited_ns.get() + now_ns - before_ns.replace(now_ns).unwrap_or(now_ns));
        assert!(waited_ns.get() < WAIT_NS_MAX, "another shard ended");
        std::thread::yield_now();
        true
    }
}

/// The character of a client that nobody knows yet.
pub fn newcomer(client_id: u64) -> CharacterRow {
    CharacterRow {
        client_id,
        character: client_id,
        owner: ShardId(0),
        epoch: 0,
        tick: 0,
        x: (LAND_M / 2 * GRID_PER_M) << FINE_SHIFT,
        y: (LAND_M / 2 * GRID_PER_M) << FINE_SHIFT,
        z: 0,
        yaw: 0,
        saved: false,
        deeds: u64::MAX,
    }
}

impl Realm {
    /// Everybody will join in the first ticks. Gives one shard after the other; those of one realm tick together, each in a
    /// thread of its own. An error says what the land lacks.
    pub fn shards(setting: Setting) -> Result<Vec<Realm>, String> {
        let land = Arc::new(Land::new(SEED));
        let centre = open_disc(&land).ok_or(NO_DISC)?;
        let crossings = match setting.haunts {
            Haunts::Border { aside_m, .. } => borders(&land, aside_m)?,
            Haunts::Land | Haunts::Crowd => Vec::new(),
        };
        let config = WorldConfig {
            seed: SEED,
            land,
            cut: Arc::new(CutMap::equal(setting.shards)),
            npcs: setting.npcs,
            npc_life_ticks: 36_000,
            start_tick: 0,
            things: Arc::new([]),
        };
        let radii = Radii { enter: 96 * GRID_PER_M, leave: 128 * GRID_PER_M };
        let rates = Rates { send_hz: setting.send_hz, bytes_per_s: SESSION_BYTES_PER_S_MAX };
        let rules = Rules { radii, rates, dev: true, seam: None };
        let client = |number: u64| {
            let crowd = setting.haunts == Haunts::Crowd;
            let haunt = match setting.haunts {
                Haunts::Crowd => Haunt::Disc { centre, radius: CROWD_RADIUS },
                Haunts::Border { percent, .. } if number * 37 % 100 < percent => {
                    Haunt::Border(crossings[(number * crossings.len() as u64 / setting.players) as usize])
                }
                Haunts::Border { .. } | Haunts::Land => Haunt::Land,
            };
            let looks = (number as usize).is_multiple_of(LOOKERS);
            let options = ClientOptions { packed: true, decode: looks, reliable_transport: false };
            let bot = Bot::new(SEED, number, haunt, None, options);
            Client { bot, number, session: None, stands: crowd && !number.is_multiple_of(5) }
        };
        let shard = |(shard, mesh): (usize, MeshEnd)| {
            let mine = |number: &u64| *number as usize % LANES % setting.shards == shard;
            Realm {
                setting,
                core: Core::new(World::new(config.clone(), ShardId(shard as u8)), setting.shards, rules),
                mesh,
                border: crossings.first().copied(),
                clients: (0..setting.players).filter(mine).map(client).collect(),
                by_session: HashMap::new(),
                up: Way::default(),
                down: Way::default(),
                waited_ns: Cell::new(0),
                commands: Vec::new(),
                measured: empty(),
                measuring: false,
            }
        };
        Ok(mesh::connect(setting.shards).into_iter().enumerate().map(shard).collect())
    }

    /// A realm of one shard.
    pub fn alone(setting: Setting) -> Result<Realm, String> {
        let mut shards = Realm::shards(Setting { shards: 1, ..setting })?;
        Ok(shards.remove(0))
    }

    /// From now on everything counts.
    pub fn begin_measuring(&mut self) {
        (self.measured, self.measuring) = (empty(), true);
        self.measured.handoffs = self.core.world.counters.handed_out;
    }

    /// CPU time that a phase of [`PHASES`] took since then, nanoseconds.
    pub fn spent_ns(&self, phase: &str) -> u64 {
        let number = PHASES.iter().position(|name| *name == phase).expect("a name of PHASES");
        self.measured.phase_ns[number]
    }

    /// What came of the ticks since then.
    pub fn measured(mut self) -> Measured {
        self.measured.playing = self.clients.iter().filter(|client| client.bot.plays()).count() as u64;
        self.measured.errors = self.clients.iter().map(|client| client.bot.counts.malformed).sum();
        self.measured.handoffs = self.core.world.counters.handed_out - self.measured.handoffs;
        self.measured
    }

    /// One tick: clients, then the shard.
    pub fn tick(&mut self, tick: u64) {
        self.join();
        self.play(tick);
        let (phase_ns, allocations) = heap::count(|| self.serve(tick));
        if self.measuring {
            self.note(phase_ns, allocations);
        }
        self.answer_claims();
        self.arrive(tick);
    }

    fn join(&mut self) {
        let waiting = self.clients.iter_mut().enumerate().filter(|(_, client)| client.session.is_none());
        for (place, client) in waiting.take(JOINS_PER_TICK / self.setting.shards) {
            let user_data = UserData { spawn_point: Some(client.bot.spawn_point()), peaceful: true, reusable: false };
            let mut token_mac = [0; 16];
            token_mac[..8].copy_from_slice(&client.number.to_le_bytes());
            let client_id = client.number + 1;
            let identity = Identity { client_id, user_data, token_mac, expires_unix_s: u64::MAX / 2, timeout_s: 10 };
            client.session = self.core.admit((client.number as usize % LANES) as u8, identity, false);
            let session = client.session.expect("the lanes hold all players");
            self.by_session.insert(session, place);
        }
    }

    /// What the clients send.
    fn play(&mut self, tick: u64) {
        let every = u64::from(60 / self.setting.send_hz);
        self.up.clear();
        for client in &mut self.clients {
            let Some(session) = client.session else { continue };
            match client.stands {
                true => client.bot.stand(tick),
                false => client.bot.want(tick),
            }
            if (tick + client.number).is_multiple_of(every) {
                self.up.put(session, |out| client.bot.session.poll_body(tick as u32, 0, out));
            }
        }
    }

    /// What the shard does; CPU time by phase.
    fn serve(&mut self, tick: u64) -> [u64; PHASES.len()] {
        let phases: [fn(&mut Realm, u64); PHASES.len()] =
            [Realm::receive, Realm::step, Realm::show, Realm::hear, Realm::send];
        // Under valgrind there is no such clock.
        let watch = if self.measuring { cpu_ns } else { || 0 };
        let mut at_ns = watch();
        phases.map(|phase| {
            let waited_ns = self.waited_ns.get();
            phase(self, tick);
            let now_ns = watch();
            let spent_ns = (now_ns - at_ns).saturating_sub(self.waited_ns.get() - waited_ns);
            at_ns = now_ns;
            spent_ns
        })
    }

    // The phases are functions of their own in the program too: callgrind counts them by their names.

    #[inline(never)]
    fn receive(&mut self, _tick: u64) {
        self.up.each().for_each(|(session, body)| self.core.handle_body(session, body));
    }

    #[inline(never)]
    fn step(&mut self, tick: u64) {
        let Realm { core, mesh, waited_ns, .. } = self;
        let own = core.world.shard;
        core.pass_requests();
        mesh.give_inputs(tick, &mut core.inputs);
        core.begin(tick);
        let mut mine = std::mem::take(&mut core.inputs[own.index()]);
        core.take_inputs(own, &mine);
        mine.reset(tick);
        core.inputs[own.index()] = mine;
        mesh.take_inputs(tick, patience(waited_ns), |from, parcel| core.take_inputs(from, parcel));
        core.play();
    }

    #[inline(never)]
    fn show(&mut self, tick: u64) {
        let Realm { core, mesh, .. } = self;
        let mut outs = mesh.outcomes(tick);
        core.publish(&mut outs);
        core.hear(mesh.give_outcomes(outs));
    }

    #[inline(never)]
    fn hear(&mut self, tick: u64) {
        let Realm { core, mesh, waited_ns, .. } = self;
        mesh.take_outcomes(tick, patience(waited_ns), |parcel| core.hear(parcel));
    }

    #[inline(never)]
    fn send(&mut self, _tick: u64) {
        let Realm { core, down, .. } = self;
        down.clear();
        core.send_due(Whom::Rest, |session, write| {
            down.put(session, |out| write(out));
        });
        core.end_tick();
    }

    fn note(&mut self, phase_ns: [u64; PHASES.len()], allocations: u64) {
        let measured = &mut self.measured;
        measured.ticks_ns.push(phase_ns.iter().sum());
        measured.phase_ns.iter_mut().zip(phase_ns).for_each(|(sum, ns)| *sum += ns);
        measured.allocations += allocations;
        measured.sends += self.down.bodies.len() as u64;
        measured.send_bytes += self.down.length() as u64;
        measured.over_one_datagram += self.down.each().filter(|(_, body)| body.len() > BODY_BYTES_MAX).count() as u64;
        if let Some(frame) = self.core.frames.newest_of(self.core.world.shard) {
            measured.entities += frame.index.len() as u64;
            measured.encoded += frame.slices.iter().map(|slice| u64::from(slice.slots)).sum::<u64>();
            let moved = frame.now.iter().zip(&frame.keyframe).filter(|(now, key)| now.id() != 0 && now.0 != key.0);
            measured.moved += moved.count() as u64;
            measured.packed_bits += 8 * frame.packed.len() as u64;
        }
    }

    /// A keeper that lets everybody in at once and writes nothing.
    fn answer_claims(&mut self) {
        self.commands.append(&mut self.core.keeper);
        for command in self.commands.drain(..) {
            let KeeperCommand::Claim { session, client_id, .. } = command else { continue };
            let row = newcomer(client_id);
            self.core.hear_keeper(KeeperAnswer::Claimed { session, row, new: false, operation: 0 });
        }
    }

    /// What the shard sent arrives.
    fn arrive(&mut self, tick: u64) {
        for (session, body) in self.down.each() {
            let client = &mut self.clients[self.by_session[&session]];
            // What is wrong with it is counted there.
            let _ = client.bot.hear(body, |_| ());
        }
        if self.measuring && tick.is_multiple_of(LOOK_TICKS) {
            let Realm { clients, measured, core, border, .. } = self;
            let shown: Vec<Seen> = core.frames.newest().flat_map(Frame::seen_all).collect();
            for client in clients.iter().filter(|client| client.number.is_multiple_of(LOOKERS as u64)) {
                look(&client.bot, &shown, tick, &mut measured.stale);
            }
            measured.looked_at += shown.len() as u64;
            if let Some(border) = border {
                measured.at_border += shown.iter().filter(|seen| is_at(border, seen.position)).count() as u64;
            }
        }
    }
}

/// Where players can pace to and fro over the line that divides two shards, or so many metres beside it.
fn borders(land: &Land, aside_m: i32) -> Result<Vec<Crossing>, String> {
    let seam = CutMap::equal(2).seam(land).ok_or("the land has no border that can be crossed")?;
    let (upright, aside) = (seam.from.0 == seam.to.0, aside_m * GRID_PER_M);
    let (dx, dy) = if upright { (aside, 0) } else { (0, aside) };
    let seam = Seam { x0: seam.from.0 + dx, y0: seam.from.1 + dy, x1: seam.to.0 + dx, y1: seam.to.1 + dy };
    let crossings = place::crossings(land, seam);
    if crossings.is_empty() { Err("the border cannot be crossed anywhere".to_owned()) } else { Ok(crossings) }
}

/// Whether a position is within sight of a border.
fn is_at(border: &Crossing, (x, y): (i32, i32)) -> bool {
    let across = if border.upright { x } else { y };
    (across - border.line).abs() <= AT_BORDER
}

/// Notes how old a client's view is of what is there, by distance. What it does not see is as old as can be.
fn look(bot: &Bot, shown: &[Seen], tick: u64, stale: &mut [Histogram<u64>; 3]) {
    let (Some(state), Some(own)) = (bot.session.own_state(), bot.entity()) else { return };
    let from = (state.x() >> FINE_SHIFT, state.y() >> FINE_SHIFT);
    let reach = i64::from(SURELY_SEEN).pow(2);
    let apart = |seen: &&Seen| distance(from, seen.position);
    let mut near: Vec<(i64, EntityId)> = shown
        .iter()
        .filter(|seen| seen.id != own && apart(seen) <= reach)
        .map(|seen| (apart(&seen), seen.id))
        .collect();
    near.sort_unstable();
    for (rank, (_, id)) in near.into_iter().enumerate() {
        let class = usize::from(rank >= 40) + usize::from(rank >= 240);
        let age = bot.session.view().entity(id).map_or(UNSEEN_TICKS, |seen| tick.saturating_sub(seen.tick.into()));
        stale[class].saturating_record(age);
    }
}
