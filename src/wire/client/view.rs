//! A client's picture of the world: which entities its slices show, and where.
//!
//! Owns slices with their keyframes and the entities they show, by the client rules of `schemas/README.md`. Promises: no
//! panic on any bytes; what contradicts the rules is counted by kind; an update costs a few nanoseconds an entity and,
//! once the buffers grew, allocates nothing. Ticks are the low 32 bits; positions are absolute, in 1/256 m. Never judges
//! what a slice does not show.

use crate::body::{entities, kind};
use crate::fast_hash::FastHash;
use crate::generated::structs::{EntityPlain, SliceHeader, SliceKey};
use crate::ids::EntityId;
use crate::limits::{ORPHAN_TICKS_MAX, SLICE_SLOTS_MAX, VIEW_ENTITIES_MAX, VIEW_SLICES_MAX};
use crate::slice::{HOLE, decode_delta};
use crate::units::farthest;
use crate::units::{CELL_GRID, GRID_PER_M, PLOT_GRID};
use std::collections::HashMap;

#[cfg(test)]
mod tests;

/// Grid steps that a slice's positions reach beyond its plot on each side.
const MARGIN_GRID: i32 = 8 * GRID_PER_M;
/// Ticks after which an entity in reach counts as never updated.
const STALE_TICKS: u32 = 180;
/// Ticks within which an entity out of reach counts as shown.
const SHOWN_TICKS: u32 = 60;
/// Metres inside the enter radius where an entity must be updated: it may stand that far off the middle of its slice.
const INSIDE_M: i64 = 24;
/// Metres outside the leave radius where an entity must not be shown: a slice is as long as its plot with its margins.
const OUTSIDE_M: i64 = 204;
/// No member, in a list of members by slot.
const NOBODY: u32 = u32::MAX;

/// What contradicted the rules, by kind.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Errors {
    /// An entity moved between two updates farther than its speed and its time credit allow, horizontally.
    pub jump: u64,
    /// Two slices showed one entity as of the same tick.
    pub twice: u64,
    /// An entity was not updated and did not leave for 3 s while well in reach, or was shown well out of reach.
    pub never_leaves: u64,
    /// Malformed slices, ids that change within an epoch, an id twice in a slice, positions outside the plot's margin.
    pub other: u64,
}

/// One entity of the view.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Who.
    pub id: EntityId,
    /// Tick of the newest update.
    pub tick: u32,
    /// East, 1/256 m.
    pub x: i32,
    /// North, 1/256 m.
    pub y: i32,
    /// Up, 1/256 m.
    pub z: i32,
    /// 1/256 turn.
    pub yaw: u8,
    /// Low 4 bits archetype, high 4 bits state.
    pub look: u8,
    slot: u8,
    slice: u32,
    /// Its place shows it; otherwise it is an orphan, or a free entry of the table.
    shown: bool,
    /// Already counted as `never_leaves`.
    reported: bool,
}

const FREE: Seen = Seen {
    id: EntityId::NONE,
    tick: 0,
    x: 0,
    y: 0,
    z: 0,
    yaw: 0,
    look: 0,
    slot: 0,
    slice: 0,
    shown: false,
    reported: false,
};

#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
struct SliceName {
    space: u32,
    cell_x: i16,
    cell_y: i16,
    part: u16,
}

impl SliceName {
    fn of(header: &SliceHeader) -> SliceName {
        let (cell_x, cell_y) = (header.cell_x(), header.cell_y());
        SliceName { space: header.space(), cell_x, cell_y, part: header.part() }
    }
}

#[derive(Clone, Default, Debug)]
struct Slice {
    name: SliceName,
    /// Of `keyframe`.
    epoch: Option<u8>,
    keyframe: Vec<EntityPlain>,
    /// Tick of the newest body that brought a part of it.
    keyframe_tick: u32,
    /// Epoch and tick of the newest update.
    updated: Option<(u8, u32)>,
    /// By slot, as of the newest update: index of the entity, or [`NOBODY`].
    members: Vec<u32>,
}

/// See the module.
#[derive(Clone, Default, Debug)]
pub struct View {
    /// The client's own entity, which [`View::visible`] leaves out.
    pub own: EntityId,
    errors: Errors,
    not_held: u64,
    slices: Vec<Slice>,
    slices_free: Vec<u32>,
    slices_by_name: HashMap<SliceName, u32, FastHash>,
    entities: Vec<Seen>,
    entities_free: Vec<u32>,
    entities_by_id: HashMap<EntityId, u32, FastHash>,
    orphans: Vec<u32>,
    decoded: Vec<EntityPlain>,
    members_spare: Vec<u32>,
}

