//! A compact map from bucket identities to values.

use std::{
    hash::{BuildHasher, RandomState},
    sync::LazyLock,
};

use foldhash::{
    SharedSeed,
    fast::{FoldHasher, SeedableRandomState},
};
use hashbrown::HashTable;

use crate::scope::Lookup;

/// Identities of at most this many bytes are stored inside the entry.
const INLINE: usize = 22;

/// The hash function of bucket identities: foldhash, with seeds from the operating system.
///
/// Identities come from outside, but their hashes never leave the process. SipHash would take a
/// third of the time of a decision. The default seeds of foldhash depend on addresses only, which
/// are the same in each process where they are not randomised.
#[derive(Clone, Debug)]
pub(crate) struct Hashing(SeedableRandomState);

impl Default for Hashing {
    fn default() -> Self {
        static SEED: LazyLock<SharedSeed> =
            LazyLock::new(|| SharedSeed::from_u64(RandomState::new().hash_one(0)));
        Self(SeedableRandomState::with_seed(
            RandomState::new().hash_one(0),
            &SEED,
        ))
    }
}

impl BuildHasher for Hashing {
    type Hasher = FoldHasher<'static>;

    #[inline]
    fn build_hasher(&self) -> Self::Hasher {
        self.0.build_hasher()
    }
}

/// A map that grows by a sixteenth: a hash table of indices into a list of entries.
///
/// A hash table of the entries themselves would be between an eighth and nine sixteenths empty,
/// which with a million entries is 100 bytes for each.
#[derive(Debug)]
pub(crate) struct PackedMap<T> {
    index: HashTable<u32>,
    entries: Vec<Entry<T>>,
}

#[derive(Debug)]
pub(crate) struct Entry<T> {
    id: Id,
    pub(crate) value: T,
}

#[derive(Debug)]
enum Id {
    Inline(u8, [u8; INLINE]),
    Boxed(Box<[u8]>),
}

impl Id {
    fn new(id: &[u8]) -> Self {
        if id.len() > INLINE {
            return Self::Boxed(id.into());
        }
        let mut bytes = [0; INLINE];
        bytes[..id.len()].copy_from_slice(id);
        // At most 22.
        Self::Inline(id.len() as u8, bytes)
    }

    #[inline]
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Inline(length, bytes) => &bytes[..usize::from(*length)],
            Self::Boxed(bytes) => bytes,
        }
    }
}

impl<T> Entry<T> {
    pub(crate) fn id(&self) -> &[u8] {
        self.id.bytes()
    }
}

impl<T> Default for PackedMap<T> {
    fn default() -> Self {
        Self {
            index: HashTable::new(),
            entries: Vec::new(),
        }
    }
}

impl<T> PackedMap<T> {
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        self.entries.capacity()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Entry<T>> {
        self.entries.iter_mut()
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, hash: u64, id: &Lookup<'_>) -> Option<&mut T> {
        let entries = &self.entries;
        let index = self
            .index
            .find(hash, |index| id.is(entries[*index as usize].id()))?;
        Some(&mut self.entries[*index as usize].value)
    }

    /// Adds an entry for an identity that has none.
    pub(crate) fn insert(
        &mut self,
        hash: u64,
        id: &[u8],
        value: T,
        hash_of: impl Fn(&[u8]) -> u64,
    ) -> &mut T {
        let index = self.entries.len();
        if index == self.entries.capacity() {
            self.entries.reserve_exact(index / 16 + 4);
        }
        self.entries.push(Entry {
            id: Id::new(id),
            value,
        });
        let entries = &self.entries;
        // More than `u32::MAX` entries would not fit into memory.
        self.index.insert_unique(hash, index as u32, |index| {
            hash_of(entries[*index as usize].id())
        });
        &mut self.entries[index].value
    }

    /// Removes the entries for which `keep` returns false. Frees memory if that is most of them.
    pub(crate) fn retain(
        &mut self,
        keep: impl FnMut(&mut Entry<T>) -> bool,
        hash_of: impl Fn(&[u8]) -> u64,
    ) {
        let before = self.entries.len();
        self.entries.retain_mut(keep);
        let left = self.entries.len();
        if left == before {
            return;
        }
        if before - left > left {
            self.entries.shrink_to(left + left / 16 + 4);
            self.index = HashTable::with_capacity(left);
        } else {
            self.index.clear();
        }
        let entries = &self.entries;
        for (index, entry) in entries.iter().enumerate() {
            self.index
                .insert_unique(hash_of(entry.id()), index as u32, |index| {
                    hash_of(entries[*index as usize].id())
                });
        }
    }
}

#[cfg(test)]
mod tests;
