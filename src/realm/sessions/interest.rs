//! Interest: which slices one client follows, what it holds of them, and which of them the next body carries.
//!
//! Owns the list of slices that one client follows. Promises: a slice is followed from `enter` on and until `leave`; what
//! was not shown for longest and lies nearest goes first; no entity is encoded here, only copied; bounded by the slices
//! in reach. Never looks at a shard, only at frames of one tick.

use crate::limits::{KEYFRAME_TICKS, LEAVES_HELD_MAX, LEAVES_PER_BODY_MAX, SLICES_FOLLOWED_MAX};
use crate::planted::{Bug, planted};
use crate::wire::body::{BodyWriter, kind};
use crate::wire::generated::structs;
use crate::wire::ids::CellKey;
use crate::wire::prefetch::prefetch;
use crate::wire::units::GRID_PER_M;
use crate::world::boxes::square;
use crate::world::frame::{Frame, SliceHead, SliceName, distance};

#[cfg(test)]
mod tests;

/// Ticks between two looks around: what comes into the inner radius may be shown as much later.
const LOOK_TICKS: u64 = 8;
/// Ticks after which a keyframe or a leave that was not acknowledged is sent again.
const RESEND_TICKS: u64 = 20;
/// Different tickets.
const TICKETS: u16 = 1 << PLACE_BITS;
const _: () = assert!(SLICES_FOLLOWED_MAX + LEAVES_HELD_MAX < TICKETS as usize, "a free ticket is always found");
/// Bits of a ticket, and of a place in the list.
const PLACE_BITS: u32 = 12;
/// Urgency of what is late: more than all that is not.
const LATE: u64 = 1 << 63;
/// Ticks without an update after which a slice goes before all that are not late.
const LATE_TICKS: u64 = 60;
/// Metres from which on a slice is middling far.
pub const MID_M: i32 = 24;
/// Metres from which on it is far.
pub const FAR_M: i32 = 48;
/// Slices of one body that go first because they are late, those that waited longest: near ones are not starved by far ones.
const LATE_PER_BODY: usize = 3;
/// Ticks between two updates from which on a slice is sent without its keyframe.
const RARE_TICKS: u64 = KEYFRAME_TICKS / 2;
/// Slices that do not fit into what is left of a body after which no further is tried.
const MISSES_MAX: u32 = 24;
/// Where updates come half as often as at the viewer: 1.4 m, in quarter metres, squared.
const NEAR_QUARTERS_SQUARED: u64 = 32;
/// Longest wait that counts.
const WAIT_TICKS_MAX: u64 = 1 << 10;
/// Slices that a client has room for at first, to follow and to leave.
const LIST_FIRST: usize = 32;
const LEFT_FIRST: usize = 16;
/// Slices by which the room of a list grows.
const LIST_STEP: usize = 16;
/// Slices that are looked for first among those that wait: more rarely fit in one body.
const FIRST_SLICES: usize = 16;
/// Bytes of each list that are asked for before a body needs them: of sixteen slices.
const PREFETCH_BYTES: usize = 256;
/// Slots that a partial keyframe is worth sending for.
const KEYFRAME_SLOTS_MIN: usize = 8;
/// Bytes of a slice section's header.
const HEAD_BYTES: usize = 16;
/// Bytes of one entity in plain slices and keyframes.
const ENTITY_BYTES: usize = 16;

/// How far a client sees, in wire grid steps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Radii {
    /// A slice this near begins to be followed.
    pub enter: i32,
    /// A slice farther than this ends to be followed.
    pub leave: i32,
}

/// Fewest ticks between two updates of a slice, by how far it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pace {
    /// From [`MID_M`] on.
    pub mid_ticks: u64,
    /// From [`FAR_M`] on.
    pub far_ticks: u64,
}

impl Pace {
    fn ticks(self, weight: u32) -> u64 {
        [0, self.mid_ticks, self.far_ticks, self.far_ticks][(weight & 3) as usize]
    }
}

