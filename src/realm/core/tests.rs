//! Whom a shard serves, in which order, and how its sessions end.

use super::*;
use crate::limits::{LANE_WAITING_MAX, SESSION_BYTES_PER_S_MAX};
use crate::wire::client::{ClientOptions, ClientSession};
use crate::wire::generated::structs;
use crate::wire::goods::Refusal;
use crate::wire::messages::Stream;
use crate::wire::transport::token::UserData;
use crate::world::WorldConfig;
use crate::world::cut::CutMap;
use crate::world::effect::Word;
use crate::world::land::Land;

/// A shard of its own whose land has no wildlife.
pub(crate) fn core() -> Core {
    let config = WorldConfig {
        seed: 1,
        land: Arc::new(Land::new(1)),
        cut: Arc::new(CutMap::equal(1)),
        npcs: 0,
        npc_life_ticks: 600,
        start_tick: 0,
        things: Arc::new([]),
    };
    let rates = Rates { send_hz: 60, bytes_per_s: SESSION_BYTES_PER_S_MAX };
    let radii = Radii { enter: 96 * GRID_PER_M, leave: 128 * GRID_PER_M };
    Core::new(World::new(config, ShardId(0)), 1, Rules { radii, rates, dev: true, seam: None })
}

/// One tick with what was heard; gives back whom it served, in order, each with its body.
fn tick(core: &mut Core) -> Vec<(SessionRef, Vec<u8>)> {
    let tick = core.world.tick + 1;
    core.pass_requests();
    core.begin(tick);
    let mut mine = std::mem::take(&mut core.inputs[0]);
    core.take_inputs(ShardId(0), &mine);
    mine.reset(tick);
    core.inputs[0] = mine;
    core.play();
    let mut out = OutcomeParcel::default();
    out.reset(ShardId(0), tick);
    core.publish(std::slice::from_mut(&mut out));
    core.hear(&mut out);
    let mut served = Vec::new();
    core.send_due(Whom::Rest, |session, write| {
        let mut body = [0; crate::limits::BODY_BYTES_MAX];
        let length = write(&mut body);
        served.push((session, body[..length].to_vec()));
    });
    core.end_tick();
    served
}

fn identity(client_id: u64, reusable: bool) -> Identity {
    let user_data = UserData { reusable, ..UserData::default() };
    Identity { client_id, user_data, token_mac: [0; 16], expires_unix_s: u64::MAX, timeout_s: 10 }
}

/// A shard with so many sessions, all over its lanes.
fn crowded(sessions: u64) -> Core {
    let mut core = core();
    for number in 0..sessions {
        core.admit((number % LANES as u64) as u8, identity(number + 1, false), false).expect("there is room");
        core.keeper.clear();
    }
    core
}

fn order(core: &Core) -> Vec<SessionRef> {
    core.each_session().map(|(session, ..)| session).collect()
}

#[test]
fn a_session_that_ends_moves_at_most_one_other() {
    let mut core = crowded(30_000);
    for nth in (0..30_000).step_by(1_000) {
        let before = order(&core);
        core.hang_up(before[nth / 2]);
        let after = order(&core);
        let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
        assert!(after.len() + 1 == before.len() && moved <= 1, "{moved} sessions moved");
    }
    for session in order(&core) {
        core.hang_up(session);
    }
    assert_eq!((core.sessions(), (0..LANES as u8).map(|lane| core.lane_sessions(lane)).sum::<usize>()), (0, 0));
}

#[test]
fn a_walk_from_the_last_session_meets_each_once_whatever_ends_on_the_way() {
    let mut core = crowded(500);
    let (all, mut met) = (order(&core), Vec::new());
    for place in (0..core.sessions()).rev() {
        let session = core.session_at(place);
        met.push(session);
        if !session.slot.is_multiple_of(3) {
            core.hang_up(session);
        }
    }
    met.reverse();
    assert_eq!(met, all);
    assert!(order(&core).iter().all(|session| session.slot.is_multiple_of(3)));
}

