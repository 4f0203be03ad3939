//! The packet path of a shard: an io_uring ring, or system calls where the kernel denies rings.
//!
//! Owns no state of its own. Promises: both backends keep the same contract, so a shard does not know which it has; the
//! tests in `io/tests.rs` hold for each. Never chooses: whoever starts the node does.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::mmsg::MmsgSockets;
use super::{Event, PacketCounters, PacketRing, RingError, TcpSendError};
use crate::limits::{RING_BUFFERS_MAX, RING_COMPLETIONS_MAX, RING_SUBMISSIONS_MAX};
use crate::wire::ids::ConnectionId;

/// How packets pass between the kernel and a shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// By io_uring.
    Ring,
    /// By `recvmmsg`, `sendmmsg` and epoll: for containers and kernels that deny io_uring.
    Mmsg,
}

impl Backend {
    /// As `--io` names it.
    pub fn name(self) -> &'static str {
        match self {
            Backend::Ring => "ring",
            Backend::Mmsg => "mmsg",
        }
    }

    /// The backend of this name.
    pub fn of_name(name: &str) -> Option<Backend> {
        [Backend::Ring, Backend::Mmsg].into_iter().find(|backend| backend.name() == name)
    }
}

/// A UDP socket that a packet path may serve: every path of a node knows all lanes, and one receives from each.
#[derive(Clone, Debug)]
pub struct Lane {
    /// Its number on this node, below [`crate::limits::LANES`].
    pub number: u8,
    /// Its socket, which must block (the path never does).
    pub socket: Arc<UdpSocket>,
    /// Whether this path receives from it at the start.
    pub served: bool,
}

/// What a packet path serves, and its sizes.
#[derive(Debug)]
pub struct PacketConfig {
    /// The lanes, each number once.
    pub lanes: Vec<Lane>,
    /// Where TCP peers come from.
    pub listener: Option<TcpListener>,
    /// Datagrams, and with a ring operations, handed over in one go, a power of two; see [`RING_SUBMISSIONS_MAX`].
    pub submissions: u32,
    /// Completions that a ring keeps, a power of two above `submissions`; see [`RING_COMPLETIONS_MAX`].
    pub completions: u32,
    /// Receive buffers of a ring, a power of two; see [`RING_BUFFERS_MAX`].
    pub buffers: u16,
}

impl PacketConfig {
    /// The product's sizes.
    pub fn new(lanes: Vec<Lane>, listener: Option<TcpListener>) -> PacketConfig {
        PacketConfig {
            lanes,
            listener,
            submissions: RING_SUBMISSIONS_MAX,
            completions: RING_COMPLETIONS_MAX,
            buffers: RING_BUFFERS_MAX,
        }
    }
}

/// Why a packet path could not be made. The text says what to do.
#[derive(Debug)]
pub enum PacketError {
    /// The kernel gives no ring.
    Ring(RingError),
    /// The kernel gives no epoll, or no memory.
    Mmsg(io::Error),
}

impl fmt::Display for PacketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PacketError::Ring(error) => write!(f, "{error}"),
            PacketError::Mmsg(error) => write!(
                f,
                "cannot watch the sockets: {error}; raise the limit of open files (ulimit -n 65536; systemd: \
                 LimitNOFILE=65536), or give the machine or control group more memory"
            ),
        }
    }
}

impl std::error::Error for PacketError {}

/// The packet path of one shard. Bound to the thread that made it.
pub enum Packets {
    /// By io_uring.
    Ring(PacketRing),
    /// By system calls.
    Mmsg(MmsgSockets),
}

/// Does the same with either backend.
macro_rules! either {
    ($packets:expr, $path:ident => $does:expr) => {
        match $packets {
            Packets::Ring($path) => $does,
            Packets::Mmsg($path) => $does,
        }
    };
}

impl Packets {
    /// Makes the path for the calling thread. Nothing is received before the first drain.
    pub fn new(backend: Backend, config: PacketConfig) -> Result<Packets, PacketError> {
        match backend {
            Backend::Ring => PacketRing::new(config).map(Packets::Ring).map_err(PacketError::Ring),
            Backend::Mmsg => MmsgSockets::new(config).map(Packets::Mmsg).map_err(PacketError::Mmsg),
        }
    }

    /// What was counted since the path was made.
    pub fn counters(&self) -> &PacketCounters {
        either!(self, path => path.counters())
    }

    /// Hands over everything that arrived. `now_tick` dates the sends that begin from here on.
    pub fn drain(&mut self, now_tick: u64, on_event: impl FnMut(Event<'_>)) {
        either!(self, path => path.drain(now_tick, on_event));
    }

    /// Receives from a lane, from the next drain on.
    pub fn serve(&mut self, lane: u8) {
        either!(self, path => path.serve(lane));
    }

    /// Receives from a lane no longer. The next drain hands over what was taken from the socket already, and the rest waits
    /// there for whoever serves it next. It is over when [`Packets::has_left`].
    pub fn leave(&mut self, lane: u8) {
        either!(self, path => path.leave(lane));
    }

    /// Whether nothing more can come from a lane here.
    pub fn has_left(&self, lane: u8) -> bool {
        either!(self, path => path.has_left(lane))
    }

    /// Hands the kernel what was queued since the last call; no call when nothing was. Once a tick, after the sends.
    pub fn submit(&mut self) {
        either!(self, path => path.submit());
    }

    /// Queues a datagram that `fill` writes into a space of [`crate::limits::DATAGRAM_SEND_BYTES_MAX`] bytes and whose
    /// length it says; 0 sends nothing. It leaves with [`Packets::submit`], or earlier when the queue is full.
    ///
    /// Panics when the path does not know the lane.
    pub fn send_datagram(&mut self, lane: u8, to: SocketAddr, fill: impl FnOnce(&mut [u8]) -> usize) {
        either!(self, path => path.send_datagram(lane, to, fill));
    }

    /// Whether a connection is read from now on; until then its bytes wait in the kernel, and then at its peer. What the
    /// kernel has given out already still comes.
    pub fn tcp_read(&mut self, connection: ConnectionId, reads: bool) {
        either!(self, path => path.tcp_read(connection, reads));
    }

    /// Whether [`Packets::tcp_send`] would take so many bytes; no is counted like a refusal.
    pub fn tcp_has_room(&mut self, connection: ConnectionId, bytes: usize) -> bool {
        either!(self, path => path.tcp_has_room(connection, bytes))
    }

    /// Queues bytes for a connection: all or none of them. They leave with [`Packets::submit`].
    pub fn tcp_send(&mut self, connection: ConnectionId, bytes: &[u8]) -> Result<(), TcpSendError> {
        either!(self, path => path.tcp_send(connection, bytes))
    }

    /// Ends a connection; its name is dead at once. What waits is given to the kernel as far as it takes it without
    /// waiting (nothing when an earlier send still waits for the peer), then the socket is closed.
    pub fn tcp_close(&mut self, connection: ConnectionId) {
        either!(self, path => path.tcp_close(connection));
    }

    /// Ticks since the connection's present send began, as of the last drain; 0 when it has none. Up to 1 is normal.
    pub fn tcp_stalled_ticks(&self, connection: ConnectionId) -> u64 {
        either!(self, path => path.tcp_stalled_ticks(connection))
    }

    /// Connections whose socket is open, also those that are being closed.
    pub fn tcp_connections(&self) -> usize {
        either!(self, path => path.tcp_connections())
    }
}
