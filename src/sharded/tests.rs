use super::*;
use crate::{quota::Quota, scope::BucketId};

const MAX: usize = 10_000;

fn id(key: usize) -> BucketId {
    Quota::per_second(1.0).scope("s").key(key).id(&[0; 32])
}

/// Inserts a key if there are fewer than `MAX` entries.
fn insert(map: &Sharded<usize>, key: usize, now_us: f64, keep: fn(usize) -> bool) -> bool {
    let id = id(key);
    let hash = map.hash(&id.lookup());
    let mut shard = map.lock(hash);
    let is_at_max = || map.len() >= MAX;
    let has_room = map.has_room(&mut shard, now_us, is_at_max, |entry| keep(entry.value));
    if has_room {
        map.insert(&mut shard, hash, id.as_bytes(), key);
    }
    has_room
}

#[test]
fn finds_what_was_inserted() {
    let map = Sharded::new();
    assert!((0..1_000).all(|key| insert(&map, key, 0.0, |_| true)));
    for key in 0..1_000 {
        assert_eq!(map.find(&id(key).lookup(), |value| *value), Some(key));
    }
    assert_eq!(map.find(&id(1_000).lookup(), |value| *value), None);
    let mut sum = 0;
    map.for_each(|entry| sum += entry.value);
    assert_eq!((map.len(), sum), (1_000, 999 * 1_000 / 2));
}

#[test]
fn there_is_room_up_to_the_bound_and_after_a_sweep() {
    let map = Sharded::new();
    let inserted = (0..2 * MAX).filter(|key| insert(&map, *key, 0.0, |_| true));
    assert_eq!((inserted.count(), map.len()), (MAX, MAX));
    let key = 2 * MAX;
    assert!(!insert(&map, key, SWEEP_INTERVAL_US, |_| true));
    // That shard was swept just now.
    assert!(!insert(&map, key, 1.5 * SWEEP_INTERVAL_US, |_| false));
    assert!(insert(&map, key, 2.0 * SWEEP_INTERVAL_US, |_| false));
    assert!(map.len() < MAX);
}

#[test]
fn a_shard_that_has_doubled_is_swept() {
    let map = Sharded::new();
    for key in 0..100_000 {
        insert(&map, key, 0.0, |value| value % 100 == 0);
    }
    assert!(map.len() < 2 * SMALLEST_SWEEP * SHARDS, "{}", map.len());
    assert!((0..1_000).all(|key| map.find(&id(100 * key).lookup(), |_| ()).is_some()));
}

#[test]
fn consecutive_steps_sweep_all_shards() {
    let map = Sharded::new();
    assert!((0..1_000).all(|key| insert(&map, key, 0.0, |_| true)));
    for step in 5..5 + SWEEP_STEPS {
        assert!(map.len() > 10);
        map.sweep_step(step, 0.0, |entry| entry.value < 10);
    }
    assert_eq!(map.len(), 10);
    map.retain(0.0, |entry| entry.value < 5);
    assert_eq!(map.len(), 5);
}

#[test]
fn a_lock_clears_the_record_of_its_bucket_only() {
    let map = Sharded::new();
    assert!((0..1_000).all(|key| insert(&map, key, 0.0, |_| true)));
    let params = BucketParams::new(1.0, 1.0);
    let exhausted = id(0);
    let lookup = exhausted.lookup();
    let hash = map.hash(&lookup);
    let rejects = || map.rejects(hash, &lookup, params, 1.0, || 0.0).is_some();
    let record = || {
        let state = Exhausted {
            level: 0.0,
            at: 0.0,
            params,
            until: f64::INFINITY,
        };
        let mut shard = map.lock(hash);
        map.record_rejection(&mut shard, hash, &lookup, state);
    };
    record();
    assert!(!rejects(), "after one rejection");
    record();
    assert!(rejects());
    for key in 1..1_000 {
        map.find(&id(key).lookup(), |_| ());
    }
    assert!(rejects());
    map.find(&lookup, |_| ());
    assert!(!rejects());
    record();
    assert!(rejects());
    map.for_each(|_| ());
    assert!(!rejects());
    record();
    map.retain(0.0, |_| true);
    assert!(!rejects());
}