#[test]
fn sessions_end_as_well_after_their_lane_moved() {
    let mut core = crowded(200);
    let first = order(&core)[0];
    let lane = core.give_lane(first.lane);
    let left = order(&core);
    assert!(left.iter().all(|session| session.lane != first.lane));
    core.hang_up(left[left.len() / 2]);
    core.take_lane(lane);
    let back = order(&core);
    assert_eq!(back.len(), 199);
    for session in back {
        core.hang_up(session);
    }
    assert_eq!(core.sessions(), 0);
}

#[test]
fn who_sends_what_cannot_be_named_is_told_and_its_character_leaves() {
    let mut core = core();
    let session = core.admit(0, identity(1, true), false).expect("there is room");
    let mut client = ClientSession::new(ClientOptions { packed: true, decode: false, reliable_transport: false });
    let mut closed = None;
    for round in 0..40 {
        if round == 10 {
            client.send(vec![1, 2, 3]).expect("there is room");
        }
        let mut body = [0; crate::limits::BODY_BYTES_MAX];
        let length = client.poll_body(core.world.tick as u32, 0, &mut body);
        if closed.is_none() {
            core.handle_body(session, &body[..length]);
        }
        for (_, body) in tick(&mut core) {
            client.handle_body(&body).expect("a body of ours");
        }
        while let Some(message) = client.poll_message() {
            if let ServerMessage::Closing { reason } = message {
                closed = Some(reason);
            }
        }
    }
    assert_eq!(closed, Some(Close::Protocol));
    assert_eq!((core.sessions(), core.world.entities().0), (0, 0));
    assert_eq!(core.ended.len(), 1);
}

#[test]
fn who_was_heard_first_is_served_first() {
    let mut core = core();
    let options = ClientOptions { packed: true, decode: false, reliable_transport: false };
    let mut clients: Vec<(SessionRef, ClientSession)> = (0..6)
        .map(|number| {
            let session = core.admit(number as u8 % 2, identity(number + 1, true), false).expect("there is room");
            (session, ClientSession::new(options))
        })
        .collect();
    let mut orders = std::collections::HashSet::new();
    for round in 0..60 {
        // Others come first each time; lanes take turns, as the ring's do.
        clients.rotate_left(2);
        let now_tick = core.world.tick as u32;
        let mut heard = Vec::new();
        for (session, client) in &mut clients {
            if client.own_state().is_some() {
                client.push_command(structs::Command::new(0, 127, 0, 0, 0, 0), 0);
                heard.push(*session);
            }
            let mut body = [0; crate::limits::BODY_BYTES_MAX];
            let length = client.poll_body(now_tick, 0, &mut body);
            core.handle_body(*session, &body[..length]);
        }
        let served = tick(&mut core);
        for (session, body) in &served {
            let (_, client) = clients.iter_mut().find(|(other, _)| other == session).expect("it was admitted");
            client.handle_body(body).expect("a body of ours");
        }
        if heard.len() == clients.len() {
            let place = |session: &SessionRef| heard.iter().position(|other| other == session).expect("all are") / 2;
            let places: Vec<usize> = served.iter().map(|(session, _)| place(session)).collect();
            assert!(places.is_sorted() && places.len() == 6, "round {round}: {places:?}");
            orders.insert(served.iter().map(|(session, _)| *session).collect::<Vec<_>>());
        }
    }
    assert!(orders.len() >= 3, "the order followed what was heard: {} of them", orders.len());
}

#[test]
fn what_waits_for_a_lane_without_end_ends_its_sessions_and_nothing_else() {
    let mut core = core();
    let number = core.lanes_here().trailing_zeros() as u8;
    let concerned = core.admit(number, identity(1, true), false).expect("there is room");
    let lane = core.give_lane(number);
    let nobody = SessionRef { slot: 9, ..concerned };
    let word = |session: SessionRef| PrivateEvent {
        session,
        number: 0,
        word: Word::Answer { stream: Stream::World, number: 1, refusal: Refusal::None },
    };
    (0..LANE_WAITING_MAX).for_each(|_| core.hear_private(word(nobody)));
    (0..3).for_each(|_| core.hear_private(word(concerned)));
    assert_eq!((core.waiting_for_lanes(), core.behind.len()), (LANE_WAITING_MAX, 1));
    core.take_lane(lane);
    assert_eq!((core.waiting_for_lanes(), core.behind.len(), core.sessions_behind), (0, 0, 1));
    assert_eq!(core.closing, [concerned]);
}
