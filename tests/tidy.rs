//! The source keeps its shape: layers, sizes, no stubs, no locks where shards run, and a code map that matches.
//!
//! The tables at the top are meant to be edited when a rule changes; everything below only reads them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// `(module path prefix, what it may use of this crate)`. The longest prefix that fits a file counts; `"*"` is
/// everything. A module may always use itself. Prefixes are paths without `crate::`.
const LAYERS: &[(&str, &[&str])] = &[
    // Base: bounds, bugs made by hand, how a command ends.
    ("limits", &[]),
    ("planted", &[]),
    ("exit", &[]),
    ("clock", BASE),
    ("folder", &["exit"]),
    ("sys", &[]),
    // Pure: no I/O, no clock. A hint for the caches changes nothing.
    ("wire", &["limits", "planted"]),
    ("wire::units", &["limits"]),
    ("wire::ids", &["limits", "wire::units"]),
    ("wire::goods", &["limits", "wire::ids", "wire::generated"]),
    ("wire::transport", &["limits"]),
    ("world", &["limits", "planted", "wire"]),
    ("realm", &["limits", "planted", "wire", "world"]),
    ("realm::sessions", SESSIONS_USE),
    ("realm::ladder", &["limits", "realm::sessions::interest"]),
    ("realm::keeper", &["limits", "planted", "wire", "world::random"]),
    ("realm::flight", &["limits", "wire", "world"]),
    ("realm::bots", &["limits", "wire", "world"]),
    ("realm::report", &["wire::ids", "realm::ladder", "realm::sessions::session"]),
    // Hosts' parts.
    ("rocks", &["limits", "planted", "sys", "wire", "world::random", "realm::keeper"]),
    ("io", &["limits", "exit", "clock", "sys", "wire"]),
    ("config", &["wire::ids", "limits", "exit", "realm::ladder", "io::Backend"]),
    ("preflight", &["wire::ids", "limits", "exit", "sys", "io"]),
    ("cli", &["wire::ids", "limits", "exit", "config", "realm::sim", "control::admin", "io::Backend"]),
    (
        "control",
        &[
            "wire::ids",
            "limits",
            "exit",
            "clock",
            "sys",
            "flight",
            "realm::keeper",
            "rocks",
            "realm::ladder",
            "realm::report",
            "config",
            "realm::sessions::session",
            "io::Backend",
            "world::land",
        ],
    ),
    ("flight", &["limits", "exit", "clock", "realm::flight"]),
    // Writes files as well.
    ("executor", &["limits", "clock", "sys", "io::Backend"]),
    // Hosts: where everything meets.
    ("shard", &["*"]),
    ("server", &["*"]),
    ("tools", &["*"]),
    ("main", &["*"]),
    ("lib", &["*"]),
    ("", BASE),
];
const BASE: &[&str] = &["wire::ids", "limits", "exit", "clock", "sys"];

/// Of the world, sessions read what frames show and write what enters a parcel. They never step one: neither `World` nor a
/// module of rules is here.
const SESSIONS_USE: &[&str] = &[
    "limits",
    "planted",
    "wire",
    "world::boxes",
    "world::effect",
    "world::events",
    "world::frame",
    "world::movement",
    "world::parcel",
];

/// Files that may hold `unsafe`, besides generated ones: exact paths, or folders ending in `/`.
const UNSAFE_FILES: &[&str] =
    &["src/sys.rs", "src/wire/prefetch.rs", "src/io.rs", "src/io/", "src/world/boxes.rs", "bench/src/heap.rs"];

/// Files that may read a clock of the machine: exact paths, or folders ending in `/`.
const CLOCK_FILES: &[&str] = &[
    "src/clock.rs",
    "src/preflight.rs", // the disk's latency
    "src/control.rs",   // intervals of what people see
    "src/control/",
    "src/tools.rs",
    "src/tools/",
    "src/rocks/writer.rs", // group commit
    "src/rocks.rs",        // how long a stall lasts
];

/// Where shards run: no lock of the standard library may stand here.
const LOCKLESS: &[&str] = &["src/wire", "src/world", "src/realm", "src/shard", "src/io"];

/// Where nothing may touch the outside world at all, and no clock is read.
const PURE: &[&str] = &["src/wire", "src/world", "src/realm"];

/// The outside world, as paths of the standard library. The hosts are no dependency of the pure crates.
const OUTSIDE: &[&str] = &[
    "std::env",
    "std::fs",
    "std::io",
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::net::UdpSocket",
    "std::os",
    "std::process",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
];
/// The outside world, as macros and crates.
const OUTSIDE_WORDS: &[&str] =
    &["println", "eprintln", "libc", "rustix", "socket2", "tokio", "glommio", "io_uring", "rocksdb"];

