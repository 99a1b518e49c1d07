//! Edge cases of the limiter on Redis: shutdowns, late polls, unusual settings.
#![cfg(feature = "redis")]
mod support;
use std::{
    convert::Infallible,
    future::Future,
    pin::pin,
    sync::mpsc,
    task::{Context, Waker},
    time::Duration,
};

use support::RedisServer;
use tower::{Layer, Service, limit::ConcurrencyLimit, service_fn};
use tower_throttle::*;
const S: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

fn rt() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}
fn within<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (tx, rx) = mpsc::channel();
    std::thread::spawn(move || {
        let _ = tx.send(f());
    });
    rx.recv_timeout(5 * S).ok()
}

#[test]
fn shutdown_with_a_waiter_does_not_deadlock() {
    let keep = rt();
    let server = keep.block_on(RedisServer::start());
    let url = server.url();
    let done = within(move || {
        let rt = rt();
        rt.block_on(async {
            let limiter = Limiter::redis(&url).unwrap();
            let s = Quota::per_second(1.0).scope("s");
            limiter.try_acquire(&s).await.unwrap();
            tokio::spawn({
                let l = limiter.clone();
                async move {
                    let _ = l.acquire(&s, 10 * S).await;
                }
            });
            tokio::time::sleep(100 * MS).await;
        });
        drop(rt);
    });
    assert!(done.is_some(), "dropping the runtime hangs");
}

#[test]
fn shutdown_with_a_refund_on_drop_does_not_deadlock() {
    let keep = rt();
    let server = keep.block_on(RedisServer::start());
    let url = server.url();
    let done = within(move || {
        let rt = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        rt.block_on(async {
            let limiter = Limiter::redis(&url).unwrap();
            let s = Quota::per_second(1.0).scope("s");
            struct Refund(Option<Permit>);
            impl Drop for Refund {
                fn drop(&mut self) {
                    self.0.take().unwrap().refund()
                }
            }
            let p = Refund(Some(limiter.try_acquire(&s).await.unwrap()));
            tokio::spawn(async move {
                let _p = p;
                std::future::pending::<()>().await
            });
            tokio::time::sleep(100 * MS).await;
        });
        drop(rt);
    });
    assert!(done.is_some(), "dropping the runtime hangs");
}

