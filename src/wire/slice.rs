//! The packed codec of slices: each entity as bits against the slice's keyframe.
//!
//! Promises: `decode_delta` gives back what `encode_delta` was given, and never panics on any bytes. A moving entity
//! costs about 6 bytes, a resting one 2 bits. Fields go through one u64, never bit by bit; the caller's buffers are
//! reused. Never looks at more than one slice. The layout is byte-exact in `schemas/README.md`.

use crate::generated::structs::EntityPlain;
use crate::limits::SLICE_SLOTS_MAX;

/// A slot that holds nobody.
pub const HOLE: EntityPlain = EntityPlain([0; 16]);
/// Bits of x or y by class: differences to the keyframe, and at last the value itself.
const PLANE_BITS: [u32; 4] = [7, 10, 13, 16];
/// Bits of z by class: as the keyframe's, differences, and at last the value itself.
const HEIGHT_BITS: [u32; 4] = [0, 5, 9, 16];
/// Bytes that one slot can take at most: 2 + 18 + 18 + 18 + 12 bits.
const SLOT_BYTES_MAX: usize = 9;

/// Why a delta is dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeltaError {
    /// More slots than a slice has.
    Slots,
    /// The bytes end before the last slot, or go on after it.
    Length,
}

/// Appends the bits of `now` against `keyframe`: slot by slot, at most [`SLICE_SLOTS_MAX`], [`HOLE`] where nobody is.
/// An entity keeps the id and archetype that its slot has in the keyframe.
pub fn encode_delta(now: &[EntityPlain], keyframe: &[EntityPlain], out: &mut Vec<u8>) {
    assert!(now.len() == keyframe.len() && now.len() <= SLICE_SLOTS_MAX, "{} and {}", now.len(), keyframe.len());
    let start = out.len();
    out.resize(start + now.len() * SLOT_BYTES_MAX + 8, 0);
    let mut bits = BitWriter { bytes: &mut out[start..], used: 0, word: 0, filled: 0 };
    for (now, key) in now.iter().zip(keyframe) {
        if now.id() == 0 {
            bits.push(0b0, 1);
        } else if now.0 == key.0 {
            bits.push(0b01, 2);
        } else {
            encode_changed(*now, *key, &mut bits);
        }
    }
    let bytes = bits.finish();
    out.truncate(start + bytes);
}

#[inline]
fn encode_changed(now: EntityPlain, key: EntityPlain, bits: &mut BitWriter<'_>) {
    assert!(now.id() == key.id(), "slot of {:#x} has {:#x} in the keyframe", now.id(), key.id());
    assert!((now.look() ^ key.look()) & 0xf == 0, "{:#x} changed its archetype within an epoch", now.id());
    let (x, x_bits) = classed(now.x(), key.x(), &PLANE_BITS);
    let (y, y_bits) = classed(now.y(), key.y(), &PLANE_BITS);
    let (z, z_bits) = classed(now.z(), key.z(), &HEIGHT_BITS);
    bits.push(0b11 | x << 2 | y << (2 + x_bits), 2 + x_bits + y_bits);
    let tail = u64::from(now.yaw()) | u64::from(now.look() >> 4) << 8;
    bits.push(z | tail << z_bits, z_bits + 12);
}

/// Class and value of one coordinate, and how many bits they take together. Differences are modulo 2^16.
#[inline]
fn classed(now: u16, key: u16, bits: &[u32; 4]) -> (u64, u32) {
    let difference = i32::from(now.wrapping_sub(key) as i16);
    // Has as many bits as the difference in two's complement; none for zero.
    let zigzag = difference << 1 ^ difference >> 31;
    // Without a branch: which class it is cannot be foretold.
    let class: usize = bits[..3].iter().map(|&most| usize::from(zigzag >> most != 0)).sum();
    let value = if class == 3 { u64::from(now) } else { difference as u64 & ((1 << bits[class]) - 1) };
    (class as u64 | value << 2, 2 + bits[class])
}

/// Replaces `out` with the `count` slots that `bits` tell: [`HOLE`] where nobody is, and where somebody is whose slot
/// `keyframe` does not know (it is a hole there, or beyond its end). Returns how many of the latter there were.
pub fn decode_delta(
    bits: &[u8],
    keyframe: &[EntityPlain],
    count: usize,
    out: &mut Vec<EntityPlain>,
) -> Result<usize, DeltaError> {
    out.clear();
    if count > SLICE_SLOTS_MAX {
        return Err(DeltaError::Slots);
    }
    let mut bits = BitReader { bytes: bits, position: 0 };
    let mut unknown = 0;
    for slot in 0..count {
        let key = keyframe.get(slot).copied().unwrap_or(HOLE);
        let head = bits.peek();
        let entity = match head & 0b11 {
            0b01 => {
                bits.position += 2;
                key
            }
            0b11 => {
                bits.position += 2;
                decode_changed(key, &mut bits)
            }
            _ => {
                bits.position += 1;
                out.push(HOLE);
                continue;
            }
        };
        let known = key.id() != 0;
        unknown += usize::from(!known);
        out.push(if known { entity } else { HOLE });
    }
    if bits.position.div_ceil(8) != bits.bytes.len() {
        out.clear();
        return Err(DeltaError::Length);
    }
    Ok(unknown)
}

