//! The flight recorder: what each shard saw and did lately, so that it can be done again.
//!
//! Owns the folder; the format and the replay are in `realm`. Promises: recorded is what enters a shard from outside, which parcels it
//! took when, and its hashes; frames and effects are made again by the replay. `shard/recorder.rs` writes it.

pub mod folder;

#[cfg(test)]
mod tests;
