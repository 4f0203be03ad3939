//! Bodies: a header and sections, as in `schemas/README.md`.
//!
//! Promises: reading never panics on any bytes, and a body is wholly walked before its first section is handed out, so
//! that a malformed one changes nothing. Writing never passes the caller's budget. Nothing is allocated.

use crate::generated::structs;
use crate::limits::{BODY_BYTES_MAX, COMMANDS_PER_BODY_MAX};

/// Kinds of sections. Others are skipped.
pub mod kind {
    /// From the client: `CommandsHeader` and its commands.
    pub const COMMANDS: u8 = 1;
    /// From the client: asks for a [`PONG`]; no bytes.
    pub const PING: u8 = 2;
    /// Both ways: `FragmentHeader` and a piece of a message of the ordered channel.
    pub const RELIABLE_ORDERED: u8 = 3;
    /// Both ways: `FragmentHeader` and a piece of a message of the unordered channel.
    pub const RELIABLE_UNORDERED: u8 = 4;
    /// From the server: `OwnState`.
    pub const OWN_STATE: u8 = 16;
    /// From the server: `SliceHeader` and entities as they were when the keyframe was taken.
    pub const KEYFRAME: u8 = 17;
    /// From the server: `SliceHeader` and bits against the keyframe, see [`crate::slice`].
    pub const DELTA: u8 = 18;
    /// From the server: `SliceHeader` and all entities of a slice.
    pub const PLAIN: u8 = 19;
    /// From the server: `SliceKey`s to forget.
    pub const LEAVE: u8 = 20;
    /// From the server: `Event`s.
    pub const EVENTS: u8 = 21;
    /// From the server: the [`PONG_MARKER`](super::PONG_MARKER), once for each ping.
    pub const PONG: u8 = 22;
}

/// Header flag of a client: send packed slices.
pub const FLAG_PACKED: u16 = 1;
/// Header flag of both: the ack fields are valid.
pub const FLAG_ACKS: u16 = 2;
/// Bytes of a pong section; constant, so that a simple load tool can count them in a stream.
pub const PONG_MARKER: [u8; 16] = *b"ringshard-pong-1";

/// Why a body is dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BodyError {
    /// Longer than [`BODY_BYTES_MAX`].
    TooLong,
    /// Shorter than its header.
    Header,
    /// A section's header or its padded length passes the body's end.
    Section,
    /// A commands section whose count is over [`COMMANDS_PER_BODY_MAX`] or does not match its length.
    Commands,
}

/// One section of a body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Section<'a> {
    /// One of [`kind`], or unknown.
    pub kind: u8,
    /// Reserved, 0.
    pub flags: u8,
    /// Without header and padding.
    pub bytes: &'a [u8],
}

/// Iterates over the sections of a body that was checked as a whole.
#[derive(Clone, Debug)]
pub struct BodyReader<'a> {
    rest: &'a [u8],
}

impl<'a> BodyReader<'a> {
    /// Reads a body that a client sent.
    #[inline]
    pub fn client(body: &'a [u8]) -> Result<(structs::ClientHeader, BodyReader<'a>), BodyError> {
        let (header, reader) = BodyReader::open(body)?;
        Ok((structs::ClientHeader(header), reader))
    }

    /// Reads a body that a server sent.
    pub fn server(body: &'a [u8]) -> Result<(structs::ServerHeader, BodyReader<'a>), BodyError> {
        let (header, reader) = BodyReader::open(body)?;
        Ok((structs::ServerHeader(header), reader))
    }

    fn open<const N: usize>(body: &'a [u8]) -> Result<([u8; N], BodyReader<'a>), BodyError> {
        if body.len() > BODY_BYTES_MAX {
            return Err(BodyError::TooLong);
        }
        let (header, rest) = body.split_first_chunk().ok_or(BodyError::Header)?;
        let mut walk = BodyReader { rest };
        while !walk.rest.is_empty() {
            walk.section().ok_or(BodyError::Section)?;
        }
        Ok((*header, BodyReader { rest }))
    }

    #[inline]
    fn section(&mut self) -> Option<Section<'a>> {
        let (header, rest) = self.rest.split_first_chunk()?;
        let header = structs::SectionHeader(*header);
        let length = usize::from(header.length());
        self.rest = rest.get(length.next_multiple_of(4)..)?;
        Some(Section { kind: header.kind(), flags: header.flags(), bytes: &rest[..length] })
    }
}

impl<'a> Iterator for BodyReader<'a> {
    type Item = Section<'a>;

    #[inline]
    fn next(&mut self) -> Option<Section<'a>> {
        self.section()
    }
}

/// The commands of a section, with their client ticks.
#[derive(Clone, Debug)]
pub struct Commands<'a> {
    /// Client tick of the first command; 0 stands for "the next tick".
    pub first_tick: u32,
    commands: &'a [[u8; 8]],
}

