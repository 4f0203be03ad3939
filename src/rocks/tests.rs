//! The keeper on a real disk.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use rocksdb::{DB, Options};

use super::*;
use crate::limits;
use crate::realm::keeper::inspect::{self, CheckReport};
use crate::realm::keeper::proof::REALM_KEY;
use crate::realm::keeper::record::seal_value;
use crate::realm::keeper::*;
use crate::wire::goods::{
    Account, Asked, Currency, Dropped, ItemRef, Offer, Order, OrderId, OrderKind, Refusal, Shelf,
};
use crate::wire::ids::{EntityId, SessionRef, ShardId};

/// The record as a program of `version` would have sealed it: the checksum is FNV-1a 64.
fn resealed(record: &[u8], version: u16) -> Vec<u8> {
    let mut bytes = record[..record.len() - 8].to_vec();
    bytes[..2].copy_from_slice(&version.to_le_bytes());
    let step = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    let sum = bytes.iter().fold(0xcbf2_9ce4_8422_2325, step);
    bytes.extend_from_slice(&sum.to_le_bytes());
    bytes
}

/// Tells a test that it runs as a process of its own, on this data folder.
const CHILD: &str = "RINGSHARD_TEST_KEEPER_CHILD";

/// A data folder of its own, gone at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("ringshard-keeper-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).expect("the test's folder can be removed");
    }
}

const COMMIT: std::time::Duration = std::time::Duration::from_millis(10);
const COMMIT_BYTES: usize = 4 << 20;

fn no_move(row: &CharacterRow) -> ShardId {
    panic!("{row:?} need not move");
}

fn open(data: &Path, shards: usize) -> Result<Store<RocksDisk>, StoreError> {
    Store::open(RocksDisk::open(data, shards)?, shards, 77, no_move)
}

fn check(data: &Path) -> Result<CheckReport, StoreError> {
    inspect::check(&RocksDisk::open_to_read(data)?, Terms::default())
}

fn inspect_characters(data: &Path) -> Result<Vec<CharacterRow>, StoreError> {
    inspect::inspect_characters(&RocksDisk::open_to_read(data)?)
}

fn desk(data: &Path, shards: usize) -> Desk<RocksDisk> {
    Desk::open(open(data, shards).unwrap(), DeskRules::default()).unwrap()
}

fn commit(store: &mut Store<RocksDisk>) -> Result<Option<u64>, StoreError> {
    store.begin(Batch::default(), false);
    store.land(Duration::MAX)
}

fn start(data: &Path, shards: usize) -> (KeeperHandle, KeeperQueues) {
    let queues = KeeperQueues::new(shards);
    (KeeperHandle::spawn(desk(data, shards), queues.clone(), COMMIT, COMMIT_BYTES).unwrap(), queues)
}

fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "waited too long");
        thread::yield_now();
    }
}

/// The next answer of a shard that says nothing of goods.
fn answer(queues: &KeeperQueues, shard: usize) -> KeeperAnswer {
    let is_news = |answer: &KeeperAnswer| matches!(answer, KeeperAnswer::Goods { .. });
    wait_for(|| queues.answers[shard].pop().filter(|answer| !is_news(answer)))
}

fn session(number: u32) -> SessionRef {
    SessionRef { lane: 0, slot: 0, generation: number }
}

fn claim(number: u32, client_id: u64, shard: ShardId) -> KeeperCommand {
    let mut token_mac = [0; 16];
    token_mac[..4].copy_from_slice(&number.to_le_bytes());
    KeeperCommand::Claim { shard, session: session(number), client_id, token_mac, expires_unix_s: 100 }
}

fn admit(queues: &KeeperQueues, number: u32, client_id: u64, shard: ShardId) -> (CharacterRow, bool) {
    queues.commands.push(claim(number, client_id, shard)).unwrap();
    match answer(queues, shard.index()) {
        KeeperAnswer::Claimed { session: admitted, row, new, .. } if admitted == session(number) => (row, new),
        other => panic!("{other:?}"),
    }
}

/// A store with characters 1..=count of clients 100.., spread over its shards.
fn fill(data: &Path, shards: usize, count: u64) -> Vec<CharacterRow> {
    let mut store = open(data, shards).unwrap();
    let rows: Vec<_> = (1..=count).map(|number| row_of(number, ShardId((number % shards as u64) as u8))).collect();
    for row in &rows {
        store.put(*row, None);
    }
    let realm = store.realm_mut();
    (realm.tick, realm.next_character) = (count, count + 1);
    assert_eq!(commit(&mut store), Ok(Some(count)));
    rows
}

fn row_of(character: u64, owner: ShardId) -> CharacterRow {
    let x = i32::try_from(character).unwrap() * 65_536;
    let (client_id, tick) = (99 + character, character);
    CharacterRow { client_id, character, owner, epoch: 1, tick, x, y: -x, z: 3, yaw: 9, saved: true, deeds: 0 }
}

/// Opens what a stopped server left, behind the store's back.
fn raw(data: &Path) -> DB {
    let path = path_in(data);
    let names = DB::list_cf(&Options::default(), &path).unwrap();
    DB::open_cf(&Options::default(), &path, names).unwrap()
}

/// Runs a test again as a process of its own, with [`CHILD`] naming the data folder.
fn run_child(before: &[&str], test: &str, data: &Path) -> Output {
    let exe = env::current_exe().unwrap();
    let exe = exe.to_str().unwrap();
    let name = format!("{}::{test}", module_path!().split_once("::").unwrap().1);
    let words = [before, &[exe, "--exact", &name, "--nocapture"]].concat();
    Command::new(words[0]).args(&words[1..]).env(CHILD, data).output().unwrap()
}

