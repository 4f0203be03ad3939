//! `crash`: a server that ends without a warning, again and again on one realm, while players trade.
//!
//! Owns the rounds and everything that they start: server, swarm, disk. Promises: whatever a player was told before an end
//! is looked for after it, and after every later one; a realm that lost something stays for whoever looks into it; no
//! process and no mount outlives the run.

mod children;
mod disk;
mod judge;
mod report;

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use ringshard::exit::{Code, Failure, say};
use ringshard::wire::ids::EntityId;
use ringshard::world::random::{below, random};

use crate::node::{Server, Work, server_program};
use crate::swarm::stop_on_signal;
use children::Swarm;
use disk::Place;
use judge::{Judge, Verdict};
use report::Report;

/// Longest that a start may take on any realm that this bench makes.
const START_MAX: Duration = Duration::from_secs(5);
/// When a server ends, after the first answer to an operation that anybody heard.
const MOMENT_MS: std::ops::RangeInclusive<u32> = 800..=4_000;
/// Longest wait for the first answer.
const FIRST_ANSWER_MAX: Duration = Duration::from_secs(30);
/// Longest wait for players to notice that their server is gone.
const SWARM_END_MAX: Duration = Duration::from_secs(30);
/// Seconds that the players play on the last start, and the longest wait for their end.
const LAST_PLAY_S: u32 = 2;
const LAST_PLAY_MAX: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(10);

/// How a server ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Kind {
    /// SIGKILL: the process is gone, the kernel still writes what it was given.
    Kill,
    /// The power is gone: what the disk did not have by then is lost. Needs root and loop devices.
    Power,
}

impl Kind {
    /// As on the command line.
    fn name(self) -> &'static str {
        match self {
            Kind::Kill => "kill",
            Kind::Power => "power",
        }
    }
}

/// Arguments of `crash`.
#[derive(Args, Clone, Debug)]
pub struct CrashArgs {
    /// How the server ends.
    #[arg(long, value_enum)]
    kind: Kind,
    /// How often.
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    count: u32,
    /// Players that trade, at least one pair.
    #[arg(long, default_value_t = 200, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=10_000))]
    players: u32,
    /// An empty folder for the realm, which stays; without it, one in the temporary folder, which stays if something was
    /// lost.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// The server's program; without it, the `ringshard` beside this one.
    #[arg(long, value_name = "PATH")]
    server: Option<PathBuf>,
    /// Seed of the moments and of what the players want.
    #[arg(long, default_value_t = 1, value_name = "S")]
    seed: u64,
}

/// Why the rounds stopped early.
enum Trouble {
    /// The server did what it must not.
    Server(String),
    /// The bench cannot go on.
    Bench(Failure),
}

/// A signal asked for the end.
fn stopped_early() -> Trouble {
    Trouble::Bench(Failure::new(Code::Failed, "stopped by a signal"))
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Trouble {
        Trouble::Bench(failure)
    }
}

/// Everything between the rounds.
struct Rounds<'a> {
    args: &'a CrashArgs,
    server: PathBuf,
    place: Place,
    truth: PathBuf,
    judge: Judge,
    report: Report,
    stopped: Arc<AtomicBool>,
}

