//! One connected UDP peer, the server's side.
//!
//! Owns the peer's envelope, whether it confirmed, and when it was last heard and written to, in ticks. Promises: one
//! cipher and one replay test a datagram, no allocation. Knows no address and no session; never sends by itself.

use super::packet::{CONTROL_BYTES_MAX, CONTROL_HZ, DropReason, Envelope, PacketKind};
use crate::limits::{DATAGRAMS_PER_TICK_MAX, TICK_HZ};

/// Ticks without a datagram to the peer after which a keep-alive is due.
const KEEP_ALIVE_TICKS: u64 = TICK_HZ / CONTROL_HZ;

/// What a connected peer sent.
#[derive(PartialEq, Eq, Debug)]
pub enum Packet<'a> {
    /// A body of 1 to 1,200 bytes.
    Body(&'a [u8]),
    /// It is still there.
    KeepAlive,
    /// It is gone; the session ends.
    Disconnect,
    /// It has not yet heard that it is connected; the keep-alives until it confirms say so.
    Response,
}

/// One connected UDP peer.
#[derive(Debug)]
pub struct Connection {
    envelope: Envelope,
    timeout_ticks: Option<u64>,
    received_tick: u64,
    sent_tick: u64,
    confirmed: bool,
    /// Tick of the newest datagram that was opened, low 16 bits, and how many were in it.
    opened: (u16, u16),
}

impl Connection {
    /// A peer that just answered its challenge. `timeout_s` as in the token: zero or less means never.
    pub fn new(envelope: Envelope, timeout_s: i32, now_tick: u64) -> Connection {
        let timeout_ticks = timeout_ticks(timeout_s);
        Connection {
            envelope,
            timeout_ticks,
            received_tick: now_tick,
            sent_tick: now_tick,
            confirmed: false,
            opened: (0, 0),
        }
    }

    /// Opens a datagram from this peer's address in place.
    ///
    /// Errors: why it changed nothing; a new connection request is [`DropReason::AlreadyConnected`].
    pub fn open<'a>(&mut self, now_tick: u64, datagram: &'a mut [u8]) -> Result<Packet<'a>, DropReason> {
        if datagram.first() == Some(&(PacketKind::Request as u8)) {
            return Err(DropReason::AlreadyConnected);
        }
        if self.opened.0 != now_tick as u16 {
            self.opened = (now_tick as u16, 0);
        }
        if self.opened.1 == DATAGRAMS_PER_TICK_MAX {
            return Err(DropReason::Flood);
        }
        let opened = self.envelope.open(datagram)?;
        self.opened.1 += 1;
        let packet = match opened.kind {
            PacketKind::Body => Packet::Body(opened.text),
            PacketKind::KeepAlive => Packet::KeepAlive,
            PacketKind::Disconnect => Packet::Disconnect,
            _ => return Ok(Packet::Response),
        };
        self.received_tick = now_tick;
        self.confirmed |= packet != Packet::Disconnect;
        Ok(packet)
    }

    /// Where the caller writes the next body: so many bytes into the buffer given to [`Connection::seal_body`].
    pub fn body_offset(&self) -> usize {
        self.envelope.text_offset()
    }

    /// Seals the `body_len` bytes at [`Connection::body_offset`] in place: the length of the datagram, from 0.
    ///
    /// While [`Connection::needs_keep_alive`], a keep-alive must go before it (written first, or the offset moves).
    /// Panics unless the body has 1 to 1,200 bytes and the buffer 16 more behind it.
    pub fn seal_body(&mut self, now_tick: u64, buffer: &mut [u8], body_len: usize) -> usize {
        self.sent_tick = now_tick;
        self.envelope.seal(PacketKind::Body, buffer, body_len)
    }

    /// Whether the peer may not yet know that it is connected, so that a keep-alive goes before each body.
    pub fn needs_keep_alive(&self) -> bool {
        !self.confirmed
    }

    /// Whether nothing was sent for a tenth of a second, so that a keep-alive is due.
    pub fn keep_alive_due(&self, now_tick: u64) -> bool {
        now_tick.saturating_sub(self.sent_tick) >= KEEP_ALIVE_TICKS
    }

    /// Writes a keep-alive: its length. The numbers tell the peer its place among the most clients there can be.
    pub fn write_keep_alive(
        &mut self,
        now_tick: u64,
        client_index: u32,
        clients_max: u32,
        out: &mut [u8; CONTROL_BYTES_MAX],
    ) -> usize {
        self.sent_tick = now_tick;
        self.envelope.seal_keep_alive(client_index, clients_max, out)
    }

    /// Writes a disconnect: its length. Sent [`super::packet::DISCONNECT_PACKETS`] times, each written anew.
    pub fn write_disconnect(&mut self, out: &mut [u8; CONTROL_BYTES_MAX]) -> usize {
        self.envelope.seal(PacketKind::Disconnect, out, 0)
    }

    /// Whether nothing was heard for longer than the token allows.
    pub fn timed_out(&self, now_tick: u64) -> bool {
        self.timeout_ticks.is_some_and(|ticks| now_tick.saturating_sub(self.received_tick) > ticks)
    }

    /// The tick of the last keep-alive or body from the peer.
    pub fn received_tick(&self) -> u64 {
        self.received_tick
    }
}

/// A token's timeout in ticks; zero or less means never.
pub(super) fn timeout_ticks(timeout_s: i32) -> Option<u64> {
    u64::try_from(timeout_s).ok().filter(|&seconds| seconds > 0).map(|seconds| seconds * TICK_HZ)
}

