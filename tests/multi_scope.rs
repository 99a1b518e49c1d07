//! Acquisitions of several scopes that wait: every window of the tokens used of each scope, and
//! which callers are served.

#[cfg(feature = "redis")]
mod support;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use tower_throttle::{Limiter, Quota, Scope};

const S: Duration = Duration::from_secs(1);

/// A token may be used this much later than the bucket granted it, in seconds.
const TOLERANCE: f64 = 0.1;

const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

/// A capacity and a rate.
type Parameters = (f64, f64);

/// The tokens used: the time in seconds and the scope, one token each.
#[derive(Clone)]
struct Uses {
    start: Instant,
    log: Arc<Mutex<Vec<(f64, usize)>>>,
}

impl Uses {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            log: Arc::default(),
        }
    }

    fn used(&self, scopes: &[usize]) {
        let at = self.start.elapsed().as_secs_f64();
        let mut log = self.log.lock().expect("no panic");
        log.extend(scopes.iter().map(|scope| (at, *scope)));
    }

    fn of(&self, which: usize) -> Vec<f64> {
        let log = self.log.lock().expect("no panic");
        let mut times: Vec<_> = log
            .iter()
            .filter(|(_, scope)| *scope == which)
            .map(|(at, _)| *at)
            .collect();
        times.sort_by(f64::total_cmp);
        times
    }

    /// The tokens by which the worst window exceeds `capacity + rate * w`.
    fn excess(&self, which: usize, (capacity, rate): Parameters) -> f64 {
        let (mut above, mut worst, mut last) = (0.0_f64, 0.0_f64, 0.0);
        for at in self.of(which) {
            above = (above - rate * (at - last)).max(0.0) + 1.0;
            worst = worst.max(above);
            last = at;
        }
        worst - capacity
    }

    /// The used part of what a scope refills in the first `seconds` seconds.
    fn utilization(&self, which: usize, rate: f64, seconds: f64) -> f64 {
        let used = self.of(which).iter().filter(|at| **at < seconds).count();
        used as f64 / (rate * seconds)
    }

    #[track_caller]
    fn assert_windows(&self, parameters: &[Parameters], late: f64) {
        for (which, parameters) in parameters.iter().enumerate() {
            let excess = self.excess(which, *parameters);
            assert!(
                excess <= parameters.1 * late + 1e-3,
                "{excess} of {} {parameters:?}",
                NAMES[which]
            );
        }
    }
}

/// splitmix64.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

fn scopes(parameters: &[Parameters]) -> Vec<Scope> {
    let scope = |((capacity, rate), name): (&Parameters, &'static str)| {
        Quota::per_second(*rate).burst(*capacity).scope(name)
    };
    parameters.iter().zip(NAMES).map(scope).collect()
}

/// Five callers wait for both scopes. Just before the second of them is due, forty request the
/// faster scope.
async fn many_callers_of_the_faster_scope(limiters: &[Limiter]) -> Uses {
    let both = scopes(&[(1.0, 1.0), (1.0, 10.0)]);
    let uses = Uses::new();
    let mut tasks = JoinSet::new();
    let acquire = |n: usize, of: &'static [usize]| {
        let limiter = limiters[n % limiters.len()].clone();
        let scopes: Vec<_> = of.iter().map(|which| both[*which].clone()).collect();
        let uses = uses.clone();
        async move {
            limiter
                .acquire(scopes, 30 * S)
                .await
                .expect("a reservation");
            uses.used(of);
        }
    };
    for n in 0..5 {
        tasks.spawn(acquire(n, &[0, 1]));
    }
    sleep_until(uses.start + Duration::from_millis(950)).await;
    for n in 0..40 {
        tasks.spawn(acquire(n, &[1]));
    }
    timeout(60 * S, tasks.join_all())
        .await
        .expect("all in time");
    uses
}

#[tokio::test(start_paused = true)]
async fn slower_scope_is_not_used_late() {
    let uses = many_callers_of_the_faster_scope(&[Limiter::in_memory()]).await;
    uses.assert_windows(&[(1.0, 1.0), (1.0, 10.0)], TOLERANCE);
    // The faster one is free again after four seconds.
    let last = uses.of(0).pop().expect("five");
    assert!(last < 9.0, "{last}");
}

#[derive(Debug, Default)]
struct Served {
    requested: usize,
    served: usize,
    longest: f64,
}

