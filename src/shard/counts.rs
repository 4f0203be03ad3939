//! What a shard counts, by the names that status shows.
//!
//! Owns the counts of the host's own. Promises: every counter that is kept on a shard is among the drops or the totals, and
//! only rises; a new one does not compile until it is. Never counts what depends on the moment: gauges are fields of the
//! report.

use crossbeam_queue::ArrayQueue;

use crate::io::PacketCounters;
use crate::realm::core::Core;
use crate::realm::keeper::KeeperCommand;
use crate::realm::links::Links;
use crate::realm::sessions::session::BodyDrop;
use crate::wire::transport::packet::DropReason;
use crate::world::Counters;

/// A name in the status, and how often since the start.
pub type Count = (&'static str, u64);

/// What the shard's thread counts itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HostCounts {
    /// Meetings that a parcel missed.
    pub late_meetings: u64,
    /// Ticks that were skipped because an edge came late.
    pub late_edges: u64,
    /// Ticks at whose end commands waited because the keeper's queue was full.
    pub keeper_full: u64,
    /// Inputs that newer ones took the place of, because their owner's shard stood still.
    pub inputs_merged: u64,
}

/// Hands the keeper what waits for it, as far as its queue has room; says whether all went.
pub fn hand_over(waiting: &mut Vec<KeeperCommand>, queue: &ArrayQueue<KeeperCommand>) -> bool {
    let handed = waiting.iter().take_while(|&&command| queue.push(command).is_ok()).count();
    waiting.drain(..handed);
    waiting.is_empty()
}

/// Totals of what was dropped, refused or late, by reason.
pub fn drops(packets: &PacketCounters, links: &Links, core: &Core, host: &HostCounts) -> Vec<Count> {
    let HostCounts { late_meetings, late_edges, keeper_full, inputs_merged } = *host;
    let mut drops: Vec<_> = DropReason::NAMES.into_iter().zip(links.drops).collect();
    drops.extend(BodyDrop::NAMES.into_iter().zip(core.drops));
    drops.extend(links.link_drops.named());
    drops.extend(packets.drops());
    drops.extend([
        ("claims_refused", core.claims_refused),
        ("sessions_behind", core.sessions_behind),
        ("inputs_merged", inputs_merged),
        ("events_unsent", core.events_unsent()),
        ("late_meetings", late_meetings),
        ("late_edges", late_edges),
        ("keeper_full", keeper_full),
    ]);
    drops.extend(of_world(&core.world.counters).0);
    drops
}

/// Totals of everything else.
pub fn totals(packets: &PacketCounters, core: &Core) -> Vec<Count> {
    let mut totals = packets.totals().to_vec();
    totals.push(("bodies", core.bodies));
    totals.extend(of_world(&core.world.counters).1);
    totals
}

