//! The rows of the table: what is measured, how, and what it is to reach.
//!
//! Owns the bounds that the project set itself. Promises: a bound is not loosened to be reached.

/// A figure.
pub struct Row {
    /// Names it on the command line.
    pub name: &'static str,
    /// In words.
    pub what: &'static str,
    /// Where it comes from.
    pub measurement: &'static str,
    /// JSON pointer to it.
    pub field: &'static str,
    /// JSON pointer to why it is void, if it is.
    pub void: &'static str,
    /// Whether less is better.
    pub less: bool,
    /// What it must reach.
    pub floor: f64,
    /// What it is to reach.
    pub aim: f64,
    /// The command that shows it.
    pub command: &'static str,
}

/// One way to measure.
pub struct Measurement {
    /// Names it.
    pub name: &'static str,
    /// Runs for the published table; where a command makes pairs itself, one.
    pub runs: u32,
    /// Part of the quick table.
    pub quick: bool,
    /// How.
    pub source: Source,
}

/// How a measurement is made.
pub enum Source {
    /// A command of this program.
    Command(&'static [&'static str]),
    /// A field of one command's output through that of another.
    Ratio {
        /// The one.
        above: &'static [&'static str],
        /// The other.
        below: &'static [&'static str],
        /// JSON pointer into both.
        field: &'static str,
    },
    /// Players on a server of one core, with as many snapshots as inputs.
    Swarm {
        /// How many.
        players: u32,
        /// Inputs a second of each.
        input_hz: u32,
    },
    /// The most players on a server of one core whose latency is below a bound in two of three runs.
    Most {
        /// How many are tried first.
        players: u32,
        /// By how many more or fewer, then.
        step: u32,
        /// How many at the most.
        players_max: u32,
        /// Inputs, and snapshots, a second of each.
        input_hz: u32,
        /// Bound of the 99th percentile from input to snapshot.
        latency_ms: f64,
    },
}

/// All measurements, in the order in which they are made.
pub const MEASUREMENTS: &[Measurement] = &[
    Measurement { name: "pps", runs: 3, quick: true, source: Source::Command(&["pps"]) },
    Measurement { name: "mmsg", runs: 1, quick: false, source: Source::Command(&["pps", "--baseline", "mmsg"]) },
    Measurement { name: "swarm-5000", runs: 3, quick: true, source: Source::Swarm { players: 5_000, input_hz: 20 } },
    Measurement {
        name: "swarm-60",
        runs: 1,
        quick: false,
        source: Source::Most { players: 2_000, step: 250, players_max: 3_500, input_hz: 60, latency_ms: 25.0 },
    },
    Measurement { name: "tick", runs: 3, quick: true, source: Source::Command(&["tick"]) },
    Measurement {
        name: "crowd",
        runs: 5,
        quick: true,
        source: Source::Ratio { above: &["tick", "--crowd"], below: &["tick"], field: "/share_of_core" },
    },
    Measurement {
        name: "crowd-60",
        runs: 1,
        quick: false,
        source: Source::Command(&["tick", "--crowd", "--send-hz", "60"]),
    },
    Measurement { name: "scale", runs: 1, quick: false, source: Source::Command(&["scale"]) },
    Measurement { name: "edge", runs: 1, quick: false, source: Source::Command(&["edge"]) },
    Measurement { name: "wire", runs: 3, quick: true, source: Source::Command(&["wire"]) },
    Measurement { name: "join", runs: 1, quick: true, source: Source::Command(&["join"]) },
    Measurement { name: "peers", runs: 1, quick: false, source: Source::Command(&["peers"]) },
    Measurement { name: "ledger", runs: 3, quick: false, source: Source::Command(&["ledger"]) },
];

