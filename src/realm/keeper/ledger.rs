//! The ledger: which orders are done, and what was answered.
//!
//! Owns the book, the mails that wait, the things on the ground, and the last answers of each source that lasts.
//! Promises: a deterministic state machine of its orders and the clock; an order is done once, and the same order gets
//! the first answer again; who may order what, and every bound, is checked here and refused by name; a break of the
//! sums stops the flow concerned and nothing else. Never does I/O: its keeper writes what changed (`ledger/log.rs`) in
//! one batch and sends the answers after it.

mod answers;
mod log;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub use answers::{Answer, Answers, Known, is_remembered};
pub use log::Entry;

use super::book::{Book, Leg};
use crate::limits::{
    ACCOUNT_ITEMS_MAX, ANSWERS_KEPT, CELL_THINGS_MAX, COINS_MAX, DEED_COINS, EXPIRED_LOOKED_AT_MAX,
    EXPIRED_PER_CLOCK_MAX, MAIL_TICKS, MAILS_MAX, MAILS_PER_SENDER_MAX, POSTAGE_COINS, RECENT_ORDERS_MAX, THING_TICKS,
    THINGS_MAX,
};
use crate::planted::{Bug, planted};
use crate::wire::goods::{
    Account, Currency, Dropped, GoodsNews, ItemRef, MailNews, Offer, Order, OrderId, OrderKind, Refusal, Shelf, Thing,
};
use crate::wire::ids::{CellKey, EntityId, IdClass};
use crate::world::random::{Digest, mix};

/// Ticks that a mail may wait beyond its end before that counts as a break.
const MAIL_LATE_TICKS: u64 = 600;

/// Goods that wait in escrow for a receiver.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Mail {
    /// Sender, number of a character.
    pub from: u64,
    /// Receiver, likewise.
    pub to: u64,
    /// Coins that the receiver pays.
    pub price: u64,
    /// Tick in which it goes back.
    pub end_tick: u64,
}

/// What came of an order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Done {
    /// `None`: it was done.
    pub refusal: Refusal,
    /// It was not answered before, and its answer is remembered; else nothing changed.
    pub new: bool,
    /// What lies on the ground now.
    pub thing: Option<Thing>,
    /// What changed, by character.
    pub news: Vec<(u64, GoodsNews)>,
}

/// How long what is owned waits and how much of it fits; a realm has [`Terms::default`], the simulator less of both, so
/// that a short run meets every end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Terms {
    /// Ticks that a mail waits.
    pub mail_ticks: u64,
    /// Ticks that a thing lies on the ground.
    pub thing_ticks: u64,
    /// Items in one account, see [`ACCOUNT_ITEMS_MAX`].
    pub account_items_max: [usize; 7],
    /// Mails that wait for one character, see [`MAILS_MAX`].
    pub mails_max: usize,
    /// Things on the ground of one cell, see [`CELL_THINGS_MAX`].
    pub cell_things_max: u32,
    /// Answers remembered of each source, below 256, see [`ANSWERS_KEPT`].
    pub answers_kept: usize,
}

impl Default for Terms {
    fn default() -> Terms {
        Terms {
            mail_ticks: MAIL_TICKS,
            thing_ticks: THING_TICKS,
            account_items_max: ACCOUNT_ITEMS_MAX,
            mails_max: MAILS_MAX,
            cell_things_max: CELL_THINGS_MAX,
            answers_kept: ANSWERS_KEPT,
        }
    }
}

/// What else an order may depend on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Context {
    /// Realm tick.
    pub tick: u64,
    /// Number of the next character: all below exist.
    pub next_character: u64,
    /// Whether the character whose deed it is plays and did not do it yet.
    pub deed_is_new: bool,
}

/// The ledger of a realm.
#[derive(Clone, Debug)]
pub struct Ledger {
    /// Accounts and items.
    pub book: Book,
    /// Orders answered so far; the next one has this number plus one. Also names mails and things.
    orders: u64,
    mails: BTreeMap<u64, Mail>,
    mails_by_end: BTreeSet<(u64, u64)>,
    mails_by_receiver: BTreeSet<(u64, u64)>,
    things: BTreeMap<u64, Thing>,
    things_in: BTreeMap<CellKey, u32>,
    /// Answers by source.
    pub answers: Answers,
    dirty_mails: BTreeSet<u64>,
    dirty_things: BTreeSet<u64>,
    terms: Terms,
    entries: Vec<Entry>,
    recent: VecDeque<(Order, Refusal)>,
    breaks: Vec<String>,
    touched: Touched,
    digest: u64,
}

