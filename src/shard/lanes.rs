//! The lanes of a shard's thread: what it posts to others and takes from them.
//!
//! Owns nothing. Promises: a lane leaves with all that came for it until its tick began; what comes later waits in its
//! socket.

use super::Shard;
use crate::realm::lanes::Post;
use crate::realm::links::LaneLinks;
use crate::wire::generated::tables::Close;

impl Shard {
    /// Takes what others posted: answers for its sessions, and lanes.
    pub(super) fn take_posts(&mut self, tick: u64) {
        let Shard { carrier, core, links, packets, stop_tick, .. } = self;
        carrier.take(tick, |post: Post<LaneLinks>| match post {
            Post::Answer(answer) => core.hear_answer(answer),
            Post::Lane(lane) => {
                let (sessions, of_lane) = *lane;
                let lane = sessions.number();
                links.take_lane(lane, of_lane);
                packets.serve(lane);
                core.take_lane(sessions);
                if stop_tick.is_some() {
                    core.close_all(Close::Drain);
                }
            }
        });
    }

    /// Gives away the lanes that must go. What came for them since this tick began is heard before; what comes later waits
    /// in their sockets.
    pub(super) fn give_lanes(&mut self, tick: u64) {
        let due = self.core.lanes_due();
        if due.is_empty() {
            return;
        }
        due.iter().for_each(|&(lane, _)| self.packets.leave(lane));
        self.receive(tick);
        for (lane, to) in due {
            if self.packets.has_left(lane) && self.carrier.room(to) > 0 {
                let travels = (self.core.give_lane(lane), self.links.give_lane(lane));
                self.carrier.post(to, tick + 1, Post::Lane(Box::new(travels)));
            } else {
                self.packets.serve(lane);
            }
        }
    }
}