#[inline]
fn decode_changed(key: EntityPlain, bits: &mut BitReader) -> EntityPlain {
    let mut entity = key;
    let mut word = bits.peek();
    let mut taken = 0;
    let mut coordinate = |key: u16, widths: &[u32; 4]| {
        let class = (word & 3) as usize;
        let (width, value) = (widths[class], word >> 2);
        word >>= 2 + width;
        taken += 2 + width;
        if class == 3 {
            return value as u16;
        }
        // Moves the difference's sign bit to the top and back again; a width of zero gives zero.
        let difference = ((value << 1 << (63 - width)) as i64 >> 1 >> (63 - width)) as u16;
        key.wrapping_add(difference)
    };
    entity.set_x(coordinate(key.x(), &PLANE_BITS));
    entity.set_y(coordinate(key.y(), &PLANE_BITS));
    entity.set_z(coordinate(key.z(), &HEIGHT_BITS));
    bits.position += taken as usize;
    let tail = bits.peek();
    entity.set_yaw(tail as u8);
    entity.set_look(key.look() & 0xf | ((tail >> 8) as u8 & 0xf) << 4);
    bits.position += 12;
    entity
}

struct BitWriter<'a> {
    /// Has eight bytes more than the bits need.
    bytes: &'a mut [u8],
    /// Whole bytes written.
    used: usize,
    /// The bits behind them, fewer than eight.
    word: u64,
    filled: u32,
}

impl BitWriter<'_> {
    /// Appends the low `count` bits, at most 56, of a value that has no higher ones.
    #[inline]
    fn push(&mut self, value: u64, count: u32) {
        let word = self.word | value << (self.filled & 7);
        let filled = self.filled + count;
        // All eight bytes, without asking how many of them are whole.
        self.bytes[self.used..self.used + 8].copy_from_slice(&word.to_le_bytes());
        self.used += filled as usize / 8;
        (self.word, self.filled) = (word >> (filled & 56), filled & 7);
    }

    /// Bytes that the bits take.
    fn finish(self) -> usize {
        self.used + usize::from(self.filled > 0)
    }
}

