//! Values that a client chooses: invented keys, spellings of one key, and paths.

use axum::{
    Router,
    extract::Request,
    middleware::{Next, from_fn},
    response::Response,
    routing::get,
};
use http::HeaderValue;
use tonic::transport::{Endpoint, Server, server::TcpIncoming};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tower::{Layer, Service};
use tower_throttle::{
    RateLimitLayer, ScopeExtractor,
    extract::{extension, matched_path},
};

use super::{
    sockets::{from, raw, raw_head, serve},
    *,
};

const CLIENT: Scope = Quota::per_day(20.0).scope("client");
const UNKNOWN: Scope = Quota::per_day(20.0).scope("unknown-client");
const ACCOUNT: Scope = Quota::per_day(7.0).scope("account");

#[derive(Clone)]
struct Account {
    id: u64,
}

/// The limits of `docs/keys.md`, behind an authentication that accepts one key and lets those
/// without one pass.
async fn behind_authentication(limiter: &Limiter) -> std::net::SocketAddr {
    let authenticate = from_fn(async |mut req: Request, next: Next| -> Response {
        let key = req.headers().get("x-api-key");
        if key.is_some_and(|key| key == "checked") {
            req.extensions_mut().insert(Account { id: 7 });
        }
        next.run(req).await
    });
    let limits = (
        CLIENT.by(client_ip(TrustedProxies::none())).or(UNKNOWN),
        ACCOUNT
            .by(extension::<Account>().key(|account| account.id))
            .or_unlimited(),
    );
    let router = Router::new()
        .route("/", get(async || "hello"))
        .layer(RateLimitLayer::new(limiter, limits).respond_http())
        .layer(authenticate);
    serve("127.0.0.1:0", router).await
}

#[tokio::test]
async fn invented_keys_do_not_raise_the_limit_of_an_address() {
    let limiter = Limiter::in_memory();
    let server = behind_authentication(&limiter).await;
    let mut admitted = 0;
    for n in 0..100u8 {
        let key = match n % 5 {
            0 => format!("x-api-key: invented-{n}\r\n").into_bytes(),
            1 => [&b"x-api-key: k"[..], &[0x80 | n, b'\r', b'\n']].concat(),
            2 => format!("x-api-key: checked\r\nx-api-key: {n}\r\nx-user: {n}\r\n").into_bytes(),
            3 => format!("x-api-key:{}\r\n", " ".repeat(n.into())).into_bytes(),
            _ => Vec::new(),
        };
        admitted += u32::from(raw(server, &key).await.0 == 200);
    }
    assert_eq!(admitted, 20);
    assert_eq!(limiter.scopes_held(), 2, "the client and the account");
}

#[tokio::test]
async fn account_has_one_bucket_for_all_addresses() {
    let limiter = Limiter::in_memory();
    let server = behind_authentication(&limiter).await;
    let mut admitted = 0;
    for n in 0..12 {
        let http = from(["127.0.0.3", "127.0.0.4"][n % 2]);
        let request = http.get(format!("http://{server}/"));
        let answer = request.header("x-api-key", "checked").send().await.unwrap();
        admitted += u32::from(answer.status() == 200);
    }
    assert_eq!(admitted, 7);
    assert_eq!(
        limiter
            .bucket(&ACCOUNT.key(7))
            .level()
            .await
            .unwrap()
            .floor(),
        0.0
    );
}

/// The calls that a tonic server admits with these values of the header, over HTTP/2.
async fn admitted_over_http2(name: &'static str, values: &[String]) -> u32 {
    const KEYED: Scope = Quota::per_day(3.0).scope("keyed");
    let limiter = Limiter::in_memory();
    let limit = KEYED.by(header(name)).or(Quota::per_day(1.0).scope("none"));
    let layer = RateLimitLayer::new(&limiter, limit).respond_http();
    let incoming = TcpIncoming::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let address = incoming.local_addr().unwrap();
    let (_, health) = tonic_health::server::health_reporter();
    let server = Server::builder().layer(layer).add_service(health);
    tokio::spawn(server.serve_with_incoming(incoming));
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    let mut client = HealthClient::new(endpoint.connect().await.unwrap());
    let mut admitted = 0;
    for value in values {
        let mut request = tonic::Request::new(HealthCheckRequest::default());
        request.metadata_mut().insert(name, value.parse().unwrap());
        admitted += u32::from(client.check(request).await.is_ok());
    }
    admitted
}