/// Updates come as often as the root of the weight says: half as often at 1.4 m, a ninth at 4 m, a 33rd at 8 m; and it
/// halves with each doubling of a slice's bytes, so that those who stand still, who cost a tenth of those who walk, do not
/// wait for them. Far ones are due when they are late. At most 2^30, so that it fits beside the square of the wait and a
/// place; the last two bits name the part of the [`Pace`].
fn weight(squared: u32, bytes: u16) -> u32 {
    let steps = NEAR_QUARTERS_SQUARED + u64::from(squared >> 8).min(1 << 19);
    let near = ((NEAR_QUARTERS_SQUARED * NEAR_QUARTERS_SQUARED) << 30) / (steps * steps);
    let doublings = (bytes / CHEAP_BYTES).max(1).ilog2();
    let pace = u32::from(squared >= MID_SQUARED) + u32::from(squared >= FAR_SQUARED);
    (near >> doublings) as u32 & !3 | pace
}

const MID_SQUARED: u32 = square(MID_M * GRID_PER_M);
const FAR_SQUARED: u32 = square(FAR_M * GRID_PER_M);
/// Bytes of a slice that costs little more than its header.
const CHEAP_BYTES: u16 = 32;

/// Which slice, unique in the realm and in the order of [`Frame::slices`] shard by shard.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Key {
    owner: u8,
    plot: CellKey,
    number: u8,
}

impl Key {
    fn of(slice: &SliceHead) -> Key {
        Key { owner: (slice.part >> 8) as u8, plot: slice.plot, number: slice.part as u8 }
    }

    fn wire(self) -> structs::SliceKey {
        let part = u16::from(self.owner) << 8 | u16::from(self.number);
        structs::SliceKey::new(self.plot.space, self.plot.x, self.plot.y, part, 0)
    }
}

/// What the client holds of one slice, as far as each body asks for it.
#[derive(Clone, Copy, Debug)]
struct Followed {
    name: SliceName,
    weight: u32,
    /// Low 16 bits of the tick of the newest update sent; 0 for none.
    shown: u16,
    /// Names it in acknowledgements.
    ticket: u16,
    epoch: u8,
    /// Slots of the keyframe that the client surely holds.
    known: u8,
    /// Slots of the keyframe that were sent.
    sent: u8,
    /// Which frame shows it, of those given in order of their shards.
    frame: u8,
}

/// The rest of it, at the same place of a list of its own.
#[derive(Clone, Copy, Debug)]
struct Origin {
    key: Key,
    /// Low 32 bits of the tick in which its keyframe was sent; 0 for none.
    sent_tick: u32,
}

/// The slices that one client follows, in the order of their keys.
#[derive(Clone, Debug, Default)]
struct List {
    followed: Vec<Followed>,
    origins: Vec<Origin>,
}

impl List {
    fn len(&self) -> usize {
        self.followed.len()
    }

    fn clear(&mut self) {
        self.followed.clear();
        self.origins.clear();
    }

    /// Takes over what another one holds, with little more memory than that needs: there is a list for each client.
    fn copy_from(&mut self, other: &List) {
        self.clear();
        let count = other.len().next_multiple_of(LIST_STEP);
        self.followed.reserve_exact(count);
        self.origins.reserve_exact(count);
        self.followed.extend_from_slice(&other.followed);
        self.origins.extend_from_slice(&other.origins);
    }

    fn push(&mut self, (followed, origin): (Followed, Origin)) {
        self.followed.push(followed);
        self.origins.push(origin);
    }

    fn at(&self, place: usize) -> (Followed, Origin) {
        (self.followed[place], self.origins[place])
    }
}

/// A slice that the client shall forget.
#[derive(Clone, Copy, Debug)]
struct Left {
    key: Key,
    ticket: u16,
    sent_tick: u64,
}

impl Followed {
    /// The slice, and the frame that shows it.
    fn find<'a>(&self, shown: &[&'a Frame]) -> Option<(&'a Frame, &'a SliceHead)> {
        let frame: &Frame = shown.get(usize::from(self.frame))?;
        frame.head(self.name).map(|slice| (frame, slice))
    }

    /// Ticks since the newest update was sent.
    fn waited(&self, tick: u64) -> u64 {
        match self.shown {
            0 => WAIT_TICKS_MAX,
            shown => u64::from((tick as u16).wrapping_sub(shown)).min(WAIT_TICKS_MAX),
        }
    }
}

