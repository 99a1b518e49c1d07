//! What Redis is told when it is back: each token once, whatever happens to the telling.
#![cfg(feature = "redis")]

mod support;
#[path = "support/watch.rs"]
mod watch;

use std::time::Duration;

use support::{Mode, Proxy, RedisServer};
use tokio::time::{Instant, sleep, timeout};
use tower_throttle::{FailureKind, Health, Limiter, Quota, Scope};
use watch::{reason, spend, until_back, until_level};

const SECOND: Duration = Duration::from_secs(1);
const API: Scope = Quota::per_day(1.0).burst(100.0).scope("api");

/// Patient, so that the faults of the test are the only ones.
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

async fn payments(server: &RedisServer) -> usize {
    let keys: Vec<String> = server.command(&["KEYS", "throttle:v1|#paid:*"]).await;
    keys.len()
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !is_so().await {
        assert!(start.elapsed() < 10 * SECOND, "in vain: {what}");
        sleep(SECOND / 100).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_whose_reply_is_lost_is_made_once() {
    let server = RedisServer::start().await;
    let proxy = Proxy::start(server.port()).await;
    let limiter = connect(&proxy.url());
    take(&limiter, 30, false).await;
    proxy.refuse();
    proxy.cut();
    take(&limiter, 20, true).await;
    proxy.drop_replies_from(b"#paid:");
    until("a payment", async || payments(&server).await == 1).await;
    // Spent after the amount was fixed: that is another payment.
    take(&limiter, 10, true).await;
    let told: f64 = {
        let other = connect(&server.url());
        let level = other.bucket(&API).level().await.unwrap();
        other.deregister().await;
        level
    };
    assert!((49.9..50.1).contains(&told), "{told}: not charged yet");
    // The second attempt is heard as little as the first.
    proxy.cut();
    proxy.drop_replies_from(b"#paid:");
    until("another attempt", async || {
        proxy.mode() == Mode::DropReplies
    })
    .await;
    proxy.cut();
    proxy.pass();
    until_back(&limiter).await;
    until_level(&limiter, &API, 40.0).await;
}

/// The count of beats that Redis remembers.
async fn beats(server: &RedisServer) -> f64 {
    let epoch: Vec<u8> = server.command(&["GET", "throttle:v1|{#}epoch"]).await;
    f64::from_le_bytes(epoch[8..].try_into().expect("16 bytes"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_of_an_earlier_time_is_told_how_low_it_was() {
    let mut server = RedisServer::start().await;
    let limiter = connect(&server.url());
    take(&limiter, 30, false).await;
    server.save().await;
    let saved = beats(&server).await;
    take(&limiter, 40, false).await;
    until("a beat", async || beats(&server).await > saved).await;
    // The limiter has heard of it by the time of the next.
    until("a beat", async || beats(&server).await > saved + 1.0).await;
    server.kill9();
    take(&limiter, 10, true).await;
    server.restart().await;
    let restored: Vec<u8> = server.command(&["GET", "throttle:v1|api"]).await;
    let level = f64::from_le_bytes(restored[..8].try_into().expect("a double"));
    until_back(&limiter).await;
    until_level(&limiter, &API, 20.0).await;
    println!("{level} in the saved file");
}

#[tokio::test(flavor = "multi_thread")]
async fn together_no_burst_though_one_is_back_first() {
    let mut server = RedisServer::start().await;
    let proxy = Proxy::start(server.port()).await;
    let first = connect(&server.url());
    let second = connect(&proxy.url());
    take(&first, 1, false).await;
    take(&second, 1, false).await;
    // Both have heard of each other, and know the same level.
    sleep(5 * SECOND / 2).await;
    for limiter in [&first, &second] {
        until_level(limiter, &API, 98.0).await;
    }
    proxy.refuse();
    server.kill9();
    let mut admitted = 2 + spend(&first, &API).await + spend(&second, &API).await;
    assert!((98..=100).contains(&admitted), "{admitted} of 100");
    server.restart().await;
    until_back(&first).await;
    // Redis does not know yet what the second has spent: the first one's memory does.
    let level = first.bucket(&API).level().await;
    assert!(level.as_ref().is_ok_and(|level| *level > 40.0), "{level:?}");
    admitted += spend(&first, &API).await;
    assert!(admitted <= 100, "{admitted} of 100");
    // Another outage within the grace brings no new share.
    server.kill9();
    until("a beat that fails", async || reason(&first).is_some()).await;
    admitted += spend(&first, &API).await + spend(&second, &API).await;
    assert!(admitted <= 100, "{admitted} of 100");
    server.restart().await;
    proxy.pass();
    until_back(&first).await;
    until_back(&second).await;
    // The grace is over; all that was spent is charged.
    sleep(5 * SECOND / 2).await;
    for limiter in [&first, &second] {
        assert_eq!(limiter.health(), Health::Redis);
        admitted += spend(limiter, &API).await;
    }
    assert!((98..=100).contains(&admitted), "{admitted} of 100");
}

#[tokio::test(flavor = "multi_thread")]
async fn started_before_redis() {
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
        until_back(limiter).await;
    }
    until_level(&limiters[0], &API, 0.0).await;
    let members: u64 = server.command(&["ZCARD", "throttle:v1|{#}limiters"]).await;
    assert_eq!(members, 4);
    assert!(payments(&server).await >= 4);
    for limiter in &limiters {
        admitted += spend(limiter, &API).await;
    }
    assert_eq!(admitted, 100);
}

async fn members(server: &RedisServer, expected: u64) {
    until("the right number of members", async || {
        let count: u64 = server.command(&["ZCARD", "throttle:v1|{#}limiters"]).await;
        count == expected
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_left_one_that_was_dropped_and_one_that_may_not_beat() {
    let kept = ["--appendonly", "yes", "--appendfsync", "always"];
    let mut server = RedisServer::start_with(&kept).await;
    let rules = ["on", ">p", "~*", "+@all", "-zadd"];
    server.acl_set_user("u", &rules).await;
    let left = connect(&server.url());
    let dropped = connect(&server.url());
    let url = server.url().replace("redis://", "redis://u:p@");
    let silent = connect(&url);
    for limiter in [&left, &dropped, &silent] {
        take(limiter, 10, false).await;
    }
    members(&server, 2).await;
    left.deregister().await;
    members(&server, 1).await;
    drop(dropped);
    members(&server, 0).await;
    // It goes on limiting, through Redis, through an outage, and is not counted by coming back.
    take(&left, 10, false).await;
    server.kill9();
    take(&left, 10, true).await;
    take(&silent, 10, true).await;
    server.restart().await;
    // Users that the configuration does not hold are gone with the process.
    server.acl_set_user("u", &rules).await;
    until_back(&left).await;
    until_back(&silent).await;
    until_level(&silent, &API, 40.0).await;
    sleep(3 * SECOND / 2).await;
    members(&server, 0).await;
    assert_eq!(spend(&left, &API).await + spend(&silent, &API).await, 40);
    let done = timeout(SECOND, left.deregister()).await;
    assert!(done.is_ok(), "a second goodbye is no more than a first");
}
