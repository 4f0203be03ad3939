//! What `/status` shows: the newest report of each shard, as the one JSON that scripts read.
//!
//! Promises: field names stay; a shard that has not reported yet is absent. Never asks a shard for anything but players.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use crossbeam_queue::ArrayQueue;
use serde::{Deserialize, Serialize};

use super::ControlConfig;
use super::admin::{CellMove, LaneMove};
use crate::clock::unix_s;
use crate::config::{Config, Tunable};
use crate::exit::{Code, Failure};
use crate::flight::folder::{FlightFolder, Reason};
use crate::io::Backend;
use crate::limits::{LANES, TUNED_KEPT_MAX};
use crate::realm::ladder::{self, Common, Step};
use crate::realm::report::{
    BudgetReport, ControlCommand, CostUs, CutsReport, CutsView, LadderReport, PHASE_NAMES, PlayerRow, RecordReport,
    ShardReport,
};
use crate::realm::sessions::session::Rates;
use crate::rocks::{KeeperCounters, KeeperMemory, KeeperView};
use crate::sys;
use crate::wire::ids::{CellKey, ShardId};
use crate::world::land::LAND_CELLS;

/// The state of a node.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct StatusPage {
    /// Version of the daemon.
    pub version: String,
    /// Hash of the content that runs, hexadecimal.
    pub content_version: String,
    /// It accepts joins.
    pub ready: bool,
    /// The newest tick of any shard.
    pub tick: u64,
    /// How packets pass.
    pub io: Backend,
    /// Memory in RAM, bytes.
    pub rss_bytes: u64,
    /// What holds it.
    #[serde(default)]
    pub memory: MemoryStatus,
    /// All sums of the ledger agree: nothing was lost or doubled.
    pub conserved: bool,
    /// What the keeper does; none before there is one.
    pub keeper: Option<KeeperStatus>,
    /// What the coordinator of the cuts did; none before it reported.
    pub cuts: Option<CutsReport>,
    /// What was tuned while it runs, the newest changes.
    pub tuned: Vec<Change>,
    /// Each shard that has reported, by number.
    pub shards: Vec<ShardStatus>,
}

/// One key that somebody set while the node ran.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Change {
    /// When, seconds since 1970.
    pub unix_s: u64,
    /// When, the newest tick known.
    pub tick: u64,
    /// Who: the user of the process that asked over the admin socket.
    pub uid: u32,
    /// Which process; none where the kernel does not say.
    pub pid: Option<i32>,
    /// What.
    pub key: String,
    /// The value before, as TOML.
    pub from: String,
    /// The value since.
    pub to: String,
}

/// Who asks over the admin socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Asker {
    pub uid: u32,
    pub pid: Option<i32>,
}

impl std::fmt::Display for Asker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "uid {}", self.uid)?;
        self.pid.map_or(Ok(()), |pid| write!(f, " pid {pid}"))
    }
}

/// What holds memory; counts and bounds stand in `limits.rs`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct MemoryStatus {
    /// The heap of shards, keeper and control, as far as it is in use or kept for use, bytes.
    pub heap_bytes: u64,
    /// The heap of RocksDB, likewise: what of the store stands below is in it.
    pub c_heap_bytes: u64,
    /// Changes that are in the store's log and not in its tables yet, bytes.
    pub store_memtables_bytes: u64,
    /// Blocks, indexes and filters of the store's tables, bytes.
    pub store_block_cache_bytes: u64,
    /// What the store's open tables hold beside that, bytes.
    pub store_table_readers_bytes: u64,
    /// Accounts that hold something.
    pub ledger_accounts: u64,
    /// Items that are somewhere.
    pub ledger_items: u64,
    /// Mails that wait.
    pub ledger_mails: u64,
    /// Things on the ground.
    pub ledger_things: u64,
    /// Sources whose answers are in memory.
    pub ledger_sources: u64,
    /// Answers in memory.
    pub ledger_answers: u64,
}

