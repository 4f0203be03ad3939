//! The short commands: tokens, ready frames, a look into a data folder, the simulator, replays, cuts, tuning.
//!
//! Owns nothing. Promises: what a person reads has a `--json` twin; a wrong argument is one clear sentence.

mod cuts;
pub mod probe;
mod seeds;
pub mod tune;

pub use cuts::cuts;
pub use seeds::sim;

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::json;

use crate::cli::{FrameArgs, FrameKind, InspectArgs, InspectWhat, ReplayArgs, StatusArgs, TokenArgs};
use crate::clock::unix_s;
use crate::config;
use crate::control::client;
use crate::exit::{Code, Failure, say};
use crate::flight::folder;
use crate::limits::TOKEN_BYTES;
use crate::realm::flight::replay::{Moment, Request};
use crate::realm::keeper::StoreError;
use crate::realm::keeper::Terms;
use crate::realm::keeper::inspect::{
    CharacterView, ItemStep, LedgerView, check, inspect_item, inspect_ledger, inspect_views,
};
use crate::rocks::RocksDisk;
use crate::sys;
use crate::wire::body::{BodyWriter, kind};
use crate::wire::generated::structs;
use crate::wire::ids::{EntityId, IdClass};
use crate::wire::transport::stream::{LENGTH_BYTES, write_frame};
use crate::wire::transport::token::{ConnectToken, DEV_KEY, TokenGrant, TokenSecrets, UserData};

/// Seconds of silence after which a session ends.
pub const TIMEOUT_S: i32 = 10;
/// Where a development server listens unless told otherwise.
const DEV_SERVER: ([u8; 4], u16) = ([127, 0, 0, 1], 7_777);
/// Seconds for which the token inside `frame hello` is good: a year, so that a script's frames last.
const FRAME_TTL_S: u64 = 365 * 86_400;

/// The control HTTP address of the node that is meant.
pub fn control_of(args: &StatusArgs) -> Result<SocketAddr, Failure> {
    match (&args.control, &args.data) {
        (Some(control), _) => Ok(*control),
        (None, Some(data)) => Ok(client::NodeFile::read(data)?.control),
        (None, None) => Ok(config::parse(None, &[], true, &[])?.net.control),
    }
}

/// A development token: good for a server on this machine that runs with `--dev`.
pub fn dev_token(servers: &[SocketAddr], client_id: u64, ttl_s: u64, user_data: UserData) -> Result<Vec<u8>, Failure> {
    issue(&DEV_KEY, servers, client_id, ttl_s, user_data)
}

fn issue(
    key: &[u8; 32],
    servers: &[SocketAddr],
    client_id: u64,
    ttl_s: u64,
    user_data: UserData,
) -> Result<Vec<u8>, Failure> {
    let now = unix_s();
    let expire_unix_s = now + ttl_s;
    let grant = TokenGrant { client_id, create_unix_s: now, expire_unix_s, timeout_s: TIMEOUT_S, servers, user_data };
    let token = ConnectToken::issue(&grant, &TokenSecrets::random(), key);
    token.map(|token| token.write().to_vec()).map_err(|error| Failure::new(Code::Usage, error.to_string()))
}

/// `token`: connect tokens, one base64 line each.
pub fn token(args: &TokenArgs, json: bool) -> Result<(), Failure> {
    let (key, mut servers) = if args.dev {
        (DEV_KEY, vec![SocketAddr::from(DEV_SERVER)])
    } else {
        let config = config::load(args.config.as_deref(), &[], false, &sys::cpus_allowed())?;
        let Some(file) = &config.net.private_key_file else {
            return Err(Failure::new(Code::Usage, "no private key: name a configuration with --config, or use --dev"));
        };
        (config::read_private_key(file)?, config.net.server_addresses.clone())
    };
    if let Some(server) = args.server {
        servers = vec![server];
    }
    let user_data = UserData { spawn_point: None, peaceful: false, reusable: args.reusable };
    let mut lines = Vec::new();
    for client_id in args.client_id..args.client_id.saturating_add(args.count.into()) {
        let token = issue(&key, &servers, client_id, args.ttl.into(), user_data)?;
        if args.raw {
            write_bytes(&token)?;
        }
        lines.push(BASE64.encode(token));
    }
    match args.raw {
        true => Ok(()),
        false => say(json, &(lines.join("\n") + "\n"), || json!({ "tokens": lines })),
    }
}

