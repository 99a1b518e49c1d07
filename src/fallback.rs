//! [`Fallback`]: what decides while Redis is unavailable.

use crate::config_error::ConfigError;

/// What decides while Redis is unavailable: for a limiter
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
    /// The memory of this process decides, with a share of the limit.
    ///
    /// The share starts from the same part of the last reported level. What it admits is charged to
    /// Redis after the recovery. A reservation that Redis has made for a waiting request is taken
    /// from the share when it is due.
    ///
    /// The shares of `n` processes together may admit more than the limit:
    ///
    /// - a capacity less one share, if the other processes did not know how low the level was;
    /// - `n` tokens less the capacity if a share is less than one token, or `n` times the cost of a
    ///   request less the capacity if a share is less than that, because a full share admits such a
    ///   request.
    LocalShare(Share),
    /// [`LocalShare`](Self::LocalShare), but each share starts empty, and none admits more than it
    /// holds.
    ///
    /// While Redis is unavailable to all processes, they stay within the limit together, unless
    /// there are more of them than were counted. If it is unavailable to some processes only, these
    /// admit their shares in addition to what Redis admits: see
    /// [`reserve_for`](crate::LimiterBuilder::reserve_for).
    ///
    /// Requests are rejected until the shares have filled. A cost over the share is rejected with
    /// [`Reason::Unavailable`](crate::Reason::Unavailable): with a capacity of 2 and five processes,
    /// that is every request.
    StrictShare(Share),
    /// Every request is admitted. Such permits are degraded.
    FailOpen,
    /// Every request is rejected with [`Reason::Unavailable`](crate::Reason::Unavailable).
    FailClosed,
}

impl Fallback {
    /// The share of the limit, if memory decides.
    pub(crate) const fn share(self) -> Option<Share> {
        match self {
            Self::LocalShare(share) | Self::StrictShare(share) => Some(share),
            Self::FailOpen | Self::FailClosed => None,
        }
    }

    pub(crate) fn check(self) -> Result<(), ConfigError> {
        match self.share() {
            Some(Share::Fixed(part)) if !is_part(part) => Err(ConfigError::new(format!(
                "a fixed share of {part} is invalid: it must be in (0, 1], such as 0.25"
            ))),
            _ => Ok(()),
        }
    }

    pub(crate) const fn assert(self) {
        if let Some(Share::Fixed(part)) = self.share() {
            assert!(
                is_part(part),
                "a fixed share must be in (0, 1], such as 0.25"
            );
        }
    }
}

const fn is_part(part: f64) -> bool {
    part > 0.0 && part <= 1.0
}

/// The part of a limit that this process may spend while Redis is unavailable.
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
    /// An equal part: `1 / n` for the largest number `n` of limiters that were counted through Redis
    /// within the last minute of contact. During the first minute of contact,
    /// [`replicas`](crate::LimiterBuilder::replicas) counts as well.
    Auto,
    /// This part, in (0, 1].
    Fixed(f64),
}
