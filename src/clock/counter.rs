//! The counter of the processor, compared to tokio's clock.

use std::{
    cell::Cell,
    sync::{
        LazyLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use tokio::time::Instant;

use super::to_us;

/// The counter is compared to tokio's clock at the latest after this time, in microseconds.
const INTERVAL: f64 = 1e6;

/// A comparison counts if its readings took at most this time, in microseconds: otherwise the
/// thread was interrupted between them.
const LONGEST_READING: f64 = 10.0;

/// How often the first pair of readings is repeated if it takes longer.
const MOST_ATTEMPTS: usize = 10;

/// The counter may differ from tokio's clock by this time, in microseconds, and one thousandth of
/// the time since the last comparison. The operating system slews its clock by up to half of that.
const TOLERANCE: f64 = 100.0;

/// Time by the counter of the processor, which is corrected to tokio's time.
///
/// The time of a counter that was found wrong is never used again. It is found:
///
/// - at the next reading, if it went back, or went on by more than a second while tokio's clock did
///   not, as during a suspend;
/// - after at most 256 readings of a thread, or a second by the counter, if it stands still, is too
///   fast or too slow, or jumped by less.
#[derive(Debug)]
pub(super) struct Counter {
    clock: quanta::Clock,
    us_per_tick: f64,
    /// [`INTERVAL`] in ticks.
    interval: u64,
    start: Instant,
    /// What the counter showed then.
    first: u64,
    /// What the counter showed when it was last compared.
    compared: AtomicU64,
    /// The bits of the microseconds that are to be added to those by the counter.
    offset: AtomicU64,
    is_wrong: AtomicBool,
}

impl Counter {
    /// The one of this process. The first call measures the counter, which takes about 1 ms.
    pub(super) fn global() -> &'static Self {
        static GLOBAL: LazyLock<Counter> = LazyLock::new(|| Counter::new(quanta::Clock::new()));
        &GLOBAL
    }

    pub(super) fn new(clock: quanta::Clock) -> Self {
        const MANY: u64 = 1 << 40;
        let us_per_tick = clock.delta_as_nanos(0, MANY) as f64 / 1e3 / MANY as f64;
        let (mut first, mut start) = (clock.raw(), Instant::now());
        for _ in 0..MOST_ATTEMPTS {
            if clock.raw().wrapping_sub(first) as f64 * us_per_tick <= LONGEST_READING {
                break;
            }
            // The thread was interrupted between the two readings.
            (first, start) = (clock.raw(), Instant::now());
        }
        Self {
            clock,
            us_per_tick,
            interval: (INTERVAL / us_per_tick) as u64,
            start,
            first,
            compared: AtomicU64::new(first),
            offset: AtomicU64::new(0),
            is_wrong: AtomicBool::new(false),
        }
    }

    pub(super) fn start(&self) -> Instant {
        self.start
    }

    /// Microseconds since the start.
    #[inline]
    pub(super) fn now_us(&self) -> f64 {
        let count = self.clock.raw();
        // A count before the last comparison is a large difference.
        let since = count.wrapping_sub(self.compared.load(Relaxed));
        if since > self.interval || is_256th_reading() || self.is_wrong.load(Relaxed) {
            return self.compare();
        }
        self.counted_us(count) + f64::from_bits(self.offset.load(Relaxed))
    }

    /// Microseconds since the start by the counter alone. Not the difference to the last
    /// comparison, so that a reading needs one of the values that change, and not two of one time.
    #[inline]
    fn counted_us(&self, count: u64) -> f64 {
        count.wrapping_sub(self.first) as i64 as f64 * self.us_per_tick
    }

    /// Compares the counter to tokio's clock, and returns the time of that. Threads may do this at
    /// the same time.
    #[cold]
    fn compare(&self) -> f64 {
        let count = self.clock.raw();
        let now = to_us(self.start.elapsed());
        let counted = self.counted_us(count);
        let took = self.counted_us(self.clock.raw()) - counted;
        if took.abs() > LONGEST_READING || self.is_wrong.load(Relaxed) {
            return now;
        }
        let compared = self.compared.load(Relaxed);
        // Not at each 256th reading: other threads would have to fetch the values anew.
        let is_due = count.wrapping_sub(compared) > self.interval;
        let offset = f64::from_bits(self.offset.load(Relaxed));
        let compared = self.counted_us(compared) + offset;
        let tolerance = TOLERANCE + (now - compared).max(0.0) / 1e3;
        if (counted + offset - now).abs() > tolerance {
            self.is_wrong.store(true, Relaxed);
        } else if is_due {
            self.offset.store((now - counted).to_bits(), Relaxed);
            self.compared.store(count, Relaxed);
        }
        now
    }
}

/// Whether this is the 256th reading of this thread, and each 256th from there on.
#[inline]
fn is_256th_reading() -> bool {
    thread_local! {
        static READINGS: Cell<u8> = const { Cell::new(0) };
    }
    READINGS.with(|readings| {
        let next = readings.get().wrapping_add(1);
        readings.set(next);
        next == 0
    })
}

#[cfg(test)]
mod tests;
