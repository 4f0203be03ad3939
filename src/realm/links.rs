//! Links: between datagrams or streams and sessions.
//!
//! Owns the protocol state below the sessions: handshakes, UDP connections, TCP streams. Promises: nothing is allocated
//! for an address that proved nothing; nothing is sealed under a token's keys before the keeper took it for this session;
//! each byte that came counts once, as a body or as a drop with a reason; a peer that is silent or slow goes. Never does I/O: what must be sent waits in `replies`, what must be closed in `closes`.

use std::collections::HashMap;
use std::net::{Ipv6Addr, SocketAddr};

use crate::core::{Core, Ended, NoAdmission};
use crate::limits::{
    BODY_BYTES_MAX, ENDS_PER_SWEEP_MAX, LANE_SESSIONS_MAX, LANE_TABLES, LANES, REPLIES_PER_DRAIN_MAX,
    STREAM_UNREAD_BYTES_MAX, STREAMS_UNREAD_BYTES_MAX, TCP_PER_PREFIX_MAX, TCP_RECEIVE_BUFFER_BYTES,
    TCP_STALL_TICKS_MAX, TCP_TOKEN_TICKS_MAX, TCP_TOKENLESS_PER_PREFIX_MAX,
};
use crate::wire::fast_hash::FastHash;
use crate::wire::ids::ConnectionId;
use crate::wire::ids::{SessionRef, ShardId};
use crate::wire::transport::connection::{Connection, Packet};
use crate::wire::transport::handshake::{
    Arrival, Handshake, HandshakeConfig, HandshakeOutcome, Identity, REPLY_BYTES_MAX,
};
use crate::wire::transport::packet::{CONTROL_BYTES_MAX, DISCONNECT_PACKETS, DropReason};
use crate::wire::transport::prefix::SourcePrefix;
use crate::wire::transport::stream::{LENGTH_BYTES, StreamReader, write_frame};
use crate::world::cut::tcp_lane;

#[cfg(test)]
mod sweep_tests;

/// A datagram to send: bytes `from..from + length` of the reply bytes.
#[derive(Clone, Copy, Debug)]
pub struct Reply {
    /// From which lane.
    pub lane: u8,
    /// To whom.
    pub to: SocketAddr,
    from: usize,
    length: usize,
}

/// Drops that belong to no single packet rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LinkDrops {
    /// Streams that do not speak our protocol.
    pub stream_malformed: u64,
    /// Peers that showed no token in time, or fell silent.
    pub silent: u64,
    /// TCP peers that do not read.
    pub slow: u64,
    /// Peers that could not be admitted for want of room.
    pub lane_full: u64,
    /// Handshakes under way that gave way to newer ones.
    pub pending_evicted: u64,
    /// TCP peers whose source prefix has its share of connections.
    pub prefix_full: u64,
    /// Peers that were not admitted because of the load.
    pub overload: u64,
    /// Times that a stream was not read on within a tick, because its session had its share: nothing was lost.
    pub streams_paused: u64,
    /// Streams that were closed because more came at once than waits for the next tick.
    pub unread_over: u64,
    /// Answers that found no place.
    pub replies_over: u64,
}

