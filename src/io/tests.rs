//! Real sockets on loopback, a real kernel: the same tests for each backend.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::*;
use crate::limits::{DATAGRAM_BYTES_MAX, DATAGRAM_SEND_BYTES_MAX, RING_BUFFERS_MAX, TCP_BACKLOG_BYTES_MAX};
use crate::wire::ids::ConnectionId;

/// Makes a test for each backend of every function named.
macro_rules! for_each_backend {
    ($($test:ident)*) => {
        mod ring {
            $(#[test] fn $test() { super::$test(super::Backend::Ring); })*
        }
        mod mmsg {
            $(#[test] fn $test() { super::$test(super::Backend::Mmsg); })*
        }
    };
}

for_each_backend! {
    a_drain_of_idle_lanes_is_one_call_and_a_submit_none
    thousands_of_datagrams_come_in_a_few_calls_with_their_senders
    a_lane_goes_from_one_to_another_and_every_datagram_comes_once
    one_of_the_products_size_comes_about
    datagrams_can_be_changed_in_place
    empty_and_too_long_datagrams_do_not_stop_reception
    sends_arrive_whole_over_both_families
    a_full_queue_is_handed_over_in_between
    refused_sends_are_only_counted
    two_hundred_connections_echo
    a_peer_that_does_not_read_is_bounded_and_can_be_closed
    a_slow_reader_gets_everything_in_order
    last_words_arrive_before_the_end
    a_reset_is_told_once_with_its_errno
    it_goes_away_with_everything_in_flight
}

/// Small enough that many of them fit into the memory that a plain user may lock.
fn small(io: Backend, lanes: Vec<Lane>, listener: Option<TcpListener>, buffers: u16) -> Packets {
    let completions = 2 * u32::from(buffers).max(64);
    Packets::new(io, PacketConfig { lanes, listener, submissions: 64, completions, buffers }).unwrap()
}

/// A packet path over `count` lanes, and their address.
fn lane_packets(io: Backend, address: &str, count: u8, buffers: u16) -> (Packets, SocketAddr) {
    let lanes = bind_lanes(address.parse().unwrap(), count.into()).unwrap();
    let numbered =
        (0..).zip(lanes.sockets).map(|(number, socket)| Lane { number, socket: socket.into(), served: true }).collect();
    (small(io, numbered, None, buffers), lanes.address)
}

/// A packet path over one UDP socket without the lanes' filter, and its address.
fn plain_packets(io: Backend) -> (Packets, SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    (small(io, vec![Lane { number: 7, socket: socket.into(), served: true }], None, 64), address)
}

/// A packet path over a listener, and its address.
fn tcp_packets(io: Backend, buffers: u16) -> (Packets, SocketAddr) {
    let mut listeners = bind_tcp("127.0.0.1:0".parse().unwrap(), 1).unwrap();
    (small(io, Vec::new(), listeners.sockets.pop(), buffers), listeners.address)
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
pub(super) fn receive_all(
    count: usize,
    mut drain: impl FnMut(&mut dyn FnMut(Event<'_>)),
) -> Vec<(u8, SocketAddr, Vec<u8>)> {
    let mut received = Vec::new();
    let mut patient = patience();
    while received.len() < count && patient() {
        drain(&mut |event| {
            let Event::Datagram { lane, from, bytes } = event else { panic!("{event:?}") };
            received.push((lane, from, bytes.to_vec()));
        });
    }
    received
}

fn receive(packets: &mut Packets, count: usize) -> Vec<(u8, SocketAddr, Vec<u8>)> {
    receive_all(count, |on_event| packets.drain(0, on_event))
}

/// Drives a packet path until `done`; gives every event to `on_event`.
fn drive(packets: &mut Packets, mut on_event: impl FnMut(Event<'_>), mut done: impl FnMut(&mut Packets) -> bool) {
    let mut patient = patience();
    while !done(packets) {
        assert!(patient(), "nothing happens: {:?}", packets.counters());
        packets.drain(0, &mut on_event);
        packets.submit();
    }
}

/// Connects a peer and waits for its name.
fn connect(packets: &mut Packets, address: SocketAddr) -> (TcpStream, ConnectionId) {
    let peer = TcpStream::connect(address).unwrap();
    peer.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let accepted = std::cell::Cell::new(None);
    let on_event = |event: Event<'_>| {
        if let Event::TcpAccepted { connection, .. } = event {
            accepted.set(Some(connection));
        }
    };
    drive(packets, on_event, |_| accepted.get().is_some());
    (peer, accepted.get().unwrap())
}

fn a_drain_of_idle_lanes_is_one_call_and_a_submit_none(io: Backend) {
    let (mut packets, _) = lane_packets(io, "127.0.0.1:0", 32, 64);
    packets.drain(0, |event| panic!("{event:?}"));
    let before = packets.counters().calls;
    packets.drain(1, |event| panic!("{event:?}"));
    packets.submit();
    assert_eq!(packets.counters().calls, before + 1);
}

fn a_lane_goes_from_one_to_another_and_every_datagram_comes_once(io: Backend) {
    const SENDERS: usize = 40;
    let lanes = bind_lanes("127.0.0.1:0".parse().unwrap(), 4).unwrap();
    let sockets: Vec<Arc<UdpSocket>> = lanes.sockets.into_iter().map(Arc::new).collect();
    let known = |served: bool| {
        let lane = |(number, socket): (u8, &Arc<UdpSocket>)| Lane { number, socket: socket.clone(), served };
        (0..).zip(&sockets).map(lane).collect::<Vec<_>>()
    };
    let mut paths = [small(io, known(true), None, 256), small(io, known(false), None, 256)];
    let senders: Vec<_> = (0..SENDERS).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    let mut seen: HashMap<(SocketAddr, u32), (usize, u8)> = HashMap::new();
    let (mut number, mut sent) = (0u32, 0);
    let mut server = 0;
    for turn in 0..40 {
        // Some come before the receive ends, some while nobody receives, some afterwards.
        for part in 0..3 {
            for sender in &senders {
                number += 1;
                sender.send_to(&number.to_le_bytes(), lanes.address).unwrap();
                sent += 1;
            }
            let path = &mut paths[server];
            let mut note = |event: Event<'_>| {
                let Event::Datagram { lane, from, bytes } = event else { panic!("{event:?}") };
                let number = u32::from_le_bytes(bytes.try_into().unwrap());
                assert!(seen.insert((from, number), (server, lane)).is_none(), "turn {turn}: it came twice");
            };
            match part {
                0 => path.drain(0, &mut note),
                1 => {
                    (0..4).for_each(|lane| path.leave(lane));
                    path.drain(0, &mut note);
                    assert!((0..4).all(|lane| path.has_left(lane)), "turn {turn}: one drain is enough");
                    let taken = path.counters().datagrams_in;
                    path.drain(0, |event| panic!("{event:?}"));
                    assert_eq!(path.counters().datagrams_in, taken);
                    server = 1 - server;
                }
                _ => (0..4).for_each(|lane| path.serve(lane)),
            }
        }
    }
    let mut patient = patience();
    while seen.len() < sent && patient() {
        paths[server].drain(0, |event| {
            let Event::Datagram { lane, from, bytes } = event else { panic!("{event:?}") };
            let number = u32::from_le_bytes(bytes.try_into().unwrap());
            assert!(seen.insert((from, number), (server, lane)).is_none(), "it came twice");
        });
    }
    assert_eq!((seen.len(), kernel_drops(lanes.address.port())), (sent, 0));
    assert!(paths.iter().all(|path| path.counters().receive_errors == 0), "{:?}", paths[0].counters());
    assert!(seen.values().any(|&(server, _)| server == 0) && seen.values().any(|&(server, _)| server == 1));
    let mut peer = [0; 8];
    for (path, _) in paths.iter_mut().zip(0..) {
        // Whoever does not receive from a lane may still send by it.
        path.send_datagram(2, senders[0].local_addr().unwrap(), |space| {
            space[..4].copy_from_slice(b"here");
            4
        });
        path.submit();
        assert_eq!(senders[0].recv(&mut peer).unwrap(), 4);
    }
}

fn thousands_of_datagrams_come_in_a_few_calls_with_their_senders(io: Backend) {
    const SENDERS: usize = 200;
    const EACH: usize = 25;
    let (mut packets, address) = lane_packets(io, "127.0.0.1:0", 32, RING_BUFFERS_MAX);
    packets.drain(0, |event| panic!("{event:?}"));
    let senders: Vec<_> = (0..SENDERS).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    for number in 0..EACH {
        for (index, sender) in senders.iter().enumerate() {
            let mut bytes = vec![number as u8; 10 + index];
            bytes[..4].copy_from_slice(&(index as u32).to_le_bytes());
            sender.send_to(&bytes, address).unwrap();
        }
    }
    let before = packets.counters().calls;
    let received = receive(&mut packets, SENDERS * EACH);
    // A ring takes all at once; without one each lane takes a call for each of its batches.
    let calls_max = if io == Backend::Ring { 8 } else { 100 };
    assert!(packets.counters().calls - before <= calls_max, "{} calls", packets.counters().calls - before);
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
    assert_eq!(packets.counters().datagrams_in, (SENDERS * EACH) as u64);
}

fn one_of_the_products_size_comes_about(io: Backend) {
    let mut packets = Packets::new(io, PacketConfig::new(Vec::new(), None)).unwrap();
    packets.drain(0, |event| panic!("{event:?}"));
}

fn datagrams_can_be_changed_in_place(io: Backend) {
    let (mut packets, address) = plain_packets(io);
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    for round in 0..3 {
        peer.send_to(&[1, 2, 3], address).unwrap();
        let mut seen = Vec::new();
        drive(
            &mut packets,
            |event| {
                let Event::Datagram { lane: 7, bytes, .. } = event else { panic!("{event:?}") };
                bytes.iter_mut().for_each(|byte| *byte ^= 0xff);
                seen = bytes.to_vec();
            },
            |packets| packets.counters().datagrams_in > round,
        );
        assert_eq!(seen, [0xfe, 0xfd, 0xfc]);
    }
}

fn empty_and_too_long_datagrams_do_not_stop_reception(io: Backend) {
    let (mut packets, address) = plain_packets(io);
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    let longest = vec![9; DATAGRAM_BYTES_MAX];
    let too_long = vec![9; DATAGRAM_BYTES_MAX + 1];
    for bytes in [b"a", &b""[..], b"b", b"", b"", &too_long, &longest] {
        peer.send_to(bytes, address).unwrap();
    }
    let received = receive(&mut packets, 3);
    let bytes: Vec<_> = received.iter().map(|(_, _, bytes)| &bytes[..]).collect();
    assert_eq!(bytes, [b"a", &b"b"[..], &longest]);
    let counters = packets.counters();
    assert_eq!((counters.datagrams_empty, counters.datagrams_truncated), (3, 1));
    assert!(io == Backend::Mmsg || counters.rearms >= 3, "an empty datagram ends the lasting receive");
}

fn sends_arrive_whole_over_both_families(io: Backend) {
    for host in ["127.0.0.1:0", "[::1]:0"] {
        let (mut packets, address) = lane_packets(io, host, 2, 64);
        let peer = UdpSocket::bind(host).unwrap();
        peer.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        for bytes in [1, 500, DATAGRAM_SEND_BYTES_MAX] {
            packets.send_datagram(1, peer.local_addr().unwrap(), |space| {
                space[..bytes].fill(bytes as u8);
                bytes
            });
        }
        packets.send_datagram(1, peer.local_addr().unwrap(), |_| 0);
        packets.submit();
        let mut buffer = [0; 2_048];
        for bytes in [1, 500, DATAGRAM_SEND_BYTES_MAX] {
            assert_eq!(peer.recv_from(&mut buffer).unwrap(), (bytes, address));
            assert!(buffer[..bytes].iter().all(|byte| *byte == bytes as u8));
        }
        assert_eq!((packets.counters().datagrams_out, packets.counters().calls), (3, 1));
        peer.send_to(b"answer", address).unwrap();
        let (_, from, bytes) = receive(&mut packets, 1).pop().unwrap();
        assert_eq!((from, &bytes[..]), (peer.local_addr().unwrap(), &b"answer"[..]));
    }
}

fn a_full_queue_is_handed_over_in_between(io: Backend) {
    let lanes = bind_lanes("127.0.0.1:0".parse().unwrap(), 1).unwrap();
    let lane = Lane { number: 0, socket: lanes.sockets.into_iter().next().unwrap().into(), served: true };
    let mut packets = small(io, vec![lane], None, 256);
    for number in 0..200_u8 {
        packets.send_datagram(0, lanes.address, |space| {
            space[..100].fill(number);
            100
        });
    }
    packets.submit();
    let received = receive(&mut packets, 200);
    assert_eq!((packets.counters().sends_dropped, received.len()), (0, 200));
    for (number, (_, from, bytes)) in (0..200_u8).zip(received) {
        assert_eq!((from, bytes), (lanes.address, vec![number; 100]), "slots are not written before they left");
    }
}

fn refused_sends_are_only_counted(io: Backend) {
    let (mut packets, address) = lane_packets(io, "127.0.0.1:0", 1, 64);
    let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let other_family = "[::1]:9".parse().unwrap();
    let fill = |space: &mut [u8]| {
        space[0] = 1;
        1
    };
    for to in [closed, other_family, "255.255.255.255:9".parse().unwrap(), address] {
        packets.send_datagram(0, to, fill);
    }
    packets.submit();
    assert_eq!(receive(&mut packets, 1).len(), 1, "the lane goes on");
    let counters = packets.counters();
    assert_eq!((counters.datagrams_out, counters.send_other, counters.send_forbidden), (4, 1, 1), "{counters:?}");
}

fn two_hundred_connections_echo(io: Backend) {
    const PEERS: usize = 200;
    const BYTES: usize = 20_000;
    let (mut packets, address) = tcp_packets(io, 256);
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
        assert!(patient(), "{closed} closed, {:?}", packets.counters());
        packets.drain(0, |event| match event {
            Event::TcpBytes { connection, bytes } => waiting.push((connection, bytes.to_vec())),
            Event::TcpClosed { .. } => closed += 1,
            _ => {}
        });
        for (connection, bytes) in waiting.drain(..) {
            packets.tcp_send(connection, &bytes).unwrap();
        }
        packets.submit();
    }
    peers.join().unwrap();
    drive(&mut packets, |_| {}, |packets| packets.tcp_connections() == 0);
    let counters = packets.counters();
    assert_eq!((counters.tcp_accepted, counters.tcp_closed), (PEERS as u64, PEERS as u64));
    assert_eq!(counters.tcp_bytes_in, (PEERS * BYTES) as u64);
    assert_eq!(counters.tcp_bytes_out, (PEERS * BYTES) as u64);
}

fn a_peer_that_does_not_read_is_bounded_and_can_be_closed(io: Backend) {
    let (mut packets, address) = tcp_packets(io, 64);
    let (mut peer, id) = connect(&mut packets, address);
    let chunk = [5; 4_096];
    let mut taken = 0_u64;
    // The kernel's own buffers fill first; then ours do.
    let refusal = loop {
        match packets.tcp_send(id, &chunk) {
            Ok(()) => taken += chunk.len() as u64,
            Err(refusal) => break refusal,
        }
        packets.submit();
        packets.drain(100, |_| {});
    };
    assert_eq!(refusal, TcpSendError::BacklogFull);
    assert!(taken - packets.counters().tcp_bytes_out <= TCP_BACKLOG_BYTES_MAX as u64);
    packets.drain(460, |_| {});
    assert_eq!(packets.tcp_stalled_ticks(id), 360);

    packets.tcp_close(id);
    assert_eq!(packets.tcp_send(id, b"x"), Err(TcpSendError::Gone));
    drive(&mut packets, |event| panic!("closing was asked for: {event:?}"), |packets| packets.tcp_connections() == 0);
    let sent = packets.counters().tcp_bytes_out;
    assert_eq!(peer.read_to_end(&mut Vec::new()).unwrap() as u64, sent, "what the kernel took arrives");

    // The slot has a new tenant; the old name does not reach it.
    let (mut next, next_id) = connect(&mut packets, address);
    assert_eq!((next_id.slot, next_id.generation), (id.slot, id.generation + 1));
    assert_eq!(packets.tcp_send(id, b"stale"), Err(TcpSendError::Gone));
    packets.tcp_close(id);
    packets.tcp_send(next_id, b"fresh").unwrap();
    packets.submit();
    let mut bytes = [0; 5];
    next.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"fresh");
}

fn a_slow_reader_gets_everything_in_order(io: Backend) {
    const BYTES: usize = 8_000_000;
    let (mut packets, address) = tcp_packets(io, 64);
    let (mut peer, id) = connect(&mut packets, address);
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
        if packets.tcp_send(id, &all[next..end]).is_ok() {
            next = end;
        }
        packets.submit();
        packets.drain(0, |_| {});
    }
    drive(&mut packets, |_| {}, |packets| packets.counters().tcp_bytes_out == BYTES as u64);
    assert!(reader.join().unwrap() == all);
}

fn last_words_arrive_before_the_end(io: Backend) {
    let (mut packets, address) = tcp_packets(io, 64);
    let (mut peer, id) = connect(&mut packets, address);
    packets.tcp_send(id, b"full").unwrap();
    packets.tcp_close(id);
    drive(&mut packets, |event| panic!("{event:?}"), |packets| packets.tcp_connections() == 0);
    let mut words = Vec::new();
    peer.read_to_end(&mut words).unwrap();
    assert_eq!(words, b"full");
}

fn a_reset_is_told_once_with_its_errno(io: Backend) {
    let (mut packets, address) = tcp_packets(io, 64);
    let (peer, id) = connect(&mut packets, address);
    socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
    drop(peer);
    let mut told = Vec::new();
    drive(
        &mut packets,
        |event| {
            if let Event::TcpClosed { connection, reason } = event {
                told.push((connection, reason));
            }
        },
        |packets| packets.tcp_connections() == 0,
    );
    assert_eq!(told, [(id, CloseReason::Error(libc::ECONNRESET))]);
}

fn it_goes_away_with_everything_in_flight(io: Backend) {
    for _ in 0..20 {
        let (mut packets, address) = tcp_packets(io, 64);
        let (mut peer, id) = connect(&mut packets, address);
        let bulk = vec![1; TCP_BACKLOG_BYTES_MAX];
        while packets.tcp_send(id, &bulk).is_ok() {
            packets.submit();
            packets.drain(0, |_| {});
        }
        peer.write_all(b"unread").unwrap();
        drop(packets);
    }
}
