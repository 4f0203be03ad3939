//! The judge: whether everything that players were told is in the files of a server that ended.
//!
//! Owns all that was ever told. Promises: it reads files alone and changes none; an answer counts as lost when the log of
//! orders has none or another one, and as doubled when it has two. It trusts the log because the same look does all of it
//! again (`keeper::check`).

use std::collections::{HashMap, HashSet};
use std::path::Path;

use ringshard::exit::{Code, Failure};
use ringshard::realm::keeper::Terms;
use ringshard::realm::keeper::inspect::{check, inspect_characters, inspect_orders};
use ringshard::realm::keeper::{CharacterRow, Entry, StoreError};
use ringshard::rocks::RocksDisk;
use ringshard::wire::goods::{OrderId, OrderKind, Refusal};
use ringshard::wire::ids::{EntityId, IdClass};
use serde::de::DeserializeOwned;

use crate::swarm::player::{Told, ToldOperation};
use crate::swarm::truth::operations_path;

/// Losses that are told in words; more are counted.
const TEXTS_MAX: usize = 10;

/// What a look at the files found.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Verdict {
    /// Answers, deeds and characters that are not there, or other than they were told.
    pub lost: u64,
    /// Orders that were answered twice, deeds that were rewarded twice, clients with two characters.
    pub doubled: u64,
    /// Whether all sums agree.
    pub conserved: bool,
    /// What does not agree, in words.
    pub breaks: Vec<String>,
    /// Orders in the log.
    pub orders: u64,
    /// Characters.
    pub characters: u64,
}

impl Verdict {
    /// Whether nothing at all is wrong.
    pub fn is_good(&self) -> bool {
        self.lost == 0 && self.doubled == 0 && self.conserved && self.breaks.is_empty()
    }

    fn break_in_words(&mut self, text: impl FnOnce() -> String) {
        if self.breaks.len() < TEXTS_MAX {
            self.breaks.push(text());
        }
    }

    /// The files could not be read, which counts once however often it is seen.
    fn refuse(&mut self, error: Option<StoreError>) {
        let Some(text) = error.map(|error| error.to_string()) else { return };
        if !self.breaks.contains(&text) {
            self.breaks.push(text);
        }
    }

    fn lose(&mut self, text: impl FnOnce() -> String) {
        self.lost += 1;
        self.break_in_words(text);
    }

    fn double(&mut self, text: impl FnOnce() -> String) {
        self.doubled += 1;
        self.break_in_words(text);
    }
}

/// See the module.
#[derive(Default)]
pub struct Judge {
    /// Answers that were not looked for yet, and those that the log had: it must have them for ever.
    operations: HashSet<ToldOperation>,
    told: u64,
    /// Entity by client id.
    clients: HashMap<u64, u64>,
    /// Newest row of each client that any look found.
    ages: HashMap<u64, (u32, u64)>,
}

impl Judge {
    /// Answers that players were told.
    pub fn told(&self) -> u64 {
        self.told
    }

    /// Takes what a swarm was told.
    pub fn hear(&mut self, truth: &Path) -> Result<(), Failure> {
        let operations = lines_of::<ToldOperation>(&operations_path(truth))?;
        self.told += operations.len() as u64;
        self.operations.extend(operations);
        self.clients.extend(lines_of::<Told>(truth)?.iter().map(|told| (told.client_id, told.entity)));
        Ok(())
    }

    /// Looks at the data folder of a server that ended.
    pub fn compare(&mut self, data: &Path) -> Verdict {
        let mut verdict = Verdict::default();
        // What cannot be read is lost.
        let (mut log, mut rows) = (Log::default(), Vec::new());
        let read = RocksDisk::open_to_read(data).and_then(|disk| {
            let report = check(&disk, Terms::default())?;
            verdict.conserved = report.ledger.conserved;
            (verdict.orders, verdict.characters) = (report.orders_replayed, report.characters);
            verdict.breaks = report.breaks;
            inspect_orders(&disk, |entry| log.add(entry, &mut verdict))?;
            rows = inspect_characters(&disk)?;
            Ok(())
        });
        verdict.refuse(read.err());
        self.compare_operations(&log, &mut verdict);
        self.compare_characters(&rows, &mut verdict);
        verdict
    }

