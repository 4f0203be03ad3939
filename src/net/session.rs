//! One session: a connected client between its transport and its entity.
//!
//! Owns the protocol state of one client: acks, reliable channels, interest, budgets, actions under way. Promises:
//! the same for every transport; a body from the peer changes nothing before it was checked; a snapshot leaves in the
//! tick that applied the newest command. Never does I/O and never steps the world.

use std::collections::VecDeque;
use std::mem::offset_of;

use crate::goods::GoodsNews;
use crate::ids::{EntityId, FINE_SHIFT, SessionRef, ShardId};
use crate::limits::{ACTIONS_HELD_MAX, GOODS_MESSAGES_MAX, PINGS_PER_DRAIN_MAX, SESSION_BYTES_PER_S_MAX, TICK_HZ};
use crate::net::acks::{Arrival, Fate, SentPacket};
use crate::net::body::{BodyError, BodyReader, BodyWriter, Commands, FLAG_PACKED, PONG_MARKER, Section, kind};
use crate::net::channel::{ChannelKind, Receipt};
use crate::net::flow::Flow;
use crate::net::interest::{Carried, Interest, Pace, Radii, Scratch, write_events};
use crate::net::message::{ClientMessage, ServerMessage};
use crate::net::messages::Close;
use crate::net::reliable::Reliable;
use crate::net::wire;
use crate::sys::prefetch;
use crate::world::effect::Word;
use crate::world::frame::{Frame, Frames};
use crate::world::movement::Command;
use crate::world::parcel::{Input, InputKind, InputParcel, Told, TradeWish};

/// Ticks of silence from the peer's acks after which a packet counts as lost.
const LOST_TICKS: u32 = 60;
/// One whole send, in the units of the send budget.
const SEND_COST: u32 = 60;
/// The send budget that a session can save: two sends.
const BUDGET_MAX: u32 = 2 * SEND_COST;

/// Bytes at the beginning of a session that every tick needs.
const PULSE_BYTES: usize = 128;
const _: () = assert!(offset_of!(Session, reference) <= PULSE_BYTES, "what every tick needs stands before the name");

/// Why a body was dropped; a label of a counter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BodyDrop {
    /// Header, section or commands do not parse.
    Malformed,
    /// Came before; changes nothing.
    Repeated,
    /// A fragment or message that no client of ours sends.
    BadMessage,
    /// Acknowledges what was never sent, or so long ago that nothing is known of it; only its ack fields are dropped.
    BadAck,
    /// The reliable channel is full; the body is not acknowledged and comes again.
    ChannelFull,
    /// More pings than one drain answers.
    PingsOver,
    /// Commands before the entity stands in the world.
    TooEarly,
}

impl BodyDrop {
    /// Number of reasons.
    pub const COUNT: usize = 7;

    /// Label of each reason's counter, by [`BodyDrop::index`].
    pub const NAMES: [&'static str; BodyDrop::COUNT] =
        ["body_malformed", "body_repeated", "message_bad", "ack_bad", "channel_full", "pings_over", "too_early"];

    /// Place in tables of counters.
    pub fn index(self) -> usize {
        self as usize
    }
}

impl From<BodyError> for BodyDrop {
    fn from(_: BodyError) -> BodyDrop {
        BodyDrop::Malformed
    }
}

/// How much a session may send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rates {
    /// Snapshots a second.
    pub send_hz: u32,
    /// Bytes a second, as far as its packets arrive.
    pub bytes_per_s: u32,
}

/// What every session of a shard needs to know to send.
#[derive(Clone, Copy)]
pub struct Sight<'a> {
    /// All frames.
    pub frames: &'a Frames,
    /// The frames of the tick that snapshots are built from, in order of shards.
    pub shown: &'a [&'a Frame],
    /// That tick.
    pub tick: u64,
    /// How far clients see.
    pub radii: Radii,
    /// How often far things are shown.
    pub pace: Pace,
    /// How much each session may send.
    pub rates: Rates,
}

