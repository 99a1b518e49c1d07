//! Settings of a limiter.

use std::{sync::Arc, time::Duration};

use super::{
    core::Core, handle::Limiter, local_share::LocalShares, pending::PendingCorrections,
    queue::WaitQueues,
};
use crate::{
    config_error::ConfigError,
    fallback::{Fallback, Share},
    memory::MemoryStore,
    peers::Peers,
    scope::PREFIX_END,
    telemetry::{Health, Observer},
};

const DEFAULT_PREFIX: &str = "throttle:v1";
const DEFAULT_TIMEOUT: Duration = Duration::from_millis(100);
/// A round trip from one end of the earth to the other takes some 300 ms, and a TLS handshake two.
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const DEFAULT_RESERVE: Duration = Duration::from_secs(5);
/// Redis keeps the heartbeats of missing limiters no longer.
const LONGEST_RESERVE: Duration = Duration::from_secs(3_600);
const DEFAULT_MAX_SCOPES: usize = 1_000_000;

/// Builds a [`Limiter`].
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "redis")] {
/// use std::time::Duration;
/// use tower_throttle::Limiter;
///
/// let limiter = Limiter::builder()
///     .redis("redis://127.0.0.1:6379/2")
///     .key_prefix("shop:limits")
///     .redis_timeout(Duration::from_millis(50))
///     .replicas(4)
///     .build()?;
/// # }
/// # Ok::<_, tower_throttle::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct LimiterBuilder {
    #[cfg(feature = "redis")]
    url: Option<Secret>,
    prefix: String,
    secret: Option<Secret>,
    timeout: Duration,
    connect_timeout: Duration,
    fallback: Fallback,
    replicas: u32,
    reserve_for: Duration,
    instance: Option<String>,
    max_scopes: usize,
    lease: f64,
    /// Where callers come so seldom that nothing would be hot.
    lease_ahead: Option<Duration>,
}

