//! HTTP over real sockets: axum inside or outside the layer, reqwest as the client or as the inner
//! service.
#![cfg(all(feature = "http", feature = "axum"))]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    error_handling::HandleErrorLayer,
    extract::{ConnectInfo, Request},
    http::{HeaderMap, StatusCode},
    response::Response,
    routing::{any, get},
};
use tokio::{net::TcpListener, time::Instant};
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt};
use tower_throttle::{
    Limiter, Permit, PermitHandle, Quota, RateLimitLayer, Reason, Rejected, Scope,
    extract::{TrustedProxies, client_ip, header, peer_ip},
};

const SECOND: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(100);

/// Refills too slowly to matter in a test.
const DAY: Quota = Quota::per_day(2.0);

async fn h() -> &'static str {
    "hello"
}

async fn serve(router: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = router.into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}/")
}

/// Without `ConnectInfo`, a common mistake.
async fn serve_without_addresses(router: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}/")
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}

async fn status(url: &str) -> u16 {
    client().get(url).send().await.unwrap().status().as_u16()
}

async fn statuses(url: &str, requests: usize) -> Vec<u16> {
    let mut statuses = Vec::new();
    for _ in 0..requests {
        statuses.push(status(url).await);
    }
    statuses
}

async fn floor(limiter: &Limiter, scope: &Scope) -> f64 {
    limiter.bucket(scope).level().await.unwrap().floor()
}

/// With many scopes for a request, neither the decision nor the response grows with their number.
#[tokio::test]
async fn request_for_too_many_scopes_gets_a_short_response() {
    let limiter = Limiter::in_memory();
    let named = |n: usize| Scope::new(format!("name-{n}"), DAY);
    let layer = RateLimitLayer::new(&limiter, move |req: &Request| {
        let path = req.uri().path().trim_start_matches('/');
        (0..path.parse().unwrap_or(0))
            .map(named)
            .collect::<Vec<_>>()
    });
    let url = serve(Router::new().fallback(h).layer(layer.respond_http())).await;
    assert_eq!(status(&format!("{url}128")).await, 200);
    let start = Instant::now();
    let answer = client().get(format!("{url}40000")).send().await.unwrap();
    assert_eq!(answer.status(), 403);
    let headers = answer.headers();
    let bytes: usize = headers.values().map(|value| value.len()).sum();
    assert!(bytes < 1_000, "{headers:?}");
    assert!(start.elapsed() < 20 * SECOND, "{:?}", start.elapsed());
}

#[tokio::test]
async fn requests_without_the_header_share_one_bucket() {
    const KEYED: Scope = DAY.scope("api-key");
    const ANONYMOUS: Scope = Quota::per_day(1.0).scope("anonymous");
    let limiter = Limiter::in_memory();
    let url = serve(Router::new().route("/", get(h)).layer(
        RateLimitLayer::new(&limiter, KEYED.by(header("x-api-key")).or(ANONYMOUS)).respond_http(),
    ))
    .await;
    let client = client();
    let send = async |key: Option<&str>| {
        let mut request = client.get(&url);
        if let Some(key) = key {
            request = request.header("x-api-key", key);
        }
        let response = request.send().await.unwrap();
        let retry_after = response.headers().get("retry-after").cloned();
        (response.status().as_u16(), retry_after)
    };
    for key in ["alice", "bob"] {
        for _ in 0..2 {
            assert_eq!(send(Some(key)).await, (200, None), "{key}");
        }
    }
    let (status, retry_after) = send(Some("alice")).await;
    assert_eq!(status, 429);
    let seconds: u64 = retry_after.unwrap().to_str().unwrap().parse().unwrap();
    assert!((43_000..=43_200).contains(&seconds), "{seconds}");

    assert_eq!(send(None).await.0, 200);
    // An empty key is no key.
    assert_eq!(send(Some("")).await.0, 429);
    assert_eq!(send(None).await.0, 429);
    // The name of the other scope is an ordinary key.
    assert_eq!(send(Some("anonymous")).await.0, 200);
}

