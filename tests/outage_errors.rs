//! Error replies of Redis: memory decides, the health shows the reason, and Redis decides again
//! once the cause is removed.
#![cfg(feature = "redis")]

mod support;
#[path = "support/watch.rs"]
mod watch;

use std::time::Duration;

use futures_util::future::join_all;
use support::{DIRECTORY, MARK, RedisServer};
use tokio::time::Instant;
use tower_throttle::{FailureKind, Health, Limiter, Quota};
use watch::{PLENTY, reason, until, until_level, until_recovered};

const SECOND: Duration = Duration::from_secs(1);

/// The longest delay between probes, the timeouts around it, and the delays of a busy machine.
const LONGEST_RECOVERY: Duration = Duration::from_secs(4);

/// Each test must meet its own fault, not the delays of a busy machine.
fn limiter(url: String) -> Limiter {
    Limiter::builder()
        .redis(url)
        .redis_timeout(SECOND)
        .build()
        .expect("a URL")
}

fn as_user(server: &RedisServer) -> String {
    server.url().replace("redis://", "redis://u:p@")
}

async fn recovers_in_time(limiter: &Limiter) {
    let took = until_recovered(limiter).await;
    println!("recovered after {took:?}");
    assert!(took < LONGEST_RECOVERY, "{took:?}");
    assert_eq!(limiter.health(), Health::Redis);
}

async fn served_by_redis(limiter: &Limiter) {
    let permit = limiter.try_acquire(PLENTY).await.expect("plenty");
    assert!(!permit.is_degraded(), "{:?}", limiter.health());
}

