//! What one client is shown, as its bodies have it.

use std::sync::Arc;

use super::*;
use crate::limits::BODY_BYTES_MAX;
use crate::wire::body::BodyReader;
use crate::wire::ids::{EntityId, ShardId};
use crate::wire::units::PLOT_GRID;
use crate::world::events::{EVENT_EMOTE, EVENT_WAVE, PublicEvent, Spot, show, write_events};
use crate::world::frame::{Frames, Seen};

const RADII: Radii = Radii { enter: 96 * GRID_PER_M, leave: 128 * GRID_PER_M };
const FROM: (i32, i32) = (4 * PLOT_GRID, 4 * PLOT_GRID);

/// A frame with a slice of one entity in each of some plots, which meet where the viewer stands: given are the entity's way
/// from there, and which tenant of its place the slice is.
fn frame(tick: u64, plots: &[((i32, i32), u32)]) -> Frame {
    let seen = |&((x, y), tenant): &((i32, i32), u32)| Seen {
        id: EntityId::character(tenant.into()),
        position: (FROM.0 + x, FROM.1 + y),
        next_owner: ShardId(0),
    };
    let mut all: Vec<Seen> = plots.iter().map(seen).collect();
    all.sort_unstable_by_key(|seen| seen.id);
    let mut frame = Frame::of_seen(ShardId(0), tick, &all);
    frame.keyframe = frame.now.clone();
    for (place, slice) in (0..).zip(&mut frame.slices) {
        // What is steady is sent with its keyframe however rarely it is shown.
        slice.steady = true;
        slice.name = SliceName::new(place, frame.now[slice.first as usize].id() as u32 % 4_096);
    }
    frame.index_rows();
    frame
}

/// What a client holds once it looked around and a body was written.
fn shown(interest: &mut Interest, frame: &Frame, scratch: &mut Scratch) -> Vec<Carried> {
    let mut out = [0; BODY_BYTES_MAX];
    let mut body = BodyWriter::server(&mut out, structs::ServerHeader::default());
    let mut carried = Vec::new();
    interest.look(&[frame], frame.tick, (FROM, 0), RADII, scratch);
    interest.write(&[frame], (frame.tick, Pace::default(), true), scratch, &mut body, &mut |one| {
        carried.push(one);
        true
    });
    carried
}

#[test]
fn a_slice_that_is_followed_long_shares_its_ticket_with_none() {
    let (mut interest, mut scratch) = (Interest::default(), Scratch::default());
    let long = ((-1, -1), 0);
    let ticket = |carried: &Carried| match *carried {
        Carried::Keyframe { ticket, .. } | Carried::Leave { ticket } => ticket,
    };
    let first = shown(&mut interest, &frame(1, &[long]), &mut scratch);
    let long_ticket = ticket(&first[0]);
    assert_eq!(first.len(), 1);
    for round in 1..=u32::from(TICKETS) + 8 {
        // Another one each time; the one before is left, and it is acknowledged that it is.
        let other = (if round % 2 == 0 { (1, 1) } else { (1, -1) }, 1 + round % 4_000);
        let carried = shown(&mut interest, &frame(1 + 100 * u64::from(round), &[long, other]), &mut scratch);
        let of_others: Vec<u16> = carried.iter().map(ticket).filter(|&other| other != long_ticket).collect();
        let again = carried.iter().filter(|one| ticket(one) == long_ticket);
        assert!(again.count() <= 1, "round {round}: {carried:?}");
        assert!(!of_others.is_empty(), "round {round}: the new one has a ticket of its own: {carried:?}");
        carried.into_iter().filter(|one| ticket(one) != long_ticket).for_each(|one| interest.arrived(one));
    }
    assert_eq!(interest.len(), 2);
}

/// An event of a source, so many metres east of the viewer.
fn event(source: u64, kind: u16, tick: u64, metres: i32) -> PublicEvent {
    let spot = Spot::of(0, (FROM.0 + metres * GRID_PER_M, FROM.1));
    PublicEvent::new(7, spot, structs::Event::new(source, 0, tick as u32, kind, 0))
}

/// The sources of the events that a viewer gets, in order, and how many it does not get.
fn sources_shown(events: &[PublicEvent]) -> (Vec<u64>, u64) {
    let (mut frames, mut left_out) = (Frames::new(1), 0);
    for tick in 1..=8 {
        let mut frame = Frame::default();
        frame.tick = tick;
        let mut of_tick: Vec<_> =
            events.iter().filter(|public| u64::from(public.event.tick()) == tick).copied().collect();
        left_out += show(&mut of_tick, &mut frame.events);
        frames.push(Arc::new(frame));
    }
    let mut out = [0; BODY_BYTES_MAX];
    let mut body = BodyWriter::server(&mut out, structs::ServerHeader::default());
    left_out += write_events(&frames, (0, 8), (FROM, 0), RADII.enter, &mut body);
    let length = body.finish();
    let (_, mut sections) = BodyReader::server(&out[..length]).expect("it was just written");
    let section = sections.find(|section| section.kind == kind::EVENTS);
    let bytes = section.map_or(&[][..], |section| section.bytes);
    (bytes.as_chunks().0.iter().map(|bytes| structs::Event(*bytes).source()).collect(), left_out)
}

#[test]
fn one_source_cannot_hide_the_events_of_others() {
    let flood = (0..32).map(|n| event(1, EVENT_EMOTE, 1 + n % 8, 1));
    let others = (2..6).map(|source| event(source, EVENT_EMOTE, 1, 40));
    let (sources, left_out) = sources_shown(&flood.chain(others).collect::<Vec<_>>());
    assert_eq!(sources.iter().filter(|source| **source == 1).count(), 2, "{sources:?}");
    assert_eq!((sources.len(), left_out), (6, 30), "{sources:?}");
}

#[test]
fn what_concerns_two_goes_first_and_then_the_nearest_and_the_newest() {
    let events = [
        event(1, EVENT_EMOTE, 8, 80),
        event(2, EVENT_EMOTE, 3, 1),
        event(3, EVENT_EMOTE, 8, 1),
        event(4, EVENT_WAVE, 2, 90),
        event(5, EVENT_EMOTE, 8, 40),
        event(6, EVENT_EMOTE, 8, 500),
        event(7, EVENT_EMOTE, 8, 100),
        event(8, EVENT_EMOTE, 8, 140),
    ];
    assert_eq!(sources_shown(&events), (vec![4, 3, 2, 5, 1, 7], 1));
}
