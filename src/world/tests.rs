//! The one rule as a property: the same inputs give the same world on any number of shards.

use super::*;
use crate::effect::Word;
use crate::events::write_events;
use crate::movement::{BUTTON_RUN, Command};
use crate::random::random;
use crate::wire::body::BodyWriter;
use crate::wire::units::{FINE_PER_M, FINE_SHIFT, GRID_PER_M};

const SEED: u64 = 77;

/// Worlds of all shards in lockstep, with scripted players in place of sessions.
struct Lockstep {
    worlds: Vec<World>,
    frames: Frames,
    given: Vec<Vec<OutcomeParcel>>,
    owners: Vec<ShardId>,
    states: Vec<structs::OwnState>,
    taken: Vec<u16>,
    private: Vec<PrivateEvent>,
    /// Digest of the public events that a few players are shown.
    public: Digest,
    hash: u64,
    early: Option<u64>,
}

const PLAYERS: u64 = 60;

fn session(player: u64) -> SessionRef {
    SessionRef { lane: (player % 32) as u8, slot: (player / 32) as u16, generation: 1 }
}

impl Lockstep {
    fn new(shards: usize, land: &Arc<Land>) -> Lockstep {
        let cut = Arc::new(CutMap::equal(shards));
        let config = WorldConfig {
            seed: SEED,
            land: land.clone(),
            cut,
            npcs: 400,
            npc_life_ticks: 120,
            start_tick: 0,
            things: Arc::new([]),
        };
        let worlds = (0..shards).map(|shard| World::new(config.clone(), ShardId(shard as u8))).collect();
        let given = (0..shards).map(|_| (0..shards).map(|_| OutcomeParcel::default()).collect()).collect();
        Lockstep {
            worlds,
            frames: Frames::new(shards),
            given,
            owners: vec![ShardId(0); PLAYERS as usize],
            states: vec![structs::OwnState::default(); PLAYERS as usize],
            taken: vec![0; PLAYERS as usize],
            private: Vec::new(),
            public: Digest::new(0),
            hash: 0,
            early: None,
        }
    }

    fn inputs(&self, tick: u64) -> Vec<InputParcel> {
        let mut parcels = vec![InputParcel::default(); self.worlds.len()];
        parcels.iter_mut().for_each(|parcel| parcel.reset(tick));
        for player in (0..PLAYERS).filter(|&player| self.states[player as usize].entity() != 0) {
            let (id, owner) = (EntityId::character(player), self.owners[player as usize].index());
            let turn = random(SEED, id, tick / 240, 1) as u16;
            let yaw = if (tick / 240).is_multiple_of(2) {
                turn
            } else {
                (random(SEED, id, tick / 240 - 1, 1) as u16) ^ 0x8000
            };
            let command = Command { yaw, forward: 127, right: 0, buttons: BUTTON_RUN };
            parcels[owner].push_commands(id, session(player), tick as u32 * 2, [command; 2].into_iter());
            let request = match tick {
                _ if tick % 40 == player % 40 => Some(Request::WaveAt { target: EntityId::character(player ^ 1) }),
                _ if tick % 64 < 2 => Some(Request::Emote { kind: player as u16 }),
                _ => None,
            };
            if let Some(request) = request {
                let ordinal = self.taken[player as usize] + 1;
                let kind = InputKind::Request { ordinal, number: ordinal.into(), request };
                parcels[owner].inputs.push(Input { entity: id, session: session(player), kind });
            }
        }
        parcels
    }

    fn tick(&mut self, tick: u64) {
        let frames = &self.frames;
        for (at, world) in self.worlds.iter_mut().enumerate() {
            self.given.iter_mut().for_each(|from| world.arrive(&mut from[at]));
            world.begin(tick, frames);
        }
        if tick == 2 {
            for player in 0..PLAYERS {
                // In pairs around places on the borders of eight shards.
                let (x, y) =
                    (2_048 + (player / 2 % 5) as i32 * 3 - 6, 512 * (1 + (player / 10) as i32) + (player % 2) as i32);
                let (x, y) = self.worlds[0].land().nearest_walkable(x * FINE_PER_M, y * FINE_PER_M);
                let id = EntityId::character(player);
                let joining = Joining {
                    id,
                    session: session(player),
                    client_id: player,
                    x,
                    y,
                    yaw: 0,
                    epoch: 1,
                    guest: false,
                    peaceful: true,
                    deeds: 0,
                };
                let lane_owner = player as usize % self.worlds.len();
                self.worlds[lane_owner].send_join(joining, frames);
            }
        }
        let inputs = self.inputs(tick);
        let mut entities = 0u64;
        let mut effects = 0u64;
        for (at, world) in self.worlds.iter_mut().enumerate() {
            world.take_inputs(&inputs[at], frames);
            world.play(true, frames);
        }
        let mut shown = Vec::new();
        for (world, outs) in self.worlds.iter_mut().zip(&mut self.given) {
            outs.iter_mut().for_each(|out| out.reset(world.shard, tick));
            let mut frame = Frame::default();
            world.publish(&mut frame, outs);
            shown.push(Arc::new(frame));
            entities = entities.wrapping_add(world.digest());
            for player in outs.iter().flat_map(|out| &out.handoffs.players) {
                entities = entities.wrapping_add(player.digest());
            }
            entities =
                outs.iter().flat_map(|out| &out.handoffs.npcs).map(Npc::digest).fold(entities, u64::wrapping_add);
            let spawners = outs.iter().flat_map(|out| &out.handoffs.spawners);
            entities = spawners.map(Spawner::digest).fold(entities, u64::wrapping_add);
            effects = outs.iter().flat_map(|out| &out.effects).map(Effect::digest).fold(effects, u64::wrapping_add);
            for told in outs.iter().flat_map(|out| &out.told) {
                let player = told.session.slot as usize * 32 + told.session.lane as usize;
                self.owners[player] = told.next_owner;
                (self.states[player], self.taken[player]) = (told.state, told.taken[0]);
            }
            self.private.extend(outs.iter().flat_map(|out| &out.private));
        }
        if self.early == Some(tick) {
            self.deliver_across_early();
        }
        shown.into_iter().for_each(|frame| drop(self.frames.push(frame)));
        self.hash = roll_hash(self.hash, tick, entities, effects);
        self.view_events(tick);
    }

