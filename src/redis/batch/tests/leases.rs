//! Tokens taken ahead of requests.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::Instant;

use super::support::{QUOTA, ScriptedRedis, SentCall, Setup, TIMEOUT};
use crate::{
    bucket::BucketParams,
    quota::Quota,
    redis::lease::{AHEAD, IDLE_CHECK, Leases},
    scope::Scope,
};

/// A batcher that leases, over a Redis that grants all of it.
pub(super) fn leasing(answers: usize) -> (Setup, Arc<Leases>) {
    leasing_over(ScriptedRedis::new(answers))
}

fn leasing_over(redis: ScriptedRedis) -> (Setup, Arc<Leases>) {
    let leases = Arc::new(Leases::new(1e9, 10_000, AHEAD));
    (Setup::with_leases(redis, leases.clone()), leases)
}

pub(super) const HOT: Quota = Quota::per_second(1e6).burst(1_000.0);

fn take(setup: &Setup, leases: &Leases, scope: &Scope) -> bool {
    let params = BucketParams::new(1_000.0, 1e6);
    let leased = leases.take(&scope.id(&[0; 32]).lookup(), params, 1.0);
    if leased.is_some_and(|leased| leased.more) {
        setup.batcher.lease(scope);
    }
    leased.is_some()
}

#[tokio::test(start_paused = true)]
async fn hot_bucket_is_leased_renewed_and_returned() {
    let (mut setup, leases) = leasing(usize::MAX >> 4);
    let a = HOT.scope("a");
    for _ in 0..3 {
        for _ in 0..50 {
            setup.ask([a.clone()]);
        }
        setup.settle().await;
    }
    let calls = setup.redis.calls();
    assert!(calls[0].steps.is_empty(), "the demand is not measured yet");
    // The demand was a hundred tokens in the first milliseconds; a lease covers two milliseconds.
    let leased = calls[1].steps[2];
    assert_eq!(calls[1].steps[..2], [8.0, 1.0]);
    assert!((50.0..=125.0).contains(&leased), "{leased}");
    // Callers take without a call until half is left. Then a call without a request renews the
    // lease.
    let before = setup.redis.calls().len();
    while setup.redis.calls().len() == before {
        for _ in 0..25 {
            assert!(take(&setup, &leases, &a));
        }
        setup.settle().await;
    }
    let call = setup.redis.calls().pop().expect("a call");
    assert_eq!(call.firsts, [[0.0; 3]], "no request");
    assert_eq!(call.steps[..2], [8.0, 1.0]);
    // Unused tokens are returned.
    let before = setup.redis.calls().len();
    tokio::time::sleep(3 * IDLE_CHECK).await;
    let back = setup.redis.calls()[before..].to_vec();
    assert!(
        back.iter().all(|call| call.steps[..2] == [1.0, 1.0]),
        "{back:?}"
    );
    assert!(leases.is_empty());
    let returned: f64 = setup
        .redis
        .calls()
        .iter()
        .flat_map(|call| of_op(call, 1.0))
        .sum();
    let leased: f64 = setup
        .redis
        .calls()
        .iter()
        .flat_map(|call| of_op(call, 8.0))
        .sum();
    let used = leased - returned;
    assert!(used > 0.0 && used % 25.0 == 0.0, "{used} of {leased}");
}

fn of_op(call: &SentCall, op: f64) -> Option<f64> {
    (call.steps.first() == Some(&op)).then(|| call.steps[2])
}

