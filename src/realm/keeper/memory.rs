//! The disk of the deterministic host: RocksDB's guarantees in memory, and every way in which a disk breaks them.
//!
//! Owns tables, the bytes of a log with how far they are synced, and the second witness. Promises: what a [`Disk`]
//! promises, as RocksDB keeps it (a conformance test does the same to both); a loss of power keeps what was synced and
//! any part of the rest, cut anywhere; a record that is not whole ends what is read of the log. Faults come when they
//! were planned and never by themselves.

use std::collections::BTreeMap;
use std::time::Duration;

use super::disk::{Batch, Disk, Family, Pair, Visitor};
use super::{StoreError, StoreErrorKind};
use crate::planted::{Bug, planted};
use crate::world::random::mix;

/// Records in the log before it becomes tables and a new log begins.
const LOG_RECORDS_MAX: usize = 64;
/// Bytes before a record: its length and the checksum of it.
const HEAD_BYTES: usize = 12;

type Tables = BTreeMap<(Family, Vec<u8>), Vec<u8>>;

/// How the next write fails.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum DiskFault {
    /// No room: nothing is written.
    Full,
    /// An error in the middle: a part is written.
    Io,
    /// All is written, and the sync fails.
    Sync,
}

/// A disk in memory.
#[derive(Clone, Debug)]
pub struct MemoryDisk {
    /// Tables on disk.
    base: Tables,
    /// What reads see: the tables and the log.
    now: Tables,
    /// Changes of the records in the log.
    logged: Vec<Changes>,
    log: Vec<u8>,
    /// Bytes of the log that survive a loss of power.
    synced: usize,
    /// Whether the log's name does.
    is_named: bool,
    witness: u64,
    /// The batch under way, and what the witness says when it has landed.
    under_way: Option<(Batch, u64)>,
    fault: Option<DiskFault>,
}

impl Default for MemoryDisk {
    fn default() -> MemoryDisk {
        let (base, now, log) = (Tables::new(), Tables::new(), Vec::new());
        let (under_way, fault) = (None, None);
        MemoryDisk { base, now, logged: Vec::new(), log, synced: 0, is_named: true, witness: 0, under_way, fault }
    }
}

impl MemoryDisk {
    /// Lets the next write fail.
    pub fn plan(&mut self, fault: DiskFault) {
        self.fault = Some(fault);
    }

    /// The process was killed: the kernel still writes what it was given, which is any part of what was under way. Then
    /// a start reads it again.
    pub fn kill(&mut self, random: u64) {
        self.give_part(random);
        self.read_again();
    }

    /// Power is lost. Of what was not synced any part may be there, up to a cut anywhere.
    pub fn lose_power(&mut self, random: u64) {
        self.give_part(mix(random));
        if self.is_named {
            let unsynced = self.log.len() - self.synced;
            self.log.truncate(self.synced + (random % (unsynced as u64 + 1)) as usize);
        } else {
            self.log.clear();
        }
        self.read_again();
    }

    /// Lets the kernel have a part of what is under way, from nothing to all.
    fn give_part(&mut self, random: u64) {
        if let Some((batch, _)) = self.under_way.take() {
            let record = write_record(&batch);
            let part = (random % (record.len() as u64 + 1)) as usize;
            self.log.extend_from_slice(&record[..part]);
        }
    }

    /// Whether reads see the same as on another disk.
    pub fn reads_as(&self, other: &MemoryDisk) -> bool {
        self.now == other.now
    }

    /// Turns one bit over, in a table or in the log; false when there is none.
    pub fn rot(&mut self, random: u64) -> bool {
        let bit = 1 << (random >> 60 & 7);
        if random.is_multiple_of(2) && !self.log.is_empty() {
            let at = (mix(random) % self.log.len() as u64) as usize;
            self.log[at] ^= bit;
        } else {
            let count = self.base.len() as u64;
            let Some(value) = self.base.values_mut().nth((mix(random) % count.max(1)) as usize) else { return false };
            let at = (mix(random ^ 1) % value.len() as u64) as usize;
            value[at] ^= bit;
        }
        self.read_again();
        true
    }

    /// Reads tables and log as a start does.
    fn read_again(&mut self) {
        self.fault = None;
        self.now.clone_from(&self.base);
        self.logged.clear();
        let mut at = 0;
        while let Some((changes, length)) = read_record(&self.log[at..]) {
            apply(&mut self.now, changes.clone());
            self.logged.push(changes);
            at += length;
        }
        self.log.truncate(at);
        (self.synced, self.is_named) = (at, true);
    }

    fn failed(&self, what: &str) -> StoreError {
        StoreError::new(StoreErrorKind::Io, format!("writing {}: {what}", self.place()))
    }
}

