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
        play_until(&mut players, 1, |_| true);
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
