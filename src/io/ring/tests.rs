//! Real sockets on loopback, a real ring.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use super::*;
use crate::io::{bind_lanes, bind_tcp, kernel_drops};
use crate::limits::{DATAGRAM_BYTES_MAX, DATAGRAM_SEND_BYTES_MAX, TCP_BACKLOG_BYTES_MAX};

/// Small enough that many rings fit into the memory that a plain user may lock.
fn small(lanes: Vec<Lane>, listener: Option<TcpListener>, buffers: u16) -> PacketRing {
    let completions = 2 * u32::from(buffers).max(64);
    PacketRing::new(RingConfig { lanes, listener, submissions: 64, completions, buffers }).unwrap()
}

/// A ring over `count` lanes, and their address.
fn lane_ring(address: &str, count: u8, buffers: u16) -> (PacketRing, SocketAddr) {
    let lanes = bind_lanes(address.parse().unwrap(), count.into()).unwrap();
    let numbered = (0..).zip(lanes.sockets).map(|(number, socket)| Lane { number, socket }).collect();
    (small(numbered, None, buffers), lanes.address)
}

/// A ring over one UDP socket without the lanes' filter, and its address.
fn plain_ring() -> (PacketRing, SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    (small(vec![Lane { number: 7, socket }], None, 64), address)
}

/// A ring over a listener, and its address.
fn tcp_ring(buffers: u16) -> (PacketRing, SocketAddr) {
    let mut listeners = bind_tcp("127.0.0.1:0".parse().unwrap(), 1).unwrap();
    (small(Vec::new(), listeners.sockets.pop(), buffers), listeners.address)
}

/// Says yes until a time by which anything on loopback has happened.
fn patience() -> impl FnMut() -> bool {
    let end = Instant::now() + Duration::from_secs(20);
    move || {
        thread::yield_now();
        Instant::now() < end
    }
}

/// Drains datagrams until `count` came or nothing can come any more.
fn receive(ring: &mut PacketRing, count: usize) -> Vec<(u8, SocketAddr, Vec<u8>)> {
    let mut received = Vec::new();
    let mut patient = patience();
    while received.len() < count && patient() {
        ring.drain(0, |event| {
            let Event::Datagram { lane, from, bytes } = event else { panic!("{event:?}") };
            received.push((lane, from, bytes.to_vec()));
        });
    }
    received
}

/// Drives a ring until `done`; gives every event to `on_event`.
fn drive(ring: &mut PacketRing, mut on_event: impl FnMut(Event<'_>), mut done: impl FnMut(&mut PacketRing) -> bool) {
    let mut patient = patience();
    while !done(ring) {
        assert!(patient(), "nothing happens: {:?}", ring.counters());
        ring.drain(0, &mut on_event);
        ring.submit();
    }
}

/// Connects a peer and waits for its name.
fn connect(ring: &mut PacketRing, address: SocketAddr) -> (TcpStream, ConnectionId) {
    let peer = TcpStream::connect(address).unwrap();
    peer.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let accepted = std::cell::Cell::new(None);
    let on_event = |event: Event<'_>| {
        if let Event::TcpAccepted { connection } = event {
            accepted.set(Some(connection));
        }
    };
    drive(ring, on_event, |_| accepted.get().is_some());
    (peer, accepted.get().unwrap())
}

#[test]
fn operations_survive_the_way_through_the_kernel() {
    let id = ConnectionId { slot: u16::MAX, generation: u32::MAX - 1 };
    let file = u16::MAX;
    for operation in [
        Operation::LaneReceive { file },
        Operation::LaneSend,
        Operation::Accept,
        Operation::Receive(id),
        Operation::Send(id),
        Operation::Cancel(id),
    ] {
        assert_eq!(Operation::unpack(operation.pack()), operation);
    }
}

#[test]
fn a_drain_of_an_idle_ring_is_one_call_and_a_submit_none() {
    let (mut ring, _) = lane_ring("127.0.0.1:0", 32, 64);
    ring.drain(0, |event| panic!("{event:?}"));
    assert!(!ring.has_arrivals());
    let before = ring.counters().enters;
    ring.drain(1, |event| panic!("{event:?}"));
    ring.submit();
    assert_eq!(ring.counters().enters, before + 1);
}

