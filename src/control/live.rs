//! The live view of `serve`: a small table redrawn in place on a terminal, one line a second elsewhere.
//!
//! Promises: pure; the caller prints. Never longer than a line for each shard and two more.

use std::time::Duration;

use super::status::{StatusPage, drops_in_words};

/// How a node shows its state on standard error.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LiveForm {
    /// Not at all.
    #[default]
    Off,
    /// One line a second.
    Lines,
    /// A table that is redrawn, for terminals.
    Table,
}

impl LiveForm {
    /// The table where standard error is a terminal and `no_tui` is not asked for, else lines.
    pub fn for_terminal(no_tui: bool) -> LiveForm {
        let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
        if terminal && !no_tui { LiveForm::Table } else { LiveForm::Lines }
    }
}

/// What the view remembers from one drawing to the next.
#[derive(Debug)]
pub struct LiveView {
    form: LiveForm,
    lines_drawn: usize,
    /// Totals of each shard at the last drawing: packets in, packets out, handoffs.
    before: Vec<(u8, [u64; 3])>,
}

impl LiveView {
    /// A view that has drawn nothing yet.
    pub fn new(form: LiveForm) -> LiveView {
        LiveView { form, lines_drawn: 0, before: Vec::new() }
    }

    /// What to print now, `elapsed` after the last time.
    pub fn render(&mut self, page: &StatusPage, elapsed: Duration) -> String {
        let rates = self.rates(page, elapsed);
        match self.form {
            LiveForm::Off => String::new(),
            LiveForm::Lines => line(page, &rates),
            LiveForm::Table => {
                // Up over the table before, and clear from there to the end of the screen.
                let back =
                    if self.lines_drawn == 0 { String::new() } else { format!("\x1b[{}A\x1b[J", self.lines_drawn) };
                let table = table(page, &rates);
                self.lines_drawn = table.lines().count();
                back + &table
            }
        }
    }

    /// Packets in, packets out and handoffs a second of each shard since the last drawing.
    fn rates(&mut self, page: &StatusPage, elapsed: Duration) -> Vec<[u64; 3]> {
        let now: Vec<(u8, [u64; 3])> =
            page.shards.iter().map(|shard| (shard.id, [shard.packets_in, shard.packets_out, shard.handoffs])).collect();
        let seconds = elapsed.as_secs_f64().max(0.001);
        let rate = |(id, totals): &(u8, [u64; 3])| {
            let before = self.before.iter().find(|(other, _)| other == id).map_or(totals, |(_, before)| before);
            std::array::from_fn(|n| (totals[n].saturating_sub(before[n]) as f64 / seconds).round() as u64)
        };
        let rates = now.iter().map(rate).collect();
        self.before = now;
        rates
    }
}

fn line(page: &StatusPage, rates: &[[u64; 3]]) -> String {
    let sum = |n: usize| rates.iter().map(|rate| rate[n]).sum::<u64>();
    let worst = |of: fn(&super::status::ShardStatus) -> u64| page.shards.iter().map(of).max().unwrap_or(0);
    let late: u64 = page.shards.iter().map(|shard| shard.late_parcels).sum();
    let sessions: u64 = page.shards.iter().map(|shard| shard.sessions).sum();
    let highest = page.shards.iter().map(|shard| &shard.ladder).max_by_key(|ladder| ladder.step);
    let ladder = highest.map_or_else(String::new, ToString::to_string);
    let dropped: u64 = page.shards.iter().flat_map(|shard| shard.drops.values()).sum();
    format!(
        "tick={} players={sessions} ladder={ladder} tick_us_p50={} tick_us_p99={} packets_in_per_s={} packets_out_per_s={} \
         handoffs_per_s={} late_parcels={late} drops={dropped}\n",
        page.tick,
        worst(|shard| shard.tick_us.p50),
        worst(|shard| shard.tick_us.p99),
        sum(0),
        sum(1),
        sum(2)
    )
}

fn table(page: &StatusPage, rates: &[[u64; 3]]) -> String {
    let players: u64 = page.shards.iter().map(|shard| shard.sessions).sum();
    let mut text = format!("tick {}   players {players}   {} MiB\n", page.tick, page.rss_bytes >> 20);
    text.push_str(
        "shard   p50 us  p99 us  busy  players  entities      in/s     out/s  handoffs/s   late  ladder      drops\n",
    );
    for (shard, [packets_in, packets_out, handoffs]) in page.shards.iter().zip(rates) {
        // Cut short: a wrapped line would break the redrawing.
        let drops: String = drops_in_words(&shard.drops).chars().take(40).collect();
        text.push_str(&format!(
            "{:>5} {:>8} {:>7} {:>4.0}% {:>8} {:>9} {packets_in:>9} {packets_out:>9} {handoffs:>11} {:>6}  {:<10}  {drops}\n",
            shard.id,
            shard.tick_us.p50,
            shard.tick_us.p99,
            shard.busy * 100.0,
            shard.sessions,
            shard.entities,
            shard.late_parcels,
            shard.ladder,
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::status::ShardStatus;
    use super::*;
    use crate::realm::report::ShardReport;

    fn page(packets_in: u64) -> StatusPage {
        let report = |id| ShardReport {
            id,
            sessions: 250,
            tick_us_p50: 900,
            tick_us_p99: 2_000 + u64::from(id),
            packets_in,
            late_parcels: 1,
            drops: vec![("malformed", 3), ("lane_full", 0)],
            ..ShardReport::default()
        };
        StatusPage {
            version: "1".into(),
            content_version: "0".into(),
            ready: true,
            tick: 77,
            io: crate::io::Backend::Ring,
            rss_bytes: 64 << 20,
            memory: Default::default(),
            conserved: true,
            keeper: None,
            cuts: None,
            tuned: Vec::new(),
            shards: [0, 1].iter().map(|&id| ShardStatus::from(&report(id))).collect(),
        }
    }

    #[test]
    fn a_line_sums_the_shards_and_shows_the_slowest() {
        let mut view = LiveView::new(LiveForm::Lines);
        view.render(&page(1_000), Duration::from_secs(1));
        let line = view.render(&page(3_000), Duration::from_secs(2));
        assert_eq!(line.lines().count(), 1);
        for part in [
            "tick=77 players=500 ladder=none ",
            "tick_us_p99=2001 ",
            "packets_in_per_s=2000 ",
            "late_parcels=2 drops=6\n",
        ] {
            assert!(line.contains(part), "{part}: {line}");
        }
    }

    #[test]
    fn a_table_is_redrawn_over_the_one_before() {
        let mut view = LiveView::new(LiveForm::Table);
        let first = view.render(&page(0), Duration::from_secs(1));
        assert!(first.starts_with("tick 77   players 500   64 MiB\n") && first.contains("malformed=3"), "{first}");
        assert!(!first.contains("lane_full"), "{first}");
        let second = view.render(&page(0), Duration::from_secs(1));
        assert_eq!(second, format!("\x1b[4A\x1b[J{first}"));
    }

    #[test]
    fn the_first_drawing_claims_no_rate() {
        let first = LiveView::new(LiveForm::Lines).render(&page(5_000), Duration::from_secs(1));
        assert!(first.contains("packets_in_per_s=0 "), "{first}");
        assert_eq!(LiveView::new(LiveForm::Off).render(&page(1), Duration::from_secs(1)), "");
    }
}