#[tokio::test]
async fn spaces_around_a_key_are_removed() {
    let spelled = |n: usize| {
        let space = [" ", "\t", " \t"][n % 3];
        format!("{}k{}", space.repeat(n % 7), space.repeat(n / 7))
    };
    let values: Vec<_> = (0..50).map(spelled).collect();
    assert_eq!(admitted_over_http2("x-api-key", &values).await, 3);
    // A value of spaces is not a key.
    let values: Vec<_> = (0..5).map(|n| " ".repeat(n)).collect();
    assert_eq!(admitted_over_http2("x-api-key", &values).await, 1);
}

#[tokio::test]
async fn scheme_is_case_insensitive() {
    let spelled = ["Bearer k", "bearer k", "BEARER k", "Bearer  k", "bearer\tk"].map(String::from);
    assert_eq!(admitted_over_http2("authorization", &spelled).await, 3);
    assert_eq!(
        admitted_over_http2("proxy-authorization", &spelled).await,
        3
    );
    // Credentials are case-sensitive, and so are values without a scheme.
    for different in [
        ["Bearer k", "Bearer K"],
        ["k", "K"],
        ["Basic k", "Bearer k"],
    ] {
        let twice = different.map(|one| [one; 3]).concat();
        let twice: Vec<_> = twice.into_iter().map(String::from).collect();
        assert_eq!(admitted_over_http2("authorization", &twice).await, 6);
    }
}

#[tokio::test]
async fn host_and_authority_are_one_key() {
    let by = CLIENT.by(header("host")).or_unlimited();
    let keyed = |uri: &str, host: Option<&str>| {
        let mut request = http::Request::builder().uri(uri);
        if let Some(host) = host {
            request = request.header("host", host);
        }
        let request = request.body(()).unwrap();
        by.extract(&request).iter().next().cloned()
    };
    let shop = keyed("/", Some("shop.example"));
    assert!(shop.is_some());
    assert_eq!(keyed("/", Some("Shop.EXAMPLE")), shop);
    // HTTP/2 has the host in the target of the request.
    assert_eq!(keyed("https://shop.example/", None), shop);
    assert_eq!(keyed("https://Shop.example/", Some("other.example")), shop);
    assert_eq!(keyed("https://user@shop.example/", None), shop);
    assert_ne!(keyed("/", Some("other.example")), shop);
    assert_eq!(keyed("/", None), None);
}

#[test]
fn cookies_in_several_lines_are_one_key() {
    let by = CLIENT.by(header("cookie")).or_unlimited();
    let keyed = |lines: &[&'static str]| {
        let mut request = http::Request::new(());
        for line in lines {
            let line = HeaderValue::from_static(line);
            request.headers_mut().append("cookie", line);
        }
        by.extract(&request).iter().next().cloned()
    };
    let ann = keyed(&["theme=dark; session=ann"]);
    assert_eq!(keyed(&["theme=dark", "session=ann"]), ann);
    assert_ne!(keyed(&["theme=dark", "session=bob"]), ann);
    assert_eq!(keyed(&["", " "]), None);
}

#[test]
fn text_of_any_script_is_kept_as_key() {
    let by = CLIENT.by(header("x-user")).or_unlimited();
    let mut request = http::Request::new(());
    let value = HeaderValue::from_bytes("zoë".as_bytes()).unwrap();
    request.headers_mut().append("x-user", value);
    let found = by.extract(&request).iter().next().cloned();
    assert_eq!(found, Some(CLIENT.key("zoë")));
}

#[tokio::test]
async fn folded_header_line_is_rejected_by_the_server() {
    let limiter = Limiter::in_memory();
    let limit = CLIENT.by(header("x-api-key")).or(UNKNOWN);
    let layer = RateLimitLayer::new(&limiter, limit).respond_http();
    let hello = Router::new().route("/", get(async || "hello"));
    let server = serve("127.0.0.1:0", hello.layer(layer)).await;
    assert_eq!(raw(server, b"x-api-key: k\r\n 1\r\n").await.0, 400);
    assert_eq!(limiter.scopes_held(), 0);
}

