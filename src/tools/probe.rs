//! `tune probe`: what this machine can, measured, and the settings that follow from it.
//!
//! Owns a packet path, sockets and threads for some seconds. Promises: ends within about ten seconds, changes nothing and leaves
//! nothing; each recommendation carries its reason and the line to write. Never looks at a running node: on a machine that
//! serves it measures what is left.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;

use crate::cli::ProbeArgs;
use crate::clock::Clock;
use crate::exit::{Code, Failure, say};
use crate::io::{Backend, Event, Lane, PacketConfig, Packets, bind_lanes};
use crate::limits::{
    LANE_RECEIVE_BUFFER_BYTES, LANES, SESSION_BYTES_PER_S_MAX, SESSION_BYTES_PER_S_MIN, SHARDS_MAX, TICK_HZ,
};
use crate::preflight::{DATAGRAM_BUFFER_BYTES, data_folder, sync_us};
use crate::{executor, sys};

/// Ticks of the echo.
const ECHO_TICKS: u64 = 2 * TICK_HZ;
/// Ticks whose edges are waited for.
const EDGE_TICKS: u64 = 5 * TICK_HZ;
/// Sockets of the echo's other side.
const FLOWS: usize = 256;
/// Datagrams of each flow in one tick.
const FLOW_DATAGRAMS: usize = 6;
/// Bytes of an echoed datagram.
const ECHO_BYTES: usize = 128;
/// Writes to the disk.
const SYNCS: usize = 400;
/// Share of an echo that is receiving, percent; the rest is sending.
const RECEIVE_PERCENT: u64 = 15;
/// What a snapshot takes besides being sent, nanoseconds: looking around, copying, sealing.
const SNAPSHOT_NS: u64 = 1_500;
/// Bodies a second of a client.
const INPUT_HZ: u64 = 30;
/// Share of a core that players may take, percent: the ladder begins at 85.
const CORE_PERCENT: u64 = 60;

/// What was measured.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
struct Measured {
    /// CPUs that this process may use.
    cpus: usize,
    /// Nanoseconds for a datagram in and its answer out on one core, by the packet path, once a tick.
    echo_ns: u64,
    /// The same as datagrams that one core can echo in a second.
    echo_pps: u64,
    /// Share of them that came back, 0 to 1; drops say that the socket buffers are small or the machine is busy.
    echo_answered: f64,
    /// How late a tick's edge is, microseconds.
    edge_late_us_p50: u64,
    /// Likewise.
    edge_late_us_p99: u64,
    /// A write of 4 KiB made durable, microseconds.
    sync_us_p50: u64,
    /// Likewise.
    sync_us_p99: u64,
    /// What a socket gets that asks for a receive buffer, bytes.
    receive_buffer_bytes: u64,
    /// Likewise of a send buffer.
    send_buffer_bytes: u64,
}

/// One recommendation.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Advice {
    /// What to set.
    key: &'static str,
    /// To what.
    value: u64,
    /// Why.
    reason: String,
    /// What to write, or the command.
    line: String,
}

/// Measures and recommends.
pub fn probe(args: &ProbeArgs, json: bool) -> Result<(), Failure> {
    let cpus = sys::cpus_allowed();
    let cpu = *cpus.last().expect("a process runs somewhere");
    let io = args.io;
    let (echo, edges) = std::thread::spawn(move || measure_core(io, cpu))
        .join()
        .map_err(|_| Failure::new(Code::Failed, "the probe panicked; its message stands above"))??;
    let folder = data_folder(args.data.as_deref());
    let syncs = sync_us(&folder, SYNCS).map_err(|error| Failure::of_file("write into", &folder, &error))?;
    let buffer = |receive| {
        let socket = UdpSocket::bind("127.0.0.1:0").map_err(|error| io_failure("bind a UDP socket", &error))?;
        let asked = sys::buffer_bytes(&socket, receive, LANE_RECEIVE_BUFFER_BYTES as i32);
        asked.map_err(|error| io_failure("ask for a socket buffer", &error))
    };
    let measured = Measured {
        cpus: cpus.len(),
        echo_ns: echo.ns,
        echo_pps: 1_000_000_000 / echo.ns,
        echo_answered: echo.answered,
        edge_late_us_p50: quantile(&edges, 50),
        edge_late_us_p99: quantile(&edges, 99),
        sync_us_p50: quantile(&syncs, 50),
        sync_us_p99: quantile(&syncs, 99),
        receive_buffer_bytes: buffer(true)?,
        send_buffer_bytes: buffer(false)?,
    };
    let advice = recommend(&measured, args.players.into());
    say(json, &text(&measured, &advice, &folder), || json!({ "measured": measured, "recommended": advice }))
}