/// Something that a body carried and whose arrival matters here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Carried {
    /// Slots of a keyframe, from `first` up to `slots`.
    Keyframe {
        /// Of the slice.
        ticket: u16,
        /// Which keyframe: the low 6 bits of its epoch.
        epoch: u8,
        /// Slots that the client must hold before.
        first: u8,
        /// Slots that it holds now.
        slots: u8,
    },
    /// The order to forget a slice.
    Leave {
        /// Of the slice.
        ticket: u16,
    },
}

impl Carried {
    /// As 32 bits: ticket 12, epoch 6, first 7, slots 7.
    pub fn to_bits(self) -> u32 {
        match self {
            Carried::Keyframe { ticket, epoch, first, slots } => {
                u32::from(ticket) << 20 | u32::from(epoch) << 14 | u32::from(first) << 7 | u32::from(slots)
            }
            Carried::Leave { ticket } => u32::from(ticket) << 20,
        }
    }

    /// From 32 bits; a keyframe has at least one slot.
    pub fn from_bits(bits: u32) -> Carried {
        let ticket = (bits >> 20) as u16;
        match (bits & 127) as u8 {
            0 => Carried::Leave { ticket },
            slots => {
                let (epoch, first) = ((bits >> 14 & 63) as u8, (bits >> 7 & 127) as u8);
                Carried::Keyframe { ticket, epoch, first, slots }
            }
        }
    }
}

/// A walk along the list of what is followed.
struct Merge<'a> {
    /// Entries of the list that were passed.
    at: usize,
    /// The list as it will be is another one, in `next`.
    changed: bool,
    next: &'a mut List,
}

impl Merge<'_> {
    /// Slices that are followed, those that the walk did not pass yet among them.
    fn followed(&self, list: &List) -> usize {
        let passed = if self.changed { self.next.len() } else { self.at };
        passed + list.len() - self.at
    }
}

/// The slices of one client.
#[derive(Clone, Debug)]
pub struct Interest {
    list: List,
    left: Vec<Left>,
    /// The ticket that was given last.
    ticket: u16,
    /// Tickets come again: from now on some may be taken.
    wrapped: bool,
    /// When and where it looked around last; none: it must.
    looked: Option<Looked>,
    /// Acknowledged keyframes of an epoch that is over, or of a slice that is followed no longer.
    pub old_keyframes: u64,
}

/// What looking around and writing need for a moment; one for all clients of a shard.
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    /// Times that an event in reach of a client had no place in its body.
    pub events_unsent: u64,
    /// The list of a client as it will be.
    next: List,
    /// Squared distances of slices.
    squares: Vec<u32>,
    /// Urgency, and in the lowest bits the place in the list.
    order: Vec<u64>,
}

/// A look around.
#[derive(Clone, Copy, Debug)]
struct Looked {
    tick: u64,
    from: (i32, i32),
    space: u32,
}

impl Looked {
    fn is_soon_after(self, before: Looked) -> bool {
        self.tick < before.tick + LOOK_TICKS
            && self.space == before.space
            && distance(self.from, before.from) <= i64::from(GRID_PER_M).pow(2)
    }
}

impl Default for Interest {
    /// Follows nothing yet; has room for what most clients ever follow, so that the ticks in which they wander ask for no
    /// memory.
    fn default() -> Interest {
        let list = List { followed: Vec::with_capacity(LIST_FIRST), origins: Vec::with_capacity(LIST_FIRST) };
        Interest {
            list,
            left: Vec::with_capacity(LEFT_FIRST),
            ticket: 0,
            wrapped: false,
            looked: None,
            old_keyframes: 0,
        }
    }
}

impl Interest {
    /// Number of slices followed.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether none is followed.
    pub fn is_empty(&self) -> bool {
        self.list.followed.is_empty()
    }

    /// Asks for the memory of what is followed: of some, as more are rarely near.
    pub fn prefetch(&self) {
        prefetch(&self.list.followed[..], PREFETCH_BYTES);
        prefetch(&self.list.origins[..], PREFETCH_BYTES);
    }

