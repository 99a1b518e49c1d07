//! One limiter on several runtimes: each caller's wait is bounded by its own runtime, whatever the
//! others do. And a limiter without a runtime.
#![cfg(feature = "redis")]

#[path = "support/mod.rs"]
mod support;
#[path = "support/watch.rs"]
mod watch;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc,
    thread,
    time::Duration,
};

use futures_util::FutureExt;
use support::{Proxy, RedisServer};
use tokio::{
    runtime::{Builder, Runtime},
    time::{Instant, timeout},
};
use tower_throttle::{Health, Limiter, Quota, Scope};
use watch::until;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const PLENTY: Scope = Quota::per_day(1.0).burst(1e6).scope("plenty");

fn current_thread() -> Runtime {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

/// The result of `f` on a thread of its own, or `None` if it takes longer than `bound`.
fn within<T: Send + 'static>(bound: Duration, f: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(f()));
    receiver.recv_timeout(bound).ok()
}

/// A limiter whose background tasks are on a runtime that exists and is not driven.
fn undriven(server: &RedisServer) -> (Limiter, Runtime) {
    let limiter = Limiter::redis(&server.url()).expect("a URL");
    let owner = current_thread();
    let first = owner.block_on(limiter.try_acquire(PLENTY));
    assert!(!first.expect("plenty").is_degraded());
    (limiter, owner)
}

#[test]
fn undriven_runtime_does_not_block_another() {
    let keep = Runtime::new().expect("a runtime");
    let server = keep.block_on(RedisServer::start());
    let (limiter, owner) = undriven(&server);
    let (other, url) = (limiter.clone(), server.url());
    let decided = within(20 * SECOND, move || {
        current_thread().block_on(async {
            let mut degraded = 0;
            for _ in 0..100 {
                let permit = other.try_acquire(PLENTY).await.expect("plenty");
                degraded += usize::from(permit.is_degraded());
            }
            let fresh = Limiter::redis(&url).expect("a URL");
            let level = fresh.bucket(&PLENTY).level().await.expect("Redis answers");
            (degraded, level, other.health())
        })
    });
    let (degraded, level, health) = decided.expect("blocked by the undriven runtime");
    assert_eq!(health, Health::Redis);
    assert!(degraded <= 10, "{degraded} of 100 were decided from memory");
    println!("{degraded} of 100 were decided from memory");
    assert!(level <= 1e6 - 90.0, "{level}");
    // The first runtime continues where it stopped, next to the one that took over and has ended.
    let permit = owner.block_on(async { timeout(5 * SECOND, limiter.try_acquire(PLENTY)).await });
    assert!(permit.expect("hangs").is_ok());
}

async fn count(server: &RedisServer, command: &[&str]) -> usize {
    let mut query = redis::cmd(command[0]);
    let mut connection = server.connection().await;
    match query.arg(&command[1..]).query_async(&mut connection).await {
        Ok(redis::Value::Int(count)) => count as usize,
        Ok(redis::Value::VerbatimString { text, .. }) => text.lines().count(),
        Ok(redis::Value::BulkString(text)) => String::from_utf8_lossy(&text).lines().count(),
        other => panic!("{other:?}"),
    }
}

/// There is one connection again once the first runtime continues, and none is left when the
/// limiter is dropped while that runtime is not driven.
#[test]
fn replaced_owner_ends_its_tasks() {
    let keep = Runtime::new().expect("a runtime");
    let server = keep.block_on(RedisServer::start());
    for is_driven_again in [true, false] {
        let (limiter, owner) = undriven(&server);
        let taken = keep.block_on(async { limiter.try_acquire(PLENTY).await });
        assert!(!taken.expect("plenty").is_degraded());
        // The connection that counts the clients is one of them.
        let clients = async || count(&server, &["CLIENT", "LIST", "TYPE", "NORMAL"]).await;
        assert_eq!(keep.block_on(clients()), 3);
        if is_driven_again {
            owner.block_on(until("one connection", async || clients().await == 2));
            let again = owner.block_on(limiter.try_acquire(PLENTY));
            assert!(!again.expect("plenty").is_degraded());
            assert_eq!(limiter.fallbacks(), 0);
        }
        let alive = async || count(&server, &["ZCARD", "throttle:v1|{#}limiters"]).await;
        assert_eq!(keep.block_on(alive()), 1);
        drop(limiter);
        keep.block_on(until("a deregistration", async || alive().await == 0));
        drop(owner);
        keep.block_on(until("no connection", async || clients().await == 1));
    }
}

