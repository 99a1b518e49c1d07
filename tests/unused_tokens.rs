//! Tokens that are granted and not used at once: in `poll_ready`, between `poll_ready` and `call`,
//! and in futures that are not polled.

#[cfg(feature = "redis")]
mod support;

use std::{
    convert::Infallible,
    future::{Future, Ready, ready},
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{Instant, advance, sleep, timeout},
};
use tower::{Layer, Service, ServiceExt};
use tower_throttle::{Limiter, Quota, RateLimitLayer, Scope};

const S: Duration = Duration::from_secs(1);

/// The times of the calls to the inner service, in seconds.
#[derive(Clone)]
struct Calls {
    start: Instant,
    log: Arc<Mutex<Vec<f64>>>,
}

impl Calls {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            log: Arc::default(),
        }
    }

    fn called(&self) {
        let at = self.start.elapsed().as_secs_f64();
        self.log.lock().expect("no panic").push(at);
    }

    fn count(&self) -> usize {
        self.log.lock().expect("no panic").len()
    }

    /// The tokens by which the worst window exceeds `capacity + rate * w`.
    fn excess(&self, capacity: f64, rate: f64) -> f64 {
        let mut log = self.log.lock().expect("no panic").clone();
        log.sort_by(f64::total_cmp);
        let (mut above, mut worst, mut last) = (0.0_f64, 0.0_f64, 0.0);
        for at in log {
            above = (above - rate * (at - last)).max(0.0) + 1.0;
            worst = worst.max(above);
            last = at;
        }
        worst - capacity
    }
}

impl Service<u32> for Calls {
    type Response = u32;
    type Error = Infallible;
    type Future = Ready<Result<u32, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, req: u32) -> Self::Future {
        self.called();
        ready(Ok(req))
    }
}

/// Makes `n` clones ready, keeps them for `kept`, and then calls all of them at once.
async fn keep_and_call(limiter: &Limiter, scope: Scope, n: u32, kept: Duration) -> Calls {
    let calls = Calls::new();
    let service = RateLimitLayer::new(limiter, scope)
        .max_wait(60 * S)
        .layer(calls.clone());
    let mut readying = JoinSet::new();
    for _ in 0..n {
        let mut service = service.clone();
        readying.spawn(async move {
            ServiceExt::<u32>::ready(&mut service).await.expect("ready");
            service
        });
    }
    let ready = readying.join_all().await;
    sleep(kept).await;
    let mut calling = JoinSet::new();
    for mut service in ready {
        calling.spawn(service.call(1));
    }
    for result in calling.join_all().await {
        result.expect("a reservation");
    }
    assert_eq!(calls.count(), n as usize);
    calls
}

#[tokio::test(start_paused = true)]
async fn clones_called_long_after_readiness_keep_the_limit() {
    let scope = Quota::per_second(1_000.0).burst(10.0).scope("api");
    let calls = keep_and_call(&Limiter::in_memory(), scope, 2_000, 2 * S).await;
    let excess = calls.excess(10.0, 1_000.0);
    assert!(excess <= 100.0, "{excess}");
}

/// A clone that is made ready again holds no old token either.
#[tokio::test(start_paused = true)]
async fn clone_that_is_made_ready_again_acquires_again() {
    let scope = Quota::per_second(100.0).burst(10.0).scope("api");
    let limiter = Limiter::in_memory();
    let calls = Calls::new();
    let service = RateLimitLayer::new(&limiter, scope)
        .max_wait(5 * S)
        .layer(calls.clone());
    let mut clones: Vec<_> = (0..200).map(|_| service.clone()).collect();
    for clone in &mut clones {
        ServiceExt::<u32>::ready(clone).await.expect("ready");
    }
    sleep(2 * S).await;
    let mut calling = JoinSet::new();
    for mut clone in clones {
        calling.spawn(async move {
            ServiceExt::<u32>::ready(&mut clone).await.expect("ready");
            clone.call(1).await
        });
    }
    calling.join_all().await;
    let excess = calls.excess(10.0, 100.0);
    assert!(excess <= 10.0, "{excess}");
    assert_eq!(calls.count(), 200);
}

/// A token that a clone kept for too long is not returned when the clone is dropped.
#[tokio::test(start_paused = true)]
async fn old_tokens_of_dropped_clones_are_lost() {
    let scope = Quota::per_second(1_000.0).burst(10.0).scope("api");
    let limiter = Limiter::in_memory();
    let service = RateLimitLayer::new(&limiter, scope.clone())
        .max_wait(60 * S)
        .layer(Calls::new());
    let mut clones: Vec<_> = (0..2_000).map(|_| service.clone()).collect();
    for clone in &mut clones {
        ServiceExt::<u32>::ready(clone).await.expect("ready");
    }
    sleep(2 * S).await;
    let mut admitted = 0;
    for clone in clones {
        drop(clone);
        admitted += usize::from(limiter.try_acquire(&scope).await.is_ok());
    }
    assert_eq!(admitted, 10);
}

