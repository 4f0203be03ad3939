//! The store's folder: `realm` inside the data folder, a RocksDB database.
//!
//! Owns its options, its column families and how records are read from it. Families: `default` (the realm's record),
//! `clients` (client id to character number and shard), `shard-0` .. (character number to row); keys are big-endian.
//! Promises: what is of a newer version, altered or out of place is refused by name, never skipped. Not used, because
//! each lost data in RocksDB's own crash tests: WAL recycling, `wal_bytes_per_sync`, `manual_wal_flush`,
//! `unordered_write`, unsynced or WAL-less writes beside synced ones.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, DB, DBCompressionType, DBRecoveryMode, InfoLogger, IteratorMode, LogLevel,
    Options,
};

use super::record::{ClientRecord, RECORD_VERSION, RealmRecord, RecordError};
use super::{CharacterRow, StoreError, StoreErrorKind};
use crate::ids::ShardId;
use crate::limits::SHARDS_MAX;

/// Column family of the client records.
pub(super) const CLIENTS: &str = "clients";
/// Key of the realm's record in the default column family.
pub(super) const REALM_KEY: &[u8] = b"realm";

const MIB: usize = 1_024 * 1_024;

/// Column family of a shard.
pub(super) fn family_name(shard: ShardId) -> String {
    format!("shard-{}", shard.0)
}

/// The store's folder in a data folder.
pub(super) fn path_in(data: &Path) -> PathBuf {
    data.join("realm")
}

/// Creates the folder where it is missing and writes a file in it, to learn early and in words what is wrong.
pub(super) fn prepare(path: &Path) -> Result<(), StoreError> {
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
         `findmnt -T {path}`), or give another with --data"
    );
    StoreError::new(StoreErrorKind::Io, text)
}

fn holds_database(path: &Path) -> bool {
    path.join("CURRENT").exists()
}

/// Options of the database and of every column family: small, for rows of 54 bytes.
fn options() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    // A tail torn by a power loss is dropped: it was never acknowledged.
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    options.set_max_background_jobs(2);
    options.set_write_buffer_size(8 * MIB);
    options.set_db_write_buffer_size(64 * MIB);
    options.set_max_total_wal_size(64 * MIB as u64);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_max_open_files(256);
    options.set_log_level(LogLevel::Warn);
    options.set_max_log_file_size(MIB);
    options.set_keep_log_file_num(2);
    options.set_stats_dump_period_sec(0);
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&Cache::new_lru_cache(32 * MIB));
    table.set_bloom_filter(10.0, false);
    options.set_block_based_table_factory(&table);
    options
}

/// Opens the database to write it, creating what this number of shards needs; gives the realm's record if it has one.
pub(super) fn open_to_write(path: &Path, shards_needed: usize) -> Result<(DB, Option<RealmRecord>), StoreError> {
    let options = options();
    let failed = |error: rocksdb::Error| StoreError::from_rocksdb("opening", path, &error);
    let names = if holds_database(path) { families(path)? } else { vec!["default".to_owned()] };
    let with_options = names.into_iter().map(|name| (name, options.clone()));
    let mut db = DB::open_cf_with_opts(&options, path, with_options).map_err(failed)?;
    // Before anything is added: a newer program's data stays as it is.
    let realm = read_realm(&db)?;
    for name in shards().take(shards_needed).map(family_name).chain([CLIENTS.to_owned()]) {
        if db.cf_handle(&name).is_none() {
            db.create_cf(&name, &options).map_err(failed)?;
        }
    }
    Ok((db, realm))
}

/// Opens the database of a stopped server without changing it.
pub(super) fn open_to_read(path: &Path) -> Result<DB, StoreError> {
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
        .map_err(|error| StoreError::from_rocksdb("reading", path, &error))
}

/// A read-only database takes no lock, so the lock is asked for by an open that fails right after it.
fn refuse_in_use(path: &Path, quiet: &Options) -> Result<(), StoreError> {
    let mut options = quiet.clone();
    options.set_error_if_exists(true);
    let Err(error) = DB::open(&options, path) else {
        panic!("RocksDB opened {}, which exists, although told not to", path.display());
    };
    let error = StoreError::from_rocksdb("reading", path, &error);
    if error.kind == StoreErrorKind::InUse { Err(error) } else { Ok(()) }
}