impl LinkDrops {
    /// All of them with the names that status shows.
    pub fn named(&self) -> [(&'static str, u64); 10] {
        let LinkDrops {
            stream_malformed,
            silent,
            slow,
            lane_full,
            pending_evicted,
            prefix_full,
            overload,
            streams_paused,
            unread_over,
            replies_over,
        } = *self;
        [
            ("stream_malformed", stream_malformed),
            ("silent", silent),
            ("slow", slow),
            ("lane_full", lane_full),
            ("pending_evicted", pending_evicted),
            ("prefix_full", prefix_full),
            ("overload", overload),
            ("streams_paused", streams_paused),
            ("unread_over", unread_over),
            ("replies_over", replies_over),
        ]
    }
}

enum Peer {
    Udp { connection: Box<Connection>, address: SocketAddr },
    Tcp { connection: ConnectionId },
}

/// Links of one lane. They move between shards with its sessions.
pub struct LaneLinks {
    handshake: Handshake,
    by_address: HashMap<SocketAddr, SessionRef, FastHash>,
    peers: Vec<Option<Peer>>,
}

struct Stream {
    id: ConnectionId,
    address: SocketAddr,
    prefix: SourcePrefix,
    reader: StreamReader,
    session: Option<SessionRef>,
    /// What came and is not taken before the next tick, because its session had its share: from `unread_from` on.
    unread: Vec<u8>,
    unread_from: usize,
    /// When it connected, and from its token on when its newest frame was whole: bytes alone are no sign of life.
    heard_tick: u64,
    silence_ticks_max: u64,
}

/// Streams of one source prefix.
#[derive(Clone, Copy, Default)]
struct PrefixStreams {
    open: u32,
    /// Those that showed no token yet.
    tokenless: u32,
}

/// All links of a shard.
pub struct Links {
    /// Datagrams that wait to be sent.
    pub replies: Vec<Reply>,
    /// TCP connections that wait to be closed.
    pub closes: Vec<ConnectionId>,
    /// Packets dropped, by reason.
    pub drops: [u64; DropReason::COUNT],
    /// Other drops.
    pub link_drops: LinkDrops,
    /// Frames that came by TCP.
    pub frames_in: u64,
    reply_bytes: Vec<u8>,
    lanes: Vec<Option<LaneLinks>>,
    tcp_lane: u8,
    streams: Vec<Option<Stream>>,
    /// Streams with something unread.
    paused: Vec<ConnectionId>,
    /// TCP connections that are to be read no more, or again, each as it was last said.
    pub readings: Vec<(ConnectionId, bool)>,
    /// Only those that have streams, so there are no more than these.
    prefixes: HashMap<SourcePrefix, PrefixStreams>,
    dev: bool,
}

impl Links {
    /// Links of the lanes that a shard serves, and of its TCP peers.
    pub fn new(handshakes: Vec<HandshakeConfig>, shard: ShardId, dev: bool) -> Links {
        let mut lanes: Vec<Option<LaneLinks>> = (0..LANE_TABLES).map(|_| None).collect();
        for config in handshakes {
            let at = usize::from(config.lane);
            let handshake = Handshake::new(config);
            lanes[at] = Some(LaneLinks { handshake, by_address: HashMap::default(), peers: Vec::new() });
        }
        Links {
            replies: Vec::with_capacity(REPLIES_PER_DRAIN_MAX),
            closes: Vec::new(),
            drops: [0; DropReason::COUNT],
            link_drops: LinkDrops::default(),
            frames_in: 0,
            reply_bytes: Vec::with_capacity(REPLIES_PER_DRAIN_MAX * REPLY_BYTES_MAX),
            lanes,
            tcp_lane: tcp_lane(shard),
            streams: Vec::new(),
            paused: Vec::new(),
            readings: Vec::new(),
            prefixes: HashMap::new(),
            dev,
        }
    }

    /// Takes a lane out: what comes for its peers, comes elsewhere.
    pub fn give_lane(&mut self, lane: u8) -> LaneLinks {
        assert_ne!(lane, self.tcp_lane, "the sockets of TCP peers are with this shard's ring");
        self.lanes[usize::from(lane)].take().expect("only a lane that is here is given")
    }

    /// Takes in a lane.
    pub fn take_lane(&mut self, lane: u8, links: LaneLinks) {
        let before = self.lanes[usize::from(lane)].replace(links);
        assert!(before.is_none(), "lane {lane} is there once");
    }

    /// The bytes of a reply.
    pub fn reply_bytes(&self, reply: &Reply) -> &[u8] {
        &self.reply_bytes[reply.from..reply.from + reply.length]
    }

    /// Forgets the replies that were sent.
    pub fn clear_replies(&mut self) {
        self.replies.clear();
        self.reply_bytes.clear();
    }

