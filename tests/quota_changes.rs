//! Quotas that change while they are used: what is in a bucket stays, promises are kept.
#![cfg(feature = "http")]

mod support;

use std::{convert::Infallible, time::Duration};

use tokio::time::Instant;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_throttle::{
    Limiter, LiveQuota, Quota, RateLimitLayer, Rejected, ScopeExtractor, extract::header,
};

const SECOND: Duration = Duration::from_secs(1);

/// A limiter that does not give Redis up because the machine is busy.
#[cfg(feature = "redis")]
fn patient(url: &str) -> Limiter {
    let builder = Limiter::builder().redis(url);
    builder.redis_timeout(10 * SECOND).build().expect("a URL")
}

async fn levels_are_kept(limiter: &Limiter) {
    // Slow enough that nothing comes back during a test.
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
    assert_eq!(level().await, 6.0, "a raise fills nothing");
    quota.set(of(5.0));
    limiter
        .try_acquire(scope.current())
        .await
        .expect("one of 5");
    assert_eq!(level().await, 4.0, "cut to the capacity");
    quota.set(of(100.0));
    assert_eq!(level().await, 4.0, "and what was cut is gone");
    limiter
        .try_acquire(scope.current().cost(5.0))
        .await
        .expect_err("no more than is there");
    limiter
        .try_acquire(scope.current().cost(101.0))
        .await
        .expect_err("impossible");
    // A rate of a thousand fills it soon.
    quota.set(Quota::per_second(1_000.0).burst(100.0));
    let ten = limiter.acquire(scope.current().cost(90.0), 10 * SECOND);
    ten.await.expect("in 86 ms");
}

#[tokio::test]
async fn levels_are_kept_in_memory() {
    levels_are_kept(&Limiter::in_memory()).await;
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn levels_are_kept_in_redis() {
    let server = support::RedisServer::start().await;
    levels_are_kept(&patient(&server.url())).await;
}

/// A refusal that was remembered by the old numbers does not outlive them.
#[cfg(feature = "redis")]
#[tokio::test]
async fn a_known_refusal_ends_with_its_quota() {
    let server = support::RedisServer::start().await;
    let limiter = patient(&server.url());
    let quota = LiveQuota::new(Quota::per_day(1.0));
    let scope = quota.scope("raised");
    limiter.try_acquire(scope.current()).await.expect("one");
    let refused = limiter.try_acquire(scope.current()).await.unwrap_err();
    assert!(refused.retry_after() > Some(3_600 * SECOND));
    quota.set(Quota::per_second(1_000.0));
    let permit = limiter.acquire(scope.current(), 10 * SECOND).await;
    permit.expect("by the new rate, at once");
}

/// Two processes share a bucket, and one is told first: it refills by the rate of whoever asks.
#[cfg(feature = "redis")]
#[tokio::test]
async fn two_processes_of_which_one_changes() {
    let server = support::RedisServer::start().await;
    let limiters = [0, 1].map(|_| patient(&server.url()));
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
    assert_eq!(level.round(), 4.0, "nothing is made of a change");
}

/// Whoever waits has a turn, which stays; the next waits by the new numbers.
#[tokio::test(start_paused = true)]
async fn promised_turns_stay_promised() {
    let limiter = Limiter::in_memory();
    let quota = LiveQuota::new(Quota::per_second(1.0).burst(1.0));
    let scope = quota.scope("waited for");
    limiter.try_acquire(scope.current()).await.expect("full");
    let start = Instant::now();
    let turn = |limiter: &Limiter| {
        let turn = limiter.acquire(scope.current(), 60 * SECOND);
        tokio::spawn(async move { turn.await.map(|_| start.elapsed()) })
    };
    let early: Vec<_> = (0..3).map(|_| turn(&limiter)).collect();
    tokio::task::yield_now().await;
    quota.set(Quota::per_second(10.0).burst(1.0));
    // Three are owed; by the new rate the fourth is there after 0.4 s, but behind the others.
    let late = turn(&limiter);
    let mut turns = Vec::new();
    for turn in early {
        turns.push(turn.await.unwrap().unwrap().as_secs());
    }
    assert_eq!(turns, [1, 2, 3], "as promised");
    let late = late.await.unwrap().unwrap();
    println!("the fourth, by the new rate: {late:?}");
    assert!(late <= SECOND / 2, "{late:?}");
}

/// The layer: fixed, in an array, by a key, and as what is left for those without one.
#[tokio::test(start_paused = true)]
async fn a_layer_follows() {
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

/// A service that waits in `poll_ready` takes the numbers of now for each request.
#[tokio::test(start_paused = true)]
async fn readiness_follows() {
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

/// Given and taken, in both stores, at most to full and not without end.
async fn adjusted(limiter: &Limiter) {
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
    assert_eq!(adjust(-f64::MAX).await, -10.0, "a capacity of debt at most");
    limiter.try_acquire(&key).await.expect_err("in debt");
    assert_eq!(adjust(11.0).await, 1.0);
    limiter.try_acquire(&key).await.expect("one, at once");
    assert_eq!(adjust(f64::MAX).await, 10.0);
    assert_eq!(
        limiter.bucket(&day).level().await.unwrap(),
        10.0,
        "another bucket"
    );
    // Whoever waits keeps that turn; a newcomer goes on what was given.
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
async fn adjusted_in_memory() {
    adjusted(&Limiter::in_memory()).await;
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn adjusted_in_redis() {
    let server = support::RedisServer::start().await;
    adjusted(&patient(&server.url())).await;
}

/// Redis is away: it is told when it is back, and before that nobody spends of it.
#[cfg(feature = "redis")]
#[tokio::test]
async fn adjusted_while_redis_is_away() {
    let mut server = support::RedisServer::start_with(&["--appendonly", "yes"]).await;
    let limiter = patient(&server.url());
    let day = Quota::per_day(1.0).burst(10.0).scope("away");
    limiter
        .try_acquire(day.clone().cost(8.0))
        .await
        .expect("full");
    server.kill9();
    let start = Instant::now();
    while limiter.bucket(&day).level().await.is_ok() && start.elapsed() < 10 * SECOND {
        tokio::task::yield_now().await;
    }
    // Together 3, however large the others are.
    limiter.bucket(&day).adjust(-f64::MAX);
    limiter.bucket(&day).adjust(3.0);
    limiter.bucket(&day).adjust(f64::MAX);
    let unavailable = limiter.bucket(&day).level().await.unwrap_err();
    assert_eq!(
        unavailable.local_level().round(),
        2.0,
        "what Redis told last bounds it"
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

/// However the rate changes meanwhile, a hold is over when it is over.
async fn held_back(limiter: &Limiter) {
    for (before, after) in [(100.0, 1.0), (1.0, 100.0)] {
        let quota = LiveQuota::new(Quota::per_second(before).burst(1.0));
        let api = quota.scope(format!("held-from-{before}"));
        limiter.bucket(&api.current()).pause(SECOND);
        let start = Instant::now();
        quota.set(Quota::per_second(after).burst(1.0));
        let waits = limiter.acquire(api.current(), 20 * SECOND);
        waits.await.expect("a second, and one by the new rate");
        assert!(start.elapsed() >= SECOND * 9 / 10, "{:?}", start.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn held_back_in_memory() {
    held_back(&Limiter::in_memory()).await;
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn held_back_in_redis() {
    let server = support::RedisServer::start().await;
    held_back(&patient(&server.url())).await;
}