/// Names that end in `_MAX` outside `limits.rs`, by folder or file: sizes of a form on the wire or on disk, thresholds of a
/// measure, tries, and what only tools and the simulator have. A queue or table of a running node is not among them.
const MAXIMA_ELSEWHERE: &[(&str, &[&str])] = &[
    ("src/wire/channel.rs", &["FRAGMENTS_PER_BODY_MAX", "FRAGMENTS_SENT_MAX"]),
    ("src/wire/messages.rs", &["VERSION_BYTES_MAX"]),
    ("src/wire/transport/packet.rs", &["HEAD_BYTES_MAX", "OVERHEAD_BYTES_MAX", "CONTROL_BYTES_MAX"]),
    ("src/wire/transport/handshake.rs", &["REPLY_BYTES_MAX"]),
    ("src/wire/slice.rs", &["SLOT_BYTES_MAX"]),
    ("src/realm/sessions/interest.rs", &["MISSES_MAX", "WAIT_TICKS_MAX"]),
    ("src/wire/transport/token.rs", &["TOKEN_SERVERS_MAX"]),
    ("src/wire/flow.rs", &["LOSS_PERCENT_MAX", "DELAY_TICKS_MAX"]),
    ("src/realm/sessions/session.rs", &["BUDGET_MAX"]),
    ("src/preflight.rs", &["SYNC_US_MAX"]),
    ("src/config/keys.rs", &["CPU_MAX"]),
    ("src/world/boxes.rs", &["AXIS_MAX"]),
    ("src/world/movement.rs", &["FALL_MAX"]),
    ("src/wire/units.rs", &["SPEED_MAX"]),
    ("src/world/slices.rs", &["STEADY_MAX"]),
    ("src/realm/ladder.rs", &["BUSY_PERCENT_MAX", "LATE_PERCENT_MAX", "CALM_PERCENT_MAX", "CALM_WINDOWS_MAX"]),
    ("src/shard/waits.rs", &["SPIN_NS_MAX"]),
    ("src/executor/plain.rs", &["SLEEP_NS_MAX"]),
    ("src/server.rs", &["PORT_TRIES_MAX"]),
    ("src/flight/folder.rs", &["SEGMENT_BYTES_MAX"]),
    ("src/realm/keeper/memory.rs", &["LOG_RECORDS_MAX"]),
    ("src/io/ring.rs", &["FLUSH_TRIES_MAX"]),
    ("src/io/sockets.rs", &["ADDRESS_BYTES_MAX"]),
    ("src/tools/seeds.rs", &["RUNS_TOLD_MAX"]),
    ("src/realm/sim.rs", &["STALL_TICKS_MAX"]),
    ("src/realm/sim/", &["LATE_TICKS_MAX", "TEXTS_MAX", "ANSWER_TICKS_MAX", "QUEUE_MAX", "TICKS_AHEAD_MAX"]),
    ("src/realm/bots/", &["PENDING_MAX", "TOLD_MAX"]),
];

/// Source files of one folder, without tests and generated code.
const FOLDER_FILES_MAX: usize = 20;
/// Lines of one source file, without tests at its end.
const FILE_LINES_MAX: usize = 900;
/// Lines of one function, signature and closing brace included.
const FUNCTION_LINES_MAX: usize = 70;
/// Functions that are longer: where, which, and the lines that each may have.
const FUNCTIONS_LONGER: &[(&str, &str, usize)] = &[
    ("src/realm/keeper/ledger.rs", "compile", 89), // one match over all kinds of orders
    ("src/realm/sim/model.rs", "plan", 87),        // the same a second time
    ("src/server.rs", "start", 73),                // the order in which a node begins
    ("bench/src/pps/backends.rs", "run", 73),
    ("bench/src/pps/edge.rs", "run", 72),
    ("src/rocks/tests.rs", "what_is_cut_or_altered_anywhere_is_refused_and_left_as_it_is", 85),
];
/// Lines in a row, of those that say something, that may stand in two files.
const SAME_LINES_MAX: usize = 11;
/// Public names that no product code uses, and why they are there.
const UNUSED_PUBLIC: &[(&str, &str)] = &[
    ("CYCLE_TICKS_MIN", "what the ladder promises in its head; its tests hold it to that"),
    ("messages_of_a_newer_client", "for the tests of other crates, by the feature `test-support`"),
];

/// A source file.
struct Source {
    /// From the repository's root, as `src/wire/transport/token.rs`.
    path: String,
    text: String,
}

impl Source {
    /// Module path from `src`: `wire::slice` of `src/wire/slice.rs`, whichever crate that belongs to.
    fn module(&self) -> String {
        let inner = self.path.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/lib");
        shown_by_all(&inner.replace('/', "::"))
    }

    fn generated(&self) -> bool {
        self.path.ends_with("_generated.rs")
    }

    /// Lines of code with their numbers: without comments and without what follows `mod tests {`.
    fn code(&self) -> Vec<(usize, String)> {
        let lines = self.text.lines().enumerate().map(|(n, line)| (n + 1, without_comment(line)));
        lines.take_while(|(_, line)| !line.starts_with("mod tests {")).collect()
    }

