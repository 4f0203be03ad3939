//! Records: the bytes of what the store holds.
//!
//! Owns the encoding. Each record, in every version: version u16, payload, checksum u64, little-endian; the checksum
//! is FNV-1a 64 over all before it (any one altered byte changes it; it guards against rot, not against an author).
//! Promises: what was altered or cut short is never decoded; a record of a newer version is told from an altered one.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::CharacterRow;
use crate::limits::SHARDS_MAX;
use crate::planted::{Bug, planted};
use crate::wire::ids::ShardId;
use crate::world::random::mix;

/// Version that this program writes, and the newest that it reads.
pub const RECORD_VERSION: u16 = 3;

const VERSION_BYTES: usize = 2;
const CHECKSUM_BYTES: usize = 8;
const ROW_PAYLOAD_BYTES: usize = 52;
/// Of version 1, which knew no deeds.
const ROW_1_PAYLOAD_BYTES: usize = 44;
const CLIENT_PAYLOAD_BYTES: usize = 9;
const REALM_PAYLOAD_BYTES: usize = 56;
/// Of version 2, which had no proof.
const REALM_2_PAYLOAD_BYTES: usize = 32;
/// Of version 1, which counted no groups either.
const REALM_1_PAYLOAD_BYTES: usize = 24;

/// Bytes of an encoded row.
pub const ROW_BYTES: usize = VERSION_BYTES + ROW_PAYLOAD_BYTES + CHECKSUM_BYTES;

/// Why bytes are not a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RecordError {
    /// Whole, but from a newer program.
    Newer {
        /// Its version.
        version: u16,
    },
    /// Altered or cut short.
    Altered,
}

/// What is durable about the realm as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RealmRecord {
    /// Seed of the land, fixed at the first start.
    pub seed: u64,
    /// Newest tick known; no row is from a later one. A process that was killed may have been a second or more ahead.
    pub tick: u64,
    /// Number that the next new character gets.
    pub next_character: u64,
    /// Groups committed since the realm began; each commit counts one more.
    pub groups: u64,
    /// What else must be there; none in a realm of a program that wrote none.
    pub proof: Option<Proof>,
}

/// What the other column families hold when the realm's record is written: one that is older or missing is noticed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Proof {
    /// Rows of all shards.
    pub characters: u64,
    /// Sum of the rows' digests, whichever shard has them.
    pub rows_digest: u64,
    /// Orders answered since the realm began.
    pub orders: u64,
}

/// Where a client's character is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClientRecord {
    /// Number of the character.
    pub character: u64,
    /// Column family of its row.
    pub owner: ShardId,
}

impl CharacterRow {
    /// As a record of [`RECORD_VERSION`].
    pub fn encode(&self) -> Vec<u8> {
        seal(&[
            &self.client_id.to_le_bytes(),
            &self.character.to_le_bytes(),
            &[self.owner.0, u8::from(self.saved)],
            &self.epoch.to_le_bytes(),
            &self.tick.to_le_bytes(),
            &self.x.to_le_bytes(),
            &self.y.to_le_bytes(),
            &self.z.to_le_bytes(),
            &self.yaw.to_le_bytes(),
            &self.deeds.to_le_bytes(),
        ])
    }

    /// Digest of what it says, whichever shard has it.
    pub fn digest(&self) -> u64 {
        digest(&CharacterRow { owner: ShardId(0), ..*self }.encode())
    }

    /// From a record of this or an earlier version.
    ///
    /// # Errors
    /// It is altered, or of a newer program.
    pub fn decode(bytes: &[u8]) -> Result<CharacterRow, RecordError> {
        let mut payload = open(bytes, &[ROW_1_PAYLOAD_BYTES, ROW_PAYLOAD_BYTES])?;
        let p = &mut payload;
        let (client_id, character) = (u64::from_le_bytes(take(p)), u64::from_le_bytes(take(p)));
        let [owner, saved] = take(p);
        let (epoch, tick) = (u32::from_le_bytes(take(p)), u64::from_le_bytes(take(p)));
        let [x, y, z] = [(); 3].map(|()| i32::from_le_bytes(take(p)));
        let yaw = u16::from_le_bytes(take(p));
        let deeds = if p.is_empty() { 0 } else { u64::from_le_bytes(take(p)) };
        if usize::from(owner) >= SHARDS_MAX || saved > 1 || !is_character_number(character) {
            return Err(RecordError::Altered);
        }
        let (owner, saved) = (ShardId(owner), saved == 1);
        Ok(CharacterRow { client_id, character, owner, epoch, tick, x, y, z, yaw, saved, deeds })
    }
}

impl ClientRecord {
    /// As a record of [`RECORD_VERSION`].
    pub fn encode(&self) -> Vec<u8> {
        seal(&[&self.character.to_le_bytes(), &[self.owner.0]])
    }

