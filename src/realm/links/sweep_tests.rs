//! Who is silent goes, in any number.

use super::*;
use crate::wire::transport::packet::{Envelope, Side};
use crate::wire::transport::token::UserData;

const SILENT_TICKS: u64 = 601;

/// A shard whose every lane has so many UDP peers, heard last at tick 0.
fn connected(peers_per_lane: u16) -> (Core, Links) {
    let mut core = crate::core::tests::core();
    let key = [0; 32];
    let handshake = |lane| {
        let public_addresses = Vec::new();
        HandshakeConfig { private_key: key, challenge_key: key, public_addresses, lane, start: 1 }
    };
    let mut links = Links::new((0..LANES as u8).map(handshake).collect(), ShardId(0), true);
    for (lane, port) in (0..LANES as u8).flat_map(|lane| (0..peers_per_lane).map(move |port| (lane, port))) {
        let (client_id, user_data) = (u64::from(lane) << 16 | u64::from(port), UserData::default());
        let identity = Identity { client_id, user_data, token_mac: [0; 16], expires_unix_s: u64::MAX, timeout_s: 10 };
        let session = core.admit(lane, identity, false).expect("there is room");
        core.keeper.clear();
        let address = SocketAddr::from(([127, 0, 0, lane], port));
        let connection = Box::new(Connection::new(Envelope::new(Side::Server, &key, &key), 10, 0));
        links.lanes[usize::from(lane)].as_mut().expect("it is served").by_address.insert(address, session);
        links.link(session, Peer::Udp { connection, address });
    }
    (core, links)
}

#[test]
fn when_all_fall_silent_a_sweep_ends_a_bounded_number_and_the_next_ones_the_rest() {
    let (mut core, mut links) = connected(40);
    links.sweep(&mut core, SILENT_TICKS - 1, |_| 0);
    let mut left = vec![core.sessions()];
    while core.sessions() > 0 {
        links.sweep(&mut core, SILENT_TICKS, |_| 0);
        left.push(core.sessions());
    }
    assert_eq!(left, [1_280, 1_280 - ENDS_PER_SWEEP_MAX, 1_280 - 2 * ENDS_PER_SWEEP_MAX, 0]);
    assert_eq!(links.link_drops.silent, 1_280);
    assert!(links.lanes.iter().flatten().all(|lane| lane.by_address.is_empty()));
}

#[test]
fn a_sweep_ends_the_silent_alone() {
    let (mut core, mut links) = connected(4);
    for lane in links.lanes.iter_mut().flatten() {
        for peer in lane.peers.iter_mut().step_by(2).flatten() {
            let Peer::Udp { connection, .. } = peer else { unreachable!("all came by UDP") };
            **connection = Connection::new(Envelope::new(Side::Server, &[0; 32], &[0; 32]), 10, SILENT_TICKS);
        }
    }
    links.sweep(&mut core, SILENT_TICKS, |_| 0);
    assert!(core.sessions() == 64 && core.each_session().all(|(session, ..)| session.slot.is_multiple_of(2)));
}
