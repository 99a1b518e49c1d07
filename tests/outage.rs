//! Redis is slow, unavailable or misconfigured: memory decides in time, and the decision reports
//! it.
#![cfg(feature = "redis")]

mod support;
#[path = "support/watch.rs"]
mod watch;

use std::{error::Error, time::Duration};

use support::{Proxy, RedisServer};
use tokio::time::Instant;
use tower_throttle::{FailureKind, Fallback, Health, Limiter, Quota, Reason, Scope, Share};
use watch::{reason, until_level, until_recovered};

const SECOND: Duration = Duration::from_secs(1);
const SLOW: Scope = Quota::per_day(1.0).burst(1_000.0).scope("slow");

#[tokio::test(flavor = "multi_thread")]
async fn server_killed_and_restarted() {
    let mut server = RedisServer::start().await;
    let limiter = Limiter::redis(&server.url()).expect("a URL");
    assert!(
        !limiter
            .try_acquire(SLOW)
            .await
            .expect("plenty")
            .is_degraded()
    );
    server.kill9();
    for _ in 0..100 {
        let start = Instant::now();
        let permit = limiter.try_acquire(SLOW).await.expect("from memory");
        assert!(permit.is_degraded());
        assert_eq!(permit.tightest(), None, "no level is known");
        assert!(start.elapsed() < SECOND, "no caller waits for a reconnect");
    }
    assert_eq!(reason(&limiter), Some(FailureKind::Disconnected));
    assert_eq!(limiter.fallbacks(), 100);
    server.restart().await;
    println!("recovered after {:?}", until_recovered(&limiter).await);
    assert_eq!(limiter.health(), Health::Redis);
}

