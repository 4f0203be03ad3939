//! What entities are made of.
//!
//! Owns the record of each kind: players, NPCs, spawners. Promises: everything that decides what an entity does is a
//! field here and rolls into its digest; what depends on who owns it (epoch, leaving, place, dirty, the tick of its last
//! row) does not, nor what follows from the rest (tile, the home of a spawner).

use serde::{Deserialize, Serialize};

use crate::events::Spot;
use crate::goods::{Dealings, digest_thing};
use crate::land::{LAND_CELLS, Land, Tile};
use crate::limits::{COMMANDS_HELD_MAX, CREDIT_TICKS_START};
use crate::movement::{Command, Motion};
use crate::random::{Digest, mix};
use crate::table::Named;
use crate::wire::generated::structs;
use crate::wire::goods;
use crate::wire::goods::OrderId;
use crate::wire::ids::{CellKey, EntityId, SessionRef, ShardId};
use crate::wire::messages::Stream;
use crate::wire::units::{CELL_GRID, FINE_SHIFT, GRID_PER_M};

/// Wire grid steps that an entity may stand inside another cell before that becomes its home cell.
pub const HOME_MARGIN: i32 = 4 * GRID_PER_M;
/// Wire grid steps that the wire's coordinates begin outside their plot.
pub const WIRE_MARGIN: i32 = 8 * GRID_PER_M;

/// Kinds of bodies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[repr(u8)]
pub enum Archetype {
    /// A client's character.
    Human = 1,
    /// Wildlife that wanders.
    Deer = 2,
    /// Something that can be picked up.
    Thing = 3,
}

/// A handoff that was announced.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Leaving {
    /// Owner from then on.
    pub to: ShardId,
    /// First tick that the new owner steps.
    pub tick: u64,
}

/// Where an entity stands in its cell's slices.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Slice, in the shard's own numbering.
    pub slice: u32,
    /// Slot of the slice.
    pub slot: u8,
}

/// What everything with a position has.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Body {
    /// Who this is.
    pub id: EntityId,
    /// What kind.
    pub archetype: Archetype,
    /// Where, in fine steps.
    pub motion: Motion,
    /// The ground below it, to be fast.
    #[serde(skip)]
    pub tile: Tile,
    /// Home cell: decides the owner.
    pub home: CellKey,
    /// Direction that it shows instead of its own until `attention_until`, because somebody waved.
    pub attention: u16,
    /// First tick without that attention.
    pub attention_until: u64,
    /// Owner epoch: rises by one with each handoff.
    pub epoch: u32,
    /// A handoff under way.
    pub leaving: Option<Leaving>,
    /// Where it stands in the slices; none before its first frame here.
    #[serde(skip)]
    pub place: Option<Place>,
}

impl Body {
    /// A body that nobody has seen yet.
    pub fn new(id: EntityId, archetype: Archetype, motion: Motion) -> Body {
        let home = CellKey::of_fine(motion.x, motion.y);
        let tile = Tile::default();
        Body {
            id,
            archetype,
            motion,
            tile,
            home,
            attention: 0,
            attention_until: 0,
            epoch: 1,
            leaving: None,
            place: None,
        }
    }

    /// Position on the wire grid, east and north.
    pub fn grid(&self) -> (i32, i32) {
        (self.motion.x >> FINE_SHIFT, self.motion.y >> FINE_SHIFT)
    }

    /// Where its public events happen.
    pub fn spot(&self) -> Spot {
        Spot::of(self.home.space, self.grid())
    }

    /// Moves the home cell when the body stands more than 4 m inside another; says whether it did.
    pub fn settle(&mut self) -> bool {
        let (x, y) = self.grid();
        let outside = |v: i32, cell: i16| {
            let low = i32::from(cell) * CELL_GRID;
            v < low - HOME_MARGIN || v >= low + CELL_GRID + HOME_MARGIN
        };
        let moved = outside(x, self.home.x) || outside(y, self.home.y);
        if moved {
            self.home = CellKey { space: self.home.space, ..CellKey::of_fine(self.motion.x, self.motion.y) };
        }
        moved
    }

