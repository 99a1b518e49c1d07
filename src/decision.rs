//! What a store says of a demand.

use std::{error::Error, fmt, sync::Arc, time::Duration};

/// A store's answer to a demand on one or several buckets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Decision {
    /// All were taken; the tightest of them, and its level after that.
    Now { tightest: usize, level: f64 },
    /// One was taken, for a turn so far from the receipt of this answer.
    Wait { which: usize, wait: Duration },
    /// None was taken.
    Refused { which: usize, retry_after: Duration },
}

/// Which store took the tokens, and so takes them back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Origin {
    /// This process.
    Memory,
    /// This process, with its share of a limit whose store is away.
    Share,
    /// Redis.
    Redis,
    /// None: the policy lets all pass while the store is away.
    Nowhere,
}

/// Why Redis did not answer, in a word.
///
/// # Examples
///
/// ```
/// use tower_throttle::FailureKind;
/// assert_eq!(FailureKind::Timeout.to_string(), "timeout");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FailureKind {
    /// No answer within `redis_timeout`.
    Timeout,
    /// No connection, or it was lost.
    Disconnected,
    /// More demands are queued than the limiter holds.
    Overloaded,
    /// Redis answers, but cannot decide now: loading, read-only, out of memory and the like.
    Unavailable,
    /// Redis refuses this client: a wrong password, a missing permission, a script that it does
    /// not run.
    Misconfigured,
}

impl FailureKind {
    /// As a metric label.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Disconnected => "disconnected",
            Self::Overloaded => "overloaded",
            Self::Unavailable => "unavailable",
            Self::Misconfigured => "misconfigured",
        }
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// A demand that Redis did not decide.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) kind: FailureKind,
    pub(crate) source: Arc<dyn Error + Send + Sync>,
}

impl Failure {
    pub(crate) fn new(kind: FailureKind, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            kind,
            source: source.into().into(),
        }
    }
}
