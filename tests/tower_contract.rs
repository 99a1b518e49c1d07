//! The layer among the other tower services, over an inner service that enforces the contract.

use std::{
    error::Error,
    fmt,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{Instant, Sleep, advance, sleep, sleep_until},
};
use tower::{
    BoxError, Layer, Service, ServiceExt,
    buffer::Buffer,
    limit::ConcurrencyLimit,
    load_shed::LoadShed,
    retry::{Policy, Retry},
    steer::Steer,
    timeout::Timeout,
    util::{BoxCloneService, BoxCloneSyncService},
};
use tower_throttle::{Limiter, Quota, RateLimitLayer, Reason, Rejected, Scope, ScopeExtractor};

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const TICK: Duration = ms(100);
const SECOND: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(60);

/// Three at once, then one per [`TICK`].
const THREE: Scope = Quota::per_second(10.0).burst(3.0).scope("three");
/// One per [`TICK`].
const ONE: Scope = Quota::per_second(10.0).burst(1.0).scope("one");
/// Refills too slowly to matter in a test.
const DAY: Scope = Quota::per_day(5.0).scope("day");

type Req = &'static str;

#[derive(Debug)]
struct Broken;

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the inner service is broken")
    }
}

impl Error for Broken {}

/// Panics when a clone is called that was not itself polled ready.
struct Strict {
    shared: Arc<Shared>,
    ready: bool,
    timer: Option<Pin<Box<Sleep>>>,
}

struct Shared {
    calls: Mutex<Vec<(Instant, Req)>>,
    /// Not ready from the first to the second time.
    unready: Option<(Instant, Instant)>,
    work: Duration,
    broken: AtomicBool,
}

impl Strict {
    fn new() -> Self {
        Self::with(None, Duration::ZERO)
    }

    fn with(unready: Option<(Duration, Duration)>, work: Duration) -> Self {
        let now = Instant::now();
        Self {
            shared: Arc::new(Shared {
                calls: Mutex::default(),
                unready: unready.map(|(from, to)| (now + from, now + to)),
                work,
                broken: AtomicBool::new(false),
            }),
            ready: false,
            timer: None,
        }
    }

    fn unready(from: Duration, to: Duration) -> Self {
        Self::with(Some((from, to)), Duration::ZERO)
    }

    fn calls(&self) -> usize {
        self.shared.calls.lock().unwrap().len()
    }

    /// The times of its calls, since `start`.
    fn times(&self, start: Instant) -> Vec<Duration> {
        let calls = self.shared.calls.lock().unwrap();
        calls.iter().map(|(at, _)| *at - start).collect()
    }

    fn break_down(&self) {
        self.shared.broken.store(true, Ordering::Relaxed);
    }
}

impl Clone for Strict {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            ready: false,
            timer: None,
        }
    }
}

impl Service<Req> for Strict {
    type Response = Req;
    type Error = Broken;
    type Future = Pin<Box<dyn Future<Output = Result<Req, Broken>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        if self.shared.broken.load(Ordering::Relaxed) {
            return Poll::Ready(Err(Broken));
        }
        if self.ready {
            return Poll::Ready(Ok(()));
        }
        if let Some((from, to)) = self.shared.unready
            && (from..to).contains(&Instant::now())
        {
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(to)));
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
        self.timer = None;
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, req: Req) -> Self::Future {
        assert!(
            std::mem::take(&mut self.ready),
            "called without having been polled ready"
        );
        let mut calls = self.shared.calls.lock().unwrap();
        calls.push((Instant::now(), req));
        let work = self.shared.work;
        Box::pin(async move {
            if !work.is_zero() {
                sleep(work).await;
            }
            Ok(req)
        })
    }
}

fn layer<K>(limiter: &Limiter, scope: K, max_wait: Duration) -> RateLimitLayer<K> {
    RateLimitLayer::new(limiter, scope).max_wait(max_wait)
}

/// The three modes of the layer, and a fourth that is equivalent to the third.
macro_rules! for_each_mode {
    ($scope:expr, $max_wait:expr, |$mode:ident, $limiter:ident, $layer:ident| $body:block) => {{
        let scope: Scope = $scope;
        let keyed = {
            let scope = scope.clone();
            move |_: &Req| scope.clone()
        };
        {
            let ($mode, $limiter) = ("fixed", Limiter::in_memory());
            let $layer = RateLimitLayer::new(&$limiter, scope.clone());
            $body
        }
        {
            let ($mode, $limiter) = ("fixed, waits", Limiter::in_memory());
            let $layer = layer(&$limiter, scope.clone(), $max_wait);
            $body
        }
        {
            let ($mode, $limiter) = ("keyed", Limiter::in_memory());
            let $layer = RateLimitLayer::new(&$limiter, keyed.clone());
            $body
        }
        {
            let ($mode, $limiter) = ("keyed, waits", Limiter::in_memory());
            let $layer = layer(&$limiter, keyed, $max_wait);
            $body
        }
    }};
}

