//! The steps of one request, measured separately: `scripts/bench --micro`.

use std::{convert::Infallible, hint::black_box, time::Duration};

use divan::Bencher;
use futures_util::FutureExt;
use http::{Request, Response};
use tower::{Layer, Service};
use tower_throttle::{
    Limiter, Quota, RateLimitLayer, Rejected, Reply, Scope, ScopeExtractor, extract::header,
    reply::HttpReply,
};

fn main() {
    divan::main();
}

/// Never empty here.
const WIDE: Scope = Quota::per(Duration::from_secs(1_000_000), 1e9).scope("wide");
/// Empty after one request.
const NARROW: Scope = Quota::per_day(1.0).scope("narrow");

fn request() -> Request<()> {
    let request = Request::builder().header("x-api-key", "tenant-00000001");
    request.body(()).expect("the request is valid")
}

#[divan::bench]
fn scope_with_a_key(bencher: Bencher) {
    bencher.bench(|| black_box(&WIDE).key(black_box("tenant-00000001")));
}

#[divan::bench]
fn extract_by_header(bencher: Bencher) {
    let (by, request) = (WIDE.by(header("x-api-key")).or_unlimited(), request());
    bencher.bench(|| by.extract(black_box(&request)));
}

#[divan::bench]
fn acquire_in_memory(bencher: Bencher) {
    let limiter = Limiter::in_memory();
    bencher.bench(|| limiter.try_acquire(black_box(&WIDE)).now_or_never());
}

#[divan::bench]
fn acquire_in_memory_by_key(bencher: Bencher) {
    let limiter = Limiter::in_memory();
    bencher.bench(|| {
        limiter
            .try_acquire(WIDE.key(black_box("tenant-00000001")))
            .now_or_never()
    });
}

#[divan::bench]
fn rejected_in_memory(bencher: Bencher) {
    let limiter = Limiter::in_memory();
    let _ = limiter.try_acquire(&NARROW).now_or_never();
    bencher.bench(|| limiter.try_acquire(black_box(&NARROW)).now_or_never());
}

type Answer = std::future::Ready<Result<u64, Infallible>>;

fn no_op() -> tower::util::ServiceFn<fn(u64) -> Answer> {
    tower::service_fn((|n| std::future::ready(Ok(n))) as fn(u64) -> Answer)
}

fn through(bencher: Bencher, mut service: impl Service<u64, Response = u64, Error = Infallible>) {
    let context = &mut std::task::Context::from_waker(std::task::Waker::noop());
    bencher.bench_local(|| {
        let ready = service.poll_ready(context);
        assert!(ready.is_ready());
        service.call(black_box(1)).now_or_never()
    });
}

#[divan::bench]
fn no_layer(bencher: Bencher) {
    through(bencher, no_op());
}

#[divan::bench]
fn layer_with_a_fixed_scope(bencher: Bencher) {
    let layer = RateLimitLayer::new(&Limiter::in_memory(), WIDE).respond(|_: &Rejected| 0);
    through(bencher, layer.layer(no_op()));
}

#[divan::bench]
fn layer_that_may_wait(bencher: Bencher) {
    let layer = RateLimitLayer::new(&Limiter::in_memory(), WIDE).respond(|_: &Rejected| 0);
    through(
        bencher,
        layer.max_wait(Duration::from_secs(1)).layer(no_op()),
    );
}

#[divan::bench]
fn layer_with_a_key(bencher: Bencher) {
    let layer = RateLimitLayer::new(&Limiter::in_memory(), |n: &u64| WIDE.key(n));
    through(bencher, layer.respond(|_: &Rejected| 0).layer(no_op()));
}

#[divan::bench]
fn http_reply(bencher: Bencher) {
    let reply = HttpReply::default();
    let limiter = Limiter::in_memory();
    let _ = limiter.try_acquire(&NARROW).now_or_never();
    let rejection = limiter.try_acquire(&NARROW).now_or_never();
    let Some(Err(rejected)) = rejection else {
        panic!("the bucket is empty")
    };
    bencher
        .with_inputs(|| (rejected.clone(), request()))
        .bench_values(
            |(rejected, request)| -> Result<Response<String>, Infallible> {
                reply.rejected(rejected, request)
            },
        );
}
