//! What one session takes in a tick, and what it answers.

use super::*;
use crate::limits::BODY_BYTES_MAX;
use crate::wire::acks::SentPacket;
use crate::wire::goods::{Currency, Shelf};
use crate::wire::messages::messages_of_a_newer_client;
use crate::world::parcel::Input;

/// A client's bodies, and what its session passes on and answers.
struct Talk {
    session: Session,
    client: Reliable,
    inputs: Vec<InputParcel>,
    tick: u64,
    drops: Vec<BodyDrop>,
    taken: [u16; Stream::COUNT],
}

impl Talk {
    fn new(reliable_transport: bool) -> Talk {
        let mut talk = Talk {
            session: Session::new(SessionRef::default(), 7, reliable_transport),
            client: Reliable::new(reliable_transport),
            inputs: vec![InputParcel::default()],
            tick: 10,
            drops: Vec::new(),
            taken: [0; Stream::COUNT],
        };
        talk.show();
        talk
    }

    /// Its entity's owner shows what it took.
    fn show(&mut self) {
        let state = structs::OwnState::new(5, 0, 0, 0, 0, self.tick as u32, 0, 0, 0, 0, 0, 0, 0);
        let told = Told {
            session: SessionRef::default(),
            state,
            home: Default::default(),
            next_owner: ShardId(0),
            taken: self.taken,
        };
        self.session.hear(told, ShardId(0), self.tick);
    }

    /// One body with commands from a client tick on.
    fn body(&mut self, commands: Option<(u32, usize)>) -> Vec<u8> {
        let mut out = [0; BODY_BYTES_MAX];
        let stamp = self.client.stamp();
        let header = structs::ClientHeader::new(stamp.ack_bits, stamp.sequence, stamp.ack, stamp.flags, 0);
        let mut writer = BodyWriter::client(&mut out, header);
        if let Some((first, count)) = commands {
            writer.commands(first, std::iter::repeat_n(structs::Command::default(), count));
        }
        let mut packet = SentPacket::new(self.tick as u32);
        self.client.write(self.tick as u32, &mut writer, &mut packet);
        self.client.record(packet, |_, _| ());
        let length = writer.finish();
        out[..length].to_vec()
    }

    fn send(&mut self, commands: Option<(u32, usize)>) -> Result<(), BodyDrop> {
        let body = self.body(commands);
        self.hand_over(&body)
    }

    fn hand_over(&mut self, body: &[u8]) -> Result<(), BodyDrop> {
        let Talk { session, inputs, tick, drops, .. } = self;
        session.handle_body(body, (*tick, 1), inputs, |drop| drops.push(drop))
    }

    /// Ends the tick: what the entity is given. It takes all requests that are next, but no order while one is under way.
    fn end_tick(&mut self, order_under_way: bool) -> Vec<Input> {
        self.session.pass_requests(&mut self.inputs);
        let inputs = std::mem::take(&mut self.inputs[0].inputs);
        self.inputs[0].commands.clear();
        for input in &inputs {
            if let InputKind::Request { ordinal, request, .. } = input.kind {
                let stream = request.stream();
                let taken = &mut self.taken[stream.index()];
                if ordinal == taken.wrapping_add(1) && !(order_under_way && stream == Stream::Goods) {
                    *taken = ordinal;
                }
            }
        }
        self.tick += 1;
        self.show();
        inputs
    }

