//! A server as a child process, and how to look at it from outside.
//!
//! Owns the process, and reads what it says. Promises: it does not outlive its value; its last words are kept for whoever
//! asks why it ended.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ringshard::exit::{Code, Failure};
use rustix::process::{Pid, Signal, kill_process};

/// Longest wait for a server that starts; what is too long for the result the caller decides.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest that a server may take to end after TERM.
const TERM_MAX: Duration = Duration::from_secs(10);
/// Between two looks.
pub const LOOK: Duration = Duration::from_millis(10);
/// Lines that are kept of what a process said.
const LINES_MAX: usize = 12;

/// The server's program, which must be there.
pub fn server_program(named: Option<&Path>) -> Result<PathBuf, Failure> {
    let beside = || std::env::current_exe().map(|own| own.with_file_name("ringshard"));
    let path = match named {
        Some(path) => path.to_owned(),
        None => beside().map_err(|error| Failure::of_file("find", Path::new("this program"), &error))?,
    };
    if path.is_file() {
        return Ok(path);
    }
    let text =
        format!("no server program at {}; `cargo build --release --workspace`, or --server PATH", path.display());
    Err(Failure::new(Code::Unavailable, text))
}

/// The last lines that a process said.
#[derive(Clone, Default)]
pub struct Words(Arc<Mutex<VecDeque<String>>>);

impl Words {
    /// Reads until the process ends; every line also goes to the receiver while there is one.
    pub fn listen(stderr: ChildStderr) -> (Words, Receiver<String>) {
        let words = Words::default();
        let (sender, receiver) = channel();
        let kept = words.clone();
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut lines = kept.0.lock().unwrap_or_else(PoisonError::into_inner);
                if lines.len() == LINES_MAX {
                    lines.pop_front();
                }
                lines.push_back(line.clone());
                // Nobody waits for lines once the process got going.
                let _ = sender.send(line);
            }
        });
        (words, receiver)
    }

    /// All in one line.
    pub fn text(&self) -> String {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().map(String::as_str).collect::<Vec<_>>().join(" / ")
    }
}

/// Ends a process, if it did not end by itself.
pub fn end(child: &mut Child) {
    // What has ended already cannot be killed, and is waited for all the same.
    let _ = child.kill();
    let _ = child.wait();
}

fn signal(child: &Child, signal: Signal) {
    // Not waited for yet: the id is its own, and a process that has ended ignores it.
    let _ = kill_process(Pid::from_child(child), signal);
}

/// A running server.
pub struct Server {
    child: Child,
    words: Words,
    /// Where players connect.
    pub game: SocketAddr,
    /// Where it says how it is.
    pub control: SocketAddr,
    /// Characters that it found.
    pub recovered: u64,
    /// From its start to `ready`.
    pub start: Duration,
}

impl Server {
    /// Starts it, in development mode and with `arguments` besides, and waits until it is ready. An error says why it is
    /// not.
    pub fn start<A: AsRef<OsStr>>(
        program: &Path,
        arguments: impl IntoIterator<Item = A>,
        stopped: &AtomicBool,
    ) -> Result<Server, String> {
        let began = Instant::now();
        let mut command = Command::new(program);
        command.args(["serve", "--dev", "--no-tui", "--bind", "127.0.0.1:0", "--control", "127.0.0.1:0"]);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
        let spawned = command.stderr(Stdio::piped()).spawn();
        let mut child = spawned.map_err(|error| format!("cannot run {}: {error}", program.display()))?;
        let (words, lines) = Words::listen(child.stderr.take().expect("it is piped"));
        let mut recovered = 0;
        while began.elapsed() < PATIENCE && !stopped.load(Ordering::Relaxed) {
            let line = match lines.recv_timeout(LOOK) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            if let Some(count) = value_of(&line, "recovered characters=") {
                recovered = count.parse().unwrap_or(0);
            }
            if line.contains(": ready game=") {
                let game = value_of(&line, "game=").and_then(|address| address.parse().ok());
                let control = value_of(&line, "control=http://").and_then(|address| address.parse().ok());
                let (Some(game), Some(control)) = (game, control) else { break };
                return Ok(Server { child, words, game, control, recovered, start: began.elapsed() });
            }
        }
        end(&mut child);
        Err(format!("not ready after {:.1} s: {}", began.elapsed().as_secs_f64(), words.text()))
    }

    /// Its last words, if it ended by itself.
    pub fn words_if_ended(&mut self) -> Option<String> {
        let ended = self.child.try_wait().ok().flatten()?;
        Some(format!("{ended}: {}", self.words.text()))
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Holds all its threads where they are.
    pub fn pause(&self) {
        signal(&self.child, Signal::STOP);
    }

    /// Lets them go on.
    pub fn resume(&self) {
        signal(&self.child, Signal::CONT);
    }

    /// Ends it without a warning.
    pub fn kill(&mut self) {
        end(&mut self.child);
    }

    /// Asks it to end, which it must do well and in time.
    pub fn terminate(&mut self) -> Result<(), String> {
        signal(&self.child, Signal::TERM);
        let until = Instant::now() + TERM_MAX;
        while Instant::now() < until {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => return Err(format!("TERM ended the server with {status}: {}", self.words.text())),
                Ok(None) => thread::sleep(LOOK),
                Err(error) => return Err(format!("the server cannot be waited for: {error}")),
            }
        }
        Err(format!("the server did not end within {} s of TERM: {}", TERM_MAX.as_secs(), self.words.text()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// The working folder; it goes away unless it was named or is kept.
pub struct Work {
    path: PathBuf,
    stays: bool,
}

impl Work {
    /// Makes it, empty.
    pub fn make(what: &str, named: Option<&Path>) -> Result<Work, Failure> {
        let own = || std::env::temp_dir().join(format!("ringshard-{what}-{}", std::process::id()));
        let path = named.map_or_else(own, Path::to_path_buf);
        std::fs::create_dir_all(&path).map_err(|error| Failure::of_file("make", &path, &error))?;
        let path = path.canonicalize().map_err(|error| Failure::of_file("find", &path, &error))?;
        let mut inside = std::fs::read_dir(&path).map_err(|error| Failure::of_file("read", &path, &error))?;
        if inside.next().is_some() {
            let text = format!("{} is not empty; a run begins with a realm of its own", path.display());
            return Err(Failure::new(Code::DataFolder, text));
        }
        Ok(Work { path, stays: named.is_some() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// It must not go away.
    pub fn keep(&mut self) {
        self.stays = true;
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if !self.stays
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            eprintln!("ringshard-bench: {} stays: {error}", self.path.display());
        }
    }
}

/// What stands after a key, up to the next blank.
fn value_of<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split(key).nth(1)?.split(' ').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stand_behind_their_keys() {
        let line = "ringshard: ready game=127.0.0.1:7777 control=http://127.0.0.1:7780 pid=3";
        assert_eq!(value_of(line, "game="), Some("127.0.0.1:7777"));
        assert_eq!((value_of(line, "pid="), value_of(line, "absent=")), (Some("3"), None));
    }

    #[test]
    fn a_folder_that_holds_something_is_left_alone() {
        let path = std::env::temp_dir().join(format!("ringshard-crash-work-{}", std::process::id()));
        let mut kept = Work::make("test", Some(&path)).expect("a new folder");
        std::fs::write(path.join("file"), "x").expect("it is writable");
        let failure = Work::make("test", Some(&path)).err().expect("it is not empty");
        assert_eq!(failure.code, Code::DataFolder);
        kept.stays = false;
        drop(kept);
        assert!(!path.exists());
    }
}
