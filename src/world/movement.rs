//! How a body moves: walking, running, jumping, turning, falling.
//!
//! Owns no state. Promises: server and clients run this same code over the same commands and come to the same position,
//! to the last bit; speed, slope and blocked ground are rules here, not checks elsewhere.

use serde::{Deserialize, Serialize};

use crate::land::{Land, Tile};
use crate::limits::TICK_HZ;
use crate::trig::{ONE, cos_sin, square_root};
use crate::wire::units::{FINE_PER_M, SPEED_MAX, WALK_M_PER_S};

/// Button bit: run.
pub const BUTTON_RUN: u8 = 1;
/// Button bit: jump.
pub const BUTTON_JUMP: u8 = 2;

const WALK: i32 = WALK_M_PER_S * FINE_PER_M / TICK_HZ as i32;
/// 9.81 m/s² in fine steps a tick and tick.
const GRAVITY: i32 = 179;
/// 4.5 m/s in fine steps a tick.
const JUMP: i32 = 4_915;
/// Falling ends to grow at 50 m/s.
const FALL_MAX: i32 = 50 * FINE_PER_M / TICK_HZ as i32;
/// A body in the air may slip over an edge this much higher, in fine steps.
const EDGE: i32 = FINE_PER_M / 2;

/// What a client wants during one client tick.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Command {
    /// Direction faced, 1/65,536 turn.
    pub yaw: u16,
    /// Share of the speed forwards, -127..=127 (-128 counts as -127).
    pub forward: i8,
    /// Share of the speed to the right, likewise.
    pub right: i8,
    /// [`BUTTON_RUN`], [`BUTTON_JUMP`].
    pub buttons: u8,
}

/// Where a body is and how it moves, in fine steps (1/65,536 m) and ticks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Motion {
    /// Eastwards.
    pub x: i32,
    /// Northwards.
    pub y: i32,
    /// Upwards.
    pub z: i32,
    /// Upward speed, fine steps a tick.
    pub velocity_z: i32,
    /// Direction faced, 1/65,536 turn.
    pub yaw: u16,
    /// Whether it stands on the ground.
    pub grounded: bool,
}

impl Motion {
    /// Standing on the ground at a position in fine steps.
    pub fn standing(land: &Land, x: i32, y: i32, yaw: u16) -> Motion {
        Motion { x, y, z: land.height(x, y), velocity_z: 0, yaw, grounded: true }
    }

    /// Runs one command: 1/60 s of movement. `tile` is this body's, see [`Land::ground`].
    pub fn advance(&mut self, land: &Land, command: Command, tile: &mut Tile) {
        self.yaw = command.yaw;
        if self.grounded && command.buttons & BUTTON_JUMP != 0 {
            self.velocity_z = JUMP;
            self.grounded = false;
        }
        let (dx, dy) = wanted(command);
        let mut ground = None;
        if dx != 0 || dy != 0 {
            // Along the ground, or else along one axis: bodies slide along what blocks them.
            for (dx, dy) in [(dx, dy), (dx, 0), (0, dy)] {
                ground = self.try_move(land, dx, dy, tile);
                if ground.is_some() {
                    break;
                }
            }
        }
        match (self.grounded, ground) {
            // It stands where it stood.
            (true, None) => (),
            (true, Some(ground)) => self.z = ground,
            (false, ground) => self.fall(ground.unwrap_or_else(|| land.height(self.x, self.y))),
        }
    }

    /// Moves, if that is allowed; gives the height of the ground there.
    fn try_move(&mut self, land: &Land, dx: i32, dy: i32, tile: &mut Tile) -> Option<i32> {
        if dx == 0 && dy == 0 {
            return None;
        }
        let (x, y) = (self.x + dx, self.y + dy);
        let ground = land.ground(x, y, tile)?;
        let rise = ground - self.z;
        // On foot nothing steeper than 45 degrees; in the air only a low edge.
        let allowed = if self.grounded { dx.abs().max(dy.abs()) } else { EDGE };
        if rise > allowed {
            return None;
        }
        (self.x, self.y) = (x, y);
        Some(ground)
    }

