//! Connections made by the `redis` crate.

use std::{future::Future, io, net::SocketAddr, time::Duration};

use futures_util::future::{BoxFuture, FutureExt, select_ok};
use redis::{
    AsyncConnectionConfig, Cmd, ConnectionAddr, ErrorKind, IntoConnectionInfo, RedisConnectionInfo,
    RedisError, aio::MultiplexedConnection,
};
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
    task::JoinHandle,
    time::timeout,
};

#[cfg(feature = "tls")]
use crate::redis::connection::tls::Tls;
use crate::{
    config_error::ConfigError,
    decision::{Failure, FailureKind},
    redis::{
        connection::{
            classify::{classify, io_failure},
            failure::{is_time_paused, timed_out},
            transport::{Session, Transport},
        },
        script::Script,
    },
};

/// Connects to one address.
pub(crate) struct RedisTransport {
    address: Address,
    settings: RedisConnectionInfo,
    /// The longest duration of one step of connecting.
    step_timeout: Duration,
}

enum Address {
    Tcp(String, u16),
    #[cfg(feature = "tls")]
    Tls(String, u16, Tls),
    #[cfg(unix)]
    Unix(std::path::PathBuf),
}

impl RedisTransport {
    /// No I/O.
    pub(crate) fn new(url: &str, step_timeout: Duration) -> Result<Self, ConfigError> {
        let info = url.into_connection_info().map_err(|error| {
            ConfigError::new(format!(
                "invalid Redis URL: {}. Use redis://host:port/database, rediss://… for TLS \
                 (feature `tls`), or unix:///path/to/socket",
                without_secrets(&error)
            ))
        })?;
        let address = match info.addr().clone() {
            ConnectionAddr::Tcp(host, port) => Address::Tcp(host, port),
            #[cfg(feature = "tls")]
            ConnectionAddr::TcpTls { insecure: true, .. } => {
                return Err(ConfigError::new(
                    "#insecure disables certificate checks: remove it from the URL",
                ));
            }
            #[cfg(feature = "tls")]
            ConnectionAddr::TcpTls { host, port, .. } => {
                let tls = Tls::new(&host)?;
                Address::Tls(host, port, tls)
            }
            #[cfg(unix)]
            ConnectionAddr::Unix(path) => Address::Unix(path),
            _ => {
                return Err(ConfigError::new(
                    "unsupported Redis URL: rediss:// needs the feature `tls`, and unix:// an \
                     operating system with Unix sockets",
                ));
            }
        };
        Ok(Self {
            address,
            settings: info.redis_settings().clone(),
            step_timeout,
        })
    }

    #[cfg(all(test, feature = "tls"))]
    pub(crate) fn trust(&mut self, certificate: &[u8]) {
        if let Address::Tls(_, _, tls) = &mut self.address {
            tls.trust(certificate);
        }
    }

    async fn open(&self) -> Result<Box<dyn Session>, Failure> {
        match &self.address {
            Address::Tcp(host, port) => self.log_in(self.reach(host, *port).await?).await,
            #[cfg(feature = "tls")]
            Address::Tls(host, port, tls) => {
                let stream = self.reach(host, *port).await?;
                let shake_hands = self.step("the TLS handshake", tls.connect(stream));
                self.log_in(shake_hands.await?).await
            }
            #[cfg(unix)]
            Address::Unix(path) => {
                let connect = UnixStream::connect(path).map(|stream| stream.map_err(io_failure));
                self.log_in(self.step("connecting", connect).await?).await
            }
        }
    }

    async fn reach(&self, host: &str, port: u16) -> Result<TcpStream, Failure> {
        let resolve = lookup_host((host, port)).map(|found| found.map_err(io_failure));
        let resolve = self.step("resolving the host name", resolve);
        let addresses: Vec<SocketAddr> = resolve.await?.collect();
        if addresses.is_empty() {
            let none = io::Error::new(io::ErrorKind::NotFound, "the host name has no address");
            return Err(io_failure(none));
        }
        // All at once: an address that does not answer must not use up the time of the others.
        let attempts = addresses.into_iter().map(TcpStream::connect);
        let connect = select_ok(attempts.map(Box::pin)).map(|first| first.map_err(io_failure));
        let (stream, _) = self.step("connecting", connect).await?;
        stream.set_nodelay(true).map_err(io_failure)?;
        Ok(stream)
    }

    async fn log_in<S>(&self, stream: S) -> Result<Box<dyn Session>, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        // The caller has a timer already; another one would cost each call.
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let log_in = MultiplexedConnection::new_with_config(&self.settings, stream, config)
            .map(|connection| connection.map_err(classify));
        let (connection, driver) = self.step("logging in", log_in).await?;
        Ok(Box::new(RedisSession {
            connection,
            driver: tokio::spawn(driver),
        }))
    }

    async fn step<T>(
        &self,
        name: &str,
        step: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        timeout(self.step_timeout, step).await.unwrap_or_else(|_| {
            let within = self.step_timeout;
            Err(match is_time_paused() {
                true => timed_out(),
                false => Failure::new(
                    FailureKind::Timeout,
                    format!("{name} took longer than connect_timeout ({within:?})"),
                ),
            })
        })
    }
}

/// The error without the URL, which may contain a password. The driver's description does not
/// contain the URL; its detail might.
fn without_secrets(error: &RedisError) -> String {
    match error.kind() {
        ErrorKind::InvalidClientConfig => error
            .to_string()
            .split(['\n', '"'])
            .next()
            .unwrap_or_default()
            .to_owned(),
        _ => "it cannot be parsed".to_owned(),
    }
}

impl Transport for RedisTransport {
    fn address(&self) -> String {
        let database = self.settings.db();
        let bracketed = |host: &str| match host.contains(':') {
            true => format!("[{host}]"),
            false => host.to_owned(),
        };
        match &self.address {
            Address::Tcp(host, port) => format!("redis://{}:{port}/{database}", bracketed(host)),
            #[cfg(feature = "tls")]
            Address::Tls(host, port, _) => {
                format!("rediss://{}:{port}/{database}", bracketed(host))
            }
            #[cfg(unix)]
            Address::Unix(path) => format!("unix://{}", path.display()),
        }
    }

    fn connect(&self) -> BoxFuture<'_, Result<Box<dyn Session>, Failure>> {
        self.open().boxed()
    }

    fn works_on_any_runtime(&self) -> bool {
        true
    }
}

struct RedisSession {
    connection: MultiplexedConnection,
    /// Reads and writes the socket.
    driver: JoinHandle<()>,
}

impl Drop for RedisSession {
    fn drop(&mut self) {
        // Otherwise it would run until the server has answered all calls.
        self.driver.abort();
    }
}

impl Session for RedisSession {
    fn run<'a>(
        &'a self,
        script: &'static Script,
        keys: &'a [Vec<u8>],
        arguments: &'a [&'a [u8]],
    ) -> BoxFuture<'a, Result<Vec<u8>, Failure>> {
        // By its hash, or by its source if the server does not know it (after a restart, a failover
        // or a flush): one more round trip, and no separate load of the script.
        let command = move |name: &str, script: &str| {
            let mut command = Cmd::new();
            command.arg(name).arg(script).arg(keys.len());
            command.arg(keys).arg(arguments);
            command
        };
        let mut connection = self.connection.clone();
        async move {
            let by_hash = command("EVALSHA", hash(script));
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

fn hash(script: &'static Script) -> &'static str {
    script
        .hash
        .get_or_init(|| redis::Script::new(script.source).get_hash().to_owned())
}
