//! `ringshard-bench`: load tools and baselines; never installed with the daemon.

fn main() {}
