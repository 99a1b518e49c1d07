//! What an outage leaves in the log and in the metrics: a line for each transition, one for each
//! kind of misconfiguration that says what to do, and none for each request.
//!
//! On runtimes of one thread, so that each test hears itself alone.
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
use watch::{PLENTY, reason, until_back};

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

/// Thousands of acquisitions, while the link is probed several times.
async fn thousands(limiter: &Limiter) {
    for _ in 0..60 {
        for permit in join_all((0..50).map(|_| limiter.try_acquire(PLENTY))).await {
            assert!(permit.expect("plenty").is_degraded());
        }
        tokio::time::sleep(SECOND / 100).await;
    }
}

#[tokio::test]
async fn one_line_down_and_one_up() {
    let mut server = RedisServer::start().await;
    let (log, _guard) = Log::listen();
    let limiter = limiter(server.url());
    for outage in 1..=2 {
        served_by_redis(&limiter).await;
        server.kill9();
        thousands(&limiter).await;
        assert_eq!(log.counts(), [outage, outage - 1, 0]);
        server.restart().await;
        until_back(&limiter).await;
        assert_eq!(log.counts(), [outage, outage, 0]);
    }
    assert_eq!(log.len(), 4);
    let down = &log.lines(Level::WARN)[0];
    assert!(down.contains("reason=disconnected"), "{down}");
    let up = &log.lines(Level::INFO)[0];
    assert!(up.contains("outage_seconds="), "{up}");
}

/// One of two limiters is cut off: the other one leaves room for it, for a while, and says so.
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
    // Of limiters that go, nothing stays in the gauge.
    drop((limiter, other));
    assert_eq!(gauge(), Some(0.0));
}

/// Where memory decides from the first call on, or from when `server` is spoilt.
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
async fn a_wrong_password() {
    let server = RedisServer::start().await;
    server.acl_set_user("u", &["on", ">q", "~*", "+@all"]).await;
    let (log, _guard) = Log::listen();
    let limiter = limiter(as_user(&server));
    misconfigured(&limiter, &log, "password is wrong").await;
    server.acl_set_user("u", &[">p"]).await;
    until_back(&limiter).await;
    assert_eq!(log.counts(), [1, 1, 1]);
    // What was mended and is broken again is news.
    server.acl_set_user("u", &["<p"]).await;
    server.client_kill_all().await;
    // Not at once: it was away a moment ago, and is tried less often.
    let start = tokio::time::Instant::now();
    while log.lines(Level::ERROR).len() < 2 && start.elapsed() < 10 * SECOND {
        thousands(&limiter).await;
    }
    assert_eq!(log.counts(), [2, 1, 2]);
}

#[tokio::test]
async fn a_password_that_is_missing() {
    let server = RedisServer::start().await;
    server.config_set("requirepass", "secret").await;
    let (log, _guard) = Log::listen();
    let limiter = limiter(server.url());
    misconfigured(&limiter, &log, "write redis://user:password@host:port").await;
}

#[tokio::test]
async fn no_right_to_run_scripts() {
    let server = RedisServer::start().await;
    let rules = ["on", ">p", "~*", "+@all", "-evalsha"];
    server.acl_set_user("u", &rules).await;
    let (log, _guard) = Log::listen();
    let limiter = limiter(as_user(&server));
    misconfigured(&limiter, &log, "+evalsha +eval").await;
    server.acl_set_user("u", &["+evalsha"]).await;
    until_back(&limiter).await;
    assert_eq!(log.counts(), [1, 1, 1]);
}

#[tokio::test]
async fn no_right_to_write() {
    let server = RedisServer::start().await;
    let rules = ["on", ">p", "~*", "+@all"];
    server.acl_set_user("u", &rules).await;
    let (log, _guard) = Log::listen();
    let limiter = limiter(as_user(&server));
    served_by_redis(&limiter).await;
    // From inside the script, as a plain ERR.
    server.acl_set_user("u", &["-set"]).await;
    misconfigured(&limiter, &log, "+get +mget +set").await;
}

#[tokio::test]
async fn no_right_to_the_keys() {
    let server = RedisServer::start().await;
    let rules = ["on", ">p", "~other:*", "+@all"];
    server.acl_set_user("u", &rules).await;
    let (log, _guard) = Log::listen();
    let limiter = limiter(as_user(&server));
    misconfigured(&limiter, &log, "allow ~throttle:v1|*").await;
}

#[tokio::test]
async fn no_such_database() {
    let server = RedisServer::start().await;
    let (log, _guard) = Log::listen();
    let limiter = limiter(format!("{}99", server.url()));
    misconfigured(&limiter, &log, "no such database").await;
}

#[tokio::test]
async fn a_command_that_has_another_name() {
    for command in ["MGET", "EVALSHA"] {
        let server = RedisServer::start_with(&["--rename-command", command, "other"]).await;
        let (log, _guard) = Log::listen();
        let limiter = limiter(server.url());
        misconfigured(&limiter, &log, "none of the commands renamed").await;
    }
}

