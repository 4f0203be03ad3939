//! The reference model of the ledger: the same rules, written a second time, plainly.
//!
//! Owns balances and items in two maps. Promises: it shares no code with the ledger and no cleverness with anything: an
//! order is tried on a copy of what it touches and taken over when nothing refused. Slow, and never used to serve.

use std::collections::BTreeMap;

use crate::keeper::{Ledger, Terms};
use crate::limits::{COINS_MAX, DEED_COINS, MAILS_PER_SENDER_MAX, POSTAGE_COINS, THINGS_MAX};
use crate::wire::goods::{
    Account, Currency, Dropped, ItemRef, Offer, Order, OrderId, OrderKind, Refusal, Shelf, Thing,
};
use crate::wire::ids::{CellKey, EntityId, IdClass};

/// What was asked of it, and what it answered: enough to know a repeat.
#[derive(Clone, PartialEq, Debug)]
struct Answered {
    sequence: u64,
    /// None: a swap's other side answered this one.
    kind: Option<OrderKind>,
    refusal: Refusal,
}

/// A mail that waits.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Waiting {
    from: u64,
    to: u64,
    price: u64,
    end_tick: u64,
}

/// The model.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Model {
    terms: Terms,
    coins: BTreeMap<(Account, u8), u64>,
    items: BTreeMap<u64, (u32, u16, Account)>,
    mails: BTreeMap<u64, Waiting>,
    things: BTreeMap<u64, (u64, i32, i32)>,
    answers: BTreeMap<EntityId, Vec<Answered>>,
    deeds: BTreeMap<(u64, u8), ()>,
    orders: u64,
    next_item: u64,
    minted: [u64; 2],
}

/// What an order is tried on.
struct Trial<'a> {
    model: &'a Model,
    coins: BTreeMap<(Account, u8), u64>,
    items: BTreeMap<u64, Option<(u32, u16, Account)>>,
    made: u64,
    minted: [u64; 2],
}

impl Trial<'_> {
    fn balance(&self, account: Account, currency: Currency) -> u64 {
        let key = (account, currency as u8);
        *self.coins.get(&key).or_else(|| self.model.coins.get(&key)).unwrap_or(&0)
    }

    fn item(&self, uid: u64) -> Option<(u32, u16, Account)> {
        self.items.get(&uid).copied().unwrap_or_else(|| self.model.items.get(&uid).copied())
    }

    fn pay(&mut self, currency: Currency, amount: u64, from: Account, to: Account) -> Result<(), Refusal> {
        if amount == 0 || amount > COINS_MAX || from == to {
            return Err(Refusal::BadAmount);
        }
        if from == Account::MINT {
            if self.minted[currency.index()] + amount > COINS_MAX {
                return Err(Refusal::BadAmount);
            }
            self.minted[currency.index()] += amount;
        } else {
            let has = self.balance(from, currency);
            let left = has.checked_sub(amount).ok_or(Refusal::NotEnough)?;
            self.coins.insert((from, currency as u8), left);
        }
        let has = self.balance(to, currency);
        self.coins.insert((to, currency as u8), has + amount);
        Ok(())
    }

    fn give(&mut self, item: ItemRef, from: Account, to: Account) -> Result<(), Refusal> {
        let (version, kind, place) = self.item(item.uid).ok_or(Refusal::Unknown)?;
        if place != from {
            return Err(Refusal::NotYours);
        }
        if version != item.version {
            return Err(Refusal::Changed);
        }
        self.room(to)?;
        let there = (to != Account::BURN).then_some((version + 1, kind, to));
        self.items.insert(item.uid, there);
        Ok(())
    }

    fn make(&mut self, kind: u16, to: Account) -> Result<(), Refusal> {
        self.room(to)?;
        self.made += 1;
        self.items.insert(self.model.next_item + self.made, Some((1, kind, to)));
        Ok(())
    }

    fn room(&self, account: Account) -> Result<(), Refusal> {
        if account.shelf() == Some(Shelf::Mailbox) {
            return Ok(());
        }
        let Some(&most) = self.model.terms.account_items_max.get(usize::from(account.kind())) else { return Ok(()) };
        let stored = self.model.items.iter().filter(|(uid, item)| item.2 == account && !self.items.contains_key(uid));
        let moved = self.items.values().flatten().filter(|item| item.2 == account);
        if stored.count() + moved.count() >= most { Err(Refusal::Full) } else { Ok(()) }
    }

    fn offer(&mut self, offer: Offer, from: Account, to: Account) -> Result<(), Refusal> {
        let amount = u64::try_from(offer.coins).ok().filter(|&amount| amount <= COINS_MAX).ok_or(Refusal::BadAmount)?;
        if amount > 0 {
            self.pay(Currency::Coin, amount, from, to)?;
        }
        offer.items().iter().try_for_each(|&item| self.give(item, from, to))
    }

    fn everything(&mut self, from: Account, to: Account) -> Result<(), Refusal> {
        for currency in Currency::ALL {
            let amount = self.balance(from, currency);
            if amount > 0 {
                self.pay(currency, amount, from, to)?;
            }
        }
        let items: Vec<_> =
            self.model.items.iter().filter(|(_, item)| item.2 == from).map(|(u, i)| (*u, i.0)).collect();
        items.into_iter().try_for_each(|(uid, version)| self.give(ItemRef { uid, version }, from, to))
    }
}

