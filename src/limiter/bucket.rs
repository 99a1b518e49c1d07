//! [`BucketHandle`]: one bucket, for operators and for what an upstream reports.

use std::{error::Error, fmt, sync::Arc, time::Duration};

use super::core::Core;
use crate::{
    decision::{Failure, FailureKind},
    scope::Scope,
};

/// Inspects and adjusts one bucket; made by [`Limiter::bucket`](crate::Limiter::bucket).
///
/// [`adjust`](Self::adjust) and [`pause`](Self::pause) are sent to Redis in the background, after its
/// recovery if it is unavailable. If a call fails, charges and pauses are repeated, and added tokens
/// are repeated only if Redis has certainly not executed the call.
/// [`level`](Self::level), [`reset`](Self::reset) and [`cap_level`](Self::cap_level) need Redis, so
/// they are async and return [`Unavailable`] if it cannot be reached. In memory nothing fails.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tower_throttle::{Limiter, Quota};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_throttle::Unavailable> {
/// let limiter = Limiter::in_memory();
/// let day = Quota::per_day(10.0).scope("reports");
/// let bucket = limiter.bucket(&day);
/// bucket.adjust(-4.0);
/// assert_eq!(bucket.level().await?.floor(), 6.0);
/// bucket.pause(Duration::from_secs(60));
/// assert!(limiter.try_acquire(&day).await.is_err());
/// bucket.reset().await?;
/// assert!(limiter.try_acquire(&day).await.is_ok());
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct BucketHandle {
    core: Arc<Core>,
    scope: Scope,
}

impl BucketHandle {
    pub(super) fn new(core: Arc<Core>, scope: Scope) -> Self {
        Self { core, scope }
    }

    /// Returns the level in tokens, without taking any. Below zero: tokens that waiters have
    /// reserved, or debt.
    ///
    /// ```
    /// # use tower_throttle::{Limiter, Quota};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_throttle::Unavailable> {
    /// let limiter = Limiter::in_memory();
    /// let day = Quota::per_day(10.0).scope("reports");
    /// limiter.try_acquire(&day).await.unwrap();
    /// assert_eq!(limiter.bucket(&day).level().await?.floor(), 9.0);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// Returns [`Unavailable`] if Redis cannot be reached;
    /// [`local_level`](Unavailable::local_level) is then the level of the local share.
    ///
    /// # Cancel safety
    ///
    /// Changes nothing.
    ///
    /// # Panics
    ///
    /// On Redis, if polled outside a Tokio runtime with a timer.
    pub async fn level(&self) -> Result<f64, Unavailable> {
        self.result(self.core.level(&self.scope).await)
    }

    /// Fills the bucket and ends a [pause](Self::pause). Reservations stay.
    ///
    /// ```
    /// # use tower_throttle::{Limiter, Quota};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_throttle::Unavailable> {
    /// let limiter = Limiter::in_memory();
    /// let day = Quota::per_day(1.0).scope("reports");
    /// limiter.try_acquire(&day).await.unwrap();
    /// limiter.bucket(&day).reset().await?;
    /// assert!(limiter.try_acquire(&day).await.is_ok());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// Returns [`Unavailable`] if Redis cannot be reached. The bucket in the memory of this process
    /// is reset nevertheless.
    ///
    /// # Cancel safety
    ///
    /// Once polled, the reset may happen even if this is dropped.
    ///
    /// # Panics
    ///
    /// On Redis, if polled outside a Tokio runtime with a timer.
    pub async fn reset(&self) -> Result<(), Unavailable> {
        self.result(self.core.reset(&self.scope).await).map(|_| ())
    }

    /// Caps the level at `level` tokens, for example at the remainder that an upstream reports.
    /// Never raises it; reservations stay. A negative number counts as zero, NaN changes nothing.
    ///
    /// ```
    /// # use tower_throttle::{Limiter, Quota};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_throttle::Unavailable> {
    /// let limiter = Limiter::in_memory();
    /// let bucket = limiter.bucket(&Quota::per_hour(10.0).scope("api"));
    /// bucket.cap_level(3.0).await?;
    /// bucket.cap_level(7.0).await?;
    /// assert_eq!(bucket.level().await?.floor(), 3.0);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// Returns [`Unavailable`] if Redis cannot be reached; the cap is then lost.
    ///
    /// # Cancel safety
    ///
    /// Once polled, the cap may happen even if this is dropped.
    ///
    /// # Panics
    ///
    /// On Redis, if polled outside a Tokio runtime with a timer.
    pub async fn cap_level(&self, level: f64) -> Result<(), Unavailable> {
        self.result(self.core.cap_level_now(&self.scope, level).await)
    }

