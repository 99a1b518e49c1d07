//! Shows an axum server with two limits: a bucket for each client address, and one for each account
//! with a valid API key. Both allow 60 requests per minute, the first with a burst of 8, the second
//! with a burst of 3. A request over either limit gets 429 with `Retry-After` and takes no token.
//!
//! The example sends five requests with a valid key, two without a key and five with invented keys,
//! which use the bucket of the client. It prints the responses and the page that Prometheus would
//! read at `/metrics`, and ends.
//!
//! Run it in memory, or on Redis:
//!
//! ```text
//! cargo run --example axum_server --features axum,metrics
//! REDIS_URL=redis://127.0.0.1:6379 cargo run --example axum_server --features axum,metrics
//! ```

use std::{future::IntoFuture, net::SocketAddr};

use axum::{
    Router,
    extract::Request,
    middleware::{Next, from_fn},
    response::Response,
    routing::get,
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::{net::TcpListener, sync::oneshot};
use tower_throttle::{
    Limiter, Quota, RateLimitLayer, Scope,
    extract::{TrustedProxies, client_ip, extension},
};

const PER_CLIENT: Scope = Quota::per_minute(60.0).burst(8.0).scope("client");
const UNKNOWN: Scope = Quota::per_minute(60.0).burst(8.0).scope("unknown-client");
const PER_ACCOUNT: Scope = Quota::per_minute(60.0).burst(3.0).scope("account");

type Error = Box<dyn std::error::Error + Send + Sync>;

/// The account to which the API key of a request belongs.
#[derive(Clone)]
struct Account {
    id: u64,
}

/// Accepts one API key. Requests with any other key have no account.
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
    // Before the first limiter: gauges start from the values at that time.
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
        // Outside the limits, so it runs before them.
        .layer(from_fn(authenticate))
        // Added after the layer, so not limited. Do not expose it to the public.
        .route("/metrics", get(async move || metrics.render()));

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/", listener.local_addr()?);
    let scrape = format!("{url}metrics");
    // `client_ip` reads the peer's address.
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    let (stop, stopped) = oneshot::channel::<()>();
    let server = axum::serve(listener, app).with_graceful_shutdown(async {
        let _ = stopped.await; // in a service: a signal
    });
    let server = tokio::spawn(server.into_future());

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

    // The other processes on this Redis use the whole limit at once.
    let _ = stop.send(());
    server.await??;
    limiter.deregister().await;
    Ok(())
}

/// Without the bounds of their buckets, histograms are exported as summaries, which Prometheus cannot
/// aggregate.
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
    // A server calls this every few seconds: it bounds the memory of histograms.
    handle.run_upkeep();
    Ok(handle)
}
