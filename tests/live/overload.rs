//! A real node that cannot keep up: what it leaves out, in order, and how it comes back.

use std::time::Duration;

use ringshard::net::netcode_client::ClientState;

use super::client::Player;
use super::server::{Server, TempFolder};

/// The ladder of each shard.
fn ladders(server: &Server) -> Vec<serde_json::Value> {
    let shards = server.status()["shards"].as_array().expect("a list").clone();
    shards.iter().map(|shard| shard["ladder"].clone()).collect()
}

/// Takes the cores away from the node most of the time, so that its ticks come late.
fn hold_up(server: &Server, players: &mut [Player], times: usize) {
    for _ in 0..times {
        server.signal("-STOP");
        std::thread::sleep(Duration::from_millis(250));
        server.signal("-CONT");
        std::thread::sleep(Duration::from_millis(70));
        players.iter_mut().for_each(Player::tick);
    }
}

/// Lets them play until something holds.
fn play_until(players: &mut [Player], seconds: u64, mut holds: impl FnMut(&[Player]) -> bool) {
    let turns = seconds * 1_000 / 5;
    let held = (0..turns).any(|_| {
        players.iter_mut().for_each(Player::tick);
        std::thread::sleep(Duration::from_millis(5));
        holds(players)
    });
    assert!(held, "not within {seconds} s: {players:?}");
}

