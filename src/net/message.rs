//! The reliable messages of `schemas/messages.fbs` as plain values.
//!
//! Promises: decoding verifies all of a message, within limits that fit these tables and no others, before it reads any;
//! it never panics on any bytes. Never keeps the bytes.

use crate::goods::{Currency, Dropped, GoodsNews, ItemRef, MailNews, Offer, Shelf};
use serde::{Deserialize, Serialize};

use crate::ids::EntityId;
use crate::limits::MESSAGE_BYTES_MAX;
use crate::net::messages;
use flatbuffers::{FlatBufferBuilder, VerifierOptions};

pub use crate::net::messages::{Close, Refusal, TradeStep};

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

/// What a client asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClientMessage {
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
    Goods {
        /// Names it for ever.
        operation: u64,
        /// What.
        wish: GoodsWish,
    },
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
        /// Names the trade for ever.
        operation: u64,
        /// Number of the partner's offer.
        offer: u16,
    },
    /// End the trade.
    TradeCancel,
}

/// What a client wants done with its goods.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum GoodsWish {
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
    /// What became of the operation?
    Recall,
}

impl ClientMessage {
    /// The bytes of this message as the client's `action`-th.
    pub fn encode(&self, action: u16) -> Vec<u8> {
        let mut builder = FlatBufferBuilder::new();
        let b = &mut builder;
        let (body_type, body) = match *self {
            ClientMessage::Emote { kind } => {
                let emote = messages::Emote::create(b, &messages::EmoteArgs { kind });
                (messages::ClientBody::Emote, emote.as_union_value())
            }
            ClientMessage::WaveAt { target } => {
                let wave = messages::WaveAt::create(b, &messages::WaveAtArgs { target: target.0 });
                (messages::ClientBody::WaveAt, wave.as_union_value())
            }
            ClientMessage::Goods { operation, wish } => wish.build(operation, b),
            ClientMessage::TradeAsk { target } => {
                let ask = messages::TradeAsk::create(b, &messages::TradeAskArgs { target: target.0 });
                (messages::ClientBody::TradeAsk, ask.as_union_value())
            }
            ClientMessage::TradeOffer { offer } => {
                let items = build_items(offer.items(), b);
                let args = messages::TradeOfferArgs { coins: offer.coins, items: Some(items) };
                (messages::ClientBody::TradeOffer, messages::TradeOffer::create(b, &args).as_union_value())
            }
            ClientMessage::TradeConfirm { operation, offer } => {
                let args = messages::TradeConfirmArgs { operation, offer };
                (messages::ClientBody::TradeConfirm, messages::TradeConfirm::create(b, &args).as_union_value())
            }
            ClientMessage::TradeCancel => {
                let cancel = messages::TradeCancel::create(b, &messages::TradeCancelArgs {});
                (messages::ClientBody::TradeCancel, cancel.as_union_value())
            }
        };
        let args = messages::ClientMessageArgs { action, body_type, body: Some(body) };
        let root = messages::ClientMessage::create(&mut builder, &args);
        builder.finish(root, None);
        builder.finished_data().to_vec()
    }

    /// The action number and the message in these bytes.
    pub fn decode(bytes: &[u8]) -> Result<(u16, ClientMessage), MessageError> {
        let root =
            flatbuffers::root_with_opts::<messages::ClientMessage>(&VERIFIER, bytes).map_err(|_| MessageError)?;
        let message = if let Some(emote) = root.body_as_emote() {
            ClientMessage::Emote { kind: emote.kind() }
        } else if let Some(wave) = root.body_as_wave_at() {
            ClientMessage::WaveAt { target: EntityId(wave.target()) }
        } else if let Some(ask) = root.body_as_trade_ask() {
            ClientMessage::TradeAsk { target: EntityId(ask.target()) }
        } else if let Some(offered) = root.body_as_trade_offer() {
            ClientMessage::TradeOffer { offer: read_offer(offered.coins(), offered.items())? }
        } else if let Some(confirm) = root.body_as_trade_confirm() {
            ClientMessage::TradeConfirm { operation: confirm.operation(), offer: confirm.offer() }
        } else if root.body_as_trade_cancel().is_some() {
            ClientMessage::TradeCancel
        } else {
            let (operation, wish) = GoodsWish::read(&root)?;
            ClientMessage::Goods { operation, wish }
        };
        Ok((root.action(), message))
    }
}

