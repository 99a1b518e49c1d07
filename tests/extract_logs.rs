//! The warning about an extractor that never finds a key, as in front of an axum server that does
//! not record its peers.
//!
//! Each test uses a runtime of one thread, so that it reads only its own lines.
#![cfg(all(feature = "axum", feature = "tracing", feature = "metrics"))]

#[path = "support/listen.rs"]
mod listen;

use axum::{Router, extract::Request, routing::get};
use listen::Log;
use tokio::net::TcpListener;
use tower_throttle::{
    Limiter, Quota, RateLimitLayer, Scope, ScopeExtractor,
    extract::{Peer, TrustedProxies, client_ip, extension, matched_path, peer_ip},
};
use tracing::Level;

const PEER: Scope = Quota::per_day(1e6).scope("peer");
const UNKNOWN: Scope = Quota::per_day(3.0).scope("unknown");

/// The warnings after several requests to a server without `ConnectInfo`, and the number it
/// admitted.
async fn warnings(
    limit: impl ScopeExtractor<Request> + Clone + Send + Sync + 'static,
    requests: usize,
) -> (Vec<String>, usize) {
    let (log, _guard) = Log::listen();
    let limiter = Limiter::in_memory();
    let layer = RateLimitLayer::new(&limiter, limit).respond_http();
    let router = Router::new().fallback(get(async || "hello")).layer(layer);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    let mut admitted = 0;
    let mut client = reqwest::Client::builder().no_proxy().build().unwrap();
    for n in 0..requests {
        if n % 10 == 0 {
            // Another connection has another clone of the layer.
            client = reqwest::Client::builder().no_proxy().build().unwrap();
        }
        let answer = client.get(&url).header("x-n", n).send().await.unwrap();
        admitted += usize::from(answer.status() == 200);
    }
    (log.lines(Level::WARN), admitted)
}

#[tokio::test]
async fn missing_peers_are_logged_once() {
    let client = client_ip(TrustedProxies::none());
    let (lines, admitted) = warnings(PEER.by(client.clone()).or(UNKNOWN), 250).await;
    assert_eq!(admitted, 3, "all take from what `or` names");
    assert_eq!(lines.len(), 1, "{lines:?}");
    for part in ["scope=\"peer\"", "ClientIp", "first 100 requests", "`axum`"] {
        assert!(lines[0].contains(part), "{part}: {}", lines[0]);
    }
    let (lines, _) = warnings(PEER.by(client).or(UNKNOWN), 99).await;
    assert!(lines.is_empty(), "{lines:?}");
}

#[tokio::test]
async fn each_extractor_is_logged_once() {
    let route = PEER.by(matched_path()).or_unlimited();
    let chain = PEER
        .by(peer_ip())
        .or(PEER.by(extension::<String>()))
        .or(UNKNOWN);
    let (lines, _) = warnings((route, chain), 150).await;
    assert_eq!(lines.len(), 3, "{lines:?}");
    for part in ["MatchedPath", "PeerIp", "Extension<"] {
        let of = lines.iter().filter(|line| line.contains(part));
        assert_eq!(of.count(), 1, "{part}: {lines:?}");
    }
}

#[tokio::test]
async fn closure_that_never_finds_a_scope_is_logged_once() {
    let closure = |req: &Request| Some(PEER.key(peer_ip().find(req)?));
    let (lines, admitted) = warnings(closure, 250).await;
    assert_eq!(admitted, 250);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("closure"), "{}", lines[0]);
}

#[tokio::test]
async fn one_key_prevents_the_warning() {
    let nth = |req: &Request| {
        req.headers()["x-n"]
            .to_str()
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    let some = move |req: &Request| (nth(req) == 50).then_some(Peer([192, 0, 2, 7].into()).0);
    let (lines, _) = warnings(PEER.by(some).or(UNKNOWN), 250).await;
    assert!(lines.is_empty(), "{lines:?}");
    let some = move |req: &Request| (nth(req) == 50).then_some(PEER);
    let (lines, _) = warnings(some, 250).await;
    assert!(lines.is_empty(), "{lines:?}");
    // Extractors that limit all requests, or by choice only some, are not checked.
    let (lines, _) = warnings((PEER.when(|_: &Request| false), PEER), 250).await;
    assert!(lines.is_empty(), "{lines:?}");
}