/// Lets them play for a while.
fn play(players: &mut [Player], milliseconds: u64) {
    for _ in 0..milliseconds / 5 {
        players.iter_mut().for_each(Player::tick);
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_node_that_comes_late_leaves_out_step_by_step_and_comes_back() {
    let data = TempFolder::new();
    let mut server = Server::start(&data, &["--shards", "1"]);
    let mut players: Vec<_> = (1..=4).map(|id| Player::join(&server, id, None)).collect();
    play_until(&mut players, 15, |players| players.iter().all(|player| player.bot.plays()));
    let mut turns = 0;
    while ladders(&server)[0]["admission_open"] == true {
        hold_up(&server, &mut players, 6);
        turns += 1;
        assert!(turns < 20, "it never gets to the end: {:?}", ladders(&server));
    }
    let ladder = ladders(&server)[0].clone();
    assert_eq!((&ladder["forced"], &ladder["degrade"]), (&false.into(), &3.into()), "{ladder}");
    for name in ["far", "mid", "send_30", "send_20", "degrade_1", "degrade_2", "degrade_3"] {
        assert!(ladder["entered"][name].as_u64() > Some(0), "{name}: {ladder}");
    }
    // Who comes now is told so; who plays goes on.
    let mut late = [Player::join(&server, 9, None)];
    play_until(&mut late, 5, |players| players[0].state() == ClientState::Denied);
    assert!(server.status()["shards"][0]["drops"]["overload"].as_u64() > Some(0));
    play_until(&mut players, 3, |players| players.iter().all(|player| player.state() == ClientState::Connected));
    // Left alone it takes the last step back within some seconds.
    let mut open = false;
    for _ in 0..30 {
        play(&mut players, 400);
        open = ladders(&server)[0]["admission_open"] == true;
        if open {
            break;
        }
    }
    assert!(open, "{:?}", ladders(&server));
    let mut late = [Player::join(&server, 9, None)];
    play_until(&mut late, 5, |players| players[0].bot.plays());
    assert!(players.iter().all(|player| player.state() == ClientState::Connected), "{players:?}");
    assert_eq!(server.stop(), 0);
    let output = server.run(&["replay", "--json", &format!("{}/flight", data.path())]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("replay says JSON");
    assert!(output.status.success() && report["mismatches"] == 0, "the decrees are in the record: {report}");
    assert!(report["hashes_compared"].as_u64() > Some(60), "{report}");
}

/// Plays until all ladders are as wanted, within some seconds.
fn play_until_ladders(server: &Server, players: &mut [Player], is_wanted: impl Fn(&serde_json::Value) -> bool) {
    let held = (0..50).any(|_| {
        play(players, 100);
        ladders(server).iter().all(&is_wanted)
    });
    assert!(held, "{:?}", ladders(server));
}

/// `tune` with `--json`: the exit code and the object.
fn tune(server: &Server, data: &TempFolder, words: &[&str]) -> (i32, serde_json::Value) {
    let output = server.run(&[&["tune", "--json"], words, &["--data", data.path()]].concat());
    let value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    (output.status.code().expect("it was not killed"), value)
}

#[test]
fn every_step_is_forced_seen_and_let_go() {
    let data = TempFolder::new();
    let mut server = Server::start(&data, &["--shards", "2"]);
    let mut players: Vec<_> = (1..=6).map(|id| Player::join(&server, id, Some((2_048 * 256, 1_000 * 256)))).collect();
    play_until(&mut players, 15, |players| players.iter().all(|player| player.bot.plays()));
    let names = ["none", "far", "mid", "send_30", "send_20", "degrade_1", "degrade_2", "degrade_3", "admission"];
    for (step, name) in names.iter().enumerate() {
        let (code, change) = tune(&server, &data, &["set", "load.step", &step.to_string()]);
        assert_eq!((code, &change["to"]), (0, &step.to_string().into()), "{change}");
        // The decree is in force a fifth of a second after the next report, and reported after that.
        play_until_ladders(&server, &mut players, |ladder| {
            ladder["step"] == step
                && ladder["name"] == *name
                && ladder["forced"] == true
                && ladder["admission_open"] == (step < 8)
                && ladder["degrade"] == step.saturating_sub(4).min(3)
        });
    }
    let mut late = [Player::join(&server, 9, None)];
    play_until(&mut late, 5, |players| players[0].state() == ClientState::Denied);
    assert_eq!(tune(&server, &data, &["set", "load.step", "auto"]).0, 0);
    play_until_ladders(&server, &mut players, |ladder| ladder["forced"] == false);
    assert!(players.iter().all(|player| player.state() == ClientState::Connected), "{players:?}");
    let tuned = server.status()["tuned"].as_array().expect("a list").clone();
    assert_eq!((tuned.len(), &tuned[9]["key"], &tuned[9]["to"]), (10, &"load.step".into(), &"\"auto\"".into()));
    assert!(tuned[0]["pid"].as_u64() > Some(0) && tuned[0]["uid"].is_u64(), "{tuned:?}");
    server.signal("-TERM");
    let (code, said) = server.wait(Duration::from_secs(10), || ());
    assert_eq!(code, Some(0));
    assert!(said.contains("tuned load.step from \"auto\" to 0 by uid "), "{said}");
    assert!(said.contains("degrade level 2 of 3") && said.contains("nobody more is admitted"), "{said}");
}

#[test]
fn live_keys_are_set_and_others_are_refused_by_name() {
    let data = TempFolder::new();
    let mut server = Server::start(&data, &["--shards", "1"]);
    let mut player = [Player::join(&server, 1, None)];
    play_until(&mut player, 15, |players| players[0].bot.plays());
    assert_eq!(tune(&server, &data, &["set", "net.send_hz", "10"]).0, 0);
    let sent = || server.status()["shards"][0]["packets_out"].as_u64().expect("a count");
    let before = sent();
    play(&mut player, 2_400);
    let rate = (sent() - before) / 3;
    assert!((5..20).contains(&rate), "10 snapshots a second and no more: {rate}");
    let (code, shown) = tune(&server, &data, &["show"]);
    assert_eq!((code, &shown["net.send_hz"]["value"], &shown["net.send_hz"]["live"]), (0, &"10".into(), &true.into()));
    assert!(shown["net.send_hz"]["origin"].as_str().expect("words").starts_with("tuned by uid "), "{shown}");
    assert_eq!(
        (&shown["node.shards"]["origin"], &shown["node.shards"]["live"]),
        (&"flag --shards".into(), &false.into())
    );
    for (key, value, said) in [
        ("net.send_hz", "99", "from 1 to 60, found 99"),
        ("net.sned_hz", "30", "did you mean net.send_hz?"),
        ("node.shards", "2", "read at start alone"),
    ] {
        let (code, refused) = tune(&server, &data, &["set", key, value]);
        assert!(code == 78 && refused["error"].as_str().expect("words").contains(said), "{refused}");
    }
    assert_eq!(tune(&server, &data, &["show"]).1["net.send_hz"]["value"], "10");
    let watch = server.run(&["tune", "watch", "--json", "--count", "2", "--data", data.path()]);
    let lines: Vec<serde_json::Value> =
        watch.stdout.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    assert!(watch.status.success() && lines.len() == 2 && lines[1]["tick"].as_u64() > lines[0]["tick"].as_u64());
    for field in ["busy", "tick_us", "sessions", "entities", "ladder", "late_parcels", "drops"] {
        assert!(!lines[0]["shards"][0][field].is_null(), "{field}: {}", lines[0]);
    }
    let words = server.run(&["tune", "watch", "--count", "1", "--data", data.path()]);
    let words = String::from_utf8(words.stdout).expect("text");
    assert!(words.lines().count() == 3 && !words.contains('\x1b') && words.contains("0 none"), "{words}");
    assert_eq!(server.stop(), 0);
    assert_eq!(tune(&server, &data, &["show"]).0, 69, "nobody there");
}
