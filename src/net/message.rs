//! The reliable messages of `schemas/messages.fbs` as plain values.
//!
//! Promises: decoding verifies all of a message, within limits that fit these tables and no others, before it reads any;
//! it never panics on any bytes. Never keeps the bytes.

use crate::ids::EntityId;
use crate::limits::MESSAGE_BYTES_MAX;
use crate::net::messages;
use flatbuffers::{FlatBufferBuilder, VerifierOptions};

pub use crate::net::messages::{Close, Refusal};

/// A refusal is kept as its number.
impl serde::Serialize for Refusal {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(self.0)
    }
}

impl<'de> serde::Deserialize<'de> for Refusal {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Refusal, D::Error> {
        u8::deserialize(deserializer).map(Refusal)
    }
}

/// Each message is one table and one in its union.
const VERIFIER: VerifierOptions = VerifierOptions {
    max_depth: 2,
    max_tables: 2,
    max_apparent_size: MESSAGE_BYTES_MAX,
    ignore_missing_null_terminator: false,
};
/// Bytes of a version in a Welcome. Longer: the message is malformed.
const VERSION_BYTES_MAX: usize = 64;

/// A message is malformed, or of a kind that this version does not know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MessageError;

/// What a client asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClientMessage {
    /// Do an emote.
    Emote {
        /// Which one.
        kind: u16,
    },
    /// Wave at another entity.
    WaveAt {
        /// At whom.
        target: EntityId,
    },
}

impl ClientMessage {
    /// The bytes of this message as the client's `action`-th.
    pub fn encode(&self, action: u16) -> Vec<u8> {
        let mut builder = FlatBufferBuilder::new();
        let (body_type, body) = match *self {
            ClientMessage::Emote { kind } => {
                let emote = messages::Emote::create(&mut builder, &messages::EmoteArgs { kind });
                (messages::ClientBody::Emote, emote.as_union_value())
            }
            ClientMessage::WaveAt { target } => {
                let wave = messages::WaveAt::create(&mut builder, &messages::WaveAtArgs { target: target.0 });
                (messages::ClientBody::WaveAt, wave.as_union_value())
            }
        };
        let args = messages::ClientMessageArgs { action, body_type, body: Some(body) };
        let root = messages::ClientMessage::create(&mut builder, &args);
        builder.finish(root, None);
        builder.finished_data().to_vec()
    }

    /// The action number and the message in these bytes.
    pub fn decode(bytes: &[u8]) -> Result<(u16, ClientMessage), MessageError> {
        let root =
            flatbuffers::root_with_opts::<messages::ClientMessage>(&VERIFIER, bytes).map_err(|_| MessageError)?;
        let message = if let Some(emote) = root.body_as_emote() {
            ClientMessage::Emote { kind: emote.kind() }
        } else if let Some(wave) = root.body_as_wave_at() {
            ClientMessage::WaveAt { target: EntityId(wave.target()) }
        } else {
            return Err(MessageError);
        };
        Ok((root.action(), message))
    }
}

/// A straight piece of the border between two shards, in 1/256 m, on the land.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seam {
    /// West-east of its start.
    pub x0: i32,
    /// South-north of its start.
    pub y0: i32,
    /// West-east of its end.
    pub x1: i32,
    /// South-north of its end.
    pub y1: i32,
}

/// First message of a session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Welcome {
    /// The client's own entity.
    pub entity: EntityId,
    /// From the connect token.
    pub client_id: u64,
    /// Tick of the join.
    pub tick: u64,
    /// Ticks a second.
    pub tick_hz: u16,
    /// Snapshots a second at most.
    pub send_hz: u16,
    /// Seed of the ground.
    pub land_seed: u64,
    /// Side of the land, metres.
    pub land_size_m: u32,
    /// Side of a cell, metres.
    pub cell_size_m: u32,
    /// Slices nearer than this come into view, metres.
    pub enter_radius_m: u32,
    /// Slices farther than this leave, metres.
    pub leave_radius_m: u32,
    /// In development mode, when there is one.
    pub seam: Option<Seam>,
    /// Of the server, at most 64 bytes.
    pub version: String,
}

/// What a server tells.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ServerMessage {
    /// First message of a session.
    Welcome(Welcome),
    /// What became of an action.
    ActionResult {
        /// Its number.
        action: u16,
        /// `Refusal::None`: it was done.
        refusal: Refusal,
    },
    /// The session ends now.
    Closing {
        /// Why.
        reason: Close,
    },
}

impl ServerMessage {
    /// The bytes of this message.
    pub fn encode(&self) -> Vec<u8> {
        let mut builder = FlatBufferBuilder::new();
        let (body_type, body) = match self {
            ServerMessage::Welcome(welcome) => (messages::ServerBody::Welcome, welcome.build(&mut builder)),
            &ServerMessage::ActionResult { action, refusal } => {
                let args = messages::ActionResultArgs { action, refusal };
                let result = messages::ActionResult::create(&mut builder, &args);
                (messages::ServerBody::ActionResult, result.as_union_value())
            }
            &ServerMessage::Closing { reason } => {
                let closing = messages::Closing::create(&mut builder, &messages::ClosingArgs { reason });
                (messages::ServerBody::Closing, closing.as_union_value())
            }
        };
        let args = messages::ServerMessageArgs { body_type, body: Some(body) };
        let root = messages::ServerMessage::create(&mut builder, &args);
        builder.finish(root, None);
        builder.finished_data().to_vec()
    }

