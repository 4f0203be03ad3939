//! Nanoseconds of the step, the encoder and the packet path: `cargo bench --profile release --bench micro [NAME]`.
//!
//! For people who change one of them. What fails a change is `instructions.rs`, which counts and does not depend on the
//! machine.

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use ringshard_bench::{Haunts, PACKET_BYTES_MAX, PHASES, Packets, Realm, Setting};

/// Ticks until everybody plays and every view is filled.
const WARM_UP_TICKS: u64 = 240;

/// Each phase of a tick of 1,000 players: CPU time of the shard alone.
fn phases(criterion: &mut Criterion) {
    for (name, haunts) in [("spread", Haunts::Land), ("crowd", Haunts::Crowd)] {
        let setting = Setting { players: 1_000, npcs: 4_000, haunts, shards: 1, send_hz: 20 };
        let mut realm = Realm::alone(setting).expect("the land has room for a crowd");
        let mut tick = 0;
        let mut ticks = |realm: &mut Realm, count: u64| {
            (0..count).for_each(|_| {
                tick += 1;
                realm.tick(tick);
            });
        };
        ticks(&mut realm, WARM_UP_TICKS);
        for phase in PHASES {
            criterion.bench_function(&format!("{phase}/{name}"), |bencher| {
                bencher.iter_custom(|count| {
                    realm.begin_measuring();
                    ticks(&mut realm, count);
                    Duration::from_nanos(realm.spent_ns(phase))
                });
            });
        }
    }
}

/// One packet as a player sends it.
fn packets(criterion: &mut Criterion) {
    let mut packets = Packets::new();
    let mut space = [0; PACKET_BYTES_MAX];
    criterion.bench_function("packet/seal", |bencher| bencher.iter(|| packets.seal(&mut space)));
    criterion.bench_function("packet/seal_and_open", |bencher| {
        bencher.iter(|| {
            let length = packets.seal(&mut space);
            packets.open(&mut space[..length]);
        });
    });
    criterion.bench_function("packet/parse", |bencher| bencher.iter(|| packets.parse()));
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).measurement_time(Duration::from_secs(2));
    targets = phases, packets
}
criterion_main!(benches);
