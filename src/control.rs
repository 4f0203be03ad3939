//! The node's unhurried side: HTTP, the admin socket, the live view, on a thread `control-0` of its own.
//!
//! Owns the newest report of each shard. Promises: talks to shards by bounded queues only, wakes no one, and what a
//! client does here costs no tick. Never touches packets, the world or the disk's data.

pub mod admin;
pub mod client;
mod http;
pub mod live;
pub mod status;

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::{self, Config};
use crate::exit::{Code, Failure};
use crate::flight::folder::FlightFolder;
use crate::limits::{CONTROL_COMMANDS_MAX, CONTROL_POLL_MS, CONTROL_REPORTS_MAX};
use crate::realm::ladder::Common;
use crate::realm::report::{ControlCommand, ShardReport};
use crate::rocks::KeeperView;
use live::{LiveForm, LiveView};
use status::Board;

/// What control needs to know, and its ends of the queues.
#[derive(Clone)]
pub struct ControlConfig {
    /// Address of the HTTP side; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Data folder, which exists; `admin.sock` and `node.json` lie in it.
    pub data: PathBuf,
    /// CPUs that the thread stays off where others are left.
    pub shard_cpus: Vec<usize>,
    /// Hash of the content that runs.
    pub content_version: u64,
    /// What the node was started with.
    pub config: Config,
    /// How the state is shown on standard error.
    pub live: LiveForm,
    /// The flight record, unless nothing is recorded.
    pub flight: Option<Arc<FlightFolder>>,
    /// The keeper; none in tests without one.
    pub keeper: Option<KeeperView>,
    /// From the shards; each pushes, and drops its report when full.
    pub reports: Arc<ArrayQueue<ShardReport>>,
    /// To the shards, one queue each.
    pub commands: Vec<Arc<ArrayQueue<ControlCommand>>>,
    /// Set by the verb `drain`; the host polls it and ends as on TERM.
    pub draining: Arc<AtomicBool>,
}

impl ControlConfig {
    /// A configuration with new queues for as many shards as there are CPUs, without a live view, of a node that was
    /// started with the defaults.
    pub fn new(listen: SocketAddr, data: PathBuf, shard_cpus: Vec<usize>, content_version: u64) -> ControlConfig {
        ControlConfig {
            listen,
            data,
            content_version,
            config: config::parse(None, &[], true, &shard_cpus).expect("the defaults are valid"),
            live: LiveForm::Off,
            flight: None,
            keeper: None,
            reports: Arc::new(ArrayQueue::new(CONTROL_REPORTS_MAX)),
            commands: shard_cpus.iter().map(|_| Arc::new(ArrayQueue::new(CONTROL_COMMANDS_MAX))).collect(),
            draining: Arc::new(AtomicBool::new(false)),
            shard_cpus,
        }
    }
}

/// The control thread; [`Control::spawn`] starts it.
pub struct Control;

impl Control {
    /// Binds the HTTP address and the admin socket and starts the thread `control-0`. A taken port is exit code 69.
    pub fn spawn(config: ControlConfig) -> Result<ControlHandle, Failure> {
        let listener = bind(config.listen)?;
        let address = listener.local_addr().map_err(|error| Failure::new(Code::Failed, error.to_string()))?;
        let socket = admin::bind(&config.data)?;
        let data = config.data.clone();
        let board = Arc::new(Board::new(&config));
        let stopping = Arc::new(AtomicBool::new(false));
        let (thread_board, thread_stopping) = (Arc::clone(&board), Arc::clone(&stopping));
        let thread = std::thread::Builder::new()
            .name("control-0".to_string())
            .spawn(move || run(config, listener, socket, &thread_board, &thread_stopping))
            .map_err(|error| Failure::new(Code::Machine, format!("cannot start the thread control-0: {error}")))?;
        Ok(ControlHandle { address, data, board, stopping, thread })
    }
}

