//! `pps --baseline mmsg`: the same server by io_uring and by `recvmmsg` and `sendmmsg`, one after the other on one core.
//!
//! Owns a server for each backend, both there all the time, one of them held still. Promises: the same clients' work at the
//! same rate, below what either can take; which goes first alternates; CPU time is that of the shard's thread, as the
//! kernel counts it. A pair in which anything was lost or late is made again.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ringshard::exit::{Failure, say};
use ringshard::io::Backend;
use serde_json::json;

use super::stage::{Setting, Stage, Taken};
use super::{ECHO_SEND_HZ, NPCS, PAIR_TRIES, PpsArgs};
use crate::machine::Provenance;
use crate::spread::Spread;

/// A server by one backend, and what its datagrams cost.
struct Side {
    stage: Stage,
    /// Microseconds of the core for a datagram that was received and its answer, one a pair.
    costs_us: Vec<f64>,
    /// Share of the core, likewise.
    busy: Vec<f64>,
}

impl Side {
    fn set(program: &Path, cpus: &[usize], io: Backend, sessions: u64, stopped: &AtomicBool) -> Result<Side, Failure> {
        let setting = Setting { io, send_hz: ECHO_SEND_HZ, npcs: NPCS, sessions };
        let stage = Stage::set(program, cpus, setting, stopped)?;
        stage.server.pause();
        Ok(Side { stage, costs_us: Vec::new(), busy: Vec::new() })
    }

    /// One leg, between two pauses.
    fn play(&mut self, turns_hz: f64, time: Duration) -> Result<Taken, Failure> {
        self.stage.server.resume();
        self.stage.calm();
        let taken = self.stage.take_timely(turns_hz, 1, time)?;
        self.stage.server.pause();
        self.costs_us.push(taken.busy * taken.leg.seconds * 1e6 / taken.received.max(1) as f64);
        self.busy.push(taken.busy);
        Ok(taken)
    }

    /// The last pair does not count.
    fn forget(&mut self) {
        self.costs_us.pop();
        self.busy.pop();
    }
}

/// Runs the pairs and prints their figures.
pub fn run(args: &PpsArgs, program: &Path, cpus: &[usize], stopped: &AtomicBool, json: bool) -> Result<(), Failure> {
    let turns_hz = args.rate.map_or(args.echo_sessions as f64 * f64::from(ECHO_SEND_HZ), f64::from);
    let time = Duration::from_secs(args.seconds);
    let mut ring = Side::set(program, cpus, Backend::Ring, args.echo_sessions, stopped)?;
    let mut mmsg = Side::set(program, cpus, Backend::Mmsg, args.echo_sessions, stopped)?;
    let mut void = None;
    for pair in 1..=args.pairs * PAIR_TRIES {
        if stopped.load(Ordering::Relaxed) || ring.busy.len() == args.pairs as usize {
            break;
        }
        let mut unclean = None;
        let mut sides = [(&mut ring, Backend::Ring), (&mut mmsg, Backend::Mmsg)];
        if pair.is_multiple_of(2) {
            sides.reverse();
        }
        for (side, io) in sides {
            let taken = side.play(turns_hz, time)?;
            let (lost, late_us) = (taken.lost(), taken.leg.late_us.value_at_quantile(0.99));
            eprintln!(
                "pair {pair}, {}: {:.2} us a datagram and its answer, core {:.0} % busy, {:.0} answers/s, {lost} lost, late {late_us} us",
                io.name(),
                side.costs_us.last().copied().unwrap_or(0.0),
                taken.busy * 100.0,
                taken.answer_pps,
            );
            if !taken.is_clean() {
                unclean =
                    Some(format!("by {} {lost} datagrams were lost, or the load was late by {late_us} us", io.name()));
            }
        }
        if let Some(why) = unclean {
            ring.forget();
            mmsg.forget();
            void = Some(why);
        }
    }
    let void = void.filter(|_| ring.busy.len() < args.pairs as usize);
    let ratios: Vec<f64> = ring.costs_us.iter().zip(&mmsg.costs_us).map(|(ring, mmsg)| ring / mmsg).collect();
    let middle = |values: &[f64]| Spread::of(values.iter().copied()).map_or(0.0, |spread| spread.median);
    let (ratio, spread) = (middle(&ratios), Spread::of(ratios.iter().copied()));
    let (least, most) = (spread.map(|spread| spread.min), spread.map(|spread| spread.max));
    let (ring_us, mmsg_us) = (middle(&ring.costs_us), middle(&mmsg.costs_us));
    let mut text = format!(
        "a datagram and its answer   {ring_us:.2} us of the core by io_uring, {mmsg_us:.2} us by recvmmsg and sendmmsg: {ratio:.3} of it \
         ({} pairs, {:.3} to {:.3}; {} sessions, {turns_hz:.0} datagrams/s)\n",
        ratios.len(),
        least.unwrap_or(0.0),
        most.unwrap_or(0.0),
        args.echo_sessions,
    );
    if let Some(why) = &void {
        text.push_str(&format!("void: {why}\n"));
    }
    let value = json!({
        "ring_to_mmsg_cpu_ratio": ratio,
        "ratio_min": least,
        "ratio_max": most,
        "ring_us": ring_us,
        "mmsg_us": mmsg_us,
        "ring_busy": middle(&ring.busy),
        "mmsg_busy": middle(&mmsg.busy),
        "sessions": args.echo_sessions,
        "rate_pps": turns_hz,
        "pairs": ratios.len(),
        "void": void,
        "provenance": Provenance::here(),
    });
    for side in [ring.stage, mmsg.stage] {
        side.server.resume();
        side.leave()?;
    }
    say(json, &text, || value)
}
