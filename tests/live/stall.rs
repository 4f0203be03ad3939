//! A shard of a real node that stands still: the others go on, its players freeze and recover, and what hangs for ever
//! ends the node.

#![expect(unsafe_code, reason = "a thread is stopped by ptrace, which libc has without a safe form")]

use std::time::{Duration, Instant};

use serde_json::json;

use super::client::Player;
use super::server::{Server, TempFolder};
use super::{play, replay};

/// One thread of another process, stopped until this is dropped.
struct Stopped(libc::pid_t);

impl Stopped {
    /// Stops the thread of a daemon that has this name.
    fn thread(server: &Server, name: &str) -> Stopped {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", server.pid())).expect("it runs");
        let tasks = tasks.map(|task| task.expect("a thread").path());
        let named = |task: &std::path::PathBuf| {
            std::fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim_end() == name)
        };
        let task = tasks.into_iter().find(named).expect("the thread is there");
        let id: libc::pid_t = task.file_name().and_then(|id| id.to_str()?.parse().ok()).expect("a thread id");
        // SAFETY: without addresses; these calls touch no memory of ours but the status, which is a place for it.
        unsafe {
            assert_eq!(libc::ptrace(libc::PTRACE_SEIZE, id, 0usize, 0usize), 0, "{}", std::io::Error::last_os_error());
            assert_eq!(
                libc::ptrace(libc::PTRACE_INTERRUPT, id, 0usize, 0usize),
                0,
                "{}",
                std::io::Error::last_os_error()
            );
            let mut status = 0;
            assert_eq!(libc::waitpid(id, &raw mut status, libc::__WALL), id);
        }
        Stopped(id)
    }

    /// Lets the kernel forget the thread if its process ended: before that nobody hears of the end.
    fn reap(&self) {
        // SAFETY: without addresses.
        unsafe { libc::waitpid(self.0, std::ptr::null_mut(), libc::__WALL | libc::WNOHANG) };
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // SAFETY: without addresses; a thread that is gone meanwhile is an error that changes nothing.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.0, 0usize, 0usize) };
    }
}

/// Lets them play for a while.
fn play_for(players: &mut [Player], time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        players.iter_mut().for_each(Player::tick);
        std::thread::sleep(Duration::from_millis(4));
    }
}

#[test]
fn a_shard_that_stands_still_freezes_its_players_and_they_recover() {
    let data = TempFolder::new();
    let mut server = Server::start(&data, &["--shards", "2"]);
    // Around a border of the two shards, with sessions on both.
    let spawn = |id: u64| Some((2_048 * 256 + (id % 4) as i32 * 900 - 1_500, (1_000 + id as i32 * 3) * 256));
    let mut players: Vec<_> = (1..=16).map(|id| Player::join_patient(&server, id, spawn(id))).collect();
    play(&mut players, 20, |player| player.bot.counts.moved_m > 6.0);
    for (shard, stall_ms) in [(0, 100), (1, 100), (1, 1_100), (0, 1_100), (0, 8_000), (1, 8_000)] {
        let stopped = Stopped::thread(&server, &format!("shard-{shard}"));
        play_for(&mut players, Duration::from_millis(stall_ms));
        drop(stopped);
        play_for(&mut players, Duration::from_millis(1_000));
        let newest = players.iter().map(Player::newest_tick).max().expect("some play");
        for player in &players {
            assert!(newest - player.newest_tick() < 60, "it hears of the present again: {player:?}");
        }
        let before: Vec<f64> = players.iter().map(|player| player.bot.counts.moved_m).collect();
        let walks = |player: &Player| player.bot.counts.moved_m > before[player.client_id as usize - 1] + 2.0;
        play(&mut players, 20, walks);
    }
    for player in &players {
        // Who catches up by its time credit makes a jump; nothing else is explained by a pause.
        let errors = player.bot.errors();
        assert_eq!((errors.twice, errors.never_leaves, errors.other), (0, 0, 0), "{player:?}");
        assert_eq!((player.bot.counts.own_position, player.bot.closed), (0, None), "{player:?}");
    }
    assert_eq!(server.stop(), 0);
    let (code, report) = replay(&server, &[&format!("{}/flight", data.path())]);
    assert_eq!((code, &report["mismatches"]), (0, &json!(0)), "{report}");
}

/// Takes half a minute, so it runs where that was asked for: `RINGSHARD_LONG`.
#[test]
fn a_shard_that_hangs_ends_the_node_with_its_name_and_its_record() {
    if std::env::var_os("RINGSHARD_LONG").is_none() {
        return;
    }
    let data = TempFolder::new();
    let mut server = Server::start(&data, &["--shards", "2"]);
    let mut players: Vec<_> = (1..=4).map(|id| Player::join_patient(&server, id, None)).collect();
    play(&mut players, 20, |player| player.bot.counts.moved_m > 3.0);
    let stopped = Stopped::thread(&server, "shard-1");
    let (code, said) = server.wait(Duration::from_secs(60), || {
        players.iter_mut().for_each(Player::tick);
        stopped.reap();
    });
    drop(stopped);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("shard 1 stood still for 30 s") && said.contains("replay"), "{said}");
    let (code, report) = replay(&server, &[&format!("{}/flight", data.path())]);
    assert_eq!((code, &report["mismatches"]), (0, &json!(0)), "{report}");
    assert!(report["to_tick"].as_u64() > Some(60), "{report}");
}
