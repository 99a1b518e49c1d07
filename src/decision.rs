//! [`Decision`]: the answer of a backend to a request, and why Redis may give none.

use std::{error::Error, fmt, sync::Arc, time::Duration};

use crate::bucket::Reservation;

/// The answer of a backend to a request for tokens of one or several buckets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Decision {
    /// All tokens were taken: the bucket with the smallest part left, and its level after that.
    Now { tightest: usize, level: f64 },
    /// The tokens of one bucket were reserved.
    Wait {
        which: usize,
        /// From the receipt of this answer until the reservation is due.
        wait: Duration,
        /// Cancels the reservation; `None` if the clock of the store was set back.
        reservation: Option<Reservation>,
    },
    /// No tokens were taken.
    Rejected { which: usize, retry_after: Duration },
}

/// The backend that has granted the tokens. They are given back to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum DecidedBy {
    /// The memory of this process.
    Memory,
    /// The local share of this process, because Redis is unavailable.
    LocalShare,
    /// The local share of this process and Redis, in the recovery window: what other processes
    /// have spent from their shares may not be charged to Redis yet.
    DualAdmission,
    /// Redis.
    Redis,
    /// None, because the fallback is `FailOpen` and Redis is unavailable.
    Unmetered,
}

/// The kind of a failure for which Redis did not decide.
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
    /// Redis did not answer within `redis_timeout`.
    Timeout,
    /// There is no connection, or it was lost.
    Disconnected,
    /// Redis answers, but more requests are queued than it decides in time. This is not an outage:
    /// only the excess requests fail.
    Overloaded,
    /// Redis answers, but cannot execute the script: it is loading, read-only or out of memory.
    Unavailable,
    /// Redis answers, but has lost its data.
    DataLost,
    /// Redis rejects this client, because of a wrong password, a missing permission or a script
    /// that it does not run.
    Misconfigured,
    /// A background task of the limiter panicked, which is a bug. The task is restarted.
    Panicked,
}

impl FailureKind {
    pub(crate) const ALL: [Self; 7] = [
        Self::Timeout,
        Self::Disconnected,
        Self::Overloaded,
        Self::Unavailable,
        Self::DataLost,
        Self::Misconfigured,
        Self::Panicked,
    ];

    /// The value of the metric label.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Disconnected => "disconnected",
            Self::Overloaded => "overloaded",
            Self::Unavailable => "unavailable",
            Self::DataLost => "data_lost",
            Self::Misconfigured => "misconfigured",
            Self::Panicked => "panicked",
        }
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// The failure of a request that Redis did not decide.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) kind: FailureKind,
    pub(crate) source: Arc<dyn Error + Send + Sync>,
    /// Whether it may concern one call only, rather than the connection.
    pub(crate) single: bool,
    /// Whether Redis may have executed the call.
    pub(crate) sent: bool,
    /// What the operator must do, if the failure does not end by itself.
    pub(crate) advice: Option<&'static str>,
}

impl Failure {
    pub(crate) fn new(kind: FailureKind, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            kind,
            source: source.into().into(),
            single: false,
            sent: true,
            advice: None,
        }
    }

    /// The same failure of a call that was not sent, or had no effect.
    pub(crate) fn unsent(self) -> Self {
        Self {
            sent: false,
            ..self
        }
    }
}
