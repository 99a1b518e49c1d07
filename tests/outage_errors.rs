//! Each error by which Redis says no: memory decides, the health says why, and Redis decides
//! again once it is mended.
#![cfg(feature = "redis")]

mod support;
#[path = "support/watch.rs"]
mod watch;

use std::time::Duration;

use futures_util::future::join_all;
use support::RedisServer;
use tokio::time::Instant;
use tower_throttle::{FailureKind, Health, Limiter, Quota};
use watch::{PLENTY, reason, until_back, until_level};

const SECOND: Duration = Duration::from_secs(1);

/// The longest pause between probes, the time-outs around it, and a machine with other work.
const BACK: Duration = Duration::from_secs(4);

/// Each test's own fault shall be met, not the slowness of the machine.
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

async fn in_time(limiter: &Limiter) {
    let took = until_back(limiter).await;
    println!("back after {took:?}");
    assert!(took < BACK, "{took:?}");
    assert_eq!(limiter.health(), Health::Redis);
}

async fn served_by_redis(limiter: &Limiter) {
    let permit = limiter.try_acquire(PLENTY).await.expect("plenty");
    assert!(!permit.is_degraded(), "{:?}", limiter.health());
}

/// Whoever asks is admitted by memory, at once and in numbers, as long as the fault lasts.
async fn served_by_memory(limiter: &Limiter, expected: FailureKind) {
    let start = Instant::now();
    let mut asked = 0;
    // And for as long as it takes to find out why.
    while start.elapsed() < SECOND / 3
        || (reason(limiter) != Some(expected) && start.elapsed() < 5 * SECOND)
    {
        let some = (0..20).map(|n| limiter.acquire(PLENTY, (n % 2) * SECOND));
        for permit in join_all(some).await {
            assert!(permit.expect("never an error").is_degraded());
            asked += 1;
        }
        tokio::time::sleep(SECOND / 100).await;
    }
    assert_eq!(limiter.fallbacks(), asked);
    assert_eq!(reason(limiter), Some(expected));
    assert!(limiter.fallbacks_by(expected) > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn loading() {
    let mut server = RedisServer::start().await;
    let old = limiter(server.url());
    served_by_redis(&old).await;
    server.restart_loading(2 * SECOND).await;
    let new = limiter(server.url());
    tokio::join!(
        // What it met first was the end of its connection.
        served_by_memory(&old, FailureKind::Disconnected),
        served_by_memory(&new, FailureKind::Unavailable),
    );
    server.until_loaded().await;
    in_time(&old).await;
    in_time(&new).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_is_down() {
    let server = RedisServer::start().await;
    let limiter = limiter(server.url());
    served_by_redis(&limiter).await;
    server.demote_without_master().await;
    served_by_memory(&limiter, FailureKind::Unavailable).await;
    server.promote().await;
    in_time(&limiter).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn busy() {
    let server = RedisServer::start().await;
    let limiter = limiter(server.url());
    served_by_redis(&limiter).await;
    server.busy_for(9 * SECOND).await;
    served_by_memory(&limiter, FailureKind::Unavailable).await;
    server.script_kill().await;
    in_time(&limiter).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn out_of_memory() {
    let server = RedisServer::start().await;
    let limiter = limiter(server.url());
    served_by_redis(&limiter).await;
    server.fill_memory().await;
    served_by_memory(&limiter, FailureKind::Unavailable).await;
    server.free_memory().await;
    in_time(&limiter).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn saves_that_fail() {
    let server = RedisServer::start().await;
    let limiter = limiter(server.url());
    served_by_redis(&limiter).await;
    server.fail_saves().await;
    served_by_memory(&limiter, FailureKind::Unavailable).await;
    server.mend_saves().await;
    in_time(&limiter).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_and_back() {
    let (master, other) = tokio::join!(RedisServer::start(), RedisServer::start());
    other.replicate(&master).await;
    let limiter = limiter(other.url());
    served_by_memory(&limiter, FailureKind::Unavailable).await;
    other.promote().await;
    in_time(&limiter).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_right_to_run_scripts_or_to_write() {
    for right in ["evalsha", "set"] {
        let server = RedisServer::start().await;
        let rules = ["on", ">p", "~*", "+@all"];
        server.acl_set_user("u", &rules).await;
        let limiter = limiter(as_user(&server));
        served_by_redis(&limiter).await;
        // The first arrives as NOPERM, the second as plain ERR, from inside the script.
        server.acl_set_user("u", &[&format!("-{right}")]).await;
        served_by_memory(&limiter, FailureKind::Misconfigured).await;
        server.acl_set_user("u", &[&format!("+{right}")]).await;
        in_time(&limiter).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_changes_under_way() {
    let server = RedisServer::start().await;
    server.acl_set_user("u", &["on", ">p", "~*", "+@all"]).await;
    let limiter = limiter(as_user(&server));
    served_by_redis(&limiter).await;
    server.acl_set_user("u", &["resetpass", ">q"]).await;
    server.client_kill_all().await;
    served_by_memory(&limiter, FailureKind::Misconfigured).await;
    server.acl_set_user("u", &[">p"]).await;
    in_time(&limiter).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_room_for_another_client() {
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
    in_time(&old).await;
    in_time(&new).await;
    in_time(&with_database).await;
    in_time(&with_password).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_such_database() {
    let mut server = RedisServer::start().await;
    let limiter = limiter(format!("{}99", server.url()));
    served_by_memory(&limiter, FailureKind::Misconfigured).await;
    server.restart_with(&["--databases", "100"]).await;
    in_time(&limiter).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scripts_that_were_forgotten() {
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
async fn one_spoilt_value_is_full_and_trips_nothing() {
    let server = RedisServer::start().await;
    let limiter = limiter(server.url());
    let api = Quota::per_day(1.0).burst(5.0).scope("api");
    let key = "throttle:v1|api";
    let now: (f64, f64) = server.command(&["TIME"]).await;
    let now = now.0 * 1e6 + now.1;
    let (cap, rate) = (5.0, 5.0 / 86_400e6);
    let spoilt: [&[f64]; 9] = [
        &[f64::NAN, now, cap, rate, 0.0],
        &[1.0, f64::NAN, cap, rate, 0.0],
        &[f64::INFINITY, now, cap, rate, 0.0],
        &[1.0, f64::NEG_INFINITY, cap, rate, 0.0],
        &[1.0, now, f64::NAN, rate, 0.0],
        &[1.0, now, cap, 0.0, 0.0],
        &[1.0, now, cap, rate, f64::NAN],
        &[1.0, now, cap, rate],
        &[-5.0, now, cap, rate, 0.0, now + 1e9, f64::NAN, 1.0],
    ];
    for numbers in spoilt {
        server.set_numbers(key, numbers).await;
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
    server.set_list(key).await;
    let both = [api.clone(), PLENTY];
    for _ in 0..5 {
        limiter.try_acquire(both.clone()).await.expect("full");
    }
    limiter.try_acquire(both).await.expect_err("spent");
    until_level(&limiter, &PLENTY, PLENTY.quota().capacity() - 5.0).await;
    assert_eq!(server.command::<String>(&["TYPE", key]).await, "string");
    assert_eq!(limiter.fallbacks(), 0);
    assert_eq!(limiter.health(), Health::Redis);
}

/// A bucket whose value nobody of ours has written is as good as absent, and is written anew; the
/// others in the same call hear nothing of it.
#[tokio::test(flavor = "multi_thread")]
async fn stored_values_that_make_no_sense_concern_no_other_bucket() {
    let server = RedisServer::start().await;
    let limiter = limiter(server.url());
    let spoilt = Quota::per_day(1.0).burst(5.0).scope("spoilt");
    let key = "throttle:v1|spoilt";
    let (cap, rate) = (5.0, 5.0 / 86_400e6);
    let now: (f64, f64) = server.command(&["TIME"]).await;
    let now = now.0 * 1e6 + now.1;
    let year = 365.0 * 86_400e6;
    let held = |level: f64, pool: f64, until: f64, by: f64| {
        let tail = now + 1e9;
        vec![level, now, cap, rate, 0.0, tail, 1.0, pool, until, by]
    };
    let (minute, hour) = (now + 60e6, now + 3_600e6);
    let mut values = vec![
        held(0.0, 0.0, hour, -1.7e308),
        held(0.0, 0.0, hour, 1.7e308),
        held(0.0, 0.0, hour, -1.0),
        held(0.0, 0.0, now + 1e4 * year, 1.0),
        held(0.0, 0.0, 1e300, rate),
        held(0.0, -5.0, minute, rate),
        held(-1e300, 0.0, minute, rate),
        held(f64::MIN, 0.0, minute, f64::MAX),
        vec![-1e300, now, cap, rate, 0.0],
        vec![f64::MIN, now, f64::MAX, f64::MIN_POSITIVE, 0.0],
        vec![0.0, -1e300, cap, rate, 0.0, 1e300, 1.0, 0.0],
        vec![0.0, now, cap, rate, 0.0, 1e300, 1.0, 0.0],
        vec![0.0, now, cap, rate, 0.0, minute, -1.0, 0.0],
        vec![0.0, now, -cap, rate, 0.0],
    ];
    let listed = values.len();
    // And any bits at all, which may even be plausible.
    values.push(held(0.0, 1e300, minute, rate));
    let mut bits: u64 = 0x9e37_79b9_7f4a_7c15;
    for n in 0..400 {
        let mut numbers = Vec::new();
        for _ in 0..[5, 8, 10][n % 3] {
            bits ^= bits << 13;
            bits ^= bits >> 7;
            bits ^= bits << 17;
            numbers.push(f64::from_bits(bits));
        }
        values.push(numbers);
    }
    let mut taken = 0.0;
    for (n, numbers) in values.iter().enumerate() {
        // Where the level is plausible, this process has not heard of a lower one.
        limiter.bucket(&spoilt).reset().await.unwrap();
        server.set_numbers(key, numbers).await;
        let both = join_all((0..8).map(|n| {
            let scope = if n % 2 == 0 { &spoilt } else { &PLENTY };
            limiter.try_acquire(scope)
        }));
        for (n, permit) in both.await.into_iter().enumerate() {
            match permit {
                Ok(permit) => assert!(!permit.is_degraded(), "{numbers:?}"),
                Err(refused) => {
                    assert!(n % 2 == 0 && !refused.is_degraded(), "{numbers:?}");
                    let after = refused.retry_after().expect("some time");
                    assert!(after <= 31 * 365 * 86_400 * SECOND, "{numbers:?}");
                }
            }
        }
        taken += 4.0;
        if n < listed {
            let left: Vec<u8> = server.command(&["GET", key]).await;
            let level = f64::from_le_bytes(left[..8].try_into().expect("eight bytes"));
            assert!((level - 1.0).abs() < 0.1, "{numbers:?} left {level}");
            assert_eq!(left.len(), 40, "{numbers:?}");
        }
    }
    until_level(&limiter, &PLENTY, PLENTY.quota().capacity() - taken).await;
    assert_eq!(limiter.fallbacks(), 0);
    assert_eq!(limiter.health(), Health::Redis);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stored_count_of_beats_that_makes_no_sense_is_begun_anew() {
    let server = RedisServer::start().await;
    let key = "throttle:v1|{#}epoch";
    for count in [f64::INFINITY, f64::NAN, -1.0, 1e300] {
        let value = [*b"identity", count.to_le_bytes()].concat();
        server.set_bytes(key, &value).await;
        let limiter = limiter(server.url());
        served_by_redis(&limiter).await;
        let stored: Vec<u8> = server.command(&["GET", key]).await;
        let beats = f64::from_le_bytes(stored[8..].try_into().expect("eight bytes"));
        assert!((1.0..100.0).contains(&beats), "{count}: {beats}");
        assert_eq!(limiter.health(), Health::Redis);
    }
}
