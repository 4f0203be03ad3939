//! Frames: what one shard shows of its entities at one tick.
//!
//! Owns flat columns without pointers between them. Promises: once published a frame never changes; an entity stands in
//! exactly one frame of a tick. Everybody sees the world through frames, neighbours and sessions alike.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::boxes::Boxes;
use crate::entity::WIRE_MARGIN;
use crate::events::PublicEvent;
use crate::limits::{FRAMES_KEPT, SILENT_TICKS, SLICE_SLOTS_MAX};
use crate::random::mix;
use crate::wire::generated::structs;
use crate::wire::ids::{CellKey, EntityId, ShardId};
use crate::wire::slice::{HOLE, encode_delta};
use crate::wire::units::{CELL_GRID, FINE_SHIFT};

/// One slice in a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SliceHead {
    /// Plot of its entities' home cells.
    pub plot: CellKey,
    /// Which slice of the plot, unique in the realm: owner and number.
    pub part: u16,
    /// Keyframe epoch, wrapping.
    pub epoch: u8,
    /// Slots, holes included.
    pub slots: u8,
    /// Entities.
    pub live: u8,
    /// Its keyframe outlived an epoch because nobody in it moved, and will be good for long.
    pub steady: bool,
    /// Its plot got other slices when the epoch began.
    pub reshaped: bool,
    /// First slot in the frame's columns.
    pub first: u32,
    /// Names it in [`Frame::head`] for as long as it lasts.
    pub name: SliceName,
    /// Where its packed bytes begin.
    pub packed: u32,
    /// How many there are.
    pub packed_bytes: u16,
}

/// Names a slice of one shard for as long as it lasts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SliceName(u32);

impl SliceName {
    /// Bits of the place; the rest says which tenant of it.
    const PLACE_BITS: u32 = 20;

    /// Of a place in the shard's slab, below 2^20, and how often that had another tenant before; that wraps at 4,096.
    pub fn new(place: u32, tenant: u32) -> SliceName {
        assert!(place < 1 << SliceName::PLACE_BITS, "slice {place}");
        SliceName(tenant << SliceName::PLACE_BITS | place)
    }

    fn place(self) -> usize {
        (self.0 & ((1 << SliceName::PLACE_BITS) - 1)) as usize
    }
}

impl SliceHead {
    /// The slice's slots in the frame's columns.
    pub fn slots(&self) -> Range<usize> {
        self.first as usize..self.first as usize + usize::from(self.slots)
    }
}

/// What one shard shows at one tick.
#[derive(Clone, Debug, Default)]
pub struct Frame {
    /// Whose.
    pub shard: ShardId,
    /// When.
    pub tick: u64,
    /// Slices, sorted by plot; change them with [`Frame::index_rows`] after it.
    pub slices: Vec<SliceHead>,
    /// Smallest boxes around their entities.
    pub boxes: Boxes,
    /// Rows of plots that have slices, in order, each with the place of its first one.
    rows: Vec<(u32, i16, u32)>,
    /// Columns of the slices' plots, beside each other for the search.
    columns: Vec<i16>,
    /// Place in `slices` of each slice by its place in the shard's slab; beyond the end for those that are not shown.
    places: Vec<u32>,
    /// Per slot: as it is now; id 0 is a hole.
    pub now: Vec<structs::EntityPlain>,
    /// Per slot: as it was when the keyframe was taken.
    pub keyframe: Vec<structs::EntityPlain>,
    /// Per slot: the owner two ticks on.
    pub next_owner: Vec<ShardId>,
    /// Slices encoded against their keyframes, one after the other.
    pub packed: Vec<u8>,
    /// Slot and slice of each entity, sorted by id.
    pub index: Vec<Indexed>,
    /// What happened, sorted by spot and rank.
    pub events: Vec<PublicEvent>,
}

/// Where a frame shows an entity.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Indexed {
    /// Who.
    pub id: EntityId,
    /// Slot in the columns.
    pub slot: u32,
    /// Slice.
    pub slice: u32,
}

