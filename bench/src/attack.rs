//! `attack`: hostile senders against a server on this machine, alone or beside honest players.
//!
//! Owns the senders and their threads. Promises: rates and counts are bounded, targets are loopback addresses, and the run
//! ends by itself; what strangers were answered is counted byte for byte. Never judges the server's own figures: with
//! `--pairs` honest players beside the senders say what they notice.

mod pairs;
mod sessions;
mod strangers;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use ringshard::exit::{Code, Failure, say};
use serde::Serialize;

use crate::machine::Provenance;
use crate::swarm::stop_on_signal;

/// Between two rounds of a sender.
const ROUND: Duration = Duration::from_millis(2);
/// Between two looks of the main thread.
const LOOK: Duration = Duration::from_millis(50);

/// Who sends what it should not.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Strangers without a token: noise, and requests sealed under a key of their own.
    Forged,
    /// Players who send bodies and commands far beyond their share, by UDP and by TCP.
    Flood,
    /// Players who ask for what nobody should: bursts, unknown and malformed requests, leaps of numbers, tiny fragments.
    Abuser,
    /// TCP connections that show their token a byte a second.
    Slow,
    /// TCP connections that show nothing, and handshakes that are begun and left.
    Silent,
    /// A token that was used, shown again from foreign ports and by TCP.
    Tokens,
    /// All of them at once.
    All,
}

impl Kind {
    const EACH: [Kind; 6] = [Kind::Forged, Kind::Flood, Kind::Abuser, Kind::Slow, Kind::Silent, Kind::Tokens];

    fn name(self) -> &'static str {
        ["forged", "flood", "abuser", "slow", "silent", "tokens", "all"][self as usize]
    }

    /// Whether nobody of it may ever get in.
    fn is_stranger(self) -> bool {
        !matches!(self, Kind::Flood | Kind::Abuser)
    }

    /// Senders, unless somebody says how many.
    fn count(self) -> u32 {
        match self {
            Kind::Forged => 16,
            Kind::Flood => 2,
            Kind::Abuser => 6,
            Kind::Slow => 200,
            Kind::Silent => 100,
            Kind::Tokens | Kind::All => 48,
        }
    }

    /// What all of them send in a second, unless somebody says how much: datagrams, bodies, requests or bytes.
    fn rate(self) -> u32 {
        match self {
            Kind::Forged => 2_000,
            Kind::Flood => 2_000,
            Kind::Abuser => 600,
            Kind::Slow => 200,
            Kind::Silent => 50,
            Kind::Tokens | Kind::All => 100,
        }
    }
}

/// Arguments of `attack`.
#[derive(Args, Clone, Debug)]
pub struct AttackArgs {
    /// Who sends.
    #[arg(long, value_enum, default_value = "all")]
    kind: Kind,
    /// Senders of each kind; each kind has its own number.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4_096))]
    count: Option<u32>,
    /// What the senders of a kind send in a second together; each kind has its own rate.
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: Option<u32>,
    /// Seconds, of each leg with --pairs.
    #[arg(long, default_value_t = 12, value_name = "S", value_parser = clap::value_parser!(u32).range(5..=600))]
    duration: u32,
    /// The server's game address, on loopback; it must run with --dev.
    #[arg(long, default_value = "127.0.0.1:7777", value_name = "ADDR", conflicts_with = "pairs")]
    connect: SocketAddr,
    /// Starts a server of its own, and lets honest players play on it so many times without the senders and as often
    /// beside them, by turns.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=50))]
    pairs: Option<u32>,
    /// Honest players of each leg.
    #[arg(long, default_value_t = 100, value_name = "N", requires = "pairs")]
    players: u32,
    /// Shards of that server.
    #[arg(long, default_value_t = 1, value_name = "N", requires = "pairs", value_parser = clap::value_parser!(u32).range(1..=32))]
    shards: u32,
    /// How its packets pass.
    #[arg(long, default_value = "ring", value_parser = ["ring", "mmsg"], requires = "pairs")]
    io: String,
    /// Its program; the one beside this by default.
    #[arg(long, value_name = "PATH", requires = "pairs")]
    server: Option<PathBuf>,
}

/// What a sender counts.
#[derive(Debug)]
pub struct Counts {
    kind: Kind,
    /// Datagrams, bodies, requests or connections that were begun.
    sent: AtomicU64,
    /// Strangers that got in, or sessions that played.
    admitted: AtomicU64,
    request_bytes: AtomicU64,
    reply_bytes: AtomicU64,
}

