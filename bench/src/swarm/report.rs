//! The report of a swarm: one JSON object, or a table for people.
//!
//! Owns the names of the fields, on which scripts rely. Promises: a run whose own load was late says that it is void.

use hdrhistogram::Histogram;
use ringshard::realm::bots::trader::DealCounts;
use ringshard::wire::messages::Welcome;
use serde::Serialize;

use super::SwarmArgs;
use super::balance::Balance;
use super::load::Harvest;
use super::player::{Player, Stage};
use super::tally::{ErrorCounts, Tally};
use crate::machine::Provenance;

/// Lateness of the load side from which a run says nothing about the server, milliseconds.
const LATE_MS_MAX: f64 = 2.0;

/// Of how far the players moved, metres.
#[derive(Clone, Copy, PartialEq, Default, Debug, Serialize)]
pub struct Moved {
    /// The one that moved least.
    pub min: f64,
    /// Of all.
    pub mean: f64,
}

/// Of how many others a player saw.
#[derive(Clone, Copy, PartialEq, Default, Debug, Serialize)]
pub struct Visible {
    /// Least.
    pub min: u64,
    /// Of all samples.
    pub mean: f64,
    /// Most.
    pub max: u64,
}

/// Percentiles, milliseconds; which ones depends on the field.
#[derive(Clone, Copy, PartialEq, Default, Debug, Serialize)]
pub struct Milliseconds {
    /// Median.
    pub p50: f64,
    /// 99 %.
    pub p99: f64,
    /// 99.9 %.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p999: Option<f64>,
    /// Longest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
}

/// See the module. Names and meanings as in the README of the benchmarks.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    scenario: String,
    transport: String,
    input_hz: u32,
    look_one_in: u32,
    threads: u32,
    players: u32,
    connected: usize,
    refused: usize,
    disconnects: usize,
    duration_s: f64,
    tick_hz: u16,
    send_hz: u16,
    inputs_sent: u64,
    snapshots_received: u64,
    bytes_in: u64,
    bytes_out: u64,
    udp_drops: u64,
    sends_blocked: u64,
    commands_forgotten: u64,
    handoffs: u64,
    handoff_bots: usize,
    errors: ErrorCounts,
    error_count: u64,
    moved_m: Moved,
    visible: Visible,
    input_to_snapshot_ms: Milliseconds,
    snapshot_gap_ms: Milliseconds,
    load_late_ms: Milliseconds,
    /// From the end of the pause to the last snapshot that was slower than before it, with `--pause`.
    #[serde(skip_serializing_if = "Option::is_none")]
    recovery_ms: Option<Milliseconds>,
    load_busy: f64,
    ops_acked: u64,
    ops_refused: u64,
    trades: u64,
    loots: u64,
    mails: u64,
    /// How the server's shards share the work, where their control address was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub balance: Option<Balance>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    void: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    void_because: Option<String>,
    /// Why players were refused or lost, with how many; the most frequent first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    reasons: Vec<String>,
    server_version: String,
    #[serde(flatten)]
    provenance: Provenance,
}