#[test]
fn panics_outside_a_runtime_and_does_not_hang() {
    let done = within(|| {
        let limiter = Limiter::redis("redis://127.0.0.1:1").unwrap();
        let s = Quota::per_second(1.0).scope("s");
        let acquire = || drop(futures_util_block(limiter.try_acquire(&s)));
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(acquire)).is_err()
    });
    assert_eq!(done, Some(true), "it hangs, or does not panic");
}
fn futures_util_block<F: Future>(f: F) -> F::Output {
    struct T(std::thread::Thread);
    impl std::task::Wake for T {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.unpark()
        }
    }
    let w = Waker::from(std::sync::Arc::new(T(std::thread::current())));
    let mut f = pin!(f);
    loop {
        if let std::task::Poll::Ready(x) = f.as_mut().poll(&mut Context::from_waker(&w)) {
            return x;
        }
        std::thread::park();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn endless_redis_timeout_is_accepted() {
    let server = RedisServer::start().await;
    let limiter = Limiter::builder()
        .redis(server.url())
        .redis_timeout(Duration::MAX)
        .build()
        .unwrap();
    let p = limiter
        .try_acquire(Quota::per_second(1.0).scope("s"))
        .await
        .unwrap();
    assert!(!p.is_degraded());
}

#[tokio::test]
async fn service_stays_ready_until_the_call() {
    let server = RedisServer::start().await;
    let other = Limiter::redis(&server.url()).unwrap();
    let limiter = Limiter::redis(&server.url()).unwrap();
    let s = Quota::per_second(2.0).burst(1.0).scope("s");
    limiter.try_acquire(s.key("warm")).await.unwrap();
    other.try_acquire(&s).await.unwrap();
    let inner = ConcurrencyLimit::new(service_fn(async |_: ()| Ok::<_, Infallible>(())), 1);
    let mut svc = RateLimitLayer::new(&limiter, s)
        .max_wait(3 * S)
        .layer(inner);
    let mut cx = Context::from_waker(Waker::noop());
    assert!(Service::<()>::poll_ready(&mut svc, &mut cx).is_ready());
    tokio::time::sleep(50 * MS).await;
    let again = Service::<()>::poll_ready(&mut svc, &mut cx).is_ready();
    eprintln!("still ready: {again}");
    tokio::time::sleep(470 * MS).await;
    let r = tokio::spawn(svc.call(())).await;
    assert!(r.is_ok(), "an un-readied inner service was called");
    assert!(again, "Ready, then Pending, without a call between");
}

#[tokio::test(flavor = "multi_thread")]
async fn free_reservation_is_granted_despite_a_cached_level() {
    let server = RedisServer::start().await;
    let limiter = Limiter::redis(&server.url()).unwrap();
    let s = Quota::per_second(1.0).scope("s");
    limiter.try_acquire(&s).await.unwrap();
    let a = tokio::spawn({
        let (l, s) = (limiter.clone(), s.clone());
        async move { l.acquire(&s, 5 * S).await }
    });
    tokio::time::sleep(300 * MS).await;
    limiter
        .acquire(&s, 500 * MS)
        .await
        .expect_err("1.7 s too early: the level is cached");
    a.abort();
    let _ = a.await;
    limiter
        .acquire(&s, 900 * MS)
        .await
        .expect("a's reservation is free and due in 0.7 s");
}

#[tokio::test(flavor = "multi_thread")]
async fn cached_level_gives_the_same_retry_after_as_redis() {
    let server = RedisServer::start().await;
    let limiter = Limiter::redis(&server.url()).unwrap();
    let s = Quota::per_second(1.0).scope("s");
    limiter.try_acquire(&s).await.unwrap();
    for _ in 0..20 {
        tokio::spawn({
            let (l, s) = (limiter.clone(), s.clone());
            async move { l.acquire(&s, 60 * S).await }
        });
    }
    tokio::time::sleep(100 * MS).await;
    let first = limiter
        .try_acquire(&s)
        .await
        .expect_err("debt")
        .retry_after()
        .unwrap();
    let again = limiter
        .try_acquire(&s)
        .await
        .expect_err("debt")
        .retry_after()
        .unwrap();
    assert!(
        again + S > first,
        "Redis: {first:?}, then the cached level: {again:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bucket_with_two_quotas_in_one_acquisition() {
    let server = RedisServer::start().await;
    let limiter = Limiter::redis(&server.url()).unwrap();
    let a = Quota::per_second(3.0).scope("site");
    let b = Quota::per_second(4.0).scope("site");
    let r = tokio::time::timeout(2 * S, limiter.try_acquire([a, b])).await;
    assert!(r.is_ok(), "the worker spins for ever");
}

#[tokio::test]
async fn waiting_in_poll_ready_holds_no_slot_of_the_inner_service() {
    let server = RedisServer::start().await;
    let limiter = Limiter::redis(&server.url()).unwrap();
    let s = Quota::per_second(1.0).scope("s");
    limiter.try_acquire(&s).await.unwrap();
    tokio::spawn({
        let (l, s) = (limiter.clone(), s.clone());
        async move { l.acquire(&s, 9 * S).await }
    });
    tokio::time::sleep(50 * MS).await;
    let inner = ConcurrencyLimit::new(service_fn(async |_: ()| Ok::<_, Infallible>(())), 1);
    let mut other = inner.clone();
    let mut svc = RateLimitLayer::new(&limiter, s)
        .max_wait(5 * S)
        .layer(inner);
    let task = tokio::spawn(async move {
        std::future::poll_fn(|cx| Service::<()>::poll_ready(&mut svc, cx))
            .await
            .unwrap();
        svc
    });
    tokio::time::sleep(50 * MS).await; // has a reservation by now, due in 2 s
    let free = tokio::time::timeout(
        500 * MS,
        std::future::poll_fn(|cx| Service::<()>::poll_ready(&mut other, cx)),
    )
    .await;
    assert!(free.is_ok(), "a waiter holds the inner slot");
    drop(other);
    task.await.unwrap().call(()).await.unwrap();
}

/// As in memory, by the script: with one request, several of them, and a wait.
#[tokio::test]
async fn huge_quota_admits_every_cost_within_it() {
    let server = RedisServer::start().await;
    let limiter = Limiter::builder().redis(server.url());
    let limiter = limiter.redis_timeout(5 * S).build().unwrap();
    for (n, tokens) in [1.2e12, 1e15, 1e18, u64::MAX as f64, f64::MAX]
        .into_iter()
        .enumerate()
    {
        for (m, quota) in [
            Quota::per_second(tokens),
            Quota::per_second(1.0).burst(tokens),
        ]
        .into_iter()
        .enumerate()
        {
            let scope = quota.scope("unlimited").key(2 * n + m);
            for cost in [1.0, 1e-9, 0.1, 1_000.0, 1e11] {
                let scope = scope.clone().cost(cost);
                let admitted = limiter.try_acquire(&scope).await;
                assert!(admitted.is_ok(), "{quota:?} {cost}: {admitted:?}");
                let other = Quota::per_day(1.0).scope("other");
                let other = other.key(format_args!("{n} {m} {cost}"));
                let admitted = limiter.acquire([scope, other], S).await;
                assert!(admitted.is_ok(), "{quota:?} {cost}: {admitted:?}");
            }
        }
    }
    let scope = Quota::per_day(1.0).burst(u64::MAX as f64).scope("huge");
    let acquisitions = (0..1_000).map(|_| limiter.try_acquire(&scope));
    for admitted in futures_util::future::join_all(acquisitions).await {
        admitted.unwrap();
    }
    let left = limiter.bucket(&scope).level().await.unwrap();
    assert_eq!(left, 9_007_199_254_740_992.0 - 1_000.0);
    assert_eq!(limiter.fallbacks(), 0);
}

/// A rate that rounds to zero would make the value corrupt, and corrupt values count as full.
#[tokio::test]
async fn slowest_quota_is_a_limit() {
    let server = RedisServer::start().await;
    let limiter = Limiter::builder().redis(server.url());
    let limiter = limiter.redis_timeout(5 * S).build().unwrap();
    for (n, burst) in [1.0, u64::MAX as f64].into_iter().enumerate() {
        let scope = Quota::per_second(1e-300).burst(burst).scope("slow").key(n);
        let all = scope.clone().cost(scope.quota().capacity());
        limiter.try_acquire(&all).await.expect("a full bucket");
        for _ in 0..3 {
            let rejected = limiter.try_acquire(&scope).await.expect_err("empty");
            assert_eq!(rejected.reason(), Reason::Limited);
            assert!(rejected.retry_after() > Some(86_400 * S), "{rejected:?}");
        }
        assert!(limiter.bucket(&scope).level().await.unwrap() < 1e-290);
    }
    assert_eq!(limiter.fallbacks(), 0);
}
