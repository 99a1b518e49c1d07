//! The log lines and metrics of an outage: one line for each transition, one line with advice for
//! each kind of misconfiguration, and none for each request.
//!
//! Each test uses a runtime of one thread, so that it records only its own lines.
#![cfg(all(feature = "redis", feature = "tracing", feature = "metrics"))]

#[path = "support/listen.rs"]
mod listen;
mod support;
#[path = "support/watch.rs"]
mod watch;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Wake, Waker},
    time::Duration,
};

use futures_util::future::join_all;
use listen::{Log, Metrics};
use support::{Proxy, RedisServer};
use tokio::time::Instant;
use tower_throttle::{FailureKind, Health, Limiter, Quota, Scope};
use tracing::Level;
use watch::{PLENTY, reason, until_recovered};

const SECOND: Duration = Duration::from_secs(1);

fn limiter(url: impl Into<String>) -> Limiter {
    let builder = Limiter::builder().redis(url).redis_timeout(SECOND);
    builder.build().expect("a URL")
}

fn as_user(server: &RedisServer) -> String {
    server.url().replace("redis://", "redis://u:p@")
}

async fn served_by_redis(limiter: &Limiter) {
    let permit = limiter.try_acquire(PLENTY).await.expect("plenty");
    assert!(!permit.is_degraded(), "{:?}", limiter.health());
}

/// Thousands of acquisitions, while the connection is probed several times.
async fn thousands(limiter: &Limiter) {
    for _ in 0..60 {
        for permit in join_all((0..50).map(|_| limiter.try_acquire(PLENTY))).await {
            assert!(permit.expect("plenty").is_degraded());
        }
        tokio::time::sleep(SECOND / 100).await;
    }
}

#[tokio::test]
async fn one_line_for_the_outage_and_one_for_the_recovery() {
    let mut server = RedisServer::start().await;
    let (log, _guard) = Log::listen();
    let limiter = limiter(server.url());
    for outage in 1..=2 {
        served_by_redis(&limiter).await;
        server.kill9();
        thousands(&limiter).await;
        assert_eq!(log.counts(), [outage, outage - 1, 0]);
        server.restart().await;
        until_recovered(&limiter).await;
        assert_eq!(log.counts(), [outage, outage, 0]);
    }
    assert_eq!(log.len(), 4);
    let down = &log.lines(Level::WARN)[0];
    assert!(down.contains("reason=disconnected"), "{down}");
    let up = &log.lines(Level::INFO)[0];
    assert!(up.contains("outage_seconds="), "{up}");
}

/// One of two limiters is cut off: the other one reserves its part for a while, and logs that.
#[tokio::test]
async fn reserved_part_is_logged_and_measured() {
    let server = RedisServer::start().await;
    let proxy = Proxy::start(server.port()).await;
    let (log, _guard) = Log::listen();
    let metrics = Metrics::default();
    let _recorder = metrics::set_default_local_recorder(&metrics);
    let connect = |url| {
        let builder = Limiter::builder().redis(url).redis_timeout(SECOND);
        builder.reserve_for(2 * SECOND).build().expect("a URL")
    };
    let (limiter, other) = (connect(server.url()), connect(proxy.url()));
    served_by_redis(&limiter).await;
    served_by_redis(&other).await;
    let gauge = || metrics.get("tower_throttle_reserved_ratio");
    let until = async |part: f64| {
        let start = Instant::now();
        while limiter.reserved() != part || gauge() != Some(part) {
            let (reserved, gauge) = (limiter.reserved(), gauge());
            assert!(start.elapsed() < 20 * SECOND, "{reserved}, {gauge:?}");
            tokio::time::sleep(SECOND / 50).await;
        }
    };
    until(0.0).await;
    tokio::time::sleep(13 * SECOND / 2).await;
    let reserved = || {
        let lines = log.lines(Level::INFO).into_iter();
        lines
            .filter(|line| line.contains("reserved"))
            .collect::<Vec<_>>()
    };
    assert_eq!(reserved(), [""; 0]);
    proxy.stall();
    until(0.5).await;
    assert_eq!(limiter.health(), Health::Redis);
    let lines = reserved();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("missing=1") && lines[0].contains("reserved=0.5"));
    until(0.0).await;
    assert_eq!(reserved().len(), 2, "{:?}", reserved());
    // A dropped limiter leaves nothing in the gauge.
    drop((limiter, other));
    assert_eq!(gauge(), Some(0.0));
}

