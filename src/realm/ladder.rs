//! The overload ladder: what a shard does less of when its core cannot keep up, and when it does it again.
//!
//! Owns the measure of one shard's recent ticks and the step that it stands on. Promises: steps are taken one at a time
//! and in order; one up for a window that was too busy or too late but for its worst tick, one down after several calm
//! windows in a row, and after more of them where the step before was taken back too early; so a step goes up and down again in
//! [`CYCLE_TICKS_MIN`] ticks at the fastest, and who is idle comes to step 0. What wall time says counts only where the
//! shard's own work is a real part of it: a shard that does little and is late because others use its core leaves nothing
//! out, because that would not help. No step disconnects anybody. Never reads a clock: time is an argument.

use crate::limits::TICK_NS;
use crate::sessions::interest::Pace;

/// Number of steps, the one where nothing is left out included.
pub const STEPS: usize = 9;
/// Their names, in order.
pub const NAMES: [&str; STEPS] =
    ["none", "far", "mid", "send_30", "send_20", "degrade_1", "degrade_2", "degrade_3", "admission"];

/// Ticks of a window.
pub const WINDOW_TICKS: u64 = 30;
/// Share of the core, percent, from which on a window was too busy.
const BUSY_PERCENT_MAX: u64 = 85;
/// Share of its ticks, percent, that may be skipped because an edge came late; more is too late.
const LATE_PERCENT_MAX: u64 = 10;
/// Share of the core, percent, below which a window without a skipped tick was calm.
const CALM_PERCENT_MAX: u64 = 60;
/// Share of the core, percent, above which a shard's own work is a real part of what makes it late, so that leaving some of
/// it out helps. Below it a tick's work (2.5 ms) is shorter than the time that the kernel gives a thread at once: what makes
/// it late is the waiting for the core. A node with hardly any players uses a few percent.
const OWN_PERCENT_MIN: u64 = 15;
/// Calm windows in a row before a step is taken back, at the least.
const CALM_WINDOWS_MIN: u32 = 10;
/// Likewise at the most.
pub const CALM_WINDOWS_MAX: u32 = 120;
/// Windows after a step was taken back in which taking it again says that it was too early.
const RELAPSE_WINDOWS: u32 = 20;
/// Fewest ticks in which a step is taken, taken back and taken again: the calm windows, one in which taking it back
/// shows, and one that is too busy.
pub const CYCLE_TICKS_MIN: u64 = (CALM_WINDOWS_MIN as u64 + 2) * WINDOW_TICKS;

/// One step: all that those below it leave out is left out as well.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Step(u8);

impl Step {
    /// By its number, where there is such a step.
    pub fn new(number: u8) -> Option<Step> {
        (usize::from(number) < STEPS).then_some(Step(number))
    }

    /// Its number.
    pub fn number(self) -> u8 {
        self.0
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        NAMES[usize::from(self.0)]
    }

    /// How often far and middling slices are shown: from 10 to 5 times a second.
    pub fn pace(self) -> Pace {
        match self.0 {
            0 => Pace::default(),
            1 => Pace { mid_ticks: 0, far_ticks: 12 },
            _ => Pace { mid_ticks: 6, far_ticks: 12 },
        }
    }

    /// Snapshots a second, of so many at the most.
    pub fn send_hz(self, send_hz: u32) -> u32 {
        match self.0 {
            0..=2 => send_hz,
            3 => send_hz.min(30),
            _ => send_hz.min(20),
        }
    }

    /// Degrade level that it asks for: AI takes one turn in 2 to the power of it.
    pub fn degrade(self) -> u8 {
        self.0.saturating_sub(4).min(3)
    }

    /// It asks that nobody is admitted.
    pub fn closes_admission(self) -> bool {
        usize::from(self.0) == STEPS - 1
    }
}

/// What the steps of all shards mean for the whole node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Common {
    /// Degrade level: the largest that a shard asks for.
    pub degrade: u8,
    /// Somebody asks that nobody is admitted.
    pub closed: bool,
}

impl Common {
    /// Of the steps of all shards.
    pub fn of(steps: impl IntoIterator<Item = Step>) -> Common {
        let highest = steps.into_iter().max().unwrap_or_default();
        Common { degrade: highest.degrade(), closed: highest.closes_admission() }
    }
}

/// What one tick took.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Spent {
    /// Nanoseconds from its begin to its end, without the waits for other shards: the shard's own work, and whatever else
    /// ran on its core meanwhile.
    pub wall_ns: u64,
    /// Nanoseconds of CPU time of the shard's own work since the tick before, without what it spun away while it waited.
    pub cpu_ns: u64,
}

impl Spent {
    /// On a core that nobody else uses both are the same.
    pub fn alone(ns: u64) -> Spent {
        Spent { wall_ns: ns, cpu_ns: ns }
    }
}