#[test]
fn a_session_claims_plays_and_comes_back_after_a_restart() {
    let data = Folder::new();
    let (keeper, queues) = start(&data.0, 2);
    let (row, new) = admit(&queues, 1, 500, ShardId(1));
    assert_eq!((row.character, row.owner, row.saved, new), (1, ShardId(1), false, true));
    let last = CharacterRow { owner: ShardId(0), epoch: 4, tick: 90, x: 7, saved: true, ..row };
    queues.commands.push(KeeperCommand::Row(CharacterRow { epoch: 4, tick: 80, ..last })).unwrap();
    queues.commands.push(KeeperCommand::Row(CharacterRow { epoch: 3, tick: 85, ..last })).unwrap();
    queues.commands.push(claim(2, 500, ShardId(0))).unwrap();
    assert_eq!(answer(&queues, 1), KeeperAnswer::Cut { session: session(1) });
    let release = KeeperCommand::Release { client_id: 500, session: session(1), row: Some(last) };
    queues.commands.push(release).unwrap();
    let claimed = answer(&queues, 0);
    assert_eq!(claimed, KeeperAnswer::Claimed { session: session(2), row: last, new: false, operation: 0 });
    queues.commands.push(KeeperCommand::Clock { tick: 95, unix_s: 10 }).unwrap();
    wait_for(|| (keeper.counters().rows_stale.load(Ordering::Relaxed) == 1).then_some(()));
    assert!(keeper.counters().commits.load(Ordering::Relaxed) >= 2);
    assert_eq!(keeper.failure(), None);
    keeper.stop().unwrap();

    let store = Store::open(RocksDisk::open(&data.0, 2).unwrap(), 2, 78, no_move).unwrap();
    assert_eq!(store.recovered_characters(), 1);
    assert_eq!(store.row(500), Ok(Some(last)));
    let realm = *store.realm();
    assert_eq!((realm.seed, realm.tick, realm.next_character), (77, 95, 2));
}

#[test]
fn a_killed_process_keeps_what_it_acknowledged() {
    if let Ok(data) = env::var(CHILD) {
        let (_keeper, queues) = start(Path::new(&data), 2);
        let (row, _) = admit(&queues, 1, 500, ShardId(0));
        let moved = CharacterRow { owner: ShardId(1), tick: 5, x: 42, saved: true, ..row };
        queues.commands.push(KeeperCommand::Row(moved)).unwrap();
        // Its answer comes with or after the commit of the row before it.
        admit(&queues, 2, 501, ShardId(1));
        std::process::abort();
    }
    let data = Folder::new();
    let output = run_child(&[], "a_killed_process_keeps_what_it_acknowledged", &data.0);
    assert_eq!(output.status.code(), None, "aborted: {output:?}");
    let store = open(&data.0, 2).unwrap();
    assert_eq!(store.recovered_characters(), 2);
    assert_eq!(store.row(500).unwrap().map(|row| (row.x, row.owner)), Some((42, ShardId(1))));
    assert_eq!(store.row(501).unwrap().map(|row| row.saved), Some(false));
    assert_eq!(store.realm().next_character, 3);
}

#[test]
fn a_token_that_admitted_before_a_kill_admits_nobody_after_it() {
    if let Ok(data) = env::var(CHILD) {
        let (_keeper, queues) = start(Path::new(&data), 1);
        admit(&queues, 1, 500, ShardId(0));
        std::process::abort();
    }
    let data = Folder::new();
    let output = run_child(&[], "a_token_that_admitted_before_a_kill_admits_nobody_after_it", &data.0);
    assert_eq!(output.status.code(), None, "aborted: {output:?}");
    assert_eq!(check(&data.0).map(|report| (report.tokens, report.breaks)), Ok((1, Vec::new())));
    let (keeper, queues) = start(&data.0, 1);
    let KeeperCommand::Claim { shard, client_id, token_mac, expires_unix_s, .. } = claim(1, 500, ShardId(0)) else {
        unreachable!()
    };
    queues
        .commands
        .push(KeeperCommand::Claim { shard, session: session(9), client_id, token_mac, expires_unix_s })
        .unwrap();
    let refused = KeeperAnswer::Refused { session: session(9), reason: ClaimRefusal::TokenUsed };
    assert_eq!(answer(&queues, 0), refused);
    // A spare one goes on working.
    admit(&queues, 2, 500, ShardId(0));
    keeper.stop().unwrap();
}

#[test]
fn a_used_token_that_vanished_is_missed_and_starts_are_counted() {
    let data = Folder::new();
    let (keeper, queues) = start(&data.0, 1);
    admit(&queues, 1, 500, ShardId(0));
    keeper.stop().unwrap();
    let starts = [(); 2].map(|()| desk(&data.0, 1).start());
    assert_eq!(starts, [2, 3]);
    let db = raw(&data.0);
    let token = db.iterator(rocksdb::IteratorMode::End).next().unwrap().unwrap().0;
    assert_eq!(token.len(), 25);
    db.delete(&token).unwrap();
    drop(db);
    let error = check(&data.0).unwrap_err();
    assert!(error.text.contains("used tokens"), "{error}");
    assert!(Desk::open(open(&data.0, 1).unwrap(), DeskRules::default()).is_err());
}

