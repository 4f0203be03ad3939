//! `swarm`: players over real sockets against a running server.
//!
//! Owns the run: probe, threads, progress, the end. Promises: an open loop (a slow server never makes it send less or
//! later); clients 1 to N with development tokens of its own; everybody leaves. Never talks to the server but as a player.

mod balance;
pub mod link;
mod load;
pub mod place;
pub mod player;
mod probe;
mod report;
pub mod schedule;
mod tally;
pub mod truth;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use ringshard::exit::{Code, Failure, say};
use ringshard::limits::{LANE_SESSIONS_MAX, LANES};

use balance::Watch;
use link::Transport;
use load::{Control, Harvest, LoadThread, Pulse};
use place::{MARCH_STOP_S, Places, Scenario};
use player::{Common, Outage, Player};
use report::Report;
use truth::{OperationsFile, TruthFile};

/// Longest time from the start to the last join; who is not in by then stays out of `connected`.
const JOIN_NS_MAX: u64 = 15_000_000_000;
/// Between two looks of the main thread.
const LOOK: Duration = Duration::from_millis(50);
/// From the start of the threads to the first turn.
const HEAD_START_NS: u64 = 50_000_000;

/// Arguments of `swarm`.
#[derive(Args, Clone, Debug)]
pub struct SwarmArgs {
    /// Players, with client ids from 1.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=(LANES * LANE_SESSIONS_MAX) as i64))]
    players: u32,
    /// Seconds from the last join to the end.
    #[arg(long, default_value_t = 20, value_name = "S", value_parser = clap::value_parser!(u32).range(1..))]
    duration: u32,
    /// What they do.
    #[arg(long, value_enum, default_value = "spread")]
    scenario: Scenario,
    /// The server's game address; it must run with --dev.
    #[arg(long, default_value = "127.0.0.1:7777", value_name = "ADDR")]
    connect: SocketAddr,
    /// How they connect.
    #[arg(long, value_enum, default_value = "udp")]
    transport: Transport,
    /// Input packets a second of each player.
    #[arg(long, default_value_t = 30, value_name = "HZ", value_parser = clap::value_parser!(u32).range(2..=240))]
    input_hz: u32,
    /// One player in so many looks at, and checks, all that it is shown; the others see only which of their commands were
    /// applied, which is what thousands on one load core have time for.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    look_one_in: u32,
    /// Control address of the server: then the report says how its shards share the work.
    #[arg(long, value_name = "ADDR")]
    control: Option<SocketAddr>,
    /// The load threads never sleep, so that nobody has to wake them: for cores that they share with nobody.
    #[arg(long)]
    awake: bool,
    /// Load threads.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    threads: u32,
    /// A file that always says what each player was told last, one JSON object a line; FILE.ops gets every answer to an
    /// operation.
    #[arg(long, value_name = "FILE")]
    truth: Option<PathBuf>,
    /// In the middle of the run everybody is off the network for so long, and the report says how long the lag after it
    /// lasts; over UDP.
    #[arg(long, value_name = "S", value_parser = pause_s)]
    pause: Option<f64>,
    /// Seed of what the players want.
    #[arg(long, default_value_t = 1, value_name = "S")]
    seed: u64,
}

/// Seconds of the run that are measured on either side of a pause, at the least.
const PAUSE_MARGIN_S: f64 = 5.0;
/// Longest pause: after three seconds without an update players count what they see as never leaving.
const PAUSE_S_MAX: f64 = 2.5;

fn pause_s(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.1..=PAUSE_S_MAX).contains(seconds));
    seconds.ok_or_else(|| format!("a pause is 0.1 to {PAUSE_S_MAX} seconds"))
}

/// A run between its start and its end.
struct Run {
    control: Arc<Control>,
    pulses: Vec<Arc<Mutex<Pulse>>>,
    threads: Vec<thread::JoinHandle<Harvest>>,
    truth: Option<TruthFile>,
    players: usize,
    progress: Progress,
    balance: Option<Watch>,
}

/// What was printed a second ago.
#[derive(Default)]
struct Progress {
    second: u64,
    inputs_sent: u64,
    snapshots_received: u64,
}

