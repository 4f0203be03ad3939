//! The table of configuration keys: name, default, documentation, and how a value is taken and shown.
//!
//! To add a key: add a field to its section in `config.rs` and a row here. Never looks at two keys at once; the rules
//! between values stand in `config.rs`.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use super::{Config, Draft, Raw};
use crate::io::Backend;
use crate::limits::{
    NPCS_MAX, RECORD_MEGABYTES_MAX, SERVER_ADDRESSES_MAX, SESSION_BYTES_PER_S_MAX, SESSION_BYTES_PER_S_MIN, SHARDS_MAX,
    TICK_HZ,
};
use crate::realm::ladder::Step;

/// One configuration key.
pub(super) struct Key {
    /// Section, without brackets.
    pub section: &'static str,
    /// Name within the section; the unit comes last.
    pub name: &'static str,
    /// What an error says was expected.
    pub expected: &'static str,
    /// Default as TOML; empty where the key has none.
    pub default: &'static str,
    /// Example for the commented default of a key that has none.
    pub shown: &'static str,
    /// Documentation, a few lines.
    pub about: &'static str,
    /// Takes a value into the draft; `None`: it is not what was expected.
    pub set: fn(&mut Draft, &Raw) -> Option<()>,
    /// The value in force, as TOML; `None`: not set.
    pub show: fn(&Config) -> Option<String>,
}

impl Key {
    pub(super) fn path(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }
}

