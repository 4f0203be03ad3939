//! Shards that run late and apart, recorded; the replay does the same, and damage is named.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::folder::{self, FlightFolder, Reason, segment_name};
use crate::exit::Code;
use crate::limits::{PARCELS_MAX, SESSION_BYTES_PER_S_MAX};
use crate::realm::core::{Core, Rules};
use crate::realm::flight::record::{Damage, Done, Encoder, Entries, FORMAT, Fault, Head, Kind};
use crate::realm::flight::replay::{self, Report, Request, Segment};
use crate::realm::sessions::interest::Radii;
use crate::realm::sessions::session::Rates;
use crate::wire::ids::{EntityId, ShardId};
use crate::wire::messages;
use crate::wire::transport::handshake::Identity;
use crate::wire::transport::token::UserData;
use crate::wire::units::GRID_PER_M;
use crate::world::cut::CutMap;
use crate::world::land::Land;
use crate::world::movement::{BUTTON_RUN, Command};
use crate::world::parcel::{Input, InputKind, InputParcel, Merged, OutcomeParcel};
use crate::world::random::random;
use crate::world::{DecreeKind, World, WorldConfig};

const SEED: u64 = 5;
const CONTENT: u64 = 77;
const SNAPSHOT_TICKS: u64 = 50;

/// One shard with its recorder's end of things.
struct Recorded {
    core: Core,
    encoder: Encoder,
    previous: u64,
    inputs: Vec<VecDeque<InputParcel>>,
    outcomes: Vec<VecDeque<OutcomeParcel>>,
    merged: Merged,
    segments: Vec<Vec<u8>>,
}

/// What waits for a shard: as many parcels as under way in the mesh, and one that newer ones are merged into. True: it was.
fn put<T>(queue: &mut VecDeque<T>, mut parcel: T, absorb: impl FnOnce(&mut T, &mut T)) -> bool {
    let is_merged = queue.len() > PARCELS_MAX;
    match queue.back_mut().filter(|_| is_merged) {
        Some(waits) => absorb(waits, &mut parcel),
        None => queue.push_back(parcel),
    }
    is_merged
}

/// Shards whose meetings and edges fail now and then.
struct Realm {
    shards: Vec<Recorded>,
    late: bool,
    /// A shard that stands still in these ticks.
    stall: Option<(usize, Range<u64>)>,
}

fn head(shard: usize, shards: usize) -> Head {
    Head {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        content: CONTENT,
        run: 1,
        shard: ShardId(shard as u8),
        shards: shards as u8,
        seed: SEED,
        land_seed: SEED,
        npc_life_ticks: 120,
    }
}

fn identity(number: u64) -> Identity {
    // In pairs along a border of two shards, who can wave at each other.
    let spawn = (2_048 * GRID_PER_M + (number % 2) as i32 * 300, (600 + number as i32 * 20) * GRID_PER_M);
    let user_data = UserData { spawn_point: Some(spawn), peaceful: true, reusable: true };
    Identity { client_id: number, user_data, token_mac: [0; 16], expires_unix_s: u64::MAX, timeout_s: 10 }
}

impl Realm {
    fn new(shards: usize, late: bool) -> Realm {
        let land = Arc::new(Land::new(SEED));
        let cut = Arc::new(CutMap::equal(shards));
        let config = WorldConfig {
            seed: SEED,
            land,
            cut,
            npcs: 400,
            npc_life_ticks: 120,
            start_tick: 0,
            things: Arc::default(),
        };
        let radii = Radii { enter: 96 * GRID_PER_M, leave: 128 * GRID_PER_M };
        let rates = Rates { send_hz: 30, bytes_per_s: SESSION_BYTES_PER_S_MAX };
        let rules = Rules { radii, rates, dev: true, seam: None };
        let shard = |shard: usize| {
            let core = Core::new(World::new(config.clone(), ShardId(shard as u8)), shards, rules);
            let (encoder, mut bytes) = (Encoder::default(), Vec::new());
            encoder.head(&mut bytes, 0, &head(shard, shards));
            encoder.snapshot(&mut bytes, &core.world, &core.frames, 0, &core.taken);
            let (inputs, outcomes) = (vec![VecDeque::new(); shards], vec![VecDeque::new(); shards]);
            Recorded { core, encoder, previous: 0, inputs, outcomes, merged: Merged::default(), segments: vec![bytes] }
        };
        Realm { shards: (0..shards).map(shard).collect(), late, stall: None }
    }