    /// Looks around from a wire grid position of a space in the frames of one tick, given in order of their shards; not again as long
    /// as what was seen is there, the viewer is about where it was and it was not long ago.
    pub fn look(
        &mut self,
        shown: &[&Frame],
        tick: u64,
        (from, space): ((i32, i32), u32),
        radii: Radii,
        scratch: &mut Scratch,
    ) {
        let looked = Looked { tick, from, space };
        if self.looked.is_some_and(|before| looked.is_soon_after(before)) {
            return;
        }
        self.looked = Some(looked);
        let (enter, leave) = (square(radii.enter), square(radii.leave));
        let Scratch { next, squares, .. } = scratch;
        let mut merge = Merge { at: 0, changed: false, next };
        for (number, frame) in shown.iter().enumerate() {
            for row in frame.rows(space, from, radii.leave) {
                let squares = frame.boxes.squares(row.clone(), from, squares);
                for (slice, &squared) in frame.slices[row].iter().zip(squares) {
                    if squared <= leave {
                        self.meet(&mut merge, number, slice, squared, squared <= enter);
                    }
                }
            }
        }
        while merge.at < self.list.len() {
            self.lose(&mut merge);
        }
        if merge.changed {
            self.list.copy_from(merge.next);
        }
    }

    /// A slice within the outer radius: goes on being followed, or begins to be if it is inside the inner one.
    fn meet(&mut self, merge: &mut Merge<'_>, frame: usize, slice: &SliceHead, squared: u32, near: bool) {
        let (name, frame) = (slice.name, frame as u8);
        let is_next =
            |list: &List, at: usize| list.followed.get(at).is_some_and(|f| f.name == name && f.frame == frame);
        if !is_next(&self.list, merge.at) {
            let key = Key::of(slice);
            while self.list.origins.get(merge.at).is_some_and(|origin| origin.key < key) {
                self.lose(merge);
            }
            // One with this key and another name is gone: another slice has its number.
            if self.list.origins.get(merge.at).is_some_and(|origin| origin.key == key) && !is_next(&self.list, merge.at)
            {
                self.lose(merge);
            }
        }
        if is_next(&self.list, merge.at) {
            if merge.changed {
                merge.next.push(self.list.at(merge.at));
            }
            merge.at += 1;
        } else if near && merge.followed(&self.list) < SLICES_FOLLOWED_MAX && !is_overlooked(slice) {
            self.part(merge);
            let begun = self.begin(merge, slice, frame);
            merge.next.push(begun);
        } else {
            return;
        }
        let list = if merge.changed { &mut merge.next.followed[..] } else { &mut self.list.followed[..merge.at] };
        list.last_mut().expect("it was just put there").weight = weight(squared, slice.packed_bytes);
    }

    /// The list will differ: from here on it is made anew. Mostly it does not, and nothing is copied.
    fn part(&self, merge: &mut Merge<'_>) {
        if !merge.changed {
            merge.changed = true;
            merge.next.clear();
            merge.next.followed.extend_from_slice(&self.list.followed[..merge.at]);
            merge.next.origins.extend_from_slice(&self.list.origins[..merge.at]);
        }
    }

    fn begin(&mut self, merge: &Merge<'_>, slice: &SliceHead, frame: u8) -> (Followed, Origin) {
        let key = Key::of(slice);
        self.left.retain(|left| left.key != key);
        let (name, ticket, epoch) = (slice.name, self.free_ticket(merge), slice.epoch);
        (Followed { name, weight: 0, shown: 0, ticket, epoch, known: 0, sent: 0, frame }, Origin { key, sent_tick: 0 })
    }

    /// The next ticket that names no slice that is followed or left: what is acknowledged by it is that slice's alone.
    fn free_ticket(&mut self, merge: &Merge<'_>) -> u16 {
        loop {
            self.ticket = (self.ticket + 1) % TICKETS;
            self.wrapped |= self.ticket == 0;
            if !self.wrapped || !self.is_taken(self.ticket, merge) {
                return self.ticket;
            }
        }
    }

