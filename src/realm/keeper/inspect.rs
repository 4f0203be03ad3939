//! Reading a realm from its disk: characters, goods, and the proof that they add up.
//!
//! Owns nothing. Promises: the disk is left as it was; the check trusts nothing but the log of orders: it does them all
//! again and compares.

use std::collections::BTreeSet;

use serde::Serialize;

use super::disk::{Disk, Family, altered, refused};
use super::proof::{prove, read_realm, read_row, visit_rows};
use super::record::open_block;
use super::tables::{read_ledger, visit_answers};
use super::{CharacterRow, Entry, Ledger, StoreError, Terms, Tokens, is_remembered};
use crate::limits::SHARDS_MAX;
use crate::wire::goods::{Account, Currency, OrderId, OrderKind, Refusal};
use crate::wire::units::FINE_PER_M;

/// One character as people and scripts read it.
#[derive(Clone, PartialEq, Serialize, Debug)]
pub struct CharacterView {
    /// Entity id.
    pub id: u64,
    /// Client that plays it.
    pub client_id: u64,
    /// Number of the character.
    pub character: u64,
    /// Eastwards, metres.
    pub x_m: f64,
    /// Northwards, metres.
    pub y_m: f64,
    /// Upwards, metres.
    pub z_m: f64,
    /// Realm tick of this state.
    pub tick: u64,
    /// Owner epoch.
    pub epoch: u32,
    /// Shard that owned it.
    pub shard: u8,
    /// Whether it ever stood in the world; if not, the position means nothing.
    pub saved: bool,
    /// Deeds that were rewarded.
    pub deeds: u32,
    /// Coins on all its shelves.
    pub coins: u64,
    /// Everything else that it has.
    pub items: Vec<ItemView>,
}

/// One item that somebody has.
#[derive(Clone, PartialEq, Eq, Serialize, Debug)]
pub struct ItemView {
    /// Which.
    pub uid: u64,
    /// What it is.
    pub kind: u16,
    /// Rises with each move.
    pub version: u32,
    /// Where: `bag 7` is the bag of character 7.
    pub place: String,
}

impl CharacterView {
    fn new(row: &CharacterRow, ledger: &Ledger) -> CharacterView {
        let goods = ledger.whole(row.character);
        let coins = goods.balances.iter().filter(|(_, currency, _)| *currency == Currency::Coin);
        let items = goods.items.iter().filter_map(|&(item, kind, shelf)| {
            let place = shelf?.account(row.character).to_string();
            Some(ItemView { uid: item.uid, kind, version: item.version, place })
        });
        let metres = |fine: i32| f64::from(fine) / f64::from(FINE_PER_M);
        CharacterView {
            id: row.entity().0,
            client_id: row.client_id,
            character: row.character,
            x_m: metres(row.x),
            y_m: metres(row.y),
            z_m: metres(row.z),
            tick: row.tick,
            epoch: row.epoch,
            shard: row.owner.0,
            saved: row.saved,
            deeds: row.deeds.count_ones(),
            coins: coins.map(|(.., amount)| amount).sum(),
            items: items.collect(),
        }
    }
}

/// All characters of the realm in a stopped server's data folder with what they have, by number.
///
/// # Errors
/// As [`inspect_characters`].
pub fn inspect_views(disk: &impl Disk) -> Result<Vec<CharacterView>, StoreError> {
    let mut ledger = Ledger::new(Terms::default());
    let rows = read_rows(disk)?;
    read_ledger(disk, &mut ledger)?;
    Ok(rows.iter().map(|row| CharacterView::new(row, &ledger)).collect())
}

/// All characters of the realm on a disk, by number.
///
/// # Errors
/// There is no realm, or the data is of a newer version, altered or unreadable.
pub fn inspect_characters(disk: &impl Disk) -> Result<Vec<CharacterRow>, StoreError> {
    read_rows(disk)
}

fn read_rows(disk: &impl Disk) -> Result<Vec<CharacterRow>, StoreError> {
    read_realm(disk)?;
    let mut rows = Vec::new();
    visit_rows(disk, &mut |row| {
        rows.push(row);
        Ok(())
    })?;
    rows.sort_unstable_by_key(|row| row.character);
    Ok(rows)
}

