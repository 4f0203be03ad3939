//! One pinned core: packet path, sessions, world and mesh ends; the only place where I/O meets the world.
//!
//! Owns everything of one core. Promises: the tick below is the whole order of things; a late edge is stepped once, as the
//! present tick; nothing here waits but the sleep to the edge and the two bounded meetings. Never takes a lock and never
//! wakes another thread.

pub mod beats;
mod counts;
mod lanes;
pub mod recorder;
mod waits;

use std::sync::Arc;
use std::time::Duration;

use crossbeam_queue::ArrayQueue;
use hdrhistogram::Histogram;

use self::beats::Beat;
use self::counts::HostCounts;
use self::recorder::{Recorder, RecorderSetup};
use self::waits::Waits;
use crate::clock::{Clock, unix_s};
use crate::executor;
use crate::flight::folder::Progress;
use crate::io::{Backend, Event, PacketConfig, Packets};
use crate::limits::{
    BODY_BYTES_MAX, LANES, MEETING_WAIT_US, RECORD_OVERRUN_TICKS, SILENT_GRACE_TICKS, SILENT_TICKS, TICK_HZ,
};
use crate::realm::coordinator::Coordinator;
use crate::realm::core::{Core, Rules, Whom};
use crate::realm::costs::{Costs, Part};
use crate::realm::keeper::{KeeperAnswer, KeeperCommand};
use crate::realm::lanes::Post;
use crate::realm::links::{LaneLinks, Links, Outgoing, frame, keep_alive, seal};
use crate::realm::mesh::{Carrier, MeshEnd};
use crate::realm::report::{ControlCommand, CostUs, LadderReport, PHASES, PlayerRow, ShardReport};
use crate::sys;
use crate::wire::generated::tables::Close;
use crate::wire::ids::ShardId;
use crate::wire::transport::handshake::{Arrival, HandshakeConfig};
use crate::wire::transport::stream::LENGTH_BYTES;
use crate::wire::units::FINE_PER_M;
use crate::world::parcel::InputParcel;
use crate::world::{Decree, DecreeKind, World};

/// Nice level that shards ask for.
pub const SHARD_NICE: i32 = -10;
/// Before an edge the executor is left for a timer of the thread's own, which wakes it more exactly. What has arrived until
/// then is received at once: so much less stands between the edge and the first answer.
const NAP: Duration = Duration::from_millis(3);
/// No use in receiving so shortly before the edge, when it is done anyway.
const EARLY_LEAST: Duration = Duration::from_micros(500);
/// System calls of a nap.
const NAP_CALLS: f64 = 1.0;
/// Before an edge the thread stays awake for as long.
const AWAKE: Duration = Duration::from_micros(100);
/// The shard that balances the cuts.
const BALANCING: ShardId = ShardId(0);
/// A tick that takes longer than this is counted: players see it as a pause.
const LONG_TICK_NS: u64 = 33_000_000;
/// Ticks between two reports to control.
const REPORT_TICKS: u64 = TICK_HZ / 4;
/// Ticks between two looks for silent peers.
const SWEEP_TICKS: u64 = 6;
/// Ticks between two words to the keeper about the time.
const CLOCK_TICKS: u64 = 30;
/// Ticks from a stop to the end: every character is saved and every session heard why.
pub const STOP_TICKS: u64 = 30;
/// Nanoseconds of waiting after which a shard lets other threads of its core run: at most three system calls a meeting.
const MEETING_YIELD_NS: u64 = 1_000_000;