/// What was measured since the window began.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    ticks: u64,
    skipped: u64,
    wall_ns: u64,
    cpu_ns: u64,
    /// The most that one tick skipped, and took of wall time.
    skipped_once: u64,
    wall_once_ns: u64,
}

impl Window {
    fn note(&mut self, elapsed_ticks: u64, spent: Spent) {
        let skipped = elapsed_ticks.saturating_sub(1);
        (self.ticks, self.skipped) = (self.ticks + elapsed_ticks, self.skipped + skipped);
        (self.wall_ns, self.cpu_ns) = (self.wall_ns + spent.wall_ns, self.cpu_ns + spent.cpu_ns);
        self.skipped_once = self.skipped_once.max(skipped);
        self.wall_once_ns = self.wall_once_ns.max(spent.wall_ns);
    }

    /// Whether so much time is a larger share of the window.
    fn is_over(&self, ns: u64, percent: u64) -> bool {
        ns * 100 > self.ticks * TICK_NS * percent
    }

    /// Less work would shorten its ticks.
    fn is_own(&self) -> bool {
        self.is_over(self.cpu_ns, OWN_PERCENT_MIN)
    }

    /// But for the worst tick: a thread that stood still once, for whatever reason and time, does not have too much to do.
    fn is_overloaded(&self) -> bool {
        let (ticks, wall_ns) = (self.ticks - self.skipped_once, self.wall_ns - self.wall_once_ns);
        let is_late = (self.skipped - self.skipped_once) * 100 > ticks * LATE_PERCENT_MAX;
        let is_long = wall_ns * 100 > ticks * TICK_NS * BUSY_PERCENT_MAX;
        self.is_over(self.cpu_ns, BUSY_PERCENT_MAX) || self.is_own() && (is_late || is_long)
    }

    fn is_calm(&self) -> bool {
        let is_late = self.skipped > 0 || self.is_over(self.wall_ns, CALM_PERCENT_MAX);
        !(self.is_over(self.cpu_ns, CALM_PERCENT_MAX) || self.is_own() && is_late)
    }
}

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Ladder {
    step: Step,
    /// Somebody holds it on this step.
    pinned: Option<Step>,
    window: Window,
    /// The window goes on in which the last step was taken: what it measures is half of before.
    settles: bool,
    /// Calm windows in a row.
    calm: u32,
    /// Calm windows that it takes now to take a step back.
    calm_wanted: u32,
    /// Windows since a step was taken back; none when another was taken since.
    since_back: Option<u32>,
    /// How often each step was come to, from above or below.
    pub entered: [u64; STEPS],
}

impl Default for Ladder {
    fn default() -> Ladder {
        Ladder {
            step: Step::default(),
            pinned: None,
            window: Window::default(),
            settles: false,
            calm: 0,
            calm_wanted: CALM_WINDOWS_MIN,
            since_back: None,
            entered: [0; STEPS],
        }
    }
}

impl Ladder {
    /// Where it stands.
    pub fn step(&self) -> Step {
        self.step
    }

    /// Whether somebody holds it there.
    pub fn is_forced(&self) -> bool {
        self.pinned.is_some()
    }

    /// Holds it on a step, or lets it go on from there by itself.
    pub fn pin(&mut self, step: Option<Step>) {
        self.pinned = step;
        (self.calm, self.window) = (0, Window::default());
        if let Some(step) = step.filter(|&step| step != self.step) {
            self.come_to(step);
        }
    }

    /// A tick is over that came so many ticks after the one before it.
    pub fn note(&mut self, elapsed_ticks: u64, spent: Spent) {
        self.window.note(elapsed_ticks, spent);
        if self.window.ticks >= WINDOW_TICKS {
            let window = std::mem::take(&mut self.window);
            if !std::mem::take(&mut self.settles) && self.pinned.is_none() {
                self.judge(&window);
            }
        }
    }

    fn judge(&mut self, window: &Window) {
        self.since_back = self.since_back.map(|windows| windows + 1);
        self.calm = if window.is_calm() { self.calm + 1 } else { 0 };
        if window.is_overloaded() {
            if self.since_back.take().is_some_and(|windows| windows <= RELAPSE_WINDOWS) {
                self.calm_wanted = (self.calm_wanted * 2).min(CALM_WINDOWS_MAX);
            }
            if let Some(step) = Step::new(self.step.0 + 1) {
                self.come_to(step);
            }
        } else if self.calm >= self.calm_wanted {
            self.calm = 0;
            // The step before this one was taken back in time, or there is nothing to take back.
            if self.since_back.is_some() || self.step.0 == 0 {
                self.calm_wanted = (self.calm_wanted / 2).max(CALM_WINDOWS_MIN);
            }
            if let Some(below) = self.step.0.checked_sub(1) {
                self.come_to(Step(below));
                self.since_back = Some(0);
            }
        }
    }