#[test]
fn commands_given_before_the_stop_are_durable() {
    let data = Folder::new();
    let (keeper, queues) = start(&data.0, 1);
    let (row, _) = admit(&queues, 1, 500, ShardId(0));
    for tick in 1..=5_000 {
        queues.commands.push(KeeperCommand::Row(CharacterRow { tick, saved: true, ..row })).unwrap();
    }
    keeper.stop().unwrap();
    assert_eq!(inspect_characters(&data.0).unwrap(), [CharacterRow { tick: 5_000, saved: true, ..row }]);
}

#[test]
fn a_full_answer_queue_loses_nothing() {
    let data = Folder::new();
    let mut queues = KeeperQueues::new(1);
    queues.answers[0] = std::sync::Arc::new(crossbeam_queue::ArrayQueue::new(2));
    let keeper = KeeperHandle::spawn(desk(&data.0, 1), queues.clone(), COMMIT, COMMIT_BYTES).unwrap();
    for number in 0..20 {
        queues.commands.push(claim(number, u64::from(number), ShardId(0))).unwrap();
    }
    wait_for(|| (keeper.counters().answers_waited.load(Ordering::Relaxed) > 0).then_some(()));
    for number in 0..20 {
        let claimed = answer(&queues, 0);
        assert!(matches!(claimed, KeeperAnswer::Claimed { session: s, .. } if s == session(number)), "{claimed:?}");
    }
    keeper.stop().unwrap();
}

#[test]
fn any_number_of_shards_finds_every_character_once() {
    let data = Folder::new();
    let rows = fill(&data.0, 2, 50);
    for shards in [1, 8, 2, 1] {
        let owner_of = |row: &CharacterRow| ShardId((row.character % shards as u64) as u8);
        let mut store = Store::open(RocksDisk::open(&data.0, shards).unwrap(), shards, 77, owner_of).unwrap();
        assert_eq!(store.recovered_characters(), 50);
        for row in &rows {
            let found = store.row(row.client_id).unwrap().unwrap();
            assert!(found.owner.index() < shards);
            assert_eq!(CharacterRow { owner: row.owner, ..found }, *row);
            let spread = CharacterRow { owner: owner_of(row), ..found };
            store.put(spread, Some(&found));
        }
        commit(&mut store).unwrap();
        drop(store);
        let found = inspect_characters(&data.0).unwrap();
        let numbers: Vec<_> = found.iter().map(|row| row.character).collect();
        assert_eq!(numbers, (1..=50).collect::<Vec<_>>(), "{shards} shards");
    }
}

#[test]
fn a_move_leaves_exactly_one_row() {
    let data = Folder::new();
    let row = fill(&data.0, 3, 1)[0];
    let mut store = open(&data.0, 3).unwrap();
    for (tick, path) in [(10, &[2, 0][..]), (20, &[1]), (30, &[0, 1]), (40, &[2])] {
        for owner in path {
            let held = store.row(row.client_id).unwrap().unwrap();
            store.put(CharacterRow { owner: ShardId(*owner), tick, ..row }, Some(&held));
        }
        store.realm_mut().tick = tick.max(store.realm().tick);
        assert_eq!(commit(&mut store), Ok(Some(1)));
    }
    drop(store);
    assert_eq!(inspect_characters(&data.0).unwrap(), [CharacterRow { owner: ShardId(2), tick: 40, ..row }]);
}

#[test]
fn a_folder_in_use_is_refused_to_all() {
    let data = Folder::new();
    let store = open(&data.0, 1).unwrap();
    for error in [open(&data.0, 1).err().unwrap(), inspect_characters(&data.0).unwrap_err()] {
        assert_eq!((error.kind, error.exit_code()), (StoreErrorKind::InUse, 73), "{error}");
        assert!(error.text.contains("checkpoint"), "{error}");
    }
    // Another process is told the same.
    let output = run_child(&[], "child_meets_a_folder_in_use", &data.0);
    assert!(output.status.success(), "{output:?}");
    drop(store);
    assert_eq!(inspect_characters(&data.0), Ok(Vec::new()));
}

#[test]
fn child_meets_a_folder_in_use() {
    let Ok(data) = env::var(CHILD) else { return };
    assert_eq!(open(Path::new(&data), 1).err().unwrap().kind, StoreErrorKind::InUse);
    assert_eq!(inspect_characters(Path::new(&data)).unwrap_err().kind, StoreErrorKind::InUse);
}

#[test]
fn inspection_leaves_the_folder_as_it_was() {
    let data = Folder::new();
    let rows = fill(&data.0, 2, 3);
    let list = || {
        let entries = fs::read_dir(path_in(&data.0)).unwrap().map(|entry| entry.unwrap());
        let mut list: Vec<_> = entries.map(|entry| (entry.file_name(), entry.metadata().unwrap().len())).collect();
        list.sort();
        list
    };
    let before = list();
    assert_eq!(inspect_characters(&data.0), Ok(rows));
    assert_eq!(list(), before);
    let view = inspect::inspect_views(&RocksDisk::open_to_read(&data.0).unwrap()).unwrap().swap_remove(1);
    assert_eq!((view.id, view.x_m, view.y_m), (EntityId::character(2).0, 2.0, -2.0));
    let error = inspect_characters(&data.0.join("nowhere")).unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Missing);
    assert!(!data.0.join("nowhere").exists());
}

