//! The flight record's folder: `DATA/flight/shard-N/TICK.flight`, and what was set aside in `DATA/flight/kept`.
//!
//! Owns the files but for the one that each shard writes. Promises: no more bytes than configured; what is set aside is
//! whole: it names its files with their lengths; folders and files are for their user alone, for a record holds the
//! realm's secret. All of it happens on the host's threads, none on a shard's.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use crate::clock::unix_s;
use crate::exit::{Code, Failure};
use crate::limits::{RECORD_OVERRUN_S_MIN, RECORD_PRUNE_S, RECORDS_KEPT_MAX, SHARDS_MAX};
use crate::realm::flight::record::{Damage, FORMAT, Fault};
use crate::realm::flight::replay::{self, EndedEarly, Report, Request, Segment};

/// Bytes of any segment: half of [`Progress`] holds them.
const SEGMENT_BYTES_MAX: u64 = 1 << 31;
/// Ending of a segment's name.
const ENDING: &str = ".flight";
/// Says that the run ended well and every segment was ended.
const CLEAN: &str = "clean";
/// Names the files of what was set aside.
const CONTENTS: &str = "contents.json";

/// Why a record is set aside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// Somebody asked: `admin record`, SIGUSR2.
    Request,
    /// A tick's edge was late by half a second or more.
    Overrun,
    /// What must always hold did not.
    Invariant,
    /// The process before this one did not end well.
    Crash,
}

impl Reason {
    fn name(self) -> &'static str {
        match self {
            Reason::Request => "request",
            Reason::Overrun => "overrun",
            Reason::Invariant => "invariant",
            Reason::Crash => "crash",
        }
    }
}

/// What a shard tells the host without waking it.
#[derive(Debug, Default)]
pub struct Progress {
    /// Low half of the segment's tick in the high half, bytes of it that are written whole in the low half.
    written: AtomicU64,
    /// Edges that were late by half a second or more.
    overruns: AtomicU64,
}

impl Progress {
    /// So many bytes of the segment of a tick are written, up to the end of an entry.
    pub fn wrote(&self, segment: u64, bytes: u64) {
        self.written.store(segment << 32 | bytes & u64::from(u32::MAX), Ordering::Release);
    }

    /// An edge was very late.
    pub fn overran(&self) {
        self.overruns.fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes of a segment that are written whole, if it is the one being written.
    fn bytes_of(&self, segment: u64) -> Option<u64> {
        let written = self.written.load(Ordering::Acquire);
        (written >> 32 == segment & u64::from(u32::MAX)).then_some(written & u64::from(u32::MAX))
    }
}

/// One file of what was set aside.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct KeptFile {
    name: String,
    bytes: u64,
}

/// What was set aside, why and when.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Contents {
    reason: String,
    unix_s: u64,
    files: Vec<KeptFile>,
}

/// The flight record of a running node.
#[derive(Debug)]
pub struct FlightFolder {
    path: PathBuf,
    shards: Vec<Arc<Progress>>,
    bytes_max: u64,
    tended: Mutex<Tended>,
}

/// When the host last did what.
#[derive(Debug, Default)]
struct Tended {
    overruns: u64,
    overrun_s: u64,
    pruned_s: u64,
}

