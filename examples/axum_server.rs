//! An axum server with a bucket per API key: 60 requests a minute, 3 of them at once. A request
//! that is too much gets 429 with `Retry-After`; one without a key shares a bucket with all
//! others of that kind.
//!
//! It sends itself five requests with a key and two without, prints the answers and ends.
//!
//! ```text
//! cargo run --example axum_server
//! REDIS_URL=redis://127.0.0.1:6379 cargo run --example axum_server
//! ```

use axum::{Router, routing::get};
use tokio::net::TcpListener;
use tower_throttle::{Limiter, Quota, RateLimitLayer, Scope, extract::header};

const PER_KEY: Scope = Quota::per_minute(60.0).burst(3.0).scope("api-key");
const ANONYMOUS: Scope = Quota::per_minute(10.0).burst(1.0).scope("anonymous");

type Error = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let limiter = match std::env::var("REDIS_URL") {
        Ok(url) => Limiter::redis(&url)?,
        Err(_) => Limiter::in_memory(),
    };
    let app = Router::new().route("/", get(async || "hello")).layer(
        RateLimitLayer::new(&limiter, PER_KEY.by(header("x-api-key")).or(ANONYMOUS)).respond_http(),
    );

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/", listener.local_addr()?);
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
    Ok(())
}
