use super::*;
use crate::quota::Quota;

const SECOND: Duration = Duration::from_secs(1);

fn id(key: u32) -> BucketId {
    Quota::per_second(1.0).scope("s").key(key).id(&[0; 32])
}

#[tokio::test(start_paused = true)]
async fn rejects_until_the_request_could_succeed() {
    let levels = LevelCache::new(10);
    let id = id(0);
    let params = BucketParams::new(10.0, 10.0);
    let rejects = |params, max_wait| levels.rejects(&id.lookup(), params, 1.0, max_wait);
    assert_eq!(rejects(params, 0.0), None);
    levels.update(id.as_bytes(), params, (-1.0, 0.0), Instant::now(), true);
    assert_eq!(rejects(params, 0.0), Some(Duration::from_millis(200)));
    assert_eq!(rejects(params, 200_000.0), None);
    tokio::time::advance(Duration::from_millis(150)).await;
    assert_eq!(rejects(params, 0.0), Some(Duration::from_millis(50)));
    assert_eq!(rejects(BucketParams::new(20.0, 10.0), 0.0), None);
    tokio::time::advance(Duration::from_millis(50)).await;
    assert_eq!(rejects(params, 0.0), None);
}

#[tokio::test(start_paused = true)]
async fn a_reply_sent_before_tokens_were_given_back_is_no_bound() {
    let levels = LevelCache::new(10);
    let id = id(0);
    let params = BucketParams::new(10.0, 1e-3);
    let rejects = || levels.rejects(&id.lookup(), params, 1.0, 0.0);
    let sent = Instant::now();
    tokio::time::advance(Duration::from_millis(1)).await;
    levels.raise(&id, params, 1.0);
    levels.update(id.as_bytes(), params, (0.0, 0.0), sent, true);
    assert_eq!(rejects(), None);
    levels.update(id.as_bytes(), params, (0.0, 0.0), Instant::now(), true);
    assert!(rejects().is_some());
    // The same where there is a record.
    let sent = Instant::now();
    tokio::time::advance(Duration::from_millis(1)).await;
    levels.raise(&id, params, 1.0);
    levels.update(id.as_bytes(), params, (0.0, 0.0), sent, true);
    assert_eq!(rejects(), None);
    levels.update(id.as_bytes(), params, (0.0, 0.0), Instant::now(), true);
    assert!(rejects().is_some());
    // No bound is trusted for longer than a second.
    tokio::time::advance(Duration::from_millis(1_001)).await;
    assert_eq!(rejects(), None);
    // The level is still cached.
    let (level, _) = levels.level(&id).expect("not full");
    assert!((0.001..0.002).contains(&level), "{level}");
}

#[tokio::test(start_paused = true)]
async fn full_buckets_are_swept() {
    let levels = LevelCache::new(1_000);
    let params = BucketParams::new(10.0, 10.0);
    for key in 0..1_000 {
        levels.update(id(key).as_bytes(), params, (0.0, 0.0), Instant::now(), true);
    }
    tokio::time::advance(2 * SECOND).await;
    for step in 3..3 + crate::sharded::SWEEP_STEPS {
        levels.sweep_step(step);
    }
    assert_eq!(levels.records.len(), 0);
    assert_eq!(levels.rejecting.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn levels_refill_and_full_buckets_leave_room() {
    let levels = LevelCache::new(1_000);
    let params = BucketParams::new(10.0, 1.0);
    for key in 0..100 {
        levels.update(
            id(key).as_bytes(),
            params,
            (4.0, 1.0),
            Instant::now(),
            false,
        );
    }
    assert_eq!(
        levels.rejects(&id(0).lookup(), params, 9.0, 0.0),
        None,
        "none was rejected"
    );
    tokio::time::advance(2 * SECOND).await;
    assert_eq!(levels.level(&id(7)).map(|(level, _)| level), Some(7.0));
    assert_eq!(levels.all().len(), 100);
    levels.raise(&id(7), params, 1.0);
    assert_eq!(levels.level(&id(7)).map(|(level, _)| level), Some(8.0));
    levels.fill(&id(8), params);
    assert_eq!(levels.level(&id(8)), None);
    tokio::time::advance(4 * SECOND).await;
    assert_eq!(
        levels.level(&id(9)),
        None,
        "a full bucket equals an unknown one"
    );
    assert!(levels.all().is_empty());
    // There is room for the maximum again and again.
    for round in 1..20 {
        for key in 0..1_000 {
            levels.update(
                id(round * 1_000 + key).as_bytes(),
                params,
                (9.9, 0.0),
                Instant::now(),
                true,
            );
        }
        assert!(levels.records.len() <= 1_000);
        tokio::time::advance(2 * SECOND).await;
    }
    let last = id(19_999);
    levels.update(last.as_bytes(), params, (0.0, 0.0), Instant::now(), true);
    assert!(levels.level(&last).is_some());
    let rejecting = levels.rejecting.load(Ordering::Relaxed);
    assert!(rejecting <= levels.records.len(), "{rejecting}");
}

/// Each answer without the lock is that of the record under it, which any wait asks for.
#[tokio::test(start_paused = true)]
async fn the_record_of_a_rejection_changes_no_answer() {
    let random = &mut fastrand::Rng::with_seed(7);
    let levels = LevelCache::new(10);
    let quotas = [BucketParams::new(5.0, 10.0), BucketParams::new(4.0, 5.0)];
    let mut rejected = 0;
    for _ in 0..50_000 {
        let id = id(random.u32(..3));
        let params = quotas[usize::from(random.u8(..10) == 0)];
        let tokens = f64::from(random.u8(..5));
        let ms = random.u64(1..300);
        match random.u8(..8) {
            0 => tokio::time::advance(Duration::from_millis(ms)).await,
            1 => levels.raise(&id, params, tokens),
            2 => levels.fill(&id, params),
            3 => levels.pause(&id, params, ms as f64),
            4 if random.bool() => (0..8).for_each(|step| levels.sweep_step(step)),
            _ => {
                let sent = Instant::now() - Duration::from_millis(random.u64(..20));
                let state = BucketState {
                    level: 2.0 - tokens,
                    returned: f64::from(random.u8(..8) / 7),
                    pause_us: f64::from(random.u8(..8) / 7) * 1e3,
                };
                levels.update(id.as_bytes(), params, state, sent, random.bool());
            }
        }
        for cost in [0.0, 1.0, 3.0] {
            let rejects = |max_wait| levels.rejects(&id.lookup(), params, cost, max_wait);
            let expected = rejects(1e-9);
            assert!((0..4).all(|_| rejects(0.0) == expected));
            rejected += usize::from(expected.is_some());
        }
    }
    assert!((10_000..90_000).contains(&rejected), "{rejected}");
}
