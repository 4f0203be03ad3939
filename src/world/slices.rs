//! Slices: how the entities of a plot are grouped, shown and encoded.
//!
//! Owns, per slice, who stands in which slot and what the keyframe showed. Promises: within a keyframe epoch members and
//! slots stay; who joins is appended, who leaves leaves a hole; a crowded plot is cut along a Hilbert curve, so that its
//! slices are small in space, those who stand still apart from those who move; a slice in which nobody moved goes on as
//! it is, since its keyframe is still true. All bodies are looked at once a tick, before anything is shown.

use crate::entity::{Body, Npc, Place, Player, Thing};
use crate::frame::{Frame, Indexed, SliceHead, SliceName};
use crate::limits::{KEYFRAME_TICKS, PLOT_SLICES_MAX, SLICE_SLOTS_MAX};
use crate::table::Table;
use crate::wire::generated::structs;
use crate::wire::ids::{CellKey, EntityId, IdClass, ShardId};
use crate::wire::slice::{HOLE, encode_delta};

/// Members that a slice begins an epoch with at the most: the rest of the slots is for those who join.
const SLICE_FILL: usize = 48;
/// Members of a plot who move, from which on they are a crowd.
const CROWD_MIN: usize = 192;
/// The same of slices of those who stand still and of those who move in a crowd: one needs few slices, the others small
/// ones, of which those around a viewer have fewer bytes.
const CROWD_FILL: [usize; 2] = [56, 32];
/// Members that a slice of a crowded plot has at least to go on as it is.
const STEADY_FILL_MIN: usize = 24;
/// Slices of a plot that go on as they are at the most, so that there is room for the others.
const STEADY_MAX: usize = 128;
/// Slices by which the slab grows.
const SLAB_STEP: u32 = 128;

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
    keyframe: Vec<structs::EntityPlain>,
    /// Its members as they are in this tick, by slot.
    now: [structs::EntityPlain; SLICE_SLOTS_MAX],
}

impl Slice {
    /// Who left its slot is not there any more.
    fn empty_holes(&mut self) {
        if usize::from(self.live) < self.ids.len() {
            let slots = self.now.iter_mut().zip(&self.ids);
            slots.filter(|(_, id)| **id == EntityId::NONE).for_each(|(now, _)| *now = HOLE);
        }
    }
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

/// Where a body stands, in one word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Looked(u32);

impl Looked {
    const NOWHERE: Looked = Looked(u32::MAX);
    const SLOT_BITS: u32 = 8;

    fn at(Place { slice, slot }: Place) -> Looked {
        Looked(slice << Looked::SLOT_BITS | u32::from(slot))
    }

