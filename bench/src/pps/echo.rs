//! The baseline: a thread that answers every datagram and does nothing else.
//!
//! Owns one UDP socket on one pinned core, through `recvmmsg` and `sendmmsg`. Promises: drains at the edges of a tick, as
//! a shard does, so that its calls carry as much as they can; sleeps to the edge by an absolute timer and notes how late
//! it wakes; answers are of one size. Never looks into a datagram.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hdrhistogram::Histogram;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg};
use ringshard::io::never_fragment;
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
    thread: Option<JoinHandle<Histogram<u64>>>,
}

impl Echo {
    /// Name of its thread.
    pub const THREAD: &str = "echo";

    /// Starts it on a core. Every answer has `answer_bytes`.
    pub fn start(cpu: usize, answer_bytes: usize) -> io::Result<Echo> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        // As the server's lanes, or its sends would cost more for no reason of its own.
        never_fragment(&socket)?;
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
            answer_all(&socket, answer_bytes, &stopped)
        })?;
        Ok(Echo { address, stop, thread: Some(thread) })
    }
}

impl Echo {
    /// Ends it; gives how late its ticks began, microseconds.
    pub fn end(mut self) -> Histogram<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("it ends once");
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Sleeps to a time of the monotonic clock; interrupted, it is early, and the next edge is soon.
fn sleep_to(at: Duration) {
    let at = rustix::time::Timespec { tv_sec: at.as_secs() as i64, tv_nsec: i64::from(at.subsec_nanos()) };
    let _ = rustix::thread::clock_nanosleep_absolute(rustix::thread::ClockId::Monotonic, &at);
}

fn now() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

fn answer_all(socket: &UdpSocket, answer_bytes: usize, stop: &AtomicBool) -> Histogram<u64> {
    let descriptor = socket.as_raw_fd();
    let mut received = vec![[0u8; DATAGRAM_BYTES]; BATCH];
    let answer = vec![7u8; answer_bytes];
    let mut headers_in = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
    let mut headers_out = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
    let answers: Vec<[IoSlice<'_>; 1]> = (0..BATCH).map(|_| [IoSlice::new(&answer)]).collect();
    let mut peers: Vec<Option<SockaddrStorage>> = Vec::with_capacity(BATCH);
    let mut late_us = Histogram::new_with_bounds(1, 10_000_000, 3).expect("the bounds are in order");
    let (begin, mut tick) = (now(), 0u64);
    while !stop.load(Ordering::Relaxed) {
        tick = (tick + 1).max((now() - begin).as_nanos() as u64 / TICK_NS);
        let edge = begin + Duration::from_nanos(tick * TICK_NS);
        sleep_to(edge);
        late_us.saturating_record(now().saturating_sub(edge).as_micros() as u64);
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
    late_us
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
        never_fragment(&socket)?;
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
