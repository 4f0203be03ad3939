//! A small server's recorded stream, as it is and altered in each way that the view must notice.

use super::*;
use crate::body::BodyWriter;
use crate::client::{ClientOptions, ClientSession};
use crate::generated::structs::{FragmentHeader, OwnState, ServerHeader};
use crate::limits::{BODY_BYTES_MAX, KEYFRAME_TICKS};
use crate::messages::{ServerMessage, Welcome};
use crate::slice::encode_delta;
use crate::units::FINE_SHIFT;
use std::collections::BTreeMap;

const SIDE_CELLS: i32 = 8;
const ENTER_M: u32 = 100;
const LEAVE_M: u32 = 130;
const TICKS: u32 = 8_000;
const SNAPSHOT_TICKS: u32 = 3;

#[derive(Clone)]
enum Record {
    Keyframe(SliceHeader, Vec<EntityPlain>),
    Update(SliceHeader, Vec<EntityPlain>, Vec<EntityPlain>),
    Leave(SliceKey),
}

impl Record {
    fn cell(&self) -> (i32, i32) {
        let (x, y) = match self {
            Record::Keyframe(header, _) | Record::Update(header, ..) => (header.cell_x(), header.cell_y()),
            Record::Leave(key) => (key.cell_x(), key.cell_y()),
        };
        (i32::from(x), i32::from(y))
    }
}

#[derive(Clone)]
struct Snapshot {
    tick: u32,
    own: (i32, i32),
    records: Vec<Record>,
    /// Who stands in the cells in view, and where.
    truth: BTreeMap<u64, (i32, i32)>,
}

struct Walker {
    id: u64,
    x: i32,
    y: i32,
    dx: i32,
    dy: i32,
    home: (i32, i32),
    slot: usize,
}

#[derive(Default)]
struct Cell {
    epoch: u8,
    keyframe: Vec<EntityPlain>,
}

struct MiniServer {
    walkers: Vec<Walker>,
    cells: BTreeMap<(i32, i32), Cell>,
    /// Epoch and slots of the keyframe that the viewer has.
    known: BTreeMap<(i32, i32), (u8, usize)>,
    random: u64,
}

fn plain(walker: &Walker) -> EntityPlain {
    let inside = |v: i32, cell: i32| u16::try_from(v - cell * CELL_GRID + MARGIN_GRID).expect("inside the margin");
    let (x, y) = (inside(walker.x, walker.home.0), inside(walker.y, walker.home.1));
    EntityPlain::new(walker.id, x, y, 700, (walker.dx & 0xff) as u8, 0x21)
}

fn header((x, y): (i32, i32), epoch: u8, first_slot: usize, count: usize) -> SliceHeader {
    SliceHeader::new(0, x as i16, y as i16, 3, epoch, first_slot as u8, count as u8, 0, 0)
}

impl MiniServer {
    fn new(seed: u64) -> MiniServer {
        let mut server = MiniServer { walkers: vec![], cells: BTreeMap::new(), known: BTreeMap::new(), random: seed };
        for id in 1..=150 {
            let mut place = || if id == 1 { CELL_GRID } else { server.below(SIDE_CELLS * CELL_GRID) };
            let (x, y) = (place(), place());
            let home = (x / CELL_GRID, y / CELL_GRID);
            let mut walker = Walker { id, x, y, dx: 0, dy: 0, home, slot: 0 };
            server.settle(&mut walker);
            server.walkers.push(walker);
        }
        server
    }

