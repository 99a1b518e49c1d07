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
    let nanos = (us * 1e3).ceil().clamp(0.0, LONGEST_WAIT.as_nanos() as f64);
    Duration::from_nanos(nanos as u64)
}

pub(crate) fn to_us(duration: Duration) -> f64 {
    duration.min(LONGEST_WAIT).as_nanos() as f64 / 1e3
}
