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
fn behaves_like_a_hash_map() {
    const SCOPE: Scope = Quota::per_second(1.0).scope("s");
    let hasher = RandomState::new();
    // Few different hashes, so that entries collide.
    let hash_of = |id: &[u8]| hasher.hash_one(id) % 97;
    let (mut packed, mut map) = (PackedMap::default(), HashMap::new());
    let mut state = 1u64;
    for step in 0..20_000u32 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let key = (state >> 33) % 600;
        // Some are too long to be stored inside the entry.
        let scope = SCOPE.key(format_args!("{:>1$}", key, 1 + key as usize % 40));
        let id = scope.id(&[0; 32]);
        let (lookup, id) = (id.lookup(), id.as_bytes());
        match packed.get_mut(hash_of(id), &lookup) {
            Some(value) => {
                assert_eq!(map.insert(id.to_vec(), step), Some(*value));
                *value = step;
            }
            None => {
                let value = packed.insert(hash_of(id), id, step, hash_of);
                assert_eq!(*value, step);
                assert_eq!(map.insert(id.to_vec(), step), None);
            }
        }
        if step % 1_000 == 999 {
            let part = 2 + step / 1_000 % 3;
            packed.retain(|entry| entry.value % part == 0, hash_of);
            map.retain(|_, value| *value % part == 0);
        }
        assert_eq!(packed.len(), map.len());
    }
    assert!(
        packed
            .iter_mut()
            .all(|entry| map[entry.id()] == entry.value)
    );
}
