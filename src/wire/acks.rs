//! Packet-level acknowledgements: which packets of the peer arrived, and what became of ours.
//!
//! Owns the newest 33 sequences received and the last [`SENT_PACKETS_KEPT`] packets sent. Promises: each sent packet is
//! told `Arrived` at most once, and `Lost` at most once; acknowledgements of packets that were never sent change
//! nothing. Never resends anything itself.

use crate::limits::{FRAGMENTS_PER_PACKET_MAX, NOTES_PER_PACKET_MAX, SENT_PACKETS_KEPT};
use crate::planted::{Bug, planted};
use crate::prefetch::prefetch;
use std::collections::VecDeque;

/// How many sequences before the newest one an acknowledgement names.
const ACK_BITS: u16 = 32;
/// From here on, a sequence is older and not newer, modulo 2^16.
const HALF: u16 = 0x8000;

/// How a received packet stands to those before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arrival {
    /// Newer than all that were accepted.
    Newest,
    /// Not accepted before, but older than the newest.
    Late,
    /// Accepted before, or too old to tell.
    Seen,
}

/// Which packets of the peer were accepted; makes the ack fields of our headers.
#[derive(Clone, Copy, Default, Debug)]
pub struct PacketAcks {
    newest: Option<u16>,
    bits: u32,
}

impl PacketAcks {
    /// How a packet with this sequence stands to those accepted.
    pub fn arrival(&self, sequence: u16) -> Arrival {
        let Some(newest) = self.newest else { return Arrival::Newest };
        if planted(Bug::SequenceNeverWraps) && sequence < newest && newest - sequence > ACK_BITS {
            return Arrival::Seen;
        }
        match newest.wrapping_sub(sequence) {
            0 => Arrival::Seen,
            HALF.. => Arrival::Newest,
            behind @ 1..=ACK_BITS if self.bits >> (behind - 1) & 1 == 0 => Arrival::Late,
            _ => Arrival::Seen,
        }
    }

    /// From now on this sequence is acknowledged.
    pub fn accept(&mut self, sequence: u16) {
        let newest = self.newest.unwrap_or(sequence);
        let ahead = sequence.wrapping_sub(newest);
        if (1..HALF).contains(&ahead) {
            // The former newest becomes bit `ahead - 1`.
            let known = u64::from(self.bits) << 1 | 1;
            self.bits = known.checked_shl(u32::from(ahead) - 1).unwrap_or(0) as u32;
        } else if let behind @ 1..=ACK_BITS = newest.wrapping_sub(sequence) {
            self.bits |= 1 << (behind - 1);
        }
        self.newest = Some(if ahead < HALF { sequence } else { newest });
    }

    /// `ack` and `ack_bits`, once a packet was accepted.
    pub fn fields(&self) -> Option<(u16, u32)> {
        self.newest.map(|newest| (newest, self.bits))
    }
}

/// A piece of a reliable message that a packet carried.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct CarriedFragment {
    /// Message number.
    pub message: u16,
    /// Fragment of the message.
    pub fragment: u8,
    /// On the ordered channel.
    pub ordered: bool,
}

/// What a packet carries whose fate somebody wants to hear.
#[derive(Clone, Copy, Default, Debug)]
pub struct SentPacket {
    /// Tick of sending, low 32 bits.
    pub tick: u32,
    fragments: [CarriedFragment; FRAGMENTS_PER_PACKET_MAX],
    fragment_count: u8,
    notes: [u32; NOTES_PER_PACKET_MAX],
    note_count: u8,
    arrived: bool,
    told_lost: bool,
}

impl SentPacket {
    /// An empty packet of this tick (low 32 bits).
    pub fn new(tick: u32) -> SentPacket {
        SentPacket { tick, ..SentPacket::default() }
    }

    /// Remembers a value of the caller's own meaning, for example a keyframe. False: full, nothing was remembered.
    pub fn note(&mut self, value: u32) -> bool {
        push(&mut self.notes, &mut self.note_count, value)
    }

    /// Remembers a fragment. False: full, nothing was remembered.
    pub fn fragment(&mut self, fragment: CarriedFragment) -> bool {
        push(&mut self.fragments, &mut self.fragment_count, fragment)
    }

    /// Whether [`SentPacket::fragment`] would refuse.
    pub fn fragments_full(&self) -> bool {
        usize::from(self.fragment_count) == FRAGMENTS_PER_PACKET_MAX
    }

