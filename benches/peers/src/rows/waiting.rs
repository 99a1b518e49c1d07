//! More callers wait than the rate serves: the cost of a wait, and its length.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::FutureExt;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tower_throttle::Limiter;

use super::{Goal, Outcome, claim::count};
use crate::{
    case::{Allowed, Case, rounds},
    load::{Random, Subject},
    metric::{COMMANDS, P99},
    plan::Plan,
    sample::{Mark, Meter, Sample},
    server::{self, Probe},
    subjects::{Keys, Minimal, Naive, SATURATED, THROTTLE, limiter},
};

const WAITERS: usize = 512;
const LIMITERS: usize = 2;
const MAX_WAIT: Duration = Duration::from_secs(5);

/// Until the burst is spent and all callers wait.
const RAMP: Duration = Duration::from_millis(250);

/// The wait of each caller, in microseconds, if tokens are granted in the order of requests.
fn ideal_us() -> f64 {
    1e6 * WAITERS as f64 / SATURATED.rate()
}

pub fn goals(commands: f64) -> [Goal; 4] {
    [
        COMMANDS.of(THROTTLE).at_most(commands),
        count(OF_IDEAL).at_most(1.03),
        count(LOWEST).at_least(0.995),
        count(HIGHEST).at_most(1.0),
    ]
}

const OF_IDEAL: &str = "p99 relative to the ideal wait";
const LOWEST: &str = "admitted / allowed, lowest round";
const HIGHEST: &str = "admitted / allowed, highest round";

/// The fraction `cancels` of the acquisitions is cancelled. The scripts cannot wait, and are
/// measured without cancellations only.
pub async fn saturated(plan: Plan, cancels: f64) -> Outcome {
    let server = server::start().await;
    let url = server.url();
    let probe = Probe::new(&url).await;
    let mut cases = vec![throttle(&url, &probe, cancels)];
    if cancels == 0.0 {
        let (naive, minimal) = retrying(&url).await;
        cases.extend([
            polling("naive script, retried every 1 ms", naive, &probe),
            retrying_when_due("minimal script, retried after its wait", minimal, &probe),
        ]);
    }
    let plan = Plan {
        slice: plan.slice * 2,
        ..plan
    };
    let cases = cases
        .into_iter()
        .map(|case| case.allowed(Allowed::EachRound(SATURATED)))
        .collect();
    let mut outcome = Outcome::of(rounds(&plan, cases).await);
    let throttle = outcome.case(THROTTLE).expect("it was measured");
    outcome.counts = vec![
        (OF_IDEAL.to_owned(), P99.median(throttle) / ideal_us()),
        (LOWEST.to_owned(), throttle.admitted.0),
        (HIGHEST.to_owned(), throttle.admitted.1),
    ];
    outcome
}

/// `Limiter::acquire`. The fraction `cancels` of the acquisitions is cancelled at a random time
/// within the ideal wait.
fn throttle(url: &str, probe: &Probe, cancels: f64) -> Case {
    let limiters: Vec<Limiter> = (0..LIMITERS).map(|_| limiter(url)).collect();
    waiters(THROTTLE, probe, move |bucket, waiter| {
        let limiter = limiters[waiter % LIMITERS].clone();
        let scope = SATURATED.quota().scope("bench").key(bucket);
        async move {
            let mut random = Random::new(waiter as u64);
            loop {
                let start = Instant::now();
                let acquire = limiter.acquire(&scope, MAX_WAIT);
                let chosen = (random.below(1_000_000) as f64) < cancels * 1e6;
                let admitted = if chosen {
                    let soon = Duration::from_micros(random.below(ideal_us() as usize) as u64);
                    timeout(soon, acquire)
                        .await
                        .is_ok_and(|taken| taken.is_ok())
                } else {
                    acquire.await.is_ok()
                };
                if admitted {
                    admitted_since(start);
                }
            }
        }
        .boxed()
    })
}

async fn retrying(url: &str) -> (Naive, Minimal) {
    // Each round uses a new bucket; there are fewer than 64 rounds.
    let keys = &Keys::new(64);
    let naive = Naive::new(url, SATURATED, keys).await;
    (naive, Minimal::new(url, SATURATED, keys).await)
}

fn polling(name: &'static str, subject: Naive, probe: &Probe) -> Case {
    waiters(name, probe, move |bucket, _| {
        let mut subject = subject.clone();
        async move {
            loop {
                let start = Instant::now();
                while !subject.take(bucket).await {
                    sleep(Duration::from_millis(1)).await;
                }
                admitted_since(start);
            }
        }
        .boxed()
    })
}

fn retrying_when_due(name: &'static str, subject: Minimal, probe: &Probe) -> Case {
    waiters(name, probe, move |bucket, _| {
        let mut subject = subject.clone();
        async move {
            loop {
                let start = Instant::now();
                loop {
                    let wait = subject.ask(bucket).await;
                    if wait.is_zero() {
                        break;
                    }
                    sleep(wait).await;
                }
                admitted_since(start);
            }
        }
        .boxed()
    })
}

fn admitted_since(start: Instant) {
    Meter::with(|meter| {
        meter.count(1, 1);
        meter.time(start.elapsed());
    });
}

type Waiter = futures_util::future::BoxFuture<'static, ()>;

/// Rounds in which all callers wait all the time, each round with a new bucket.
fn waiters(
    name: &'static str,
    probe: &Probe,
    waiter: impl Fn(usize, usize) -> Waiter + Send + Sync + 'static,
) -> Case {
    let (probe, waiter) = (probe.clone(), Arc::new(waiter));
    let bucket = Arc::new(AtomicU64::new(0));
    let run = move |slice| {
        let (probe, waiter, bucket) = (probe.clone(), waiter.clone(), bucket.clone());
        async move {
            let bucket = bucket.fetch_add(1, Ordering::Relaxed) as usize;
            let whole = Mark::begin(None).await;
            let mut waiters = JoinSet::new();
            for index in 0..WAITERS {
                waiters.spawn(waiter(bucket, index));
            }
            sleep(RAMP).await;
            let mark = Mark::begin(Some(&probe)).await;
            sleep(slice).await;
            let sample = mark.end(Some(&probe)).await;
            let whole = whole.end(None).await;
            waiters.shutdown().await;
            Sample {
                total_admitted: whole.admitted,
                total_seconds: whole.seconds,
                ..sample
            }
        }
        .boxed_local()
    };
    Case::of(name, Box::new(run))
}
