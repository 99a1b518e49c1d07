//! The value of one bucket in Redis.

use crate::bucket::{Bucket, BucketParams, Reservation};

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stored {
    pub(crate) bucket: Bucket,
    /// The largest capacity and the slowest rate with which any call has used the bucket.
    pub(crate) widest: BucketParams,
}

impl Stored {
    /// Reads a value that may not be written by a call. Returns none if its length is wrong, or if
    /// one of its numbers is not finite.
    pub(crate) fn read(value: &[u8]) -> Option<Self> {
        let mut numbers = [0.0; 9];
        let has_length = match value.len() {
            32 | 56 => true,
            length => length >= 72 && (length - 72).is_multiple_of(24),
        };
        if !has_length {
            return None;
        }
        for (number, bytes) in numbers.iter_mut().zip(value.chunks_exact(8)) {
            *number = f64::from_le_bytes(bytes.try_into().ok()?);
        }
        let [
            level,
            at,
            capacity,
            per_us,
            last_due,
            largest_cost,
            returned,
            paused_until,
            pause_rate,
        ] = numbers;
        let number = |bytes: &[u8]| f64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        let gaps = value.get(72..).unwrap_or_default().chunks_exact(24);
        let gaps: Vec<_> = gaps
            .map(|gap| Reservation {
                from: number(&gap[..8]),
                until: number(&gap[8..16]),
                tokens: number(&gap[16..]),
            })
            .collect();
        let of_gaps = gaps.iter();
        let of_gaps = of_gaps.flat_map(|gap| [gap.from, gap.until, gap.tokens]);
        let all_finite = numbers.into_iter().chain(of_gaps).all(f64::is_finite);
        all_finite.then_some(Self {
            bucket: Bucket {
                level,
                at,
                last_due,
                largest_cost,
                returned,
                paused_until,
                pause_rate,
                gaps,
            },
            widest: BucketParams { capacity, per_us },
        })
    }

    /// Whether a call may have written the value: no amount below zero, no wait of 300 years, no
    /// debt of as many years at a ten-thousandth of the rate.
    pub(crate) fn is_plausible(&self, params: BucketParams) -> bool {
        let (bucket, widest) = (&self.bucket, self.widest);
        widest.per_us > 0.0
            && widest.capacity > 0.0
            && widest.capacity <= 1e100
            && bucket.largest_cost >= 0.0
            && bucket.returned >= 0.0
            && bucket.pause_rate >= 0.0
            && bucket.pause_rate <= 1e100
            && bucket.last_due - bucket.at <= 1e16
            && bucket.paused_until - bucket.at <= 1e16
            && bucket.level >= -2.0 * widest.capacity - 1e20 * (params.per_us + bucket.pause_rate)
            && bucket.gaps.len() <= 64
            && bucket.gaps.is_sorted_by(|a, b| a.until <= b.until)
            && bucket.gaps.iter().all(|gap| {
                gap.from < gap.until
                    && gap.until <= bucket.last_due
                    && gap.tokens > 0.0
                    && gap.tokens <= widest.capacity * 1e10
            })
    }

    /// In how many microseconds the bucket is full by every quota with which it was used.
    pub(crate) fn full_in(&self, now: f64) -> f64 {
        self.bucket.at - now + self.bucket.full_in(self.widest)
    }

    /// The length of the value in bytes.
    pub(crate) fn length(&self) -> usize {
        let bucket = &self.bucket;
        if !bucket.gaps.is_empty() {
            72 + 24 * bucket.gaps.len()
        } else if bucket.paused_until > bucket.at {
            72
        } else if bucket.last_due > bucket.at {
            56
        } else {
            32
        }
    }
}
