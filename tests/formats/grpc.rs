//! tonic as server and as client.

use std::{convert::Infallible, error::Error, net::SocketAddr, time::Duration};

use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tonic::{
    Status,
    body::Body,
    transport::{Channel, Endpoint, Server, server::TcpIncoming},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt;
use tonic_web::{GrpcWebClientLayer, GrpcWebLayer};
use tower::Layer;
use tower_throttle::{
    Fallback, Limiter, RateLimitLayer, Rejected, Scope, ScopeExtractor, Scopes,
    reply::{Fail, HttpReply, Reply},
};

use super::{DAY, table::Row, without_redis};

const API: Scope = DAY.scope("api");

fn http(limiter: &Limiter, scope: Scope) -> RateLimitLayer<Scope, HttpReply> {
    RateLimitLayer::new(limiter, scope).respond_http()
}

fn listen() -> (TcpIncoming, SocketAddr) {
    let incoming = TcpIncoming::bind(([127, 0, 0, 1], 0).into()).expect("a port");
    let address = incoming.local_addr().expect("an address");
    (incoming, address)
}

/// A health server behind this layer.
async fn limited<K, R>(layer: RateLimitLayer<K, R>) -> SocketAddr
where
    K: ScopeExtractor<::http::Request<Body>> + Clone + Send + Sync + 'static,
    R: Reply<::http::Request<Body>, ::http::Response<Body>, Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    R::Error: Into<Box<dyn Error + Send + Sync>> + Send,
{
    let (incoming, address) = listen();
    let (_, health) = tonic_health::server::health_reporter();
    let server = Server::builder().layer(layer).add_service(health);
    tokio::spawn(server.serve_with_incoming(incoming));
    address
}

async fn connect(address: SocketAddr) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    endpoint.connect().await.expect("a connection")
}

/// The last of `$requests` responses.
macro_rules! nth {
    ($client:expr, $nth:literal) => {{
        let mut client = $client;
        for () in std::iter::repeat_n((), $nth - 1) {
            let _ = client.check(HealthCheckRequest::default()).await;
        }
        client.check(HealthCheckRequest::default()).await
    }};
}

/// Reads the status as a client that supports the richer error model.
fn read(status: &Status) -> Vec<String> {
    assert!(!status.message().contains("not ready"), "{status:?}");
    let mut lines = vec![format!("{:?}: {}", status.code(), status.message())];
    let details = status.get_error_details();
    if let Some(info) = details.retry_info() {
        let delay = info.retry_delay.expect("a delay");
        lines.push(format!("RetryInfo: {:.3} s", delay.as_secs_f64()));
        let pushback = pushback(status).expect("pushback");
        assert_eq!(pushback, delay.as_nanos().div_ceil(1_000_000) as i32);
    }
    if let Some(failure) = details.quota_failure() {
        assert_eq!(failure.violations.len(), 1);
        assert_eq!(failure.violations[0].description, status.message());
        lines.push(format!("QuotaFailure: {}", failure.violations[0].subject));
    }
    if let Some(pushback) = pushback(status) {
        lines.push(format!("grpc-retry-pushback-ms: {pushback}"));
    }
    if let Some(cache) = status.metadata().get("cache-control") {
        lines.push(format!("cache-control: {}", cache.to_str().expect("ASCII")));
    }
    lines
}

fn pushback(status: &Status) -> Option<i32> {
    let pushback = status.metadata().get("grpc-retry-pushback-ms")?;
    Some(pushback.to_str().expect("ASCII").parse().expect("an i32"))
}

