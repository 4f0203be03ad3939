//! The coordinator: moves cells between shards, by decrees about the cuts.
//!
//! Owns the wishes of the operator and the last decree. Runs on shard 0, between ticks of its world: what cells cost comes
//! to it with the other shards' outcomes, and its decree goes to all of them with its own, so that nothing is lost or
//! overtaken and no thread without a core of its own stands between. Promises: what it decides is
//! [`balance::moves`] of what was measured after the last decree was in force; one decree at a time. Never locks, wakes
//! or waits for anybody: a shard that does not say what it costs delays the balance and nothing else.

use std::sync::Arc;

use super::core::Core;
use crate::control::{CellRow, CutsReport, CutsView};
use crate::ids::{CellKey, ShardId};
use crate::limits::{COST_TICKS, CUT_WISHES_MAX};
use crate::world::DecreeKind;
use crate::world::balance::{self, CellCost, Costs};
use crate::world::cut::{CELLS, cells};

/// See the module.
pub struct Coordinator {
    auto: bool,
    wishes: Vec<(CellKey, ShardId)>,
    looked: u64,
    report: CutsReport,
    costs: Box<Costs>,
}

impl Coordinator {
    /// A coordinator that balances, or only does what it is told.
    pub fn new(auto: bool) -> Coordinator {
        let costs = Box::new([CellCost::default(); CELLS]);
        Coordinator { auto, wishes: Vec::new(), looked: 0, report: CutsReport::default(), costs }
    }

    /// Switches the balance on or off.
    pub fn set_auto(&mut self, auto: bool) {
        self.auto = auto;
    }

    /// Moves a cell by hand, with the next decree, unless too many wait.
    pub fn wish(&mut self, cell: CellKey, to: ShardId) {
        if self.wishes.len() < CUT_WISHES_MAX {
            self.wishes.push((cell, to));
        }
    }

    /// What was decreed so far.
    pub fn report(&self, core: &Core) -> CutsReport {
        CutsReport { auto: self.auto, last_tick: core.decreed_tick(), ..self.report }
    }

    /// Once a tick: decrees what was wished at once, and what the balance wants twice a second, when all shards have
    /// measured what the last decree did.
    pub fn decide(&mut self, core: &mut Core) {
        let tick = core.world.tick;
        if !core.may_decree(tick + 1) {
            return;
        }
        let wished = !self.wishes.is_empty();
        let moves = if wished {
            std::mem::take(&mut self.wishes)
        } else {
            // In the middle of a window the tables of the one before are here.
            let look = (tick + COST_TICKS / 2) / COST_TICKS;
            if look == self.looked {
                return;
            }
            self.looked = look;
            let fresh = core.costs.iter().all(|table| core.may_decree(table.tick));
            if !self.auto || !fresh {
                return;
            }
            self.gather(core);
            balance::moves(core.world.cut(), &self.costs)
        };
        if moves.is_empty() {
            return;
        }
        core.decree(DecreeKind::Cut(Arc::new(core.world.cut().with(&moves))));
        self.report.decrees += 1;
        self.report.cells_moved += moves.len() as u64;
        (self.report.last_cells, self.report.last_by_hand) = (moves.len() as u64, wished);
    }

    /// All shards' tables as one.
    fn gather(&mut self, core: &Core) {
        self.costs.fill(CellCost::default());
        for (at, cost) in core.costs.iter().flat_map(|table| &table.cells) {
            let sum = &mut self.costs[usize::from(*at)];
            *sum = CellCost { cost_ns: sum.cost_ns + cost.cost_ns, entities: sum.entities + cost.entities };
        }
    }

    /// The cuts with what is known of their costs.
    pub fn view(&mut self, core: &Core) -> CutsView {
        self.gather(core);
        let cut = core.world.cut();
        let owners = cells().map(|cell| cut.owner(cell).0).collect();
        let row = |(cell, cost): (CellKey, &CellCost)| CellRow {
            x: cell.x,
            y: cell.y,
            shard: cut.owner(cell).0,
            cost_us: cost.cost_ns as f64 / 1_000.0,
            entities: cost.entities,
        };
        let loaded = cells().zip(self.costs.iter()).filter(|(_, cost)| cost.entities > 0);
        CutsView { shards: cut.shards() as u8, owners, cells: loaded.map(row).collect() }
    }
}
