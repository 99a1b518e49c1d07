//! Where memory shall not stand in: everybody is refused, or everybody passes, also through the
//! layers.
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
use watch::{PLENTY, until_back, until_level};

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

/// The answer to one request to a service under this layer.
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
async fn closed_refuses_everybody_and_says_why() {
    let mut server = RedisServer::start().await;
    let limiter = limiter(&server, Fallback::FailClosed);
    for _ in 0..10 {
        limiter.try_acquire(API).await.expect("Redis decides");
    }
    server.kill9();
    for n in 0..200 {
        let refused = limiter.acquire(API, (n % 2) * SECOND).await;
        let refused = refused.expect_err("closed");
        assert_eq!(refused.reason(), Reason::Unavailable);
        assert_eq!(refused.scope(), "api");
        assert_eq!(refused.retry_after(), None);
        let source = refused.source().expect("it says why").to_string();
        assert!(!source.is_empty());
        assert!(Rejected::find(&refused).is_some());
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
    // Nobody was admitted: nothing is to be paid.
    server.restart().await;
    let back = async {
        while request(&limiter, SECOND, "text/plain").await.status() != StatusCode::OK {
            tokio::time::sleep(SECOND / 100).await;
        }
    };
    let back = tokio::time::timeout(10 * SECOND, back).await;
    assert!(back.is_ok(), "{:?}", limiter.health());
    until_level(&limiter, &API, 89.0).await;
    assert_eq!(limiter.scopes_held(), 0, "memory has had no part in it");
}

#[tokio::test(flavor = "multi_thread")]
async fn open_lets_everybody_pass_and_pays_nothing() {
    let mut server = RedisServer::start().await;
    let limiter = limiter(&server, Fallback::FailOpen);
    for _ in 0..10 {
        limiter.try_acquire(API).await.expect("Redis decides");
    }
    server.kill9();
    for n in 0..200 {
        let permit = limiter.acquire(API, (n % 2) * SECOND).await;
        let permit = permit.expect("twice as many as there are");
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
    until_back(&limiter).await;
    // Lowered to what Redis had told, and charged nothing of what passed.
    until_level(&limiter, &API, 90.0).await;
    assert_eq!(limiter.scopes_held(), 0, "memory has had no part in it");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_closed_scope_among_others() {
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
    let refused = Rejected::find(&*error).expect("a refusal of ours");
    assert_eq!(refused.reason(), Reason::Unavailable);
    assert_eq!(refused.scope(), "plenty");
    assert!(refused.source().is_some(), "it says why");
}

/// What a limiter in one of five processes admits of `api` after Redis is gone: four of them ask
/// all the time, and 400 callers of the fifth wait with reservations that Redis made.
async fn admitted_without_redis(api: &Scope, fallback: Fallback) -> (f64, Duration) {
    let mut server = RedisServer::start().await;
    let limiters: Vec<_> = (0..5).map(|_| limiter(&server, fallback)).collect();
    for limiter in &limiters {
        limiter.try_acquire(&PLENTY).await.expect("Redis decides");
    }
    // Each knows of all others by its next beat.
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

/// Waits until the heartbeats of so many processes are there.
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
async fn reservations_made_before_an_outage_are_part_of_the_share() {
    let api = Quota::per_second(20.0).scope("waited-for");
    for fallback in [
        Fallback::StrictShare(Share::Auto),
        Fallback::LocalShare(Share::Auto),
    ] {
        let (admitted, took) = admitted_without_redis(&api, fallback).await;
        // Of four processes that did not know how low the bucket was.
        let unknown = match fallback {
            Fallback::StrictShare(_) => 0.0,
            _ => 4.0 / 5.0 * 20.0,
        };
        // What was due in the moment of the kill, and a turn that is up to 100 ms late.
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
async fn strict_shares_are_never_more_than_the_whole() {
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
    // A fifth of it is less than a token.
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
        assert!(rejected.source().is_some(), "it says why");
        assert!(
            shared.acquire(scope, 10 * SECOND).await.is_ok(),
            "into debt"
        );
    }
    let fits = large.clone().cost(1.0);
    assert!(strict.acquire(&fits, SECOND).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn waiters_that_are_cancelled_in_an_outage_do_not_lower_the_share() {
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
    assert!(permit.expect("nobody else waits").is_degraded());
}
