//! The time of this process, by tokio's clock, so that paused time works.

use std::time::Duration;

use tokio::time::Instant;

/// Longer waits are shortened to this: no caller needs them, and an `Instant` overflows.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(30 * 365 * 86_400);

/// Time in microseconds since the creation of this clock, as the bucket model uses it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self {
            start: Instant::now(),
        }
    }

    pub(crate) fn now_us(&self) -> f64 {
        self.us_at(Instant::now())
    }

    pub(crate) fn us_at(&self, instant: Instant) -> f64 {
        to_us(instant.saturating_duration_since(self.start))
    }

    pub(crate) fn at_us(&self, us: f64) -> Instant {
        self.start + from_us(us)
    }
}

/// Converts microseconds, rounded up to the nanosecond, to at most [`LONGEST_WAIT`].
pub(crate) fn from_us(us: f64) -> Duration {
    const MOST: f64 = LONGEST_WAIT.as_nanos() as f64;
    Duration::from_nanos(ceil(us * 1e3).clamp(0.0, MOST) as u64)
}

/// Like `f64::ceil`, which on most targets calls the C library.
#[inline]
pub(crate) fn ceil(x: f64) -> f64 {
    /// From here on `f64` has no fractions.
    const WHOLE: f64 = (1u64 << 52) as f64;
    if x.abs() < WHOLE {
        let whole = x as i64 as f64;
        if whole < x { whole + 1.0 } else { whole }
    } else {
        x
    }
}

/// Converts to microseconds, at most [`LONGEST_WAIT`].
pub(crate) fn to_us(duration: Duration) -> f64 {
    let duration = duration.min(LONGEST_WAIT);
    duration.as_secs() as i64 as f64 * 1e6 + f64::from(duration.subsec_nanos()) / 1e3
}

#[cfg(test)]
mod tests;
