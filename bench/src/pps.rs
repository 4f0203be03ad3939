//! `pps`: what one shard core takes and answers, datagrams a second, beside a bare echo on the same core; and what that
//! costs by io_uring beside the same server without it.
//!
//! Owns a server of its own for each leg, the echo, and the clients. Promises: real sockets and the real protocol; what was
//! lost anywhere is counted at both ends and voids the rate it was lost at; the busy share of a core is the CPU time of the
//! one thread that is pinned to it, interrupts included, for server and echo alike. Never loads anything but the loopback.

mod backends;
mod client;
mod echo;
pub mod edge;
pub mod join;
mod stage;

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use hdrhistogram::Histogram;
use ringshard::exit::{Code, Failure, say};
use ringshard::io::Backend;
use ringshard::sys;
use serde_json::{Value, json};

use crate::drive::{Drive, Leg};
use crate::machine::{Provenance, threads_cpu_s};
use crate::node::server_program;
use crate::spread::Spread;
use crate::swarm::stop_on_signal;
use client::BURST_MAX;
use echo::{Echo, Pinger};
use stage::{Setting, Stage, Taken, cores};

/// Datagrams that a client may send together in the receive leg.
const BURST: usize = BURST_MAX;
/// Rates of the receive leg, datagrams a second: the first, and how they rise.
const RATE_FIRST: f64 = 250_000.0;
const RATE_STEP: f64 = 1.12;
const RATE_MAX: f64 = 1_200_000.0;
/// One try of a rate.
const TRY: Duration = Duration::from_millis(1_500);
/// Times as many pairs that are tried until there are enough in which nothing was lost or late.
const PAIR_TRIES: u32 = 2;
/// Wildlife of the land, as many as a server has without being told.
const NPCS: u32 = 5_000;
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
    /// What the server is held against: a bare echo, after what it receives at the most; or itself with --io mmsg, at one
    /// rate: CPU time of a datagram and its answer by io_uring ÷ by recvmmsg and sendmmsg (`ring_to_mmsg_cpu_ratio`).
    #[arg(long, value_enum, value_name = "WHAT", default_value = "echo")]
    baseline: Baseline,
    /// Sessions of the echo leg and of each backend, each with 60 inputs a second.
    #[arg(long, default_value_t = 2_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=16_000))]
    echo_sessions: u64,
    /// Datagrams a second of the receive leg, without it the highest that loses nothing; of each backend, without it 60 a
    /// session.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1_000..=2_000_000))]
    rate: Option<u32>,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 2, value_name = "S", value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// Pairs of server and baseline, one after the other.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=50))]
    pairs: u32,
    /// The server's program; without it, the `ringshard` beside this one.
    #[arg(long, value_name = "PATH")]
    server: Option<std::path::PathBuf>,
}

/// What a server is held against.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Baseline {
    /// A bare `recvmmsg` to `sendmmsg` echo.
    Echo,
    /// The same server with `--io mmsg`.
    Mmsg,
}

