//! The server without a machine: sessions, and what they share.
//!
//! Promises: sans-IO like `wire`, and the same for every host. Never does I/O, reads a clock or takes a lock.

pub use ringshard_wire as wire;
pub use ringshard_world as world;
pub use wire::{limits, planted};

pub mod bots;
pub mod coordinator;
pub mod core;
pub mod costs;
pub mod flight;
pub mod keeper;
pub mod ladder;
pub mod lanes;
pub mod links;
pub mod mesh;
pub mod report;
pub mod saves;
pub mod sessions;
pub mod sim;
