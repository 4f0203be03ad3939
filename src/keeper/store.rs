//! The durable store: rows in RocksDB, committed in groups.
//!
//! Owns the open database and the group that is not yet committed. Promises: a row is in the column family of exactly
//! one shard; a group is one synced batch, whole or not at all; reads see the group. Open it before shards pin
//! themselves, because RocksDB's threads inherit the opener's cores. Never goes on after a failed write.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;

use rocksdb::{ColumnFamily, DB, WriteBatch, WriteOptions};

use super::record::{ClientRecord, ROW_BYTES, RealmRecord};
use super::{CharacterRow, Store, StoreError, folder};
use crate::ids::ShardId;
use crate::limits::{KEEPER_CLOCK_TICKS_MAX, KEEPER_MOVE_ROWS_MAX, SHARDS_MAX};

/// The realm's store on disk.
pub struct DiskStore {
    db: DB,
    shards: usize,
    group: BTreeMap<u64, Grouped>,
    realm: RealmRecord,
    committed_realm: RealmRecord,
    recovered_characters: u64,
}

/// A row of the group, and the family where the disk has the character.
struct Grouped {
    row: CharacterRow,
    stored_in: Option<ShardId>,
}

impl DiskStore {
    /// Opens the realm in a data folder, or begins it with this seed. Every row is read and checked; rows of shards
    /// that are no more go where `owner_of` says, which must be below `shards`.
    ///
    /// # Errors
    /// The folder is in use, not creatable or not writable; the data is of a newer version or altered.
    pub fn open(
        data: &Path,
        shards: usize,
        seed: u64,
        owner_of: impl FnMut(&CharacterRow) -> ShardId,
    ) -> Result<DiskStore, StoreError> {
        assert!((1..=SHARDS_MAX).contains(&shards), "a node has 1 to {SHARDS_MAX} shards, not {shards}");
        let path = folder::path_in(data);
        folder::prepare(&path)?;
        let (db, known) = folder::open_to_write(&path, shards)?;
        let realm = known.unwrap_or(RealmRecord::first(seed));
        let group = BTreeMap::new();
        let mut store = DiskStore { db, shards, group, realm, committed_realm: realm, recovered_characters: 0 };
        store.recover(owner_of)?;
        if known.is_none() {
            let mut batch = WriteBatch::default();
            batch.put(folder::REALM_KEY, realm.encode());
            store.write(batch)?;
        }
        Ok(store)
    }

    /// Characters that were there when the store was opened.
    pub fn recovered_characters(&self) -> u64 {
        self.recovered_characters
    }

    /// Column families that rows may be in.
    pub fn shards(&self) -> usize {
        self.shards
    }

    /// Whether there is something to commit. The clock alone is something only once a second.
    pub fn has_group(&self) -> bool {
        let ticks = self.realm.tick.saturating_sub(self.committed_realm.tick);
        !self.group.is_empty() || ticks >= KEEPER_CLOCK_TICKS_MAX
    }

    /// About how much the group writes.
    pub fn group_bytes(&self) -> usize {
        self.group.len() * ROW_BYTES
    }

    /// Writes and syncs the group; gives the number of rows in it. Nothing to commit: 0, nothing done.
    ///
    /// # Errors
    /// The disk refused; what it holds is the last committed state, and the process must end.
    pub fn commit(&mut self) -> Result<u64, StoreError> {
        if self.has_group() { self.commit_group() } else { Ok(0) }
    }

    fn commit_group(&mut self) -> Result<u64, StoreError> {
        let mut batch = WriteBatch::default();
        for Grouped { row, stored_in } in self.group.values() {
            self.add(&mut batch, row, *stored_in);
        }
        batch.put(folder::REALM_KEY, self.realm.encode());
        self.write(batch)?;
        let rows = self.group.len() as u64;
        self.group.clear();
        self.committed_realm = self.realm;
        Ok(rows)
    }

