//! `ringshard-bench tick`, as its users call it.

use std::process::Command;

fn tick(arguments: &[&str]) -> serde_json::Value {
    let bench = env!("CARGO_BIN_EXE_ringshard-bench");
    let output = Command::new(bench).args(["tick", "--json"]).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn every_figure_is_there_and_means_something() {
    for (arguments, hz, shards) in [(&["--shards", "3"][..], 20, 3.0), (&["--crowd", "--send-hz", "60"], 60, 1.0)] {
        let all = [&["--players", "120", "--npcs", "400", "--ticks", "60"], arguments].concat();
        let result = tick(&all);
        let number = |name: &str| result.pointer(name).and_then(serde_json::Value::as_f64).unwrap_or(-1.0);
        assert!(number("/share_of_core") > 0.0 && number("/share_of_core") < 1.0, "{result:#}");
        assert!(number("/tick_us/p50") <= number("/tick_us/p99"), "{result:#}");
        let phases: f64 =
            ["receive", "step", "show", "hear", "send"].iter().map(|p| number(&format!("/phase_us/{p}"))).sum();
        // Phases are of all shards together, a tick is as long as that of the slowest.
        let slowest = number("/tick_us/mean");
        assert!(slowest <= 1.01 * phases && slowest * shards >= 0.99 * phases, "{result:#}");
        assert_eq!(number("/sends_per_tick").round() as i64, 120 * hz / 60, "{result:#}");
        assert!(number("/encodes_per_entity_tick") >= 1.0 && number("/bits_per_update") > 12.0, "{result:#}");
        assert!(number("/stale_ticks_p99/near40") >= 0.0 && number("/sends_over_one_datagram") == 0.0, "{result:#}");
    }
}
