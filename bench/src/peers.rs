//! `peers`: the same game on what one would take instead of ringshard.
//!
//! Owns the rounds. In each round three servers serve the same bots one after the other, in turns that rotate: `ringshard
//! serve` itself; the same game over a tokio UDP socket; the same game over renet 2.0 with its netcode transport.
//!
//! What is the same: the land, the wildlife, the rules, interest, the bytes of commands and snapshots, their rates, the
//! bots and what they check (every snapshot is opened, parsed and held against the movement code, and every eighth
//! client checks whom it is shown), 60 ticks a second, an
//! answer in the tick that applied what it answers, encryption, one pinned core for all threads of the server and another
//! for the load, the same priority. What differs is the way of a message between the kernel and the game: ringshard has
//! its own ring, handshake and ciphers; the tokio server has the same handshake and ciphers behind `recv_from` and
//! `try_send_to`; renet has everything its own way. Nobody records a flight. Only ringshard keeps characters, on threads
//! that the peers do not have: the figure is CPU time of the thread that serves, and beside it stands that of all threads.
//!
//! A message is a body with commands that came to the server, or a snapshot that came to a client; what a protocol sends
//! beside them is its own cost. Promises: CPU time as the kernel counts it; a leg with a late load, with drops at
//! either end, with contradictions or with unanswered commands is void: it is played once more (five of a run), and where
//! that is used up the run is void and says so. Never asks a server for its opinion.

mod game;
mod load;
mod over_renet;
mod over_tokio;

use std::ffi::OsStr;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use clap::Args;
use ringshard::exit::{Code, Failure, say};
use ringshard::io::never_fragment;
use ringshard::limits::LANE_RECEIVE_BUFFER_BYTES;
use ringshard::shard::SHARD_NICE;
use ringshard::sys;
use serde::Serialize;

use crate::machine::{Provenance, process_cpu_s, threads_cpu_s};
use crate::node::{self, Work, server_program};
use crate::spread::Spread;
use crate::swarm::stop_on_signal;
use game::Game;
use load::{Cpu, Tally};

/// Lateness of the load from which a leg says nothing, milliseconds.
const LATE_MS_MAX: f64 = 2.0;
/// Legs of a run that are played once more because they were void: another machine on the same host may have been why.
const AGAIN_MAX: u32 = 5;
/// Least share of the window's commands that snapshots of the window name as applied: some are always under way.
const ANSWERED_MIN: f64 = 0.9;

/// The same game, the same bots and the same messages on three servers in turn: `ringshard serve`, a tokio UDP server
/// with the product's own handshake, ciphers and game behind it, and renet 2.0 (netcode transport, encrypted) with the
/// product's game behind it. One pinned core for all of a server, another for the load. Gives the messages in and out per
/// second of CPU time of the server's serving thread, as the kernel counts it, and ringshard's divided by each peer's;
/// beside it the same for all threads: only ringshard's keeper has some more.
#[derive(Args, Clone, Debug)]
pub struct PeersArgs {
    /// Clients; renet takes 1,024 at the most.
    #[arg(long, default_value_t = 1_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=over_renet::CLIENTS_MAX as i64))]
    players: u32,
    /// Messages a second and client, each way.
    #[arg(long, default_value_t = 20, value_name = "HZ", value_parser = clap::value_parser!(u32).range(2..=60))]
    hz: u32,
    /// Wildlife.
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=100_000))]
    npcs: u32,
    /// Everybody all over the land, where snapshots are small; else in one disc of 30 m, where each fills its datagram.
    #[arg(long)]
    spread: bool,
    /// Rounds: one leg of each server.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    pairs: u32,
    /// What is counted of a leg, milliseconds.
    #[arg(long, default_value_t = 1_000, value_name = "MS", value_parser = clap::value_parser!(u32).range(200..=600_000))]
    window_ms: u32,
    /// One of them alone, for a profile: no ratio.
    #[arg(long, value_enum, value_name = "SIDE")]
    only: Option<Side>,
    /// The server's program [default: beside this one].
    #[arg(long, value_name = "PATH")]
    server: Option<PathBuf>,
}

/// Who serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
enum Side {
    Ringshard,
    Tokio,
    Renet,
}

