//! What operators see: health, one log line per transition, counters.

use std::{
    fmt,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tokio::time::Instant;

use crate::decision::{Failure, FailureKind};

/// Which store decides.
///
/// # Examples
///
/// ```
/// use tower_throttle::{Health, Limiter};
///
/// assert_eq!(Limiter::in_memory().health(), Health::InMemory);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Health {
    /// Redis, as far as anybody has noticed: a limiter that was never used has not asked.
    Redis,
    /// This process's memory, because Redis cannot be asked.
    #[non_exhaustive]
    Degraded {
        /// Since when.
        since: Instant,
        /// Why.
        reason: FailureKind,
    },
    /// This process's memory, by configuration.
    InMemory,
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Redis => f.write_str("Redis decides"),
            Self::Degraded { since, reason } => write!(
                f,
                "memory decides for {:.1} s, because Redis cannot be asked: {reason}",
                since.elapsed().as_secs_f64()
            ),
            Self::InMemory => f.write_str("memory decides"),
        }
    }
}

/// Notices when Redis goes and comes back.
#[derive(Default)]
pub(crate) struct Observer {
    degraded: AtomicBool,
    since: Mutex<Option<(Instant, FailureKind)>>,
    fallbacks: AtomicU64,
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observer")
            .field("degraded", &self.degraded)
            .field("fallbacks", &self.fallbacks)
            .finish()
    }
}

impl Observer {
    fn lock(&self) -> MutexGuard<'_, Option<(Instant, FailureKind)>> {
        // The value is replaced as a whole.
        self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since when Redis is away, and why.
    pub(crate) fn degraded(&self) -> Option<(Instant, FailureKind)> {
        *self.lock()
    }

    /// Decisions made from memory because Redis was away.
    pub(crate) fn fallbacks(&self) -> u64 {
        self.fallbacks.load(Ordering::Relaxed)
    }

    pub(crate) fn redis_fails(&self, failure: &Failure) {
        let mut since = self.lock();
        let known = since.is_some_and(|(_, kind)| {
            // A misconfiguration is said even when an outage is known, because it does not
            // pass by itself.
            kind == failure.kind || failure.kind != FailureKind::Misconfigured
        });
        if known {
            return;
        }
        let start = since.map_or_else(Instant::now, |(start, _)| start);
        *since = Some((start, failure.kind));
        self.degraded.store(true, Ordering::Relaxed);
        drop(since);
        #[cfg(feature = "metrics")]
        metrics::gauge!("tower_throttle_degraded").set(1.0);
        #[cfg(feature = "tracing")]
        tracing::warn!(
            reason = %failure.kind,
            error = %failure.source,
            "{}",
            match failure.kind {
                FailureKind::Misconfigured =>
                    "Redis refuses this client: check its password, its rights (EVALSHA, EVAL, \
                     TIME, GET, MGET, SET on the key prefix) and the database number; deciding \
                     from memory until it is mended",
                _ => "Redis cannot be asked; deciding from memory",
            }
        );
    }

    pub(crate) fn redis_answers(&self) {
        if !self.degraded.swap(false, Ordering::Relaxed) {
            return;
        }
        let since = self.lock().take();
        #[cfg(feature = "metrics")]
        metrics::gauge!("tower_throttle_degraded").set(0.0);
        #[cfg(feature = "tracing")]
        tracing::info!(
            away_seconds = since.map_or(0.0, |(since, _)| since.elapsed().as_secs_f64()),
            "Redis answers again"
        );
        let _ = since;
    }

    /// A decision was made without Redis.
    pub(crate) fn fell_back(&self, kind: FailureKind) {
        self.fallbacks.fetch_add(1, Ordering::Relaxed);
        #[cfg(feature = "metrics")]
        metrics::counter!("tower_throttle_fallback_total", "reason" => kind.label()).increment(1);
        let _ = kind.label();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_transition_each_way() {
        let observer = Observer::default();
        observer.redis_answers();
        assert!(observer.degraded().is_none());
        observer.redis_fails(&Failure::new(FailureKind::Timeout, "slow"));
        let first = observer.degraded().expect("degraded");
        observer.redis_fails(&Failure::new(FailureKind::Disconnected, "gone"));
        assert_eq!(
            observer.degraded(),
            Some(first),
            "an outage is one transition"
        );
        observer.redis_fails(&Failure::new(FailureKind::Misconfigured, "NOPERM"));
        assert_eq!(
            observer.degraded(),
            Some((first.0, FailureKind::Misconfigured))
        );
        observer.redis_answers();
        assert!(observer.degraded().is_none());
    }
}