#[tokio::test(start_paused = true)]
async fn dropped_limiter_returns_its_leases() {
    for in_flight in [false, true] {
        let (mut setup, leases) = leasing(if in_flight { 1 } else { 2 });
        let a = HOT.scope("a");
        for _ in 0..2 {
            (0..50).for_each(|_| setup.ask([a.clone()]));
            setup.settle().await;
        }
        assert_eq!(take(&setup, &leases, &a), !in_flight);
        let wire = setup.redis.clone();
        drop(setup);
        wire.answers.add_permits(99);
        tokio::time::sleep(Duration::from_millis(10)).await;
        let calls = wire.calls();
        let leased = calls.iter().filter_map(|call| of_op(call, 8.0)).next_back();
        let returned = calls.iter().filter_map(|call| of_op(call, 1.0)).next_back();
        let used = if in_flight { 0.0 } else { 1.0 };
        assert!(leased.is_some_and(|leased| leased > 1.0), "{calls:?}");
        assert_eq!(returned, leased.map(|leased| leased - used));
        assert!(leases.drain().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn failed_lease_is_requested_again() {
    let (mut setup, leases) = leasing(1);
    let a = HOT.scope("a");
    for _ in 0..50 {
        setup.ask([a.clone()]);
    }
    setup.settle().await;
    (0..50).for_each(|_| setup.ask([a.clone()]));
    setup.settle().await;
    assert_eq!(setup.redis.calls().len(), 2, "the second is in flight");
    let id = a.id(&[0; 32]);
    let ask = || leases.ask(&a, &id, BucketParams::new(1_000.0, 1e6), (99.0, 99.0));
    assert!(ask().is_none(), "it is already requested");
    // The reply is too short.
    setup.redis.cuts.store(true, Ordering::Relaxed);
    setup.redis.answers.add_permits(1);
    setup.settle().await;
    assert!(ask().is_some());
}

/// Makes a bucket hot with fifty requests at a time, and returns the tokens of its lease.
async fn leased(setup: &mut Setup, scope: &Scope) -> f64 {
    for _ in 0..2 {
        (0..50).for_each(|_| setup.ask([scope.clone()]));
        setup.settle().await;
    }
    let calls = setup.redis.calls();
    let leased = calls.iter().filter_map(|call| of_op(call, 8.0)).next_back();
    leased.expect("the bucket is hot")
}

/// If Redis recovers empty, a bucket is capped at its cached level, and the ledger is applied to it.
#[tokio::test(start_paused = true)]
async fn leases_returned_in_an_outage_count_once() {
    let (mut setup, _) = leasing(99);
    let known = setup.levels.clone();
    // Refills too slowly to matter.
    let scope = Quota::per_day(1.0).burst(1_000.0).scope("a");
    let leased = leased(&mut setup, &scope).await;
    let level = || {
        known
            .level(&scope.id(&[0; 32]))
            .expect("not full")
            .0
            .floor()
    };
    assert_eq!(level(), 500.0);
    setup.redis.is_unavailable.store(true, Ordering::Relaxed);
    tokio::time::sleep(3 * IDLE_CHECK).await;
    assert_eq!(
        setup.ledger.corrections.lock().expect("no panic")[..],
        [-leased]
    );
    assert_eq!(level(), 500.0);
}

#[tokio::test(start_paused = true)]
async fn costs_over_the_largest_lease_take_nothing_ahead() {
    let (mut setup, leases) = leasing(99);
    // Over an eighth of the capacity.
    let a = HOT.scope("a").cost(126.0);
    for _ in 0..4 {
        (0..50).for_each(|_| setup.ask([a.clone()]));
        setup.settle().await;
    }
    let calls = setup.redis.calls();
    assert!(calls.iter().all(|call| call.steps.is_empty()), "{calls:?}");
    assert!(leases.is_empty());
}

#[tokio::test(start_paused = true)]
async fn lease_of_a_scarce_bucket_is_not_requested_for_each_token() {
    let (mut setup, leases) = leasing(999);
    let a = HOT.scope("a");
    let leased = leased(&mut setup, &a).await;
    setup.redis.is_scarce.store(true, Ordering::Relaxed);
    let before = setup.redis.calls().len();
    for _ in 0..leased as usize {
        assert!(take(&setup, &leases, &a));
        // Lets a call run.
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(setup.redis.calls().len() - before, 1, "of {leased}");
}

#[tokio::test(start_paused = true)]
async fn many_idle_leases_delay_no_request() {
    let (mut setup, leases) = leasing_over(ScriptedRedis {
        takes: TIMEOUT / 5,
        ..ScriptedRedis::new(9_999)
    });
    let params = BucketParams::new(1_000.0, 1e6);
    let scopes: Vec<_> = (0..3_000).map(|key| HOT.scope("a").key(key)).collect();
    let ask = |scope: &Scope| leases.ask(scope, &scope.id(&[0; 32]), params, (50.0, 50.0));
    assert!(scopes.iter().all(|scope| ask(scope).is_none()));
    setup.settle().await;
    for scope in &scopes {
        ask(scope).expect("hot").answer(10.0, 500.0, Instant::now());
    }
    setup.ask([QUOTA.scope("b")]);
    // The leases are not used.
    let before = setup.redis.calls().len();
    while setup.redis.calls().len() <= before + 1 {
        setup.settle().await;
    }
    for _ in 0..10 {
        setup.ask([QUOTA.scope("b")]);
        tokio::time::sleep(TIMEOUT / 3).await;
    }
    tokio::time::sleep(3 * IDLE_CHECK).await;
    let answers = setup.answers.lock().expect("no panic").clone();
    assert_eq!(answers.len(), 11);
    let failed = answers.iter().filter(|(_, answer)| answer.is_err());
    assert_eq!(failed.count(), 0, "{answers:?}");
    assert!(leases.is_empty());
    let calls = setup.redis.calls();
    let commands = calls.iter().flat_map(|call| call.steps.chunks(3));
    let back: f64 = commands.filter(|of| of[0] == 1.0).map(|of| of[2]).sum();
    assert_eq!(back, 30_000.0);
}

#[tokio::test(start_paused = true)]
async fn deregistered_limiter_returns_its_leases_and_takes_no_more() {
    let (mut setup, leases) = leasing(999);
    let a = HOT.scope("a");
    let leased = leased(&mut setup, &a).await;
    assert!(take(&setup, &leases, &a));
    let before = setup.redis.calls().len();
    setup.batcher.return_leases().await;
    let back = setup.redis.calls()[before..].to_vec();
    assert_eq!(back.len(), 1);
    assert_eq!(back[0].steps[..3], [1.0, 1.0, leased - 1.0]);
    assert!(!take(&setup, &leases, &a));
    for _ in 0..4 {
        (0..50).for_each(|_| setup.ask([a.clone()]));
        setup.settle().await;
    }
    let calls = setup.redis.calls();
    let later = calls[before + 1..].iter();
    assert!(later.clone().count() > 0);
    assert!(later.clone().all(|call| call.steps.is_empty()), "{calls:?}");
    // Nothing is sent if there is nothing to return.
    let before = setup.redis.calls().len();
    setup.batcher.return_leases().await;
    assert_eq!(setup.redis.calls().len(), before);
}
