//! The shape of a netcode datagram: prefix, sequence, sealed text, tag.
//!
//! Owns the kinds, the coding of sequences, and [`Envelope`]: the two keys, the send sequence and the replay window of
//! one peer. Promises: reads in the order of the standard, opens and seals in place, allocates nothing on the way.

use super::crypto::{KEY_BYTES, PacketKey, TAG_BYTES};
use super::replay::ReplayWindow;
use super::token::{PROTOCOL_ID, VERSION};
use crate::limits::BODY_BYTES_MAX;

/// Bytes of a connection request.
pub const REQUEST_BYTES: usize = 1 + VERSION.len() + 8 + 8 + 24 + 1_024;
/// Bytes of the text of a challenge and of a response: the challenge sequence and the sealed challenge token.
pub const CHALLENGE_TEXT_BYTES: usize = 8 + CHALLENGE_TOKEN_BYTES;
/// Bytes of a sealed challenge token.
pub const CHALLENGE_TOKEN_BYTES: usize = 300;
/// Bytes of the text of a keep-alive: client index and most clients.
pub const KEEP_ALIVE_TEXT_BYTES: usize = 8;
/// Most bytes that stand before the text: prefix and sequence.
pub const HEAD_BYTES_MAX: usize = 1 + 8;
/// Most bytes that sealing adds to a body.
pub const OVERHEAD_BYTES_MAX: usize = HEAD_BYTES_MAX + TAG_BYTES;
/// Most bytes of a keep-alive or disconnect.
pub const CONTROL_BYTES_MAX: usize = KEEP_ALIVE_TEXT_BYTES + OVERHEAD_BYTES_MAX;
/// Fewest bytes that a sealed packet can have.
const SEALED_BYTES_MIN: usize = 1 + 1 + TAG_BYTES;
/// Disconnect packets that a side sends when it ends a connection, against loss.
pub const DISCONNECT_PACKETS: u32 = 10;
/// Keep-alives, requests and responses a second.
pub const CONTROL_HZ: u64 = 10;

const ASSOCIATED_BYTES: usize = VERSION.len() + 8 + 1;
/// The associated data of a packet; the prefix goes into the last byte.
const ASSOCIATED: [u8; ASSOCIATED_BYTES] = associated();

const fn associated() -> [u8; ASSOCIATED_BYTES] {
    let mut bytes = [0; ASSOCIATED_BYTES];
    bytes.split_at_mut(VERSION.len()).0.copy_from_slice(VERSION);
    bytes.split_at_mut(VERSION.len()).1.split_at_mut(8).0.copy_from_slice(&PROTOCOL_ID.to_le_bytes());
    bytes
}

/// What a packet is: the low four bits of its prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum PacketKind {
    /// Client to server, in clear: the sealed connect token.
    Request = 0,
    /// Server to client: no.
    Denied = 1,
    /// Server to client: prove your address.
    Challenge = 2,
    /// Client to server: the challenge token back.
    Response = 3,
    /// Both ways: still here.
    KeepAlive = 4,
    /// Both ways: a body.
    Body = 5,
    /// Both ways: the end.
    Disconnect = 6,
}

impl PacketKind {
    fn of_prefix(prefix: u8) -> Option<PacketKind> {
        use PacketKind::*;
        [Request, Denied, Challenge, Response, KeepAlive, Body, Disconnect].get(usize::from(prefix & 0x0f)).copied()
    }

    fn is_replay_protected(self) -> bool {
        matches!(self, PacketKind::KeepAlive | PacketKind::Body | PacketKind::Disconnect)
    }

    fn allows_text_bytes(self, bytes: usize) -> bool {
        match self {
            PacketKind::Request => false,
            PacketKind::Denied | PacketKind::Disconnect => bytes == 0,
            PacketKind::Challenge | PacketKind::Response => bytes == CHALLENGE_TEXT_BYTES,
            PacketKind::KeepAlive => bytes == KEEP_ALIVE_TEXT_BYTES,
            PacketKind::Body => (1..=BODY_BYTES_MAX).contains(&bytes),
        }
    }
}