/// Memory decides from the first call on, or from the moment the server is misconfigured.
async fn misconfigured(limiter: &Limiter, log: &Log, advice: &str) {
    thousands(limiter).await;
    assert_eq!(reason(limiter), Some(FailureKind::Misconfigured));
    let errors = log.lines(Level::ERROR);
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].contains(advice), "{}", errors[0]);
    assert!(!errors[0].contains("u:p@"), "{}", errors[0]);
    assert_eq!(log.counts(), [1, 0, 1]);
}

#[tokio::test]
async fn wrong_password_is_logged_with_advice() {
    let server = RedisServer::start().await;
    server.acl_set_user("u", &["on", ">q", "~*", "+@all"]).await;
    let (log, _guard) = Log::listen();
    let limiter = limiter(as_user(&server));
    misconfigured(&limiter, &log, "wrong user or password").await;
    server.acl_set_user("u", &[">p"]).await;
    until_recovered(&limiter).await;
    assert_eq!(log.counts(), [1, 1, 1]);
    // A fault that was removed and returns is logged again.
    server.acl_set_user("u", &["<p"]).await;
    server.client_kill_all().await;
    // Not at once: after a recent outage, probes are less frequent.
    let start = tokio::time::Instant::now();
    while log.lines(Level::ERROR).len() < 2 && start.elapsed() < 10 * SECOND {
        thousands(&limiter).await;
    }
    assert_eq!(log.counts(), [2, 1, 2]);
}

#[tokio::test]
async fn missing_password_is_logged_with_advice() {
    let server = RedisServer::start().await;
    server.config_set("requirepass", "secret").await;
    let (log, _guard) = Log::listen();
    let limiter = limiter(server.url());
    misconfigured(&limiter, &log, "use redis://user:password@host:port").await;
}

#[tokio::test]
async fn missing_right_to_run_scripts_is_logged_with_advice() {
    let server = RedisServer::start().await;
    let rules = ["on", ">p", "~*", "+@all", "-evalsha"];
    server.acl_set_user("u", &rules).await;
    let (log, _guard) = Log::listen();
    let limiter = limiter(as_user(&server));
    misconfigured(&limiter, &log, "+evalsha +eval").await;
    server.acl_set_user("u", &["+evalsha"]).await;
    until_recovered(&limiter).await;
    assert_eq!(log.counts(), [1, 1, 1]);
}

#[tokio::test]
async fn missing_right_to_write_is_logged_with_advice() {
    let server = RedisServer::start().await;
    let rules = ["on", ">p", "~*", "+@all"];
    server.acl_set_user("u", &rules).await;
    let (log, _guard) = Log::listen();
    let limiter = limiter(as_user(&server));
    served_by_redis(&limiter).await;
    // A plain ERR from inside the script.
    server.acl_set_user("u", &["-hset"]).await;
    misconfigured(&limiter, &log, "+hmget +hset").await;
}

#[tokio::test]
async fn missing_right_to_the_keys_is_logged_with_advice() {
    let server = RedisServer::start().await;
    let rules = ["on", ">p", "~other:*", "+@all"];
    server.acl_set_user("u", &rules).await;
    let (log, _guard) = Log::listen();
    let limiter = limiter(as_user(&server));
    misconfigured(&limiter, &log, "grant ~throttle:v1|*").await;
}

#[tokio::test]
async fn missing_database_is_logged_with_advice() {
    let server = RedisServer::start().await;
    let (log, _guard) = Log::listen();
    let limiter = limiter(format!("{}99", server.url()));
    misconfigured(&limiter, &log, "database does not exist").await;
}

#[tokio::test]
async fn renamed_command_is_logged_with_advice() {
    for command in ["HMGET", "EVALSHA"] {
        let server = RedisServer::start_with(&["--rename-command", command, "other"]).await;
        let (log, _guard) = Log::listen();
        let limiter = limiter(server.url());
        misconfigured(&limiter, &log, "without renamed commands").await;
    }
}

#[tokio::test]
async fn missing_right_to_send_heartbeats_is_logged_with_advice() {
    let server = RedisServer::start().await;
    let rules = ["on", ">p", "~*", "+@all", "-zadd"];
    server.acl_set_user("u", &rules).await;
    let (log, _guard) = Log::listen();
    let limiter = limiter(as_user(&server));
    let start = tokio::time::Instant::now();
    // More than one heartbeat.
    while start.elapsed() < 5 * SECOND / 2 {
        served_by_redis(&limiter).await;
        tokio::time::sleep(SECOND / 100).await;
    }
    let errors = log.lines(Level::ERROR);
    assert!(
        errors.len() == 1 && errors[0].contains("+zadd"),
        "{errors:?}"
    );
    assert_eq!(log.len(), 1);
}

