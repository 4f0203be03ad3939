//! The book: what is in each account, and the sums that must agree.
//!
//! Owns balances, items and the totals of what was made and destroyed. Promises: a leg is done whole or refused by name
//! and undone; an item is in exactly one place; per currency what the mint made less what was burnt is what is held,
//! checked after every order from sums that are kept where balances change and where coins are made. Never knows who
//! may order what.

use std::collections::{BTreeSet, HashMap};

use crate::limits::COINS_MAX;
use crate::planted::{Bug, planted};
use crate::wire::fast_hash::FastHash;
use crate::wire::goods::{Account, Currency, ItemRef, Refusal};
use crate::world::random::mix;

/// Number of currencies.
pub(super) const CURRENCIES: usize = Currency::ALL.len();

/// What is in one account.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Holding {
    /// By [`Currency::index`].
    pub balances: [u64; CURRENCIES],
    /// Items, rising.
    pub items: Vec<u64>,
}

impl Holding {
    fn is_empty(&self) -> bool {
        self.balances == [0; CURRENCIES] && self.items.is_empty()
    }
}

/// An item that is somewhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Item {
    /// Rises with each move.
    pub version: u32,
    /// What it is, from 1.
    pub kind: u16,
    /// Where it is.
    pub place: Account,
}

/// One movement of an order. All legs of an order are done, or none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leg {
    /// Coins, at least 1.
    Coins {
        /// Which.
        currency: Currency,
        /// How many.
        amount: u64,
        /// Who loses them.
        from: Account,
        /// Who gets them.
        to: Account,
    },
    /// An item.
    Item {
        /// Which; refused when it has another version.
        item: ItemRef,
        /// Where it must be.
        from: Account,
        /// Where it goes; [`Account::BURN`] is its end.
        to: Account,
    },
    /// A new item from the mint.
    Make {
        /// What it is.
        kind: u16,
        /// Where it goes.
        to: Account,
    },
}

/// Totals that are durable with the book.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Totals {
    /// Coins made, by currency.
    pub minted: [u64; CURRENCIES],
    /// Coins burnt.
    pub burnt: [u64; CURRENCIES],
    /// Items made; the next one's uid is one more.
    pub items_made: u64,
    /// Items destroyed.
    pub items_destroyed: u64,
}

/// A sum that does not agree.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Flow {
    /// A currency.
    Coins(Currency),
    /// All items.
    Items,
}

/// The book of a realm.
#[derive(Clone, Debug)]
pub struct Book {
    accounts: HashMap<Account, Holding, FastHash>,
    items: HashMap<u64, Item, FastHash>,
    /// Totals.
    pub totals: Totals,
    /// Coins in all accounts, kept where balances change.
    held: [u64; CURRENCIES],
    /// Flows that are stopped because their sums did not agree.
    pub frozen: BTreeSet<Flow>,
    /// Accounts whose balances changed since they were last written, some more than once.
    dirty_accounts: Vec<Account>,
    /// Items likewise.
    dirty_items: Vec<u64>,
    /// Items in one account, by the number of its kind.
    account_items_max: [usize; 7],
    digest: u64,
}

impl Book {
    /// A book in which nothing is; an account holds so many items, by the number of its kind.
    pub fn new(account_items_max: [usize; 7]) -> Book {
        Book {
            accounts: HashMap::default(),
            items: HashMap::default(),
            totals: Totals::default(),
            held: [0; CURRENCIES],
            frozen: BTreeSet::new(),
            dirty_accounts: Vec::new(),
            dirty_items: Vec::new(),
            account_items_max,
            digest: 0,
        }
    }

    /// What is in an account.
    pub fn holding(&self, account: Account) -> Option<&Holding> {
        self.accounts.get(&account)
    }

    /// Coins in an account.
    pub fn balance(&self, account: Account, currency: Currency) -> u64 {
        self.accounts.get(&account).map_or(0, |holding| holding.balances[currency.index()])
    }

