//! Whole conversations: our client and our server, and each of them with renetcode, which nobody here wrote.

use super::connection::{Connection, Packet};
use super::handshake::{Arrival, Handshake, HandshakeConfig, HandshakeOutcome, Identity, REPLY_BYTES_MAX};
use super::netcode_client::{ClientState, NetcodeClient};
use super::packet::{CONTROL_BYTES_MAX, DropReason, REQUEST_BYTES};
use super::token::{ConnectToken, DEV_KEY, PROTOCOL_ID, TokenGrant, TokenSecrets, UserData};
use crate::limits::BODY_BYTES_MAX;
use renetcode::{ClientAuthentication, NetcodeServer, ServerAuthentication, ServerConfig, ServerResult};
use std::net::SocketAddr;
use std::time::Duration;

const NOW_UNIX_S: u64 = 1_000;
const CLIENT_ID: u64 = 4_242;

fn server_address() -> SocketAddr {
    ([127, 0, 0, 1], 7_777).into()
}

fn client_address() -> SocketAddr {
    ([127, 0, 0, 1], 50_000).into()
}

fn wishes() -> UserData {
    UserData { spawn_point: Some((25_600, -512)), peaceful: true, reusable: false }
}

fn token() -> ConnectToken {
    let grant = TokenGrant {
        client_id: CLIENT_ID,
        create_unix_s: NOW_UNIX_S,
        expire_unix_s: NOW_UNIX_S + 30,
        timeout_s: 5,
        servers: &[server_address()],
        user_data: wishes(),
    };
    ConnectToken::issue(&grant, &TokenSecrets::random(), &DEV_KEY).unwrap()
}

/// Our side of one lane with at most one peer, as a shard will drive it.
struct Server {
    handshake: Handshake,
    peer: Option<(Connection, Identity)>,
    tick: u64,
    bodies: Vec<Vec<u8>>,
    ended: bool,
}

impl Server {
    fn new() -> Server {
        let handshake = Handshake::new(HandshakeConfig {
            private_key: DEV_KEY,
            challenge_key: [8; 32],
            public_addresses: vec![server_address()],
            lane: 0,
            start: 1,
        });
        Server { handshake, peer: None, tick: 0, bodies: Vec::new(), ended: false }
    }

    /// Takes a datagram and gives the answer, if there is one.
    fn handle(&mut self, mut datagram: Vec<u8>) -> Option<Vec<u8>> {
        if let Some((connection, _)) = &mut self.peer {
            match connection.open(self.tick, &mut datagram) {
                Ok(Packet::Body(body)) => self.bodies.push(body.to_vec()),
                Ok(Packet::Disconnect) => self.ended = true,
                Ok(_) | Err(_) => {}
            }
            return None;
        }
        let arrival = Arrival { now_unix_s: NOW_UNIX_S, now_tick: self.tick, from: client_address(), has_room: true };
        let mut reply = [0; REPLY_BYTES_MAX];
        match self.handshake.handle(&arrival, &mut datagram, &mut reply) {
            HandshakeOutcome::Reply(length) => Some(reply[..length].to_vec()),
            HandshakeOutcome::Accepted { connection, identity } => {
                self.peer = Some((connection, identity));
                Some(self.keep_alive())
            }
            HandshakeOutcome::Denied(_) | HandshakeOutcome::Drop(_) => None,
        }
    }

    fn connection(&mut self) -> &mut Connection {
        &mut self.peer.as_mut().expect("connected").0
    }

    fn keep_alive(&mut self) -> Vec<u8> {
        let mut out = [0; CONTROL_BYTES_MAX];
        let tick = self.tick;
        let length = self.connection().write_keep_alive(tick, 3, 32_768, &mut out);
        out[..length].to_vec()
    }

    fn seal(&mut self, body: &[u8]) -> Vec<u8> {
        let mut buffer = vec![0; BODY_BYTES_MAX + 25];
        let tick = self.tick;
        let connection = self.connection();
        let offset = connection.body_offset();
        buffer[offset..offset + body.len()].copy_from_slice(body);
        let length = connection.seal_body(tick, &mut buffer, body.len());
        buffer.truncate(length);
        buffer
    }

    fn disconnect(&mut self) -> Vec<u8> {
        let mut out = [0; CONTROL_BYTES_MAX];
        let length = self.connection().write_disconnect(&mut out);
        out[..length].to_vec()
    }
}

