//! A layer that learns from its upstream, and costs that are known only afterwards; in memory.
#![cfg(feature = "learn")]

use std::{convert::Infallible, time::Duration};

use http::{Request, Response};
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
use tower_throttle::{Limiter, PermitHandle, Quota, RateLimitLayer, Scope, upstream::Upstream};

const SECOND: Duration = Duration::from_secs(1);
const RPM: Scope = Quota::per_hour(60.0).scope("rpm");
const TPM: Scope = Quota::per_hour(1_000.0).scope("tpm");

/// Sends one request through a layer, to an upstream that answers so.
async fn learn(
    limiter: &Limiter,
    upstream: Upstream,
    status: u16,
    fields: &'static [(&str, &str)],
) {
    let mut service = ServiceBuilder::new()
        .layer(
            RateLimitLayer::new(limiter, [RPM, TPM.cost(100.0)])
                .respond_http()
                .learn(upstream),
        )
        .service(service_fn(async |_: Request<()>| {
            let mut response = Response::builder().status(status);
            for (name, value) in fields {
                response = response.header(*name, *value);
            }
            Ok::<_, Infallible>(response.body(String::new()).expect("a response"))
        }));
    let response = service.ready().await.expect("ready").call(Request::new(()));
    assert_eq!(response.await.expect("infallible").status(), status);
}

async fn levels(limiter: &Limiter) -> (f64, f64) {
    let level = async |scope| limiter.bucket(&scope).level().await.unwrap().floor();
    (level(RPM).await, level(TPM).await)
}

#[tokio::test(start_paused = true)]
async fn remaining_lowers_a_level_and_never_raises_it() {
    let limiter = Limiter::in_memory();
    let fields = &[
        ("x-ratelimit-remaining-requests", "40"),
        ("x-ratelimit-remaining-tokens", "5000"),
    ];
    learn(&limiter, Upstream::openai(), 200, fields).await;
    assert_eq!(levels(&limiter).await, (40.0, 900.0));
    let fields = &[
        ("x-ratelimit-remaining-requests", "59"),
        ("x-ratelimit-remaining-tokens", "12"),
    ];
    learn(&limiter, Upstream::openai(), 200, fields).await;
    assert_eq!(levels(&limiter).await, (39.0, 12.0));
}

#[tokio::test(start_paused = true)]
async fn rejection_empties_or_pauses_the_scopes_of_the_profile() {
    let limiter = Limiter::in_memory();
    learn(&limiter, Upstream::openai(), 429, &[]).await;
    assert_eq!(levels(&limiter).await, (0.0, 0.0));

    let limiter = Limiter::in_memory();
    let upstream = Upstream::retry_after().jitter(0.0);
    learn(&limiter, upstream, 429, &[("retry-after", "7")]).await;
    let refused = limiter.try_acquire(RPM).await.expect_err("held back");
    assert!(refused.retry_after() >= Some(7 * SECOND), "{refused:?}");
    // It has a place for the first scope alone.
    assert!(limiter.try_acquire(TPM).await.is_ok());

    let limiter = Limiter::in_memory();
    let upstream = Upstream::openai().cap(20 * SECOND);
    learn(&limiter, upstream, 429, &[("retry-after", "3600")]).await;
    for scope in [RPM, TPM] {
        let refused = limiter.try_acquire(&scope).await.expect_err("held back");
        let one = Duration::from_secs_f64(1.0 / scope.quota().rate());
        let hold = refused.retry_after().expect("some time") - one;
        // Cut to the cap, which the jitter does not pass.
        let least = 20 * SECOND - SECOND / 1_000;
        assert!(
            (least..=20 * SECOND + SECOND / 1_000).contains(&hold),
            "{hold:?}"
        );
    }
}

