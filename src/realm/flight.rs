//! The flight record without its files: what stands in it, and doing it again.

pub mod record;
pub mod replay;
