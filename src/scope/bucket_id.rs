//! How the stores know a bucket.

use std::hash::{BuildHasher, Hasher};

/// Names over this many bytes are known to the stores by a hash. No key has more.
pub(super) const LONGEST_PLAIN: usize = 64;

/// Bytes of that hash: 128 bits.
pub(super) const HASH: usize = 16;

/// Bytes that do not occur in UTF-8, so that no name or key can contain them.
const HASH_MARK: u8 = 0xFE;
pub(super) const KEY_MARK: u8 = 0xFF;

/// What follows the prefix of a limiter in Redis. No prefix contains it, so that no prefix, with
/// this byte behind it, begins another.
pub(crate) const PREFIX_END: char = '|';

/// What distinguishes one bucket from all others within the process: the name, by its hash where it
/// is long, then the key behind a mark. A key of several parts has a mark before each.
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

/// The same, not yet put together: what a store is asked by.
#[derive(Clone, Copy)]
pub(crate) struct Lookup<'a> {
    name: &'a [u8],
    key: Option<&'a [u8]>,
}

/// Room for the hash of a lookup.
#[derive(Default)]
pub(crate) struct Hashes {
    name: [u8; 1 + HASH],
}

fn hash(bytes: &[u8], secret: &[u8; 32], to: &mut [u8; 1 + HASH]) {
    to[0] = HASH_MARK;
    to[1..].copy_from_slice(&blake3::keyed_hash(secret, bytes).as_bytes()[..HASH]);
}

impl<'a> Lookup<'a> {
    #[inline]
    pub(super) fn new(
        name: &'a [u8],
        key: Option<&'a [u8]>,
        secret: &[u8; 32],
        hashes: &'a mut Hashes,
    ) -> Self {
        let name = if name.len() > LONGEST_PLAIN {
            hash(name, secret, &mut hashes.name);
            &hashes.name
        } else {
            name
        };
        Self { name, key }
    }

    /// Of an identity that a store contains.
    pub(crate) fn of(id: &'a [u8]) -> Self {
        let name = name(id);
        Self {
            name,
            key: id.get(name.len() + 1..),
        }
    }

    #[inline]
    pub(crate) fn is(&self, id: &[u8]) -> bool {
        let name = self.name;
        let Some(key) = self.key else {
            return id == name;
        };
        id.len() == name.len() + 1 + key.len()
            && id[name.len() + 1..] == *key
            && id[name.len()] == KEY_MARK
            && id[..name.len()] == *name
    }

    /// Keys come from outside, so the hasher must be keyed.
    #[inline]
    pub(crate) fn hash(&self, hasher: &impl BuildHasher) -> u64 {
        let mut hasher = hasher.build_hasher();
        hasher.write(self.name);
        if let Some(key) = self.key {
            hasher.write(key);
        }
        hasher.finish()
    }

    /// Two identities are equal if their [`words`](Self::words) and these are.
    #[inline]
    pub(crate) fn lengths(&self) -> u64 {
        let key = self.key.map_or(u64::MAX, |key| key.len() as u64);
        self.name.len() as u64 | key << 8
    }

    /// The bytes of the identity, eight at a time.
    #[inline]
    pub(crate) fn words(&self) -> impl Iterator<Item = u64> {
        words(self.name).chain(words(self.key.unwrap_or_default()))
    }

    pub(crate) fn id(&self) -> BucketId {
        let mut id = BucketId::default();
        id.push(self.name);
        if let Some(key) = self.key {
            id.push(&[KEY_MARK]);
            id.push(key);
        }
        id
    }
}

#[inline]
fn words(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.chunks(8).map(|bytes| match bytes.try_into() {
        Ok(word) => u64::from_le_bytes(word),
        Err(_) => bytes
            .iter()
            .fold(0, |word, byte| word << 8 | u64::from(*byte)),
    })
}

/// The part of an identity before the key.
fn name(id: &[u8]) -> &[u8] {
    // A hash may contain any byte, but its length is fixed.
    let from = if id.first() == Some(&HASH_MARK) {
        1 + HASH
    } else {
        0
    };
    let end = id[from..].iter().position(|byte| *byte == KEY_MARK);
    &id[..end.map_or(id.len(), |end| from + end)]
}

impl BucketId {
    pub(super) fn new(name: &[u8], key: Option<&[u8]>, secret: &[u8; 32]) -> Self {
        Lookup::new(name, key, secret, &mut Hashes::default()).id()
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    /// The part before the key.
    pub(crate) fn name(&self) -> &[u8] {
        name(self.as_bytes())
    }

    pub(crate) fn lookup(&self) -> Lookup<'_> {
        Lookup::of(self.as_bytes())
    }

    fn push(&mut self, bytes: &[u8]) {
        let at = usize::from(self.length);
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len() as u8;
    }
}

/// The names of this crate's keys in Redis: those of limiters with different prefixes, or different
/// names, are different.
#[derive(Clone)]
pub(crate) struct Keyspace {
    /// With its end.
    prefix: std::sync::Arc<str>,
    secret: [u8; 32],
}

impl Keyspace {
    pub(crate) fn new(prefix: &str, secret: [u8; 32]) -> Self {
        Self {
            prefix: format!("{prefix}{PREFIX_END}").into(),
            secret,
        }
    }

    /// With which bucket identities are made.
    pub(crate) fn secret(&self) -> &[u8; 32] {
        &self.secret
    }

    /// The key of the directory, which `acquire.lua` describes.
    pub(crate) fn directory(&self) -> Vec<u8> {
        self.own("{#}directory")
    }

    /// The keys of the two hashes with the buckets of a class, whose period is in seconds.
    pub(crate) fn class(&self, period: u64) -> [Vec<u8>; 2] {
        [0, 1].map(|hash| format!("{}{{#}}{period}s:{hash}", self.prefix).into_bytes())
    }

    /// Appends the field of a bucket: its name, then, behind a mark, 16 bytes that stand for its
    /// key. Returns the length of the name.
    ///
    /// All keys are hashed, not only secret ones. So callers need not decide which keys are secret,
    /// and nothing that identifies a person leaves the process.
    pub(crate) fn push_field(&self, id: &[u8], fields: &mut Vec<u8>) -> usize {
        let Lookup { name, key } = Lookup::of(id);
        fields.extend_from_slice(name);
        if let Some(key) = key {
            let mut room = [0; 1 + HASH];
            hash(key, &self.secret, &mut room);
            fields.push(KEY_MARK);
            fields.extend_from_slice(&room[1..]);
        }
        name.len()
    }

    /// Appends the field of a bucket that no scope can have. Returns the length of the part that all
    /// of these have in common.
    pub(crate) fn push_own_field(&self, name: &str, fields: &mut Vec<u8>) -> usize {
        // No other name begins with this byte, and what is behind it is longer than a hash.
        const COMMON: [u8; 2] = [KEY_MARK, b'#'];
        fields.extend_from_slice(&COMMON);
        fields.extend_from_slice(name.as_bytes());
        COMMON.len()
    }

    /// A key of this crate. All keys of one prefix have the same hash tag.
    pub(crate) fn own(&self, name: &str) -> Vec<u8> {
        format!("{}{name}", self.prefix).into_bytes()
    }
}
