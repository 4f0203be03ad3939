//! The names of things: entities, cells, shards, sessions.
//!
//! Promises: an id says who made it and never says which shard did; the order of [`CellKey`] keeps the cells of one
//! row together.

use serde::{Deserialize, Serialize};

use crate::units::{CELL_GRID, FINE_SHIFT, PLOT_SHIFT};

/// A u64 made of a class (top 8 bits), a source and an ordinal that the source keeps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct EntityId(pub u64);

/// What an id names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IdClass {
    /// 0-255: keeper, join, admin, clock.
    Reserved,
    /// An actor that keeps a patch of land populated.
    Spawner,
    /// A body made by a spawner.
    Npc,
    /// A saved character; the keeper numbers them.
    Character,
    /// A character that is never saved; the lane numbers them.
    Guest,
    /// Something on the ground; the ledger numbers them.
    Thing,
    /// A character as the source of its deeds.
    Deeds,
    /// No id of this version.
    Unknown,
}

impl EntityId {
    /// Source of effects that create joining characters.
    pub const JOIN: EntityId = EntityId(1);
    /// Nobody.
    pub const NONE: EntityId = EntityId(0);
    /// Source of what the keeper answers.
    pub const KEEPER: EntityId = EntityId(2);
    /// Source of what an admin orders.
    pub const ADMIN: EntityId = EntityId(3);

    /// The `number`-th spawner of the content.
    pub fn spawner(number: u32) -> EntityId {
        EntityId(1 << 56 | u64::from(number))
    }

    /// The NPC that spawner `number` made with its `ordinal`; spawner numbers stay below 2^24.
    #[inline]
    pub fn npc(number: u32, ordinal: u32) -> EntityId {
        assert!(number < 1 << 24);
        EntityId(2 << 56 | u64::from(number) << 32 | u64::from(ordinal))
    }

    /// The character with this number, below 2^56.
    pub fn character(number: u64) -> EntityId {
        assert!(number < 1 << 56);
        EntityId(3 << 56 | number)
    }

    /// The `ordinal`-th guest of a lane since start, below 2^48.
    pub fn guest(lane: u8, ordinal: u64) -> EntityId {
        assert!(ordinal < 1 << 48);
        EntityId(4 << 56 | u64::from(lane) << 48 | ordinal)
    }

    /// The thing on the ground with this number, below 2^56.
    pub fn thing(number: u64) -> EntityId {
        assert!(number < 1 << 56);
        EntityId(5 << 56 | number)
    }

    /// The character with this number as the source of its deeds.
    pub fn deeds(number: u64) -> EntityId {
        assert!(number < 1 << 56);
        EntityId(6 << 56 | number)
    }

    /// Number of a character, thing or deeds' character.
    pub fn number(self) -> u64 {
        self.0 & ((1 << 56) - 1)
    }

    /// What this id names.
    pub fn class(self) -> IdClass {
        match self.0 >> 56 {
            0 if self.0 < 256 => IdClass::Reserved,
            1 => IdClass::Spawner,
            2 => IdClass::Npc,
            3 => IdClass::Character,
            4 => IdClass::Guest,
            5 => IdClass::Thing,
            6 => IdClass::Deeds,
            _ => IdClass::Unknown,
        }
    }
}

/// A shard of this node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct ShardId(pub u8);

impl ShardId {
    /// As an index into per-shard tables.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A 64 m square of a space. Ordered by space, row, column: cells beside each other in a row stand beside each other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct CellKey {
    /// 0 is the land.
    pub space: u32,
    /// Row, northwards.
    pub y: i16,
    /// Column, eastwards.
    pub x: i16,
}

impl CellKey {
    /// The cell of the land that holds a position in fine steps.
    #[inline]
    pub fn of_fine(x: i32, y: i32) -> CellKey {
        let cell = |v: i32| (v >> FINE_SHIFT).div_euclid(CELL_GRID) as i16;
        CellKey { space: 0, y: cell(y), x: cell(x) }
    }

    /// The first cell, in the south-west, of this cell's plot: 2 x 2 cells, which share slices. It names the plot.
    #[inline]
    pub fn plot(self) -> CellKey {
        let first = |v: i16| v >> PLOT_SHIFT << PLOT_SHIFT;
        CellKey { space: self.space, y: first(self.y), x: first(self.x) }
    }
}

/// A connection of one packet path: a slot, and which tenant of the slot it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ConnectionId {
    /// Place in the table, below [`crate::limits::TCP_CONNECTIONS_MAX`].
    pub slot: u16,
    /// Rises each time the place gets a new tenant.
    pub generation: u32,
}

/// A session: its lane, its place there, and which tenant of the place it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct SessionRef {
    /// Lane, below [`crate::limits::LANES`].
    pub lane: u8,
    /// Place in the lane's table.
    pub slot: u16,
    /// Rises each time the place gets a new tenant.
    pub generation: u32,
}
