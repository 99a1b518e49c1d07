//! How much one call carries.

use super::support::{QUOTA, ScriptedRedis, Setup, split_steps};

#[tokio::test(start_paused = true)]
async fn call_has_at_most_128_buckets_and_one_quota_for_each() {
    let mut setup = Setup::new(ScriptedRedis::new(99));
    for key in 0..300 {
        setup.ask([QUOTA.scope("s").key(key)]);
    }
    setup.settle().await;
    let sizes: Vec<_> = setup
        .redis
        .calls()
        .iter()
        .map(|call| call.keys.len())
        .collect();
    assert_eq!(sizes, [128, 128, 44]);
    let changed = QUOTA.burst(7.0).scope("a");
    setup.ask([QUOTA.scope("a")]);
    setup.ask([QUOTA.scope("b"), changed]);
    setup.settle().await;
    assert_eq!(setup.redis.calls().len(), 5);
    assert_eq!(setup.answered().len(), 302);
}

#[tokio::test(start_paused = true)]
async fn call_has_at_most_256_steps() {
    const STEPS: usize = 256;
    let mut setup = Setup::new(ScriptedRedis::new(999));
    let keys: Vec<_> = (0..100).map(|key| QUOTA.scope("s").key(key)).collect();
    for n in 0..2_000 {
        // Different costs, two buckets, a hundred buckets, and operations.
        setup.ask([keys[0].clone().cost(f64::from(1 + n))]);
        match n % 100 {
            0 => setup.ask(keys.clone()),
            1..50 => setup.ask([keys[1].clone(), keys[2].clone()]),
            _ => {
                setup.give_back(&keys[3], 1.0);
                setup.charge(&keys[3], 1.0);
            }
        }
    }
    let asked = setup.asked;
    setup.settle().await;
    assert_eq!(setup.answered().len(), asked);
    let calls = setup.redis.calls();
    for call in &calls {
        let commands = split_steps(&call.steps);
        let steps = commands.iter().map(|command| match command[0] {
            0.0 => command[3],
            _ => 1.0,
        });
        let steps = steps.sum::<f64>() as usize;
        assert!(steps <= STEPS, "{steps} steps");
        // Of all steps, a request for one bucket takes the most bytes for each bucket.
        assert!(8 * call.steps.len() <= 48 * STEPS, "{}", call.steps.len());
    }
    // 2,000 alone, 20 of a hundred, 980 of two and 2,000 operations: little room is wasted.
    let least = (2_000 + 20 * 100 + 980 * 2 + 2_000usize).div_ceil(STEPS);
    assert!(calls.len() <= 2 * least, "{} of {least}", calls.len());
}

#[tokio::test(start_paused = true)]
async fn requests_for_the_same_buckets_share_a_call() {
    let mut setup = Setup::new(ScriptedRedis::new(999));
    let keys: Vec<_> = (0..70).map(|key| QUOTA.scope("s").key(key)).collect();
    for _ in 0..30 {
        setup.ask(keys.clone());
        setup.ask([keys[0].clone()]);
    }
    setup.settle().await;
    assert_eq!(setup.answered().len(), 60);
    assert_eq!(setup.redis.calls().len(), 10);
    // A request that does not fit takes no room.
    let other = |key: usize| QUOTA.scope("t").key(key);
    setup.ask(keys.clone());
    setup.ask((0..60).map(other).collect::<Vec<_>>());
    setup.settle().await;
    let sizes: Vec<_> = setup
        .redis
        .calls()
        .iter()
        .map(|call| call.keys.len())
        .collect();
    assert_eq!(sizes[10..], [70, 60]);
    assert_eq!(setup.answered().len(), 62);
}
