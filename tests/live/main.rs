//! The real daemon over real sockets: joining, playing, bad input, ends and restarts.

mod client;
mod cuts;
mod goods;
mod mmsg;
mod overload;
mod requests;
mod server;
mod stall;

use std::io::Write;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use client::{Player, TcpTool, dev_token, token};
use ringshard::wire::body::PONG_MARKER;
use ringshard::wire::generated::tables::Close;
use ringshard::wire::transport::token::UserData;
use server::{Server, TempFolder};

/// Runs players together until each says it is done, at most so many seconds.
fn play(players: &mut [Player], seconds: u64, done: impl Fn(&Player) -> bool) {
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end && !players.iter().all(&done) {
        players.iter_mut().for_each(Player::tick);
        std::thread::sleep(Duration::from_millis(4));
    }
    assert!(players.iter().all(done), "not done within {seconds} s: {players:?}");
}

/// Twenty players who join, walk and see each other without a contradiction.
fn walk_about(server: &Server) -> Vec<Player> {
    let mut players: Vec<_> =
        (1..=20).map(|id| Player::join(server, id, Some((1_000 * 256 + id as i32 * 200, 1_000 * 256)))).collect();
    play(&mut players, 20, |player| {
        player.bot.counts.moved_m > 6.0 && player.bot.session.view().visible(player.newest_tick(), 120) >= 19
    });
    for player in &players {
        let errors = player.bot.errors();
        assert_eq!((errors.jump, errors.twice, errors.never_leaves, errors.other), (0, 0, 0, 0), "{player:?}");
        assert_eq!(player.bot.counts.own_position, 0, "{player:?}");
    }
    players
}

#[test]
fn players_walk_see_each_other_and_are_saved() {
    let data = TempFolder::new();
    let mut server = Server::start(&data, &["--shards", "2"]);
    let players = walk_about(&server);
    assert_eq!(server.stop(), 0);
    let rows = server.inspect();
    for player in &players {
        let row = rows.iter().find(|row| row["client_id"] == player.client_id).expect("the character is there");
        let (x, y) = player.position_m();
        let (dx, dy) = (row["x_m"].as_f64().unwrap() - x, row["y_m"].as_f64().unwrap() - y);
        assert!(dx.hypot(dy) < 5.0, "{row} and {x} {y}");
    }
}

#[test]
fn kill_9_loses_at_most_some_seconds_of_walking() {
    let data = TempFolder::new();
    let mut server = Server::start(&data, &["--shards", "2"]);
    let mut players: Vec<_> = (1..=30).map(|id| Player::join(&server, id, None)).collect();
    play(&mut players, 30, |player| player.bot.counts.moved_m > 10.0);
    server.kill();
    let told: Vec<_> = players.iter().map(|player| (player.client_id, player.position_m())).collect();
    let mut server = Server::start(&data, &["--shards", "1"]);
    assert_eq!(server.recovered, 30);
    assert_eq!(server.stop(), 0);
    let rows = server.inspect();
    for (client_id, (x, y)) in told {
        let row = rows.iter().find(|row| row["client_id"] == client_id).expect("the character is there");
        let (dx, dy) = (row["x_m"].as_f64().unwrap() - x, row["y_m"].as_f64().unwrap() - y);
        assert!(dx.hypot(dy) <= 5.0 * 5.0, "at most 5 s of running: {row} and {x} {y}");
    }
}

#[test]
fn a_character_goes_on_where_it_was() {
    let data = TempFolder::new();
    let mut server = Server::start(&data, &["--shards", "2"]);
    let mut player = [Player::join(&server, 7, Some((1_500 * 256, 1_500 * 256)))];
    play(&mut player, 15, |player| player.bot.counts.moved_m > 5.0);
    player[0].leave();
    let (x, y) = player[0].position_m();
    let mut again = [Player::join(&server, 7, None)];
    play(&mut again, 10, |player| player.bot.plays());
    let (nx, ny) = again[0].position_m();
    assert!((nx - x).hypot(ny - y) < 10.0, "left at {x} {y}, came back at {nx} {ny}");
    assert_eq!(server.stop(), 0);
}

