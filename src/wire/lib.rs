//! Bytes: what stands on the wire, and the transport that carries it.
//!
//! Owns the protocol state of peers. Promises: sans-IO (`handle_*` in, `poll_*` out, time as an argument), no panic on
//! any input, nothing allocated before an address is proven. Never does I/O, reads a clock or takes a lock, and knows
//! neither world nor session.

pub mod acks;
pub mod body;
pub mod channel;
pub mod client;
pub mod fast_hash;
pub mod flow;
pub mod generated;
pub mod goods;
pub mod ids;
pub mod limits;
pub mod messages;
pub mod planted;
pub mod prefetch;
pub mod reliable;
pub mod slice;
pub mod transport;
pub mod units;
