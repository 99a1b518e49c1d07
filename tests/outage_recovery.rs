//! The write-back after an outage: each token is charged once, whichever replies are lost.
#![cfg(feature = "redis")]

mod support;
#[path = "support/watch.rs"]
mod watch;

use std::time::Duration;

use support::{Mode, Proxy, RedisServer};
use tokio::time::{sleep, timeout};
use tower_throttle::{FailureKind, Health, Limiter, Quota, Scope};
use watch::{reason, spend, until, until_level, until_recovered};

const SECOND: Duration = Duration::from_secs(1);
const API: Scope = Quota::per_day(1.0).burst(100.0).scope("api");

/// Long timeouts, so that only the faults of the test occur.
fn connect(url: &str) -> Limiter {
    let builder = Limiter::builder().redis(url).redis_timeout(SECOND / 2);
    builder.build().expect("a URL")
}

async fn take(limiter: &Limiter, n: u32, degraded: bool) {
    for _ in 0..n {
        let permit = limiter.try_acquire(API).await.expect("within the burst");
        assert_eq!(permit.is_degraded(), degraded, "{:?}", limiter.health());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn write_back_with_a_lost_reply_is_charged_once() {
    let server = RedisServer::start().await;
    let proxy = Proxy::start(server.port()).await;
    let limiter = connect(&proxy.url());
    take(&limiter, 30, false).await;
    proxy.refuse();
    proxy.cut();
    take(&limiter, 20, true).await;
    proxy.drop_replies_from(b"#paid:");
    until("a write-back", async || server.write_backs().await == 1).await;
    // Spent after the amount of the first write-back was fixed: the next write-back charges it.
    take(&limiter, 10, true).await;
    let level: f64 = {
        let other = connect(&server.url());
        let level = other.bucket(&API).level().await.unwrap();
        other.deregister().await;
        level
    };
    assert!((49.9..50.1).contains(&level), "{level}: not charged yet");
    // The reply to the second attempt is lost as well.
    proxy.cut();
    proxy.drop_replies_from(b"#paid:");
    until("another attempt", async || {
        proxy.mode() == Mode::DropReplies
    })
    .await;
    proxy.cut();
    proxy.pass();
    until_recovered(&limiter).await;
    until_level(&limiter, &API, 40.0).await;
}

/// The number of heartbeats that Redis has stored.
async fn heartbeats(server: &RedisServer) -> f64 {
    f64::from_le_bytes(server.epoch().await[8..].try_into().expect("16 bytes"))
}

#[tokio::test(flavor = "multi_thread")]
async fn restored_snapshot_is_lowered_to_the_last_reported_level() {
    let mut server = RedisServer::start().await;
    let limiter = connect(&server.url());
    take(&limiter, 30, false).await;
    server.save().await;
    let saved = heartbeats(&server).await;
    take(&limiter, 40, false).await;
    until("a heartbeat", async || heartbeats(&server).await > saved).await;
    // The limiter has received the reply to it before it sends the next heartbeat.
    until("a heartbeat", async || {
        heartbeats(&server).await > saved + 1.0
    })
    .await;
    server.kill9();
    take(&limiter, 10, true).await;
    server.restart().await;
    let restored = server.bucket("api").await;
    let level = f64::from_le_bytes(restored[..8].try_into().expect("a double"));
    until_recovered(&limiter).await;
    until_level(&limiter, &API, 20.0).await;
    println!("{level} in the saved file");
}

#[tokio::test(flavor = "multi_thread")]
async fn early_recovery_of_one_limiter_admits_no_burst() {
    let mut server = RedisServer::start().await;
    let proxy = Proxy::start(server.port()).await;
    let first = connect(&server.url());
    let second = connect(&proxy.url());
    take(&first, 1, false).await;
    take(&second, 1, false).await;
    // Both limiters count each other, and have the same last reported level.
    sleep(5 * SECOND / 2).await;
    for limiter in [&first, &second] {
        until_level(limiter, &API, 98.0).await;
    }
    proxy.refuse();
    server.kill9();
    let mut admitted = 2 + spend(&first, &API).await + spend(&second, &API).await;
    assert!((98..=100).contains(&admitted), "{admitted} of 100");
    server.restart().await;
    until_recovered(&first).await;
    // Redis does not have the debt of the second limiter yet, but the memory of the first one does.
    let level = first.bucket(&API).level().await;
    assert!(level.as_ref().is_ok_and(|level| *level > 40.0), "{level:?}");
    admitted += spend(&first, &API).await;
    assert!(admitted <= 100, "{admitted} of 100");
    // Another outage within the recovery window brings no new local share.
    server.kill9();
    until("a failed heartbeat", async || reason(&first).is_some()).await;
    admitted += spend(&first, &API).await + spend(&second, &API).await;
    assert!(admitted <= 100, "{admitted} of 100");
    server.restart().await;
    proxy.pass();
    until_recovered(&first).await;
    until_recovered(&second).await;
    // The recovery window is over, and all debts are charged.
    sleep(5 * SECOND / 2).await;
    for limiter in [&first, &second] {
        assert_eq!(limiter.health(), Health::Redis);
        admitted += spend(limiter, &API).await;
    }
    assert!((98..=100).contains(&admitted), "{admitted} of 100");
}

#[tokio::test(flavor = "multi_thread")]
async fn limiters_started_before_redis_write_back_after_recovery() {
    let mut server = RedisServer::start().await;
    server.kill9();
    let limiters: Vec<_> = (0..4)
        .map(|_| {
            Limiter::builder()
                .redis(server.url())
                .redis_timeout(SECOND / 2)
                .replicas(4)
                .build()
                .expect("a URL")
        })
        .collect();
    let mut admitted = 0;
    for limiter in &limiters {
        let share = spend(limiter, &API).await;
        assert_eq!(share, 25, "a quarter each");
        admitted += share;
        assert_eq!(reason(limiter), Some(FailureKind::Disconnected));
    }
    server.restart().await;
    for limiter in &limiters {
        until_recovered(limiter).await;
    }
    until_level(&limiters[0], &API, 0.0).await;
    let peers: u64 = server.command(&["ZCARD", "throttle:v1|{#}limiters"]).await;
    assert_eq!(peers, 4);
    assert!(server.write_backs().await >= 4);
    for limiter in &limiters {
        admitted += spend(limiter, &API).await;
    }
    assert_eq!(admitted, 100);
}

async fn peers(server: &RedisServer, expected: u64) {
    until("the expected number of peers", async || {
        let count: u64 = server.command(&["ZCARD", "throttle:v1|{#}limiters"]).await;
        count == expected
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deregistered_dropped_and_unregistered_limiters_are_not_counted() {
    let kept = ["--appendonly", "yes", "--appendfsync", "always"];
    let mut server = RedisServer::start_with(&kept).await;
    let rules = ["on", ">p", "~*", "+@all", "-zadd"];
    server.acl_set_user("u", &rules).await;
    let deregistered = connect(&server.url());
    let dropped = connect(&server.url());
    let url = server.url().replace("redis://", "redis://u:p@");
    let unregistered = connect(&url);
    for limiter in [&deregistered, &dropped, &unregistered] {
        take(limiter, 10, false).await;
    }
    peers(&server, 2).await;
    deregistered.deregister().await;
    peers(&server, 1).await;
    drop(dropped);
    peers(&server, 0).await;
    // A deregistered limiter keeps limiting, through Redis and through an outage, and is not
    // counted again when Redis recovers.
    take(&deregistered, 10, false).await;
    server.kill9();
    take(&deregistered, 10, true).await;
    take(&unregistered, 10, true).await;
    server.restart().await;
    // ACL users that are not in the configuration file are lost with the process.
    server.acl_set_user("u", &rules).await;
    until_recovered(&deregistered).await;
    until_recovered(&unregistered).await;
    until_level(&unregistered, &API, 40.0).await;
    sleep(3 * SECOND / 2).await;
    peers(&server, 0).await;
    assert_eq!(
        spend(&deregistered, &API).await + spend(&unregistered, &API).await,
        40
    );
    let done = timeout(SECOND, deregistered.deregister()).await;
    assert!(done.is_ok(), "deregistering twice has no effect");
}