/// What a frame shows of one entity.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Seen {
    /// Who.
    pub id: EntityId,
    /// Wire grid position, east and north.
    pub position: (i32, i32),
    /// Who owns it when an effect sent now arrives.
    pub next_owner: ShardId,
}

impl Frame {
    /// Notes where the rows of plots begin, so that [`Frame::rows`] finds them, and where each slice is.
    pub fn index_rows(&mut self) {
        self.rows.clear();
        self.columns.clear();
        self.places.fill(u32::MAX);
        for (place, slice) in (0..).zip(&self.slices) {
            let CellKey { space, y, x } = slice.plot;
            if self.rows.last().is_none_or(|&(last_space, last_y, _)| (last_space, last_y) != (space, y)) {
                self.rows.push((space, y, place));
            }
            self.columns.push(x);
            let slab = slice.name.place();
            if self.places.len() <= slab {
                self.places.resize(slab + 1, u32::MAX);
            }
            self.places[slab] = place;
        }
    }

    /// What happened in the rows of spots from `low` to `high` of a space.
    pub fn events_in_rows(&self, space: u32, low: i16, high: i16) -> &[PublicEvent] {
        let row = |public: &PublicEvent| (public.spot.space, public.spot.y);
        let first = self.events.partition_point(|public| row(public) < (space, low));
        let count = self.events[first..].partition_point(|public| row(public) <= (space, high));
        &self.events[first..first + count]
    }

    /// Measures the boxes of all slices, which are not empty.
    pub fn measure_boxes(&mut self) {
        self.boxes.clear();
        for slice in &self.slices {
            let (mut low, mut high) = ((u16::MAX, u16::MAX), (0, 0));
            for plain in &self.now[slice.slots()] {
                // A hole counts for nothing; without a branch, since holes cannot be foretold.
                let (least, most) = if plain.id() == 0 { (u16::MAX, 0) } else { (0, u16::MAX) };
                low = (low.0.min(plain.x() | least), low.1.min(plain.y() | least));
                high = (high.0.max(plain.x() & most), high.1.max(plain.y() & most));
            }
            self.boxes.push(absolute(slice.plot, low), absolute(slice.plot, high));
        }
    }

    /// Places in `slices` of the plots of a space that a square reaches, row by row: all that stands within `reach` wire
    /// grid steps of a position is in them.
    #[inline]
    pub fn rows(&self, space: u32, from: (i32, i32), reach: i32) -> impl Iterator<Item = Range<usize>> {
        let cell = |v: i32| v.div_euclid(CELL_GRID) as i16;
        // Who stands outside its plot stands in its margin.
        let reach = reach + WIRE_MARGIN;
        let low = CellKey { space, y: cell(from.1 - reach), x: cell(from.0 - reach) }.plot();
        let high = CellKey { space, y: cell(from.1 + reach), x: cell(from.0 + reach) };
        let first = self.rows.partition_point(|&(other, row, _)| (other, row) < (space, low.y));
        let wanted =
            move |&at: &usize| self.rows.get(at).is_some_and(|&(other, row, _)| (other, row) <= (space, high.y));
        (first..).take_while(wanted).map(move |at| {
            let end = self.rows.get(at + 1).map_or(self.slices.len(), |&(.., first)| first as usize);
            let first = self.rows[at].2 as usize;
            let begin = first + self.columns[first..end].partition_point(|&column| column < low.x);
            let count = self.columns[begin..end].iter().take_while(|&&column| column <= high.x).count();
            begin..begin + count
        })
    }

    /// Place in the columns, and in `slices`, of a slot of the slice at a place in the shard's slab, which is shown.
    pub fn locate(&self, slab: u32, slot: u32) -> (u32, u32) {
        let place = self.places[slab as usize];
        (self.slices[place as usize].first + slot, place)
    }

    /// A slice by its name, if it is shown.
    #[inline]
    pub fn head(&self, name: SliceName) -> Option<&SliceHead> {
        let place = *self.places.get(name.place())?;
        self.slices.get(place as usize).filter(|slice| slice.name == name)
    }

