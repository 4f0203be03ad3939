//! `sim`: runs of the deterministic host, many seeds at a time.
//!
//! Owns the threads that runs are spread over; each run is one thread's alone. Promises: a run that panics is a
//! violation with its words, and the other seeds go on; the report does not depend on which thread ran what; what no
//! seed met is named.

use std::collections::BTreeMap;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use serde_json::json;

use crate::cli::SimArgs;
use crate::exit::{Code, Failure, say};
use crate::limits::SHARDS_MAX;
use crate::realm::sim::faults::{Fault, Faults, Feature, Meeting};
use crate::realm::sim::{Sim, SimConfig, SimReport, SimScenario};

/// Runs whose reports are told one by one; of more the sums and the bad ones are.
const RUNS_TOLD_MAX: usize = 100;

/// Fewest ticks of a run: in fewer not every bot has joined.
const TICKS_MIN: u64 = 60;
/// Likewise with faults, which need a quiet end.
const FAULTY_TICKS_MIN: u64 = 900;

/// Fails when anything was violated.
pub fn sim(args: &SimArgs, json: bool) -> Result<(), Failure> {
    let with_faults = args.faults != Faults::None;
    let or = |given: Option<u64>, plain: u64, faulty: u64| given.unwrap_or(if with_faults { faulty } else { plain });
    let mut shards: Vec<usize> = args.shards.iter().copied().map(usize::from).collect();
    if shards.is_empty() {
        shards.push(if with_faults { 4 } else { 2 });
    }
    if let Some(shards) = shards.iter().find(|shards| !(1..=SHARDS_MAX).contains(*shards)) {
        return Err(Failure::new(Code::Usage, format!("--shards is 1 to {SHARDS_MAX}, not {shards}")));
    }
    if with_faults && shards.iter().any(|&other| other != shards[0]) {
        let text = "what goes wrong depends on the number of shards: with --faults give --shards one number, as 4,4";
        return Err(Failure::new(Code::Usage, text.to_owned()));
    }
    let config = SimConfig {
        seed: 0,
        ticks: or(args.ticks, 3_600, 1_800),
        shards: shards[0],
        bots: or(args.bots.map(u64::from), 120, 32),
        npcs: or(args.npcs.map(u64::from), 1_000, 100) as u32,
        scenario: args.scenario.unwrap_or(if with_faults { SimScenario::Trade } else { SimScenario::Seam }),
        faults: args.faults,
        link: args.link,
        slowdown: args.slowdown.into(),
    };
    let ticks_min = if with_faults { FAULTY_TICKS_MIN } else { TICKS_MIN };
    if config.ticks < ticks_min {
        let text =
            format!("--ticks is at least {ticks_min} here, not {}: until then not everybody plays", config.ticks);
        return Err(Failure::new(Code::Usage, text));
    }
    let (from, to) = args.seeds.unwrap_or_else(|| args.seed.map_or((0, 0), |seed| (seed, seed + 1)));
    let started = std::time::Instant::now();
    let reports = run_all(config, &shards, (from, to));
    let seeds_per_s = reports.len() as f64 / started.elapsed().as_secs_f64();
    let violations: u64 = reports.iter().map(|report| report.violations).sum();
    let (value, text) = match &reports[..] {
        [report] => {
            let mut value = serde_json::to_value(report).expect("a report is JSON");
            value["seeds_per_s"] = json!(seeds_per_s);
            let mut text = line(report);
            if shards.len() > 1 && violations == 0 {
                text.push_str(&format!("the same on {:?} shards\n", &shards[1..]));
                value["compared_with"] = json!(&shards[1..]);
            }
            (value, text)
        }
        _ => many(&reports, config, &shards, seeds_per_s),
    };
    if violations == 0 {
        return say(json, &text, || value);
    }
    eprint!("{text}");
    let first = reports.iter().find(|report| report.violations > 0).expect("one has violations");
    let words = first.violation_texts.first().cloned().unwrap_or_default();
    let failure =
        Failure::new(Code::Failed, format!("{violations} violations; the first, of seed {}: {words}", first.seed));
    Err(Failure { detail: Some(value), ..failure })
}

/// Runs all seeds on as many threads as there are cores; reports by seed.
fn run_all(config: SimConfig, shards: &[usize], (from, to): (u64, u64)) -> Vec<SimReport> {
    let (next, reports) = (AtomicU64::new(from), Mutex::new(Vec::new()));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= to {
                return;
            }
            let report = run_each(SimConfig { seed, ..config }, shards);
            let mut reports = reports.lock().unwrap_or_else(PoisonError::into_inner);
            reports.push(report);
            let bad = reports.iter().filter(|report: &&SimReport| report.violations > 0).count();
            if to - from > 1 && (reports.len().is_multiple_of(25) || reports.len() as u64 == to - from) {
                // Nobody may read it any more.
                let _ =
                    writeln!(std::io::stderr(), "{} of {} seeds done, {bad} with violations", reports.len(), to - from);
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min((to - from) as usize);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let mut reports = reports.into_inner().unwrap_or_else(PoisonError::into_inner);
    reports.sort_by_key(|report| report.seed);
    reports
}

/// Runs a seed on each number of shards; gives the report of the first, to which the others must come as well.
fn run_each(config: SimConfig, shards: &[usize]) -> SimReport {
    let mut report = run_one(config);
    for &others in &shards[1..] {
        if report.violations > 0 {
            break;
        }
        let other = run_one(SimConfig { shards: others, ..config });
        let difference = report.difference(&other).filter(|_| other.violations == 0);
        let on = |text: &String| format!("on {others} shards: {text}");
        report.invariants_checked += other.invariants_checked;
        report.violations += other.violations;
        report.violation_texts.extend(other.violation_texts.iter().map(on));
        report.violations += u64::from(difference.is_some());
        report.violation_texts.extend(difference);
    }
    report
}

fn run_one(config: SimConfig) -> SimReport {
    let run = catch_unwind(AssertUnwindSafe(|| Sim::new(config).run()));
    run.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("its message stands above");
        let (seed, shards) = (config.seed, config.shards);
        let violation_texts = vec![format!("panic: {text}")];
        SimReport { seed, shards, violations: 1, violation_texts, ..SimReport::default() }
    })
}

