//! `instructions`: how many instructions the step, the encoder and the packet path take, beside their references.
//!
//! Owns the fixed work of each row. Promises: callgrind runs it, and counts the functions alone that the row names; the
//! same code gives the same count on every x86-64 machine with AVX2, whatever else runs there; a row that grew by more
//! than [`GROWTH_MAX`] is a failure that says how to change its reference. Never measures time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, thread};

use clap::Args;
use ringshard::exit::{Code, Failure, say};
use serde_json::json;

use crate::machine::Provenance;
use crate::tick::realm::{Haunts, Realm, Setting};
use crate::wire::{PACKET_BYTES_MAX, Packets};

/// How much more than its reference a row may take.
const GROWTH_MAX: f64 = 0.05;
/// Ticks of a row: joins first, then everybody plays.
const TICKS: u64 = 90;
/// Packets of a row.
const PACKETS: u32 = 1_000;
/// First lines of the file with the references.
const HEAD: &str = "\
# Instructions that callgrind counts of each path. scripts/test fails when one grows by more than 5 %. Where that is worth it
# (or the compiler is another one), in the same commit: ringshard-bench instructions --write
";

/// Arguments of `instructions`.
#[derive(Args, Clone, Debug)]
pub struct InstructionsArgs {
    /// The row of this name alone; may be given again.
    #[arg(long, value_name = "NAME")]
    row: Vec<String>,
    /// Makes what was counted the reference.
    #[arg(long, conflicts_with_all = ["row", "work"])]
    write: bool,
    /// Does the work of a row and counts nothing: what callgrind is given to run.
    #[arg(long, value_name = "NAME")]
    work: Option<String>,
    /// The file with the references.
    #[arg(long, default_value = "bench/instructions.toml", value_name = "FILE")]
    references: PathBuf,
}

/// What is counted together.
struct Row {
    name: &'static str,
    functions: &'static [&'static str],
    work: Work,
}

#[derive(Clone, Copy)]
enum Work {
    Ticks(Haunts),
    Packets,
}

const SPREAD: Work = Work::Ticks(Haunts::Land);
const CROWD: Work = Work::Ticks(Haunts::Crowd);
/// Inputs, effects, wildlife, players.
const STEP: &[&str] = &["Realm::step"];
/// The frame: grouping, showing, encoding each slice.
const ENCODER: &[&str] = &["Realm::show"];
/// Bodies that come are read, acknowledged and applied; bodies that go are filled.
const BODIES: &[&str] = &["Realm::receive", "Realm::send"];
/// A packet is sealed, opened and parsed; the cipher is part of it.
const PACKET: &[&str] = &["Packets::seal", "Packets::open", "Packets::parse"];
const ROWS: [Row; 7] = [
    Row { name: "step_spread", functions: STEP, work: SPREAD },
    Row { name: "step_crowd", functions: STEP, work: CROWD },
    Row { name: "encoder_spread", functions: ENCODER, work: SPREAD },
    Row { name: "encoder_crowd", functions: ENCODER, work: CROWD },
    Row { name: "bodies_spread", functions: BODIES, work: SPREAD },
    Row { name: "bodies_crowd", functions: BODIES, work: CROWD },
    Row { name: "packets", functions: PACKET, work: Work::Packets },
];

/// A row and what it came to.
struct Counted {
    name: &'static str,
    instructions: u64,
    /// None where there is no reference yet.
    growth: Option<f64>,
}

impl Counted {
    fn grew(&self) -> bool {
        self.growth.is_none_or(|growth| growth > GROWTH_MAX)
    }
}

/// Counts and compares, or does the work of one row.
pub fn run(args: &InstructionsArgs, json: bool) -> Result<ExitCode, Failure> {
    if let Some(name) = &args.work {
        return row(name)?.work.done().map(|()| ExitCode::SUCCESS);
    }
    let wanted: Vec<&Row> = match args.row.is_empty() {
        true => ROWS.iter().collect(),
        false => args.row.iter().map(|name| row(name)).collect::<Result<_, _>>()?,
    };
    let counts = count_all(&wanted)?;
    if args.write {
        let lines: String = counts.iter().map(|(name, count)| format!("{name} = {count}\n")).collect();
        std::fs::write(&args.references, HEAD.to_owned() + &lines)
            .map_err(|error| Failure::of_file("write", &args.references, &error))?;
    }
    let references = references(&args.references)?;
    let growth = |name: &str, count: u64| Some(count as f64 / *references.get(name)? as f64 - 1.0);
    let counted: Vec<Counted> = counts
        .into_iter()
        .map(|(name, instructions)| Counted { name, instructions, growth: growth(name, instructions) })
        .collect();
    report(&counted, &args.references, json)
}