impl FlightFolder {
    /// Makes the folder ready for a new run. The record of a run that did not end well is set aside; that of one that
    /// did goes.
    pub fn open(data: &Path, shards: usize, megabytes: u32) -> Result<FlightFolder, Failure> {
        let path = data.join("flight");
        make(&path)?;
        make(&path.join("kept"))?;
        let old: Vec<PathBuf> = (0..SHARDS_MAX).map(|shard| shard_folder(&path, shard)).collect();
        let old: Vec<PathBuf> = old.into_iter().filter(|folder| folder.is_dir()).collect();
        if path.join(CLEAN).exists() || old.iter().all(|folder| segments(folder).is_ok_and(|found| found.is_empty())) {
            for folder in &old {
                fs::remove_dir_all(folder).map_err(|error| Failure::of_file("remove", folder, &error))?;
            }
        } else {
            let kept = new_kept(&path, Reason::Crash)?;
            for folder in &old {
                let name = folder.file_name().expect("it has a name");
                fs::rename(folder, kept.join(name)).map_err(|error| Failure::of_file("set aside", folder, &error))?;
            }
            eprintln!(
                "ringshard: the run before did not end well; its flight record is in {0}: `ringshard replay {0}`",
                kept.display()
            );
            prune_kept(&path)?;
        }
        remove_file(&path.join(CLEAN))?;
        for shard in 0..shards {
            make(&shard_folder(&path, shard))?;
        }
        let bytes_max = (u64::from(megabytes) << 20) / shards as u64;
        let shards = (0..shards).map(|_| Arc::default()).collect();
        Ok(FlightFolder { path, shards, bytes_max, tended: Mutex::default() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where a shard writes its segments.
    pub fn shard_path(&self, shard: usize) -> PathBuf {
        shard_folder(&self.path, shard)
    }

    /// What a shard tells of its writing.
    pub fn progress(&self, shard: usize) -> Arc<Progress> {
        self.shards[shard].clone()
    }

    /// Bytes of one segment: a whole one and the one being written are always kept, and that must be within the bound.
    pub fn segment_bytes_max(&self) -> u64 {
        (self.bytes_max / 2).min(SEGMENT_BYTES_MAX)
    }

    /// Now and then: removes what is too old, sets aside after an overrun. What fails is said on standard error: the
    /// world goes on.
    pub fn tend(&self) {
        let now_s = unix_s();
        let overran = {
            let mut tended = self.tended.lock().expect("no holder panics");
            if now_s < tended.pruned_s + RECORD_PRUNE_S {
                return;
            }
            tended.pruned_s = now_s;
            let overruns = self.shards.iter().map(|shard| shard.overruns.load(Ordering::Relaxed)).sum();
            let new = overruns > tended.overruns;
            let overran = new && now_s >= tended.overrun_s + RECORD_OVERRUN_S_MIN;
            if overran {
                tended.overrun_s = now_s;
            }
            tended.overruns = overruns;
            overran
        };
        let pruned = (0..self.shards.len()).try_for_each(|shard| self.prune(shard));
        let kept = if overran { self.set_aside(Reason::Overrun).map(Some) } else { Ok(None) };
        match pruned.and(kept) {
            Ok(None) => (),
            Ok(Some(kept)) => eprintln!("ringshard: a shard was late; its flight record is in {}", kept.display()),
            Err(failure) => eprintln!("ringshard: the flight record: {failure}"),
        }
    }

    /// Removes the oldest segments of a shard beyond its bound.
    fn prune(&self, shard: usize) -> Result<(), Failure> {
        let mut found = segments(&self.shard_path(shard))?;
        let newest = found.len().saturating_sub(2);
        let mut bytes: u64 = found.iter().map(|(_, _, bytes)| bytes).sum();
        // The newest may still grow to its own bound.
        let growth = found.last().map_or(0, |(_, _, bytes)| self.segment_bytes_max().saturating_sub(*bytes));
        for (_, path, size) in found.drain(..newest) {
            if bytes + growth <= self.bytes_max {
                break;
            }
            remove_file(&path)?;
            bytes -= size;
        }
        Ok(())
    }

    /// Sets the record of all shards aside, as far as it is written; gives the folder. Older segments are linked, those
    /// being written are copied.
    pub fn set_aside(&self, reason: Reason) -> Result<PathBuf, Failure> {
        let kept = new_kept(&self.path, reason)?;
        let done = self.fill(&kept).and_then(|files| write_contents(&kept.join(CONTENTS), reason.name(), files));
        if let Err(failure) = done {
            // A part of a record helps nobody; why it is one was the first failure.
            let _ = fs::remove_dir_all(&kept);
            return Err(failure);
        }
        prune_kept(&self.path)?;
        Ok(kept)
    }

    fn fill(&self, kept: &Path) -> Result<Vec<KeptFile>, Failure> {
        let mut files = Vec::new();
        for (shard, progress) in self.shards.iter().enumerate() {
            make(&shard_folder(kept, shard))?;
            for (tick, path, bytes) in segments(&self.shard_path(shard))? {
                let name = format!("shard-{shard}/{}", segment_name(tick));
                let to = kept.join(&name);
                let copied = match progress.bytes_of(tick) {
                    Some(0) => continue,
                    Some(written) => copy(&path, &to, written).map(|()| written),
                    None => fs::hard_link(&path, &to).map(|()| bytes),
                };
                match copied {
                    Ok(bytes) => files.push(KeptFile { name, bytes }),
                    // It was just removed for its age, or just begun.
                    Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::UnexpectedEof) => (),
                    Err(error) => return Err(Failure::of_file("set aside", &path, &error)),
                }
            }
        }
        Ok(files)
    }

    /// The run ended well, and every segment with it.
    pub fn end(&self) -> Result<(), Failure> {
        let mut files = Vec::new();
        for shard in 0..self.shards.len() {
            for (tick, _, bytes) in segments(&self.shard_path(shard))? {
                files.push(KeptFile { name: format!("shard-{shard}/{}", segment_name(tick)), bytes });
            }
        }
        write_contents(&self.path.join(CLEAN), "stop", files)
    }
}

/// Writes what a record consists of, so that a missing part is missed.
fn write_contents(path: &Path, reason: &str, files: Vec<KeptFile>) -> Result<(), Failure> {
    let contents = Contents { reason: reason.to_owned(), unix_s: unix_s(), files };
    let text = serde_json::to_string(&contents).expect("names and numbers are JSON");
    let written = private(path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| Failure::of_file("write", path, &error))
}

/// Name of the segment that begins with a tick.
pub fn segment_name(tick: u64) -> String {
    format!("{tick:020}{ENDING}")
}

fn shard_folder(path: &Path, shard: usize) -> PathBuf {
    path.join(format!("shard-{shard}"))
}

/// A folder for its user alone.
fn make(path: &Path) -> Result<(), Failure> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(Failure::of_file("make", path, &error)),
        _ => Ok(()),
    }
}

