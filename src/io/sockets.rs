//! Sockets: the lanes, the TCP listeners, and what the kernel says about them.
//!
//! Owns nothing after binding. Promises: a port that another process has is an error, never a silent share; buffer
//! sizes are those that the kernel really gave; sockets block, because a ring fails at once on those that do not; a
//! datagram leaves whole or not at all.
#![expect(unsafe_code, reason = "socket2 has no call for forced buffer sizes and for fragmentation")]

use std::fmt;
use std::fs;
use std::io;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};

use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, Type};

use crate::limits::{
    LANE_RECEIVE_BUFFER_BYTES, LANE_SEND_BUFFER_BYTES, TCP_ACCEPT_QUEUE_MAX, TCP_BACKLOG_BYTES_MAX,
    TCP_RECEIVE_BUFFER_BYTES,
};

/// Bytes of the longest socket address, that of IPv6.
pub(super) const ADDRESS_BYTES_MAX: usize = 28;
/// Bytes of an IPv4 socket address.
const ADDRESS_V4_BYTES: usize = 16;
/// Bytes of a UDP header, which a socket filter sees in front of the payload.
const UDP_HEADER_BYTES: u32 = 8;

/// UDP sockets on one address, among which the kernel spreads peers by their address.
#[derive(Debug)]
pub struct Lanes {
    /// In lane order.
    pub sockets: Vec<UdpSocket>,
    /// Where they listen; the port is the real one when 0 was asked.
    pub address: SocketAddr,
    /// Bytes of the smallest receive buffer as the kernel counts them (twice what it was asked, when it agreed).
    pub receive_buffer_bytes: usize,
    /// Bytes of the smallest send buffer, counted likewise.
    pub send_buffer_bytes: usize,
}

/// TCP listeners on one address, among which the kernel spreads peers by their address.
#[derive(Debug)]
pub struct Listeners {
    /// One for each shard.
    pub sockets: Vec<TcpListener>,
    /// Where they listen; the port is the real one when 0 was asked.
    pub address: SocketAddr,
}

/// Why an address could not be bound. The text says what to do.
#[derive(Debug)]
pub enum BindError {
    /// Another socket has the port.
    PortTaken {
        /// The address asked.
        address: SocketAddr,
        /// `UDP` or `TCP`.
        protocol: &'static str,
    },
    /// No interface of this machine has the address.
    NotLocal {
        /// The address asked.
        address: SocketAddr,
    },
    /// This user may not bind the port.
    Permission {
        /// The address asked.
        address: SocketAddr,
    },
    /// Anything else.
    Other {
        /// The address asked.
        address: SocketAddr,
        /// What was tried.
        step: &'static str,
        /// The kernel's answer.
        error: io::Error,
    },
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BindError::PortTaken { address, protocol } => {
                let flag = if *protocol == "UDP" { "u" } else { "t" };
                let port = address.port();
                write!(
                    f,
                    "{protocol} port taken: another process has {address}; find it with `ss -{flag}lnp 'sport = :{port}'` \
                     and stop it, or choose another address with --bind"
                )
            }
            BindError::NotLocal { address } => write!(
                f,
                "no interface of this machine has the address {}; see `ip address`, or use --bind 0.0.0.0:{}",
                address.ip(),
                address.port()
            ),
            BindError::Permission { address } => write!(
                f,
                "this user may not bind {address}; choose a port from 1024 up, or run: \
                 sudo sysctl -w net.ipv4.ip_unprivileged_port_start={}",
                address.port()
            ),
            BindError::Other { address, step, error } => write!(f, "cannot {step} for {address}: {error}"),
        }
    }
}

impl std::error::Error for BindError {}

impl BindError {
    fn new(address: SocketAddr, protocol: &'static str, step: &'static str, error: io::Error) -> BindError {
        match error.raw_os_error() {
            Some(libc::EADDRINUSE) => BindError::PortTaken { address, protocol },
            Some(libc::EADDRNOTAVAIL) => BindError::NotLocal { address },
            Some(libc::EACCES | libc::EPERM) => BindError::Permission { address },
            _ => BindError::Other { address, step, error },
        }
    }
}

