use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::keeper::proof::visit_rows;
use crate::keeper::{Batch, MemoryDisk};
use crate::limits::{KEEPER_TOKEN_GRACE_S, KEEPER_TOKENS_FORGOTTEN_MAX, KEEPER_TOKENS_MAX};

const SHARD: ShardId = ShardId(1);

fn session(number: u32) -> SessionRef {
    SessionRef { lane: 3, slot: 4, generation: number }
}

fn claim(number: u32, client_id: u64, expires_unix_s: u64) -> KeeperCommand {
    let mut token_mac = [0; 16];
    token_mac[..4].copy_from_slice(&number.to_le_bytes());
    KeeperCommand::Claim { shard: SHARD, session: session(number), client_id, token_mac, expires_unix_s }
}

fn release(number: u32, client_id: u64, row: Option<CharacterRow>) -> KeeperCommand {
    KeeperCommand::Release { client_id, session: session(number), row }
}

struct Bench {
    claims: Claims,
    store: Store<MemoryDisk>,
}

impl Bench {
    fn new() -> Bench {
        let store = Store::open(MemoryDisk::default(), 3, 1, |_| SHARD).unwrap();
        Bench { claims: Claims::default(), store }
    }

    fn apply(&mut self, command: KeeperCommand) -> Vec<KeeperAnswer> {
        let mut answers = Vec::new();
        self.claims.apply(command, &mut self.store, &mut answers).unwrap();
        assert!(answers.iter().all(|(shard, _)| *shard == SHARD));
        answers.into_iter().map(|(_, answer)| answer).collect()
    }

    /// Claims and expects to be admitted.
    fn admit(&mut self, number: u32, client_id: u64) -> CharacterRow {
        match self.apply(claim(number, client_id, 100))[..] {
            [KeeperAnswer::Claimed { session: admitted, row, .. }] => {
                assert_eq!(admitted, session(number));
                row
            }
            ref other => panic!("{other:?}"),
        }
    }
}

fn refused(number: u32, reason: ClaimRefusal) -> KeeperAnswer {
    KeeperAnswer::Refused { session: session(number), reason }
}

#[test]
fn characters_are_numbered_once_and_found_again() {
    let mut bench = Bench::new();
    assert_eq!(bench.admit(1, 50).character, 1);
    let row = bench.admit(2, 40);
    assert_eq!((row.character, row.client_id, row.owner, row.saved), (2, 40, SHARD, false));
    let moved = CharacterRow { tick: 9, x: 5, saved: true, ..row };
    assert_eq!(bench.apply(release(2, 40, Some(moved))), []);
    let again = bench.apply(claim(3, 40, 100));
    assert_eq!(again, [KeeperAnswer::Claimed { session: session(3), row: moved, new: false, operation: 0 }]);
    assert_eq!(bench.store.realm().next_character, 3);
    assert_eq!(bench.store.realm().tick, 9);
}

#[test]
fn a_second_session_waits_for_the_first_and_gets_its_last_row() {
    let mut bench = Bench::new();
    let row = bench.admit(1, 7);
    assert_eq!(bench.apply(claim(2, 7, 50)), [KeeperAnswer::Cut { session: session(1) }]);
    let last = CharacterRow { epoch: 2, tick: 30, saved: true, ..row };
    assert_eq!(bench.apply(KeeperCommand::Row(last)), []);
    let answers = bench.apply(release(1, 7, None));
    assert_eq!(answers, [KeeperAnswer::Claimed { session: session(2), row: last, new: false, operation: 0 }]);
    // The first session's release a second time: nobody's.
    assert_eq!(bench.apply(release(1, 7, None)), []);
    assert_eq!(bench.claims.counts().releases_late, 1);
    assert_eq!(bench.claims.live_count(), 1);
}

#[test]
fn of_two_that_wait_the_newer_token_stays() {
    let mut bench = Bench::new();
    bench.admit(1, 7);
    assert_eq!(bench.apply(claim(2, 7, 50)).len(), 1);
    assert_eq!(bench.apply(claim(3, 7, 49)), [refused(3, ClaimRefusal::NewerSession)]);
    assert_eq!(bench.apply(claim(4, 7, 50)), [refused(2, ClaimRefusal::NewerSession)]);
    assert_eq!(bench.apply(release(4, 7, None)), [refused(4, ClaimRefusal::Withdrawn)]);
    assert_eq!(bench.apply(release(1, 7, None)), []);
    assert_eq!(bench.claims.live_count(), 0);
}

#[test]
fn a_token_is_claimed_once_until_it_has_expired() {
    let mut bench = Bench::new();
    bench.admit(1, 7);
    bench.apply(release(1, 7, None));
    assert_eq!(bench.apply(claim(1, 7, 100)), [refused(1, ClaimRefusal::TokenUsed)]);
    bench.apply(KeeperCommand::Clock { tick: 5, unix_s: 100 + KEEPER_TOKEN_GRACE_S });
    assert_eq!(bench.apply(claim(1, 7, 100)), [refused(1, ClaimRefusal::TokenUsed)]);
    bench.apply(KeeperCommand::Clock { tick: 6, unix_s: 101 + KEEPER_TOKEN_GRACE_S });
    assert_eq!(bench.claims.tokens.count(), 0);
    assert_eq!(
        bench.apply(claim(1, 7, 100)),
        [refused(1, ClaimRefusal::TokenUsed)],
        "forgotten, and refused for its age"
    );
    assert_eq!(bench.store.realm().tick, 6);
}

