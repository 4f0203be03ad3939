use std::collections::BTreeMap;

use super::*;
use crate::core::Whom;
use crate::keeper::{Desk, DeskRules, KeeperCommand, MemoryDisk, Store};
use crate::limits::TOKEN_BYTES;
use crate::wire::generated::tables::Close;
use crate::wire::transport::packet::{CHALLENGE_TEXT_BYTES, Envelope, OVERHEAD_BYTES_MAX, PacketKind, Side};
use crate::wire::transport::stream::LENGTH_BYTES;
use crate::wire::transport::token::{ConnectToken, DEV_KEY, PROTOCOL_ID, TokenGrant, TokenSecrets, UserData, VERSION};
use crate::world::parcel::OutcomeParcel;

const NOW_UNIX_S: u64 = 1_000;

/// A node of one shard whose kernel is the test: what it seals for datagrams lies in `sealed`.
struct Realm {
    links: Links,
    core: Core,
    desk: Desk<MemoryDisk>,
    /// By peer, in the order of sending.
    sealed: Vec<(SocketAddr, Vec<u8>)>,
    /// Bodies framed for streams.
    framed: Vec<(ConnectionId, Vec<u8>)>,
}

impl Realm {
    fn start(disk: MemoryDisk, challenge_key: [u8; 32]) -> Realm {
        let desk = Store::open(disk, 1, 1, |_| ShardId(0)).and_then(|store| Desk::open(store, DeskRules::default()));
        let desk = desk.unwrap();
        let lane = |lane: usize| HandshakeConfig {
            private_key: DEV_KEY,
            challenge_key,
            public_addresses: vec![here()],
            lane: lane as u8,
            start: desk.start(),
        };
        let links = Links::new((0..=LANES).map(lane).collect(), ShardId(0), true);
        let core = crate::core::tests::core();
        Realm { links, core, desk, sealed: Vec::new(), framed: Vec::new() }
    }

    fn datagram(&mut self, lane: u8, from: SocketAddr, mut datagram: Vec<u8>) {
        let arrival = Arrival { now_unix_s: NOW_UNIX_S, now_tick: self.core.world.tick, from, has_room: true };
        self.links.handle_datagram(&mut self.core, lane, arrival, &mut datagram);
        self.take_replies();
    }

    fn take_replies(&mut self) {
        for reply in &self.links.replies {
            self.sealed.push((reply.to, self.links.reply_bytes(reply).to_vec()));
        }
        self.links.clear_replies();
    }

    /// Shakes hands from an address with all that a holder of the token can know; true: it got a challenge.
    fn shake_hands(&mut self, lane: u8, from: SocketAddr, token: &ConnectToken) -> bool {
        let before = self.sealed.len();
        self.datagram(lane, from, request(token));
        let Some((_, challenge)) = self.sealed.get(before) else { return false };
        let mut client = client(token);
        let text = client.open(&mut challenge.clone()).unwrap().text.to_vec();
        assert_eq!(text.len(), CHALLENGE_TEXT_BYTES);
        let response = sealed(&mut client, PacketKind::Response, &text);
        self.datagram(lane, from, response.clone());
        self.datagram(lane, from, response);
        true
    }

    /// Ticks as a shard does them; the keeper works after each.
    fn run(&mut self, ticks: usize) {
        for _ in 0..ticks {
            self.tick();
            self.keep();
        }
    }

    fn keep(&mut self) {
        for command in std::mem::take(&mut self.core.keeper) {
            self.desk.apply(command).unwrap();
        }
        self.desk.commit().unwrap();
        self.desk.take_answers().into_iter().for_each(|(_, answer)| self.core.hear_keeper(answer));
    }

