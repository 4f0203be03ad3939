//! Public events: what everybody near may see, and which of them are shown where there are more than fit.
//!
//! Owns the order of events and the choice among them. Promises: what a viewer is shown does not depend on the number of
//! shards, because a frame leaves out only what no body would choose; one source cannot take all places. Never allocates
//! for a viewer.

use crate::frame::{Frames, distance};
use crate::limits::{EVENTS_PER_BODY_MAX, EVENTS_PER_SOURCE_MAX, EVENTS_PER_SPOT_MAX};
use crate::random::{Digest, mix};
use crate::wire::body::{BodyWriter, kind};
use crate::wire::generated::structs;
use crate::wire::units::{CELL_GRID, GRID_PER_M};

/// Event kinds on the wire.
pub const EVENT_EMOTE: u16 = 1;
/// Likewise.
pub const EVENT_WAVE: u16 = 2;

/// Wire grid steps along the side of a spot.
const SPOT_GRID: i32 = 16 * GRID_PER_M;
/// Bits of a rank that are not the priority.
const PRIORITY_SHIFT: u32 = 60;

/// A 16 m square of a space: as exactly as it counts where an event happened. Ordered by space, row, column.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Spot {
    /// 0 is the land.
    pub space: u32,
    /// Row, northwards.
    pub y: i16,
    /// Column, eastwards.
    pub x: i16,
}

impl Spot {
    /// The spot of a wire grid position.
    pub fn of(space: u32, (x, y): (i32, i32)) -> Spot {
        Spot { space, y: Spot::row(y), x: Spot::row(x) }
    }

    /// Row or column of a coordinate.
    pub fn row(v: i32) -> i16 {
        v.div_euclid(SPOT_GRID) as i16
    }

    /// Squared distance of a position to its middle, wire grid steps.
    pub fn distance(self, from: (i32, i32)) -> i64 {
        let middle = |row: i16| i32::from(row) * SPOT_GRID + SPOT_GRID / 2;
        distance(from, (middle(self.x), middle(self.y)))
    }
}

/// A public event and where it happened.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct PublicEvent {
    /// Where.
    pub spot: Spot,
    /// Its place among the events of its spot and tick, the least first: priority of its kind, then chance.
    rank: u64,
    /// As clients get it.
    pub event: structs::Event,
}

impl PublicEvent {
    /// An event; the realm's secret seed keeps any source from being first every time.
    pub fn new(seed: u64, spot: Spot, event: structs::Event) -> PublicEvent {
        // What happens between two concerns more of those who see it than what one does alone.
        let priority: u64 = match event.kind() {
            EVENT_WAVE => 0,
            _ => 1,
        };
        let what = u64::from(event.kind()) << 16 | u64::from(event.value());
        let mut digest = Digest::new(seed);
        let chance = digest.add(event.source()).add(event.target()).add(mix(event.tick().into())).add(what).finish();
        PublicEvent { spot, rank: priority << PRIORITY_SHIFT | chance >> (64 - PRIORITY_SHIFT), event }
    }
}

/// Moves what a frame shows of one tick's events behind `shown`, by spot and rank; gives back how many it leaves out.
/// Of each spot that is what one body could carry of it, so that nobody sees that the rest is missing.
pub fn show(events: &mut Vec<PublicEvent>, shown: &mut Vec<PublicEvent>) -> u64 {
    let before = shown.len();
    events.sort_unstable_by_key(|public| (public.spot, public.rank));
    for spot in events.chunk_by(|a, b| a.spot == b.spot) {
        let first = shown.len();
        for public in spot {
            let of_spot = &shown[first..];
            if of_spot.len() == EVENTS_PER_SPOT_MAX {
                break;
            }
            let of_source = of_spot.iter().filter(|other| other.event.source() == public.event.source()).count();
            if of_source < EVENTS_PER_SOURCE_MAX {
                shown.push(*public);
            }
        }
    }
    let left_out = before + events.len() - shown.len();
    events.clear();
    left_out as u64
}

/// Where an event stands among all that a viewer may see, the least first: priority, then distance, then age, then chance.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
struct Key(u64, u64);

/// The events of one body: those that stand first among all that were offered, no more of one source than its share. In
/// which order they are offered makes no difference.
#[derive(Default)]
pub struct Choice {
    chosen: [(Key, structs::Event); EVENTS_PER_BODY_MAX],
    count: usize,
    /// Events offered that are not in it.
    pub left_out: u64,
}

