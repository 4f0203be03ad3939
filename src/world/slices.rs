//! Slices: how the entities of a cell are grouped, shown and encoded.
//!
//! Owns, per slice, who stands in which slot and what the keyframe showed. Promises: within a keyframe epoch members and
//! slots stay; who joins is appended, who leaves leaves a hole; a crowded cell is cut along a Morton curve, so that its
//! slices are small in space.

use crate::ids::{CellKey, EntityId, ShardId};
use crate::limits::{KEYFRAME_TICKS, SLICE_SLOTS_MAX};
use crate::net::{slice::encode_delta, wire};
use crate::world::entity::{Body, Npc, Place, Player, Thing};
use crate::world::frame::{Frame, Indexed, SliceHead, position};
use crate::world::table::Table;

/// Members that a slice begins an epoch with at the most: the rest of the slots is for those who join.
const SLICE_FILL: usize = 48;

/// Slices that a cell can have. Full: who comes is not shown until somebody leaves, counted `entities_hidden`.
const CELL_SLICES_MAX: usize = 256;

/// One group of entities of one cell.
#[derive(Clone, Debug)]
struct Slice {
    number: u8,
    epoch: u8,
    live: u8,
    ids: Vec<EntityId>,
    keyframe: Vec<wire::EntityPlain>,
}

/// A slice in the order of cells.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Ordered {
    cell: CellKey,
    number: u8,
    slice: u32,
}

/// All slices of a shard.
#[derive(Clone, Debug, Default)]
pub struct Slices {
    slab: Vec<Slice>,
    free: Vec<u32>,
    order: Vec<Ordered>,
    /// Entities without a slot in the newest frame: nobody sees them.
    pub hidden: usize,
    /// Scratch: members of the cell that turns, with their places on the Morton curve.
    members: Vec<(u32, EntityId)>,
    /// Scratch: per slice of the slab, its head in the frame.
    heads: Vec<u32>,
    /// Scratch: where wildlife, players and things stand in the frame, in the order of their tables.
    placed: [Vec<Option<Indexed>>; 3],
}

/// The bodies of a shard, players and wildlife.
pub struct Bodies<'a> {
    /// Characters.
    pub players: &'a mut Table<Player>,
    /// Wildlife.
    pub npcs: &'a mut Table<Npc>,
    /// Things on the ground.
    pub things: &'a mut Table<Thing>,
}

impl Bodies<'_> {
    fn get_mut(&mut self, id: EntityId) -> Option<&mut Body> {
        if let Some(npc) = self.npcs.get_mut(id) {
            return Some(&mut npc.body);
        }
        if let Some(player) = self.players.get_mut(id) {
            return Some(&mut player.body);
        }
        self.things.get_mut(id).map(|thing| &mut thing.body)
    }
}

/// The keyframe epoch of a cell at a tick; cells take turns.
fn epoch(cell: CellKey, tick: u64) -> u64 {
    let stagger = (i64::from(cell.x) * 7 + i64::from(cell.y) * 13).rem_euclid(KEYFRAME_TICKS as i64) as u64;
    (tick + stagger) / KEYFRAME_TICKS
}

impl Slices {
    /// Takes an entity out of its slot.
    pub fn leave(&mut self, place: Place) {
        let slice = &mut self.slab[place.slice as usize];
        assert!(slice.ids[usize::from(place.slot)] != EntityId::NONE, "who leaves a slot stood in it");
        slice.ids[usize::from(place.slot)] = EntityId::NONE;
        slice.live -= 1;
    }

    /// Gives an entity a slot in its home cell, if there is one.
    pub fn join(&mut self, body: &mut Body, tick: u64) {
        let Some(slice) = self.with_room(body.home, tick) else { return };
        let target = &mut self.slab[slice as usize];
        body.place = Some(Place { slice, slot: target.ids.len() as u8 });
        target.ids.push(body.id);
        target.keyframe.push(body.plain(tick));
        target.live += 1;
    }

    /// Places of a cell's slices in the order.
    fn range(&self, cell: CellKey) -> std::ops::Range<usize> {
        let from = self.order.partition_point(|ordered| ordered.cell < cell);
        let count = self.order[from..].iter().take_while(|ordered| ordered.cell == cell).count();
        from..from + count
    }

