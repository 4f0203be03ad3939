//! Boxes: how far a position is from many slices at once.
//!
//! Owns the smallest boxes around the slices of a frame, in columns. Promises: the same squares with wide instructions and
//! without; a distance never overflows. The one loop is compiled twice, and which one runs is asked of the CPU. Never says
//! which slice a box belongs to.

#![expect(unsafe_code, reason = "calls the loop that was compiled for wide instructions")]

use std::ops::Range;

/// Grid steps of a distance here: 1/64 m, so that squares fit 32 bits.
const STEP_SHIFT: u32 = 2;
/// Longest distance along one axis, in steps: 724 m, beyond all radii. What is farther counts as this far.
const AXIS_MAX: i32 = 46_340;

/// Boxes from which on wide instructions pay.
#[cfg(target_arch = "x86_64")]
const WIDE_MIN: usize = 8;

/// A position or corner on the wire grid, east and north, within 2^28 steps of the origin.
type Grid = (i32, i32);

/// Boxes in columns, by their places.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Boxes {
    low_x: Vec<i32>,
    low_y: Vec<i32>,
    high_x: Vec<i32>,
    high_y: Vec<i32>,
}

impl Boxes {
    /// No boxes.
    pub fn clear(&mut self) {
        [&mut self.low_x, &mut self.low_y, &mut self.high_x, &mut self.high_y].into_iter().for_each(Vec::clear);
    }

    /// One more box, given by its corners.
    pub fn push(&mut self, low: Grid, high: Grid) {
        self.low_x.push(low.0);
        self.low_y.push(low.1);
        self.high_x.push(high.0);
        self.high_y.push(high.1);
    }

    /// Low and high corner of a box.
    pub fn at(&self, place: usize) -> (Grid, Grid) {
        ((self.low_x[place], self.low_y[place]), (self.high_x[place], self.high_y[place]))
    }

    /// The squared distance of a position to each box of some places, in the units of [`square`]; 0 inside. `scratch` has
    /// room for them.
    pub fn squares<'a>(&self, places: Range<usize>, from: Grid, scratch: &'a mut Vec<u32>) -> &'a [u32] {
        let count = places.len();
        if scratch.len() < count {
            scratch.resize(count, 0);
        }
        let out = &mut scratch[..count];
        let columns = [
            &self.low_x[places.clone()],
            &self.low_y[places.clone()],
            &self.high_x[places.clone()],
            &self.high_y[places],
        ];
        #[cfg(target_arch = "x86_64")]
        if count >= WIDE_MIN && std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: this CPU has AVX2.
            unsafe { squares_avx2(columns, from, out) };
            return out;
        }
        squares_of(columns, from, out);
        out
    }
}

/// A distance of so many wire grid steps, squared as [`Boxes::squares`] does.
pub const fn square(grid: i32) -> u32 {
    (grid as u32 >> STEP_SHIFT).pow(2)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn squares_avx2(columns: [&[i32]; 4], from: Grid, out: &mut [u32]) {
    squares_of(columns, from, out);
}

#[inline(always)]
fn squares_of([low_x, low_y, high_x, high_y]: [&[i32]; 4], (x, y): Grid, out: &mut [u32]) {
    let along = |low: i32, at: i32, high: i32| {
        let steps = low.wrapping_sub(at).max(at.wrapping_sub(high)).max(0) >> STEP_SHIFT;
        steps.min(AXIS_MAX) as u32
    };
    let corners = low_x.iter().zip(low_y).zip(high_x.iter().zip(high_y));
    for (square, ((low_x, low_y), (high_x, high_y))) in out.iter_mut().zip(corners) {
        let (dx, dy) = (along(*low_x, x, *high_x), along(*low_y, y, *high_y));
        *square = dx * dx + dy * dy;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::distance_to_box;
    use crate::wire::units::GRID_PER_M;
    use proptest::prelude::*;

    fn corner() -> impl Strategy<Value = i32> {
        prop_oneof![-40_000..40_000i32, -1_100_000..1_100_000i32, -(1 << 28)..1 << 28]
    }

    proptest! {
        #[test]
        fn wide_and_narrow_agree_with_the_distance(
            from in (-1_100_000..1_100_000i32, -1_100_000..1_100_000i32),
            corners in proptest::collection::vec((corner(), corner(), corner(), corner()), 0..40),
        ) {
            let mut boxes = Boxes::default();
            for &(x1, y1, x2, y2) in &corners {
                boxes.push((x1.min(x2), y1.min(y2)), (x1.max(x2), y1.max(y2)));
            }
            let (mut scratch, mut narrow) = (Vec::new(), vec![0; corners.len()]);
            let wide = boxes.squares(0..corners.len(), from, &mut scratch);
            squares_of([&boxes.low_x, &boxes.low_y, &boxes.high_x, &boxes.high_y], from, &mut narrow);
            prop_assert_eq!(wide, &narrow);
            for (place, &squared) in wide.iter().enumerate() {
                let (low, high) = boxes.at(place);
                let exact = (distance_to_box(from, low, high) as f64).sqrt() / f64::from(GRID_PER_M);
                let metres = f64::from(squared).sqrt() / f64::from(GRID_PER_M >> STEP_SHIFT);
                let is_close = (metres - exact).abs() < 0.03;
                prop_assert!(is_close || (metres >= 724.0 && exact >= 724.0), "{metres} of {exact}");
            }
        }
    }

    #[test]
    fn what_is_far_is_farther_than_any_radius() {
        let mut boxes = Boxes::default();
        boxes.push((1 << 28, -1 << 28), (1 << 28, -1 << 28));
        let mut scratch = Vec::new();
        assert!(boxes.squares(0..1, (-1 << 28, 1 << 28), &mut scratch)[0] > square(640 * GRID_PER_M));
    }
}
