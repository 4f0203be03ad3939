//! A realm of shards and clients in one thread, with a stopwatch.
//!
//! Owns shards in lockstep, as the deterministic host runs them, and clients that play. Promises: only the shards' work is
//! between start and stop of the watch: what arrived, the step, the frame, the sends. Clients answer in the next tick.
//! Never encrypts.

use std::collections::HashMap;
use std::sync::Arc;

use hdrhistogram::Histogram;
use ringshard::ids::{EntityId, FINE_SHIFT, GRID_PER_M, SessionRef, ShardId};
use ringshard::keeper::{CharacterRow, KeeperAnswer, KeeperCommand};
use ringshard::limits::{BODY_BYTES_MAX, LANES, SESSION_BYTES_PER_S_MAX};
use ringshard::mesh::{self, MeshEnd};
use ringshard::net::client::ClientOptions;
use ringshard::net::handshake::Identity;
use ringshard::net::interest::Radii;
use ringshard::net::session::Rates;
use ringshard::net::token::UserData;
use ringshard::shard::core::{Core, Rules, Whom};
use ringshard::sim::bots::{Bot, Haunt};
use ringshard::world::cut::CutMap;
use ringshard::world::frame::{Frame, Seen, distance};
use ringshard::world::land::{LAND_M, Land};
use ringshard::world::{World, WorldConfig};
use rustix::time::{ClockId, clock_gettime};

use crate::heap;
use crate::swarm::place::{NO_DISC, open_disc};

/// What a shard does in a tick, in this order.
pub const PHASES: [&str; 5] = ["receive", "step", "show", "hear", "send"];

const SEED: u64 = 42;
/// Joins in one tick.
const JOINS_PER_TICK: usize = 40;
/// Radius of the crowd, 1/256 m.
const CROWD_RADIUS: i32 = 15 * GRID_PER_M;
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
    /// Everybody in one disc; else all over the land.
    pub crowd: bool,
    /// Shards, one after the other in one thread.
    pub shards: usize,
    /// Snapshots a second; clients send their commands as often.
    pub send_hz: u32,
}

/// What came of it.
pub struct Measured {
    /// CPU time of whole ticks, of all shards together.
    pub tick_ns: Histogram<u64>,
    /// Sums by phase.
    pub phase_ns: [u64; PHASES.len()],
    pub sends: u64,
    pub send_bytes: u64,
    pub over_one_datagram: u64,
    /// Entities, summed over ticks.
    pub entities: u64,
    /// Slots that were encoded, likewise.
    pub encoded: u64,
    /// Entities that are not as their keyframe shows them, likewise.
    pub moved: u64,
    pub packed_bits: u64,
    pub allocations: u64,
    /// Ticks since the newest update of what clients see: the nearest 40, the next 200, the rest.
    pub stale: [Histogram<u64>; 3],
    pub playing: u64,
    /// Bodies that a client had to drop.
    pub errors: u64,
}

struct Shard {
    core: Core,
    mesh: MeshEnd,
    frames: Vec<Arc<Frame>>,
}

struct Client {
    bot: Bot,
    session: Option<SessionRef>,
    shard: usize,
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
    shards: Vec<Shard>,
    clients: Vec<Client>,
    by_session: HashMap<SessionRef, usize>,
    up: Vec<Way>,
    down: Way,
    /// Scratch: what the keeper hears of one shard.
    commands: Vec<KeeperCommand>,
    measured: Measured,
    measuring: bool,
}

impl Way {
    fn clear(&mut self) {
        self.bytes.clear();
        self.bodies.clear();
    }

    fn put(&mut self, session: SessionRef, write: impl FnOnce(&mut [u8]) -> usize) -> usize {
        let from = self.bytes.len();
        self.bytes.resize(from + BODY_BYTES_MAX, 0);
        let length = write(&mut self.bytes[from..]);
        self.bytes.truncate(from + length);
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
        tick_ns: histogram(10_000_000_000),
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
    }
}