/// The state of the keeper.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct KeeperStatus {
    /// Orders that the ledger answered since the realm began.
    pub orders: u64,
    /// Characters in play.
    pub live: u64,
    /// Groups committed since the start.
    pub commits: u64,
    /// Longest commit since the start, microseconds.
    pub commit_us_max: u64,
    /// Commands waiting at its last look.
    pub queue_depth: u64,
    /// Most commands ever seen waiting.
    pub queue_depth_max: u64,
    /// Looks at a full queue of answers to a shard.
    pub answers_waited: u64,
    /// Claims granted, since the start.
    pub claimed: u64,
    /// Claims refused.
    pub refused: u64,
    /// Sessions told to end for a newer one.
    pub cut: u64,
    /// Rows written; several rows of one character in one group count once.
    pub rows_written: u64,
    /// Rows dropped because a newer one was held.
    pub rows_stale: u64,
    /// Breaks of the ledger's sums since the start; 0: goods are conserved.
    pub breaks: u64,
    /// Nobody is admitted because the disk is nearly full.
    pub disk_full: bool,
}

/// The state of a shard; see [`ShardReport`] for the fields.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ShardStatus {
    /// Shard number.
    pub id: u8,
    /// CPU that it is pinned to.
    pub cpu: usize,
    /// Durations of recent ticks.
    pub tick_us: TickUs,
    /// How late its ticks began since the start.
    pub edge_late_us: EdgeLateUs,
    /// Mean of each phase of its recent ticks, microseconds.
    pub phase_us: BTreeMap<String, f64>,
    /// Share of its core, 0 to 1.
    pub busy: f64,
    /// Share of its core that its own work used, 0 to 1.
    #[serde(default)]
    pub cpu_share: f64,
    /// Connected sessions.
    pub sessions: u64,
    /// Entities on its land.
    pub entities: u64,
    /// Total of entities given away.
    pub handoffs: u64,
    /// Total of late parcels.
    pub late_parcels: u64,
    /// System calls a tick.
    pub syscalls_per_tick: f64,
    /// Total of packets received.
    pub packets_in: u64,
    /// Total of packets sent.
    pub packets_out: u64,
    /// What its flight recorder does; none where nothing is recorded.
    pub record: Option<RecordReport>,
    /// What its cells and lanes cost.
    pub cost_us: CostUs,
    /// Cells of the land that it owns.
    pub cells: u64,
    /// Lanes that it serves.
    #[serde(default)]
    pub lanes: u64,
    /// Total of ticks longer than 33 ms.
    pub long_ticks: u64,
    /// The byte budgets of its sessions.
    pub budgets: BudgetReport,
    /// What it leaves out because its core does not keep up.
    pub ladder: LadderStatus,
    /// Totals of drops by reason.
    pub drops: BTreeMap<String, u64>,
    /// Totals of everything else that is counted, by name.
    #[serde(default)]
    pub counters: BTreeMap<String, u64>,
    /// Commands that wait now because the keeper's queue is full.
    #[serde(default)]
    pub keeper_waiting: u64,
}

/// Where a shard stands on the overload ladder; see [`LadderReport`] for the fields.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LadderStatus {
    /// Number of the step; 0: nothing is left out.
    pub step: u8,
    /// Its name.
    pub name: String,
    /// Somebody holds it there.
    pub forced: bool,
    /// Degrade level in force.
    pub degrade: u8,
    /// Players are admitted, as far as load goes.
    pub admission_open: bool,
    /// Total of turns of wildlife that were put off.
    pub turns_put_off: u64,
    /// Total of times that it came to each step.
    pub entered: BTreeMap<String, u64>,
}

impl From<&LadderReport> for LadderStatus {
    fn from(report: &LadderReport) -> LadderStatus {
        let LadderReport { step, forced, degrade, admission_open, turns_put_off, entered } = *report;
        let entered = ladder::NAMES.iter().map(|name| (*name).to_owned()).zip(entered).collect();
        let (step, name) = (step.number(), step.name().to_owned());
        LadderStatus { step, name, forced, degrade, admission_open, turns_put_off, entered }
    }
}

impl std::fmt::Display for LadderStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&format!("{}{}", self.name, if self.forced { "!" } else { "" }))
    }
}

/// Durations of recent ticks, microseconds.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct TickUs {
    /// Median.
    pub p50: u64,
    /// 99th percentile.
    pub p99: u64,
}

/// How late ticks began, microseconds.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct EdgeLateUs {
    /// Median.
    pub p50: u64,
    /// 99th percentile.
    pub p99: u64,
    /// Lateness, rising, each with the number of its ticks: what two looks have between them is their difference.
    pub counts: Vec<(u64, u64)>,
}

