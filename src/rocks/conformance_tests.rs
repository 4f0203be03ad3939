//! The disk in memory does what RocksDB does.

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::realm::keeper::MemoryDisk;
use crate::wire::ids::{EntityId, ShardId};
use crate::world::random::{below, random};

/// All that a disk holds.
type Tables = BTreeMap<(Family, Vec<u8>), Vec<u8>>;

fn batch(draw: &impl Fn(u64, u32) -> u32, number: u64) -> Batch {
    let mut batch = Batch::default();
    for n in 0..u64::from(draw(number * 64, 9)) {
        let n = number * 64 + n * 5;
        let family = match draw(n + 1, 5) {
            0 => Family::Realm,
            1 => Family::Clients,
            2 => Family::Ledger,
            3 => Family::Orders,
            _ => Family::Shard(ShardId(draw(n + 2, 2) as u8)),
        };
        let key = [draw(n + 3, 6) as u8, draw(n + 4, 4) as u8];
        match draw(n + 5, 3) {
            0 => batch.delete(family, &key),
            _ => batch.put(family, &key, &number.to_le_bytes()),
        }
    }
    batch
}

fn all(disk: &impl Disk) -> Tables {
    let shards = (0..2).map(|shard| Family::Shard(ShardId(shard)));
    let mut tables = Tables::new();
    for family in [Family::Realm, Family::Clients, Family::Ledger, Family::Orders].into_iter().chain(shards) {
        for prefix in [&[][..], &[3]] {
            let mut last = Vec::new();
            disk.visit(family, prefix, &mut |key, value| {
                assert!(key.starts_with(prefix) && (last.is_empty() || *last < *key), "in order of keys");
                last = key.to_vec();
                tables.insert((family, key.to_vec()), value.to_vec());
                assert_eq!(disk.get(family, key)?.as_deref(), Some(value));
                Ok(())
            })
            .unwrap();
            if prefix.is_empty() {
                assert_eq!(disk.last(family).unwrap().map_or_else(Vec::new, |(key, _)| key), last);
            }
        }
    }
    tables
}

#[test]
fn the_same_is_done_to_both_disks_and_they_agree() {
    let data = std::env::temp_dir().join(format!("ringshard-conformance-{}", std::process::id()));
    std::fs::create_dir_all(&data).unwrap();
    let draw = |n: u64, bound: u32| below(random(5, EntityId::NONE, 0, n), bound);
    let (mut memory, mut rocks) = (MemoryDisk::default(), RocksDisk::open_proven(&data, 2, 0).unwrap());
    for number in 0..400 {
        let batch = batch(&draw, number);
        memory.begin(batch.clone(), number);
        rocks.begin(batch, number);
        assert!(memory.land(Duration::MAX).unwrap() && rocks.land(Duration::MAX).unwrap());
        if number % 50 == 49 {
            drop(rocks);
            rocks = RocksDisk::open_proven(&data, 2, number).unwrap();
            memory.lose_power(number);
            assert!(rocks.witness().unwrap() <= memory.witness().unwrap());
        }
        assert_eq!(all(&memory), all(&rocks), "after batch {number}");
    }
    drop(rocks);
    std::fs::remove_dir_all(&data).unwrap();
}
