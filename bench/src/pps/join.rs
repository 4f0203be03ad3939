//! `join`: how long it takes until thousands play who all come at once, and what each of them costs in memory.
//!
//! Owns a server for each run. Promises: the real handshake over real sockets, tokens from one source; a client that did
//! not get in fails the run. Never measures with what an earlier run left behind.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use ringshard::control::client::status;
use ringshard::exit::{Failure, say};
use ringshard::io::Backend;
use serde_json::json;

use super::stage::{Setting, Stage, cores};
use crate::machine::Provenance;
use crate::node::server_program;
use crate::swarm::stop_on_signal;

/// Snapshots a second and session.
const SEND_HZ: u32 = 10;

/// Arguments of `join`.
#[derive(Args, Clone, Debug)]
pub struct JoinArgs {
    /// Clients.
    #[arg(long, default_value_t = 5_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=16_000))]
    players: u64,
    /// Wildlife.
    #[arg(long, default_value_t = 20_000, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=100_000))]
    npcs: u32,
    /// Runs, each with a new server.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=20))]
    runs: u32,
    /// The server's program; without it, the `ringshard` beside this one.
    #[arg(long, value_name = "PATH")]
    server: Option<std::path::PathBuf>,
}

/// One run.
struct Joined {
    all_s: f64,
    p99_ms: f64,
    rss_bytes: u64,
    rss_per_client_bytes: u64,
}

/// Runs the bench and prints the run in the middle.
pub fn run(args: &JoinArgs, json: bool) -> Result<ExitCode, Failure> {
    let program = server_program(args.server.as_deref())?;
    let stopped = stop_on_signal()?;
    ringshard::sys::raise_open_files();
    let cpus = cores()?;
    let mut runs = Vec::new();
    for number in 1..=args.runs {
        let setting = Setting { io: Backend::Ring, send_hz: SEND_HZ, npcs: args.npcs, sessions: args.players };
        let stage = Stage::set(&program, &cpus, setting, &stopped)?;
        let (rss_bytes, before_bytes) = (status(stage.server.control)?.rss_bytes, stage.rss_before_bytes);
        let at = |share: f64| stage.joins[((stage.joins.len() - 1) as f64 * share) as usize];
        let (all, p99) = (at(1.0), at(0.99));
        stage.leave()?;
        let joined = Joined {
            all_s: all.as_secs_f64(),
            p99_ms: p99.as_secs_f64() * 1e3,
            rss_bytes,
            rss_per_client_bytes: rss_bytes.saturating_sub(before_bytes) / args.players,
        };
        eprintln!(
            "run {number}: {} play after {:.2} s, {} MiB, {} bytes a client",
            args.players,
            joined.all_s,
            joined.rss_bytes >> 20,
            joined.rss_per_client_bytes
        );
        runs.push(joined);
        // Two servers of one place never meet: the kernel needs a moment to take the rings apart.
        std::thread::sleep(Duration::from_millis(300));
    }
    runs.sort_by(|a, b| a.all_s.total_cmp(&b.all_s));
    let middle = &runs[runs.len() / 2];
    let joins_per_s = args.players as f64 / middle.all_s;
    let spread: Vec<f64> = runs.iter().map(|run| run.all_s).collect();
    let text = format!(
        "{} clients play after {:.2} s: {joins_per_s:.0} joins/s, p99 {:.0} ms, 0 failed ({} runs, {:.2} to {:.2} s)\n\
         {} MiB with {} wildlife, {} bytes a client\n",
        args.players,
        middle.all_s,
        middle.p99_ms,
        runs.len(),
        spread[0],
        spread[spread.len() - 1],
        middle.rss_bytes >> 20,
        args.npcs,
        middle.rss_per_client_bytes,
    );
    let value = json!({
        "joins_per_s": joins_per_s,
        "joined": args.players,
        "failed": 0,
        "seconds": middle.all_s,
        "p99_ms": middle.p99_ms,
        "npcs": args.npcs,
        "rss_bytes": middle.rss_bytes,
        "rss_per_client_bytes": middle.rss_per_client_bytes,
        "runs_s": spread,
        "provenance": Provenance::here(),
    });
    say(json, &text, || value)?;
    Ok(ExitCode::SUCCESS)
}