/// The ledger as people and scripts read it.
#[derive(Clone, PartialEq, Eq, Serialize, Debug)]
pub struct LedgerView {
    /// Orders answered since the realm began.
    pub orders: u64,
    /// By currency: its name, coins made, burnt and held.
    pub currencies: Vec<(String, u64, u64, u64)>,
    /// Items that are somewhere.
    pub items: usize,
    /// Items ever made.
    pub items_made: u64,
    /// Accounts that hold something.
    pub accounts: usize,
    /// Mails that wait.
    pub mails: usize,
    /// Things on the ground.
    pub things: usize,
    /// Whether all sums agree.
    pub conserved: bool,
}

/// The ledger on a disk, counted anew.
///
/// # Errors
/// As [`inspect_characters`].
pub fn inspect_ledger(disk: &impl Disk) -> Result<LedgerView, StoreError> {
    read_realm(disk)?;
    let mut ledger = Ledger::new(Terms::default());
    read_ledger(disk, &mut ledger)?;
    Ok(view(&ledger))
}

fn view(ledger: &Ledger) -> LedgerView {
    let totals = ledger.book.totals;
    let held = |at: usize| ledger.book.accounts().map(|(_, holding)| holding.balances[at]).sum::<u64>();
    let currencies = Currency::ALL.map(|currency| {
        let at = currency.index();
        (format!("{currency:?}"), totals.minted[at], totals.burnt[at], held(at))
    });
    LedgerView {
        orders: ledger.orders(),
        currencies: currencies.to_vec(),
        items: ledger.book.items_len(),
        items_made: totals.items_made,
        accounts: ledger.book.accounts_len(),
        mails: ledger.mails().count(),
        things: ledger.things().count(),
        conserved: ledger.book.census().is_empty(),
    }
}

/// One order that moved an item.
#[derive(Clone, PartialEq, Eq, Serialize, Debug)]
pub struct ItemStep {
    /// Number of the order.
    pub order: u64,
    /// Realm tick.
    pub tick: u64,
    /// Who ordered it, an entity id.
    pub source: u64,
    /// What was ordered.
    pub what: String,
    /// Where the item was then.
    pub place: String,
    /// Its version then.
    pub version: u32,
}

/// Everywhere that an item ever was, from the log of orders.
///
/// # Errors
/// As [`inspect_characters`].
pub fn inspect_item(disk: &impl Disk, uid: u64) -> Result<Vec<ItemStep>, StoreError> {
    read_realm(disk)?;
    let mut steps: Vec<ItemStep> = Vec::new();
    let mut before = None;
    replay(disk, Terms::default(), &mut |entry, ledger| {
        let item = ledger.book.item(uid);
        if item != before {
            let place = item.map_or(Account::BURN, |item| item.place);
            steps.push(ItemStep {
                order: entry.number,
                tick: entry.tick,
                source: entry.order.id.source.0,
                what: entry.order.kind.to_string(),
                place: place.to_string(),
                version: item.map_or(0, |item| item.version),
            });
            before = item;
        }
        Ok(())
    })?;
    Ok(steps)
}

/// Shows every order that was ever answered, in order.
///
/// # Errors
/// As [`inspect_characters`].
pub fn inspect_orders(disk: &impl Disk, mut each: impl FnMut(&Entry)) -> Result<(), StoreError> {
    read_realm(disk)?;
    visit_orders(disk, &mut |entry| {
        each(entry);
        Ok(())
    })
}

/// What [`check`] found.
#[derive(Clone, PartialEq, Eq, Serialize, Debug)]
pub struct CheckReport {
    /// Characters.
    pub characters: u64,
    /// The ledger.
    pub ledger: LedgerView,
    /// Answers that are remembered.
    pub answers: u64,
    /// Orders done again from the log.
    pub orders_replayed: u64,
    /// Used tokens that are remembered.
    pub tokens: usize,
    /// What does not agree, in words; empty: everything does.
    pub breaks: Vec<String>,
}

