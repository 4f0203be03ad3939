//! Reliable channels: messages in fragments, ordered or not.
//!
//! Owns the messages that the peer did not acknowledge and those that are not yet whole. Promises: each message is
//! handed out once, on the ordered channel in the order of sending; what one channel holds stays within
//! [`CHANNEL_BYTES_MAX`], [`CHANNEL_COST_BYTES_MAX`] and [`CHANNEL_MESSAGES_MAX`] whatever the peer sends.
//! Acknowledgements come from [`crate::acks`]; a channel never makes packets of its own.

use crate::acks::{CarriedFragment, SentPacket};
use crate::body::{BodyWriter, kind};
use crate::generated::structs::FragmentHeader;
use crate::limits::{
    BODY_BYTES_MAX, CHANNEL_BYTES_MAX, CHANNEL_COST_BYTES_MAX, CHANNEL_MESSAGES_MAX, FRAGMENT_BYTES_MAX,
    FRAGMENT_OVERHEAD_BYTES, FRAGMENTS_MAX, MESSAGE_BYTES_MAX, RESEND_TICKS,
};
use crate::planted::{Bug, planted};
use std::collections::VecDeque;

/// Which of the two channels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChannelKind {
    /// Messages are handed out in the order of sending.
    Ordered,
    /// Messages are handed out as soon as they are whole.
    Unordered,
}

impl ChannelKind {
    /// Kind of the sections that carry its fragments.
    pub fn section_kind(self) -> u8 {
        match self {
            ChannelKind::Ordered => kind::RELIABLE_ORDERED,
            ChannelKind::Unordered => kind::RELIABLE_UNORDERED,
        }
    }
}

/// The channel towards the peer is full: it does not acknowledge, so it is too slow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChannelFull;

/// The sending end of a channel.
#[derive(Clone, Debug)]
pub struct SendChannel {
    kind: ChannelKind,
    reliable_transport: bool,
    /// Number of the next message; the window holds those before it.
    next: u16,
    window: VecDeque<Outgoing>,
    bytes: usize,
}

/// Fragments that fit one body: each has the header of its section, its own, and a word.
const FRAGMENTS_PER_BODY_MAX: usize = BODY_BYTES_MAX / 12;
/// What they cost.
const BODY_COST_BYTES: usize = BODY_BYTES_MAX + FRAGMENTS_PER_BODY_MAX * FRAGMENT_OVERHEAD_BYTES;
/// Most fragments that this end cuts a message into.
const FRAGMENTS_SENT_MAX: usize = MESSAGE_BYTES_MAX.div_ceil(FRAGMENT_BYTES_MAX);

#[derive(Clone, Debug)]
struct Outgoing {
    bytes: Vec<u8>,
    fragments: u8,
    /// Fragments that need no more sending.
    arrived: u32,
    sent: u32,
    sent_ticks: [u32; FRAGMENTS_SENT_MAX],
}

impl Outgoing {
    fn whole(&self) -> bool {
        self.arrived.count_ones() == u32::from(self.fragments)
    }

    fn is_due(&self, fragment: u8, now_tick: u32) -> bool {
        let bit = 1 << fragment;
        let waiting = now_tick.wrapping_sub(self.sent_ticks[usize::from(fragment)]) < RESEND_TICKS;
        self.arrived & bit == 0 && !(self.sent & bit != 0 && waiting)
    }

    fn piece(&self, fragment: u8) -> &[u8] {
        let start = usize::from(fragment) * FRAGMENT_BYTES_MAX;
        &self.bytes[start..self.bytes.len().min(start + FRAGMENT_BYTES_MAX)]
    }
}

impl SendChannel {
    /// An empty channel. Over a reliable transport each fragment is sent once and then counts as arrived: a body that
    /// carries fragments must not be dropped there.
    pub fn new(kind: ChannelKind, reliable_transport: bool) -> SendChannel {
        SendChannel { kind, reliable_transport, next: 0, window: VecDeque::new(), bytes: 0 }
    }

