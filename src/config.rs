//! The configuration of a node: defaults, then a TOML file, then flags.
//!
//! Owns the keys (`config/keys.rs` is the table), their documentation and every rule between them. Promises: a
//! [`Config`] is valid and never changes; all errors come at once, each with its place, what was expected and what stood
//! there. Never looks at the machine: the allowed CPUs are an argument, and whether they suffice is `preflight`'s.

mod keys;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::exit::{Code, Failure};
use crate::io::Backend;
use crate::limits::SHARDS_MAX;
use crate::realm::ladder::Step;
use keys::{KEYS, Key};

/// The file that is read where no `--config` names another.
pub const DEFAULT_FILE: &str = "/etc/ringshard/ringshard.toml";

/// A valid configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `--dev`: loopback only, development key, temporary data unless a folder is named.
    pub dev: bool,
    /// `[node]`
    pub node: NodeConfig,
    /// `[net]`
    pub net: NetConfig,
    /// `[world]`
    pub world: WorldConfig,
    /// `[load]`
    pub load: LoadConfig,
    /// `[keeper]`
    pub keeper: KeeperConfig,
    /// `[record]`
    pub record: RecordConfig,
    /// Where each value came from, in the order of the keys.
    origins: Vec<Origin>,
}

/// `[node]`: the process and its machine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeConfig {
    /// Number of shards, 1 to [`SHARDS_MAX`].
    pub shards: usize,
    /// CPU of each shard, in the order of the shards; shorter than `shards` only where the machine has fewer cores.
    pub cpus: Vec<usize>,
    /// Data folder; `None` is a temporary folder, only with `--dev`.
    pub data: Option<PathBuf>,
}

/// `[net]`: addresses, rates and keys.
#[derive(Clone, Debug, PartialEq)]
pub struct NetConfig {
    /// Game UDP and TCP.
    pub bind: SocketAddr,
    /// Control HTTP.
    pub control: SocketAddr,
    /// How packets pass between the kernel and the shards.
    pub io: Backend,
    /// Snapshots a second for each session, at most one each tick.
    pub send_hz: u32,
    /// Bytes a second that each session is sent at the most.
    pub session_bytes_per_s: u32,
    /// Addresses that connect tokens name; `bind` where the file names none.
    pub server_addresses: Vec<SocketAddr>,
    /// File of the 32-byte private key of connect tokens; with `--dev` not read.
    pub private_key_file: Option<PathBuf>,
}

/// `[world]`: what is simulated and how far one sees.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WorldConfig {
    /// Seed of the land; `None`: the seed stored in the data folder, or the built-in one for a new realm.
    pub land_seed: Option<u64>,
    /// NPCs of the whole land.
    pub npcs: u32,
    /// Distance at which an entity comes into sight, metres.
    pub enter_radius_m: u32,
    /// Distance at which an entity goes out of sight, metres; larger than `enter_radius_m`.
    pub leave_radius_m: u32,
}

/// `[load]`: what is left out when cores do not keep up.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoadConfig {
    /// Step on which the ladder of every shard is held; `None`: each follows its own load.
    pub step: Option<Step>,
}

/// `[keeper]`: group commit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KeeperConfig {
    /// Longest time between two group commits, milliseconds.
    pub commit_ms: u32,
    /// Bytes of waiting rows that start a group commit early.
    pub commit_bytes: usize,
}

/// `[record]`: the flight record.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RecordConfig {
    /// Whether there is one.
    pub flight: bool,
    /// Most megabytes of it, all shards together.
    pub megabytes: u32,
}

/// One key of a running node.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Tunable {
    /// `section.name`.
    pub key: String,
    /// Its value as TOML; none: not set.
    pub value: Option<String>,
    /// Where the value came from.
    pub origin: String,
    /// It can be set while the node runs.
    pub live: bool,
}