    /// The same as one text; a line's number is its place in it.
    fn code_text(&self) -> String {
        self.code().into_iter().map(|(_, line)| line + "\n").collect()
    }

    fn is_test(&self) -> bool {
        self.path.ends_with("tests.rs") || self.path.starts_with("tests/") || self.path.contains("/tests/")
    }

    fn within(&self, places: &[&str]) -> bool {
        places.iter().any(|place| {
            self.path == *place
                || (place.ends_with('/') && self.path.starts_with(place))
                || self.path == format!("{place}.rs")
                || (!place.ends_with(".rs") && self.path.starts_with(&format!("{}/", place.trim_end_matches('/'))))
        })
    }
}

/// Why a line's bound belongs into `limits.rs`, if it does.
fn bound_elsewhere(source: &Source, line: &str) -> Option<String> {
    let listed =
        |name: &str| MAXIMA_ELSEWHERE.iter().any(|(place, names)| source.within(&[place]) && names.contains(&name));
    let constant = line.trim_start().split(':').next().and_then(|head| head.rsplit_once("const "));
    if let Some((_, name)) = constant.filter(|(_, name)| name.ends_with("_MAX") && !listed(name)) {
        return Some(format!("{name} is not in MAXIMA_ELSEWHERE"));
    }
    // One answer to one question is no queue.
    let sized = ["ArrayQueue::new(", "sync_channel("].iter().find_map(|made| line.split_once(made));
    let size = sized.map(|(_, rest)| rest.split(')').next().unwrap_or(""));
    size.filter(|size| size.parse::<u32>().is_ok_and(|size| size > 1)).map(|size| format!("a queue of {size}"))
}

#[test]
fn bounds_are_named_in_limits() {
    let mut findings = Vec::new();
    let all = sources(&["src"]);
    let code =
        all.iter().filter(|source| !source.is_test() && !source.generated() && source.path != "src/wire/limits.rs");
    for source in code {
        let found =
            source.code().into_iter().filter_map(|(number, line)| Some((number, bound_elsewhere(source, &line)?)));
        findings.extend(found.map(|(number, why)| format!("{}:{number}: {why}", source.path)));
    }
    none_of("bounds outside src/wire/limits.rs", findings);
    let source = |path: &str| Source { path: path.to_owned(), text: String::new() };
    let keeper = source("src/rocks.rs");
    assert!(bound_elsewhere(&keeper, "pub(super) const ROWS_HELD_MAX: usize = 9;").is_some());
    assert!(bound_elsewhere(&keeper, "    let (a, b) = sync_channel(64);").is_some());
    assert!(bound_elsewhere(&keeper, "    let (a, b) = sync_channel(1);").is_none());
    assert!(bound_elsewhere(&source("src/realm/ladder.rs"), "const BUSY_PERCENT_MAX: u64 = 85;").is_none());
}

/// A line with its strings emptied and its `//` comment cut off.
fn without_comment(line: &str) -> String {
    let mut kept = String::new();
    let mut quoted = false;
    let mut characters = line.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '\\' if quoted => {
                characters.next();
            }
            '\'' if !quoted && characters.peek() == Some(&'"') => {
                characters.next();
                kept.push('\'');
            }
            '"' => {
                quoted = !quoted;
                kept.push('"');
            }
            '/' if !quoted && characters.peek() == Some(&'/') => break,
            _ if quoted => {}
            _ => kept.push(c),
        }
    }
    kept
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn collect(folder: &Path, into: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.expect("a folder can be listed").path();
        if path.is_dir() {
            collect(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

fn sources(folders: &[&str]) -> Vec<Source> {
    let mut paths = Vec::new();
    for folder in folders {
        collect(&root().join(folder), &mut paths);
    }
    paths.sort();
    let read = |path: PathBuf| Source {
        text: std::fs::read_to_string(&path).expect("a source file is text"),
        path: path.strip_prefix(root()).expect("it lies in the repository").display().to_string(),
    };
    paths.into_iter().map(read).collect()
}

/// Fails with all findings at once.
fn none_of(what: &str, findings: Vec<String>) {
    assert!(findings.is_empty(), "{what}:\n  {}", findings.join("\n  "));
}

/// The crates under `src`, and what they show of those below them at their roots.
const CRATES: &[(&str, &[&str])] = &[("wire", &[]), ("world", &["wire"]), ("realm", &["wire", "world"])];

/// Of a path from `src`: bounds and bugs made by hand stand at the root of every crate.
fn shown_by_all(path: &str) -> String {
    let inner = CRATES.iter().find_map(|(name, _)| path.strip_prefix(&format!("{name}::")));
    let is_common = |inner: &&str| ["limits", "planted"].iter().any(|common| under(inner, common));
    inner.filter(is_common).unwrap_or(path).to_string()
}

/// What a path behind `crate::` in a module names, from `src`.
fn from_root(module: &str, path: &str) -> String {
    let Some((name, shown)) = CRATES.iter().find(|(name, _)| under(module, name)) else { return path.to_string() };
    // What no crate below has is named as if it were there: a use against the layers.
    let elsewhere = CRATES.iter().any(|(other, _)| other != name && under(path, other));
    let below = shown.iter().any(|below| under(path, below));
    if below || elsewhere { path.to_string() } else { shown_by_all(&format!("{name}::{path}")) }
}

/// Paths that code in a module names by `crate::`, `super::`, `self::` or `std::`, groups taken apart, each with the line
/// where it begins. Those of this crate are from its root, `world::frame::Frame`.
fn uses(module: &str, code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for word in ["crate", "self", "super", "std"] {
        for (at, _) in code.match_indices(&format!("{word}::")) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '_' | '$' | ':')) {
                continue;
            }
            let here = inline_module(module, &code[..at]);
            let base = match word {
                "self" => &here,
                "super" => parent(&here),
                "std" => "std",
                _ => "",
            };
            let mut paths = Vec::new();
            take_tree(&code[at + word.len() + 2..], base, &mut paths);
            let line = code[..at].matches('\n').count() + 1;
            let resolve = |path: String| if word == "crate" { from_root(module, &path) } else { shown_by_all(&path) };
            found.extend(paths.into_iter().map(|path| (line, resolve(path))));
        }
    }
    found
}