#[test]
fn data_of_a_newer_version_is_refused_in_words() {
    let data = Folder::new();
    fill(&data.0, 1, 1);
    let db = raw(&data.0);
    let record = db.get(REALM_KEY).unwrap().unwrap();
    db.put(REALM_KEY, resealed(&record, RECORD_VERSION + 1)).unwrap();
    drop(db);
    for error in [open(&data.0, 1).err().unwrap(), inspect_characters(&data.0).unwrap_err()] {
        assert_eq!(error.kind, StoreErrorKind::Newer, "{error}");
        let words = "written by version 4 of the record format; this program reads up to 3; use a newer ringshard";
        assert!(error.text.contains(words), "{error}");
    }
    let mut db = raw(&data.0);
    db.put(REALM_KEY, record).unwrap();
    db.create_cf("dungeons", &Options::default()).unwrap();
    drop(db);
    let error = open(&data.0, 1).err().unwrap();
    assert_eq!(error.kind, StoreErrorKind::Newer);
    assert!(error.text.contains("column family dungeons"), "{error}");
}

#[test]
fn altered_data_is_named() {
    let data = Folder::new();
    fill(&data.0, 1, 3);
    let change = |family: &str, key: &[u8], bytes: Option<&[u8]>| {
        let db = raw(&data.0);
        let family = db.cf_handle(family).unwrap();
        let before = db.get_cf(family, key).unwrap().unwrap();
        match bytes {
            Some(bytes) => db.put_cf(family, key, bytes).unwrap(),
            None => db.delete_cf(family, key).unwrap(),
        }
        before
    };
    let refused = |place: &str| {
        for error in [open(&data.0, 1).err().unwrap(), inspect_characters(&data.0).unwrap_err()] {
            assert_eq!((error.kind, error.exit_code()), (StoreErrorKind::Altered, 74), "{error}");
            assert!(error.text.contains(place) && error.text.contains("backup"), "{error}");
        }
    };
    let key = 2u64.to_be_bytes();
    let row = row_of(2, ShardId(0)).encode();
    let mut flipped = row.clone();
    flipped[20] ^= 4;
    for bytes in [&flipped[..], &row[..30], &[], &row_of(3, ShardId(0)).encode(), &row_of(2, ShardId(1)).encode()] {
        assert_ne!(change("shard-0", &key, Some(bytes)), bytes);
        refused("character 2 in column family shard-0");
    }
    change("shard-0", &key, Some(&row));
    let realm = change("default", REALM_KEY, Some(&row));
    refused("the realm's record");
    change("default", REALM_KEY, None);
    let error = open(&data.0, 1).err().unwrap();
    assert!(error.kind == StoreErrorKind::Altered && error.text.contains("only 0 can be read"), "{error}");
    raw(&data.0).put(REALM_KEY, realm).unwrap();
    let client = change("clients", &101u64.to_be_bytes(), Some(&row));
    let error = open(&data.0, 1).unwrap().row(101).unwrap_err();
    assert!(error.text.contains("client 101 in column family clients"), "{error}");
    change("clients", &101u64.to_be_bytes(), Some(&client));
    assert_eq!(open(&data.0, 1).unwrap().row(101), Ok(Some(row_of(2, ShardId(0)))));
}

#[test]
fn a_folder_that_cannot_be_is_refused() {
    let data = Folder::new();
    fs::write(data.0.join("file"), b"").unwrap();
    let error = open(&data.0.join("file"), 1).err().unwrap();
    assert_eq!((error.kind, error.exit_code()), (StoreErrorKind::NotCreatable, 73), "{error}");
    assert!(error.text.contains("--data"), "{error}");
}

/// Runs a test again in a mount namespace of its own; false where that is not allowed.
fn run_child_with_mounts(test: &str) -> bool {
    let is_allowed = Command::new("unshare").args(["--mount", "true"]).status().is_ok_and(|status| status.success());
    if !is_allowed {
        eprintln!("skipped: `unshare --mount` needs root");
        return false;
    }
    let data = Folder::new();
    let output = run_child(&["unshare", "--mount"], test, &data.0);
    assert!(output.status.success(), "{output:?}");
    true
}

fn mount(options: &str, data: &Path) {
    let status = Command::new("mount").args(["-t", "tmpfs", "-o", options, "none"]).arg(data).status().unwrap();
    assert!(status.success());
}

#[test]
fn a_read_only_disk_is_refused() {
    let Ok(data) = env::var(CHILD) else {
        run_child_with_mounts("a_read_only_disk_is_refused");
        return;
    };
    let data = Path::new(&data);
    mount("rw", data);
    let rows = fill(data, 1, 3);
    mount("remount,ro", data);
    for folder in [data, &data.join("new")] {
        let error = open(folder, 1).err().unwrap();
        assert_eq!((error.kind, error.exit_code()), (StoreErrorKind::Io, 74), "{error}");
        assert!(error.text.contains("mount it writable"), "{error}");
    }
    assert_eq!(inspect_characters(data), Ok(rows));
}