#[test]
fn thousands_of_datagrams_come_in_a_few_calls_with_their_senders() {
    const SENDERS: usize = 200;
    const EACH: usize = 25;
    let (mut ring, address) = lane_ring("127.0.0.1:0", 32, RING_BUFFERS_MAX);
    ring.drain(0, |event| panic!("{event:?}"));
    let senders: Vec<_> = (0..SENDERS).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    for number in 0..EACH {
        for (index, sender) in senders.iter().enumerate() {
            let mut bytes = vec![number as u8; 10 + index];
            bytes[..4].copy_from_slice(&(index as u32).to_le_bytes());
            sender.send_to(&bytes, address).unwrap();
        }
    }
    assert!(ring.has_arrivals());
    let before = ring.counters().enters;
    let received = receive(&mut ring, SENDERS * EACH);
    assert!(ring.counters().enters - before <= 8, "{} calls", ring.counters().enters - before);
    assert_eq!(received.len(), SENDERS * EACH);
    let mut next = HashMap::new();
    for (lane, from, bytes) in received {
        let index = u32::from_le_bytes(bytes[..4].try_into().unwrap()) as usize;
        let (first_lane, number) = next.entry(index).or_insert((lane, 0_u8));
        assert_eq!(*first_lane, lane, "a sender stays in its lane");
        assert_eq!(from, senders[index].local_addr().unwrap());
        assert_eq!(bytes.len(), 10 + index);
        assert!(bytes[4..].iter().all(|byte| byte == number), "in order, whole");
        *number += 1;
    }
    let lanes_used = next.values().map(|(lane, _)| lane).collect::<std::collections::HashSet<_>>().len();
    assert!(lanes_used > 16, "{lanes_used} lanes for {SENDERS} senders");
    assert_eq!(ring.counters().datagrams_in, (SENDERS * EACH) as u64);
}

#[test]
fn a_ring_of_the_products_size_comes_about() {
    let mut ring = PacketRing::new(RingConfig::new(Vec::new(), None)).unwrap();
    ring.drain(0, |event| panic!("{event:?}"));
}

#[test]
fn datagrams_can_be_changed_in_place() {
    let (mut ring, address) = plain_ring();
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    for round in 0..3 {
        peer.send_to(&[1, 2, 3], address).unwrap();
        let mut seen = Vec::new();
        drive(
            &mut ring,
            |event| {
                let Event::Datagram { lane: 7, bytes, .. } = event else { panic!("{event:?}") };
                bytes.iter_mut().for_each(|byte| *byte ^= 0xff);
                seen = bytes.to_vec();
            },
            |ring| ring.counters().datagrams_in > round,
        );
        assert_eq!(seen, [0xfe, 0xfd, 0xfc]);
    }
}

#[test]
fn empty_and_too_long_datagrams_do_not_stop_reception() {
    let (mut ring, address) = plain_ring();
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    let longest = vec![9; DATAGRAM_BYTES_MAX];
    let too_long = vec![9; DATAGRAM_BYTES_MAX + 1];
    for bytes in [b"a", &b""[..], b"b", b"", b"", &too_long, &longest] {
        peer.send_to(bytes, address).unwrap();
    }
    let received = receive(&mut ring, 3);
    let bytes: Vec<_> = received.iter().map(|(_, _, bytes)| &bytes[..]).collect();
    assert_eq!(bytes, [b"a", &b"b"[..], &longest]);
    let counters = ring.counters();
    assert_eq!((counters.datagrams_empty, counters.datagrams_truncated), (3, 1));
    assert!(counters.rearms >= 3, "an empty datagram ends the lasting receive");
}

#[test]
fn more_datagrams_than_buffers_wait_in_the_socket() {
    const COUNT: usize = 400;
    let (mut ring, address) = lane_ring("127.0.0.1:0", 2, 16);
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    for number in 0..COUNT as u32 {
        peer.send_to(&number.to_le_bytes(), address).unwrap();
    }
    let kept = COUNT - kernel_drops(address.port()) as usize;
    let received = receive(&mut ring, kept);
    assert_eq!(received.len(), kept);
    let numbers: Vec<_> = received.iter().map(|(.., bytes)| bytes.clone()).collect();
    let mut sorted = numbers.clone();
    sorted.sort_by_key(|bytes| u32::from_le_bytes(bytes[..].try_into().unwrap()));
    sorted.dedup();
    assert_eq!(numbers, sorted, "in order, each once");
    assert!(ring.counters().buffers_empty > 0 && ring.counters().rearms > 0, "{:?}", ring.counters());
    assert_eq!(ring.counters().receive_errors, 0);
}

#[test]
fn more_datagrams_than_completions_are_not_lost() {
    const COUNT: u16 = 300;
    let mut lanes = bind_lanes("127.0.0.1:0".parse().unwrap(), 1).unwrap();
    let lane = Lane { number: 0, socket: lanes.sockets.remove(0) };
    let config = RingConfig { lanes: vec![lane], listener: None, submissions: 8, completions: 16, buffers: 256 };
    let mut ring = PacketRing::new(config).unwrap();
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    for number in 0..COUNT {
        peer.send_to(&number.to_le_bytes(), lanes.address).unwrap();
    }
    let received = receive(&mut ring, usize::from(COUNT));
    for (number, (.., bytes)) in (0..COUNT).zip(&received) {
        assert_eq!(bytes, &number.to_le_bytes());
    }
    assert_eq!(received.len(), usize::from(COUNT));
    assert!(ring.counters().completions_overflowed > 0, "{:?}", ring.counters());
}

