//! The command line: every command, its flags and what they mean.
//!
//! Owns no behaviour; `main` dispatches. Promises: usage errors exit with 2, with `--json` as one object.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::{Flag, Raw};
use crate::control::admin::{CellMove, LaneMove};
use crate::exit::{Code, Failure};
use crate::io::Backend;

/// A game server for one large, seamless, persistent world.
#[derive(Parser, Debug)]
#[command(name = "ringshard", version, about)]
pub struct Cli {
    /// One JSON object on standard output instead of text, also on failure.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What `ringshard` can do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run a node until TERM.
    Serve(ServeArgs),
    /// Check kernel, limits, cores, clock and disk, and say what mends them.
    Doctor(DoctorArgs),
    /// Check a configuration file and tell every mistake at once.
    CheckConfig(CheckConfigArgs),
    /// Print the commented default configuration.
    DefaultConfig,
    /// Print connect tokens, one base64 line each.
    Token(TokenArgs),
    /// Print the bytes of a ready, constant TCP frame for simple load tools.
    Frame(FrameArgs),
    /// Print the state of a running node.
    Status(StatusArgs),
    /// Ask a running node to do something, over its admin socket.
    Admin(AdminArgs),
    /// Look at what a running node decides by itself, and steer it.
    #[command(subcommand)]
    Tune(Tune),
    /// Read a stopped server's data folder.
    Inspect(InspectArgs),
    /// Run the world in the deterministic host; exit 1 on any violation.
    Sim(SimArgs),
    /// Run the worlds of a flight record once more and compare each hash; exit 1 on any difference.
    Replay(ReplayArgs),
}

/// Flags of `serve`.
#[derive(Args, Debug, Default)]
pub struct ServeArgs {
    /// Configuration file [default: /etc/ringshard/ringshard.toml where it exists, none with --dev].
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Loopback only, development key, temporary data unless --data: no root and no services needed.
    #[arg(long)]
    pub dev: bool,
    /// Number of shards [default: cores minus one, at least 1].
    #[arg(long, value_name = "N")]
    pub shards: Option<u16>,
    /// CPUs of the shards, as 1-3,6 [default: the highest].
    #[arg(long, value_name = "LIST")]
    pub cpus: Option<String>,
    /// Game UDP and TCP address [default: 127.0.0.1:7777].
    #[arg(long, value_name = "ADDR")]
    pub bind: Option<String>,
    /// Control HTTP address [default: 127.0.0.1:7780].
    #[arg(long, value_name = "ADDR")]
    pub control: Option<String>,
    /// Data folder [default: /var/lib/ringshard, temporary with --dev].
    #[arg(long, value_name = "DIR")]
    pub data: Option<String>,
    /// How packets pass: by io_uring, or by system calls where that is denied [default: ring].
    #[arg(long, value_name = "ring|mmsg")]
    pub io: Option<String>,
    /// Whether each shard records what it does, for `replay` [default: on].
    #[arg(long, value_name = "on|off")]
    pub record: Option<String>,
    /// Status lines even on a terminal.
    #[arg(long)]
    pub no_tui: bool,
    /// Print each value of the configuration with its origin, and end.
    #[arg(long)]
    pub print_config: bool,
}

impl ServeArgs {
    /// The flags that set configuration keys.
    pub fn flags(&self) -> Vec<Flag> {
        let text = |value: &Option<String>| value.clone().map(Raw::Text);
        let flags = [
            ("node.shards", "--shards", self.shards.map(|shards| Raw::Integer(shards.into()))),
            ("node.cpus", "--cpus", text(&self.cpus)),
            ("net.bind", "--bind", text(&self.bind)),
            ("net.control", "--control", text(&self.control)),
            ("node.data", "--data", text(&self.data)),
            ("net.io", "--io", text(&self.io)),
            ("record.flight", "--record", text(&self.record)),
        ];
        flags.into_iter().filter_map(|(key, name, value)| Some(Flag { key, name, value: value? })).collect()
    }
}

/// Flags of `doctor`.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// Number of shards to check for [default: cores minus one, at least 1].
    #[arg(long, value_name = "N")]
    pub shards: Option<u16>,
    /// How packets are to pass [default: ring].
    #[arg(long, value_name = "ring|mmsg")]
    pub io: Option<String>,
    /// Data folder whose disk is checked [default: the folder for temporary files].
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
}

/// Arguments of `check-config`.
#[derive(Args, Debug)]
pub struct CheckConfigArgs {
    /// The file.
    #[arg(default_value = crate::config::DEFAULT_FILE)]
    pub file: PathBuf,
    /// Check it as `serve --dev` would read it.
    #[arg(long)]
    pub dev: bool,
}