#[test]
fn full_tables_refuse_and_change_nothing() {
    let mut bench = Bench::new();
    for number in 0..KEEPER_LIVE_MAX as u32 {
        bench.admit(number, u64::from(number));
    }
    let next = KEEPER_LIVE_MAX as u32;
    assert_eq!(bench.apply(claim(next, u64::from(next), 100)), [refused(next, ClaimRefusal::TooMany)]);
    assert_eq!(bench.store.realm().next_character, KEEPER_LIVE_MAX as u64 + 1);
    bench.apply(release(0, 0, None));
    bench.admit(next, u64::from(next));
    for number in next + 1..KEEPER_TOKENS_MAX as u32 {
        bench.apply(release(number - 1, u64::from(number - 1), None));
        bench.admit(number, u64::from(number));
    }
    let last = KEEPER_TOKENS_MAX as u32;
    bench.apply(release(last - 1, u64::from(last - 1), None));
    assert_eq!(bench.apply(claim(last, 0, 100)), [refused(last, ClaimRefusal::TooMany)]);
    bench.apply(KeeperCommand::Clock { tick: 1, unix_s: 1_000 });
    assert_eq!(bench.claims.tokens.count(), KEEPER_TOKENS_MAX - KEEPER_TOKENS_FORGOTTEN_MAX);
    assert!(matches!(bench.apply(claim(last, 0, 2_000))[..], [KeeperAnswer::Claimed { .. }]));
}

#[test]
fn older_rows_are_dropped_live_or_not() {
    let mut bench = Bench::new();
    let row = bench.admit(1, 7);
    let newest = CharacterRow { epoch: 3, tick: 10, x: 1, ..row };
    bench.apply(KeeperCommand::Row(newest));
    bench.apply(KeeperCommand::Row(CharacterRow { epoch: 2, tick: 11, x: 2, ..row }));
    bench.apply(KeeperCommand::Row(CharacterRow { epoch: 3, tick: 9, x: 3, ..row }));
    bench.apply(release(1, 7, None));
    bench.apply(KeeperCommand::Row(CharacterRow { epoch: 3, tick: 9, x: 4, ..row }));
    assert_eq!(bench.store.row(7), Ok(Some(newest)));
    assert_eq!((bench.claims.counts().rows_taken, bench.claims.counts().rows_stale), (1, 3));
}

#[test]
fn a_power_loss_leaves_what_was_committed() {
    let mut bench = Bench::new();
    let row = bench.admit(1, 7);
    bench.store.begin(Batch::default(), false);
    bench.store.land(Duration::MAX).unwrap();
    bench.apply(KeeperCommand::Row(CharacterRow { tick: 5, owner: ShardId(0), ..row }));
    bench.apply(KeeperCommand::Row(CharacterRow { tick: 6, ..row }));
    bench.admit(2, 8);
    let mut disk = bench.store.into_disk();
    disk.lose_power(9);
    let store = Store::open(disk, 3, 1, |_| SHARD).unwrap();
    let mut rows = Vec::new();
    visit_rows(store.disk(), &mut |row| {
        rows.push(row);
        Ok(())
    })
    .unwrap();
    assert_eq!((rows, store.realm().next_character), (vec![row], 2));
}

#[derive(Clone, Debug)]
enum Step {
    Claim { client_id: u64, expires_unix_s: u64 },
    ReplayToken { pick: usize },
    ReleaseLive { client_id: u64, with_row: bool },
    ReleaseAny { pick: usize },
    Row { client_id: u64, epoch: u32, tick: u64, owner: u8 },
    Clock { unix_s: u64 },
}

fn any_step() -> impl Strategy<Value = Step> {
    let client = 0u64..3;
    prop_oneof![
        4 => (client.clone(), 0u64..5).prop_map(|(client_id, expires_unix_s)| Step::Claim { client_id, expires_unix_s }),
        1 => any::<usize>().prop_map(|pick| Step::ReplayToken { pick }),
        3 => (client.clone(), any::<bool>()).prop_map(|(client_id, with_row)| Step::ReleaseLive { client_id, with_row }),
        1 => any::<usize>().prop_map(|pick| Step::ReleaseAny { pick }),
        4 => (client, 0u32..4, 0u64..9, 0u8..3)
            .prop_map(|(client_id, epoch, tick, owner)| Step::Row { client_id, epoch, tick, owner }),
        1 => (0u64..60).prop_map(|unix_s| Step::Clock { unix_s }),
    ]
}

