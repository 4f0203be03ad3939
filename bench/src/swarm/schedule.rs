//! When each bot has its turn: an open loop, computed from numbers alone.
//!
//! Owns the number of the next turn. Promises: the bots' turns are spread evenly over the period; a turn's time never
//! depends on when earlier ones were taken, and no turn is ever skipped.

/// Turns of the bots of one thread.
#[derive(Clone, Debug)]
pub struct Schedule {
    start_ns: u64,
    /// Turns of one bot in a second.
    hz: u32,
    bots: u64,
    next: u64,
}

/// One turn of one bot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Turn {
    /// Whose, of `0..bots`.
    pub bot: usize,
    /// When it was to be.
    pub due_ns: u64,
}

impl Schedule {
    /// Turns from `start_ns` on.
    ///
    /// Panics without bots or without a rate.
    pub fn new(start_ns: u64, hz: u32, bots: usize) -> Schedule {
        assert!(hz > 0 && bots > 0, "somebody has a turn now and then");
        Schedule { start_ns, hz, bots: bots as u64, next: 0 }
    }

    /// When the next turn is due.
    pub fn next_due_ns(&self) -> u64 {
        let per_second = u128::from(self.hz) * u128::from(self.bots);
        self.start_ns + (u128::from(self.next) * 1_000_000_000 / per_second) as u64
    }

    /// The next turn, if it is due.
    pub fn take(&mut self, now_ns: u64) -> Option<Turn> {
        let due_ns = self.next_due_ns();
        if due_ns > now_ns {
            return None;
        }
        let bot = (self.next % self.bots) as usize;
        self.next += 1;
        Some(Turn { bot, due_ns })
    }
}

/// Client ticks that a bot's `packet`-th packet brings when it sends so many packets a second: 60 a second, evenly.
pub fn ticks_of_packet(packet: u64, hz: u32) -> u64 {
    let until = |packet: u64| packet * ringshard::limits::TICK_HZ / u64::from(hz);
    until(packet + 1) - until(packet)
}

/// When the `number`-th bot of a run asks to join, after the run's start: all within 5 s, at most 200 a second when few.
pub fn join_ns(number: u64, bots: u64) -> u64 {
    let spacing_ns = (5_000_000_000 / bots.max(1)).min(5_000_000);
    number * spacing_ns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_even_and_do_not_drift() {
        let mut schedule = Schedule::new(1_000, 30, 7);
        let mut due = Vec::new();
        for second in 1..=100u64 {
            let now = 1_000 + second * 1_000_000_000 - 1;
            let mut taken = 0;
            while let Some(turn) = schedule.take(now) {
                due.push(turn);
                taken += 1;
            }
            assert_eq!(taken, 210, "in second {second}");
            assert_eq!(schedule.next_due_ns(), now + 1);
        }
        for (at, turn) in due.iter().enumerate() {
            assert_eq!(turn.bot, at % 7);
        }
        let gaps = due.windows(2).map(|pair| pair[1].due_ns - pair[0].due_ns);
        assert!(gaps.clone().max() <= gaps.min().map(|gap| gap + 1));
    }

    #[test]
    fn a_late_host_gets_every_turn_with_its_own_time() {
        let mut schedule = Schedule::new(0, 10, 1);
        assert_eq!(schedule.take(0), Some(Turn { bot: 0, due_ns: 0 }));
        assert_eq!(schedule.take(99_999_999), None);
        let late: Vec<u64> = std::iter::from_fn(|| schedule.take(350_000_000)).map(|turn| turn.due_ns).collect();
        assert_eq!(late, [100_000_000, 200_000_000, 300_000_000]);
    }

    #[test]
    fn packets_bring_sixty_ticks_a_second() {
        for hz in [1, 7, 20, 30, 45, 60, 120] {
            let second = |n: u64| (n * u64::from(hz)..(n + 1) * u64::from(hz)).map(|p| ticks_of_packet(p, hz)).sum();
            let sums: [u64; 3] = [second(0), second(1), second(1_000)];
            assert_eq!(sums, [60; 3], "{hz} packets a second");
        }
        assert!((0..90).all(|packet| ticks_of_packet(packet, 30) == 2));
    }

    #[test]
    fn joins_end_within_five_seconds() {
        assert_eq!((join_ns(0, 1), join_ns(99, 100)), (0, 495_000_000));
        assert!(join_ns(4_999, 5_000) < 5_000_000_000);
    }
}