    fn reply(&mut self, lane: u8, to: SocketAddr, bytes: &[u8]) {
        if self.replies.len() == REPLIES_PER_DRAIN_MAX {
            self.link_drops.replies_over += 1;
            return;
        }
        self.replies.push(Reply { lane, to, from: self.reply_bytes.len(), length: bytes.len() });
        self.reply_bytes.extend_from_slice(bytes);
    }

    /// A datagram came.
    pub fn handle_datagram(&mut self, core: &mut Core, lane: u8, arrival: Arrival, datagram: &mut [u8]) {
        let links = self.lanes[usize::from(lane)].as_mut().expect("the packet path serves this shard's lanes only");
        let Some(&session) = links.by_address.get(&arrival.from) else {
            self.shake_hands(core, lane, arrival, datagram);
            return;
        };
        let Some(Peer::Udp { connection, .. }) = &mut links.peers[usize::from(session.slot)] else {
            unreachable!("addresses belong to UDP peers")
        };
        match connection.open(arrival.now_tick, datagram) {
            Ok(Packet::Body(body)) => core.handle_body(session, body),
            Ok(Packet::KeepAlive | Packet::Response) => (),
            Ok(Packet::Disconnect) => {
                self.unlink(session);
                core.hang_up(session);
            }
            Err(reason) => self.drops[reason.index()] += 1,
        }
    }

    fn shake_hands(&mut self, core: &mut Core, lane: u8, arrival: Arrival, datagram: &mut [u8]) {
        let mut reply = [0; REPLY_BYTES_MAX];
        let links = self.lanes[usize::from(lane)].as_mut().expect("checked by the caller");
        let evicted_before = links.handshake.pending_evicted();
        let outcome = links.handshake.handle(&arrival, datagram, &mut reply);
        self.link_drops.pending_evicted += links.handshake.pending_evicted() - evicted_before;
        match outcome {
            HandshakeOutcome::Drop(reason) => self.drops[reason.index()] += 1,
            HandshakeOutcome::Reply(length) => self.reply(lane, arrival.from, &reply[..length]),
            HandshakeOutcome::Denied(length) => {
                self.count_refusal(core, lane);
                self.reply(lane, arrival.from, &reply[..length]);
            }
            HandshakeOutcome::Accepted { connection, identity } => {
                let Some(session) = core.admit(lane, identity, false) else {
                    self.count_refusal(core, lane);
                    return;
                };
                let peer = Peer::Udp { connection: Box::new(connection), address: arrival.from };
                links.by_address.insert(arrival.from, session);
                self.link(session, peer);
            }
        }
    }

    fn link(&mut self, session: SessionRef, peer: Peer) {
        let peers = &mut self.lanes[usize::from(session.lane)].as_mut().expect("a served lane").peers;
        let slot = usize::from(session.slot);
        if peers.len() <= slot {
            peers.resize_with(slot + 1, || None);
        }
        assert!(peers[slot].is_none(), "a session has one link");
        peers[slot] = Some(peer);
    }

    fn unlink(&mut self, session: SessionRef) -> Option<Peer> {
        let links = self.lanes[usize::from(session.lane)].as_mut().expect("a served lane");
        let peer = links.peers.get_mut(usize::from(session.slot))?.take()?;
        if let Peer::Udp { address, .. } = &peer {
            links.by_address.remove(address);
        }
        Some(peer)
    }