/// What one shard is made from. Everything in it may travel to the shard's thread.
pub struct ShardSetup {
    /// Which shard.
    pub shard: ShardId,
    /// The core that it is pinned to.
    pub cpu: usize,
    /// Ticks and edges.
    pub clock: Clock,
    /// First tick.
    pub start_tick: u64,
    /// Its part of the world.
    pub world: World,
    /// Its ends of the queues.
    pub mesh: MeshEnd,
    /// Likewise of those in which lanes travel.
    pub carrier: Carrier<Post<LaneLinks>>,
    /// Settings.
    pub rules: Rules,
    /// How its packets pass.
    pub io: Backend,
    /// Its sockets.
    pub packets: PacketConfig,
    /// How its lanes let clients in.
    pub handshakes: Vec<HandshakeConfig>,
    /// To the keeper.
    pub keeper: Arc<ArrayQueue<KeeperCommand>>,
    /// From the keeper.
    pub answers: Arc<ArrayQueue<KeeperAnswer>>,
    /// To control.
    pub reports: Arc<ArrayQueue<ShardReport>>,
    /// From control.
    pub commands: Arc<ArrayQueue<ControlCommand>>,
    /// Its flight recorder, unless nothing is recorded.
    pub recorder: Option<RecorderSetup>,
    /// Shows the host that it runs.
    pub beat: Beat,
}

/// A running shard.
struct Shard {
    cpu: usize,
    io: Backend,
    clock: Clock,
    core: Core,
    links: Links,
    packets: Packets,
    mesh: MeshEnd,
    carrier: Carrier<Post<LaneLinks>>,
    keeper: Arc<ArrayQueue<KeeperCommand>>,
    answers: Arc<ArrayQueue<KeeperAnswer>>,
    reports: Arc<ArrayQueue<ShardReport>>,
    commands: Arc<ArrayQueue<ControlCommand>>,
    recorder: Option<Recorder>,
    beat: Beat,
    /// Silent peers end from this tick on: before it, what they sent while this shard stood still is being read.
    sweeps_from: u64,
    costs: Costs,
    /// On the shard that balances.
    coordinator: Option<Coordinator>,
    overran: Option<Arc<Progress>>,
    stop_tick: Option<u64>,
    list_players: bool,
    show_cuts: bool,
    host: HostCounts,
    waits: Waits,
    frames_out: u64,
    gauge: Gauge,
}

/// A phase of the tick, as [`crate::realm::report::PHASE_NAMES`] has them.
#[derive(Clone, Copy)]
enum Phase {
    Receive,
    Step,
    Meet,
    Show,
    Fill,
    Submit,
    Rest,
}

/// What is measured between two reports.
struct Gauge {
    tick_us: Histogram<u64>,
    /// How late ticks began, since the start.
    edge_late_us: Histogram<u64>,
    busy_ns: u64,
    /// CPU time of the shard's own work.
    cpu_ns: u64,
    phase_ns: [u64; PHASES],
    /// When the present phase began.
    lap_ns: u64,
    ticks: u64,
    since_ns: u64,
    calls: u64,
    /// Since the start.
    long_ticks: u64,
}

/// Runs a shard on the calling thread until it was told to stop. `ready` is called once it may be joined.
///
/// Errors are sentences for the operator: what the kernel refused, and the mend.
pub fn run(setup: ShardSetup, ready: impl FnOnce()) -> Result<(), String> {
    let name = format!("shard-{}", setup.shard.0);
    let cpu = setup.cpu;
    executor::run_pinned(setup.io, cpu, &name, async move {
        // Without the right to it the shard runs all the same; doctor says what that costs.
        let _ = sys::set_thread_nice(SHARD_NICE);
        let _ = sys::set_timer_slack_ns(1);
        executor::warm_up().await;
        let start = setup.start_tick;
        let mut shard = Shard::new(setup)?;
        ready();
        shard.run(start).await;
        Ok(())
    })?
}