    fn below(&mut self, bound: i32) -> i32 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.random >> 33) % bound as u64) as i32
    }

    fn settle(&mut self, walker: &mut Walker) {
        let cell = self.cells.entry(walker.home).or_default();
        walker.slot = cell.keyframe.len();
        cell.keyframe.push(plain(walker));
        assert!(cell.keyframe.len() <= SLICE_SLOTS_MAX);
    }

    fn step(&mut self, tick: u32) {
        let mut walkers = std::mem::take(&mut self.walkers);
        for walker in &mut walkers {
            if self.below(60) == 0 {
                (walker.dx, walker.dy) = (self.below(31) - 15, self.below(31) - 15);
            }
            if walker.id == 1 {
                // The viewer walks to and fro along the diagonal, so that cells come and go.
                (walker.dx, walker.dy) = if tick % 7_000 < 4_500 { (15, 15) } else { (-15, -15) };
            }
            let end = SIDE_CELLS * CELL_GRID - 1;
            (walker.x, walker.y) = ((walker.x + walker.dx).clamp(0, end), (walker.y + walker.dy).clamp(0, end));
            let beyond = |v: i32, cell: i32| !(-1_024..CELL_GRID + 1_024).contains(&(v - cell * CELL_GRID));
            if beyond(walker.x, walker.home.0) || beyond(walker.y, walker.home.1) {
                walker.home = (walker.x / CELL_GRID, walker.y / CELL_GRID);
                self.settle(walker);
            }
        }
        for (key, cell) in &mut self.cells {
            if (tick as i32 + key.0 * 7 + key.1 * 13) % KEYFRAME_TICKS as i32 == 0 {
                cell.epoch = cell.epoch.wrapping_add(1);
                cell.keyframe.clear();
                for walker in walkers.iter_mut().filter(|walker| walker.home == *key) {
                    walker.slot = cell.keyframe.len();
                    cell.keyframe.push(plain(walker));
                }
            }
        }
        self.walkers = walkers;
    }

    fn snapshot(&mut self, tick: u32, leave_m: u32) -> Snapshot {
        let own = (self.walkers[0].x, self.walkers[0].y);
        let mut snapshot = Snapshot { tick, own, records: vec![], truth: BTreeMap::new() };
        for (&key, cell) in &self.cells {
            let off = |v: i32, cell: i32| (v - v.clamp(cell * CELL_GRID, (cell + 1) * CELL_GRID)) as f64;
            let distance = off(own.0, key.0).hypot(off(own.1, key.1)) / f64::from(GRID_PER_M);
            let known = self.known.get(&key).copied();
            if distance > f64::from(if known.is_some() { leave_m } else { ENTER_M }) {
                if self.known.remove(&key).is_some() {
                    snapshot.records.push(Record::Leave(SliceKey::new(0, key.0 as i16, key.1 as i16, 3, 0)));
                }
                continue;
            }
            let count = cell.keyframe.len();
            let first = known.filter(|known| known.0 == cell.epoch).map_or(0, |known| known.1);
            if first < count || known.is_none_or(|known| known.0 != cell.epoch) {
                let part = header(key, cell.epoch, first, count - first);
                snapshot.records.push(Record::Keyframe(part, cell.keyframe[first..].to_vec()));
            }
            self.known.insert(key, (cell.epoch, count));
            let mut now = vec![HOLE; count];
            for walker in self.walkers.iter().filter(|walker| walker.home == key) {
                now[walker.slot] = plain(walker);
                snapshot.truth.insert(walker.id, (walker.x, walker.y));
            }
            snapshot.records.push(Record::Update(header(key, cell.epoch, 0, count), now, cell.keyframe.clone()));
        }
        snapshot
    }
}

fn record(leave_m: u32) -> Vec<Snapshot> {
    let mut server = MiniServer::new(5);
    let mut stream = Vec::new();
    for tick in 0..TICKS {
        server.step(tick);
        if tick % SNAPSHOT_TICKS == 0 {
            stream.push(server.snapshot(tick, leave_m));
        }
    }
    stream
}

