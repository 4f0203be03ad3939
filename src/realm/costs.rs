//! What a shard's cells and lanes cost it, from measured nanoseconds.
//!
//! Owns the times of the present window of [`COST_TICKS`] ticks. Promises: the parts of a tick are timed by the
//! host's monotonic clock, about twenty readings of it, far below a hundredth of a busy tick; a window's time is its median
//! tick's, so that one tick in which another thread had the core says nothing. A cell's part is what its bodies are
//! worth: for each part of the tick, its time over the bodies that it is spent on, times the cell's bodies. A lane's part
//! is what its packets are worth: the time that ticks serve, but for the longest ones, over their packets, times the lane's
//! packets, which it carries along when it moves. What the waiting for other shards takes is nobody's cost. Never asks the world but once a window.

use crate::core::Core;
use crate::limits::COST_TICKS;
use crate::world::balance::{CellCost, LaneCost};
use crate::world::cut::{CELLS, place};

/// What a shard's cells cost, as it said last.
#[derive(Clone, Debug, Default)]
pub struct CostTable {
    /// When.
    pub tick: u64,
    /// The cells with bodies, by their place in the land.
    pub cells: Vec<(u16, CellCost)>,
    /// The lanes.
    pub lanes: Vec<LaneCost>,
}

/// A part of the tick that is somebody's cost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// Effects and wildlife: the bodies that are no character's.
    Act,
    /// Inputs and players: the characters.
    Play,
    /// The frame and all parcels: all bodies.
    Show,
    /// Packets in and out (bodies), and what is made of them: the lanes.
    Serve,
}

const PARTS: usize = 4;

/// See the module.
#[derive(Debug)]
pub struct Costs {
    began_ns: u64,
    /// Nanoseconds of each part in this tick.
    tick_ns: [u64; PARTS],
    /// Of each tick in this window.
    window: [Vec<u64>; PARTS],
    /// Packets of each tick in this window.
    packets: Vec<u64>,
    /// Packets until now.
    packets_before: u64,
    /// What one body, in the last part one packet, costs in each part, 1/16 ns a tick, smoothed over windows.
    prices: [u64; PARTS],
    weighed: u64,
    /// Characters and others by cell.
    bodies: Box<[[u32; 2]; CELLS]>,
    /// The cells with bodies, by place, as they were weighed last.
    pub table: Vec<(u16, CellCost)>,
    /// The lanes, likewise.
    pub lanes: Vec<LaneCost>,
}

impl Default for Costs {
    /// Nothing measured yet.
    fn default() -> Costs {
        Costs {
            began_ns: 0,
            tick_ns: [0; PARTS],
            window: std::array::from_fn(|_| Vec::with_capacity(COST_TICKS as usize)),
            packets: Vec::with_capacity(COST_TICKS as usize),
            packets_before: 0,
            prices: [0; PARTS],
            weighed: 0,
            bodies: Box::new([[0; 2]; CELLS]),
            table: Vec::new(),
            lanes: Vec::new(),
        }
    }
}

impl Costs {
    /// A part begins, or goes on, at a time of the host's clock.
    pub fn begin(&mut self, now_ns: u64) {
        self.began_ns = now_ns;
    }

    /// It is over, or interrupted; another one may begin here.
    pub fn end(&mut self, part: Part, now_ns: u64) {
        self.tick_ns[part as usize] += now_ns - self.began_ns;
        self.began_ns = now_ns;
    }

    /// The tick is over; so many packets came and went since the start.
    pub fn tick(&mut self, packets: u64) {
        let of_tick = packets - std::mem::replace(&mut self.packets_before, packets);
        if self.packets.len() < COST_TICKS as usize {
            self.packets.push(of_tick);
        }
        for (window, tick_ns) in self.window.iter_mut().zip(&mut self.tick_ns) {
            let ns = std::mem::take(tick_ns);
            // A window that is late ends late: its median says the same.
            if window.len() < COST_TICKS as usize {
                window.push(ns);
            }
        }
    }

    /// What all cells cost together, nanoseconds a tick.
    pub fn cells_ns(&self) -> u64 {
        self.table.iter().map(|(_, cost)| cost.cost_ns).sum()
    }

