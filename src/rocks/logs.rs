//! Where one of RocksDB's logs stops making sense, so that an operator can be told.
//!
//! Owns nothing and changes nothing. Promises: a log whose records are all whole is told from one that is damaged, with
//! the first byte that is wrong; a last record that is cut short counts as whole, since a crash leaves one. The format
//! is that of RocksDB's wiki, "Write Ahead Log File Format": blocks of 32 KiB of records, each with a masked CRC-32C
//! (u32), a length (u16) and a type (u8), little-endian, before its bytes; the rest of a block too small for this is
//! zero.

use std::fs;
use std::path::{Path, PathBuf};

const BLOCK_BYTES: usize = 32 * 1_024;
const HEAD_BYTES: usize = 7;
/// What RocksDB adds to a rotated checksum, so that a checksum of checksums stays useful.
const MASK: u32 = 0xa282_ead8;

/// Where the first damaged log with this ending in a folder is damaged, in words.
pub(super) fn damage_in(folder: &Path, ending: &str) -> Option<String> {
    let files = fs::read_dir(folder).ok()?.filter_map(|file| Some(file.ok()?.path()));
    let mut logs: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|found| found == ending)).collect();
    logs.sort_unstable();
    logs.iter().find_map(|path| damage_of(path))
}

/// Likewise, of the log that the file CURRENT in a folder names.
pub(super) fn damage_in_current(folder: &Path) -> Option<String> {
    let name = fs::read_to_string(folder.join("CURRENT")).ok()?;
    damage_of(&folder.join(name.trim_end()))
}

fn damage_of(path: &Path) -> Option<String> {
    let at = first_damage(&fs::read(path).ok()?)?;
    Some(format!("{} from byte {at} on", path.file_name()?.display()))
}

/// The first byte of the first record that is not whole; a last one that is cut short does not count.
fn first_damage(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    while at < bytes.len() {
        let left = BLOCK_BYTES - at % BLOCK_BYTES;
        if left < HEAD_BYTES {
            at += left;
            continue;
        }
        let head: &[u8; HEAD_BYTES] = bytes[at..].first_chunk()?;
        let [c0, c1, c2, c3, l0, l1, _] = *head;
        let length = usize::from(u16::from_le_bytes([l0, l1]));
        if HEAD_BYTES + length > left {
            return Some(at);
        }
        // The checksum is of the type and the bytes.
        let checked = bytes.get(at + HEAD_BYTES - 1..at + HEAD_BYTES + length)?;
        let masked = crc32c::crc32c(checked).rotate_right(15).wrapping_add(MASK);
        if masked != u32::from_le_bytes([c0, c1, c2, c3]) {
            return Some(at);
        }
        at += HEAD_BYTES + length;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::realm::keeper::{Batch, Disk, Family};
    use crate::rocks::RocksDisk;
    use crate::wire::ids::ShardId;

    #[test]
    fn every_flipped_bit_of_a_log_is_found_where_it_is() {
        let data = std::env::temp_dir().join(format!("ringshard-logs-{}", std::process::id()));
        fs::create_dir_all(&data).unwrap();
        let mut disk = RocksDisk::open_proven(&data, 2, 0).unwrap();
        for number in 0..200u64 {
            let mut batch = Batch::default();
            batch.put(Family::Shard(ShardId(1)), &number.to_be_bytes(), &[number as u8; 400]);
            disk.write(batch, number).unwrap();
        }
        drop(disk);
        let realm = data.join("realm");
        let mut seen = 0;
        for file in fs::read_dir(&realm).unwrap().map(|file| file.unwrap().path()) {
            let name = file.file_name().unwrap().to_str().unwrap();
            if !(name.starts_with("MANIFEST") || name.ends_with(".log")) {
                continue;
            }
            let mut bytes = fs::read(&file).unwrap();
            assert_eq!(first_damage(&bytes), None, "{name}");
            for cut in 0..bytes.len() {
                assert_eq!(first_damage(&bytes[..cut]), None, "{name} cut to {cut} bytes");
            }
            for at in (0..bytes.len()).step_by(7) {
                bytes[at] ^= 1 << (at % 8);
                let found = first_damage(&bytes);
                bytes[at] ^= 1 << (at % 8);
                // A length that grew beyond the end looks like a record that was cut short.
                let is_cut = found.is_none() && bytes.len() - at < BLOCK_BYTES;
                assert!(is_cut || found.is_some_and(|found| found <= at), "{name}: byte {at}, found {found:?}");
                seen += usize::from(found.is_some());
            }
        }
        fs::remove_dir_all(&data).unwrap();
        assert!(seen > 10_000, "{seen}");
    }
}