/// The sections of one record, bytes as on the wire.
fn section(record: &Record, packed: bool) -> Option<(u8, Vec<u8>)> {
    let flat = |entities: &[EntityPlain]| entities.iter().flat_map(|e| e.0).collect::<Vec<u8>>();
    Some(match record {
        Record::Keyframe(header, entities) if packed => (kind::KEYFRAME, [&header.0[..], &flat(entities)].concat()),
        Record::Keyframe(..) => return None,
        Record::Update(header, now, keyframe) if packed => {
            let mut bytes = header.0.to_vec();
            encode_delta(now, keyframe, &mut bytes);
            (kind::DELTA, bytes)
        }
        Record::Update(header, now, _) => (kind::PLAIN, [&header.0[..], &flat(now)].concat()),
        Record::Leave(key) => (kind::LEAVE, key.0.to_vec()),
    })
}

fn welcome() -> (u8, Vec<u8>) {
    let welcome = ServerMessage::Welcome(Welcome {
        entity: EntityId(1),
        client_id: 1,
        tick: 0,
        tick_hz: 60,
        send_hz: 20,
        land_seed: 0,
        land_size_m: 512,
        cell_size_m: 64,
        enter_radius_m: ENTER_M,
        leave_radius_m: LEAVE_M,
        seam: None,
        version: String::new(),
        order: 0,
    });
    (kind::RELIABLE_ORDERED, [&FragmentHeader::new(0, 0, 1).0[..], &welcome.encode()].concat())
}

fn own_state(snapshot: &Snapshot) -> (u8, Vec<u8>) {
    let (x, y) = (snapshot.own.0 << FINE_SHIFT, snapshot.own.1 << FINE_SHIFT);
    (kind::OWN_STATE, OwnState::new(1, x, y, 0, 0, snapshot.tick + 1, 0, 0, 0, 0, 0, 0, 0).0.to_vec())
}

/// Plays a stream to a client in real bodies, as far as each `arrives`; checks once a second.
fn play(stream: &[Snapshot], packed: bool, mut arrives: impl FnMut() -> bool) -> ClientSession {
    let mut session = ClientSession::new(ClientOptions { packed, decode: true, reliable_transport: false });
    let mut sequence = 65_000u16;
    for snapshot in stream {
        let sections = snapshot.records.iter().filter_map(|record| section(record, packed));
        let sections: Vec<_> = [welcome(), own_state(snapshot)].into_iter().chain(sections).collect();
        let mut sections = sections.iter().peekable();
        while sections.peek().is_some() {
            let mut out = [0; BODY_BYTES_MAX];
            let header = ServerHeader::new(snapshot.tick, 0, sequence, 0, 0, 0);
            let mut writer = BodyWriter::server(&mut out, header);
            let before = writer.remaining();
            while sections.next_if(|(kind, bytes)| writer.section(*kind, bytes)).is_some() {}
            assert!(writer.remaining() < before, "each section fits a body");
            let length = writer.finish();
            sequence = sequence.wrapping_add(1);
            if arrives() {
                session.handle_body(&out[..length]).expect("well formed");
            }
        }
        if snapshot.tick % 60 == 0 {
            session.check_view(snapshot.tick);
        }
    }
    session
}

#[test]
fn an_unaltered_stream_shows_the_truth_without_an_error() {
    let stream = record(LEAVE_M);
    let leaves = stream.iter().flat_map(|s| &s.records).filter(|r| matches!(r, Record::Leave(_))).count();
    assert!(leaves > 10, "cells come and go");
    for packed in [true, false] {
        let session = play(&stream, packed, || true);
        assert_eq!((session.errors(), session.view().not_held()), (Errors::default(), 0));
        let last = stream.last().expect("snapshots");
        for (id, place) in &last.truth {
            let seen = session.view().entity(EntityId(*id)).expect("in view");
            assert_eq!(((seen.x, seen.y), seen.tick, seen.shown), (*place, last.tick, true));
        }
        let shown = session.view().entities().filter(|seen| seen.shown).count();
        assert_eq!(shown, last.truth.len(), "nobody else");
        assert_eq!(session.view().visible(last.tick, 0), last.truth.len() - 1);
    }
}

