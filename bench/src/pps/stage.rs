//! One server on one core, and clients that play on it from another.
//!
//! Owns the server's process and folder, and the clients. Promises: what was lost anywhere between both ends is counted;
//! busy is the CPU time of the one thread that is pinned to the core, interrupts included.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use ringshard::control::client::status;
use ringshard::exit::{Code, Failure};
use ringshard::io::{Backend, kernel_drops};
use ringshard::sys;

use super::client::Client;
use crate::drive::{Drive, Leg, socket_drops};
use crate::machine::threads_cpu_s;
use crate::node::{Server, Work};

/// Longest time from the first request to the last character.
const JOIN_MAX: Duration = Duration::from_secs(15);
/// Turns a second while they join: 5,000 ask within half a second.
const JOIN_TURNS_HZ: f64 = 10_000.0;
/// After a try: what is under way arrives, and the shard reports.
const SETTLE: Duration = Duration::from_millis(600);
/// What a status counts among its drops and is no datagram lost.
const NO_LOSS: [&str; 5] = ["late_edges", "late_meetings", "buffers_empty", "completions_overflowed", "keeper_full"];
/// Tries of a rate until one is timely.
const TRIES: usize = 3;
/// Nice level and slice of the load, a little above the shards'.
const LOAD_NICE: i32 = -13;
const LOAD_SLICE_NS: u64 = 200_000;

/// One server on a core, and clients that play on it.
pub struct Stage {
    /// The server.
    pub server: Server,
    /// The core of its shard.
    pub cpu: usize,
    /// From the first request to each client's character, ascending.
    pub joins: Vec<Duration>,
    /// The server's memory in RAM before anybody joined, bytes.
    pub rss_before_bytes: u64,
    clients: Vec<Client>,
    drive: Drive,
    // Last: the folder goes when the server is gone.
    _work: Work,
}

/// A measurement of a server.
pub struct Taken {
    /// What the clients did.
    pub leg: Leg,
    /// Datagrams that the server received.
    pub received: u64,
    /// Bodies that the clients heard a second.
    pub answer_pps: f64,
    /// Share of its core that the shard used.
    pub busy: f64,
    drops: u64,
}

/// What a stage is made with.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// How the server's packets pass.
    pub io: Backend,
    /// Snapshots a second and session.
    pub send_hz: u32,
    /// Wildlife of the land.
    pub npcs: u32,
    /// Clients.
    pub sessions: u64,
}

/// The cores that this process has, at least two; to be asked before the first stage, which pins this thread.
pub fn cores() -> Result<Vec<usize>, Failure> {
    let cpus = sys::cpus_allowed();
    if cpus.len() < 2 {
        return Err(Failure::new(Code::Machine, "two cores are needed: one for the shard, one for the load"));
    }
    Ok(cpus)
}

impl Stage {
    /// A server whose only shard runs on the last of the cores, with everybody in it; this thread is on the first.
    pub fn set(program: &Path, cpus: &[usize], setting: Setting, stopped: &AtomicBool) -> Result<Stage, Failure> {
        let (load_cpu, cpu) = (cpus[0], cpus[cpus.len() - 1]);
        let Setting { io, send_hz, npcs, sessions } = setting;
        let work = Work::make(&format!("stage-{}", io.name()), None)?;
        let config = work.path().join("config.toml");
        // Nothing is left out however busy the core is: what it does is to be one thing in all measurements.
        let text = format!(
            "[net]\nsend_hz = {send_hz}\n[world]\nnpcs = {npcs}\n[load]\nstep = 0\n[record]\nflight = \"off\"\n"
        );
        std::fs::write(&config, text).map_err(|error| Failure::of_file("write", &config, &error))?;
        let (data, pinned) = (work.path().join("data"), cpu.to_string());
        let arguments = [
            "--shards".as_ref(),
            "1".as_ref(),
            "--cpus".as_ref(),
            pinned.as_ref(),
            "--io".as_ref(),
            io.name().as_ref(),
            "--config".as_ref(),
            config.as_os_str(),
            "--data".as_ref(),
            data.as_os_str(),
        ];
        let unpinned = |error: std::io::Error| Failure::new(Code::Machine, error.to_string());
        // A child begins on the cores of its parent.
        sys::set_thread_cpus(cpus).map_err(unpinned)?;
        let server = Server::start(program, arguments, stopped).map_err(|text| Failure::new(Code::Failed, text))?;
        sys::set_thread_cpus(&[load_cpu]).map_err(unpinned)?;
        // Without the right to it the load may be late, and the result says so.
        let _ = sys::set_thread_slice(LOAD_NICE, LOAD_SLICE_NS);
        let rss_before_bytes = status(server.control)?.rss_bytes;
        let machine = |error: std::io::Error| Failure::new(Code::Machine, format!("no client can be made: {error}"));
        let clients = (0..sessions).map(|number| Client::new(number, server.game, Duration::ZERO)?.map_err(machine));
        let mut clients = clients.collect::<Result<Vec<Client>, Failure>>()?;
        let mut drive = Drive::new(&clients).map_err(machine)?;
        eprintln!("{sessions} clients join");
        let (begin, begun) = (Instant::now(), drive.now());
        while clients.iter().any(|client| !client.plays()) {
            drive.run(&mut clients, JOIN_TURNS_HZ, Duration::from_millis(100));
            if let Some(state) = clients.iter().find_map(Client::ended) {
                return Err(Failure::new(Code::Failed, format!("a client could not join: {state:?}")));
            }
            if begin.elapsed() > JOIN_MAX {
                let playing = clients.iter().filter(|client| client.plays()).count();
                let text = format!("{playing} of {sessions} joined within {} s", JOIN_MAX.as_secs());
                return Err(Failure::new(Code::Failed, text));
            }
        }
        let mut joins: Vec<Duration> =
            clients.iter().filter_map(Client::playing_since).map(|since| since.saturating_sub(begun)).collect();
        joins.sort_unstable();
        let mut stage = Stage { server, clients, drive, cpu, joins, rss_before_bytes, _work: work };
        stage.calm();
        Ok(stage)
    }