    fn come_to(&mut self, step: Step) {
        self.step = step;
        self.entered[usize::from(step.0)] += 1;
        self.settles = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Ticks that use so many percent of the core.
    fn run(ladder: &mut Ladder, ticks: u64, percent: u64) {
        (0..ticks).for_each(|_| ladder.note(1, Spent::alone(TICK_NS * percent / 100)));
    }

    #[test]
    fn each_step_adds_to_those_below() {
        let steps: Vec<Step> = (0..STEPS as u8).map(|number| Step::new(number).expect("there are so many")).collect();
        assert_eq!(Step::new(STEPS as u8), None);
        let rates: Vec<u32> = steps.iter().map(|step| step.send_hz(60)).collect();
        assert_eq!(rates, [60, 60, 60, 30, 20, 20, 20, 20, 20]);
        assert_eq!(steps[3].send_hz(25), 25, "less than was asked for, never more");
        let levels: Vec<u8> = steps.iter().map(|step| step.degrade()).collect();
        assert_eq!(levels, [0, 0, 0, 0, 0, 1, 2, 3, 3]);
        let closes: Vec<bool> = steps.iter().map(|step| step.closes_admission()).collect();
        assert_eq!(closes, [false, false, false, false, false, false, false, false, true]);
        assert_eq!(Common::of(steps.iter().copied()), Common { degrade: 3, closed: true });
        assert_eq!(Common::of([steps[6], steps[0]]), Common { degrade: 2, closed: false });
        assert_eq!(Common::of([]), Common::default());
    }

    #[test]
    fn overload_climbs_step_by_step_and_calm_comes_down() {
        let mut ladder = Ladder::default();
        run(&mut ladder, 600, 80);
        assert_eq!(ladder.step().number(), 0, "busy is not too busy");
        run(&mut ladder, WINDOW_TICKS, 95);
        assert_eq!(ladder.step().number(), 1);
        run(&mut ladder, WINDOW_TICKS, 95);
        assert_eq!(ladder.step().number(), 1, "it is seen first what that step gives");
        run(&mut ladder, 15 * WINDOW_TICKS, 95);
        assert_eq!(ladder.step().number(), 8);
        run(&mut ladder, 1_000 * WINDOW_TICKS, 95);
        assert_eq!((ladder.step().number(), ladder.entered), (8, [0, 1, 1, 1, 1, 1, 1, 1, 1]));
        run(&mut ladder, 1_000 * WINDOW_TICKS, 70);
        assert_eq!(ladder.step().number(), 8, "neither overloaded nor calm");
        run(&mut ladder, 11 * WINDOW_TICKS, 10);
        assert_eq!(ladder.step().number(), 7);
        run(&mut ladder, 100 * WINDOW_TICKS, 10);
        assert_eq!((ladder.step().number(), ladder.entered[0]), (0, 1));
    }

    /// Windows of ticks that come `elapsed` ticks after each other, with such shares of the core, percent.
    fn run_late(ladder: &mut Ladder, windows: u64, elapsed: u64, wall_percent: u64, cpu_percent: u64) {
        let percent_ns = |percent: u64| elapsed * TICK_NS * percent / 100;
        let spent = Spent { wall_ns: percent_ns(wall_percent), cpu_ns: percent_ns(cpu_percent) };
        (0..windows * WINDOW_TICKS.div_ceil(elapsed)).for_each(|_| ladder.note(elapsed, spent));
    }

    #[test]
    fn a_shard_that_does_little_leaves_nothing_out_however_late_its_neighbours_make_it() {
        for (elapsed, wall_percent) in [(1, 100), (2, 100), (4, 300), (40, 99)] {
            let mut ladder = Ladder::default();
            run_late(&mut ladder, 200, elapsed, wall_percent, 5);
            assert_eq!((ladder.step().number(), ladder.entered), (0, [0; STEPS]), "{elapsed} {wall_percent}");
        }
    }

    #[test]
    fn late_ticks_are_overload_where_the_shards_own_work_is_a_real_part_of_them() {
        for (elapsed, wall_percent, cpu_percent) in [(4, 30, 20), (1, 95, 40), (2, 90, 50)] {
            let mut ladder = Ladder::default();
            run_late(&mut ladder, 2 * STEPS as u64, elapsed, wall_percent, cpu_percent);
            assert_eq!(ladder.step().number(), 8, "{elapsed} {wall_percent} {cpu_percent}");
        }
    }

    #[test]
    fn a_shard_comes_down_beside_busy_neighbours_once_its_own_work_is_little() {
        let mut ladder = Ladder::default();
        run(&mut ladder, 20 * WINDOW_TICKS, 95);
        assert_eq!(ladder.step().number(), 8);
        run_late(&mut ladder, 11, 4, 100, 3);
        assert_eq!(ladder.step().number(), 7, "it admits players again");
        run_late(&mut ladder, 100, 4, 100, 3);
        assert_eq!(ladder.step().number(), 0);
    }

    #[test]
    fn work_outside_of_the_ticks_counts_as_well() {
        let mut ladder = Ladder::default();
        run_late(&mut ladder, 1, 1, 40, 95);
        assert_eq!(ladder.step().number(), 1);
    }

    #[test]
    fn a_pause_of_any_length_is_no_overload() {
        for pause_ticks in [7, 66, 500, 1_200] {
            // Between two ticks, and in the middle of one: then the edges after it are late.
            for busy_ns in [TICK_NS / 2, pause_ticks * TICK_NS] {
                for before in 0..WINDOW_TICKS {
                    let mut ladder = Ladder::default();
                    run(&mut ladder, before, 50);
                    ladder.note(1, Spent { wall_ns: busy_ns, cpu_ns: TICK_NS / 2 });
                    ladder.note(pause_ticks, Spent::alone(TICK_NS / 2));
                    run(&mut ladder, 2 * WINDOW_TICKS, 50);
                    assert_eq!(ladder.step().number(), 0, "{pause_ticks} ticks, {before} before it");
                }
            }
        }
    }

    #[test]
    fn a_step_that_is_needed_again_is_kept_longer_each_time() {
        let mut ladder = Ladder::default();
        let (mut taken, mut tick) = (Vec::new(), 0);
        // One step halves what it costs: too much without, calm with it.
        while tick < 200_000 {
            let before = ladder.step().number();
            run(&mut ladder, 1, if before == 0 { 100 } else { 50 });
            tick += 1;
            if (before, ladder.step().number()) == (0, 1) {
                taken.push(tick);
            }
        }
        let gaps: Vec<u64> = taken.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps[0] >= CYCLE_TICKS_MIN && gaps.is_sorted(), "{gaps:?}");
        assert!(gaps[6] >= u64::from(CALM_WINDOWS_MAX) * WINDOW_TICKS, "{gaps:?}");
    }