#[test]
fn a_jump_is_seen() {
    let mut stream = record(LEAVE_M);
    let update = stream[200].records.iter_mut().find_map(|record| match record {
        Record::Update(_, now, _) => now.iter_mut().find(|entity| entity.id() > 1),
        _ => None,
    });
    let entity = update.expect("somebody");
    entity.set_x(if entity.x() > 10_240 { entity.x() - 5_120 } else { entity.x() + 5_120 });
    for packed in [true, false] {
        let errors = play(&stream, packed, || true).errors();
        assert_eq!(errors, Errors { jump: 2, ..Errors::default() }, "there and back");
    }
}

#[test]
fn an_entity_in_two_slices_is_seen() {
    let mut stream = record(LEAVE_M);
    let mut updates = stream[200].records.iter_mut().filter_map(|record| match record {
        Record::Update(header, now, _) => Some((header, now)),
        _ => None,
    });
    let (_, from) = updates.next().expect("a slice");
    let copy = *from.iter().find(|entity| entity.id() != 0).expect("somebody");
    let (header, to) = updates.next().expect("another slice");
    to.push(copy);
    header.set_count(to.len() as u8);
    let errors = play(&stream, false, || true).errors();
    assert_eq!(errors, Errors { twice: 1, ..Errors::default() });
}

#[test]
fn a_slice_that_falls_silent_is_seen() {
    let mut stream = record(LEAVE_M);
    let middle = stream[300].own;
    let cell = (middle.0 / CELL_GRID, middle.1 / CELL_GRID);
    for snapshot in &mut stream[300..] {
        snapshot.records.retain(|record| record.cell() != cell);
        snapshot.own = middle;
    }
    let errors = play(&stream[..400], true, || true).errors();
    assert!(errors.never_leaves > 0);
    assert_eq!(errors, Errors { never_leaves: errors.never_leaves, ..Errors::default() });
}

#[test]
fn a_slice_that_never_leaves_is_seen() {
    let errors = play(&record(10_000), true, || true).errors();
    assert!(errors.never_leaves > 0);
    assert_eq!(errors, Errors { never_leaves: errors.never_leaves, ..Errors::default() });
}

#[test]
fn contradictions_within_a_slice_are_seen() {
    let stream = record(LEAVE_M);
    let (place, header, keyframe) = stream[200]
        .records
        .iter()
        .enumerate()
        .find_map(|(place, record)| match record {
            Record::Update(header, now, keyframe) if now.iter().filter(|e| e.id() != 0).count() > 1 => {
                Some((place, *header, keyframe.clone()))
            }
            _ => None,
        })
        .expect("a slice with two");
    let other = |records: Vec<Record>, packed| {
        let mut altered = stream.clone();
        altered[200].records.splice(place..=place, records);
        let errors = play(&altered, packed, || true).errors();
        assert_eq!(errors, Errors { other: 1, ..Errors::default() });
    };
    let original = stream[200].records[place].clone();
    let mut renamed = keyframe[0];
    renamed.set_id(999);
    let mut piece = header;
    piece.set_count(1);
    other(vec![Record::Keyframe(piece, vec![renamed]), original.clone()], true);
    let Record::Update(_, now, _) = original else { panic!("an update") };
    let live: Vec<_> = (0..now.len()).filter(|&slot| now[slot].id() != 0).collect();
    let mut doubled = now.clone();
    doubled.push(now[live[0]]);
    let mut longer = header;
    longer.set_count(doubled.len() as u8);
    other(vec![Record::Update(longer, doubled, vec![])], false);
    let mut short = header;
    short.set_count(header.count() + 1);
    other(vec![Record::Update(short, now, vec![])], false);
}

