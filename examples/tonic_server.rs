//! Shows a tonic server with a bucket for each client address. A call over the limit gets
//! RESOURCE_EXHAUSTED with `RetryInfo`, which clients use to retry in time.
//!
//! The service is the standard health service. A client in this process calls it six times over a
//! real socket.
//!
//! Run it in memory, or on Redis:
//!
//! ```text
//! cargo run --example tonic_server --features tonic
//! REDIS_URL=redis://127.0.0.1:6379 cargo run --example tonic_server --features tonic
//! ```

use tokio::{net::TcpListener, sync::oneshot};
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
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(
        Server::builder()
            .layer(RateLimitLayer::new(&limiter, PEER.by(peer_ip()).or(UNKNOWN)).respond_http())
            .add_service(health)
            .serve_with_incoming_shutdown(
                TcpIncoming::from(listener).with_nodelay(Some(true)),
                async {
                    let _ = stopped.await; // in a service: a signal
                },
            ),
    );

    let mut client = HealthClient::new(Channel::from_shared(url)?.connect().await?);
    for n in 1..=6 {
        match client.check(HealthCheckRequest::default()).await {
            Ok(response) => println!("call {n}: {:?}", response.into_inner().status()),
            Err(status) => println!(
                "call {n}: {:?}, retry after {:?}",
                status.code(),
                status
                    .get_details_retry_info()
                    .and_then(|info| info.retry_delay)
            ),
        }
    }

    // The other processes on this Redis use the whole limit at once.
    drop(client);
    let _ = stop.send(());
    server.await??;
    limiter.deregister().await;
    Ok(())
}
