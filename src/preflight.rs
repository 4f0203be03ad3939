//! What the machine must offer, asked before anything starts: `doctor` prints it, `serve` refuses to start without it.
//!
//! Owns the checks and their advice. Promises: each finding says what was found, what is lost and the command that mends
//! it; nothing is changed on the machine. Never judges configuration; that is `config`'s.

use std::io::{self, Write};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::exit::{Code, Failure};
use crate::io::Backend;
use crate::limits::{KEEPER_FREE_BYTES_MIN, TCP_CONNECTIONS_MAX};
use crate::sys;

/// How bad a finding is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, with the loss that the finding names.
    Warn,
    /// It does not start.
    Fail,
}

/// One answer about the machine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub name: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What was found, with units.
    pub found: String,
    /// What is lost by it; empty when nothing is.
    pub lost: String,
    /// The command that mends it; empty when nothing needs mending.
    pub mend: String,
}

/// What is meant to run here.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Number of shards.
    pub shards: usize,
    /// CPUs of the shards.
    pub cpus: Vec<usize>,
    /// How packets are to pass.
    pub io: Backend,
    /// Data folder, which need not exist yet; `None`: the folder for temporary files.
    pub data: Option<PathBuf>,
}

/// Locked memory that a core's executor asks for, bytes.
const MEMLOCK_BYTES_MIN: u64 = 512 * 1_024;
/// Socket buffer that bears two ticks of a busy lane, bytes.
const SOCKET_BUFFER_BYTES: u64 = 2 * 1_024 * 1_024;
/// What one datagram takes of a receive buffer, bytes, the kernel's own share included.
pub const DATAGRAM_BUFFER_BYTES: u64 = 2_304;
/// Disk synchronisation beyond which joins and trades are felt to wait, microseconds.
const SYNC_US_MAX: u64 = 10_000;
/// Priority that shards ask for.
const SHARD_NICE: i32 = -10;

/// Looks at everything. Takes some milliseconds, mostly of the disk.
pub fn examine(plan: &Plan) -> Vec<Finding> {
    let read = |path: &str| std::fs::read_to_string(path).map(|text| text.trim().to_string()).ok();
    let disabled = read("/proc/sys/kernel/io_uring_disabled");
    let allowed = sys::cpus_allowed();
    let governors =
        plan.cpus.iter().map(|cpu| read(&format!("/sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor")));
    let mut findings = match plan.io {
        Backend::Ring => vec![
            kernel(&read("/proc/sys/kernel/osrelease").unwrap_or_default()),
            io_uring(io_uring::IoUring::new(8).map(drop), disabled.as_deref()),
            memlock(sys::memlock_bytes()),
        ],
        // Not even asked for: a sandbox may end who does.
        Backend::Mmsg => vec![finding("io_uring", Level::Ok, "not used with --io mmsg".into(), "", "")],
    };
    findings.extend([
        socket_buffer("receive buffer", "net.core.rmem_max", granted_buffer(true)),
        socket_buffer("send buffer", "net.core.wmem_max", granted_buffer(false)),
        cores(plan.shards, allowed.len()),
        cpu_list(&plan.cpus, &allowed),
        priority(std::thread::spawn(|| sys::set_thread_nice(SHARD_NICE)).join().expect("sets its nice level")),
        governor(governors.flatten().collect()),
        clocksource(&read("/sys/devices/system/clocksource/clocksource0/current_clocksource").unwrap_or_default()),
        disk_sync(plan.data.as_deref()),
        disk_room(plan.data.as_deref()),
        open_files(sys::open_files(), plan.shards),
    ]);
    findings
}

/// The failure that keeps `serve` from starting, if any: every failed finding with its mending, exit code 71.
pub fn require(findings: &[Finding]) -> Result<(), Failure> {
    let failed: Vec<String> = findings
        .iter()
        .filter(|finding| finding.level == Level::Fail)
        .map(|Finding { name, found, lost, mend, .. }| format!("{name}: {found}; {lost}; mend it with `{mend}`"))
        .collect();
    if failed.is_empty() { Ok(()) } else { Err(Failure::new(Code::Machine, failed.join("\n"))) }
}

/// The findings as a table for people, with the advice under each finding that needs some.
pub fn table(findings: &[Finding]) -> String {
    let mut text = String::new();
    for Finding { name, level, found, lost, mend } in findings {
        let word = match level {
            Level::Ok => "ok",
            Level::Warn => "WARN",
            Level::Fail => "FAIL",
        };
        text.push_str(&format!("{word:<5} {name:<15} {found}\n"));
        if *level != Level::Ok {
            text.push_str(&format!("{:21} lost: {lost}\n{:21} mend: {mend}\n", "", ""));
        }
    }
    text
}

