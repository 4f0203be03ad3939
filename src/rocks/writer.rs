//! The thread that owns all durable writes.
//!
//! Owns the desk and the keeper's ends of the queues. Promises: commands are done in their order, also while the group
//! before them is on its way to the disk; an answer leaves after its group has landed; a full answer queue makes the
//! answers to that shard wait, within a bound and never lost, and those to the others go on. Never pinned, never woken by a shard: it looks every [`KEEPER_POLL_US`]. After an error it ends at
//! once and the host reads why.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;

use super::{RocksDisk, StoreMemory};
use crate::limits::{
    KEEPER_ANSWERS_MAX, KEEPER_CHECKPOINTS_MAX, KEEPER_COMMANDS_MAX, KEEPER_FREE_BYTES_MIN, KEEPER_HELD_MAX,
    KEEPER_POLL_US,
};
use crate::realm::keeper::{Desk, KeeperAnswer, KeeperCommand, LedgerHoldings, StoreError, StoreErrorKind};
use crate::sys;

/// Answers held for a shard that its list keeps room for.
const HELD_USUAL: usize = 1_024;
/// Between two looks at how full disk and memory are.
const LOOK: Duration = Duration::from_secs(1);

/// The queues between the keeper and the shards.
#[derive(Clone, Debug)]
pub struct KeeperQueues {
    /// From all shards.
    pub commands: Arc<ArrayQueue<KeeperCommand>>,
    /// To each shard.
    pub answers: Vec<Arc<ArrayQueue<KeeperAnswer>>>,
}

impl KeeperQueues {
    /// Empty queues for this number of shards.
    pub fn new(shards: usize) -> KeeperQueues {
        let answers = (0..shards).map(|_| Arc::new(ArrayQueue::new(KEEPER_ANSWERS_MAX))).collect();
        KeeperQueues { commands: Arc::new(ArrayQueue::new(KEEPER_COMMANDS_MAX)), answers }
    }
}

/// What the keeper has done; read with relaxed loads.
#[derive(Default, Debug)]
pub struct KeeperCounters {
    /// Claims answered `Claimed`.
    pub claimed: AtomicU64,
    /// Claims answered `Refused`.
    pub refused: AtomicU64,
    /// Sessions told to end for a newer one.
    pub cut: AtomicU64,
    /// Rows in committed groups; several rows of one character in one group count once.
    pub rows_written: AtomicU64,
    /// Rows dropped because a newer one was held.
    pub rows_stale: AtomicU64,
    /// Clients with a live session now.
    pub live: AtomicU64,
    /// Groups committed.
    pub commits: AtomicU64,
    /// Longest commit, microseconds.
    pub commit_us_max: AtomicU64,
    /// Commands waiting at the last look.
    pub queue_depth: AtomicU64,
    /// Most commands ever seen waiting.
    pub queue_depth_max: AtomicU64,
    /// Looks at a full answer queue.
    pub answers_waited: AtomicU64,
    /// Orders that the ledger answered since the realm began.
    pub orders: AtomicU64,
    /// Breaks of the ledger's sums since the start; 0 means that goods are conserved.
    pub breaks: AtomicU64,
    /// Nobody may join because the disk is nearly full: 1.
    pub disk_full: AtomicU64,
}

/// What the keeper held in memory at its last look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct KeeperMemory {
    /// The store.
    pub store: StoreMemory,
    /// The ledger.
    pub ledger: LedgerHoldings,
}

/// What others may see of the keeper and ask of it, while it runs.
#[derive(Clone)]
pub struct KeeperView {
    shared: Arc<Shared>,
    wishes: Arc<ArrayQueue<CheckpointWish>>,
}

impl KeeperView {
    /// Its counters.
    pub fn counters(&self) -> &KeeperCounters {
        &self.shared.counters
    }

    /// What it held in memory at its last look, at most a second ago.
    pub fn memory(&self) -> KeeperMemory {
        *self.shared.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a checkpoint of the realm, a data folder at `to`, while everything goes on; waits for it.
    ///
    /// # Errors
    /// It exists, cannot be written, or the keeper has ended.
    pub fn checkpoint(&self, to: &Path) -> Result<(), StoreError> {
        let (done, wait) = sync_channel(1);
        let busy = |text: &str| StoreError::new(StoreErrorKind::Io, text.to_owned());
        let wish = CheckpointWish { to: to.to_path_buf(), done };
        self.wishes.push(wish).map_err(|_| busy("a checkpoint is being made already; ask again when it is done"))?;
        wait.recv().map_err(|_| busy("the keeper ended before the checkpoint was made"))?
    }
}

/// The keeper thread as its host holds it. Dropped without [`KeeperHandle::stop`], it is stopped all the same.
pub struct KeeperHandle {
    view: KeeperView,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default, Debug)]
struct Shared {
    counters: KeeperCounters,
    stop: AtomicBool,
    failure: OnceLock<StoreError>,
    /// Breaks in words; only control reads them.
    breaks: Mutex<Vec<String>>,
    /// Likewise.
    memory: Mutex<KeeperMemory>,
}

