//! `ledger`: how many trades the keeper makes durable, and how long each waits for the disk.
//!
//! Owns data folders of its own, gone at the end. Promises: the keeper's own thread and RocksDB as they serve; an order
//! counts when its answer came, which is after the sync; interleaved rounds of the same load with one sync per order;
//! afterwards the files are checked as `inspect --check` does. Never talks to a running server.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use hdrhistogram::Histogram;
use ringshard::exit::{Code, Failure, say};
use ringshard::realm::keeper::Terms;
use ringshard::realm::keeper::inspect::check;
use ringshard::realm::keeper::{Desk, DeskRules, KeeperAnswer, KeeperCommand, Store, StoreError};
use ringshard::rocks::{KeeperHandle, KeeperQueues, RocksDisk};
use ringshard::wire::goods::{Asked, Offer, Order, OrderId, OrderKind, Refusal};
use ringshard::wire::ids::{EntityId, ShardId};
use serde::Serialize;

use crate::machine::Provenance;
use crate::spread::Spread;

/// Orders under way at a time: at 100,000 a second as many as arrive in 15 ms.
const UNDER_WAY_MAX: usize = 1_536;
/// Characters that trade, however many accounts there are.
const TRADERS: u64 = 10_000;
/// Rounds of each kind.
const ROUNDS: usize = 5;
/// Accounts that are made in one group.
const GROUP: u64 = 10_000;
/// Group commit, as served by default.
const COMMIT: Duration = Duration::from_millis(10);
const COMMIT_BYTES: usize = 4 << 20;

/// Arguments of `ledger`.
#[derive(Args, Clone, Debug)]
pub struct LedgerArgs {
    /// Characters with coins; without it, 10,000 and then 1,000,000.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(2..=10_000_000))]
    accounts: Option<u64>,
    /// Seconds of each of the five rounds with group commit.
    #[arg(long, default_value_t = 1, value_name = "S", value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// Where the data folders go; they are removed. The disk there is what is measured.
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
}

/// What came of one number of accounts.
#[derive(Clone, PartialEq, Serialize, Debug)]
struct Row {
    accounts: u64,
    transfers_per_s: f64,
    transfers_per_s_rounds: Vec<f64>,
    durable_p50_ms: f64,
    durable_p99_ms: f64,
    durable_max_ms: f64,
    /// With one sync for each order.
    single_sync_per_s: f64,
    single_sync_per_s_rounds: Vec<f64>,
    ratio: f64,
    start_ms: f64,
    conserved: bool,
}

/// A folder that is removed with everything in it.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left of a run that failed is not worth a second failure.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs the bench and prints its table.
pub fn run(args: &LedgerArgs, json: bool) -> Result<ExitCode, Failure> {
    let sizes = args.accounts.map_or(vec![10_000, 1_000_000], |accounts| vec![accounts]);
    let folder = args.folder.clone().unwrap_or_else(std::env::temp_dir);
    let mut rows = Vec::new();
    for accounts in sizes {
        let scratch = Scratch(folder.join(format!("ringshard-ledger-{}-{accounts}", std::process::id())));
        rows.push(measure(&scratch.0, accounts, Duration::from_secs(args.seconds))?);
    }
    let last = rows.last().expect("there is a size");
    let conserved = rows.iter().all(|row| row.conserved);
    let value = serde_json::json!({
        "transfers_per_s": last.transfers_per_s,
        "durable_p99_ms": last.durable_p99_ms,
        "conserved": conserved,
        "rows": rows,
        "under_way_max": UNDER_WAY_MAX,
        "traders": TRADERS,
        "provenance": Provenance::here(),
    });
    say(json, &table(&rows), || value)?;
    Ok(if conserved { ExitCode::SUCCESS } else { ExitCode::from(Code::Failed as u8) })
}

fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:>10} {:>12} {:>10} {:>10} {:>10} {:>16} {:>7} {:>9} {:>9}\n",
        "accounts", "trades/s", "p50 ms", "p99 ms", "max ms", "one sync each/s", "ratio", "start ms", "conserved"
    );
    for row in rows {
        text.push_str(&format!(
            "{:>10} {:>12.0} {:>10.1} {:>10.1} {:>10.1} {:>16.0} {:>7.1} {:>9.0} {:>9}\n",
            row.accounts,
            row.transfers_per_s,
            row.durable_p50_ms,
            row.durable_p99_ms,
            row.durable_max_ms,
            row.single_sync_per_s,
            row.ratio,
            row.start_ms,
            row.conserved
        ));
    }
    text
}

