//! The time of this process, on tokio's clock, so that paused time works.

use std::time::Duration;

use tokio::time::Instant;

/// Longer waits than this are cut: no caller means them, and an `Instant` cannot hold all.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(30 * 365 * 86_400);

/// Microseconds since this clock was made: what the law reads.
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

/// As a `Duration`, rounded up to the nanosecond.
pub(crate) fn from_us(us: f64) -> Duration {
    const MOST: f64 = LONGEST_WAIT.as_nanos() as f64;
    Duration::from_nanos(ceil(us * 1e3).clamp(0.0, MOST) as u64)
}

/// As `f64::ceil`, which on most targets is a call into the C library.
#[inline]
pub(crate) fn ceil(x: f64) -> f64 {
    /// From here on there are no fractions.
    const WHOLE: f64 = (1u64 << 52) as f64;
    if x.abs() < WHOLE {
        let whole = x as i64 as f64;
        if whole < x { whole + 1.0 } else { whole }
    } else {
        x
    }
}

pub(crate) fn to_us(duration: Duration) -> f64 {
    let duration = duration.min(LONGEST_WAIT);
    duration.as_secs() as i64 as f64 * 1e6 + f64::from(duration.subsec_nanos()) / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ceil_is_ceil() {
        for x in [
            0.0,
            1e-300,
            0.5,
            1.0,
            1.5,
            -0.5,
            -1.5,
            1e9 + 0.25,
            4_503_599_627_370_495.5,
            4_503_599_627_370_496.0,
            1e300,
            f64::INFINITY,
            f64::NEG_INFINITY,
        ] {
            assert_eq!(ceil(x), x.ceil(), "{x}");
        }
        assert!(ceil(f64::NAN).is_nan());
    }
}