fn may_order(order: Order) -> bool {
    let source = order.id.source;
    match order.kind {
        OrderKind::Grant { .. } | OrderKind::Pay { .. } => source.0 < 256,
        OrderKind::Sweep { thing } => source == EntityId::thing(thing),
        OrderKind::Deed { .. } => source.class() == IdClass::Deeds,
        _ => source.class() == IdClass::Character,
    }
}

fn positive(amount: i64) -> Result<u64, Refusal> {
    u64::try_from(amount).ok().filter(|amount| (1..=COINS_MAX).contains(amount)).ok_or(Refusal::BadAmount)
}

impl Model {
    /// A ledger in which nothing was ordered.
    pub fn new(terms: Terms) -> Model {
        Model { terms, ..Model::default() }
    }

    /// Orders answered.
    pub fn orders(&self) -> u64 {
        self.orders
    }

    /// What was answered to an operation, however long ago.
    pub fn answer_of(&self, source: EntityId, sequence: u64) -> Option<Refusal> {
        let answered = self.answers.get(&source)?;
        answered.iter().find(|answered| answered.sequence == sequence).map(|answered| answered.refusal)
    }

    /// Does an order and gives the answer.
    /// `plays`: whether the character whose deed it is plays.
    pub fn apply(&mut self, order: Order, tick: u64, next_character: u64, plays: bool) -> Refusal {
        let recall = order.kind == OrderKind::Recall;
        if let Some(known) = self.known(order.id, Some(order.kind), recall) {
            return known;
        }
        let refusal = match self.plan(order, tick, next_character, plays) {
            Ok(plan) => {
                self.take_over(plan);
                Refusal::None
            }
            Err(refusal) => refusal,
        };
        self.orders += 1;
        self.remember(order.id, Some(order.kind), refusal);
        if let OrderKind::Swap { partner, .. } = order.kind
            && partner.source != order.id.source
            && partner.source.class() == IdClass::Character
            && self.known(partner, None, false).is_none()
        {
            self.remember(partner, None, refusal);
        }
        refusal
    }

    fn remember(&mut self, id: OrderId, kind: Option<OrderKind>, refusal: Refusal) {
        if id.source.class() == IdClass::Thing {
            return;
        }
        self.answers.entry(id.source).or_default().push(Answered { sequence: id.sequence, kind, refusal });
    }