impl Report {
    /// Of a run that lasted `duration_ns` from the last join.
    pub fn of(
        args: &SwarmArgs,
        welcome: &Welcome,
        harvests: &[Harvest],
        duration_ns: u64,
        server_drops: u64,
    ) -> Report {
        let mut tally = Tally::default();
        harvests.iter().for_each(|harvest| tally.add(&harvest.tally));
        let players = || harvests.iter().flat_map(|harvest| &harvest.players);
        let played = || players().filter(|player| player.played());
        let mut errors = ErrorCounts::default();
        players().for_each(|player| errors.add(player.errors()));
        let connected = played().count();
        let handoffs = |player: &Player| player.bot.counts.handoffs;
        let duration_s = duration_ns as f64 / 1e9;
        let cpu_s: f64 = harvests.iter().map(|harvest| harvest.cpu_s).sum();
        let load_late_ms = milliseconds(&tally.late_us, false);
        let late = load_late_ms.p99;
        let void_because = (late > LATE_MS_MAX).then(|| {
            format!("the load side itself was late: p99 {late:.1} ms; give it more CPU or --threads, or fewer players")
        });
        let count = |of: fn(&Player) -> u64| players().map(of).sum::<u64>();
        Report {
            scenario: name_of(args.scenario),
            transport: name_of(args.transport),
            input_hz: args.input_hz,
            look_one_in: args.look_one_in,
            threads: args.threads,
            players: args.players,
            connected,
            refused: players().filter(|player| matches!(player.stage, Stage::Refused(_))).count(),
            disconnects: players().filter(|player| matches!(player.stage, Stage::Lost(_))).count(),
            duration_s,
            tick_hz: welcome.tick_hz,
            send_hz: welcome.send_hz,
            inputs_sent: tally.inputs_sent,
            snapshots_received: tally.snapshots_received,
            bytes_in: harvests.iter().map(|harvest| harvest.traffic.bytes_in).sum(),
            bytes_out: harvests.iter().map(|harvest| harvest.traffic.bytes_out).sum(),
            udp_drops: server_drops + harvests.iter().map(|harvest| harvest.socket_drops).sum::<u64>(),
            sends_blocked: count(|player| player.link.as_ref().map_or(0, |link| link.sends_blocked)),
            commands_forgotten: count(|player| player.bot.counts.forgotten),
            handoffs: count(handoffs),
            handoff_bots: players().filter(|player| handoffs(player) >= 2).count(),
            errors,
            error_count: errors.sum(),
            moved_m: moved(played().map(|player| player.bot.counts.moved_m)),
            visible: Visible { min: tally.visible.min, mean: tally.visible.mean(), max: tally.visible.max },
            input_to_snapshot_ms: milliseconds(&tally.latency_us, true),
            snapshot_gap_ms: Milliseconds { p999: None, ..milliseconds(&tally.gap_us, true) },
            load_late_ms,
            recovery_ms: args.pause.map(|_| Milliseconds { p999: None, ..milliseconds(&tally.recovery_us, true) }),
            load_busy: if duration_s > 0.0 { cpu_s / duration_s / harvests.len() as f64 } else { 0.0 },
            ops_acked: count(|player| deals(player).map_or(player.bot.counts.acted, |deals| deals.acked)),
            ops_refused: count(|player| deals(player).map_or(player.bot.counts.refused, |deals| deals.refused)),
            // Both sides hear of a trade.
            trades: count(|player| deals(player).map_or(0, |deals| deals.trades)).div_ceil(2),
            loots: count(|player| deals(player).map_or(0, |deals| deals.loots)),
            mails: count(|player| deals(player).map_or(0, |deals| deals.mails)),
            balance: None,
            void: void_because.is_some(),
            void_because,
            reasons: reasons(players()),
            server_version: welcome.version.clone(),
            provenance: Provenance::here(),
        }
    }

