//! Balance: which cells should move from a hot shard to a cool one.
//!
//! Owns nothing: a decision made of a cut map and what its cells cost. Promises: the same costs give the same moves; cuts
//! within [`START_PERCENT`] of each other are left alone; a move makes hot and cool more equal, with room to spare, so that
//! noise in the costs never sends a cell back and forth; what one decision moves is bounded. A cell is never split: a
//! crowd in one cell is the work of one core, and all that can be done is to take everything else from it.

use std::cmp::Reverse;

use crate::ids::{CellKey, ShardId};
use crate::limits::{CUT_CELLS_MAX, CUT_ENTITIES_MAX};
use crate::world::cut::{CELLS, CutMap, cells, place};

/// Difference of hottest and coolest shard, in percent of the hottest, up to which cuts are left alone.
pub const START_PERCENT: u64 = 15;
/// Difference that moves aim at: well below the one that begins them.
const AIM_PERCENT: u64 = 5;
/// What the hottest shard's cells cost at least, nanoseconds a tick: balancing less would help nobody.
pub const FLOOR_NS: u64 = 100_000;
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

/// What all cells of the land cost, by their [`place`].
pub type Costs = [CellCost; CELLS];

/// Costs by shard, nanoseconds a tick.
pub fn totals(cut: &CutMap, costs: &Costs) -> Vec<u64> {
    let mut totals = vec![0; cut.shards()];
    for (cell, cost) in cells().zip(costs) {
        totals[cut.owner(cell).index()] += cost.cost_ns;
    }
    totals
}

/// The cells that should move, each with its new owner; none when the cuts are well as they are.
pub fn moves(cut: &CutMap, costs: &Costs) -> Vec<(CellKey, ShardId)> {
    let mut totals = totals(cut, costs);
    if totals.iter().all(|&total| total < FLOOR_NS) {
        return Vec::new();
    }
    let mut cut = cut.clone();
    let mut moves: Vec<(CellKey, ShardId)> = Vec::new();
    let mut room = CUT_ENTITIES_MAX;
    // Shards that have nothing to give: their cost is one cell's, or close to it.
    let mut stuck = vec![false; totals.len()];
    while moves.len() < CUT_CELLS_MAX {
        let open = || (0..totals.len()).filter(|&shard| !stuck[shard]);
        let hot = open().max_by_key(|&shard| (totals[shard], Reverse(shard)));
        let cool = open().min_by_key(|&shard| (totals[shard], shard));
        let (Some(hot), Some(cool)) = (hot, cool) else { break };
        let gap = totals[hot] - totals[cool];
        let percent = if moves.is_empty() { START_PERCENT } else { AIM_PERCENT };
        if gap * 100 <= totals[hot] * percent {
            break;
        }
        let Some(cell) = best(&cut, costs, (hot, cool), gap, (room, &moves)) else {
            stuck[hot] = true;
            continue;
        };
        let CellCost { cost_ns, entities } = costs[place(cell)];
        (totals[hot], totals[cool]) = (totals[hot] - cost_ns, totals[cool] + cost_ns);
        room = room.saturating_sub(entities);
        let to = ShardId(cool as u8);
        cut = cut.with(&[(cell, to)]);
        moves.push((cell, to));
    }
    moves
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
        // What costs nearly all of the difference would only turn it round.
        let fits = cost.cost_ns > 0 && cost.cost_ns * 4 <= gap * 3 && (cost.entities <= room || moved.is_empty());
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
    use super::*;
    use crate::ids::EntityId;
    use crate::world::random::{below, random};

    fn cell(x: i16, y: i16) -> CellKey {
        CellKey { space: 0, y, x }
    }

    /// A realm of so many crowds, with wildlife all over the land.
    fn costs(seed: u64, crowds: u64) -> Box<Costs> {
        let mut costs = Box::new([CellCost { cost_ns: 500, entities: 5 }; CELLS]);
        for crowd in 0..crowds {
            let draw = |n: u64, bound: u32| below(random(seed, EntityId(crowd), 1, n), bound) as i16;
            let (x, y) = (draw(0, 60), draw(1, 60));
            for (dx, dy) in (0..16).map(|at| (at % 4, at / 4)) {
                let players = draw(2 + dx as u64 * 4 + dy as u64, 120) as u32;
                let at = place(cell(x + dx, y + dy));
                costs[at].cost_ns += u64::from(players) * 1_000;
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
            let moves = moves(&cut, costs);
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
            let first = moves(&cut, &costs);
            assert_eq!(first, moves(&cut, &costs));
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
        let mut costs = Box::new([CellCost { cost_ns: 500, entities: 1 }; CELLS]);
        assert_eq!(moves(&cut, &costs), []);
        // One shard is hotter by less than the percentage that begins moves.
        costs[0].cost_ns += 500 * 1_024 * 14 / 86;
        assert!(is_balanced(&cut, &costs));
        assert_eq!(moves(&cut, &costs), []);
        let mut idle = Box::new([CellCost::default(); CELLS]);
        idle[7].cost_ns = FLOOR_NS - 1;
        assert_eq!(moves(&cut, &idle), []);
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
                let moves = moves(&cut, &noisy);
                moved += moves.len();
                cut = cut.with(&moves);
            }
            assert!(moved <= CUT_CELLS_MAX, "seed {seed}: {moved} cells moved for nothing");
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
        assert_eq!(moves(&cut, &costs), [], "2 to 1 is as good as 1 to 2");
    }
}
