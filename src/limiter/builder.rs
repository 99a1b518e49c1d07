//! Settings of a limiter.

use std::time::Duration;

use super::{core::Core, handle::Limiter, remote::Remote};
use crate::error::ConfigError;

const DEFAULT_PREFIX: &str = "throttle:v1:";
const DEFAULT_TIMEOUT: Duration = Duration::from_millis(100);
const DEFAULT_MAX_SCOPES: usize = 1_000_000;

/// What decides while Redis cannot be asked.
///
/// # Examples
///
/// ```
/// use tower_throttle::{Fallback, Limiter};
///
/// let limiter = Limiter::builder().fallback(Fallback::Closed).build()?;
/// # Ok::<_, tower_throttle::ConfigError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Fallback {
    /// This process's memory, holding a share of every limit.
    Share(Share),
    /// Nothing: everybody passes. Such permits say that they are degraded.
    Open,
    /// Nothing: everybody is refused with [`Reason::Unavailable`](crate::Reason::Unavailable).
    Closed,
}

/// Which part of a limit this process may spend by itself.
///
/// # Examples
///
/// ```
/// use tower_throttle::{Fallback, Limiter, Share};
///
/// let limiter = Limiter::builder()
///     .fallback(Fallback::Share(Share::Fixed(0.25)))
///     .build()?;
/// # Ok::<_, tower_throttle::ConfigError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Share {
    /// An equal one: one over [`replicas`](LimiterBuilder::replicas).
    Auto,
    /// This part, above 0 and at most 1.
    Fixed(f64),
}

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
///     .key_prefix("shop:limits:")
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
    fallback: Fallback,
    replicas: u32,
    max_scopes: usize,
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
            fallback: Fallback::Share(Share::Auto),
            replicas: 1,
            max_scopes: DEFAULT_MAX_SCOPES,
        }
    }

    /// Shares the buckets through the Redis at `url`; see [`Limiter::redis`]. Without it, they
    /// are in memory.
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

    /// What every key in Redis starts with; `throttle:v1:` unless said. Limiters with different
    /// prefixes share nothing. In a Redis Cluster, a prefix with a hash tag such as `{limits}:`
    /// keeps scopes that are acquired together on one node.
    ///
    /// ```
    /// # use tower_throttle::Limiter;
    /// let limiter = Limiter::builder().key_prefix("shop:").build()?;
    /// # Ok::<_, tower_throttle::ConfigError>(())
    /// ```
    pub fn key_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Seeds the hash that stands for secret and long keys in Redis. All processes that share
    /// buckets need the same; without it, keys that can be guessed can be recognised by
    /// whoever reads Redis.
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

    /// How long one call to Redis may take before memory decides; 100 ms unless said.
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

    /// What decides while Redis cannot be asked; [`Share::Auto`] of each limit in memory unless
    /// said.
    ///
    /// ```
    /// # use tower_throttle::{Fallback, Limiter};
    /// let limiter = Limiter::builder().fallback(Fallback::Open).build()?;
    /// # Ok::<_, tower_throttle::ConfigError>(())
    /// ```
    pub fn fallback(mut self, fallback: Fallback) -> Self {
        self.fallback = fallback;
        self
    }

    /// How many processes share the limits, for [`Share::Auto`]; 1 unless said.
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

    /// How many buckets memory holds at most; a million unless said. Past it, scopes that are
    /// not known share one overflow bucket per name.
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
    /// [`ConfigError`] if the URL cannot be read or a setting makes no sense; it says what to
    /// write instead.
    pub fn build(self) -> Result<Limiter, ConfigError> {
        if self.timeout.is_zero() {
            return Err(ConfigError::new(
                "redis_timeout is zero: write how long a call may take, such as 100 ms",
            ));
        }
        if self.replicas == 0 {
            return Err(ConfigError::new(
                "replicas is zero: write how many processes share the limits, at least 1",
            ));
        }
        if self.max_scopes == 0 {
            return Err(ConfigError::new(
                "max_scopes is zero: write how many buckets memory may hold, at least 1",
            ));
        }
        if let Fallback::Share(Share::Fixed(part)) = self.fallback
            && !(part > 0.0 && part <= 1.0)
        {
            return Err(ConfigError::new(format!(
                "a share of {part} is no part of a limit: write a number above 0, at most 1"
            )));
        }
        #[cfg(feature = "redis")]
        let remote = self.url.clone();
        #[cfg(not(feature = "redis"))]
        let remote = None::<Secret>;
        let mut core = self.core();
        if let Some(url) = remote {
            core.remote = Some(Remote::new(url.0, self.prefix, self.timeout, &core)?);
        }
        Ok(Limiter::from_core(core))
    }

    /// Without Redis nothing can be wrong.
    pub(crate) fn into_memory(self) -> Limiter {
        Limiter::from_core(self.core())
    }

    fn core(&self) -> Core {
        let share = match self.fallback {
            Fallback::Share(Share::Fixed(part)) => 1.0 / part,
            _ => f64::from(self.replicas),
        };
        let secret = self.secret.as_ref().map_or("", |secret| &secret.0);
        Core::new(
            blake3::derive_key("tower-throttle 2026 bucket names", secret.as_bytes()),
            self.max_scopes,
            self.fallback,
            share,
        )
    }
}
