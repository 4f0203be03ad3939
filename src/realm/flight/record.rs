//! The flight record's bytes: what is recorded, and how it is framed so that damage is found and named.
//!
//! Owns the format. A segment is a file: a mark, then entries of a header (length, kind, tick, checksum of the payload,
//! checksum of the header) and a payload (postcard). A segment that begins with the run has head, snapshot, ticks; a later
//! one head, the snapshot's tick, snapshot, ticks. One that was ended has an end entry; zeroes fill its last block.
//! Promises: every byte is under a checksum or must be zero; a record holds all that a replay needs, the realm's secret
//! seed with it, so a record is as secret as the data folder. Never does I/O.

use postcard::ser_flavors::Flavor;
use serde::{Deserialize, Serialize};

use crate::wire::goods::Settled;
use crate::wire::ids::ShardId;
use crate::world::effect::{Effect, Joining};
use crate::world::frame::{Frames, Seen};
use crate::world::parcel::{Handoffs, InputParcel, Merged, OutcomeParcel};
use crate::world::state::{State, StateRef};
use crate::world::{Decree, World};

/// First bytes of every segment.
pub const FILE_MARK: [u8; 16] = *b"RINGSHARD FLIGHT";
/// Raise it when anything here changes its bytes.
pub const FORMAT: u32 = 9;
/// Bytes of an entry's header: length u32, kind u8, three zeroes, tick u64, both checksums u32.
const HEADER_BYTES: usize = 24;

/// What an entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// What the segment is of: [`Head`].
    Head = 1,
    /// One tick: [`TickEntry`].
    Tick = 2,
    /// The world between two ticks: [`Snapshot`].
    Snapshot = 3,
    /// The segment ends here; no payload. Its tick is the last one, or the first that could not be recorded.
    End = 4,
}

/// What a segment is of.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Head {
    /// [`FORMAT`] of the program that wrote it.
    pub format: u32,
    /// Version of that program.
    pub version: String,
    /// Its rules and content.
    pub content: u64,
    /// Names the run, the same for all shards of it.
    pub run: u64,
    /// Whose record.
    pub shard: ShardId,
    /// Shards of the run.
    pub shards: u8,
    /// The realm's secret.
    pub seed: u64,
    /// Seed of the land.
    pub land_seed: u64,
    /// Least ticks that a piece of wildlife lives.
    pub npc_life_ticks: u32,
}

/// What enters a world from outside of all shards, besides the inputs of its sessions. To record a new kind add it here,
/// push it to `Core::outside` where it enters, and let the replay enter it in the same place of the tick.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "some of them live for one tick; boxes would be allocated in it")]
pub enum Outside {
    /// Heard before the tick begins.
    Decree(Decree),
    /// Sent into the world after the tick began.
    Join(Joining),
    /// What the keeper answered; enters after the joins.
    Settled(Settled),
}

/// The newest parcels that a shard took from another so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Taken {
    /// Tick of the newest input parcel.
    pub inputs: u64,
    /// Tick of the newest outcome parcel.
    pub outcomes: u64,
}

#[derive(Serialize)]
struct GivenRef<'a> {
    outside: &'a [Outside],
    inputs: &'a [InputParcel],
}

/// What a tick begins with.
#[derive(Debug, Deserialize)]
pub struct Given {
    /// In the order in which it came.
    pub outside: Vec<Outside>,
    /// What this shard's sessions want, by owner.
    pub inputs: Vec<InputParcel>,
}

/// What else decided a tick, and what came of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Done {
    /// The tick stepped before: more than one before after a late edge.
    pub previous: u64,
    /// Rows were written.
    pub rows: bool,
    /// By shard; the own one means nothing.
    pub taken: Vec<Taken>,
    /// For whom what it gave was merged into parcels that waited.
    pub merged: Merged,
    /// [`World::digest_part`] after it.
    pub digest: u64,
}

/// One tick of one shard.
#[derive(Debug)]
pub struct TickEntry {
    /// When.
    pub tick: u64,
    /// What it began with.
    pub given: Given,
    /// The rest.
    pub done: Done,
}

#[derive(Serialize)]
struct ParcelRef<'a> {
    effects: &'a [Effect],
    handoffs: &'a Handoffs,
}

/// What the world of another shard takes from an outcome parcel, besides the frame.
#[derive(Debug, Default, Deserialize)]
pub struct Parcel {
    /// Effects on its entities.
    pub effects: Vec<Effect>,
    /// Entities that are its own from then on.
    pub handoffs: Handoffs,
}

#[derive(Serialize)]
struct SnapshotRef<'a> {
    previous: u64,
    digest: u64,
    taken: &'a [Taken],
    shown: Vec<Seen>,
    held: Vec<Option<(u64, Vec<Seen>)>>,
    state: StateRef<'a>,
}