/// The module at the end of some code of a file: the file's own, or one that is written out in it.
fn inline_module(module: &str, before: &str) -> String {
    let mut inner = None;
    for line in before.lines() {
        let name = line.trim_start_matches("pub ").strip_prefix("mod ").and_then(|rest| rest.strip_suffix(" {"));
        inner = if line == "}" { None } else { name.or(inner) };
    }
    inner.map_or(module.to_string(), |name| format!("{module}::{name}"))
}

/// Reads what may follow `use` behind `base`, and returns what comes after it.
fn take_tree<'a>(code: &'a str, base: &str, paths: &mut Vec<String>) -> &'a str {
    let code = code.trim_start();
    if let Some(mut rest) = code.strip_prefix('{') {
        loop {
            rest = rest.trim_start().trim_start_matches(',').trim_start();
            match rest.strip_prefix('}') {
                Some(rest) => return rest,
                None if rest.is_empty() => return rest,
                None => rest = take_tree(rest, base, paths),
            }
        }
    }
    let end = code.find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '*'))).unwrap_or(code.len());
    let (name, rest) = code.split_at(end);
    let path = match name {
        "self" => base.to_string(),
        "super" => parent(base).to_string(),
        _ if base.is_empty() => name.to_string(),
        _ => format!("{base}::{name}"),
    };
    let goes_on = |c: char| c.is_alphanumeric() || matches!(c, '_' | '{' | '*');
    match rest.strip_prefix("::") {
        Some(deeper) if deeper.starts_with(goes_on) => take_tree(deeper, &path, paths),
        _ => {
            paths.push(path);
            // Up to the end of `as NAME`; something else than a separator ends a group as well.
            &rest[rest.find([',', '}']).unwrap_or(rest.len())..]
        }
    }
}

fn parent(module: &str) -> &str {
    module.rsplit_once("::").map_or("", |(parent, _)| parent)
}

fn under(path: &str, prefix: &str) -> bool {
    prefix.is_empty() || path == prefix || path.starts_with(&format!("{prefix}::"))
}

fn may_use(module: &str, used: &str) -> bool {
    let fits = LAYERS.iter().filter(|(prefix, _)| under(module, prefix));
    let (prefix, allowed) = fits.max_by_key(|(prefix, _)| prefix.len()).expect("the empty prefix fits");
    let top = used.split("::").next().unwrap_or("");
    let own = !prefix.is_empty() && under(used, prefix);
    own || top.is_empty() || top == "std" || allowed.iter().any(|layer| *layer == "*" || under(used, layer))
}

/// What a source uses against the layers, with the lines.
fn refused_uses(source: &Source) -> Vec<(usize, String)> {
    let module = source.module();
    uses(&module, &source.code_text()).into_iter().filter(|(_, used)| !may_use(&module, used)).collect()
}

#[test]
fn layers_hold() {
    let mut findings = Vec::new();
    for source in sources(&["src"]).iter().filter(|source| !source.generated() && !source.is_test()) {
        let refused = refused_uses(source).into_iter();
        findings.extend(refused.map(|(line, used)| format!("{}:{line}: may not use crate::{used}", source.path)));
    }
    none_of("uses against the layers (see LAYERS)", findings);
}

