//! `poll_ready` over a real Redis, where a decision takes a round trip.
#![cfg(feature = "redis")]

mod support;

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use support::RedisServer;
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};
use tower::{
    Layer, Service, ServiceExt, buffer::Buffer, limit::ConcurrencyLimit, load_shed::LoadShed,
    service_fn,
};
use tower_throttle::{Limiter, Permit, Quota, RateLimitLayer};

const LONG: Duration = Duration::from_secs(60);

async fn answer(req: u32) -> Result<u32, Infallible> {
    Ok(req)
}

/// A cached rejection is returned by `call`, when the inner service is ready already.
#[tokio::test(flavor = "multi_thread")]
async fn cached_rejection_frees_the_slot_of_the_inner_service() {
    let server = RedisServer::start().await;
    let limiter = Limiter::redis(&server.url()).expect("a URL");
    let day = Quota::per_day(1.0).scope("day");
    limiter.try_acquire(&day).await.expect("the burst");
    limiter.try_acquire(&day).await.expect_err("spent");

    let limited = ConcurrencyLimit::new(service_fn(answer), 1);
    let layer = RateLimitLayer::new(&limiter, day).layer(limited.clone());
    // As in a connection that stays open.
    let mut service = layer.clone();
    service.ready().await.expect("the slot");
    service.call(1).await.expect_err("spent");
    let other = timeout(LONG / 12, limited.oneshot(1)).await;
    assert!(
        matches!(other, Ok(Ok(1))),
        "the slot is not free: {other:?}"
    );
    drop(service);
}

/// There is a waiter already, so that readiness waits for the reply while it holds a slot of the
/// inner service. The reply is a reservation for later, and the slot must be free again.
#[tokio::test(flavor = "multi_thread")]
async fn reservation_frees_the_slot_of_the_inner_service() {
    let server = RedisServer::start().await;
    let limiter = Limiter::redis(&server.url()).expect("a URL");
    // The reservations are due after half a minute and a full one.
    let slow = Quota::per_minute(2.0).burst(1.0).scope("slow");
    limiter.try_acquire(&slow).await.expect("the burst");
    let mut waiter = pin!(limiter.acquire(&slow, LONG));
    let cx = &mut Context::from_waker(Waker::noop());
    assert!(waiter.as_mut().poll(cx).is_pending());
    while limiter.bucket(&slow).level().await.unwrap() > -0.5 {
        tokio::task::yield_now().await;
    }

    let limited = ConcurrencyLimit::new(service_fn(answer), 1);
    let mut service = RateLimitLayer::new(&limiter, slow.clone())
        .max_wait(2 * LONG)
        .layer(limited.clone());
    let waiting = tokio::spawn(async move {
        let result = poll_fn(|cx| Service::<u32>::poll_ready(&mut service, cx)).await;
        result.is_ok()
    });
    while limiter.bucket(&slow).level().await.unwrap() > -1.5 {
        tokio::task::yield_now().await;
    }
    let other = timeout(LONG / 12, limited.oneshot(1)).await;
    assert!(
        matches!(other, Ok(Ok(1))),
        "the slot is not free: {other:?}"
    );
    assert!(!waiting.is_finished());
    waiting.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_does_not_wait_for_redis_if_tokens_are_plentiful() {
    let server = RedisServer::start().await;
    let limiter = Limiter::redis(&server.url()).expect("a URL");
    let wide = Quota::per_day(200.0).scope("wide");
    // The first acquisition connects.
    limiter.try_acquire(&wide).await.expect("one of 200");
    let layer = RateLimitLayer::new(&limiter, wide.clone()).max_wait(LONG);

    let mut shed = LoadShed::new(layer.layer(service_fn(answer)));
    for nth in 0..50 {
        let served = shed.ready().await.expect("ready").call(nth).await;
        assert_eq!(served.expect("not shed"), nth);
    }
    let start = Instant::now();
    let buffer = Buffer::new(layer.layer(service_fn(answer)), 100);
    let mut callers = JoinSet::new();
    for nth in 0..100 {
        callers.spawn(buffer.clone().oneshot(nth));
    }
    while let Some(done) = callers.join_next().await {
        done.expect("no panic").expect("served");
    }
    assert!(start.elapsed() < LONG / 12, "{:?}", start.elapsed());
    let left = limiter.bucket(&wide).level().await.expect("Redis answers");
    assert_eq!(left.floor(), 49.0);

    // A service that is dropped while its acquisition is in flight returns the token.
    let mut service = layer.layer(service_fn(answer));
    let cx = &mut Context::from_waker(Waker::noop());
    assert!(matches!(
        Service::<u32>::poll_ready(&mut service, cx),
        Poll::Ready(Ok(()))
    ));
    drop(service);
    let returned = async {
        // Queued after the acquisition, which is decided when this one is.
        while limiter.bucket(&wide).level().await.unwrap() < 49.0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(LONG / 12, returned).await.expect("returned");
}

/// Refunds its permit when its task is dropped.
struct Guard(Option<Permit>);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(permit) = self.0.take() {
            permit.refund();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn runtime_shutdown_with_permits_and_waiters_does_not_hang() {
    let server = RedisServer::start().await;
    let url = server.url();
    let (done, over) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let limiter = Limiter::redis(&url).expect("a URL");
            let day = Quota::per_day(64.0).scope("day");
            for _ in 0..64 {
                let guard = Guard(limiter.try_acquire(&day).await.ok());
                tokio::spawn(async move {
                    let _guard = guard;
                    std::future::pending::<()>().await;
                });
            }
            for _ in 0..8 {
                tokio::spawn(limiter.acquire(&day, 1_000 * LONG));
            }
            let _ = limiter.bucket(&day).level().await;
        });
        drop(runtime);
        done.send(()).expect("a receiver");
    });
    let over = timeout(LONG / 12, over).await;
    assert!(matches!(over, Ok(Ok(()))), "the shutdown hangs: {over:?}");
}

