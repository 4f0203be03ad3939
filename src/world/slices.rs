//! Slices: how the entities of a plot are grouped, shown and encoded.
//!
//! Owns, per slice, who stands in which slot and what the keyframe showed. Promises: within a keyframe epoch members and
//! slots stay; who joins is appended, who leaves leaves a hole; a crowded plot is cut along a Morton curve, so that its
//! slices are small in space, those who stand still apart from those who move; a slice in which nobody moved goes on as
//! it is, since its keyframe is still true.

use crate::ids::{CellKey, EntityId, ShardId};
use crate::limits::{KEYFRAME_TICKS, SLICE_SLOTS_MAX};
use crate::net::{slice::encode_delta, wire};
use crate::world::entity::{Body, Npc, Place, Player, Thing};
use crate::world::frame::{Frame, Indexed, SliceHead, SliceName};
use crate::world::table::Table;

/// Members that a slice begins an epoch with at the most: the rest of the slots is for those who join.
const SLICE_FILL: usize = 48;
/// Members that a slice of a crowded plot has at least to go on as it is.
const STEADY_FILL_MIN: usize = 24;
/// Slices of a plot that go on as they are at the most, so that there is room for the others.
const STEADY_MAX: usize = 128;
/// Slices that a plot can have. Full: who comes is not shown until somebody leaves, counted `entities_hidden`.
const PLOT_SLICES_MAX: usize = 256;

/// One group of entities of one plot.
#[derive(Clone, Debug)]
struct Slice {
    number: u8,
    /// Slices that had its place before.
    tenant: u32,
    epoch: u8,
    /// It outlived a turn, because nobody in it moved.
    steady: bool,
    /// Its plot got other slices when its epoch began.
    reshaped: bool,
    live: u8,
    ids: Vec<EntityId>,
    keyframe: Vec<wire::EntityPlain>,
}

/// A slice in the order of plots.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Ordered {
    plot: CellKey,
    number: u8,
    /// Number of its plot's turn that it has been through: here, where all are looked at in each tick.
    turned: u8,
    slice: u32,
}

/// Slot and slice of a body in the frame, in one word, so that it stays in a register; all ones when it has none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Shown(u64);

impl Shown {
    const NOWHERE: Shown = Shown(u64::MAX);

    fn new(slot: usize, slice: usize) -> Shown {
        Shown((slice as u64) << 32 | slot as u64)
    }

    fn indexed(self, id: EntityId) -> Indexed {
        Indexed { id, slot: self.0 as u32, slice: (self.0 >> 32) as u32 }
    }
}

/// All slices of a shard.
#[derive(Clone, Debug, Default)]
pub struct Slices {
    slab: Vec<Slice>,
    free: Vec<u32>,
    order: Vec<Ordered>,
    /// Entities without a slot in the newest frame: nobody sees them.
    pub hidden: usize,
    /// Scratch: members of the plot that turns: whether they move, their places on the Morton curve, who.
    members: Vec<(bool, u32, EntityId)>,
    /// Scratch: slices of that plot that get other members.
    open: Vec<u32>,
    /// Scratch: where wildlife, players and things stand in the frame, in the order of their tables.
    placed: [Vec<Shown>; 3],
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

/// Number of a plot's turn at a tick, wrapping; plots take turns.
fn turn_of(plot: CellKey, tick: u64) -> u8 {
    let stagger = (i64::from(plot.x >> 1) * 7 + i64::from(plot.y >> 1) * 13).rem_euclid(KEYFRAME_TICKS as i64) as u64;
    ((tick + stagger) / KEYFRAME_TICKS) as u8
}

impl Slices {
    /// Takes an entity out of its slot.
    pub fn leave(&mut self, place: Place) {
        let slice = &mut self.slab[place.slice as usize];
        assert!(slice.ids[usize::from(place.slot)] != EntityId::NONE, "who leaves a slot stood in it");
        slice.ids[usize::from(place.slot)] = EntityId::NONE;
        slice.live -= 1;
    }

    /// Gives an entity a slot in its plot, if there is one.
    pub fn join(&mut self, body: &mut Body, tick: u64) {
        let Some(slice) = self.with_room(body.home.plot(), tick) else { return };
        let target = &mut self.slab[slice as usize];
        body.place = Some(Place { slice, slot: target.ids.len() as u8 });
        target.ids.push(body.id);
        target.keyframe.push(body.plain(tick));
        target.live += 1;
    }

