//! Tokens leased ahead: how many, the bounds of windows, and that none of them is lost.
#![cfg(feature = "redis")]

mod support;

use std::{future::Future, pin::pin, task::Poll, time::Duration};

use futures_util::future::join_all;
use support::RedisServer;
use tokio::time::Instant;
use tower_throttle::{Limiter, Quota, Scope};

const SECOND: Duration = Duration::from_secs(1);

/// Refills too slowly to matter in a test.
const SLOW: Quota = Quota::per_day(1.0).burst(100_000.0);

/// Of a capacity.
const LARGEST_PART: f64 = 1.0 / 8.0;

async fn limiter(server: &RedisServer, lease: f64) -> Limiter {
    let limiter = Limiter::builder()
        .redis(server.url())
        .redis_timeout(10 * SECOND)
        .lease(lease)
        .build()
        .expect("a URL");
    // Connected, and the script is loaded.
    let _ = limiter.bucket(&SLOW.scope("warm-up")).level().await;
    limiter
}

async fn calls(server: &RedisServer) -> u64 {
    server.calls("evalsha").await + server.calls("eval").await
}

async fn level(limiter: &Limiter, scope: &Scope) -> f64 {
    let level = limiter.bucket(scope).level().await;
    level.expect("Redis answers")
}

/// Acquires `tokens` tokens, several at a time, so that the scope is hot.
async fn acquire_many(limiter: &Limiter, scope: &Scope, tokens: usize) {
    let each = async || {
        for _ in 0..tokens / 8 {
            let permit = limiter.try_acquire(scope).await.expect("plenty");
            assert!(!permit.is_degraded());
            tokio::task::yield_now().await;
        }
    };
    join_all((0..8).map(|_| each())).await;
}