/// A value as a file or a flag gives it, before its key judges it.
#[derive(Clone, Debug, PartialEq)]
pub enum Raw {
    /// A whole number.
    Integer(i64),
    /// A string.
    Text(String),
    /// An array.
    List(Vec<Raw>),
    /// Anything that no key takes.
    Other,
}

/// A value from the command line; wins over the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Flag {
    /// The key that it sets, `section.name`.
    pub key: &'static str,
    /// How the flag is spelt, with its dashes.
    pub name: &'static str,
    /// What it is set to.
    pub value: Raw,
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq)]
enum Origin {
    Default,
    File { place: String, offset: usize },
    Flag { name: &'static str },
    Tuned { by: String },
}

impl Origin {
    /// As an error names it, before the key.
    fn place(&self) -> String {
        match self {
            Origin::Default | Origin::Tuned { .. } => String::new(),
            Origin::File { place, .. } => format!("{place}: "),
            Origin::Flag { name } => format!("{name}: "),
        }
    }

    /// Where its errors stand among all errors: as in the file, then the rest.
    fn order(&self) -> usize {
        match self {
            Origin::File { offset, .. } => *offset,
            _ => usize::MAX,
        }
    }
}

/// A configuration that is being read.
struct Draft {
    config: Config,
    shards: Option<usize>,
    cpus: Option<Vec<usize>>,
    /// Each with its order.
    errors: Vec<(usize, String)>,
}

/// Reads the configuration of a node. Without `file`, [`DEFAULT_FILE`] is read where it exists and `dev` is off.
/// `cpus_allowed` are the CPUs that this process may use, ascending. All errors come at once, exit code 78.
pub fn load(file: Option<&Path>, flags: &[Flag], dev: bool, cpus_allowed: &[usize]) -> Result<Config, Failure> {
    let standard = Path::new(DEFAULT_FILE);
    let file = file.or_else(|| (!dev && standard.exists()).then_some(standard));
    let Some(path) = file else { return parse(None, flags, dev, cpus_allowed) };
    let text = std::fs::read_to_string(path).map_err(|error| {
        let path = path.display();
        let text = format!(
            "{path}: expected a readable TOML file, found: {error}; `ringshard default-config > {path}` writes one"
        );
        Failure::new(Code::Config, text)
    })?;
    parse(Some((&path.display().to_string(), &text)), flags, dev, cpus_allowed)
}

/// As [`load`], from a text with its name.
pub fn parse(file: Option<(&str, &str)>, flags: &[Flag], dev: bool, cpus_allowed: &[usize]) -> Result<Config, Failure> {
    let mut draft = Draft::with_defaults(dev);
    if let Some((name, text)) = file {
        draft.read_file(name, text);
    }
    for flag in flags {
        let index = keys::index(flag.key).expect("a flag names a key of the table");
        draft.set(index, &flag.value, &keys::show_raw(&flag.value), Origin::Flag { name: flag.name });
    }
    draft.resolve(cpus_allowed);
    draft.check();
    if draft.errors.is_empty() {
        return Ok(draft.config);
    }
    draft.errors.sort_by_key(|(order, _)| *order);
    let lines: Vec<String> = draft.errors.into_iter().map(|(_, text)| text).collect();
    Err(Failure::new(Code::Config, lines.join("\n")))
}

impl Draft {
    fn with_defaults(dev: bool) -> Draft {
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let net = NetConfig {
            bind: nowhere,
            control: nowhere,
            io: Backend::Ring,
            send_hz: 0,
            session_bytes_per_s: 0,
            server_addresses: Vec::new(),
            private_key_file: None,
        };
        let config = Config {
            dev,
            node: NodeConfig::default(),
            net,
            world: WorldConfig::default(),
            load: LoadConfig::default(),
            keeper: KeeperConfig::default(),
            record: RecordConfig::default(),
            origins: vec![Origin::Default; KEYS.len()],
        };
        let mut draft = Draft { config, shards: None, cpus: None, errors: Vec::new() };
        for (index, key) in KEYS.iter().enumerate().filter(|(_, key)| !key.default.is_empty()) {
            let value = DeValue::parse(key.default).expect("defaults are TOML");
            draft.set(index, &Raw::of_toml(value.get_ref()), key.default, Origin::Default);
        }
        assert!(draft.errors.is_empty(), "a default is wrong: {:?}", draft.errors);
        draft
    }

