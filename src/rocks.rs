//! The disk of the product: `realm` inside the data folder, a RocksDB database, and beside it the second witness.
//!
//! Owns its options, the thread `keeper-disk` that writes and syncs while the keeper goes on, and its column families: `default` (the realm's record), `clients` (client id to character number
//! and shard), `ledger`, `orders`, `shard-0` .. (character number to row); keys are big-endian. Promises: a batch is one
//! synced write; what of a newer version is there is refused by name, never skipped. Open it before shards pin
//! themselves, because RocksDB's threads inherit the opener's cores. Not used, because
//! each lost data in RocksDB's own crash tests: WAL recycling, `wal_bytes_per_sync`, `manual_wal_flush`,
//! `unordered_write`, unsynced or WAL-less writes beside synced ones.

#[cfg(test)]
mod conformance_tests;
mod logs;
#[cfg(test)]
mod tests;
mod writer;

pub use writer::{KeeperCounters, KeeperHandle, KeeperMemory, KeeperQueues, KeeperView};

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rocksdb::checkpoint::Checkpoint;
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, DB, DBCompressionType, DBRecoveryMode, Direction, InfoLogger, IteratorMode,
    LogLevel, Options, WriteBatch, WriteOptions,
};

use crate::limits::{
    KEEPER_BATCHES_MAX, SHARDS_MAX, STORE_CACHE_BYTES_MAX, STORE_FILES_MAX, STORE_LOG_BYTES_MAX,
    STORE_MEMTABLE_BYTES_MAX, STORE_MEMTABLES_BYTES_MAX,
};
use crate::planted::{Bug, planted};
use crate::realm::keeper::disk::{Batch, Disk, Family, Pair, Visitor};
use crate::realm::keeper::proof::{prove, read_realm};
use crate::realm::keeper::record::Proven;
use crate::realm::keeper::{StoreError, StoreErrorKind};
use crate::wire::ids::ShardId;

/// Name of the second witness in the data folder.
const WITNESS: &str = "acknowledged";
/// Least time between two syncs of the second witness: it is written with every group, but a loss of power may take what
/// it says of the last second.
const WITNESS_SYNC_EVERY: Duration = Duration::from_secs(1);
/// Bytes of one entry of the second witness: a count and its complement. There are two, written in turn, so that one is
/// always whole.
const WITNESS_ENTRY_BYTES: usize = 16;

const MIB: usize = 1_024 * 1_024;

/// Name of a column family.
fn name_of(family: Family) -> String {
    match family {
        Family::Realm => "default".to_owned(),
        Family::Clients => "clients".to_owned(),
        Family::Ledger => "ledger".to_owned(),
        Family::Orders => "orders".to_owned(),
        Family::Shard(shard) => format!("shard-{}", shard.0),
    }
}

/// All families that a realm may have, those of `shards` shards among them.
fn families_of(shards: usize) -> impl Iterator<Item = Family> {
    let fixed = [Family::Realm, Family::Clients, Family::Ledger, Family::Orders];
    fixed.into_iter().chain((0..shards as u8).map(|shard| Family::Shard(ShardId(shard))))
}

/// The store's folder in a data folder.
fn path_in(data: &Path) -> PathBuf {
    data.join("realm")
}

/// Creates the folder where it is missing and writes a file in it, to learn early and in words what is wrong.
fn prepare(path: &Path) -> Result<(), StoreError> {
    fs::create_dir_all(path).map_err(|error| match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            not_writable(path, &error)
        }
        _ => {
            let path = path.display();
            let text = format!(
                "data folder {path} cannot be created: {error}; create it for this user, or give another with --data"
            );
            StoreError::new(StoreErrorKind::NotCreatable, text)
        }
    })?;
    // Its own name per process, so that a second server meets the lock and not this file.
    let probe = path.join(format!("probe-{}", std::process::id()));
    let written = File::create(&probe).and_then(|mut file| {
        file.write_all(&[0; 4_096])?;
        file.sync_all()
    });
    let removed = fs::remove_file(&probe);
    written.and(removed).map_err(|error| not_writable(path, &error))
}

