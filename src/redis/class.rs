//! Classes of buckets: those that are full after at most one period. `acquire.lua` describes how Redis
//! stores them.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::{bucket::BucketParams, scope::Keyspace};

/// The shortest period of a class, in microseconds.
const SHORTEST_PERIOD_US: f64 = 16e6;

/// The longest period, beyond which the script does not double it.
const LONGEST_PERIOD_US: f64 = 9e18;

/// The period of the class that remembers buckets with these parameters until they are full, in
/// microseconds.
pub(crate) fn period_us(params: BucketParams) -> f64 {
    let full_in = params.capacity / params.per_us;
    let mut period = SHORTEST_PERIOD_US;
    while period < full_in && period < LONGEST_PERIOD_US {
        period *= 2.0;
    }
    period
}

/// A set of classes: a bit for each, the one with the shortest period first.
#[derive(Debug, Default)]
pub(crate) struct ClassesInUse(AtomicU64);

impl ClassesInUse {
    /// Adds the classes with these periods, in microseconds.
    pub(crate) fn add(&self, periods: &[f64]) {
        for period in periods {
            let class = (period / SHORTEST_PERIOD_US).log2() as u32;
            let bit = 1 << class.min(u64::BITS - 1);
            if self.0.load(Ordering::Relaxed) & bit == 0 {
                self.0.fetch_or(bit, Ordering::Relaxed);
            }
        }
    }

    /// The keys of all hashes of these classes, and of the next two, to which debt and waiters move
    /// buckets.
    pub(crate) fn hashes(&self, keyspace: &Keyspace) -> Vec<Vec<u8>> {
        let classes = self.0.load(Ordering::Relaxed);
        let classes = classes | classes << 1 | classes << 2;
        let in_use = (0..u64::BITS).filter(|class| classes >> class & 1 == 1);
        in_use
            .flat_map(|class| {
                let period_us = SHORTEST_PERIOD_US * 2f64.powi(class as i32);
                keyspace.class((period_us / 1e6) as u64)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn period_covers_the_refill() {
        for (capacity, rate, seconds) in [
            (1.0, 100.0, 16),
            (16.0, 1.0, 16),
            (16.1, 1.0, 32),
            (1.0, 1.0 / 86_400.0, 131_072),
        ] {
            let period = period_us(BucketParams::new(capacity, rate));
            assert_eq!(period, f64::from(seconds) * 1e6, "{capacity} {rate}");
        }
    }

    #[test]
    fn classes_in_use_are_those_that_were_added() {
        let (classes, keyspace) = (ClassesInUse::default(), Keyspace::new("p", [0; 32]));
        assert!(classes.hashes(&keyspace).is_empty());
        classes.add(&[16e6, 64e6]);
        classes.add(&[64e6]);
        let hashes = [16, 32, 64, 128, 256].map(|period| keyspace.class(period));
        assert_eq!(classes.hashes(&keyspace), hashes.concat());
    }
}
