//! The server's side of one lane before a client is connected.
//!
//! Owns the half-open handshakes and the memory of used tokens, both bounded. Promises: follows the standard's
//! processing order, keeps nothing for an address without a valid token, never answers with more bytes than it got.
//! What it seals under a token's keys it seals with sequences that no lane uses again, in this run or a later one. Its memory
//! of tokens is a filter that spares the keeper most repeats; that a token connects once in the whole node, the keeper
//! decides, and before that nothing is sealed for the connection. Does not look whether the client id is connected: there the
//! newer token wins. Never sees datagrams of connected addresses: those go to [`Connection::open`].

use super::connection::{Connection, timeout_ticks};
use super::crypto::{KEY_BYTES, PacketKey, TAG_BYTES, TOKEN_NONCE_BYTES, TokenKey};
use super::packet::{
    CHALLENGE_TEXT_BYTES, DropReason, Envelope, HEAD_BYTES_MAX, PacketKind, REQUEST_BYTES, Side, open_response,
    seal_packet,
};
use super::prefix::SourcePrefix;
use super::token::{
    ConnectToken, PRIVATE_BYTES, PROTOCOL_ID, PrivateToken, TokenError, USER_DATA_BYTES, UserData, VERSION,
};
use crate::limits::{LANE_PENDING_MAX, LANE_PENDING_PER_PREFIX_MAX, LANE_TABLES, LANE_TOKENS_MAX};
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, DefaultHasher, Hasher};
use std::net::SocketAddr;
use std::ops::Range;

/// Bytes of a challenge, the longest answer to anyone who is not connected.
pub const REPLY_BYTES_MAX: usize = HEAD_BYTES_MAX + CHALLENGE_TEXT_BYTES + TAG_BYTES;
/// Sequences of challenges and denials have the top bit, which those of a connection under the same key never reach. Below it
/// stand the lane, the start of the realm and a count, so that no two of them are equal: lanes have their own, a start has
/// another number than the starts before, and a lane that came to the end of its count answers no more. The number of the
/// start comes again after 131,072 of them; no token lives that long.
const REPLY_SEQUENCES: u64 = 1 << 63;
/// Where the lane stands in it.
const REPLY_LANE_SHIFT: u32 = 57;
/// Where the start stands in it; the count is below.
const REPLY_START_SHIFT: u32 = 40;

const _: () = assert!(REPLY_BYTES_MAX < REQUEST_BYTES, "a challenge is shorter than what asked for it");

/// What a lane needs to know to let clients in.
#[derive(Clone)]
pub struct HandshakeConfig {
    /// Opens connect tokens; shared with the backend.
    pub private_key: [u8; KEY_BYTES],
    /// Seals challenge tokens; random at each start of the node, the same in all lanes.
    pub challenge_key: [u8; KEY_BYTES],
    /// The addresses by which tokens may name this server.
    pub public_addresses: Vec<SocketAddr>,
    /// This lane.
    pub lane: u8,
    /// Number of this start of the realm, the same in all lanes: no sequence is used again after a restart.
    pub start: u64,
}

/// When and from where a datagram came, and whether the lane has room.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// Unix seconds, for tokens' expiry.
    pub now_unix_s: u64,
    /// For timeouts.
    pub now_tick: u64,
    /// An address that is not connected.
    pub from: SocketAddr,
    /// Whether one more session fits; if not, who comes with a valid token is denied.
    pub has_room: bool,
}

/// Who joins, proven by a connect token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The account; in this version also the character.
    pub client_id: u64,
    /// The token's wishes.
    pub user_data: UserData,
    /// Tells this token from all others.
    pub token_mac: [u8; TAG_BYTES],
    /// Unix seconds; from then on the token is void by itself.
    pub expires_unix_s: u64,
    /// Seconds of silence after which the session ends; zero or less: never.
    pub timeout_s: i32,
}

