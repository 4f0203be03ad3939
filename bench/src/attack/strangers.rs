//! Hostile senders who never get in: noise, used tokens, connections that show nothing.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use ringshard::limits::DATAGRAM_BYTES_MAX;
use ringshard::tools::dev_token;
use ringshard::wire::transport::netcode_client::{ClientState, NetcodeClient};
use ringshard::wire::transport::token::UserData;
use socket2::{Domain, Protocol, Socket, Type};

use super::{Counts, Sender};

/// Client ids of hostile players and of the tokens that strangers hold.
pub const CLIENT_IDS_FROM: u64 = 1 << 40;
/// Seconds that their tokens are good for.
const TOKEN_TTL_S: u64 = 3_600;
/// Kind of a netcode challenge, the low bits of a datagram's first byte: all that a stranger with a good token is answered.
const CHALLENGE: u8 = 2;
/// Longest that a connection without a token may live.
const UNPROVEN_MAX: Duration = Duration::from_secs(8);
/// Between two bytes of a slow connection.
const BYTE_EVERY: Duration = Duration::from_secs(1);

/// A socket of its own towards the server.
pub fn socket(server: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(if server.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" }).expect("a free port");
    socket.connect(server).expect("it is on loopback");
    socket.set_nonblocking(true).expect("a socket");
    socket
}

/// A good token for the `number`-th hostile player.
pub fn token(server: SocketAddr, number: u64, user_data: UserData) -> Vec<u8> {
    dev_token(&[server], CLIENT_IDS_FROM + number, TOKEN_TTL_S, user_data).expect("one server is named")
}

/// Counts what came, datagram by datagram; gives each one.
fn drain(socket: &UdpSocket, counts: &Counts, mut each: impl FnMut(&mut [u8])) {
    let mut bytes = [0; 2_048];
    while let Ok(length) = socket.recv(&mut bytes) {
        counts.replied(length);
        each(&mut bytes[..length]);
    }
}

/// Noise from many ports.
pub struct Forged {
    sockets: Vec<UdpSocket>,
    random: u64,
    number: usize,
}

impl Forged {
    /// From so many ports.
    pub fn new(server: SocketAddr, count: usize) -> Forged {
        Forged { sockets: (0..count).map(|_| socket(server)).collect(), random: 1, number: 0 }
    }
}

impl Sender for Forged {
    fn round(&mut self, _: Duration, due: u64, counts: &Counts) {
        let mut bytes = [0u8; 1_400];
        for _ in 0..due {
            for chunk in bytes.chunks_exact_mut(8) {
                self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                chunk.copy_from_slice(&(self.random ^ self.random >> 29).to_le_bytes());
            }
            let mut length = [18, 40, 100, 333, 1_077, 1_078, 1_079, 1_400][self.number % 8];
            if self.number.is_multiple_of(3) {
                // As a request, up to its seal.
                length = DATAGRAM_BYTES_MAX;
                bytes[0] = 0;
                bytes[1..14].copy_from_slice(b"NETCODE 1.02\0");
                bytes[14..22].copy_from_slice(&ringshard::wire::transport::token::PROTOCOL_ID.to_le_bytes());
                bytes[22..30].copy_from_slice(&u64::MAX.to_le_bytes());
            }
            let socket = &self.sockets[self.number % self.sockets.len()];
            self.number += 1;
            // A full buffer is this side's own slowness.
            if socket.send(&bytes[..length]).is_ok() {
                counts.sent(length);
            }
        }
        for socket in &self.sockets {
            drain(socket, counts, |_| counts.admitted());
        }
    }
}

/// One honest player's handshake, and those who replay it.
pub struct UsedToken {
    server: SocketAddr,
    honest: UdpSocket,
    netcode: NetcodeClient,
    token: Vec<u8>,
    /// What the honest one sent until it was in.
    recorded: Vec<Vec<u8>>,
    foreign: Vec<UdpSocket>,
    next: usize,
    streams: Vec<(TcpStream, Duration)>,
    tried: Duration,
}

impl UsedToken {
    /// Replayed from so many ports.
    pub fn new(server: SocketAddr, count: usize) -> UsedToken {
        let token = token(server, 0, UserData::default());
        UsedToken {
            server,
            honest: socket(server),
            netcode: NetcodeClient::new(&token, Duration::ZERO).expect("a good token"),
            token,
            recorded: Vec::new(),
            foreign: (0..count).map(|_| socket(server)).collect(),
            next: 0,
            streams: Vec::new(),
            tried: Duration::ZERO,
        }
    }

    /// The honest one: joins and stays.
    fn play(&mut self, now: Duration) {
        let mut bytes = [0; 2_048];
        while let Ok(length) = self.honest.recv(&mut bytes) {
            // What does not open is not for it.
            let _ = self.netcode.handle_datagram(now, &mut bytes[..length]);
        }
        let joining = self.netcode.state() != ClientState::Connected;
        let mut out = [0; DATAGRAM_BYTES_MAX];
        while let Some(length) = self.netcode.poll_datagram(now, &mut out) {
            if joining && self.recorded.len() < 16 {
                self.recorded.push(out[..length].to_vec());
            }
            let _ = self.honest.send(&out[..length]);
        }
    }

    /// Its token once more, as the first frame of a stream, once a second.
    fn try_stream(&mut self, now: Duration, counts: &Counts) {
        if now >= self.tried + Duration::from_secs(1) {
            self.tried = now;
            if let Ok(mut stream) = TcpStream::connect(self.server) {
                let mut frame = (self.token.len() as u32).to_le_bytes().to_vec();
                frame.extend_from_slice(&self.token);
                let opened = stream.write_all(&frame).is_ok() && stream.set_nonblocking(true).is_ok();
                if opened {
                    counts.sent(frame.len());
                    self.streams.push((stream, now));
                }
            }
        }
        // It may be told why, and then the stream must end.
        self.streams.retain_mut(|(stream, since)| {
            let open = is_open(stream, counts).is_some();
            let stays = open && now > *since + UNPROVEN_MAX;
            if stays {
                counts.admitted();
            }
            open && !stays
        });
    }
}

impl Sender for UsedToken {
    fn round(&mut self, now: Duration, due: u64, counts: &Counts) {
        self.play(now);
        if self.netcode.state() != ClientState::Connected {
            return;
        }
        for _ in 0..due {
            let at = self.next % (self.foreign.len() * self.recorded.len());
            self.next += 1;
            let (port, datagram) = (at / self.recorded.len(), &self.recorded[at % self.recorded.len()]);
            if self.foreign[port].send(datagram).is_ok() {
                counts.sent(datagram.len());
            }
        }
        for socket in &self.foreign {
            // A challenge is sealed far from the sequences of sessions; anything else would be the session's own.
            drain(socket, counts, |bytes| {
                if bytes[0] & 15 != CHALLENGE {
                    counts.admitted();
                }
            });
        }
        self.try_stream(now, counts);
    }
}

/// Whether a stream is open, `Some(true)` when something came; `None`: it was closed.
fn is_open(stream: &mut TcpStream, counts: &Counts) -> Option<bool> {
    let mut bytes = [0; 512];
    match stream.read(&mut bytes) {
        Ok(0) => None,
        Ok(length) => {
            counts.replied(length);
            Some(true)
        }
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Some(false),
        Err(_) => None,
    }
}

/// TCP connections that show their token slowly or not at all; the silent ones begin handshakes as well.
pub struct Streams {
    server: SocketAddr,
    is_slow: bool,
    streams: Vec<Option<(TcpStream, Duration, usize)>>,
    token: Vec<u8>,
    half_open: Vec<UdpSocket>,
    number: u64,
}

impl Streams {
    /// So many of them.
    pub fn new(server: SocketAddr, count: usize, is_slow: bool) -> Streams {
        let mut frame = (ringshard::limits::TOKEN_BYTES as u32).to_le_bytes().to_vec();
        frame.extend(token(server, 1, UserData::default()));
        let half_open = if is_slow { Vec::new() } else { (0..count).map(|_| socket(server)).collect() };
        let streams = (0..count).map(|_| None).collect();
        Streams { server, is_slow, streams, token: frame, half_open, number: 0 }
    }

    /// A connection that does not wait for the server to take it.
    fn connect(&self) -> Option<TcpStream> {
        let socket = Socket::new(Domain::for_address(self.server), Type::STREAM, Some(Protocol::TCP)).ok()?;
        socket.set_nonblocking(true).ok()?;
        // It goes on in the background; whether it came up shows when it is used.
        let _ = socket.connect(&self.server.into());
        Some(socket.into())
    }

    /// A handshake that is begun and left.
    fn begin(&mut self, now: Duration, counts: &Counts) {
        let at = self.number as usize % self.half_open.len();
        self.number += 1;
        let token = token(self.server, 1_000 + self.number, UserData::default());
        let mut netcode = NetcodeClient::new(&token, now).expect("a good token");
        let mut out = [0; DATAGRAM_BYTES_MAX];
        let length = netcode.poll_datagram(now, &mut out).expect("a request is due at first");
        if self.half_open[at].send(&out[..length]).is_ok() {
            counts.sent(length);
        }
    }
}

impl Sender for Streams {
    fn round(&mut self, now: Duration, due: u64, counts: &Counts) {
        let mut due = due;
        for at in 0..self.streams.len() {
            let Some((mut stream, since, shown)) = self.streams[at].take() else {
                // A few in each round: a burst of connects is another attack.
                if due > 0
                    && let Some(stream) = self.connect()
                {
                    due -= 1;
                    counts.sent(0);
                    self.streams[at] = Some((stream, now, 0));
                }
                continue;
            };
            let Some(answered) = is_open(&mut stream, counts) else { continue };
            if answered || now > since + UNPROVEN_MAX {
                counts.admitted();
                continue;
            }
            let wanted = ((now - since).as_nanos() / BYTE_EVERY.as_nanos()) as usize;
            let mut shown = shown;
            if self.is_slow && shown < wanted && stream.write(&self.token[shown..=shown]).is_ok() {
                shown += 1;
                counts.sent(1);
            }
            self.streams[at] = Some((stream, since, shown));
        }
        if !self.is_slow {
            (0..due).for_each(|_| self.begin(now, counts));
            for socket in &self.half_open {
                drain(socket, counts, |_| ());
            }
        }
    }
}
