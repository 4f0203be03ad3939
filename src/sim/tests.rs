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
        assert!(one.acted > 200, "{one:?}");
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
    let config = SimConfig { seed: 1, ticks: 600, shards: 2, bots: 300, npcs: 400, scenario, faults };
    let report = Sim::new(config).run();
    assert_eq!(report.violations, 0, "{:?}", report.violation_texts);
    assert!(report.visible_min > 250, "{report:?}");
}
