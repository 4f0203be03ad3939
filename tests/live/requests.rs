//! Requests over real streams: as many as a client likes, none lost.

use std::time::{Duration, Instant};

use ringshard::limits::BODY_BYTES_MAX;
use ringshard::wire::client::{ClientOptions, ClientSession};
use ringshard::wire::generated::tables::Refusal;
use ringshard::wire::messages::{Request, ServerMessage};
use ringshard::wire::transport::stream::StreamReader;
use ringshard::wire::transport::token::UserData;

use crate::client::{TcpTool, dev_token};
use crate::server::{Server, TempFolder};

/// A client by TCP that plays.
struct Streamer {
    tool: TcpTool,
    session: ClientSession,
    reader: StreamReader,
    answers: Vec<(u64, Refusal)>,
}

impl Streamer {
    fn join(server: &Server) -> Streamer {
        let mut tool = TcpTool::open(server.game);
        tool.send_frame(&dev_token(server.game, 1, 3_600, UserData::default()));
        let options = ClientOptions { packed: true, decode: false, reliable_transport: true };
        let (session, reader) = (ClientSession::new(options), StreamReader::of_server());
        let mut streamer = Streamer { tool, session, reader, answers: Vec::new() };
        streamer.until(|streamer| streamer.session.welcome().is_some());
        streamer
    }

    /// Sends what waits and takes what comes, until something holds.
    fn until(&mut self, holds: impl Fn(&Streamer) -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !holds(self) {
            assert!(Instant::now() < end, "{} answers", self.answers.len());
            self.send();
            assert!(!self.tool.read_available(), "the server closed");
            let Streamer { tool, session, reader, answers } = self;
            let received = std::mem::take(&mut tool.received);
            let fed = reader.feed(&received, |body| {
                session.handle_body(body).expect("a body of ours");
                true
            });
            fed.expect("frames of ours");
            while let Some(message) = session.poll_message() {
                if let ServerMessage::Response(response) = message {
                    answers.push((response.number, response.refusal));
                }
            }
        }
    }

    fn send(&mut self) {
        let mut body = [0; BODY_BYTES_MAX];
        let length = self.session.poll_body(0, 0, &mut body);
        self.tool.send_frame(&body[..length]);
    }

    /// Sends many bodies at once, as they come together after the server stood still. Each is made longer by a section that
    /// no server knows.
    fn burst(&mut self, bytes: usize) {
        const SECTION_BYTES: usize = 256;
        let mut section = [0; SECTION_BYTES];
        section[0] = 200;
        section[2..4].copy_from_slice(&(SECTION_BYTES as u16 - 4).to_le_bytes());
        for _ in 0..bytes / SECTION_BYTES {
            let mut body = [0; BODY_BYTES_MAX];
            let length = self.session.poll_body(0, 0, &mut body[..BODY_BYTES_MAX - SECTION_BYTES]);
            body[length..length + SECTION_BYTES].copy_from_slice(&section);
            self.tool.send_frame(&body[..length + SECTION_BYTES]);
        }
    }
}

/// Three hundred requests in one breath behind bodies of some seconds, and every one of them is answered: what the server does not take in a tick waits,
/// and then waits on our side.
fn all_are_answered(io: &str) {
    const REQUESTS: u64 = 300;
    let data = TempFolder::new();
    let server = Server::start(&data, &["--shards", "1", "--io", io]);
    let mut streamer = Streamer::join(&server);
    streamer.burst(160 * 1_024);
    for _ in 0..REQUESTS {
        while streamer.session.request(Request::Emote { kind: 1 }).is_err() {
            streamer.send();
        }
    }
    streamer.until(|streamer| streamer.answers.len() as u64 >= REQUESTS);
    let mut numbers: Vec<u64> = streamer.answers.iter().map(|(number, _)| *number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=REQUESTS).collect::<Vec<_>>(), "each once");
    let drops = &server.status()["shards"][0]["drops"];
    assert!(drops["streams_paused"].as_u64() > Some(0), "it was not read on for a while: {drops}");
    assert_eq!(drops["channel_full"], 0, "{drops}");
}

#[test]
fn requests_in_one_breath_are_all_answered_by_the_ring() {
    all_are_answered("ring");
}

#[test]
fn requests_in_one_breath_are_all_answered_without_a_ring() {
    all_are_answered("mmsg");
}
