//! Balance: which cells, or which lanes, should move from a hot shard to a cool one.
//!
//! Owns nothing: a decision made of both maps and what cells and lanes cost. Promises: the same costs give the same moves;
//! shards within [`START_PERCENT`] or [`NOISE_NS`] of each other are left alone; a move makes hot and cool more equal, with room to spare,
//! so that noise in the costs never sends a cell or a lane back and forth; what one decision moves is bounded. A cell is
//! never split: a crowd in one cell is the work of one core, and all that can be done is to take everything else from it,
//! the sessions of the crowd as well.

use std::cmp::Reverse;

use crate::cut::{CELLS, CutMap, LaneMap, cells, place};
use crate::limits::{CUT_CELLS_MAX, CUT_ENTITIES_MAX, LANES, LANES_MOVED_MAX};
use crate::wire::ids::{CellKey, ShardId};

/// Difference of hottest and coolest shard, in percent of the hottest, up to which they are left alone.
pub const START_PERCENT: u64 = 15;
/// Difference that moves aim at: well below the one that begins them.
const AIM_PERCENT: u64 = 5;
/// Difference up to which shards are left alone however little they cost, nanoseconds a tick: the machine's noise. Prices
/// are each shard's own, so that all of its cells and lanes are too dear at once: measured with 150 players on two shards
/// of 0.8 ms, 0.2 ms from second to second.
pub const NOISE_NS: u64 = 250_000;
/// Steps in which the use of a move is told apart; of moves in the same step the one with more neighbours wins.
const GAIN_STEPS: u64 = 8;

/// What a cell costs its owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CellCost {
    /// Nanoseconds a tick.
    pub cost_ns: u64,
    /// Entities that a move of it hands over.
    pub entities: u32,
}

/// What a lane costs the shard that serves it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LaneCost {
    /// Which; those of TCP peers, which never move, stand behind the others.
    pub lane: u8,
    /// Nanoseconds a tick.
    pub cost_ns: u64,
    /// Sessions in it.
    pub sessions: u32,
}

/// What all cells of the land cost, by their [`place`].
pub type Costs = [CellCost; CELLS];

/// Costs of the cells by shard, nanoseconds a tick.
pub fn totals(cut: &CutMap, costs: &Costs) -> Vec<u64> {
    let mut totals = vec![0; cut.shards()];
    for (cell, cost) in cells().zip(costs) {
        totals[cut.owner(cell).index()] += cost.cost_ns;
    }
    totals
}

/// Costs of the lanes by shard, those of TCP peers among them, nanoseconds a tick.
pub fn lane_totals(shards: usize, map: &LaneMap, lanes: &[LaneCost]) -> Vec<u64> {
    let mut totals = vec![0; shards];
    lanes.iter().for_each(|lane| totals[map.owner(lane.lane).index()] += lane.cost_ns);
    totals
}

/// What should move; each with its new shard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Moves {
    /// These cells.
    Cells(Vec<(CellKey, ShardId)>),
    /// These lanes.
    Lanes(Vec<(u8, ShardId)>),
}