    /// What everybody sees of it in this tick.
    pub fn plain(&self, tick: u64) -> structs::EntityPlain {
        let ((x, y), plot) = (self.grid(), self.home.plot());
        let offset = |v: i32, cell: i16| (v - i32::from(cell) * CELL_GRID + WIRE_MARGIN).clamp(0, 65_535) as u16;
        let z = (self.motion.z >> FINE_SHIFT).clamp(0, 65_535) as u16;
        let yaw = if tick < self.attention_until { self.attention } else { self.motion.yaw };
        let state = u8::from(!self.motion.grounded) | u8::from(tick < self.attention_until) << 1;
        let look = self.archetype as u8 | state << 4;
        structs::EntityPlain::new(self.id.0, offset(x, plot.x), offset(y, plot.y), z, (yaw >> 8) as u8, look)
    }

    fn digest(&self, digest: &mut Digest) {
        let Motion { x, y, z, velocity_z, yaw, grounded } = self.motion;
        digest.add(self.id.0).add(self.archetype as u64).add_i32(x).add_i32(y).add_i32(z).add_i32(velocity_z);
        digest.add(u64::from(yaw) << 1 | u64::from(grounded));
        digest.add(u64::from(self.home.space)).add(self.home.y as u64).add(self.home.x as u64);
        digest.add(u64::from(self.attention)).add(self.attention_until);
    }
}

/// A command that waits for time credit.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Held {
    /// The client's tick.
    pub tick: u32,
    /// What the client wants.
    pub command: Command,
}

/// For how long commands have waited without a pause: a queue that never empties is lag, not jitter.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Lag {
    /// Ticks since none waited.
    pub ticks: u8,
    /// The fewest that waited after any of these ticks.
    pub least: u8,
}

/// A client's character.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Player {
    /// Its body.
    pub body: Body,
    /// Who steers it.
    pub session: SessionRef,
    /// Whose character it is.
    pub client_id: u64,
    /// Never saved.
    pub guest: bool,
    /// A tag for the first monster, which will ignore it. Kept, handed over and hashed; no rule reads it yet.
    pub peaceful: bool,
    /// Ticks of commands that it may run now.
    pub credit: u8,
    /// Client tick of the newest command that ran.
    pub applied: u32,
    /// Commands that the server ran in the client's stead, wrapping.
    pub neutral: u16,
    /// Ticks that passed at full credit since all commands had run: commands for them come too late. At most
    /// [`COMMANDS_HELD_MAX`], since more commands are never held.
    pub lost: u8,
    /// Ticks without a pause in which commands waited, and the fewest that did.
    pub lag: Lag,
    /// Commands that were discarded because they had waited for too long, wrapping.
    pub discarded: u16,
    /// Ordinal of the newest request that it took, by stream.
    pub taken: [u16; Stream::COUNT],
    /// Words that its session was told, wrapping.
    pub words: u32,
    /// First tick in which it may show an emote again.
    pub emote_tick: u64,
    /// First tick in which it may wave again.
    pub wave_tick: u64,
    /// A wave by the request with this number, sent in this tick, that nobody refused yet.
    pub waving: Option<(u64, u64)>,
    /// Effects sent so far; orders them.
    pub sequence: u32,
    /// Commands waiting, oldest first: the first `held_count`.
    pub held: [Held; COMMANDS_HELD_MAX],
    /// How many wait.
    pub held_count: u8,
    /// The session ended: it goes in this tick.
    pub released: bool,
    /// Changed since its row was last written.
    pub dirty: bool,
    /// Tick of its last row.
    pub row_tick: u64,
    /// Orders, trades and deeds under way.
    pub dealings: Dealings,
}