    /// The answer that an order has without being done.
    fn known(&self, id: OrderId, kind: Option<OrderKind>, recall: bool) -> Option<Refusal> {
        if id.source.class() == IdClass::Thing {
            return recall.then_some(Refusal::Unknown);
        }
        let answered = self.answers.get(&id.source).map_or(&[][..], |answered| &answered[..]);
        let kept = &answered[answered.len().saturating_sub(self.terms.answers_kept)..];
        let newest = kept.last().map_or(0, |last| last.sequence);
        match kept.iter().find(|answered| answered.sequence == id.sequence) {
            Some(found) if recall || (kind.is_some() && found.kind == kind) => Some(found.refusal),
            Some(_) => Some(Refusal::Reused),
            None if recall && (id.sequence > newest || kept.len() < self.terms.answers_kept) => Some(Refusal::Unknown),
            None if id.sequence > newest => None,
            None => Some(Refusal::TooOld),
        }
    }

    fn plan(&self, order: Order, tick: u64, next_character: u64, plays: bool) -> Result<Plan, Refusal> {
        let Terms { mail_ticks, thing_ticks, cell_things_max, .. } = self.terms;
        let (source, number) = (order.id.source, self.orders + 1);
        if !may_order(order) {
            return Err(Refusal::NotYours);
        }
        let me = source.number();
        let bag = Shelf::Bag.account(me);
        let mut trial =
            Trial { model: self, coins: BTreeMap::new(), items: BTreeMap::new(), made: 0, minted: self.minted };
        let mut after = Vec::new();
        match order.kind {
            OrderKind::Move { item, from, to } => {
                if from == to || to == Shelf::Mailbox {
                    return Err(Refusal::NotNow);
                }
                trial.give(item, from.account(me), to.account(me))?;
            }
            OrderKind::MoveCoins { currency, amount, from, to } => {
                if from == to || matches!(to, Shelf::Mailbox | Shelf::Equipment) {
                    return Err(Refusal::NotNow);
                }
                trial.pay(currency, positive(amount)?, from.account(me), to.account(me))?;
            }
            OrderKind::Drop { what, x, y } => {
                let cell = CellKey::of_fine(x, y);
                let here = self.things.values().filter(|&&(_, x, y)| CellKey::of_fine(x, y) == cell).count();
                if self.things.len() >= THINGS_MAX || here >= cell_things_max as usize {
                    return Err(Refusal::Full);
                }
                match what {
                    Dropped::Item(item) => trial.give(item, bag, Account::ground(number))?,
                    Dropped::Coins(amount) => {
                        trial.pay(Currency::Coin, positive(amount)?, bag, Account::ground(number))?;
                    }
                }
                after.push(After::Lay(number, (tick + thing_ticks, x, y)));
            }
            OrderKind::PickUp { thing } | OrderKind::Sweep { thing } => {
                self.things.get(&thing).ok_or(Refusal::Gone)?;
                let to = if matches!(order.kind, OrderKind::PickUp { .. }) { bag } else { Account::LOST };
                trial.everything(Account::ground(thing), to)?;
                after.push(After::Lift(thing));
            }
            OrderKind::Swap { partner, give, take } => self.swap(&mut trial, (source, partner), (give, take))?,
            OrderKind::Send { to, offer, price } => {
                let waiting = self.send(&mut trial, (me, to), offer, price, next_character)?;
                after.push(After::Mail(number, Waiting { end_tick: tick + mail_ticks, ..waiting }));
            }
            OrderKind::TakeMail { mail } | OrderKind::ReturnMail { mail } => {
                self.end_mail(&mut trial, me, mail, matches!(order.kind, OrderKind::TakeMail { .. }))?;
                after.push(After::Unmail(mail));
            }
            OrderKind::Destroy { item } => trial.give(item, bag, Account::BURN)?,
            OrderKind::Deed { deed } => {
                if deed >= 64 || !plays || self.deeds.contains_key(&(me, deed)) {
                    return Err(Refusal::NotNow);
                }
                trial.pay(Currency::Coin, DEED_COINS, Account::MINT, bag)?;
                trial.pay(Currency::Renown, 1, Account::MINT, bag)?;
                after.push(After::Deed(me, deed));
            }
            OrderKind::Recall => return Err(Refusal::Unknown),
            OrderKind::Grant { character, coins, items } => {
                if character == 0 || character >= next_character {
                    return Err(Refusal::Unknown);
                }
                if coins > 0 {
                    trial.pay(Currency::Coin, coins.into(), Account::MINT, Shelf::Bag.account(character))?;
                }
                for kind in 1..=u16::from(items) {
                    trial.make(kind, Shelf::Bag.account(character))?;
                }
            }
            OrderKind::Pay { from, to, amount } => {
                trial.pay(Currency::Coin, positive(amount)?, Shelf::Bag.account(from), Shelf::Bag.account(to))?;
            }
        }
        let Trial { coins, items, made, minted, .. } = trial;
        Ok(Plan { coins, items, made, minted, after })
    }

