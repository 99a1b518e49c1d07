//! Which backend decides.

use std::fmt;

use tokio::time::Instant;

use crate::decision::FailureKind;

/// Which backend decides on acquisitions.
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
    /// Redis. A limiter that has not connected yet, because it was not used, also reports this.
    Redis,
    /// The memory of this process, because Redis is unavailable.
    #[non_exhaustive]
    Degraded {
        /// When the outage was detected.
        since: Instant,
        /// Why Redis is unavailable.
        reason: FailureKind,
    },
    /// The memory of this process, by configuration.
    InMemory,
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Redis => f.write_str("Redis"),
            Self::Degraded { since, reason } => write!(
                f,
                "degraded for {:.1} s: Redis is unavailable ({reason})",
                since.elapsed().as_secs_f64()
            ),
            Self::InMemory => f.write_str("memory"),
        }
    }
}
