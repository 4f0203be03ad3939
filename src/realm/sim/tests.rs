//! A whole realm from one seed.

use super::*;
use crate::ladder::Step;

fn run(seed: u64, shards: usize, ticks: u64) -> SimReport {
    let report = Sim::new(SimConfig {
        seed,
        ticks,
        shards,
        bots: 80,
        npcs: 400,
        scenario: SimScenario::Seam,
        faults: Faults::None,
        link: None,
        slowdown: 0,
    })
    .run();
    assert_eq!(report.violations, 0, "{:?}", report.violation_texts);
    report
}

#[test]
fn one_hash_on_any_number_of_shards() {
    for seed in [1, 2] {
        let one = run(seed, 1, 900);
        assert_eq!(one.bots, 80);
        assert!(one.acted > 200 && one.cuts > 5, "{one:?}");
        for shards in [2, 4, 8] {
            let many = run(seed, shards, 900);
            assert_eq!(many.hash, one.hash, "seed {seed} on {shards} shards");
            assert_eq!((many.acted, many.cuts), (one.acted, one.cuts));
            assert!(many.lanes > 20, "lanes move as well: {many:?}");
        }
    }
}

#[test]
fn eight_shards_hand_off_and_act_across() {
    let report = run(3, 8, 1_800);
    assert!(report.handoffs > 300 && report.effects_across > 300, "{report:?}");
}

#[test]
fn the_same_seed_twice_is_the_same_and_another_is_not() {
    assert_eq!(run(5, 4, 300), run(5, 4, 300));
    assert_ne!(run(5, 4, 300).hash, run(6, 4, 300).hash);
}

/// A realm in which one shard stands still for so many ticks, everybody being in the middle of things; then what came of it.
fn stalled(shards: usize, at: usize, ticks: u64, scenario: SimScenario) -> SimReport {
    let (bots, npcs, faults) = (24, 60, Faults::None);
    let end = 400 + ticks + 700;
    let mut sim =
        Sim::new(SimConfig { seed: 11, ticks: end, shards, bots, npcs, scenario, faults, link: None, slowdown: 0 });
    // A player that catches up at once makes a jump: its bots know that they have to expect it.
    sim.plan.counts.insert(Fault::ShardStall, 1);
    while sim.tick < 400 {
        sim.step();
    }
    node(&mut sim).stall_shard(at, 401 + ticks);
    while sim.tick < 400 + ticks {
        sim.step();
        let others = node(&mut sim).cores.iter().enumerate().filter(|&(other, _)| other != at);
        assert!(others.clone().all(|(_, core)| core.ladder.step().number() == 0));
        // Nothing that the others show waits for it.
        let shown = others.map(|(_, core)| core.frames.complete_tick(core.world.shard)).min().flatten();
        let tick = sim.tick;
        assert!(shown >= Some(tick.min(400.max(tick - 12))), "tick {tick}: {shown:?} is shown");
    }
    let report = sim.run();
    assert_eq!((report.violations, report.bots), (0, 24), "{shards} shards, {at} stood for {ticks}: {report:?}");
    assert_eq!((report.ladder["far"], report.restarts), (0, 0), "{report:?}");
    report
}

#[test]
fn a_shard_that_stands_still_ends_nothing_and_everybody_plays_again() {
    for ticks in [5, 14, 66, 150] {
        for shards in [2, 4] {
            stalled(shards, 0, ticks, SimScenario::Seam);
            stalled(shards, 1, ticks, SimScenario::Trade);
        }
    }
}

#[test]
fn a_shard_that_stands_still_for_twenty_five_seconds_ends_nothing() {
    stalled(2, 1, 1_500, SimScenario::Trade);
    stalled(4, 0, 1_500, SimScenario::Trade);
    stalled(4, 2, 1_500, SimScenario::Seam);
}

