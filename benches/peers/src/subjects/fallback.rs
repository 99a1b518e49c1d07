//! The naive script with the usual fallback.

use std::{sync::Arc, time::Duration};

use governor::{DefaultDirectRateLimiter, RateLimiter};
use redis::{
    Client, RedisResult, Script,
    aio::{ConnectionManager, ConnectionManagerConfig},
};

use super::{Limit, memory::quota, scripts::wall_clock};
use crate::load::Subject;

const TIMEOUT: Duration = Duration::from_millis(100);

/// One `EVALSHA` of `naive.lua` per request. If it fails, governor decides: each process has the
/// full quota, and a bucket that is full when the first call fails.
#[derive(Clone)]
pub struct NaiveWithFallback {
    connection: ConnectionManager,
    script: Arc<Script>,
    limit: Limit,
    memory: Arc<DefaultDirectRateLimiter>,
}

impl NaiveWithFallback {
    pub async fn new(url: &str, limit: Limit) -> Self {
        // A request without a connection attempts once to connect.
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(TIMEOUT))
            .set_response_timeout(Some(TIMEOUT))
            .set_number_of_retries(0);
        let client = Client::open(url).expect("our own URL parses");
        let connection = client.get_connection_manager_with_config(config).await;
        Self {
            connection: connection
                .unwrap_or_else(|error| panic!("no connection to redis-server: {error}")),
            script: Arc::new(Script::new(include_str!("naive.lua"))),
            limit,
            memory: Arc::new(RateLimiter::direct(quota(limit))),
        }
    }

    async fn ask_redis(&mut self) -> RedisResult<bool> {
        self.script
            .key("naive")
            .arg(self.limit.tokens)
            .arg(self.limit.rate())
            .arg(wall_clock())
            .arg(1)
            .arg(2 * self.limit.per.as_secs().max(1))
            .invoke_async(&mut self.connection)
            .await
    }
}

impl Subject for NaiveWithFallback {
    async fn take(&mut self, _scope: usize) -> bool {
        match self.ask_redis().await {
            Ok(admitted) => admitted,
            Err(_) => self.memory.check().is_ok(),
        }
    }
}