/// What the legs of one order touched.
#[derive(Clone, Debug, Default)]
struct Touched {
    accounts: BTreeSet<Account>,
    items: BTreeSet<u64>,
    mails: Vec<(u64, Mail, bool)>,
}

impl Ledger {
    /// A ledger in which nothing was ever ordered.
    pub fn new(terms: Terms) -> Ledger {
        Ledger {
            book: Book::new(terms.account_items_max),
            orders: 0,
            mails: BTreeMap::new(),
            mails_by_end: BTreeSet::new(),
            mails_by_receiver: BTreeSet::new(),
            things: BTreeMap::new(),
            things_in: BTreeMap::new(),
            answers: Answers::new(terms.answers_kept),
            dirty_mails: BTreeSet::new(),
            dirty_things: BTreeSet::new(),
            terms,
            entries: Vec::new(),
            recent: VecDeque::with_capacity(RECENT_ORDERS_MAX),
            breaks: Vec::new(),
            touched: Touched::default(),
            digest: 0,
        }
    }

    /// Orders answered since the realm began.
    pub fn orders(&self) -> u64 {
        self.orders
    }

    /// Things on the ground, by number.
    pub fn things(&self) -> impl Iterator<Item = &Thing> {
        self.things.values()
    }

    /// Number of these things.
    pub fn things_len(&self) -> usize {
        self.things.len()
    }

    /// Number of mails that wait.
    pub fn mails_len(&self) -> usize {
        self.mails.len()
    }

    /// Mails that wait, by number.
    pub fn mails(&self) -> impl Iterator<Item = (u64, &Mail)> {
        self.mails.iter().map(|(number, mail)| (*number, mail))
    }

    /// Breaks of the sums since the start, in words.
    pub fn breaks(&self) -> &[String] {
        &self.breaks
    }

    /// Digest of all that the ledger holds; equal ledgers have equal ones.
    pub fn digest(&self) -> u64 {
        let mails = self.mails.iter().map(|(&number, mail)| {
            let Mail { from, to, price, end_tick } = *mail;
            Digest::new(1).add(number).add(from).add(to).add(price).add(end_tick).finish()
        });
        let things = self.things.values().map(|thing| {
            let Thing { number, kind, x, y, end_tick } = *thing;
            Digest::new(2).add(number).add(kind.into()).add_i32(x).add_i32(y).add(end_tick).finish()
        });
        let open = mails.chain(things).fold(0, u64::wrapping_add);
        mix(self.book.digest().wrapping_add(open) ^ mix(self.orders) ^ self.digest)
    }

    /// Does an order, or gives the answer that it got before. The source's answers must be held
    /// (see `answers`), and a swap's partner's as well.
    pub fn apply(&mut self, order: Order, context: Context) -> Done {
        let digest = log::digest(&order.kind);
        match self.answers.look(order.id, digest, order.kind == OrderKind::Recall) {
            Known::Before(refusal) | Known::Refused(refusal) => {
                return Done { refusal, new: false, thing: None, news: Vec::new() };
            }
            Known::New => (),
        }
        let refusal = self.refuse_partner(&order);
        let done = refusal.map_or_else(|| self.perform(&order, context), Err);
        let (refusal, thing) = match done {
            Ok(thing) => (Refusal::None, thing),
            Err(refusal) => (refusal, None),
        };
        self.note(order, refusal, digest, context.tick);
        Done { refusal, new: true, thing, news: self.news() }
    }

    /// A swap's other name must be as new as its own: each side gets one answer for one number.
    fn refuse_partner(&self, order: &Order) -> Option<Refusal> {
        let OrderKind::Swap { partner, .. } = order.kind else { return None };
        if partner.source == order.id.source || partner.source.class() != IdClass::Character {
            return None;
        }
        match self.answers.look(partner, 0, false) {
            Known::New => None,
            Known::Before(_) => Some(Refusal::Reused),
            Known::Refused(refusal) => Some(refusal),
        }
    }