#[tokio::test]
async fn retry_after_is_never_zero() {
    const FAST: Scope = Quota::per_second(5.0).burst(1.0).scope("fast");
    let limiter = Limiter::in_memory();
    let layer = RateLimitLayer::new(&limiter, FAST.cost(1.0)).respond_http();
    let url = serve(Router::new().route("/", get(h)).layer(layer)).await;
    limiter.try_acquire(FAST).await.unwrap();
    let response = client().get(&url).send().await.unwrap();
    assert_eq!(response.status(), 429);
    assert_eq!(response.headers()["retry-after"], "1");
    assert_eq!(response.text().await.unwrap(), "");
}

#[tokio::test]
async fn layer_route_layer_and_method_router_layer() {
    const SITE: Scope = DAY.scope("site");
    let limiter = Limiter::in_memory();
    let limit = || RateLimitLayer::new(&limiter, SITE).respond_http();
    let plain = || Router::new().route("/", get(h));

    let url = serve(plain().layer(limit())).await;
    assert_eq!(statuses(&url, 3).await, [200, 200, 429]);
    // `layer` counts requests that are not found, too.
    limiter.bucket(&SITE).reset().await.unwrap();
    let missing = format!("{url}missing");
    assert_eq!(statuses(&missing, 3).await, [404, 404, 429]);

    // `route_layer` does not.
    limiter.bucket(&SITE).reset().await.unwrap();
    let url = serve(plain().route_layer(limit())).await;
    assert_eq!(statuses(&format!("{url}missing"), 3).await, [404, 404, 404]);
    assert_eq!(statuses(&url, 3).await, [200, 200, 429]);

    limiter.bucket(&SITE).reset().await.unwrap();
    let url = serve(
        Router::new()
            .route("/", get(h).layer(limit()).post(h))
            .route("/free", get(h)),
    )
    .await;
    assert_eq!(statuses(&url, 3).await, [200, 200, 429]);
    assert_eq!(status(&format!("{url}free")).await, 200);
    let post = client().post(&url).send().await.unwrap();
    assert_eq!(post.status(), 200);
}

#[tokio::test]
async fn requests_wait_up_to_max_wait_and_are_then_rejected() {
    const PACED: Scope = Quota::per_second(10.0).burst(1.0).scope("paced");
    let limiter = Limiter::in_memory();
    let layer = RateLimitLayer::new(&limiter, PACED).respond_http();
    let url = serve(
        Router::new()
            .route("/", get(h))
            .layer(layer.max_wait(3 * TICK / 2)),
    )
    .await;
    limiter.try_acquire(PACED).await.unwrap();
    let start = Instant::now();
    assert_eq!(status(&url).await, 200);
    assert!(start.elapsed() >= Duration::from_millis(80));

    // A debt that no wait within `max_wait` refills.
    let permit = limiter.acquire(PACED, SECOND).await.unwrap();
    permit.settle(100.0);
    let start = Instant::now();
    assert_eq!(status(&url).await, 429);
    assert!(start.elapsed() < SECOND);
}

#[tokio::test]
async fn peers_have_separate_buckets() {
    const PEER: Scope = DAY.scope("peer");
    const UNKNOWN: Scope = DAY.scope("unknown-peer");
    let router = |limiter: &Limiter| {
        let layer = RateLimitLayer::new(limiter, PEER.by(peer_ip()).or(UNKNOWN));
        Router::new()
            .route(
                "/",
                get(
                    async |info: Option<axum::Extension<ConnectInfo<SocketAddr>>>| {
                        info.map(|info| info.0.0.ip().to_string())
                            .unwrap_or_default()
                    },
                ),
            )
            .layer(layer.respond_http())
    };
    let limiter = Limiter::in_memory();
    let url = serve(router(&limiter)).await;
    let body = client().get(&url).send().await.unwrap().text().await;
    assert_eq!(body.unwrap(), "127.0.0.1");
    assert_eq!(statuses(&url, 2).await, [200, 429]);
    assert_eq!(floor(&limiter, &PEER.key("127.0.0.1")).await, 0.0);

    // Without `ConnectInfo` there is no address.
    let limiter = Limiter::in_memory();
    let url = serve_without_addresses(router(&limiter)).await;
    assert_eq!(statuses(&url, 4).await, [200, 200, 429, 429]);
    assert_eq!(floor(&limiter, &UNKNOWN).await, 0.0);
}

