//! What a client runs on top of a transport: it makes the bodies that it sends and takes those it receives.
//!
//! Owns the commands that the server has not applied, the reliable channels, the newest own state and the [`View`].
//! Promises: every command that the server did not name as applied goes into every body, up to the limit; an event is
//! handed out once however often it comes; a body that comes after a newer one counts as lost. Never decides what a
//! client does, and never moves an entity itself.

pub mod view;

use crate::acks::{Arrival, SentPacket};
use crate::body::{BodyError, BodyReader, BodyWriter, FLAG_PACKED, PONG_MARKER, Section, kind};
use crate::channel::{ChannelFull, ChannelKind, Receipt};
use crate::client::view::{Errors, View};
use crate::generated::structs;
use crate::ids::EntityId;
use crate::limits::{
    CLIENT_BODY_BYTES_MAX, CLIENT_INBOX_MAX, COMMANDS_PER_BODY_MAX, COMMANDS_REMEMBERED_MAX, EVENTS_REMEMBERED_MAX,
};
use crate::messages::{Request, ServerMessage, Stream, Welcome};
use crate::reliable::Reliable;
use std::collections::VecDeque;

/// How a client plays.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClientOptions {
    /// Ask for packed slices rather than plain ones.
    pub packed: bool,
    /// Keep a view; false passes over slices, for clients that only make load.
    pub decode: bool,
    /// TCP or WebSocket.
    pub reliable_transport: bool,
}

/// A command under way.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct SentCommand {
    /// Client tick.
    pub tick: u32,
    /// What was wanted.
    pub command: structs::Command,
    /// When it was to be sent, nanoseconds of the caller's clock.
    pub intended_ns: u64,
}

/// What a received body brought.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct BodySummary {
    /// The snapshot's tick, low 32 bits.
    pub tick: u32,
    /// It came after a newer body, or again: nothing was taken from it.
    pub late: bool,
    /// It brought a newer own state.
    pub own_state: bool,
    /// Pongs.
    pub pongs: u32,
    /// Updates of slices that were taken.
    pub slices: u32,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct ClientSession {
    options: ClientOptions,
    reliable: Reliable,
    view: View,
    welcome: Option<Welcome>,
    own_state: Option<structs::OwnState>,
    commands: VecDeque<SentCommand>,
    next_tick: u32,
    /// Number of the next request of the stream `World`.
    next_number: u64,
    events_known: VecDeque<structs::Event>,
    events: VecDeque<structs::Event>,
    messages: VecDeque<ServerMessage>,
    malformed: u64,
}

impl ClientSession {
    /// A session whose transport is connected.
    pub fn new(options: ClientOptions) -> ClientSession {
        ClientSession {
            options,
            reliable: Reliable::new(options.reliable_transport),
            view: View::default(),
            welcome: None,
            own_state: None,
            commands: VecDeque::with_capacity(COMMANDS_REMEMBERED_MAX),
            next_tick: 1,
            next_number: 1,
            events_known: VecDeque::new(),
            events: VecDeque::new(),
            messages: VecDeque::new(),
            malformed: 0,
        }
    }

    /// Begins with another packet sequence than 0, before anything was sent: the simulator starts near the wrap.
    pub fn start_at(&mut self, sequence: u16) {
        self.reliable.start_at(sequence);
    }

    /// Lets client ticks pass for which there will be no commands, and forgets those that the server did not name yet.
    pub fn skip_ticks(&mut self, ticks: u32) {
        self.commands.clear();
        self.next_tick = self.next_tick.wrapping_add(ticks);
    }

    /// Client ticks that the newest command is ahead of the newest that the server named.
    pub fn ticks_ahead(&self) -> u32 {
        self.next_tick.wrapping_sub(1).wrapping_sub(self.own_state.map_or(0, |own| own.applied()))
    }

    /// Adds the command of the next client tick, to go with the next bodies. `intended_ns`: when it was to be sent.
    /// Where [`COMMANDS_REMEMBERED_MAX`] are under way the oldest is forgotten.
    pub fn push_command(&mut self, command: structs::Command, intended_ns: u64) -> u32 {
        if self.commands.len() == COMMANDS_REMEMBERED_MAX {
            self.commands.pop_front();
        }
        let tick = self.next_tick;
        // On the wire 0 stands for "the next tick", so no tick has that number.
        self.next_tick = tick.wrapping_add(1).max(1);
        self.commands.push_back(SentCommand { tick, command, intended_ns });
        tick
    }