fn cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
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
    /// Everybody will join in the first ticks. An error says what the land lacks.
    pub fn new(setting: Setting) -> Result<Realm, String> {
        let land = Arc::new(Land::new(SEED));
        let centre = open_disc(&land).ok_or(NO_DISC)?;
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
        let core = |shard| Core::new(World::new(config.clone(), ShardId(shard)), setting.shards, rules);
        let ends = mesh::connect(setting.shards).into_iter();
        let shards: Vec<Shard> =
            (0u8..).zip(ends).map(|(shard, mesh)| Shard { core: core(shard), mesh, frames: Vec::new() }).collect();
        let clients = (0..setting.players).map(|number| {
            let haunt = match setting.crowd {
                true => Haunt::Disc { centre, radius: CROWD_RADIUS },
                false => Haunt::Land,
            };
            let looks = (number as usize).is_multiple_of(LOOKERS);
            let options = ClientOptions { packed: true, decode: looks, reliable_transport: false };
            let bot = Bot::new(SEED, number, haunt, None, options);
            let shard = number as usize % LANES % setting.shards;
            Client { bot, session: None, shard, stands: setting.crowd && number % 5 != 0 }
        });
        Ok(Realm {
            setting,
            clients: clients.collect(),
            by_session: HashMap::new(),
            up: (0..setting.shards).map(|_| Way::default()).collect(),
            down: Way::default(),
            commands: Vec::new(),
            shards,
            measured: empty(),
            measuring: false,
        })
    }

    /// From now on everything counts.
    pub fn begin_measuring(&mut self) {
        (self.measured, self.measuring) = (empty(), true);
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
        self.measured
    }

    /// One tick: clients, then shards.
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
        for (number, client) in waiting.take(JOINS_PER_TICK) {
            let user_data = UserData { spawn_point: Some(client.bot.spawn_point()), peaceful: true, reusable: false };
            let mut token_mac = [0; 16];
            token_mac[..8].copy_from_slice(&(number as u64).to_le_bytes());
            let client_id = number as u64 + 1;
            let identity = Identity { client_id, user_data, token_mac, expires_unix_s: u64::MAX / 2, timeout_s: 10 };
            client.session = self.shards[client.shard].core.admit((number % LANES) as u8, identity, false);
            let session = client.session.expect("the lanes hold all players");
            self.by_session.insert(session, number);
        }
    }

    /// What the clients send.
    fn play(&mut self, tick: u64) {
        let every = u64::from(60 / self.setting.send_hz);
        self.up.iter_mut().for_each(Way::clear);
        for (number, client) in self.clients.iter_mut().enumerate() {
            let Some(session) = client.session else { continue };
            match client.stands {
                true => client.bot.stand(tick),
                false => client.bot.want(tick),
            }
            if (tick + number as u64).is_multiple_of(every) {
                self.up[client.shard].put(session, |out| client.bot.session.poll_body(tick as u32, 0, out));
            }
        }
    }

    /// What the shards do; CPU time by phase.
    fn serve(&mut self, tick: u64) -> [u64; PHASES.len()] {
        let phases: [fn(&mut Realm, u64); PHASES.len()] =
            [Realm::receive, Realm::step, Realm::show, Realm::hear, Realm::send];
        // Under valgrind there is no such clock.
        let watch = if self.measuring { cpu_ns } else { || 0 };
        let mut at_ns = watch();
        phases.map(|phase| {
            phase(self, tick);
            let now_ns = watch();
            let spent_ns = now_ns - at_ns;
            at_ns = now_ns;
            spent_ns
        })
    }

    // The phases are functions of their own in the program too: callgrind counts them by their names.

    #[inline(never)]
    fn receive(&mut self, _tick: u64) {
        for (shard, up) in self.shards.iter_mut().zip(&self.up) {
            up.each().for_each(|(session, body)| shard.core.handle_body(session, body));
        }
    }

    #[inline(never)]
    fn step(&mut self, tick: u64) {
        for Shard { core, mesh, .. } in &mut self.shards {
            core.give_actions();
            mesh.give_inputs(tick, &mut core.inputs);
            core.begin(tick);
        }
        for (at, Shard { core, mesh, .. }) in self.shards.iter_mut().enumerate() {
            let mut mine = std::mem::take(&mut core.inputs[at]);
            core.take_inputs(ShardId(at as u8), &mine);
            mine.reset(tick);
            core.inputs[at] = mine;
            mesh.take_inputs(tick, || false, |from, parcel| core.take_inputs(from, parcel));
            core.play();
        }
    }

    #[inline(never)]
    fn show(&mut self, tick: u64) {
        for Shard { core, mesh, frames } in &mut self.shards {
            let mut outs = mesh.outcomes(tick);
            let free = frames.iter().position(|frame| Arc::strong_count(frame) == 1);
            let mut shown = free.map_or_else(Arc::default, |at| frames.swap_remove(at));
            let frame = Arc::get_mut(&mut shown).expect("a free frame is nobody's");
            core.publish(frame, &mut outs);
            outs.iter_mut().for_each(|parcel| parcel.frame = Some(shown.clone()));
            frames.push(shown);
            core.hear(mesh.give_outcomes(outs));
        }
    }

    #[inline(never)]
    fn hear(&mut self, tick: u64) {
        for Shard { core, mesh, .. } in &mut self.shards {
            mesh.take_outcomes(tick, || false, |parcel| core.hear(parcel));
        }
    }

    #[inline(never)]
    fn send(&mut self, _tick: u64) {
        let Realm { shards, down, .. } = self;
        down.clear();
        for Shard { core, .. } in shards {
            core.send_due(Whom::Rest, |session, write| {
                down.put(session, |out| write(out));
            });
            core.end_tick();
        }
    }

    fn note(&mut self, phase_ns: [u64; PHASES.len()], allocations: u64) {
        let measured = &mut self.measured;
        measured.tick_ns.saturating_record(phase_ns.iter().sum());
        measured.phase_ns.iter_mut().zip(phase_ns).for_each(|(sum, ns)| *sum += ns);
        measured.allocations += allocations;
        measured.sends += self.down.bodies.len() as u64;
        measured.send_bytes += self.down.bytes.len() as u64;
        measured.over_one_datagram += self.down.each().filter(|(_, body)| body.len() > BODY_BYTES_MAX).count() as u64;
        for frame in self.shards.iter().filter_map(|shard| shard.core.frames.newest_of(shard.core.world.shard)) {
            measured.entities += frame.index.len() as u64;
            measured.encoded += frame.slices.iter().map(|slice| u64::from(slice.slots)).sum::<u64>();
            let moved = frame.now.iter().zip(&frame.keyframe).filter(|(now, key)| now.id() != 0 && now.0 != key.0);
            measured.moved += moved.count() as u64;
            measured.packed_bits += 8 * frame.packed.len() as u64;
        }
    }

    /// A keeper that lets everybody in at once and writes nothing.
    fn answer_claims(&mut self) {
        for Shard { core, .. } in &mut self.shards {
            self.commands.append(&mut core.keeper);
            for command in self.commands.drain(..) {
                let KeeperCommand::Claim { session, client_id, .. } = command else { continue };
                let row = newcomer(client_id);
                core.hear_keeper(KeeperAnswer::Claimed { session, row, new: false, operation: 0 });
            }
        }
    }

    /// What the shards sent arrives.
    fn arrive(&mut self, tick: u64) {
        for (session, body) in self.down.each() {
            let client = &mut self.clients[self.by_session[&session]];
            // What is wrong with it is counted there.
            let _ = client.bot.hear(body, |_| ());
        }
        if self.measuring && tick.is_multiple_of(LOOK_TICKS) {
            let Realm { clients, measured, shards, .. } = self;
            let frames = &shards[0].core.frames;
            let shown: Vec<Seen> = frames.newest().flat_map(Frame::seen_all).collect();
            for client in clients.iter().step_by(LOOKERS) {
                look(&client.bot, &shown, tick, &mut measured.stale);
            }
        }
    }
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