pub(super) const KEYS: [Key; 19] = [
    Key {
        section: "node",
        name: "shards",
        expected: "a whole number from 1 to 32",
        default: "",
        shown: "3",
        about: "Pinned cores that simulate the world and serve sessions, 1 to 32.\n\
                Left out: the cores of the machine minus one, at least 1; or as many as `cpus` names.",
        set: |draft, raw| put_some(&mut draft.shards, integer(raw, 1..=SHARDS_MAX)),
        show: |config| Some(config.node.shards.to_string()),
    },
    Key {
        section: "node",
        name: "cpus",
        expected: "a list of different CPU numbers, as \"1-3,6\" or [1, 2, 3, 6]",
        default: "",
        shown: "\"1-3\"",
        about: "CPU of each shard, in order. Left out: the highest cores, downwards.",
        set: |draft, raw| put_some(&mut draft.cpus, cpu_list(raw)),
        show: |config| Some(format!("{:?}", config.node.cpus)),
    },
    Key {
        section: "node",
        name: "data",
        expected: "a path of a folder",
        default: "\"/var/lib/ringshard\"",
        shown: "",
        about: "Folder of everything durable, of the admin socket and of the flight record. With --dev a temporary one\n\
                unless it is named.",
        set: |draft, raw| put_some(&mut draft.config.node.data, path(raw)),
        show: |config| show_path(config.node.data.as_ref()),
    },
    Key {
        section: "net",
        name: "bind",
        expected: "an address with a port, as \"127.0.0.1:7777\"",
        default: "\"127.0.0.1:7777\"",
        shown: "",
        about: "Game address: UDP, and TCP on the same port. Port 0 takes a free one, named when the node is ready.",
        set: |draft, raw| put(&mut draft.config.net.bind, address(raw)),
        show: |config| Some(format!("\"{}\"", config.net.bind)),
    },
    Key {
        section: "net",
        name: "control",
        expected: "an address with a port, as \"127.0.0.1:7780\"",
        default: "\"127.0.0.1:7780\"",
        shown: "",
        about: "Control HTTP: /status and /healthz. Port 0 takes a free one, named in DATA/node.json.",
        set: |draft, raw| put(&mut draft.config.net.control, address(raw)),
        show: |config| Some(format!("\"{}\"", config.net.control)),
    },
    Key {
        section: "net",
        name: "io",
        expected: "\"ring\" or \"mmsg\"",
        default: "\"ring\"",
        shown: "",
        about: "How packets pass between the kernel and the shards: \"ring\" by io_uring; \"mmsg\" by system calls, for containers\n\
                and kernels that deny io_uring. `ringshard doctor` says which this machine allows.",
        set: |draft, raw| put(&mut draft.config.net.io, backend(raw)),
        show: |config| Some(format!("\"{}\"", config.net.io.name())),
    },
    Key {
        section: "net",
        name: "send_hz",
        expected: "a whole number from 1 to 60",
        default: "30",
        shown: "",
        about: "Snapshots a second for each session, at most 60.",
        set: |draft, raw| put(&mut draft.config.net.send_hz, integer(raw, 1..=TICK_HZ as u32)),
        show: |config| Some(config.net.send_hz.to_string()),
    },
    Key {
        section: "net",
        name: "session_bytes_per_s",
        expected: "a whole number of bytes from 12000 to 72000",
        default: "72000",
        shown: "",
        about: "Bytes a second that each session is sent at the most, 12,000 to 72,000. A session whose packets are lost or\n\
                late gets less, down to 12,000, until they arrive again.",
        set: |draft, raw| {
            let range = SESSION_BYTES_PER_S_MIN..=SESSION_BYTES_PER_S_MAX;
            put(&mut draft.config.net.session_bytes_per_s, integer(raw, range))
        },
        show: |config| Some(config.net.session_bytes_per_s.to_string()),
    },
    Key {
        section: "net",
        name: "server_addresses",
        expected: "a list of 1 to 32 addresses with ports, as [\"203.0.113.7:7777\"]",
        default: "",
        shown: "[\"203.0.113.7:7777\"]",
        about: "Public addresses that connect tokens name, 1 to 32. Left out: the address of `bind`.",
        set: |draft, raw| put(&mut draft.config.net.server_addresses, addresses(raw)),
        show: |config| {
            let addresses = &config.net.server_addresses;
            Some(format!("{:?}", addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>()))
        },
    },
    Key {
        section: "net",
        name: "private_key_file",
        expected: "a path of a file",
        default: "",
        shown: "\"/etc/ringshard/private.key\"",
        about: "File with the private key of connect tokens: 64 hexadecimal digits (openssl rand -hex 32) or 32 bytes,\n\
                not readable by others. Required; with --dev the development key is used and this file is not read.",
        set: |draft, raw| put_some(&mut draft.config.net.private_key_file, path(raw)),
        show: |config| show_path(config.net.private_key_file.as_ref()),
    },
    Key {
        section: "world",
        name: "land_seed",
        expected: "a whole number from 0 to 9223372036854775807",
        default: "",
        shown: "1",
        about: "Seed of a new realm's land. Left out: the stored one, or the built-in one for a new realm.",
        set: |draft, raw| put_some(&mut draft.config.world.land_seed, integer(raw, 0..=u64::MAX)),
        show: |config| config.world.land_seed.map(|seed| seed.to_string()),
    },
    Key {
        section: "world",
        name: "npcs",
        expected: "a whole number from 0 to 100000",
        default: "5000",
        shown: "",
        about: "NPCs of the whole land, 0 to 100,000.",
        set: |draft, raw| put(&mut draft.config.world.npcs, integer(raw, 0..=NPCS_MAX)),
        show: |config| Some(config.world.npcs.to_string()),
    },
    Key {
        section: "world",
        name: "enter_radius_m",
        expected: "a whole number of metres from 16 to 512",
        default: "96",
        shown: "",
        about: "Distance at which an entity comes into sight, metres, 16 to 512.",
        set: |draft, raw| put(&mut draft.config.world.enter_radius_m, integer(raw, 16..=512)),
        show: |config| Some(config.world.enter_radius_m.to_string()),
    },
    Key {
        section: "world",
        name: "leave_radius_m",
        expected: "a whole number of metres from 16 to 640",
        default: "128",
        shown: "",
        about: "Distance at which an entity goes out of sight, metres, up to 640; more than enter_radius_m, so that\n\
                nothing flickers at the edge.",
        set: |draft, raw| put(&mut draft.config.world.leave_radius_m, integer(raw, 16..=640)),
        show: |config| Some(config.world.leave_radius_m.to_string()),
    },
    Key {
        section: "load",
        name: "step",
        expected: "\"auto\" or a whole number from 0 to 8",
        default: "\"auto\"",
        shown: "",
        about: "What is left out when cores do not keep up. \"auto\": each shard follows its own load. A number holds it: 0\n\
                nothing, 1 far things less often, 2 middling ones too, 3 and 4 snapshots at 30 and 20 Hz at the most, 5 to 7\n\
                wildlife acts half, a quarter, an eighth as often, 8 nobody more is admitted; each with all before it.",
        set: |draft, raw| put(&mut draft.config.load.step, ladder_step(raw)),
        show: |config| {
            let step = config.load.step.map(|step| step.number().to_string());
            Some(step.unwrap_or_else(|| "\"auto\"".to_owned()))
        },
    },
    Key {
        section: "keeper",
        name: "commit_ms",
        expected: "a whole number of milliseconds from 1 to 1000",
        default: "10",
        shown: "",
        about: "Longest time between two group commits, milliseconds, 1 to 1,000.",
        set: |draft, raw| put(&mut draft.config.keeper.commit_ms, integer(raw, 1..=1_000)),
        show: |config| Some(config.keeper.commit_ms.to_string()),
    },
    Key {
        section: "keeper",
        name: "commit_bytes",
        expected: "a whole number of bytes from 4096 to 1073741824",
        default: "4194304",
        shown: "",
        about: "Bytes of waiting rows that start a group commit early, 4 KiB to 1 GiB.",
        set: |draft, raw| put(&mut draft.config.keeper.commit_bytes, integer(raw, 4_096..=1 << 30)),
        show: |config| Some(config.keeper.commit_bytes.to_string()),
    },
    Key {
        section: "record",
        name: "flight",
        expected: "\"on\" or \"off\"",
        default: "\"on\"",
        shown: "",
        about: "Flight record: what each shard saw and did in the last minutes, for `ringshard replay`. It holds the realm's\n\
                secret: keep it as you keep the data folder.",
        set: |draft, raw| put(&mut draft.config.record.flight, switch(raw)),
        show: |config| Some(if config.record.flight { "\"on\"" } else { "\"off\"" }.to_owned()),
    },
    Key {
        section: "record",
        name: "megabytes",
        expected: "a whole number of megabytes from 16 to 65536",
        default: "256",
        shown: "",
        about: "Most megabytes of the flight record of all shards, 16 to 65,536. 1,000 players take about 32 a minute; it must\n\
                hold a minute of the shard with the most players on each shard. What is set aside comes on top, eight\n\
                times at the most.",
        set: |draft, raw| put(&mut draft.config.record.megabytes, integer(raw, 16..=RECORD_MEGABYTES_MAX)),
        show: |config| Some(config.record.megabytes.to_string()),
    },
];