impl EdgeLateUs {
    /// From counts, in rising order.
    pub fn of(counts: Vec<(u64, u64)>) -> EdgeLateUs {
        let all: u64 = counts.iter().map(|(_, count)| count).sum();
        let at = |percent: u64| {
            let mut before = 0;
            let reached = counts.iter().find(|(_, count)| {
                before += count;
                before * 100 >= all * percent
            });
            reached.map_or(0, |&(us, _)| us)
        };
        EdgeLateUs { p50: at(50), p99: at(99), counts }
    }

    /// What came since an earlier look.
    pub fn since(&self, before: &EdgeLateUs) -> EdgeLateUs {
        let earlier = |us: u64| before.counts.iter().find(|count| count.0 == us).map_or(0, |count| count.1);
        EdgeLateUs::of(self.counts.iter().map(|&(us, count)| (us, count.saturating_sub(earlier(us)))).collect())
    }
}

impl From<&ShardReport> for ShardStatus {
    fn from(report: &ShardReport) -> ShardStatus {
        ShardStatus {
            id: report.id,
            cpu: report.cpu,
            tick_us: TickUs { p50: report.tick_us_p50, p99: report.tick_us_p99 },
            edge_late_us: EdgeLateUs::of(report.edge_late_us.clone()),
            phase_us: PHASE_NAMES.iter().map(|name| name.to_string()).zip(report.phase_us).collect(),
            busy: report.busy,
            cpu_share: report.cpu_share,
            sessions: report.sessions,
            entities: report.entities,
            handoffs: report.handoffs,
            late_parcels: report.late_parcels,
            syscalls_per_tick: report.syscalls_per_tick,
            packets_in: report.packets_in,
            packets_out: report.packets_out,
            record: report.record,
            cost_us: report.cost_us,
            cells: report.cells,
            lanes: report.lanes,
            long_ticks: report.long_ticks,
            budgets: report.budgets,
            ladder: LadderStatus::from(&report.ladder),
            drops: by_name(&report.drops),
            counters: by_name(&report.counters),
            keeper_waiting: report.keeper_waiting,
        }
    }
}

fn by_name(counts: &[(&str, u64)]) -> BTreeMap<String, u64> {
    counts.iter().map(|&(name, count)| (name.to_owned(), count)).collect()
}

impl StatusPage {
    /// As a table for people.
    pub fn table(&self) -> String {
        let StatusPage { version, content_version, ready, tick, io, rss_bytes, .. } = self;
        let mut text = format!(
            "ringshard {version}, content {content_version}, {}, tick {tick}, {} MiB, io {}\n",
            if *ready { "ready" } else { "not ready" },
            rss_bytes >> 20,
            io.name(),
        );
        if let Some(keeper) = &self.keeper {
            let conserved = if self.conserved { "goods conserved" } else { "GOODS NOT CONSERVED: see the log" };
            let full = if keeper.disk_full { ", DISK NEARLY FULL: nobody is admitted" } else { "" };
            let KeeperStatus { orders, live, commits, commit_us_max, queue_depth, .. } = keeper;
            text.push_str(&format!(
                "keeper: {orders} orders, {conserved}, {live} characters in play, {commits} commits (longest {commit_us_max} us), {queue_depth} waiting{full}\n"
            ));
        }
        if let Some(cuts) = self.cuts.filter(|cuts| cuts.decrees > 0 || !cuts.auto) {
            let CutsReport { decrees, cells_moved, lanes_moved, last_tick, last_cells, last_lanes, .. } = cuts;
            let auto = if cuts.auto { "" } else { ", balance off" };
            text.push_str(&format!(
                "cuts: {decrees} decrees moved {cells_moved} cells and {lanes_moved} lanes, the last one {last_cells} and \
                 {last_lanes} at tick {last_tick}{auto}\n"
            ));
        }
        text.push_str(
            "shard cpu  p50 us  p99 us  long  busy cells us lanes us cells lanes sessions entities handoffs  late calls/tick ladder      drops\n",
        );
        for shard in &self.shards {
            text.push_str(&format!(
                "{:>5} {:>3} {:>7} {:>7} {:>5} {:>4.0}% {:>8.0} {:>8.0} {:>5} {:>5} {:>8} {:>8} {:>8} {:>5} {:>10.1} {:<10}  {}\n",
                shard.id,
                shard.cpu,
                shard.tick_us.p50,
                shard.tick_us.p99,
                shard.long_ticks,
                shard.busy * 100.0,
                shard.cost_us.cells,
                shard.cost_us.lanes,
                shard.cells,
                shard.lanes,
                shard.sessions,
                shard.entities,
                shard.handoffs,
                shard.late_parcels,
                shard.syscalls_per_tick,
                shard.ladder,
                drops_in_words(&shard.drops)
            ));
        }
        text
    }
}

