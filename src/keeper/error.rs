//! Why the store cannot go on, in words that contain the mend.
//!
//! Owns [`StoreError`]. Promises: each error names the folder, what was tried, and what the operator can do.

use std::fmt;
use std::path::Path;

/// Kind of a [`StoreError`], as far as the exit code depends on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StoreErrorKind {
    /// Another process, or another store in this one, has the data folder open.
    InUse,
    /// The data folder cannot be created.
    NotCreatable,
    /// Reading, writing or syncing failed: read-only, full, or failing disk.
    Io,
    /// There is no realm in the data folder.
    Missing,
    /// A newer program wrote the data.
    Newer,
    /// The data is not what was written.
    Altered,
    /// The keeper thread panicked.
    Bug,
}

/// Why the store cannot go on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoreError {
    /// What kind of trouble.
    pub kind: StoreErrorKind,
    /// What happened and how to mend it.
    pub text: String,
}

impl StoreError {
    pub(super) fn new(kind: StoreErrorKind, text: String) -> StoreError {
        StoreError { kind, text }
    }

    /// Exit code of a process that ends with this error.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            StoreErrorKind::InUse | StoreErrorKind::NotCreatable => 73,
            StoreErrorKind::Io | StoreErrorKind::Missing | StoreErrorKind::Altered => 74,
            StoreErrorKind::Newer => 78,
            StoreErrorKind::Bug => 1,
        }
    }

    /// From RocksDB's words, which are all that it gives.
    pub(super) fn from_rocksdb(doing: &str, path: &Path, error: &rocksdb::Error) -> StoreError {
        let (path, words) = (path.display(), error.as_ref());
        if words.contains("While lock file") || words.contains("lock hold by current process") {
            let text = format!(
                "data folder {path} is in use by a running server; stop that server, or use another folder; to look at a \
                 running realm make a checkpoint: `ringshard admin checkpoint`"
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
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for StoreError {}
