//! The reliable messages of `schemas/messages.fbs` as plain values.
//!
//! Promises: decoding verifies all of a message, within limits that fit these tables and no others, before it reads any;
//! it never panics on any bytes. Never keeps the bytes.

use crate::goods::{Currency, Dropped, GoodsNews, ItemRef, MailNews, Offer, Shelf};
use serde::{Deserialize, Serialize};

use crate::generated::tables;
use crate::ids::EntityId;
use crate::limits::MESSAGE_BYTES_MAX;
use flatbuffers::{FlatBufferBuilder, VerifierOptions};

pub use crate::generated::tables::{Close, Refusal, TradeStep};

/// Enums of the schema are kept as their numbers.
macro_rules! kept_as_number {
    ($($name:ident)*) => {$(
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_u8(self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<$name, D::Error> {
                u8::deserialize(deserializer).map($name)
            }
        }
    )*};
}

kept_as_number!(Refusal TradeStep);

/// Each message is one table and one in its union.
const VERIFIER: VerifierOptions = VerifierOptions {
    max_depth: 2,
    max_tables: 2,
    max_apparent_size: MESSAGE_BYTES_MAX,
    ignore_missing_null_terminator: false,
};
/// Bytes of a version in a Welcome. Longer: the message is malformed.
const VERSION_BYTES_MAX: usize = 64;

/// A message is malformed, or of a kind that this version does not know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MessageError;

/// A stream of requests: each has numbers of its own, and one request under way at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[repr(u8)]
pub enum Stream {
    /// What the world does within its ticks: emotes, waves, words about trades.
    World = 0,
    /// Orders to the ledger, whose numbers name them for ever.
    Goods = 2,
}

impl Stream {
    /// Streams that carry requests.
    pub const COUNT: usize = 2;

    /// Place in tables by stream.
    pub fn index(self) -> usize {
        match self {
            Stream::World => 0,
            Stream::Goods => 1,
        }
    }

    /// Its number on the wire.
    pub fn wire(self) -> tables::Stream {
        tables::Stream(self as u8)
    }
}

/// What a client asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Request {
    /// Do an emote.
    Emote {
        /// Which one.
        kind: u16,
    },
    /// Wave at another entity.
    WaveAt {
        /// At whom.
        target: EntityId,
    },
    /// Do something with goods, once.
    Goods(GoodsRequest),
    /// Ask somebody to trade.
    TradeAsk {
        /// Whom.
        target: EntityId,
    },
    /// Offer this in the open trade.
    TradeOffer {
        /// What.
        offer: Offer,
    },
    /// Agree to both offers.
    TradeConfirm {
        /// Number of the partner's offer.
        offer: u16,
    },
    /// End the trade.
    TradeCancel,
}

/// A request as it travels: with its number, and the stream that it says it is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NumberedRequest {
    /// Its number in the stream of `request`; an order's name.
    pub number: u64,
    /// What is asked for.
    pub request: Request,
}

/// Why bytes are no request that is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RequestError {
    /// Not even stream and number can be read: nobody can be told what was refused.
    Nameless,
    /// The request with this number on this stream of the wire is refused.
    Refused {
        /// As the client wrote it.
        stream: tables::Stream,
        /// As the client wrote it.
        number: u64,
        /// `Unknown`: a kind, or a stream, that this version does not have. `Malformed`: anything else.
        refusal: Refusal,
    },
}

/// What a client wants done with its goods.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum GoodsRequest {
    /// An item to another shelf.
    Move {
        /// Which.
        item: ItemRef,
        /// Where it is.
        from: Shelf,
        /// Where it shall be.
        to: Shelf,
    },
    /// Coins to another shelf.
    MoveCoins {
        /// Which.
        currency: Currency,
        /// How many.
        amount: i64,
        /// Where they are.
        from: Shelf,
        /// Where they shall be.
        to: Shelf,
    },
    /// Something onto the ground.
    Drop {
        /// What.
        what: Dropped,
    },
    /// Something from the ground.
    PickUp {
        /// What.
        thing: EntityId,
    },
    /// An item that shall be no more.
    Destroy {
        /// Which.
        item: ItemRef,
    },
    /// A mail.
    Send {
        /// To whom.
        to: EntityId,
        /// What.
        offer: Offer,
        /// Coins that the receiver pays.
        price: i64,
    },
    /// Take a mail.
    TakeMail {
        /// Which.
        mail: u64,
    },
    /// Send a mail back.
    ReturnMail {
        /// Which.
        mail: u64,
    },
    /// What became of the order with this number?
    Recall,
}

