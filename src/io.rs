//! The kernel, as far as packets go: sockets, and one packet path for each shard thread, an io_uring ring or calls.
//!
//! Owns the sockets' kernel side; most of the product's `unsafe` lines are here. Promises: a drain hands over everything that waits, a submit sends a tick,
//! each in as few calls as the path allows; nothing is allocated in a steady tick; whatever is lost is counted by reason.
//! Never frames, opens or understands what it carries, and never reads a clock: ticks are told to it.

mod batches;
mod buffers;
mod connections;
mod counters;
mod mmsg;
mod packets;
mod probe;
mod ring;
mod sockets;

use crate::wire::ids::ConnectionId;
pub use connections::TcpSendError;
pub use counters::PacketCounters;
pub use packets::{Backend, Lane, PacketConfig, PacketError, Packets};
pub use probe::{RingError, RingProbe, probe};
pub use ring::{PacketRing, RingFeatures};
pub use sockets::{BindError, Lanes, Listeners, bind_lanes, bind_tcp, kernel_drops, never_fragment};

use std::net::SocketAddr;

/// What a drain found. Bytes are valid only during the call that gets the event.
#[derive(Debug)]
pub enum Event<'a> {
    /// A datagram of 1 to [`crate::limits::DATAGRAM_BYTES_MAX`] bytes.
    Datagram {
        /// The lane it came to.
        lane: u8,
        /// Who says to have sent it.
        from: SocketAddr,
        /// Its bytes where the kernel wrote them, to be opened in place.
        bytes: &'a mut [u8],
    },
    /// A peer connected.
    TcpAccepted {
        /// Its name from now on.
        connection: ConnectionId,
        /// Its address.
        from: SocketAddr,
    },
    /// A peer's next bytes, cut anywhere.
    TcpBytes {
        /// Whose.
        connection: ConnectionId,
        /// At least one byte.
        bytes: &'a [u8],
    },
    /// The connection ended by itself; its name is dead. Not told after [`Packets::tcp_close`].
    TcpClosed {
        /// Whose.
        connection: ConnectionId,
        /// Why.
        reason: CloseReason,
    },
}

/// Why a TCP connection ended by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CloseReason {
    /// The peer sent its end of stream.
    Peer,
    /// The kernel's errno, mostly ECONNRESET or EPIPE.
    Error(i32),
}

#[cfg(test)]
mod tests;