    /// Does a new order; whatever comes of it takes the next number.
    fn perform(&mut self, order: &Order, context: Context) -> Result<Option<Thing>, Refusal> {
        self.touched = Touched::default();
        let number = self.orders + 1;
        let mut legs = Vec::new();
        let follow = self.compile(order, number, context, &mut legs)?;
        self.book.post(&legs)?;
        let thing = self.follow(follow, number);
        self.touch(&legs);
        self.audit(&legs);
        Ok(thing)
    }

    /// Does an order of the log again, in a ledger that did all orders before it; gives the answer of now.
    pub fn do_again(&mut self, entry: &Entry) -> Refusal {
        if let OrderKind::ReturnMail { mail } = entry.order.kind
            && entry.order.id.source == EntityId::KEEPER
        {
            self.orders += 1;
            self.touched = Touched::default();
            let expired = self.mails.contains_key(&mail) && self.expire(mail);
            return if expired { Refusal::None } else { Refusal::Unknown };
        }
        let partner = match entry.order.kind {
            OrderKind::Swap { partner, .. } => partner.source,
            _ => entry.order.id.source,
        };
        for source in [entry.order.id.source, partner] {
            if !self.answers.holds(source) {
                self.answers.restore(source, Vec::new());
            }
        }
        let refusal = match entry.refusal {
            // These two the answers before it gave.
            Refusal::Reused | Refusal::TooOld => self.refuse_partner(&entry.order).unwrap_or(Refusal::Unknown),
            _ => {
                // Whether a character or a deed was there is known from the answer alone.
                let next_character = if entry.refusal == Refusal::Unknown { 0 } else { u64::MAX };
                let deed_is_new = entry.refusal == Refusal::None;
                let context = Context { tick: entry.tick, next_character, deed_is_new };
                self.perform(&entry.order, context).map_or_else(|refusal| refusal, |_| Refusal::None)
            }
        };
        self.remember(&entry.order, refusal, log::digest(&entry.order.kind));
        refusal
    }

    /// What an order means: its legs, and what follows when they are done.
    fn compile(&self, order: &Order, number: u64, context: Context, legs: &mut Vec<Leg>) -> Result<Follow, Refusal> {
        let source = order.id.source;
        let reserved = source.class() == IdClass::Reserved;
        let who = source.number();
        let bag = Shelf::Bag.account(who);
        let is_character = source.class() == IdClass::Character;
        match order.kind {
            OrderKind::Grant { .. } | OrderKind::Pay { .. } if !reserved => return Err(Refusal::NotYours),
            OrderKind::Sweep { thing } if source != EntityId::thing(thing) => return Err(Refusal::NotYours),
            OrderKind::Deed { .. } if source.class() != IdClass::Deeds => return Err(Refusal::NotYours),
            OrderKind::Grant { .. } | OrderKind::Pay { .. } | OrderKind::Sweep { .. } | OrderKind::Deed { .. } => (),
            _ if !is_character => return Err(Refusal::NotYours),
            _ => (),
        }
        match order.kind {
            OrderKind::Move { item, from, to } => {
                if from == to || to == Shelf::Mailbox {
                    return Err(Refusal::NotNow);
                }
                legs.push(Leg::Item { item, from: from.account(who), to: to.account(who) });
            }
            OrderKind::MoveCoins { currency, amount, from, to } => {
                if from == to || to == Shelf::Mailbox || to == Shelf::Equipment {
                    return Err(Refusal::NotNow);
                }
                let amount = at_least_one(amount)?;
                legs.push(Leg::Coins { currency, amount, from: from.account(who), to: to.account(who) });
            }
            OrderKind::Drop { what, x, y } => {
                if self.is_full(CellKey::of_fine(x, y)) {
                    return Err(Refusal::Full);
                }
                let kind = self.drop(what, bag, Account::ground(number), legs)?;
                let end_tick = context.tick + self.terms.thing_ticks;
                return Ok(Follow::Lay(Thing { number, kind, x, y, end_tick }));
            }
            OrderKind::PickUp { thing } | OrderKind::Sweep { thing } => {
                self.things.get(&thing).ok_or(Refusal::Gone)?;
                let to = if matches!(order.kind, OrderKind::PickUp { .. }) { bag } else { Account::LOST };
                self.everything(Account::ground(thing), to, legs);
                return Ok(Follow::Lift(thing));
            }
            OrderKind::Swap { partner, give, take } => {
                self.swap(number, (order.id, partner), (give, take), legs)?;
                return Ok(Follow::Swapped(partner));
            }
            OrderKind::Send { to, offer, price } => {
                let mail = self.mail(who, to, offer, price, context)?;
                self.offer(offer, bag, Account::escrow(number), legs)?;
                coins(POSTAGE_COINS, bag, Account::BURN, legs);
                return Ok(Follow::Mail(mail));
            }
            OrderKind::TakeMail { mail: at } => {
                let mail = self.mail_for(who, at)?;
                if !planted(Bug::FreeMail) {
                    coins(mail.price, bag, Shelf::Mailbox.account(mail.from), legs);
                }
                self.everything(Account::escrow(at), bag, legs);
                return Ok(Follow::Unmail(at));
            }
            OrderKind::ReturnMail { mail: at } => {
                let mail = self.mail_for(who, at)?;
                self.everything(Account::escrow(at), Shelf::Mailbox.account(mail.from), legs);
                return Ok(Follow::Unmail(at));
            }
            OrderKind::Destroy { item } => legs.push(Leg::Item { item, from: bag, to: Account::BURN }),
            OrderKind::Deed { deed } => {
                if deed >= 64 || !(context.deed_is_new || planted(Bug::DeedTwice)) {
                    return Err(Refusal::NotNow);
                }
                coins(DEED_COINS, Account::MINT, bag, legs);
                legs.push(Leg::Coins { currency: Currency::Renown, amount: 1, from: Account::MINT, to: bag });
            }
            OrderKind::Recall => return Err(Refusal::Unknown),
            OrderKind::Grant { character, coins: amount, items } => {
                if character == 0 || character >= context.next_character {
                    return Err(Refusal::Unknown);
                }
                let bag = Shelf::Bag.account(character);
                coins(amount.into(), Account::MINT, bag, legs);
                legs.extend((1..=u16::from(items)).map(|kind| Leg::Make { kind, to: bag }));
            }
            OrderKind::Pay { from, to, amount } => {
                coins(at_least_one(amount)?, Shelf::Bag.account(from), Shelf::Bag.account(to), legs);
            }
        }
        Ok(Follow::Nothing)
    }

