//! Where the realm of a run lies: a folder, or a disk of its own whose power can be cut.
//!
//! Owns the working folder, the image and its mount. Promises: a power cut keeps what the disk had been given at one
//! moment and nothing of what the kernel still held; the copy is thrown away and made again when the disk was written
//! meanwhile; nothing stays mounted.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ringshard::exit::{Code, Failure};
use rustix::process::geteuid;

use super::{Kind, Trouble, stopped_early};
use crate::node::{Server, Work};

/// Bytes of a disk.
const DISK_BYTES: u64 = 512 << 20;
/// Copies that may fail because the disk was written meanwhile.
const COPIES_MAX: u64 = 50;
/// Longest wait for a disk that the kernel still uses.
const UNMOUNT_MAX: Duration = Duration::from_secs(10);
/// Between two tries.
const AGAIN: Duration = Duration::from_millis(50);

/// What a power cut needs of the machine.
pub fn require() -> Result<(), Failure> {
    let lacks = |text: &str| Err(Failure::new(Code::Machine, text));
    if !geteuid().is_root() {
        return lacks("a power cut needs root, to mount a disk of its own: run it with sudo");
    }
    if !Path::new("/dev/loop-control").exists() {
        return lacks("a power cut needs loop devices, and /dev/loop-control is missing: modprobe loop");
    }
    for (tool, package) in [("mkfs.ext4", "e2fsprogs"), ("mount", "mount"), ("umount", "mount"), ("cp", "coreutils")] {
        if Command::new(tool).arg("--version").output().is_err() {
            let text = format!("a power cut needs {tool}, which is missing: apt-get install {package}");
            return Err(Failure::new(Code::Unavailable, text));
        }
    }
    Ok(())
}

/// Where the realm lies.
pub enum Place {
    /// On the disk of this machine.
    Folder(PathBuf),
    /// On a disk of its own.
    Disk(LoopDisk),
}

impl Place {
    /// Makes it in the working folder.
    pub fn make(kind: Kind, work: &Work) -> Result<Place, Failure> {
        Ok(match kind {
            Kind::Kill => Place::Folder(work.path().join("realm")),
            Kind::Power => Place::Disk(LoopDisk::make(work.path())?),
        })
    }

    /// The server's data folder.
    pub fn realm(&self) -> PathBuf {
        match self {
            Place::Folder(path) => path.clone(),
            Place::Disk(disk) => disk.mounted.join("realm"),
        }
    }

    /// How to look at the realm after the run.
    pub fn look_at(&self) -> String {
        match self {
            Place::Folder(path) => format!("the realm stays in {}", path.display()),
            Place::Disk(disk) => {
                let (image, mounted) = (disk.image.display(), disk.mounted.display());
                format!("the disk stays in {image}: mount -o loop {image} {mounted}")
            }
        }
    }

    /// Ends the server: without a warning, and without what the disk does not have. Gives the copies that were made in
    /// vain.
    pub fn end(&mut self, server: &mut Server, stopped: &AtomicBool) -> Result<u64, Trouble> {
        match self {
            Place::Folder(_) => {
                server.kill();
                Ok(0)
            }
            Place::Disk(disk) => disk.cut_power(server, stopped),
        }
    }
}

/// An ext4 file system in a file, mounted through a loop device.
pub struct LoopDisk {
    image: PathBuf,
    next: PathBuf,
    mounted: PathBuf,
    is_mounted: bool,
}

impl LoopDisk {
    fn make(folder: &Path) -> Result<LoopDisk, Failure> {
        let (image, next, mounted) = (folder.join("disk.img"), folder.join("disk.img.next"), folder.join("disk"));
        let mut disk = LoopDisk { image, next, mounted, is_mounted: false };
        std::fs::create_dir(&disk.mounted).map_err(|error| Failure::of_file("make", &disk.mounted, &error))?;
        let made = std::fs::File::create(&disk.image).and_then(|file| file.set_len(DISK_BYTES));
        made.map_err(|error| Failure::of_file("write", &disk.image, &error))?;
        // Nothing is left for the kernel to write by itself later on.
        let mut mkfs = Command::new("mkfs.ext4");
        mkfs.args(["-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0"]).arg(&disk.image);
        done(&mut mkfs, Code::Machine)?;
        disk.mount()?;
        Ok(disk)
    }

