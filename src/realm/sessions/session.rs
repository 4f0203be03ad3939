//! One session: a connected client between its transport and its entity.
//!
//! Owns the protocol state of one client: acks, reliable channels, interest, budgets, requests under way. Promises:
//! the same for every transport; a body from the peer changes nothing before it was checked; a snapshot leaves in the
//! tick that applied the newest command. Never does I/O and never steps the world.

use std::collections::VecDeque;
use std::mem::offset_of;

use crate::limits::{
    BODIES_PER_TICK_MAX, COMMANDS_PER_TICK_MAX, EARLY_WORDS_MAX, GOODS_MESSAGES_MAX, PINGS_PER_DRAIN_MAX,
    REQUESTS_AHEAD_MAX, REQUESTS_HELD_MAX, REQUESTS_PER_TICK_MAX, RESPONSES_WAITING_MAX, SESSION_BYTES_PER_S_MAX,
    TICK_HZ, TICKS_AT_ONCE_MAX,
};
use crate::sessions::interest::{Carried, Interest, Pace, Radii, Scratch};
use crate::wire::acks::{Arrival, Fate, SentPacket};
use crate::wire::body::{BodyError, BodyReader, BodyWriter, Commands, FLAG_PACKED, PONG_MARKER, Section, kind};
use crate::wire::channel::{ChannelKind, Receipt};
use crate::wire::flow::Flow;
use crate::wire::generated::structs;
use crate::wire::generated::tables::{self, Close, Refusal};
use crate::wire::goods::GoodsNews;
use crate::wire::ids::{EntityId, SessionRef, ShardId};
use crate::wire::messages::{GoodsRequest, NumberedRequest, Request, RequestError, Response, ServerMessage, Stream};
use crate::wire::prefetch::prefetch;
use crate::wire::reliable::Reliable;
use crate::wire::units::FINE_SHIFT;
use crate::world::effect::Word;
use crate::world::events::write_events;
use crate::world::frame::{Frame, Frames};
use crate::world::movement::Command;
use crate::world::parcel::{Input, InputKind, InputParcel, Told};

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
    /// More pings than one drain answers: those beyond are not answered, and nothing else of the body is dropped.
    PingsOver,
    /// Commands before the entity stands in the world: nothing else of the body is dropped.
    TooEarly,
    /// More bodies than are taken in a tick: only its commands count, in the place of those before.
    BodiesOver,
    /// More commands of constant frames than are taken in a tick.
    CommandsOver,
}

impl BodyDrop {
    /// Number of reasons.
    pub const COUNT: usize = 9;

    /// Label of each reason's counter, by [`BodyDrop::index`].
    pub const NAMES: [&'static str; BodyDrop::COUNT] = [
        "body_malformed",
        "body_repeated",
        "message_bad",
        "ack_bad",
        "channel_full",
        "pings_over",
        "too_early",
        "bodies_over",
        "commands_refused",
    ];

    /// Place in tables of counters.
    pub fn index(self) -> usize {
        self as usize
    }
}

/// Bodies of a session that are taken after so many ticks.
fn bodies_max(ticks: u64) -> u32 {
    BODIES_PER_TICK_MAX * ticks.clamp(1, TICKS_AT_ONCE_MAX) as u32
}

impl From<BodyError> for BodyDrop {
    fn from(_: BodyError) -> BodyDrop {
        BodyDrop::Malformed
    }
}

/// What a session heard too late to mean anything. It changes nothing; the simulator looks whether its runs met it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Outdated {
    /// Own states older than one that was heard, from parcels that were late.
    pub own_states: u64,
    /// Acknowledged keyframes of an epoch that is over, or of a slice that is followed no longer.
    pub keyframes: u64,
}