type Union = flatbuffers::WIPOffset<flatbuffers::UnionWIPOffset>;

impl GoodsWish {
    fn build(self, operation: u64, b: &mut FlatBufferBuilder) -> (messages::ClientBody, Union) {
        match self {
            GoodsWish::Move { item, from, to } => {
                let (item, from, to) = (wire_item(item), wire_shelf(Some(from)), wire_shelf(Some(to)));
                let args = messages::MoveItemArgs { operation, item: Some(&item), from, to };
                (messages::ClientBody::MoveItem, messages::MoveItem::create(b, &args).as_union_value())
            }
            GoodsWish::MoveCoins { currency, amount, from, to } => {
                let (from, to) = (wire_shelf(Some(from)), wire_shelf(Some(to)));
                let currency = messages::Currency(currency as u8);
                let args = messages::MoveCoinsArgs { operation, currency, amount, from, to };
                (messages::ClientBody::MoveCoins, messages::MoveCoins::create(b, &args).as_union_value())
            }
            GoodsWish::Drop { what } => {
                let (item, coins) = match what {
                    Dropped::Item(item) => (Some(wire_item(item)), 0),
                    Dropped::Coins(coins) => (None, coins),
                };
                let args = messages::DropArgs { operation, item: item.as_ref(), coins };
                (messages::ClientBody::Drop, messages::Drop::create(b, &args).as_union_value())
            }
            GoodsWish::PickUp { thing } => {
                let args = messages::PickUpArgs { operation, thing: thing.0 };
                (messages::ClientBody::PickUp, messages::PickUp::create(b, &args).as_union_value())
            }
            GoodsWish::Destroy { item } => {
                let args = messages::DestroyArgs { operation, item: Some(&wire_item(item)) };
                (messages::ClientBody::Destroy, messages::Destroy::create(b, &args).as_union_value())
            }
            GoodsWish::Send { to, offer, price } => {
                let items = Some(build_items(offer.items(), b));
                let args = messages::SendMailArgs { operation, to: to.0, coins: offer.coins, items, price };
                (messages::ClientBody::SendMail, messages::SendMail::create(b, &args).as_union_value())
            }
            GoodsWish::TakeMail { mail } => {
                let args = messages::TakeMailArgs { operation, mail };
                (messages::ClientBody::TakeMail, messages::TakeMail::create(b, &args).as_union_value())
            }
            GoodsWish::ReturnMail { mail } => {
                let args = messages::ReturnMailArgs { operation, mail };
                (messages::ClientBody::ReturnMail, messages::ReturnMail::create(b, &args).as_union_value())
            }
            GoodsWish::Recall => {
                let recall = messages::Recall::create(b, &messages::RecallArgs { operation });
                (messages::ClientBody::Recall, recall.as_union_value())
            }
        }
    }

