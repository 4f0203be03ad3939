//! A client that only makes load: netcode, commands and acknowledgements, nothing decoded.
//!
//! Owns its socket and session. Promises: what it sends is what a game's client sends, every command that the server did
//! not name as applied in every body; a turn's bodies differ in nothing but their numbers and may leave as one burst.

use std::io::{self, IoSlice};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use ringshard::clock::unix_s;
use ringshard::exit::{Code, Failure};
use ringshard::io::never_fragment;
use ringshard::limits::{COMMANDS_REMEMBERED_MAX, DATAGRAM_BYTES_MAX};
use ringshard::wire::client::{ClientOptions, ClientSession};
use ringshard::wire::generated::structs;
use ringshard::wire::transport::netcode_client::{ClientState, NetcodeClient};
use ringshard::wire::transport::token::{ConnectToken, DEV_KEY, TokenGrant, TokenSecrets, UserData};

use crate::drive::{Counts, Flow};

/// Datagrams of a burst at the most.
pub const BURST_MAX: usize = 8;
/// Seconds for which a token is good.
const TOKEN_TTL_S: u64 = 60;
/// Seconds of silence after which a session ends: longer than its server is held still while another is measured.
const TIMEOUT_S: i32 = 60;
/// Room for one sealed datagram of a burst: all commands that a body can carry, and no messages.
const SPACE_BYTES: usize = 512;

/// What sealing adds behind a body.
const SEAL_BYTES: usize = 16;

/// See the module.
pub struct Client {
    socket: UdpSocket,
    netcode: NetcodeClient,
    session: ClientSession,
    /// Direction that it walks, 1/65,536 turn.
    yaw: u16,
    /// Client ticks so far.
    ticks: u64,
    /// When its character first stood in the world.
    playing_since: Option<Duration>,
    /// Bodies of each of its next turns, up to [`BURST_MAX`].
    pub burst: usize,
}

