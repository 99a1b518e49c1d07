//! Where memory shall not stand in: everybody is refused, or everybody passes, also through the
//! layers.
#![cfg(all(feature = "redis", feature = "http"))]

mod support;
#[path = "support/watch.rs"]
mod watch;

use std::{convert::Infallible, error::Error, time::Duration};

use http::{Request, Response, StatusCode};
use support::RedisServer;
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_throttle::{Fallback, Limiter, Quota, RateLimitLayer, Reason, Rejected, Scope};
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
    let limiter = limiter(&server, Fallback::Closed);
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
    let limiter = limiter(&server, Fallback::Open);
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
    let limiter = limiter(&server, Fallback::Open);
    let login = PLENTY.fallback(Fallback::Closed);
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
