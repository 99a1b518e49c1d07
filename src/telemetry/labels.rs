//! The values of metric labels.

use crate::{decision::DecidedBy, rejected::Reason};

/// How an acquisition ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Admitted,
    Rejected,
    /// The cost exceeds the capacity.
    Impossible,
    Unavailable,
    /// The future was dropped before the decision, or before its reservation was due.
    Cancelled,
    /// Rejected by a layer in shadow mode, so the request was served.
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
            Reason::ExceedsCapacity | Reason::TooManyScopes => Self::Impossible,
            Reason::Unavailable => Self::Unavailable,
        }
    }
}

/// Which backend decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    Redis,
    /// This process, by configuration.
    Memory,
    /// This process, because Redis is unavailable.
    Share,
}

impl Backend {
    #[cfg(feature = "metrics")]
    pub(super) const ALL: [&str; 3] = ["redis", "memory", "share"];
}

impl From<DecidedBy> for Backend {
    fn from(decided_by: DecidedBy) -> Self {
        match decided_by {
            DecidedBy::Redis | DecidedBy::DualAdmission => Self::Redis,
            DecidedBy::Memory => Self::Memory,
            DecidedBy::LocalShare | DecidedBy::Unmetered => Self::Share,
        }
    }
}

/// Why tokens were charged or returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cost {
    /// Taken by an acquisition.
    Reserved,
    /// Charged later, because more was used.
    Settled,
    /// Returned, because less was used, or nothing.
    Refunded,
}

impl Cost {
    #[cfg(feature = "metrics")]
    pub(super) const ALL: [&str; 3] = ["reserved", "settled", "refunded"];
}
