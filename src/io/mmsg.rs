//! Packets without io_uring: epoll says what has arrived, `recvmmsg` and `sendmmsg` move datagrams, TCP goes by plain calls.
//!
//! Owns the lanes, the listener and the TCP connections of one shard. Promises: one call finds out what arrived, then each
//! lane that has something costs one for a batch, and one for all that a tick sends from it; no allocation in a steady
//! tick; what the kernel refuses is counted as the ring counts it. Never leaves the thread that made it, and never waits.

use std::io::{self, Read};
use std::mem;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use socket2::SockRef;

use super::batches::{RECEIVE_BATCH, ReceiveBatch, Received, SendBatch};
use super::connections::{Connections, Step};
use super::sockets::decode_address;
use super::{CloseReason, Event, Lane, PacketConfig, PacketCounters, TcpSendError};
use crate::limits::{
    DRAIN_PASSES_MAX, LANES, RING_BUFFERS_MAX, TCP_ACCEPTS_PER_DRAIN_MAX, TCP_BYTES_PER_DRAIN_MAX, TCP_CONNECTIONS_MAX,
};
use crate::wire::ids::ConnectionId;

/// What may have something, packed into the 64 bits that epoll hands back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Source {
    Lane(u16),
    Listener,
    Connection(ConnectionId),
}

impl Source {
    fn pack(self) -> epoll::EventData {
        epoll::EventData::new_u64(match self {
            Source::Lane(at) => u64::from(at) << 32,
            Source::Listener => 1 << 48,
            Source::Connection(id) => 2 << 48 | u64::from(id.slot) << 32 | u64::from(id.generation),
        })
    }

    fn unpack(data: epoll::EventData) -> Source {
        let bits = data.u64();
        let (slot, generation) = ((bits >> 32) as u16, bits as u32);
        match bits >> 48 {
            0 => Source::Lane(slot),
            1 => Source::Listener,
            2 => Source::Connection(ConnectionId { slot, generation }),
            kind => unreachable!("epoll hands back what it was given, not kind {kind}"),
        }
    }
}

/// See the module.
pub struct MmsgSockets {
    lanes: Vec<Lane>,
    /// By lane number, the index in `lanes`.
    lane_places: [Option<u16>; LANES],
    listener: Option<TcpListener>,
    connections: Connections,
    watch: OwnedFd,
    arrived: Vec<epoll::Event>,
    inbox: ReceiveBatch,
    outbox: SendBatch,
    /// Where a connection's bytes are read to.
    stream: Box<[u8]>,
    /// Connections whose send the kernel refused; told by the next drain.
    broken: Vec<(ConnectionId, i32)>,
    now_tick: u64,
    counters: PacketCounters,
}

impl MmsgSockets {
    /// Makes the path for the calling thread. Nothing is received before the first drain.
    pub(super) fn new(config: PacketConfig) -> io::Result<MmsgSockets> {
        let watch = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut arrived = Vec::with_capacity(LANES + 1 + TCP_CONNECTIONS_MAX);
        // A kernel that refuses this call is known before anybody is told that he may join.
        epoll::wait(&watch, spare_capacity(&mut arrived), Some(&Timespec::default()))?;
        let mut lane_places = [None; LANES];
        for (at, lane) in (0..).zip(&config.lanes) {
            let known = lane_places[usize::from(lane.number)].replace(at);
            assert!(known.is_none(), "lane {} stands twice in the configuration", lane.number);
            if lane.served {
                epoll::add(&watch, &lane.socket, Source::Lane(at).pack(), epoll::EventFlags::IN)?;
            }
        }
        if let Some(listener) = &config.listener {
            listener.set_nonblocking(true)?;
            epoll::add(&watch, listener, Source::Listener.pack(), epoll::EventFlags::IN)?;
        }
        Ok(MmsgSockets {
            outbox: SendBatch::new(config.submissions as usize, config.lanes.len())?,
            lanes: config.lanes,
            lane_places,
            listener: config.listener,
            connections: Connections::new(),
            watch,
            arrived,
            inbox: ReceiveBatch::new()?,
            stream: vec![0; TCP_BYTES_PER_DRAIN_MAX].into(),
            broken: Vec::new(),
            now_tick: 0,
            counters: PacketCounters::default(),
        })
    }