    fn tick(&mut self) {
        let tick = self.core.world.tick + 1;
        self.core.pass_requests();
        self.core.begin(tick);
        let mut mine = std::mem::take(&mut self.core.inputs[0]);
        self.core.take_inputs(ShardId(0), &mine);
        mine.reset(tick);
        self.core.inputs[0] = mine;
        self.core.play();
        let mut out = OutcomeParcel::default();
        out.reset(ShardId(0), tick);
        self.core.publish(std::slice::from_mut(&mut out));
        self.core.hear(&mut out);
        let Realm { links, core, sealed: sent, framed, .. } = self;
        core.send_due(Whom::Rest, |session, write| match links.outgoing(session) {
            Some(Outgoing::Udp { connection, address }) => {
                if connection.needs_keep_alive() {
                    let mut alive = [0; CONTROL_BYTES_MAX];
                    let length = keep_alive(connection, session, tick, &mut alive);
                    sent.push((address, alive[..length].to_vec()));
                }
                let mut space = [0; BODY_BYTES_MAX + OVERHEAD_BYTES_MAX];
                let length = seal(connection, tick, &mut space, write);
                sent.push((address, space[..length].to_vec()));
            }
            Some(Outgoing::Tcp { connection }) => {
                let mut space = [0; LENGTH_BYTES + BODY_BYTES_MAX];
                framed.push((connection, frame(&mut space, write).to_vec()));
            }
            None => (),
        });
        core.end_tick();
        while let Some(ended) = core.ended.pop() {
            links.end(ended);
        }
        if tick.is_multiple_of(6) {
            links.sweep(core, tick, |_| 0);
        }
        self.take_replies();
    }

    /// Sessions whose character stands in the world.
    fn playing(&self) -> usize {
        self.core.each_session().filter(|(.., told)| told.is_some()).count()
    }
}

fn here() -> SocketAddr {
    "127.0.0.1:7777".parse().unwrap()
}

fn peer(port: u16) -> SocketAddr {
    ([10, 0, 0, 1], port).into()
}

fn token(number: u8) -> ConnectToken {
    let secrets = TokenSecrets {
        nonce: [number; 24],
        client_to_server_key: [number; 32],
        server_to_client_key: [number + 100; 32],
    };
    let grant = TokenGrant {
        client_id: u64::from(number),
        create_unix_s: NOW_UNIX_S,
        expire_unix_s: NOW_UNIX_S + 30,
        timeout_s: 5,
        servers: &[here()],
        user_data: UserData::default(),
    };
    ConnectToken::issue(&grant, &secrets, &DEV_KEY).unwrap()
}

fn request(token: &ConnectToken) -> Vec<u8> {
    let expiry = token.expire_unix_s.to_le_bytes();
    [&[0], &VERSION[..], &PROTOCOL_ID.to_le_bytes(), &expiry, &token.nonce, &token.sealed].concat()
}

fn client(token: &ConnectToken) -> Envelope {
    Envelope::new(Side::Client, &token.client_to_server_key, &token.server_to_client_key)
}

fn sealed(client: &mut Envelope, kind: PacketKind, text: &[u8]) -> Vec<u8> {
    let mut buffer = vec![0; text.len() + OVERHEAD_BYTES_MAX];
    let offset = client.text_offset();
    buffer[offset..offset + text.len()].copy_from_slice(text);
    let length = client.seal(kind, &mut buffer, text.len());
    buffer.truncate(length);
    buffer
}

/// How often each sequence was sealed.
fn sequences<'a>(datagrams: impl Iterator<Item = &'a Vec<u8>>) -> BTreeMap<u64, u32> {
    let mut counts = BTreeMap::new();
    for datagram in datagrams {
        let mut sequence = [0; 8];
        let bytes = usize::from(datagram[0] >> 4);
        sequence[..bytes].copy_from_slice(&datagram[1..1 + bytes]);
        *counts.entry(u64::from_le_bytes(sequence)).or_default() += 1;
    }
    counts
}