    fn with_room(&mut self, cell: CellKey, tick: u64) -> Option<u32> {
        let range = self.range(cell);
        let roomy = |ordered: &&Ordered| self.slab[ordered.slice as usize].ids.len() < SLICE_SLOTS_MAX;
        match self.order[range.clone()].iter().find(roomy) {
            Some(ordered) => Some(ordered.slice),
            None if range.len() == CELL_SLICES_MAX => None,
            None => Some(self.add(cell, range.end, range.len(), tick)),
        }
    }

    fn add(&mut self, cell: CellKey, at: usize, number: usize, tick: u64) -> u32 {
        assert!(number < CELL_SLICES_MAX, "{number} slices are in a cell already");
        let slice = self.free.pop().unwrap_or_else(|| {
            let ids = Vec::with_capacity(SLICE_SLOTS_MAX);
            self.slab.push(Slice { number: 0, epoch: 0, live: 0, ids, keyframe: Vec::with_capacity(SLICE_SLOTS_MAX) });
            self.slab.len() as u32 - 1
        });
        let number = number as u8;
        let fresh = &mut self.slab[slice as usize];
        (fresh.number, fresh.epoch, fresh.live) = (number, epoch(cell, tick) as u8, 0);
        fresh.ids.clear();
        fresh.keyframe.clear();
        self.order.insert(at, Ordered { cell, number, slice });
        slice
    }

    /// Begins a new keyframe epoch for the cells whose turn it is.
    pub fn turn(&mut self, tick: u64, bodies: &mut Bodies<'_>) {
        let mut at = 0;
        while at < self.order.len() {
            let cell = self.order[at].cell;
            let count = self.order[at..].iter().take_while(|ordered| ordered.cell == cell).count();
            let range = at..at + count;
            at = range.end;
            // A shard that was late skips ticks: the epoch counts, not the tick on which it changes.
            if self.slab[self.order[range.start].slice as usize].epoch != epoch(cell, tick) as u8 {
                at = self.turn_cell(cell, range, tick, bodies);
            }
        }
    }

    /// Groups a cell's members anew; gives back where the next cell begins in the order.
    fn turn_cell(&mut self, cell: CellKey, range: std::ops::Range<usize>, tick: u64, bodies: &mut Bodies<'_>) -> usize {
        let mut members = std::mem::take(&mut self.members);
        members.clear();
        for ordered in &self.order[range.clone()] {
            let ids = self.slab[ordered.slice as usize].ids.iter();
            members.extend(ids.filter(|&&id| id != EntityId::NONE).map(|&id| (0, id)));
        }
        if members.len() > SLICE_FILL {
            for (place, id) in &mut members {
                let plain = bodies.get_mut(*id).expect("members are here").plain(tick);
                *place = morton(plain.x(), plain.y());
            }
            members.sort_unstable();
        }
        let wanted = members.len().div_ceil(SLICE_FILL).min(CELL_SLICES_MAX);
        while self.range(cell).len() > wanted {
            let last = self.order.remove(self.range(cell).end - 1);
            self.free.push(last.slice);
        }
        while self.range(cell).len() < wanted {
            let present = self.range(cell);
            self.add(cell, present.end, present.len(), tick);
        }
        let range = self.range(cell);
        let mut rest = &members[..];
        for (done, at) in range.clone().enumerate() {
            let (mine, others) = rest.split_at(rest.len().div_ceil(wanted - done));
            rest = others;
            self.begin_epoch(self.order[at].slice, mine, epoch(cell, tick) as u8, tick, bodies);
        }
        self.members = members;
        range.end
    }

    fn begin_epoch(&mut self, slice: u32, members: &[(u32, EntityId)], epoch: u8, tick: u64, bodies: &mut Bodies<'_>) {
        let target = &mut self.slab[slice as usize];
        target.ids.clear();
        target.keyframe.clear();
        (target.epoch, target.live) = (epoch, members.len() as u8);
        for (slot, &(_, id)) in members.iter().enumerate() {
            let body = bodies.get_mut(id).expect("members are here");
            body.place = Some(Place { slice, slot: slot as u8 });
            target.ids.push(id);
            target.keyframe.push(body.plain(tick));
        }
    }

