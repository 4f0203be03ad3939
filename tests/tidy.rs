//! The source keeps its shape: layers, sizes, no stubs, no locks where shards run, and a code map that matches.
//!
//! The tables at the top are meant to be edited when a rule changes; everything below only reads them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// `(module path prefix, what it may use of this crate)`. The longest prefix that fits a file counts; `"*"` is
/// everything. A module may always use itself. Prefixes are paths without `crate::`.
const LAYERS: &[(&str, &[&str])] = &[
    // Base: names, bounds, how a command ends.
    ("ids", &["limits"]),
    ("limits", &[]),
    ("goods", &["ids", "limits", "net::messages"]),
    ("planted", &[]),
    ("ladder", &["limits", "net::interest"]),
    ("exit", &[]),
    ("clock", BASE),
    ("folder", &["exit"]),
    ("sys", &[]),
    // Pure: no I/O, no clock. A hint for the caches changes nothing.
    ("net", &["ids", "limits", "goods", "planted", "sys::prefetch", "world"]),
    ("world", &["ids", "limits", "goods", "planted", "net"]),
    ("mesh", &["ids", "limits", "net", "world"]),
    // Hosts' parts.
    ("keeper", &["ids", "limits", "goods", "planted", "exit", "clock", "sys", "net", "world::random"]),
    ("io", &["ids", "limits", "exit", "clock", "sys", "net"]),
    ("config", &["ids", "limits", "exit", "ladder", "io::Backend"]),
    ("preflight", &["ids", "limits", "exit", "sys", "io"]),
    ("cli", &["ids", "limits", "exit", "config", "sim", "control::admin", "io::Backend"]),
    (
        "control",
        &[
            "ids",
            "limits",
            "exit",
            "clock",
            "sys",
            "flight",
            "keeper",
            "ladder",
            "config",
            "net::session",
            "io::Backend",
            "world::land",
        ],
    ),
    // Pure but for its folder.
    ("flight", &["ids", "limits", "goods", "world", "exit"]),
    ("flight::folder", &["ids", "limits", "exit", "clock", "flight"]),
    // Writes files as well.
    ("executor", &["limits", "clock", "sys", "io::Backend"]),
    // Hosts: where everything meets.
    ("shard", &["*"]),
    ("server", &["*"]),
    ("tools", &["*"]),
    ("sim", &["*"]),
    ("main", &["*"]),
    ("lib", &["*"]),
    ("", BASE),
];
const BASE: &[&str] = &["ids", "limits", "exit", "clock", "sys"];

/// Uses that a layer allows and this forbids: `(module path prefix, path within the crate)`.
const FORBIDDEN_USES: &[(&str, &str)] = &[("net", "world::step")];

/// Files that may hold `unsafe`, besides generated ones: exact paths, or folders ending in `/`.
const UNSAFE_FILES: &[&str] = &["src/sys.rs", "src/io.rs", "src/io/", "src/world/boxes.rs", "bench/src/heap.rs"];

/// Files that may read a clock of the machine: exact paths, or folders ending in `/`.
const CLOCK_FILES: &[&str] = &[
    "src/clock.rs",
    "src/preflight.rs", // the disk's latency
    "src/control.rs",   // intervals of what people see
    "src/control/",
    "src/shard.rs", // hosts
    "src/shard/",
    "src/tools.rs",
    "src/tools/",
    "src/keeper.rs", // group commit
    "src/keeper/",
];

/// Where shards run: no lock of the standard library may stand here.
const LOCKLESS: &[&str] = &["src/world", "src/net", "src/mesh", "src/shard", "src/io"];

/// Where nothing may touch the outside world at all.
const PURE: &[&str] = &["src/world", "src/net", "src/ladder.rs", "src/flight/record.rs", "src/flight/replay.rs"];

/// Source files under src, without tests and generated code. More need a reason; beyond 80 go ledger,
/// faults and replay; beyond 100 the balance of the shards, overload and tuning.
const FILES_MAX: usize = 116;
/// Lines of one source file.
const FILE_LINES_MAX: usize = 1_000;
/// Lines of one function, signature and closing brace included.
const FUNCTION_LINES_MAX: usize = 90;

/// A source file.
struct Source {
    /// From the repository's root, as `src/net/token.rs`.
    path: String,
    text: String,
}

impl Source {
    /// Module path within the crate: `net::token` of `src/net/token.rs`.
    fn module(&self) -> String {
        let inner = self.path.trim_start_matches("src/").trim_end_matches(".rs");
        inner.replace('/', "::")
    }

    fn generated(&self) -> bool {
        self.path.ends_with("_generated.rs")
    }