    fn swap(
        &self,
        trial: &mut Trial<'_>,
        (source, partner): (EntityId, OrderId),
        (give, take): (Offer, Offer),
    ) -> Result<(), Refusal> {
        let (bag, number) = (Shelf::Bag.account(source.number()), self.orders + 1);
        if partner.source == source {
            return Err(Refusal::Yourself);
        }
        if partner.source.class() != IdClass::Character {
            return Err(Refusal::NotYours);
        }
        if let Some(known) = self.known(partner, None, false) {
            return Err(known);
        }
        if give.is_empty() && take.is_empty() {
            return Err(Refusal::BadAmount);
        }
        if [give.coins, take.coins].iter().any(|&coins| coins < 0 || coins as u64 > COINS_MAX) {
            return Err(Refusal::BadAmount);
        }
        let (theirs, between) = (Shelf::Bag.account(partner.source.number()), Account::escrow(number));
        trial.offer(give, bag, between)?;
        trial.offer(take, theirs, bag)?;
        if give.coins > 0 {
            trial.pay(Currency::Coin, give.coins as u64, between, theirs)?;
        }
        for item in give.items() {
            trial.give(ItemRef { version: item.version + 1, ..*item }, between, theirs)?;
        }
        Ok(())
    }

    fn send(
        &self,
        trial: &mut Trial<'_>,
        (me, to): (u64, u64),
        offer: Offer,
        price: i64,
        next_character: u64,
    ) -> Result<Waiting, Refusal> {
        let (bag, number) = (Shelf::Bag.account(me), self.orders + 1);
        if to == me {
            return Err(Refusal::Yourself);
        }
        if to == 0 || to >= next_character {
            return Err(Refusal::Unknown);
        }
        let price = u64::try_from(price).ok().filter(|&p| p <= COINS_MAX).ok_or(Refusal::BadAmount)?;
        if offer.is_empty() {
            return Err(Refusal::BadAmount);
        }
        let waiting = || self.mails.values().filter(|mail| mail.to == to);
        if waiting().count() >= self.terms.mails_max
            || waiting().filter(|mail| mail.from == me).count() >= MAILS_PER_SENDER_MAX
        {
            return Err(Refusal::Full);
        }
        trial.offer(offer, bag, Account::escrow(number))?;
        trial.pay(Currency::Coin, POSTAGE_COINS, bag, Account::BURN)?;
        Ok(Waiting { from: me, to, price, end_tick: 0 })
    }

    fn end_mail(&self, trial: &mut Trial<'_>, me: u64, mail: u64, takes: bool) -> Result<(), Refusal> {
        let waiting = self.mail_for(me, mail)?;
        let (bag, back) = (Shelf::Bag.account(me), Shelf::Mailbox.account(waiting.from));
        if takes && waiting.price > 0 {
            trial.pay(Currency::Coin, waiting.price, bag, back)?;
        }
        trial.everything(Account::escrow(mail), if takes { bag } else { back })
    }

    fn mail_for(&self, me: u64, mail: u64) -> Result<Waiting, Refusal> {
        self.mails.get(&mail).copied().filter(|waiting| waiting.to == me).ok_or(Refusal::Unknown)
    }

