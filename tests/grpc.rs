//! gRPC over real sockets: tonic as server and as client.
#![cfg(feature = "tonic")]

use std::{
    error::Error,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use http::StatusCode;
use tokio::time::Instant;
use tonic::{
    Code, Status,
    body::Body,
    transport::{Channel, Endpoint, Server, server::TcpIncoming},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt;
use tower::{Layer, Service, ServiceBuilder};
use tower_throttle::{
    Limiter, Quota, RateLimitLayer, Reason, Rejected, Scope, ScopeExtractor, extract::peer_ip,
    reply::Reply,
};

const SECOND: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(100);

/// Refills too slowly to matter in a test.
const DAY: Quota = Quota::per_day(2.0);
/// One per [`TICK`].
const PACED: Quota = Quota::per_second(10.0).burst(1.0);

fn check() -> HealthCheckRequest {
    HealthCheckRequest::default()
}

fn listen() -> (TcpIncoming, SocketAddr) {
    let incoming = TcpIncoming::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let address = incoming.local_addr().unwrap();
    (incoming, address)
}

async fn connect(address: SocketAddr) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    endpoint.connect().await.unwrap()
}

/// A health server that is not limited.
async fn unlimited() -> Channel {
    let (incoming, address) = listen();
    let (_, health) = tonic_health::server::health_reporter();
    let server = Server::builder().add_service(health);
    tokio::spawn(server.serve_with_incoming(incoming));
    connect(address).await
}

/// One behind this layer.
async fn limited<K, R>(layer: RateLimitLayer<K, R>) -> SocketAddr
where
    K: ScopeExtractor<http::Request<Body>> + Clone + Send + Sync + 'static,
    R: Reply<http::Request<Body>, http::Response<Body>, std::convert::Infallible>
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

/// Checks the status of a rejected client, whose delay is within what is left of the bucket's
/// period.
fn assert_exhausted(status: &Status, longest: Duration) {
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message().starts_with("rate limit \""), "{status:?}");
    let info = status.get_details_retry_info().expect("RetryInfo");
    let delay = info.retry_delay.expect("a delay");
    assert!(delay > Duration::ZERO && delay <= longest, "{delay:?}");
    let pushback = status.metadata().get("grpc-retry-pushback-ms");
    let pushback: u128 = pushback.unwrap().to_str().unwrap().parse().unwrap();
    assert_eq!(pushback, delay.as_nanos().div_ceil(1_000_000));
}

#[tokio::test]
async fn limited_server_answers_resource_exhausted() {
    for max_wait in [Duration::ZERO, TICK] {
        let limiter = Limiter::in_memory();
        let layer = RateLimitLayer::new(&limiter, DAY.scope("site")).respond_http();
        let address = limited(layer.max_wait(max_wait)).await;
        let mut client = HealthClient::new(connect(address).await);
        for _ in 0..2 {
            client.check(check()).await.unwrap();
        }
        for _ in 0..2 {
            let status = client.check(check()).await.unwrap_err();
            assert_exhausted(&status, 43_200 * SECOND);
        }
        // A stream, too, ends before it begins.
        let status = client.watch(check()).await.unwrap_err();
        assert_exhausted(&status, 43_200 * SECOND);
        // The connection remains usable.
        limiter.bucket(&DAY.scope("site")).reset().await.unwrap();
        client.check(check()).await.unwrap();
    }
}

#[tokio::test]
async fn server_sends_pushback_if_a_retry_cannot_succeed() {
    let limiter = Limiter::in_memory();
    let layer = RateLimitLayer::new(&limiter, DAY.scope("never").cost(3.0)).respond_http();
    let mut client = HealthClient::new(connect(limited(layer).await).await);
    let status = client.check(check()).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.get_details_retry_info().is_none());
    assert_eq!(
        status.metadata().get("grpc-retry-pushback-ms").unwrap(),
        "-1"
    );
}

#[tokio::test]
async fn server_waits() {
    let limiter = Limiter::in_memory();
    let layer = RateLimitLayer::new(&limiter, PACED.scope("site")).respond_http();
    let mut client = HealthClient::new(connect(limited(layer.max_wait(SECOND)).await).await);
    let start = Instant::now();
    for _ in 0..3 {
        client.check(check()).await.unwrap();
    }
    // Two reservations, less the milliseconds between the first request and its acquisition.
    assert!(start.elapsed() >= 2 * TICK - Duration::from_millis(1));
}

