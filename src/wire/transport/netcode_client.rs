//! The client of netcode 1.02: from a connect token to bodies both ways.
//!
//! Owns one connection attempt and then the connection. Promises: the standard's states, rates and timeouts, tries the
//! token's servers in order, seals in place, and is small once connected. Time is an argument, counted from any start.
//! Never sends by itself: poll it, and send what it writes to [`NetcodeClient::server`].

use super::packet::{
    CHALLENGE_TEXT_BYTES, CONTROL_BYTES_MAX, CONTROL_HZ, DISCONNECT_PACKETS, DropReason, Envelope, Opened, PacketKind,
    REQUEST_BYTES, Side,
};
use super::token::{ConnectToken, PRIVATE_BYTES, PROTOCOL_ID, ServerList, TokenError, VERSION};
use std::net::SocketAddr;
use std::time::Duration;

/// Between two requests, responses or keep-alives.
const SEND_EVERY: Duration = Duration::from_millis(1_000 / CONTROL_HZ);

/// Where a client stands. "Invalid connect token" has no state: such a token makes no client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClientState {
    /// The token expired before any server let us in.
    TokenExpired,
    /// The server fell silent while connected.
    TimedOut,
    /// The last server fell silent after its challenge.
    ResponseTimedOut,
    /// The last server never answered.
    RequestTimedOut,
    /// The last server is full.
    Denied,
    /// Ended by either side.
    Disconnected,
    /// Asking a server.
    SendingRequest,
    /// Answering a server's challenge.
    SendingResponse,
    /// Bodies go both ways.
    Connected,
}

/// What is needed only until connected.
#[derive(Debug)]
struct Attempt {
    request: [u8; REQUEST_BYTES],
    challenge: [u8; CHALLENGE_TEXT_BYTES],
    servers: ServerList,
    server_number: usize,
    expires: Duration,
}

/// One client.
#[derive(Debug)]
pub struct NetcodeClient {
    envelope: Envelope,
    state: ClientState,
    attempt: Option<Box<Attempt>>,
    server: SocketAddr,
    timeout: Option<Duration>,
    received: Duration,
    sent: Option<Duration>,
    client_index: u32,
    clients_max: u32,
    disconnects_left: u32,
}

impl NetcodeClient {
    /// A client that asks the token's first server at its first poll.
    ///
    /// Errors: the state "invalid connect token" of the standard.
    pub fn new(token: &[u8], now: Duration) -> Result<NetcodeClient, TokenError> {
        let token = ConnectToken::parse(token)?;
        let lifetime = Duration::from_secs(token.expire_unix_s - token.create_unix_s);
        let attempt = Attempt {
            request: write_request(&token),
            challenge: [0; CHALLENGE_TEXT_BYTES],
            servers: token.servers,
            server_number: 0,
            expires: now.saturating_add(lifetime),
        };
        Ok(NetcodeClient {
            envelope: Envelope::new(Side::Client, &token.client_to_server_key, &token.server_to_client_key),
            state: ClientState::SendingRequest,
            attempt: Some(Box::new(attempt)),
            server: token.servers.as_slice()[0],
            timeout: u64::try_from(token.timeout_s).ok().filter(|&seconds| seconds > 0).map(Duration::from_secs),
            received: now,
            sent: None,
            client_index: 0,
            clients_max: 0,
            disconnects_left: 0,
        })
    }

    /// Where this client stands.
    pub fn state(&self) -> ClientState {
        self.state
    }

    /// The server that is asked or connected: where to send, and the only one to listen to.
    pub fn server(&self) -> SocketAddr {
        self.server
    }

    /// Our place among the server's clients and how many it can have, once connected.
    pub fn place(&self) -> (u32, u32) {
        (self.client_index, self.clients_max)
    }