impl View {
    /// Takes one slice section of a body as of `tick`; other kinds are left alone. True: it was a slice's update.
    pub fn section(&mut self, tick: u32, section_kind: u8, bytes: &[u8]) -> bool {
        let outcome = match section_kind {
            kind::KEYFRAME => self.keyframe(tick, bytes).map(|()| false),
            kind::DELTA => self.delta(tick, bytes),
            kind::PLAIN => self.plain(tick, bytes),
            kind::LEAVE => self.leave(bytes).map(|()| false),
            _ => Some(false),
        };
        if outcome.is_none() {
            self.errors.other += 1;
        }
        outcome.unwrap_or(false)
    }

    /// After the last section of a body: forgets the orphans whose time is over.
    pub fn end_body(&mut self, tick: u32) {
        let mut place = 0;
        while place < self.orphans.len() {
            let index = self.orphans[place];
            let seen = &self.entities[index as usize];
            let over = tick.wrapping_sub(seen.tick) as i32 > ORPHAN_TICKS_MAX as i32;
            if seen.shown || seen.id == EntityId::NONE || over {
                self.orphans.swap_remove(place);
                if !seen.shown && seen.id != EntityId::NONE {
                    self.forget(index);
                }
            } else {
                place += 1;
            }
        }
    }

    /// Looks for entities that are not updated although in reach, or shown although out of it; to be called about once a
    /// second. Own position in 1/256 m, radii in metres. Each is counted once until that ends.
    pub fn check(&mut self, now_tick: u32, own_x: i32, own_y: i32, enter_radius_m: u32, leave_radius_m: u32) {
        let square = |metres: i64| (metres.max(0) * i64::from(GRID_PER_M)).pow(2);
        let inside = square(i64::from(enter_radius_m) - INSIDE_M);
        let outside = square(i64::from(leave_radius_m) + OUTSIDE_M);
        for seen in self.entities.iter_mut().filter(|seen| seen.shown) {
            let distance = distance_squared(seen.x, seen.y, own_x, own_y);
            // As a signed number: an update can be newer than the caller's clock.
            let age = now_tick.wrapping_sub(seen.tick) as i32;
            let stale = age > STALE_TICKS as i32 && distance < inside;
            let shown = age <= SHOWN_TICKS as i32 && distance > outside;
            if (stale || shown) && !seen.reported {
                self.errors.never_leaves += 1;
            }
            seen.reported = stale || shown;
        }
    }

    /// Other entities updated within so many ticks.
    pub fn visible(&self, now_tick: u32, within_ticks: u32) -> usize {
        self.entities()
            .filter(|e| e.id != self.own && now_tick.wrapping_sub(e.tick) as i32 <= within_ticks as i32)
            .count()
    }

    /// All entities, orphans included, in no order.
    pub fn entities(&self) -> impl Iterator<Item = &Seen> {
        self.entities.iter().filter(|seen| seen.id != EntityId::NONE)
    }

    /// One entity.
    pub fn entity(&self, id: EntityId) -> Option<&Seen> {
        self.entities_by_id.get(&id).map(|&index| &self.entities[index as usize])
    }

    /// Slices held.
    pub fn slices(&self) -> usize {
        self.slices_by_name.len()
    }

    /// Contradictions so far.
    pub fn errors(&self) -> Errors {
        self.errors
    }

    /// Deltas, and slots of deltas, that were passed over because their keyframe is not held. A packet lost before them
    /// explains it, so it is no error.
    pub fn not_held(&self) -> u64 {
        self.not_held
    }

    fn keyframe(&mut self, tick: u32, bytes: &[u8]) -> Option<()> {
        let (header, bytes) = split_header(bytes)?;
        let first = usize::from(header.first_slot());
        let entities = entities(bytes).filter(|e| e.len() == usize::from(header.count()))?;
        let end = first + entities.len();
        if end > SLICE_SLOTS_MAX {
            return None;
        }
        let index = self.slice(&header)?;
        let slice = &mut self.slices[index as usize];
        let is_new = slice.epoch != Some(header.epoch());
        if is_new {
            slice.epoch = Some(header.epoch());
            slice.keyframe.clear();
        }
        if is_new || tick.wrapping_sub(slice.keyframe_tick) as i32 > 0 {
            slice.keyframe_tick = tick;
        }
        if slice.keyframe.len() < end {
            slice.keyframe.resize(end, HOLE);
        }
        let mut sound = true;
        for (held, entity) in slice.keyframe[first..].iter_mut().zip(entities) {
            if held.id() == 0 {
                *held = entity;
            }
            sound &= entity.id() == 0 || held.0 == entity.0;
        }
        if is_new && first == 0 {
            self.orphan_absent(index);
        }
        sound.then_some(())
    }

