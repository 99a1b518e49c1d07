//! A million clients with a new key each: memory stays within its bound, a known client keeps its
//! bucket, and all requests get a decision.
#![cfg(feature = "http")]

#[cfg(feature = "redis")]
mod support;

use std::{
    convert::Infallible,
    future::{Ready, ready},
    net::Ipv6Addr,
    pin::pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use allocation_counter::measure;
use http::{Request, Response, StatusCode};
use tokio::time::Instant;
use tower::{Layer, Service, util::ServiceFn};
use tower_throttle::{
    Limiter, Quota, RateLimit, RateLimitLayer, Scope,
    extract::{By, ClientIp, Or, Peer, TrustedProxies, client_ip},
    reply::HttpReply,
};

/// Refills too slowly to matter in a test.
const CLIENT: Scope = Quota::per_day(10.0).scope("client");

/// Stated in `docs/memory.md`, for each of `max_scopes`; and where names and keys are as long as can be.
const BYTES_PER_SCOPE: usize = 104;
const MOST_BYTES_PER_SCOPE: usize = 200;

/// The same for the level cache of buckets in Redis.
#[cfg(feature = "redis")]
const BYTES_REMEMBERED: usize = 128;

/// The overflow buckets of each name, which unseen keys share once `max_scopes` are held.
const SHARED: usize = 1_024;

/// The smallest tables, which do not grow with the number of keys.
const FIXED_BYTES: usize = 1 << 17;

/// Temporary memory: a table that grows, requests in progress.
const PASSING_BYTES: usize = 1 << 20;

type Answer = Ready<Result<Response<()>, Infallible>>;
type NoOp = ServiceFn<fn(Request<()>) -> Answer>;
type Limited<X> = RateLimit<NoOp, Or<By<X>>, HttpReply>;

fn answer(_: Request<()>) -> Answer {
    ready(Ok(Response::new(())))
}

fn limited<X: Clone>(limiter: &Limiter, by: By<X>) -> Limited<X> {
    let layer = RateLimitLayer::new(limiter, by.or_unlimited()).respond_http();
    layer.layer(tower::service_fn(answer as fn(Request<()>) -> Answer))
}

fn by_client() -> By<ClientIp> {
    CLIENT.by(client_ip(TrustedProxies::private()))
}

/// A request from the `n`th network of a hostile client.
fn hostile(n: u32) -> Request<()> {
    from(Ipv6Addr::from_bits(
        (0x2001_0db8 << 96) | (u128::from(n) << 64) | 1,
    ))
}

fn honest() -> Request<()> {
    from(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0xffff, 0, 0, 0, 1))
}

fn from(address: Ipv6Addr) -> Request<()> {
    let mut request = Request::new(());
    request.extensions_mut().insert(Peer(address.into()));
    request
}

#[cfg(feature = "redis")]
fn honest_scope() -> Scope {
    CLIENT.key("2001:db8:ffff:ffff::")
}

/// Readiness, call and response, all of which are ready at once.
fn status<S>(service: &mut S, request: Request<()>) -> StatusCode
where
    S: Service<Request<()>, Response = Response<()>, Error = Infallible>,
{
    let cx = &mut Context::from_waker(Waker::noop());
    assert!(service.poll_ready(cx).is_ready());
    match pin!(service.call(request)).poll(cx) {
        Poll::Ready(response) => response.unwrap().status(),
        Poll::Pending => panic!("never pending"),
    }
}

/// Prints the durations, and checks that hardly any request waited much longer than it should.
fn assert_prompt(who: &str, mut took: Vec<Duration>, aim: Duration, most: Duration) {
    took.sort_unstable();
    let at = |part: usize| took[(took.len() - 1) * part / 100];
    let (p50, p99, max) = (at(50), at(99), at(100));
    let met = if p99 <= aim { "met" } else { "missed" };
    println!(
        "{who}: {} answers, p50 {p50:?}, p99 {p99:?}, max {max:?} (aim {aim:?}: {met})",
        took.len()
    );
    assert!(p99 <= most, "{who}: p99 {p99:?}");
}

#[test]
fn million_unseen_keys_in_memory() {
    const UNSEEN: u32 = 1_000_000;
    const MOST: usize = 100_000;
    let limiter = Limiter::builder().max_scopes(MOST).build().unwrap();
    let mut service = limited(&limiter, by_client());
    for _ in 0..3 {
        assert_eq!(status(&mut service, honest()), StatusCode::OK);
    }
    let (mut unseen, mut known) = (Vec::with_capacity(1 << 20), Vec::with_capacity(1 << 10));
    let mut admitted = 0;
    let counted = measure(|| {
        for n in 0..UNSEEN {
            let request = hostile(n);
            let start = Instant::now();
            let answer = status(&mut service, request);
            unseen.push(start.elapsed());
            admitted += usize::from(answer == StatusCode::OK);
            // The known client uses one of its ten tokens now and then, before and after the limit
            // is reached.
            if n == 1_000 || n == UNSEEN - 1_000 {
                assert_eq!(status(&mut service, honest()), StatusCode::OK);
            }
        }
    });
    // One for each bucket, and ten for each overflow bucket.
    let shared = MOST + 10 * SHARED;
    assert!((shared - 100..=shared).contains(&admitted), "{admitted}");
    let held = limiter.scopes_held();
    assert!(held <= MOST + SHARED, "{held}");
    assert!(limiter.overflowed() >= u64::from(UNSEEN) - MOST as u64);
    let bytes = usize::try_from(counted.bytes_current).unwrap();
    let peak = usize::try_from(counted.bytes_max).unwrap();
    println!(
        "{UNSEEN} unseen keys, max_scopes {MOST}: {held} held, {} bytes each, {} at the peak",
        bytes / MOST,
        peak / MOST
    );
    let most = (MOST + SHARED) * BYTES_PER_SCOPE;
    assert!(bytes <= most + FIXED_BYTES, "{bytes}");
    assert!(peak <= most + PASSING_BYTES, "{peak}");

    // Three and two tokens are used: five are left. Then it is rejected as if there were no other
    // clients.
    for _ in 0..1_000 {
        let start = Instant::now();
        let answer = status(&mut service, honest());
        known.push(start.elapsed());
        let expected = match known.len() {
            ..=5 => StatusCode::OK,
            _ => StatusCode::TOO_MANY_REQUESTS,
        };
        assert_eq!(answer, expected, "request {}", known.len());
    }
    let (aim, most) = (Duration::from_millis(1), Duration::from_millis(20));
    assert_prompt("unseen in memory", unseen, aim, most);
    assert_prompt("the known client in memory", known, aim, most);
}

