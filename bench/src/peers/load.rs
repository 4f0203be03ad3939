//! The clients of all sides: the same bots, on the calling thread.
//!
//! Owns their sockets. Promises: an open loop (turns have their times, whatever the server does); every body is opened,
//! parsed and held against the movement code, which each bot runs itself, and every eighth bot checks whom it is shown
//! as well; what is counted lies within one window. Never differs between the sides but for renet's own packets around
//! the bodies.

use std::collections::HashSet;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use renet::{ConnectionConfig, DefaultChannel, RenetClient};
use ringshard::io::never_fragment;
use ringshard::limits::{BODY_BYTES_MAX, DATAGRAM_BYTES_MAX};
use ringshard::realm::bots::{Bot, Haunt};
use ringshard::tools::dev_token;
use ringshard::wire::client::{BodySummary, ClientOptions};
use ringshard::wire::transport::netcode_client::{ClientState, NetcodeClient};
use ringshard::wire::transport::token::UserData;
use ringshard::wire::units::GRID_PER_M;
use ringshard::world::land::Land;
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::time::Timespec;

use super::PeersArgs;
use super::game::LAND_SEED;
use crate::drive::{socket_drops, thread_cpu_s};
use crate::swarm::place::{NO_DISC, open_disc};
use crate::swarm::schedule::{Schedule, ticks_of_packet};

/// Between two clients' first requests.
const JOIN_SPACING_NS: u64 = 600_000;
/// Longest time from the first request until everybody plays.
const JOIN_NS_MAX: u64 = 10_000_000_000;
/// From the moment when everybody plays to the window.
const SETTLE_NS: u64 = 300_000_000;
/// Turns that may fall due while the thread sleeps.
const TOGETHER_NS: u64 = 250_000;
/// Turns between two looks at the sockets.
const TURNS_MAX: usize = 64;
/// Sockets read between two looks at the turns: a full snapshot takes a bot tens of microseconds.
const READS_MAX: usize = 8;
/// Nice level and slice, as a swarm's load has them.
const NICE: i32 = -13;
const SLICE_NS: u64 = 200_000;
/// Radius of the crowd, metres.
const CROWD_RADIUS_M: i32 = 15;
/// Ticks of time credit from which a bot plays, as in a swarm.
const CREDIT_TICKS: u8 = 6;
/// One client in this many also keeps a picture of all others: in a crowd it takes 100 KB, and fresh memory takes time.
const LOOKERS: u64 = 8;
/// Seed of what the bots want.
const SEED: u64 = 1;

/// CPU time of a server so far, seconds.
#[derive(Clone, Copy, Default, Debug)]
pub struct Cpu {
    /// Of the thread that serves.
    pub serving_s: f64,
    /// Of all threads.
    pub all_s: f64,
}

/// What is counted of a leg, within its window.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Bodies with commands that clients sent.
    pub messages_in: u64,
    /// Snapshots that clients read.
    pub messages_out: u64,
    /// Bytes of these.
    pub bytes_in: u64,
    /// Likewise.
    pub bytes_out: u64,
    /// Datagrams that clients sent and read, renet's acknowledgements among them.
    pub datagrams: u64,
    /// Commands that clients sent, and those that snapshots named as applied.
    pub commands: (u64, u64),
    /// From the intended send time of a command to the snapshot that names it, microseconds.
    pub latency_us: Histogram<u64>,
    /// From the intended to the real send time, microseconds.
    pub late_us: Histogram<u64>,
    /// Length of the window.
    pub window: Duration,
    /// CPU time of the server's serving thread within it, and of all its threads.
    pub cpu: Cpu,
    /// CPU time of the load within it.
    pub load_s: f64,
    /// Datagrams that the clients' sockets lost, in the whole leg.
    pub drops: u64,
    /// Bodies that clients could not open or parse, and contradictions in them, in the whole leg.
    pub errors: u64,
}

struct Client {
    bot: Bot,
    socket: UdpSocket,
    netcode: NetcodeClient,
    renet: Option<Box<RenetClient>>,
    updated: Duration,
    packets: u64,
    plays: bool,
    errors: u64,
}

struct Load {
    clients: Vec<Client>,
    epoll: std::os::fd::OwnedFd,
    origin: Instant,
    input_hz: u32,
    server: SocketAddr,
    over_renet: bool,
    land: Arc<Land>,
    haunt: Haunt,
    counting: bool,
    tally: Tally,
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("the bounds are in order")
}