    fn is_taken(&self, ticket: u16, merge: &Merge<'_>) -> bool {
        let mut followed = merge.next.followed.iter().chain(&self.list.followed[merge.at..]);
        followed.any(|followed| followed.ticket == ticket) || self.left.iter().any(|left| left.ticket == ticket)
    }

    fn lose(&mut self, merge: &mut Merge<'_>) {
        self.part(merge);
        let (Followed { ticket, shown, .. }, Origin { key, sent_tick }) = self.list.at(merge.at);
        merge.at += 1;
        if shown > 0 || sent_tick > 0 {
            if self.left.len() == LEAVES_HELD_MAX {
                self.left.remove(0);
            }
            self.left.push(Left { key, ticket, sent_tick: 0 });
        }
    }

    /// A body with this arrived.
    pub fn arrived(&mut self, carried: Carried) {
        match carried {
            Carried::Leave { ticket } => self.left.retain(|left| left.ticket != ticket),
            Carried::Keyframe { ticket, epoch, first, slots } => {
                let followed = self.list.followed.iter_mut().find(|followed| followed.ticket == ticket);
                match followed.filter(|f| f.epoch % 64 == epoch) {
                    Some(followed) if followed.known >= first => {
                        followed.known = followed.known.max(slots);
                        followed.sent = followed.sent.max(slots);
                    }
                    // A part before it is still on its way.
                    Some(_) => (),
                    None => self.old_keyframes += 1,
                }
            }
        }
    }

    /// Writes the leaves and then as many slices as fit. `note` says whether it could take down one more thing carried;
    /// what it cannot is not sent.
    pub fn write(
        &mut self,
        shown: &[&Frame],
        (tick, pace, packed): (u64, Pace, bool),
        scratch: &mut Scratch,
        body: &mut BodyWriter<'_>,
        note: &mut impl FnMut(Carried) -> bool,
    ) {
        self.write_leaves(tick, body, note);
        let order = &mut scratch.order;
        order.clear();
        let mut late = [(LATE_TICKS, 0); LATE_PER_BODY];
        for (at, followed) in (0u64..).zip(&self.list.followed) {
            let waited = followed.waited(tick);
            if waited < pace.ticks(followed.weight) {
                continue;
            }
            if waited > late[LATE_PER_BODY - 1].0 {
                late[LATE_PER_BODY - 1] = (waited, order.len());
                late.sort_unstable_by(|a, b| b.cmp(a));
            }
            // The square of the wait: rates follow the root of the weight, so that far slices are slower, not starved.
            order.push((waited * waited * u64::from(followed.weight)) << PLACE_BITS | at);
        }
        for (waited, place) in late.into_iter().filter(|(waited, _)| *waited > LATE_TICKS) {
            order[place] = LATE | waited << PLACE_BITS | order[place] & (u64::from(TICKETS) - 1);
        }
        let (mut sorted, mut misses) = (0, 0);
        for at in 0..order.len() {
            if at == sorted {
                sorted = sort_further(order, at);
            }
            if body.remaining() < HEAD_BYTES + ENTITY_BYTES || misses == MISSES_MAX {
                break;
            }
            let place = (order[at] & (u64::from(TICKETS) - 1)) as usize;
            let (followed, origin) = (&mut self.list.followed[place], &mut self.list.origins[place]);
            let Some((frame, slice)) = followed.find(shown) else {
                // It is gone, or its members are in others now: those are looked for next time.
                self.looked = None;
                continue;
            };
            if followed.epoch != slice.epoch {
                (followed.epoch, followed.known, followed.sent) = (slice.epoch, 0, 0);
                if slice.reshaped {
                    self.looked = None;
                }
            }
            // What is shown so rarely that its keyframe would serve one delta or none costs less as it is.
            let rare = !slice.steady && followed.sent < slice.slots && followed.waited(tick) > RARE_TICKS;
            let written = if packed && !rare {
                write_packed((followed, &mut origin.sent_tick), frame, slice, tick, body, note)
            } else {
                write_entities(body, kind::PLAIN, head(slice, 0, slice.slots), &frame.now[slice.slots()])
            };
            match written {
                true => followed.shown = (tick as u16).max(1),
                false => misses += 1,
            }
        }
    }