fn row(name: &str) -> Result<&'static Row, Failure> {
    ROWS.iter().find(|row| row.name == name).ok_or_else(|| {
        let names: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
        Failure::new(Code::Usage, format!("there is no row {name}; there are {}", names.join(", ")))
    })
}

fn report(counted: &[Counted], path: &Path, json: bool) -> Result<ExitCode, Failure> {
    let mut text = String::new();
    for Counted { name, instructions, growth } in counted {
        let change = growth.map_or("no reference".to_owned(), |growth| format!("{:+.2} %", 100.0 * growth));
        text.push_str(&format!("{name:<16} {instructions:>12} instructions {change:>10}\n"));
    }
    let rows: Vec<_> = counted
        .iter()
        .map(|row| json!({ "name": row.name, "instructions": row.instructions, "growth": row.growth }))
        .collect();
    let value = json!({ "rows": rows, "growth_max": GROWTH_MAX, "provenance": Provenance::here() });
    let grown: Vec<&str> = counted.iter().filter(|row| row.grew()).map(|row| row.name).collect();
    if grown.is_empty() {
        say(json, &text, || value)?;
        return Ok(ExitCode::SUCCESS);
    }
    let text = format!(
        "more than {:.0} % over the reference: {}\n{text}make it cheaper; or, where it is worth that, change the \
         reference in {} in the same commit: ringshard-bench instructions --write",
        100.0 * GROWTH_MAX,
        grown.join(", "),
        path.display()
    );
    Err(Failure { code: Code::Failed, text, detail: Some(value) })
}

fn references(path: &Path) -> Result<BTreeMap<String, u64>, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| Failure::of_file("read", path, &error))?;
    toml::from_str(&text).map_err(|error| Failure::new(Code::Config, format!("{}: {error}", path.display())))
}

/// Rows by name with their counts, as many at a time as there are cores.
fn count_all(rows: &[&Row]) -> Result<Vec<(&'static str, u64)>, Failure> {
    let next = AtomicUsize::new(0);
    let counter = || {
        let mine = std::iter::from_fn(|| rows.get(next.fetch_add(1, Ordering::Relaxed)));
        mine.map(|row| Ok((row.name, count(row)?))).collect::<Result<Vec<_>, Failure>>()
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let parts: Vec<_> = thread::scope(|scope| {
        let counters: Vec<_> = (0..threads).map(|_| scope.spawn(counter)).collect();
        counters
            .into_iter()
            .map(|counter| counter.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    let mut counts = parts.into_iter().collect::<Result<Vec<_>, _>>()?.concat();
    counts.sort_by_key(|(name, _)| ROWS.iter().position(|row| row.name == *name));
    Ok(counts)
}

/// Runs a row's work under callgrind.
fn count(row: &Row) -> Result<u64, Failure> {
    let failed = |text: String| Failure::new(Code::Failed, format!("{}: {text}", row.name));
    let own = env::current_exe().map_err(|error| failed(error.to_string()))?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .args(row.functions.iter().map(|function| format!("--toggle-collect=*{function}*")))
        .arg(own)
        .args(["instructions", "--work", row.name])
        .output()
        .map_err(|_| Failure::new(Code::Unavailable, "needs valgrind: apt-get install valgrind"))?;
    match collected(&output) {
        Some(count) if output.status.success() && count > 0 => Ok(count),
        _ => Err(failed(format!("callgrind counted nothing: {}", String::from_utf8_lossy(&output.stderr).trim()))),
    }
}

/// The count in `==123== Collected : 4567`.
fn collected(output: &Output) -> Option<u64> {
    let text = String::from_utf8_lossy(&output.stderr);
    text.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok())
}

impl Work {
    fn done(self) -> Result<(), Failure> {
        match self {
            Work::Ticks(haunts) => {
                let setting = Setting { players: 300, npcs: 1_000, haunts, shards: 1, send_hz: 20 };
                let mut realm = Realm::alone(setting).map_err(|text| Failure::new(Code::Failed, text))?;
                (1..=TICKS).for_each(|tick| realm.tick(tick));
            }
            Work::Packets => {
                let mut packets = Packets::new();
                let mut space = [0; PACKET_BYTES_MAX];
                for _ in 0..PACKETS {
                    let length = packets.seal(&mut space);
                    packets.open(&mut space[..length]);
                    packets.parse();
                }
            }
        }
        Ok(())
    }
}
