//! Sine, cosine and direction in integers, the same on every machine.
//!
//! Promises: no floating point. Angles are u16, 1/65,536 turn, counter-clockwise from +x. Computed by CORDIC (Volder
//! 1959) at compile time into a table of 4,096 directions.

/// One in the fixed-point format of [`cos_sin`].
pub const ONE: i32 = 1 << 15;

/// atan(2^-i) in units of 2^-32 turn.
const ARC: [i64; 16] = [
    0x2000_0000,
    0x12e4_051e,
    0x09fb_385b,
    0x0511_11d4,
    0x028b_0d43,
    0x0145_d7e1,
    0x00a2_f61e,
    0x0051_7c55,
    0x0028_be53,
    0x0014_5f2f,
    0x000a_2f98,
    0x0005_17cc,
    0x0002_8be6,
    0x0001_45f3,
    0x0000_a2fa,
    0x0000_517d,
];

/// Product of cos(atan(2^-i)), times 2^30: what the rotations stretch a vector by, inverted.
const GAIN: i64 = 652_032_874;

const DIRECTIONS: usize = 4_096;
static TABLE: [(i32, i32); DIRECTIONS] = table();

const fn table() -> [(i32, i32); DIRECTIONS] {
    let mut out = [(0, 0); DIRECTIONS];
    let quarter = DIRECTIONS / 4;
    let mut index = 0;
    while index < quarter {
        // The middle of the table's step: opposite directions are exact mirror images of each other.
        let (cos, sin) = rotate(((index as i64) << 20) + (1 << 19));
        out[index] = (cos, sin);
        out[index + quarter] = (-sin, cos);
        out[index + 2 * quarter] = (-cos, -sin);
        out[index + 3 * quarter] = (sin, -cos);
        index += 1;
    }
    out
}

/// Cosine and sine of an angle in the first quarter, in 2^-32 turn.
const fn rotate(angle: i64) -> (i32, i32) {
    let (mut x, mut y, mut left) = (GAIN, 0i64, angle);
    let mut i = 0;
    while i < ARC.len() {
        let (dx, dy) = (x >> i, y >> i);
        if left >= 0 {
            x -= dy;
            y += dx;
            left -= ARC[i];
        } else {
            x += dy;
            y -= dx;
            left += ARC[i];
        }
        i += 1;
    }
    (((x + (1 << 14)) >> 15) as i32, ((y + (1 << 14)) >> 15) as i32)
}

/// Cosine and sine of a direction, [`ONE`] being 1; exact to 1/1,000.
pub fn cos_sin(yaw: u16) -> (i32, i32) {
    TABLE[usize::from(yaw >> 4)]
}

/// The direction from the origin to a point; 0 for the origin itself. Exact to 1/1,000 of a turn.
pub fn direction(x: i32, y: i32) -> u16 {
    let (mut x, mut y) = (i64::from(x) << 16, i64::from(y) << 16);
    let mut angle = 0i64;
    if x < 0 {
        (x, y) = (-x, -y);
        angle = 1 << 31;
    }
    for (i, &arc) in ARC.iter().enumerate() {
        let (dx, dy) = (x >> i, y >> i);
        if y > 0 {
            x += dy;
            y -= dx;
            angle += arc;
        } else if y < 0 {
            x -= dy;
            y += dx;
            angle -= arc;
        }
    }
    ((angle + (1 << 15)) >> 16) as u16
}

/// The largest integer whose square is at most `value`.
pub fn square_root(value: u64) -> u32 {
    value.isqrt() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_floating_point() {
        for yaw in (0..=u16::MAX).step_by(7) {
            let angle = (f64::from(yaw >> 4) + 0.5) / 4_096.0 * std::f64::consts::TAU;
            let (cos, sin) = cos_sin(yaw);
            assert!((f64::from(cos) / f64::from(ONE) - angle.cos()).abs() < 1e-3, "cos of {yaw}");
            assert!((f64::from(sin) / f64::from(ONE) - angle.sin()).abs() < 1e-3, "sin of {yaw}");
        }
    }

    #[test]
    fn direction_is_the_inverse() {
        for yaw in (0..=u16::MAX).step_by(11) {
            let (cos, sin) = cos_sin(yaw);
            let back = direction(cos, sin).wrapping_sub(yaw) as i16;
            assert!(back.abs() < 40, "{yaw} came back {back} off");
        }
    }
}