impl Shard {
    fn new(setup: ShardSetup) -> Result<Shard, String> {
        let packets = Packets::new(setup.io, setup.packets).map_err(|error| error.to_string())?;
        let shards = setup.mesh.shards();
        let core = Core::new(setup.world, shards, setup.rules);
        let overran = setup.recorder.as_ref().map(|recorder| recorder.progress.clone());
        let recorder = setup.recorder.map(|recorder| Recorder::start(recorder, setup.clock, &core));
        let coordinator = (setup.shard == BALANCING).then(|| Coordinator::new(true));
        Ok(Shard {
            cpu: setup.cpu,
            io: setup.io,
            clock: setup.clock,
            core,
            links: Links::new(setup.handshakes, setup.shard, setup.rules.dev),
            packets,
            mesh: setup.mesh,
            carrier: setup.carrier,
            keeper: setup.keeper,
            answers: setup.answers,
            reports: setup.reports,
            commands: setup.commands,
            recorder,
            beat: setup.beat,
            sweeps_from: 0,
            costs: Costs::default(),
            coordinator,
            overran,
            stop_tick: None,
            list_players: false,
            show_cuts: false,
            host: HostCounts::default(),
            waits: Waits::begin(),
            frames_out: 0,
            gauge: Gauge {
                tick_us: Histogram::new_with_bounds(1, 10_000_000, 2).expect("the bounds are in order"),
                edge_late_us: Histogram::new_with_bounds(1, 10_000_000, 1).expect("the bounds are in order"),
                busy_ns: 0,
                cpu_ns: 0,
                phase_ns: [0; PHASES],
                lap_ns: 0,
                ticks: 0,
                since_ns: 0,
                calls: 0,
                long_ticks: 0,
            },
        })
    }

    /// Tick after tick.
    async fn run(&mut self, start: u64) {
        let mut tick = start;
        while self.stop_tick.is_none_or(|stop| tick <= stop + STOP_TICKS) {
            tick += 1;
            let until_nap = self.clock.until_edge(tick).and_then(|left| left.checked_sub(NAP));
            executor::sleep(until_nap.unwrap_or(Duration::ZERO)).await;
            let early_ns = self.receive_early(tick);
            self.gauge.busy_ns += self.await_edge(tick);
            let begin_ns = self.clock.now_ns();
            self.gauge.edge_late_us.saturating_record(begin_ns.saturating_sub(self.clock.edge_ns(tick)) / 1_000);
            let present = self.clock.tick_at(begin_ns);
            self.host.late_edges += present.saturating_sub(tick);
            if present >= tick + SILENT_TICKS as u64 {
                self.sweeps_from = present + SILENT_GRACE_TICKS;
            }
            if present >= tick + RECORD_OVERRUN_TICKS {
                self.overran.iter().for_each(|progress| progress.overran());
            }
            let elapsed = (tick.max(present) + 1).saturating_sub(tick);
            tick = tick.max(present);
            self.tick(tick);
            let busy_ns = early_ns + self.clock.now_ns() - begin_ns;
            self.gauge.note(busy_ns);
            let spent = self.waits.end_tick(busy_ns);
            self.gauge.cpu_ns += spent.cpu_ns;
            self.core.ladder.note(elapsed, spent);
        }
        while !self.give_keeper() {
            self.beat.beat();
            executor::sleep(Duration::from_millis(1)).await;
        }
        if let Some(recorder) = &mut self.recorder {
            recorder.end().await;
        }
    }

    /// Receives what has arrived for a tick, if its edge is not yet near. Gives back how long that took, nanoseconds.
    fn receive_early(&mut self, tick: u64) -> u64 {
        if self.clock.until_edge(tick).is_none_or(|left| left < EARLY_LEAST) {
            return 0;
        }
        self.gauge.lap_ns = self.clock.now_ns();
        let begin_ns = self.gauge.lap_ns;
        self.receive(tick);
        self.lap(Phase::Receive);
        self.gauge.lap_ns - begin_ns
    }