#[test]
fn a_crowd_sees_itself() {
    let (scenario, faults) = (SimScenario::Crowd, Faults::None);
    let config =
        SimConfig { seed: 1, ticks: 600, shards: 2, bots: 300, npcs: 400, scenario, faults, link: None, slowdown: 0 };
    let report = Sim::new(config).run();
    assert_eq!(report.violations, 0, "{:?}", report.violation_texts);
    // Each new cut of its ground gives everybody in it new slices, which take a while to show.
    assert!(report.cuts > 5 && report.visible_min > 200, "{report:?}");
}

/// A crowd in which every player's link takes so many bytes a second.
fn linked(link: Option<u32>, faults: Faults) -> SimReport {
    let (seed, ticks, shards, bots, npcs) = (4, 1_800, 2, 120, 200);
    let config = SimConfig { seed, ticks, shards, bots, npcs, scenario: SimScenario::Crowd, faults, link, slowdown: 0 };
    let report = Sim::new(config).run();
    assert_eq!((report.violations, report.bots), (0, 120), "{:?}", report.violation_texts);
    report
}

#[test]
fn a_narrow_link_gets_what_it_takes_and_a_wide_one_everything() {
    let wide = linked(None, Faults::None);
    assert_eq!((wide.budget_cuts, wide.budget_mean), (0, SESSION_BYTES_PER_S_MAX.into()), "{wide:?}");
    for link in [15_000, 20_000] {
        let narrow = linked(Some(link), Faults::None);
        assert!(narrow.budget_cuts > 120, "{narrow:?}");
        assert!((u64::from(link) / 3..u64::from(link) * 3 / 2).contains(&narrow.budget_mean), "{narrow:?}");
        // A cut of their ground shortly before the end costs some.
        assert!(narrow.visible_min > 50, "it shows less often, not fewer: {narrow:?}");
    }
    assert_eq!(linked(Some(20_000), Faults::None), linked(Some(20_000), Faults::None));
}

/// A realm on cores that are so many times slower than one of today.
fn slowed(slowdown: u64, shards: usize, ticks: u64) -> Sim {
    let (scenario, faults) = (SimScenario::Seam, Faults::None);
    Sim::new(SimConfig { seed: 9, ticks, shards, bots: 64, npcs: 600, scenario, faults, link: None, slowdown })
}

fn node(sim: &mut Sim) -> &mut Node {
    sim.node.as_mut().expect("no fault ends it")
}

#[test]
fn overload_climbs_the_ladder_and_comes_down_and_everybody_stays() {
    let mut sim = slowed(0, 2, 6_000);
    let (mut steps, mut sessions) = ([0; 2], 0);
    while sim.tick < 6_000 {
        // Everybody plays before it gets slow, and after some time it is over.
        sim.config.slowdown = if (300..2_000).contains(&sim.tick) { 10_000 } else { 0 };
        sim.step();
        for (before, core) in steps.iter_mut().zip(&node(&mut sim).cores) {
            let step = core.ladder.step().number();
            assert!(step.abs_diff(*before) <= 1, "in order");
            *before = step;
        }
        let playing = node(&mut sim).cores.iter().map(Core::sessions).sum::<usize>();
        assert!(playing >= sessions, "nobody is disconnected for load: {playing} after {sessions}");
        sessions = playing;
        if sim.tick == 1_900 {
            let degrades: Vec<u8> = node(&mut sim).cores.iter().map(|core| core.world.degrade()).collect();
            assert_eq!((steps, degrades), ([8, 8], vec![3, 3]));
            assert!(node(&mut sim).cores.iter().all(|core| !core.is_open));
        }
    }
    let report = sim.report();
    assert_eq!((report.violations, report.bots, report.turns_put_off > 0), (0, 64, true), "{report:?}");
    assert_eq!((report.ladder["none"], report.ladder["admission"]), (2, 2), "{report:?}");
    for name in &NAMES[1..8] {
        assert_eq!(report.ladder[*name], 4, "up and down again on both shards: {name} {report:?}");
    }
}

