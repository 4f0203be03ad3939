//! Ringshard: one large, seamless, persistent game world, thread per core on io_uring.
//!
//! The modules in reading order; `src/ARCHITECTURE.md` is the map.

pub mod limits;
pub mod planted;

pub mod wire;

pub mod world;

pub mod realm;

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