#[test]
fn a_full_disk_ends_the_keeper_in_words() {
    let Ok(data) = env::var(CHILD) else {
        run_child_with_mounts("a_full_disk_ends_the_keeper_in_words");
        return;
    };
    let data = Path::new(&data);
    mount("size=48m", data);
    let rows = fill(data, 1, 10_000);
    let (keeper, queues) = start(data, 1);
    let fill_with = |name: &str| {
        let filler = format!("of={}/{name}", data.display());
        let filled = Command::new("dd").args(["if=/dev/zero", "bs=4K", &filler]).output().unwrap();
        assert!(!filled.status.success(), "the disk is full");
    };
    fill_with("filler");
    let mut newer = (10_000..).flat_map(|tick| rows.iter().map(move |row| CharacterRow { tick, ..*row }));
    let error = wait_for(|| {
        // A full queue gives the row back; the next one is as good.
        let _ = queues.commands.push(KeeperCommand::Row(newer.next().unwrap()));
        keeper.failure()
    });
    assert_eq!((error.kind, error.exit_code()), (StoreErrorKind::Io, 74), "{error}");
    assert!(error.text.contains("make room"), "{error}");
    assert_eq!(keeper.stop().unwrap_err(), error);
    // What the log had set aside is free again.
    fill_with("more");
    assert_eq!(open(data, 1).err().unwrap().kind, StoreErrorKind::Io);
    fs::remove_file(data.join("filler")).unwrap();
    assert_eq!(open(data, 1).unwrap().recovered_characters(), 10_000);
}

fn asked(source: EntityId, sequence: u64, kind: OrderKind) -> KeeperCommand {
    KeeperCommand::Order(Asked { shard: ShardId(0), order: Order { id: OrderId { source, sequence }, kind } })
}

/// What the desk answers to a command once it is durable.
fn settle(desk: &mut Desk<RocksDisk>, command: KeeperCommand) -> Vec<KeeperAnswer> {
    desk.apply(command).unwrap();
    assert!(desk.take_answers().is_empty(), "nothing is answered before the commit");
    desk.commit().unwrap();
    desk.take_answers().into_iter().map(|(_, answer)| answer).collect()
}

fn refusal_of(answers: &[KeeperAnswer]) -> Refusal {
    let settled = answers.iter().find_map(|answer| match answer {
        KeeperAnswer::Settled(settled) => Some(settled.refusal),
        _ => None,
    });
    settled.expect("an order is settled")
}

/// A desk that gives new characters their goods, with two of them in play: 1 and 2, of clients 51 and 52.
fn market(data: &Path) -> Desk<RocksDisk> {
    let rules = DeskRules { start_goods: true, ..DeskRules::default() };
    let mut desk = Desk::open(open(data, 1).unwrap(), rules).unwrap();
    for number in 1..=2 {
        settle(&mut desk, claim(number, 50 + u64::from(number), ShardId(0)));
    }
    desk
}

#[test]
fn an_order_is_done_once_over_any_number_of_starts() {
    let data = Folder::new();
    let mut desk = market(&data.0);
    let me = EntityId::character(1);
    let pay = |amount| OrderKind::MoveCoins { currency: Currency::Coin, amount, from: Shelf::Bag, to: Shelf::Bank };
    let bank = |desk: &Desk<RocksDisk>| desk.ledger().book.balance(Shelf::Bank.account(1), Currency::Coin);
    for sequence in 1..=70 {
        assert_eq!(refusal_of(&settle(&mut desk, asked(me, sequence, pay(1)))), Refusal::None);
    }
    assert_eq!(refusal_of(&settle(&mut desk, asked(me, 70, pay(1)))), Refusal::None, "the first answer again");
    assert_eq!(refusal_of(&settle(&mut desk, asked(me, 70, pay(2)))), Refusal::Reused);
    assert_eq!(refusal_of(&settle(&mut desk, asked(me, 6, pay(1)))), Refusal::TooOld);
    assert_eq!(refusal_of(&settle(&mut desk, asked(me, 7, OrderKind::Recall))), Refusal::None);
    assert_eq!(bank(&desk), 70);
    drop(desk);
    let mut desk = Desk::open(open(&data.0, 1).unwrap(), DeskRules::default()).unwrap();
    assert_eq!(refusal_of(&settle(&mut desk, asked(me, 7, pay(1)))), Refusal::None);
    assert_eq!(refusal_of(&settle(&mut desk, asked(me, 6, pay(1)))), Refusal::TooOld);
    assert_eq!(refusal_of(&settle(&mut desk, asked(me, 99, pay(5_000)))), Refusal::NotEnough);
    assert_eq!(refusal_of(&settle(&mut desk, asked(me, 99, pay(5_000)))), Refusal::NotEnough);
    assert_eq!(bank(&desk), 70);
    drop(desk);
    let report = check(&data.0).unwrap();
    assert!(report.breaks.is_empty() && report.ledger.conserved, "{report:?}");
    assert_eq!((report.orders_replayed, report.characters), (2 + 70 + 1, 2));
}