impl<'a> Commands<'a> {
    /// Reads the bytes of a [`kind::COMMANDS`] section.
    #[inline]
    pub fn read(bytes: &'a [u8]) -> Result<Commands<'a>, BodyError> {
        let (header, rest) = bytes.split_first_chunk().ok_or(BodyError::Commands)?;
        let header = structs::CommandsHeader(*header);
        let (commands, spare) = rest.as_chunks();
        if !spare.is_empty() || commands.len() > COMMANDS_PER_BODY_MAX || header.count() as usize != commands.len() {
            return Err(BodyError::Commands);
        }
        Ok(Commands { first_tick: header.first_tick(), commands })
    }

    /// Commands in the section.
    pub fn len(&self) -> usize {
        self.commands.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }

    /// In order of their client ticks, which rise by one from `first_tick`.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = structs::Command> + use<'a> {
        self.commands.iter().map(|bytes| structs::Command(*bytes))
    }
}

/// The entities in the bytes of a slice section after its header; `None` where they are not whole.
pub fn entities(bytes: &[u8]) -> Option<impl ExactSizeIterator<Item = structs::EntityPlain>> {
    let (entities, spare) = bytes.as_chunks();
    spare.is_empty().then(|| entities.iter().map(|bytes| structs::EntityPlain(*bytes)))
}

/// Writes a body into a caller's buffer.
#[derive(Debug)]
pub struct BodyWriter<'a> {
    out: &'a mut [u8],
    used: usize,
}

