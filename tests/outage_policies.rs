//! The fallback policies without a local bucket: all requests are rejected, or all are admitted;
//! also through the layers.
#![cfg(all(feature = "redis", feature = "http"))]

mod support;
#[path = "support/watch.rs"]
mod watch;

use std::{
    convert::Infallible,
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use http::{Request, Response, StatusCode};
use support::RedisServer;
use tokio::time::Instant;
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_throttle::{Fallback, Limiter, Quota, RateLimitLayer, Reason, Rejected, Scope, Share};
use watch::{PLENTY, until_level, until_recovered};

const SECOND: Duration = Duration::from_secs(1);
const API: Scope = Quota::per_day(1.0).burst(100.0).scope("api");

fn limiter(server: &RedisServer, fallback: Fallback) -> Limiter {
    Limiter::builder()
        .redis(server.url())
        .redis_timeout(SECOND)
        .fallback(fallback)
        .build()
        .expect("a URL")
}

/// The response to one request to a service under this layer.
async fn request(
    limiter: &Limiter,
    max_wait: Duration,
    content_type: &'static str,
) -> Response<()> {
    let inner = service_fn(async |_: Request<()>| Ok::<_, Infallible>(Response::new(())));
    let layer = RateLimitLayer::new(limiter, API)
        .respond_http()
        .max_wait(max_wait);
    let request = Request::post("/").header("content-type", content_type);
    let request = request.body(()).expect("a request");
    let service = ServiceBuilder::new().layer(layer).service(inner);
    service
        .oneshot(request)
        .await
        .unwrap_or_else(|no| match no {})
}

#[tokio::test(flavor = "multi_thread")]
async fn fail_closed_rejects_all_requests_with_a_source() {
    let mut server = RedisServer::start().await;
    let limiter = limiter(&server, Fallback::FailClosed);
    for _ in 0..10 {
        limiter.try_acquire(API).await.expect("Redis decides");
    }
    server.kill9();
    for n in 0..200 {
        let rejected = limiter.acquire(API, (n % 2) * SECOND).await;
        let rejected = rejected.expect_err("closed");
        assert_eq!(rejected.reason(), Reason::Unavailable);
        assert_eq!(rejected.scope(), "api");
        assert_eq!(rejected.retry_after(), None);
        let source = rejected
            .source()
            .expect("the source has the reason")
            .to_string();
        assert!(!source.is_empty());
        assert!(Rejected::find(&rejected).is_some());
    }
    for max_wait in [Duration::ZERO, SECOND] {
        let answer = request(&limiter, max_wait, "text/plain").await;
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(!answer.headers().contains_key("retry-after"));
        let answer = request(&limiter, max_wait, "application/grpc").await;
        // UNAVAILABLE, in gRPC's numbers.
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()["grpc-status"], "14");
    }
    // Nothing was admitted, so nothing is written back.
    server.restart().await;
    let recovered = async {
        while request(&limiter, SECOND, "text/plain").await.status() != StatusCode::OK {
            tokio::time::sleep(SECOND / 100).await;
        }
    };
    let recovered = tokio::time::timeout(10 * SECOND, recovered).await;
    assert!(recovered.is_ok(), "{:?}", limiter.health());
    until_level(&limiter, &API, 89.0).await;
    assert_eq!(limiter.scopes_held(), 0, "memory decided nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn fail_open_admits_all_requests_and_charges_nothing() {
    let mut server = RedisServer::start().await;
    let limiter = limiter(&server, Fallback::FailOpen);
    for _ in 0..10 {
        limiter.try_acquire(API).await.expect("Redis decides");
    }
    server.kill9();
    for n in 0..200 {
        let permit = limiter.acquire(API, (n % 2) * SECOND).await;
        let permit = permit.expect("admitted beyond the capacity");
        assert!(permit.is_degraded());
        assert_eq!(permit.tightest(), None);
        match n % 4 {
            0 => permit.refund(),
            1 => permit.settle(50.0),
            _ => {}
        }
        let answer = request(&limiter, (n % 2) * SECOND, "text/plain").await;
        assert_eq!(answer.status(), StatusCode::OK);
    }
    server.restart().await;
    until_recovered(&limiter).await;
    // Lowered to the last reported level, and nothing that was admitted is charged.
    until_level(&limiter, &API, 90.0).await;
    assert_eq!(limiter.scopes_held(), 0, "memory decided nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn fail_closed_scope_rejects_for_all_scopes() {
    let mut server = RedisServer::start().await;
    let limiter = limiter(&server, Fallback::FailOpen);
    let login = PLENTY.fallback(Fallback::FailClosed);
    limiter.try_acquire(&login).await.expect("Redis decides");
    server.kill9();
    assert_eq!(request(&limiter, SECOND, "text/plain").await.status(), 200);
    let inner = service_fn(async |_: Request<()>| Ok::<_, Infallible>(Response::new(())));
    let service = ServiceBuilder::new()
        .layer(RateLimitLayer::new(&limiter, [API, login]))
        .service(inner);
    let request = Request::new(());
    let error = service.oneshot(request).await.expect_err("one is closed");
    let rejected = Rejected::find(&*error).expect("a `Rejected`");
    assert_eq!(rejected.reason(), Reason::Unavailable);
    assert_eq!(rejected.scope(), "plenty");
    assert!(rejected.source().is_some(), "the source has the reason");
}

/// The tokens of `api` that five limiters admit in the 4 s after Redis is killed, and the exact
/// time. Four of them request all the time; 400 callers of the other one wait for reservations in
/// Redis.
async fn admitted_without_redis(api: &Scope, fallback: Fallback) -> (f64, Duration) {
    let mut server = RedisServer::start().await;
    let limiters: Vec<_> = (0..5).map(|_| limiter(&server, fallback)).collect();
    for limiter in &limiters {
        limiter.try_acquire(&PLENTY).await.expect("Redis decides");
    }
    // Each process counts all others after its next heartbeat.
    until_processes(&server, 5).await;
    tokio::time::sleep(SECOND + SECOND / 2).await;
    while limiters[0].try_acquire(api).await.is_ok() {}
    let admitted = Arc::new(AtomicU32::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..400 {
        let waits = limiters[0].acquire(api, 60 * SECOND);
        let admitted = admitted.clone();
        tasks.spawn(async move {
            if waits.await.is_ok() {
                admitted.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let reserved = async {
        while limiters[1].bucket(api).level().await.unwrap() > -300.0 {
            tokio::time::sleep(SECOND / 100).await;
        }
    };
    let reserved = tokio::time::timeout(10 * SECOND, reserved).await;
    reserved.expect("reservations");
    server.kill9();
    let start = Instant::now();
    let before = admitted.load(Ordering::Relaxed);
    for limiter in &limiters[1..] {
        let (limiter, api, admitted) = (limiter.clone(), api.clone(), admitted.clone());
        tasks.spawn(async move {
            loop {
                if limiter.try_acquire(&api).await.is_ok() {
                    admitted.fetch_add(1, Ordering::Relaxed);
                }
                tokio::time::sleep(SECOND / 500).await;
            }
        });
    }
    tokio::time::sleep(4 * SECOND).await;
    let since = admitted.load(Ordering::Relaxed) - before;
    (f64::from(since), start.elapsed())
}

/// Waits until the heartbeats of `expected` processes are in Redis.
async fn until_processes(server: &RedisServer, expected: i64) {
    let mut connection = server.connection().await;
    let counted = async {
        loop {
            let mut command = redis::cmd("ZCARD");
            let count = command.arg("throttle:v1|{#}limiters");
            let count: i64 = count.query_async(&mut connection).await.expect("a number");
            if count == expected {
                return;
            }
            tokio::time::sleep(SECOND / 100).await;
        }
    };
    let counted = tokio::time::timeout(10 * SECOND, counted).await;
    counted.expect("all are counted");
}

#[tokio::test(flavor = "multi_thread")]
async fn reservations_made_before_an_outage_are_part_of_the_local_share() {
    let api = Quota::per_second(20.0).scope("waited-for");
    for fallback in [
        Fallback::StrictShare(Share::Auto),
        Fallback::LocalShare(Share::Auto),
    ] {
        let (admitted, took) = admitted_without_redis(&api, fallback).await;
        // The last reported level of four of the processes was too high.
        let unknown = match fallback {
            Fallback::StrictShare(_) => 0.0,
            _ => 4.0 / 5.0 * 20.0,
        };
        // Reservations due at the moment of the kill, and one that is up to 100 ms late.
        let allowed = 20.0 * took.as_secs_f64() + unknown + 3.0;
        println!("{fallback:?}: {admitted} of {allowed}");
        assert!(admitted <= allowed, "{fallback:?}: {admitted} of {allowed}");
        assert!(
            admitted >= 0.6 * 20.0 * took.as_secs_f64(),
            "{fallback:?}: {admitted}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strict_shares_add_up_to_the_full_quota_at_most() {
    let mut server = RedisServer::start().await;
    let build = |fallback| {
        let builder = Limiter::builder().redis(server.url()).replicas(5);
        builder
            .redis_timeout(SECOND)
            .fallback(fallback)
            .build()
            .expect("a URL")
    };
    let strict = build(Fallback::StrictShare(Share::Auto));
    let shared = build(Fallback::LocalShare(Share::Auto));
    // A fifth of this capacity is less than a token.
    let small = Quota::per_second(50.0).burst(2.0).scope("small");
    let large = Quota::per_second(50.0)
        .burst(50.0)
        .scope("large")
        .cost(30.0);
    for limiter in [&strict, &shared] {
        limiter.try_acquire(&PLENTY).await.expect("Redis decides");
    }
    server.kill9();
    for scope in [&small, &large] {
        let rejected = strict
            .acquire(scope, SECOND)
            .await
            .expect_err("over the share");
        assert_eq!(rejected.reason(), Reason::Unavailable);
        assert!(rejected.source().is_some(), "the source has the reason");
        assert!(
            shared.acquire(scope, 10 * SECOND).await.is_ok(),
            "into debt"
        );
    }
    let fits = large.clone().cost(1.0);
    assert!(strict.acquire(&fits, SECOND).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn waiters_cancelled_during_an_outage_do_not_lower_the_local_share() {
    let mut server = RedisServer::start().await;
    let limiter = limiter(&server, Fallback::LocalShare(Share::Auto));
    let api = Quota::per_second(1.0).scope("api");
    limiter.try_acquire(&api).await.expect("full");
    let mut waiters = Vec::new();
    for _ in 0..30 {
        let mut waiter = Box::pin(limiter.acquire(&api, 60 * SECOND));
        assert!(futures_util::poll!(&mut waiter).is_pending());
        waiters.push(waiter);
    }
    let reserved = async {
        while limiter.bucket(&api).level().await.unwrap() > -25.0 {
            tokio::time::sleep(SECOND / 100).await;
        }
    };
    let reserved = tokio::time::timeout(10 * SECOND, reserved).await;
    reserved.expect("reservations");
    server.kill9();
    let noticed = async {
        while !limiter
            .try_acquire(PLENTY)
            .await
            .expect("plenty")
            .is_degraded()
        {
            tokio::time::sleep(SECOND / 100).await;
        }
    };
    let noticed = tokio::time::timeout(10 * SECOND, noticed).await;
    noticed.expect("the outage is noticed");
    drop(waiters);
    let permit = limiter.acquire(&api, 10 * SECOND).await;
    assert!(permit.expect("there are no other waiters").is_degraded());
}
