//! What a token costs in commands and bytes. On one thread, batches do not depend on the speed of
//! the machine.
#![cfg(feature = "redis")]

mod support;

use std::time::Duration;

use futures_util::future::join_all;
use support::{RedisServer, gates};
use tokio::task::JoinSet;
use tower_throttle::{Limiter, Quota};

/// Not spent here.
const WIDE: Quota = Quota::per_day(1.0).burst(1e9);

/// Connected, and the script is loaded.
async fn limiter(server: &RedisServer) -> Limiter {
    let limiter = Limiter::builder()
        .redis(server.url())
        .redis_timeout(Duration::from_secs(10))
        .build()
        .expect("a URL");
    let warm_up = limiter.bucket(&WIDE.scope("warm-up")).level().await;
    assert!(warm_up.is_ok(), "{warm_up:?}");
    limiter
}

/// Script calls for requests since the last reset.
async fn calls(server: &RedisServer) -> f64 {
    let scripts = server.calls("evalsha").await + server.calls("eval").await;
    // A heartbeat is a script call too, at intervals of time; no other one calls ZADD.
    (scripts - server.calls("zadd").await) as f64
}

/// What all clients have sent to this server, and what they have received.
async fn bytes(server: &RedisServer) -> (f64, f64) {
    let stats: String = server.command(&["INFO", "stats"]).await;
    let count = |name: &str| {
        let line = stats.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|count| count.parse().ok()).expect("a count")
    };
    (
        count("total_net_input_bytes:"),
        count("total_net_output_bytes:"),
    )
}

async fn commands_per_token(tasks: u32) -> f64 {
    const EACH: u32 = 200;
    let server = RedisServer::start().await;
    let limiter = limiter(&server).await;
    let hot = WIDE.scope("hot");
    server.reset_stats().await;
    let mut requesters = JoinSet::new();
    for _ in 0..tasks {
        let (limiter, hot) = (limiter.clone(), hot.clone());
        requesters.spawn(async move {
            for _ in 0..EACH {
                limiter.try_acquire(&hot).await.expect("wide enough");
            }
        });
    }
    requesters.join_all().await;
    assert_eq!(limiter.fallbacks(), 0);
    calls(&server).await / f64::from(tasks * EACH)
}

const MERGED: &str = "src/redis/batch/worker.rs says when a call is sent; tests/redis_load.rs \
                      covers requests that should be merged.";

#[tokio::test]
async fn hot_scope_commands_per_token() {
    gates::assert_all([
        gates::COMMANDS_64.check(commands_per_token(64).await, MERGED),
        gates::COMMANDS_1024.check(commands_per_token(1_024).await, MERGED),
    ]);
}

/// The worker must wait for those who are answered on another thread.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hot_scope_commands_per_token_over_two_threads() {
    gates::assert_all([
        gates::COMMANDS_64_THREADS.check(commands_per_token(64).await, MERGED),
        gates::COMMANDS_1024_THREADS.check(commands_per_token(1_024).await, MERGED),
    ]);
}

#[tokio::test]
async fn full_batches_bytes_per_key() {
    const KEYS: u32 = 128;
    const BATCHES: u32 = 2_000;
    let server = RedisServer::start().await;
    let limiter = limiter(&server).await;
    let scope = WIDE.scope("keyed");
    let keys: Vec<String> = (0..KEYS).map(|key| format!("user:{key:010}")).collect();
    let batches = async |batches| {
        join_all(keys.iter().map(async |key| {
            for _ in 0..batches {
                limiter
                    .try_acquire(scope.key(key))
                    .await
                    .expect("wide enough");
            }
        }))
        .await;
    };
    batches(10).await;
    server.reset_stats().await;
    let before = bytes(&server).await;
    batches(BATCHES).await;
    let after = bytes(&server).await;
    assert_eq!(limiter.fallbacks(), 0);
    let calls = calls(&server).await;
    assert!(
        calls <= f64::from(BATCHES) * 1.05,
        "batches are not full: {calls} calls for {BATCHES} of them"
    );
    let per_key = |bytes: f64| bytes / f64::from(KEYS * BATCHES);
    let wire = "the header of src/redis/acquire.lua describes what is sent and replied; \
                `redis-cli monitor` shows it.";
    gates::assert_all([
        gates::BYTES_SENT.check(per_key(after.0 - before.0), wire),
        gates::BYTES_RECEIVED.check(per_key(after.1 - before.1), wire),
    ]);
}