/// What came of one server in one round.
#[derive(Clone, Debug, Serialize)]
struct Leg {
    side: Side,
    round: u32,
    messages_in: u64,
    messages_out: u64,
    bytes_in_mean: f64,
    bytes_out_mean: f64,
    datagrams_per_message: f64,
    window_s: f64,
    core_s: f64,
    process_s: f64,
    messages_per_core_s: f64,
    answered: f64,
    input_to_snapshot_p99_ms: f64,
    load_late_p99_ms: f64,
    load_busy: f64,
    drops: u64,
    errors: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    void_because: Option<String>,
}

/// Runs the rounds and prints what came of them.
pub fn run(args: &PeersArgs, json: bool) -> Result<ExitCode, Failure> {
    sys::raise_open_files();
    let stopped = stop_on_signal()?;
    let program = server_program(args.server.as_deref())?;
    let [load_cpu, server_cpu] = two_cpus()?;
    let sides = args.only.map_or(vec![Side::Ringshard, Side::Tokio, Side::Renet], |side| vec![side]);
    let mut legs = Vec::new();
    let mut again = AGAIN_MAX;
    for round in 1..=args.pairs {
        for turn in 0..sides.len() {
            let side = sides[(turn + round as usize) % sides.len()];
            loop {
                narrow(server_cpu)?;
                let server = Server::start(side, args, &program, &stopped)?;
                narrow(load_cpu)?;
                // A thread of its own: the next server must not inherit the load's priority.
                let serve = || server.serve(side, round, args, &stopped);
                let served = thread::scope(|scope| scope.spawn(serve).join());
                let leg = served.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                let named = |text| Failure::new(Code::Failed, format!("{side:?}, round {round}: {text}"));
                let leg = leg.map_err(named)?;
                eprintln!("{}", leg.line());
                if leg.void_because.is_none() || again == 0 {
                    legs.push(leg);
                    break;
                }
                again -= 1;
            }
        }
    }
    report(args, &sides, &legs, AGAIN_MAX - again, json)?;
    Ok(ExitCode::SUCCESS)
}

/// The CPUs of the load and of the server: the lowest and the highest that this process may use.
fn two_cpus() -> Result<[usize; 2], Failure> {
    match sys::cpus_allowed()[..] {
        [first, .., last] => Ok([first, last]),
        _ => Err(Failure::new(Code::Machine, "needs two cores, one for the server and one for the load")),
    }
}

/// Restricts this thread, and what it starts from now on, to one CPU.
fn narrow(cpu: usize) -> Result<(), Failure> {
    let failed = |error| Failure::new(Code::Machine, format!("no thread can be pinned to CPU {cpu}: {error}"));
    sys::set_thread_cpus(&[cpu]).map_err(failed)
}

/// A server that waits for clients.
enum Server {
    Process { server: node::Server, work: Work },
    Thread { address: SocketAddr, name: String, stop: Arc<AtomicBool>, thread: JoinHandle<std::io::Result<u64>> },
}

impl Server {
    /// Starts it on the CPU of the calling thread.
    fn start(side: Side, args: &PeersArgs, program: &Path, stopped: &AtomicBool) -> Result<Server, Failure> {
        let failed = |what: &str, error: std::io::Error| Failure::new(Code::Machine, format!("{what}: {error}"));
        if side == Side::Ringshard {
            let work = Work::make("peers", None)?;
            let (config, data) = (work.path().join("ringshard.toml"), work.path().join("data"));
            let text = format!("[net]\nsend_hz = {}\n[world]\nnpcs = {}\n", args.hz, args.npcs);
            std::fs::write(&config, text).map_err(|error| Failure::of_file("write", &config, &error))?;
            let fixed = ["--shards", "1", "--record", "off", "--config"].map(OsStr::new);
            let arguments = fixed.into_iter().chain([config.as_os_str(), OsStr::new("--data"), data.as_os_str()]);
            let started = node::Server::start(program, arguments, stopped);
            let server = started.map_err(|text| Failure::new(Code::Failed, format!("ringshard: {text}")))?;
            return Ok(Server::Process { server, work });
        }
        let socket = UdpSocket::bind("127.0.0.1:0").map_err(|error| failed("no UDP port", error))?;
        let buffer = sys::buffer_bytes(&socket, true, LANE_RECEIVE_BUFFER_BYTES as i32);
        let ready = buffer.and_then(|_| never_fragment(&socket)).and_then(|()| socket.set_nonblocking(true));
        ready.map_err(|error| failed("no UDP socket", error))?;
        let address = socket.local_addr().map_err(|error| failed("no UDP port", error))?;
        let (stop, name) = (Arc::new(AtomicBool::new(false)), format!("peer-{side:?}").to_lowercase());
        let (stop_there, npcs, send_hz) = (stop.clone(), args.npcs, args.hz);
        let serve = move || {
            // As a shard asks; without the right to it all sides go without.
            let _ = sys::set_thread_nice(SHARD_NICE);
            let game = Game::new(npcs, send_hz);
            match side {
                Side::Renet => over_renet::serve(socket, game, &stop_there),
                _ => over_tokio::serve(socket, game, &stop_there),
            }
        };
        let spawned = thread::Builder::new().name(name.clone()).spawn(serve);
        let thread = spawned.map_err(|error| failed("no thread", error))?;
        Ok(Server::Thread { address, name, stop, thread })
    }

