//! The desk: where the keeper's commands are done, one after the other.
//!
//! Owns claims, rows and ledger on one disk, and the answers that wait for the next commit. Promises: what a command
//! changed, in rows and in goods, becomes durable in one batch; its answer is given out after that batch and never
//! before; the same commands on the same disk give the same answers. Never reads a clock: time is a command.

use std::time::Duration;

use super::disk::{Batch, Disk, Family, altered, refused};
use super::ledger::{Context, Done, Entry, Ledger, Terms};
use super::record::{open_value, seal_block, seal_value};
use super::store::Store;
use super::tables::{Counters, key_of, prefix, read_ledger};
use super::tokens::Tokens;
use super::{Claims, KeeperAnswer, KeeperCommand, StoreError};
use crate::limits::{KEEPER_FORGET_ROWS_MAX, START_COINS, START_ITEMS};
use crate::planted::{Bug, planted};
use crate::wire::goods::{Asked, GoodsNews, Order, OrderId, OrderKind, Refusal, Settled, Thing};
use crate::wire::ids::{EntityId, IdClass, SessionRef, ShardId};

/// Bytes that one order writes, about.
const ORDER_BYTES: usize = 240;

/// How a realm is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DeskRules {
    /// New characters get [`START_COINS`] and [`START_ITEMS`] from the mint.
    pub start_goods: bool,
    /// How long mails and things wait.
    pub terms: Terms,
}

/// What a ledger holds in memory, each a number of entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LedgerHoldings {
    /// Accounts that hold something.
    pub accounts: u64,
    /// Items that are somewhere.
    pub items: u64,
    /// Mails that wait.
    pub mails: u64,
    /// Things on the ground.
    pub things: u64,
    /// Sources whose answers are in memory, up to [`crate::limits::SOURCES_HELD_MAX`].
    pub sources: u64,
    /// Answers in memory, up to [`crate::limits::ANSWERS_KEPT`] for each of them.
    pub answers: u64,
}

/// Claims, rows and ledger of a realm.
pub struct Desk<D> {
    store: Store<D>,
    claims: Claims,
    ledger: Ledger,
    rules: DeskRules,
    /// Answers to what is in the group.
    answers: Vec<(ShardId, KeeperAnswer)>,
    /// Answers to what is on its way to the disk.
    under_way: Vec<(ShardId, KeeperAnswer)>,
    /// Answers to what is on disk.
    ready: Vec<(ShardId, KeeperAnswer)>,
    changed: bool,
    settled: u64,
    group_orders: usize,
}

impl<D: Disk> Desk<D> {
    /// Takes over a store; the ledger is read and counted anew. The start is counted on disk before anything else is done.
    ///
    /// # Errors
    /// What was stored cannot be read, or its sums do not agree.
    pub fn open(mut store: Store<D>, rules: DeskRules) -> Result<Desk<D>, StoreError> {
        let mut ledger = Ledger::new(rules.terms);
        read_ledger(store.disk(), &mut ledger)?;
        if let Some(first) = ledger.book.census().first() {
            return Err(altered(store.disk(), "the ledger", &format!("does not add up: {first}")));
        }
        forget_things(&mut store)?;
        let mut tokens = Tokens::read(store.disk())?;
        tokens.count_start();
        let mut desk = Desk {
            store,
            claims: Claims::new(tokens),
            ledger,
            rules,
            answers: Vec::new(),
            under_way: Vec::new(),
            ready: Vec::new(),
            changed: false,
            settled: 0,
            group_orders: 0,
        };
        desk.commit()?;
        Ok(desk)
    }

    /// Number of this start of the realm: no other start has it.
    pub fn start(&self) -> u64 {
        self.claims.tokens.start()
    }

    /// Rows and the realm's record.
    pub fn store(&self) -> &Store<D> {
        &self.store
    }

    /// Likewise, to tend the disk.
    pub fn store_mut(&mut self) -> &mut Store<D> {
        &mut self.store
    }

    /// Ends it; its disk stays.
    pub fn into_disk(self) -> D {
        self.store.into_disk()
    }

    /// Who plays.
    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    /// Goods.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// What the ledger holds in memory, counted.
    pub fn holdings(&self) -> LedgerHoldings {
        let Ledger { book, answers, .. } = &self.ledger;
        LedgerHoldings {
            accounts: book.accounts_len() as u64,
            items: book.items_len() as u64,
            mails: self.ledger.mails_len() as u64,
            things: self.ledger.things_len() as u64,
            sources: answers.sources_len() as u64,
            answers: answers.len(),
        }
    }

    /// Things that lie on the ground now.
    pub fn things(&self) -> Vec<Thing> {
        if planted(Bug::ThingsForgotten) { Vec::new() } else { self.ledger.things().copied().collect() }
    }

