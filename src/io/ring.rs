//! One io_uring ring: every packet of a shard goes through it.
//!
//! Owns the ring, its lanes, its listener and its TCP connections. Promises: one call to the kernel for a drain, one for
//! a tick's sends (a few more when a queue was full or a receive had ended); no allocation in a steady tick; what the
//! kernel refuses is counted by reason. Never leaves the thread that made it, and never waits.
#![expect(unsafe_code, reason = "operations name memory by address")]

use std::io;
use std::mem;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue, types};
use socket2::SockRef;

use super::buffers::{RECEIVE_HEADER_BYTES, ReceiveBuffers, SendSlots};
use super::connections::{Connections, Step};
use super::sockets::{ADDRESS_BYTES_MAX, decode_address};
use super::{CloseReason, Event, Lane, PacketConfig, PacketCounters, RingError, TcpSendError};
use crate::limits::{DRAIN_PASSES_MAX, LANES};
use crate::wire::ids::ConnectionId;

/// The one group of buffers that datagrams and TCP bytes are received into.
const BUFFER_GROUP: u16 = 0;
/// Where a datagram's payload begins in its buffer.
const PAYLOAD_AT: usize = RECEIVE_HEADER_BYTES + ADDRESS_BYTES_MAX;
/// Calls made to hand over what is queued before giving up until the next time.
const FLUSH_TRIES_MAX: usize = 4;

/// What this kernel adds to the baseline (Linux 6.1: lasting receives into a ring of buffers, deferred work). None of it
/// is needed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RingFeatures {
    /// No indirection between submission queue and operations (6.6); used.
    pub no_submission_array: bool,
    /// A drain is not booked as waiting for a disk (6.15); used.
    pub no_iowait: bool,
    /// Waits can have a least time (6.12); not used by a ring that never waits.
    pub min_timeout: bool,
}

/// What an operation is, packed into the 64 bits that the kernel hands back with its completion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Operation {
    LaneReceive { file: u16 },
    LaneSend,
    Accept,
    Receive(ConnectionId),
    Send(ConnectionId),
    Cancel(ConnectionId),
    LaneCancel { file: u16 },
}

impl Operation {
    fn pack(self) -> u64 {
        let pack = |kind: u64, slot: u16, generation: u32| kind << 48 | u64::from(slot) << 32 | u64::from(generation);
        match self {
            Operation::LaneReceive { file } => pack(0, file, 0),
            Operation::LaneSend => pack(1, 0, 0),
            Operation::Accept => pack(2, 0, 0),
            Operation::Receive(id) => pack(3, id.slot, id.generation),
            Operation::Send(id) => pack(4, id.slot, id.generation),
            Operation::Cancel(id) => pack(5, id.slot, id.generation),
            Operation::LaneCancel { file } => pack(6, file, 0),
        }
    }

    fn unpack(bits: u64) -> Operation {
        let id = ConnectionId { slot: (bits >> 32) as u16, generation: bits as u32 };
        match bits >> 48 {
            0 => Operation::LaneReceive { file: id.slot },
            1 => Operation::LaneSend,
            2 => Operation::Accept,
            3 => Operation::Receive(id),
            4 => Operation::Send(id),
            5 => Operation::Cancel(id),
            6 => Operation::LaneCancel { file: id.slot },
            kind => unreachable!("the kernel hands back what it was given, not kind {kind}"),
        }
    }
}

/// A lane as the ring knows it: its index is that of its registered file.
struct LaneState {
    lane: Lane,
    /// The lasting receive is with the kernel.
    receiving: bool,
    /// A cancellation of it is.
    cancelling: bool,
}

/// The ring of one shard. Bound to the thread that made it.
pub struct PacketRing {
    // Dropped first: the kernel lets go before the memory below goes.
    ring: IoUring,
    buffers: ReceiveBuffers,
    slots: SendSlots,
    /// Says how long an address the lasting receives write; read by the kernel whenever one is armed.
    receive_form: Box<libc::msghdr>,
    lanes: Vec<LaneState>,
    /// By lane number, the index in `lanes`.
    lane_files: [Option<u16>; LANES],
    listener: Option<TcpListener>,
    accepting: bool,
    connections: Connections,
    features: RingFeatures,
    drain_flags: u32,
    now_tick: u64,
    /// A receive ended that must be armed before the drain is over.
    again: bool,
    counters: PacketCounters,
}