    fn read(root: &messages::ClientMessage) -> Result<(u64, GoodsWish), MessageError> {
        if let Some(m) = root.body_as_move_item() {
            let (item, from, to) = (read_item(m.item())?, read_shelf(m.from())?, read_shelf(m.to())?);
            return Ok((m.operation(), GoodsWish::Move { item, from, to }));
        }
        if let Some(m) = root.body_as_move_coins() {
            let currency = Currency::of(m.currency().0).ok_or(MessageError)?;
            let (from, to) = (read_shelf(m.from())?, read_shelf(m.to())?);
            return Ok((m.operation(), GoodsWish::MoveCoins { currency, amount: m.amount(), from, to }));
        }
        if let Some(m) = root.body_as_drop() {
            let what = match m.item() {
                Some(item) => Dropped::Item(read_item(Some(item))?),
                None => Dropped::Coins(m.coins()),
            };
            return Ok((m.operation(), GoodsWish::Drop { what }));
        }
        if let Some(m) = root.body_as_pick_up() {
            return Ok((m.operation(), GoodsWish::PickUp { thing: EntityId(m.thing()) }));
        }
        if let Some(m) = root.body_as_destroy() {
            return Ok((m.operation(), GoodsWish::Destroy { item: read_item(m.item())? }));
        }
        if let Some(m) = root.body_as_send_mail() {
            let (to, offer) = (EntityId(m.to()), read_offer(m.coins(), m.items())?);
            return Ok((m.operation(), GoodsWish::Send { to, offer, price: m.price() }));
        }
        if let Some(m) = root.body_as_take_mail() {
            return Ok((m.operation(), GoodsWish::TakeMail { mail: m.mail() }));
        }
        if let Some(m) = root.body_as_return_mail() {
            return Ok((m.operation(), GoodsWish::ReturnMail { mail: m.mail() }));
        }
        let recall = root.body_as_recall().ok_or(MessageError)?;
        Ok((recall.operation(), GoodsWish::Recall))
    }
}

fn wire_item(item: ItemRef) -> messages::ItemRef {
    messages::ItemRef::new(item.uid, item.version, 0)
}

fn read_item(item: Option<&messages::ItemRef>) -> Result<ItemRef, MessageError> {
    let item = item.ok_or(MessageError)?;
    Ok(ItemRef { uid: item.uid(), version: item.version() })
}

fn wire_shelf(shelf: Option<Shelf>) -> messages::Shelf {
    messages::Shelf(shelf.map_or(0, |shelf| shelf as u8))
}

fn read_shelf(shelf: messages::Shelf) -> Result<Shelf, MessageError> {
    Shelf::of(shelf.0).ok_or(MessageError)
}

type WireItems<'a> = flatbuffers::WIPOffset<flatbuffers::Vector<'a, messages::ItemRef>>;

fn build_items<'a>(items: &[ItemRef], b: &mut FlatBufferBuilder<'a>) -> WireItems<'a> {
    let items: Vec<_> = items.iter().map(|&item| wire_item(item)).collect();
    b.create_vector(&items)
}

/// More items than an offer holds are malformed.
fn read_offer(coins: i64, items: Option<flatbuffers::Vector<'_, messages::ItemRef>>) -> Result<Offer, MessageError> {
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
    /// Newest operation of this character that was answered; 0: none.
    pub operation: u64,
}

