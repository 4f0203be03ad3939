//! One bot's connection: netcode over a UDP socket of its own, or frames over a TCP connection.
//!
//! Owns the socket. Promises: never blocks; a body goes out at once or is counted; once it ended it says why and stays
//! ended. Never looks into bodies.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use ringshard::io::never_fragment;
use ringshard::limits::{BODY_BYTES_MAX, DATAGRAM_BYTES_MAX};
use ringshard::tools::TIMEOUT_S;
use ringshard::wire::transport::netcode_client::{ClientState, NetcodeClient};
use ringshard::wire::transport::stream::{LENGTH_BYTES, StreamReader, write_frame};
use socket2::{Domain, Protocol, Socket, Type};

/// Bytes that may wait for the server on a TCP connection. Full: the bot's next bodies wait until there is room.
const PENDING_BYTES_MAX: usize = 64 * 1_024;
/// Bytes of one read.
pub const RECEIVE_BYTES: usize = 4 * 1_024;

/// How bots talk to the server.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Transport {
    /// Netcode datagrams.
    Udp,
    /// Frames on a TCP connection.
    Tcp,
}

/// Why a link ended by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// The server is full.
    Denied,
    /// Nobody listens at the address any more.
    NobodyThere,
    /// The server fell silent.
    TimedOut,
    /// The server ended the connection.
    Closed,
    /// What came on a TCP connection are no frames.
    NotOurProtocol,
    /// The kernel refused with this errno.
    Failed(i32),
}

impl End {
    fn of(error: &io::Error) -> End {
        match error.kind() {
            ErrorKind::ConnectionRefused => End::NobodyThere,
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => End::Closed,
            _ => End::Failed(error.raw_os_error().unwrap_or(0)),
        }
    }

    /// In words, for the person who runs the swarm.
    pub fn words(self) -> String {
        match self {
            End::Denied => "the server denied the join: it is full".to_owned(),
            End::NobodyThere => "nobody listens at the address".to_owned(),
            End::TimedOut => format!("the server was silent for {TIMEOUT_S} s"),
            End::Closed => "the server ended the connection".to_owned(),
            End::NotOurProtocol => "what answers does not speak our protocol".to_owned(),
            End::Failed(errno) => io::Error::from_raw_os_error(errno).to_string(),
        }
    }
}

/// Bytes each way, as the sockets' payload.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Traffic {
    /// Received.
    pub bytes_in: u64,
    /// Sent.
    pub bytes_out: u64,
}

enum Wire {
    Udp { socket: UdpSocket, netcode: NetcodeClient },
    Tcp { stream: TcpStream, reader: StreamReader, pending: Vec<u8>, heard: Duration },
}

/// See the module. Times count from the run's start.
pub struct Link {
    wire: Wire,
    end: Option<End>,
    /// So far.
    pub traffic: Traffic,
    /// Datagrams that the kernel had no room for.
    pub sends_blocked: u64,
}