/// Which end of a connection this is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// Reads responses, never challenges or denials.
    Server,
    /// Reads challenges and denials, never requests or responses.
    Client,
}

impl Side {
    fn reads(self, kind: PacketKind) -> bool {
        match self {
            Side::Server => !matches!(kind, PacketKind::Request | PacketKind::Challenge | PacketKind::Denied),
            Side::Client => !matches!(kind, PacketKind::Request | PacketKind::Response),
        }
    }
}

/// Why a datagram changed nothing. The set is closed, so a shard counts in an array of [`DropReason::COUNT`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DropReason {
    /// Shorter than any packet.
    TooShort,
    /// A kind that does not exist or that this side does not read.
    Kind,
    /// The prefix names no sequence of 1 to 8 bytes.
    SequenceBytes,
    /// The sequence came before or is too old.
    Replayed,
    /// The tag does not fit: damaged, forged, or under another key.
    Seal,
    /// The text has not the length of its kind.
    TextBytes,
    /// A request that has not 1,078 bytes.
    RequestBytes,
    /// Another version of netcode.
    Version,
    /// Another protocol id.
    Protocol,
    /// The connect token has expired.
    TokenExpired,
    /// The private part of the token does not open with our key.
    TokenSeal,
    /// A token that contradicts itself.
    TokenMalformed,
    /// This server is not in the token's list.
    OtherServer,
    /// A request or response from an address that is connected.
    AlreadyConnected,
    /// The token was used from another address, or has connected already.
    TokenUsed,
    /// No room to remember the token.
    TokenHistoryFull,
    /// A reusable token where only one-time tokens are taken.
    TokenReusable,
    /// A sealed packet from an address that has no connection and no handshake.
    UnknownPeer,
    /// A response that came after its handshake timed out.
    HandshakeExpired,
    /// A challenge token that is not ours or not this client's.
    ChallengeToken,
    /// A packet that has no meaning in this state.
    State,
    /// More datagrams of one session in a tick than are opened.
    Flood,
    /// A request to a lane that has used up the sequences for its answers.
    SequencesSpent,
}

impl DropReason {
    /// Number of reasons.
    pub const COUNT: usize = DropReason::NAMES.len();
    /// The reasons' names by [`DropReason::index`], as counters are labelled.
    pub const NAMES: [&'static str; 23] = [
        "too_short",
        "kind",
        "sequence_bytes",
        "replayed",
        "seal",
        "text_bytes",
        "request_bytes",
        "version",
        "protocol",
        "token_expired",
        "token_seal",
        "token_malformed",
        "other_server",
        "already_connected",
        "token_used",
        "token_history_full",
        "token_reusable",
        "unknown_peer",
        "handshake_expired",
        "challenge_token",
        "state",
        "flood",
        "sequences_spent",
    ];

    /// As an index into an array of counters.
    pub fn index(self) -> usize {
        self as usize
    }

    /// The label of this reason's counter.
    pub fn name(self) -> &'static str {
        DropReason::NAMES[self.index()]
    }
}

const _: () = assert!(DropReason::SequencesSpent as usize + 1 == DropReason::COUNT, "every reason has a name");

/// A packet that proved genuine.
#[derive(Debug)]
pub struct Opened<'a> {
    /// What it is.
    pub kind: PacketKind,
    /// Its text, of a length that fits the kind.
    pub text: &'a mut [u8],
}

/// What two peers share: a key for each direction, the send sequence and the replay window.
#[derive(Debug)]
pub struct Envelope {
    side: Side,
    open_key: PacketKey,
    seal_key: PacketKey,
    sequence: u64,
    replay: ReplayWindow,
}