/// The sums of many runs.
fn many(reports: &[SimReport], config: SimConfig, shards: &[usize], seeds_per_s: f64) -> (serde_json::Value, String) {
    let sum = |count: fn(&SimReport) -> u64| reports.iter().map(count).sum::<u64>();
    let (mut faults, mut coverage) = (BTreeMap::<String, u64>::new(), BTreeMap::<String, u64>::new());
    for report in reports {
        report.faults.iter().for_each(|(name, count)| *faults.entry(name.clone()).or_default() += count);
        report.coverage.iter().for_each(|(name, count)| *coverage.entry(name.clone()).or_default() += count);
    }
    let possible: Vec<Fault> = Fault::ALL.into_iter().filter(|fault| fault.is_in(config.faults)).collect();
    let cells = Feature::ALL
        .into_iter()
        .flat_map(|feature| possible.iter().map(move |fault| format!("{feature:?} x {fault:?}")).collect::<Vec<_>>());
    let mut empty: Vec<String> = cells.filter(|cell| !coverage.contains_key(cell)).collect();
    let mut meetings = BTreeMap::<String, u64>::new();
    for report in reports {
        report.meetings.iter().for_each(|(name, count)| *meetings.entry(name.clone()).or_default() += count);
    }
    let rare = Meeting::ALL.iter().map(|meeting| format!("{meeting:?}"));
    empty.extend(rare.filter(|name| config.faults == Faults::All && !meetings.contains_key(name)));
    let violations = sum(|report| report.violations);
    let compared = if shards.len() > 1 { format!(", compared with {:?}", &shards[1..]) } else { String::new() };
    let mut text = String::new();
    if reports.len() <= RUNS_TOLD_MAX && config.faults == Faults::None {
        text.extend(reports.iter().map(line));
    }
    text.push_str(&format!(
        "{} seeds of {} ticks on {} shards{compared}: {} orders, {} trades told, {} restarts, {} checks, {violations} violations, {seeds_per_s:.1} seeds/s\n",
        reports.len(),
        config.ticks,
        config.shards,
        sum(|report| report.orders),
        sum(|report| report.trades),
        sum(|report| report.restarts),
        sum(|report| report.invariants_checked),
    ));
    if !possible.is_empty() {
        text.push_str(&table(&possible, &coverage, &faults));
        let rare: Vec<String> = meetings.iter().map(|(name, count)| format!("{name} {count}")).collect();
        text.push_str(&format!("rare: {}\n", rare.join(", ")));
        text.push_str(&format!(
            "empty cells: {}\n",
            if empty.is_empty() { "none".to_owned() } else { empty.join(", ") }
        ));
    }
    for report in reports.iter().filter(|report| report.violations > 0) {
        text.push_str(&format!("seed {}: {}\n", report.seed, report.violation_texts.join("; ")));
    }
    let runs: Vec<&SimReport> =
        reports.iter().filter(|report| reports.len() <= RUNS_TOLD_MAX || report.violations > 0).collect();
    let value = json!({
        "seeds": reports.len(),
        "ticks": config.ticks,
        "shards": config.shards,
        "compared_shards": shards[1..],
        "violations": violations,
        "invariants_checked": sum(|report| report.invariants_checked),
        "orders": sum(|report| report.orders),
        "trades": sum(|report| report.trades),
        "restarts": sum(|report| report.restarts),
        "faults": faults,
        "coverage": coverage,
        "meetings": meetings,
        "empty_cells": empty,
        "seeds_per_s": seeds_per_s,
        "runs": runs,
    });
    (value, text)
}

/// How often each feature met each fault.
fn table(faults: &[Fault], coverage: &BTreeMap<String, u64>, counts: &BTreeMap<String, u64>) -> String {
    let mut text = format!("{:>14} {:>9}", "fault", "happened");
    for feature in Feature::ALL {
        text.push_str(&format!(" {:>8}", format!("{feature:?}")));
    }
    text.push('\n');
    for fault in faults {
        let happened = counts.get(&format!("{fault:?}")).copied().unwrap_or(0);
        text.push_str(&format!("{:>14} {happened:>9}", format!("{fault:?}")));
        for feature in Feature::ALL {
            let met = coverage.get(&format!("{feature:?} x {fault:?}")).copied().unwrap_or(0);
            text.push_str(&format!(" {met:>8}"));
        }
        text.push('\n');
    }
    text
}

fn line(report: &SimReport) -> String {
    let SimReport { seed, ticks, shards, hash, bots, handoffs, effects_across, orders, restarts, violations, .. } =
        report;
    let faults: Vec<String> = report.faults.iter().map(|(fault, count)| format!("{fault} {count}")).collect();
    let faults = if faults.is_empty() { String::new() } else { format!("; faults: {}", faults.join(", ")) };
    format!(
        "seed {seed}: {ticks} ticks on {shards} shards, hash {hash}, {bots} bots, {handoffs} handoffs, {effects_across} effects across, {orders} orders, {restarts} restarts, {violations} violations{faults}\n"
    )
}