    /// Takes a datagram from [`NetcodeClient::server`]: a body, or `None` if it was for the client itself.
    ///
    /// Errors: why it changed nothing.
    pub fn handle_datagram<'a>(
        &mut self,
        now: Duration,
        datagram: &'a mut [u8],
    ) -> Result<Option<&'a [u8]>, DropReason> {
        let Opened { kind, text } = self.envelope.open(datagram)?;
        match (kind, self.state) {
            (PacketKind::Body, ClientState::Connected) => {
                self.received = now;
                return Ok(Some(text));
            }
            (PacketKind::KeepAlive, ClientState::Connected) => self.received = now,
            (PacketKind::KeepAlive, ClientState::SendingResponse) => self.become_connected(now, text),
            (PacketKind::Challenge, ClientState::SendingRequest) => self.take_challenge(now, text),
            (PacketKind::Denied, ClientState::SendingRequest | ClientState::SendingResponse) => {
                self.try_next_server(now, ClientState::Denied);
            }
            (PacketKind::Disconnect, ClientState::Connected) => self.end(ClientState::Disconnected),
            _ => return Err(DropReason::State),
        }
        Ok(None)
    }

    /// Writes the next datagram that is due, if any: its length. Call it until `None`, some 60 times a second.
    pub fn poll_datagram(&mut self, now: Duration, out: &mut [u8; REQUEST_BYTES]) -> Option<usize> {
        self.check_time(now);
        if self.disconnects_left > 0 {
            self.disconnects_left -= 1;
            return Some(self.envelope.seal(PacketKind::Disconnect, out, 0));
        }
        if self.sent.is_some_and(|sent| now.saturating_sub(sent) < SEND_EVERY) {
            return None;
        }
        let length = match (self.state, &self.attempt) {
            (ClientState::SendingRequest, Some(attempt)) => {
                *out = attempt.request;
                REQUEST_BYTES
            }
            (ClientState::SendingResponse, Some(attempt)) => {
                let offset = self.envelope.text_offset();
                out[offset..offset + CHALLENGE_TEXT_BYTES].copy_from_slice(&attempt.challenge);
                self.envelope.seal(PacketKind::Response, out, CHALLENGE_TEXT_BYTES)
            }
            (ClientState::Connected, _) => {
                let out = out.first_chunk_mut::<CONTROL_BYTES_MAX>().expect("a request is longer than a keep-alive");
                self.envelope.seal_keep_alive(0, 0, out)
            }
            _ => return None,
        };
        self.sent = Some(now);
        Some(length)
    }

    /// Where the caller writes the next body: so many bytes into the buffer given to [`NetcodeClient::seal_body`].
    pub fn body_offset(&self) -> usize {
        self.envelope.text_offset()
    }

    /// Seals the `body_len` bytes at [`NetcodeClient::body_offset`] in place: the length of the datagram, from 0.
    ///
    /// Panics unless connected, the body has 1 to 1,200 bytes and the buffer 16 more behind it.
    pub fn seal_body(&mut self, now: Duration, buffer: &mut [u8], body_len: usize) -> usize {
        assert_eq!(self.state, ClientState::Connected, "bodies are sent only while connected");
        self.sent = Some(now);
        self.envelope.seal(PacketKind::Body, buffer, body_len)
    }

    /// Ends the connection or the attempt; the next polls write the disconnect packets.
    pub fn disconnect(&mut self) {
        match self.state {
            ClientState::SendingRequest => {}
            // After a response the server may take us for connected.
            ClientState::SendingResponse | ClientState::Connected => self.disconnects_left = DISCONNECT_PACKETS,
            _ => return,
        }
        self.end(ClientState::Disconnected);
    }

    fn check_time(&mut self, now: Duration) {
        if self.attempt.as_ref().is_some_and(|attempt| now >= attempt.expires) {
            return self.end(ClientState::TokenExpired);
        }
        if self.timeout.is_none_or(|timeout| now.saturating_sub(self.received) <= timeout) {
            return;
        }
        match self.state {
            ClientState::SendingRequest => self.try_next_server(now, ClientState::RequestTimedOut),
            ClientState::SendingResponse => self.try_next_server(now, ClientState::ResponseTimedOut),
            ClientState::Connected => self.end(ClientState::TimedOut),
            _ => {}
        }
    }

    fn take_challenge(&mut self, now: Duration, text: &[u8]) {
        let attempt = self.attempt.as_mut().expect("an attempt lasts until connected");
        attempt.challenge.copy_from_slice(text);
        self.state = ClientState::SendingResponse;
        self.received = now;
        self.sent = None;
    }

    fn become_connected(&mut self, now: Duration, text: &[u8]) {
        let number = |at: usize| u32::from_le_bytes([text[at], text[at + 1], text[at + 2], text[at + 3]]);
        (self.client_index, self.clients_max) = (number(0), number(4));
        self.state = ClientState::Connected;
        self.attempt = None;
        self.received = now;
    }

    /// Asks the token's next server, or ends with `failure` if there is none.
    fn try_next_server(&mut self, now: Duration, failure: ClientState) {
        let attempt = self.attempt.as_mut().expect("an attempt lasts until connected");
        attempt.server_number += 1;
        let Some(&server) = attempt.servers.as_slice().get(attempt.server_number) else {
            return self.end(failure);
        };
        self.server = server;
        self.state = ClientState::SendingRequest;
        self.received = now;
        self.sent = None;
        self.envelope.forget_received();
    }

    fn end(&mut self, state: ClientState) {
        self.state = state;
        self.attempt = None;
    }
}