/// Binds `count` UDP sockets to one address, with large buffers; port 0 lets the kernel choose one for all.
pub fn bind_lanes(address: SocketAddr, count: usize) -> Result<Lanes, BindError> {
    let failed = |step| move |error| BindError::new(address, "UDP", step, error);
    let address = probe_address(address, Type::DGRAM, Protocol::UDP).map_err(failed("bind a UDP socket"))?;
    let mut lanes =
        Lanes { sockets: Vec::new(), address, receive_buffer_bytes: usize::MAX, send_buffer_bytes: usize::MAX };
    for _ in 0..count {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))
            .map_err(failed("open a UDP socket"))?;
        socket.set_reuse_port(true).map_err(failed("share the UDP port among the lanes"))?;
        refuse_empty_datagrams(&socket).map_err(failed("attach the filter of a lane"))?;
        never_fragment(&socket).map_err(failed("forbid fragments"))?;
        if force_buffer(&socket, libc::SO_RCVBUFFORCE, LANE_RECEIVE_BUFFER_BYTES).is_err() {
            socket.set_recv_buffer_size(LANE_RECEIVE_BUFFER_BYTES).map_err(failed("size the receive buffer"))?;
        }
        if force_buffer(&socket, libc::SO_SNDBUFFORCE, LANE_SEND_BUFFER_BYTES).is_err() {
            socket.set_send_buffer_size(LANE_SEND_BUFFER_BYTES).map_err(failed("size the send buffer"))?;
        }
        socket.bind(&address.into()).map_err(failed("bind a UDP socket"))?;
        let receive_bytes = socket.recv_buffer_size().map_err(failed("read the receive buffer's size"))?;
        let send_bytes = socket.send_buffer_size().map_err(failed("read the send buffer's size"))?;
        lanes.receive_buffer_bytes = lanes.receive_buffer_bytes.min(receive_bytes);
        lanes.send_buffer_bytes = lanes.send_buffer_bytes.min(send_bytes);
        lanes.sockets.push(socket.into());
    }
    Ok(lanes)
}

/// Binds `count` TCP listeners to one address; port 0 lets the kernel choose one for all. What they accept inherits
/// that nothing is delayed, and that the kernel holds few bytes: unsent ones, since an old snapshot is worth less than a
/// new one, and unread ones, so that who sends more than its share waits at its own end.
pub fn bind_tcp(address: SocketAddr, count: usize) -> Result<Listeners, BindError> {
    let failed = |step| move |error| BindError::new(address, "TCP", step, error);
    let address = probe_address(address, Type::STREAM, Protocol::TCP).map_err(failed("bind a TCP socket"))?;
    let mut listeners = Listeners { sockets: Vec::new(), address };
    for _ in 0..count {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))
            .map_err(failed("open a TCP socket"))?;
        socket.set_reuse_address(true).map_err(failed("reuse the TCP address"))?;
        socket.set_reuse_port(true).map_err(failed("share the TCP port among the shards"))?;
        socket.set_tcp_nodelay(true).map_err(failed("send without delay"))?;
        socket.set_tcp_notsent_lowat(TCP_BACKLOG_BYTES_MAX as u32).map_err(failed("bound unsent bytes"))?;
        socket.bind(&address.into()).map_err(failed("bind a TCP socket"))?;
        socket
            .set_recv_buffer_size(TCP_RECEIVE_BUFFER_BYTES)
            .map_err(failed("size the receive buffer of a TCP socket"))?;
        socket.listen(TCP_ACCEPT_QUEUE_MAX).map_err(failed("listen on a TCP socket"))?;
        listeners.sockets.push(socket.into());
    }
    Ok(listeners)
}

