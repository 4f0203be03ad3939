//! One end of a connection's reliability: packet acknowledgements and both channels, the same for server and client.
//!
//! Promises: what `send` took arrives once or the connection ends. Use, for each body: `stamp` the header, `write` the
//! channels first, `record` the packet; on arrival `arrival`, `handle_acks`, `handle_fragment`, then `accept` unless a
//! fragment was refused for want of room. Never knows what messages and notes mean.

use crate::acks::{Arrival, CarriedFragment, Fate, Fates, PacketAcks, SentPacket, SentPackets};
use crate::body::{BodyWriter, FLAG_ACKS};
use crate::channel::{ChannelFull, ChannelKind, FragmentError, Receipt, ReceiveChannel, SendChannel};

/// The header fields that a body's sender fills in from here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    /// Of this body.
    pub sequence: u16,
    /// Newest sequence accepted from the peer.
    pub ack: u16,
    /// The 32 before it.
    pub ack_bits: u32,
    /// [`FLAG_ACKS`] once there is something to acknowledge.
    pub flags: u16,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Reliable {
    acks: PacketAcks,
    sent: SentPackets,
    /// What became of packets since somebody asked.
    fates: Fates,
    ordered_out: SendChannel,
    unordered_out: SendChannel,
    ordered_in: ReceiveChannel,
    unordered_in: ReceiveChannel,
}

impl Reliable {
    /// A new connection's end. `reliable_transport`: TCP or WebSocket, where bodies neither vanish nor change order.
    pub fn new(reliable_transport: bool) -> Reliable {
        Reliable {
            acks: PacketAcks::default(),
            sent: SentPackets::new(),
            fates: Fates::default(),
            ordered_out: SendChannel::new(ChannelKind::Ordered, reliable_transport),
            unordered_out: SendChannel::new(ChannelKind::Unordered, reliable_transport),
            ordered_in: ReceiveChannel::new(ChannelKind::Ordered, reliable_transport),
            unordered_in: ReceiveChannel::new(ChannelKind::Unordered, reliable_transport),
        }
    }

    /// Begins with another sequence than 0; before anything was sent.
    pub fn start_at(&mut self, sequence: u16) {
        self.sent.start_at(sequence);
    }

    /// Takes a message of 1 to `MESSAGE_BYTES_MAX` bytes to send. On error the peer is to be cut as slow.
    pub fn send(&mut self, channel: ChannelKind, message: Vec<u8>) -> Result<(), ChannelFull> {
        match channel {
            ChannelKind::Ordered => self.ordered_out.push(message),
            ChannelKind::Unordered => self.unordered_out.push(message),
        }
    }

    /// Asks for the memory that the next body needs of it.
    #[inline]
    pub fn prefetch(&self) {
        self.sent.prefetch();
    }

    /// Whether all that was sent arrived.
    pub fn is_idle(&self) -> bool {
        self.ordered_out.is_empty() && self.unordered_out.is_empty()
    }

    /// Ordered messages that did not arrive yet.
    pub fn ordered_waiting(&self) -> usize {
        self.ordered_out.len()
    }

    /// Unordered messages that did not arrive yet.
    pub fn unordered_waiting(&self) -> usize {
        self.unordered_out.len()
    }

    /// For the header of the next body.
    #[inline]
    pub fn stamp(&self) -> Stamp {
        let (flags, (ack, ack_bits)) = self.acks.fields().map_or((0, (0, 0)), |fields| (FLAG_ACKS, fields));
        Stamp { sequence: self.sent.next_sequence(), ack, ack_bits, flags }
    }

    /// Writes the fragments that are due at `now_tick` (low 32 bits).
    #[inline]
    pub fn write(&mut self, now_tick: u32, writer: &mut BodyWriter, packet: &mut SentPacket) {
        self.ordered_out.write(now_tick, writer, packet);
        self.unordered_out.write(now_tick, writer, packet);
    }

    /// Remembers the packet of the body that [`Reliable::stamp`] was for. `on_note` hears the notes of a packet that
    /// gives way.
    pub fn record(&mut self, packet: SentPacket, mut on_note: impl FnMut(Fate, u32)) {
        let fates = &mut self.fates;
        self.sent.record(packet, |fate, packet| {
            fates.note(fate, packet);
            packet.notes().iter().for_each(|&note| on_note(fate, note));
        });
    }