    /// What the client was answered since.
    fn responses(&mut self) -> Vec<(u8, u64, Refusal)> {
        let mut out = [0; BODY_BYTES_MAX];
        let mut writer = BodyWriter::server(&mut out, structs::ServerHeader::default());
        let mut packet = SentPacket::new(self.tick as u32);
        self.session.reliable.write(self.tick as u32, &mut writer, &mut packet);
        self.session.reliable.record(packet, |_, _| ());
        let length = writer.finish();
        let (_, sections) = BodyReader::server(&out[..length]).expect("well formed");
        for section in sections {
            let channel =
                if section.kind == kind::RELIABLE_ORDERED { ChannelKind::Ordered } else { ChannelKind::Unordered };
            self.client.handle_fragment(channel, section.bytes).expect("well formed");
        }
        let mut responses = Vec::new();
        for channel in [ChannelKind::Ordered, ChannelKind::Unordered] {
            while let Some(bytes) = self.client.poll_message(channel) {
                match ServerMessage::decode(&bytes).expect("well formed") {
                    ServerMessage::Response(response) => {
                        responses.push((response.stream.0, response.number, response.refusal));
                    }
                    ServerMessage::Closing { .. } => (),
                    other => panic!("{other:?}"),
                }
            }
        }
        responses
    }

    fn ask(&mut self, bytes: Vec<u8>) {
        self.client.send(ChannelKind::Ordered, bytes).expect("room");
    }
}

fn requests(inputs: &[Input]) -> Vec<(u64, Request)> {
    let numbered = |input: &Input| match input.kind {
        InputKind::Request { number, request, .. } => Some((number, request)),
        _ => None,
    };
    inputs.iter().filter_map(numbered).collect()
}

const EMOTE: Request = Request::Emote { kind: 1 };
const WORLD: u8 = 0;
const GOODS: u8 = 2;

fn move_coins() -> Request {
    let (currency, amount, from, to) = (Currency::Coin, 1, Shelf::Bag, Shelf::Bank);
    Request::Goods(GoodsRequest::MoveCoins { currency, amount, from, to })
}

#[test]
fn what_is_not_understood_is_answered_by_name_and_the_session_goes_on() {
    let mut talk = Talk::new(false);
    talk.ask(EMOTE.encode(1));
    for bytes in messages_of_a_newer_client(WORLD, 2) {
        talk.ask(bytes);
        talk.send(None).expect("the body is well formed");
        talk.end_tick(false);
        let responses = talk.responses();
        assert!(matches!(responses[..], [(WORLD, _, Refusal::Unknown | Refusal::Malformed)]), "{responses:?}");
    }
    let next = 2 + messages_of_a_newer_client(WORLD, 2).len() as u64;
    talk.ask(EMOTE.encode(next));
    talk.send(None).expect("well formed");
    assert_eq!(requests(&talk.end_tick(false)), [(next, EMOTE)], "their numbers are used up");
    assert_eq!(talk.session.closing(), None);
}

#[test]
fn who_cannot_even_be_named_is_told_so_and_goes() {
    let mut talk = Talk::new(false);
    talk.ask(vec![1, 2, 3]);
    talk.send(None).expect("well formed");
    talk.end_tick(false);
    assert_eq!(talk.session.closing(), Some(Close::Protocol));
}

#[test]
fn numbers_out_of_order_are_refused_and_bounded() {
    let mut talk = Talk::new(false);
    for number in [1, 1, 5, 6, u64::MAX, 7] {
        talk.ask(EMOTE.encode(number));
    }
    talk.send(None).expect("well formed");
    talk.send(None).expect("well formed");
    let given: Vec<u64> = requests(&talk.end_tick(false)).into_iter().map(|(number, _)| number).collect();
    assert_eq!(given, [1, 6, 7], "a gap is refused, and numbers go on behind it; a leap uses up nothing");
    let refused = [1, 5, u64::MAX].map(|number| (WORLD, number, Refusal::OutOfOrder));
    assert_eq!(talk.responses(), refused);
}

#[test]
fn an_order_may_leap_by_so_much_and_no_more() {
    let mut talk = Talk::new(false);
    talk.session.count_orders_from(1_000);
    for number in [u64::MAX, 1_065, 1_064, 1_128, 900] {
        talk.ask(move_coins().encode(number));
    }
    talk.send(None).expect("well formed");
    talk.send(None).expect("well formed");
    let given: Vec<u64> = requests(&talk.end_tick(false)).into_iter().map(|(number, _)| number).collect();
    assert_eq!(given, [1_064, 1_128, 900], "a number from before is a repeat, which the ledger answers");
    let refused = [u64::MAX, 1_065].map(|number| (GOODS, number, Refusal::OutOfOrder));
    assert_eq!(talk.responses(), refused);
}