impl Envelope {
    /// Fresh keys of a connect token, as seen from `side`; sequences start at 0.
    pub fn new(side: Side, client_to_server_key: &[u8; KEY_BYTES], server_to_client_key: &[u8; KEY_BYTES]) -> Envelope {
        let (open_key, seal_key) = match side {
            Side::Server => (client_to_server_key, server_to_client_key),
            Side::Client => (server_to_client_key, client_to_server_key),
        };
        Envelope {
            side,
            open_key: PacketKey::new(open_key),
            seal_key: PacketKey::new(seal_key),
            sequence: 0,
            replay: ReplayWindow::default(),
        }
    }

    /// Opens a datagram in place, in the standard's reading order.
    pub fn open<'a>(&mut self, datagram: &'a mut [u8]) -> Result<Opened<'a>, DropReason> {
        let head = read_head(self.side, datagram)?;
        let protected = head.kind.is_replay_protected();
        if protected && self.replay.has(head.sequence) {
            return Err(DropReason::Replayed);
        }
        let text = open_text(&self.open_key, &head, datagram)?;
        if protected {
            self.replay.note(head.sequence);
        }
        if !head.kind.allows_text_bytes(text.len()) {
            return Err(DropReason::TextBytes);
        }
        Ok(Opened { kind: head.kind, text })
    }

    /// Where the text of the next packet begins.
    pub fn text_offset(&self) -> usize {
        1 + sequence_bytes(self.sequence)
    }

    /// Seals `text_bytes` bytes that the caller wrote at [`Envelope::text_offset`]: the bytes of the whole datagram.
    ///
    /// Panics if the buffer has no room for the tag, or if the text has not the length of its kind.
    pub fn seal(&mut self, kind: PacketKind, buffer: &mut [u8], text_bytes: usize) -> usize {
        let total = seal_packet(&self.seal_key, kind, self.sequence, buffer, text_bytes);
        self.sequence += 1;
        total
    }

    /// Writes a keep-alive: its length.
    pub fn seal_keep_alive(&mut self, client_index: u32, clients_max: u32, out: &mut [u8; CONTROL_BYTES_MAX]) -> usize {
        let offset = self.text_offset();
        out[offset..offset + 4].copy_from_slice(&client_index.to_le_bytes());
        out[offset + 4..offset + 8].copy_from_slice(&clients_max.to_le_bytes());
        self.seal(PacketKind::KeepAlive, out, KEEP_ALIVE_TEXT_BYTES)
    }

    /// Forgets which packets came: another server counts its own from 0. The send sequence goes on.
    pub fn forget_received(&mut self) {
        self.replay = ReplayWindow::default();
    }
}

struct Head {
    kind: PacketKind,
    prefix: u8,
    sequence: u64,
    bytes: usize,
}

fn read_head(side: Side, datagram: &[u8]) -> Result<Head, DropReason> {
    if datagram.len() < SEALED_BYTES_MIN {
        return Err(DropReason::TooShort);
    }
    let prefix = datagram[0];
    let kind = PacketKind::of_prefix(prefix).filter(|&kind| side.reads(kind)).ok_or(DropReason::Kind)?;
    let sequence_bytes = usize::from(prefix >> 4);
    if !(1..=8).contains(&sequence_bytes) {
        return Err(DropReason::SequenceBytes);
    }
    let bytes = 1 + sequence_bytes;
    if datagram.len() < bytes + TAG_BYTES {
        return Err(DropReason::TooShort);
    }
    let mut sequence = [0; 8];
    sequence[..sequence_bytes].copy_from_slice(&datagram[1..bytes]);
    Ok(Head { kind, prefix, sequence: u64::from_le_bytes(sequence), bytes })
}

fn open_text<'a>(key: &PacketKey, head: &Head, datagram: &'a mut [u8]) -> Result<&'a mut [u8], DropReason> {
    key.open(head.sequence, &associated_with(head.prefix), &mut datagram[head.bytes..]).ok_or(DropReason::Seal)
}