impl Client {
    /// The `number`-th client, which asks to join at its first turn.
    pub fn new(number: u64, server: SocketAddr, now: Duration) -> Result<io::Result<Client>, Failure> {
        let wishes = UserData { spawn_point: None, peaceful: true, reusable: false };
        let now_unix_s = unix_s();
        let servers = [server];
        let grant = TokenGrant {
            client_id: number + 1,
            create_unix_s: now_unix_s,
            expire_unix_s: now_unix_s + TOKEN_TTL_S,
            timeout_s: TIMEOUT_S,
            servers: &servers,
            user_data: wishes,
        };
        let failed = |error| Failure::new(Code::Failed, format!("no token can be made: {error:?}"));
        let token = ConnectToken::issue(&grant, &TokenSecrets::random(), &DEV_KEY).map_err(failed)?.write();
        let open = || {
            let socket = UdpSocket::bind(if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
            never_fragment(&socket)?;
            socket.connect(server)?;
            socket.set_nonblocking(true)?;
            Ok(Client {
                socket,
                netcode: NetcodeClient::new(&token, now).expect("our own token is well formed"),
                session: ClientSession::new(ClientOptions { packed: true, decode: false, reliable_transport: false }),
                yaw: (number as u16).wrapping_mul(40_503),
                ticks: 0,
                playing_since: None,
                burst: 1,
            })
        };
        Ok(open())
    }

    /// Whether its character stands in the world.
    pub fn plays(&self) -> bool {
        self.playing_since.is_some()
    }

    /// Since when it does.
    pub fn playing_since(&self) -> Option<Duration> {
        self.playing_since
    }

    /// Why it never will, or does no more.
    pub fn ended(&self) -> Option<ClientState> {
        let state = self.netcode.state();
        let goes_on = [ClientState::SendingRequest, ClientState::SendingResponse, ClientState::Connected];
        (!goes_on.contains(&state)).then_some(state)
    }

    /// Its socket's port.
    pub fn port(&self) -> Option<u16> {
        self.socket.local_addr().ok().map(|address| address.port())
    }

    /// Says good-bye.
    pub fn leave(&mut self, now: Duration) {
        self.netcode.disconnect();
        self.tend(now, &mut Counts::default());
    }

    /// What the connection itself has to say.
    fn tend(&mut self, now: Duration, counts: &mut Counts) {
        let mut out = [0; DATAGRAM_BYTES_MAX];
        while let Some(length) = self.netcode.poll_datagram(now, &mut out) {
            note(self.socket.send(&out[..length]), 1, counts);
        }
    }

    /// The commands of the ticks that have passed until `due`, at 60 a second.
    fn want(&mut self, due: Duration) {
        let ticks = (due.as_nanos() * 60 / 1_000_000_000) as u64;
        let first = self.ticks.max(ticks.saturating_sub(COMMANDS_REMEMBERED_MAX as u64));
        for _ in first..ticks {
            self.session.push_command(structs::Command::new(self.yaw, 127, 0, 0, 0, 0), 0);
        }
        self.ticks = ticks;
    }

    /// Sends bodies of one size together, and those of another after them: a longer number makes a longer datagram.
    fn send_bodies(&mut self, now: Duration, counts: &mut Counts) {
        let tick = (now.as_nanos() * 60 / 1_000_000_000) as u32;
        let mut burst = [0; BURST_MAX * SPACE_BYTES];
        let (mut used, mut size, mut together) = (0, 0, 0);
        for _ in 0..self.burst {
            let space = &mut burst[used..used + SPACE_BYTES];
            let offset = self.netcode.body_offset();
            let length = self.session.poll_body(tick, 0, &mut space[offset..SPACE_BYTES - SEAL_BYTES]);
            let length = self.netcode.seal_body(now, space, length);
            if together > 0 && length != size {
                self.send_together(&burst[..used], size, together, counts);
                burst.copy_within(used..used + length, 0);
                (used, together) = (0, 0);
            }
            (used, size, together) = (used + length, length, together + 1);
        }
        self.send_together(&burst[..used], size, together, counts);
    }

    fn send_together(&self, bytes: &[u8], size: usize, datagrams: u64, counts: &mut Counts) {
        let sent = match datagrams {
            1 => self.socket.send(bytes),
            _ => {
                let size = size as u16;
                let parted = [ControlMessage::UdpGsoSegments(&size)];
                let (socket, flags) = (self.socket.as_raw_fd(), MsgFlags::empty());
                sendmsg::<()>(socket, &[IoSlice::new(bytes)], &parted, flags, None).map_err(io::Error::from)
            }
        };
        note(sent, datagrams, counts);
    }
}

/// Counts what became of datagrams that were sent.
pub fn note(sent: io::Result<usize>, datagrams: u64, counts: &mut Counts) {
    match sent {
        Ok(bytes) => {
            counts.sent += datagrams;
            counts.sent_bytes += bytes as u64;
        }
        Err(_) => counts.blocked += datagrams,
    }
}

impl Flow for Client {
    fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    fn turn(&mut self, now: Duration, due: Duration, counts: &mut Counts) {
        if self.netcode.state() != ClientState::Connected {
            self.tend(now, counts);
            return;
        }
        if self.plays() {
            self.want(due);
        }
        self.send_bodies(now, counts);
    }

    fn hear(&mut self, now: Duration, datagram: &mut [u8], counts: &mut Counts) {
        let bytes = datagram.len() as u64;
        match self.netcode.handle_datagram(now, datagram) {
            Ok(Some(body)) if self.session.handle_body(body).is_ok() => {
                counts.heard += 1;
                counts.heard_bytes += bytes;
                if self.playing_since.is_none() && self.session.own_state().is_some() {
                    self.playing_since = Some(now);
                }
                // Who only makes load asks for nothing: what it is told is read and left.
                while self.session.poll_message().is_some() {}
            }
            Ok(None) => self.tend(now, counts),
            Ok(Some(_)) | Err(_) => counts.wrong += 1,
        }
    }
}
