//! Quotas that change while they are in use: levels and reservations are kept.
#![cfg(feature = "http")]

mod support;

use std::{convert::Infallible, time::Duration};

use tokio::time::Instant;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_throttle::{
    Limiter, LiveQuota, Quota, RateLimitLayer, Rejected, ScopeExtractor, extract::header,
};

const SECOND: Duration = Duration::from_secs(1);

/// A limiter whose timeouts are longer than the delays of a busy machine.
#[cfg(feature = "redis")]
fn connect(url: &str) -> Limiter {
    let builder = Limiter::builder().redis(url);
    builder.redis_timeout(10 * SECOND).build().expect("a URL")
}

async fn check_levels(limiter: &Limiter) {
    // Slow enough that nothing refills during a test.
    let of = |burst: f64| Quota::per_day(1.0).burst(burst);
    let quota = LiveQuota::new(of(10.0));
    let scope = quota.scope("kept");
    let level = async || {
        limiter
            .bucket(&scope.current())
            .level()
            .await
            .unwrap()
            .round()
    };
    let permit = limiter.try_acquire(scope.current().cost(4.0)).await;
    permit.expect("a full bucket");
    assert_eq!(level().await, 6.0);
    quota.set(of(100.0));
    assert_eq!(level().await, 6.0, "a raise adds no tokens");
    quota.set(of(5.0));
    limiter
        .try_acquire(scope.current())
        .await
        .expect("one of 5");
    assert_eq!(level().await, 4.0, "cut to the capacity");
    quota.set(of(100.0));
    assert_eq!(level().await, 4.0, "discarded tokens are not restored");
    limiter
        .try_acquire(scope.current().cost(5.0))
        .await
        .expect_err("no more than is there");
    limiter
        .try_acquire(scope.current().cost(101.0))
        .await
        .expect_err("above the capacity");
    // A rate of a thousand fills it soon.
    quota.set(Quota::per_second(1_000.0).burst(100.0));
    let ten = limiter.acquire(scope.current().cost(90.0), 10 * SECOND);
    ten.await.expect("in 86 ms");
}