#[tokio::test]
async fn cost_over_the_capacity_is_forbidden() {
    let limiter = Limiter::in_memory();
    let never = DAY.scope("never").cost(3.0);
    for max_wait in [Duration::ZERO, SECOND] {
        let layer = RateLimitLayer::new(&limiter, never.clone()).respond_http();
        let url = serve(
            Router::new()
                .route("/", get(h))
                .layer(layer.max_wait(max_wait)),
        )
        .await;
        for _ in 0..2 {
            let response = client().get(&url).send().await.unwrap();
            assert_eq!(response.status(), 403);
            assert!(!response.headers().contains_key("retry-after"));
        }
    }
}

/// A gRPC status over HTTP 200 is only for requests that can be gRPC calls: caches and other
/// clients take it for a success.
#[tokio::test]
async fn only_a_grpc_post_gets_a_grpc_status() {
    const SITE: Scope = DAY.scope("site");
    let limiter = Limiter::in_memory();
    limiter.try_acquire(SITE.cost(2.0)).await.unwrap();
    let layer = RateLimitLayer::new(&limiter, SITE).respond_http();
    let url = serve(Router::new().route("/", any(h)).layer(layer)).await;
    let client = client();
    let send = async |method: &str, content_type: &str| {
        let method = method.parse().unwrap();
        let request = client.request(method, &url);
        let response = request.header("content-type", content_type).send().await;
        let response = response.unwrap();
        let headers = response.headers();
        assert_eq!(
            headers.get_all("cache-control").iter().collect::<Vec<_>>(),
            ["no-store"],
            "{content_type}"
        );
        let grpc = headers.get("grpc-status").is_some_and(|code| code == "8");
        assert_eq!(headers.contains_key("retry-after"), !grpc);
        (response.status().as_u16(), grpc)
    };
    for (content_type, grpc) in [
        ("application/grpc", true),
        ("application/grpc+proto", true),
        ("application/grpc;charset=utf-8", true),
        ("application/grpc ; charset=utf-8", true),
        ("APPLICATION/GRPC", true),
        ("application/grpc-web", true),
        ("application/grpc-web-text+proto", true),
        ("application/grpcfoo", false),
        ("application/grpc-foo", false),
        ("application/grpc foo", false),
        ("application/grpc, text/html", false),
        ("application/grpc/proto", false),
        ("text/html; application/grpc", false),
        ("application/json", false),
    ] {
        let expected = if grpc { (200, true) } else { (429, false) };
        assert_eq!(send("POST", content_type).await, expected, "{content_type}");
        for method in [
            "GET", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "post", "QUERY",
        ] {
            let answer = send(method, content_type).await;
            assert_eq!(answer, (429, false), "{method} {content_type}");
        }
    }
}

/// Not over a socket: hyper's client has no request with this method and a body.
#[tokio::test]
async fn rejected_connect_request_is_not_a_success() {
    let limiter = Limiter::in_memory();
    let scope = DAY.scope("site").cost(3.0);
    let service = RateLimitLayer::new(&limiter, scope)
        .respond_http()
        .layer(tower::service_fn(async |_: Request| {
            Ok::<_, std::convert::Infallible>(Response::default())
        }));
    let request = Request::builder().method("CONNECT").uri("example.com:443");
    let request = request.header("content-type", "application/grpc");
    let response = service.oneshot(request.body(Default::default()).unwrap());
    let response: Response = response.await.unwrap();
    assert_eq!(response.status(), 403);
    assert_eq!(response.headers()["cache-control"], "no-store");
}

#[tokio::test]
async fn rejection_is_an_error_for_handle_error() {
    const SITE: Scope = DAY.scope("site");
    for max_wait in [Duration::ZERO, TICK] {
        let limiter = Limiter::in_memory();
        let answer = async |error: BoxError| match Rejected::find(&*error) {
            Some(rejected) => (StatusCode::IM_A_TEAPOT, rejected.to_string()),
            None => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        };
        let url = serve(
            Router::new().route("/", get(h)).layer(
                ServiceBuilder::new()
                    .layer(HandleErrorLayer::new(answer))
                    .layer(RateLimitLayer::new(&limiter, SITE).max_wait(max_wait)),
            ),
        )
        .await;
        assert_eq!(statuses(&url, 2).await, [200, 200]);
        let response = client().get(&url).send().await.unwrap();
        assert_eq!(response.status(), 418);
        let text = response.text().await.unwrap();
        assert!(text.starts_with("rate limit \"site\" exceeded"), "{text}");
    }
}