/// Drops by reason, without those that never happened.
pub(super) fn drops_in_words(drops: &BTreeMap<String, u64>) -> String {
    let counted: Vec<String> =
        drops.iter().filter(|(_, n)| **n > 0).map(|(reason, n)| format!("{reason}={n}")).collect();
    if counted.is_empty() { "none".to_string() } else { counted.join(" ") }
}

/// The newest that is known of each shard, shared by the tasks of the control thread.
pub(super) struct Board {
    data: PathBuf,
    content_version: u64,
    ready: AtomicBool,
    draining: Arc<AtomicBool>,
    commands: Vec<Arc<ArrayQueue<ControlCommand>>>,
    flight: Option<Arc<FlightFolder>>,
    keeper: Option<KeeperView>,
    /// As it is now.
    config: Mutex<Config>,
    tuned: Mutex<VecDeque<Change>>,
    shards: Mutex<Vec<Place>>,
    cuts: Mutex<Cuts>,
}

/// What is known of the cuts.
#[derive(Default)]
struct Cuts {
    report: Option<CutsReport>,
    view: CutsView,
    /// How often it was shown.
    shown: u64,
}

/// What is known of one shard.
#[derive(Default)]
struct Place {
    status: Option<ShardStatus>,
    step: Step,
    tick: u64,
    players: Vec<PlayerRow>,
    /// How often it has listed its players.
    listed: u64,
}

impl Board {
    pub fn new(config: &ControlConfig) -> Board {
        Board {
            data: config.data.clone(),
            content_version: config.content_version,
            ready: AtomicBool::new(false),
            draining: Arc::clone(&config.draining),
            commands: config.commands.clone(),
            flight: config.flight.clone(),
            keeper: config.keeper.clone(),
            config: Mutex::new(config.config.clone()),
            tuned: Mutex::default(),
            shards: Mutex::new(config.commands.iter().map(|_| Place::default()).collect()),
            cuts: Mutex::default(),
        }
    }

