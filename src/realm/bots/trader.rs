//! What a bot does with goods: it trades, mails, drops, picks up, keeps, and tries what it must not.
//!
//! Owns what the bot believes to have, its operations without an answer, and the trade that it is in. Promises: an
//! operation keeps its number and its content until it is answered, over any number of sessions; what it was told is
//! remembered. What it wants is a function of its seed, its own ticks and what it was told.

use std::collections::{BTreeMap, VecDeque};

use crate::wire::goods::{Currency, Dropped, GoodsNews, ItemRef, MailNews, Offer, Refusal, Shelf};
use crate::wire::ids::EntityId;
use crate::wire::messages::{GoodsRequest, Request, TradeNews, TradeStep};
use crate::world::random::{below, random};

/// Client ticks between two deals.
const DEAL_TICKS: u32 = 16;
/// Operations under way at a time.
const PENDING_MAX: usize = 2;
/// Client ticks without an answer after which it asks what became of an operation.
const RECALL_TICKS: u32 = 240;
/// Answers that are remembered for whoever checks them. The oldest give way.
const TOLD_MAX: usize = 65_536;
/// Bad operations tried at a time in a hundred deals.
const BAD_DEALS: u32 = 6;

/// What a client has, as it was told.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ClientGoods {
    /// It was told everything at least once.
    pub known: bool,
    /// Coins that are not 0.
    pub balances: BTreeMap<(Shelf, Currency), u64>,
    /// Items by uid: version, kind, where.
    pub items: BTreeMap<u64, (u32, u16, Shelf)>,
    /// Mails that wait for it.
    pub mails: BTreeMap<u64, MailNews>,
}

impl ClientGoods {
    /// Hears news.
    pub fn hear(&mut self, news: &GoodsNews) {
        if news.whole {
            *self = ClientGoods { known: true, ..ClientGoods::default() };
        }
        for &(shelf, currency, amount) in &news.balances {
            match amount {
                0 => self.balances.remove(&(shelf, currency)),
                _ => self.balances.insert((shelf, currency), amount),
            };
        }
        for &(item, kind, shelf) in &news.items {
            match shelf {
                Some(shelf) => self.items.insert(item.uid, (item.version, kind, shelf)),
                None => self.items.remove(&item.uid),
            };
        }
        for &mail in &news.mails {
            match mail.gone {
                false => self.mails.insert(mail.number, mail),
                true => self.mails.remove(&mail.number),
            };
        }
    }

    /// The first difference to what it has, in words.
    pub fn difference(&self, whole: &GoodsNews) -> Option<String> {
        let mut other = ClientGoods::default();
        other.hear(whole);
        if self.balances != other.balances {
            return Some(format!("it has {:?} and not {:?}", other.balances, self.balances));
        }
        if self.items != other.items {
            return Some(format!("it has items {:?} and not {:?}", other.items, self.items));
        }
        let numbers = |goods: &ClientGoods| goods.mails.keys().copied().collect::<Vec<_>>();
        (self.mails != other.mails).then(|| format!("mails {:?} wait and not {:?}", numbers(&other), numbers(self)))
    }

    fn coins(&self, shelf: Shelf) -> i64 {
        self.balances.get(&(shelf, Currency::Coin)).map_or(0, |&amount| amount as i64)
    }

    fn item(&self, shelf: Shelf, nth: u32) -> Option<ItemRef> {
        let there = || self.items.iter().filter(|(_, item)| item.2 == shelf);
        let count = there().count().max(1);
        let (&uid, &(version, ..)) = there().nth(nth as usize % count)?;
        Some(ItemRef { uid, version })
    }
}

/// What it sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Deal {
    /// Of the stream `World`.
    Request(Request),
    /// Of the stream `Goods`, with the number that names it for ever.
    Order(u64, Request),
}

/// An operation without an answer.
#[derive(Clone, Copy, Debug)]
struct Pending {
    operation: u64,
    /// To be sent again when it never was; none: it is asked for alone.
    request: Option<Request>,
    since: u32,
    /// It was asked for in this session: `Unknown` now says that it never was.
    asking: bool,
    /// Its answer may never come by itself.
    lost: bool,
    loot: bool,
}