    fn set(&mut self, index: usize, value: &Raw, stood: &str, origin: Origin) {
        let key = &KEYS[index];
        match (key.set)(self, value) {
            Some(()) => self.config.origins[index] = origin,
            None => {
                let text = format!("{}{}: expected {}, found {stood}", origin.place(), key.path(), key.expected);
                self.errors.push((origin.order(), text));
            }
        }
    }

    fn read_file(&mut self, name: &str, text: &str) {
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            let offset = error.span().map_or(0, |span| span.start);
            let text = format!("{}: expected TOML, found: {}", place(name, text, offset), error.message());
            self.errors.push((offset, text));
        }
        for (section, value) in table.get_ref() {
            let offset = section.span().start;
            let section = section.get_ref().as_ref();
            let found = match value.get_ref().as_table() {
                Some(table) if keys::is_section(section) => {
                    self.read_section(name, text, section, table);
                    continue;
                }
                Some(_) => format!("found [{section}]{}", keys::did_you_mean_section(section)),
                None => format!("found a key outside of them{}", keys::did_you_mean("", section)),
            };
            let place = place(name, text, offset);
            self.errors.push((offset, format!("{place}: {section}: expected one of {}, {found}", keys::sections())));
        }
    }

    fn read_section(&mut self, name: &str, text: &str, section: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            let path = format!("{section}.{}", key.get_ref());
            if let Some(index) = keys::index(&path) {
                let offset = value.span().start;
                let origin = Origin::File { place: place(name, text, offset), offset };
                self.set(index, &Raw::of_toml(value.get_ref()), &snippet(text, value), origin);
                continue;
            }
            let offset = key.span().start;
            let hint = keys::did_you_mean(section, key.get_ref());
            let text = format!(
                "{}: {path}: expected a key of [{section}], found no such key{hint}",
                place(name, text, offset)
            );
            self.errors.push((offset, text));
        }
    }

    /// Fills in what one value takes from another.
    fn resolve(&mut self, cpus_allowed: &[usize]) {
        let node = &mut self.config.node;
        let named = self.cpus.as_ref().map(Vec::len);
        node.shards =
            self.shards.or(named).unwrap_or_else(|| cpus_allowed.len().saturating_sub(1).clamp(1, SHARDS_MAX));
        // The highest cores: interrupts and everything else of the system like the lowest.
        node.cpus = match &self.cpus {
            Some(cpus) => cpus.clone(),
            None => cpus_allowed.iter().rev().copied().take(node.shards).collect(),
        };
        if self.config.dev && self.config.origins[keys::expect("node.data")] == Origin::Default {
            self.config.node.data = None;
        }
        if self.config.net.server_addresses.is_empty() {
            self.config.net.server_addresses = vec![self.config.net.bind];
        }
    }

    /// The rules between values.
    fn check(&mut self) {
        let Config { dev, node, net, world, .. } = self.config.clone();
        if self.cpus.is_some() && node.cpus.len() != node.shards {
            let found = format!("{} CPUs for {} shards", node.cpus.len(), node.shards);
            self.contradiction("node.cpus", "as many CPUs as node.shards", &found);
        }
        if node.shards > SHARDS_MAX {
            self.contradiction("node.cpus", &format!("at most {SHARDS_MAX} CPUs"), &node.shards.to_string());
        }
        if world.leave_radius_m <= world.enter_radius_m {
            let found = format!("{} with enter_radius_m = {}", world.leave_radius_m, world.enter_radius_m);
            self.contradiction("world.leave_radius_m", "more than world.enter_radius_m", &found);
        }
        let either_any = net.bind.ip().is_unspecified() || net.control.ip().is_unspecified();
        if net.bind.port() != 0
            && net.bind.port() == net.control.port()
            && (either_any || net.bind.ip() == net.control.ip())
        {
            let found = format!("{} beside net.bind = {}", net.control, net.bind);
            self.contradiction("net.control", "another port than that of net.bind", &found);
        }
        for address in net.server_addresses.iter().filter(|address| address.ip().is_unspecified()) {
            let expected = "addresses that clients can reach (set it when net.bind names every interface)";
            self.contradiction("net.server_addresses", expected, &address.to_string());
        }
        for (key, address) in [("net.bind", net.bind), ("net.control", net.control)] {
            if dev && !address.ip().is_loopback() {
                let expected = "a loopback address with --dev, whose key everybody knows (drop --dev to serve others)";
                self.contradiction(key, expected, &address.to_string());
            }
        }
        if !dev && net.private_key_file.is_none() {
            let expected = "a file with the 32-byte key of connect tokens (`openssl rand -hex 32 > FILE`), or --dev";
            self.contradiction("net.private_key_file", expected, "nothing");
        }
    }

    fn contradiction(&mut self, path: &str, expected: &str, found: &str) {
        let origin = &self.config.origins[keys::expect(path)];
        let text = format!("{}{path}: expected {expected}, found {found}", origin.place());
        self.errors.push((origin.order(), text));
    }
}