    /// Plays on it until the leg's end, and ends it.
    fn serve(self, side: Side, round: u32, args: &PeersArgs, stopped: &AtomicBool) -> Result<Leg, String> {
        let address = match &self {
            Server::Process { server, .. } => server.game,
            Server::Thread { address, .. } => *address,
        };
        let played = load::play(args, address, side == Side::Renet, || self.cpu(), stopped);
        let lost = ringshard::io::kernel_drops(address.port());
        let refused = self.end()?;
        Ok(Leg::of(side, round, &played?, lost + refused))
    }

    fn cpu(&self) -> Cpu {
        match self {
            Server::Process { server, .. } => {
                Cpu { serving_s: threads_cpu_s(server.pid(), "shard-0"), all_s: process_cpu_s(server.pid()) }
            }
            Server::Thread { name, .. } => {
                let serving_s = threads_cpu_s(std::process::id(), name);
                Cpu { serving_s, all_s: serving_s }
            }
        }
    }

    /// Ends it; gives the datagrams that the kernel did not take of it.
    fn end(self) -> Result<u64, String> {
        match self {
            Server::Process { mut server, work } => {
                let ended = server.words_if_ended().map_or(Ok(0), Err);
                server.kill();
                drop(work);
                ended
            }
            Server::Thread { stop, thread, .. } => {
                stop.store(true, Ordering::Relaxed);
                let served = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                served.map_err(|error| format!("it ended: {error}"))
            }
        }
    }
}

impl Leg {
    fn of(side: Side, round: u32, tally: &Tally, server_drops: u64) -> Leg {
        let messages = (tally.messages_in + tally.messages_out).max(1) as f64;
        let mean = |bytes: u64, count: u64| bytes as f64 / count.max(1) as f64;
        let ms = |histogram: &hdrhistogram::Histogram<u64>| histogram.value_at_quantile(0.99) as f64 / 1_000.0;
        let (window_s, core_s) = (tally.window.as_secs_f64(), tally.cpu.serving_s);
        let mut leg = Leg {
            side,
            round,
            messages_in: tally.messages_in,
            messages_out: tally.messages_out,
            bytes_in_mean: mean(tally.bytes_in, tally.messages_in),
            bytes_out_mean: mean(tally.bytes_out, tally.messages_out),
            datagrams_per_message: tally.datagrams as f64 / messages,
            window_s,
            core_s,
            process_s: tally.cpu.all_s,
            messages_per_core_s: messages / core_s.max(1e-9),
            answered: tally.commands.1 as f64 / tally.commands.0.max(1) as f64,
            input_to_snapshot_p99_ms: ms(&tally.latency_us),
            load_late_p99_ms: ms(&tally.late_us),
            load_busy: tally.load_s / window_s,
            drops: tally.drops + server_drops,
            errors: tally.errors,
            void_because: None,
        };
        leg.void_because = leg.void();
        leg
    }

    fn void(&self) -> Option<String> {
        let late = self.load_late_p99_ms;
        let whys = [
            (late > LATE_MS_MAX, format!("the load was late: p99 {late:.1} ms")),
            (self.drops > 0, format!("{} datagrams were lost", self.drops)),
            (self.errors > 0, format!("{} contradictions in what clients were told", self.errors)),
            (self.answered < ANSWERED_MIN, format!("{:.0} % of the commands were answered", self.answered * 100.0)),
        ];
        let whys: Vec<String> = whys.into_iter().filter(|(is, _)| *is).map(|(_, why)| why).collect();
        (!whys.is_empty()).then(|| whys.join(", "))
    }