#[test]
fn both_sides_of_a_trade_hear_of_it_and_an_item_has_a_history() {
    let data = Folder::new();
    let mut desk = market(&data.0);
    let item = ItemRef { uid: 3, version: 1 };
    let partner = OrderId { source: EntityId::character(2), sequence: 9 };
    let (give, take) = (Offer::new(5, &[item]).unwrap(), Offer::new(100, &[]).unwrap());
    let answers = settle(&mut desk, asked(EntityId::character(1), 4, OrderKind::Swap { partner, give, take }));
    let told: Vec<_> = answers
        .iter()
        .filter_map(|answer| match answer {
            KeeperAnswer::Operation { session, operation, refusal, .. } => {
                Some((session.generation, *operation, *refusal))
            }
            _ => None,
        })
        .collect();
    assert_eq!(told, [(1, 4, Refusal::None), (2, 9, Refusal::None)]);
    let news = answers.iter().filter(|answer| matches!(answer, KeeperAnswer::Goods { .. })).count();
    assert_eq!(news, 2);
    let coins = |character| desk.ledger().book.balance(Shelf::Bag.account(character), Currency::Coin);
    assert_eq!((coins(1), coins(2)), (1_095, 905));
    // The partner's number is used as well.
    assert_eq!(refusal_of(&settle(&mut desk, asked(EntityId::character(2), 9, OrderKind::Recall))), Refusal::None);
    drop(desk);
    let steps = inspect::inspect_item(&RocksDisk::open_to_read(&data.0).unwrap(), 3).unwrap();
    let places: Vec<_> = steps.iter().map(|step| step.place.as_str()).collect();
    assert_eq!(places, ["bag 1", "bag 2"]);
    assert_eq!(inspect::inspect_ledger(&RocksDisk::open_to_read(&data.0).unwrap()).unwrap().items, 16);
}

#[test]
fn a_deed_is_rewarded_once_in_one_batch_with_its_row() {
    let data = Folder::new();
    let mut desk = market(&data.0);
    let deed = |sequence| asked(EntityId::deeds(2), sequence, OrderKind::Deed { deed: 7 });
    assert_eq!(refusal_of(&settle(&mut desk, deed(10))), Refusal::None);
    assert_eq!(refusal_of(&settle(&mut desk, deed(11))), Refusal::NotNow);
    // A shard's row knows nothing of it, and changes nothing of it.
    let row = desk.claims().live_row(2).unwrap();
    desk.apply(KeeperCommand::Row(CharacterRow { deeds: 0, tick: 30, saved: true, ..row })).unwrap();
    desk.commit().unwrap();
    drop(desk);
    let rows = inspect_characters(&data.0).unwrap();
    assert_eq!(rows.iter().map(|row| row.deeds).collect::<Vec<_>>(), [0, 1 << 7]);
    assert!(check(&data.0).unwrap().breaks.is_empty());
}

#[test]
fn a_checkpoint_of_a_running_keeper_is_a_realm_of_its_own() {
    let data = Folder::new();
    let queues = KeeperQueues::new(1);
    let keeper = KeeperHandle::spawn(market(&data.0), queues.clone(), COMMIT, COMMIT_BYTES).unwrap();
    let to = data.0.join("checkpoints/first");
    keeper.view().checkpoint(&to).unwrap();
    assert!(keeper.view().checkpoint(&to).is_err(), "it is there already");
    queues
        .commands
        .push(asked(EntityId::character(1), 5, OrderKind::Destroy { item: ItemRef { uid: 1, version: 1 } }))
        .unwrap();
    keeper.stop().unwrap();
    let (then, now) = (check(&to).unwrap(), check(&data.0).unwrap());
    assert!(then.breaks.is_empty() && now.breaks.is_empty(), "{then:?} {now:?}");
    assert_eq!((then.ledger.items, now.ledger.items), (16, 15));
    assert_eq!(Desk::open(open(&to, 1).unwrap(), DeskRules::default()).unwrap().things(), []);
}

#[test]
fn a_realm_that_lost_what_it_acknowledged_is_refused() {
    let data = Folder::new();
    drop(market(&data.0));
    fs::write(data.0.join("acknowledged"), (1_000u128 | u128::from(!1_000u64) << 64).to_le_bytes()).unwrap();
    for error in [open(&data.0, 1).err().unwrap(), check(&data.0).unwrap_err()] {
        assert_eq!((error.kind, error.exit_code()), (StoreErrorKind::Altered, 74), "{error}");
        assert!(error.text.contains("1000 groups of changes were acknowledged"), "{error}");
    }
}

/// Copies a data folder: one level of files, and those of `realm`.
fn copy(from: &Path, to: &Path) {
    for folder in ["", "realm"] {
        fs::create_dir_all(to.join(folder)).unwrap();
        for file in fs::read_dir(from.join(folder)).unwrap().map(|file| file.unwrap().path()) {
            if file.is_file() {
                fs::copy(&file, to.join(folder).join(file.file_name().unwrap())).unwrap();
            }
        }
    }
}

/// Names, lengths and first bytes of the files of a realm that hold data.
fn contents(data: &Path) -> Vec<(String, u64)> {
    let files = fs::read_dir(data.join("realm")).unwrap().map(|file| file.unwrap());
    let mut files: Vec<_> = files
        .map(|file| (file.file_name().into_string().unwrap(), file.metadata().unwrap().len()))
        .filter(|(name, _)| name.ends_with(".sst") || name.ends_with(".log") || name.starts_with("MANIFEST"))
        .collect();
    files.sort();
    files
}