/// Memory admits all requests at once, as long as the fault lasts.
async fn served_by_memory(limiter: &Limiter, expected: FailureKind) {
    let start = Instant::now();
    let mut requested = 0;
    // And as long as it takes to find the reason.
    while start.elapsed() < SECOND / 3
        || (reason(limiter) != Some(expected) && start.elapsed() < 5 * SECOND)
    {
        let some = (0..20).map(|n| limiter.acquire(PLENTY, (n % 2) * SECOND));
        for permit in join_all(some).await {
            assert!(permit.expect("no error").is_degraded());
            requested += 1;
        }
        tokio::time::sleep(SECOND / 100).await;
    }
    assert_eq!(limiter.fallbacks(), requested);
    assert_eq!(reason(limiter), Some(expected));
    assert!(limiter.fallbacks_by(expected) > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn falls_back_while_the_server_loads() {
    let mut server = RedisServer::start().await;
    let old = limiter(server.url());
    served_by_redis(&old).await;
    server.restart_loading(2 * SECOND).await;
    let new = limiter(server.url());
    tokio::join!(
        // The first fault was the end of the connection.
        served_by_memory(&old, FailureKind::Disconnected),
        served_by_memory(&new, FailureKind::Unavailable),
    );
    server.until_loaded().await;
    recovers_in_time(&old).await;
    recovers_in_time(&new).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn falls_back_on_a_replica_without_master() {
    let server = RedisServer::start().await;
    let limiter = limiter(server.url());
    served_by_redis(&limiter).await;
    server.demote_without_master().await;
    served_by_memory(&limiter, FailureKind::Unavailable).await;
    server.promote().await;
    recovers_in_time(&limiter).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn falls_back_while_a_script_is_busy() {
    let server = RedisServer::start().await;
    let limiter = limiter(server.url());
    served_by_redis(&limiter).await;
    server.busy_for(9 * SECOND).await;
    served_by_memory(&limiter, FailureKind::Unavailable).await;
    server.script_kill().await;
    recovers_in_time(&limiter).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn falls_back_when_memory_is_full() {
    let server = RedisServer::start().await;
    let limiter = limiter(server.url());
    served_by_redis(&limiter).await;
    server.fill_memory().await;
    served_by_memory(&limiter, FailureKind::Unavailable).await;
    server.free_memory().await;
    recovers_in_time(&limiter).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn falls_back_after_failed_saves() {
    let server = RedisServer::start().await;
    let limiter = limiter(server.url());
    served_by_redis(&limiter).await;
    server.fail_saves().await;
    served_by_memory(&limiter, FailureKind::Unavailable).await;
    server.repair_saves().await;
    recovers_in_time(&limiter).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn falls_back_on_a_replica_until_it_is_promoted() {
    let (master, other) = tokio::join!(RedisServer::start(), RedisServer::start());
    other.replicate(&master).await;
    let limiter = limiter(other.url());
    served_by_memory(&limiter, FailureKind::Unavailable).await;
    other.promote().await;
    recovers_in_time(&limiter).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn falls_back_without_the_right_to_run_scripts_or_to_write() {
    for right in ["evalsha", "hset"] {
        let server = RedisServer::start().await;
        let rules = ["on", ">p", "~*", "+@all"];
        server.acl_set_user("u", &rules).await;
        let limiter = limiter(as_user(&server));
        served_by_redis(&limiter).await;
        // The first error is NOPERM, the second is a plain ERR from inside the script.
        server.acl_set_user("u", &[&format!("-{right}")]).await;
        served_by_memory(&limiter, FailureKind::Misconfigured).await;
        server.acl_set_user("u", &[&format!("+{right}")]).await;
        recovers_in_time(&limiter).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn falls_back_after_a_password_change() {
    let server = RedisServer::start().await;
    server.acl_set_user("u", &["on", ">p", "~*", "+@all"]).await;
    let limiter = limiter(as_user(&server));
    served_by_redis(&limiter).await;
    server.acl_set_user("u", &["resetpass", ">q"]).await;
    server.client_kill_all().await;
    served_by_memory(&limiter, FailureKind::Misconfigured).await;
    server.acl_set_user("u", &[">p"]).await;
    recovers_in_time(&limiter).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn falls_back_when_the_server_accepts_no_clients() {
    let server = RedisServer::start().await;
    let rules = ["on", ">p", "~*", "+@all"];
    server.acl_set_user("u", &rules).await;
    let old = limiter(server.url());
    served_by_redis(&old).await;
    let full = server.fill_clients().await;
    let new = limiter(server.url());
    let with_database = limiter(format!("{}3", server.url()));
    let with_password = limiter(as_user(&server));
    tokio::join!(
        served_by_memory(&old, FailureKind::Disconnected),
        served_by_memory(&new, FailureKind::Disconnected),
        served_by_memory(&with_database, FailureKind::Disconnected),
        served_by_memory(&with_password, FailureKind::Disconnected),
    );
    full.release().await;
    recovers_in_time(&old).await;
    recovers_in_time(&new).await;
    recovers_in_time(&with_database).await;
    recovers_in_time(&with_password).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn falls_back_without_the_database() {
    let mut server = RedisServer::start().await;
    let limiter = limiter(format!("{}99", server.url()));
    served_by_memory(&limiter, FailureKind::Misconfigured).await;
    server.restart_with(&["--databases", "100"]).await;
    recovers_in_time(&limiter).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flushed_scripts_are_loaded_again_without_an_outage() {
    let server = RedisServer::start().await;
    let limiter = limiter(server.url());
    for _ in 0..3 {
        served_by_redis(&limiter).await;
        server.script_flush().await;
    }
    server.client_pause(SECOND / 5).await;
    served_by_redis(&limiter).await;
    assert_eq!(limiter.fallbacks(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn corrupt_value_counts_as_full_and_causes_no_outage() {
    let server = RedisServer::start().await;
    let limiter = limiter(server.url());
    let api = Quota::per_day(1.0).burst(5.0).scope("api");
    limiter.try_acquire(&api).await.expect("full");
    let now: (f64, f64) = server.command(&["TIME"]).await;
    let now = now.0 * 1e6 + now.1;
    let (cap, rate) = (5.0, 5.0 / 86_400e6);
    let corrupt: [&[f64]; 11] = [
        &[f64::NAN, now, cap, rate],
        &[1.0, f64::NAN, cap, rate],
        &[f64::INFINITY, now, cap, rate],
        &[1.0, f64::NEG_INFINITY, cap, rate],
        &[1.0, now, f64::NAN, rate],
        &[1.0, now, cap, 0.0],
        &[1.0, now, cap, f64::NAN],
        &[],
        &[1.0, now, cap],
        &[1.0, now, cap, rate, 0.0],
        &[-5.0, now, cap, rate, now + 1e9, f64::NAN, 1.0],
    ];
    for numbers in corrupt {
        server.set_bucket_numbers("api", numbers).await;
        for _ in 0..5 {
            let permit = limiter.try_acquire(&api).await.expect("it was full");
            assert!(!permit.is_degraded(), "{numbers:?}");
        }
        limiter
            .try_acquire(&api)
            .await
            .expect_err("overwritten by a bucket that is spent");
        limiter.bucket(&api).reset().await.unwrap();
    }
    let hash = server.hash_of("api").await;
    server.set_list(&hash).await;
    let both = [api.clone(), PLENTY];
    for _ in 0..5 {
        limiter.try_acquire(both.clone()).await.expect("full");
    }
    limiter.try_acquire(both).await.expect_err("spent");
    until_level(&limiter, &PLENTY, PLENTY.quota().capacity() - 5.0).await;
    assert_eq!(server.hash_of("api").await, hash);
    assert_eq!(limiter.fallbacks(), 0);
    assert_eq!(limiter.health(), Health::Redis);
}

/// A bucket whose value was not written by this crate counts as absent and is written anew. Other
/// buckets in the same call are not affected.
#[tokio::test(flavor = "multi_thread")]
async fn corrupt_values_affect_no_other_bucket() {
    let server = RedisServer::start().await;
    let limiter = limiter(server.url());
    let corrupt = Quota::per_day(1.0).burst(5.0).scope("corrupt");
    let (cap, rate) = (5.0, 5.0 / 86_400e6);
    let now: (f64, f64) = server.command(&["TIME"]).await;
    let now = now.0 * 1e6 + now.1;
    let year = 365.0 * 86_400e6;
    let paused = |level: f64, returned: f64, until: f64, pause_rate: f64| {
        let tail = now + 1e9;
        vec![
            level, now, cap, rate, tail, 1.0, returned, until, pause_rate,
        ]
    };
    let (minute, hour) = (now + 60e6, now + 3_600e6);
    let mut values = vec![
        paused(0.0, 0.0, hour, -1.7e308),
        paused(0.0, 0.0, hour, 1.7e308),
        paused(0.0, 0.0, hour, -1.0),
        paused(0.0, 0.0, now + 1e4 * year, 1.0),
        paused(0.0, 0.0, 1e300, rate),
        paused(0.0, -5.0, minute, rate),
        paused(-1e300, 0.0, minute, rate),
        paused(f64::MIN, 0.0, minute, f64::MAX),
        vec![-1e300, now, cap, rate],
        vec![f64::MIN, now, f64::MAX, f64::MIN_POSITIVE],
        vec![0.0, -1e300, cap, rate, 1e300, 1.0, 0.0],
        vec![0.0, now, cap, rate, 1e300, 1.0, 0.0],
        vec![0.0, now, cap, rate, minute, -1.0, 0.0],
        vec![0.0, now, -cap, rate],
    ];
    let listed = values.len();
    // And random bits, which may be plausible by chance.
    values.push(paused(0.0, 1e300, minute, rate));
    let mut bits: u64 = 0x9e37_79b9_7f4a_7c15;
    for n in 0..400 {
        let mut numbers = Vec::new();
        for _ in 0..[4, 7, 9][n % 3] {
            bits ^= bits << 13;
            bits ^= bits >> 7;
            bits ^= bits << 17;
            numbers.push(f64::from_bits(bits));
        }
        values.push(numbers);
    }
    let mut taken = 0.0;
    for (n, numbers) in values.iter().enumerate() {
        // Where the stored level is plausible, this process has no lower last reported level.
        limiter.bucket(&corrupt).reset().await.unwrap();
        server.set_bucket_numbers("corrupt", numbers).await;
        let both = join_all((0..8).map(|n| {
            let scope = if n % 2 == 0 { &corrupt } else { &PLENTY };
            limiter.try_acquire(scope)
        }));
        for (n, permit) in both.await.into_iter().enumerate() {
            match permit {
                Ok(permit) => assert!(!permit.is_degraded(), "{numbers:?}"),
                Err(rejected) => {
                    assert!(n % 2 == 0 && !rejected.is_degraded(), "{numbers:?}");
                    let after = rejected.retry_after().expect("some time");
                    assert!(after <= 31 * 365 * 86_400 * SECOND, "{numbers:?}");
                }
            }
        }
        taken += 4.0;
        if n < listed {
            let left = server.bucket("corrupt").await;
            let level = f64::from_le_bytes(left[..8].try_into().expect("eight bytes"));
            assert!((level - 1.0).abs() < 0.1, "{numbers:?} left {level}");
            assert_eq!(left.len(), 32, "{numbers:?}");
        }
    }
    until_level(&limiter, &PLENTY, PLENTY.quota().capacity() - taken).await;
    assert_eq!(limiter.fallbacks(), 0);
    assert_eq!(limiter.health(), Health::Redis);
}

#[tokio::test(flavor = "multi_thread")]
async fn corrupt_heartbeat_count_is_started_anew() {
    let server = RedisServer::start().await;
    for count in [f64::INFINITY, f64::NAN, -1.0, 1e300] {
        let value = [*b"identity", count.to_le_bytes()].concat();
        let set = [&b"HSET"[..], DIRECTORY.as_bytes(), MARK, &value];
        server.command::<()>(&set).await;
        let limiter = limiter(server.url());
        served_by_redis(&limiter).await;
        let stored = server.epoch().await;
        let heartbeats = f64::from_le_bytes(stored[8..].try_into().expect("eight bytes"));
        assert!((1.0..100.0).contains(&heartbeats), "{count}: {heartbeats}");
        assert_eq!(limiter.health(), Health::Redis);
    }
}

/// The directory has the epoch: without it, Redis counts as having lost its data.
#[tokio::test(flavor = "multi_thread")]
async fn directory_that_is_no_hash_is_created_anew() {
    let server = RedisServer::start().await;
    let limiter = limiter(server.url());
    served_by_redis(&limiter).await;
    let epoch = server.epoch().await;
    server.set_list(DIRECTORY).await;
    until("an outage", async || {
        let permit = limiter.try_acquire(PLENTY).await.expect("plenty");
        permit.is_degraded()
    })
    .await;
    recovers_in_time(&limiter).await;
    assert_ne!(server.epoch().await[..8], epoch[..8]);
}
