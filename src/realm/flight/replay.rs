//! Replay: the worlds of all shards once more, from their flight records, each hash compared.
//!
//! Owns the worlds that it makes. Promises: a shard's tick takes the parcels that it took when it was recorded, a late one
//! as late, and those that were merged as one; the first difference ends the replay at that tick. Never does I/O: whoever calls loads the segments.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::Serialize;

use super::record::{
    Damage, Done, Entries, FORMAT, Fault, Given, Head, Kind, Outside, Parcel, Snapshot, Taken, TickEntry,
};
use crate::wire::ids::{EntityId, ShardId};
use crate::wire::units::FINE_PER_M;
use crate::world::cut::CutMap;
use crate::world::effect::{Effect, Target};
use crate::world::frame::{Frame, Frames};
use crate::world::land::Land;
use crate::world::parcel::{Input, InputKind, InputParcel, OutcomeParcel};
use crate::world::state::Glimpse;
use crate::world::{World, WorldConfig};

/// What is known of a segment without replaying it.
#[derive(Clone, Debug)]
pub struct Segment {
    /// What it is of.
    pub head: Head,
    /// Tick of its snapshot.
    pub snapshot: u64,
    /// The tick stepped before the snapshot's.
    pub previous: u64,
    /// What had been taken at the snapshot, by shard.
    pub taken: Vec<Taken>,
    /// Newest tick in it.
    pub last: u64,
    /// It was ended, not broken off.
    pub ended: bool,
    /// It was ended because there was no room for more.
    pub full: bool,
    /// Bytes that are whole.
    pub bytes: u64,
    /// It ends within an entry.
    pub torn: bool,
}

/// The head of a segment; the number of its format where that is another than this program's.
pub fn head_of(bytes: &[u8]) -> Result<Result<Head, u32>, Damage> {
    let mut entries = Entries::new(bytes);
    let torn = Damage { fault: Fault::Torn, offset: 0, tick: 0 };
    let entry = entries.next_entry()?.ok_or(torn)?;
    let format = entry.format()?;
    if format == FORMAT { entry.head().map(Ok) } else { Ok(Err(format)) }
}

impl Segment {
    /// Checks every byte of a segment. One that ends within an entry is good up to there, and says so; without a whole
    /// snapshot it is damaged.
    pub fn examine(bytes: &[u8]) -> Result<Segment, Damage> {
        let mut entries = Entries::new(bytes);
        let (mut head, mut snapshot, mut last, mut ended, mut full) = (None, None, 0, false, false);
        let torn = loop {
            let entry = match entries.next_entry() {
                Ok(Some(entry)) => entry,
                Ok(None) => break false,
                Err(Damage { fault: Fault::Torn, .. }) if snapshot.is_some() => break true,
                Err(damage) => return Err(damage),
            };
            match entry.kind {
                Kind::Head => head = Some(entry.head()?),
                Kind::Snapshot => snapshot = Some(entry.snapshot()?),
                Kind::Tick => (),
                Kind::End => {
                    (ended, full) = (true, entry.tick > last);
                    continue;
                }
            }
            last = entry.tick;
        };
        let incomplete = Damage { fault: Fault::Torn, offset: entries.at as u64, tick: entries.tick };
        let (Some(head), Some(snapshot)) = (head, snapshot) else { return Err(incomplete) };
        let Snapshot { tick, previous, taken, .. } = snapshot;
        let bytes = entries.at as u64;
        Ok(Segment { head, snapshot: tick, previous, taken, last, ended, full, bytes, torn })
    }
}

/// What to replay.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Request {
    /// Last tick.
    pub until: Option<u64>,
    /// Whose history is told.
    pub entity: Option<EntityId>,
}

/// Where two worlds differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Mismatch {
    /// When.
    pub tick: u64,
    /// Whose hash.
    pub shard: u8,
}

/// One line of an entity's history.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Moment {
    /// When.
    pub tick: u64,
    /// Who owns it after this tick; none while it is under way, or when it is gone.
    pub shard: Option<u8>,
    /// Owner epoch.
    pub epoch: Option<u32>,
    /// Position in metres: east, north, up.
    pub position_m: Option<[f64; 3]>,
    /// What it was asked, sent and got.
    pub events: Vec<String>,
}

/// Why a record is shorter than its run.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct EndedEarly {
    /// In words.
    pub reason: String,
}

