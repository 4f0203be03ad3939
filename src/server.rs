//! `serve`: one node from start to end.
//!
//! Owns the order of things: data folder, checks, sockets, keeper before any thread is pinned, control, shards, ready; and
//! the way back. Promises: `ready` is said once joins are accepted; TERM saves every character before the process ends; a
//! failed keeper or a dead shard ends the node with its reason.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use aws_lc_rs::digest;

use crate::clock::Clock;
use crate::config::{self, Config};
use crate::control::live::LiveForm;
use crate::control::{Control, ControlConfig, ControlHandle};
use crate::exit::{Code, Failure};
use crate::flight::folder::{FlightFolder, Reason};
use crate::folder::DataFolder;
use crate::io::{BindError, Lane, Lanes, Listeners, PacketConfig, bind_lanes, bind_tcp};
use crate::limits::{DECREE_TICKS_MIN, LANES, NPC_LIFE_TICKS, RECORD_WRITE_MS, SILENT_S_MAX};
use crate::preflight;
use crate::realm::core::Rules;
use crate::realm::flight::record::{FORMAT, Head};
use crate::realm::keeper::{Desk, DeskRules, Store, StoreError, Terms};
use crate::realm::ladder::Common;
use crate::realm::mesh;
use crate::realm::report::ControlCommand;
use crate::realm::sessions::interest::Radii;
use crate::realm::sessions::session::Rates;
use crate::rocks::{KeeperHandle, KeeperQueues, RocksDisk};
use crate::shard::beats::{Beats, LOOK_MS};
use crate::shard::recorder::RecorderSetup;
use crate::shard::{self, ShardSetup};
use crate::sys;
use crate::wire::goods::Thing;
use crate::wire::ids::{CellKey, ShardId};
use crate::wire::messages::Seam;
use crate::wire::transport::handshake::HandshakeConfig;
use crate::wire::transport::token::{DEV_KEY, random_bytes};
use crate::wire::units::GRID_PER_M;
use crate::world::cut::CutMap;
use crate::world::land::Land;
use crate::world::{World, WorldConfig};

/// Seed of the land of a realm that asks for none.
const LAND_SEED: u64 = 42;
/// Ticks between the last tick known of an earlier run and the first of this one: no tick comes twice.
const RESTART_TICKS: u64 = 600;
/// Ports that are tried where the kernel chooses.
const PORT_TRIES_MAX: u32 = 32;
/// Pause between two of these tries of a port that was named.
const PORT_WAIT: Duration = Duration::from_millis(25);
/// How often the host looks whether something ended, or stands still.
const WATCH: Duration = Duration::from_millis(LOOK_MS);

/// What a node's parts share.
struct Node {
    config: Config,
    control: ControlHandle,
    commands: ControlConfig,
    keeper: KeeperHandle,
    flight: Option<Arc<FlightFolder>>,
    clock: Clock,
    shards: Vec<JoinHandle<Result<(), String>>>,
    beats: Beats,
}

/// Runs a node until it is told to end.
pub fn serve(config: Config, no_tui: bool) -> Result<(), Failure> {
    let folder = DataFolder::open(config.node.data.as_deref())?;
    let plan = preflight::Plan {
        shards: config.node.shards,
        cpus: config.node.cpus.clone(),
        io: config.net.io,
        data: Some(folder.path().to_path_buf()),
    };
    preflight::require(&preflight::examine(&plan))?;
    sys::raise_open_files();
    let mut node = start(config, &folder, no_tui)?;
    let end = watch(&mut node);
    stop(node, end)
}

