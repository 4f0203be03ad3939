//! Claims: which session of a client is the live one, and which row of a character is the newest.
//!
//! Owns the live sessions, those that wait for them, and the tokens used. Promises: at most one live session for a
//! client; every claim is answered once; a token is accepted once in the life of the realm, whatever came to it by way of
//! which lane or port; answers depend on the order of commands alone (the time is a command). Never does I/O of its own: rows come from a [`Store`], and the desk gives out the answers
//! when what they say is durable.

use std::collections::BTreeMap;

use super::disk::Disk;
use super::store::Store;
use super::tokens::Tokens;
use super::{CharacterRow, ClaimRefusal, KeeperAnswer, KeeperCommand, StoreError};
use crate::limits::KEEPER_LIVE_MAX;
use crate::planted::{Bug, planted};
use crate::wire::ids::{SessionRef, ShardId};

/// What happened since the start.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ClaimCounts {
    /// Claims answered `Claimed`.
    pub claimed: u64,
    /// Claims answered `Refused`.
    pub refused: u64,
    /// Sessions told to end.
    pub cut: u64,
    /// Rows taken.
    pub rows_taken: u64,
    /// Rows dropped because a newer one was held.
    pub rows_stale: u64,
    /// Releases of sessions that were neither live nor waiting (those refused before).
    pub releases_late: u64,
}

/// The claims of all clients.
#[derive(Default, Debug)]
pub struct Claims {
    live: BTreeMap<u64, Live>,
    /// Client of each character in play.
    clients: BTreeMap<u64, u64>,
    /// What they used; the desk writes it with the rest of a group.
    pub(super) tokens: Tokens,
    counts: ClaimCounts,
}

/// A client whose character is in play.
#[derive(Debug)]
struct Live {
    shard: ShardId,
    session: SessionRef,
    /// Newest row, so that a row costs no read.
    row: CharacterRow,
    cut: bool,
    waiting: Option<Waiting>,
}

/// A claim that waits for the live session's release.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    shard: ShardId,
    session: SessionRef,
    expires_unix_s: u64,
}

impl Claims {
    /// Nobody plays, and these tokens were used before.
    pub(super) fn new(tokens: Tokens) -> Claims {
        Claims { tokens, ..Claims::default() }
    }

    /// Counts since the start.
    pub fn counts(&self) -> ClaimCounts {
        self.counts
    }

    /// Clients with a live session.
    pub fn live_count(&self) -> usize {
        self.live.len()
    }

    /// The live session of a character, and the shard that serves it.
    pub fn session_of(&self, character: u64) -> Option<(ShardId, SessionRef)> {
        let live = &self.live[self.clients.get(&character)?];
        Some((live.shard, live.session))
    }

    /// The newest row of a character in play.
    pub fn live_row(&self, character: u64) -> Option<CharacterRow> {
        Some(self.live[self.clients.get(&character)?].row)
    }

    /// Writes the deeds of a character in play into its row.
    pub fn set_deeds<D: Disk>(&mut self, client_id: u64, deeds: u64, store: &mut Store<D>) {
        let live = self.live.get_mut(&client_id).expect("the caller found it in play");
        let before = live.row;
        live.row.deeds = deeds;
        store.put(live.row, Some(&before));
    }

    /// Does one command; appends the answers, to be sent once the store has committed.
    ///
    /// # Errors
    /// The store cannot be read; the command is not done.
    pub fn apply<D: Disk>(
        &mut self,
        command: KeeperCommand,
        store: &mut Store<D>,
        answers: &mut Vec<(ShardId, KeeperAnswer)>,
    ) -> Result<(), StoreError> {
        match command {
            KeeperCommand::Order(_) => unreachable!("orders are the ledger's"),
            KeeperCommand::Claim { shard, session, client_id, token_mac, expires_unix_s } => {
                let claim = Waiting { shard, session, expires_unix_s };
                self.claim(claim, client_id, token_mac, store, answers)
            }
            KeeperCommand::Row(row) => self.take_row(row, store),
            KeeperCommand::Release { client_id, session, row } => {
                if let Some(row) = row {
                    assert_eq!(row.client_id, client_id, "a session releases its own character");
                    self.take_row(row, store)?;
                }
                self.release(client_id, session, answers);
                Ok(())
            }
            KeeperCommand::Clock { tick, unix_s } => {
                store.realm_mut().tick = tick.max(store.realm().tick);
                self.tokens.forget_expired(unix_s);
                Ok(())
            }
        }
    }

