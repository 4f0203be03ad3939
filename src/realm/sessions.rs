//! The server's end of what clients are told and ask.

pub mod interest;
pub mod session;
