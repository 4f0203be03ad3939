//! Memory that the kernel and a shard share: buffers that it fills, and slots that it sends from.
//!
//! Owns mapped pages that are there from the start and never move. Promises: a buffer is read only between the
//! completion that names it and its return; a send slot is not written again before the kernel took it.
#![expect(unsafe_code, reason = "the kernel reads and writes this memory by address")]

use std::io;
use std::net::SocketAddr;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;

use super::sockets::{ADDRESS_BYTES_MAX, encode_address};
use crate::limits::{DATAGRAM_BYTES_MAX, DATAGRAM_SEND_BYTES_MAX};

/// Bytes that the kernel writes in front of a datagram's address: four u32.
pub(super) const RECEIVE_HEADER_BYTES: usize = 16;
/// Bytes of a buffer that the kernel may fill: its header, the longest address, the longest datagram.
pub(super) const BUFFER_BYTES: usize = RECEIVE_HEADER_BYTES + ADDRESS_BYTES_MAX + DATAGRAM_BYTES_MAX;
/// Bytes from one buffer to the next: whole cache lines.
const BUFFER_STRIDE: usize = BUFFER_BYTES.next_multiple_of(64);
/// Bytes from one send slot to the next: address, payload, whole cache lines.
const SLOT_STRIDE: usize = (SLOT_PAYLOAD_AT + DATAGRAM_SEND_BYTES_MAX).next_multiple_of(64);
/// Where the payload of a send slot begins; the address stands before it.
const SLOT_PAYLOAD_AT: usize = 32;

/// Zeroed pages that the kernel can count on: mapped until dropped, touched at the start.
pub(super) struct Pages {
    start: NonNull<u8>,
    bytes: usize,
}

impl Pages {
    pub(super) fn map(bytes: usize) -> io::Result<Pages> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new anonymous mapping where the kernel likes touches no existing memory.
        let start = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // Large pages where the kernel has them: a tick goes through all of it. Without them it is only slower.
        // SAFETY: advice on the mapping just made; what it holds stays.
        unsafe { libc::madvise(start, bytes, libc::MADV_HUGEPAGE) };
        // SAFETY: likewise; the pages are there from now on.
        if unsafe { libc::madvise(start, bytes, libc::MADV_POPULATE_WRITE) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Pages { start: NonNull::new(start.cast()).expect("a mapping is never at zero"), bytes })
    }

    /// The address of a byte.
    pub(super) fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset < self.bytes, "inside the mapping");
        // SAFETY: the offset is inside the mapping.
        unsafe { self.start.as_ptr().add(offset) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: start and bytes are those of the mapping; its owner ended the ring that used it.
        let result = unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
        assert_eq!(result, 0, "unmapping what was mapped");
    }
}

/// Buffers that the kernel picks from when something arrives, and the ring of descriptors that gives them to it.
pub(super) struct ReceiveBuffers {
    descriptors: Pages,
    buffers: Pages,
    count: u16,
    /// Descriptors written since the start; the kernel sees them when published.
    tail: u16,
}

impl ReceiveBuffers {
    /// `count` buffers, a power of two up to 32,768, all given to the kernel.
    pub(super) fn new(count: u16) -> io::Result<ReceiveBuffers> {
        assert!(count.is_power_of_two(), "the kernel wants a power of two");
        let descriptors = Pages::map(usize::from(count) * size_of::<BufRingEntry>())?;
        let buffers = Pages::map(usize::from(count) * BUFFER_STRIDE)?;
        let mut receive = ReceiveBuffers { descriptors, buffers, count, tail: 0 };
        for buffer in 0..count {
            receive.give_back(buffer);
        }
        receive.publish();
        Ok(receive)
    }

    /// Where the descriptors are, page-aligned.
    pub(super) fn descriptors_address(&self) -> u64 {
        self.descriptors.start.as_ptr() as u64
    }

    /// How many buffers there are.
    pub(super) fn count(&self) -> u16 {
        self.count
    }

