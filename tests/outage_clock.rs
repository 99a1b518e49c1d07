//! The clock of the Redis server is set: limiters admit at most one extra capacity, and no caller
//! is blocked.
#![cfg(all(feature = "redis", target_os = "linux"))]

mod support;

use std::time::Duration;

use support::RedisServer;
use tokio::time::{Instant, sleep};
use tower_throttle::{Health, Limiter, Quota, Scope};

const SECOND: Duration = Duration::from_secs(1);
const CAP: f64 = 20.0;
const RATE: f64 = 100.0;
const API: Scope = Quota::per_second(RATE).burst(CAP).scope("api");

fn connect(server: &RedisServer) -> Limiter {
    let builder = Limiter::builder().redis(server.url());
    builder.redis_timeout(SECOND).build().expect("a URL")
}

/// Admissions of both limiters during about `duration`, and the exact duration in seconds.
async fn admitted(limiters: &[Limiter; 2], duration: Duration) -> (f64, f64) {
    let start = Instant::now();
    let mut admitted = 0;
    while start.elapsed() < duration {
        for limiter in limiters {
            admitted += u32::from(limiter.try_acquire(API).await.is_ok());
        }
        sleep(SECOND / 500).await;
    }
    (f64::from(admitted), start.elapsed().as_secs_f64())
}

#[tokio::test(flavor = "multi_thread")]
async fn clock_steps_admit_at_most_one_extra_capacity() {
    let server = RedisServer::start_with_clock(&[]).await;
    let limiters = [connect(&server), connect(&server)];
    // The bucket is spent. From here on there are more requests than tokens.
    admitted(&limiters, SECOND / 2).await;
    let mut before = 0;
    for ahead in [60, 0, -3_600, 0, 7_200, 0] {
        server.set_clock(ahead);
        let (admitted, duration) = admitted(&limiters, SECOND / 2).await;
        let jump = ahead > before;
        println!("{before:+} to {ahead:+} s: {admitted} in {duration:.3} s");
        // Adds what refilled since the last admission, and the requests in flight.
        let most = RATE * duration + if jump { CAP } else { 0.0 } + 3.0;
        assert!(admitted <= most, "{admitted} of {most}");
        assert!(
            admitted >= 0.7 * RATE * duration,
            "{admitted} in {duration} s"
        );
        before = ahead;
    }
    for limiter in &limiters {
        assert_eq!(limiter.health(), Health::Redis);
        assert_eq!(limiter.fallbacks(), 0);
    }
    // Both limiters are still counted, or are counted again by their next heartbeat.
    let start = Instant::now();
    let count = async || {
        let key = "throttle:v1|{#}limiters";
        server.command::<u64>(&["ZCARD", key]).await
    };
    while count().await != 2 {
        assert!(start.elapsed() < 10 * SECOND, "{} limiters", count().await);
        sleep(SECOND / 100).await;
    }
}