impl PacketRing {
    /// Makes the ring for the calling thread. Nothing is received before the first drain.
    pub fn new(config: PacketConfig) -> Result<PacketRing, RingError> {
        let failed = |step| move |error| RingError::of(step, error);
        let (ring, no_submission_array) = build_ring(&config).map_err(failed("make a ring"))?;
        let buffers = ReceiveBuffers::new(config.buffers).map_err(failed("map the receive buffers"))?;
        let slots = SendSlots::new(config.submissions as usize).map_err(failed("map the send slots"))?;
        let mut lane_files = [None; LANES];
        for (file, lane) in config.lanes.iter().enumerate() {
            let known = lane_files[usize::from(lane.number)].replace(file as u16);
            assert!(known.is_none(), "lane {} stands twice in the configuration", lane.number);
        }
        let mut files: Vec<_> = config.lanes.iter().map(|lane| lane.socket.as_raw_fd()).collect();
        files.extend(config.listener.as_ref().map(|listener| listener.as_raw_fd()));
        if !files.is_empty() {
            ring.submitter().register_files(&files).map_err(failed("register the sockets"))?;
        }
        // SAFETY: the descriptors live in `buffers`, which is dropped after the ring.
        unsafe {
            ring.submitter().register_buf_ring_with_flags(
                buffers.descriptors_address(),
                buffers.count(),
                BUFFER_GROUP,
                0,
            )
        }
        .map_err(failed("register the receive buffers"))?;
        // SAFETY: a msghdr of zeroes is a valid one that names no memory.
        let mut receive_form: Box<libc::msghdr> = Box::new(unsafe { mem::zeroed() });
        receive_form.msg_namelen = ADDRESS_BYTES_MAX as u32;
        let features = RingFeatures {
            no_submission_array,
            no_iowait: ring.params().is_feature_no_iowait(),
            min_timeout: ring.params().is_feature_min_timeout(),
        };
        let mut drain_flags = EnterFlags::GETEVENTS | EnterFlags::EXT_ARG;
        drain_flags.set(EnterFlags::NO_IOWAIT, features.no_iowait);
        Ok(PacketRing {
            ring,
            buffers,
            slots,
            receive_form,
            lanes: config
                .lanes
                .into_iter()
                .map(|lane| LaneState { lane, receiving: false, cancelling: false })
                .collect(),
            lane_files,
            listener: config.listener,
            accepting: false,
            connections: Connections::new(),
            features,
            drain_flags: drain_flags.bits(),
            now_tick: 0,
            again: false,
            counters: PacketCounters::default(),
        })
    }

    /// What this kernel adds to the baseline.
    pub fn features(&self) -> RingFeatures {
        self.features
    }

    /// What was counted since the ring was made.
    pub fn counters(&self) -> &PacketCounters {
        &self.counters
    }