/// Flags of `token`.
#[derive(Args, Debug)]
pub struct TokenArgs {
    /// Make it with the development key, which `serve --dev` accepts.
    #[arg(long)]
    pub dev: bool,
    /// Configuration file that names the private key and the addresses, without --dev
    /// [default: /etc/ringshard/ringshard.toml].
    #[arg(long, value_name = "FILE", conflicts_with = "dev")]
    pub config: Option<PathBuf>,
    /// Address of the server in the token [default: the configured ones, 127.0.0.1:7777 with --dev].
    #[arg(long, value_name = "ADDR")]
    pub server: Option<SocketAddr>,
    /// Client id: the character.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub client_id: u64,
    /// Seconds until it expires.
    #[arg(long, value_name = "S", default_value_t = 3_600)]
    pub ttl: u32,
    /// Number of tokens, with rising client ids.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub count: u32,
    /// For TCP load tools: many connections may show it, each a new unsaved guest. Only with --dev.
    #[arg(long, requires = "dev")]
    pub reusable: bool,
    /// The 2,048 bytes themselves instead of base64.
    #[arg(long, conflicts_with = "json")]
    pub raw: bool,
}

/// Arguments of `frame`.
#[derive(Args, Debug)]
pub struct FrameArgs {
    /// Which frame.
    pub kind: FrameKind,
    /// File with a connect token, base64 or raw [default for hello: a new reusable development token].
    #[arg(long, value_name = "FILE")]
    pub token: Option<PathBuf>,
}

/// Ready TCP frames.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameKind {
    /// The first frame: the connect token.
    Hello,
    /// A command to walk.
    Input,
    /// A ping, answered with a constant marker.
    Ping,
}

/// How a running node is found.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Data folder of the node.
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Control HTTP address of the node [default: 127.0.0.1:7780].
    #[arg(long, value_name = "ADDR", conflicts_with = "data")]
    pub control: Option<SocketAddr>,
}

/// Arguments of `admin`.
#[derive(Args, Debug)]
pub struct AdminArgs {
    /// Data folder of the node.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/ringshard")]
    pub data: PathBuf,
    /// What the node should do.
    pub verb: AdminVerb,
    /// Where a checkpoint goes, a folder that does not exist yet, not among the files of the realm [default:
    /// DATA/checkpoints/UNIX_SECONDS].
    #[arg(long, value_name = "DIR")]
    pub to: Option<PathBuf>,
}

/// What a node can be asked.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum AdminVerb {
    /// Take no more joins, save everybody and end, as on TERM.
    Drain,
    /// List who plays.
    Players,
    /// Set the flight record aside and say where it is.
    Record,
    /// Copy the realm as it is now into a data folder of its own, while everything goes on; say where it is.
    Checkpoint,
}

/// What can be tuned.
#[derive(Subcommand, Debug)]
pub enum Tune {
    /// Measure this machine for some seconds and recommend settings, each with its reason.
    Probe(ProbeArgs),
    /// Every setting of a running node with its origin, and which can be set while it runs.
    Show(ShowArgs),
    /// Set a key of a running node; it is checked as in a file, and who set it is kept.
    Set(SetArgs),
    /// Each shard of a running node, once a second.
    Watch(WatchArgs),
    /// Which shard owns which cell of the land and serves which lane, what that costs, and who decides it.
    Cuts(CutsArgs),
}

/// Flags of `tune probe`.
#[derive(Args, Debug)]
pub struct ProbeArgs {
    /// Data folder whose disk is measured [default: the folder for temporary files].
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// How packets are to pass [default: ring].
    #[arg(long, value_name = "ring|mmsg", default_value = "ring", value_parser = parse_backend)]
    pub io: Backend,
    /// Players that the node is meant for.
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub players: u32,
}

/// Flags of `tune show`.
#[derive(Args, Debug)]
pub struct ShowArgs {
    /// Data folder of the node.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/ringshard")]
    pub data: PathBuf,
}

/// Arguments of `tune set`.
#[derive(Args, Debug)]
pub struct SetArgs {
    /// Data folder of the node.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/ringshard")]
    pub data: PathBuf,
    /// As in the configuration file: section.name.
    pub key: String,
    /// As in the configuration file; text needs no quotes.
    pub value: String,
}

/// Flags of `tune watch`.
#[derive(Args, Debug)]
pub struct WatchArgs {
    /// How the node is found.
    #[command(flatten)]
    pub node: StatusArgs,
    /// Looks until it ends [default: until the node or the reader ends].
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
}