#[tokio::test]
async fn handler_settles_the_exposed_permit() {
    const TOKENS: Scope = Quota::per_day(100.0).scope("tokens");
    let limiter = Limiter::in_memory();
    let handler = async |request: Request| {
        let handle = request
            .extensions()
            .get::<PermitHandle>()
            .expect("a handle");
        assert_eq!(handle.scopes()[0].name(), "tokens");
        handle.settle(7.0);
    };
    for (nth, max_wait) in [(1.0, Duration::ZERO), (2.0, TICK)] {
        let layer = RateLimitLayer::new(&limiter, TOKENS.cost(40.0))
            .respond_http()
            .expose_permit();
        let router = Router::new().route("/", get(handler));
        let url = serve(router.layer(layer.max_wait(max_wait))).await;
        assert_eq!(status(&url).await, 200);
        assert_eq!(floor(&limiter, &TOKENS).await, 100.0 - 7.0 * nth);
    }
}

#[tokio::test]
async fn hooks_see_the_permit_and_the_response() {
    const TOKENS: Scope = Quota::per_day(100.0).scope("tokens");
    let limiter = Limiter::in_memory();
    let used = async || {
        let mut headers = HeaderMap::new();
        headers.insert("x-used", "11".parse().unwrap());
        headers
    };
    let layer = RateLimitLayer::new(&limiter, TOKENS.cost(40.0))
        .respond_http()
        .settle(|response: &Response| {
            response
                .headers()
                .get("x-used")?
                .to_str()
                .ok()?
                .parse()
                .ok()
        })
        .on_response(|permit: &mut Permit, response: &mut Response| {
            let (scope, left) = permit.tightest().expect("not degraded");
            let text = format!("{} {left}", scope.name());
            response
                .headers_mut()
                .insert("x-left", text.parse().unwrap());
        });
    let router = Router::new()
        .route("/", get(used))
        .route("/unknown", get(h));
    let url = serve(router.layer(layer)).await;
    let response = client().get(&url).send().await.unwrap();
    assert_eq!(response.headers()["x-left"], "tokens 60");
    assert_eq!(floor(&limiter, &TOKENS).await, 89.0);
    // Without a number the estimate stays.
    assert_eq!(status(&format!("{url}unknown")).await, 200);
    assert_eq!(floor(&limiter, &TOKENS).await, 49.0);
    // A rejected request never passed: no hook runs.
    limiter.try_acquire(TOKENS.cost(49.0)).await.unwrap();
    let response = client().get(&url).send().await.unwrap();
    assert_eq!(response.status(), 429);
    assert!(!response.headers().contains_key("x-left"));
}

#[tokio::test]
async fn custom_response_to_a_rejection() {
    let limiter = Limiter::in_memory();
    let layer = RateLimitLayer::new(&limiter, DAY.scope("site")).respond(|rejected: &Rejected| {
        assert_eq!(rejected.reason(), Reason::Limited);
        Response::builder()
            .status(420)
            .body(rejected.scope().to_owned().into())
            .unwrap()
    });
    let url = serve(Router::new().route("/", get(h)).layer(layer)).await;
    assert_eq!(statuses(&url, 3).await, [200, 200, 420]);
    let body = client().get(&url).send().await.unwrap().text().await;
    assert_eq!(body.unwrap(), "site");
}