#[test]
fn what_is_cut_or_altered_anywhere_is_refused_and_left_as_it_is() {
    let data = Folder::new();
    let mut desk = market(&data.0);
    let me = EntityId::character(1);
    let give = |sequence| {
        let (currency, from, to) = (Currency::Coin, Shelf::Bag, Shelf::Bank);
        asked(me, sequence, OrderKind::MoveCoins { currency, amount: 1, from, to })
    };
    for sequence in 1..=40 {
        settle(&mut desk, give(sequence));
    }
    // What is in tables, and what is in the log alone.
    desk.store_mut().disk_mut().flush().unwrap();
    for sequence in 41..=80 {
        settle(&mut desk, give(sequence));
    }
    let groups = desk.store().realm().groups;
    drop(desk);
    let whole = check(&data.0).unwrap();
    assert!(whole.breaks.is_empty(), "{whole:?}");
    let named = |name: &str| contents(&data.0).into_iter().filter(|(file, _)| file.contains(name)).max_by_key(|f| f.1);
    let (manifest, manifest_bytes) = named("MANIFEST").unwrap();
    let (log, log_bytes) = named(".log").unwrap();
    let cut = |file: &str, bytes: u64| {
        let file = file.to_owned();
        move |data: &Path| fs::File::options().write(true).open(data.join(&file)).unwrap().set_len(bytes).unwrap()
    };
    let flip = |file: &str, at: u64| {
        let file = file.to_owned();
        move |data: &Path| {
            let mut bytes = fs::read(data.join(&file)).unwrap();
            bytes[at as usize] ^= 16;
            fs::write(data.join(&file), bytes).unwrap();
        }
    };
    let (manifest, log) = (format!("realm/{manifest}"), format!("realm/{log}"));
    type Damage = Box<dyn Fn(&Path)>;
    let mut damages: Vec<(String, Damage)> = vec![
        ("no CURRENT".into(), Box::new(|data: &Path| fs::remove_file(data.join("realm/CURRENT")).unwrap())),
        ("witness cut".into(), Box::new(cut("acknowledged", 10))),
        ("witness empty".into(), Box::new(cut("acknowledged", 0))),
    ];
    for bytes in (manifest_bytes / 9..manifest_bytes).step_by(manifest_bytes as usize / 9) {
        damages.push((format!("{manifest} cut to {bytes}"), Box::new(cut(&manifest, bytes))));
        damages.push((format!("{manifest} flipped at {bytes}"), Box::new(flip(&manifest, bytes))));
    }
    for bytes in (log_bytes / 7..log_bytes).step_by(log_bytes as usize / 7) {
        damages.push((format!("{log} cut to {bytes}"), Box::new(cut(&log, bytes))));
        damages.push((format!("{log} flipped at {bytes}"), Box::new(flip(&log, bytes))));
    }
    // The last group alone.
    damages.push((format!("{log} flipped at its end"), Box::new(flip(&log, log_bytes - 5))));
    for (what, damage) in damages {
        let other = Folder::new();
        copy(&data.0, &other.0);
        damage(&other.0);
        let before = contents(&other.0);
        let checked = check(&other.0);
        if what.contains("MANIFEST-") && what.contains("cut") && checked.as_ref() == Ok(&whole) {
            // The log still has what the list does not speak of.
            assert_eq!(open(&other.0, 1).map(|store| store.realm().groups), Ok(groups), "{what}");
            continue;
        }
        assert!(checked.is_err(), "{what}: {checked:?}");
        for _ in 0..2 {
            let error = open(&other.0, 1).err().unwrap_or_else(|| panic!("{what} was opened"));
            assert_eq!(error.exit_code(), 74, "{what}: {error}");
            assert!(error.text.contains("backup"), "{what}: {error}");
            assert!(!what.contains(".log flipped") || error.text.contains("from byte"), "{what}: {error}");
        }
        assert_eq!(contents(&other.0), before, "{what}: nothing was thrown away");
    }
    // One of the two entries is enough, and none at all is the operator's word to go on; both are told.
    for damage in [flip("acknowledged", 3), flip("acknowledged", 20)] {
        let other = Folder::new();
        copy(&data.0, &other.0);
        damage(&other.0);
        assert_eq!(check(&other.0).unwrap().breaks.len(), 1);
        open(&other.0, 1).unwrap();
        assert_eq!(check(&other.0).unwrap().breaks, [""; 0]);
    }
    fs::remove_file(data.0.join("acknowledged")).unwrap();
    assert!(check(&data.0).unwrap().breaks[0].contains("there is no"));
    assert_eq!(Desk::open(open(&data.0, 1).unwrap(), DeskRules::default()).unwrap().ledger().orders(), 82);
}

#[test]
fn an_answer_that_vanished_is_missed() {
    let data = Folder::new();
    let mut desk = market(&data.0);
    let kind = OrderKind::Destroy { item: ItemRef { uid: 1, version: 1 } };
    settle(&mut desk, asked(EntityId::character(1), 1, kind));
    drop(desk);
    let db = raw(&data.0);
    let mut key = vec![b'w'];
    key.extend(EntityId::character(1).0.to_be_bytes());
    key.push(0);
    let ledger = db.cf_handle("ledger").unwrap();
    assert!(db.get_cf(ledger, &key).unwrap().is_some());
    db.delete_cf(ledger, &key).unwrap();
    drop(db);
    let breaks = check(&data.0).unwrap().breaks;
    assert_eq!(breaks, ["the answers that are remembered are not what the log of orders makes of them"]);
}

/// Rows of answers to orders of things.
fn answers_to_things(data: &Path) -> usize {
    let db = raw(data);
    let things = [&b"w"[..], &EntityId::thing(0).0.to_be_bytes()[..1]].concat();
    let rows = db.prefix_iterator_cf(db.cf_handle("ledger").unwrap(), &things);
    rows.filter(|row| row.as_ref().unwrap().0.starts_with(&things)).count()
}

