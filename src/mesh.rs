//! How parcels travel: one bounded queue from each shard to each other, and one back for the empty ones; and a third for
//! what goes from shard to shard for good.
//!
//! Owns the queues. Promises: parcels of one pair arrive in order, each once; none is dropped; what was read goes back to
//! its writer, so that a steady tick allocates nothing. A shard that does not read for [`PARCELS_MAX`] parcels ends the
//! process. Likewise posts, but for their bound: who posts looks for room first. Never wakes a thread and never takes a
//! lock: a meeting looks, for a bounded time.

use std::sync::Arc;

use crossbeam_queue::ArrayQueue;

use crate::ids::ShardId;
use crate::limits::{PARCELS_MAX, POSTS_MAX};
use crate::world::parcel::{InputParcel, OutcomeParcel};

/// What has a tick and travels.
trait Parcel: Default {
    fn tick(&self) -> u64;
}

impl Parcel for InputParcel {
    fn tick(&self) -> u64 {
        self.tick
    }
}

impl Parcel for OutcomeParcel {
    fn tick(&self) -> u64 {
        self.tick
    }
}

/// Full parcels one way, empty ones back.
#[derive(Debug)]
struct Pipe<T> {
    full: ArrayQueue<Box<T>>,
    empty: ArrayQueue<Box<T>>,
}

/// The writing end.
#[derive(Debug)]
struct Giver<T>(Arc<Pipe<T>>);

/// The reading end, and a parcel that came before its time.
#[derive(Debug)]
struct Taker<T> {
    pipe: Arc<Pipe<T>>,
    early: Option<Box<T>>,
}

fn pipe<T>() -> (Giver<T>, Taker<T>) {
    let pipe = Arc::new(Pipe { full: ArrayQueue::new(PARCELS_MAX), empty: ArrayQueue::new(PARCELS_MAX) });
    (Giver(pipe.clone()), Taker { pipe, early: None })
}

impl<T: Parcel> Giver<T> {
    fn empty(&self) -> Box<T> {
        self.0.empty.pop().unwrap_or_default()
    }

    fn give(&self, parcel: Box<T>, to: ShardId) {
        let kept = self.0.full.push(parcel);
        assert!(kept.is_ok(), "shard {} did not read {PARCELS_MAX} parcels: it hangs, so the process ends", to.0);
    }
}

impl<T: Parcel> Taker<T> {
    /// Takes all parcels up to a tick; says whether that tick's own, or a later one, was among what is here.
    fn take(&mut self, tick: u64, on_parcel: &mut impl FnMut(&mut T)) -> bool {
        loop {
            let Some(mut parcel) = self.early.take().or_else(|| self.pipe.full.pop()) else { return false };
            if parcel.tick() > tick {
                self.early = Some(parcel);
                return true;
            }
            on_parcel(&mut parcel);
            let last = parcel.tick() == tick;
            // The writer's pool is as large as the queue, so there is room; if not, the parcel is simply freed.
            drop(self.pipe.empty.push(parcel));
            if last {
                return true;
            }
        }
    }
}

/// One shard's ends of all queues.
#[derive(Debug)]
pub struct MeshEnd {
    /// Whose ends these are.
    pub shard: ShardId,
    peers: Vec<Peer>,
    /// Its own parcel; away while a tick is shown.
    own: Option<Box<OutcomeParcel>>,
    /// Room for the parcels of a tick.
    #[expect(clippy::vec_box, reason = "parcels travel boxed, this shard's own like all others")]
    outcomes: Vec<Box<OutcomeParcel>>,
}

#[derive(Debug)]
struct Peer {
    shard: ShardId,
    inputs_out: Giver<InputParcel>,
    inputs_in: Taker<InputParcel>,
    outcomes_out: Giver<OutcomeParcel>,
    outcomes_in: Taker<OutcomeParcel>,
}

/// Connects `shards` shards, each with each other.
pub fn connect(shards: usize) -> Vec<MeshEnd> {
    let mut ends: Vec<MeshEnd> = (0..shards)
        .map(|shard| MeshEnd {
            shard: ShardId(shard as u8),
            peers: Vec::new(),
            own: Some(Box::default()),
            outcomes: Vec::new(),
        })
        .collect();
    for a in 0..shards {
        for b in a + 1..shards {
            let (inputs_ab, inputs_from_a) = pipe();
            let (inputs_ba, inputs_from_b) = pipe();
            let (outcomes_ab, outcomes_from_a) = pipe();
            let (outcomes_ba, outcomes_from_b) = pipe();
            ends[a].peers.push(Peer {
                shard: ShardId(b as u8),
                inputs_out: inputs_ab,
                inputs_in: inputs_from_b,
                outcomes_out: outcomes_ab,
                outcomes_in: outcomes_from_b,
            });
            ends[b].peers.push(Peer {
                shard: ShardId(a as u8),
                inputs_out: inputs_ba,
                inputs_in: inputs_from_a,
                outcomes_out: outcomes_ba,
                outcomes_in: outcomes_from_a,
            });
        }
    }
    ends
}