fn not_writable(path: &Path, error: &io::Error) -> StoreError {
    let path = path.display();
    let text = format!(
        "data folder {path} cannot be written: {error}; make room or mount it writable for this user (`df -h {path}`, \
         `findmnt -T {path}`), or name another folder"
    );
    StoreError::new(StoreErrorKind::Io, text)
}

fn holds_database(path: &Path) -> bool {
    path.join("CURRENT").exists()
}

/// Options of the database and of every column family: small, for rows of 54 bytes.
fn options(cache: &Cache) -> Options {
    let mut options = Options::default();
    // A tail torn by a power loss is dropped: it was never acknowledged.
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    options.set_max_background_jobs(2);
    options.set_write_buffer_size(STORE_MEMTABLE_BYTES_MAX);
    options.set_db_write_buffer_size(STORE_MEMTABLES_BYTES_MAX);
    options.set_max_total_wal_size(STORE_LOG_BYTES_MAX);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_max_open_files(STORE_FILES_MAX);
    options.set_log_level(LogLevel::Warn);
    options.set_max_log_file_size(MIB);
    options.set_keep_log_file_num(2);
    options.set_stats_dump_period_sec(0);
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    // Outside of the cache they would grow with the log of orders.
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    table.set_bloom_filter(10.0, false);
    options.set_block_based_table_factory(&table);
    options
}

/// The realm of a data folder on a real disk.
pub struct RocksDisk {
    db: Arc<DB>,
    /// None: it is only read.
    cache: Option<Cache>,
    /// What the second witness said at the start.
    witnessed: Witnessed,
    /// What was found when it was opened, until something is written.
    proven: Option<Proven>,
    /// None: it is only read.
    pen: Option<Pen>,
    is_under_way: bool,
}

/// What a [`RocksDisk`] holds in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StoreMemory {
    /// Changes that are not in tables yet; bounded by [`STORE_MEMTABLES_BYTES_MAX`] and what is being written out.
    pub memtables_bytes: u64,
    /// Blocks, indexes and filters of tables; bounded by [`STORE_CACHE_BYTES_MAX`].
    pub block_cache_bytes: u64,
    /// What open tables hold beside that cache.
    pub table_readers_bytes: u64,
}

/// The thread that writes, as the keeper holds it.
struct Pen {
    batches: SyncSender<(Batch, u64)>,
    landed: Receiver<Result<(), StoreError>>,
    thread: JoinHandle<()>,
}

/// What the second witness says.
struct Witnessed {
    groups: u64,
    /// What is wrong with it, in words.
    flaw: Option<String>,
}

/// What that thread has.
struct Writing {
    db: Arc<DB>,
    /// The second witness.
    witness: File,
    turn: u64,
    since: Option<Instant>,
}

impl RocksDisk {
    /// Opens the realm of a data folder to write it, or begins it, with what this number of shards needs.
    ///
    /// # Errors
    /// The folder is in use, not creatable or not writable, the data is of a newer version, altered, or not all that was
    /// acknowledged.
    pub fn open(data: &Path, shards: usize) -> Result<RocksDisk, StoreError> {
        let path = path_in(data);
        prepare(&path)?;
        let mut proven = None;
        if holds_database(&path) {
            // Nothing is changed before all was looked at: a database opened to be written throws away what it does not
            // understand, which somebody may want to save, and a newer program's data stays as it is.
            proven = Some(prove(&RocksDisk::open_to_read(data)?, shards)?);
        } else {
            refuse_headless(&path, data)?;
        }
        let realm = proven.as_ref().and_then(|proven| proven.realm);
        let mut disk = RocksDisk::open_proven(data, shards, realm.map_or(0, |realm| realm.groups))?;
        // Another process may have written it between the two openings: then the store reads it again.
        if read_realm(&disk)? == realm {
            disk.proven = proven;
        }
        Ok(disk)
    }