    /// Plays on for a moment, with few inputs.
    pub fn calm(&mut self) {
        let turns_hz = self.clients.len() as f64 * 4.0;
        self.drive.run(&mut self.clients, turns_hz, SETTLE);
    }

    /// One measurement: `bursts_hz` turns a second of all clients together, each of `burst` datagrams.
    fn take(&mut self, bursts_hz: f64, burst: usize, time: Duration) -> Result<Taken, Failure> {
        let before = self.counters()?;
        self.clients.iter_mut().for_each(|client| client.burst = burst);
        let shard_cpu_s = || threads_cpu_s(self.server.pid(), "shard-0");
        let before_s = shard_cpu_s();
        let mut leg = self.drive.run(&mut self.clients, bursts_hz, time);
        let busy = (shard_cpu_s() - before_s) / leg.seconds;
        let heard_s = leg.seconds + self.drive.catch_up(&mut self.clients, &mut leg.counts);
        self.clients.iter_mut().for_each(|client| client.burst = 1);
        // Nobody speaks: all that was sent arrives, and is reported.
        thread::sleep(SETTLE);
        let after = self.counters()?;
        let (received, answer_pps) = (after.0 - before.0, leg.counts.heard as f64 / heard_s);
        // Answers that were still under way at the end are heard now, and belong to no measurement.
        self.calm();
        Ok(Taken { leg, received, answer_pps, drops: after.1 - before.1, busy })
    }

    /// The first of some measurements whose load was not late, or the last.
    pub fn take_timely(&mut self, bursts_hz: f64, burst: usize, time: Duration) -> Result<Taken, Failure> {
        for _ in 1..TRIES {
            let taken = self.take(bursts_hz, burst, time)?;
            if taken.leg.is_timely() {
                return Ok(taken);
            }
        }
        self.take(bursts_hz, burst, time)
    }

    /// Datagrams that the server received, and those that were lost or refused on the way.
    fn counters(&self) -> Result<(u64, u64), Failure> {
        let page = status(self.server.control)?;
        let received = page.shards.iter().map(|shard| shard.packets_in).sum();
        let counted = page.shards.iter().flat_map(|shard| &shard.drops);
        let refused: u64 =
            counted.filter(|(reason, _)| !NO_LOSS.contains(&reason.as_str())).map(|(_, count)| count).sum();
        let ports = self.clients.iter().filter_map(Client::port).collect();
        Ok((received, refused + kernel_drops(self.server.game.port()) + socket_drops(&ports)))
    }

    /// Everybody says good-bye, and the server ends.
    pub fn leave(mut self) -> Result<(), Failure> {
        let now = self.drive.now();
        self.clients.iter_mut().for_each(|client| client.leave(now));
        self.server.terminate().map_err(|text| Failure::new(Code::Failed, text))
    }
}

impl Taken {
    /// Datagrams that were lost at either end.
    pub fn lost(&self) -> u64 {
        self.drops + self.leg.counts.blocked + self.leg.counts.sent.saturating_sub(self.received)
    }

    /// Whether nothing was lost or wrong, and the load was timely.
    pub fn is_clean(&self) -> bool {
        self.lost() == 0 && self.leg.counts.wrong == 0 && self.leg.is_timely()
    }
}