/// Sixty tasks over six scopes. Each acquires one to three of them repeatedly, with a `max_wait` of
/// zero, half a second or five seconds. Counts the served ones of those that wait for five.
async fn mix(
    limiters: &[Limiter],
    parameters: &[Parameters; 6],
    seed: u64,
    length: u64,
) -> (Uses, Served) {
    let scopes = scopes(parameters);
    let uses = Uses::new();
    let served: Arc<Mutex<Served>> = Arc::default();
    let mut tasks = JoinSet::new();
    for task in 0..60 {
        let limiter = limiters[task as usize % limiters.len()].clone();
        let (scopes, uses, served) = (scopes.clone(), uses.clone(), served.clone());
        tasks.spawn(async move {
            let mut rng = Rng(1_000 * seed + task);
            while uses.start.elapsed() < length as u32 * S {
                let mut of = Vec::new();
                for _ in 0..1 + rng.below(3) {
                    let which = rng.below(6) as usize;
                    if !of.contains(&which) {
                        of.push(which);
                    }
                }
                let wait = [0, 500, 5_000, 5_000][rng.below(4) as usize];
                let requested = Instant::now();
                let wanted: Vec<_> = of.iter().map(|which| scopes[*which].clone()).collect();
                let result = limiter.acquire(wanted, Duration::from_millis(wait)).await;
                if result.is_ok() {
                    uses.used(&of);
                }
                if wait == 5_000 {
                    let mut served = served.lock().expect("no panic");
                    served.requested += 1;
                    served.served += usize::from(result.is_ok());
                    served.longest = served.longest.max(requested.elapsed().as_secs_f64());
                }
                drop(result);
                sleep(Duration::from_millis(20 + rng.below(4_600))).await;
            }
        });
    }
    timeout(120 * S, tasks.join_all())
        .await
        .expect("all in time");
    let served = std::mem::take(&mut *served.lock().expect("no panic"));
    (uses, served)
}

const MIX: [Parameters; 6] = [
    (2.0, 4.0),
    (5.0, 6.0),
    (1.0, 5.0),
    (2.0, 8.0),
    (10.0, 10.0),
    (4.0, 20.0),
];

#[tokio::test(start_paused = true)]
async fn mix_of_scopes_exceeds_no_window_and_is_served() {
    let (mut requested, mut served, mut busiest) = (0, 0, 0.0);
    for seed in 0..8 {
        let (uses, shown) = mix(&[Limiter::in_memory()], &MIX, seed, 60).await;
        uses.assert_windows(&MIX, TOLERANCE);
        assert!(shown.longest <= 5.001, "{shown:?}");
        requested += shown.requested;
        served += shown.served;
        busiest += uses.utilization(0, MIX[0].1, 60.0) / 8.0;
    }
    println!("{served} of {requested} served, the busiest scope used by {busiest}");
    assert!(
        served as f64 >= 0.95 * requested as f64,
        "{served} of {requested}"
    );
    assert!(busiest >= 0.95, "{busiest}");
}

/// Both scopes are requested by others all the time, so that neither token can wait for the other.
async fn busy_scopes(a: (Parameters, u64), b: (Parameters, u64)) -> (Uses, Served) {
    let limiter = Limiter::in_memory();
    let both = scopes(&[a.0, b.0]);
    let uses = Uses::new();
    let served: Arc<Mutex<Served>> = Arc::default();
    let mut tasks = JoinSet::new();
    for task in 0..a.1 + b.1 + 3 {
        let of: &[usize] = match task {
            task if task < a.1 => &[0],
            task if task < a.1 + b.1 => &[1],
            _ => &[0, 1],
        };
        let scopes: Vec<_> = of.iter().map(|which| both[*which].clone()).collect();
        let (limiter, uses, served) = (limiter.clone(), uses.clone(), served.clone());
        tasks.spawn(async move {
            let mut rng = Rng(task);
            while uses.start.elapsed() < 120 * S {
                let result = limiter.acquire(scopes.clone(), 30 * S).await;
                if result.is_ok() {
                    uses.used(of);
                }
                if of.len() == 2 {
                    let mut served = served.lock().expect("no panic");
                    served.requested += 1;
                    served.served += usize::from(result.is_ok());
                }
                drop(result);
                sleep(Duration::from_millis(1 + rng.below(100))).await;
            }
        });
    }
    tasks.join_all().await;
    let served = std::mem::take(&mut *served.lock().expect("no panic"));
    (uses, served)
}

