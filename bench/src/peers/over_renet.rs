//! The game over renet 2.0 with its netcode transport, encryption on: as its examples have it.
//!
//! Owns socket, transport and server. Promises: bodies travel as renet's unreliable messages, one to a packet; renet
//! does its own handshake, ciphers, acknowledgements and channels. Never helps it along, and never holds it back.

use std::collections::HashMap;
use std::io;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use renet::{ClientId, ConnectionConfig, DefaultChannel, RenetServer, ServerEvent};
use renet_netcode::{NetcodeServerTransport, ServerAuthentication, ServerConfig};
use ringshard::clock::Clock;
use ringshard::limits::{BODY_BYTES_MAX, LANES};
use ringshard::tools::TIMEOUT_S;
use ringshard::wire::ids::SessionRef;
use ringshard::wire::transport::handshake::Identity;
use ringshard::wire::transport::token::{DEV_KEY, PROTOCOL_ID, UserData};

use super::game::Game;

/// Bytes that renet's own header takes of a datagram's payload.
const RENET_BYTES: usize = 16;
/// Most clients that renet's transport takes.
pub const CLIENTS_MAX: usize = 1_024;

struct Server {
    game: Game,
    server: RenetServer,
    transport: NetcodeServerTransport,
    sessions: HashMap<ClientId, SessionRef>,
    clients: HashMap<SessionRef, ClientId>,
}

/// Serves until it is told to stop. What the kernel does not take renet says in its log alone.
pub fn serve(socket: UdpSocket, game: Game, stopped: &AtomicBool) -> io::Result<u64> {
    let config = ServerConfig {
        current_time: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
        max_clients: CLIENTS_MAX,
        protocol_id: PROTOCOL_ID,
        public_addresses: vec![socket.local_addr()?],
        authentication: ServerAuthentication::Secure { private_key: DEV_KEY },
    };
    let transport = NetcodeServerTransport::new(config, socket)?;
    let server = RenetServer::new(ConnectionConfig::default());
    let mut server = Server { game, server, transport, sessions: HashMap::new(), clients: HashMap::new() };
    let (clock, mut updated, mut tick) = (Clock::starting(0), Instant::now(), 0);
    while !stopped.load(Ordering::Relaxed) {
        std::thread::sleep(clock.until_edge(tick + 1).unwrap_or(Duration::ZERO));
        tick = clock.tick_at(clock.now_ns()).max(tick + 1);
        let passed = updated.elapsed();
        updated += passed;
        server.tick(tick, passed).map_err(|error| io::Error::other(error.to_string()))?;
    }
    Ok(0)
}

impl Server {
    fn tick(&mut self, tick: u64, passed: Duration) -> Result<(), renet_netcode::NetcodeTransportError> {
        self.server.update(passed);
        self.transport.update(passed, &mut self.server)?;
        while let Some(event) = self.server.get_event() {
            if let ServerEvent::ClientDisconnected { client_id, .. } = event {
                self.hang_up(client_id);
            }
        }
        for client_id in self.server.clients_id() {
            while let Some(body) = self.server.receive_message(client_id, DefaultChannel::Unreliable) {
                // Its first message lets it in: renet writes its sequence number 0 in no byte at all, which the standard
                // does not know, so our clients are connected by renet's second keep-alive; it sends that to the idle.
                let known = self.sessions.get(&client_id).copied();
                let Some(session) = known.or_else(|| self.admit(client_id)) else { break };
                self.game.core.handle_body(session, &body);
            }
        }
        let Server { game, server, transport, clients, .. } = self;
        game.step(tick);
        game.send_due(|session, write| {
            let mut body = [0; BODY_BYTES_MAX];
            let length = write(&mut body[..BODY_BYTES_MAX - RENET_BYTES]);
            server.send_message(clients[&session], DefaultChannel::Unreliable, body[..length].to_vec());
        });
        game.core.end_tick();
        for ended in std::mem::take(&mut game.core.ended) {
            server.disconnect(clients[&ended.session]);
        }
        transport.send_packets(server);
        Ok(())
    }

    fn admit(&mut self, client_id: ClientId) -> Option<SessionRef> {
        let user_data =
            self.transport.user_data(client_id).map_or_else(UserData::default, |data| UserData::read(&data));
        let mut token_mac = [0; 16];
        token_mac[..8].copy_from_slice(&client_id.to_le_bytes());
        let identity = Identity { client_id, user_data, token_mac, expires_unix_s: u64::MAX / 2, timeout_s: TIMEOUT_S };
        let Some(session) = self.game.core.admit((client_id % LANES as u64) as u8, identity, false) else {
            self.server.disconnect(client_id);
            return None;
        };
        self.sessions.insert(client_id, session);
        self.clients.insert(session, client_id);
        Some(session)
    }

    fn hang_up(&mut self, client_id: ClientId) {
        if let Some(session) = self.sessions.remove(&client_id) {
            self.clients.remove(&session);
            self.game.core.hang_up(session);
        }
    }
}