/// A client's reliable message that its entity did not name yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Action {
    number: u16,
    message: ClientMessage,
}

/// One connected client. What every tick asks of every session stands together at the beginning: all sessions together
/// are larger than a core's caches.
#[repr(C, align(64))]
pub struct Session {
    /// The last that was heard of its entity.
    pub told: Option<Told>,
    /// Tick of `told`; 0 before the first.
    pub told_tick: u64,
    /// When it was heard last: the tick before, and in the low 32 bits its place among those of its lane.
    pub turn: u64,
    /// The send budget as it was at the tick `budget_tick`.
    budget: u32,
    applied_sent: u32,
    budget_tick: u64,
    shown_tick: u64,
    pings: usize,
    closing: Option<Close>,
    /// Which shard told it.
    pub told_by: ShardId,
    reliable_transport: bool,
    packed: bool,
    greeted: bool,
    /// Its name.
    pub reference: SessionRef,
    /// Who connected.
    pub client_id: u64,
    actions: VecDeque<Action>,
    /// Number of the newest action that came.
    action: u16,
    reliable: Reliable,
    interest: Interest,
    /// When it looked last for packets that nobody acknowledged.
    expired_tick: u64,
    /// Its byte budget.
    pub flow: Flow,
    /// What its client must still hear of its goods.
    goods: GoodsNews,
}

impl Session {
    /// A client that just connected. Over a reliable transport nothing is sent twice.
    pub fn new(reference: SessionRef, client_id: u64, reliable_transport: bool) -> Session {
        Session {
            reference,
            client_id,
            told: None,
            told_tick: 0,
            turn: 0,
            told_by: ShardId::default(),
            reliable_transport,
            packed: false,
            greeted: false,
            reliable: Reliable::new(reliable_transport),
            interest: Interest::default(),
            actions: VecDeque::new(),
            action: 0,
            pings: 0,
            budget: BUDGET_MAX,
            budget_tick: 0,
            expired_tick: 0,
            flow: Flow::new(SESSION_BYTES_PER_S_MAX),
            applied_sent: 0,
            shown_tick: 0,
            goods: GoodsNews::default(),
            closing: None,
        }
    }

    /// The client's entity, once it stands in the world.
    pub fn entity(&self) -> Option<EntityId> {
        self.told.map(|told| EntityId(told.state.entity()))
    }

    /// Who steps the client's entity in the next tick.
    pub fn owner(&self) -> Option<ShardId> {
        self.told.map(|told| told.next_owner)
    }

    /// Takes a body from the peer. Commands go into the input parcel of the entity's owner, one of `inputs` by shard.
    pub fn handle_body(&mut self, body: &[u8], inputs: &mut [InputParcel]) -> Result<(), BodyDrop> {
        self.prefetch_lists();
        let (header, sections) = BodyReader::client(body)?;
        match self.reliable.arrival(header.sequence()) {
            // A constant frame repeats its sequence for ever; over a reliable transport nothing can come twice.
            _ if self.reliable_transport => (),
            Arrival::Seen => return Err(BodyDrop::Repeated),
            _ => (),
        }
        let interest = &mut self.interest;
        let known = self.reliable.handle_acks(header.flags(), header.ack(), header.ack_bits(), |fate, bits| {
            if fate == Fate::Arrived {
                interest.arrived(Carried::from_bits(bits));
            }
        });
        if !self.greeted {
            self.packed = header.flags() & FLAG_PACKED != 0;
        }
        let (mut full, mut fragments) = (false, false);
        for section in sections {
            fragments |= matches!(section.kind, kind::RELIABLE_ORDERED | kind::RELIABLE_UNORDERED);
            full |= self.handle_section(&section, inputs)? == Receipt::Full;
        }
        if full {
            return Err(BodyDrop::ChannelFull);
        }
        self.reliable.accept(header.sequence());
        if fragments {
            self.take_messages()?;
        }
        if known { Ok(()) } else { Err(BodyDrop::BadAck) }
    }