    /// Takes a message of 1 to [`MESSAGE_BYTES_MAX`] bytes. On error nothing was taken, and the peer is to be cut.
    pub fn push(&mut self, message: Vec<u8>) -> Result<(), ChannelFull> {
        assert!((1..=MESSAGE_BYTES_MAX).contains(&message.len()), "a message of {} bytes", message.len());
        if self.window.len() == CHANNEL_MESSAGES_MAX || self.bytes + message.len() > CHANNEL_BYTES_MAX {
            return Err(ChannelFull);
        }
        self.bytes += message.len();
        self.next = self.next.wrapping_add(1);
        self.window.push_back(Outgoing {
            fragments: message.len().div_ceil(FRAGMENT_BYTES_MAX) as u8,
            bytes: message,
            arrived: 0,
            sent: 0,
            sent_ticks: [0; FRAGMENTS_SENT_MAX],
        });
        Ok(())
    }

    /// Writes the fragments that are due, oldest first, as far as body and packet have room. A body needs room for a
    /// whole fragment now and then: write channels before what may wait.
    pub fn write(&mut self, now_tick: u32, writer: &mut BodyWriter, packet: &mut SentPacket) {
        let first = self.first();
        for (message, outgoing) in self.window.iter_mut().enumerate() {
            let message = first.wrapping_add(message as u16);
            for fragment in 0..outgoing.fragments {
                if !outgoing.is_due(fragment, now_tick) {
                    continue;
                }
                let header = FragmentHeader::new(message, fragment, outgoing.fragments);
                if packet.fragments_full() && !self.reliable_transport
                    || !writer.section_parts(self.kind.section_kind(), &[&header.0, outgoing.piece(fragment)])
                {
                    self.release();
                    return;
                }
                outgoing.sent |= 1 << fragment;
                outgoing.sent_ticks[usize::from(fragment)] = now_tick;
                if self.reliable_transport {
                    outgoing.arrived |= 1 << fragment;
                } else {
                    let ordered = self.kind == ChannelKind::Ordered;
                    packet.fragment(CarriedFragment { message, fragment, ordered });
                }
            }
        }
        self.release();
    }

    /// The peer accepted a packet with this fragment.
    pub fn on_arrived(&mut self, message: u16, fragment: u8) {
        let place = usize::from(message.wrapping_sub(self.first()));
        if let Some(outgoing) = self.window.get_mut(place) {
            assert!(fragment < outgoing.fragments, "fragment {fragment} was never sent");
            outgoing.arrived |= 1 << fragment;
            self.release();
        }
    }

    /// Bytes of the messages from the oldest that has not wholly arrived to the newest. Those in the middle count until
    /// all before them arrived, because the peer may hold them until then.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether everything arrived.
    pub fn is_empty(&self) -> bool {
        self.window.is_empty()
    }

    /// Messages that did not arrive yet.
    pub fn len(&self) -> usize {
        self.window.len()
    }

    fn first(&self) -> u16 {
        self.next.wrapping_sub(self.window.len() as u16)
    }

    fn release(&mut self) {
        while self.window.front().is_some_and(Outgoing::whole) {
            self.bytes -= self.window.pop_front().map_or(0, |outgoing| outgoing.bytes.len());
        }
    }
}

/// What became of a well-formed fragment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Receipt {
    /// Taken.
    Accepted,
    /// It was here before.
    Duplicate,
    /// No room: the packet that brought it must not be acknowledged, so that it comes again.
    Full,
}

/// What is wrong with a fragment. Nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FragmentError {
    /// Shorter than its header.
    Header,
    /// No fragments, more than [`FRAGMENTS_MAX`], or a fragment beyond its count.
    Count,
    /// No bytes, or more than [`FRAGMENT_BYTES_MAX`].
    Length,
    /// Another count than an earlier fragment of the message had.
    Changed,
    /// The message is longer than [`MESSAGE_BYTES_MAX`].
    Message,
    /// [`CHANNEL_MESSAGES_MAX`] or more messages ahead of the oldest missing one.
    Window,
}

