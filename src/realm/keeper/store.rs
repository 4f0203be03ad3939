//! Rows and the realm's record on a disk, committed in groups.
//!
//! Owns the disk, the group of rows that is not yet committed, and the one that is on its way to the disk. Promises: a
//! row is in the family of exactly one shard; a group is one batch, whole or not at all; reads see both groups; a realm
//! that lost what it acknowledged is refused at its start. Never goes on after a failed write.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Duration;

use super::disk::{Batch, Disk, Family};
use super::proof::{REALM_KEY, prove, read_row};
use super::record::{ClientRecord, Proven, ROW_BYTES, RealmRecord};
use super::{CharacterRow, StoreError};
use crate::limits::{KEEPER_CLOCK_TICKS_MAX, KEEPER_MOVE_ROWS_MAX, SHARDS_MAX};
use crate::planted::{Bug, planted};
use crate::wire::ids::ShardId;

/// The realm's store.
pub struct Store<D> {
    disk: D,
    shards: usize,
    group: Rows,
    /// Rows on their way to the disk.
    under_way: Option<Rows>,
    realm: RealmRecord,
    /// As it is on disk when what is under way has landed.
    begun_realm: RealmRecord,
    recovered_characters: u64,
}

/// Rows by client.
type Rows = BTreeMap<u64, Grouped>;

/// A row of the group, and the family where the disk has the character.
struct Grouped {
    row: CharacterRow,
    stored_in: Option<ShardId>,
}