    fn shards(&self) -> MutexGuard<'_, Vec<Place>> {
        self.shards.lock().expect("no holder panics")
    }

    fn cuts(&self) -> MutexGuard<'_, Cuts> {
        self.cuts.lock().expect("no holder panics")
    }

    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
    }

    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Takes a shard's report over the one before.
    pub fn take(&self, report: ShardReport) {
        if report.cuts.is_some() {
            let mut cuts = self.cuts();
            cuts.report = report.cuts;
            if let Some(view) = report.cuts_view.clone() {
                cuts.view = view;
                cuts.shown += 1;
            }
        }
        let mut shards = self.shards();
        let place = shards.get_mut(usize::from(report.id)).expect("a shard reports under its own number");
        place.status = Some(ShardStatus::from(&report));
        (place.tick, place.step) = (report.tick, report.ladder.step);
        if let Some(players) = report.players {
            place.players = players;
            place.listed += 1;
        }
    }

    /// The page as of now.
    pub fn page(&self) -> StatusPage {
        let shards = self.shards();
        StatusPage {
            version: env!("CARGO_PKG_VERSION").to_string(),
            content_version: format!("{:016x}", self.content_version),
            ready: self.is_ready() && !self.draining.load(Ordering::Acquire),
            tick: shards.iter().map(|place| place.tick).max().unwrap_or(0),
            io: self.config.lock().expect("no holder panics").net.io,
            rss_bytes: sys::rss_bytes(),
            memory: memory_status(self.keeper.as_ref()),
            conserved: self.keeper.as_ref().is_none_or(|keeper| keeper.counters().breaks.load(Ordering::Relaxed) == 0),
            keeper: self.keeper.as_ref().map(keeper_status),
            cuts: self.cuts().report,
            tuned: self.tuned.lock().expect("no holder panics").iter().cloned().collect(),
            shards: shards.iter().filter_map(|place| place.status.clone()).collect(),
        }
    }

    /// What the steps of all shards ask of the whole node.
    pub fn common(&self) -> Common {
        Common::of(self.shards().iter().map(|place| place.step))
    }

    /// Starts the end of the node: the host sees the flag and tells the shards the tick.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// A new folder for a checkpoint in the data folder. More than one within a second get the seconds that follow.
    pub fn checkpoint_folder(&self) -> PathBuf {
        let mut names = (unix_s()..).map(|second| self.data.join("checkpoints").join(second.to_string()));
        names.find(|name| !name.exists()).expect("there is a free name")
    }

    /// Makes a checkpoint of the realm at `to`, a folder that does not exist yet.
    pub async fn checkpoint(&self, to: PathBuf) -> Result<PathBuf, Failure> {
        if to.exists() {
            let text = format!("{} exists; name a folder that does not with --to", to.display());
            return Err(Failure::new(Code::Usage, text));
        }
        if ["realm", "flight"].iter().any(|taken| to.starts_with(self.data.join(taken))) {
            let text =
                format!("{} is among the files of the running node; name another folder with --to", to.display());
            return Err(Failure::new(Code::Usage, text));
        }
        let Some(keeper) = self.keeper.clone() else {
            return Err(Failure::new(Code::Failed, "this node keeps nothing"));
        };
        let made = tokio::task::spawn_blocking(move || keeper.checkpoint(&to).map(|()| to)).await;
        let made = made.map_err(|_| Failure::new(Code::Failed, "making the checkpoint panicked"))?;
        made.map_err(|error| Failure::new(Code::Io, error.to_string()))
    }

    /// Sets the flight record aside because somebody asked; gives its folder.
    pub async fn set_record_aside(&self) -> Result<PathBuf, Failure> {
        let Some(flight) = self.flight.clone() else {
            return Err(Failure::new(Code::Failed, "this node records nothing: start it with `--record on`"));
        };
        // Files of megabytes are copied: not on the thread that answers everybody.
        let copied = tokio::task::spawn_blocking(move || flight.set_aside(Reason::Request)).await;
        copied.unwrap_or_else(|_| Err(Failure::new(Code::Failed, "setting the flight record aside panicked")))
    }

    /// Tells the shard that balances the cuts what is wanted, and asks for the cuts; gives how often they were shown before,
    /// for [`Board::cuts_since`]. What is impossible changes nothing and is told.
    pub fn steer_cuts(&self, moves: &[CellMove], lanes: &[LaneMove], auto: Option<bool>) -> Result<u64, String> {
        let shards = self.commands.len();
        let has_shard = |shard: u8| match usize::from(shard) < shards {
            true => Ok(()),
            false => Err(format!("there is no shard {shard}: this node has the shards 0 to {}", shards - 1)),
        };
        let mut commands: Vec<ControlCommand> = auto.map(ControlCommand::AutoCuts).into_iter().collect();
        for &CellMove { x, y, shard } in moves {
            let on_land = |at: i16| (0..LAND_CELLS).contains(&at);
            if !on_land(x) || !on_land(y) {
                return Err(format!("there is no cell {x},{y}: columns and rows are 0 to {}", LAND_CELLS - 1));
            }
            has_shard(shard)?;
            let cell = CellKey { space: 0, y, x };
            commands.push(ControlCommand::MoveCell { cell, to: ShardId(shard) });
        }
        for &LaneMove { lane, shard } in lanes {
            if usize::from(lane) >= LANES {
                return Err(format!("there is no lane {lane}: they are 0 to {}", LANES - 1));
            }
            has_shard(shard)?;
            commands.push(ControlCommand::MoveLane { lane, to: ShardId(shard) });
        }
        commands.push(ControlCommand::ShowCuts);
        let before = self.cuts().shown;
        let balancing = &self.commands[0];
        if balancing.capacity() - balancing.len() < commands.len() {
            let most = balancing.capacity() - 2;
            return Err(format!(
                "shard 0 has no room for {} wishes now; ask again, with at most {most}",
                commands.len()
            ));
        }
        // Whoever else asks at the same moment may take the room: then the last ones are not heard.
        let heard = commands.into_iter().all(|command| balancing.push(command).is_ok());
        heard.then_some(before).ok_or_else(|| "shard 0 had no room for all of it; look, and ask again".to_owned())
    }

    /// The cuts, once they were shown since [`Board::steer_cuts`].
    pub fn cuts_since(&self, before: u64) -> Option<(CutsReport, CutsView)> {
        let cuts = self.cuts();
        (cuts.shown > before).then(|| (cuts.report.unwrap_or_default(), cuts.view.clone()))
    }

    /// Every key with its value and where that came from.
    pub fn tunables(&self) -> Vec<Tunable> {
        self.config.lock().expect("no holder panics").tunables()
    }

    /// Sets a key on all shards, and keeps who did it. What is refused changes nothing.
    pub fn tune(&self, key: &str, words: &str, by: Asker) -> Result<Change, String> {
        let mut config = self.config.lock().expect("no holder panics");
        let mut wanted = config.clone();
        let (from, to) = wanted.tune(key, words, &by.to_string())?;
        // Two commands, and room for what the host says meanwhile.
        if let Some(full) = self.commands.iter().position(|queue| queue.capacity() - queue.len() < 6) {
            return Err(format!("shard {full} does not keep up with what it is told; ask again"));
        }
        let rates = Rates { send_hz: wanted.net.send_hz, bytes_per_s: wanted.net.session_bytes_per_s };
        for queue in &self.commands {
            let told = queue.push(ControlCommand::Rates(rates)).is_ok()
                && queue.push(ControlCommand::PinLadder(wanted.load.step)).is_ok();
            assert!(told, "room was asked for");
        }
        *config = wanted;
        let tick = self.shards().iter().map(|place| place.tick).max().unwrap_or(0);
        let Asker { uid, pid } = by;
        let change = Change { unix_s: unix_s(), tick, uid, pid, key: key.to_owned(), from, to };
        eprintln!("ringshard: tuned {key} from {} to {} by {by}", change.from, change.to);
        let mut tuned = self.tuned.lock().expect("no holder panics");
        if tuned.len() == TUNED_KEPT_MAX {
            tuned.pop_front();
        }
        tuned.push_back(change.clone());
        Ok(change)
    }

    /// Asks every shard for its players. Gives how often each had listed them before, for [`Board::players_since`].
    pub fn ask_players(&self) -> Vec<u64> {
        let before = self.shards().iter().map(|place| place.listed).collect();
        for queue in &self.commands {
            // A full queue holds a question already, whose answer serves this one too or names the shard as silent.
            let _ = queue.push(ControlCommand::ListPlayers);
        }
        before
    }

    /// All players by client id, or the shards that have not answered since [`Board::ask_players`].
    pub fn players_since(&self, before: &[u64]) -> Result<Vec<PlayerRow>, Vec<usize>> {
        let shards = self.shards();
        let silent: Vec<usize> = (0..shards.len()).filter(|&shard| shards[shard].listed == before[shard]).collect();
        if !silent.is_empty() {
            return Err(silent);
        }
        let mut players: Vec<PlayerRow> = shards.iter().flat_map(|place| place.players.iter().cloned()).collect();
        players.sort_by_key(|player| (player.client_id, player.entity));
        Ok(players)
    }
}