impl Request {
    /// The stream that it travels on.
    pub fn stream(&self) -> Stream {
        match self {
            Request::Goods(_) | Request::TradeConfirm { .. } => Stream::Goods,
            Request::Emote { .. }
            | Request::WaveAt { .. }
            | Request::TradeAsk { .. }
            | Request::TradeOffer { .. }
            | Request::TradeCancel => Stream::World,
        }
    }

    /// The bytes of this request as the `number`-th of its stream.
    pub fn encode(&self, number: u64) -> Vec<u8> {
        let mut builder = FlatBufferBuilder::new();
        let b = &mut builder;
        let (body_type, body) = match *self {
            Request::Emote { kind } => {
                let emote = tables::Emote::create(b, &tables::EmoteArgs { kind });
                (tables::RequestBody::Emote, emote.as_union_value())
            }
            Request::WaveAt { target } => {
                let wave = tables::WaveAt::create(b, &tables::WaveAtArgs { target: target.0 });
                (tables::RequestBody::WaveAt, wave.as_union_value())
            }
            Request::Goods(request) => request.build(b),
            Request::TradeAsk { target } => {
                let ask = tables::TradeAsk::create(b, &tables::TradeAskArgs { target: target.0 });
                (tables::RequestBody::TradeAsk, ask.as_union_value())
            }
            Request::TradeOffer { offer } => {
                let items = build_items(offer.items(), b);
                let args = tables::TradeOfferArgs { coins: offer.coins, items: Some(items) };
                (tables::RequestBody::TradeOffer, tables::TradeOffer::create(b, &args).as_union_value())
            }
            Request::TradeConfirm { offer } => {
                let confirm = tables::TradeConfirm::create(b, &tables::TradeConfirmArgs { offer });
                (tables::RequestBody::TradeConfirm, confirm.as_union_value())
            }
            Request::TradeCancel => {
                let cancel = tables::TradeCancel::create(b, &tables::TradeCancelArgs {});
                (tables::RequestBody::TradeCancel, cancel.as_union_value())
            }
        };
        let args = tables::RequestArgs { stream: self.stream().wire(), number, body_type, body: Some(body) };
        let root = tables::Request::create(&mut builder, &args);
        builder.finish(root, None);
        builder.finished_data().to_vec()
    }

    /// The request in these bytes.
    ///
    /// Errors: what its sender is to be told.
    pub fn decode(bytes: &[u8]) -> Result<NumberedRequest, RequestError> {
        let Ok(root) = flatbuffers::root_with_opts::<tables::Request>(&VERIFIER, bytes) else {
            return Err(head_of(bytes).map_or(RequestError::Nameless, |head| {
                let (stream, number) = (head.stream(), head.number());
                RequestError::Refused { stream, number, refusal: Refusal::Malformed }
            }));
        };
        let (stream, number) = (root.stream(), root.number());
        let refused = |refusal| RequestError::Refused { stream, number, refusal };
        if root.body_type() == tables::RequestBody::NONE || root.body_type().variant_name().is_none() {
            return Err(refused(Refusal::Unknown));
        }
        let request = Request::read(&root).map_err(|MessageError| refused(Refusal::Malformed))?;
        // What travels on another stream than its own is none of that stream's.
        if request.stream().wire() != stream {
            return Err(refused(Refusal::Unknown));
        }
        Ok(NumberedRequest { number, request })
    }

