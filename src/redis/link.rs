//! The connection, under a supervisor: callers never wait for a reconnect.

use std::{
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, IntoConnectionInfo, RedisError,
    aio::MultiplexedConnection,
};
use tokio::{
    sync::watch,
    time::{Instant, timeout, timeout_at},
};

use super::{
    command::Wire,
    failure::classify,
    script::{Argument, SOURCE},
};
use crate::{
    bucket::Terms,
    decision::{Failure, FailureKind},
    error::ConfigError,
    observe::Observer,
};

/// One attempt to connect and to log in takes no longer.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(200);

/// Between attempts, drawn at random from half to the whole of a pause that doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A name that no scope can have, because `#` is escaped.
const PROBE: &str = "#probe";

static HASH: LazyLock<String> = LazyLock::new(|| redis::Script::new(SOURCE).get_hash().to_owned());

pub(crate) struct LinkConfig {
    pub(crate) url: String,
    pub(crate) prefix: String,
    pub(crate) timeout: Duration,
}

/// One connection to Redis and the task that mends it.
///
/// ```text
/// Idle => Connecting       the first call
/// Connecting => Up         a call that writes succeeded
/// Connecting => Down       it did not; a background task goes on trying
/// Up => Down               a call failed or took too long: the connection is dropped
/// Down => Up               the background task's call that writes succeeded
/// ```
pub(crate) struct Link {
    shared: Arc<Shared>,
}

struct Shared {
    client: Client,
    config: LinkConfig,
    observer: Arc<Observer>,
    state: Mutex<State>,
    /// Says that `state` has changed.
    changed: watch::Sender<()>,
    /// Counts connections.
    generations: AtomicU64,
}

enum State {
    Idle,
    Connecting,
    Up {
        connection: MultiplexedConnection,
        generation: u64,
    },
    Down(Failure),
}