impl<'a> BodyWriter<'a> {
    /// Begins a client's body. The budget is the buffer's length, at most [`BODY_BYTES_MAX`]; the header must fit.
    pub fn client(out: &'a mut [u8], header: structs::ClientHeader) -> BodyWriter<'a> {
        BodyWriter::begin(out, &header.0)
    }

    /// Begins a server's body. The budget is the buffer's length, at most [`BODY_BYTES_MAX`]; the header must fit.
    #[inline]
    pub fn server(out: &'a mut [u8], header: structs::ServerHeader) -> BodyWriter<'a> {
        BodyWriter::begin(out, &header.0)
    }

    fn begin(out: &'a mut [u8], header: &[u8]) -> BodyWriter<'a> {
        let budget = out.len().min(BODY_BYTES_MAX);
        let out = &mut out[..budget];
        out[..header.len()].copy_from_slice(header);
        BodyWriter { out, used: header.len() }
    }

    /// Bytes that the next section may have; 0 also where not even an empty section fits.
    #[inline]
    pub fn remaining(&self) -> usize {
        (self.out.len() - self.used).saturating_sub(4) & !3
    }

    /// Writes a section. False: it does not fit, and nothing was written.
    #[inline]
    pub fn section(&mut self, kind: u8, bytes: &[u8]) -> bool {
        self.section_parts(kind, &[bytes])
    }

    /// Writes a section whose bytes lie in several places. False: it does not fit, and nothing was written.
    #[inline(always)]
    pub fn section_parts(&mut self, kind: u8, parts: &[&[u8]]) -> bool {
        let length = parts.iter().map(|part| part.len()).sum();
        self.section_with(kind, length, |mut out| {
            for part in parts {
                let (place, rest) = out.split_at_mut(part.len());
                place.copy_from_slice(part);
                out = rest;
            }
            length
        })
    }

    /// Writes a section of at most `bytes_max` bytes that `fill` makes; it returns how many. False: `bytes_max` does not
    /// fit, `fill` was not called and nothing was written.
    ///
    /// Always inlined: each slice of each body passes here, and whether the compiler would do it by itself changes with what
    /// else is in the crate, by 7 % of the instructions of a crowd's bodies.
    #[inline(always)]
    pub fn section_with(&mut self, kind: u8, bytes_max: usize, fill: impl FnOnce(&mut [u8]) -> usize) -> bool {
        let start = self.used + 4;
        if start + bytes_max.next_multiple_of(4) > self.out.len() {
            return false;
        }
        let length = fill(&mut self.out[start..start + bytes_max]);
        assert!(length <= bytes_max, "a section of {length} bytes promised at most {bytes_max}");
        let header = structs::SectionHeader::new(kind, 0, length as u16);
        self.out[self.used..start].copy_from_slice(&header.0);
        self.used = start + length.next_multiple_of(4);
        // The padding is at most three bytes; what comes behind them is not part of the body, and four need no call.
        let behind = &mut self.out[start + length..];
        match behind.first_chunk_mut() {
            Some(four) => *four = [0; 4],
            None => behind.fill(0),
        }
        true
    }

    /// Writes a commands section for consecutive client ticks. False: it does not fit, and nothing was written.
    pub fn commands(&mut self, first_tick: u32, commands: impl ExactSizeIterator<Item = structs::Command>) -> bool {
        assert!(commands.len() <= COMMANDS_PER_BODY_MAX, "{} commands in one body", commands.len());
        let length = 8 + 8 * commands.len();
        self.section_with(kind::COMMANDS, length, |out| {
            let (places, _) = out.as_chunks_mut();
            places[0] = structs::CommandsHeader::new(first_tick, commands.len() as u32).0;
            for (place, command) in places[1..].iter_mut().zip(commands) {
                *place = command.0;
            }
            length
        })
    }

    /// Bytes of the body, from the start of the caller's buffer.
    pub fn finish(self) -> usize {
        self.used
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> structs::ClientHeader {
        structs::ClientHeader::new(7, 8, 9, FLAG_PACKED, 0)
    }

    #[test]
    fn sections_come_back_as_they_were_written() {
        let mut out = [0xffu8; 128];
        let mut writer = BodyWriter::client(&mut out, header());
        assert!(writer.section(kind::PING, &[]));
        assert!(writer.section(200, b"abcde"));
        assert!(writer.section_parts(kind::EVENTS, &[b"ab", b"", b"cd"]));
        let length = writer.finish();
        assert_eq!(length, 12 + 4 + (4 + 8) + (4 + 4));
        assert_eq!(&out[16..28], &[200, 0, 5, 0, b'a', b'b', b'c', b'd', b'e', 0, 0, 0], "padding is zeros");
        let (read, sections) = BodyReader::client(&out[..length]).expect("well formed");
        assert_eq!(read, header());
        let sections: Vec<_> = sections.map(|section| (section.kind, section.bytes)).collect();
        assert_eq!(sections, [(kind::PING, &b""[..]), (200, b"abcde"), (kind::EVENTS, b"abcd")]);
    }

    #[test]
    fn a_section_past_the_end_drops_the_whole_body() {
        let mut out = [0u8; 64];
        let mut writer = BodyWriter::client(&mut out, header());
        assert!(writer.section(kind::PING, &[]) && writer.section(kind::EVENTS, &[1; 24]));
        let length = writer.finish();
        for cut in 13..length {
            let whole = cut == 16;
            assert_eq!(BodyReader::client(&out[..cut]).is_ok(), whole, "cut at {cut}");
        }
        assert_eq!(BodyReader::client(&out[..11]).err(), Some(BodyError::Header));
        assert_eq!(BodyReader::server(&[0; BODY_BYTES_MAX + 1]).err(), Some(BodyError::TooLong));
    }

    #[test]
    fn the_budget_holds_and_a_refused_section_writes_nothing() {
        let mut out = [0u8; 12 + 4 + 8 + 3];
        let mut writer = BodyWriter::client(&mut out, header());
        assert_eq!(writer.remaining(), 8);
        assert!(!writer.section(kind::EVENTS, &[1; 9]));
        assert!(!writer.section_with(kind::EVENTS, 12, |_| panic!("must not be asked")));
        assert!(writer.section_with(kind::EVENTS, 8, |_| 3));
        assert_eq!(writer.remaining(), 0);
        assert_eq!(writer.finish(), 20);
        assert_eq!(&out[20..], &[0; 7]);
    }

    #[test]
    fn commands_are_read_only_when_count_and_length_agree() {
        let mut out = [0u8; 512];
        let commands: Vec<_> = (0..5).map(|n| structs::Command::new(n, 1, -1, 0, 0, 0)).collect();
        let mut writer = BodyWriter::client(&mut out, header());
        assert!(writer.commands(u32::MAX, commands.iter().copied()));
        let length = writer.finish();
        let (_, mut sections) = BodyReader::client(&out[..length]).expect("well formed");
        let bytes = sections.next().expect("one section").bytes.to_vec();
        let read = Commands::read(&bytes).expect("well formed");
        assert_eq!((read.first_tick, read.len()), (u32::MAX, 5));
        assert_eq!(read.iter().collect::<Vec<_>>(), commands);
        assert_eq!(Commands::read(&bytes[..40]).err(), Some(BodyError::Commands), "one command short");
        assert_eq!(Commands::read(&bytes[..41]).err(), Some(BodyError::Commands), "half a command");
        let many = [&structs::CommandsHeader::new(1, 33).0[..], &[0; 33 * 8]].concat();
        assert_eq!(Commands::read(&many).err(), Some(BodyError::Commands), "over the limit");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for body in [BodyReader::client(&bytes).map(|b| b.1), BodyReader::server(&bytes).map(|b| b.1)] {
                let Ok(sections) = body else { continue };
                let walked: usize = sections.clone().map(|s| 4 + s.bytes.len().next_multiple_of(4)).sum();
                prop_assert_eq!(walked, sections.rest.len(), "a checked body is walked to its end");
                for section in sections {
                    let _ = Commands::read(section.bytes);
                }
            }
        }
    }
}