/// Names and keys of the largest size that is kept, and larger ones, which are hashed.
#[test]
fn long_keys_use_no_more_memory() {
    const MOST: usize = 20_000;
    let held = |name: usize, key: usize| {
        let scope = Scope::new("n".repeat(name), CLIENT.quota());
        let limiter = Limiter::builder().max_scopes(MOST).build().unwrap();
        let mut service = limited(&limiter, scope.by(header_as_is));
        let counted = measure(|| {
            for n in 0..MOST + MOST / 10 {
                let request = Request::builder().header("x-api-key", format!("{n:>0key$}"));
                status(&mut service, request.body(()).unwrap());
            }
        });
        let held = limiter.scopes_held();
        assert!((MOST..=MOST + SHARED).contains(&held), "{held}");
        let bytes = usize::try_from(counted.bytes_current).unwrap();
        println!(
            "a name of {name} bytes, keys of {key}: {} bytes each",
            bytes / MOST
        );
        bytes
    };
    let allowed = |each: usize| (MOST + SHARED) * each + FIXED_BYTES;
    assert!(held(4, 5) <= allowed(BYTES_PER_SCOPE));
    assert!(held(64, 64) <= allowed(MOST_BYTES_PER_SCOPE));
    assert!(held(65, 1_000) <= allowed(BYTES_PER_SCOPE));
}

/// The value of the header as it was sent.
fn header_as_is(request: &Request<()>) -> Option<String> {
    let value = request.headers().get("x-api-key")?;
    Some(value.to_str().ok()?.to_owned())
}

/// Where Redis holds the buckets, the level cache of a process is bounded as well.
#[cfg(feature = "redis")]
#[test]
fn unseen_keys_on_redis() {
    use futures_util::{StreamExt, stream};
    use tower::ServiceExt;

    const UNSEEN: u32 = 200_000;
    const MOST: usize = 20_000;
    // One thread, so that every allocation is counted.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let server = runtime.block_on(support::RedisServer::start());
    let limiter = Limiter::builder()
        .redis(server.url())
        // A busy test machine delays replies for longer than a service would accept.
        .redis_timeout(Duration::from_secs(10))
        .max_scopes(MOST)
        .build()
        .unwrap();
    let service = limited(&limiter, by_client());
    let send = async |request: Request<()>| {
        let start = Instant::now();
        let answer = service.clone().oneshot(request).await.unwrap();
        (answer.status(), start.elapsed())
    };
    runtime.block_on(async {
        for _ in 0..3 {
            assert_eq!(send(honest()).await.0, StatusCode::OK);
        }
    });
    let (mut known, mut admitted) = (Vec::with_capacity(1 << 10), 0);
    let counted = measure(|| {
        runtime.block_on(async {
            let flood = stream::iter(0..UNSEEN)
                .map(|n| send(hostile(n)))
                .buffer_unordered(256);
            let mut flood = pin!(flood.enumerate());
            while let Some((nth, (answer, _))) = flood.next().await {
                admitted += u32::from(answer == StatusCode::OK);
                // It has seven tokens left.
                if nth % 1_000 == 500 {
                    let (answer, took) = send(honest()).await;
                    known.push(took);
                    let expected = match known.len() {
                        ..=7 => StatusCode::OK,
                        _ => StatusCode::TOO_MANY_REQUESTS,
                    };
                    assert_eq!(answer, expected, "request {}", known.len());
                }
            }
        });
    });
    assert_eq!(admitted, UNSEEN, "on Redis each has a bucket");
    assert_eq!(limiter.fallbacks(), 0);
    assert_eq!(limiter.scopes_held(), 0, "memory decided nothing");
    let level = runtime.block_on(limiter.bucket(&honest_scope()).level());
    assert_eq!(level.expect("Redis answers").floor(), 0.0);
    let bytes = usize::try_from(counted.bytes_current.max(0)).unwrap();
    let peak = usize::try_from(counted.bytes_max).unwrap();
    println!(
        "{UNSEEN} unseen keys on Redis, max_scopes {MOST}: {} bytes each are left, {} at the peak",
        bytes / MOST,
        peak / MOST
    );
    assert!(bytes <= MOST * BYTES_REMEMBERED + FIXED_BYTES, "{bytes}");
    assert!(peak <= MOST * BYTES_REMEMBERED + PASSING_BYTES, "{peak}");
    let (aim, most) = (Duration::from_millis(1), Duration::from_millis(500));
    assert_prompt("the known client on Redis", known, aim, most);
}
