//! The admin socket `DATA/admin.sock`: one JSON line asks, one JSON line answers.
//!
//! Promises: whoever may open the socket (mode 0660) may ask; lines, connections and silence are bounded; what it does
//! not understand is answered in words. Never does the work itself: it asks the shards and the host.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

use super::status::{Asker, Board, Change};
use crate::config::Tunable;
use crate::exit::{Code, Failure};
use crate::limits::{
    ADMIN_ANSWER_MS_MAX, ADMIN_CLIENTS_MAX, ADMIN_LINE_BYTES_MAX, ADMIN_SILENT_MS_MAX, CONTROL_POLL_MS,
};
use crate::realm::report::{CutsReport, CutsView, PlayerRow};

/// Name of the socket in the data folder.
pub const SOCKET_NAME: &str = "admin.sock";

/// One question.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Request {
    /// `drain`, `players`, `record`, `checkpoint`, `cuts`, `show` or `set`.
    pub verb: String,
    /// Where a checkpoint goes, an absolute path; without it, into the data folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<PathBuf>,
    /// The key that `set` sets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// What `set` sets it to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Cells that get another owner, for the verb `cuts`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub moves: Vec<CellMove>,
    /// Lanes that get another shard, likewise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lanes: Vec<LaneMove>,
    /// Whether the cuts are balanced from now on, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto: Option<bool>,
}

/// A cell that gets another owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CellMove {
    /// Column, eastwards.
    pub x: i16,
    /// Row, northwards.
    pub y: i16,
    /// The new owner.
    pub shard: u8,
}

/// A lane that gets another shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LaneMove {
    /// Its number.
    pub lane: u8,
    /// The shard that serves it then.
    pub shard: u8,
}

/// One answer.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Answer {
    /// It was done.
    pub ok: bool,
    /// Why it was not done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What was done, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Who plays, for the verb `players`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub players: Option<Vec<PlayerRow>>,
    /// What the coordinator of the cuts did, for the verb `cuts`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cuts: Option<CutsReport>,
    /// The cuts as they are, likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub view: Option<CutsView>,
    /// Every key, for the verb `show`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub values: Option<Vec<Tunable>>,
    /// What was set, for the verb `set`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change: Option<Change>,
}

impl Answer {
    fn refused(error: String) -> Answer {
        Answer { error: Some(error), ..Answer::default() }
    }
}

/// Binds the socket with mode 0660. One left by a process that ended is replaced, one that
/// answers is exit code 73.
pub(super) fn bind(data: &Path) -> Result<UnixListener, Failure> {
    let path = data.join(SOCKET_NAME);
    // Under its own name only once its mode is right, so that nobody else can connect in between.
    let new = data.join(format!("{SOCKET_NAME}.new"));
    let failed = |error: std::io::Error| {
        let hint = match error.kind() {
            std::io::ErrorKind::InvalidInput => {
                "; its path must be shorter than 108 bytes: name another with `--data DIR`"
            }
            _ => "",
        };
        let code = match error.kind() {
            std::io::ErrorKind::PermissionDenied => Code::Permission,
            _ => Code::DataFolder,
        };
        Failure::new(code, format!("cannot open the admin socket {}: {error}{hint}", path.display()))
    };
    if std::os::unix::net::UnixStream::connect(&path).is_ok() {
        let text = format!("another node runs from {}; name another folder with `--data DIR`", data.display());
        return Err(Failure::new(Code::DataFolder, text));
    }
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&new).map_err(failed)?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o660)).map_err(failed)?;
    std::fs::rename(&new, &path).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

/// Serves until the runtime ends.
pub(super) async fn serve(listener: UnixListener, board: Arc<Board>) {
    let listener = tokio::net::UnixListener::from_std(listener).expect("the listener does not block");
    let places = Arc::new(Semaphore::new(ADMIN_CLIENTS_MAX));
    loop {
        let Ok((mut stream, _)) = listener.accept().await else {
            // Out of descriptors: those in use come back.
            sleep(Duration::from_millis(CONTROL_POLL_MS)).await;
            continue;
        };
        let board = Arc::clone(&board);
        match Arc::clone(&places).try_acquire_owned() {
            Ok(place) => {
                tokio::spawn(async move {
                    // An error ends this connection and nothing else.
                    let _ = converse(stream, &board).await;
                    drop(place);
                });
            }
            Err(_) => {
                let busy = Answer::refused(format!("{ADMIN_CLIENTS_MAX} admins are connected already"));
                // A few bytes into an empty socket buffer: either they fit or this client is told nothing.
                let _ = stream.try_write(line(&busy).as_bytes());
                let _ = stream.shutdown().await;
            }
        }
    }
}