/// Arguments of `tune cuts`.
#[derive(Args, Debug)]
pub struct CutsArgs {
    /// Data folder of the node.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/ringshard")]
    pub data: PathBuf,
    /// Give a cell to a shard; may come more than once. Columns count eastwards, rows northwards, from 0.
    #[arg(long = "move", value_name = "X,Y=SHARD", value_parser = parse_cell_move)]
    pub moves: Vec<CellMove>,
    /// Let a shard serve a lane (0 to 31) with its sessions; may come more than once.
    #[arg(long = "lane", value_name = "LANE=SHARD", value_parser = parse_lane_move)]
    pub lanes: Vec<LaneMove>,
    /// Whether the node moves cells and lanes by itself when its shards' costs differ.
    #[arg(long, value_name = "on|off", value_parser = parse_switch)]
    pub auto: Option<bool>,
}

fn parse_backend(text: &str) -> Result<Backend, String> {
    Backend::of_name(text).ok_or_else(|| "expected ring or mmsg".to_string())
}

fn parse_switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("expected on or off".to_string()),
    }
}

fn parse_lane_move(text: &str) -> Result<LaneMove, String> {
    let parse = || {
        let (lane, shard) = text.split_once('=')?;
        Some(LaneMove { lane: lane.parse().ok()?, shard: shard.parse().ok()? })
    };
    parse().ok_or_else(|| "expected LANE=SHARD, as 31=1".to_string())
}

fn parse_cell_move(text: &str) -> Result<CellMove, String> {
    let parse = || {
        let (cell, shard) = text.split_once('=')?;
        let (x, y) = cell.split_once(',')?;
        Some(CellMove { x: x.parse().ok()?, y: y.parse().ok()?, shard: shard.parse().ok()? })
    };
    parse().ok_or_else(|| "expected column, row and shard, as 31,32=1".to_string())
}

/// Arguments of `inspect`.
#[derive(Args, Debug)]
pub struct InspectArgs {
    /// Prove from the files that nothing was lost or doubled; exit 1 if something was.
    #[arg(long)]
    pub check: bool,
    /// What to look at, then the data folder of a stopped node: `characters DATA`, `ledger DATA`, `item UID DATA`, or with
    /// --check just `DATA`.
    #[arg(value_names = ["WHAT", "DATA"], num_args = 1..=3, required = true)]
    pub words: Vec<String>,
}

/// What a data folder can be asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InspectWhat {
    /// Every character: id, position, tick.
    Characters,
    /// The sums of all goods.
    Ledger,
    /// Everywhere that an item ever was.
    Item(u64),
    /// Whether everything agrees.
    Check,
}

impl InspectArgs {
    /// What is asked, of which folder.
    pub fn asked(&self) -> Result<(InspectWhat, PathBuf), Failure> {
        let words: Vec<&str> = self.words.iter().map(String::as_str).collect();
        let (what, data) = match (self.check, &words[..]) {
            (true, [data]) => (InspectWhat::Check, data),
            (false, ["characters", data]) => (InspectWhat::Characters, data),
            (false, ["ledger", data]) => (InspectWhat::Ledger, data),
            (false, ["item", uid, data]) => {
                let wrong = |_| Failure::new(Code::Usage, format!("an item's uid is a number, not {uid:?}"));
                (InspectWhat::Item(uid.parse().map_err(wrong)?), data)
            }
            _ => {
                let text = "expected `inspect characters DATA`, `inspect ledger DATA`, `inspect item UID DATA` or `inspect --check DATA`";
                return Err(Failure::new(Code::Usage, text));
            }
        };
        Ok((what, PathBuf::from(data)))
    }
}

/// Arguments of `replay`.
#[derive(Args, Debug)]
pub struct ReplayArgs {
    /// The folder `flight` of a data folder, or one in `flight/kept`.
    pub folder: PathBuf,
    /// Last tick to replay [default: as far as the record goes].
    #[arg(long, value_name = "TICK")]
    pub until: Option<u64>,
    /// Tell the history of the entity with this id.
    #[arg(long, value_name = "ID")]
    pub entity: Option<u64>,
}

/// Flags of `sim`.
#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("seeding").required(true).args(["seed", "seeds"]))]
pub struct SimArgs {
    /// The seed of one run.
    #[arg(long, value_name = "S")]
    pub seed: Option<u64>,
    /// Seeds of several runs, FROM..TO without TO.
    #[arg(long, value_name = "FROM..TO", value_parser = parse_seeds)]
    pub seeds: Option<(u64, u64)>,
    /// Ticks of each run [default: 3600, with faults 1800, of which the last 600 are quiet].
    #[arg(long, value_name = "N")]
    pub ticks: Option<u64>,
    /// Number of shards [default: 2, with faults 4]. Of several, as 1,2,4,8, each seed runs on each and must come to the
    /// same; with faults they must be one number, as 4,4: then each seed runs so many times.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub shards: Vec<u8>,
    /// How the bots behave [default: seam, with faults trade].
    #[arg(long, value_name = "NAME")]
    pub scenario: Option<crate::realm::sim::SimScenario>,
    /// Number of bots [default: 120, with faults 32].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=5_000))]
    pub bots: Option<u32>,
    /// NPCs of the land [default: 1000, with faults 100].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=100_000))]
    pub npcs: Option<u32>,
    /// What may go wrong. Each seed draws some of it, so that many seeds meet all of it.
    #[arg(long, value_name = "KIND", default_value = "none")]
    pub faults: crate::realm::sim::faults::Faults,
    /// Bytes a second of each player's link from the server [default: any number].
    #[arg(long, value_name = "BYTES_PER_S", value_parser = clap::value_parser!(u32).range(8_000..=10_000_000))]
    pub link: Option<u32>,
    /// How many times slower the cores are than one of today, until the last 600 ticks; 0: their work takes no time.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub slowdown: u32,
}

