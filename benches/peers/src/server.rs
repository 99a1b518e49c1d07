//! The `redis-server` under load, and its statistics.

use std::sync::Arc;

use redis::{AsyncConnectionConfig, Client, IntoConnectionInfo, aio::MultiplexedConnection};

#[allow(dead_code, reason = "shared with the tests; only a part is used here")]
#[path = "../../../tests/support/redis_server.rs"]
mod redis_server;

#[allow(dead_code, reason = "shared with the tests; only a part is used here")]
#[path = "../../../tests/support/process.rs"]
mod process;

pub use self::redis_server::RedisServer;

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

    /// Bytes that the server has allocated.
    pub async fn used_memory(&self) -> f64 {
        number_after(&self.info("memory").await, "used_memory:")
    }

    async fn info(&self, section: &str) -> String {
        let mut connection = (*self.0).clone();
        let mut command = redis::cmd("INFO");
        let info = command.arg(section).query_async(&mut connection).await;
        info.unwrap_or_else(|error| panic!("INFO {section} failed: {error}"))
    }

    /// CPU seconds of the thread that executes commands.
    pub async fn cpu(&self) -> f64 {
        let cpu = self.info("cpu").await;
        let times = ["used_cpu_user_main_thread:", "used_cpu_sys_main_thread:"];
        times.map(|name| number_after(&cpu, name)).iter().sum()
    }

    /// The number of commands that clients sent to decide. Commands called by a script count as
    /// part of the script.
    pub async fn commands(&self) -> u64 {
        let stats = self.info("commandstats").await;
        let sent = ["eval", "evalsha", "cl.throttle"];
        let calls = sent.map(|name| number_after(&stats, &format!("cmdstat_{name}:calls=")));
        calls.iter().sum::<f64>() as u64
    }
}

/// The number after `name` at the start of a line; zero if there is none.
fn number_after(info: &str, name: &str) -> f64 {
    let line = info.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.split(',').next());
    number.map_or(0.0, |number| number.trim().parse().expect("not a number"))
}
