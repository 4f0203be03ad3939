//! Batches of datagrams: `recvmmsg` and `sendmmsg` as safe functions.
//!
//! Owns the memory that message headers name, mapped from the start and never moved. Promises: a datagram is read only
//! after the call that filled it, and sent as it was written. Never waits.
#![expect(unsafe_code, reason = "message headers name memory by address")]

use std::io;
use std::mem;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::ptr;
use std::slice;

use super::buffers::{Pages, SendSlots};
use super::sockets::ADDRESS_BYTES_MAX;
use crate::limits::DATAGRAM_BYTES_MAX;

/// Datagrams of one `recvmmsg`: more save calls, fewer stay in the core's own caches.
pub(super) const RECEIVE_BATCH: usize = 256;
/// Where a datagram's payload begins; the address stands before it.
const PAYLOAD_AT: usize = 32;
/// Bytes from one datagram to the next: whole cache lines.
const DATAGRAM_STRIDE: usize = (PAYLOAD_AT + DATAGRAM_BYTES_MAX).next_multiple_of(64);

/// A datagram that was received.
pub(super) struct Received<'a> {
    /// The kernel's flags of the message.
    pub(super) flags: i32,
    /// The sender's address as the kernel writes it.
    pub(super) address: [u8; ADDRESS_BYTES_MAX],
    /// The payload.
    pub(super) bytes: &'a mut [u8],
}

/// Room for [`RECEIVE_BATCH`] datagrams that one call fills.
pub(super) struct ReceiveBatch {
    headers: Pages,
    slices: Pages,
    datagrams: Pages,
    filled: usize,
}

impl ReceiveBatch {
    /// Maps the memory and writes what stays of the headers.
    pub(super) fn new() -> io::Result<ReceiveBatch> {
        let headers = Pages::map(RECEIVE_BATCH * size_of::<libc::mmsghdr>())?;
        let slices = Pages::map(RECEIVE_BATCH * size_of::<libc::iovec>())?;
        let datagrams = Pages::map(RECEIVE_BATCH * DATAGRAM_STRIDE)?;
        let mut batch = ReceiveBatch { headers, slices, datagrams, filled: 0 };
        for at in 0..RECEIVE_BATCH {
            let datagram = batch.datagrams.at(at * DATAGRAM_STRIDE);
            let slice = batch.slices.at(at * size_of::<libc::iovec>()).cast::<libc::iovec>();
            // SAFETY: the payload lies inside the datagram's stride; `slice` is inside its mapping and aligned, and
            // nobody else looks at it.
            unsafe {
                slice.write(libc::iovec { iov_base: datagram.add(PAYLOAD_AT).cast(), iov_len: DATAGRAM_BYTES_MAX });
            }
            let header = batch.header(at);
            (header.msg_hdr.msg_iov, header.msg_hdr.msg_iovlen) = (slice, 1);
            header.msg_hdr.msg_name = datagram.cast();
            header.msg_hdr.msg_namelen = ADDRESS_BYTES_MAX as u32;
        }
        Ok(batch)
    }

    fn header(&mut self, at: usize) -> &mut libc::mmsghdr {
        assert!(at < RECEIVE_BATCH, "a header of this batch");
        let header = self.headers.at(at * size_of::<libc::mmsghdr>()).cast::<libc::mmsghdr>();
        // SAFETY: inside the mapping, aligned, and all zeroes are a valid header; &mut self keeps others away.
        unsafe { &mut *header }
    }