#[tokio::test(start_paused = true)]
async fn waiter_for_two_busy_scopes_is_served() {
    // The callers of each scope, and how many of those that want both are served at least, and
    // which part of them.
    let cases = [
        (((1.0, 5.0), 20), ((1.0, 10.0), 10), 55, 1.0),
        (((2.0, 5.0), 20), ((2.0, 10.0), 10), 55, 1.0),
        (((20.0, 5.0), 20), ((20.0, 10.0), 10), 55, 1.0),
        (((20.0, 50.0), 100), ((20.0, 100.0), 100), 150, 1.0),
        (((1.0, 50.0), 100), ((1.0, 100.0), 100), 150, 1.0),
        (((1.0, 5.0), 20), ((1.0, 10.0), 0), 70, 1.0),
        // Tokens that are further apart than the tolerance are seldom available together.
        (((1.0, 1.0), 5), ((1.0, 3.0), 5), 20, 0.75),
    ];
    for (a, b, least, part) in cases {
        let (uses, served) = busy_scopes(a, b).await;
        uses.assert_windows(&[a.0, b.0], TOLERANCE);
        let used = uses.utilization(0, a.0.1, 120.0);
        println!("{a:?} {b:?}: {served:?}, {used}");
        assert!(served.served >= least, "{a:?} {b:?}: {served:?}");
        assert!(
            served.served as f64 >= part * served.requested as f64,
            "{a:?} {b:?}: {served:?}"
        );
        assert!(used >= 0.95 * part, "{a:?} {b:?}: {used}");
    }
}

/// A limit per tenant and one for all of them, both spent all the time.
#[tokio::test(start_paused = true)]
async fn tenants_with_a_shared_limit_are_all_served() {
    // The quota of the tenant, the shared one, and the numbers of tenants and tasks.
    let cases = [
        ((1.0, 0.5), (2.0, 2.0), 6, 4),
        ((1.0, 0.5), (1.0, 2.0), 4, 4),
        ((5.0, 5.0), (20.0, 20.0), 6, 20),
    ];
    for (each, all, tenants, tasks) in cases {
        let limiter = Limiter::in_memory();
        let shared = scopes(&[all]).remove(0);
        let tenant = Quota::per_second(each.1).burst(each.0).scope("tenant");
        let uses = Uses::new();
        let mut running = JoinSet::new();
        for task in 0..tenants * tasks {
            let both = [tenant.key(task % tenants), shared.clone()];
            let (limiter, uses) = (limiter.clone(), uses.clone());
            running.spawn(async move {
                let mut rng = Rng(task);
                while uses.start.elapsed() < 120 * S {
                    let waits = limiter.acquire(both.clone(), 30 * S);
                    waits.await.expect("a reservation");
                    uses.used(&[0, 1 + (task % tenants) as usize]);
                    sleep(Duration::from_millis(1 + rng.below(100))).await;
                }
            });
        }
        running.join_all().await;
        let excess = uses.excess(0, all);
        assert!(excess <= all.1 * TOLERANCE, "{all:?}: {excess}");
        for which in 1..=tenants as usize {
            let excess = uses.excess(which, each);
            assert!(excess <= each.1 * TOLERANCE + 1e-3, "{each:?}: {excess}");
        }
        let used = uses.utilization(0, all.1, 120.0);
        assert!(used >= 0.95, "{all:?}: {used}");
    }
}

/// Wherever it is dropped, what it has taken or reserved is returned.
#[tokio::test(start_paused = true)]
async fn dropped_waiter_for_several_scopes_returns_everything() {
    let both = scopes(&[(2.0, 2.0), (2.0, 5.0)]);
    for dropped_after in (0..80).map(|n| n * Duration::from_millis(50)) {
        let limiter = Limiter::in_memory();
        let mut tasks = JoinSet::new();
        for (which, n) in [(0, 8), (1, 10)] {
            for _ in 0..n {
                let (limiter, scope) = (limiter.clone(), both[which].clone());
                tasks.spawn(async move { limiter.acquire(scope, 30 * S).await.map(drop) });
            }
        }
        tokio::task::yield_now().await;
        let waits = limiter.acquire(both.clone(), 30 * S);
        let dropped = timeout(dropped_after, waits).await.is_err();
        assert!(dropped || dropped_after > 3 * S);
        for result in tasks.join_all().await {
            result.expect("a reservation");
        }
        // All is due by then, and the bucket is full unless something was kept.
        sleep(2 * S).await;
        for scope in &both {
            assert_eq!(
                limiter.bucket(scope).level().await.unwrap(),
                2.0,
                "{dropped_after:?}"
            );
            limiter.try_acquire(scope).await.expect("full");
            limiter.try_acquire(scope).await.expect("full");
            limiter.try_acquire(scope).await.expect_err("no more");
        }
    }
}

