//! The table of TCP connections and what each of them needs next.
//!
//! Owns the sockets, and the bytes that wait for or are with the kernel. Promises: a slot gets its next tenant only
//! after the kernel gave back every operation of the last; the name of an earlier tenant finds nothing; memory for a
//! peer is bounded. Never talks to the kernel.

use std::mem;
use std::os::fd::OwnedFd;

use crate::limits::{TCP_BACKLOG_BYTES_MAX, TCP_CONNECTIONS_MAX};
use crate::wire::ids::ConnectionId;

/// Why bytes were not taken for a connection. Nothing of them was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TcpSendError {
    /// The connection ended, or is being closed.
    Gone,
    /// More than [`TCP_BACKLOG_BYTES_MAX`] bytes would wait for the peer.
    BacklogFull,
}

/// What a connection needs next from the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// A lasting receive.
    Receive,
    /// A send; the last one before a close does not wait for the peer.
    Send { last: bool },
    /// The end of the lasting receive.
    Pause,
    /// The end of everything that the kernel holds for it.
    Cancel,
    /// Its socket closed: the kernel holds nothing for it.
    Free,
    /// Nothing before the kernel answers, but look again then.
    Wait,
    /// Nothing.
    Rest,
}

/// One open or closing connection.
pub(super) struct Connection {
    pub(super) socket: OwnedFd,
    /// The lasting receive is with the kernel.
    pub(super) receiving: bool,
    /// A send is with the kernel: `outgoing` must not move or change.
    pub(super) sending: bool,
    /// A cancellation is with the kernel.
    pub(super) cancelling: bool,
    closing: bool,
    /// Nothing is received until its owner wants more.
    paused: bool,
    listed: bool,
    /// What the kernel sends, from `sent` on.
    outgoing: Vec<u8>,
    sent: usize,
    /// What follows it.
    backlog: Vec<u8>,
    send_since_tick: u64,
}

impl Connection {
    /// What it needs next.
    pub(super) fn step(&self) -> Step {
        let unsent = self.sent < self.outgoing.len() || !self.backlog.is_empty();
        if self.closing {
            return match (self.cancelling, self.sending, self.receiving) {
                (true, ..) => Step::Wait,
                (_, false, _) if unsent => Step::Send { last: true },
                (_, false, false) => Step::Free,
                _ => Step::Cancel,
            };
        }
        if !self.receiving && !self.paused {
            Step::Receive
        } else if !self.sending && unsent {
            Step::Send { last: false }
        } else if self.receiving && self.paused && !self.cancelling {
            Step::Pause
        } else {
            Step::Rest
        }
    }

    /// Whether its owner is done with it.
    pub(super) fn is_closing(&self) -> bool {
        self.closing
    }

    /// Whether its owner wants nothing from it for now.
    pub(super) fn is_paused(&self) -> bool {
        self.paused
    }

    /// Ends it, with one try to send what waits, or none.
    pub(super) fn close(&mut self, send_rest: bool) {
        self.closing = true;
        if !send_rest {
            self.backlog.clear();
        }
    }

    /// The bytes to send now; they stay where they are until [`Connection::finish_send`].
    pub(super) fn begin_send(&mut self, now_tick: u64) -> &[u8] {
        assert!(!self.sending, "one send at a time");
        if self.sent == self.outgoing.len() {
            self.outgoing.clear();
            self.sent = 0;
            mem::swap(&mut self.outgoing, &mut self.backlog);
            self.send_since_tick = now_tick;
        }
        self.sending = true;
        self.rest()
    }

    /// What the present send still has to give.
    pub(super) fn rest(&self) -> &[u8] {
        &self.outgoing[self.sent..]
    }

    /// The kernel gave the send back after taking `bytes` of it.
    pub(super) fn finish_send(&mut self, bytes: usize) {
        assert!(self.sending && bytes <= self.outgoing.len() - self.sent, "the kernel sends what it was given");
        self.sending = false;
        self.sent += bytes;
        if self.closing && self.sent < self.outgoing.len() {
            // What follows a part would be read as something else.
            self.sent = self.outgoing.len();
            self.backlog.clear();
        }
    }