/// What a server tells.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ServerMessage {
    /// First message of a session.
    Welcome(Welcome),
    /// What became of an action.
    ActionResult {
        /// Its number.
        action: u16,
        /// `Refusal::None`: it was done.
        refusal: Refusal,
    },
    /// The session ends now.
    Closing {
        /// Why.
        reason: Close,
    },
    /// What became of an operation; it is on disk.
    OperationResult {
        /// Which.
        operation: u64,
        /// `Refusal::None`: it was done.
        refusal: Refusal,
        /// The thing on the ground that a drop made.
        thing: Option<EntityId>,
    },
    /// What the client has, or what changed of it.
    Goods(GoodsNews),
    /// News of a trade.
    Trade(TradeNews),
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
            ServerMessage::Welcome(welcome) => (messages::ServerBody::Welcome, welcome.build(&mut builder)),
            &ServerMessage::ActionResult { action, refusal } => {
                let args = messages::ActionResultArgs { action, refusal };
                let result = messages::ActionResult::create(&mut builder, &args);
                (messages::ServerBody::ActionResult, result.as_union_value())
            }
            &ServerMessage::Closing { reason } => {
                let closing = messages::Closing::create(&mut builder, &messages::ClosingArgs { reason });
                (messages::ServerBody::Closing, closing.as_union_value())
            }
            &ServerMessage::OperationResult { operation, refusal, thing } => {
                let thing = thing.map_or(0, |thing| thing.0);
                let args = messages::OperationResultArgs { operation, refusal, thing };
                let result = messages::OperationResult::create(&mut builder, &args);
                (messages::ServerBody::OperationResult, result.as_union_value())
            }
            ServerMessage::Goods(news) => (messages::ServerBody::Goods, build_goods(news, &mut builder)),
            ServerMessage::Trade(news) => (messages::ServerBody::TradeNews, news.build(&mut builder)),
        };
        let args = messages::ServerMessageArgs { body_type, body: Some(body) };
        let root = messages::ServerMessage::create(&mut builder, &args);
        builder.finish(root, None);
        builder.finished_data().to_vec()
    }

    /// The message in these bytes.
    pub fn decode(bytes: &[u8]) -> Result<ServerMessage, MessageError> {
        let root =
            flatbuffers::root_with_opts::<messages::ServerMessage>(&VERIFIER, bytes).map_err(|_| MessageError)?;
        if let Some(welcome) = root.body_as_welcome() {
            return Welcome::read(welcome).map(ServerMessage::Welcome);
        }
        if let Some(result) = root.body_as_action_result() {
            return Ok(ServerMessage::ActionResult { action: result.action(), refusal: result.refusal() });
        }
        if let Some(result) = root.body_as_operation_result() {
            let (operation, refusal) = (result.operation(), result.refusal());
            let thing = Some(EntityId(result.thing())).filter(|thing| *thing != EntityId::NONE);
            return Ok(ServerMessage::OperationResult { operation, refusal, thing });
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
        messages::Balance::new(amount, wire_shelf(Some(shelf)), messages::Currency(currency as u8), 0, 0)
    });
    let balances: Vec<_> = balances.collect();
    let items = news
        .items
        .iter()
        .map(|&(item, kind, shelf)| messages::ItemAt::new(item.uid, item.version, kind, wire_shelf(shelf), 0));
    let mails = news.mails.iter().map(|mail| {
        let MailNews { number, from, price, coins, items, end_tick, gone } = *mail;
        messages::Mail::new(number, EntityId::character(from).0, price, coins, end_tick, items, gone.into(), 0, 0)
    });
    let (items, mails): (Vec<_>, Vec<_>) = (items.collect(), mails.collect());
    let (balances, items, mails) = (b.create_vector(&balances), b.create_vector(&items), b.create_vector(&mails));
    let args =
        messages::GoodsArgs { whole: news.whole, balances: Some(balances), items: Some(items), mails: Some(mails) };
    messages::Goods::create(b, &args).as_union_value()
}

fn read_goods(goods: messages::Goods) -> Result<GoodsNews, MessageError> {
    let balance = |balance: &messages::Balance| {
        let currency = Currency::of(balance.currency().0).ok_or(MessageError)?;
        Ok((read_shelf(balance.shelf())?, currency, balance.amount()))
    };
    let item = |item: &messages::ItemAt| {
        let shelf = if item.shelf().0 == 0 { None } else { Some(read_shelf(item.shelf())?) };
        Ok((ItemRef { uid: item.uid(), version: item.version() }, item.kind(), shelf))
    };
    let mail = |mail: &messages::Mail| MailNews {
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
        messages::TradeNews::create(b, &messages::TradeNewsArgs { step, partner, coins, items, offer, refusal })
            .as_union_value()
    }

    fn read(news: messages::TradeNews) -> Result<TradeNews, MessageError> {
        let offer = read_offer(news.coins(), news.items())?;
        let (step, partner, number) = (news.step(), EntityId(news.partner()), news.offer());
        Ok(TradeNews { step, partner, offer, number, refusal: news.refusal() })
    }
}

impl Welcome {
    fn build(&self, builder: &mut FlatBufferBuilder) -> flatbuffers::WIPOffset<flatbuffers::UnionWIPOffset> {
        assert!(self.version.len() <= VERSION_BYTES_MAX, "version {:?} is too long", self.version);
        let version = builder.create_string(&self.version);
        let seam = self.seam.map(|seam| messages::Seam::new(seam.x0, seam.y0, seam.x1, seam.y1));
        let args = messages::WelcomeArgs {
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
            operation: self.operation,
        };
        messages::Welcome::create(builder, &args).as_union_value()
    }

