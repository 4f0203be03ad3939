//! The coordinator: moves cells and lanes between shards, by decrees.
//!
//! Owns the wishes of the operator and the last decree. Runs on shard 0, between ticks of its world: what cells and lanes
//! cost comes to it with the other shards' outcomes, and its decree goes to all of them with its own, so that nothing is
//! lost or overtaken and no thread without a core of its own stands between. Promises: what it decides is
//! [`balance::decide`] of what was measured after the last decree was in force; one decree at a time, and none about lanes
//! while one is on its way. Never locks, wakes or waits for anybody: a shard that does not say what it costs delays the
//! balance and nothing else.

use std::sync::Arc;

use super::core::Core;
use crate::limits::{COST_TICKS, COSTS_OLD_TICKS, CUT_WISHES_MAX, LANES};
use crate::report::{CellRow, CutsReport, CutsView, LaneRow};
use crate::wire::ids::{CellKey, ShardId};
use crate::world::DecreeKind;
use crate::world::balance::{self, CellCost, Costs, LaneCost, Moves};
use crate::world::cut::{CELLS, cells};

/// See the module.
pub struct Coordinator {
    auto: bool,
    wishes: Vec<(CellKey, ShardId)>,
    lane_wishes: Vec<(u8, ShardId)>,
    looked: u64,
    /// The last look found something to move.
    unbalanced: bool,
    report: CutsReport,
    costs: Box<Costs>,
    lanes: Vec<LaneCost>,
}

