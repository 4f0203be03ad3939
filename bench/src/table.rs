//! `table`: every published figure beside its floor and its aim, each from the command that shows it.
//!
//! Owns the list of rows. Promises: a figure is what a command of this program printed, the median of its runs that were not
//! void; how many were void or failed, and why, is said in its row. Never measures anything itself.

mod rows;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use ringshard::exit::{Code, Failure, say};
use ringshard::sys;
use serde_json::{Value, json};

use crate::machine::{Provenance, threads_cpu_s};
use crate::node::{Server, Work, server_program};
use crate::swarm::stop_on_signal;
use rows::{MEASUREMENTS, Measurement, ROWS, Row, Source};

/// The marks in a file between which the table stands.
const MARKS: [&str; 2] = ["<!-- table: scripts/bench -->\n", "<!-- end of table -->\n"];
/// From a swarm's start until all of its players play for sure.
const SWARM_JOINS: Duration = Duration::from_secs(8);
/// How long a swarm's server is watched, and how long its players play.
const SWARM_WATCHED: Duration = Duration::from_secs(5);
const SWARM_PLAYS_S: &str = "12";
/// One of its players in so many looks at all that it is shown.
const SWARM_LOOKS: &str = "50";
/// So many swarms that were late are made up for.
const SWARM_TRIES: u32 = 2;

/// Arguments of `table`.
#[derive(Args, Clone, Debug)]
pub struct TableArgs {
    /// One run of each measurement that is quick, instead of three of each.
    #[arg(long)]
    quick: bool,
    /// The rows of this name only; may be given again.
    #[arg(long, value_name = "NAME")]
    row: Vec<String>,
    /// Puts the table into a file, between its marks.
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
}

/// What the runs of a measurement came to.
struct Runs {
    values: Vec<Value>,
    /// Why one failed.
    failed: Option<String>,
}

/// A row with its figure.
struct Figure<'a> {
    row: &'a Row,
    /// By the runs that were not void; by all when all were.
    measured: Vec<f64>,
    is_void: bool,
    /// Least and most, by the runs or within the only one.
    spread: Option<(f64, f64)>,
    why_not: Option<String>,
}

/// Measures all rows, or those that were named, and prints the table.
pub fn run(args: &TableArgs, json: bool) -> Result<ExitCode, Failure> {
    let wanted: Vec<&Row> =
        ROWS.iter().filter(|row| args.row.is_empty() || args.row.iter().any(|name| name == row.name)).collect();
    if let Some(unknown) = args.row.iter().find(|name| !ROWS.iter().any(|row| row.name == **name)) {
        let names: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
        let text = format!("there is no row {unknown}; there are {}", names.join(", "));
        return Err(Failure::new(Code::Usage, text));
    }
    // Before all else: measuring takes a while.
    args.write.iter().try_for_each(|path| parts(path).map(|_| ()))?;
    let program = server_program(None)?;
    let stopped = stop_on_signal()?;
    let mut runs = HashMap::new();
    for measurement in MEASUREMENTS {
        let is_wanted = wanted.iter().any(|row| row.measurement == measurement.name);
        // Who names a row wants it, quick or not.
        if !is_wanted || (args.quick && !measurement.quick && args.row.is_empty()) {
            continue;
        }
        let count = if args.quick { 1 } else { measurement.runs };
        let begin = Instant::now();
        runs.insert(measurement.name, repeat(measurement, count, &program, &stopped));
        eprintln!("{}: {count} run(s), {:.0} s", measurement.name, begin.elapsed().as_secs_f64());
        if stopped.load(Ordering::Relaxed) {
            return Err(Failure::new(Code::Failed, "stopped by a signal before all was measured: there is no table"));
        }
    }
    let figures: Vec<Figure<'_>> =
        wanted.into_iter().filter_map(|row| Some(Figure::of(row, runs.get(row.measurement)?))).collect();
    let provenance = Provenance::here();
    let text = table(&figures, &provenance);
    if let Some(path) = &args.write {
        put(path, &text)?;
    }
    let value = json!({ "rows": figures.iter().map(Figure::json).collect::<Vec<_>>(), "provenance": provenance });
    say(json, &text, || value)?;
    Ok(ExitCode::SUCCESS)
}

