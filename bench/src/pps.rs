//! `pps`: what one shard core takes and answers, datagrams a second, beside a bare echo on the same core.
//!
//! Owns a server of its own for each leg, the echo, and the clients. Promises: real sockets and the real protocol; what was
//! lost anywhere is counted at both ends and voids the rate it was lost at; the busy share of a core is the CPU time of the
//! one thread that is pinned to it, interrupts included, for server and echo alike. Never loads anything but the loopback.

mod client;
mod echo;

use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use ringshard::control::client::status;
use ringshard::exit::{Code, Failure, say};
use ringshard::io::kernel_drops;
use ringshard::sys;
use serde_json::{Value, json};

use crate::drive::{Drive, Leg, socket_drops};
use crate::machine::{Provenance, threads_cpu_s};
use crate::node::{Server, Work, server_program};
use crate::swarm::stop_on_signal;
use client::{BURST_MAX, Client};
use echo::{Echo, Pinger};

/// Nice level and slice of the load, a little above the shards'.
const LOAD_NICE: i32 = -13;
const LOAD_SLICE_NS: u64 = 200_000;
/// Longest time from the first request to the last character.
const JOIN_MAX: Duration = Duration::from_secs(15);
/// Turns a second while they join: 5,000 ask within half a second.
const JOIN_TURNS_HZ: f64 = 10_000.0;
/// Datagrams that a client may send together in the receive leg.
const BURST: usize = BURST_MAX;
/// Rates of the receive leg, datagrams a second: the first, and how they rise.
const RATE_FIRST: f64 = 250_000.0;
const RATE_STEP: f64 = 1.12;
const RATE_MAX: f64 = 1_200_000.0;
/// What a status counts among its drops and is no datagram lost.
const NO_LOSS: [&str; 3] = ["late_edges", "late_meetings", "buffers_empty"];
/// Tries of a rate until one is timely.
const TRIES: usize = 3;
/// One try of a rate.
const TRY: Duration = Duration::from_millis(1_500);
/// After a try: what is under way arrives, and the shard reports.
const SETTLE: Duration = Duration::from_millis(600);
/// Snapshots a second and session in the receive leg.
const RECEIVE_SEND_HZ: u32 = 10;
/// Snapshots, and inputs, a second and session in the echo leg.
const ECHO_SEND_HZ: u32 = 60;
/// What a datagram there and back costs on the kernel that the design was measured on, microseconds of a core: received
/// for 0.43 to 0.6, sent for 2.9 to 3.0. Beyond a fifth of that an echo is no baseline.
const ECHO_US: std::ops::RangeInclusive<f64> = 3.33 * 0.8..=3.6 * 1.2;

/// Arguments of `pps`.
#[derive(Args, Clone, Debug)]
pub struct PpsArgs {
    /// Sessions of the receive leg.
    #[arg(long, default_value_t = 5_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=16_000))]
    sessions: u64,
    /// Sessions of the echo leg, each with 60 inputs a second.
    #[arg(long, default_value_t = 2_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=16_000))]
    echo_sessions: u64,
    /// Datagrams a second of the receive leg; without it, the highest that loses nothing.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1_000..=2_000_000))]
    rate: Option<u32>,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 2, value_name = "S", value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// Pairs of server and echo, one after the other.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=50))]
    pairs: u32,
    /// The server's program; without it, the `ringshard` beside this one.
    #[arg(long, value_name = "PATH")]
    server: Option<std::path::PathBuf>,
}

/// One server on a core, and clients that play on it.
struct Stage {
    server: Server,
    clients: Vec<Client>,
    drive: Drive,
    cpu: usize,
    // Last: the folder goes when the server is gone.
    _work: Work,
}

/// A measurement of a server.
struct Taken {
    leg: Leg,
    received: u64,
    answer_pps: f64,
    drops: u64,
    busy: f64,
}

