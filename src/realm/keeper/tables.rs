//! The ledger's tables: how its keys are laid out, and how it is read back.
//!
//! Owns nothing. Promises: what does not parse, or does not belong to the log of orders, is refused with its place.

use std::collections::HashMap;

use super::StoreError;
use super::book::Totals;
use super::disk::{Disk, Family, altered, refused};
use super::ledger::{Answer, Entry, Ledger};
use super::record::{open_block, open_value};
use crate::wire::goods::Account;
use crate::wire::ids::EntityId;

/// First bytes of the keys in the ledger's family.
pub(super) mod prefix {
    pub const ACCOUNT: u8 = b'a';
    pub const ITEM: u8 = b'i';
    pub const MAIL: u8 = b'm';
    pub const THING: u8 = b't';
    pub const ANSWER: u8 = b'w';
    pub const COUNTERS: u8 = b'c';
}

/// What the ledger counts, durable with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Counters {
    pub orders: u64,
    pub rolled: u64,
    pub totals: Totals,
}

/// The key of a numbered row.
pub(super) fn key_of(prefix: u8, number: u64) -> [u8; 9] {
    let mut key = [prefix; 9];
    key[1..].copy_from_slice(&number.to_be_bytes());
    key
}

/// Shows every answer with its source.
pub fn visit_answers(disk: &impl Disk, each: &mut dyn FnMut(EntityId, Answer)) -> Result<(), StoreError> {
    disk.visit(Family::Ledger, &[prefix::ANSWER], &mut |key, value| {
        let place = || format!("the answer {key:x?} in column family ledger");
        let answer = open_value(value).map_err(|error| refused(disk, &place(), error))?;
        let source = key.get(1..9).and_then(|source| source.try_into().ok()).map_or(0, u64::from_be_bytes);
        each(EntityId(source), answer);
        Ok(())
    })
}

/// Orders that the ledger on a disk answered, which must be those of the log.
pub(super) fn orders_held(disk: &impl Disk) -> Result<u64, StoreError> {
    let orders = read_counters(disk)?.map_or(0, |counters| counters.orders);
    let mut logged = 0;
    if let Some((key, value)) = disk.last(Family::Orders)? {
        let place = || format!("the newest block of orders {key:x?} in column family orders");
        let block = open_block(&value).map_err(|error| refused(disk, &place(), error))?;
        let entries = Entry::decode(block).ok_or_else(|| altered(disk, &place(), "does not parse"))?;
        logged = entries.last().map_or(0, |entry| entry.number);
    }
    if orders != logged {
        let what = format!("ends with order {logged}, and the ledger answered {orders}");
        return Err(altered(disk, "column family orders", &what));
    }
    Ok(orders)
}

fn read_counters(disk: &impl Disk) -> Result<Option<Counters>, StoreError> {
    let read = |value: Vec<u8>| {
        open_value(&value).map_err(|error| refused(disk, "the counters in column family ledger", error))
    };
    disk.get(Family::Ledger, &[prefix::COUNTERS])?.map(read).transpose()
}

/// Reads everything of the ledger but the answers, which are read when they are needed.
pub fn read_ledger(disk: &impl Disk, ledger: &mut Ledger) -> Result<(), StoreError> {
    let mut names: HashMap<u8, &str> = HashMap::new();
    names.extend([
        (prefix::ACCOUNT, "account"),
        (prefix::ITEM, "item"),
        (prefix::MAIL, "mail"),
        (prefix::THING, "thing"),
    ]);
    for kind in [prefix::ACCOUNT, prefix::ITEM, prefix::MAIL, prefix::THING] {
        disk.visit(Family::Ledger, &[kind], &mut |key, value| {
            let number = key[1..].try_into().map_or(0, u64::from_be_bytes);
            let place = || format!("{} {number:#x} in column family ledger", names[&kind]);
            let refuse = |error| refused(disk, &place(), error);
            match kind {
                prefix::ACCOUNT => {
                    ledger.book.restore_balances(Account(number), open_value(value).map_err(refuse)?);
                }
                prefix::ITEM => {
                    if !ledger.book.restore_item(number, open_value(value).map_err(refuse)?) {
                        return Err(altered(disk, &place(), "is there twice"));
                    }
                }
                prefix::MAIL => ledger.restore_mail(number, open_value(value).map_err(refuse)?),
                _ => ledger.restore_thing(open_value(value).map_err(refuse)?),
            }
            Ok(())
        })?;
    }
    if let Some(counters) = read_counters(disk)? {
        ledger.book.totals = counters.totals;
        ledger.restore_counters(counters.orders, counters.rolled);
    }
    // What was read is written already.
    ledger.book.take_dirty();
    Ok(())
}