/// What became of a datagram.
#[derive(Debug)]
pub enum HandshakeOutcome {
    /// Nothing.
    Drop(DropReason),
    /// A challenge of so many bytes is to be sent.
    Reply(usize),
    /// A denial of so many bytes is to be sent: the lane is full.
    Denied(usize),
    /// Proven. Nothing may be sealed for it before the keeper has taken its token.
    Accepted {
        /// The peer from now on.
        connection: Connection,
        /// Who it is.
        identity: Identity,
    },
}

/// The half-open handshakes of one lane and the tokens it has seen.
pub struct Handshake {
    token_key: TokenKey,
    challenge_key: PacketKey,
    public_addresses: Vec<SocketAddr>,
    challenge_sequence: u64,
    reply_sequences: Range<u64>,
    pending: PendingTable,
    tokens: TokenHistory,
}

impl Handshake {
    /// A lane that has met nobody.
    pub fn new(config: HandshakeConfig) -> Handshake {
        let hash = SeededHash(config.challenge_key);
        Handshake {
            token_key: TokenKey::new(&config.private_key),
            challenge_key: PacketKey::new(&config.challenge_key),
            public_addresses: config.public_addresses,
            // All lanes share the challenge key, so that each needs its own range of sequences.
            challenge_sequence: u64::from(config.lane) << 56,
            reply_sequences: reply_sequences(config.lane, config.start),
            pending: PendingTable::new(hash),
            tokens: TokenHistory::new(hash),
        }
    }

    /// Takes a datagram from an address that is not connected; it is spoilt afterwards.
    pub fn handle(
        &mut self,
        arrival: &Arrival,
        datagram: &mut [u8],
        reply: &mut [u8; REPLY_BYTES_MAX],
    ) -> HandshakeOutcome {
        let outcome = match datagram.first() {
            None => Err(DropReason::TooShort),
            Some(&prefix) if prefix == PacketKind::Request as u8 => self.handle_request(arrival, datagram, reply),
            Some(_) => self.handle_response(arrival, datagram, reply),
        };
        outcome.unwrap_or_else(HandshakeOutcome::Drop)
    }

    /// Takes the connect token that is the first frame of a TCP connection; it is used up by this.
    ///
    /// A reusable token is taken if `dev`, and never used up. Errors: why the connection is to be closed.
    pub fn accept_stream_token(
        &mut self,
        now_unix_s: u64,
        from: SocketAddr,
        token: &[u8],
        dev: bool,
    ) -> Result<Identity, DropReason> {
        let mut token = ConnectToken::parse(token).map_err(|error| match error {
            TokenError::Version => DropReason::Version,
            TokenError::Protocol => DropReason::Protocol,
            _ => DropReason::TokenMalformed,
        })?;
        let (expires_unix_s, nonce) = (token.expire_unix_s, token.nonce);
        let (_, identity) = self.open_token(now_unix_s, expires_unix_s, &nonce, &mut token.sealed)?;
        if identity.user_data.reusable {
            return if dev { Ok(identity) } else { Err(DropReason::TokenReusable) };
        }
        self.tokens.note(now_unix_s, &identity, from)?;
        self.tokens.spend(&identity.token_mac);
        Ok(identity)
    }

    /// Handshakes under way that gave way to newer ones since the start.
    pub fn pending_evicted(&self) -> u64 {
        self.pending.evicted
    }

    fn handle_request(
        &mut self,
        arrival: &Arrival,
        datagram: &mut [u8],
        reply: &mut [u8; REPLY_BYTES_MAX],
    ) -> Result<HandshakeOutcome, DropReason> {
        let request = Request::read(datagram)?;
        let (private, identity) =
            self.open_token(arrival.now_unix_s, request.expire_unix_s, &request.nonce, request.sealed)?;
        if identity.user_data.reusable {
            return Err(DropReason::TokenReusable);
        }
        self.tokens.note(arrival.now_unix_s, &identity, arrival.from)?;
        if !arrival.has_room {
            return self.deny(&private.server_to_client_key, reply);
        }
        self.pending.put(Pending {
            from: arrival.from,
            identity,
            client_to_server_key: private.client_to_server_key,
            server_to_client_key: private.server_to_client_key,
            since_tick: arrival.now_tick,
        });
        self.challenge(&private, reply)
    }