impl Link {
    /// Begins to connect with a token for `server`.
    pub fn open(transport: Transport, server: SocketAddr, token: &[u8], now: Duration) -> io::Result<Link> {
        let wire = match transport {
            Transport::Udp => {
                let socket = UdpSocket::bind(if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
                never_fragment(&socket)?;
                socket.connect(server)?;
                socket.set_nonblocking(true)?;
                let netcode = NetcodeClient::new(token, now).expect("our own token is well formed");
                Wire::Udp { socket, netcode }
            }
            Transport::Tcp => {
                let socket = Socket::new(Domain::for_address(server), Type::STREAM, Some(Protocol::TCP))?;
                socket.set_nonblocking(true)?;
                socket.set_tcp_nodelay(true)?;
                match socket.connect(&server.into()) {
                    Err(error) if error.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {
                        return Err(error);
                    }
                    _ => (),
                }
                let mut pending = vec![0; LENGTH_BYTES + token.len()];
                write_frame(token, &mut pending);
                Wire::Tcp { stream: socket.into(), reader: StreamReader::of_server(), pending, heard: now }
            }
        };
        Ok(Link { wire, end: None, traffic: Traffic::default(), sends_blocked: 0 })
    }

    /// For epoll.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        match &self.wire {
            Wire::Udp { socket, .. } => socket.as_fd(),
            Wire::Tcp { stream, .. } => stream.as_fd(),
        }
    }

    /// Port of its own UDP socket.
    pub fn udp_port(&self) -> Option<u16> {
        match &self.wire {
            Wire::Udp { socket, .. } => socket.local_addr().ok().map(|address| address.port()),
            Wire::Tcp { .. } => None,
        }
    }

    /// Why it ended, if it did.
    pub fn end(&self) -> Option<End> {
        self.end
    }

    /// Whether bodies can go out.
    pub fn is_open(&self) -> bool {
        self.end.is_none()
            && match &self.wire {
                Wire::Udp { netcode, .. } => netcode.state() == ClientState::Connected,
                Wire::Tcp { pending, .. } => pending.len() < PENDING_BYTES_MAX,
            }
    }

    /// Sends what the connection itself has to say, and looks at the time. For every turn, and while connecting after
    /// everything that was received.
    pub fn tend(&mut self, now: Duration) {
        match &mut self.wire {
            Wire::Udp { socket, netcode } => {
                let mut out = [0; DATAGRAM_BYTES_MAX];
                while let (None, Some(length)) = (self.end, netcode.poll_datagram(now, &mut out)) {
                    let sent = socket.send(&out[..length]);
                    note_sent(sent, &mut self.end, &mut self.traffic, &mut self.sends_blocked);
                }
                let ended = match netcode.state() {
                    ClientState::Denied => Some(End::Denied),
                    ClientState::Disconnected => Some(End::Closed),
                    ClientState::SendingRequest | ClientState::SendingResponse | ClientState::Connected => None,
                    _ => Some(End::TimedOut),
                };
                self.end = self.end.or(ended);
            }
            Wire::Tcp { heard, .. } => {
                if now.saturating_sub(*heard) > Duration::from_secs(TIMEOUT_S.unsigned_abs().into()) {
                    self.end = self.end.or(Some(End::TimedOut));
                }
                self.flush();
            }
        }
    }

    /// Sends the body that `write` puts into the buffer, at least [`BODY_BYTES_MAX`] long; only while open.
    pub fn send(&mut self, now: Duration, write: impl FnOnce(&mut [u8]) -> usize) {
        let mut buffer = [0; BODY_BYTES_MAX + 64];
        match &mut self.wire {
            Wire::Udp { socket, netcode } => {
                let offset = netcode.body_offset();
                let length = write(&mut buffer[offset..offset + BODY_BYTES_MAX]);
                let length = netcode.seal_body(now, &mut buffer, length);
                let sent = socket.send(&buffer[..length]);
                note_sent(sent, &mut self.end, &mut self.traffic, &mut self.sends_blocked);
            }
            Wire::Tcp { pending, .. } => {
                let length = write(&mut buffer[LENGTH_BYTES..LENGTH_BYTES + BODY_BYTES_MAX]);
                buffer[..LENGTH_BYTES].copy_from_slice(&(length as u32).to_le_bytes());
                pending.extend_from_slice(&buffer[..LENGTH_BYTES + length]);
                self.flush();
            }
        }
    }

    fn flush(&mut self) {
        let Wire::Tcp { stream, pending, .. } = &mut self.wire else { return };
        while self.end.is_none() && !pending.is_empty() {
            match stream.write(pending) {
                Ok(written) => {
                    self.traffic.bytes_out += written as u64;
                    pending.drain(..written);
                }
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock | ErrorKind::NotConnected => return,
                    ErrorKind::Interrupted => (),
                    _ => self.end = Some(End::of(&error)),
                },
            }
        }
    }

    /// Reads once, into `buffer`: how many bytes, if any.
    pub fn read(&mut self, buffer: &mut [u8]) -> Option<usize> {
        let result = match &mut self.wire {
            Wire::Udp { socket, .. } => socket.recv(buffer),
            Wire::Tcp { stream, .. } => stream.read(buffer),
        };
        match result {
            Ok(length) => {
                self.traffic.bytes_in += length as u64;
                Some(length)
            }
            Err(error) => {
                if !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) {
                    self.end = self.end.or(Some(End::of(&error)));
                }
                None
            }
        }
    }

    /// Takes what was read at `now`, in the order in which it was, and gives every body to `on_body`.
    pub fn take(&mut self, now: Duration, bytes: &mut [u8], mut on_body: impl FnMut(&[u8])) {
        match &mut self.wire {
            Wire::Udp { netcode, .. } => {
                // What does not open is not the server's, or came twice.
                if let Ok(Some(body)) = netcode.handle_datagram(now, bytes) {
                    on_body(body);
                }
                if netcode.state() != ClientState::Connected {
                    self.tend(now);
                }
            }
            Wire::Tcp { reader, heard, .. } => {
                *heard = now;
                let fed = reader.feed(bytes, |body| {
                    on_body(body);
                    true
                });
                if fed.is_err() {
                    self.end = Some(End::NotOurProtocol);
                } else if bytes.is_empty() {
                    self.end = self.end.or(Some(End::Closed));
                }
            }
        }
    }

    /// Says good-bye: netcode's disconnect packets, or the end of the stream.
    pub fn leave(&mut self, now: Duration) {
        match &mut self.wire {
            Wire::Udp { netcode, .. } => {
                netcode.disconnect();
                self.tend(now);
            }
            // A connection that is gone already needs no end.
            Wire::Tcp { stream, .. } => drop(stream.shutdown(std::net::Shutdown::Both)),
        }
    }
}

fn note_sent(sent: io::Result<usize>, end: &mut Option<End>, traffic: &mut Traffic, blocked: &mut u64) {
    match sent {
        Ok(length) => traffic.bytes_out += length as u64,
        Err(error) if error.kind() == ErrorKind::WouldBlock => *blocked += 1,
        Err(error) => *end = end.or(Some(End::of(&error))),
    }
}
