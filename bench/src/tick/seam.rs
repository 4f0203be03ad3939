//! `scale` and `handoff`: what a second core gives, and what it costs to cross from one shard to another.
//!
//! Owns nothing. Promises: both sides of a pair do the same work for the same players and run one after the other; figures
//! are CPU time of the slowest shard, without what it waits for the other. Needs two cores for two shards.

use std::process::ExitCode;

use clap::Args;
use ringshard::exit::{Code, Failure, say};
use serde_json::json;

use super::realm::{Haunts, Measured, Setting};
use super::{TICK_US, measure};
use crate::machine::Provenance;
use crate::spread::Spread;

/// Players of a hundred who pace over the border, so that with the wildlife a fifth of everybody is near it.
const BORDER_PERCENT: u64 = 88;
/// Least share of everybody within sight of the border for the row to count.
const NEAR_SHARE_MIN: f64 = 0.20;
/// How far beside the border those pace who do not cross it, metres.
const ASIDE_M: i32 = 40;

/// Arguments of `scale`.
#[derive(Args, Clone, Debug)]
pub struct ScaleArgs {
    /// Players.
    #[arg(long, default_value_t = 5_000, value_name = "N", value_parser = clap::value_parser!(u64).range(100..=16_000))]
    players: u64,
    /// Wildlife.
    #[arg(long, default_value_t = 20_000, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=100_000))]
    npcs: u32,
    /// Pairs of one and two shards.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=50))]
    pairs: u32,
    /// Ticks of each that are measured.
    #[arg(long, default_value_t = 300, value_name = "N", value_parser = clap::value_parser!(u64).range(60..=36_000))]
    ticks: u64,
}

/// Arguments of `handoff`.
#[derive(Args, Clone, Debug)]
pub struct HandoffArgs {
    /// Players, all at the border.
    #[arg(long, default_value_t = 2_000, value_name = "N", value_parser = clap::value_parser!(u64).range(100..=16_000))]
    players: u64,
    /// Pairs of players who cross and players who do not.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=50))]
    pairs: u32,
    /// Ticks of each that are measured.
    #[arg(long, default_value_t = 600, value_name = "N", value_parser = clap::value_parser!(u64).range(60..=36_000))]
    ticks: u64,
}

