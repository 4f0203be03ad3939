//! What was answered: the last orders of each source.
//!
//! Owns the answers of the sources in use. Promises: an order is new, or was answered, or is refused, and never two of
//! these; a source's answers are read from disk before its first order and written with what they answer. Bounded by
//! [`SOURCES_HELD_MAX`]: those longest unused leave memory and are read again. Never remembers what a thing ordered: its
//! sweep can be done only once by what it means, because no later thing gets its number.

use std::collections::{HashMap, VecDeque};

use crate::limits::SOURCES_HELD_MAX;
use crate::planted::{Bug, planted};
use crate::wire::fast_hash::FastHash;
use crate::wire::goods::{OrderId, Refusal};
use crate::wire::ids::{EntityId, IdClass};

/// What is known of an order before it is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Known {
    /// Nothing: it may be done.
    New,
    /// It was answered.
    Before(Refusal),
    /// It can never be done.
    Refused(Refusal),
}

/// One answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Answer {
    /// Sequence of the order.
    pub sequence: u64,
    /// Digest of what was ordered.
    pub digest: u64,
    /// What was answered.
    #[serde(with = "crate::wire::goods::refusal_number")]
    pub refusal: Refusal,
    /// Number of the order in the log.
    pub number: u64,
}

/// The answers of one source, oldest first.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Source {
    kept: VecDeque<Answer>,
    /// Where the next answer goes on disk, a ring.
    next_slot: u8,
    used: u64,
}

/// Whether the answers of a source are kept. A thing ends, and what it left would stay for ever.
pub fn is_remembered(source: EntityId) -> bool {
    source.class() != IdClass::Thing
}

/// The answers of all sources in use.
#[derive(Clone, Debug)]
pub struct Answers {
    /// Answers of one source.
    kept_max: usize,
    sources: HashMap<EntityId, Source, FastHash>,
    dirty: Vec<(EntityId, u8)>,
    uses: u64,
    /// Uses when the last group was begun: its answers may not be on disk yet, so sources used since stay in memory.
    uses_begun: u64,
}

impl Answers {
    /// No answers; of each source the last `kept_max` will be remembered.
    pub fn new(kept_max: usize) -> Answers {
        assert!((1..256).contains(&kept_max), "a slot is a byte");
        Answers { kept_max, sources: HashMap::default(), dirty: Vec::new(), uses: 0, uses_begun: 0 }
    }

    /// Whether a source's answers are in memory, as far as it has any.
    pub fn holds(&self, source: EntityId) -> bool {
        !is_remembered(source) || self.sources.contains_key(&source)
    }

    /// Sources whose answers are in memory.
    pub fn sources_len(&self) -> usize {
        self.sources.len()
    }

    /// Puts a source's answers in memory, as they were on disk, each with its slot.
    pub fn restore(&mut self, source: EntityId, mut answers: Vec<(u8, Answer)>) {
        answers.sort_unstable_by_key(|(_, answer)| answer.sequence);
        let next_slot = answers.last().map_or(0, |&(slot, _)| (slot + 1) % self.kept_max as u8);
        let kept = answers.into_iter().map(|(_, answer)| answer).collect();
        let before = self.sources.insert(source, Source { kept, next_slot, used: self.uses });
        assert!(before.is_none(), "answers in memory are newer than those on disk");
    }

    /// An answer that is in memory.
    pub fn find(&self, id: OrderId) -> Option<Answer> {
        let source = self.sources.get(&id.source)?;
        source.kept.iter().rev().find(|answer| answer.sequence == id.sequence).copied()
    }

    /// Answers in memory.
    pub fn len(&self) -> u64 {
        self.sources.values().map(|source| source.kept.len() as u64).sum()
    }

    /// Sequence of the newest order of a source that was answered; 0: none.
    pub fn newest(&self, source: EntityId) -> u64 {
        self.sources.get(&source).and_then(|source| source.kept.back()).map_or(0, |answer| answer.sequence)
    }

    /// What is known of an order with this content. `recall`: any content will do, and nothing is new.
    pub fn look(&self, id: OrderId, digest: u64, recall: bool) -> Known {
        if !is_remembered(id.source) {
            return if recall { Known::Refused(Refusal::Unknown) } else { Known::New };
        }
        let source = self.sources.get(&id.source).expect("a source's answers are read before its orders");
        if planted(Bug::ApplyTwice) && !recall {
            return Known::New;
        }
        let newest = source.kept.back().map_or(0, |answer| answer.sequence);
        let found = source.kept.iter().rev().find(|answer| answer.sequence == id.sequence);
        match found {
            Some(answer) if recall || answer.digest == digest => Known::Before(answer.refusal),
            Some(_) if planted(Bug::ReusedId) => Known::New,
            Some(_) => Known::Refused(Refusal::Reused),
            None if recall && (id.sequence > newest || source.kept.len() < self.kept_max) => {
                Known::Refused(Refusal::Unknown)
            }
            None if id.sequence > newest => Known::New,
            None if planted(Bug::OldId) => Known::New,
            None => Known::Refused(Refusal::TooOld),
        }
    }

    /// Remembers an answer; the oldest of the source gives way.
    pub fn add(&mut self, id: OrderId, digest: u64, refusal: Refusal, number: u64) {
        if !is_remembered(id.source) {
            return;
        }
        self.uses += 1;
        let source = self.sources.get_mut(&id.source).expect("a source's answers are read before its orders");
        source.used = self.uses;
        if source.kept.len() == self.kept_max {
            source.kept.pop_front();
        }
        source.kept.push_back(Answer { sequence: id.sequence, digest, refusal, number });
        if !planted(Bug::AnswersNotWritten) {
            self.dirty.push((id.source, source.next_slot));
        }
        source.next_slot = (source.next_slot + 1) % self.kept_max as u8;
    }

    /// Lets go of what must be written: nobody writes it.
    pub fn forget_dirty(&mut self) {
        self.dirty.clear();
    }

    /// Shows what must be written, each answer with its slot, and lets go of those longest unused.
    pub fn take_dirty(&mut self, mut write: impl FnMut(EntityId, u8, Answer)) {
        self.dirty.sort_unstable();
        self.dirty.dedup();
        for (id, slot) in self.dirty.drain(..) {
            let source = &self.sources[&id];
            let back = (usize::from(source.next_slot) + self.kept_max - 1 - usize::from(slot)) % self.kept_max;
            let answer = source.kept[source.kept.len() - 1 - back];
            write(id, slot, answer);
        }
        if self.sources.len() > SOURCES_HELD_MAX {
            let mut by_use: Vec<_> = self.sources.iter().map(|(id, source)| (source.used, *id)).collect();
            by_use.sort_unstable();
            by_use.truncate(by_use.len() - SOURCES_HELD_MAX * 3 / 4);
            let begun = by_use.partition_point(|(used, _)| *used <= self.uses_begun);
            by_use[..begun].iter().for_each(|(_, id)| {
                self.sources.remove(id);
            });
        }
        self.uses_begun = self.uses;
    }
}