    /// What this frame shows of an entity.
    pub fn find(&self, id: EntityId) -> Option<Seen> {
        let at = self.index.binary_search_by_key(&id, |indexed| indexed.id).ok()?;
        let Indexed { slot, slice, .. } = self.index[at];
        Some(self.seen(&self.slices[slice as usize], slot as usize))
    }

    /// All that it shows of entities, by id: enough to make [`Frame::of_seen`] from.
    pub fn seen_all(&self) -> impl Iterator<Item = Seen> + '_ {
        self.index.iter().map(|&Indexed { slot, slice, .. }| self.seen(&self.slices[slice as usize], slot as usize))
    }

    /// A frame that shows these entities, sorted by id: `find` and `near` answer as on the frame that they were seen in.
    /// It is for the step alone: nothing in it is encoded for clients.
    pub fn of_seen(shard: ShardId, tick: u64, seen: &[Seen]) -> Frame {
        let plot_of =
            |seen: &Seen| CellKey::of_fine(seen.position.0 << FINE_SHIFT, seen.position.1 << FINE_SHIFT).plot();
        let mut sorted: Vec<(CellKey, Seen)> = seen.iter().map(|seen| (plot_of(seen), *seen)).collect();
        sorted.sort_unstable_by_key(|&(plot, seen)| (plot, seen.id));
        let mut frame = Frame { shard, tick, ..Frame::default() };
        for group in sorted.chunk_by(|a, b| a.0 == b.0).flat_map(|plot| plot.chunks(SLICE_SLOTS_MAX)) {
            frame.add_seen(group);
        }
        frame.index_rows();
        frame.measure_boxes();
        frame.index.sort_unstable_by_key(|indexed| indexed.id);
        frame
    }

    /// One more slice, of at most [`SLICE_SLOTS_MAX`] entities of one plot.
    fn add_seen(&mut self, group: &[(CellKey, Seen)]) {
        let (plot, first, slice) = (group[0].0, self.now.len() as u32, self.slices.len() as u32);
        let (slots, live) = (group.len() as u8, group.len() as u8);
        self.slices.push(SliceHead {
            plot,
            part: 0,
            epoch: 0,
            slots,
            live,
            steady: false,
            reshaped: false,
            first,
            name: SliceName::new(slice, 0),
            packed: 0,
            packed_bytes: 0,
        });
        for &(_, Seen { id, position, next_owner }) in group {
            let offset = |v: i32, cell: i16| (v - i32::from(cell) * CELL_GRID + WIRE_MARGIN) as u16;
            let (x, y) = (offset(position.0, plot.x), offset(position.1, plot.y));
            self.index.push(Indexed { id, slot: self.now.len() as u32, slice });
            self.now.push(structs::EntityPlain::new(id.0, x, y, 0, 0, 0));
            self.next_owner.push(next_owner);
        }
    }

    fn seen(&self, slice: &SliceHead, slot: usize) -> Seen {
        let plain = &self.now[slot];
        let position = position(slice.plot, plain);
        Seen { id: EntityId(plain.id()), position, next_owner: self.next_owner[slot] }
    }
}

/// Wire grid position of an entity in a slice of a plot.
pub fn position(plot: CellKey, plain: &structs::EntityPlain) -> (i32, i32) {
    absolute(plot, (plain.x(), plain.y()))
}

fn absolute(plot: CellKey, (x, y): (u16, u16)) -> (i32, i32) {
    let along = |offset: u16, cell: i16| i32::from(cell) * CELL_GRID + i32::from(offset) - WIRE_MARGIN;
    (along(x, plot.x), along(y, plot.y))
}

/// The newest frames of all shards, as one shard holds them. A shard of which no frame came for [`SILENT_TICKS`] ticks is
/// silent: its newest frame is shown as it is, without those who are elsewhere by now.
#[derive(Clone, Debug)]
pub struct Frames {
    kept: Vec<VecDeque<Arc<Frame>>>,
    /// By shard, while it is silent.
    stale: Vec<Option<Box<Frame>>>,
    /// No frame came since what silent shards show was looked at.
    noted: bool,
}