fn poll(client: &mut NetcodeClient, now: Duration) -> Option<Vec<u8>> {
    let mut out = [0; REQUEST_BYTES];
    client.poll_datagram(now, &mut out).map(|length| out[..length].to_vec())
}

fn seal(client: &mut NetcodeClient, now: Duration, body: &[u8]) -> Vec<u8> {
    let mut buffer = vec![0; BODY_BYTES_MAX + 25];
    let offset = client.body_offset();
    buffer[offset..offset + body.len()].copy_from_slice(body);
    let length = client.seal_body(now, &mut buffer, body.len());
    buffer.truncate(length);
    buffer
}

#[test]
fn our_client_joins_our_server_through_loss() {
    let token = token();
    let mut server = Server::new();
    let mut client = NetcodeClient::new(&token.write(), Duration::ZERO).unwrap();
    let mut sent = 0u32;
    for tick in 0..600 {
        server.tick = tick;
        let now = Duration::from_millis(tick * 1_000 / 60);
        while let Some(datagram) = poll(&mut client, now) {
            sent += 1;
            // Two of three datagrams to the server are lost, and every other answer.
            let answer = if sent.is_multiple_of(3) { server.handle(datagram) } else { None };
            if let Some(mut answer) = answer.filter(|_| sent.is_multiple_of(2)) {
                client.handle_datagram(now, &mut answer).unwrap();
            }
        }
        if server.peer.is_some() && server.connection().keep_alive_due(tick) {
            let mut keep_alive = server.keep_alive();
            client.handle_datagram(now, &mut keep_alive).unwrap();
        }
    }
    assert_eq!((client.state(), client.place()), (ClientState::Connected, (3, 32_768)));
    let identity = server.peer.as_ref().unwrap().1;
    assert_eq!((identity.client_id, identity.user_data), (CLIENT_ID, wishes()));
    assert_eq!(identity.token_mac, token.sealed[1_008..]);
    assert!(!server.connection().needs_keep_alive(), "the client's keep-alives confirmed it");
}

#[test]
fn bodies_of_every_size_go_both_ways_many_times() {
    let mut server = Server::new();
    let now = Duration::ZERO;
    let mut client = NetcodeClient::new(&token().write(), now).unwrap();
    for _ in 0..2 {
        let datagram = poll(&mut client, now).unwrap();
        client.handle_datagram(now, &mut server.handle(datagram).unwrap()).unwrap();
    }
    for length in 1..=BODY_BYTES_MAX {
        server.tick += 1;
        let body = vec![length as u8; length];
        let up = seal(&mut client, now, &body);
        server.handle(up.clone());
        assert_eq!(server.bodies.pop(), Some(body.clone()));
        server.handle(up);
        assert!(server.bodies.is_empty(), "a duplicate is no second body");
        let mut down = server.seal(&body);
        assert_eq!(client.handle_datagram(now, &mut down.clone()), Ok(Some(&body[..])));
        assert_eq!(client.handle_datagram(now, &mut down), Err(DropReason::Replayed));
    }
    client.disconnect();
    server.handle(poll(&mut client, now).unwrap());
    assert!(server.ended);
}

#[test]
fn renetcode_client_joins_our_server() {
    let token = token();
    // Its serialisation begins with the client id, which the standard's token does not have.
    let bytes = [&CLIENT_ID.to_le_bytes()[..], &token.write()].concat();
    let connect_token = renetcode::ConnectToken::read(&mut &bytes[..]).unwrap();
    let authentication = ClientAuthentication::Secure { connect_token };
    let mut client = renetcode::NetcodeClient::new(Duration::from_secs(NOW_UNIX_S), authentication).unwrap();
    let mut server = Server::new();
    for _ in 0..3 {
        let (datagram, to) = client.update(Duration::from_millis(300)).unwrap();
        assert_eq!(to, server_address());
        if let Some(mut answer) = server.handle(datagram.to_vec()) {
            assert_eq!(client.process_packet(&mut answer), None);
        }
    }
    assert!(client.is_connected());
    let identity = server.peer.as_ref().unwrap().1;
    assert_eq!((identity.client_id, identity.user_data), (CLIENT_ID, wishes()));
    assert!(!server.connection().needs_keep_alive(), "its keep-alive confirmed it");

    for number in 0..300u32 {
        server.tick += 1;
        let body = number.to_le_bytes();
        let datagram = client.generate_payload_packet(&body).unwrap().1.to_vec();
        server.handle(datagram);
        assert_eq!(server.bodies.pop(), Some(body.to_vec()));
        assert_eq!(client.process_packet(&mut server.seal(&body)), Some(&body[..]));
    }
    client.process_packet(&mut server.disconnect());
    assert!(client.is_disconnected());
}

