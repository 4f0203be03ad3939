//! The swarm against the real daemon beside it: everybody plays, crosses the seam, contradicts nothing; and what a
//! shard asks of the kernel does not grow with its players.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};

/// Held by a test while its players play: another one's, and strace, would take the cores from them.
static CORES: Mutex<()> = Mutex::new(());

fn swarm_program() -> &'static str {
    env!("CARGO_BIN_EXE_ringshard-bench")
}

/// The daemon of the same build.
fn daemon_program() -> PathBuf {
    let daemon = Path::new(swarm_program()).with_file_name("ringshard");
    assert!(daemon.exists(), "build the whole workspace: {} is missing", daemon.display());
    daemon
}

/// A running daemon on ports that the kernel chose, with a folder that goes away.
struct Daemon {
    child: Child,
    folder: PathBuf,
    game: String,
    control: String,
}

impl Daemon {
    fn start(name: &str, shards: &str) -> Daemon {
        let folder = std::env::temp_dir().join(format!("ringshard-bench-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a new folder");
        let mut child = Command::new(daemon_program())
            .args(["serve", "--dev", "--no-tui", "--bind", "127.0.0.1:0", "--control", "127.0.0.1:0"])
            .args(["--shards", shards, "--data", folder.to_str().expect("a plain name")])
            .stderr(Stdio::piped())
            .spawn()
            .expect("the daemon starts");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok);
        let ready = lines.find(|line| line.contains(": ready game="));
        let Some(ready) = ready else { panic!("the daemon did not get ready: {:?}", child.wait()) };
        std::thread::spawn(move || lines.for_each(drop));
        let value =
            |key: &str| ready.split(key).nth(1).and_then(|rest| rest.split(' ').next()).expect("named").to_owned();
        Daemon { child, folder, game: value("game="), control: value("control=http://") }
    }

    fn swarm(&self, arguments: &[&str]) -> Child {
        let mut command = Command::new(swarm_program());
        command.args(["swarm", "--json", "--connect", &self.game]).args(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the swarm starts")
    }

    fn status(&self) -> serde_json::Value {
        let output = Command::new(daemon_program()).args(["status", "--json", "--control", &self.control]).output();
        serde_json::from_slice(&output.expect("it runs").stdout).expect("status is JSON")
    }

    /// Thread ids of the shards, in order.
    fn shard_threads(&self) -> Vec<String> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("it runs");
        let mut shards: Vec<_> = tasks
            .flatten()
            .filter_map(|task| {
                let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
                let status = std::fs::read_to_string(task.path().join("status")).ok()?;
                // Executors have a helper thread of the same name; the shard is the one pinned to a single core.
                let pinned = status.lines().any(|line| {
                    line.strip_prefix("Cpus_allowed_list:").is_some_and(|list| list.trim().parse::<u32>().is_ok())
                });
                (name.starts_with("shard-") && pinned).then(|| (name, task.file_name().into_string().expect("digits")))
            })
            .collect();
        shards.sort();
        shards.into_iter().map(|(_, thread)| thread).collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn report(swarm: Child) -> serde_json::Value {
    let Output { stdout, status, .. } = swarm.wait_with_output().expect("it ends");
    let report = serde_json::from_slice(&stdout).expect("the report is JSON");
    assert!(status.success(), "{report}");
    report
}

#[test]
fn everybody_crosses_the_seam_and_contradicts_nothing() {
    let _cores = CORES.lock().unwrap_or_else(PoisonError::into_inner);
    let daemon = Daemon::start("seam", "2");
    for arguments in [["--scenario", "seam", "--transport", "udp"], ["--scenario", "crowd", "--transport", "tcp"]] {
        let seam = arguments[1] == "seam";
        let report = report(daemon.swarm(&[&["--players", "150", "--duration", "8"], &arguments[..]].concat()));
        assert_eq!((&report["connected"], &report["disconnects"]), (&150.into(), &0.into()), "{report}");
        assert_eq!(report["error_count"], 0, "{}", report["errors"]);
        assert!(!seam || report["handoffs"].as_u64() > Some(150), "{}", report["handoffs"]);
        assert!(seam || report["visible"]["min"].as_f64() >= Some(100.0), "{}", report["visible"]);
    }
}

/// System calls of a thread in some ticks, by strace: (calls a tick, its table).
fn calls_per_tick(thread: &str) -> Option<(f64, String)> {
    let seconds = 3.0;
    let traced = Command::new("timeout").args(["-s", "INT", "3", "strace", "-c", "-p", thread]).output().ok()?;
    let table = String::from_utf8_lossy(&traced.stderr).into_owned();
    let total = table.lines().find(|line| line.trim_end().ends_with(" total"))?;
    // The columns of errors may be empty; calls is the fourth.
    let calls: f64 = total.split_whitespace().nth(3)?.parse().ok()?;
    Some((calls / (seconds * 60.0), table))
}

#[test]
fn a_shards_system_calls_do_not_grow_with_its_players() {
    let _cores = CORES.lock().unwrap_or_else(PoisonError::into_inner);
    let daemon = Daemon::start("calls", "1");
    for players in ["20", "400"] {
        let swarm = daemon.swarm(&["--players", players, "--duration", "12"]);
        std::thread::sleep(std::time::Duration::from_secs(8));
        let status = daemon.status();
        let counted = status["shards"][0]["syscalls_per_tick"].as_f64().expect("a number");
        assert!(counted <= 16.0, "{players} players: {counted} system calls a tick");
        match calls_per_tick(&daemon.shard_threads()[0]) {
            Some((traced, table)) => {
                assert!(traced <= 16.0, "{players} players: {traced} system calls a tick:\n{table}");
                assert!(!table.contains("futex"), "no futex in a steady tick:\n{table}");
                assert!((traced - counted).abs() < 4.0, "{traced} traced, {counted} counted:\n{table}");
            }
            None => eprintln!("skipped the comparison with strace: strace is missing or may not trace"),
        }
        let report = report(swarm);
        assert_eq!(report["connected"], players.parse::<u64>().expect("a number"), "{report}");
    }
}