    /// Takes the ack fields of a received header. `on_note` hears what became of the notes of earlier packets.
    /// False: the fields are valid but name a packet that was never sent.
    #[inline]
    pub fn handle_acks(&mut self, flags: u16, ack: u16, ack_bits: u32, mut on_note: impl FnMut(Fate, u32)) -> bool {
        if flags & FLAG_ACKS == 0 {
            return true;
        }
        let (ordered, unordered, fates) = (&mut self.ordered_out, &mut self.unordered_out, &mut self.fates);
        self.sent.on_ack(ack, ack_bits, |fate, packet| {
            fates.note(fate, packet);
            if fate == Fate::Arrived {
                for &CarriedFragment { message, fragment, ordered: is_ordered } in packet.fragments() {
                    let channel = if is_ordered { &mut *ordered } else { &mut *unordered };
                    channel.on_arrived(message, fragment);
                }
            }
            packet.notes().iter().for_each(|&note| on_note(fate, note));
        })
    }

    /// Tells the notes `Lost` of packets sent more than `ticks_max` ago that did not arrive so far.
    pub fn expire(&mut self, now_tick: u32, ticks_max: u32, mut on_note: impl FnMut(Fate, u32)) {
        let fates = &mut self.fates;
        self.sent.expire(now_tick, ticks_max, |fate, packet| {
            fates.note(fate, packet);
            packet.notes().iter().for_each(|&note| on_note(fate, note));
        });
    }

    /// What became of packets since the last time it was asked.
    pub fn take_fates(&mut self) -> Fates {
        std::mem::take(&mut self.fates)
    }

    /// How a received body stands to those accepted.
    #[inline]
    pub fn arrival(&self, sequence: u16) -> Arrival {
        self.acks.arrival(sequence)
    }

    /// Acknowledges a received body from now on.
    #[inline]
    pub fn accept(&mut self, sequence: u16) {
        self.acks.accept(sequence);
    }

    /// Whether the bytes of a reliable section are well formed, as far as that can be told without taking them.
    pub fn check_fragment(&self, channel: ChannelKind, bytes: &[u8]) -> Result<(), FragmentError> {
        let incoming = match channel {
            ChannelKind::Ordered => &self.ordered_in,
            ChannelKind::Unordered => &self.unordered_in,
        };
        incoming.check(bytes).map(|_| ())
    }

    /// Whether both channels have room for all fragments that one body may carry.
    pub fn has_room(&self) -> bool {
        self.ordered_in.has_room() && self.unordered_in.has_room()
    }

    /// Whether a message waits to be polled.
    pub fn has_messages(&self) -> bool {
        self.ordered_in.has_messages() || self.unordered_in.has_messages()
    }

    /// Takes the bytes of a reliable section.
    pub fn handle_fragment(&mut self, channel: ChannelKind, bytes: &[u8]) -> Result<Receipt, FragmentError> {
        self.incoming(channel).receive(bytes)
    }

    /// The next message of a channel.
    pub fn poll_message(&mut self, channel: ChannelKind) -> Option<Vec<u8>> {
        self.incoming(channel).poll_message()
    }

    fn incoming(&mut self, channel: ChannelKind) -> &mut ReceiveChannel {
        match channel {
            ChannelKind::Ordered => &mut self.ordered_in,
            ChannelKind::Unordered => &mut self.unordered_in,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::{BodyReader, kind};
    use crate::generated::structs::ClientHeader;
    use crate::limits::{BODY_BYTES_MAX, CHANNEL_BYTES_MAX};
    use std::collections::BTreeMap;

    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % bound
        }
    }

    /// Packets under way: delivered in the order of their tick, duplicates and stragglers included.
    #[derive(Default)]
    struct Network {
        flying: BTreeMap<(u32, u64), Vec<u8>>,
        count: u64,
    }

    impl Network {
        fn send(&mut self, tick: u32, body: &[u8], random: &mut Random) {
            if random.below(100) < 20 {
                return;
            }
            for _ in 0..1 + random.below(100) / 85 {
                self.count += 1;
                let arrival = tick + 3 + random.below(12) as u32;
                self.flying.insert((arrival, self.count), body.to_vec());
            }
        }

        fn arrived(&mut self, tick: u32) -> Vec<Vec<u8>> {
            let later = self.flying.split_off(&(tick + 1, 0));
            std::mem::replace(&mut self.flying, later).into_values().collect()
        }
    }