    /// Why the run failed, if it did.
    pub fn failure(&self) -> Option<String> {
        let Report { connected, disconnects, .. } = *self;
        let players = self.players as usize;
        let why = self.reasons.first().map_or("they had no answer in time", String::as_str);
        if connected < players {
            return Some(format!("only {connected} of {players} players came in: {why}"));
        }
        (disconnects == players).then(|| format!("all {players} players lost the server: {why}"))
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut lines = Vec::new();
        let mut line = |name: &str, text: String| lines.push(format!("{name:<22} {text}\n"));
        let Report { players, connected, refused, disconnects, duration_s, .. } = self;
        let (scenario, transport) = (&self.scenario, &self.transport);
        line("players", format!("{connected} of {players} over {transport}, {scenario}, for {duration_s:.1} s"));
        line("refused, disconnects", format!("{refused}, {disconnects}"));
        let rate = |count: u64| if *duration_s > 0.0 { count as f64 / duration_s } else { 0.0 };
        line("inputs sent", format!("{} ({:.0}/s)", self.inputs_sent, rate(self.inputs_sent)));
        let got = self.snapshots_received;
        line("snapshots received", format!("{got} ({:.0}/s, server allows {} a player)", rate(got), self.send_hz));
        let mega = |bytes: u64| rate(bytes) * 8.0 / 1e6;
        line("Mbit/s in, out", format!("{:.1}, {:.1}", mega(self.bytes_in), mega(self.bytes_out)));
        line("UDP drops", self.udp_drops.to_string());
        line("input to snapshot", in_words(&self.input_to_snapshot_ms));
        line("snapshot gap", in_words(&self.snapshot_gap_ms));
        line("load late", in_words(&self.load_late_ms));
        if let Some(recovery) = &self.recovery_ms {
            line("lag after the pause", in_words(recovery));
        }
        line("load busy", format!("{:.0} % of {} thread(s)", self.load_busy * 100.0, self.threads));
        let Visible { min, mean, max } = self.visible;
        line("others visible", format!("{min} to {max}, mean {mean:.1}"));
        line("moved", format!("least {:.1} m, mean {:.1} m", self.moved_m.min, self.moved_m.mean));
        line("handoffs", format!("{}, {} players with two or more", self.handoffs, self.handoff_bots));
        line("requests done, refused", format!("{}, {}", self.ops_acked, self.ops_refused));
        if self.trades + self.loots + self.mails > 0 {
            line("trades, loots, mails", format!("{}, {}, {}", self.trades, self.loots, self.mails));
        }
        if let Some(balance) = &self.balance {
            line("shards", balance.in_words());
        }
        let ErrorCounts { jump, twice, never_leaves, own_position, other } = self.errors;
        let kinds = format!("jump {jump}, twice {twice}, never leaves {never_leaves}, own position {own_position}");
        line("errors", format!("{} ({kinds}, other {other})", self.error_count));
        self.reasons.iter().for_each(|reason| line("lost or refused", reason.clone()));
        if let Some(why) = &self.void_because {
            line("VOID", why.clone());
        }
        let Provenance { commit, kernel, cpu, cores, date, .. } = &self.provenance;
        line("measured", format!("{date} at {commit} on {kernel}, {cores} cores, {cpu}"));
        lines.concat()
    }
}

/// What became of a player's deals, if it deals.
fn deals(player: &Player) -> Option<DealCounts> {
    player.bot.trader.as_ref().map(|trader| trader.counts)
}

fn in_words(times: &Milliseconds) -> String {
    let mut text = format!("p50 {:.2} ms, p99 {:.2} ms", times.p50, times.p99);
    if let Some(p999) = times.p999 {
        text += &format!(", p99.9 {p999:.2} ms");
    }
    if let Some(max) = times.max {
        text += &format!(", max {max:.2} ms");
    }
    text
}

/// As it is written on the command line.
fn name_of(value: impl clap::ValueEnum) -> String {
    value.to_possible_value().expect("no value is hidden").get_name().to_owned()
}

fn milliseconds(histogram_us: &Histogram<u64>, tail: bool) -> Milliseconds {
    let at = |quantile: f64| histogram_us.value_at_quantile(quantile) as f64 / 1_000.0;
    let max = histogram_us.max() as f64 / 1_000.0;
    Milliseconds { p50: at(0.5), p99: at(0.99), p999: tail.then(|| at(0.999)), max: tail.then_some(max) }
}

fn moved(metres: impl Iterator<Item = f64>) -> Moved {
    let (mut min, mut sum, mut count) = (f64::INFINITY, 0.0, 0);
    for metres in metres {
        min = min.min(metres);
        sum += metres;
        count += 1;
    }
    if count == 0 { Moved::default() } else { Moved { min, mean: sum / f64::from(count) } }
}