/// A wish for a checkpoint; whoever wishes waits on the other end.
struct CheckpointWish {
    to: PathBuf,
    done: SyncSender<Result<(), StoreError>>,
}

impl KeeperHandle {
    /// Starts the thread `keeper`. There is one answer queue for each shard of the store.
    ///
    /// # Errors
    /// The system has no thread left.
    pub fn spawn(
        desk: Desk<RocksDisk>,
        queues: KeeperQueues,
        commit: Duration,
        commit_bytes: usize,
    ) -> std::io::Result<KeeperHandle> {
        assert_eq!(desk.store().shards(), queues.answers.len(), "each shard has an answer queue");
        let shared = Arc::new(Shared::default());
        let wishes = Arc::new(ArrayQueue::new(KEEPER_CHECKPOINTS_MAX));
        let writer = Writer {
            desk,
            shared: Arc::clone(&shared),
            wishes: wishes.clone(),
            held: vec![VecDeque::new(); queues.answers.len()],
            queues,
            looked: None,
            commit,
            commit_bytes,
            begun: None,
            group_commands: 0,
        };
        let failed = Arc::clone(&shared);
        let thread = thread::Builder::new().name("keeper".to_owned()).spawn(move || {
            if let Err(error) = writer.run() {
                failed.failure.set(error).expect("only this thread fails");
            }
        })?;
        Ok(KeeperHandle { view: KeeperView { shared, wishes }, thread: Some(thread) })
    }

    /// What others may see of it and ask of it.
    pub fn view(&self) -> KeeperView {
        self.view.clone()
    }

    /// Its counters.
    pub fn counters(&self) -> &KeeperCounters {
        self.view.counters()
    }