/// Answers one connection line by line until it ends, is silent for too long or sends too long a line.
async fn converse(stream: UnixStream, board: &Board) -> std::io::Result<()> {
    let peer = stream.peer_cred()?;
    let asker = Asker { uid: peer.uid(), pid: peer.pid() };
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let mut asked = Vec::new();
    loop {
        asked.clear();
        let mut bounded = (&mut reader).take(ADMIN_LINE_BYTES_MAX as u64);
        let read = timeout(Duration::from_millis(ADMIN_SILENT_MS_MAX), bounded.read_until(b'\n', &mut asked)).await;
        if read?? == 0 {
            return Ok(());
        }
        if asked.len() == ADMIN_LINE_BYTES_MAX && !asked.ends_with(b"\n") {
            let refused = Answer::refused(format!("a request line has at most {ADMIN_LINE_BYTES_MAX} bytes"));
            return writer.write_all(line(&refused).as_bytes()).await;
        }
        let answer = match serde_json::from_slice::<Request>(&asked) {
            Ok(request) => answer(&request, asker, board).await,
            Err(error) => Answer::refused(format!("expected one line such as {{\"verb\":\"players\"}}: {error}")),
        };
        writer.write_all(line(&answer).as_bytes()).await?;
    }
}

async fn answer(request: &Request, asker: Asker, board: &Board) -> Answer {
    match request.verb.as_str() {
        "drain" => {
            board.drain();
            Answer { ok: true, text: Some("draining".to_string()), ..Answer::default() }
        }
        "players" => players(board).await,
        "record" => match board.set_record_aside().await {
            Ok(kept) => Answer { ok: true, text: Some(kept.display().to_string()), ..Answer::default() },
            Err(failure) => Answer::refused(failure.text),
        },
        "checkpoint" => {
            let to = request.to.clone().unwrap_or_else(|| board.checkpoint_folder());
            match board.checkpoint(to).await {
                Ok(made) => Answer { ok: true, text: Some(made.display().to_string()), ..Answer::default() },
                Err(failure) => Answer::refused(failure.text),
            }
        }
        "cuts" => cuts(request, board).await,
        "show" => Answer { ok: true, values: Some(board.tunables()), ..Answer::default() },
        "set" => set(request, asker, board),
        other => Answer::refused(format!(
            "unknown verb {other:?}; there are drain, players, record, checkpoint, cuts, show and set"
        )),
    }
}

fn set(request: &Request, asker: Asker, board: &Board) -> Answer {
    let (Some(key), Some(value)) = (&request.key, &request.value) else {
        return Answer::refused("set needs a key and a value".to_owned());
    };
    match board.tune(key, value, asker) {
        Ok(change) => Answer { ok: true, change: Some(change), ..Answer::default() },
        Err(error) => Answer::refused(error),
    }
}

async fn cuts(request: &Request, board: &Board) -> Answer {
    let before = match board.steer_cuts(&request.moves, &request.lanes, request.auto) {
        Ok(before) => before,
        Err(error) => return Answer::refused(error),
    };
    let deadline = Instant::now() + Duration::from_millis(ADMIN_ANSWER_MS_MAX);
    loop {
        match board.cuts_since(before) {
            Some((cuts, view)) => return Answer { ok: true, cuts: Some(cuts), view: Some(view), ..Answer::default() },
            None if Instant::now() >= deadline => {
                return Answer::refused(format!("no answer within {ADMIN_ANSWER_MS_MAX} ms from shard 0"));
            }
            None => sleep(Duration::from_millis(CONTROL_POLL_MS)).await,
        }
    }
}

async fn players(board: &Board) -> Answer {
    let before = board.ask_players();
    let deadline = Instant::now() + Duration::from_millis(ADMIN_ANSWER_MS_MAX);
    loop {
        match board.players_since(&before) {
            Ok(players) => return Answer { ok: true, players: Some(players), ..Answer::default() },
            Err(silent) if Instant::now() >= deadline => {
                return Answer::refused(format!(
                    "no answer within {ADMIN_ANSWER_MS_MAX} ms from the shards {silent:?}"
                ));
            }
            Err(_) => sleep(Duration::from_millis(CONTROL_POLL_MS)).await,
        }
    }
}

fn line(answer: &Answer) -> String {
    serde_json::to_string(answer).expect("an answer is JSON") + "\n"
}
