//! Edge cases of the limiter in memory.
use std::{
    convert::Infallible,
    future::{Ready, ready},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::time::advance;
use tower::{Layer, Service, service_fn};
use tower_throttle::*;
const S: Duration = Duration::from_secs(1);
const DAY: Scope = Quota::per_day(2.0).scope("day");

#[tokio::test(start_paused = true)]
async fn scopes_acquired_together_are_bounded() {
    let limiter = Limiter::builder().max_scopes(1_000).build().unwrap();
    let all = Quota::per_second(1e6).scope("all");
    let each = Quota::per_second(10.0).scope("each");
    for k in 0..50_000 {
        let _ = limiter.try_acquire([all.clone(), each.key(k)]).await;
        if k % 1000 == 0 {
            advance(10 * S).await;
        }
    }
    assert!(
        limiter.scopes_held() <= 1_000 + 1_024,
        "{} held",
        limiter.scopes_held()
    );
}

#[tokio::test(start_paused = true)]
async fn unseen_keys_acquired_in_pairs_are_bounded() {
    let limiter = Limiter::builder().max_scopes(1_000).build().unwrap();
    let each = Quota::per_day(1e6).scope("each");
    for k in 0..10_000 {
        let pair = [each.key(2 * k), each.key(2 * k + 1)];
        limiter.try_acquire(pair).await.unwrap();
    }
    assert!(
        limiter.scopes_held() <= 1_000 + 1_024,
        "{} held",
        limiter.scopes_held()
    );
}

#[tokio::test(start_paused = true)]
async fn clipped_charge_is_not_refunded_in_full() {
    let limiter = Limiter::in_memory();
    let s = Quota::per_day(100.0).scope("t");
    limiter.try_acquire(s.clone().cost(80.0)).await.unwrap(); // another caller used 80
    let p = limiter.try_acquire(s.clone().cost(10.0)).await.unwrap();
    p.settle(500.0);
    p.settle(10.0);
    let level = limiter.bucket(&s).level().await.unwrap();
    assert!(level <= 10.1, "level {level}, 90 of 100 were used");
}

#[tokio::test(start_paused = true)]
async fn one_bucket_in_two_scopes_is_charged_for_both() {
    let limiter = Limiter::in_memory();
    let a = Quota::per_day(3.0).scope("site");
    limiter
        .try_acquire([a.clone().cost(2.0), a.clone().cost(2.0)])
        .await
        .expect_err("4 of 3");
}

#[tokio::test(start_paused = true)]
async fn negative_cost_does_not_lower_another_cost() {
    let limiter = Limiter::in_memory();
    let a = Quota::per_day(10.0).scope("site");
    let r = limiter
        .try_acquire([a.clone().cost(-9.0), a.clone().cost(10.0)])
        .await;
    assert!(r.is_err());
}

#[tokio::test(start_paused = true)]
async fn abandoned_readiness_does_not_reject_the_next_request() {
    let limiter = Limiter::in_memory();
    let s = Quota::per_second(1.0).scope("s");
    let mut svc = RateLimitLayer::new(&limiter, s.clone())
        .max_wait(3 * S)
        .layer(service_fn(async |_: ()| Ok::<_, Infallible>(())));
    limiter.try_acquire(&s).await.unwrap();
    let mut cx = Context::from_waker(Waker::noop());
    assert!(Service::<()>::poll_ready(&mut svc, &mut cx).is_pending());
    tokio::time::sleep(60 * S).await; // the caller gave up, e.g. timeout(svc.ready())
    limiter.try_acquire(&s).await.unwrap();
    tokio::spawn({
        let (l, s) = (limiter.clone(), s.clone());
        async move { l.acquire(&s, 9 * S).await }
    });
    tokio::time::sleep(S / 10).await;
    // a new request, which may wait 3 s; its reservation is due in 2 s
    std::future::poll_fn(|cx| Service::<()>::poll_ready(&mut svc, cx))
        .await
        .unwrap();
    svc.call(()).await.expect("may wait 3 s");
}

/// Ready as long as it is open.
#[derive(Clone)]
struct Gate(Arc<AtomicBool>);

impl Service<()> for Gate {
    type Response = ();
    type Error = Infallible;
    type Future = Ready<Result<(), Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        match self.0.load(Ordering::Relaxed) {
            true => Poll::Ready(Ok(())),
            false => Poll::Pending,
        }
    }

    fn call(&mut self, (): ()) -> Self::Future {
        ready(Ok(()))
    }
}