#[tokio::test(flavor = "multi_thread")]
async fn server_unavailable_at_start() {
    let mut server = RedisServer::start().await;
    server.kill9();
    let limiter = Limiter::redis(&server.url()).expect("a URL");
    let spent = Quota::per_day(1.0).scope("spent");
    assert!(
        limiter
            .try_acquire(&spent)
            .await
            .expect("one")
            .is_degraded()
    );
    let rejected = limiter
        .try_acquire(&spent)
        .await
        .expect_err("memory limits");
    assert_eq!(rejected.reason(), Reason::Limited);
    assert!(rejected.is_degraded());
    server.restart().await;
    until_recovered(&limiter).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn frozen_server_costs_one_timeout() {
    let server = RedisServer::start().await;
    let timeout = Duration::from_millis(100);
    let limiter = Limiter::builder()
        .redis(server.url())
        .redis_timeout(timeout)
        .build()
        .expect("a URL");
    assert!(
        !limiter
            .try_acquire(SLOW)
            .await
            .expect("plenty")
            .is_degraded()
    );
    server.freeze();
    let start = Instant::now();
    let permits =
        futures_util::future::join_all((0..200).map(|_| limiter.acquire(SLOW, SECOND))).await;
    let took = start.elapsed();
    assert!(
        permits
            .iter()
            .all(|permit| permit.as_ref().is_ok_and(|p| p.is_degraded()))
    );
    assert!(took >= timeout && took < 5 * timeout, "{took:?}");
    assert_eq!(reason(&limiter), Some(FailureKind::Timeout));
    // Later acquisitions do not wait for the timeout again.
    let start = Instant::now();
    for _ in 0..200 {
        assert!(
            limiter
                .try_acquire(SLOW)
                .await
                .expect("plenty")
                .is_degraded()
        );
    }
    assert!(start.elapsed() < 2 * timeout, "{:?}", start.elapsed());
    server.thaw();
    until_recovered(&limiter).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_open_connection_is_replaced() {
    let server = RedisServer::start().await;
    let proxy = Proxy::start(server.port()).await;
    let limiter = Limiter::redis(&proxy.url()).expect("a URL");
    assert!(
        !limiter
            .try_acquire(SLOW)
            .await
            .expect("plenty")
            .is_degraded()
    );
    proxy.stall();
    assert!(
        limiter
            .try_acquire(SLOW)
            .await
            .expect("plenty")
            .is_degraded()
    );
    proxy.cut();
    proxy.pass();
    until_recovered(&limiter).await;
    proxy.cut_mid_reply();
    assert!(
        limiter
            .try_acquire(SLOW)
            .await
            .expect("plenty")
            .is_degraded()
    );
    until_recovered(&limiter).await;
    proxy.split(3);
    assert!(
        !limiter
            .try_acquire(SLOW)
            .await
            .expect("plenty")
            .is_degraded()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_rejects_writes_has_not_recovered() {
    let server = RedisServer::start().await;
    let limiter = Limiter::redis(&server.url()).expect("a URL");
    assert!(
        !limiter
            .try_acquire(SLOW)
            .await
            .expect("plenty")
            .is_degraded()
    );
    let mut connection = server.connection().await;
    let replica_of = |host: &str, port: &str| {
        let mut command = redis::cmd("REPLICAOF");
        command.arg(host).arg(port);
        command
    };
    let () = replica_of("127.0.0.1", "1")
        .query_async(&mut connection)
        .await
        .expect("demoted");
    assert!(
        limiter
            .try_acquire(SLOW)
            .await
            .expect("plenty")
            .is_degraded()
    );
    assert_eq!(reason(&limiter), Some(FailureKind::Unavailable));
    // The server answers reads all the time, and is probed several times.
    for _ in 0..50 {
        assert_eq!(reason(&limiter), Some(FailureKind::Unavailable));
        tokio::time::sleep(SECOND / 100).await;
    }
    let () = replica_of("NO", "ONE")
        .query_async(&mut connection)
        .await
        .expect("promoted");
    until_recovered(&limiter).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_password_is_reported_until_it_is_corrected() {
    let server = RedisServer::start().await;
    let mut connection = server.connection().await;
    let set_password = |password: &str| {
        let mut command = redis::cmd("CONFIG");
        command.arg("SET").arg("requirepass").arg(password);
        command
    };
    let () = set_password("right")
        .query_async(&mut connection)
        .await
        .expect("set");
    let url = server.url().replace("redis://", "redis://:wrong@");
    let limiter = Limiter::redis(&url).expect("a URL");
    assert!(
        limiter
            .try_acquire(SLOW)
            .await
            .expect("plenty")
            .is_degraded()
    );
    assert_eq!(reason(&limiter), Some(FailureKind::Misconfigured));
    let () = set_password("wrong")
        .query_async(&mut connection)
        .await
        .expect("set");
    until_recovered(&limiter).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fail_open_admits_all_and_fail_closed_none() {
    let mut server = RedisServer::start().await;
    server.kill9();
    let build = |fallback| {
        Limiter::builder()
            .redis(server.url())
            .fallback(fallback)
            .build()
            .expect("a URL")
    };
    let one = Quota::per_day(1.0).scope("one");
    let open = build(Fallback::FailOpen);
    for _ in 0..10 {
        assert!(open.try_acquire(&one).await.expect("open").is_degraded());
    }
    let closed = build(Fallback::FailClosed);
    let rejected = closed.try_acquire(&one).await.expect_err("closed");
    assert_eq!(rejected.reason(), Reason::Unavailable);
    assert_eq!(rejected.retry_after(), None);
    assert!(rejected.source().is_some(), "the source has the reason");
}

#[tokio::test(flavor = "multi_thread")]
async fn process_admits_its_local_share() {
    let mut server = RedisServer::start().await;
    server.kill9();
    let limiter = Limiter::builder()
        .redis(server.url())
        .replicas(4)
        .build()
        .expect("a URL");
    let api = Quota::per_day(1.0).burst(100.0).scope("api");
    let mut admitted = 0;
    while limiter.try_acquire(&api).await.is_ok() {
        admitted += 1;
    }
    assert_eq!(admitted, 25);
    // A cost above the local share puts the bucket into debt, and is not rejected for ever.
    let large = Quota::per_day(1.0).burst(100.0).scope("large").cost(60.0);
    assert!(limiter.try_acquire(&large).await.is_ok());
    assert!(limiter.try_acquire(&large).await.is_err());
    assert_eq!(
        limiter
            .try_acquire(large.cost(101.0))
            .await
            .expect_err("never")
            .reason(),
        Reason::ExceedsCapacity
    );
}

#[tokio::test]
async fn invalid_addresses_are_reported_with_the_expected_form() {
    for url in [
        "",
        "localhost:6379",
        "http://localhost",
        "redis://:pass word@x y",
        "redis://h:99999",
    ] {
        let error = Limiter::redis(url).expect_err(url).to_string();
        assert!(error.contains("redis://host:port"), "{error}");
        assert!(!error.contains("pass word"), "{error}");
    }
    for (builder, word) in [
        (
            Limiter::builder().redis_timeout(Duration::ZERO),
            "redis_timeout",
        ),
        (Limiter::builder().replicas(0), "replicas"),
        (Limiter::builder().max_scopes(0), "max_scopes"),
        (
            Limiter::builder().reserve_for(3_601 * SECOND),
            "reserve_for",
        ),
        (Limiter::builder().instance(""), "instance"),
    ] {
        assert!(builder.build().expect_err(word).to_string().contains(word));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn admissions_from_memory_are_charged_after_the_recovery() {
    for keeps in [true, false] {
        let kept = ["--appendonly", "yes", "--appendfsync", "always"];
        let args = if keeps { &kept[..] } else { &[] };
        let mut server = RedisServer::start_with(args).await;
        let limiter = Limiter::redis(&server.url()).expect("a URL");
        let api = Quota::per_day(1.0).burst(100.0).scope("api");
        for _ in 0..30 {
            limiter.try_acquire(&api).await.expect("within the burst");
        }
        server.kill9();
        for _ in 0..20 {
            let permit = limiter.try_acquire(&api).await.expect("70 are left");
            assert!(permit.is_degraded());
        }
        // This permit was never used.
        limiter.try_acquire(&api).await.expect("left").refund();
        server.restart().await;
        until_recovered(&limiter).await;
        until_level(&limiter, &api, 50.0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn flushed_data_admits_no_burst() {
    let server = RedisServer::start().await;
    let limiter = Limiter::redis(&server.url()).expect("a URL");
    let api = Quota::per_day(1.0).burst(10.0).scope("api");
    while limiter.try_acquire(&api).await.is_ok() {}
    let () = redis::cmd("FLUSHALL")
        .query_async(&mut server.connection().await)
        .await
        .expect("flushed");
    // Past the second for which the level cache is trusted.
    tokio::time::sleep(SECOND + SECOND / 10).await;
    assert!(limiter.try_acquire(&api).await.is_err());
    until_recovered(&limiter).await;
    until_level(&limiter, &api, 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limiters_are_counted_until_they_deregister() {
    let mut server = RedisServer::start().await;
    let limiters: Vec<_> = (0..4)
        .map(|_| Limiter::redis(&server.url()).expect("a URL"))
        .collect();
    for limiter in &limiters {
        let _ = limiter.bucket(&SLOW).level().await;
    }
    let counted = async {
        let connection = server.connection().await;
        let count = |expected: i64| {
            let mut connection = connection.clone();
            async move {
                loop {
                    let count: i64 = redis::cmd("ZCARD")
                        .arg("throttle:v1|{#}limiters")
                        .query_async(&mut connection)
                        .await
                        .expect("a number");
                    if count == expected {
                        return;
                    }
                    tokio::time::sleep(SECOND / 100).await;
                }
            }
        };
        count(4).await;
        limiters[3].deregister().await;
        count(3).await;
    };
    tokio::time::timeout(10 * SECOND, counted)
        .await
        .expect("counted");
    // The largest count of the last minute decides, once the next heartbeat has received it.
    tokio::time::sleep(SECOND + SECOND / 2).await;
    server.kill9();
    let api = Quota::per_day(1.0).burst(100.0).scope("api");
    let mut admitted = 0;
    while limiters[0].try_acquire(&api).await.is_ok() {
        admitted += 1;
    }
    assert!((25..=34).contains(&admitted), "{admitted} of 100");
}

#[tokio::test(flavor = "multi_thread")]
async fn scopes_select_their_fallback() {
    let mut server = RedisServer::start().await;
    server.kill9();
    let limiter = Limiter::redis(&server.url()).expect("a URL");
    let mut changes = limiter.health_changes();
    let one = Quota::per_day(1.0);
    let open = one.scope("open").fallback(Fallback::FailOpen);
    let closed = one.scope("closed").fallback(Fallback::FailClosed);
    let strict = one
        .scope("strict")
        .fallback(Fallback::StrictShare(Share::Auto));
    for _ in 0..3 {
        assert!(
            limiter
                .try_acquire(&open)
                .await
                .expect("open")
                .is_degraded()
        );
    }
    let rejected = limiter.try_acquire(&closed).await.expect_err("closed");
    assert_eq!(rejected.reason(), Reason::Unavailable);
    let rejected = limiter.try_acquire(&strict).await.expect_err("empty");
    assert_eq!(rejected.reason(), Reason::Limited);
    // One fail-closed scope rejects the acquisition, which takes nothing from the others.
    let shared = one.scope("shared");
    for scopes in [[&shared, &closed], [&open, &closed]] {
        let scopes: Vec<_> = scopes.into_iter().cloned().collect();
        let rejected = limiter.try_acquire(scopes).await.expect_err("closed");
        assert_eq!(rejected.reason(), Reason::Unavailable);
    }
    let both = [shared.clone(), open.clone()];
    assert!(limiter.try_acquire(both).await.is_ok());
    assert!(limiter.try_acquire(&shared).await.is_err());
    assert!(changes.has_changed().expect("open"));
    assert!(matches!(
        *changes.borrow_and_update(),
        Health::Degraded { .. }
    ));
    assert!(limiter.fallbacks_by(FailureKind::Disconnected) > 0);
}
