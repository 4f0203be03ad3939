//! What a shard tells those who look at it, and what they ask of it.
//!
//! Owns plain values alone. Promises: totals count from the start of the process; what is asked is done at the shard's next
//! tick.

use crate::ladder::{STEPS, Step};
use crate::sessions::session::Rates;
use crate::wire::ids::{CellKey, ShardId};

/// What a shard tells of itself, several times a second. Totals count from the start of the process.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ShardReport {
    /// Shard number.
    pub id: u8,
    /// CPU that it is pinned to.
    pub cpu: usize,
    /// Its newest tick.
    pub tick: u64,
    /// Median of the recent ticks' durations, microseconds.
    pub tick_us_p50: u64,
    /// 99th percentile of the same, microseconds.
    pub tick_us_p99: u64,
    /// How late its ticks began since the start: microseconds, rising, and how many ticks.
    pub edge_late_us: Vec<(u64, u64)>,
    /// Mean of each phase of its ticks since the report before, microseconds, in the order of [`PHASE_NAMES`].
    pub phase_us: [f64; PHASES],
    /// Share of its core that it used since the report before, 0 to 1.
    pub busy: f64,
    /// Share of its core that its own work used, by its thread's CPU clock: far below `busy` where others use the core.
    pub cpu_share: f64,
    /// Connected sessions of its lanes.
    pub sessions: u64,
    /// Entities that stand on its land.
    pub entities: u64,
    /// Total of entities given to other shards.
    pub handoffs: u64,
    /// Total of parcels that came after the meeting's wait.
    pub late_parcels: u64,
    /// System calls a tick since the report before.
    pub syscalls_per_tick: f64,
    /// Total of datagrams and TCP bodies received.
    pub packets_in: u64,
    /// Total of datagrams and TCP bodies sent.
    pub packets_out: u64,
    /// What its flight recorder does; none where nothing is recorded.
    pub record: Option<RecordReport>,
    /// The byte budgets of its sessions.
    pub budgets: BudgetReport,
    /// What it leaves out because its core does not keep up.
    pub ladder: LadderReport,
    /// Totals of what was dropped, refused or late, by reason.
    pub drops: Vec<(&'static str, u64)>,
    /// Totals of everything else that is counted.
    pub counters: Vec<(&'static str, u64)>,
    /// Commands that wait now because the keeper's queue is full.
    pub keeper_waiting: u64,
    /// What its cells and lanes cost.
    pub cost_us: CostUs,
    /// Cells of the land that it owns.
    pub cells: u64,
    /// Lanes that it serves.
    pub lanes: u64,
    /// Total of ticks longer than 33 ms.
    pub long_ticks: u64,
    /// What the coordinator did; from the shard that it runs on.
    pub cuts: Option<CutsReport>,
    /// The cuts themselves, from the same, only after [`ControlCommand::ShowCuts`].
    pub cuts_view: Option<CutsView>,
    /// Who plays here, only after [`ControlCommand::ListPlayers`].
    pub players: Option<Vec<PlayerRow>>,
}

/// Phases of a tick.
pub const PHASES: usize = 7;
/// Their names: what arrived is opened and read; the step; the two meetings, parcels and the wait for them; the frame;
/// snapshots are filled and sealed; the kernel sends them; everything else.
pub const PHASE_NAMES: [&str; PHASES] = ["receive", "step", "meet", "show", "fill", "submit", "rest"];

/// What is measured of a tick, microseconds; median ticks, smoothed over about a second.
#[derive(Clone, Copy, PartialEq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct CostUs {
    /// For the entities of the cells that the shard owns: it moves with the cells.
    pub cells: f64,
    /// For the sessions of its lanes, packets in and out.
    pub lanes: f64,
}

/// What the coordinator of cuts and lanes did since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct CutsReport {
    /// It balances by itself.
    pub auto: bool,
    /// Decrees about cuts and lanes.
    pub decrees: u64,
    /// Cells that they moved.
    pub cells_moved: u64,
    /// Lanes that they moved.
    pub lanes_moved: u64,
    /// The last one is in force from this tick on; 0 before the first.
    pub last_tick: u64,
    /// Cells that it moved.
    pub last_cells: u64,
    /// Lanes that it moved.
    pub last_lanes: u64,
    /// Somebody asked for it.
    pub last_by_hand: bool,
}