#[test]
fn sends_arrive_whole_over_both_families() {
    for host in ["127.0.0.1:0", "[::1]:0"] {
        let (mut ring, address) = lane_ring(host, 2, 64);
        let peer = UdpSocket::bind(host).unwrap();
        peer.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        for bytes in [1, 500, DATAGRAM_SEND_BYTES_MAX] {
            ring.send_datagram(1, peer.local_addr().unwrap(), |space| {
                space[..bytes].fill(bytes as u8);
                bytes
            });
        }
        ring.send_datagram(1, peer.local_addr().unwrap(), |_| 0);
        ring.submit();
        let mut buffer = [0; 2_048];
        for bytes in [1, 500, DATAGRAM_SEND_BYTES_MAX] {
            assert_eq!(peer.recv_from(&mut buffer).unwrap(), (bytes, address));
            assert!(buffer[..bytes].iter().all(|byte| *byte == bytes as u8));
        }
        assert_eq!((ring.counters().datagrams_out, ring.counters().enters), (3, 1));
        peer.send_to(b"answer", address).unwrap();
        let (_, from, bytes) = receive(&mut ring, 1).pop().unwrap();
        assert_eq!((from, &bytes[..]), (peer.local_addr().unwrap(), &b"answer"[..]));
    }
}

#[test]
fn a_full_queue_is_handed_over_in_between() {
    let lanes = bind_lanes("127.0.0.1:0".parse().unwrap(), 1).unwrap();
    let lane = Lane { number: 0, socket: lanes.sockets.into_iter().next().unwrap() };
    let mut ring = small(vec![lane], None, 256);
    for number in 0..200_u8 {
        ring.send_datagram(0, lanes.address, |space| {
            space[..100].fill(number);
            100
        });
    }
    ring.submit();
    let received = receive(&mut ring, 200);
    assert_eq!((ring.counters().sends_dropped, received.len()), (0, 200));
    for (number, (_, from, bytes)) in (0..200_u8).zip(received) {
        assert_eq!((from, bytes), (lanes.address, vec![number; 100]), "slots are not written before they left");
    }
}

#[test]
fn refused_sends_are_only_counted() {
    let (mut ring, address) = lane_ring("127.0.0.1:0", 1, 64);
    let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let other_family = "[::1]:9".parse().unwrap();
    let fill = |space: &mut [u8]| {
        space[0] = 1;
        1
    };
    for to in [closed, other_family, "255.255.255.255:9".parse().unwrap(), address] {
        ring.send_datagram(0, to, fill);
    }
    ring.submit();
    assert_eq!(receive(&mut ring, 1).len(), 1, "the lane goes on");
    let counters = ring.counters();
    assert_eq!((counters.datagrams_out, counters.send_other, counters.send_forbidden), (4, 1, 1), "{counters:?}");
}

#[test]
fn two_hundred_connections_echo() {
    const PEERS: usize = 200;
    const BYTES: usize = 20_000;
    let (mut ring, address) = tcp_ring(256);
    let peers = thread::spawn(move || {
        let mut streams: Vec<_> = (0..PEERS).map(|_| TcpStream::connect(address).unwrap()).collect();
        let sent = |index: usize| (0..BYTES).map(move |at| (at * 7 + index) as u8).collect::<Vec<_>>();
        for (start, end) in [(0, 1), (1, 900), (900, BYTES)] {
            for (index, stream) in streams.iter_mut().enumerate() {
                stream.write_all(&sent(index)[start..end]).unwrap();
            }
        }
        for (index, stream) in streams.iter_mut().enumerate() {
            let mut received = vec![0; BYTES];
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            stream.read_exact(&mut received).unwrap();
            assert_eq!(received, sent(index), "peer {index}");
        }
    });
    let (mut closed, mut waiting) = (0, Vec::new());
    let mut patient = patience();
    while closed < PEERS {
        assert!(patient(), "{closed} closed, {:?}", ring.counters());
        ring.drain(0, |event| match event {
            Event::TcpBytes { connection, bytes } => waiting.push((connection, bytes.to_vec())),
            Event::TcpClosed { .. } => closed += 1,
            _ => {}
        });
        for (connection, bytes) in waiting.drain(..) {
            ring.tcp_send(connection, &bytes).unwrap();
        }
        ring.submit();
    }
    peers.join().unwrap();
    drive(&mut ring, |_| {}, |ring| ring.tcp_connections() == 0);
    let counters = ring.counters();
    assert_eq!((counters.tcp_accepted, counters.tcp_closed), (PEERS as u64, PEERS as u64));
    assert_eq!(counters.tcp_bytes_in, (PEERS * BYTES) as u64);
    assert_eq!(counters.tcp_bytes_out, (PEERS * BYTES) as u64);
}

