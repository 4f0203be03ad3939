//! The executor by io_uring: glommio, and everything that is glommio's.
//!
//! Owns no state but that of files being written. Promises: files are written past the page cache, while the core goes on.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use ::glommio::io::{DmaBuffer, DmaFile, OpenOptions};
use ::glommio::{LocalExecutorBuilder, Placement, timer};

use crate::limits::{RECORD_BLOCK_BYTES, RECORD_WRITE_BYTES};

/// Bytes of registered memory for direct file I/O on this core.
const IO_MEMORY_BYTES: usize = 256 << 10;

/// Runs a future on the calling thread, pinned to a core, until it is done.
///
/// Errors name what the kernel refused.
pub(super) fn run<T>(cpu: usize, name: &str, future: impl Future<Output = T>) -> Result<T, String> {
    let executor =
        LocalExecutorBuilder::new(Placement::Fixed(cpu)).name(name).io_memory(IO_MEMORY_BYTES).make().map_err(
            |error| {
                format!("the executor of core {cpu} did not start: {error}; `ringshard doctor` says what is missing")
            },
        )?;
    Ok(executor.run(future))
}

/// Sleeps; with nothing to wait for it is one pass through the reactor.
pub(super) async fn sleep(duration: Duration) {
    timer::sleep(duration).await;
}

/// Runs a future beside the one that [`run`] runs, on the same thread, while that one waits.
pub(super) fn spawn(future: impl Future<Output = ()> + 'static) {
    ::glommio::spawn_local(future).detach();
}

/// Removes a file. What the kernel says to that changes nothing any more.
pub(super) async fn remove(path: &Path) {
    let _ = ::glommio::io::remove(path).await;
}

/// A new file that is appended to past the page cache, in whole blocks: zeroes fill the last one, and the next write
/// begins with that block again.
pub struct DirectFile {
    file: DmaFile,
    /// Where the next write begins, a multiple of the block.
    at: u64,
    /// Bytes of the block that is not full yet.
    tail: Vec<u8>,
}

impl DirectFile {
    /// Creates it for its user alone. One that exists is an error; errors are words for the operator.
    pub(super) async fn create(path: &Path) -> Result<DirectFile, String> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let file = options.dma_open(path).await.map_err(|error| format!("cannot create a file: {error}"))?;
        Ok(DirectFile { file, at: 0, tail: Vec::with_capacity(RECORD_BLOCK_BYTES) })
    }

    /// Bytes appended and written so far.
    pub(super) fn bytes(&self) -> u64 {
        self.at + self.tail.len() as u64
    }

    /// As many of `bytes` as one write takes, made ready for [`DirectFile::write`]; gives how many these are.
    pub(super) fn fill(&mut self, bytes: &[u8]) -> (Filled, usize) {
        let taken = bytes.len().min(RECORD_WRITE_BYTES - self.tail.len());
        let used = self.tail.len() + taken;
        let mut buffer = self.file.alloc_dma_buffer(used.next_multiple_of(RECORD_BLOCK_BYTES));
        let space = buffer.as_bytes_mut();
        space[..self.tail.len()].copy_from_slice(&self.tail);
        space[self.tail.len()..used].copy_from_slice(&bytes[..taken]);
        space[used..].fill(0);
        let whole = used - used % RECORD_BLOCK_BYTES;
        self.tail.clear();
        self.tail.extend_from_slice(&buffer.as_bytes()[whole..used]);
        (Filled { buffer, whole: whole as u64 }, taken)
    }

    /// Writes what was filled.
    pub(super) async fn write(&mut self, Filled { buffer, whole }: Filled) -> Result<(), String> {
        let length = buffer.len();
        let written = self.file.write_at(buffer, self.at).await;
        match written.map_err(|error| format!("cannot write a file: {error}"))? {
            written if written == length => self.at += whole,
            written => return Err(format!("the disk took {written} of {length} bytes: make room")),
        }
        Ok(())
    }

    /// Closes it. What the kernel says to that changes nothing any more.
    pub(super) async fn close(self) {
        let _ = self.file.close().await;
    }
}

/// Bytes that are ready to be written.
pub struct Filled {
    buffer: DmaBuffer,
    /// Bytes of the full blocks among them.
    whole: u64,
}