fn start(config: Config, folder: &DataFolder, no_tui: bool) -> Result<Node, Failure> {
    let key = private_key(&config)?;
    let (shards, cpus) = (config.node.shards, config.node.cpus.clone());
    let cut = Arc::new(CutMap::equal(shards));
    let queues = KeeperQueues::new(shards);
    // First the data folder: who starts a second node by mistake is told so, and not that its port is taken.
    let keeper = open_keeper(&config, folder, &cut, &queues)?;
    let (lanes, listeners) = bind_game(config.net.bind, shards).map_err(bind_failure)?;
    let mut commands = control_config(&config, folder, no_tui);
    let flight = open_flight(&config, folder)?;
    commands.flight = flight.clone();
    commands.keeper = Some(keeper.handle.view());
    let control = Control::spawn(commands.clone())?;
    let land = Arc::new(Land::new(keeper.land_seed));
    let start_tick = if keeper.tick == 0 { 0 } else { keeper.tick + RESTART_TICKS };
    let clock = Clock::starting(start_tick);
    let run = u64::from_le_bytes(random_bytes());
    let world_config = WorldConfig {
        seed: secret(&key, keeper.land_seed),
        land: land.clone(),
        cut: cut.clone(),
        npcs: config.world.npcs,
        npc_life_ticks: NPC_LIFE_TICKS,
        start_tick,
        things: keeper.things.into(),
    };
    let rules = rules(&config, &cut, &land);
    let handshakes = handshakes(&config, key, lanes.address, keeper.start);
    let sockets: Vec<Arc<UdpSocket>> = lanes.sockets.into_iter().map(Arc::new).collect();
    let mut carriers = mesh::carriers(shards).into_iter();
    let ready = Arc::new(AtomicUsize::new(0));
    let (mut threads, mut beats) = (Vec::with_capacity(shards), Beats::default());
    for (at, (mesh, listener)) in mesh::connect(shards).into_iter().zip(listeners.sockets).enumerate() {
        let shard = ShardId(at as u8);
        let world = World::new(world_config.clone(), shard);
        let is_mine = |lane: u8| world.lanes().owner(lane) == shard;
        let lane =
            |(number, socket): (u8, &Arc<UdpSocket>)| Lane { number, socket: socket.clone(), served: is_mine(number) };
        let lanes = (0..).zip(&sockets).map(lane).collect();
        let handshakes = handshakes.iter().filter(|config| is_mine(config.lane)).cloned().collect();
        let setup = ShardSetup {
            shard,
            cpu: cpus[at],
            clock,
            start_tick,
            world,
            mesh,
            carrier: carriers.next().expect("one for each shard"),
            rules,
            io: config.net.io,
            packets: PacketConfig::new(lanes, Some(listener)),
            handshakes,
            keeper: queues.commands.clone(),
            answers: queues.answers[at].clone(),
            reports: commands.reports.clone(),
            commands: commands.commands[at].clone(),
            recorder: flight.as_ref().map(|flight| recorder(flight, shard, &world_config, run)),
            beat: beats.add(),
        };
        threads.push(spawn_shard(setup, ready.clone())?);
    }
    let node = Node { config, control, commands, keeper: keeper.handle, flight, clock, shards: threads, beats };
    await_ready(&node, &ready)?;
    node.control.set_ready()?;
    say_ready(&node, folder, lanes.address, keeper.recovered);
    Ok(node)
}

/// What control begins with, but for what it sees of flight record and keeper.
fn control_config(config: &Config, folder: &DataFolder, no_tui: bool) -> ControlConfig {
    let cpus = config.node.cpus.clone();
    let mut control = ControlConfig::new(config.net.control, folder.path().to_path_buf(), cpus, content_version());
    control.config = config.clone();
    if config.load.step.is_some() {
        let pin = ControlCommand::PinLadder(config.load.step);
        control.commands.iter().for_each(|queue| queue.push(pin).expect("a new queue has room"));
    }
    control.live = LiveForm::for_terminal(no_tui);
    control
}

fn open_flight(config: &Config, folder: &DataFolder) -> Result<Option<Arc<FlightFolder>>, Failure> {
    if !config.record.flight {
        return Ok(None);
    }
    let flight = FlightFolder::open(folder.path(), config.node.shards, config.record.megabytes)?;
    Ok(Some(Arc::new(flight)))
}

fn recorder(flight: &FlightFolder, shard: ShardId, world: &WorldConfig, run: u64) -> RecorderSetup {
    let head = Head {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        content: content_version(),
        run,
        shard,
        shards: world.cut.shards() as u8,
        seed: world.seed,
        land_seed: world.land.seed,
        npc_life_ticks: world.npc_life_ticks,
    };
    RecorderSetup {
        head,
        folder: flight.shard_path(shard.index()),
        progress: flight.progress(shard.index()),
        segment_bytes_max: flight.segment_bytes_max(),
    }
}