impl Raw {
    fn of_toml(value: &DeValue<'_>) -> Raw {
        match value {
            DeValue::Integer(integer) => {
                i64::from_str_radix(integer.as_str(), integer.radix()).map_or(Raw::Other, Raw::Integer)
            }
            DeValue::String(text) => Raw::Text(text.to_string()),
            DeValue::Array(items) => Raw::List(items.iter().map(|item| Raw::of_toml(item.get_ref())).collect()),
            _ => Raw::Other,
        }
    }
}

impl Config {
    /// Sets a key of a running node from words, by the rules of the file; gives the values before and after. What is
    /// refused changes nothing and is told with what is allowed.
    pub fn tune(&mut self, path: &str, words: &str, by: &str) -> Result<(String, String), String> {
        let live = keys::LIVE.join(", ");
        let Some(index) = keys::index(path) else {
            let (section, name) = path.split_once('.').unwrap_or(("", path));
            return Err(format!("there is no key {path}{}; live keys are {live}", keys::did_you_mean(section, name)));
        };
        if !keys::LIVE.contains(&path) {
            let text =
                format!("{path} is read at start alone: set it in the file and start again; live keys are {live}");
            return Err(text);
        }
        // Bare words are text, so that nobody has to quote quotes.
        let raw =
            DeValue::parse(words).map_or_else(|_| Raw::Text(words.to_owned()), |value| Raw::of_toml(value.get_ref()));
        let mut draft = Draft { config: self.clone(), shards: None, cpus: None, errors: Vec::new() };
        draft.set(index, &raw, words, Origin::Tuned { by: by.to_owned() });
        draft.check();
        if let Some((_, error)) = draft.errors.pop() {
            return Err(error);
        }
        let show = |config: &Config| (KEYS[index].show)(config).expect("a live key has a value");
        let change = (show(self), show(&draft.config));
        *self = draft.config;
        Ok(change)
    }

    /// Every value, for `tune show`.
    pub fn tunables(&self) -> Vec<Tunable> {
        let row = |(key, value, origin): (String, Option<String>, String)| {
            let live = keys::LIVE.contains(&key.as_str());
            Tunable { key, value, origin, live }
        };
        self.values().map(row).collect()
    }

    /// Every value with its origin, one line each: `section.name = value  # origin`.
    pub fn print_config(&self) -> String {
        let line = |(path, value, origin): (String, Option<String>, String)| match value {
            Some(value) => format!("{path} = {value}  # {origin}\n"),
            None => format!("# {path} is not set  # {origin}\n"),
        };
        self.values().map(line).collect()
    }

