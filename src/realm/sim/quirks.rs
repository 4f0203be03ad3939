//! Clients that do not play as they should.
//!
//! Owns what each of them does: it idles and then floods, acknowledges what never came, cuts its messages small, or hangs
//! up and forgets all but what the next Welcome says. Promises: who does what depends on the number of the bot alone, so
//! that it is the same on any number of shards; the rules and the judges hold for them as for everybody.

use crate::limits::CLIENT_BODY_BYTES_MAX;
use crate::wire::body::{BodyReader, BodyWriter, FLAG_ACKS, kind};
use crate::wire::generated::structs;

/// Ticks in which a flooder idles, floods, and then plays as others do.
const FLOOD_CYCLE_TICKS: u64 = 240;
/// Of these it idles, and saves as much time as it can.
const IDLE_TICKS: u64 = 100;
/// And floods until then.
const FLOOD_END_TICKS: u64 = 160;
/// Client ticks that a flooder claims to have in one.
const FLOOD_RATE: u32 = 4;
/// Of how many bodies of a liar one acknowledges what never came.
const LIE_BODIES: u16 = 4;
/// Packets by which that is ahead of what was sent.
const LIE_AHEAD: u16 = 5_000;
/// Pieces that a cutter makes of a message.
const PIECES: usize = 5;
/// Ticks between two times that somebody forgets.
const FORGET_TICKS: u64 = 701;

/// What is odd about a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Quirk {
    /// Nothing.
    None,
    /// It idles, and then sends more commands than time passes.
    Flood,
    /// It acknowledges packets that were never sent.
    Lie,
    /// Its messages come in many fragments.
    Cut,
    /// It hangs up now and then, and knows nothing of before when it comes back.
    Forget,
}

impl Quirk {
    /// Of the `number`-th bot. Nobody floods where jumps are looked for: who saved time may jump. Who does not trade has
    /// nothing to forget.
    pub fn of(number: u64, may_flood: bool, trades: bool) -> Quirk {
        match number % 16 {
            3 if may_flood => Quirk::Flood,
            5 => Quirk::Lie,
            10 => Quirk::Cut,
            13 if trades => Quirk::Forget,
            _ => Quirk::None,
        }
    }

    /// Client ticks that it has in a tick.
    pub fn client_ticks(self, tick: u64) -> u32 {
        match (self, tick % FLOOD_CYCLE_TICKS) {
            (Quirk::Flood, ..IDLE_TICKS) => 0,
            (Quirk::Flood, IDLE_TICKS..FLOOD_END_TICKS) => FLOOD_RATE,
            _ => 1,
        }
    }

    /// Whether it hangs up in a tick.
    pub fn goes(self, number: usize, tick: u64) -> bool {
        self == Quirk::Forget && (tick + 37 * number as u64).is_multiple_of(FORGET_TICKS)
    }

    /// The body that it sends in place of one that its session made.
    pub fn spoil(self, body: &[u8]) -> Vec<u8> {
        match self {
            Quirk::Lie => lie(body),
            Quirk::Cut => cut(body),
            Quirk::None | Quirk::Flood | Quirk::Forget => None,
        }
        .unwrap_or_else(|| body.to_vec())
    }
}

fn lie(body: &[u8]) -> Option<Vec<u8>> {
    let (mut header, _) = BodyReader::client(body).ok()?;
    if header.flags() & FLAG_ACKS == 0 || !header.sequence().is_multiple_of(LIE_BODIES) {
        return None;
    }
    header.set_ack(header.ack().wrapping_add(LIE_AHEAD));
    let mut body = body.to_vec();
    body[..header.0.len()].copy_from_slice(&header.0);
    Some(body)
}

fn cut(body: &[u8]) -> Option<Vec<u8>> {
    let (header, sections) = BodyReader::client(body).ok()?;
    let mut out = [0; CLIENT_BODY_BYTES_MAX];
    let mut writer = BodyWriter::client(&mut out, header);
    for section in sections {
        let is_whole = !matches!(section.kind, kind::RELIABLE_ORDERED | kind::RELIABLE_UNORDERED);
        if is_whole {
            writer.section(section.kind, section.bytes).then_some(())?;
            continue;
        }
        let (header, message) = section.bytes.split_first_chunk()?;
        let header = structs::FragmentHeader(*header);
        let pieces = message.chunks(message.len().div_ceil(PIECES).max(1));
        let count = pieces.len() as u8;
        for (number, piece) in (0u8..).zip(pieces) {
            let header = structs::FragmentHeader::new(header.message(), number, count);
            writer.section_parts(section.kind, &[&header.0, piece]).then_some(())?;
        }
    }
    let length = writer.finish();
    Some(out[..length].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_was_cut_is_the_same_message_in_more_fragments() {
        let mut out = [0; CLIENT_BODY_BYTES_MAX];
        let mut writer = BodyWriter::client(&mut out, structs::ClientHeader::new(1, 2, 3, FLAG_ACKS, 0));
        let message: Vec<u8> = (0..33).collect();
        let header = structs::FragmentHeader::new(7, 0, 1);
        assert!(writer.section(kind::COMMANDS, &[0; 8]));
        assert!(writer.section_parts(kind::RELIABLE_ORDERED, &[&header.0, &message]));
        let length = writer.finish();
        let spoilt = Quirk::Cut.spoil(&out[..length]);
        let (_, sections) = BodyReader::client(&spoilt).expect("well formed");
        let pieces: Vec<_> = sections.filter(|section| section.kind == kind::RELIABLE_ORDERED).collect();
        assert_eq!(pieces.len(), PIECES);
        let joined: Vec<u8> = pieces.iter().flat_map(|piece| piece.bytes[4..].iter().copied()).collect();
        assert_eq!(joined, message);
    }
}