/// `frame`: the bytes of one TCP frame, length included.
pub fn frame(args: &FrameArgs, json: bool) -> Result<(), Failure> {
    let body = match args.kind {
        FrameKind::Hello => match &args.token {
            Some(path) => read_token(path)?,
            None => {
                let user_data = UserData { spawn_point: None, peaceful: true, reusable: true };
                dev_token(&[SocketAddr::from(DEV_SERVER)], 1, FRAME_TTL_S, user_data)?
            }
        },
        kind => constant_body(kind),
    };
    let mut frame = vec![0; LENGTH_BYTES + body.len()];
    write_frame(&body, &mut frame);
    match json {
        true => say(true, "", || json!({ "base64": BASE64.encode(&frame), "bytes": frame.len() })),
        false => write_bytes(&frame),
    }
}

/// A body that can be repeated for ever: its command is for "the next tick".
fn constant_body(kind: FrameKind) -> Vec<u8> {
    let mut out = [0; 64];
    let mut body = BodyWriter::client(&mut out, structs::ClientHeader::new(0, 0, 0, 0, 0));
    let written = match kind {
        FrameKind::Ping => body.section(kind::PING, &[]),
        _ => body.commands(0, [structs::Command::new(0, 127, 0, 0, 0, 0)].into_iter()),
    };
    assert!(written, "one small section fits");
    let length = body.finish();
    out[..length].to_vec()
}

fn read_token(path: &Path) -> Result<Vec<u8>, Failure> {
    let bytes = std::fs::read(path).map_err(|error| Failure::of_file("read", path, &error))?;
    if bytes.len() == TOKEN_BYTES {
        return Ok(bytes);
    }
    let decoded = BASE64.decode(bytes.trim_ascii()).ok().filter(|token| token.len() == TOKEN_BYTES);
    decoded.ok_or_else(|| {
        let text = format!(
            "{} is no connect token: expected 2,048 bytes or their base64; make one with `ringshard token`",
            path.display()
        );
        Failure::new(Code::Usage, text)
    })
}

fn write_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let written = std::io::stdout().lock().write_all(bytes);
    written.map_err(|error| Failure::new(Code::Io, format!("cannot write to standard output: {error}")))
}

/// `inspect`: what a stopped server's data folder holds.
pub fn inspect(args: &InspectArgs, json: bool) -> Result<(), Failure> {
    let (what, data) = args.asked()?;
    let failed = |error: StoreError| crate::server::store_failure(&error);
    let disk = RocksDisk::open_to_read(&data).map_err(failed)?;
    match what {
        InspectWhat::Characters => characters(&inspect_views(&disk).map_err(failed)?, json),
        InspectWhat::Ledger => {
            let view = inspect_ledger(&disk).map_err(failed)?;
            say(json, &ledger_text(&view), || serde_json::to_value(&view).expect("plain numbers"))
        }
        InspectWhat::Item(uid) => {
            let steps = inspect_item(&disk, uid).map_err(failed)?;
            if steps.is_empty() {
                return Err(Failure::new(Code::Failed, format!("there never was an item {uid} in this realm")));
            }
            let line = |step: &ItemStep| {
                let ItemStep { order, tick, source, what, place, version } = step;
                format!(
                    "order {order:>8} tick {tick:>10} version {version:>4} in {place:<16} {}: {what}\n",
                    named(*source)
                )
            };
            let text: String = steps.iter().map(line).collect();
            say(json, &text, || json!({ "uid": uid, "steps": steps }))
        }
        InspectWhat::Check => {
            let report = check(&disk, Terms::default()).map_err(failed)?;
            let mut text = ledger_text(&report.ledger);
            text.push_str(&format!(
                "{} characters, {} answers and {} used tokens read; {} orders done again from the log: {}\n",
                report.characters,
                report.answers,
                report.tokens,
                report.orders_replayed,
                if report.breaks.is_empty() { "everything agrees" } else { "NOT EVERYTHING AGREES" },
            ));
            let value = serde_json::to_value(&report).expect("plain numbers");
            if report.breaks.is_empty() {
                return say(json, &text, || value);
            }
            eprint!("{text}");
            let failure = Failure::new(Code::Failed, report.breaks.join("; "));
            Err(Failure { detail: Some(value), ..failure })
        }
    }
}

