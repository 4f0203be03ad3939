//! Honest players beside hostile senders, and without them, by turns.
//!
//! Owns a server, and a swarm in a process of its own for each leg. Promises: legs are interleaved on one server, so that
//! what the machine does meets both; what is printed of the hostile side is what it really sent.

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use ringshard::exit::{Code, Failure, say};
use serde::Serialize;
use serde_json::Value;

use super::{Attack, AttackArgs, Outcome};
use crate::machine::Provenance;
use crate::node::{Server, Work, server_program};
use crate::spread::Spread;

/// Most that hostile senders may cost honest players: the p99 beside them by the p99 without.
const RATIO_MAX: f64 = 1.10;
/// Idle share that each core keeps beside them, so that it is the server that is judged and not the machine.
const IDLE_MIN: f64 = 0.30;

/// One leg of honest play.
#[derive(Clone, Debug, Serialize)]
struct Leg {
    attacked: bool,
    p99_ms: f64,
    lost: u64,
    errors: u64,
    void: bool,
    /// Of each core.
    idle: Vec<f64>,
}

/// All legs.
#[derive(Clone, Debug, Serialize)]
struct Report {
    shards: u32,
    io: String,
    players: u32,
    pairs: usize,
    ratio: Option<Spread>,
    lost: u64,
    errors: u64,
    idle_min: f64,
    legs: Vec<Leg>,
    kinds: Vec<Outcome>,
    wrong: Vec<String>,
    #[serde(flatten)]
    provenance: Provenance,
}

/// Runs the legs and prints what came of them.
pub fn run(args: &AttackArgs, pairs: u32, stopped: &AtomicBool, json: bool) -> Result<ExitCode, Failure> {
    let program = server_program(args.server.as_deref())?;
    let work = Work::make("attack", None)?;
    let data = work.path().join("data");
    let shards = args.shards.to_string();
    let arguments = ["--shards", &shards, "--io", &args.io, "--data", data.to_str().expect("a plain path")];
    let mut server = Server::start(&program, arguments, stopped).map_err(|text| Failure::new(Code::Failed, text))?;
    let (mut legs, mut kinds, mut wrong, mut ratios) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for pair in 1..=pairs {
        let calm = leg(args, &server, None)?;
        let attack = Attack::start(args.kind, server.game, args.count, args.rate)?;
        let attacked = leg(args, &server, Some(&attack))?;
        let (outcomes, mut found) = attack.end();
        let ratio = attacked.p99_ms / calm.p99_ms;
        eprintln!(
            "pair {pair} of {pairs}: p99 {:.1} ms calm, {:.1} ms attacked, ratio {ratio:.2}, {} lost, {} errors",
            calm.p99_ms,
            attacked.p99_ms,
            calm.lost + attacked.lost,
            calm.errors + attacked.errors
        );
        if !calm.void && !attacked.void {
            ratios.push(ratio);
        }
        legs.extend([calm, attacked]);
        kinds.extend(outcomes);
        wrong.append(&mut found);
        if let Some(words) = server.words_if_ended() {
            return Err(Failure::new(Code::Failed, format!("the server ended: {words}")));
        }
        if stopped.load(Ordering::Relaxed) {
            break;
        }
    }
    server.terminate().map_err(|text| Failure::new(Code::Failed, text))?;
    finish(args, legs, ratios, (kinds, wrong), json)
}

