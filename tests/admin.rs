//! The admin example over a socket.
#![cfg(all(feature = "http", feature = "redis"))]

#[allow(dead_code, unreachable_pub, reason = "an example has a main")]
#[path = "../examples/admin.rs"]
mod admin;
mod support;

use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use support::RedisServer;
use tokio::net::TcpListener;
use tower_throttle::{
    Limiter, Quota, Scope,
    extract::{ScopeExtractor, header, method},
};

const TOKEN: &str = "0123456789abcdef-a-token-for-tests";
/// Refills too slowly to matter in a test.
const TENANT: Scope = Quota::per_day(1.0).burst(10.0).scope("tenant");

/// A limiter whose timeouts are longer than the delays of a busy machine.
fn connect(url: &str) -> Limiter {
    let builder = Limiter::builder().redis(url);
    builder
        .redis_timeout(std::time::Duration::from_secs(10))
        .build()
        .expect("a URL")
}

struct Server(Client, String);

impl Server {
    async fn start(limiter: &Limiter) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let router = admin::router(limiter, [TENANT], TOKEN);
        tokio::spawn(async move { axum::serve(listener, router).await });
        let client = Client::builder().no_proxy().build().expect("a client");
        Self(client, url)
    }

    fn request(&self, method: Method, path: &str, body: &Value) -> RequestBuilder {
        let request = self.0.request(method, format!("{}{path}", self.1));
        let request = request.header("content-type", "application/json");
        request.body(body.to_string())
    }

    async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        let request = self.request(Method::POST, path, &body).bearer_auth(TOKEN);
        let response = request.send().await.expect("the server responds");
        let status = response.status();
        let text = response.text().await.expect("a body");
        (status, serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    /// The tokens in a bucket after this request.
    async fn level(&self, path: &str, body: Value) -> f64 {
        let (status, answer) = self.post(path, body).await;
        assert_eq!(status, StatusCode::OK, "{path}");
        assert_eq!(answer["degraded"], false);
        assert_eq!(answer["capacity"], 10.0);
        answer["tokens"].as_f64().expect("tokens").round()
    }
}

#[tokio::test]
async fn requests_without_the_token_are_rejected_without_details() {
    let limiter = Limiter::in_memory();
    let server = Server::start(&limiter).await;
    let almost = &TOKEN[..TOKEN.len() - 1];
    let given = [
        None,
        Some(String::new()),
        Some("Bearer".to_owned()),
        Some("Bearer ".to_owned()),
        Some(TOKEN.to_owned()),
        Some(format!("Basic {TOKEN}")),
        Some(format!("Bearer {almost}")),
        Some(format!("Bearer {TOKEN}x")),
    ];
    for (method, path) in [
        (Method::GET, "/scopes"),
        (Method::POST, "/scopes/tenant/level"),
        (Method::POST, "/scopes/tenant/reset"),
        (Method::POST, "/scopes/tenant/adjust"),
        (Method::GET, "/nowhere"),
    ] {
        for given in &given {
            let body = json!({"tokens": -5.0});
            let mut request = server.request(method.clone(), path, &body);
            if let Some(given) = given {
                request = request.header("authorization", given);
            }
            let response = request.send().await.expect("the server responds");
            assert_eq!(response.status(), 401, "{path} {given:?}");
            assert_eq!(response.headers()["www-authenticate"], "Bearer");
            assert_eq!(response.text().await.expect("a body"), "");
        }
    }
    assert_eq!(limiter.bucket(&TENANT).level().await.unwrap(), 10.0);
}

#[test]
fn server_does_not_start_without_a_token() {
    assert!(admin::token(None).is_err());
    assert!(admin::token(Some(String::new())).is_err());
    assert!(admin::token(Some("short".to_owned())).is_err());
    assert!(admin::token(Some(" ".repeat(32))).is_err());
    // A token from a file ends with a newline.
    for given in [TOKEN.to_owned(), format!("{TOKEN}\n")] {
        assert_eq!(admin::token(Some(given)).expect("long enough"), TOKEN);
    }
}

