//! What does not depend on the machine: allocations and bytes.

use std::{convert::Infallible, future::Future};

use allocation_counter::{AllocationInfo, measure};
use futures_util::{
    FutureExt,
    stream::{FuturesUnordered, StreamExt},
};
use tower::Layer;
use tower_throttle::{RateLimitLayer, Rejected};

use super::{Claim, Outcome};
use crate::{
    load::Subject,
    plan::Plan,
    server,
    subjects::{
        Direct, Governor, HOT, Keys, Layered, Naive, Ours, SPENT, Terms, in_memory, limiter, no_op,
        requests,
    },
};

const OPS: usize = 1_000;
const TASKS: usize = 64;

/// Spent by one request, and not full again for a day.
const IDLE: Terms = SPENT;

pub(super) async fn allocations(_plan: &Plan) -> Outcome {
    let keys = &Keys::new(1);
    let limiter = in_memory();
    let scope = HOT.quota().scope("bench");
    let granted = |answer: Result<bool, Infallible>| answer.unwrap_or(false);
    let layer = RateLimitLayer::new(&limiter, scope.clone()).respond(|_: &Rejected| false);
    let fixed = Layered::<_, _, _, true>::new(layer.layer(no_op::<usize>()), |n: usize| n, granted);
    let literal = {
        let scope = scope.clone();
        let layer = RateLimitLayer::new(&limiter, move |_: &usize| scope.key("literal"))
            .respond(|_: &Rejected| false);
        Layered::<_, _, _, true>::new(layer.layer(no_op::<usize>()), |n: usize| n, granted)
    };
    let string = {
        let (scope, keys) = (scope.clone(), keys.clone());
        let layer = RateLimitLayer::new(&limiter, move |n: &usize| scope.key(keys.get(*n).clone()))
            .respond(|_: &Rejected| false);
        Layered::<_, _, _, true>::new(layer.layer(no_op::<usize>()), |n: usize| n, granted)
    };
    let fixed = at_once(fixed);
    let literal = at_once(literal);
    let string = at_once(string);
    let server = server::start().await;
    let url = server.url();
    let batched = batched(|| async { Ours::redis(&url, "bench", HOT, keys) });
    let claims = vec![
        Claim::at_most("memory, fixed scope, through the layer", 0.0, fixed, ""),
        Claim::at_most("memory, literal key, through the layer", 0.0, literal, ""),
        Claim::at_most("memory, `String` key, through the layer", 2.0, string, ""),
        Claim::at_most("Redis, 64 tasks on one scope", 1.0, batched, ""),
    ];
    #[cfg_attr(not(feature = "peers"), allow(unused_mut))]
    let mut counts = vec![
        ("naive".to_owned(), self::batched(|| Naive::new(&url, HOT, keys))),
        ("direct".to_owned(), self::batched(|| Direct::new(&url, HOT, keys))),
        ("governor".to_owned(), at_once(Governor::new(HOT, keys))),
    ];
    // What a request itself allocates is not the layer's.
    let of_request = of_request(keys);
    counts.push(("an http request with one header".to_owned(), of_request));
    #[cfg(feature = "peers")]
    {
        use crate::subjects::{Limitador, rate_limiter, rate_tier, tower_governor};
        let redis = self::batched(|| async {
            rate_limiter::redis(server::connect(&url).await, HOT, keys)
        });
        counts.push(("tower-rate-limiter, Redis".to_owned(), redis - of_request));
        let redis =
            self::batched(|| async { rate_tier::redis(server::connect(&url).await, HOT, keys) });
        counts.push(("tower-rate-tier, Redis".to_owned(), redis - of_request));
        let memory = at_once(rate_limiter::memory(HOT, keys));
        counts.push(("tower-rate-limiter, memory".to_owned(), memory - of_request));
        let memory = at_once(rate_tier::memory(HOT, keys));
        counts.push(("tower-rate-tier, memory".to_owned(), memory - of_request));
        let memory = at_once(tower_governor(HOT, keys));
        counts.push(("tower_governor".to_owned(), memory - of_request));
        counts.push(("limitador, memory".to_owned(), at_once(Limitador::new(HOT, keys))));
    }
    Outcome {
        claims,
        counts,
        ..Outcome::default()
    }
}