    fn read(welcome: messages::Welcome) -> Result<Welcome, MessageError> {
        let version = welcome.version().unwrap_or_default();
        if version.len() > VERSION_BYTES_MAX {
            return Err(MessageError);
        }
        let seam = |seam: &messages::Seam| Seam { x0: seam.x0(), y0: seam.y0(), x1: seam.x1(), y1: seam.y1() };
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
            operation: welcome.operation(),
        })
    }
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
            operation: 1 << 50,
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
        let thing = Some(EntityId::thing(4));
        vec![
            welcome(),
            ServerMessage::ActionResult { action: 9, refusal: Refusal::TooFar },
            ServerMessage::Closing { reason: Close::Slow },
            ServerMessage::OperationResult { operation: 1, refusal: Refusal::Full, thing },
            ServerMessage::Goods(news),
            ServerMessage::Trade(trade),
        ]
    }

    fn client_messages() -> Vec<ClientMessage> {
        let item = ItemRef { uid: 1, version: 2 };
        let (from, to, target) = (Shelf::Bag, Shelf::Equipment, EntityId::character(3));
        let wishes = [
            GoodsWish::Move { item, from, to },
            GoodsWish::MoveCoins { currency: Currency::Renown, amount: i64::MIN, from, to },
            GoodsWish::Drop { what: Dropped::Item(item) },
            GoodsWish::Drop { what: Dropped::Coins(-1) },
            GoodsWish::PickUp { thing: EntityId::thing(2) },
            GoodsWish::Destroy { item },
            GoodsWish::Send { to: target, offer: offer(), price: -2 },
            GoodsWish::TakeMail { mail: 7 },
            GoodsWish::ReturnMail { mail: 8 },
            GoodsWish::Recall,
        ];
        let goods = wishes.into_iter().map(|wish| ClientMessage::Goods { operation: 77, wish });
        let others = [
            ClientMessage::Emote { kind: 3 },
            ClientMessage::WaveAt { target: EntityId::guest(31, 5) },
            ClientMessage::TradeAsk { target },
            ClientMessage::TradeOffer { offer: offer() },
            ClientMessage::TradeConfirm { operation: 5, offer: 6 },
            ClientMessage::TradeCancel,
        ];
        others.into_iter().chain(goods).collect()
    }

    #[test]
    fn messages_come_back() {
        for message in server_messages() {
            assert_eq!(ServerMessage::decode(&message.encode()), Ok(message));
        }
        for message in client_messages() {
            assert_eq!(ClientMessage::decode(&message.encode(65_535)), Ok((65_535, message)));
        }
    }

    #[test]
    fn a_message_without_a_known_body_is_refused() {
        let mut builder = FlatBufferBuilder::new();
        let root = messages::ClientMessage::create(&mut builder, &messages::ClientMessageArgs::default());
        builder.finish(root, None);
        assert_eq!(ClientMessage::decode(builder.finished_data()), Err(MessageError));
        assert_eq!(ServerMessage::decode(&[]), Err(MessageError));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = ServerMessage::decode(&bytes);
            let _ = ClientMessage::decode(&bytes);
        }

        /// Damaged messages reach deeper than random bytes do.
        #[test]
        fn damaged_messages_decode_without_panic(
            which in any::<proptest::sample::Index>(),
            damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
        ) {
            let server = server_messages().into_iter().map(|message| message.encode());
            let all: Vec<_> = server.chain(client_messages().into_iter().map(|message| message.encode(1))).collect();
            let mut bytes = all[which.index(all.len())].clone();
            for (place, value) in damage {
                let place = place.index(bytes.len());
                bytes[place] = value;
            }
            let _ = ServerMessage::decode(&bytes);
            let _ = ClientMessage::decode(&bytes);
        }
    }
}
