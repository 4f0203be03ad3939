//! What one client is shown, as its bodies have it.

use super::*;
use crate::ids::{EntityId, PLOT_GRID, ShardId};
use crate::limits::BODY_BYTES_MAX;
use crate::world::frame::Seen;

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
    let mut body = BodyWriter::server(&mut out, wire::ServerHeader::default());
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