    /// The fragments remembered.
    pub fn fragments(&self) -> &[CarriedFragment] {
        &self.fragments[..usize::from(self.fragment_count)]
    }

    /// The notes remembered.
    pub fn notes(&self) -> &[u32] {
        &self.notes[..usize::from(self.note_count)]
    }
}

fn push<T>(list: &mut [T], count: &mut u8, value: T) -> bool {
    let Some(place) = list.get_mut(usize::from(*count)) else { return false };
    *place = value;
    *count += 1;
    true
}

/// What became of a sent packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// The peer accepted it.
    Arrived,
    /// It fell out of the window of acknowledgements, or its time is over. In the second case it can still arrive.
    Lost,
}

/// How many packets came to which fate, and when the newest was sent that arrived.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Fates {
    /// Arrived.
    pub arrived: u32,
    /// Lost; one that is told lost because its time is over may be told arrived later.
    pub lost: u32,
    /// Tick of sending, low 32 bits, of the newest that arrived.
    pub newest_tick: Option<u32>,
}

impl Fates {
    /// Counts one more.
    pub fn note(&mut self, fate: Fate, packet: &SentPacket) {
        match fate {
            Fate::Lost => self.lost += 1,
            Fate::Arrived => {
                self.arrived += 1;
                let is_newer = self.newest_tick.is_none_or(|tick| packet.tick.wrapping_sub(tick) < 1 << 31);
                if is_newer {
                    self.newest_tick = Some(packet.tick);
                }
            }
        }
    }
}

/// The last packets sent.
#[derive(Clone, Debug)]
pub struct SentPackets {
    /// Those whose fate is open, `open` first: a few round trips of them, up to [`SENT_PACKETS_KEPT`].
    packets: VecDeque<SentPacket>,
    /// Sequence of the next packet.
    next: u16,
    /// Packets in the ring, before `next`.
    kept: u16,
    /// Oldest sequence that can still change its fate.
    open: u16,
    /// Oldest sequence whose time was not yet found over.
    timed: u16,
    /// Newest sequence acknowledged, and the 64 up to it that were (bit n: newest - n).
    newest: Option<u16>,
    arrived: u64,
}

impl Default for SentPackets {
    fn default() -> SentPackets {
        SentPackets::new()
    }
}

impl SentPackets {
    /// Nothing sent yet; the first sequence is 0.
    pub fn new() -> SentPackets {
        SentPackets { packets: VecDeque::new(), next: 0, kept: 0, open: 0, timed: 0, newest: None, arrived: 0 }
    }

    /// Begins with another sequence; before anything was sent.
    pub fn start_at(&mut self, sequence: u16) {
        assert!(self.kept == 0, "the first packet is still to come");
        (self.next, self.open, self.timed) = (sequence, sequence, sequence);
    }

    /// Asks for the memory of the newest packet that did not arrive, if there is one.
    pub fn prefetch(&self) {
        self.packets.back().into_iter().for_each(|packet| prefetch(packet, size_of::<SentPacket>()));
    }

    /// Sequence that the next recorded packet gets.
    pub fn next_sequence(&self) -> u16 {
        self.next
    }

    /// Remembers a packet that is being sent; `settle` hears of the one that gives way, if its fate is open.
    pub fn record(&mut self, packet: SentPacket, settle: impl FnMut(Fate, &SentPacket)) -> u16 {
        if self.packets.len() == SENT_PACKETS_KEPT {
            self.close_before(self.open.wrapping_add(1), settle);
        }
        let sequence = self.next;
        self.packets.push_back(packet);
        self.next = sequence.wrapping_add(1);
        self.kept = (self.kept + 1).min(SENT_PACKETS_KEPT as u16);
        // A peer that acknowledges nothing for long: sequences wrap, and its newest one would seem to be ahead.
        if self.newest.is_some_and(|newest| self.next.wrapping_sub(newest) > SENT_PACKETS_KEPT as u16) {
            (self.newest, self.arrived) = (None, 0);
        }
        sequence
    }

