//! `tune show`, `tune set` and `tune watch`: the live settings of a running node, and its shards once a second.
//!
//! Owns nothing. Promises: a value is judged by the node, by the rules of its configuration file; the table is redrawn in
//! place on a terminal and plain lines elsewhere; a reader that goes away ends it well.

use std::io::{ErrorKind, IsTerminal, Write};
use std::time::Duration;

use serde_json::json;

use crate::cli::{SetArgs, ShowArgs, WatchArgs};
use crate::config::Tunable;
use crate::control::admin::Request;
use crate::control::client;
use crate::control::status::StatusPage;
use crate::exit::{Code, Failure, say};

pub use super::probe::probe;

/// Between two looks of `tune watch`.
const LOOK: Duration = Duration::from_secs(1);

/// `tune show`: every key with its value, its origin, and whether it is live.
pub fn show(args: &ShowArgs, json: bool) -> Result<(), Failure> {
    let answer = client::ask(&args.data, &Request { verb: "show".to_owned(), ..Request::default() })?;
    let values = answer.values.unwrap_or_default();
    let line = |Tunable { key, value, origin, live }: &Tunable| {
        let value = value.as_deref().unwrap_or("not set");
        let live = if *live { "live, " } else { "" };
        format!("{key:<26} {value:<24} # {live}{origin}\n")
    };
    say(json, &values.iter().map(line).collect::<String>(), || {
        let entry = |Tunable { key, value, origin, live }: &Tunable| {
            (key.clone(), json!({ "value": value, "origin": origin, "live": live }))
        };
        serde_json::Value::Object(values.iter().map(entry).collect())
    })
}

/// `tune set`: one key, while the node runs.
pub fn set(args: &SetArgs, json: bool) -> Result<(), Failure> {
    let SetArgs { data, key, value } = args;
    let request =
        Request { verb: "set".to_owned(), key: Some(key.clone()), value: Some(value.clone()), ..Request::default() };
    let refused = |failure: Failure| match failure.code {
        // The node was asked and said no: what was asked is wrong.
        Code::Failed => Failure { code: Code::Config, ..failure },
        _ => failure,
    };
    let answer = client::ask(data, &request).map_err(refused)?;
    let change = answer.change.ok_or_else(|| Failure::new(Code::Failed, "the node does not say what it changed"))?;
    let text = format!("{key}: {} before, {} from now on; until the node ends\n", change.from, change.to);
    say(json, &text, || serde_json::to_value(&change).expect("plain values"))
}

/// `tune watch`: each shard, once a second, until the node, the reader or the count ends.
pub fn watch(args: &WatchArgs, json: bool) -> Result<(), Failure> {
    let control = super::control_of(&args.node)?;
    let mut output = std::io::stdout();
    let redraws = !json && output.is_terminal();
    let mut lines = 0;
    for look in 0..args.count.unwrap_or(u64::MAX) {
        if look > 0 {
            std::thread::sleep(LOOK);
        }
        let page = client::status(control)?;
        let text = match json {
            true => watched(&page).to_string() + "\n",
            false => table(&page),
        };
        let back = if redraws && lines > 0 { format!("\x1b[{lines}A\x1b[J") } else { String::new() };
        lines = text.lines().count();
        match output.write_all((back + &text).as_bytes()).and_then(|()| output.flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(Failure::new(Code::Io, format!("cannot write to standard output: {error}"))),
            Ok(()) => (),
        }
    }
    Ok(())
}

fn table(page: &StatusPage) -> String {
    let mut text = format!("tick {}\n", page.tick);
    text.push_str("shard  busy  p50 us  p99 us sessions entities step             late    drops\n");
    for shard in &page.shards {
        text.push_str(&format!(
            "{:>5} {:>4.0}% {:>7} {:>7} {:>8} {:>8} {} {:<14} {:>4} {:>8}\n",
            shard.id,
            shard.busy * 100.0,
            shard.tick_us.p50,
            shard.tick_us.p99,
            shard.sessions,
            shard.entities,
            shard.ladder.step,
            shard.ladder,
            shard.late_parcels,
            shard.drops.values().sum::<u64>(),
        ));
    }
    text
}

fn watched(page: &StatusPage) -> serde_json::Value {
    let shards = page.shards.iter().map(|shard| {
        json!({
            "id": shard.id,
            "busy": shard.busy,
            "tick_us": shard.tick_us,
            "sessions": shard.sessions,
            "entities": shard.entities,
            "ladder": shard.ladder,
            "late_parcels": shard.late_parcels,
            "drops": shard.drops.values().sum::<u64>(),
        })
    });
    json!({ "tick": page.tick, "shards": shards.collect::<Vec<_>>() })
}