#[derive(Deserialize)]
struct SnapshotRest {
    previous: u64,
    digest: u64,
    taken: Vec<Taken>,
    shown: Vec<Seen>,
    held: Vec<Option<(u64, Vec<Seen>)>>,
    state: State,
}

/// All that a shard goes on from after a tick.
pub struct Snapshot {
    /// When.
    pub tick: u64,
    /// What it gave in this tick, by shard: a peer that has not taken it yet takes it in the replay.
    pub given: Vec<Parcel>,
    /// The tick stepped before.
    pub previous: u64,
    /// [`World::digest`].
    pub digest: u64,
    /// What it took, by shard.
    pub taken: Vec<Taken>,
    /// What it shows.
    pub shown: Vec<Seen>,
    /// By shard: what it last saw of those of whom that is not this tick's frame.
    pub held: Vec<Option<(u64, Vec<Seen>)>>,
    /// Its world.
    pub state: State,
}

/// Bytes that postcard appends to.
struct Appended<'a>(&'a mut Vec<u8>);

impl Flavor for Appended<'_> {
    type Output = ();

    fn try_extend(&mut self, data: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(data);
        Ok(())
    }

    fn try_push(&mut self, data: u8) -> postcard::Result<()> {
        self.0.push(data);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

fn append(out: &mut Vec<u8>, value: &impl Serialize) {
    postcard::serialize_with_flavor(value, Appended(out)).expect("plain values into memory");
}

fn append_entry(out: &mut Vec<u8>, kind: Kind, tick: u64, payload: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_BYTES]);
    payload(out);
    let (header, payload) = out[start..].split_at_mut(HEADER_BYTES);
    header[..4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    header[4] = kind as u8;
    header[8..16].copy_from_slice(&tick.to_le_bytes());
    header[16..20].copy_from_slice(&crc32fast::hash(payload).to_le_bytes());
    let checksum = crc32fast::hash(&header[..20]);
    header[20..].copy_from_slice(&checksum.to_le_bytes());
}

/// Writes one shard's entries. Its buffers are filled anew each tick.
#[derive(Debug, Default)]
pub struct Encoder {
    given: Vec<u8>,
    parcels: Vec<u8>,
}

impl Encoder {
    /// Begins a segment.
    pub fn head(&self, out: &mut Vec<u8>, tick: u64, head: &Head) {
        out.extend_from_slice(&FILE_MARK);
        append_entry(out, Kind::Head, tick, |out| append(out, head));
    }

    /// Keeps what a tick begins with, before the inputs leave for their owners.
    pub fn given(&mut self, outside: &[Outside], inputs: &[InputParcel]) {
        self.given.clear();
        append(&mut self.given, &GivenRef { outside, inputs });
    }

    /// Keeps what is given to each shard in a tick that ends with a snapshot.
    pub fn parcels<'a>(&mut self, outs: impl ExactSizeIterator<Item = &'a OutcomeParcel>) {
        self.parcels.clear();
        let parcels = outs.map(|out| ParcelRef { effects: &out.effects, handoffs: &out.handoffs });
        append(&mut self.parcels, &parcels.collect::<Vec<_>>());
    }

    /// Writes the tick that [`Encoder::given`] began.
    pub fn tick(&self, out: &mut Vec<u8>, tick: u64, done: &Done) {
        append_entry(out, Kind::Tick, tick, |out| {
            out.extend_from_slice(&self.given);
            append(out, done);
        });
    }

    /// Writes the world after the tick that [`Encoder::parcels`] belongs to, or before the first tick of all.
    pub fn snapshot(&self, out: &mut Vec<u8>, world: &World, frames: &Frames, previous: u64, taken: &[Taken]) {
        let tick = world.tick;
        let late = |shard| frames.newest_of(ShardId(shard as u8)).filter(|frame| frame.tick != tick);
        let held = |shard| late(shard).map(|frame| (frame.tick, frame.seen_all().collect()));
        let shown = frames.newest_of(world.shard).map_or_else(Vec::new, |frame| frame.seen_all().collect());
        let snapshot = SnapshotRef {
            previous,
            digest: world.digest(),
            taken,
            shown,
            held: (0..taken.len()).map(held).collect(),
            state: world.state(),
        };
        append_entry(out, Kind::Snapshot, tick, |out| {
            match self.parcels.is_empty() {
                true => append(out, &taken.iter().map(|_| NOTHING).collect::<Vec<_>>()),
                false => out.extend_from_slice(&self.parcels),
            }
            append(out, &snapshot);
        });
    }

    /// Ends a segment.
    pub fn end(&self, out: &mut Vec<u8>, tick: u64) {
        append_entry(out, Kind::End, tick, |_| ());
    }
}

const NOTHING: ParcelRef<'static> = ParcelRef {
    effects: &[],
    handoffs: &Handoffs { players: Vec::new(), npcs: Vec::new(), spawners: Vec::new(), things: Vec::new() },
};