fn parse_seeds(text: &str) -> Result<(u64, u64), String> {
    let parsed = text.split_once("..").and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
    match parsed {
        Some((from, to)) if from < to => Ok((from, to)),
        _ => Err("expected FROM..TO with FROM below TO, as 1..100".to_string()),
    }
}

/// What the arguments ask for.
#[derive(Debug)]
pub enum Asked {
    /// A command.
    Command(Cli),
    /// Help or the version: print this and end well.
    Text(String),
}

/// Reads the arguments, the program's name first. Errors are usage, exit code 2.
pub fn parse(arguments: impl IntoIterator<Item = std::ffi::OsString>) -> Result<Asked, Failure> {
    match Cli::try_parse_from(arguments) {
        Ok(cli) => Ok(Asked::Command(cli)),
        Err(error) if error.exit_code() == 0 => Ok(Asked::Text(error.to_string())),
        Err(error) => {
            let text = error.to_string();
            Err(Failure::new(Code::Usage, text.strip_prefix("error: ").unwrap_or(&text).trim_end()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(line: &str) -> Result<Asked, Failure> {
        parse(line.split(' ').map(std::ffi::OsString::from))
    }

    fn command(line: &str) -> Command {
        match asked(line) {
            Ok(Asked::Command(cli)) => cli.command,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn the_definition_is_sound() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn flags_of_serve_become_configuration() {
        let Command::Serve(args) = command("ringshard serve --dev --shards 2 --bind 127.0.0.1:9") else { panic!() };
        let names: Vec<&str> = args.flags().iter().map(|flag| flag.name).collect();
        assert_eq!(names, ["--shards", "--bind"]);
        assert_eq!(args.flags()[0].value, Raw::Integer(2));
    }

    #[test]
    fn usage_errors_exit_with_2_and_help_does_not() {
        for line in
            ["ringshard", "ringshard serve --shard", "ringshard admin dance", "ringshard sim", "ringshard frame"]
        {
            assert_eq!(asked(line).expect_err(line).code, Code::Usage, "{line}");
        }
        assert!(asked("ringshard serve --shard").unwrap_err().text.contains("--shards"), "it says what was meant");
        assert!(matches!(asked("ringshard --help"), Ok(Asked::Text(text)) if text.contains("check-config")));
        assert!(matches!(asked("ringshard --version"), Ok(Asked::Text(text)) if text.starts_with("ringshard 0.")));
    }

    #[test]
    fn a_reusable_token_is_for_development_only() {
        assert!(asked("ringshard token --reusable").is_err());
        assert!(matches!(command("ringshard token --dev --reusable"), Command::Token(args) if args.reusable));
    }

    #[test]
    fn a_cell_and_its_shard_are_three_numbers() {
        let Command::Tune(Tune::Cuts(args)) =
            command("ringshard tune cuts --move 3,4=1 --move 0,63=0 --lane 7=1 --auto off")
        else {
            panic!()
        };
        let cells: Vec<_> = args.moves.iter().map(|wish| (wish.x, wish.y, wish.shard)).collect();
        assert_eq!((cells, args.auto), (vec![(3, 4, 1), (0, 63, 0)], Some(false)));
        assert_eq!(args.lanes, [LaneMove { lane: 7, shard: 1 }]);
        for wrong in [
            "--lane 7",
            "--lane 7=x",
            "--lane 256=0",
            "--move 3,4",
            "--move 3=1",
            "--move 3,4=x",
            "--move 3,4=256",
            "--auto maybe",
            "--move",
        ] {
            assert_eq!(asked(&format!("ringshard tune cuts {wrong}")).expect_err(wrong).code, Code::Usage, "{wrong}");
        }
    }

    #[test]
    fn seeds_are_a_range() {
        assert!(matches!(command("ringshard sim --seeds 3..9"), Command::Sim(SimArgs { seeds: Some((3, 9)), .. })));
        assert!(asked("ringshard sim --seeds 9..3").is_err() && asked("ringshard sim --seed 1 --seeds 1..2").is_err());
    }
}
