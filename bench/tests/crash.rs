//! Ends without a warning: players trade on the real daemon, which is killed, or whose disk loses power; nobody may lose
//! what he was told.

use std::process::{Command, Output};

/// Runs `crash`: its exit code and its report.
fn crash(arguments: &[&str]) -> (Option<i32>, serde_json::Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringshard-bench"));
    let Output { status, stdout, .. } = command.args(["crash", "--json"]).args(arguments).output().expect("it runs");
    (status.code(), serde_json::from_slice(&stdout).expect("the report is JSON"))
}

fn demand_all_kept(code: Option<i32>, report: &serde_json::Value, rounds: u32) {
    assert_eq!((code, &report["rounds"]), (Some(0), &rounds.into()), "{report}");
    assert_eq!((&report["lost"], &report["doubled"]), (&0.into(), &0.into()), "{report}");
    assert_eq!((&report["conserved"], &report["breaks"]), (&true.into(), &serde_json::json!([])), "{report}");
    assert!(report["told_ops"].as_u64() > Some(20), "{report}");
    assert!(report["start_ms"]["max"].as_f64() < Some(5_000.0), "{report}");
}

/// One test, so that its parts do not share two cores.
#[test]
fn nobody_loses_what_he_was_told() {
    let (code, report) = crash(&["--kind", "kill", "--count", "2", "--players", "30"]);
    demand_all_kept(code, &report, 2);
    let (code, report) = crash(&["--kind", "power", "--count", "1", "--players", "30"]);
    // What the machine lacks, in words.
    match code {
        Some(69 | 71) => eprintln!("skipped the power cut: {}", report["error"]),
        _ => demand_all_kept(code, &report, 1),
    }
}

#[test]
fn what_cannot_begin_says_why() {
    let folder = std::env::temp_dir().join(format!("ringshard-crash-full-{}", std::process::id()));
    std::fs::create_dir(&folder).expect("a new folder");
    std::fs::write(folder.join("somebody's"), "file").expect("it is writable");
    let name = folder.to_str().expect("a plain name");
    let (code, report) = crash(&["--kind", "kill", "--data", name]);
    assert!(folder.join("somebody's").exists());
    std::fs::remove_dir_all(&folder).expect("it is ours");
    assert_eq!(code, Some(73), "{report}");
    let (code, report) = crash(&["--kind", "kill", "--server", "/nowhere/ringshard"]);
    assert!(code == Some(69) && report["error"].as_str().is_some_and(|text| text.contains("/nowhere/ringshard")));
}