#[tokio::test(start_paused = true)]
async fn call_without_readiness_leaves_no_deadline_to_the_next_request() {
    let limiter = Limiter::in_memory();
    let s = Quota::per_second(1.0).burst(2.0).scope("s");
    let open = Arc::new(AtomicBool::new(true));
    let mut svc = RateLimitLayer::new(&limiter, s.clone())
        .max_wait(3 * S)
        .layer(Gate(open.clone()));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(svc.poll_ready(&mut cx).is_ready());
    // A permit is held, and returned because the inner service is no longer ready.
    open.store(false, Ordering::Relaxed);
    assert!(svc.poll_ready(&mut cx).is_pending());
    advance(S / 10).await;
    assert!(svc.poll_ready(&mut cx).is_pending());
    assert_eq!(limiter.bucket(&s).level().await.unwrap(), 2.0);
    open.store(true, Ordering::Relaxed);
    svc.call(()).await.unwrap();
    tokio::time::sleep(60 * S).await;
    limiter.try_acquire(s.cost(2.0)).await.unwrap();
    // A new request, which may wait 3 s. Its reservation is due in 1 s.
    std::future::poll_fn(|cx| svc.poll_ready(cx)).await.unwrap();
    svc.call(()).await.expect("may wait 3 s");
}

#[tokio::test]
async fn more_than_128_scopes_are_rejected() {
    let limiter = Limiter::in_memory();
    let each = Quota::per_second(10.0).scope("each");
    let scopes = |count| (0..count).map(|key| each.key(key)).collect::<Vec<_>>();
    assert!(limiter.try_acquire(scopes(128)).await.is_ok());
    let rejected = limiter.try_acquire(scopes(129)).await.unwrap_err();
    assert_eq!(rejected.reason(), Reason::TooManyScopes);
}

/// Comparing each with each would be 8 * 10^8 comparisons: 90 s in a debug build.
#[tokio::test]
async fn too_many_scopes_are_rejected_without_comparing_them() {
    let limiter = Limiter::in_memory();
    let each = Quota::per_second(10.0).scope("each");
    let scopes: Vec<_> = (0..40_000).map(|key| each.key(key)).collect();
    let start = tokio::time::Instant::now();
    let rejected = limiter.try_acquire(scopes).await.unwrap_err();
    assert_eq!(rejected.reason(), Reason::TooManyScopes);
    assert!(start.elapsed() < 20 * S, "{:?}", start.elapsed());
    // Counted as they are given: to merge them first would be to compare them.
    let rejected = limiter.try_acquire(vec![each.clone(); 129]).await;
    assert_eq!(rejected.unwrap_err().reason(), Reason::TooManyScopes);
    assert!(
        limiter
            .try_acquire(vec![each.cost(0.01); 128])
            .await
            .is_ok()
    );
}

/// 5 tokens an hour, as for log-ins. One client with many addresses fills the memory.
#[tokio::test(start_paused = true)]
async fn unseen_keys_are_admitted_while_memory_is_full() {
    let limiter = Limiter::builder().max_scopes(1_000).build().unwrap();
    let login = Quota::per_hour(5.0).scope("login");
    for n in 0..1_005 {
        let _ = limiter
            .try_acquire(login.key(format_args!("attacker-{n}")))
            .await;
    }
    let mut admitted = 0;
    for n in 0..1_000 {
        let unseen = login.key(format_args!("unseen-{n}"));
        admitted += u32::from(limiter.try_acquire(unseen).await.is_ok());
    }
    println!("{admitted} of 1000 unseen keys were admitted");
    assert!(
        admitted >= 980,
        "{admitted} of 1000 unseen keys were admitted"
    );
}