fn repeat(measurement: &Measurement, count: u32, program: &Path, stopped: &AtomicBool) -> Runs {
    let mut runs = Runs { values: Vec::new(), failed: None };
    let mut left = count;
    let mut again = SWARM_TRIES;
    while left > 0 {
        left -= 1;
        let value = match &measurement.source {
            Source::Command(arguments) => output(arguments),
            Source::Ratio { above, below, field } => ratio(above, below, field),
            Source::Swarm { players, input_hz } => swarm(program, *players, *input_hz, stopped),
            Source::Most { players, step, players_max, input_hz, latency_ms } => {
                let counts = (*players, *step, *players_max);
                most_players(counts, *latency_ms, |players| swarm(program, players, *input_hz, stopped))
            }
        };
        match value {
            Ok(value) => {
                if matches!(measurement.source, Source::Swarm { .. }) && !value["void"].is_null() && again > 0 {
                    (left, again) = (left + 1, again - 1);
                }
                runs.values.push(value);
            }
            Err(failure) => runs.failed = Some(failure.text),
        }
    }
    runs
}

/// What a command of this program prints.
fn output(arguments: &[&str]) -> Result<Value, Failure> {
    let failed = |text: String| Failure::new(Code::Failed, format!("{}: {text}", arguments.join(" ")));
    let own = std::env::current_exe().map_err(|error| failed(error.to_string()))?;
    let output = Command::new(own).args(arguments).arg("--json").stderr(Stdio::null()).output();
    let output = output.map_err(|error| failed(error.to_string()))?;
    let value: Value =
        serde_json::from_slice(&output.stdout).map_err(|_| failed(format!("ended with {}", output.status)))?;
    match value["error"].as_str() {
        Some(error) => Err(failed(error.to_owned())),
        None => Ok(value),
    }
}

/// A field of one command's output through that of another, run after it.
fn ratio(above: &[&str], below: &[&str], field: &str) -> Result<Value, Failure> {
    let of = |value: Value| value.pointer(field).and_then(Value::as_f64).unwrap_or(f64::NAN);
    let (above, below) = (of(output(above)?), of(output(below)?));
    Ok(json!({ "ratio": above / below }))
}

/// The most players whose latency stays below `latency_ms`: more and more from `players` on, or fewer and fewer.
fn most_players(
    (players, step, players_max): (u32, u32, u32),
    latency_ms: f64,
    mut swarm: impl FnMut(u32) -> Result<Value, Failure>,
) -> Result<Value, Failure> {
    let mut runs = Vec::new();
    let mut holds = |players: u32| -> Result<bool, Failure> {
        let (mut held, mut missed) = (0, 0);
        while held < 2 && missed < 2 {
            let played = swarm(players)?;
            let (latency, void) = (&played["input_to_snapshot_ms"]["p99"], &played["void"]);
            let is_held = void.is_null() && latency.as_f64().is_some_and(|ms| ms < latency_ms);
            (held, missed) = (held + u32::from(is_held), missed + u32::from(!is_held));
            eprintln!(
                "{players} players: input to snapshot p99 {latency} ms{}",
                void.as_str().map_or(String::new(), |why| format!(", void: {why}"))
            );
            runs.push(json!({ "players": players, "latency_ms_p99": latency, "busy": played["busy"], "void": void }));
        }
        Ok(held == 2)
    };
    let mut most = players;
    if holds(most)? {
        while most + step <= players_max && holds(most + step)? {
            most += step;
        }
    } else {
        most -= step;
        while most > 0 && !holds(most)? {
            most = most.saturating_sub(step);
        }
    }
    // What holds is a lower bound; but one that was come down to because the load was late says nothing.
    let above = |run: &&Value| run["players"] == most + step && !run["void"].is_null();
    let void = if most < players { runs.iter().find(above).map(|run| run["void"].clone()) } else { None };
    Ok(json!({ "players": most, "runs": runs, "void": void }))
}