    /// Hands over everything that arrived, in one call to the kernel; up to [`DRAIN_PASSES_MAX`] when receives ended on
    /// the way (buffers or completions full, new connections). `now_tick` dates the sends that begin from here on.
    pub fn drain(&mut self, now_tick: u64, mut on_event: impl FnMut(Event<'_>)) {
        self.now_tick = now_tick;
        for _ in 0..DRAIN_PASSES_MAX {
            self.again = false;
            self.arm();
            self.enter(self.ring.params().cq_entries());
            let overflowed = self.ring.submission().cq_overflow();
            self.counters.completions_overflowed += u64::from(overflowed);
            // Taken one by one: handling one needs the whole ring.
            while let Some(completion) = { self.ring.completion().next() } {
                self.complete(&completion, &mut on_event);
            }
            self.buffers.publish();
            if !self.again && !overflowed {
                break;
            }
        }
    }

    /// Receives from a lane, from the next drain on.
    pub fn serve(&mut self, lane: u8) {
        let file = self.lane_file(lane);
        self.lanes[usize::from(file)].lane.served = true;
    }

    /// Receives from a lane no longer. The next drain hands over what is in the ring already, and the rest waits in the
    /// socket for whoever serves it next. It is over when [`PacketRing::has_left`].
    pub fn leave(&mut self, lane: u8) {
        let file = self.lane_file(lane);
        self.lanes[usize::from(file)].lane.served = false;
    }

    /// Whether nothing more can come from a lane here.
    pub fn has_left(&self, lane: u8) -> bool {
        let state = &self.lanes[usize::from(self.lane_file(lane))];
        !state.lane.served && !state.receiving && !state.cancelling
    }

    fn lane_file(&self, lane: u8) -> u16 {
        self.lane_files[usize::from(lane)].expect("the ring knows the lane")
    }

    /// Hands the kernel what was queued since the last call; no call when nothing was. Once a tick, after the sends.
    pub fn submit(&mut self) {
        self.attend_connections();
        self.flush();
    }

    /// Queues a datagram that `fill` writes into a space of [`crate::limits::DATAGRAM_SEND_BYTES_MAX`] bytes and whose
    /// length it says; 0 sends nothing. It leaves with [`PacketRing::submit`], or earlier when the queue is full.
    ///
    /// Panics when the ring does not know the lane.
    pub fn send_datagram(&mut self, lane: u8, to: SocketAddr, fill: impl FnOnce(&mut [u8]) -> usize) {
        let file = self.lane_file(lane);
        if self.slots.is_full() {
            self.flush();
        }
        if !self.make_room() || self.slots.is_full() {
            self.counters.sends_dropped += 1;
            return;
        }
        let Some(datagram) = self.slots.write(to, fill) else { return };
        self.counters.datagrams_out += 1;
        self.counters.datagram_bytes_out += u64::from(datagram.payload_bytes);
        // MSG_DONTWAIT makes the kernel carry the send out, or fail it, inside the call that submits it: it marks the
        // operation as one that is never retried from a poll or a worker. So the slot is free again when that call
        // has taken the operation, and one set of slots is enough.
        let send = opcode::Send::new(types::Fixed(file.into()), datagram.payload, datagram.payload_bytes)
            .dest_addr(datagram.address)
            .dest_addr_len(datagram.address_bytes)
            .flags(libc::MSG_DONTWAIT)
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS);
        self.push(send, Operation::LaneSend);
    }

    /// Says whether a connection is read from now on; see [`super::Packets::tcp_read`].
    pub fn tcp_read(&mut self, connection: ConnectionId, reads: bool) {
        self.connections.read(connection, reads);
    }

    /// Whether [`PacketRing::tcp_send`] would take so many bytes; no is counted like a refusal.
    pub fn tcp_has_room(&mut self, connection: ConnectionId, bytes: usize) -> bool {
        let has_room = self.connections.has_room(connection, bytes);
        self.counters.tcp_backlog += u64::from(!has_room);
        has_room
    }

    /// Queues bytes for a connection: all or none of them. They leave with [`PacketRing::submit`].
    pub fn tcp_send(&mut self, connection: ConnectionId, bytes: &[u8]) -> Result<(), TcpSendError> {
        let result = self.connections.append(connection, bytes);
        self.counters.tcp_backlog += u64::from(result == Err(TcpSendError::BacklogFull));
        result
    }

    /// Ends a connection; its name is dead at once. What waits is given to the kernel as far as it takes it without
    /// waiting (nothing when an earlier send still waits for the peer), then the socket is closed.
    pub fn tcp_close(&mut self, connection: ConnectionId) {
        if let Some(open) = self.connections.open_mut(connection) {
            open.close(true);
            self.connections.list(connection.slot);
        }
    }

    /// Ticks since the connection's present send began, as of the last drain; 0 when it has none. Up to 1 is normal.
    pub fn tcp_stalled_ticks(&self, connection: ConnectionId) -> u64 {
        self.connections.stalled_ticks(connection, self.now_tick)
    }