#[cfg(test)]
mod tests {
    use super::super::packet::{OVERHEAD_BYTES_MAX, Side};
    use super::*;
    use proptest::prelude::*;

    fn pair(timeout_s: i32) -> (Envelope, Connection) {
        let envelope = |side| Envelope::new(side, &[1; 32], &[2; 32]);
        (envelope(Side::Client), Connection::new(envelope(Side::Server), timeout_s, 100))
    }

    fn sealed(client: &mut Envelope, kind: PacketKind, text: &[u8]) -> Vec<u8> {
        let mut buffer = vec![0; text.len() + OVERHEAD_BYTES_MAX];
        let offset = client.text_offset();
        buffer[offset..offset + text.len()].copy_from_slice(text);
        let total = client.seal(kind, &mut buffer, text.len());
        buffer.truncate(total);
        buffer
    }

    #[test]
    fn bodies_go_both_ways_in_place() {
        let (mut client, mut connection) = pair(5);
        let mut datagram = sealed(&mut client, PacketKind::Body, b"commands");
        assert_eq!(connection.open(101, &mut datagram), Ok(Packet::Body(b"commands")));

        let mut buffer = [0; 64];
        let offset = connection.body_offset();
        buffer[offset..offset + 8].copy_from_slice(b"snapshot");
        let total = connection.seal_body(101, &mut buffer, 8);
        assert_eq!(total, offset + 8 + 16);
        assert_eq!(client.open(&mut buffer[..total]).unwrap().text, b"snapshot");
    }

    #[test]
    fn a_keep_alive_is_26_bytes_and_says_index_and_most() {
        let (mut client, mut connection) = pair(5);
        let mut out = [0; CONTROL_BYTES_MAX];
        let total = connection.write_keep_alive(100, 7, 32_768, &mut out);
        assert_eq!((total, out[0], out[1]), (26, 0x14, 0));
        assert_eq!(client.open(&mut out[..total]).unwrap().text, [7, 0, 0, 0, 0, 128, 0, 0]);
    }

    #[test]
    fn a_disconnect_is_18_bytes_and_each_has_its_own_sequence() {
        let (mut client, mut connection) = pair(5);
        for sequence in 0..10 {
            let mut out = [0; CONTROL_BYTES_MAX];
            let total = connection.write_disconnect(&mut out);
            assert_eq!((total, out[0], out[1]), (18, 0x16, sequence));
            assert_eq!(client.open(&mut out[..total]).unwrap().kind, PacketKind::Disconnect);
        }
    }

    #[test]
    fn confirmed_by_a_keep_alive_or_body_only() {
        let (mut client, mut connection) = pair(5);
        let mut response = sealed(&mut client, PacketKind::Response, &[0; 308]);
        assert_eq!(connection.open(101, &mut response), Ok(Packet::Response));
        assert!(connection.needs_keep_alive());
        let mut keep_alive = sealed(&mut client, PacketKind::KeepAlive, &[0; 8]);
        assert_eq!(connection.open(102, &mut keep_alive), Ok(Packet::KeepAlive));
        assert!(!connection.needs_keep_alive());
    }

    #[test]
    fn silence_times_out_and_responses_do_not_count() {
        let (mut client, mut connection) = pair(2);
        assert!(!connection.timed_out(100 + 120));
        assert!(connection.timed_out(100 + 121));
        assert_eq!(
            connection.open(150, &mut sealed(&mut client, PacketKind::Response, &[0; 308])),
            Ok(Packet::Response)
        );
        assert!(connection.timed_out(100 + 121));
        let mut body = sealed(&mut client, PacketKind::Body, b"x");
        assert!(connection.open(150, &mut body.clone()).is_ok());
        assert_eq!(connection.received_tick(), 150);
        assert!(!connection.timed_out(150 + 120));
        assert_eq!(connection.open(200, &mut body), Err(DropReason::Replayed));
        assert!(connection.timed_out(150 + 121), "a replay keeps nobody connected");
        assert!(!pair(0).1.timed_out(u64::MAX) && !pair(-1).1.timed_out(u64::MAX));
    }

    #[test]
    fn a_keep_alive_is_due_after_a_tenth_of_a_second_without_sending() {
        let (_, mut connection) = pair(5);
        assert!(!connection.keep_alive_due(105));
        assert!(connection.keep_alive_due(106));
        connection.seal_body(106, &mut [0; 64], 3);
        assert!(!connection.keep_alive_due(111));
    }

    #[test]
    fn a_session_opens_so_many_datagrams_in_a_tick_and_strangers_use_up_none() {
        let (mut client, mut connection) = pair(5);
        for _ in 0..1_000 {
            assert_eq!(
                connection.open(101, &mut [0x15; 40]),
                Err(DropReason::Seal),
                "from its address, without its key"
            );
        }
        for number in 0..DATAGRAMS_PER_TICK_MAX + 10 {
            let opened = connection.open(101, &mut sealed(&mut client, PacketKind::Body, b"x")).is_ok();
            assert_eq!(opened, number < DATAGRAMS_PER_TICK_MAX);
        }
        assert!(connection.open(102, &mut sealed(&mut client, PacketKind::Body, b"x")).is_ok(), "a new tick");
    }

    #[test]
    fn a_request_of_a_connected_address_is_ignored() {
        let (_, mut connection) = pair(5);
        assert_eq!(connection.open(101, &mut [0; 1_078]), Err(DropReason::AlreadyConnected));
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..1_300)) {
            let (_, mut connection) = pair(5);
            prop_assert!(connection.open(101, &mut bytes).is_err());
        }
    }
}