fn write_request(token: &ConnectToken) -> [u8; REQUEST_BYTES] {
    let mut request = [0; REQUEST_BYTES];
    request[1..14].copy_from_slice(VERSION);
    request[14..22].copy_from_slice(&PROTOCOL_ID.to_le_bytes());
    request[22..30].copy_from_slice(&token.expire_unix_s.to_le_bytes());
    request[30..54].copy_from_slice(&token.nonce);
    request[REQUEST_BYTES - PRIVATE_BYTES..].copy_from_slice(&token.sealed);
    request
}

#[cfg(test)]
mod tests {
    use super::super::crypto::PacketKey;
    use super::super::packet::seal_packet;
    use super::super::token::{DEV_KEY, TokenGrant, TokenSecrets, UserData};
    use super::*;
    use proptest::prelude::*;

    const SECRETS: TokenSecrets =
        TokenSecrets { nonce: [3; 24], client_to_server_key: [4; 32], server_to_client_key: [5; 32] };

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    /// A client of a token for so many servers, good for 20 s, with a timeout of 5 s.
    fn client(servers: u16) -> NetcodeClient {
        let servers: Vec<SocketAddr> = (0..servers).map(|n| ([127, 0, 0, 1], 7_777 + n).into()).collect();
        let grant = TokenGrant {
            client_id: 1,
            create_unix_s: 1_000,
            expire_unix_s: 1_020,
            timeout_s: 5,
            servers: &servers,
            user_data: UserData::default(),
        };
        let token = ConnectToken::issue(&grant, &SECRETS, &DEV_KEY).unwrap();
        NetcodeClient::new(&token.write(), ms(0)).unwrap()
    }

    fn from_server(kind: PacketKind, sequence: u64, text: &[u8]) -> Vec<u8> {
        let offset = 1 + super::super::packet::sequence_bytes(sequence);
        let mut datagram = vec![0; offset + text.len() + 16];
        datagram[offset..offset + text.len()].copy_from_slice(text);
        seal_packet(&PacketKey::new(&SECRETS.server_to_client_key), kind, sequence, &mut datagram, text.len());
        datagram
    }

    fn give(client: &mut NetcodeClient, at: Duration, kind: PacketKind, sequence: u64, text: &[u8]) {
        client.handle_datagram(at, &mut from_server(kind, sequence, text)).unwrap();
    }

    fn challenged(client: &mut NetcodeClient, at: Duration) {
        give(client, at, PacketKind::Challenge, 1 << 63, &[9; CHALLENGE_TEXT_BYTES]);
    }

    fn connected() -> NetcodeClient {
        let mut client = client(1);
        challenged(&mut client, ms(0));
        give(&mut client, ms(0), PacketKind::KeepAlive, 0, &[7, 0, 0, 0, 64, 0, 0, 0]);
        client
    }

    fn poll(client: &mut NetcodeClient, at: Duration) -> Option<(u8, usize)> {
        let mut out = [0; REQUEST_BYTES];
        client.poll_datagram(at, &mut out).map(|length| (out[0] & 0x0f, length))
    }

    #[test]
    fn asks_and_answers_ten_times_a_second() {
        let mut client = client(1);
        assert_eq!(poll(&mut client, ms(0)), Some((0, 1_078)));
        assert_eq!(poll(&mut client, ms(99)), None);
        assert_eq!(poll(&mut client, ms(100)), Some((0, 1_078)));
        challenged(&mut client, ms(110));
        assert_eq!(client.state(), ClientState::SendingResponse);
        assert_eq!(poll(&mut client, ms(111)), Some((3, 1 + 1 + 308 + 16)));
        assert_eq!(poll(&mut client, ms(112)), None);
        give(&mut client, ms(130), PacketKind::KeepAlive, 0, &[7, 0, 0, 0, 64, 0, 0, 0]);
        assert_eq!((client.state(), client.place()), (ClientState::Connected, (7, 64)));
        assert_eq!(poll(&mut client, ms(210)), None);
        assert_eq!(poll(&mut client, ms(211)), Some((4, 26)));
    }

