//! The store of the deterministic host: rows in memory, as forgetful as a disk.
//!
//! Owns what is committed and what is not. Promises: reads see what was put; [`MemoryStore::lose_uncommitted`] leaves
//! exactly what the last [`MemoryStore::commit`] had. Bounded by its use in tests only.

use std::collections::BTreeMap;

use super::record::RealmRecord;
use super::{CharacterRow, Store, StoreError};
use crate::ids::ShardId;

/// Rows by client id, and the realm's record: as read now, and as a crash would leave them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemoryStore {
    rows: BTreeMap<u64, CharacterRow>,
    realm: RealmRecord,
    uncommitted: BTreeMap<u64, Option<CharacterRow>>,
    committed_realm: RealmRecord,
}

impl MemoryStore {
    /// An empty realm.
    pub fn new(seed: u64) -> MemoryStore {
        let realm = RealmRecord::first(seed);
        MemoryStore { rows: BTreeMap::new(), realm, uncommitted: BTreeMap::new(), committed_realm: realm }
    }

    /// Makes all that was put durable.
    pub fn commit(&mut self) {
        self.uncommitted.clear();
        self.committed_realm = self.realm;
    }

    /// What a power loss does.
    pub fn lose_uncommitted(&mut self) {
        for (client_id, before) in std::mem::take(&mut self.uncommitted) {
            match before {
                Some(row) => self.rows.insert(client_id, row),
                None => self.rows.remove(&client_id),
            };
        }
        self.realm = self.committed_realm;
    }

    /// All rows, by client id.
    pub fn rows(&self) -> impl Iterator<Item = &CharacterRow> {
        self.rows.values()
    }
}

impl Store for MemoryStore {
    fn row(&self, client_id: u64) -> Result<Option<CharacterRow>, StoreError> {
        Ok(self.rows.get(&client_id).copied())
    }

    fn put(&mut self, row: CharacterRow, stored_in: Option<ShardId>) {
        let before = self.rows.insert(row.client_id, row);
        assert_eq!(before.map(|row| row.owner), stored_in, "a row moves from where it is");
        self.uncommitted.entry(row.client_id).or_insert(before);
    }

    fn realm(&self) -> &RealmRecord {
        &self.realm
    }

    fn realm_mut(&mut self) -> &mut RealmRecord {
        &mut self.realm
    }
}