/// Runs a swarm to its end and prints the report.
pub fn run(args: &SwarmArgs, json: bool) -> Result<ExitCode, Failure> {
    if args.scenario == Scenario::Trade && args.players < 2 {
        return Err(Failure::new(Code::Usage, "one player has nobody to trade with; --players is at least 2 here"));
    }
    let least = MARCH_STOP_S + balance::SETTLE_S + 1;
    if args.scenario == Scenario::March && args.duration < least {
        let text =
            format!("a march takes {MARCH_STOP_S} s and is watched for some more: --duration is at least {least} here");
        return Err(Failure::new(Code::Usage, text));
    }
    if let Some(pause_s) = args.pause {
        if args.transport != Transport::Udp {
            return Err(Failure::new(Code::Usage, "--pause loses datagrams; leave out --transport here"));
        }
        if f64::from(args.duration) < 2.0 * (pause_s + PAUSE_MARGIN_S) {
            let least = (2.0 * (pause_s + PAUSE_MARGIN_S)).ceil();
            let text =
                format!("what comes before and after the pause is measured: --duration is at least {least} here");
            return Err(Failure::new(Code::Usage, text));
        }
    }
    ringshard::sys::raise_open_files();
    let stopped = stop_on_signal()?;
    let truth = args.truth.as_deref().map(TruthFile::create).transpose()?;
    let operations = args.truth.as_deref().map(OperationsFile::create).transpose()?;
    let welcome = probe::welcome_of(args.connect)?;
    args.control.iter().try_for_each(|&control| ringshard::control::client::status(control).map(|_| ()))?;
    let places = Places::find(args.scenario, &welcome).map_err(|text| Failure::new(Code::Failed, text))?;
    let drops_before = ringshard::io::kernel_drops(args.connect.port());
    let mut run = Run::start(args, &places, truth, operations.as_ref())?;
    let watched = run.watch(u64::from(args.duration) * 1_000_000_000, &stopped);
    let balance = run.balance.take().map(Watch::end);
    let (harvests, duration_ns) = run.end()?;
    watched?;
    let server_drops = ringshard::io::kernel_drops(args.connect.port()).saturating_sub(drops_before);
    let mut report = Report::of(args, &welcome, &harvests, duration_ns, server_drops);
    report.balance = balance;
    finish(&report, json)
}

/// Prints the report, and says why the run failed if it did.
fn finish(report: &Report, json: bool) -> Result<ExitCode, Failure> {
    let failure = report.failure();
    let mut value = serde_json::to_value(report).expect("finite numbers are JSON");
    if let Some(text) = &failure {
        value["error"] = text.as_str().into();
        value["exit_code"] = (Code::Failed as u8).into();
    }
    say(json, &report.table(), || value)?;
    Ok(match failure {
        None => ExitCode::SUCCESS,
        Some(text) => {
            eprintln!("ringshard-bench: {text}");
            ExitCode::from(Code::Failed as u8)
        }
    })
}

/// A flag that INT and TERM raise: then everybody leaves early.
pub fn stop_on_signal() -> Result<Arc<AtomicBool>, Failure> {
    let stopped = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, stopped.clone())
            .map_err(|error| Failure::new(Code::Machine, format!("signals cannot be handled: {error}")))?;
    }
    Ok(stopped)
}

impl Run {
    fn start(
        args: &SwarmArgs,
        places: &Places,
        truth: Option<TruthFile>,
        operations: Option<&OperationsFile>,
    ) -> Result<Run, Failure> {
        let control = Arc::new(Control {
            origin: Instant::now(),
            begin_ns: AtomicU64::new(u64::MAX),
            stop: AtomicBool::new(false),
        });
        let (server, transport, input_hz) = (args.connect, args.transport, args.input_hz);
        let trades = args.scenario == Scenario::Trade;
        let (land, seed, look_one_in) = (places.land.clone(), args.seed, args.look_one_in);
        let awake = args.awake;
        let seconds = |s: f64| (s * 1e9) as u64;
        let pause = args.pause.map(|s| Outage {
            from_ns: seconds(f64::from(args.duration) / 2.0),
            until_ns: seconds(f64::from(args.duration) / 2.0 + s),
        });
        let common = Common { server, transport, input_hz, land, seed, look_one_in, trades, awake, pause };
        let players = u64::from(args.players);
        // Pairs stay on one thread: its two players must know each other.
        let group = if trades { 2 } else { 1 };
        let threads = u64::from(args.threads).min(players.div_ceil(group));
        let mut run = Run {
            control,
            pulses: Vec::new(),
            threads: Vec::new(),
            truth,
            players: players as usize,
            progress: Progress::default(),
            balance: args.control.map(|control| Watch::new(control, args.scenario)),
        };
        for thread in 0..threads {
            let player = |number: u64| {
                let join_ns = HEAD_START_NS + schedule::join_ns(number, players);
                Player::new(number, join_ns, places.haunt(number, players), &common)
            };
            let is_mine = |number: &u64| number / group % threads == thread;
            let mine: Vec<Player> = (0..players).filter(is_mine).map(player).collect();
            // Coming in takes a moment; until the first pulse nobody is gone.
            let pulse = Arc::new(Mutex::new(Pulse { coming: mine.len(), ..Pulse::default() }));
            let start_ns = HEAD_START_NS + 1_000_000_000 * thread / (u64::from(input_hz) * players);
            let operations = operations.map(OperationsFile::share).transpose()?;
            let (control, common) = (run.control.clone(), common.clone());
            let load = LoadThread::new(control, pulse.clone(), common, mine, start_ns, operations);
            let failed = |error: std::io::Error| Failure::new(Code::Machine, format!("no load thread: {error}"));
            let load = load.map_err(failed)?;
            let spawned = thread::Builder::new().name(format!("load-{thread}")).spawn(move || load.run());
            run.threads.push(spawned.map_err(failed)?);
            run.pulses.push(pulse);
        }
        Ok(run)
    }