fn private(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

fn remove_file(path: &Path) -> Result<(), Failure> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Failure::of_file("remove", path, &error)),
        _ => Ok(()),
    }
}

fn new_kept(path: &Path, reason: Reason) -> Result<PathBuf, Failure> {
    let (now, reason) = (unix_s(), reason.name());
    // More than one within a second get the seconds that follow.
    let names = (now..now + 60).map(|second| path.join("kept").join(format!("{second}-{reason}")));
    let free = names.into_iter().find(|name| !name.exists());
    let kept = free.ok_or_else(|| {
        Failure::new(Code::Failed, "60 flight records were set aside within a second; ask again in a minute")
    })?;
    make(&kept)?;
    Ok(kept)
}

/// Removes the oldest of what was set aside beyond the bound.
fn prune_kept(path: &Path) -> Result<(), Failure> {
    let kept = path.join("kept");
    let entries = fs::read_dir(&kept).map_err(|error| Failure::of_file("list", &kept, &error))?;
    // Names begin with a time of ten digits, so that their order is that of time.
    let mut names: Vec<PathBuf> = entries.filter_map(Result::ok).map(|entry| entry.path()).collect();
    names.sort();
    let over = names.len().saturating_sub(RECORDS_KEPT_MAX);
    for name in &names[..over] {
        fs::remove_dir_all(name).map_err(|error| Failure::of_file("remove", name, &error))?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path, bytes: u64) -> std::io::Result<()> {
    let copied = std::io::copy(&mut File::open(from)?.take(bytes), &mut private(to)?)?;
    if copied == bytes { Ok(()) } else { Err(ErrorKind::UnexpectedEof.into()) }
}

/// The segments of a shard by tick, with their sizes.
fn segments(folder: &Path) -> Result<Vec<(u64, PathBuf, u64)>, Failure> {
    let failed = |error: &std::io::Error| Failure::of_file("list", folder, error);
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(|error| failed(&error))? {
        let entry = entry.map_err(|error| failed(&error))?;
        let name = entry.file_name();
        let tick = name.to_str().and_then(|name| name.strip_suffix(ENDING)).and_then(|tick| tick.parse().ok());
        match (tick, entry.metadata()) {
            (Some(tick), Ok(metadata)) => found.push((tick, entry.path(), metadata.len())),
            // Not a segment, or removed for its age just now.
            _ => continue,
        }
    }
    found.sort();
    Ok(found)
}

/// A record that was found whole.
#[derive(Debug)]
pub struct Examined {
    shards: Vec<Vec<(PathBuf, Segment)>>,
    /// It was set aside or ended well: nothing is missing at its end.
    complete: bool,
}

/// Reads and checks all of a record: a data folder, its flight folder, or one that was set aside. What is damaged is
/// exit code 74, what this program cannot read 78, no record at all 69.
pub fn examine(folder: &Path, content: u64) -> Result<Examined, Failure> {
    let inner = folder.join("flight");
    let folder = if inner.is_dir() { &inner } else { folder };
    let ended_well = read_contents(&folder.join(CLEAN))?;
    let is_whole = ended_well.is_some();
    let contents = if is_whole { ended_well } else { read_contents(&folder.join(CONTENTS))? };
    let complete = contents.is_some();
    let count = (0..SHARDS_MAX).take_while(|&shard| shard_folder(folder, shard).is_dir()).count();
    let mut shards = Vec::with_capacity(count);
    for shard in 0..count {
        let found = segments(&shard_folder(folder, shard))?;
        let last = found.len().saturating_sub(1);
        let mut whole = Vec::with_capacity(found.len());
        for (at, (_, path, _)) in found.into_iter().enumerate() {
            let segment = examine_segment(&path, content)?;
            // A shard that records no further ends its segment all the same.
            if (segment.torn || !segment.ended) && (at < last || is_whole) {
                return Err(truncated(&path, &segment));
            }
            whole.push((path, segment));
        }
        shards.push(whole);
    }
    for KeptFile { name, bytes } in contents.iter().flat_map(|contents| &contents.files) {
        let path = folder.join(name);
        let found = shards.iter().flatten().find(|(other, _)| *other == path);
        match found {
            Some((_, segment)) if segment.bytes >= *bytes || (segment.ended && !segment.torn) => (),
            Some((_, segment)) => return Err(truncated(&path, segment)),
            None => return Err(Failure::new(Code::Io, format!("{} is missing; {HINT}", path.display()))),
        }
    }
    one_run(folder, Examined { shards, complete })
}

/// What helps where a record is damaged.
const HINT: &str = "use another record that was set aside (DATA/flight/kept), and look at the disk (`dmesg`)";

fn read_contents(path: &Path) -> Result<Option<Contents>, Failure> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Failure::of_file("read", path, &error)),
    };
    let read = serde_json::from_str(&text).map(Some);
    read.map_err(|error| Failure::new(Code::Io, format!("{} is altered: {error}; {HINT}", path.display())))
}

