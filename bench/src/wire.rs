//! `wire`: nanoseconds of the packet path that no system call is part of.
//!
//! Owns one connection's two ends. Promises: the product's own functions on a packet as a player sends it; the middle of
//! several runs, each of many packets. Never opens a socket.

use std::hint::black_box;
use std::process::ExitCode;
use std::time::Instant;

use clap::Args;
use ringshard::exit::{Failure, say};
use ringshard::net::body::{BodyReader, Commands, kind};
use ringshard::net::client::{ClientOptions, ClientSession};
use ringshard::net::packet::{Envelope, PacketKind, Side};
use ringshard::net::slice::{decode_delta, encode_delta};
use ringshard::net::wire::{Command, EntityPlain};
use serde_json::json;

use crate::machine::Provenance;

/// Commands of a packet: those of four client ticks.
const COMMANDS: u32 = 4;
/// Entities of a slice that moves.
const ENTITIES: u64 = 48;
/// Runs of each measurement.
const RUNS: usize = 9;
/// Room for a sealed packet.
const SPACE_BYTES: usize = 512;

/// Arguments of `wire`.
#[derive(Args, Clone, Debug)]
pub struct WireArgs {
    /// Packets of each run.
    #[arg(long, default_value_t = 100_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1_000..))]
    packets: u32,
}

/// The middle run, and the whole range of them, nanoseconds of one.
struct Cost {
    ns: f64,
    least_ns: f64,
    most_ns: f64,
}

impl Cost {
    fn of(times: u32, mut work: impl FnMut()) -> Cost {
        let mut runs: Vec<f64> = (0..RUNS)
            .map(|_| {
                let begin = Instant::now();
                (0..times).for_each(|_| work());
                begin.elapsed().as_secs_f64() * 1e9 / f64::from(times)
            })
            .collect();
        runs.sort_by(f64::total_cmp);
        Cost { ns: runs[RUNS / 2], least_ns: runs[0], most_ns: runs[RUNS - 1] }
    }

    fn of_each(self, count: f64) -> Cost {
        Cost { ns: self.ns / count, least_ns: self.least_ns / count, most_ns: self.most_ns / count }
    }
}

/// Runs the bench and prints its figures.
pub fn run(args: &WireArgs, json: bool) -> Result<ExitCode, Failure> {
    let mut body = [0; SPACE_BYTES];
    let body = {
        let mut session = ClientSession::new(ClientOptions { packed: true, decode: true, reliable_transport: false });
        for tick in 0..COMMANDS {
            session.push_command(Command::new(tick as u16, 127, 0, 0, 0, 0), 0);
        }
        let length = session.poll_body(0, 0, &mut body);
        &body[..length]
    };
    let costs = [
        ("parse_ns", "verify and parse", Cost::of(args.packets, || parse(black_box(body)))),
        ("seal_ns", "seal", seal(args.packets, body)),
        ("open_ns", "open", open(args.packets, body)),
        ("encode_ns", "encode an entity", encode(args.packets / 10).of_each(ENTITIES as f64)),
        ("decode_ns", "decode an entity", decode(args.packets / 10).of_each(ENTITIES as f64)),
    ];
    let mut text = format!("a packet of {} bytes with {COMMANDS} commands\n", body.len());
    let mut value = json!({ "body_bytes": body.len(), "runs": RUNS, "provenance": Provenance::here() });
    for (name, what, Cost { ns, least_ns, most_ns }) in costs {
        text.push_str(&format!("{what:<18} {ns:>6.1} ns ({least_ns:.1} to {most_ns:.1})\n"));
        value[name] = ns.into();
        value[format!("{name}_spread")] = json!([least_ns, most_ns]);
    }
    say(json, &text, || value)?;
    Ok(ExitCode::SUCCESS)
}

/// What a server does with a body until its commands can be used.
fn parse(body: &[u8]) {
    let (header, sections) = BodyReader::client(body).expect("our own body is well formed");
    black_box(header.sequence());
    for section in sections {
        assert_eq!(section.kind, kind::COMMANDS);
        let commands = Commands::read(section.bytes).expect("our own commands are well formed");
        for command in commands.iter() {
            black_box(command);
        }
    }
}

fn ends() -> [Envelope; 2] {
    [Side::Client, Side::Server].map(|side| Envelope::new(side, &[1; 32], &[2; 32]))
}

fn seal(packets: u32, body: &[u8]) -> Cost {
    let [mut client, _] = ends();
    let mut space = [0; SPACE_BYTES];
    Cost::of(packets, || {
        let at = client.text_offset();
        space[at..at + body.len()].copy_from_slice(body);
        black_box(client.seal(PacketKind::Body, &mut space, body.len()));
    })
}

fn open(packets: u32, body: &[u8]) -> Cost {
    let [mut client, mut server] = ends();
    let total = packets as usize * RUNS;
    let sealed: Vec<([u8; 128], usize)> = (0..total)
        .map(|_| {
            let mut space = [0; 128];
            let at = client.text_offset();
            space[at..at + body.len()].copy_from_slice(body);
            let length = client.seal(PacketKind::Body, &mut space, body.len());
            (space, length)
        })
        .collect();
    let mut sealed = sealed.into_iter();
    Cost::of(packets, || {
        let (mut space, length) = sealed.next().expect("there is one for each");
        black_box(server.open(&mut space[..length]).expect("it is ours, and new").text.len());
    })
}

/// A slice as its keyframe showed it, and as it is a second later.
fn slice() -> (Vec<EntityPlain>, Vec<EntityPlain>) {
    let entity = |moved: u16| {
        move |n: u64| EntityPlain::new(n + 1, n as u16 * 300 + moved, n as u16 * 200 + moved / 2, 5, 80, 1)
    };
    ((0..ENTITIES).map(entity(0)).collect(), (0..ENTITIES).map(entity(400)).collect())
}

fn encode(times: u32) -> Cost {
    let (keyframe, now) = slice();
    let mut out = Vec::new();
    Cost::of(times, || {
        out.clear();
        encode_delta(black_box(&now), &keyframe, &mut out);
        black_box(out.len());
    })
}

fn decode(times: u32) -> Cost {
    let (keyframe, now) = slice();
    let mut bytes = Vec::new();
    encode_delta(&now, &keyframe, &mut bytes);
    let mut out = Vec::new();
    Cost::of(times, || {
        black_box(decode_delta(black_box(&bytes), &keyframe, now.len(), &mut out).expect("it was just encoded"));
    })
}