fn per_op(counted: AllocationInfo, ops: usize) -> f64 {
    counted.count_total as f64 / ops as f64
}

fn of_request(keys: &Keys) -> f64 {
    let request = requests(keys);
    let counted = measure(|| {
        for _ in 0..OPS {
            drop(std::hint::black_box(request(0)));
        }
    });
    per_op(counted, OPS)
}

/// Allocations of one operation that does not wait.
fn at_once(mut subject: impl Subject) -> f64 {
    let mut run = |n| {
        for _ in 0..n {
            subject.take(0).now_or_never().expect("memory does not wait");
        }
    };
    run(10);
    per_op(measure(|| run(OPS)), OPS)
}

/// Allocations of one operation of 64 tasks, all on one thread, where they can be counted.
fn batched<S: Subject, F: Future<Output = S>>(make: impl FnOnce() -> F + Send) -> f64 {
    alone(|runtime| {
        let subject = runtime.block_on(make());
        let run = |n: usize| {
            runtime.block_on(async {
                let mut tasks: FuturesUnordered<_> = (0..TASKS)
                    .map(|_| {
                        let mut subject = subject.clone();
                        async move {
                            for _ in 0..n {
                                assert!(subject.take(0).await);
                            }
                        }
                    })
                    .collect();
                while tasks.next().await.is_some() {}
            });
        };
        run(20);
        per_op(measure(|| run(OPS)), OPS * TASKS)
    })
}

/// A runtime on a thread of its own: allocations are counted by thread.
fn alone<T: Send>(f: impl FnOnce(&tokio::runtime::Runtime) -> T + Send) -> T {
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("no runtime");
        f(&runtime)
    };
    std::thread::scope(|scope| scope.spawn(run).join().expect("the thread panicked"))
}

pub(super) async fn bytes(plan: &Plan) -> Outcome {
    let scopes = if plan.quick { 100_000 } else { 1_000_000 };
    let keys = &Keys::new(scopes);
    let held = |fill: &mut dyn FnMut()| {
        let counted = measure(fill);
        counted.bytes_current as f64 / scopes as f64
    };

    let mut ours = Ours::memory("bench", IDLE, keys);
    let of_ours = held(&mut || fill(&mut ours, scopes));
    assert_eq!(ours.limiter().scopes_held(), scopes);
    let mut governor = Governor::new(IDLE, keys);
    let of_governor = held(&mut || fill(&mut governor, scopes));
    drop((ours, governor));

    let server = server::start().await;
    let record = remembered(&server.url(), keys);
    let claims = vec![
        Claim::at_most("a bucket in memory, live bytes", 72.0, of_ours, ""),
        Claim::at_most("what is remembered of a refused bucket in Redis, live bytes", 96.0, record, ""),
    ];
    Outcome {
        claims,
        counts: vec![
            ("scopes, with names of 15 bytes".to_owned(), scopes as f64),
            ("governor, live bytes".to_owned(), of_governor),
        ],
        ..Outcome::default()
    }
}

fn fill(subject: &mut impl Subject, scopes: usize) {
    for scope in 0..scopes {
        let decided = subject.take(scope).now_or_never();
        assert_eq!(decided, Some(true));
    }
}

/// Bytes that a limiter over Redis holds of each bucket that it has found spent.
fn remembered(url: &str, keys: &Keys) -> f64 {
    const AT_ONCE: usize = 512;
    alone(|runtime| {
        let limiter = limiter(url);
        let scope = IDLE.quota().scope("bench");
        // So that connecting and the first batches are not counted.
        let _ = runtime.block_on(limiter.try_acquire(&scope));
        let counted = measure(|| {
            runtime.block_on(async {
                let take = |key: &String| limiter.try_acquire(scope.key(key)).map(|taken| taken.is_ok());
                let taken = futures_util::stream::iter(keys.iter())
                    .map(take)
                    .buffer_unordered(AT_ONCE);
                let admitted = taken.filter(|taken| std::future::ready(*taken)).count().await;
                assert_eq!(admitted, keys.len());
            });
        });
        counted.bytes_current as f64 / keys.len() as f64
    })
}
