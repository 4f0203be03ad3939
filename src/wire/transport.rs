//! netcode 1.02 over UDP, and the same bodies over a stream.
//!
//! Owns what is known of an address and of its connection: tokens, keys, sequences, deadlines. Promises: nothing is
//! allocated before an address is proven, and no reply is larger than what it answers. Never sees what a body says.

pub mod connection;
pub mod crypto;
pub mod handshake;
pub mod netcode_client;
pub mod packet;
pub mod prefix;
pub mod replay;
pub mod stream;
pub mod token;

#[cfg(test)]
mod netcode_tests;