/// As `docs/memory.md` states: 1,024 overflow buckets of 5 tokens per hour refill 1.4 tokens/s. If
/// an attacker requests ten times as much, other clients get a tenth of it.
#[tokio::test(start_paused = true)]
async fn unseen_keys_share_what_an_attacker_leaves() {
    // Each limiter has its own seed, which spreads its keys more or less evenly.
    let mut parts = Vec::new();
    for _ in 0..8 {
        parts.push(part_of_unseen_keys_admitted().await);
    }
    let mean = parts.iter().sum::<f64>() / 8.0;
    println!("{mean} of the unseen keys were admitted: {parts:?}");
    assert!((0.04..0.16).contains(&mean), "{parts:?}");
}

async fn part_of_unseen_keys_admitted() -> f64 {
    let limiter = Limiter::builder().max_scopes(1_000).build().unwrap();
    let login = Quota::per_hour(5.0).scope("login");
    for n in 0..1_000 {
        let held = login.key(n).cost(5.0);
        limiter.try_acquire(held).await.unwrap();
    }
    let (mut requests, mut admitted) = (0.0, 0.0);
    for second in 0..3_000 {
        for n in 0..14 {
            let key = format!("attacker-{second}-{n}");
            let _ = limiter.try_acquire(login.key(key)).await;
        }
        if second >= 1_000 && second % 2 == 0 {
            let unseen = login.key(format_args!("unseen-{second}"));
            requests += 1.0;
            admitted += f64::from(limiter.try_acquire(unseen).await.is_ok());
        }
        advance(S).await;
    }
    admitted / requests
}

/// These operations are for one key, and must not reach an overflow bucket of many keys.
#[tokio::test(start_paused = true)]
async fn pause_or_lower_level_of_one_key_does_not_affect_unseen_keys() {
    let login = Quota::per_hour(5.0).scope("login");
    for kind in ["pause", "lower"] {
        let limiter = Limiter::builder().max_scopes(1_000).build().unwrap();
        for n in 0..1_000 {
            limiter.try_acquire(login.key(n)).await.unwrap();
        }
        let client = |n: u32| login.key(format_args!("client-{n}"));
        for n in 0..10_000 {
            match kind {
                "pause" => limiter.bucket(&client(n)).pause(9 * S),
                _ => limiter.bucket(&client(n)).cap_level(0.0).await.unwrap(),
            }
        }
        // It applies to the keys it was meant for, as far as there is memory for them.
        for n in [0, 500, 1_000] {
            assert!(limiter.try_acquire(client(n)).await.is_err(), "{kind} {n}");
        }
        assert!(limiter.scopes_held() <= 1_000 + 1_024, "{kind}");
        let mut admitted = 0;
        for n in 0..1_000 {
            let unseen = login.key(format_args!("unseen-{n}"));
            admitted += u32::from(limiter.try_acquire(unseen).await.is_ok());
        }
        assert!(admitted >= 980, "{kind}: {admitted} of 1000 unseen keys");
        // It ends after some time.
        advance(3_600 * S).await;
        limiter.try_acquire(client(0)).await.unwrap();
    }
}

/// An operator adjusts one key, whether or not it has a bucket of its own.
#[tokio::test(start_paused = true)]
async fn bucket_is_adjusted_while_memory_is_full() {
    let limiter = Limiter::builder().max_scopes(100).build().unwrap();
    let login = Quota::per_hour(5.0).scope("login");
    let spent = async |key: &str| limiter.try_acquire(login.key(key)).await.is_err();
    limiter
        .try_acquire(login.key("known").cost(5.0))
        .await
        .unwrap();
    // The memory is full, and then the overflow buckets are empty.
    for n in 0..20_000 {
        let _ = limiter.try_acquire(login.key(n)).await;
    }
    assert!(spent("known").await && spent("unseen").await && spent("other").await);
    for key in ["known", "unseen"] {
        limiter.bucket(&login.key(key)).reset().await.unwrap();
        assert_eq!(
            limiter.bucket(&login.key(key)).level().await.unwrap(),
            5.0,
            "{key}"
        );
        limiter.try_acquire(login.key(key)).await.unwrap();
    }
    let bucket = limiter.bucket(&login.key("credited"));
    bucket.adjust(-4.0);
    assert_eq!(bucket.level().await.unwrap(), 1.0);
    limiter.try_acquire(login.key("credited")).await.unwrap();
    assert!(spent("credited").await && spent("other").await);
}