/// What came of a replay.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Report {
    /// Shards replayed.
    pub shards: usize,
    /// The snapshot that it began from.
    pub from_tick: u64,
    /// The newest tick that every shard came to.
    pub to_tick: u64,
    /// Hashes compared.
    pub hashes_compared: u64,
    /// Of these, those that differ.
    pub mismatches: u64,
    /// The first of them.
    pub first_mismatch: Option<Mismatch>,
    /// Why it ended before the end of the run, where it did.
    pub ended_early: Option<EndedEarly>,
    /// The history of the entity asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<Moment>,
}

/// Where a shard's replay stands in its tick.
enum Phase {
    /// The next tick is to be read.
    Read,
    /// It waits for the others' inputs.
    Inputs(TickEntry),
    /// It waits for the others' outcomes.
    Outcomes { done: Done, own: Box<OutcomeParcel> },
    /// Its record is over.
    Over,
}

/// One shard's replay.
struct Track {
    world: World,
    frames: Frames,
    segment: usize,
    bytes: Vec<u8>,
    at: usize,
    phase: Phase,
    /// Newest tick whose inputs were read.
    read: u64,
    /// Newest tick that was published.
    published: u64,
    /// Newest tick whose hash was compared.
    compared: u64,
    inputs: Vec<VecDeque<InputParcel>>,
    outcomes: Vec<VecDeque<OutcomeParcel>>,
}

/// The oldest tick that all shards have a snapshot of and whose records go on from there without a gap, as the place of
/// its segment for each shard.
pub fn start(shards: &[Vec<Segment>]) -> Option<Vec<usize>> {
    // The segments of each shard that follow each other without a gap up to its newest.
    let runs: Vec<usize> = shards.iter().map(|segments| unbroken(segments)).collect();
    let (first, _) = shards.split_first()?;
    for segment in &first[runs[0]..] {
        let tick = segment.snapshot;
        let place = |(shard, &run): (&Vec<Segment>, &usize)| {
            shard[run..].iter().position(|segment| segment.snapshot == tick).map(|at| at + run)
        };
        let places: Option<Vec<usize>> = shards.iter().zip(&runs).map(place).collect();
        let Some(places) = places else { continue };
        let at: Vec<&Segment> = shards.iter().zip(&places).map(|(shard, &at)| &shard[at]).collect();
        // Parcels of the snapshot's tick that are under way are in it; older ones are not.
        let reaches = |taken: &Taken, from: &Segment| taken.inputs.min(taken.outcomes) >= from.previous;
        let all =
            |to: usize| (0..at.len()).filter(|&from| from != to).all(|from| reaches(&at[to].taken[from], at[from]));
        if (0..at.len()).all(all) {
            return Some(places);
        }
    }
    None
}

fn unbroken(segments: &[Segment]) -> usize {
    let joined = |pair: &[Segment]| pair[0].ended && pair[0].last == pair[1].previous;
    segments.windows(2).rposition(|pair| !joined(pair)).map_or(0, |broken| broken + 1)
}

/// How the replay gets a segment: shard, place of the segment. None after the last one; an error is the host's own.
pub type Load<'a, E> = &'a mut dyn FnMut(usize, usize) -> Result<Option<Vec<u8>>, E>;

/// A replay under way.
struct Replay<'a, E> {
    tracks: Vec<Track>,
    load: Load<'a, E>,
    /// What a damaged entry is told as: shard, segment, damage.
    name: &'a dyn Fn(usize, usize, Damage) -> E,
    request: Request,
    report: Report,
}

/// Replays all shards from the segments that [`start`] found. `name` words the damage of a segment.
pub fn run<E>(
    head: &Head,
    places: &[usize],
    load: Load<'_, E>,
    name: &dyn Fn(usize, usize, Damage) -> E,
    request: Request,
) -> Result<Report, E> {
    let shards = places.len();
    let land = Arc::new(Land::new(head.land_seed));
    let mut begins = Vec::with_capacity(shards);
    for (shard, &segment) in places.iter().enumerate() {
        let bytes = load(shard, segment)?.expect("the segment was examined");
        begins.push(Begin::read(bytes, segment).map_err(|damage| name(shard, segment, damage))?);
    }
    let from_tick = begins[0].snapshot.tick;
    let config = WorldConfig {
        seed: head.seed,
        land,
        cut: Arc::new(CutMap::equal(shards)),
        npcs: 0,
        things: Arc::default(),
        npc_life_ticks: head.npc_life_ticks,
        start_tick: from_tick,
    };
    let report = Report {
        shards,
        from_tick,
        to_tick: from_tick,
        hashes_compared: 0,
        mismatches: 0,
        first_mismatch: None,
        ended_early: None,
        history: Vec::new(),
    };
    let mut replay = Replay { tracks: tracks(begins, &config), load, name, request, report };
    replay.run()?;
    Ok(replay.report)
}