/// Runs both legs and prints their figures.
pub fn run(args: &PpsArgs, json: bool) -> Result<ExitCode, Failure> {
    let program = server_program(args.server.as_deref())?;
    let stopped = stop_on_signal()?;
    sys::raise_open_files();
    let cpus = sys::cpus_allowed();
    if cpus.len() < 2 {
        return Err(Failure::new(Code::Machine, "two cores are needed: one for the shard, one for the load"));
    }
    // Without the right to it the load may be late, and the result says so.
    let _ = sys::set_thread_slice(LOAD_NICE, LOAD_SLICE_NS);
    let receive = {
        let mut stage = Stage::set(&program, &cpus, RECEIVE_SEND_HZ, args.sessions, &stopped)?;
        let receive = receive_leg(&mut stage, args, &stopped)?;
        stage.leave()?;
        receive
    };
    let echo = {
        let mut stage = Stage::set(&program, &cpus, ECHO_SEND_HZ, args.echo_sessions, &stopped)?;
        let echo = echo_leg(&mut stage, args, &stopped)?;
        stage.leave()?;
        echo
    };
    let mut text = format!(
        "one shard core receives     {:.0} datagrams/s, sends {:.0}/s, {} dropped, {:.0} % busy ({} sessions, {:.0} bytes)\n",
        receive["server_rx_pps"].as_f64().unwrap_or(0.0),
        receive["server_tx_pps"].as_f64().unwrap_or(0.0),
        receive["drops"],
        receive["core_busy"].as_f64().unwrap_or(0.0) * 100.0,
        args.sessions,
        receive["payload_bytes"].as_f64().unwrap_or(0.0),
    );
    text.push_str(&format!(
        "and answers, of a core      {:.0} datagrams/s, a bare echo {:.0}/s: {:.2} of it ({} pairs, {:.2} to {:.2})\n",
        echo["server_pps"].as_f64().unwrap_or(0.0),
        echo["echo_pps"].as_f64().unwrap_or(0.0),
        echo["ratio"].as_f64().unwrap_or(0.0),
        args.pairs,
        echo["ratio_min"].as_f64().unwrap_or(0.0),
        echo["ratio_max"].as_f64().unwrap_or(0.0),
    ));
    for leg in [&receive, &echo] {
        if let Some(why) = leg["void"].as_str() {
            text.push_str(&format!("void: {why}\n"));
        }
    }
    let value = json!({
        "server_rx_pps": receive["server_rx_pps"],
        "server_tx_pps": receive["server_tx_pps"],
        "drops": receive["drops"],
        "core_busy": receive["core_busy"],
        "echo_pps": echo["echo_pps"],
        "server_pps": echo["server_pps"],
        "ratio": echo["ratio"],
        "sessions": args.sessions,
        "payload_bytes": receive["payload_bytes"],
        "pairs": args.pairs,
        "receive": receive,
        "echo": echo,
        "provenance": Provenance::here(),
    });
    say(json, &text, || value)?;
    Ok(ExitCode::SUCCESS)
}