    /// Waits for the edge of a tick on the spot, the last of it awake: a wake-up takes the kernel tens of microseconds. Gives
    /// back how long it was awake, nanoseconds.
    fn await_edge(&self, tick: u64) -> u64 {
        let Some(left) = self.clock.until_edge(tick) else { return 0 };
        if let Some(nap) = left.checked_sub(AWAKE) {
            std::thread::sleep(nap);
        }
        let woke_ns = self.clock.now_ns();
        let mut now_ns = woke_ns;
        while now_ns < self.clock.edge_ns(tick) {
            std::hint::spin_loop();
            let before_ns = std::mem::replace(&mut now_ns, self.clock.now_ns());
            self.waits.spin(now_ns - before_ns);
        }
        now_ns - woke_ns
    }

    /// One tick, in order.
    fn tick(&mut self, tick: u64) {
        self.beat.beat();
        self.gauge.lap_ns = self.clock.now_ns();
        self.take_posts(tick);
        self.receive(tick);
        self.hear_keeper_and_control(tick);
        self.lap(Phase::Receive);
        self.core.pass_requests();
        self.recorder.iter_mut().for_each(|recorder| recorder.given(&self.core));
        self.mesh.give_inputs(tick, &mut self.core.inputs);
        self.host.inputs_merged = self.mesh.inputs_merged;
        self.costs.begin(self.clock.now_ns());
        self.core.begin(tick);
        self.costs.end(Part::Act, self.clock.now_ns());
        self.lap(Phase::Step);
        self.meet_inputs(tick);
        self.lap(Phase::Meet);
        self.costs.begin(self.clock.now_ns());
        self.core.play();
        self.costs.end(Part::Play, self.clock.now_ns());
        self.lap(Phase::Step);
        self.core.give_posts(tick, &self.carrier);
        self.publish(tick);
        self.costs.end(Part::Show, self.clock.now_ns());
        self.lap(Phase::Show);
        self.send(tick, Whom::Here);
        self.lap(Phase::Fill);
        self.meet_outcomes(tick);
        self.take_posts(tick);
        self.lap(Phase::Meet);
        self.send(tick, Whom::Rest);
        self.lap(Phase::Fill);
        let Shard { recorder, core, mesh, .. } = self;
        recorder.iter_mut().for_each(|recorder| recorder.tick(core, mesh.merged()));
        self.finish(tick);
        self.lap(Phase::Rest);
    }

    /// A phase of the tick ends now, and the next one begins.
    fn lap(&mut self, phase: Phase) {
        let now_ns = self.clock.now_ns();
        self.gauge.phase_ns[phase as usize] += now_ns - self.gauge.lap_ns;
        self.gauge.lap_ns = now_ns;
    }

    /// Everything that arrived since the last tick.
    fn receive(&mut self, tick: u64) {
        self.costs.begin(self.clock.now_ns());
        let Shard { packets, links, core, .. } = self;
        let now = (tick, unix_s());
        core.receive_for(tick);
        links.resume(core, now);
        links.readings.drain(..).for_each(|(connection, reads)| packets.tcp_read(connection, reads));
        let mut has_room = [false; LANES];
        for (lane, room) in has_room.iter_mut().enumerate() {
            *room = core.no_admission(lane as u8).is_none();
        }
        packets.drain(tick, |event| match event {
            Event::Datagram { lane, from, bytes } => {
                let has_room = has_room[usize::from(lane)];
                let arrival = Arrival { now_unix_s: now.1, now_tick: tick, from, has_room };
                links.handle_datagram(core, lane, arrival, bytes);
            }
            Event::TcpAccepted { connection, from } => links.handle_accepted(connection, from, tick),
            Event::TcpBytes { connection, bytes } => links.handle_bytes(core, connection, now, bytes),
            Event::TcpClosed { connection, .. } => links.handle_closed(core, connection),
        });
        links.readings.drain(..).for_each(|(connection, reads)| packets.tcp_read(connection, reads));
        self.costs.end(Part::Serve, self.clock.now_ns());
    }