    /// Every value with its origin, for `--json`.
    pub fn to_json(&self) -> serde_json::Value {
        let entry = |(path, value, origin)| (path, serde_json::json!({ "value": value, "origin": origin }));
        serde_json::Value::Object(self.values().map(entry).collect())
    }

    /// Path, value as TOML where it has one, and origin of every key.
    fn values(&self) -> impl Iterator<Item = (String, Option<String>, String)> {
        KEYS.iter().zip(&self.origins).map(|(key, origin)| {
            let origin = match origin {
                Origin::Default => "default".to_string(),
                Origin::File { place, .. } => format!("file {place}"),
                Origin::Flag { name } => format!("flag {name}"),
                Origin::Tuned { by } => format!("tuned by {by}"),
            };
            (key.path(), (key.show)(self), origin)
        })
    }
}

/// The commented default configuration: what `default-config` prints.
pub fn default_config() -> String {
    let mut text = String::from(
        "# Ringshard. Every key stands here with its default; a line that is commented out has none or is found out\n\
         # at start. `ringshard check-config FILE` tells every mistake at once; flags win over this file.\n",
    );
    let mut section = "";
    for Key { section: of, name, default, shown, about, .. } in &KEYS {
        if *of != section {
            section = of;
            text.push_str(&format!("\n[{section}]\n"));
        }
        for line in about.lines() {
            text.push_str(&format!("# {line}\n"));
        }
        let line = if default.is_empty() { format!("# {name} = {shown}\n") } else { format!("{name} = {default}\n") };
        text.push_str(&line);
    }
    text
}

/// Reads the private key of connect tokens: 64 hexadecimal digits or 32 bytes. A key that everybody on the machine can
/// read is refused.
pub fn read_private_key(path: &Path) -> Result<[u8; 32], Failure> {
    use std::os::unix::fs::PermissionsExt;
    let shown = path.display();
    let mend = format!("make one with `(umask 077; openssl rand -hex 32 > {shown})`");
    let failed = |error: std::io::Error| {
        let failure = Failure::of_file("read the private key", path, &error);
        Failure { text: format!("{}; {mend}", failure.text), ..failure }
    };
    let mode = std::fs::metadata(path).map_err(failed)?.permissions().mode();
    if mode & 0o007 != 0 {
        let text = format!("net.private_key_file: everybody can use {shown}; mend it with `chmod o= {shown}`");
        return Err(Failure::new(Code::Permission, text));
    }
    let bytes = std::fs::read(path).map_err(failed)?;
    if let Ok(key) = <[u8; 32]>::try_from(bytes.as_slice()) {
        return Ok(key);
    }
    let digits = bytes.trim_ascii();
    let mut key = [0; 32];
    let pairs = digits.chunks_exact(2).zip(&mut key);
    let read = pairs.map(|(pair, byte)| {
        let value = std::str::from_utf8(pair).ok().filter(|text| !text.starts_with('+'));
        *byte = u8::from_str_radix(value?, 16).ok()?;
        Some(())
    });
    if digits.len() == 64 && read.collect::<Option<Vec<()>>>().is_some() {
        return Ok(key);
    }
    let found =
        format!("net.private_key_file: expected 64 hexadecimal digits or 32 bytes, found {} bytes", bytes.len());
    Err(Failure::new(Code::Config, format!("{found} in {shown}; {mend}")))
}

/// `file:line:column` of a byte offset, both counted from 1, columns in characters.
fn place(name: &str, text: &str, offset: usize) -> String {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
    format!("{name}:{line}:{column}")
}

/// What stands in the file, shortened to one line of at most 60 characters.
fn snippet(text: &str, value: &Spanned<DeValue<'_>>) -> String {
    let whole = text.get(value.span()).unwrap_or("");
    let mut shown: String = whole.lines().next().unwrap_or("").chars().take(60).collect();
    if shown.len() < whole.len() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests;
