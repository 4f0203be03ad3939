//! What is durable: characters, who plays them, and everything that is owned.
//!
//! Owns the store of the realm on a [`Disk`], the claims (which session of which
//! client is the live one) and the ledger of all coins and items. Promises: an answer leaves only when all it says is on
//! disk; what belongs together is one batch; a client has at most one live session; each [`KeeperCommand::Claim`] gets exactly one of `Claimed` and `Refused`; of two rows of a character the
//! one with the higher (epoch, tick) stays. Never blocks a shard, never drops an answer, never goes on after a failed
//! write: it says why and what mends it, and the process ends.

mod book;
mod claims;
mod desk;
pub mod disk;
mod error;
pub mod inspect;
mod ledger;
mod memory;
pub mod proof;
pub mod record;
mod store;
pub mod tables;
mod tokens;

pub use book::{Book, Flow, Holding, Item, Leg, Totals};
pub use claims::{ClaimCounts, Claims};
pub use desk::{Desk, DeskRules, LedgerHoldings};
pub use disk::{Batch, Disk, Family};
pub use error::{StoreError, StoreErrorKind};
pub use ledger::{Answer, Context, Done, Entry, Ledger, Mail, Terms, is_remembered};
pub use memory::{DiskFault, MemoryDisk};
pub use record::{RECORD_VERSION, RealmRecord, RecordError};
pub use store::Store;
pub use tokens::Tokens;

use crate::wire::goods::{Asked, GoodsNews, Refusal, Settled};
use crate::wire::ids::{EntityId, SessionRef, ShardId};

/// What is durable about one character.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CharacterRow {
    /// Client that plays it.
    pub client_id: u64,
    /// Number of the character, from 1; see [`EntityId::character`].
    pub character: u64,
    /// Shard that owned it, which is also the column family of the row.
    pub owner: ShardId,
    /// Owner epoch: rises by one with each handoff.
    pub epoch: u32,
    /// Realm tick of this state.
    pub tick: u64,
    /// Eastwards, 1/65536 m.
    pub x: i32,
    /// Northwards, 1/65536 m.
    pub y: i32,
    /// Upwards, 1/65536 m.
    pub z: i32,
    /// 1/65536 turn, 0 = +x, counter-clockwise.
    pub yaw: u16,
    /// Whether it ever stood in the world; if not, the position means nothing and it starts at a spawn point.
    pub saved: bool,
    /// One bit for each deed that was rewarded. Changed by the ledger alone, in one batch with the reward; what a shard
    /// says of it in a row counts for nothing.
    pub deeds: u64,
}

impl CharacterRow {
    /// The entity that this row is about.
    pub fn entity(&self) -> EntityId {
        EntityId::character(self.character)
    }

    /// Age of the row: the higher one is the newer one.
    pub fn age(&self) -> (u32, u64) {
        (self.epoch, self.tick)
    }
}

/// What shards tell the keeper. Commands of one shard arrive in the order it gave them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KeeperCommand {
    /// An order to the ledger. Answered once, by `Settled`.
    Order(Asked),
    /// A session wants to play the client's character. Answered once; a session claims once.
    Claim {
        /// Shard that gets the answer, and a `Cut` later.
        shard: ShardId,
        /// The session that joins.
        session: SessionRef,
        /// Client id of its connect token.
        client_id: u64,
        /// Authentication code of its connect token; accepted once in the life of the realm.
        token_mac: [u8; 16],
        /// Expiry of its connect token, seconds since 1970.
        expires_unix_s: u64,
    },
    /// A changed character.
    Row(CharacterRow),
    /// The session ended, whatever had been answered to its claim by then.
    Release {
        /// Client of the session.
        client_id: u64,
        /// The session that ended.
        session: SessionRef,
        /// Final row, newer than all others of this session, if the character stood in the world.
        row: Option<CharacterRow>,
    },
    /// The time; the only one that the keeper's decisions know.
    Clock {
        /// Realm tick.
        tick: u64,
        /// Seconds since 1970.
        unix_s: u64,
    },
}

/// What the keeper tells a shard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum KeeperAnswer {
    /// An order of this shard's entities is durable, done or refused.
    Settled(Box<Settled>),
    /// What a live session's client must hear of its order.
    Operation {
        /// The session.
        session: SessionRef,
        /// Sequence of the order.
        operation: u64,
        /// `None`: it was done.
        refusal: Refusal,
        /// The thing on the ground that a drop made.
        thing: Option<EntityId>,
    },
    /// What a live session's client has, or what changed of it.
    Goods {
        /// The session.
        session: SessionRef,
        /// What.
        news: Box<GoodsNews>,
    },
    /// The session is now the only live one of its client.
    Claimed {
        /// The session that claimed.
        session: SessionRef,
        /// The character's newest row.
        row: CharacterRow,
        /// Whether this claim created the character.
        new: bool,
        /// Newest order of the character that the ledger answered; 0: none.
        operation: u64,
    },
    /// The session may not play.
    Refused {
        /// The session that claimed.
        session: SessionRef,
        /// Why.
        reason: ClaimRefusal,
    },
    /// Whether anybody may join: not while the disk is nearly full. Said to all shards when it changes.
    Admission {
        /// Anybody may.
        open: bool,
    },
    /// A live session must end: another one waits for its `Release`.
    Cut {
        /// The session to end.
        session: SessionRef,
    },
}

impl KeeperAnswer {
    /// The session that it is for; none: it is for the shard itself.
    pub fn session(&self) -> Option<SessionRef> {
        match self {
            KeeperAnswer::Operation { session, .. }
            | KeeperAnswer::Goods { session, .. }
            | KeeperAnswer::Claimed { session, .. }
            | KeeperAnswer::Refused { session, .. }
            | KeeperAnswer::Cut { session } => Some(*session),
            KeeperAnswer::Settled(_) | KeeperAnswer::Admission { .. } => None,
        }
    }
}

/// Why a claim was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClaimRefusal {
    /// The token was claimed before, in this run or an earlier one, or expired long ago.
    TokenUsed,
    /// Another session of the client, with a newer token, waits for the same character.
    NewerSession,
    /// [`crate::limits::KEEPER_TOKENS_MAX`] or [`crate::limits::KEEPER_LIVE_MAX`] is reached.
    TooMany,
    /// The session was released while it waited.
    Withdrawn,
}
