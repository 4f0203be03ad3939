//! `edge`: how late a shard's ticks begin, beside a bare loop on an absolute timer.
//!
//! Owns a server and the echo, as `pps` does. Promises: both run on the same core in turn and get the same datagrams; all
//! edges of all pairs count together, because the 99th percentile of one pair is three of them. Needs two cores.

use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::Args;
use ringshard::control::client::status;
use ringshard::control::status::EdgeLateUs;
use ringshard::exit::{Code, Failure, say};
use ringshard::io::Backend;
use serde_json::json;

use super::stage::{Setting, Stage, cores};
use super::{ECHO_SEND_HZ, NPCS, echo_once};
use crate::machine::Provenance;
use crate::node::server_program;
use crate::spread::Spread;
use crate::swarm::stop_on_signal;

/// Arguments of `edge`.
#[derive(Args, Clone, Debug)]
pub struct EdgeArgs {
    /// Sessions, each with 60 inputs and snapshots a second.
    #[arg(long, default_value_t = 500, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=4_000))]
    sessions: u64,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 3, value_name = "S", value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// Pairs of server and bare loop, one after the other.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=50))]
    pairs: u32,
    /// The server's program; without it, the `ringshard` beside this one.
    #[arg(long, value_name = "PATH")]
    server: Option<std::path::PathBuf>,
}

/// Runs the pairs and prints what came of them.
pub fn run(args: &EdgeArgs, json: bool) -> Result<ExitCode, Failure> {
    let program = server_program(args.server.as_deref())?;
    let stopped = stop_on_signal()?;
    ringshard::sys::raise_open_files();
    let cpus = cores()?;
    let setting = Setting { io: Backend::Ring, send_hz: ECHO_SEND_HZ, npcs: NPCS, sessions: args.sessions };
    let mut stage = Stage::set(&program, &cpus, setting, &stopped)?;
    let time = Duration::from_secs(args.seconds);
    let turns_hz = args.sessions as f64 * f64::from(ECHO_SEND_HZ);
    let edges = |stage: &Stage| Ok::<_, Failure>(status(stage.server.control)?.shards[0].edge_late_us.clone());
    let (mut server, mut bare, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let (mut busy, mut void) = ((0.0, 0.0), None);
    for pair in 1..=args.pairs {
        if stopped.load(Ordering::Relaxed) {
            break;
        }
        let before = edges(&stage)?;
        let taken = stage.take_timely(turns_hz, 1, time)?;
        let server_late = edges(&stage)?.since(&before);
        let mean = |bytes: u64, count: u64| (bytes / count.max(1)) as usize;
        let counts = &taken.leg.counts;
        let sizes = (mean(counts.sent_bytes, counts.sent), mean(counts.heard_bytes, counts.heard));
        stage.server.pause();
        let echoed = echo_once(stage.cpu, sizes, args.sessions, turns_hz, time);
        stage.server.resume();
        let echoed = echoed.map_err(|error| Failure::new(Code::Machine, format!("no bare loop: {error}")))?;
        stage.calm();
        if !taken.leg.is_timely() || !echoed.leg.is_timely() {
            void = Some("the load was late");
        }
        let recorded = echoed.late_us.iter_recorded();
        let bare_late =
            EdgeLateUs::of(recorded.map(|late| (late.value_iterated_to(), late.count_at_value())).collect());
        eprintln!("pair {pair} of {}: server {} us p99, bare loop {} us", args.pairs, server_late.p99, bare_late.p99);
        ratios.push(server_late.p99 as f64 / bare_late.p99.max(1) as f64);
        busy = (taken.busy, echoed.busy);
        server.extend(server_late.counts);
        bare.extend(bare_late.counts);
    }
    stage.leave()?;
    let (server, bare) = (all(server), all(bare));
    let ratio = server.p99 as f64 / bare.p99.max(1) as f64;
    let spread = Spread::of(ratios.into_iter());
    let text = format!(
        "a tick begins late by {} us p50, {} us p99; a bare loop under the same load by {} and {}: {ratio:.2} ({:.2} to {:.2})\n\
         {} sessions at {ECHO_SEND_HZ} Hz; the shard's core is {:.0} % busy, the bare loop's {:.0} %{}\n",
        server.p50,
        server.p99,
        bare.p50,
        bare.p99,
        spread.map_or(ratio, |spread| spread.min),
        spread.map_or(ratio, |spread| spread.max),
        args.sessions,
        100.0 * busy.0,
        100.0 * busy.1,
        void.map_or(String::new(), |why| format!("\nvoid: {why}"))
    );
    say(json, &text, || {
        json!({
            "ratio": ratio,
            "ratio_min": spread.map(|spread| spread.min),
            "ratio_max": spread.map(|spread| spread.max),
            "server_late_us": { "p50": server.p50, "p99": server.p99 },
            "bare_late_us": { "p50": bare.p50, "p99": bare.p99 },
            "sessions": args.sessions,
            "pairs": args.pairs,
            "void": void,
            "provenance": Provenance::here(),
        })
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Edges of all pairs together.
fn all(mut counts: Vec<(u64, u64)>) -> EdgeLateUs {
    counts.sort_unstable();
    EdgeLateUs::of(counts)
}