    /// The steps that a token goes through, however it came.
    fn open_token(
        &self,
        now_unix_s: u64,
        expires_unix_s: u64,
        nonce: &[u8; TOKEN_NONCE_BYTES],
        sealed: &mut [u8; PRIVATE_BYTES],
    ) -> Result<(PrivateToken, Identity), DropReason> {
        if expires_unix_s <= now_unix_s {
            return Err(DropReason::TokenExpired);
        }
        let token_mac = *sealed.last_chunk().expect("the private part ends with its MAC");
        let private = PrivateToken::open(&self.token_key, expires_unix_s, nonce, sealed)
            .ok_or(DropReason::TokenSeal)?
            .map_err(|_| DropReason::TokenMalformed)?;
        let is_ours = |server: &SocketAddr| self.public_addresses.iter().any(|own| same_address(own, server));
        if !private.servers.as_slice().iter().any(is_ours) {
            return Err(DropReason::OtherServer);
        }
        let identity = Identity {
            client_id: private.client_id,
            user_data: UserData::read(&private.user_data),
            token_mac,
            expires_unix_s,
            timeout_s: private.timeout_s,
        };
        Ok((private, identity))
    }

    fn challenge(
        &mut self,
        private: &PrivateToken,
        reply: &mut [u8; REPLY_BYTES_MAX],
    ) -> Result<HandshakeOutcome, DropReason> {
        let sequence = self.next_reply_sequence()?;
        let challenge_sequence = self.challenge_sequence;
        self.challenge_sequence += 1;
        let text = &mut reply[HEAD_BYTES_MAX..HEAD_BYTES_MAX + CHALLENGE_TEXT_BYTES];
        text[..8].copy_from_slice(&challenge_sequence.to_le_bytes());
        let token = &mut text[8..];
        token.fill(0);
        token[..8].copy_from_slice(&private.client_id.to_le_bytes());
        token[8..8 + USER_DATA_BYTES].copy_from_slice(&private.user_data);
        self.challenge_key.seal(challenge_sequence, &[], token);
        let key = PacketKey::new(&private.server_to_client_key);
        let length = seal_packet(&key, PacketKind::Challenge, sequence, reply, CHALLENGE_TEXT_BYTES);
        Ok(HandshakeOutcome::Reply(length))
    }

    fn deny(
        &mut self,
        server_to_client_key: &[u8; KEY_BYTES],
        reply: &mut [u8; REPLY_BYTES_MAX],
    ) -> Result<HandshakeOutcome, DropReason> {
        let sequence = self.next_reply_sequence()?;
        let key = PacketKey::new(server_to_client_key);
        Ok(HandshakeOutcome::Denied(seal_packet(&key, PacketKind::Denied, sequence, reply, 0)))
    }

    fn handle_response(
        &mut self,
        arrival: &Arrival,
        datagram: &mut [u8],
        reply: &mut [u8; REPLY_BYTES_MAX],
    ) -> Result<HandshakeOutcome, DropReason> {
        let pending = *self.pending.get(&arrival.from).ok_or(DropReason::UnknownPeer)?;
        if pending.has_expired(arrival.now_tick) {
            return Err(DropReason::HandshakeExpired);
        }
        let text = open_response(&pending.client_to_server_key, datagram)?;
        let (challenge_sequence, token) = text.split_first_chunk_mut().expect("308 bytes hold a sequence");
        let token = self
            .challenge_key
            .open(u64::from_le_bytes(*challenge_sequence), &[], token)
            .ok_or(DropReason::ChallengeToken)?;
        // The user data in it is what the token said, and that is pending.
        if token[..8] != pending.identity.client_id.to_le_bytes() {
            return Err(DropReason::ChallengeToken);
        }
        if !arrival.has_room {
            return self.deny(&pending.server_to_client_key, reply);
        }
        self.pending.remove(&arrival.from);
        self.tokens.spend(&pending.identity.token_mac);
        let envelope = Envelope::new(Side::Server, &pending.client_to_server_key, &pending.server_to_client_key);
        let connection = Connection::new(envelope, pending.identity.timeout_s, arrival.now_tick);
        Ok(HandshakeOutcome::Accepted { connection, identity: pending.identity })
    }

