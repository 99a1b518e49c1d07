//! The limiter on a real Redis: what is sent, what it costs, and the effect of cancellation.
#![cfg(feature = "redis")]

mod support;

use std::time::Duration;

use futures_util::future::join_all;
use support::{DECIDES, MARK, RedisServer, SENDS_HEARTBEATS};
use tokio::time::Instant;
use tower_throttle::{Health, Limiter, Quota, Reason, Scope};

const SECOND: Duration = Duration::from_secs(1);

/// Refills too slowly to matter in a test.
const SLOW: Quota = Quota::per_day(1.0).burst(1_000_000.0);

async fn limiter(server: &RedisServer) -> Limiter {
    // A busy test machine delays replies for longer than a service would accept.
    let limiter = Limiter::builder()
        .redis(server.url())
        .redis_timeout(10 * SECOND)
        .build()
        .expect("a URL");
    // Connected, and the script is loaded.
    let _ = limiter.bucket(&SLOW.scope("warm-up")).level().await;
    limiter
}

/// Script calls since the last reset.
async fn calls(server: &RedisServer) -> u64 {
    server.calls("evalsha").await + server.calls("eval").await
}

async fn level(limiter: &Limiter, scope: &Scope) -> f64 {
    let level = limiter.bucket(scope).level().await;
    level.expect("Redis answers")
}