    fn mount(&mut self) -> Result<(), Failure> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "ext4", "-o", "loop,noatime"]).args([&self.image, &self.mounted]);
        done(&mut mount, Code::Machine)?;
        self.is_mounted = true;
        Ok(())
    }

    fn unmount(&mut self) -> Result<(), Failure> {
        if !self.is_mounted {
            return Ok(());
        }
        let until = Instant::now() + UNMOUNT_MAX;
        loop {
            match done(Command::new("umount").arg(&self.mounted), Code::Failed) {
                Ok(()) => {
                    self.is_mounted = false;
                    return Ok(());
                }
                Err(failure) if Instant::now() > until => return Err(failure),
                // The last file may just be closing.
                Err(_) => thread::sleep(AGAIN),
            }
        }
    }

    /// The server stands still, the disk is copied as it is, and goes on as its copy.
    fn cut_power(&mut self, server: &mut Server, stopped: &AtomicBool) -> Result<u64, Trouble> {
        let counters = self.counters_file()?;
        server.pause();
        let mut repeated = 0;
        loop {
            if stopped.load(Ordering::Relaxed) {
                return Err(stopped_early());
            }
            let before = read_counters(&counters)?;
            self.copy()?;
            if before.under_way == 0 && read_counters(&counters)? == before {
                break;
            }
            repeated += 1;
            if repeated == COPIES_MAX {
                let text = format!("the disk was written during each of {COPIES_MAX} copies");
                return Err(Failure::new(Code::Failed, text).into());
            }
            thread::sleep(AGAIN);
        }
        server.kill();
        self.unmount()?;
        let renamed = std::fs::rename(&self.next, &self.image);
        renamed.map_err(|error| Failure::of_file("replace", &self.image, &error))?;
        // Here the file system's own journal is run.
        self.mount()?;
        Ok(repeated)
    }

    fn copy(&self) -> Result<(), Failure> {
        let mut copy = Command::new("cp");
        copy.args(["--sparse=always", "--reflink=auto"]).args([&self.image, &self.next]);
        done(&mut copy, Code::Io)
    }

    /// Where the kernel counts what its loop device was given.
    fn counters_file(&self) -> Result<PathBuf, Failure> {
        let mounts = Path::new("/proc/self/mounts");
        let text = std::fs::read_to_string(mounts).map_err(|error| Failure::of_file("read", mounts, &error))?;
        let mounted = self.mounted.display().to_string();
        let device = text.lines().find_map(|line| {
            let (device, rest) = line.split_once(' ')?;
            (rest.split(' ').next()? == mounted).then(|| device.trim_start_matches("/dev/").to_owned())
        });
        let device = device.ok_or_else(|| Failure::new(Code::Failed, format!("{mounted} is no mount any more")))?;
        Ok(PathBuf::from(format!("/sys/block/{device}/stat")))
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        if let Err(failure) = self.unmount() {
            eprintln!("ringshard-bench: {} stays mounted: {failure}", self.mounted.display());
        }
        // Only there when a copy was not finished.
        let _ = std::fs::remove_file(&self.next);
    }
}

/// What a block device was given to write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Counters {
    writes: u64,
    sectors: u64,
    discards: u64,
    under_way: u64,
}

fn read_counters(path: &Path) -> Result<Counters, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| Failure::of_file("read", path, &error))?;
    counters_of(&text).ok_or_else(|| Failure::new(Code::Machine, format!("{} has no counters", path.display())))
}

/// Fields of a block device's `stat`, see Documentation/block/stat.rst of the kernel.
fn counters_of(text: &str) -> Option<Counters> {
    let numbers: Vec<u64> = text.split_whitespace().map_while(|number| number.parse().ok()).collect();
    let at = |field: usize| numbers.get(field).copied();
    // Kernels before 4.18 do not count discards.
    Some(Counters { writes: at(4)?, sectors: at(6)?, under_way: at(8)?, discards: at(11).unwrap_or(0) })
}

/// Runs a command that must succeed; else its own words say why not.
fn done(command: &mut Command, code: Code) -> Result<(), Failure> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| Failure::new(Code::Unavailable, format!("no {name}: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(code, format!("{name}: {}", words.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_those_of_writes() {
        let text = "     52        0     1040       1      300      90    8400     77        2      90      80   5   0  9  0  6  1\n";
        let counters = Counters { writes: 300, sectors: 8_400, discards: 5, under_way: 2 };
        assert_eq!(counters_of(text), Some(counters));
        assert_eq!(counters_of("1 2 3"), None);
    }
}