/// Opens a response from an address that is not connected: its text, the challenge sequence and sealed token.
pub(super) fn open_response<'a>(
    client_to_server_key: &[u8; KEY_BYTES],
    datagram: &'a mut [u8],
) -> Result<&'a mut [u8; CHALLENGE_TEXT_BYTES], DropReason> {
    let head = read_head(Side::Server, datagram)?;
    if head.kind != PacketKind::Response {
        return Err(DropReason::State);
    }
    let text = open_text(&PacketKey::new(client_to_server_key), &head, datagram)?;
    text.try_into().map_err(|_| DropReason::TextBytes)
}

/// Seals a packet in place; the text stands behind the prefix and the sequence. The bytes of the whole datagram.
pub(super) fn seal_packet(
    key: &PacketKey,
    kind: PacketKind,
    sequence: u64,
    buffer: &mut [u8],
    text_bytes: usize,
) -> usize {
    assert!(kind.allows_text_bytes(text_bytes), "{text_bytes} bytes are no text of a {kind:?} packet");
    let sequence_bytes = sequence_bytes(sequence);
    let prefix = (sequence_bytes as u8) << 4 | kind as u8;
    buffer[0] = prefix;
    buffer[1..1 + sequence_bytes].copy_from_slice(&sequence.to_le_bytes()[..sequence_bytes]);
    let total = 1 + sequence_bytes + text_bytes + TAG_BYTES;
    key.seal(sequence, &associated_with(prefix), &mut buffer[1 + sequence_bytes..total]);
    total
}

/// Bytes that a sequence takes on the wire: without its high zero bytes, at least one.
pub(super) fn sequence_bytes(sequence: u64) -> usize {
    (8 - sequence.leading_zeros() as usize / 8).max(1)
}