/// The cuts, as `tune cuts` shows them.
#[derive(Clone, PartialEq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct CutsView {
    /// Shards of the node.
    pub shards: u8,
    /// Owner of each cell of the land, row by row from the south-west.
    pub owners: Vec<u8>,
    /// The cells with entities.
    pub cells: Vec<CellRow>,
    /// The lanes, in order; behind them the TCP peers of each shard that has some.
    pub lanes: Vec<LaneRow>,
}

/// One lane.
#[derive(Clone, Copy, PartialEq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct LaneRow {
    /// Its number; from 32 on it stands for the TCP peers of a shard, which never move.
    pub lane: u8,
    /// The shard that serves it.
    pub shard: u8,
    /// What it costs, microseconds a tick.
    pub cost_us: f64,
    /// Sessions in it.
    pub sessions: u32,
}

/// One cell with entities.
#[derive(Clone, Copy, PartialEq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct CellRow {
    /// Column, eastwards.
    pub x: i16,
    /// Row, northwards.
    pub y: i16,
    /// Its owner.
    pub shard: u8,
    /// What it costs, microseconds a tick.
    pub cost_us: f64,
    /// Entities at home in it.
    pub entities: u32,
}

/// Where a shard stands on the overload ladder.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LadderReport {
    /// Where.
    pub step: Step,
    /// Somebody holds it there.
    pub forced: bool,
    /// Total of times that it came to each step, from above or below.
    pub entered: [u64; STEPS],
    /// Degrade level in force, the same on all shards.
    pub degrade: u8,
    /// Players are admitted, as far as load goes.
    pub admission_open: bool,
    /// Total of turns of wildlife that were put off.
    pub turns_put_off: u64,
}

/// What the sessions of a shard may send; see `net::flow`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct BudgetReport {
    /// Total of budgets halved because packets were lost or late.
    pub cuts: u64,
    /// The smallest budget, bytes a second; none without sessions.
    pub bytes_per_s_least: Option<u32>,
    /// All budgets on average, likewise.
    pub bytes_per_s_mean: Option<u64>,
}

/// What a shard's flight recorder does.
#[derive(Clone, Copy, PartialEq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct RecordReport {
    /// Total of bytes recorded.
    pub bytes: u64,
    /// Share of the shard's busy time that recording took since the start, 0 to 1.
    pub busy_share: f64,
    /// Total of ticks that were not recorded.
    pub dropped: u64,
}

/// One connected player, as `admin players` lists it.
#[derive(Clone, PartialEq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct PlayerRow {
    /// Client id of its connect token.
    pub client_id: u64,
    /// Its entity.
    pub entity: u64,
    /// Lane of its session; from 32 on: the TCP peers of a shard.
    pub lane: u8,
    /// Its transport is TCP, not UDP.
    pub tcp: bool,
    /// Place, metres east of the land's origin.
    pub x_m: f64,
    /// Place, metres north of the land's origin.
    pub y_m: f64,
}

/// What control asks of a shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ControlCommand {
    /// Every character goes at this tick, and the shard ends soon after.
    StopAt(u64),
    /// Put the players into the next report.
    ListPlayers,
    /// Put the cuts into the next report; only for the shard that balances, like those that follow.
    ShowCuts,
    /// Balance the cuts, or leave them alone.
    AutoCuts(bool),
    /// Give a cell of the land to a shard.
    MoveCell {
        /// Which.
        cell: CellKey,
        /// To whom.
        to: ShardId,
    },
    /// Let a shard serve a lane.
    MoveLane {
        /// Which.
        lane: u8,
        /// Which shard.
        to: ShardId,
    },
    /// Decree this degrade level; only for shard 0.
    Degrade(u8),
    /// Whether anybody is admitted, as far as load goes.
    Admission {
        /// So it is.
        open: bool,
    },
    /// Hold the ladder on this step, or let it go.
    PinLadder(Option<Step>),
    /// How much each session may send from now on.
    Rates(Rates),
}