/// Panics when it is woken, once `panics` is set.
#[derive(Default)]
struct BadWaker {
    panics: AtomicBool,
    woken: AtomicUsize,
}

impl Wake for BadWaker {
    fn wake(self: Arc<Self>) {
        self.woken.fetch_add(1, Ordering::Relaxed);
        assert!(!self.panics.load(Ordering::Relaxed), "a bad waker");
    }
}

/// Waits behind another waiter, with a waker that panics in the background task that wakes it. Then
/// waits with another waker, which must not hang.
async fn woken_by_a_bad_waker(limiter: &Limiter, reserved: bool) {
    const SLOW: Scope = Quota::per_second(2.0).burst(1.0).scope("slow");
    drop(
        limiter
            .try_acquire(SLOW)
            .await
            .map(|permit| permit.settle(1.0)),
    );
    let bad = Arc::new(BadWaker::default());
    let waker = Waker::from(bad.clone());
    let mut acquire = Box::pin(limiter.acquire(SLOW, 60 * SECOND));
    let mut poll = || acquire.as_mut().poll(&mut Context::from_waker(&waker));
    let start = tokio::time::Instant::now();
    if reserved {
        // After the first wake-up it has its reservation.
        assert!(poll().is_pending());
        while bad.woken.load(Ordering::Relaxed) == 0 && limiter.health() != Health::InMemory {
            assert!(start.elapsed() < 30 * SECOND, "{:?}", limiter.health());
            tokio::task::yield_now().await;
        }
    }
    bad.panics.store(true, Ordering::Relaxed);
    assert!(poll().is_pending());
    let before = bad.woken.load(Ordering::Relaxed);
    let other = limiter.acquire(SLOW, 60 * SECOND);
    let other = tokio::time::timeout(30 * SECOND, other);
    other
        .await
        .expect("no waiter hangs")
        .expect("a reservation");
    assert!(bad.woken.load(Ordering::Relaxed) > before);
}

#[tokio::test]
async fn panicking_background_task_is_an_outage_with_a_log_line() {
    // In the task that sends requests, and in the task that wakes waiters.
    let servers = [RedisServer::start().await, RedisServer::start().await];
    for (server, reserved) in servers.iter().zip([false, true]) {
        let (log, _guard) = Log::listen();
        let limiter = limiter(server.url());
        let changes = limiter.health_changes();
        served_by_redis(&limiter).await;
        woken_by_a_bad_waker(&limiter, reserved).await;
        assert!(changes.has_changed().expect("open"), "reserved: {reserved}");
        let warnings = log.lines(Level::WARN);
        assert!(warnings[0].contains("a bad waker"), "{warnings:?}");
        let errors = log.lines(Level::ERROR);
        assert!(errors[0].contains("a bad waker"), "{errors:?}");
        until_recovered(&limiter).await;
    }
    // Memory continues to decide.
    let (log, _guard) = Log::listen();
    woken_by_a_bad_waker(&Limiter::in_memory(), true).await;
    let errors = log.lines(Level::ERROR);
    assert!(errors[0].contains("a bad waker"), "{errors:?}");
    assert_eq!(log.counts(), [0, 0, 1]);
}

#[tokio::test]
async fn outage_is_counted_by_reason() {
    const DEGRADED: &str = "tower_throttle_degraded";
    let mut server = RedisServer::start().await;
    let (_log, _listening) = Log::listen();
    let metrics = Metrics::default();
    let _guard = metrics::set_default_local_recorder(&metrics);
    let limiter = limiter(server.url());
    served_by_redis(&limiter).await;
    assert_ne!(metrics.get(DEGRADED), Some(1.0));
    server.kill9();
    thousands(&limiter).await;
    assert_eq!(metrics.get(DEGRADED), Some(1.0));
    server.restart().await;
    until_recovered(&limiter).await;
    assert_eq!(metrics.get(DEGRADED), Some(0.0));
    server.fill_memory().await;
    thousands(&limiter).await;
    assert_eq!(metrics.get(DEGRADED), Some(1.0));
    for kind in [
        FailureKind::Disconnected,
        FailureKind::Unavailable,
        FailureKind::DataLost,
        FailureKind::Timeout,
    ] {
        let name = format!("tower_throttle_fallback_total{{reason={kind}}}");
        let counted = metrics.get(&name).unwrap_or_default();
        println!("{name} {counted}");
        assert_eq!(counted, limiter.fallbacks_by(kind) as f64, "{kind}");
    }
    assert!(limiter.fallbacks_by(FailureKind::Disconnected) >= 3_000);
    assert!(limiter.fallbacks_by(FailureKind::Unavailable) >= 3_000);
    // Names are labels. Keys are not: clients would choose the number of series.
    let _ = limiter.try_acquire(PLENTY.key("customer-17")).await;
    let names: Vec<_> = metrics.all().into_keys().collect();
    let any = |part: &str| names.iter().any(|name| name.contains(part));
    assert!(any("plenty") && !any("customer-17"), "{names:?}");
}