impl Player {
    /// A character that just joined.
    pub fn new(body: Body, session: SessionRef, client_id: u64, guest: bool, peaceful: bool) -> Player {
        Player {
            body,
            session,
            client_id,
            guest,
            peaceful,
            credit: CREDIT_TICKS_START,
            applied: 0,
            neutral: 0,
            lost: 0,
            lag: Lag::default(),
            discarded: 0,
            taken: [0; Stream::COUNT],
            words: 0,
            emote_tick: 0,
            wave_tick: 0,
            waving: None,
            sequence: 0,
            held: [Held::default(); COMMANDS_HELD_MAX],
            held_count: 0,
            released: false,
            dirty: true,
            row_tick: 0,
            dealings: Dealings::default(),
        }
    }

    /// The commands that wait, oldest first.
    pub fn waiting(&self) -> &[Held] {
        &self.held[..usize::from(self.held_count)]
    }

    /// Digest over everything that decides what it does.
    pub fn digest(&self) -> u64 {
        let mut digest = Digest::new(3);
        self.body.digest(&mut digest);
        let SessionRef { lane, slot, generation } = self.session;
        digest.add(u64::from(lane) << 48 | u64::from(slot) << 32 | u64::from(generation)).add(self.client_id);
        digest.add(u64::from(self.guest) | u64::from(self.peaceful) << 1 | u64::from(self.released) << 2);
        digest.add(u64::from(self.credit)).add(u64::from(self.applied)).add(u64::from(self.neutral));
        digest
            .add(u64::from(self.lost) << 16 | u64::from(self.lag.ticks) << 8 | u64::from(self.lag.least))
            .add(u64::from(self.discarded));
        let [world, goods] = self.taken.map(u64::from);
        digest.add(u64::from(self.words) << 32 | world << 16 | goods);
        digest.add(self.emote_tick).add(self.wave_tick).add(u64::from(self.sequence));
        digest.add_option(self.waving, |digest, (number, tick)| digest.add(number).add(tick));
        self.dealings.digest(&mut digest);
        digest.add(self.held_count.into());
        for held in self.waiting() {
            let Command { yaw, forward, right, buttons } = held.command;
            let command = u64::from(yaw) << 24 | u64::from(forward as u8) << 16 | u64::from(right as u8) << 8;
            digest.add(u64::from(held.tick)).add(command | u64::from(buttons));
        }
        digest.finish()
    }
}

/// Wildlife that wanders about its spawner.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Npc {
    /// Its body.
    pub body: Body,
    /// The spawner that made it.
    pub spawner: u32,
    /// Middle of its range in fine steps.
    pub range_x: i32,
    /// Likewise, northwards.
    pub range_y: i32,
    /// Walks until the next turn; otherwise stands.
    pub walking: bool,
    /// Tick in which it decides anew.
    pub turn_tick: u64,
    /// Tick in which it goes for good.
    pub end_tick: u64,
    /// Effects sent so far; orders them.
    pub sequence: u32,
}

impl Npc {
    /// Digest over everything that decides what it does.
    pub fn digest(&self) -> u64 {
        let mut digest = Digest::new(2);
        self.body.digest(&mut digest);
        digest.add(u64::from(self.spawner)).add_i32(self.range_x).add_i32(self.range_y);
        digest.add(u64::from(self.walking)).add(self.turn_tick).add(self.end_tick).add(u64::from(self.sequence));
        digest.finish()
    }
}

/// Something on the ground.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Thing {
    /// Its body; it never moves.
    pub body: Body,
    /// What the ledger knows of it.
    pub thing: goods::Thing,
    /// Somebody gets it, or it is swept: the order that is not answered yet.
    pub taken: Option<OrderId>,
    /// Effects sent so far; orders them.
    pub sequence: u32,
}

impl Thing {
    /// A thing as it lies on the ground.
    pub fn lying(thing: &goods::Thing, land: &Land) -> Thing {
        let motion = Motion::standing(land, thing.x, thing.y, 0);
        let body = Body::new(EntityId::thing(thing.number), Archetype::Thing, motion);
        Thing { body, thing: *thing, taken: None, sequence: 0 }
    }