    /// An item that is somewhere.
    pub fn item(&self, uid: u64) -> Option<Item> {
        self.items.get(&uid).copied()
    }

    /// Items that are somewhere.
    pub fn items_len(&self) -> usize {
        self.items.len()
    }

    /// Accounts that hold something.
    pub fn accounts_len(&self) -> usize {
        self.accounts.len()
    }

    /// All accounts, in no order that means anything.
    pub fn accounts(&self) -> impl Iterator<Item = (Account, &Holding)> {
        self.accounts.iter().map(|(account, holding)| (*account, holding))
    }

    /// All items, likewise.
    pub fn items(&self) -> impl Iterator<Item = (u64, Item)> + '_ {
        self.items.iter().map(|(uid, item)| (*uid, *item))
    }

    /// Sum of digests of everything that is somewhere; no order matters.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// Puts back a balance that was read from disk.
    pub fn restore_balances(&mut self, account: Account, balances: [u64; CURRENCIES]) {
        for currency in Currency::ALL {
            self.set_balance(account, currency, balances[currency.index()]);
        }
    }

    /// Puts back an item that was read from disk; false when it is there already.
    pub fn restore_item(&mut self, uid: u64, item: Item) -> bool {
        let fresh = self.items.insert(uid, item).is_none();
        self.digest = self.digest.wrapping_add(item_digest(uid, item));
        fresh && self.shelve(uid, item.place)
    }

    /// Takes the accounts and items that changed, to be written: each once, in order.
    pub fn take_dirty(&mut self) -> (Vec<Account>, Vec<u64>) {
        let (mut accounts, mut items) =
            (std::mem::take(&mut self.dirty_accounts), std::mem::take(&mut self.dirty_items));
        accounts.sort_unstable();
        accounts.dedup();
        items.sort_unstable();
        items.dedup();
        (accounts, items)
    }

    /// Does all legs, or none.
    ///
    /// # Errors
    /// The first leg that cannot be done says why.
    pub fn post(&mut self, legs: &[Leg]) -> Result<(), Refusal> {
        for (at, leg) in legs.iter().enumerate() {
            if let Err(refusal) = self.check(leg) {
                if !planted(Bug::NoRollback) {
                    legs[..at].iter().rev().for_each(|done| self.undo(done));
                }
                return Err(refusal);
            }
            self.act(leg);
        }
        Ok(())
    }

    fn check(&self, leg: &Leg) -> Result<(), Refusal> {
        match *leg {
            Leg::Coins { currency, amount, from, to } => {
                if self.frozen.contains(&Flow::Coins(currency)) {
                    return Err(Refusal::Frozen);
                }
                let has = match from {
                    Account::MINT => COINS_MAX.saturating_sub(self.totals.minted[currency.index()]),
                    _ => self.balance(from, currency),
                };
                if amount == 0 || amount > COINS_MAX || from == to {
                    Err(Refusal::BadAmount)
                } else if amount > has && !planted(Bug::NoBalanceCheck) {
                    Err(if from == Account::MINT { Refusal::BadAmount } else { Refusal::NotEnough })
                } else {
                    Ok(())
                }
            }
            Leg::Item { item, from, to } => {
                if self.frozen.contains(&Flow::Items) {
                    return Err(Refusal::Frozen);
                }
                let held = self.items.get(&item.uid).ok_or(Refusal::Unknown)?;
                if held.place != from && !planted(Bug::NoOwnerCheck) {
                    Err(Refusal::NotYours)
                } else if held.version != item.version && !planted(Bug::NoVersionCheck) {
                    Err(Refusal::Changed)
                } else {
                    self.has_room(to)
                }
            }
            Leg::Make { .. } if self.frozen.contains(&Flow::Items) => Err(Refusal::Frozen),
            Leg::Make { to, .. } => self.has_room(to),
        }
    }

    /// Whether one more item fits. What comes back to a mailbox always fits: it has nowhere else to go.
    fn has_room(&self, account: Account) -> Result<(), Refusal> {
        let is_return = account.shelf() == Some(crate::wire::goods::Shelf::Mailbox);
        let most = self.account_items_max.get(usize::from(account.kind())).copied().unwrap_or(usize::MAX);
        let count = self.accounts.get(&account).map_or(0, |holding| holding.items.len());
        let full = count >= most && !is_return && !planted(Bug::NoCapacityCheck);
        if full { Err(Refusal::Full) } else { Ok(()) }
    }

    fn act(&mut self, leg: &Leg) {
        match *leg {
            Leg::Coins { currency, amount, from, to } => {
                if from == Account::MINT {
                    self.totals.minted[currency.index()] += amount;
                } else if !(planted(Bug::CreditWithoutDebit) && amount % 16 == 3) {
                    self.set_balance(from, currency, self.balance(from, currency).saturating_sub(amount));
                }
                if to == Account::BURN {
                    self.totals.burnt[currency.index()] += amount;
                } else if !(planted(Bug::DebitWithoutCredit) && amount % 16 == 5) {
                    self.set_balance(to, currency, self.balance(to, currency) + amount);
                }
            }
            Leg::Item { item, to, .. } => {
                let step = if planted(Bug::VersionStays) { 0 } else { 1 };
                self.place(item.uid, item.version.wrapping_add(step), to);
            }
            Leg::Make { kind, to } => {
                self.totals.items_made += 1;
                let uid = self.totals.items_made;
                let item = Item { version: 1, kind, place: to };
                assert!(self.restore_item(uid, item), "a new item is nowhere");
                self.dirty_items.push(uid);
            }
        }
    }

    fn undo(&mut self, leg: &Leg) {
        match *leg {
            Leg::Coins { currency, amount, from, to } => {
                if to == Account::BURN {
                    self.totals.burnt[currency.index()] -= amount;
                } else {
                    self.set_balance(to, currency, self.balance(to, currency) - amount);
                }
                if from == Account::MINT {
                    self.totals.minted[currency.index()] -= amount;
                } else {
                    self.set_balance(from, currency, self.balance(from, currency) + amount);
                }
            }
            Leg::Item { item, from, .. } => {
                let step = u32::from(planted(Bug::UndoneVersion));
                self.place(item.uid, item.version + step, from);
            }
            Leg::Make { to, .. } => {
                let uid = self.totals.items_made;
                self.totals.items_made -= 1;
                let item = self.items.remove(&uid).expect("it was just made");
                self.digest = self.digest.wrapping_sub(item_digest(uid, item));
                self.unshelve(uid, to);
            }
        }
    }

    fn set_balance(&mut self, account: Account, currency: Currency, amount: u64) {
        let holding = self.accounts.entry(account).or_default();
        let before = std::mem::replace(&mut holding.balances[currency.index()], amount);
        self.held[currency.index()] = self.held[currency.index()].wrapping_add(amount).wrapping_sub(before);
        let of = |amount: u64| if amount == 0 { 0 } else { balance_digest(account, currency, amount) };
        self.digest = self.digest.wrapping_sub(of(before)).wrapping_add(of(amount));
        if before != amount {
            self.dirty_accounts.push(account);
        }
        self.drop_if_empty(account);
    }

    fn drop_if_empty(&mut self, account: Account) {
        if self.accounts.get(&account).is_some_and(Holding::is_empty) {
            self.accounts.remove(&account);
        }
    }

    /// Puts an item somewhere else; the burn is the end of it, and an undone burn its return.
    fn place(&mut self, uid: u64, version: u32, to: Account) {
        let Some(before) = self.items.get(&uid).copied() else {
            unreachable!("an order burns an item in its last leg, so that it is never undone")
        };
        self.unshelve(uid, before.place);
        self.digest = self.digest.wrapping_sub(item_digest(uid, before));
        self.dirty_items.push(uid);
        if to == Account::BURN {
            self.items.remove(&uid);
            self.totals.items_destroyed += 1;
            return;
        }
        let item = Item { version, place: to, ..before };
        self.items.insert(uid, item);
        self.digest = self.digest.wrapping_add(item_digest(uid, item));
        if !planted(Bug::ItemNowhere) || uid % 16 != 3 {
            self.shelve(uid, to);
        }
    }

    fn shelve(&mut self, uid: u64, account: Account) -> bool {
        let items = &mut self.accounts.entry(account).or_default().items;
        match items.binary_search(&uid) {
            Ok(_) => false,
            Err(at) => {
                items.insert(at, uid);
                true
            }
        }
    }

    fn unshelve(&mut self, uid: u64, account: Account) {
        if let Some(holding) = self.accounts.get_mut(&account)
            && let Ok(at) = holding.items.binary_search(&uid)
            && !(planted(Bug::ItemTwice) && uid % 16 == 7)
        {
            holding.items.remove(at);
        }
        self.drop_if_empty(account);
    }

    /// Looks whether the sums of what legs touched still agree; gives the flows that do not.
    pub fn audit(&self, legs: &[Leg]) -> Vec<Flow> {
        let mut broken = Vec::new();
        for currency in Currency::ALL {
            let at = currency.index();
            if self.totals.minted[at].wrapping_sub(self.totals.burnt[at]) != self.held[at] {
                broken.push(Flow::Coins(currency));
            }
        }
        let live = self.totals.items_made - self.totals.items_destroyed;
        let astray = |leg: &Leg| match *leg {
            Leg::Item { item, from, to } => {
                let place = self.items.get(&item.uid).map(|item| item.place);
                let is_in = |account| self.accounts.get(&account).is_some_and(|h| h.items.contains(&item.uid));
                [Some(from), Some(to), place].into_iter().flatten().any(|at| is_in(at) != (place == Some(at)))
            }
            _ => false,
        };
        if live != self.items.len() as u64 || legs.iter().any(astray) {
            broken.push(Flow::Items);
        }
        broken
    }

    /// Counts everything anew: every break of the sums, in words. For starts, checks from outside and the simulator.
    pub fn census(&self) -> Vec<String> {
        let mut breaks = Vec::new();
        for currency in Currency::ALL {
            let at = currency.index();
            let held: u128 = self.accounts.values().map(|holding| u128::from(holding.balances[at])).sum();
            let (minted, burnt) = (self.totals.minted[at], self.totals.burnt[at]);
            if held + u128::from(burnt) != u128::from(minted) {
                breaks.push(format!("{currency:?}: {minted} made, {burnt} burnt, but {held} held"));
            }
        }
        let live = self.totals.items_made - self.totals.items_destroyed;
        if live != self.items.len() as u64 {
            breaks.push(format!("{live} items should be somewhere, {} are", self.items.len()));
        }
        let mut shelved = 0;
        for (account, holding) in &self.accounts {
            shelved += holding.items.len();
            for uid in &holding.items {
                if self.items.get(uid).is_none_or(|item| item.place != *account) {
                    breaks.push(format!("item {uid} is in {account}, but its record says otherwise"));
                }
            }
        }
        if shelved != self.items.len() {
            breaks.push(format!("{} items are in {shelved} places", self.items.len()));
        }
        breaks.sort_unstable();
        breaks
    }
}

fn balance_digest(account: Account, currency: Currency, amount: u64) -> u64 {
    mix(mix(account.0 ^ mix(currency as u64 + 1)) ^ amount)
}

fn item_digest(uid: u64, item: Item) -> u64 {
    mix(mix(uid.wrapping_mul(3)) ^ mix(item.place.0 ^ u64::from(item.version) << 20 ^ u64::from(item.kind)))
}
