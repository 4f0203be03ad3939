//! Whether this kernel gives us a ring, and if not, why and what mends it.
//!
//! Owns nothing. Promises: the answer comes from a real ring that carried a real datagram, not from a version number.

use std::fmt;
use std::fs;
use std::io;
use std::net::{SocketAddr, UdpSocket};

use super::{Event, Lane, PacketConfig, PacketRing, RingFeatures};

/// Why a ring could not be made. The text says what to do.
#[derive(Debug)]
pub enum RingError {
    /// The sysctl `kernel.io_uring_disabled` forbids rings.
    Disabled {
        /// 1: allowed for privileged users and one group; 2: for nobody.
        level: u8,
    },
    /// A seccomp filter or security module forbids rings, or the kernel is built without them.
    Forbidden,
    /// The kernel is older than 6.1.
    TooOld {
        /// What `uname -r` says.
        kernel: String,
    },
    /// The kernel has no memory for it, or this user may not lock so much.
    NoMemory {
        /// What was tried.
        step: &'static str,
    },
    /// This process has too many open files.
    NoDescriptors,
    /// A ring came about, but a datagram that was sent did not come through it.
    Deaf,
    /// Anything else.
    Other {
        /// What was tried.
        step: &'static str,
        /// The kernel's answer.
        error: io::Error,
    },
}

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RingError::Disabled { level } => write!(
                f,
                "the kernel refuses io_uring (kernel.io_uring_disabled = {level}); go without: ringshard serve --io mmsg, \
                 or run: sudo sysctl -w kernel.io_uring_disabled=0"
            ),
            RingError::Forbidden => write!(
                f,
                "a seccomp filter or security module refuses io_uring, as containers do by default; go without: ringshard \
                 serve --io mmsg, or run outside of the container, or with a profile that allows io_uring_setup, io_uring_enter and io_uring_register \
                 (docker run --security-opt seccomp=FILE; systemd: add the three to SystemCallFilter); without a container, \
                 see that /boot/config-* has CONFIG_IO_URING=y"
            ),
            RingError::TooOld { kernel } => {
                write!(f, "this kernel ({kernel}) lacks the io_uring that ringshard needs; install Linux 6.1 or newer")
            }
            RingError::NoMemory { step } => write!(
                f,
                "no memory to {step}: raise the locked-memory limit (ulimit -l unlimited; systemd: \
                 LimitMEMLOCK=infinity), or give the machine or control group more memory"
            ),
            RingError::NoDescriptors => {
                write!(f, "too many open files: raise the limit (ulimit -n 65536; systemd: LimitNOFILE=65536)")
            }
            RingError::Deaf => write!(
                f,
                "an io_uring ring was made, but a datagram on 127.0.0.1 did not come through it; is the loopback \
                 interface up (sudo ip link set lo up), does a firewall drop UDP on it?"
            ),
            RingError::Other { step, error } => write!(f, "io_uring: cannot {step}: {error}"),
        }
    }
}

impl std::error::Error for RingError {}

impl RingError {
    /// What the kernel's refusal of a step means here and now.
    pub(super) fn of(step: &'static str, error: io::Error) -> RingError {
        let level = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
        let level = level.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        RingError::from_parts(step, error, level, kernel_release())
    }

    fn from_parts(step: &'static str, error: io::Error, level: u8, kernel: String) -> RingError {
        match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) if level > 0 => RingError::Disabled { level },
            Some(libc::ENOSYS | libc::EINVAL) if is_older_than_baseline(&kernel) => RingError::TooOld { kernel },
            Some(libc::EPERM | libc::EACCES | libc::ENOSYS) => RingError::Forbidden,
            Some(libc::ENOMEM) => RingError::NoMemory { step },
            Some(libc::EMFILE | libc::ENFILE) => RingError::NoDescriptors,
            _ => RingError::Other { step, error },
        }
    }
}

/// What `uname -r` says, or a question mark.
fn kernel_release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").map_or("?".into(), |text| text.trim().into())
}

/// Whether a release such as `5.15.0-91-generic` is before Linux 6.1; one that cannot be read is not.
fn is_older_than_baseline(release: &str) -> bool {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit()).map_while(|part| part.parse::<u32>().ok());
    matches!((numbers.next(), numbers.next()), (Some(major), Some(minor)) if (major, minor) < (6, 1))
}

/// What a health check needs to know about io_uring.
#[derive(Debug)]
pub struct RingProbe {
    /// What `uname -r` says.
    pub kernel: String,
    /// What a ring on this kernel can do, or why there is none.
    pub outcome: Result<RingFeatures, RingError>,
}

/// Makes a small ring, sends a datagram through it over 127.0.0.1, and takes it down again.
pub fn probe() -> RingProbe {
    RingProbe { kernel: kernel_release(), outcome: try_ring() }
}

fn try_ring() -> Result<RingFeatures, RingError> {
    let failed = |step| move |error| RingError::Other { step, error };
    let socket = UdpSocket::bind("127.0.0.1:0").map_err(failed("bind a socket on 127.0.0.1"))?;
    let address = socket.local_addr().map_err(failed("read a socket's address"))?;
    let mut config = PacketConfig::new(vec![Lane { number: 0, socket: socket.into(), served: true }], None);
    (config.submissions, config.completions, config.buffers) = (8, 16, 8);
    let mut ring = PacketRing::new(config)?;
    if round_trip(&mut ring, address) { Ok(ring.features()) } else { Err(RingError::Deaf) }
}

/// Whether two datagrams that the ring sends to itself come back by one lasting receive.
fn round_trip(ring: &mut PacketRing, address: SocketAddr) -> bool {
    for text in [b"ring", b"back"] {
        ring.send_datagram(0, address, |space| {
            space[..4].copy_from_slice(text);
            4
        });
    }
    ring.submit();
    let mut received = 0;
    // Loopback delivers during the send; the further drains are for a busy machine.
    for _ in 0..1_000 {
        ring.drain(0, |event| {
            received += usize::from(matches!(event, Event::Datagram { bytes, .. } if bytes.len() == 4))
        });
        if received == 2 {
            break;
        }
        std::thread::yield_now();
    }
    received == 2 && ring.counters().rearms == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_names_its_cause_and_its_mend() {
        let cases = [
            (libc::EPERM, 2, "6.18.1", "sysctl -w kernel.io_uring_disabled=0"),
            (libc::EPERM, 0, "6.18.1", "seccomp"),
            (libc::ENOSYS, 0, "6.18.1", "seccomp"),
            (libc::ENOSYS, 0, "4.19.0-26-amd64", "(4.19.0-26-amd64) lacks"),
            (libc::EINVAL, 0, "6.0.19", "install Linux 6.1 or newer"),
            (libc::EINVAL, 0, "6.1.0-18-amd64", "cannot make a ring: Invalid argument"),
            (libc::ENOMEM, 0, "6.18.1", "LimitMEMLOCK=infinity"),
            (libc::EMFILE, 0, "6.18.1", "LimitNOFILE"),
            (libc::EIO, 0, "?", "cannot make a ring: "),
        ];
        for (errno, level, kernel, wanted) in cases {
            let error = io::Error::from_raw_os_error(errno);
            let text = RingError::from_parts("make a ring", error, level, kernel.into()).to_string();
            assert!(text.contains(wanted), "errno {errno} on {kernel}: {text}");
        }
    }

    #[test]
    fn this_kernel_gives_a_ring() {
        let found = probe();
        assert!(found.kernel.starts_with(|first: char| first.is_ascii_digit()), "{}", found.kernel);
        assert!(found.outcome.is_ok(), "{}", found.outcome.unwrap_err());
    }
}
