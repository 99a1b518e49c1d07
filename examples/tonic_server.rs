//! A tonic server with a bucket per client address. A call that is too much gets
//! RESOURCE_EXHAUSTED with `RetryInfo`, which clients that follow the standard understand.
//!
//! The service is the standard health service; a client of this process calls it six times over
//! a real socket.
//!
//! ```text
//! cargo run --example tonic_server --features tonic
//! REDIS_URL=redis://127.0.0.1:6379 cargo run --example tonic_server --features tonic
//! ```

use tokio::net::TcpListener;
use tonic::transport::{Channel, Server, server::TcpIncoming};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt;
use tower_throttle::{Limiter, Quota, RateLimitLayer, Scope, extract::peer_ip};

const PEER: Scope = Quota::per_second(1.0).burst(3.0).scope("peer");
const UNKNOWN: Scope = Quota::per_second(1.0).scope("unknown-peer");

type Error = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let limiter = match std::env::var("REDIS_URL") {
        Ok(url) => Limiter::redis(&url)?,
        Err(_) => Limiter::in_memory(),
    };

    let (_reporter, health) = tonic_health::server::health_reporter();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    tokio::spawn(
        Server::builder()
            .layer(RateLimitLayer::new(&limiter, PEER.by(peer_ip).or(UNKNOWN)).respond_http())
            .add_service(health)
            .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true))),
    );

    let mut client = HealthClient::new(Channel::from_shared(url)?.connect().await?);
    for n in 1..=6 {
        match client.check(HealthCheckRequest::default()).await {
            Ok(answer) => println!("call {n}: {:?}", answer.into_inner().status()),
            Err(status) => println!(
                "call {n}: {:?}, retry after {:?}",
                status.code(),
                status
                    .get_details_retry_info()
                    .and_then(|info| info.retry_delay)
            ),
        }
    }
    Ok(())
}