fn memory_status(keeper: Option<&KeeperView>) -> MemoryStatus {
    let KeeperMemory { store, ledger } = keeper.map_or(KeeperMemory::default(), KeeperView::memory);
    MemoryStatus {
        heap_bytes: sys::heap_bytes(),
        c_heap_bytes: sys::c_heap_bytes(),
        store_memtables_bytes: store.memtables_bytes,
        store_block_cache_bytes: store.block_cache_bytes,
        store_table_readers_bytes: store.table_readers_bytes,
        ledger_accounts: ledger.accounts,
        ledger_items: ledger.items,
        ledger_mails: ledger.mails,
        ledger_things: ledger.things,
        ledger_sources: ledger.sources,
        ledger_answers: ledger.answers,
    }
}

fn keeper_status(keeper: &KeeperView) -> KeeperStatus {
    let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let KeeperCounters {
        claimed,
        refused,
        cut,
        rows_written,
        rows_stale,
        live,
        commits,
        commit_us_max,
        queue_depth,
        queue_depth_max,
        answers_waited,
        orders,
        breaks,
        disk_full,
    } = keeper.counters();
    KeeperStatus {
        orders: read(orders),
        live: read(live),
        commits: read(commits),
        commit_us_max: read(commit_us_max),
        queue_depth: read(queue_depth),
        queue_depth_max: read(queue_depth_max),
        answers_waited: read(answers_waited),
        claimed: read(claimed),
        refused: read(refused),
        cut: read(cut),
        rows_written: read(rows_written),
        rows_stale: read(rows_stale),
        breaks: read(breaks),
        disk_full: read(disk_full) == 1,
    }
}