impl Coordinator {
    /// A coordinator that balances, or only does what it is told.
    pub fn new(auto: bool) -> Coordinator {
        Coordinator {
            auto,
            wishes: Vec::new(),
            lane_wishes: Vec::new(),
            looked: 0,
            unbalanced: false,
            report: CutsReport::default(),
            costs: Box::new([CellCost::default(); CELLS]),
            lanes: Vec::new(),
        }
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

    /// Likewise a lane.
    pub fn wish_lane(&mut self, lane: u8, to: ShardId) {
        if self.lane_wishes.len() < CUT_WISHES_MAX {
            self.lane_wishes.push((lane, to));
        }
    }

    /// What was decreed so far.
    pub fn report(&self, core: &Core) -> CutsReport {
        CutsReport { auto: self.auto, last_tick: core.decreed_tick(), ..self.report }
    }

    /// Once a tick: decrees what was wished at once. Looks at the balance twice a second, when all shards have measured what
    /// the last decree did, and decrees what it wants in two looks in a row.
    pub fn decide(&mut self, core: &mut Core) {
        if !core.may_decree(core.world.tick + 1) || !core.lanes_are_settled() {
            return;
        }
        let wished = self.wished();
        let by_hand = wished.is_some();
        let Some(moves) = wished.or_else(|| self.balance(core)) else { return };
        let (kind, cells, lanes) = match &moves {
            Moves::Cells(cells) => (DecreeKind::Cut(Arc::new(core.world.cut().with(cells))), cells.len() as u64, 0),
            Moves::Lanes(lanes) => (DecreeKind::Lanes(core.world.lanes().with(lanes)), 0, lanes.len() as u64),
        };
        core.decree(kind);
        self.report.decrees += 1;
        self.report.cells_moved += cells;
        self.report.lanes_moved += lanes;
        (self.report.last_cells, self.report.last_lanes, self.report.last_by_hand) = (cells, lanes, by_hand);
    }

    fn wished(&mut self) -> Option<Moves> {
        if !self.wishes.is_empty() {
            return Some(Moves::Cells(std::mem::take(&mut self.wishes)));
        }
        (!self.lane_wishes.is_empty()).then(|| Moves::Lanes(std::mem::take(&mut self.lane_wishes)))
    }

    fn balance(&mut self, core: &Core) -> Option<Moves> {
        // In the middle of a window the tables of the one before are here.
        let look = (core.world.tick + COST_TICKS / 2) / COST_TICKS;
        if look == self.looked {
            return None;
        }
        self.looked = look;
        // What a shard said before it stood still is no reason to move anything to it.
        let is_new = |tick: u64| core.may_decree(tick) && tick + COSTS_OLD_TICKS > core.world.tick;
        let fresh = core.costs.iter().all(|table| is_new(table.tick));
        if !self.auto || !fresh {
            return None;
        }
        self.gather(core);
        let moves = balance::decide(core.world.cut(), &self.costs, core.world.lanes(), &self.lanes);
        // A moment in which somebody else had a core is over at the next look.
        let lasts = std::mem::replace(&mut self.unbalanced, moves.is_some());
        if lasts {
            self.unbalanced = false;
        }
        moves.filter(|_| lasts)
    }

    /// All shards' tables as one.
    fn gather(&mut self, core: &Core) {
        self.costs.fill(CellCost::default());
        for (at, cost) in core.costs.iter().flat_map(|table| &table.cells) {
            let sum = &mut self.costs[usize::from(*at)];
            *sum = CellCost { cost_ns: sum.cost_ns + cost.cost_ns, entities: sum.entities + cost.entities };
        }
        self.lanes.clear();
        self.lanes.extend(core.costs.iter().flat_map(|table| &table.lanes));
        // One that moved between the looks of two shards is in both tables.
        self.lanes.sort_by_key(|lane| lane.lane);
        self.lanes.dedup_by_key(|lane| lane.lane);
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
        let lane = |lane: u8| {
            let LaneCost { cost_ns, sessions, .. } =
                self.lanes.iter().find(|cost| cost.lane == lane).copied().unwrap_or_default();
            let shard = core.world.lanes().owner(lane).0;
            LaneRow { lane, shard, cost_us: cost_ns as f64 / 1_000.0, sessions }
        };
        let behind = self.lanes.iter().filter(|cost| usize::from(cost.lane) >= LANES && cost.sessions > 0);
        let lanes = (0..LANES as u8).chain(behind.map(|cost| cost.lane)).map(lane).collect();
        CutsView { shards: cut.shards() as u8, owners, cells: loaded.map(row).collect(), lanes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::Rules;
    use crate::limits::{DECREE_TICKS_MIN, SESSION_BYTES_PER_S_MAX};
    use crate::sessions::interest::Radii;
    use crate::sessions::session::Rates;
    use crate::world::cut::{CutMap, place};
    use crate::world::land::Land;
    use crate::world::parcel::OutcomeParcel;
    use crate::world::{World, WorldConfig};

    /// Shard 0 of two, and what the other one says.
    struct Realm {
        core: Core,
        coordinator: Coordinator,
        /// What each cell of a shard, and each of its lanes, costs.
        costs: [(u64, u64); 2],
        /// The other shard says what its cells cost.
        speaks: bool,
    }

    impl Realm {
        fn new(costs: [(u64, u64); 2]) -> Realm {
            let config = WorldConfig {
                seed: 1,
                land: Arc::new(Land::new(1)),
                cut: Arc::new(CutMap::equal(2)),
                npcs: 0,
                npc_life_ticks: 600,
                start_tick: 0,
                things: Arc::new([]),
            };
            let rates = Rates { send_hz: 30, bytes_per_s: SESSION_BYTES_PER_S_MAX };
            let rules = Rules { radii: Radii { enter: 1, leave: 2 }, rates, dev: true, seam: None };
            let core = Core::new(World::new(config, ShardId(0)), 2, rules);
            Realm { core, coordinator: Coordinator::new(true), costs, speaks: true }
        }

        /// One tick; the decree that left with it.
        fn step(&mut self) -> Option<DecreeKind> {
            let core = &mut self.core;
            let tick = core.world.tick + 1;
            core.pass_requests();
            core.begin(tick);
            core.play();
            let mut outs = [OutcomeParcel::default(), OutcomeParcel::default()];
            outs[0].reset(ShardId(0), tick);
            outs[1].reset(ShardId(0), tick);
            core.publish(&mut outs);
            let decree = outs[0].decrees.first().map(|decree| decree.kind.clone());
            let [mut own, _] = outs;
            let mut other = OutcomeParcel::default();
            other.reset(ShardId(1), tick);
            other.lanes_here = core.world.lanes().of(ShardId(1));
            (own.weighed, other.weighed) =
                (tick.is_multiple_of(COST_TICKS), tick.is_multiple_of(COST_TICKS) && self.speaks);
            for out in [&mut own, &mut other] {
                let (cell_ns, lane_ns) = self.costs[out.shard.index()];
                let mine = cells().filter(|&cell| core.world.cut().owner(cell) == out.shard);
                let cost = CellCost { cost_ns: cell_ns, entities: 1 };
                out.costs.extend(mine.map(|cell| (place(cell) as u16, cost)));
                let mine = (0..LANES as u8).filter(|&lane| core.world.lanes().owner(lane) == out.shard);
                out.lane_costs.extend(mine.map(|lane| LaneCost { lane, cost_ns: lane_ns, sessions: 1 }));
            }
            // The core's own lanes are where its world has them: nobody carries them away here.
            own.lanes_here = core.world.lanes().of(ShardId(0));
            core.hear(&mut own);
            core.hear(&mut other);
            self.coordinator.decide(core);
            decree
        }

        fn decrees(&mut self, ticks: u64) -> Vec<(u64, DecreeKind)> {
            (0..ticks).filter_map(|_| self.step().map(|kind| (self.core.world.tick, kind))).collect()
        }
    }

    #[test]
    fn what_is_balanced_is_left_alone_and_reported() {
        let mut realm = Realm::new([(200, 50_000), (220, 51_000)]);
        assert!(realm.decrees(600).is_empty());
        let view = realm.coordinator.view(&realm.core);
        assert_eq!((view.lanes.len(), view.lanes[3].shard, view.lanes[3].cost_us), (LANES, 1, 51.0));
        assert_eq!(realm.coordinator.report(&realm.core).decrees, 0);
    }

    #[test]
    fn a_decree_leaves_only_after_all_have_measured_the_one_before() {
        let mut realm = Realm::new([(200, 50_000), (200, 5_000)]);
        let decrees = realm.decrees(600);
        assert!(
            decrees.len() > 1 && decrees.iter().all(|(_, kind)| matches!(kind, DecreeKind::Lanes(_))),
            "{decrees:?}"
        );
        for pair in decrees.windows(2) {
            assert!(pair[1].0 - pair[0].0 >= DECREE_TICKS_MIN + 2, "{decrees:?}");
            // In between every shard has ended a window under it.
            let (first, next) = (pair[0].0 + DECREE_TICKS_MIN, pair[1].0);
            assert!(next / COST_TICKS * COST_TICKS >= first, "{decrees:?}");
        }
        let report = realm.coordinator.report(&realm.core);
        assert_eq!((report.decrees, report.cells_moved, report.last_by_hand), (decrees.len() as u64, 0, false));
        assert!(report.lanes_moved >= 4 && report.last_lanes > 0);
    }

    #[test]
    fn a_silent_shard_and_a_balance_switched_off_decree_nothing() {
        let mut realm = Realm::new([(200, 50_000), (200, 5_000)]);
        realm.speaks = false;
        // Its first table is from the start; the first decree asks for a newer one.
        let before = realm.decrees(600).len();
        assert!(before <= 1, "{before} decrees");
        realm.speaks = true;
        realm.coordinator.set_auto(false);
        assert!(realm.decrees(300).is_empty());
        realm.coordinator.set_auto(true);
        assert!(!realm.decrees(300).is_empty());
    }

    #[test]
    fn wishes_go_first_at_once_cells_before_lanes() {
        let mut realm = Realm::new([(200, 50_000), (200, 50_000)]);
        let cell =
            cells().find(|&cell| realm.core.world.cut().owner(cell) == ShardId(0)).expect("it owns half of them");
        realm.coordinator.wish_lane(4, ShardId(1));
        realm.coordinator.wish(cell, ShardId(1));
        let decrees = realm.decrees(40);
        let [(first, DecreeKind::Cut(cut)), (second, DecreeKind::Lanes(lanes))] = &decrees[..] else {
            panic!("{decrees:?}")
        };
        assert_eq!((cut.owner(cell), lanes.owner(4), lanes.owner(6)), (ShardId(1), ShardId(1), ShardId(0)));
        assert!((2..=3).contains(first) && second - first == DECREE_TICKS_MIN + 2, "{decrees:?}");
        let report = realm.coordinator.report(&realm.core);
        assert_eq!((report.decrees, report.cells_moved, report.lanes_moved), (2, 1, 1));
        assert!(report.last_by_hand && report.last_tick == second + DECREE_TICKS_MIN);
    }

    #[test]
    fn wishes_are_bounded() {
        let mut realm = Realm::new([(0, 0), (0, 0)]);
        (0..2 * CUT_WISHES_MAX).for_each(|_| realm.coordinator.wish_lane(1, ShardId(0)));
        assert_eq!(realm.coordinator.lane_wishes.len(), CUT_WISHES_MAX);
    }

    #[test]
    fn no_decree_about_lanes_overtakes_a_lane_on_its_way() {
        let mut realm = Realm::new([(200, 50_000), (200, 50_000)]);
        realm.coordinator.wish_lane(4, ShardId(1));
        assert_eq!(realm.decrees(20).len(), 1);
        assert!(realm.core.lanes_are_settled());
        // As if the other shard did not have it yet.
        let mut word = OutcomeParcel::default();
        word.reset(ShardId(1), realm.core.world.tick);
        word.lanes_here = realm.core.world.lanes().of(ShardId(1)) & !(1 << 4);
        realm.core.hear(&mut word);
        realm.coordinator.wish_lane(6, ShardId(1));
        realm.coordinator.decide(&mut realm.core);
        assert_eq!((realm.core.lanes_are_settled(), realm.coordinator.report.decrees), (false, 1));
        assert_eq!(realm.decrees(4).len(), 1);
    }
}