/// The trade that it is in.
#[derive(Clone, Copy, Debug, Default)]
struct Trading {
    offered: bool,
    theirs: Option<u16>,
    confirmed: bool,
}

/// What became of its deals.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct DealCounts {
    /// Operations sent for the first time.
    pub sent: u64,
    /// Answered as done.
    pub acked: u64,
    /// Answered as refused.
    pub refused: u64,
    /// Trades that were done.
    pub trades: u64,
    /// Things picked up.
    pub loots: u64,
    /// Mails sent.
    pub mails: u64,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Trader {
    /// What it believes to have.
    pub goods: ClientGoods,
    /// What became of its deals.
    pub counts: DealCounts,
    /// Things on the ground and where they lie, 1/256 m, newest first, as its host knows of them: then what it wants does
    /// not depend on what it was shown. None: it looks for itself.
    pub things: Option<Vec<(EntityId, (i32, i32))>>,
    /// It begins nothing new.
    pub rests: bool,
    seed: u64,
    number: u64,
    newest: u64,
    pending: Vec<Pending>,
    trading: Option<Trading>,
    asked: bool,
    told: VecDeque<(u64, Refusal)>,
    told_before: usize,
    last_done: u64,
}

impl Trader {
    /// The trader in the `number`-th bot of a run.
    pub fn new(seed: u64, number: u64) -> Trader {
        Trader { seed, number, ..Trader::default() }
    }

