//! The three ciphers of netcode 1.02, each prepared once per key.
//!
//! Owns the keys. Promises: seals and opens in place, the tag beside the text; a nonce is four zero bytes and the
//! little-endian sequence. The caller never uses a sequence twice with one key. Never draws random bytes.

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use chacha20poly1305::{AeadInPlace, KeyInit, XChaCha20Poly1305};

/// Bytes of every key.
pub const KEY_BYTES: usize = 32;
/// Bytes of the tag that follows every sealed text.
pub const TAG_BYTES: usize = 16;
/// Bytes of the random nonce of a connect token.
pub const TOKEN_NONCE_BYTES: usize = 24;

/// ChaCha20-Poly1305 for one direction of one connection, or for challenge tokens.
#[derive(Debug)]
pub struct PacketKey(LessSafeKey);

impl PacketKey {
    /// Prepares a key; this allocates, sealing and opening do not.
    pub fn new(key: &[u8; KEY_BYTES]) -> PacketKey {
        let key = UnboundKey::new(&CHACHA20_POLY1305, key).expect("a ChaCha20-Poly1305 key has 32 bytes");
        PacketKey(LessSafeKey::new(key))
    }

    /// Seals all but the last 16 bytes of `text` in place and writes the tag there.
    pub fn seal(&self, sequence: u64, associated: &[u8], text: &mut [u8]) {
        let (text, tag) = split_tag_mut(text);
        let sealed = self
            .0
            .seal_in_place_separate_tag(nonce(sequence), Aad::from(associated), text)
            .expect("a datagram is far below the cipher's limit");
        tag.copy_from_slice(sealed.as_ref());
    }

    /// Opens `sealed` (text and tag) in place: the text, or `None` if the tag does not fit. The bytes are then spoilt.
    pub fn open<'a>(&self, sequence: u64, associated: &[u8], sealed: &'a mut [u8]) -> Option<&'a mut [u8]> {
        let (text, tag) = sealed.split_at_mut_checked(sealed.len().checked_sub(TAG_BYTES)?)?;
        self.0.open_in_place_separate_tag(nonce(sequence), Aad::from(associated), tag, text).ok()
    }
}

/// XChaCha20-Poly1305 for the private part of connect tokens, under the key shared with the backend.
pub struct TokenKey(XChaCha20Poly1305);

impl TokenKey {
    /// Prepares a key.
    pub fn new(key: &[u8; KEY_BYTES]) -> TokenKey {
        TokenKey(XChaCha20Poly1305::new(key.into()))
    }

    /// Seals all but the last 16 bytes of `text` in place and writes the tag there.
    pub fn seal(&self, nonce: &[u8; TOKEN_NONCE_BYTES], associated: &[u8], text: &mut [u8]) {
        let (text, tag) = split_tag_mut(text);
        let sealed = self
            .0
            .encrypt_in_place_detached(nonce.into(), associated, text)
            .expect("a token is far below the cipher's limit");
        tag.copy_from_slice(&sealed);
    }

    /// Opens `sealed` (text and tag) in place: the text, or `None` if the tag does not fit.
    pub fn open<'a>(
        &self,
        nonce: &[u8; TOKEN_NONCE_BYTES],
        associated: &[u8],
        sealed: &'a mut [u8],
    ) -> Option<&'a mut [u8]> {
        let (text, tag) = sealed.split_at_mut_checked(sealed.len().checked_sub(TAG_BYTES)?)?;
        let tag: &[u8; TAG_BYTES] = (&*tag).try_into().ok()?;
        self.0.decrypt_in_place_detached(nonce.into(), associated, text, tag.into()).ok()?;
        Some(text)
    }
}

fn split_tag_mut(text: &mut [u8]) -> (&mut [u8], &mut [u8]) {
    let len = text.len().checked_sub(TAG_BYTES).expect("room for the tag is the caller's");
    text.split_at_mut(len)
}

fn nonce(sequence: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&sequence.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use chacha20poly1305::ChaCha20Poly1305;

    #[test]
    fn nonce_is_four_zero_bytes_and_the_little_endian_sequence() {
        let sequence = 0x0102_0304_0506_0708;
        let mut sealed = *b"sixteen and some................";
        PacketKey::new(&[7; KEY_BYTES]).seal(sequence, b"around", &mut sealed);

        let mut expected = *b"sixteen and some";
        let nonce = [0, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1];
        let cipher = ChaCha20Poly1305::new(&[7; KEY_BYTES].into());
        let tag = cipher.encrypt_in_place_detached(&nonce.into(), b"around", &mut expected).unwrap();
        assert_eq!(sealed[..16], expected);
        assert_eq!(sealed[16..], tag[..]);
    }

    #[test]
    fn packet_key_opens_only_what_it_sealed() {
        let key = PacketKey::new(&[1; KEY_BYTES]);
        let mut sealed = [9; 40];
        key.seal(5, b"a", &mut sealed);
        assert_eq!(key.open(5, b"a", &mut sealed.clone()).unwrap(), [9; 24]);
        assert!(key.open(6, b"a", &mut sealed.clone()).is_none(), "another sequence");
        assert!(key.open(5, b"b", &mut sealed.clone()).is_none(), "other associated data");
        assert!(PacketKey::new(&[2; KEY_BYTES]).open(5, b"a", &mut sealed.clone()).is_none(), "another key");
        for byte in 0..sealed.len() {
            let mut forged = sealed;
            forged[byte] ^= 1;
            assert!(key.open(5, b"a", &mut forged).is_none(), "byte {byte} changed");
        }
        assert!(key.open(5, b"a", &mut sealed[..15]).is_none(), "shorter than a tag");
    }

    #[test]
    fn nothing_but_a_tag_seals_and_opens() {
        let key = PacketKey::new(&[1; KEY_BYTES]);
        let mut sealed = [0; TAG_BYTES];
        key.seal(0, b"a", &mut sealed);
        assert!(key.open(0, b"a", &mut sealed).unwrap().is_empty());
    }

    #[test]
    fn token_key_opens_only_what_it_sealed() {
        let key = TokenKey::new(&[1; KEY_BYTES]);
        let mut sealed = [3; 100];
        key.seal(&[5; 24], b"a", &mut sealed);
        assert_eq!(key.open(&[5; 24], b"a", &mut sealed.clone()).unwrap(), [3; 84]);
        assert!(key.open(&[6; 24], b"a", &mut sealed.clone()).is_none());
        assert!(key.open(&[5; 24], b"b", &mut sealed.clone()).is_none());
        sealed[50] ^= 1;
        assert!(key.open(&[5; 24], b"a", &mut sealed).is_none());
    }
}