/// Proves from the files alone that nothing was lost or doubled: every record is whole, every sum agrees, the log of
/// orders is without a gap, and doing all its orders again gives the same answers and the same ledger.
///
/// # Errors
/// As [`inspect_characters`], or something that was acknowledged is missing.
pub fn check(disk: &impl Disk, terms: Terms) -> Result<CheckReport, StoreError> {
    let realm = prove(disk, SHARDS_MAX)?.realm;
    let (mut characters, mut answers, mut astray) = (0, 0, 0);
    let mut breaks = disk.flaws();
    let (mut deeds, mut rewarded) = (0u64, 0u64);
    let mut clients = BTreeSet::new();
    visit_rows(disk, &mut |row| {
        characters += 1;
        clients.insert(row.client_id);
        deeds += u64::from(row.deeds.count_ones());
        Ok(())
    })?;
    check_clients(disk, &clients)?;
    let mut ledger = Ledger::new(terms);
    read_ledger(disk, &mut ledger)?;
    breaks.extend(ledger.book.census());
    if realm.is_some_and(|realm| ledger.has_overdue_mail(realm.tick)) {
        breaks.push("a mail waits for longer than it may".to_owned());
    }
    let again = replay(disk, terms, &mut |entry, _| {
        let is_deed = matches!(entry.order.kind, OrderKind::Deed { .. });
        rewarded += u64::from(is_deed && entry.refusal == Refusal::None);
        Ok(())
    })?;
    visit_answers(disk, &mut |source, answer| {
        // An older program kept those of things; the next start removes them.
        if is_remembered(source) {
            answers += 1;
            let id = OrderId { source, sequence: answer.sequence };
            astray += u64::from(again.answers.find(id) != Some(answer));
        }
    })?;
    if deeds != rewarded {
        breaks.push(format!("{deeds} deeds are in the rows, {rewarded} were rewarded"));
    }
    for (what, is_same) in [
        ("the accounts and items", ledger.book.digest() == again.book.digest()),
        ("the number of orders", ledger.orders() == again.orders()),
        ("the answers in their order", ledger.rolled() == again.rolled()),
        ("the answers that are remembered", answers == again.answers.len() && astray == 0),
        ("the totals", ledger.book.totals == again.book.totals),
        ("the mails", ledger.mails().eq(again.mails())),
        ("the things on the ground", ledger.things().eq(again.things())),
    ] {
        if !is_same {
            breaks.push(format!("{what} are not what the log of orders makes of them"));
        }
    }
    let (ledger, orders_replayed, tokens) = (view(&ledger), again.orders(), Tokens::read(disk)?.count());
    Ok(CheckReport { characters, ledger, answers, orders_replayed, tokens, breaks })
}

/// Every client record leads to a row, and every row has one.
fn check_clients(disk: &impl Disk, clients: &BTreeSet<u64>) -> Result<(), StoreError> {
    for &client_id in clients {
        if read_row(disk, client_id)?.is_none() {
            return Err(altered(
                disk,
                &format!("client {client_id} in column family clients"),
                "is missing although it has a row",
            ));
        }
    }
    disk.visit(Family::Clients, &[], &mut |key, _| {
        let client_id = key.try_into().map_or(0, u64::from_be_bytes);
        let place = format!("client {client_id} in column family clients");
        if clients.contains(&client_id) { Ok(()) } else { Err(altered(disk, &place, "has no row")) }
    })
}

fn visit_orders(disk: &impl Disk, each: &mut dyn FnMut(&Entry) -> Result<(), StoreError>) -> Result<(), StoreError> {
    disk.visit(Family::Orders, &[], &mut |key, value| {
        let place = || block_name(key);
        let block = open_block(value).map_err(|error| refused(disk, &place(), error))?;
        let entries = Entry::decode(block).ok_or_else(|| altered(disk, &place(), "does not parse"))?;
        entries.iter().try_for_each(&mut *each)
    })
}

fn block_name(key: &[u8]) -> String {
    format!("the block of orders from {} in column family orders", key.try_into().map_or(0, u64::from_be_bytes))
}

/// Orders done again before what they changed is forgotten: nothing is written here.
const FORGET_EVERY: u64 = 4_096;

/// Does all orders of the log again, in an empty ledger; `each` sees every one after it was done.
fn replay(
    disk: &impl Disk,
    terms: Terms,
    each: &mut dyn FnMut(&Entry, &Ledger) -> Result<(), StoreError>,
) -> Result<Ledger, StoreError> {
    let mut ledger = Ledger::new(terms);
    visit_orders(disk, &mut |entry| {
        let next = ledger.orders() + 1;
        let place = || block_name(&entry.number.to_be_bytes());
        if entry.number != next {
            return Err(altered(disk, &place(), &format!("has order {} where {next} should be", entry.number)));
        }
        let refusal = ledger.do_again(entry);
        if next.is_multiple_of(FORGET_EVERY) {
            ledger.book.take_dirty();
            ledger.answers.forget_dirty();
        }
        if refusal != entry.refusal {
            let what = format!("answered order {next} with {:?}, which now gives {refusal:?}", entry.refusal);
            return Err(altered(disk, &place(), &what));
        }
        each(entry, &ledger)
    })?;
    Ok(ledger)
}
