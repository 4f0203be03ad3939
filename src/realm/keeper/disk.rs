//! Where bytes are kept: the host seam of the keeper.
//!
//! Owns the names of the column families and the batch. Promises of every [`Disk`]: a batch that has landed is on disk
//! whole; one that did not is there whole or not at all; after a loss of power every batch before a lost one is there.
//! Never retries: after an error nothing more may be promised, and the process ends.

use std::ops::Range;
use std::time::Duration;

use super::record::{Proven, RECORD_VERSION, RecordError};
use super::{StoreError, StoreErrorKind};
use crate::wire::ids::ShardId;

/// A column family.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize)]
pub enum Family {
    /// The realm's record.
    Realm,
    /// Client id to character number and shard.
    Clients,
    /// Balances, items, mails, things, answers.
    Ledger,
    /// Every order that was answered, in order.
    Orders,
    /// Character number to row, of the characters of one shard.
    Shard(ShardId),
}

/// Sees keys and their values, and may refuse one.
pub type Visitor<'a> = dyn FnMut(&[u8], &[u8]) -> Result<(), StoreError> + 'a;

/// A key and its value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// RocksDB in the product, memory with faults in the deterministic host.
pub trait Disk {
    /// The value of a key.
    ///
    /// # Errors
    /// It cannot be read.
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// Shows every key that begins with `prefix`, with its value, in order of keys.
    ///
    /// # Errors
    /// Something cannot be read, or `visit` refuses it.
    fn visit(&self, family: Family, prefix: &[u8], visit: &mut Visitor<'_>) -> Result<(), StoreError>;

    /// Begins to write a batch; one is under way at a time. What is read is without it until it has landed. `groups` is
    /// what the second witness may say then, and before long will; with an empty batch it says so at once.
    fn begin(&mut self, batch: Batch, groups: u64);

    /// Whether what was begun is on disk, nothing being under way counting as that; stays up to `patience` for it.
    ///
    /// # Errors
    /// The disk refused; the process must end.
    fn land(&mut self, patience: Duration) -> Result<bool, StoreError>;

    /// The last key of a family, with its value.
    ///
    /// # Errors
    /// It cannot be read.
    fn last(&self, family: Family) -> Result<Option<Pair>, StoreError>;

    /// Writes a batch and waits until it is on disk.
    ///
    /// # Errors
    /// As [`Disk::land`].
    fn write(&mut self, batch: Batch, groups: u64) -> Result<(), StoreError> {
        self.begin(batch, groups);
        let landed = self.land(Duration::MAX)?;
        assert!(landed, "this patience has no end");
        Ok(())
    }

    /// Groups that were acknowledged at the least, by a second witness beside the log.
    ///
    /// # Errors
    /// The witness cannot be read.
    fn witness(&self) -> Result<u64, StoreError>;

    /// What its opening found by reading every row, unless something was written since; returned once. None: it was not
    /// read.
    fn take_proven(&mut self) -> Option<Proven> {
        None
    }

    /// What is wrong beside the data, in words: the data may be whole all the same.
    fn flaws(&self) -> Vec<String> {
        Vec::new()
    }

    /// Where the log stops making sense, in words, if it does.
    fn damage(&self) -> Option<String> {
        None
    }

    /// Where this is, for messages.
    fn place(&self) -> String;
}

/// Changes that become durable together.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    changes: Vec<(Family, Range<u32>, Option<Range<u32>>)>,
}

/// One change: a key gets a value, or loses it.
pub type Change<'a> = (Family, &'a [u8], Option<&'a [u8]>);

impl Batch {
    /// Gives a key a value.
    pub fn put(&mut self, family: Family, key: &[u8], value: &[u8]) {
        let (key, value) = (self.add(key), self.add(value));
        self.changes.push((family, key, Some(value)));
    }

    /// Takes a key's value away.
    pub fn delete(&mut self, family: Family, key: &[u8]) {
        let key = self.add(key);
        self.changes.push((family, key, None));
    }

    fn add(&mut self, bytes: &[u8]) -> Range<u32> {
        let from = self.bytes.len() as u32;
        self.bytes.extend_from_slice(bytes);
        from..self.bytes.len() as u32
    }

    /// The changes in the order in which they were made.
    pub fn changes(&self) -> impl Iterator<Item = Change<'_>> {
        let bytes = |range: &Range<u32>| &self.bytes[range.start as usize..range.end as usize];
        self.changes.iter().map(move |(family, key, value)| (*family, bytes(key), value.as_ref().map(bytes)))
    }

    /// Nothing to write.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

/// A record that cannot be read.
pub fn refused(disk: &impl Disk, place: &str, error: RecordError) -> StoreError {
    match error {
        RecordError::Altered => altered(disk, place, "is altered or cut short: its checksum does not match"),
        RecordError::Newer { version } => {
            let path = disk.place();
            let text = format!(
                "{place} of {path} was written by version {version} of the record format; this program reads up to \
                 {RECORD_VERSION}; use a newer ringshard"
            );
            StoreError::new(StoreErrorKind::Newer, text)
        }
    }
}

/// A record that is not as it was written.
pub fn altered(disk: &impl Disk, place: &str, what: &str) -> StoreError {
    let path = disk.place();
    let text = format!(
        "{place} of {path} {what}; put a backup of the folder in its place, or move the folder away to start a new realm"
    );
    StoreError::new(StoreErrorKind::Altered, text)
}
