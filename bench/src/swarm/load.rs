//! One load thread: its players' turns, and what their sockets bring.
//!
//! Owns its players, one epoll and one buffer. Promises: turns are taken in order and each one, at most half a
//! millisecond late while there is time; it sleeps when nothing is due. Never shares a player with another thread.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use ringshard::exit::Failure;
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::time::Timespec;

use crate::drive::{socket_drops, thread_cpu_s};

use super::link::{RECEIVE_BYTES, Traffic};
use super::player::{Common, Outage, Player, Stage, Told};
use super::schedule::Schedule;
use super::tally::{ErrorCounts, Tally};
use super::truth::OperationsFile;

/// Turns that may fall due while the thread sleeps: it wakes once for all of them.
const TOGETHER_NS: u64 = 250_000;
/// Nice level and slice of a load thread, a little above the shards': players elsewhere would not wait for a server's
/// ticks on this machine.
const NICE: i32 = -13;
const SLICE_NS: u64 = 200_000;
/// Sockets read between two looks at the turns.
const EVENTS_MAX: usize = 64;
/// Sockets read once more meanwhile; as many as [`EVENTS_MAX`] while no others have anything.
const AGAIN: usize = 2;
/// Reads that wait to be taken. Full: the sockets wait.
const BACKLOG_MAX: usize = 2_048;
/// Least reads taken between two looks at the sockets; of a long backlog a quarter is.
const TAKEN_MIN: usize = 8;
/// Turns taken between two looks at the sockets.
const TURNS_MAX: usize = 64;
/// Between two words to the main thread.
const PULSE_NS: u64 = 200_000_000;
/// Between two writes of what was answered.
const WRITE_NS: u64 = 50_000_000;
/// From the last join to the first sample of what is visible.
const VISIBLE_FROM_NS: u64 = 5_000_000_000;

/// What the main thread tells all load threads.
pub struct Control {
    /// All times count from here.
    pub origin: Instant,
    /// When the last join was; the far future until then.
    pub begin_ns: AtomicU64,
    /// The run is over.
    pub stop: AtomicBool,
}

impl Control {
    /// Nanoseconds since the origin.
    pub fn now_ns(&self) -> u64 {
        self.origin.elapsed().as_nanos() as u64
    }
}

/// What a load thread tells the main thread now and then.
#[derive(Clone, Default, Debug)]
pub struct Pulse {
    /// Players that are in.
    pub playing: usize,
    /// Players that may still come in.
    pub coming: usize,
    /// Bodies with commands, so far.
    pub inputs_sent: u64,
    /// Snapshots so far.
    pub snapshots_received: u64,
    /// Of the latency so far.
    pub latency_us_p99: u64,
    /// Contradictions so far.
    pub errors: ErrorCounts,
    /// What the players were told.
    pub told: Vec<Told>,
}

/// What a load thread leaves behind.
pub struct Harvest {
    /// Its players, gone from the server.
    pub players: Vec<Player>,
    /// Its counts.
    pub tally: Tally,
    /// CPU time of the thread since the last join.
    pub cpu_s: f64,
    /// Sum over the players' links since the last join.
    pub traffic: Traffic,
    /// Datagrams that its sockets lost.
    pub socket_drops: u64,
    /// Why answers could not be written.
    pub failure: Option<Failure>,
}

/// What was read and not yet looked at: a snapshot counts from the moment when it was read, so sockets go first.
struct Backlog {
    bytes: Box<[u8]>,
    /// Player, when, and length of each read, oldest first.
    reads: VecDeque<(usize, u64, usize)>,
    /// Reads taken so far: where the oldest one's bytes are.
    taken: usize,
}

impl Backlog {
    fn new() -> Backlog {
        let bytes = vec![0; BACKLOG_MAX * RECEIVE_BYTES].into_boxed_slice();
        Backlog { bytes, reads: VecDeque::with_capacity(BACKLOG_MAX), taken: 0 }
    }

    fn slot(&mut self, number: usize) -> &mut [u8] {
        let from = number % BACKLOG_MAX * RECEIVE_BYTES;
        &mut self.bytes[from..from + RECEIVE_BYTES]
    }
}

/// See the module.
pub struct LoadThread {
    control: Arc<Control>,
    pulse: Arc<Mutex<Pulse>>,
    common: Common,
    players: Vec<Player>,
    schedule: Schedule,
    epoll: std::os::fd::OwnedFd,
    /// Players whose socket may have more than what was read, oldest first.
    again: VecDeque<usize>,
    tally: Tally,
    /// Newest tick that any player heard of, and when.
    server_tick: (u32, u64),
    pulsed_ns: u64,
    operations: Option<OperationsFile>,
    written_ns: u64,
    failure: Option<Failure>,
    /// CPU time and traffic at the last join.
    at_begin: Option<(f64, Traffic)>,
}

