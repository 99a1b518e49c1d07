//! How the stores know a bucket.

/// Names and keys over this many bytes are known to the stores by a hash.
const LONGEST_PLAIN: usize = 64;

/// Bytes of that hash: 128 bits.
const HASH: usize = 16;

/// Bytes that no UTF-8 text holds, so that no name or key can imitate them.
const HASH_MARK: u8 = 0xFE;
const KEY_MARK: u8 = 0xFF;

/// What distinguishes one bucket from all others, in memory and in Redis: the name, then the
/// key behind a mark, each by its hash where it is long or secret.
#[derive(Clone, Copy)]
pub(crate) struct BucketId {
    length: u8,
    bytes: [u8; 2 * LONGEST_PLAIN + 1],
}

impl Default for BucketId {
    fn default() -> Self {
        Self {
            length: 0,
            bytes: [0; 2 * LONGEST_PLAIN + 1],
        }
    }
}

impl BucketId {
    pub(super) fn new(name: &[u8], key: Option<&[u8]>, hide_key: bool, secret: &[u8; 32]) -> Self {
        let mut id = Self::default();
        id.part(name, false, secret);
        if let Some(key) = key {
            id.push(&[KEY_MARK]);
            id.part(key, hide_key, secret);
        }
        id
    }

    /// Whether a part is known by its hash though it is no secret.
    pub(super) fn hides(part: &[u8]) -> bool {
        part.len() > LONGEST_PLAIN
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    /// The part before the key.
    pub(crate) fn name(&self) -> &[u8] {
        let bytes = self.as_bytes();
        // A hash may hold any byte; it is of a known length.
        let from = if bytes.first() == Some(&HASH_MARK) {
            1 + HASH
        } else {
            0
        };
        let end = bytes[from..].iter().position(|byte| *byte == KEY_MARK);
        &bytes[..end.map_or(bytes.len(), |end| from + end)]
    }

    fn push(&mut self, bytes: &[u8]) {
        let at = usize::from(self.length);
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len() as u8;
    }

    fn part(&mut self, bytes: &[u8], hide: bool, secret: &[u8; 32]) {
        if hide || Self::hides(bytes) {
            self.push(&[HASH_MARK]);
            self.push(&blake3::keyed_hash(secret, bytes).as_bytes()[..HASH]);
        } else {
            self.push(bytes);
        }
    }

    #[cfg(feature = "redis")]
    pub(crate) fn redis_key(&self, prefix: &str) -> Vec<u8> {
        redis_key(prefix, self.as_bytes())
    }
}

/// `name` or `name:key`, in characters that no key can use to leave its place: everything but
/// letters, digits and `-._~@/` is percent-encoded, and `#` starts a hash.
#[cfg(feature = "redis")]
pub(crate) fn redis_key(prefix: &str, id: &[u8]) -> Vec<u8> {
    let mut redis_key = Vec::with_capacity(prefix.len() + id.len() + 8);
    redis_key.extend_from_slice(prefix.as_bytes());
    let mut hashed = 0;
    for &byte in id {
        if hashed > 0 {
            hashed -= 1;
            redis_key.extend(hex(byte));
            continue;
        }
        match byte {
            HASH_MARK => {
                redis_key.push(b'#');
                hashed = HASH;
            }
            KEY_MARK => redis_key.push(b':'),
            _ if byte.is_ascii_alphanumeric() || b"-._~@/".contains(&byte) => {
                redis_key.push(byte);
            }
            _ => {
                redis_key.push(b'%');
                redis_key.extend(hex(byte));
            }
        }
    }
    redis_key
}

#[cfg(feature = "redis")]
fn hex(byte: u8) -> [u8; 2] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    [
        DIGITS[usize::from(byte >> 4)],
        DIGITS[usize::from(byte & 15)],
    ]
}
