use super::super::packet::{OVERHEAD_BYTES_MAX, Opened};
use super::super::token::{DEV_KEY, TokenGrant, TokenSecrets};
use super::*;
use proptest::prelude::*;

const NOW_UNIX_S: u64 = 1_000;
const EXPIRES_UNIX_S: u64 = 1_030;
const HERE: &str = "127.0.0.1:7777";

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn handshake() -> Handshake {
    Handshake::new(HandshakeConfig {
        private_key: DEV_KEY,
        challenge_key: [8; 32],
        public_addresses: vec![address(HERE), address("[2001:db8::1]:7777")],
        lane: 3,
        start: 77,
    })
}

fn arrival(port: u16) -> Arrival {
    Arrival { now_unix_s: NOW_UNIX_S, now_tick: 50, from: ([10, 0, 0, 1], port).into(), has_room: true }
}

fn secrets(number: u16) -> TokenSecrets {
    let mut nonce = [0; 24];
    nonce[..2].copy_from_slice(&number.to_le_bytes());
    TokenSecrets { nonce, client_to_server_key: [4; 32], server_to_client_key: [5; 32] }
}

fn token_with(number: u16, change: impl FnOnce(&mut TokenGrant<'_>)) -> ConnectToken {
    let servers = [address("127.0.0.1:1"), address(HERE)];
    let mut grant = TokenGrant {
        client_id: u64::from(number),
        create_unix_s: NOW_UNIX_S,
        expire_unix_s: EXPIRES_UNIX_S,
        timeout_s: 5,
        servers: &servers,
        user_data: UserData { spawn_point: Some((1, 2)), ..UserData::default() },
    };
    change(&mut grant);
    ConnectToken::issue(&grant, &secrets(number), &DEV_KEY).unwrap()
}

fn token(number: u16) -> ConnectToken {
    token_with(number, |_| {})
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

/// What is sent back, opened: kind and text.
fn answer(
    handshake: &mut Handshake,
    client: &mut Envelope,
    arrival: &Arrival,
    datagram: &[u8],
) -> (PacketKind, Vec<u8>) {
    let mut reply = [0; REPLY_BYTES_MAX];
    let length = match handshake.handle(arrival, &mut datagram.to_vec(), &mut reply) {
        HandshakeOutcome::Reply(length) | HandshakeOutcome::Denied(length) => length,
        other => panic!("no answer but {other:?}"),
    };
    assert!(length < datagram.len());
    let Opened { kind, text } = client.open(&mut reply[..length]).unwrap();
    (kind, text.to_vec())
}

fn dropped(handshake: &mut Handshake, arrival: &Arrival, mut datagram: Vec<u8>) -> DropReason {
    match handshake.handle(arrival, &mut datagram, &mut [0; REPLY_BYTES_MAX]) {
        HandshakeOutcome::Drop(reason) => reason,
        other => panic!("not dropped but {other:?}"),
    }
}

fn accepted(handshake: &mut Handshake, arrival: &Arrival, mut datagram: Vec<u8>) -> (Connection, Identity) {
    match handshake.handle(arrival, &mut datagram, &mut [0; REPLY_BYTES_MAX]) {
        HandshakeOutcome::Accepted { connection, identity } => (connection, identity),
        other => panic!("not accepted but {other:?}"),
    }
}

/// Asks with a token from a port and gives the response that the client would send.
fn response(handshake: &mut Handshake, arrival: &Arrival, token: &ConnectToken) -> Vec<u8> {
    let mut client = client(token);
    let (kind, text) = answer(handshake, &mut client, arrival, &request(token));
    assert_eq!(kind, PacketKind::Challenge);
    sealed(&mut client, PacketKind::Response, &text)
}

#[test]
fn a_client_with_a_token_comes_in() {
    let mut handshake = handshake();
    let response = response(&mut handshake, &arrival(1), &token(9));
    assert_eq!(response.len(), 326);
    let (mut connection, identity) = accepted(&mut handshake, &arrival(1), response);
    let expected = Identity {
        client_id: 9,
        user_data: UserData { spawn_point: Some((1, 2)), ..UserData::default() },
        token_mac: *token(9).sealed.last_chunk().unwrap(),
        expires_unix_s: EXPIRES_UNIX_S,
        timeout_s: 5,
    };
    assert_eq!(identity, expected);
    assert!(connection.needs_keep_alive() && !connection.timed_out(50 + 300) && connection.timed_out(50 + 301));
    let mut out = [0; super::super::packet::CONTROL_BYTES_MAX];
    let length = connection.write_keep_alive(50, 1, 2, &mut out);
    assert_eq!(client(&token(9)).open(&mut out[..length]).unwrap().kind, PacketKind::KeepAlive);
}

#[test]
fn a_challenge_has_333_bytes_and_its_sequence_is_in_the_upper_half() {
    let mut handshake = handshake();
    let mut reply = [0; REPLY_BYTES_MAX];
    for number in 0..2 {
        let outcome = handshake.handle(&arrival(number), &mut request(&token(number)), &mut reply);
        assert!(matches!(outcome, HandshakeOutcome::Reply(333)));
        assert_eq!(reply[0], 0x82);
        assert_eq!(reply[1..9], (1u64 << 63 | 3 << 57 | 77 << 40 | u64::from(number)).to_le_bytes());
    }
    handshake.reply_sequences.nth((1 << 40) - 4).expect("one short of all");
    assert_eq!(dropped(&mut handshake, &arrival(2), request(&token(2))), DropReason::SequencesSpent);
}

#[test]
fn no_two_lanes_and_no_two_starts_have_a_reply_sequence_in_common() {
    let mut ranges = Vec::new();
    for lane in [0, 1, 31, LANE_TABLES as u8 - 1] {
        for start in [0, 1, 2, (1 << 17) - 1] {
            ranges.push(reply_sequences(lane, start));
        }
    }
    ranges.sort_by_key(|range| range.start);
    assert!(ranges[0].start >= 1 << 63, "those of connections are below");
    assert!(ranges.windows(2).all(|two| two[0].end <= two[1].start), "{ranges:x?}");
}

#[test]
fn challenge_sequences_of_lanes_never_meet() {
    let mut handshake = handshake();
    let (_, text) = answer(&mut handshake, &mut client(&token(1)), &arrival(1), &request(&token(1)));
    assert_eq!(text[..8], (3u64 << 56).to_le_bytes());
}

#[test]
fn a_request_is_refused_at_each_step_by_name() {
    let mut handshake = handshake();
    let good = request(&token(1));
    let mut refuse = |datagram: Vec<u8>, reason| assert_eq!(dropped(&mut handshake, &arrival(1), datagram), reason);
    let changed = |at: usize| {
        let mut datagram = good.clone();
        datagram[at] ^= 1;
        datagram
    };
    refuse(vec![], DropReason::TooShort);
    refuse(good[..1_077].to_vec(), DropReason::RequestBytes);
    refuse([&good[..], &[0]].concat(), DropReason::RequestBytes);
    refuse(changed(13), DropReason::Version);
    refuse(changed(14), DropReason::Protocol);
    refuse(request(&token_with(1, |grant| grant.expire_unix_s = NOW_UNIX_S)), DropReason::TokenExpired);
    refuse(changed(22), DropReason::TokenSeal);
    refuse(changed(30), DropReason::TokenSeal);
    refuse(changed(54), DropReason::TokenSeal);
    refuse(changed(1_077), DropReason::TokenSeal);
    let elsewhere = token_with(1, |grant| grant.servers = &grant.servers[..1]);
    refuse(request(&elsewhere), DropReason::OtherServer);
    refuse(request(&token_with(1, |grant| grant.user_data.reusable = true)), DropReason::TokenReusable);
    assert!(handshake.pending.slot_of.is_empty() && handshake.tokens.uses.is_empty(), "nothing was kept");
}

#[test]
fn a_sealed_private_part_without_servers_is_malformed() {
    let mut token = token(1);
    let mut text = [0; PRIVATE_BYTES];
    let associated = [&VERSION[..], &PROTOCOL_ID.to_le_bytes(), &EXPIRES_UNIX_S.to_le_bytes()].concat();
    TokenKey::new(&DEV_KEY).seal(&token.nonce, &associated, &mut text);
    token.sealed = text;
    assert_eq!(dropped(&mut handshake(), &arrival(1), request(&token)), DropReason::TokenMalformed);
}

#[test]
fn a_token_belongs_to_the_first_address_that_shows_it() {
    let mut handshake = handshake();
    let request = request(&token(1));
    answer(&mut handshake, &mut client(&token(1)), &arrival(1), &request);
    answer(&mut handshake, &mut client(&token(1)), &arrival(1), &request);
    assert_eq!(dropped(&mut handshake, &arrival(2), request), DropReason::TokenUsed);
}

#[test]
fn a_token_connects_once() {
    let mut handshake = handshake();
    let response = response(&mut handshake, &arrival(1), &token(1));
    accepted(&mut handshake, &arrival(1), response.clone());
    assert_eq!(dropped(&mut handshake, &arrival(1), response), DropReason::UnknownPeer);
    assert_eq!(dropped(&mut handshake, &arrival(1), request(&token(1))), DropReason::TokenUsed);
    let token = token(1).write();
    let late = handshake.accept_stream_token(NOW_UNIX_S, address("10.0.0.1:1"), &token, true);
    assert_eq!(late, Err(DropReason::TokenUsed));
}

#[test]
fn a_full_lane_denies_who_has_a_valid_token_and_nobody_else() {
    let mut handshake = handshake();
    let full = Arrival { has_room: false, ..arrival(1) };
    let mut reply = [0; REPLY_BYTES_MAX];
    let outcome = handshake.handle(&full, &mut request(&token(1)), &mut reply);
    assert!(matches!(outcome, HandshakeOutcome::Denied(25)));
    assert_eq!(client(&token(1)).open(&mut reply[..25]).unwrap().kind, PacketKind::Denied);
    assert!(handshake.pending.slot_of.is_empty());
    assert_eq!(dropped(&mut handshake, &full, vec![0; REQUEST_BYTES]), DropReason::Version);

    let response = response(&mut handshake, &arrival(1), &token(1));
    let (kind, _) = answer(&mut handshake, &mut client(&token(1)), &full, &response);
    assert_eq!(kind, PacketKind::Denied);
    accepted(&mut handshake, &arrival(1), response);
}

#[test]
fn a_response_is_refused_at_each_step_by_name() {
    let mut handshake = handshake();
    let (first, second) = (token(1), token(2));
    let foreign = response(&mut handshake, &arrival(2), &second);
    let good = response(&mut handshake, &arrival(1), &first);
    assert_eq!(dropped(&mut handshake, &arrival(3), good.clone()), DropReason::UnknownPeer);
    assert_eq!(dropped(&mut handshake, &arrival(1), good[..17].to_vec()), DropReason::TooShort);
    assert_eq!(dropped(&mut handshake, &arrival(1), [&[0xf3], &good[1..]].concat()), DropReason::SequenceBytes);
    assert_eq!(dropped(&mut handshake, &arrival(1), [&[0x12], &good[1..]].concat()), DropReason::Kind);
    assert_eq!(dropped(&mut handshake, &arrival(1), good[..325].to_vec()), DropReason::Seal);
    // Both tokens have the same keys here, so that the packet opens and only the challenge token tells them apart.
    assert_eq!(dropped(&mut handshake, &arrival(1), foreign), DropReason::ChallengeToken);
    let mut envelope = client(&first);
    let mut send = |kind, text: &[u8]| dropped(&mut handshake, &arrival(1), sealed(&mut envelope, kind, text));
    assert_eq!(send(PacketKind::Response, &[0; CHALLENGE_TEXT_BYTES]), DropReason::ChallengeToken);
    assert_eq!(send(PacketKind::Body, b"early"), DropReason::State);
    let late = Arrival { now_tick: 50 + 301, ..arrival(1) };
    assert_eq!(dropped(&mut handshake, &late, good.clone()), DropReason::HandshakeExpired);
    accepted(&mut handshake, &arrival(1), good);
}

#[test]
fn a_newer_token_from_the_same_address_replaces_the_handshake() {
    let mut handshake = handshake();
    let old = response(&mut handshake, &arrival(1), &token(1));
    let new = response(&mut handshake, &arrival(1), &token(2));
    assert_eq!(dropped(&mut handshake, &arrival(1), old), DropReason::ChallengeToken);
    assert_eq!(accepted(&mut handshake, &arrival(1), new).1.client_id, 2);
}

/// From an address of its own.
fn stranger(number: u16) -> Arrival {
    let [high, low] = number.to_be_bytes();
    Arrival { from: ([10, 1, high, low], 9).into(), ..arrival(0) }
}

#[test]
fn the_oldest_handshake_gives_way() {
    let mut handshake = handshake();
    let first = response(&mut handshake, &stranger(0), &token(0));
    let second = response(&mut handshake, &stranger(1), &token(1));
    for number in 2..=LANE_PENDING_MAX as u16 {
        response(&mut handshake, &stranger(number), &token(number));
    }
    assert_eq!(handshake.pending_evicted(), 1);
    assert_eq!(handshake.pending.slot_of.len(), LANE_PENDING_MAX);
    assert_eq!(dropped(&mut handshake, &stranger(0), first), DropReason::UnknownPeer);
    accepted(&mut handshake, &stranger(1), second);
}

#[test]
fn a_source_prefix_evicts_its_own_handshakes_alone() {
    let mut handshake = handshake();
    let honest = response(&mut handshake, &stranger(0), &token(0));
    let first = response(&mut handshake, &arrival(1), &token(1));
    for number in 2..3 * LANE_PENDING_MAX as u16 {
        response(&mut handshake, &arrival(number), &token(number));
    }
    assert_eq!(handshake.pending.slot_of.len(), 1 + LANE_PENDING_PER_PREFIX_MAX);
    assert_eq!(dropped(&mut handshake, &arrival(1), first), DropReason::UnknownPeer);
    accepted(&mut handshake, &stranger(0), honest);
    let last = 3 * LANE_PENDING_MAX as u16;
    let response = response(&mut handshake, &arrival(last), &token(last));
    accepted(&mut handshake, &arrival(last), response);
    assert_eq!(handshake.pending.slots_of.values().map(VecDeque::len).sum::<usize>(), LANE_PENDING_PER_PREFIX_MAX - 1);
}

#[test]
fn a_full_token_history_takes_new_tokens_when_old_ones_expired() {
    let mut history = TokenHistory::new(SeededHash([1; 32]));
    let from = address("10.0.0.1:1");
    let identity = |number: u64| Identity {
        client_id: 0,
        user_data: UserData::default(),
        token_mac: u128::from(number).to_le_bytes(),
        expires_unix_s: 100 + number,
        timeout_s: 5,
    };
    for number in 0..LANE_TOKENS_MAX as u64 {
        assert_eq!(history.note(1, &identity(number), from), Ok(()));
    }
    let next = identity(LANE_TOKENS_MAX as u64);
    assert_eq!(history.note(99, &next, from), Err(DropReason::TokenHistoryFull));
    assert_eq!(history.note(99, &identity(5), from), Ok(()), "known ones still pass");
    assert_eq!(history.note(102, &next, from), Ok(()));
    assert_eq!(history.uses.len(), LANE_TOKENS_MAX - 3 + 1);
    assert_eq!(history.first_expiry_unix_s, 103);
}

#[test]
fn a_stream_shows_its_token_as_it_is() {
    let mut handshake = handshake();
    let from = address("10.0.0.1:1");
    let mut show = |token: &[u8], dev| handshake.accept_stream_token(NOW_UNIX_S, from, token, dev);
    let good = token(1).write();
    let changed = |at: usize| {
        let mut token = good;
        token[at] ^= 1;
        token
    };
    assert_eq!(show(&good[1..], false), Err(DropReason::TokenMalformed));
    assert_eq!(show(&changed(0), false), Err(DropReason::Version));
    assert_eq!(show(&changed(13), false), Err(DropReason::Protocol));
    let expired = token_with(1, |grant| grant.expire_unix_s = NOW_UNIX_S).write();
    assert_eq!(show(&expired, false), Err(DropReason::TokenExpired));
    assert_eq!(show(&changed(29), false), Err(DropReason::TokenSeal));
    assert_eq!(show(&changed(500), false), Err(DropReason::TokenSeal));
    let elsewhere = token_with(1, |grant| grant.servers = &grant.servers[..1]).write();
    assert_eq!(show(&elsewhere, false), Err(DropReason::OtherServer));
    let identity = show(&good, false).unwrap();
    assert_eq!((identity.client_id, identity.user_data.spawn_point), (1, Some((1, 2))));
    assert_eq!(show(&good, false), Err(DropReason::TokenUsed), "even from the same address");
    assert_eq!(show(&good, true), Err(DropReason::TokenUsed));
    assert_eq!(dropped(&mut handshake, &arrival(1), request(&token(1))), DropReason::TokenUsed);
}

#[test]
fn a_reusable_token_is_good_again_and_again_on_development_streams_alone() {
    let mut handshake = handshake();
    let token = token_with(1, |grant| grant.user_data.reusable = true).write();
    for port in 1..4 {
        let from = ([10, 0, 0, 1], port).into();
        assert!(handshake.accept_stream_token(NOW_UNIX_S, from, &token, true).unwrap().user_data.reusable);
    }
    let refused = handshake.accept_stream_token(NOW_UNIX_S, arrival(1).from, &token, false);
    assert_eq!(refused, Err(DropReason::TokenReusable));
}

#[test]
fn a_server_is_known_by_ipv6_too() {
    let servers = [address("[2001:db8::1]:7777")];
    let mut handshake = handshake();
    let grant = TokenGrant {
        client_id: 1,
        create_unix_s: NOW_UNIX_S,
        expire_unix_s: EXPIRES_UNIX_S,
        timeout_s: 5,
        servers: &servers,
        user_data: UserData::default(),
    };
    let token = ConnectToken::issue(&grant, &secrets(1), &DEV_KEY).unwrap();
    response(&mut handshake, &arrival(1), &token);
}

proptest! {
    #[test]
    fn any_datagram_is_dropped_or_answered_shorter(
        bytes in prop::collection::vec(any::<u8>(), 0..1_200),
        noise in prop::collection::vec((0..REQUEST_BYTES, any::<u8>()), 0..4),
        has_room: bool,
    ) {
        let mut handshake = handshake();
        let good = response(&mut handshake, &arrival(1), &token(1));
        let mut request = request(&token(2));
        let mut response = good;
        for (at, byte) in noise {
            request[at] = byte;
            let at = at % response.len();
            response[at] = byte;
        }
        let mut clear = bytes.clone();
        clear.insert(0, 0);
        let arrival = Arrival { has_room, ..arrival(1) };
        for mut datagram in [bytes, clear, request, response] {
            let length = datagram.len();
            match handshake.handle(&arrival, &mut datagram, &mut [0; REPLY_BYTES_MAX]) {
                HandshakeOutcome::Reply(reply) | HandshakeOutcome::Denied(reply) => prop_assert!(reply < length),
                HandshakeOutcome::Drop(_) | HandshakeOutcome::Accepted { .. } => {}
            }
        }
    }

    #[test]
    fn any_first_frame_is_refused(
        bytes in prop::collection::vec(any::<u8>(), 0..2_100),
        at in 0..1_085usize,
        flip in 1u8..,
        dev: bool,
    ) {
        let mut handshake = handshake();
        let from = address("10.0.0.1:1");
        prop_assert!(handshake.accept_stream_token(NOW_UNIX_S, from, &bytes, dev).is_err());
        let mut token = token(1).write();
        token[at] ^= flip;
        // The create timestamp is the one field before the keys that nothing proves.
        if !(21..29).contains(&at) {
            prop_assert!(handshake.accept_stream_token(NOW_UNIX_S, from, &token, dev).is_err());
        }
    }
}
