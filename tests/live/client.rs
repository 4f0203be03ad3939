//! Clients over real sockets: a bot by UDP, a dumb tool by TCP.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use ringshard::limits::{BODY_BYTES_MAX, CLIENT_BODY_BYTES_MAX};
use ringshard::realm::bots::{Bot, Haunt};
use ringshard::wire::body::{BodyWriter, PONG_MARKER, kind};
use ringshard::wire::client::ClientOptions;
use ringshard::wire::generated::structs;
use ringshard::wire::transport::netcode_client::{ClientState, NetcodeClient};
use ringshard::wire::transport::stream::write_frame;
use ringshard::wire::transport::token::{ConnectToken, DEV_KEY, TokenGrant, TokenSecrets, UserData};
use std::sync::{Arc, OnceLock};

use super::server::Server;
use ringshard::world::land::Land;

/// Seconds of silence after which either side gives a session up, of most.
const TIMEOUT_S: i32 = 5;

pub fn token(key: &[u8; 32], server: SocketAddr, client_id: u64, ttl_s: u64, user_data: UserData) -> Vec<u8> {
    token_with_timeout(key, server, client_id, (ttl_s, TIMEOUT_S), user_data)
}

fn token_with_timeout(
    key: &[u8; 32],
    server: SocketAddr,
    client_id: u64,
    (ttl_s, timeout_s): (u64, i32),
    user_data: UserData,
) -> Vec<u8> {
    let now = ringshard::clock::unix_s();
    let servers = [server];
    let grant = TokenGrant {
        client_id,
        create_unix_s: now,
        expire_unix_s: now + ttl_s,
        timeout_s,
        servers: &servers,
        user_data,
    };
    ConnectToken::issue(&grant, &TokenSecrets::random(), key).expect("a good grant").write().to_vec()
}

pub fn dev_token(server: SocketAddr, client_id: u64, ttl_s: u64, user_data: UserData) -> Vec<u8> {
    token(&DEV_KEY, server, client_id, ttl_s, user_data)
}

/// The default land.
fn land() -> Arc<Land> {
    static LAND: OnceLock<Arc<Land>> = OnceLock::new();
    LAND.get_or_init(|| Arc::new(Land::new(42))).clone()
}

/// A bot on a socket.
pub struct Player {
    pub client_id: u64,
    pub bot: Bot,
    socket: UdpSocket,
    netcode: NetcodeClient,
    started: Instant,
    ticks: u64,
    newest: u32,
}

impl std::fmt::Debug for Player {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let visible = self.bot.session.view().visible(self.newest, 120);
        let Player { client_id, bot, .. } = self;
        let state = self.netcode.state();
        write!(
            f,
            "\nclient {client_id}: {state:?} {:?} {:?} visible {visible} closed {:?}",
            bot.counts,
            bot.errors(),
            bot.closed
        )
    }
}

impl Player {
    /// Begins to join, at a place in 1/256 m.
    pub fn join(server: &Server, client_id: u64, spawn: Option<(i32, i32)>) -> Player {
        Player::join_with_timeout(server, client_id, spawn, TIMEOUT_S)
    }

    /// Likewise, with more patience than a shard stands still.
    pub fn join_patient(server: &Server, client_id: u64, spawn: Option<(i32, i32)>) -> Player {
        Player::join_with_timeout(server, client_id, spawn, 60)
    }

    fn join_with_timeout(server: &Server, client_id: u64, spawn: Option<(i32, i32)>, timeout_s: i32) -> Player {
        let user_data = UserData { spawn_point: spawn, peaceful: true, reusable: false };
        let token = token_with_timeout(&DEV_KEY, server.game, client_id, (3_600, timeout_s), user_data);
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        socket.connect(server.game).expect("loopback");
        socket.set_nonblocking(true).expect("a socket");
        let haunt = spawn.map_or(Haunt::Land, |centre| Haunt::Disc { centre, radius: 20 * 256 });
        let options = ClientOptions { packed: client_id.is_multiple_of(2), decode: true, reliable_transport: false };
        let bot = Bot::new(1, client_id, haunt, Some(land()), options);
        let netcode = NetcodeClient::new(&token, Duration::ZERO).expect("a good token");
        Player { client_id, bot, socket, netcode, started: Instant::now(), ticks: 0, newest: 0 }
    }

