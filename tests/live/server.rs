//! A daemon of a test's own, on ports that the kernel chose.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A folder that goes away.
pub struct TempFolder(PathBuf);

impl TempFolder {
    pub fn new() -> TempFolder {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("ringshard-live-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).expect("a new folder");
        TempFolder(path)
    }

    pub fn path(&self) -> &str {
        self.0.to_str().expect("a plain name")
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs the daemon's program until it ends.
pub fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ringshard")).args(arguments).output().expect("it runs")
}

/// A running daemon.
pub struct Server {
    child: Child,
    data: String,
    reader: Option<std::thread::JoinHandle<String>>,
    pub game: SocketAddr,
    control: SocketAddr,
    pub recovered: u64,
}

impl Server {
    /// Starts it and waits until it is ready. Every test has two cores at most: the number of shards is the test's.
    pub fn start(data: &TempFolder, arguments: &[&str]) -> Server {
        Server::start_in(data.path().to_owned(), arguments)
    }

    /// Likewise, in any folder.
    pub fn start_in(data: String, arguments: &[&str]) -> Server {
        let mut child = Command::new(env!("CARGO_BIN_EXE_ringshard"))
            .args(["serve", "--dev", "--no-tui", "--bind", "127.0.0.1:0", "--control", "127.0.0.1:0"])
            .args(["--data", &data])
            .args(arguments)
            .stderr(Stdio::piped())
            .spawn()
            .expect("the daemon starts");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let (mut recovered, mut said) = (None, String::new());
        for line in lines.by_ref().map_while(Result::ok) {
            said += &format!("{line}\n");
            if let Some(count) = line.split("recovered characters=").nth(1) {
                recovered = count.parse().ok();
            }
            if line.contains(": ready game=") {
                let value = |key: &str| line.split(key).nth(1)?.split(' ').next();
                let game = value("game=").and_then(|address| address.parse().ok()).expect("an address");
                let control = value("control=http://").and_then(|address| address.parse().ok()).expect("an address");
                // Somebody must go on reading, or the daemon would wait for us.
                let reader = std::thread::spawn(move || {
                    let lines = lines.map_while(Result::ok).filter(|line| !line.starts_with("tick="));
                    lines.fold(String::new(), |said, line| said + &line + "\n")
                });
                let reader = Some(reader);
                return Server { child, data, reader, game, control, recovered: recovered.expect("said before") };
            }
        }
        let ended = child.wait();
        panic!("the daemon did not get ready: {said}{ended:?}");
    }

    /// Runs the daemon's program with other arguments.
    pub fn run(&self, arguments: &[&str]) -> Output {
        run(arguments)
    }

    pub fn status(&self) -> serde_json::Value {
        // The shards report four times a second.
        std::thread::sleep(Duration::from_millis(600));
        let output = self.run(&["status", "--json", "--control", &self.control.to_string()]);
        serde_json::from_slice(&output.stdout).expect("status is JSON")
    }

    /// TERM; the exit code, which must come within 10 s.
    pub fn stop(&mut self) -> i32 {
        self.signal("-TERM");
        let end = Instant::now() + Duration::from_secs(10);
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait().expect("our child") {
                return status.code().expect("it was not killed");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("the daemon did not end within 10 s");
    }

    /// Waits for its end, calling `meanwhile` all the time: the exit code and what it said after `ready`.
    pub fn wait(&mut self, patience: Duration, mut meanwhile: impl FnMut()) -> (Option<i32>, String) {
        let end = Instant::now() + patience;
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait().expect("our child") {
                let said = self.reader.take().expect("waited once").join().expect("it only reads");
                return (status.code(), said);
            }
            meanwhile();
            std::thread::sleep(Duration::from_millis(4));
        }
        panic!("the daemon did not end by itself within {patience:?}");
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn kill(&mut self) {
        self.child.kill().expect("our child");
        self.child.wait().expect("our child");
    }

    /// Sends the daemon a signal, as `-TERM`.
    pub fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.pid().to_string()]).status().expect("kill runs");
        assert!(sent.success());
    }

    /// The characters in the data folder of a server that ended.
    pub fn inspect(&self) -> Vec<serde_json::Value> {
        let output = self.run(&["inspect", "characters", &self.data, "--json"]);
        let value: serde_json::Value = serde_json::from_slice(&output.stdout).expect("inspect is JSON");
        value["characters"].as_array().expect("a list").clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