#[tokio::test]
async fn server_limits_by_peer_address() {
    const PEER: Scope = DAY.scope("peer");
    let limiter = Limiter::in_memory();
    // As in `examples/tonic_server.rs`.
    let (incoming, address) = listen();
    let (_, health) = tonic_health::server::health_reporter();
    let server = Server::builder()
        .layer(
            RateLimitLayer::new(&limiter, PEER.by(peer_ip()).or(DAY.scope("unknown")))
                .respond_http(),
        )
        .add_service(health);
    tokio::spawn(server.serve_with_incoming(incoming));
    let mut client = HealthClient::new(connect(address).await);
    client.check(check()).await.unwrap();
    let peer = PEER.key(IpAddr::V4(Ipv4Addr::LOCALHOST));
    assert_eq!(limiter.bucket(&peer).level().await.unwrap().floor(), 1.0);
    // Another connection comes from the same peer.
    let mut other = HealthClient::new(connect(address).await);
    other.check(check()).await.unwrap();
    let status = client.check(check()).await.unwrap_err();
    assert_exhausted(&status, 43_200 * SECOND);
}

#[tokio::test]
async fn channel_waits() {
    let limiter = Limiter::in_memory();
    let channel = unlimited().await;
    let mut client = HealthClient::new(
        ServiceBuilder::new()
            .layer(
                RateLimitLayer::new(&limiter, PACED.scope("greeter"))
                    .respond_http()
                    .max_wait(5 * SECOND),
            )
            .service(channel),
    );
    let start = Instant::now();
    for _ in 0..3 {
        client.check(check()).await.unwrap();
    }
    assert!(start.elapsed() >= 2 * TICK - Duration::from_millis(1));
    // Clones of a client share the limit, too.
    let mut other = client.clone();
    let start = Instant::now();
    let (one, two) = tokio::join!(client.check(check()), other.check(check()));
    one.unwrap();
    two.unwrap();
    assert!(start.elapsed() >= TICK, "{:?}", start.elapsed());
}

#[tokio::test]
async fn limited_channel_returns_the_same_status() {
    let channel = unlimited().await;
    for max_wait in [Duration::ZERO, TICK] {
        let limiter = Limiter::in_memory();
        let layer = RateLimitLayer::new(&limiter, DAY.scope("greeter")).respond_http();
        let mut client = HealthClient::new(layer.max_wait(max_wait).layer(channel.clone()));
        for _ in 0..2 {
            client.check(check()).await.unwrap();
        }
        let status = client.check(check()).await.unwrap_err();
        assert_exhausted(&status, 43_200 * SECOND);
    }
}

#[tokio::test]
async fn channel_error_has_the_rejection_as_source() {
    let channel = unlimited().await;
    for max_wait in [Duration::ZERO, TICK] {
        let limiter = Limiter::in_memory();
        let layer = RateLimitLayer::new(&limiter, DAY.scope("greeter"));
        let mut client = HealthClient::new(layer.max_wait(max_wait).layer(channel.clone()));
        for _ in 0..2 {
            client.check(check()).await.unwrap();
        }
        let status = client.check(check()).await.unwrap_err();
        let rejected = Rejected::find(&status).expect("a rejection");
        assert_eq!(rejected.reason(), Reason::Limited);
        assert_eq!(rejected.scope(), "greeter");
    }
}

#[tokio::test]
async fn non_grpc_requests_to_a_grpc_server_are_answered_over_http() {
    for (content_type, expected) in [
        ("application/grpc", StatusCode::OK),
        ("application/grpc+proto", StatusCode::OK),
        ("application/grpc-web+proto", StatusCode::OK),
        ("application/json", StatusCode::TOO_MANY_REQUESTS),
    ] {
        let limiter = Limiter::in_memory();
        let site = Quota::per_day(1.0).scope("site");
        limiter.try_acquire(&site).await.unwrap();
        let layer = RateLimitLayer::new(&limiter, site).respond_http();
        let address = limited(layer).await;
        let mut channel = connect(address).await;
        std::future::poll_fn(|cx| channel.poll_ready(cx))
            .await
            .unwrap();
        let request = http::Request::post(format!("http://{address}/"))
            .header("content-type", content_type)
            .body(Body::default())
            .unwrap();
        let response = channel.call(request).await.unwrap();
        assert_eq!(response.status(), expected, "{content_type}");
        let headers = response.headers();
        if expected == StatusCode::OK {
            // The HTTP status is 200: the error is in the gRPC status.
            assert_eq!(headers["grpc-status"], "8", "{content_type}");
            let answer = content_type.trim_end_matches("+proto");
            assert_eq!(headers["content-type"], answer);
            assert!(!headers.contains_key("retry-after"));
        } else {
            assert!(headers.contains_key("retry-after"), "{content_type}");
            assert!(!headers.contains_key("grpc-status"), "{content_type}");
        }
    }
}