    /// [`RocksDisk::open`] of what was looked at and holds this number of groups.
    fn open_proven(data: &Path, shards: usize, groups: u64) -> Result<RocksDisk, StoreError> {
        let path = path_in(data);
        let cache = Cache::new_lru_cache(STORE_CACHE_BYTES_MAX);
        let mut options = options(&cache);
        let failed = |error: rocksdb::Error| store_error("opening", &path, &error);
        let mut names = vec!["default".to_owned()];
        match holds_database(&path) {
            true => names = families(&path)?,
            false => options.create_if_missing(true),
        }
        let with_options = names.into_iter().map(|name| (name, options.clone()));
        let db = DB::open_cf_with_opts(&options, &path, with_options).map_err(failed)?;
        let witnessed = Witnessed { groups, ..read_witness(data)? };
        let db = Arc::new(db);
        let mut disk = RocksDisk { db, cache: Some(cache), witnessed, proven: None, pen: None, is_under_way: false };
        for name in families_of(shards).map(name_of) {
            if disk.db.cf_handle(&name).is_none() {
                let db = Arc::get_mut(&mut disk.db).expect("nobody writes yet");
                db.create_cf(&name, &options).map_err(failed)?;
            }
        }
        let path = data.join(WITNESS);
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let both = [witness_entry(groups); 2].concat();
        let written = file.and_then(|file| file.write_all_at(&both, 0).map(|()| file));
        let file = written.and_then(|file| file.sync_all().map(|()| file)).and_then(|file| {
            // Its name must last as well.
            File::open(data)?.sync_all().map(|()| file)
        });
        let file = file.map_err(|error| not_writable(&path, &error))?;
        let writing = Writing { db: Arc::clone(&disk.db), witness: file, turn: 0, since: None };
        disk.pen = Some(Pen::new(writing).map_err(|error| {
            StoreError::new(StoreErrorKind::Io, format!("no thread for the disk: {error}; raise `ulimit -u`"))
        })?);
        Ok(disk)
    }

    /// Opens the realm of a stopped server's data folder without changing it.
    ///
    /// # Errors
    /// A server runs there, there is no realm, or it cannot be read.
    pub fn open_to_read(data: &Path) -> Result<RocksDisk, StoreError> {
        let path = path_in(data);
        if !holds_database(&path) {
            refuse_headless(&path, data)?;
        }
        let db = open_to_read(&path)?;
        let witnessed = read_witness(data)?;
        Ok(RocksDisk { db: Arc::new(db), cache: None, witnessed, proven: None, pen: None, is_under_way: false })
    }

    /// The folder of the database.
    pub fn path(&self) -> &Path {
        self.db.path()
    }

    /// Moves what the log holds into tables, so that the next start has no log to read; nothing may be under way.
    ///
    /// # Errors
    /// The disk refused.
    pub fn flush(&mut self) -> Result<(), StoreError> {
        let handles: Vec<&ColumnFamily> =
            families_of(SHARDS_MAX).filter_map(|family| self.db.cf_handle(&name_of(family))).collect();
        let flushed = handles.into_iter().try_for_each(|family| self.db.flush_cf(family));
        flushed.map_err(|error| store_error("flushing", self.db.path(), &error))?;
        let groups = read_realm(self)?.map_or(0, |realm| realm.groups);
        self.write(Batch::default(), groups)
    }

    /// Makes a data folder at `to`, which must not exist, with the realm as it is on disk now. Tables are shared with
    /// it as hard links where the file system allows.
    ///
    /// # Errors
    /// The folder exists or cannot be written.
    pub fn checkpoint(&self, to: &Path) -> Result<(), StoreError> {
        fs::create_dir_all(to).map_err(|error| not_writable(to, &error))?;
        // Before the copy: what is under way may land in the meantime.
        let groups = read_realm(self)?.map_or(0, |realm| realm.groups);
        let made = Checkpoint::new(&self.db).and_then(|checkpoint| checkpoint.create_checkpoint(path_in(to)));
        made.map_err(|error| store_error("writing a checkpoint to", to, &error))?;
        let path = to.join(WITNESS);
        let written = File::create(&path).and_then(|file| {
            file.write_all_at(&[witness_entry(groups); 2].concat(), 0)?;
            file.sync_all()?;
            File::open(to)?.sync_all()
        });
        written.map_err(|error| not_writable(&path, &error))
    }