#[test]
fn a_token_connects_once_in_the_whole_node_and_no_sequence_is_sealed_twice_under_its_key() {
    let mut realm = Realm::start(MemoryDisk::default(), [8; 32]);
    let token = token(1);
    assert!(realm.shake_hands(5, peer(1), &token));
    realm.run(20);
    assert_eq!(realm.playing(), 1);
    for lane in 0..LANES as u8 {
        // The lane that knows it drops it by itself.
        assert_eq!(realm.shake_hands(lane, peer(100 + u16::from(lane)), &token), lane != 5);
    }
    realm.run(40);
    assert_eq!((realm.playing(), realm.core.claims_refused), (1, LANES as u64 - 1));
    let to_thieves = realm.sealed.iter().filter(|(to, _)| to.port() >= 100).count();
    assert_eq!(to_thieves, LANES - 1, "a challenge each");
    let mut all = realm.sealed;

    // The process is killed, and the same token is shown to every lane once more.
    let mut disk = realm.desk.into_disk();
    disk.kill(7);
    let mut realm = Realm::start(disk, [9; 32]);
    for lane in 0..LANES as u8 {
        assert!(realm.shake_hands(lane, peer(200 + u16::from(lane)), &token));
    }
    realm.run(40);
    assert_eq!((realm.playing(), realm.core.claims_refused), (0, LANES as u64));
    all.append(&mut realm.sealed);
    let counts = sequences(all.iter().map(|(_, datagram)| datagram));
    assert!(all.len() > 80, "{}", all.len());
    assert!(counts.values().all(|&count| count == 1), "{counts:x?}");
}

#[test]
fn nothing_is_sealed_for_a_connection_before_its_token_is_durable() {
    let mut realm = Realm::start(MemoryDisk::default(), [8; 32]);
    let token = token(1);
    assert!(realm.shake_hands(0, peer(1), &token));
    let mut client = client(&token);
    for number in 0..40 {
        // Bodies and keep-alives are opened, and not answered; pings are among them.
        let text: &[u8] = if number % 2 == 0 { &[0; 8] } else { &[1; 30] };
        let kind = if number % 2 == 0 { PacketKind::KeepAlive } else { PacketKind::Body };
        realm.datagram(0, peer(1), sealed(&mut client, kind, text));
        realm.tick();
    }
    assert_eq!(realm.links.drops, [0; DropReason::COUNT], "each was opened");
    assert_eq!(realm.sealed.len(), 1, "the challenge");
    realm.run(10);
    assert!(realm.sealed.len() > 4 && realm.playing() == 1, "{}", realm.sealed.len());
}

#[test]
fn a_session_that_ends_before_its_token_is_durable_ends_without_a_word() {
    for closes in [true, false] {
        let mut realm = Realm::start(MemoryDisk::default(), [8; 32]);
        let token = token(1);
        assert!(realm.shake_hands(0, peer(1), &token));
        realm.tick();
        if closes {
            realm.core.close_all(Close::Drain);
        }
        // The keeper never answers: the session times out.
        (0..330).for_each(|_| realm.tick());
        assert_eq!((realm.core.sessions(), realm.sealed.len()), (0, 1), "the challenge");
    }
}

#[test]
fn a_token_admits_once_whether_it_comes_by_udp_or_by_tcp() {
    let show = |realm: &mut Realm, slot: u16, token: &ConnectToken| {
        let tick = realm.core.world.tick;
        realm.links.handle_accepted(stream(slot), peer(slot), tick);
        let bytes = [&(TOKEN_BYTES as u32).to_le_bytes()[..], &token.write()].concat();
        realm.links.handle_bytes(&mut realm.core, stream(slot), (tick, NOW_UNIX_S), &bytes);
    };
    let mut realm = Realm::start(MemoryDisk::default(), [8; 32]);
    realm.shake_hands(0, peer(1), &token(1));
    show(&mut realm, 0, &token(2));
    realm.run(20);
    assert_eq!(realm.playing(), 2);
    show(&mut realm, 1, &token(1));
    realm.shake_hands(0, peer(2), &token(2));
    realm.run(30);
    assert_eq!((realm.playing(), realm.core.claims_refused), (2, 2));
    assert!(realm.framed.iter().any(|(to, _)| *to == stream(1)), "a stream is told why, in clear");
    assert_eq!(realm.sealed.iter().filter(|(to, _)| *to == peer(2)).count(), 1, "the challenge");
}

