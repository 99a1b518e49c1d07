//! The limiter on a real Redis.
#![cfg(feature = "redis")]

mod support;

use std::time::Duration;

use support::RedisServer;
use tokio::time::Instant;
use tower_throttle::{Health, Limiter, Quota, Reason};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread")]
async fn takes_refuses_and_waits() {
    let server = RedisServer::start().await;
    let limiter = Limiter::redis(&server.url()).expect("a URL");
    let api = Quota::per_second(50.0).burst(5.0).scope("api");
    for _ in 0..5 {
        let permit = limiter.try_acquire(&api).await.expect("within the burst");
        assert!(!permit.is_degraded());
    }
    let refused = limiter.try_acquire(&api).await.expect_err("spent");
    assert_eq!(refused.reason(), Reason::Limited);
    assert!(
        refused
            .retry_after()
            .is_some_and(|wait| wait <= SECOND / 50)
    );
    let start = Instant::now();
    for _ in 0..10 {
        limiter.acquire(&api, SECOND).await.expect("its turn");
    }
    assert!(
        start.elapsed() >= Duration::from_millis(150),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(limiter.health(), Health::Redis);
    assert_eq!(limiter.fallbacks(), 0);
}