/// Keys that can be set while the node runs.
pub(super) const LIVE: [&str; 3] = ["net.send_hz", "net.session_bytes_per_s", "load.step"];

/// Place of a key in the table, by `section.name`.
pub(super) fn index(path: &str) -> Option<usize> {
    KEYS.iter().position(|key| key.path() == path)
}

/// As [`index`], for the names that the source itself uses.
pub(super) fn expect(path: &str) -> usize {
    index(path).expect("the source names keys of the table")
}

pub(super) fn is_section(name: &str) -> bool {
    KEYS.iter().any(|key| key.section == name)
}

/// The sections, as an error lists them.
pub(super) fn sections() -> String {
    let mut names: Vec<String> = KEYS.iter().map(|key| format!("[{}]", key.section)).collect();
    names.dedup();
    names.join(" ")
}

/// `; did you mean …?` for a key that is not there, or nothing.
pub(super) fn did_you_mean(section: &str, name: &str) -> String {
    let nearest = KEYS.iter().min_by_key(|key| (edit_distance(key.name, name), key.section != section));
    match nearest {
        Some(key) if near(key.name, name) => format!("; did you mean {}?", key.path()),
        _ => String::new(),
    }
}

/// `; did you mean …?` for a section that is not there, or nothing.
pub(super) fn did_you_mean_section(name: &str) -> String {
    match KEYS.iter().min_by_key(|key| edit_distance(key.section, name)) {
        Some(key) if near(key.section, name) => format!("; did you mean [{}]?", key.section),
        _ => String::new(),
    }
}