fn finding(name: &'static str, level: Level, found: String, lost: &str, mend: &str) -> Finding {
    let (lost, mend) = if level == Level::Ok { ("", "") } else { (lost, mend) };
    Finding { name, level, found, lost: lost.to_string(), mend: mend.to_string() }
}

/// [`Level::Ok`] when `good`, else `otherwise`.
fn unless(good: bool, otherwise: Level) -> Level {
    if good { Level::Ok } else { otherwise }
}

fn kernel(release: &str) -> Finding {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let lost = "multishot receive into provided buffers is missing, and the server is built on it";
    let mend = "apt install linux-image-amd64  # Debian 12 or newer, Ubuntu 24.04 or newer; then reboot";
    finding("kernel", unless(version >= (6, 1), Level::Fail), format!("Linux {release}, needs 6.1"), lost, mend)
}

fn io_uring(ring: io::Result<()>, disabled: Option<&str>) -> Finding {
    let Err(error) = ring else { return finding("io_uring", Level::Ok, "allowed".into(), "", "") };
    let (cause, mend) = match (error.raw_os_error(), disabled) {
        (Some(libc::EPERM), Some("1" | "2")) => {
            let mend = "sysctl -w kernel.io_uring_disabled=0  # or ringshard serve --io mmsg, which goes without";
            ("switched off by the sysctl kernel.io_uring_disabled", mend)
        }
        (Some(libc::EPERM), _) => (
            "refused by a seccomp filter, as containers have by default",
            "ringshard serve --io mmsg  # goes without; or docker run --security-opt seccomp=unconfined …, or a profile \
             that allows the io_uring_* calls",
        ),
        (Some(libc::ENOSYS), _) => (
            "not in this kernel, or hidden by a sandbox",
            "ringshard serve --io mmsg  # goes without; or apt install linux-image-amd64, a kernel with CONFIG_IO_URING",
        ),
        (Some(libc::ENOMEM), _) => {
            ("too little memory may be locked", "ulimit -l unlimited  # systemd: LimitMEMLOCK=infinity")
        }
        _ => ("failed", "dmesg | tail"),
    };
    finding("io_uring", Level::Fail, format!("{cause} ({error})"), "no packet can be received or sent", mend)
}

fn memlock(bytes: u64) -> Finding {
    let found = match bytes {
        u64::MAX => "unlimited".to_string(),
        _ => format!("{} KiB, needs {} KiB", bytes / 1_024, MEMLOCK_BYTES_MIN / 1_024),
    };
    let mend = "ulimit -l 65536  # systemd: LimitMEMLOCK=64M; login shells: /etc/security/limits.d";
    finding(
        "locked memory",
        unless(bytes >= MEMLOCK_BYTES_MIN, Level::Fail),
        found,
        "the shards' executors do not start",
        mend,
    )
}

/// What a UDP socket of this process gets when it asks for [`SOCKET_BUFFER_BYTES`].
fn granted_buffer(receive: bool) -> io::Result<u64> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    sys::buffer_bytes(&socket, receive, SOCKET_BUFFER_BYTES as i32)
}

fn socket_buffer(name: &'static str, sysctl: &str, granted: io::Result<u64>) -> Finding {
    let mend = format!("sysctl -w {sysctl}={SOCKET_BUFFER_BYTES}  # to keep it: a file in /etc/sysctl.d");
    match granted {
        Ok(bytes) => {
            let rate = bytes / DATAGRAM_BUFFER_BYTES * 30;
            let found = format!("{} KiB a socket, bears {rate} datagrams a second in one lane", bytes / 1_024);
            let lost = "a burst that meets a late tick is dropped by the kernel";
            finding(name, unless(bytes >= SOCKET_BUFFER_BYTES, Level::Warn), found, lost, &mend)
        }
        Err(error) => finding(name, Level::Fail, format!("no UDP socket: {error}"), "no player can connect", &mend),
    }
}

fn cores(shards: usize, allowed: usize) -> Finding {
    let found = format!("{allowed} usable, {shards} wanted by shards");
    if shards > allowed {
        let mend = format!("ringshard serve --shards {}", allowed.max(1));
        return finding("cores", Level::Fail, found, "every shard needs a core of its own", &mend);
    }
    let lost = "keeper and control share a core with a shard, whose ticks come late by some milliseconds now and then";
    let mend = format!("ringshard serve --shards {}", shards.saturating_sub(1).max(1));
    finding("cores", unless(shards < allowed, Level::Warn), found, lost, &mend)
}

