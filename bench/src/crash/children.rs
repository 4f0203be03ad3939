//! The players of a round, who trade: a swarm as a child process.
//!
//! Owns the process. Promises: it does not outlive its value; its last words are kept for whoever asks why it ended.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ringshard::exit::{Code, Failure};

use crate::node::{LOOK, Words, end};
use crate::swarm::truth::operations_path;

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
