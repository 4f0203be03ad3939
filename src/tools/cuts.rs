//! `tune cuts`: which shard owns which cell and serves which lane, what that costs, and how an operator moves one.
//!
//! Owns nothing. Promises: what cannot be is refused before anything changes, exit code 2; after a move it shows the cuts
//! that are in force, or says that they are not.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use crate::cli::CutsArgs;
use crate::control::admin::Request;
use crate::control::client;
use crate::exit::{Code, Failure, say};
use crate::limits::LANES;
use crate::realm::report::{CellRow, CutsReport, CutsView};
use crate::world::land::LAND_CELLS;

/// Looks for cuts that were asked for, and the pause between two.
const LOOKS: u32 = 40;
const LOOK: Duration = Duration::from_millis(50);
/// Cells told one by one for people.
const CELLS_TOLD: usize = 10;

/// The cuts of a running node, after the wishes of the arguments.
pub fn cuts(args: &CutsArgs, json: bool) -> Result<(), Failure> {
    if let Some(wish) = args.moves.iter().find(|wish| place(wish.x, wish.y).is_none()) {
        let text = format!("there is no cell {},{}: columns and rows are 0 to {}", wish.x, wish.y, LAND_CELLS - 1);
        return Err(Failure::new(Code::Usage, text));
    }
    if let Some(wish) = args.lanes.iter().find(|wish| usize::from(wish.lane) >= LANES) {
        let text = format!("there is no lane {}: they are 0 to {}", wish.lane, LANES - 1);
        return Err(Failure::new(Code::Usage, text));
    }
    let (mut report, mut view) = ask(args, Request::default())?;
    let shards = view.shards;
    let mut wanted = args.moves.iter().map(|wish| wish.shard).chain(args.lanes.iter().map(|wish| wish.shard));
    if let Some(shard) = wanted.find(|&shard| shard >= shards) {
        let text = format!("there is no shard {shard}: this node has the shards 0 to {}", shards - 1);
        return Err(Failure::new(Code::Usage, text));
    }
    if !args.moves.is_empty() || !args.lanes.is_empty() || args.auto.is_some() {
        let (moves, lanes) = (args.moves.clone(), args.lanes.clone());
        (report, view) = ask(args, Request { moves, lanes, auto: args.auto, ..Request::default() })?;
        for _ in 0..LOOKS {
            if is_done(&view, args) {
                break;
            }
            std::thread::sleep(LOOK);
            (report, view) = ask(args, Request::default())?;
        }
        if !is_done(&view, args) {
            let text = "cells or lanes have other shards than asked for: the balance moved them again (`--auto off` stops it), or \
                        shard 0 is late";
            return Err(Failure::new(Code::Failed, text));
        }
    }
    let sums = sums(&view);
    say(json, &table(&report, &view, &sums), || {
        let row = |(shard, sum): (&u8, &Sum)| {
            json!({
                "id": shard, "cells": sum.cells, "entities": sum.entities, "cost_us": sum.cost_us,
                "lanes": sum.lanes, "sessions": sum.sessions, "lanes_cost_us": sum.lanes_cost_us,
            })
        };
        let shards: Vec<_> = sums.iter().map(row).collect();
        json!({
            "cuts": report, "shards": shards, "side": LAND_CELLS, "owners": view.owners, "cells": view.cells,
            "lanes": view.lanes,
        })
    })
}

fn ask(args: &CutsArgs, request: Request) -> Result<(CutsReport, CutsView), Failure> {
    let answer = client::ask(&args.data, &Request { verb: "cuts".to_owned(), ..request })?;
    let whole =
        answer.cuts.zip(answer.view).filter(|(_, view)| view.owners.len() == usize::from(LAND_CELLS as u16).pow(2));
    whole.ok_or_else(|| {
        Failure::new(Code::Unavailable, "the node has other land than this program: use its own version")
    })
}

/// Where a cell stands among the owners, if it is on the land.
fn place(x: i16, y: i16) -> Option<usize> {
    let side = 0..LAND_CELLS;
    (side.contains(&x) && side.contains(&y)).then(|| y as usize * LAND_CELLS as usize + x as usize)
}