fn io_failure(doing: &str, error: &std::io::Error) -> Failure {
    Failure::new(Code::Machine, format!("cannot {doing}: {error}; `ringshard doctor` says what is missing"))
}

fn quantile(ascending: &[u64], percent: usize) -> u64 {
    ascending[(ascending.len() - 1) * percent / 100]
}

/// What the echo found.
struct Echo {
    ns: u64,
    answered: f64,
}

/// On a core of its own, as a shard would: the echo, and the lateness of edges, microseconds, ascending.
fn measure_core(io: Backend, cpu: usize) -> Result<(Echo, Vec<u64>), Failure> {
    let machine = |text: String| Failure::new(Code::Machine, text);
    let lanes = bind_lanes(SocketAddr::from(([127, 0, 0, 1], 0)), 1).map_err(|error| machine(error.to_string()))?;
    let address = lanes.address;
    let socket = lanes.sockets.into_iter().next().expect("one was asked for");
    executor::run_pinned(io, cpu, "probe", async move {
        // Without the right to it the figures are those of a node without it.
        let _ = sys::set_thread_nice(crate::shard::SHARD_NICE);
        executor::warm_up().await;
        let edges = measure_edges().await;
        let lane = Lane { number: 0, socket: socket.into(), served: true };
        let config = PacketConfig::new(vec![lane], None);
        let mut packets = Packets::new(io, config).map_err(|error| machine(error.to_string()))?;
        let stop = AtomicBool::new(false);
        let began = Instant::now();
        let (busy_ns, echoed, answered, sent) = std::thread::scope(|scope| {
            let load = scope.spawn(|| load(cpu, address, &stop));
            let (busy_ns, echoed) = echo(&mut packets);
            stop.store(true, Ordering::Release);
            load.join().expect("it only sends and receives").map(|(answered, sent)| (busy_ns, echoed, answered, sent))
        })
        .map_err(|error| io_failure("load the echo", &error))?;
        if echoed == 0 || sent == 0 {
            let text = format!("no datagram came through loopback within {} s", began.elapsed().as_secs());
            return Err(machine(text));
        }
        Ok((Echo { ns: (busy_ns / echoed).max(1), answered: answered as f64 / sent as f64 }, edges))
    })
    .map_err(machine)?
}

async fn measure_edges() -> Vec<u64> {
    let clock = Clock::starting(0);
    let mut late = Vec::with_capacity(EDGE_TICKS as usize);
    for tick in 1..=EDGE_TICKS {
        executor::sleep(clock.until_edge(tick).unwrap_or_default()).await;
        late.push((clock.now_ns().saturating_sub(clock.edge_ns(tick))) / 1_000);
    }
    late.sort_unstable();
    late
}

/// Answers once a tick what came in it. Gives the nanoseconds that took and the datagrams, without the first ticks.
fn echo(packets: &mut Packets) -> (u64, u64) {
    let clock = Clock::starting(0);
    let mut held: Vec<(SocketAddr, usize, [u8; ECHO_BYTES])> = Vec::with_capacity(2 * FLOWS * FLOW_DATAGRAMS);
    let (mut busy_ns, mut echoed) = (0, 0);
    for tick in 1..=ECHO_TICKS {
        std::thread::sleep(clock.until_edge(tick).unwrap_or_default());
        let begin_ns = clock.now_ns();
        packets.drain(tick, |event| {
            if let Event::Datagram { from, bytes, .. } = event {
                let mut copy = [0; ECHO_BYTES];
                let length = bytes.len().min(ECHO_BYTES);
                copy[..length].copy_from_slice(&bytes[..length]);
                held.push((from, length, copy));
            }
        });
        for (to, length, bytes) in &held {
            packets.send_datagram(0, *to, |space| {
                space[..*length].copy_from_slice(&bytes[..*length]);
                *length
            });
        }
        packets.submit();
        if tick > TICK_HZ / 4 {
            busy_ns += clock.now_ns() - begin_ns;
            echoed += held.len() as u64;
        }
        held.clear();
    }
    (busy_ns, echoed)
}

