//! `tune cuts` on the real daemon: what it shows, what it refuses, and cells and lanes that move under players.

use std::time::Duration;

use serde_json::{Value, json};

use super::client::Player;
use super::server::{Server, TempFolder};
use super::{play, replay};

const SIDE: usize = 64;
const LANES: usize = 32;

/// The shard of each lane.
fn lane_shards(view: &Value) -> Vec<u64> {
    let rows = view["lanes"].as_array().expect("a list");
    rows.iter().take(LANES).map(|row| row["shard"].as_u64().expect("a shard")).collect()
}

fn sessions(view: &Value, shard: usize) -> u64 {
    view["shards"][shard]["sessions"].as_u64().expect("a count")
}

/// Runs `tune cuts --json`; the exit code and the object.
fn cuts(server: &Server, data: &TempFolder, arguments: &[&str]) -> (i32, Value) {
    let output = server.run(&[&["tune", "cuts", "--json", "--data", data.path()], arguments].concat());
    let value = serde_json::from_slice(&output.stdout).expect("tune cuts says JSON");
    (output.status.code().expect("it was not killed"), value)
}

/// Likewise, while players play: one that sends nothing for a while catches up at once, which others see as a jump.
fn cuts_meanwhile(server: &Server, data: &TempFolder, arguments: &[&str], players: &mut [Player]) -> (i32, Value) {
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| cuts(server, data, arguments));
        while !asked.is_finished() {
            players.iter_mut().for_each(Player::tick);
            std::thread::sleep(Duration::from_millis(4));
        }
        asked.join().expect("it only asks")
    })
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let data = TempFolder::new();
    let server = Server::start(&data, &["--shards", "2"]);
    let (code, before) = cuts(&server, &data, &[]);
    assert_eq!((code, before["owners"].as_array().map(Vec::len)), (0, Some(SIDE * SIDE)));
    assert_eq!(before["cuts"]["auto"], true);
    for (wrong, words) in [
        (["--move", "64,0=0"], "columns and rows are 0 to 63"),
        (["--move", "0,-1=0"], "columns and rows are 0 to 63"),
        (["--move", "3,4=2"], "shards 0 to 1"),
        (["--move", "3,4"], "as 31,32=1"),
        (["--lane", "32=0"], "they are 0 to 31"),
        (["--lane", "3=2"], "shards 0 to 1"),
        (["--lane", "3"], "as 31=1"),
        (["--auto", "perhaps"], "expected on or off"),
    ] {
        let (code, value) = cuts(&server, &data, &[&wrong[..], &["--move", "1,1=1"]].concat());
        assert_eq!(code, 2, "{value}");
        assert!(value["error"].as_str().is_some_and(|text| text.contains(words)), "{value}");
    }
    let (_, after) = cuts(&server, &data, &[]);
    assert_eq!((&after["owners"], &after["cuts"]), (&before["owners"], &before["cuts"]));
    let shards = |view: &Value| lane_shards(view);
    assert_eq!(shards(&after), (0..LANES as u64).map(|lane| lane % 2).collect::<Vec<_>>());
    let nowhere = TempFolder::new();
    assert_eq!(cuts(&server, &nowhere, &[]).0, 69);
}

#[test]
fn cells_that_are_moved_by_hand_take_their_players_along_and_replay() {
    let data = TempFolder::new();
    let mut server = Server::start(&data, &["--shards", "2"]);
    // In the middle of a cell, and on its neighbours.
    let (x, y) = (15, 15);
    let spawn = |id: i32| Some(((x * 64 + 32) * 256 + id * 100, (y * 64 + 32) * 256));
    let mut players: Vec<_> = (1..=20).map(|id| Player::join(&server, id as u64, spawn(id))).collect();
    play(&mut players, 20, |player| player.bot.counts.moved_m > 6.0);
    let (_, before) = cuts_meanwhile(&server, &data, &["--auto", "off"], &mut players);
    assert_eq!(before["cuts"]["auto"], false);
    let owner =
        |view: &Value, x: i32, y: i32| view["owners"][y as usize * SIDE + x as usize].as_u64().expect("a shard");
    let block: Vec<(i32, i32)> = (0..9).map(|at| (x - 1 + at % 3, y - 1 + at / 3)).collect();
    for turn in 1..=3 {
        let to = (owner(&before, x, y) + turn) % 2;
        let wishes: Vec<String> = block.iter().map(|(x, y)| format!("--move={x},{y}={to}")).collect();
        let wishes: Vec<&str> = wishes.iter().map(String::as_str).collect();
        let (code, after) = cuts_meanwhile(&server, &data, &wishes, &mut players);
        assert_eq!(code, 0, "{after}");
        assert!(block.iter().all(|&(x, y)| owner(&after, x, y) == to), "turn {turn}");
        assert_eq!(after["cuts"]["last_by_hand"], true);
        let sum: u64 = (0..2).map(|shard| after["shards"][shard]["cells"].as_u64().expect("a count")).sum();
        assert_eq!(sum, (SIDE * SIDE) as u64);
        play(&mut players, 10, |player| player.bot.counts.handoffs >= turn);
    }
    for player in &players {
        let errors = player.bot.errors();
        assert_eq!((errors.jump, errors.twice, errors.never_leaves, errors.other), (0, 0, 0, 0), "{player:?}");
        assert_eq!((player.bot.counts.own_position, player.bot.closed), (0, None), "{player:?}");
    }
    let status = server.status();
    let decrees = |value: &Value| value["cuts"]["decrees"].as_u64().expect("a count");
    assert_eq!(decrees(&status) - decrees(&before), 3, "{status}");
    assert!(status["shards"][0]["cost_us"]["cells"].as_f64().is_some_and(|us| us > 0.0), "{status}");
    assert_eq!(server.stop(), 0);
    let (code, report) = replay(&server, &[&format!("{}/flight", data.path())]);
    assert_eq!((code, &report["mismatches"]), (0, &json!(0)), "{report}");
}

