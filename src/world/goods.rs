//! Goods in the world: operations of players, things on the ground, deeds, and the way to a trade.
//!
//! Owns no state. Promises: the world decides what needs eyes and hands (who is near, who was first, what both sides
//! agreed to) and the ledger everything else; a player has at most one order under way; a thing has one winner; a trade
//! is ordered once, by the side with the lower id, when both sides confirmed the same two offers. What ends a trade in
//! any other way changes nothing.

use serde::{Deserialize, Serialize};

use crate::effect::{Effect, EffectKind, Target, TradeEffect, Word};
use crate::entity::{Player, Thing};
use crate::frame::{Frames, distance};
use crate::land::LAND_CELLS;
use crate::limits::{PLOT_DROP_ENTITIES_MAX, TICK_HZ};
use crate::planted::{Bug, planted};
use crate::random::{Digest, mix};
use crate::wire::goods;
use crate::wire::goods::{Offer, Order, OrderId, OrderKind, Refusal};
use crate::wire::ids::{CellKey, EntityId, IdClass};
use crate::wire::messages::{GoodsRequest, Stream, TradeNews, TradeStep};
use crate::wire::units::GRID_PER_M;

/// Farthest that a hand reaches to a thing, wire grid steps.
pub const PICK_UP_REACH: i32 = 4 * GRID_PER_M;
/// Farthest that somebody may be who is asked to trade.
pub const TRADE_REACH: i32 = 10 * GRID_PER_M;
/// Farthest that the two of an open trade may be apart.
const TRADE_LEASH: i32 = 15 * GRID_PER_M;
/// Ticks that a question for a trade is good for.
const ASK_TICKS: u64 = 30 * TICK_HZ;
/// Ticks that a trade may be open.
const TRADE_TICKS: u64 = 300 * TICK_HZ;
/// Ticks between two looks at the partner.
const WATCH_TICKS: u64 = 30;
/// Ticks between two wishes of one player about a trade: its partner hears of each.
pub const TRADE_WISH_TICKS: u64 = 6;
/// Ticks between two questions of strangers that a player hears, so that a crowd cannot drown one of them.
const STRANGER_TICKS: u64 = 20;
/// Ticks after which a deed that was refused is tried again.
const DEED_TICKS: u64 = 600;
/// Cells along the side of a region; to set foot in a region for the first time is a deed.
const REGION_CELLS: i16 = LAND_CELLS / 8;

/// One side's word on both offers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Confirmation {
    /// Its operation.
    pub operation: u64,
    /// Number of its own offer.
    pub own: u16,
    /// Number of the other side's offer.
    pub other: u16,
}

/// An open trade as one of its sides holds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Trade {
    /// The other side.
    pub partner: EntityId,
    /// Both sides' name for it.
    pub number: u64,
    /// When it was opened.
    pub since: u64,
    /// What this side gives, and its number.
    pub own: (Offer, u16),
    /// What the other side gives.
    pub other: (Offer, u16),
    /// This side's confirmation.
    pub confirmed: Option<Confirmation>,
    /// The other side's.
    pub partner_confirmed: Option<Confirmation>,
    /// It was ordered: nothing changes it any more.
    pub ordered: bool,
}

/// What a player has under way besides its body.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Dealings {
    /// The order that was not answered yet.
    pub operation: Option<u64>,
    /// Whom it asked to trade, and when.
    pub asks: Option<(EntityId, u64)>,
    /// Who asked it.
    pub asked_by: Option<(EntityId, u64)>,
    /// The open trade.
    pub trade: Option<Trade>,
    /// One bit for each deed that was rewarded.
    pub deeds: u64,
    /// First tick in which something may be said of a trade again.
    pub trade_tick: u64,
    /// First tick in which it listens to a stranger's question for a trade again.
    pub ask_tick: u64,
    /// The deed whose reward was ordered.
    pub deed_asked: Option<u8>,
    /// First tick in which a deed may be ordered again.
    pub deed_tick: u64,
}