    /// A TCP peer came; it goes at once when its source prefix has its share.
    pub fn handle_accepted(&mut self, id: ConnectionId, from: SocketAddr, tick: u64) {
        let slot = usize::from(id.slot);
        if self.streams.len() <= slot {
            self.streams.resize_with(slot + 1, || None);
        }
        let prefix = SourcePrefix::of(&from);
        let streams = self.prefixes.entry(prefix).or_default();
        let is_full = streams.open >= TCP_PER_PREFIX_MAX && !self.dev;
        if is_full || streams.tokenless >= TCP_TOKENLESS_PER_PREFIX_MAX {
            self.link_drops.prefix_full += 1;
            self.closes.push(id);
            return;
        }
        streams.open += 1;
        streams.tokenless += 1;
        // A token is used up by one connection, whatever address that has: so each has an address of its own here.
        let address = SocketAddr::from((Ipv6Addr::from(u128::from(id.generation)), id.slot));
        let (reader, session, silence_ticks_max) = (StreamReader::default(), None, TCP_TOKEN_TICKS_MAX);
        let (unread, unread_from, heard_tick) = (Vec::new(), 0, tick);
        self.streams[slot] =
            Some(Stream { id, address, prefix, reader, session, unread, unread_from, heard_tick, silence_ticks_max });
    }

    /// A stream is no more.
    fn uncount(&mut self, stream: &Stream) {
        let streams = self.prefixes.get_mut(&stream.prefix).expect("a stream is counted");
        streams.open -= 1;
        streams.tokenless -= u32::from(stream.session.is_none());
        if streams.open == 0 {
            self.prefixes.remove(&stream.prefix);
        }
    }

    /// Bytes of a TCP peer came.
    pub fn handle_bytes(&mut self, core: &mut Core, id: ConnectionId, now: (u64, u64), bytes: &[u8]) {
        let slot = usize::from(id.slot);
        let Some(mut stream) = self.streams[slot].take_if(|stream| stream.id == id) else { return };
        let is_paused = !stream.unread.is_empty();
        let left = if is_paused { Some(bytes.len()) } else { self.read(core, &mut stream, now, bytes) };
        let unread = stream.unread.len() - stream.unread_from;
        match left {
            Some(left) if self.is_too_much(unread + left) => {
                self.link_drops.unread_over += 1;
                self.drop_stream(core, &stream);
            }
            Some(left) => {
                stream.unread.extend_from_slice(&bytes[bytes.len() - left..]);
                if left > 0 && !is_paused {
                    self.link_drops.streams_paused += 1;
                    self.paused.push(id);
                    self.readings.push((id, false));
                }
                self.streams[slot] = Some(stream);
            }
            None => self.drop_stream(core, &stream),
        }
    }

    /// Whether a stream has more unread than it may, or more than usual where all together have too much.
    fn is_too_much(&self, unread: usize) -> bool {
        let all = || self.streams.iter().flatten().map(|stream| stream.unread.len()).sum::<usize>();
        unread > STREAM_UNREAD_BYTES_MAX
            || (unread > TCP_RECEIVE_BUFFER_BYTES && all() + unread > STREAMS_UNREAD_BYTES_MAX)
    }

    /// A tick's arrivals begin: streams that had their share of the one before are read on.
    pub fn resume(&mut self, core: &mut Core, now: (u64, u64)) {
        let mut paused = std::mem::take(&mut self.paused);
        paused.retain(|&id| {
            let slot = usize::from(id.slot);
            let Some(mut stream) = self.streams[slot].take_if(|stream| stream.id == id) else { return false };
            if stream.session.is_some_and(|session| !core.has_room(session)) {
                self.streams[slot] = Some(stream);
                return true;
            }
            let (unread, from) = (std::mem::take(&mut stream.unread), stream.unread_from);
            let Some(left) = self.read(core, &mut stream, now, &unread[from..]) else {
                self.drop_stream(core, &stream);
                return false;
            };
            if left == 0 {
                stream.unread_from = 0;
                self.readings.push((id, true));
            } else {
                (stream.unread_from, stream.unread) = (unread.len() - left, unread);
            }
            self.streams[slot] = Some(stream);
            left > 0
        });
        self.paused = paused;
    }