    /// Whether no more lies down in a cell.
    fn is_full(&self, cell: CellKey) -> bool {
        let here = self.things_in.get(&cell).copied().unwrap_or(0);
        let cell_is_full = here >= self.terms.cell_things_max && !planted(Bug::CellUnbounded);
        cell_is_full || self.things.len() >= THINGS_MAX
    }

    fn drop(&self, what: Dropped, bag: Account, ground: Account, legs: &mut Vec<Leg>) -> Result<u16, Refusal> {
        match what {
            Dropped::Item(item) => {
                legs.push(Leg::Item { item, from: bag, to: ground });
                Ok(self.book.item(item.uid).map_or(0, |held| held.kind))
            }
            Dropped::Coins(amount) => {
                coins(at_least_one(amount)?, bag, ground, legs);
                Ok(0)
            }
        }
    }

    fn swap(
        &self,
        number: u64,
        (id, partner): (OrderId, OrderId),
        (give, take): (Offer, Offer),
        legs: &mut Vec<Leg>,
    ) -> Result<(), Refusal> {
        if id.source == partner.source && !planted(Bug::TradeWithYourself) {
            return Err(Refusal::Yourself);
        }
        if partner.source.class() != IdClass::Character {
            return Err(Refusal::NotYours);
        }
        if give.is_empty() && take.is_empty() {
            return Err(Refusal::BadAmount);
        }
        let (mine, theirs) = (Shelf::Bag.account(id.source.number()), Shelf::Bag.account(partner.source.number()));
        // What the source gives waits in between, so that two full bags can be swapped item for item.
        let between = Account::escrow(number);
        self.offer(give, mine, between, legs)?;
        if !planted(Bug::HalfTrade) {
            self.offer(take, theirs, mine, legs)?;
        }
        let moved = |item: &ItemRef| ItemRef { version: item.version.wrapping_add(1), ..*item };
        coins(give.coins.unsigned_abs(), between, theirs, legs);
        legs.extend(give.items().iter().map(|item| Leg::Item { item: moved(item), from: between, to: theirs }));
        Ok(())
    }

