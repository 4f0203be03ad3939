//! Connect tokens that were used: the one history of the node.
//!
//! Owns the tokens that claims used, and the number of this start of the realm. Promises: a token is written in the batch
//! of the claim that uses it and is known again after any restart; one that was forgotten is refused because of its expiry
//! for ever; no two starts have the same number. Never reads a clock: what has expired is said to it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::StoreError;
use super::disk::{Batch, Disk, Family, altered, refused};
use super::record::{digest, open_block, open_value, seal_block, seal_value};
use crate::limits::{KEEPER_TOKEN_GRACE_S, KEEPER_TOKENS_FORGOTTEN_MAX, KEEPER_TOKENS_MAX};
use crate::planted::{Bug, planted};

/// Key of the record, in the realm's family.
const RECORD_KEY: &[u8] = b"admission";
/// First byte of the keys of used tokens there; expiry and MAC follow.
const TOKEN_PREFIX: u8 = b't';
const TOKEN_KEY_BYTES: usize = 1 + 8 + 16;

/// Expiry (Unix seconds, so that the oldest come first) and MAC. The MAC covers the expiry, so the pair is as unique.
type Token = (u64, [u8; 16]);

/// What is durable about tokens beside their rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
struct Record {
    /// Starts of the realm, this one included.
    starts: u64,
    /// Latest expiry of a token that was forgotten: one that expired by then may have been used.
    forgotten_unix_s: u64,
    /// Rows of tokens.
    tokens: u64,
    /// Sum of the digests of their keys.
    tokens_digest: u64,
}

/// The used tokens that are remembered.
#[derive(Default, Debug)]
pub struct Tokens {
    used: BTreeSet<Token>,
    record: Record,
    /// Tokens that came (true) or went since the last batch, in order.
    changes: Vec<(Token, bool)>,
    has_changed: bool,
}

impl Tokens {
    /// Reads those of a disk, and whether they belong together.
    ///
    /// # Errors
    /// They cannot be read, or some are altered or missing.
    pub fn read(disk: &impl Disk) -> Result<Tokens, StoreError> {
        let read = |bytes: Vec<u8>| open_value(&bytes).map_err(|e| refused(disk, "the record of used tokens", e));
        let record: Record = disk.get(Family::Realm, RECORD_KEY)?.map(read).transpose()?.unwrap_or_default();
        let (mut used, mut held) = (BTreeSet::new(), Record { tokens: 0, tokens_digest: 0, ..record });
        disk.visit(Family::Realm, &[TOKEN_PREFIX], &mut |key, value| {
            let place = || format!("used token {key:x?} beside the realm's record");
            open_block(value).map_err(|error| refused(disk, &place(), error))?;
            used.insert(token_of(key).ok_or_else(|| altered(disk, &place(), "has not the length of one"))?);
            held.tokens += 1;
            held.tokens_digest = held.tokens_digest.wrapping_add(digest(key));
            Ok(())
        })?;
        if held != record {
            return Err(altered(disk, "the used tokens", "are not those that their record speaks of"));
        }
        Ok(Tokens { used, record, changes: Vec::new(), has_changed: false })
    }

    /// Counts a start, which must be durable before anybody is let in.
    pub fn count_start(&mut self) {
        self.record.starts += 1;
        self.has_changed = true;
    }

    /// Number of this start; each start of the realm has another.
    pub fn start(&self) -> u64 {
        self.record.starts
    }

    /// Tokens that are remembered.
    pub fn count(&self) -> usize {
        self.used.len()
    }

    /// Whether there is no room to remember one more.
    pub fn is_full(&self) -> bool {
        self.used.len() >= KEEPER_TOKENS_MAX
    }

    /// Whether a token was used, or may have been used and forgotten.
    pub fn has(&self, token: &Token) -> bool {
        token.0 <= self.record.forgotten_unix_s || self.used.contains(token)
    }

    /// Remembers a token that is used now.
    pub fn insert(&mut self, token: Token) {
        if self.used.insert(token) {
            self.change(token, true);
        }
    }

    /// Forgets tokens that expired a while before `unix_s`, the oldest first.
    pub fn forget_expired(&mut self, unix_s: u64) {
        for _ in 0..KEEPER_TOKENS_FORGOTTEN_MAX {
            let expired = |token: &&Token| token.0.saturating_add(KEEPER_TOKEN_GRACE_S) < unix_s;
            let Some(&token) = self.used.first().filter(expired) else { return };
            self.used.remove(&token);
            self.record.forgotten_unix_s = token.0;
            self.change(token, false);
        }
    }

    fn change(&mut self, token: Token, is_used: bool) {
        let (record, digest) = (&mut self.record, digest(&key_of(&token)));
        if is_used {
            record.tokens += 1;
            record.tokens_digest = record.tokens_digest.wrapping_add(digest);
        } else {
            record.tokens -= 1;
            record.tokens_digest = record.tokens_digest.wrapping_sub(digest);
        }
        self.changes.push((token, is_used));
        self.has_changed = true;
    }

    /// Whether something is to be written.
    pub fn has_changed(&self) -> bool {
        self.has_changed
    }

    /// Adds what changed to a batch.
    pub fn write(&mut self, batch: &mut Batch) {
        if !std::mem::take(&mut self.has_changed) || planted(Bug::TokensNotWritten) {
            return;
        }
        for (token, is_used) in self.changes.drain(..) {
            match is_used {
                true => batch.put(Family::Realm, &key_of(&token), &seal_block(&[])),
                false => batch.delete(Family::Realm, &key_of(&token)),
            }
        }
        batch.put(Family::Realm, RECORD_KEY, &seal_value(&self.record));
    }
}

fn key_of((expires_unix_s, mac): &Token) -> [u8; TOKEN_KEY_BYTES] {
    let mut key = [TOKEN_PREFIX; TOKEN_KEY_BYTES];
    key[1..9].copy_from_slice(&expires_unix_s.to_be_bytes());
    key[9..].copy_from_slice(mac);
    key
}

fn token_of(key: &[u8]) -> Option<Token> {
    let key: &[u8; TOKEN_KEY_BYTES] = key.try_into().ok()?;
    let expires_unix_s = u64::from_be_bytes(*key[1..].first_chunk()?);
    Some((expires_unix_s, *key.last_chunk()?))
}