/// Waits until all leased tokens are returned because they are idle. Tokens are rounded, as they
/// refill meanwhile.
async fn until_reclaimed(limiter: &Limiter, scope: &Scope, expected: f64) {
    let start = Instant::now();
    while level(limiter, scope).await.floor() < expected && start.elapsed() < 30 * SECOND {
        tokio::time::sleep(SECOND / 10).await;
    }
    assert_eq!(level(limiter, scope).await.floor(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn hot_scope_needs_fewer_calls_and_returns_unused_tokens() {
    let server = RedisServer::start().await;
    let mut spent = Vec::new();
    for lease in [0.0, 1e9] {
        let limiter = limiter(&server, lease).await;
        let scope = SLOW.scope("hot").key(lease);
        let before = calls(&server).await;
        acquire_many(&limiter, &scope, 16_000).await;
        spent.push(calls(&server).await - before);
        let held = 84_000.0 - level(&limiter, &scope).await.floor();
        println!(
            "lease {lease}: {} calls, {held} tokens ahead",
            spent[spent.len() - 1]
        );
        assert!(held <= SLOW.capacity() * LARGEST_PART, "{held}");
        assert_eq!(limiter.fallbacks(), 0);
        until_reclaimed(&limiter, &scope, 84_000.0).await;
    }
    assert!(4 * spent[1] < spent[0], "{spent:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn waiters_use_leases_and_refunds_go_to_redis() {
    let server = RedisServer::start().await;
    let limiter = limiter(&server, 1e9).await;
    let scope = SLOW.scope("hot");
    acquire_many(&limiter, &scope, 8_000).await;
    let before = calls(&server).await;
    let mut permits = Vec::new();
    for _ in 0..100 {
        permits.push(limiter.acquire(&scope, SECOND).await.expect("plenty"));
    }
    let spent = calls(&server).await - before;
    println!("{spent} calls for 100 that would have waited");
    assert!(spent < 100);
    for permit in permits {
        permit.refund();
    }
    until_reclaimed(&limiter, &scope, 92_000.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_leased_of_a_scarce_or_awaited_scope() {
    let server = RedisServer::start().await;
    let limiter = limiter(&server, 1e9).await;
    let scope = Quota::per_day(1.0).burst(10_000.0).scope("scarce");
    limiter
        .try_acquire(scope.clone().cost(5_001.0))
        .await
        .expect("full");
    acquire_many(&limiter, &scope, 4_000).await;
    assert_eq!(level(&limiter, &scope).await.floor(), 999.0);

    // More than half full, and a caller waits with a reservation.
    let limiter = &limiter;
    let awaited = Quota::per_second(1.0).burst(10_000.0).scope("awaited");
    limiter
        .try_acquire(awaited.clone().cost(4_000.0))
        .await
        .expect("full");
    let mut waiter = pin!(limiter.acquire(awaited.clone().cost(7_000.0), 3_600 * SECOND));
    assert!(futures_util::poll!(&mut waiter).is_pending());
    let start = Instant::now();
    // Its tokens are reserved: the level is below zero.
    while level(limiter, &awaited).await >= 0.0 && start.elapsed() < 30 * SECOND {
        tokio::time::sleep(SECOND / 100).await;
    }
    limiter
        .try_acquire(&awaited)
        .await
        .expect_err("all is reserved");
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_limiter_returns_its_leases() {
    let server = RedisServer::start().await;
    let (going, staying) = (limiter(&server, 1e9).await, limiter(&server, 0.0).await);
    let scope = SLOW.scope("hot");
    acquire_many(&going, &scope, 8_000).await;
    assert!(
        level(&staying, &scope).await < 92_000.0,
        "nothing was leased"
    );
    drop(going);
    until_reclaimed(&staying, &scope, 92_000.0).await;
}

/// Dropped after any number of polls, while other callers use leases.
#[tokio::test(flavor = "multi_thread")]
async fn dropped_acquisition_loses_nothing() {
    let server = RedisServer::start().await;
    let limiter = limiter(&server, 1e9).await;
    let scope = SLOW.scope("hot");
    let mut used = 0.0;
    for round in 0..2_000 {
        let mut acquire = pin!(match round % 2 {
            0 => limiter.try_acquire(&scope),
            _ => limiter.acquire(&scope, SECOND),
        });
        let polls = round % 5;
        let decided = std::future::poll_fn(|cx| {
            for _ in 0..polls {
                if let Poll::Ready(decided) = acquire.as_mut().poll(cx) {
                    return Poll::Ready(Some(decided));
                }
            }
            Poll::Ready(None)
        });
        if let Some(permit) = decided.await {
            permit.expect("plenty");
            used += 1.0;
        }
        if round % 7 == 0 {
            limiter.try_acquire(&scope).await.expect("plenty");
            used += 1.0;
        }
    }
    println!("{used} of 2,286 were used");
    until_reclaimed(&limiter, &scope, SLOW.capacity() - used).await;
}

/// Several limiters with bursts of requests: the bucket is full when a burst begins, so that there
/// are tokens to lease, and spent when it ends.
#[tokio::test(flavor = "multi_thread")]
async fn windows_admit_no_more_than_documented() {
    const LIMITERS: usize = 4;
    const RATE: f64 = 20_000.0;
    const CAPACITY: f64 = 6_000.0;
    let server = RedisServer::start().await;
    let scope = Quota::per_second(RATE).burst(CAPACITY).scope("hot");
    let mut limiters = Vec::new();
    for _ in 0..LIMITERS {
        limiters.push(limiter(&server, 1e9).await);
    }
    let before = calls(&server).await;
    let start = Instant::now();
    let tasks = limiters
        .iter()
        .flat_map(|limiter| (0..8).map(move |_| limiter.clone()));
    let tasks = tasks.map(|limiter| {
        let scope = scope.clone();
        tokio::spawn(async move {
            let mut admitted = Vec::new();
            for burst in 0..6 {
                tokio::time::sleep_until(start + burst * SECOND / 2).await;
                let end = start + burst * SECOND / 2 + SECOND / 8;
                while Instant::now() < end {
                    match limiter.try_acquire(&scope).await {
                        Ok(_) => admitted.push(start.elapsed().as_secs_f64()),
                        Err(rejected) => {
                            let retry_after = rejected.retry_after().expect("limited");
                            tokio::time::sleep(retry_after.max(SECOND / 1_000)).await;
                        }
                    }
                    tokio::task::yield_now().await;
                }
            }
            admitted
        })
    });
    let admitted = join_all(tasks.collect::<Vec<_>>()).await;
    let mut admitted: Vec<f64> = admitted
        .into_iter()
        .flat_map(|of| of.expect("no panic"))
        .collect();
    let took = start.elapsed().as_secs_f64();
    let spent = calls(&server).await - before;
    admitted.sort_by(f64::total_cmp);
    let (n, allowed) = (admitted.len() as f64, CAPACITY + RATE * took);
    println!(
        "{n} admitted of {allowed:.0} allowed, {:.4} calls each",
        spent as f64 / n
    );
    // Over the whole run, from a full bucket on, every leased token was charged.
    assert!(n <= allowed, "{n} of {allowed}");
    let ahead = LIMITERS as f64 * (CAPACITY * LARGEST_PART).floor();
    for w in [0.001, 0.01, 0.05, 0.1, 0.2, 0.5, 1.0] {
        let mut first = 0;
        let mut most = 0;
        for last in 0..admitted.len() {
            while admitted[last] - admitted[first] > w {
                first += 1;
            }
            most = most.max(last - first + 1);
        }
        let stated = CAPACITY + RATE * w + ahead;
        println!(
            "{w} s: {most} of {stated:.0}, {:.0} of them by leases",
            ahead
        );
        // A caller that receives its reply late is recorded late: 50 ms on a busy machine.
        assert!(
            most as f64 <= stated + RATE * 0.05,
            "{w} s: {most} of {stated}"
        );
    }
    assert!(limiters.iter().all(|limiter| limiter.fallbacks() == 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn outage_with_leases_loses_no_tokens() {
    outage_of(SECOND).await;
}

/// Leased tokens become idle while Redis is unavailable.
#[tokio::test(flavor = "multi_thread")]
async fn outage_in_which_leases_are_reclaimed_loses_no_tokens() {
    outage_of(3 * SECOND).await;
}

async fn outage_of(length: Duration) {
    let mut server = RedisServer::start().await;
    let limiter = Limiter::builder()
        .redis(server.url())
        .lease(1e9)
        .build()
        .expect("a URL");
    let scope = SLOW.scope("hot");
    let _ = limiter.bucket(&scope).level().await;
    acquire_many(&limiter, &scope, 8_000).await;
    assert!(
        level(&limiter, &scope).await < 92_000.0,
        "nothing was leased"
    );
    server.kill9();
    let mut used = 8_000.0;
    let start = Instant::now();
    while start.elapsed() < length {
        limiter.try_acquire(&scope).await.expect("plenty in memory");
        used += 1.0;
        tokio::time::sleep(SECOND / 200).await;
    }
    // Redis restarts empty: the last reported level of each process is applied, and its leases are
    // returned.
    server.restart().await;
    while limiter.bucket(&scope).level().await.is_err() && start.elapsed() < 30 * SECOND {
        tokio::time::sleep(SECOND / 20).await;
    }
    until_reclaimed(&limiter, &scope, SLOW.capacity() - used).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deregistered_limiter_returns_its_leases() {
    let server = RedisServer::start().await;
    let (going, staying) = (limiter(&server, 1e9).await, limiter(&server, 0.0).await);
    let scope = SLOW.scope("hot");
    acquire_many(&going, &scope, 8_000).await;
    assert!(
        level(&staying, &scope).await < 92_000.0,
        "nothing was leased"
    );
    going.deregister().await;
    assert_eq!(level(&staying, &scope).await.floor(), 92_000.0);
    // It continues to limit.
    acquire_many(&going, &scope, 8_000).await;
    assert_eq!(level(&staying, &scope).await.floor(), 84_000.0);
}

#[test]
fn lease_is_a_number_of_tokens() {
    for lease in [-1.0, f64::NAN, f64::INFINITY] {
        let error = Limiter::builder()
            .lease(lease)
            .build()
            .expect_err("no number");
        assert!(
            error
                .to_string()
                .contains("how many tokens a process may lease"),
            "{error}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn paused_scope_is_not_granted_from_a_lease() {
    let server = RedisServer::start().await;
    let (leasing, other) = (limiter(&server, 1e9).await, limiter(&server, 0.0).await);
    // The first pause of the other process is known here after a heartbeat.
    let first = SLOW.scope("hot").key("first");
    acquire_many(&leasing, &first, 8_000).await;
    other.bucket(&first).pause(3_600 * SECOND);
    let start = Instant::now();
    while leasing.try_acquire(&first).await.is_ok() {
        assert!(start.elapsed() < 10 * SECOND, "the pause is not known");
        tokio::time::sleep(SECOND / 100).await;
    }
    for (key, pausing) in [("there", &other), ("here", &leasing)] {
        let scope = SLOW.scope("hot").key(key);
        acquire_many(&leasing, &scope, 8_000).await;
        assert!(level(&other, &scope).await < 92_000.0, "nothing was leased");
        pausing.bucket(&scope).pause(3_600 * SECOND);
        // The other process observes it once Redis has it, and then within 25 ms.
        while level(&other, &scope).await > 0.0 {}
        tokio::time::sleep(SECOND / 40).await;
        let rejected = leasing.try_acquire(&scope).await.expect_err("paused");
        assert!(
            rejected.retry_after() > Some(3_500 * SECOND),
            "{rejected:?}"
        );
    }
}