impl Outdated {
    /// Adds what another one counted.
    pub fn absorb(&mut self, other: Outdated) {
        self.own_states += other.own_states;
        self.keyframes += other.keyframes;
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
    /// Says which older frames of silent shards are among them; 0: none.
    pub stale: u32,
    /// How far clients see.
    pub radii: Radii,
    /// How often far things are shown.
    pub pace: Pace,
    /// How much each session may send.
    pub rates: Rates,
}

/// What arrived for the tick that is to come.
#[derive(Clone, Copy, Debug, Default)]
struct TickShare {
    /// Tick before the one that it is for, low 32 bits.
    after_tick: u32,
    bodies: u32,
    /// Commands of constant frames.
    commands: u8,
    /// Where the commands of the newest body lie, the owner's parcel and the place in it, and the client tick of the last one.
    input: Option<(ShardId, u32, u32)>,
}

/// The requests of one stream.
#[derive(Clone, Debug, Default)]
struct RequestStream {
    /// Those that the entity did not take yet, oldest first.
    waiting: VecDeque<NumberedRequest>,
    /// Ordinal of the newest one of them, or of those before.
    ordinal: u16,
    /// Number of the newest one.
    number: u64,
}

impl RequestStream {
    /// Whether a request may have this number; then it is used up.
    fn uses_up(&mut self, number: u64) -> bool {
        let fits = number > self.number && number - self.number <= REQUESTS_AHEAD_MAX;
        if fits {
            self.number = number;
        }
        fits
    }