impl Dealings {
    /// Rolls it into a player's digest.
    pub fn digest(&self, digest: &mut Digest) {
        let Dealings { operation, asks, asked_by, trade, deeds, trade_tick, ask_tick, deed_asked, deed_tick } = *self;
        digest.add_option(operation, |digest, operation| digest.add(operation));
        for question in [asks, asked_by] {
            digest.add_option(question, |digest, (id, tick)| digest.add(id.0).add(tick));
        }
        digest.add_option(trade, |digest, trade| trade.digest(digest));
        digest.add(deeds).add(trade_tick).add(ask_tick);
        digest.add_option(deed_asked, |digest, deed| digest.add(deed.into())).add(deed_tick);
    }
}

impl Trade {
    fn digest<'a>(&self, digest: &'a mut Digest) -> &'a mut Digest {
        let Trade { partner, number, since, own, other, confirmed, partner_confirmed, ordered } = self;
        digest.add(partner.0).add(*number).add(*since).add(u64::from(*ordered));
        for (offer, number) in [own, other] {
            digest_offer(offer, digest.add(u64::from(*number)));
        }
        for word in [confirmed, partner_confirmed] {
            digest.add_option(*word, |digest, word| word.digest(digest));
        }
        digest
    }
}

impl Confirmation {
    /// Rolls it into a digest.
    pub fn digest<'a>(&self, digest: &'a mut Digest) -> &'a mut Digest {
        let Confirmation { operation, own, other } = *self;
        digest.add(operation).add(u64::from(own) << 16 | u64::from(other))
    }
}

/// Rolls an offer into a digest.
pub fn digest_offer<'a>(offer: &Offer, digest: &'a mut Digest) -> &'a mut Digest {
    digest.add(offer.coins as u64).add(offer.items().len() as u64);
    for item in offer.items() {
        digest.add(item.uid).add(item.version.into());
    }
    digest
}

/// Rolls what the ledger knows of a thing on the ground into a digest.
pub fn digest_thing<'a>(thing: &goods::Thing, digest: &'a mut Digest) -> &'a mut Digest {
    let goods::Thing { number, kind, x, y, end_tick } = *thing;
    digest.add(number).add(kind.into()).add_i32(x).add_i32(y).add(end_tick)
}

/// What comes of a wish.
pub enum Deal {
    /// The ledger is asked.
    Order(Order),
    /// Another entity is asked.
    Effect(Effect),
}

/// What one player's part of a tick gives out.
#[derive(Default)]
pub struct Given {
    /// Effects on others.
    pub effects: Vec<Effect>,
    /// Orders.
    pub orders: Vec<Order>,
    /// Words to its own client.
    pub words: Vec<Word>,
}

impl Given {
    /// Whether nothing is left to give.
    pub fn is_empty(&self) -> bool {
        self.effects.is_empty() && self.orders.is_empty() && self.words.is_empty()
    }
}

impl Player {
    /// Does what a client wants with its goods, as far as the world decides it.
    pub fn deal(&mut self, operation: u64, wish: GoodsRequest, frames: &Frames) -> Result<Deal, Refusal> {
        // Who confirmed a trade does nothing else with its goods. To ask is free, but for the trade itself: the ledger would say
        // for good that it never was, and it may still be done.
        let confirmed = self.dealings.trade.and_then(|trade| trade.confirmed).map(|word| word.operation);
        let may_ask = wish == GoodsRequest::Recall && confirmed != Some(operation);
        if self.guest || (confirmed.is_some() && !may_ask) {
            return Err(Refusal::NotNow);
        }
        if operation == 0 {
            return Err(Refusal::Unknown);
        }
        let (x, y) = (self.body.motion.x, self.body.motion.y);
        let kind = match wish {
            GoodsRequest::Move { item, from, to } => OrderKind::Move { item, from, to },
            GoodsRequest::MoveCoins { currency, amount, from, to } => {
                OrderKind::MoveCoins { currency, amount, from, to }
            }
            GoodsRequest::Drop { .. } if frames.count_in(CellKey::of_fine(x, y).plot()) >= PLOT_DROP_ENTITIES_MAX => {
                return Err(Refusal::Full);
            }
            GoodsRequest::Drop { what } => OrderKind::Drop { what, x, y },
            GoodsRequest::PickUp { thing } => {
                let effect = self.reach_for(operation, thing, frames)?;
                self.dealings.operation = Some(operation);
                return Ok(Deal::Effect(effect));
            }
            GoodsRequest::Destroy { item } => OrderKind::Destroy { item },
            GoodsRequest::Send { to, offer, price } => {
                if to.class() != IdClass::Character {
                    return Err(Refusal::Unknown);
                }
                OrderKind::Send { to: to.number(), offer, price }
            }
            GoodsRequest::TakeMail { mail } => OrderKind::TakeMail { mail },
            GoodsRequest::ReturnMail { mail } => OrderKind::ReturnMail { mail },
            GoodsRequest::Recall => OrderKind::Recall,
        };
        self.dealings.operation = Some(operation);
        Ok(Deal::Order(Order { id: self.order_id(operation), kind }))
    }