/// What a host knows: its sessions, what each was answered, which are live, the newest row of each client.
#[derive(Default)]
struct Model {
    sessions: Vec<(u64, u64, KeeperCommand)>,
    answered: Vec<u32>,
    released: Vec<bool>,
    live: BTreeMap<u64, u32>,
    newest: BTreeMap<u64, CharacterRow>,
}

impl Model {
    fn number_of(session: SessionRef) -> u32 {
        session.generation
    }

    fn command(&mut self, step: &Step) -> Option<KeeperCommand> {
        match *step {
            Step::Claim { client_id, expires_unix_s } => {
                let number = self.sessions.len() as u32;
                let command = claim(number, client_id, expires_unix_s);
                self.remember(client_id, expires_unix_s, command);
                Some(command)
            }
            Step::ReplayToken { pick } => {
                let count = self.sessions.len();
                let (client_id, expires_unix_s, first) = *self.sessions.get(pick % count.max(1))?;
                let KeeperCommand::Claim { shard, token_mac, .. } = first else { unreachable!() };
                let session = session(count as u32);
                let command = KeeperCommand::Claim { shard, session, client_id, token_mac, expires_unix_s };
                self.remember(client_id, expires_unix_s, command);
                Some(command)
            }
            Step::ReleaseLive { client_id, with_row } => {
                let number = *self.live.get(&client_id)?;
                let newest = self.newest[&client_id];
                let row = with_row.then_some(CharacterRow { tick: newest.tick + 1, ..newest });
                Some(self.release(number, row))
            }
            Step::ReleaseAny { pick } => {
                let number = pick % self.sessions.len().max(1);
                let is_open = !*self.released.get(number)?;
                is_open.then(|| self.release(number as u32, None))
            }
            Step::Row { client_id, epoch, tick, owner } => {
                let row = CharacterRow { epoch, tick, owner: ShardId(owner), ..*self.newest.get(&client_id)? };
                self.take(row);
                Some(KeeperCommand::Row(row))
            }
            Step::Clock { unix_s } => Some(KeeperCommand::Clock { tick: unix_s, unix_s }),
        }
    }

    fn remember(&mut self, client_id: u64, expires_unix_s: u64, command: KeeperCommand) {
        self.sessions.push((client_id, expires_unix_s, command));
        self.answered.push(0);
        self.released.push(false);
    }

    fn take(&mut self, row: CharacterRow) {
        let newest = self.newest.get_mut(&row.client_id).unwrap();
        if row.age() >= newest.age() {
            *newest = row;
        }
    }

    fn release(&mut self, number: u32, row: Option<CharacterRow>) -> KeeperCommand {
        let client_id = self.sessions[number as usize].0;
        self.released[number as usize] = true;
        if self.live.get(&client_id) == Some(&number) {
            self.live.remove(&client_id);
        }
        row.into_iter().for_each(|row| self.take(row));
        release(number, client_id, row)
    }

    fn hear(&mut self, answer: KeeperAnswer) {
        match answer {
            KeeperAnswer::Claimed { session, row, new, .. } => {
                let number = Model::number_of(session);
                self.answered[number as usize] += 1;
                assert!(!self.released[number as usize], "a released session is not admitted");
                assert_eq!(self.live.insert(row.client_id, number), None, "two live sessions of one client");
                let newest = self.newest.insert(row.client_id, row);
                assert_eq!(newest, (!new).then_some(row), "the newest row is the one that is given");
            }
            KeeperAnswer::Refused { session, .. } => self.answered[Model::number_of(session) as usize] += 1,
            KeeperAnswer::Settled(_)
            | KeeperAnswer::Operation { .. }
            | KeeperAnswer::Goods { .. }
            | KeeperAnswer::Admission { .. } => panic!("claims say nothing of goods"),
            KeeperAnswer::Cut { session } => {
                let number = Model::number_of(session);
                assert_eq!(self.live.get(&self.sessions[number as usize].0), Some(&number), "only the live is cut");
            }
        }
    }
}

proptest! {
    #[test]
    fn never_two_live_and_every_claim_answered_once(steps in proptest::collection::vec(any_step(), 1..120)) {
        let (mut bench, mut twin, mut model) = (Bench::new(), Bench::new(), Model::default());
        let mut run = |model: &mut Model, command: KeeperCommand| {
            let answers = bench.apply(command);
            assert_eq!(answers, twin.apply(command), "the same commands, the same answers");
            answers.into_iter().for_each(|answer| model.hear(answer));
        };
        for step in &steps {
            if let Some(command) = model.command(step) {
                run(&mut model, command);
            }
        }
        while let Some((_, number)) = model.live.first_key_value() {
            let command = model.release(*number, None);
            run(&mut model, command);
        }
        prop_assert!(model.answered.iter().all(|count| *count == 1), "{:?}", model.answered);
        prop_assert_eq!(bench.claims.live_count(), 0);
        for (client_id, row) in &model.newest {
            prop_assert_eq!(bench.store.row(*client_id).unwrap(), Some(*row));
        }
    }
}