impl<D: Disk> Store<D> {
    /// Opens the realm on a disk, or begins it with this seed. Every row is read and checked; rows of shards that are no
    /// more go where `owner_of` says, which must be below `shards`.
    ///
    /// # Errors
    /// The data is of a newer version or altered, something that was acknowledged is missing, or the disk refused.
    pub fn open(
        mut disk: D,
        shards: usize,
        seed: u64,
        owner_of: impl FnMut(&CharacterRow) -> ShardId,
    ) -> Result<Store<D>, StoreError> {
        assert!((1..=SHARDS_MAX).contains(&shards), "a node has 1 to {SHARDS_MAX} shards, not {shards}");
        let Proven { realm: known, proof, strays, shards: looked_for } = match disk.take_proven() {
            Some(proven) => proven,
            None => prove(&disk, shards)?,
        };
        assert_eq!(looked_for, shards, "a disk is opened for the shards that it serves");
        let realm = RealmRecord { proof: Some(proof), ..known.unwrap_or(RealmRecord::first(seed)) };
        let (group, under_way, recovered_characters) = (Rows::new(), None, proof.characters);
        let mut store = Store { disk, shards, group, under_way, realm, begun_realm: realm, recovered_characters };
        store.move_rows(&strays, owner_of)?;
        if known.is_none() {
            store.begin(Batch::default(), true);
            store.land(Duration::MAX)?;
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

    /// The disk.
    pub fn disk(&self) -> &D {
        &self.disk
    }

    /// The disk, to tend it.
    pub fn disk_mut(&mut self) -> &mut D {
        &mut self.disk
    }

    /// Ends the store; its disk stays.
    pub fn into_disk(self) -> D {
        self.disk
    }

    /// Whether there are rows to commit. The clock alone is something only once a second.
    pub fn has_group(&self) -> bool {
        let ticks = self.realm.tick.saturating_sub(self.begun_realm.tick);
        !self.group.is_empty() || ticks >= KEEPER_CLOCK_TICKS_MAX
    }

    /// About how much the rows of the group take.
    pub fn group_bytes(&self) -> usize {
        self.group.len() * ROW_BYTES
    }

    /// Begins to write the group and what else belongs to it, when nothing is under way. Without rows, batch and
    /// `always`: nothing is done.
    pub fn begin(&mut self, mut batch: Batch, always: bool) {
        assert!(self.under_way.is_none(), "one group is under way at a time");
        if batch.is_empty() && !always && !self.has_group() {
            return;
        }
        for Grouped { row, stored_in } in self.group.values() {
            add(&mut batch, row, *stored_in);
        }
        self.realm.groups += 1;
        batch.put(Family::Realm, REALM_KEY, &self.realm.encode());
        self.disk.begin(batch, self.realm.groups);
        self.under_way = Some(std::mem::take(&mut self.group));
        self.begun_realm = self.realm;
    }

    /// Whether a group is under way.
    pub fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// Waits up to `patience` for the group that is under way; gives the number of its rows when it has landed now.
    ///
    /// # Errors
    /// The disk refused; what it holds is the last committed state, and the process must end.
    pub fn land(&mut self, patience: Duration) -> Result<Option<u64>, StoreError> {
        if self.under_way.is_none() {
            return Ok(None);
        }
        let landed = match self.disk.land(patience) {
            Err(_) if planted(Bug::WriteErrorIgnored) => true,
            landed => landed?,
        };
        Ok(if landed { self.under_way.take().map(|rows| rows.len() as u64) } else { None })
    }

    /// Moves the rows of shards that are no more.
    fn move_rows(
        &mut self,
        strays: &[CharacterRow],
        mut owner_of: impl FnMut(&CharacterRow) -> ShardId,
    ) -> Result<(), StoreError> {
        for rows in strays.chunks(KEEPER_MOVE_ROWS_MAX) {
            let mut batch = Batch::default();
            for row in rows {
                let owner = owner_of(row);
                assert!(owner.index() < self.shards, "the new owner is a shard of this node");
                add(&mut batch, &CharacterRow { owner, ..*row }, Some(row.owner));
            }
            self.disk.write(batch, self.realm.groups)?;
        }
        Ok(())
    }

    /// Newest row of a client's character, with what was put and is not yet durable.
    ///
    /// # Errors
    /// What was stored cannot be read.
    pub fn row(&self, client_id: u64) -> Result<Option<CharacterRow>, StoreError> {
        let under_way = self.under_way.iter().filter(|_| !planted(Bug::UnderWayUnseen));
        match [&self.group].into_iter().chain(under_way).find_map(|rows| rows.get(&client_id)) {
            Some(grouped) => Ok(Some(grouped.row)),
            None => read_row(&self.disk, client_id),
        }
    }

    /// Takes a row into the next commit; `before` is what [`Store::row`] gives now, so that a move between column families
    /// is one delete and one put in the same batch.
    pub fn put(&mut self, row: CharacterRow, before: Option<&CharacterRow>) {
        assert!(row.owner.index() < self.shards, "a row belongs to a shard of this node");
        let proof = self.realm.proof.as_mut().expect("it was counted when the store was opened");
        proof.characters += u64::from(before.is_none());
        proof.rows_digest = proof.rows_digest.wrapping_add(row.digest()).wrapping_sub(before.map_or(0, |b| b.digest()));
        let stored_in = before.map(|before| before.owner);
        match self.group.entry(row.client_id) {
            Entry::Occupied(mut grouped) => grouped.get_mut().row = row,
            Entry::Vacant(free) => {
                free.insert(Grouped { row, stored_in });
            }
        }
    }

    /// Says how many orders the ledger has answered; the next commit writes it.
    pub fn count_orders(&mut self, orders: u64) {
        self.realm.proof.as_mut().expect("it was counted when the store was opened").orders = orders;
    }

    /// The realm's record.
    pub fn realm(&self) -> &RealmRecord {
        &self.realm
    }

    /// The realm's record, to change it with the next commit.
    pub fn realm_mut(&mut self) -> &mut RealmRecord {
        &mut self.realm
    }
}

/// Adds a row to a batch; a move takes it out of its old family in the same batch.
fn add(batch: &mut Batch, row: &CharacterRow, stored_in: Option<ShardId>) {
    let key = row.character.to_be_bytes();
    if stored_in != Some(row.owner) {
        if let Some(old) = stored_in {
            batch.delete(Family::Shard(old), &key);
        }
        let client = ClientRecord { character: row.character, owner: row.owner };
        batch.put(Family::Clients, &row.client_id.to_be_bytes(), &client.encode());
    }
    batch.put(Family::Shard(row.owner), &key, &row.encode());
}