    fn compare_operations(&mut self, log: &Log, verdict: &mut Verdict) {
        let answer_to = |told: &ToldOperation| log.answers.get(&(told.entity, told.operation)).copied();
        for told in &self.operations {
            let answer = answer_to(told);
            if !holds(Refusal(told.refusal), answer) {
                verdict.lose(|| {
                    let ToldOperation { client_id, operation, refusal, .. } = told;
                    let found = answer.map_or("has no answer".to_owned(), |answer| format!("says {}", words(answer)));
                    let told = words(Refusal(*refusal));
                    format!("client {client_id} was told that operation {operation} is {told}; the log {found}")
                });
            }
        }
        // A number that no order got is free again: who plays the character next may use it for something else.
        self.operations.retain(|told| answer_to(told) == Some(Refusal(told.refusal)));
    }

    fn compare_characters(&mut self, rows: &[CharacterRow], verdict: &mut Verdict) {
        let mut found = HashMap::new();
        for row in rows {
            if found.insert(row.client_id, row.entity().0).is_some() {
                verdict.double(|| format!("client {} has two characters", row.client_id));
            }
            let before = self.ages.insert(row.client_id, row.age());
            if before.is_some_and(|before| before > row.age()) {
                verdict.lose(|| format!("the row of client {} is older than it was: {:?}", row.client_id, row.age()));
            }
        }
        for (client, entity) in &self.clients {
            if found.get(client) != Some(entity) {
                verdict.lose(|| format!("client {client} played {entity:#x}, which is not its character now"));
            }
        }
        for client in self.ages.keys().filter(|client| !found.contains_key(client)) {
            verdict.lose(|| format!("the row of client {client} is gone"));
        }
    }
}

/// Whether what was told of an operation holds, given what the log has of it.
fn holds(told: Refusal, log: Option<Refusal>) -> bool {
    match told {
        // These say something of the moment in which they were given, or of other content.
        Refusal::Unknown | Refusal::Reused | Refusal::TooOld => true,
        // What the world refused alone never came to the ledger.
        Refusal::Taken | Refusal::Gone if log.is_none() => true,
        _ => log == Some(told),
    }
}

/// An answer for people.
fn words(refusal: Refusal) -> String {
    if refusal == Refusal::None { "done".to_owned() } else { format!("refused ({refusal:?})") }
}

/// The answers that the log of orders has.
#[derive(Default)]
struct Log {
    answers: HashMap<(u64, u64), Refusal>,
    deeds: HashSet<(u64, u8)>,
}

impl Log {
    fn add(&mut self, entry: &Entry, verdict: &mut Verdict) {
        let (id, refusal) = (entry.order.id, entry.refusal);
        if id.source != EntityId::KEEPER {
            self.answer(id, entry, verdict);
        }
        match entry.order.kind {
            // The other side got the same answer, unless its name for the trade had one before.
            OrderKind::Swap { partner, .. } if partner.source != id.source => {
                let named_before = matches!(refusal, Refusal::Reused | Refusal::TooOld);
                if partner.source.class() == IdClass::Character && !named_before {
                    self.answer(partner, entry, verdict);
                }
            }
            OrderKind::Deed { deed } if refusal == Refusal::None && !self.deeds.insert((id.source.0, deed)) => {
                verdict.double(|| format!("deed {deed} of {:#x} was rewarded twice", id.source.0));
            }
            _ => (),
        }
    }

    fn answer(&mut self, id: OrderId, entry: &Entry, verdict: &mut Verdict) {
        if self.answers.insert((id.source.0, id.sequence), entry.refusal).is_some() {
            verdict.double(|| {
                format!(
                    "operation {} of {:#x} was answered twice, again as order {}",
                    id.sequence, id.source.0, entry.number
                )
            });
        }
    }
}