#[test]
fn an_order_under_way_blocks_orders_alone() {
    let mut talk = Talk::new(false);
    talk.session.count_orders_from(0);
    talk.ask(move_coins().encode(1));
    talk.ask(move_coins().encode(2));
    talk.ask(EMOTE.encode(1));
    talk.send(None).expect("well formed");
    for _ in 0..3 {
        talk.end_tick(true);
    }
    talk.ask(EMOTE.encode(2));
    talk.send(None).expect("well formed");
    let given = requests(&talk.end_tick(true));
    assert_eq!(given, [(2, EMOTE), (1, move_coins()), (2, move_coins())]);
    assert_eq!(talk.taken, [2, 0]);
}

#[test]
fn a_tick_takes_so_many_bodies_commands_and_requests() {
    let mut talk = Talk::new(false);
    for number in 1..=20 {
        talk.ask(EMOTE.encode(number));
    }
    let mut results = Vec::new();
    for first in 1..=40 {
        results.push(talk.send(Some((first, 8))));
    }
    let over = results.iter().filter(|result| **result == Err(BodyDrop::BodiesOver)).count();
    assert_eq!((results[..4].iter().all(Result::is_ok), over), (true, 36));
    let commands = talk.inputs[0].inputs.clone();
    let InputKind::Commands { first_tick, first, count } = commands[0].kind else { panic!("{commands:?}") };
    assert_eq!((commands.len(), first_tick, count), (1, 40, 8), "those of the newest body alone");
    assert_eq!(talk.inputs[0].commands.len(), first as usize + 8);
    assert_eq!(requests(&talk.end_tick(false)).len(), REQUESTS_PER_TICK_MAX);
    assert_eq!(talk.send(Some((41, 8))), Ok(()), "a new tick");
    assert_eq!(requests(&talk.end_tick(false)).len(), REQUESTS_PER_TICK_MAX, "the others waited");
}

#[test]
fn after_skipped_ticks_more_bodies_are_taken() {
    let mut talk = Talk::new(false);
    let taken = |talk: &mut Talk, ticks| {
        let bodies: Vec<Vec<u8>> = (0..100).map(|_| talk.body(None)).collect();
        let Talk { session, inputs, tick, .. } = talk;
        let results = bodies.iter().map(|body| session.handle_body(body, (*tick, ticks), inputs, |_| ()));
        results.filter(Result::is_ok).count()
    };
    assert_eq!(taken(&mut talk, 5), 20);
    talk.end_tick(false);
    assert_eq!(taken(&mut talk, 1_000), 64);
}

#[test]
fn constant_frames_bring_a_bounded_number_of_commands() {
    let mut talk = Talk::new(true);
    let body = talk.body(Some((0, 20)));
    (0..3).for_each(|_| talk.hand_over(&body).expect("well formed"));
    assert_eq!((talk.inputs[0].commands.len(), &talk.drops[..]), (32, &[BodyDrop::CommandsOver; 2][..]));
}

#[test]
fn a_stream_is_read_on_only_while_all_of_a_body_finds_room() {
    let mut talk = Talk::new(true);
    let (mut sent, mut got, mut paused) = (0u64, 0u64, 0);
    while got < 300 {
        // All at once, as far as the client's own channel holds them; a constant stream of full bodies.
        while sent < 300 && talk.client.send(ChannelKind::Ordered, EMOTE.encode(sent + 1)).is_ok() {
            sent += 1;
        }
        while talk.session.has_room((talk.tick, 1)) && !talk.client.is_idle() {
            talk.send(None).expect("what is read finds room");
        }
        paused += u64::from(!talk.session.has_room((talk.tick, 1)));
        got += requests(&talk.end_tick(false)).len() as u64;
        assert!(talk.tick < 200, "{got} of {sent}");
    }
    assert!(paused > 0, "it had to wait");
    assert_eq!((got, talk.taken[0]), (300, 300), "and nothing was lost");
}