    /// Places of a plot's slices in the order.
    fn range(&self, plot: CellKey) -> std::ops::Range<usize> {
        let from = self.order.partition_point(|ordered| ordered.plot < plot);
        let count = self.order[from..].iter().take_while(|ordered| ordered.plot == plot).count();
        from..from + count
    }

    fn with_room(&mut self, plot: CellKey, tick: u64) -> Option<u32> {
        let range = self.range(plot);
        let slices = &self.order[range];
        let room = |steady: bool| {
            slices.iter().find(|ordered| {
                let slice = &self.slab[ordered.slice as usize];
                slice.steady == steady && slice.ids.len() < SLICE_SLOTS_MAX
            })
        };
        // Who comes mostly moves, and would end what is steady.
        match room(false).or_else(|| if slices.len() == PLOT_SLICES_MAX { room(true) } else { None }) {
            Some(ordered) => Some(ordered.slice),
            None if slices.len() == PLOT_SLICES_MAX => None,
            None => Some(self.add(plot, tick)),
        }
    }

    /// One more slice of a plot, with the lowest number that is free.
    fn add(&mut self, plot: CellKey, tick: u64) -> u32 {
        let range = self.range(plot);
        let taken = self.order[range.clone()].iter().zip(0..).take_while(|&(ordered, number)| ordered.number == number);
        let number = taken.count();
        assert!(number < PLOT_SLICES_MAX, "{number} slices are in a plot already");
        let at = range.start + number;
        let slice = self.free.pop().unwrap_or_else(|| {
            let ids = Vec::with_capacity(SLICE_SLOTS_MAX);
            let keyframe = Vec::with_capacity(SLICE_SLOTS_MAX);
            self.slab.push(Slice {
                number: 0,
                tenant: 0,
                epoch: 0,
                steady: false,
                reshaped: false,
                live: 0,
                ids,
                keyframe,
            });
            self.slab.len() as u32 - 1
        });
        let number = number as u8;
        let fresh = &mut self.slab[slice as usize];
        let turned = turn_of(plot, tick);
        (fresh.number, fresh.epoch, fresh.live) = (number, turned, 0);
        fresh.tenant = fresh.tenant.wrapping_add(1);
        (fresh.steady, fresh.reshaped) = (false, true);
        fresh.ids.clear();
        fresh.keyframe.clear();
        self.order.insert(at, Ordered { plot, number, turned, slice });
        slice
    }

    /// Begins a new keyframe epoch for the plots whose turn it is.
    pub fn turn(&mut self, tick: u64, bodies: &mut Bodies<'_>) {
        let mut at = 0;
        while at < self.order.len() {
            let plot = self.order[at].plot;
            let count = self.order[at..].iter().take_while(|ordered| ordered.plot == plot).count();
            let range = at..at + count;
            at = range.end;
            // A shard that was late skips ticks: the epoch counts, not the tick on which it changes.
            if self.order[range.start].turned != turn_of(plot, tick) {
                at = self.turn_plot(plot, range, tick, bodies);
            }
        }
    }