fn reasons<'a>(players: impl Iterator<Item = &'a Player>) -> Vec<String> {
    let mut counts: Vec<(usize, &str)> = Vec::new();
    for player in players {
        let (Stage::Refused(why) | Stage::Lost(why)) = &player.stage else { continue };
        match counts.iter_mut().find(|(_, text)| text == why) {
            Some((count, _)) => *count += 1,
            None => counts.push((1, why)),
        }
    }
    counts.sort_by_key(|&(count, text)| (std::cmp::Reverse(count), text));
    counts.iter().map(|(count, text)| format!("{text} ({count} players)")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Command;
    use crate::swarm::link::Traffic;
    use crate::swarm::tally::SETTLE_NS;
    use clap::Parser;

    fn welcome() -> Welcome {
        Welcome {
            entity: ringshard::wire::ids::EntityId::NONE,
            client_id: 1,
            tick: 1,
            tick_hz: 60,
            send_hz: 30,
            land_seed: 42,
            land_size_m: 4_096,
            cell_size_m: 64,
            enter_radius_m: 96,
            leave_radius_m: 128,
            seam: None,
            version: "0.1.0".to_owned(),
            order: 0,
        }
    }

    /// A run of 10 s whose load was late by so many milliseconds.
    fn report(late_ms: u64) -> Report {
        let arguments = ["ringshard-bench", "swarm", "--players", "3", "--duration", "10"];
        let Command::Swarm(args) = crate::Cli::parse_from(arguments).command else { panic!("it is a swarm") };
        let mut tally = Tally::default();
        tally.begin(0);
        for number in 0..100 {
            let due_ns = SETTLE_NS + number * 33_000_000;
            tally.sent(due_ns, due_ns + late_ms * 1_000_000);
            tally.applied(due_ns, due_ns + 18_000_000);
        }
        let harvest = Harvest {
            players: Vec::new(),
            tally,
            cpu_s: 2.5,
            traffic: Traffic { bytes_in: 5, bytes_out: 6 },
            socket_drops: 4,
            failure: None,
        };
        Report::of(&args, &welcome(), &[harvest], 10_000_000_000, 3)
    }

    #[test]
    fn fields_have_the_names_that_scripts_rely_on() {
        let value = serde_json::to_value(report(0)).expect("it is JSON");
        assert_eq!((&value["load_busy"], &value["udp_drops"]), (&0.25.into(), &7.into()));
        assert_eq!((&value["scenario"], &value["transport"]), (&"spread".into(), &"udp".into()));
        let p99 = value["input_to_snapshot_ms"]["p99"].as_f64().expect("a number");
        assert!((17.9..18.1).contains(&p99), "{p99}");
        for field in ["p999", "max"] {
            assert!(value["input_to_snapshot_ms"][field].is_number() && value["load_late_ms"][field].is_null());
        }
        for field in ["connected", "refused", "disconnects", "inputs_sent", "error_count", "handoff_bots", "cores"] {
            assert!(value[field].is_u64(), "{field}");
        }
        for field in ["jump", "twice", "never_leaves", "own_position", "other"] {
            assert_eq!(value["errors"][field], 0);
        }
        assert!(value["void"].is_null() && value["commit"].is_string());
    }

    #[test]
    fn a_late_load_makes_a_run_void_in_words() {
        let (good, late) = (report(1), report(3));
        assert!(!good.void && late.void);
        assert!(late.void_because.as_ref().is_some_and(|why| why.contains("late: p99 3.0 ms")));
        assert!(late.table().contains("VOID") && !good.table().contains("VOID"));
    }

    #[test]
    fn a_run_without_everybody_fails_in_words() {
        let nobody = report(0);
        let text = nobody.failure().expect("nobody came in");
        assert_eq!(text, "only 0 of 3 players came in: they had no answer in time");
        let all = Report { connected: 3, ..nobody.clone() };
        assert_eq!(all.failure(), None);
        assert_eq!(Report { disconnects: 1, ..all.clone() }.failure(), None);
        assert!(Report { disconnects: 3, ..all }.failure().is_some_and(|text| text.contains("lost the server")));
    }
}
