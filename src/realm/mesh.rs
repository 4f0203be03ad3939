//! How parcels travel: one bounded queue from each shard to each other, and one back for the empty ones; and a third for
//! what goes from shard to shard for good.
//!
//! Owns the queues. Promises: parcels of one pair arrive in order, each once; what was read goes back to its writer, so
//! that a steady tick allocates nothing. For a shard that does not read the newest parcel is kept back, and those after it
//! are merged into it until there is room: it stands still as long as it likes, and the others go on. Likewise posts, but
//! for their bound: who posts looks for room first. Never wakes a thread and never takes a lock: a meeting looks, for a
//! bounded time, and only once at a shard that was silent for [`SILENT_TICKS`].

use std::sync::Arc;

use crossbeam_queue::ArrayQueue;

use crate::limits::{PARCELS_MAX, POSTS_MAX, SILENT_TICKS};
use crate::wire::ids::ShardId;
use crate::world::parcel::{InputParcel, Merged, OutcomeParcel};

/// What has a tick and travels.
trait Parcel: Default {
    fn tick(&self) -> u64;
    /// Takes over a newer one; what found no room stays in it.
    fn absorb(&mut self, newer: &mut Self);
}

impl Parcel for InputParcel {
    fn tick(&self) -> u64 {
        self.tick
    }

    fn absorb(&mut self, newer: &mut InputParcel) {
        self.absorb(newer);
    }
}

impl Parcel for OutcomeParcel {
    fn tick(&self) -> u64 {
        self.tick
    }