    /// From a record of this or an earlier version.
    ///
    /// # Errors
    /// It is altered, or of a newer program.
    pub fn decode(bytes: &[u8]) -> Result<ClientRecord, RecordError> {
        let mut payload = open(bytes, &[CLIENT_PAYLOAD_BYTES])?;
        let character = u64::from_le_bytes(take(&mut payload));
        let [owner] = take(&mut payload);
        if usize::from(owner) >= SHARDS_MAX || !is_character_number(character) {
            return Err(RecordError::Altered);
        }
        Ok(ClientRecord { character, owner: ShardId(owner) })
    }
}

impl RealmRecord {
    /// A realm that begins now; its first character is number 1.
    pub fn first(seed: u64) -> RealmRecord {
        RealmRecord { seed, tick: 0, next_character: 1, groups: 0, proof: Some(Proof::default()) }
    }

    /// As a record of [`RECORD_VERSION`].
    pub fn encode(&self) -> Vec<u8> {
        let proof = self.proof.expect("a store that writes has counted");
        seal(&[
            &self.seed.to_le_bytes(),
            &self.tick.to_le_bytes(),
            &self.next_character.to_le_bytes(),
            &self.groups.to_le_bytes(),
            &proof.characters.to_le_bytes(),
            &proof.rows_digest.to_le_bytes(),
            &proof.orders.to_le_bytes(),
        ])
    }

    /// From a record of this or an earlier version.
    ///
    /// # Errors
    /// It is altered, or of a newer program.
    pub fn decode(bytes: &[u8]) -> Result<RealmRecord, RecordError> {
        let mut payload = open(bytes, &[REALM_1_PAYLOAD_BYTES, REALM_2_PAYLOAD_BYTES, REALM_PAYLOAD_BYTES])?;
        let [seed, tick, next_character] = [(); 3].map(|()| u64::from_le_bytes(take(&mut payload)));
        let groups = if payload.is_empty() { 0 } else { u64::from_le_bytes(take(&mut payload)) };
        let mut proof = None;
        if !payload.is_empty() {
            let [characters, rows_digest, orders] = [(); 3].map(|()| u64::from_le_bytes(take(&mut payload)));
            proof = Some(Proof { characters, rows_digest, orders });
        }
        if !is_character_number(next_character) {
            return Err(RecordError::Altered);
        }
        Ok(RealmRecord { seed, tick, next_character, groups, proof })
    }
}

fn is_character_number(number: u64) -> bool {
    (1..1 << 56).contains(&number)
}

fn seal(parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = RECORD_VERSION.to_le_bytes().to_vec();
    for part in parts {
        bytes.extend_from_slice(part);
    }
    close(bytes)
}

/// Ends a record by the checksum of all before it.
fn close(mut bytes: Vec<u8>) -> Vec<u8> {
    let sum = checksum(&bytes);
    bytes.extend_from_slice(&sum.to_le_bytes());
    bytes
}

/// The payload, of one of these lengths; a shorter one is of an older version.
fn open<'a>(bytes: &'a [u8], lengths: &[usize]) -> Result<&'a [u8], RecordError> {
    let payload = open_any(bytes)?;
    if lengths.contains(&payload.len()) { Ok(payload) } else { Err(RecordError::Altered) }
}

fn open_any(bytes: &[u8]) -> Result<&[u8], RecordError> {
    let (sealed, sum) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(RecordError::Altered)?;
    let (version, payload) = sealed.split_first_chunk::<VERSION_BYTES>().ok_or(RecordError::Altered)?;
    if checksum(sealed) != u64::from_le_bytes(*sum) && !planted(Bug::NoChecksum) {
        return Err(RecordError::Altered);
    }
    match u16::from_le_bytes(*version) {
        1..=RECORD_VERSION => Ok(payload),
        0 => Err(RecordError::Altered),
        version => Err(RecordError::Newer { version }),
    }
}

/// A record of any value that serde knows, of any length.
pub fn seal_value(value: &impl Serialize) -> Vec<u8> {
    let bytes = RECORD_VERSION.to_le_bytes().to_vec();
    close(postcard::to_extend(value, bytes).expect("a value has no part without a length"))
}

/// The value in a record.
pub fn open_value<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, RecordError> {
    match postcard::take_from_bytes(open_any(bytes)?) {
        Ok((value, [])) => Ok(value),
        _ => Err(RecordError::Altered),
    }
}

/// A record of bytes that are a block of their own kind.
pub fn seal_block(block: &[u8]) -> Vec<u8> {
    seal(&[block])
}

/// The block in a record.
pub fn open_block(bytes: &[u8]) -> Result<&[u8], RecordError> {
    open_any(bytes)
}

fn take<const N: usize>(payload: &mut &[u8]) -> [u8; N] {
    let (head, rest) = payload.split_first_chunk::<N>().expect("the length of the payload was checked");
    *payload = rest;
    *head
}

/// What stands for some bytes in a sum over many of them.
pub fn digest(bytes: &[u8]) -> u64 {
    mix(checksum(bytes))
}

fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// What a look at everything that a start depends on found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proven {
    /// The realm's record; none before the first start was through.
    pub realm: Option<RealmRecord>,
    /// What is there beside it.
    pub proof: Proof,
    /// Shards of the node that it was for.
    pub shards: usize,
    /// Rows of other shards.
    pub strays: Vec<CharacterRow>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    prop_compose! {
        fn any_row()(
            ids in (any::<u64>(), 1u64..1 << 56, 0u8..32),
            age in (any::<u32>(), any::<u64>()),
            place in any::<[i32; 3]>(),
            yaw in any::<u16>(),
            (saved, deeds) in any::<(bool, u64)>(),
        ) -> CharacterRow {
            let (client_id, character, owner) = ids;
            let [x, y, z] = place;
            CharacterRow { client_id, character, owner: ShardId(owner), epoch: age.0, tick: age.1, x, y, z, yaw, saved, deeds }
        }
    }

    /// The record as a program of `version` would have sealed it.
    fn resealed(record: &[u8], version: u16) -> Vec<u8> {
        let mut bytes = record[..record.len() - CHECKSUM_BYTES].to_vec();
        bytes[..VERSION_BYTES].copy_from_slice(&version.to_le_bytes());
        let sum = checksum(&bytes);
        bytes.extend_from_slice(&sum.to_le_bytes());
        bytes
    }

    proptest! {
        #[test]
        fn rows_come_back(row in any_row()) {
            let bytes = row.encode();
            prop_assert_eq!(bytes.len(), ROW_BYTES);
            prop_assert_eq!(CharacterRow::decode(&bytes), Ok(row));
        }

        #[test]
        fn no_altered_byte_passes(row in any_row()) {
            let bytes = row.encode();
            for bit in 0..bytes.len() * 8 {
                let mut flipped = bytes.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                prop_assert_eq!(CharacterRow::decode(&flipped), Err(RecordError::Altered));
            }
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            prop_assert_eq!(CharacterRow::decode(&bytes), Err(RecordError::Altered));
            prop_assert_eq!(ClientRecord::decode(&bytes), Err(RecordError::Altered));
            prop_assert_eq!(RealmRecord::decode(&bytes), Err(RecordError::Altered));
        }
    }

    #[test]
    fn small_records_come_back_and_are_not_taken_for_each_other() {
        let client = ClientRecord { character: 7, owner: ShardId(3) };
        let proof = Proof { characters: 5, rows_digest: 6, orders: 7 };
        let realm = RealmRecord { seed: 1, tick: 2, next_character: 3, groups: 4, proof: Some(proof) };
        assert_eq!(ClientRecord::decode(&client.encode()), Ok(client));
        assert_eq!(RealmRecord::decode(&realm.encode()), Ok(realm));
        assert_eq!(RealmRecord::decode(&client.encode()), Err(RecordError::Altered));
        assert_eq!(ClientRecord::decode(&realm.encode()), Err(RecordError::Altered));
    }

    #[test]
    fn a_value_of_any_length_comes_back() {
        for words in [0, 1, 50, 1_000] {
            let value = vec![u64::MAX; words];
            assert_eq!(open_value(&seal_value(&value)), Ok(value));
        }
    }

    #[test]
    fn cut_short_is_altered_and_newer_is_newer() {
        let bytes = RealmRecord::first(9).encode();
        for bytes_left in 0..bytes.len() {
            assert_eq!(RealmRecord::decode(&bytes[..bytes_left]), Err(RecordError::Altered));
        }
        let newer = resealed(&bytes, RECORD_VERSION + 1);
        assert_eq!(RealmRecord::decode(&newer), Err(RecordError::Newer { version: RECORD_VERSION + 1 }));
        assert_eq!(RealmRecord::decode(&resealed(&bytes, 0)), Err(RecordError::Altered));
    }

    #[test]
    fn the_bytes_of_version_3_stay_and_those_of_1_and_2_are_read() {
        let row = CharacterRow {
            client_id: 0x0102_0304_0506_0708,
            character: 2,
            owner: ShardId(3),
            epoch: 4,
            tick: 5,
            x: -1,
            y: 6,
            z: 7,
            yaw: 8,
            saved: true,
            deeds: 9,
        };
        let mut golden = vec![3, 0, 8, 7, 6, 5, 4, 3, 2, 1, 2, 0, 0, 0, 0, 0, 0, 0, 3, 1, 4, 0, 0, 0, 5, 0, 0, 0, 0, 0];
        golden.extend([0, 0, 255, 255, 255, 255, 6, 0, 0, 0, 7, 0, 0, 0, 8, 0]);
        let old = resealed(&[&golden[..], &[0; CHECKSUM_BYTES]].concat(), 1);
        assert_eq!(CharacterRow::decode(&old), Ok(CharacterRow { deeds: 0, ..row }));
        golden.extend([9, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(row.encode()[..ROW_BYTES - CHECKSUM_BYTES], golden);
        let realm = RealmRecord::first(9);
        let old =
            resealed(&[&realm.encode()[..VERSION_BYTES + REALM_2_PAYLOAD_BYTES], &[0; CHECKSUM_BYTES]].concat(), 2);
        assert_eq!(RealmRecord::decode(&old), Ok(RealmRecord { proof: None, ..realm }));
        // The published test vector of FNV-1a 64.
        assert_eq!(checksum(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