#[tokio::test(flavor = "multi_thread")]
async fn admits_rejects_and_waits() {
    let server = RedisServer::start().await;
    let limiter = Limiter::redis(&server.url()).expect("a URL");
    let api = Quota::per_second(50.0).burst(5.0).scope("api");
    for _ in 0..5 {
        let permit = limiter.try_acquire(&api).await.expect("within the burst");
        assert!(!permit.is_degraded());
    }
    // A busy machine is slow enough for the bucket to refill.
    let rejected = async {
        loop {
            if let Err(rejected) = limiter.try_acquire(&api).await {
                return rejected;
            }
        }
    };
    let rejected = tokio::time::timeout(10 * SECOND, rejected).await;
    let rejected = rejected.expect("spent");
    assert_eq!(rejected.reason(), Reason::Limited);
    assert!(
        rejected
            .retry_after()
            .is_some_and(|wait| wait <= SECOND / 50)
    );
    let start = Instant::now();
    for _ in 0..10 {
        limiter.acquire(&api, SECOND).await.expect("a reservation");
    }
    assert!(
        start.elapsed() >= Duration::from_millis(150),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(limiter.health(), Health::Redis);
    assert_eq!(limiter.fallbacks(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_quota_keeps_the_level() {
    let server = RedisServer::start().await;
    let limiter = limiter(&server).await;
    let quota = |tokens| Quota::per_day(tokens).scope("user").key("ann");
    let floor = async |tokens| level(&limiter, &quota(tokens)).await.floor();
    limiter.try_acquire(quota(100.0).cost(40.0)).await.unwrap();
    assert_eq!(floor(100.0).await, 60.0);
    // A higher capacity does not add tokens.
    limiter.try_acquire(quota(1_000.0)).await.unwrap();
    assert_eq!(floor(1_000.0).await, 59.0);
    // A lower capacity discards the tokens above it, and a higher one does not restore them.
    limiter.try_acquire(quota(10.0).cost(4.0)).await.unwrap();
    assert_eq!(floor(10.0).await, 6.0);
    limiter
        .try_acquire(quota(100.0).cost(7.0))
        .await
        .unwrap_err();
    limiter.try_acquire(quota(100.0).cost(6.0)).await.unwrap();
    assert_eq!(floor(100.0).await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn thousand_tasks_share_their_calls() {
    const TASKS: u64 = 1_024;
    const EACH: u64 = 20;
    let server = RedisServer::start().await;
    let limiter = limiter(&server).await;
    server.reset_stats().await;
    let tasks = (0..TASKS).map(|_| {
        let limiter = limiter.clone();
        tokio::spawn(async move {
            for _ in 0..EACH {
                limiter
                    .try_acquire(SLOW.scope("hot"))
                    .await
                    .expect("plenty");
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.expect("no panic");
    }
    let calls = calls(&server).await;
    let grants = TASKS * EACH;
    println!(
        "{calls} calls for {grants} grants: {:.4} a grant",
        calls as f64 / grants as f64
    );
    assert!(calls * 20 < grants, "{calls} calls for {grants} grants");
    let left = level(&limiter, &SLOW.scope("hot")).await;
    assert_eq!(left.floor(), SLOW.capacity() - grants as f64);
}

#[tokio::test(flavor = "multi_thread")]
async fn single_task_makes_one_call_per_acquisition() {
    let server = RedisServer::start().await;
    let limiter = limiter(&server).await;
    server.reset_stats().await;
    for _ in 0..100 {
        limiter
            .try_acquire(SLOW.scope("cold"))
            .await
            .expect("plenty");
    }
    assert_eq!(calls(&server).await, 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn three_scopes_are_one_call_and_all_or_none() {
    let server = RedisServer::start().await;
    let limiter = limiter(&server).await;
    let spent = Quota::per_day(1.0).scope("spent");
    let [a, b] = [SLOW.scope("a"), SLOW.scope("b").cost(10.0)];
    server.reset_stats().await;
    let scopes = [a.clone(), b.clone(), spent.clone()];
    limiter.try_acquire(scopes.clone()).await.expect("plenty");
    assert_eq!(calls(&server).await, 1);
    let rejected = limiter.try_acquire(scopes).await.expect_err("one is spent");
    assert_eq!(rejected.scope(), "spent");
    assert_eq!(level(&limiter, &a).await.round(), SLOW.capacity() - 1.0);
    assert_eq!(level(&limiter, &b).await.round(), SLOW.capacity() - 10.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn rejected_scope_is_rejected_again_without_a_call() {
    let server = RedisServer::start().await;
    let limiter = limiter(&server).await;
    let api = Quota::per_second(2.0).burst(1.0).scope("api");
    limiter.try_acquire(&api).await.expect("one");
    limiter.try_acquire(&api).await.expect_err("spent");
    server.reset_stats().await;
    for _ in 0..1_000 {
        let rejected = limiter.try_acquire(&api).await.expect_err("spent");
        assert!(
            rejected
                .retry_after()
                .is_some_and(|wait| wait <= SECOND / 2)
        );
    }
    assert_eq!(calls(&server).await, 0);
    // Until it could succeed: then Redis is called, and admits it.
    let wait = limiter
        .try_acquire(&api)
        .await
        .expect_err("spent")
        .retry_after();
    // Measured from when the rejected call was sent, which may be some time before Redis ran it.
    tokio::time::sleep(wait.expect("limited") + SECOND / 10).await;
    limiter.try_acquire(&api).await.expect("refilled");
    assert_eq!(calls(&server).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn refund_ends_the_rejections() {
    let server = RedisServer::start().await;
    let limiter = limiter(&server).await;
    let api = Quota::per_day(1.0).scope("api");
    let permit = limiter.try_acquire(&api).await.expect("one");
    limiter.try_acquire(&api).await.expect_err("spent");
    permit.refund();
    limiter.try_acquire(&api).await.expect("refunded");
    limiter.try_acquire(&api).await.expect_err("spent");
    limiter.bucket(&api).reset().await.unwrap();
    limiter.try_acquire(&api).await.expect("full again");
}

#[tokio::test(flavor = "multi_thread")]
async fn settles_inspects_and_survives_a_script_flush() {
    let server = RedisServer::start().await;
    let limiter = limiter(&server).await;
    let tokens = Quota::per_day(1.0).burst(1_000.0).scope("tokens");
    let permit = limiter
        .try_acquire(tokens.clone().cost(400.0))
        .await
        .expect("plenty");
    permit.settle(150.0);
    assert_eq!(level(&limiter, &tokens).await.floor(), 850.0);
    permit.settle(1_200.0);
    assert_eq!(level(&limiter, &tokens).await.floor(), -200.0);
    // At most one capacity above the estimate, so that a wrong number does not block a scope
    // permanently.
    permit.settle(1e300);
    assert_eq!(level(&limiter, &tokens).await.floor(), -400.0);
    let mut connection = server.connection().await;
    let () = redis::cmd("SCRIPT")
        .arg("FLUSH")
        .query_async(&mut connection)
        .await
        .expect("flushed");
    server.reset_stats().await;
    assert_eq!(level(&limiter, &tokens).await.floor(), -400.0);
    assert_eq!(server.calls("eval").await, 1);
    assert_eq!(server.calls("script|load").await, 0);
    assert_eq!(limiter.fallbacks(), 0);
}

/// Drops an acquisition after `polls` polls, while the other tasks run in between.
async fn drop_after(limiter: &Limiter, scope: &Scope, max_wait: Duration, polls: u32) {
    let mut acquire = limiter.acquire(scope, max_wait);
    for _ in 0..polls {
        let polled = futures_util::poll!(&mut acquire);
        tokio::task::yield_now().await;
        if let std::task::Poll::Ready(permit) = polled {
            permit.expect("plenty").refund();
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn acquisition_dropped_at_any_poll_loses_nothing() {
    let server = RedisServer::start().await;
    let limiter = limiter(&server).await;
    let api = SLOW.scope("api");
    for polls in 0..20 {
        join_all((0..50).map(|_| drop_after(&limiter, &api, SECOND, polls))).await;
        // Decided, and dropped before it is polled again.
        let mut deaf: Vec<_> = (0..5).map(|_| limiter.try_acquire(&api)).collect();
        for acquire in &mut deaf {
            // Another thread may be as fast as that.
            if let std::task::Poll::Ready(permit) = futures_util::poll!(acquire) {
                permit.expect("plenty").refund();
            }
        }
        let _ = limiter.bucket(&api).level().await;
        drop(deaf);
        // Dropped by time as well, while the reply is in flight.
        for micros in [10, 50, 100, 200, 500] {
            let acquire = limiter.try_acquire(&api);
            let limit = Duration::from_micros(micros * u64::from(polls + 1));
            if let Ok(permit) = tokio::time::timeout(limit, acquire).await {
                permit.expect("plenty").refund();
            }
        }
    }
    // A grant without a receiver is returned as soon as it arrives.
    let full = async {
        while level(&limiter, &api).await < SLOW.capacity() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(10 * SECOND, full).await;
    assert!(
        waited.is_ok(),
        "lost {}",
        SLOW.capacity() - level(&limiter, &api).await
    );
    assert_eq!(limiter.fallbacks(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_reservation_is_undone() {
    let server = RedisServer::start().await;
    let limiter = limiter(&server).await;
    // One token at a time: what is not handed over is lost.
    let api = Quota::per_second(50.0).burst(1.0).scope("api");
    limiter.try_acquire(&api).await.expect("full");
    let start = Instant::now();
    let mut waiters: Vec<_> = (0..40)
        .map(|_| Box::pin(limiter.acquire(&api, 10 * SECOND)))
        .collect();
    for waiter in &mut waiters {
        assert!(futures_util::poll!(waiter).is_pending());
    }
    // All have their reservations once a later request has one.
    assert!(limiter.acquire(&api, Duration::ZERO).await.is_err());
    let mut kept = 0;
    let kept_ones: Vec<_> = waiters
        .into_iter()
        .enumerate()
        .filter(|(index, _)| index % 2 == 1)
        .map(|(_, waiter)| {
            kept += 1;
            waiter
        })
        .collect();
    // Twenty were cancelled, so twenty remain and use the first twenty reservations.
    for permit in join_all(kept_ones).await {
        assert!(!permit.expect("a reservation").is_degraded());
    }
    let took = start.elapsed();
    assert_eq!(kept, 20);
    assert!(took >= Duration::from_millis(399), "{took:?}: too early");
    assert!(
        took < Duration::from_millis(700),
        "{took:?}: cancelled reservations were lost"
    );
    let full = async {
        while level(&limiter, &api).await < 1.0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(2 * SECOND, full)
        .await
        .expect("full again");
    let took = start.elapsed();
    assert!(
        took < Duration::from_millis(1_200),
        "{took:?}: a reservation was lost"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_values_count_as_full() {
    let server = RedisServer::start().await;
    let limiter = limiter(&server).await;
    let mut connection = server.connection().await;
    let api = Quota::per_day(1.0).burst(5.0).scope("api");
    limiter.bucket(&api).reset().await.unwrap();
    let hash = server.hash_of("api").await;
    for setup in [
        "DEL KEY",
        "DEL KEY, LPUSH KEY a",
        "DEL KEY, HSET KEY a b",
        "DEL KEY, SET KEY short",
        "HDEL KEY api",
        "HSET KEY api short",
        "HSET KEY api 32-bytes-that-are-no-numbers-xx",
        "HSET KEY api short MARK x",
        "HDEL KEY MARK",
    ] {
        let mut pipeline = redis::pipe();
        for command in setup.split(", ") {
            let mut words = command.split(' ');
            let command = pipeline.cmd(words.next().expect("a command"));
            for word in words {
                match word {
                    "KEY" => command.arg(&hash),
                    "MARK" => command.arg(MARK),
                    _ => command.arg(word),
                };
            }
        }
        let () = pipeline.query_async(&mut connection).await.expect("set up");
        for _ in 0..5 {
            let permit = limiter.try_acquire(&api).await.expect(setup);
            assert!(!permit.is_degraded(), "{setup}");
        }
        limiter.try_acquire(&api).await.expect_err(setup);
        // Rejections are cached.
        limiter.bucket(&api).reset().await.unwrap();
    }
    assert_eq!(limiter.fallbacks(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn unix_socket_with_a_database_and_a_prefix() {
    let server = RedisServer::start().await;
    let limiter = Limiter::builder()
        .redis(format!("{}?db=3", server.unix_url()))
        .key_prefix("shop:")
        .build()
        .expect("a URL");
    let scope = SLOW.scope("api").key("a:b").cost(2.0);
    assert!(
        !limiter
            .try_acquire(scope)
            .await
            .expect("plenty")
            .is_degraded()
    );
    let mut connection = server.connection().await;
    let (_, hashes): ((), Vec<String>) = redis::pipe()
        .cmd("SELECT")
        .arg(3)
        .cmd("KEYS")
        .arg("*s:?")
        .query_async(&mut connection)
        .await
        .expect("keys");
    let mut buckets = Vec::new();
    for hash in &hashes {
        assert!(hash.starts_with("shop:|{#}"), "{hashes:?}");
        let fields: Vec<Vec<u8>> = redis::cmd("HKEYS")
            .arg(hash)
            .query_async(&mut connection)
            .await
            .expect("a hash");
        // Others are of this crate.
        buckets.extend(fields.into_iter().filter(|field| field[0] != MARK[0]));
    }
    let [bucket] = &buckets[..] else {
        panic!("one bucket: {buckets:?}");
    };
    let hash = bucket.strip_prefix(b"api\xff").expect("the name");
    assert_eq!(hash.len(), 16, "the key is stored as a hash: {hash:?}");
}

/// A hash contains many buckets: an eviction fills each of them, once, and no bucket of another
/// class.
#[tokio::test(flavor = "multi_thread")]
async fn evicted_hash_adds_at_most_one_capacity_to_each_of_its_buckets() {
    const CAPACITY: u32 = 5;
    let server = RedisServer::start().await;
    let api = Quota::per_day(1.0).burst(CAPACITY.into());
    let day = api.scope("day");
    let scopes = [
        day.clone(),
        day.key("ann"),
        day.key("ben"),
        api.scope("other"),
    ];
    let week = Quota::per_day(1.0 / 7.0).burst(CAPACITY.into());
    let week = week.scope("week");
    let spend = async |scope: &Scope| {
        // Another limiter has cached no rejections.
        let limiter = limiter(&server).await;
        let mut admitted = 0;
        while limiter.try_acquire(scope).await.is_ok() {
            admitted += 1;
        }
        assert_eq!(limiter.fallbacks(), 0);
        admitted
    };
    for scope in scopes.iter().chain([&week]) {
        assert_eq!(spend(scope).await, CAPACITY);
        assert_eq!(spend(scope).await, 0);
    }
    server.evict_hashes_of("day").await;
    for scope in &scopes {
        assert_eq!(spend(scope).await, CAPACITY, "{scope:?}");
        assert_eq!(spend(scope).await, 0, "{scope:?}");
    }
    assert_eq!(spend(&week).await, 0, "it is in another hash");
}

/// One prefix continues another: their buckets are separate.
#[tokio::test(flavor = "multi_thread")]
async fn limiters_with_different_prefixes_share_no_bucket() {
    let server = RedisServer::start().await;
    let limiter = |prefix: &str| {
        let builder = Limiter::builder().redis(server.url()).key_prefix(prefix);
        builder.redis_timeout(5 * SECOND).build().expect("a URL")
    };
    let (shop, api) = (limiter("shop:"), limiter("shop:api:"));
    let outer = SLOW.scope("api").key("login");
    let inner = SLOW.scope("login");
    shop.try_acquire(outer.clone().cost(5.0))
        .await
        .expect("plenty");
    assert_eq!(api.bucket(&inner).level().await.unwrap(), SLOW.capacity());
    api.bucket(&inner).reset().await.unwrap();
    let left = shop.bucket(&outer).level().await.unwrap().round();
    assert_eq!(left, SLOW.capacity() - 5.0);
}

/// The pattern of `docs/redis.md`, with one user per prefix: each works, and reaches none of the others'
/// keys, though one prefix continues another.
#[tokio::test(flavor = "multi_thread")]
async fn acl_pattern_covers_one_prefix_only() {
    let server = RedisServer::start().await;
    let mut connection = server.connection().await;
    let prefixes = ["", "shop", "shop:", "shop:api:", "shop:api"];
    let user = |n: usize| format!("user-{n}");
    let mut limiters = Vec::new();
    for (n, prefix) in prefixes.iter().enumerate() {
        let () = redis::cmd("ACL")
            .arg(&[
                "SETUSER",
                &user(n),
                "on",
                ">p",
                &format!("~{prefix}|*"),
                "-@all",
            ])
            .arg("+select")
            .arg(DECIDES)
            .arg(SENDS_HEARTBEATS)
            .query_async(&mut connection)
            .await
            .expect("a user");
        let url = server
            .url()
            .replace("redis://", &format!("redis://{}:p@", user(n)));
        let builder = Limiter::builder().redis(url).key_prefix(*prefix);
        let limiter = builder.redis_timeout(5 * SECOND).build().expect("a URL");
        for scope in [SLOW.scope("api").key("login"), SLOW.scope("login")] {
            let permit = limiter.try_acquire(scope).await.expect("plenty");
            assert!(!permit.is_degraded(), "{prefix}");
        }
        // Dropping it would deregister it.
        limiters.push(limiter);
    }
    let keys: Vec<String> = server.command(&["KEYS", "*"]).await;
    let heartbeats = keys.iter().filter(|key| key.ends_with("{#}limiters"));
    assert_eq!(heartbeats.count(), prefixes.len(), "{keys:?}");
    for key in &keys {
        let (owner, _) = key.split_once('|').expect("the end of a prefix");
        for (n, prefix) in prefixes.iter().enumerate() {
            let may: String = server
                .command(&["ACL", "DRYRUN", &user(n), "PTTL", key])
                .await;
            assert_eq!(may == "OK", owner == *prefix, "{key} for {prefix:?}: {may}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn least_rights_are_enough() {
    let server = RedisServer::start().await;
    let mut connection = server.connection().await;
    let () = redis::cmd("ACL")
        .arg("SETUSER")
        .arg("throttle")
        .arg(&["on", ">p:w", "~throttle:v1|*", "-@all"])
        .arg(DECIDES)
        .query_async(&mut connection)
        .await
        .expect("a user");
    let url = server.url().replace("redis://", "redis://throttle:p%3Aw@");
    let limiter = Limiter::redis(&url).expect("a URL");
    let permit = limiter
        .try_acquire(SLOW.scope("api"))
        .await
        .expect("plenty");
    assert!(!permit.is_degraded());
    assert_eq!(limiter.health(), Health::Redis);
}

#[tokio::test(flavor = "multi_thread")]
async fn limiter_moves_to_a_second_runtime() {
    let server = RedisServer::start().await;
    let limiter = limiter(&server).await;
    let api = SLOW.scope("api");
    let (other, scope) = (limiter.clone(), api.clone());
    // The first runtime that uses the limiter owns the connection and the tasks. It ends.
    let first = std::thread::spawn({
        let url = server.url();
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            let limiter = Limiter::redis(&url).expect("a URL");
            runtime.block_on(async { limiter.try_acquire(&scope).await.expect("plenty") });
            limiter
        }
    });
    let orphan = first.join().expect("no panic");
    let permit = orphan.try_acquire(&api).await.expect("plenty");
    drop(permit);
    let answered = tokio::time::timeout(5 * SECOND, async {
        while orphan
            .try_acquire(&api)
            .await
            .expect("plenty")
            .is_degraded()
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    answered.await.expect("the second runtime reconnects");
    drop(other);
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_waiters_of_several_processes_leave_the_bucket_unchanged() {
    let server = RedisServer::start().await;
    let (one, other) = (limiter(&server).await, limiter(&server).await);
    // A token every ten seconds: no reservation is due during this test.
    let api = Quota::per(10 * SECOND, 1.0).scope("api");
    one.try_acquire(&api).await.expect("full");
    let mut waiters = Vec::new();
    for n in 0..20 {
        let limiter = if n % 2 == 0 { &one } else { &other };
        let mut waiter = Box::pin(limiter.acquire(&api, 1_000 * SECOND));
        assert!(futures_util::poll!(&mut waiter).is_pending());
        // It has its reservation once the level shows it.
        let reserved = async {
            while level(limiter, &api).await > -f64::from(n) - 0.5 {
                tokio::task::yield_now().await;
            }
        };
        let reserved = tokio::time::timeout(10 * SECOND, reserved).await;
        reserved.expect("a reservation");
        waiters.push(waiter);
    }
    // All of one process, and then all of the other: each is between two of the other.
    let mut index = 0;
    waiters.retain(|_| {
        index += 1;
        index % 2 == 0
    });
    assert_eq!(waiters.len(), 10);
    drop(waiters);
    let as_without = async {
        while level(&one, &api).await < 0.0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let as_without = tokio::time::timeout(5 * SECOND, as_without).await;
    as_without.expect("cancelled reservations block the bucket");
    assert!(level(&other, &api).await < 1.0, "more than without them");
    assert_eq!(one.fallbacks() + other.fallbacks(), 0);
}