impl Stage {
    /// A server whose only shard runs on the last of `cpus`, with everybody in it; this thread is on the first.
    fn set(
        program: &std::path::Path,
        cpus: &[usize],
        send_hz: u32,
        sessions: u64,
        stopped: &AtomicBool,
    ) -> Result<Stage, Failure> {
        let work = Work::make("pps", None)?;
        let config = work.path().join("config.toml");
        std::fs::write(&config, format!("[net]\nsend_hz = {send_hz}\n[record]\nflight = \"off\"\n"))
            .map_err(|error| Failure::of_file("write", &config, &error))?;
        let (load_cpu, cpu) = (cpus[0], cpus[cpus.len() - 1]);
        let (data, pinned) = (work.path().join("data"), cpu.to_string());
        let arguments = [
            "--shards".as_ref(),
            "1".as_ref(),
            "--cpus".as_ref(),
            pinned.as_ref(),
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
        let machine = |error: std::io::Error| Failure::new(Code::Machine, format!("no client can be made: {error}"));
        let clients = (0..sessions).map(|number| Client::new(number, server.game, Duration::ZERO)?.map_err(machine));
        let mut clients = clients.collect::<Result<Vec<Client>, Failure>>()?;
        let mut drive = Drive::new(&clients).map_err(machine)?;
        eprintln!("{sessions} clients join");
        let begin = Instant::now();
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
        let mut stage = Stage { server, clients, drive, cpu, _work: work };
        stage.calm(SETTLE);
        Ok(stage)
    }

    /// Plays on with few inputs.
    fn calm(&mut self, time: Duration) {
        let turns_hz = self.clients.len() as f64 * 4.0;
        self.drive.run(&mut self.clients, turns_hz, time);
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
        self.calm(SETTLE);
        Ok(Taken { leg, received, answer_pps, drops: after.1 - before.1, busy })
    }

    /// The first of some measurements whose load was not late, or the last.
    fn take_timely(&mut self, bursts_hz: f64, burst: usize, time: Duration) -> Result<Taken, Failure> {
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

    fn leave(mut self) -> Result<(), Failure> {
        let now = self.drive.now();
        self.clients.iter_mut().for_each(|client| client.leave(now));
        self.server.terminate().map_err(|text| Failure::new(Code::Failed, text))
    }
}

impl Taken {
    /// Datagrams that were lost at either end.
    fn lost(&self) -> u64 {
        self.drops + self.leg.counts.blocked + self.leg.counts.sent.saturating_sub(self.received)
    }

    fn is_clean(&self) -> bool {
        self.lost() == 0 && self.leg.counts.wrong == 0 && self.leg.is_timely()
    }
}

/// The highest rate without a loss, and what the core does at it.
fn receive_leg(stage: &mut Stage, args: &PpsArgs, stopped: &AtomicBool) -> Result<Value, Failure> {
    let time = Duration::from_secs(args.seconds);
    let (mut rate, mut best, mut broke) = (RATE_FIRST, args.rate.map(f64::from), Value::Null);
    while args.rate.is_none() && rate <= RATE_MAX && !stopped.load(std::sync::atomic::Ordering::Relaxed) {
        let taken = stage.take_timely(rate / BURST as f64, BURST, TRY)?;
        eprintln!(
            "{rate:.0}/s: {} sent, {} received, {} lost, {:.0} snapshots/s, core {:.0} % busy, load {:.0} % busy, late {} us",
            taken.leg.counts.sent,
            taken.received,
            taken.lost(),
            taken.answer_pps,
            taken.busy * 100.0,
            taken.leg.cpu_s / taken.leg.seconds * 100.0,
            taken.leg.late_us.value_at_quantile(0.99),
        );
        if !taken.is_clean() {
            broke = json!({ "rate": rate, "lost": taken.lost(), "load_late_us_p99": taken.leg.late_us.value_at_quantile(0.99) });
            break;
        }
        best = Some(rate);
        rate *= RATE_STEP;
    }
    let rate = best.unwrap_or(RATE_FIRST);
    let taken = stage.take_timely(rate / BURST as f64, BURST, time)?;
    let Taken { leg, received, answer_pps, busy, .. } = &taken;
    let void = (!taken.is_clean()).then(|| format!("{} datagrams were lost, or the load was late", taken.lost()));
    Ok(json!({
        "server_rx_pps": *received as f64 / leg.seconds,
        "server_tx_pps": answer_pps,
        "drops": taken.lost(),
        "core_busy": busy,
        "payload_bytes": leg.counts.sent_bytes as f64 / leg.counts.sent.max(1) as f64,
        "burst": BURST,
        "load_busy": leg.cpu_s / leg.seconds,
        "load_late_us_p99": leg.late_us.value_at_quantile(0.99),
        "broke_at": broke,
        "void": void,
    }))
}

/// Server and echo one after the other, at one rate: what a datagram and its answer cost a core.
fn echo_leg(stage: &mut Stage, args: &PpsArgs, stopped: &AtomicBool) -> Result<Value, Failure> {
    let time = Duration::from_secs(args.seconds);
    let turns_hz = args.echo_sessions as f64 * f64::from(ECHO_SEND_HZ);
    let mut pairs = Vec::new();
    let mut void = None;
    for pair in 1..=args.pairs {
        if stopped.load(std::sync::atomic::Ordering::Relaxed) {
            break;
        }
        let taken = stage.take_timely(turns_hz, 1, time)?;
        let mean = |bytes: u64, count: u64| (bytes / count.max(1)) as usize;
        let sizes = (
            mean(taken.leg.counts.sent_bytes, taken.leg.counts.sent),
            mean(taken.leg.counts.heard_bytes, taken.leg.counts.heard),
        );
        stage.server.pause();
        let echoed = echo_once(stage.cpu, sizes, args.echo_sessions, turns_hz, time);
        stage.server.resume();
        let echoed = echoed.map_err(|error| Failure::new(Code::Machine, format!("no echo: {error}")))?;
        stage.calm(SETTLE);
        let server_pps = taken.answer_pps / taken.busy;
        let echo_pps = echoed.0.counts.heard as f64 / echoed.0.seconds / echoed.1;
        eprintln!(
            "pair {pair}: server {:.0} answers/s at {:.0} % of a core, echo {:.0}/s at {:.0} %: {:.2}",
            taken.answer_pps,
            taken.busy * 100.0,
            echoed.0.counts.heard as f64 / echoed.0.seconds,
            echoed.1 * 100.0,
            server_pps / echo_pps,
        );
        let lost = echoed.0.counts.sent.saturating_sub(echoed.0.counts.heard);
        if !taken.is_clean() {
            void = Some(format!("{} of the server's datagrams were lost, or the load was late", taken.lost()));
        } else if lost > echoed.0.counts.sent / 100 || !echoed.0.is_timely() {
            void = Some(format!("{lost} of the echo's datagrams were lost, or the load was late"));
        } else if !ECHO_US.contains(&(1e6 / echo_pps)) {
            void = Some(format!("the echo costs {:.2} us a datagram, which is no baseline here", 1e6 / echo_pps));
        }
        pairs.push((server_pps, echo_pps, taken.busy, sizes));
    }
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(0.0)
    };
    let ratios: Vec<f64> = pairs.iter().map(|(server, echo, ..)| server / echo).collect();
    let edge = |pick: fn(f64, f64) -> f64| ratios.iter().copied().reduce(pick).unwrap_or(0.0);
    Ok(json!({
        "server_pps": median(pairs.iter().map(|pair| pair.0).collect()),
        "echo_pps": median(pairs.iter().map(|pair| pair.1).collect()),
        "ratio": median(ratios.clone()),
        "ratio_min": edge(f64::min),
        "ratio_max": edge(f64::max),
        "sessions": args.echo_sessions,
        "rate_pps": turns_hz,
        "core_busy": median(pairs.iter().map(|pair| pair.2).collect()),
        "payload_bytes": { "input": pairs.last().map(|pair| pair.3.0), "answer": pairs.last().map(|pair| pair.3.1) },
        "void": void,
    }))
}

/// One measurement of the echo, and how busy its core was.
fn echo_once(
    cpu: usize,
    (input_bytes, answer_bytes): (usize, usize),
    clients: u64,
    turns_hz: f64,
    time: Duration,
) -> std::io::Result<(Leg, f64)> {
    let echo = Echo::start(cpu, answer_bytes)?;
    let pinger = |_| Pinger::new(echo.address, input_bytes);
    let mut pingers = (0..clients).map(pinger).collect::<std::io::Result<Vec<Pinger>>>()?;
    let mut drive = Drive::new(&pingers)?;
    let echo_cpu_s = || threads_cpu_s(std::process::id(), Echo::THREAD);
    let before_s = echo_cpu_s();
    let leg = drive.run(&mut pingers, turns_hz, time);
    let busy = (echo_cpu_s() - before_s) / leg.seconds;
    Ok((leg, busy))
}
