//! Bugs made by hand, to see whether the simulator finds them.
//!
//! Owns the list and the switch. Promises: in a build without the feature `planted` every [`planted`] is `false` at
//! compile time and nothing of this is left; with it a bug is active only on the thread that switched it on. Each bug is
//! one that another server shipped, or one line that somebody could forget.

macro_rules! bugs {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A bug, named by what is wrong.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Bug {
            $($(#[$doc])* $name,)*
        }

        impl Bug {
            /// All of them.
            pub const ALL: &[Bug] = &[$(Bug::$name),*];
        }
    };
}

bugs! {
    /// A batch is written but not synced.
    NoSync,
    /// A new log's name is not synced.
    NoDirectorySync,
    /// Answers leave before the batch is written.
    AckEarly,
    /// An order whose id is known is done again.
    ApplyTwice,
    /// An order whose id is known with other content is done.
    ReusedId,
    /// An order older than those remembered is done.
    OldId,
    /// Answers are remembered in memory only.
    AnswersNotWritten,
    /// Only every other changed balance is written.
    BalanceNotWritten,
    /// A changed item is not written when its uid ends in 5.
    ItemNotWritten,
    /// Counters of items made are not written.
    TotalsNotWritten,
    /// An order that fails in its second leg keeps the first.
    NoRollback,
    /// More than is held may be spent.
    NoBalanceCheck,
    /// An item may be taken from where it is not.
    NoOwnerCheck,
    /// An item of a later version is accepted.
    NoVersionCheck,
    /// A full bag takes more.
    NoCapacityCheck,
    /// Some coins arrive without leaving.
    CreditWithoutDebit,
    /// Some coins leave without arriving.
    DebitWithoutCredit,
    /// The version of an item that moves stays.
    VersionStays,
    /// Some items leave and arrive nowhere.
    ItemNowhere,
    /// Some items arrive without leaving.
    ItemTwice,
    /// A negative amount is taken as its absolute.
    NegativeAmount,
    /// A trade with oneself is done.
    TradeWithYourself,
    /// A trade gives and does not take.
    HalfTrade,
    /// A trade answers one side alone.
    OneSidedAnswer,
    /// A mail is taken without paying its price.
    FreeMail,
    /// A mail may be taken by anybody.
    AnybodysMail,
    /// A taken mail stays.
    MailStays,
    /// A mail never expires.
    MailForEver,
    /// A thing that was picked up stays on the ground.
    ThingStays,
    /// Things are not put back on the ground at a start.
    ThingsForgotten,
    /// The second who grabs a thing wins as well.
    TwoWinners,
    /// A deed's bit is not written with its reward.
    DeedNotWritten,
    /// A deed that was rewarded is rewarded again.
    DeedTwice,
    /// A row of an older epoch is taken.
    StaleRow,
    /// A claim is accepted while another session plays.
    TwoSessions,
    /// A token is accepted twice.
    TokenTwice,
    /// Used tokens are remembered in memory only.
    TokensNotWritten,
    /// An entity that is handed over stays as well.
    HandoffStays,
    /// The owner epoch does not rise at a handoff.
    EpochStays,
    /// Who stands in a cell that got another owner goes there only if the decree came in time.
    LateCutForgotten,
    /// An entity whose session is on its way to another shard is sent out of the world.
    ToldOnTheWay,
    /// What is told to a session on its way to another shard is lost.
    WordOnTheWay,
    /// A lane is given away before all shards know where it goes.
    LaneTooEarly,
    /// Who waits to join when its lane moves is forgotten.
    JoinLeftBehind,
    /// What players asked for before their lane moved is repeated no longer.
    ActionsLeftBehind,
    /// An effect to another shard is lost now and then.
    EffectLost,
    /// A reliable message is delivered twice when its packet comes twice.
    MessageTwice,
    /// Running commands costs no time credit.
    FreeCommands,
    /// Slices of some plots are shown to nobody.
    SliceOverlooked,
    /// Some characters that walk are not written until they leave.
    RowForgotten,
    /// The row of a character says that it stands somewhat higher.
    RowOfElsewhere,
    /// An order that is undone leaves its items with the later version.
    UndoneVersion,
    /// A mailbox takes any number of mails.
    MailsUnbounded,
    /// A cell takes any number of things.
    CellUnbounded,
    /// Client ticks are compared as if they never wrapped around.
    TickNeverWraps,
    /// Packet sequences are compared as if they never wrapped around.
    SequenceNeverWraps,
    /// A failed write is ignored.
    WriteErrorIgnored,
    /// Reads do not see the rows that are on their way to the disk.
    UnderWayUnseen,
    /// The second witness of what was acknowledged is not looked at.
    NoWitness,
    /// A record's checksum is not looked at.
    NoChecksum,
}

#[cfg(feature = "planted")]
mod switch {
    use super::Bug;
    use std::cell::Cell;

    thread_local! {
        static ACTIVE: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Switches a bug on, on this thread, or all off.
    pub fn plant(bug: Option<Bug>) {
        ACTIVE.set(bug);
    }

    /// Whether a bug is switched on.
    pub fn planted(bug: Bug) -> bool {
        ACTIVE.get() == Some(bug)
    }
}

#[cfg(feature = "planted")]
pub use switch::{plant, planted};

/// Whether a bug is switched on: never, in a build without the feature `planted`.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub const fn planted(_: Bug) -> bool {
    false
}
