//! Several quotas for one bucket.

use super::support::{QUOTA, ScriptedRedis, Setup, split_steps};

#[tokio::test(start_paused = true)]
async fn two_quotas_of_one_bucket_delay_no_other_bucket() {
    let mut setup = Setup::new(ScriptedRedis::new(0));
    let a = [QUOTA.scope("a"), QUOTA.burst(7.0).scope("a")];
    setup.ask([QUOTA.scope("warm-up")]);
    setup.settle().await;
    let mut others = Vec::new();
    for n in 0..1_000 {
        setup.ask([a[n % 2].clone()]);
        others.push(setup.asked);
        setup.ask([QUOTA.scope("other").key(n % 10)]);
    }
    setup.redis.answers.add_permits(2);
    setup.settle().await;
    // Requests for other buckets are all in the first call after that.
    let answered = setup.answered();
    assert!(others.iter().all(|other| answered.contains(other)));
    setup.redis.answers.add_permits(9_999);
    setup.settle().await;
    assert_eq!(setup.answered().len(), setup.asked);
    // One call for each quota.
    assert_eq!(setup.redis.calls().len(), 3);
    // Requests by one quota keep their order.
    let answered = setup.answered();
    for quota in 0..2 {
        let order = answered
            .iter()
            .filter(|number| (**number + 3) % 4 == 2 * quota);
        assert!(order.is_sorted(), "{quota}");
    }
}

/// Each call has the bucket by the quota of the oldest request for it.
#[tokio::test(start_paused = true)]
async fn many_quotas_of_one_bucket_are_decided_in_order() {
    let mut setup = Setup::new(ScriptedRedis::new(999));
    let quotas: Vec<_> = (0..20).map(|n| QUOTA.burst(f64::from(7 + n))).collect();
    for n in 0..400 {
        let scope = quotas[n * n % 20].scope("a");
        match n % 3 {
            0 => setup.ask([scope, QUOTA.scope("b")]),
            _ => setup.ask([scope]),
        }
    }
    setup.settle().await;
    assert_eq!(setup.answered().len(), 400);
    assert!(setup.redis.calls().len() <= 20);
}

#[tokio::test(start_paused = true)]
async fn operation_is_not_overtaken_on_its_bucket() {
    let mut setup = Setup::new(ScriptedRedis::new(0));
    let (a, changed) = (QUOTA.scope("a"), QUOTA.burst(7.0).scope("a"));
    setup.ask([QUOTA.scope("warm-up")]);
    setup.settle().await;
    setup.ask([a.clone()]);
    setup.charge(&changed, 3.0);
    setup.ask([a.clone()]);
    setup.ask([a.clone(), QUOTA.scope("b")]);
    setup.ask([QUOTA.scope("b")]);
    setup.ask([changed]);
    setup.redis.answers.add_permits(99);
    setup.settle().await;
    let calls = setup.redis.calls();
    let [_, first, second, third] = &calls[..] else {
        panic!("{calls:?}");
    };
    assert_eq!(first.keys, ["a", "b"]);
    assert_eq!(first.firsts, [[1.0, 0.0, 1.0]; 2]);
    assert!(first.steps.is_empty());
    // The charge, and the request behind it by the same quota.
    assert_eq!(second.keys, ["a"]);
    assert_eq!(
        split_steps(&second.steps),
        [&[2.0, 1.0, 3.0][..], &[0.0, 1.0, 0.0, 1.0, 1.0, 1.0],]
    );
    assert_eq!(third.keys, ["a", "b"]);
    assert_eq!(third.firsts[0], [1.0, 0.0, 1.0]);
    assert_eq!(setup.answered(), [0, 1, 4, 5, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn contradictory_request_blocks_no_other_request() {
    let mut setup = Setup::new(ScriptedRedis::new(9));
    setup.ask([
        QUOTA.scope("b"),
        QUOTA.scope("a"),
        QUOTA.burst(7.0).scope("a"),
    ]);
    setup.ask([QUOTA.scope("a")]);
    setup.settle().await;
    assert_eq!(setup.answered(), [0, 1]);
    let [call] = &setup.redis.calls()[..] else {
        panic!("one call");
    };
    assert_eq!(call.keys, ["a"]);
}
