//! [`Quota`]: how many tokens in which time.

use std::{
    fmt,
    hash::{Hash, Hasher},
    time::Duration,
};

use crate::{bucket::BucketParams, config_error::ConfigError};

pub(super) const NANOS_PER_SEC: u64 = 1_000_000_000;

/// 2^53: up to here a double counts single tokens.
const MAX: f64 = (1u64 << 53) as f64;

/// A limit: a bucket of [`capacity`](Self::capacity) tokens that refills at
/// [`rate`](Self::rate) tokens per second.
///
/// Over any window of `w` seconds a bucket admits at most `capacity + rate * w` tokens (the
/// token bucket of ITU-T I.371 and RFC 2697, with a real-valued level). Fifty per second means
/// fifty in a second. The burst defaults to one period's worth of tokens, and to one token where
/// that is less: the default cost of a request is one token, so a smaller bucket would pass none.
/// Where costs are parts of a token, such as prices, choose a unit of which the smallest burst is at
/// least one.
///
/// A capacity over 2^53 tokens (9,007,199,254,740,992) is cut to that, because from there on a
/// double does not count single tokens. So `Quota::per_second(u64::MAX as f64)` limits nothing in
/// practice; to have no limit, leave the scope out.
///
/// The constructors are `const` and panic if a limit makes no sense: where it is written as a
/// constant, that is a compile error. For numbers that come from a configuration there are
/// [`try_per`](Self::try_per), [`try_burst`](Self::try_burst) and the text form, which return
/// errors.
///
/// # Examples
///
/// ```
/// use tower_throttle::Quota;
///
/// const API: Quota = Quota::per_minute(60.0).burst(20.0);
/// assert_eq!(API.capacity(), 20.0);
/// assert_eq!(API.rate(), 1.0);
/// assert_eq!(API.to_string(), "60/min burst 20");
/// assert_eq!("60 per minute burst 20".parse::<Quota>().unwrap(), API);
/// ```
///
/// ```compile_fail
/// # use tower_throttle::Quota;
/// const NONE: Quota = Quota::per_second(0.0); // "write a rate above zero"
/// ```
///
/// ```compile_fail
/// # use tower_throttle::Quota;
/// const SMALL: Quota = Quota::per_second(5.0).burst(0.5); // "at least 1"
/// ```
#[derive(Clone, Copy)]
pub struct Quota {
    pub(super) capacity: f64,
    /// Tokens per microsecond, which each decision needs: a division takes as long as all the rest
    /// of its arithmetic.
    pub(super) per_us: f64,
    pub(super) tokens: f64,
    pub(super) period_ns: u64,
}

impl Quota {
    /// `tokens` every second.
    ///
    /// ```
    /// # use tower_throttle::Quota;
    /// assert_eq!(Quota::per_second(50.0).rate(), 50.0);
    /// ```
    ///
    /// # Panics
    ///
    /// If `tokens` is zero, negative, NaN or infinite; in a `const`, a compile error.
    #[track_caller]
    pub const fn per_second(tokens: f64) -> Self {
        Self::every(NANOS_PER_SEC, tokens)
    }

    /// `tokens` every minute.
    ///
    /// ```
    /// # use tower_throttle::Quota;
    /// assert_eq!(Quota::per_minute(90.0).rate(), 1.5);
    /// ```
    ///
    /// # Panics
    ///
    /// As [`per_second`](Self::per_second).
    #[track_caller]
    pub const fn per_minute(tokens: f64) -> Self {
        Self::every(60 * NANOS_PER_SEC, tokens)
    }

    /// `tokens` every hour.
    ///
    /// ```
    /// # use tower_throttle::Quota;
    /// assert_eq!(Quota::per_hour(7_200.0).rate(), 2.0);
    /// ```
    ///
    /// # Panics
    ///
    /// As [`per_second`](Self::per_second).
    #[track_caller]
    pub const fn per_hour(tokens: f64) -> Self {
        Self::every(3_600 * NANOS_PER_SEC, tokens)
    }

    /// `tokens` every 24 hours.
    ///
    /// ```
    /// # use tower_throttle::Quota;
    /// assert_eq!(Quota::per_day(86_400.0).rate(), 1.0);
    /// ```
    ///
    /// # Panics
    ///
    /// As [`per_second`](Self::per_second).
    #[track_caller]
    pub const fn per_day(tokens: f64) -> Self {
        Self::every(86_400 * NANOS_PER_SEC, tokens)
    }

    /// `tokens` every `period`, whatever its length.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_throttle::Quota;
    /// assert_eq!(Quota::per(Duration::from_millis(500), 5.0).rate(), 10.0);
    /// ```
    ///
    /// # Panics
    ///
    /// If `tokens` is zero, negative, NaN or infinite, if `period` is zero or longer than 584
    /// years; in a `const`, a compile error.
    #[track_caller]
    pub const fn per(period: Duration, tokens: f64) -> Self {
        match Self::checked(period.as_nanos(), tokens) {
            Ok(quota) => quota,
            Err(problem) => panic!("{}", problem),
        }
    }

