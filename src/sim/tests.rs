//! A whole realm from one seed.

use super::*;

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
            assert_eq!(many.acted, one.acted);
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

#[test]
fn a_crowd_sees_itself() {
    let (scenario, faults) = (SimScenario::Crowd, Faults::None);
    let config = SimConfig { seed: 1, ticks: 600, shards: 2, bots: 300, npcs: 400, scenario, faults, link: None };
    let report = Sim::new(config).run();
    assert_eq!(report.violations, 0, "{:?}", report.violation_texts);
    // Each new cut of its ground gives everybody in it new slices, which take a while to show.
    assert!(report.cuts > 5 && report.visible_min > 200, "{report:?}");
}

/// A crowd in which every player's link takes so many bytes a second.
fn linked(link: Option<u32>, faults: Faults) -> SimReport {
    let (seed, ticks, shards, bots, npcs) = (4, 1_800, 2, 120, 200);
    let config = SimConfig { seed, ticks, shards, bots, npcs, scenario: SimScenario::Crowd, faults, link };
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
        assert!(narrow.visible_min > 60, "it shows less often, not fewer: {narrow:?}");
    }
    assert_eq!(linked(Some(20_000), Faults::None), linked(Some(20_000), Faults::None));
}

fn trade(seed: u64, shards: usize, ticks: u64, faults: Faults) -> SimReport {
    let scenario = SimScenario::Trade;
    Sim::new(SimConfig { seed, ticks, shards, bots: 24, npcs: 60, scenario, faults, link: None }).run()
}

#[test]
fn goods_change_hands_the_same_on_any_number_of_shards() {
    let one = trade(3, 1, 1_500, Faults::None);
    assert_eq!(one.violations, 0, "{:?}", one.violation_texts);
    assert!(one.trades > 100 && one.loots > 5 && one.mails > 20 && one.ops_refused > 20, "{one:?}");
    for shards in [2, 4, 8] {
        let many = trade(3, shards, 1_500, Faults::None);
        assert_eq!((many.violations, &many.hash), (0, &one.hash), "{shards} shards: {:?}", many.violation_texts);
    }
}

#[test]
fn faults_break_nothing_and_a_seed_twice_is_the_same() {
    let mut faults = std::collections::BTreeSet::new();
    let mut restarts = 0;
    for seed in 0..24 {
        let report = trade(seed, 4, 1_500, Faults::All);
        assert_eq!(report.violations, 0, "seed {seed}: {:?}", report.violation_texts);
        restarts += report.restarts;
        faults.extend(report.faults.keys().cloned());
        if seed % 8 == 0 {
            assert_eq!(trade(seed, 4, 1_500, Faults::All), report, "seed {seed}");
        }
    }
    assert!(restarts > 10 && faults.len() == faults::Fault::ALL.len(), "{restarts} restarts, {faults:?}");
}

/// Switches every bug of `planted.rs` on, one after the other, and counts the seeds until somebody notices.
#[cfg(feature = "planted")]
#[test]
fn every_planted_bug_is_found() {
    use crate::planted::{Bug, plant};
    use clap::ValueEnum;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const SEEDS_MAX: u64 = 2_000;
    // A bug that a checking line of the code itself meets ends in a panic, which is as good as a violation.
    std::panic::set_hook(Box::new(|_| ()));
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let bugs = Bug::value_variants();
    let hunt = |bug: Bug| {
        for seed in 0..SEEDS_MAX {
            plant(Some(bug));
            let run = std::panic::catch_unwind(|| trade(seed, 2 + (seed % 3) as usize, 1_500, Faults::All));
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