    fn hear_keeper_and_control(&mut self, tick: u64) {
        while let Some(answer) = self.answers.pop() {
            self.core.hear_keeper(answer);
        }
        while let Some(command) = self.commands.pop() {
            match command {
                ControlCommand::StopAt(stop) => {
                    let stop = stop.max(tick + 1);
                    self.core.hear_decree(Decree { tick: stop, kind: DecreeKind::Stop });
                    self.stop_tick = Some(stop);
                    self.core.close_all(Close::Drain);
                }
                ControlCommand::Degrade(level) => self.core.degrade(level),
                ControlCommand::Admission { open } => self.core.is_open = open,
                ControlCommand::PinLadder(step) => self.core.ladder.pin(step),
                ControlCommand::Rates(rates) => self.core.set_rates(rates),
                ControlCommand::ListPlayers => self.list_players = true,
                ControlCommand::ShowCuts => self.show_cuts = true,
                ControlCommand::AutoCuts(auto) => self.coordinator.iter_mut().for_each(|it| it.set_auto(auto)),
                ControlCommand::MoveCell { cell, to } => {
                    self.coordinator.iter_mut().for_each(|it| it.wish(cell, to));
                }
                ControlCommand::MoveLane { lane, to } => {
                    self.coordinator.iter_mut().for_each(|it| it.wish_lane(lane, to));
                }
            }
        }
        if tick.is_multiple_of(CLOCK_TICKS) && self.core.world.shard == ShardId(0) {
            self.core.keeper.push(KeeperCommand::Clock { tick, unix_s: unix_s() });
        }
    }

    /// First meeting: the inputs of this tick.
    fn meet_inputs(&mut self, tick: u64) {
        let own = self.core.world.shard;
        let mut mine = std::mem::take(&mut self.core.inputs[own.index()]);
        self.costs.begin(self.clock.now_ns());
        self.core.take_inputs(own, &mine);
        self.costs.end(Part::Play, self.clock.now_ns());
        mine.reset(tick);
        self.core.inputs[own.index()] = mine;
        let Shard { core, mesh, costs, clock, waits, .. } = self;
        let may_wait = Shard::may_wait(*clock, waits);
        self.host.late_meetings += mesh.take_inputs(tick, may_wait, |from, parcel: &mut InputParcel| {
            costs.begin(clock.now_ns());
            core.take_inputs(from, parcel);
            costs.end(Part::Play, clock.now_ns());
        });
    }