pub(crate) async fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    let mut row = |case, layer, status: &Status| {
        let answer = read(status);
        rows.push(Row {
            case,
            layer,
            answer,
        });
    };
    let memory = Limiter::in_memory;
    let server = async |scope, limiter: Limiter| {
        let address = limited(http(&limiter, scope)).await;
        HealthClient::new(connect(address).await)
    };

    let admitted = nth!(server(API, memory()).await, 1).expect("admitted");
    for name in ["ratelimit", "ratelimit-policy", "retry-after"] {
        assert!(!admitted.metadata().contains_key(name), "{name}");
    }
    let rejected = nth!(server(API, memory()).await, 3).expect_err("rejected");
    row("gRPC, rejected", ".respond_http()", &rejected);
    let never = nth!(server(API.cost(3.0), memory()).await, 1).expect_err("impossible");
    row(
        "gRPC, the cost exceeds the capacity",
        ".respond_http()",
        &never,
    );
    let many: Vec<_> = (0..129).map(|key| API.key(key)).collect();
    let many = limited(RateLimitLayer::new(&memory(), many).respond_http()).await;
    let many = nth!(HealthClient::new(connect(many).await), 1).expect_err("too many scopes");
    row("gRPC, more than 128 scopes", ".respond_http()", &many);
    let closed = API.fallback(Fallback::FailClosed);
    let unavailable = nth!(server(closed.clone(), without_redis().await).await, 1);
    let unavailable = unavailable.expect_err("unavailable");
    row("gRPC, unavailable", ".respond_http()", &unavailable);
    let share = nth!(server(API, without_redis().await).await, 3).expect_err("rejected");
    row("gRPC, rejected without Redis", ".respond_http()", &share);

    // A client with a limit of its own, before a server without one.
    let server = limited(RateLimitLayer::new(&memory(), Scopes::default())).await;
    let channel = connect(server).await;
    let client = HealthClient::new(http(&memory(), API).layer(channel.clone()));
    let rejected = nth!(client, 3).expect_err("rejected");
    row(
        "gRPC client, rejected before the call",
        ".respond_http()",
        &rejected,
    );
    let fail: RateLimitLayer<Scope, Fail> = RateLimitLayer::new(&memory(), API);
    let client = HealthClient::new(fail.layer(channel.clone()));
    let failed = nth!(client, 3).expect_err("rejected");
    let rejected = Rejected::find(&failed).expect("a rejection");
    row(
        "gRPC client, `Status::from(rejected)`",
        "as it is",
        &Status::from(rejected.clone()),
    );
    let closed = http(&without_redis().await, closed);
    let unavailable = nth!(HealthClient::new(closed.layer(channel)), 1).expect_err("unavailable");
    row("gRPC client, unavailable", ".respond_http()", &unavailable);

    for (case, outside) in [
        ("gRPC-Web, rejected outside the translation", true),
        ("gRPC-Web, rejected inside the translation", false),
    ] {
        row(case, ".respond_http()", &over_web(outside).await);
    }
    rows
}

/// The rejection of a server that speaks gRPC-Web, as tonic's gRPC-Web client reads it.
async fn over_web(outside: bool) -> Status {
    let limit = http(&Limiter::in_memory(), API);
    let (incoming, address) = listen();
    let (_, health) = tonic_health::server::health_reporter();
    let server = Server::builder().accept_http1(true);
    if outside {
        let mut server = server.layer(limit).layer(GrpcWebLayer::new());
        tokio::spawn(server.add_service(health).serve_with_incoming(incoming));
    } else {
        let mut server = server.layer(GrpcWebLayer::new()).layer(limit);
        tokio::spawn(server.add_service(health).serve_with_incoming(incoming));
    }
    let client = Client::builder(TokioExecutor::new()).build_http();
    let service = GrpcWebClientLayer::new().layer(client);
    let origin = format!("http://{address}").parse().expect("an address");
    let mut client = HealthClient::with_origin(service, origin);
    for _ in 0..2 {
        let admitted = client.check(HealthCheckRequest::default()).await;
        admitted.expect("admitted");
    }
    let rejected = client.check(HealthCheckRequest::default()).await;
    let status = rejected.expect_err("rejected");
    assert!(
        status
            .get_details_retry_info()
            .is_some_and(|info| { info.retry_delay.is_some_and(|delay| delay > Duration::ZERO) })
    );
    status
}
