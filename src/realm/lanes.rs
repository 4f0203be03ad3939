//! Lanes on their way from one shard to another.
//!
//! Owns what travels: a lane's sessions, by value. Promises: a lane is with one shard, or on one way between two; it is
//! given away when nothing more can come for it here, so that nothing is overtaken: every shard knows the decree and said
//! all that it said before. What the keeper did not hear of it yet goes along. What comes for a lane that is not here yet
//! waits for it, within a bound beyond which its sessions end. Never copies a session, and never waits.

use super::core::{Core, Lane, Stage};
use crate::keeper::{KeeperAnswer, KeeperCommand};
use crate::limits::{LANE_WAITING_MAX, LANES};
use crate::mesh::Carrier;
use crate::planted::{Bug, planted};
use crate::wire::generated::tables::Close;
use crate::wire::ids::{SessionRef, ShardId};
use crate::world::effect::{Joining, PrivateEvent};

/// A lane's sessions, taken out of their shard.
pub struct LaneSessions {
    number: u8,
    lane: Lane,
    joins: Vec<Joining>,
    /// Claims, and their ends, that the keeper did not hear yet.
    claims: Vec<KeeperCommand>,
}

/// What goes from shard to shard in the order it was posted; `L` is what a host keeps of a lane beside its sessions.
pub enum Post<L> {
    /// An answer of the keeper for a session that the other shard serves.
    Answer(KeeperAnswer),
    /// A lane that the other shard serves from now on.
    Lane(Box<(LaneSessions, L)>),
}

/// What a shard says of lanes with each outcome.
#[derive(Clone, Copy, Debug)]
pub(super) struct LaneWord {
    /// Newest decree about lanes that it obeys when its tick comes.
    pub known: u64,
    /// The lanes that it serves, as bits.
    pub here: u32,
}

/// What came for a lane that is on its way here.
pub(super) enum Waiting {
    /// From an entity.
    Word(PrivateEvent),
    /// From the keeper.
    Answer(KeeperAnswer),
}

impl Waiting {
    fn session(&self) -> Option<SessionRef> {
        match self {
            Waiting::Word(event) => Some(event.session),
            Waiting::Answer(answer) => answer.session(),
        }
    }
}

impl Lane {
    /// Adds its sessions to those that are active.
    fn activate(&mut self, active: &mut Vec<SessionRef>) {
        for entry in self.entries.iter_mut().flatten() {
            entry.place = active.len() as u32;
            active.push(entry.session.reference);
        }
    }

    /// Those with requests that their entity did not take yet.
    fn asking(&self) -> impl Iterator<Item = SessionRef> {
        self.entries.iter().flatten().filter(|entry| entry.session.is_asking()).map(|entry| entry.session.reference)
    }

    /// The parcels of this shard are not those of the next one.
    fn leave_parcels(&mut self) {
        self.entries.iter_mut().flatten().for_each(|entry| entry.session.leave_parcels());
    }

    /// Those that say farewell.
    fn closing(&self) -> impl Iterator<Item = SessionRef> {
        let closing = self.entries.iter().flatten().filter(|entry| matches!(entry.stage, Stage::Closing { .. }));
        closing.map(|entry| entry.session.reference)
    }
}

impl LaneSessions {
    /// Which lane.
    pub fn number(&self) -> u8 {
        self.number
    }
}

impl Core {
    /// The lanes that are here, as bits.
    pub fn lanes_here(&self) -> u32 {
        (0..LANES as u8).filter(|&lane| self.serves(lane)).map(|lane| 1 << lane).sum()
    }

    /// Whether every lane is where the newest decree wants it, as far as all shards said: the next decree about lanes
    /// finds none on its way.
    pub fn lanes_are_settled(&self) -> bool {
        let lanes = self.world.lanes_at(u64::MAX);
        (0u8..).zip(&self.lane_words).all(|(shard, word)| word.here == lanes.of(ShardId(shard)))
    }

    /// What waits for lanes on their way here.
    pub fn waiting_for_lanes(&self) -> usize {
        self.waiting.len()
    }