impl MeshEnd {
    /// Number of shards, this one included.
    pub fn shards(&self) -> usize {
        self.peers.len() + 1
    }

    /// Gives each other shard its inputs of a tick, even none. `inputs` is by shard; this shard's own stay.
    pub fn give_inputs(&mut self, tick: u64, inputs: &mut [InputParcel]) {
        for peer in &self.peers {
            let mut parcel = peer.inputs_out.empty();
            parcel.reset(tick);
            std::mem::swap(&mut *parcel, &mut inputs[peer.shard.index()]);
            parcel.tick = tick;
            peer.inputs_out.give(parcel, peer.shard);
        }
    }

    /// Empty outcome parcels by shard, one of them this shard's own.
    pub fn outcomes(&mut self, tick: u64) -> Vec<Box<OutcomeParcel>> {
        let mut parcels = std::mem::take(&mut self.outcomes);
        parcels.extend(self.peers.iter().map(|peer| peer.outcomes_out.empty()));
        parcels.insert(self.shard.index(), self.own.take().expect("it came back with the last tick's"));
        parcels.iter_mut().for_each(|parcel| parcel.reset(self.shard, tick));
        parcels
    }

    /// Gives each other shard its outcome; shows this shard's own.
    pub fn give_outcomes(&mut self, mut parcels: Vec<Box<OutcomeParcel>>) -> &mut OutcomeParcel {
        let own = parcels.remove(self.shard.index());
        for (peer, parcel) in self.peers.iter().zip(parcels.drain(..)) {
            peer.outcomes_out.give(parcel, peer.shard);
        }
        self.outcomes = parcels;
        self.own.insert(own)
    }

    /// Meets the others' inputs of a tick, waiting while `may_wait`, which may let other threads run now and then. Gives
    /// back how many did not come in time.
    pub fn take_inputs(
        &mut self,
        tick: u64,
        may_wait: impl FnMut() -> bool,
        mut take: impl FnMut(ShardId, &mut InputParcel),
    ) -> u64 {
        meet(&mut self.peers, may_wait, |peer| peer.inputs_in.take(tick, &mut |parcel| take(peer.shard, parcel)))
    }

    /// Meets the others' outcomes of a tick, likewise.
    pub fn take_outcomes(
        &mut self,
        tick: u64,
        may_wait: impl FnMut() -> bool,
        mut take: impl FnMut(&mut OutcomeParcel),
    ) -> u64 {
        meet(&mut self.peers, may_wait, |peer| peer.outcomes_in.take(tick, &mut take))
    }
}

fn meet(peers: &mut [Peer], mut may_wait: impl FnMut() -> bool, mut look: impl FnMut(&mut Peer) -> bool) -> u64 {
    let mut missing = 0;
    for peer in peers {
        while !look(peer) {
            if !may_wait() {
                missing += 1;
                break;
            }
            std::hint::spin_loop();
        }
    }
    missing
}

/// What waits with the tick from which it may be taken.
type Dated<T> = (u64, T);

/// One shard's ends of the queues in which things go to other shards for good.
#[derive(Debug)]
pub struct Carrier<T> {
    /// By shard; none to itself.
    ways: Vec<Option<Way<T>>>,
}

#[derive(Debug)]
struct Way<T> {
    there: Arc<ArrayQueue<Dated<T>>>,
    back: Arc<ArrayQueue<Dated<T>>>,
    /// What came before its time.
    early: Option<Dated<T>>,
}

/// The carriers of `shards` shards, each with a way to each other.
pub fn carriers<T>(shards: usize) -> Vec<Carrier<T>> {
    let mut carriers: Vec<Carrier<T>> =
        (0..shards).map(|_| Carrier { ways: (0..shards).map(|_| None).collect() }).collect();
    for a in 0..shards {
        for b in a + 1..shards {
            let (there, back) = (Arc::new(ArrayQueue::new(POSTS_MAX)), Arc::new(ArrayQueue::new(POSTS_MAX)));
            carriers[a].ways[b] = Some(Way { there: there.clone(), back: back.clone(), early: None });
            carriers[b].ways[a] = Some(Way { there: back, back: there, early: None });
        }
    }
    carriers
}

impl<T> Carrier<T> {
    fn way(&self, to: ShardId) -> &Way<T> {
        self.ways[to.index()].as_ref().expect("nobody posts to itself")
    }

    /// Posts more that would be taken to a shard.
    pub fn room(&self, to: ShardId) -> usize {
        let there = &self.way(to).there;
        there.capacity() - there.len()
    }

