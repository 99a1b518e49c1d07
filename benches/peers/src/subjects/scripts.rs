//! One command a request, over one `MultiplexedConnection`.

use std::{sync::Arc, time::Duration};

use redis::{Cmd, aio::MultiplexedConnection};
use tokio::sync::Mutex;

use super::{Keys, Terms};
use crate::{load::Subject, server::connect};

/// "Naive": one `EVALSHA` a request of the script that everybody writes.
#[derive(Clone)]
pub struct Naive {
    connection: MultiplexedConnection,
    hash: Arc<str>,
    terms: Terms,
    keys: Keys,
}

impl Naive {
    pub async fn new(url: &str, terms: Terms, keys: &Keys) -> Self {
        let mut connection = connect(url).await;
        let hash = load(&mut connection, include_str!("naive.lua")).await;
        Self {
            connection,
            hash,
            terms,
            keys: keys.prefixed("naive"),
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
            .arg(self.keys.get(scope))
            .arg(self.terms.tokens)
            .arg(self.terms.rate())
            .arg(wall_clock())
            .arg(1)
            .arg(2 * self.terms.per.as_secs().max(1));
        let allowed: i64 = answered(command.query_async(&mut self.connection).await);
        allowed == 1
    }
}

/// "Direct": one `EVALSHA` a request of the leanest script with one key.
#[derive(Clone)]
pub struct Direct {
    connection: MultiplexedConnection,
    hash: Arc<str>,
    /// Microseconds that a token and the capacity are worth.
    arguments: [f64; 2],
    keys: Keys,
}

impl Direct {
    pub async fn new(url: &str, terms: Terms, keys: &Keys) -> Self {
        let mut connection = connect(url).await;
        let hash = load(&mut connection, include_str!("direct.lua")).await;
        Self {
            connection,
            hash,
            arguments: [1e6 / terms.rate(), 1e6 * terms.per.as_secs_f64()],
            keys: keys.prefixed("direct"),
        }
    }

    /// How long to wait before asking again; zero when it was admitted.
    pub async fn ask(&mut self, scope: usize) -> Duration {
        let mut command = Cmd::new();
        command
            .arg("EVALSHA")
            .arg(&*self.hash)
            .arg(1)
            .arg(self.keys.get(scope))
            .arg(&self.arguments);
        let wait = answered(command.query_async(&mut self.connection).await);
        Duration::from_micros(wait)
    }
}

impl Subject for Direct {
    async fn take(&mut self, scope: usize) -> bool {
        self.ask(scope).await.is_zero()
    }
}

/// The naive script where a connection is held from request to reply, as a blocking client does.
#[derive(Clone)]
pub struct Serial(Arc<Mutex<Naive>>);

impl Serial {
    pub async fn new(url: &str, terms: Terms, keys: &Keys) -> Self {
        Self(Arc::new(Mutex::new(Naive::new(url, terms, keys).await)))
    }
}

impl Subject for Serial {
    async fn take(&mut self, scope: usize) -> bool {
        self.0.lock().await.take(scope).await
    }
}

/// The redis-cell module: GCRA inside the server.
#[derive(Clone)]
pub struct Cell {
    connection: MultiplexedConnection,
    terms: Terms,
    keys: Keys,
}

impl Cell {
    pub async fn new(url: &str, terms: Terms, keys: &Keys) -> Self {
        Self {
            connection: connect(url).await,
            terms,
            keys: keys.prefixed("cell"),
        }
    }
}

impl Subject for Cell {
    async fn take(&mut self, scope: usize) -> bool {
        let mut command = Cmd::new();
        command
            .arg("CL.THROTTLE")
            .arg(self.keys.get(scope))
            .arg(self.terms.tokens - 1)
            .arg(self.terms.tokens)
            .arg(self.terms.per.as_secs());
        let reply: [i64; 5] = answered(command.query_async(&mut self.connection).await);
        reply[0] == 0
    }
}

impl Keys {
    fn prefixed(&self, prefix: &str) -> Self {
        Self(self.iter().map(|key| format!("{prefix}:{key}")).collect())
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
    reply.unwrap_or_else(|error| panic!("Redis did not answer: {error}"))
}

#[allow(
    clippy::disallowed_methods,
    reason = "the naive script is given the client's clock"
)]
fn wall_clock() -> f64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}