/// A segment that a replay begins from.
struct Begin {
    segment: usize,
    bytes: Vec<u8>,
    at: usize,
    /// Inputs of the snapshot's tick, by owner.
    inputs: Vec<InputParcel>,
    snapshot: Snapshot,
}

impl Begin {
    fn read(bytes: Vec<u8>, segment: usize) -> Result<Begin, Damage> {
        let mut entries = Entries::new(&bytes);
        let mut inputs = Vec::new();
        let snapshot = loop {
            let entry = entries.next_entry()?.expect("the segment was examined");
            match entry.kind {
                Kind::Tick => inputs = entry.tick_entry()?.given.inputs,
                Kind::Snapshot => break entry.snapshot()?,
                Kind::Head | Kind::End => (),
            }
        };
        let at = entries.at;
        Ok(Begin { segment, bytes, at, inputs, snapshot })
    }
}

/// What a shard holds of the others after the snapshots' tick.
struct Held {
    frames: Frames,
    inputs: Vec<VecDeque<InputParcel>>,
    outcomes: Vec<VecDeque<OutcomeParcel>>,
}

/// The shards as they were after the snapshots' tick, with what was under way between them.
fn tracks(mut begins: Vec<Begin>, config: &WorldConfig) -> Vec<Track> {
    let numbers = (0..begins.len()).map(|shard| ShardId(shard as u8));
    let shown = numbers.clone().zip(&begins);
    let shown = shown.map(|(shard, begin)| Frame::of_seen(shard, begin.snapshot.tick, &begin.snapshot.shown));
    let shown: Vec<Arc<Frame>> = shown.map(Arc::new).collect();
    let held: Vec<Held> = numbers.clone().map(|shard| held(&mut begins, shard, &shown)).collect();
    let track = |((shard, begin), held): ((ShardId, Begin), Held)| {
        let Begin { segment, bytes, at, snapshot, .. } = begin;
        let Held { frames, inputs, outcomes } = held;
        Track {
            world: World::restored(config.clone(), shard, snapshot.state),
            frames,
            segment,
            bytes,
            at,
            phase: Phase::Read,
            read: snapshot.tick,
            published: snapshot.tick,
            compared: snapshot.tick,
            inputs,
            outcomes,
        }
    };
    numbers.zip(begins).zip(held).map(track).collect()
}

/// What one shard holds of the others, and what it has not taken yet.
fn held(begins: &mut [Begin], shard: ShardId, shown: &[Arc<Frame>]) -> Held {
    let (shards, to) = (begins.len(), shard.index());
    let (mut inputs, mut outcomes) = (vec![VecDeque::new(); shards], vec![VecDeque::new(); shards]);
    let mut frames = Frames::new(shards);
    let tick = begins[to].snapshot.tick;
    for from in 0..shards {
        let (giver, frame) = (ShardId(from as u8), shown[from].clone());
        match begins[to].snapshot.held[from].take() {
            Some((tick, seen)) => frames.push(Arc::new(Frame::of_seen(giver, tick, &seen))),
            None => frames.push(frame.clone()),
        };
        let taken = begins[to].snapshot.taken[from];
        if from != to && taken.inputs < tick {
            let given = begins[from].inputs.get_mut(to).map(std::mem::take).unwrap_or_default();
            inputs[from].push_back(InputParcel { tick, ..given });
        }
        if from != to && taken.outcomes < tick {
            let Parcel { effects, handoffs } = std::mem::take(&mut begins[from].snapshot.given[to]);
            let frame = Some(frame);
            outcomes[from].push_back(OutcomeParcel {
                tick,
                shard: giver,
                frame,
                effects,
                handoffs,
                ..Default::default()
            });
        }
    }
    Held { frames, inputs, outcomes }
}