fn associated_with(prefix: u8) -> [u8; ASSOCIATED_BYTES] {
    let mut bytes = ASSOCIATED;
    bytes[ASSOCIATED_BYTES - 1] = prefix;
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const CLIENT_KEY: [u8; KEY_BYTES] = [1; KEY_BYTES];
    const SERVER_KEY: [u8; KEY_BYTES] = [2; KEY_BYTES];

    fn pair() -> (Envelope, Envelope) {
        let side = |side| Envelope::new(side, &CLIENT_KEY, &SERVER_KEY);
        (side(Side::Client), side(Side::Server))
    }

    fn sealed(envelope: &mut Envelope, body: &[u8]) -> Vec<u8> {
        let mut buffer = vec![0; body.len() + OVERHEAD_BYTES_MAX];
        let offset = envelope.text_offset();
        buffer[offset..offset + body.len()].copy_from_slice(body);
        let total = envelope.seal(PacketKind::Body, &mut buffer, body.len());
        buffer.truncate(total);
        buffer
    }

    /// A packet with any prefix, sequence and text, sealed with the right key.
    fn crafted(prefix: u8, sequence: &[u8], text: &[u8]) -> Vec<u8> {
        let mut bytes = [0; 8];
        bytes[..sequence.len()].copy_from_slice(sequence);
        let mut datagram = [&[prefix], sequence, text, &[0; TAG_BYTES]].concat();
        let text = &mut datagram[1 + sequence.len()..];
        PacketKey::new(&CLIENT_KEY).seal(u64::from_le_bytes(bytes), &associated_with(prefix), text);
        datagram
    }

    #[test]
    fn the_standards_example_1000_takes_two_bytes_reversed() {
        let (mut client, mut server) = pair();
        client.sequence = 1_000;
        let mut datagram = sealed(&mut client, b"hello");
        assert_eq!(datagram[..3], [0x25, 0xe8, 0x03]);
        assert_eq!(datagram.len(), 3 + 5 + 16);
        assert_eq!(server.open(&mut datagram).unwrap().text, b"hello");
    }

    #[test]
    fn sequences_take_one_to_eight_bytes() {
        let lengths = [(0, 1), (255, 1), (256, 2), (65_535, 2), (1 << 24, 4), ((1 << 56) - 1, 7), (u64::MAX, 8)];
        for (sequence, bytes) in lengths {
            assert_eq!(sequence_bytes(sequence), bytes, "{sequence}");
            let (mut client, mut server) = pair();
            client.sequence = sequence - u64::from(sequence == u64::MAX);
            assert_eq!(server.open(&mut sealed(&mut client, b"x")).unwrap().text, b"x");
        }
    }

    #[test]
    fn reading_refuses_each_fault_by_name() {
        let (mut client, mut server) = pair();
        let mut refuse = |mut datagram: Vec<u8>, reason| {
            assert_eq!(server.open(&mut datagram).err(), Some(reason), "{datagram:?}");
        };
        refuse(vec![], DropReason::TooShort);
        refuse(vec![0x15; 17], DropReason::TooShort);
        refuse(vec![0x17; 40], DropReason::Kind);
        refuse(vec![0x10; 40], DropReason::Kind);
        refuse(crafted(0x11, &[0], &[]), DropReason::Kind);
        refuse(crafted(0x12, &[0], &[0; CHALLENGE_TEXT_BYTES]), DropReason::Kind);
        refuse(vec![0x05; 40], DropReason::SequenceBytes);
        refuse(vec![0x95; 40], DropReason::SequenceBytes);
        refuse(vec![0x85; 24], DropReason::TooShort);
        refuse(vec![0x85; 25], DropReason::Seal);
        refuse(crafted(0x15, &[1], &[]), DropReason::TextBytes);
        refuse(crafted(0x15, &[1], &[1]), DropReason::Replayed);
        refuse(crafted(0x15, &[2], &[0; BODY_BYTES_MAX + 1]), DropReason::TextBytes);
        refuse(crafted(0x14, &[3], &[0; 7]), DropReason::TextBytes);
        refuse(crafted(0x13, &[4], &[0; 307]), DropReason::TextBytes);
        refuse(crafted(0x16, &[5], &[0]), DropReason::TextBytes);
        let mut other_kind = sealed(&mut client, &[0; 8]);
        other_kind[0] = 0x14;
        refuse(other_kind, DropReason::Seal);
        assert_eq!(client.open(&mut crafted(0x13, &[0], &[])).err(), Some(DropReason::Kind));
    }

    #[test]
    fn a_packet_is_taken_once_and_a_forgery_moves_no_window() {
        let (mut client, mut server) = pair();
        let datagram = sealed(&mut client, b"once");
        let mut forged = sealed(&mut client, b"forged");
        forged[1] = 250;
        assert_eq!(server.open(&mut forged).err(), Some(DropReason::Seal));
        assert!(server.open(&mut datagram.clone()).is_ok());
        assert_eq!(server.open(&mut datagram.clone()).err(), Some(DropReason::Replayed));
    }

    #[test]
    fn what_is_not_replay_protected_leaves_the_window_alone() {
        let (mut client, mut server) = pair();
        let response = crafted(0x83, &[255; 8], &[0; CHALLENGE_TEXT_BYTES]);
        assert_eq!(server.open(&mut response.clone()).unwrap().kind, PacketKind::Response);
        assert!(server.open(&mut response.clone()).is_ok());
        assert!(server.open(&mut sealed(&mut client, b"still low")).is_ok());
    }

    #[test]
    fn every_reason_has_its_own_name() {
        assert_eq!(HashSet::from(DropReason::NAMES).len(), DropReason::COUNT);
        assert_eq!(DropReason::TooShort.name(), "too_short");
        assert_eq!(DropReason::UnknownPeer.name(), "unknown_peer");
        assert_eq!(DropReason::State.name(), "state");
    }

    #[test]
    #[should_panic(expected = "no text of a Body packet")]
    fn an_empty_body_is_a_bug_of_the_sender() {
        pair().0.seal(PacketKind::Body, &mut [0; 64], 0);
    }
}
