//! A real node that cannot keep up: what it leaves out, in order, and how it comes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use ringshard::limits::NPCS_MAX;
use ringshard::shard::SHARD_NICE;
use ringshard::wire::transport::netcode_client::ClientState;

use super::client::Player;
use super::server::{Server, TempFolder};

/// The ladder of each shard.
fn ladders(server: &Server) -> Vec<serde_json::Value> {
    let shards = server.status()["shards"].as_array().expect("a list").clone();
    shards.iter().map(|shard| shard["ladder"].clone()).collect()
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

/// A node of one shard with so much wildlife.
fn with_wildlife(data: &TempFolder, npcs: u32) -> Server {
    let folder = TempFolder::new();
    let config = format!("{}/ringshard.toml", folder.path());
    std::fs::write(&config, format!("[world]\nnpcs = {npcs}\n")).expect("a file");
    Server::start(data, &["--shards", "1", "--config", &config])
}

/// Wildlife whose turns take this build about two fifths of a core.
fn wildlife_of_two_fifths() -> u32 {
    const TRIED: u32 = 20_000;
    let data = TempFolder::new();
    let mut server = with_wildlife(&data, TRIED);
    // Until two reports say about the same: at first the wildlife is not all there, and other tests have the core.
    let mut before = 0.0;
    let settled = (0..20).find_map(|_| {
        std::thread::sleep(Duration::from_millis(500));
        let share = server.status()["shards"][0]["cpu_share"].as_f64().expect("a share");
        let is_settled = share > 0.0 && (share - before).abs() < share / 8.0;
        before = share;
        is_settled.then_some(share)
    });
    let share = settled.expect("it settles within 10 s");
    assert_eq!(server.stop(), 0);
    ((f64::from(TRIED) * 0.4 / share) as u32).min(NPCS_MAX)
}

/// Threads that use a CPU as far as the kernel lets them, until told to stop.
struct Neighbours {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Neighbours {
    /// On the core of the only shard. Without the right to the nice level they have that of the shard, which lacks it too.
    fn of(server: &Server, count: usize, nice: i32) -> Neighbours {
        // A shard reports four times a second, and players may be in before it did.
        let reported = (0..100).find_map(|_| {
            std::thread::sleep(Duration::from_millis(50));
            server.status()["shards"][0]["cpu"].as_u64()
        });
        let cpu = reported.expect("it reports within 5 s") as usize;
        let stop = Arc::new(AtomicBool::new(false));
        let spin = move |stop: Arc<AtomicBool>| {
            ringshard::sys::set_thread_cpus(&[cpu]).expect("the shard runs there as well");
            let _ = ringshard::sys::set_thread_nice(nice);
            while !stop.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        };
        let spinner = |_| {
            let stop = stop.clone();
            std::thread::spawn(move || spin(stop))
        };
        Neighbours { threads: (0..count).map(spinner).collect(), stop }
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().expect("it only spins"));
    }
}

#[test]
fn a_node_with_much_work_and_a_part_of_a_core_leaves_out_and_comes_back() {
    let data = TempFolder::new();
    let mut server = with_wildlife(&data, wildlife_of_two_fifths());
    let mut players: Vec<_> = (1..=4).map(|id| Player::join_patient(&server, id, None)).collect();
    play_until(&mut players, 30, |players| players.iter().all(|player| player.bot.plays()));
    let neighbours = Neighbours::of(&server, 3, SHARD_NICE);
    play_until_ladders(&server, &mut players, |ladder| ladder["step"].as_u64() >= Some(2));
    neighbours.end();
    let top = ladders(&server)[0]["step"].as_u64().expect("a number");
    play_until_ladders(&server, &mut players, |ladder| ladder["step"].as_u64() < Some(top));
    let ladder = ladders(&server)[0].clone();
    assert!(ladder["forced"] == false && ladder["entered"]["far"].as_u64() > Some(0), "{ladder}");
    assert!(players.iter().all(|player| player.state() == ClientState::Connected), "{players:?}");
    assert_eq!(server.stop(), 0);
}

#[test]
fn a_node_with_two_players_leaves_nothing_out_however_busy_its_neighbours_are() {
    let data = TempFolder::new();
    let mut server = with_wildlife(&data, 0);
    let mut players: Vec<_> = (1..=2).map(|id| Player::join(&server, id, None)).collect();
    play_until(&mut players, 15, |players| players.iter().all(|player| player.bot.plays()));
    let neighbours = Neighbours::of(&server, 16, -19);
    play(&mut players, 10_000);
    let status = server.status();
    neighbours.end();
    let shard = &status["shards"][0];
    assert!(shard["drops"]["late_edges"].as_u64() > Some(5), "they took the core: {shard}");
    let ladder = &shard["ladder"];
    assert_eq!((&ladder["name"], &ladder["admission_open"]), (&"none".into(), &true.into()), "{ladder}");
    let entered = ladder["entered"].as_object().expect("by name").values();
    assert_eq!(entered.filter_map(serde_json::Value::as_u64).sum::<u64>(), 0, "{ladder}");
    assert_eq!(server.stop(), 0);
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
    // Left alone it takes the last step back within some seconds.
    play_until_ladders(&server, &mut players, |ladder| ladder["forced"] == false && ladder["admission_open"] == true);
    let mut late = [Player::join(&server, 9, None)];
    play_until(&mut late, 5, |players| players[0].bot.plays());
    assert!(players.iter().all(|player| player.state() == ClientState::Connected), "{players:?}");
    let tuned = server.status()["tuned"].as_array().expect("a list").clone();
    assert_eq!((tuned.len(), &tuned[9]["key"], &tuned[9]["to"]), (10, &"load.step".into(), &"\"auto\"".into()));
    assert!(tuned[0]["pid"].as_u64() > Some(0) && tuned[0]["uid"].is_u64(), "{tuned:?}");
    server.signal("-TERM");
    let (code, said) = server.wait(Duration::from_secs(10), || ());
    assert_eq!(code, Some(0));
    assert!(said.contains("tuned load.step from \"auto\" to 0 by uid "), "{said}");
    assert!(said.contains("degrade level 2 of 3") && said.contains("nobody more is admitted"), "{said}");
    let output = server.run(&["replay", "--json", &format!("{}/flight", data.path())]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("replay says JSON");
    assert!(output.status.success() && report["mismatches"] == 0, "the decrees are in the record: {report}");
    assert!(report["hashes_compared"].as_u64() > Some(60), "{report}");
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