#[test]
fn lost_packets_are_no_errors_of_their_own() {
    let mut state = 9u64;
    let session = play(&record(LEAVE_M), true, || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33 & 7 != 0
    });
    let errors = session.errors();
    assert!(session.view().not_held() > 0);
    assert_eq!(errors, Errors { never_leaves: errors.never_leaves, ..Errors::default() });
}

#[test]
fn orphans_are_forgotten_and_a_slice_that_leaves_takes_its_members() {
    let mut view = View::default();
    let update = |cell: i32, ids: &[u64]| {
        let entities = ids.iter().flat_map(|&id| EntityPlain::new(id, 9_000, 9_000, 0, 0, 0).0);
        header((cell, 0), 0, 0, ids.len()).0.into_iter().chain(entities).collect::<Vec<u8>>()
    };
    assert!(view.section(0, kind::PLAIN, &update(0, &[5, 6])));
    assert!(view.section(10, kind::PLAIN, &update(0, &[5, 0])));
    view.end_body(60);
    assert!(view.entity(EntityId(6)).is_some(), "an orphan waits");
    view.end_body(61);
    assert!(view.entity(EntityId(6)).is_none());
    assert_eq!((view.visible(61, 60), view.slices()), (1, 1));
    view.section(62, kind::LEAVE, &SliceKey::new(0, 0, 0, 3, 0).0);
    assert_eq!((view.visible(62, 120), view.slices()), (0, 0));
    view.section(63, kind::LEAVE, &SliceKey::new(0, 0, 0, 3, 0).0);
    assert_eq!(view.errors(), Errors::default());
}

#[test]
fn the_number_of_a_keyframe_is_free_again_once_an_update_had_another() {
    let slice = |epoch: u8, ids: &[u64]| {
        let entities = ids.iter().flat_map(|&id| EntityPlain::new(id, 9_000, 9_000, 0, 0, 0).0);
        header((0, 0), epoch, 0, ids.len()).0.into_iter().chain(entities).collect::<Vec<u8>>()
    };
    let mut view = View::default();
    view.section(1, kind::KEYFRAME, &slice(3, &[5, 6]));
    view.section(9_000, kind::PLAIN, &slice(2, &[7, 8]));
    view.section(9_016, kind::KEYFRAME, &slice(3, &[7, 8]));
    // One that was overtaken says nothing of what came after it.
    view.section(9_010, kind::PLAIN, &slice(2, &[7, 8]));
    let mut delta = header((0, 0), 3, 0, 2).0.to_vec();
    encode_delta(
        &[EntityPlain::new(7, 9_000, 9_000, 0, 0, 0), HOLE],
        &[EntityPlain::new(7, 9_000, 9_000, 0, 0, 0); 2],
        &mut delta,
    );
    assert!(view.section(9_017, kind::DELTA, &delta));
    assert_eq!((view.errors(), view.not_held()), (Errors::default(), 0));
}

#[test]
fn a_new_epoch_gives_slots_anew_and_its_keyframe_orphans_whom_it_lacks() {
    let mut view = View::default();
    let slice = |epoch: u8, ids: &[u64]| {
        let entities = ids.iter().flat_map(|&id| EntityPlain::new(id, 9_000, 9_000, 0, 0, 0).0);
        header((0, 0), epoch, 0, ids.len()).0.into_iter().chain(entities).collect::<Vec<u8>>()
    };
    view.section(0, kind::PLAIN, &slice(0, &[5, 6, 7]));
    view.section(1, kind::PLAIN, &slice(1, &[7, 5, 6]));
    assert_eq!(view.entities().filter(|seen| seen.shown).count(), 3);
    view.section(2, kind::KEYFRAME, &slice(1, &[7, 5, 6]));
    view.section(2, kind::KEYFRAME, &slice(2, &[6, 7]));
    let lacking: Vec<_> = view.entities().filter(|seen| !seen.shown).map(|seen| seen.id).collect();
    assert_eq!(lacking, [EntityId(5)]);
    assert_eq!(view.errors(), Errors::default());
}