    fn take_over(&mut self, plan: Plan) {
        for (key, amount) in plan.coins {
            match amount {
                0 => self.coins.remove(&key),
                _ => self.coins.insert(key, amount),
            };
        }
        for (uid, item) in plan.items {
            match item {
                Some(item) => self.items.insert(uid, item),
                None => self.items.remove(&uid),
            };
        }
        self.next_item += plan.made;
        self.minted = plan.minted;
        for after in plan.after {
            match after {
                After::Lay(number, thing) => drop(self.things.insert(number, thing)),
                After::Lift(number) => drop(self.things.remove(&number)),
                After::Mail(number, waiting) => drop(self.mails.insert(number, waiting)),
                After::Unmail(number) => drop(self.mails.remove(&number)),
                After::Deed(character, deed) => self.deeds.extend([((character, deed), ())]),
            }
        }
    }

    /// Time passes: mails whose time is over go back, the oldest first.
    pub fn clock(&mut self, tick: u64) {
        loop {
            let over = self.mails.iter().filter(|(_, waiting)| waiting.end_tick <= tick);
            let Some((&number, &waiting)) = over.min_by_key(|(number, waiting)| (waiting.end_tick, **number)) else {
                return;
            };
            let mut trial =
                Trial { model: self, coins: BTreeMap::new(), items: BTreeMap::new(), made: 0, minted: self.minted };
            let back = Shelf::Mailbox.account(waiting.from);
            trial.everything(Account::escrow(number), back).expect("what waits is there, and a mailbox takes it");
            let Trial { coins, items, made, minted, .. } = trial;
            self.take_over(Plan { coins, items, made, minted, after: vec![After::Unmail(number)] });
            self.orders += 1;
        }
    }

    /// The first difference to a ledger, in words.
    pub fn difference(&self, ledger: &Ledger) -> Option<String> {
        if self.orders != ledger.orders() {
            return Some(format!("{} orders were answered, the ledger says {}", self.orders, ledger.orders()));
        }
        let mut count = 0;
        for (account, holding) in ledger.book.accounts() {
            for currency in Currency::ALL.into_iter().filter(|_| account != Account::BURN) {
                let (has, should) = (holding.balances[currency.index()], self.balance(account, currency));
                count += usize::from(has > 0);
                if has != should {
                    return Some(format!("{account} has {has} {currency:?}, and should have {should}"));
                }
            }
        }
        let held = self.coins.keys().filter(|(account, _)| *account != Account::BURN).count();
        if held != count {
            return Some(format!("{held} balances should be held, {count} are"));
        }
        for (uid, item) in ledger.book.items() {
            let should = self.items.get(&uid);
            if should != Some(&(item.version, item.kind, item.place)) {
                return Some(format!("item {uid} is {item:?}, and should be {should:?}"));
            }
        }
        if self.items.len() != ledger.book.items_len() {
            return Some(format!("{} items should be there, {} are", self.items.len(), ledger.book.items_len()));
        }
        let mails = ledger.mails().map(|(number, mail)| (number, mail.from, mail.to, mail.price, mail.end_tick));
        if !mails.eq(self.mails.iter().map(|(n, mail)| (*n, mail.from, mail.to, mail.price, mail.end_tick))) {
            return Some("the mails that wait are not those that should".to_owned());
        }
        let things = ledger.things().map(|thing: &Thing| (thing.number, (thing.end_tick, thing.x, thing.y)));
        if !things.eq(self.things.iter().map(|(number, thing)| (*number, *thing))) {
            return Some("the things on the ground are not those that should be there".to_owned());
        }
        None
    }

    fn balance(&self, account: Account, currency: Currency) -> u64 {
        *self.coins.get(&(account, currency as u8)).unwrap_or(&0)
    }
}

