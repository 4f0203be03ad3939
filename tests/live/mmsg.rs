//! A node without io_uring: where the kernel denies it, as in a container.

use std::collections::BTreeMap;
use std::time::Duration;

use ringshard::wire::body::PONG_MARKER;
use ringshard::wire::transport::token::UserData;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

use super::client::{TcpTool, dev_token};
use super::server::{Server, TempFolder, run};
use super::{count, walk_about};

/// The numbers of `io_uring_setup`, `io_uring_enter` and `io_uring_register` on every architecture.
const IO_URING_CALLS: [i64; 3] = [425, 426, 427];

/// Runs something on a thread that may not use io_uring, nor may what it starts: it gets EPERM, as from a container's
/// filter.
fn without_io_uring<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let refused: BTreeMap<_, _> = IO_URING_CALLS.into_iter().map(|call| (call, Vec::new())).collect();
    let eperm = SeccompAction::Errno(1);
    let arch = std::env::consts::ARCH.try_into().expect("a known architecture");
    let filter = SeccompFilter::new(refused, SeccompAction::Allow, eperm, arch).expect("a filter");
    let program = BpfProgram::try_from(filter).expect("a program");
    let filtered = || {
        apply_filter(&program).expect("the kernel has seccomp");
        work()
    };
    std::thread::scope(|scope| scope.spawn(filtered).join().expect("the work is done"))
}

#[test]
fn without_io_uring_players_play_over_udp_and_tcp_and_the_record_replays() {
    let data = TempFolder::new();
    let mut server = without_io_uring(|| Server::start(&data, &["--shards", "2", "--io", "mmsg"]));
    let mut tools: Vec<_> = (0..10).map(|_| TcpTool::open(server.game)).collect();
    let guest = dev_token(server.game, 1_000, 3_600, UserData { reusable: true, ..UserData::default() });
    tools.iter_mut().for_each(|tool| tool.send_frame(&guest));
    let _players = walk_about(&server);
    for tool in &mut tools {
        tool.ping(5, Duration::from_secs(5));
        assert_eq!(count(&tool.received, &PONG_MARKER), 5, "each ping is answered once");
    }
    let status = server.status();
    assert_eq!(status["io"], "mmsg");
    for shard in status["shards"].as_array().expect("a list") {
        assert!(shard["packets_in"].as_u64() > Some(0) && shard["record"]["bytes"].as_u64() > Some(0), "{shard}");
        assert_eq!((&shard["record"]["dropped"], &shard["drops"]["tcp_full"]), (&0.into(), &0.into()), "{shard}");
    }
    assert_eq!(server.stop(), 0);
    assert_eq!(server.inspect().len(), 20, "every character is saved, and no guest");
    let replayed = server.run(&["replay", &format!("{}/flight", data.path()), "--json"]);
    assert!(replayed.status.success(), "{}", String::from_utf8_lossy(&replayed.stdout));
}

#[test]
fn without_io_uring_the_default_says_how_to_go_without() {
    let data = TempFolder::new();
    let serve = ["serve", "--dev", "--shards", "1", "--bind", "127.0.0.1:0", "--control", "127.0.0.1:0", "--data"];
    let served = without_io_uring(|| run(&[&serve[..], &[data.path()]].concat()));
    let said = String::from_utf8_lossy(&served.stderr).into_owned();
    assert_eq!(served.status.code(), Some(71), "{said}");
    assert!(said.contains("io_uring: refused by a seccomp filter") && said.contains("serve --io mmsg"), "{said}");
    let doctor = without_io_uring(|| run(&["doctor", "--shards", "1"]));
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert_eq!(doctor.status.code(), Some(71), "{said}");
    assert!(said.contains("mend: ringshard serve --io mmsg"), "{said}");
    let doctor = without_io_uring(|| run(&["doctor", "--shards", "1", "--io", "mmsg"]));
    assert!(doctor.status.success(), "{}", String::from_utf8_lossy(&doctor.stdout));
}
