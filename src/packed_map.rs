//! Buckets by identity, packed.

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

/// Identities up to this many bytes live inside the entry.
const INLINE: usize = 22;

/// foldhash: keys come from outside, but their hashes never go there, and SipHash takes a third of
/// the time of a decision. Seeded by the operating system in each process; by itself it knows only
/// its addresses, which are the same each time where they are not randomised.
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

/// A hash table of places in a list that grows by a sixteenth: a table of whole entries is between
/// an eighth and nine sixteenths empty, which with a million entries is a hundred bytes each.
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

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Entry<T>> {
        self.entries.iter()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Entry<T>> {
        self.entries.iter_mut()
    }

    /// Where it is, until the next change of this table.
    #[inline]
    pub(crate) fn find(&self, hash: u64, id: &Lookup<'_>) -> Option<usize> {
        let entries = &self.entries;
        let place = self
            .index
            .find(hash, |place| id.is(entries[*place as usize].id()))?;
        Some(*place as usize)
    }

    #[inline]
    pub(crate) fn value(&mut self, place: usize) -> &mut T {
        &mut self.entries[place].value
    }

    /// Adds what is not there; where it is then.
    pub(crate) fn insert(
        &mut self,
        hash: u64,
        id: &[u8],
        value: T,
        hash_of: impl Fn(&[u8]) -> u64,
    ) -> usize {
        let place = self.entries.len();
        if place == self.entries.capacity() {
            self.entries.reserve_exact(place / 16 + 4);
        }
        self.entries.push(Entry {
            id: Id::new(id),
            value,
        });
        let entries = &self.entries;
        // So many would not fit into the memory.
        self.index.insert_unique(hash, place as u32, |place| {
            hash_of(entries[*place as usize].id())
        });
        place
    }

    /// Keeps some; memory is given back where most are gone.
    pub(crate) fn retain(
        &mut self,
        keep: impl FnMut(&Entry<T>) -> bool,
        hash_of: impl Fn(&[u8]) -> u64,
    ) {
        let before = self.entries.len();
        self.entries.retain(keep);
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
        for (place, entry) in entries.iter().enumerate() {
            self.index
                .insert_unique(hash_of(entry.id()), place as u32, |place| {
                    hash_of(entries[*place as usize].id())
                });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashMap,
        hash::{BuildHasher, RandomState},
    };

    use super::*;
    use crate::{quota::Quota, scope::Scope};

    #[test]
    fn hashes_are_seeded() {
        let (one, two) = (Hashing::default(), Hashing::default());
        println!("{:x}", one.hash_one("key"));
        assert_eq!(one.hash_one("key"), one.clone().hash_one("key"));
        assert_ne!(one.hash_one("key"), two.hash_one("key"));
    }

    #[test]
    fn it_is_a_map() {
        const SCOPE: Scope = Quota::per_second(1.0).scope("s");
        let hasher = RandomState::new();
        // Few hashes, so that entries meet.
        let hash_of = |id: &[u8]| hasher.hash_one(id) % 97;
        let (mut table, mut map) = (PackedMap::default(), HashMap::new());
        let mut state = 1u64;
        for step in 0..20_000u32 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let key = (state >> 33) % 600;
            // Some too long to stay inside.
            let scope = SCOPE.key(format_args!("{:>1$}", key, 1 + key as usize % 40));
            let id = scope.id(&[0; 32]);
            let (lookup, id) = (id.lookup(), id.as_bytes());
            let place = table.find(hash_of(id), &lookup);
            let known = place.map(|place| *table.value(place));
            assert_eq!(known, map.get(id).copied());
            match place {
                Some(place) => {
                    *table.value(place) = step;
                    map.insert(id.to_vec(), step);
                }
                None => {
                    let place = table.insert(hash_of(id), id, step, hash_of);
                    assert_eq!(*table.value(place), step);
                    map.insert(id.to_vec(), step);
                }
            }
            if step % 1_000 == 999 {
                let part = 2 + step / 1_000 % 3;
                table.retain(|entry| entry.value % part == 0, hash_of);
                map.retain(|_, value| *value % part == 0);
            }
            assert_eq!(table.len(), map.len());
        }
        assert!(table.iter().all(|entry| map[entry.id()] == entry.value));
    }
}
