//! Ten thousand callers when Redis freezes: each gets a decision in time, and no task is left.
#![cfg(feature = "redis")]

mod support;
#[path = "support/watch.rs"]
mod watch;

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::poll;
use support::RedisServer;
use tokio::{
    runtime::Handle,
    time::{Instant, sleep, timeout},
};
use tower_throttle::{Limiter, Permit, Quota, Reason, Rejected, Scope};
use watch::{PLENTY, until_recovered};

const SECOND: Duration = Duration::from_secs(1);
const CALLERS: usize = 10_000;

/// Added to the documented bounds: for a busy machine and a build without optimisation.
const SLACK: Duration = Duration::from_secs(5);

fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

/// Waits until the tasks of a dropped limiter have ended.
async fn until_tasks(expected: usize) {
    let gone = async {
        while tasks() > expected {
            sleep(SECOND / 100).await;
        }
    };
    let gone = timeout(2 * SLACK, gone).await;
    assert!(gone.is_ok(), "{} tasks instead of {expected}", tasks());
}

struct Callers {
    tasks: Vec<tokio::task::JoinHandle<(Duration, Result<Permit, Rejected>)>>,
    requested: Arc<AtomicUsize>,
}

impl Callers {
    /// Each caller acquires one of these scopes, and reports how long it took.
    fn start(limiter: &Limiter, scope: impl Fn(usize) -> Scope, max_wait: Duration) -> Self {
        let requested = Arc::new(AtomicUsize::new(0));
        let tasks = (0..CALLERS).map(|n| {
            let mut acquire = limiter.acquire(scope(n), max_wait);
            let requested = requested.clone();
            tokio::spawn(async move {
                let start = Instant::now();
                if let std::task::Poll::Ready(result) = poll!(&mut acquire) {
                    requested.fetch_add(1, Ordering::Relaxed);
                    return (start.elapsed(), result);
                }
                requested.fetch_add(1, Ordering::Relaxed);
                let result = acquire.await;
                (start.elapsed(), result)
            })
        });
        Self {
            tasks: tasks.collect(),
            requested,
        }
    }

    async fn all_have_requested(&self) {
        while self.requested.load(Ordering::Relaxed) < CALLERS {
            tokio::task::yield_now().await;
        }
    }

    /// Counts the callers admitted by Redis, admitted by memory, and rejected. All get a decision
    /// in time, and are rejected only by the limit.
    async fn are_decided_within(self, most: Duration) -> [usize; 3] {
        let mut counts = [0; 3];
        let mut slowest = Duration::ZERO;
        for task in self.tasks {
            let (took, result) = timeout(10 * SLACK, task)
                .await
                .expect("no caller hangs")
                .expect("no panic");
            slowest = slowest.max(took);
            match result {
                Ok(permit) => counts[usize::from(permit.is_degraded())] += 1,
                Err(rejected) => {
                    assert_eq!(rejected.reason(), Reason::Limited);
                    assert!(rejected.retry_after() > Some(Duration::ZERO));
                    counts[2] += 1;
                }
            }
        }
        println!("by Redis, by memory, rejected: {counts:?}; the slowest took {slowest:?}");
        assert!(slowest < most + SLACK, "{slowest:?}");
        counts
    }
}

/// A long timeout, so that the callers meet no fault but the freeze.
fn limiter(server: &RedisServer) -> Limiter {
    let builder = Limiter::builder().redis(server.url());
    builder.redis_timeout(SECOND / 2).build().expect("a URL")
}

async fn warm(limiter: &Limiter) {
    let permit = limiter.try_acquire(PLENTY).await.expect("plenty");
    assert!(!permit.is_degraded());
}

