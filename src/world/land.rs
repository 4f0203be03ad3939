//! The land: heights and blocked ground, made from the seed.
//!
//! Owns the height grid (a point each 4 m) and one blocked bit per 4 m tile. Promises: the same seed gives the same
//! land everywhere, in integers; all open ground hangs together; it never changes once made, so all shards and bots read
//! one copy.

use crate::random::{below, mix, random};
use crate::wire::ids::EntityId;
use crate::wire::units::{CELL_M, FINE_PER_M};

/// Metres along the side of the land.
pub const LAND_M: i32 = 4_096;
/// Cells along the side of the land.
pub const LAND_CELLS: i16 = (LAND_M / CELL_M) as i16;
/// Metres along the side of a tile.
const TILE_M: i32 = 4;
const TILES: usize = (LAND_M / TILE_M) as usize;
/// Fine steps along a tile, as a shift.
const TILE_SHIFT: u32 = 18;
/// Tiles from the edge that are always blocked.
const RIM_TILES: usize = 2;

const _: () = assert!(1 << TILE_SHIFT == TILE_M * FINE_PER_M);

/// The tile of a position on the land.
fn tile_of(x: i32, y: i32) -> usize {
    (y >> TILE_SHIFT) as usize * TILES + (x >> TILE_SHIFT) as usize
}

/// Height of a position on a tile with these corners.
fn height_in(corners: &[i32; 4], x: i32, y: i32) -> i32 {
    let mask = (1 << TILE_SHIFT) - 1;
    let (fx, fy) = (i64::from(x & mask), i64::from(y & mask));
    let [south_west, south_east, north_west, north_east] = corners.map(i64::from);
    let south = (south_west << TILE_SHIFT) + (south_east - south_west) * fx;
    let north = (north_west << TILE_SHIFT) + (north_east - north_west) * fx;
    (((south << TILE_SHIFT) + (north - south) * fy) >> (2 * TILE_SHIFT)) as i32
}

/// The open tile that somebody stood on last, remembered because most steps stay on it. It holds no state: forgetting it
/// changes nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tile {
    number: u32,
    corners: [i32; 4],
}

impl Default for Tile {
    fn default() -> Tile {
        Tile { number: u32::MAX, corners: [0; 4] }
    }
}

/// Heights and blocked ground of space 0.
pub struct Land {
    /// What it was made from.
    pub seed: u64,
    /// Heights of each tile's corners: south-west, south-east, north-west, north-east. Beside each other, because a step
    /// is mostly waiting for memory.
    corners: Vec<[i32; 4]>,
    blocked: Vec<u64>,
}

impl Land {
    /// Makes the land of a seed; takes some tens of milliseconds.
    pub fn new(seed: u64) -> Land {
        let points = TILES + 1;
        let mut heights = Vec::with_capacity(points * points);
        for y in 0..points as i32 {
            for x in 0..points as i32 {
                let (mx, my) = (x * TILE_M, y * TILE_M);
                let height = noise(seed, 1, 512, 48, mx, my) + noise(seed, 2, 128, 12, mx, my);
                heights.push(height + noise(seed, 3, 32, 2, mx, my));
            }
        }
        let corners = (0..TILES * TILES).map(|tile| {
            let point = tile / TILES * points + tile % TILES;
            [point, point + 1, point + points, point + points + 1].map(|point| heights[point])
        });
        let mut land = Land { seed, corners: corners.collect(), blocked: vec![0; TILES * TILES / 64] };
        for y in 0..TILES {
            for x in 0..TILES {
                let rim = x.min(y).min(TILES - 1 - x).min(TILES - 1 - y) < RIM_TILES;
                if rim || land.is_rock(seed, x, y) || land.is_cliff(x, y) {
                    let tile = y * TILES + x;
                    land.blocked[tile / 64] |= 1 << (tile % 64);
                }
            }
        }
        land.block_pockets();
        land
    }