    /// Does one command. What is answered waits until its group has landed.
    ///
    /// # Errors
    /// The disk cannot be read; the process must end.
    pub fn apply(&mut self, command: KeeperCommand) -> Result<(), StoreError> {
        let waiting = self.answers.len();
        match command {
            KeeperCommand::Order(asked) => return self.order(asked),
            KeeperCommand::Clock { tick, .. } => {
                self.claims.apply(command, &mut self.store, &mut self.answers)?;
                let news = self.ledger.clock(tick);
                self.changed |= !news.is_empty();
                self.tell(news);
            }
            _ => self.claims.apply(command, &mut self.store, &mut self.answers)?,
        }
        for at in waiting..self.answers.len() {
            self.complete(at)?;
        }
        Ok(())
    }

    /// Adds to an answer that admits somebody what the ledger knows of it.
    fn complete(&mut self, at: usize) -> Result<(), StoreError> {
        let (shard, KeeperAnswer::Claimed { session, row, new, .. }) = self.answers[at] else { return Ok(()) };
        let character = row.character;
        if new && self.rules.start_goods {
            let id = OrderId { source: EntityId::JOIN, sequence: character };
            let kind = OrderKind::Grant { character, coins: START_COINS, items: START_ITEMS };
            self.hold(EntityId::JOIN)?;
            self.done(Order { id, kind });
        }
        self.hold(row.entity())?;
        let newest = self.ledger.answers.newest(row.entity());
        if let KeeperAnswer::Claimed { operation, .. } = &mut self.answers[at].1 {
            *operation = newest;
        }
        let news = Box::new(self.ledger.whole(character));
        self.answers.push((shard, KeeperAnswer::Goods { session, news }));
        Ok(())
    }

    fn order(&mut self, asked: Asked) -> Result<(), StoreError> {
        let Asked { shard, order } = asked;
        self.hold(order.id.source)?;
        let mut parties = vec![order.id];
        if let OrderKind::Swap { partner, .. } = order.kind {
            self.hold(partner.source)?;
            parties.push(partner);
        }
        let Done { refusal, thing, news, .. } = self.done(order);
        self.settled += 1;
        let settled = Settled { number: self.settled, order, refusal, thing };
        self.answers.push((shard, KeeperAnswer::Settled(Box::new(settled))));
        for id in parties.into_iter().filter(|id| id.source.class() == IdClass::Character) {
            if let Some((shard, session)) = self.session_of(id.source.number()) {
                let thing = thing.map(|thing| EntityId::thing(thing.number));
                let answer = KeeperAnswer::Operation { session, operation: id.sequence, refusal, thing };
                self.answers.push((shard, answer));
            }
        }
        self.tell(news);
        Ok(())
    }

    /// Does an order now that its source's answers are held.
    fn done(&mut self, order: Order) -> Done {
        let realm = self.store.realm();
        let (tick, next_character) = (realm.tick, realm.next_character);
        let deed = match order.kind {
            OrderKind::Deed { deed } => self.claims.live_row(order.id.source.number()).map(|row| (row, deed)),
            _ => None,
        };
        let deed_is_new = deed.is_some_and(|(row, deed)| deed < 64 && row.deeds & 1 << deed == 0);
        let done = self.ledger.apply(order, Context { tick, next_character, deed_is_new });
        self.changed |= done.new;
        self.group_orders += usize::from(done.new);
        if let Some((row, deed)) = deed.filter(|_| done.refusal == Refusal::None && done.new)
            && !planted(Bug::DeedNotWritten)
        {
            self.claims.set_deeds(row.client_id, row.deeds | 1 << deed, &mut self.store);
        }
        done
    }

    fn session_of(&self, character: u64) -> Option<(ShardId, SessionRef)> {
        self.claims.session_of(character)
    }

    fn tell(&mut self, news: Vec<(u64, GoodsNews)>) {
        for (character, news) in news {
            if let Some((shard, session)) = self.session_of(character) {
                self.answers.push((shard, KeeperAnswer::Goods { session, news: Box::new(news) }));
            }
        }
    }

    /// Reads a source's answers unless they are in memory.
    fn hold(&mut self, source: EntityId) -> Result<(), StoreError> {
        if self.ledger.answers.holds(source) {
            return Ok(());
        }
        let mut key = vec![prefix::ANSWER];
        key.extend(source.0.to_be_bytes());
        let (disk, mut answers) = (self.store.disk(), Vec::new());
        disk.visit(Family::Ledger, &key, &mut |key, value| {
            let place = || format!("an answer to {:#x}", source.0);
            let answer = open_value(value).map_err(|error| refused(disk, &place(), error))?;
            answers.push((*key.last().expect("the key has a prefix"), answer));
            Ok(())
        })?;
        self.ledger.answers.restore(source, answers);
        Ok(())
    }

    /// Whether there is something to commit.
    pub fn has_group(&self) -> bool {
        self.changed || self.claims.tokens.has_changed() || self.store.has_group()
    }

    /// About how much the group writes.
    pub fn group_bytes(&self) -> usize {
        self.store.group_bytes() + self.group_orders * ORDER_BYTES
    }

    /// Begins to write the group, rows and goods in one batch, when nothing is under way; commands go on meanwhile.
    /// Answers with nothing to write may leave at once: what they repeat is on disk.
    pub fn begin(&mut self) {
        self.begin_group(false);
    }