    /// Takes what waits in a socket, as far as there is room; gives how many datagrams that is.
    pub(super) fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        // The kernel wrote over these in the headers that it used.
        for at in 0..mem::take(&mut self.filled) {
            self.header(at).msg_hdr.msg_namelen = ADDRESS_BYTES_MAX as u32;
        }
        let headers = self.headers.at(0).cast();
        // SAFETY: each header names an address and a slice inside mappings that live as long as the batch, and the
        // slice a payload of the length that it says. Nobody reads any of it during the call.
        let result = unsafe {
            let flags = libc::MSG_DONTWAIT;
            libc::recvmmsg(socket.as_raw_fd(), headers, RECEIVE_BATCH as u32, flags as _, ptr::null_mut())
        };
        self.filled = usize::try_from(result).map_err(|_| io::Error::last_os_error())?;
        Ok(self.filled)
    }

    /// One of those that the last call filled.
    pub(super) fn datagram(&mut self, at: usize) -> Received<'_> {
        assert!(at < self.filled, "the kernel filled it");
        let (flags, length) = (self.header(at).msg_hdr.msg_flags, self.header(at).msg_len as usize);
        assert!(length <= DATAGRAM_BYTES_MAX, "the kernel writes no more than there is room for");
        let datagram = self.datagrams.at(at * DATAGRAM_STRIDE);
        // SAFETY: inside the mapping and initialised; the kernel does not touch it before the next call, which needs the
        // &mut self that the slice holds.
        let bytes = unsafe { slice::from_raw_parts_mut(datagram, PAYLOAD_AT + length) };
        let (address, bytes) = bytes.split_at_mut(PAYLOAD_AT);
        Received { flags, address: *address.first_chunk().expect("the address has room"), bytes }
    }
}

/// Datagrams that wait to be sent, in one queue for each socket.
pub(super) struct SendBatch {
    slots: SendSlots,
    slices: Pages,
    used: usize,
    queues: Vec<Vec<libc::mmsghdr>>,
}

impl SendBatch {
    /// Room for `count` datagrams in all, over so many sockets.
    pub(super) fn new(count: usize, sockets: usize) -> io::Result<SendBatch> {
        let slices = Pages::map(count * size_of::<libc::iovec>())?;
        let queues = (0..sockets).map(|_| Vec::new()).collect();
        Ok(SendBatch { slots: SendSlots::new(count)?, slices, used: 0, queues })
    }

    /// Whether everything must be sent first.
    pub(super) fn is_full(&self) -> bool {
        self.slots.is_full()
    }

    /// Queues a datagram for a socket and gives its length; none when `fill` wrote nothing.
    pub(super) fn write(
        &mut self,
        socket: usize,
        to: SocketAddr,
        fill: impl FnOnce(&mut [u8]) -> usize,
    ) -> Option<u32> {
        let datagram = self.slots.write(to, fill)?;
        let slice = self.slices.at(self.used * size_of::<libc::iovec>()).cast::<libc::iovec>();
        let iov_base = datagram.payload.cast_mut().cast();
        // SAFETY: inside the mapping and aligned: there are as many slices as slots, and one is used for each.
        unsafe { slice.write(libc::iovec { iov_base, iov_len: datagram.payload_bytes as usize }) };
        self.used += 1;
        // SAFETY: a header of zeroes is a valid one that names no memory.
        let mut header: libc::mmsghdr = unsafe { mem::zeroed() };
        header.msg_hdr.msg_name = datagram.address.cast_mut().cast();
        header.msg_hdr.msg_namelen = datagram.address_bytes;
        (header.msg_hdr.msg_iov, header.msg_hdr.msg_iovlen) = (slice, 1);
        self.queues[socket].push(header);
        Some(datagram.payload_bytes)
    }

    /// Sends what waits for one socket, in order. What the kernel refuses is told by errno and passed over. Gives how
    /// many calls that took.
    pub(super) fn send(&mut self, at: usize, socket: &UdpSocket, mut on_refusal: impl FnMut(i32)) -> u64 {
        let queue = &mut self.queues[at];
        let (mut from, mut calls) = (0, 0);
        while from < queue.len() {
            let rest = &mut queue[from..];
            calls += 1;
            // SAFETY: each header names an address and a slice, and the slice a payload, in mappings that live as long
            // as the batch and that nobody writes before the queue is empty.
            let result = unsafe {
                let flags = libc::MSG_DONTWAIT;
                libc::sendmmsg(socket.as_raw_fd(), rest.as_mut_ptr(), rest.len() as u32, flags as _)
            };
            match usize::try_from(result) {
                Ok(sent) => from += sent,
                Err(_) => match io::Error::last_os_error().raw_os_error() {
                    Some(libc::EINTR) => (),
                    errno => {
                        on_refusal(errno.unwrap_or(0));
                        from += 1;
                    }
                },
            }
        }
        queue.clear();
        calls
    }

    /// Everything was sent: all room is free again.
    pub(super) fn clear(&mut self) {
        assert!(self.queues.iter().all(Vec::is_empty), "what is queued lies in the room");
        self.slots.clear();
        self.used = 0;
    }
}