/// What is wrong at a place of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Bytes are not those that were written.
    Altered,
    /// The segment ends within an entry.
    Torn,
}

/// Damage: what, where, and after which whole tick.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Damage {
    /// What.
    pub fault: Fault,
    /// Bytes from the beginning of the segment.
    pub offset: u64,
    /// Tick of the newest whole entry before it.
    pub tick: u64,
}

/// One entry as it lies in the segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry<'a> {
    /// What it is.
    pub kind: Kind,
    /// Its tick.
    pub tick: u64,
    payload: &'a [u8],
    /// Where it begins.
    offset: usize,
}

/// Walks over the entries of a segment and checks each.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    bytes: &'a [u8],
    /// Where the next entry begins: the bytes before it are whole.
    pub at: usize,
    /// Tick of the newest entry seen.
    pub tick: u64,
}

impl<'a> Entries<'a> {
    /// From the beginning of a segment.
    pub fn new(bytes: &'a [u8]) -> Entries<'a> {
        Entries { bytes, at: 0, tick: 0 }
    }

    /// From where an earlier walk stood.
    pub fn resume(bytes: &'a [u8], at: usize, tick: u64) -> Entries<'a> {
        Entries { bytes, at, tick }
    }

    fn damage(&self, fault: Fault) -> Damage {
        Damage { fault, offset: self.at as u64, tick: self.tick }
    }

    /// The next entry; none at the end.
    pub fn next_entry(&mut self) -> Result<Option<Entry<'a>>, Damage> {
        if self.at == 0 {
            let shared = self.bytes.len().min(FILE_MARK.len());
            match self.bytes[..shared] == FILE_MARK[..shared] {
                true if shared == FILE_MARK.len() => self.at = shared,
                true => return Err(self.damage(Fault::Torn)),
                false => return Err(self.damage(Fault::Altered)),
            }
        }
        let rest = &self.bytes[self.at..];
        // Zeroes fill the last block; no header is zeroes alone, for its own checksum is not 0.
        if rest.iter().take(HEADER_BYTES).all(|&byte| byte == 0) {
            return if rest.iter().all(|&byte| byte == 0) { Ok(None) } else { Err(self.damage(Fault::Altered)) };
        }
        let Some((header, rest)) = rest.split_at_checked(HEADER_BYTES) else { return Err(self.damage(Fault::Torn)) };
        let word = |at: usize| u32::from_le_bytes(*header[at..].first_chunk().expect("within the header"));
        let kind =
            [Kind::Head, Kind::Tick, Kind::Snapshot, Kind::End].into_iter().find(|&kind| kind as u8 == header[4]);
        let kind = kind.filter(|_| word(20) == crc32fast::hash(&header[..20]));
        let Some(kind) = kind else { return Err(self.damage(Fault::Altered)) };
        let Some((payload, _)) = rest.split_at_checked(word(0) as usize) else { return Err(self.damage(Fault::Torn)) };
        if crc32fast::hash(payload) != word(16) {
            return Err(self.damage(Fault::Altered));
        }
        let offset = self.at;
        self.at += HEADER_BYTES + payload.len();
        self.tick = u64::from_le_bytes(*header[8..].first_chunk().expect("within the header"));
        Ok(Some(Entry { kind, tick: self.tick, payload, offset }))
    }
}

impl Entry<'_> {
    /// Where its bytes make no sense although their checksum holds.
    fn senseless(&self) -> Damage {
        Damage { fault: Fault::Altered, offset: self.offset as u64, tick: self.tick }
    }

    /// As a head.
    pub fn head(&self) -> Result<Head, Damage> {
        postcard::from_bytes(self.payload).map_err(|_| self.senseless())
    }

    /// The format of a head, whatever else it holds.
    pub fn format(&self) -> Result<u32, Damage> {
        postcard::take_from_bytes(self.payload).map(|(format, _)| format).map_err(|_| self.senseless())
    }

    /// As a tick.
    pub fn tick_entry(&self) -> Result<TickEntry, Damage> {
        let read = || {
            let (given, rest) = postcard::take_from_bytes::<Given>(self.payload)?;
            postcard::from_bytes::<Done>(rest).map(|done| TickEntry { tick: self.tick, given, done })
        };
        read().map_err(|_| self.senseless())
    }

    /// As a snapshot.
    pub fn snapshot(&self) -> Result<Snapshot, Damage> {
        let read = || {
            let (given, rest) = postcard::take_from_bytes::<Vec<Parcel>>(self.payload)?;
            let SnapshotRest { previous, digest, taken, shown, held, state } = postcard::from_bytes(rest)?;
            Ok(Snapshot { tick: self.tick, given, previous, digest, taken, shown, held, state })
        };
        read().map_err(|_: postcard::Error| self.senseless())
    }
}