    /// Takes frames from bytes of a stream as long as its session has room for them. Returns how many bytes are left; `None`:
    /// the stream is to be closed.
    fn read(&mut self, core: &mut Core, stream: &mut Stream, now: (u64, u64), bytes: &[u8]) -> Option<usize> {
        if stream.session.is_some_and(|session| !core.has_room(session)) {
            return Some(bytes.len());
        }
        let mut reader = std::mem::take(&mut stream.reader);
        let mut refused = false;
        let fed = reader.feed(bytes, |frame| {
            self.frames_in += 1;
            stream.heard_tick = now.0;
            match stream.session {
                Some(session) => {
                    core.handle_body(session, frame);
                    core.has_room(session)
                }
                None => {
                    refused = !self.accept_token(core, stream, now, frame);
                    !refused
                }
            }
        });
        stream.reader = reader;
        self.link_drops.stream_malformed += u64::from(fed.is_err());
        fed.ok().filter(|_| !refused).map(<[u8]>::len)
    }

    fn accept_token(&mut self, core: &mut Core, stream: &mut Stream, now: (u64, u64), token: &[u8]) -> bool {
        let links = self.lanes[usize::from(self.tcp_lane)].as_mut().expect("a served lane");
        let identity: Identity = match links.handshake.accept_stream_token(now.1, stream.address, token, self.dev) {
            Ok(identity) => identity,
            Err(reason) => {
                self.drops[reason.index()] += 1;
                return false;
            }
        };
        let Some(session) = core.admit(self.tcp_lane, identity, true) else {
            self.count_refusal(core, self.tcp_lane);
            return false;
        };
        stream.session = Some(session);
        self.prefixes.get_mut(&stream.prefix).expect("a stream is counted").tokenless -= 1;
        let timeout_s = if identity.timeout_s > 0 { identity.timeout_s as u64 } else { u64::MAX / 128 };
        stream.silence_ticks_max = timeout_s * crate::limits::TICK_HZ;
        self.link(session, Peer::Tcp { connection: stream.id });
        true
    }

    fn drop_stream(&mut self, core: &mut Core, stream: &Stream) {
        self.closes.push(stream.id);
        self.uncount(stream);
        if let Some(session) = stream.session {
            self.unlink(session);
            core.hang_up(session);
        }
    }

    /// A TCP connection is gone.
    pub fn handle_closed(&mut self, core: &mut Core, id: ConnectionId) {
        let slot = usize::from(id.slot);
        let Some(stream) = self.streams[slot].take_if(|stream| stream.id == id) else { return };
        self.uncount(&stream);
        if let Some(session) = stream.session {
            self.unlink(session);
            core.hang_up(session);
        }
    }

    /// A session ended: its peer is told, as often as its protocol wants and if it may be, and forgotten.
    pub fn end(&mut self, ended: Ended) {
        match self.unlink(ended.session) {
            Some(Peer::Udp { mut connection, address }) if ended.may_answer => {
                let mut out = [0; CONTROL_BYTES_MAX];
                for _ in 0..DISCONNECT_PACKETS {
                    let length = connection.write_disconnect(&mut out);
                    self.reply(ended.session.lane, address, &out[..length]);
                }
            }
            Some(Peer::Tcp { connection }) => {
                let stream = self.streams[usize::from(connection.slot)].take();
                self.uncount(&stream.expect("a linked stream is there"));
                self.closes.push(connection);
            }
            Some(Peer::Udp { .. }) | None => (),
        }
    }

    /// Seals the body that `write` makes for a session, and says where it goes. `None`: nothing is to be sent.
    pub fn outgoing(&mut self, session: SessionRef) -> Option<Outgoing<'_>> {
        let lane = self.lanes[usize::from(session.lane)].as_mut().expect("a served lane");
        match lane.peers[usize::from(session.slot)].as_mut()? {
            Peer::Udp { connection, address } => Some(Outgoing::Udp { connection, address: *address }),
            Peer::Tcp { connection } => Some(Outgoing::Tcp { connection: *connection }),
        }
    }