    /// Slot and slice in a frame.
    fn find(self, frame: &Frame) -> (u32, u32) {
        frame.locate(self.0 >> Looked::SLOT_BITS, self.0 & ((1 << Looked::SLOT_BITS) - 1))
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
    /// Scratch: members of the plot that turns: whether they move, their places on the curve, who.
    members: Vec<(bool, u32, EntityId)>,
    /// Scratch: slices of that plot that get other members.
    open: Vec<u32>,
    /// Where those stand who were looked at in this tick, one after the other.
    looked: Vec<Looked>,
    /// Of them those who leave, with their next owners.
    leaving: Vec<(Looked, ShardId)>,
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
        match id.class() {
            IdClass::Npc => self.npcs.get_mut(id).map(|npc| &mut npc.body),
            IdClass::Thing => self.things.get_mut(id).map(|thing| &mut thing.body),
            _ => self.players.get_mut(id).map(|player| &mut player.body),
        }
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
        if self.free.is_empty() {
            self.make_room();
        }
        let slice = self.free.pop().expect("there is room now");
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

    /// Makes many slices at once, so that hardly any tick asks for memory.
    fn make_room(&mut self) {
        let first = self.slab.len() as u32;
        self.slab.extend((0..SLAB_STEP).map(|_| Slice {
            number: 0,
            tenant: 0,
            epoch: 0,
            steady: false,
            reshaped: false,
            live: 0,
            ids: Vec::with_capacity(SLICE_SLOTS_MAX),
            keyframe: Vec::with_capacity(SLICE_SLOTS_MAX),
            now: [HOLE; SLICE_SLOTS_MAX],
        }));
        self.free.extend((first..first + SLAB_STEP).rev());
        self.order.reserve(self.slab.len() - self.order.len());
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
                members.push((plain.0 != key.0, curve(plain.x(), plain.y()), *id));
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
        let [still_fill, moving_fill] = if moving.len() < CROWD_MIN { [SLICE_FILL; 2] } else { CROWD_FILL };
        let wanted = [still.len().div_ceil(still_fill), moving.len().div_ceil(moving_fill)];
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
                let going_on = free.next();
                let slice = going_on.unwrap_or_else(|| self.add(plot, tick));
                self.begin_epoch(slice, mine, tick, bodies);
                let slice = &mut self.slab[slice as usize];
                // Not the number of the epoch before it, which somebody holds: it was steady until the numbers came round. A
                // slice of this turn has this turn's, since the one that had its place until now may have had any other.
                let is_held = going_on.is_some() && slice.epoch == turned;
                slice.epoch = if is_held { turned.wrapping_sub(1) } else { turned };
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

    /// Takes down how a body looks in this tick, after all that joins and leaves before it is shown.
    pub fn look(&mut self, body: &Body, tick: u64) {
        let Some(place) = body.place else { return self.looked.push(Looked::NOWHERE) };
        self.slab[place.slice as usize].now[usize::from(place.slot)] = body.plain(tick);
        self.looked.push(Looked::at(place));
        if let Some(leaving) = body.leaving {
            self.leaving.push((Looked::at(place), leaving.to));
        }
    }

    /// Fills a frame with all slices as their members were looked at, and encodes them. `orders` are those of the tables
    /// whose bodies were looked at, one after the other, with lower ids before higher ones.
    pub fn show(&mut self, frame: &mut Frame, shard: ShardId, orders: &[&[(EntityId, u32)]]) {
        frame.slices.clear();
        frame.keyframe.clear();
        frame.now.clear();
        for ordered in &self.order {
            let slice = &mut self.slab[ordered.slice as usize];
            if slice.live == 0 {
                continue;
            }
            slice.empty_holes();
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
            frame.now.extend_from_slice(&slice.now[..slice.ids.len()]);
        }
        frame.index_rows();
        frame.next_owner.clear();
        frame.next_owner.resize(frame.keyframe.len(), shard);
        for (looked, to) in self.leaving.drain(..) {
            let (slot, _) = looked.find(frame);
            frame.next_owner[slot as usize] = to;
        }
        frame.index.clear();
        let mut looked = &self.looked[..];
        for order in orders {
            let (mine, others) = looked.split_at(order.len());
            looked = others;
            for &(id, at) in order.iter().filter(|&&(_, at)| mine[at as usize] != Looked::NOWHERE) {
                let (slot, slice) = mine[at as usize].find(frame);
                frame.index.push(Indexed { id, slot, slice });
            }
        }
        self.hidden = self.looked.len() - frame.index.len();
        self.looked.clear();
        frame.measure_boxes();
        encode(frame);
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

/// Steps of 1/4 m along the curve's axes, as bits; finer differences say nothing.
const CURVE_BITS: u32 = 10;

/// Place of a position on the Hilbert curve: what is close on it is close on the land, and a piece of it is in one piece
/// there as well, which one of a Morton curve mostly is not.
fn curve(x: u16, y: u16) -> u32 {
    let (mut x, mut y) = (u32::from(x) >> (16 - CURVE_BITS), u32::from(y) >> (16 - CURVE_BITS));
    (0..CURVE_BITS).rev().fold(0, |place, bit| {
        let (right, up) = (x >> bit & 1, y >> bit & 1);
        // In the lower quarters it lies turned, in the right one the other way round. Without branches: nobody could foretell them.
        let (turned, round) = ((up ^ 1).wrapping_neg(), (right & (up ^ 1)).wrapping_neg());
        let other = (x ^ y) & turned;
        (x, y) = (x ^ round ^ other, y ^ round ^ other);
        place << 2 | (3 * right) ^ up
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entity::Archetype;
    use crate::movement::Motion;
    use crate::random::{below, random};
    use crate::wire::goods;
    use crate::wire::units::FINE_PER_M;
    use std::collections::HashMap;

    /// One thing of a plot, somewhere in it.
    fn thing(number: u64, at: u32) -> Thing {
        let motion = Motion { x: (at % 60 + 1) as i32 * FINE_PER_M, y: FINE_PER_M, ..Motion::default() };
        let body = Body::new(EntityId::thing(number), Archetype::Thing, motion);
        let thing = goods::Thing { number, kind: 1, x: motion.x, y: motion.y, end_tick: u64::MAX };
        Thing { body, thing, taken: None, sequence: 0 }
    }

    #[test]
    fn a_slice_with_the_number_of_another_one_has_another_epoch() {
        let (mut slices, mut things, mut frame) = (Slices::default(), Table::<Thing>::default(), Frame::default());
        let (mut players, mut npcs) = (Table::default(), Table::default());
        // By place in the plot and epoch: when it was shown last, and its keyframe as far as clients hold it.
        let mut held: HashMap<(u16, u8), (u64, Vec<structs::EntityPlain>)> = HashMap::new();
        let (mut next, mut reused) = (0, 0);
        for tick in 1..40 * KEYFRAME_TICKS {
            let draw = |n: u64, bound: u32| below(random(1, EntityId::NONE, tick, n), bound);
            let bodies = &mut Bodies { players: &mut players, npcs: &mut npcs, things: &mut things };
            slices.turn(tick, bodies);
            if draw(0, 24) == 0 {
                let wanted = 30 + draw(1, 90) as usize;
                while things.len() > wanted {
                    let id = things.order()[draw(2 + things.len() as u64, things.len() as u32) as usize].0;
                    let gone = things.remove(id).expect("it is there");
                    slices.leave(gone.body.place.expect("it was shown"));
                }
                for _ in things.len()..wanted {
                    let mut thing = thing(next, draw(1_000 + next, 1_000));
                    slices.join(&mut thing.body, tick);
                    things.insert(thing);
                    next += 1;
                }
            }
            for thing in things.iter_mut() {
                // They move, or their slices would be steady.
                thing.body.motion.y = FINE_PER_M + (tick % 50) as i32 * FINE_PER_M / 8;
                slices.look(&thing.body, tick);
            }
            slices.show(&mut frame, ShardId(0), &[things.order()]);
            for head in &frame.slices {
                let keyframe = &frame.keyframe[head.slots()];
                let (seen, before) = held.entry((head.part, head.epoch)).or_default();
                if *seen + KEYFRAME_TICKS * 2 >= tick {
                    let same = before.iter().zip(keyframe).all(|(before, now)| before.0 == now.0);
                    assert!(same, "tick {tick}: slice {} has epoch {} again", head.part, head.epoch);
                } else {
                    reused += 1;
                }
                (*seen, *before) = (tick, keyframe.to_vec());
            }
        }
        assert!(reused > 60, "{reused} epochs");
    }

    #[test]
    fn the_curve_goes_through_all_places_step_by_step() {
        let step = 1u16 << (16 - CURVE_BITS);
        let side = 64;
        let mut places: Vec<(u32, i32, i32)> =
            (0..side).flat_map(|x| (0..side).map(move |y| (curve(x * step, y * step), x.into(), y.into()))).collect();
        places.sort_unstable();
        for pair in places.windows(2) {
            let ((a, ax, ay), (b, bx, by)) = (pair[0], pair[1]);
            assert_eq!((b - a, (ax - bx).abs() + (ay - by).abs()), (1, 1), "{pair:?}");
        }
        assert_eq!(curve(step - 1, step - 1), curve(0, 0));
    }
}