    /// Groups a plot's members anew, but for those of slices in which nobody moved; gives back where the next plot begins
    /// in the order.
    fn turn_plot(&mut self, plot: CellKey, range: std::ops::Range<usize>, tick: u64, bodies: &mut Bodies<'_>) -> usize {
        let turned = turn_of(plot, tick);
        let (alone, mut staying) = (range.len() == 1, 0);
        let (mut members, mut open) = (std::mem::take(&mut self.members), std::mem::take(&mut self.open));
        members.clear();
        open.clear();
        for at in range {
            let slice = self.order[at].slice;
            let Slice { ids, keyframe, live, .. } = &self.slab[slice as usize];
            let from = members.len();
            for (id, key) in ids.iter().zip(keyframe).filter(|(id, _)| **id != EntityId::NONE) {
                let plain = bodies.get_mut(*id).expect("members are here").plain(tick);
                members.push((plain.0 != key.0, morton(plain.x(), plain.y()), *id));
            }
            let is_full = usize::from(*live) == ids.len() && (alone || ids.len() >= STEADY_FILL_MIN);
            let stays = staying < STEADY_MAX && is_full && members[from..].iter().all(|(moves, ..)| !moves);
            staying += usize::from(stays);
            let slice = &mut self.slab[slice as usize];
            slice.steady = stays;
            self.order[at].turned = turned;
            match stays {
                true => members.truncate(from),
                false => open.push(self.order[at].slice),
            }
        }
        let crowded = members.len() > SLICE_FILL;
        if crowded {
            members.sort_unstable();
        }
        let movers = if crowded { members.partition_point(|(moves, ..)| !moves) } else { members.len() };
        let (still, moving) = members.split_at(movers);
        let room = PLOT_SLICES_MAX - (self.range(plot).len() - open.len());
        let wanted = [still, moving].map(|group| group.len().div_ceil(SLICE_FILL));
        let parted = wanted.iter().sum::<usize>() <= room;
        let (groups, wanted) = match parted {
            true => ([still, moving], wanted),
            // More than fit well: as many as there are places take all.
            false => ([&members[..], &[]], [room, 0]),
        };
        let reshaped = wanted.iter().sum::<usize>() != open.len();
        let mut free = open.drain(..);
        for (group, wanted) in groups.into_iter().zip(wanted) {
            let mut rest = group;
            for done in 0..wanted {
                let (mine, others) = rest.split_at(rest.len().div_ceil(wanted - done));
                rest = others;
                let slice = free.next().unwrap_or_else(|| self.add(plot, tick));
                self.begin_epoch(slice, mine, tick, bodies);
                let slice = &mut self.slab[slice as usize];
                // Never the number of the epoch before it, which somebody may still hold.
                slice.epoch = if slice.epoch == turned { turned.wrapping_add(1) } else { turned };
                slice.reshaped = reshaped;
            }
        }
        for slice in free {
            let at = self.order.iter().position(|ordered| ordered.slice == slice).expect("it is in the order");
            self.order.remove(at);
            self.free.push(slice);
        }
        self.open = open;
        self.members = members;
        self.range(plot).end
    }

    fn begin_epoch(&mut self, slice: u32, members: &[(bool, u32, EntityId)], tick: u64, bodies: &mut Bodies<'_>) {
        let target = &mut self.slab[slice as usize];
        target.ids.clear();
        target.keyframe.clear();
        target.live = members.len() as u8;
        for (slot, &(_, _, id)) in members.iter().enumerate() {
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
        for ordered in &self.order {
            let slice = &self.slab[ordered.slice as usize];
            if slice.live == 0 {
                continue;
            }
            let (first, slots) = (frame.keyframe.len() as u32, slice.ids.len() as u8);
            frame.slices.push(SliceHead {
                plot: ordered.plot,
                part: u16::from(shard.0) << 8 | u16::from(slice.number),
                epoch: slice.epoch,
                slots,
                live: slice.live,
                steady: slice.steady,
                reshaped: slice.reshaped,
                first,
                name: SliceName::new(ordered.slice, slice.tenant),
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
        placed[0].extend(npcs.iter_mut().map(|npc| show_body(frame, &npc.body, tick)));
        placed[1].extend(players.iter_mut().map(|player| show_body(frame, &player.body, tick)));
        placed[2].extend(things.iter_mut().map(|thing| show_body(frame, &thing.body, tick)));
        // Wildlife has the lowest ids and things the highest, so that sorted lists behind each other are one.
        frame.index.clear();
        for (order, placed) in [npcs.order(), players.order(), things.order()].into_iter().zip(&placed) {
            let shown = order.iter().map(|&(id, at)| (id, placed[at as usize]));
            frame
                .index
                .extend(shown.filter(|(_, shown)| *shown != Shown::NOWHERE).map(|(id, shown)| shown.indexed(id)));
        }
        self.hidden = placed.iter().map(Vec::len).sum::<usize>() - frame.index.len();
        self.placed = placed;
        frame.measure_boxes();
        encode(frame);
    }
}

/// Shows a body in the frame, if it has a slot; gives where.
fn show_body(frame: &mut Frame, body: &Body, tick: u64) -> Shown {
    let Some(place) = body.place else { return Shown::NOWHERE };
    let slice = frame.place(place.slice);
    let head = &frame.slices[slice];
    let slot = head.first as usize + usize::from(place.slot);
    frame.now[slot] = body.plain(tick);
    if let Some(leaving) = body.leaving {
        frame.next_owner[slot] = leaving.to;
    }
    Shown::new(slot, slice)
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