#[tokio::test]
async fn no_right_to_beat() {
    let server = RedisServer::start().await;
    let rules = ["on", ">p", "~*", "+@all", "-zadd"];
    server.acl_set_user("u", &rules).await;
    let (log, _guard) = Log::listen();
    let limiter = limiter(as_user(&server));
    let start = tokio::time::Instant::now();
    // More than one beat.
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

/// Panics when it wakes, once it is told to.
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

/// Waits behind somebody, with a waker that panics in the background task that wakes it; then
/// waits with another, which must not hang.
async fn woken_badly(limiter: &Limiter, asleep: bool) {
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
    if asleep {
        // It sleeps once it is woken for the first time.
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
    other.await.expect("nobody hangs").expect("its turn");
    assert!(bad.woken.load(Ordering::Relaxed) > before);
}

#[tokio::test]
async fn a_background_task_that_panics_is_an_outage_with_a_log_line() {
    // In the task that sends requests, and in the one that wakes waiters.
    let servers = [RedisServer::start().await, RedisServer::start().await];
    for (server, asleep) in servers.iter().zip([false, true]) {
        let (log, _guard) = Log::listen();
        let limiter = limiter(server.url());
        let changes = limiter.health_changes();
        served_by_redis(&limiter).await;
        woken_badly(&limiter, asleep).await;
        assert!(changes.has_changed().expect("open"), "asleep: {asleep}");
        let warnings = log.lines(Level::WARN);
        assert!(warnings[0].contains("a bad waker"), "{warnings:?}");
        let errors = log.lines(Level::ERROR);
        assert!(errors[0].contains("a bad waker"), "{errors:?}");
        until_back(&limiter).await;
    }
    // Memory goes on deciding.
    let (log, _guard) = Log::listen();
    woken_badly(&Limiter::in_memory(), true).await;
    let errors = log.lines(Level::ERROR);
    assert!(errors[0].contains("a bad waker"), "{errors:?}");
    assert_eq!(log.counts(), [0, 0, 1]);
}

#[tokio::test]
async fn a_gauge_and_counters_by_reason() {
    const DEGRADED: &str = "tower_throttle_degraded";
    let mut server = RedisServer::start().await;
    let (_log, _listening) = Log::listen();
    let told = Metrics::default();
    let _guard = metrics::set_default_local_recorder(&told);
    let limiter = limiter(server.url());
    served_by_redis(&limiter).await;
    assert_ne!(told.get(DEGRADED), Some(1.0));
    server.kill9();
    thousands(&limiter).await;
    assert_eq!(told.get(DEGRADED), Some(1.0));
    server.restart().await;
    until_back(&limiter).await;
    assert_eq!(told.get(DEGRADED), Some(0.0));
    server.fill_memory().await;
    thousands(&limiter).await;
    assert_eq!(told.get(DEGRADED), Some(1.0));
    for kind in [
        FailureKind::Disconnected,
        FailureKind::Unavailable,
        FailureKind::DataLost,
        FailureKind::Timeout,
    ] {
        let name = format!("tower_throttle_fallback_total{{reason={kind}}}");
        let counted = told.get(&name).unwrap_or_default();
        println!("{name} {counted}");
        assert_eq!(counted, limiter.fallbacks_by(kind) as f64, "{kind}");
    }
    assert!(limiter.fallbacks_by(FailureKind::Disconnected) >= 3_000);
    assert!(limiter.fallbacks_by(FailureKind::Unavailable) >= 3_000);
    // Names are labels; keys are not: whoever sends them would decide how many series there are.
    let _ = limiter.try_acquire(PLENTY.key("customer-17")).await;
    let names: Vec<_> = told.all().into_keys().collect();
    let any = |part: &str| names.iter().any(|name| name.contains(part));
    assert!(any("plenty") && !any("customer-17"), "{names:?}");
}

#[tokio::test]
async fn no_right_to_beat_after_a_cold_start() {
    let mut server = RedisServer::start().await;
    let url = as_user(&server);
    server.kill9();
    let (log, _guard) = Log::listen();
    let limiter = limiter(url);
    thousands(&limiter).await;
    server.restart().await;
    let rules = ["on", ">p", "~*", "+@all", "-zadd"];
    server.acl_set_user("u", &rules).await;
    until_back(&limiter).await;
    let start = tokio::time::Instant::now();
    while start.elapsed() < 5 * SECOND / 2 {
        tokio::time::sleep(SECOND / 100).await;
    }
    let rights: Vec<_> = log.lines(Level::ERROR);
    let rights = rights.iter().filter(|line| line.contains("+zadd")).count();
    assert_eq!(rights, 1, "{:?}", log.lines(Level::ERROR));
}

/// More requests at once than are queued: Redis decides all but those in excess.
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
    // Not a line for each of them, and none that tells of an outage.
    assert_eq!(log.counts(), [1, 0, 0]);
    let line = &log.lines(Level::WARN)[0];
    assert!(line.contains("more requests are queued"), "{line}");
}

/// Timers of a paused clock end as soon as nothing else can go on, and so before most replies.
#[tokio::test]
async fn a_paused_clock_is_an_outage_whose_log_line_says_so() {
    let server = RedisServer::start().await;
    let (log, _guard) = Log::listen();
    for connected in [false, true] {
        let limiter = Limiter::redis(&server.url()).expect("a URL");
        if connected {
            until_back(&limiter).await;
        }
        tokio::time::pause();
        // A reply may win, where the server is quick.
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
        until_back(&limiter).await;
    }
}
