//! What goes wrong in a run, and what it met.
//!
//! Owns the rates of a seed and the table of what met what. Promises: every fault is drawn from the seed; each seed
//! draws its own rates, many of them nothing at all, because a run in which everything always fails never gets far;
//! the last ticks of a run are quiet, so that one sees whether it recovers.

use std::collections::BTreeMap;

use crate::wire::ids::EntityId;
use crate::world::random::{below, random};

/// Which faults a run may have.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Faults {
    /// Nothing goes wrong.
    None,
    /// Bodies are lost, come twice or late; clients vanish and come twice.
    Network,
    /// Writes and syncs fail, the disk is full, bits rot; each ends the process, which starts again.
    Disk,
    /// Shards and the keeper stand still for a while.
    Stalls,
    /// The process is killed or loses power, at every moment of a commit.
    Crash,
    /// All of these.
    All,
}

/// One kind of fault.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[expect(missing_docs, reason = "each name says what happens")]
pub enum Fault {
    Loss,
    Duplicate,
    Reorder,
    HangUp,
    SecondSession,
    ShardStall,
    KeeperStall,
    Kill,
    PowerLoss,
    TornWrite,
    DiskFull,
    WriteError,
    SyncError,
    BitRot,
}

impl Fault {
    /// All kinds.
    pub const ALL: [Fault; 14] = [
        Fault::Loss,
        Fault::Duplicate,
        Fault::Reorder,
        Fault::HangUp,
        Fault::SecondSession,
        Fault::ShardStall,
        Fault::KeeperStall,
        Fault::Kill,
        Fault::PowerLoss,
        Fault::TornWrite,
        Fault::DiskFull,
        Fault::WriteError,
        Fault::SyncError,
        Fault::BitRot,
    ];

    /// The profile that it belongs to.
    fn profile(self) -> Faults {
        match self {
            Fault::Loss | Fault::Duplicate | Fault::Reorder | Fault::HangUp | Fault::SecondSession => Faults::Network,
            Fault::ShardStall | Fault::KeeperStall => Faults::Stalls,
            Fault::Kill | Fault::PowerLoss | Fault::TornWrite => Faults::Crash,
            Fault::DiskFull | Fault::WriteError | Fault::SyncError | Fault::BitRot => Faults::Disk,
        }
    }

    /// Whether runs with these faults may have it.
    pub fn is_in(self, faults: Faults) -> bool {
        faults == Faults::All || faults == self.profile()
    }

    /// One in how many chances it happens at its most frequent: a body, or a tick of the realm.
    fn chances_least(self) -> u32 {
        match self {
            Fault::Loss => 5,
            Fault::Duplicate | Fault::Reorder => 12,
            Fault::HangUp | Fault::SecondSession => 1_500,
            Fault::ShardStall | Fault::KeeperStall => 90,
            // A chance is a start of the process.
            Fault::BitRot => 1,
            _ => 300,
        }
    }
}

/// Something that players do, for the table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[expect(missing_docs, reason = "each name says what is done")]
pub enum Feature {
    Join,
    Move,
    Handoff,
    Trade,
    Mail,
    Bank,
    Drop,
    PickUp,
    Deed,
    Row,
    Cut,
    Lane,
}

impl Feature {
    /// All of them.
    pub const ALL: [Feature; 12] = [
        Feature::Join,
        Feature::Move,
        Feature::Handoff,
        Feature::Trade,
        Feature::Mail,
        Feature::Bank,
        Feature::Drop,
        Feature::PickUp,
        Feature::Deed,
        Feature::Row,
        Feature::Cut,
        Feature::Lane,
    ];
}

/// Something rare that a run should meet, for the table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Meeting {
    /// A session hung up while it claimed and its lane had moved since.
    ClaimEndsOnMovedLane,
    /// A keyframe was acknowledged whose epoch is over.
    OldKeyframe,
    /// A late parcel brought an own state older than one that was heard.
    OldOwnState,
    /// The queue to the keeper was full.
    KeeperQueueFull,
    /// Low 32 bits of the realm's ticks, and all counters made of them, wrapped around.
    TickWrapped,
}