    fn order_id(&self, sequence: u64) -> OrderId {
        OrderId { source: self.body.id, sequence }
    }

    fn reach_for(&mut self, operation: u64, thing: EntityId, frames: &Frames) -> Result<Effect, Refusal> {
        if thing.class() != IdClass::Thing {
            return Err(Refusal::Unknown);
        }
        let seen = frames.find(thing).ok_or(Refusal::Gone)?;
        if !within(self.body.grid(), seen.position, PICK_UP_REACH) {
            return Err(Refusal::TooFar);
        }
        Ok(self.effect(thing, EffectKind::Lift { operation }))
    }

    fn effect(&mut self, target: EntityId, kind: EffectKind) -> Effect {
        self.sequence += 1;
        Effect { target: Target::Entity(target), source: self.body.id, sequence: self.sequence, kind }
    }

    /// Offers something else in the open trade: what both confirmed before is void.
    pub fn offer_trade(&mut self, offer: Offer, given: &mut Given) -> Result<(), Refusal> {
        let trade = self.open_trade()?;
        trade.own = (offer, trade.own.1.wrapping_add(1));
        (trade.confirmed, trade.partner_confirmed) = (None, None);
        let (partner, number, (offer, version)) = (trade.partner, trade.number, trade.own);
        let effect = TradeEffect::Offer { offer, version };
        given.effects.push(self.effect(partner, EffectKind::Trade { number, effect }));
        Ok(())
    }

    /// Agrees to both offers, the partner's being the one with this number; `operation` names the order.
    pub fn confirm_trade(&mut self, operation: u64, offer: u16, given: &mut Given) -> Result<(), Refusal> {
        if operation == 0 {
            return Err(Refusal::Unknown);
        }
        let trade = self.open_trade()?;
        if offer != trade.other.1 {
            return Err(Refusal::Changed);
        }
        let word = Confirmation { operation, own: trade.own.1, other: offer };
        trade.confirmed = Some(word);
        let (partner, number) = (trade.partner, trade.number);
        let effect = TradeEffect::Confirm(word);
        given.effects.push(self.effect(partner, EffectKind::Trade { number, effect }));
        self.order_trade(given);
        Ok(())
    }

    /// Ends the open trade.
    pub fn cancel_trade(&mut self, given: &mut Given) -> Result<(), Refusal> {
        self.open_trade()?;
        self.end_trade(Refusal::Cancelled, given);
        Ok(())
    }

    /// The trade, as long as it can still be changed.
    fn open_trade(&mut self) -> Result<&mut Trade, Refusal> {
        self.dealings.trade.as_mut().filter(|trade| !trade.ordered).ok_or(Refusal::NotNow)
    }

