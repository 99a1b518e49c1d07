//! A layer that adjusts buckets by the answers of its upstream, and costs that are known only after
//! the response; in memory.
#![cfg(feature = "learn")]

use std::{convert::Infallible, time::Duration};

use http::{Request, Response};
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
use tower_throttle::{Limiter, PermitHandle, Quota, RateLimitLayer, Scope, upstream::Upstream};

const SECOND: Duration = Duration::from_secs(1);
const RPM: Scope = Quota::per_hour(60.0).scope("rpm");
const TPM: Scope = Quota::per_hour(1_000.0).scope("tpm");

/// Sends one request through a layer to an upstream with this response.
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
    let rejected = limiter.try_acquire(RPM).await.expect_err("paused");
    assert!(rejected.retry_after() >= Some(7 * SECOND), "{rejected:?}");
    // The upstream is configured for the first scope only.
    assert!(limiter.try_acquire(TPM).await.is_ok());

    let limiter = Limiter::in_memory();
    let upstream = Upstream::openai().cap(20 * SECOND);
    learn(&limiter, upstream, 429, &[("retry-after", "3600")]).await;
    for scope in [RPM, TPM] {
        let rejected = limiter.try_acquire(&scope).await.expect_err("paused");
        let one = Duration::from_secs_f64(1.0 / scope.quota().rate());
        let pause = rejected.retry_after().expect("some time") - one;
        // Cut to the maximum, which the jitter does not exceed.
        let least = 20 * SECOND - SECOND / 1_000;
        assert!(
            (least..=20 * SECOND + SECOND / 1_000).contains(&pause),
            "{pause:?}"
        );
    }
}

/// A cached response in the form of draft 08, GitLab's time of day, and Azure's milliseconds.
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
        let rejected = limiter.try_acquire(RPM).await.expect_err("paused");
        // The bucket is empty then, and refills by one token a minute.
        let paused = rejected.retry_after().expect("some time") - 60 * SECOND;
        let near = 10 * SECOND - SECOND / 1_000..=10 * SECOND + SECOND / 1_000;
        assert!(near.contains(&paused), "{fields:?}: {paused:?}");
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

/// A request has an estimated cost. Its stream settles when it ends, or is dropped.
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
            // The body is the handle: the stream settles through it.
            Ok::<_, Infallible>(Response::new(handle))
        }));
    let send = async |cost: f64| {
        let response = service.clone().oneshot(Request::new(cost)).await;
        response.expect("infallible").into_body()
    };
    // Dropped without settling.
    drop(send(100.0).await);
    assert_eq!(levels(&limiter).await, (59.0, 900.0));
    // Ended below the estimate, and above it. The cost in requests needs no correction.
    send(100.0).await.expect("a permit").settle(30.0);
    assert_eq!(levels(&limiter).await, (58.0, 870.0));
    send(100.0).await.expect("a permit").settle(250.0);
    assert_eq!(levels(&limiter).await, (57.0, 620.0));
    // A later settlement replaces the last one, and values that are not numbers are ignored.
    let permit = send(100.0).await.expect("a permit");
    permit.settle(150.0);
    permit.settle(f64::NAN);
    permit.settle(120.0);
    assert_eq!(levels(&limiter).await, (56.0, 500.0));
    // More than is left is rejected, and costs nothing.
    assert!(send(600.0).await.is_none());
    assert_eq!(levels(&limiter).await, (56.0, 500.0));
}

/// The remaining quota of the upstream already includes this response: an estimate that was too
/// high does not allow more than that.
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

/// Some upstreams round a fraction of a second down.
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

/// A layer without a permit of its own leaves the handle of the outer layer in place.
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