/// The JSON lines of a file.
fn lines_of<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| Failure::of_file("read", path, &error))?;
    let read = |line: &str| {
        let failed = |error| Failure::new(Code::Failed, format!("{}: {error} in {line:?}", path.display()));
        serde_json::from_str(line).map_err(failed)
    };
    text.lines().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringshard::wire::goods::{Offer, Order};

    fn entry(number: u64, source: EntityId, sequence: u64, kind: OrderKind, refusal: Refusal) -> Entry {
        Entry { number, tick: number, order: Order { id: OrderId { source, sequence }, kind }, refusal }
    }

    fn swap(partner: u64, sequence: u64) -> OrderKind {
        let partner = OrderId { source: EntityId::character(partner), sequence };
        OrderKind::Swap { partner, give: Offer::default(), take: Offer::default() }
    }

    fn verdict_of(entries: &[Entry], told: &[(u64, u64, Refusal)]) -> Verdict {
        verdict_of_next(&mut Judge::default(), entries, told)
    }

    fn verdict_of_next(judge: &mut Judge, entries: &[Entry], told: &[(u64, u64, Refusal)]) -> Verdict {
        let (mut log, mut verdict) = (Log::default(), Verdict::default());
        entries.iter().for_each(|entry| log.add(entry, &mut verdict));
        judge.operations.extend(told.iter().map(|&(client_id, operation, refusal)| ToldOperation {
            client_id,
            entity: EntityId::character(client_id).0,
            operation,
            refusal: refusal.0,
        }));
        judge.compare_operations(&log, &mut verdict);
        verdict
    }

    #[test]
    fn what_was_told_must_be_in_the_log_on_both_sides_of_a_trade() {
        let entries = [entry(1, EntityId::character(1), 5, swap(2, 9), Refusal::None)];
        assert_eq!(verdict_of(&entries, &[(1, 5, Refusal::None), (2, 9, Refusal::None)]), Verdict::default());
        let lost = verdict_of(&entries, &[(1, 6, Refusal::None), (2, 9, Refusal::NotEnough)]);
        assert_eq!((lost.lost, lost.doubled, lost.breaks.len()), (2, 0, 2));
        let text = "client 2 was told that operation 9 is refused (NotEnough); the log says done";
        assert!(lost.breaks.iter().any(|found| found == text), "{:?}", lost.breaks);
    }

    #[test]
    fn words_of_the_moment_need_no_order() {
        let told = [
            (1, 1, Refusal::Unknown),
            (1, 2, Refusal::Reused),
            (1, 3, Refusal::TooOld),
            (1, 4, Refusal::Taken),
            (1, 5, Refusal::Gone),
        ];
        assert_eq!(verdict_of(&[], &told).lost, 0);
        let done = [entry(1, EntityId::character(1), 4, OrderKind::PickUp { thing: 1 }, Refusal::None)];
        assert_eq!(verdict_of(&done, &told).lost, 1, "what was done is not taken");
    }

    #[test]
    fn answers_of_the_log_are_looked_for_for_ever_and_others_once() {
        let mut judge = Judge::default();
        let first = entry(1, EntityId::character(1), 1, OrderKind::Recall, Refusal::None);
        let told = [(1, 1, Refusal::None), (1, 2, Refusal::Taken)];
        assert_eq!(verdict_of_next(&mut judge, &[first], &told).lost, 0);
        let second = entry(2, EntityId::character(1), 2, OrderKind::TakeMail { mail: 1 }, Refusal::None);
        let later = verdict_of_next(&mut judge, &[first, second], &[(1, 2, Refusal::None)]);
        assert_eq!(later.lost, 0, "nobody ordered what was taken: its number was free");
        assert_eq!(verdict_of_next(&mut judge, &[second], &[]).lost, 1, "the first order is gone");
    }

    #[test]
    fn nothing_is_answered_or_rewarded_twice() {
        let (own, other) = (EntityId::character(1), EntityId::character(2));
        let twice = [
            entry(1, own, 5, swap(2, 9), Refusal::None),
            entry(2, other, 9, OrderKind::TakeMail { mail: 1 }, Refusal::None),
        ];
        assert_eq!(verdict_of(&twice, &[]).doubled, 1);
        let reused = [
            entry(1, other, 9, OrderKind::TakeMail { mail: 1 }, Refusal::None),
            entry(2, own, 5, swap(2, 9), Refusal::Reused),
        ];
        assert_eq!(verdict_of(&reused, &[]).doubled, 0);
        let deed = |number| entry(number, EntityId::deeds(1), number, OrderKind::Deed { deed: 3 }, Refusal::None);
        assert_eq!(verdict_of(&[deed(1), deed(2)], &[]).doubled, 1);
        let expiry = |number| entry(number, EntityId::KEEPER, 1, OrderKind::ReturnMail { mail: 1 }, Refusal::None);
        assert_eq!(verdict_of(&[expiry(1), expiry(2)], &[]).doubled, 0);
    }
}