    /// The first bytes of a buffer that the kernel filled and named in a completion.
    pub(super) fn filled(&mut self, buffer: u16, bytes: usize) -> &mut [u8] {
        assert!(buffer < self.count && bytes <= BUFFER_BYTES, "the kernel names buffers that it was given");
        let start = self.buffers.at(usize::from(buffer) * BUFFER_STRIDE);
        // SAFETY: the range is inside the mapping and initialised; the kernel does not touch the buffer before it is
        // given back, which needs the &mut self that this slice holds.
        unsafe { slice::from_raw_parts_mut(start, bytes) }
    }

    /// Writes the descriptor that gives a buffer to the kernel, which sees it after [`ReceiveBuffers::publish`].
    pub(super) fn give_back(&mut self, buffer: u16) {
        assert!(buffer < self.count, "a buffer of this ring");
        let address = self.buffers.at(usize::from(buffer) * BUFFER_STRIDE) as u64;
        let place = usize::from(self.tail & (self.count - 1)) * size_of::<BufRingEntry>();
        let descriptor = self.descriptors.at(place).cast::<BufRingEntry>();
        // SAFETY: the place is inside the mapping, aligned, and between tail and head, where the kernel does not read:
        // there are as many descriptors as buffers, and this buffer is not among those that the kernel has. The setters
        // leave the ring's tail alone, which shares the first descriptor's memory.
        let descriptor = unsafe { &mut *descriptor };
        descriptor.set_addr(address);
        descriptor.set_len(BUFFER_BYTES as u32);
        descriptor.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
    }

    /// Lets the kernel see the buffers given back since the last time.
    pub(super) fn publish(&mut self) {
        let ring = self.descriptors.at(0).cast::<BufRingEntry>();
        // SAFETY: `ring` is the first descriptor; the tail inside it is aligned and shared with the kernel alone.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(ring).cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }
}

/// A datagram that lies in a send slot, by address.
pub(super) struct Outgoing {
    pub(super) payload: *const u8,
    pub(super) payload_bytes: u32,
    pub(super) address: *const libc::sockaddr,
    pub(super) address_bytes: u32,
}

/// Slots that datagrams are written to, one after the other, until the kernel took them all.
pub(super) struct SendSlots {
    pages: Pages,
    count: usize,
    used: usize,
}

impl SendSlots {
    /// Room for `count` datagrams.
    pub(super) fn new(count: usize) -> io::Result<SendSlots> {
        Ok(SendSlots { pages: Pages::map(count * SLOT_STRIDE)?, count, used: 0 })
    }

    /// Whether the kernel must take something first.
    pub(super) fn is_full(&self) -> bool {
        self.used == self.count
    }

    /// The kernel took everything.
    pub(super) fn clear(&mut self) {
        self.used = 0;
    }

    /// Writes a datagram into the next slot; None when `fill` wrote nothing.
    pub(super) fn write(&mut self, to: SocketAddr, fill: impl FnOnce(&mut [u8]) -> usize) -> Option<Outgoing> {
        assert!(!self.is_full(), "the caller made room");
        let slot = self.pages.at(self.used * SLOT_STRIDE);
        // SAFETY: the slot is inside the mapping and initialised, and the kernel has no operation on it: slots from
        // `used` on were never handed out since the kernel took everything.
        let bytes = unsafe { slice::from_raw_parts_mut(slot, SLOT_PAYLOAD_AT + DATAGRAM_SEND_BYTES_MAX) };
        let (address, payload) = bytes.split_at_mut(SLOT_PAYLOAD_AT);
        let payload_bytes = fill(payload);
        assert!(payload_bytes <= payload.len(), "no more than the space");
        if payload_bytes == 0 {
            return None;
        }
        let address_bytes = encode_address(to, address) as u32;
        self.used += 1;
        Some(Outgoing {
            payload: payload.as_ptr(),
            payload_bytes: payload_bytes as u32,
            address: address.as_ptr().cast(),
            address_bytes,
        })
    }
}
