//! The processes of a round: a server and the players that trade on it.
//!
//! Owns both, and reads what they say. Promises: neither outlives its value; their last words are kept for whoever asks
//! why one ended.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ringshard::exit::{Code, Failure};
use rustix::process::{Pid, Signal, kill_process};

use crate::swarm::truth::operations_path;

/// Longest wait for a server that starts; what is too long for the result the caller decides.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest that a server may take to end after TERM.
const TERM_MAX: Duration = Duration::from_secs(10);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(10);
/// Lines that are kept of what a process said.
const LINES_MAX: usize = 12;

/// The last lines that a process said.
#[derive(Clone, Default)]
struct Words(Arc<Mutex<VecDeque<String>>>);

impl Words {
    /// Reads until the process ends; every line also goes to the receiver while there is one.
    fn listen(stderr: ChildStderr) -> (Words, Receiver<String>) {
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

    fn text(&self) -> String {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().map(String::as_str).collect::<Vec<_>>().join(" / ")
    }
}

fn end(child: &mut Child) {
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
    /// Characters that it found.
    pub recovered: u64,
    /// From its start to `ready`.
    pub start: Duration,
}

impl Server {
    /// Starts it on a data folder and waits until it is ready. An error says why it is not.
    pub fn start(program: &Path, data: &Path, stopped: &AtomicBool) -> Result<Server, String> {
        let began = Instant::now();
        let mut command = Command::new(program);
        command.args(["serve", "--dev", "--shards", "2", "--no-tui", "--bind", "127.0.0.1:0"]);
        command.args(["--control", "127.0.0.1:0", "--data"]).arg(data).stdin(Stdio::null()).stdout(Stdio::null());
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
                let Some(game) = game else { break };
                return Ok(Server { child, words, game, recovered, start: began.elapsed() });
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

    /// Holds all its threads where they are.
    pub fn pause(&self) {
        signal(&self.child, Signal::STOP);
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

/// What stands after a key, up to the next blank.
fn value_of<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split(key).nth(1)?.split(' ').next()
}

/// Players that trade.
pub struct Swarm {
    child: Child,
    words: Words,
    operations: PathBuf,
}

impl Swarm {
    /// Lets players trade on a server, for some seconds or until it is gone; what they were told goes to `truth`.
    pub fn start(
        players: u32,
        server: SocketAddr,
        truth: &Path,
        seed: u64,
        seconds: Option<u32>,
    ) -> Result<Swarm, Failure> {
        let failed = |error: std::io::Error| Failure::new(Code::Failed, format!("no swarm can be started: {error}"));
        let operations = operations_path(truth);
        // What an earlier swarm was told is known by now, and would look like this one's first answers.
        match std::fs::remove_file(&operations) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Failure::of_file("remove", &operations, &error));
            }
            _ => (),
        }
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command.args(["swarm", "--scenario", "trade", "--players", &players.to_string(), "--seed", &seed.to_string()]);
        command.args(["--connect", &server.to_string(), "--duration", &seconds.unwrap_or(86_400).to_string()]);
        command.arg("--truth").arg(truth).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(failed)?;
        let (words, _) = Words::listen(child.stderr.take().expect("it is piped"));
        Ok(Swarm { child, words, operations })
    }

    /// Whether anybody was told of an operation.
    pub fn has_answers(&self) -> bool {
        std::fs::metadata(&self.operations).is_ok_and(|file| file.len() > 0)
    }

    /// Whether it ended, and how: well or not, and its last words.
    pub fn ended(&mut self) -> Result<Option<(bool, String)>, Failure> {
        let ended = self.child.try_wait();
        let ended = ended.map_err(|error| Failure::new(Code::Failed, format!("the swarm is lost: {error}")))?;
        Ok(ended.map(|status: ExitStatus| (status.success(), self.words.text())))
    }

    /// Waits for its end; none: it did not come in time.
    pub fn wait(&mut self, time: Duration, stopped: &AtomicBool) -> Result<Option<(bool, String)>, Failure> {
        let until = Instant::now() + time;
        while Instant::now() < until && !stopped.load(Ordering::Relaxed) {
            if let Some(ended) = self.ended()? {
                return Ok(Some(ended));
            }
            thread::sleep(LOOK);
        }
        Ok(None)
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        end(&mut self.child);
    }
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
}