#[tokio::test]
async fn missing_right_to_send_heartbeats_is_logged_after_a_cold_start() {
    let mut server = RedisServer::start().await;
    let url = as_user(&server);
    server.kill9();
    let (log, _guard) = Log::listen();
    let limiter = limiter(url);
    thousands(&limiter).await;
    server.restart().await;
    let rules = ["on", ">p", "~*", "+@all", "-zadd"];
    server.acl_set_user("u", &rules).await;
    until_recovered(&limiter).await;
    let start = tokio::time::Instant::now();
    while start.elapsed() < 5 * SECOND / 2 {
        tokio::time::sleep(SECOND / 100).await;
    }
    let rights: Vec<_> = log.lines(Level::ERROR);
    let rights = rights.iter().filter(|line| line.contains("+zadd")).count();
    assert_eq!(rights, 1, "{:?}", log.lines(Level::ERROR));
}

/// More requests at once than fit into the queue: Redis decides all but the excess.
#[tokio::test]
async fn overload_is_no_outage() {
    const QUEUED: usize = 131_072;
    const EXCESS: usize = 500;
    let server = RedisServer::start().await;
    let metrics = Metrics::default();
    let _recorded = metrics::set_default_local_recorder(&metrics);
    let (log, _guard) = Log::listen();
    let builder = Limiter::builder().redis(server.url());
    let limiter = builder.redis_timeout(10 * SECOND).build().expect("a URL");
    served_by_redis(&limiter).await;
    for burst in 1..=2 {
        let all = (0..QUEUED + EXCESS).map(|_| limiter.try_acquire(PLENTY));
        let permits = join_all(all).await.into_iter();
        let degraded = permits.filter(|permit| permit.as_ref().expect("plenty").is_degraded());
        assert_eq!(degraded.count(), EXCESS);
        let overloaded = limiter.fallbacks_by(FailureKind::Overloaded);
        assert_eq!(overloaded, (burst * EXCESS) as u64);
        assert_eq!(limiter.fallbacks(), overloaded);
        assert_eq!(reason(&limiter), None);
    }
    let count = metrics.get("tower_throttle_fallback_total{reason=overloaded}");
    assert_eq!(count, Some(2.0 * EXCESS as f64));
    assert_eq!(metrics.get("tower_throttle_degraded").unwrap_or(0.0), 0.0);
    // One line for all of them, and none about an outage.
    assert_eq!(log.counts(), [1, 0, 0]);
    let line = &log.lines(Level::WARN)[0];
    assert!(line.contains("more requests are queued"), "{line}");
}

/// Timers of a paused clock fire as soon as no task can make progress, which is before most
/// replies.
#[tokio::test]
async fn paused_clock_is_an_outage_with_its_own_log_line() {
    let server = RedisServer::start().await;
    let (log, _guard) = Log::listen();
    for connected in [false, true] {
        let limiter = Limiter::redis(&server.url()).expect("a URL");
        if connected {
            until_recovered(&limiter).await;
        }
        tokio::time::pause();
        // A reply may arrive first if the server is fast.
        let mut tries = 0;
        while reason(&limiter).is_none() && tries < 1_000 {
            limiter.try_acquire(PLENTY).await.expect("plenty");
            tries += 1;
        }
        let reason = reason(&limiter);
        tokio::time::resume();
        assert_eq!(reason, Some(FailureKind::Timeout), "{connected}");
        let warnings = log.lines(Level::WARN);
        let paused = warnings
            .iter()
            .filter(|line| line.contains("time is paused"));
        assert_eq!(paused.count(), 1 + usize::from(connected), "{warnings:?}");
        until_recovered(&limiter).await;
    }
}
