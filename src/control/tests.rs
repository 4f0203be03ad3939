//! A real control thread on loopback, with shards that are played by the test.

use super::status::EdgeLateUs;
use super::*;
use crate::realm::report::PlayerRow;
use crate::realm::sessions::session::Rates;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicU32;

/// A data folder that goes away with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("ringshard-control-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

fn spawn(folder: &Folder) -> (ControlConfig, ControlHandle) {
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = ControlConfig::new(listen, folder.0.clone(), vec![0, 1], 0xabc);
    let handle = Control::spawn(config.clone()).unwrap();
    (config, handle)
}

fn report(id: u8) -> ShardReport {
    ShardReport {
        id,
        cpu: 3,
        tick: 100 + u64::from(id),
        sessions: 5,
        drops: vec![("late", 2)],
        ..ShardReport::default()
    }
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The state once both shards have been heard; a page takes a round trip, so this ends after seconds at the latest.
fn settled(address: SocketAddr) -> status::StatusPage {
    let pages = (0..10_000).map(|_| client::status(address).unwrap());
    pages.into_iter().find(|page| page.shards.len() == 2).expect("control takes the reports")
}

#[test]
fn status_shows_the_newest_report_of_each_shard() {
    let folder = Folder::new();
    let (config, handle) = spawn(&folder);
    for report in [ShardReport { sessions: 1, ..report(0) }, report(0), report(1)] {
        config.reports.push(report).unwrap();
    }
    let page = settled(handle.address());
    assert_eq!((page.tick, page.ready, page.content_version.as_str()), (101, false, "0000000000000abc"));
    assert_eq!(page.shards.iter().map(|shard| shard.sessions).collect::<Vec<_>>(), [5, 5]);
    assert_eq!(page.shards[0].drops["late"], 2);
    assert!(page.rss_bytes > 1 << 20);
    handle.set_ready().unwrap();
    assert!(client::status(handle.address()).unwrap().ready);
    handle.stop().unwrap();
}

#[test]
fn the_page_has_the_fields_that_scripts_read() {
    let folder = Folder::new();
    let (config, handle) = spawn(&folder);
    config.reports.push(report(0)).unwrap();
    config.reports.push(report(1)).unwrap();
    settled(handle.address());
    let answer = get(handle.address(), "/status");
    let body: serde_json::Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    for field in ["version", "content_version", "ready", "tick", "rss_bytes", "shards"] {
        assert!(body.get(field).is_some(), "{field}: {body}");
    }
    let memory = &body["memory"];
    for field in [
        "heap_bytes",
        "c_heap_bytes",
        "store_memtables_bytes",
        "store_block_cache_bytes",
        "store_table_readers_bytes",
        "ledger_accounts",
        "ledger_items",
        "ledger_mails",
        "ledger_things",
        "ledger_sources",
        "ledger_answers",
    ] {
        assert!(memory[field].is_u64(), "{field}: {memory}");
    }
    let shard = &body["shards"][1];
    for field in [
        "id",
        "cpu",
        "busy",
        "sessions",
        "entities",
        "handoffs",
        "late_parcels",
        "syscalls_per_tick",
        "phase_us",
        "edge_late_us",
        "drops",
    ] {
        assert!(shard.get(field).is_some(), "{field}: {shard}");
    }
    assert!(shard["tick_us"]["p50"].is_u64() && shard["tick_us"]["p99"].is_u64(), "{shard}");
    handle.stop().unwrap();
}

#[test]
fn lateness_between_two_looks_is_their_difference() {
    let before = EdgeLateUs::of(vec![(10, 90), (20, 9), (400, 1)]);
    assert_eq!((before.p50, before.p99), (10, 20));
    let after = EdgeLateUs::of(vec![(10, 91), (15, 1), (20, 9), (400, 99)]);
    let between = after.since(&before);
    assert_eq!((between.p50, between.p99), (400, 400));
    assert_eq!(between.counts, [(10, 1), (15, 1), (20, 0), (400, 98)]);
    assert_eq!(EdgeLateUs::of(Vec::new()), EdgeLateUs::default());
}

#[test]
fn it_is_alive_and_names_its_pages() {
    let folder = Folder::new();
    let (_, handle) = spawn(&folder);
    assert!(get(handle.address(), "/healthz").ends_with("alive\n"));
    let unknown = get(handle.address(), "/metricz");
    assert!(unknown.starts_with("HTTP/1.0 404") && unknown.contains("there is no /metricz"), "{unknown}");
    handle.stop().unwrap();
}

#[test]
fn a_taken_port_names_itself_and_the_flag() {
    let (first, second) = (Folder::new(), Folder::new());
    let (_, handle) = spawn(&first);
    let config = ControlConfig::new(handle.address(), second.0.clone(), vec![0], 0);
    let Err(failure) = Control::spawn(config) else { panic!("the port is taken") };
    assert_eq!(failure.code, Code::Unavailable);
    assert!(failure.text.contains(&handle.address().to_string()) && failure.text.contains("--control"), "{failure}");
    handle.stop().unwrap();
}

#[test]
fn a_folder_that_another_node_serves_is_refused() {
    let folder = Folder::new();
    let (config, handle) = spawn(&folder);
    let Err(failure) = Control::spawn(config.clone()) else { panic!("the folder is in use") };
    assert!(failure.code == Code::DataFolder && failure.text.starts_with("another node runs from"), "{failure}");
    assert!(client::admin(&folder.0, "drain", None).unwrap().ok, "the first one still answers");
    handle.stop().unwrap();
    std::os::unix::net::UnixListener::bind(folder.0.join(admin::SOCKET_NAME)).unwrap();
    Control::spawn(config).unwrap().stop().expect("what a dead process left is replaced");
}

#[test]
fn drain_reaches_the_host() {
    let folder = Folder::new();
    let (config, handle) = spawn(&folder);
    handle.set_ready().unwrap();
    assert!(client::admin(&folder.0, "drain", None).unwrap().ok);
    assert!(config.draining.load(Ordering::Acquire));
    assert!(!client::status(handle.address()).unwrap().ready, "a draining node is not ready");
    handle.stop().unwrap();
}

#[test]
fn players_come_from_every_shard_by_client_id() {
    let folder = Folder::new();
    let (config, handle) = spawn(&folder);
    let reports = Arc::clone(&config.reports);
    let shards = std::thread::spawn(move || {
        for (id, queue) in config.commands.iter().enumerate() {
            while queue.pop() != Some(ControlCommand::ListPlayers) {
                std::thread::yield_now();
            }
            let row = PlayerRow { client_id: 9 - id as u64, x_m: 1.5, ..PlayerRow::default() };
            reports.push(ShardReport { players: Some(vec![row]), ..report(id as u8) }).unwrap();
        }
    });
    let answer = client::admin(&folder.0, "players", None).unwrap();
    shards.join().unwrap();
    let players = answer.players.unwrap();
    assert_eq!(players.iter().map(|player| player.client_id).collect::<Vec<_>>(), [8, 9]);
    handle.stop().unwrap();
}

#[test]
fn silent_shards_are_named() {
    let folder = Folder::new();
    let (_, handle) = spawn(&folder);
    let failure = client::admin(&folder.0, "players", None).unwrap_err();
    assert!(failure.code == Code::Failed && failure.text.ends_with("from the shards [0, 1]"), "{failure}");
    handle.stop().unwrap();
}

#[test]
fn nonsense_is_answered_in_words_and_the_connection_lives() {
    let folder = Folder::new();
    let (_, handle) = spawn(&folder);
    let stream = UnixStream::connect(folder.0.join(admin::SOCKET_NAME)).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut ask = |text: &str| {
        writeln!(&stream, "{text}").unwrap();
        let mut answer = String::new();
        reader.read_line(&mut answer).unwrap();
        answer
    };
    assert!(
        ask("{\"verb\":\"dance\"}")
            .contains("unknown verb \\\"dance\\\"; there are drain, players, record, checkpoint, cuts, show and set")
    );
    assert!(ask("hello").contains("expected one line such as"));
    assert!(ask("{\"verb\":\"drain\"}").contains("\"ok\":true"));
    assert!(ask(&"x".repeat(10_000)).contains("a request line has at most 4096 bytes"));
    handle.stop().unwrap();
}

#[test]
fn more_admins_than_places_are_told_so() {
    let folder = Folder::new();
    let (_, handle) = spawn(&folder);
    let path = folder.0.join(admin::SOCKET_NAME);
    let held: Vec<UnixStream> = (0..crate::limits::ADMIN_CLIENTS_MAX)
        .map(|_| {
            let stream = UnixStream::connect(&path).unwrap();
            writeln!(&stream, "{{\"verb\":\"?\"}}").unwrap();
            BufReader::new(stream.try_clone().unwrap()).read_line(&mut String::new()).unwrap();
            stream
        })
        .collect();
    let mut answer = String::new();
    UnixStream::connect(&path).unwrap().read_to_string(&mut answer).unwrap();
    assert!(answer.contains("64 admins are connected already"), "{answer}");
    drop(held);
    handle.stop().unwrap();
}

#[test]
fn the_data_folder_says_how_to_reach_the_node_while_it_runs() {
    let folder = Folder::new();
    let (_, handle) = spawn(&folder);
    let nobody = client::NodeFile::read(&folder.0).unwrap_err();
    assert!(nobody.code == Code::Unavailable && nobody.text.starts_with("no node runs from"), "{nobody}");
    handle.set_ready().unwrap();
    let node = client::NodeFile::read(&folder.0).unwrap();
    assert_eq!((node.control, node.pid), (handle.address(), std::process::id()));
    let mode = std::fs::metadata(folder.0.join(admin::SOCKET_NAME)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    handle.stop().unwrap();
    assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 0, "it leaves nothing");
    assert_eq!(client::admin(&folder.0, "drain", None).unwrap_err().code, Code::Unavailable);
}

#[test]
fn what_is_tuned_reaches_every_shard_and_is_kept_with_who_did_it() {
    let folder = Folder::new();
    let (config, handle) = spawn(&folder);
    let set = |key: &str, value: &str| {
        let (key, value) = (Some(key.to_owned()), Some(value.to_owned()));
        client::ask(&folder.0, &admin::Request { verb: "set".to_owned(), key, value, ..Default::default() })
    };
    let change = set("net.send_hz", "15").unwrap().change.unwrap();
    assert_eq!((change.from.as_str(), change.to.as_str()), ("30", "15"));
    assert_eq!((change.uid, change.pid), (rustix::process::getuid().as_raw(), Some(std::process::id() as i32)));
    for queue in &config.commands {
        assert!(matches!(queue.pop(), Some(ControlCommand::Rates(Rates { send_hz: 15, .. }))));
        assert_eq!(queue.pop(), Some(ControlCommand::PinLadder(None)));
    }
    let refused = set("net.send_hz", "61").unwrap_err();
    assert!(refused.text.contains("from 1 to 60, found 61"), "{refused}");
    assert!(config.commands[0].is_empty(), "what is refused reaches nobody");
    for number in 0..2 * crate::limits::TUNED_KEPT_MAX {
        set("load.step", &(number % 9).to_string()).unwrap();
        config.commands.iter().for_each(|queue| while queue.pop().is_some() {});
    }
    let tuned = client::status(handle.address()).unwrap().tuned;
    assert_eq!((tuned.len(), tuned[0].key.as_str()), (crate::limits::TUNED_KEPT_MAX, "load.step"));
    let values = client::ask(&folder.0, &admin::Request { verb: "show".to_owned(), ..Default::default() });
    let values = values.unwrap().values.unwrap();
    let row = values.iter().find(|row| row.key == "net.send_hz").expect("every key is shown");
    assert!(row.value.as_deref() == Some("15") && row.origin.starts_with("tuned by uid "), "{row:?}");
    let behind = (0..).find_map(|_| set("load.step", "auto").err()).expect("nobody reads the queues");
    assert!(behind.text.contains("ask again"), "{behind}");
    handle.stop().unwrap();
}