/// What an order changes.
struct Plan {
    coins: BTreeMap<(Account, u8), u64>,
    items: BTreeMap<u64, Option<(u32, u16, Account)>>,
    made: u64,
    minted: [u64; 2],
    after: Vec<After>,
}

/// What else it changes.
enum After {
    Lay(u64, (u64, i32, i32)),
    Lift(u64),
    Mail(u64, Waiting),
    Unmail(u64),
    Deed(u64, u8),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keeper::Context;
    use crate::limits::OFFER_ITEMS_MAX;
    use crate::world::random::{below, random};

    /// Orders of every kind, good and bad, of a few characters.
    fn order(draw: &mut impl FnMut(u32) -> u32, ledger: &Ledger) -> Order {
        let who = u64::from(draw(4)) + 1;
        let item = {
            let uid = u64::from(draw(32)) + 1;
            let version = ledger.book.item(uid).map_or(1, |item| item.version);
            ItemRef { uid, version: if draw(10) == 0 { version + 1 } else { version } }
        };
        let another = ItemRef { uid: u64::from(draw(32)) + 1, version: 1 + draw(4) };
        let amount = [0, -5, i64::MAX, i64::MIN, 1 << 40, 7, 60, 300][draw(8) as usize];
        let shelf = |n: u32| Shelf::ALL[n as usize];
        let source = EntityId::character(who);
        let newest = |source| if ledger.answers.holds(source) { ledger.answers.newest(source) } else { 0 };
        let sequence = match draw(12) {
            0 => u64::from(draw(90)),
            1 => newest(source),
            n => newest(source) + 1 + u64::from(n / 8),
        };
        let id = OrderId { source, sequence };
        let partner = EntityId::character(u64::from(draw(4)) + 1);
        let offer = |draw: &mut dyn FnMut(u32) -> u32, item| {
            let coins = [0, 3, 200, -1][draw(4) as usize];
            let items: &[ItemRef] = if draw(2) == 0 { &[] } else { &[item] };
            Offer::new(coins, items).expect("one item fits")
        };
        let mail = ledger.mails().nth(draw(3) as usize).map_or(9, |(number, _)| number);
        let thing = ledger.things().nth(draw(3) as usize).map_or(9, |thing| thing.number);
        let kind = match draw(16) {
            0 => OrderKind::Move { item, from: shelf(draw(4)), to: shelf(draw(4)) },
            1 => OrderKind::MoveCoins {
                currency: Currency::ALL[draw(2) as usize],
                amount,
                from: shelf(draw(4)),
                to: shelf(draw(4)),
            },
            2 => OrderKind::Drop { what: Dropped::Item(item), x: 1, y: 2 },
            3 => OrderKind::Drop { what: Dropped::Coins(amount), x: 3, y: 4 },
            4 | 5 => OrderKind::PickUp { thing },
            6 | 7 => {
                let partner = OrderId { source: partner, sequence: newest(partner) + u64::from(draw(5) > 0) };
                OrderKind::Swap { partner, give: offer(draw, item), take: offer(draw, another) }
            }
            8 | 9 => OrderKind::Send { to: u64::from(draw(6)), offer: offer(draw, item), price: amount % 50 },
            10 => OrderKind::TakeMail { mail },
            11 => OrderKind::ReturnMail { mail },
            12 => OrderKind::Destroy { item },
            13 => OrderKind::Recall,
            14 => {
                // The same ones again and again, also of things that are no more.
                let id = OrderId { source: EntityId::thing(thing), sequence: u64::from(draw(3)) };
                return Order { id, kind: OrderKind::Sweep { thing } };
            }
            _ => {
                let deed = draw(70) as u8;
                let source = EntityId::deeds(who);
                let id = OrderId { source, sequence: newest(source) + 1 };
                return Order { id, kind: OrderKind::Deed { deed } };
            }
        };
        Order { id, kind }
    }