impl Disk for MemoryDisk {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.now.get(&(family, key.to_vec())).cloned())
    }

    fn visit(&self, family: Family, prefix: &[u8], visit: &mut Visitor<'_>) -> Result<(), StoreError> {
        let from = (family, prefix.to_vec());
        let found = self.now.range(from..).take_while(|((of, key), _)| *of == family && key.starts_with(prefix));
        for ((_, key), value) in found {
            visit(key, value)?;
        }
        Ok(())
    }

    fn last(&self, family: Family) -> Result<Option<Pair>, StoreError> {
        let found = self.now.range((family, Vec::new())..).take_while(|((of, _), _)| *of == family).last();
        Ok(found.map(|((_, key), value)| (key.clone(), value.clone())))
    }

    fn begin(&mut self, batch: Batch, groups: u64) {
        assert!(self.under_way.is_none(), "one batch is under way at a time");
        self.under_way = Some((batch, groups));
    }

    /// It lands when somebody looks, however short his patience.
    fn land(&mut self, _patience: Duration) -> Result<bool, StoreError> {
        let Some((batch, groups)) = self.under_way.take() else { return Ok(true) };
        let record = write_record(&batch);
        match self.fault.take() {
            Some(DiskFault::Full) => return Err(self.failed("no space left on device")),
            Some(DiskFault::Io) => {
                let part = record.len() / 2;
                self.log.extend_from_slice(&record[..part]);
                return Err(self.failed("input/output error"));
            }
            Some(DiskFault::Sync) => {
                self.log.extend_from_slice(&record);
                return Err(self.failed("the sync failed"));
            }
            None => (),
        }
        if self.logged.len() == LOG_RECORDS_MAX {
            self.logged.drain(..).for_each(|changes| apply(&mut self.base, changes));
            self.log.clear();
            self.synced = 0;
            self.is_named = !planted(Bug::NoDirectorySync);
        }
        self.log.extend_from_slice(&record);
        if !planted(Bug::NoSync) {
            self.synced = self.log.len();
        }
        let owned = batch.changes().map(|(family, key, value)| (family, key.to_vec(), value.map(<[u8]>::to_vec)));
        let owned: Changes = owned.collect();
        apply(&mut self.now, owned.clone());
        self.logged.push(owned);
        self.witness = groups;
        Ok(true)
    }

    fn witness(&self) -> Result<u64, StoreError> {
        Ok(self.witness)
    }

    fn place(&self) -> String {
        "the disk in memory".to_owned()
    }
}

type Changes = Vec<(Family, Vec<u8>, Option<Vec<u8>>)>;

fn apply(tables: &mut Tables, changes: Changes) {
    for (family, key, value) in changes {
        match value {
            Some(value) => tables.insert((family, key), value),
            None => tables.remove(&(family, key)),
        };
    }
}

fn write_record(batch: &Batch) -> Vec<u8> {
    let changes: Vec<_> = batch.changes().collect();
    let payload = postcard::to_stdvec(&changes).expect("changes are plain bytes");
    let mut record = (payload.len() as u32).to_le_bytes().to_vec();
    record.extend(checksum(&payload).to_le_bytes());
    record.extend(payload);
    record
}

/// The changes of the record at the start of these bytes, and its length; none when it is not whole.
fn read_record(bytes: &[u8]) -> Option<(Changes, usize)> {
    let (length, rest) = bytes.split_first_chunk()?;
    let (sum, rest) = rest.split_first_chunk()?;
    let payload = rest.get(..u32::from_le_bytes(*length) as usize)?;
    if checksum(payload) != u64::from_le_bytes(*sum) {
        return None;
    }
    Some((postcard::from_bytes(payload).ok()?, HEAD_BYTES + payload.len()))
}

fn checksum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks();
    let sum = words.iter().fold(bytes.len() as u64, |sum, word| mix(sum ^ u64::from_le_bytes(*word)));
    rest.iter().fold(sum, |sum, byte| mix(sum ^ u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// First bytes of the keys in the ledger's family.
    fn keys(disk: &impl Disk) -> Vec<u8> {
        let mut keys = Vec::new();
        disk.visit(Family::Ledger, &[], &mut |key, _| {
            keys.push(key[0]);
            Ok(())
        })
        .unwrap();
        keys
    }

    #[test]
    fn faults_leave_a_prefix_and_say_so() {
        for (fault, seen) in [(DiskFault::Full, 1), (DiskFault::Io, 1), (DiskFault::Sync, 2)] {
            let mut disk = MemoryDisk::default();
            let write = |disk: &mut MemoryDisk, key: u8| {
                let mut batch = Batch::default();
                batch.put(Family::Ledger, &[key], &[key; 40]);
                disk.write(batch, 1)
            };
            write(&mut disk, 1).unwrap();
            disk.plan(fault);
            assert_eq!(write(&mut disk, 2).unwrap_err().exit_code(), 74);
            let whole = disk.clone();
            disk.kill(0);
            assert_eq!(keys(&disk).len(), seen, "{fault:?}");
            for cut in 0..200 {
                let mut disk = whole.clone();
                disk.lose_power(cut);
                let left = keys(&disk);
                assert!(left.contains(&1) && left.len() <= 2, "{fault:?}");
            }
        }
    }
}
