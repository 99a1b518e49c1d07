use std::time::Duration;

use super::*;
use crate::{
    bucket::{Bucket, BucketParams},
    quota::Quota,
    scope::BucketId,
    sharded::SWEEP_STEPS,
};

fn id(key: usize) -> BucketId {
    Quota::per_second(1.0).scope("s").key(key).id(&[0; 32])
}

fn take(store: &MemoryStore, key: usize, params: BucketParams) -> bool {
    store.with(&id(key).lookup(), params, |bucket| {
        bucket.take(1.0, 1, 0.0, params).now > 0.0
    })
}

#[tokio::test(start_paused = true)]
async fn sweeps_remove_full_buckets_only() {
    let store = MemoryStore::new(1_000_000);
    let (fast, slow) = (BucketParams::new(1.0, 10.0), BucketParams::new(1.0, 0.001));
    for key in 0..100 {
        assert!(take(&store, key, slow));
    }
    for round in 0..20 {
        for key in 0..10_000 {
            assert!(take(&store, 1_000 + round * 10_000 + key, fast));
        }
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    assert!(
        store.scopes() < 30_000,
        "{} of 200,100 remain",
        store.scopes()
    );
    for key in 0..100 {
        assert!(
            !take(&store, key, slow),
            "a spent bucket was refilled by a sweep"
        );
    }
    assert_eq!(store.overflowed(), 0);
}

#[tokio::test(start_paused = true)]
async fn consecutive_sweep_steps_remove_all_full_buckets() {
    let store = MemoryStore::new(1_000_000);
    let (fast, slow) = (BucketParams::new(1.0, 10.0), BucketParams::new(1.0, 0.001));
    for key in 0..10_000 {
        assert!(take(&store, key, if key < 10 { slow } else { fast }));
    }
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(store.scopes() > 1_000);
    for step in 5..5 + SWEEP_STEPS {
        store.sweep_step(step);
    }
    assert_eq!(store.scopes(), 10);
}

#[tokio::test(start_paused = true)]
async fn beyond_max_scopes_unseen_keys_share_buckets_and_known_ones_keep_theirs() {
    let store = MemoryStore::new(1_000);
    let params = BucketParams::new(5.0, 0.001);
    for key in 0..1_000 {
        assert!(take(&store, key, params));
    }
    let admitted = (1_000..50_000)
        .filter(|key| take(&store, *key, params))
        .count();
    // About 48 keys share each overflow bucket.
    assert_eq!(admitted, 5 * 1_024);
    assert_eq!(store.scopes(), 1_000 + 1_024);
    assert_eq!(store.overflowed(), 49_000);
    for _ in 0..4 {
        assert!(
            take(&store, 7, params),
            "a known scope keeps its own bucket"
        );
    }
    assert!(!take(&store, 7, params));
    // Once the known buckets are full again, unseen keys get buckets of their own.
    tokio::time::advance(Duration::from_secs(10_000)).await;
    assert!(take(&store, 60_000, params));
    assert!(take(&store, 60_001, params));
    assert_eq!(store.overflowed(), 49_000);
}

/// Names are meant to be few. Memory is bounded even if they are not.
#[tokio::test(start_paused = true)]
async fn overflow_buckets_of_many_names_are_bounded() {
    let store = MemoryStore::new(10);
    let params = BucketParams::new(5.0, 0.001);
    for n in 0..200_000 {
        let name = format!("name-{}", n % 1_000);
        let scope = crate::scope::Scope::new(name, Quota::per_second(1.0));
        let id = scope.key(n).id(&[0; 32]);
        store.with(&id.lookup(), params, |bucket| {
            bucket.take(1.0, 1, 0.0, params)
        });
    }
    let shared = store.scopes() - 10;
    assert!((60_000..=64 * 1_024).contains(&shared), "{shared}");
    let pair = [1, 2].map(|key| Request {
        id: id(key),
        cost: 1.0,
        params,
        share: None,
    });
    store.take_all(&pair, 0.0);
    assert!(store.scopes() - 10 <= 64 * 1_024);
    tokio::time::advance(Duration::from_secs(10_000)).await;
    (0..SWEEP_STEPS).for_each(|step| store.sweep_step(step));
    assert_eq!(store.scopes(), 0);
}

/// In an outage, the last reported level of one key does not apply to others that share an
/// overflow bucket with it.
#[tokio::test(start_paused = true)]
async fn a_last_reported_level_does_not_cap_an_overflow_bucket() {
    let params = BucketParams::new(5.0, 0.001);
    let bounds = |max_own_level, max_level| ShareBounds {
        full_quota: params,
        max_level,
        max_own_level,
        incurs_debt: true,
    };
    let take = |store: &MemoryStore, key, bounds| {
        store.with_share(&id(key), params, bounds, |bucket, _| {
            bucket.take(1.0, 1, 0.0, params).now > 0.0
        })
    };
    let full = |level| {
        let store = MemoryStore::new(10);
        for key in 0..10 {
            let taken = take(&store, key, bounds(level, f64::INFINITY));
            assert_eq!(taken, level > 0.0, "its own bucket is capped");
        }
        store
    };
    let store = full(0.0);
    for key in 10..10_000 {
        let spent = bounds(0.0, f64::INFINITY);
        store.with_share(&id(key), params, spent, |bucket, _| bucket.level);
    }
    let unseen = bounds(f64::INFINITY, f64::INFINITY);
    let admitted = (10_000..11_000).filter(|key| take(&store, *key, unseen));
    assert!(admitted.count() >= 980);
    let store = full(5.0);
    let empty = bounds(5.0, 0.0);
    assert!((10..10_000).all(|key| !take(&store, key, empty)));
}

#[tokio::test(start_paused = true)]
async fn a_smaller_quota_does_not_forget_the_debt_of_a_larger_one() {
    let store = MemoryStore::new(1_000_000);
    let (large, small) = (BucketParams::new(100.0, 1.0), BucketParams::new(10.0, 1.0));
    let drain = |n| {
        store.with(&id(0).lookup(), large, |bucket| {
            bucket.take(1.0, n, 0.0, large).granted
        })
    };
    assert_eq!(drain(100), 100.0);
    tokio::time::advance(Duration::from_secs(11)).await;
    assert!(take(&store, 0, small));
    tokio::time::advance(Duration::from_secs(5)).await;
    for key in 1..10_000 {
        take(&store, key, small);
    }
    assert!(drain(100) <= 16.0);
}

/// Each operation on two stores, one of which takes the lock for each request.
#[tokio::test(start_paused = true)]
async fn the_record_of_a_rejection_changes_no_decision() {
    let random = &mut fastrand::Rng::with_seed(7);
    let (store, locked) = (MemoryStore::new(10), MemoryStore::new(10));
    let quotas = [
        BucketParams::new(5.0, 1_000.0),
        BucketParams::new(4.0, 500.0),
    ];
    let mut rejected = 0;
    for _ in 0..100_000 {
        let (key, params) = (random.usize(..3), quotas[usize::from(random.u8(..10) == 0)]);
        let amount = f64::from(random.u8(1..4));
        let bounds = ShareBounds {
            max_level: amount,
            ..ShareBounds::unbounded(params, true)
        };
        let us = random.u64(1..2_000);
        match random.u8(..120) {
            0 => tokio::time::advance(Duration::from_micros(us)).await,
            1 => [&store, &locked].map(|store| store.reset(&id(key), params))[0],
            2 => [&store, &locked].map(|store| {
                store.with(&id(key).lookup(), params, |bucket| {
                    bucket.give_back(amount, params)
                });
            })[0],
            3 => [&store, &locked].map(|store| {
                let fill = |bucket: &mut Bucket| bucket.level = params.capacity;
                store.with_own(&id(key).lookup(), params, fill);
            })[0],
            4 => [&store, &locked].map(|store| {
                store.with(&id(key).lookup(), params, |bucket| {
                    bucket.pause(us as f64, params)
                });
            })[0],
            5 => [&store, &locked].map(|store| {
                store.with_share(&id(key), params, bounds, |bucket, debt| {
                    bucket.give_back(1.0, params);
                    *debt += amount;
                });
            })[0],
            6 => [&store, &locked].map(|store| {
                let fill = |bucket: &mut Bucket, _: &mut f64| bucket.level = params.capacity;
                store.with_own_share(&id(key), params, bounds, fill);
            })[0],
            7 => [&store, &locked].map(|store| drop(store.drain_debts()))[0],
            8 => [&store, &locked].map(|store| (0..8).for_each(|step| store.sweep_step(step)))[0],
            9 => {
                let both = [0, 1].map(|key| Request {
                    id: id(key),
                    cost: 1.0,
                    params,
                    share: None,
                });
                let taken = [&store, &locked].map(|store| store.take_all(&both, us as f64));
                assert_eq!(format!("{:?}", taken[0]), format!("{:?}", taken[1]));
            }
            _ => {
                let taken = store.take(&id(key).lookup(), params, amount);
                // That clears all records.
                locked.buckets.for_each(|_| ());
                let expected = locked.take(&id(key).lookup(), params, amount);
                assert_eq!(taken, expected);
                rejected += usize::from(taken.is_err());
            }
        }
    }
    assert!((50_000..110_000).contains(&rejected), "{rejected}");
}

/// Whoever learns that a bucket was reset is admitted.
#[test]
fn a_reset_is_seen_by_other_threads() {
    let store = &MemoryStore::new(10);
    let params = BucketParams::new(1.0, 1e-6);
    let take = || store.take(&id(0).lookup(), params, 1.0);
    assert!(take().is_ok());
    std::thread::scope(|scope| {
        let (reset, resets) = std::sync::mpsc::channel();
        let (used, uses) = std::sync::mpsc::channel();
        scope.spawn(move || {
            for _ in 0..10_000 {
                store.reset(&id(0), params);
                reset.send(()).unwrap();
                uses.recv().unwrap();
            }
        });
        for () in resets {
            assert!(take().is_ok());
            assert!((0..3).all(|_| take().is_err()));
            used.send(()).unwrap();
        }
    });
}