    fn next_reply_sequence(&mut self) -> Result<u64, DropReason> {
        self.reply_sequences.next().ok_or(DropReason::SequencesSpent)
    }
}

/// The sequences with which a lane seals challenges and denials after a start.
fn reply_sequences(lane: u8, start: u64) -> Range<u64> {
    let start = start % (1 << (REPLY_LANE_SHIFT - REPLY_START_SHIFT));
    let first = REPLY_SEQUENCES | u64::from(lane) << REPLY_LANE_SHIFT | start << REPLY_START_SHIFT;
    first..first + ((1 << REPLY_START_SHIFT) - 1)
}

const _: () = assert!(LANE_TABLES <= 1 << (63 - REPLY_LANE_SHIFT), "each lane has its own sequences");

/// A connection request after the checks that need no key.
struct Request<'a> {
    expire_unix_s: u64,
    nonce: [u8; TOKEN_NONCE_BYTES],
    sealed: &'a mut [u8; PRIVATE_BYTES],
}

impl Request<'_> {
    fn read(datagram: &mut [u8]) -> Result<Request<'_>, DropReason> {
        let datagram: &mut [u8; REQUEST_BYTES] = datagram.try_into().map_err(|_| DropReason::RequestBytes)?;
        let (head, sealed) = datagram.split_last_chunk_mut().expect("1,078 bytes end with the private part");
        if head[1..14] != *VERSION {
            return Err(DropReason::Version);
        }
        if head[14..22] != PROTOCOL_ID.to_le_bytes() {
            return Err(DropReason::Protocol);
        }
        let expire_unix_s = u64::from_le_bytes(head[22..30].try_into().expect("8 bytes"));
        Ok(Request { expire_unix_s, nonce: head[30..54].try_into().expect("24 bytes"), sealed })
    }
}

/// An address that showed a valid token and has not yet answered its challenge.
#[derive(Clone, Copy)]
struct Pending {
    from: SocketAddr,
    identity: Identity,
    client_to_server_key: [u8; KEY_BYTES],
    server_to_client_key: [u8; KEY_BYTES],
    since_tick: u64,
}

impl Pending {
    fn has_expired(&self, now_tick: u64) -> bool {
        let waited_ticks = now_tick.saturating_sub(self.since_tick);
        timeout_ticks(self.identity.timeout_s).is_some_and(|ticks| waited_ticks > ticks)
    }
}

/// A ring of [`LANE_PENDING_MAX`] handshakes, found by address; a new one takes the place of the oldest, or of the oldest of
/// its own source prefix when that has [`LANE_PENDING_PER_PREFIX_MAX`].
struct PendingTable {
    slots: Vec<Option<Pending>>,
    slot_of: HashMap<SocketAddr, usize, SeededHash>,
    /// Slots of each source prefix, the oldest first.
    slots_of: HashMap<SourcePrefix, VecDeque<usize>, SeededHash>,
    next_slot: usize,
    evicted: u64,
}

impl PendingTable {
    fn new(hash: SeededHash) -> PendingTable {
        let (slot_of, slots_of) = (HashMap::with_hasher(hash), HashMap::with_hasher(hash));
        PendingTable { slots: Vec::new(), slot_of, slots_of, next_slot: 0, evicted: 0 }
    }

    fn get(&self, from: &SocketAddr) -> Option<&Pending> {
        self.slots[*self.slot_of.get(from)?].as_ref()
    }