#[test]
fn the_layer_rules_know_wrong_from_right() {
    for (module, used, allowed) in [
        ("world::player", "wire::generated", true),
        ("world::player", "world::frame", true),
        ("world::player", "io::ring", false),
        ("world", "realm::keeper", false),
        ("realm::sessions::session", "world::frame::Frame", true),
        ("realm::sessions::session", "world::World", false),
        ("realm::sessions::session", "world::World::begin", false),
        ("realm::sessions::session", "world::player", false),
        ("realm::sessions::session", "io::ring", false),
        ("realm::keeper::desk", "world::random", true),
        ("realm::keeper::desk", "world::World", false),
        ("shard", "io::ring", true),
        ("limits", "wire::ids", false),
        ("realm::mesh", "world::frame", true),
        ("wire::acks", "world::frame", false),
    ] {
        assert_eq!(may_use(module, used), allowed, "{module} uses {used}");
    }
}

#[test]
fn a_forbidden_use_is_found_however_it_is_written() {
    for text in [
        "use crate::world::World;",
        "use crate::{limits, world::World};",
        "use crate::{\n    limits::{self, LANES},\n    world::{\n        World as Land,\n    },\n};",
        "use super::super::world::World;",
        "use super::super::{limits, world::World};",
        "use self::super::super::world::World;",
        "fn step(world: &mut crate::world::World) {}",
        "fn step() { super::super::world::World::begin() }",
        "pub mod inner {\n    use super::super::super::world::World;\n}\nuse super::acks::Acks;",
    ] {
        let source = Source { path: "src/wire/sample.rs".into(), text: text.into() };
        let found = refused_uses(&source);
        assert_eq!(found.len(), 1, "{text}: {found:?}");
        assert!(found[0].1.starts_with("world::World"), "{found:?}");
    }
    for text in [
        "use crate::limits::{LANES, TICK_HZ};",
        "use super::{acks::Acks, *};",
        "// use crate::world::World;",
        "let text = \"crate::world::World\";",
        "fn f() { $crate::world::World; other_crate::world::World; }",
        "use crate::wire::ids::X;\nmod tests {\n    use crate::world::World;\n}",
    ] {
        let source = Source { path: "src/wire/sample.rs".into(), text: text.into() };
        assert!(refused_uses(&source).is_empty(), "{text}");
    }
}

/// Whether a path of the tables names a module, or something that its file mentions.
fn is_there(path: &str) -> bool {
    let file = |module: &str| {
        let path = module.replace("::", "/");
        let places = [format!("src/{path}.rs"), format!("src/{path}/lib.rs"), format!("src/wire/{path}.rs")];
        places.iter().find_map(|place| std::fs::read_to_string(root().join(place)).ok())
    };
    let name = path.rsplit("::").next().unwrap_or(path);
    ["*", "", "std"].contains(&path)
        || path.starts_with("std::")
        || file(path).is_some()
        || file(parent(path)).is_some_and(|text| text.lines().any(|line| has_word(&without_comment(line), name)))
}

#[test]
fn the_tables_name_only_what_is_there() {
    assert!(is_there("world::frame") && is_there("world::World") && is_there("io::Backend"));
    assert!(!is_there("world::step") && !is_there("work::frame"));
    let layers = LAYERS.iter().flat_map(|(prefix, allowed)| allowed.iter().chain([prefix]));
    let paths = layers.chain(OUTSIDE).filter(|path| !is_there(path)).map(|path| path.to_string());
    let places = UNSAFE_FILES.iter().chain(CLOCK_FILES).chain(LOCKLESS).chain(PURE);
    let missing = places
        .filter(|place| sources(&["src", "bench/src"]).iter().all(|source| !source.within(&[*place])))
        .map(|place| place.to_string());
    none_of("not there any more, and so not checked", paths.chain(missing).collect());
}

#[test]
fn no_stubs_and_nothing_left_over() {
    let words = ["todo!", "unimplemented!", "#[ignore", "dbg!"]
        .map(|word| format!("{word}{}", if word.ends_with('!') { "(" } else { "" }));
    let mut findings = Vec::new();
    for source in sources(&["src", "bench/src", "tests", "bench/tests"]).iter().filter(|source| !source.generated()) {
        for (number, line) in source.text.lines().enumerate() {
            let line = without_comment(line);
            for word in words.iter().filter(|word| line.contains(word.as_str())) {
                findings.push(format!("{}:{}: {word}", source.path, number + 1));
            }
            let reasonless = line.contains("#[allow(") || line.contains("#![allow(");
            if reasonless && !source.text.lines().skip(number).take(5).any(|line| line.contains("reason =")) {
                findings.push(format!("{}:{}: allow without a reason", source.path, number + 1));
            }
        }
    }
    none_of("stubs or leftovers", findings);
}

