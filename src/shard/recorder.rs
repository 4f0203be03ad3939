//! One shard's flight recorder: ticks into memory, memory into files.
//!
//! Owns what waits to be written. Promises: a tick appends and never waits; a task on the shard's own executor writes,
//! past the page cache where there is io_uring; what cannot be kept ends the segment, is counted, and recording begins again with the
//! next snapshot. Measures what it costs.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::executor::{self, NewFile};
use crate::flight::folder::{Progress, segment_name};
use crate::limits::{RECORD_SNAPSHOT_TICKS, RECORD_WAITING_BYTES_MAX, RECORD_WRITE_MS};
use crate::realm::core::Core;
use crate::realm::flight::record::{Done, Encoder, Head};
use crate::realm::report::RecordReport;
use crate::world::parcel::{Merged, OutcomeParcel};

/// What a recorder is made from.
pub struct RecorderSetup {
    /// What its segments say of themselves.
    pub head: Head,
    /// Where they lie.
    pub folder: PathBuf,
    /// Tells the host.
    pub progress: Arc<Progress>,
    /// Bytes of one segment.
    pub segment_bytes_max: u64,
}

/// Bytes of one segment, whole entries.
struct Piece {
    segment: u64,
    bytes: Vec<u8>,
}

/// What waits for the task that writes.
#[derive(Default)]
struct Outbox {
    pieces: VecDeque<Piece>,
    waiting: usize,
    /// Emptied buffers.
    spare: Vec<Vec<u8>>,
    /// The disk refused this segment.
    failed: Option<u64>,
    /// Nothing more comes.
    ended: bool,
    /// The task has written all and is gone.
    done: bool,
}

/// The tick's end of the recorder.
pub struct Recorder {
    head: Head,
    encoder: Encoder,
    outbox: Rc<RefCell<Outbox>>,
    clock: Clock,
    /// Costs so far, of ticks and task.
    cost_ns: Rc<Cell<u64>>,
    /// The segment that ticks go to.
    segment: Option<u64>,
    segment_bytes: u64,
    segment_bytes_max: u64,
    previous: u64,
    bytes: u64,
    dropped: u64,
    /// Busy time of the shard so far.
    busy_ns: u64,
}

/// Counts the time until it is dropped.
struct Meter {
    clock: Clock,
    since_ns: u64,
    cost_ns: Rc<Cell<u64>>,
}

impl Meter {
    fn start(clock: Clock, cost_ns: &Rc<Cell<u64>>) -> Meter {
        Meter { clock, since_ns: clock.now_ns(), cost_ns: cost_ns.clone() }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.cost_ns.set(self.cost_ns.get() + self.clock.now_ns() - self.since_ns);
    }
}

impl Recorder {
    /// Begins with the world before its first tick, and starts the task that writes.
    pub fn start(setup: RecorderSetup, clock: Clock, core: &Core) -> Recorder {
        let RecorderSetup { head, folder, progress, segment_bytes_max } = setup;
        let outbox = Rc::new(RefCell::new(Outbox::default()));
        let cost_ns = Rc::new(Cell::new(0));
        executor::spawn(write_out(outbox.clone(), folder, progress, head.shard.0, clock, cost_ns.clone()));
        let mut recorder = Recorder {
            head,
            encoder: Encoder::default(),
            outbox,
            clock,
            cost_ns,
            segment: None,
            segment_bytes: 0,
            segment_bytes_max,
            previous: core.world.tick,
            bytes: 0,
            dropped: 0,
            busy_ns: 0,
        };
        let mut bytes = Vec::new();
        recorder.encoder.head(&mut bytes, core.world.tick, &recorder.head);
        recorder.encoder.snapshot(&mut bytes, &core.world, &core.frames, core.world.tick, &core.taken);
        recorder.begin_segment(core.world.tick);
        recorder.put(bytes);
        recorder
    }

    /// What the tick begins with, before its inputs leave.
    pub fn given(&mut self, core: &Core) {
        let _meter = Meter::start(self.clock, &self.cost_ns);
        self.encoder.given(&core.outside, &core.inputs);
    }

    /// What each shard gets, before it leaves.
    pub fn parcels(&mut self, tick: u64, outs: &[Box<OutcomeParcel>]) {
        if tick.is_multiple_of(RECORD_SNAPSHOT_TICKS) {
            let _meter = Meter::start(self.clock, &self.cost_ns);
            self.encoder.parcels(outs.iter().map(|out| &**out));
        }
    }

    /// The tick is over; `merged` is what became of the parcels that it gave.
    pub fn tick(&mut self, core: &Core, merged: Merged) {
        let _meter = Meter::start(self.clock, &self.cost_ns);
        let tick = core.world.tick;
        let done = Done {
            previous: std::mem::replace(&mut self.previous, tick),
            rows: core.rows,
            taken: core.taken.clone(),
            merged,
            digest: core.world.digest_part(),
        };
        let refused = self.outbox.borrow_mut().failed.take();
        if self.segment.is_some() && refused == self.segment {
            self.segment = None;
        }
        let mut bytes = self.outbox.borrow_mut().spare.pop().unwrap_or_default();
        if tick.is_multiple_of(RECORD_SNAPSHOT_TICKS) {
            self.end_segment(done.previous);
            self.encoder.head(&mut bytes, tick, &self.head);
            self.encoder.tick(&mut bytes, tick, &done);
            self.encoder.snapshot(&mut bytes, &core.world, &core.frames, done.previous, &done.taken);
            self.begin_segment(tick);
        } else if self.segment.is_some() {
            self.encoder.tick(&mut bytes, tick, &done);
        }
        self.put(bytes);
    }