/// Plays a leg on a server whose CPU time `cpu` tells.
pub fn play(
    args: &PeersArgs,
    server: SocketAddr,
    over_renet: bool,
    cpu: impl Fn() -> Cpu,
    stopped: &AtomicBool,
) -> Result<Tally, String> {
    // Without the right to it the leg may be late, and then says so.
    let _ = ringshard::sys::set_thread_slice(NICE, SLICE_NS);
    let mut load = Load::new(args, server, over_renet)?;
    let players = args.players as usize;
    let mut schedule = Schedule::new(0, args.hz, players);
    let mut begins_ns = u64::MAX;
    let mut began = (Cpu::default(), 0.0);
    let window_ns = u64::from(args.window_ms) * 1_000_000;
    let mut events = Vec::with_capacity(READS_MAX);
    loop {
        if stopped.load(Ordering::Relaxed) {
            return Err("stopped by a signal".to_owned());
        }
        let now_ns = load.now_ns();
        if load.clients.len() < players && now_ns >= load.clients.len() as u64 * JOIN_SPACING_NS {
            load.join().map_err(|error| format!("no socket for a client: {error}; raise `ulimit -n`"))?;
        }
        if begins_ns == u64::MAX {
            let playing = load.clients.iter().filter(|client| client.plays).count();
            if playing == players {
                begins_ns = now_ns + SETTLE_NS;
            } else if now_ns > JOIN_NS_MAX {
                return Err(format!("{playing} of {players} came in within {} s", JOIN_NS_MAX / 1_000_000_000));
            }
        }
        if now_ns >= begins_ns && !load.counting {
            load.counting = true;
            (began, begins_ns) = ((cpu(), thread_cpu_s()), now_ns);
        }
        if load.counting && now_ns >= begins_ns + window_ns {
            load.tally.window = Duration::from_nanos(now_ns - begins_ns);
            let (now, before) = (cpu(), began.0);
            load.tally.cpu = Cpu { serving_s: now.serving_s - before.serving_s, all_s: now.all_s - before.all_s };
            load.tally.load_s = thread_cpu_s() - began.1;
            return Ok(load.end());
        }
        for _ in 0..TURNS_MAX {
            let now_ns = load.now_ns();
            let Some(turn) = schedule.take(now_ns) else { break };
            load.turn(turn.bot, turn.due_ns, now_ns);
        }
        let until_due = schedule.next_due_ns().saturating_sub(load.now_ns());
        load.hear(&mut events, if until_due == 0 { 0 } else { until_due.max(TOGETHER_NS) });
    }
}

impl Load {
    fn new(args: &PeersArgs, server: SocketAddr, over_renet: bool) -> Result<Load, String> {
        let land = Arc::new(Land::new(LAND_SEED));
        let radius = CROWD_RADIUS_M * GRID_PER_M;
        let haunt = match args.spread {
            true => Haunt::Land,
            false => Haunt::Disc { centre: open_disc(&land).ok_or(NO_DISC)?, radius },
        };
        Ok(Load {
            clients: Vec::with_capacity(args.players as usize),
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|error| format!("no epoll: {error}"))?,
            origin: Instant::now(),
            input_hz: args.hz,
            server,
            over_renet,
            land,
            haunt,
            counting: false,
            tally: Tally {
                messages_in: 0,
                messages_out: 0,
                bytes_in: 0,
                bytes_out: 0,
                datagrams: 0,
                commands: (0, 0),
                latency_us: histogram(),
                late_us: histogram(),
                window: Duration::ZERO,
                cpu: Cpu::default(),
                load_s: 0.0,
                drops: 0,
                errors: 0,
            },
        })
    }

    fn now_ns(&self) -> u64 {
        self.origin.elapsed().as_nanos() as u64
    }

    /// One more client asks to be let in.
    fn join(&mut self) -> io::Result<()> {
        let number = self.clients.len() as u64;
        let decode = number.is_multiple_of(LOOKERS);
        let options = ClientOptions { packed: true, decode, reliable_transport: false };
        let bot = Bot::new(SEED, number, self.haunt, Some(self.land.clone()), options);
        let wishes = UserData { spawn_point: Some(bot.spawn_point()), peaceful: true, reusable: false };
        let token = dev_token(&[self.server], number + 1, 60, wishes).expect("one server is named");
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        never_fragment(&socket)?;
        socket.connect(self.server)?;
        socket.set_nonblocking(true)?;
        epoll::add(&self.epoll, &socket, epoll::EventData::new_u64(number), epoll::EventFlags::IN)?;
        let now = Duration::from_nanos(self.now_ns());
        let renet = self.over_renet.then(|| {
            let mut client = RenetClient::new(ConnectionConfig::default());
            client.set_connected();
            Box::new(client)
        });
        let netcode = NetcodeClient::new(&token, now).expect("our own token is well formed");
        let mut client = Client { bot, socket, netcode, renet, updated: now, packets: 0, plays: false, errors: 0 };
        client.tend(now);
        self.clients.push(client);
        Ok(())
    }

    /// What a client wants leaves now.
    fn turn(&mut self, at: usize, due_ns: u64, now_ns: u64) {
        let Load { clients, tally, counting, input_hz, .. } = self;
        let Some(client) = clients.get_mut(at) else { return };
        let now = Duration::from_nanos(now_ns);
        client.tend(now);
        if client.netcode.state() != ClientState::Connected {
            return;
        }
        let ticks = if client.plays { ticks_of_packet(client.packets, *input_hz) } else { 0 };
        for _ in 0..ticks {
            client.bot.want(due_ns);
            client.bot.act();
        }
        client.packets += u64::from(client.plays);
        let (bytes, datagrams) = client.send(now);
        if *counting {
            tally.messages_in += 1;
            tally.bytes_in += bytes as u64;
            tally.datagrams += datagrams;
            tally.commands.0 += ticks;
            tally.late_us.saturating_record((now_ns - due_ns) / 1_000);
        }
    }

    /// Reads sockets that have something, once each; sleeps until one has, at most so long.
    fn hear(&mut self, events: &mut Vec<epoll::Event>, sleep_ns: u64) {
        let timeout = Timespec { tv_sec: 0, tv_nsec: sleep_ns.min(50_000_000) as i64 };
        events.clear();
        // Interrupted by a signal: nothing came, and the loop goes on.
        let _ = epoll::wait(&self.epoll, spare_capacity(events), Some(&timeout));
        let mut buffer = [0; 2_048];
        for event in events.iter() {
            let client = &mut self.clients[event.data.u64() as usize];
            // Refused while the server is about to open: it asks again.
            let Ok(length) = client.socket.recv(&mut buffer) else { continue };
            let now_ns = self.origin.elapsed().as_nanos() as u64;
            client.hear(now_ns, &mut buffer[..length], self.counting.then_some(&mut self.tally));
        }
    }

    fn end(mut self) -> Tally {
        let ports: HashSet<u16> =
            self.clients.iter().filter_map(|client| Some(client.socket.local_addr().ok()?.port())).collect();
        self.tally.drops = socket_drops(&ports);
        for Client { bot, errors, .. } in &self.clients {
            let view = bot.errors();
            self.tally.errors += errors + view.jump + view.twice + view.never_leaves + view.other;
            self.tally.errors += bot.counts.own_position + bot.counts.malformed;
        }
        self.tally
    }
}