/// The other side, off the measured core where there is another: sends each tick's datagrams and counts the answers.
fn load(cpu: usize, address: SocketAddr, stop: &AtomicBool) -> std::io::Result<(u64, u64)> {
    sys::keep_off(&[cpu])?;
    let flow = |_| {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.connect(address)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    let flows: Vec<UdpSocket> = (0..FLOWS).map(flow).collect::<std::io::Result<_>>()?;
    let (mut answered, mut sent, mut bytes) = (0, 0, [0x52; ECHO_BYTES]);
    let mut count = |flows: &[UdpSocket]| {
        let taken =
            flows.iter().map(|flow| std::iter::repeat_with(|| flow.recv(&mut bytes)).take_while(Result::is_ok).count());
        taken.sum::<usize>() as u64
    };
    while !stop.load(Ordering::Acquire) {
        for flow in &flows {
            // A full send buffer loses it: that is what is counted.
            sent += (0..FLOW_DATAGRAMS).filter(|_| flow.send(&[0x52; ECHO_BYTES]).is_ok()).count() as u64;
        }
        std::thread::sleep(Duration::from_micros(1_000_000 / TICK_HZ));
        answered += count(&flows);
    }
    // The last tick's are not answered any more.
    Ok((answered, sent.saturating_sub((FLOWS * FLOW_DATAGRAMS) as u64).max(answered)))
}

/// The settings that follow.
fn recommend(measured: &Measured, players: u64) -> Vec<Advice> {
    let shards = measured.cpus.saturating_sub(1).clamp(1, SHARDS_MAX) as u64;
    let Measured { echo_ns, echo_pps, edge_late_us_p99, sync_us_p50, sync_us_p99, .. } = *measured;
    let on_each = players.div_ceil(shards);
    let percent = |send_hz: u64| {
        let receive_ns = INPUT_HZ * echo_ns * RECEIVE_PERCENT / 100;
        let send_ns = send_hz * (echo_ns * (100 - RECEIVE_PERCENT) / 100 + SNAPSHOT_NS);
        on_each * (receive_ns + send_ns) / 10_000_000
    };
    let send_hz = [60, 30, 20].into_iter().find(|&hz| percent(hz) <= CORE_PERCENT).unwrap_or(20);
    // Two ticks of all that a core could take, spread over its lanes.
    let in_lane = 2 * echo_pps / TICK_HZ / (LANES as u64).div_ceil(shards).max(1);
    let buffer = (in_lane * DATAGRAM_BUFFER_BYTES).next_power_of_two();
    let buffer = buffer.clamp(2 << 20, LANE_RECEIVE_BUFFER_BYTES as u64);
    let bytes_per_s = (send_hz as u32 * 1_200).clamp(SESSION_BYTES_PER_S_MIN, SESSION_BYTES_PER_S_MAX);
    let commit_ms = (2 * sync_us_p50).div_ceil(1_000).clamp(10, 1_000);
    let config = |section: &str, name: &str, value: u64| format!("[{section}]\n{name} = {value}");
    let beyond = if percent(send_hz) > CORE_PERCENT { "; that is too many for these cores" } else { "" };
    let sysctl = |key: &'static str, got: u64| Advice {
        key,
        value: buffer.max(got),
        reason: format!(
            "a lane must hold the {in_lane} datagrams of two ticks; a socket gets {} KiB now{}",
            got / 1_024,
            if got >= buffer { ", which is enough" } else { "" }
        ),
        line: if got >= buffer { format!("# {key} stays as it is") } else { format!("sysctl -w {key}={buffer}") },
    };
    vec![
        Advice {
            key: "node.shards",
            value: shards,
            reason: format!(
                "{} CPUs, one of them for keeper and control where there is another; a tick's edge is late by {edge_late_us_p99} us at the 99th percentile",
                measured.cpus
            ),
            line: config("node", "shards", shards),
        },
        sysctl("net.core.rmem_max", measured.receive_buffer_bytes),
        sysctl("net.core.wmem_max", measured.send_buffer_bytes),
        Advice {
            key: "net.send_hz",
            value: send_hz,
            reason: format!(
                "{on_each} players on each shard at {send_hz} snapshots a second take about {} % of a core (echo {echo_ns} ns, {SNAPSHOT_NS} ns for making one){beyond}",
                percent(send_hz)
            ),
            line: config("net", "send_hz", send_hz),
        },
        Advice {
            key: "net.session_bytes_per_s",
            value: bytes_per_s.into(),
            reason: format!(
                "{send_hz} whole bodies of 1,200 bytes a second; who cannot take as much gets less by itself"
            ),
            line: config("net", "session_bytes_per_s", bytes_per_s.into()),
        },
        Advice {
            key: "keeper.commit_ms",
            value: commit_ms,
            reason: format!(
                "a write is durable after {sync_us_p50} us, at the 99th percentile {sync_us_p99}: groups that come faster than two writes only queue"
            ),
            line: config("keeper", "commit_ms", commit_ms),
        },
    ]
}