#[test]
fn undriven_runtime_does_not_block_inspection() {
    let keep = Runtime::new().expect("a runtime");
    let server = keep.block_on(RedisServer::start());
    let (limiter, _owner) = undriven(&server);
    let decided = within(20 * SECOND, move || {
        current_thread().block_on(async {
            limiter.bucket(&PLENTY).reset().await.unwrap();
            let level = limiter.bucket(&PLENTY).level().await;
            limiter.deregister().await;
            level
        })
    });
    let level = decided.expect("blocked by the undriven runtime");
    assert_eq!(level.expect("Redis answers"), 1e6);
}

/// The owner of the background tasks of a limiter is not driven, and has a waiter.
fn undriven_with_a_waiter(limiter: &Limiter, scope: &Scope) -> Runtime {
    let owner = current_thread();
    owner.block_on(async {
        limiter.try_acquire(scope).await.expect("the first");
        let waits = limiter.acquire(scope, 60 * SECOND);
        tokio::spawn(waits);
        // Until it has a reservation.
        while limiter.bucket(scope).level().await.unwrap() > -0.5 {
            tokio::time::sleep(5 * MS).await;
        }
    });
    owner
}

fn waits_next_to_an_undriven_runtime(limiter: Limiter) {
    let scope = Quota::per_second(2.0).burst(1.0).scope("slow");
    let owner = undriven_with_a_waiter(&limiter, &scope);
    let other = limiter.clone();
    let waited = within(20 * SECOND, move || {
        current_thread().block_on(async {
            let start = Instant::now();
            let permit = other.acquire(&scope, 10 * SECOND).await;
            (permit.map(|permit| permit.is_degraded()), start.elapsed())
        })
    });
    let (permit, waited) = waited.expect("the waiter hangs");
    assert_eq!(permit.ok(), Some(false), "after {waited:?}");
    assert!(waited < 10 * SECOND, "{waited:?}");
    drop(owner);
}

#[test]
fn undriven_runtime_does_not_block_waiters_on_redis() {
    let keep = Runtime::new().expect("a runtime");
    let server = keep.block_on(RedisServer::start());
    waits_next_to_an_undriven_runtime(Limiter::redis(&server.url()).expect("a URL"));
}

#[test]
fn undriven_runtime_does_not_block_waiters_in_memory() {
    waits_next_to_an_undriven_runtime(Limiter::in_memory());
}

/// Many waiters of a running runtime, while the runtime that wakes them is blocked.
#[test]
fn undriven_runtime_does_not_lower_the_rate_of_waiters_elsewhere() {
    let limiter = Limiter::in_memory();
    let scope = Quota::per_second(20.0).burst(1.0).scope("slow");
    let owner = undriven_with_a_waiter(&limiter, &scope);
    let served = within(30 * SECOND, move || {
        current_thread().block_on(async {
            let start = Instant::now();
            let waits = (0..20).map(|_| limiter.acquire(&scope, 20 * SECOND));
            let served = futures_util::future::join_all(waits).await;
            (
                served.iter().filter(|one| one.is_ok()).count(),
                start.elapsed(),
            )
        })
    });
    let (served, took) = served.expect("the waiters hang");
    assert_eq!(served, 20, "in {took:?}");
    assert!(took > 900 * MS, "faster than the rate: {took:?}");
    drop(owner);
}