    fn fall(&mut self, ground: i32) {
        self.velocity_z = (self.velocity_z - GRAVITY).max(-FALL_MAX);
        self.z += self.velocity_z;
        if self.z <= ground {
            self.z = ground;
            self.velocity_z = 0;
            self.grounded = true;
        }
    }
}

/// Horizontal movement that a command asks for, in fine steps, never faster than its gait.
fn wanted(command: Command) -> (i32, i32) {
    let (mut forward, mut right) = (i32::from(command.forward.max(-127)), i32::from(command.right.max(-127)));
    let squared = forward * forward + right * right;
    if squared >= 128 * 128 {
        let length = square_root(squared as u64) as i32;
        forward = forward * 127 / length;
        right = right * 127 / length;
    }
    let speed = if command.buttons & BUTTON_RUN != 0 { SPEED_MAX } else { WALK };
    let (cos, sin) = cos_sin(command.yaw);
    let scale = |v: i64| (v * i64::from(speed) / (127 * i64::from(ONE))) as i32;
    let (f, r, c, s) = (i64::from(forward), i64::from(right), i64::from(cos), i64::from(sin));
    (scale(f * c + r * s), scale(f * s - r * c))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::random;
    use crate::wire::ids::EntityId;

    fn length(dx: i32, dy: i32) -> f64 {
        f64::from(dx).hypot(f64::from(dy))
    }

    #[test]
    fn no_command_is_faster_than_its_gait() {
        for n in 0..20_000u64 {
            let bits = random(5, EntityId(1), 0, n);
            let command = Command {
                yaw: bits as u16,
                forward: (bits >> 16) as i8,
                right: (bits >> 24) as i8,
                buttons: (bits >> 32) as u8 & 3,
            };
            let (dx, dy) = wanted(command);
            let speed = if command.buttons & BUTTON_RUN != 0 { SPEED_MAX } else { WALK };
            assert!(length(dx, dy) <= f64::from(speed) * 1.01, "{command:?} moves {dx} {dy}");
        }
    }

    #[test]
    fn walking_covers_two_metres_a_second() {
        let land = Land::new(1);
        let (x, y) = land.nearest_walkable(2_000 * FINE_PER_M, 2_000 * FINE_PER_M);
        let mut motion = Motion::standing(&land, x, y, 0);
        let mut walked = 0.0;
        for tick in 0..600u32 {
            let before = motion;
            motion.advance(
                &land,
                Command { yaw: (tick / 60 * 8_192) as u16, forward: 127, ..Command::default() },
                &mut Tile::default(),
            );
            walked += length(motion.x - before.x, motion.y - before.y) / f64::from(FINE_PER_M);
        }
        assert!((15.0..20.2).contains(&walked), "walked {walked} m in 10 s");
    }

    #[test]
    fn nobody_enters_blocked_ground_or_leaves_the_land() {
        let land = Land::new(8);
        for body in 0..200u64 {
            let (x, y) = land.random_walkable(3, EntityId(body), 0);
            let mut motion = Motion::standing(&land, x, y, 0);
            for tick in 0..600u64 {
                let yaw = random(4, EntityId(body), tick / 200, 0) as u16;
                let buttons = BUTTON_RUN | (random(4, EntityId(body), tick / 30, 1) as u8 & BUTTON_JUMP);
                motion.advance(&land, Command { yaw, forward: 127, right: 0, buttons }, &mut Tile::default());
                assert!(!land.is_blocked(motion.x, motion.y));
                assert!(motion.z >= land.height(motion.x, motion.y));
            }
        }
    }

    #[test]
    fn a_jump_rises_a_metre_and_lands() {
        let land = Land::new(1);
        let (x, y) = land.nearest_walkable(1_000 * FINE_PER_M, 1_000 * FINE_PER_M);
        let mut motion = Motion::standing(&land, x, y, 0);
        let ground = motion.z;
        let mut top = 0;
        motion.advance(&land, Command { buttons: BUTTON_JUMP, ..Command::default() }, &mut Tile::default());
        while !motion.grounded {
            top = top.max(motion.z - ground);
            motion.advance(&land, Command::default(), &mut Tile::default());
        }
        assert!((FINE_PER_M * 9 / 10..FINE_PER_M * 6 / 5).contains(&top), "rose {top}");
        assert_eq!(motion.z, ground);
    }
}
