//! The baseline: a thread that answers every datagram and does nothing else.
//!
//! Owns one UDP socket on one pinned core, through `recvmmsg` and `sendmmsg`. Promises: drains at the edges of a tick, as
//! a shard does, so that its calls carry as much as they can; answers are of one size. Never looks into a datagram.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg};
use ringshard::limits::TICK_NS;
use ringshard::sys;

use super::client::note;
use crate::drive::{Counts, Flow};

/// Datagrams of one call.
const BATCH: usize = 256;
/// Bytes of the longest datagram.
const DATAGRAM_BYTES: usize = 1_280;
/// Receive buffer: two ticks of the highest rate, as the kernel counts them.
const BUFFER_BYTES: i32 = 64 << 20;

/// A running echo; ends with its value.
pub struct Echo {
    /// Where it listens.
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    /// Name of its thread.
    pub const THREAD: &str = "echo";

    /// Starts it on a core. Every answer has `answer_bytes`.
    pub fn start(cpu: usize, answer_bytes: usize) -> io::Result<Echo> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        sys::buffer_bytes(&socket, true, BUFFER_BYTES)?;
        sys::buffer_bytes(&socket, false, BUFFER_BYTES)?;
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::Builder::new().name(Echo::THREAD.to_owned()).spawn(move || {
            // Where it cannot be pinned its costs are out of bounds, and the row is void.
            let _ = sys::set_thread_cpus(&[cpu]);
            let _ = sys::set_thread_nice(ringshard::shard::SHARD_NICE);
            answer_all(&socket, answer_bytes, &stopped);
        })?;
        Ok(Echo { address, stop, thread: Some(thread) })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    }
}

fn answer_all(socket: &UdpSocket, answer_bytes: usize, stop: &AtomicBool) {
    let descriptor = socket.as_raw_fd();
    let mut received = vec![[0u8; DATAGRAM_BYTES]; BATCH];
    let answer = vec![7u8; answer_bytes];
    let mut headers_in = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
    let mut headers_out = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
    let answers: Vec<[IoSlice<'_>; 1]> = (0..BATCH).map(|_| [IoSlice::new(&answer)]).collect();
    let mut peers: Vec<Option<SockaddrStorage>> = Vec::with_capacity(BATCH);
    let (begin, mut tick) = (Instant::now(), 0u64);
    while !stop.load(Ordering::Relaxed) {
        tick = (tick + 1).max(begin.elapsed().as_nanos() as u64 / TICK_NS);
        let edge = Duration::from_nanos(tick * TICK_NS);
        thread::sleep(edge.saturating_sub(begin.elapsed()));
        loop {
            peers.clear();
            let slices = received.iter_mut().map(|bytes| [IoSliceMut::new(bytes)]);
            let mut slices: Vec<[IoSliceMut<'_>; 1]> = slices.collect();
            // Nothing there, or interrupted: the next edge is soon.
            let Ok(batch) = recvmmsg(descriptor, &mut headers_in, slices.iter_mut(), MsgFlags::MSG_DONTWAIT, None)
            else {
                break;
            };
            peers.extend(batch.map(|message| message.address));
            let count = peers.len();
            // What the kernel does not take is missing at the other end, and counted there.
            let _ = sendmmsg(descriptor, &mut headers_out, &answers[..count], &peers, [], MsgFlags::MSG_DONTWAIT);
            if count < BATCH {
                break;
            }
        }
    }
}

/// A client of the echo: datagrams of one size.
pub struct Pinger {
    socket: UdpSocket,
    payload: Vec<u8>,
}

impl Pinger {
    /// One that sends `bytes` a turn.
    pub fn new(echo: SocketAddr, bytes: usize) -> io::Result<Pinger> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.connect(echo)?;
        socket.set_nonblocking(true)?;
        Ok(Pinger { socket, payload: vec![3; bytes] })
    }
}

impl Flow for Pinger {
    fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    fn turn(&mut self, _: Duration, _: Duration, counts: &mut Counts) {
        note(self.socket.send(&self.payload), 1, counts);
    }

    fn hear(&mut self, _: Duration, datagram: &mut [u8], counts: &mut Counts) {
        counts.heard += 1;
        counts.heard_bytes += datagram.len() as u64;
    }
}