#[test]
fn files_are_neither_empty_nor_too_long_nor_too_many_in_a_folder() {
    let all = sources(&["src"]);
    let mut findings = Vec::new();
    for source in all.iter().filter(|source| !source.generated()) {
        let lines = source.code().len();
        if source.text.trim().is_empty() || source.code().iter().all(|(_, line)| line.trim().is_empty()) {
            findings.push(format!("{}: has no code", source.path));
        }
        if lines > FILE_LINES_MAX {
            findings.push(format!("{}: {lines} lines, at most {FILE_LINES_MAX}", source.path));
        }
        if !source.is_test() && !source.text.starts_with("//!") {
            findings.push(format!("{}: does not begin with `//!` and what it owns", source.path));
        }
    }
    none_of("files", findings);
    none_of("folders", crowded_folders(&all, FOLDER_FILES_MAX));
    assert!(!crowded_folders(&all, 1).is_empty());
}

/// Folders with more files than this.
fn crowded_folders(all: &[Source], most: usize) -> Vec<String> {
    let mut files: BTreeMap<&str, usize> = BTreeMap::new();
    for source in all.iter().filter(|source| !source.is_test() && !source.generated()) {
        *files.entry(source.path.rsplit_once('/').map_or("", |(folder, _)| folder)).or_default() += 1;
    }
    files.retain(|_, count| *count > most);
    files.into_iter().map(|(folder, count)| format!("{folder} holds {count} files")).collect()
}

/// Functions with their first line and length, by the indentation that rustfmt gives.
fn functions(text: &str) -> Vec<(usize, usize, String)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let trimmed = line.trim_start();
        let words: Vec<&str> = trimmed.split_whitespace().take_while(|word| *word != "fn").collect();
        let qualifiers = words.iter().all(|word| {
            word.starts_with("pub")
                || ["const", "async", "unsafe", "extern", "\"C\"", "in"].contains(word)
                || word.ends_with(')')
        });
        let is_function = trimmed.split_whitespace().nth(words.len()) == Some("fn") && qualifiers;
        // A body on the same line, or none as in a trait, has no length to speak of.
        let head_end = lines[start..].iter().find(|line| line.trim_end().ends_with(['{', '}', ';']));
        if !is_function || !head_end.is_some_and(|line| line.trim_end().ends_with('{')) {
            continue;
        }
        let closing = format!("{}}}", &line[..line.len() - trimmed.len()]);
        let length = lines[start..].iter().position(|line| *line == closing).map_or(1, |at| at + 1);
        found.push((start + 1, length, trimmed.chars().take(100).collect()));
    }
    found
}

#[test]
fn functions_are_short() {
    let sample = "trait A {\n    fn none();\n    pub(crate) const fn long(\n        a: u8,\n    ) -> u8 {\n        a\n    }\n}\nfn one() { 1 }\nfn short() {\n}\n";
    assert_eq!(functions(sample).iter().map(|f| (f.0, f.1)).collect::<Vec<_>>(), [(3, 5), (10, 2)]);
    let longer = "fn long() {\n".to_string() + &"    x();\n".repeat(FUNCTION_LINES_MAX - 1) + "}\n";
    assert_eq!(too_long(&Source { path: "src/x.rs".into(), text: longer }).len(), 1);
    let all = sources(&["src", "bench/src", "tests"]);
    let findings = all.iter().filter(|source| !source.generated()).flat_map(too_long).collect();
    none_of("functions that are too long", findings);
}

fn too_long(source: &Source) -> Vec<String> {
    let bound = |head: &str| {
        let named =
            |(path, name, _): &&(&str, &str, usize)| *path == source.path && head.contains(&format!("fn {name}("));
        FUNCTIONS_LONGER.iter().find(named).map_or(FUNCTION_LINES_MAX, |(_, _, lines)| *lines)
    };
    let long = functions(&source.text).into_iter().filter(|(_, length, head)| *length > bound(head));
    long.map(|(line, length, head)| format!("{}:{line}: {length} lines: {head}", source.path)).collect()
}

fn has_word(line: &str, word: &str) -> bool {
    line.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|part| part == word)
}

#[test]
fn unsafe_stands_only_where_it_is_named_and_says_why() {
    let mut findings = Vec::new();
    for source in sources(&["src", "bench/src"]).iter().filter(|source| !source.generated()) {
        let lines: Vec<&str> = source.text.lines().collect();
        let with_unsafe = |&number: &usize| has_word(&without_comment(lines[number]), "unsafe");
        for number in (0..lines.len()).filter(with_unsafe) {
            if source.path.starts_with("src/") && !source.within(UNSAFE_FILES) {
                findings.push(format!("{}:{}: unsafe outside of UNSAFE_FILES", source.path, number + 1));
            }
            let said = lines[number.saturating_sub(6)..=number]
                .iter()
                .any(|line| line.contains("SAFETY:") || line.contains("# Safety"));
            if !said {
                findings.push(format!("{}:{}: unsafe without a SAFETY line", source.path, number + 1));
            }
        }
    }
    none_of("unsafe", findings);
}