/// Players on a server of one core: what they saw, and how busy the core was while all of them played.
fn swarm(program: &Path, players: u32, input_hz: u32, stopped: &AtomicBool) -> Result<Value, Failure> {
    let work = Work::make("table", None)?;
    let config = work.path().join("config.toml");
    std::fs::write(&config, format!("[net]\nsend_hz = {input_hz}\n[load]\nstep = 0\n"))
        .map_err(|error| Failure::of_file("write", &config, &error))?;
    let data = work.path().join("data");
    // The shard has the last core for itself, the players the first.
    let cpus = sys::cpus_allowed();
    let (load_cpu, cpu) = (cpus[0], cpus[cpus.len() - 1].to_string());
    let arguments = ["--shards".as_ref(), "1".as_ref(), "--cpus".as_ref(), cpu.as_ref()];
    let files = ["--config".as_ref(), config.as_os_str(), "--data".as_ref(), data.as_os_str()];
    let arguments: Vec<&OsStr> = arguments.into_iter().chain(files).collect();
    let mut server = Server::start(program, arguments, stopped).map_err(|text| Failure::new(Code::Failed, text))?;
    let watch = {
        let pid = server.pid();
        std::thread::spawn(move || {
            std::thread::sleep(SWARM_JOINS);
            let (begin, before_s) = (Instant::now(), threads_cpu_s(pid, "shard-0"));
            std::thread::sleep(SWARM_WATCHED);
            (threads_cpu_s(pid, "shard-0") - before_s) / begin.elapsed().as_secs_f64()
        })
    };
    let (players, input_hz, game) = (players.to_string(), input_hz.to_string(), server.game.to_string());
    let swarm = ["swarm", "--players", &players, "--input-hz", &input_hz, "--connect", &game, "--awake"];
    // A child begins on the cores of its parent. Where it cannot be pinned its lateness says so.
    let _ = sys::set_thread_cpus(&[load_cpu]);
    let played = output(&[&swarm[..], &["--look-one-in", SWARM_LOOKS, "--duration", SWARM_PLAYS_S]].concat());
    let _ = sys::set_thread_cpus(&cpus);
    let busy = watch.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    server.terminate().map_err(|text| Failure::new(Code::Failed, text))?;
    let mut played = played?;
    played["busy"] = busy.into();
    // What bounds a latency bounds it for all that was asked for.
    let late = played.pointer("/load_late_ms/p99").and_then(Value::as_f64).unwrap_or(0.0);
    if late > 2.0 {
        played["void"] = format!("the load was late by {late:.1} ms").into();
    }
    Ok(played)
}

impl<'a> Figure<'a> {
    fn of(row: &'a Row, runs: &Runs) -> Figure<'a> {
        let field = |value: &&Value| value.pointer(row.field).and_then(Value::as_f64).filter(|value| value.is_finite());
        let void = |value: &Value| value.pointer(row.void).and_then(Value::as_str).map(str::to_owned);
        let (void_ones, good): (Vec<&Value>, Vec<&Value>) = runs.values.iter().partition(|value| void(value).is_some());
        let is_void = good.is_empty() && !void_ones.is_empty();
        let mut measured: Vec<f64> = if is_void { &void_ones } else { &good }.iter().filter_map(field).collect();
        measured.sort_by(f64::total_cmp);
        let of_void = || {
            let why = void(void_ones.first()?)?;
            Some(format!("{} of {} runs void: {why}", void_ones.len(), runs.values.len()))
        };
        let spread = match (&measured[..], &runs.values[..]) {
            ([], _) => None,
            ([_], [only]) => least_and_most(row.field, only),
            ([_], _) => None,
            ([least, .., most], _) => Some((*least, *most)),
        };
        Figure { row, measured, is_void, spread, why_not: runs.failed.clone().or_else(of_void) }
    }

    fn median(&self) -> Option<f64> {
        self.measured.get(self.measured.len() / 2).copied()
    }

    fn verdict(&self) -> &'static str {
        let Some(median) = self.median() else { return "not measured" };
        if self.is_void {
            return "void";
        }
        let reaches = |bound: f64| if self.row.less { median <= bound } else { median >= bound };
        match (reaches(self.row.floor), reaches(self.row.aim)) {
            (_, true) => "aim",
            (true, false) => "floor",
            (false, false) => "short",
        }
    }