impl Frames {
    /// No frames yet of any of `shards` shards.
    pub fn new(shards: usize) -> Frames {
        let kept = (0..shards).map(|_| VecDeque::with_capacity(FRAMES_KEPT + 1)).collect();
        Frames { kept, stale: vec![None; shards], noted: false }
    }

    /// Takes a newer frame in; gives back the one that is too old to keep.
    pub fn push(&mut self, frame: Arc<Frame>) -> Option<Arc<Frame>> {
        self.stale[frame.shard.index()] = None;
        self.noted = false;
        let kept = &mut self.kept[frame.shard.index()];
        assert!(kept.back().is_none_or(|last| last.tick < frame.tick), "frames of a shard come in order");
        kept.push_back(frame);
        if kept.len() > FRAMES_KEPT { kept.pop_front() } else { None }
    }

    /// The newest frame of each shard that published one.
    pub fn newest(&self) -> impl Iterator<Item = &Frame> {
        self.kept.iter().filter_map(|kept| kept.back()).map(|frame| &**frame)
    }

    /// The newest frame of one shard.
    pub fn newest_of(&self, shard: ShardId) -> Option<&Frame> {
        self.kept[shard.index()].back().map(|frame| &**frame)
    }

    /// Whether `own` showed [`SILENT_TICKS`] ticks since the newest frame of a shard. Ticks that `own` skipped do not count:
    /// after it stood still itself, the others' frames are on their way.
    fn is_silent(&self, shard: usize, own: ShardId) -> bool {
        let Some(newest) = self.kept[shard].back() else { return false };
        let own = &self.kept[own.index()];
        own.len().checked_sub(SILENT_TICKS).is_some_and(|first| own[first].tick > newest.tick)
    }

    /// The newest tick of which the frame of every shard that is not silent is here. A shard skips ticks that it was too
    /// late for: frames of different ticks together could show an entity twice, or not at all.
    pub fn complete_tick(&self, own: ShardId) -> Option<u64> {
        let has = |kept: &VecDeque<Arc<Frame>>, tick| kept.iter().rev().any(|frame| frame.tick == tick);
        let mut ticks = self.kept[own.index()].iter().rev().map(|frame| frame.tick);
        ticks.find(|&tick| (0..self.kept.len()).all(|at| has(&self.kept[at], tick) || self.is_silent(at, own)))
    }

    /// Before [`Frames::shown_at`]: makes what silent shards show fit what the others do.
    pub fn note_silent(&mut self, own: ShardId) {
        if std::mem::replace(&mut self.noted, true) {
            return;
        }
        for shard in 0..self.kept.len() {
            if !self.is_silent(shard, own) {
                continue;
            }
            let newest = &self.kept[shard];
            let mut stale = self.stale[shard].take().or_else(|| newest.back().map(|frame| Box::new((**frame).clone())));
            stale.iter_mut().for_each(|stale| {
                let tick = stale.tick;
                let newer = || self.kept.iter().flatten().filter(|other| other.tick > tick);
                stale.take_out(|id| newer().any(|other| other.find(id).is_some()));
            });
            self.stale[shard] = stale;
        }
    }

    /// Each shard's frame of a tick that is complete; the newest one of those that are silent.
    pub fn shown_at(&self, tick: u64) -> impl Iterator<Item = &Frame> {
        self.kept.iter().zip(&self.stale).filter_map(move |(kept, stale)| match stale {
            Some(stale) => Some(&**stale),
            None => kept.iter().rev().find(|frame| frame.tick == tick).map(|frame| &**frame),
        })
    }

    /// The newest frames that are newer than one of them; whom they show is no longer where that one shows it.
    fn newer_than(&self, frame: &Frame) -> impl Iterator<Item = &Frame> {
        self.newest().filter(move |other| other.tick > frame.tick)
    }