#[test]
fn a_step_that_is_enough_is_kept() {
    // The sends cost most: fewer of them are enough.
    let report = slowed(58, 1, 6_600).run();
    assert_eq!(report.violations, 0, "{:?}", report.violation_texts);
    assert!(report.ladder["far"] > 0 && report.ladder["degrade_1"] == 0, "{report:?}");
    let moves: u64 = report.ladder.values().sum();
    assert!(moves <= 20, "it does not swing: {report:?}");
}

#[test]
fn while_admission_is_closed_nobody_joins_and_afterwards_everybody() {
    let mut sim = slowed(0, 2, 2_400);
    node(&mut sim).cores.iter_mut().for_each(|core| core.ladder.pin(Step::new(8)));
    (0..300).for_each(|_| sim.step());
    assert!(node(&mut sim).cores.iter().all(|core| core.ladder.is_forced() && core.ladder.step().number() == 8));
    // The first tick comes before anybody looked at the ladders.
    assert!(node(&mut sim).cores.iter().map(Core::sessions).sum::<usize>() <= 8, "hardly any of 64 was let in");
    node(&mut sim).cores.iter_mut().for_each(|core| core.ladder.pin(None));
    let report = sim.run();
    assert_eq!((report.violations, report.bots), (0, 64), "{:?}", report.violation_texts);
}

#[test]
fn a_degrade_level_is_obeyed_the_same_on_any_number_of_shards() {
    let degraded = |shards: usize, level: u8| {
        let mut sim = slowed(0, shards, 2_400);
        while sim.tick < 600 {
            sim.step();
        }
        let before = node(&mut sim).cores.iter().map(|core| core.world.counters.turns).sum::<u64>();
        assert_eq!(node(&mut sim).cores.iter().map(|core| core.world.counters.turns_put_off).sum::<u64>(), 0);
        node(&mut sim).cores[0].degrade(level);
        let report = sim.run();
        assert_eq!(report.violations, 0, "{:?}", report.violation_texts);
        (report.hash, report.turns - before, report.turns_put_off)
    };
    let full = degraded(1, 0);
    assert_eq!(full.2, 0);
    for level in 1..=3 {
        let one = degraded(1, level);
        assert_ne!(one.0, full.0);
        let share = 1.0 - one.2 as f64 / one.1 as f64;
        assert!((share * f64::from(1 << level) - 1.0).abs() < 0.15, "level {level}: {share} of the turns");
        for shards in [2, 4, 8] {
            assert_eq!(degraded(shards, level), one, "level {level} on {shards} shards");
        }
    }
}

fn trade(seed: u64, shards: usize, ticks: u64, faults: Faults) -> SimReport {
    let scenario = SimScenario::Trade;
    Sim::new(SimConfig { seed, ticks, shards, bots: 24, npcs: 60, scenario, faults, link: None, slowdown: 0 }).run()
}

#[test]
fn at_full_length_every_scenario_comes_to_the_same_on_1_2_4_and_8_shards() {
    let (faults, link, slowdown) = (Faults::None, None, 0);
    // The second seed begins just before all counters wrap around.
    for (seed, scenario) in [1, 7]
        .into_iter()
        .flat_map(|seed| [SimScenario::Seam, SimScenario::Crowd, SimScenario::Trade].map(|scenario| (seed, scenario)))
    {
        let on = |shards: usize| {
            let (ticks, bots, npcs) = (3_600, 64, 200);
            Sim::new(SimConfig { seed, ticks, shards, bots, npcs, scenario, faults, link, slowdown }).run()
        };
        let one = on(1);
        assert_eq!(one.violations, 0, "seed {seed}, {scenario:?}: {:?}", one.violation_texts);
        assert_eq!(one.meetings.contains_key("TickWrapped"), seed == 7, "{:?}", one.meetings);
        for shards in [2, 4, 8] {
            let many = on(shards);
            assert_eq!(many.violations, 0, "seed {seed}, {scenario:?}: {:?}", many.violation_texts);
            assert_eq!(one.difference(&many), None, "seed {seed}, {scenario:?}");
        }
    }
}