/// Runs the rounds and prints what came of them.
pub fn run(args: &CrashArgs, json: bool) -> Result<ExitCode, Failure> {
    let server = server_program(args.server.as_deref())?;
    if args.kind == Kind::Power {
        disk::require()?;
    }
    let stopped = stop_on_signal()?;
    let mut work = Work::make("crash", args.data.as_deref())?;
    let place = Place::make(args.kind, &work)?;
    let truth = work.path().join("told");
    let report = Report::new(args);
    let mut rounds = Rounds { args, server, place, truth, judge: Judge::default(), report, stopped };
    let ended = rounds.all();
    let Rounds { place, mut report, stopped, .. } = rounds;
    let look_at = place.look_at();
    // The disk goes before its folder.
    drop(place);
    match ended {
        Ok(()) => (),
        // A terminal's signal also ends the server and the swarm, which is nobody's fault.
        Err(_) if stopped.load(Ordering::Relaxed) => return Err(Failure::new(Code::Failed, "stopped by a signal")),
        Err(Trouble::Bench(failure)) => {
            work.keep();
            let text = format!("{}; {look_at}", failure.text);
            return Err(Failure { text, ..failure });
        }
        Err(Trouble::Server(text)) => {
            work.keep();
            report.breaks.push(text);
            report.kept = Some(look_at);
        }
    }
    let failure = report.failure();
    let mut value = serde_json::to_value(&report).expect("finite numbers are JSON");
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

impl Rounds<'_> {
    fn all(&mut self) -> Result<(), Trouble> {
        for round in 1..=self.args.count {
            self.crash(round)?;
        }
        self.serve_once_more()
    }

    /// One start, some play, one end, one look at what is left.
    fn crash(&mut self, round: u32) -> Result<(), Trouble> {
        let mut server = self.start()?;
        let start = server.start;
        let seed = self.args.seed.wrapping_mul(1_000_000) + u64::from(round);
        let mut swarm = Swarm::start(self.args.players, server.game, &self.truth, seed, None)?;
        self.wait_for_answers(&mut swarm, &mut server)?;
        let spread = MOMENT_MS.end() - MOMENT_MS.start() + 1;
        let moment = MOMENT_MS.start() + below(random(seed, EntityId::NONE, 0, 0), spread);
        self.sleep(Duration::from_millis(moment.into()))?;
        if let Some(words) = server.words_if_ended() {
            return Err(Trouble::Server(format!("round {round}: the server ended by itself: {words}")));
        }
        self.report.copies_repeated += self.place.end(&mut server, &self.stopped)?;
        let told_before = self.judge.told();
        if swarm.wait(SWARM_END_MAX, &self.stopped)?.is_none() {
            let text = "the swarm did not notice that its server is gone";
            return Err(Trouble::Bench(Failure::new(Code::Failed, text)));
        }
        self.judge.hear(&self.truth)?;
        self.report.rounds = round;
        let verdict = self.look(round)?;
        eprintln!(
            "round {round} of {}: ready in {:.0} ms, {} after {:.1} s of answers, {} told, {} orders and {} characters \
             in the files, nothing lost",
            self.args.count,
            start.as_secs_f64() * 1_000.0,
            match self.args.kind {
                Kind::Kill => "killed",
                Kind::Power => "power cut",
            },
            f64::from(moment) / 1_000.0,
            self.judge.told() - told_before,
            verdict.orders,
            verdict.characters,
        );
        Ok(())
    }

    /// Starts the server on the realm; a start that fails or takes too long is a trouble of the server's.
    fn start(&mut self) -> Result<Server, Trouble> {
        let realm = self.place.realm();
        let arguments = [OsStr::new("--shards"), "2".as_ref(), "--data".as_ref(), realm.as_os_str()];
        let started = Server::start(&self.server, arguments, &self.stopped);
        let round = self.report.rounds + 1;
        let server = started.map_err(|text| Trouble::Server(format!("start {round}: {text}")))?;
        self.report.started(server.start);
        if server.start > START_MAX {
            let ms = server.start.as_millis();
            return Err(Trouble::Server(format!("start {round} took {ms} ms, more than {} s", START_MAX.as_secs())));
        }
        let (found, there) = (server.recovered, self.report.characters);
        if found != there {
            let text = format!("start {round} recovered {found} characters, and {there} are in the files");
            return Err(Trouble::Server(text));
        }
        Ok(server)
    }

    /// Until the first player was told of an operation.
    fn wait_for_answers(&self, swarm: &mut Swarm, server: &mut Server) -> Result<(), Trouble> {
        let end = Instant::now() + FIRST_ANSWER_MAX;
        while Instant::now() < end {
            if swarm.has_answers() {
                return Ok(());
            }
            if let Some(words) = server.words_if_ended() {
                return Err(Trouble::Server(format!("the server ended by itself: {words}")));
            }
            if let Some((_, words)) = swarm.ended()? {
                return Err(Trouble::Server(format!("the swarm could not play: {words}")));
            }
            self.sleep(LOOK)?;
        }
        Err(Trouble::Server(format!("no operation was answered within {} s", FIRST_ANSWER_MAX.as_secs())))
    }

    /// Looks at what is on disk, and compares it with all that was ever told.
    fn look(&mut self, round: u32) -> Result<Verdict, Trouble> {
        let verdict = self.judge.compare(&self.place.realm());
        self.report.judged(self.judge.told(), &verdict);
        if verdict.is_good() {
            return Ok(verdict);
        }
        let found = verdict.breaks.len();
        Err(Trouble::Server(format!(
            "round {round}: {found} breaks, {} lost, {} doubled",
            verdict.lost, verdict.doubled
        )))
    }

    /// After the last end the realm must serve, and end as it should.
    fn serve_once_more(&mut self) -> Result<(), Trouble> {
        let mut server = self.start()?;
        let seed = self.args.seed.wrapping_mul(1_000_000);
        let mut swarm = Swarm::start(self.args.players, server.game, &self.truth, seed, Some(LAST_PLAY_S))?;
        match swarm.wait(LAST_PLAY_MAX, &self.stopped)? {
            Some((true, _)) => (),
            Some((false, words)) => return Err(Trouble::Server(format!("the last start does not serve: {words}"))),
            None => return Err(Trouble::Server("the last start does not serve: the players wait".to_owned())),
        }
        server.terminate().map_err(Trouble::Server)?;
        let told_before = self.judge.told();
        self.judge.hear(&self.truth)?;
        if self.judge.told() == told_before {
            return Err(Trouble::Server("the last start answered no operation".to_owned()));
        }
        self.look(self.report.rounds)?;
        eprintln!("served once more: ready in {:.0} ms", server.start.as_secs_f64() * 1_000.0);
        Ok(())
    }

    fn sleep(&self, time: Duration) -> Result<(), Trouble> {
        let end = Instant::now() + time;
        while !self.stopped.load(Ordering::Relaxed) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            thread::sleep(left.min(LOOK));
        }
        Err(stopped_early())
    }
}