#[derive(Clone)]
struct Secret(String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl LimiterBuilder {
    pub(crate) fn new() -> Self {
        Self {
            #[cfg(feature = "redis")]
            url: None,
            prefix: DEFAULT_PREFIX.to_owned(),
            secret: None,
            timeout: DEFAULT_TIMEOUT,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            fallback: Fallback::LocalShare(Share::Auto),
            replicas: 1,
            reserve_for: DEFAULT_RESERVE,
            instance: None,
            max_scopes: DEFAULT_MAX_SCOPES,
            lease: 0.0,
            lease_ahead: None,
        }
    }

    /// Shares the buckets through the Redis at `url`; see [`Limiter::redis`], also for tests whose
    /// time is paused. Without it, they are in memory.
    ///
    /// ```
    /// # use tower_throttle::Limiter;
    /// assert!(Limiter::builder().redis("no url").build().is_err());
    /// ```
    #[cfg(feature = "redis")]
    pub fn redis(mut self, url: impl Into<String>) -> Self {
        self.url = Some(Secret(url.into()));
        self
    }

    /// What every key in Redis starts with. Defaults to `throttle:v1`.
    ///
    /// A `|` follows the prefix in Redis: `shop` stores its keys under `shop|`. Limiters with
    /// different prefixes share nothing, also where one prefix is the start of another, and an ACL
    /// pattern `~shop|*` matches the keys of this prefix alone. In a Redis Cluster, a prefix with a
    /// hash tag such as `{limits}` keeps scopes that are acquired together on one node.
    ///
    /// [`build`](Self::build) returns [`ConfigError`] if the prefix contains `|`, a space, a control
    /// character, or one that has a meaning in an ACL pattern: `*`, `?`, `[` or `\`.
    ///
    /// ```
    /// # use tower_throttle::Limiter;
    /// let limiter = Limiter::builder().key_prefix("shop").build()?;
    /// assert!(Limiter::builder().key_prefix("shop*").build().is_err());
    /// # Ok::<_, tower_throttle::ConfigError>(())
    /// ```
    pub fn key_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Seeds the hash that stands for the key of a scope in Redis. All processes that share
    /// buckets need the same secret. Without one, a reader of Redis can recognize keys that can be
    /// guessed, such as addresses.
    ///
    /// ```
    /// # use tower_throttle::Limiter;
    /// let limiter = Limiter::builder().key_secret("from the vault").build()?;
    /// # Ok::<_, tower_throttle::ConfigError>(())
    /// ```
    pub fn key_secret(mut self, secret: impl Into<String>) -> Self {
        self.secret = Some(Secret(secret.into()));
        self
    }

    /// How long one call to Redis may take before memory decides. Defaults to 100 ms.
    ///
    /// As long as Redis answers within this time, a request may be queued for ten times as long,
    /// which lets Redis work off a burst. If the queue has been longer than `redis_timeout` for
    /// all that time, more is asked of Redis than it can decide: then a request is queued for one
    /// `redis_timeout`, and memory decides those in excess
    /// ([`FailureKind::Overloaded`](crate::FailureKind::Overloaded)).
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_throttle::Limiter;
    /// let limiter = Limiter::builder().redis_timeout(Duration::from_millis(20)).build()?;
    /// # Ok::<_, tower_throttle::ConfigError>(())
    /// ```
    pub fn redis_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout.min(crate::clock::LONGEST_WAIT);
        self
    }

    /// How long each step of connecting to Redis may take: resolving the host name, connecting,
    /// the TLS handshake, and logging in. Defaults to 1 s.
    ///
    /// A step takes one or two round trips to the server. No call waits for longer than
    /// [`redis_timeout`](Self::redis_timeout) for the first connection, and none for a later one:
    /// until there is a connection, memory decides.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_throttle::Limiter;
    /// let limiter = Limiter::builder().connect_timeout(Duration::from_secs(3)).build()?;
    /// # Ok::<_, tower_throttle::ConfigError>(())
    /// ```
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout.min(crate::clock::LONGEST_WAIT);
        self
    }

    /// What decides while Redis is unavailable. Defaults to [`Fallback::LocalShare`] with
    /// [`Share::Auto`]. [`Scope::fallback`](crate::Scope::fallback) overrides it for one scope.
    ///
    /// ```
    /// # use tower_throttle::{Fallback, Limiter};
    /// let limiter = Limiter::builder().fallback(Fallback::FailOpen).build()?;
    /// # Ok::<_, tower_throttle::ConfigError>(())
    /// ```
    pub fn fallback(mut self, fallback: Fallback) -> Self {
        self.fallback = fallback;
        self
    }

    /// How many limiters share the limits, for [`Share::Auto`]: a hint for a start without Redis,
    /// used until a minute of heartbeats has counted them. Defaults to 1.
    ///
    /// ```
    /// # use tower_throttle::Limiter;
    /// let limiter = Limiter::builder().replicas(4).build()?;
    /// # Ok::<_, tower_throttle::ConfigError>(())
    /// ```
    pub fn replicas(mut self, processes: u32) -> Self {
        self.replicas = processes;
        self
    }

    /// For how long a share of each limit is reserved for a limiter that falls silent. Defaults to
    /// 5 s.
    ///
    /// A limiter sends a heartbeat once a second. One whose last heartbeat is 3 s old is missing:
    /// it has ended without [`deregister`](crate::Limiter::deregister), or it is cut off from Redis and admits
    /// its share from memory. From then on, for this time, the others use only `alive / (alive +
    /// missing)` of each rate, but never less than a quarter. Nothing is reserved for limiters that
    /// lived for less than 5 s, that deregistered, or that were [replaced](Self::instance).
    ///
    /// A longer time costs more of the limit after each crash. A shorter one admits more while some
    /// processes are cut off and others are not: where `k` of `n` limiters are cut off for `t`
    /// seconds, all together admit at most
    /// `k / n * (capacity + rate * (4 + max(0, t - reserve - 3)))` tokens over the limit, besides
    /// those in flight and those that waiters have reserved. Where less than a quarter of the
    /// limiters is left, up to a quarter of the rate more is admitted while a share is reserved. A
    /// wait or a `Retry-After` is then longer than otherwise by at most this time (by 1 s where it
    /// is less than that).
    ///
    /// [`Limiter::reserved`](crate::Limiter::reserved), the gauge `tower_throttle_reserved_ratio`
    /// and a log line on each change report the part that is reserved.
    ///
    /// Zero reserves nothing. Use the same time in all processes.
    ///
    /// # Errors
    ///
    /// [`build`](Self::build) returns [`ConfigError`] if this is more than an hour.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_throttle::Limiter;
    /// let limiter = Limiter::builder().reserve_for(Duration::from_secs(60)).build()?;
    /// # Ok::<_, tower_throttle::ConfigError>(())
    /// ```
    pub fn reserve_for(mut self, time: Duration) -> Self {
        self.reserve_for = time;
        self
    }

    /// Names this limiter, so that it replaces an earlier one of the same name at once: nothing is
    /// reserved for the process that it replaces. By default a limiter has no name.
    ///
    /// A name belongs to one limiter at a time, such as that of a pod in a StatefulSet, or of a host
    /// with one process. Two that live at once under one name are counted as two; when the second
    /// one starts, the first is not counted until its next heartbeat, up to 1 s later.
    ///
    /// # Errors
    ///
    /// [`build`](Self::build) returns [`ConfigError`] if the name is empty.
    ///
    /// ```
    /// # use tower_throttle::Limiter;
    /// let limiter = Limiter::builder().instance("pod-0").build()?;
    /// # Ok::<_, tower_throttle::ConfigError>(())
    /// ```
    pub fn instance(mut self, name: impl Into<String>) -> Self {
        self.instance = Some(name.into());
        self
    }

    /// The most buckets that memory holds. Defaults to 1,000,000. A bucket that is full again is
    /// removed.
    ///
    /// Once so many are held, a scope without a bucket shares one of 1,024 overflow buckets of its
    /// name, selected by a hash with a random seed. Scopes that have a bucket keep it.
    /// [`Limiter::overflowed`] counts the decisions of overflow buckets. Overflow buckets are not
    /// part of this bound: there are up to 1,024 for each name, and 65,536 in all.
    ///
    /// The calls of a [`BucketHandle`](crate::BucketHandle) never change a shared bucket. They give
    /// the scope a bucket of its own, up to 1,024 of them in addition to this bound. Beyond that
    /// they change nothing.
    ///
    /// ```
    /// # use tower_throttle::Limiter;
    /// let limiter = Limiter::builder().max_scopes(10_000).build()?;
    /// # Ok::<_, tower_throttle::ConfigError>(())
    /// ```
    pub fn max_scopes(mut self, scopes: usize) -> Self {
        self.max_scopes = scopes;
        self
    }

    /// Lets this process lease up to `tokens` of a hot scope, so that most of its callers need no
    /// round trip. Defaults to 0, which is off.
    ///
    /// A lease grows with the traffic: to what the callers of two milliseconds and two round trips
    /// took, never over `tokens`, nor over an eighth of the capacity. It is requested together with
    /// requests for the same scope, from what the bucket holds above half its capacity, and only
    /// while no caller waits and Redis is available: where tokens are scarce there are no leases.
    /// Leased tokens that were not used for a second go back, and all of them by
    /// [`deregister`](crate::Limiter::deregister), or when the last clone of the limiter is dropped
    /// while its runtime still runs. Acquisitions of several scopes at once do not use leases, nor
    /// do those that cost more than a lease may hold.
    ///
    /// The price: a token is charged when it is leased and may be used later, so that a window of
    /// `w` seconds holds up to `capacity + rate * w + n * min(tokens, capacity / 8)` tokens,
    /// where `n` processes lease. Over the long run nothing is admitted beyond the rate. A
    /// process that is killed loses what it has leased, as does a call whose reply is lost. With a
    /// capacity below 16, or fewer than two `tokens`, nothing is leased.
    ///
    /// ```
    /// # use tower_throttle::Limiter;
    /// let limiter = Limiter::builder().lease(256.0).build()?;
    /// # Ok::<_, tower_throttle::ConfigError>(())
    /// ```
    pub fn lease(mut self, tokens: f64) -> Self {
        self.lease = tokens;
        self
    }

    /// The time whose demand a lease covers.
    #[cfg(all(test, feature = "redis"))]
    pub(crate) fn lease_ahead(mut self, ahead: Duration) -> Self {
        self.lease_ahead = Some(ahead);
        self
    }

    /// The limiter. No I/O happens here.
    ///
    /// ```
    /// # use tower_throttle::Limiter;
    /// let limiter = Limiter::builder().build()?;
    /// # Ok::<_, tower_throttle::ConfigError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Returns [`ConfigError`] if the URL or a setting is invalid. The message contains a valid
    /// example.
    pub fn build(self) -> Result<Limiter, ConfigError> {
        if self.timeout.is_zero() {
            return Err(ConfigError::new(
                "redis_timeout is zero: set how long a call may take, such as 100 ms",
            ));
        }
        if self.connect_timeout.is_zero() {
            return Err(ConfigError::new(
                "connect_timeout is zero: set how long a step of connecting may take, such as 1 s",
            ));
        }
        if self.replicas == 0 {
            return Err(ConfigError::new(
                "replicas is zero: set how many processes share the limits, at least 1",
            ));
        }
        if self.reserve_for > LONGEST_RESERVE {
            return Err(ConfigError::new(
                "reserve_for is over an hour: set for how long a share is reserved for a missing \
                 limiter, at most 1 h, such as 5 s",
            ));
        }
        if self.instance.as_ref().is_some_and(String::is_empty) {
            return Err(ConfigError::new(
                "instance is empty: set a name that only this process has, such as that of its \
                 pod",
            ));
        }
        if self.max_scopes == 0 {
            return Err(ConfigError::new(
                "max_scopes is zero: set how many buckets memory may hold, at least 1",
            ));
        }
        if !(self.lease >= 0.0 && self.lease.is_finite()) {
            return Err(ConfigError::new(
                "lease is negative or not finite: set how many tokens a process may lease, or 0 for \
                 no leases",
            ));
        }
        let reserved =
            |c: char| c == PREFIX_END || "*?[\\".contains(c) || c.is_whitespace() || c.is_control();
        if self.prefix.contains(reserved) {
            return Err(ConfigError::new(
                "key_prefix contains `|`, `*`, `?`, `[`, `\\`, a space or a control character: set a \
                 prefix without them, such as \"shop:limits\"",
            ));
        }
        self.fallback.check()?;
        #[cfg(feature = "redis")]
        if let Some(url) = &self.url {
            let driver = crate::redis::RedisTransport::new(&url.0, self.connect_timeout)?;
            return Ok(self.connected_by(driver, random()));
        }
        Ok(self.into_memory())
    }

    /// Without Redis nothing can be wrong.
    pub(crate) fn into_memory(self) -> Limiter {
        Limiter::from_core(self.core(Health::InMemory, String::new()))
    }

    /// Over connections of any make.
    #[cfg_attr(
        not(feature = "redis"),
        allow(dead_code, reason = "there is no transport to reach Redis by")
    )]
    pub(crate) fn connected_by(self, connect: impl crate::redis::Transport, seed: u64) -> Limiter {
        let mut core = self.core(Health::Redis, connect.address());
        let config = crate::redis::ConnectionConfig {
            transport: Arc::new(connect),
            keyspace: crate::scope::Keyspace::new(&self.prefix, core.salt),
            timeout: self.timeout,
            connect_timeout: self.connect_timeout,
            levels: Arc::new(crate::redis::LevelCache::new(self.max_scopes)),
            leases: Arc::new(crate::redis::Leases::new(
                self.lease,
                self.max_scopes,
                self.lease_ahead.unwrap_or(crate::redis::AHEAD),
            )),
            peers: core.shares.peers.clone(),
            instance: self.instance,
            ledger: core.shares.clone(),
            observer: core.observer.clone(),
            seed,
        };
        core.redis = Some(super::backend::RedisBackend::new(config, core.salt));
        Limiter::from_core(core)
    }

    fn core(&self, health: Health, redis: String) -> Core {
        let secret = self.secret.as_ref().map_or("", |secret| &secret.0);
        let salt = blake3::derive_key("tower-throttle 2026 bucket names", secret.as_bytes());
        let memory = Arc::new(MemoryStore::new(self.max_scopes));
        let shares = LocalShares {
            memory: memory.clone(),
            peers: Arc::new(Peers::new(self.replicas, self.reserve_for)),
            salt,
            fallback: self.fallback,
            pending: PendingCorrections::default(),
        };
        Core {
            memory,
            shares: Arc::new(shares),
            redis: None,
            queues: WaitQueues::new(salt),
            observer: Arc::new(Observer::new(health, redis)),
            salt,
        }
    }
}

/// Different in each limiter: what seeds the standard hash maps.
#[cfg(feature = "redis")]
fn random() -> u64 {
    use std::hash::BuildHasher;
    std::hash::RandomState::new().hash_one(0)
}
