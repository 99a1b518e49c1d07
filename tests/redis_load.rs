//! Many concurrent requests on a healthy Redis: what is sent to it, and which backend decides.
#![cfg(feature = "redis")]

mod support;

use std::time::Duration;

use support::RedisServer;
use tokio::{task::JoinSet, time::Instant};
use tower_throttle::{Health, Limiter, Quota};

const SECOND: Duration = Duration::from_secs(1);

/// Connected, and the script is loaded.
async fn limiter(server: &RedisServer, redis_timeout: Duration) -> Limiter {
    let limiter = Limiter::builder()
        .redis(server.url())
        .redis_timeout(redis_timeout)
        .build()
        .expect("a URL");
    let warm_up = Quota::per_second(1.0).scope("warm-up");
    assert!(limiter.bucket(&warm_up).level().await.is_ok());
    limiter
}

/// Bytes that clients have sent to this server since its start.
async fn received(server: &RedisServer) -> f64 {
    let stats: String = server.command(&["INFO", "stats"]).await;
    let mut lines = stats.lines();
    let bytes = lines.find_map(|line| line.strip_prefix("total_net_input_bytes:"));
    bytes.and_then(|bytes| bytes.parse().ok()).expect("a count")
}

/// The remaining waits of equal and of nearly equal limits differ by as much as the requests lie
/// apart, and by as much as their deadlines do.
#[tokio::test(flavor = "multi_thread")]
async fn waiting_requests_are_merged() {
    const TASKS: u32 = 16_000;
    let server = RedisServer::start().await;
    let limiter = limiter(&server, 10 * SECOND).await;
    for spread in [Duration::ZERO, Duration::from_micros(10)] {
        let api = Quota::per_second(20_000.0).burst(100.0).scope("api");
        let before = received(&server).await;
        let mut tasks = JoinSet::new();
        for task in 0..TASKS {
            let (limiter, api) = (limiter.clone(), api.clone());
            let max_wait = 60 * SECOND - task * spread;
            tasks.spawn(async move { limiter.acquire(&api, max_wait).await.map(drop) });
        }
        for result in tasks.join_all().await {
            result.expect("within its wait");
        }
        let bytes = (received(&server).await - before) / f64::from(TASKS);
        println!("{bytes:.2} bytes a request, deadlines {spread:?} apart");
        assert!(bytes < 4.0, "{bytes} bytes a request");
    }
}

/// More keys than Redis decides within `redis_timeout`, on a machine of any speed. Each has a
/// bucket of its own, so that nothing is merged.
#[tokio::test(flavor = "multi_thread")]
async fn burst_of_unseen_keys_is_decided_by_redis() {
    const KEYS: usize = 40_000;
    let server = RedisServer::start().await;
    let limiter = limiter(&server, SECOND).await;
    let each = Quota::per_minute(5.0).scope("each");
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for key in 0..KEYS {
        let (limiter, scope) = (limiter.clone(), each.key(key));
        tasks.spawn(async move {
            let permit = limiter.try_acquire(scope).await.expect("a full bucket");
            permit.is_degraded()
        });
    }
    let degraded = tasks.join_all().await.into_iter().filter(|by| *by).count();
    let took = start.elapsed();
    println!("{degraded} of {KEYS} from memory, in {took:?}");
    assert_eq!(limiter.health(), Health::Redis);
    assert!(degraded <= KEYS / 100, "{degraded} of {KEYS} from memory");
}