impl Meeting {
    /// All of them.
    pub const ALL: [Meeting; 5] = [
        Meeting::ClaimEndsOnMovedLane,
        Meeting::OldKeyframe,
        Meeting::OldOwnState,
        Meeting::KeeperQueueFull,
        Meeting::TickWrapped,
    ];
}

/// Ticks before and after a fault in which what happens met it.
const NEAR_TICKS: u64 = 30;

/// The faults of one run.
#[derive(Clone, Debug)]
pub struct Plan {
    seed: u64,
    /// One in so many chances; none: never.
    rates: BTreeMap<Fault, u32>,
    quiet_from: u64,
    draws: u64,
    last_fault: BTreeMap<Fault, u64>,
    last_feature: BTreeMap<Feature, u64>,
    /// How often each happened.
    pub counts: BTreeMap<Fault, u64>,
    /// What met what.
    pub met: BTreeMap<(Feature, Fault), u64>,
    /// How often what is rare happened.
    pub meetings: BTreeMap<Meeting, u64>,
}

impl Plan {
    /// The faults of a seed; from `quiet_from` on there are none.
    pub fn new(seed: u64, faults: Faults, quiet_from: u64) -> Plan {
        let draw = |n: u64, bound: u32| below(random(seed, EntityId::NONE, 1, n), bound);
        let mut rates = BTreeMap::new();
        for (n, fault) in (0u64..).zip(Fault::ALL) {
            // One seed in eight is quiet; in the others each kind is there in one of two.
            if fault.is_in(faults) && draw(1_000, 8) > 0 && draw(n * 2, 2) == 0 {
                rates.insert(fault, fault.chances_least() << draw(n * 2 + 1, 5));
            }
        }
        let (last_fault, last_feature, counts) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Plan {
            seed,
            rates,
            quiet_from,
            draws: 0,
            last_fault,
            last_feature,
            counts,
            met: BTreeMap::new(),
            meetings: BTreeMap::new(),
        }
    }

    /// A number of this run below `bound`.
    pub fn draw(&mut self, bound: u32) -> u32 {
        self.draws += 1;
        below(random(self.seed, EntityId::NONE, 2, self.draws), bound)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.draws += 1;
        random(self.seed, EntityId::NONE, 2, self.draws)
    }

    /// Whether a fault happens now.
    pub fn strikes(&mut self, fault: Fault, tick: u64) -> bool {
        self.rates.get(&fault).copied().is_some_and(|rate| self.strikes_once_in(rate, fault, tick))
    }

    /// Likewise at a moment at which it should happen more often than its rate says: one in so many chances.
    pub fn strikes_once_in(&mut self, chances: u32, fault: Fault, tick: u64) -> bool {
        if !self.rates.contains_key(&fault) || tick >= self.quiet_from || self.draw(chances) > 0 {
            return false;
        }
        *self.counts.entry(fault).or_default() += 1;
        self.last_fault.insert(fault, tick);
        for (&feature, &last) in &self.last_feature {
            if last + NEAR_TICKS >= tick {
                *self.met.entry((feature, fault)).or_default() += 1;
            }
        }
        true
    }

    /// Something rare happened so many times.
    pub fn meet(&mut self, meeting: Meeting, count: u64) {
        if count > 0 {
            *self.meetings.entry(meeting).or_default() += count;
        }
    }

    /// Something was done.
    pub fn note(&mut self, feature: Feature, tick: u64) {
        if self.last_feature.insert(feature, tick) == Some(tick) {
            return;
        }
        for (&fault, &last) in &self.last_fault {
            if last + NEAR_TICKS >= tick {
                *self.met.entry((feature, fault)).or_default() += 1;
            }
        }
    }

    /// Whether anything may go wrong in this run.
    pub fn is_quiet(&self) -> bool {
        self.rates.is_empty()
    }
}
