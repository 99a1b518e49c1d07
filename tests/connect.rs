//! Connecting: slow networks, least rights, and TLS without another user of rustls.
#![cfg(feature = "redis")]

#[cfg(all(feature = "tracing", feature = "metrics"))]
#[path = "support/listen.rs"]
mod listen;
mod support;
#[path = "support/watch.rs"]
mod watch;

use std::time::Duration;

use support::{Proxy, RedisServer};
use tokio::time::{Instant, sleep};
use tower_throttle::{FailureKind, Health, Limiter};
use watch::{PLENTY, reason, until_recovered};

const SECOND: Duration = Duration::from_secs(1);

/// The delay in each direction of a slow network.
const FAR: Duration = Duration::from_millis(210);

/// Acquires until the health is degraded, for at most thirty seconds.
async fn until_degraded(limiter: &Limiter) -> FailureKind {
    let start = Instant::now();
    loop {
        let permit = limiter.try_acquire(PLENTY).await.expect("plenty");
        if let Some(reason) = reason(limiter) {
            return reason;
        }
        assert!(
            start.elapsed() < 30 * SECOND,
            "{:?}, though a permit says is_degraded: {}",
            limiter.health(),
            permit.is_degraded()
        );
        sleep(SECOND / 100).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn round_trip_of_210_ms_connects_with_the_default_timeout() {
    let server = RedisServer::start().await;
    let proxy = Proxy::start(server.port()).await;
    proxy.delay(FAR);
    for url in [proxy.url(), format!("{}?protocol=resp3", proxy.url())] {
        let limiter = Limiter::builder()
            .redis(url)
            .redis_timeout(3 * SECOND)
            .build()
            .expect("a URL");
        until_recovered(&limiter).await;
        assert_eq!(limiter.health(), Health::Redis);
    }
}

/// The server has no script yet, so that the first run of each takes two round trips: longer than a
/// call may take, but no reason to reconnect.
#[tokio::test(flavor = "multi_thread")]
async fn loading_a_script_may_take_longer_than_a_call() {
    let server = RedisServer::start().await;
    let proxy = Proxy::start(server.port()).await;
    proxy.delay(FAR);
    let limiter = Limiter::builder()
        .redis(proxy.url())
        .redis_timeout(4 * FAR - SECOND / 20)
        .connect_timeout(10 * SECOND)
        .build()
        .expect("a URL");
    until_recovered(&limiter).await;
    assert_eq!(proxy.accepted(), 1, "one connection is enough");
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_timeout_bounds_connecting_and_delays_no_acquisition() {
    let server = RedisServer::start().await;
    let proxy = Proxy::start(server.port()).await;
    proxy.stall();
    let limiter = |connect_timeout| {
        let builder = Limiter::builder().redis(proxy.url()).redis_timeout(SECOND);
        let builder = builder.connect_timeout(connect_timeout);
        builder.build().expect("a URL")
    };
    let short = limiter(SECOND / 20);
    assert_eq!(until_degraded(&short).await, FailureKind::Timeout);
    // Attempts continue: each ends by its own timeout.
    let start = Instant::now();
    while proxy.accepted() < 3 {
        assert!(start.elapsed() < 30 * SECOND, "{}", proxy.accepted());
        sleep(SECOND / 100).await;
    }
    drop(short);
    let accepted = proxy.accepted();
    let long = limiter(600 * SECOND);
    assert_eq!(until_degraded(&long).await, FailureKind::Timeout);
    // While the one attempt runs, no acquisition waits `redis_timeout` for it.
    let start = Instant::now();
    for _ in 0..100 {
        let permit = long.try_acquire(PLENTY).await.expect("plenty");
        assert!(permit.is_degraded());
    }
    assert!(start.elapsed() < 50 * SECOND, "{:?}", start.elapsed());
    assert!(proxy.accepted() <= accepted + 2, "{}", proxy.accepted());
    proxy.pass();
    until_recovered(&long).await;
}

#[test]
fn connect_timeout_of_zero_is_an_error() {
    let error = Limiter::builder()
        .connect_timeout(Duration::ZERO)
        .build()
        .expect_err("zero");
    assert!(error.to_string().contains("connect_timeout"), "{error}");
}

/// In these tests no other code has installed a cryptography provider.
#[cfg(feature = "tls")]
#[tokio::test(flavor = "multi_thread")]
async fn tls_to_a_plain_port_is_degraded() {
    let server = RedisServer::start().await;
    let url = server.url().replace("redis://", "rediss://");
    let limiter = Limiter::builder()
        .redis(url)
        .redis_timeout(SECOND)
        .build()
        .expect("a URL");
    // The server waits for the end of a line, and the client for a reply.
    assert_eq!(until_degraded(&limiter).await, FailureKind::Timeout);
}

/// The permissions that `docs/redis.md` names.
#[cfg(all(feature = "tracing", feature = "metrics"))]
mod rights {
    use listen::Log;
    use tower_throttle::{Quota, Scope};
    use tracing::Level;

    use super::*;

    const PAGE: &str = include_str!("../docs/redis.md");
    const API: Scope = Quota::per_second(50.0).burst(20.0).scope("api");

    /// Name, password and rules of the line that the page shows.
    fn user() -> (&'static str, &'static str, Vec<&'static str>) {
        let line = PAGE
            .lines()
            .find_map(|line| line.strip_prefix("ACL SETUSER "))
            .expect("the page shows the permissions");
        let mut words = line.split_whitespace();
        let name = words.next().expect("a name");
        let rules: Vec<_> = words.collect();
        let password = rules.iter().find_map(|rule| rule.strip_prefix('>'));
        (name, password.expect("a password"), rules)
    }

    fn url(server: &RedisServer, rest: &str) -> String {
        let (name, password, _) = user();
        let user = format!("redis://{name}:{password}@");
        format!("{}{rest}", server.url().replace("redis://", &user))
    }

    fn limiter(url: String) -> Limiter {
        let builder = Limiter::builder().redis(url).redis_timeout(3 * SECOND);
        builder.lease(8.0).build().expect("a URL")
    }

    /// The denied commands, except setting the library name, which is not needed to connect.
    async fn denials(server: &RedisServer) -> Vec<redis::Value> {
        let log: Vec<redis::Value> = server.command(&["ACL", "LOG"]).await;
        let is_name = |entry: &redis::Value| format!("{entry:?}").contains("setinfo");
        log.into_iter().filter(|entry| !is_name(entry)).collect()
    }

    #[tokio::test]
    async fn documented_permissions_suffice_with_and_without_a_database() {
        for rest in ["", "2", "?protocol=resp3", "2?protocol=resp3"] {
            let server = RedisServer::start().await;
            let (name, _, rules) = user();
            server.acl_set_user(name, &rules).await;
            let (log, _guard) = Log::listen();
            let limiter = limiter(url(&server, rest));
            // All commands of a limiter, during more than one heartbeat.
            let start = Instant::now();
            while start.elapsed() < 5 * SECOND / 2 {
                let permit = limiter.acquire(API, SECOND).await.expect("in time");
                assert!(!permit.is_degraded(), "{rest}: {:?}", limiter.health());
                permit.settle(2.0);
                let both = [API, PLENTY];
                drop(limiter.acquire(both, SECOND).await.expect("in time"));
            }
            limiter.bucket(&API).adjust(-3.0);
            limiter.bucket(&API).cap_level(1.0).await.unwrap();
            limiter.bucket(&API).pause(SECOND / 10);
            let _ = limiter.bucket(&API).level().await;
            // To the class of a longer period, and back.
            limiter.bucket(&API).pause(100 * SECOND);
            let _ = limiter.bucket(&API).level().await;
            limiter.bucket(&API).reset().await.unwrap();
            limiter.deregister().await;
            assert_eq!(limiter.fallbacks(), 0, "{rest}");
            assert_eq!(log.counts(), [0, 0, 0], "{rest}");
            assert_eq!(denials(&server).await, [], "{rest}");
        }
    }

    /// One right after the other is removed.
    #[tokio::test]
    async fn advice_names_the_missing_right() {
        let (name, _, rules) = user();
        let rights = rules.iter().filter_map(|rule| rule.strip_prefix('+'));
        for right in rights {
            let server = RedisServer::start().await;
            server.acl_set_user(name, &rules).await;
            server.acl_set_user(name, &[&format!("-{right}")]).await;
            let (log, _guard) = Log::listen();
            let limiter = limiter(url(&server, "2"));
            let start = Instant::now();
            let advised = loop {
                let _ = limiter.try_acquire(PLENTY).await;
                // It moves to another class and back, and the heartbeat reports that buckets are
                // paused.
                limiter.bucket(&API).pause(100 * SECOND);
                let _ = limiter.bucket(&API).level().await;
                let _ = limiter.bucket(&API).reset().await;
                if right == "zrem" {
                    limiter.deregister().await;
                }
                if let Some(line) = log.lines(Level::ERROR).pop() {
                    break line;
                }
                assert!(start.elapsed() < 30 * SECOND, "{right}: nothing was logged");
                sleep(SECOND / 100).await;
            };
            assert!(advised.contains(&format!("+{right}")), "{right}: {advised}");
            // No advice about anything else.
            for other in ["database does not exist", "password"] {
                assert!(!advised.contains(other), "{right}: {advised}");
            }
            if right == "select" {
                assert!(!advised.contains("+evalsha"), "{right}: {advised}");
            }
        }
    }

    #[tokio::test]
    async fn advice_names_the_keys_where_those_are_not_permitted() {
        let server = RedisServer::start().await;
        let (name, _, rules) = user();
        server.acl_set_user(name, &rules).await;
        server.acl_set_user(name, &["resetkeys", "~other:*"]).await;
        let (log, _guard) = Log::listen();
        let limiter = limiter(url(&server, ""));
        assert_eq!(until_degraded(&limiter).await, FailureKind::Misconfigured);
        let errors = log.lines(Level::ERROR);
        assert!(errors[0].contains("key prefix"), "{errors:?}");
        assert!(!errors[0].contains("+evalsha"), "{errors:?}");
    }
}