/// Measures `scale` and prints its figures.
pub fn scale(args: &ScaleArgs, json: bool) -> Result<ExitCode, Failure> {
    two_cores("scale")?;
    let haunts = Haunts::Border { percent: BORDER_PERCENT, aside_m: 0 };
    let setting = Setting { players: args.players, npcs: args.npcs, haunts, shards: 1, send_hz: 20 };
    let (mut one, mut two) = (Vec::new(), Vec::new());
    for pair in 1..=args.pairs {
        one.push(measure(setting, args.ticks)?);
        two.push(measure(Setting { shards: 2, ..setting }, args.ticks)?);
        eprintln!("pair {pair} of {}: {:.3}", args.pairs, quotient(&one[one.len() - 1], &two[two.len() - 1]));
    }
    let ratio = Spread::of(one.iter().zip(&two).map(|(one, two)| quotient(one, two))).expect("at least one pair");
    let per_s = |all: &[Measured]| Spread::of(all.iter().map(|measured| player_ticks_per_s(measured, args.players)));
    let (one_shard, two_shards) = (per_s(&one).expect("as above"), per_s(&two).expect("as above"));
    let work = |all: &[Measured]| all.iter().map(|one| one.phase_ns.iter().sum::<u64>()).sum::<u64>() as f64;
    let slowest = two.iter().map(|two| two.ticks_ns.iter().sum::<u64>()).sum::<u64>() as f64;
    // What is missing to twice as much: work that only two shards have, and that one has more of it than the other.
    let (more_work, uneven) = (work(&two) / work(&one), slowest / (work(&two) / 2.0));
    let near = two.iter().map(near_share).sum::<f64>() / f64::from(args.pairs);
    let handoffs = two.iter().map(|measured| measured.handoffs).sum::<u64>() as f64;
    let handoffs_per_tick = handoffs / f64::from(args.pairs) / args.ticks as f64;
    let void = (near < NEAR_SHARE_MIN).then(|| format!("{:.0} % of everybody are near the border", 100.0 * near));
    let text = format!(
        "{} players and {} wildlife, {:.0} % of them within sight of the border, {handoffs_per_tick:.0} handoffs a tick\n\
         one shard    {:.0} player ticks a second\ntwo shards   {:.0}\nratio        {:.3} ({:.3} to {:.3}): {:.1} % more work, the slower shard {:.1} % over the mean{}\n",
        args.players,
        args.npcs,
        100.0 * near,
        one_shard.median,
        two_shards.median,
        ratio.median,
        ratio.min,
        ratio.max,
        100.0 * (more_work - 1.0),
        100.0 * (uneven - 1.0),
        void.as_ref().map_or(String::new(), |why| format!("\nvoid: {why}"))
    );
    say(json, &text, || {
        json!({
            "one_shard": one_shard.median,
            "two_shards": two_shards.median,
            "ratio": ratio.median,
            "ratio_min": ratio.min,
            "ratio_max": ratio.max,
            "players": args.players,
            "npcs": args.npcs,
            "near_border_share": near,
            "work_ratio": more_work,
            "slowest_to_mean": uneven,
            "handoffs_per_tick": handoffs_per_tick,
            "pairs": args.pairs,
            "void": void,
            "provenance": Provenance::here(),
        })
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Measures `handoff` and prints its figures.
pub fn handoff(args: &HandoffArgs, json: bool) -> Result<ExitCode, Failure> {
    two_cores("handoff")?;
    let at = |aside_m| {
        let haunts = Haunts::Border { percent: 100, aside_m };
        measure(Setting { players: args.players, npcs: 0, haunts, shards: 2, send_hz: 20 }, args.ticks)
    };
    let (mut each_us, mut per_tick, mut tick_us) = (Vec::new(), 0.0, 0.0);
    for pair in 1..=args.pairs {
        let (crossing, beside) = (at(0)?, at(ASIDE_M)?);
        if beside.handoffs > 0 || crossing.handoffs == 0 {
            let text = format!("{} crossed, {} of those beside the border", crossing.handoffs, beside.handoffs);
            return Err(Failure::new(Code::Failed, text));
        }
        let spent_ns = |measured: &Measured| measured.phase_ns.iter().sum::<u64>() as f64;
        each_us.push((spent_ns(&crossing) - spent_ns(&beside)) / 1e3 / crossing.handoffs as f64);
        per_tick += crossing.handoffs as f64 / args.ticks as f64 / f64::from(args.pairs);
        tick_us += crossing.tick_ns_mean() / 1e3 / f64::from(args.pairs);
        eprintln!("pair {pair} of {}: {:.2} us", args.pairs, each_us[each_us.len() - 1]);
    }
    let cost = Spread::of(each_us.into_iter()).expect("at least one pair");
    let text = format!(
        "{} players pace over the border between two shards: {per_tick:.1} handoffs a tick, of {tick_us:.0} us ({:.1} % of a core)\n\
         a handoff costs both shards together {:.2} us ({:.2} to {:.2})\n",
        args.players,
        100.0 * tick_us / TICK_US,
        cost.median,
        cost.min,
        cost.max
    );
    say(json, &text, || {
        json!({
            "players": args.players,
            "handoffs_per_tick": per_tick,
            "us_per_handoff": cost.median,
            "us_per_handoff_min": cost.min,
            "us_per_handoff_max": cost.max,
            "tick_us_mean": tick_us,
            "pairs": args.pairs,
            "provenance": Provenance::here(),
        })
    })?;
    Ok(ExitCode::SUCCESS)
}

fn two_cores(what: &str) -> Result<(), Failure> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if cores >= 2 {
        return Ok(());
    }
    Err(Failure::new(
        Code::Unavailable,
        format!("{what} needs two cores, one for each shard; this process may use {cores}"),
    ))
}

fn quotient(one: &Measured, two: &Measured) -> f64 {
    one.tick_ns_mean() / two.tick_ns_mean()
}

fn player_ticks_per_s(measured: &Measured, players: u64) -> f64 {
    players as f64 * 1e9 / measured.tick_ns_mean()
}

fn near_share(measured: &Measured) -> f64 {
    measured.at_border as f64 / measured.looked_at.max(1) as f64
}