#[test]
fn lanes_that_are_moved_by_hand_take_their_sessions_along_and_replay() {
    const PLAYERS: u64 = 96;
    let data = TempFolder::new();
    let mut server = Server::start(&data, &["--shards", "2"]);
    let spawn = |id: u64| Some((2_048 * 256 + (id % 8) as i32 * 1_500, 1_000 * 256 + (id / 8) as i32 * 1_500));
    let mut players: Vec<_> = (1..=PLAYERS).map(|id| Player::join(&server, id, spawn(id))).collect();
    play(&mut players, 20, |player| player.bot.counts.moved_m > 6.0);
    let (_, before) = cuts_meanwhile(&server, &data, &["--auto", "off"], &mut players);
    assert_eq!((0..2).map(|shard| sessions(&before, shard)).sum::<u64>(), PLAYERS, "{before}");
    let played = before["lanes"].as_array().expect("a list").iter().filter(|lane| lane["sessions"] != 0).count();
    assert!(played > LANES * 3 / 4, "{played} lanes have sessions");
    // All to one shard, all to the other, and mixed.
    let mut moved = 0;
    let mut shards = lane_shards(&before);
    for turn in 1..=8u64 {
        let to = |lane: u64| if turn.is_multiple_of(4) { (lane / 3 + turn) % 2 } else { turn % 2 };
        let wanted: Vec<u64> = (0..LANES as u64).map(to).collect();
        let wishes: Vec<String> = wanted.iter().enumerate().map(|(lane, to)| format!("--lane={lane}={to}")).collect();
        let wishes: Vec<&str> = wishes.iter().map(String::as_str).collect();
        let (code, after) = cuts_meanwhile(&server, &data, &wishes, &mut players);
        assert_eq!((code, lane_shards(&after)), (0, wanted.clone()), "turn {turn}: {after}");
        let walked = 6.0 + 3.0 * turn as f64;
        play(&mut players, 20, |player| player.bot.counts.moved_m > walked);
        let (_, later) = cuts_meanwhile(&server, &data, &[], &mut players);
        if !turn.is_multiple_of(4) {
            let at = (turn % 2) as usize;
            assert_eq!((sessions(&later, at), sessions(&later, 1 - at)), (PLAYERS, 0), "turn {turn}: {later}");
        }
        moved += wanted.iter().zip(&shards).filter(|(a, b)| a != b).count();
        shards = wanted;
    }
    assert!(moved > 100, "{moved}");
    for player in &players {
        let errors = player.bot.errors();
        assert_eq!((errors.jump, errors.twice, errors.never_leaves, errors.other), (0, 0, 0, 0), "{player:?}");
        assert_eq!((player.bot.counts.own_position, player.bot.closed), (0, None), "{player:?}");
    }
    let status = server.status();
    for shard in status["shards"].as_array().expect("a list") {
        // What the wrong shard got, or got twice, would be counted here.
        for reason in ["unknown_peer", "replayed", "seal", "silent", "body_repeated", "ack_bad"] {
            assert_eq!(shard["drops"][reason], 0, "{reason}: {shard}");
        }
    }
    let listed = server.run(&["admin", "--data", data.path(), "players"]);
    assert_eq!(String::from_utf8_lossy(&listed.stdout).lines().count(), PLAYERS as usize);
    assert_eq!(server.stop(), 0);
    let (code, report) = replay(&server, &[&format!("{}/flight", data.path())]);
    assert_eq!((code, &report["mismatches"]), (0, &json!(0)), "{report}");
}