    /// Whether something goes wrong for a shard in a tick: one time in eight.
    fn fails(&self, shard: usize, tick: u64, what: u64) -> bool {
        self.late && random(SEED, EntityId(shard as u64), tick, what).is_multiple_of(8)
    }

    fn tick(&mut self, tick: u64) {
        let count = self.shards.len();
        let stands =
            |shard: usize| self.stall.as_ref().is_some_and(|(at, ticks)| *at == shard && ticks.contains(&tick));
        let runs: Vec<usize> = (0..count).filter(|&shard| !self.fails(shard, tick, 0) && !stands(shard)).collect();
        for &at in &runs {
            self.give(at, tick);
        }
        for &at in &runs {
            let waits: Vec<bool> = (0..count).map(|from| self.fails(at, tick, 1 + from as u64)).collect();
            self.step(at, tick, &waits);
        }
        for &at in &runs {
            let waits: Vec<bool> = (0..count).map(|from| self.fails(at, tick, 100 + from as u64)).collect();
            self.hear(at, tick, &waits);
        }
    }

    fn give(&mut self, at: usize, tick: u64) {
        let Recorded { core, encoder, .. } = &mut self.shards[at];
        if tick < 20 {
            core.admit(at as u8, identity(tick), false).expect("there is room");
        }
        let told: Vec<_> = core.each_session().filter_map(|(_, _, told)| told.copied()).collect();
        for (number, told) in told.into_iter().enumerate() {
            let (entity, owner) = (EntityId(told.state.entity()), told.next_owner.index());
            let turn = if (tick / 200).is_multiple_of(2) { 0 } else { 0x8000 };
            let yaw = (number as u16).wrapping_mul(4_000) ^ turn;
            let command = Command { yaw, forward: 127, right: 0, buttons: BUTTON_RUN };
            core.inputs[owner].push_commands(entity, told.session, 0, [command].into_iter());
            if tick.is_multiple_of(30) {
                let (ordinal, request) = (told.taken[0] + 1, messages::Request::Emote { kind: 1 });
                let kind = InputKind::Request { ordinal, number: ordinal.into(), request };
                core.inputs[owner].inputs.push(Input { entity, session: told.session, kind });
            }
        }
        core.pass_requests();
        encoder.given(&core.outside, &core.inputs);
        let given: Vec<InputParcel> = core.inputs.iter_mut().map(std::mem::take).collect();
        let mut merged = 0;
        for (to, parcel) in given.into_iter().enumerate() {
            let parcel = InputParcel { tick, ..parcel };
            merged |= u32::from(put(&mut self.shards[to].inputs[at], parcel, InputParcel::absorb)) << to;
        }
        self.shards[at].merged = Merged { inputs: merged, outcomes: 0 };
    }

    fn step(&mut self, at: usize, tick: u64, waits: &[bool]) {
        let count = self.shards.len();
        let Recorded { core, encoder, inputs, .. } = &mut self.shards[at];
        core.begin(tick);
        let others = (0..count).filter(|&from| from != at && !waits[from]);
        for from in std::iter::once(at).chain(others) {
            while let Some(parcel) = inputs[from].pop_front() {
                core.take_inputs(ShardId(from as u8), &parcel);
            }
        }
        core.play();
        let mut outs: Vec<OutcomeParcel> = (0..count).map(|_| OutcomeParcel::default()).collect();
        outs.iter_mut().for_each(|out| out.reset(core.world.shard, tick));
        core.publish(&mut outs);
        encoder.parcels(outs.iter());
        let (mut own, mut merged) = (std::mem::take(&mut outs[at]), 0);
        for (to, out) in outs.into_iter().enumerate().filter(|&(to, _)| to != at) {
            let absorb = |waits: &mut OutcomeParcel, out: &mut OutcomeParcel| {
                waits.absorb(out);
                own.effects.append(&mut out.effects);
            };
            merged |= u32::from(put(&mut self.shards[to].outcomes[at], out, absorb)) << to;
        }
        self.shards[at].merged.outcomes = merged;
        self.shards[at].outcomes[at].push_back(own);
    }

