//! Load on one thread, as an open loop over many sockets.
//!
//! Owns the turns of a leg and one epoll. Promises: a turn's time depends on nothing that the other side does, and no turn
//! is skipped; how late turns were taken is part of the result, and a leg that was late is void. Never waits for an
//! answer, and never sleeps: a thread that must be woken is late, and whoever sends to it pays for its waking.

use std::collections::HashSet;
use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::time::{ClockId, Timespec, clock_gettime};

/// Sockets read between two looks at the turns.
const EVENTS_MAX: usize = 64;
/// Turns taken between two looks at the sockets.
const TURNS_MAX: usize = 512;
/// Bytes of one read.
const READ_BYTES: usize = 2_048;
/// Longest time to hear what is there already.
const CATCH_UP_MAX: Duration = Duration::from_secs(1);
/// A leg whose turns were later than this at the 99th percentile is void, microseconds.
pub const LATE_US_MAX: u64 = 2_000;

/// One client of a leg.
pub trait Flow {
    /// Where its answers come.
    fn socket(&self) -> &UdpSocket;
    /// Its turn, due at `due`: sends what it has to send.
    fn turn(&mut self, now: Duration, due: Duration, counts: &mut Counts);
    /// A datagram came.
    fn hear(&mut self, now: Duration, datagram: &mut [u8], counts: &mut Counts);
}

/// What flows count.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counts {
    /// Datagrams sent.
    pub sent: u64,
    /// Their payload bytes.
    pub sent_bytes: u64,
    /// Datagrams that the kernel did not take.
    pub blocked: u64,
    /// Datagrams that came and were right.
    pub heard: u64,
    /// Their payload bytes.
    pub heard_bytes: u64,
    /// Datagrams that came and were wrong.
    pub wrong: u64,
}

/// What a leg came to.
pub struct Leg {
    /// What was sent and heard.
    pub counts: Counts,
    /// From the first turn to the end.
    pub seconds: f64,
    /// How late turns were taken, microseconds.
    pub late_us: Histogram<u64>,
}

impl Leg {
    /// Whether turns were taken when they were due.
    pub fn is_timely(&self) -> bool {
        self.late_us.value_at_quantile(0.99) <= LATE_US_MAX
    }
}

/// The thread's epoll and clock. Flows stay those that it was made with.
pub struct Drive {
    epoll: OwnedFd,
    origin: Instant,
    /// The flow whose turn is next.
    next: usize,
}

impl Drive {
    /// Watches the sockets of all flows.
    pub fn new<F: Flow>(flows: &[F]) -> io::Result<Drive> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for (at, flow) in flows.iter().enumerate() {
            let data = epoll::EventData::new_u64(at as u64);
            epoll::add(&epoll, flow.socket().as_fd(), data, epoll::EventFlags::IN)?;
        }
        Ok(Drive { epoll, origin: Instant::now(), next: 0 })
    }

    /// Time since it was made.
    pub fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    /// `turns_hz` turns a second, the flows one after the other, for some time.
    pub fn run<F: Flow>(&mut self, flows: &mut [F], turns_hz: f64, time: Duration) -> Leg {
        let start = self.now();
        let mut leg = Leg {
            counts: Counts::default(),
            seconds: 0.0,
            late_us: Histogram::new_with_bounds(1, 60_000_000, 2).expect("the bounds are in order"),
        };
        let mut events = Vec::with_capacity(EVENTS_MAX);
        let due_of = |turn: u64| start + Duration::from_nanos((turn as f64 * 1e9 / turns_hz) as u64);
        let mut turn = 0;
        loop {
            let mut now = self.now();
            if now >= start + time {
                break;
            }
            for _ in 0..TURNS_MAX {
                let due = due_of(turn);
                if due > now {
                    break;
                }
                leg.late_us.saturating_record((now - due).as_micros() as u64);
                flows[self.next].turn(now, due, &mut leg.counts);
                self.next = (self.next + 1) % flows.len();
                turn += 1;
                now = self.now();
            }
            self.hear(flows, &mut events, &mut leg.counts);
        }
        leg.seconds = (self.now() - start).as_secs_f64();
        leg
    }

    /// Hears all that is there already; gives the seconds that it took.
    pub fn catch_up<F: Flow>(&self, flows: &mut [F], counts: &mut Counts) -> f64 {
        let (begin, mut events) = (self.now(), Vec::with_capacity(EVENTS_MAX));
        while self.hear(flows, &mut events, counts) && self.now() - begin < CATCH_UP_MAX {}
        (self.now() - begin).as_secs_f64()
    }

    /// Hears what came; says whether something did.
    fn hear<F: Flow>(&self, flows: &mut [F], events: &mut Vec<epoll::Event>, counts: &mut Counts) -> bool {
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        // Interrupted by a signal: nothing came, and the loop goes on.
        let _ = epoll::wait(&self.epoll, spare_capacity(events), Some(&at_once));
        let mut bytes = [0; READ_BYTES];
        let any = !events.is_empty();
        for event in events.drain(..) {
            let flow = &mut flows[event.data.u64() as usize];
            // What cannot be read was counted where it was sent.
            if let Ok(length) = flow.socket().recv(&mut bytes) {
                flow.hear(self.now(), &mut bytes[..length], counts);
            }
        }
        any
    }
}

/// CPU time of the calling thread.
pub fn thread_cpu_s() -> f64 {
    let spent = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(spent.tv_sec as u64, spent.tv_nsec as u32).as_secs_f64()
}

/// Datagrams for which UDP sockets of these local ports had no room.
pub fn socket_drops(ports: &HashSet<u16>) -> u64 {
    let table = ["/proc/net/udp", "/proc/net/udp6"].map(|path| std::fs::read_to_string(path).unwrap_or_default());
    table.iter().map(|table| drops_of(table, ports)).sum()
}

/// Sum of the last column of the kernel's table over the lines of some local ports.
fn drops_of(table: &str, ports: &HashSet<u16>) -> u64 {
    let drops = |line: &str| {
        let (_, port) = line.split_whitespace().nth(1)?.rsplit_once(':')?;
        let mine = ports.contains(&u16::from_str_radix(port, 16).ok()?);
        line.split_whitespace().next_back()?.parse::<u64>().ok().filter(|_| mine)
    };
    table.lines().filter_map(drops).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_are_summed_over_own_ports_only() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n\
             1: 0100007F:1E61 0100007F:9C40 01 00000000:00000000 00:00000000 00000000 0 0 5 2 0000000000000000 7\n\
             2: 0100007F:1E62 0100007F:9C40 01 00000000:00000000 00:00000000 00000000 0 0 6 2 0000000000000000 11\n";
        assert_eq!(drops_of(table, &[7_777].into()), 7);
        assert_eq!(drops_of(table, &[7_777, 7_778, 1].into()), 18);
    }
}
