//! Ringshard: one large, seamless, persistent game world, thread per core on io_uring.
//!
//! The modules in reading order; `src/ARCHITECTURE.md` is the map.

pub mod cli;
pub mod config;
pub mod control;
pub mod exit;
pub mod folder;
pub mod ids;
pub mod io;
pub mod keeper;
pub mod limits;
pub mod net;
pub mod preflight;
pub mod sys;