    /// Digest over everything that decides what it does.
    pub fn digest(&self) -> u64 {
        let mut digest = Digest::new(5);
        self.body.digest(&mut digest);
        digest_thing(&self.thing, &mut digest).add(self.sequence.into());
        digest.add_option(self.taken, |digest, order| digest.add(order.source.0).add(order.sequence));
        digest.finish()
    }
}

impl Named for Thing {
    fn id(&self) -> EntityId {
        self.body.id
    }
}

/// An actor that keeps a patch of land populated. It has no body; its home cell is a hash of its id.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Spawner {
    /// Who this is.
    pub id: EntityId,
    /// Its number in the content.
    pub number: u32,
    /// Home cell: decides the owner.
    pub home: CellKey,
    /// Middle of its patch in fine steps.
    pub x: i32,
    /// Likewise, northwards.
    pub y: i32,
    /// How many it wants alive.
    pub wanted: u32,
    /// How many are.
    pub alive: u32,
    /// Ordinal of the next one; never used twice.
    pub next_ordinal: u32,
    /// Owner epoch.
    pub epoch: u32,
    /// A handoff under way.
    pub leaving: Option<Leaving>,
}

impl Spawner {
    /// Home cell of the actor with this id.
    pub fn home_of(id: EntityId) -> CellKey {
        let hash = mix(id.0);
        let side = LAND_CELLS as u64;
        CellKey { space: 0, y: (hash % side) as i16, x: (hash / side % side) as i16 }
    }

    /// Digest over everything that decides what it does.
    pub fn digest(&self) -> u64 {
        let mut digest = Digest::new(1);
        digest.add(self.id.0).add(u64::from(self.number)).add_i32(self.x).add_i32(self.y);
        digest.add(u64::from(self.wanted));
        digest.add(u64::from(self.alive)).add(u64::from(self.next_ordinal));
        digest.finish()
    }
}

impl Named for Player {
    fn id(&self) -> EntityId {
        self.body.id
    }
}

impl Named for Npc {
    fn id(&self) -> EntityId {
        self.body.id
    }
}

impl Named for Spawner {
    fn id(&self) -> EntityId {
        self.id
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::units::{CELL_M, FINE_PER_M};

    #[test]
    fn the_kind_of_a_thing_and_an_empty_wave_are_in_the_digest() {
        let body = Body::new(EntityId::thing(1), Archetype::Thing, Motion::default());
        let lying = |kind| goods::Thing { number: 1, kind, x: 0, y: 0, end_tick: 9 };
        let thing = |kind| Thing { body: body.clone(), thing: lying(kind), taken: None, sequence: 0 }.digest();
        assert_ne!(thing(1), thing(2));
        let taken = Some(OrderId { source: EntityId(0), sequence: 0 });
        assert_ne!(Thing { taken, thing: lying(1), body: body.clone(), sequence: 0 }.digest(), thing(1));
        let mut player = Player::new(body, SessionRef::default(), 1, false, false);
        let before = player.digest();
        player.waving = Some((0, 0));
        assert_ne!(player.digest(), before);
    }

    #[test]
    fn the_home_cell_holds_on_for_four_metres() {
        let x = |metres: i32| metres * FINE_PER_M;
        let motion = Motion { x: x(10 * CELL_M + 60), y: x(100), ..Motion::default() };
        let mut body = Body::new(EntityId::character(1), Archetype::Human, motion);
        assert_eq!(body.home.x, 10);
        body.motion.x = x(11 * CELL_M + 3);
        assert!(!body.settle());
        body.motion.x = x(11 * CELL_M + 5);
        assert!(body.settle());
        assert_eq!(body.home.x, 11);
        body.motion.x = x(11 * CELL_M - 3);
        assert!(!body.settle(), "going back has the same margin");
    }
}