    /// Bytes that wait for the peer.
    fn unsent_bytes(&self) -> usize {
        self.outgoing.len() - self.sent + self.backlog.len()
    }
}

struct Place {
    generation: u32,
    tenant: Option<Connection>,
}

/// All connections of a packet path.
pub(super) struct Connections {
    places: Vec<Place>,
    free: Vec<u16>,
    /// Slots whose connection may need a step, each once.
    listed: Vec<u16>,
}

impl Connections {
    /// An empty table.
    pub(super) fn new() -> Connections {
        let listed = Vec::with_capacity(TCP_CONNECTIONS_MAX);
        Connections { places: Vec::new(), free: Vec::new(), listed }
    }

    /// Takes in a socket; None when the table is full.
    pub(super) fn insert(&mut self, socket: OwnedFd) -> Option<ConnectionId> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.places.len() < TCP_CONNECTIONS_MAX => {
                self.places.push(Place { generation: 0, tenant: None });
                (self.places.len() - 1) as u16
            }
            None => return None,
        };
        let place = &mut self.places[usize::from(slot)];
        place.tenant = Some(Connection {
            socket,
            receiving: false,
            sending: false,
            cancelling: false,
            closing: false,
            paused: false,
            listed: false,
            outgoing: Vec::new(),
            sent: 0,
            backlog: Vec::new(),
            send_since_tick: 0,
        });
        let generation = place.generation;
        self.list(slot);
        Some(ConnectionId { slot, generation })
    }

    /// The connection of this name, unless it ended or is closing.
    pub(super) fn open_mut(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        let place = self.places.get_mut(usize::from(id.slot)).filter(|place| place.generation == id.generation)?;
        place.tenant.as_mut().filter(|connection| !connection.closing)
    }

    /// The tenant that the kernel answers about; it is there as long as the kernel holds something of it.
    pub(super) fn tenant_mut(&mut self, id: ConnectionId) -> &mut Connection {
        let place = &mut self.places[usize::from(id.slot)];
        assert_eq!(place.generation, id.generation, "a slot is kept until the kernel answered");
        place.tenant.as_mut().expect("a slot is kept until the kernel answered")
    }

    /// The tenant of a listed slot, and its name.
    pub(super) fn listed_mut(&mut self, slot: u16) -> (ConnectionId, &mut Connection) {
        let place = &mut self.places[usize::from(slot)];
        let id = ConnectionId { slot, generation: place.generation };
        (id, place.tenant.as_mut().expect("listed slots have tenants"))
    }

    /// Ends the tenancy: its socket and its memory go, its name is dead.
    pub(super) fn free(&mut self, slot: u16) {
        let place = &mut self.places[usize::from(slot)];
        place.tenant = None;
        place.generation = place.generation.wrapping_add(1);
        self.free.push(slot);
    }

    /// Notes that a slot's connection may need a step.
    pub(super) fn list(&mut self, slot: u16) {
        let tenant = self.places[usize::from(slot)].tenant.as_mut().expect("only tenants are listed");
        if !mem::replace(&mut tenant.listed, true) {
            self.listed.push(slot);
        }
    }

    /// The listed slots, to be worked through; nothing may be listed before they come back.
    pub(super) fn take_listed(&mut self) -> Vec<u16> {
        mem::take(&mut self.listed)
    }

    /// Takes back the list of [`Connections::take_listed`], shortened to the slots that stay listed.
    pub(super) fn keep_listed(&mut self, listed: Vec<u16>) {
        assert!(self.listed.is_empty(), "nothing is listed while the list is worked through");
        self.listed = listed;
    }

    /// Notes that a slot's connection needs nothing now.
    pub(super) fn unlist(&mut self, slot: u16) {
        if let Some(tenant) = &mut self.places[usize::from(slot)].tenant {
            tenant.listed = false;
        }
    }

    /// Says whether a connection is read from now on.
    pub(super) fn read(&mut self, id: ConnectionId, reads: bool) {
        if let Some(connection) = self.open_mut(id) {
            connection.paused = !reads;
            self.list(id.slot);
        }
    }

    /// Whether so many bytes more would be taken for a connection.
    pub(super) fn has_room(&mut self, id: ConnectionId, bytes: usize) -> bool {
        self.open_mut(id).is_some_and(|connection| connection.unsent_bytes() + bytes <= TCP_BACKLOG_BYTES_MAX)
    }

    /// Adds bytes to what waits for a connection's peer.
    pub(super) fn append(&mut self, id: ConnectionId, bytes: &[u8]) -> Result<(), TcpSendError> {
        let connection = self.open_mut(id).ok_or(TcpSendError::Gone)?;
        if connection.unsent_bytes() + bytes.len() > TCP_BACKLOG_BYTES_MAX {
            return Err(TcpSendError::BacklogFull);
        }
        connection.backlog.extend_from_slice(bytes);
        self.list(id.slot);
        Ok(())
    }

    /// Ticks since the send began that the kernel has; 0 when it has none, and for dead names.
    pub(super) fn stalled_ticks(&self, id: ConnectionId, now_tick: u64) -> u64 {
        let place = self.places.get(usize::from(id.slot)).filter(|place| place.generation == id.generation);
        match place.and_then(|place| place.tenant.as_ref()) {
            Some(connection) if connection.sending => now_tick.saturating_sub(connection.send_since_tick),
            _ => 0,
        }
    }

    /// Connections whose socket is open.
    pub(super) fn count(&self) -> usize {
        self.places.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket() -> OwnedFd {
        std::net::UdpSocket::bind("127.0.0.1:0").unwrap().into()
    }

    #[test]
    fn a_slot_is_freed_only_when_the_kernel_holds_nothing() {
        let mut table = Connections::new();
        let id = table.insert(socket()).unwrap();
        let connection = table.tenant_mut(id);
        assert_eq!(connection.step(), Step::Receive);
        connection.receiving = true;
        connection.close(true);
        assert_eq!(connection.step(), Step::Cancel);
        connection.cancelling = true;
        assert_eq!(connection.step(), Step::Wait);
        // The cancellation found nothing: it is asked again.
        connection.cancelling = false;
        assert_eq!(connection.step(), Step::Cancel);
        connection.receiving = false;
        assert_eq!(connection.step(), Step::Free);
        assert!(table.open_mut(id).is_none(), "a closing connection is dead to its owner");
        table.free(id.slot);
        let next = table.insert(socket()).unwrap();
        assert_eq!((next.slot, next.generation), (id.slot, id.generation + 1));
        assert_eq!(table.append(id, b"late"), Err(TcpSendError::Gone));
        assert_eq!(table.append(next, b"mine"), Ok(()));
    }

    #[test]
    fn the_backlog_counts_what_the_kernel_has_not_taken() {
        let mut table = Connections::new();
        let id = table.insert(socket()).unwrap();
        let half = vec![7; TCP_BACKLOG_BYTES_MAX / 2];
        table.append(id, &half).unwrap();
        assert_eq!(table.tenant_mut(id).begin_send(10).len(), half.len());
        table.append(id, &half).unwrap();
        assert_eq!(table.append(id, b"x"), Err(TcpSendError::BacklogFull));
        assert_eq!(table.stalled_ticks(id, 25), 15);
        table.tenant_mut(id).finish_send(1);
        assert_eq!(table.append(id, b"x"), Ok(()));
        let connection = table.tenant_mut(id);
        assert_eq!(connection.begin_send(30).len(), half.len() - 1, "the rest of a short send comes first");
        connection.finish_send(half.len() - 1);
        assert_eq!(connection.begin_send(31).len(), half.len() + 1);
        assert_eq!(table.stalled_ticks(id, 31), 0);
    }

    #[test]
    fn the_table_is_bounded() {
        let mut table = Connections::new();
        table.places.extend((0..TCP_CONNECTIONS_MAX).map(|_| Place { generation: 0, tenant: None }));
        assert_eq!(table.insert(socket()), None);
    }
}