    /// Takes the ack fields of a header from the peer, in any order of arrival. False: `ack` was never sent, or so long
    /// ago that nothing is known; nothing changed.
    pub fn on_ack(&mut self, ack: u16, ack_bits: u32, mut settle: impl FnMut(Fate, &SentPacket)) -> bool {
        if self.next.wrapping_sub(1).wrapping_sub(ack) >= self.kept {
            return false;
        }
        let before = self.newest.unwrap_or(ack);
        let ahead = ack.wrapping_sub(before);
        let newest = if ahead < HALF { ack } else { before };
        if ahead < HALF {
            self.arrived = self.arrived.checked_shl(u32::from(ahead)).unwrap_or(0);
        }
        self.newest = Some(newest);
        let window = u64::from(ack_bits) << 1 | 1;
        let mut fresh = window.checked_shl(u32::from(newest.wrapping_sub(ack))).unwrap_or(0) & !self.arrived;
        self.arrived |= fresh;
        while fresh != 0 {
            let sequence = newest.wrapping_sub(fresh.trailing_zeros() as u16);
            fresh &= fresh - 1;
            if sequence.wrapping_sub(self.open) < self.next.wrapping_sub(self.open) {
                let packet = self.at(sequence);
                packet.arrived = true;
                settle(Fate::Arrived, packet);
            }
        }
        let oldest = newest.wrapping_sub(ACK_BITS);
        if (1..HALF).contains(&oldest.wrapping_sub(self.open)) {
            self.close_before(oldest, settle);
        }
        // What arrived needs no place any more: all sessions' packets together are larger than a core's caches.
        while self.packets.front().is_some_and(|packet| packet.arrived) {
            self.packets.pop_front();
            self.open = self.open.wrapping_add(1);
        }
        true
    }

    /// Tells those packets `Lost` that were sent more than `ticks_max` before `now_tick` (low 32 bits) and did not
    /// arrive so far.
    pub fn expire(&mut self, now_tick: u32, ticks_max: u32, mut settle: impl FnMut(Fate, &SentPacket)) {
        if self.open.wrapping_sub(self.timed) < HALF {
            self.timed = self.open;
        }
        while self.timed != self.next {
            let packet = self.at(self.timed);
            if now_tick.wrapping_sub(packet.tick) <= ticks_max {
                return;
            }
            if !packet.arrived && !packet.told_lost {
                packet.told_lost = true;
                settle(Fate::Lost, packet);
            }
            self.timed = self.timed.wrapping_add(1);
        }
    }

    fn close_before(&mut self, end: u16, mut settle: impl FnMut(Fate, &SentPacket)) {
        while self.open != end {
            let packet = self.packets.pop_front().expect("those from `open` to `next` are kept");
            if !packet.arrived && !packet.told_lost {
                settle(Fate::Lost, &packet);
            }
            self.open = self.open.wrapping_add(1);
        }
    }