fn measure(folder: &Path, accounts: u64, round: Duration) -> Result<Row, Failure> {
    eprintln!("{accounts} accounts: making them");
    fill(folder, accounts).map_err(|error| failed(&error))?;
    let mut load = Load::new(accounts.min(TRADERS));
    let mut latency_us = Histogram::<u64>::new_with_bounds(1, 60_000_000, 3).expect("the bounds are in order");
    let (mut grouped, mut single, mut start_ms) = (Vec::new(), Vec::new(), 0.0);
    for number in 0..ROUNDS {
        let began = Instant::now();
        let (keeper, queues) = open(folder, COMMIT)?;
        start_ms = began.elapsed().as_secs_f64() * 1_000.0;
        // The first moments read the answers of the traders; they are served, and not counted.
        load.run(&queues, round / 4, UNDER_WAY_MAX, None)?;
        grouped.push(load.run(&queues, round, UNDER_WAY_MAX, Some(&mut latency_us))?);
        keeper.stop().map_err(|error| failed(&error))?;
        let (keeper, queues) = open(folder, Duration::ZERO)?;
        single.push(load.run(&queues, round / 2, 1, None)?);
        keeper.stop().map_err(|error| failed(&error))?;
        eprintln!(
            "round {} of {ROUNDS}: {:.0} trades/s in groups, {:.0} with one sync each",
            number + 1,
            grouped[number],
            single[number]
        );
    }
    let disk = RocksDisk::open_to_read(folder).map_err(|error| failed(&error))?;
    let report = check(&disk, Terms::default()).map_err(|error| failed(&error))?;
    let ms = |quantile: f64| latency_us.value_at_quantile(quantile) as f64 / 1_000.0;
    let median = |values: &[f64]| Spread::of(values.iter().copied()).expect("there are rounds").median;
    let (transfers_per_s, single_sync_per_s) = (median(&grouped), median(&single));
    Ok(Row {
        accounts,
        transfers_per_s,
        transfers_per_s_rounds: grouped,
        durable_p50_ms: ms(0.5),
        durable_p99_ms: ms(0.99),
        durable_max_ms: latency_us.max() as f64 / 1_000.0,
        single_sync_per_s,
        single_sync_per_s_rounds: single,
        ratio: transfers_per_s / single_sync_per_s,
        start_ms,
        conserved: report.breaks.is_empty() && report.ledger.conserved,
    })
}

fn failed(error: &StoreError) -> Failure {
    ringshard::server::store_failure(error)
}

fn desk(folder: &Path) -> Result<Desk<RocksDisk>, StoreError> {
    let store = Store::open(RocksDisk::open(folder, 1)?, 1, 1, |_| ShardId(0))?;
    Desk::open(store, DeskRules::default())
}

/// Makes the characters' coins, in groups.
fn fill(folder: &Path, accounts: u64) -> Result<(), StoreError> {
    let mut desk = desk(folder)?;
    desk.store_mut().realm_mut().next_character = accounts + 1;
    for character in 1..=accounts {
        let id = OrderId { source: EntityId::ADMIN, sequence: character };
        let kind = OrderKind::Grant { character, coins: 1_000_000, items: 0 };
        desk.apply(KeeperCommand::Order(Asked { shard: ShardId(0), order: Order { id, kind } }))?;
        if character.is_multiple_of(GROUP) {
            desk.commit()?;
            desk.take_answers();
        }
    }
    desk.close()?;
    desk.store_mut().disk_mut().flush()
}

fn open(folder: &Path, commit: Duration) -> Result<(KeeperHandle, KeeperQueues), Failure> {
    let queues = KeeperQueues::new(1);
    let desk = desk(folder).map_err(|error| failed(&error))?;
    let keeper = KeeperHandle::spawn(desk, queues.clone(), commit, COMMIT_BYTES);
    Ok((keeper.map_err(|error| Failure::new(Code::Machine, format!("no keeper thread: {error}")))?, queues))
}

/// Traders that pay each other in turn.
struct Load {
    sequences: Vec<u64>,
    next: u64,
}

impl Load {
    fn new(traders: u64) -> Load {
        Load { sequences: vec![0; traders as usize], next: 0 }
    }

    /// Each order is a trade of a few coins against none, with both sides' confirmations.
    fn order(&mut self) -> Order {
        let traders = self.sequences.len() as u64;
        self.next += 1;
        let from = self.next.wrapping_mul(0x9e37_79b9_7f4a_7c15) % traders;
        let to = (from + 1 + self.next % (traders - 1)) % traders;
        let mut name = |trader: u64| {
            let sequence = &mut self.sequences[trader as usize];
            *sequence += 1;
            OrderId { source: EntityId::character(trader + 1), sequence: *sequence }
        };
        let (id, partner) = (name(from), name(to));
        let give = Offer::new(1 + (from % 7) as i64, &[]).expect("coins alone fit");
        Order { id, kind: OrderKind::Swap { partner, give, take: Offer::default() } }
    }

    /// Keeps `under_way` orders at the keeper for a time; gives the answers a second.
    fn run(
        &mut self,
        queues: &KeeperQueues,
        time: Duration,
        under_way: usize,
        mut latency_us: Option<&mut Histogram<u64>>,
    ) -> Result<f64, Failure> {
        let began = Instant::now();
        let mut sent: VecDeque<Instant> = VecDeque::with_capacity(under_way);
        let mut answered = 0u64;
        while began.elapsed() < time || !sent.is_empty() {
            let mut idle = true;
            while sent.len() < under_way && began.elapsed() < time {
                let command = KeeperCommand::Order(Asked { shard: ShardId(0), order: self.order() });
                sent.push_back(Instant::now());
                assert!(queues.commands.push(command).is_ok(), "fewer are under way than the queue holds");
                idle = false;
            }
            while let Some(answer) = queues.answers[0].pop() {
                let KeeperAnswer::Settled(settled) = answer else { continue };
                if settled.refusal != Refusal::None {
                    let text = format!("{:?} was refused: {:?}", settled.order, settled.refusal);
                    return Err(Failure::new(Code::Failed, text));
                }
                let at = sent.pop_front().expect("each order is answered once");
                if let Some(latency_us) = &mut latency_us {
                    latency_us.saturating_record(at.elapsed().as_micros() as u64);
                }
                answered += 1;
                idle = false;
            }
            if idle {
                // The keeper may need this core.
                std::thread::sleep(Duration::from_micros(200));
            }
            if began.elapsed() > time + Duration::from_secs(30) {
                return Err(Failure::new(Code::Failed, "the keeper does not answer; its message stands above"));
            }
        }
        Ok(answered as f64 / began.elapsed().as_secs_f64())
    }
}