    fn read(root: &tables::Request) -> Result<Request, MessageError> {
        Ok(if let Some(emote) = root.body_as_emote() {
            Request::Emote { kind: emote.kind() }
        } else if let Some(wave) = root.body_as_wave_at() {
            Request::WaveAt { target: EntityId(wave.target()) }
        } else if let Some(ask) = root.body_as_trade_ask() {
            Request::TradeAsk { target: EntityId(ask.target()) }
        } else if let Some(offered) = root.body_as_trade_offer() {
            Request::TradeOffer { offer: read_offer(offered.coins(), offered.items())? }
        } else if let Some(confirm) = root.body_as_trade_confirm() {
            Request::TradeConfirm { offer: confirm.offer() }
        } else if root.body_as_trade_cancel().is_some() {
            Request::TradeCancel
        } else {
            Request::Goods(GoodsRequest::read(root)?)
        })
    }
}

/// Stream and number of a request whose rest cannot be read: the beginning of its table is that of [`tables::RequestHead`].
fn head_of(bytes: &[u8]) -> Option<tables::RequestHead<'_>> {
    flatbuffers::root_with_opts::<tables::RequestHead>(&VERIFIER, bytes).ok()
}

type Union = flatbuffers::WIPOffset<flatbuffers::UnionWIPOffset>;

impl GoodsRequest {
    fn build(self, b: &mut FlatBufferBuilder) -> (tables::RequestBody, Union) {
        match self {
            GoodsRequest::Move { item, from, to } => {
                let (item, from, to) = (wire_item(item), wire_shelf(Some(from)), wire_shelf(Some(to)));
                let args = tables::MoveItemArgs { item: Some(&item), from, to };
                (tables::RequestBody::MoveItem, tables::MoveItem::create(b, &args).as_union_value())
            }
            GoodsRequest::MoveCoins { currency, amount, from, to } => {
                let (from, to) = (wire_shelf(Some(from)), wire_shelf(Some(to)));
                let currency = tables::Currency(currency as u8);
                let args = tables::MoveCoinsArgs { currency, amount, from, to };
                (tables::RequestBody::MoveCoins, tables::MoveCoins::create(b, &args).as_union_value())
            }
            GoodsRequest::Drop { what } => {
                let (item, coins) = match what {
                    Dropped::Item(item) => (Some(wire_item(item)), 0),
                    Dropped::Coins(coins) => (None, coins),
                };
                let args = tables::DropArgs { item: item.as_ref(), coins };
                (tables::RequestBody::Drop, tables::Drop::create(b, &args).as_union_value())
            }
            GoodsRequest::PickUp { thing } => {
                let args = tables::PickUpArgs { thing: thing.0 };
                (tables::RequestBody::PickUp, tables::PickUp::create(b, &args).as_union_value())
            }
            GoodsRequest::Destroy { item } => {
                let args = tables::DestroyArgs { item: Some(&wire_item(item)) };
                (tables::RequestBody::Destroy, tables::Destroy::create(b, &args).as_union_value())
            }
            GoodsRequest::Send { to, offer, price } => {
                let items = Some(build_items(offer.items(), b));
                let args = tables::SendMailArgs { to: to.0, coins: offer.coins, items, price };
                (tables::RequestBody::SendMail, tables::SendMail::create(b, &args).as_union_value())
            }
            GoodsRequest::TakeMail { mail } => {
                let args = tables::TakeMailArgs { mail };
                (tables::RequestBody::TakeMail, tables::TakeMail::create(b, &args).as_union_value())
            }
            GoodsRequest::ReturnMail { mail } => {
                let args = tables::ReturnMailArgs { mail };
                (tables::RequestBody::ReturnMail, tables::ReturnMail::create(b, &args).as_union_value())
            }
            GoodsRequest::Recall => {
                let recall = tables::Recall::create(b, &tables::RecallArgs {});
                (tables::RequestBody::Recall, recall.as_union_value())
            }
        }
    }

