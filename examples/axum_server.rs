//! An axum server with a bucket per client address for everybody, and one per account for requests
//! with a valid API key: 60 requests a minute each, 8 and 3 of them at once. A request over a limit
//! gets 429 with `Retry-After`, and takes from neither bucket.
//!
//! It sends itself five requests with a valid key, two without a key and five with invented keys,
//! which have only what is left of the client's bucket. It prints the answers and what Prometheus
//! would read at `/metrics`, and ends.
//!
//! ```text
//! cargo run --example axum_server --features axum,metrics
//! REDIS_URL=redis://127.0.0.1:6379 cargo run --example axum_server --features axum,metrics
//! ```

use std::net::SocketAddr;

use axum::{
    Router,
    extract::Request,
    middleware::{Next, from_fn},
    response::Response,
    routing::get,
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
use tower_throttle::{
    Limiter, Quota, RateLimitLayer, Scope,
    extract::{TrustedProxies, client_ip, extension},
};

const PER_CLIENT: Scope = Quota::per_minute(60.0).burst(8.0).scope("client");
const UNKNOWN: Scope = Quota::per_minute(60.0).burst(8.0).scope("unknown-client");
const PER_ACCOUNT: Scope = Quota::per_minute(60.0).burst(3.0).scope("account");

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Whose key a request carries.
#[derive(Clone)]
struct Account {
    id: u64,
}

/// Knows one key. Requests with any other are not identified, and pass.
async fn authenticate(mut request: Request, next: Next) -> Response {
    if request
        .headers()
        .get("x-api-key")
        .is_some_and(|key| key == "valid")
    {
        request.extensions_mut().insert(Account { id: 1 });
    }
    next.run(request).await
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    // Before the first limiter, so that the gauges count from nothing.
    let metrics = recorder()?;
    let limiter = match std::env::var("REDIS_URL") {
        Ok(url) => Limiter::redis(&url)?,
        Err(_) => Limiter::in_memory(),
    };
    let limits = (
        PER_CLIENT.by(client_ip(TrustedProxies::none())).or(UNKNOWN),
        PER_ACCOUNT
            .by(extension::<Account>().key(|account| account.id))
            .or_unlimited(),
    );
    let app = Router::new()
        .route("/", get(async || "hello"))
        .layer(RateLimitLayer::new(&limiter, limits).respond_http())
        // Outside of the limits, and so before them.
        .layer(from_fn(authenticate))
        // Behind the layer, and so not limited by it. Not for everybody: keep it inside.
        .route("/metrics", get(async move || metrics.render()));

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/", listener.local_addr()?);
    let scrape = format!("{url}metrics");
    // `client_ip` needs the peer's address.
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, app).await });

    let client = reqwest::Client::new();
    let keys = ["valid"; 5].into_iter().chain([""; 2]);
    for key in keys.chain(["a", "b", "c", "d", "e"]) {
        let mut request = client.get(&url);
        if !key.is_empty() {
            request = request.header("x-api-key", key);
        }
        let response = request.send().await?;
        let retry_after = response
            .headers()
            .get("retry-after")
            .map_or(String::new(), |seconds| {
                format!(
                    ", retry-after: {}",
                    String::from_utf8_lossy(seconds.as_bytes())
                )
            });
        println!("key {key:<7} {}{retry_after}", response.status());
    }
    print!("\n{}", client.get(scrape).send().await?.text().await?);
    Ok(())
}

/// Histograms need to be told where their buckets end, or Prometheus cannot add them up.
fn recorder() -> Result<PrometheusHandle, Error> {
    let seconds = [0.0002, 0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0];
    let sizes = [1.0, 4.0, 16.0, 64.0, 256.0, 1_024.0, 4_096.0, 16_384.0];
    let full = |name: &str| Matcher::Full(name.to_owned());
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(full("tower_throttle_wait_seconds"), &seconds)?
        .set_buckets_for_metric(full("tower_throttle_redis_call_seconds"), &seconds)?
        .set_buckets_for_metric(full("tower_throttle_batch_size"), &sizes)?
        .build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder)?;
    // A server that goes on calls this every few seconds: it keeps what histograms hold small.
    handle.run_upkeep();
    Ok(handle)
}