/// The receiving end of a channel.
#[derive(Clone, Debug)]
pub struct ReceiveChannel {
    kind: ChannelKind,
    /// Number of the first message in the window: the oldest that is not whole.
    first: u16,
    window: VecDeque<Incoming>,
    ready: VecDeque<Vec<u8>>,
    /// Bytes in the window and in `ready`.
    bytes: usize,
    /// Pieces in the window and messages in `ready`: each costs [`FRAGMENT_OVERHEAD_BYTES`] beside its bytes.
    parts: usize,
    /// Bounds of what it holds. Over a reliable transport nobody sends again what found no room: there they are so large that
    /// a body fits that is taken while [`ReceiveChannel::has_room`].
    bytes_max: usize,
    cost_bytes_max: usize,
    messages_max: usize,
}

/// Where a well-formed fragment belongs.
#[derive(Clone, Copy, Debug)]
pub struct Placed<'a> {
    /// In the window; none: its message was whole before.
    place: Option<usize>,
    fragment: u8,
    fragments: u8,
    piece: &'a [u8],
}

#[derive(Clone, Default, Debug)]
struct Incoming {
    /// 0 until the first one arrived.
    fragments: u8,
    arrived: u64,
    bytes: usize,
    pieces: Vec<(u8, Vec<u8>)>,
}

impl Incoming {
    fn whole(&self) -> bool {
        self.fragments != 0 && self.arrived.count_ones() == u32::from(self.fragments)
    }

    /// The message, once whole; empty when it was taken before.
    fn take(&mut self) -> Vec<u8> {
        let mut pieces = std::mem::take(&mut self.pieces);
        if pieces.len() == 1 {
            return pieces.swap_remove(0).1;
        }
        pieces.sort_unstable_by_key(|piece| piece.0);
        pieces.into_iter().flat_map(|piece| piece.1).collect()
    }
}

impl ReceiveChannel {
    /// An empty channel.
    pub fn new(kind: ChannelKind, reliable_transport: bool) -> ReceiveChannel {
        let spare = usize::from(reliable_transport);
        ReceiveChannel {
            kind,
            first: 0,
            window: VecDeque::new(),
            ready: VecDeque::new(),
            bytes: 0,
            parts: 0,
            bytes_max: CHANNEL_BYTES_MAX + spare * BODY_BYTES_MAX,
            cost_bytes_max: CHANNEL_COST_BYTES_MAX + spare * BODY_COST_BYTES,
            messages_max: CHANNEL_MESSAGES_MAX + spare * FRAGMENTS_PER_BODY_MAX,
        }
    }

    /// Whether all fragments that a body may carry find room.
    pub fn has_room(&self) -> bool {
        self.bytes + BODY_BYTES_MAX <= self.bytes_max
            && self.cost_bytes() + BODY_COST_BYTES <= self.cost_bytes_max
            && self.ready.len() + FRAGMENTS_PER_BODY_MAX <= self.messages_max
    }