    /// Connections whose socket is open, also those that are being closed.
    pub fn tcp_connections(&self) -> usize {
        self.connections.count()
    }

    /// Queues the lasting receives and accepts that the kernel does not have, ends those that it should not have, and
    /// gives connections what they need.
    fn arm(&mut self) {
        for file in 0..self.lanes.len() as u16 {
            let LaneState { lane, receiving, cancelling } = &self.lanes[usize::from(file)];
            match (lane.served, *receiving, *cancelling) {
                (true, false, _) if self.make_room() => {
                    self.lanes[usize::from(file)].receiving = true;
                    let form = &raw const *self.receive_form;
                    let receive = opcode::RecvMsgMulti::new(types::Fixed(file.into()), form, BUFFER_GROUP).build();
                    self.push(receive, Operation::LaneReceive { file });
                }
                (false, true, false) if self.make_room() => {
                    self.lanes[usize::from(file)].cancelling = true;
                    let cancel = opcode::AsyncCancel::new(Operation::LaneReceive { file }.pack()).build();
                    self.push(cancel, Operation::LaneCancel { file });
                }
                _ => (),
            }
        }
        if self.listener.is_some() && !self.accepting && self.make_room() {
            self.accepting = true;
            let listener = types::Fixed(self.lanes.len() as u32);
            let accept = opcode::AcceptMulti::new(listener).flags(libc::SOCK_CLOEXEC).build();
            self.push(accept, Operation::Accept);
        }
        self.attend_connections();
    }

    /// Gives every listed connection what it needs.
    fn attend_connections(&mut self) {
        let mut listed = self.connections.take_listed();
        listed.retain(|slot| {
            let stays = self.attend(*slot);
            if !stays {
                self.connections.unlist(*slot);
            }
            stays
        });
        self.connections.keep_listed(listed);
    }

    /// Gives one connection what it needs; true when it must be looked at again.
    fn attend(&mut self, slot: u16) -> bool {
        while self.make_room() {
            let now_tick = self.now_tick;
            let (id, connection) = self.connections.listed_mut(slot);
            let socket = types::Fd(connection.socket.as_raw_fd());
            match connection.step() {
                Step::Receive => {
                    connection.receiving = true;
                    let receive = opcode::RecvMulti::new(socket, BUFFER_GROUP).build();
                    self.push(receive, Operation::Receive(id));
                }
                Step::Send { last } => {
                    let bytes = connection.begin_send(now_tick);
                    let wait = if last { libc::MSG_DONTWAIT } else { libc::MSG_WAITALL };
                    let send = opcode::Send::new(socket, bytes.as_ptr(), bytes.len() as u32);
                    self.push(send.flags(wait | libc::MSG_NOSIGNAL).build(), Operation::Send(id));
                }
                Step::Pause => {
                    connection.cancelling = true;
                    let cancel = opcode::AsyncCancel::new(Operation::Receive(id).pack()).build();
                    self.push(cancel, Operation::Cancel(id));
                }
                Step::Cancel => {
                    connection.cancelling = true;
                    let cancel = opcode::AsyncCancel2::new(types::CancelBuilder::fd(socket).all()).build();
                    self.push(cancel, Operation::Cancel(id));
                }
                Step::Free => {
                    self.connections.free(slot);
                    self.counters.tcp_closed += 1;
                    return false;
                }
                Step::Wait => return true,
                Step::Rest => return false,
            }
        }
        true
    }

    /// Makes sure that one operation can be queued; false when the kernel does not take those before it.
    fn make_room(&mut self) -> bool {
        if self.ring.submission().is_full() {
            self.flush();
        }
        !self.ring.submission().is_full()
    }

    /// Queues an operation, for which there is room.
    fn push(&mut self, entry: squeue::Entry, operation: Operation) {
        let entry = entry.user_data(operation.pack());
        // SAFETY: the memory that operations name is the form, the buffers, the send slots and what connections send:
        // owned by this ring, at fixed addresses, unchanged until the kernel is done, and dropped after the ring.
        unsafe { self.ring.submission().push(&entry) }.expect("the caller made room");
    }

