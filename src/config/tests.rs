//! Every key, every rule, and the words in which mistakes are told.

use super::*;

const CPUS: [usize; 4] = [0, 1, 2, 3];
const KEY: &str = "private_key_file = \"/k\"\n";

fn file(text: &str) -> Result<Config, Failure> {
    parse(Some(("a.toml", text)), &[], true, &CPUS)
}

fn errors(text: &str) -> Vec<String> {
    let failure = file(text).expect_err("the file is wrong");
    assert_eq!(failure.code, Code::Config);
    failure.text.lines().map(str::to_string).collect()
}

fn flag(key: &'static str, name: &'static str, value: Raw) -> Flag {
    Flag { key, name, value }
}

#[test]
fn defaults_are_as_documented() {
    let config = parse(None, &[], true, &CPUS).unwrap();
    assert_eq!(config.node, NodeConfig { shards: 3, cpus: vec![3, 2, 1], data: None });
    assert_eq!(config.net.bind.to_string(), "127.0.0.1:7777");
    assert_eq!(config.net.control.to_string(), "127.0.0.1:7780");
    assert_eq!((config.net.send_hz, config.net.server_addresses), (30, vec![config.net.bind]));
    let world = WorldConfig { land_seed: None, npcs: 5_000, enter_radius_m: 96, leave_radius_m: 128 };
    assert_eq!(config.world, world);
    assert_eq!(config.keeper, KeeperConfig { commit_ms: 10, commit_bytes: 4 << 20 });
    assert_eq!(config.record, RecordConfig { flight: true, megabytes: 256 });
}

#[test]
fn one_core_still_gets_one_shard() {
    let config = parse(None, &[], true, &[0]).unwrap();
    assert_eq!((config.node.shards, config.node.cpus), (1, vec![0]));
}

#[test]
fn the_commented_default_reads_as_the_defaults() {
    let text = default_config();
    let from_file = file(&text).unwrap();
    let built_in = parse(None, &[], true, &CPUS).unwrap();
    assert_eq!((&from_file.net, &from_file.world), (&built_in.net, &built_in.world));
    assert_eq!((&from_file.keeper, &from_file.record), (&built_in.keeper, &built_in.record));
    assert_eq!(from_file.node.data.as_deref(), Some(Path::new("/var/lib/ringshard")));
    for key in &KEYS {
        assert!(text.contains(&format!("{} = ", key.name)), "{} is missing", key.path());
    }
}

#[test]
fn every_commented_example_is_valid() {
    for key in KEYS.iter().filter(|key| key.default.is_empty()) {
        let text = format!("[{}]\n{} = {}\n", key.section, key.name, key.shown);
        assert!(file(&text).is_ok(), "{text}");
    }
}

#[test]
fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
    let flags = [flag("net.send_hz", "--send-hz", Raw::Integer(20))];
    let text = "[net]\nsend_hz = 10\n[world]\nnpcs = 7\n";
    let config = parse(Some(("a.toml", text)), &flags, true, &CPUS).unwrap();
    assert_eq!((config.net.send_hz, config.world.npcs), (20, 7));
    let printed = config.print_config();
    assert!(printed.contains("net.send_hz = 20  # flag --send-hz\n"), "{printed}");
    assert!(printed.contains("world.npcs = 7  # file a.toml:4:8\n"), "{printed}");
    assert!(printed.contains("keeper.commit_ms = 10  # default\n"), "{printed}");
    assert!(printed.contains("# world.land_seed is not set  # default\n"), "{printed}");
    assert_eq!(config.to_json()["world.npcs"]["value"], "7");
    assert!(config.to_json()["node.data"]["value"].is_null(), "temporary with --dev");
}

#[test]
fn all_errors_come_at_once_with_their_places() {
    let errors = errors("[node]\nshards = 99\n\n[net]\n  bind = \"localhost\"\nsendhz = 4\n[wrld]\n");
    let expected = [
        "a.toml:2:10: node.shards: expected a whole number from 1 to 32, found 99",
        "a.toml:5:10: net.bind: expected an address with a port, as \"127.0.0.1:7777\", found \"localhost\"",
        "a.toml:6:1: net.sendhz: expected a key of [net], found no such key; did you mean net.send_hz?",
        "a.toml:7:2: wrld: expected one of [node] [net] [world] [load] [keeper] [record], found [wrld]; did you mean [world]?",
    ];
    assert_eq!(errors, expected);
}

#[test]
fn a_key_without_its_section_is_named() {
    let errors = errors("shards = 2\n");
    assert_eq!(errors.len(), 1);
    assert!(errors[0].starts_with("a.toml:1:1: shards: expected one of [node]"), "{errors:?}");
    assert!(errors[0].ends_with("did you mean node.shards?"), "{errors:?}");
}

#[test]
fn broken_toml_has_a_place_and_hides_no_other_error() {
    let errors = errors("[world]\nnpcs = \n[keeper]\ncommit_ms = 0\n");
    assert!(errors.iter().any(|error| error.starts_with("a.toml:2:")), "{errors:?}");
    let commit = "a.toml:4:13: keeper.commit_ms: expected a whole number of milliseconds from 1 to 1000, found 0";
    assert!(errors.iter().any(|error| error == commit), "{errors:?}");
}

