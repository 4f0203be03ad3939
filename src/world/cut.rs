//! The cut map: which shard owns which cell; and the lane map: which shard serves which lane.
//!
//! Owns nothing that moves. Promises: every cell of every space has exactly one owner, and every lane; the land is first
//! cut into ranges of a Hilbert curve (Hilbert 1891), so that a shard's land hangs together and each range has few
//! borders; from there single cells and lanes move.

use serde::{Deserialize, Serialize};

use crate::land::{LAND_CELLS, Land};
use crate::limits::{LANES, SHARDS_MAX};
use crate::wire::ids::{CellKey, ShardId};
use crate::wire::units::{CELL_GRID, CELL_M, FINE_PER_M};

/// Cells along the side of the curve.
const SIDE: u32 = LAND_CELLS as u32;

/// Cells of the land.
pub const CELLS: usize = (SIDE * SIDE) as usize;

/// Owner of each cell. Changes only by a decree, as a whole.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CutMap {
    shards: u8,
    /// Of each cell of the land, row by row.
    owners: Vec<ShardId>,
}

/// A straight piece of border between two shards, in 1/256 m.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seam {
    /// One end, east and north.
    pub from: (i32, i32),
    /// The other end.
    pub to: (i32, i32),
}

impl CutMap {
    /// Equal ranges of the curve for `shards` shards.
    pub fn equal(shards: usize) -> CutMap {
        assert!((1..=SHARDS_MAX).contains(&shards));
        let start = |shard: usize| (shard as u64 * u64::from(SIDE * SIDE) / shards as u64) as u32;
        CutMap::from_starts(&(0..shards).map(start).collect::<Vec<_>>())
    }

    /// Ranges that start at the given places of the curve.
    ///
    /// Panics when they do not rise strictly from 0.
    pub fn from_starts(starts: &[u32]) -> CutMap {
        assert!(starts.first() == Some(&0) && starts.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(starts.len() <= SHARDS_MAX && starts.iter().all(|&start| start < SIDE * SIDE));
        let owner = |place: u32| ShardId((starts.partition_point(|&start| start <= place) - 1) as u8);
        let owners = cells().map(|cell| owner(hilbert(clamp(cell.x), clamp(cell.y)))).collect();
        CutMap { shards: starts.len() as u8, owners }
    }

    /// The same map but for some cells of the land, which get other owners.
    ///
    /// Panics when there is no such shard.
    pub fn with(&self, moves: &[(CellKey, ShardId)]) -> CutMap {
        let mut cut = self.clone();
        for &(cell, to) in moves {
            assert!(to.0 < self.shards, "a cell moves to a shard that there is");
            cut.owners[place(cell)] = to;
        }
        cut
    }

    /// Number of shards.
    pub fn shards(&self) -> usize {
        usize::from(self.shards)
    }

    /// The shard that owns a cell; cells outside the land belong to the land's nearest cell.
    pub fn owner(&self, cell: CellKey) -> ShardId {
        self.owners[place(cell)]
    }

    /// Number of cells of the land that a shard owns.
    pub fn cells_of(&self, shard: ShardId) -> usize {
        self.owners.iter().filter(|&&owner| owner == shard).count()
    }

    /// The longest straight border on walkable ground, if the land has more than one owner.
    pub fn seam(&self, land: &Land) -> Option<Seam> {
        let upright = (1..LAND_CELLS).filter_map(|x| self.longest_on_line(land, x, true));
        let level = (1..LAND_CELLS).filter_map(|y| self.longest_on_line(land, y, false));
        let best = upright.chain(level).max_by_key(|&(length, line, from, upright)| (length, line, from, upright));
        best.map(|(length, line, from, upright)| {
            let (line, from) = (i32::from(line) * CELL_GRID, i32::from(from) * CELL_GRID);
            let end = from + i32::from(length) * CELL_GRID;
            if upright {
                Seam { from: (line, from), to: (line, end) }
            } else {
                Seam { from: (from, line), to: (end, line) }
            }
        })
    }

    /// Longest run of open border cells on one grid line: (cells, line, first cell, upright).
    fn longest_on_line(&self, land: &Land, line: i16, upright: bool) -> Option<(i16, i16, i16, bool)> {
        let (mut best, mut run): (Option<(i16, i16, i16, bool)>, i16) = (None, 0);
        for along in 0..=LAND_CELLS {
            let open = along < LAND_CELLS && {
                let at = |across: i16| if upright { cell(across, along) } else { cell(along, across) };
                self.owner(at(line - 1)) != self.owner(at(line)) && is_open(land, line, along, upright)
            };
            run = if open { run + 1 } else { 0 };
            if run > best.map_or(0, |(length, ..)| length) {
                best = Some((run, line, along - run + 1, upright));
            }
        }
        best
    }
}

/// The shard that serves each lane. Changes only by a decree, as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LaneMap([ShardId; LANES]);

impl LaneMap {
    /// All shards have the same number of lanes, or nearly.
    pub fn equal(shards: usize) -> LaneMap {
        LaneMap(std::array::from_fn(|lane| ShardId((lane % shards) as u8)))
    }

