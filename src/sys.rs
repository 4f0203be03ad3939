//! What the standard library lacks: the few kernel calls of start-up (limits, priority, CPU sets, forced buffer sizes), and what
//! the heaps say of themselves.
//!
//! Promises: safe functions over plain integers. Never touches packets; the rings are in `io`.
#![expect(unsafe_code, reason = "system calls; each block says why it is sound")]

use std::io;
use std::os::fd::AsRawFd;

/// Soft limit of locked memory, bytes; `u64::MAX` is unlimited.
pub fn memlock_bytes() -> u64 {
    soft_limit(libc::RLIMIT_MEMLOCK)
}

/// Soft limit of open files.
pub fn open_files() -> u64 {
    soft_limit(libc::RLIMIT_NOFILE)
}

/// Raises the soft limit of open files to the hard one; without the right to it nothing changes.
pub fn raise_open_files() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a live, writable rlimit, and nothing keeps the pointer after the call.
    let read = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    assert_eq!(read, 0, "getrlimit of a known resource cannot fail");
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is a live rlimit, and nothing keeps the pointer after the call.
    let _ = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) };
}

fn soft_limit(resource: libc::__rlimit_resource_t) -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a live, writable rlimit, and nothing keeps the pointer after the call.
    let result = unsafe { libc::getrlimit(resource, &mut limit) };
    assert_eq!(result, 0, "getrlimit of a known resource cannot fail");
    limit.rlim_cur
}

/// Sets the nice level of the calling thread. Raising the priority (a lower level) may be refused.
pub fn set_thread_nice(level: i32) -> io::Result<()> {
    // SAFETY: takes no pointers. On Linux process id 0 with PRIO_PROCESS means the calling thread.
    let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, level) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets timers of the calling thread be late by this much at the most, so that the kernel may let several expire together.
pub fn set_timer_slack_ns(slack_ns: u64) -> io::Result<()> {
    // SAFETY: takes no pointers.
    let result = unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, slack_ns as libc::c_ulong, 0, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The kernel's sched_attr, first version.
#[repr(C)]
struct SchedulerAttributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime_ns: u64,
    deadline_ns: u64,
    period_ns: u64,
}

/// Asks for short slices at a nice level on the calling thread: it then waits less for a CPU that another thread uses.
/// Kernels before 6.12 take the nice level alone; raising the priority may be refused.
pub fn set_thread_slice(nice: i32, slice_ns: u64) -> io::Result<()> {
    let size = size_of::<SchedulerAttributes>() as u32;
    let attributes = SchedulerAttributes {
        size,
        policy: libc::SCHED_OTHER as u32,
        flags: 0,
        nice,
        priority: 0,
        runtime_ns: slice_ns,
        deadline_ns: 0,
        period_ns: 0,
    };
    // SAFETY: `attributes` is live, says its own size, and is only read. Thread id 0 is the calling thread.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Restricts the calling thread, and the threads that it starts from now on, to these CPUs.
pub fn set_thread_cpus(cpus: &[usize]) -> io::Result<()> {
    // SAFETY: cpu_set_t is plain bits; all zeroes is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for &cpu in cpus.iter().filter(|&&cpu| cpu < libc::CPU_SETSIZE as usize) {
        // SAFETY: `cpu` is below CPU_SETSIZE, so the bit lies within the set.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    // SAFETY: `set` is live, of the size given, and only read. Thread id 0 is the calling thread.
    let result = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Keeps the calling thread, and those that it starts, away from the shards: off their CPUs where another is left, at a
/// lower priority where none is. Threads of the keeper and of control call this first.
pub fn keep_off(shard_cpus: &[usize]) -> io::Result<()> {
    let others: Vec<usize> = cpus_allowed().into_iter().filter(|cpu| !shard_cpus.contains(cpu)).collect();
    if others.is_empty() { set_thread_nice(5) } else { set_thread_cpus(&others) }
}

/// CPUs that the calling thread may use, ascending.
pub fn cpus_allowed() -> Vec<usize> {
    core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|core| core.id).collect()
}

/// Asks for `bytes` of receive (or send) buffer on a socket, past the sysctl where the process may, and gives what a
/// datagram queue of this process really gets, bytes.
pub fn buffer_bytes(socket: &impl AsRawFd, receive: bool, bytes: i32) -> io::Result<u64> {
    let (forced, plain) = match receive {
        true => (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF),
        false => (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF),
    };
    let descriptor = socket.as_raw_fd();
    let size = size_of::<i32>() as libc::socklen_t;
    let set = |option| {
        // SAFETY: the option's value is one live i32, of the size given, and only read.
        unsafe { libc::setsockopt(descriptor, libc::SOL_SOCKET, option, (&raw const bytes).cast(), size) }
    };
    if set(forced) != 0 && set(plain) != 0 {
        return Err(io::Error::last_os_error());
    }
    let (mut got, mut got_size) = (0_i32, size);
    // SAFETY: `got` and `got_size` are live and writable, and `got_size` holds the size of `got`.
    let result = unsafe { libc::getsockopt(descriptor, libc::SOL_SOCKET, plain, (&raw mut got).cast(), &mut got_size) };
    if result == 0 { Ok(got.unsigned_abs().into()) } else { Err(io::Error::last_os_error()) }
}

/// Bytes that this user may still write on the file system of a path.
pub fn free_bytes(path: &std::path::Path) -> io::Result<u64> {
    let system = rustix::fs::statvfs(path)?;
    Ok(system.f_bavail.saturating_mul(system.f_frsize))
}

/// Memory of this process in RAM, bytes; 0 where /proc is missing.
pub fn rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("");
    line.trim().trim_end_matches("kB").trim().parse::<u64>().map_or(0, |kib| kib * 1_024)
}

/// Memory that the heap of Rust, mimalloc, has from the kernel now, bytes.
pub fn heap_bytes() -> u64 {
    let mut numbers = [0_usize; 8];
    let [elapsed, user, system, rss, rss_peak, commit, commit_peak, faults] = &mut numbers;
    // SAFETY: all eight are live and writable, and nothing keeps the pointers after the call.
    unsafe {
        libmimalloc_sys::mi_process_info(elapsed, user, system, rss, rss_peak, commit, commit_peak, faults);
    }
    *commit as u64
}

/// Memory that the heap of C, RocksDB's, has from the kernel now, bytes.
pub fn c_heap_bytes() -> u64 {
    // SAFETY: it takes nothing and gives a plain value.
    let info = unsafe { libc::mallinfo2() };
    (info.arena + info.hblkhd) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_can_be_narrowed_to_one_cpu() {
        std::thread::spawn(|| {
            let last = *cpus_allowed().last().expect("a thread runs somewhere");
            set_thread_cpus(&[last]).unwrap();
            assert_eq!(cpus_allowed(), [last]);
            keep_off(&[last]).unwrap();
            assert_eq!(cpus_allowed(), [last], "where none is left only the priority changes");
            assert!(set_thread_cpus(&[]).is_err());
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_thread_takes_shorter_slices() {
        std::thread::spawn(|| set_thread_slice(0, 300_000)).join().unwrap().unwrap();
    }

    #[test]
    fn a_socket_tells_the_buffer_that_it_got() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(buffer_bytes(&socket, true, 65_536).unwrap() >= 65_536);
        assert!(buffer_bytes(&socket, false, 65_536).unwrap() >= 65_536);
        assert!(open_files() > 0 && memlock_bytes() > 0);
    }
}
