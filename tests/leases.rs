//! Tokens taken ahead: how many, what windows then hold, and that none of them is lost.
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
    // Connected, and the script known.
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

/// Takes so many, several at a time, so that the scope is hot.
async fn demand(limiter: &Limiter, scope: &Scope, tokens: usize) {
    let each = async || {
        for _ in 0..tokens / 8 {
            let permit = limiter.try_acquire(scope).await.expect("plenty");
            assert!(!permit.is_degraded());
            tokio::task::yield_now().await;
        }
    };
    join_all((0..8).map(|_| each())).await;
}

/// All that is leased comes back once it is not used: tokens, rounded as they refill meanwhile.
async fn cooled(limiter: &Limiter, scope: &Scope, expected: f64) {
    let start = Instant::now();
    while level(limiter, scope).await.floor() < expected && start.elapsed() < 30 * SECOND {
        tokio::time::sleep(SECOND / 10).await;
    }
    assert_eq!(level(limiter, scope).await.floor(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hot_scope_needs_fewer_calls_and_gets_back_what_it_does_not_use() {
    let server = RedisServer::start().await;
    let mut spent = Vec::new();
    for lease in [0.0, 1e9] {
        let limiter = limiter(&server, lease).await;
        let scope = SLOW.scope("hot").key(lease);
        let before = calls(&server).await;
        demand(&limiter, &scope, 16_000).await;
        spent.push(calls(&server).await - before);
        let held = 84_000.0 - level(&limiter, &scope).await.floor();
        println!(
            "lease {lease}: {} calls, {held} tokens ahead",
            spent[spent.len() - 1]
        );
        assert!(held <= SLOW.capacity() * LARGEST_PART, "{held}");
        assert_eq!(limiter.fallbacks(), 0);
        cooled(&limiter, &scope, 84_000.0).await;
    }
    assert!(4 * spent[1] < spent[0], "{spent:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_callers_use_leases_too_and_refunds_go_to_redis() {
    let server = RedisServer::start().await;
    let limiter = limiter(&server, 1e9).await;
    let scope = SLOW.scope("hot");
    demand(&limiter, &scope, 8_000).await;
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
    cooled(&limiter, &scope, 92_000.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_taken_ahead_of_what_is_scarce_or_awaited() {
    let server = RedisServer::start().await;
    let limiter = limiter(&server, 1e9).await;
    let scope = Quota::per_day(1.0).burst(10_000.0).scope("scarce");
    limiter
        .try_acquire(scope.clone().cost(5_001.0))
        .await
        .expect("full");
    demand(&limiter, &scope, 4_000).await;
    assert_eq!(level(&limiter, &scope).await.floor(), 999.0);

    // More than half full, and somebody sleeps towards a turn.
    let limiter = &limiter;
    let awaited = Quota::per_second(1.0).burst(10_000.0).scope("awaited");
    limiter
        .try_acquire(awaited.clone().cost(4_000.0))
        .await
        .expect("full");
    let mut sleeper = pin!(limiter.acquire(awaited.clone().cost(7_000.0), 3_600 * SECOND));
    assert!(futures_util::poll!(&mut sleeper).is_pending());
    let start = Instant::now();
    // Its tokens are promised: below zero.
    while level(limiter, &awaited).await >= 0.0 && start.elapsed() < 30 * SECOND {
        tokio::time::sleep(SECOND / 100).await;
    }
    limiter
        .try_acquire(&awaited)
        .await
        .expect_err("all is promised");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limiter_that_is_dropped_gives_back_what_it_holds() {
    let server = RedisServer::start().await;
    let (going, staying) = (limiter(&server, 1e9).await, limiter(&server, 0.0).await);
    let scope = SLOW.scope("hot");
    demand(&going, &scope, 8_000).await;
    assert!(
        level(&staying, &scope).await < 92_000.0,
        "nothing was leased"
    );
    drop(going);
    cooled(&staying, &scope, 92_000.0).await;
}

/// Dropped after any number of polls, while the others lease.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_goes_away_loses_nothing() {
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
    cooled(&limiter, &scope, SLOW.capacity() - used).await;
}

/// Several limiters with bursts of demand: the bucket is full when a burst begins, so that there
/// are tokens to lease, and spent when it ends.
#[tokio::test(flavor = "multi_thread")]
async fn windows_hold_no_more_than_stated() {
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
                        Err(refused) => {
                            let retry_after = refused.retry_after().expect("limited");
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
    // Over the whole run, from full on, whatever was taken ahead was charged.
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
        // Who is told late of what Redis granted is seen late: a loaded machine, 50 ms.
        assert!(
            most as f64 <= stated + RATE * 0.05,
            "{w} s: {most} of {stated}"
        );
    }
    assert!(limiters.iter().all(|limiter| limiter.fallbacks() == 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_with_leases_out() {
    an_outage_of(SECOND).await;
}

/// What is leased cools while Redis is away.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_in_which_leases_cool() {
    an_outage_of(3 * SECOND).await;
}

async fn an_outage_of(length: Duration) {
    let mut server = RedisServer::start().await;
    let limiter = Limiter::builder()
        .redis(server.url())
        .lease(1e9)
        .build()
        .expect("a URL");
    let scope = SLOW.scope("hot");
    let _ = limiter.bucket(&scope).level().await;
    demand(&limiter, &scope, 8_000).await;
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
    // It comes back empty: what each process knows is charged, and what it holds is given back.
    server.restart().await;
    while limiter.bucket(&scope).level().await.is_err() && start.elapsed() < 30 * SECOND {
        tokio::time::sleep(SECOND / 20).await;
    }
    cooled(&limiter, &scope, SLOW.capacity() - used).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_says_goodbye_gives_back_what_it_holds() {
    let server = RedisServer::start().await;
    let (going, staying) = (limiter(&server, 1e9).await, limiter(&server, 0.0).await);
    let scope = SLOW.scope("hot");
    demand(&going, &scope, 8_000).await;
    assert!(
        level(&staying, &scope).await < 92_000.0,
        "nothing was leased"
    );
    going.deregister().await;
    assert_eq!(level(&staying, &scope).await.floor(), 92_000.0);
    // It goes on limiting.
    demand(&going, &scope, 8_000).await;
    assert_eq!(level(&staying, &scope).await.floor(), 84_000.0);
}

#[test]
fn a_lease_is_a_number_of_tokens() {
    for lease in [-1.0, f64::NAN, f64::INFINITY] {
        let error = Limiter::builder()
            .lease(lease)
            .build()
            .expect_err("no number");
        assert!(
            error
                .to_string()
                .contains("how many a process may take ahead"),
            "{error}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_back_is_not_granted_from_a_lease() {
    let server = RedisServer::start().await;
    let (leasing, other) = (limiter(&server, 1e9).await, limiter(&server, 0.0).await);
    // The other process's first pause: known here after a heartbeat.
    let first = SLOW.scope("hot").key("first");
    demand(&leasing, &first, 8_000).await;
    other.bucket(&first).pause(3_600 * SECOND);
    let start = Instant::now();
    while leasing.try_acquire(&first).await.is_ok() {
        assert!(start.elapsed() < 10 * SECOND, "the pause is not known");
        tokio::time::sleep(SECOND / 100).await;
    }
    for (key, holds) in [("there", &other), ("here", &leasing)] {
        let scope = SLOW.scope("hot").key(key);
        demand(&leasing, &scope, 8_000).await;
        assert!(level(&other, &scope).await < 92_000.0, "nothing was leased");
        holds.bucket(&scope).pause(3_600 * SECOND);
        // In the other process it is known once Redis has it, and then within 25 ms.
        while level(&other, &scope).await > 0.0 {}
        tokio::time::sleep(SECOND / 40).await;
        let refused = leasing.try_acquire(&scope).await.expect_err("held back");
        assert!(refused.retry_after() > Some(3_500 * SECOND), "{refused:?}");
    }
}
