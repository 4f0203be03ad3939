//! What a ring alone has: operations, buffers, completions.

use std::net::UdpSocket;

use super::*;
use crate::io::tests::receive_all;
use crate::io::{bind_lanes, kernel_drops};

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
        Operation::LaneCancel { file },
    ] {
        assert_eq!(Operation::unpack(operation.pack()), operation);
    }
}

#[test]
fn more_datagrams_than_buffers_wait_in_the_socket() {
    const COUNT: usize = 400;
    let lanes = bind_lanes("127.0.0.1:0".parse().unwrap(), 2).unwrap();
    let address = lanes.address;
    let lanes =
        (0..).zip(lanes.sockets).map(|(number, socket)| Lane { number, socket: socket.into(), served: true }).collect();
    let config = PacketConfig { lanes, listener: None, submissions: 64, completions: 128, buffers: 16 };
    let mut ring = PacketRing::new(config).unwrap();
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    for number in 0..COUNT as u32 {
        peer.send_to(&number.to_le_bytes(), address).unwrap();
    }
    let kept = COUNT - kernel_drops(address.port()) as usize;
    let received = receive_all(kept, |on_event| ring.drain(0, on_event));
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
    let lane = Lane { number: 0, socket: lanes.sockets.remove(0).into(), served: true };
    let config = PacketConfig { lanes: vec![lane], listener: None, submissions: 8, completions: 16, buffers: 256 };
    let mut ring = PacketRing::new(config).unwrap();
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    for number in 0..COUNT {
        peer.send_to(&number.to_le_bytes(), lanes.address).unwrap();
    }
    let received = receive_all(COUNT.into(), |on_event| ring.drain(0, on_event));
    for (number, (.., bytes)) in (0..COUNT).zip(&received) {
        assert_eq!(bytes, &number.to_le_bytes());
    }
    assert_eq!(received.len(), usize::from(COUNT));
    assert!(ring.counters().completions_overflowed > 0, "{:?}", ring.counters());
}