impl LoadThread {
    /// A thread for these players whose first turn is at `start_ns`.
    pub fn new(
        control: Arc<Control>,
        pulse: Arc<Mutex<Pulse>>,
        common: Common,
        players: Vec<Player>,
        start_ns: u64,
        operations: Option<OperationsFile>,
    ) -> std::io::Result<LoadThread> {
        let schedule = Schedule::new(start_ns, common.input_hz, players.len());
        Ok(LoadThread {
            control,
            pulse,
            common,
            players,
            schedule,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            again: VecDeque::new(),
            tally: Tally::default(),
            server_tick: (0, 0),
            pulsed_ns: 0,
            operations,
            written_ns: 0,
            failure: None,
            at_begin: None,
        })
    }

    /// Plays until it is told to stop; then everybody leaves.
    pub fn run(mut self) -> Harvest {
        // Without the right to it the run may be late, and then says so.
        let _ = ringshard::sys::set_thread_slice(NICE, SLICE_NS);
        let mut backlog = Backlog::new();
        let mut events = Vec::with_capacity(EVENTS_MAX);
        while !self.control.stop.load(Ordering::Relaxed) {
            self.notice_begin();
            self.take_turns();
            if backlog.reads.len() + EVENTS_MAX + AGAIN <= BACKLOG_MAX {
                let is_idle = backlog.reads.is_empty() && self.again.is_empty();
                self.wait(&mut events, is_idle);
                let again = if events.is_empty() { EVENTS_MAX } else { AGAIN };
                for event in events.drain(..) {
                    self.read(event.data.u64() as usize, &mut backlog);
                }
                self.read_again(again, &mut backlog);
            }
            self.hear(&mut backlog);
            let now_ns = self.control.now_ns();
            if now_ns >= self.written_ns + WRITE_NS {
                self.written_ns = now_ns;
                self.write_operations();
            }
            if now_ns >= self.pulsed_ns + PULSE_NS {
                self.pulsed_ns = now_ns;
                self.introduce();
                self.tell_main();
            }
        }
        self.finish()
    }

    fn take_turns(&mut self) {
        for _ in 0..TURNS_MAX {
            let now_ns = self.control.now_ns();
            let Some(turn) = self.schedule.take(now_ns) else { return };
            let player = &mut self.players[turn.bot];
            if player.turn(now_ns, turn.due_ns, &self.common, &mut self.tally) {
                self.watch(turn.bot);
            } else if player.is_full_second(&self.common) {
                let (tick, at_ns) = self.server_tick;
                let tick = tick.wrapping_add(((now_ns - at_ns) * 60 / 1_000_000_000) as u32);
                let visible = player.look_around(tick);
                let begin_ns = self.control.begin_ns.load(Ordering::Relaxed);
                if now_ns >= begin_ns.saturating_add(VISIBLE_FROM_NS) {
                    self.tally.visible.note(visible as u64);
                }
            }
        }
    }

    fn watch(&mut self, at: usize) {
        let link = self.players[at].link.as_ref().expect("it was opened just now");
        let data = epoll::EventData::new_u64(at as u64);
        // Told once for what came: telling it again until it was read costs as much as reading it.
        let told_once = epoll::EventFlags::IN | epoll::EventFlags::ET;
        if let Err(error) = epoll::add(&self.epoll, link.descriptor(), data, told_once) {
            self.players[at].stage = Stage::Refused(format!("its socket cannot be watched: {error}"));
        }
    }

    /// Sleeps until a socket has something or turns are due; with `may_sleep` off, or awake on purpose, it only looks.
    fn wait(&self, events: &mut Vec<epoll::Event>, may_sleep: bool) {
        let until_due = self.schedule.next_due_ns().saturating_sub(self.control.now_ns());
        let ns =
            if until_due == 0 || !may_sleep || self.common.awake { 0 } else { until_due.clamp(TOGETHER_NS, PULSE_NS) };
        let timeout = Timespec { tv_sec: 0, tv_nsec: ns as i64 };
        // Interrupted by a signal: nothing came, and the loop goes on.
        let _ = epoll::wait(&self.epoll, spare_capacity(events), Some(&timeout));
    }

    fn read(&mut self, at: usize, backlog: &mut Backlog) {
        assert!(backlog.reads.len() < BACKLOG_MAX, "there was room for all reads");
        let slot = backlog.slot(backlog.taken + backlog.reads.len());
        let player = &mut self.players[at];
        if let Some(length) = player.read(slot) {
            backlog.reads.push_back((at, self.control.now_ns(), length));
            if !std::mem::replace(&mut player.has_more, true) {
                self.again.push_back(at);
            }
        }
        self.unwatch_dead(at);
    }

