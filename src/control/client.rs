//! The other end: how the command line tools find a running node and ask it.
//!
//! Promises: waits at most a few seconds, reads a bounded answer; no node is exit code 69 in words. Never changes a data
//! folder.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::admin::{Answer, Request, SOCKET_NAME};
use super::status::StatusPage;
use crate::exit::{Code, Failure};
use crate::limits::{ADMIN_ANSWER_MS_MAX, CONTROL_ANSWER_BYTES_MAX};

/// Name of the file in the data folder that says how a running node is reached.
pub const NODE_FILE_NAME: &str = "node.json";

/// How a running node is reached; written when it is ready, removed when it ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeFile {
    /// Its control HTTP address.
    pub control: SocketAddr,
    /// Its process.
    pub pid: u32,
}

impl NodeFile {
    /// Writes it into a data folder, whole or not at all.
    pub fn write(&self, data: &Path) -> Result<(), Failure> {
        let (path, new) = (data.join(NODE_FILE_NAME), data.join(format!("{NODE_FILE_NAME}.new")));
        let text = serde_json::to_string(self).expect("an address and a number are JSON") + "\n";
        let written = std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, &path));
        written.map_err(|error| Failure::of_file("write", &path, &error))
    }

    /// Reads it from a data folder; none means that no node runs there.
    pub fn read(data: &Path) -> Result<NodeFile, Failure> {
        let path = data.join(NODE_FILE_NAME);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let text = format!(
                    "no node runs from {0}; start one with `ringshard serve --data {0}` (and `--dev` on your own machine)",
                    data.display()
                );
                return Err(Failure::new(Code::Unavailable, text));
            }
            Err(error) => return Err(Failure::of_file("read", &path, &error)),
        };
        serde_json::from_str(&text)
            .map_err(|error| Failure::new(Code::Io, format!("{} is damaged: {error}", path.display())))
    }
}

/// Asks the control HTTP side of a node for its state.
pub fn status(control: SocketAddr) -> Result<StatusPage, Failure> {
    let ask = || -> std::io::Result<String> {
        let wait = Duration::from_millis(ADMIN_ANSWER_MS_MAX);
        let mut stream = TcpStream::connect_timeout(&control, wait)?;
        stream.set_read_timeout(Some(wait))?;
        // HTTP/1.0: the node closes after the answer, so its end is the end of the stream.
        write!(stream, "GET /status HTTP/1.0\r\nHost: {control}\r\n\r\n")?;
        let mut answer = String::new();
        stream.take(CONTROL_ANSWER_BYTES_MAX as u64).read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = ask().map_err(|error| {
        let text = format!(
            "no node answers on {control}: {error}; if it ended, start it with `ringshard serve`; one elsewhere is named \
             with `--data DIR` or `--control ADDR`"
        );
        Failure::new(Code::Unavailable, text)
    })?;
    let strange =
        |what: String| Failure::new(Code::Unavailable, format!("what answers on {control} is no ringshard: {what}"));
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| strange("not HTTP".to_string()))?;
    if head.split(' ').nth(1) != Some("200") {
        return Err(strange(head.lines().next().unwrap_or("").to_string()));
    }
    serde_json::from_str(body).map_err(|error| strange(error.to_string()))
}

/// Asks a node to do something that needs no more words than a verb. See [`ask`].
pub fn admin(data: &Path, verb: &str, to: Option<PathBuf>) -> Result<Answer, Failure> {
    ask(data, &Request { verb: verb.to_string(), to, ..Request::default() })
}

/// Asks a node over the admin socket in its data folder. A refusal is a [`Failure`] with exit code 1.
pub fn ask(data: &Path, request: &Request) -> Result<Answer, Failure> {
    let path = data.join(SOCKET_NAME);
    let ask = || -> std::io::Result<String> {
        let mut stream = UnixStream::connect(&path)?;
        stream.set_read_timeout(Some(Duration::from_millis(2 * ADMIN_ANSWER_MS_MAX)))?;
        let request = serde_json::to_string(request).expect("a request is JSON");
        writeln!(stream, "{request}")?;
        let mut answer = String::new();
        BufReader::new(stream.take(CONTROL_ANSWER_BYTES_MAX as u64)).read_line(&mut answer)?;
        Ok(answer)
    };
    let answer = ask().map_err(|error| {
        let code = match error.kind() {
            std::io::ErrorKind::PermissionDenied => Code::Permission,
            _ => Code::Unavailable,
        };
        let text = format!(
            "no node answers on {}: {error}; if it ended, start it with `ringshard serve`; one elsewhere is named with \
             `--data DIR`",
            path.display()
        );
        Failure::new(code, text)
    })?;
    let answer: Answer = serde_json::from_str(&answer)
        .map_err(|error| Failure::new(Code::Unavailable, format!("the node gave no answer: {error}")))?;
    match answer.error {
        Some(error) => Err(Failure::new(Code::Failed, error)),
        None => Ok(answer),
    }
}
