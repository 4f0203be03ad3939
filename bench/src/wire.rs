//! `wire`: nanoseconds of the packet path that no system call is part of.
//!
//! Owns one connection's two ends. Promises: the product's own functions on a packet as a player sends it; the middle of
//! several runs, each of many packets. Never opens a socket.

use std::hint::black_box;
use std::process::ExitCode;
use std::time::Instant;

use clap::Args;
use ringshard::exit::{Failure, say};
use ringshard::limits::BODY_BYTES_MAX;
use ringshard::wire::body::{BodyReader, Commands, kind};
use ringshard::wire::client::{ClientOptions, ClientSession};
use ringshard::wire::generated::structs::{Command, EntityPlain};
use ringshard::wire::slice::{decode_delta, encode_delta};
use ringshard::wire::transport::packet::{Envelope, PacketKind, Side};
use serde_json::json;

use crate::machine::Provenance;

/// Commands of a packet: those of four client ticks.
const COMMANDS: u32 = 4;
/// Entities of a slice that moves.
const ENTITIES: u64 = 48;
/// Runs of each measurement.
const RUNS: usize = 9;
/// Room for a packet of [`Packets`].
pub const PACKET_BYTES_MAX: usize = 128;

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
    let mut packets = Packets::new();
    let costs = [
        ("parse_ns", "verify and parse", Cost::of(args.packets, || packets.parse())),
        ("seal_ns", "seal", seal(&mut packets, args.packets)),
        ("open_ns", "open", open(&mut packets, args.packets)),
        ("encode_ns", "encode an entity", encode(args.packets / 10).of_each(ENTITIES as f64)),
        ("decode_ns", "decode an entity", decode(args.packets / 10).of_each(ENTITIES as f64)),
    ];
    let body_bytes = packets.body.len();
    let mut text = format!("a packet of {body_bytes} bytes with {COMMANDS} commands\n");
    let mut value = json!({ "body_bytes": body_bytes, "runs": RUNS, "provenance": Provenance::here() });
    for (name, what, Cost { ns, least_ns, most_ns }) in costs {
        text.push_str(&format!("{what:<18} {ns:>6.1} ns ({least_ns:.1} to {most_ns:.1})\n"));
        value[name] = ns.into();
        value[format!("{name}_spread")] = json!([least_ns, most_ns]);
    }
    say(json, &text, || value)?;
    Ok(ExitCode::SUCCESS)
}

/// A connection's two ends, and a body as a player sends it.
pub struct Packets {
    client: Envelope,
    server: Envelope,
    body: Vec<u8>,
}

impl Default for Packets {
    fn default() -> Packets {
        Packets::new()
    }
}

impl Packets {
    /// Nothing is sent yet.
    pub fn new() -> Packets {
        let mut session = ClientSession::new(ClientOptions { packed: true, decode: true, reliable_transport: false });
        for tick in 0..COMMANDS {
            session.push_command(Command::new(tick as u16, 127, 0, 0, 0, 0), 0);
        }
        let mut body = vec![0; BODY_BYTES_MAX];
        let length = session.poll_body(0, 0, &mut body);
        body.truncate(length);
        let [client, server] = [Side::Client, Side::Server].map(|side| Envelope::new(side, &[1; 32], &[2; 32]));
        Packets { client, server, body }
    }

    #[inline(never)]
    /// What a server does with a body until its commands can be used.
    pub fn parse(&self) {
        let (header, sections) = BodyReader::client(black_box(&self.body)).expect("our own body is well formed");
        black_box(header.sequence());
        for section in sections {
            assert_eq!(section.kind, kind::COMMANDS);
            let commands = Commands::read(section.bytes).expect("our own commands are well formed");
            for command in commands.iter() {
                black_box(command);
            }
        }
    }

    #[inline(never)]
    /// The client's next packet, at the beginning of a space; its length.
    pub fn seal(&mut self, space: &mut [u8; PACKET_BYTES_MAX]) -> usize {
        let at = self.client.text_offset();
        space[at..at + self.body.len()].copy_from_slice(&self.body);
        self.client.seal(PacketKind::Body, space, self.body.len())
    }

    #[inline(never)]
    /// The server opens it.
    pub fn open(&mut self, packet: &mut [u8]) {
        black_box(self.server.open(packet).expect("it is ours, and new").text.len());
    }
}

fn seal(packets: &mut Packets, times: u32) -> Cost {
    let mut space = [0; PACKET_BYTES_MAX];
    Cost::of(times, || {
        black_box(packets.seal(&mut space));
    })
}

fn open(packets: &mut Packets, times: u32) -> Cost {
    let total = times as usize * RUNS;
    let sealed: Vec<_> = (0..total)
        .map(|_| {
            let mut space = [0; PACKET_BYTES_MAX];
            let length = packets.seal(&mut space);
            (space, length)
        })
        .collect();
    let mut sealed = sealed.into_iter();
    Cost::of(times, || {
        let (mut space, length) = sealed.next().expect("there is one for each");
        packets.open(&mut space[..length]);
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