#[tokio::test(flavor = "multi_thread")]
async fn waiters_with_reservations_are_decided_in_time() {
    let server = RedisServer::start().await;
    let before = tasks();
    let limiter = limiter(&server);
    warm(&limiter).await;
    let api = Quota::per_second(5_000.0).burst(1.0).scope("api");
    let callers = Callers::start(&limiter, |_| api.clone(), 10 * SECOND);
    callers.all_have_requested().await;
    // Later callers get later decisions.
    let later = limiter.try_acquire(&api).await;
    assert!(!later.expect_err("spent").is_degraded());
    server.freeze();
    let start = Instant::now();
    let unseen = limiter.try_acquire(PLENTY).await.expect("plenty");
    assert!(unseen.is_degraded() && start.elapsed() < SLACK);
    drop(unseen);
    // What Redis has reserved is taken from the local share (here: of one process) when it is due.
    let [by_redis, by_memory, rejected] = callers.are_decided_within(3 * SECOND).await;
    assert!(by_redis > 0 && by_memory > 0, "{by_redis} and {by_memory}");
    assert_eq!(rejected, 0);
    server.thaw();
    until_recovered(&limiter).await;
    // One bucket for each scope, not for each caller.
    assert!(limiter.scopes_held() <= 2, "{}", limiter.scopes_held());
    drop(limiter);
    until_tasks(before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queued_and_in_flight_requests_are_decided_in_time() {
    let server = RedisServer::start().await;
    let before = tasks();
    let limiter = limiter(&server);
    warm(&limiter).await;
    // Half of the callers share one scope, and half have one each: some hundred calls.
    let one = Quota::per_second(1_000.0).burst(3_000.0).scope("one");
    let each = Quota::per_second(10.0).scope("each");
    let scope = |n| match n % 2 {
        0 => one.clone(),
        _ => each.key(n),
    };
    server.freeze();
    let callers = Callers::start(&limiter, scope, SECOND);
    let start = Instant::now();
    let [by_redis, by_memory, _] = callers.are_decided_within(SECOND).await;
    assert_eq!(by_redis, 0);
    let least = CALLERS / 2 + 3_000;
    // Adds what refills during all of that.
    let refilled = 1_000.0 * (start.elapsed() + SECOND).as_secs_f64();
    let most = least + refilled.ceil() as usize;
    assert!((least..=most).contains(&by_memory), "{by_memory} of {most}");
    server.thaw();
    until_recovered(&limiter).await;
    // An idle limiter keeps its own few tasks, and none of its waiters.
    until_tasks(before + 3).await;
    drop(limiter);
    until_tasks(before).await;
}

/// Runs on one thread: nothing is sent before the callers are cancelled.
#[tokio::test]
async fn requests_cancelled_during_a_freeze_are_not_charged() {
    let server = RedisServer::start().await;
    let before = tasks();
    let limiter = limiter(&server);
    warm(&limiter).await;
    let api = Quota::per_day(1.0).burst(2.0 * CALLERS as f64).scope("api");
    server.freeze();
    let mut callers: Vec<_> = (0..CALLERS)
        .map(|_| limiter.acquire(&api, 10 * SECOND))
        .collect();
    std::future::poll_fn(|cx| {
        for acquire in &mut callers {
            let _ = std::pin::Pin::new(acquire).poll(cx);
        }
        std::task::Poll::Ready(())
    })
    .await;
    drop(callers);
    server.thaw();
    until_recovered(&limiter).await;
    // Redis has not charged the cancelled requests, not even late.
    watch::until_level(&limiter, &api, 2.0 * CALLERS as f64).await;
    drop(limiter);
    until_tasks(before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn buckets_of_an_outage_are_reclaimed() {
    let mut server = RedisServer::start().await;
    let limiter = Limiter::redis(&server.url()).expect("a URL");
    let each = Quota::per_second(10.0).burst(1.0).scope("each");
    limiter.try_acquire(each.key(0)).await.expect("one");
    server.kill9();
    for key in 1..20_000 {
        limiter.try_acquire(each.key(key)).await.expect("one each");
    }
    assert!(limiter.scopes_held() > 1_000, "{}", limiter.scopes_held());
    server.restart().await;
    let forgotten = async {
        while limiter.scopes_held() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let forgotten = tokio::time::timeout(Duration::from_secs(20), forgotten).await;
    assert!(forgotten.is_ok(), "{} are held", limiter.scopes_held());
}
