//! The heap of the bench, which counts.
//!
//! Owns one counter for each thread. Promises: the heap of the product, mimalloc; only what a thread asks for between
//! [`count`] and its end is counted. Never counts what another thread asks for.

#![expect(unsafe_code, reason = "a heap is an unsafe trait")]

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;

use mimalloc::MiMalloc;

thread_local! {
    static COUNTING: Cell<bool> = const { Cell::new(false) };
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

/// See the module.
pub struct CountingHeap;

/// Gives what `work` gives, and how often it asked for memory.
pub fn count<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let before = COUNT.get();
    COUNTING.set(true);
    let done = work();
    COUNTING.set(false);
    (done, COUNT.get() - before)
}

fn note() {
    if COUNTING.get() {
        COUNT.set(COUNT.get() + 1);
    }
}

// SAFETY: everything is mimalloc's own; counting is two thread-local cells without destructors, which ask for no memory.
unsafe impl GlobalAlloc for CountingHeap {
    // SAFETY: the caller keeps the rules of `GlobalAlloc`, which are mimalloc's as well.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: as above.
        unsafe { MiMalloc.alloc(layout) }
    }

    // SAFETY: as above.
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: as above.
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    // SAFETY: as above.
    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        note();
        // SAFETY: as above.
        unsafe { MiMalloc.realloc(memory, layout, bytes) }
    }

    // SAFETY: as above.
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { MiMalloc.dealloc(memory, layout) }
    }
}