/// Runs both legs, or the pairs of both backends, and prints their figures.
pub fn run(args: &PpsArgs, json: bool) -> Result<ExitCode, Failure> {
    let program = server_program(args.server.as_deref())?;
    let stopped = stop_on_signal()?;
    sys::raise_open_files();
    let cpus = cores()?;
    if args.baseline == Baseline::Mmsg {
        return backends::run(args, &program, &cpus, &stopped, json).map(|()| ExitCode::SUCCESS);
    }
    let receive = {
        let setting = Setting { io: Backend::Ring, send_hz: RECEIVE_SEND_HZ, npcs: NPCS, sessions: args.sessions };
        let mut stage = Stage::set(&program, &cpus, setting, &stopped)?;
        let receive = receive_leg(&mut stage, args, &stopped)?;
        stage.leave()?;
        receive
    };
    let echo = {
        let setting = Setting { io: Backend::Ring, send_hz: ECHO_SEND_HZ, npcs: NPCS, sessions: args.echo_sessions };
        let mut stage = Stage::set(&program, &cpus, setting, &stopped)?;
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

/// The highest rate without a loss, and what the core does at it.
fn receive_leg(stage: &mut Stage, args: &PpsArgs, stopped: &AtomicBool) -> Result<Value, Failure> {
    let time = Duration::from_secs(args.seconds);
    let (mut rate, mut best, mut broke) = (RATE_FIRST, args.rate.map(f64::from), Value::Null);
    while args.rate.is_none() && rate <= RATE_MAX && !stopped.load(Ordering::Relaxed) {
        let taken = stage.take_timely(rate / BURST as f64, BURST, TRY)?;
        eprintln!(
            "{rate:.0}/s: {} sent, {} received, {} lost, {:.0} snapshots/s, core {:.0} % busy, load late {} us",
            taken.leg.counts.sent,
            taken.received,
            taken.lost(),
            taken.answer_pps,
            taken.busy * 100.0,
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
    let void = (!taken.is_clean()).then(|| match taken.lost() {
        0 => format!("the load was late by {} us", leg.late_us.value_at_quantile(0.99)),
        lost => format!("{lost} datagrams were lost"),
    });
    Ok(json!({
        "server_rx_pps": *received as f64 / leg.seconds,
        "server_tx_pps": answer_pps,
        "drops": taken.lost(),
        "core_busy": busy,
        "payload_bytes": leg.counts.sent_bytes as f64 / leg.counts.sent.max(1) as f64,
        "burst": BURST,
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
    for pair in 1..=args.pairs * PAIR_TRIES {
        if stopped.load(Ordering::Relaxed) || pairs.len() == args.pairs as usize {
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
        stage.calm();
        let server_pps = taken.answer_pps / taken.busy;
        let (heard, seconds) = (echoed.leg.counts.heard, echoed.leg.seconds);
        let echo_pps = heard as f64 / seconds / echoed.busy;
        eprintln!(
            "pair {pair}: server {:.0} answers/s at {:.0} % of a core, echo {:.0}/s at {:.0} %: {:.2}",
            taken.answer_pps,
            taken.busy * 100.0,
            heard as f64 / seconds,
            echoed.busy * 100.0,
            server_pps / echo_pps,
        );
        let lost = echoed.leg.counts.sent.saturating_sub(heard);
        let mut unclean = None;
        if !taken.is_clean() {
            unclean = Some(format!("{} of the server's datagrams were lost, or the load was late", taken.lost()));
        } else if lost > echoed.leg.counts.sent / 100 || !echoed.leg.is_timely() {
            unclean = Some(format!("{lost} of the echo's datagrams were lost, or the load was late"));
        } else if !ECHO_US.contains(&(1e6 / echo_pps)) {
            unclean = Some(format!("the echo costs {:.2} us a datagram, which is no baseline here", 1e6 / echo_pps));
        }
        // Such a pair is made again.
        match unclean {
            Some(why) => void = Some(why),
            None => pairs.push((server_pps, echo_pps, taken.busy, sizes)),
        }
    }
    let void = void.filter(|_| pairs.len() < args.pairs as usize);
    let ratio = Spread::of(pairs.iter().map(|(server, echo, ..)| server / echo));
    let median = |values: Vec<f64>| Spread::of(values.into_iter()).map(|spread| spread.median);
    Ok(json!({
        "server_pps": median(pairs.iter().map(|pair| pair.0).collect()),
        "echo_pps": median(pairs.iter().map(|pair| pair.1).collect()),
        "ratio": ratio.map(|ratio| ratio.median),
        "ratio_min": ratio.map(|ratio| ratio.min),
        "ratio_max": ratio.map(|ratio| ratio.max),
        "sessions": args.echo_sessions,
        "rate_pps": turns_hz,
        "core_busy": median(pairs.iter().map(|pair| pair.2).collect()),
        "payload_bytes": { "input": pairs.last().map(|pair| pair.3.0), "answer": pairs.last().map(|pair| pair.3.1) },
        "void": void,
    }))
}

/// A measurement of the echo.
struct Echoed {
    leg: Leg,
    /// Share of its core.
    busy: f64,
    /// How late its ticks began, microseconds.
    late_us: Histogram<u64>,
}

/// One measurement of the echo.
fn echo_once(
    cpu: usize,
    (input_bytes, answer_bytes): (usize, usize),
    clients: u64,
    turns_hz: f64,
    time: Duration,
) -> std::io::Result<Echoed> {
    let echo = Echo::start(cpu, answer_bytes)?;
    let pinger = |_| Pinger::new(echo.address, input_bytes);
    let mut pingers = (0..clients).map(pinger).collect::<std::io::Result<Vec<Pinger>>>()?;
    let mut drive = Drive::new(&pingers)?;
    let echo_cpu_s = || threads_cpu_s(std::process::id(), Echo::THREAD);
    let before_s = echo_cpu_s();
    let leg = drive.run(&mut pingers, turns_hz, time);
    let busy = (echo_cpu_s() - before_s) / leg.seconds;
    Ok(Echoed { leg, busy, late_us: echo.end() })
}