    #[test]
    fn a_pin_holds_it_and_is_seen() {
        let mut ladder = Ladder::default();
        ladder.pin(Step::new(6));
        run(&mut ladder, 10_000, 5);
        assert_eq!((ladder.step().number(), ladder.is_forced()), (6, true));
        run(&mut ladder, 10_000, 200);
        assert_eq!(ladder.step().number(), 6);
        ladder.pin(None);
        assert_eq!((ladder.step().number(), ladder.is_forced()), (6, false));
        run(&mut ladder, 6 * 11 * WINDOW_TICKS + 60, 5);
        assert_eq!((ladder.step().number(), ladder.entered[6]), (0, 1));
    }

    proptest! {
        /// Whatever is measured: one step at a time, no cycle faster than named, and idleness ends at step 0.
        #[test]
        fn it_is_steady_and_comes_home(
            loads in proptest::collection::vec((1u64..200, 0u64..250, 0u64..101, 1u64..4), 1..300)
        ) {
            let mut ladder = Ladder::default();
            let mut tick = 0;
            let mut ups: Vec<(u8, u64)> = Vec::new();
            let mut downs: Vec<(u8, u64)> = Vec::new();
            for (ticks, percent, own_percent, elapsed) in loads {
                for _ in 0..ticks {
                    let before = ladder.step().number();
                    let wall_ns = elapsed * TICK_NS * percent / 100;
                    ladder.note(elapsed, Spent { wall_ns, cpu_ns: wall_ns * own_percent / 100 });
                    tick += elapsed;
                    let after = ladder.step().number();
                    prop_assert!(before.abs_diff(after) <= 1);
                    if after > before {
                        let last = ups.iter().rev().find(|(step, _)| *step == after);
                        prop_assert!(last.is_none_or(|&(_, then)| tick >= then + CYCLE_TICKS_MIN), "{ups:?} {tick}");
                        ups.push((after, tick));
                    } else if after < before {
                        let last = downs.iter().rev().find(|(step, _)| *step == after);
                        prop_assert!(last.is_none_or(|&(_, then)| tick >= then + CYCLE_TICKS_MIN), "{downs:?} {tick}");
                        downs.push((after, tick));
                    }
                }
            }
            let windows = u64::from(CALM_WINDOWS_MAX + 2) * STEPS as u64;
            run(&mut ladder, windows * WINDOW_TICKS, 0);
            prop_assert_eq!(ladder.step().number(), 0);
            let entered: u64 = ladder.entered.iter().sum();
            prop_assert_eq!(ladder.entered[0] > 0, entered > 0);
        }
    }
}
