//! What a packet path counted since it was made.
//!
//! Owns no state of its own. Promises: plain numbers that only rise, so a reader shows differences.

/// What a packet path counted since it was made. What it has no word for stays 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PacketCounters {
    /// System calls: of a ring `io_uring_enter`, without one all that move packets or bytes.
    pub calls: u64,
    /// Calls of `io_uring_enter` that the kernel put off (EAGAIN, EBUSY, ENOMEM, EBADR); tried again at the next.
    pub calls_failed: u64,
    /// Datagrams handed to the caller.
    pub datagrams_in: u64,
    /// Their payload bytes.
    pub datagram_bytes_in: u64,
    /// Datagrams dropped because they are longer than [`crate::limits::DATAGRAM_BYTES_MAX`].
    pub datagrams_truncated: u64,
    /// Datagrams without payload, dropped.
    pub datagrams_empty: u64,
    /// Datagrams given to the kernel; those that failed are counted again by reason below.
    pub datagrams_out: u64,
    /// Their payload bytes.
    pub datagram_bytes_out: u64,
    /// Datagrams dropped because the kernel did not take the operations before them.
    pub sends_dropped: u64,
    /// Datagrams that the lane's send buffer or the device's queue had no room for (EAGAIN, ENOBUFS).
    pub send_would_block: u64,
    /// Datagrams without a way to their address (ECONNREFUSED, EHOSTUNREACH, ENETUNREACH and the like).
    pub send_unreachable: u64,
    /// Datagrams that a firewall or policy refused (EPERM, EACCES).
    pub send_forbidden: u64,
    /// Datagrams refused for any other reason.
    pub send_other: u64,
    /// Lasting receives and accepts that ended and were armed again.
    pub rearms: u64,
    /// Receives that ended because no buffer was left.
    pub buffers_empty: u64,
    /// Receives from a lane that ended with an error.
    pub receive_errors: u64,
    /// Drains that found the completion queue overflowed.
    pub completions_overflowed: u64,
    /// Connections accepted.
    pub tcp_accepted: u64,
    /// Connections whose socket is closed again.
    pub tcp_closed: u64,
    /// Connections closed at once because [`crate::limits::TCP_CONNECTIONS_MAX`] are open.
    pub tcp_full: u64,
    /// Accepts that failed (mostly EMFILE: raise the limit of open files).
    pub tcp_accept_errors: u64,
    /// Bytes received from connections.
    pub tcp_bytes_in: u64,
    /// Bytes that the kernel took for connections.
    pub tcp_bytes_out: u64,
    /// Sends refused because [`crate::limits::TCP_BACKLOG_BYTES_MAX`] bytes wait for the peer.
    pub tcp_backlog: u64,
}

impl PacketCounters {
    /// Counts a datagram that the kernel refused with `errno`.
    pub(super) fn count_send_error(&mut self, errno: i32) {
        let counter = match errno {
            libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM => &mut self.send_would_block,
            libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EHOSTDOWN | libc::ENETDOWN => {
                &mut self.send_unreachable
            }
            libc::EPERM | libc::EACCES => &mut self.send_forbidden,
            _ => &mut self.send_other,
        };
        *counter += 1;
    }
}
