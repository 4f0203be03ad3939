//! Lengths and speeds that both ends of the wire count with.
//!
//! Promises: integers alone, so that both ends come to the same.

use crate::limits::{CREDIT_TICKS_MAX, TICK_HZ};

/// Metres along the side of a cell.
pub const CELL_M: i32 = 64;
/// Wire grid steps in a metre.
pub const GRID_PER_M: i32 = 256;
/// Steps of an entity's own position in a metre.
pub const FINE_PER_M: i32 = 65_536;
/// Fine steps in one wire grid step, as a shift.
pub const FINE_SHIFT: u32 = 8;
/// Wire grid steps along the side of a cell.
pub const CELL_GRID: i32 = CELL_M * GRID_PER_M;
/// Cells along the side of a plot, as a power of two.
pub const PLOT_SHIFT: u32 = 1;
/// Wire grid steps along the side of a plot: what slices are cut from.
pub const PLOT_GRID: i32 = CELL_GRID << PLOT_SHIFT;

/// Walking speed in metres a second.
pub const WALK_M_PER_S: i32 = 2;
/// Running speed in metres a second.
pub const RUN_M_PER_S: i32 = 5;
/// Fastest horizontal movement of any body, in fine steps a tick.
pub const SPEED_MAX: i32 = RUN_M_PER_S * FINE_PER_M / TICK_HZ as i32;
/// Farthest that a body comes in so many ticks, wire grid steps: what it saved in time credit runs at once.
pub fn farthest(ticks: u32) -> i64 {
    (i64::from(ticks) + i64::from(CREDIT_TICKS_MAX)) * i64::from(SPEED_MAX) / i64::from(1 << FINE_SHIFT) + 1
}