    fn absorb(&mut self, newer: &mut OutcomeParcel) {
        self.absorb(newer);
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
struct Giver<T> {
    pipe: Arc<Pipe<T>>,
    /// What found no room; newer ones are merged into it.
    kept: Option<Box<T>>,
}

/// The reading end.
#[derive(Debug)]
struct Taker<T> {
    pipe: Arc<Pipe<T>>,
    /// A parcel that came before its time.
    early: Option<Box<T>>,
    /// Meetings in a row to which no parcel came, not even a late one.
    missed: usize,
}

fn pipe<T>() -> (Giver<T>, Taker<T>) {
    let pipe = Arc::new(Pipe { full: ArrayQueue::new(PARCELS_MAX), empty: ArrayQueue::new(PARCELS_MAX) });
    (Giver { pipe: pipe.clone(), kept: None }, Taker { pipe, early: None, missed: 0 })
}

impl<T: Parcel> Giver<T> {
    fn empty(&self) -> Box<T> {
        self.pipe.empty.pop().unwrap_or_default()
    }

    /// Gives a parcel, or merges it into the one that waits for room: then `on_rest` gets what is left of it, and it is
    /// true.
    fn give(&mut self, mut parcel: Box<T>, on_rest: impl FnOnce(&mut T)) -> bool {
        let kept = self.kept.take().and_then(|kept| self.pipe.full.push(kept).err());
        let is_merged = kept.is_some();
        self.kept = match kept {
            Some(mut kept) => {
                kept.absorb(&mut parcel);
                on_rest(&mut parcel);
                // Where the pool is full it is simply freed.
                drop(self.pipe.empty.push(parcel));
                Some(kept)
            }
            None => self.pipe.full.push(parcel).err(),
        };
        is_merged
    }
}

impl<T: Parcel> Taker<T> {
    /// Takes all parcels up to a tick, waiting while `may_wait` for that tick's own or a later one; says whether it came. A
    /// shard that was silent for long is not waited for.
    fn meet(&mut self, tick: u64, may_wait: &mut impl FnMut() -> bool, mut on_parcel: impl FnMut(&mut T)) -> bool {
        let (patient, mut spoke) = (self.missed < SILENT_TICKS, false);
        let mut on_parcel = |parcel: &mut T| {
            spoke = true;
            on_parcel(parcel);
        };
        let came = loop {
            if self.take(tick, &mut on_parcel) {
                break true;
            }
            if !patient || !may_wait() {
                break false;
            }
            std::hint::spin_loop();
        };
        // One that is only late speaks, and is waited for again.
        self.missed = if came || spoke { 0 } else { self.missed + 1 };
        came
    }

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
    merged: Merged,
    /// Inputs that newer ones took the place of, because their owner's shard stood still.
    pub inputs_merged: u64,
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
            merged: Merged::default(),
            inputs_merged: 0,
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
        self.merged.inputs = 0;
        for peer in &mut self.peers {
            let mut parcel = peer.inputs_out.empty();
            parcel.reset(tick);
            std::mem::swap(&mut *parcel, &mut inputs[peer.shard.index()]);
            parcel.tick = tick;
            let count = &mut self.inputs_merged;
            let is_merged = peer.inputs_out.give(parcel, |rest| *count += rest.inputs.len() as u64);
            self.merged.inputs |= u32::from(is_merged) << peer.shard.0;
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

    /// Gives each other shard its outcome; shows this shard's own, with the effects that found no room in a merged parcel:
    /// they do not find their targets here, and are refused by name.
    pub fn give_outcomes(&mut self, mut parcels: Vec<Box<OutcomeParcel>>) -> &mut OutcomeParcel {
        self.merged.outcomes = 0;
        let mut own = parcels.remove(self.shard.index());
        for (peer, parcel) in self.peers.iter_mut().zip(parcels.drain(..)) {
            let is_merged = peer.outcomes_out.give(parcel, |rest| own.effects.append(&mut rest.effects));
            self.merged.outcomes |= u32::from(is_merged) << peer.shard.0;
        }
        self.outcomes = parcels;
        self.own.insert(own)
    }

    /// For whom the parcels of this tick were merged: the flight record has it.
    pub fn merged(&self) -> Merged {
        self.merged
    }

    /// Meets the others' inputs of a tick, waiting while `may_wait`, which may let other threads run now and then. Gives
    /// back how many did not come in time.
    pub fn take_inputs(
        &mut self,
        tick: u64,
        mut may_wait: impl FnMut() -> bool,
        mut take: impl FnMut(ShardId, &mut InputParcel),
    ) -> u64 {
        let meet = |peer: &mut Peer| peer.inputs_in.meet(tick, &mut may_wait, |parcel| take(peer.shard, parcel));
        self.peers.iter_mut().map(meet).map(|came| u64::from(!came)).sum()
    }

    /// Meets the others' outcomes of a tick, likewise.
    pub fn take_outcomes(
        &mut self,
        tick: u64,
        mut may_wait: impl FnMut() -> bool,
        mut take: impl FnMut(&mut OutcomeParcel),
    ) -> u64 {
        let meet = |peer: &mut Peer| peer.outcomes_in.meet(tick, &mut may_wait, &mut take);
        self.peers.iter_mut().map(meet).map(|came| u64::from(!came)).sum()
    }
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
    use crate::limits::{MERGED_EFFECTS_MAX, MERGED_EVENTS_MAX};
    use crate::wire::goods::Refusal;
    use crate::wire::ids::{EntityId, SessionRef};
    use crate::wire::messages::Stream;
    use crate::world::effect::{Effect, EffectKind, PrivateEvent, Target, Word};
    use crate::world::frame::Frame;
    use crate::world::movement::Command;
    use crate::world::{Decree, DecreeKind};

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

    /// A session's word that anybody can tell apart.
    fn word(slot: u16, number: u64) -> PrivateEvent {
        let session = SessionRef { lane: 1, slot, generation: 1 };
        let word = Word::Answer { stream: Stream::World, number, refusal: Refusal::None };
        PrivateEvent { session, number: number as u32, word }
    }

    #[test]
    fn a_shard_that_does_not_read_gets_all_of_it_as_one_parcel_when_it_reads_again() {
        const TICKS: u64 = 1_800;
        let mut ends = connect(2);
        let mut b = ends.pop().expect("two");
        let mut a = ends.pop().expect("two");
        for tick in 1..=TICKS {
            a.give_inputs(tick, &mut [InputParcel::default(), input(1, tick)]);
            let mut outs = a.outcomes(tick);
            outs[1].private.push(word(0, tick));
            outs[1].frame = Some(Arc::new(Frame::of_seen(ShardId(0), tick, &[])));
            outs[1].decrees.extend(tick.is_multiple_of(600).then_some(Decree { tick, kind: DecreeKind::Stop }));
            assert!(a.give_outcomes(outs).effects.is_empty());
            let is_merged = tick > PARCELS_MAX as u64 + 1;
            let bits = if is_merged { 2 } else { 0 };
            assert_eq!(a.merged(), Merged { inputs: bits, outcomes: bits }, "tick {tick}");
        }
        assert_eq!(a.inputs_merged, TICKS - PARCELS_MAX as u64 - 1);
        let (mut words, mut frames, mut decrees) = (Vec::new(), Vec::new(), 0);
        for tick in [TICKS, TICKS + 1] {
            b.take_outcomes(
                tick,
                || false,
                |parcel| {
                    words.append(&mut parcel.private);
                    frames.extend(parcel.frame.take().map(|frame| frame.tick));
                    decrees += parcel.decrees.len();
                },
            );
            let outs = a.outcomes(tick + 1);
            a.give_outcomes(outs);
        }
        assert_eq!(words, (1..=TICKS).map(|tick| word(0, tick)).collect::<Vec<_>>(), "each word once, in order");
        assert_eq!((frames.len(), frames.last(), decrees), (PARCELS_MAX + 1, Some(&TICKS), 3));
        assert_eq!(a.merged().outcomes, 0, "it reads again");
    }

    #[test]
    fn what_finds_no_room_in_a_merged_parcel_is_refused_by_name_or_ends_its_session() {
        let mut ends = connect(2);
        let a = &mut ends[0];
        let effect = |sequence: u32, kind| Effect {
            target: Target::Entity(EntityId::character(2)),
            source: EntityId::character(1),
            sequence,
            kind,
        };
        let mut tick = 0;
        let mut give = |count: usize, kind: EffectKind, slot: u16| {
            tick += 1;
            let mut outs = a.outcomes(tick);
            outs[1].effects.extend((0..count as u32).map(|sequence| effect(sequence, kind)));
            outs[1].private.extend((0..count as u64).map(|number| word(slot, number)));
            a.give_outcomes(outs).effects.len()
        };
        let wave = EffectKind::Wave { x: 0, y: 0, request: 1 };
        (0..=PARCELS_MAX).for_each(|_| assert_eq!(give(0, wave, 0), 0));
        assert_eq!(give(MERGED_EFFECTS_MAX - 1, wave, 1), 0);
        assert_eq!(give(3, wave, 2), 2, "they come back to their sender");
        assert_eq!(give(5, EffectKind::Gone, 3), 0, "somebody waits for these");
        let mut parcels = Vec::new();
        (0..2).for_each(|_| {
            ends[1].take_outcomes(1_000, || false, |parcel| parcels.push(parcel.clone()));
            let outs = ends[0].outcomes(101);
            ends[0].give_outcomes(outs);
        });
        let merged = &parcels[PARCELS_MAX];
        assert_eq!((merged.effects.len(), merged.private.len()), (MERGED_EFFECTS_MAX + 5, MERGED_EVENTS_MAX));
        let behind: Vec<u16> = merged.behind.iter().map(|session| session.slot).collect();
        assert_eq!(behind, [2, 3], "who missed news, and nobody else");
    }

    #[test]
    fn a_shard_that_is_only_late_is_waited_for_again() {
        let mut ends = connect(2);
        let mut b = ends.pop().expect("two");
        let mut a = ends.pop().expect("two");
        let inputs = || [InputParcel::default(), InputParcel::default()];
        let silent = SILENT_TICKS as u64;
        (1..=silent).for_each(|tick| assert_eq!(b.take_inputs(tick, || false, |_, _| ()), 1));
        // From here on it is always one look too late.
        a.give_inputs(silent, &mut inputs());
        let mut looks = 0;
        assert_eq!(
            b.take_inputs(
                silent + 1,
                || {
                    looks += 1;
                    false
                },
                |_, _| ()
            ),
            1
        );
        a.give_inputs(silent + 1, &mut inputs());
        assert_eq!(
            b.take_inputs(
                silent + 2,
                || {
                    looks += 1;
                    looks < 100
                },
                |_, _| ()
            ),
            1
        );
        assert_eq!(looks, 100, "it is asked for patience again");
    }

    #[test]
    fn nobody_waits_for_a_shard_that_was_silent_for_long() {
        let mut ends = connect(2);
        let looks = |end: &mut MeshEnd, tick: u64| {
            let mut looks = 0;
            let may_wait = || {
                looks += 1;
                looks < 5
            };
            end.take_inputs(tick, may_wait, |_, _| ());
            looks
        };
        let waited: Vec<i32> = (1..=SILENT_TICKS as u64 + 3).map(|tick| looks(&mut ends[1], tick)).collect();
        assert!(waited[..SILENT_TICKS].iter().all(|&looks| looks == 5), "{waited:?}");
        assert_eq!(waited[SILENT_TICKS..], [0, 0, 0]);
        ends[0].give_inputs(20, &mut [InputParcel::default(), InputParcel::default()]);
        assert_eq!((looks(&mut ends[1], 20), looks(&mut ends[1], 21)), (0, 5), "it spoke, so it is waited for again");
    }
}