#[test]
fn a_thing_that_is_no_more_leaves_no_row_and_cannot_be_swept_again() {
    let data = Folder::new();
    let mut desk = market(&data.0);
    let me = EntityId::character(1);
    let drop_coins = |sequence| asked(me, sequence, OrderKind::Drop { what: Dropped::Coins(5), x: 1, y: 2 });
    let sweep = |thing| asked(EntityId::thing(thing), 700, OrderKind::Sweep { thing });
    let lost = |desk: &Desk<RocksDisk>| desk.ledger().book.balance(Account::LOST, Currency::Coin);
    let before = desk.holdings();
    for sequence in 1..=100 {
        settle(&mut desk, drop_coins(sequence));
        let thing = desk.things()[0].number;
        // Some are picked up before their time is over.
        if sequence % 4 == 0 {
            settle(&mut desk, asked(EntityId::character(2), sequence, OrderKind::PickUp { thing }));
            assert_eq!(refusal_of(&settle(&mut desk, sweep(thing))), Refusal::Gone);
            continue;
        }
        assert_eq!(refusal_of(&settle(&mut desk, sweep(thing))), Refusal::None);
        let swept = lost(&desk);
        // A late duplicate finds nothing: no later thing has its number.
        assert_eq!(refusal_of(&settle(&mut desk, sweep(thing))), Refusal::Gone);
        assert_eq!(lost(&desk), swept);
    }
    let after = desk.holdings();
    assert_eq!((after.things, after.sources), (0, before.sources), "a thing is no source that is remembered");
    drop(desk);
    assert_eq!(answers_to_things(&data.0), 0);
    let report = check(&data.0).unwrap();
    assert!(report.breaks.is_empty() && report.ledger.conserved, "{report:?}");
}

#[test]
fn answers_to_things_of_an_older_program_are_passed_over_and_removed() {
    let data = Folder::new();
    drop(market(&data.0));
    let answer = Answer { sequence: 700, digest: 1, refusal: Refusal::None, number: 1 };
    let db = raw(&data.0);
    for thing in 1..=5_000 {
        let key = [&b"w"[..], &EntityId::thing(thing).0.to_be_bytes()[..], &[0]].concat();
        db.put_cf(db.cf_handle("ledger").unwrap(), key, seal_value(&answer)).unwrap();
    }
    drop(db);
    let answers = check(&data.0).unwrap();
    assert_eq!((answers.answers, answers.breaks), (2, Vec::new()), "the two grants");
    assert_eq!(answers_to_things(&data.0), 5_000);
    drop(desk(&data.0, 1));
    assert_eq!(answers_to_things(&data.0), 0);
    assert_eq!(check(&data.0).unwrap().breaks, [""; 0]);
}

/// A disk that counts how often rows are read through.
struct Counted(RocksDisk, Cell<usize>);

impl Disk for Counted {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.0.get(family, key)
    }

    fn visit(&self, family: Family, prefix: &[u8], visit: &mut disk::Visitor<'_>) -> Result<(), StoreError> {
        self.1.set(self.1.get() + usize::from(family == Family::Shard(ShardId(0))));
        self.0.visit(family, prefix, visit)
    }

    fn begin(&mut self, batch: Batch, groups: u64) {
        self.0.begin(batch, groups);
    }

    fn land(&mut self, patience: Duration) -> Result<bool, StoreError> {
        self.0.land(patience)
    }

    fn last(&self, family: Family) -> Result<Option<disk::Pair>, StoreError> {
        self.0.last(family)
    }

    fn witness(&self) -> Result<u64, StoreError> {
        self.0.witness()
    }

    fn take_proven(&mut self) -> Option<Proven> {
        self.0.take_proven()
    }

    fn place(&self) -> String {
        self.0.place()
    }
}

#[test]
fn what_opening_a_disk_read_is_not_read_again_until_it_is_written() {
    let data = Folder::new();
    fill(&data.0, 2, 50);
    let counted = || Counted(RocksDisk::open(&data.0, 1).unwrap(), Cell::new(0));
    let to_first = |_: &CharacterRow| ShardId(0);
    let store = Store::open(counted(), 1, 77, to_first).unwrap();
    assert_eq!((store.recovered_characters(), store.disk().1.get()), (50, 0), "and the rows of shard 1 were moved");
    // Who opens it a second time reads it, as something may have been written.
    let store = Store::open(store.into_disk(), 1, 77, no_move).unwrap();
    assert_eq!((store.recovered_characters(), store.disk().1.get()), (50, 1));
    drop(store);
    let mut disk = counted();
    disk.write(Batch::default(), 1).unwrap();
    assert_eq!(Store::open(disk, 1, 77, no_move).unwrap().disk().1.get(), 1);
}

#[test]
fn the_keeper_says_what_it_holds_in_memory() {
    let data = Folder::new();
    let queues = KeeperQueues::new(1);
    let keeper = KeeperHandle::spawn(market(&data.0), queues, COMMIT, COMMIT_BYTES).unwrap();
    let memory = wait_for(|| Some(keeper.view().memory()).filter(|memory| memory.ledger.items > 0));
    // Each has a source for what it asks, and both were given their goods by the one that lets them join.
    let LedgerHoldings { accounts, items, sources, answers, .. } = memory.ledger;
    assert_eq!((accounts, items, sources, answers), (2, 16, 3, 2));
    let bounds = 1..limits::STORE_MEMTABLES_BYTES_MAX as u64;
    assert!(bounds.contains(&memory.store.memtables_bytes), "{memory:?}");
    assert!(memory.store.block_cache_bytes <= limits::STORE_CACHE_BYTES_MAX as u64, "{memory:?}");
    keeper.stop().unwrap();
}