fn finish(
    args: &AttackArgs,
    legs: Vec<Leg>,
    ratios: Vec<f64>,
    (kinds, mut wrong): (Vec<Outcome>, Vec<String>),
    json: bool,
) -> Result<ExitCode, Failure> {
    let sum = |of: fn(&Leg) -> u64| legs.iter().map(of).sum::<u64>();
    let idle_min = legs.iter().filter(|leg| leg.attacked).flat_map(|leg| leg.idle.iter().copied()).fold(1.0, f64::min);
    let report = Report {
        shards: args.shards,
        io: args.io.clone(),
        players: args.players,
        pairs: ratios.len(),
        ratio: Spread::of(ratios.iter().copied()),
        lost: sum(|leg| leg.lost),
        errors: sum(|leg| leg.errors),
        idle_min,
        legs,
        kinds,
        wrong: Vec::new(),
        provenance: Provenance::here(),
    };
    if report.pairs == 0 {
        wrong.push("every pair is void: the load side was late".to_owned());
    }
    if report.lost + report.errors > 0 {
        wrong.push(format!("{} honest players were lost, and {} errors seen", report.lost, report.errors));
    }
    let ratio = report.ratio.map_or(f64::NAN, |ratio| ratio.median);
    if ratio > RATIO_MAX {
        wrong.push(format!("honest p99 is {ratio:.2} of calm, more than {RATIO_MAX}"));
    }
    if idle_min < IDLE_MIN {
        wrong.push(format!("a core was idle for {:.0} % only: choose a lower --rate", idle_min * 100.0));
    }
    let report = Report { wrong, ..report };
    let mut text = super::table(&report.kinds, &report.wrong);
    text += &format!(
        "honest   {} players, {} shard(s), {}: p99 beside them {ratio:.2} of calm (median of {} pairs), {} lost, {} errors, cores idle >= {:.0} %\n",
        report.players,
        report.shards,
        report.io,
        report.pairs,
        report.lost,
        report.errors,
        report.idle_min * 100.0
    );
    say(json, &text, || serde_json::to_value(&report).expect("finite numbers are JSON"))?;
    Ok(if report.wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(Code::Failed as u8) })
}

/// One leg: a swarm of honest players in a process of its own.
fn leg(args: &AttackArgs, server: &Server, attack: Option<&Attack>) -> Result<Leg, Failure> {
    let own = std::env::current_exe().map_err(|error| Failure::of_file("find", Path::new("this program"), &error))?;
    let before = core_times();
    let output = Command::new(own)
        .args(["swarm", "--json", "--players", &args.players.to_string(), "--duration", &args.duration.to_string()])
        .args(["--connect", &server.game.to_string()])
        .stderr(Stdio::null())
        .output()
        .map_err(|error| Failure::new(Code::Failed, format!("no swarm: {error}")))?;
    let idle = core_times().into_iter().zip(before).map(|(now, before)| now.idle_since(before)).collect();
    let value: Value = serde_json::from_slice(&output.stdout)
        .map_err(|error| Failure::new(Code::Failed, format!("the swarm says no JSON: {error}")))?;
    if let Some(why) = value["error"].as_str() {
        return Err(Failure::new(Code::Failed, why.to_owned()));
    }
    let number = |field: &str| value[field].as_u64().unwrap_or(u64::MAX);
    Ok(Leg {
        attacked: attack.is_some(),
        p99_ms: value["input_to_snapshot_ms"]["p99"].as_f64().unwrap_or(f64::NAN),
        lost: u64::from(args.players) - number("connected").min(args.players.into()) + number("disconnects"),
        errors: number("error_count"),
        void: value["void"].as_bool().unwrap_or(false),
        idle,
    })
}

/// Ticks of one core since the machine started.
#[derive(Clone, Copy)]
struct CoreTime {
    idle: u64,
    all: u64,
}

impl CoreTime {
    fn idle_since(self, before: CoreTime) -> f64 {
        (self.idle - before.idle) as f64 / (self.all - before.all).max(1) as f64
    }
}

/// Of each core; empty where the kernel does not tell.
fn core_times() -> Vec<CoreTime> {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let cores = text.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu "));
    let times = cores.map(|line| {
        let numbers: Vec<u64> = line.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
        // Idle, and waiting for a disk.
        CoreTime { idle: numbers.iter().skip(3).take(2).sum(), all: numbers.iter().take(8).sum() }
    });
    times.collect()
}