    /// Blocks all open ground but the largest piece that hangs together: nobody is ever locked in.
    fn block_pockets(&mut self) {
        let mut piece = vec![0u32; TILES * TILES];
        let (mut largest, mut count, mut open) = ((0, 0), 0, Vec::new());
        for start in 0..TILES * TILES {
            if self.is_tile_blocked(start) || piece[start] != 0 {
                continue;
            }
            count += 1;
            let mut tiles = 0;
            piece[start] = count;
            open.push(start);
            while let Some(tile) = open.pop() {
                tiles += 1;
                // The rim is blocked, so every open tile has four neighbours.
                for next in [tile - 1, tile + 1, tile - TILES, tile + TILES] {
                    if !self.is_tile_blocked(next) && piece[next] == 0 {
                        piece[next] = count;
                        open.push(next);
                    }
                }
            }
            largest = largest.max((tiles, count));
        }
        for (tile, &piece) in piece.iter().enumerate() {
            if piece != largest.1 {
                self.blocked[tile / 64] |= 1 << (tile % 64);
            }
        }
    }

    fn is_tile_blocked(&self, tile: usize) -> bool {
        self.blocked[tile / 64] >> (tile % 64) & 1 == 1
    }

    fn is_rock(&self, seed: u64, x: usize, y: usize) -> bool {
        let (mx, my) = (x as i32 * TILE_M, y as i32 * TILE_M);
        noise(seed, 4, 24, 1_000, mx, my) > 830 * FINE_PER_M
    }

    fn is_cliff(&self, x: usize, y: usize) -> bool {
        let corners = self.corners[y * TILES + x];
        let span = corners.iter().max().expect("four corners") - corners.iter().min().expect("four corners");
        span > TILE_M * FINE_PER_M
    }

    /// Height of the ground in fine steps, bilinear between the grid's points; positions outside are clamped.
    pub fn height(&self, x: i32, y: i32) -> i32 {
        let limit = (LAND_M * FINE_PER_M) - 1;
        let (x, y) = (x.clamp(0, limit), y.clamp(0, limit));
        height_in(&self.corners[tile_of(x, y)], x, y)
    }

    /// Height of the ground where somebody may stand; none where nobody may. `tile` is what the last call for the same
    /// body left, or the default.
    pub fn ground(&self, x: i32, y: i32, tile: &mut Tile) -> Option<i32> {
        let limit = LAND_M * FINE_PER_M;
        if x < 0 || y < 0 || x >= limit || y >= limit {
            return None;
        }
        let number = tile_of(x, y);
        if tile.number != number as u32 {
            if self.is_tile_blocked(number) {
                return None;
            }
            *tile = Tile { number: number as u32, corners: self.corners[number] };
        }
        Some(height_in(&tile.corners, x, y))
    }

    /// Whether nobody may stand at a position in fine steps: rock, cliff, the rim, or outside.
    pub fn is_blocked(&self, x: i32, y: i32) -> bool {
        let limit = LAND_M * FINE_PER_M;
        if x < 0 || y < 0 || x >= limit || y >= limit {
            return true;
        }
        self.is_tile_blocked(tile_of(x, y))
    }

    /// The walkable position nearest to one in fine steps, found tile by tile in growing squares.
    pub fn nearest_walkable(&self, x: i32, y: i32) -> (i32, i32) {
        let limit = (LAND_M * FINE_PER_M) - 1;
        let (x, y) = (x.clamp(0, limit), y.clamp(0, limit));
        if !self.is_blocked(x, y) {
            return (x, y);
        }
        let step = 1 << TILE_SHIFT;
        let centre = |v: i32| (v >> TILE_SHIFT << TILE_SHIFT) + step / 2;
        for ring in 1..TILES as i32 {
            for along in -ring..=ring {
                let ends = [(along, -ring), (along, ring), (-ring, along), (ring, along)];
                for (dx, dy) in ends {
                    let (px, py) = (centre(x).saturating_add(dx * step), centre(y).saturating_add(dy * step));
                    if !self.is_blocked(px, py) {
                        return (px, py);
                    }
                }
            }
        }
        unreachable!("the land has walkable ground")
    }