fn examine_segment(path: &Path, content: u64) -> Result<Segment, Failure> {
    let bytes = fs::read(path).map_err(|error| Failure::of_file("read", path, &error))?;
    let head = replay::head_of(&bytes).map_err(|damage| damaged(path, damage))?;
    match head {
        Ok(head) if head.version == env!("CARGO_PKG_VERSION") && head.content == content => (),
        Ok(head) => {
            let text = format!(
                "{} was recorded by ringshard {} with content {:016x}; this is {} with {content:016x}, which does not \
                 do the same: replay it with that program",
                path.display(),
                head.version,
                head.content,
                env!("CARGO_PKG_VERSION")
            );
            return Err(Failure::new(Code::Config, text));
        }
        Err(format) => {
            let text = format!(
                "{} has format {format} of the flight record; this program reads {FORMAT}: replay it with the program \
                 that recorded it",
                path.display()
            );
            return Err(Failure::new(Code::Config, text));
        }
    }
    Segment::examine(&bytes).map_err(|damage| damaged(path, damage))
}

fn damaged(path: &Path, Damage { fault, offset, tick }: Damage) -> Failure {
    let what = match fault {
        Fault::Altered => "altered: what stands there does not fit its checksum",
        Fault::Torn => "cut short: the rest of an entry is missing",
    };
    let text = format!("{}, byte {offset}, after tick {tick}: {what}; {HINT}", path.display());
    let detail = serde_json::json!({ "file": path.display().to_string(), "offset": offset, "tick": tick });
    Failure { detail: Some(detail), ..Failure::new(Code::Io, text) }
}