/// Only the modes that wait.
macro_rules! for_each_waiting_mode {
    ($scope:expr, $max_wait:expr, |$mode:ident, $limiter:ident, $layer:ident| $body:block) => {{
        let scope: Scope = $scope;
        {
            let ($mode, $limiter) = ("fixed, waits", Limiter::in_memory());
            let $layer = layer(&$limiter, scope.clone(), $max_wait);
            $body
        }
        {
            let ($mode, $limiter) = ("keyed, waits", Limiter::in_memory());
            let $layer = layer(&$limiter, move |_: &Req| scope.clone(), $max_wait);
            $body
        }
    }};
}

async fn level(limiter: &Limiter, scope: &Scope) -> f64 {
    limiter.bucket(scope).level().await.unwrap()
}

#[track_caller]
fn close(got: f64, wanted: f64, what: &str) {
    assert!((got - wanted).abs() < 0.01, "{what}: {got}, not {wanted}");
}

fn rejected(error: &BoxError) -> &Rejected {
    Rejected::find(&**error).unwrap_or_else(|| panic!("not a rejection: {error}"))
}

fn poll_once<F: Future + ?Sized>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

fn poll_ready_once<S: Service<Req>>(service: &mut S) -> Poll<Result<(), S::Error>> {
    service.poll_ready(&mut Context::from_waker(Waker::noop()))
}

async fn ready<S: Service<Req>>(service: &mut S) -> Result<(), S::Error> {
    poll_fn(|cx| service.poll_ready(cx)).await
}

// ---------------------------------------------------------------------------------------------
// Inside and outside other layers

type Stack = BoxCloneService<Req, Req, BoxError>;

fn stack<S>(service: S) -> Stack
where
    S: Service<Req, Response = Req, Error: Into<BoxError>, Future: Send> + Clone + Send + 'static,
{
    BoxCloneService::new(service.map_err(Into::into))
}

/// Retries each failed request once.
#[derive(Clone)]
struct Once(bool);

impl<E> Policy<Req, Req, E> for Once {
    type Future = std::future::Ready<()>;

    fn retry(&mut self, _: &mut Req, result: &mut Result<Req, E>) -> Option<Self::Future> {
        (result.is_err() && std::mem::take(&mut self.0)).then(|| std::future::ready(()))
    }

    fn clone_request(&mut self, req: &Req) -> Option<Req> {
        Some(req)
    }
}