    /// Orphans the members of a slice that its new keyframe does not hold.
    fn orphan_absent(&mut self, index: u32) {
        let slice = &self.slices[index as usize];
        for &member in slice.members.iter().filter(|&&member| member != NOBODY) {
            let seen = &mut self.entities[member as usize];
            let absent = !slice.keyframe.iter().any(|held| held.id() == seen.id.0);
            if absent && seen.shown && seen.slice == index {
                seen.shown = false;
                self.orphans.push(member);
            }
        }
    }

    fn delta(&mut self, tick: u32, bytes: &[u8]) -> Option<bool> {
        let (header, bits) = split_header(bytes)?;
        let held = self.slices_by_name.get(&SliceName::of(&header)).copied();
        let Some(index) = held.filter(|&index| self.slices[index as usize].epoch == Some(header.epoch())) else {
            self.not_held += 1;
            return Some(false);
        };
        let keyframe = &self.slices[index as usize].keyframe;
        let unknown = decode_delta(bits, keyframe, usize::from(header.count()), &mut self.decoded).ok()?;
        self.not_held += unknown as u64;
        self.apply(index, tick, header.epoch());
        Some(true)
    }

    fn plain(&mut self, tick: u32, bytes: &[u8]) -> Option<bool> {
        let (header, bytes) = split_header(bytes)?;
        let entities = entities(bytes).filter(|e| e.len() == usize::from(header.count()))?;
        if entities.len() > SLICE_SLOTS_MAX {
            return None;
        }
        let index = self.slice(&header)?;
        let slice = &mut self.slices[index as usize];
        if slice.epoch != Some(header.epoch()) && tick.wrapping_sub(slice.keyframe_tick) as i32 > 0 {
            // Its number will be another keyframe's.
            slice.epoch = None;
        }
        self.decoded.clear();
        self.decoded.extend(entities);
        self.apply(index, tick, header.epoch());
        Some(true)
    }

    fn leave(&mut self, bytes: &[u8]) -> Option<()> {
        let (keys, spare) = bytes.as_chunks();
        for key in keys {
            let key = SliceKey(*key);
            let (cell_x, cell_y) = (key.cell_x(), key.cell_y());
            let name = SliceName { space: key.space(), cell_x, cell_y, part: key.part() };
            // A key can come more than once: until the server knows that it arrived.
            let Some(index) = self.slices_by_name.remove(&name) else { continue };
            let slice = std::mem::take(&mut self.slices[index as usize]);
            for member in slice.members.into_iter().filter(|&member| member != NOBODY) {
                let seen = &self.entities[member as usize];
                if seen.shown && seen.slice == index {
                    self.forget(member);
                }
            }
            self.slices_free.push(index);
        }
        spare.is_empty().then_some(())
    }

    /// Takes `decoded` as what the slice shows at `tick`.
    fn apply(&mut self, index: u32, tick: u32, epoch: u8) {
        let slice = &mut self.slices[index as usize];
        let same_epoch = slice.updated.is_some_and(|(of, _)| of == epoch);
        if slice.updated.is_some_and(|(_, newest)| (tick.wrapping_sub(newest) as i32) < 0) {
            return;
        }
        slice.updated = Some((epoch, tick));
        let origin = |cell: i16| i32::from(cell) * CELL_GRID - MARGIN_GRID;
        let origin = (origin(slice.name.cell_x), origin(slice.name.cell_y));
        let before = std::mem::take(&mut slice.members);
        let mut members = std::mem::take(&mut self.members_spare);
        let decoded = std::mem::take(&mut self.decoded);
        members.clear();
        for (slot, entity) in decoded.iter().enumerate() {
            let held = before.get(slot).copied().unwrap_or(NOBODY);
            members.push(if entity.id() == 0 {
                NOBODY
            } else {
                self.show(entity, held, tick, (index, slot as u8), origin, same_epoch)
            });
        }
        for (slot, &member) in before.iter().enumerate() {
            if member != NOBODY && members.get(slot) != Some(&member) {
                let seen = &mut self.entities[member as usize];
                if seen.shown && seen.slice == index && seen.tick != tick {
                    seen.shown = false;
                    self.orphans.push(member);
                }
            }
        }
        self.slices[index as usize].members = members;
        self.members_spare = before;
        self.decoded = decoded;
    }