#[test]
fn goods_change_hands_the_same_on_any_number_of_shards() {
    let one = trade(3, 1, 1_500, Faults::None);
    assert_eq!(one.violations, 0, "{:?}", one.violation_texts);
    assert!(one.trades > 100 && one.loots > 5 && one.mails > 20 && one.ops_refused > 20, "{one:?}");
    for shards in [2, 4, 8] {
        let many = trade(3, shards, 1_500, Faults::None);
        assert_eq!((many.violations, &many.hash), (0, &one.hash), "{shards} shards: {:?}", many.violation_texts);
        assert!(many.lanes > 20, "{many:?}");
    }
}

#[test]
fn faults_break_nothing_and_a_seed_twice_is_the_same() {
    let mut faults = std::collections::BTreeSet::new();
    let (mut restarts, mut met) = (0, std::collections::BTreeSet::new());
    for seed in 0..24 {
        let report = trade(seed, 4, 1_500, Faults::All);
        assert_eq!(report.violations, 0, "seed {seed}: {:?}", report.violation_texts);
        restarts += report.restarts;
        faults.extend(report.faults.keys().cloned());
        met.extend(report.coverage.keys().filter(|pair| pair.starts_with("Lane x ")).cloned());
        if seed % 8 == 0 {
            assert_eq!(trade(seed, 4, 1_500, Faults::All), report, "seed {seed}");
        }
    }
    assert!(met.len() > 10, "lanes moved near {met:?}");
    assert!(restarts > 10 && faults.len() == faults::Fault::ALL.len(), "{restarts} restarts, {faults:?}");
}

/// Switches every bug of `planted.rs` on, one after the other, and counts the seeds until somebody notices.
#[cfg(feature = "planted")]
#[test]
fn every_planted_bug_is_found() {
    use crate::planted::{Bug, plant};
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const SEEDS_MAX: u64 = 2_000;
    // A bug that a checking line of the code itself meets ends in a panic, which is as good as a violation.
    std::panic::set_hook(Box::new(|_| ()));
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let bugs = Bug::ALL;
    // Now and then a run without faults, compared with one on a single shard.
    let clean = |seed: u64| {
        let (one, mut many) = (trade(seed, 1, 900, Faults::None), trade(seed, 4, 900, Faults::None));
        let differing = one.difference(&many).filter(|_| one.violations + many.violations == 0);
        many.violations += one.violations + u64::from(differing.is_some());
        many.violation_texts = differing.into_iter().chain(one.violation_texts).chain(many.violation_texts).collect();
        many
    };
    let hunt = |bug: Bug| {
        for seed in 0..SEEDS_MAX {
            plant(Some(bug));
            let run = std::panic::catch_unwind(|| match seed % 4 {
                3 => clean(seed / 2),
                _ => trade(seed, 2 + (seed % 3) as usize, 1_500, Faults::All),
            });
            plant(None);
            let how = match run {
                Ok(report) if report.violations == 0 => continue,
                Ok(report) => report.violation_texts[0].clone(),
                Err(panic) => {
                    let text = panic.downcast_ref::<String>().map(String::as_str);
                    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic");
                    format!("panic: {text}")
                }
            };
            return Some((seed + 1, how.chars().take(100).collect::<String>()));
        }
        None
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(&bug) = bugs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let seeds = hunt(bug);
                    let (count, how) =
                        seeds.clone().map_or(("none".to_owned(), String::new()), |(n, how)| (n.to_string(), how));
                    eprintln!("{:>24} {count:>6} seeds  {}", format!("{bug:?}"), how.replace('\n', " "));
                    found.lock().expect("nobody panics with it").push((bug, seeds));
                }
            });
        }
    });
    let _ = std::panic::take_hook();
    let found = found.into_inner().expect("nobody panics with it");
    let missed: Vec<_> = found.iter().filter(|(_, seeds)| seeds.is_none()).map(|(bug, _)| bug).collect();
    eprintln!("{} of {} planted bugs found", found.len() - missed.len(), bugs.len());
    assert!(bugs.len() >= 30 && missed.is_empty(), "not found within {SEEDS_MAX} seeds: {missed:?}");
}