impl Choice {
    /// Offers an event that happened so far from the viewer (squared, wire grid steps) and so many ticks ago.
    pub fn offer(&mut self, public: &PublicEvent, squared: i64, age_ticks: u64) {
        let near = (squared as u64) << 16 | age_ticks.min(0xffff);
        let key = Key(public.rank >> PRIORITY_SHIFT << PRIORITY_SHIFT | near, public.rank);
        let chosen = &self.chosen[..self.count];
        let is_full = self.count == EVENTS_PER_BODY_MAX;
        if is_full && chosen[self.count - 1].0 < key {
            self.left_out += 1;
            return;
        }
        // Where its source has its share already the last of those gives way, else the last of all.
        let is_same = |(_, other): &(Key, structs::Event)| other.source() == public.event.source();
        let end = if chosen.iter().filter(|other| is_same(other)).count() == EVENTS_PER_SOURCE_MAX {
            chosen.iter().rposition(is_same).expect("they were counted")
        } else {
            self.count - usize::from(is_full)
        };
        let place = chosen.partition_point(|(other, _)| *other < key);
        if end < self.count {
            self.left_out += 1;
        } else {
            self.count += 1;
        }
        if place <= end {
            self.chosen[place..=end].rotate_right(1);
            self.chosen[place] = (key, public.event);
        }
    }

    /// Leaves out all but the first `count`.
    pub fn truncate(&mut self, count: usize) {
        self.left_out += self.count.saturating_sub(count) as u64;
        self.count = self.count.min(count);
    }

    /// The chosen ones, the first first.
    pub fn events(&self) -> impl ExactSizeIterator<Item = &structs::Event> {
        self.chosen[..self.count].iter().map(|(_, event)| event)
    }
}

/// Writes the public events of the ticks after `after` up to `tick` that happened within a radius (wire grid steps, by spot)
/// of a position of a space, as many as [`Choice`] and the body take; gives back how many it left out.
pub fn write_events(
    frames: &Frames,
    (after, tick): (u64, u64),
    (from, space): ((i32, i32), u32),
    radius: i32,
    body: &mut BodyWriter<'_>,
) -> u64 {
    // What happens in a slice that is still shown is near enough: it is as long as its plot.
    let reach = radius + CELL_GRID;
    let (low, high) = (Spot::row(from.1 - reach), Spot::row(from.1 + reach));
    let squared_max = i64::from(reach).pow(2);
    let mut choice = Choice::default();
    for frame in frames.between(after, tick) {
        for public in frame.events_in_rows(space, low, high) {
            let squared = public.spot.distance(from);
            if squared <= squared_max {
                choice.offer(public, squared, tick - frame.tick);
            }
        }
    }
    choice.truncate(body.remaining() / size_of::<structs::Event>());
    let events = choice.events();
    if events.len() > 0 {
        let bytes = events.len() * size_of::<structs::Event>();
        body.section_with(kind::EVENTS, bytes, |out| {
            out.as_chunks_mut().0.iter_mut().zip(events).for_each(|(place, event)| *place = event.0);
            bytes
        });
    }
    choice.left_out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chosen(events: &[PublicEvent]) -> Vec<[u8; 24]> {
        let mut choice = Choice::default();
        for public in events {
            choice.offer(public, public.spot.distance((0, 0)), 8 - u64::from(public.event.tick()));
        }
        assert_eq!(choice.count + choice.left_out as usize, events.len());
        choice.events().map(|event| event.0).collect()
    }

    proptest! {
        /// Events of a few sources in a few spots and ticks, each in the frame of one of three shards.
        #[test]
        fn a_frame_leaves_out_only_what_no_body_would_choose(
            events in proptest::collection::vec((0..5u64, 0..3i32, 0..3u32, 1..=2u16, 0..40u16, 0..3usize), 0..120),
        ) {
            let public = |&(source, x, tick, kind, value, shard): &(u64, i32, u32, u16, u16, usize)| {
                let event = structs::Event::new(source, 0, tick, kind, value);
                (shard, PublicEvent::new(5, Spot::of(0, (x * SPOT_GRID, 0)), event))
            };
            let mut events: Vec<_> = events.iter().map(public).collect();
            events.sort_unstable_by_key(|(_, public)| public.event.0);
            events.dedup_by_key(|(_, public)| public.event.0);
            let all: Vec<_> = events.iter().map(|(_, public)| *public).collect();
            let (mut shown, mut left_out) = (Vec::new(), 0);
            for (tick, shard) in (0..3).flat_map(|tick| (0..3).map(move |shard| (tick, shard))) {
                let mine = events.iter().filter(|(of, public)| *of == shard && public.event.tick() == tick);
                left_out += show(&mut mine.map(|(_, public)| *public).collect(), &mut shown);
            }
            prop_assert_eq!(shown.len() + left_out as usize, all.len());
            prop_assert_eq!(chosen(&shown), chosen(&all));
            let reversed: Vec<_> = all.iter().rev().copied().collect();
            prop_assert_eq!(chosen(&reversed), chosen(&all));
        }
    }
}