/// Binds UDP and TCP to one port. Where the kernel chooses it (port 0), a port that only UDP has free is passed over; one
/// that was named may still be with a process that was just killed, whose rings the kernel takes apart after its end.
fn bind_game(address: SocketAddr, shards: usize) -> Result<(Lanes, Listeners), BindError> {
    let mut tries = PORT_TRIES_MAX;
    loop {
        tries -= 1;
        let bound = bind_lanes(address, LANES);
        match bound.and_then(|lanes| bind_tcp(lanes.address, shards).map(|listeners| (lanes, listeners))) {
            Err(BindError::PortTaken { .. }) if tries > 0 && address.port() != 0 => std::thread::sleep(PORT_WAIT),
            Err(BindError::PortTaken { .. }) if tries > 0 => (),
            bound => return bound,
        }
    }
}

/// What an opened keeper says about its realm.
struct OpenKeeper {
    handle: KeeperHandle,
    recovered: u64,
    land_seed: u64,
    /// Number of this start of the realm.
    start: u64,
    tick: u64,
    things: Vec<Thing>,
}

/// Opens the store on a thread that keeps off the shards' cores, so that the store's own threads do as well.
fn open_keeper(
    config: &Config,
    folder: &DataFolder,
    cut: &Arc<CutMap>,
    queues: &KeeperQueues,
) -> Result<OpenKeeper, Failure> {
    let (path, cpus, shards) = (folder.path().to_path_buf(), config.node.cpus.clone(), config.node.shards);
    let wanted = config.world.land_seed;
    let (cut, queues, keeper, start_goods) = (cut.clone(), queues.clone(), config.keeper.clone(), config.dev);
    let opener = std::thread::spawn(move || {
        if let Err(error) = sys::keep_off(&cpus) {
            eprintln!("ringshard: the keeper shares its CPU with shards: {error}");
        }
        let owner = |row: &crate::realm::keeper::CharacterRow| cut.owner(CellKey::of_fine(row.x, row.y));
        let opened = RocksDisk::open(&path, shards)
            .and_then(|disk| Store::open(disk, shards, wanted.unwrap_or(LAND_SEED), owner))
            .and_then(|store| Desk::open(store, DeskRules { start_goods, terms: Terms::default() }));
        let desk = opened.map_err(|error| store_failure(&error))?;
        let (things, start) = (desk.things(), desk.start());
        let (recovered, realm) = (desk.store().recovered_characters(), *desk.store().realm());
        if let Some(wanted) = wanted.filter(|&wanted| wanted != realm.seed) {
            let text = format!(
                "world.land_seed is {wanted}, but the realm in {} has the land of seed {}; remove the key or name another data folder",
                path.display(),
                realm.seed
            );
            return Err(Failure::new(Code::Config, text));
        }
        let commit = Duration::from_millis(keeper.commit_ms.into());
        let handle = KeeperHandle::spawn(desk, queues, commit, keeper.commit_bytes)
            .map_err(|error| Failure::new(Code::Machine, format!("cannot start the keeper's thread: {error}")))?;
        Ok(OpenKeeper { handle, recovered, land_seed: realm.seed, start, tick: realm.tick, things })
    });
    opener
        .join()
        .unwrap_or_else(|_| Err(Failure::new(Code::Failed, "opening the store failed; the message stands above")))
}

fn spawn_shard(setup: ShardSetup, ready: Arc<AtomicUsize>) -> Result<JoinHandle<Result<(), String>>, Failure> {
    let name = format!("shard-{}", setup.shard.0);
    std::thread::Builder::new()
        .name(name)
        .spawn(move || {
            shard::run(setup, || {
                ready.fetch_add(1, Ordering::Release);
            })
        })
        .map_err(|error| Failure::new(Code::Machine, format!("cannot start a shard's thread: {error}")))
}

