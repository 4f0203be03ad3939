//! The server without a machine: sessions, and what they share.
//!
//! Promises: sans-IO like `wire`, and the same for every host. Never does I/O, reads a clock or takes a lock.

pub mod keeper;
pub mod ladder;
pub mod mesh;
pub mod sessions;