/// All rows.
pub const ROWS: &[Row] = &[
    Row {
        name: "receive",
        what: "datagrams a second that one shard core takes in, none lost, 5,000 sessions with snapshots at 10 Hz",
        measurement: "pps",
        field: "/server_rx_pps",
        void: "/receive/void",
        less: false,
        floor: 500_000.0,
        aim: 650_000.0,
        command: "ringshard-bench pps",
    },
    Row {
        name: "echo",
        what: "answers a second and core of the whole server ÷ a bare `recvmmsg` to `sendmmsg` echo",
        measurement: "pps",
        field: "/ratio",
        void: "/echo/void",
        less: false,
        floor: 0.60,
        aim: 0.70,
        command: "ringshard-bench pps",
    },
    Row {
        name: "mmsg",
        what: "CPU time of a datagram and its answer by io_uring ÷ by `recvmmsg` and `sendmmsg` (`--io mmsg`)",
        measurement: "mmsg",
        field: "/ring_to_mmsg_cpu_ratio",
        void: "/void",
        less: true,
        floor: 1.03,
        aim: 0.95,
        command: "ringshard-bench pps --baseline mmsg",
    },
    Row {
        name: "latency",
        what: "5,000 players, 20 Hz inputs, one shard core: input to snapshot p99, ms",
        measurement: "swarm-5000",
        field: "/input_to_snapshot_ms/p99",
        void: "/void",
        less: true,
        floor: 25.0,
        aim: 20.0,
        command: "ringshard-bench swarm --players 5000 --input-hz 20 --look-one-in 50 --awake",
    },
    Row {
        name: "busy",
        what: "the same: share of the shard core",
        measurement: "swarm-5000",
        field: "/busy",
        void: "/void",
        less: true,
        floor: 0.70,
        aim: 0.55,
        command: "ringshard-bench swarm --players 5000 --input-hz 20 --look-one-in 50 --awake",
    },
    Row {
        name: "players-60",
        what: "the most players with 60 Hz inputs and snapshots, one shard core: input to snapshot p99 below 25 ms",
        measurement: "swarm-60",
        field: "/players",
        void: "/void",
        less: false,
        floor: 2_000.0,
        aim: 3_000.0,
        command: "ringshard-bench swarm --players N --input-hz 60 --look-one-in 50 --awake",
    },
    Row {
        name: "tick",
        what: "5,000 players and 20,000 wildlife without kernel and cipher: share of a core",
        measurement: "tick",
        field: "/share_of_core",
        void: "/void",
        less: true,
        floor: 0.20,
        aim: 0.10,
        command: "ringshard-bench tick",
    },
    Row {
        name: "crowd",
        what: "all 5,000 in one spot ÷ spread, tick cost",
        measurement: "crowd",
        field: "/ratio",
        void: "/void",
        less: true,
        floor: 2.0,
        aim: 1.5,
        command: "ringshard-bench tick --crowd",
    },
    Row {
        name: "stale-near",
        what: "the same crowd at 60 Hz: staleness p99 of the nearest 40, ticks",
        measurement: "crowd-60",
        field: "/stale_ticks_p99/near40",
        void: "/void",
        less: true,
        floor: 2.0,
        aim: 1.0,
        command: "ringshard-bench tick --crowd --send-hz 60",
    },
    Row {
        name: "stale-next",
        what: "of the next 200",
        measurement: "crowd-60",
        field: "/stale_ticks_p99/next200",
        void: "/void",
        less: true,
        floor: 10.0,
        aim: 6.0,
        command: "ringshard-bench tick --crowd --send-hz 60",
    },
    Row {
        name: "stale-rest",
        what: "of the rest within 60 m",
        measurement: "crowd-60",
        field: "/stale_ticks_p99/rest",
        void: "/void",
        less: true,
        floor: 120.0,
        aim: 70.0,
        command: "ringshard-bench tick --crowd --send-hz 60",
    },
    Row {
        name: "scale",
        what: "two shards on two cores ÷ one on one, without the kernel, a fifth of everybody near the border",
        measurement: "scale",
        field: "/ratio",
        void: "/void",
        less: false,
        floor: 1.80,
        aim: 1.92,
        command: "ringshard-bench scale",
    },
    Row {
        name: "edge",
        what: "how late ticks begin, p99 ÷ a bare loop on an absolute timer under the same load",
        measurement: "edge",
        field: "/ratio",
        void: "/void",
        less: true,
        floor: 1.5,
        aim: 1.1,
        command: "ringshard-bench edge",
    },
    Row {
        name: "encodes",
        what: "encodes an entity and tick",
        measurement: "tick",
        field: "/encodes_per_entity_tick",
        void: "/void",
        less: true,
        floor: 2.0,
        aim: 1.2,
        command: "ringshard-bench tick",
    },
    Row {
        name: "bits",
        what: "bits a moved entity, packed",
        measurement: "tick",
        field: "/bits_per_update",
        void: "/void",
        less: true,
        floor: 51.0,
        aim: 40.0,
        command: "ringshard-bench tick",
    },
    Row {
        name: "parse",
        what: "hot packet, verify and parse, ns",
        measurement: "wire",
        field: "/parse_ns",
        void: "/void",
        less: true,
        floor: 60.0,
        aim: 30.0,
        command: "ringshard-bench wire",
    },
    Row {
        name: "allocations",
        what: "allocations in a steady tick",
        measurement: "tick",
        field: "/allocations_per_tick",
        void: "/void",
        less: true,
        floor: 0.0,
        aim: 0.0,
        command: "ringshard-bench tick",
    },
    Row {
        name: "join",
        what: "5,000 joins at once: seconds until all play",
        measurement: "join",
        field: "/seconds",
        void: "/void",
        less: true,
        floor: 5.0,
        aim: 2.0,
        command: "ringshard-bench join",
    },
    Row {
        name: "memory",
        what: "RAM of the server with 5,000 playing and 20,000 wildlife, bytes",
        measurement: "join",
        field: "/rss_bytes",
        void: "/void",
        less: true,
        floor: 1_073_741_824.0,
        aim: 314_572_800.0,
        command: "ringshard-bench join",
    },
    Row {
        name: "client",
        what: "of it a client's, bytes",
        measurement: "join",
        field: "/rss_per_client_bytes",
        void: "/void",
        less: true,
        floor: 32_768.0,
        aim: 12_288.0,
        command: "ringshard-bench join",
    },
    Row {
        name: "renet",
        what: "messages a second and core at 1,000 clients ÷ the same game on renet 2.0",
        measurement: "peers",
        field: "/renet_ratio/median",
        void: "/void",
        less: false,
        floor: 5.0,
        aim: 9.0,
        command: "ringshard-bench peers",
    },
    Row {
        name: "tokio",
        what: "the same ÷ a tokio UDP server doing the same work",
        measurement: "peers",
        field: "/tokio_ratio/median",
        void: "/void",
        less: false,
        floor: 1.2,
        aim: 1.5,
        command: "ringshard-bench peers",
    },
    Row {
        name: "trades",
        what: "durable trades a second",
        measurement: "ledger",
        field: "/transfers_per_s",
        void: "/void",
        less: false,
        floor: 100_000.0,
        aim: 100_000.0,
        command: "ringshard-bench ledger",
    },
    Row {
        name: "trades-wait",
        what: "from an order to its durable answer p99, ms",
        measurement: "ledger",
        field: "/durable_p99_ms",
        void: "/void",
        less: true,
        floor: 25.0,
        aim: 25.0,
        command: "ringshard-bench ledger",
    },
];