    fn body_of(end: &mut Reliable, tick: u32, notes: &mut Vec<(Fate, u32)>) -> Vec<u8> {
        let mut out = [0; BODY_BYTES_MAX];
        let stamp = end.stamp();
        let header = ClientHeader::new(stamp.ack_bits, stamp.sequence, stamp.ack, stamp.flags, 0);
        let mut writer = BodyWriter::client(&mut out, header);
        let mut packet = SentPacket::new(tick);
        end.write(tick, &mut writer, &mut packet);
        assert!(packet.note(tick));
        end.record(packet, |fate, note| notes.push((fate, note)));
        let length = writer.finish();
        out[..length].to_vec()
    }

    fn take(end: &mut Reliable, body: &[u8], notes: &mut Vec<(Fate, u32)>) {
        let (header, sections) = BodyReader::client(body).expect("well formed");
        if end.arrival(header.sequence()) == Arrival::Seen {
            return;
        }
        assert!(
            end.handle_acks(header.flags(), header.ack(), header.ack_bits(), |fate, note| notes.push((fate, note)))
        );
        let mut full = false;
        for section in sections {
            let channel = match section.kind {
                kind::RELIABLE_ORDERED => ChannelKind::Ordered,
                _ => ChannelKind::Unordered,
            };
            full |= end.handle_fragment(channel, section.bytes).expect("well formed") == Receipt::Full;
        }
        if !full {
            end.accept(header.sequence());
        }
    }

    fn message(number: u32, random: &mut Random) -> Vec<u8> {
        let length = 4 + if random.below(10) == 0 { random.below(16_000) } else { random.below(60) } as usize;
        number.to_le_bytes().into_iter().chain((4..length).map(|n| n as u8)).collect()
    }

    fn number(message: &[u8]) -> u32 {
        assert!(message[4..].iter().zip(4usize..).all(|(&byte, n)| byte == n as u8), "bytes in their places");
        u32::from_le_bytes(*message.first_chunk().expect("four bytes"))
    }

    /// Both ends send on both channels over a network that loses 20 %, duplicates 15 % and reorders.
    fn run(seed: u64, total: u32) {
        let random = &mut Random(seed);
        let mut ends = [Reliable::new(false), Reliable::new(false)];
        let mut networks = [Network::default(), Network::default()];
        let mut got: [[Vec<u32>; 2]; 2] = Default::default();
        let mut sent = [[0; 2]; 2];
        let mut notes = [Vec::new(), Vec::new()];
        for tick in 0..200_000 {
            for side in 0..2 {
                for (index, channel) in [ChannelKind::Ordered, ChannelKind::Unordered].into_iter().enumerate() {
                    let next = &mut sent[side][index];
                    if *next < total && random.below(3) == 0 && {
                        let message = message(*next, random);
                        ends[side].send(channel, message).is_ok()
                    } {
                        *next += 1;
                    }
                    // A reader that sleeps now and then lets its channel fill.
                    while tick / 100 % 2 == 0
                        && let Some(message) = ends[side].poll_message(channel)
                    {
                        got[side][index].push(number(&message));
                    }
                }
                let body = body_of(&mut ends[side], tick, &mut notes[side]);
                networks[side].send(tick, &body, random);
                for body in networks[1 - side].arrived(tick) {
                    take(&mut ends[side], &body, &mut notes[side]);
                }
                assert!(ends[side].ordered_in.bytes() <= CHANNEL_BYTES_MAX);
                assert!(ends[side].unordered_in.bytes() <= CHANNEL_BYTES_MAX);
            }
            if got.iter().flatten().all(|list| list.len() as u32 >= total) && ends.iter().all(Reliable::is_idle) {
                break;
            }
        }
        let all: Vec<u32> = (0..total).collect();
        for side in &mut got {
            assert_eq!(side[0], all, "ordered: each once, in order");
            side[1].sort_unstable();
            assert_eq!(side[1], all, "unordered: each once");
        }
        for told in &mut notes {
            assert!(told.iter().any(|t| t.0 == Fate::Lost) && told.iter().any(|t| t.0 == Fate::Arrived));
            let count = told.len();
            told.sort_unstable_by_key(|t| t.1);
            told.dedup_by_key(|t| t.1);
            assert_eq!(told.len(), count, "one fate for each packet");
        }
    }

    #[test]
    fn everything_arrives_once_over_a_bad_network() {
        for seed in 1..=8 {
            run(seed, 400);
        }
    }
}