    /// After a tick: the lanes that must go, each with its next shard.
    pub fn lanes_due(&self) -> Vec<(u8, ShardId)> {
        let lanes = self.world.lanes_at(self.world.tick + 1);
        let strays = self.lanes_here() & !lanes.of(self.world.shard);
        if strays == 0 || !self.nothing_more_comes() {
            return Vec::new();
        }
        let strays = (0..LANES as u8).filter(|lane| strays >> lane & 1 == 1);
        strays.map(|lane| (lane, lanes.owner(lane))).collect()
    }

    /// Whether all that shards said before they obeyed the newest decree about lanes is here.
    fn nothing_more_comes(&self) -> bool {
        let decreed = self.lanes_known;
        let mut shards = self.lane_words.iter().zip(&self.taken);
        shards.all(|(word, taken)| word.known >= decreed && taken.outcomes + 1 >= decreed) || planted(Bug::LaneTooEarly)
    }

    /// Posts the answers of the keeper for sessions that other shards serve; what finds no room goes later.
    pub fn give_posts<L>(&mut self, tick: u64, carrier: &Carrier<Post<L>>) {
        let own = self.world.shard;
        for (to, answers) in (0u8..).map(ShardId).zip(&mut self.posts).filter(|&(to, _)| to != own) {
            let given = answers.len().min(carrier.room(to));
            answers.drain(..given).for_each(|answer| carrier.post(to, tick, Post::Answer(answer)));
        }
    }

    /// Takes a lane out. From here on nobody of it is known here.
    pub fn give_lane(&mut self, number: u8) -> LaneSessions {
        let is_of_lane = |session: &SessionRef| session.lane == number;
        for place in (0..self.active.len()).rev() {
            if is_of_lane(&self.active[place]) {
                self.deactivate(place);
            }
        }
        let mut lane = self.lanes[usize::from(number)].take().expect("only a lane that is here is given");
        lane.leave_parcels();
        self.asking.retain(|session| !is_of_lane(session));
        self.closing.retain(|session| !is_of_lane(session));
        let joins = self.joins.extract_if(.., |joining| is_of_lane(&joining.session)).collect();
        // A last row follows the other rows of its shard; the rest would be overtaken by what the next shard says.
        let claims = self.keeper.extract_if(.., |command| match command {
            KeeperCommand::Claim { session, .. } | KeeperCommand::Release { session, row: None, .. } => {
                is_of_lane(session)
            }
            _ => false,
        });
        LaneSessions { number, lane, joins, claims: claims.collect() }
    }

    /// Takes in a lane, and what waits for it in the order in which it came.
    pub fn take_lane(&mut self, sessions: LaneSessions) {
        let LaneSessions { number, mut lane, joins, claims } = sessions;
        lane.activate(&mut self.active);
        if !planted(Bug::ActionsLeftBehind) {
            self.asking.extend(lane.asking());
        }
        self.closing.extend(lane.closing());
        self.keeper.extend(claims);
        if !planted(Bug::JoinLeftBehind) {
            self.joins.extend(joins);
        }
        let place = &mut self.lanes[usize::from(number)];
        assert!(place.is_none(), "lane {number} is there once");
        *place = Some(lane);
        for waiting in std::mem::take(&mut self.waiting) {
            match waiting {
                Waiting::Word(event) => self.hear_private(event),
                Waiting::Answer(answer) => self.hear_answer(answer),
            }
        }
        for session in std::mem::take(&mut self.behind) {
            self.fall_behind(session);
        }
    }

    pub(super) fn wait_for_lane(&mut self, waiting: Waiting) {
        if planted(Bug::WordOnTheWay) {
            return;
        }
        if self.waiting.len() < LANE_WAITING_MAX {
            self.waiting.push(waiting);
        } else {
            self.behind.extend(waiting.session());
        }
    }

    /// A session missed news of its entity: it ends, here or where its lane is on its way to.
    pub(super) fn fall_behind(&mut self, session: SessionRef) {
        if !self.serves(session.lane) {
            self.behind.insert(session);
        } else {
            let before = self.closing.len();
            self.close(session, Close::Slow);
            self.sessions_behind += (self.closing.len() - before) as u64;
        }
    }
}