/// The wait queue moves from runtime to runtime, as each of them stops being driven.
#[test]
fn waiters_of_several_runtimes_are_served_when_others_stop() {
    let limiter = Limiter::in_memory();
    let scope = Quota::per_second(20.0).burst(1.0).scope("slow");
    let owner = undriven_with_a_waiter(&limiter, &scope);
    let served = within(30 * SECOND, move || {
        let start = Instant::now();
        let served: usize = thread::scope(|threads| {
            let mut all = Vec::new();
            for stops in [true, false, false] {
                let (limiter, scope) = (limiter.clone(), scope.clone());
                all.push(threads.spawn(move || {
                    let own = current_thread();
                    let waits = (0..10).map(|_| limiter.acquire(&scope, 20 * SECOND));
                    let mut waits = Box::pin(futures_util::future::join_all(waits));
                    let stopped = stops
                        && own.block_on(async { timeout(SECOND / 5, &mut waits).await.is_err() });
                    if stopped {
                        // Its waiters are still in the wait queue.
                        return (0, Some((own, waits)));
                    }
                    let served = own.block_on(waits);
                    (served.iter().filter(|one| one.is_ok()).count(), None)
                }));
            }
            let all: Vec<_> = all
                .into_iter()
                .map(|one| one.join().expect("no panic"))
                .collect();
            all.iter().map(|(served, _)| served).sum()
        });
        (served, start.elapsed())
    });
    let (served, took) = served.expect("the waiters hang");
    assert_eq!(served, 20, "in {took:?}");
    drop(owner);
}

/// As in tests that share a static limiter.
fn short_runtimes(threads: usize) -> (u64, f64) {
    let keep = Runtime::new().expect("a runtime");
    let server = keep.block_on(RedisServer::start());
    let limiter = Limiter::redis(&server.url()).expect("a URL");
    let own = limiter.clone();
    let done = within(60 * SECOND, move || {
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    for _ in 0..100 / threads {
                        current_thread().block_on(async {
                            for _ in 0..20 {
                                own.try_acquire(PLENTY).await.expect("plenty");
                            }
                        });
                    }
                });
            }
        });
    });
    done.expect("hangs");
    let level = current_thread().block_on(limiter.bucket(&PLENTY).level());
    println!("{} of 2,000 decided from memory", limiter.fallbacks());
    (limiter.fallbacks(), level.expect("Redis answers"))
}

#[test]
fn short_runtimes_in_sequence_are_served_by_redis() {
    let (fallbacks, level) = short_runtimes(1);
    assert!(fallbacks <= 20, "{fallbacks} of 2,000 decided from memory");
    assert!(level <= 1e6 - 1_980.0, "{level}");
}

#[test]
fn short_runtimes_in_parallel_are_served_by_redis() {
    let (fallbacks, level) = short_runtimes(4);
    assert!(fallbacks <= 20, "{fallbacks} of 2,000 decided from memory");
    assert!(level <= 1e6 - 1_980.0, "{level}");
}