    fn hear(&mut self, at: usize, tick: u64, waits: &[bool]) {
        let count = self.shards.len();
        let Recorded { core, encoder, outcomes, segments, previous, merged, .. } = &mut self.shards[at];
        let others = (0..count).filter(|&from| from != at && !waits[from]);
        for from in std::iter::once(at).chain(others) {
            while let Some(mut parcel) = outcomes[from].pop_front() {
                core.hear(&mut parcel);
            }
        }
        let previous = std::mem::replace(previous, tick);
        let (taken, digest) = (core.taken.clone(), core.world.digest_part());
        let done = Done { previous, rows: core.rows, taken, merged: *merged, digest };
        if tick.is_multiple_of(SNAPSHOT_TICKS) {
            encoder.end(segments.last_mut().expect("one is open"), previous);
            let mut bytes = Vec::new();
            encoder.head(&mut bytes, tick, &head(at, count));
            encoder.tick(&mut bytes, tick, &done);
            encoder.snapshot(&mut bytes, &core.world, &core.frames, previous, &done.taken);
            segments.push(bytes);
        } else {
            encoder.tick(segments.last_mut().expect("one is open"), tick, &done);
        }
    }

    fn record(shards: usize, late: bool, ticks: u64) -> Vec<Vec<Vec<u8>>> {
        Realm::new(shards, late).run(ticks)
    }

    fn run(self, ticks: u64) -> Vec<Vec<Vec<u8>>> {
        let shards = self.shards.len();
        let mut realm = self;
        for tick in 1..=ticks {
            if tick == 130 && shards > 1 {
                let starts: Vec<u32> = (0..shards as u32).map(|shard| shard * 700).collect();
                realm.shards[0].core.decree(DecreeKind::Cut(Arc::new(CutMap::from_starts(&starts))));
            }
            realm.tick(tick);
        }
        let handoffs: u64 = realm.shards.iter().map(|shard| shard.core.world.counters.handed_out).sum();
        assert!(shards == 1 || ticks < 300 || handoffs > 50, "{handoffs} handoffs");
        for shard in &mut realm.shards {
            shard.encoder.end(shard.segments.last_mut().expect("one is open"), ticks);
        }
        realm.shards.into_iter().map(|shard| shard.segments).collect()
    }
}

fn examined(record: &[Vec<Vec<u8>>]) -> Vec<Vec<Segment>> {
    let whole = |bytes: &Vec<u8>| Segment::examine(bytes).expect("it is whole");
    record.iter().map(|segments| segments.iter().map(whole).collect()).collect()
}

fn replayed(record: &[Vec<Vec<u8>>], seed: u64, request: Request) -> Option<Report> {
    let segments = examined(record);
    let places = replay::start(&segments)?;
    let head = Head { seed, ..segments[0][places[0]].head.clone() };
    let mut load = |shard: usize, segment: usize| Ok(record[shard].get(segment).cloned());
    let name = |_, _, damage: Damage| panic!("{damage:?}");
    Some(replay::run(&head, &places, &mut load, &name, request).expect("nothing is damaged"))
}

#[test]
fn every_hash_comes_again() {
    for shards in [1, 2, 4] {
        let record = Realm::record(shards, false, 320);
        let report = replayed(&record, SEED, Request::default()).expect("a start");
        assert_eq!((report.from_tick, report.to_tick, report.mismatches), (0, 320, 0), "{report:?}");
        assert_eq!(report.hashes_compared, shards as u64 * (320 + 6), "each tick and each snapshot");
    }
}