#[test]
fn a_newer_token_cuts_the_older_session() {
    let data = TempFolder::new();
    let server = Server::start(&data, &["--shards", "2"]);
    let mut old = [Player::join(&server, 5, None)];
    play(&mut old, 10, |player| player.bot.plays());
    let mut both = [Player::join(&server, 5, None), old.into_iter().next().expect("one")];
    play(&mut both, 10, |player| player.bot.closed.is_some() || player.bot.plays());
    play(&mut both[..1], 10, |player| player.bot.plays());
    play(&mut both[1..], 10, |player| player.bot.closed == Some(Close::NewerSession));
}

#[test]
fn what_is_no_good_token_never_joins() {
    let data = TempFolder::new();
    let server = Server::start(&data, &["--shards", "1"]);
    let user_data = UserData::default();
    let good = dev_token(server.game, 1, 3_600, user_data);
    let foreign = token(&[9; 32], server.game, 1, 3_600, user_data);
    let elsewhere = dev_token("127.0.0.1:9".parse().unwrap(), 1, 3_600, user_data);
    let mut altered = good.clone();
    altered[100] ^= 1;
    for bad in [&foreign, &elsewhere, &altered] {
        assert!(TcpTool::open(server.game).sees_refusal(bad), "TCP");
    }
    let expired = dev_token(server.game, 1, 0, user_data);
    assert!(TcpTool::open(server.game).sees_refusal(&expired), "expired");
    let mut first = TcpTool::open(server.game);
    first.send_frame(&good);
    first.ping(3, Duration::from_secs(5));
    assert!(TcpTool::open(server.game).sees_refusal(&good), "a token is used up by one connection");
    let status = server.status();
    let drops = &status["shards"][0]["drops"];
    for reason in ["token_seal", "other_server", "token_expired"] {
        assert!(drops[reason].as_u64() > Some(0), "{reason} is counted: {drops}");
    }
    let used = drops["token_used"].as_u64().unwrap() + drops["claims_refused"].as_u64().unwrap();
    assert!(used > 0, "by its lane, or by the keeper when it came to another lane: {drops}");
}

#[test]
fn a_tool_as_simple_as_tcpkali_drives_it() {
    let data = TempFolder::new();
    let server = Server::start(&data, &["--shards", "2"]);
    let frame = |kind: &str| server.run(&["frame", kind]).stdout;
    let reusable = dev_token(server.game, 1, 3_600, UserData { reusable: true, ..UserData::default() });
    let (input, ping) = (frame("input"), frame("ping"));
    let mut tools: Vec<_> = (0..40).map(|_| TcpTool::open(server.game)).collect();
    tools.iter_mut().for_each(|tool| tool.send_frame(&reusable));
    for round in 0..60 {
        for tool in &mut tools {
            tool.stream.write_all(&input).unwrap();
            if round % 3 == 0 {
                tool.stream.write_all(&ping).unwrap();
            }
            tool.read_available();
        }
        std::thread::sleep(Duration::from_millis(16));
    }
    for tool in &mut tools {
        tool.read_until(Duration::from_secs(5), |bytes| count(bytes, &PONG_MARKER) == 20);
        assert_eq!(count(&tool.received, &PONG_MARKER), 20, "each ping is answered once");
    }
    let entities: u64 =
        server.status()["shards"].as_array().unwrap().iter().map(|shard| shard["sessions"].as_u64().unwrap()).sum();
    assert_eq!(entities, 40, "each connection is a guest of its own");
}

fn count(bytes: &[u8], marker: &[u8]) -> usize {
    bytes.windows(marker.len()).filter(|window| *window == marker).count()
}