    fn read(root: &tables::Request) -> Result<GoodsRequest, MessageError> {
        if let Some(m) = root.body_as_move_item() {
            let (item, from, to) = (read_item(m.item())?, read_shelf(m.from())?, read_shelf(m.to())?);
            return Ok(GoodsRequest::Move { item, from, to });
        }
        if let Some(m) = root.body_as_move_coins() {
            let currency = Currency::of(m.currency().0).ok_or(MessageError)?;
            let (from, to) = (read_shelf(m.from())?, read_shelf(m.to())?);
            return Ok(GoodsRequest::MoveCoins { currency, amount: m.amount(), from, to });
        }
        if let Some(m) = root.body_as_drop() {
            let what = match m.item() {
                Some(item) => Dropped::Item(read_item(Some(item))?),
                None => Dropped::Coins(m.coins()),
            };
            return Ok(GoodsRequest::Drop { what });
        }
        if let Some(m) = root.body_as_pick_up() {
            return Ok(GoodsRequest::PickUp { thing: EntityId(m.thing()) });
        }
        if let Some(m) = root.body_as_destroy() {
            return Ok(GoodsRequest::Destroy { item: read_item(m.item())? });
        }
        if let Some(m) = root.body_as_send_mail() {
            let (to, offer) = (EntityId(m.to()), read_offer(m.coins(), m.items())?);
            return Ok(GoodsRequest::Send { to, offer, price: m.price() });
        }
        if let Some(m) = root.body_as_take_mail() {
            return Ok(GoodsRequest::TakeMail { mail: m.mail() });
        }
        if let Some(m) = root.body_as_return_mail() {
            return Ok(GoodsRequest::ReturnMail { mail: m.mail() });
        }
        root.body_as_recall().ok_or(MessageError)?;
        Ok(GoodsRequest::Recall)
    }
}

fn wire_item(item: ItemRef) -> tables::ItemRef {
    tables::ItemRef::new(item.uid, item.version, 0)
}

fn read_item(item: Option<&tables::ItemRef>) -> Result<ItemRef, MessageError> {
    let item = item.ok_or(MessageError)?;
    Ok(ItemRef { uid: item.uid(), version: item.version() })
}

fn wire_shelf(shelf: Option<Shelf>) -> tables::Shelf {
    tables::Shelf(shelf.map_or(0, |shelf| shelf as u8))
}

fn read_shelf(shelf: tables::Shelf) -> Result<Shelf, MessageError> {
    Shelf::of(shelf.0).ok_or(MessageError)
}

type WireItems<'a> = flatbuffers::WIPOffset<flatbuffers::Vector<'a, tables::ItemRef>>;

fn build_items<'a>(items: &[ItemRef], b: &mut FlatBufferBuilder<'a>) -> WireItems<'a> {
    let items: Vec<_> = items.iter().map(|&item| wire_item(item)).collect();
    b.create_vector(&items)
}

/// More items than an offer holds are malformed.
fn read_offer(coins: i64, items: Option<flatbuffers::Vector<'_, tables::ItemRef>>) -> Result<Offer, MessageError> {
    let items: Vec<ItemRef> = items.iter().flatten().map(|item| read_item(Some(item))).collect::<Result<_, _>>()?;
    Offer::new(coins, &items).ok_or(MessageError)
}

/// A straight piece of the border between two shards, in 1/256 m, on the land.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seam {
    /// West-east of its start.
    pub x0: i32,
    /// South-north of its start.
    pub y0: i32,
    /// West-east of its end.
    pub x1: i32,
    /// South-north of its end.
    pub y1: i32,
}

/// First message of a session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Welcome {
    /// The client's own entity.
    pub entity: EntityId,
    /// From the connect token.
    pub client_id: u64,
    /// Tick of the join.
    pub tick: u64,
    /// Ticks a second.
    pub tick_hz: u16,
    /// Snapshots a second at most.
    pub send_hz: u16,
    /// Seed of the ground.
    pub land_seed: u64,
    /// Side of the land, metres.
    pub land_size_m: u32,
    /// Side of a cell, metres.
    pub cell_size_m: u32,
    /// Slices nearer than this come into view, metres.
    pub enter_radius_m: u32,
    /// Slices farther than this leave, metres.
    pub leave_radius_m: u32,
    /// In development mode, when there is one.
    pub seam: Option<Seam>,
    /// Of the server, at most 64 bytes.
    pub version: String,
    /// Newest order of this character that the ledger answered; 0: none.
    pub order: u64,
}

/// What a server tells.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ServerMessage {
    /// First message of a session.
    Welcome(Welcome),
    /// What became of a request.
    Response(Response),
    /// The session ends now.
    Closing {
        /// Why.
        reason: Close,
    },
    /// What the client has, or what changed of it.
    Goods(GoodsNews),
    /// News of a trade.
    Trade(TradeNews),
}