#[tokio::test(start_paused = true)]
async fn cancelled_waiters_leave_the_bucket_unchanged() {
    for burst in [1.0, 10.0] {
        let limiter = Limiter::in_memory();
        let api = Quota::per_second(1.0).burst(burst).scope("api");
        limiter.try_acquire(api.clone().cost(burst)).await.unwrap();
        let mut waiters: Vec<_> = (0..20).map(|_| limiter.acquire(&api, 60 * S)).collect();
        for waiter in &mut waiters {
            assert!(futures_util::poll!(waiter).is_pending());
        }
        assert_eq!(limiter.bucket(&api).level().await.unwrap(), -20.0);
        // The waiters in the middle are cancelled first.
        let rest = waiters.split_off(15);
        drop(waiters);
        drop(rest);
        assert_eq!(limiter.bucket(&api).level().await.unwrap(), 0.0);
        let rejected = limiter.try_acquire(&api).await.unwrap_err();
        assert_eq!(rejected.retry_after(), Some(S));
        tokio::time::sleep(S).await;
        assert!(limiter.try_acquire(&api).await.is_ok(), "burst {burst}");
    }
}

#[tokio::test(start_paused = true)]
async fn later_request_takes_the_place_of_a_cancelled_waiter() {
    let limiter = Limiter::in_memory();
    let api = Quota::per_second(1.0).burst(2.0).scope("api");
    let two = api.clone().cost(2.0);
    limiter.try_acquire(&two).await.unwrap();
    // A different cost, so that no other waiter of this process moves up.
    let mut first = limiter.acquire(&two, 60 * S);
    let mut last = limiter.acquire(&api, 60 * S);
    assert!(futures_util::poll!(&mut first).is_pending());
    assert!(futures_util::poll!(&mut last).is_pending());
    drop(first);
    let rejected = limiter.try_acquire(&api).await.unwrap_err();
    assert_eq!(rejected.retry_after(), Some(S), "not behind the last");
    let start = tokio::time::Instant::now();
    limiter.acquire(&api, 60 * S).await.unwrap();
    assert!(start.elapsed() < S * 1_100 / 1_000);
    last.await.unwrap();
    assert!(start.elapsed() >= S * 2_999 / 1_000);
}

#[test]
fn runtime_shutdown_does_not_advance_reservations() {
    let limiter = Limiter::in_memory();
    let api = Quota::per_second(100.0).scope("api");
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_time().build().unwrap()
    };
    let start = tokio::time::Instant::now();
    let ended = runtime();
    let mut admitted = 0;
    ended.block_on(async {
        while limiter.try_acquire(&api).await.is_ok() {
            admitted += 1;
        }
        let waiters = (0..300).map(|_| limiter.acquire(&api, 60 * S));
        let waiters: Vec<_> = waiters.map(|waiter| tokio::spawn(waiter)).collect();
        tokio::time::sleep(S / 2).await;
        for waiter in waiters {
            if waiter.is_finished() {
                admitted += 1;
            }
        }
    });
    drop(ended);
    runtime().block_on(async {
        for _ in 0..200 {
            admitted += u32::from(limiter.try_acquire(&api).await.is_ok());
        }
    });
    let allowed = 100.0 + 100.0 * start.elapsed().as_secs_f64();
    assert!(
        f64::from(admitted) <= allowed + 1.0,
        "{admitted} of {allowed}"
    );
}