    /// Posts something to a shard that may take it from a tick on. There must be room.
    pub fn post(&self, to: ShardId, from_tick: u64, post: T) {
        assert!(self.way(to).there.push((from_tick, post)).is_ok(), "who posts looked for room");
    }

    /// Takes all that may be taken in a tick, in the order in which each shard posted it.
    pub fn take(&mut self, tick: u64, mut take: impl FnMut(T)) {
        for Way { back, early, .. } in self.ways.iter_mut().flatten() {
            while let Some((from_tick, post)) = early.take().or_else(|| back.pop()) {
                if from_tick > tick {
                    *early = Some((from_tick, post));
                    break;
                }
                take(post);
            }
        }
    }

    /// Posts that wait for a shard, or for their time there.
    pub fn under_way(&self) -> impl Iterator<Item = usize> {
        self.ways.iter().flatten().map(|way| way.back.len() + usize::from(way.early.is_some()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{EntityId, SessionRef};
    use crate::world::movement::Command;

    fn input(shard: u8, tick: u64) -> InputParcel {
        let mut parcel = InputParcel::default();
        parcel.push_commands(
            EntityId(u64::from(shard)),
            SessionRef::default(),
            tick as u32,
            [Command::default()].into_iter(),
        );
        parcel
    }

    #[test]
    fn every_parcel_arrives_once_in_order_on_real_threads() {
        const TICKS: u64 = 2_000;
        let threads: Vec<_> = connect(3)
            .into_iter()
            .map(|mut end| {
                std::thread::spawn(move || {
                    let mut got = [Vec::new(), Vec::new(), Vec::new()];
                    for tick in 1..=TICKS {
                        let mut inputs: Vec<_> = (0..3).map(|_| input(end.shard.0, tick)).collect();
                        end.give_inputs(tick, &mut inputs);
                        let missing = end.take_inputs(
                            tick,
                            || true,
                            |_, parcel| {
                                got[parcel.inputs[0].entity.0 as usize].push(parcel.tick);
                            },
                        );
                        assert_eq!(missing, 0);
                    }
                    (end.shard.index(), got)
                })
            })
            .collect();
        for thread in threads {
            let (shard, got) = thread.join().expect("no panic");
            for (from, ticks) in got.iter().enumerate().filter(|&(from, _)| from != shard) {
                assert_eq!(*ticks, (1..=TICKS).collect::<Vec<_>>(), "from {from}");
            }
        }
    }

    #[test]
    fn what_comes_late_is_taken_later_and_what_comes_early_waits() {
        let mut ends = connect(2);
        let mut b = ends.pop().expect("two");
        let mut a = ends.pop().expect("two");
        let mut ticks = Vec::new();
        assert_eq!(b.take_inputs(1, || false, |_, parcel| ticks.push(parcel.tick)), 1, "not there yet");
        a.give_inputs(1, &mut [InputParcel::default(), InputParcel::default()]);
        a.give_inputs(2, &mut [InputParcel::default(), InputParcel::default()]);
        a.give_inputs(3, &mut [InputParcel::default(), InputParcel::default()]);
        assert_eq!(b.take_inputs(2, || false, |_, parcel| ticks.push(parcel.tick)), 0);
        assert_eq!(ticks, [1, 2], "the third belongs to the next tick");
        assert_eq!(b.take_inputs(3, || false, |_, parcel| ticks.push(parcel.tick)), 0);
        assert_eq!(ticks, [1, 2, 3]);
    }

    #[test]
    fn posts_come_in_order_from_their_tick_on_and_the_room_is_bounded() {
        let mut ends = carriers::<u32>(3);
        let mut c = ends.pop().expect("three");
        let (a, b) = (&ends[0], &ends[1]);
        let to = ShardId(2);
        a.post(to, 1, 10);
        a.post(to, 3, 11);
        a.post(to, 2, 12);
        b.post(to, 2, 20);
        let mut taken = |tick: u64| {
            let mut posts = Vec::new();
            c.take(tick, |post| posts.push(post));
            (posts, c.under_way().sum::<usize>())
        };
        assert_eq!(taken(1), (vec![10], 3));
        assert_eq!(taken(2), (vec![20], 2), "nothing overtakes what waits for its time");
        assert_eq!(taken(3), (vec![11, 12], 0));
        (0..POSTS_MAX).for_each(|_| a.post(to, 4, 0));
        assert_eq!((a.room(to), b.room(to), a.room(ShardId(1))), (0, POSTS_MAX, POSTS_MAX));
    }

    #[test]
    #[should_panic(expected = "it hangs")]
    fn a_shard_that_never_reads_ends_the_process() {
        let mut ends = connect(2);
        for tick in 0..=PARCELS_MAX as u64 {
            ends[0].give_inputs(tick, &mut [InputParcel::default(), InputParcel::default()]);
        }
    }
}