    /// Lets go of those that the entity took, up to this ordinal.
    fn forget(&mut self, taken: u16) {
        let left = usize::from(self.ordinal.wrapping_sub(taken)).min(self.waiting.len());
        self.waiting.drain(..self.waiting.len() - left);
    }
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
    /// Low 32 bits.
    budget_tick: u32,
    pings: u32,
    shown_tick: u64,
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
    /// [`Sight::stale`] of the tick that it showed last.
    shown_stale: u32,
    share: TickShare,
    streams: [RequestStream; Stream::COUNT],
    reliable: Reliable,
    interest: Interest,
    /// When it looked last for packets that nobody acknowledged.
    expired_tick: u64,
    /// Its byte budget.
    pub flow: Flow,
    /// What its client must still hear of its goods.
    goods: GoodsNews,
    /// Words that it heard of its entity, wrapping.
    words: u32,
    /// Later ones, by number: those before them come from a shard that is late.
    early_words: Vec<(u32, Word)>,
    outdated: Outdated,
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
            share: TickShare::default(),
            streams: Default::default(),
            pings: 0,
            budget: BUDGET_MAX,
            budget_tick: 0,
            expired_tick: 0,
            flow: Flow::new(SESSION_BYTES_PER_S_MAX),
            applied_sent: 0,
            shown_tick: 0,
            shown_stale: 0,
            goods: GoodsNews::default(),
            words: 0,
            early_words: Vec::new(),
            outdated: Outdated::default(),
            closing: None,
        }
    }

    /// Begins with another packet sequence than 0, before anything was sent.
    pub fn start_at(&mut self, sequence: u16) {
        self.reliable.start_at(sequence);
    }

    /// What it heard too late to mean anything, since somebody asked.
    pub fn take_outdated(&mut self) -> Outdated {
        let keyframes = std::mem::take(&mut self.interest.old_keyframes);
        Outdated { keyframes, ..std::mem::take(&mut self.outdated) }
    }

    /// The client's entity, once it stands in the world.
    pub fn entity(&self) -> Option<EntityId> {
        self.told.map(|told| EntityId(told.state.entity()))
    }

    /// Who steps the client's entity in the next tick.
    pub fn owner(&self) -> Option<ShardId> {
        self.told.map(|told| told.next_owner)
    }

    /// Takes a body from the peer after the tick `after_tick`, `ticks` of which may have passed since. Commands go into the
    /// input parcel of the entity's owner, one of `inputs` by shard. `drop` hears what of the body was not taken, although
    /// the rest was. A body that does not parse, or of which a section would be refused by itself, has changed nothing; of
    /// two sections that contradict each other the first is taken.
    pub fn handle_body(
        &mut self,
        body: &[u8],
        (after_tick, ticks): (u64, u64),
        inputs: &mut [InputParcel],
        mut drop: impl FnMut(BodyDrop),
    ) -> Result<(), BodyDrop> {
        self.prefetch_lists();
        let (header, sections) = BodyReader::client(body)?;
        match self.reliable.arrival(header.sequence()) {
            // A constant frame repeats its sequence for ever; over a reliable transport nothing can come twice.
            _ if self.reliable_transport => (),
            Arrival::Seen => return Err(BodyDrop::Repeated),
            _ => (),
        }
        sections.clone().try_for_each(|section| self.check_section(&section))?;
        let share = self.share_of(after_tick);
        share.bodies += 1;
        if share.bodies > bodies_max(ticks) {
            // The newest body has all commands that the entity did not apply, so none that counts is lost.
            sections.filter(|section| section.kind == kind::COMMANDS).for_each(|section| {
                self.take_commands(section.bytes, inputs, &mut drop);
            });
            return Err(BodyDrop::BodiesOver);
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
        let mut full = false;
        for section in sections {
            full |= self.take_section(&section, inputs, &mut drop)? == Receipt::Full;
        }
        if full {
            return Err(BodyDrop::ChannelFull);
        }
        self.reliable.accept(header.sequence());
        if known { Ok(()) } else { Err(BodyDrop::BadAck) }
    }

    /// What was taken for the tick after `after_tick`.
    fn share_of(&mut self, after_tick: u64) -> &mut TickShare {
        let after_tick = after_tick as u32;
        if self.share.after_tick != after_tick {
            self.share = TickShare { after_tick, ..TickShare::default() };
        }
        &mut self.share
    }

    /// Whether a stream is read on: the tick has room for a body, and the channels for all that it may carry. Who is told to
    /// go is read to the end.
    pub fn has_room(&self, (after_tick, ticks): (u64, u64)) -> bool {
        let bodies = if self.share.after_tick == after_tick as u32 { self.share.bodies } else { 0 };
        self.closing.is_some() || (bodies < bodies_max(ticks) && self.reliable.has_room())
    }

    /// Whether a section is well formed, as far as that can be told without taking it.
    fn check_section(&self, section: &Section<'_>) -> Result<(), BodyDrop> {
        match section.kind {
            kind::COMMANDS => Commands::read(section.bytes).map(|_| ())?,
            kind::RELIABLE_ORDERED => self.check_fragment(ChannelKind::Ordered, section.bytes)?,
            kind::RELIABLE_UNORDERED => self.check_fragment(ChannelKind::Unordered, section.bytes)?,
            _ => (),
        }
        Ok(())
    }

    fn check_fragment(&self, channel: ChannelKind, bytes: &[u8]) -> Result<(), BodyDrop> {
        self.reliable.check_fragment(channel, bytes).map_err(|_| BodyDrop::BadMessage)
    }

    fn take_section(
        &mut self,
        section: &Section<'_>,
        inputs: &mut [InputParcel],
        drop: &mut impl FnMut(BodyDrop),
    ) -> Result<Receipt, BodyDrop> {
        match section.kind {
            kind::COMMANDS => self.take_commands(section.bytes, inputs, drop),
            kind::PING if self.pings < PINGS_PER_DRAIN_MAX => self.pings += 1,
            kind::PING => drop(BodyDrop::PingsOver),
            kind::RELIABLE_ORDERED => return self.take_fragment(ChannelKind::Ordered, section.bytes),
            kind::RELIABLE_UNORDERED => return self.take_fragment(ChannelKind::Unordered, section.bytes),
            _ => (),
        }
        Ok(Receipt::Accepted)
    }

    fn take_fragment(&mut self, channel: ChannelKind, bytes: &[u8]) -> Result<Receipt, BodyDrop> {
        self.reliable.handle_fragment(channel, bytes).map_err(|_| BodyDrop::BadMessage)
    }

    /// Takes commands that were checked. Those of a newer body stand in the place of those that came before it in this tick.
    fn take_commands(&mut self, bytes: &[u8], inputs: &mut [InputParcel], drop: &mut impl FnMut(BodyDrop)) {
        let commands = Commands::read(bytes).expect("the section was checked");
        let Some(told) = self.told.filter(|_| self.closing.is_none()) else {
            drop(BodyDrop::TooEarly);
            return;
        };
        // What the entity already applied need not travel again.
        let applied = told.state.applied();
        let old = match commands.first_tick {
            0 => 0,
            first => (applied.wrapping_sub(first).wrapping_add(1) as i32).max(0) as usize,
        };
        if old >= commands.len() {
            return;
        }
        let first_tick = if commands.first_tick == 0 { 0 } else { commands.first_tick.wrapping_add(old as u32) };
        let wanted = commands.iter().skip(old).map(|command| Command {
            yaw: command.yaw(),
            forward: command.forward(),
            right: command.right(),
            buttons: command.buttons(),
        });
        let (entity, owner) = (EntityId(told.state.entity()), told.next_owner);
        let parcel = &mut inputs[owner.index()];
        if first_tick == 0 {
            let room = usize::from(COMMANDS_PER_TICK_MAX - self.share.commands);
            if commands.len() > room {
                drop(BodyDrop::CommandsOver);
            }
            let count = commands.len().min(room);
            self.share.commands += count as u8;
            parcel.push_commands(entity, self.reference, 0, wanted.take(count));
            return;
        }
        let last_tick = commands.first_tick.wrapping_add(commands.len() as u32 - 1);
        let place = match self.share.input {
            // A body that others overtook has nothing that they have not.
            Some((.., before)) if last_tick.wrapping_sub(before) as i32 <= 0 => return,
            Some((before, place, _)) if before == owner => {
                parcel.replace_commands(place as usize, first_tick, wanted);
                place
            }
            _ => {
                parcel.push_commands(entity, self.reference, first_tick, wanted);
                parcel.inputs.len() as u32 - 1
            }
        };
        self.share.input = Some((owner, place, last_tick));
    }

    /// Takes the requests that came, a bounded number in a tick.
    fn take_requests(&mut self) {
        for _ in 0..REQUESTS_PER_TICK_MAX {
            // Each is answered, and who keeps the bounds must never be cut for the answers.
            if self.room_for_responses() == 0 {
                break;
            }
            let ordered = self.reliable.poll_message(ChannelKind::Ordered);
            let Some(bytes) = ordered.or_else(|| self.reliable.poll_message(ChannelKind::Unordered)) else { break };
            match Request::decode(&bytes) {
                Ok(request) => self.take_request(request),
                Err(RequestError::Refused { stream, number, refusal }) => {
                    self.streams.iter_mut().zip([Stream::World, Stream::Goods]).for_each(|(own, name)| {
                        // The request after it has the next number.
                        let _ = name.wire() == stream && own.uses_up(number);
                    });
                    self.refuse(stream, number, refusal);
                }
                Err(RequestError::Nameless) => self.close(Close::Protocol),
            }
        }
    }

    /// Answers more that its client would hear of soon. Those of orders are news, in order.
    fn room_for_responses(&self) -> usize {
        let waiting = self.reliable.unordered_waiting().max(self.reliable.ordered_waiting());
        RESPONSES_WAITING_MAX.saturating_sub(waiting)
    }

    fn take_request(&mut self, numbered: NumberedRequest) {
        let NumberedRequest { number, request } = numbered;
        let name = request.stream();
        let stream = &mut self.streams[name.index()];
        let is_next = match (name, request) {
            (Stream::World, _) => number == stream.number.wrapping_add(1),
            // An order that was given before gets its answer again, and who asks for one gives none.
            (Stream::Goods, Request::Goods(GoodsRequest::Recall)) => true,
            (Stream::Goods, _) => number <= stream.number || number - stream.number <= REQUESTS_AHEAD_MAX,
        };
        if !matches!(request, Request::Goods(GoodsRequest::Recall)) {
            stream.uses_up(number);
        }
        if !is_next {
            self.refuse(name.wire(), number, Refusal::OutOfOrder);
        } else if stream.waiting.len() == REQUESTS_HELD_MAX {
            self.refuse(name.wire(), number, Refusal::Full);
        } else {
            stream.ordinal = stream.ordinal.wrapping_add(1);
            stream.waiting.push_back(numbered);
        }
    }

    /// Tells its client that nothing was done. A client that reads no answers is cut as slow.
    fn refuse(&mut self, stream: tables::Stream, number: u64, refusal: Refusal) {
        let response = Response { stream, number, refusal, durable: false, thing: None };
        if self.reliable.send(ChannelKind::Unordered, ServerMessage::Response(response).encode()).is_err() {
            self.close(Close::Slow);
        }
    }

    /// It moves to another shard: the parcels that it wrote into stay.
    pub fn leave_parcels(&mut self) {
        self.share.input = None;
    }

    /// Its character's newest order that the ledger answered: its client counts on from there.
    pub fn count_orders_from(&mut self, order: u64) {
        self.streams[Stream::Goods.index()].number = order;
    }

    /// Whether requests wait, for it or for its entity.
    pub fn is_asking(&self) -> bool {
        self.reliable.has_messages() || self.streams.iter().any(|stream| !stream.waiting.is_empty())
    }

    /// Before the input parcels of a tick leave, while it is asking: requests that the entity did not take yet.
    pub fn pass_requests(&mut self, inputs: &mut [InputParcel]) {
        let Some(told) = self.told.filter(|_| self.closing.is_none()) else { return };
        self.take_requests();
        let given_max = self.room_for_responses().min(REQUESTS_PER_TICK_MAX);
        for (stream, taken) in self.streams.iter_mut().zip(told.taken) {
            stream.forget(taken);
            let oldest = stream.ordinal.wrapping_sub(stream.waiting.len() as u16);
            // Of a stream whose requests wait for each other the next one is enough; the entity takes the others then.
            let given = stream.waiting.iter().take(given_max);
            for (ordinal, &NumberedRequest { number, request }) in (1..).zip(given) {
                let kind = InputKind::Request { ordinal: oldest.wrapping_add(ordinal), number, request };
                let entity = EntityId(told.state.entity());
                inputs[told.next_owner.index()].inputs.push(Input { entity, session: self.reference, kind });
            }
        }
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
        self.outdated.own_states += u64::from(!first && tick < self.told_tick);
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

    /// Hears what its entity has to say in private, and passes on what is next. False: the peer is to be cut as slow.
    #[must_use]
    pub fn hear_word(&mut self, number: u32, word: Word) -> bool {
        if number != self.words {
            let ahead = |number: u32| number.wrapping_sub(self.words);
            let place = self.early_words.partition_point(|&(early, _)| ahead(early) < ahead(number));
            self.early_words.insert(place, (number, word));
            return self.early_words.len() <= EARLY_WORDS_MAX;
        }
        self.words = number.wrapping_add(1);
        let mut kept = self.tell_word(word);
        while kept && self.early_words.first().is_some_and(|&(number, _)| number == self.words) {
            let (number, word) = self.early_words.remove(0);
            self.words = number.wrapping_add(1);
            kept = self.tell_word(word);
        }
        kept
    }

    fn tell_word(&mut self, word: Word) -> bool {
        match word {
            Word::Answer { stream, number, refusal } => {
                let response = Response { stream: stream.wire(), number, refusal, durable: false, thing: None };
                self.reliable.send(ChannelKind::Unordered, ServerMessage::Response(response).encode()).is_ok()
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
        let ticks = (tick as u32).wrapping_sub(self.budget_tick).min(BUDGET_MAX);
        (self.budget + ticks * (send_hz * SEND_COST / TICK_HZ as u32)).min(BUDGET_MAX)
    }

    /// Lets the time up to a tick pass: the budgets grow, what was not acknowledged for long is lost, news waits for room.
    fn pass_to(&mut self, tick: u64, rates: Rates) {
        self.give_goods();
        (self.budget, self.budget_tick) = (self.budget_at(tick, rates.send_hz), tick as u32);
        if !self.reliable_transport && tick >= self.expired_tick + u64::from(LOST_TICKS) {
            self.expired_tick = tick;
            self.reliable.expire(tick as u32, LOST_TICKS, |_, _| ());
        }
        self.flow.pass_to(tick, rates.bytes_per_s);
        self.flow.hear(self.reliable.take_fates());
    }

    /// Whether it may show a tick: none before those that it showed, wherever that was, and that one again only as it was: a
    /// client takes all bodies of a tick for one picture.
    pub fn may_show(&self, tick: u64, stale: u32) -> bool {
        tick > self.shown_tick || (tick == self.shown_tick && stale == self.shown_stale)
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
            structs::ServerHeader::new(sight.tick as u32, stamp.ack_bits, stamp.sequence, stamp.ack, stamp.flags, 0);
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
        let (seen, place) = ((after, sight.tick), (from, told.home.space));
        scratch.events_unsent += write_events(sight.frames, seen, place, sight.radii.enter, body);
        (self.shown_tick, self.shown_stale) = (sight.tick, sight.stale);
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

#[cfg(test)]
mod tests;
