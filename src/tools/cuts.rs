//! `tune cuts`: which shard owns which cell, what that costs, and how an operator moves one.
//!
//! Owns nothing. Promises: what cannot be is refused before anything changes, exit code 2; after a move it shows the cuts
//! that are in force, or says that they are not.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use crate::cli::CutsArgs;
use crate::control::admin::{CellMove, Request};
use crate::control::{CellRow, CutsReport, CutsView, client};
use crate::exit::{Code, Failure, say};
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
    let (mut report, mut view) = ask(args, Request::default())?;
    let shards = view.shards;
    if let Some(wish) = args.moves.iter().find(|wish| wish.shard >= shards) {
        let text = format!("there is no shard {}: this node has the shards 0 to {}", wish.shard, shards - 1);
        return Err(Failure::new(Code::Usage, text));
    }
    if !args.moves.is_empty() || args.auto.is_some() {
        let moves = args.moves.clone();
        (report, view) = ask(args, Request { moves, auto: args.auto, ..Request::default() })?;
        for _ in 0..LOOKS {
            if is_done(&view, &args.moves) {
                break;
            }
            std::thread::sleep(LOOK);
            (report, view) = ask(args, Request::default())?;
        }
        if !is_done(&view, &args.moves) {
            let text = "the cells have other owners than asked for: the balance moved them again (`--auto off` stops it), or \
                        shard 0 is late";
            return Err(Failure::new(Code::Failed, text));
        }
    }
    let sums = sums(&view);
    say(json, &table(&report, &view, &sums), || {
        let row = |(shard, (cells, entities, cost_us)): (&u8, &(usize, u32, f64))| json!({ "id": shard, "cells": cells, "entities": entities, "cost_us": cost_us });
        let shards: Vec<_> = sums.iter().map(row).collect();
        json!({ "cuts": report, "shards": shards, "side": LAND_CELLS, "owners": view.owners, "cells": view.cells })
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

fn is_done(view: &CutsView, moves: &[CellMove]) -> bool {
    moves.iter().all(|wish| place(wish.x, wish.y).is_some_and(|at| view.owners[at] == wish.shard))
}

/// Cells, entities and cost by shard.
fn sums(view: &CutsView) -> BTreeMap<u8, (usize, u32, f64)> {
    let mut sums: BTreeMap<u8, (usize, u32, f64)> = (0..view.shards).map(|shard| (shard, (0, 0, 0.0))).collect();
    for &owner in &view.owners {
        sums.entry(owner).or_default().0 += 1;
    }
    for cell in &view.cells {
        let sum = sums.entry(cell.shard).or_default();
        (sum.1, sum.2) = (sum.1 + cell.entities, sum.2 + cell.cost_us);
    }
    sums
}

fn table(report: &CutsReport, view: &CutsView, sums: &BTreeMap<u8, (usize, u32, f64)>) -> String {
    let digit = |owner: &u8| char::from_digit(u32::from(*owner), 36).unwrap_or('?');
    let mut text = String::from("owners, north above; each digit is a cell\n");
    for row in view.owners.chunks(LAND_CELLS as usize).rev() {
        text.extend(row.iter().map(digit));
        text.push('\n');
    }
    text.push_str("shard cells entities  us/tick\n");
    for (shard, (cells, entities, cost_us)) in sums {
        text.push_str(&format!("{shard:>5} {cells:>5} {entities:>8} {cost_us:>8.1}\n"));
    }
    let mut hottest: Vec<&CellRow> = view.cells.iter().collect();
    hottest.sort_by(|a, b| b.cost_us.total_cmp(&a.cost_us));
    text.push_str("hottest cells\n  x,y   shard entities  us/tick\n");
    for CellRow { x, y, shard, cost_us, entities } in hottest.into_iter().take(CELLS_TOLD) {
        text.push_str(&format!("{:>7} {shard:>5} {entities:>8} {cost_us:>8.1}\n", format!("{x},{y}")));
    }
    let CutsReport { auto, decrees, cells_moved, last_tick, last_cells, last_by_hand } = report;
    let auto = if *auto { "on" } else { "off" };
    text.push_str(&format!("balance {auto}; {decrees} decrees moved {cells_moved} cells"));
    if *decrees > 0 {
        let who = if *last_by_hand { "by hand" } else { "by the balance" };
        text.push_str(&format!(", the last one {last_cells} {who} at tick {last_tick}"));
    }
    text + "\n"
}