    fn begin_segment(&mut self, tick: u64) {
        (self.segment, self.segment_bytes) = (Some(tick), 0);
    }

    fn end_segment(&mut self, tick: u64) {
        if self.segment.is_some() {
            let mut bytes = Vec::new();
            self.encoder.end(&mut bytes, tick);
            self.append(&bytes);
            self.segment = None;
        }
    }

    /// Keeps the bytes of a tick, or ends the segment where they are too many.
    fn put(&mut self, mut bytes: Vec<u8>) {
        let over = self.segment_bytes + bytes.len() as u64 > self.segment_bytes_max
            || self.outbox.borrow().waiting + bytes.len() > RECORD_WAITING_BYTES_MAX;
        if self.segment.is_some() && over {
            match self.segment_bytes {
                // A segment that has nothing yet was never begun.
                0 => self.segment = None,
                _ => self.end_segment(self.previous),
            }
        }
        match self.segment {
            Some(_) => self.append(&bytes),
            None => self.dropped += 1,
        }
        bytes.clear();
        self.outbox.borrow_mut().spare.push(bytes);
    }

    fn append(&mut self, bytes: &[u8]) {
        let segment = self.segment.expect("the caller looked");
        self.segment_bytes += bytes.len() as u64;
        self.bytes += bytes.len() as u64;
        let mut outbox = self.outbox.borrow_mut();
        outbox.waiting += bytes.len();
        match outbox.pieces.back_mut().filter(|piece| piece.segment == segment) {
            Some(piece) => piece.bytes.extend_from_slice(bytes),
            None => {
                let mut fresh = outbox.spare.pop().unwrap_or_default();
                fresh.extend_from_slice(bytes);
                outbox.pieces.push_back(Piece { segment, bytes: fresh });
            }
        }
    }

    /// For the report to control: totals. `busy_ns` is what the shard was busy for since the report before. One report
    /// alone would say little: a shard that is put off its core within a measured stretch pays for it in both.
    pub fn report(&mut self, busy_ns: u64) -> RecordReport {
        self.busy_ns += busy_ns;
        let busy_share = self.cost_ns.get() as f64 / self.busy_ns.max(1) as f64;
        RecordReport { bytes: self.bytes, busy_share, dropped: self.dropped }
    }

    /// Ends the record and waits until it is written.
    pub async fn end(&mut self) {
        self.end_segment(self.previous);
        self.outbox.borrow_mut().ended = true;
        while !self.outbox.borrow().done {
            executor::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// Writes what waits, a few times a second, until the recorder ended.
async fn write_out(
    outbox: Rc<RefCell<Outbox>>,
    folder: PathBuf,
    progress: Arc<Progress>,
    shard: u8,
    clock: Clock,
    cost_ns: Rc<Cell<u64>>,
) {
    let mut open: Option<(u64, NewFile)> = None;
    // The disk refused it: what else comes of it goes nowhere.
    let mut refused = None;
    loop {
        // Read first: what comes after it finds another turn.
        let ended = outbox.borrow().ended;
        loop {
            let Some(Piece { segment, mut bytes }) = outbox.borrow_mut().pieces.pop_front() else { break };
            let length = bytes.len();
            if refused != Some(segment) {
                let written = write_piece(&mut open, &folder, &progress, segment, &bytes, (clock, &cost_ns)).await;
                if let Err(error) = written {
                    eprintln!("ringshard: shard {shard} records no further until its next snapshot: {error}");
                    if let Some((_, file)) = open.take() {
                        file.close().await;
                    }
                    // A part without an end would read as one that somebody cut short.
                    executor::remove(&folder.join(segment_name(segment))).await;
                    refused = Some(segment);
                    outbox.borrow_mut().failed = Some(segment);
                }
            }
            bytes.clear();
            let mut outbox = outbox.borrow_mut();
            outbox.waiting -= length;
            outbox.spare.push(bytes);
            // A burst must not keep its memory for ever.
            outbox.spare.truncate(4);
        }
        if ended {
            break;
        }
        executor::sleep(Duration::from_millis(RECORD_WRITE_MS)).await;
    }
    if let Some((_, file)) = open {
        file.close().await;
    }
    outbox.borrow_mut().done = true;
}

async fn write_piece(
    open: &mut Option<(u64, NewFile)>,
    folder: &std::path::Path,
    progress: &Progress,
    segment: u64,
    bytes: &[u8],
    (clock, cost_ns): (Clock, &Rc<Cell<u64>>),
) -> Result<(), String> {
    if open.as_ref().is_none_or(|(other, _)| *other != segment) {
        if let Some((_, file)) = open.take() {
            file.close().await;
        }
        // First: who sets a record aside must not take a file that is being begun for one that is whole.
        progress.wrote(segment, 0);
        *open = Some((segment, NewFile::create(&folder.join(segment_name(segment))).await?));
    }
    let (_, file) = open.as_mut().expect("it was just opened");
    let mut rest = bytes;
    while !rest.is_empty() {
        let (buffer, taken) = {
            let _meter = Meter::start(clock, cost_ns);
            file.fill(rest)
        };
        rest = &rest[taken..];
        file.write(buffer).await?;
    }
    progress.wrote(segment, file.bytes());
    Ok(())
}