fn around<S>(service: S) -> Vec<(&'static str, Stack)>
where
    S: Service<Req, Response = Req, Error: Into<BoxError> + Send + Sync, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
    BoxError: From<S::Error>,
{
    let steer = |_: &Req, _: &[S]| 0;
    vec![
        ("bare", stack(service.clone())),
        ("Buffer", stack(Buffer::new(service.clone(), 16))),
        (
            "ConcurrencyLimit",
            stack(ConcurrencyLimit::new(service.clone(), 2)),
        ),
        ("LoadShed", stack(LoadShed::new(service.clone()))),
        ("Timeout", stack(Timeout::new(service.clone(), LONG))),
        ("Retry", stack(Retry::new(Once(true), service.clone()))),
        ("Steer", stack(Steer::new([service.clone()], steer))),
        ("BoxCloneService", stack(service.clone())),
        (
            "BoxCloneSyncService",
            stack(BoxCloneSyncService::new(service)),
        ),
    ]
}

/// Three are served, ten are rejected without being called, and three are served again once tokens
/// have refilled.
async fn serves_rejects_and_serves_again(what: &str, mut stack: Stack, inner: &Strict) {
    let before = inner.calls();
    for round in 1..=2 {
        for _ in 0..3 {
            let served = stack.ready().await.unwrap().call("a").await;
            assert_eq!(served.expect(what), "a", "{what}");
        }
        for _ in 0..10 {
            let service = stack.ready().await;
            let service = service.unwrap_or_else(|error| panic!("{what}: unready: {error}"));
            let error = service.call("a").await.expect_err(what);
            assert_eq!(rejected(&error).reason(), Reason::Limited, "{what}");
        }
        assert_eq!(inner.calls() - before, 3 * round, "{what}");
        sleep(SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn layer_inside_all_others() {
    // Twenty milliseconds are too short for a reservation: a rejection, also in the modes that
    // wait.
    for_each_mode!(THREE, ms(20), |mode, limiter, layer| {
        for index in 0..around(layer.layer(Strict::new())).len() {
            let inner = Strict::new();
            let (name, stack) = around(layer.layer(inner.clone())).swap_remove(index);
            serves_rejects_and_serves_again(&format!("{name}({mode})"), stack, &inner).await;
        }
        close(level(&limiter, &THREE).await, 3.0, mode);
    });
}

#[tokio::test(start_paused = true)]
async fn layer_outside_all_others() {
    for_each_mode!(THREE, ms(20), |mode, limiter, layer| {
        let inner = Strict::new();
        for (name, below) in around(inner.clone()) {
            // A clone of a ready `Steer` assumes that it is ready (tower 0.5.3): no service that
            // calls one clone and keeps another can be outside it.
            if name != "Steer" {
                let stack = stack(layer.layer(below));
                serves_rejects_and_serves_again(&format!("{mode}({name})"), stack, &inner).await;
            }
        }
        close(level(&limiter, &THREE).await, 3.0, mode);
    });
}

#[tokio::test(start_paused = true)]
async fn waiting_layer_inside_all_others() {
    for_each_waiting_mode!(ONE, LONG, |mode, limiter, layer| {
        for index in 1..around(layer.layer(Strict::new())).len() {
            let inner = Strict::new();
            let (name, mut stack) = around(layer.layer(inner.clone())).swap_remove(index);
            if name == "LoadShed" {
                continue; // sheds instead
            }
            let start = Instant::now();
            for _ in 0..4 {
                stack.ready().await.unwrap().call("a").await.unwrap();
            }
            let elapsed = start.elapsed();
            assert!(
                elapsed >= 3 * TICK && elapsed < 3 * TICK + ms(10),
                "{name}({mode}): {elapsed:?}"
            );
            drop(stack);
            sleep(SECOND).await;
        }
        close(level(&limiter, &ONE).await, 1.0, mode);
    });
}

#[tokio::test(start_paused = true)]
async fn many_callers_over_a_buffer_and_a_concurrency_limit_are_paced() {
    for_each_waiting_mode!(ONE, LONG, |mode, _limiter, layer| {
        let inner = Strict::with(None, ms(30));
        let service = layer.layer(ConcurrencyLimit::new(inner.clone(), 2));
        let service = Buffer::new(ConcurrencyLimit::new(service, 4), 4);
        let start = Instant::now();
        let mut callers = JoinSet::new();
        for _ in 0..12 {
            callers.spawn(service.clone().oneshot("a"));
        }
        while let Some(done) = callers.join_next().await {
            done.unwrap().unwrap();
        }
        let times = inner.times(start);
        assert_eq!(times.len(), 12, "{mode}");
        for pair in times.windows(2) {
            assert!(pair[1] - pair[0] >= ms(99), "{mode}: {times:?}");
        }
        assert!(times[11] < ms(1_200), "{mode}: {times:?}");
    });
}

// ---------------------------------------------------------------------------------------------
// A waiter holds no slot, and a slot holder does not wait

#[tokio::test(start_paused = true)]
async fn waiting_request_holds_no_slot_of_the_inner_service() {
    for_each_waiting_mode!(ONE, LONG, |mode, limiter, layer| {
        limiter.try_acquire(ONE).await.unwrap();
        let inner = Strict::new();
        let mut limited = ConcurrencyLimit::new(inner.clone(), 1);
        let waiter = tokio::spawn(layer.layer(limited.clone()).oneshot("waiter"));
        // Until all tasks are idle.
        sleep(ms(1)).await;
        assert_eq!(inner.calls(), 0, "{mode}");
        assert!(poll_ready_once(&mut limited).is_ready(), "{mode}");
        limited.call("other").await.unwrap();
        let start = Instant::now();
        waiter.await.unwrap().unwrap();
        assert_eq!(inner.calls(), 2, "{mode}");
        assert!(start.elapsed() <= TICK, "{mode}");
    });
}

#[tokio::test(start_paused = true)]
async fn rejection_holds_no_slot_of_the_inner_service() {
    for_each_mode!(DAY, TICK, |mode, limiter, layer| {
        limiter.try_acquire(DAY.cost(5.0)).await.unwrap();
        let mut limited = ConcurrencyLimit::new(Strict::new(), 1);
        let mut service = layer.layer(limited.clone());
        ready(&mut service).await.unwrap();
        service.call("rejected").await.unwrap_err();
        assert!(poll_ready_once(&mut limited).is_ready(), "{mode}");
        drop(service);
    });
}

/// Sends six requests for a spent key, then one for another key. Returns how long the last one
/// took.
async fn behind_a_spent_key<S>(service: S) -> Duration
where
    S: Service<Req, Response = Req, Future: Send> + Clone + Send + 'static,
    S::Error: fmt::Debug + Send,
{
    let mut spent = JoinSet::new();
    for _ in 0..6 {
        spent.spawn(service.clone().oneshot("spent"));
    }
    sleep(ms(1)).await;
    let start = Instant::now();
    service.oneshot("other").await.unwrap();
    let elapsed = start.elapsed();
    while spent.join_next().await.is_some() {}
    elapsed
}

#[tokio::test(start_paused = true)]
async fn spent_key_does_not_delay_another() {
    const SLOW: Scope = Quota::per_second(1.0).scope("slow");
    let by_key = |req: &Req| SLOW.key(req);
    let inner = Strict::with(None, ms(2));

    // Waits, with the slots inside.
    let limiter = Limiter::in_memory();
    let service = layer(&limiter, by_key, LONG).layer(ConcurrencyLimit::new(inner.clone(), 2));
    let elapsed = behind_a_spent_key(service).await;
    assert!(elapsed <= ms(5), "{elapsed:?}");

    // Rejects, with the slots on either side.
    let limiter = Limiter::in_memory();
    let rejecting = layer(&limiter, by_key, Duration::ZERO);
    let service = rejecting.layer(ConcurrencyLimit::new(inner.clone(), 2));
    let elapsed = behind_a_spent_key(service).await;
    assert!(elapsed <= ms(5), "{elapsed:?}");
    let limiter = Limiter::in_memory();
    let rejecting = layer(&limiter, by_key, Duration::ZERO);
    let service = ConcurrencyLimit::new(rejecting.layer(inner.clone()), 2);
    let elapsed = behind_a_spent_key(service).await;
    assert!(elapsed <= ms(5), "{elapsed:?}");

    // Waits, with the slots outside: waiters fill them, which is why the documentation recommends
    // to put them inside.
    let limiter = Limiter::in_memory();
    let service = ConcurrencyLimit::new(layer(&limiter, by_key, LONG).layer(inner), 2);
    let elapsed = behind_a_spent_key(service).await;
    assert!(elapsed >= SECOND, "{elapsed:?}");
}

/// When 8 callers were admitted, if the inner service is not ready in this window.
async fn paced<K>(layer: RateLimitLayer<K>, unready: (Duration, Duration)) -> Vec<Duration>
where
    K: ScopeExtractor<Req> + Clone + Send + Sync + 'static,
{
    let start = Instant::now();
    let inner = Strict::unready(unready.0, unready.1);
    let mut callers = JoinSet::new();
    for _ in 0..8 {
        callers.spawn(layer.layer(inner.clone()).oneshot("a"));
    }
    while let Some(done) = callers.join_next().await {
        done.unwrap().unwrap();
    }
    inner.times(start)
}

#[tokio::test(start_paused = true)]
async fn tokens_do_not_age_while_the_inner_service_is_not_ready() {
    for_each_waiting_mode!(ONE, LONG, |mode, _limiter, layer| {
        let times = paced(layer, (Duration::ZERO, SECOND)).await;
        for (nth, time) in (0..).zip(&times) {
            let wanted = SECOND + TICK * nth;
            assert!(
                *time >= wanted && *time <= wanted + ms(10),
                "{mode}: {times:?}"
            );
        }
    });
}

#[tokio::test(start_paused = true)]
async fn tokens_do_not_age_when_the_inner_service_becomes_unready_during_the_wait() {
    for_each_waiting_mode!(ONE, LONG, |mode, limiter, layer| {
        let times = paced(layer, (ms(50), ms(1_050))).await;
        assert_eq!(times.len(), 8, "{mode}");
        assert!(times[0] < ms(5), "{mode}: {times:?}");
        assert!(times[1] >= ms(1_050), "{mode}: {times:?}");
        // A reservation that is just due may be held for ten milliseconds.
        for pair in times[1..].windows(2) {
            assert!(pair[1] - pair[0] >= ms(90), "{mode}: {times:?}");
        }
        assert!(times[7] < ms(2_000), "{mode}: {times:?}");
        sleep(SECOND).await;
        close(level(&limiter, &ONE).await, 1.0, mode);
    });
}

// ---------------------------------------------------------------------------------------------
// poll_ready

#[tokio::test(start_paused = true)]
async fn readiness_is_backpressure_only_where_a_fixed_scope_waits() {
    for_each_mode!(ONE, LONG, |mode, limiter, layer| {
        limiter.try_acquire(ONE).await.unwrap();
        let mut service = layer.layer(Strict::new());
        let pending = poll_ready_once(&mut service).is_pending();
        assert_eq!(pending, mode == "fixed, waits", "{mode}");
        let start = Instant::now();
        ready(&mut service).await.unwrap();
        let wanted = if pending { TICK } else { Duration::ZERO };
        assert!(start.elapsed() >= wanted, "{mode}");
    });
}

#[tokio::test(start_paused = true)]
async fn poll_ready_takes_one_token_however_often_it_is_polled() {
    for_each_mode!(DAY, LONG, |mode, limiter, layer| {
        let inner = Strict::new();
        let mut service = layer.layer(inner.clone());
        for _ in 0..10 {
            assert!(poll_ready_once(&mut service).is_ready());
        }
        let expected = if mode == "fixed, waits" { 4.0 } else { 5.0 };
        close(level(&limiter, &DAY).await, expected, mode);
        service.call("a").await.unwrap();
        close(level(&limiter, &DAY).await, 4.0, mode);
        assert_eq!(inner.calls(), 1, "{mode}");
    });
}

#[tokio::test(start_paused = true)]
async fn dropped_service_returns_its_token() {
    let limiter = Limiter::in_memory();
    let mut service = layer(&limiter, DAY, LONG).layer(Strict::new());
    ready(&mut service).await.unwrap();
    close(level(&limiter, &DAY).await, 4.0, "held");
    drop(service);
    close(level(&limiter, &DAY).await, 5.0, "dropped");
}

#[tokio::test(start_paused = true)]
async fn clones_do_not_share_the_held_permit() {
    let limiter = Limiter::in_memory();
    let inner = Strict::new();
    let mut service = layer(&limiter, DAY, LONG).layer(inner.clone());
    ready(&mut service).await.unwrap();
    let mut clone = service.clone();
    drop(service.clone());
    close(level(&limiter, &DAY).await, 4.0, "a clone has nothing");
    ready(&mut clone).await.unwrap();
    close(level(&limiter, &DAY).await, 3.0, "each has one");
    clone.call("clone").await.unwrap();
    drop(clone);
    close(level(&limiter, &DAY).await, 3.0, "the clone's is spent");
    service.call("service").await.unwrap();
    drop(service);
    close(level(&limiter, &DAY).await, 3.0, "both are spent");
    assert_eq!(inner.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn clone_of_a_waiting_or_rejected_service_starts_idle() {
    let limiter = Limiter::in_memory();
    limiter.try_acquire(ONE).await.unwrap();
    let mut service = layer(&limiter, ONE, ms(20)).layer(Strict::new());
    ready(&mut service).await.unwrap();
    limiter.bucket(&ONE).reset().await.unwrap();
    let mut clone = service.clone();
    ready(&mut clone).await.unwrap();
    assert_eq!(clone.call("clone").await.unwrap(), "clone");
    let error = service.call("service").await.unwrap_err();
    assert_eq!(rejected(&error).reason(), Reason::Limited);
}

#[tokio::test(start_paused = true)]
async fn call_without_poll_ready_works() {
    for_each_mode!(ONE, LONG, |mode, limiter, layer| {
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = calls.clone();
        let mut service = layer.layer(tower::service_fn(move |req: Req| {
            counted.fetch_add(1, Ordering::Relaxed);
            async move { Ok::<_, Broken>(req) }
        }));
        assert_eq!(service.call("a").await.unwrap(), "a", "{mode}");
        close(level(&limiter, &ONE).await, 0.0, mode);
        let start = Instant::now();
        let second = service.call("a").await;
        assert_eq!(second.is_ok(), mode.ends_with("waits"), "{mode}");
        if second.is_ok() {
            assert!(start.elapsed() >= TICK, "{mode}");
        }
        let wanted = if second.is_ok() { 2 } else { 1 };
        assert_eq!(calls.load(Ordering::Relaxed), wanted, "{mode}");
    });
}

#[tokio::test(start_paused = true)]
async fn call_during_a_pending_poll_ready_makes_the_inner_service_ready() {
    let limiter = Limiter::in_memory();
    limiter.try_acquire(ONE).await.unwrap();
    let inner = Strict::new();
    let mut service = layer(&limiter, ONE, LONG).layer(inner.clone());
    assert!(poll_ready_once(&mut service).is_pending());
    service.call("impatient").await.unwrap();
    assert_eq!(inner.calls(), 1);

    // Its reservation is due by now, but it was not polled since.
    assert!(poll_ready_once(&mut service).is_pending());
    sleep(TICK + ms(1)).await;
    service.call("impatient").await.unwrap();
    assert_eq!(inner.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn rejection_is_kept_for_call_until_retry_after() {
    let limiter = Limiter::in_memory();
    limiter.try_acquire(ONE).await.unwrap();
    let inner = Strict::new();
    let mut service = layer(&limiter, ONE, ms(20)).layer(inner.clone());
    for _ in 0..3 {
        assert!(matches!(poll_ready_once(&mut service), Poll::Ready(Ok(()))));
    }
    // Kept: the next call returns it, once.
    let error = service.call("a").await.unwrap_err();
    let retry_after = rejected(&error).retry_after().unwrap();
    assert!(retry_after > Duration::ZERO && retry_after <= TICK);
    assert_eq!(inner.calls(), 0);

    // Discarded by `poll_ready`.
    ready(&mut service).await.unwrap();
    sleep(TICK).await;
    ready(&mut service).await.unwrap();
    service.call("a").await.unwrap();

    // Discarded by `call`, without a poll in between.
    ready(&mut service).await.unwrap();
    sleep(TICK).await;
    service.call("a").await.unwrap();
    assert_eq!(inner.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn inner_error_of_poll_ready_passes_and_refunds() {
    for_each_mode!(DAY, LONG, |mode, limiter, layer| {
        let inner = Strict::new();
        let mut service = layer.layer(inner.clone());
        ready(&mut service).await.unwrap();
        inner.break_down();
        let error = ready(&mut service).await.unwrap_err();
        assert!(error.downcast_ref::<Broken>().is_some(), "{mode}: {error}");
        drop(service);
        close(level(&limiter, &DAY).await, 5.0, mode);
    });
}

#[tokio::test(start_paused = true)]
async fn inner_error_after_the_wait_passes_and_refunds() {
    for_each_waiting_mode!(ONE, LONG, |mode, limiter, layer| {
        limiter.try_acquire(ONE).await.unwrap();
        let inner = Strict::new();
        let caller = tokio::spawn(layer.layer(inner.clone()).oneshot("a"));
        sleep(ms(50)).await;
        inner.break_down();
        let error = caller.await.unwrap().unwrap_err();
        assert!(error.downcast_ref::<Broken>().is_some(), "{mode}: {error}");
        assert_eq!(inner.calls(), 0);
        close(level(&limiter, &ONE).await, 1.0, mode);
    });
}

// ---------------------------------------------------------------------------------------------
// Dropped at every await point

/// So large that it does not fill up during a test.
const LARGE: Scope = Quota::per_second(10.0).burst(50.0).scope("large");

/// Polls up to `times` times, 20 ms apart.
async fn poll_up_to<F: Future>(future: F, times: usize) {
    let mut future = pin!(future);
    for nth in 0..times {
        if nth > 0 {
            advance(ms(20)).await;
        }
        if poll_once(future.as_mut()).is_ready() {
            return;
        }
    }
}

/// One request over a spent bucket, dropped after `times` polls. The bucket then has the same level
/// as without the request, except for what reached the inner service.
async fn dropped_after<K>(
    mode: &str,
    layer: RateLimitLayer<K>,
    limiter: &Limiter,
    times: usize,
    spent: f64,
    unready: Option<(Duration, Duration)>,
    only_poll_ready: bool,
) -> usize
where
    K: ScopeExtractor<Req> + Clone + Send + Sync + 'static,
{
    let control = Limiter::in_memory();
    for limiter in [limiter, &control] {
        limiter.bucket(&LARGE).reset().await.unwrap();
        limiter.try_acquire(LARGE.cost(spent)).await.unwrap();
    }
    let inner = Strict::with(unready, ms(30));
    let mut service = layer.layer(ConcurrencyLimit::new(inner.clone(), 1));
    if only_poll_ready {
        poll_up_to(ready(&mut service), times).await;
        drop(service);
    } else {
        poll_up_to(service.oneshot("a"), times).await;
    }
    // Past the reservation of any waiter.
    sleep(ms(110)).await;
    let (got, wanted) = (
        level(limiter, &LARGE).await,
        level(&control, &LARGE).await - inner.calls() as f64,
    );
    let what = format!("{mode}, {times} polls, {spent} spent, {unready:?}, {only_poll_ready}");
    close(got, wanted, &what);
    assert!(wanted < 49.0, "the bucket is not full: {what}");
    inner.calls()
}

#[tokio::test(start_paused = true)]
async fn future_dropped_after_any_poll_gives_tokens_back() {
    for_each_mode!(LARGE, LONG, |mode, limiter, layer| {
        for spent in [20.0, 50.0] {
            for unready in [None, Some((ms(0), ms(70))), Some((ms(50), ms(150)))] {
                for only_poll_ready in [true, false] {
                    let mut calls = 0;
                    for times in 0..14 {
                        calls += dropped_after(
                            mode,
                            layer.clone(),
                            &limiter,
                            times,
                            spent,
                            unready,
                            only_poll_ready,
                        )
                        .await;
                    }
                    let may_call = !only_poll_ready && (spent < 50.0 || mode.ends_with("waits"));
                    if may_call || only_poll_ready {
                        assert_eq!(calls > 0, may_call, "{mode}, {spent} spent, {unready:?}");
                    }
                }
            }
        }
    });
}

#[tokio::test(start_paused = true)]
async fn response_future_dropped_before_its_first_poll() {
    for_each_mode!(DAY, LONG, |mode, limiter, layer| {
        let inner = Strict::new();
        let mut service = layer.layer(inner.clone());
        ready(&mut service).await.unwrap();
        let future = service.call("a");
        // If the token is available at once, `call` is the inner call. Otherwise nothing has begun.
        let called = inner.calls();
        drop(future);
        drop(service);
        close(level(&limiter, &DAY).await, 5.0 - called as f64, mode);
        assert_eq!(inner.calls(), called, "{mode}");
    });
}

// ---------------------------------------------------------------------------------------------
// Extractors and scopes

#[tokio::test(start_paused = true)]
async fn panicking_extractor_takes_nothing() {
    for max_wait in [Duration::ZERO, LONG] {
        let limiter = Limiter::in_memory();
        let inner = Strict::new();
        let extractor = |req: &Req| {
            assert_ne!(*req, "boom");
            DAY
        };
        let mut service = layer(&limiter, extractor, max_wait).layer(inner.clone());
        for _ in 0..2 {
            ready(&mut service).await.unwrap();
            let panicked = catch_unwind(AssertUnwindSafe(|| drop(service.call("boom"))));
            assert!(panicked.is_err());
        }
        close(level(&limiter, &DAY).await, 5.0, "nothing is taken");
        ready(&mut service).await.unwrap();
        service.call("fine").await.unwrap();
        close(level(&limiter, &DAY).await, 4.0, "one is taken");
        assert_eq!(inner.calls(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn max_wait_may_be_unbounded() {
    for_each_waiting_mode!(ONE, Duration::MAX, |mode, _limiter, layer| {
        let inner = Strict::new();
        let mut service = layer.layer(inner.clone());
        let start = Instant::now();
        for _ in 0..3 {
            ready(&mut service).await.unwrap();
            service.call("a").await.unwrap();
        }
        assert!(start.elapsed() >= 2 * TICK, "{mode}");
    });
    let limiter = Limiter::in_memory();
    for _ in 0..2 {
        limiter.acquire(ONE, Duration::MAX).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn cost_of_zero_always_passes() {
    for cost in [0.0, -0.0] {
        for_each_mode!(DAY.cost(cost), LONG, |mode, limiter, layer| {
            limiter.try_acquire(DAY.cost(5.0)).await.unwrap();
            let inner = Strict::new();
            let mut service = layer.layer(inner.clone());
            for _ in 0..3 {
                ready(&mut service).await.unwrap();
                service.call("a").await.unwrap();
            }
            assert_eq!(inner.calls(), 3, "{mode}");
            close(level(&limiter, &DAY).await, 0.0, mode);
        });
    }
}

#[tokio::test(start_paused = true)]
async fn impossible_costs_are_rejected_without_retry_after() {
    let negative = [-1.0, -f64::MIN_POSITIVE, f64::NEG_INFINITY];
    let large = [5.000_001, f64::MAX, f64::INFINITY, f64::NAN];
    for cost in negative.into_iter().chain(large) {
        for_each_mode!(DAY.cost(cost), LONG, |mode, limiter, layer| {
            let inner = Strict::new();
            let mut service = layer.layer(inner.clone());
            for _ in 0..3 {
                ready(&mut service).await.unwrap();
                let error = service.call("a").await.unwrap_err();
                let rejected = rejected(&error);
                assert_eq!(rejected.reason(), Reason::ExceedsCapacity, "{mode}, {cost}");
                assert_eq!(rejected.retry_after(), None, "{mode}, {cost}");
            }
            assert_eq!(inner.calls(), 0, "{mode}, {cost}");
            drop(service);
            close(level(&limiter, &DAY).await, 5.0, mode);
        });
    }
}

#[tokio::test(start_paused = true)]
async fn same_bucket_twice_is_one_request_with_both_costs() {
    for max_wait in [Duration::ZERO, LONG] {
        let limiter = Limiter::in_memory();
        let mut service = layer(&limiter, [DAY, DAY], max_wait).layer(Strict::new());
        for left in [3.0, 1.0] {
            ready(&mut service).await.unwrap();
            service.call("a").await.unwrap();
            close(level(&limiter, &DAY).await, left, "two at a time");
        }
        ready(&mut service).await.unwrap();
        let error = service.call("a").await.unwrap_err();
        assert_eq!(rejected(&error).reason(), Reason::Limited);

        limiter.bucket(&DAY).reset().await.unwrap();
        let both = [DAY.cost(2.0), DAY.cost(3.0)];
        let mut service = layer(&limiter, both, max_wait).layer(Strict::new());
        ready(&mut service).await.unwrap();
        service.call("a").await.unwrap();
        close(level(&limiter, &DAY).await, 0.0, "five of five");

        limiter.bucket(&DAY).reset().await.unwrap();
        let too_much = [DAY.cost(2.0), DAY.cost(4.0)];
        let mut service = layer(&limiter, too_much, max_wait).layer(Strict::new());
        ready(&mut service).await.unwrap();
        let error = service.call("a").await.unwrap_err();
        assert_eq!(rejected(&error).reason(), Reason::ExceedsCapacity);
        close(level(&limiter, &DAY).await, 5.0, "six of five");
    }
}

#[tokio::test(start_paused = true)]
async fn one_of_several_scopes_rejects_the_request() {
    const OTHER: Scope = Quota::per_day(1.0).scope("other");
    for max_wait in [Duration::ZERO, LONG] {
        let limiter = Limiter::in_memory();
        let inner = Strict::new();
        let mut service = layer(&limiter, [DAY, OTHER], max_wait).layer(inner.clone());
        for _ in 0..4 {
            ready(&mut service).await.unwrap();
            let _ = service.call("a").await;
        }
        assert_eq!(inner.calls(), 1);
        close(
            level(&limiter, &DAY).await,
            4.0,
            "not taken by the rejected",
        );
    }
}

#[tokio::test(start_paused = true)]
async fn no_scope_means_no_limit() {
    for max_wait in [Duration::ZERO, LONG] {
        let limiter = Limiter::in_memory();
        let inner = Strict::new();
        let free = |req: &Req| (*req != "free").then_some(DAY.cost(5.0));
        let mut service = layer(&limiter, free, max_wait).layer(inner.clone());
        for _ in 0..20 {
            ready(&mut service).await.unwrap();
            service.call("free").await.unwrap();
        }
        assert_eq!(inner.calls(), 20);
        close(level(&limiter, &DAY).await, 5.0, "nothing is counted");
    }
}

#[tokio::test(start_paused = true)]
async fn different_keys_have_different_buckets() {
    const SITE: Scope = Quota::per_day(1.0).scope("site");
    const KEY: Scope = Quota::per_day(1.0).scope("key");
    let long = "x".repeat(10_000);
    let keys = [
        "",
        ":",
        "::",
        "%",
        "#",
        "%3a",
        "{",
        "}",
        "{site}",
        "site",
        ":site",
        "site:",
        "key:site",
        "throttle:v1|site",
        "throttle:v1|{#}directory",
        "{#}16s:0",
        "#paid:site:1",
        "\0",
        "a\0",
        "a\0b",
        "a",
        "a:b",
        "a\nb",
        "a\r\nb",
        " ",
        "*",
        "?",
        "\u{fe}",
        "\u{ff}",
        "ÿ",
        "\u{10ffff}",
        "..",
        "/",
        "\\",
        "NaN",
        "key",
        "{\"a\":1}",
    ];
    let mut keys: Vec<String> = keys.into_iter().map(String::from).collect();
    keys.sort();
    keys.dedup();
    keys.extend([long.clone(), format!("{long}y"), format!("y{long}")]);
    // Around the sizes at which keys move to the heap and are hashed.
    keys.extend((36..67).map(|length| "k".repeat(length)));
    let mut scopes: Vec<Scope> = keys.iter().map(|key| KEY.key(key)).collect();
    scopes.extend([SITE, KEY]);
    scopes.extend(["key:a", "key%3aa", "key:", "a"].map(|name| Scope::new(name, KEY.quota())));
    scopes.push(Scope::new("key:a", KEY.quota()).key("b"));

    let limiter = Limiter::in_memory();
    let answers = async || {
        let service = RateLimitLayer::new(&limiter, |scope: &Scope| scope.clone())
            .layer(tower::service_fn(async |_: Scope| Ok::<_, Broken>(())));
        let mut served = Vec::new();
        for scope in &scopes {
            served.push(service.clone().oneshot(scope.clone()).await.is_ok());
        }
        served
    };
    let first = answers().await;
    assert!(first.iter().all(|served| *served), "{first:?}");
    assert_eq!(limiter.scopes_held(), scopes.len());
    let second = answers().await;
    assert!(second.iter().all(|served| !*served), "{second:?}");
}