    fn us_per_message(&self) -> f64 {
        1e6 / self.messages_per_core_s
    }

    fn us_per_message_of_all(&self) -> f64 {
        self.us_per_message() * self.process_s / self.core_s
    }

    fn line(&self) -> String {
        let void = self.void_because.as_ref().map_or(String::new(), |why| format!("; VOID: {why}"));
        format!(
            "round {} {:<10} {:.2} us a message ({:.2} with all threads), core {:.0} % busy, load {:.0} %, p99 {:.1} ms{void}",
            self.round,
            format!("{:?}", self.side).to_lowercase(),
            self.us_per_message(),
            self.us_per_message_of_all(),
            100.0 * self.core_s / self.window_s,
            100.0 * self.load_busy,
            self.input_to_snapshot_p99_ms,
        )
    }
}

/// Ringshard's messages per second of CPU time divided by a peer's, of each round.
fn ratio(legs: &[Leg], peer: Side, cost: fn(&Leg) -> f64) -> Option<Spread> {
    let of = |side: Side| legs.iter().filter(move |leg| leg.side == side);
    Spread::of(of(Side::Ringshard).zip(of(peer)).map(|(own, peer)| cost(peer) / cost(own)))
}

fn report(args: &PeersArgs, sides: &[Side], legs: &[Leg], again: u32, json: bool) -> Result<(), Failure> {
    let void: Vec<String> = legs
        .iter()
        .filter_map(|leg| Some(format!("{:?}, round {}: {}", leg.side, leg.round, leg.void_because.as_ref()?)))
        .collect();
    let mut text = format!(
        "{} clients {}, {} messages a second each way, {} round(s) of {} ms\n",
        args.players,
        if args.spread { "all over the land" } else { "in a crowd" },
        args.hz,
        args.pairs,
        args.window_ms
    );
    let mut value = serde_json::json!({
        "players": args.players,
        "hz": args.hz,
        "crowd": !args.spread,
        "npcs": args.npcs,
        "pairs": args.pairs,
        "legs": legs,
        "legs_played_again": again,
        "void": !void.is_empty(),
        "provenance": Provenance::here(),
    });
    if !void.is_empty() {
        value["void_because"] = void.join("; ").into();
    }
    let name = "messages per core-s";
    text.push_str(&format!("{:<10} {name:>20} {:>10} {:>9} {:>10}\n", "", "us each", "bytes in", "bytes out"));
    for side in sides {
        let of = || legs.iter().filter(|leg| leg.side == *side);
        let per_core_s = Spread::of(of().map(|leg| leg.messages_per_core_s)).expect("each side had a leg");
        let last = of().next_back().expect("each side had a leg");
        let name = format!("{side:?}").to_lowercase();
        value[&name] = serde_json::json!({ "messages_per_core_s": per_core_s });
        text.push_str(&format!(
            "{name:<10} {:>20.0} {:>10.2} {:>9.0} {:>10.0}\n",
            per_core_s.median,
            1e6 / per_core_s.median,
            last.bytes_in_mean,
            last.bytes_out_mean
        ));
    }
    for (peer, name) in [(Side::Tokio, "tokio"), (Side::Renet, "renet")] {
        let serving = ratio(legs, peer, Leg::us_per_message);
        let all = ratio(legs, peer, Leg::us_per_message_of_all);
        let (Some(serving), Some(all)) = (serving, all) else { continue };
        value[format!("{name}_ratio")] = serde_json::json!(serving);
        value[format!("{name}_ratio_all_threads")] = serde_json::json!(all);
        let Spread { median, min, max } = serving;
        text.push_str(&format!(
            "ringshard / {name:<10} {median:.2} ({min:.2} to {max:.2}); with all threads {:.2}\n",
            all.median
        ));
    }
    if again > 0 {
        text.push_str(&format!("{again} leg(s) were void and played again\n"));
    }
    for why in &void {
        text.push_str(&format!("VOID {why}\n"));
    }
    say(json, &text, || value)
}