    /// Legs of one side's goods.
    fn offer(&self, offer: Offer, from: Account, to: Account, legs: &mut Vec<Leg>) -> Result<(), Refusal> {
        let negative = offer.coins < 0 && !planted(Bug::NegativeAmount);
        if negative || offer.coins.unsigned_abs() > COINS_MAX {
            return Err(Refusal::BadAmount);
        }
        coins(offer.coins.unsigned_abs(), from, to, legs);
        legs.extend(offer.items().iter().map(|&item| Leg::Item { item, from, to }));
        Ok(())
    }

    fn mail(&self, from: u64, to: u64, offer: Offer, price: i64, context: Context) -> Result<Mail, Refusal> {
        if to == from {
            return Err(Refusal::Yourself);
        }
        if to == 0 || to >= context.next_character {
            return Err(Refusal::Unknown);
        }
        let price = u64::try_from(price).ok().filter(|&price| price <= COINS_MAX).ok_or(Refusal::BadAmount)?;
        if offer.is_empty() {
            return Err(Refusal::BadAmount);
        }
        let is_full = self.mails_of(to).count() >= self.terms.mails_max && !planted(Bug::MailsUnbounded);
        let of_sender = self.mails_of(to).filter(|number| self.mails[number].from == from).count();
        if is_full || of_sender >= MAILS_PER_SENDER_MAX {
            return Err(Refusal::Full);
        }
        Ok(Mail { from, to, price, end_tick: context.tick + self.terms.mail_ticks })
    }