#[tokio::test]
async fn levels_are_kept_in_memory() {
    check_levels(&Limiter::in_memory()).await;
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn levels_are_kept_in_redis() {
    let server = support::RedisServer::start().await;
    check_levels(&connect(&server.url())).await;
}

/// A cached rejection by the old quota does not outlive it.
#[cfg(feature = "redis")]
#[tokio::test]
async fn cached_rejection_ends_with_its_quota() {
    let server = support::RedisServer::start().await;
    let limiter = connect(&server.url());
    let quota = LiveQuota::new(Quota::per_day(1.0));
    let scope = quota.scope("raised");
    limiter.try_acquire(scope.current()).await.expect("one");
    let rejected = limiter.try_acquire(scope.current()).await.unwrap_err();
    assert!(rejected.retry_after() > Some(3_600 * SECOND));
    quota.set(Quota::per_second(1_000.0));
    let permit = limiter.acquire(scope.current(), 10 * SECOND).await;
    permit.expect("by the new rate, at once");
}

/// Two processes share a bucket, and one has the new quota first: the bucket refills by the rate of
/// the current request.
#[cfg(feature = "redis")]
#[tokio::test]
async fn quota_changes_in_one_of_two_processes() {
    let server = support::RedisServer::start().await;
    let limiters = [0, 1].map(|_| connect(&server.url()));
    let quotas = [0, 1].map(|_| LiveQuota::new(Quota::per_day(1.0).burst(10.0)));
    let scopes = quotas.each_ref().map(|quota| quota.scope("shared"));
    let [first, second] = &limiters;
    first
        .try_acquire(scopes[0].current().cost(2.0))
        .await
        .expect("full");
    quotas[1].set(Quota::per_day(1.0).burst(5.0));
    second
        .try_acquire(scopes[1].current())
        .await
        .expect("cut to 5");
    let level = first.bucket(&scopes[0].current()).level().await.unwrap();
    assert_eq!(level.round(), 4.0, "for both");
    quotas[1].set(Quota::per_day(1.0).burst(20.0));
    let level = second.bucket(&scopes[1].current()).level().await.unwrap();
    assert_eq!(level.round(), 4.0, "a change adds no tokens");
}

/// A waiter keeps its reservation. The next one waits by the new quota.
#[tokio::test(start_paused = true)]
async fn reservations_are_kept() {
    let limiter = Limiter::in_memory();
    let quota = LiveQuota::new(Quota::per_second(1.0).burst(1.0));
    let scope = quota.scope("waited for");
    limiter.try_acquire(scope.current()).await.expect("full");
    let start = Instant::now();
    let waiter = |limiter: &Limiter| {
        let waiter = limiter.acquire(scope.current(), 60 * SECOND);
        tokio::spawn(async move { waiter.await.map(|_| start.elapsed()) })
    };
    let early: Vec<_> = (0..3).map(|_| waiter(&limiter)).collect();
    tokio::task::yield_now().await;
    quota.set(Quota::per_second(10.0).burst(1.0));
    // Three are reserved. By the new rate the fourth is due after 0.4 s, but behind the others.
    let late = waiter(&limiter);
    let mut reservations = Vec::new();
    for waiter in early {
        reservations.push(waiter.await.unwrap().unwrap().as_secs());
    }
    assert_eq!(reservations, [1, 2, 3], "as reserved");
    let late = late.await.unwrap().unwrap();
    println!("the fourth, by the new rate: {late:?}");
    assert!(late <= SECOND / 2, "{late:?}");
}

/// The layer: fixed, in an array, by a key, and as the scope of requests without a key.
#[tokio::test(start_paused = true)]
async fn layer_uses_the_new_quota() {
    let limiter = Limiter::in_memory();
    let day = |burst: f64| Quota::per_day(1.0).burst(burst);
    let admitted = async |service: &mut dyn FnMut() -> bool| {
        let mut admitted = 0;
        while service() {
            admitted += 1;
        }
        admitted
    };
    let quota = LiveQuota::new(day(2.0));
    let layer = RateLimitLayer::new(&limiter, [quota.scope("a"), quota.scope("b")]);
    let mut service = layer.layer(service_fn(async |_: ()| Ok::<_, Infallible>(())));
    let mut one = || {
        let served = futures_util::FutureExt::now_or_never(async {
            service.ready().await.unwrap().call(()).await
        });
        match served.expect("nothing waits here") {
            Ok(()) => true,
            Err(error) => {
                assert!(Rejected::find(&*error).is_some());
                false
            }
        }
    };
    assert_eq!(admitted(&mut one).await, 2);
    quota.set(Quota::per_second(7.0));
    assert_eq!(admitted(&mut one).await, 0, "a raise fills nothing");
    tokio::time::advance(10 * SECOND).await;
    assert_eq!(admitted(&mut one).await, 7);

    let by = quota.scope("by").by(header("x-api-key")).or_unlimited();
    let request = http::Request::builder().header("x-api-key", "k");
    let request = request.body(()).expect("a request");
    let rate = |by: &dyn ScopeExtractor<http::Request<()>>| {
        let scopes = by.extract(&request);
        let scope = scopes.iter().next().expect("a key");
        scope.quota().rate()
    };
    assert_eq!(rate(&by), 7.0);
    quota.set(Quota::per_second(3.0));
    assert_eq!(rate(&by), 3.0);
}

/// A service that waits in `poll_ready` uses the current quota for each request.
#[tokio::test(start_paused = true)]
async fn readiness_uses_the_new_quota() {
    let limiter = Limiter::in_memory();
    let quota = LiveQuota::new(Quota::per_second(1.0).burst(1.0));
    let layer = RateLimitLayer::new(&limiter, quota.scope("ready")).max_wait(60 * SECOND);
    let mut service = layer.layer(service_fn(async |_: ()| Ok::<_, Infallible>(())));
    let mut took = async || {
        let start = Instant::now();
        service.ready().await.unwrap().call(()).await.unwrap();
        start.elapsed()
    };
    assert_eq!(took().await, Duration::ZERO);
    assert!((SECOND..SECOND * 3 / 2).contains(&took().await));
    quota.set(Quota::per_second(100.0).burst(1.0));
    let fast = took().await;
    assert!(fast <= SECOND / 10, "{fast:?}");
}

/// Adjusted up and down, in both backends: at most to the capacity, and with a bounded debt.
async fn check_adjust(limiter: &Limiter) {
    let day = Quota::per_day(1.0).burst(10.0).scope("adjusted");
    let key = day.key("acme");
    let bucket = limiter.bucket(&key);
    let adjust = async |tokens| {
        bucket.adjust(tokens);
        bucket.level().await.unwrap().round()
    };
    assert_eq!(adjust(5.0).await, 10.0, "full is full");
    assert_eq!(adjust(-4.0).await, 6.0);
    assert_eq!(adjust(1.0).await, 7.0);
    assert_eq!(adjust(f64::NAN).await, 7.0);
    assert_eq!(adjust(f64::INFINITY).await, 7.0);
    assert_eq!(
        adjust(-f64::MAX).await,
        -10.0,
        "the debt is at most a capacity"
    );
    limiter.try_acquire(&key).await.expect_err("in debt");
    assert_eq!(adjust(11.0).await, 1.0);
    limiter.try_acquire(&key).await.expect("one, at once");
    assert_eq!(adjust(f64::MAX).await, 10.0);
    assert_eq!(
        limiter.bucket(&day).level().await.unwrap(),
        10.0,
        "another bucket"
    );
    // A waiter keeps its reservation. A later request uses the added tokens.
    let slow = Quota::per_hour(60.0).burst(1.0).scope("slow");
    limiter.try_acquire(&slow).await.expect("full");
    let waiting = limiter.acquire(slow.clone(), 600 * SECOND);
    let waiting = tokio::spawn(waiting);
    let start = Instant::now();
    while limiter.bucket(&slow).level().await.unwrap() > -0.5 && start.elapsed() < 10 * SECOND {
        tokio::task::yield_now().await;
    }
    limiter.bucket(&slow).adjust(1.0);
    assert!(!waiting.is_finished());
    waiting.abort();
}

#[tokio::test]
async fn adjusts_in_memory() {
    check_adjust(&Limiter::in_memory()).await;
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn adjusts_in_redis() {
    let server = support::RedisServer::start().await;
    check_adjust(&connect(&server.url())).await;
}

/// While Redis is unavailable the adjustment is kept, and is sent to Redis after the recovery.
/// Until then its tokens are not spent.
#[cfg(feature = "redis")]
#[tokio::test]
async fn adjusts_while_redis_is_unavailable() {
    let mut server = support::RedisServer::start_with(&["--appendonly", "yes"]).await;
    let limiter = connect(&server.url());
    let day = Quota::per_day(1.0).burst(10.0).scope("unavailable");
    limiter
        .try_acquire(day.clone().cost(8.0))
        .await
        .expect("full");
    server.kill9();
    let start = Instant::now();
    while limiter.bucket(&day).level().await.is_ok() && start.elapsed() < 10 * SECOND {
        tokio::task::yield_now().await;
    }
    // Together 3, however large each of them is.
    limiter.bucket(&day).adjust(-f64::MAX);
    limiter.bucket(&day).adjust(3.0);
    limiter.bucket(&day).adjust(f64::MAX);
    let unavailable = limiter.bucket(&day).level().await.unwrap_err();
    assert_eq!(
        unavailable.local_level().round(),
        2.0,
        "the last reported level is the bound"
    );
    server.restart().await;
    let bucket = limiter.bucket(&day);
    let mut level = bucket.level().await;
    let start = Instant::now();
    let is_written_back =
        |level: &Result<f64, _>| level.as_ref().is_ok_and(|level| level.round() == 5.0);
    while !is_written_back(&level) && start.elapsed() < 10 * SECOND {
        tokio::time::sleep(Duration::from_millis(10)).await;
        level = bucket.level().await;
    }
    assert!(is_written_back(&level), "written back: {level:?}");
}

/// However the rate changes meanwhile, a pause ends on time.
async fn check_pause(limiter: &Limiter) {
    for (before, after) in [(100.0, 1.0), (1.0, 100.0)] {
        let quota = LiveQuota::new(Quota::per_second(before).burst(1.0));
        let api = quota.scope(format!("paused-from-{before}"));
        limiter.bucket(&api.current()).pause(SECOND);
        let start = Instant::now();
        quota.set(Quota::per_second(after).burst(1.0));
        let waits = limiter.acquire(api.current(), 20 * SECOND);
        waits.await.expect("a second, and one by the new rate");
        assert!(start.elapsed() >= SECOND * 9 / 10, "{:?}", start.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn pause_ends_on_time_in_memory() {
    check_pause(&Limiter::in_memory()).await;
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn pause_ends_on_time_in_redis() {
    let server = support::RedisServer::start().await;
    check_pause(&connect(&server.url())).await;
}