fn cpu_list(cpus: &[usize], allowed: &[usize]) -> Finding {
    let missing: Vec<usize> = cpus.iter().copied().filter(|cpu| !allowed.contains(cpu)).collect();
    if missing.is_empty() {
        return finding("cpu list", Level::Ok, format!("shards on {cpus:?}"), "", "");
    }
    let found = format!("{missing:?} not among the CPUs that this process may use, {allowed:?}");
    let list = missing.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    let mend =
        format!("taskset -c {list} true  # when that works too, start with it; systemd: CPUAffinity=, AllowedCPUs=");
    finding("cpu list", Level::Fail, found, "these shards cannot be pinned", &mend)
}

fn priority(raised: io::Result<()>) -> Finding {
    let lost = "beside a busy thread on the same core the tick edge comes late (p99 3.4 ms instead of 2.2 ms)";
    let mend = "ulimit -e 30  # systemd: LimitNICE=-10; or run with CAP_SYS_NICE";
    match raised {
        Ok(()) => finding("priority", Level::Ok, format!("nice {SHARD_NICE} allowed"), "", ""),
        Err(error) => finding("priority", Level::Warn, format!("nice {SHARD_NICE} refused: {error}"), lost, mend),
    }
}

fn governor(governors: Vec<String>) -> Finding {
    let slow = governors.iter().find(|governor| *governor != "performance");
    let found = match (slow, governors.is_empty()) {
        (Some(slow), _) => slow.clone(),
        (None, true) => "none, as on virtual machines".to_string(),
        (None, false) => "performance".to_string(),
    };
    let lost = "the clock of a core falls between ticks and rises late";
    finding("cpu governor", unless(slow.is_none(), Level::Warn), found, lost, "cpupower frequency-set -g performance")
}

fn clocksource(source: &str) -> Finding {
    const FAST: [&str; 4] = ["tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page"];
    let lost = "reading the clock is a system call, about 1 µs each";
    let mend = "echo tsc > /sys/devices/system/clocksource/clocksource0/current_clocksource  # if it is offered there";
    finding("clocksource", unless(FAST.contains(&source), Level::Warn), source.to_string(), lost, mend)
}

/// Where the data will be, as far as it is there.
pub fn data_folder(data: Option<&Path>) -> PathBuf {
    let wanted = data.map_or_else(std::env::temp_dir, Path::to_path_buf);
    wanted.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/")).to_path_buf()
}

fn disk_sync(data: Option<&Path>) -> Finding {
    let folder = data_folder(data);
    judge_disk_sync(&folder, sync_us(&folder, 20).map(|times| times[times.len() / 2]))
}

fn disk_room(data: Option<&Path>) -> Finding {
    let folder = data_folder(data);
    // A file system that does not say how full it is fails a write in time.
    judge_disk_room(&folder, sys::free_bytes(&folder).unwrap_or(u64::MAX))
}

fn judge_disk_room(folder: &Path, free_bytes: u64) -> Finding {
    let shown = folder.display();
    let found = format!("{} MiB free in {shown}", free_bytes >> 20);
    let lost = "nobody is admitted below 64 MiB, so that no write fails";
    let mend = format!("df -h {shown}  # make room, or ringshard serve --data DIR");
    finding("disk room", unless(free_bytes >= 3 * KEEPER_FREE_BYTES_MIN / 2, Level::Warn), found, lost, &mend)
}

fn judge_disk_sync(folder: &Path, p50_us: io::Result<u64>) -> Finding {
    let shown = folder.display();
    match p50_us {
        Ok(us) => {
            let found = format!("p50 {us} µs for 4 KiB in {shown}");
            let lost = "joins and trades wait that long for their durable answer";
            let mend = "ringshard serve --data DIR  # on a disk of its own, an SSD with power-loss protection";
            finding("disk sync", unless(us <= SYNC_US_MAX, Level::Warn), found, lost, mend)
        }
        Err(error) => {
            let mend = format!("chown $USER {shown}  # or ringshard serve --data DIR");
            finding("disk sync", Level::Fail, format!("{shown}: {error}"), "nothing can be saved", &mend)
        }
    }
}

/// Times of so many writes of 4 KiB, each made durable, microseconds, ascending; of fewer where they take more than two
/// seconds. Leaves no file.
pub fn sync_us(folder: &Path, writes: usize) -> io::Result<Vec<u64>> {
    let path = folder.join(format!(".ringshard-sync-{}", std::process::id()));
    let mut file = std::fs::OpenOptions::new().create_new(true).write(true).open(&path)?;
    let mut one = || {
        let start = Instant::now();
        file.write_all(&[0x52; 4_096])?;
        file.sync_all()?;
        Ok(start.elapsed().as_micros() as u64)
    };
    let began = Instant::now();
    let in_time = |written: &usize| *written == 0 || began.elapsed() < Duration::from_secs(2);
    let times: io::Result<Vec<u64>> = (0..writes).take_while(in_time).map(|_| one()).collect();
    std::fs::remove_file(&path)?;
    let mut times = times?;
    times.sort_unstable();
    Ok(times)
}

