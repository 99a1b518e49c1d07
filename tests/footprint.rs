//! The cost of a request besides time: allocations and bytes.

mod support;

use std::{
    convert::Infallible,
    future::{Ready, ready},
    mem::size_of,
    pin::pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use allocation_counter::measure;
use support::gates;
use tower::{Layer, Service, util::ServiceFn};
use tower_throttle::{
    Acquire, Limiter, Permit, Quota, RateLimit, RateLimitLayer, Rejected, ResponseFuture, Scope,
    ScopeExtractor, reply::Fail,
};

const LONG: Duration = Duration::from_secs(60);
/// Never spent here.
const WIDE: Scope = Quota::per_second(1e9).scope("wide");
/// Spent by one request.
const NARROW: Scope = Quota::per_day(1.0).scope("narrow");
const REQUESTS: u64 = 100;
/// Where to look for the cause of an allocation.
const PROFILE: &str = "run the test under heaptrack or `valgrind --tool=dhat`.";

type Answer = Ready<Result<usize, Infallible>>;
type NoOp = ServiceFn<fn(String) -> Answer>;

fn answer(req: String) -> Answer {
    ready(Ok(req.len()))
}

/// Its request is a string, so that closures can borrow a key from it. It allocates nothing.
fn no_op() -> NoOp {
    tower::service_fn(answer as fn(String) -> Answer)
}

/// Readiness, call and response, all of which are ready at once.
fn request<S: Service<String>>(service: &mut S, req: String) -> bool {
    let cx = &mut Context::from_waker(Waker::noop());
    assert!(matches!(service.poll_ready(cx), Poll::Ready(Ok(()))));
    match pin!(service.call(req)).poll(cx) {
        Poll::Ready(result) => result.is_ok(),
        Poll::Pending => panic!("never pending"),
    }
}

/// Allocations by one request, once the bucket exists.
fn per_request<K>(layer: RateLimitLayer<K>, req: &str, served: bool) -> u64
where
    K: ScopeExtractor<String> + Clone,
{
    let mut service = layer.layer(no_op());
    for _ in 0..2 {
        request(&mut service, req.into());
    }
    let mut requests: Vec<String> = (0..REQUESTS).map(|_| req.into()).collect();
    let counted = measure(|| {
        for req in requests.drain(..) {
            assert_eq!(request(&mut service, req), served);
        }
    });
    counted.count_total.div_ceil(REQUESTS)
}

/// Allocations of a request over a clone of the service, as under axum.
fn per_clone<K>(layer: RateLimitLayer<K>) -> u64
where
    K: ScopeExtractor<String> + Clone,
{
    let mut service = layer.layer(no_op());
    request(&mut service, String::new());
    let counted = measure(|| {
        for _ in 0..REQUESTS {
            assert!(request(&mut service.clone(), String::new()));
        }
    });
    counted.count_total.div_ceil(REQUESTS)
}

#[test]
fn counter_counts_allocations() {
    let counted = measure(|| drop(std::hint::black_box(String::from("x"))));
    assert_eq!(counted.count_total, 1);
}

#[test]
fn fixed_scope_allocates_nothing() {
    let limiter = Limiter::in_memory();
    let layer = || RateLimitLayer::new(&limiter, WIDE);
    let named = Scope::new("from configuration", WIDE.quota());
    let allocations = [
        per_request(layer(), "", true),
        per_request(layer().max_wait(LONG), "", true),
        per_clone(layer()),
        per_clone(layer().max_wait(LONG)),
        per_request(RateLimitLayer::new(&limiter, named), "", true),
    ];
    let most = allocations.into_iter().max();
    gates::ALLOCATIONS_FIXED.assert(most.unwrap_or(0) as f64, PROFILE);
}

#[test]
fn short_key_allocates_nothing() {
    let limiter = Limiter::in_memory();
    let allocations = [Duration::ZERO, LONG].map(|max_wait| {
        let literal = RateLimitLayer::new(&limiter, |_: &String| WIDE.key("literal"));
        per_request(literal.max_wait(max_wait), "", true)
    });
    let most = allocations.into_iter().max();
    gates::ALLOCATIONS_LITERAL.assert(most.unwrap_or(0) as f64, PROFILE);
    for max_wait in [Duration::ZERO, LONG] {
        let short = "k".repeat(38);
        let borrowed = RateLimitLayer::new(&limiter, |req: &String| WIDE.key(req));
        assert_eq!(per_request(borrowed.max_wait(max_wait), &short, true), 0);
        let number = RateLimitLayer::new(&limiter, |req: &String| WIDE.key(req.len()));
        assert_eq!(per_request(number.max_wait(max_wait), &short, true), 0);
        let unlimited = RateLimitLayer::new(&limiter, |_: &String| None::<Scope>);
        assert_eq!(per_request(unlimited.max_wait(max_wait), &short, true), 0);
    }
}

#[test]
fn string_key_allocates_twice_including_the_callers_own() {
    let limiter = Limiter::in_memory();
    for length in [38, 20, 39, 64, 65, 1_000] {
        let key = "k".repeat(length);
        let owned = RateLimitLayer::new(&limiter, |req: &String| WIDE.key(req.clone()));
        let allocations = per_request(owned, &key, true);
        println!("a String of {length} bytes as key: {allocations} allocations");
        if length == 38 {
            gates::ALLOCATIONS_STRING.assert(allocations as f64, PROFILE);
        }
        let most = if length <= 38 { 1 } else { 2 };
        assert!(allocations <= most, "{length}: {allocations}");
    }
}

#[test]
fn rejection_allocates_only_its_box() {
    let limiter = Limiter::in_memory();
    let rejecting = || RateLimitLayer::new(&limiter, NARROW);
    assert!(per_request(rejecting(), "", false) <= 1);
    assert!(per_request(rejecting().max_wait(Duration::from_millis(1)), "", false) <= 1);
    let typed = rejecting().respond(|_: &Rejected| 0);
    let mut service = typed.layer(no_op());
    let counted = measure(|| {
        for _ in 0..REQUESTS {
            assert!(request(&mut service, String::new()));
        }
    });
    assert_eq!(counted.count_total, 0);
}

/// By 64 tasks on one bucket, whose requests share calls.
#[cfg(feature = "redis")]
#[test]
fn batched_redis_request_allocates_little() {
    const TASKS: u32 = 64;
    const EACH: u32 = 1_000;
    // On this thread, because allocations are counted per thread.
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().expect("a runtime");
    let server = runtime.block_on(support::RedisServer::start());
    let limiter = Limiter::builder().redis(server.url());
    let limiter = limiter.redis_timeout(LONG).build().expect("a URL");
    let run = |each| {
        runtime.block_on(futures_util::future::join_all((0..TASKS).map(async |_| {
            for _ in 0..each {
                limiter.try_acquire(&WIDE).await.expect("wide enough");
            }
        })));
    };
    run(20);
    let allocations = measure(|| run(EACH)).count_total as f64 / f64::from(TASKS * EACH);
    gates::ALLOCATIONS_REDIS.assert(allocations, PROFILE);
    assert_eq!(limiter.fallbacks(), 0);
}

/// The allocations of the response fields, and none without them.
#[cfg(feature = "http")]
#[test]
fn http_without_fields_allocates_nothing() {
    use http::{Request, Response};
    use tower_throttle::reply::HeaderStyle;

    type Answer = Ready<Result<Response<()>, Infallible>>;
    fn answer(_: Request<()>) -> Answer {
        ready(Ok(Response::new(())))
    }
    let limiter = Limiter::in_memory();
    for (style, most) in [
        (HeaderStyle::None, 0),
        (HeaderStyle::Draft, 8),
        (HeaderStyle::Legacy, 10),
    ] {
        let layer = RateLimitLayer::new(&limiter, WIDE).respond_http();
        let layer = layer.headers(style);
        let mut service = layer.layer(tower::service_fn(answer as fn(Request<()>) -> Answer));
        let mut serve = || {
            let cx = &mut Context::from_waker(Waker::noop());
            assert!(matches!(service.poll_ready(cx), Poll::Ready(Ok(()))));
            let Poll::Ready(Ok(response)) = pin!(service.call(Request::new(()))).poll(cx) else {
                panic!("never pending")
            };
            assert_eq!(response.headers().is_empty(), style == HeaderStyle::None);
        };
        serve();
        let allocations = measure(serve).count_total;
        println!("{style:?}: {allocations} allocations");
        assert!(allocations <= most, "{style:?}: {allocations}");
    }
}

#[test]
fn sizes_are_moderate() {
    type Future = ResponseFuture<NoOp, String, Fail>;
    for (name, size, most) in [
        ("Scope", size_of::<Scope>(), 136),
        ("Acquire", size_of::<Acquire>(), 256),
        ("Permit", size_of::<Permit>(), 256),
        ("Rejected", size_of::<Rejected>(), 192),
        ("RateLimitLayer", size_of::<RateLimitLayer>(), 192),
        ("RateLimit<no-op>", size_of::<RateLimit<NoOp>>(), 512),
        ("ResponseFuture<no-op>", size_of::<Future>(), 512),
    ] {
        println!("{name}: {size} bytes");
        assert!(size <= most, "{name}: {size} bytes");
    }
}

#[test]
fn auto_traits() {
    fn send_sync<T: Send + Sync>() {}
    fn static_unpin<T: Send + Sync + Unpin + 'static>() {}
    static_unpin::<Acquire>();
    static_unpin::<Limiter>();
    static_unpin::<Permit>();
    static_unpin::<Rejected>();
    static_unpin::<tower_throttle::PermitHandle>();
    static_unpin::<Scope>();
    send_sync::<RateLimitLayer>();
    send_sync::<RateLimit<NoOp>>();
    send_sync::<ResponseFuture<NoOp, String, Fail>>();
}
