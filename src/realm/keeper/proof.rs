//! What a realm's disk holds, read and proven to belong together.
//!
//! Owns nothing. Promises: what a start depends on is read once, every row of it; a realm that lost what it acknowledged,
//! or whose parts are of different times, is refused in words that contain the mend. Never writes.

use super::disk::{Disk, Family, altered, refused};
use super::record::{ClientRecord, Proof, Proven, RealmRecord};
use super::tables::orders_held;
use super::{CharacterRow, StoreError, StoreErrorKind};
use crate::limits::SHARDS_MAX;
use crate::planted::{Bug, planted};
use crate::wire::ids::ShardId;

/// Key of the realm's record.
pub const REALM_KEY: &[u8] = b"realm";

/// Reads what a start with this number of shards depends on, and whether it belongs together: rows, the clients they are
/// for, and the ledger are those that the realm's record speaks of, and that is not older than what was acknowledged.
/// Every row is read once.
pub fn prove(disk: &impl Disk, shards: usize) -> Result<Proven, StoreError> {
    let realm = read_realm(disk)?;
    require_acknowledged(disk, realm.as_ref())?;
    let (mut held, mut clients) = (Proof { orders: orders_held(disk)?, ..Proof::default() }, 0);
    let mut strays = Vec::new();
    let limits = realm.unwrap_or(RealmRecord::first(0));
    visit_rows(disk, &mut |row| {
        held.characters += 1;
        held.rows_digest = held.rows_digest.wrapping_add(row.digest());
        if row.character >= limits.next_character || row.tick > limits.tick {
            return Err(altered(disk, "the realm's record", "is older than the rows or missing"));
        }
        if row.owner.index() >= shards {
            strays.push(row);
        }
        Ok(())
    })?;
    disk.visit(Family::Clients, &[], &mut |_, _| {
        clients += 1;
        Ok(())
    })?;
    let should = match realm {
        Some(RealmRecord { proof: Some(proof), .. }) => proof,
        // An older program wrote no proof.
        Some(_) => held,
        None => Proof::default(),
    };
    for (family, held, should) in [
        ("shard-0 to shard-31", held.characters, should.characters),
        ("clients", clients, held.characters),
        ("ledger and orders", held.orders, should.orders),
    ] {
        if held != should {
            let what = format!("is not what the realm's record speaks of: {held} entries are there, and not {should}");
            return Err(altered(disk, &format!("column family {family}"), &what));
        }
    }
    if held != should {
        return Err(altered(disk, "the rows", "are not those that the realm's record speaks of"));
    }
    Ok(Proven { realm, proof: held, shards, strays })
}

/// A realm whose log ends before what was acknowledged is not served: damage in the middle of the log ends what can be
/// read there without a word.
fn require_acknowledged(disk: &impl Disk, realm: Option<&RealmRecord>) -> Result<(), StoreError> {
    let (held, witnessed) = (realm.map_or(0, |realm| realm.groups), disk.witness()?);
    if held >= witnessed || planted(Bug::NoWitness) {
        return Ok(());
    }
    let damage = disk.damage().map_or(String::new(), |damage| format!(" ({damage})"));
    let text = format!(
        "{}: {witnessed} groups of changes were acknowledged, but only {held} can be read: the log is damaged{damage}; \
         put a backup of the folder in its place, or remove its file `acknowledged` to go on without what is lost",
        disk.place()
    );
    Err(StoreError::new(StoreErrorKind::Altered, text))
}

/// The realm's record; none before the first start was through.
pub fn read_realm(disk: &impl Disk) -> Result<Option<RealmRecord>, StoreError> {
    let bytes = disk.get(Family::Realm, REALM_KEY)?;
    let decode = |bytes: Vec<u8>| RealmRecord::decode(&bytes).map_err(|e| refused(disk, "the realm's record", e));
    bytes.map(decode).transpose()
}

/// The row of a client's character.
pub fn read_row(disk: &impl Disk, client_id: u64) -> Result<Option<CharacterRow>, StoreError> {
    let Some(bytes) = disk.get(Family::Clients, &client_id.to_be_bytes())? else { return Ok(None) };
    let place = format!("client {client_id} in column family clients");
    let client = ClientRecord::decode(&bytes).map_err(|error| refused(disk, &place, error))?;
    let place = format!("character {} in column family shard-{}", client.character, client.owner.0);
    let Some(bytes) = disk.get(Family::Shard(client.owner), &client.character.to_be_bytes())? else {
        return Err(altered(disk, &place, "is missing although client records name it"));
    };
    let row = CharacterRow::decode(&bytes).map_err(|error| refused(disk, &place, error))?;
    if (row.client_id, row.character, row.owner) != (client_id, client.character, client.owner) {
        return Err(altered(disk, &place, "says that it belongs elsewhere"));
    }
    Ok(Some(row))
}

/// Shows every row of every shard's family, by shard and character number.
pub fn visit_rows(
    disk: &impl Disk,
    visit: &mut dyn FnMut(CharacterRow) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    for shard in (0..SHARDS_MAX as u8).map(ShardId) {
        disk.visit(Family::Shard(shard), &[], &mut |key, bytes| {
            let number = key.try_into().map(u64::from_be_bytes).ok();
            let name = number.map_or_else(|| format!("{key:?}"), |number| number.to_string());
            let place = || format!("character {name} in column family shard-{}", shard.0);
            let row = CharacterRow::decode(bytes).map_err(|error| refused(disk, &place(), error))?;
            if Some(row.character) != number || row.owner != shard {
                return Err(altered(disk, &place(), "says that it belongs elsewhere"));
            }
            visit(row)
        })?;
    }
    Ok(())
}
