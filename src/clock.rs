//! The time of this process, on tokio's clock, so that paused time works.

use std::time::Duration;

use tokio::time::Instant;

/// Longer waits than this are cut: no caller means them, and an `Instant` cannot hold all.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(30 * 365 * 86_400);

/// The processor's counter stands in for the clock for so long, in microseconds. It may run wrong
/// by a ten thousandth, and whatever it is wrong by is forgotten then.
const TRUSTED_US: f64 = 1_000.0;

/// Between the two readings of an anchor; where more has passed, the thread was interrupted.
const PAIR_US: f64 = 1.0;

/// Microseconds since this clock was made: what the law reads.
#[derive(Debug)]
pub(crate) struct Clock {
    start: Instant,
    /// Read in less than half the time, but only where nobody can pause the time.
    counter: Option<Counter>,
}

#[derive(Debug)]
struct Counter {
    counter: quanta::Clock,
    us_per_tick: f64,
    trusted: u64,
    pair: u64,
}

impl Counter {
    fn new() -> Self {
        const TICKS: u64 = 1 << 40;
        let counter = quanta::Clock::new();
        let ns_per_tick = counter.delta_as_nanos(0, TICKS) as f64 / TICKS as f64;
        Self {
            counter,
            us_per_tick: ns_per_tick / 1e3,
            trusted: (TRUSTED_US / (ns_per_tick / 1e3)) as u64,
            pair: (PAIR_US / (ns_per_tick / 1e3)) as u64,
        }
    }
}

/// What the counter and the clock read at one moment; each shard of a store has its own, so that
/// reading it costs nothing between threads.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Anchor {
    raw: u64,
    us: f64,
}

impl Anchor {
    pub(crate) fn new(raw: u64, us: f64) -> Self {
        Self { raw, us }
    }

    pub(crate) fn parts(self) -> (u64, f64) {
        (self.raw, self.us)
    }
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self::with_counter((!pausable::IS).then(Counter::new))
    }

    fn with_counter(counter: Option<Counter>) -> Self {
        Self {
            start: Instant::now(),
            counter,
        }
    }

    pub(crate) fn now_us(&self) -> f64 {
        self.us_at(Instant::now())
    }

    /// As `now_us`, by the counter where `anchor` is young enough, else by the clock.
    #[inline]
    pub(crate) fn now_by(&self, anchor: &mut Anchor) -> f64 {
        match self.now_from(anchor, 1) {
            Some(now) => now,
            None => self.renew(anchor),
        }
    }

    /// As `now_by`, where the anchor cannot be renewed and a microsecond does not matter.
    #[inline]
    pub(crate) fn now_near(&self, anchor: Anchor) -> Option<f64> {
        match self.counter {
            Some(_) => self.now_from(&anchor, 10),
            None => Some(self.now_us()),
        }
    }

    #[inline]
    fn now_from(&self, anchor: &Anchor, times: u64) -> Option<f64> {
        let counter = self.counter.as_ref()?;
        // Another core's counter may be behind by a little, one that was reset by a lot: both are
        // a large number here.
        let ticks = counter.counter.raw().wrapping_sub(anchor.raw);
        // One conversion of a signed number is one instruction.
        let us = || anchor.us + ticks as i64 as f64 * counter.us_per_tick;
        (ticks < counter.trusted * times).then(us)
    }

    #[cold]
    #[inline(never)]
    fn renew(&self, anchor: &mut Anchor) -> f64 {
        let Some(counter) = &self.counter else {
            return self.now_us();
        };
        let before = counter.counter.raw();
        let us = self.now_us();
        // The later of the two: what is read by this anchor is never ahead of the clock.
        let raw = counter.counter.raw();
        *anchor = if raw.wrapping_sub(before) < counter.pair {
            Anchor { raw, us }
        } else {
            Anchor::default()
        };
        us
    }

    pub(crate) fn us_at(&self, instant: Instant) -> f64 {
        to_us(instant.saturating_duration_since(self.start))
    }

    pub(crate) fn at_us(&self, us: f64) -> Instant {
        self.start + from_us(us)
    }
}

/// Whether tokio was built with `test-util`, by which time can be paused.
#[allow(dead_code, reason = "which half of it is used depends on that")]
mod pausable {
    /// Found where tokio has no function of this name.
    fn pause() -> Missing {
        Missing
    }

    struct Missing;

    trait Found {
        const IS: bool;
    }

    impl Found for () {
        const IS: bool = true;
    }

    impl Found for Missing {
        const IS: bool = false;
    }

    const fn is<T: Found>(_: fn() -> T) -> bool {
        T::IS
    }

    pub(super) const IS: bool = {
        #[allow(unused_imports, reason = "without `test-util` it holds no `pause`")]
        use tokio::time::*;
        is(pause)
    };
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
    fn the_counter_keeps_to_the_clock() {
        let clock = Clock::with_counter(Some(Counter::new()));
        let mut anchor = Anchor::default();
        let mut last = 0.0;
        let start = clock.now_us();
        while clock.now_us() < start + 20_000.0 {
            let before = clock.now_us();
            let now = clock.now_by(&mut anchor);
            let after = clock.now_us();
            // A thousandth of a millisecond for the scale, and for the two readings.
            assert!(
                before - 2.0 <= now && now <= after + 2.0,
                "{before} {now} {after}"
            );
            assert!(last - 2.0 <= now, "{last} {now}");
            last = now;
        }
    }

    #[test]
    fn a_counter_that_was_set_back_is_not_trusted() {
        let clock = Clock::with_counter(Some(Counter::new()));
        let mut anchor = Anchor {
            raw: u64::MAX,
            us: -1e9,
        };
        assert_eq!(clock.now_near(anchor), None);
        assert!(clock.now_by(&mut anchor) >= 0.0);
        assert!(clock.now_by(&mut anchor) >= 0.0);
    }

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

    #[tokio::test(start_paused = true)]
    async fn paused_time_is_read_by_the_clock() {
        const { assert!(pausable::IS) };
        let clock = Clock::new();
        let mut anchor = Anchor::default();
        assert_eq!(clock.now_by(&mut anchor), 0.0);
        tokio::time::advance(Duration::from_micros(7)).await;
        assert_eq!(clock.now_by(&mut anchor), 7.0);
        assert_eq!(clock.now_near(anchor), Some(7.0));
    }
}