struct BitReader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl BitReader<'_> {
    /// The next 57 bits at least, the first one lowest; zeros past the end.
    #[inline]
    fn peek(&self) -> u64 {
        let rest = self.bytes.get(self.position / 8..).unwrap_or(&[]);
        let word = match rest.first_chunk() {
            Some(word) => u64::from_le_bytes(*word),
            None => rest.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)),
        };
        word >> (self.position % 8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entity(id: u64, x: u16, y: u16, z: u16, yaw: u8, look: u8) -> EntityPlain {
        EntityPlain::new(id, x, y, z, yaw, look)
    }

    /// The example of `schemas/README.md`.
    #[test]
    fn golden_bytes_of_the_specification() {
        let keyframe =
            [entity(1, 1_000, 2_000, 300, 10, 0x01), entity(2, 5_000, 5_000, 256, 0, 0x02), entity(3, 9, 9, 9, 9, 9)];
        let now = [entity(1, 990, 2_300, 300, 12, 0x31), entity(2, 5_000, 5_000, 256, 0, 0x02), HOLE];
        let mut bits = Vec::new();
        encode_delta(&now, &keyframe, &mut bits);
        let hexadecimal: Vec<_> = bits.iter().map(|byte| format!("{byte:02x}")).collect();
        let hexadecimal = hexadecimal.join(" ");
        assert_eq!(hexadecimal, "63 8f 25 18 26");
        assert!(include_str!("../../schemas/README.md").contains(&hexadecimal), "the specification shows these bytes");
        let mut back = Vec::new();
        assert_eq!(decode_delta(&bits, &keyframe, 3, &mut back), Ok(0));
        assert_eq!(back, now);
    }

    #[test]
    fn unknown_slots_are_passed_over_and_counted() {
        let keyframe: Vec<_> = (1..=4).map(|id| entity(id, 100, 200, 300, 0, 0)).collect();
        let now: Vec<_> = (1..=4).map(|id| entity(id, 90 * id as u16, 200, 300, 7, 0x10)).collect();
        let mut bits = Vec::new();
        encode_delta(&now, &keyframe, &mut bits);
        let mut back = Vec::new();
        assert_eq!(decode_delta(&bits, &[keyframe[0], HOLE, keyframe[2]], 4, &mut back), Ok(2));
        assert_eq!(back, [now[0], HOLE, now[2], HOLE]);
    }

    #[test]
    fn a_length_that_does_not_match_is_an_error() {
        let keyframe = [entity(1, 100, 200, 300, 0, 0); 3];
        let mut bits = Vec::new();
        encode_delta(&[entity(1, 1_000, 0, 9, 0, 0); 3], &keyframe, &mut bits);
        let mut back = Vec::new();
        for cut in 0..bits.len() {
            assert_eq!(decode_delta(&bits[..cut], &keyframe, 3, &mut back), Err(DeltaError::Length), "cut at {cut}");
        }
        bits.push(0);
        assert_eq!(decode_delta(&bits, &keyframe, 3, &mut back), Err(DeltaError::Length));
        assert_eq!(decode_delta(&bits, &keyframe, 65, &mut back), Err(DeltaError::Slots));
        assert!(back.is_empty());
    }

    /// Bits an update of 48 people who walk on uneven ground and turn, over one keyframe epoch.
    fn crowd_bits(metres_per_second: f64) -> f64 {
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f64 / (1u64 << 24) as f64
        };
        let mut people: Vec<(f64, f64, f64)> =
            (0..48).map(|_| (5_000.0 + random() * 9_000.0, 5_000.0 + random() * 9_000.0, random())).collect();
        let show = |people: &[(f64, f64, f64)]| -> Vec<EntityPlain> {
            let z = |x: f64| (2_000.0 + 300.0 * (x / 3_000.0).sin()) as u16;
            let one = |(n, &(x, y, turn)): (usize, &(f64, f64, f64))| {
                entity(n as u64 + 1, x as u16, y as u16, z(x), (turn * 256.0) as u8, 0x11)
            };
            people.iter().enumerate().map(one).collect()
        };
        let keyframe = show(&people);
        let way = metres_per_second * 256.0 / 60.0;
        let (mut bits, mut updates) = (Vec::new(), 0);
        for _ in 0..64 {
            for (x, y, turn) in &mut people {
                *turn = (*turn + (random() - 0.5) / 20.0).rem_euclid(1.0);
                *x += way * (*turn * std::f64::consts::TAU).cos();
                *y += way * (*turn * std::f64::consts::TAU).sin();
            }
            encode_delta(&show(&people), &keyframe, &mut bits);
            updates += people.len();
        }
        bits.len() as f64 * 8.0 / updates as f64
    }

    #[test]
    fn a_moving_entity_costs_about_six_bytes() {
        let (walking, running) = (crowd_bits(3.0), crowd_bits(6.0));
        println!("bits per moving entity: walking at 3 m/s {walking:.1}, running at 6 m/s {running:.1}");
        assert!((30.0..48.0).contains(&walking), "{walking:.1} bits");
        assert!((walking..52.0).contains(&running), "{running:.1} bits");
    }

    fn slots() -> impl Strategy<Value = Vec<(EntityPlain, EntityPlain)>> {
        let near = |max: i32| (-max..=max, -max..=max, -max..=max);
        let step = prop_oneof![near(0), near(16), near(300), near(5_000), near(65_535)];
        let slot = (any::<(u16, u16, u16, u8, u8)>(), step, any::<(u8, u8)>(), 0u8..4);
        let slot = slot.prop_map(|((x, y, z, yaw, look), (dx, dy, dz), (yaw_now, state), kind)| {
            let key = entity(1 + u64::from(x) * 7, x, y, z, yaw, look);
            let moved = |v: u16, by: i32| v.wrapping_add(by as u16);
            let look_now = look & 0xf | state << 4;
            let now = entity(key.id(), moved(x, dx), moved(y, dy), moved(z, dz), yaw_now, look_now);
            match kind {
                0 => (HOLE, key),
                1 => (key, key),
                _ => (now, key),
            }
        });
        proptest::collection::vec(slot, 0..=SLICE_SLOTS_MAX)
    }

    proptest! {
        #[test]
        fn what_was_encoded_comes_back(slots in slots()) {
            let (now, keyframe): (Vec<_>, Vec<_>) = slots.into_iter().unzip();
            let (mut bits, mut back) = (Vec::new(), Vec::new());
            encode_delta(&now, &keyframe, &mut bits);
            prop_assert!(bits.len() <= now.len() * SLOT_BYTES_MAX);
            prop_assert_eq!(decode_delta(&bits, &keyframe, now.len(), &mut back), Ok(0));
            prop_assert_eq!(back, now);
        }

        #[test]
        fn any_bits_decode_without_panic(
            bits in proptest::collection::vec(any::<u8>(), 0..80),
            slots in slots(),
            count in 0usize..80,
        ) {
            let keyframe: Vec<_> = slots.into_iter().map(|slot| slot.1).collect();
            let mut back = Vec::new();
            let result = decode_delta(&bits, &keyframe, count, &mut back);
            prop_assert_eq!(back.len(), if result.is_ok() { count } else { 0 });
        }
    }
}