/// What became of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Response {
    /// Stream of the request, as its sender wrote it.
    pub stream: tables::Stream,
    /// Its number.
    pub number: u64,
    /// `Refusal::None`: it was done.
    pub refusal: Refusal,
    /// The ledger says so: it is on disk, and the same order gets the same answer for ever.
    pub durable: bool,
    /// The thing on the ground that a drop made.
    pub thing: Option<EntityId>,
}

/// News of a trade, as its other side's doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TradeNews {
    /// What happened.
    pub step: TradeStep,
    /// The other side.
    pub partner: EntityId,
    /// `Offered`: what.
    pub offer: Offer,
    /// `Offered`: its number.
    pub number: u16,
    /// `Ended`: why; `Refusal::None` when the trade was done.
    pub refusal: Refusal,
}

impl ServerMessage {
    /// The bytes of this message.
    pub fn encode(&self) -> Vec<u8> {
        let mut builder = FlatBufferBuilder::new();
        let (body_type, body) = match self {
            ServerMessage::Welcome(welcome) => (tables::ServerBody::Welcome, welcome.build(&mut builder)),
            &ServerMessage::Response(Response { stream, number, refusal, durable, thing }) => {
                let thing = thing.map_or(0, |thing| thing.0);
                let args = tables::ResponseArgs { stream, number, refusal, durable, thing };
                let response = tables::Response::create(&mut builder, &args);
                (tables::ServerBody::Response, response.as_union_value())
            }
            &ServerMessage::Closing { reason } => {
                let closing = tables::Closing::create(&mut builder, &tables::ClosingArgs { reason });
                (tables::ServerBody::Closing, closing.as_union_value())
            }
            ServerMessage::Goods(news) => (tables::ServerBody::Goods, build_goods(news, &mut builder)),
            ServerMessage::Trade(news) => (tables::ServerBody::TradeNews, news.build(&mut builder)),
        };
        let args = tables::ServerMessageArgs { body_type, body: Some(body) };
        let root = tables::ServerMessage::create(&mut builder, &args);
        builder.finish(root, None);
        builder.finished_data().to_vec()
    }

    /// The message in these bytes.
    pub fn decode(bytes: &[u8]) -> Result<ServerMessage, MessageError> {
        let root = flatbuffers::root_with_opts::<tables::ServerMessage>(&VERIFIER, bytes).map_err(|_| MessageError)?;
        if let Some(welcome) = root.body_as_welcome() {
            return Welcome::read(welcome).map(ServerMessage::Welcome);
        }
        if let Some(response) = root.body_as_response() {
            let (stream, number, refusal) = (response.stream(), response.number(), response.refusal());
            let thing = Some(EntityId(response.thing())).filter(|thing| *thing != EntityId::NONE);
            return Ok(ServerMessage::Response(Response {
                stream,
                number,
                refusal,
                durable: response.durable(),
                thing,
            }));
        }
        if let Some(goods) = root.body_as_goods() {
            return read_goods(goods).map(ServerMessage::Goods);
        }
        if let Some(news) = root.body_as_trade_news() {
            return TradeNews::read(news).map(ServerMessage::Trade);
        }
        let closing = root.body_as_closing().ok_or(MessageError)?;
        Ok(ServerMessage::Closing { reason: closing.reason() })
    }
}

fn build_goods(news: &GoodsNews, b: &mut FlatBufferBuilder) -> Union {
    let balances = news.balances.iter().map(|&(shelf, currency, amount)| {
        tables::Balance::new(amount, wire_shelf(Some(shelf)), tables::Currency(currency as u8), 0, 0)
    });
    let balances: Vec<_> = balances.collect();
    let items = news
        .items
        .iter()
        .map(|&(item, kind, shelf)| tables::ItemAt::new(item.uid, item.version, kind, wire_shelf(shelf), 0));
    let mails = news.mails.iter().map(|mail| {
        let MailNews { number, from, price, coins, items, end_tick, gone } = *mail;
        tables::Mail::new(number, EntityId::character(from).0, price, coins, end_tick, items, gone.into(), 0, 0)
    });
    let (items, mails): (Vec<_>, Vec<_>) = (items.collect(), mails.collect());
    let (balances, items, mails) = (b.create_vector(&balances), b.create_vector(&items), b.create_vector(&mails));
    let args =
        tables::GoodsArgs { whole: news.whole, balances: Some(balances), items: Some(items), mails: Some(mails) };
    tables::Goods::create(b, &args).as_union_value()
}