    fn write_leaves(&mut self, tick: u64, body: &mut BodyWriter<'_>, note: &mut impl FnMut(Carried) -> bool) {
        let due = |left: &Left| left.sent_tick == 0 || tick >= left.sent_tick + RESEND_TICKS;
        let room = (body.remaining() / size_of::<structs::SliceKey>()).min(LEAVES_PER_BODY_MAX);
        let mut keys = [structs::SliceKey::default(); LEAVES_PER_BODY_MAX];
        let mut count = 0;
        for left in self.left.iter_mut().filter(|left| due(left)).take(room) {
            if !note(Carried::Leave { ticket: left.ticket }) {
                break;
            }
            left.sent_tick = tick;
            keys[count] = left.key.wire();
            count += 1;
        }
        if count > 0 {
            body.section_with(kind::LEAVE, count * size_of::<structs::SliceKey>(), |out| {
                out.as_chunks_mut().0.iter_mut().zip(&keys).for_each(|(place, key)| *place = key.0);
                count * size_of::<structs::SliceKey>()
            });
        }
    }
}

/// Whether a bug made by hand hides a slice from everybody.
fn is_overlooked(slice: &SliceHead) -> bool {
    planted(Bug::SliceOverlooked) && slice.plot.x & 2 == 0
}

/// Sorts some more of the order from a place on, the most urgent first; gives back how far it is sorted.
fn sort_further(order: &mut [u64], from: usize) -> usize {
    let rest = &mut order[from..];
    let count = rest.len().min(FIRST_SLICES);
    if count < rest.len() {
        rest.select_nth_unstable_by(count, |a, b| b.cmp(a));
    }
    rest[..count].sort_unstable_by(|a, b| b.cmp(a));
    from + count
}

/// Writes what the client lacks of the keyframe, and the slice against it; false when it got nothing of now.
fn write_packed(
    (followed, sent_tick): (&mut Followed, &mut u32),
    frame: &Frame,
    slice: &SliceHead,
    tick: u64,
    body: &mut BodyWriter<'_>,
    note: &mut impl FnMut(Carried) -> bool,
) -> bool {
    if followed.known < followed.sent && (tick as u32).wrapping_sub(*sent_tick) >= RESEND_TICKS as u32 {
        followed.sent = followed.known;
    }
    if followed.sent < slice.slots {
        let missing = usize::from(slice.slots - followed.sent);
        let room = body.remaining().saturating_sub(HEAD_BYTES) / ENTITY_BYTES;
        let count = missing.min(room);
        let (ticket, epoch, first) = (followed.ticket, followed.epoch % 64, followed.sent);
        let carried = Carried::Keyframe { ticket, epoch, first, slots: first + count as u8 };
        if (count < missing && count < KEYFRAME_SLOTS_MIN) || !note(carried) {
            return false;
        }
        let first = slice.first as usize + usize::from(followed.sent);
        let head = head(slice, followed.sent, count as u8);
        let written = write_entities(body, kind::KEYFRAME, head, &frame.keyframe[first..first + count]);
        assert!(written, "the room was measured");
        followed.sent += count as u8;
        *sent_tick = tick as u32;
        if count < missing {
            return false;
        }
    }
    let packed = &frame.packed[slice.packed as usize..][..usize::from(slice.packed_bytes)];
    body.section_parts(kind::DELTA, &[&head(slice, 0, slice.slots).0, packed])
}

fn head(slice: &SliceHead, first: u8, count: u8) -> structs::SliceHeader {
    let CellKey { space, x, y } = slice.plot;
    structs::SliceHeader::new(space, x, y, slice.part, slice.epoch, first, count, 0, 0)
}

fn write_entities(
    body: &mut BodyWriter<'_>,
    kind: u8,
    head: structs::SliceHeader,
    entities: &[structs::EntityPlain],
) -> bool {
    let bytes = HEAD_BYTES + ENTITY_BYTES * entities.len();
    body.section_with(kind, bytes, |out| {
        let (places, _) = out.as_chunks_mut();
        places[0] = head.0;
        places[1..].iter_mut().zip(entities).for_each(|(place, entity)| *place = entity.0);
        bytes
    })
}
