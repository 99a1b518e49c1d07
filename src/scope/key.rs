//! What comes from outside, kept in place as long as it is short.

use std::{
    fmt::{self, Display, Write},
    sync::Arc,
};

use super::bucket_id::KEY_MARK;

/// A part that is missing; as `KEY_MARK`, no text contains it.
const NO_KEY: u8 = 0xFC;

/// Keys up to this many bytes live inside the scope.
const INLINE: usize = 38;

#[derive(Clone)]
pub(super) enum Key {
    None,
    Inline(u8, [u8; INLINE]),
    Shared(Arc<[u8]>),
}

impl Key {
    pub(super) fn new(key: impl Display) -> Self {
        let mut writer = KeyWriter::default();
        // A `Display` that reports an error still wrote what it could; that is its key.
        let _ = write!(writer, "{key}");
        writer.finish()
    }

    /// One key of several parts, with a byte between them that no text contains.
    pub(super) fn joined(parts: impl IntoIterator<Item = impl Display>) -> Self {
        let mut writer = KeyWriter::default();
        let mut parts = parts.into_iter().enumerate().peekable();
        if parts.peek().is_none() {
            return Self::None;
        }
        for (n, part) in parts {
            if n > 0 {
                writer.push(&[KEY_MARK]);
            }
            let _ = write!(writer, "{part}");
        }
        writer.finish()
    }

    /// The same, of parts that are keys, or are missing.
    pub(super) fn joined_from(parts: &[&Self]) -> Self {
        let mut writer = KeyWriter::default();
        for (n, part) in parts.iter().enumerate() {
            if n > 0 {
                writer.push(&[KEY_MARK]);
            }
            writer.push(part.bytes().unwrap_or(&[NO_KEY]));
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
        if let Some(whole) = self.whole {
            Key::Shared(whole)
        } else if self.spilled.is_empty() {
            // At most 38.
            Key::Inline(self.length as u8, self.inline)
        } else {
            Key::Shared(self.spilled.into())
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
    fn parts_are_kept_apart() {
        let joined = |parts: &[&str]| Key::joined(parts).bytes().map(<[u8]>::to_vec);
        assert_eq!(joined(&[]), None);
        assert_eq!(joined(&[""]), Key::new("").bytes().map(<[u8]>::to_vec));
        assert_eq!(joined(&["a"]), Some(b"a".to_vec()));
        assert_eq!(joined(&["", "a/b", ""]), Some(b"\xffa/b\xff".to_vec()));
        // In place, from the first part on the heap, and in the middle.
        for lengths in [[5, 6, 7], [50, 1, 40], [30, 30, 0], [0, 60, 60]] {
            let parts = lengths.map(|length| "x".repeat(length));
            let expected = parts.each_ref().map(|part| part.as_bytes()).join(&0xff);
            let parts = parts.each_ref().map(String::as_str);
            assert_eq!(joined(&parts), Some(expected));
        }
    }
}