/// A token stays valid as long as the bucket has not refilled it.
#[tokio::test(start_paused = true)]
async fn old_token_of_a_slow_quota_is_not_lost() {
    let day = Quota::per_day(1.0).scope("day");
    let calls = keep_and_call(&Limiter::in_memory(), day, 1, 10 * S).await;
    let after = calls.start.elapsed();
    assert!(after < 21 * S, "{after:?}");
}

/// An inner service that is ready once it is opened.
#[derive(Clone)]
struct Gate {
    open: Arc<AtomicBool>,
    calls: Calls,
}

impl Service<u32> for Gate {
    type Response = u32;
    type Error = Infallible;
    type Future = Ready<Result<u32, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        match self.open.load(Ordering::Relaxed) {
            true => Poll::Ready(Ok(())),
            false => Poll::Pending,
        }
    }

    fn call(&mut self, req: u32) -> Self::Future {
        self.calls.called();
        ready(Ok(req))
    }
}

/// Granted after a wait, in futures that wait for the inner service and are not polled.
#[tokio::test(start_paused = true)]
async fn tokens_in_response_futures_expire_as_well() {
    let gate = Gate {
        open: Arc::new(AtomicBool::new(true)),
        calls: Calls::new(),
    };
    let quota = Quota::per_second(100.0).burst(1.0);
    let layer = RateLimitLayer::new(&Limiter::in_memory(), move |_: &u32| quota.scope("api"))
        .max_wait(20 * S);
    let service = layer.layer(gate.clone());
    let mut cx = Context::from_waker(Waker::noop());
    let mut futures = Vec::new();
    for _ in 0..200 {
        let mut service = service.clone();
        service.ready().await.expect("ready");
        let mut future = Box::pin(service.call(1));
        if future.as_mut().poll(&mut cx).is_pending() {
            futures.push(future);
        }
    }
    gate.open.store(false, Ordering::Relaxed);
    // Each is polled once, when its reservation is due, and finds the inner service busy.
    for future in &mut futures {
        advance(Duration::from_millis(10)).await;
        tokio::task::yield_now().await;
        assert!(future.as_mut().poll(&mut cx).is_pending());
    }
    advance(S).await;
    gate.open.store(true, Ordering::Relaxed);
    let mut calling = JoinSet::new();
    for future in futures {
        calling.spawn(future);
    }
    for result in calling.join_all().await {
        result.expect("a reservation");
    }
    assert_eq!(gate.calls.count(), 200);
    let excess = gate.calls.excess(1.0, 100.0);
    assert!(excess <= 10.0, "{excess}");
}

#[cfg(feature = "redis")]
mod on_redis {
    use super::{support::RedisServer, *};

    const RATE: f64 = 200.0;

    /// How late tasks run on a busy machine, in seconds.
    const LATE: f64 = 0.5;

    async fn limiter(server: &RedisServer) -> Limiter {
        let limiter = Limiter::redis(&server.url()).expect("a URL");
        let warm = Quota::per_second(1e6).scope("warm");
        limiter.try_acquire(warm).await.expect("the first");
        limiter
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn clones_called_long_after_readiness_keep_the_limit() {
        let server = RedisServer::start().await;
        let limiter = limiter(&server).await;
        let scope = Quota::per_second(RATE).burst(10.0).scope("api");
        let calls = timeout(60 * S, keep_and_call(&limiter, scope, 400, S)).await;
        let excess = calls.expect("in time").excess(10.0, RATE);
        assert!(excess <= RATE * LATE, "{excess}");
    }

    /// Replies that arrive in time for futures that are polled too late.
    #[tokio::test(flavor = "multi_thread")]
    async fn unread_grants_expire() {
        let server = RedisServer::start().await;
        let limiter = limiter(&server).await;
        let scope = Quota::per_second(RATE).burst(200.0).scope("api");
        let mut cx = Context::from_waker(Waker::noop());
        let mut admitted = 0;
        // One capacity each time, unread.
        let mut unread = Vec::new();
        for _ in 0..2 {
            for _ in 0..200 {
                let mut future = Box::pin(limiter.try_acquire(&scope));
                // A cached rejection is decided at once.
                if future.as_mut().poll(&mut cx).is_pending() {
                    unread.push(future);
                }
            }
            sleep(S + S / 2).await;
        }
        let start = Instant::now();
        for future in unread {
            admitted += usize::from(future.await.is_ok());
        }
        let most = 200.0 + RATE * (start.elapsed().as_secs_f64() + LATE);
        assert!(f64::from(admitted as u32) <= most, "{admitted} of {most}");
    }

    /// A rejection that was not read in time is requested again.
    #[tokio::test(flavor = "multi_thread")]
    async fn unread_rejection_expires() {
        let server = RedisServer::start().await;
        let limiter = limiter(&server).await;
        let scope = Quota::per_second(2.0).burst(1.0).scope("api");
        limiter.try_acquire(&scope).await.expect("the burst");
        // Another limiter, whose level cache does not have the empty bucket.
        let other = super::on_redis::limiter(&server).await;
        let mut late = pin!(other.try_acquire(&scope));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(late.as_mut().poll(&mut cx).is_pending());
        sleep(S).await;
        late.await.expect("there is a token by now");
    }
}