    /// The oldest remembered command that own state names as applied, once each; to be called after each body until
    /// `None`. A tick that is missing was forgotten: nobody knows whether the server applied it.
    pub fn pop_applied(&mut self) -> Option<SentCommand> {
        let applied = self.own_state?.applied();
        self.commands.front().filter(|sent| is_applied(sent.tick, applied))?;
        self.commands.pop_front()
    }

    /// Sends a request of the stream `World`; returns its number.
    pub fn request(&mut self, request: Request) -> Result<u64, ChannelFull> {
        assert_eq!(request.stream(), Stream::World, "orders have numbers of their own");
        let number = self.next_number;
        self.send(request.encode(number))?;
        self.next_number += 1;
        Ok(number)
    }

    /// Sends an order with its number, which its character's client remembers over its sessions.
    pub fn order(&mut self, number: u64, request: Request) -> Result<(), ChannelFull> {
        assert_eq!(request.stream(), Stream::Goods, "other streams are numbered here");
        self.send(request.encode(number))
    }

    /// Sends any bytes as a message, for clients that try what they must not.
    pub fn send(&mut self, message: Vec<u8>) -> Result<(), ChannelFull> {
        self.reliable.send(ChannelKind::Ordered, message)
    }

    /// Writes the next body and returns its length. `now_tick` is the caller's own count of 1/60 s. Pings beyond what
    /// fits are left out.
    pub fn poll_body(&mut self, now_tick: u32, pings: usize, out: &mut [u8]) -> usize {
        let budget = if self.options.reliable_transport { out.len() } else { out.len().min(CLIENT_BODY_BYTES_MAX) };
        let stamp = self.reliable.stamp();
        let flags = stamp.flags | if self.options.packed { FLAG_PACKED } else { 0 };
        let header = structs::ClientHeader::new(stamp.ack_bits, stamp.sequence, stamp.ack, flags, 0);
        let mut writer = BodyWriter::client(&mut out[..budget], header);
        let applied = self.own_state.map_or(0, |own| own.applied());
        let fits = (writer.remaining().saturating_sub(8) / 8).min(COMMANDS_PER_BODY_MAX);
        let first = self.commands.partition_point(|sent| is_applied(sent.tick, applied));
        let first = first.max(self.commands.len().saturating_sub(fits));
        if let Some(oldest) = self.commands.get(first) {
            // What comes after the ticks wrapped around goes with the next body.
            let follows = |&(sent, n): &(&SentCommand, u32)| sent.tick == oldest.tick.wrapping_add(n);
            let count = self.commands.range(first..).zip(0..).take_while(follows).count();
            writer.commands(oldest.tick, self.commands.range(first..first + count).map(|sent| sent.command));
        }
        let mut packet = SentPacket::new(now_tick);
        self.reliable.write(now_tick, &mut writer, &mut packet);
        for _ in 0..pings {
            writer.section(kind::PING, &[]);
        }
        self.reliable.record(packet, |_, _| {});
        writer.finish()
    }

    /// Takes a body from the server. On error nothing was taken.
    pub fn handle_body(&mut self, body: &[u8]) -> Result<BodySummary, BodyError> {
        let (header, sections) = BodyReader::server(body)?;
        let mut summary = BodySummary { tick: header.tick(), ..BodySummary::default() };
        if self.reliable.arrival(header.sequence()) != Arrival::Newest {
            summary.late = true;
            return Ok(summary);
        }
        let known = self.reliable.handle_acks(header.flags(), header.ack(), header.ack_bits(), |_, _| {});
        self.malformed += u64::from(!known);
        let mut full = false;
        for section in sections {
            match section.kind {
                kind::RELIABLE_ORDERED => full |= self.handle_fragment(ChannelKind::Ordered, section),
                kind::RELIABLE_UNORDERED => full |= self.handle_fragment(ChannelKind::Unordered, section),
                kind::OWN_STATE => summary.own_state |= self.handle_own_state(section.bytes),
                kind::EVENTS if self.options.decode => self.handle_events(section.bytes),
                kind::PONG => summary.pongs += u32::from(section.bytes == PONG_MARKER),
                _ if self.options.decode => {
                    summary.slices += u32::from(self.view.section(header.tick(), section.kind, section.bytes));
                }
                _ => {}
            }
        }
        self.view.end_body(header.tick());
        if !full {
            self.reliable.accept(header.sequence());
        }
        self.take_messages();
        Ok(summary)
    }