    /// Takes one live slot; `held` is whom the slot showed before. Returns the entity's index.
    #[inline]
    fn show(
        &mut self,
        entity: &EntityPlain,
        held: u32,
        tick: u32,
        (slice, slot): (u32, u8),
        origin: (i32, i32),
        same_epoch: bool,
    ) -> u32 {
        let id = EntityId(entity.id());
        let index = match self.entities.get(held as usize) {
            Some(seen) if seen.id == id => held,
            other => {
                let changed = other.is_some_and(|seen| seen.shown && (seen.slice, seen.slot) == (slice, slot));
                self.errors.other += u64::from(changed && same_epoch);
                self.find_or_insert(id, tick)
            }
        };
        let Some(seen) = self.entities.get_mut(index as usize) else {
            self.errors.other += 1;
            return NOBODY;
        };
        let (x, y) = (origin.0 + i32::from(entity.x()), origin.1 + i32::from(entity.y()));
        let is_new = seen.slice == NOBODY;
        let elapsed = tick.wrapping_sub(seen.tick);
        if !is_new && elapsed == 0 && (seen.slice, seen.slot) != (slice, slot) {
            // The first place stands, so that one contradiction is counted once.
            let count = if seen.slice == slice { &mut self.errors.other } else { &mut self.errors.twice };
            *count += 1;
            return index;
        }
        if elapsed as i32 >= 0 {
            let outside = |v: u16| i32::from(v) > PLOT_GRID + 2 * MARGIN_GRID;
            self.errors.other += u64::from(outside(entity.x()) || outside(entity.y()));
            self.errors.jump += u64::from(!is_new && jumped(distance_squared(x, y, seen.x, seen.y), elapsed));
            let (z, yaw, look) = (i32::from(entity.z()), entity.yaw(), entity.look());
            *seen = Seen { id, tick, x, y, z, yaw, look, slot, slice, shown: true, reported: seen.reported };
        }
        index
    }

    /// [`NOBODY`] when the table is full.
    fn find_or_insert(&mut self, id: EntityId, tick: u32) -> u32 {
        if let Some(&index) = self.entities_by_id.get(&id) {
            return index;
        }
        if self.entities_by_id.len() == VIEW_ENTITIES_MAX {
            return NOBODY;
        }
        let index = self.entities_free.pop().unwrap_or_else(|| {
            self.entities.push(FREE);
            self.entities.len() as u32 - 1
        });
        // A slice that does not exist marks it as new until its first update, which follows at once.
        self.entities[index as usize] = Seen { id, tick, slice: NOBODY, ..FREE };
        self.entities_by_id.insert(id, index);
        index
    }

    fn forget(&mut self, index: u32) {
        self.entities_by_id.remove(&self.entities[index as usize].id);
        self.entities[index as usize] = FREE;
        self.entities_free.push(index);
    }

    /// The slice of this name, made where there is none; `None` when the table is full.
    fn slice(&mut self, header: &SliceHeader) -> Option<u32> {
        let name = SliceName::of(header);
        if let Some(&index) = self.slices_by_name.get(&name) {
            return Some(index);
        }
        if self.slices_by_name.len() == VIEW_SLICES_MAX {
            return None;
        }
        let index = self.slices_free.pop().unwrap_or_else(|| {
            self.slices.push(Slice::default());
            self.slices.len() as u32 - 1
        });
        self.slices[index as usize].name = name;
        self.slices_by_name.insert(name, index);
        Some(index)
    }
}

fn split_header(bytes: &[u8]) -> Option<(SliceHeader, &[u8])> {
    bytes.split_first_chunk().map(|(header, rest)| (SliceHeader(*header), rest))
}

fn distance_squared(x: i32, y: i32, x1: i32, y1: i32) -> i64 {
    let square = |a: i32, b: i32| (i64::from(a) - i64::from(b)).pow(2);
    square(x, x1) + square(y, y1)
}

/// Whether a way is longer than a body can go in the time.
fn jumped(distance_squared: i64, elapsed_ticks: u32) -> bool {
    let limit = farthest(elapsed_ticks);
    distance_squared > limit.saturating_mul(limit)
}