    /// Asks somebody to trade; opens the trade when both asked.
    pub fn ask_trade(
        &mut self,
        target: EntityId,
        tick: u64,
        frames: &Frames,
        given: &mut Given,
    ) -> Result<(), Refusal> {
        if target == self.body.id {
            return Err(Refusal::Yourself);
        }
        if target.class() != IdClass::Character {
            return Err(Refusal::Unknown);
        }
        if self.dealings.trade.is_some() {
            return Err(Refusal::NotNow);
        }
        let seen = frames.find(target).ok_or(Refusal::Gone)?;
        if !within(self.body.grid(), seen.position, TRADE_REACH) {
            return Err(Refusal::TooFar);
        }
        self.dealings.asks = Some((target, tick));
        if self.may_open(target, tick) {
            self.open(target, tick, given);
        } else {
            let kind = EffectKind::Trade { number: 0, effect: TradeEffect::Ask };
            given.effects.push(self.effect(target, kind));
        }
        Ok(())
    }

    /// Both asked, and this is the side that opens.
    fn may_open(&self, other: EntityId, tick: u64) -> bool {
        let is_fresh =
            |asked: Option<(EntityId, u64)>| asked.is_some_and(|(id, since)| id == other && tick < since + ASK_TICKS);
        self.body.id < other && is_fresh(self.dealings.asks) && is_fresh(self.dealings.asked_by)
    }

    fn open(&mut self, partner: EntityId, tick: u64, given: &mut Given) {
        let number = mix(mix(self.body.id.0) ^ tick).max(1);
        self.begin_trade(partner, number, tick, given);
        given.effects.push(self.effect(partner, EffectKind::Trade { number, effect: TradeEffect::Open }));
    }

    fn begin_trade(&mut self, partner: EntityId, number: u64, tick: u64, given: &mut Given) {
        (self.dealings.asks, self.dealings.asked_by) = (None, None);
        self.dealings.trade = Some(Trade {
            partner,
            number,
            since: tick,
            own: Default::default(),
            other: Default::default(),
            confirmed: None,
            partner_confirmed: None,
            ordered: false,
        });
        given.words.push(news(TradeStep::Opened, partner));
    }

    /// Hears from the other side of a trade.
    pub fn hear_trade(&mut self, from: EntityId, number: u64, effect: TradeEffect, tick: u64, given: &mut Given) {
        let is_open = self.dealings.trade.is_some_and(|trade| trade.partner == from && trade.number == number);
        let is_ordered = self.dealings.trade.is_some_and(|trade| trade.ordered);
        match effect {
            TradeEffect::Ask if self.dealings.trade.is_none() && !self.guest && self.hears(from, tick) => {
                self.dealings.ask_tick = tick + STRANGER_TICKS;
                self.dealings.asked_by = Some((from, tick));
                given.words.push(news(TradeStep::Asked, from));
                if self.may_open(from, tick) {
                    self.open(from, tick, given);
                }
            }
            TradeEffect::Open if self.dealings.trade.is_none() && self.asked(from, tick) => {
                self.begin_trade(from, number, tick, given);
            }
            TradeEffect::Ask | TradeEffect::Open => self.refuse_trade(from, number, Refusal::NotNow, given),
            TradeEffect::End { refusal } => {
                if is_open && !is_ordered {
                    self.dealings.trade = None;
                    given.words.push(ended(from, refusal));
                } else if number == 0 && self.dealings.asks.is_some_and(|(id, _)| id == from) {
                    self.dealings.asks = None;
                    given.words.push(ended(from, refusal));
                }
            }
            _ if is_open && is_ordered => (),
            _ if !is_open => self.refuse_trade(from, number, Refusal::Cancelled, given),
            TradeEffect::Offer { offer, version } => {
                let trade = self.dealings.trade.as_mut().expect("it is open");
                trade.other = (offer, version);
                (trade.confirmed, trade.partner_confirmed) = (None, None);
                let step = TradeStep::Offered;
                let offered = TradeNews { step, partner: from, offer, number: version, refusal: Refusal::None };
                given.words.push(Word::Trade(offered));
            }
            TradeEffect::Confirm(word) => {
                self.dealings.trade.as_mut().expect("it is open").partner_confirmed = Some(word);
                given.words.push(news(TradeStep::Confirmed, from));
                self.order_trade(given);
            }
        }
    }

