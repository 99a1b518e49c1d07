//! What a store says of a demand.

use std::{error::Error, fmt, sync::Arc, time::Duration};

use crate::bucket::Reservation;

/// A store's answer to a demand on one or several buckets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Decision {
    /// All were taken; the tightest of them, and its level after that.
    Now { tightest: usize, level: f64 },
    /// One was taken, for a turn so far from the receipt of this answer.
    Wait {
        which: usize,
        wait: Duration,
        /// What undoes it; none where the store's clock was set back.
        reservation: Option<Reservation>,
    },
    /// None was taken.
    Rejected { which: usize, retry_after: Duration },
}

/// Which store took the tokens, and so takes them back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum DecidedBy {
    /// This process.
    Memory,
    /// This process, with its share of a limit whose store is away.
    LocalShare,
    /// This process, with its share, though Redis decides as well: it has just come back, and
    /// what others spent meanwhile may not be charged yet.
    DualAdmission,
    /// Redis.
    Redis,
    /// None: the policy lets all pass while the store is away.
    Unmetered,
}

/// Why Redis did not decide, in a word.
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
    /// Redis answers, but more requests are queued for it than it decides in time. That is no
    /// outage: it concerns only the requests that are in excess.
    Overloaded,
    /// Redis answers, but cannot decide now: loading, read-only, out of memory and the like.
    Unavailable,
    /// Redis answers, but came back without its data.
    DataLost,
    /// Redis refuses this client: a wrong password, a missing permission, a script that it does
    /// not run.
    Misconfigured,
    /// A background task of the limiter panicked, which is a bug. It is started again.
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

    /// As a metric label.
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

/// A demand that Redis did not decide.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) kind: FailureKind,
    pub(crate) source: Arc<dyn Error + Send + Sync>,
    /// Whether it concerns only the call that met it, as far as anybody can tell.
    pub(crate) single: bool,
    /// Whether Redis may have executed the call all the same.
    pub(crate) sent: bool,
    /// What to do about it, where it does not pass by itself.
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

    /// Nothing was sent, or what was sent had no effect.
    pub(crate) fn unsent(self) -> Self {
        Self {
            sent: false,
            ..self
        }
    }
}