    pub fn state(&self) -> ClientState {
        self.netcode.state()
    }

    pub fn newest_tick(&self) -> u32 {
        self.newest
    }

    pub fn position_m(&self) -> (f64, f64) {
        let state = self.bot.session.own_state().expect("it plays");
        (f64::from(state.x()) / 65_536.0, f64::from(state.y()) / 65_536.0)
    }

    /// Reads what came, and sends what is due.
    pub fn tick(&mut self) {
        let now = self.started.elapsed();
        let mut bytes = [0; 2_048];
        while let Ok(length) = self.socket.recv(&mut bytes) {
            if let Ok(Some(body)) = self.netcode.handle_datagram(now, &mut bytes[..length])
                && let Ok(summary) = self.bot.hear(body, |_| ())
            {
                self.newest = summary.tick;
            }
        }
        let mut out = [0; 1_078];
        while let Some(length) = self.netcode.poll_datagram(now, &mut out) {
            let _ = self.socket.send(&out[..length]);
        }
        while self.netcode.state() == ClientState::Connected && self.ticks < now.as_millis() as u64 * 60 / 1_000 {
            self.ticks += 1;
            self.bot.want(0);
            if self.bot.plays() {
                self.bot.act();
            }
            if self.ticks.is_multiple_of(2) {
                self.send_body(now);
            }
            if self.ticks.is_multiple_of(60) && self.bot.plays() {
                self.bot.check_view(self.newest);
            }
        }
    }

    fn send_body(&mut self, now: Duration) {
        let mut out = [0; CLIENT_BODY_BYTES_MAX + 26];
        let offset = self.netcode.body_offset();
        let length = self.bot.session.poll_body(self.ticks as u32, 0, &mut out[offset..offset + CLIENT_BODY_BYTES_MAX]);
        let length = self.netcode.seal_body(now, &mut out, length);
        let _ = self.socket.send(&out[..length]);
    }

    /// Leaves, and waits until its character is saved.
    pub fn leave(&mut self) {
        self.netcode.disconnect();
        self.tick();
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// A stream that sends constant frames and looks for a marker.
pub struct TcpTool {
    pub stream: TcpStream,
    pub received: Vec<u8>,
}

impl TcpTool {
    pub fn open(server: SocketAddr) -> TcpTool {
        let stream = TcpStream::connect(server).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_millis(1))).expect("a socket");
        TcpTool { stream, received: Vec::new() }
    }

    pub fn send_frame(&mut self, body: &[u8]) {
        let mut frame = vec![0; 4 + body.len()];
        write_frame(body, &mut frame);
        self.stream.write_all(&frame).expect("the server reads");
    }

    /// Reads what is there; true once the server closed.
    pub fn read_available(&mut self) -> bool {
        let mut bytes = [0; 4_096];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => return true,
                Ok(length) => self.received.extend_from_slice(&bytes[..length]),
                Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
            }
        }
    }

    /// Reads until enough is there; true if the server closed before.
    pub fn read_until(&mut self, patience: Duration, enough: impl Fn(&[u8]) -> bool) -> bool {
        let end = Instant::now() + patience;
        while Instant::now() < end {
            if self.read_available() {
                return true;
            }
            if enough(&self.received) {
                return false;
            }
        }
        false
    }

    /// Whether the server closes when it sees this token.
    pub fn sees_refusal(mut self, token: &[u8]) -> bool {
        self.send_frame(token);
        self.read_until(Duration::from_secs(3), |_| false)
    }

    /// Sends pings and waits for as many answers.
    pub fn ping(&mut self, count: usize, patience: Duration) {
        for _ in 0..count {
            let mut out = [0; BODY_BYTES_MAX];
            let mut body = BodyWriter::client(&mut out, structs::ClientHeader::new(0, 0, 0, 0, 0));
            assert!(body.section(kind::PING, &[]));
            let length = body.finish();
            self.send_frame(&out[..length]);
        }
        let answers = |bytes: &[u8]| bytes.windows(16).filter(|window| *window == PONG_MARKER).count();
        let closed = self.read_until(patience, |bytes| answers(bytes) >= count);
        assert!(!closed && answers(&self.received) >= count, "{} answers, closed {closed}", answers(&self.received));
    }
}