    /// Whom it asked itself it hears at any time.
    fn hears(&self, other: EntityId, tick: u64) -> bool {
        tick >= self.dealings.ask_tick || self.asked(other, tick)
    }

    fn asked(&self, other: EntityId, tick: u64) -> bool {
        self.dealings.asks.is_some_and(|(id, since)| id == other && tick < since + 2 * ASK_TICKS)
    }

    fn refuse_trade(&mut self, to: EntityId, number: u64, refusal: Refusal, given: &mut Given) {
        let effect = TradeEffect::End { refusal };
        given.effects.push(self.effect(to, EffectKind::Trade { number, effect }));
    }

    /// Orders the trade when both sides confirmed what lies on the table now, on the side with the lower id.
    fn order_trade(&mut self, given: &mut Given) {
        let (id, is_busy) = (self.body.id, self.dealings.operation.is_some());
        let Some(trade) = self.dealings.trade.as_mut().filter(|trade| id < trade.partner && !is_busy) else { return };
        let (Some(mine), Some(theirs)) = (trade.confirmed, trade.partner_confirmed) else { return };
        let table = (trade.own.1, trade.other.1);
        if (mine.own, mine.other) != table || (theirs.other, theirs.own) != table {
            return;
        }
        trade.ordered = true;
        let partner = OrderId { source: trade.partner, sequence: theirs.operation };
        let kind = OrderKind::Swap { partner, give: trade.own.0, take: trade.other.0 };
        self.dealings.operation = Some(mine.operation);
        given.orders.push(Order { id: OrderId { source: id, sequence: mine.operation }, kind });
    }

    /// Ends the trade on this side, and tells the other.
    fn end_trade(&mut self, refusal: Refusal, given: &mut Given) {
        let Some(trade) = self.dealings.trade.take() else { return };
        let effect = TradeEffect::End { refusal };
        given.effects.push(self.effect(trade.partner, EffectKind::Trade { number: trade.number, effect }));
        given.words.push(ended(trade.partner, refusal));
    }

    /// Looks now and then whether the other side of its trade is still there.
    pub fn watch_trade(&mut self, tick: u64, frames: &Frames, given: &mut Given) {
        // In place: a trade is long, and hardly anybody has one.
        let open = self.dealings.trade.as_ref().filter(|trade| !trade.ordered);
        let Some(&Trade { partner, since, .. }) = open else { return };
        if self.released {
            self.end_trade(Refusal::Gone, given);
        } else if (tick + mix(self.body.id.0) % WATCH_TICKS).is_multiple_of(WATCH_TICKS) {
            match frames.find(partner) {
                None => self.end_trade(Refusal::Gone, given),
                Some(seen) if !within(self.body.grid(), seen.position, TRADE_LEASH) => {
                    self.end_trade(Refusal::TooFar, given);
                }
                Some(_) if tick >= since + TRADE_TICKS => self.end_trade(Refusal::Cancelled, given),
                Some(_) => (),
            }
        }
    }

    /// The ledger answered an order of its own, or the trade that it confirmed.
    pub fn settle(&mut self, operation: u64, refusal: Refusal, given: &mut Given) {
        if self.dealings.operation == Some(operation) {
            self.dealings.operation = None;
        }
        let is_trade = |trade: &Trade| trade.confirmed.is_some_and(|word| word.operation == operation);
        if let Some(trade) = self.dealings.trade.take_if(|trade| is_trade(trade)) {
            given.words.push(ended(trade.partner, refusal));
        }
        // Both may have confirmed while this one asked for something.
        self.order_trade(given);
    }

    /// A thing that it reached for did not come: the ledger was never asked.
    pub fn miss(&mut self, operation: u64, refusal: Refusal) -> Option<Word> {
        self.dealings.operation.take_if(|pending| *pending == operation)?;
        Some(Word::Answer { stream: Stream::Goods, number: operation, refusal })
    }