/// Services and futures dropped after any number of polls, in `poll_ready` and in `call`.
#[tokio::test(flavor = "multi_thread")]
async fn future_dropped_at_any_poll_loses_no_tokens() {
    let server = RedisServer::start().await;
    let limiter = Limiter::builder()
        .redis(server.url())
        .redis_timeout(Duration::from_secs(10))
        .build()
        .expect("a URL");
    // Never refilled, so that every lost token shows.
    let api = Quota::per_day(0.001).burst(1_000.0).scope("api");
    let never = tower::service_fn(|_: ()| std::future::pending::<Result<(), Infallible>>());
    let mut spent = 0.0;
    for polls in 0..12 {
        for waits in [Duration::ZERO, Duration::from_secs(1)] {
            let layer = RateLimitLayer::new(&limiter, api.clone()).max_wait(waits);
            let mut service = layer.layer(never);
            let mut cx = Context::from_waker(Waker::noop());
            for _ in 0..polls {
                let _ = service.poll_ready(&mut cx);
                tokio::task::yield_now().await;
            }
            drop(service);

            let calls = Arc::new(AtomicUsize::new(0));
            let counted = calls.clone();
            let mut service = layer.layer(tower::service_fn(move |_: ()| {
                counted.fetch_add(1, Ordering::Relaxed);
                std::future::pending::<Result<(), Infallible>>()
            }));
            let _ = service.poll_ready(&mut cx);
            let mut response = Box::pin(service.call(()));
            for _ in 0..polls {
                let _ = response.as_mut().poll(&mut cx);
                tokio::time::sleep(Duration::from_micros(50)).await;
            }
            drop(response);
            drop(service);
            spent += calls.load(Ordering::Relaxed) as f64;
        }
    }
    let balanced = async {
        while (limiter.bucket(&api).level().await.unwrap() + spent).round() != 1_000.0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(10), balanced).await;
    let level = limiter.bucket(&api).level().await.unwrap();
    assert!(
        waited.is_ok(),
        "{spent} reached the inner service, {level} are left of 1,000"
    );
}
