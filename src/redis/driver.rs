//! Connections made by the `redis` crate.

use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, IntoConnectionInfo, RedisError,
    aio::MultiplexedConnection,
};
use tokio::time::timeout;

use super::{
    connect::{Connect, Session},
    failure::{classify, timed_out},
    script::Script,
};
use crate::{decision::Failure, error::ConfigError};

/// One attempt to connect takes no longer, and one to log in neither.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(200);

/// Connects to the Redis at one address.
pub(crate) struct Driver {
    client: Client,
}

impl Driver {
    /// No I/O.
    pub(crate) fn new(url: &str) -> Result<Self, ConfigError> {
        let explain = |error: RedisError| {
            ConfigError::new(format!(
                "this is not the address of a Redis: {}. Write redis://host:port/database, \
                 rediss://… for TLS (feature `tls`), or unix:///path/to/socket",
                without_secrets(&error)
            ))
        };
        let info = url.into_connection_info().map_err(explain)?;
        let tcp = info.tcp_settings().clone().set_nodelay(true);
        let client = Client::open(info.set_tcp_settings(tcp)).map_err(explain)?;
        Ok(Self { client })
    }

    async fn open(&self) -> Result<Box<dyn Session>, Failure> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            // Whoever calls has a timer already; one of the driver's own would cost each call.
            .set_response_timeout(None);
        let connect = self
            .client
            .get_multiplexed_async_connection_with_config(&config);
        let connection = timeout(2 * CONNECT_TIMEOUT, connect)
            .await
            .map_err(|_| timed_out())?
            .map_err(classify)?;
        Ok(Box::new(Connection(connection)))
    }
}

/// The driver's words for a bad URL do not hold the URL, which may hold a password; its detail
/// might.
fn without_secrets(error: &RedisError) -> String {
    match error.kind() {
        ErrorKind::InvalidClientConfig => error
            .to_string()
            .split(['\n', '"'])
            .next()
            .unwrap_or_default()
            .to_owned(),
        _ => "it cannot be read".to_owned(),
    }
}

impl Connect for Driver {
    fn connect(&self) -> BoxFuture<'_, Result<Box<dyn Session>, Failure>> {
        self.open().boxed()
    }
}

struct Connection(MultiplexedConnection);

impl Session for Connection {
    fn run<'a>(
        &'a self,
        script: &'static Script,
        keys: &'a [Vec<u8>],
        arguments: &'a [&'a [u8]],
    ) -> BoxFuture<'a, Result<Vec<u8>, Failure>> {
        // By its hash; by its source where the server does not know it (a restart, a failover,
        // an eviction): one more round trip, and no storm of loading.
        let command = move |name: &str, script: &str| {
            let mut command = Cmd::new();
            command.arg(name).arg(script).arg(keys.len());
            command.arg(keys).arg(arguments);
            command
        };
        let mut connection = self.0.clone();
        async move {
            let by_hash = command("EVALSHA", &script.hash);
            match by_hash.query_async(&mut connection).await {
                Err(error) if error.code() == Some("NOSCRIPT") => {
                    let by_source = command("EVAL", script.source);
                    by_source.query_async(&mut connection).await
                }
                answered => answered,
            }
            .map_err(classify)
        }
        .boxed()
    }
}