#[test]
fn parcels_that_came_late_come_late_again() {
    let mut record = Realm::record(4, true, 620);
    let mut starts = 0;
    // From every snapshot that the replay can begin with, the newest included.
    while record.iter().all(|segments| !segments.is_empty()) {
        if let Some(report) = replayed(&record, SEED, Request::default()) {
            assert_eq!((report.mismatches, report.first_mismatch), (0, None), "{report:?}");
            assert!(report.to_tick > 600, "{report:?}");
            starts += u64::from(report.from_tick > 0);
        }
        record.iter_mut().for_each(|segments| drop(segments.remove(0)));
    }
    assert!(starts >= 3, "{starts} starts within the run");
}

#[test]
fn parcels_that_were_merged_for_a_shard_that_stood_still_are_merged_again() {
    for late in [false, true] {
        for at in 0..3 {
            let mut record = Realm { stall: Some((at, 110..400)), ..Realm::new(3, late) }.run(620);
            let mut froms = Vec::new();
            while record.iter().all(|segments| !segments.is_empty()) {
                if let Some(report) = replayed(&record, SEED, Request::default()) {
                    assert_eq!((report.mismatches, report.first_mismatch), (0, None), "{report:?}");
                    assert!(report.to_tick > 600, "{report:?}");
                    froms.push(report.from_tick);
                }
                record.iter_mut().for_each(|segments| drop(segments.remove(0)));
            }
            assert!(froms[0] == 0 && (late || froms.contains(&450)), "through all of it, and behind it: {froms:?}");
        }
    }
}

#[test]
fn another_world_differs_and_says_where() {
    let record = Realm::record(2, false, 120);
    let report = replayed(&record, SEED + 1, Request::default()).expect("a start");
    let first = report.first_mismatch.expect("another seed is another world");
    assert!(report.mismatches >= 1 && first.tick <= 8, "{report:?}");
    assert_eq!(report.to_tick, first.tick, "nothing is replayed beyond it");
}

#[test]
fn a_gap_is_passed_over_and_a_full_end_is_told() {
    let mut record = Realm::record(2, false, 170);
    // The segment from tick 50 on was full after its snapshot: ticks 51 to 99 are not there.
    let cut = |record: &mut Vec<Vec<Vec<u8>>>, segment: usize, tick: u64| {
        let bytes = &mut record[1][segment];
        let mut entries = Entries::new(bytes);
        while entries.next_entry().expect("it is whole").is_some_and(|entry| entry.kind != Kind::Snapshot) {}
        let at = entries.at;
        bytes.truncate(at);
        Encoder::default().end(bytes, tick);
    };
    cut(&mut record, 1, 51);
    let report = replayed(&record, SEED, Request::default()).expect("a start");
    assert_eq!((report.from_tick, report.to_tick, report.mismatches), (100, 170, 0), "{report:?}");
    cut(&mut record, 3, 151);
    assert!(examined(&record)[1][3].full);
    let report = replayed(&record, SEED, Request::default()).expect("a start");
    assert_eq!((report.from_tick, report.to_tick, report.mismatches), (100, 150, 0), "{report:?}");
}

#[test]
fn an_entity_has_a_history() {
    let record = Realm::record(2, true, 200);
    let entity = Some(EntityId::guest(0, 1));
    let report = replayed(&record, SEED, Request { until: Some(150), entity }).expect("a start");
    assert!(report.to_tick <= 150 && report.history.len() > 100, "{} lines", report.history.len());
    assert!(report.history.windows(2).all(|pair| pair[0].tick < pair[1].tick));
    let events: Vec<&String> = report.history.iter().flat_map(|moment| &moment.events).collect();
    for part in ["joins by shard 0", "input: 1 commands", "Emote { kind: 1 }"] {
        assert!(events.iter().any(|event| event.contains(part)), "{part}: {events:?}");
    }
    let placed = report.history.iter().filter(|moment| moment.position_m.is_some()).count();
    assert!(placed > 100);
}

#[test]
fn every_flipped_byte_is_found_where_it_is() {
    let record = Realm::record(2, false, 60);
    let bytes = &record[1][1];
    for at in (0..bytes.len()).step_by(37) {
        let mut altered = bytes.clone();
        altered[at] ^= 0x10;
        let damage = Segment::examine(&altered).expect_err("every byte counts");
        assert!(damage.offset <= at as u64, "byte {at}: {damage:?}");
        assert_eq!(damage.fault, Fault::Altered, "byte {at}: {damage:?}");
    }
}