    /// Fills a frame with all slices as they are now, and encodes them.
    pub fn show(&mut self, frame: &mut Frame, shard: ShardId, tick: u64, bodies: &mut Bodies<'_>) {
        frame.slices.clear();
        frame.keyframe.clear();
        self.heads.resize(self.slab.len(), u32::MAX);
        for ordered in &self.order {
            let slice = &self.slab[ordered.slice as usize];
            if slice.live == 0 {
                continue;
            }
            self.heads[ordered.slice as usize] = frame.slices.len() as u32;
            let (first, slots) = (frame.keyframe.len() as u32, slice.ids.len() as u8);
            frame.slices.push(SliceHead {
                cell: ordered.cell,
                part: u16::from(shard.0) << 8 | u16::from(slice.number),
                epoch: slice.epoch,
                slots,
                live: slice.live,
                first,
                low: (i32::MAX, i32::MAX),
                high: (i32::MIN, i32::MIN),
                packed: 0,
                packed_bytes: 0,
            });
            frame.keyframe.extend_from_slice(&slice.keyframe);
        }
        frame.now.clear();
        frame.now.resize(frame.keyframe.len(), wire::EntityPlain::default());
        frame.next_owner.clear();
        frame.next_owner.resize(frame.keyframe.len(), shard);
        frame.index_rows();
        let mut placed = std::mem::take(&mut self.placed);
        placed.iter_mut().for_each(Vec::clear);
        let Bodies { players, npcs, things } = bodies;
        placed[0].extend(npcs.iter_mut().map(|npc| self.show_body(frame, &npc.body, tick)));
        placed[1].extend(players.iter_mut().map(|player| self.show_body(frame, &player.body, tick)));
        placed[2].extend(things.iter_mut().map(|thing| self.show_body(frame, &thing.body, tick)));
        // Wildlife has the lowest ids and things the highest, so that sorted lists behind each other are one.
        frame.index.clear();
        for (order, placed) in [npcs.order(), players.order(), things.order()].into_iter().zip(&placed) {
            frame.index.extend(order.iter().filter_map(|&(_, at)| placed[at as usize]));
        }
        self.hidden = placed.iter().map(Vec::len).sum::<usize>() - frame.index.len();
        self.placed = placed;
        encode(frame);
    }

    /// Shows a body in the frame, if it has a slot; gives where.
    fn show_body(&self, frame: &mut Frame, body: &Body, tick: u64) -> Option<Indexed> {
        let place = body.place?;
        let slice = self.heads[place.slice as usize];
        let head = &mut frame.slices[slice as usize];
        let slot = head.first as usize + usize::from(place.slot);
        let plain = body.plain(tick);
        let (x, y) = position(head.cell, &plain);
        head.low = (head.low.0.min(x), head.low.1.min(y));
        head.high = (head.high.0.max(x), head.high.1.max(y));
        frame.now[slot] = plain;
        if let Some(leaving) = body.leaving {
            frame.next_owner[slot] = leaving.to;
        }
        Some(Indexed { id: body.id, slot: slot as u32, slice })
    }
}

fn encode(frame: &mut Frame) {
    frame.packed.clear();
    for head in &mut frame.slices {
        head.packed = frame.packed.len() as u32;
        encode_delta(&frame.now[head.slots()], &frame.keyframe[head.slots()], &mut frame.packed);
        head.packed_bytes = (frame.packed.len() as u32 - head.packed) as u16;
    }
}

/// Place of a position on the Morton curve: the bits of both coordinates, interleaved.
fn morton(x: u16, y: u16) -> u32 {
    let spread = |v: u16| {
        let v = u32::from(v);
        let v = (v | v << 8) & 0x00ff_00ff;
        let v = (v | v << 4) & 0x0f0f_0f0f;
        let v = (v | v << 2) & 0x3333_3333;
        (v | v << 1) & 0x5555_5555
    };
    spread(x) | spread(y) << 1
}