#[test]
fn impossible_combinations_are_refused() {
    let cases = [
        ("[world]\nleave_radius_m = 96\n", "world.leave_radius_m: expected more than world.enter_radius_m"),
        ("[node]\nshards = 2\ncpus = \"1-3\"\n", "node.cpus: expected as many CPUs as node.shards, found 3 CPUs for 2"),
        ("[net]\nbind = \"127.0.0.1:7780\"\n", "net.control: expected another port"),
        ("[net]\nbind = \"192.0.2.1:7777\"\n", "net.bind: expected a loopback address with --dev"),
        ("[net]\ncontrol = \"192.0.2.1:7780\"\n", "net.control: expected a loopback address with --dev"),
        ("[net]\nserver_addresses = [\"0.0.0.0:7777\"]\n", "net.server_addresses: expected addresses that clients"),
        ("[net]\nserver_addresses = []\n", "net.server_addresses: expected a list of 1 to 32"),
        ("[node]\ncpus = \"2,2\"\n", "node.cpus: expected a list of different CPU numbers"),
        ("[node]\ncpus = \"0-99\"\n", "node.cpus: expected at most 32 CPUs, found 100"),
        ("[net]\nsend_hz = 61\n", "net.send_hz: expected a whole number from 1 to 60, found 61"),
        ("[record]\nflight = \"yes\"\n", "record.flight: expected \"on\" or \"off\", found \"yes\""),
        ("[node]\ndata = \"\"\n", "node.data: expected a path of a folder, found \"\""),
    ];
    for (text, expected) in cases {
        let errors = errors(text);
        assert!(errors.len() == 1 && errors[0].contains(expected), "{expected}: {errors:?}");
    }
}

#[test]
fn without_dev_a_private_key_is_required() {
    let failure = parse(None, &[], false, &CPUS).unwrap_err();
    assert!(failure.text.starts_with("net.private_key_file: expected a file"), "{failure}");
    let config =
        parse(Some(("a.toml", &format!("[net]\nbind = \"192.0.2.1:7777\"\n{KEY}"))), &[], false, &CPUS).unwrap();
    assert_eq!(config.net.private_key_file.as_deref(), Some(Path::new("/k")));
    assert_eq!(config.node.data.as_deref(), Some(Path::new("/var/lib/ringshard")));
}

#[test]
fn a_wrong_flag_is_named_by_its_flag() {
    let flags = [flag("node.shards", "--shards", Raw::Integer(0)), flag("node.cpus", "--cpus", Raw::Text("x".into()))];
    let failure = parse(None, &flags, true, &CPUS).unwrap_err();
    let lines: Vec<&str> = failure.text.lines().collect();
    assert_eq!(lines[0], "--shards: node.shards: expected a whole number from 1 to 32, found 0");
    assert!(lines[1].starts_with("--cpus: node.cpus: expected a list of different CPU numbers"), "{lines:?}");
}

#[test]
fn named_cpus_set_the_number_of_shards() {
    let config = file("[node]\ncpus = [1, 3]\n").unwrap();
    assert_eq!((config.node.shards, config.node.cpus), (2, vec![1, 3]));
}

#[test]
fn a_private_key_is_hexadecimal_or_raw_and_not_for_everybody() {
    use std::os::unix::fs::PermissionsExt;
    let path = std::env::temp_dir().join(format!("ringshard-key-{}", std::process::id()));
    let write = |bytes: &[u8], mode: u32| {
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        read_private_key(&path)
    };
    let digits = format!("{}\n", "0f".repeat(32));
    assert_eq!(write(digits.as_bytes(), 0o600), Ok([15; 32]));
    assert_eq!(write(&[7; 32], 0o640), Ok([7; 32]));
    assert_eq!(write(&[7; 32], 0o644).unwrap_err().code, Code::Permission);
    assert_eq!(write("+f".repeat(32).as_bytes(), 0o600).unwrap_err().code, Code::Config);
    assert_eq!(write(b"short", 0o600).unwrap_err().code, Code::Config);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(read_private_key(&path).unwrap_err().code, Code::Io);
}

#[test]
fn a_live_key_is_tuned_by_the_rules_of_the_file_and_says_by_whom() {
    let mut config = parse(None, &[], true, &[0, 1]).unwrap();
    let by = "uid 0 pid 7";
    assert_eq!(config.tune("net.send_hz", "20", by), Ok(("30".to_string(), "20".to_string())));
    assert_eq!(config.tune("load.step", "3", by), Ok(("\"auto\"".to_string(), "3".to_string())));
    assert_eq!(config.tune("load.step", "auto", by), Ok(("3".to_string(), "\"auto\"".to_string())));
    assert_eq!((config.net.send_hz, config.load.step), (20, None));
    let shown = config.tunables();
    let row = |key: &str| shown.iter().find(|row| row.key == key).expect("every key is shown");
    assert_eq!((row("net.send_hz").origin.as_str(), row("net.send_hz").live), ("tuned by uid 0 pid 7", true));
    assert_eq!((row("node.shards").origin.as_str(), row("node.shards").live), ("default", false));
}

#[test]
fn what_cannot_be_tuned_says_what_can_and_changes_nothing() {
    let mut config = parse(None, &[], true, &[0, 1]).unwrap();
    let before = config.clone();
    for (key, words, said) in [
        ("net.send_hz", "0", "net.send_hz: expected a whole number from 1 to 60, found 0"),
        ("net.send_hz", "fast", "expected a whole number from 1 to 60, found fast"),
        ("net.session_bytes_per_s", "11999", "from 12000 to 72000"),
        ("load.step", "9", "\"auto\" or a whole number from 0 to 8, found 9"),
        ("load.step", "", "found "),
        ("net.send_hertz", "20", "there is no key net.send_hertz"),
        (
            "net.sendhz",
            "20",
            "did you mean net.send_hz?; live keys are net.send_hz, net.session_bytes_per_s, load.step",
        ),
        ("nonsense", "20", "there is no key nonsense"),
        ("node.shards", "1", "node.shards is read at start alone"),
        ("world.npcs", "1", "live keys are"),
    ] {
        let error = config.tune(key, words, "uid 0").expect_err(key);
        assert!(error.contains(said), "{key}: {error}");
    }
    assert_eq!(config, before);
}