    /// As [`per`](Self::per), for numbers that may be wrong, such as those of a configuration.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_throttle::Quota;
    /// let second = Duration::from_secs(1);
    /// assert_eq!(Quota::try_per(second, 5.0).unwrap(), Quota::per_second(5.0));
    /// let error = Quota::try_per(second, 0.0).unwrap_err();
    /// assert!(error.to_string().contains("above zero"));
    /// ```
    ///
    /// # Errors
    ///
    /// Returns [`ConfigError`] where `per` panics.
    pub fn try_per(period: Duration, tokens: f64) -> Result<Self, ConfigError> {
        Self::checked(period.as_nanos(), tokens).map_err(ConfigError::new)
    }

    /// The same rate with room for `tokens` at once, at least one.
    ///
    /// ```
    /// # use tower_throttle::Quota;
    /// assert_eq!(Quota::per_second(10.0).burst(50.0).capacity(), 50.0);
    /// ```
    ///
    /// # Panics
    ///
    /// If `tokens` is below one, NaN or infinite; in a `const`, a compile error.
    #[track_caller]
    pub const fn burst(self, tokens: f64) -> Self {
        match self.with_burst(tokens) {
            Ok(quota) => quota,
            Err(problem) => panic!("{}", problem),
        }
    }

    /// As [`burst`](Self::burst), for numbers that may be wrong, such as those of a configuration.
    ///
    /// ```
    /// # use tower_throttle::Quota;
    /// let quota = Quota::per_second(10.0);
    /// assert_eq!(quota.try_burst(50.0).unwrap(), quota.burst(50.0));
    /// assert!(quota.try_burst(0.5).is_err());
    /// ```
    ///
    /// # Errors
    ///
    /// Returns [`ConfigError`] where `burst` panics.
    pub fn try_burst(self, tokens: f64) -> Result<Self, ConfigError> {
        self.with_burst(tokens).map_err(ConfigError::new)
    }

    /// Most tokens that may go at once.
    ///
    /// ```
    /// # use tower_throttle::Quota;
    /// assert_eq!(Quota::per_second(10.0).capacity(), 10.0);
    /// ```
    pub const fn capacity(&self) -> f64 {
        self.capacity
    }

    /// Tokens per second.
    ///
    /// ```
    /// # use tower_throttle::Quota;
    /// assert_eq!(Quota::per_minute(6.0).rate(), 0.1);
    /// ```
    pub const fn rate(&self) -> f64 {
        rate(self.tokens, self.period_ns)
    }

    /// The parameters of its buckets.
    #[inline]
    pub(crate) const fn params(&self) -> BucketParams {
        BucketParams {
            capacity: self.capacity,
            per_us: self.per_us,
        }
    }

    #[track_caller]
    const fn every(period_ns: u64, tokens: f64) -> Self {
        match Self::checked(period_ns as u128, tokens) {
            Ok(quota) => quota,
            Err(problem) => panic!("{}", problem),
        }
    }

    pub(super) const fn checked(period_ns: u128, tokens: f64) -> Result<Self, &'static str> {
        if period_ns == 0 {
            return Err("the period of a quota is zero: write a longer one");
        }
        if period_ns > u64::MAX as u128 {
            return Err("the period of a quota is over 584 years: write a shorter one");
        }
        if !(tokens > 0.0 && tokens.is_finite()) {
            return Err(
                "the rate of a quota is not a number above zero: write a rate above zero, or leave \
                 the limit out",
            );
        }
        let period_ns = period_ns as u64;
        let rate = rate(tokens, period_ns);
        // Else it is not a number of tokens per microsecond.
        if !(rate >= 1e-300 && rate.is_finite()) {
            return Err(
                "the rate of a quota does not fit a double: write one between 1e-300 and 1e300 a \
                 second",
            );
        }
        Ok(Self {
            capacity: default_burst(tokens),
            // A bucket is full after a microsecond anyway, and no wait makes this infinite.
            per_us: (rate / 1e6).min(MAX),
            tokens,
            period_ns,
        })
    }

    const fn with_burst(self, tokens: f64) -> Result<Self, &'static str> {
        if !(tokens >= 1.0 && tokens.is_finite()) {
            return Err(
                "the burst of a quota is not a number from 1: write how many tokens may go at once, \
                 at least 1, which is the default cost of a request",
            );
        }
        Ok(Self {
            capacity: tokens.min(MAX),
            ..self
        })
    }
}

const fn rate(tokens: f64, period_ns: u64) -> f64 {
    tokens / (period_ns as f64 / NANOS_PER_SEC as f64)
}

pub(super) const fn default_burst(tokens: f64) -> f64 {
    tokens.clamp(1.0, MAX)
}

/// Two quotas are equal if they have the same rate and burst, however they were written.
impl PartialEq for Quota {
    fn eq(&self, other: &Self) -> bool {
        self.capacity == other.capacity && self.rate() == other.rate()
    }
}

impl Eq for Quota {}

impl Hash for Quota {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.capacity.to_bits().hash(state);
        self.rate().to_bits().hash(state);
    }
}

impl fmt::Debug for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Quota({self})")
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
