//! Shadow mode: the layer decides and counts, and does not affect requests.
#![cfg(all(feature = "http", feature = "redis", feature = "metrics"))]

#[path = "support/listen.rs"]
mod listen;
mod support;

use std::{
    convert::Infallible,
    future::{Future, pending, poll_fn},
    pin::pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use http::{Request, Response};
use listen::{Log, Metrics};
use support::RedisServer;
use tokio::time::Instant;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_throttle::{Limiter, Permit, PermitHandle, Quota, RateLimitLayer, Reason, Scope};

const SECOND: Duration = Duration::from_secs(1);
/// Refills too slowly to matter in a test.
const DAY: Scope = Quota::per_day(1.0).burst(3.0).scope("day");

/// A limiter whose timeouts are longer than the delays of a busy machine.
fn connect(url: &str) -> Limiter {
    let builder = Limiter::builder().redis(url);
    builder.redis_timeout(10 * SECOND).build().expect("a URL")
}

async fn serve(_: Request<String>) -> Result<Response<String>, Infallible> {
    Ok(Response::new("served".to_owned()))
}

fn request() -> Request<String> {
    Request::new(String::new())
}

fn of(scope: &str, outcome: &str, backend: &str) -> String {
    format!("tower_throttle_requests_total{{scope={scope},outcome={outcome},backend={backend}}}")
}

/// Waits until the decisions made in the background are counted.
async fn until(metrics: &Metrics, name: &str, count: f64) {
    let start = Instant::now();
    while metrics.get(name).unwrap_or_default() < count && start.elapsed() < 10 * SECOND {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(
        metrics.get(name),
        Some(count),
        "{name}: {:?}",
        metrics.all()
    );
}

#[tokio::test]
async fn all_requests_are_served_and_rejections_are_counted() {
    let (_log, _listening) = Log::listen();
    let server = RedisServer::start().await;
    for limiter in [Limiter::in_memory(), connect(&server.url())] {
        let backend = match limiter.health() {
            tower_throttle::Health::InMemory => "memory",
            _ => "redis",
        };
        let metrics = Metrics::default();
        let _guard = metrics::set_default_local_recorder(&metrics);
        let shadow = RateLimitLayer::new(&limiter, DAY)
            .respond_http()
            .on_response(|_: &mut Permit, res: &mut Response<String>| res.body_mut().clear())
            .shadow(true);
        let mut service = shadow.layer(service_fn(serve));
        for _ in 0..10 {
            let served = service.ready().await.expect("infallible");
            let response = served.call(request()).await.expect("infallible");
            assert_eq!(response.status(), 200);
            assert_eq!(response.body(), "served", "no hook changed it");
            assert!(response.headers().is_empty(), "{:?}", response.headers());
        }
        until(&metrics, &of("day", "admitted", backend), 3.0).await;
        until(&metrics, &of("day", "shadow_rejected", backend), 7.0).await;
        assert_eq!(metrics.get(&of("day", "rejected", backend)), None);
        // A request that would be rejected takes nothing. One that would be admitted takes its
        // cost.
        let level = limiter.bucket(&DAY).level().await.unwrap();
        assert!((0.0..0.1).contains(&level), "{level}");
        let cost = |kind: &str| {
            metrics.get(&format!(
                "tower_throttle_cost_total{{scope=day,kind={kind}}}"
            ))
        };
        assert_eq!(cost("reserved"), Some(3.0));
        // Outside shadow mode the same layer rejects.
        let mut service = shadow.shadow(false).layer(service_fn(serve));
        let served = service.ready().await.expect("infallible");
        let response = served.call(request()).await.expect("infallible");
        assert_eq!(response.status(), 429);
        assert_eq!(metrics.get(&of("day", "rejected", backend)), Some(1.0));
    }
}

/// The inner service is called in `call`, whatever Redis does.
#[tokio::test]
async fn requests_are_not_delayed() {
    let (_log, _listening) = Log::listen();
    let server = RedisServer::start().await;
    let limiter = connect(&server.url());
    limiter.try_acquire(DAY).await.expect("the burst");
    server.freeze();
    let layer = RateLimitLayer::new(&limiter, DAY)
        .max_wait(60 * SECOND)
        .shadow(true);
    let mut service = layer.layer(service_fn(async |n: u32| Ok::<_, Infallible>(n)));
    let cx = &mut Context::from_waker(Waker::noop());
    for n in 0..100 {
        assert!(matches!(service.poll_ready(cx), Poll::Ready(Ok(()))));
        let answer = pin!(service.call(n)).poll(cx);
        assert!(matches!(answer, Poll::Ready(Ok(m)) if m == n), "{answer:?}");
    }
    server.thaw();
}

/// The wait that a request would have is recorded, and no request waits.
#[tokio::test(start_paused = true)]
async fn waits_are_counted_and_not_waited_for() {
    let (_log, _listening) = Log::listen();
    let limiter = Limiter::in_memory();
    let scope = Quota::per_second(1.0).burst(1.0).scope("second");
    let layer = RateLimitLayer::new(&limiter, scope.clone())
        .max_wait(3 * SECOND)
        .shadow(true);
    let mut service = layer.layer(service_fn(async |n: u32| Ok::<_, Infallible>(n)));
    let metrics = Metrics::default();
    let _guard = metrics::set_default_local_recorder(&metrics);
    let start = Instant::now();
    for n in 0..10 {
        service.ready().await.unwrap().call(n).await.unwrap();
    }
    assert_eq!(start.elapsed(), Duration::ZERO);
    tokio::time::sleep(4 * SECOND).await;
    assert_eq!(metrics.get(&of("second", "admitted", "memory")), Some(4.0));
    assert_eq!(
        metrics.get(&of("second", "shadow_rejected", "memory")),
        Some(6.0)
    );
}

/// A cost above the capacity is not rejected either.
#[tokio::test]
async fn cost_over_the_capacity_is_let_through() {
    let (_log, _listening) = Log::listen();
    let limiter = Limiter::in_memory();
    let metrics = Metrics::default();
    let _guard = metrics::set_default_local_recorder(&metrics);
    let rejected = limiter.try_acquire(DAY.cost(4.0)).await.unwrap_err();
    assert_eq!(rejected.reason(), Reason::ExceedsCapacity);
    let layer = RateLimitLayer::new(&limiter, DAY.cost(4.0)).shadow(true);
    let service = layer.layer(service_fn(async |n: u32| Ok::<_, Infallible>(n)));
    assert_eq!(service.oneshot(7).await.unwrap(), 7);
    assert_eq!(metrics.get(&of("day", "impossible", "memory")), Some(1.0));
    assert_eq!(
        metrics.get(&of("day", "shadow_rejected", "memory")),
        Some(1.0)
    );
}

/// Costs are settled in shadow mode too, so that a limit by cost can be tried. The permit handle
/// that requests expect is present.
#[tokio::test]
async fn costs_are_settled() {
    let (_log, _listening) = Log::listen();
    let server = RedisServer::start().await;
    for limiter in [Limiter::in_memory(), connect(&server.url())] {
        let tokens = Quota::per_day(1_000.0).scope("tokens");
        let decided = limiter.clone();
        let layer = RateLimitLayer::new(&limiter, tokens.clone().cost(400.0))
            .respond_http()
            .settle(|res: &Response<String>| res.body().parse().ok())
            .expose_permit()
            .shadow(true);
        let watched = tokens.clone();
        let service = layer.layer(service_fn(move |req: Request<String>| {
            let (limiter, tokens) = (decided.clone(), watched.clone());
            async move {
                let handle = req.extensions().get::<PermitHandle>();
                handle.expect("as without shadow mode").settle(999.0);
                // Longer than the decision takes, as in an upstream.
                while limiter.bucket(&tokens).level().await.unwrap() > 700.0 {
                    tokio::task::yield_now().await;
                }
                Ok::<_, Infallible>(Response::new("150".to_owned()))
            }
        }));
        service.oneshot(request()).await.unwrap();
        let start = Instant::now();
        let mut level = limiter.bucket(&tokens).level().await.unwrap();
        while (level - 850.0).abs() > 1.0 && start.elapsed() < 10 * SECOND {
            tokio::time::sleep(Duration::from_millis(5)).await;
            level = limiter.bucket(&tokens).level().await.unwrap();
        }
        assert!((850.0..851.0).contains(&level), "{level}");
    }
}

/// Rejections are logged at `debug`, by the name of the limit and never by the key, in shadow mode
/// and outside it.
#[cfg(feature = "tracing")]
#[tokio::test]
async fn rejections_are_logged_at_debug() {
    let (log, _listening) = Log::listen();
    let limiter = Limiter::in_memory();
    let scope = Quota::per_day(1.0).scope("metrics").key("customer-17");
    for (shadow, lines) in [(true, 1), (false, 2)] {
        let layer = RateLimitLayer::new(&limiter, scope.clone()).shadow(shadow);
        let mut service = layer.layer(service_fn(async |n: u32| Ok::<_, Infallible>(n)));
        for n in 0..2 - u32::from(lines == 2) {
            let _ = service.ready().await.unwrap().call(n).await;
        }
        let metrics = log.lines(tracing::Level::DEBUG);
        assert_eq!(metrics.len(), lines, "{metrics:?}");
        let line = &metrics[lines - 1];
        for part in [
            "metrics",
            "Limited",
            "degraded=false",
            &format!("shadow={shadow}"),
        ] {
            assert!(line.contains(part), "no {part} in {line}");
        }
        assert!(!line.contains("customer-17"), "{line}");
    }
    // Several scopes at once take another path to the same log line.
    let other = Quota::per_day(5.0).scope("other");
    let rejected = limiter.try_acquire([scope, other]).await.unwrap_err();
    let metrics = log.lines(tracing::Level::DEBUG);
    assert_eq!(metrics.len(), 3, "{metrics:?}");
    assert!(
        metrics[2].contains(rejected.scope()) && metrics[2].contains("Limited"),
        "{metrics:?}"
    );
    assert_eq!(log.counts(), [0; 3], "and nothing above");
}

/// A service that is never ready is waited for, as without the layer.
#[tokio::test]
async fn readiness_is_that_of_the_inner_service() {
    #[derive(Clone)]
    struct Never;
    impl Service<u32> for Never {
        type Response = u32;
        type Error = Infallible;
        type Future = std::future::Pending<Result<u32, Infallible>>;
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Pending
        }
        fn call(&mut self, _: u32) -> Self::Future {
            pending()
        }
    }
    let limiter = Limiter::in_memory();
    let mut service = RateLimitLayer::new(&limiter, DAY)
        .max_wait(SECOND)
        .shadow(true)
        .layer(Never);
    let polled = poll_fn(|cx| Poll::Ready(service.poll_ready(cx).is_pending())).await;
    assert!(polled);
    assert_eq!(
        limiter.bucket(&DAY).level().await.unwrap(),
        3.0,
        "nothing was taken"
    );
}