/// Drops and totals of a world. What stands elsewhere in the report is not here again.
fn of_world(counters: &Counters) -> ([Count; 7], [Count; 7]) {
    let Counters {
        spawned,
        despawned,
        handed_in,
        handed_out: _,
        effects_sent,
        effects_across,
        effects_applied,
        effects_refused,
        refusals_lost,
        inputs_refused,
        commands_over,
        turns,
        turns_put_off: _,
        events_over,
        entities_hidden,
        decrees_late,
    } = *counters;
    let drops = [
        ("effects_refused", effects_refused),
        ("refusals_lost", refusals_lost),
        ("inputs_refused", inputs_refused),
        ("commands_over", commands_over),
        ("events_over", events_over),
        ("entities_hidden", entities_hidden),
        ("decrees_late", decrees_late),
    ];
    let totals = [
        ("spawned", spawned),
        ("despawned", despawned),
        ("handed_in", handed_in),
        ("effects_sent", effects_sent),
        ("effects_across", effects_across),
        ("effects_applied", effects_applied),
        ("turns", turns),
    ];
    (drops, totals)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::SocketAddr;
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::control::status::{KeeperStatus, ShardStatus};
    use crate::limits::{DATAGRAM_BYTES_MAX, LANE_PENDING_MAX};
    use crate::realm::core::Rules;
    use crate::realm::report::ShardReport;
    use crate::realm::sessions::interest::Radii;
    use crate::realm::sessions::session::Rates;
    use crate::wire::ids::ShardId;
    use crate::wire::transport::handshake::{Arrival, HandshakeConfig};
    use crate::wire::transport::netcode_client::NetcodeClient;
    use crate::wire::transport::token::{ConnectToken, DEV_KEY, TokenGrant, TokenSecrets, UserData};
    use crate::wire::units::GRID_PER_M;
    use crate::world::cut::CutMap;
    use crate::world::land::Land;
    use crate::world::{World, WorldConfig};

    fn core() -> Core {
        let config = WorldConfig {
            seed: 1,
            land: Arc::new(Land::new(1)),
            cut: Arc::new(CutMap::equal(1)),
            npcs: 0,
            npc_life_ticks: 600,
            start_tick: 0,
            things: Arc::new([]),
        };
        let rates = Rates { send_hz: 60, bytes_per_s: 10_000 };
        let radii = Radii { enter: 96 * GRID_PER_M, leave: 128 * GRID_PER_M };
        Core::new(World::new(config, ShardId(0)), 1, Rules { radii, rates, dev: true, seam: None })
    }

    /// Names of everything that the status of a shard and of the keeper can show; what lies within something else as
    /// `outer.inner` and as `inner`.
    fn shown() -> BTreeSet<String> {
        fn collect(value: &serde_json::Value, path: &str, into: &mut BTreeSet<String>) {
            for (name, inner) in value.as_object().into_iter().flatten() {
                let path = format!("{path}{name}");
                collect(inner, &format!("{path}."), into);
                into.extend([name.clone(), path]);
            }
        }
        let (packets, core, host) = (PacketCounters::default(), core(), HostCounts::default());
        let report = ShardReport {
            drops: drops(&packets, &Links::new(Vec::new(), ShardId(0), true), &core, &host),
            counters: totals(&packets, &core),
            record: Some(Default::default()),
            ..ShardReport::default()
        };
        let mut names = BTreeSet::new();
        let shard = serde_json::to_value(ShardStatus::from(&report)).unwrap();
        collect(&shard, "", &mut names);
        collect(&serde_json::json!({ "keeper": KeeperStatus::default() }), "", &mut names);
        names
    }

    #[test]
    fn every_count_that_a_limit_names_is_shown_under_that_name() {
        let limits = include_str!("../wire/limits.rs").lines().map(|line| line.trim_start_matches("/// "));
        let text = limits.collect::<Vec<_>>().join(" ");
        let named: Vec<&str> = ["counted `", "shown as `"]
            .iter()
            .flat_map(|words| text.split(words).skip(1))
            .map(|rest| rest.split('`').next().unwrap())
            .collect();
        assert!(named.len() > 15, "{named:?}");
        let shown = shown();
        let missing: Vec<&str> = named.into_iter().filter(|name| !shown.contains(*name)).collect();
        assert!(missing.is_empty(), "limits.rs names what no status shows: {missing:?}; there are {shown:?}");
    }

    #[test]
    fn each_name_is_there_once() {
        let (packets, core, host) = (PacketCounters::default(), core(), HostCounts::default());
        let links = Links::new(Vec::new(), ShardId(0), true);
        let all: Vec<_> = [drops(&packets, &links, &core, &host), totals(&packets, &core)].concat();
        assert_eq!(all.iter().map(|(name, _)| name).collect::<BTreeSet<_>>().len(), all.len());
    }

    #[test]
    fn a_full_queue_to_the_keeper_loses_nothing() {
        let queue = ArrayQueue::new(2);
        let mut waiting: Vec<_> = (1..=5).map(|tick| KeeperCommand::Clock { tick, unix_s: 0 }).collect();
        let mut handed = Vec::new();
        for went in [false, false, true] {
            assert_eq!(hand_over(&mut waiting, &queue), went);
            handed.extend(std::iter::from_fn(|| queue.pop()));
        }
        let ticks = (1..=5).map(|tick| KeeperCommand::Clock { tick, unix_s: 0 });
        assert!(waiting.is_empty() && handed.into_iter().eq(ticks));
    }

    #[test]
    fn handshakes_that_give_way_are_counted() {
        let server: SocketAddr = "127.0.0.1:7777".parse().unwrap();
        let handshake = HandshakeConfig {
            private_key: DEV_KEY,
            challenge_key: [7; 32],
            public_addresses: vec![server],
            lane: 0,
            start: 1,
        };
        let (mut links, mut core) = (Links::new(vec![handshake], ShardId(0), true), core());
        for client_id in 1..=LANE_PENDING_MAX as u64 + 3 {
            let grant = TokenGrant {
                client_id,
                create_unix_s: 1_000,
                expire_unix_s: 2_000,
                timeout_s: 10,
                servers: &[server],
                user_data: UserData::default(),
            };
            let token = ConnectToken::issue(&grant, &TokenSecrets::random(), &DEV_KEY).unwrap();
            // One prefix would evict its own alone.
            let [high, low] = (client_id as u16).to_be_bytes();
            let from = SocketAddr::from(([127, 1, high, low], 10_000));
            let arrival = Arrival { now_unix_s: 1_000, now_tick: 1, from, has_room: true };
            let mut client = NetcodeClient::new(&token.write(), Duration::ZERO).unwrap();
            let mut request = [0; DATAGRAM_BYTES_MAX];
            let length = client.poll_datagram(Duration::ZERO, &mut request).unwrap();
            links.handle_datagram(&mut core, 0, arrival, &mut request[..length]);
        }
        let (packets, host) = (PacketCounters::default(), HostCounts::default());
        let counted = drops(&packets, &links, &core, &host);
        assert!(counted.contains(&("pending_evicted", 3)), "{counted:?}");
    }
}