    fn handle_section(&mut self, section: &Section<'_>, inputs: &mut [InputParcel]) -> Result<Receipt, BodyDrop> {
        match section.kind {
            kind::COMMANDS => self.handle_commands(section.bytes, inputs)?,
            kind::PING if self.pings < PINGS_PER_DRAIN_MAX => self.pings += 1,
            kind::PING => return Err(BodyDrop::PingsOver),
            kind::RELIABLE_ORDERED => return self.handle_fragment(ChannelKind::Ordered, section.bytes),
            kind::RELIABLE_UNORDERED => return self.handle_fragment(ChannelKind::Unordered, section.bytes),
            _ => (),
        }
        Ok(Receipt::Accepted)
    }

    fn handle_fragment(&mut self, channel: ChannelKind, bytes: &[u8]) -> Result<Receipt, BodyDrop> {
        self.reliable.handle_fragment(channel, bytes).map_err(|_| BodyDrop::BadMessage)
    }

    fn handle_commands(&mut self, bytes: &[u8], inputs: &mut [InputParcel]) -> Result<(), BodyDrop> {
        let commands = Commands::read(bytes)?;
        let Some(told) = self.told.filter(|_| self.closing.is_none()) else { return Err(BodyDrop::TooEarly) };
        // What the entity already applied need not travel again.
        let applied = told.state.applied();
        let old = match commands.first_tick {
            0 => 0,
            first => (applied.wrapping_sub(first).wrapping_add(1) as i32).max(0) as usize,
        };
        if old < commands.len() {
            let first_tick = if commands.first_tick == 0 { 0 } else { commands.first_tick.wrapping_add(old as u32) };
            let wanted = commands.iter().skip(old).map(|command| Command {
                yaw: command.yaw(),
                forward: command.forward(),
                right: command.right(),
                buttons: command.buttons(),
            });
            let entity = EntityId(told.state.entity());
            inputs[told.next_owner.index()].push_commands(entity, self.reference, first_tick, wanted);
        }
        Ok(())
    }

    fn take_messages(&mut self) -> Result<(), BodyDrop> {
        for channel in [ChannelKind::Ordered, ChannelKind::Unordered] {
            while self.actions.len() < ACTIONS_HELD_MAX {
                let Some(bytes) = self.reliable.poll_message(channel) else { break };
                let (number, message) = ClientMessage::decode(&bytes).map_err(|_| BodyDrop::BadMessage)?;
                // Actions are numbered in order, so a repeat or a gap is not one of ours.
                if number != self.action.wrapping_add(1) {
                    return Err(BodyDrop::BadMessage);
                }
                self.action = number;
                self.actions.push_back(Action { number, message });
            }
        }
        Ok(())
    }

    /// Whether actions wait for its entity to name them.
    pub fn is_acting(&self) -> bool {
        !self.actions.is_empty()
    }

    /// Before the input parcels of a tick leave, while it is acting: actions that the entity did not name yet.
    pub fn give_actions(&mut self, inputs: &mut [InputParcel]) {
        let Some(told) = self.told.filter(|_| self.closing.is_none()) else { return };
        let done = told.state.action();
        self.actions.retain(|action| (action.number.wrapping_sub(done) as i16) > 0);
        for &Action { number, message } in &self.actions {
            let kind = match message {
                ClientMessage::Emote { kind } => InputKind::Emote { number, emote: kind },
                ClientMessage::WaveAt { target } => InputKind::WaveAt { number, target },
                ClientMessage::Goods { operation, wish } => InputKind::Goods { number, operation, wish },
                ClientMessage::TradeAsk { target } => InputKind::Trade { number, wish: TradeWish::Ask { target } },
                ClientMessage::TradeOffer { offer } => InputKind::Trade { number, wish: TradeWish::Offer { offer } },
                ClientMessage::TradeConfirm { operation, offer } => {
                    InputKind::Trade { number, wish: TradeWish::Confirm { operation, offer } }
                }
                ClientMessage::TradeCancel => InputKind::Trade { number, wish: TradeWish::Cancel },
            };
            let entity = EntityId(told.state.entity());
            inputs[told.next_owner.index()].inputs.push(Input { entity, session: self.reference, kind });
        }
        // What found no place among them may have one now.
        let _ = self.take_messages();
    }