fn text(measured: &Measured, advice: &[Advice], folder: &Path) -> String {
    let Measured { cpus, echo_ns, echo_pps, echo_answered, .. } = *measured;
    let mut text = format!(
        "CPUs        {cpus}\n\
         echo        {echo_pps} datagrams a second in and out on one core, {echo_ns} ns each, {:.1} % came back\n\
         tick edge   late by {} us p50, {} us p99\n\
         disk sync   {} us p50, {} us p99 in {}\n",
        echo_answered * 100.0,
        measured.edge_late_us_p50,
        measured.edge_late_us_p99,
        measured.sync_us_p50,
        measured.sync_us_p99,
        folder.display(),
    );
    for Advice { reason, line, .. } in advice {
        text.push_str(&format!("\n{line}\n    {reason}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: Measured = Measured {
        cpus: 2,
        echo_ns: 3_500,
        echo_pps: 285_714,
        echo_answered: 1.0,
        edge_late_us_p50: 40,
        edge_late_us_p99: 300,
        sync_us_p50: 150,
        sync_us_p99: 900,
        receive_buffer_bytes: 16 << 20,
        send_buffer_bytes: 16 << 20,
    };

    fn value(advice: &[Advice], key: &str) -> u64 {
        advice.iter().find(|advice| advice.key == key).expect(key).value
    }

    #[test]
    fn more_players_get_fewer_snapshots_and_slower_disks_longer_groups() {
        let send_hz = |players| value(&recommend(&MACHINE, players), "net.send_hz");
        assert_eq!([100, 1_000, 3_000, 100_000].map(send_hz), [60, 60, 30, 20]);
        assert!(recommend(&MACHINE, 100_000)[3].reason.contains("too many"));
        assert_eq!(value(&recommend(&MACHINE, 3_000), "net.session_bytes_per_s"), 36_000);
        assert_eq!(value(&recommend(&MACHINE, 10), "keeper.commit_ms"), 10);
        let slow = Measured { sync_us_p50: 20_100, ..MACHINE };
        assert_eq!(value(&recommend(&slow, 10), "keeper.commit_ms"), 41);
    }

    #[test]
    fn shards_leave_a_core_and_buffers_have_bounds() {
        let on = |cpus| value(&recommend(&Measured { cpus, ..MACHINE }, 10), "node.shards");
        assert_eq!([1, 2, 8, 200].map(on), [1, 1, 7, 32]);
        for echo_pps in [1, 285_714, 1 << 40] {
            let buffer =
                value(&recommend(&Measured { echo_pps, receive_buffer_bytes: 0, ..MACHINE }, 10), "net.core.rmem_max");
            assert!((2 << 20..=8 << 20).contains(&buffer), "{buffer}");
        }
        let advice = recommend(&MACHINE, 10);
        let now = advice.iter().find(|advice| advice.key == "net.core.rmem_max").expect("it is there");
        assert_eq!((now.value, &now.line[..1]), (16 << 20, "#"), "what is there is not made less");
    }

    #[test]
    fn the_lines_are_a_valid_configuration() {
        let advice = recommend(&MACHINE, 1_000);
        let lines = advice.iter().filter_map(|advice| advice.line.strip_prefix('['));
        let mut sections = std::collections::BTreeMap::<&str, String>::new();
        for line in lines {
            let (section, setting) = line.split_once("]\n").expect("a section and a key");
            *sections.entry(section).or_default() += &format!("{setting}\n");
        }
        assert_eq!(sections.len(), 3);
        let file: String = sections.iter().map(|(section, settings)| format!("[{section}]\n{settings}")).collect();
        crate::config::parse(Some(("recommended", &file)), &[], true, &[0, 1]).expect("it is valid");
    }
}