/// Binds the address once without sharing it, which fails when anyone has it, and says its real port. Sockets that share
/// a port would also join those of another server of the same user, and take half of its peers.
fn probe_address(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<SocketAddr> {
    let probe = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if kind == Type::STREAM {
        // Connections of an earlier run that linger in TIME_WAIT do not hold the port; a listener still does.
        probe.set_reuse_address(true)?;
    }
    probe.bind(&address.into())?;
    let bound = probe.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
    Ok(SocketAddr::new(address.ip(), bound.port()))
}

/// Asks for a buffer beyond the system's limit, which takes a right that many processes lack.
fn force_buffer(socket: &Socket, option: libc::c_int, bytes: usize) -> io::Result<()> {
    let bytes = libc::c_int::try_from(bytes).expect("a socket buffer is below 2 GiB");
    set_option(socket, libc::SOL_SOCKET, option, bytes)
}

fn set_option(socket: &impl AsRawFd, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let length = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the descriptor is open, and the option's value is an int that lives through the call.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Forbids fragments of what a UDP socket sends, here and on the way: the game's datagrams fit every link, and packets that
/// cannot be split need no number that names their fragments, which saves the kernel a part of each send. Of the kernel's
/// modes this is the one that heeds the interface alone: reports of routers can be forged, and would silence a peer. A
/// datagram that the interface does not carry is refused (EMSGSIZE).
pub fn never_fragment(socket: &(impl AsRawFd + AsFd)) -> io::Result<()> {
    if SockRef::from(socket).domain()? == Domain::IPV6 {
        set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)?;
    }
    // An IPv6 socket may have IPv4 peers.
    set_option(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)
}

/// Lets the kernel drop datagrams without payload: each would end a lane's lasting receive, so a cheap stream of them
/// could hold a lane at a few datagrams a drain. They appear among [`kernel_drops`].
fn refuse_empty_datagrams(socket: &Socket) -> io::Result<()> {
    const LOAD_LENGTH: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_LEN) as u16;
    const JUMP_IF_GREATER: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    socket.attach_filter(&[
        SockFilter::new(LOAD_LENGTH, 0, 0, 0),
        SockFilter::new(JUMP_IF_GREATER, 0, 1, UDP_HEADER_BYTES),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
        SockFilter::new(RETURN, 0, 0, 0),
    ])
}

/// Datagrams that the kernel dropped at the UDP sockets of a local port since they were opened: receive buffer full,
/// wrong checksum, or empty. 0 when the kernel does not say. Opens files: not for a shard's thread.
pub fn kernel_drops(local_port: u16) -> u64 {
    let tables = ["/proc/net/udp", "/proc/net/udp6"];
    tables.iter().filter_map(|path| fs::read_to_string(path).ok()).map(|table| drops_in(&table, local_port)).sum()
}

/// The sum of the last column over the lines of a local port.
fn drops_in(table: &str, local_port: u16) -> u64 {
    let drops = |line: &str| {
        let (_, port) = line.split_whitespace().nth(1)?.rsplit_once(':')?;
        let found = u16::from_str_radix(port, 16).ok()? == local_port;
        line.split_whitespace().next_back()?.parse::<u64>().ok().filter(|_| found)
    };
    table.lines().skip(1).filter_map(drops).sum()
}