/// Whether each cell and lane is where it was wished last.
fn is_done(view: &CutsView, args: &CutsArgs) -> bool {
    let cells: BTreeMap<_, _> = args.moves.iter().map(|wish| ((wish.x, wish.y), wish.shard)).collect();
    let lanes: BTreeMap<_, _> = args.lanes.iter().map(|wish| (wish.lane, wish.shard)).collect();
    let at_lane = |lane: u8| view.lanes.iter().find(|row| row.lane == lane).map(|row| row.shard);
    cells.into_iter().all(|((x, y), shard)| place(x, y).is_some_and(|at| view.owners[at] == shard))
        && lanes.into_iter().all(|(lane, shard)| at_lane(lane) == Some(shard))
}

/// What a shard has, and what that costs, microseconds a tick.
#[derive(Clone, Copy, Default)]
struct Sum {
    cells: usize,
    entities: u32,
    cost_us: f64,
    lanes: usize,
    sessions: u32,
    lanes_cost_us: f64,
}

fn sums(view: &CutsView) -> BTreeMap<u8, Sum> {
    let mut sums: BTreeMap<u8, Sum> = (0..view.shards).map(|shard| (shard, Sum::default())).collect();
    for &owner in &view.owners {
        sums.entry(owner).or_default().cells += 1;
    }
    for cell in &view.cells {
        let sum = sums.entry(cell.shard).or_default();
        (sum.entities, sum.cost_us) = (sum.entities + cell.entities, sum.cost_us + cell.cost_us);
    }
    for lane in &view.lanes {
        let sum = sums.entry(lane.shard).or_default();
        sum.lanes += usize::from(usize::from(lane.lane) < LANES);
        (sum.sessions, sum.lanes_cost_us) = (sum.sessions + lane.sessions, sum.lanes_cost_us + lane.cost_us);
    }
    sums
}

fn table(report: &CutsReport, view: &CutsView, sums: &BTreeMap<u8, Sum>) -> String {
    let digit = |owner: &u8| char::from_digit(u32::from(*owner), 36).unwrap_or('?');
    let mut text = String::from("owners, north above; each digit is a cell\n");
    for row in view.owners.chunks(LAND_CELLS as usize).rev() {
        text.extend(row.iter().map(digit));
        text.push('\n');
    }
    text.push_str("shard cells entities  us/tick lanes sessions  us/tick\n");
    for (shard, Sum { cells, entities, cost_us, lanes, sessions, lanes_cost_us }) in sums {
        text.push_str(&format!(
            "{shard:>5} {cells:>5} {entities:>8} {cost_us:>8.1} {lanes:>5} {sessions:>8} {lanes_cost_us:>8.1}\n"
        ));
    }
    text.push_str("shards of the lanes, the first one left; each digit is a lane\n");
    text.extend(view.lanes.iter().filter(|row| usize::from(row.lane) < LANES).map(|row| digit(&row.shard)));
    text.push('\n');
    let mut hottest: Vec<&CellRow> = view.cells.iter().collect();
    hottest.sort_by(|a, b| b.cost_us.total_cmp(&a.cost_us));
    text.push_str("hottest cells\n  x,y   shard entities  us/tick\n");
    for CellRow { x, y, shard, cost_us, entities } in hottest.into_iter().take(CELLS_TOLD) {
        text.push_str(&format!("{:>7} {shard:>5} {entities:>8} {cost_us:>8.1}\n", format!("{x},{y}")));
    }
    let CutsReport { auto, decrees, cells_moved, lanes_moved, last_tick, last_cells, last_lanes, last_by_hand } =
        report;
    let auto = if *auto { "on" } else { "off" };
    text.push_str(&format!("balance {auto}; {decrees} decrees moved {cells_moved} cells and {lanes_moved} lanes"));
    if *decrees > 0 {
        let who = if *last_by_hand { "by hand" } else { "by the balance" };
        text.push_str(&format!(", the last one {last_cells} cells and {last_lanes} lanes {who} at tick {last_tick}"));
    }
    text + "\n"
}
