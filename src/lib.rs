//! Ringshard: one large, seamless, persistent game world, thread per core on io_uring.
//!
//! The modules in reading order; `src/ARCHITECTURE.md` is the map.

pub use ringshard_realm as realm;
pub use ringshard_wire as wire;
pub use ringshard_world as world;
pub use wire::limits;
pub use wire::planted;

pub mod clock;
pub mod executor;
pub mod flight;
pub mod io;
pub mod rocks;
pub mod shard;

pub mod control;
pub mod server;
pub mod tools;

pub mod cli;
pub mod config;
pub mod exit;
pub mod folder;
pub mod preflight;
pub mod sys;
