//! `ringshard-bench instructions`, as CI calls it.

use std::process::{Command, Output};

fn instructions(references: &str, arguments: &[&str]) -> Output {
    let file = std::env::temp_dir().join(format!("ringshard-instructions-{}-{}", std::process::id(), references.len()));
    std::fs::write(&file, references).unwrap();
    let bench = Command::new(env!("CARGO_BIN_EXE_ringshard-bench"))
        .args(["instructions", "--json", "--references"])
        .arg(&file)
        .args(arguments)
        .output();
    std::fs::remove_file(&file).unwrap();
    bench.unwrap()
}

#[test]
fn what_grows_fails_and_says_how_to_change_its_reference() {
    if Command::new("valgrind").arg("--version").output().is_err() {
        eprintln!("skipped: needs valgrind (apt-get install valgrind)");
        return;
    }
    let count = |output: &Output, path: &str| {
        let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        value.pointer(path).and_then(serde_json::Value::as_u64).unwrap_or_else(|| panic!("{value:#}"))
    };
    let unknown = instructions("", &["--row", "packets"]);
    assert_eq!(unknown.status.code(), Some(1), "without a reference nothing is compared");
    let packets = count(&unknown, "/detail/rows/0/instructions");

    let within = instructions(&format!("packets = {}", packets * 97 / 100), &["--row", "packets"]);
    assert_eq!(within.status.code(), Some(0), "{within:?}");
    assert_eq!(count(&within, "/rows/0/instructions"), packets, "the same code takes the same count");

    let grown = instructions(&format!("packets = {}\n", packets * 93 / 100), &["--row", "packets"]);
    assert_eq!(grown.status.code(), Some(1), "{grown:?}");
    let said = String::from_utf8_lossy(&grown.stdout).into_owned();
    assert!(said.contains("packets") && said.contains("+7.5") && said.contains("instructions --write"), "{said}");

    let misspelt = instructions("", &["--row", "packet"]);
    assert_eq!(misspelt.status.code(), Some(2), "{misspelt:?}");
}
