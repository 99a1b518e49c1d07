//! Foreign code (wakers, health watchers, metrics recorders, subscribers) runs without any of the
//! limiter's locks: here it uses the limiter itself, on the thread that runs it.

#[cfg(feature = "redis")]
#[path = "support/mod.rs"]
mod support;

use std::{
    future::Future,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    task::{Context, Wake, Waker},
    thread,
    time::Duration,
};

use futures_util::FutureExt;
use tokio::runtime::{Builder, Runtime};
use tower_throttle::{Acquire, Limiter, Quota, Scope};

const SECOND: Duration = Duration::from_secs(1);

fn current_thread() -> Runtime {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

/// The result of `f`, which may deadlock.
fn within<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(f()));
    receiver
        .recv_timeout(20 * SECOND)
        .expect("a deadlock, or a panic that is printed above")
}

/// Runs one closure when it is woken, and another when the last of its clones is dropped.
struct Runs {
    woken: Box<dyn Fn() + Send + Sync>,
    dropped: Box<dyn Fn() + Send + Sync>,
}

impl Wake for Runs {
    fn wake(self: Arc<Self>) {
        (self.woken)();
    }
}

impl Drop for Runs {
    fn drop(&mut self) {
        (self.dropped)();
    }
}

fn nothing() -> Box<dyn Fn() + Send + Sync> {
    Box::new(|| {})
}

/// Calls everything that takes a lock.
fn use_all(limiter: &Limiter, scope: &Scope) {
    let _ = limiter.try_acquire(scope).now_or_never();
    let _ = limiter.acquire(scope, 60 * SECOND).now_or_never();
    let _ = limiter
        .try_acquire([scope.clone(), Quota::per_hour(1.0).scope("other")])
        .now_or_never();
    let _ = limiter.bucket(scope).level().now_or_never();
    limiter.bucket(scope).pause(SECOND / 1_000);
    let _ = limiter.bucket(scope).cap_level(0.5).now_or_never();
    limiter.bucket(scope).adjust(1.0);
    let _ = limiter.bucket(scope).reset().now_or_never();
    let _ = (limiter.health(), limiter.fallbacks(), limiter.scopes_held());
    drop(limiter.health_changes().borrow().clone());
}

/// The drop of a replaced waker cancels other waiters of the same wait queue.
#[test]
fn replaced_waker_is_dropped_without_a_lock() {
    within(|| {
        let runtime = current_thread();
        let _in = runtime.enter();
        let limiter = Limiter::in_memory();
        let scope = Quota::per_second(1.0).burst(1.0).scope("slow");
        limiter
            .try_acquire(&scope)
            .now_or_never()
            .expect("at once")
            .expect("full");
        let waiting = |waker: &Waker| {
            let mut acquire = Box::pin(limiter.acquire(&scope, 600 * SECOND));
            let polled = acquire.as_mut().poll(&mut Context::from_waker(waker));
            assert!(polled.is_pending());
            acquire
        };
        let others: Arc<Mutex<Vec<Pin<Box<Acquire>>>>> = Arc::default();
        let cancels = others.clone();
        let dropped = move || drop(std::mem::take(&mut *cancels.lock().expect("no panic")));
        let runs = Runs {
            woken: nothing(),
            dropped: Box::new(dropped),
        };
        let mut first = waiting(&Waker::from(Arc::new(runs)));
        let many = (0..40).map(|_| waiting(Waker::noop())).collect();
        *others.lock().expect("no panic") = many;
        let polled = first.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(polled.is_pending());
        assert!(others.lock().expect("no panic").is_empty(), "not dropped");
    });
}

#[test]
fn waker_may_use_the_limiter() {
    within(|| {
        let limiter = Limiter::in_memory();
        let scope = Quota::per_second(20.0).burst(1.0).scope("slow");
        let uses = {
            let (limiter, scope) = (limiter.clone(), scope.clone());
            move || use_all(&limiter, &scope)
        };
        let runtime = current_thread();
        runtime.block_on(async {
            let woken = Arc::new(AtomicUsize::new(0));
            let counts = woken.clone();
            let waker = Waker::from(Arc::new(Runs {
                woken: Box::new({
                    let uses = uses.clone();
                    move || {
                        uses();
                        counts.fetch_add(1, Ordering::Relaxed);
                    }
                }),
                dropped: Box::new(uses),
            }));
            limiter.try_acquire(&scope).await.expect("full");
            let mut acquire = Box::pin(limiter.acquire(&scope, 60 * SECOND));
            while woken.load(Ordering::Relaxed) < 2 {
                let polled = acquire.as_mut().poll(&mut Context::from_waker(&waker));
                if polled.is_ready() {
                    acquire = Box::pin(limiter.acquire(&scope, 60 * SECOND));
                }
                tokio::time::sleep(SECOND / 100).await;
            }
        });
    });
}

