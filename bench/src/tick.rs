//! `tick`: what a tick costs a shard, without kernel and cipher.
//!
//! Owns one realm of real shards, sessions and clients, each shard in a thread of its own. Promises: the code that serves does all the work; what
//! the clients do is not in the figures, which are CPU time of those threads; a body that a client must drop is an error.
//! Never opens a socket.

pub mod realm;
pub mod seam;

use std::process::ExitCode;

use clap::Args;
use ringshard::exit::{Code, Failure, say};
use serde_json::json;

use crate::machine::Provenance;
use realm::{Haunts, Measured, PHASES, Realm, Setting};

/// Ticks of a second.
const TICK_US: f64 = 1e6 / 60.0;
/// Ticks until everybody plays and every view is filled.
const WARM_UP_TICKS: u64 = 420;

/// Arguments of `tick`.
#[derive(Args, Clone, Debug)]
pub struct TickArgs {
    /// Players.
    #[arg(long, default_value_t = 5_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=16_000))]
    players: u64,
    /// Wildlife.
    #[arg(long, default_value_t = 20_000, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=100_000))]
    npcs: u32,
    /// Everybody in one disc of 30 m, four fifths standing still; else everybody wanders over all of the land.
    #[arg(long, conflicts_with = "spread")]
    crowd: bool,
    /// Everybody wanders over all of the land; this is what is done without --crowd.
    #[arg(long)]
    spread: bool,
    /// Shards, each in a thread of its own; the figures are those of the slowest.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=32))]
    shards: u8,
    /// Snapshots a second; clients send their commands as often.
    #[arg(long, default_value = "20", value_name = "HZ", value_parser = ["10", "20", "30", "60"])]
    send_hz: String,
    /// Ticks that are measured.
    #[arg(long, default_value_t = 600, value_name = "N", value_parser = clap::value_parser!(u64).range(60..=36_000))]
    ticks: u64,
}

/// What comes of a setting in so many ticks, once everybody plays and every view is filled.
pub fn measure(setting: Setting, ticks: u64) -> Result<Measured, Failure> {
    let realms = Realm::shards(setting).map_err(|text| Failure::new(Code::Failed, text))?;
    let run = |mut realm: Realm| {
        (1..=WARM_UP_TICKS).for_each(|tick| realm.tick(tick));
        realm.begin_measuring();
        (WARM_UP_TICKS + 1..=WARM_UP_TICKS + ticks).for_each(|tick| realm.tick(tick));
        realm.measured()
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let measured = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..)
            .zip(realms)
            .map(|(shard, realm)| {
                scope.spawn(move || {
                    if setting.shards > 1 {
                        // Where they cannot be pinned the scheduler keeps them apart as well as it can.
                        let _ = ringshard::sys::set_thread_cpus(&[shard % cores]);
                    }
                    run(realm)
                })
            })
            .collect();
        let all =
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        all.reduce(|mut all, one| {
            all.join(&one);
            all
        })
    });
    let measured = measured.expect("a realm has a shard");
    if measured.playing < setting.players || measured.errors > 0 {
        let text = format!("{} of {} play, {} bodies are wrong", measured.playing, setting.players, measured.errors);
        return Err(Failure::new(Code::Failed, text));
    }
    Ok(measured)
}

/// Runs the bench and prints its figures.
pub fn run(args: &TickArgs, json: bool) -> Result<ExitCode, Failure> {
    let setting = Setting {
        players: args.players,
        npcs: args.npcs,
        haunts: if args.crowd { Haunts::Crowd } else { Haunts::Land },
        shards: args.shards.into(),
        send_hz: args.send_hz.parse().expect("the parser allows numbers alone"),
    };
    let measured = measure(setting, args.ticks)?;
    let mut sorted_ns = measured.ticks_ns.clone();
    sorted_ns.sort_unstable();
    let us = |quantile: f64| sorted_ns[((sorted_ns.len() - 1) as f64 * quantile) as usize] as f64 / 1_000.0;
    let mean_us = measured.tick_ns_mean() / 1_000.0;
    let phases: Vec<(&str, f64)> = PHASES
        .iter()
        .zip(&measured.phase_ns)
        .map(|(name, ns)| (*name, *ns as f64 / 1_000.0 / args.ticks as f64))
        .collect();
    let stale: Vec<u64> = measured.stale.iter().map(|histogram| histogram.value_at_quantile(0.99)).collect();
    let value = json!({
        "players": args.players,
        "npcs": args.npcs,
        "shards": args.shards,
        "crowd": args.crowd,
        "send_hz": setting.send_hz,
        "ticks": args.ticks,
        "share_of_core": mean_us / TICK_US,
        "tick_us": {
            "mean": mean_us,
            "p50": us(0.5),
            "p99": us(0.99),
            "max": us(1.0),
        },
        "phase_us": phases.iter().copied().collect::<std::collections::BTreeMap<_, _>>(),
        "player_ticks_per_core_s": args.players as f64 * 1e6 / mean_us,
        "sends_per_tick": measured.sends as f64 / args.ticks as f64,
        "send_bytes_mean": measured.send_bytes as f64 / measured.sends.max(1) as f64,
        "encodes_per_entity_tick": measured.encoded as f64 / measured.entities as f64,
        "bits_per_update": measured.packed_bits as f64 / measured.moved.max(1) as f64,
        "allocations_per_tick": measured.allocations as f64 / args.ticks as f64,
        "rss_bytes": ringshard::sys::rss_bytes(),
        "stale_ticks_p99": { "near40": stale[0], "next200": stale[1], "rest": stale[2] },
        "sends_over_one_datagram": measured.over_one_datagram,
        "provenance": Provenance::here(),
    });
    let mut text = format!(
        "{} players and {} wildlife {}, {} shard(s), snapshots at {} Hz, {} ticks\n",
        args.players,
        args.npcs,
        if args.crowd { "in a crowd" } else { "all over the land" },
        args.shards,
        setting.send_hz,
        args.ticks
    );
    let mut line = |name: &str, value: String| text.push_str(&format!("{name:<24} {value}\n"));
    line("share of a core", format!("{:.3}", mean_us / TICK_US));
    line("tick", format!("mean {mean_us:.0} us, p50 {:.0}, p99 {:.0}, max {:.0}", us(0.5), us(0.99), us(1.0)));
    line("of it", phases.iter().map(|(name, us)| format!("{name} {us:.0}")).collect::<Vec<_>>().join(", ") + " us");
    let (sends, ticks) = (measured.sends.max(1) as f64, args.ticks as f64);
    line("sends a tick", format!("{:.0} of {:.0} bytes", sends / ticks, measured.send_bytes as f64 / sends));
    line("encodes an entity, tick", format!("{:.2}", measured.encoded as f64 / measured.entities as f64));
    line("bits a moved entity", format!("{:.1}", measured.packed_bits as f64 / measured.moved.max(1) as f64));
    line("allocations a tick", format!("{:.1}", measured.allocations as f64 / ticks));
    line("stale ticks p99", format!("nearest 40: {}, next 200: {}, rest: {}", stale[0], stale[1], stale[2]));
    line("beyond one datagram", measured.over_one_datagram.to_string());
    say(json, &text, || value)?;
    Ok(ExitCode::SUCCESS)
}