fn bind(listen: SocketAddr) -> Result<TcpListener, Failure> {
    let failed = |error: std::io::Error| {
        let code = match error.kind() {
            std::io::ErrorKind::PermissionDenied => Code::Permission,
            _ => Code::Unavailable,
        };
        let text = format!("cannot listen on {listen} for control HTTP: {error}; name another with `--control ADDR`");
        Failure::new(code, text)
    };
    let listener = TcpListener::bind(listen).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

/// A running control thread.
pub struct ControlHandle {
    address: SocketAddr,
    data: PathBuf,
    board: Arc<Board>,
    stopping: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl ControlHandle {
    /// Where the HTTP side listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Says that joins are accepted: `/status` shows it, and `DATA/node.json` is written for the tools.
    pub fn set_ready(&self) -> Result<(), Failure> {
        self.board.set_ready(true);
        client::NodeFile { control: self.address, pid: std::process::id() }.write(&self.data)
    }

    /// What the steps of all shards ask of the whole node, by their newest reports.
    pub fn common(&self) -> Common {
        self.board.common()
    }

    /// Ends the thread and removes `admin.sock` and `node.json`. A panic of the thread is a [`Failure`].
    pub fn stop(self) -> Result<(), Failure> {
        self.stopping.store(true, Ordering::Release);
        let ended = self.thread.join();
        for name in [admin::SOCKET_NAME, client::NODE_FILE_NAME] {
            let path = self.data.join(name);
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Failure::of_file("remove", &path, &error));
                }
                _ => {}
            }
        }
        ended.map_err(|_| Failure::new(Code::Failed, "the thread control-0 panicked; its message stands above"))
    }
}

fn run(
    config: ControlConfig,
    listener: TcpListener,
    socket: std::os::unix::net::UnixListener,
    board: &Arc<Board>,
    stopping: &AtomicBool,
) {
    if let Err(error) = crate::sys::keep_off(&config.shard_cpus) {
        eprintln!("control-0 shares its CPU with shards: {error}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made");
    runtime.block_on(async {
        tokio::spawn(end_on_signals(Arc::clone(board)));
        tokio::spawn(record_on_signals(Arc::clone(board)));
        tokio::spawn(http::serve(listener, Arc::clone(board)));
        tokio::spawn(admin::serve(socket, Arc::clone(board)));
        watch(&config, board, stopping).await;
    });
    // Connections that are still open end here; they hold nothing that matters.
    runtime.shutdown_background();
}

/// The first TERM or INT drains the node; the second ends it where it stands.
async fn end_on_signals(board: Arc<Board>) {
    let mut terminate = signal(SignalKind::terminate()).expect("the kernel has signals");
    let mut interrupt = signal(SignalKind::interrupt()).expect("the kernel has signals");
    for count in 0.. {
        tokio::select! {
            _ = terminate.recv() => (),
            _ = interrupt.recv() => (),
        }
        if count > 0 {
            eprintln!("ringshard: a second signal: the node ends now");
            std::process::exit(Code::Failed as i32);
        }
        board.drain();
    }
}

/// Each USR2 sets the flight record aside.
async fn record_on_signals(board: Arc<Board>) {
    let mut asked = signal(SignalKind::user_defined2()).expect("the kernel has signals");
    while asked.recv().await.is_some() {
        match board.set_record_aside().await {
            Ok(kept) => eprintln!("ringshard: the flight record is in {}", kept.display()),
            Err(failure) => eprintln!("ringshard: {failure}"),
        }
    }
}

/// Takes the shards' reports and shows them, until told to stop.
async fn watch(config: &ControlConfig, board: &Board, stopping: &AtomicBool) {
    let mut timer = tokio::time::interval(Duration::from_millis(CONTROL_POLL_MS));
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut view = LiveView::new(config.live);
    let mut shown = Instant::now();
    while !stopping.load(Ordering::Acquire) {
        timer.tick().await;
        while let Some(report) = config.reports.pop() {
            board.take(report);
        }
        let elapsed = shown.elapsed();
        if elapsed >= Duration::from_secs(1) && board.is_ready() {
            eprint!("{}", view.render(&board.page(), elapsed));
            shown = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests;
