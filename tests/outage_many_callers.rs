//! Ten thousand callers when Redis freezes: all are answered in time, and nothing of them is left.
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
use watch::{PLENTY, until_back};

const SECOND: Duration = Duration::from_secs(1);
const CROWD: usize = 10_000;

/// Beyond what is promised: on a machine with other work, in a build without optimisation.
const SLACK: Duration = Duration::from_secs(5);

fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

/// The limiter is gone: nothing of it lives on.
async fn until_tasks(expected: usize) {
    let gone = async {
        while tasks() > expected {
            sleep(SECOND / 100).await;
        }
    };
    let gone = timeout(2 * SLACK, gone).await;
    assert!(gone.is_ok(), "{} tasks instead of {expected}", tasks());
}

struct Crowd {
    tasks: Vec<tokio::task::JoinHandle<(Duration, Result<Permit, Rejected>)>>,
    asking: Arc<AtomicUsize>,
}

impl Crowd {
    /// Each asks for one of these scopes, and tells how long it took.
    fn asks(limiter: &Limiter, scope: impl Fn(usize) -> Scope, max_wait: Duration) -> Self {
        let asking = Arc::new(AtomicUsize::new(0));
        let tasks = (0..CROWD).map(|n| {
            let mut acquire = limiter.acquire(scope(n), max_wait);
            let asking = asking.clone();
            tokio::spawn(async move {
                let start = Instant::now();
                if let std::task::Poll::Ready(result) = poll!(&mut acquire) {
                    asking.fetch_add(1, Ordering::Relaxed);
                    return (start.elapsed(), result);
                }
                asking.fetch_add(1, Ordering::Relaxed);
                let result = acquire.await;
                (start.elapsed(), result)
            })
        });
        Self {
            tasks: tasks.collect(),
            asking,
        }
    }

    async fn all_have_asked(&self) {
        while self.asking.load(Ordering::Relaxed) < CROWD {
            tokio::task::yield_now().await;
        }
    }

    /// How many Redis admitted, how many memory admitted, and how many were refused; in time,
    /// and for no other reason than the limit.
    async fn are_answered_within(self, most: Duration) -> [usize; 3] {
        let mut counts = [0; 3];
        let mut slowest = Duration::ZERO;
        for task in self.tasks {
            let (took, result) = timeout(10 * SLACK, task)
                .await
                .expect("nobody hangs")
                .expect("no panic");
            slowest = slowest.max(took);
            match result {
                Ok(permit) => counts[usize::from(permit.is_degraded())] += 1,
                Err(refused) => {
                    assert_eq!(refused.reason(), Reason::Limited);
                    assert!(refused.retry_after() > Some(Duration::ZERO));
                    counts[2] += 1;
                }
            }
        }
        println!("by Redis, by memory, refused: {counts:?}; the slowest took {slowest:?}");
        assert!(slowest < most + SLACK, "{slowest:?}");
        counts
    }
}

/// Patient, so that the freeze alone is what they meet.
fn limiter(server: &RedisServer) -> Limiter {
    let builder = Limiter::builder().redis(server.url());
    builder.redis_timeout(SECOND / 2).build().expect("a URL")
}

async fn warm(limiter: &Limiter) {
    let permit = limiter.try_acquire(PLENTY).await.expect("plenty");
    assert!(!permit.is_degraded());
}

#[tokio::test(flavor = "multi_thread")]
async fn asleep_with_promised_turns() {
    let server = RedisServer::start().await;
    let before = tasks();
    let limiter = limiter(&server);
    warm(&limiter).await;
    let api = Quota::per_second(5_000.0).burst(1.0).scope("api");
    let crowd = Crowd::asks(&limiter, |_| api.clone(), 10 * SECOND);
    crowd.all_have_asked().await;
    // Whoever comes later is answered later.
    let later = limiter.try_acquire(&api).await;
    assert!(!later.expect_err("spent").is_degraded());
    server.freeze();
    let start = Instant::now();
    let newcomer = limiter.try_acquire(PLENTY).await.expect("plenty");
    assert!(newcomer.is_degraded() && start.elapsed() < SLACK);
    drop(newcomer);
    // What Redis has reserved is taken from the share, here of one process, once it is due.
    let [by_redis, by_memory, refused] = crowd.are_answered_within(3 * SECOND).await;
    assert!(by_redis > 0 && by_memory > 0, "{by_redis} and {by_memory}");
    assert_eq!(refused, 0);
    server.thaw();
    until_back(&limiter).await;
    // A bucket for each scope, not for each caller.
    assert!(limiter.scopes_held() <= 2, "{}", limiter.scopes_held());
    drop(limiter);
    until_tasks(before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queued_and_in_flight() {
    let server = RedisServer::start().await;
    let before = tasks();
    let limiter = limiter(&server);
    warm(&limiter).await;
    // Half of them by one scope, half by one each: some hundred calls.
    let one = Quota::per_second(1_000.0).burst(3_000.0).scope("one");
    let each = Quota::per_second(10.0).scope("each");
    let scope = |n| match n % 2 {
        0 => one.clone(),
        _ => each.key(n),
    };
    server.freeze();
    let crowd = Crowd::asks(&limiter, scope, SECOND);
    let start = Instant::now();
    let [by_redis, by_memory, _] = crowd.are_answered_within(SECOND).await;
    assert_eq!(by_redis, 0);
    let least = CROWD / 2 + 3_000;
    // What refills in the time that all of that took.
    let refilled = 1_000.0 * (start.elapsed() + SECOND).as_secs_f64();
    let most = least + refilled.ceil() as usize;
    assert!((least..=most).contains(&by_memory), "{by_memory} of {most}");
    server.thaw();
    until_back(&limiter).await;
    // Idle, with a limiter that is still there: its own few tasks, and no sleeper's.
    until_tasks(before + 3).await;
    drop(limiter);
    until_tasks(before).await;
}

/// On one thread: nothing can be sent before they have gone.
#[tokio::test]
async fn given_up_while_it_is_frozen() {
    let server = RedisServer::start().await;
    let before = tasks();
    let limiter = limiter(&server);
    warm(&limiter).await;
    let api = Quota::per_day(1.0).burst(2.0 * CROWD as f64).scope("api");
    server.freeze();
    let mut crowd: Vec<_> = (0..CROWD)
        .map(|_| limiter.acquire(&api, 10 * SECOND))
        .collect();
    std::future::poll_fn(|cx| {
        for acquire in &mut crowd {
            let _ = std::pin::Pin::new(acquire).poll(cx);
        }
        std::task::Poll::Ready(())
    })
    .await;
    drop(crowd);
    server.thaw();
    until_back(&limiter).await;
    // Not even late has Redis taken what nobody wanted any more.
    watch::until_level(&limiter, &api, 2.0 * CROWD as f64).await;
    drop(limiter);
    until_tasks(before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_that_an_outage_took_is_given_back() {
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
