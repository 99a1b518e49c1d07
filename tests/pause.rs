//! Pauses of a bucket: for all limiters, in memory, and while Redis is unavailable.

mod support;

use std::time::Duration;

use tokio::time::Instant;
#[cfg(feature = "redis")]
use tower_throttle::Health;
use tower_throttle::{Limiter, Quota, Scope};

const SECOND: Duration = Duration::from_secs(1);
const API: Scope = Quota::per_second(10.0).burst(5.0).scope("api");

#[tokio::test(start_paused = true)]
async fn paused_waiters_reserve_again_within_their_deadlines() {
    let limiter = Limiter::in_memory();
    let start = Instant::now();
    for _ in 0..5 {
        assert!(limiter.try_acquire(API).await.is_ok());
    }
    // Twenty reservations in the next two seconds. Every other caller waits no longer than that.
    let waiters: Vec<_> = (0..20)
        .map(|n| {
            let limiter = limiter.clone();
            let max_wait = if n % 2 == 0 { 2 * SECOND } else { 60 * SECOND };
            tokio::spawn(async move {
                let got = limiter.acquire(API, max_wait).await;
                (got.map(drop), start.elapsed())
            })
        })
        .collect();
    tokio::time::sleep(SECOND / 2 + SECOND / 20).await;
    limiter.bucket(&API).pause(3 * SECOND);
    let end = 3 * SECOND + SECOND / 2 + SECOND / 20;
    let mut admitted = Vec::new();
    for waiter in waiters {
        match waiter.await.expect("no panic") {
            (Ok(()), at) => admitted.push(at),
            (Err(rejected), at) => {
                assert!(at < SECOND, "rejected at once: {at:?}");
                assert!(rejected.retry_after() >= Some(SECOND), "{rejected:?}");
            }
        }
    }
    admitted.sort_unstable();
    assert!(
        admitted.iter().all(|at| *at <= SECOND || *at >= end),
        "{admitted:?}"
    );
    let after: Vec<_> = admitted.iter().filter(|at| **at >= end).collect();
    // Five were admitted before the pause. Of the other fifteen, seven or eight have a long
    // `max_wait`.
    assert!((7..=8).contains(&after.len()), "{admitted:?}");
    for pair in after.windows(2) {
        assert!(
            *pair[1] - *pair[0] >= SECOND / 10 - SECOND / 100,
            "{admitted:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn refunds_and_shorter_pauses_do_not_shorten_a_pause_and_a_reset_ends_it() {
    let limiter = Limiter::in_memory();
    let permit = limiter.try_acquire(API.cost(5.0)).await.expect("full");
    limiter.bucket(&API).pause(2 * SECOND);
    limiter.bucket(&API).pause(SECOND);
    permit.refund();
    tokio::time::sleep(2 * SECOND - SECOND / 100).await;
    assert!(limiter.try_acquire(API).await.is_err());
    tokio::time::sleep(SECOND / 100).await;
    assert!(limiter.try_acquire(API).await.is_err(), "a burst");
    tokio::time::sleep(SECOND / 10).await;
    assert!(limiter.try_acquire(API).await.is_ok());
    assert!(limiter.try_acquire(API).await.is_err(), "a burst");
    limiter.bucket(&API).pause(60 * SECOND);
    limiter.bucket(&API).reset().await.unwrap();
    assert!(limiter.try_acquire(API.cost(5.0)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn scope_taken_first_is_taken_again_after_its_pause() {
    const SLOW: Scope = Quota::per_second(1.0).scope("slow");
    const FAST: Scope = Quota::per_second(2.0).burst(1.0).scope("fast");
    let limiter = Limiter::in_memory();
    assert!(limiter.try_acquire([SLOW, FAST]).await.is_ok());
    let start = Instant::now();
    let waiter = tokio::spawn({
        let limiter = limiter.clone();
        async move {
            let got = limiter.acquire([SLOW, FAST], 60 * SECOND).await;
            (got.map(drop), start.elapsed())
        }
    });
    // It takes from the slow scope after a second, and finds that the fast one was just taken.
    tokio::time::sleep(9 * SECOND / 10).await;
    assert!(limiter.try_acquire(FAST).await.is_ok());
    tokio::time::sleep(SECOND / 5).await;
    limiter.bucket(&SLOW).pause(2 * SECOND);
    let (got, at) = waiter.await.expect("no panic");
    assert!(got.is_ok());
    // One token after the end of the pause.
    let end = SECOND + SECOND / 10 + 2 * SECOND + SECOND;
    assert!((end..end + SECOND / 100).contains(&at), "{at:?}");
}

#[cfg(feature = "redis")]
mod shared {
    use super::{
        support::{Proxy, RedisServer},
        *,
    };

    fn connect(url: &str) -> Limiter {
        let builder = Limiter::builder().redis(url).redis_timeout(SECOND);
        builder.build().expect("a URL")
    }

    /// The command has no reply: waits until another limiter observes the pause.
    async fn until_paused(limiter: &Limiter, scope: &Scope) {
        let start = Instant::now();
        while limiter.bucket(scope).level().await.unwrap() >= 0.0 {
            assert!(start.elapsed() < 10 * SECOND, "timed out");
            tokio::time::sleep(SECOND / 100).await;
        }
    }

    /// The last reported level is zero, and no reply has corrected it since.
    #[tokio::test(flavor = "multi_thread")]
    async fn cap_applies_to_a_bucket_that_another_limiter_has_filled() {
        let server = RedisServer::start().await;
        let (one, other) = (connect(&server.url()), connect(&server.url()));
        let day = Quota::per_day(100.0).scope("day");
        one.try_acquire(day.clone().cost(100.0))
            .await
            .expect("full");
        other.bucket(&day).reset().await.expect("Redis answers");
        one.bucket(&day)
            .cap_level(40.0)
            .await
            .expect("Redis answers");
        let level = other.bucket(&day).level().await.expect("Redis answers");
        assert_eq!(level.floor(), 40.0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn pause_and_cap_apply_to_all_limiters() {
        let server = RedisServer::start().await;
        let (one, other) = (connect(&server.url()), connect(&server.url()));
        let day = Quota::per_day(100.0).scope("day");
        one.bucket(&day).cap_level(40.0).await.unwrap();
        one.bucket(&day).cap_level(60.0).await.unwrap();
        one.bucket(&day).cap_level(f64::NAN).await.unwrap();
        assert_eq!(one.bucket(&day).level().await.unwrap().floor(), 40.0);
        assert_eq!(other.bucket(&day).level().await.unwrap().floor(), 40.0);

        one.bucket(&API).pause(2 * SECOND);
        let paused_at = Instant::now();
        until_paused(&other, &API).await;
        let rejected = other.try_acquire(API).await.expect_err("paused");
        assert!(rejected.retry_after() > Some(SECOND / 2), "{rejected:?}");
        other
            .acquire(API, 10 * SECOND)
            .await
            .expect("a reservation");
        assert!(
            paused_at.elapsed() >= 2 * SECOND,
            "{:?}",
            paused_at.elapsed()
        );
        one.bucket(&API).pause(60 * SECOND);
        until_paused(&other, &API).await;
        other.bucket(&API).reset().await.unwrap();
        assert!(one.acquire(API, SECOND).await.is_ok());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn pause_needs_no_entry_in_the_level_cache() {
        let server = RedisServer::start().await;
        let builder = Limiter::builder().redis(server.url()).max_scopes(1);
        let limiter = builder.redis_timeout(10 * SECOND).build().expect("a URL");
        // The one bucket in the level cache.
        limiter.try_acquire(API.key("first")).await.expect("full");
        for n in 0..100 {
            limiter.bucket(&API.key(n)).pause(60 * SECOND);
        }
        for n in 0..100 {
            let rejected = limiter.try_acquire(API.key(n)).await.expect_err("paused");
            assert!(rejected.retry_after() > Some(50 * SECOND), "{rejected:?}");
        }
        limiter.try_acquire(API.key("other")).await.expect("full");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn pause_during_an_outage_applies_in_memory_and_reaches_redis() {
        let server = RedisServer::start().await;
        let proxy = Proxy::start(server.port()).await;
        // With this timeout, memory decides for long after the recovery.
        let builder = Limiter::builder().redis(proxy.url());
        let one = builder.redis_timeout(5 * SECOND).build().expect("a URL");
        assert!(one.try_acquire(API).await.is_ok());
        proxy.refuse();
        proxy.cut();
        let start = Instant::now();
        while !one
            .try_acquire(API)
            .await
            .is_ok_and(|permit| permit.is_degraded())
        {
            assert!(start.elapsed() < 10 * SECOND, "timed out");
            tokio::time::sleep(SECOND / 20).await;
        }
        one.bucket(&API).pause(20 * SECOND);
        let rejected = one.try_acquire(API).await.expect_err("paused");
        assert!(rejected.retry_after() > Some(15 * SECOND), "{rejected:?}");
        proxy.pass();
        let other = connect(&server.url());
        let start = Instant::now();
        let mut recovered = None;
        // Each request of `one` delivers the pause.
        while other.bucket(&API).level().await.unwrap() > -100.0 {
            assert!(one.try_acquire(API).await.is_err());
            if matches!(one.health(), Health::Redis) {
                recovered.get_or_insert(start.elapsed());
            }
            assert!(start.elapsed() < 30 * SECOND, "timed out");
            tokio::time::sleep(SECOND / 20).await;
        }
        let recovered = recovered.unwrap_or(start.elapsed());
        println!(
            "recovered after {recovered:?}, paused after {:?}",
            start.elapsed()
        );
        assert!(
            start.elapsed() < recovered + 4 * SECOND,
            "the pause was not delivered"
        );
    }

    /// A heartbeat reports to the other limiter that buckets are paused.
    #[tokio::test(flavor = "multi_thread")]
    async fn reservations_are_confirmed_once_a_peer_has_paused_a_bucket() {
        const PAUSE: Duration = Duration::from_secs(3);
        let server = RedisServer::start().await;
        let (waiting, pausing) = (connect(&server.url()), connect(&server.url()));
        let slow = Quota::per_second(1.0).burst(1.0).scope("slow");
        // Whether a reservation, due after 1 s, is used only after the pause that follows it. Before
        // the pause is over, `waiting` gets no other reply for the bucket.
        let is_confirmed = async |key: u32| {
            let scope = slow.key(key);
            waiting.try_acquire(&scope).await.expect("full");
            let start = Instant::now();
            let acquire = tokio::spawn(waiting.acquire(&scope, 60 * SECOND));
            while pausing.bucket(&scope).level().await.unwrap() >= 0.0 {
                assert!(start.elapsed() < 10 * SECOND, "no reservation");
            }
            pausing.bucket(&scope).pause(PAUSE);
            acquire.await.expect("no panic").expect("a permit");
            start.elapsed() >= PAUSE
        };
        let start = Instant::now();
        let mut key = 0;
        while !is_confirmed(key).await {
            assert!(start.elapsed() < 20 * SECOND, "never confirmed");
            key += 1;
        }
        println!("confirmed after {key} reservations that were not");
    }

    /// A check for pauses takes longer than a reservation may be late.
    #[tokio::test(flavor = "multi_thread")]
    async fn reservations_are_used_in_time_over_a_slow_network() {
        const RESERVATIONS: u32 = 20;
        const STEADY: Scope = Quota::per_second(10.0).burst(1.0).scope("steady");
        let server = RedisServer::start().await;
        let proxy = Proxy::start(server.port()).await;
        proxy.delay(SECOND * 7 / 100);
        let mut took = Vec::new();
        for checks in [false, true] {
            let builder = Limiter::builder().redis(proxy.url());
            let limiter = builder.redis_timeout(10 * SECOND).build().expect("a URL");
            if checks {
                // A limiter that pauses buckets checks for pauses of others.
                limiter.bucket(&API).pause(SECOND);
            }
            limiter.bucket(&STEADY).reset().await.unwrap();
            let start = Instant::now();
            let waiters: Vec<_> = (0..=RESERVATIONS)
                .map(|_| tokio::spawn(limiter.acquire(STEADY, 60 * SECOND)))
                .collect();
            let mut rejected = 0;
            for waiter in waiters {
                rejected += u32::from(waiter.await.expect("no panic").is_err());
            }
            took.push((start.elapsed(), rejected));
        }
        println!(
            "without and with checks: {took:?}; ideal {:?}",
            RESERVATIONS * SECOND / 10
        );
        assert!(took.iter().all(|(_, rejected)| *rejected == 0), "{took:?}");
        assert!(took[1].0 <= took[0].0 + SECOND, "{took:?}");
    }
}

/// A pause visits only the waiters of its own bucket.
#[tokio::test]
async fn cost_of_a_pause_does_not_grow_with_other_waiters() {
    use std::{
        future::{Future, poll_fn},
        pin::Pin,
        task::Poll,
    };

    let limiter = Limiter::in_memory();
    let each = Quota::per_day(1.0).scope("each");
    // The shortest of many: other work on the machine only adds to the duration.
    let pause = || {
        let took = (0..100).map(|_| {
            let start = Instant::now();
            limiter.bucket(&each.key("other")).pause(SECOND);
            start.elapsed()
        });
        took.min().expect("some")
    };
    let (mut waiters, mut shortest) = (Vec::new(), Vec::new());
    for keys in [0..200, 200..20_000] {
        for key in keys {
            let scope = each.key(key);
            assert!(limiter.try_acquire(&scope).await.is_ok());
            let mut waiter = limiter.acquire(scope, 7 * 86_400 * SECOND);
            let polled = poll_fn(|cx| Poll::Ready(Pin::new(&mut waiter).poll(cx))).await;
            assert!(polled.is_pending());
            waiters.push(waiter);
        }
        shortest.push(pause());
    }
    println!("with 200 and 20,000 waiters: {shortest:?}");
    assert!(shortest[1] < 20 * shortest[0], "{shortest:?}");
}
