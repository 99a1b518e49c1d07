//! The time of this process.
//!
//! Tokio's time can be paused in a build in which tokio has the feature `test-util`, and only there.
//! In such a build all times are tokio's. In others the [`Counter`] of the processor replaces it,
//! because each decision in memory reads the time and the counter takes a third of the time.

mod counter;

use std::time::Duration;

use tokio::time::Instant;

use self::counter::Counter;

/// Longer waits are shortened to this: no caller needs them, and an `Instant` overflows.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(30 * 365 * 86_400);

/// Time in microseconds since the start of this clock, as the bucket model uses it.
///
/// It may step back, by up to a millisecond: between threads, and when the counter is corrected.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
    /// `None` if tokio is asked.
    counter: Option<&'static Counter>,
}

impl Clock {
    pub(crate) fn new() -> Self {
        match CAN_BE_PAUSED {
            true => Self::of_tokio(),
            false => Self::of_counter(Counter::global()),
        }
    }

    fn of_tokio() -> Self {
        Self {
            start: Instant::now(),
            counter: None,
        }
    }

    fn of_counter(counter: &'static Counter) -> Self {
        Self {
            start: counter.start(),
            counter: Some(counter),
        }
    }

    #[inline]
    pub(crate) fn now_us(&self) -> f64 {
        match self.counter {
            Some(counter) => counter.now_us(),
            None => self.us_at(Instant::now()),
        }
    }

    /// The present time by tokio's clock, to be compared with that of other instants: the counter
    /// may differ from it by up to a millisecond.
    pub(crate) fn instant_us(&self) -> f64 {
        self.us_at(Instant::now())
    }

    pub(crate) fn us_at(&self, instant: Instant) -> f64 {
        to_us(instant.saturating_duration_since(self.start))
    }

    pub(crate) fn at_us(&self, us: f64) -> Instant {
        self.start + from_us(us)
    }
}

/// Whether `tokio::time::pause` exists in this build.
///
/// The choice cannot be made at run time: time may be paused after a limiter was made, and to ask
/// tokio takes as long as to read its clock.
const CAN_BE_PAUSED: bool = {
    // Without the feature the glob imports no `pause`, so that the name is that of the function
    // below.
    #[allow(unused_imports, reason = "of `pause` only, which may not exist")]
    use tokio::time::*;
    is_of_tokio(pause)
};

struct Missing;

#[allow(dead_code, reason = "see `CAN_BE_PAUSED`")]
fn pause() -> Missing {
    Missing
}

trait Answer {
    const IS_OF_TOKIO: bool;
}

impl Answer for () {
    const IS_OF_TOKIO: bool = true;
}

impl Answer for Missing {
    const IS_OF_TOKIO: bool = false;
}

const fn is_of_tokio<T: Answer>(_pause: fn() -> T) -> bool {
    T::IS_OF_TOKIO
}

/// Converts microseconds, rounded up to the nanosecond, to at most [`LONGEST_WAIT`].
#[inline]
pub(crate) fn from_us(us: f64) -> Duration {
    const MOST: i64 = LONGEST_WAIT.as_nanos() as i64;
    let ns = us * 1e3;
    // Signed numbers, and no `f64::ceil` before: a rejection converts one on its way.
    let whole = ns as i64;
    let ceil = whole.saturating_add(i64::from((whole as f64) < ns));
    Duration::from_nanos(ceil.clamp(0, MOST) as u64)
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