#[test]
fn renetcode_client_can_leave_our_server() {
    let token = token();
    let bytes = [&CLIENT_ID.to_le_bytes()[..], &token.write()].concat();
    let connect_token = renetcode::ConnectToken::read(&mut &bytes[..]).unwrap();
    let authentication = ClientAuthentication::Secure { connect_token };
    let mut client = renetcode::NetcodeClient::new(Duration::from_secs(NOW_UNIX_S), authentication).unwrap();
    let mut server = Server::new();
    for _ in 0..2 {
        let datagram = client.update(Duration::from_millis(300)).unwrap().0.to_vec();
        client.process_packet(&mut server.handle(datagram).unwrap());
    }
    let datagram = client.disconnect().unwrap().1.to_vec();
    server.handle(datagram);
    assert!(server.ended);
}

fn renetcode_server() -> NetcodeServer {
    NetcodeServer::new(ServerConfig {
        current_time: Duration::from_secs(NOW_UNIX_S),
        max_clients: 8,
        protocol_id: PROTOCOL_ID,
        public_addresses: vec![server_address()],
        authentication: ServerAuthentication::Secure { private_key: DEV_KEY },
    })
}

/// Lets both talk until the client is connected, and gives the time. Renetcode sends sequence 0 in no bytes at all,
/// which the standard tells us to ignore, so its first challenge and first keep-alive are lost on us.
fn join_renetcode(server: &mut NetcodeServer, client: &mut NetcodeClient) -> Duration {
    let step = Duration::from_millis(300);
    let mut now = Duration::ZERO;
    for _ in 0..6 {
        if let Some(mut datagram) = poll(client, now) {
            match server.process_packet(client_address(), &mut datagram) {
                ServerResult::PacketToSend { payload, .. } => {
                    let _ = client.handle_datagram(now, payload);
                }
                ServerResult::ClientConnected { client_id, user_data, payload, .. } => {
                    assert_eq!((client_id, UserData::read(&user_data)), (CLIENT_ID, wishes()));
                    assert_eq!(client.handle_datagram(now, payload), Err(DropReason::SequenceBytes));
                }
                ServerResult::None => {}
                other => panic!("unexpected {other:?}"),
            }
        }
        now += step;
        server.update(step);
        if let ServerResult::PacketToSend { payload, .. } = server.update_client(CLIENT_ID) {
            client.handle_datagram(now, payload).unwrap();
        }
    }
    assert_eq!((client.state(), client.place()), (ClientState::Connected, (0, 8)));
    now
}

#[test]
fn our_client_joins_a_renetcode_server() {
    let mut server = renetcode_server();
    let mut client = NetcodeClient::new(&token().write(), Duration::ZERO).unwrap();
    let now = join_renetcode(&mut server, &mut client);
    for number in 0..300u32 {
        let body = number.to_le_bytes();
        let mut up = seal(&mut client, now, &body);
        let result = server.process_packet(client_address(), &mut up);
        assert_eq!(result, ServerResult::Payload { client_id: CLIENT_ID, payload: &body });
        let (_, down) = server.generate_payload_packet(CLIENT_ID, &body).unwrap();
        assert_eq!(client.handle_datagram(now, down), Ok(Some(&body[..])));
    }
    client.disconnect();
    let mut goodbye = poll(&mut client, now).unwrap();
    let result = server.process_packet(client_address(), &mut goodbye);
    assert!(matches!(result, ServerResult::ClientDisconnected { client_id: CLIENT_ID, .. }));
}

#[test]
fn a_renetcode_servers_goodbye_is_understood() {
    let mut server = renetcode_server();
    let mut client = NetcodeClient::new(&token().write(), Duration::ZERO).unwrap();
    let now = join_renetcode(&mut server, &mut client);
    let ServerResult::ClientDisconnected { payload: Some(goodbye), .. } = server.disconnect(CLIENT_ID) else {
        panic!("no goodbye");
    };
    assert_eq!(client.handle_datagram(now, goodbye), Ok(None));
    assert_eq!(client.state(), ClientState::Disconnected);
}
