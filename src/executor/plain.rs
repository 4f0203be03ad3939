//! The executor without io_uring: the futures of one thread polled in turn, a sleep of the kernel's between two passes,
//! and a helper thread for what may wait for a disk.
//!
//! Owns the spawned futures and the helper. Promises: the thread waits in its sleep alone; what the helper is given is done
//! in order. Never wakes another thread: helper and executor look for each other's words.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::future::{Future, poll_fn};
use std::io::Write;
use std::num::NonZeroU64;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use crossbeam_queue::ArrayQueue;

use crate::clock::Clock;
use crate::limits::{HELPER_POLL_MS, HELPER_WORKS_MAX, RECORD_CACHED_WRITE_BYTES};
use crate::sys;

/// Nice level of the helper: where it shares a core with a shard, that one comes first.
const HELPER_NICE: i32 = 5;
/// Longest sleep between two passes, nanoseconds: somebody may wait for the helper.
const SLEEP_NS_MAX: u64 = 20_000_000;

type Work = Box<dyn FnOnce() + Send>;
type Task = Pin<Box<dyn Future<Output = ()>>>;

struct Executor {
    clock: Clock,
    /// When the earliest sleeper of this pass wants to go on.
    wake_ns: Cell<u64>,
    tasks: RefCell<Vec<Task>>,
    works: Arc<ArrayQueue<Work>>,
}

thread_local! {
    static HERE: RefCell<Option<Rc<Executor>>> = const { RefCell::new(None) };
}

/// Whether this thread is one of this executor.
pub(super) fn is_here() -> bool {
    HERE.with_borrow(Option::is_some)
}

fn here() -> Rc<Executor> {
    HERE.with_borrow(|here| here.clone().expect("the caller asked"))
}

/// Runs a future on the calling thread, pinned to a core, until it is done.
pub(super) fn run<T>(cpu: usize, name: &str, future: impl Future<Output = T>) -> Result<T, String> {
    let failed =
        |error| format!("the executor of core {cpu} did not start: {error}; `ringshard doctor --io mmsg` says more");
    let works = Arc::new(ArrayQueue::new(HELPER_WORKS_MAX));
    let theirs = works.clone();
    let help = move || {
        // Without the right to it the helper shares the shard's core at the same priority.
        let _ = sys::keep_off(&[cpu]);
        let _ = sys::set_thread_nice(HELPER_NICE);
        work_off(&theirs);
    };
    // Before this thread is pinned: a thread begins on the cores of its parent.
    let helper = thread::Builder::new().name(format!("{name}-files")).spawn(help).map_err(failed)?;
    sys::set_thread_cpus(&[cpu]).map_err(failed)?;
    // Sleeps of ordinary threads end up to 50 us late, so that several end together.
    rustix::thread::set_current_timer_slack(NonZeroU64::new(1)).map_err(|errno| failed(errno.into()))?;
    let executor =
        Rc::new(Executor { clock: Clock::starting(0), wake_ns: Cell::new(0), tasks: RefCell::default(), works });
    HERE.set(Some(executor.clone()));
    let done = executor.run(future);
    HERE.set(None);
    // Sleepers hold the executor, which holds them.
    executor.tasks.take();
    drop(executor);
    helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    Ok(done)
}

impl Executor {
    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        let mut first = pin!(future);
        let mut context = Context::from_waker(Waker::noop());
        loop {
            self.wake_ns.set(self.clock.now_ns() + SLEEP_NS_MAX);
            if let Poll::Ready(done) = first.as_mut().poll(&mut context) {
                return done;
            }
            // Taken out: a task may spawn another.
            let mut tasks = self.tasks.take();
            tasks.retain_mut(|task| task.as_mut().poll(&mut context).is_pending());
            self.tasks.borrow_mut().append(&mut tasks);
            let left_ns = self.wake_ns.get().saturating_sub(self.clock.now_ns());
            if left_ns > 0 {
                thread::sleep(Duration::from_nanos(left_ns));
            }
        }
    }
}

/// Does what comes until nothing can come any more.
fn work_off(works: &Arc<ArrayQueue<Work>>) {
    loop {
        // Asked first: what was given before the end is done.
        let ended = Arc::strong_count(works) == 1;
        while let Some(work) = works.pop() {
            work();
        }
        if ended {
            return;
        }
        thread::sleep(Duration::from_millis(HELPER_POLL_MS));
    }
}

