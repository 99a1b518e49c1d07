//! Shows a reqwest client with two limits, as LLM providers set them: requests per minute and tokens
//! per minute. A request takes from both buckets or from neither, and waits for its tokens. The
//! estimated cost is corrected when the response states the actual one.
//!
//! The upstream is a server in this process.
//!
//! Run it in memory, or on Redis:
//!
//! ```text
//! cargo run --example reqwest_client
//! REDIS_URL=redis://127.0.0.1:6379 cargo run --example reqwest_client
//! ```

use std::time::Duration;

use axum::{Router, response::AppendHeaders, routing::get};
use reqwest::{Client, Method, Request, Response, Url};
use tokio::{net::TcpListener, time::Instant};
use tower::{Service, ServiceBuilder, ServiceExt};
use tower_throttle::{Limiter, Quota, RateLimitLayer, Scope};

const RPM: Scope = Quota::per_minute(600.0).burst(5.0).scope("llm:rpm");
const TPM: Scope = Quota::per_minute(90_000.0).burst(6_000.0).scope("llm:tpm");

/// The cost of a request, in tokens, before its response is known.
const ESTIMATE: f64 = 1_200.0;

type Error = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let limiter = match std::env::var("REDIS_URL") {
        Ok(url) => Limiter::redis(&url)?,
        Err(_) => Limiter::in_memory(),
    };
    let url = upstream().await?;

    let mut client = ServiceBuilder::new()
        .layer(
            RateLimitLayer::new(&limiter, [RPM, TPM.cost(ESTIMATE)])
                .max_wait(Duration::from_secs(30))
                .settle(tokens_used),
        )
        .service(Client::new());

    let started = Instant::now();
    for n in 1..=8 {
        let request = Request::new(Method::GET, url.clone());
        let response = client.ready().await?.call(request).await?;
        println!(
            "{:>5} ms  request {n}: {}, {} tokens used, {:.0} left",
            started.elapsed().as_millis(),
            response.status(),
            tokens_used(&response).unwrap_or(ESTIMATE),
            limiter.bucket(&TPM).level().await.unwrap(),
        );
    }
    Ok(())
}

/// Reads the cost from the response. `None` keeps the estimate.
fn tokens_used(response: &Response) -> Option<f64> {
    let used = response.headers().get("x-tokens-used")?;
    used.to_str().ok()?.parse().ok()
}

/// Starts a server that charges 1,500 tokens for each response.
async fn upstream() -> Result<Url, Error> {
    let app = Router::new().route(
        "/",
        get(async || (AppendHeaders([("x-tokens-used", "1500")]), "a response")),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/", listener.local_addr()?).parse()?;
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(url)
}