    /// The next message from the server. The Welcome is also kept.
    pub fn poll_message(&mut self) -> Option<ServerMessage> {
        self.messages.pop_front()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<structs::Event> {
        self.events.pop_front()
    }

    /// Once it arrived.
    pub fn welcome(&self) -> Option<&Welcome> {
        self.welcome.as_ref()
    }

    /// The newest one.
    pub fn own_state(&self) -> Option<&structs::OwnState> {
        self.own_state.as_ref()
    }

    /// What the client sees.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Looks for what never leaves; to be called about once a second, see [`View::check`].
    pub fn check_view(&mut self, now_tick: u32) {
        if let (Some(own), Some(welcome)) = (self.own_state, &self.welcome) {
            let grid = |fine: i32| fine >> crate::units::FINE_SHIFT;
            self.view.check(now_tick, grid(own.x()), grid(own.y()), welcome.enter_radius_m, welcome.leave_radius_m);
        }
    }

    /// Contradictions so far, those of the view and malformed sections.
    pub fn errors(&self) -> Errors {
        let errors = self.view.errors();
        Errors { other: errors.other + self.malformed, ..errors }
    }

    /// True: there was no room for it.
    fn handle_fragment(&mut self, channel: ChannelKind, section: Section) -> bool {
        let receipt = self.reliable.handle_fragment(channel, section.bytes);
        self.malformed += u64::from(receipt.is_err());
        receipt == Ok(Receipt::Full)
    }

    /// True: it is newer than the one held.
    fn handle_own_state(&mut self, bytes: &[u8]) -> bool {
        let Ok(bytes) = bytes.try_into() else {
            self.malformed += 1;
            return false;
        };
        let own = structs::OwnState(bytes);
        if self.own_state.is_some_and(|held| own.tick().wrapping_sub(held.tick()) as i32 <= 0) {
            return false;
        }
        self.own_state = Some(own);
        self.view.own = EntityId(own.entity());
        if !is_applied(own.applied(), self.next_tick.wrapping_sub(1)) {
            // The character goes on from an earlier session: its next tick is ours.
            self.commands.clear();
            self.next_tick = own.applied().wrapping_add(1);
        }
        true
    }

    fn handle_events(&mut self, bytes: &[u8]) {
        let (events, spare) = bytes.as_chunks();
        self.malformed += u64::from(!spare.is_empty());
        for event in events.iter().map(|bytes| structs::Event(*bytes)) {
            if !self.events_known.contains(&event) {
                push_bounded(&mut self.events_known, event, EVENTS_REMEMBERED_MAX);
                push_bounded(&mut self.events, event, CLIENT_INBOX_MAX);
            }
        }
    }

    fn take_messages(&mut self) {
        for channel in [ChannelKind::Ordered, ChannelKind::Unordered] {
            while let Some(bytes) = self.reliable.poll_message(channel) {
                let Ok(message) = ServerMessage::decode(&bytes) else {
                    self.malformed += 1;
                    continue;
                };
                if let ServerMessage::Welcome(welcome) = &message {
                    self.welcome = Some(welcome.clone());
                    self.view.own = welcome.entity;
                }
                push_bounded(&mut self.messages, message, CLIENT_INBOX_MAX);
            }
        }
    }
}

fn is_applied(tick: u32, applied: u32) -> bool {
    tick.wrapping_sub(applied) as i32 <= 0
}

fn push_bounded<T>(queue: &mut VecDeque<T>, value: T, max: usize) {
    if queue.len() == max {
        queue.pop_front();
    }
    queue.push_back(value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::{Commands, FLAG_ACKS};
    use crate::goods::{Offer, Refusal};
    use crate::limits::BODY_BYTES_MAX;
    use crate::messages::{NumberedRequest, TradeNews, TradeStep};
    use proptest::prelude::*;

    const OPTIONS: ClientOptions = ClientOptions { packed: true, decode: true, reliable_transport: false };

    fn own(tick: u32, applied: u32) -> structs::OwnState {
        structs::OwnState::new(7, 1, 2, 3, 0, tick, applied, 0, 0, 0, 0, 0, 0)
    }

    fn server_body(sequence: u16, tick: u32, sections: &[(u8, &[u8])]) -> Vec<u8> {
        let mut out = [0; BODY_BYTES_MAX];
        let mut writer = BodyWriter::server(&mut out, structs::ServerHeader::new(tick, 0, sequence, 0, 0, 0));
        assert!(sections.iter().all(|(kind, bytes)| writer.section(*kind, bytes)));
        let length = writer.finish();
        out[..length].to_vec()
    }

    fn polled(session: &mut ClientSession) -> (structs::ClientHeader, Option<(u32, Vec<u16>)>) {
        let mut out = [0; BODY_BYTES_MAX];
        let length = session.poll_body(0, 0, &mut out);
        let (header, mut sections) = BodyReader::client(&out[..length]).expect("well formed");
        let section = sections.find(|section| section.kind == kind::COMMANDS);
        let commands = section.map(|section| Commands::read(section.bytes).expect("well formed"));
        (header, commands.map(|commands| (commands.first_tick, commands.iter().map(|c| c.yaw()).collect())))
    }

    fn push(session: &mut ClientSession, count: u16) {
        for _ in 0..count {
            let yaw = session.next_tick as u16;
            session.push_command(structs::Command::new(yaw, 0, 0, 0, 0, 0), u64::from(yaw) * 1_000);
        }
    }

    #[test]
    fn commands_go_out_until_own_state_names_them() {
        let mut session = ClientSession::new(OPTIONS);
        assert_eq!(polled(&mut session).1, None);
        push(&mut session, 3);
        assert_eq!(polled(&mut session).1, Some((1, vec![1, 2, 3])));
        push(&mut session, 1);
        let body = server_body(0, 50, &[(kind::OWN_STATE, &own(50, 2).0)]);
        assert!(session.handle_body(&body).expect("well formed").own_state);
        assert_eq!(polled(&mut session).1, Some((3, vec![3, 4])));
        let applied: Vec<_> = std::iter::from_fn(|| session.pop_applied()).map(|c| (c.tick, c.intended_ns)).collect();
        assert_eq!(applied, [(1, 1_000), (2, 2_000)]);
        let late = server_body(1, 49, &[(kind::OWN_STATE, &own(49, 4).0)]);
        assert!(!session.handle_body(&late).expect("well formed").own_state, "an older own state");
        let (header, _) = polled(&mut session);
        assert_eq!((header.ack(), header.ack_bits(), header.flags()), (1, 1, FLAG_ACKS | FLAG_PACKED));
    }

    #[test]
    fn no_client_tick_is_0_when_they_wrap_around() {
        let mut session = ClientSession::new(OPTIONS);
        let body = server_body(0, 49, &[(kind::OWN_STATE, &own(49, u32::MAX - 2).0)]);
        assert!(session.handle_body(&body).is_ok());
        session.skip_ticks(u32::MAX - 2);
        push(&mut session, 4);
        let ticks = |session: &mut ClientSession| polled(session).1.map(|(first, commands)| (first, commands.len()));
        assert_eq!(ticks(&mut session), Some((u32::MAX - 1, 2)), "those before the wrap");
        let body = server_body(1, 50, &[(kind::OWN_STATE, &own(50, u32::MAX).0)]);
        assert!(session.handle_body(&body).is_ok());
        assert_eq!(ticks(&mut session), Some((1, 2)), "0 would stand for the next tick");
        let body = server_body(2, 51, &[(kind::OWN_STATE, &own(51, 2).0)]);
        assert!(session.handle_body(&body).is_ok());
        assert_eq!(ticks(&mut session), None);
        let applied: Vec<_> = std::iter::from_fn(|| session.pop_applied()).map(|c| c.tick).collect();
        assert_eq!(applied, [u32::MAX - 1, u32::MAX, 1, 2]);
    }

    #[test]
    fn the_newest_commands_go_first_when_the_server_is_silent() {
        let mut session = ClientSession::new(OPTIONS);
        push(&mut session, 50);
        let (first, commands) = polled(&mut session).1.expect("commands");
        assert_eq!((first, commands.len()), (19, COMMANDS_PER_BODY_MAX));
        let mut out = [0; 12 + 4 + 8 + 8 * 3];
        let length = session.poll_body(1, 5, &mut out);
        let (_, mut sections) = BodyReader::client(&out[..length]).expect("well formed");
        let commands = Commands::read(sections.next().expect("one section").bytes).expect("well formed");
        assert_eq!((commands.first_tick, commands.len()), (48, 3), "as many as fit");
        assert!(sections.next().is_none(), "no room for pings");
        assert!(session.handle_body(&server_body(0, 9, &[(kind::OWN_STATE, &own(9, 20).0)])).is_ok());
        let applied: Vec<_> = std::iter::from_fn(|| session.pop_applied()).map(|c| c.tick).collect();
        assert_eq!(applied, [19, 20], "1 to 18 were forgotten, which shows");
    }

    #[test]
    fn client_ticks_go_on_where_an_earlier_session_ended() {
        let mut session = ClientSession::new(OPTIONS);
        push(&mut session, 2);
        assert!(session.handle_body(&server_body(0, 9, &[(kind::OWN_STATE, &own(9, 700).0)])).is_ok());
        assert_eq!(session.pop_applied(), None);
        push(&mut session, 1);
        assert_eq!(polled(&mut session).1, Some((701, vec![701])));
    }

    #[test]
    fn events_and_messages_are_handed_out_once() {
        let mut session = ClientSession::new(OPTIONS);
        let wave = |tick| structs::Event::new(1, 2, tick, 2, 0);
        let result = ServerMessage::Trade(TradeNews {
            step: TradeStep::Asked,
            partner: EntityId(5),
            offer: Offer::default(),
            number: 0,
            refusal: Refusal::Gone,
        });
        let fragment = [&structs::FragmentHeader::new(0, 0, 1).0[..], &result.encode()].concat();
        let sections = [(kind::EVENTS, &wave(5).0[..]), (kind::RELIABLE_ORDERED, &fragment[..])];
        for sequence in 0..3 {
            let pong = (kind::PONG, &PONG_MARKER[..]);
            let body = server_body(sequence, 9, &[sections[0], sections[1], pong, pong]);
            assert_eq!(session.handle_body(&body).expect("well formed").pongs, 2);
            assert!(session.handle_body(&body).expect("well formed").late, "a duplicate brings nothing");
        }
        assert!(session.handle_body(&server_body(3, 9, &[(kind::EVENTS, &wave(6).0)])).is_ok());
        assert_eq!(std::iter::from_fn(|| session.poll_event()).map(|e| e.tick()).collect::<Vec<_>>(), [5, 6]);
        assert_eq!((session.poll_message(), session.poll_message()), (Some(result), None));
        assert_eq!(session.errors(), Errors::default());
    }

    #[test]
    fn requests_are_sent_until_they_arrive() {
        let mut session = ClientSession::new(OPTIONS);
        let requests = [Request::Emote { kind: 4 }, Request::Emote { kind: 5 }];
        assert_eq!(requests.map(|request| session.request(request)), [Ok(1), Ok(2)]);
        let mut out = [0; BODY_BYTES_MAX];
        let length = session.poll_body(0, 0, &mut out);
        let (header, sections) = BodyReader::client(&out[..length]).expect("well formed");
        let got: Vec<_> = sections.map(|s| Request::decode(&s.bytes[4..])).collect();
        let numbered = |number: u64, request| Ok(NumberedRequest { number, request });
        assert_eq!(got, [numbered(1, requests[0]), numbered(2, requests[1])]);
        let mut body = [0; 16];
        let header = structs::ServerHeader::new(1, 0, 0, header.sequence(), FLAG_ACKS, 0);
        let length = BodyWriter::server(&mut body, header).finish();
        assert!(session.handle_body(&body[..length]).is_ok());
        assert!(session.reliable.is_idle());
    }

    #[test]
    fn a_light_client_passes_over_slices() {
        let mut session = ClientSession::new(ClientOptions { decode: false, ..OPTIONS });
        let slice = [&structs::SliceHeader::new(0, 0, 0, 0, 0, 0, 1, 0, 0).0[..], &[1; 16]].concat();
        let summary = session.handle_body(&server_body(0, 9, &[(kind::PLAIN, &slice)])).expect("well formed");
        assert_eq!((summary.slices, session.view().visible(9, 120)), (0, 0));
    }

    proptest! {
        #[test]
        fn any_sections_are_taken_without_panic(
            bodies in proptest::collection::vec(
                proptest::collection::vec((0u8..24, proptest::collection::vec(any::<u8>(), 0..90)), 0..8),
                1..12,
            ),
        ) {
            let mut session = ClientSession::new(OPTIONS);
            push(&mut session, 5);
            for (sequence, sections) in bodies.iter().enumerate() {
                let sections: Vec<_> = sections.iter().map(|(kind, bytes)| (*kind, &bytes[..])).collect();
                prop_assert!(session.handle_body(&server_body(sequence as u16, 9, &sections)).is_ok());
                polled(&mut session);
            }
            while session.pop_applied().is_some() {}
        }
    }
}