    /// Breaks of the ledger's sums since the last call, in words.
    pub fn take_breaks(&self) -> Vec<String> {
        std::mem::take(&mut *self.view.shared.breaks.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Why the keeper ended by itself, if it did. Nothing is durable from then on: the process must end, with
    /// [`StoreError::exit_code`].
    pub fn failure(&self) -> Option<StoreError> {
        let has_ended = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
        let failure = self.view.shared.failure.get().cloned();
        failure.or_else(|| (has_ended && !self.view.shared.stop.load(Ordering::Acquire)).then(panicked))
    }

    /// Does all commands given before, commits, flushes and ends. Call it when the shards have ended: answers that
    /// find their queue full are dropped from now on, since nobody reads them.
    ///
    /// # Errors
    /// Something given before is not durable.
    pub fn stop(mut self) -> Result<(), StoreError> {
        self.end()
    }

    fn end(&mut self) -> Result<(), StoreError> {
        self.view.shared.stop.store(true, Ordering::Release);
        let joined = self.thread.take().map_or(Ok(()), JoinHandle::join);
        match self.view.shared.failure.get() {
            Some(error) => Err(error.clone()),
            None => joined.map_err(|_| panicked()),
        }
    }
}

impl Drop for KeeperHandle {
    fn drop(&mut self) {
        // Whoever wants to know calls `stop`.
        let _ = self.end();
    }
}

fn panicked() -> StoreError {
    let text = "the keeper thread panicked (its message is above); start again: all that was acknowledged is kept";
    StoreError::new(StoreErrorKind::Bug, text.to_owned())
}

struct Writer {
    desk: Desk<RocksDisk>,
    queues: KeeperQueues,
    /// By shard: answers that its queue has no room for, in order.
    held: Vec<VecDeque<KeeperAnswer>>,
    shared: Arc<Shared>,
    wishes: Arc<ArrayQueue<CheckpointWish>>,
    looked: Option<Instant>,
    commit: Duration,
    commit_bytes: usize,
    /// When the last group was begun: the next one comes a commit interval after it, so that what comes alone waits for
    /// nothing and syncs are never more frequent than that.
    begun: Option<Instant>,
    group_commands: usize,
}

impl Writer {
    fn run(mut self) -> Result<(), StoreError> {
        loop {
            // Read first: what was given before the stop is then in the queue.
            let is_stopping = self.shared.stop.load(Ordering::Acquire);
            let was_idle = self.take_commands(is_stopping)? == 0;
            self.land(Duration::ZERO)?;
            if !self.desk.store().is_under_way() && (is_stopping || self.is_group_due()) {
                self.begin();
            }
            self.answer();
            self.publish_counts();
            if self.looked.is_none_or(|looked| looked.elapsed() >= LOOK) {
                self.looked = Some(Instant::now());
                self.look_at_disk();
                self.look_at_memory();
            }
            while let Some(wish) = self.wishes.pop() {
                let made = self.desk.store().disk().checkpoint(&wish.to);
                // Nobody may wait any more: then nobody is told.
                let _ = wish.done.send(made);
            }
            if is_stopping && was_idle {
                self.desk.close()?;
                return self.desk.store_mut().disk_mut().flush();
            }
            let pause = Duration::from_micros(KEEPER_POLL_US);
            if was_idle && self.desk.store().is_under_way() {
                self.land(pause)?;
            } else if was_idle {
                thread::sleep(pause);
            }
        }
    }

    /// Does the waiting commands, as far as the group has room and no shard leaves too many answers; gives their number.
    /// At the end nobody reads answers any more.
    fn take_commands(&mut self, is_stopping: bool) -> Result<usize, StoreError> {
        let counters = &self.shared.counters;
        let depth = self.queues.commands.len() as u64;
        counters.queue_depth.store(depth, Ordering::Relaxed);
        counters.queue_depth_max.fetch_max(depth, Ordering::Relaxed);
        let mut taken = 0;
        let has_room = self.held.iter().all(|held| held.len() < KEEPER_HELD_MAX);
        while (has_room || is_stopping) && !self.is_group_full() {
            let Some(command) = self.queues.commands.pop() else { break };
            self.desk.apply(command)?;
            taken += 1;
            self.group_commands += 1;
        }
        Ok(taken)
    }

    fn is_group_full(&self) -> bool {
        self.group_commands >= KEEPER_COMMANDS_MAX || self.desk.group_bytes() >= self.commit_bytes
    }

    fn is_group_due(&self) -> bool {
        // Answers that no row stands behind need not wait.
        self.is_group_full() || !self.desk.has_group() || self.begun.is_none_or(|begun| begun.elapsed() >= self.commit)
    }

    fn begin(&mut self) {
        if self.desk.has_group() {
            self.begun = Some(Instant::now());
        }
        self.desk.begin();
        self.group_commands = 0;
    }

    /// Counts the group that was under way, when it lands within `patience`.
    fn land(&mut self, patience: Duration) -> Result<(), StoreError> {
        if let Some(rows) = self.desk.land(patience)? {
            let counters = &self.shared.counters;
            let took = self.begun.map_or(Duration::ZERO, |begun| begun.elapsed());
            let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            counters.commit_us_max.fetch_max(took_us, Ordering::Relaxed);
            counters.rows_written.fetch_add(rows, Ordering::Relaxed);
            counters.commits.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Gives the shards what they are answered; what finds no room is held for them, so that a shard that stands still
    /// holds up nobody else.
    fn answer(&mut self) {
        for (shard, answer) in self.desk.take_answers() {
            self.held[shard.index()].push_back(answer);
        }
        for (held, queue) in self.held.iter_mut().zip(&self.queues.answers) {
            while let Some(answer) = held.pop_front() {
                if let Err(answer) = queue.push(answer) {
                    held.push_front(answer);
                    self.shared.counters.answers_waited.fetch_add(1, Ordering::Relaxed);
                    break;
                }
            }
            if held.is_empty() && held.capacity() > HELD_USUAL {
                // A burst must not keep its memory for ever.
                *held = VecDeque::new();
            }
        }
    }

    /// Closes admission while the disk is nearly full, before a write has to fail.
    fn look_at_disk(&mut self) {
        // A file system that does not say how full it is fails a write in time.
        let Ok(free_bytes) = sys::free_bytes(self.desk.store().disk().path()) else { return };
        let was_full = self.shared.counters.disk_full.load(Ordering::Relaxed) == 1;
        // Somewhat more than the least must be free again, so that it does not open and close all the time.
        let is_full = free_bytes < if was_full { KEEPER_FREE_BYTES_MIN * 3 / 2 } else { KEEPER_FREE_BYTES_MIN };
        if is_full != was_full {
            self.shared.counters.disk_full.store(u64::from(is_full), Ordering::Relaxed);
            for held in &mut self.held {
                held.push_back(KeeperAnswer::Admission { open: !is_full });
            }
        }
    }

    fn look_at_memory(&self) {
        let memory = KeeperMemory { store: self.desk.store().disk().memory(), ledger: self.desk.holdings() };
        *self.shared.memory.lock().unwrap_or_else(PoisonError::into_inner) = memory;
    }

    fn publish_counts(&self) {
        let (counters, counts) = (&self.shared.counters, self.desk.claims().counts());
        counters.claimed.store(counts.claimed, Ordering::Relaxed);
        counters.refused.store(counts.refused, Ordering::Relaxed);
        counters.cut.store(counts.cut, Ordering::Relaxed);
        counters.rows_stale.store(counts.rows_stale, Ordering::Relaxed);
        counters.live.store(self.desk.claims().live_count() as u64, Ordering::Relaxed);
        counters.orders.store(self.desk.ledger().orders(), Ordering::Relaxed);
        let breaks = self.desk.ledger().breaks();
        let known = counters.breaks.swap(breaks.len() as u64, Ordering::Relaxed) as usize;
        if known < breaks.len() {
            let mut told = self.shared.breaks.lock().unwrap_or_else(PoisonError::into_inner);
            told.extend_from_slice(&breaks[known..]);
        }
    }
}