    /// All frames of the ticks after `from` up to `to`, in order of shard and tick.
    pub fn between(&self, from: u64, to: u64) -> impl Iterator<Item = &Frame> {
        self.kept.iter().flat_map(move |kept| {
            let older = kept.len() - kept.iter().rev().take_while(|frame| frame.tick > from).count();
            kept.range(older..).map(|frame| &**frame).take_while(move |frame| frame.tick <= to)
        })
    }

    /// What the newest frames show of an entity.
    pub fn find(&self, id: EntityId) -> Option<Seen> {
        // While a late parcel is awaited two frames of different ticks may show one entity: the newest one counts.
        let shown = self.newest().filter_map(|frame| frame.find(id).map(|seen| (frame.tick, seen)));
        shown.max_by_key(|&(tick, _)| tick).map(|(_, seen)| seen)
    }

    /// Entities of a plot, as the newest frames show it.
    pub fn count_in(&self, plot: CellKey) -> usize {
        let south_west = (i32::from(plot.x) * CELL_GRID, i32::from(plot.y) * CELL_GRID);
        let count = |frame: &Frame| {
            let slices = frame.rows(plot.space, south_west, 0).flat_map(|row| &frame.slices[row]);
            let slots = slices.filter(|slice| slice.plot == plot).flat_map(SliceHead::slots);
            let live = slots.map(|slot| EntityId(frame.now[slot].id())).filter(|id| id.0 != 0);
            live.filter(|&id| !self.newer_than(frame).any(|newer| newer.find(id).is_some())).count()
        };
        self.newest().map(count).sum()
    }

    /// Calls `see` for each entity within `radius` (wire grid steps) of a position on the land.
    pub fn near(&self, centre: (i32, i32), radius: i32, mut see: impl FnMut(Seen, i64)) {
        for frame in self.newest() {
            let is_late = self.newer_than(frame).next().is_some();
            for place in frame.rows(0, centre, radius).flatten() {
                frame.near_in(place, centre, radius, &mut |seen, squared| {
                    if !(is_late && self.newer_than(frame).any(|newer| newer.find(seen.id).is_some())) {
                        see(seen, squared);
                    }
                });
            }
        }
    }
}

impl Frame {
    /// Takes out those of whom `is_elsewhere` says so, whether they were on their way or left the world and came back: they
    /// leave holes, and what clients are sent of their slices is encoded anew.
    fn take_out(&mut self, is_elsewhere: impl Fn(EntityId) -> bool) {
        for place in 0..self.slices.len() {
            let slice = self.slices[place];
            let is_gone = |&slot: &usize| self.now[slot].id() != 0 && is_elsewhere(EntityId(self.now[slot].id()));
            let gone: Vec<usize> = slice.slots().filter(is_gone).collect();
            if gone.is_empty() {
                continue;
            }
            gone.iter().for_each(|&slot| self.now[slot] = HOLE);
            self.index.retain(|indexed| !gone.contains(&(indexed.slot as usize)));
            let packed = self.packed.len();
            encode_delta(&self.now[slice.slots()], &self.keyframe[slice.slots()], &mut self.packed);
            let head = &mut self.slices[place];
            head.live -= gone.len() as u8;
            (head.packed, head.packed_bytes) = (packed as u32, (self.packed.len() - packed) as u16);
        }
    }

    fn near_in(&self, place: usize, centre: (i32, i32), radius: i32, see: &mut impl FnMut(Seen, i64)) {
        let (slice, (low, high)) = (&self.slices[place], self.boxes.at(place));
        if slice.live == 0 || distance_to_box(centre, low, high) > i64::from(radius) * i64::from(radius) {
            return;
        }
        for slot in slice.slots().filter(|&slot| self.now[slot].id() != 0) {
            let seen = self.seen(slice, slot);
            let squared = distance(centre, seen.position);
            if squared <= i64::from(radius) * i64::from(radius) {
                see(seen, squared);
            }
        }
    }
}