    /// Some players are shown the public events of a tick; there are more near them than a body takes.
    fn view_events(&mut self, tick: u64) {
        for state in self.states.iter().step_by(7) {
            let mut out = [0; 512];
            let mut body = BodyWriter::server(&mut out, structs::ServerHeader::default());
            let from = (state.x() >> FINE_SHIFT, state.y() >> FINE_SHIFT);
            write_events(&self.frames, (tick - 1, tick), (from, 0), 96 * GRID_PER_M, &mut body);
            let length = body.finish();
            for byte in &out[..length] {
                self.public.add((*byte).into());
            }
        }
    }

    /// What must never happen: an effect across a seam is applied in the tick in which it was sent.
    fn deliver_across_early(&mut self) {
        for from in 0..self.given.len() {
            for to in (0..self.worlds.len()).filter(|&to| to != from) {
                let early = std::mem::take(&mut self.given[from][to].effects);
                for effect in &early {
                    self.worlds[to].apply(effect, &self.frames);
                }
            }
        }
    }

    fn check(&self) {
        let total = |count: fn(&Counters) -> u64| self.worlds.iter().map(|world| count(&world.counters)).sum::<u64>();
        let under_way: usize = self.given.iter().flatten().map(|out| out.effects.len()).sum();
        let travelling: usize = self
            .given
            .iter()
            .flatten()
            .map(|out| out.handoffs.players.len() + out.handoffs.npcs.len() + out.handoffs.spawners.len())
            .sum();
        let present: usize = self.worlds.iter().map(|world| world.ids().count()).sum();
        assert_eq!((present + travelling) as u64, total(|c| c.spawned) - total(|c| c.despawned));
        assert_eq!(
            total(|c| c.effects_sent),
            total(|c| c.effects_applied) + total(|c| c.effects_refused) + under_way as u64
        );
        let mut ids: Vec<_> = self.worlds.iter().flat_map(|world| world.ids()).map(|(id, _)| id).collect();
        ids.sort_unstable();
        assert!(ids.windows(2).all(|pair| pair[0] != pair[1]), "an entity has one owner");
    }
}

fn run(shards: usize, ticks: u64, prepare: impl Fn(&mut Lockstep)) -> Lockstep {
    let land = Arc::new(Land::new(SEED));
    let mut realm = Lockstep::new(shards, &land);
    prepare(&mut realm);
    for tick in 1..=ticks {
        realm.tick(tick);
        if realm.early.is_none() {
            realm.check();
        }
    }
    realm
}

#[test]
fn seams_are_invisible() {
    let one = run(1, 900, |_| ());
    assert!(
        one.private.iter().filter(|event| matches!(event.word, Word::Answer { refusal: Refusal::None, .. })).count()
            > 100
    );
    for shards in [2, 4, 8] {
        let many = run(shards, 900, |_| ());
        let handoffs: u64 = many.worlds.iter().map(|world| world.counters.handed_in).sum();
        let across: u64 = many.worlds.iter().map(|world| world.counters.effects_across).sum();
        assert!(handoffs > 20 && across > 50, "{shards} shards: {handoffs} handoffs, {across} effects across");
        assert_eq!(many.hash, one.hash, "{shards} shards");
        assert_eq!(many.public.finish(), one.public.finish(), "viewers on {shards} shards see the same events");
        let (mut a, mut b) = (one.private.clone(), many.private.clone());
        let key = |event: &PrivateEvent| match event.word {
            Word::Answer { number, refusal, .. } => (event.session, number, refusal),
            other => unreachable!("{other:?}"),
        };
        a.sort_by_key(key);
        b.sort_by_key(key);
        assert_eq!(a, b, "clients of {shards} shards are told the same");
    }
}

