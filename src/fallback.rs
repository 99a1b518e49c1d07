//! Who decides while Redis cannot be asked.

use crate::config_error::ConfigError;

/// What decides while Redis cannot be asked: for a limiter
/// ([`LimiterBuilder::fallback`](crate::LimiterBuilder::fallback)), or for one scope
/// ([`Scope::fallback`](crate::Scope::fallback)).
///
/// # Examples
///
/// ```
/// use tower_throttle::{Fallback, Limiter, Quota, Scope};
///
/// const LOGIN: Scope = Quota::per_minute(5.0).scope("login").fallback(Fallback::FailClosed);
///
/// let limiter = Limiter::builder().fallback(Fallback::FailOpen).build()?;
/// # let _ = LOGIN;
/// # Ok::<_, tower_throttle::ConfigError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Fallback {
    /// This process's memory, which holds a share of the limit and starts from the share of the
    /// last reported level. What it admits is charged to Redis when that has recovered, and what
    /// Redis reserved for waiting callers is taken from the share when it is due.
    ///
    /// The shares of `n` processes together may admit more than the limit: a capacity less one
    /// share, where the others did not know how low the bucket was, and, where a share is less
    /// than one token or than the cost of a request, `n` of these less the capacity, because a
    /// share admits such a request once it is full.
    LocalShare(Share),
    /// As [`LocalShare`](Self::LocalShare), but each share starts empty, and none admits more than it holds:
    /// while Redis is unavailable to all processes, they stay within the limit together, as long as
    /// no more of them take part than are counted. While only some of them are cut off, these admit
    /// their shares in addition to what Redis admits: see
    /// [`reserve_for`](crate::LimiterBuilder::reserve_for). Until the shares have filled, requests
    /// are rejected. A request whose cost is
    /// over the share is rejected with [`Reason::Unavailable`](crate::Reason::Unavailable): with a
    /// capacity of 2 and five processes, that is every request.
    StrictShare(Share),
    /// Nothing: everybody passes. Such permits say that they are degraded.
    FailOpen,
    /// Nothing: everybody is refused with [`Reason::Unavailable`](crate::Reason::Unavailable).
    FailClosed,
}

impl Fallback {
    /// The share that memory holds, if it does.
    pub(crate) const fn share(self) -> Option<Share> {
        match self {
            Self::LocalShare(share) | Self::StrictShare(share) => Some(share),
            Self::FailOpen | Self::FailClosed => None,
        }
    }

    pub(crate) fn check(self) -> Result<(), ConfigError> {
        match self.share() {
            Some(Share::Fixed(part)) if !is_part(part) => Err(ConfigError::new(format!(
                "a share of {part} is no part of a limit: write a number above 0, at most 1"
            ))),
            _ => Ok(()),
        }
    }

    pub(crate) const fn assert(self) {
        if let Some(Share::Fixed(part)) = self.share() {
            assert!(
                is_part(part),
                "a fixed share is a part of the limit: write a number above 0, at most 1"
            );
        }
    }
}

const fn is_part(part: f64) -> bool {
    part > 0.0 && part <= 1.0
}

/// Which part of a limit this process may spend by itself.
///
/// # Examples
///
/// ```
/// use tower_throttle::{Fallback, Limiter, Share};
///
/// let limiter = Limiter::builder()
///     .fallback(Fallback::LocalShare(Share::Fixed(0.25)))
///     .build()?;
/// # Ok::<_, tower_throttle::ConfigError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Share {
    /// An equal one: one over the largest number of live limiters that were counted through
    /// Redis within the last minute of contact. Until contact has lasted for a minute,
    /// [`replicas`](crate::LimiterBuilder::replicas) counts as well.
    Auto,
    /// This part, above 0 and at most 1.
    Fixed(f64),
}