#[tokio::test]
async fn reqwest_as_the_inner_service_waits() {
    const OUT: Scope = Quota::per_second(10.0).burst(1.0).scope("out");
    const NONE: Scope = Quota::per_day(1.0).scope("none");
    let seen = Arc::new(AtomicUsize::new(0));
    let counted = seen.clone();
    let url = serve(Router::new().route(
        "/",
        get(async move || {
            counted.fetch_add(1, Ordering::Relaxed);
        }),
    ))
    .await;
    let limiter = Limiter::in_memory();
    let http = client();
    let service = ServiceBuilder::new()
        .layer(RateLimitLayer::new(&limiter, OUT).max_wait(30 * SECOND))
        .service(http.clone());
    let start = Instant::now();
    for _ in 0..3 {
        let request = http.get(&url).build().unwrap();
        let response = service.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), 200);
    }
    // Two reservations, less the milliseconds between the first acquisition and the second.
    assert!(start.elapsed() >= 2 * TICK - Duration::from_millis(1));
    assert_eq!(seen.load(Ordering::Relaxed), 3);

    // A client that does not wait returns an error with the reason.
    let mut service = RateLimitLayer::new(&limiter, NONE).layer(http.clone());
    limiter.try_acquire(NONE).await.unwrap();
    let request = http.get(&url).build().unwrap();
    let error = service.ready().await.unwrap().call(request).await;
    let error = error.unwrap_err();
    assert_eq!(Rejected::find(&*error).unwrap().scope(), "none");
    assert_eq!(seen.load(Ordering::Relaxed), 3);
    // An error of the client is passed on unchanged.
    limiter.bucket(&NONE).reset().await.unwrap();
    let request = http.get("http://127.0.0.1:1/").build().unwrap();
    let error = service.ready().await.unwrap().call(request).await;
    let error = error.unwrap_err();
    assert!(error.downcast_ref::<reqwest::Error>().unwrap().is_connect());
}

/// The uses that the README and `docs/keys.md` show. Those for tonic are in `grpc.rs`.
mod as_designed {
    use super::*;

    const PER_CLIENT: Scope = Quota::per_minute(60.0).burst(20.0).scope("client");
    const UNKNOWN: Scope = Quota::per_minute(60.0).burst(20.0).scope("unknown-client");
    const RPM: Quota = Quota::per_minute(500.0);
    const TPM: Quota = Quota::per_minute(90_000.0);

    /// The key of a request does not change its limit, whether it is text or not.
    #[tokio::test]
    async fn bucket_per_client() {
        let limiter = Limiter::in_memory();
        let client_ip = client_ip(TrustedProxies::none());
        let router = Router::new().route("/", get(h)).layer(
            RateLimitLayer::new(&limiter, PER_CLIENT.by(client_ip).or(UNKNOWN)).respond_http(),
        );
        let url = serve(router).await;
        let (start, mut admitted) = (Instant::now(), 0.0);
        for n in 0..60u8 {
            let key = [b'k', 0x80 | n];
            let request = client().get(&url).header("x-api-key", &key[..]);
            admitted += f64::from(request.send().await.unwrap().status() == 200);
        }
        let allowed = 20.0 + start.elapsed().as_secs_f64();
        assert!(
            (20.0..=allowed).contains(&admitted),
            "{admitted} of {allowed}"
        );
        assert_eq!(limiter.scopes_held(), 1);
    }

    #[tokio::test]
    async fn site_wide_bucket() {
        let limiter = Limiter::in_memory();
        let router = Router::new().route("/", get(h)).layer(
            RateLimitLayer::new(&limiter, Quota::per_second(500.0).scope("site"))
                .respond_http()
                .max_wait(SECOND),
        );
        assert_eq!(status(&serve(router).await).await, 200);
    }

    #[tokio::test]
    async fn two_limits_before_a_client() {
        let url = serve(Router::new().route("/", get(h))).await;
        let limiter = Limiter::in_memory();
        let client = client();
        let scopes = [
            RPM.scope("openai:rpm"),
            TPM.scope("openai:tpm").cost(1_200.0),
        ];
        let mut service = ServiceBuilder::new()
            .layer(RateLimitLayer::new(&limiter, scopes).max_wait(30 * SECOND))
            .service(client.clone());
        let request = client.get(&url).build().unwrap();
        let response = service.ready().await.unwrap().call(request).await.unwrap();
        assert_eq!(response.status(), 200);
        assert!(floor(&limiter, &RPM.scope("openai:rpm")).await <= 499.0);
        assert!(floor(&limiter, &TPM.scope("openai:tpm")).await <= 88_900.0);
    }
}
