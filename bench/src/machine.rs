//! Where and when a result was measured: what every result carries.
//!
//! Owns nothing. Promises: what cannot be found out is "unknown", never an error.

use std::process::Command;

use ringshard::clock::unix_s;
use serde::Serialize;

/// The machine, the code and the time of a result.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Provenance {
    /// Commit of the source folder, `-dirty` where it was changed since.
    pub commit: String,
    /// Release of the kernel.
    pub kernel: String,
    /// Model name of the CPU.
    pub cpu: String,
    /// Cores of the machine, however few of them this process or thread has.
    pub cores: usize,
    /// UTC, as 2026-11-21T04:14:11Z.
    pub date: String,
    /// As it was called.
    pub command_line: String,
}

impl Provenance {
    /// Of this process, now.
    pub fn here() -> Provenance {
        let git = |arguments: &[&str]| {
            let output = Command::new("git").args(["-C", env!("CARGO_MANIFEST_DIR")]).args(arguments).output().ok()?;
            output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        let dirty = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|changed| !changed.is_empty());
        let commit = git(&["rev-parse", "--short=12", "HEAD"]).map(|id| if dirty { id + "-dirty" } else { id });
        let read = |path: &str| std::fs::read_to_string(path).ok();
        let model = |text: String| {
            let line = text.lines().find(|line| line.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let unknown = || "unknown".to_owned();
        Provenance {
            commit: commit.unwrap_or_else(unknown),
            kernel: read("/proc/sys/kernel/osrelease").map_or_else(unknown, |text| text.trim().to_owned()),
            cpu: read("/proc/cpuinfo").and_then(model).unwrap_or_else(unknown),
            cores: read("/proc/cpuinfo")
                .map_or(1, |text| text.lines().filter(|line| line.starts_with("processor")).count()),
            date: utc(unix_s()),
            command_line: std::env::args().collect::<Vec<_>>().join(" "),
        }
    }
}

/// CPU time of the threads of a process that have some name, the interrupts that they carried out included: exact, where
/// the kernel's own shares of a core are samples.
///
/// Seconds; 0 where the kernel does not tell.
pub fn threads_cpu_s(pid: u32, name: &str) -> f64 {
    cpu_s(pid, |comm| comm == name)
}

/// The same of all its threads.
pub fn process_cpu_s(pid: u32) -> f64 {
    cpu_s(pid, |_| true)
}

fn cpu_s(pid: u32, wanted: impl Fn(&str) -> bool) -> f64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let spent_ns = |task: std::fs::DirEntry| {
        let read = |file: &str| std::fs::read_to_string(task.path().join(file)).ok();
        read("comm").filter(|comm| wanted(comm.trim_end()))?;
        read("schedstat")?.split_whitespace().next()?.parse::<u64>().ok()
    };
    tasks.filter_map(spent_ns).sum::<u64>() as f64 / 1e9
}

/// Seconds since 1970 as a date and time (days to civil date: Hinnant 2013).
fn utc(unix_s: u64) -> String {
    let (days, second) = (unix_s / 86_400 + 719_468, unix_s % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_civil() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_827_696), "2000-02-29T12:34:56Z");
        assert_eq!(utc(1_735_689_599), "2024-12-31T23:59:59Z");
    }
}
