//! The only reader of OS time.
//!
//! Owns the origin that a node's ticks count from. Promises: a tick's edge is computed from its number, so nothing
//! drifts and nothing is chased: after a late edge the present tick is the next one.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::limits::TICK_HZ;

/// Maps ticks to the monotonic clock; the same copy for all shards of a node.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
    start_tick: u64,
}

impl Clock {
    /// A clock whose tick `start_tick` is now.
    pub fn starting(start_tick: u64) -> Clock {
        Clock { origin: Instant::now(), start_tick }
    }

    /// Nanoseconds since the origin.
    pub fn now_ns(&self) -> u64 {
        self.origin.elapsed().as_nanos() as u64
    }

    /// When a tick begins, nanoseconds since the origin.
    pub fn edge_ns(&self, tick: u64) -> u64 {
        let ticks = tick.saturating_sub(self.start_tick);
        (u128::from(ticks) * 1_000_000_000 / u128::from(TICK_HZ)) as u64
    }

    /// The newest tick whose edge is not after `now_ns`.
    pub fn tick_at(&self, now_ns: u64) -> u64 {
        let tick = self.start_tick + (u128::from(now_ns) * u128::from(TICK_HZ) / 1_000_000_000) as u64;
        if self.edge_ns(tick + 1) <= now_ns { tick + 1 } else { tick }
    }

    /// How long until a tick's edge; nothing when it is past.
    pub fn until_edge(&self, tick: u64) -> Option<Duration> {
        let left = self.edge_ns(tick).checked_sub(self.now_ns())?;
        (left > 0).then(|| Duration::from_nanos(left))
    }
}

/// CPU time that the calling thread has used so far, nanoseconds: time in which others ran on its core is not in it. A
/// system call, so not for every packet.
pub fn thread_cpu_ns() -> u64 {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    used.tv_sec as u64 * 1_000_000_000 + used.tv_nsec as u64
}

/// Seconds since 1970 by the machine's clock.
pub fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_sleeps_uses_no_cpu_time() {
        let (clock, before_ns) = (Clock::starting(0), thread_cpu_ns());
        std::thread::sleep(Duration::from_millis(50));
        assert!(clock.now_ns() >= 50_000_000 && thread_cpu_ns() - before_ns < 25_000_000);
        while thread_cpu_ns() < before_ns + 25_000_000 {
            std::hint::spin_loop();
        }
    }

    #[test]
    fn edges_do_not_drift() {
        let clock = Clock::starting(1_000);
        assert_eq!(clock.edge_ns(1_000), 0);
        assert_eq!(clock.edge_ns(1_060), 1_000_000_000);
        assert_eq!(clock.edge_ns(1_000 + 60 * 86_400), 86_400_000_000_000);
        for tick in 1_000..2_000 {
            assert_eq!(clock.tick_at(clock.edge_ns(tick)), tick);
            assert_eq!(clock.tick_at(clock.edge_ns(tick + 1) - 1), tick);
        }
    }
}