#[test]
fn moving_cuts_are_invisible() {
    let one = run(1, 600, |_| ());
    let four = run(4, 600, |realm| {
        let cuts = [[0, 100, 2_000, 3_000], [0, 900, 1_000, 4_000], [0, 1_024, 2_048, 3_072]];
        for (turn, starts) in (1u64..).zip(cuts) {
            let cut = Arc::new(CutMap::from_starts(&starts));
            let decree = Decree { tick: 150 * turn, kind: DecreeKind::Cut(cut) };
            realm.worlds.iter_mut().for_each(|world| world.decree(decree.clone()));
        }
    });
    assert_eq!(four.hash, one.hash);
}

#[test]
fn an_effect_one_tick_early_is_seen() {
    let good = run(8, 400, |_| ());
    let across = |realm: &Lockstep| realm.worlds.iter().map(|world| world.counters.effects_across).sum::<u64>();
    assert!(across(&good) > 20);
    let changed =
        (100..140u64).any(|tick| run(8, 160, |realm| realm.early = Some(tick)).hash != run(8, 160, |_| ()).hash);
    assert!(changed);
}

#[test]
fn stopping_saves_every_character() {
    let realm = run(4, 300, |realm| {
        let decree = Decree { tick: 250, kind: DecreeKind::Stop };
        realm.worlds.iter_mut().for_each(|world| world.decree(decree.clone()));
    });
    let released = realm.worlds.iter().flat_map(|world| &world.saves).filter(|save| save.released.is_some());
    assert_eq!(released.count() as u64, PLAYERS);
    assert!(realm.worlds.iter().all(|world| world.entities().0 == 0));
}

#[test]
fn a_cell_with_more_than_it_can_show_shows_what_fits() {
    let (x, y) = (100 * FINE_PER_M, 100 * FINE_PER_M);
    let things = (1..=16_000).map(|number| crate::wire::goods::Thing { number, kind: 1, x, y, end_tick: 1_000 });
    let config = WorldConfig {
        seed: SEED,
        land: Arc::new(Land::new(SEED)),
        cut: Arc::new(CutMap::equal(1)),
        npcs: 0,
        npc_life_ticks: 120,
        start_tick: 0,
        things: things.collect(),
    };
    let (mut world, mut frames) = (World::new(config, ShardId(0)), Frames::new(1));
    for tick in 1..=2 * crate::limits::KEYFRAME_TICKS {
        world.begin(tick, &frames);
        world.play(true, &frames);
        let (mut frame, mut out) = (Frame::default(), OutcomeParcel::default());
        out.reset(ShardId(0), tick);
        world.publish(&mut frame, &mut [&mut out]);
        let shown = frame.index.len() as u64;
        assert!((12_000..=15_360).contains(&shown), "{shown} are shown");
        let hidden = world.counters.entities_hidden;
        assert!(hidden >= tick * (16_000 - 15_360), "{hidden} were hidden by tick {tick}");
        frames.push(Arc::new(frame));
    }
}

#[test]
fn joins_of_two_lanes_happen_in_one_order_whichever_came_first() {
    let order = |lanes: [u8; 2]| {
        let config = WorldConfig {
            seed: SEED,
            land: Arc::new(Land::new(SEED)),
            cut: Arc::new(CutMap::equal(1)),
            npcs: 0,
            npc_life_ticks: 120,
            start_tick: 0,
            things: Arc::new([]),
        };
        let (mut world, mut parcel) = (World::new(config, ShardId(0)), OutcomeParcel::default());
        for lane in lanes {
            let (id, session) = (EntityId::guest(lane, 1), SessionRef { lane, slot: 0, generation: 1 });
            let joining = Joining {
                id,
                session,
                client_id: lane.into(),
                x: 100 * FINE_PER_M,
                y: 100 * FINE_PER_M,
                yaw: 0,
                epoch: 1,
                guest: true,
                peaceful: true,
                deeds: 0,
            };
            let (target, kind) = (Target::Cell(CellKey::of_fine(joining.x, joining.y)), EffectKind::Join(joining));
            parcel.effects.push(Effect { target, source: EntityId::JOIN, sequence: session.generation, kind });
        }
        world.arrive(&mut parcel);
        world.begin(1, &Frames::new(1));
        world.players().map(|player| player.body.id).collect::<Vec<_>>()
    };
    assert_eq!(order([0, 1]), order([1, 0]));
}

#[test]
fn an_operation_may_have_any_number() {
    let digest = |operation| {
        let mut digest = random::Digest::new(1);
        goods::Dealings { operation, ..goods::Dealings::default() }.digest(&mut digest);
        digest.finish()
    };
    let all = [None, Some(0), Some(1), Some(u64::MAX)].map(digest);
    assert!((0..4).all(|n| (0..n).all(|other| all[n] != all[other])));
}