    /// What it holds in memory; zeros where it does not say.
    pub fn memory(&self) -> StoreMemory {
        let caches: Vec<&Cache> = self.cache.iter().collect();
        let usage = rocksdb::perf::get_memory_usage_stats(Some(&[&self.db]), Some(&caches));
        usage.map_or(StoreMemory::default(), |usage| StoreMemory {
            memtables_bytes: usage.mem_table_total,
            block_cache_bytes: usage.cache_total,
            table_readers_bytes: usage.mem_table_readers_total,
        })
    }

    fn failed(&self, doing: &str, error: &rocksdb::Error) -> StoreError {
        store_error(doing, self.db.path(), error)
    }
}

impl Drop for RocksDisk {
    fn drop(&mut self) {
        if let Some(Pen { batches, landed, thread }) = self.pen.take() {
            drop((batches, landed));
            // What it said of its last batch was heard or is of no use now.
            let _ = thread.join();
        }
    }
}

impl Pen {
    fn new(mut writing: Writing) -> io::Result<Pen> {
        let (batches, to_write) = sync_channel::<(Batch, u64)>(KEEPER_BATCHES_MAX);
        let (land, landed) = sync_channel(KEEPER_BATCHES_MAX);
        let thread = thread::Builder::new().name("keeper-disk".to_owned()).spawn(move || {
            while let Ok((batch, groups)) = to_write.recv() {
                let only_witness = batch.is_empty();
                let written = if only_witness { Ok(()) } else { writing.write(&batch) };
                let landed = written.and_then(|()| writing.attest(groups));
                let failed = landed.is_err();
                // When nobody listens any more, nobody is told anything either.
                if land.send(landed).is_err() || failed {
                    return;
                }
                // The batch has landed, so that nobody waits for this. An error is told to whoever waits next.
                if let Err(error) = writing.sync_witness() {
                    let _ = land.send(Err(error));
                    return;
                }
            }
        })?;
        Ok(Pen { batches, landed, thread })
    }
}

impl Writing {
    fn write(&self, batch: &Batch) -> Result<(), StoreError> {
        let mut writes = WriteBatch::default();
        let mut known: Option<(Family, &ColumnFamily)> = None;
        for (family, key, value) in batch.changes() {
            let handle = match known {
                Some((same, handle)) if same == family => handle,
                _ => self.db.cf_handle(&name_of(family)).expect("the families that are written are open"),
            };
            known = Some((family, handle));
            match value {
                Some(value) => writes.put_cf(handle, key, value),
                None => writes.delete_cf(handle, key),
            }
        }
        let mut options = WriteOptions::default();
        options.set_sync(!planted(Bug::NoSync));
        let written = self.db.write_opt(writes, &options);
        written.map_err(|error| store_error("writing", self.db.path(), &error))
    }

    fn attest(&mut self, groups: u64) -> Result<(), StoreError> {
        let offset = self.turn % 2 * WITNESS_ENTRY_BYTES as u64;
        self.turn += 1;
        let written = self.witness.write_all_at(&witness_entry(groups), offset);
        written.map_err(|error| not_writable(self.db.path(), &error))
    }

    fn sync_witness(&mut self) -> Result<(), StoreError> {
        if self.since.is_some_and(|since| since.elapsed() < WITNESS_SYNC_EVERY) {
            return Ok(());
        }
        self.since = Some(Instant::now());
        self.witness.sync_data().map_err(|error| not_writable(self.db.path(), &error))
    }
}

fn witness_entry(groups: u64) -> [u8; WITNESS_ENTRY_BYTES] {
    (u128::from(groups) | u128::from(!groups) << 64).to_le_bytes()
}