    /// What the lanes cost, nanoseconds a tick.
    pub fn lanes_ns(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.cost_ns).sum()
    }

    /// Ends the window when it is full: then the table is new, and it says so.
    pub fn weigh(&mut self, core: &mut Core) -> bool {
        let world = &core.world;
        if world.tick / COST_TICKS == self.weighed {
            return false;
        }
        self.weighed = world.tick / COST_TICKS;
        self.bodies.fill([0; 2]);
        let mut sums = [0; 2];
        for (home, is_character) in world.homes() {
            let kind = usize::from(!is_character);
            self.bodies[place(home)][kind] += 1;
            sums[kind] += 1;
        }
        let [characters, others] = sums;
        let units = [others, characters, characters + others];
        let Costs { window, prices, .. } = self;
        for ((price, window), units) in prices.iter_mut().zip(window).zip(units) {
            if let (Some(ns), true) = (median(window), units > 0) {
                *price = smooth(*price, ns * 16 / units);
            }
        }
        let served = &mut self.window[Part::Serve as usize];
        if let Some(of_packet) = price(served.drain(..).zip(self.packets.drain(..)).collect()) {
            let price = &mut self.prices[Part::Serve as usize];
            // Its ticks differ more than those of the other parts: half as much weight to what is new.
            *price = smooth(*price, smooth(*price, of_packet));
        }
        let [act, play, show, serve] = self.prices;
        self.lanes.clear();
        self.lanes.extend(core.weigh_lanes().map(|(lane, packets, sessions)| {
            // Packets of a thousand ticks, and a price in sixteenths.
            LaneCost { lane, cost_ns: packets * serve / 16_000, sessions }
        }));
        self.table.clear();
        for (at, &[characters, others]) in (0u16..).zip(self.bodies.iter()) {
            let (characters, others) = (u64::from(characters), u64::from(others));
            let entities = characters + others;
            let cost_ns = (others * act + characters * play + entities * show) / 16;
            if entities > 0 {
                self.table.push((at, CellCost { cost_ns, entities: entities as u32 }));
            }
        }
        true
    }
}

/// The middle one of the values, which are gone then.
fn median(values: &mut Vec<u64>) -> Option<u64> {
    let middle = values.len() / 2;
    let median = (!values.is_empty()).then(|| *values.select_nth_unstable(middle).1);
    values.clear();
    median
}

/// What a packet costs, 1/16 ns, of ticks with their nanoseconds and packets. Some ticks have many packets and some few:
/// all count but the longest tenth, in which another thread may have had the core.
fn price(mut ticks: Vec<(u64, u64)>) -> Option<u64> {
    ticks.sort_unstable();
    ticks.truncate(ticks.len() - ticks.len() / 10);
    let (ns, packets) = ticks.iter().fold((0, 0), |sum, tick| (sum.0 + tick.0, sum.1 + tick.1));
    (ns * 16).checked_div(packets)
}

/// Half of what was known and half of what is new.
fn smooth(before: u64, now: u64) -> u64 {
    if before == 0 { now } else { before.midpoint(now) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_tick_without_the_core_says_nothing() {
        let mut ticks = vec![100; 29];
        ticks.insert(7, 9_000_000);
        assert_eq!(median(&mut ticks), Some(100));
        assert_eq!((ticks.len(), median(&mut ticks)), (0, None));
        assert_eq!((smooth(0, 40), smooth(100, 40)), (40, 70));
    }

    #[test]
    fn packets_cost_the_same_whether_they_come_in_some_ticks_or_in_all() {
        let even = vec![(1_000, 10); 30];
        assert_eq!(price(even.clone()), Some(1_600));
        let by_turns = (0..30).map(|tick| (2_000 * (tick % 2), 20 * (tick % 2))).collect();
        assert_eq!(price(by_turns), Some(1_600));
        let mut late = even;
        (late[3].0, late[20].0) = (9_000_000, 8_000_000);
        assert_eq!(price(late), Some(1_600));
        assert_eq!((price(Vec::new()), price(vec![(700, 0); 30])), (None, None));
    }
}
