//! Bodies over a byte stream: a u32 little-endian length, then the body; the connect token is the first frame.
//!
//! Owns the bytes of a frame that is not whole yet, at most one frame. Promises: any bytes are split the same way however
//! they are cut; a length beyond the bound ends the stream before anything of it is kept.

use crate::limits::{BODY_BYTES_MAX, TOKEN_BYTES};

/// Bytes of a frame's length.
pub const LENGTH_BYTES: usize = 4;

/// The stream does not speak our protocol: its length field says this many bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadLength(pub u32);

/// Splits a stream into frames.
#[derive(Clone, Debug, Default)]
pub struct StreamReader {
    rest: Vec<u8>,
    past_token: bool,
}

impl StreamReader {
    /// A reader of what a server sends: no token comes first.
    pub fn of_server() -> StreamReader {
        StreamReader { rest: Vec::new(), past_token: true }
    }

    /// Takes bytes and calls `on_frame` for each frame that is whole; `on_frame` says whether to go on. Returns what is left:
    /// nothing, unless it did not go on.
    pub fn feed<'a>(
        &mut self,
        mut bytes: &'a [u8],
        mut on_frame: impl FnMut(&[u8]) -> bool,
    ) -> Result<&'a [u8], BadLength> {
        loop {
            let whole = self.length(bytes)?.map(|length| LENGTH_BYTES + length);
            let Some(whole) = whole.filter(|&whole| self.rest.len() + bytes.len() >= whole) else {
                self.rest.extend_from_slice(bytes);
                return Ok(&[]);
            };
            let (mine, others) = bytes.split_at(whole - self.rest.len());
            bytes = others;
            self.past_token = true;
            let go_on = if self.rest.is_empty() {
                on_frame(&mine[LENGTH_BYTES..])
            } else {
                self.rest.extend_from_slice(mine);
                let go_on = on_frame(&self.rest[LENGTH_BYTES..]);
                self.rest.clear();
                go_on
            };
            if !go_on {
                return Ok(bytes);
            }
        }
    }

    /// Length of the frame at hand, once its four bytes are here.
    fn length(&self, bytes: &[u8]) -> Result<Option<usize>, BadLength> {
        let mut head = [0; LENGTH_BYTES];
        let mut known = self.rest.iter().chain(bytes);
        for place in &mut head {
            let Some(&byte) = known.next() else { return Ok(None) };
            *place = byte;
        }
        let length = u32::from_le_bytes(head);
        let fits = if self.past_token {
            (1..=BODY_BYTES_MAX).contains(&(length as usize))
        } else {
            length as usize == TOKEN_BYTES
        };
        if fits { Ok(Some(length as usize)) } else { Err(BadLength(length)) }
    }
}

/// A frame with its length, in `out`; gives back the bytes used.
///
/// Panics when `out` is too small.
pub fn write_frame(body: &[u8], out: &mut [u8]) -> usize {
    out[..LENGTH_BYTES].copy_from_slice(&(body.len() as u32).to_le_bytes());
    out[LENGTH_BYTES..LENGTH_BYTES + body.len()].copy_from_slice(body);
    LENGTH_BYTES + body.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn framed(body: &[u8]) -> Vec<u8> {
        let mut out = vec![0; LENGTH_BYTES + body.len()];
        write_frame(body, &mut out);
        out
    }

    proptest! {
        #[test]
        fn frames_do_not_depend_on_how_bytes_are_cut(
            lengths in prop::collection::vec(1usize..BODY_BYTES_MAX, 0..6),
            cuts in prop::collection::vec(1usize..900, 1..40),
        ) {
            let mut bodies = vec![vec![9u8; TOKEN_BYTES]];
            bodies.extend(lengths.iter().enumerate().map(|(n, &length)| vec![n as u8; length]));
            let bytes: Vec<u8> = bodies.iter().flat_map(|body| framed(body)).collect();
            let (mut reader, mut got, mut at) = (StreamReader::default(), Vec::new(), 0);
            for cut in cuts.iter().cycle() {
                let end = (at + cut).min(bytes.len());
                reader.feed(&bytes[at..end], |frame| { got.push(frame.to_vec()); true }).expect("well formed");
                at = end;
                if at == bytes.len() { break; }
            }
            prop_assert_eq!(got, bodies);
        }

        #[test]
        fn any_bytes_are_bounded(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..600), 0..20)) {
            let mut reader = StreamReader::default();
            for chunk in &chunks {
                if reader.feed(chunk, |_| true).is_err() { break; }
                prop_assert!(reader.rest.len() <= LENGTH_BYTES + TOKEN_BYTES);
            }
        }
    }

    #[test]
    fn the_first_frame_is_a_token_and_no_later_one_is() {
        let mut reader = StreamReader::default();
        assert_eq!(reader.feed(&100u32.to_le_bytes(), |_| true), Err(BadLength(100)));
        let mut reader = StreamReader::default();
        reader.feed(&framed(&[0; TOKEN_BYTES]), |_| true).expect("a token");
        assert_eq!(reader.feed(&framed(&[0; TOKEN_BYTES])[..4], |_| true), Err(BadLength(TOKEN_BYTES as u32)));
    }
}
