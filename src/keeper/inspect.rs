//! Reading a stopped server's characters.
//!
//! Owns nothing. Promises: the data folder is left as it was; a running server's folder is refused in words.

use std::path::Path;

use serde::Serialize;

use super::{CharacterRow, StoreError, folder};
use crate::ids::FINE_PER_M;

/// One character as people and scripts read it.
#[derive(Clone, PartialEq, Serialize, Debug)]
pub struct CharacterView {
    /// Entity id.
    pub id: u64,
    /// Client that plays it.
    pub client_id: u64,
    /// Number of the character.
    pub character: u64,
    /// Eastwards, metres.
    pub x_m: f64,
    /// Northwards, metres.
    pub y_m: f64,
    /// Upwards, metres.
    pub z_m: f64,
    /// Realm tick of this state.
    pub tick: u64,
    /// Owner epoch.
    pub epoch: u32,
    /// Shard that owned it.
    pub shard: u8,
    /// Whether it ever stood in the world; if not, the position means nothing.
    pub saved: bool,
}

impl From<&CharacterRow> for CharacterView {
    fn from(row: &CharacterRow) -> CharacterView {
        let metres = |fine: i32| f64::from(fine) / f64::from(FINE_PER_M);
        CharacterView {
            id: row.entity().0,
            client_id: row.client_id,
            character: row.character,
            x_m: metres(row.x),
            y_m: metres(row.y),
            z_m: metres(row.z),
            tick: row.tick,
            epoch: row.epoch,
            shard: row.owner.0,
            saved: row.saved,
        }
    }
}

/// All characters of the realm in a stopped server's data folder, by number.
///
/// # Errors
/// A server runs there, there is no realm, or the data is of a newer version, altered or unreadable.
pub fn inspect_characters(data: &Path) -> Result<Vec<CharacterRow>, StoreError> {
    let db = folder::open_to_read(&folder::path_in(data))?;
    folder::read_realm(&db)?;
    let mut rows = Vec::new();
    folder::visit_rows(&db, |row| {
        rows.push(row);
        Ok(())
    })?;
    rows.sort_unstable_by_key(|row| row.character);
    Ok(rows)
}
