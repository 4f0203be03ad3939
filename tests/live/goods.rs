//! Goods on the real daemon: trades between real clients, and disks that fill up or fail.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use ringshard::realm::bots::trader::Trader;

use crate::client::Player;
use crate::play;
use crate::server::{Server, TempFolder};

#[test]
fn two_players_trade_and_the_files_agree() {
    let data = TempFolder::new();
    let mut server = Server::start(&data, &["--shards", "2"]);
    let mut players: Vec<_> = (1..=2).map(|id| Player::join(&server, id, Some((1_000 * 256, 1_000 * 256)))).collect();
    for (number, player) in (0u64..).zip(&mut players) {
        player.bot.trader = Some(Trader::new(7, number));
    }
    play(&mut players, 10, |player| player.bot.plays());
    let ids: Vec<_> = players.iter().map(|player| player.bot.entity()).collect();
    (players[0].bot.friend, players[1].bot.friend) = (ids[1], ids[0]);
    play(&mut players, 40, |player| {
        let counts = player.bot.trader.as_ref().expect("it trades").counts;
        counts.trades >= 3 && counts.acked >= 8
    });
    let status = server.status();
    assert_eq!(status["conserved"], true, "{status}");
    assert!(status["keeper"]["orders"].as_u64() > Some(10), "{status}");
    let made = server.run(&["admin", "--data", data.path(), "checkpoint", "--json"]);
    let made: serde_json::Value = serde_json::from_slice(&made.stdout).expect("an answer is JSON");
    assert_eq!(server.stop(), 0);
    for folder in [data.path(), made["text"].as_str().expect("where it is")] {
        let output = server.run(&["inspect", "--check", folder, "--json"]);
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("a report is JSON");
        assert_eq!(output.status.code(), Some(0), "{report}");
        assert_eq!((&report["ledger"]["conserved"], &report["characters"]), (&true.into(), &2.into()), "{report}");
    }
    let item = server.run(&["inspect", "item", "1", data.path(), "--json"]);
    let item: serde_json::Value = serde_json::from_slice(&item.stdout).expect("a history is JSON");
    assert!(item["steps"].as_array().is_some_and(|steps| !steps.is_empty()), "{item}");
    assert_eq!(server.run(&["inspect", "item", "999999", data.path()]).status.code(), Some(1));
    assert_eq!(server.run(&["inspect", "nonsense", data.path()]).status.code(), Some(2));
}

/// A file system of its own, gone at the end.
struct Mount {
    at: PathBuf,
    image: Option<PathBuf>,
}

impl Mount {
    /// None where this may not be: then it says what is missing.
    fn new(name: &str, arguments: &[&str], image: Option<PathBuf>) -> Option<Mount> {
        let at = std::env::temp_dir().join(format!("ringshard-mount-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&at).expect("a new folder");
        let mounted =
            Command::new("mount").args(arguments).arg(&at).output().is_ok_and(|output| output.status.success());
        if !mounted {
            eprintln!("skipped: `mount {}` needs root and, for images, loop devices", arguments.join(" "));
        }
        let mount = Mount { at, image };
        mounted.then_some(mount)
    }

    fn data(&self) -> String {
        self.at.join("data").to_str().expect("a plain name").to_owned()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.at).output();
        let _ = std::fs::remove_dir(&self.at);
        self.image.iter().for_each(|image| drop(std::fs::remove_file(image)));
    }
}

#[test]
fn a_nearly_full_disk_closes_admission_and_nothing_else() {
    let Some(mount) = Mount::new("full", &["-t", "tmpfs", "-o", "size=140m", "tmpfs"], None) else { return };
    let mut server = Server::start_in(mount.data(), &["--shards", "1", "--record", "off"]);
    let mut players = vec![Player::join(&server, 1, None)];
    play(&mut players, 10, |player| player.bot.plays());
    std::fs::write(mount.at.join("fill"), vec![0; 80 << 20]).expect("there is room");
    let end = Instant::now() + Duration::from_secs(10);
    while server.status()["keeper"]["disk_full"] != true {
        assert!(Instant::now() < end, "it does not notice");
    }
    let mut late = vec![Player::join(&server, 2, None)];
    for _ in 0..300 {
        players.iter_mut().chain(&mut late).for_each(Player::tick);
        std::thread::sleep(Duration::from_millis(4));
    }
    assert!(players[0].bot.plays() && !late[0].bot.plays(), "who plays goes on, and nobody is admitted");
    std::fs::remove_file(mount.at.join("fill")).expect("it is there");
    let end = Instant::now() + Duration::from_secs(10);
    while server.status()["keeper"]["disk_full"] != false {
        assert!(Instant::now() < end, "it does not notice");
    }
    play(&mut [Player::join(&server, 3, None)], 10, |player| player.bot.plays());
    assert_eq!(server.stop(), 0);
}

#[test]
fn a_disk_that_fails_ends_the_process_at_once() {
    let image = std::env::temp_dir().join(format!("ringshard-image-{}", std::process::id()));
    let name = image.to_str().expect("a plain name").to_owned();
    let made = Command::new("truncate").args(["-s", "200M", &name]).status().is_ok_and(|status| status.success())
        && Command::new("mkfs.ext4").args(["-q", &name]).output().is_ok_and(|output| output.status.success());
    if !made || Command::new("python3").arg("--version").output().is_err() {
        eprintln!("skipped: this needs mkfs.ext4 (`apt install e2fsprogs`) and python3");
        return;
    }
    let Some(mount) = Mount::new("fails", &["-o", "loop", &name], Some(image)) else { return };
    let mut server = Server::start_in(mount.data(), &["--shards", "1", "--record", "off"]);
    let mut players: Vec<_> = (1..=4).map(|id| Player::join(&server, id, None)).collect();
    play(&mut players, 10, |player| player.bot.plays());
    // FS_IOC_SHUTDOWN without a flush: every write fails from now on.
    let shut =
        "import fcntl,os,struct,sys; fcntl.ioctl(os.open(sys.argv[1],os.O_RDONLY),0x8004587d,struct.pack('I',2))";
    let status = Command::new("python3").args(["-c", shut]).arg(&mount.at).status().expect("python3 runs");
    assert!(status.success());
    let (code, said) = server.wait(Duration::from_secs(10), || players.iter_mut().for_each(Player::tick));
    assert_eq!(code, Some(74), "{said}");
    assert!(said.contains("all that was acknowledged is kept"), "{said}");
}
