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
        self.start.elapsed().as_nanos() as f64 / 1e3
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