fn open_files(limit: u64, shards: usize) -> Finding {
    let wanted = (TCP_CONNECTIONS_MAX * shards + 1_024) as u64;
    let lost = format!("TCP players beyond about {} are refused", limit.saturating_sub(1_024));
    let mend = format!("ulimit -n {wanted}  # systemd: LimitNOFILE={wanted}");
    finding("open files", unless(limit >= wanted, Level::Warn), format!("{limit}, wants {wanted}"), &lost, &mend)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denied(errno: i32, disabled: Option<&str>) -> Finding {
        io_uring(Err(io::Error::from_raw_os_error(errno)), disabled)
    }

    #[test]
    fn kernels_from_6_1_on_will_do() {
        for (release, level) in [
            ("6.1.0-13-amd64", Level::Ok),
            ("6.18.44", Level::Ok),
            ("7.0", Level::Ok),
            ("5.15.0-91", Level::Fail),
            ("", Level::Fail),
        ] {
            assert_eq!(kernel(release).level, level, "{release}");
        }
    }

    #[test]
    fn a_denied_ring_names_its_cause_and_its_mending() {
        assert!(denied(libc::EPERM, Some("2")).mend.starts_with("sysctl -w kernel.io_uring_disabled=0"));
        for errno in [libc::EPERM, libc::ENOSYS] {
            assert!(denied(errno, Some("2")).mend.contains("ringshard serve --io mmsg"), "another way is named");
        }
        assert!(denied(libc::EPERM, Some("0")).found.starts_with("refused by a seccomp filter"));
        assert!(denied(libc::ENOSYS, None).mend.contains("CONFIG_IO_URING"));
        assert!(denied(libc::ENOMEM, None).mend.starts_with("ulimit -l"));
        assert_eq!(io_uring(Ok(()), None).level, Level::Ok);
    }

    #[test]
    fn more_shards_than_cores_fail_with_the_number_that_fits() {
        let finding = cores(8, 2);
        assert_eq!((finding.level, finding.mend.as_str()), (Level::Fail, "ringshard serve --shards 2"));
        assert_eq!((cores(2, 2).level, cores(1, 2).level), (Level::Warn, Level::Ok));
        let failure = require(&[finding]).unwrap_err();
        assert_eq!(failure.code, Code::Machine);
        assert!(failure.text.contains("cores: 2 usable, 8 wanted") && failure.text.contains("--shards 2"), "{failure}");
    }

    #[test]
    fn a_cpu_outside_the_mask_is_named() {
        assert_eq!(cpu_list(&[1, 2], &[0, 1, 2]).level, Level::Ok);
        let finding = cpu_list(&[1, 9], &[0, 1, 2]);
        assert!(finding.level == Level::Fail && finding.found.starts_with("[9]"), "{finding:?}");
    }

    #[test]
    fn what_is_only_slow_is_a_warning() {
        assert_eq!(priority(Err(io::Error::from_raw_os_error(libc::EACCES))).level, Level::Warn);
        assert_eq!(governor(vec!["performance".into(), "powersave".into()]).found, "powersave");
        assert_eq!((governor(vec![]).level, clocksource("tsc").level), (Level::Ok, Level::Ok));
        assert_eq!((clocksource("hpet").level, open_files(1_024, 1).level), (Level::Warn, Level::Warn));
        let buffer = socket_buffer("receive buffer", "net.core.rmem_max", Ok(212_992));
        assert!(buffer.level == Level::Warn && buffer.found.contains("bears 2760 datagrams"), "{buffer:?}");
        assert_eq!((memlock(65_536).level, memlock(u64::MAX).level), (Level::Fail, Level::Ok));
    }

    #[test]
    fn a_folder_that_does_not_exist_yet_is_judged_by_its_parent() {
        let finding = disk_sync(Some(&std::env::temp_dir().join("no/such/folder")));
        assert_ne!(finding.level, Level::Fail, "{finding:?}");
        assert_eq!(judge_disk_sync(Path::new("/d"), Ok(SYNC_US_MAX + 1)).level, Level::Warn);
        let denied = judge_disk_sync(Path::new("/d"), Err(io::Error::from(io::ErrorKind::PermissionDenied)));
        assert_eq!(denied.level, Level::Fail);
    }

    #[test]
    fn the_table_advises_only_where_something_is_lost() {
        let text = table(&[kernel("6.1"), memlock(0)]);
        assert_eq!(text.lines().count(), 4, "{text}");
        assert!(text.starts_with("ok    kernel"), "{text}");
        assert!(text.contains("FAIL  locked memory") && text.contains("mend: ulimit -l"), "{text}");
    }
}