    /// Now and then: keep-alives, and the end of peers that are silent or do not read.
    pub fn sweep(&mut self, core: &mut Core, tick: u64, stalled_ticks: impl Fn(ConnectionId) -> u64) {
        let mut ends = 0;
        // From the last one: who ends leaves its place to one that was looked at.
        for place in (0..core.sessions()).rev() {
            let session = core.session_at(place);
            let Some(Outgoing::Udp { connection, address }) = self.outgoing(session) else { continue };
            let is_silent = connection.timed_out(tick);
            if is_silent && ends < ENDS_PER_SWEEP_MAX {
                ends += 1;
                self.link_drops.silent += 1;
                self.unlink(session);
                core.hang_up(session);
            } else if !is_silent && connection.keep_alive_due(tick) && core.may_answer(session) {
                let mut out = [0; CONTROL_BYTES_MAX];
                let length = keep_alive(connection, session, tick, &mut out);
                self.reply(session.lane, address, &out[..length]);
            }
        }
        for slot in 0..self.streams.len() {
            let Some(stream) = &self.streams[slot] else { continue };
            let silent = tick.saturating_sub(stream.heard_tick) > stream.silence_ticks_max;
            let slow = stalled_ticks(stream.id) > TCP_STALL_TICKS_MAX;
            if (silent || slow) && ends < ENDS_PER_SWEEP_MAX {
                ends += 1;
                self.link_drops.silent += u64::from(silent);
                self.link_drops.slow += u64::from(slow && !silent);
                let stream = self.streams[slot].take().expect("seen above");
                self.drop_stream(core, &stream);
            }
        }
    }

    fn count_refusal(&mut self, core: &Core, lane: u8) {
        match core.no_admission(lane) {
            Some(NoAdmission::Overload) => self.link_drops.overload += 1,
            // There was none left when this drain began.
            Some(NoAdmission::Full) | None => self.link_drops.lane_full += 1,
        }
    }

    /// Whether a session came by TCP.
    pub fn is_tcp(&self, session: SessionRef) -> bool {
        let lane = self.lanes[usize::from(session.lane)].as_ref();
        matches!(lane.and_then(|lane| lane.peers.get(usize::from(session.slot))?.as_ref()), Some(Peer::Tcp { .. }))
    }
}

/// Where a session's bodies go.
pub enum Outgoing<'a> {
    /// Sealed, as a datagram.
    Udp {
        /// Seals it.
        connection: &'a mut Connection,
        /// The peer.
        address: SocketAddr,
    },
    /// Framed, on a stream.
    Tcp {
        /// The stream.
        connection: ConnectionId,
    },
}

/// Seals a body into a datagram's space, a keep-alive having gone before if the peer needs it; gives back the length.
pub fn seal(
    connection: &mut Connection,
    tick: u64,
    space: &mut [u8],
    write: &mut dyn FnMut(&mut [u8]) -> usize,
) -> usize {
    let offset = connection.body_offset();
    let length = write(&mut space[offset..offset + BODY_BYTES_MAX]);
    connection.seal_body(tick, space, length)
}

/// Writes a keep-alive for a session; gives back the length.
pub fn keep_alive(
    connection: &mut Connection,
    session: SessionRef,
    tick: u64,
    out: &mut [u8; CONTROL_BYTES_MAX],
) -> usize {
    let index = u32::from(session.lane) * LANE_SESSIONS_MAX as u32 + u32::from(session.slot);
    connection.write_keep_alive(tick, index, (LANES * LANE_SESSIONS_MAX) as u32, out)
}

/// Frames a body for a stream; gives back the bytes.
pub fn frame<'a>(
    space: &'a mut [u8; LENGTH_BYTES + BODY_BYTES_MAX],
    write: &mut dyn FnMut(&mut [u8]) -> usize,
) -> &'a [u8] {
    let mut body = [0; BODY_BYTES_MAX];
    let length = write(&mut body);
    let used = write_frame(&body[..length], space);
    &space[..used]
}

#[cfg(test)]
mod tests;