    /// Hands the kernel everything queued.
    fn flush(&mut self) {
        for _ in 0..FLUSH_TRIES_MAX {
            if self.ring.submission().is_empty() {
                break;
            }
            self.enter(0);
        }
    }

    /// Calls the kernel once: it takes what is queued and, when `want` is not 0, carries out the work deferred since the
    /// last drain. It stops that work at `want` completions, so a drain wants as many as there is room for, and its
    /// timeout of zero brings it back with fewer; wanting none would end it after one lane's first 33 datagrams.
    fn enter(&mut self, want: u32) {
        let queued = self.ring.submission().len() as u32;
        let at_once = types::Timespec::new();
        let arguments = types::SubmitArgs::new().timespec(&at_once);
        self.counters.calls += 1;
        let submitter = self.ring.submitter();
        // SAFETY: the arguments are those that the flags name, and live through the call.
        let result = unsafe {
            match want {
                0 => submitter.enter::<libc::sigset_t>(queued, 0, 0, None),
                _ => submitter.enter(queued, want, self.drain_flags, Some(&arguments)),
            }
        };
        match result.map_err(|error| error.raw_os_error().unwrap_or(0)) {
            Ok(_) | Err(libc::ETIME | libc::EINTR) => {}
            Err(libc::EAGAIN | libc::EBUSY | libc::ENOMEM | libc::EBADR) => self.counters.calls_failed += 1,
            Err(errno) => panic!("io_uring_enter: {}", io::Error::from_raw_os_error(errno)),
        }
        if self.ring.submission().is_empty() {
            self.slots.clear();
        }
    }