impl Client {
    /// What the connection itself has to say.
    fn tend(&mut self, now: Duration) {
        let mut out = [0; DATAGRAM_BYTES_MAX];
        while let Some(length) = self.netcode.poll_datagram(now, &mut out) {
            // What the kernel does not take is lost, as on any way.
            let _ = self.socket.send(&out[..length]);
        }
    }

    /// Sends a body; gives its bytes and the datagrams that left for it.
    fn send(&mut self, now: Duration) -> (usize, u64) {
        let tick = (now.as_nanos() * 60 / 1_000_000_000) as u32;
        let Client { bot, socket, netcode, renet, updated, .. } = self;
        let mut seal = |write: &mut dyn FnMut(&mut [u8]) -> usize| {
            let mut buffer = [0; BODY_BYTES_MAX + 64];
            let offset = netcode.body_offset();
            let length = write(&mut buffer[offset..offset + BODY_BYTES_MAX]);
            let sealed = netcode.seal_body(now, &mut buffer, length);
            let _ = socket.send(&buffer[..sealed]);
            length
        };
        let Some(renet) = renet else {
            return (seal(&mut |out| bot.session.poll_body(tick, 0, out)), 1);
        };
        let mut body = [0; BODY_BYTES_MAX];
        let length = bot.session.poll_body(tick, 0, &mut body);
        renet.update(now.saturating_sub(*updated));
        *updated = now;
        renet.send_message(DefaultChannel::Unreliable, body[..length].to_vec());
        let packets = renet.get_packets_to_send();
        for packet in &packets {
            seal(&mut |out| {
                out[..packet.len()].copy_from_slice(packet);
                packet.len()
            });
        }
        (length, packets.len() as u64)
    }

    /// Takes a datagram.
    fn hear(&mut self, now_ns: u64, datagram: &mut [u8], mut tally: Option<&mut Tally>) {
        let Client { bot, netcode, renet, plays, errors, .. } = self;
        let now = Duration::from_nanos(now_ns);
        if let Some(tally) = &mut tally {
            tally.datagrams += 1;
        }
        let mut take = |body: &[u8]| {
            let heard = bot.hear(body, |intended_ns| {
                if let Some(tally) = &mut tally {
                    tally.commands.1 += 1;
                    tally.latency_us.saturating_record((now_ns - intended_ns) / 1_000);
                }
            });
            if let (Ok(BodySummary { late: false, .. }), Some(tally)) = (heard, &mut tally) {
                tally.messages_out += 1;
                tally.bytes_out += body.len() as u64;
            }
        };
        match (netcode.handle_datagram(now, datagram), renet) {
            (Ok(None), _) => (),
            (Ok(Some(body)), None) => take(body),
            (Ok(Some(packet)), Some(renet)) => {
                renet.process_packet(packet);
                while let Some(body) = renet.receive_message(DefaultChannel::Unreliable) {
                    take(&body);
                }
            }
            // While it comes in the server may say things twice.
            (Err(_), _) => *errors += u64::from(*plays),
        }
        if netcode.state() != ClientState::Connected {
            self.tend(now);
        }
        let credit = self.bot.session.own_state().map_or(0, |state| state.credit());
        self.plays |= self.bot.plays() && credit >= CREDIT_TICKS;
    }
}