/// What should move so that all shards cost the same, cells and lanes together; none when all is well as it is. What
/// makes the difference mends it, cells or lanes, as long as it can; else the other one does, or does what it can.
pub fn decide(cut: &CutMap, costs: &Costs, map: &LaneMap, lanes: &[LaneCost]) -> Option<Moves> {
    let (cells_ns, lanes_ns) = (totals(cut, costs), lane_totals(cut.shards(), map, lanes));
    let sums: Vec<u64> = cells_ns.iter().zip(&lanes_ns).map(|(a, b)| a + b).collect();
    let (_, cool) = ends(&sums, |_| true)?;
    // What a shard could give so that it and the coolest one are closer: its cells, its lanes.
    let could_give = |hot: usize| {
        let gap = sums[hot] - sums[cool];
        let worth = |cost_ns: &u64| is_worth_it(*cost_ns, gap);
        let hot_cells = cells().zip(costs).filter(|(cell, _)| cut.owner(*cell).index() == hot);
        let hot_lanes = lanes.iter().filter(|lane| may_move(lane) && map.owner(lane.lane).index() == hot);
        let in_cells: u64 = hot_cells.map(|(_, cost)| cost.cost_ns).filter(worth).sum();
        let in_lanes: u64 = hot_lanes.map(|lane| lane.cost_ns).filter(worth).sum();
        (in_cells, in_lanes)
    };
    let mut hottest: Vec<usize> = (0..sums.len()).collect();
    hottest.sort_by_key(|&shard| Reverse(sums[shard]));
    let gives = |hot: usize| Some((hot, could_give(hot))).filter(|(_, given)| *given != (0, 0));
    let (hot, (in_cells, in_lanes)) = hottest.into_iter().find_map(gives)?;
    let wanted = (sums[hot] - sums[cool]).saturating_sub(sums[hot] * AIM_PERCENT / 100) / 2;
    let by_cells = match (in_cells >= wanted, in_lanes >= wanted) {
        (true, true) => cells_ns[hot] + lanes_ns[cool] >= lanes_ns[hot] + cells_ns[cool],
        (false, false) => in_cells >= in_lanes,
        (cells_can, _) => cells_can,
    };
    if by_cells {
        Some(moves(cut, costs, &lanes_ns)).filter(|moves| !moves.is_empty()).map(Moves::Cells)
    } else {
        Some(lane_moves(map, lanes, &cells_ns)).filter(|moves| !moves.is_empty()).map(Moves::Lanes)
    }
}

/// Whether it is a lane that can have another shard.
fn may_move(lane: &LaneCost) -> bool {
    usize::from(lane.lane) < LANES
}

/// The hottest and the coolest of some shards; of equals the first ones.
fn ends(totals: &[u64], counts: impl Fn(usize) -> bool) -> Option<(usize, usize)> {
    let those = || (0..totals.len()).filter(|&shard| counts(shard));
    let hot = those().max_by_key(|&shard| (totals[shard], Reverse(shard)))?;
    Some((hot, those().min_by_key(|&shard| (totals[shard], shard))?))
}

/// Lets the hottest shard give to the coolest until they are close, at most `moves_max` times. `pick` chooses what moves
/// from one to the other when they are so far from each other, and says what that costs.
fn even_out(mut totals: Vec<u64>, moves_max: usize, mut pick: impl FnMut((usize, usize), u64) -> Option<u64>) {
    let mut moved = 0;
    // Shards that have nothing to give: their cost is one cell's, or close to it.
    let mut stuck = vec![false; totals.len()];
    while moved < moves_max {
        let Some((hot, cool)) = ends(&totals, |shard| !stuck[shard]) else { break };
        let gap = totals[hot] - totals[cool];
        let percent = if moved == 0 { START_PERCENT } else { AIM_PERCENT };
        if gap * 100 <= totals[hot] * percent || (moved == 0 && gap <= NOISE_NS) {
            break;
        }
        let Some(cost_ns) = pick((hot, cool), gap) else {
            stuck[hot] = true;
            continue;
        };
        (totals[hot], totals[cool]) = (totals[hot] - cost_ns, totals[cool] + cost_ns);
        moved += 1;
    }
}

/// The cells that should move, each with its new owner, where `others` is what shards cost beside their cells; none when
/// the cuts are well as they are.
pub fn moves(cut: &CutMap, costs: &Costs, others: &[u64]) -> Vec<(CellKey, ShardId)> {
    let sums = totals(cut, costs).iter().zip(others).map(|(cells, other)| cells + other).collect();
    let mut cut = cut.clone();
    let mut moves: Vec<(CellKey, ShardId)> = Vec::new();
    let mut room = CUT_ENTITIES_MAX;
    even_out(sums, CUT_CELLS_MAX, |(hot, cool), gap| {
        let cell = best(&cut, costs, (hot, cool), gap, (room, &moves))?;
        let CellCost { cost_ns, entities } = costs[place(cell)];
        room = room.saturating_sub(entities);
        let to = ShardId(cool as u8);
        cut = cut.with(&[(cell, to)]);
        moves.push((cell, to));
        Some(cost_ns)
    });
    moves
}