    /// Handles one completion.
    fn complete(&mut self, completion: &cqueue::Entry, on_event: &mut impl FnMut(Event<'_>)) {
        let result = completion.result();
        let more = cqueue::more(completion.flags());
        let buffer = cqueue::buffer_select(completion.flags());
        match Operation::unpack(completion.user_data()) {
            Operation::LaneReceive { file } => {
                let state = &mut self.lanes[usize::from(file)];
                let served = state.lane.served;
                if !more {
                    state.receiving = false;
                    self.counters.rearms += u64::from(served);
                    self.again |= served;
                }
                match buffer {
                    Some(buffer) if result >= 0 => self.complete_datagram(file, buffer, result as usize, on_event),
                    None if result == -libc::ECANCELED && !served => (),
                    None if result == -libc::ENOBUFS => self.counters.buffers_empty += 1,
                    _ => self.counters.receive_errors += 1,
                }
            }
            Operation::LaneSend => self.counters.count_send_error(-result),
            Operation::Accept => self.complete_accept(result, more, on_event),
            Operation::Receive(id) => self.complete_receive(id, result, more, buffer, on_event),
            Operation::Send(id) => self.complete_send(id, result, on_event),
            Operation::Cancel(id) => self.connections.tenant_mut(id).cancelling = false,
            // It found the receive or did not: what ends the receive says so itself.
            Operation::LaneCancel { file } => self.lanes[usize::from(file)].cancelling = false,
        }
        if let Some(buffer) = buffer {
            self.buffers.give_back(buffer);
        }
    }

    /// Hands over a datagram where the kernel wrote it.
    fn complete_datagram(&mut self, file: u16, buffer: u16, bytes: usize, on_event: &mut impl FnMut(Event<'_>)) {
        let filled = self.buffers.filled(buffer, bytes);
        let (head, payload) = filled.split_at_mut(PAYLOAD_AT);
        let flags = i32::from_ne_bytes(head[12..RECEIVE_HEADER_BYTES].try_into().expect("4 bytes"));
        let address = head[RECEIVE_HEADER_BYTES..].first_chunk().and_then(decode_address);
        if flags & libc::MSG_TRUNC != 0 {
            self.counters.datagrams_truncated += 1;
        } else if payload.is_empty() {
            self.counters.datagrams_empty += 1;
        } else if let Some(from) = address {
            self.counters.datagrams_in += 1;
            self.counters.datagram_bytes_in += payload.len() as u64;
            let lane = self.lanes[usize::from(file)].lane.number;
            on_event(Event::Datagram { lane, from, bytes: payload });
        } else {
            self.counters.receive_errors += 1;
        }
    }

    /// Takes in a peer.
    fn complete_accept(&mut self, result: i32, more: bool, on_event: &mut impl FnMut(Event<'_>)) {
        if !more {
            // Armed at the next drain: an error such as "too many open files" would only come again at once.
            self.accepting = false;
            self.counters.rearms += 1;
        }
        if result < 0 {
            self.counters.tcp_accept_errors += 1;
            return;
        }
        // SAFETY: the kernel just opened this descriptor for us, and nobody else knows it.
        let socket = unsafe { OwnedFd::from_raw_fd(result) };
        // A lasting accept has no room for addresses: each peer is asked for, once in its life. One that is gone has none.
        let Some(from) = SockRef::from(&socket).peer_addr().ok().and_then(|address| address.as_socket()) else {
            self.counters.tcp_accept_errors += 1;
            return;
        };
        match self.connections.insert(socket) {
            Some(connection) => {
                self.counters.tcp_accepted += 1;
                self.again = true;
                on_event(Event::TcpAccepted { connection, from });
            }
            None => self.counters.tcp_full += 1,
        }
    }

    /// Hands over a peer's bytes or its end.
    fn complete_receive(
        &mut self,
        id: ConnectionId,
        result: i32,
        more: bool,
        buffer: Option<u16>,
        on_event: &mut impl FnMut(Event<'_>),
    ) {
        let connection = self.connections.tenant_mut(id);
        connection.receiving = more;
        let closing = connection.is_closing();
        if !more {
            self.connections.list(id.slot);
            if !closing {
                self.counters.rearms += 1;
                self.again = true;
            }
        }
        match (-result, buffer) {
            (..0, Some(buffer)) => {
                self.counters.tcp_bytes_in += result as u64;
                if !closing {
                    let bytes = self.buffers.filled(buffer, result as usize);
                    on_event(Event::TcpBytes { connection: id, bytes });
                }
            }
            (..=0, _) => self.lose(id, CloseReason::Peer, on_event),
            (libc::ENOBUFS, _) => self.counters.buffers_empty += 1,
            // Cancelled: it is not read for now.
            (libc::EINTR | libc::EAGAIN | libc::ECANCELED, _) => {}
            (errno, _) => self.lose(id, CloseReason::Error(errno), on_event),
        }
    }

    /// Notes what the kernel took of a send.
    fn complete_send(&mut self, id: ConnectionId, result: i32, on_event: &mut impl FnMut(Event<'_>)) {
        let bytes = result.max(0) as usize;
        self.connections.tenant_mut(id).finish_send(bytes);
        self.connections.list(id.slot);
        self.counters.tcp_bytes_out += bytes as u64;
        if result < 0 && result != -libc::EINTR && result != -libc::EAGAIN {
            self.lose(id, CloseReason::Error(-result), on_event);
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
}

impl Drop for PacketRing {
    fn drop(&mut self) {
        // Ends every operation before the memory that it names goes; an error says that there was none.
        let deadline = types::Timespec::new().sec(1);
        let _ = self.ring.submitter().register_sync_cancel(Some(deadline), types::CancelBuilder::any());
        self.enter(self.ring.params().cq_entries());
    }
}

/// Makes a ring for this thread alone that does its work only when asked, and says whether it has no submission array.
fn build_ring(config: &PacketConfig) -> io::Result<(IoUring, bool)> {
    let mut builder = IoUring::builder();
    builder
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all()
        .setup_cqsize(config.completions);
    let plain = builder.clone();
    match builder.setup_no_sqarray().build(config.submissions) {
        Ok(ring) => Ok((ring, true)),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            plain.build(config.submissions).map(|ring| (ring, false))
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
