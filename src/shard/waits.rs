//! What a shard's thread works, and what it only waits.
//!
//! Owns the thread's CPU clock as it was at the last tick's end. Promises: what was spun away is no work, and what was
//! worked between two looks of a wait is.

use std::cell::Cell;

use crate::clock::thread_cpu_ns;
use crate::realm::ladder::Spent;

/// Longest time between two looks of a wait that was spun away, nanoseconds. In a longer one the thread worked, or another
/// one had the core.
const SPIN_NS_MAX: u64 = 20_000;

/// What a tick waited, and what it worked: the thread's CPU clock is read once a tick, and what was spun away is no work.
pub struct Waits {
    /// The thread's CPU clock at the end of the last tick.
    cpu_ns: u64,
    /// Wall time of this tick that went by in its meetings.
    waited_ns: Cell<u64>,
    spun_ns: Cell<u64>,
}

impl Waits {
    /// Of the calling thread, from now on.
    pub fn begin() -> Waits {
        Waits { cpu_ns: thread_cpu_ns(), waited_ns: Cell::new(0), spun_ns: Cell::new(0) }
    }

    /// A wait looked once more, so long after the look before.
    pub fn spin(&self, since_ns: u64) {
        if since_ns <= SPIN_NS_MAX {
            self.spun_ns.set(self.spun_ns.get() + since_ns);
        }
    }

    /// Likewise a meeting's, which is part of the tick.
    pub fn meet(&self, since_ns: u64) {
        self.spin(since_ns);
        self.waited_ns.set(self.waited_ns.get() + since_ns);
    }

    /// The tick is over: what it spent of its `wall_ns`, and what the thread worked since the tick before.
    pub fn end_tick(&mut self, wall_ns: u64) -> Spent {
        let now_ns = thread_cpu_ns();
        let used_ns = now_ns - std::mem::replace(&mut self.cpu_ns, now_ns);
        let (waited_ns, spun_ns) = (self.waited_ns.take(), self.spun_ns.take());
        Spent { wall_ns: wall_ns.saturating_sub(waited_ns), cpu_ns: used_ns.saturating_sub(spun_ns) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn what_a_wait_spins_away_is_no_work_and_what_it_works_meanwhile_is() {
        let clock = Clock::starting(0);
        let (mut waits, begin_ns) = (Waits::begin(), clock.now_ns());
        let mut looked_ns = begin_ns;
        while looked_ns < begin_ns + 30_000_000 {
            let now_ns = clock.now_ns();
            waits.meet(now_ns - looked_ns);
            looked_ns = now_ns;
        }
        let spent = waits.end_tick(looked_ns - begin_ns);
        assert_eq!(spent.wall_ns, 0, "all of it was a meeting");
        assert!(spent.cpu_ns < 10_000_000, "{spent:?}");
        let until_ns = thread_cpu_ns() + 20_000_000;
        while thread_cpu_ns() < until_ns {
            std::hint::spin_loop();
        }
        waits.meet(25_000_000);
        let spent = waits.end_tick(30_000_000);
        assert_eq!(spent.wall_ns, 5_000_000);
        assert!(spent.cpu_ns >= 20_000_000, "a parcel was worked on between two looks: {spent:?}");
    }
}
