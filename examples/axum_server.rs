//! An axum server with a bucket per API key: 60 requests a minute, 3 of them at once. A request
//! that is too much gets 429 with `Retry-After`; one without a key shares a bucket with all
//! others of that kind.
//!
//! It sends itself five requests with a key and two without, prints the answers and what
//! Prometheus would read at `/metrics`, and ends.
//!
//! ```text
//! cargo run --example axum_server --features metrics
//! REDIS_URL=redis://127.0.0.1:6379 cargo run --example axum_server --features metrics
//! ```

use axum::{Router, routing::get};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
use tower_throttle::{Limiter, Quota, RateLimitLayer, Scope, extract::header};

const PER_KEY: Scope = Quota::per_minute(60.0).burst(3.0).scope("api-key");
const ANONYMOUS: Scope = Quota::per_minute(10.0).burst(1.0).scope("anonymous");

type Error = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Error> {
    // Before the first limiter, so that the gauges count from nothing.
    let metrics = recorder()?;
    let limiter = match std::env::var("REDIS_URL") {
        Ok(url) => Limiter::redis(&url)?,
        Err(_) => Limiter::in_memory(),
    };
    let app = Router::new()
        .route("/", get(async || "hello"))
        .layer(
            RateLimitLayer::new(&limiter, PER_KEY.by(header("x-api-key")).or(ANONYMOUS))
                .respond_http(),
        )
        // Behind the layer, and so not limited by it. Not for everybody: keep it inside.
        .route("/metrics", get(async move || metrics.render()));

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/", listener.local_addr()?);
    let scrape = format!("{url}metrics");
    tokio::spawn(async move { axum::serve(listener, app).await });

    let client = reqwest::Client::new();
    for key in [Some("k-1"); 5].into_iter().chain([None; 2]) {
        let mut request = client.get(&url);
        if let Some(key) = key {
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
        println!(
            "key {:<7} {}{retry_after}",
            key.unwrap_or("none"),
            response.status()
        );
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