    /// See [`super::Packets::counters`].
    pub(super) fn counters(&self) -> &PacketCounters {
        &self.counters
    }

    /// See [`super::Packets::drain`].
    pub(super) fn drain(&mut self, now_tick: u64, mut on_event: impl FnMut(Event<'_>)) {
        self.now_tick = now_tick;
        for (id, errno) in mem::take(&mut self.broken) {
            self.lose(id, CloseReason::Error(errno), &mut on_event);
        }
        let mut arrived = mem::take(&mut self.arrived);
        self.counters.calls += 1;
        match epoll::wait(&self.watch, spare_capacity(&mut arrived), Some(&Timespec::default())) {
            // Interrupted: what is there now will be there at the next drain.
            Ok(_) | Err(Errno::INTR) => (),
            Err(errno) => panic!("epoll_pwait2: {errno}"),
        }
        for event in arrived.drain(..) {
            match Source::unpack(event.data) {
                Source::Lane(at) => self.receive_datagrams(usize::from(at), &mut on_event),
                Source::Listener => self.accept(&mut on_event),
                Source::Connection(id) => {
                    let flags = event.flags;
                    if flags.contains(epoll::EventFlags::OUT) {
                        self.unblock(id);
                    }
                    if flags != epoll::EventFlags::OUT {
                        self.receive_bytes(id, &mut on_event);
                    }
                }
            }
        }
        self.arrived = arrived;
    }

    /// See [`super::Packets::serve`].
    pub(super) fn serve(&mut self, lane: u8) {
        let at = self.lane_place(lane);
        let lane = &mut self.lanes[usize::from(at)];
        if !mem::replace(&mut lane.served, true) {
            self.counters.calls += 1;
            let added = epoll::add(&self.watch, &lane.socket, Source::Lane(at).pack(), epoll::EventFlags::IN);
            added.expect("it was watched before, by this path or by another");
        }
    }

    /// See [`super::Packets::leave`].
    pub(super) fn leave(&mut self, lane: u8) {
        let at = self.lane_place(lane);
        let lane = &mut self.lanes[usize::from(at)];
        if mem::replace(&mut lane.served, false) {
            self.counters.calls += 1;
            epoll::delete(&self.watch, &lane.socket).expect("it is watched while it is served");
        }
    }

    /// See [`super::Packets::has_left`].
    pub(super) fn has_left(&self, lane: u8) -> bool {
        !self.lanes[usize::from(self.lane_place(lane))].served
    }

    fn lane_place(&self, lane: u8) -> u16 {
        self.lane_places[usize::from(lane)].expect("the path knows the lane")
    }

    /// See [`super::Packets::submit`].
    pub(super) fn submit(&mut self) {
        let mut listed = self.connections.take_listed();
        listed.retain(|slot| {
            self.attend(*slot);
            self.connections.unlist(*slot);
            false
        });
        self.connections.keep_listed(listed);
        self.flush();
    }

    /// See [`super::Packets::send_datagram`].
    pub(super) fn send_datagram(&mut self, lane: u8, to: SocketAddr, fill: impl FnOnce(&mut [u8]) -> usize) {
        let at = self.lane_place(lane);
        if self.outbox.is_full() {
            self.flush();
        }
        if let Some(bytes) = self.outbox.write(at.into(), to, fill) {
            self.counters.datagrams_out += 1;
            self.counters.datagram_bytes_out += u64::from(bytes);
        }
    }

    /// See [`super::Packets::tcp_read`].
    pub(super) fn tcp_read(&mut self, connection: ConnectionId, reads: bool) {
        self.connections.read(connection, reads);
    }

    /// See [`super::Packets::tcp_has_room`].
    pub(super) fn tcp_has_room(&mut self, connection: ConnectionId, bytes: usize) -> bool {
        let has_room = self.connections.has_room(connection, bytes);
        self.counters.tcp_backlog += u64::from(!has_room);
        has_room
    }

    /// See [`super::Packets::tcp_send`].
    pub(super) fn tcp_send(&mut self, connection: ConnectionId, bytes: &[u8]) -> Result<(), TcpSendError> {
        let result = self.connections.append(connection, bytes);
        self.counters.tcp_backlog += u64::from(result == Err(TcpSendError::BacklogFull));
        result
    }

    /// See [`super::Packets::tcp_close`].
    pub(super) fn tcp_close(&mut self, connection: ConnectionId) {
        if let Some(open) = self.connections.open_mut(connection) {
            open.close(true);
            self.connections.list(connection.slot);
        }
    }

    /// See [`super::Packets::tcp_stalled_ticks`].
    pub(super) fn tcp_stalled_ticks(&self, connection: ConnectionId) -> u64 {
        self.connections.stalled_ticks(connection, self.now_tick)
    }

    /// See [`super::Packets::tcp_connections`].
    pub(super) fn tcp_connections(&self) -> usize {
        self.connections.count()
    }

    /// Hands over what waits in a lane, where the kernel wrote it. All lanes together get no more in one drain than a
    /// ring could hold; what is left waits for the next.
    fn receive_datagrams(&mut self, at: usize, on_event: &mut impl FnMut(Event<'_>)) {
        let batches_max = DRAIN_PASSES_MAX * usize::from(RING_BUFFERS_MAX)
            / RECEIVE_BATCH
            / self.lanes.iter().filter(|lane| lane.served).count();
        let Lane { number, socket, .. } = &self.lanes[at];
        for _ in 0..batches_max {
            self.counters.calls += 1;
            let count = match self.inbox.receive(socket) {
                Ok(count) => count,
                Err(error) if [io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted].contains(&error.kind()) => 0,
                Err(_) => {
                    self.counters.receive_errors += 1;
                    0
                }
            };
            for datagram in 0..count {
                let Received { flags, address, bytes } = self.inbox.datagram(datagram);
                if flags & libc::MSG_TRUNC != 0 {
                    self.counters.datagrams_truncated += 1;
                } else if bytes.is_empty() {
                    self.counters.datagrams_empty += 1;
                } else if let Some(from) = decode_address(&address) {
                    self.counters.datagrams_in += 1;
                    self.counters.datagram_bytes_in += bytes.len() as u64;
                    on_event(Event::Datagram { lane: *number, from, bytes });
                } else {
                    self.counters.receive_errors += 1;
                }
            }
            if count < RECEIVE_BATCH {
                break;
            }
        }
    }

    /// Takes in the peers that wait.
    fn accept(&mut self, on_event: &mut impl FnMut(Event<'_>)) {
        let listener = self.listener.as_ref().expect("epoll names what it was given");
        for _ in 0..TCP_ACCEPTS_PER_DRAIN_MAX {
            self.counters.calls += 1;
            let accepted = listener.accept();
            let accepted = accepted.and_then(|(stream, from)| stream.set_nonblocking(true).map(|()| (stream, from)));
            let (socket, from) = match accepted {
                Ok((stream, from)) => (OwnedFd::from(stream), from),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    // Mostly "too many open files", which would only come again at once.
                    self.counters.tcp_accept_errors += 1;
                    break;
                }
            };
            let Some(connection) = self.connections.insert(socket) else {
                self.counters.tcp_full += 1;
                continue;
            };
            self.counters.tcp_accepted += 1;
            on_event(Event::TcpAccepted { connection, from });
        }
    }

    /// Hands over a peer's bytes or its end.
    fn receive_bytes(&mut self, id: ConnectionId, on_event: &mut impl FnMut(Event<'_>)) {
        let Some(connection) = self.connections.open_mut(id).filter(|connection| !connection.is_paused()) else {
            return;
        };
        self.counters.calls += 1;
        match (&*SockRef::from(&connection.socket)).read(&mut self.stream) {
            Ok(0) => self.lose(id, CloseReason::Peer, on_event),
            Ok(length) => {
                self.counters.tcp_bytes_in += length as u64;
                on_event(Event::TcpBytes { connection: id, bytes: &self.stream[..length] });
            }
            Err(error) if [io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted].contains(&error.kind()) => (),
            Err(error) => self.lose(id, CloseReason::Error(error.raw_os_error().unwrap_or(0)), on_event),
        }
    }

    /// The connection ended by itself: told once, then closed.
    fn lose(&mut self, id: ConnectionId, reason: CloseReason, on_event: &mut impl FnMut(Event<'_>)) {
        if let Some(open) = self.connections.open_mut(id) {
            open.close(false);
            self.connections.list(id.slot);
            on_event(Event::TcpClosed { connection: id, reason });
        }
    }

    /// The kernel has room again for what a connection sends: the next submit goes on with it.
    fn unblock(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.open_mut(id).filter(|connection| connection.sending) else { return };
        connection.finish_send(0);
        self.counters.calls += 1;
        watch_for(&self.watch, id, &connection.socket, epoll::EventFlags::IN);
        self.connections.list(id.slot);
    }

    /// Gives one connection what it needs.
    fn attend(&mut self, slot: u16) {
        loop {
            let (id, connection) = self.connections.listed_mut(slot);
            match connection.step() {
                Step::Receive => {
                    self.counters.calls += 1;
                    connection.receiving = true;
                    let data = Source::Connection(id).pack();
                    if let Err(error) = epoll::add(&self.watch, &connection.socket, data, epoll::EventFlags::IN) {
                        self.broken.push((id, error.raw_os_error()));
                    }
                }
                Step::Send { last } => {
                    self.counters.calls += 1;
                    let wanted = connection.begin_send(self.now_tick).len();
                    let socket = SockRef::from(&connection.socket);
                    let sent = socket.send_with_flags(connection.rest(), libc::MSG_NOSIGNAL);
                    let taken = *sent.as_ref().unwrap_or(&0);
                    connection.finish_send(taken);
                    self.counters.tcp_bytes_out += taken as u64;
                    match sent.map_err(|error| (error.kind(), error.raw_os_error())) {
                        _ if last || taken == wanted => continue,
                        Ok(_) | Err((io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted, _)) => {
                            // The rest stays a send that the kernel has, until it has room.
                            connection.sending = true;
                            self.counters.calls += 1;
                            let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT;
                            watch_for(&self.watch, id, &connection.socket, flags);
                        }
                        Err((_, errno)) => {
                            connection.sending = true;
                            self.broken.push((id, errno.unwrap_or(0)));
                        }
                    }
                    return;
                }
                Step::Cancel => {
                    connection.receiving = false;
                    if connection.sending {
                        connection.finish_send(0);
                    }
                }
                Step::Free => {
                    self.counters.calls += 1;
                    self.connections.free(slot);
                    self.counters.tcp_closed += 1;
                    return;
                }
                Step::Wait => unreachable!("calls are done when they return"),
                // What is not read waits in the kernel.
                Step::Rest | Step::Pause => return,
            }
        }
    }

    /// Sends every datagram that waits.
    fn flush(&mut self) {
        for (at, lane) in self.lanes.iter().enumerate() {
            let counters = &mut self.counters;
            let calls = self.outbox.send(at, &lane.socket, |errno| counters.count_send_error(errno));
            self.counters.calls += calls;
        }
        self.outbox.clear();
    }
}

/// Changes what epoll tells of a connection.
fn watch_for(watch: &OwnedFd, id: ConnectionId, socket: &OwnedFd, flags: epoll::EventFlags) {
    epoll::modify(watch, socket, Source::Connection(id).pack(), flags).expect("it is watched until it is closed");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_survive_the_way_through_the_kernel() {
        let id = ConnectionId { slot: u16::MAX, generation: u32::MAX - 1 };
        for source in [Source::Lane(31), Source::Listener, Source::Connection(id)] {
            assert_eq!(Source::unpack(source.pack()), source);
        }
    }
}
