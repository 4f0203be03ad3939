//! The executor of a pinned core: glommio where the kernel gives io_uring, else a plain one.
//!
//! Owns nothing: each backend owns its own. Promises: a shard's thread is pinned before its first instruction of ours; a
//! sleep passes through the executor once even when its time is past, so that files and timers of this core go on; no
//! file holds up a thread that ticks. Both are found by being on their thread, as is usual for executors of one thread.

mod glommio;
mod plain;

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use crate::io::Backend;

/// Runs a future on the calling thread, pinned to a core, until it is done.
///
/// Errors name what the kernel refused.
pub fn run_pinned<T>(backend: Backend, cpu: usize, name: &str, future: impl Future<Output = T>) -> Result<T, String> {
    match backend {
        Backend::Ring => glommio::run(cpu, name, future),
        Backend::Mmsg => plain::run(cpu, name, future),
    }
}

/// System calls of one pass through an executor, as strace counts them on Linux 6.18. Of glommio's eight, seven wait for
/// and submit to its three rings, and one is a memory barrier before it sleeps.
pub fn calls_per_pass(backend: Backend) -> f64 {
    match backend {
        Backend::Ring => 8.0,
        Backend::Mmsg => 1.0,
    }
}

/// Sleeps; with nothing to wait for it is one pass through the executor.
pub async fn sleep(duration: Duration) {
    match plain::is_here() {
        true => plain::sleep(duration).await,
        false => glommio::sleep(duration).await,
    }
}

/// The first sleep of a process takes up to 50 ms (glommio registers with the kernel lazily): have it before the ticks.
pub async fn warm_up() {
    sleep(Duration::from_millis(1)).await;
}

/// Runs a future beside the one that [`run_pinned`] runs, on the same thread, while that one waits.
pub fn spawn(future: impl Future<Output = ()> + 'static) {
    match plain::is_here() {
        true => plain::spawn(future),
        false => glommio::spawn(future),
    }
}

/// Removes a file. What the kernel says to that changes nothing any more.
pub async fn remove(path: &Path) {
    match plain::is_here() {
        true => plain::remove(path).await,
        false => glommio::remove(path).await,
    }
}

/// A new file that is appended to: past the page cache by io_uring, through it without.
pub enum NewFile {
    /// Past the page cache.
    Direct(glommio::DirectFile),
    /// Through it.
    Cached(plain::CachedFile),
}

/// Bytes that are ready to be written.
pub enum Filled {
    /// For a direct file.
    Direct(glommio::Filled),
    /// For a cached one.
    Cached(Vec<u8>),
}

impl NewFile {
    /// Creates it for its user alone. One that exists is an error; errors are words for the operator.
    pub async fn create(path: &Path) -> Result<NewFile, String> {
        match plain::is_here() {
            true => plain::CachedFile::create(path).await.map(NewFile::Cached),
            false => glommio::DirectFile::create(path).await.map(NewFile::Direct),
        }
    }

    /// Bytes appended and written so far.
    pub fn bytes(&self) -> u64 {
        match self {
            NewFile::Direct(file) => file.bytes(),
            NewFile::Cached(file) => file.bytes(),
        }
    }

    /// As many of `bytes` as one write takes, made ready for [`NewFile::write`]; gives how many these are.
    pub fn fill(&mut self, bytes: &[u8]) -> (Filled, usize) {
        match self {
            NewFile::Direct(file) => {
                let (filled, taken) = file.fill(bytes);
                (Filled::Direct(filled), taken)
            }
            NewFile::Cached(file) => {
                let filled = file.fill(bytes);
                let taken = filled.len();
                (Filled::Cached(filled), taken)
            }
        }
    }

    /// Writes what was filled.
    pub async fn write(&mut self, filled: Filled) -> Result<(), String> {
        match (self, filled) {
            (NewFile::Direct(file), Filled::Direct(filled)) => file.write(filled).await,
            (NewFile::Cached(file), Filled::Cached(filled)) => file.write(filled).await,
            _ => unreachable!("a file writes what it filled itself"),
        }
    }

    /// Closes it. What the kernel says to that changes nothing any more.
    pub async fn close(self) {
        match self {
            NewFile::Direct(file) => file.close().await,
            NewFile::Cached(file) => file.close().await,
        }
    }
}