/// Reads the second witness: the greater of its whole entries counts.
fn read_witness(data: &Path) -> Result<Witnessed, StoreError> {
    let path = data.join(WITNESS);
    let name = path.display();
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let flaw = holds_database(&path_in(data)).then(|| {
                format!(
                    "there is no {name}: whether the newest changes are there cannot be told; the next start makes it"
                )
            });
            return Ok(Witnessed { groups: 0, flaw });
        }
        Err(error) => return Err(not_writable(&path, &error)),
    };
    let whole = |entry: &[u8; WITNESS_ENTRY_BYTES]| {
        let both = u128::from_le_bytes(*entry);
        let (groups, complement) = (both as u64, (both >> 64) as u64);
        (groups == !complement).then_some(groups)
    };
    let entries: Vec<u64> = bytes.as_chunks().0.iter().filter_map(whole).collect();
    let Some(&groups) = entries.iter().max() else {
        let text = format!(
            "{name} is altered or cut short: whether the newest changes are there cannot be told; put a backup of the \
             data folder in its place, or remove {name} to go on with what can be read"
        );
        return Err(StoreError::new(StoreErrorKind::Altered, text));
    };
    let is_whole = entries.len() == 2 && bytes.len() == 2 * WITNESS_ENTRY_BYTES;
    let flaw = (!is_whole).then(|| format!("{name} is altered or cut short, but one of its entries is whole"));
    Ok(Witnessed { groups, flaw })
}

/// Tables or logs without the file that names the newest state are not taken for an empty realm.
fn refuse_headless(path: &Path, data: &Path) -> Result<(), StoreError> {
    let is_part = |name: &Path| name.extension().is_some_and(|ending| ending == "sst" || ending == "log");
    let holds_parts = fs::read_dir(path)
        .is_ok_and(|mut files| files.any(|file| file.is_ok_and(|file| is_part(Path::new(&file.file_name())))));
    if !holds_parts && read_witness(data)?.groups == 0 {
        return Ok(());
    }
    let path = path.display();
    let text = format!(
        "{path} has no file CURRENT, but there was a realm; nothing was changed: put CURRENT or a backup of the data \
         folder back, or move the folder away to start a new realm"
    );
    Err(StoreError::new(StoreErrorKind::Altered, text))
}

impl Disk for RocksDisk {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(handle) = self.db.cf_handle(&name_of(family)) else { return Ok(None) };
        self.db.get_cf(handle, key).map_err(|error| self.failed("reading", &error))
    }

    fn visit(&self, family: Family, prefix: &[u8], visit: &mut Visitor<'_>) -> Result<(), StoreError> {
        let Some(handle) = self.db.cf_handle(&name_of(family)) else { return Ok(()) };
        for entry in self.db.iterator_cf(handle, IteratorMode::From(prefix, Direction::Forward)) {
            let (key, value) = entry.map_err(|error| self.failed("reading", &error))?;
            if !key.starts_with(prefix) {
                break;
            }
            visit(&key, &value)?;
        }
        Ok(())
    }

    fn begin(&mut self, batch: Batch, groups: u64) {
        assert!(!self.is_under_way, "one batch is under way at a time");
        let pen = self.pen.as_ref().expect("a realm that is only read is not written");
        // An ended thread is found when somebody waits for the batch.
        let _ = pen.batches.send((batch, groups));
        self.is_under_way = true;
        self.proven = None;
    }

    fn land(&mut self, patience: Duration) -> Result<bool, StoreError> {
        if !self.is_under_way {
            return Ok(true);
        }
        let pen = self.pen.as_ref().expect("it took what is under way");
        let landed = match pen.landed.recv_timeout(patience) {
            Ok(landed) => landed,
            Err(RecvTimeoutError::Timeout) => return Ok(false),
            Err(RecvTimeoutError::Disconnected) => {
                let text = "the thread keeper-disk panicked (its message is above); start again: all that was \
                            acknowledged is kept";
                Err(StoreError::new(StoreErrorKind::Bug, text.to_owned()))
            }
        };
        self.is_under_way = false;
        landed.map(|()| true)
    }

    fn last(&self, family: Family) -> Result<Option<Pair>, StoreError> {
        let Some(handle) = self.db.cf_handle(&name_of(family)) else { return Ok(None) };
        let last = self.db.iterator_cf(handle, IteratorMode::End).next().transpose();
        let last = last.map_err(|error| self.failed("reading", &error))?;
        Ok(last.map(|(key, value)| (key.into_vec(), value.into_vec())))
    }

    fn witness(&self) -> Result<u64, StoreError> {
        Ok(self.witnessed.groups)
    }

    fn take_proven(&mut self) -> Option<Proven> {
        self.proven.take()
    }

    fn flaws(&self) -> Vec<String> {
        self.witnessed.flaw.iter().cloned().collect()
    }

    fn damage(&self) -> Option<String> {
        logs::damage_in(self.db.path(), "log")
    }

    fn place(&self) -> String {
        self.db.path().display().to_string()
    }
}