#[test]
fn a_claim_without_an_answer_changes_nothing_on_disk() {
    let mut realm = Realm::start(MemoryDisk::default(), [8; 32]);
    let token = token(1);
    realm.shake_hands(0, peer(1), &token);
    let claims = std::mem::take(&mut realm.core.keeper);
    assert!(matches!(claims[..], [KeeperCommand::Claim { .. }]));
    realm.desk.apply(claims[0]).unwrap();
    // Killed before the group was begun: the spare token goes on working.
    let mut realm = Realm::start(realm.desk.into_disk(), [9; 32]);
    realm.shake_hands(3, peer(1), &token);
    realm.run(20);
    assert_eq!(realm.playing(), 1);
}

fn stream(slot: u16) -> ConnectionId {
    ConnectionId { slot, generation: 0 }
}

#[test]
fn bytes_do_not_move_the_deadline_of_a_stream_that_showed_no_token() {
    let mut realm = Realm::start(MemoryDisk::default(), [8; 32]);
    realm.links.handle_accepted(stream(0), peer(1), 0);
    let token = [&(TOKEN_BYTES as u32).to_le_bytes()[..], &token(1).write()].concat();
    for &byte in &token[..TCP_TOKEN_TICKS_MAX as usize + 12] {
        let tick = realm.core.world.tick;
        realm.links.handle_bytes(&mut realm.core, stream(0), (tick, NOW_UNIX_S), &[byte]);
        realm.tick();
    }
    assert_eq!((realm.links.link_drops.silent, &realm.links.closes[..]), (1, &[stream(0)][..]));
}

#[test]
fn a_frame_that_is_never_whole_keeps_no_session() {
    let mut realm = Realm::start(MemoryDisk::default(), [8; 32]);
    realm.links.handle_accepted(stream(0), peer(1), 0);
    let token = [&(TOKEN_BYTES as u32).to_le_bytes()[..], &token(1).write()].concat();
    realm.links.handle_bytes(&mut realm.core, stream(0), (0, NOW_UNIX_S), &token);
    realm.run(20);
    assert_eq!(realm.playing(), 1);
    let frame = [&1_000u32.to_le_bytes()[..], &[0; 1_000]].concat();
    for &byte in &frame[..300] {
        let tick = realm.core.world.tick;
        realm.links.handle_bytes(&mut realm.core, stream(0), (tick, NOW_UNIX_S), &[byte]);
        realm.run(1);
    }
    assert_eq!((realm.links.link_drops.silent, &realm.links.closes[..]), (1, &[stream(0)][..]));
}

#[test]
fn one_source_prefix_holds_no_more_streams_without_a_token_than_its_share() {
    let mut realm = Realm::start(MemoryDisk::default(), [8; 32]);
    let share = TCP_TOKENLESS_PER_PREFIX_MAX as u16;
    (0..share + 5).for_each(|slot| realm.links.handle_accepted(stream(slot), peer(slot), 0));
    assert_eq!(realm.links.link_drops.prefix_full, 5);
    assert_eq!(realm.links.closes, (share..share + 5).map(stream).collect::<Vec<_>>());
    // Others come, and who showed a token or went makes room.
    let other = "[2001:db8::1]:1".parse().unwrap();
    realm.links.handle_accepted(stream(share), other, 0);
    let token = [&(TOKEN_BYTES as u32).to_le_bytes()[..], &token(1).write()].concat();
    realm.links.handle_bytes(&mut realm.core, stream(0), (0, NOW_UNIX_S), &token);
    realm.links.handle_closed(&mut realm.core, stream(1));
    (share + 1..share + 4).for_each(|slot| realm.links.handle_accepted(stream(slot), peer(slot), 0));
    assert_eq!(realm.links.link_drops.prefix_full, 6);
    // When all are gone nothing is left of them.
    (0..share + 4).for_each(|slot| realm.links.handle_closed(&mut realm.core, stream(slot)));
    assert!(realm.links.prefixes.is_empty());
}