/// The pause applies to a scope that is reserved, or already taken, while the acquisition waits for
/// the other one.
#[tokio::test(start_paused = true)]
async fn several_scopes_are_not_used_while_one_is_paused() {
    let both = scopes(&[(1.0, 1.0), (1.0, 4.0)]);
    for pause_at in (0..24).map(|n| n * Duration::from_millis(100)) {
        for paused in 0..2 {
            let limiter = Limiter::in_memory();
            let uses = Uses::new();
            let mut tasks = JoinSet::new();
            for n in 0..12 {
                let of: &[usize] = if n < 3 { &[0, 1] } else { &[1] };
                let scopes: Vec<_> = of.iter().map(|which| both[*which].clone()).collect();
                let (limiter, uses) = (limiter.clone(), uses.clone());
                tasks.spawn(async move {
                    limiter
                        .acquire(scopes, 60 * S)
                        .await
                        .expect("a reservation");
                    uses.used(of);
                });
            }
            sleep(pause_at).await;
            limiter.bucket(&both[paused]).pause(3 * S);
            let from = pause_at.as_secs_f64();
            tasks.join_all().await;
            let during = |at: &f64| *at > from + 0.01 && *at < from + 2.99;
            let used: Vec<_> = uses.of(paused).into_iter().filter(during).collect();
            assert!(used.is_empty(), "{paused} at {pause_at:?}: {used:?}");
            uses.assert_windows(&[(1.0, 1.0), (1.0, 4.0)], TOLERANCE);
        }
    }
}

#[cfg(feature = "redis")]
mod on_redis {
    use super::{support::RedisServer, *};

    async fn limiters(server: &RedisServer, n: usize) -> Vec<Limiter> {
        let limiters: Vec<_> = (0..n)
            .map(|_| Limiter::redis(&server.url()).expect("a URL"))
            .collect();
        for limiter in &limiters {
            let warm = Quota::per_second(1e6).scope("warm");
            limiter.try_acquire(warm).await.expect("the first");
        }
        limiters
    }

    /// Tasks of a busy machine run late, so the bounds are wider here.
    const LATE: f64 = 0.4;

    #[tokio::test(flavor = "multi_thread")]
    async fn slower_scope_is_not_used_late() {
        let server = RedisServer::start().await;
        let uses = many_callers_of_the_faster_scope(&limiters(&server, 2).await).await;
        uses.assert_windows(&[(1.0, 1.0), (1.0, 10.0)], LATE);
        let last = uses.of(0).pop().expect("five");
        assert!(last < 20.0, "{last}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn mix_of_scopes_exceeds_no_window_and_is_served() {
        let server = RedisServer::start().await;
        let (uses, shown) = mix(&limiters(&server, 3).await, &MIX, 0, 20).await;
        println!("{shown:?}");
        uses.assert_windows(&MIX, LATE);
        assert!(
            shown.served as f64 >= 0.9 * shown.requested as f64,
            "{shown:?}"
        );
    }

    /// Redis fails while the first scope is reserved there, and the rest is not requested yet.
    #[tokio::test(flavor = "multi_thread")]
    async fn outage_between_the_steps_ends_in_a_decision() {
        let mut server = RedisServer::start().await;
        let limiter = limiters(&server, 1).await.remove(0);
        let both = scopes(&[(1.0, 1.0), (5.0, 10.0)]);
        limiter.try_acquire(&both[0]).await.expect("the burst");
        let waits = {
            let (limiter, both) = (limiter.clone(), both.clone());
            tokio::spawn(async move { limiter.acquire(both, 20 * S).await })
        };
        sleep(S / 2).await;
        server.kill9();
        let permit = timeout(30 * S, waits).await.expect("in time");
        assert!(
            permit
                .expect("no panic")
                .expect("a reservation")
                .is_degraded()
        );
    }
}
