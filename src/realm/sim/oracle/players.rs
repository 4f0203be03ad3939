//! What must hold of each player over many ticks: how fast it goes, whom it sees, what is kept of it, what it leaves.
//!
//! Owns what earlier ticks showed of each player. Promises: it judges by the worlds, the store and what bots were shown,
//! never by what a session or a shard says of itself.

use std::collections::HashMap;

use super::Oracle;
use crate::core::Core;
use crate::keeper::KeeperCommand;
use crate::limits::{CREDIT_TICKS_MAX, ROW_TICKS_MAX};
use crate::sim::clients::Clients;
use crate::sim::node::Node;
use crate::wire::fast_hash::FastHash;
use crate::wire::ids::{EntityId, SessionRef, ShardId};
use crate::wire::units::SPEED_MAX;
use crate::wire::units::{FINE_SHIFT, GRID_PER_M};
use crate::world::entity::Player;
use crate::world::frame::distance;

/// Ticks between two looks at who sees whom.
const SIGHT_TICKS: u64 = 30;
/// Everybody nearer than this must be shown, wire grid steps.
const SIGHT_REACH: i32 = 60 * GRID_PER_M;
/// Ticks within which, and between two updates.
const SIGHT_LATE_TICKS: u64 = 180;
/// Ticks that a row is on its way to the store at the most, in a run without stalls.
const ROW_WAY_TICKS: u64 = 20;
/// Fine steps a tick that a body may go beyond its speed, because directions are rounded.
const ROUNDING: i64 = 4;

/// The way of one player.
struct Path {
    session: SessionRef,
    shard: ShardId,
    tick: u64,
    at: (i32, i32),
    /// Fine steps that it may still go at once: what its time credit allows at the most.
    reserve: i64,
}

/// What earlier ticks showed.
#[derive(Default)]
pub(super) struct Watched {
    paths: HashMap<EntityId, Path, FastHash>,
    /// Of each player near each session of a bot that looks: when it was shown last, or came near.
    near: HashMap<(SessionRef, EntityId), u64>,
}

impl Watched {
    /// The process ended: who comes back stands somewhere else.
    pub(super) fn forget(&mut self) {
        *self = Watched::default();
    }
}

fn players(node: &Node) -> impl Iterator<Item = (&Core, &Player)> {
    node.cores.iter().flat_map(|core| core.world.players().map(move |player| (core, player)))
}

impl Oracle {
    /// In any time a player goes no farther than in that time and the longest that it can save, whatever its client sends.
    pub(super) fn check_speed(&mut self, node: &Node, tick: u64) {
        let speed = i64::from(SPEED_MAX) + ROUNDING;
        let most = i64::from(CREDIT_TICKS_MAX) * speed;
        let mut worst = None;
        for (core, player) in players(node) {
            let (session, shard, at) = (player.session, core.world.shard, (player.body.motion.x, player.body.motion.y));
            let fresh = Path { session, shard, tick, at, reserve: most };
            let path = self.watched.paths.entry(player.body.id).or_insert(fresh);
            if path.session != session || path.shard != shard {
                // A shard that stood still counts the time of who comes to it anew.
                *path = Path { session, shard, tick, at, reserve: most };
                continue;
            }
            let saved = (path.reserve + (tick - path.tick) as i64 * speed).min(most);
            let gone = distance(at, path.at).isqrt();
            (path.tick, path.at, path.reserve) = (tick, at, saved - gone);
            if path.reserve < 0 {
                worst = Some((player.body.id, -path.reserve));
                path.reserve = most;
            }
        }
        self.demand_at(tick, worst.is_none(), || format!("faster than time by (who, fine steps): {worst:?}"));
    }

    /// In a run in which nothing is late every bot that looks was shown everybody near.
    pub fn check_sight(&mut self, clients: &Clients, node: &Node, tick: u64) {
        if !tick.is_multiple_of(SIGHT_TICKS) {
            return;
        }
        let places: HashMap<EntityId, (i32, i32), FastHash> =
            players(node).map(|(_, player)| (player.body.id, player.body.grid())).collect();
        let mut near = HashMap::new();
        let mut unseen = Vec::new();
        for client in clients.all.iter().filter(|client| client.looks && client.bot.plays()) {
            let (Some(session), Some(own)) = (client.session, client.bot.entity()) else { continue };
            let Some(&here) = places.get(&own) else { continue };
            let reach = i64::from(SIGHT_REACH).pow(2);
            for (&id, _) in places.iter().filter(|&(&id, &place)| id != own && distance(here, place) < reach) {
                let before = self.watched.near.get(&(session, id)).copied().unwrap_or(tick);
                let age = client.bot.session.view().entity(id).map(|seen| (tick as u32).wrapping_sub(seen.tick) as i32);
                let shown = age.map_or(before, |age| tick.saturating_sub(age.max(0) as u64).max(before));
                near.insert((session, id), shown);
                if shown + SIGHT_LATE_TICKS < tick {
                    unseen.push((own, id, tick - shown));
                }
            }
        }
        self.watched.near = near;
        unseen.sort_unstable_by_key(|&(own, id, _)| (own, id));
        self.demand_at(tick, unseen.is_empty(), || {
            format!("{} times somebody near was not shown; to whom, who, ticks: {:?}", unseen.len(), unseen[0])
        });
    }

    /// A row says where its character stood.
    pub fn check_rows(&mut self, node: &Node, commands: &[KeeperCommand], tick: u64) {
        let fresh = commands.iter().filter_map(|command| match command {
            KeeperCommand::Row(row) if row.tick == tick => Some(row),
            _ => None,
        });
        for row in fresh {
            let found = players(node).find(|(_, player)| player.body.id == row.entity());
            let motion = found.map(|(_, player)| player.body.motion);
            let holds = motion.is_none_or(|m| (m.x, m.y, m.z, m.yaw) == (row.x, row.y, row.z, row.yaw));
            self.demand_at(tick, holds, || format!("{row:?} was written of {motion:?}"));
        }
    }

    /// At the quiet end: as many sessions, claims and characters as there are clients, and each row as old as it may be.
    pub(super) fn check_left(&mut self, clients: &Clients, node: &Node, tick: u64) {
        let connected = clients.all.iter().filter(|client| client.session.is_some()).count();
        let sessions: usize = node.cores.iter().map(Core::sessions).sum();
        let claims = node.desk.claims().live_count();
        let characters = players(node).count();
        self.demand_at(tick, [sessions, claims, characters] == [connected; 3], || {
            format!("{connected} clients are there, with {sessions} sessions, {claims} claims, {characters} characters")
        });
        for (_, player) in players(node) {
            let row = node.desk.store().row(player.client_id).ok().flatten();
            let motion = player.body.motion;
            let holds = row.is_some_and(|row| {
                let is_true = (row.x, row.y, row.z, row.yaw) == (motion.x, motion.y, motion.z, motion.yaw);
                is_true || row.tick + ROW_TICKS_MAX + ROW_WAY_TICKS >= tick
            });
            self.demand_at(tick, holds, || {
                let place = (motion.x >> FINE_SHIFT, motion.y >> FINE_SHIFT);
                format!("client {} stands at {place:?}, and its newest row is {row:?}", player.client_id)
            });
        }
    }
}
