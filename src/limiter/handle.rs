//! [`Limiter`]: the handle that users clone.

use std::{fmt, sync::Arc, time::Duration};

use tokio::sync::watch;

use super::{
    acquire::Acquire,
    bucket::BucketHandle,
    builder::LimiterBuilder,
    charge::{Charged, Origins},
    core::Core,
    permit::Permit,
    queue::Backends,
};
#[cfg(feature = "redis")]
use crate::config_error::ConfigError;
use crate::{
    decision::{Failure, FailureKind},
    scope::{IntoScopes, Scope, Scopes},
    telemetry::Health,
};

/// Takes tokens for scopes, from Redis or from memory.
///
/// Every clone shares the same buckets. With Redis, so do all processes that use the same Redis
/// and the same key prefix.
///
/// # Runtimes
///
/// The background tasks (calls to Redis, wake-ups of waiters) run on the Tokio runtime that first
/// needed them. They need its timer and, for Redis, its I/O (`enable_all`). Another runtime may use
/// the same limiter. It takes the tasks over
///
/// - at once, if their runtime is shut down;
/// - if their runtime is not driven (a `current_thread` runtime outside of `block_on`, a thread
///   that blocks): for calls to Redis, after no progress for one and a half times
///   [`redis_timeout`](LimiterBuilder::redis_timeout); for a waiter, 20 ms after its reservation
///   was due.
///
/// The new runtime opens a connection of its own. A call to Redis that is in flight when its
/// runtime is shut down may have been executed. Its requests are made again, and what they took
/// the first time is lost. Its charges and pauses are delivered again, so a charge counts at most
/// twice. Its refunds are lost. Nothing is admitted twice.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tower_throttle::{Limiter, Quota, Scope};
///
/// const API: Scope = Quota::per_second(50.0).burst(1.0).scope("api");
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_throttle::Rejected> {
/// let limiter = Limiter::in_memory();
/// limiter.try_acquire(API).await?;
/// assert!(limiter.try_acquire(API).await.is_err());
/// limiter.acquire(API, Duration::from_secs(1)).await?; // 20 ms later
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Limiter {
    core: Arc<Core>,
}

impl Limiter {
    /// A limiter of this process alone, without Redis.
    ///
    /// ```
    /// # use tower_throttle::{Health, Limiter};
    /// assert_eq!(Limiter::in_memory().health(), Health::InMemory);
    /// ```
    pub fn in_memory() -> Self {
        LimiterBuilder::new().into_memory()
    }

    /// A limiter that shares its buckets through the Redis at `url`: `redis://`, `rediss://`
    /// (feature `tls`), or `unix://`.
    ///
    /// No I/O happens here, so an unreachable Redis never delays a start: the first acquisition
    /// connects.
    ///
    /// While tokio's time is paused (`#[tokio::test(start_paused = true)]`), no reply of Redis comes in
    /// time: tokio ends timers as soon as all tasks are idle, and so before a reply. Requests
    /// are then decided from memory, as in an outage, and the log has the reason. Use
    /// [`in_memory`](Self::in_memory) in such tests: it follows the paused time.
    ///
    /// ```
    /// # use tower_throttle::Limiter;
    /// let limiter = Limiter::redis("redis://127.0.0.1:6379")?;
    /// # Ok::<_, tower_throttle::ConfigError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Returns [`ConfigError`] if the URL is invalid.
    #[cfg(feature = "redis")]
    pub fn redis(url: &str) -> Result<Self, ConfigError> {
        Self::builder().redis(url).build()
    }

    /// Returns a builder of a limiter.
    ///
    /// ```
    /// # use tower_throttle::Limiter;
    /// let limiter = Limiter::builder().max_scopes(10_000).build()?;
    /// # Ok::<_, tower_throttle::ConfigError>(())
    /// ```
    pub fn builder() -> LimiterBuilder {
        LimiterBuilder::new()
    }

    pub(crate) fn from_core(core: Core) -> Self {
        Self {
            core: Arc::new(core),
        }
    }

    /// Takes tokens from all of `scopes` now, or from none. A rejection with
    /// [`Reason::Limited`](crate::Reason) has the time to retry. More than 128 scopes, counted
    /// before equal ones are merged, are rejected with [`Reason::TooManyScopes`](crate::Reason).
    ///
    /// ```
    /// # use tower_throttle::{Limiter, Quota};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let limiter = Limiter::in_memory();
    /// let rpm = Quota::per_minute(1.0).scope("rpm");
    /// let tpm = Quota::per_minute(1_000.0).scope("tpm").cost(600.0);
    /// assert!(limiter.try_acquire([rpm.clone(), tpm.clone()]).await.is_ok());
    /// let rejected = limiter.try_acquire([rpm, tpm]).await.unwrap_err();
    /// assert_eq!(rejected.scope(), "rpm");
    /// # }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost: dropped at any point before it resolves, it gives back what it was
    /// granted.
    ///
    /// # Panics
    ///
    /// As [`acquire`](Self::acquire).
    #[inline]
    pub fn try_acquire(&self, scopes: impl IntoScopes) -> Acquire {
        self.acquire(scopes, Duration::ZERO)
    }

    /// Takes tokens from all of `scopes`, or from none, and waits for up to `max_wait` if need be.
    ///
    /// Time in the queue for Redis counts towards `max_wait`, the call itself does not. A request
    /// whose `max_wait` ends in the queue is sent all the same, without a wait: see
    /// [`redis_timeout`](LimiterBuilder::redis_timeout) for how long it may be queued.
    ///
    /// Requests for one scope that go to Redis in one call are merged if their costs are equal
    /// and their waits are similar. The shortest of these waits counts for all of them, so it may
    /// be up to a 64th shorter than `max_wait`, and never longer.
    ///
    /// Reservations are due in the order in which the backend received the requests, across
    /// processes. They are made at once, so a request whose wait would exceed `max_wait` is
    /// rejected without waiting. A `max_wait` over 30 years counts as 30 years.
    ///
    /// Several scopes are taken together, each within 100 ms of its reservation. If their
    /// reservations are due at different times, the earlier ones are given back and made again. So
    /// a request for several scarce scopes may wait longer than for the slowest of them, and may be
    /// rejected while it waits.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_throttle::{Limiter, Quota};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let limiter = Limiter::in_memory();
    /// let api = Quota::per_second(100.0).burst(1.0).scope("api");
    /// for _ in 0..3 {
    ///     limiter.acquire(&api, Duration::from_secs(1)).await.unwrap();
    /// }
    /// # }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// Dropped before it was sent, it takes nothing. Later, what it was granted or has reserved is
    /// undone. See [`Acquire`].
    ///
    /// # Panics
    ///
    /// If it must wait or ask Redis, and is polled outside a Tokio runtime with a timer
    /// (`enable_time`, `enable_all`). In memory, a decision without a wait needs no runtime.
    #[inline]
    pub fn acquire(&self, scopes: impl IntoScopes, max_wait: Duration) -> Acquire {
        Acquire::new(self.core.clone(), scopes.into_scopes(), max_wait)
    }

    /// Returns a handle that inspects and adjusts the bucket of `scope`.
    ///
    /// ```
    /// # use tower_throttle::{Limiter, Quota};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_throttle::Unavailable> {
    /// let limiter = Limiter::in_memory();
    /// let day = Quota::per_day(10.0).scope("reports");
    /// assert_eq!(limiter.bucket(&day).level().await?, 10.0);
    /// # Ok(()) }
    /// ```
    pub fn bucket(&self, scope: &Scope) -> BucketHandle {
        BucketHandle::new(self.core.clone(), scope.clone())
    }

    /// Lets the peers know that this limiter may pause buckets.
    #[cfg(feature = "learn")]
    pub(crate) fn announce_pauses(&self) {
        if let Some(redis) = &self.core.redis {
            redis.announce_pauses();
        }
    }

    /// Which backend decides. [`reserved`](Self::reserved) is the part of each limit that is reserved
    /// for missing limiters meanwhile.
    ///
    /// ```
    /// # use tower_throttle::{Health, Limiter};
    /// assert!(matches!(Limiter::in_memory().health(), Health::InMemory));
    /// ```
    pub fn health(&self) -> Health {
        self.core.observer.health()
    }

    /// Returns a receiver of the changes of [`health`](Self::health). A slow receiver reads the
    /// latest value.
    ///
    /// A value that is borrowed from the receiver locks it: the background task waits with the next
    /// change until it is returned. Decisions do not wait.
    ///
    /// ```
    /// # use tower_throttle::{Health, Limiter};
    /// let mut changes = Limiter::in_memory().health_changes();
    /// # tokio::runtime::Runtime::new().map(|runtime| { let _in = runtime.enter();
    /// tokio::spawn(async move {
    ///     while changes.changed().await.is_ok() {
    ///         println!("{}", *changes.borrow_and_update());
    ///     }
    /// });
    /// # }).unwrap();
    /// ```
    pub fn health_changes(&self) -> watch::Receiver<Health> {
        self.core.observer.changes()
    }

    /// The part of each limit that is reserved for missing limiters, from 0 to 0.75: they may be cut
    /// off from Redis and admit their shares from memory. It is 0 again after
    /// [`reserve_for`](LimiterBuilder::reserve_for), 0 without Redis, and 0 while Redis is
    /// unavailable.
    ///
    /// ```
    /// # use tower_throttle::Limiter;
    /// assert_eq!(Limiter::in_memory().reserved(), 0.0);
    /// ```
    pub fn reserved(&self) -> f64 {
        match (&self.core.redis, self.health()) {
            (Some(remote), Health::Redis) => remote.reserved(),
            _ => 0.0,
        }
    }

    /// Deregisters from the other limiters, before a planned stop.
    ///
    /// The others reserve a share of each limit for a limiter that falls silent, for
    /// [some seconds](LimiterBuilder::reserve_for), because it may be cut off and admit that share
    /// from memory; for one that has deregistered they do not. Dropping the last clone deregisters
    /// too, and so does the shutdown of the Tokio runtime, which connects once more for that and
    /// blocks for up to 0.5 s where Redis does not answer. A process that is killed, or that ends
    /// by a signal that it does not handle, cannot deregister: see
    /// [`instance`](LimiterBuilder::instance). After this call the limiter still limits, but is no
    /// longer counted as a peer, and gives back its [leases](crate::LimiterBuilder::lease).
    ///
    /// ```
    /// # use tower_throttle::Limiter;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let limiter = Limiter::in_memory();
    /// // … serve until the signal to stop comes, then:
    /// limiter.deregister().await;
    /// # }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// If this is dropped, the limiter may or may not be deregistered.
    ///
    /// # Panics
    ///
    /// On Redis, if it is polled outside a Tokio runtime with a timer.
    pub async fn deregister(&self) {
        if let Some(remote) = &self.core.redis {
            remote.deregister().await;
        }
    }

    /// Returns how many decisions were made without Redis because it was unavailable.
    ///
    /// ```
    /// # use tower_throttle::Limiter;
    /// assert_eq!(Limiter::in_memory().fallbacks(), 0);
    /// ```
    pub fn fallbacks(&self) -> u64 {
        self.core.observer.fallbacks()
    }

    /// Returns how many of the [`fallbacks`](Self::fallbacks) had this reason.
    ///
    /// ```
    /// # use tower_throttle::{FailureKind, Limiter};
    /// assert_eq!(Limiter::in_memory().fallbacks_by(FailureKind::Timeout), 0);
    /// ```
    pub fn fallbacks_by(&self, reason: FailureKind) -> u64 {
        self.core.observer.fallbacks_by(reason)
    }

    /// Returns how many buckets are in this process's memory.
    ///
    /// ```
    /// # use tower_throttle::Limiter;
    /// assert_eq!(Limiter::in_memory().scopes_held(), 0);
    /// ```
    pub fn scopes_held(&self) -> usize {
        self.core.memory.scopes()
    }

    /// Returns how many decisions an overflow bucket made, which several scopes share, because
    /// [`max_scopes`](LimiterBuilder::max_scopes) buckets were held.
    ///
    /// ```
    /// # use tower_throttle::Limiter;
    /// assert_eq!(Limiter::in_memory().overflowed(), 0);
    /// ```
    pub fn overflowed(&self) -> u64 {
        self.core.memory.overflowed()
    }

    /// A background task has panicked.
    pub(crate) fn task_panicked(&self, failure: &Failure) {
        self.core.task_panicked(failure);
    }

    /// See [`Core::decide_locally`].
    #[inline]
    pub(crate) fn decide_locally(
        &self,
        scope: &Scope,
        max_wait: Duration,
        shadow: bool,
    ) -> Option<Result<f64, Duration>> {
        self.core.decide_locally(scope, max_wait, shadow)
    }

    /// As [`acquire`](Self::acquire), if `decide_locally` was tried for a single scope.
    pub(crate) fn acquire_undecided(&self, scopes: Scopes, max_wait: Duration) -> Acquire {
        Acquire::undecided(self.core.clone(), scopes, max_wait)
    }

    /// What stands for no decision at all.
    pub(crate) fn unmetered_permit(&self) -> Permit {
        let origins = Origins::All(self.core.primary());
        let taken = Charged::new(self.core.clone(), Scopes::default(), origins);
        Permit::new(taken, None)
    }

    /// What stands for such a decision.
    pub(crate) fn permit(&self, scope: &Scope, level: f64) -> Permit {
        Permit::at_once(self.core.clone(), scope.into_scopes(), level)
    }

    /// Whether an acquisition of these scopes that Redis is not known to reject is likely to wait.
    pub(crate) fn is_scarce(&self, scopes: &[Scope]) -> bool {
        let queues = &self.core.queues;
        scopes.iter().any(|scope| queues.has_waiters(scope))
    }
}

impl fmt::Debug for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limiter")
            .field("health", &self.health())
            .finish_non_exhaustive()
    }
}