/// A cached answer in draft 08's own words, GitLab's time of day, and Azure's milliseconds.
#[tokio::test(start_paused = true)]
async fn responses_of_other_providers_pause() {
    for (upstream, status, fields) in [
        (
            Upstream::ietf(),
            200,
            &[("ratelimit", "default;r=0;t=30"), ("age", "20")][..],
        ),
        (
            Upstream::ietf(),
            429,
            &[
                ("date", "Tue, 24 Nov 2026 17:00:00 GMT"),
                ("ratelimit-remaining", "0"),
                ("ratelimit-reset", "1795539610"),
            ],
        ),
        (Upstream::openai(), 429, &[("x-ms-retry-after-ms", "10000")]),
        (
            Upstream::openai(),
            429,
            &[("x-rate-limit-reset-tokens", "10")],
        ),
    ] {
        let limiter = Limiter::in_memory();
        learn(&limiter, upstream.jitter(0.0), status, fields).await;
        let refused = limiter.try_acquire(RPM).await.expect_err("held back");
        // The bucket is empty then, and refills by one token a minute.
        let held = refused.retry_after().expect("some time") - 60 * SECOND;
        let near = 10 * SECOND - SECOND / 1_000..=10 * SECOND + SECOND / 1_000;
        assert!(near.contains(&held), "{fields:?}: {held:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn own_rejection_is_not_learned_from() {
    let limiter = Limiter::in_memory();
    let mut service = ServiceBuilder::new()
        .layer(
            RateLimitLayer::new(&limiter, RPM.cost(60.0))
                .respond_http()
                .learn(Upstream::retry_after()),
        )
        .service(service_fn(async |_: Request<()>| {
            Ok::<_, Infallible>(Response::new(String::new()))
        }));
    for status in [200, 429] {
        let response = service.ready().await.expect("ready").call(Request::new(()));
        assert_eq!(response.await.expect("infallible").status(), status);
    }
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!(levels(&limiter).await.0, 1.0);
}

/// A request says what it may cost; its stream settles when it ends, or is dropped.
#[tokio::test(start_paused = true)]
async fn estimate_is_kept_until_it_is_settled() {
    let limiter = Limiter::in_memory();
    let service = ServiceBuilder::new()
        .layer(
            RateLimitLayer::new(&limiter, |req: &Request<f64>| [RPM, TPM.cost(*req.body())])
                .respond_http()
                .expose_permit(),
        )
        .service(service_fn(async |req: Request<f64>| {
            let handle = req.extensions().get::<PermitHandle>().cloned();
            // The body is the handle: whoever streams it settles.
            Ok::<_, Infallible>(Response::new(handle))
        }));
    let send = async |cost: f64| {
        let response = service.clone().oneshot(Request::new(cost)).await;
        response.expect("infallible").into_body()
    };
    // Dropped without a word.
    drop(send(100.0).await);
    assert_eq!(levels(&limiter).await, (59.0, 900.0));
    // Ended below the estimate, and above it; of requests there is nothing to correct.
    send(100.0).await.expect("a permit").settle(30.0);
    assert_eq!(levels(&limiter).await, (58.0, 870.0));
    send(100.0).await.expect("a permit").settle(250.0);
    assert_eq!(levels(&limiter).await, (57.0, 620.0));
    // A better number replaces the last one, and none that is no number.
    let permit = send(100.0).await.expect("a permit");
    permit.settle(150.0);
    permit.settle(f64::NAN);
    permit.settle(120.0);
    assert_eq!(levels(&limiter).await, (56.0, 500.0));
    // More than is left is refused, and costs nothing.
    assert!(send(600.0).await.is_none());
    assert_eq!(levels(&limiter).await, (56.0, 500.0));
}

/// What remains upstream has counted this answer already: what its estimate was too large by is no
/// reason to send more than that.
#[tokio::test(start_paused = true)]
async fn settling_does_not_raise_the_remaining_tokens() {
    let limiter = Limiter::in_memory();
    let service = ServiceBuilder::new()
        .layer(
            RateLimitLayer::new(&limiter, [RPM, TPM.cost(900.0)])
                .respond_http()
                .settle(|_: &Response<String>| Some(100.0))
                .learn(Upstream::openai()),
        )
        .service(service_fn(async |_: Request<()>| {
            let response = Response::builder().header("x-ratelimit-remaining-tokens", "12");
            Ok::<_, Infallible>(response.body(String::new()).expect("a response"))
        }));
    service.oneshot(Request::new(())).await.expect("infallible");
    assert_eq!(levels(&limiter).await, (59.0, 12.0));
}

/// Some round a part of a second down.
#[tokio::test(start_paused = true)]
async fn rejection_with_zero_retry_after_empties_the_buckets() {
    for fields in [
        &[("retry-after", "0")],
        &[("retry-after", "Thu, 01 Jan 1970 00:00:00 GMT")],
        &[("retry-after-ms", "0")],
    ] {
        let limiter = Limiter::in_memory();
        learn(&limiter, Upstream::openai(), 429, fields).await;
        assert_eq!(levels(&limiter).await, (0.0, 0.0), "{fields:?}");
    }
}

/// Whoever has no permit of its own leaves the handle of the layer outside it.
#[tokio::test(start_paused = true)]
async fn layer_without_scopes_keeps_the_handle_of_another() {
    let limiter = Limiter::in_memory();
    let none = |_: &Request<()>| None::<Scope>;
    for n in 1..3 {
        let real = RateLimitLayer::new(&limiter, TPM.cost(100.0)).respond_http();
        let shadow = RateLimitLayer::new(&limiter, Quota::per_day(5.0).scope("tried"));
        let shadow = shadow.respond_http().expose_permit().shadow(true);
        let settle = service_fn(async |req: Request<()>| {
            let handle = req.extensions().get::<PermitHandle>();
            handle.expect("exposed").settle(30.0);
            Ok::<_, Infallible>(Response::new(String::new()))
        });
        let service = ServiceBuilder::new().layer(real.expose_permit());
        let request = Request::new(());
        if n == 1 {
            let service = service.layer(shadow).service(settle);
            service.oneshot(request).await.expect("infallible");
        } else {
            let unlimited = RateLimitLayer::new(&limiter, none).respond_http();
            let service = service.layer(unlimited.expose_permit()).service(settle);
            service.oneshot(request).await.expect("infallible");
        }
        let level = limiter.bucket(&TPM).level().await.unwrap();
        assert_eq!(level, 1_000.0 - 30.0 * f64::from(n));
    }
}