fn near(word: &str, typed: &str) -> bool {
    edit_distance(word, typed) <= (word.len() / 3).max(1)
}

/// Insertions, deletions and substitutions between two words.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.chars().enumerate() {
            let substitution = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = substitution.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[row.len() - 1]
}

/// A flag's value as an error shows it.
pub(super) fn show_raw(raw: &Raw) -> String {
    match raw {
        Raw::Integer(number) => number.to_string(),
        Raw::Text(text) => format!("{text:?}"),
        Raw::List(items) => format!("[{}]", items.iter().map(show_raw).collect::<Vec<_>>().join(", ")),
        Raw::Other => "something else".to_string(),
    }
}

fn show_path(path: Option<&PathBuf>) -> Option<String> {
    path.map(|path| format!("{:?}", path.display().to_string()))
}

fn put<T>(place: &mut T, value: Option<T>) -> Option<()> {
    *place = value?;
    Some(())
}

fn put_some<T>(place: &mut Option<T>, value: Option<T>) -> Option<()> {
    *place = Some(value?);
    Some(())
}

fn integer<T: TryFrom<i64> + PartialOrd>(raw: &Raw, range: RangeInclusive<T>) -> Option<T> {
    let Raw::Integer(number) = raw else { return None };
    T::try_from(*number).ok().filter(|number| range.contains(number))
}

fn switch(raw: &Raw) -> Option<bool> {
    match raw {
        Raw::Text(text) if text == "on" => Some(true),
        Raw::Text(text) if text == "off" => Some(false),
        _ => None,
    }
}

fn backend(raw: &Raw) -> Option<Backend> {
    let Raw::Text(text) = raw else { return None };
    Backend::of_name(text)
}

fn ladder_step(raw: &Raw) -> Option<Option<Step>> {
    match raw {
        Raw::Text(text) if text == "auto" => Some(None),
        _ => integer(raw, 0..=u8::MAX).and_then(Step::new).map(Some),
    }
}

fn path(raw: &Raw) -> Option<PathBuf> {
    let Raw::Text(text) = raw else { return None };
    (!text.is_empty()).then(|| PathBuf::from(text))
}

fn address(raw: &Raw) -> Option<SocketAddr> {
    let Raw::Text(text) = raw else { return None };
    text.parse().ok()
}

fn addresses(raw: &Raw) -> Option<Vec<SocketAddr>> {
    let Raw::List(items) = raw else { return None };
    let addresses: Vec<SocketAddr> = items.iter().map(address).collect::<Option<_>>()?;
    let usable = addresses.iter().all(|address| address.port() != 0);
    ((1..=SERVER_ADDRESSES_MAX).contains(&addresses.len()) && usable).then_some(addresses)
}

/// CPU numbers from `"1-3,6"` or from an array, each once.
fn cpu_list(raw: &Raw) -> Option<Vec<usize>> {
    const CPU_MAX: usize = 1_023;
    let mut cpus = Vec::new();
    match raw {
        Raw::List(items) => {
            for item in items {
                cpus.push(integer(item, 0..=CPU_MAX)?);
            }
        }
        Raw::Text(text) => {
            for part in text.split(',') {
                let (first, last) = part.split_once('-').unwrap_or((part, part));
                let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
                if first > last || last > CPU_MAX {
                    return None;
                }
                cpus.extend(first..=last);
            }
        }
        _ => return None,
    }
    let mut different = cpus.clone();
    different.sort_unstable();
    different.dedup();
    (!cpus.is_empty() && different.len() == cpus.len()).then_some(cpus)
}