#[test]
fn no_lock_stands_where_shards_run() {
    let mut findings = Vec::new();
    for source in sources(&["src"]).iter().filter(|source| source.within(LOCKLESS) && !source.is_test()) {
        for (number, line) in source.code() {
            if ["Mutex", "RwLock", "Condvar"].iter().any(|word| has_word(&line, word)) {
                findings.push(format!("{}:{number}: {}", source.path, line.trim()));
            }
        }
    }
    none_of("locks on the shards' side", findings);
}

/// Where a source reads a clock or does I/O and may not.
fn outside_uses(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    let pure = source.within(PURE);
    for (number, line) in source.code() {
        let clock = line.contains("Instant::now") || has_word(&line, "SystemTime");
        let word = pure && OUTSIDE_WORDS.iter().any(|word| has_word(&line, word));
        if (clock && !source.within(CLOCK_FILES)) || word {
            found.push(format!("{}:{number}: {}", source.path, line.trim()));
        }
    }
    if pure {
        let outside = |used: &str| OUTSIDE.iter().any(|path| under(used, path));
        let paths = uses(&source.module(), &source.code_text()).into_iter().filter(|(_, used)| outside(used));
        found.extend(paths.map(|(line, used)| format!("{}:{line}: uses {used}", source.path)));
    }
    found
}

#[test]
fn only_hosts_read_a_clock_and_pure_code_does_no_io() {
    let sample = |path: &str, text: &str| outside_uses(&Source { path: path.into(), text: text.into() }).len();
    for path in ["src/realm/core.rs", "src/realm/keeper/ledger/log.rs", "src/world/npc.rs", "src/realm/keeper/desk.rs"]
    {
        for text in [
            "use std::fs::File;",
            "use std::{collections::BTreeMap, time::{Duration, Instant}};",
            "println!();",
            "libc::getpid();",
        ] {
            assert_eq!(sample(path, text), 1, "{path}: {text}");
        }
        for text in ["use std::time::Duration;", "use crate::wire::prefetch::prefetch;", "use std::net::SocketAddr;"] {
            assert_eq!(sample(path, text), 0, "{path}: {text}");
        }
    }
    assert_eq!(sample("src/realm/sim.rs", "let now = Instant::now();"), 1);
    assert_eq!(sample("src/rocks/writer.rs", "let now = Instant::now();"), 0);
    let all = sources(&["src"]);
    let code = all.iter().filter(|source| !source.generated() && !source.is_test());
    none_of("clocks or I/O where none may be", code.flat_map(outside_uses).collect());
}

/// Places where more than [`SAME_LINES_MAX`] lines in a row stand in a second file as well. Lines without a word, comments,
/// attributes and what is brought into scope do not count.
fn same_lines(all: &[Source]) -> Vec<String> {
    let says_something = |line: &&(usize, &str)| {
        let quiet = ["//", "#", "use ", "pub use ", "mod ", "pub mod "];
        line.1.contains(char::is_alphanumeric) && !quiet.iter().any(|start| line.1.starts_with(start))
    };
    let mut first: HashMap<Vec<&str>, (&str, usize)> = HashMap::new();
    let mut found = BTreeMap::new();
    for source in all {
        let lines = source.text.lines().take(source.code().len()).map(str::trim);
        let numbered: Vec<(usize, &str)> = lines.enumerate().map(|(at, line)| (at + 1, line)).collect();
        let kept: Vec<(usize, &str)> = numbered.iter().filter(says_something).copied().collect();
        for window in kept.windows(SAME_LINES_MAX + 1) {
            let here = (source.path.as_str(), window[0].0);
            let there = *first.entry(window.iter().map(|line| line.1).collect()).or_insert(here);
            if there.0 != here.0 {
                found.entry((there.0, here.0)).or_insert(format!("{}:{} and {}:{}", there.0, there.1, here.0, here.1));
            }
        }
    }
    found.into_values().collect()
}

#[test]
fn nothing_is_written_twice() {
    let lines = |count: usize| (0..count).map(|n| format!("    one({n});\n\n    // why\n")).collect::<String>();
    let sample =
        |path: &str, count| Source { path: path.into(), text: format!("fn {}() {{\n{}}}\n", path.len(), lines(count)) };
    let long = [sample("a.rs", SAME_LINES_MAX + 1), sample("bb.rs", SAME_LINES_MAX + 1)];
    assert_eq!(same_lines(&long), ["a.rs:2 and bb.rs:2"]);
    assert_eq!(same_lines(&[sample("a.rs", SAME_LINES_MAX), sample("bb.rs", SAME_LINES_MAX)]), [""; 0]);
    assert_eq!(same_lines(&long[..1]), [""; 0]);
    let mut all = sources(&["src", "bench/src"]);
    all.retain(|source| !source.generated() && !source.is_test());
    none_of("the same lines in two files", same_lines(&all));
}