fn await_ready(node: &Node, ready: &AtomicUsize) -> Result<(), Failure> {
    while ready.load(Ordering::Acquire) < node.shards.len() {
        if let Some(at) = node.shards.iter().position(JoinHandle::is_finished) {
            // The other shards wait for nobody else: the process ends with the reason of this one.
            return Err(Failure::new(
                Code::Machine,
                format!("shard {at} did not start; `ringshard doctor` says what is missing"),
            ));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn say_ready(node: &Node, folder: &DataFolder, address: SocketAddr, recovered: u64) {
    eprintln!("ringshard: recovered characters={recovered}");
    eprintln!(
        "ringshard: ready game={address} control=http://{} data={} shards={}{}",
        node.control.address(),
        folder.path().display(),
        node.shards.len(),
        if node.config.dev { " (development: anyone on this machine may join)" } else { "" },
    );
}

/// Waits for the end, and says why it came.
fn watch(node: &mut Node) -> Result<(), Failure> {
    let (mut was_full, mut common) = (false, Common::default());
    loop {
        std::thread::sleep(WATCH);
        if let Some(error) = node.keeper.failure() {
            return Err(store_failure(&error));
        }
        if let Some(at) = node.shards.iter().position(JoinHandle::is_finished) {
            return Err(Failure::new(Code::Failed, format!("shard {at} ended; its last message stands above")));
        }
        look_at_beats(node)?;
        for text in node.keeper.take_breaks() {
            eprintln!("ringshard: {text}; `inspect --check` on a checkpoint says more");
            if let Some(Err(failure)) = node.flight.as_ref().map(|flight| flight.set_aside(Reason::Invariant)) {
                eprintln!("ringshard: {failure}");
            }
        }
        let is_full = node.keeper.counters().disk_full.load(Ordering::Relaxed) == 1;
        if is_full != was_full {
            let data = node.commands.data.display();
            match is_full {
                true => eprintln!(
                    "ringshard: the disk of {data} is nearly full: nobody is admitted until there is room (`df -h {data}`)"
                ),
                false => eprintln!("ringshard: the disk of {data} has room again: players are admitted"),
            }
            was_full = is_full;
        }
        common = obey_ladders(node, common)?;
        node.flight.iter().for_each(|flight| flight.tend());
        if node.commands.draining.load(Ordering::Acquire) {
            return Ok(());
        }
    }
}

/// A shard that stands still for too long ends the node: who plays on it waits for nothing, and nobody else can help it.
fn look_at_beats(node: &mut Node) -> Result<(), Failure> {
    let Node { beats, shards, flight, commands, .. } = node;
    let Some(ShardId(at)) = beats.look(|at| shards[at].is_finished()) else { return Ok(()) };
    // The others' recorders write what they have.
    std::thread::sleep(Duration::from_millis(2 * RECORD_WRITE_MS));
    let mut text = format!(
        "shard {at} stood still for {SILENT_S_MAX} s, so the node ends; look for what keeps the thread shard-{at} from its \
         core: a debugger, a stopped thread, another program of higher priority, a kernel call that hangs (`dmesg`); then \
         start again, every order that was acknowledged is kept"
    );
    if flight.is_some() {
        let data = commands.data.display();
        text += &format!("; `ringshard replay {data}/flight` repeats what the shards did until then");
    }
    Err(Failure::new(Code::Failed, text))
}

/// Makes what the shards' ladders ask of the whole node so, where it differs from `before`; gives it back.
fn obey_ladders(node: &mut Node, before: Common) -> Result<Common, Failure> {
    let common = node.control.common();
    if common.degrade != before.degrade {
        let level = common.degrade;
        tell(node, 0, ControlCommand::Degrade(level))?;
        eprintln!("ringshard: overload: degrade level {level} of 3");
    }
    if common.closed != before.closed {
        tell_shards(node, ControlCommand::Admission { open: !common.closed })?;
        let text = if common.closed { "nobody more is admitted" } else { "players are admitted again" };
        eprintln!("ringshard: overload: {text}");
    }
    Ok(common)
}

fn tell_shards(node: &mut Node, command: ControlCommand) -> Result<(), Failure> {
    (0..node.shards.len()).try_for_each(|at| tell(node, at, command))
}

/// Tells a shard, and waits while it has no room: it makes some every tick, unless it stands still.
fn tell(node: &mut Node, at: usize, command: ControlCommand) -> Result<(), Failure> {
    while node.commands.commands[at].push(command).is_err() {
        if node.shards[at].is_finished() {
            return Err(Failure::new(Code::Failed, format!("shard {at} ended; its last message stands above")));
        }
        look_at_beats(node)?;
        std::thread::sleep(WATCH);
    }
    Ok(())
}

/// Saves every character and ends. After a failure nothing more can be promised: the process ends at once.
fn stop(mut node: Node, end: Result<(), Failure>) -> Result<(), Failure> {
    if let Err(failure) = end.and_then(|()| drain(&mut node)) {
        eprintln!("ringshard: {}", failure.text);
        std::process::exit(failure.code as i32);
    }
    for shard in node.shards {
        match shard.join() {
            Ok(Ok(())) => (),
            Ok(Err(text)) => return Err(Failure::new(Code::Machine, text)),
            Err(_) => return Err(Failure::new(Code::Failed, "a shard panicked; its message stands above")),
        }
    }
    if let Some(flight) = &node.flight {
        flight.end()?;
    }
    node.keeper.stop().map_err(|error| store_failure(&error))?;
    node.control.stop()?;
    eprintln!("ringshard: ended");
    Ok(())
}

/// Ends the shards, and waits for them as long as none stands still.
fn drain(node: &mut Node) -> Result<(), Failure> {
    eprintln!("ringshard: draining: every character is saved, then the node ends");
    let stop = node.clock.tick_at(node.clock.now_ns()) + DECREE_TICKS_MIN;
    tell_shards(node, ControlCommand::StopAt(stop))?;
    while !node.shards.iter().all(JoinHandle::is_finished) {
        look_at_beats(node)?;
        std::thread::sleep(WATCH);
    }
    Ok(())
}

fn private_key(config: &Config) -> Result<[u8; 32], Failure> {
    match &config.net.private_key_file {
        Some(path) if !config.dev => config::read_private_key(path),
        _ => Ok(DEV_KEY),
    }
}

/// The realm's secret: nobody who knows the land can compute it without the private key.
fn secret(key: &[u8; 32], land_seed: u64) -> u64 {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(b"ringshard realm seed");
    context.update(key);
    context.update(&land_seed.to_le_bytes());
    u64::from_le_bytes(*context.finish().as_ref().first_chunk().expect("a digest has 32 bytes"))
}

fn rules(config: &Config, cut: &CutMap, land: &Land) -> Rules {
    let grid = |metres: u32| metres as i32 * GRID_PER_M;
    let radii = Radii { enter: grid(config.world.enter_radius_m), leave: grid(config.world.leave_radius_m) };
    let seam = cut.seam(land).filter(|_| config.dev);
    let seam = seam.map(|seam| Seam { x0: seam.from.0, y0: seam.from.1, x1: seam.to.0, y1: seam.to.1 });
    let rates = Rates { send_hz: config.net.send_hz, bytes_per_s: config.net.session_bytes_per_s };
    Rules { radii, rates, dev: config.dev, seam }
}

fn handshakes(config: &Config, private_key: [u8; 32], address: SocketAddr, start: u64) -> Vec<HandshakeConfig> {
    let challenge_key = random_bytes();
    let mut public_addresses = config.net.server_addresses.clone();
    if !public_addresses.contains(&address) {
        public_addresses.push(address);
    }
    let lane = |lane: usize| HandshakeConfig {
        private_key,
        challenge_key,
        public_addresses: public_addresses.clone(),
        lane: lane as u8,
        start,
    };
    // Each lane's own, and those of the TCP peers behind them.
    (0..LANES + config.node.shards).map(lane).collect()
}

/// Names the rules and the content of this build; other rules, other number.
pub fn content_version() -> u64 {
    let text = concat!(env!("CARGO_PKG_VERSION"), " land 1 wildlife 1");
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// What a failed store means for the process.
pub fn store_failure(error: &StoreError) -> Failure {
    let code = match error.exit_code() {
        73 => Code::DataFolder,
        74 => Code::Io,
        78 => Code::Config,
        _ => Code::Failed,
    };
    Failure::new(code, error.to_string())
}

fn bind_failure(error: BindError) -> Failure {
    let code = match error {
        BindError::PortTaken { .. } => Code::Unavailable,
        BindError::Permission { .. } => Code::Permission,
        _ => Code::Machine,
    };
    Failure::new(code, error.to_string())
}