#[test]
fn any_bytes_change_nothing() {
    let data = TempFolder::new();
    let mut server = Server::start(&data, &["--shards", "1"]);
    let mut player = [Player::join(&server, 1, None)];
    play(&mut player, 10, |player| player.bot.plays());
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    let (mut sent, mut answered, mut random) = (0u64, 0u64, 1u64);
    let mut bytes = [0u8; 1_400];
    for round in 0..20_000usize {
        for byte in &mut bytes {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = (random >> 56) as u8;
        }
        let length = [0, 1, 17, 18, 100, 333, 1_077, 1_078, 1_079, 1_400][round % 10];
        if round % 3 == 0 {
            bytes[0] = 0;
            bytes[1..14].copy_from_slice(b"NETCODE 1.02\0");
        }
        sent += socket.send_to(&bytes[..length], server.game).unwrap() as u64;
        let mut answer = [0; 2_048];
        while let Ok(length) = socket.recv(&mut answer) {
            answered += length as u64;
        }
        if round % 200 == 0 {
            player[0].tick();
        }
    }
    assert!(answered <= sent, "{answered} bytes for {sent}");
    for round in 0..200u64 {
        let mut tool = TcpTool::open(server.game);
        let _ = tool.stream.write_all(&bytes[round as usize..round as usize * 6 + 40]);
    }
    let mut tool = TcpTool::open(server.game);
    tool.send_frame(&dev_token(server.game, 2, 3_600, UserData::default()));
    for round in 0..500usize {
        // Well framed, but the body is noise.
        tool.send_frame(&bytes[round..round + 1 + round % 800]);
    }
    tool.ping(1, Duration::from_secs(5));
    play(&mut player, 10, |player| player.bot.counts.moved_m > 3.0);
    let status = server.status();
    assert!(status["rss_bytes"].as_u64().unwrap() < 600 << 20, "memory is bounded: {}", status["rss_bytes"]);
    let drops = status["shards"][0]["drops"].clone();
    for reason in ["protocol", "body_malformed", "stream_malformed", "unknown_peer"] {
        assert!(drops[reason].as_u64() > Some(0), "{reason} is counted: {drops}");
    }
    assert_eq!(server.stop(), 0);
}

/// A flight record that was set aside for a reason.
fn kept(data: &TempFolder, reason: &str) -> Option<String> {
    let kept = std::fs::read_dir(format!("{}/flight/kept", data.path())).expect("the node records");
    let mut paths = kept.map(|entry| entry.expect("a folder").path().display().to_string());
    paths.find(|path| path.ends_with(reason))
}

/// Runs `replay --json`; the exit code and the object.
fn replay(server: &Server, arguments: &[&str]) -> (i32, serde_json::Value) {
    let output = server.run(&[&["replay", "--json"], arguments].concat());
    let value = serde_json::from_slice(&output.stdout).expect("replay says JSON");
    (output.status.code().expect("it was not killed"), value)
}

#[test]
fn a_flight_record_replays_and_says_what_is_altered() {
    let data = TempFolder::new();
    let mut server = Server::start(&data, &["--shards", "2"]);
    let mut players: Vec<_> =
        (1..=30).map(|id| Player::join(&server, id, Some((2_048 * 256, 1_000 * 256 + id as i32 * 200)))).collect();
    play(&mut players, 20, |player| player.bot.counts.moved_m > 6.0);
    let asked = server.run(&["admin", "--data", data.path(), "record"]);
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    let kept = String::from_utf8(asked.stdout).expect("a path").trim().to_owned();
    let status = server.status();
    for shard in status["shards"].as_array().unwrap() {
        assert!(shard["record"]["bytes"].as_u64() > Some(10_000) && shard["record"]["dropped"] == 0, "{shard}");
    }
    let entity = server.run(&["admin", "--data", data.path(), "players"]);
    let entity = String::from_utf8(entity.stdout).expect("a table");
    let entity = entity.split_whitespace().nth(1).expect("an entity").to_owned();
    assert_eq!(server.stop(), 0);
    let flight = format!("{}/flight", data.path());
    for folder in [kept.as_str(), flight.as_str(), data.path()] {
        let (code, report) = replay(&server, &[folder]);
        assert_eq!((code, &report["mismatches"], &report["shards"]), (0, &0.into(), &2.into()), "{folder}: {report}");
        assert!(report["ended_early"].is_null() && report["hashes_compared"].as_u64() > Some(120), "{report}");
    }
    let (code, report) = replay(&server, &[&flight, "--until", "150", "--entity", &entity]);
    assert!(code == 0 && report["to_tick"].as_u64() <= Some(150), "{report}");
    assert!(report["history"].as_array().expect("a history").len() > 5, "{report}");
    let file = format!("{flight}/shard-1/{:020}.flight", 0);
    let mut bytes = std::fs::read(&file).unwrap();
    let whole = bytes.clone();
    bytes[5_000] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    let (code, report) = replay(&server, &[&flight]);
    assert!(code == 74 && report["detail"]["file"] == file.as_str(), "{report}");
    assert!(report["detail"]["offset"].as_u64().is_some_and(|offset| offset <= 5_000), "{report}");
    std::fs::write(&file, &whole[..whole.len() - 9_000]).unwrap();
    assert_eq!(replay(&server, &[&flight]).0, 74, "cut short");
    std::fs::remove_dir_all(format!("{flight}/shard-1")).unwrap();
    assert_eq!(replay(&server, &[&flight]).0, 74, "a shard is missing");
    assert_eq!(replay(&server, &["/"]).0, 69);
}