    /// Orders the reward of a deed that it does for the first time.
    pub fn find_deed(&mut self, tick: u64) -> Option<Order> {
        let region = |cell: i16| cell.clamp(0, LAND_CELLS - 1) / REGION_CELLS;
        let deed = (region(self.body.home.y) * 8 + region(self.body.home.x)) as u8;
        let dealings = &mut self.dealings;
        if self.guest || dealings.deeds & 1 << deed != 0 || dealings.deed_asked.is_some() || tick < dealings.deed_tick {
            return None;
        }
        dealings.deed_asked = Some(deed);
        let source = EntityId::deeds(self.body.id.number());
        Some(Order { id: OrderId { source, sequence: tick }, kind: OrderKind::Deed { deed } })
    }

    /// The reward of a deed was settled.
    pub fn reward(&mut self, deed: u8, done: bool, tick: u64) {
        if self.dealings.deed_asked.take_if(|asked| *asked == deed).is_some() {
            if done {
                self.dealings.deeds |= 1 << deed;
            } else {
                self.dealings.deed_tick = tick + DEED_TICKS;
            }
        }
    }
}

impl Thing {
    /// Somebody reaches for it: the first gets it ordered, the others hear that it is taken.
    pub fn lift(&mut self, by: EntityId, operation: u64) -> Deal {
        if self.taken.is_some() && !planted(Bug::TwoWinners) {
            return Deal::Effect(self.answer(by, operation, Refusal::Taken));
        }
        let id = OrderId { source: by, sequence: operation };
        self.taken = Some(id);
        Deal::Order(Order { id, kind: OrderKind::PickUp { thing: self.thing.number } })
    }

    fn answer(&mut self, to: EntityId, operation: u64, refusal: Refusal) -> Effect {
        self.sequence += 1;
        let kind = EffectKind::Missed { operation, refusal };
        Effect { target: Target::Entity(to), source: self.body.id, sequence: self.sequence, kind }
    }

    /// Orders its end when it lay for too long.
    pub fn age(&mut self, tick: u64) -> Option<Order> {
        if tick < self.thing.end_tick || self.taken.is_some() {
            return None;
        }
        let id = OrderId { source: self.body.id, sequence: tick };
        self.taken = Some(id);
        Some(Order { id, kind: OrderKind::Sweep { thing: self.thing.number } })
    }
}

fn within(a: (i32, i32), b: (i32, i32), reach: i32) -> bool {
    distance(a, b) <= i64::from(reach) * i64::from(reach)
}

fn news(step: TradeStep, partner: EntityId) -> Word {
    Word::Trade(TradeNews { step, partner, offer: Offer::default(), number: 0, refusal: Refusal::None })
}

fn ended(partner: EntityId, refusal: Refusal) -> Word {
    let step = TradeStep::Ended;
    Word::Trade(TradeNews { step, partner, offer: Offer::default(), number: 0, refusal })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(dealings: &Dealings) -> u64 {
        let mut digest = Digest::new(0);
        dealings.digest(&mut digest);
        digest.finish()
    }

    #[test]
    fn who_asked_whom_and_who_confirmed_is_in_the_digest() {
        let question = Some((EntityId::character(2), 9));
        let asks = Dealings { asks: question, ..Dealings::default() };
        let asked_by = Dealings { asked_by: question, ..Dealings::default() };
        assert_ne!(digest(&asks), digest(&asked_by));
        let word = Some(Confirmation { operation: 1, own: 2, other: 3 });
        let trade = Trade {
            partner: EntityId::character(2),
            number: 3,
            since: 4,
            own: Default::default(),
            other: Default::default(),
            confirmed: word,
            partner_confirmed: None,
            ordered: false,
        };
        let confirmed = Dealings { trade: Some(trade), ..Dealings::default() };
        let trade = Trade { confirmed: None, partner_confirmed: word, ..trade };
        let partner_confirmed = Dealings { trade: Some(trade), ..Dealings::default() };
        assert_ne!(digest(&confirmed), digest(&partner_confirmed));
    }
}