#[test]
fn a_peer_that_does_not_read_is_bounded_and_can_be_closed() {
    let (mut ring, address) = tcp_ring(64);
    let (mut peer, id) = connect(&mut ring, address);
    let chunk = [5; 4_096];
    let mut taken = 0_u64;
    // The kernel's own buffers fill first; then ours do.
    let refusal = loop {
        match ring.tcp_send(id, &chunk) {
            Ok(()) => taken += chunk.len() as u64,
            Err(refusal) => break refusal,
        }
        ring.submit();
        ring.drain(100, |_| {});
    };
    assert_eq!(refusal, TcpSendError::BacklogFull);
    assert!(taken - ring.counters().tcp_bytes_out <= TCP_BACKLOG_BYTES_MAX as u64);
    ring.drain(460, |_| {});
    assert_eq!(ring.tcp_stalled_ticks(id), 360);

    ring.tcp_close(id);
    assert_eq!(ring.tcp_send(id, b"x"), Err(TcpSendError::Gone));
    drive(&mut ring, |event| panic!("closing was asked for: {event:?}"), |ring| ring.tcp_connections() == 0);
    let sent = ring.counters().tcp_bytes_out;
    assert_eq!(peer.read_to_end(&mut Vec::new()).unwrap() as u64, sent, "what the kernel took arrives");

    // The slot has a new tenant; the old name does not reach it.
    let (mut next, next_id) = connect(&mut ring, address);
    assert_eq!((next_id.slot, next_id.generation), (id.slot, id.generation + 1));
    assert_eq!(ring.tcp_send(id, b"stale"), Err(TcpSendError::Gone));
    ring.tcp_close(id);
    ring.tcp_send(next_id, b"fresh").unwrap();
    ring.submit();
    let mut bytes = [0; 5];
    next.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"fresh");
}

#[test]
fn a_slow_reader_gets_everything_in_order() {
    const BYTES: usize = 8_000_000;
    let (mut ring, address) = tcp_ring(64);
    let (mut peer, id) = connect(&mut ring, address);
    let reader = thread::spawn(move || {
        let mut received = vec![0; BYTES];
        for part in received.chunks_mut(7_777) {
            peer.read_exact(part).unwrap();
        }
        received
    });
    let all: Vec<u8> = (0..BYTES).map(|at| (at / 1_000) as u8).collect();
    let mut next = 0;
    let mut patient = patience();
    while next < BYTES {
        assert!(patient());
        let end = (next + 3_000).min(BYTES);
        if ring.tcp_send(id, &all[next..end]).is_ok() {
            next = end;
        }
        ring.submit();
        ring.drain(0, |_| {});
    }
    drive(&mut ring, |_| {}, |ring| ring.counters().tcp_bytes_out == BYTES as u64);
    assert!(reader.join().unwrap() == all);
}

#[test]
fn last_words_arrive_before_the_end() {
    let (mut ring, address) = tcp_ring(64);
    let (mut peer, id) = connect(&mut ring, address);
    ring.tcp_send(id, b"full").unwrap();
    ring.tcp_close(id);
    drive(&mut ring, |event| panic!("{event:?}"), |ring| ring.tcp_connections() == 0);
    let mut words = Vec::new();
    peer.read_to_end(&mut words).unwrap();
    assert_eq!(words, b"full");
}

#[test]
fn a_reset_is_told_once_with_its_errno() {
    let (mut ring, address) = tcp_ring(64);
    let (peer, id) = connect(&mut ring, address);
    socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
    drop(peer);
    let mut told = Vec::new();
    drive(
        &mut ring,
        |event| {
            if let Event::TcpClosed { connection, reason } = event {
                told.push((connection, reason));
            }
        },
        |ring| ring.tcp_connections() == 0,
    );
    assert_eq!(told, [(id, CloseReason::Error(libc::ECONNRESET))]);
}

#[test]
fn accepted_sockets_send_at_once() {
    let (mut ring, address) = tcp_ring(64);
    let (_peer, id) = connect(&mut ring, address);
    let connection = ring.connections.open_mut(id).unwrap();
    let socket = connection.socket.as_fd();
    assert!(socket2::SockRef::from(&socket).tcp_nodelay().unwrap());
}

#[test]
fn a_ring_goes_away_with_everything_in_flight() {
    for _ in 0..20 {
        let (mut ring, address) = tcp_ring(64);
        let (mut peer, id) = connect(&mut ring, address);
        let bulk = vec![1; TCP_BACKLOG_BYTES_MAX];
        while ring.tcp_send(id, &bulk).is_ok() {
            ring.submit();
            ring.drain(0, |_| {});
        }
        peer.write_all(b"unread").unwrap();
        drop(ring);
    }
}