    /// Asks for the memory that every tick needs of it.
    #[inline]
    pub fn prefetch_pulse(&self) {
        prefetch(self, PULSE_BYTES);
    }

    /// Asks for the memory that its next body needs of it.
    pub fn prefetch(&self) {
        prefetch(self, size_of::<Session>());
    }

    /// And for what lies elsewhere, once that came.
    pub fn prefetch_lists(&self) {
        self.interest.prefetch();
        self.reliable.prefetch();
    }

    /// Hears from its entity's owner; true for the first time.
    pub fn hear(&mut self, told: Told, by: ShardId, tick: u64) -> bool {
        let first = self.told.is_none();
        if tick > self.told_tick {
            (self.told, self.told_by, self.told_tick) = (Some(told), by, tick);
        }
        first
    }

    /// Sends its first message. False: the peer is to be cut as slow.
    #[must_use]
    pub fn greet(&mut self, welcome: &ServerMessage) -> bool {
        self.greeted = true;
        self.reliable.send(ChannelKind::Ordered, welcome.encode()).is_ok()
    }

    /// Hears what its entity has to say in private. False: the peer is to be cut as slow.
    #[must_use]
    pub fn hear_word(&mut self, word: Word) -> bool {
        match word {
            Word::Action { action, refusal } => {
                let message = ServerMessage::ActionResult { action, refusal };
                self.reliable.send(ChannelKind::Unordered, message.encode()).is_ok()
            }
            Word::Operation { operation, refusal } => {
                self.tell(&ServerMessage::OperationResult { operation, refusal, thing: None })
            }
            Word::Trade(news) => self.tell(&ServerMessage::Trade(news)),
        }
    }

    /// Tells its client something, after all that it was told before. False: the peer is to be cut as slow.
    #[must_use]
    pub fn tell(&mut self, message: &ServerMessage) -> bool {
        self.reliable.send(ChannelKind::Ordered, message.encode()).is_ok()
    }

    /// Tells its client of its goods when it was greeted and has heard most of what it was told before; until then news
    /// is added up, so that any amount of it is bounded by what the client has.
    pub fn tell_goods(&mut self, news: GoodsNews) {
        self.goods.absorb(news);
        self.give_goods();
    }

    fn give_goods(&mut self) {
        while !self.goods.is_empty() && self.greeted && self.reliable.ordered_waiting() < GOODS_MESSAGES_MAX {
            let part = self.goods.take_part();
            let told = self.tell(&ServerMessage::Goods(part));
            assert!(told, "a channel of few messages has room for a part");
        }
    }

    /// Refuses everything further and tells why.
    pub fn close(&mut self, reason: Close) {
        if self.closing.is_none() {
            self.closing = Some(reason);
            // A channel too full for a farewell changes nothing: the session ends all the same.
            let _ = self.reliable.send(ChannelKind::Ordered, ServerMessage::Closing { reason }.encode());
        }
    }

    /// Why it was closed, if it was.
    pub fn closing(&self) -> Option<Close> {
        self.closing
    }

    fn budget_at(&self, tick: u64, send_hz: u32) -> u32 {
        // More ticks than these fill it at any rate.
        let ticks = tick.saturating_sub(self.budget_tick).min(u64::from(BUDGET_MAX)) as u32;
        (self.budget + ticks * (send_hz * SEND_COST / TICK_HZ as u32)).min(BUDGET_MAX)
    }

