//! The `redis-server` under load, and its statistics.

use std::sync::Arc;

use redis::{AsyncConnectionConfig, Client, IntoConnectionInfo, aio::MultiplexedConnection};

#[allow(dead_code, reason = "shared with the tests; only a part is used here")]
#[path = "../../../tests/support/redis_server.rs"]
mod redis_server;

#[allow(dead_code, reason = "shared with the tests; only a part is used here")]
#[path = "../../../tests/support/process.rs"]
mod process;

#[allow(dead_code, reason = "shared with the tests; only a part is used here")]
#[path = "../../../tests/support/proxy.rs"]
mod proxy;

pub use self::{proxy::Proxy, redis_server::RedisServer};

/// The path of the redis-cell module, which `scripts/bench` builds.
pub fn cell_module() -> Option<String> {
    std::env::var("REDIS_CELL_MODULE").ok()
}

/// Starts a server, with the redis-cell module if there is one.
pub async fn start() -> RedisServer {
    match cell_module() {
        Some(module) => RedisServer::start_with(&["--loadmodule", &module]).await,
        None => RedisServer::start().await,
    }
}

/// Connects with `TCP_NODELAY` and without timeouts, which would fail under saturation.
pub async fn connect(url: &str) -> MultiplexedConnection {
    let info = url.into_connection_info().expect("our own URL parses");
    let tcp = info.tcp_settings().clone().set_nodelay(true);
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(None)
        .set_response_timeout(None);
    Client::open(info.set_tcp_settings(tcp))
        .expect("our own URL parses")
        .get_multiplexed_async_connection_with_config(&config)
        .await
        .unwrap_or_else(|error| panic!("no connection to redis-server: {error}"))
}

/// Reads the server's statistics over a separate connection.
#[derive(Clone)]
pub struct Probe(Arc<MultiplexedConnection>);

impl Probe {
    pub async fn new(url: &str) -> Self {
        Self(Arc::new(connect(url).await))
    }

    /// CPU seconds spent in the commands that clients sent, and the number of these commands.
    /// Commands called by a script count as part of the script.
    pub async fn commands(&self) -> (f64, u64) {
        let mut connection = (*self.0).clone();
        let stats: String = redis::cmd("INFO")
            .arg("commandstats")
            .query_async(&mut connection)
            .await
            .expect("INFO commandstats failed");
        let (mut seconds, mut calls) = (0.0, 0);
        for line in stats.lines() {
            let sent = ["eval", "evalsha", "cl.throttle"];
            let Some((name, rest)) = line
                .strip_prefix("cmdstat_")
                .and_then(|line| line.split_once(':'))
            else {
                continue;
            };
            if !sent.contains(&name) {
                continue;
            }
            let number = |field: &str| {
                let mut fields = rest.split(',').filter_map(|field| field.split_once('='));
                let found = fields.find(|(name, _)| *name == field);
                found.map_or(0, |(_, number)| number.parse().unwrap_or(0_u64))
            };
            calls += number("calls");
            seconds += number("usec") as f64 * 1e-6;
        }
        (seconds, calls)
    }
}
