//! Why the store cannot go on, in words that contain the mend.
//!
//! Owns [`StoreError`]. Promises: each error names the folder, what was tried, and what the operator can do.

use std::fmt;

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
    /// With these words, which contain the mend.
    pub fn new(kind: StoreErrorKind, text: String) -> StoreError {
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
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for StoreError {}