impl Counts {
    fn sent(&self, bytes: usize) {
        self.sent.fetch_add(1, Ordering::Relaxed);
        self.request_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn replied(&self, bytes: usize) {
        self.reply_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn admitted(&self) {
        self.admitted.fetch_add(1, Ordering::Relaxed);
    }
}

/// Somebody hostile.
trait Sender {
    /// A round at `now` since the start, in which so many things are due to be sent.
    fn round(&mut self, now: Duration, due: u64, counts: &Counts);
}

/// The senders at work. Dropped, they go.
pub struct Attack {
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
    counts: Vec<Arc<Counts>>,
    rates: Vec<u32>,
}

/// What one kind of sender came to.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    kind: &'static str,
    per_s: u32,
    sent: u64,
    admitted: u64,
    request_bytes: u64,
    reply_bytes: u64,
}

impl Outcome {
    /// What is wrong with it, if anything.
    fn wrong(&self, kind: Kind) -> Option<String> {
        let Outcome { kind: name, sent, admitted, request_bytes, reply_bytes, .. } = *self;
        if sent == 0 {
            return Some(format!("{name}: nothing was sent"));
        }
        if kind.is_stranger() && admitted > 0 {
            return Some(format!("{name}: {admitted} of those who may not were let in"));
        }
        let silent_to_noise = kind == Kind::Forged && reply_bytes > 0;
        (silent_to_noise || (kind.is_stranger() && reply_bytes > request_bytes))
            .then(|| format!("{name}: strangers were answered {reply_bytes} bytes for {request_bytes}"))
    }
}

impl Attack {
    /// Lets the senders of the named kinds loose.
    pub fn start(kind: Kind, server: SocketAddr, count: Option<u32>, rate: Option<u32>) -> Result<Attack, Failure> {
        if !server.ip().is_loopback() {
            return Err(Failure::new(Code::Usage, format!("{server} is not on loopback: nothing else is attacked")));
        }
        let mut attack = Attack { stop: Arc::default(), threads: Vec::new(), counts: Vec::new(), rates: Vec::new() };
        let kinds = Kind::EACH.into_iter().filter(|each| kind == Kind::All || *each == kind);
        for kind in kinds {
            let (count, rate) = (count.unwrap_or(kind.count()), rate.unwrap_or(kind.rate()));
            let counts = Arc::new(Counts {
                kind,
                sent: AtomicU64::new(0),
                admitted: AtomicU64::new(0),
                request_bytes: AtomicU64::new(0),
                reply_bytes: AtomicU64::new(0),
            });
            attack.counts.push(counts.clone());
            attack.rates.push(rate);
            let stop = attack.stop.clone();
            let spawned = thread::Builder::new().name(kind.name().to_owned()).spawn(move || {
                let mut sender = sender(kind, server, count);
                work(&mut *sender, rate, &stop, &counts);
            });
            let failed = |error: std::io::Error| Failure::new(Code::Machine, format!("no thread for senders: {error}"));
            attack.threads.push(spawned.map_err(failed)?);
        }
        Ok(attack)
    }

    /// Ends it: what each kind came to, and what was wrong.
    pub fn end(mut self) -> (Vec<Outcome>, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let outcome = |(counts, &per_s): (&Arc<Counts>, &u32)| Outcome {
            kind: counts.kind.name(),
            per_s,
            sent: read(&counts.sent),
            admitted: read(&counts.admitted),
            request_bytes: read(&counts.request_bytes),
            reply_bytes: read(&counts.reply_bytes),
        };
        let outcomes: Vec<Outcome> = self.counts.iter().zip(&self.rates).map(outcome).collect();
        let wrong = outcomes.iter().zip(&self.counts).filter_map(|(outcome, counts)| outcome.wrong(counts.kind));
        let wrong = wrong.collect();
        (outcomes, wrong)
    }
}

impl Drop for Attack {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn sender(kind: Kind, server: SocketAddr, count: u32) -> Box<dyn Sender> {
    let count = count as usize;
    match kind {
        Kind::Forged => Box::new(strangers::Forged::new(server, count)),
        Kind::Slow => Box::new(strangers::Streams::new(server, count, true)),
        Kind::Silent => Box::new(strangers::Streams::new(server, count, false)),
        Kind::Tokens | Kind::All => Box::new(strangers::UsedToken::new(server, count)),
        Kind::Flood => Box::new(sessions::Flood::new(server, count)),
        Kind::Abuser => Box::new(sessions::Abusers::new(server, count)),
    }
}

fn work(sender: &mut dyn Sender, rate: u32, stop: &AtomicBool, counts: &Counts) {
    let (begin, mut sent) = (Instant::now(), 0);
    while !stop.load(Ordering::Relaxed) {
        let now = begin.elapsed();
        let due = (now.as_nanos() * u128::from(rate) / 1_000_000_000) as u64;
        sender.round(now, due - sent, counts);
        sent = due;
        thread::sleep(ROUND);
    }
}

/// Runs the senders, or pairs of legs, and prints what came of it.
pub fn run(args: &AttackArgs, json: bool) -> Result<ExitCode, Failure> {
    let stopped = stop_on_signal()?;
    if let Some(pairs) = args.pairs {
        return pairs::run(args, pairs, &stopped, json);
    }
    let attack = Attack::start(args.kind, args.connect, args.count, args.rate)?;
    let end = Instant::now() + Duration::from_secs(args.duration.into());
    while Instant::now() < end && !stopped.load(Ordering::Relaxed) {
        thread::sleep(LOOK);
    }
    let (outcomes, wrong) = attack.end();
    let sum = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).sum::<u64>();
    let mut value = serde_json::to_value(Provenance::here()).expect("it is JSON");
    value["kinds"] = serde_json::to_value(&outcomes).expect("it is JSON");
    for (field, sum) in [
        ("sent", sum(|outcome| outcome.sent)),
        ("admitted", sum(|outcome| outcome.admitted)),
        ("request_bytes", sum(|outcome| outcome.request_bytes)),
        ("reply_bytes", sum(|outcome| outcome.reply_bytes)),
    ] {
        value[field] = sum.into();
    }
    value["wrong"] = wrong.clone().into();
    say(json, &table(&outcomes, &wrong), || value)?;
    Ok(if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(Code::Failed as u8) })
}

/// For people.
fn table(outcomes: &[Outcome], wrong: &[String]) -> String {
    let mut text = format!(
        "{:<8} {:>8} {:>10} {:>9} {:>14} {:>12}\n",
        "senders", "a second", "sent", "let in", "bytes to it", "answered"
    );
    for Outcome { kind, per_s, sent, admitted, request_bytes, reply_bytes } in outcomes {
        text += &format!("{kind:<8} {per_s:>8} {sent:>10} {admitted:>9} {request_bytes:>14} {reply_bytes:>12}\n");
    }
    wrong.iter().for_each(|wrong| text += &format!("WRONG    {wrong}\n"));
    text
}
