//! A hint for the caches.
//!
//! Promises: changes nothing and asks nothing of the machine but memory that comes sooner.
#![expect(unsafe_code, reason = "an instruction without a safe form; it reads nothing")]

/// Bytes that come from memory at once.
const CACHE_LINE_BYTES: usize = 64;

/// Asks for the first bytes of a value that is needed soon, and does not wait for them. Whoever goes through many that are
/// scattered over more memory than the caches hold mostly waits otherwise.
#[inline]
pub fn prefetch<T: ?Sized>(value: &T, bytes_max: usize) {
    #[cfg(target_arch = "x86_64")]
    for offset in (0..size_of_val(value).min(bytes_max)).step_by(CACHE_LINE_BYTES) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let line = (&raw const *value).cast::<i8>().wrapping_add(offset);
        // SAFETY: a hint; nothing is read, and no address is a wrong one.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (value, bytes_max, CACHE_LINE_BYTES);
}
