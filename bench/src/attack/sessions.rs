//! Hostile players: their tokens are good, and what they send is not.

use std::net::SocketAddr;
use std::time::Duration;

use ringshard::limits::{COMMANDS_PER_BODY_MAX, FRAGMENTS_MAX};
use ringshard::wire::body::{BodyWriter, kind};
use ringshard::wire::client::{ClientOptions, ClientSession};
use ringshard::wire::generated::structs;
use ringshard::wire::goods::{ItemRef, Offer};
use ringshard::wire::ids::EntityId;
use ringshard::wire::messages::{GoodsRequest, Request};
use ringshard::wire::transport::token::UserData;
use ringshard::wire::units::GRID_PER_M;

use super::strangers::token;
use super::{Counts, Sender};
use crate::swarm::link::{Link, RECEIVE_BYTES, Transport};

/// Where they stand, in the middle of the land, metres.
const PLACE_M: i32 = 2_048;
/// Requests that one puts into its channel at once.
const BURST: usize = 300;

/// A player that somebody steers by hand.
struct Puppet {
    server: SocketAddr,
    transport: Transport,
    number: u64,
    link: Link,
    session: ClientSession,
    sequence: u16,
    plays: bool,
}

impl Puppet {
    fn new(server: SocketAddr, number: u64, transport: Transport) -> Puppet {
        let spawn = (PLACE_M * GRID_PER_M + number as i32 * GRID_PER_M, PLACE_M * GRID_PER_M);
        let user_data = UserData { spawn_point: Some(spawn), peaceful: true, reusable: false };
        let token = token(server, 100 + number, user_data);
        let link = Link::open(transport, server, &token, Duration::ZERO).expect("a free port");
        let options = ClientOptions { packed: true, decode: false, reliable_transport: transport == Transport::Tcp };
        Puppet { server, transport, number, link, session: ClientSession::new(options), sequence: 0, plays: false }
    }

    /// Reads what came and says what netcode wants said. True: it plays.
    fn tend(&mut self, now: Duration, counts: &Counts) -> bool {
        let mut bytes = [0; RECEIVE_BYTES];
        while let Some(length) = self.link.read(&mut bytes) {
            counts.replied(length);
            let Puppet { link, session, .. } = self;
            // What it is told does not interest it.
            link.take(now, &mut bytes[..length], |body| {
                let _ = session.handle_body(body);
            });
            while self.session.poll_message().is_some() {}
            if length == 0 {
                break;
            }
        }
        self.link.tend(now);
        if self.link.end().is_some() {
            // Cut: it comes again, with a newer token.
            *self = Puppet::new(self.server, self.number, self.transport);
        }
        let plays = self.session.welcome().is_some() && self.link.is_open();
        if plays && !std::mem::replace(&mut self.plays, true) {
            counts.admitted();
        }
        plays
    }

    /// Sends a body as its session has it.
    fn send(&mut self, now: Duration, counts: &Counts) {
        if !self.link.is_open() {
            return;
        }
        let Puppet { link, session, .. } = self;
        let before = link.traffic.bytes_out;
        link.send(now, |out| session.poll_body((now.as_nanos() * 60 / 1_000_000_000) as u32, 0, out));
        counts.sent((link.traffic.bytes_out - before) as usize);
    }