impl Link {
    /// No I/O: the first call connects.
    pub(crate) fn new(config: LinkConfig, observer: Arc<Observer>) -> Result<Self, ConfigError> {
        let explain = |error: RedisError| {
            ConfigError::new(format!(
                "this is not the address of a Redis: {}. Write redis://host:port/database, \
                 rediss://… for TLS (feature `tls`), or unix:///path/to/socket",
                without_secrets(&error)
            ))
        };
        let info = config
            .url
            .as_str()
            .into_connection_info()
            .map_err(explain)?;
        let tcp = info.tcp_settings().clone().set_nodelay(true);
        let client = Client::open(info.set_tcp_settings(tcp)).map_err(explain)?;
        Ok(Self {
            shared: Arc::new(Shared {
                client,
                config,
                observer,
                state: Mutex::new(State::Idle),
                changed: watch::Sender::new(()),
                generations: AtomicU64::new(0),
            }),
        })
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

impl Wire for Link {
    fn patience(&self) -> Duration {
        self.shared.config.timeout
    }

    async fn call(&self, keys: Vec<Vec<u8>>, argument: Vec<u8>) -> Result<Vec<u8>, Failure> {
        let deadline = Instant::now() + self.shared.config.timeout;
        let (mut connection, generation) = self.shared.connection(deadline).await?;
        let called = timeout_at(deadline, run(&mut connection, &keys, &argument)).await;
        let failure = match called {
            Ok(Ok(bytes)) => return Ok(bytes),
            Ok(Err(error)) => classify(error),
            Err(_) => timed_out(),
        };
        self.shared.trip(generation, &failure);
        Err(failure)
    }
}

fn timed_out() -> Failure {
    Failure::new(FailureKind::Timeout, "Redis did not answer in time")
}

/// The script, by its hash; by its source where the server does not know it (a restart, a
/// failover, an eviction): one more round trip, and no storm of loading.
async fn run(
    connection: &mut MultiplexedConnection,
    keys: &[Vec<u8>],
    argument: &[u8],
) -> Result<Vec<u8>, RedisError> {
    let command = |name: &str, script: &str| {
        let mut command = Cmd::new();
        command.arg(name).arg(script).arg(keys.len());
        for key in keys {
            command.arg(key.as_slice());
        }
        command.arg(argument);
        command
    };
    match command("EVALSHA", &HASH).query_async(connection).await {
        Err(error) if error.code() == Some("NOSCRIPT") => {
            command("EVAL", SOURCE).query_async(connection).await
        }
        answered => answered,
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // States are replaced as a whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, state: State) {
        *self.lock() = state;
        self.changed.send_replace(());
    }

    /// The connection as it is; only the first connection of all is waited for.
    async fn connection(
        self: &Arc<Self>,
        deadline: Instant,
    ) -> Result<(MultiplexedConnection, u64), Failure> {
        let mut changed = self.changed.subscribe();
        loop {
            let starts = {
                let mut state = self.lock();
                match &*state {
                    State::Up {
                        connection,
                        generation,
                    } => return Ok((connection.clone(), *generation)),
                    State::Down(failure) => return Err(failure.clone()),
                    State::Connecting => false,
                    State::Idle => {
                        *state = State::Connecting;
                        true
                    }
                }
            };
            if starts {
                // Outside the lock: a runtime that shuts down drops the task here.
                Mender::spawn(self);
            }
            match timeout_at(deadline, changed.changed()).await {
                Ok(Ok(())) => {}
                _ => return Err(timed_out()),
            }
        }
    }

    /// Drops a connection that failed, once, and has it mended. Results of older generations
    /// say nothing about this one.
    fn trip(self: &Arc<Self>, failed: u64, failure: &Failure) {
        let mut state = self.lock();
        if matches!(&*state, State::Up { generation, .. } if *generation == failed) {
            *state = State::Down(failure.clone());
            drop(state);
            self.observer.redis_fails(failure);
            Mender::spawn(self);
        }
    }

    async fn connect(&self) -> Result<MultiplexedConnection, Failure> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(self.config.timeout));
        let connect = self
            .client
            .get_multiplexed_async_connection_with_config(&config);
        let mut connection = timeout(2 * CONNECT_TIMEOUT, connect)
            .await
            .map_err(|_| timed_out())?
            .map_err(classify)?;
        // A Redis that answers but refuses writes is not back: the probe writes.
        let mut argument = Argument::default();
        argument.key(Terms::new(1.0, 1.0));
        argument.reset(1);
        let key = format!("{}{PROBE}", self.config.prefix).into_bytes();
        timeout(
            self.config.timeout,
            run(&mut connection, &[key], &argument.into_bytes()),
        )
        .await
        .map_err(|_| timed_out())?
        .map_err(classify)?;
        Ok(connection)
    }
}

/// The background task that connects. It holds the link only while it works, so that a limiter
/// that is dropped ends it.
struct Mender {
    shared: Weak<Shared>,
    done: bool,
}

impl Mender {
    fn spawn(shared: &Arc<Shared>) {
        let mut mender = Self {
            shared: Arc::downgrade(shared),
            done: false,
        };
        tokio::spawn(async move { mender.run().await });
    }

    async fn run(&mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let Some(shared) = self.shared.upgrade() else {
                return;
            };
            match shared.connect().await {
                Ok(connection) => {
                    self.done = true;
                    let generation = shared.generations.fetch_add(1, Ordering::Relaxed);
                    shared.observer.redis_answers();
                    shared.set(State::Up {
                        connection,
                        generation,
                    });
                    return;
                }
                Err(failure) => {
                    shared.observer.redis_fails(&failure);
                    shared.set(State::Down(failure));
                }
            }
            drop(shared);
            tokio::time::sleep(pause.mul_f64(0.5 + 0.5 * jitter())).await;
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }
}

impl Drop for Mender {
    fn drop(&mut self) {
        // The runtime was shut down under it, or the driver panicked: the next call, perhaps on
        // another runtime, starts anew.
        if !self.done
            && let Some(shared) = self.shared.upgrade()
        {
            shared.set(State::Idle);
        }
    }
}

/// From 0 to 1, different in each process: what seeds the standard hash maps.
fn jitter() -> f64 {
    use std::hash::BuildHasher;
    let random = std::hash::RandomState::new().hash_one(0);
    (random >> 11) as f64 / (1u64 << 53) as f64
}