    /// Looks whether the sockets that were read longest ago had more, `count` of them at the most.
    fn read_again(&mut self, count: usize, backlog: &mut Backlog) {
        for _ in 0..count.min(self.again.len()) {
            let at = self.again.pop_front().expect("as many as were counted");
            self.players[at].has_more = false;
            self.read(at, backlog);
        }
    }

    fn unwatch_dead(&self, at: usize) {
        let player = &self.players[at];
        if let (false, Some(link)) = (player.is_alive(), &player.link) {
            // Its end would be told again and again.
            let _ = epoll::delete(&self.epoll, link.descriptor());
        }
    }

    fn hear(&mut self, backlog: &mut Backlog) {
        for _ in 0..TAKEN_MIN.max(backlog.reads.len() / 4) {
            let Some((at, read_ns, length)) = backlog.reads.pop_front() else { return };
            let number = backlog.taken;
            backlog.taken += 1;
            let bytes = &mut backlog.slot(number)[..length];
            if let Some(tick) = self.players[at].hear(read_ns, bytes, &mut self.tally)
                && (tick.wrapping_sub(self.server_tick.0) as i32 > 0 || self.server_tick.1 == 0)
            {
                self.server_tick = (tick, read_ns);
            }
            self.unwatch_dead(at);
        }
    }

    fn notice_begin(&mut self) {
        let begin_ns = self.control.begin_ns.load(Ordering::Relaxed);
        if begin_ns != u64::MAX && self.at_begin.is_none() {
            self.tally.begin(begin_ns);
            self.tally.outage = self
                .common
                .pause
                .map(|pause| Outage { from_ns: begin_ns + pause.from_ns, until_ns: begin_ns + pause.until_ns });
            self.at_begin = Some((thread_cpu_s(), traffic(&self.players)));
        }
    }

    /// Tells both players of each pair who the other one is.
    fn introduce(&mut self) {
        if !self.common.trades {
            return;
        }
        for pair in self.players.chunks_exact_mut(2) {
            (pair[0].bot.friend, pair[1].bot.friend) = (pair[1].bot.entity(), pair[0].bot.entity());
        }
    }

    /// Writes what was answered since the last time. Once that failed, the run fails at its end.
    fn write_operations(&mut self) {
        let Some(file) = &mut self.operations else { return };
        let told = self.players.iter_mut().flat_map(|player| player.take_told_operations());
        if let Err(failure) = file.append(told) {
            self.failure.get_or_insert(failure);
        }
    }

    fn tell_main(&mut self) {
        let count = |wanted: fn(&Stage) -> bool| self.players.iter().filter(|player| wanted(&player.stage)).count();
        let mut errors = ErrorCounts::default();
        self.players.iter().for_each(|player| errors.add(player.errors()));
        let pulse = Pulse {
            playing: count(|stage| *stage == Stage::Playing),
            coming: count(|stage| matches!(stage, Stage::Waiting | Stage::Joining)),
            inputs_sent: self.tally.inputs_sent,
            snapshots_received: self.tally.snapshots_received,
            latency_us_p99: self.tally.latency_us.value_at_quantile(0.99),
            errors,
            told: self.players.iter().filter_map(Player::told).collect(),
        };
        *self.pulse.lock().unwrap_or_else(PoisonError::into_inner) = pulse;
    }

    fn finish(mut self) -> Harvest {
        self.write_operations();
        self.tell_main();
        let now_traffic = traffic(&self.players);
        let (cpu_before_s, before) = self.at_begin.unwrap_or((thread_cpu_s(), now_traffic));
        let cpu_s = thread_cpu_s() - cpu_before_s;
        let ports = self.players.iter().filter_map(|player| player.link.as_ref()?.udp_port()).collect();
        let now_ns = self.control.now_ns();
        self.players.iter_mut().for_each(|player| player.leave(now_ns));
        if let Some(outage) = self.tally.outage {
            let playing = self.players.iter().filter(|player| player.played());
            playing.for_each(|player| self.tally.recovered(player.slow_ns.saturating_sub(outage.until_ns)));
        }
        Harvest {
            players: self.players,
            tally: self.tally,
            cpu_s,
            traffic: Traffic {
                bytes_in: now_traffic.bytes_in - before.bytes_in,
                bytes_out: now_traffic.bytes_out - before.bytes_out,
            },
            socket_drops: socket_drops(&ports),
            failure: self.failure,
        }
    }
}

fn traffic(players: &[Player]) -> Traffic {
    let links = players.iter().filter_map(|player| player.link.as_ref());
    links.fold(Traffic::default(), |sum, link| Traffic {
        bytes_in: sum.bytes_in + link.traffic.bytes_in,
        bytes_out: sum.bytes_out + link.traffic.bytes_out,
    })
}