fn truncated(path: &Path, segment: &Segment) -> Failure {
    damaged(path, Damage { fault: Fault::Torn, offset: segment.bytes, tick: segment.last })
}

/// All segments are of one run, and every shard of it has some.
fn one_run(folder: &Path, examined: Examined) -> Result<Examined, Failure> {
    let mut heads = (0u8..).zip(&examined.shards).flat_map(|(shard, found)| found.iter().map(move |one| (shard, one)));
    let Some((_, (_, first))) = heads.next() else {
        let text = format!(
            "there is no flight record in {}; name the folder `flight` of a data folder, or one in `flight/kept`",
            folder.display()
        );
        return Err(Failure::new(Code::Unavailable, text));
    };
    let (run, shards) = (first.head.run, usize::from(first.head.shards));
    let fits = |shard: u8, head: &crate::realm::flight::record::Head| {
        head.run == run && usize::from(head.shards) == shards && head.shard.0 == shard
    };
    if let Some((_, (path, _))) = heads.find(|(shard, (_, segment))| !fits(*shard, &segment.head)) {
        let text = format!("{} is of another run or shard than the files beside it; {HINT}", path.display());
        return Err(Failure::new(Code::Io, text));
    }
    if examined.shards.len() != shards || examined.shards.iter().any(Vec::is_empty) {
        let found = examined.shards.iter().filter(|segments| !segments.is_empty()).count();
        let text = format!("{} has {found} of the run's {shards} shards; a replay needs all; {HINT}", folder.display());
        return Err(Failure::new(Code::Io, text));
    }
    Ok(examined)
}

/// Replays a record that was found whole.
pub fn replay(examined: &Examined, request: Request) -> Result<Report, Failure> {
    let segments: Vec<Vec<Segment>> =
        examined.shards.iter().map(|found| found.iter().map(|(_, segment)| segment.clone()).collect()).collect();
    let Some(places) = replay::start(&segments) else {
        let text = "no tick has a snapshot of every shard with a record that goes on from there: the shards were too late \
                    or recording stopped; use another record, or let the node record for another minute";
        return Err(Failure::new(Code::Unavailable, text));
    };
    let mut load = |shard: usize, segment: usize| match examined.shards[shard].get(segment) {
        Some((path, segment)) => {
            let mut bytes = fs::read(path).map_err(|error| Failure::of_file("read", path, &error))?;
            bytes.truncate(segment.bytes as usize);
            Ok(Some(bytes))
        }
        None => Ok(None),
    };
    let name = |shard: usize, segment: usize, damage| damaged(&examined.shards[shard][segment].0, damage);
    let mut report = replay::run(&segments[0][places[0]].head, &places, &mut load, &name, request)?;
    if request.until.is_none() && report.first_mismatch.is_none() {
        report.ended_early = ended_early(&segments, examined.complete).map(|reason| EndedEarly { reason });
    }
    Ok(report)
}

/// Why the newest segments say less than there was to say.
fn ended_early(segments: &[Vec<Segment>], complete: bool) -> Option<String> {
    let mut newest = segments.iter().filter_map(|found| found.last()).map(|last| (last.head.shard.0, last));
    if let Some((shard, last)) = newest.clone().find(|(_, last)| last.full) {
        let tick = last.last;
        return Some(format!(
            "shard {shard} stopped to record after tick {tick}, until its next snapshot: its segment was full, or the \
             disk too slow or full; give it more with `record.megabytes`"
        ));
    }
    let (shard, last) = newest.find(|(_, last)| !complete && (last.torn || !last.ended))?;
    let tick = last.last;
    Some(format!(
        "the record of shard {shard} ends at tick {tick} without an end: the process still runs, or ended there"
    ))
}