/// Sleeps; with nothing to wait for it is one pass.
pub(super) async fn sleep(duration: Duration) {
    let executor = here();
    let until_ns = executor.clock.now_ns() + duration.as_nanos() as u64;
    let mut passed = false;
    poll_fn(|_| {
        if std::mem::replace(&mut passed, true) && executor.clock.now_ns() >= until_ns {
            return Poll::Ready(());
        }
        executor.wake_ns.set(executor.wake_ns.get().min(until_ns));
        Poll::Pending
    })
    .await;
}

/// Runs a future beside the one that [`run`] runs.
pub(super) fn spawn(future: impl Future<Output = ()> + 'static) {
    here().tasks.borrow_mut().push(Box::pin(future));
}

/// Has the helper do what may wait for a disk.
async fn helped<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let executor = here();
    let answer = Arc::new(ArrayQueue::new(1));
    let give = answer.clone();
    let mut work: Option<Work> = Some(Box::new(move || assert!(give.push(work()).is_ok(), "it is asked once")));
    poll_fn(move |_| {
        if let Some(waiting) = work.take() {
            work = executor.works.push(waiting).err();
        }
        answer.pop().map_or(Poll::Pending, Poll::Ready)
    })
    .await
}

/// Removes a file. What the kernel says to that changes nothing any more.
pub(super) async fn remove(path: &Path) {
    let path = path.to_path_buf();
    let _ = helped(move || std::fs::remove_file(path)).await;
}

/// A new file that is appended to through the page cache.
pub struct CachedFile {
    file: Arc<File>,
    bytes: u64,
}

impl CachedFile {
    /// Creates it for its user alone. One that exists is an error; errors are words for the operator.
    pub(super) async fn create(path: &Path) -> Result<CachedFile, String> {
        let path = path.to_path_buf();
        let created = helped(move || File::options().write(true).create_new(true).mode(0o600).open(path)).await;
        let file = created.map_err(|error| format!("cannot create a file: {error}"))?;
        Ok(CachedFile { file: Arc::new(file), bytes: 0 })
    }

    /// Bytes appended and written so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// As many of `bytes` as one write takes.
    pub(super) fn fill(&self, bytes: &[u8]) -> Vec<u8> {
        bytes[..bytes.len().min(RECORD_CACHED_WRITE_BYTES)].to_vec()
    }

    /// Writes them.
    pub(super) async fn write(&mut self, bytes: Vec<u8>) -> Result<(), String> {
        self.bytes += bytes.len() as u64;
        let file = self.file.clone();
        let written = helped(move || (&*file).write_all(&bytes)).await;
        written.map_err(|error| format!("cannot write a file: {error}"))
    }

    /// Closes it.
    pub(super) async fn close(self) {
        helped(move || drop(self.file)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_here<T>(future: impl Future<Output = T>) -> T {
        let cpu = sys::cpus_allowed()[0];
        run(cpu, "test", future).unwrap()
    }

    #[test]
    fn what_is_spawned_goes_on_while_the_first_sleeps() {
        let turns = thread::spawn(|| {
            run_here(async {
                let turns = Rc::new(Cell::new(0));
                let counted = turns.clone();
                spawn(async move {
                    loop {
                        counted.set(counted.get() + 1);
                        sleep(Duration::ZERO).await;
                    }
                });
                while turns.get() < 10 {
                    sleep(Duration::ZERO).await;
                }
                assert!(is_here());
                turns.get()
            })
        });
        assert!(turns.join().unwrap() >= 10);
        assert!(!is_here());
    }

    #[test]
    fn files_are_written_by_the_helper_in_order() {
        let path = std::env::temp_dir().join(format!("ringshard-plain-{}", std::process::id()));
        let bytes: Vec<u8> = (0..3 * RECORD_CACHED_WRITE_BYTES / 2).map(|at| (at / 1_000) as u8).collect();
        let (named, wanted) = (path.clone(), bytes.clone());
        let again = thread::spawn(move || {
            run_here(async move {
                let mut file = CachedFile::create(&named).await.unwrap();
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let filled = file.fill(rest);
                    rest = &rest[filled.len()..];
                    file.write(filled).await.unwrap();
                }
                assert_eq!(file.bytes(), bytes.len() as u64);
                file.close().await;
                let again = CachedFile::create(&named).await.err();
                let read = std::fs::read(&named).unwrap();
                remove(&named).await;
                (again, read)
            })
        });
        let (again, read) = again.join().unwrap();
        assert!(read == wanted && !path.exists());
        assert!(again.is_some_and(|text| text.starts_with("cannot create a file: ")), "it was there");
    }
}
