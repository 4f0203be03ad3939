//! What a packet path counted since it was made.
//!
//! Owns no state of its own. Promises: plain numbers that only rise, so a reader shows differences; each of them is either
//! among the drops or among the totals that a status shows.

/// What a packet path counted since it was made. What a backend does not have stays 0.
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
    /// Datagrams longer than the interface carries (EMSGSIZE): lanes never fragment.
    pub send_too_long: u64,
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
            libc::EMSGSIZE => &mut self.send_too_long,
            _ => &mut self.send_other,
        };
        *counter += 1;
    }

    /// What was lost, refused or put off, with the names that status shows. No field is left out of this and
    /// [`PacketCounters::totals`].
    pub fn drops(&self) -> [(&'static str, u64); 14] {
        [
            ("datagrams_truncated", self.datagrams_truncated),
            ("datagrams_empty", self.datagrams_empty),
            ("sends_dropped", self.sends_dropped),
            ("send_would_block", self.send_would_block),
            ("send_unreachable", self.send_unreachable),
            ("send_forbidden", self.send_forbidden),
            ("send_too_long", self.send_too_long),
            ("send_other", self.send_other),
            ("buffers_empty", self.buffers_empty),
            ("receive_errors", self.receive_errors),
            ("completions_overflowed", self.completions_overflowed),
            ("tcp_full", self.tcp_full),
            ("tcp_accept_errors", self.tcp_accept_errors),
            ("tcp_backlog", self.tcp_backlog),
        ]
    }

    /// Everything else that was counted, likewise.
    pub fn totals(&self) -> [(&'static str, u64); 11] {
        [
            ("calls", self.calls),
            ("calls_failed", self.calls_failed),
            ("datagrams_in", self.datagrams_in),
            ("datagram_bytes_in", self.datagram_bytes_in),
            ("datagrams_out", self.datagrams_out),
            ("datagram_bytes_out", self.datagram_bytes_out),
            ("rearms", self.rearms),
            ("tcp_accepted", self.tcp_accepted),
            ("tcp_closed", self.tcp_closed),
            ("tcp_bytes_in", self.tcp_bytes_in),
            ("tcp_bytes_out", self.tcp_bytes_out),
        ]
    }
}

const _: () = assert!(size_of::<PacketCounters>() == (14 + 11) * size_of::<u64>(), "status shows each counter");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_refuses_is_counted_by_reason() {
        let mut counters = PacketCounters::default();
        for errno in [libc::EAGAIN, libc::EHOSTUNREACH, libc::EACCES, libc::EMSGSIZE, libc::EINVAL] {
            counters.count_send_error(errno);
        }
        let counted = counters.drops().into_iter().filter(|&(_, count)| count == 1).map(|(name, _)| name);
        let reasons = ["send_would_block", "send_unreachable", "send_forbidden", "send_too_long", "send_other"];
        assert_eq!(counted.collect::<Vec<_>>(), reasons);
    }
}
