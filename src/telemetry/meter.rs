//! [`Meter`]: what is counted, and where the feature `metrics` is off, nothing.

use std::time::Duration;

use crate::{
    decision::{DecidedBy, FailureKind},
    error::Reason,
    scope::Scope,
};

/// How an acquisition ended.
#[cfg_attr(
    not(feature = "metrics"),
    allow(dead_code, reason = "nothing is counted without the feature")
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Admitted,
    Rejected,
    Impossible,
    Unavailable,
    /// Whoever asked went away before it was decided, or before its turn came.
    Cancelled,
    /// It would have been refused, by a layer that only watches.
    ShadowRejected,
}

impl Outcome {
    #[cfg(feature = "metrics")]
    pub(super) const ALL: [&str; 6] = [
        "admitted",
        "rejected",
        "impossible",
        "unavailable",
        "cancelled",
        "shadow_rejected",
    ];

    pub(crate) fn of(reason: Reason, shadow: bool) -> Self {
        match reason {
            _ if shadow => Self::ShadowRejected,
            Reason::Limited => Self::Rejected,
            Reason::ExceedsCapacity => Self::Impossible,
            Reason::Unavailable => Self::Unavailable,
        }
    }
}

/// Who decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    Redis,
    /// This process, by configuration.
    Memory,
    /// This process, because Redis could not be asked.
    Share,
}

impl Backend {
    #[cfg(feature = "metrics")]
    pub(super) const ALL: [&str; 3] = ["redis", "memory", "share"];
}

impl From<DecidedBy> for Backend {
    fn from(origin: DecidedBy) -> Self {
        match origin {
            DecidedBy::Redis | DecidedBy::DualAdmission => Self::Redis,
            DecidedBy::Memory => Self::Memory,
            DecidedBy::LocalShare | DecidedBy::Unmetered => Self::Share,
        }
    }
}

/// Which way tokens went.
#[cfg_attr(
    not(feature = "metrics"),
    allow(dead_code, reason = "nothing is counted without the feature")
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cost {
    /// Taken by an acquisition.
    Reserved,
    /// Charged on top, because more was used.
    Settled,
    /// Given back, because less was used, or nothing.
    Refunded,
}

impl Cost {
    #[cfg(feature = "metrics")]
    pub(super) const ALL: [&str; 3] = ["reserved", "settled", "refunded"];
}

/// Counts for one limiter.
///
/// Handles are kept by each thread for the recorder that it has at the moment, so that nothing is
/// locked, nothing is allocated once a thread knows a policy, and a recorder may be installed
/// late, or for one thread only.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meter {
    #[cfg(feature = "metrics")]
    id: u64,
}

#[cfg_attr(
    not(feature = "metrics"),
    allow(
        unused_variables,
        clippy::unused_self,
        reason = "nothing is counted without the feature"
    )
)]
impl Meter {
    pub(crate) fn new() -> Self {
        Self {
            #[cfg(feature = "metrics")]
            id: super::handles::next_id(),
        }
    }

    /// One acquisition took from this scope.
    #[inline]
    pub(crate) fn admitted(self, scope: &Scope, backend: Backend) {
        #[cfg(feature = "metrics")]
        super::handles::with(self.id, |handles, recorder| {
            let policy = handles.policy(scope.name());
            policy.count(recorder, Outcome::Admitted, backend);
            policy.cost(recorder, Cost::Reserved, scope.tokens());
        });
    }

    /// One acquisition ended otherwise.
    #[inline]
    pub(crate) fn ended(self, policy: &str, outcome: Outcome, backend: Backend) {
        #[cfg(feature = "metrics")]
        super::handles::with(self.id, |handles, recorder| {
            handles.policy(policy).count(recorder, outcome, backend);
        });
    }

    /// An acquisition slept until its turn came, and was admitted.
    pub(crate) fn waited(self, scope: &Scope, wait: Duration) {
        #[cfg(feature = "metrics")]
        super::handles::with(self.id, |handles, recorder| {
            handles.policy(scope.name()).wait(recorder, wait);
        });
    }

    /// Tokens that were charged or given back after the acquisition.
    pub(crate) fn corrected(self, scope: &Scope, cost: Cost, tokens: f64) {
        #[cfg(feature = "metrics")]
        super::handles::with(self.id, |handles, recorder| {
            handles.policy(scope.name()).cost(recorder, cost, tokens);
        });
    }

    /// The queue in front of Redis was so long, and is so long now.
    pub(crate) fn queue(self, before: usize, now: usize) {
        #[cfg(feature = "metrics")]
        if before != now {
            super::handles::with(self.id, |handles, recorder| {
                handles.queue(recorder, now as f64 - before as f64);
            });
        }
    }

    /// More buckets are held in memory, or, below zero, fewer.
    pub(crate) fn scopes(self, more: f64) {
        #[cfg(feature = "metrics")]
        if more != 0.0 {
            super::handles::with(self.id, |handles, recorder| handles.scopes(recorder, more));
        }
    }

    /// A bucket of the scope `name` was one that several scopes share.
    pub(crate) fn overflowed(self, name: &[u8]) {
        #[cfg(feature = "metrics")]
        super::handles::with(self.id, |handles, recorder| {
            // A long name is known by its hash only.
            let name = std::str::from_utf8(name).unwrap_or(super::handles::OTHER);
            handles.policy(name).overflow(recorder);
        });
    }

    /// A decision was made without Redis, as it could not be asked.
    pub(crate) fn fell_back(self, kind: FailureKind) {
        #[cfg(feature = "metrics")]
        super::handles::with(self.id, |handles, recorder| {
            handles.fell_back(recorder, kind);
        });
    }

    /// Redis was called for so many demands and corrections, and took so long to answer or to
    /// fail.
    pub(crate) fn call(self, commands: usize, took: Duration) {
        #[cfg(feature = "metrics")]
        super::handles::with(self.id, |handles, recorder| {
            handles.call(recorder, commands, took);
        });
    }
}