fn read_goods(goods: tables::Goods) -> Result<GoodsNews, MessageError> {
    let balance = |balance: &tables::Balance| {
        let currency = Currency::of(balance.currency().0).ok_or(MessageError)?;
        Ok((read_shelf(balance.shelf())?, currency, balance.amount()))
    };
    let item = |item: &tables::ItemAt| {
        let shelf = if item.shelf().0 == 0 { None } else { Some(read_shelf(item.shelf())?) };
        Ok((ItemRef { uid: item.uid(), version: item.version() }, item.kind(), shelf))
    };
    let mail = |mail: &tables::Mail| MailNews {
        number: mail.number(),
        from: EntityId(mail.from()).number(),
        price: mail.price(),
        coins: mail.coins(),
        items: mail.items(),
        end_tick: mail.end_tick(),
        gone: mail.gone() != 0,
    };
    Ok(GoodsNews {
        whole: goods.whole(),
        balances: goods.balances().iter().flatten().map(balance).collect::<Result<_, _>>()?,
        items: goods.items().iter().flatten().map(item).collect::<Result<_, _>>()?,
        mails: goods.mails().iter().flatten().map(mail).collect(),
    })
}

impl TradeNews {
    fn build(&self, b: &mut FlatBufferBuilder) -> Union {
        let items = Some(build_items(self.offer.items(), b));
        let (step, partner, coins) = (self.step, self.partner.0, self.offer.coins);
        let (offer, refusal) = (self.number, self.refusal);
        tables::TradeNews::create(b, &tables::TradeNewsArgs { step, partner, coins, items, offer, refusal })
            .as_union_value()
    }

    fn read(news: tables::TradeNews) -> Result<TradeNews, MessageError> {
        let offer = read_offer(news.coins(), news.items())?;
        let (step, partner, number) = (news.step(), EntityId(news.partner()), news.offer());
        Ok(TradeNews { step, partner, offer, number, refusal: news.refusal() })
    }
}

impl Welcome {
    fn build(&self, builder: &mut FlatBufferBuilder) -> flatbuffers::WIPOffset<flatbuffers::UnionWIPOffset> {
        assert!(self.version.len() <= VERSION_BYTES_MAX, "version {:?} is too long", self.version);
        let version = builder.create_string(&self.version);
        let seam = self.seam.map(|seam| tables::Seam::new(seam.x0, seam.y0, seam.x1, seam.y1));
        let args = tables::WelcomeArgs {
            entity: self.entity.0,
            client_id: self.client_id,
            tick: self.tick,
            tick_hz: self.tick_hz,
            send_hz: self.send_hz,
            land_seed: self.land_seed,
            land_size_m: self.land_size_m,
            cell_size_m: self.cell_size_m,
            enter_radius_m: self.enter_radius_m,
            leave_radius_m: self.leave_radius_m,
            seam: seam.as_ref(),
            version: Some(version),
            order: self.order,
        };
        tables::Welcome::create(builder, &args).as_union_value()
    }

    fn read(welcome: tables::Welcome) -> Result<Welcome, MessageError> {
        let version = welcome.version().unwrap_or_default();
        if version.len() > VERSION_BYTES_MAX {
            return Err(MessageError);
        }
        let seam = |seam: &tables::Seam| Seam { x0: seam.x0(), y0: seam.y0(), x1: seam.x1(), y1: seam.y1() };
        Ok(Welcome {
            entity: EntityId(welcome.entity()),
            client_id: welcome.client_id(),
            tick: welcome.tick(),
            tick_hz: welcome.tick_hz(),
            send_hz: welcome.send_hz(),
            land_seed: welcome.land_seed(),
            land_size_m: welcome.land_size_m(),
            cell_size_m: welcome.cell_size_m(),
            enter_radius_m: welcome.enter_radius_m(),
            leave_radius_m: welcome.leave_radius_m(),
            seam: welcome.seam().map(seam),
            version: version.to_owned(),
            order: welcome.order(),
        })
    }
}

