//! Load tools and baselines of ringshard, never installed with the daemon: all of the program `ringshard-bench`, and what it
//! shares with the benches in `bench/benches`.

mod attack;
mod crash;
mod drive;
mod heap;
mod instructions;
mod ledger;
mod machine;
mod node;
mod peers;
mod pps;
mod spread;
mod swarm;
mod table;
mod tick;
mod wire;

pub use heap::CountingHeap;
pub use tick::realm::{Haunts, Measured, PHASES, Realm, Setting};
pub use wire::{PACKET_BYTES_MAX, Packets};

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ringshard::exit::{Code, Failure, say};

/// Load tools and baselines for a ringshard server. Every result is also one JSON object, with --json.
#[derive(Parser)]
#[command(name = "ringshard-bench", version)]
struct Cli {
    /// One JSON object on standard output, nothing else there.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Players over real sockets against a running server: an open loop, every snapshot checked.
    Swarm(swarm::SwarmArgs),
    /// Hostile senders against a server on this machine, alone or beside honest players (--pairs).
    Attack(attack::AttackArgs),
    /// A server that is killed, or loses power, again and again while players trade: nobody may lose what he was told.
    Crash(crash::CrashArgs),
    /// What a tick costs a shard, without kernel and cipher.
    Tick(tick::TickArgs),
    /// Two shards on two cores beside one on one, with the same players, a fifth of everybody near the border.
    Scale(tick::seam::ScaleArgs),
    /// What it costs that an entity changes its shard.
    Handoff(tick::seam::HandoffArgs),
    /// Datagrams a second of one shard core, taken and answered, beside a bare echo.
    Pps(pps::PpsArgs),
    /// How late ticks begin, beside a bare loop on an absolute timer under the same load.
    Edge(pps::edge::EdgeArgs),
    /// How long it takes until thousands play who come at once, and their memory.
    Join(pps::join::JoinArgs),
    /// Every published figure beside its floor and its aim: runs the other commands.
    Table(table::TableArgs),
    /// What verifying, sealing, opening and encoding cost, without a system call.
    Wire(wire::WireArgs),
    /// Instructions of the step, the encoder and the packet path beside their references; needs valgrind.
    Instructions(instructions::InstructionsArgs),
    /// Trades that the keeper makes durable, in groups and one by one.
    Ledger(ledger::LedgerArgs),
    /// The same game on what one would take instead: a tokio UDP server, and renet.
    Peers(peers::PeersArgs),
}

/// The program: does what its arguments say.
pub fn main() -> ExitCode {
    let json = std::env::args_os().any(|argument| argument == "--json");
    let done = match Cli::try_parse() {
        Ok(Cli { command: Command::Swarm(args), .. }) => swarm::run(&args, json),
        Ok(Cli { command: Command::Attack(args), .. }) => attack::run(&args, json),
        Ok(Cli { command: Command::Crash(args), .. }) => crash::run(&args, json),
        Ok(Cli { command: Command::Tick(args), .. }) => tick::run(&args, json),
        Ok(Cli { command: Command::Scale(args), .. }) => tick::seam::scale(&args, json),
        Ok(Cli { command: Command::Handoff(args), .. }) => tick::seam::handoff(&args, json),
        Ok(Cli { command: Command::Pps(args), .. }) => pps::run(&args, json),
        Ok(Cli { command: Command::Edge(args), .. }) => pps::edge::run(&args, json),
        Ok(Cli { command: Command::Join(args), .. }) => pps::join::run(&args, json),
        Ok(Cli { command: Command::Table(args), .. }) => table::run(&args, json),
        Ok(Cli { command: Command::Wire(args), .. }) => wire::run(&args, json),
        Ok(Cli { command: Command::Instructions(args), .. }) => instructions::run(&args, json),
        Ok(Cli { command: Command::Ledger(args), .. }) => ledger::run(&args, json),
        Ok(Cli { command: Command::Peers(args), .. }) => peers::run(&args, json),
        Err(error) if error.use_stderr() => Err(usage_failure(&error, json)),
        Err(text) => {
            let text = text.to_string();
            say(json, &text, || serde_json::json!({ "text": text })).map(|()| ExitCode::SUCCESS)
        }
    };
    done.unwrap_or_else(|failure| failure.report(json))
}

fn usage_failure(error: &clap::Error, json: bool) -> Failure {
    let text = error.to_string();
    let text = text.trim_start_matches("error: ").trim_end();
    Failure::new(Code::Usage, if json { text.replace('\n', " ") } else { text.to_owned() })
}