    /// Sends a body of its own making, as the next one.
    fn send_raw(&mut self, now: Duration, counts: &Counts, write: impl FnOnce(&mut BodyWriter<'_>)) {
        if !self.link.is_open() {
            return;
        }
        self.sequence = self.sequence.wrapping_add(1);
        let (before, sequence) = (self.link.traffic.bytes_out, self.sequence);
        self.link.send(now, |out| {
            let mut body = BodyWriter::client(&mut out[..1_052], structs::ClientHeader::new(0, sequence, 0, 0, 0));
            write(&mut body);
            body.finish()
        });
        counts.sent((self.link.traffic.bytes_out - before) as usize);
    }
}

/// Bodies full of commands, far more than there are ticks.
pub struct Flood {
    puppets: Vec<Puppet>,
    tick: u32,
    next: usize,
}

impl Flood {
    /// So many players, every other one by TCP.
    pub fn new(server: SocketAddr, count: usize) -> Flood {
        let transport = |number: u64| if number.is_multiple_of(2) { Transport::Udp } else { Transport::Tcp };
        let puppets = (0..count as u64).map(|number| Puppet::new(server, number, transport(number))).collect();
        Flood { puppets, tick: 1, next: 0 }
    }
}

impl Sender for Flood {
    fn round(&mut self, now: Duration, due: u64, counts: &Counts) {
        for puppet in &mut self.puppets {
            if !puppet.tend(now, counts) {
                puppet.send(now, counts);
            }
        }
        for _ in 0..due {
            let at = self.next % self.puppets.len();
            self.next += 1;
            let (puppet, tick) = (&mut self.puppets[at], self.tick);
            self.tick = tick.wrapping_add(1);
            if puppet.plays {
                let command = structs::Command::new(tick as u16, 127, 0, 1, 0, 0);
                puppet.send_raw(now, counts, |body| {
                    body.commands(tick, std::iter::repeat_n(command, COMMANDS_PER_BODY_MAX));
                });
            }
        }
    }
}

/// What an abuser does.
#[derive(Clone, Copy)]
enum Abuse {
    /// Emotes without end.
    Emotes,
    /// Requests that nobody understands.
    Unknown,
    /// Numbers that leap to the end of all numbers.
    Leaps,
    /// Fragments of one byte.
    Crumbs,
    /// Mails for a price, to whoever comes first.
    Mails,
    /// Hundreds of requests in one breath, by TCP.
    Bursts,
}

const ABUSES: [Abuse; 6] = [Abuse::Emotes, Abuse::Unknown, Abuse::Leaps, Abuse::Crumbs, Abuse::Mails, Abuse::Bursts];

/// Players who ask for what nobody should.
pub struct Abusers {
    puppets: Vec<(Puppet, Abuse)>,
    next: usize,
    order: u64,
}

impl Abusers {
    /// So many, each with one bad habit.
    pub fn new(server: SocketAddr, count: usize) -> Abusers {
        let puppet = |number: usize| {
            let abuse = ABUSES[number % ABUSES.len()];
            let transport = if matches!(abuse, Abuse::Bursts) { Transport::Tcp } else { Transport::Udp };
            (Puppet::new(server, 50 + number as u64, transport), abuse)
        };
        Abusers { puppets: (0..count).map(puppet).collect(), next: 0, order: 0 }
    }
}

/// One bad thing. A full channel is what they are after, and nothing to them.
fn abuse(puppet: &mut Puppet, abuse: Abuse, order: u64, now: Duration, counts: &Counts) {
    let session = &mut puppet.session;
    let _ = match abuse {
        Abuse::Emotes => session.request(Request::Emote { kind: 1 }).map(|_| ()),
        Abuse::Unknown => {
            // The last byte of a table's body, or any other, is not what it was.
            let mut bytes = Request::Emote { kind: 7 }.encode(order);
            let at = order as usize % bytes.len();
            bytes[at] ^= 0xa5;
            session.send(bytes)
        }
        Abuse::Leaps => session.order(u64::MAX - order, Request::Goods(GoodsRequest::TakeMail { mail: 1 })),
        Abuse::Mails => {
            let offer = Offer::new(1, &[] as &[ItemRef]).expect("no item fits");
            let to = EntityId::character(1 + order % 4);
            session.order(order, Request::Goods(GoodsRequest::Send { to, offer, price: 1_000_000 }))
        }
        Abuse::Bursts => (0..BURST).try_for_each(|_| session.request(Request::Emote { kind: 2 }).map(|_| ())),
        Abuse::Crumbs => {
            puppet.send_raw(now, counts, |body| {
                for fragment in 0..40u8 {
                    let header = structs::FragmentHeader::new((order % 64) as u16, fragment, FRAGMENTS_MAX as u8);
                    body.section_parts(kind::RELIABLE_UNORDERED, &[&header.0, &[fragment]]);
                }
            });
            return;
        }
    };
    puppet.send(now, counts);
}

impl Sender for Abusers {
    fn round(&mut self, now: Duration, due: u64, counts: &Counts) {
        for (puppet, _) in &mut self.puppets {
            if !puppet.tend(now, counts) {
                puppet.send(now, counts);
            }
        }
        for _ in 0..due {
            let at = self.next % self.puppets.len();
            self.next += 1;
            self.order += 1;
            let (puppet, habit) = &mut self.puppets[at];
            if puppet.plays {
                abuse(puppet, *habit, self.order, now, counts);
            }
        }
    }
}