    fn claim<D: Disk>(
        &mut self,
        claim: Waiting,
        client_id: u64,
        token_mac: [u8; 16],
        store: &mut Store<D>,
        answers: &mut Vec<(ShardId, KeeperAnswer)>,
    ) -> Result<(), StoreError> {
        let token = (claim.expires_unix_s, token_mac);
        if self.tokens.has(&token) && !planted(Bug::TokenTwice) {
            self.refuse(claim, ClaimRefusal::TokenUsed, answers);
            return Ok(());
        }
        let is_live = self.live.contains_key(&client_id);
        if self.tokens.is_full() || (!is_live && self.live.len() >= KEEPER_LIVE_MAX) {
            self.refuse(claim, ClaimRefusal::TooMany, answers);
            return Ok(());
        }
        if is_live && !planted(Bug::TwoSessions) {
            self.wait(claim, client_id, answers);
        } else {
            let stored = store.row(client_id)?;
            let row = stored.unwrap_or_else(|| create_character(client_id, claim.shard, store));
            self.admit(claim, row, stored.is_none(), answers);
        }
        self.tokens.insert(token);
        Ok(())
    }

    /// Puts a claim behind the live session, which is told to end; of two that wait, the newer token stays.
    fn wait(&mut self, claim: Waiting, client_id: u64, answers: &mut Vec<(ShardId, KeeperAnswer)>) {
        let live = self.live.get_mut(&client_id).expect("the caller looked");
        assert_ne!(live.session, claim.session, "a session claims once");
        if !live.cut {
            live.cut = true;
            self.counts.cut += 1;
            answers.push((live.shard, KeeperAnswer::Cut { session: live.session }));
        }
        match live.waiting {
            Some(first) if first.expires_unix_s > claim.expires_unix_s => {
                self.refuse(claim, ClaimRefusal::NewerSession, answers);
            }
            first => {
                live.waiting = Some(claim);
                if let Some(first) = first {
                    self.refuse(first, ClaimRefusal::NewerSession, answers);
                }
            }
        }
    }

    fn admit(&mut self, claim: Waiting, row: CharacterRow, new: bool, answers: &mut Vec<(ShardId, KeeperAnswer)>) {
        let Waiting { shard, session, .. } = claim;
        self.clients.insert(row.character, row.client_id);
        self.live.insert(row.client_id, Live { shard, session, row, cut: false, waiting: None });
        self.counts.claimed += 1;
        answers.push((shard, KeeperAnswer::Claimed { session, row, new, operation: 0 }));
    }

    fn refuse(&mut self, claim: Waiting, reason: ClaimRefusal, answers: &mut Vec<(ShardId, KeeperAnswer)>) {
        self.counts.refused += 1;
        answers.push((claim.shard, KeeperAnswer::Refused { session: claim.session, reason }));
    }

    fn release(&mut self, client_id: u64, session: SessionRef, answers: &mut Vec<(ShardId, KeeperAnswer)>) {
        match self.live.get_mut(&client_id) {
            Some(live) if live.session == session => {
                let (row, waiting) = (live.row, live.waiting);
                self.live.remove(&client_id);
                self.clients.remove(&row.character);
                if let Some(claim) = waiting {
                    self.admit(claim, row, false, answers);
                }
            }
            Some(live) => match live.waiting.take_if(|waiting| waiting.session == session) {
                Some(claim) => self.refuse(claim, ClaimRefusal::Withdrawn, answers),
                None => self.counts.releases_late += 1,
            },
            None => self.counts.releases_late += 1,
        }
    }

    fn take_row<D: Disk>(&mut self, row: CharacterRow, store: &mut Store<D>) -> Result<(), StoreError> {
        let live = self.live.get_mut(&row.client_id);
        // Shards share one queue, so a row may come after the release that made it old.
        let held = match &live {
            Some(live) => Some(live.row),
            None => store.row(row.client_id)?,
        };
        let held = held.expect("only a claimed character has rows");
        assert_eq!(row.character, held.character, "a client has one character");
        // Deeds are the ledger's: a shard's rows never change them.
        let row = CharacterRow { deeds: held.deeds, ..row };
        if row.age() < held.age() && !planted(Bug::StaleRow) {
            self.counts.rows_stale += 1;
            return Ok(());
        }
        store.put(row, Some(&held));
        store.realm_mut().tick = row.tick.max(store.realm().tick);
        if let Some(live) = live {
            live.row = row;
        }
        self.counts.rows_taken += 1;
        Ok(())
    }
}

fn create_character<D: Disk>(client_id: u64, owner: ShardId, store: &mut Store<D>) -> CharacterRow {
    let character = store.realm().next_character;
    store.realm_mut().next_character += 1;
    let row = CharacterRow {
        client_id,
        character,
        owner,
        epoch: 0,
        tick: 0,
        x: 0,
        y: 0,
        z: 0,
        yaw: 0,
        saved: false,
        deeds: 0,
    };
    store.put(row, None);
    row
}

#[cfg(test)]
mod tests;