/// Charges, pauses and refunds of a call that has no reply yet.
#[test]
fn batch_in_flight_at_the_shutdown_of_its_runtime_is_delivered_later() {
    let keep = Runtime::new().expect("a runtime");
    let (server, proxy) = keep.block_on(async {
        let server = RedisServer::start().await;
        let proxy = Proxy::start(server.port()).await;
        (server, proxy)
    });
    let limiter = Limiter::builder()
        .redis(proxy.url())
        .redis_timeout(20 * SECOND)
        .build()
        .expect("a URL");
    let charged = Quota::per_day(1.0).burst(1_000.0).scope("charged");
    let paused = Quota::per_day(86_400.0).burst(1_000.0).scope("paused");
    let first = current_thread();
    first.block_on(async {
        let permit = limiter.try_acquire(&charged).await.expect("plenty");
        limiter.try_acquire(&paused).await.expect("plenty");
        proxy.stall();
        permit.settle(101.0);
        limiter.bucket(&paused).pause(600 * SECOND);
        // Until both are in flight, or queued behind what is.
        tokio::time::sleep(200 * MS).await;
    });
    drop(first);
    proxy.cut();
    proxy.pass();
    let fresh = Limiter::redis(&server.url()).expect("a URL");
    keep.block_on(async {
        let arrives = async {
            loop {
                let _ = limiter.try_acquire(&paused).await;
                let level = fresh.bucket(&charged).level().await.unwrap();
                let rejected = fresh.try_acquire(&paused).await.err();
                let wait = rejected.and_then(|rejected| rejected.retry_after());
                // Charged at most twice.
                assert!(level > 1_000.0 - 202.0 - 0.5, "{level}");
                if level < 1_000.0 - 100.5 && wait > Some(500 * SECOND) {
                    break;
                }
                tokio::time::sleep(10 * MS).await;
            }
        };
        let arrived = timeout(10 * SECOND, arrives).await;
        let level = fresh.bucket(&charged).level().await.unwrap();
        let rejected = fresh.try_acquire(&paused).await.err();
        assert!(arrived.is_ok(), "{level} are left, {rejected:?}");
    });
}

/// The message of the panic of `f`.
fn panics(f: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(f)).expect_err("a panic");
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => (*panic.downcast::<&str>().expect("a string")).to_owned(),
    }
}

fn limiters() -> [Limiter; 2] {
    let redis = Limiter::redis("redis://127.0.0.1:1").expect("a URL");
    [Limiter::in_memory(), redis]
}

#[test]
fn without_a_runtime_it_panics_with_one_message() {
    for limiter in limiters() {
        let scope = Quota::per_day(1.0).burst(1.0).scope("s");
        let waits = || {
            for _ in 0..2 {
                let _ = limiter.acquire(&scope, 200_000 * SECOND).now_or_never();
            }
        };
        let message = panics(waits);
        assert!(message.contains("Tokio runtime"), "{limiter:?}: {message}");
        assert!(message.contains("tower-throttle"), "{limiter:?}: {message}");
        assert_eq!(limiter.fallbacks(), 0);
    }
    let [_, redis] = limiters();
    let scope = Quota::per_day(1.0).scope("s");
    for message in [
        panics(|| drop(redis.try_acquire(&scope).now_or_never())),
        panics(|| _ = redis.bucket(&scope).level().now_or_never()),
        panics(|| _ = redis.bucket(&scope).reset().now_or_never()),
        panics(|| _ = redis.bucket(&scope).cap_level(1.0).now_or_never()),
    ] {
        assert!(message.contains("Tokio runtime"), "{message}");
    }
    // An acquisition that neither calls Redis nor waits needs no runtime.
    let [memory, _] = limiters();
    let taken = memory.try_acquire(&scope).now_or_never();
    assert!(taken.expect("at once").is_ok());
    let rejected = memory.try_acquire(scope.cost(1.0)).now_or_never();
    assert!(rejected.expect("at once").is_err());
}

#[test]
fn on_a_runtime_without_a_timer_it_panics_with_one_message() {
    for limiter in limiters() {
        let scope = Quota::per_day(1.0).burst(1.0).scope("s");
        let runtime = Builder::new_current_thread().build().expect("a runtime");
        let message = panics(|| {
            runtime.block_on(async {
                for _ in 0..2 {
                    let _ = limiter.acquire(&scope, 200_000 * SECOND).now_or_never();
                }
            });
        });
        assert!(message.contains("enable_time"), "{limiter:?}: {message}");
        assert_eq!(limiter.fallbacks(), 0, "{limiter:?}");
    }
}