#[test]
fn a_crash_leaves_a_record_and_off_leaves_none() {
    let data = TempFolder::new();
    let mut server = Server::start(&data, &["--shards", "2"]);
    let mut player = [Player::join(&server, 1, None)];
    play(&mut player, 15, |player| player.bot.counts.moved_m > 5.0);
    // A second without the core: the ticks are skipped, and the record of it is set aside.
    server.signal("-STOP");
    std::thread::sleep(Duration::from_millis(1_200));
    server.signal("-CONT");
    std::thread::sleep(Duration::from_millis(1_500));
    server.signal("-USR2");
    std::thread::sleep(Duration::from_millis(500));
    for reason in ["-overrun", "-request"] {
        let folder = kept(&data, reason).expect(reason);
        let (code, report) = replay(&server, &[&folder]);
        assert_eq!((code, &report["mismatches"]), (0, &0.into()), "{folder}: {report}");
    }
    server.kill();
    let (code, report) = replay(&server, &[data.path()]);
    assert_eq!((code, &report["mismatches"]), (0, &0.into()), "{report}");
    assert!(report["ended_early"]["reason"].is_string(), "{report}");
    let mut server = Server::start(&data, &["--shards", "1", "--record", "off"]);
    assert!(server.status()["shards"][0]["record"].is_null());
    let refused = server.run(&["admin", "--data", data.path(), "record"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--record on"), "{refused:?}");
    assert_eq!(server.stop(), 0);
    let mut server = Server::start(&data, &["--shards", "1"]);
    assert_eq!(server.stop(), 0);
    let folder = kept(&data, "-crash").expect("set aside by the next start that records");
    assert_eq!(replay(&server, &[&folder]).0, 0);
}

#[test]
fn silent_streams_are_reaped() {
    let data = TempFolder::new();
    let server = Server::start(&data, &["--shards", "1"]);
    let mut mute = TcpTool::open(server.game);
    let closed = mute.read_until(Duration::from_secs(12), |_| false);
    assert!(closed, "who shows no token goes");
}

#[test]
fn a_second_node_is_told_what_is_in_its_way() {
    let data = TempFolder::new();
    let server = Server::start(&data, &["--shards", "1"]);
    let (game, other) = (server.game.to_string(), TempFolder::new());
    let same_folder = server.run(&[
        "serve",
        "--dev",
        "--shards",
        "1",
        "--bind",
        "127.0.0.1:0",
        "--control",
        "127.0.0.1:0",
        "--data",
        data.path(),
    ]);
    assert_eq!(same_folder.status.code(), Some(73), "{}", String::from_utf8_lossy(&same_folder.stderr));
    let same_port = server.run(&[
        "serve",
        "--dev",
        "--shards",
        "1",
        "--bind",
        &game,
        "--control",
        "127.0.0.1:0",
        "--data",
        other.path(),
    ]);
    assert_eq!(same_port.status.code(), Some(69), "{}", String::from_utf8_lossy(&same_port.stderr));
}