impl<E> Replay<'_, E> {
    /// Lets each shard go on as far as what it waits for is there, until none can.
    fn run(&mut self) -> Result<(), E> {
        loop {
            let mut moved = false;
            for shard in 0..self.tracks.len() {
                moved |= self.advance(shard)?;
            }
            if !moved {
                break;
            }
        }
        self.report.to_tick = self.tracks.iter().map(|track| track.compared).min().unwrap_or(0);
        self.report.history.sort_by_key(|moment| moment.tick);
        Ok(())
    }

    /// One phase of one shard; says whether there was anything to do.
    fn advance(&mut self, shard: usize) -> Result<bool, E> {
        match std::mem::replace(&mut self.tracks[shard].phase, Phase::Over) {
            Phase::Read => self.read(shard),
            Phase::Inputs(entry) => {
                let here = |(from, taken): (usize, &Taken)| from == shard || self.tracks[from].read >= taken.inputs;
                let ready = entry.done.taken.iter().enumerate().all(here);
                match ready {
                    true => self.step(shard, entry),
                    false => self.tracks[shard].phase = Phase::Inputs(entry),
                }
                Ok(ready)
            }
            Phase::Outcomes { done, own } => {
                let here =
                    |(from, taken): (usize, &Taken)| from == shard || self.tracks[from].published >= taken.outcomes;
                let ready = done.taken.iter().enumerate().all(here);
                match ready {
                    true => self.hear(shard, &done, own),
                    false => self.tracks[shard].phase = Phase::Outcomes { done, own },
                }
                Ok(ready)
            }
            Phase::Over => Ok(false),
        }
    }

    /// Reads the next tick and gives its inputs to their owners.
    fn read(&mut self, shard: usize) -> Result<bool, E> {
        let until = self.request.until.unwrap_or(u64::MAX);
        loop {
            let track = &mut self.tracks[shard];
            let mut entries = Entries::resume(&track.bytes, track.at, track.world.tick);
            // What is torn was said when the segment was examined; it ends here.
            let entry = entries.next_entry().unwrap_or(None);
            track.at = entries.at;
            let named = |damage| (self.name)(shard, track.segment, damage);
            match entry {
                Some(entry) if entry.kind == Kind::Tick => {
                    if entry.tick > until {
                        return Ok(false);
                    }
                    let mut entry = entry.tick_entry().map_err(named)?;
                    assert_eq!(entry.done.previous, track.world.tick, "the segments were found to follow each other");
                    track.read = entry.tick;
                    self.note_given(shard, entry.tick, &entry.given);
                    for (to, parcel) in entry.given.inputs.iter_mut().enumerate().filter(|&(to, _)| to != shard) {
                        let mut parcel = InputParcel { tick: entry.tick, ..std::mem::take(parcel) };
                        let is_merged = entry.done.merged.inputs >> to & 1 == 1;
                        let queue = &mut self.tracks[to].inputs[shard];
                        match queue.back_mut().filter(|_| is_merged) {
                            Some(waits) => waits.absorb(&mut parcel),
                            None => queue.push_back(parcel),
                        }
                    }
                    self.tracks[shard].phase = Phase::Inputs(entry);
                    return Ok(true);
                }
                Some(entry) if entry.kind == Kind::Snapshot => {
                    let snapshot = entry.snapshot().map_err(named)?;
                    let (tick, digest) = (entry.tick, track.world.digest());
                    self.compare(shard, tick, digest == snapshot.digest);
                }
                Some(_) => (),
                None => {
                    track.segment += 1;
                    let Some(bytes) = (self.load)(shard, track.segment)? else { return Ok(false) };
                    (track.bytes, track.at) = (bytes, 0);
                }
            }
        }
    }

    fn compare(&mut self, shard: usize, tick: u64, equal: bool) {
        self.report.hashes_compared += 1;
        if !equal {
            self.report.mismatches += 1;
            let mismatch = Mismatch { tick, shard: shard as u8 };
            let first = self.report.first_mismatch.get_or_insert(mismatch);
            if tick < first.tick {
                *first = mismatch;
            }
            // What comes after it differs as well, and worlds that do not fit together may break each other.
            self.request.until = Some(self.request.until.map_or(tick, |until| until.min(tick)));
        }
    }

    /// The step of one tick, up to what it shows and gives.
    fn step(&mut self, shard: usize, entry: TickEntry) {
        let TickEntry { tick, given: Given { outside, inputs }, done } = entry;
        let shards = self.tracks.len();
        let Track { world, frames, inputs: queues, .. } = &mut self.tracks[shard];
        for outside in &outside {
            match outside {
                Outside::Decree(decree) => world.decree(decree.clone()),
                Outside::Join(_) | Outside::Settled(_) => (),
            }
        }
        world.begin(tick, frames);
        for outside in outside {
            match outside {
                Outside::Join(joining) => world.send_join(joining, frames),
                Outside::Settled(settled) => world.settled(&settled, frames),
                Outside::Decree(_) => (),
            }
        }
        world.take_inputs(&inputs[shard], frames);
        for (from, taken) in done.taken.iter().enumerate().filter(|&(from, _)| from != shard) {
            let due = queues[from].partition_point(|parcel| parcel.tick <= taken.inputs);
            queues[from].drain(..due).for_each(|parcel| world.take_inputs(&parcel, frames));
        }
        world.play(done.rows, frames);
        world.saves.clear();
        world.orders.clear();
        let mut outs: Vec<OutcomeParcel> = (0..shards).map(|_| OutcomeParcel::default()).collect();
        outs.iter_mut().for_each(|out| out.reset(world.shard, tick));
        let mut frame = Frame::default();
        world.publish(&mut frame, &mut outs);
        let frame = Arc::new(frame);
        self.tracks[shard].published = tick;
        self.note_effects(tick, &outs);
        let mut own = Box::new(std::mem::take(&mut outs[shard]));
        own.frame = Some(frame.clone());
        for (to, mut out) in outs.into_iter().enumerate().filter(|&(to, _)| to != shard) {
            out.frame = Some(frame.clone());
            let is_merged = done.merged.outcomes >> to & 1 == 1;
            let queue = &mut self.tracks[to].outcomes[shard];
            match queue.back_mut().filter(|_| is_merged) {
                Some(waits) => {
                    waits.absorb(&mut out);
                    own.effects.append(&mut out.effects);
                }
                None => queue.push_back(out),
            }
        }
        self.tracks[shard].phase = Phase::Outcomes { done, own };
    }

    /// The end of a tick: what was given to it, and its hash.
    fn hear(&mut self, shard: usize, done: &Done, mut own: Box<OutcomeParcel>) {
        let Track { world, frames, outcomes, .. } = &mut self.tracks[shard];
        let mut hear = |parcel: &mut OutcomeParcel| {
            world.arrive(parcel);
            parcel.frame.take().into_iter().for_each(|frame| drop(frames.push(frame)));
        };
        hear(&mut own);
        for (from, taken) in done.taken.iter().enumerate().filter(|&(from, _)| from != shard) {
            let due = outcomes[from].partition_point(|parcel| parcel.tick <= taken.outcomes);
            outcomes[from].drain(..due).for_each(|mut parcel| hear(&mut parcel));
        }
        let (tick, digest) = (world.tick, world.digest_part());
        let seen = self.request.entity.and_then(|id| world.glimpse(id));
        self.tracks[shard].compared = tick;
        self.tracks[shard].phase = Phase::Read;
        self.compare(shard, tick, digest == done.digest);
        if let Some(Glimpse { position, epoch, .. }) = seen {
            let metre = |fine: i32| f64::from(fine) / f64::from(FINE_PER_M);
            let moment = self.moment(tick);
            (moment.shard, moment.epoch) = (Some(shard as u8), Some(epoch));
            moment.position_m = Some([metre(position.0), metre(position.1), metre(position.2)]);
        }
    }

    /// The line of the history for a tick.
    fn moment(&mut self, tick: u64) -> &mut Moment {
        let history = &mut self.report.history;
        // Shards are at most some ticks apart.
        let at = history.iter().rposition(|moment| moment.tick == tick).unwrap_or_else(|| {
            history.push(Moment { tick, shard: None, epoch: None, position_m: None, events: Vec::new() });
            history.len() - 1
        });
        &mut history[at]
    }

    fn note_given(&mut self, shard: usize, tick: u64, given: &Given) {
        let Some(id) = self.request.entity else { return };
        for outside in &given.outside {
            if let Outside::Join(joining) = outside
                && joining.id == id
            {
                let client_id = joining.client_id;
                self.moment(tick).events.push(format!("client {client_id} joins by shard {shard}"));
            }
        }
        for input in given.inputs.iter().flat_map(|parcel| &parcel.inputs).filter(|input| input.entity == id) {
            let Input { kind, .. } = input;
            let text = match kind {
                InputKind::Commands { first_tick, count, .. } => {
                    format!("input: {count} commands from client tick {first_tick} by shard {shard}")
                }
                InputKind::Request { number, request, .. } => format!("input: request {number}: {request:?}"),
                InputKind::Leave => "input: its session ended".to_owned(),
            };
            self.moment(tick).events.push(text);
        }
    }

    fn note_effects(&mut self, tick: u64, outs: &[OutcomeParcel]) {
        let Some(id) = self.request.entity else { return };
        let ours = |effect: &&Effect| {
            effect.source == id || effect.target == Target::Entity(id) || effect.target == Target::Actor(id)
        };
        for (to, effect) in outs.iter().enumerate().flat_map(|(to, out)| out.effects.iter().map(move |e| (to, e))) {
            if ours(&effect) {
                let Effect { source, kind, target, .. } = effect;
                let text = format!("effect from {} to {target:?} on shard {to}: {kind:?}", source.0);
                self.moment(tick).events.push(text);
            }
        }
    }
}