/// The lanes that should move, each with its new shard, where `others` is what shards cost beside their lanes.
fn lane_moves(map: &LaneMap, lanes: &[LaneCost], others: &[u64]) -> Vec<(u8, ShardId)> {
    let sums = lane_totals(others.len(), map, lanes).iter().zip(others).map(|(lanes, other)| lanes + other).collect();
    let mut moves: Vec<(u8, ShardId)> = Vec::new();
    even_out(sums, LANES_MOVED_MAX, |(hot, cool), gap| {
        let candidates = lanes.iter().filter(|lane| {
            let is_free = may_move(lane) && moves.iter().all(|&(other, _)| other != lane.lane);
            is_free && is_worth_it(lane.cost_ns, gap) && map.owner(lane.lane).index() == hot
        });
        let best = candidates.max_by_key(|lane| (lane.cost_ns.min(gap - lane.cost_ns), Reverse(lane.lane)))?;
        moves.push((best.lane, ShardId(cool as u8)));
        Some(best.cost_ns)
    });
    moves
}

/// Whether something of this cost makes a difference smaller: what costs nearly all of it would only turn it round.
fn is_worth_it(cost_ns: u64, gap: u64) -> bool {
    cost_ns > 0 && cost_ns * 4 <= gap * 3
}

/// The cell of `hot` that does most for the balance when `cool` gets it.
fn best(
    cut: &CutMap,
    costs: &Costs,
    (hot, cool): (usize, usize),
    gap: u64,
    (room, moved): (u32, &[(CellKey, ShardId)]),
) -> Option<CellKey> {
    let candidates = cells().zip(costs).filter(|&(cell, cost)| {
        let fits = is_worth_it(cost.cost_ns, gap) && (cost.entities <= room || moved.is_empty());
        fits && cut.owner(cell).index() == hot && moved.iter().all(|&(other, _)| other != cell)
    });
    let worth = |&(cell, cost): &(CellKey, &CellCost)| {
        let gain = cost.cost_ns.min(gap - cost.cost_ns) * GAIN_STEPS / gap;
        let beside = [(1, 0), (-1, 0), (0, 1), (0, -1)];
        let contact = beside.iter().filter(|&&(dx, dy)| {
            let neighbour = CellKey { x: cell.x + dx, y: cell.y + dy, ..cell };
            cut.owner(neighbour).index() == cool
        });
        (gain, contact.count(), Reverse(cell))
    };
    candidates.max_by_key(worth).map(|(cell, _)| cell)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::cut::tcp_lane;
    use crate::limits::SHARDS_MAX;
    use crate::random::{below, random};
    use crate::wire::ids::EntityId;

    fn cell(x: i16, y: i16) -> CellKey {
        CellKey { space: 0, y, x }
    }

    /// A realm of so many crowds, with wildlife all over the land.
    fn costs(seed: u64, crowds: u64) -> Box<Costs> {
        let mut costs = Box::new([CellCost { cost_ns: 4_000, entities: 5 }; CELLS]);
        for crowd in 0..crowds {
            let draw = |n: u64, bound: u32| below(random(seed, EntityId(crowd), 1, n), bound) as i16;
            let (x, y) = (draw(0, 60), draw(1, 60));
            for (dx, dy) in (0..16).map(|at| (at % 4, at / 4)) {
                let players = draw(2 + dx as u64 * 4 + dy as u64, 120) as u32;
                let at = place(cell(x + dx, y + dy));
                costs[at].cost_ns += u64::from(players) * 8_000;
                costs[at].entities += players;
            }
        }
        costs
    }

    fn spread(cut: &CutMap, costs: &Costs) -> (u64, u64) {
        let totals = totals(cut, costs);
        let (low, high) = (totals.iter().min().expect("shards"), totals.iter().max().expect("shards"));
        (high - low, *high)
    }

    fn is_balanced(cut: &CutMap, costs: &Costs) -> bool {
        let (gap, high) = spread(cut, costs);
        gap * 100 <= high * START_PERCENT
    }

    /// Decisions until there is nothing to do, with their number.
    fn settle(mut cut: CutMap, costs: &Costs) -> (CutMap, usize) {
        for decisions in 0..200 {
            let moves = moves(&cut, costs, &[0; SHARDS_MAX]);
            if moves.is_empty() {
                return (cut, decisions);
            }
            let before = spread(&cut, costs).0;
            cut = cut.with(&moves);
            assert!(spread(&cut, costs).0 <= before, "it never gets worse");
        }
        panic!("it never comes to rest");
    }

    #[test]
    fn crowds_are_shared_and_then_left_alone() {
        for seed in 0..60 {
            let shards = [2, 3, 4, 8][seed as usize % 4];
            let costs = costs(seed, 1 + seed % 5);
            let (cut, decisions) = settle(CutMap::equal(shards), &costs);
            assert!(is_balanced(&cut, &costs), "seed {seed}: {:?} on {shards} shards", totals(&cut, &costs));
            assert!(decisions <= 30, "seed {seed}: {decisions} decisions");
        }
    }

    #[test]
    fn the_same_costs_give_the_same_moves_within_their_bounds() {
        for seed in 0..40 {
            let (cut, costs) = (CutMap::equal(4), costs(seed, 3));
            let first = moves(&cut, &costs, &[0; SHARDS_MAX]);
            assert_eq!(first, moves(&cut, &costs, &[0; SHARDS_MAX]));
            assert!(first.len() <= CUT_CELLS_MAX);
            let entities = first.iter().map(|&(cell, _)| costs[place(cell)].entities);
            // The first cell may have more: it could never move otherwise.
            assert!(entities.skip(1).sum::<u32>() <= CUT_ENTITIES_MAX);
            let mut moved: Vec<_> = first.iter().map(|&(cell, _)| cell).collect();
            moved.sort_unstable();
            assert!(moved.windows(2).all(|pair| pair[0] != pair[1]), "a cell moves once");
            assert!(first.iter().all(|&(cell, to)| cut.owner(cell) != to));
        }
    }

    #[test]
    fn what_is_balanced_or_idle_stays() {
        let cut = CutMap::equal(4);
        let mut costs = Box::new([CellCost { cost_ns: 5_000, entities: 1 }; CELLS]);
        assert_eq!(moves(&cut, &costs, &[0; SHARDS_MAX]), []);
        // One shard is hotter by less than the percentage that begins moves.
        costs[0].cost_ns += 5_000 * 1_024 * 14 / 86;
        assert!(is_balanced(&cut, &costs));
        assert_eq!(moves(&cut, &costs, &[0; SHARDS_MAX]), []);
        let mut idle = Box::new([CellCost::default(); CELLS]);
        idle[7].cost_ns = NOISE_NS;
        assert_eq!(moves(&cut, &idle, &[0; SHARDS_MAX]), []);
    }

    #[test]
    fn noise_moves_nothing_twice() {
        for seed in 0..30 {
            let costs = costs(seed, 3);
            let (mut cut, _) = settle(CutMap::equal(3), &costs);
            let mut moved = 0;
            for window in 0..50 {
                let mut noisy = costs.clone();
                for (at, cost) in noisy.iter_mut().enumerate() {
                    // 3 % to each side.
                    let noise = u64::from(below(random(seed, EntityId(at as u64), window, 9), 61));
                    cost.cost_ns = cost.cost_ns * (970 + noise) / 1_000;
                }
                let moves = moves(&cut, &noisy, &[0; SHARDS_MAX]);
                moved += moves.len();
                cut = cut.with(&moves);
            }
            assert!(moved <= CUT_CELLS_MAX, "seed {seed}: {moved} cells moved for nothing");
        }
    }

    /// 150 players on two shards, each of which finds everything 15 % too dear or too cheap from window to window.
    #[test]
    fn the_noise_of_a_nearly_idle_node_moves_nothing() {
        let (cut, map) = (CutMap::equal(2), LaneMap::equal(2));
        for window in 0..200 {
            let prices = [0, 1].map(|shard| 850 + u64::from(below(random(1, EntityId(shard), window, 0), 301)));
            let mut costs = Box::new([CellCost::default(); CELLS]);
            for (cell, cost) in cells().zip(costs.iter_mut()) {
                *cost = CellCost { cost_ns: prices[cut.owner(cell).index()] / 10, entities: 1 };
            }
            let mut lanes = lanes(0);
            lanes.iter_mut().for_each(|lane| lane.cost_ns = 30 * prices[map.owner(lane.lane).index()]);
            assert_eq!(decide(&cut, &costs, &map, &lanes), None, "{prices:?}");
        }
    }

    #[test]
    fn a_crowd_in_one_cell_keeps_its_core_and_the_rest_goes() {
        let mut costs = Box::new([CellCost { cost_ns: 500, entities: 1 }; CELLS]);
        let crowd = cell(10, 10);
        costs[place(crowd)] = CellCost { cost_ns: 3_000_000, entities: 3_000 };
        let before = CutMap::equal(2);
        let owner = before.owner(crowd);
        let (after, _) = settle(before.clone(), &costs);
        assert_eq!(after.owner(crowd), owner, "moving it would only move the problem");
        assert!(totals(&after, &costs)[owner.index()] < totals(&before, &costs)[owner.index()]);
    }

    #[test]
    fn a_cell_as_hot_as_the_difference_is_not_tossed_about() {
        let mut costs = Box::new([CellCost::default(); CELLS]);
        for x in 0..3 {
            costs[place(cell(x, 0))] = CellCost { cost_ns: 1_000_000, entities: 100 };
        }
        let cut =
            CutMap::equal(2).with(&[(cell(0, 0), ShardId(1)), (cell(1, 0), ShardId(1)), (cell(2, 0), ShardId(0))]);
        assert_eq!(moves(&cut, &costs, &[0; SHARDS_MAX]), [], "2 to 1 is as good as 1 to 2");
    }

    /// As many sessions in each lane.
    fn lanes(cost_ns: u64) -> Vec<LaneCost> {
        (0..LANES as u8).map(|lane| LaneCost { lane, cost_ns, sessions: 10 }).collect()
    }

    /// Decisions until there is nothing to do: the maps, and the cells and lanes that moved.
    fn settle_all(
        mut cut: CutMap,
        mut map: LaneMap,
        costs: &Costs,
        lanes: &[LaneCost],
    ) -> (CutMap, LaneMap, usize, usize) {
        let (mut cells_moved, mut lanes_moved) = (0, 0);
        for _ in 0..200 {
            match decide(&cut, costs, &map, lanes) {
                None => return (cut, map, cells_moved, lanes_moved),
                Some(Moves::Cells(moves)) => (cut, cells_moved) = (cut.with(&moves), cells_moved + moves.len()),
                Some(Moves::Lanes(moves)) => {
                    assert!(moves.len() <= LANES_MOVED_MAX);
                    (map, lanes_moved) = (map.with(&moves), lanes_moved + moves.len());
                }
            }
        }
        panic!("it never comes to rest");
    }

    fn whole_spread(cut: &CutMap, map: &LaneMap, costs: &Costs, lanes: &[LaneCost]) -> u64 {
        let (cells_ns, lanes_ns) = (totals(cut, costs), lane_totals(cut.shards(), map, lanes));
        let sums = || cells_ns.iter().zip(&lanes_ns).map(|(a, b)| a + b);
        let (high, low) = (sums().max().expect("shards"), sums().min().expect("shards"));
        (high - low) * 100 / high
    }

    #[test]
    fn sessions_that_make_a_shard_hot_move_and_the_land_stays() {
        let (cut, costs) = (CutMap::equal(2), Box::new([CellCost { cost_ns: 100, entities: 1 }; CELLS]));
        let all: Vec<_> = (0..LANES as u8).map(|lane| (lane, ShardId(0))).collect();
        let map = LaneMap::equal(2).with(&all);
        let lanes = lanes(100_000);
        let Some(Moves::Lanes(first)) = decide(&cut, &costs, &map, &lanes) else { panic!("lanes make the difference") };
        assert_eq!((first.len(), first[0]), (LANES_MOVED_MAX, (0, ShardId(1))));
        let (after, map, cells_moved, lanes_moved) = settle_all(cut.clone(), map, &costs, &lanes);
        assert_eq!((after, cells_moved), (cut.clone(), 0));
        assert!((14..=17).contains(&lanes_moved), "{lanes_moved} lanes");
        assert!(whole_spread(&cut, &map, &costs, &lanes) <= START_PERCENT);
    }

    #[test]
    fn a_crowd_in_one_cell_keeps_its_core_and_its_sessions_go() {
        let mut costs = Box::new([CellCost::default(); CELLS]);
        costs[place(cell(10, 10))] = CellCost { cost_ns: 3_000_000, entities: 3_000 };
        let (cut, lanes) = (CutMap::equal(2), lanes(200_000));
        let (after, map, cells_moved, lanes_moved) = settle_all(cut.clone(), LaneMap::equal(2), &costs, &lanes);
        assert_eq!((after.owner(cell(10, 10)), cells_moved), (cut.owner(cell(10, 10)), 0));
        assert!((6..=9).contains(&lanes_moved), "{lanes_moved} lanes");
        assert!(whole_spread(&after, &map, &costs, &lanes) <= START_PERCENT);
    }

    #[test]
    fn cells_that_make_a_shard_hot_move_and_lanes_stay() {
        for seed in 0..20 {
            let (cut, costs) = (CutMap::equal(2), costs(seed, 3));
            let lanes = lanes(80_000);
            let (after, map, cells_moved, lanes_moved) = settle_all(cut.clone(), LaneMap::equal(2), &costs, &lanes);
            assert_eq!((map, lanes_moved), (LaneMap::equal(2), 0), "seed {seed}");
            assert!(whole_spread(&after, &map, &costs, &lanes) <= START_PERCENT, "seed {seed}");
            assert_eq!(cells_moved > 0, whole_spread(&cut, &map, &costs, &lanes) > START_PERCENT, "seed {seed}");
        }
    }

    #[test]
    fn noise_moves_nothing_to_and_fro_and_tcp_peers_stay() {
        let costs = Box::new([CellCost { cost_ns: 100, entities: 1 }; CELLS]);
        for seed in 0..30 {
            let cut = CutMap::equal(3);
            let draw = |n: u64, bound: u32| u64::from(below(random(seed, EntityId(1), 1, n), bound));
            let mut lanes: Vec<LaneCost> = lanes(0);
            lanes.iter_mut().for_each(|lane| lane.cost_ns = 20_000 + draw(u64::from(lane.lane), 80_000));
            lanes.push(LaneCost { lane: tcp_lane(ShardId(1)), cost_ns: draw(99, 1_500_000), sessions: 9 });
            let (mut cut, mut map, ..) = settle_all(cut, LaneMap::equal(3), &costs, &lanes);
            let (mut cells_moved, mut lanes_moved) = (BTreeSet::new(), BTreeSet::new());
            for window in 0..50 {
                let mut noisy = lanes.clone();
                for lane in &mut noisy {
                    let noise = u64::from(below(random(seed, EntityId(lane.lane.into()), window, 9), 61));
                    lane.cost_ns = lane.cost_ns * (970 + noise) / 1_000;
                }
                match decide(&cut, &costs, &map, &noisy) {
                    None => (),
                    Some(Moves::Cells(moves)) => {
                        cut = cut.with(&moves);
                        assert!(moves.iter().all(|&(cell, _)| cells_moved.insert(cell)), "seed {seed}: {moves:?}");
                    }
                    Some(Moves::Lanes(moves)) => {
                        map = map.with(&moves);
                        assert!(moves.iter().all(|&(lane, _)| lanes_moved.insert(lane)), "seed {seed}: {moves:?}");
                    }
                }
            }
            assert!(lanes_moved.len() <= 4, "seed {seed}: {lanes_moved:?} moved for nothing");
        }
    }
}