#[test]
fn a_cut_is_seen_wherever_it_is() {
    let record = Realm::record(1, false, 40);
    let bytes = &record[0][0];
    let whole = Segment::examine(bytes).expect("it is whole");
    assert!(whole.ended && !whole.torn && whole.last == 40 && whole.bytes == bytes.len() as u64);
    for length in (0..bytes.len()).step_by(13) {
        match Segment::examine(&bytes[..length]) {
            Ok(segment) => assert!(!segment.ended && segment.last <= 40 && segment.bytes <= length as u64),
            Err(damage) => assert!(damage.offset <= length as u64 && damage.fault == Fault::Torn, "{damage:?}"),
        }
    }
    let padded = [&bytes[..], &[0; 100]].concat();
    assert_eq!(Segment::examine(&padded).expect("zeroes fill the block").bytes, bytes.len() as u64);
}

/// A data folder that goes away with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("ringshard-flight-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Folder(path)
    }

    fn write(&self, flight: &FlightFolder, record: &[Vec<Vec<u8>>]) {
        for (shard, segments) in record.iter().enumerate() {
            for bytes in segments {
                let tick = Segment::examine(bytes).expect("it is whole").snapshot;
                std::fs::write(flight.shard_path(shard).join(segment_name(tick)), bytes).unwrap();
            }
        }
    }

    fn kept(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.0.join("flight/kept")).unwrap();
        let mut kept: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        kept.sort();
        kept
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

#[test]
fn a_run_that_did_not_end_well_is_set_aside_and_one_that_did_goes() {
    let (data, record) = (Folder::new(), Realm::record(2, false, 120));
    let flight = FlightFolder::open(&data.0, 2, 16).unwrap();
    data.write(&flight, &record);
    let flight = FlightFolder::open(&data.0, 2, 16).unwrap();
    let kept = data.kept();
    assert!(kept.len() == 1 && kept[0].to_string_lossy().ends_with("-crash"), "{kept:?}");
    let report = folder::replay(&folder::examine(&kept[0], CONTENT).unwrap(), Request::default()).unwrap();
    assert_eq!((report.to_tick, report.mismatches), (120, 0));
    data.write(&flight, &record);
    flight.end().unwrap();
    assert_eq!(folder::examine(&data.0, CONTENT + 1).unwrap_err().code, Code::Config);
    let report = folder::replay(&folder::examine(&data.0, CONTENT).unwrap(), Request::default()).unwrap();
    assert_eq!(report.ended_early, None);
    FlightFolder::open(&data.0, 2, 16).unwrap();
    assert_eq!(data.kept().len(), 1);
    assert_eq!(folder::examine(&data.0, CONTENT).unwrap_err().code, Code::Unavailable, "nothing is left");
}

#[test]
fn what_is_set_aside_is_whole_or_names_what_is_not() {
    let (data, record) = (Folder::new(), Realm::record(2, false, 120));
    let flight = FlightFolder::open(&data.0, 2, 16).unwrap();
    data.write(&flight, &record);
    for (shard, segments) in record.iter().enumerate() {
        flight.progress(shard).wrote(100, segments[2].len() as u64);
    }
    let kept = flight.set_aside(Reason::Invariant).unwrap();
    assert!(folder::examine(&kept, CONTENT).is_ok());
    // The file that is being written was copied up to here; less than that is a loss.
    let newest = kept.join("shard-1").join(segment_name(100));
    let bytes = std::fs::read(&newest).unwrap();
    std::fs::write(&newest, &bytes[..bytes.len() - 500]).unwrap();
    let failure = folder::examine(&kept, CONTENT).unwrap_err();
    assert!(failure.code == Code::Io && failure.text.contains("cut short"), "{failure}");
    assert!(failure.text.contains(&newest.display().to_string()), "{failure}");
    std::fs::remove_file(&newest).unwrap();
    assert!(folder::examine(&kept, CONTENT).unwrap_err().text.contains("is missing"));
    for _ in 0..10 {
        flight.set_aside(Reason::Request).unwrap();
    }
    assert_eq!(data.kept().len(), 8, "the oldest gave way");
}