#[tokio::test(start_paused = true)]
async fn tokens_of_several_scopes_are_returned_when_one_is_rejected() {
    let limiter = Limiter::in_memory();
    let slow = Quota::per_second(1.0).scope("slow");
    let other = Quota::per_day(1.0).scope("other");
    limiter.try_acquire(&slow).await.unwrap();
    let mut both = limiter.acquire([slow.clone(), other.clone()], S);
    assert!(futures_util::poll!(&mut both).is_pending());
    limiter.try_acquire(&other).await.unwrap();
    let rejected = both.await.unwrap_err();
    assert_eq!(rejected.scope(), "other");
    // Before its reservation is due.
    tokio::time::sleep(S * 601 / 1_000).await;
    assert!(
        limiter.try_acquire(&slow).await.is_ok(),
        "its reservation was lost"
    );
    // Dropped between its two steps it returns them as well.
    let third = Quota::per_second(1.0).scope("third");
    limiter.try_acquire(&third).await.unwrap();
    let mut both = limiter.acquire([slow.clone(), third.clone()], 9 * S);
    assert!(futures_util::poll!(&mut both).is_pending());
    tokio::time::sleep(S * 1_001 / 1_000).await;
    drop(both);
    tokio::time::sleep(S / 100).await;
    assert!(limiter.try_acquire(&slow).await.is_ok());
    assert!(limiter.try_acquire(&third).await.is_ok());
}

/// Many users write a large number for "no limit".
#[tokio::test(start_paused = true)]
async fn huge_quota_admits_every_cost_within_it() {
    for tokens in [1.2e12, 1e15, 1e18, u64::MAX as f64, f64::MAX] {
        for quota in [
            Quota::per_second(tokens),
            Quota::per_day(tokens),
            Quota::per_second(1.0).burst(tokens),
        ] {
            let limiter = Limiter::in_memory();
            let scope = quota.scope("unlimited");
            for cost in [1.0, 1e-9, 0.1, 1_000.0, 1e11] {
                let scope = scope.clone().cost(cost);
                let admitted = limiter.try_acquire(&scope).await;
                assert!(admitted.is_ok(), "{quota:?} {cost}: {admitted:?}");
                let admitted = limiter.acquire([scope, DAY.key(cost)], S).await;
                assert!(admitted.is_ok(), "{quota:?} {cost}: {admitted:?}");
            }
            limiter.bucket(&scope).pause(60 * S);
            let rejected = limiter.try_acquire(&scope).await.expect_err("paused");
            assert!(
                rejected.retry_after() >= Some(60 * S),
                "{quota:?}: {rejected:?}"
            );
            advance(61 * S).await;
            let admitted = limiter.try_acquire(&scope).await;
            assert!(admitted.is_ok(), "{quota:?}: {admitted:?}");
        }
    }
}

/// No token is lost in the rounding of a level.
#[tokio::test(start_paused = true)]
async fn huge_bucket_counts_single_tokens() {
    let limiter = Limiter::in_memory();
    let scope = Quota::per_day(1.0).burst(u64::MAX as f64).scope("huge");
    for _ in 0..1_000 {
        limiter.try_acquire(&scope).await.unwrap();
    }
    let left = limiter.bucket(&scope).level().await.unwrap();
    assert_eq!(left, 9_007_199_254_740_992.0 - 1_000.0);
}

#[tokio::test(start_paused = true)]
async fn rate_below_one_per_second_admits_one_per_period() {
    let limiter = Limiter::in_memory();
    for (quota, period) in [
        (Quota::per_second(0.5), 2 * S),
        ("0.2/s".parse().unwrap(), 5 * S),
    ] {
        let scope = quota.scope("slow").key(period.as_secs());
        for _ in 0..3 {
            limiter.try_acquire(&scope).await.expect("the next one");
            let rejected = limiter.try_acquire(&scope).await.expect_err("the first");
            assert_eq!(rejected.retry_after(), Some(period));
            advance(period).await;
        }
    }
}