    /// Commits, and moves what the log holds into tables, so that the next start has no log to read.
    ///
    /// # Errors
    /// As [`DiskStore::commit`].
    pub fn close(mut self) -> Result<(), StoreError> {
        // The clock too, even if it is less than a second ahead.
        self.commit_group()?;
        let shards = (0..self.shards as u8).map(|shard| self.family(ShardId(shard)));
        let families: Vec<_> = shards.chain([self.clients()]).collect();
        let flushed = families.into_iter().try_for_each(|family| self.db.flush_cf(family));
        let flushed = flushed.and_then(|()| self.db.flush());
        flushed.map_err(|error| StoreError::from_rocksdb("flushing", self.db.path(), &error))
    }

    /// Counts and checks the rows, and moves those of shards that are no more.
    fn recover(&mut self, mut owner_of: impl FnMut(&CharacterRow) -> ShardId) -> Result<(), StoreError> {
        let mut characters = 0;
        let mut moved = WriteBatch::default();
        let mut moved_rows = 0;
        folder::visit_rows(&self.db, |row| {
            characters += 1;
            if row.character >= self.realm.next_character || row.tick > self.realm.tick {
                return Err(folder::altered(&self.db, "the realm's record", "is older than the rows or missing"));
            }
            if row.owner.index() >= self.shards {
                let owner = owner_of(&row);
                assert!(owner.index() < self.shards, "the new owner is a shard of this node");
                self.add(&mut moved, &CharacterRow { owner, ..row }, Some(row.owner));
                moved_rows += 1;
                if moved_rows % KEEPER_MOVE_ROWS_MAX == 0 {
                    self.write(std::mem::take(&mut moved))?;
                }
            }
            Ok(())
        })?;
        if moved_rows > 0 {
            self.write(moved)?;
        }
        self.recovered_characters = characters;
        Ok(())
    }

    /// Adds a row to a batch; a move takes it out of its old family in the same batch.
    fn add(&self, batch: &mut WriteBatch, row: &CharacterRow, stored_in: Option<ShardId>) {
        let key = row.character.to_be_bytes();
        if stored_in != Some(row.owner) {
            if let Some(old) = stored_in {
                batch.delete_cf(self.family(old), key);
            }
            let client = ClientRecord { character: row.character, owner: row.owner };
            batch.put_cf(self.clients(), row.client_id.to_be_bytes(), client.encode());
        }
        batch.put_cf(self.family(row.owner), key, row.encode());
    }

    fn write(&self, batch: WriteBatch) -> Result<(), StoreError> {
        let mut options = WriteOptions::default();
        options.set_sync(true);
        let written = self.db.write_opt(batch, &options);
        written.map_err(|error| StoreError::from_rocksdb("writing", self.db.path(), &error))
    }

    fn family(&self, shard: ShardId) -> &ColumnFamily {
        self.db.cf_handle(&folder::family_name(shard)).expect("the families of all shards are open")
    }

    fn clients(&self) -> &ColumnFamily {
        self.db.cf_handle(folder::CLIENTS).expect("the family of the clients is open")
    }
}

impl Store for DiskStore {
    fn row(&self, client_id: u64) -> Result<Option<CharacterRow>, StoreError> {
        match self.group.get(&client_id) {
            Some(grouped) => Ok(Some(grouped.row)),
            None => folder::read_row(&self.db, client_id),
        }
    }

    fn put(&mut self, row: CharacterRow, stored_in: Option<ShardId>) {
        assert!(row.owner.index() < self.shards, "a row belongs to a shard of this node");
        match self.group.entry(row.client_id) {
            Entry::Occupied(mut grouped) => grouped.get_mut().row = row,
            Entry::Vacant(free) => {
                free.insert(Grouped { row, stored_in });
            }
        }
    }

    fn realm(&self) -> &RealmRecord {
        &self.realm
    }

    fn realm_mut(&mut self) -> &mut RealmRecord {
        &mut self.realm
    }
}
