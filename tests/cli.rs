//! The built daemon, asked what needs no running node: exit codes, `--json` twins, words that mend.

use std::process::{Command, Output, Stdio};

fn ringshard(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ringshard")).args(arguments).output().expect("the daemon starts")
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).expect("standard output is one JSON object")
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("it was not killed")
}

/// A file with this text, gone with the test.
struct File(std::path::PathBuf);

impl File {
    fn new(name: &str, text: &str) -> File {
        let path = std::env::temp_dir().join(format!("ringshard-cli-{}-{name}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        File(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn an_unknown_flag_is_usage_in_words_and_in_json() {
    let words = ringshard(&["serve", "--shrads", "2"]);
    assert_eq!((code(&words), words.stdout.len()), (2, 0));
    assert!(String::from_utf8_lossy(&words.stderr).contains("'--shards'"), "it says what was meant");
    let object = ringshard(&["serve", "--shrads", "2", "--json"]);
    assert_eq!((code(&object), &json(&object)["exit_code"]), (2, &serde_json::json!(2)));
    assert!(object.stderr.is_empty(), "nothing is said twice");
}

#[test]
fn a_wrong_file_is_78_with_every_place() {
    let file = File::new("wrong.toml", "[node]\nshards = 0\n[world]\nnpc = 3\n");
    let output = ringshard(&["check-config", "--dev", file.path()]);
    assert_eq!(code(&output), 78);
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(words.contains("wrong.toml:2:10: node.shards: expected a whole number from 1 to 32, found 0\n"), "{words}");
    assert!(words.contains("wrong.toml:4:1: world.npc:") && words.contains("did you mean world.npcs?"), "{words}");
}

#[test]
fn the_printed_default_is_a_valid_file() {
    let output = ringshard(&["default-config"]);
    assert_eq!(code(&output), 0);
    let file = File::new("default.toml", &String::from_utf8(output.stdout).unwrap());
    let checked = ringshard(&["check-config", "--dev", "--json", file.path()]);
    assert_eq!(code(&checked), 0);
    assert_eq!(json(&checked)["net.send_hz"]["value"], "30");
}

#[test]
fn printed_values_name_their_origin() {
    let output = ringshard(&["serve", "--dev", "--print-config", "--control", "127.0.0.1:1", "--json"]);
    let values = json(&output);
    assert_eq!(values["net.control"]["origin"], "flag --control");
    assert_eq!(values["net.bind"]["origin"], "default");
}

#[test]
fn too_many_shards_for_the_machine_is_71_and_says_which_fit() {
    let cores = std::thread::available_parallelism().unwrap().get();
    if cores >= 32 {
        return;
    }
    let output = ringshard(&["doctor", "--shards", "32", "--json"]);
    assert_eq!(code(&output), 71);
    let object = json(&output);
    assert!(object["error"].as_str().unwrap().contains(&format!("ringshard serve --shards {cores}")), "{object}");
    assert!(object["detail"]["findings"].as_array().unwrap().len() >= 10, "{object}");
}

#[test]
fn no_running_node_is_69() {
    let folder = std::env::temp_dir().display().to_string();
    for arguments in [&["status", "--control", "127.0.0.1:1"][..], &["admin", "--data", &folder, "players"]] {
        let output = ringshard(arguments);
        assert_eq!(code(&output), 69, "{arguments:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("no node answers on"), "{arguments:?}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ringshard"))
        .arg("default-config")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn the_probe_measures_and_recommends_within_seconds() {
    let began = std::time::Instant::now();
    let output = ringshard(&["tune", "probe", "--json", "--players", "2000"]);
    assert_eq!(code(&output), 0, "{}", String::from_utf8_lossy(&output.stderr));
    assert!(began.elapsed() < std::time::Duration::from_secs(20), "{:?}", began.elapsed());
    let object = json(&output);
    for field in ["echo_pps", "echo_ns", "edge_late_us_p99", "sync_us_p50", "sync_us_p99"] {
        assert!(object["measured"][field].as_u64() > Some(0), "{field}: {object}");
    }
    let advice = object["recommended"].as_array().expect("a list");
    let keys: Vec<_> = advice.iter().map(|advice| advice["key"].as_str().expect("a key")).collect();
    for key in ["node.shards", "net.send_hz", "net.session_bytes_per_s", "net.core.rmem_max", "keeper.commit_ms"] {
        assert!(keys.contains(&key), "{key}: {object}");
    }
    assert!(advice.iter().all(|advice| advice["reason"].as_str().is_some_and(|reason| reason.len() > 20)));
}