/// Public items of src whose name stands nowhere else in product code. Use by tests alone does not count, and what is built
/// for them alone needs none.
fn unused_public(all: &[Source]) -> Vec<String> {
    let mut counts: HashMap<String, usize> = HashMap::new();
    let mut items = Vec::new();
    for source in all {
        let mut for_tests = false;
        for (number, line) in source.code() {
            for word in line.split(|c: char| !(c.is_alphanumeric() || c == '_')) {
                *counts.entry(word.to_string()).or_default() += 1;
            }
            let counted = source.path.starts_with("src/") && !for_tests;
            items.extend(public_item(&line).filter(|_| counted).map(|name| (source, number, name)));
            for_tests = line.trim() == "#[cfg(test)]" || (for_tests && line.trim().starts_with("#["));
        }
    }
    let unused = |name: &str| counts[name] == 1 && !UNUSED_PUBLIC.iter().any(|(known, _)| *known == name);
    let found = items.into_iter().filter(|(_, _, name)| unused(name));
    found.map(|(source, number, name)| format!("{}:{number}: {name}", source.path)).collect()
}

/// Name of the public item that a line begins to define.
fn public_item(line: &str) -> Option<String> {
    let rest = line.trim_start().strip_prefix("pub")?;
    let rest = rest.strip_prefix('(').map_or(Some(rest), |scope| scope.split_once(')').map(|(_, rest)| rest))?;
    let mut words = rest.split_whitespace().filter(|word| !["async", "unsafe"].contains(word));
    let name = match words.next()? {
        "const" => words.next().filter(|word| *word != "fn").or_else(|| words.next())?,
        "fn" | "struct" | "enum" | "trait" | "static" | "type" => words.next()?,
        _ => return None,
    };
    Some(name.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect())
}

#[test]
fn every_public_item_is_used() {
    let source = |path: &str, text: &str| Source { path: path.into(), text: text.into() };
    let text = "pub const A: u8 = 1;\npub const fn b() {}\npub(crate) struct C;\npub async fn d<T>() {}\npub use e::F;\n#[cfg(test)]\n#[x]\npub fn g() {}\n";
    let sample = [source("src/x.rs", text), source("src/y.rs", "mod tests {\n    A; b(); C; d();\n}\n")];
    assert_eq!(unused_public(&sample), ["src/x.rs:1: A", "src/x.rs:2: b", "src/x.rs:3: C", "src/x.rs:4: d"]);
    let used = [source("src/x.rs", text), source("bench/src/y.rs", "use x::{A, b, C, d};\n")];
    assert_eq!(unused_public(&used), [""; 0]);
    let mut all = sources(&["src", "bench/src", "bench/benches"]);
    all.retain(|source| !source.generated() && !source.is_test());
    none_of("public, and used by nothing but tests (remove it, or say why in UNUSED_PUBLIC)", unused_public(&all));
}

#[test]
fn every_file_is_declared_by_its_head() {
    let all = sources(&["src"]);
    let mut findings = Vec::new();
    for source in all.iter().filter(|source| source.path != "src/main.rs" && !source.path.ends_with("/lib.rs")) {
        let (folder, name) = source.path.rsplit_once('/').expect("it lies in src");
        let heads = match folder {
            "src" => vec!["src/lib.rs".to_string(), "src/main.rs".to_string()],
            _ => vec![format!("{folder}.rs"), format!("{folder}/lib.rs")],
        };
        let declaration = format!("mod {};", name.trim_end_matches(".rs"));
        let declared = |head: &Source| {
            heads.contains(&head.path) && head.text.lines().any(|line| line.trim().ends_with(&declaration))
        };
        if name == "mod.rs" {
            findings.push(format!("{}: a folder's head is FOLDER.rs beside it", source.path));
        } else if !all.iter().any(declared) {
            findings.push(format!("{}: no `{declaration}` in {}", source.path, heads.join(" or ")));
        }
    }
    none_of("files that nothing declares", findings);
}

#[test]
fn the_code_map_names_every_file_and_no_other() {
    // The map comes with the first version that runs; from then on it must match.
    let Ok(map) = std::fs::read_to_string(root().join("src/ARCHITECTURE.md")) else { return };
    let sources = sources(&["src"]).into_iter().filter(|source| !source.is_test());
    let files: BTreeSet<String> = sources.map(|s| s.path["src/".len()..].to_string()).collect();
    let words = map.split(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '/' | '.' | '-')));
    let named: BTreeSet<String> = words
        .filter(|word| word.ends_with(".rs"))
        .map(|word| word.trim_start_matches("src/").to_string())
        .filter(|word| !word.starts_with("bench/") && !word.starts_with("tests/"))
        .collect();
    let missing = files.difference(&named).map(|file| format!("{file}: not in the map"));
    let ghosts = named.difference(&files).map(|file| format!("{file}: in the map, but not there"));
    none_of("src/ARCHITECTURE.md and src differ", missing.chain(ghosts).collect());
}