    /// A walkable position, uniform over the land, in fine steps, for the `n`-th draw of an entity.
    pub fn random_walkable(&self, seed: u64, entity: EntityId, n: u64) -> (i32, i32) {
        let coordinate = |k: u64| below(random(seed, entity, n, k), (LAND_M * FINE_PER_M) as u32) as i32;
        (0..64)
            .map(|draw| (coordinate(2 * draw), coordinate(2 * draw + 1)))
            .find(|&(x, y)| !self.is_blocked(x, y))
            .unwrap_or_else(|| self.nearest_walkable(coordinate(0), coordinate(1)))
    }
}

/// Value noise in `0..amplitude_m`, in fine steps: random heights at the corners of a lattice, smoothly between.
fn noise(seed: u64, layer: u64, period_m: i32, amplitude_m: i32, x_m: i32, y_m: i32) -> i32 {
    let (column, row) = (x_m / period_m, y_m / period_m);
    let corner = |dx: i32, dy: i32| {
        let key = (layer << 56) ^ ((column + dx) as u64) << 24 ^ (row + dy) as u64;
        (mix(seed ^ mix(key)) >> 48) as i64
    };
    let smooth = |v: i32| {
        let t = i64::from(v % period_m) * 65_536 / i64::from(period_m);
        (t * t / 65_536) * (3 * 65_536 - 2 * t) / 65_536
    };
    let (sx, sy) = (smooth(x_m), smooth(y_m));
    let blend = |a: i64, b: i64, t: i64| a + (b - a) * t / 65_536;
    let value = blend(blend(corner(0, 0), corner(1, 0), sx), blend(corner(0, 1), corner(1, 1), sx), sy);
    (value * i64::from(amplitude_m) * i64::from(FINE_PER_M) / 65_536) as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_mostly_walkable_and_fits_the_wire() {
        let land = Land::new(42);
        let blocked: u32 = land.blocked.iter().map(|word| word.count_ones()).sum();
        let share = f64::from(blocked) / (TILES * TILES) as f64;
        assert!((0.01..0.15).contains(&share), "{share} of the land is blocked");
        let top = land.corners.as_flattened().iter().max().expect("heights");
        assert!(*top < 200 * FINE_PER_M && land.corners.as_flattened().iter().all(|&height| height >= 0));
    }

    #[test]
    fn heights_are_continuous() {
        let land = Land::new(42);
        let mut last = land.height(0, 1_000 * FINE_PER_M);
        for x in (0..LAND_M * FINE_PER_M).step_by(4_096) {
            let height = land.height(x, 1_000 * FINE_PER_M);
            assert!((height - last).abs() < 4 * 4_096, "a step at {x}");
            last = height;
        }
    }

    #[test]
    fn seeds_differ_and_repeat() {
        let (a, b, c) = (Land::new(1), Land::new(1), Land::new(2));
        assert_eq!(a.corners, b.corners);
        assert_eq!(a.blocked, b.blocked);
        assert_ne!(a.corners, c.corners);
    }

    #[test]
    fn nearest_walkable_is_walkable() {
        let land = Land::new(3);
        for n in 0..1_000 {
            let (x, y) = land.random_walkable(9, EntityId(n), 0);
            assert!(!land.is_blocked(x, y));
        }
        let (x, y) = land.nearest_walkable(-5, i32::MAX);
        assert!(!land.is_blocked(x, y));
    }

    #[test]
    fn a_remembered_tile_changes_nothing() {
        let land = Land::new(5);
        let mut tile = Tile::default();
        for n in 0..40_000u64 {
            // Some steps stay on the tile, some leave it, some leave the land.
            let bits = random(6, EntityId(1), n / 16, 0);
            let (x, y) = (bits as i32 >> 3, (bits >> 32) as i32 >> 3);
            let (x, y) = (x.wrapping_add(n as i32 % 16 * 40_000), y);
            let should = (!land.is_blocked(x, y)).then(|| land.height(x, y));
            assert_eq!(land.ground(x, y, &mut tile), should, "at {x} {y}");
        }
    }
}
