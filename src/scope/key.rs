//! What comes from outside, kept in place as long as it is short.

use std::{
    borrow::Borrow,
    fmt::{self, Display, Write},
    sync::Arc,
};

use super::bucket_id::{HASH, KEY_MARK, LONGEST_PLAIN};

/// A part that is missing; as `KEY_MARK`, no text contains it.
const NO_KEY: u8 = 0xFC;

/// Begins the hash of a long key; as `KEY_MARK`, no text contains it.
const LONG_KEY: u8 = 0xFB;

/// Keys up to this many bytes live inside the scope.
const INLINE: usize = 38;

#[derive(Clone)]
pub(super) enum Key {
    None,
    Inline(u8, [u8; INLINE]),
    Shared(Arc<[u8]>),
}

impl Key {
    #[inline]
    pub(super) fn new(key: impl Display) -> Self {
        let mut writer = KeyWriter::default();
        // A `Display` that reports an error still wrote what it could; that is its key.
        let _ = write!(writer, "{key}");
        writer.finish()
    }

    /// The key that `new` makes of a text, whose bytes these are.
    #[inline]
    pub(super) fn of(bytes: &[u8]) -> Self {
        let mut inline = [0; INLINE];
        if let Some(start) = inline.get_mut(..bytes.len()) {
            start.copy_from_slice(bytes);
            // At most 38.
            Self::Inline(bytes.len() as u8, inline)
        } else if bytes.len() <= LONGEST_PLAIN {
            Self::Shared(bytes.into())
        } else {
            // From here on: it is hashed once, and everything behind handles few bytes.
            Self::hash_of(bytes)
        }
    }

    /// Without a secret, because keys are made without a limiter. What Redis stores is a keyed hash
    /// of this one, as of any other key. An attacker who searches for two keys of one hash, which
    /// takes 2^64 attempts, gets one bucket instead of two.
    fn hash_of(bytes: &[u8]) -> Self {
        let mut inline = [0; INLINE];
        inline[0] = LONG_KEY;
        inline[1..=HASH].copy_from_slice(&blake3::hash(bytes).as_bytes()[..HASH]);
        Self::Inline(1 + HASH as u8, inline)
    }

    /// One key of several parts, with a byte between them that no text contains.
    pub(super) fn joined(parts: impl IntoIterator<Item = impl Display>) -> Self {
        let mut parts = parts.into_iter().map(Self::new).peekable();
        if parts.peek().is_none() {
            return Self::None;
        }
        Self::joined_from(parts)
    }

    /// The same, of parts that are keys, or are missing.
    pub(super) fn joined_from(parts: impl IntoIterator<Item = impl Borrow<Self>>) -> Self {
        let mut writer = KeyWriter::default();
        for (n, part) in parts.into_iter().enumerate() {
            if n > 0 {
                writer.push(&[KEY_MARK]);
            }
            writer.push(part.borrow().bytes().unwrap_or(&[NO_KEY]));
        }
        writer.finish()
    }

    #[inline]
    pub(super) fn bytes(&self) -> Option<&[u8]> {
        match self {
            Self::None => None,
            Self::Inline(length, bytes) => Some(&bytes[..usize::from(*length)]),
            Self::Shared(bytes) => Some(bytes),
        }
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }
}

/// Collects a key, in place as long as it is short.
struct KeyWriter {
    length: usize,
    inline: [u8; INLINE],
    /// One piece that is too long to stay inside, as most keys are written.
    whole: Option<Arc<[u8]>>,
    spilled: Vec<u8>,
}

impl Default for KeyWriter {
    fn default() -> Self {
        Self {
            length: 0,
            inline: [0; INLINE],
            whole: None,
            spilled: Vec::new(),
        }
    }
}

impl Write for KeyWriter {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text.as_bytes());
        Ok(())
    }
}

impl KeyWriter {
    fn push(&mut self, bytes: &[u8]) {
        let end = self.length + bytes.len();
        if end <= INLINE {
            self.inline[self.length..end].copy_from_slice(bytes);
        } else if self.length == 0 {
            self.whole = Some(bytes.into());
        } else {
            if let Some(whole) = self.whole.take() {
                self.spilled.extend_from_slice(&whole);
            } else if self.spilled.is_empty() {
                self.spilled.extend_from_slice(&self.inline[..self.length]);
            }
            self.spilled.extend_from_slice(bytes);
        }
        self.length = end;
    }

    fn finish(self) -> Key {
        match self.whole {
            Some(whole) if whole.len() <= LONGEST_PLAIN => Key::Shared(whole),
            Some(whole) => Key::hash_of(&whole),
            // At most 38.
            None if self.spilled.is_empty() => Key::Inline(self.length as u8, self.inline),
            None => Key::of(&self.spilled),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_keys_stay_inside() {
        assert!(matches!(Key::new("x".repeat(38)), Key::Inline(38, _)));
        assert!(matches!(Key::new("x".repeat(39)), Key::Shared(_)));
        let pieces = Key::new(format_args!("{}{}", "a".repeat(30), "b".repeat(30)));
        assert_eq!(pieces.bytes().map(<[u8]>::len), Some(60));
    }

    #[test]
    fn long_keys_are_hashed() {
        let long = "x".repeat(65);
        let hash = blake3::hash(long.as_bytes());
        let hash = [&[LONG_KEY], &hash.as_bytes()[..16]].concat();
        assert_eq!(Key::new(&long).bytes(), Some(&hash[..]));
        assert_eq!(Key::new(&long[..64]).bytes(), Some(&long.as_bytes()[..64]));
    }

    #[test]
    fn pieces_make_the_same_key_as_their_text() {
        for lengths in [
            [0, 5, 6],
            [10, 28, 1],
            [60, 4, 1],
            [64, 0, 1],
            [1, 90, 3],
            [70, 1, 70],
        ] {
            let [a, b, c] = lengths.map(|length| "x".repeat(length));
            let text = format!("{a}{b}{c}");
            assert!(Key::new(format_args!("{a}{b}{c}")) == Key::of(text.as_bytes()));
        }
    }

    #[test]
    fn parts_are_kept_apart() {
        let joined = |parts: &[&str]| Key::joined(parts).bytes().map(<[u8]>::to_vec);
        assert_eq!(joined(&[]), None);
        assert_eq!(joined(&[""]), Key::new("").bytes().map(<[u8]>::to_vec));
        assert_eq!(joined(&["a"]), Some(b"a".to_vec()));
        assert_eq!(joined(&["", "a/b", ""]), Some(b"\xffa/b\xff".to_vec()));
        // In place, shared, and long as a whole.
        for lengths in [
            [5, 6, 7],
            [20, 1, 30],
            [50, 1, 40],
            [30, 30, 0],
            [0, 60, 60],
        ] {
            let parts = lengths.map(|length| "x".repeat(length));
            let expected = Key::of(&parts.each_ref().map(|part| part.as_bytes()).join(&0xff));
            let parts = parts.each_ref().map(String::as_str);
            assert_eq!(joined(&parts), expected.bytes().map(<[u8]>::to_vec));
        }
        // A long part is the same as that key alone.
        let long = "x".repeat(65);
        let of_keys = Key::joined_from([Key::new(&long), Key::new("a")]);
        assert!(Key::joined([&long, "a"]) == of_keys);
        assert!(Key::joined([&long]) == Key::new(&long));
    }
}