    /// Waits for the joins and then for the end, with a line of progress each second.
    fn watch(&mut self, duration_ns: u64, stopped: &AtomicBool) -> Result<(), Failure> {
        loop {
            thread::sleep(LOOK);
            let now_ns = self.control.now_ns();
            let begin_ns = self.control.begin_ns.load(Ordering::Relaxed);
            let pulse = self.pulse();
            if begin_ns == u64::MAX && (pulse.coming == 0 || now_ns >= JOIN_NS_MAX) {
                self.control.begin_ns.store(now_ns, Ordering::Relaxed);
            }
            if now_ns / 1_000_000_000 > self.progress.second {
                self.progress.second = now_ns / 1_000_000_000;
                self.say_progress(&pulse);
                let since_s = now_ns.checked_sub(begin_ns).map(|ns| ns / 1_000_000_000);
                if let (Some(balance), Some(since_s)) = (&mut self.balance, since_s) {
                    balance.look(since_s as u32);
                }
                if let Some(truth) = &self.truth {
                    truth.write(&pulse.told)?;
                }
            }
            let nobody = pulse.playing == 0 && pulse.coming == 0;
            let over = now_ns >= begin_ns.saturating_add(duration_ns);
            if nobody || over || stopped.load(Ordering::Relaxed) {
                return Ok(());
            }
        }
    }

    /// All threads' newest pulses as one.
    fn pulse(&self) -> Pulse {
        let mut all = Pulse::default();
        for pulse in &self.pulses {
            let pulse = pulse.lock().unwrap_or_else(PoisonError::into_inner);
            all.playing += pulse.playing;
            all.coming += pulse.coming;
            all.inputs_sent += pulse.inputs_sent;
            all.snapshots_received += pulse.snapshots_received;
            all.latency_us_p99 = all.latency_us_p99.max(pulse.latency_us_p99);
            all.errors.add(pulse.errors);
            all.told.extend_from_slice(&pulse.told);
        }
        all
    }

    fn say_progress(&mut self, pulse: &Pulse) {
        let Progress { second, inputs_sent, snapshots_received } = self.progress;
        eprintln!(
            "{second:>4} s: {} of {} play, {} inputs/s, {} snapshots/s, input to snapshot p99 {:.1} ms, {} errors",
            pulse.playing,
            self.players,
            pulse.inputs_sent - inputs_sent,
            pulse.snapshots_received - snapshots_received,
            pulse.latency_us_p99 as f64 / 1_000.0,
            pulse.errors.sum(),
        );
        (self.progress.inputs_sent, self.progress.snapshots_received) = (pulse.inputs_sent, pulse.snapshots_received);
    }

    /// Everybody leaves: what the threads counted, and how long the run was.
    fn end(mut self) -> Result<(Vec<Harvest>, u64), Failure> {
        let now_ns = self.control.now_ns();
        let duration_ns = now_ns.saturating_sub(self.control.begin_ns.load(Ordering::Relaxed));
        self.control.stop.store(true, Ordering::Relaxed);
        let join = |thread: thread::JoinHandle<Harvest>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        let mut harvests: Vec<Harvest> = self.threads.drain(..).map(join).collect();
        if let Some(failure) = harvests.iter_mut().find_map(|harvest| harvest.failure.take()) {
            return Err(failure);
        }
        if let Some(truth) = &self.truth {
            truth.write(&self.pulse().told)?;
        }
        Ok((harvests, duration_ns))
    }
}