#[test]
fn a_body_that_is_dropped_has_changed_nothing() {
    let mut talk = Talk::new(false);
    let mut body = talk.body(Some((1, 2)));
    // A ping, and a fragment that is not below its count.
    body.extend([kind::PING, 0, 0, 0, kind::RELIABLE_ORDERED, 0, 5, 0, 0, 0, 3, 2, 9, 0, 0, 0]);
    assert_eq!(talk.hand_over(&body), Err(BodyDrop::BadMessage));
    assert_eq!((talk.session.pings, talk.inputs[0].inputs.len()), (0, 0));
    assert_eq!(talk.hand_over(&body[..body.len() - 12]), Ok(()), "its sequence was not used up either");
    assert_eq!((talk.session.pings, talk.inputs[0].inputs.len()), (1, 1));
}

#[test]
fn words_are_passed_on_in_their_order_whichever_shard_is_late() {
    let word = |number| Word::Answer { stream: Stream::World, number, refusal: Refusal::None };
    let mut talk = Talk::new(false);
    talk.session.words = u32::MAX - 1;
    let waiting = |talk: &Talk| talk.session.early_words.iter().map(|&(number, _)| number).collect::<Vec<_>>();
    for (number, left) in
        [(0, vec![0]), (u32::MAX, vec![u32::MAX, 0]), (2, vec![u32::MAX, 0, 2]), (u32::MAX - 1, vec![2]), (1, vec![])]
    {
        assert!(talk.session.hear_word(number, word(u64::from(number))));
        assert_eq!(waiting(&talk), left);
    }
    let responses = (0..3).flat_map(|_| talk.responses());
    let heard: Vec<u64> = responses.map(|(_, number, _)| number).collect();
    assert_eq!(heard, [u64::from(u32::MAX) - 1, u64::from(u32::MAX), 0, 1, 2]);
    let mut kept = (4..).map(|number| talk.session.hear_word(number, word(0)));
    assert_eq!(kept.position(|kept| !kept), Some(EARLY_WORDS_MAX), "it waits for a bounded number");
}

#[test]
fn who_keeps_the_bounds_is_never_cut_for_the_answers() {
    let mut talk = Talk::new(false);
    let answer = |talk: &mut Talk, number: u64| {
        let word = Word::Answer { stream: Stream::World, number, refusal: Refusal::None };
        talk.session.hear_word(number as u32, word)
    };
    // Nearly as many answers wait as stop a session from taking more, and as many requests as it holds wait for its entity.
    let before = RESPONSES_WAITING_MAX as u64 - 1;
    assert!((0..before).all(|number| answer(&mut talk, number)));
    (1..=REQUESTS_HELD_MAX as u64).for_each(|number| {
        talk.session.take_request(NumberedRequest { number, request: EMOTE });
    });
    // The client reads nothing; its entity takes all that it is given, and its answers come two ticks later.
    let (mut on_their_way, mut answered) = (VecDeque::from([0, 0]), before);
    for tick in 0..60 {
        let taken = talk.taken[0];
        talk.end_tick(false);
        on_their_way.push_back(talk.taken[0] - taken);
        for _ in 0..on_their_way.pop_front().expect("two ticks") {
            assert!(answer(&mut talk, answered), "tick {tick}: answer {answered} ends the session");
            answered += 1;
        }
    }
    assert!((before + 1..REQUESTS_HELD_MAX as u64).contains(&answered), "{answered} answered");
    assert_eq!(talk.session.closing(), None);
}
