//! Counts allocations and bytes, for the rows of these names. Prints lines of a name, a tab and a
//! number. It is a separate program because the counting allocator would distort the timings.

use std::{convert::Infallible, future::Future};

use allocation_counter::{AllocationInfo, measure};
use futures_util::{
    FutureExt,
    stream::{FuturesUnordered, StreamExt},
};
use peers::{
    load::Subject,
    server,
    subjects::{
        Governor, HOT, Keys, Layered, Limitador, Minimal, Naive, SPENT, Throttle, in_memory,
        limiter, no_op, rate_limiter, rate_tier, requests, tower_governor,
    },
};
use tower::Layer;
use tower_throttle::{RateLimitLayer, Rejected, ScopeExtractor};

const OPS: usize = 200;
const TASKS: usize = 64;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let server = alone(|runtime| runtime.block_on(server::start()));
    match arguments.as_slice() {
        [what] if what == "allocations" => allocations(&server.url()),
        [what, scopes] if what == "bytes" => {
            bytes(
                &server.url(),
                scopes.parse().expect("SCOPES is not a number"),
            );
        }
        _ => panic!("usage: costs allocations, or costs bytes SCOPES"),
    }
}

fn print(what: &str, figure: f64) {
    println!("{what}\t{figure}");
}

fn allocations(url: &str) {
    let keys = &Keys::new(1);
    let scope = HOT.quota().scope("bench");
    print(
        "tower-throttle, fixed scope",
        at_once(through(scope.clone())),
    );
    let literal = scope.clone();
    print(
        "tower-throttle, literal key",
        at_once(through(move |_: &usize| literal.key("literal"))),
    );
    let (string, owned) = (scope.clone(), keys.clone());
    let string = through(move |n: &usize| string.key(owned.get(*n).into_owned()));
    print("tower-throttle, `String` key", at_once(string));
    print(
        "tower-throttle, Redis",
        batched(|| async { Throttle::redis(url, "bench", HOT, keys) }),
    );
    print("naive script", batched(|| Naive::new(url, HOT, keys)));
    print("minimal script", batched(|| Minimal::new(url, HOT, keys)));
    print("governor", at_once(Governor::new(HOT, keys)));
    // Without the allocations of the request itself.
    let request = of_request(keys);
    let redis = || server::connect(url);
    let limiter = batched(|| async { rate_limiter::redis(redis().await, HOT, keys) });
    print("tower-rate-limiter, Redis", limiter - request);
    let tier = batched(|| async { rate_tier::redis(redis().await, HOT, keys) });
    print("tower-rate-tier, Redis", tier - request);
    let limiter = at_once(rate_limiter::memory(HOT, keys));
    print("tower-rate-limiter, memory", limiter - request);
    let tier = at_once(rate_tier::memory(HOT, keys));
    print("tower-rate-tier, memory", tier - request);
    let governor = at_once(tower_governor::memory(HOT, keys));
    print("tower_governor", governor - request);
    print("limitador, memory", at_once(Limitador::new(HOT, keys)));
}

/// The layer over a no-op service, in memory.
fn through<K>(scope: K) -> impl Subject + use<K>
where
    K: ScopeExtractor<usize> + Clone + Send + Sync + 'static,
{
    let layer = RateLimitLayer::new(&in_memory(), scope).respond(|_: &Rejected| false);
    Layered::<_, _, _, true>::new(
        layer.layer(no_op::<usize>()),
        |scope: usize| scope,
        |answer: Result<bool, Infallible>| answer.unwrap_or(false),
    )
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

/// Allocations per operation that does not wait.
fn at_once(mut subject: impl Subject) -> f64 {
    let mut run = |n| {
        for _ in 0..n {
            subject.take(0).now_or_never().expect("it does not wait");
        }
    };
    run(10);
    per_op(measure(|| run(OPS)), OPS)
}

/// Allocations per operation of 64 tasks, all on one thread, because they are counted per thread.
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

/// Runs `f` with a runtime on a new thread.
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

fn bytes(url: &str, scopes: usize) {
    let keys = &Keys::new(scopes);
    let held = |fill: &mut dyn FnMut()| measure(fill).bytes_current as f64 / scopes as f64;
    let mut throttle = Throttle::memory("bench", SPENT, keys);
    print(
        "bytes per bucket, tower-throttle in memory",
        held(&mut || fill(&mut throttle, scopes)),
    );
    assert_eq!(throttle.limiter().scopes_held(), scopes);
    drop(throttle);
    let mut governor = Governor::new(SPENT, keys);
    print(
        "bytes per bucket, governor",
        held(&mut || fill(&mut governor, scopes)),
    );
    drop(governor);
    print(
        "bytes per bucket, tower-throttle on Redis",
        remembered(url, keys),
    );
}

fn fill(subject: &mut impl Subject, scopes: usize) {
    for scope in 0..scopes {
        let decided = subject.take(scope).now_or_never();
        assert_eq!(decided, Some(true));
    }
}

/// Bytes that a process caches for each empty bucket in Redis.
fn remembered(url: &str, keys: &Keys) -> f64 {
    const AT_ONCE: usize = 512;
    alone(|runtime| {
        let limiter = limiter(url);
        let scope = SPENT.quota().scope("bench");
        // The connection and the first batches are not counted.
        let _ = runtime.block_on(limiter.try_acquire(&scope));
        let counted = measure(|| {
            runtime.block_on(async {
                let take = |key: &String| {
                    limiter
                        .try_acquire(scope.key(key))
                        .map(|taken| taken.is_ok())
                };
                let taken = futures_util::stream::iter(keys.iter())
                    .map(take)
                    .buffer_unordered(AT_ONCE);
                let admitted = taken
                    .filter(|taken| std::future::ready(*taken))
                    .count()
                    .await;
                assert_eq!(admitted, keys.count());
            });
        });
        counted.bytes_current as f64 / keys.count() as f64
    })
}
