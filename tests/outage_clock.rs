//! The clock of Redis is set: at most one capacity too many, and nobody is locked out.
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

/// How many both admit in about so long, and in how long exactly.
async fn admitted(limiters: &[Limiter; 2], spell: Duration) -> (f64, f64) {
    let start = Instant::now();
    let mut admitted = 0;
    while start.elapsed() < spell {
        for limiter in limiters {
            admitted += u32::from(limiter.try_acquire(API).await.is_ok());
        }
        sleep(SECOND / 500).await;
    }
    (f64::from(admitted), start.elapsed().as_secs_f64())
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_ahead_and_back() {
    let server = RedisServer::start_with_clock(&[]).await;
    let limiters = [connect(&server), connect(&server)];
    // Spent, and from here on asked for more than there is.
    admitted(&limiters, SECOND / 2).await;
    let mut before = 0;
    for ahead in [60, 0, -3_600, 0, 7_200, 0] {
        server.set_clock(ahead);
        let (admitted, spell) = admitted(&limiters, SECOND / 2).await;
        let jump = ahead > before;
        println!("{before:+} to {ahead:+} s: {admitted} in {spell:.3} s");
        // What had refilled since the last one was admitted comes on top, and what is in flight.
        let most = RATE * spell + if jump { CAP } else { 0.0 } + 3.0;
        assert!(admitted <= most, "{admitted} of {most}");
        assert!(admitted >= 0.7 * RATE * spell, "{admitted} in {spell} s");
        before = ahead;
    }
    for limiter in &limiters {
        assert_eq!(limiter.health(), Health::Redis);
        assert_eq!(limiter.fallbacks(), 0);
    }
    // Both are still counted, or again with the next beat.
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