    /// The message in these bytes.
    pub fn decode(bytes: &[u8]) -> Result<ServerMessage, MessageError> {
        let root =
            flatbuffers::root_with_opts::<messages::ServerMessage>(&VERIFIER, bytes).map_err(|_| MessageError)?;
        if let Some(welcome) = root.body_as_welcome() {
            return Welcome::read(welcome).map(ServerMessage::Welcome);
        }
        if let Some(result) = root.body_as_action_result() {
            return Ok(ServerMessage::ActionResult { action: result.action(), refusal: result.refusal() });
        }
        let closing = root.body_as_closing().ok_or(MessageError)?;
        Ok(ServerMessage::Closing { reason: closing.reason() })
    }
}

impl Welcome {
    fn build(&self, builder: &mut FlatBufferBuilder) -> flatbuffers::WIPOffset<flatbuffers::UnionWIPOffset> {
        assert!(self.version.len() <= VERSION_BYTES_MAX, "version {:?} is too long", self.version);
        let version = builder.create_string(&self.version);
        let seam = self.seam.map(|seam| messages::Seam::new(seam.x0, seam.y0, seam.x1, seam.y1));
        let args = messages::WelcomeArgs {
            entity: self.entity.0,
            client_id: self.client_id,
            tick: self.tick,
            tick_hz: self.tick_hz,
            send_hz: self.send_hz,
            land_seed: self.land_seed,
            land_size_m: self.land_size_m,
            cell_size_m: self.cell_size_m,
            enter_radius_m: self.enter_radius_m,
            leave_radius_m: self.leave_radius_m,
            seam: seam.as_ref(),
            version: Some(version),
            operation: 0,
        };
        messages::Welcome::create(builder, &args).as_union_value()
    }

    fn read(welcome: messages::Welcome) -> Result<Welcome, MessageError> {
        let version = welcome.version().unwrap_or_default();
        if version.len() > VERSION_BYTES_MAX {
            return Err(MessageError);
        }
        let seam = |seam: &messages::Seam| Seam { x0: seam.x0(), y0: seam.y0(), x1: seam.x1(), y1: seam.y1() };
        Ok(Welcome {
            entity: EntityId(welcome.entity()),
            client_id: welcome.client_id(),
            tick: welcome.tick(),
            tick_hz: welcome.tick_hz(),
            send_hz: welcome.send_hz(),
            land_seed: welcome.land_seed(),
            land_size_m: welcome.land_size_m(),
            cell_size_m: welcome.cell_size_m(),
            enter_radius_m: welcome.enter_radius_m(),
            leave_radius_m: welcome.leave_radius_m(),
            seam: welcome.seam().map(seam),
            version: version.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn welcome() -> ServerMessage {
        ServerMessage::Welcome(Welcome {
            entity: EntityId::character(77),
            client_id: 77,
            tick: 1 << 40,
            tick_hz: 60,
            send_hz: 20,
            land_seed: u64::MAX,
            land_size_m: 8_192,
            cell_size_m: 64,
            enter_radius_m: 180,
            leave_radius_m: 220,
            seam: Some(Seam { x0: -5, y0: 6, x1: -5, y1: 9_000 }),
            version: "0.1.0".to_owned(),
        })
    }

    fn server_messages() -> [ServerMessage; 3] {
        let result = ServerMessage::ActionResult { action: 9, refusal: Refusal::TooFar };
        [welcome(), result, ServerMessage::Closing { reason: Close::Slow }]
    }

    fn client_messages() -> [ClientMessage; 2] {
        [ClientMessage::Emote { kind: 3 }, ClientMessage::WaveAt { target: EntityId::guest(31, 5) }]
    }

    #[test]
    fn messages_come_back() {
        for message in server_messages() {
            assert_eq!(ServerMessage::decode(&message.encode()), Ok(message));
        }
        for message in client_messages() {
            assert_eq!(ClientMessage::decode(&message.encode(65_535)), Ok((65_535, message)));
        }
    }

    #[test]
    fn a_message_without_a_known_body_is_refused() {
        let mut builder = FlatBufferBuilder::new();
        let root = messages::ClientMessage::create(&mut builder, &messages::ClientMessageArgs::default());
        builder.finish(root, None);
        assert_eq!(ClientMessage::decode(builder.finished_data()), Err(MessageError));
        assert_eq!(ServerMessage::decode(&[]), Err(MessageError));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = ServerMessage::decode(&bytes);
            let _ = ClientMessage::decode(&bytes);
        }

        /// Damaged messages reach deeper than random bytes do.
        #[test]
        fn damaged_messages_decode_without_panic(
            which in 0usize..5,
            damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
        ) {
            let mut bytes = match which {
                0..3 => server_messages()[which].encode(),
                _ => client_messages()[which - 3].encode(1),
            };
            for (place, value) in damage {
                let place = place.index(bytes.len());
                bytes[place] = value;
            }
            let _ = ServerMessage::decode(&bytes);
            let _ = ClientMessage::decode(&bytes);
        }
    }
}