/// Says which older frames are among those shown at a tick; 0: none, mostly.
pub fn stale_among(shown: &[&Frame], tick: u64) -> u32 {
    let stale = shown.iter().filter(|frame| frame.tick != tick);
    stale.fold(0, |said, frame| mix(u64::from(said) ^ frame.tick << 8 ^ u64::from(frame.shard.0)) as u32)
}

/// Squared distance of two positions, wire grid steps.
pub fn distance(a: (i32, i32), b: (i32, i32)) -> i64 {
    let (dx, dy) = (i64::from(a.0) - i64::from(b.0), i64::from(a.1) - i64::from(b.1));
    dx * dx + dy * dy
}

/// Squared distance of a position to a box, wire grid steps; 0 inside.
pub fn distance_to_box(from: (i32, i32), low: (i32, i32), high: (i32, i32)) -> i64 {
    distance(from, (from.0.clamp(low.0, high.0), from.1.clamp(low.1, high.1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: ShardId = ShardId(0);
    const OTHER: ShardId = ShardId(1);

    fn seen(number: u64, next_owner: ShardId) -> Seen {
        Seen { id: EntityId::character(number), position: (1_000 + number as i32, 1_000), next_owner }
    }

    #[test]
    fn a_silent_shard_is_shown_as_it_was_without_those_who_are_elsewhere() {
        let mut frames = Frames::new(2);
        for tick in 1..=5 + SILENT_TICKS as u64 {
            if tick <= 5 {
                // One stays, one goes with this tick, one would have gone with the next, and one leaves the world later,
                // elsewhere, and comes back.
                let theirs = [seen(1, OTHER), seen(2, OWN), seen(3, OWN), seen(4, OTHER)];
                let mut theirs = Frame::of_seen(OTHER, tick, &theirs);
                theirs.keyframe = theirs.now.clone();
                frames.push(Arc::new(theirs));
            }
            let own: &[Seen] = if tick > 5 { &[seen(2, OWN), seen(4, OWN)] } else { &[] };
            frames.push(Arc::new(Frame::of_seen(OWN, tick, own)));
            frames.note_silent(OWN);
            let silent = tick == 5 + SILENT_TICKS as u64;
            assert_eq!(frames.complete_tick(OWN), Some(if silent { tick } else { tick.min(5) }));
            if tick > 5 {
                let mut near = Vec::new();
                frames.near((1_000, 1_000), 100, |seen, _| near.push(seen.id.number()));
                near.sort_unstable();
                assert_eq!((near, frames.count_in(CellKey::default())), (vec![1, 2, 3, 4], 4), "nobody twice");
            }
        }
        let tick = 5 + SILENT_TICKS as u64;
        let stale_at = |frames: &Frames| stale_among(&frames.shown_at(tick).collect::<Vec<_>>(), tick);
        assert!(stale_at(&frames) != 0);
        let live = |frame: &Frame| frame.now.iter().filter(|plain| plain.id() != 0).count();
        let shown: Vec<_> = frames.shown_at(tick).map(|frame| (frame.tick, live(frame), frame.index.len())).collect();
        assert_eq!(shown, [(tick, 2, 2), (5, 2, 2)]);
        let back = Frame::of_seen(OTHER, tick, &[seen(1, OTHER), seen(3, OTHER)]);
        frames.push(Arc::new(back));
        frames.note_silent(OWN);
        assert_eq!(frames.shown_at(tick).map(|frame| frame.tick).collect::<Vec<_>>(), [tick, tick], "it runs again");
        assert_eq!(stale_at(&frames), 0, "the same tick has another picture now");
    }

    #[test]
    fn who_stood_still_itself_takes_nobody_for_silent() {
        let mut frames = Frames::new(2);
        frames.push(Arc::new(Frame::of_seen(OWN, 5, &[])));
        frames.push(Arc::new(Frame::of_seen(OTHER, 5, &[])));
        frames.push(Arc::new(Frame::of_seen(OWN, 1_205, &[])));
        assert_eq!(frames.complete_tick(OWN), Some(5), "what the other showed meanwhile is on its way");
    }
}