    /// Whether a message waits to be polled.
    pub fn has_messages(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Where the bytes of a section of this channel belong; changes nothing.
    pub fn check<'a>(&self, bytes: &'a [u8]) -> Result<Placed<'a>, FragmentError> {
        let (header, piece) = bytes.split_first_chunk().ok_or(FragmentError::Header)?;
        let header = FragmentHeader(*header);
        let (fragment, fragments) = (header.fragment(), header.fragments());
        if usize::from(fragments) > FRAGMENTS_MAX || fragment >= fragments {
            return Err(FragmentError::Count);
        }
        if !(1..=FRAGMENT_BYTES_MAX).contains(&piece.len()) {
            return Err(FragmentError::Length);
        }
        let ahead = header.message().wrapping_sub(self.first);
        if ahead >= 0x8000 {
            return Ok(Placed { place: None, fragment, fragments, piece });
        }
        let place = usize::from(ahead);
        if place >= CHANNEL_MESSAGES_MAX {
            return Err(FragmentError::Window);
        }
        if let Some(incoming) = self.window.get(place).filter(|incoming| incoming.fragments != 0) {
            if incoming.fragments != fragments {
                return Err(FragmentError::Changed);
            }
            if incoming.arrived >> fragment & 1 == 0 && incoming.bytes + piece.len() > MESSAGE_BYTES_MAX {
                return Err(FragmentError::Message);
            }
        }
        Ok(Placed { place: Some(place), fragment, fragments, piece })
    }

    /// Takes the bytes of a section of this channel.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<Receipt, FragmentError> {
        let Placed { place, fragment, fragments, piece } = self.check(bytes)?;
        let Some(place) = place else {
            if planted(Bug::MessageTwice) && fragments == 1 {
                self.bytes += piece.len();
                self.parts += 1;
                self.ready.push_back(piece.to_vec());
            }
            return Ok(Receipt::Duplicate);
        };
        if self.window.get(place).is_some_and(|incoming| incoming.arrived >> fragment & 1 != 0) {
            return Ok(Receipt::Duplicate);
        }
        let is_over = self.bytes + piece.len() > self.bytes_max
            || self.cost_bytes() + piece.len() + FRAGMENT_OVERHEAD_BYTES > self.cost_bytes_max;
        if is_over || self.ready.len() >= self.messages_max {
            return Ok(Receipt::Full);
        }
        self.insert(place, fragment, fragments, piece);
        Ok(Receipt::Accepted)
    }

    fn insert(&mut self, place: usize, fragment: u8, fragments: u8, piece: &[u8]) {
        if self.window.len() <= place {
            self.window.resize_with(place + 1, Incoming::default);
        }
        let incoming = &mut self.window[place];
        incoming.fragments = fragments;
        incoming.arrived |= 1 << fragment;
        incoming.bytes += piece.len();
        incoming.pieces.push((fragment, piece.to_vec()));
        self.bytes += piece.len();
        self.parts += 1;
        if self.kind == ChannelKind::Unordered && incoming.whole() {
            let message = incoming.take();
            self.hand_out(fragments, message);
        }
        while self.window.front().is_some_and(Incoming::whole) {
            let mut incoming = self.window.pop_front().expect("it was just there");
            self.first = self.first.wrapping_add(1);
            let message = incoming.take();
            if !message.is_empty() {
                self.hand_out(incoming.fragments, message);
            }
        }
    }

    /// A message is whole: one part, and no longer its fragments.
    fn hand_out(&mut self, fragments: u8, message: Vec<u8>) {
        self.parts -= usize::from(fragments) - 1;
        self.ready.push_back(message);
    }

    /// The next message that is whole and has its turn.
    pub fn poll_message(&mut self) -> Option<Vec<u8>> {
        let message = self.ready.pop_front()?;
        self.bytes -= message.len();
        self.parts -= 1;
        Some(message)
    }

    /// Bytes of memory held, with what parts cost beside their own.
    fn cost_bytes(&self) -> usize {
        self.bytes + self.parts * FRAGMENT_OVERHEAD_BYTES
    }

    /// Bytes held: of pieces, and of messages that were not polled.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fragment(message: u16, fragment: u8, fragments: u8, bytes: &[u8]) -> Vec<u8> {
        [&FragmentHeader::new(message, fragment, fragments).0[..], bytes].concat()
    }

    #[test]
    fn malformed_fragments_change_nothing() {
        let mut channel = ReceiveChannel::new(ChannelKind::Ordered, false);
        assert_eq!(channel.receive(&fragment(1, 0, 2, b"ab")), Ok(Receipt::Accepted));
        let long = [7; FRAGMENT_BYTES_MAX + 1];
        for (bytes, error) in [
            (vec![0, 0, 0], FragmentError::Header),
            (fragment(0, 0, 0, b"x"), FragmentError::Count),
            (fragment(0, 2, 2, b"x"), FragmentError::Count),
            (fragment(0, 0, 65, b"x"), FragmentError::Count),
            (fragment(0, 0, 1, b""), FragmentError::Length),
            (fragment(0, 0, 1, &long), FragmentError::Length),
            (fragment(1, 1, 3, b"x"), FragmentError::Changed),
            (fragment(64, 0, 1, b"x"), FragmentError::Window),
        ] {
            assert_eq!(channel.receive(&bytes), Err(error));
        }
        assert_eq!(channel.bytes(), 2);
        assert_eq!(channel.receive(&fragment(1, 1, 2, b"cd")), Ok(Receipt::Accepted));
        assert_eq!(channel.poll_message(), None, "message 0 is missing");
        assert_eq!(channel.receive(&fragment(0, 0, 1, b"first")), Ok(Receipt::Accepted));
        assert_eq!(channel.receive(&fragment(0, 0, 1, b"first")), Ok(Receipt::Duplicate));
        assert_eq!(channel.poll_message().as_deref(), Some(&b"first"[..]));
        assert_eq!(channel.poll_message().as_deref(), Some(&b"abcd"[..]));
        assert_eq!((channel.poll_message(), channel.bytes()), (None, 0));
    }

    #[test]
    fn a_message_over_its_limit_is_malformed() {
        let mut channel = ReceiveChannel::new(ChannelKind::Unordered, false);
        for n in 0..16 {
            assert_eq!(channel.receive(&fragment(0, n, 64, &[n; 1_000])), Ok(Receipt::Accepted));
        }
        assert_eq!(channel.receive(&fragment(0, 16, 64, &[0; 385])), Err(FragmentError::Message));
        assert_eq!(channel.receive(&fragment(0, 16, 64, &[0; 384])), Ok(Receipt::Accepted));
    }

    #[test]
    fn a_full_channel_takes_more_after_a_poll() {
        let mut channel = ReceiveChannel::new(ChannelKind::Ordered, false);
        let mut taken = 0u16;
        while channel.receive(&fragment(taken, 0, 1, &[1])) == Ok(Receipt::Accepted) {
            taken += 1;
        }
        assert_eq!(usize::from(taken), CHANNEL_MESSAGES_MAX);
        assert!(channel.poll_message().is_some());
        assert_eq!(channel.receive(&fragment(taken, 0, 1, &[1])), Ok(Receipt::Accepted));
    }

    #[test]
    fn messages_that_wait_for_an_earlier_one_stay_within_the_bytes() {
        let mut channel = ReceiveChannel::new(ChannelKind::Ordered, false);
        let full = (1..64u16).flat_map(|message| [0, 1].map(|number| fragment(message, number, 2, &[1; 1_000])));
        let accepted = full.map(|bytes| channel.receive(&bytes)).filter(|r| *r == Ok(Receipt::Accepted)).count();
        assert_eq!(accepted, CHANNEL_BYTES_MAX / 1_000);
        assert_eq!(channel.receive(&fragment(50, 0, 1, &[1; 1_000])), Ok(Receipt::Full));
    }

    #[test]
    fn one_byte_fragments_cost_what_they_take_of_memory() {
        let mut channel = ReceiveChannel::new(ChannelKind::Ordered, false);
        let single = (1..64u16).flat_map(|message| (0..64).map(move |number| fragment(message, number, 64, &[1])));
        let accepted = single.map(|bytes| channel.receive(&bytes)).filter(|r| *r == Ok(Receipt::Accepted)).count();
        // The entry of a piece, and the smallest block that an allocator gives.
        let least_bytes = size_of::<(u8, Vec<u8>)>() + 16;
        assert!(accepted > 1_000 && accepted * least_bytes < CHANNEL_COST_BYTES_MAX, "{accepted} fragments");
    }

    proptest! {
        #[test]
        fn a_sender_within_the_bounds_and_with_long_fragments_is_never_refused(
            lengths in proptest::collection::vec(1usize..3_000, 1..64),
            order in any::<u64>(),
            ordered: bool,
        ) {
            let kind = if ordered { ChannelKind::Ordered } else { ChannelKind::Unordered };
            let mut channel = ReceiveChannel::new(kind, false);
            let (mut all, mut bytes) = (Vec::new(), 0);
            for (message, &length) in (0u16..).zip(&lengths) {
                bytes += length;
                if bytes > CHANNEL_BYTES_MAX {
                    break;
                }
                let count = length.div_ceil(FRAGMENT_BYTES_MAX);
                for number in 0..count {
                    let piece = FRAGMENT_BYTES_MAX.min(length - number * FRAGMENT_BYTES_MAX);
                    all.push(fragment(message, number as u8, count as u8, &vec![1; piece]));
                }
            }
            all.sort_by_key(|bytes| (order ^ u64::from(bytes[0]) << 8 ^ u64::from(bytes[2])).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31));
            for bytes in all {
                prop_assert_eq!(channel.receive(&bytes), Ok(Receipt::Accepted));
            }
            while channel.poll_message().is_some() {}
            prop_assert_eq!((channel.bytes, channel.parts), (0, 0));
        }
    }

    #[test]
    fn fragments_are_resent_no_sooner_than_they_may_be() {
        let mut channel = SendChannel::new(ChannelKind::Ordered, false);
        channel.push(vec![1; 1_500]).expect("room");
        let sent_in = |channel: &mut SendChannel, tick| {
            let mut out = [0; 1_200];
            let mut writer = BodyWriter::client(&mut out, crate::generated::structs::ClientHeader::default());
            let mut packet = SentPacket::new(tick);
            channel.write(tick, &mut writer, &mut packet);
            packet.fragments().iter().map(|carried| carried.fragment).collect::<Vec<_>>()
        };
        assert_eq!(sent_in(&mut channel, 100), [0], "the second one does not fit");
        assert_eq!(sent_in(&mut channel, 101), [1]);
        assert!(sent_in(&mut channel, 105).is_empty());
        assert_eq!(sent_in(&mut channel, 106), [0]);
        channel.on_arrived(0, 0);
        assert_eq!(sent_in(&mut channel, 200), [1]);
        channel.on_arrived(0, 1);
        assert!(channel.is_empty() && channel.bytes() == 0);
    }

    #[test]
    fn a_reliable_transport_gets_each_fragment_once() {
        let mut channel = SendChannel::new(ChannelKind::Unordered, true);
        for _ in 0..8 {
            channel.push(vec![1; 20]).expect("room");
        }
        let mut out = [0; 1_200];
        let mut writer = BodyWriter::client(&mut out, crate::generated::structs::ClientHeader::default());
        channel.write(1, &mut writer, &mut SentPacket::new(1));
        assert!(channel.is_empty());
        assert_eq!(writer.finish(), 12 + 8 * (4 + 4 + 20));
    }

    #[test]
    fn a_channel_towards_a_silent_peer_fills_and_refuses() {
        let mut channel = SendChannel::new(ChannelKind::Ordered, false);
        for _ in 0..4 {
            assert_eq!(channel.push(vec![0; MESSAGE_BYTES_MAX]), Ok(()));
        }
        assert_eq!(channel.push(vec![0; 1]), Err(ChannelFull), "bytes");
        let mut channel = SendChannel::new(ChannelKind::Ordered, false);
        assert!((0..CHANNEL_MESSAGES_MAX).all(|_| channel.push(vec![0; 1]).is_ok()));
        assert_eq!(channel.push(vec![0; 1]), Err(ChannelFull), "messages");
    }

    proptest! {
        #[test]
        fn any_fragments_keep_the_bounds(
            fragments in proptest::collection::vec((0u16..70, 0u8..6, 0u8..6, 0usize..1_100), 0..400),
        ) {
            let mut channel = ReceiveChannel::new(ChannelKind::Ordered, false);
            for (message, number, count, length) in fragments {
                let _ = channel.receive(&fragment(message, number, count, &vec![0; length]));
                prop_assert!(channel.bytes() <= CHANNEL_BYTES_MAX);
                prop_assert!(channel.window.len() <= CHANNEL_MESSAGES_MAX);
            }
        }
    }
}