fn families(path: &Path) -> Result<Vec<String>, StoreError> {
    let names = DB::list_cf(&Options::default(), path)
        .map_err(|error| StoreError::from_rocksdb("reading the column families of", path, &error))?;
    let is_known = |name: &str| name == "default" || name == CLIENTS || shards().any(|s| family_name(s) == name);
    match names.iter().find(|name| !is_known(name)) {
        None => Ok(names),
        Some(name) => {
            let path = path.display();
            let text = format!("{path} holds column family {name}, unknown to this program; use a newer ringshard");
            Err(StoreError::new(StoreErrorKind::Newer, text))
        }
    }
}

fn shards() -> impl Iterator<Item = ShardId> {
    (0..SHARDS_MAX as u8).map(ShardId)
}

/// The realm's record; none before the first start was through.
pub(super) fn read_realm(db: &DB) -> Result<Option<RealmRecord>, StoreError> {
    let bytes = db.get(REALM_KEY).map_err(|error| StoreError::from_rocksdb("reading", db.path(), &error))?;
    bytes.map(|bytes| RealmRecord::decode(&bytes).map_err(|error| refused(db, "the realm's record", error))).transpose()
}

/// The row of a client's character.
pub(super) fn read_row(db: &DB, client_id: u64) -> Result<Option<CharacterRow>, StoreError> {
    let read = |family: &str, key: u64| match db.cf_handle(family) {
        Some(handle) => {
            let bytes = db.get_cf(handle, key.to_be_bytes());
            bytes.map_err(|error| StoreError::from_rocksdb("reading", db.path(), &error))
        }
        None => Ok(None),
    };
    let Some(bytes) = read(CLIENTS, client_id)? else { return Ok(None) };
    let place = format!("client {client_id} in column family {CLIENTS}");
    let client = ClientRecord::decode(&bytes).map_err(|error| refused(db, &place, error))?;
    let place = format!("character {} in column family {}", client.character, family_name(client.owner));
    let Some(bytes) = read(&family_name(client.owner), client.character)? else {
        return Err(altered(db, &place, "is missing although client records name it"));
    };
    let row = CharacterRow::decode(&bytes).map_err(|error| refused(db, &place, error))?;
    if (row.client_id, row.character, row.owner) != (client_id, client.character, client.owner) {
        return Err(altered(db, &place, "says that it belongs elsewhere"));
    }
    Ok(Some(row))
}

/// Shows every row of every shard's family, by shard and character number.
pub(super) fn visit_rows(
    db: &DB,
    mut visit: impl FnMut(CharacterRow) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    for shard in shards() {
        if let Some(family) = db.cf_handle(&family_name(shard)) {
            visit_family(db, shard, family, &mut visit)?;
        }
    }
    Ok(())
}

fn visit_family(
    db: &DB,
    shard: ShardId,
    family: &ColumnFamily,
    visit: &mut impl FnMut(CharacterRow) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    for entry in db.iterator_cf(family, IteratorMode::Start) {
        let (key, bytes) = entry.map_err(|error| StoreError::from_rocksdb("reading", db.path(), &error))?;
        let number = key.as_ref().try_into().map(u64::from_be_bytes).ok();
        let name = number.map_or_else(|| format!("{key:?}"), |number| number.to_string());
        let place = || format!("character {name} in column family {}", family_name(shard));
        let row = CharacterRow::decode(&bytes).map_err(|error| refused(db, &place(), error))?;
        if Some(row.character) != number || row.owner != shard {
            return Err(altered(db, &place(), "says that it belongs elsewhere"));
        }
        visit(row)?;
    }
    Ok(())
}

fn refused(db: &DB, place: &str, error: RecordError) -> StoreError {
    match error {
        RecordError::Altered => altered(db, place, "is altered or cut short: its checksum does not match"),
        RecordError::Newer { version } => {
            let path = db.path().display();
            let text = format!(
                "{place} of {path} was written by version {version} of the record format; this program reads up to \
                 {RECORD_VERSION}; use a newer ringshard"
            );
            StoreError::new(StoreErrorKind::Newer, text)
        }
    }
}

/// A record that is not as it was written.
pub(super) fn altered(db: &DB, place: &str, what: &str) -> StoreError {
    let path = db.path().display();
    let text = format!(
        "{place} of {path} {what}; put a backup of the folder in its place, or move the folder away to start a new realm"
    );
    StoreError::new(StoreErrorKind::Altered, text)
}