    /// Lets the time up to a tick pass: the budgets grow, what was not acknowledged for long is lost, news waits for room.
    fn pass_to(&mut self, tick: u64, rates: Rates) {
        self.give_goods();
        (self.budget, self.budget_tick) = (self.budget_at(tick, rates.send_hz), tick);
        if !self.reliable_transport && tick >= self.expired_tick + u64::from(LOST_TICKS) {
            self.expired_tick = tick;
            self.reliable.expire(tick as u32, LOST_TICKS, |_, _| ());
        }
        self.flow.pass_to(tick, rates.bytes_per_s);
        self.flow.hear(self.reliable.take_fates());
    }

    /// Whether it may show a tick: none before those that it showed, wherever that was.
    pub fn may_show(&self, tick: u64) -> bool {
        tick >= self.shown_tick
    }

    /// Whether a body leaves now: an answer to a ping or a farewell at once; a snapshot when there is news of the
    /// client's commands and budget for it, or when the budget is full.
    pub fn is_due(&self, tick: u64, send_hz: u32) -> bool {
        let news = self.told.is_some_and(|told| told.state.applied() != self.applied_sent);
        self.pings > 0
            || (self.closing.is_some() && !self.reliable.is_idle())
            || (self.told.is_some() && self.budget_at(tick, send_hz) >= if news { SEND_COST } else { BUDGET_MAX })
    }

    /// Writes the next body into `out`; gives back its length.
    pub fn write_body(&mut self, now_tick: u64, sight: &Sight<'_>, scratch: &mut Scratch, out: &mut [u8]) -> usize {
        self.pass_to(now_tick, sight.rates);
        let stamp = self.reliable.stamp();
        let header =
            wire::ServerHeader::new(sight.tick as u32, stamp.ack_bits, stamp.sequence, stamp.ack, stamp.flags, 0);
        let mut body = BodyWriter::server(out, header);
        let mut packet = SentPacket::new(now_tick as u32);
        while self.pings > 0 && body.section(kind::PONG, &PONG_MARKER) {
            self.pings -= 1;
        }
        self.reliable.write(now_tick as u32, &mut body, &mut packet);
        if let Some(told) = self.told.filter(|_| self.closing.is_none() && self.budget >= SEND_COST) {
            self.budget -= SEND_COST;
            self.write_snapshot(&told, sight, scratch, &mut body, &mut packet);
        }
        let (length, interest) = (body.finish(), &mut self.interest);
        let tell = |fate, bits| {
            if fate == Fate::Arrived {
                interest.arrived(Carried::from_bits(bits));
            }
        };
        self.reliable.record(packet, tell);
        self.flow.send(length);
        length
    }

    fn write_snapshot(
        &mut self,
        told: &Told,
        sight: &Sight<'_>,
        scratch: &mut Scratch,
        body: &mut BodyWriter<'_>,
        packet: &mut SentPacket,
    ) {
        body.section(kind::OWN_STATE, &told.state.0);
        self.applied_sent = told.state.applied();
        let from = (told.state.x() >> FINE_SHIFT, told.state.y() >> FINE_SHIFT);
        let after = if self.shown_tick == 0 { sight.tick - 1 } else { self.shown_tick };
        write_events(sight.frames, (after, sight.tick), (from, told.home.space), sight.radii.enter, body);
        self.shown_tick = sight.tick;
        if !self.flow.holds_a_body() {
            return;
        }
        self.interest.look(sight.shown, sight.tick, (from, told.home.space), sight.radii, scratch);
        let reliable = self.reliable_transport;
        let mut at_once = Vec::new();
        let mut note = |carried: Carried| {
            if reliable {
                at_once.push(carried);
            }
            reliable || packet.note(carried.to_bits())
        };
        self.interest.write(sight.shown, (sight.tick, sight.pace, self.packed), scratch, body, &mut note);
        at_once.into_iter().for_each(|carried| self.interest.arrived(carried));
    }
}