    fn mails_of(&self, character: u64) -> impl Iterator<Item = u64> + '_ {
        self.mails_by_receiver.range((character, 0)..=(character, u64::MAX)).map(|&(_, number)| number)
    }

    fn mail_for(&self, who: u64, number: u64) -> Result<Mail, Refusal> {
        let mail = self.mails.get(&number).copied();
        mail.filter(|mail| mail.to == who || planted(Bug::AnybodysMail)).ok_or(Refusal::Unknown)
    }

    /// Legs that empty an account.
    fn everything(&self, from: Account, to: Account, legs: &mut Vec<Leg>) {
        let Some(holding) = self.book.holding(from) else { return };
        for currency in Currency::ALL {
            let amount = holding.balances[currency.index()];
            if amount > 0 {
                legs.push(Leg::Coins { currency, amount, from, to });
            }
        }
        for &uid in &holding.items {
            let version = self.book.item(uid).map_or(0, |item| item.version);
            legs.push(Leg::Item { item: ItemRef { uid, version }, from, to });
        }
    }

    /// What follows when the legs are done.
    fn follow(&mut self, follow: Follow, number: u64) -> Option<Thing> {
        match follow {
            Follow::Nothing => (),
            Follow::Lay(thing) => {
                self.add_thing(thing);
                return Some(thing);
            }
            Follow::Lift(thing) => {
                if !planted(Bug::ThingStays) {
                    let lifted = self.things.remove(&thing).expect("the order found it");
                    let here = self.things_in.get_mut(&lifted.cell()).expect("it was counted");
                    *here -= 1;
                    if *here == 0 {
                        self.things_in.remove(&lifted.cell());
                    }
                }
                self.dirty_things.insert(thing);
            }
            Follow::Swapped(partner) => self.touched.accounts.extend([Shelf::Bag.account(partner.source.number())]),
            Follow::Mail(mail) => self.add_mail(number, mail),
            Follow::Unmail(at) if planted(Bug::MailStays) && at % 4 == 1 => (),
            Follow::Unmail(at) => self.remove_mail(at),
        }
        None
    }

    fn add_thing(&mut self, thing: Thing) {
        self.restore_thing(thing);
        self.dirty_things.insert(thing.number);
    }

    fn add_mail(&mut self, number: u64, mail: Mail) {
        self.mails.insert(number, mail);
        self.mails_by_end.insert((mail.end_tick, number));
        self.mails_by_receiver.insert((mail.to, number));
        self.dirty_mails.insert(number);
        self.touched.mails.push((number, mail, false));
    }

    fn remove_mail(&mut self, number: u64) {
        let mail = self.mails.remove(&number).expect("the order found it");
        self.mails_by_end.remove(&(mail.end_tick, number));
        self.mails_by_receiver.remove(&(mail.to, number));
        self.dirty_mails.insert(number);
        self.touched.mails.push((number, mail, true));
    }

    /// Puts back a thing that was read from disk.
    pub fn restore_thing(&mut self, thing: Thing) {
        if self.things.insert(thing.number, thing).is_none() {
            *self.things_in.entry(thing.cell()).or_default() += 1;
        }
    }

    /// Puts back a mail that was read from disk.
    pub fn restore_mail(&mut self, number: u64, mail: Mail) {
        self.add_mail(number, mail);
        self.dirty_mails.clear();
        self.touched = Touched::default();
    }

    /// Puts back the counters that were read from disk.
    pub fn restore_counters(&mut self, orders: u64, digest: u64) {
        (self.orders, self.digest) = (orders, digest);
    }

    /// Digest of the answers given so far, which is durable with [`Ledger::orders`].
    pub fn rolled(&self) -> u64 {
        self.digest
    }

    /// Remembers the answer, and writes it to the log.
    fn note(&mut self, order: Order, refusal: Refusal, digest: u64, tick: u64) {
        self.remember(&order, refusal, digest);
        self.entries.push(Entry { number: self.orders, tick, order, refusal });
        if self.recent.len() == RECENT_ORDERS_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back((order, refusal));
    }

    /// Gives the order the next number, and its sources their answer.
    fn remember(&mut self, order: &Order, refusal: Refusal, digest: u64) {
        self.orders += 1;
        self.digest = mix(self.digest ^ digest ^ refusal.0 as u64);
        let number = self.orders;
        self.answers.add(order.id, digest, refusal, number);
        if let OrderKind::Swap { partner, .. } = order.kind
            && partner.source.class() == IdClass::Character
            && partner.source != order.id.source
            && self.answers.look(partner, 0, false) == Known::New
            && !planted(Bug::OneSidedAnswer)
        {
            self.answers.add(partner, log::PARTNER_DIGEST, refusal, number);
        }
    }

    fn touch(&mut self, legs: &[Leg]) {
        for leg in legs {
            match *leg {
                Leg::Coins { from, to, .. } => self.touched.accounts.extend([from, to]),
                Leg::Item { item, from, to } => {
                    self.touched.accounts.extend([from, to]);
                    self.touched.items.insert(item.uid);
                }
                Leg::Make { to, .. } => {
                    self.touched.accounts.insert(to);
                }
            }
        }
        let made = legs.iter().filter(|leg| matches!(leg, Leg::Make { .. })).count() as u64;
        let newest = self.book.totals.items_made;
        self.touched.items.extend(newest + 1 - made..=newest);
    }

    /// Stops the flows whose sums do not agree.
    fn audit(&mut self, legs: &[Leg]) {
        for flow in self.book.audit(legs) {
            if self.book.frozen.insert(flow) {
                let recent: Vec<String> = self
                    .recent
                    .iter()
                    .rev()
                    .take(4)
                    .map(|(order, refusal)| format!("{order:?}: {refusal:?}"))
                    .collect();
                self.breaks.push(format!(
                    "the sums of {flow:?} do not agree after order {}: that flow is stopped; the last orders, newest first: {}",
                    self.orders + 1,
                    recent.join("; ")
                ));
            }
        }
    }

    /// Time passes: mails that waited long enough go back. Gives what changed.
    pub fn clock(&mut self, tick: u64) -> Vec<(u64, GoodsNews)> {
        self.touched = Touched::default();
        if planted(Bug::MailForEver) {
            return Vec::new();
        }
        let due = self.mails_by_end.range(..=(tick, u64::MAX)).map(|&(_, number)| number);
        let due: Vec<u64> = due.take(EXPIRED_LOOKED_AT_MAX).collect();
        let mut expired = 0;
        for number in due {
            // One whose flow is frozen waits; the others go.
            if expired == EXPIRED_PER_CLOCK_MAX || !self.expire(number) {
                continue;
            }
            expired += 1;
            self.orders += 1;
            let id = OrderId { source: EntityId::KEEPER, sequence: self.orders };
            let order = Order { id, kind: OrderKind::ReturnMail { mail: number } };
            self.entries.push(Entry { number: self.orders, tick, order, refusal: Refusal::None });
        }
        self.news()
    }

    /// Sends a mail back; false when its flow is frozen: then it waits until somebody looked.
    fn expire(&mut self, number: u64) -> bool {
        let mail = self.mails[&number];
        let mut legs = Vec::new();
        self.everything(Account::escrow(number), Shelf::Mailbox.account(mail.from), &mut legs);
        if self.book.post(&legs).is_err() {
            return false;
        }
        self.remove_mail(number);
        self.touch(&legs);
        self.audit(&legs);
        true
    }

    /// Whether a mail waits for longer than it may; looked at by the simulator and the check from outside.
    pub fn has_overdue_mail(&self, tick: u64) -> bool {
        self.mails_by_end.first().is_some_and(|&(end_tick, _)| end_tick + MAIL_LATE_TICKS < tick)
    }

    /// What the touched characters must hear.
    fn news(&mut self) -> Vec<(u64, GoodsNews)> {
        let touched = std::mem::take(&mut self.touched);
        let mut news: BTreeMap<u64, GoodsNews> = BTreeMap::new();
        for &account in &touched.accounts {
            let Some(shelf) = account.shelf() else { continue };
            let told = news.entry(account.owner()).or_default();
            for currency in Currency::ALL {
                told.balances.push((shelf, currency, self.book.balance(account, currency)));
            }
        }
        for &uid in &touched.items {
            let item = self.book.item(uid);
            for (&character, told) in &mut news {
                let shelf = item.and_then(|item| item.place.shelf().filter(|_| item.place.owner() == character));
                let (version, kind) = item.map_or((0, 0), |item| (item.version, item.kind));
                told.items.push((ItemRef { uid, version }, kind, shelf));
            }
        }
        for &(number, mail, gone) in &touched.mails {
            news.entry(mail.to).or_default().mails.push(self.mail_news(number, mail, gone));
        }
        news.into_iter().collect()
    }

    fn mail_news(&self, number: u64, mail: Mail, gone: bool) -> MailNews {
        let holding = self.book.holding(Account::escrow(number));
        MailNews {
            number,
            from: mail.from,
            price: mail.price,
            coins: holding.map_or(0, |holding| holding.balances[Currency::Coin.index()]),
            items: holding.map_or(0, |holding| holding.items.len() as u8),
            end_tick: mail.end_tick,
            gone,
        }
    }

    /// Takes the mails that changed, each as it is now.
    pub fn take_dirty_mails(&mut self) -> Vec<(u64, Option<Mail>)> {
        let mails = std::mem::take(&mut self.dirty_mails).into_iter();
        mails.map(|number| (number, self.mails.get(&number).copied())).collect()
    }

    /// Takes the things that changed, likewise.
    pub fn take_dirty_things(&mut self) -> Vec<(u64, Option<Thing>)> {
        let things = std::mem::take(&mut self.dirty_things).into_iter();
        things.map(|number| (number, self.things.get(&number).copied())).collect()
    }

    /// Entries that are to be written.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Takes the entries that are to be written.
    pub fn take_entries(&mut self) -> Vec<Entry> {
        std::mem::take(&mut self.entries)
    }

    /// Everything that a character has.
    pub fn whole(&self, character: u64) -> GoodsNews {
        let mut news = GoodsNews { whole: true, ..GoodsNews::default() };
        for shelf in Shelf::ALL {
            let Some(holding) = self.book.holding(shelf.account(character)) else { continue };
            for currency in Currency::ALL {
                news.balances.push((shelf, currency, holding.balances[currency.index()]));
            }
            for &uid in &holding.items {
                let item = self.book.item(uid).expect("what is shelved is somewhere");
                news.items.push((ItemRef { uid, version: item.version }, item.kind, Some(shelf)));
            }
        }
        news.mails =
            self.mails_of(character).map(|number| self.mail_news(number, self.mails[&number], false)).collect();
        news
    }
}

/// What happens besides the legs.
enum Follow {
    Nothing,
    Lay(Thing),
    Lift(u64),
    Swapped(OrderId),
    Mail(Mail),
    Unmail(u64),
}

fn at_least_one(amount: i64) -> Result<u64, Refusal> {
    let amount = if planted(Bug::NegativeAmount) { amount.unsigned_abs() } else { u64::try_from(amount).unwrap_or(0) };
    if (1..=COINS_MAX).contains(&amount) { Ok(amount) } else { Err(Refusal::BadAmount) }
}

/// A leg of coins, unless there are none.
fn coins(amount: u64, from: Account, to: Account, legs: &mut Vec<Leg>) {
    if amount > 0 {
        legs.push(Leg::Coins { currency: Currency::Coin, amount, from, to });
    }
}

#[cfg(test)]
mod tests;