/// A port without a listener.
#[cfg(feature = "redis")]
const NO_REDIS: &str = "redis://127.0.0.1:1";

#[cfg(feature = "redis")]
#[test]
fn health_watcher_may_use_the_limiter() {
    within(|| {
        let limiter = Limiter::redis(NO_REDIS).expect("a URL");
        let scope = Quota::per_second(1.0).scope("api");
        let seen = Arc::new(AtomicUsize::new(0));
        let runs = Runs {
            woken: Box::new({
                let (limiter, scope, seen) = (limiter.clone(), scope.clone(), seen.clone());
                move || {
                    use_all(&limiter, &scope);
                    seen.fetch_add(1, Ordering::Relaxed);
                }
            }),
            dropped: nothing(),
        };
        let waker = Waker::from(Arc::new(runs));
        let mut changes = limiter.health_changes();
        let mut changed = pin!(changes.changed());
        assert!(
            changed
                .as_mut()
                .poll(&mut Context::from_waker(&waker))
                .is_pending()
        );
        current_thread().block_on(async {
            while seen.load(Ordering::Relaxed) == 0 {
                let _ = limiter.try_acquire(&scope).await;
                tokio::time::sleep(SECOND / 100).await;
            }
        });
        assert!(matches!(
            limiter.health(),
            tower_throttle::Health::Degraded { .. }
        ));
    });
}

/// Borrowing the health locks the watch channel for as long as the borrow lasts. No decision waits
/// for it.
#[cfg(feature = "redis")]
#[test]
fn borrowed_health_blocks_no_decision() {
    let keep = Runtime::new().expect("a runtime");
    let mut server = keep.block_on(support::RedisServer::start());
    within(move || {
        let owner = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let limiter = Limiter::redis(&server.url()).expect("a URL");
        let scope = Quota::per_second(1e6).scope("api");
        let first = owner.spawn({
            let (limiter, scope) = (limiter.clone(), scope.clone());
            async move { limiter.try_acquire(&scope).await.is_ok() }
        });
        let runtime = current_thread();
        assert!(runtime.block_on(first).expect("no panic"));
        let changes = limiter.health_changes();
        let looked_at = changes.borrow();
        server.kill9();
        for _ in 0..20 {
            while runtime
                .block_on(limiter.try_acquire(&scope))
                .is_ok_and(|permit| !permit.is_degraded())
            {}
        }
        assert_ne!(limiter.health(), *looked_at);
    });
}

#[cfg(feature = "metrics")]
mod recorder {
    use std::cell::Cell;

    use metrics::{
        Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata,
        Recorder, SharedString, Unit,
    };

    use super::*;

    thread_local! {
        static INSIDE: Cell<bool> = const { Cell::new(false) };
    }

    /// Uses the limiter whenever it is called.
    #[derive(Clone, Default)]
    struct Uses(Arc<Mutex<Option<(Limiter, Scope)>>>, Arc<AtomicUsize>);

    impl Uses {
        fn run(&self) {
            if INSIDE.replace(true) {
                return;
            }
            let limiter = self.0.lock().expect("no panic").clone();
            if let Some((limiter, scope)) = limiter {
                use_all(&limiter, &scope);
                self.1.fetch_add(1, Ordering::Relaxed);
            }
            INSIDE.set(false);
        }
    }

    impl CounterFn for Uses {
        fn increment(&self, _: u64) {
            self.run();
        }
        fn absolute(&self, _: u64) {
            self.run();
        }
    }

    impl GaugeFn for Uses {
        fn increment(&self, _: f64) {
            self.run();
        }
        fn decrement(&self, _: f64) {
            self.run();
        }
        fn set(&self, _: f64) {
            self.run();
        }
    }

    impl HistogramFn for Uses {
        fn record(&self, _: f64) {
            self.run();
        }
    }