/// As in the table of `matched_path`.
#[tokio::test]
async fn matched_path_by_position_of_the_limit() {
    const ROUTE: Scope = Quota::per_day(2.0).scope("route");
    const NO_ROUTE: Scope = Quota::per_day(2.0).scope("no-route");
    let limiter = Limiter::in_memory();
    let limit = || {
        let by = ROUTE.by(matched_path()).or(NO_ROUTE);
        RateLimitLayer::new(&limiter, by).respond_http()
    };
    let hello = || Router::new().route("/{id}", get(async || "hello"));
    let around = || limit().layer(hello());
    let inside = || hello().layer(limit());
    // Each limit applies to a request once, or it would be counted twice.
    let router = Router::new()
        .merge(
            Router::new()
                .route("/layer/{id}", get(async || ""))
                .layer(limit()),
        )
        .merge(
            Router::new()
                .route("/route_layer/{id}", get(async || ""))
                .route_layer(limit()),
        )
        .route("/method/{id}", get(async || "").layer(limit()))
        .route_service("/service/{id}", around())
        .nest("/nest", inside())
        .nest_service("/nest_service", inside())
        .merge(Router::new().nest("/outside_nest", hello()).layer(limit()))
        .merge(
            Router::new()
                .nest_service("/outside_nest_service", hello())
                .layer(limit()),
        )
        .nest_service("/around", around())
        .nest(
            "/nested_fallback",
            Router::new().fallback(async || "").layer(limit()),
        )
        .fallback_service(around());
    let server = serve("127.0.0.1:0", router).await;
    let http = from("127.0.0.1");
    for (path, route) in [
        ("layer", Some("/layer/{id}")),
        ("route_layer", Some("/route_layer/{id}")),
        ("method", Some("/method/{id}")),
        ("service", Some("/service/{id}")),
        ("nest", Some("/nest/{id}")),
        ("nest_service", Some("/nest_service/{id}")),
        ("outside_nest", Some("/outside_nest/{id}")),
        ("outside_nest_service", None),
        ("around", None),
        ("nested_fallback", None),
        ("nowhere", None),
    ] {
        limiter.bucket(&NO_ROUTE).reset().await.unwrap();
        let mut limited = 0;
        for n in 0..4 {
            let url = format!("http://{server}/{path}/{n}");
            limited += u32::from(http.get(url).send().await.unwrap().status() == 429);
        }
        assert_eq!(limited, 2, "{path}");
        let bucket = route.map_or(NO_ROUTE, |route| ROUTE.key(route));
        let level = limiter.bucket(&bucket).level().await.unwrap();
        assert_eq!(level.floor(), 0.0, "{path}");
    }

    // Outside a router there is no matched route yet.
    limiter.bucket(&NO_ROUTE).reset().await.unwrap();
    let mut service = limit().layer(hello());
    for expected in [404, 404, 429] {
        let request = Request::builder()
            .uri("/a/b")
            .body(axum::body::Body::empty());
        let answer = Service::call(&mut service, request.unwrap()).await.unwrap();
        assert_eq!(answer.status(), expected);
    }
}

/// axum writes the root of a nested router in two ways.
#[tokio::test]
async fn route_is_one_key_for_all_spellings_of_its_path() {
    let limiter = Limiter::in_memory();
    let by = CLIENT.by(matched_path()).or(UNKNOWN);
    let limit = || RateLimitLayer::new(&limiter, by.clone()).respond_http();
    let nested = Router::new()
        .route("/", get(async || "hello"))
        .route("/{id}", get(async || "hello"))
        .layer(limit());
    let deep = Router::new().nest_service("/nested", nested.clone());
    let router = Router::new()
        .nest_service("/nested", nested)
        .nest_service("/deep", deep);
    let server = serve("127.0.0.1:0", router).await;
    for (paths, key) in [
        (vec!["/nested", "/nested/", "/nested//"], "/nested/"),
        (vec!["/deep/nested", "/deep/nested/"], "/deep/nested/"),
        (
            vec![
                "/nested/1",
                "/nested/%31",
                "/nested/1?page=2",
                "/nested/.%2e",
            ],
            "/nested/{id}",
        ),
    ] {
        for path in &paths {
            let head = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n");
            assert_eq!(raw_head(server, head.as_bytes()).await.0, 200, "{path}");
        }
        let level = limiter
            .bucket(&CLIENT.key(key))
            .level()
            .await
            .unwrap()
            .floor();
        assert_eq!(level, 20.0 - paths.len() as f64, "{key}");
    }
    assert_eq!(limiter.scopes_held(), 3);
}
