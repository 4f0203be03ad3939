//! The report of `crash`: one JSON object, or a table for people.
//!
//! Owns the names of its fields, on which scripts rely.

use std::time::Duration;

use serde::Serialize;

use super::CrashArgs;
use super::judge::Verdict;
use crate::machine::Provenance;

/// Times of all starts, milliseconds.
#[derive(Clone, Copy, PartialEq, Default, Debug, Serialize)]
pub struct StartMs {
    /// Median.
    pub p50: f64,
    /// 99 %.
    pub p99: f64,
    /// Longest.
    pub max: f64,
}

/// See the module.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// How the server ended.
    pub kind: &'static str,
    /// Ends so far.
    pub rounds: u32,
    /// Players of each round.
    pub players: u32,
    /// Answers that players were told, in all rounds.
    pub told_ops: u64,
    /// See [`Verdict::lost`].
    pub lost: u64,
    /// See [`Verdict::doubled`].
    pub doubled: u64,
    /// Whether all sums agreed after every end.
    pub conserved: bool,
    /// From the start of the process to `ready`.
    pub start_ms: StartMs,
    /// Orders in the log at the end.
    pub orders: u64,
    /// Characters at the end.
    pub characters: u64,
    /// Copies of the disk that were thrown away because it was written meanwhile.
    pub copies_repeated: u64,
    /// What does not agree, in words.
    pub breaks: Vec<String>,
    /// Where the realm is that lost something.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept: Option<String>,
    /// Where and when.
    pub provenance: Provenance,
    #[serde(skip)]
    starts: Vec<f64>,
    #[serde(skip)]
    wanted: u32,
}

impl Report {
    /// Of a run that begins.
    pub fn new(args: &CrashArgs) -> Report {
        Report {
            kind: args.kind.name(),
            rounds: 0,
            players: args.players,
            told_ops: 0,
            lost: 0,
            doubled: 0,
            conserved: true,
            start_ms: StartMs::default(),
            orders: 0,
            characters: 0,
            copies_repeated: 0,
            breaks: Vec::new(),
            kept: None,
            provenance: Provenance::here(),
            starts: Vec::new(),
            wanted: args.count,
        }
    }

    /// A server got ready.
    pub fn started(&mut self, time: Duration) {
        let ms = time.as_secs_f64() * 1_000.0;
        let at = self.starts.partition_point(|&other| other < ms);
        self.starts.insert(at, ms);
        let value = |share: f64| self.starts[((self.starts.len() as f64 * share).ceil() as usize).max(1) - 1];
        self.start_ms = StartMs { p50: value(0.5), p99: value(0.99), max: value(1.0) };
    }

    /// The files of an end were compared.
    pub fn judged(&mut self, told: u64, verdict: &Verdict) {
        self.told_ops = told;
        // Later looks find the same losses again.
        (self.lost, self.doubled) = (self.lost.max(verdict.lost), self.doubled.max(verdict.doubled));
        self.conserved &= verdict.conserved;
        (self.orders, self.characters) = (verdict.orders, verdict.characters);
        self.breaks.extend_from_slice(&verdict.breaks);
    }

    /// Why the run failed, if it did.
    pub fn failure(&self) -> Option<String> {
        let first = self.breaks.first().cloned().or_else(|| (!self.conserved).then(|| "the sums differ".to_owned()))?;
        let Report { rounds, wanted, kind, .. } = self;
        let kept = self.kept.as_ref().map(|kept| format!("; {kept}")).unwrap_or_default();
        Some(format!("{kind} {rounds} of {wanted}: {first}{kept}"))
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut lines = Vec::new();
        let mut line = |name: &str, text: String| lines.push(format!("{name:<22} {text}\n"));
        line("rounds", format!("{} of {}, {}, {} players", self.rounds, self.wanted, self.kind, self.players));
        line("told", format!("{} answers to operations", self.told_ops));
        line("lost, doubled", format!("{}, {}", self.lost, self.doubled));
        line("conserved", if self.conserved { "yes" } else { "NO" }.to_owned());
        line("in the files", format!("{} orders, {} characters", self.orders, self.characters));
        let StartMs { p50, p99, max } = self.start_ms;
        line("start", format!("p50 {p50:.0} ms, p99 {p99:.0} ms, max {max:.0} ms"));
        if self.copies_repeated > 0 {
            line("copies repeated", self.copies_repeated.to_string());
        }
        self.breaks.iter().for_each(|text| line("BREAK", text.clone()));
        self.kept.iter().for_each(|text| line("kept", text.clone()));
        let Provenance { commit, kernel, cpu, cores, date, .. } = &self.provenance;
        line("measured", format!("{date} at {commit} on {kernel}, {cores} cores, {cpu}"));
        lines.concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cli, Command};
    use clap::Parser;

    fn report() -> Report {
        let arguments = ["ringshard-bench", "crash", "--kind", "kill", "--count", "3"];
        let Command::Crash(args) = Cli::parse_from(arguments).command else { panic!("it is a crash") };
        Report::new(&args)
    }

    #[test]
    fn starts_have_percentiles() {
        let mut report = report();
        (1..=200).rev().for_each(|ms| report.started(Duration::from_millis(ms)));
        assert_eq!(report.start_ms, StartMs { p50: 100.0, p99: 198.0, max: 200.0 });
    }

    #[test]
    fn what_was_lost_fails_the_run_in_words() {
        let mut report = report();
        let good = Verdict { conserved: true, orders: 7, characters: 2, ..Verdict::default() };
        report.judged(3, &good);
        assert_eq!((report.failure(), report.told_ops, report.orders), (None, 3, 7));
        report.judged(9, &Verdict { lost: 1, breaks: vec!["it is gone".to_owned()], ..good });
        (report.rounds, report.kept) = (2, Some("look there".to_owned()));
        assert_eq!(report.failure().as_deref(), Some("kill 2 of 3: it is gone; look there"));
        assert!(report.table().contains("BREAK") && report.lost == 1);
        let value = serde_json::to_value(&report).expect("it is JSON");
        for field in ["rounds", "told_ops", "lost", "doubled", "conserved", "start_ms", "breaks", "provenance"] {
            assert!(!value[field].is_null(), "{field}");
        }
    }
}