    impl Recorder for Uses {
        fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {
            self.run();
        }
        fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {
            self.run();
        }
        fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {
            self.run();
        }
        fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
            self.run();
            Counter::from_arc(Arc::new(self.clone()))
        }
        fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
            self.run();
            Gauge::from_arc(Arc::new(self.clone()))
        }
        fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
            self.run();
            Histogram::from_arc(Arc::new(self.clone()))
        }
    }

    /// Buckets are created, swept and reset, alone and in one acquisition. The limiter waits, and
    /// has no Redis, where it uses one.
    fn recorder_may_use(limiter: Limiter, rounds: usize) {
        within(move || {
            let uses = Uses::default();
            let fast = Quota::per_second(1e6).scope("fast");
            let slow = Quota::per_second(50.0).burst(1.0).scope("slow");
            *uses.0.lock().expect("no panic") = Some((limiter.clone(), slow.clone()));
            metrics::with_local_recorder(&uses, || {
                current_thread().block_on(async {
                    for round in 0..rounds {
                        // Full again at once, and so swept.
                        let _ = limiter.try_acquire(fast.clone().key(round)).await;
                        let both = [fast.clone().key(round + 1_000), slow.clone().key(round)];
                        let _ = limiter.try_acquire(both).await;
                        let _ = limiter.bucket(&slow.key(round)).reset().await;
                    }
                    let _ = limiter.acquire(&slow, SECOND).await;
                    let _ = limiter.acquire(&slow, SECOND).await;
                    tokio::time::sleep(SECOND / 10).await;
                });
            });
            assert!(uses.1.load(Ordering::Relaxed) > 2 * rounds);
            uses.0.lock().expect("no panic").take();
        });
    }

    #[test]
    fn recorder_may_use_the_limiter_in_memory() {
        recorder_may_use(Limiter::in_memory(), 500);
    }

    #[cfg(feature = "redis")]
    #[test]
    fn recorder_may_use_the_limiter_without_its_redis() {
        recorder_may_use(Limiter::redis(NO_REDIS).expect("a URL"), 500);
    }

    #[cfg(feature = "redis")]
    #[test]
    fn recorder_may_use_the_limiter_on_redis() {
        let keep = Runtime::new().expect("a runtime");
        let server = keep.block_on(support::RedisServer::start());
        // Each use is a call to Redis, which the recorder counts.
        recorder_may_use(Limiter::redis(&server.url()).expect("a URL"), 20);
    }
}

#[cfg(all(feature = "tracing", feature = "redis"))]
mod subscriber {
    use std::cell::Cell;

    use tracing::{
        Event, Metadata, Subscriber,
        span::{Attributes, Id, Record},
    };

    use super::*;

    thread_local! {
        static INSIDE: Cell<bool> = const { Cell::new(false) };
    }

    struct Uses(Limiter, Scope, Arc<AtomicUsize>);

    impl Subscriber for Uses {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            metadata.target().starts_with("tower_throttle")
        }
        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }
        fn record(&self, _: &Id, _: &Record<'_>) {}
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn event(&self, _: &Event<'_>) {
            if !INSIDE.replace(true) {
                use_all(&self.0, &self.1);
                self.2.fetch_add(1, Ordering::Relaxed);
                INSIDE.set(false);
            }
        }
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }

    #[test]
    fn subscriber_may_use_the_limiter() {
        let keep = Runtime::new().expect("a runtime");
        let server = keep.block_on(support::RedisServer::start());
        // If there is one subscriber only, a log line that another test reaches first, on a thread
        // without a subscriber, is disabled for all threads.
        let _second = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::default());
        within(move || {
            let scope = Quota::per_hour(1.0).burst(1.0).scope("api");
            let urls = [server.url(), NO_REDIS.to_owned()];
            let mut limiters = urls
                .map(|url| Limiter::redis(&url).expect("a URL"))
                .to_vec();
            limiters.push(Limiter::in_memory());
            for limiter in limiters {
                let events = Arc::new(AtomicUsize::new(0));
                let uses = Uses(limiter.clone(), scope.clone(), events.clone());
                tracing::subscriber::with_default(uses, || {
                    current_thread().block_on(async {
                        for _ in 0..20 {
                            let _ = limiter.try_acquire(&scope).await;
                        }
                    });
                });
                assert!(events.load(Ordering::Relaxed) > 0);
            }
        });
    }
}