    #[test]
    fn bodies_before_connected_are_discarded() {
        let mut client = client(1);
        let mut body = from_server(PacketKind::Body, 3, b"early");
        assert_eq!(client.handle_datagram(ms(1), &mut body), Err(DropReason::State));
        assert_eq!(
            connected().handle_datagram(ms(1), &mut from_server(PacketKind::Body, 3, b"x")),
            Ok(Some(&b"x"[..]))
        );
    }

    #[test]
    fn a_body_sent_stands_for_a_keep_alive() {
        let mut client = connected();
        assert_eq!(poll(&mut client, ms(0)), Some((4, 26)));
        let mut buffer = [0; 100];
        assert_eq!(client.seal_body(ms(90), &mut buffer, 40), client.body_offset() + 40 + 16);
        assert_eq!(poll(&mut client, ms(189)), None);
        assert_eq!(poll(&mut client, ms(190)), Some((4, 26)));
    }

    #[test]
    fn each_silence_has_its_own_end() {
        let mut asking = client(1);
        poll(&mut asking, ms(5_000));
        assert_eq!(asking.state(), ClientState::SendingRequest);
        assert_eq!(poll(&mut asking, ms(5_001)), None);
        assert_eq!(asking.state(), ClientState::RequestTimedOut);

        let mut answering = client(1);
        challenged(&mut answering, ms(1_000));
        poll(&mut answering, ms(6_001));
        assert_eq!(answering.state(), ClientState::ResponseTimedOut);

        let mut playing = connected();
        give(&mut playing, ms(3_000), PacketKind::KeepAlive, 1, &[0; 8]);
        poll(&mut playing, ms(8_000));
        assert_eq!(playing.state(), ClientState::Connected);
        poll(&mut playing, ms(8_001));
        assert_eq!(playing.state(), ClientState::TimedOut);
    }

    #[test]
    fn the_next_server_is_asked_after_silence_or_denial_and_counts_its_own_sequences() {
        let mut client = client(3);
        poll(&mut client, ms(5_001));
        assert_eq!((client.state(), client.server().port()), (ClientState::SendingRequest, 7_778));
        challenged(&mut client, ms(5_002));
        give(&mut client, ms(5_003), PacketKind::Denied, 1 << 63, &[]);
        assert_eq!((client.state(), client.server().port()), (ClientState::SendingRequest, 7_779));
        challenged(&mut client, ms(5_004));
        give(&mut client, ms(5_005), PacketKind::KeepAlive, 0, &[0; 8]);
        assert_eq!(client.state(), ClientState::Connected);
    }

    #[test]
    fn the_last_server_decides_how_an_attempt_failed() {
        let mut client = client(2);
        give(&mut client, ms(1), PacketKind::Denied, 1 << 63, &[]);
        give(&mut client, ms(2), PacketKind::Denied, 1 << 63, &[]);
        assert_eq!((client.state(), poll(&mut client, ms(3))), (ClientState::Denied, None));
    }

    #[test]
    fn the_token_expires_over_all_servers_together() {
        let mut client = client(10);
        for seconds in [6, 12, 18] {
            poll(&mut client, ms(seconds * 1_000));
            assert_eq!(client.state(), ClientState::SendingRequest);
        }
        assert_eq!(poll(&mut client, ms(20_000)), None);
        assert_eq!(client.state(), ClientState::TokenExpired);
        poll(&mut connected(), ms(1_000));
        let mut playing = connected();
        give(&mut playing, ms(19_999), PacketKind::KeepAlive, 1, &[0; 8]);
        poll(&mut playing, ms(20_000));
        assert_eq!(playing.state(), ClientState::Connected, "a connection outlives its token");
    }

    #[test]
    fn leaving_says_so_ten_times() {
        let mut client = connected();
        client.disconnect();
        assert_eq!(client.state(), ClientState::Disconnected);
        let said: Vec<_> = std::iter::from_fn(|| poll(&mut client, ms(1))).collect();
        assert_eq!(said, vec![(6, 18); 10]);
    }

    #[test]
    fn the_server_can_end_it() {
        let mut client = connected();
        give(&mut client, ms(5), PacketKind::Disconnect, 1, &[]);
        assert_eq!((client.state(), poll(&mut client, ms(500))), (ClientState::Disconnected, None));
    }

    #[test]
    fn a_connected_client_is_small() {
        assert!(size_of::<NetcodeClient>() <= 256, "{} bytes", size_of::<NetcodeClient>());
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..1_300), playing: bool) {
            let mut client = if playing { connected() } else { client(1) };
            prop_assert!(client.handle_datagram(ms(1), &mut bytes).is_err());
        }
    }
}