/// The server has a limiter of its own: its changes reach the buckets of a service.
#[tokio::test]
async fn buckets_are_shared_with_the_services() {
    let redis = RedisServer::start().await;
    let service = connect(&redis.url());
    let server = Server::start(&connect(&redis.url())).await;
    let acme = TENANT.key("acme");
    service
        .try_acquire(acme.clone().cost(10.0))
        .await
        .expect("full");
    let body = json!({"key": "acme"});
    assert_eq!(
        server.level("/scopes/tenant/level", body.clone()).await,
        0.0
    );
    let other = json!({"key": "other"});
    assert_eq!(server.level("/scopes/tenant/level", other).await, 10.0);
    assert_eq!(server.level("/scopes/tenant/level", json!({})).await, 10.0);

    let adjust = json!({"key": "acme", "tokens": 3});
    assert_eq!(server.level("/scopes/tenant/adjust", adjust).await, 3.0);
    service
        .try_acquire(acme.clone().cost(3.0))
        .await
        .expect("the added tokens");
    let charge = json!({"key": "acme", "tokens": -4.5});
    let level = server.post("/scopes/tenant/adjust", charge).await.1;
    let level = level["tokens"].as_f64().expect("tokens");
    assert!((-4.5..-4.4).contains(&level), "{level}");
    service.try_acquire(&acme).await.expect_err("in debt");

    assert_eq!(server.level("/scopes/tenant/reset", body).await, 10.0);
    // The level cache of the service keeps a spent bucket for a second at most.
    let start = tokio::time::Instant::now();
    while service.try_acquire(&acme).await.is_err() {
        assert!(start.elapsed().as_secs() < 10, "full for ten seconds");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// A key from a header and the same key in a request of the admin server name one bucket.
async fn adjusts_a_bucket_keyed_by_a_header(service: &Limiter, server: &Server) {
    let by = TENANT.by(header("x-api-key"));
    let request = http::Request::builder().header("x-api-key", "sk-1");
    let scopes = by
        .or_unlimited()
        .extract(&request.body(()).expect("a request"));
    let spent = scopes.iter().next().expect("a key").clone();
    service
        .try_acquire(spent.clone().cost(10.0))
        .await
        .expect("full");
    let key = json!({"key": "sk-1"});
    assert_eq!(server.level("/scopes/tenant/level", key.clone()).await, 0.0);
    let adjust = json!({"key": "sk-1", "tokens": 3});
    assert_eq!(server.level("/scopes/tenant/adjust", adjust).await, 3.0);
    assert_eq!(service.bucket(&spent).level().await.unwrap().round(), 3.0);
    assert_eq!(server.level("/scopes/tenant/reset", key).await, 10.0);
    assert_eq!(service.bucket(&spent).level().await.unwrap().round(), 10.0);
    service
        .bucket(&TENANT.key("sk-1"))
        .cap_level(4.0)
        .await
        .unwrap();
    assert_eq!(service.bucket(&spent).level().await.unwrap().round(), 4.0);
    // A tuple of keys is named by an array.
    let by = TENANT.by((method(), header("x-api-key")));
    let request = http::Request::builder().header("x-api-key", "a/b");
    let scopes = by
        .or_unlimited()
        .extract(&request.body(()).expect("a request"));
    service.try_acquire(&scopes).await.expect("full");
    let keys = json!({"key": ["GET", "a/b"]});
    assert_eq!(
        server.level("/scopes/tenant/level", keys.clone()).await,
        9.0
    );
    assert_eq!(server.level("/scopes/tenant/reset", keys).await, 10.0);

    service
        .bucket(&TENANT.key("sk-1"))
        .pause(std::time::Duration::from_secs(3_600));
    service.try_acquire(&spent).await.expect_err("still spent");
}

#[tokio::test]
async fn bucket_keyed_by_a_header_is_adjusted_in_memory() {
    let limiter = Limiter::in_memory();
    let server = Server::start(&limiter).await;
    adjusts_a_bucket_keyed_by_a_header(&limiter, &server).await;
}

#[tokio::test]
async fn bucket_keyed_by_a_header_is_adjusted_on_redis() {
    let redis = RedisServer::start().await;
    let service = connect(&redis.url());
    let server = Server::start(&connect(&redis.url())).await;
    adjusts_a_bucket_keyed_by_a_header(&service, &server).await;
}

#[tokio::test]
async fn invalid_requests_are_reported() {
    let server = Server::start(&Limiter::in_memory()).await;
    for (path, body, status) in [
        ("/scopes/tenants/level", json!({}), 404),
        ("/nowhere", json!({}), 404),
        ("/scopes/tenant/adjust", json!({}), 400),
        ("/scopes/tenant/adjust", json!({"tokens": "many"}), 400),
        ("/scopes/tenant/level", json!({"key": 7}), 400),
        ("/scopes/tenant/level", json!({"key": []}), 400),
        ("/scopes/tenant/level", json!({"key": ["a", 7]}), 400),
        // Without a valid key this would select another bucket.
        ("/scopes/tenant/reset", json!({"kye": "acme"}), 400),
        ("/scopes/tenant/reset", json!(["acme"]), 400),
    ] {
        assert_eq!(server.post(path, body).await.0, status, "{path}");
    }
    let list = server.request(Method::GET, "/scopes", &Value::Null);
    let list = list.bearer_auth(TOKEN).send().await.expect("there");
    let list: Value = serde_json::from_str(&list.text().await.expect("a body")).expect("JSON");
    assert_eq!(list["scopes"][0]["name"], "tenant");
    assert_eq!(list["scopes"][0]["quota"], TENANT.quota().to_string());
}