    /// The same map but for some lanes, which get other shards.
    pub fn with(&self, moves: &[(u8, ShardId)]) -> LaneMap {
        let mut map = *self;
        moves.iter().for_each(|&(lane, to)| map.0[usize::from(lane)] = to);
        map
    }

    /// The shard that serves a lane, or whose TCP peers stand behind the lanes under that number.
    pub fn owner(&self, lane: u8) -> ShardId {
        self.0.get(usize::from(lane)).copied().unwrap_or_else(|| ShardId(lane - LANES as u8))
    }

    /// The lanes that a shard serves, as bits.
    pub fn of(&self, shard: ShardId) -> u32 {
        self.0.iter().enumerate().filter(|&(_, &owner)| owner == shard).map(|(lane, _)| 1 << lane).sum()
    }
}

/// What stands in place of a lane for the TCP peers of a shard: their sockets belong to its ring, so they never move.
pub fn tcp_lane(shard: ShardId) -> u8 {
    LANES as u8 + shard.0
}

fn cell(x: i16, y: i16) -> CellKey {
    CellKey { space: 0, y, x }
}

/// Whether at least a third of a border cell's length can be crossed 20 m to both sides.
fn is_open(land: &Land, line: i16, along: i16, upright: bool) -> bool {
    let metre = |cell: i16| i32::from(cell) * CELL_M;
    let crossable = (0..CELL_M).step_by(4).filter(|offset| {
        (-20..=20).step_by(4).all(|across| {
            let (a, b) = ((metre(line) + across) * FINE_PER_M, (metre(along) + offset) * FINE_PER_M);
            if upright { !land.is_blocked(a, b) } else { !land.is_blocked(b, a) }
        })
    });
    crossable.count() * 3 >= (CELL_M / 4) as usize
}

/// The cells of the land, row by row.
pub fn cells() -> impl Iterator<Item = CellKey> {
    (0..LAND_CELLS).flat_map(|y| (0..LAND_CELLS).map(move |x| cell(x, y)))
}

/// Place of a cell in [`cells`]; one outside the land has that of the land's nearest cell.
pub fn place(cell: CellKey) -> usize {
    (clamp(cell.y) * SIDE + clamp(cell.x)) as usize
}

fn clamp(coordinate: i16) -> u32 {
    coordinate.clamp(0, LAND_CELLS - 1) as u32
}

/// Place of a cell on the Hilbert curve.
fn hilbert(mut x: u32, mut y: u32) -> u32 {
    let mut place = 0;
    let mut side = SIDE / 2;
    while side > 0 {
        let (right, upper) = (u32::from(x & side != 0), u32::from(y & side != 0));
        place += side * side * ((3 * right) ^ upper);
        if upper == 0 {
            if right == 1 {
                x = (SIDE - 1) - x;
                y = (SIDE - 1) - y;
            }
            std::mem::swap(&mut x, &mut y);
        }
        side /= 2;
    }
    place
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_curve_visits_each_cell_once_and_never_jumps() {
        let mut cells = vec![None; (SIDE * SIDE) as usize];
        for y in 0..SIDE {
            for x in 0..SIDE {
                assert!(cells[hilbert(x, y) as usize].replace((x, y)).is_none());
            }
        }
        for pair in cells.windows(2) {
            let ((ax, ay), (bx, by)) = (pair[0].expect("visited"), pair[1].expect("visited"));
            assert_eq!(ax.abs_diff(bx) + ay.abs_diff(by), 1);
        }
    }

    #[test]
    fn equal_cuts_share_the_cells() {
        for shards in [1, 2, 3, 4, 8, SHARDS_MAX] {
            let cut = CutMap::equal(shards);
            let mut counts = vec![0; shards];
            for y in 0..LAND_CELLS {
                for x in 0..LAND_CELLS {
                    counts[cut.owner(cell(x, y)).index()] += 1;
                }
            }
            let (low, high) = (counts.iter().min().expect("shards"), counts.iter().max().expect("shards"));
            assert!(high - low <= 1, "{counts:?}");
        }
    }

    #[test]
    fn a_cell_that_moves_moves_alone() {
        let (before, there) = (CutMap::equal(3), cell(5, 9));
        let to = ShardId((before.owner(there).0 + 1) % 3);
        let after = before.with(&[(there, to)]);
        assert_eq!(after.owner(there), to);
        assert!(cells().filter(|&other| other != there).all(|other| after.owner(other) == before.owner(other)));
        assert_eq!(after.cells_of(to), before.cells_of(to) + 1);
        assert_eq!(after.with(&[(there, before.owner(there))]), before);
        assert!(cells().enumerate().all(|(at, cell)| place(cell) == at));
        assert_eq!(after.owner(cell(-3, 9)), after.owner(cell(0, 9)), "outside it belongs to the nearest cell");
    }

    #[test]
    fn every_lane_has_one_shard_and_tcp_peers_keep_theirs() {
        for shards in [1, 3, 32] {
            let before = LaneMap::equal(shards);
            let after = before.with(&[(5, ShardId(0)), (31, ShardId(shards as u8 - 1))]);
            assert_eq!((after.owner(5), after.owner(31).index()), (ShardId(0), shards - 1));
            assert_eq!(after.owner(6), before.owner(6));
            let all = (0..shards).map(|shard| after.of(ShardId(shard as u8)));
            assert_eq!(
                all.fold(0, |seen, bits| {
                    assert_eq!(seen & bits, 0);
                    seen | bits
                }),
                u32::MAX
            );
            let tcp = tcp_lane(ShardId(shards as u8 - 1));
            assert_eq!((after.owner(tcp).index(), after.of(after.owner(tcp)) >> 31), (shards - 1, 1));
        }
    }

    #[test]
    fn a_seam_divides_two_owners() {
        let land = Land::new(42);
        assert_eq!(CutMap::equal(1).seam(&land), None);
        for shards in [2, 4, 8] {
            let cut = CutMap::equal(shards);
            let seam = cut.seam(&land).expect("two owners");
            let middle = ((seam.from.0 + seam.to.0) / 2, (seam.from.1 + seam.to.1) / 2);
            let upright = seam.from.0 == seam.to.0;
            let side = |d: i32| {
                let (x, y) = if upright { (middle.0 + d, middle.1) } else { (middle.0, middle.1 + d) };
                cut.owner(CellKey::of_fine(x * 256, y * 256))
            };
            assert_ne!(side(-256), side(256));
        }
    }
}
