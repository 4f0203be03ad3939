//! The game over a tokio UDP socket: a current-thread runtime, one datagram a call, as its guide has it.
//!
//! Owns socket and links. Promises: handshake, ciphers and sessions are the product's own code, so that what is left to
//! compare is how datagrams come and go. Never sends a tick's datagrams together: tokio has no call for that.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ringshard::clock::{Clock, unix_s};
use ringshard::limits::{DATAGRAM_BYTES_MAX, DATAGRAM_SEND_BYTES_MAX, LANES};
use ringshard::realm::links::{Links, Outgoing, keep_alive, seal};
use ringshard::wire::ids::ShardId;
use ringshard::wire::transport::handshake::{Arrival, HandshakeConfig};
use ringshard::wire::transport::packet::CONTROL_BYTES_MAX;
use ringshard::wire::transport::token::{DEV_KEY, random_bytes};

use super::game::Game;

/// Ticks between two looks for silent peers, as a shard has it.
const SWEEP_TICKS: u64 = 6;

struct Server {
    game: Game,
    links: Links,
    socket: tokio::net::UdpSocket,
    tick: u64,
    /// Datagrams that the kernel did not take.
    refused: u64,
}

/// Serves until it is told to stop; gives the datagrams that the kernel did not take.
pub fn serve(socket: UdpSocket, game: Game, stopped: &AtomicBool) -> io::Result<u64> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    runtime.block_on(async {
        let links = Links::new(handshakes(socket.local_addr()?), ShardId(0), true);
        let socket = tokio::net::UdpSocket::from_std(socket)?;
        let mut server = Server { game, links, socket, tick: 0, refused: 0 };
        let clock = Clock::starting(0);
        let mut buffer = [0; DATAGRAM_BYTES_MAX];
        while !stopped.load(Ordering::Relaxed) {
            let edge = tokio::time::sleep(clock.until_edge(server.tick + 1).unwrap_or(Duration::ZERO));
            tokio::pin!(edge);
            loop {
                tokio::select! {
                    biased;
                    () = &mut edge => break,
                    received = server.socket.recv_from(&mut buffer) => {
                        let (length, from) = received?;
                        server.receive(from, &mut buffer[..length]);
                    }
                }
            }
            server.tick(clock.tick_at(clock.now_ns()).max(server.tick + 1));
        }
        Ok(server.refused)
    })
}

/// Any lane may be a peer's: there is one socket.
fn handshakes(address: SocketAddr) -> Vec<HandshakeConfig> {
    let challenge_key = random_bytes();
    let lane = |lane: usize| HandshakeConfig {
        private_key: DEV_KEY,
        challenge_key,
        public_addresses: vec![address],
        lane: lane as u8,
        start: 1,
    };
    (0..LANES).map(lane).collect()
}

impl Server {
    fn receive(&mut self, from: SocketAddr, datagram: &mut [u8]) {
        let lane = (usize::from(from.port()) % LANES) as u8;
        let has_room = self.game.core.no_admission(lane).is_none();
        let arrival = Arrival { now_unix_s: unix_s(), now_tick: self.tick, from, has_room };
        self.links.handle_datagram(&mut self.game.core, lane, arrival, datagram);
    }

    fn tick(&mut self, tick: u64) {
        self.tick = tick;
        let Server { game, links, socket, refused, .. } = self;
        game.step(tick);
        let mut send = |bytes: &[u8], to| *refused += u64::from(socket.try_send_to(bytes, to).is_err());
        game.send_due(|session, write| {
            let Some(Outgoing::Udp { connection, address }) = links.outgoing(session) else { return };
            if connection.needs_keep_alive() {
                let mut alive = [0; CONTROL_BYTES_MAX];
                let length = keep_alive(connection, session, tick, &mut alive);
                send(&alive[..length], address);
            }
            let mut space = [0; DATAGRAM_SEND_BYTES_MAX];
            let length = seal(connection, tick, &mut space, write);
            send(&space[..length], address);
        });
        game.core.end_tick();
        while let Some(ended) = game.core.ended.pop() {
            links.end(ended);
        }
        if tick.is_multiple_of(SWEEP_TICKS) {
            links.sweep(&mut game.core, tick, |_| 0);
        }
        for reply in &links.replies {
            send(links.reply_bytes(reply), reply.to);
        }
        links.clear_replies();
    }
}