    /// The patience of one meeting. A peer that is this late was perhaps put off this very core: it gets a chance.
    fn may_wait<'a>(clock: Clock, waits: &'a Waits) -> impl FnMut() -> bool + use<'a> {
        let begin_ns = clock.now_ns();
        let mut yield_ns = begin_ns + MEETING_YIELD_NS;
        let mut looked_ns = begin_ns;
        move || {
            let now_ns = clock.now_ns();
            waits.meet(now_ns - std::mem::replace(&mut looked_ns, now_ns));
            if now_ns >= yield_ns {
                yield_ns = now_ns + MEETING_YIELD_NS;
                std::thread::yield_now();
            }
            now_ns < begin_ns + MEETING_WAIT_US * 1_000
        }
    }

    /// Shows the tick and gives everybody its part.
    fn publish(&mut self, tick: u64) {
        let mut outs = self.mesh.outcomes(tick);
        self.core.publish(&mut outs);
        if self.costs.weigh(&mut self.core) {
            let out = &mut outs[BALANCING.index()];
            out.weighed = true;
            out.costs.extend_from_slice(&self.costs.table);
            out.lane_costs.extend_from_slice(&self.costs.lanes);
        }
        self.recorder.iter_mut().for_each(|recorder| recorder.parcels(tick, &outs));
        self.core.hear(self.mesh.give_outcomes(outs));
    }

    /// Second meeting: what the others show and tell of this tick.
    fn meet_outcomes(&mut self, tick: u64) {
        let Shard { core, mesh, clock, waits, .. } = self;
        let may_wait = Shard::may_wait(*clock, waits);
        self.host.late_meetings += mesh.take_outcomes(tick, may_wait, |parcel| core.hear(parcel));
    }

    /// Bodies of the sessions that are due.
    fn send(&mut self, tick: u64, whom: Whom) {
        self.costs.begin(self.clock.now_ns());
        let Shard { core, links, packets, frames_out, .. } = self;
        core.send_due(whom, |session, write| match links.outgoing(session) {
            Some(Outgoing::Udp { connection, address }) => {
                if connection.needs_keep_alive() {
                    let mut alive = [0; crate::wire::transport::packet::CONTROL_BYTES_MAX];
                    let length = keep_alive(connection, session, tick, &mut alive);
                    packets.send_datagram(session.lane, address, |space| {
                        space[..length].copy_from_slice(&alive[..length]);
                        length
                    });
                }
                packets.send_datagram(session.lane, address, |space| seal(connection, tick, space, write));
            }
            Some(Outgoing::Tcp { connection }) if packets.tcp_has_room(connection, LENGTH_BYTES + BODY_BYTES_MAX) => {
                let mut space = [0; LENGTH_BYTES + BODY_BYTES_MAX];
                let sent = packets.tcp_send(connection, frame(&mut space, write));
                assert!(sent.is_ok(), "the room was asked for");
                *frames_out += 1;
            }
            // A stream that is behind gets the next snapshot instead; one that is gone ends with this drain.
            Some(Outgoing::Tcp { .. }) | None => (),
        });
        self.costs.end(Part::Serve, self.clock.now_ns());
    }

    /// What is left of a tick: ends, answers, rows, the report.
    fn finish(&mut self, tick: u64) {
        self.core.end_tick();
        while let Some(ended) = self.core.ended.pop() {
            self.links.end(ended);
        }
        if tick.is_multiple_of(SWEEP_TICKS) && tick >= self.sweeps_from {
            let Shard { core, links, packets, .. } = self;
            links.sweep(core, tick, |connection| packets.tcp_stalled_ticks(connection));
        }
        for reply in &self.links.replies {
            self.packets.send_datagram(reply.lane, reply.to, |space| {
                let bytes = self.links.reply_bytes(reply);
                space[..bytes.len()].copy_from_slice(bytes);
                bytes.len()
            });
        }
        self.links.clear_replies();
        for connection in self.links.closes.drain(..) {
            self.packets.tcp_close(connection);
        }
        self.lap(Phase::Rest);
        self.costs.begin(self.clock.now_ns());
        self.packets.submit();
        self.costs.end(Part::Serve, self.clock.now_ns());
        self.lap(Phase::Submit);
        self.costs.tick(self.core.bodies);
        self.give_keeper();
        self.give_lanes(tick);
        let Shard { coordinator, core, .. } = self;
        coordinator.iter_mut().for_each(|coordinator| coordinator.decide(core));
        if tick.is_multiple_of(REPORT_TICKS) || self.list_players || self.show_cuts {
            self.report(tick);
        }
    }

    /// Gives the keeper what it must hear; says whether all went.
    fn give_keeper(&mut self) -> bool {
        let went = counts::hand_over(&mut self.core.keeper, &self.keeper);
        self.host.keeper_full += u64::from(!went);
        went
    }

    fn report(&mut self, tick: u64) {
        let now_ns = self.clock.now_ns();
        let us = |ns: u64| ns as f64 / 1_000.0;
        let show_cuts = std::mem::take(&mut self.show_cuts);
        let counters = self.packets.counters();
        let gauge = &mut self.gauge;
        let ticks = gauge.ticks.max(1) as f64;
        let calls = (counters.calls - gauge.calls) as f64 / ticks;
        let (players, npcs, spawners) = self.core.world.entities();
        let report = ShardReport {
            id: self.core.world.shard.0,
            cpu: self.cpu,
            tick,
            tick_us_p50: gauge.tick_us.value_at_quantile(0.5),
            tick_us_p99: gauge.tick_us.value_at_quantile(0.99),
            edge_late_us: gauge
                .edge_late_us
                .iter_recorded()
                .map(|late| (late.value_iterated_to(), late.count_at_value()))
                .collect(),
            phase_us: std::mem::take(&mut gauge.phase_ns).map(|ns| ns as f64 / 1_000.0 / ticks),
            busy: gauge.busy_ns as f64 / (now_ns - gauge.since_ns).max(1) as f64,
            cpu_share: gauge.cpu_ns as f64 / (now_ns - gauge.since_ns).max(1) as f64,
            sessions: self.core.sessions() as u64,
            entities: (players + npcs + spawners) as u64,
            handoffs: self.core.world.counters.handed_out,
            late_parcels: self.core.late_parcels,
            syscalls_per_tick: calls + executor::calls_per_pass(self.io) + NAP_CALLS,
            packets_in: counters.datagrams_in + self.links.frames_in,
            packets_out: counters.datagrams_out + self.frames_out,
            record: self.recorder.as_mut().map(|recorder| recorder.report(gauge.busy_ns)),
            cost_us: CostUs { cells: us(self.costs.cells_ns()), lanes: us(self.costs.lanes_ns()) },
            cells: self.core.world.cut().cells_of(self.core.world.shard) as u64,
            lanes: self.core.lanes_here().count_ones().into(),
            long_ticks: gauge.long_ticks,
            cuts: self.coordinator.as_ref().map(|coordinator| coordinator.report(&self.core)),
            cuts_view: show_cuts.then(|| self.coordinator.as_mut().map(|it| it.view(&self.core))).flatten(),
            budgets: self.core.budgets(),
            ladder: ladder_report(&self.core),
            drops: counts::drops(counters, &self.links, &self.core, &self.host),
            counters: counts::totals(counters, &self.core),
            keeper_waiting: self.core.keeper.len() as u64,
            players: None,
        };
        gauge.calls = counters.calls;
        (gauge.busy_ns, gauge.cpu_ns, gauge.ticks, gauge.since_ns) = (0, 0, 0, now_ns);
        if tick.is_multiple_of(TICK_HZ * 5) {
            gauge.tick_us.reset();
        }
        let players = std::mem::take(&mut self.list_players).then(|| self.players());
        // Full: control is behind, and the next report says more.
        drop(self.reports.push(ShardReport { players, ..report }));
    }

    fn players(&self) -> Vec<PlayerRow> {
        let metres = |fine: i32| f64::from(fine) / f64::from(FINE_PER_M);
        let rows = self.core.each_session().filter_map(|(session, client_id, told)| {
            let state = told?.state;
            let (x_m, y_m) = (metres(state.x()), metres(state.y()));
            let tcp = self.links.is_tcp(session);
            Some(PlayerRow { client_id, entity: state.entity(), lane: session.lane, tcp, x_m, y_m })
        });
        rows.collect()
    }
}

/// Where the ladder stands, and what is in force of what it asks for.
fn ladder_report(core: &Core) -> LadderReport {
    LadderReport {
        step: core.ladder.step(),
        forced: core.ladder.is_forced(),
        entered: core.ladder.entered,
        degrade: core.world.degrade(),
        admission_open: core.is_open,
        turns_put_off: core.world.counters.turns_put_off,
    }
}

impl Gauge {
    fn note(&mut self, busy_ns: u64) {
        // Beyond the histogram's range is beyond any use of the difference.
        self.tick_us.saturating_record(busy_ns / 1_000);
        self.busy_ns += busy_ns;
        self.ticks += 1;
        self.long_ticks += u64::from(busy_ns > LONG_TICK_NS);
    }
}

const _: () = assert!(STOP_TICKS > crate::limits::FAREWELL_TICKS, "every session hears why it ends");