/// Writes an address as the kernel reads it; says how many bytes it takes.
pub(super) fn encode_address(address: SocketAddr, out: &mut [u8]) -> usize {
    match address {
        SocketAddr::V4(v4) => {
            out[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
            out[2..4].copy_from_slice(&v4.port().to_be_bytes());
            out[4..8].copy_from_slice(&v4.ip().octets());
            out[8..ADDRESS_V4_BYTES].fill(0);
            ADDRESS_V4_BYTES
        }
        SocketAddr::V6(v6) => {
            out[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
            out[2..4].copy_from_slice(&v6.port().to_be_bytes());
            out[4..8].copy_from_slice(&v6.flowinfo().to_ne_bytes());
            out[8..24].copy_from_slice(&v6.ip().octets());
            out[24..ADDRESS_BYTES_MAX].copy_from_slice(&v6.scope_id().to_ne_bytes());
            ADDRESS_BYTES_MAX
        }
    }
}

/// Reads an address as the kernel writes it; None for other families.
pub(super) fn decode_address(bytes: &[u8; ADDRESS_BYTES_MAX]) -> Option<SocketAddr> {
    let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let port = u16::from_be_bytes([bytes[2], bytes[3]]);
    match i32::from(u16::from_ne_bytes([bytes[0], bytes[1]])) {
        libc::AF_INET => Some(SocketAddr::from(([bytes[4], bytes[5], bytes[6], bytes[7]], port))),
        libc::AF_INET6 => {
            let ip: [u8; 16] = bytes[8..24].try_into().expect("16 bytes");
            Some(SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::from(ip), port, word(4), word(24))))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loopback() -> SocketAddr {
        "127.0.0.1:0".parse().unwrap()
    }

    #[test]
    fn lanes_share_one_port_and_know_their_buffers() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let lanes = bind_lanes(address.parse().unwrap(), 4).unwrap();
            assert_ne!(lanes.address.port(), 0);
            assert!(lanes.sockets.iter().all(|socket| socket.local_addr().unwrap() == lanes.address));
            let plain = UdpSocket::bind(address).unwrap();
            let plain_bytes = socket2::SockRef::from(&plain).recv_buffer_size().unwrap();
            assert!(lanes.receive_buffer_bytes >= plain_bytes && lanes.receive_buffer_bytes < usize::MAX);
            assert!(lanes.send_buffer_bytes >= plain_bytes && lanes.send_buffer_bytes < usize::MAX);
        }
    }

    fn option(socket: &UdpSocket, level: libc::c_int, option: libc::c_int) -> libc::c_int {
        let (mut value, mut length) = (0, size_of::<libc::c_int>() as libc::socklen_t);
        // SAFETY: the descriptor is open, and `value` and its length are live and writable.
        let result =
            unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, (&raw mut value).cast(), &raw mut length) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        value
    }

    #[test]
    fn lanes_never_fragment() {
        let v4 = (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE);
        let v6 = (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE);
        for (address, options) in [("127.0.0.1:0", &[v4][..]), ("[::1]:0", &[v4, v6])] {
            let lanes = bind_lanes(address.parse().unwrap(), 2).unwrap();
            for &(level, name, wanted) in options {
                assert!(lanes.sockets.iter().all(|socket| option(socket, level, name) == wanted), "{address} {name}");
            }
        }
        // The longest datagram there is, longer than the loopback interface carries with an IPv6 header: refused, not split.
        let lanes = bind_lanes("[::1]:0".parse().unwrap(), 1).unwrap();
        let refused = lanes.sockets[0].send_to(&[0; 65_507], lanes.address).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EMSGSIZE));
    }

    #[test]
    fn a_taken_port_is_an_error_that_says_so() {
        let taken = UdpSocket::bind(loopback()).unwrap();
        let error = bind_lanes(taken.local_addr().unwrap(), 2).unwrap_err();
        assert!(matches!(error, BindError::PortTaken { .. }));
        assert!(error.to_string().starts_with("UDP port taken: another process has 127.0.0.1:"), "{error}");
        // A group that shares its port could be joined; it must not be.
        let lanes = bind_lanes(loopback(), 2).unwrap();
        assert!(matches!(bind_lanes(lanes.address, 2), Err(BindError::PortTaken { .. })));
        let listeners = bind_tcp(loopback(), 2).unwrap();
        let error = bind_tcp(listeners.address, 1).unwrap_err();
        assert!(error.to_string().starts_with("TCP port taken"), "{error}");
    }

    #[test]
    fn accepted_sockets_send_at_once() {
        let listeners = bind_tcp(loopback(), 1).unwrap();
        let _peer = std::net::TcpStream::connect(listeners.address).unwrap();
        assert!(listeners.sockets[0].accept().unwrap().0.nodelay().unwrap());
    }

    #[test]
    fn an_address_of_elsewhere_is_named() {
        let error = bind_lanes("192.0.2.1:0".parse().unwrap(), 1).unwrap_err();
        assert!(matches!(error, BindError::NotLocal { .. }), "{error}");
    }

    #[test]
    fn empty_datagrams_do_not_reach_a_lane_and_are_counted_as_drops() {
        let lanes = bind_lanes(loopback(), 1).unwrap();
        let peer = UdpSocket::bind(loopback()).unwrap();
        for bytes in [&b""[..], b"", b"x"] {
            peer.send_to(bytes, lanes.address).unwrap();
        }
        let mut buffer = [0; 8];
        assert_eq!(lanes.sockets[0].recv(&mut buffer).unwrap(), 1);
        assert_eq!(kernel_drops(lanes.address.port()), 2);
    }

    #[test]
    fn drops_are_summed_over_the_lines_of_a_port() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n \
            11: 0100007F:1E61 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4242 2 0 5\n \
            12: 0100007F:1E61 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4243 2 0 70\n \
            13: 0100007F:1E62 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4244 2 0 900\n";
        assert_eq!(drops_in(table, 7777), 75);
        assert_eq!(drops_in(table, 7778), 900);
        assert_eq!(drops_in(table, 1), 0);
    }

    #[test]
    fn addresses_survive_the_kernels_form() {
        let scoped = SocketAddr::V6(SocketAddrV6::new("fe80::1".parse().unwrap(), 9, 7, 3));
        for address in ["10.1.2.3:65535".parse().unwrap(), "[2001:db8::7]:1".parse().unwrap(), scoped] {
            let mut bytes = [0xff; ADDRESS_BYTES_MAX];
            encode_address(address, &mut bytes);
            assert_eq!(decode_address(&bytes), Some(address));
        }
        assert_eq!(decode_address(&[0xff; ADDRESS_BYTES_MAX]), None);
    }
}