/// Opens the database of a stopped server without changing it.
fn open_to_read(path: &Path) -> Result<DB, StoreError> {
    if !holds_database(path) {
        let text = format!("there is no realm in {}; give the folder that `serve --data` was given", path.display());
        return Err(StoreError::new(StoreErrorKind::Missing, text));
    }
    let mut options = Options::default();
    // Without it RocksDB would start a log file in the folder.
    options.set_info_logger(InfoLogger::new_stderr_logger(LogLevel::Fatal, None::<&str>));
    refuse_in_use(path, &options)?;
    let names = families(path)?;
    DB::open_cf_with_opts_for_read_only(&options, path, names.into_iter().map(|name| (name, Options::default())), false)
        .map_err(|error| store_error("reading", path, &error))
}

/// A read-only database takes no lock, so the lock is asked for by an open that fails right after it.
fn refuse_in_use(path: &Path, quiet: &Options) -> Result<(), StoreError> {
    let mut options = quiet.clone();
    options.set_error_if_exists(true);
    let Err(error) = DB::open(&options, path) else {
        panic!("RocksDB opened {}, which exists, although told not to", path.display());
    };
    let error = store_error("reading", path, &error);
    if error.kind == StoreErrorKind::InUse { Err(error) } else { Ok(()) }
}

fn families(path: &Path) -> Result<Vec<String>, StoreError> {
    // RocksDB reads a damaged list of families for ever.
    if let Some(damage) = logs::damage_in_current(path) {
        let path = path.display();
        let text = format!(
            "{path}: the list of its files is damaged ({damage}); nothing was changed: put a backup of the data folder \
             in its place, or move the folder away to start a new realm"
        );
        return Err(StoreError::new(StoreErrorKind::Altered, text));
    }
    let names = DB::list_cf(&Options::default(), path)
        .map_err(|error| store_error("reading the column families of", path, &error))?;
    let is_known = |name: &str| families_of(SHARDS_MAX).any(|family| name_of(family) == name);
    match names.iter().find(|name| !is_known(name)) {
        None => Ok(names),
        Some(name) => {
            let path = path.display();
            let text = format!("{path} holds column family {name}, unknown to this program; use a newer ringshard");
            Err(StoreError::new(StoreErrorKind::Newer, text))
        }
    }
}

/// From RocksDB's words, which are all that it gives.
pub(crate) fn store_error(doing: &str, path: &Path, error: &rocksdb::Error) -> StoreError {
    let (path, words) = (path.display(), error.as_ref());
    if words.contains("While lock file") || words.contains("lock hold by current process") {
        let text = format!(
            "data folder {path} is in use by a running server; stop that server, or use another folder; to look at a \
             running realm make a checkpoint: `ringshard admin checkpoint --data FOLDER`"
        );
        return StoreError::new(StoreErrorKind::InUse, text);
    }
    if error.kind() == rocksdb::ErrorKind::Corruption {
        let text = format!(
            "{doing} {path}: the data is damaged ({words}); put a backup of the folder in its place, or move the \
             folder away to start a new realm"
        );
        return StoreError::new(StoreErrorKind::Altered, text);
    }
    let text = format!(
        "{doing} {path}: {words}; look at the disk (`df -h {path}`, `findmnt -T {path}`, `dmesg`), make room or \
         mount it writable, then start again: all that was acknowledged is kept"
    );
    StoreError::new(StoreErrorKind::Io, text)
}
