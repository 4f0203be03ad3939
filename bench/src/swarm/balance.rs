//! How the server's shards share the work, second by second, as their node says it.
//!
//! Owns what was seen. Promises: asks the control side of the node once a second, which costs no shard's tick; says what
//! it saw and judges nothing.

use std::net::SocketAddr;

use ringshard::control::client;
use ringshard::control::status::StatusPage;
use serde::Serialize;

use super::place::{MARCH_STOP_S, Scenario};

/// Seconds after a march by which the cuts have followed it.
pub const SETTLE_S: u32 = 10;
/// Seconds over which costs are averaged for the result: those of a single one are a machine's noise as well.
const AVERAGED: usize = 5;

/// Of the shards, in one second.
#[derive(Clone, PartialEq, Debug, Serialize)]
struct Sample {
    /// Since the last join.
    second: u32,
    /// What each shard's cells cost, microseconds a tick.
    cells_us: Vec<f64>,
    /// What its lanes cost.
    lanes_us: Vec<f64>,
    /// Difference of the hottest and the coolest shard, cells and lanes together, percent of the hottest.
    spread_percent: f64,
}

/// What became of the balance, for the report.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Balance {
    /// Spread in the five seconds until a march had been over for ten, else in the last five.
    spread_percent: f64,
    /// Greatest one before that.
    spread_percent_max: f64,
    /// Decrees about cuts during the run.
    decrees: u64,
    /// Cells that they moved.
    cells_moved: u64,
    /// Lanes that they moved.
    lanes_moved: u64,
    /// Ticks longer than 33 ms during the run.
    long_ticks: u64,
    samples: Vec<Sample>,
}

impl Balance {
    /// In one line.
    pub fn in_words(&self) -> String {
        let Balance { spread_percent, spread_percent_max, decrees, cells_moved, lanes_moved, long_ticks, .. } = self;
        format!(
            "shards within {spread_percent:.0} % of each other (at most {spread_percent_max:.0} %), {decrees} decrees moved \
             {cells_moved} cells and {lanes_moved} lanes, {long_ticks} ticks over 33 ms"
        )
    }
}

/// Looks at a node while a swarm plays.
pub struct Watch {
    control: SocketAddr,
    /// The second that counts.
    settled_s: u32,
    first: Option<StatusPage>,
    last: Option<StatusPage>,
    samples: Vec<Sample>,
}

impl Watch {
    /// Nothing seen yet.
    pub fn new(control: SocketAddr, scenario: Scenario) -> Watch {
        let settled_s = if scenario == Scenario::March { MARCH_STOP_S + SETTLE_S } else { u32::MAX };
        Watch { control, settled_s, first: None, last: None, samples: Vec::new() }
    }

    /// One look, `second` after the last join.
    pub fn look(&mut self, second: u32) {
        // A node that does not answer is seen by the players as well.
        let Ok(page) = client::status(self.control) else { return };
        let cells_us: Vec<f64> = page.shards.iter().map(|shard| shard.cost_us.cells).collect();
        let lanes_us = page.shards.iter().map(|shard| shard.cost_us.lanes).collect();
        let sums: Vec<f64> = page.shards.iter().map(|shard| shard.cost_us.cells + shard.cost_us.lanes).collect();
        let spread_percent = spread_percent(&sums);
        self.samples.push(Sample { second, cells_us, lanes_us, spread_percent });
        self.first.get_or_insert_with(|| page.clone());
        self.last = Some(page);
    }

    /// What became of it.
    pub fn end(self) -> Balance {
        let Watch { first, last, samples, settled_s, .. } = self;
        let until = samples.iter().position(|sample| sample.second >= settled_s).map_or(samples.len(), |at| at + 1);
        let counted = &samples[until.saturating_sub(AVERAGED)..until];
        let shards = counted.first().map_or(0, |sample| sample.cells_us.len());
        let of_shard = |sample: &Sample, shard: usize| sample.cells_us[shard] + sample.lanes_us[shard];
        let sums: Vec<f64> =
            (0..shards).map(|shard| counted.iter().map(|sample| of_shard(sample, shard)).sum()).collect();
        let total = |count: fn(&StatusPage) -> u64| {
            let of = |page: &Option<StatusPage>| page.as_ref().map_or(0, count);
            of(&last).saturating_sub(of(&first))
        };
        Balance {
            spread_percent: spread_percent(&sums),
            spread_percent_max: samples.iter().map(|sample| sample.spread_percent).fold(0.0, f64::max),
            decrees: total(|page| page.cuts.map_or(0, |cuts| cuts.decrees)),
            cells_moved: total(|page| page.cuts.map_or(0, |cuts| cuts.cells_moved)),
            lanes_moved: total(|page| page.cuts.map_or(0, |cuts| cuts.lanes_moved)),
            long_ticks: total(|page| page.shards.iter().map(|shard| shard.long_ticks).sum()),
            samples,
        }
    }
}

fn spread_percent(costs: &[f64]) -> f64 {
    let low = costs.iter().copied().fold(f64::INFINITY, f64::min);
    let high = costs.iter().copied().fold(0.0, f64::max);
    if high > 0.0 { (high - low) / high * 100.0 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seconds_until_a_march_was_over_for_ten_count() {
        let sample = |second: u32, cells_us: &[f64]| {
            let spread_percent = spread_percent(cells_us);
            Sample { second, cells_us: cells_us.to_vec(), lanes_us: vec![0.0; cells_us.len()], spread_percent }
        };
        let mut watch = Watch::new(([127, 0, 0, 1], 1).into(), Scenario::March);
        let settled = MARCH_STOP_S + SETTLE_S;
        watch.samples = vec![sample(1, &[100.0, 50.0])];
        watch.samples.extend((settled - 4..settled).map(|second| sample(second, &[100.0, 85.0])));
        watch.samples.extend([sample(settled, &[100.0, 110.0]), sample(settled + 1, &[100.0, 40.0])]);
        let balance = watch.end();
        assert_eq!((balance.spread_percent, balance.spread_percent_max), (10.0, 60.0));
        assert_eq!(spread_percent(&[0.0, 0.0]), 0.0);
    }
}