    /// Lines of code with their numbers: without comments and without what follows `mod tests {`.
    fn code(&self) -> Vec<(usize, String)> {
        let lines = self.text.lines().enumerate().map(|(n, line)| (n + 1, without_comment(line)));
        lines.take_while(|(_, line)| !line.starts_with("mod tests {")).collect()
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

/// Paths within the crate that a line uses: `world::step` of `use crate::world::step::Step;`.
fn uses(line: &str) -> Vec<String> {
    let starts = line.match_indices("crate::").filter(|(at, _)| {
        let before = line[..*at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$')
    });
    let mut found = Vec::new();
    for (at, start) in starts {
        let rest = &line[at + start.len()..];
        match rest.strip_prefix('{') {
            Some(group) => found.extend(group.trim_end_matches(['}', ';']).split(',').map(|item| path_of(item.trim()))),
            None => found.push(path_of(rest)),
        }
    }
    found
}

fn path_of(text: &str) -> String {
    let path: String = text.chars().take_while(|c| c.is_alphanumeric() || matches!(c, '_' | ':')).collect();
    path.trim_end_matches(':').to_string()
}

fn under(path: &str, prefix: &str) -> bool {
    prefix.is_empty() || path == prefix || path.starts_with(&format!("{prefix}::"))
}

fn refused_use(module: &str, used: &str) -> bool {
    let fits = LAYERS.iter().filter(|(prefix, _)| under(module, prefix));
    let (prefix, allowed) = fits.max_by_key(|(prefix, _)| prefix.len()).expect("the empty prefix fits");
    let top = used.split("::").next().unwrap_or("");
    let own = !prefix.is_empty() && under(used, prefix);
    let forbidden = FORBIDDEN_USES.iter().any(|(from, path)| under(module, from) && under(used, path));
    // What starts with a capital is an item of the crate's root, and there is none.
    forbidden || !(own || top.is_empty() || allowed.iter().any(|layer| *layer == "*" || under(used, layer)))
}

#[test]
fn layers_hold() {
    let mut findings = Vec::new();
    for source in sources(&["src"]).iter().filter(|source| !source.generated() && !source.is_test()) {
        for (number, line) in source.code() {
            for used in uses(&line).into_iter().filter(|used| refused_use(&source.module(), used)) {
                findings.push(format!("{}:{number}: may not use crate::{used}", source.path));
            }
        }
    }
    none_of("uses against the layers (see LAYERS)", findings);
}

#[test]
fn the_layer_rules_know_wrong_from_right() {
    assert_eq!(uses("use crate::world::step::Step;"), ["world::step::Step"]);
    assert_eq!(uses("use crate::{ids, io::ring};"), ["ids", "io::ring"]);
    assert!(uses("let x = $crate::a;").is_empty() && uses("other_crate::a").is_empty());
    for (module, used, refused) in [
        ("world::step", "net::wire", false),
        ("world::step", "world::frame", false),
        ("world::step", "io::ring", true),
        ("world", "keeper", true),
        ("net::session", "world::frame", false),
        ("net::session", "world::step", true),
        ("net::session", "io::ring", true),
        ("keeper::rows", "world::step", true),
        ("shard", "io::ring", false),
        ("limits", "ids", true),
        ("mesh", "world::frame", false),
    ] {
        assert_eq!(refused_use(module, used), refused, "{module} uses {used}");
    }
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
fn files_are_neither_empty_nor_too_long_nor_too_many() {
    let all = sources(&["src"]);
    let files = all.iter().filter(|source| !source.is_test() && !source.generated()).count();
    assert!(files <= FILES_MAX, "{files} files under src, at most {FILES_MAX}");
    let mut findings = Vec::new();
    for source in all.iter().filter(|source| !source.generated()) {
        let lines = source.text.lines().count();
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
        found.push((start + 1, length, trimmed.chars().take(60).collect()));
    }
    found
}

#[test]
fn functions_are_short() {
    let sample = "trait A {\n    fn none();\n    pub(crate) const fn long(\n        a: u8,\n    ) -> u8 {\n        a\n    }\n}\nfn one() { 1 }\nfn short() {\n}\n";
    assert_eq!(functions(sample).iter().map(|f| (f.0, f.1)).collect::<Vec<_>>(), [(3, 5), (10, 2)]);
    let mut findings = Vec::new();
    for source in sources(&["src", "bench/src", "tests"]).iter().filter(|source| !source.generated()) {
        let long = functions(&source.text).into_iter().filter(|(_, length, _)| *length > FUNCTION_LINES_MAX);
        findings.extend(long.map(|(line, length, head)| format!("{}:{line}: {length} lines: {head}", source.path)));
    }
    none_of("functions that are too long", findings);
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

#[test]
fn only_hosts_read_a_clock_and_pure_code_does_no_io() {
    let mut findings = Vec::new();
    for source in sources(&["src"]).iter().filter(|source| !source.generated() && !source.is_test()) {
        for (number, line) in source.code() {
            let clock = line.contains("Instant::now") || has_word(&line, "SystemTime");
            let outside = [
                "std::fs",
                "std::net::UdpSocket",
                "std::net::Tcp",
                "std::thread",
                "std::env",
                "std::process",
                "println!",
            ];
            let io = source.within(PURE) && outside.iter().any(|path| line.contains(path));
            if (clock && !source.within(CLOCK_FILES)) || io {
                findings.push(format!("{}:{number}: {}", source.path, line.trim()));
            }
        }
    }
    none_of("clocks or I/O where none may be", findings);
}

#[test]
fn every_file_is_declared_by_its_head() {
    let all = sources(&["src"]);
    let mut findings = Vec::new();
    for source in all.iter().filter(|source| !["src/lib.rs", "src/main.rs"].contains(&source.path.as_str())) {
        let (folder, name) = source.path.rsplit_once('/').expect("it lies in src");
        let heads = match folder {
            "src" => vec!["src/lib.rs".to_string(), "src/main.rs".to_string()],
            _ => vec![format!("{folder}.rs")],
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