    #[test]
    fn nobody_fills_anothers_mailbox_alone() {
        let terms = Terms { mail_ticks: 300, thing_ticks: 400, ..Terms::default() };
        let (mut ledger, mut model) = (Ledger::new(terms), Model::new(terms));
        let mut order = |source: EntityId, sequence, kind| {
            if !ledger.answers.holds(source) {
                ledger.answers.restore(source, Vec::new());
            }
            let order = Order { id: OrderId { source, sequence }, kind };
            let answer = ledger.apply(order, Context { tick: 1, next_character: 9, deed_is_new: false }).refusal;
            assert_eq!(model.apply(order, 1, 9, true), answer, "{order:?}");
            answer
        };
        let offer = Offer::new(1, &[]).expect("no item fits");
        for character in 1..=6 {
            order(EntityId::JOIN, character, OrderKind::Grant { character, coins: 1_000, items: 0 });
        }
        for sequence in 1..=12 {
            let refusal = order(EntityId::character(1), sequence, OrderKind::Send { to: 2, offer, price: 5 });
            assert_eq!(refusal, if sequence <= 10 { Refusal::None } else { Refusal::Full }, "mail {sequence}");
        }
        // Its other receivers and the receiver's other senders are free, until the mailbox is full.
        assert_eq!(order(EntityId::character(1), 13, OrderKind::Send { to: 3, offer, price: 5 }), Refusal::None);
        for sender in 3..=6 {
            for sequence in 1..=10 {
                let kind = OrderKind::Send { to: 2, offer, price: 5 };
                assert_eq!(order(EntityId::character(sender), sequence, kind), Refusal::None);
            }
        }
        assert_eq!(order(EntityId::character(2), 1, OrderKind::ReturnMail { mail: 7 }), Refusal::None);
        let again = OrderKind::Send { to: 2, offer, price: 5 };
        assert_eq!(order(EntityId::character(1), 14, again), Refusal::None, "one went back");
    }

    #[test]
    fn the_ledger_does_what_the_model_does() {
        for seed in 0..40 {
            let small = Terms {
                account_items_max: [0, 10, 3, 5, 4, OFFER_ITEMS_MAX, 1],
                mails_max: 3,
                cell_things_max: 2,
                answers_kept: 8,
                ..Terms::default()
            };
            let terms = if seed % 2 == 0 { Terms::default() } else { small };
            let terms = Terms { mail_ticks: 300, thing_ticks: 400, ..terms };
            let (mut ledger, mut model) = (Ledger::new(terms), Model::new(terms));
            let mut n = 0;
            let mut draw = |bound: u32| {
                n += 1;
                below(random(seed, EntityId::NONE, 0, n), bound)
            };
            let mut done = 0;
            for tick in 1..1_500u64 {
                let order = if tick <= 4 {
                    let id = OrderId { source: EntityId::JOIN, sequence: tick };
                    Order { id, kind: OrderKind::Grant { character: tick, coins: 1_000, items: 8 } }
                } else {
                    order(&mut draw, &ledger)
                };
                let mut sources = vec![order.id.source];
                if let OrderKind::Swap { partner, .. } = order.kind {
                    sources.push(partner.source);
                }
                for source in sources {
                    if !ledger.answers.holds(source) {
                        ledger.answers.restore(source, Vec::new());
                    }
                }
                let deed_is_new = matches!(order.kind, OrderKind::Deed { deed } if deed < 64
                    && !model.deeds.contains_key(&(order.id.source.number(), deed)));
                let answer = ledger.apply(order, Context { tick, next_character: 5, deed_is_new });
                let expected = model.apply(order, tick, 5, true);
                assert_eq!(answer.refusal, expected, "seed {seed}, tick {tick}: {order:?}");
                done += u64::from(expected == Refusal::None);
                ledger.clock(tick);
                model.clock(tick);
                assert_eq!(model.difference(&ledger), None, "seed {seed}, tick {tick}: {order:?}");
                assert_eq!(ledger.breaks(), [] as [String; 0]);
            }
            assert_eq!(ledger.book.census(), [] as [String; 0]);
            assert!(done > 150, "{done}");
        }
    }
}
