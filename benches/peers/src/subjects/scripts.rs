//! One command per request, over one `MultiplexedConnection`.

use std::{sync::Arc, time::Duration};

use redis::{Cmd, aio::MultiplexedConnection};

use super::{Keys, Limit};
use crate::{load::Subject, server::connect};

/// One `EVALSHA` of `naive.lua` per request.
#[derive(Clone)]
pub struct Naive {
    connection: MultiplexedConnection,
    hash: Arc<str>,
    limit: Limit,
    keys: Keys,
}

impl Naive {
    pub async fn new(url: &str, limit: Limit, keys: &Keys) -> Self {
        let mut connection = connect(url).await;
        let hash = load(&mut connection, include_str!("naive.lua")).await;
        Self {
            connection,
            hash,
            limit,
            keys: keys.prefixed("naive:"),
        }
    }
}

impl Subject for Naive {
    async fn take(&mut self, scope: usize) -> bool {
        let mut command = Cmd::new();
        command
            .arg("EVALSHA")
            .arg(&*self.hash)
            .arg(1)
            .arg(&*self.keys.get(scope))
            .arg(self.limit.tokens)
            .arg(self.limit.rate())
            .arg(wall_clock())
            .arg(1)
            .arg(2 * self.limit.per.as_secs().max(1));
        let allowed: i64 = answered(command.query_async(&mut self.connection).await);
        allowed == 1
    }
}

/// One `EVALSHA` of `minimal.lua` per request.
#[derive(Clone)]
pub struct Minimal {
    connection: MultiplexedConnection,
    hash: Arc<str>,
    /// Microseconds per token, and per capacity.
    arguments: [f64; 2],
    keys: Keys,
}

impl Minimal {
    pub async fn new(url: &str, limit: Limit, keys: &Keys) -> Self {
        let mut connection = connect(url).await;
        let hash = load(&mut connection, include_str!("minimal.lua")).await;
        Self {
            connection,
            hash,
            arguments: [1e6 / limit.rate(), 1e6 * limit.per.as_secs_f64()],
            keys: keys.prefixed("minimal:"),
        }
    }

    /// Returns the time after which to retry, or zero if the request is admitted.
    pub async fn ask(&mut self, scope: usize) -> Duration {
        let mut command = Cmd::new();
        command
            .arg("EVALSHA")
            .arg(&*self.hash)
            .arg(1)
            .arg(&*self.keys.get(scope))
            .arg(&self.arguments);
        let wait = answered(command.query_async(&mut self.connection).await);
        Duration::from_micros(wait)
    }
}

impl Subject for Minimal {
    async fn take(&mut self, scope: usize) -> bool {
        self.ask(scope).await.is_zero()
    }
}

/// The shortest command: its latency is the round trip.
#[derive(Clone)]
pub struct Ping(MultiplexedConnection);

impl Ping {
    pub async fn new(url: &str) -> Self {
        Self(connect(url).await)
    }
}

impl Subject for Ping {
    async fn take(&mut self, _scope: usize) -> bool {
        let reply: String = answered(redis::cmd("PING").query_async(&mut self.0).await);
        reply == "PONG"
    }
}

/// The redis-cell module: GCRA in the server.
#[derive(Clone)]
pub struct Cell {
    connection: MultiplexedConnection,
    limit: Limit,
    keys: Keys,
}

impl Cell {
    pub async fn new(url: &str, limit: Limit, keys: &Keys) -> Self {
        Self {
            connection: connect(url).await,
            limit,
            keys: keys.prefixed("cell:"),
        }
    }
}

impl Subject for Cell {
    async fn take(&mut self, scope: usize) -> bool {
        let mut command = Cmd::new();
        command
            .arg("CL.THROTTLE")
            .arg(&*self.keys.get(scope))
            .arg(self.limit.tokens - 1)
            .arg(self.limit.tokens)
            .arg(self.limit.per.as_secs());
        let reply: [i64; 5] = answered(command.query_async(&mut self.connection).await);
        reply[0] == 0
    }
}

async fn load(connection: &mut MultiplexedConnection, source: &str) -> Arc<str> {
    let hash: String = redis::cmd("SCRIPT")
        .arg("LOAD")
        .arg(source)
        .query_async(connection)
        .await
        .expect("SCRIPT LOAD failed");
    hash.into()
}

fn answered<T>(reply: redis::RedisResult<T>) -> T {
    reply.unwrap_or_else(|error| panic!("the call to Redis failed: {error}"))
}

#[allow(
    clippy::disallowed_methods,
    reason = "the naive script uses the client's clock"
)]
pub(super) fn wall_clock() -> f64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}