/// Who ordered something, in words.
fn named(source: u64) -> String {
    let id = EntityId(source);
    match id.class() {
        IdClass::Character => format!("character {}", id.number()),
        IdClass::Deeds => format!("character {}", id.number()),
        class => format!("{class:?} {}", id.number()).to_lowercase(),
    }
}

fn ledger_text(view: &LedgerView) -> String {
    let mut text = format!("{} orders, {} accounts\n", view.orders, view.accounts);
    for (name, minted, burnt, held) in &view.currencies {
        text.push_str(&format!("{name:>8}: {minted} made - {burnt} burnt = {held} held\n"));
    }
    text.push_str(&format!(
        "{:>8}: {} of {} made are somewhere; {} mails wait, {} things lie on the ground; {}\n",
        "items",
        view.items,
        view.items_made,
        view.mails,
        view.things,
        if view.conserved { "conserved" } else { "NOT CONSERVED" },
    ));
    text
}

fn characters(views: &[CharacterView], json: bool) -> Result<(), Failure> {
    let mut text = format!(
        "{:>20} {:>12} {:>10} {:>10} {:>8} {:>10} {:>5} {:>5} {:>8} {:>5}\n",
        "id", "client", "x m", "y m", "z m", "tick", "shard", "deeds", "coins", "items"
    );
    for view in views {
        let CharacterView { id, client_id, x_m, y_m, z_m, tick, shard, deeds, coins, items, .. } = view;
        let items = items.len();
        text.push_str(&format!(
            "{id:>20} {client_id:>12} {x_m:>10.2} {y_m:>10.2} {z_m:>8.2} {tick:>10} {shard:>5} {deeds:>5} {coins:>8} {items:>5}\n"
        ));
    }
    say(json, &text, || json!({ "characters": views }))
}

/// `replay`: a flight record once more. Fails when any hash differs.
pub fn replay(args: &ReplayArgs, json: bool) -> Result<(), Failure> {
    let request = Request { until: args.until, entity: args.entity.map(EntityId) };
    let examined = folder::examine(&args.folder, crate::server::content_version())?;
    let report = folder::replay(&examined, request)?;
    let mut text: String = report.history.iter().map(moment_line).collect();
    text.push_str(&format!(
        "{} shards from tick {} to {}: {} hashes compared, {} differ\n",
        report.shards, report.from_tick, report.to_tick, report.hashes_compared, report.mismatches
    ));
    text.extend(report.ended_early.iter().map(|ended| format!("ended early: {}\n", ended.reason)));
    let mut value = serde_json::to_value(&report).expect("a report is JSON");
    if let Some(entity) = args.entity {
        value["history"] = json!(report.history);
        if report.history.is_empty() {
            text.push_str(&format!(
                "nothing is recorded of entity {entity} in these ticks; entity ids are those of `ringshard admin players`\n"
            ));
        }
    }
    if let (Some(until), 0) = (args.until, report.hashes_compared) {
        let text = format!("nothing to compare until tick {until}: the record begins after tick {}", report.from_tick);
        return Err(Failure::new(Code::Failed, text));
    }
    let Some(first) = report.first_mismatch else { return say(json, &text, || value) };
    eprint!("{text}");
    let text = format!(
        "shard {} did not do the same at tick {}: the record is whole, so the rules of this program differ from those \
         that recorded it, or the step depends on something that is not recorded",
        first.shard, first.tick
    );
    Err(Failure { detail: Some(value), ..Failure::new(Code::Failed, text) })
}

fn moment_line(moment: &Moment) -> String {
    let Moment { tick, shard, epoch, position_m, events } = moment;
    let place = match (shard, epoch, position_m) {
        (Some(shard), Some(epoch), Some([x, y, z])) => {
            format!("shard {shard} epoch {epoch:>3} at {x:>9.3} {y:>9.3} {z:>8.3}")
        }
        _ => "on no shard".to_owned(),
    };
    let events: String = events.iter().map(|event| format!("; {event}")).collect();
    format!("tick {tick:>10} {place}{events}\n")
}
