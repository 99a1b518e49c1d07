//! Shows a tonic client whose channel is limited: four calls at once, then ten per second. A call
//! that would wait for longer than five seconds fails with RESOURCE_EXHAUSTED.
//!
//! The server is the standard health service, in this process, over a real socket.
//!
//! Run it in memory, or on Redis:
//!
//! ```text
//! cargo run --example tonic_channel
//! REDIS_URL=redis://127.0.0.1:6379 cargo run --example tonic_channel
//! ```

use std::time::Duration;

use tokio::{net::TcpListener, time::Instant};
use tonic::transport::{Channel, Server, server::TcpIncoming};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tower::ServiceBuilder;
use tower_throttle::{Limiter, Quota, RateLimitLayer, Scope};

const GREETER: Scope = Quota::per_second(10.0).burst(4.0).scope("greeter");

type Error = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let limiter = match std::env::var("REDIS_URL") {
        Ok(url) => Limiter::redis(&url)?,
        Err(_) => Limiter::in_memory(),
    };
    let channel = Channel::from_shared(server().await?)?.connect().await?;

    let mut client = HealthClient::new(
        ServiceBuilder::new()
            .layer(
                RateLimitLayer::new(&limiter, GREETER)
                    .respond_http()
                    .max_wait(Duration::from_secs(5)),
            )
            .service(channel),
    );

    let started = Instant::now();
    for n in 1..=12 {
        let response = client.check(HealthCheckRequest::default()).await?;
        println!(
            "{:>5} ms  call {n:>2}: {:?}",
            started.elapsed().as_millis(),
            response.into_inner().status()
        );
    }
    Ok(())
}

/// Starts the health service on a free loopback port.
async fn server() -> Result<String, Error> {
    let (_reporter, health) = tonic_health::server::health_reporter();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    tokio::spawn(
        Server::builder()
            .add_service(health)
            .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true))),
    );
    Ok(url)
}