    #[inline]
    fn at(&mut self, sequence: u16) -> &mut SentPacket {
        &mut self.packets[usize::from(sequence.wrapping_sub(self.open))]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn noted(tick: u32) -> SentPacket {
        let mut packet = SentPacket::new(tick);
        assert!(packet.note(tick));
        packet
    }

    fn fates(told: &mut Vec<(Fate, u32)>) -> impl FnMut(Fate, &SentPacket) {
        |fate, packet| told.extend(packet.notes().iter().map(|&note| (fate, note)))
    }

    #[test]
    fn ack_fields_name_what_was_accepted_over_the_wrap() {
        let mut acks = PacketAcks::default();
        assert_eq!(acks.fields(), None);
        for sequence in [65_533, 65_535, 1, 65_534] {
            acks.accept(sequence);
        }
        assert_eq!(acks.fields(), Some((1, 0b1110)));
        assert_eq!(
            [65_533, 0, 1, 2].map(|s| acks.arrival(s)),
            [Arrival::Seen, Arrival::Late, Arrival::Seen, Arrival::Newest]
        );
        assert_eq!(acks.arrival(65_504), Arrival::Seen, "too old to tell");
        acks.accept(1_000);
        assert_eq!(acks.fields(), Some((1_000, 0)));
    }

    #[test]
    fn packets_out_of_the_window_are_lost_once() {
        let mut sent = SentPackets::new();
        for tick in 0..40 {
            sent.record(noted(tick), |_, _| panic!("nothing gives way yet"));
        }
        let mut told = Vec::new();
        assert!(sent.on_ack(35, !2, fates(&mut told)));
        let lost: Vec<_> = told.iter().filter(|t| t.0 == Fate::Lost).map(|t| t.1).collect();
        assert_eq!(lost, [0, 1, 2], "33 is still open");
        assert_eq!(told.len(), 32 + 3);
        told.clear();
        assert!(sent.on_ack(35, !0, fates(&mut told)));
        assert_eq!(told, [(Fate::Arrived, 33)]);
        assert!(!sent.on_ack(40, !0, fates(&mut told)) && !sent.on_ack(u16::MAX, !0, fates(&mut told)));
        assert_eq!(told.len(), 1, "packets never sent change nothing");
    }

    #[test]
    fn silence_of_any_length_confuses_nobody() {
        let mut sent = SentPackets::new();
        for tick in 0..140_000_u32 {
            sent.record(noted(tick), |_, _| {});
            if tick < 100 {
                assert!(sent.on_ack(tick as u16, !0, |_, _| {}));
            }
            if tick.is_multiple_of(97) {
                let (mut back, mut told) = (sent.clone(), Vec::new());
                assert!(back.on_ack(tick as u16, 0, fates(&mut told)), "tick {tick}");
                let arrived: Vec<u32> = told.iter().filter(|(fate, _)| *fate == Fate::Arrived).map(|t| t.1).collect();
                let expected: &[u32] = if tick < 100 { &[] } else { &[tick] };
                assert_eq!(arrived, expected);
                assert!(back.on_ack(tick as u16, !0, |_, _| {}) && back.packets.len() <= 33);
            }
        }
    }

    #[test]
    fn what_arrived_is_kept_only_behind_what_did_not() {
        let mut sent = SentPackets::new();
        for sequence in 0..100 {
            sent.record(noted(0), |_, _| {});
            assert!(sent.on_ack(sequence, 0, |_, _| {}));
            assert!(sent.packets.is_empty(), "{sequence}");
        }
        sent.record(noted(100), |_, _| {});
        sent.record(noted(101), |_, _| {});
        assert!(sent.on_ack(101, 0, |_, _| {}));
        assert_eq!(sent.packets.len(), 2);
        let mut told = Vec::new();
        assert!(sent.on_ack(101, 1, fates(&mut told)));
        assert_eq!((told, sent.packets.len()), (vec![(Fate::Arrived, 100)], 0));
    }

    #[test]
    fn a_packet_whose_time_is_over_can_still_arrive() {
        let mut sent = SentPackets::new();
        for tick in [10, 20, 30] {
            sent.record(noted(tick), |_, _| {});
        }
        let mut told = Vec::new();
        sent.expire(85, 60, fates(&mut told));
        sent.expire(85, 60, fates(&mut told));
        assert_eq!(told, [(Fate::Lost, 10), (Fate::Lost, 20)]);
        assert!(sent.on_ack(1, 0, fates(&mut told)));
        assert_eq!(told.last(), Some(&(Fate::Arrived, 20)));
    }

    #[test]
    fn the_oldest_packet_gives_way_as_lost() {
        let mut sent = SentPackets::new();
        let mut told = Vec::new();
        for tick in 0..SENT_PACKETS_KEPT as u32 + 2 {
            sent.record(noted(tick), fates(&mut told));
        }
        assert_eq!(told, [(Fate::Lost, 0), (Fate::Lost, 1)]);
    }

    proptest! {
        /// Whatever acknowledgements say: no fate is told twice, and nothing arrives that the model does not know.
        #[test]
        fn fates_are_told_once(acks in proptest::collection::vec((0u16..600, any::<u32>(), 0u8..8), 1..200)) {
            let mut sent = SentPackets::new();
            sent.next = 65_300;
            (sent.open, sent.timed) = (65_300, 65_300);
            let mut told: BTreeMap<(u32, bool), u32> = BTreeMap::new();
            let mut tick = 0u32;
            for (ack, bits, sends) in acks {
                let mut tell = |fate, packet: &SentPacket| {
                    *told.entry((packet.notes()[0], fate == Fate::Arrived)).or_default() += 1;
                };
                for _ in 0..sends {
                    sent.record(noted(tick), &mut tell);
                    tick += 1;
                }
                sent.on_ack(ack.wrapping_add(65_300), bits, &mut tell);
                sent.expire(tick, 100, &mut tell);
            }
            for ((note, _), count) in told {
                prop_assert!(note < tick && count == 1, "note {} told {} times", note, count);
            }
        }
    }
}
