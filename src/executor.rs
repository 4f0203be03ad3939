//! The executor of a pinned core: glommio, and everything that is glommio's.
//!
//! Owns no state. Promises: a shard's thread is pinned before its first instruction of ours; a sleep passes through the
//! reactor once even when its time is past, so that files and timers of this core go on.

use std::future::Future;
use std::time::Duration;

use glommio::{LocalExecutorBuilder, Placement, timer};

/// Bytes of registered memory for direct file I/O on this core.
const IO_MEMORY_BYTES: usize = 256 << 10;

/// Runs a future on the calling thread, pinned to a core, until it is done.
///
/// Errors name what the kernel refused.
pub fn run_pinned<T>(cpu: usize, name: &str, future: impl Future<Output = T>) -> Result<T, String> {
    let executor =
        LocalExecutorBuilder::new(Placement::Fixed(cpu)).name(name).io_memory(IO_MEMORY_BYTES).make().map_err(
            |error| {
                format!("the executor of core {cpu} did not start: {error}; `ringshard doctor` says what is missing")
            },
        )?;
    Ok(executor.run(future))
}

/// Sleeps; with nothing to wait for it is one pass through the reactor.
pub async fn sleep(duration: Duration) {
    timer::sleep(duration).await;
}

/// The first sleep of a process takes up to 50 ms (glommio registers with the kernel lazily): have it before the ticks.
pub async fn warm_up() {
    sleep(Duration::from_millis(1)).await;
}