    /// Waits up to `patience` for the group that is under way; gives the number of its rows when it has landed now. Then
    /// its answers may leave.
    ///
    /// # Errors
    /// The disk refused; the process must end, and no answer may leave.
    pub fn land(&mut self, patience: Duration) -> Result<Option<u64>, StoreError> {
        let landed = self.store.land(patience)?;
        if landed.is_some() {
            self.ready.append(&mut self.under_way);
        }
        Ok(landed)
    }

    /// Commits all that was done, and stays until it is on disk.
    ///
    /// # Errors
    /// As [`Desk::land`].
    pub fn commit(&mut self) -> Result<(), StoreError> {
        self.land(Duration::MAX)?;
        self.begin_group(false);
        self.land(Duration::MAX).map(|_| ())
    }

    /// Commits whatever there is, the clock too.
    ///
    /// # Errors
    /// As [`Desk::land`].
    pub fn close(&mut self) -> Result<(), StoreError> {
        self.land(Duration::MAX)?;
        self.begin_group(true);
        self.land(Duration::MAX).map(|_| ())
    }

    fn begin_group(&mut self, always: bool) {
        let mut batch = Batch::default();
        if self.changed {
            write_ledger(&mut self.ledger, &mut batch);
        }
        self.claims.tokens.write(&mut batch);
        self.store.count_orders(self.ledger.orders());
        self.store.begin(batch, always);
        (self.changed, self.group_orders) = (false, 0);
        let waiting = if self.store.is_under_way() { &mut self.under_way } else { &mut self.ready };
        waiting.append(&mut self.answers);
    }

    /// Answers to what is in the group.
    pub fn waiting_answers(&self) -> &[(ShardId, KeeperAnswer)] {
        &self.answers
    }

    /// Takes the answers to what is on disk: these may leave.
    pub fn take_answers(&mut self) -> Vec<(ShardId, KeeperAnswer)> {
        if planted(Bug::AckEarly) {
            self.ready.append(&mut self.under_way);
            self.ready.append(&mut self.answers);
        }
        std::mem::take(&mut self.ready)
    }
}

/// Adds what the ledger changed to a batch.
fn write_ledger(ledger: &mut Ledger, batch: &mut Batch) {
    let (accounts, items) = ledger.book.take_dirty();
    for (n, account) in accounts.into_iter().enumerate() {
        let balances = ledger.book.holding(account).map(|holding| holding.balances);
        let key = key_of(prefix::ACCOUNT, account.0);
        match balances {
            _ if planted(Bug::BalanceNotWritten) && n % 2 == 1 => (),
            Some(balances) if balances.iter().any(|&amount| amount > 0) => {
                batch.put(Family::Ledger, &key, &seal_value(&balances));
            }
            _ => batch.delete(Family::Ledger, &key),
        }
    }
    for uid in items {
        let key = key_of(prefix::ITEM, uid);
        match ledger.book.item(uid) {
            _ if planted(Bug::ItemNotWritten) && uid % 10 == 5 => (),
            Some(item) => batch.put(Family::Ledger, &key, &seal_value(&item)),
            None => batch.delete(Family::Ledger, &key),
        }
    }
    for (number, mail) in ledger.take_dirty_mails() {
        let key = key_of(prefix::MAIL, number);
        match mail {
            Some(mail) => batch.put(Family::Ledger, &key, &seal_value(&mail)),
            None => batch.delete(Family::Ledger, &key),
        }
    }
    for (number, thing) in ledger.take_dirty_things() {
        let key = key_of(prefix::THING, number);
        match thing {
            Some(thing) => batch.put(Family::Ledger, &key, &seal_value(&thing)),
            None => batch.delete(Family::Ledger, &key),
        }
    }
    ledger.answers.take_dirty(|source, slot, answer| {
        let mut key = [0; 10];
        key[..9].copy_from_slice(&key_of(prefix::ANSWER, source.0));
        key[9] = slot;
        batch.put(Family::Ledger, &key, &seal_value(&answer));
    });
    if !planted(Bug::TotalsNotWritten) {
        let counters = Counters { orders: ledger.orders(), rolled: ledger.rolled(), totals: ledger.book.totals };
        batch.put(Family::Ledger, &[prefix::COUNTERS], &seal_value(&counters));
    }
    let entries = ledger.take_entries();
    if let Some(first) = entries.first() {
        batch.put(Family::Orders, &first.number.to_be_bytes(), &seal_block(&Entry::encode(&entries)));
    }
}

/// Removes the answers to things, which an older program kept for ever: one row for each thing that was ever swept.
fn forget_things<D: Disk>(store: &mut Store<D>) -> Result<(), StoreError> {
    let of_things = &key_of(prefix::ANSWER, EntityId::thing(0).0)[..2];
    let mut keys = Vec::new();
    store.disk().visit(Family::Ledger, of_things, &mut |key, _| {
        keys.push(key.to_vec());
        Ok(())
    })?;
    let groups = store.realm().groups;
    for keys in keys.chunks(KEEPER_FORGET_ROWS_MAX) {
        let mut batch = Batch::default();
        keys.iter().for_each(|key| batch.delete(Family::Ledger, key));
        store.disk_mut().write(batch, groups)?;
    }
    Ok(())
}