    /// Operations that were answered, from the `from`-th on: their numbers and what was answered.
    pub fn told_since(&self, from: usize) -> impl Iterator<Item = (u64, Refusal)> + '_ {
        self.told.iter().skip(from.saturating_sub(self.told_before)).copied()
    }

    /// Client tick since which the oldest operation waits for its answer.
    pub fn oldest_pending(&self) -> Option<u32> {
        self.pending.iter().map(|pending| pending.since).min()
    }

    /// A new session begins: what waits is asked for in it.
    pub fn reconnect(&mut self) {
        (self.trading, self.asked) = (None, false);
        self.goods = ClientGoods::default();
        self.pending.iter_mut().for_each(|pending| (pending.lost, pending.asking) = (true, false));
    }

    /// It forgets everything that the next Welcome does not say.
    pub fn forget(&mut self) {
        self.pending.clear();
        (self.newest, self.last_done) = (0, 0);
    }

    /// The Welcome named the newest order that was answered. Numbers go on from there, and from those that wait: what the
    /// world alone refused before is not counted by anybody any more.
    pub fn welcome(&mut self, order: u64) {
        self.newest = self.pending.iter().map(|pending| pending.operation).fold(order, u64::max);
    }

    /// Whether this is a tick in which it begins something.
    pub fn may_deal(&self, tick: u32) -> bool {
        tick.wrapping_add(self.number as u32).is_multiple_of(DEAL_TICKS)
    }

    /// What it sends now, if anything.
    pub fn deal(&mut self, tick: u32, own: EntityId, friend: Option<EntityId>, near: Option<EntityId>) -> Option<Deal> {
        if !self.goods.known {
            return None;
        }
        if let Some(recall) = self.recall(tick) {
            return Some(recall);
        }
        if !self.may_deal(tick) {
            return None;
        }
        let (seed, number) = (self.seed, EntityId(self.number));
        let draw = move |n: u64, bound: u32| below(random(seed, number, tick.into(), 40 + n), bound);
        if let Some(trading) = self.trading {
            return self.go_on_trading(trading, tick, draw);
        }
        if self.rests || self.pending.len() >= PENDING_MAX {
            return None;
        }
        let friend = friend?;
        if self.asked && draw(0, 4) > 0 {
            self.asked = false;
            return Some(Deal::Request(Request::TradeAsk { target: friend }));
        }
        if draw(1, 100) < BAD_DEALS {
            return self.cheat(tick, own, friend, draw);
        }
        let near = near.or_else(|| {
            let things = self.things.as_deref().unwrap_or_default();
            things.get(draw(2, 8) as usize % things.len().max(1)).map(|&(thing, _)| thing)
        });
        let wish = match draw(3, 12) {
            0..=3 => return Some(Deal::Request(Request::TradeAsk { target: friend })),
            4 => self.move_item(draw),
            5 => self.move_coins(draw),
            6 => self.goods.item(Shelf::Bag, draw(4, 64)).map(|item| GoodsRequest::Drop { what: Dropped::Item(item) }),
            7 => Some(GoodsRequest::Drop { what: Dropped::Coins(1 + i64::from(draw(4, 5))) }),
            8 | 9 => near.map(|thing| GoodsRequest::PickUp { thing }),
            10 => Some(self.mail(friend, draw)),
            _ => self.answer_mail(draw),
        };
        wish.map(|wish| self.operate(wish, tick))
    }

    /// Asks what became of an operation that waits for too long, or from before this session.
    fn recall(&mut self, tick: u32) -> Option<Deal> {
        let is_old = |pending: &Pending| tick.wrapping_sub(pending.since) > RECALL_TICKS;
        let lost = self.pending.iter_mut().find(|pending| pending.lost || is_old(pending))?;
        (lost.lost, lost.asking, lost.since) = (false, true, tick);
        Some(Deal::Order(lost.operation, Request::Goods(GoodsRequest::Recall)))
    }

    fn next_operation(&mut self) -> u64 {
        self.newest += 1;
        self.counts.sent += 1;
        self.newest
    }

    fn operate(&mut self, wish: GoodsRequest, tick: u32) -> Deal {
        let (operation, request) = (self.next_operation(), Request::Goods(wish));
        // A thing may be gone by then, and the ledger never asked: that is not tried twice.
        let loot = matches!(wish, GoodsRequest::PickUp { .. });
        self.wait(operation, (!loot).then_some(request), tick, loot);
        Deal::Order(operation, request)
    }

    fn wait(&mut self, operation: u64, request: Option<Request>, since: u32, loot: bool) {
        self.pending.push(Pending { operation, request, since, asking: false, lost: false, loot });
    }

    fn go_on_trading(&mut self, trading: Trading, tick: u32, draw: impl Fn(u64, u32) -> u32) -> Option<Deal> {
        let mut next = trading;
        let message = match (trading.offered, trading.theirs) {
            _ if draw(10, 24) == 0 || self.rests => Deal::Request(Request::TradeCancel),
            (false, _) => {
                let coins = (1 + i64::from(draw(11, 20))).min(self.goods.coins(Shelf::Bag));
                let item = self.goods.item(Shelf::Bag, draw(12, 64)).filter(|_| draw(13, 3) == 0);
                (next.offered, next.confirmed) = (true, false);
                let offer = Offer::new(coins, item.as_slice()).expect("one item fits");
                Deal::Request(Request::TradeOffer { offer })
            }
            (true, Some(_)) if !trading.confirmed && draw(14, 12) == 0 => {
                next.offered = false;
                return self.put_trading(next, None);
            }
            (true, Some(offer)) if !trading.confirmed => {
                next.confirmed = true;
                let operation = self.next_operation();
                self.wait(operation, None, tick, false);
                Deal::Order(operation, Request::TradeConfirm { offer })
            }
            _ => return None,
        };
        self.put_trading(next, Some(message))
    }

    fn put_trading(&mut self, trading: Trading, deal: Option<Deal>) -> Option<Deal> {
        self.trading = Some(trading);
        deal
    }

    fn move_item(&self, draw: impl Fn(u64, u32) -> u32) -> Option<GoodsRequest> {
        let from = [Shelf::Mailbox, Shelf::Bank, Shelf::Equipment, Shelf::Bag];
        let from = from
            .into_iter()
            .find(|&shelf| self.goods.item(shelf, 0).is_some() && (shelf == Shelf::Mailbox || draw(5, 2) == 0))?;
        let to = match from {
            Shelf::Bag => [Shelf::Bank, Shelf::Equipment][draw(6, 2) as usize],
            _ => Shelf::Bag,
        };
        Some(GoodsRequest::Move { item: self.goods.item(from, draw(7, 64))?, from, to })
    }

    fn move_coins(&self, draw: impl Fn(u64, u32) -> u32) -> Option<GoodsRequest> {
        let mailbox = self.goods.coins(Shelf::Mailbox);
        let (from, to, has) = match draw(5, 2) {
            _ if mailbox > 0 => (Shelf::Mailbox, Shelf::Bag, mailbox),
            0 => (Shelf::Bag, Shelf::Bank, self.goods.coins(Shelf::Bag)),
            _ => (Shelf::Bank, Shelf::Bag, self.goods.coins(Shelf::Bank)),
        };
        let amount = 1 + i64::from(draw(6, has.clamp(1, 100) as u32));
        Some(GoodsRequest::MoveCoins { currency: Currency::Coin, amount, from, to })
    }

    fn mail(&mut self, to: EntityId, draw: impl Fn(u64, u32) -> u32) -> GoodsRequest {
        let item = self.goods.item(Shelf::Bag, draw(5, 64)).filter(|_| draw(6, 2) == 0);
        let offer = Offer::new(1 + i64::from(draw(7, 9)), item.as_slice()).expect("one item fits");
        let price = if draw(8, 2) == 0 { 0 } else { 1 + i64::from(draw(9, 30)) };
        self.counts.mails += 1;
        GoodsRequest::Send { to, offer, price }
    }

    fn answer_mail(&self, draw: impl Fn(u64, u32) -> u32) -> Option<GoodsRequest> {
        let (&mail, _) = self.goods.mails.first_key_value()?;
        Some(if draw(5, 3) == 0 { GoodsRequest::ReturnMail { mail } } else { GoodsRequest::TakeMail { mail } })
    }

    /// What must be refused, or do nothing.
    fn cheat(&mut self, tick: u32, own: EntityId, friend: EntityId, draw: impl Fn(u64, u32) -> u32) -> Option<Deal> {
        let amount = [0, -1, -20, i64::MIN, i64::MAX, 1 << 50][draw(15, 6) as usize];
        let (from, to) = (Shelf::Bag, Shelf::Bank);
        let mine = self.goods.item(Shelf::Bag, draw(16, 64));
        let stale = mine.map(|item| ItemRef { version: item.version.wrapping_sub(1), ..item });
        let foreign = ItemRef { uid: 1 + u64::from(draw(17, 400)), version: 1 + draw(18, 3) };
        let offer = Offer::new(amount, &[]).expect("no item fits");
        let wish = match draw(19, 12) {
            0 => GoodsRequest::MoveCoins { currency: Currency::Coin, amount, from, to },
            1 => GoodsRequest::Drop { what: Dropped::Coins(amount) },
            2 => GoodsRequest::Send { to: friend, offer, price: 3 },
            3 => GoodsRequest::Send {
                to: friend,
                offer: Offer::new(1, &[]).expect("no item fits"),
                price: amount.min(-1),
            },
            4 => GoodsRequest::Send { to: own, offer: Offer::new(1, &[]).expect("no item fits"), price: 0 },
            5 => GoodsRequest::Drop { what: Dropped::Item(stale?) },
            6 => GoodsRequest::Move { item: foreign, from, to },
            7 => GoodsRequest::Move { item: mine?, from, to: Shelf::Mailbox },
            8 => GoodsRequest::TakeMail { mail: u64::from(draw(20, 300)) },
            9 => return Some(Deal::Request(Request::TradeAsk { target: own })),
            // A number that was used, with other content, or one from long ago.
            10 => {
                let wish = GoodsRequest::Drop { what: Dropped::Coins(3) };
                return Some(Deal::Order(self.last_done, Request::Goods(wish)));
            }
            _ => {
                let operation = self.newest.saturating_sub(u64::from(6 + draw(21, 20)));
                let wish = GoodsRequest::MoveCoins { currency: Currency::Coin, amount: 1, from, to };
                return Some(Deal::Order(operation, Request::Goods(wish)));
            }
        };
        Some(self.operate(wish, tick))
    }

    /// The world refused an order: the ledger was never asked.
    pub fn hear_refusal(&mut self, operation: u64, refusal: Refusal) {
        // Whether it was asked before that is answered by the ledger.
        let refused = self.pending.iter().position(|pending| pending.operation == operation && !pending.asking);
        if let Some(at) = refused {
            let loot = self.pending.remove(at).loot;
            self.counts.refused += 1;
            if let Some(trading) = self.trading.as_mut().filter(|_| !loot && refusal != Refusal::Full) {
                trading.confirmed = false;
            }
        }
    }

    /// The ledger answered an order; what is to be sent again because it never was done.
    pub fn hear_answer(&mut self, operation: u64, refusal: Refusal, tick: u32) -> Option<Deal> {
        let at = self.pending.iter().position(|pending| pending.operation == operation);
        if self.told.len() == TOLD_MAX {
            self.told.pop_front();
            self.told_before += 1;
        }
        self.told.push_back((operation, refusal));
        let at = at?;
        let pending = &mut self.pending[at];
        if refusal == Refusal::Unknown
            && pending.asking
            && let Some(request) = pending.request
        {
            (pending.asking, pending.since) = (false, tick);
            return Some(Deal::Order(operation, request));
        }
        let loot = self.pending.remove(at).loot;
        match refusal {
            Refusal::None => {
                self.counts.acked += 1;
                self.counts.loots += u64::from(loot);
                self.last_done = operation;
            }
            _ => self.counts.refused += 1,
        }
        None
    }

    /// News of a trade.
    pub fn hear_trade(&mut self, news: &TradeNews, friend: Option<EntityId>) {
        match news.step {
            TradeStep::Asked => self.asked = Some(news.partner) == friend,
            TradeStep::Opened => self.trading = Some(Trading::default()),
            TradeStep::Offered => {
                if let Some(trading) = &mut self.trading {
                    (trading.theirs, trading.confirmed) = (Some(news.number), false);
                }
            }
            TradeStep::Ended => {
                self.counts.trades += u64::from(news.refusal == Refusal::None);
                self.trading = None;
                // A confirmation without an order behind it is answered by nobody. Who asks already is answered once.
                let is_confirmation =
                    |pending: &&mut Pending| pending.request.is_none() && !pending.loot && !pending.asking;
                self.pending.iter_mut().filter(is_confirmation).for_each(|pending| pending.lost = true);
            }
            _ => (),
        }
    }

    /// What is under way, in words.
    pub fn under_way(&self) -> String {
        format!("trade {:?}, waiting for {:?}", self.trading, self.pending)
    }

    /// Nothing is under way.
    pub fn is_settled(&self) -> bool {
        self.pending.is_empty() && self.trading.is_none() && self.goods.known
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::MESSAGE_BYTES_MAX;
    use crate::wire::goods::ItemRef;
    use crate::wire::messages::ServerMessage;

    #[test]
    fn news_added_up_and_told_in_parts_says_the_same() {
        for seed in 0..40 {
            let draw = |n: u64, bound: u32| below(random(seed, EntityId::NONE, 0, n), bound);
            let (mut at_once, mut later, mut sum) =
                (ClientGoods::default(), ClientGoods::default(), GoodsNews::default());
            for step in 0..60u64 {
                let at = |n: u64| step * 4_096 + n;
                let mut news = GoodsNews { whole: draw(at(0), 20) == 0, ..GoodsNews::default() };
                for n in 0..u64::from(draw(at(1), 120)) {
                    let uid = draw(at(8 + n * 4), 900).into();
                    let item = ItemRef { uid, version: step as u32 };
                    let place = [None, Some(Shelf::Bag), Some(Shelf::Mailbox)][draw(at(9 + n * 4), 3) as usize];
                    news.items.retain(|(other, ..)| other.uid != uid);
                    news.items.push((item, 1, place));
                    let number = draw(at(10 + n * 4), 400).into();
                    let gone = draw(at(11 + n * 4), 2) == 0;
                    news.mails.retain(|other| other.number != number);
                    news.mails.push(MailNews { number, from: 1, price: step, coins: 1, items: 0, end_tick: 9, gone });
                }
                news.balances.push((Shelf::Bag, Currency::Coin, step % 3));
                at_once.hear(&news);
                sum.absorb(news);
                for _ in 0..draw(at(2), 3) {
                    later.hear(&sum.take_part());
                }
            }
            while !sum.is_empty() {
                let part = sum.take_part();
                assert!(ServerMessage::Goods(part.clone()).encode().len() <= MESSAGE_BYTES_MAX);
                later.hear(&part);
            }
            assert_eq!(at_once, later, "seed {seed}");
        }
    }
}