    /// Adds tokens, at most as many as fill the bucket; a negative number takes them, if need be
    /// into debt, at most one capacity beyond what waiters have reserved. NaN and infinite numbers
    /// change nothing.
    ///
    /// Reservations stay: while callers wait, added tokens go to new requests, which need not wait.
    /// While Redis is unavailable, the local share of this process changes at once, as far as the
    /// last reported level allows, and Redis after its recovery.
    ///
    /// ```
    /// # use tower_throttle::{Limiter, Quota};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_throttle::Unavailable> {
    /// let limiter = Limiter::in_memory();
    /// let bucket = limiter.bucket(&Quota::per_day(10.0).scope("reports"));
    /// bucket.adjust(-4.0);
    /// bucket.adjust(3.0);
    /// assert_eq!(bucket.level().await?.floor(), 9.0);
    /// # Ok(()) }
    /// ```
    pub fn adjust(&self, tokens: f64) {
        self.core.adjust(&self.scope, tokens);
    }

    /// Pauses the bucket: no process is granted a token of it for `duration`. After that it refills
    /// at its rate, without a burst. Use it for the `Retry-After` of an upstream.
    ///
    /// It applies in this process at once, in others from their next reply of Redis for this
    /// bucket. Once any limiter on the same Redis and prefix has paused a bucket, which the
    /// heartbeats report to its peers within 1 s, all of them confirm a reservation before it is
    /// used, with a call to Redis if the last reply for its bucket is older than 25 ms.
    /// Reservations that are due during a pause are made again, within the deadlines of their
    /// callers.
    ///
    /// A shorter pause does not shorten a longer one, and [`reset`](Self::reset) ends it. Tokens that
    /// are given back or charged during the pause are lost, as far as the pause covers them. While
    /// Redis is unavailable, the local share of this process is paused, and the pause is sent to
    /// Redis after its recovery.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_throttle::{Limiter, Quota};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let limiter = Limiter::in_memory();
    /// let api = Quota::per_second(10.0).scope("api");
    /// limiter.bucket(&api).pause(Duration::from_secs(2));
    /// let rejected = limiter.try_acquire(&api).await.unwrap_err();
    /// assert!(rejected.retry_after() > Some(Duration::from_secs(2)));
    /// # }
    /// ```
    pub fn pause(&self, duration: Duration) {
        self.core.pause(&self.scope, duration);
    }

    fn result<T>(&self, result: Result<T, Failure>) -> Result<T, Unavailable> {
        result.map_err(|failure| Unavailable {
            failure,
            local_level: self.core.local_level(&self.scope),
        })
    }
}

impl fmt::Debug for BucketHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BucketHandle")
            .field("scope", &self.scope)
            .finish_non_exhaustive()
    }
}

/// Redis did not answer a call that inspects or adjusts a bucket.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "redis")] {
/// use tower_throttle::{Limiter, Quota};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let limiter = Limiter::redis("redis://127.0.0.1:1").unwrap();
/// let api = Quota::per_second(10.0).scope("api");
/// let unavailable = limiter.bucket(&api).level().await.unwrap_err();
/// assert_eq!(unavailable.local_level(), 10.0);
/// # }
/// # main() }
/// ```
#[derive(Clone, Debug)]
pub struct Unavailable {
    failure: Failure,
    local_level: f64,
}

impl Unavailable {
    /// The level in tokens of the local share, from which this process spends while Redis is
    /// unavailable. It has no meaning for a scope with [`Fallback::FailOpen`](crate::Fallback) or
    /// [`Fallback::FailClosed`](crate::Fallback), which have no share.
    pub fn local_level(&self) -> f64 {
        self.local_level
    }

    /// What went wrong.
    pub fn kind(&self) -> FailureKind {
        self.failure.kind
    }
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Redis did not answer")
    }
}

impl Error for Unavailable {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.failure.source)
    }
}