/// As in a synchronous SDK: the runtime is driven during each call, and no longer.
#[test]
fn outage_ends_for_a_runtime_that_is_driven_by_calls_only() {
    let keep = Runtime::new().expect("a runtime");
    let mut server = keep.block_on(RedisServer::start());
    let limiter = Limiter::redis(&server.url()).expect("a URL");
    let other = limiter.clone();
    let recovered = within(60 * SECOND, move || {
        let own = current_thread();
        let acquire = || own.block_on(other.try_acquire(PLENTY)).expect("plenty");
        assert!(!acquire().is_degraded());
        server.kill9();
        while !acquire().is_degraded() || other.health() == Health::Redis {}
        for _ in 0..10 {
            acquire();
        }
        keep.block_on(server.restart());
        let start = Instant::now();
        while acquire().is_degraded() && start.elapsed() < 20 * SECOND {
            keep.block_on(async { tokio::time::sleep(10 * MS).await });
        }
        start.elapsed()
    });
    let recovered = recovered.expect("hangs");
    assert!(recovered < 20 * SECOND, "still from memory");
    assert_eq!(limiter.health(), Health::Redis);
}

/// A value dropped by the shutdown of its runtime uses a limiter, which can start no task there.
fn used_in_a_shutdown(limiter: Limiter, runtime: Runtime) {
    struct UsesOnDrop(Limiter, mpsc::Sender<usize>);

    impl Drop for UsesOnDrop {
        fn drop(&mut self) {
            let slow = Quota::per_second(1.0).burst(1.0).scope("slow");
            let mut decided = 0;
            for max_wait in [Duration::ZERO, 60 * SECOND] {
                for _ in 0..3 {
                    let acquire = self.0.acquire(&slow, max_wait);
                    decided += usize::from(acquire.now_or_never().is_some());
                }
            }
            self.1.send(decided).expect("a listener");
        }
    }

    let done = within(20 * SECOND, move || {
        let (sender, receiver) = mpsc::channel();
        let uses = UsesOnDrop(limiter, sender);
        runtime.block_on(async {
            tokio::spawn(async move {
                let _asks = uses;
                std::future::pending::<()>().await
            });
            tokio::task::yield_now().await;
        });
        drop(runtime);
        receiver.recv().expect("it was dropped")
    });
    assert_eq!(done, Some(6), "hangs in the shutdown");
}

#[test]
fn shutdown_does_not_block_acquisitions_from_memory() {
    used_in_a_shutdown(Limiter::in_memory(), current_thread());
}

#[test]
fn shutdown_does_not_block_acquisitions_from_redis() {
    let keep = Runtime::new().expect("a runtime");
    let server = keep.block_on(RedisServer::start());
    for runtime in [current_thread(), Runtime::new().expect("a runtime")] {
        let limiter = Limiter::redis(&server.url()).expect("a URL");
        used_in_a_shutdown(limiter, runtime);
    }
}

/// Waiters on a runtime that ends do not keep their reservations in Redis.
#[test]
fn reservations_of_an_ended_runtime_delay_no_later_request() {
    let keep = Runtime::new().expect("a runtime");
    let server = keep.block_on(RedisServer::start());
    let limiter = Limiter::redis(&server.url()).expect("a URL");
    let api = Quota::per_second(1.0).scope("api");
    let ends = current_thread();
    let start = ends.block_on(async {
        limiter.try_acquire(PLENTY).await.expect("plenty");
        limiter.try_acquire(&api).await.expect("full");
        let start = Instant::now();
        for _ in 0..5 {
            tokio::spawn(limiter.acquire(&api, 60 * SECOND));
        }
        let reserved = async {
            while limiter.bucket(&api).level().await.unwrap() > -4.0 {
                tokio::time::sleep(5 * MS).await;
            }
        };
        timeout(5 * SECOND, reserved).await.expect("reservations");
        start
    });
    drop(ends);
    let waited = current_thread().block_on(async {
        let later = limiter.acquire(&api, 60 * SECOND).await;
        assert!(!later.expect("a reservation").is_degraded());
        start.elapsed()
    });
    // The first token is due after 1 s, and a busy machine may be late.
    assert!(
        waited < 4 * SECOND,
        "{waited:?}: behind cancelled reservations"
    );
}