    /// Adds a handshake; one that its address had before is replaced.
    fn put(&mut self, pending: Pending) {
        if let Some(&slot) = self.slot_of.get(&pending.from) {
            self.slots[slot] = Some(pending);
            return;
        }
        let prefix = SourcePrefix::of(&pending.from);
        let own = self.slots_of.get(&prefix).filter(|own| own.len() >= LANE_PENDING_PER_PREFIX_MAX);
        let slot = own.map_or(self.next_slot, |own| own[0]);
        if slot == self.next_slot {
            self.next_slot = (slot + 1) % LANE_PENDING_MAX;
        }
        if slot == self.slots.len() {
            self.slots.push(None);
        }
        if let Some(oldest) = self.slots[slot] {
            self.remove(&oldest.from);
            self.evicted += u64::from(!oldest.has_expired(pending.since_tick));
        }
        self.slots[slot] = Some(pending);
        self.slot_of.insert(pending.from, slot);
        self.slots_of.entry(prefix).or_default().push_back(slot);
    }

    fn remove(&mut self, from: &SocketAddr) {
        let Some(slot) = self.slot_of.remove(from) else { return };
        self.slots[slot] = None;
        let prefix = SourcePrefix::of(from);
        let own = self.slots_of.get_mut(&prefix).expect("each slot is also found by its prefix");
        own.retain(|&other| other != slot);
        if own.is_empty() {
            self.slots_of.remove(&prefix);
        }
    }
}

/// The tokens seen in this lane, by MAC, until they expire: at most [`LANE_TOKENS_MAX`].
struct TokenHistory {
    uses: HashMap<[u8; TAG_BYTES], TokenUse, SeededHash>,
    first_expiry_unix_s: u64,
}

struct TokenUse {
    from: SocketAddr,
    expires_unix_s: u64,
    spent: bool,
}

impl TokenHistory {
    fn new(hash: SeededHash) -> TokenHistory {
        TokenHistory { uses: HashMap::with_hasher(hash), first_expiry_unix_s: u64::MAX }
    }

    /// Ties a token to the first address that shows it. Errors: another address did, or it has connected already (its
    /// sequences would start again under the same keys), or there is no room.
    fn note(&mut self, now_unix_s: u64, identity: &Identity, from: SocketAddr) -> Result<(), DropReason> {
        if let Some(known) = self.uses.get(&identity.token_mac) {
            return if known.from == from && !known.spent { Ok(()) } else { Err(DropReason::TokenUsed) };
        }
        if self.uses.len() >= LANE_TOKENS_MAX && self.first_expiry_unix_s <= now_unix_s {
            self.uses.retain(|_, known| known.expires_unix_s > now_unix_s);
            self.first_expiry_unix_s = self.uses.values().map(|known| known.expires_unix_s).min().unwrap_or(u64::MAX);
        }
        if self.uses.len() >= LANE_TOKENS_MAX {
            return Err(DropReason::TokenHistoryFull);
        }
        let expires_unix_s = identity.expires_unix_s;
        self.first_expiry_unix_s = self.first_expiry_unix_s.min(expires_unix_s);
        self.uses.insert(identity.token_mac, TokenUse { from, expires_unix_s, spent: false });
        Ok(())
    }

    fn spend(&mut self, token_mac: &[u8; TAG_BYTES]) {
        if let Some(known) = self.uses.get_mut(token_mac) {
            known.spent = true;
        }
    }
}

/// Keyed hashing whose key is passed in: strangers cannot foresee it, and a replay repeats it.
#[derive(Clone, Copy)]
struct SeededHash([u8; KEY_BYTES]);

impl BuildHasher for SeededHash {
    type Hasher = DefaultHasher;

    fn build_hasher(&self) -> DefaultHasher {
        let mut hasher = DefaultHasher::new();
        hasher.write(&self.0);
        hasher
    }
}

/// IPv6 scope and flow are local matters that no token can know.
fn same_address(a: &SocketAddr, b: &SocketAddr) -> bool {
    a.ip() == b.ip() && a.port() == b.port()
}

#[cfg(test)]
mod tests;