    fn json(&self) -> Value {
        let Row { name, what, floor, aim, command, .. } = self.row;
        json!({
            "name": name, "what": what, "floor": floor, "aim": aim, "measured": self.median(), "runs": self.measured,
            "reached": self.verdict(), "why_not": self.why_not, "command": command,
        })
    }
}

/// What a command that makes pairs itself says of their spread, beside a figure or under its name.
fn least_and_most(field: &str, value: &Value) -> Option<(f64, f64)> {
    let (parent, name) = field.rsplit_once('/')?;
    let of = |what: &str| {
        let names = [format!("{parent}/{name}_{what}"), format!("{parent}/ratio_{what}"), format!("{parent}/{what}")];
        names.iter().find_map(|name| value.pointer(name)?.as_f64())
    };
    Some((of("min")?, of("max")?))
}

/// The table, in the words of Markdown.
fn table(figures: &[Figure<'_>], provenance: &Provenance) -> String {
    let Provenance { commit, kernel, cpu, cores, date, .. } = provenance;
    let mut text = format!("{cpu}, {cores} cores, Linux {kernel}, {date}, commit {commit}\n\n");
    text.push_str(
        "| figure | floor | aim | measured | least to most | reached | command |\n|---|---|---|---|---|---|---|\n",
    );
    for figure in figures {
        let row = figure.row;
        let sign = if row.less { "≤" } else { "≥" };
        let median = figure.median().map_or("-".to_owned(), number);
        let spread =
            figure.spread.map_or("-".to_owned(), |(least, most)| format!("{} to {}", number(least), number(most)));
        let reached = match &figure.why_not {
            Some(why) => format!("{}; {why}", figure.verdict()),
            None => figure.verdict().to_owned(),
        };
        let (floor, aim) = (number(row.floor), number(row.aim));
        writeln!(
            text,
            "| {} | {sign} {floor} | {sign} {aim} | {median} | {spread} | {reached} | `{}` |",
            row.what, row.command
        )
        .expect("a String takes all");
    }
    text
}

/// A number as people read it.
fn number(value: f64) -> String {
    match value.abs() {
        10_000.0.. => {
            let digits = format!("{value:.0}");
            let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().filter_map(|g| str::from_utf8(g).ok()).collect();
            groups.join(",")
        }
        100.0.. => format!("{value:.0}"),
        _ if value.fract() == 0.0 => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// What stands in a file before and behind the table.
fn parts(path: &Path) -> Result<(String, String), Failure> {
    let file = std::fs::read_to_string(path).map_err(|error| Failure::of_file("read", path, &error))?;
    let parts = file.split_once(MARKS[0]).and_then(|(head, rest)| Some((head, rest.split_once(MARKS[1])?.1)));
    parts.map(|(head, tail)| (head.to_owned(), tail.to_owned())).ok_or_else(|| {
        let text = format!("{} has no place for the table: two lines, {} and {}", path.display(), MARKS[0], MARKS[1]);
        Failure::new(Code::Usage, text.replace('\n', ""))
    })
}

/// Replaces what stands between the marks of a file.
fn put(path: &Path, text: &str) -> Result<(), Failure> {
    let (head, tail) = parts(path)?;
    let whole = format!("{head}{}{text}{}{tail}", MARKS[0], MARKS[1]);
    std::fs::write(path, whole).map_err(|error| Failure::of_file("write", path, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_a_measurement_and_every_measurement_a_row() {
        for row in ROWS {
            assert!(MEASUREMENTS.iter().any(|measurement| measurement.name == row.measurement), "{}", row.name);
            let is_beyond = if row.less { row.aim <= row.floor } else { row.aim >= row.floor };
            assert!(is_beyond, "{}: the aim is beyond the floor", row.name);
        }
        for measurement in MEASUREMENTS {
            assert!(ROWS.iter().any(|row| row.measurement == measurement.name), "{}", measurement.name);
        }
    }

    #[test]
    fn numbers_are_for_people() {
        let said: Vec<String> = [512_345.6, 0.256, 28.5, 5.0, 340.0, 0.0].into_iter().map(number).collect();
        assert_eq!(said, ["512,346", "0.26", "28.5", "5", "340", "0"]);
    }

    #[test]
    fn a_figure_that_misses_its_floor_is_short() {
        let row = &ROWS[0];
        let of = |values: &[Value]| Figure::of(row, &Runs { values: values.to_vec(), failed: None });
        let run = |measured: f64| json!({ "server_rx_pps": measured });
        let verdict = |measured: f64| of(&[run(measured)]).verdict();
        assert_eq!([verdict(row.aim), verdict(row.floor), verdict(row.floor * 0.99)], ["aim", "floor", "short"]);
        assert_eq!(of(&[]).verdict(), "not measured");
    }

    #[test]
    fn a_void_run_counts_only_where_no_other_does_and_is_said() {
        let row = &ROWS[0];
        let of = |values: &[Value]| Figure::of(row, &Runs { values: values.to_vec(), failed: None });
        let void = json!({ "server_rx_pps": 1.0, "receive": { "void": "the load was late" } });
        let some = of(&[void.clone(), json!({ "server_rx_pps": row.aim })]);
        assert_eq!((some.verdict(), &some.measured[..]), ("aim", &[row.aim][..]));
        assert_eq!(some.why_not.as_deref(), Some("1 of 2 runs void: the load was late"));
        let all = of(&[void]);
        assert_eq!((all.verdict(), &all.measured[..]), ("void", &[1.0][..]));
        let pairs =
            json!({ "ratio": 1.0, "ratio_min": 0.5, "ratio_max": 2.0, "peer": { "median": 3, "min": 2, "max": 4 } });
        assert_eq!(least_and_most("/ratio", &pairs), Some((0.5, 2.0)));
        assert_eq!(least_and_most("/peer/median", &pairs), Some((2.0, 4.0)));
        assert_eq!(least_and_most("/ratio", &json!({ "ratio": 1.0 })), None);
    }

    #[test]
    fn the_most_players_are_looked_for_both_ways() {
        let most = |bound: u32, unlucky: u32| {
            let mut runs = 0;
            let found = most_players((2_000, 250, 3_000), 25.0, |players| {
                runs += 1;
                let void = if runs == unlucky { json!("the load was late") } else { Value::Null };
                let latency_ms = if players <= bound { 20.0 } else { 30.0 };
                Ok(json!({ "input_to_snapshot_ms": { "p99": latency_ms }, "void": void }))
            });
            (found.expect("no run fails")["players"].as_u64(), runs)
        };
        assert_eq!(most(2_000, 0), (Some(2_000), 4));
        assert_eq!(most(2_600, 1), (Some(2_500), 9), "one void run in three is borne");
        assert_eq!(most(9_000, 0), (Some(3_000), 10));
        assert_eq!(most(1_500, 0), (Some(1_500), 6));
        assert_eq!(most(0, 0).0, Some(0));
        let late = |players| {
            Ok(
                json!({ "void": if players > 1_000 { json!("late") } else { Value::Null }, "input_to_snapshot_ms": { "p99": 1.0 } }),
            )
        };
        let found = most_players((2_000, 250, 3_000), 25.0, late).expect("no run fails");
        assert_eq!((&found["players"], &found["void"]), (&json!(1_000), &json!("late")));
    }

    #[test]
    fn the_table_stands_between_its_marks() {
        let path = std::env::temp_dir().join(format!("ringshard-table-{}", std::process::id()));
        std::fs::write(&path, format!("above\n{}old\n{}below\n", MARKS[0], MARKS[1])).expect("it is writable");
        put(&path, "new\n").expect("it has marks");
        let text = std::fs::read_to_string(&path).expect("it is readable");
        assert_eq!(text, format!("above\n{}new\n{}below\n", MARKS[0], MARKS[1]));
        std::fs::write(&path, "no marks").expect("it is writable");
        assert_eq!(put(&path, "new\n").err().map(|failure| failure.code), Some(Code::Usage));
        std::fs::remove_file(&path).expect("it was made here");
    }
}