/// A request on a stream with this number, whose body says that it is of a kind, whatever it really is.
#[cfg(any(test, feature = "test-support"))]
fn raw(stream: u8, number: u64, kind: u8, body: impl Fn(&mut FlatBufferBuilder) -> Union) -> Vec<u8> {
    let mut builder = FlatBufferBuilder::new();
    let body = body(&mut builder);
    let (stream, body_type) = (tables::Stream(stream), tables::RequestBody(kind));
    let args = tables::RequestArgs { stream, number, body_type, body: Some(body) };
    let root = tables::Request::create(&mut builder, &args);
    builder.finish(root, None);
    builder.finished_data().to_vec()
}

/// Requests that are not understood, with numbers from one on: a kind and values that this version does not have, too many
/// items, and bytes of another kind.
#[cfg(any(test, feature = "test-support"))]
pub fn messages_of_a_newer_client(stream: u8, number: u64) -> Vec<Vec<u8>> {
    let emote = |b: &mut FlatBufferBuilder| tables::Emote::create(b, &tables::EmoteArgs { kind: 1 }).as_union_value();
    let move_coins = |currency: u8, from: u8| {
        move |b: &mut FlatBufferBuilder| {
            let (currency, from, to) = (tables::Currency(currency), tables::Shelf(from), tables::Shelf::Bag);
            let args = tables::MoveCoinsArgs { currency, amount: 1, from, to };
            tables::MoveCoins::create(b, &args).as_union_value()
        }
    };
    let seven_items = |b: &mut FlatBufferBuilder| {
        let items = Some(b.create_vector(&[tables::ItemRef::new(1, 1, 0); 7]));
        tables::TradeOffer::create(b, &tables::TradeOfferArgs { coins: 0, items }).as_union_value()
    };
    let kind = |kind: tables::RequestBody| kind.0;
    vec![
        raw(stream, number, 250, emote),
        raw(stream, number + 1, kind(tables::RequestBody::MoveCoins), move_coins(0, 9)),
        raw(stream, number + 2, kind(tables::RequestBody::MoveCoins), move_coins(200, 3)),
        raw(stream, number + 3, kind(tables::RequestBody::TradeOffer), seven_items),
        // An emote's bytes as a mail: the body does not verify, and the head is read all the same.
        raw(stream, number + 4, kind(tables::RequestBody::SendMail), emote),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn welcome() -> ServerMessage {
        ServerMessage::Welcome(Welcome {
            entity: EntityId::character(77),
            client_id: 77,
            tick: 1 << 40,
            tick_hz: 60,
            send_hz: 20,
            land_seed: u64::MAX,
            land_size_m: 8_192,
            cell_size_m: 64,
            enter_radius_m: 180,
            leave_radius_m: 220,
            seam: Some(Seam { x0: -5, y0: 6, x1: -5, y1: 9_000 }),
            version: "0.1.0".to_owned(),
            order: 1 << 50,
        })
    }

    fn offer() -> Offer {
        Offer::new(-7, &[ItemRef { uid: 5, version: 6 }, ItemRef { uid: 7, version: 8 }]).expect("two items fit")
    }

    fn server_messages() -> Vec<ServerMessage> {
        let mail = MailNews { number: 1, from: 2, price: 3, coins: 4, items: 5, end_tick: 6, gone: true };
        let news = GoodsNews {
            whole: true,
            balances: vec![(Shelf::Bank, Currency::Renown, 9)],
            items: vec![
                (ItemRef { uid: 1, version: 2 }, 3, None),
                (ItemRef { uid: 4, version: 5 }, 6, Some(Shelf::Bag)),
            ],
            mails: vec![mail],
        };
        let partner = EntityId::character(9);
        let step = TradeStep::Offered;
        let trade = TradeNews { step, partner, offer: offer(), number: 3, refusal: Refusal::None };
        vec![
            welcome(),
            ServerMessage::Response(Response {
                stream: tables::Stream(9),
                number: 1 << 60,
                refusal: Refusal::TooFar,
                durable: true,
                thing: Some(EntityId::thing(4)),
            }),
            ServerMessage::Closing { reason: Close::Slow },
            ServerMessage::Goods(news),
            ServerMessage::Trade(trade),
        ]
    }

    fn requests() -> Vec<Request> {
        let item = ItemRef { uid: 1, version: 2 };
        let (from, to, target) = (Shelf::Bag, Shelf::Equipment, EntityId::character(3));
        let goods = [
            GoodsRequest::Move { item, from, to },
            GoodsRequest::MoveCoins { currency: Currency::Renown, amount: i64::MIN, from, to },
            GoodsRequest::Drop { what: Dropped::Item(item) },
            GoodsRequest::Drop { what: Dropped::Coins(-1) },
            GoodsRequest::PickUp { thing: EntityId::thing(2) },
            GoodsRequest::Destroy { item },
            GoodsRequest::Send { to: target, offer: offer(), price: -2 },
            GoodsRequest::TakeMail { mail: 7 },
            GoodsRequest::ReturnMail { mail: 8 },
            GoodsRequest::Recall,
        ];
        let goods = goods.into_iter().map(Request::Goods);
        let others = [
            Request::Emote { kind: 3 },
            Request::WaveAt { target: EntityId::guest(31, 5) },
            Request::TradeAsk { target },
            Request::TradeOffer { offer: offer() },
            Request::TradeConfirm { offer: 6 },
            Request::TradeCancel,
        ];
        others.into_iter().chain(goods).collect()
    }

    #[test]
    fn messages_come_back() {
        for message in server_messages() {
            assert_eq!(ServerMessage::decode(&message.encode()), Ok(message));
        }
        for request in requests() {
            assert_eq!(Request::decode(&request.encode(u64::MAX)), Ok(NumberedRequest { number: u64::MAX, request }));
        }
    }

    #[test]
    fn a_request_that_is_not_understood_is_refused_by_name() {
        for stream in [0, 1, 2, 200] {
            for (at, bytes) in (0..).zip(messages_of_a_newer_client(stream, 7)) {
                let refusal = if at == 0 { Refusal::Unknown } else { Refusal::Malformed };
                let refused = RequestError::Refused { stream: tables::Stream(stream), number: 7 + at, refusal };
                assert_eq!(Request::decode(&bytes), Err(refused));
            }
        }
        let emote = Request::Emote { kind: 1 }.encode(7);
        let elsewhere = raw(Stream::Goods as u8, 7, tables::RequestBody::Emote.0, |b| {
            tables::Emote::create(b, &tables::EmoteArgs { kind: 1 }).as_union_value()
        });
        assert!(Request::decode(&emote).is_ok());
        let (stream, refusal) = (Stream::Goods.wire(), Refusal::Unknown);
        assert_eq!(Request::decode(&elsewhere), Err(RequestError::Refused { stream, number: 7, refusal }));
        let mut builder = FlatBufferBuilder::new();
        let root = tables::Request::create(&mut builder, &tables::RequestArgs::default());
        builder.finish(root, None);
        let (stream, refusal) = (tables::Stream::World, Refusal::Unknown);
        let empty = Err(RequestError::Refused { stream, number: 0, refusal });
        assert_eq!(Request::decode(builder.finished_data()), empty);
        assert_eq!(Request::decode(&[1, 2, 3]), Err(RequestError::Nameless));
        assert_eq!(ServerMessage::decode(&[]), Err(MessageError));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = ServerMessage::decode(&bytes);
            let _ = Request::decode(&bytes);
        }

        /// Damaged messages reach deeper than random bytes do.
        #[test]
        fn damaged_messages_decode_without_panic(
            which in any::<proptest::sample::Index>(),
            damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
        ) {
            let server = server_messages().into_iter().map(|message| message.encode());
            let all: Vec<_> = server.chain(requests().into_iter().map(|message| message.encode(1))).collect();
            let mut bytes = all[which.index(all.len())].clone();
            for (place, value) in damage {
                let place = place.index(bytes.len());
                bytes[place] = value;
            }
            let _ = ServerMessage::decode(&bytes);
            let _ = Request::decode(&bytes);
        }
    }
}
